"""Where the heads of an attention stand: what enters its output projection, head beside head, and edits of it.

Knows modules and hooks; which heads are changed, and at which tokens, is the business of `heads_off.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from spatialprobes.families.residual import edited_entering

if TYPE_CHECKING:
    from jaxtyping import Float

HeadEdit = Callable[[Tensor], Tensor]  # [example, token, head, size] -> the same


@dataclass(frozen=True)
class Heads:
    """The heads of one attention. projection: takes them side by side, [example, token, count * size]."""

    projection: nn.Module
    count: int
    size: int


def heads_of(attention: nn.Module, name: str) -> Heads:
    """The heads that enter this projection of an attention module of transformers.

    Raises ValueError where there is no such projection, or its input is not so many heads of one size.
    """
    projection, count = getattr(attention, name, None), getattr(attention.config, "num_attention_heads", None)
    width = getattr(projection, "in_features", None)
    if width is None or count is None:
        raise ValueError(f"{type(attention).__name__} has no projection {name!r} of a known number of heads")
    if width % count:
        raise ValueError(f"{type(attention).__name__}.{name} takes {width} numbers, which are not {count} heads of one size")
    return Heads(projection, count, width // count)


def edited_heads(heads: Heads, edit: HeadEdit) -> AbstractContextManager[None]:
    """While open, `edit` maps what the heads give, just before it is projected; edits act in the order opened."""

    def merged(entering: Float[Tensor, "example token width"]) -> Float[Tensor, "example token width"]:
        return edit(entering.unflatten(-1, (heads.count, heads.size))).flatten(-2)

    return edited_entering(heads.projection, merged)
