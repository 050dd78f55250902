"""Attention rows from queries and keys: what a few tokens attend to, without the T x T map.

Pure functions of tensors; knows no model. Computed in float32 whatever the model runs in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def attention_rows(
    query: Float[Tensor, "example head token size"],
    key: Float[Tensor, "example kv_head key size"],
    mask: Bool[Tensor, "example 1 token key"] | Float[Tensor, "example 1 token key"] | None,
    scaling: float,
    causal: bool,
    rows: Int[Tensor, "example row"],
) -> Float[Tensor, "example head row key"]:
    """Softmax of the chosen rows of query @ key^T * scaling under the mask.

    query, key: after the rotary embedding and the cache; heads share keys where there are fewer of them (grouped queries).
    mask: bool (True may be seen) or additive; None with `causal` means that token t of T sees keys up to t + S - T.
    rows: indices among the T tokens of this call; rows below 0 (absent) come out as NaN.
    """
    heads, tokens, keys = query.shape[1], query.shape[2], key.shape[2]
    groups = heads // key.shape[1]
    local = rows.clamp(min=0)
    chosen = chosen_rows(query, local).float()
    chosen = chosen.reshape(len(query), key.shape[1], groups * local.shape[1], -1)
    scores = (chosen @ key.float().transpose(-1, -2)) * scaling
    scores = scores.reshape(len(query), heads, local.shape[1], keys)
    if mask is not None:
        mask = mask[..., :keys].expand(len(query), -1, -1, -1)
        mask = mask.gather(2, local[:, None, :, None].expand(-1, mask.shape[1], -1, keys))
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask.float()
    elif causal:
        last = local[:, None, :, None] + keys - tokens
        scores = scores.masked_fill(torch.arange(keys, device=scores.device) > last, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).masked_fill((rows < 0)[:, None, :, None], torch.nan)


def chosen_rows(
    query: Float[Tensor, "example head token size"], rows: Int[Tensor, "example row"]
) -> Float[Tensor, "example head row size"]:
    """The queries of these tokens; rows below 0 (absent) hold those of token 0."""
    return query.gather(2, rows.clamp(min=0)[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1]))


def added_rows(
    mask: Bool[Tensor, "example 1 token key"] | Float[Tensor, "example 1 token key"] | None,
    causal: bool,
    rows: Int[Tensor, "example row"],
    tokens: int,
    keys: int,
) -> Float[Tensor, "example row key"]:
    """What the mask adds to the scores of these rows, in float32: 0 where a key may be seen, the least float where it may not.

    mask, causal, rows: as in `attention_rows`; tokens, keys: of this call. Rows below 0 (absent) hold those of token 0.
    """
    local = rows.clamp(min=0)
    least = torch.finfo(torch.float32).min
    if mask is not None:
        mask = mask[:, 0, :, :keys].expand(len(rows), -1, -1).gather(1, local[..., None].expand(-1, -1, keys))
        return (
            torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, least) if mask.dtype == torch.bool else mask.float()
        )
    added = torch.zeros(*rows.shape, keys, device=rows.device)
    if not causal:
        return added
    return added.masked_fill_(torch.arange(keys, device=rows.device) > local[..., None] + keys - tokens, least)
