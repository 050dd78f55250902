"""Edits of the hidden states after a layer, for as long as they are open.

Knows modules and hooks; what is changed, and at which tokens, is the business of `steering.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

HiddenEdit = Callable[[Tensor], Tensor]  # [example, token, width] -> the same
ENTERING, LEAVING = "_entering_edits", "_leaving_edits"  # where a module keeps its edits


@contextmanager
def edited_entering(module: nn.Module, edit: HiddenEdit) -> Iterator[None]:
    """While open, `edit` maps the hidden states that enter a block, its first argument."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if args:
            return (_edited(module, ENTERING, args[0]), *args[1:]), kwargs
        name = next(iter(kwargs))
        return args, {**kwargs, name: _edited(module, ENTERING, kwargs[name])}

    with _listed(module, ENTERING, edit, lambda: module.register_forward_pre_hook(hook, prepend=True, with_kwargs=True)):
        yield


@contextmanager
def edited_leaving(
    module: nn.Module, edit: HiddenEdit, hidden: Callable[[Any], Tensor], replace: Callable[[Any, Tensor], Any]
) -> Iterator[None]:
    """While open, `edit` maps the hidden states in what a block returns. hidden, replace: as `Family` reads and writes them."""

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        return replace(output, _edited(module, LEAVING, hidden(output)))

    with _listed(module, LEAVING, edit, lambda: module.register_forward_hook(hook, prepend=True)):
        yield


def is_edited(module: nn.Module) -> bool:
    """Whether an edit of what enters or leaves this block is open."""
    return ENTERING in module.__dict__ or LEAVING in module.__dict__


@contextmanager
def _listed(module: nn.Module, name: str, edit: HiddenEdit, register: Callable[[], Any]) -> Iterator[None]:
    """One hook for all edits of a place, before all others: edits act in the order opened, and are closed in any order."""
    found = module.__dict__.get(name)
    if found is None:
        found = module.__dict__[name] = ([], register())
    edits, handle = found
    edits.append(edit)
    try:
        yield
    finally:
        edits.remove(edit)
        if not edits:
            handle.remove()
            del module.__dict__[name]


def _edited(module: nn.Module, name: str, hidden: Float[Tensor, "example token width"]) -> Float[Tensor, "example token width"]:
    for edit in list(module.__dict__[name][0]):
        hidden = edit(hidden)
    return hidden
