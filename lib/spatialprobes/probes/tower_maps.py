"""Self-attention maps: what a patch of an object looks at, in the vision tower and among the vision tokens of the language model.

The two are not the same measure. The tower's patches see one another (in windows, in some blocks of Qwen2.5-VL); the language
model's vision tokens see those before them alone, in raster order, so that an object's centre cannot see its lower half. Knows
nothing of metrics and figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from spatialprobes.capture import capture
from spatialprobes.examples import Example, batches
from spatialprobes.probes.map_records import Maps, check_any, labels, left_out_table, numbered, place_of
from spatialprobes.probes.map_rows import blocks_with_attention, read
from spatialprobes.probes.map_seeds import Seed, Seeds, seeds_of
from spatialprobes.probes.map_words import check
from spatialprobes.seeds import check_seed
from spatialprobes.tower_rows import merge_keys
from spatialprobes.vlm import VLM, Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Own = Literal["keep", "zero"]
CAUSAL, SEES_ALL = "lm_causal_vision", "lm_vision"


def from_seeds(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    seeds: Seeds = "objects",
    layers: Sequence[int] | int | str = "all",
    own: Own = "keep",
    batch_size: int = 8,
    seed: int = 0,
) -> Maps:
    """The vision tower's attention from a seed cell to all cells: one map a seed, [layer, head, cell], source "tower".

    seeds: "objects", one of each of an example's first two objects (roles "subject" and "reference"), the middle of the cells
    that its box reaches into (`map_seeds.centre`: rounded as the study's); or "background", one cell outside all boxes, drawn by
    `seed` and the example's id. layers: blocks of the tower, from 0.
    Cells are those of the vision tokens: where several patches become one, a cell's row is the mean of its patches' rows, and
    what it gives to a cell the sum over that cell's patches. A class token's column is dropped, so that a map sums to what the
    patches get of the attention (`seen` in the index); `maps.aggregate` divides by it. own="zero": nothing of the seed on itself.
    The index has also seed_row, seed_col. Only the seeds' rows are read, and the language model is not run.
    Left out, with the reason: vision tokens without a grid, boxes that show no cell, pictures without a free cell.
    Raises ValueError for an unknown choice, a layer that is not there, a tower whose patches are not known (discovered models),
    and where nothing is left.
    """
    check(seeds=(seeds, get_args(Seeds)), own=(own, get_args(Own)))
    check_seed(seed)
    drawn = _Drawn("tower")
    layout = _layout(vlm, examples)
    chosen: list[int] = []
    for chunk in batches(examples, batch_size):
        pictures, which = vlm.pictures(chunk)
        by_picture: dict[int, list[tuple[Example, Seed]]] = {}
        places = {}
        for example, shown in zip(chunk, which, strict=True):
            grid, frame = pictures.grids[shown], pictures.frames[shown]
            if grid is None:
                count = pictures.tokens[shown].count(vlm.family.image_token_id(vlm.model))
                drawn.leave_out(example, f"its {count} vision tokens have no grid to draw a map on")
                continue
            places[shown] = (*map(float, (*grid, *frame.scale, *frame.shift)),)
            found, lost = seeds_of(example, places[shown], seeds, seed)
            drawn.left_out += lost
            by_picture.setdefault(shown, []).extend((example, one) for one in found)
        run = [shown for shown, own_seeds in by_picture.items() if own_seeds]
        if not run:
            continue
        at = [[row for _, one in by_picture[shown] for row in layout.rows(one, places[shown])] for shown in run]
        inputs = vlm.to_device(vlm.family.repeat(pictures.inputs, run))
        rows = _tower_rows(vlm, inputs, [by_picture[shown][0][0] for shown in run], layers, at)
        chosen = list(rows)
        for i, shown in enumerate(run):
            cells = torch.stack([layout.cells(rows[layer][i], places[shown]) for layer in chosen])  # [layer, head, row, cell]
            own_rows = layout.merge**2
            for j, (example, one) in enumerate(by_picture[shown]):
                weights = cells[:, :, j * own_rows : (j + 1) * own_rows].mean(2).numpy()
                drawn.add(example, one, places[shown], weights, own)
    return drawn.maps(chosen, len(vlm.family.part(vlm.model, "tower_layers")))


def lm_vision(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    seeds: Seeds = "objects",
    layers: Sequence[int] | int | str = "all",
    own: Own = "keep",
    system: str | None = "default",
    batch_size: int = 64,
    seed: int = 0,
) -> Maps:
    """The language model's attention from a seed's vision token to all vision tokens: source "lm_causal_vision".

    A vision token sees those before it, row by row, and nothing that is written after the picture, so that no question is
    needed: none is asked. Not to be set beside the tower's maps as if both were one measure. The index has also seed_row,
    seed_col and visible, the share of the object's own cells that the seed can see at all (about half; NaN for the background),
    by the model's own masks. Where they let vision tokens see one another (Gemma 3), the source is "lm_vision" and visible is 1.
    Other options, what is left out and errors as for `from_seeds`; layers: blocks of the language model that have attention.
    """
    check(seeds=(seeds, get_args(Seeds)), own=(own, get_args(Own)))
    check_seed(seed)
    chosen = blocks_with_attention(vlm, layers)
    drawn = _Drawn(CAUSAL)
    for chunk in batches(examples, batch_size):
        batch = vlm.encode([dataclasses.replace(example, question="?", meta={}) for example in chunk], system)
        of_prompt: list[list[Seed]] = []
        for example, spans in zip(chunk, batch.spans, strict=True):
            of_prompt.append([])
            if spans.grid is None:
                drawn.leave_out(example, f"its {len(spans.vision)} vision tokens have no grid to draw a map on")
                continue
            of_prompt[-1], lost = seeds_of(example, place_of(spans), seeds, seed)
            drawn.left_out += lost
        if not any(of_prompt):
            continue
        tokens = [
            [[int(spans.vision[one.row * spans.grid[1] + one.col])] for one in own_seeds]
            for spans, own_seeds in zip(batch.spans, of_prompt, strict=True)
        ]
        maps, visible = read(vlm, batch, tokens, chosen)
        for example, spans, own_seeds, arrays, seen in zip(chunk, batch.spans, of_prompt, maps, visible, strict=True):
            for one, weights, allowed in zip(own_seeds, arrays, seen, strict=True):
                drawn.add(example, one, place_of(spans), weights, own, allowed)
    return drawn.maps(chosen, vlm.n_layers)


class _Drawn:
    """Maps as they are made."""

    def __init__(self, source: str):
        self.source = source
        self.rows: list[dict[str, object]] = []
        self.weights: list[Float[np.ndarray, "layer head cell"]] = []
        self.left_out: list[tuple[str, str, str]] = []

    def add(
        self,
        example: Example,
        seed: Seed,
        place: tuple[float, ...],
        weights: Float[np.ndarray, "layer head cell"],
        own: Own,
        allowed: Bool[np.ndarray, " cell"] | None = None,
    ) -> None:
        if own == "zero":
            weights = weights.copy()
            weights[..., seed.row * seed.own.shape[1] + seed.col] = 0
        row = labels(example, seed.role, seed.word, place, weights) | {"seed_row": seed.row, "seed_col": seed.col}
        if allowed is not None:
            row["visible"] = float(allowed[seed.own.ravel()].mean()) if seed.own.any() else np.nan
            if allowed.all() and (seed.row, seed.col) != (seed.own.shape[0] - 1, seed.own.shape[1] - 1):
                self.source = SEES_ALL  # one that is not the last sees them all
        self.rows.append(row)
        self.weights.append(weights)

    def leave_out(self, example: Example, reason: str) -> None:
        self.left_out.append((example.id, "", reason))

    def maps(self, layers: list[int], depth: int) -> Maps:
        gone = left_out_table(self.left_out)
        check_any(self.weights, gone)
        return Maps(numbered(self.rows), layers, self.weights, self.source, gone, depth)


@dataclass(frozen=True)
class _Layout:
    """How the tower's tokens make cells. before: tokens ahead of the patches. merge: patches along a cell's side."""

    before: int
    merge: int

    def rows(self, seed: Seed, place: tuple[float, ...]) -> list[int]:
        """Indices of the seed's patches among the tower's tokens."""
        width = int(place[1]) * self.merge
        patches = [(seed.row * self.merge + i, seed.col * self.merge + j) for i in range(self.merge) for j in range(self.merge)]
        return [self.before + row * width + col for row, col in patches]

    def cells(self, rows: Float[Tensor, "head row key"], place: tuple[float, ...]) -> Float[Tensor, "head row cell"]:
        grid = int(place[0]) * self.merge, int(place[1]) * self.merge
        return merge_keys(rows, grid, self.merge, self.before)[..., self.before :]


def _layout(vlm: VLM, examples: Sequence[Example]) -> _Layout:
    """Learnt from one run of the tower, on the first picture."""
    first = list(examples[:1])
    pictures, _ = vlm.pictures(first)
    with capture(vlm, tower_rows=[0], tower_at=[0]) as got:
        _run(vlm, vlm.to_device(pictures.inputs), first)
    return _Layout(got.tower.before, got.tower.merge)


def _tower_rows(
    vlm: VLM, inputs: dict[str, Tensor], examples: list[Example], layers: Sequence[int] | int | str, at: list[list[int]]
) -> dict[int, list[Float[Tensor, "head row key"]]]:
    """Rows `at` of each of these pictures, by layer."""
    with capture(vlm, tower_rows=layers, tower_at=at) as got:
        _run(vlm, inputs, examples)
    return got.tower_rows


@torch.no_grad()
def _run(vlm: VLM, inputs: dict[str, Tensor], examples: list[Example]) -> None:
    """The tower alone, on one picture an example."""
    with vlm.running(Batch(inputs, [], examples, list(range(len(examples))))):
        vlm.family.image_features(vlm.model, inputs)
