"""The maps that the study computed (VLM-reasoning, experiment 1), from the same model, to be set beside those of `maps`.

Its LLaVA code takes the prompt's last N tokens for the N patches, and reads rows of these against columns of the text's tokens:
A[T-N:T, 0:T-N], column 0 zeroed, rows divided by their sums. But the patches stand where the placeholder was, near the start, and
the placeholder alone is counted in a column's number. So a "patch" is a late patch or a word, a "word" is mostly one of the first
patches, and the panel of a word says nothing of it. Nor would the right rows: the picture comes first, and a vision token cannot
see what follows it (`vision_to_text` is 0). Its Qwen code has the direction right; what differs from `maps` is said below.

The study averages in half precision, as the model ran; here means are float32 or better. Knows nothing of metrics.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spatialprobes.capture import capture
from spatialprobes.examples import Example, batches
from spatialprobes.probes.map_aggregate import aggregate, layers_of
from spatialprobes.probes.map_records import Maps, Panels, labels, left_out_table, numbered, panels, place_of
from spatialprobes.probes.map_rows import blocks_with_attention, head_mean, read
from spatialprobes.probes.map_words import Asked, Words, asked_of, find
from spatialprobes.probes.tower_maps import from_seeds, lm_vision
from spatialprobes.spans import Spans, occurrences
from spatialprobes.vlm import VLM, Batch

SMALL = 1e-6  # added to every sum that the study divides by


def llava_words(
    vlm: VLM, examples: Sequence[Example], words: Words | None = None, *, system: str | None = None, batch_size: int = 4
) -> Panels:
    """The study's LLaVA panels, wrong span and all: one a word, mean over all layers and heads.

    words: as in `maps.extract`; all places where a word stands are averaged. system: the study strips it.
    Only the last N rows are read, and heads and layers are summed as they run. A word whose column is not among the T - N (the
    prompt's last token) or was zeroed (bos) is left out, and what `maps.extract` leaves out. Raises ValueError where nothing is
    left.
    """
    chosen = blocks_with_attention(vlm)
    asked, left_out = asked_of(examples, words)
    rows, raw = [], []
    for chunk in batches(asked, batch_size):
        found = find(vlm, chunk, "query", "user", system)
        left_out += found.left_out
        if not any(found.words):
            continue
        summed = _LastRows(vlm, found.batch, len(chosen))
        with capture(vlm, queries_keys=chosen, at=summed.at, visit=summed):
            vlm.forward(found.batch, logits_to_keep=1)
        for i, (one, spans, own) in enumerate(zip(chunk, found.batch.spans, found.words, strict=True)):
            cross = cross_as_published(summed.rows(i)[:, spans.start :], len(spans.vision))
            for role, word, _ in own:
                columns = [column for column in columns_of(spans, word) if 0 < column < cross.shape[1]]
                if columns:
                    raw.append(cross[:, columns].mean(1))
                    rows.append(labels(one.example, role, word, place_of(spans), raw[-1][None, None]))
                else:
                    left_out.append((one.example.id, word, "none of its columns is among those that the study reads"))
    return panels(numbered(rows), raw, source="words", how="as published, LLaVA", left_out=left_out_table(left_out))


def cross_as_published(last: np.ndarray, cells: int) -> np.ndarray:
    """The study's "cross-attention" [cell, column]. last: rows of the prompt's last `cells` tokens over all of its tokens."""
    cross = last[:, : last.shape[1] - cells].astype(np.float64)
    cross[:, 0] = 0
    return cross / (cross.sum(1, keepdims=True) + SMALL)


def columns_of(spans: Spans, word: str) -> list[int]:
    """Numbers of a word's tokens in the prompt as it was before its picture's placeholder was expanded, wherever it stands."""
    low, high = spans.ranges["user"]
    count = len(occurrences(spans.text[low:high], word))
    places = [int(place) - spans.start for n in range(count) for place in spans.word(word, n)]
    first, more = int(spans.vision[0]) - spans.start, len(spans.vision) + len(spans.beside) - 1
    return [place if place < first else place - more for place in places]


def qwen_words(
    vlm: VLM, examples: Sequence[Example], words: Words | None = None, *, system: str | None = "default", batch_size: int = 64
) -> Panels:
    """The study's Qwen panels: text query -> vision key, mean over heads and the middle third of the layers.

    Two things differ from `aggregate(extract(...), "mid_third")`: each sub-token's row is divided by its sum before they are
    averaged, and a word that does not stand in the text by itself is read where it is part of another ("circle" in
    "semicircle"), which is what the study's search falls back to.
    """
    asked, left_out = asked_of(examples, words)
    asked = [Asked(one.example, {role: _nearest(one.example, word) for role, word in one.words.items()}) for one in asked]
    rows, raw = [], []
    chosen: list[int] = []
    for chunk in batches(asked, batch_size):
        found = find(vlm, chunk, "query", "user", system)
        left_out += found.left_out
        if not any(found.words):
            continue
        chosen = chosen or layers_of(blocks_with_attention(vlm), vlm.n_layers, "mid_third")
        each = [[[token] for _, _, tokens in own for token in tokens] for own in found.words]
        made, _ = read(vlm, found.batch, each, chosen)
        for one, spans, own, arrays in zip(chunk, found.batch.spans, found.words, made, strict=True):
            of_token = iter(arrays)
            for role, word, tokens in own:
                means = [next(of_token).mean((0, 1), dtype=np.float64) for _ in tokens]
                raw.append(np.mean([mean / (mean.sum() + SMALL) for mean in means], 0))
                rows.append(labels(one.example, role, word, place_of(spans), raw[-1][None, None]))
    return panels(numbered(rows), raw, source="words", how="as published, Qwen2-VL", left_out=left_out_table(left_out))


def llava_self(
    vlm: VLM, examples: Sequence[Example], *, layers: Sequence[int] | int | str = "all", batch_size: int = 8
) -> Panels:
    """The study's LLaVA self-maps from each object's seed: head means divided by their sums in each tower layer, then averaged.

    layers: the study's are those up to the one that the connector reads, 0..22 of CLIP's 24. The seed stays in its own map.
    """
    found = from_seeds(vlm, examples, layers=layers, batch_size=batch_size)
    raw = []
    for weights in found.weights:
        by_layer = weights.mean(1, dtype=np.float64)
        raw.append((by_layer / by_layer.sum(1, keepdims=True)).mean(0))
    return panels(found.index, raw, source=found.source, how="as published, LLaVA", left_out=found.left_out)


def qwen_self(vlm: VLM, examples: Sequence[Example], *, system: str | None = "default", batch_size: int = 64) -> Panels:
    """The study's Qwen self-maps from each object's seed: the language model's causal rows, middle third, without the seed.

    Its source stays "lm_causal_vision": the tower was never read.
    """
    found: Maps = lm_vision(vlm, examples, own="zero", system=system, batch_size=batch_size)
    return replace(aggregate(found, "mid_third"), how="as published, Qwen2-VL")


def vision_to_text(vlm: VLM, examples: Sequence[Example], *, system: str | None = "default", batch_size: int = 4) -> pd.DataFrame:
    """Where vision tokens look: one row an example and layer, [example, cluster, layer, before, vision, after], shares of 1.

    Means over heads and vision tokens of the attention on what stands before the picture, on the picture, and after it, where all
    words of the question are. after is exactly 0 in a causal model: there is no vision -> text attention to map.
    """
    chosen = blocks_with_attention(vlm)
    frames = []
    for chunk in batches(examples, batch_size):
        batch = vlm.encode(chunk, system)
        at = [spans.vision.tolist() for spans in batch.spans]
        most = max(map(len, at))

        def visit(layer: int, queries: Tensor, keys: Tensor, masks: Tensor, scaling: float, batch=batch, at=at) -> None:
            shares = head_mean(queries, keys, masks, scaling).cpu().double()
            for i, (example, spans, own) in enumerate(zip(batch.examples, batch.spans, at, strict=True)):
                keys_of = shares[i, : len(own)].mean(0)
                first, last = own[0], own[-1] + 1
                vision = float(keys_of[own].sum())
                row = {"example": example.id, "cluster": example.cluster or example.id, "layer": layer}
                between = float(keys_of[first:last].sum()) - vision  # markers within a picture count as before it
                row |= {"before": float(keys_of[spans.start : first].sum()) + between, "vision": vision}
                frames.append(row | {"after": float(keys_of[last:].sum())})

        with capture(vlm, queries_keys=chosen, at=[own + own[-1:] * (most - len(own)) for own in at], visit=visit):
            vlm.forward(batch, logits_to_keep=1)
    return pd.DataFrame(frames)


class _LastRows:
    """Attention of each prompt's last N tokens, N its vision tokens, averaged over heads and layers as they run."""

    def __init__(self, vlm: VLM, batch: Batch, layers: int):
        self.length, self.layers = batch.input_ids.shape[1], layers
        self.counts = [len(spans.vision) for spans in batch.spans]
        most = max(self.counts)
        if short := [spans.example for spans in batch.spans if self.length - spans.start < most]:
            raise ValueError(
                f"the prompt of {short[0]!r} has fewer tokens than the largest picture of its batch; use batch_size=1"
            )
        self.at = list(range(self.length - most, self.length))
        self.total: Tensor = torch.zeros(len(batch), most, self.length, device=vlm.device)

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, masks: Tensor, scaling: float) -> None:
        self.total += head_mean(queries, keys, masks, scaling) / self.layers

    def rows(self, example: int) -> np.ndarray:
        """[row, token of the padded batch]."""
        return self.total[example, -self.counts[example] :].cpu().numpy()


def _nearest(example: Example, word: str) -> str:
    """The word, or, where it does not stand by itself, the first word of the question that contains it."""
    question = example.question or ""
    if occurrences(question, word):
        return word
    containing = [each for each in re.findall(r"\w+", question) if word.lower() in each.lower()]
    return containing[0] if containing else word
