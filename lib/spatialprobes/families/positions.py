"""Editing the position ids of vision tokens on their way into a model, prompt by prompt, in forward and generate alike.

Works on any model whose input_ids mark the places of the picture and whose forward takes position_ids, of one axis or several.
Knows no interventions: what becomes of the ids is the caller's function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def edited_positions(
    model: nn.Module, image_token: int, axes: int, edit: Callable[[list[Tensor]], list[Tensor]]
) -> Iterator[None]:
    """While open, `edit` maps the ids ([axis, token] per row of the batch) of the tokens that stand at `image_token`.

    Tokens of a call without them, and all that continue a cache, keep their ids. Raises as `Family.edit_positions`.
    """
    names = list(inspect.signature(model.forward).parameters)

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        if call.get("input_ids") is None:
            raise ValueError("positions of vision tokens are edited by input_ids; the model was given none (inputs_embeds?)")
        cache = call.get("past_key_values")
        decoding = cache is not None and cache.get_seq_length() > 0
        picture = call["input_ids"] == image_token
        if decoding or not bool(picture.any()):  # a model may well say the image token: that is a word, not a picture
            return None
        if call.get("position_ids") is None:
            raise ValueError("positions of vision tokens are edited where position_ids are given; run the inputs of vlm.encode")
        call["position_ids"] = _edited(call["position_ids"], picture, axes, edit)
        if call.get("attention_mask") is None:
            call["attention_mask"] = _everything(call["input_ids"], cache)
        return (), call

    handle = model.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _edited(given: Tensor, picture: Tensor, axes: int, edit: Callable[[list[Tensor]], list[Tensor]]) -> Tensor:
    """given: [row, token], [axis, row, token], or the latter with the places in the text in front, which stay."""
    table = given if given.ndim == 3 else given.expand(axes, *given.shape)
    before = [table[-axes:, row, places] for row, places in enumerate(picture)]
    after = edit(before)
    for old, new in zip(before, after, strict=True):
        if new.shape != old.shape:
            raise ValueError(f"edited position ids have the shape {tuple(new.shape)}, not {tuple(old.shape)} (axis, token)")
        if not bool(new.isfinite().all()):
            raise ValueError(f"{int((~new.isfinite()).sum())} of {new.numel()} edited position ids are not finite")
    edited = table.to(torch.result_type(table, after[0]), copy=True)
    for row, places in enumerate(picture):
        edited[-axes:, row, places] = after[row].to(edited.dtype)
    return edited if given.ndim == 3 or axes > 1 else edited[0]


def _everything(ids: Tensor, cache: Any) -> Tensor:
    """A mask that hides nothing: without one, and without a cache, transformers takes gaps in positions for packed sequences."""
    held = int(cache.get_seq_length()) if cache is not None else 0
    return ids.new_ones(len(ids), held + ids.shape[1])
