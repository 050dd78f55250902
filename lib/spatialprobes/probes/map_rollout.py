"""Attention rollout: attention multiplied through the layers, from a word down to the picture.

As Abnar and Zuidema (2020): R = A'_L ... A'_1, A'_l = (mean over heads of A_l + I) / 2, which keeps every row's sum at 1; the map
of a word is its row of R at the vision tokens. It says where the word's attention leads through other tokens, if residual streams
carried what attention moves unchanged; MLPs, values and the norms are not in it. Knows nothing of boxes and metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spatialprobes.capture import capture
from spatialprobes.examples import Example, batches
from spatialprobes.probes.map_records import Panels, labels, left_out_table, numbered, panels, place_of
from spatialprobes.probes.map_rows import blocks_with_attention, head_mean
from spatialprobes.probes.map_words import Part, Row, Words, asked_of, check, find
from spatialprobes.vlm import VLM, Batch

if TYPE_CHECKING:
    from jaxtyping import Float


def rollout(
    vlm: VLM,
    examples: Sequence[Example],
    words: Words | None = None,
    *,
    layers: Sequence[int] | int | str = "all",
    bos: Literal["keep", "drop"] = "keep",
    row: Row = "query",
    part: Part = "user",
    system: str | None = "default",
    batch_size: int = 8,
) -> Panels:
    """One panel a word: its row of R = A'_L ... A'_1 at the vision cells, divided by their sum; see the module for A'.

    bos: "drop" sets the attention on the prompt's first token to zero in every layer, for every token but itself, and divides
    rows by what is left before I is added: what rests there is taken to do nothing (a row with nothing left is I alone).
    layers: whose A' are multiplied, in their order; those without attention maps (linear layers), which also move information,
    count as I. Other options, what is left out and errors: as in `maps.extract`.
    One layer's head-averaged [token, token] and the product so far, [token, cell], are held for each prompt, never all layers'.
    """
    check(row=(row, get_args(Row)), part=(part, get_args(Part)), bos=(bos, ("keep", "drop")))
    chosen = sorted(blocks_with_attention(vlm, layers))
    asked, left_out = asked_of(examples, words, part)
    rows, raw = [], []
    for chunk in batches(asked, batch_size):
        found = find(vlm, chunk, row, part, system)
        left_out += found.left_out
        if not any(found.words):
            continue
        product = _Product(vlm, found.batch, bos)
        with capture(vlm, queries_keys=chosen, at=product.at, visit=product):
            vlm.forward(found.batch, logits_to_keep=1)
        for i, (one, spans, own) in enumerate(zip(chunk, found.batch.spans, found.words, strict=True)):
            for role, word, tokens in own:
                cells = product.now[i, tokens, : len(spans.vision)].mean(0).cpu().numpy()
                rows.append(labels(one.example, role, word, place_of(spans), cells[None, None]))
                raw.append(cells)
    return panels(numbered(rows), raw, source="words", how=f"rollout, bos {bos}", left_out=left_out_table(left_out))


class _Product:
    """R's columns of the vision tokens, [example, token, cell], as far as the layers have run."""

    def __init__(self, vlm: VLM, batch: Batch, bos: str):
        tokens = batch.input_ids.shape[1]
        self.at = list(range(tokens))
        self.first = torch.tensor([spans.start for spans in batch.spans], device=vlm.device) if bos == "drop" else None
        vision = pad_sequence([spans.vision for spans in batch.spans], batch_first=True).to(vlm.device)
        self.now: Float[Tensor, "example token cell"] = torch.nn.functional.one_hot(vision, tokens).transpose(1, 2).float()

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, masks: Tensor, scaling: float) -> None:
        total = head_mean(queries, keys, masks, scaling)
        if self.first is not None:
            total.scatter_(2, self.first[:, None, None].expand(-1, total.shape[1], 1), 0.0)
            left = total.sum(-1, keepdim=True)
            total /= left.clamp(min=torch.finfo(left.dtype).tiny)
            empty = (left[..., 0] == 0).float()  # such a row is I alone: its half of attention is its own
            total += torch.diag_embed(empty)
        self.now = (total @ self.now + self.now) / 2
