"""The records of attention maps: raw maps by layer and head (`Maps`), and one normalised picture of each (`Panels`).

A map says how much a query (a word's tokens, or a patch) attends to every cell of the picture's grid. Knows arrays and tables;
knows nothing of models, boxes and metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.spans import Spans

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Head = tuple[int, int]  # (layer, head), both counted from 0
LABELS = ("map", "example", "cluster", "word", "role", "category")
FRAME = ("scale_x", "scale_y", "shift_x", "shift_y")
COLUMNS = (*LABELS, "rows", "cols", *FRAME, "seen")
LEFT_OUT = ("example", "word", "reason")


def no_rows(columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame({name: [] for name in columns}, dtype=object)


def left_out_table(rows: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """[example, word, reason] of what has no map."""
    return pd.DataFrame(list(rows), columns=list(LEFT_OUT), dtype=object)


@dataclass(frozen=True)
class Maps:
    """Raw attention by layer and head, one array a map, not normalised.

    index: one row a map, in the order of `weights`: map (its number), example, cluster, word, role ("subject", "reference",
    "relation" or any other), category, rows, cols (of its grid), scale_x, scale_y, shift_x, shift_y (a cell's place in what the
    model sees is scale x (place in the picture) + shift, in fractions, for each axis), and seen, the share of the query's
    attention that falls on the cells, mean over layers and heads. Maps from seeds have more columns (`tower_maps`).
    layers: blocks, counted from 0. weights: float32 [layer, head, cell] each, cells in raster order.
    source: whose rows they are, "words" (language model, text query), "tower" or "lm_causal_vision".
    left_out: [example, word, reason] of what was asked for and has no map. depth: blocks of the model in all, where known.
    """

    index: pd.DataFrame
    layers: list[int]
    weights: list[Float[np.ndarray, "layer head cell"]]
    source: str = "words"
    left_out: pd.DataFrame = field(default_factory=lambda: no_rows(LEFT_OUT))
    depth: int | None = None

    def __post_init__(self):
        if len(self.index) != len(self.weights):
            raise ValueError(f"an index of {len(self.index)} maps for {len(self.weights)} arrays")
        for row, array in zip(self.index.itertuples(), self.weights, strict=True):
            if array.ndim != 3 or array.shape[::2] != (len(self.layers), row.rows * row.cols):
                raise ValueError(
                    f"map {row.map} of {row.example!r} has shape {array.shape}; [{len(self.layers)} layers, heads, "
                    f"{row.rows} x {row.cols} cells] is wanted"
                )

    def __len__(self) -> int:
        return len(self.weights)

    def select(self, keep: Bool[np.ndarray, " map"]) -> Maps:
        """The maps for which `keep` is true; they keep their numbers."""
        keep = np.asarray(keep, dtype=bool)
        if keep.shape != (len(self),):
            raise ValueError(f"keep has shape {keep.shape}; one value for each of {len(self)} maps is wanted")
        chosen = [array for array, wanted in zip(self.weights, keep, strict=True) if wanted]
        return replace(self, index=self.index[keep].reset_index(drop=True), weights=chosen)


@dataclass(frozen=True)
class Panels:
    """One picture of each map: float64 [row, col], non-negative, summing to 1.

    index: as in `Maps`, one row a panel. source: as in `Maps`. how: how layers and heads became one.
    left_out: [example, word, reason], what the maps lacked already included. sinks: [rows, cols, row, col, share, times] of the
    cells that were zeroed as sinks: the mean share of a grid's panels on it, and that over the uniform share.
    """

    index: pd.DataFrame
    maps: list[Float[np.ndarray, "row col"]]
    source: str = "words"
    how: str = "mean"
    left_out: pd.DataFrame = field(default_factory=lambda: no_rows(LEFT_OUT))
    sinks: pd.DataFrame = field(default_factory=lambda: no_rows(("rows", "cols", "row", "col", "share", "times")))

    def __post_init__(self):
        if len(self.index) != len(self.maps):
            raise ValueError(f"an index of {len(self.index)} panels for {len(self.maps)} arrays")
        for row, array in zip(self.index.itertuples(), self.maps, strict=True):
            if array.shape != (row.rows, row.cols):
                raise ValueError(f"the panel of {row.example!r} has shape {array.shape}; its grid is {row.rows} x {row.cols}")

    def __len__(self) -> int:
        return len(self.maps)


def panels(
    index: pd.DataFrame,
    raw: Sequence[Float[np.ndarray, " cell"]],
    *,
    source: str,
    how: str,
    left_out: pd.DataFrame,
    sinks: pd.DataFrame | None = None,
) -> Panels:
    """Panels of raw attention, each divided by its sum; what is zero on every cell, or no number, is left out with its reason.

    Raises ValueError where nothing remains.
    """
    found, keep, lost = [], [], []
    for row, cells in zip(index.itertuples(), raw, strict=True):
        cells = np.asarray(cells, np.float64)
        total = cells.sum()
        keep.append(bool(np.isfinite(total) and total > 0))
        if keep[-1]:
            found.append((cells / total).reshape(row.rows, row.cols))
        else:
            lost.append((row.example, row.word, "its map is zero on every cell" if total == 0 else "its map is not a number"))
    gone = pd.concat([left_out, left_out_table(lost)], ignore_index=True)
    check_any(found, gone)
    kept = index[np.array(keep)].reset_index(drop=True)
    more = {} if sinks is None else {"sinks": sinks}
    return Panels(kept, found, source, how, gone, **more)


def check_any(found: Sequence, left_out: pd.DataFrame) -> None:
    """Raises ValueError, with the first reason, where everything was left out."""
    if not len(found) and not len(left_out):
        raise ValueError("no examples were given")
    if not len(found):
        first = left_out.iloc[0]
        word = f" ({first['word']!r})" if first["word"] else ""
        raise ValueError(f"no map is left of {len(left_out)} asked for; the first, {first['example']!r}{word}: {first['reason']}")


def place_of(spans: Spans) -> tuple[float, ...]:
    """(rows, cols, scale_x, scale_y, shift_x, shift_y) of a prompt's grid and of its picture's frame."""
    return (*map(float, (*spans.grid, *spans.frame.scale, *spans.frame.shift)),)


def labels(
    example: Example, role: str, word: str, place: Sequence[float], weights: Float[np.ndarray, "layer head cell"]
) -> dict[str, object]:
    """The columns of an index that every map has, but for its number. place: as `place_of`."""
    own = {"example": example.id, "cluster": example.cluster or example.id, "word": word, "role": role}
    grid = {"category": example.category, "rows": int(place[0]), "cols": int(place[1])}
    return {**own, **grid, **dict(zip(FRAME, place[2:], strict=True)), "seen": float(weights.sum(-1, dtype=np.float64).mean())}


def numbered(rows: Sequence[dict[str, object]]) -> pd.DataFrame:
    """An index of these rows, its maps counted from 0."""
    return pd.DataFrame([{"map": number, **row} for number, row in enumerate(rows)])
