"""The last token of each prompt, run again and again under different steering: what one pass over the prompts is enough for.

No earlier token sees the last one, so what comes before it is run once and kept; then many copies of the last token, each
steered in its own way after its own layer, run side by side on those keys and values, blind to one another. Equal to steering
whole prompts but for the order of floating-point sums. Knows batches and caches, no probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from spatialprobes.steering import Steering, apply, steered
from spatialprobes.vlm import VLM, Batch

if TYPE_CHECKING:
    from jaxtyping import Float, Int

COPIES = 64  # of the last token that run side by side: logits of all of them are held at once


@torch.no_grad()
def steered_words(
    vlm: VLM, batch: Batch, steerings: Sequence[Steering], words: Int[Tensor, "example word"]
) -> Float[Tensor, "example run word"]:
    """Logits of these words after the last token of every row, in float32: run 0 unsteered, run i under steerings[i - 1] there.

    Where a steering is asked for does not count: it acts at the batch's last token alone. Interventions that are open act on all
    runs alike. Raises ValueError as `steering.steered`.
    """
    run = _side_by_side if _can_branch(vlm) else _one_by_one
    return run(vlm, batch, list(steerings), words)


def _can_branch(vlm: VLM) -> bool:
    """Whether copies of a token can share a cache: it holds keys and values of all earlier tokens, and no one looks at the runs.

    Not so of states of linear attention and of sliding windows, and not proved of models that were discovered.
    """
    if not vlm.family.shares_prefix or vlm.whole_prompts or vlm.family.edits_hidden(vlm.model):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=vlm.model.config).layers)


def _one_by_one(
    vlm: VLM, batch: Batch, steerings: list[Steering], words: Int[Tensor, "example word"]
) -> Float[Tensor, "example run word"]:
    """Every run over whole prompts."""
    found = [_read(vlm.forward(batch, logits_to_keep=1).logits, words)]
    for one in steerings:
        with steered(vlm, replace(one, at=torch.tensor([-1]), later=False)):
            found.append(_read(vlm.forward(batch, logits_to_keep=1).logits, words))
    return torch.cat(found, dim=1)


def _side_by_side(
    vlm: VLM, batch: Batch, steerings: list[Steering], words: Int[Tensor, "example word"]
) -> Float[Tensor, "example run word"]:
    """One run over the prompts, then the last token alone, COPIES at a time."""
    cache = DynamicCache(config=vlm.model.config)
    found = [_read(vlm.forward(batch, past_key_values=cache, use_cache=True, logits_to_keep=1).logits, words)]
    cache.crop(-1)
    for start in range(0, len(steerings), COPIES):
        some = steerings[start : start + COPIES]
        with ExitStack() as stack:
            for layer in sorted({one.layer for one in some}):
                own = [(place, one) for place, one in enumerate(some) if one.layer == layer]
                stack.enter_context(vlm.family.edit_hidden(vlm.model, layer, partial(_steer_copies, vlm, own)))
            copies = replace(batch, inputs=_copied(vlm, batch, len(some)))
            found.append(_read(vlm.forward(copies, past_key_values=cache, use_cache=True).logits, words))
        cache.crop(-len(some))
    return torch.cat(found, dim=1)


def _steer_copies(
    vlm: VLM, steerings: list[tuple[int, Steering]], hidden: Float[Tensor, "example copy width"]
) -> Float[Tensor, "example copy width"]:
    """Each (copy, steering) applied to that copy."""
    hidden, rows = hidden.clone(), torch.arange(len(hidden))
    for place, one in steerings:
        hidden[:, place] = apply(one, vlm, hidden[:, place], len(hidden), rows)
    return hidden


def _copied(vlm: VLM, batch: Batch, copies: int) -> dict[str, Tensor]:
    """Inputs of so many copies of the last token, each seeing what came before it and itself."""
    mask = batch.attention_mask
    before = mask[:, None, :-1].bool().expand(-1, copies, -1)
    itself = torch.eye(copies, dtype=torch.bool, device=mask.device).expand(len(mask), -1, -1)
    seen = torch.cat([before, itself], dim=-1)
    added = torch.zeros(seen.shape, dtype=vlm.dtype, device=mask.device).masked_fill_(~seen, torch.finfo(vlm.dtype).min)
    per_token = {name: value for name, value in batch.inputs.items() if name.endswith("_ids")}  # not pictures, not the mask
    inputs = {name: value[..., -1:].expand(*value.shape[:-1], copies) for name, value in per_token.items()}
    return {**inputs, "attention_mask": added[:, None]}


def _read(
    logits: Float[Tensor, "example token vocabulary"], words: Int[Tensor, "example word"]
) -> Float[Tensor, "example token word"]:
    index = words.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
    return logits.gather(-1, index).float().cpu()
