"""From tokens to maps: what groups of tokens attend to on the picture's cells, by layer and head, in one forward of a batch.

Attention is made from queries and keys as each layer runs, cut to the cells and pooled at once: the largest thing that is ever
held is one layer's rows of the tokens asked for. Knows tokens; knows nothing of words, seeds and files.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spatialprobes.capture import capture
from spatialprobes.vlm import VLM, Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Tokens = list[int]  # of one map, in the padded batch; their attention is averaged


def blocks_with_attention(vlm: VLM, layers: Sequence[int] | int | str = "all") -> list[int]:
    """The blocks of the language model that are meant, counted from 0; "all": those that have an attention map.

    Raises ValueError for one that is not there or has none (linear layers).
    """
    blocks = vlm.family.part(vlm.model, "layers")
    there = [i for i, block in enumerate(blocks) if vlm.family.attention(block) is not None]
    asked = there if isinstance(layers, str) and layers == "all" else [layers] if isinstance(layers, Integral) else list(layers)
    if not asked:
        raise ValueError(f"layers={layers!r} names none; blocks with attention: {', '.join(map(str, there)) or 'none'}")
    with capture(vlm, queries_keys=asked, visit=lambda *_: None):  # refuses what is not there, and says what is
        return list(dict.fromkeys(int(layer) for layer in asked))


def read(
    vlm: VLM, batch: Batch, groups: Sequence[Sequence[Tokens]], layers: Sequence[int]
) -> tuple[list[list[Float[np.ndarray, "layer head cell"]]], list[list[Bool[np.ndarray, " cell"]]]]:
    """Run the batch once: for every prompt and group of tokens its map, and the cells that its tokens were allowed to see.

    groups: per prompt, groups of token indices of the padded batch, each with at least one token; a prompt may have none, not
    all. Maps are float32, raw attention, mean over the tokens of a group; cells in raster order. Equal to eager attention's to
    1e-5 in float32.
    """
    reader = _Reader(vlm, batch, groups, max(layers))
    with capture(vlm, queries_keys=list(layers), at=reader.at, visit=reader), suppress(_Read):
        vlm.forward(batch, logits_to_keep=1)
    return reader.maps(layers), reader.visible()


class _Read(Exception):
    """Ends a forward where the last layer that is wanted has been read: nothing behind its queries and keys is run."""


class _Reader:
    """What `capture` calls at every layer. Rows of all prompts are as many as the most of one: shorter ones repeat a token."""

    def __init__(self, vlm: VLM, batch: Batch, groups: Sequence[Sequence[Tokens]], last_layer: int):
        self.last_layer = last_layer
        flat = [[token for group in own for token in group] for own in groups]
        most = max(map(len, flat))
        last = batch.input_ids.shape[1] - 1
        self.at = [own + (own[-1:] or [last]) * (most - len(own)) for own in flat]
        self.cells = [len(spans.vision) for spans in batch.spans]
        self.vision = pad_sequence([spans.vision for spans in batch.spans], batch_first=True).to(vlm.device)
        self.groups = groups
        taken, owner, sizes = [], [], []
        for prompt, own in enumerate(groups):
            row = prompt * most
            for group in own:
                taken += range(row, row + len(group))
                owner += [len(sizes)] * len(group)
                sizes.append(len(group))
                row += len(group)
        self.taken, self.owner, self.sizes = (torch.tensor(one, device=vlm.device) for one in (taken, owner, sizes))
        self.layers: dict[int, Float[Tensor, "map head cell"]] = {}
        self.seen: Bool[Tensor, "map cell"] | None = None

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, masks: Tensor, scaling: float) -> None:
        rows = seen_by(queries, keys, masks, scaling)
        on_cells = rows.gather(3, self.vision[:, None, None].expand(-1, rows.shape[1], rows.shape[2], -1))
        each = on_cells.transpose(1, 2).flatten(0, 1)[self.taken]  # [token, head, cell]
        pooled = each.new_zeros(len(self.sizes), *each.shape[1:]).index_add_(0, self.owner, each)
        self.layers[layer] = (pooled / self.sizes[:, None, None]).cpu()
        if self.seen is None:
            allowed = masks.gather(2, self.vision[:, None].expand(-1, masks.shape[1], -1)) == 0
            allowed = allowed.flatten(0, 1)[self.taken].float()
            counts = allowed.new_zeros(len(self.sizes), allowed.shape[1]).index_add_(0, self.owner, allowed)
            self.seen = (counts > 0).cpu()
        if layer == self.last_layer:
            raise _Read

    def maps(self, layers: Sequence[int]) -> list[list[Float[np.ndarray, "layer head cell"]]]:
        stacked = torch.stack([self.layers[layer] for layer in layers], 1).numpy()
        return self._by_prompt(stacked)

    def visible(self) -> list[list[Bool[np.ndarray, " cell"]]]:
        return self._by_prompt(self.seen.numpy())

    def _by_prompt(self, values: np.ndarray) -> list[list[np.ndarray]]:
        """values: [map, ..., cell], cut to each picture's own cells."""
        each = iter(values)
        # copied where cut: a view would keep the padding of the whole batch alive
        return [
            [np.ascontiguousarray(next(each)[..., :cells]) for _ in own]
            for own, cells in zip(self.groups, self.cells, strict=True)
        ]


def seen_by(
    queries: Float[Tensor, "example head row size"],
    keys: Float[Tensor, "example kv_head key size"],
    masks: Float[Tensor, "example row key"],
    scaling: float,
) -> Float[Tensor, "example head row key"]:
    """Attention of queries as `capture` hands them to a visitor, in float32; heads share keys where there are fewer of them."""
    examples, heads, rows, size = queries.shape
    grouped = queries.float().reshape(examples, keys.shape[1], heads // keys.shape[1] * rows, size)
    scores = (grouped @ keys.float().transpose(-1, -2)).mul_(scaling).reshape(examples, heads, rows, -1)
    return scores.add_(masks[:, None]).softmax(-1)


def head_mean(
    queries: Float[Tensor, "example head row size"],
    keys: Float[Tensor, "example kv_head key size"],
    masks: Float[Tensor, "example row key"],
    scaling: float,
) -> Float[Tensor, "example row key"]:
    """`seen_by` averaged over heads, one of them held at a time: for many rows."""
    heads, group = queries.shape[1], queries.shape[1] // keys.shape[1]
    total = torch.zeros(len(queries), queries.shape[2], keys.shape[2], device=queries.device)
    for head in range(heads):
        total += seen_by(queries[:, head : head + 1], keys[:, head // group, None], masks, scaling)[:, 0] / heads
    return total
