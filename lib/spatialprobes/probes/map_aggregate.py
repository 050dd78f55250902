"""From maps by layer and head to one panel a word: which layers and heads are averaged, and what becomes of sinks.

Raw attention is averaged over the layers and heads that were chosen, and only then divided by its sum over the cells: a head that
looks at the picture more weighs more. Knows arrays and tables; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import numpy as np
import pandas as pd

from spatialprobes.probes.map_records import Head, Maps, Panels, panels

How = Literal["mean", "first_third", "mid_third", "last_third"]
THIRDS = ("first_third", "mid_third", "last_third")
SINK_TIMES = 10  # a sink has more than so many times the uniform share, averaged over the panels of its grid
SINK_PICTURES = 10  # fewer can't tell a sink from an object that stands there


def aggregate(
    maps: Maps, how: How | int = "mean", *, heads: Sequence[Head] | None = None, sink: Literal["keep", "drop"] = "keep"
) -> Panels:
    """One panel a map: raw attention averaged over layers and heads, then divided by its sum over the cells.

    how: "mean", all layers of the maps; "first_third", "mid_third", "last_third": blocks 0..t-1, t..2t-1 and 2t..L-1, t = L // 3
    of the model's L blocks, as the study has it (28: 0..8, 9..17, 18..27), those among them that have maps; or one layer.
    heads: (layer, head), both from 0: only these are averaged (how="mean").
    sink: "drop" sets cells to zero that take more than 10 times the uniform share (1 / cells), averaged over all panels of their
    grid, every word and example alike: a sink takes its share whatever is asked and shown, an object does not. Panels are divided
    by their sums before that mean, so that each counts alike, and again after. Fewer than a tenth of the cells can be such, so
    never all (a grid of 10 cells or fewer has none); `Panels.sinks` lists them. It needs 10 pictures of a grid: fewer can't tell
    a sink from an object.
    A map that is zero on every cell that is left is left out, with its reason.
    Raises ValueError for an unknown choice, a layer or head that the maps lack, and where nothing is left.
    """
    if sink not in ("keep", "drop"):
        raise ValueError(f"sink={sink!r} is unknown; 'keep' or 'drop'")
    if heads is not None and how != "mean":
        raise ValueError(f"heads name their own layers: how={how!r} with them is not clear; leave it at 'mean'")
    chosen = _chosen_heads(maps, heads) if heads is not None else None
    depth = maps.depth if maps.depth is not None else max(maps.layers) + 1
    places = [maps.layers.index(layer) for layer in layers_of(maps.layers, depth, how)]
    raw = []
    for weights in maps.weights:
        taken = weights[chosen] if chosen is not None else weights[places].reshape(-1, weights.shape[-1])
        raw.append(taken.mean(0, dtype=np.float64))
    name = how if heads is None else f"{len(heads)} heads"
    name = f"layer {how}" if isinstance(how, Integral) else name
    kept = panels(maps.index, raw, source=maps.source, how=name, left_out=maps.left_out)
    return kept if sink == "keep" else without_sinks(kept)


def without_sinks(drawn: Panels) -> Panels:
    """The panels with their sinks at zero and divided by their sums again; see `aggregate`."""
    grids = drawn.index.groupby(["rows", "cols"], sort=False)
    found, masks = [], {}
    for (rows, cols), own in grids:
        pictures = own["cluster"].nunique()
        if pictures < SINK_PICTURES:
            raise ValueError(
                f"sink='drop': the {len(own)} panels of {rows} x {cols} cells are of {pictures} pictures; at least "
                f"{SINK_PICTURES} are wanted to tell a sink from an object"
            )
        share = np.mean([drawn.maps[i] for i in own.index], 0)
        masks[rows, cols] = sinks = share * rows * cols > SINK_TIMES
        for row, col in np.argwhere(sinks):
            found.append((rows, cols, row, col, share[row, col], share[row, col] * rows * cols))
    raw = []
    for row, panel in zip(drawn.index.itertuples(), drawn.maps, strict=True):
        raw.append(np.where(masks[row.rows, row.cols], 0, panel).ravel())
    table = pd.DataFrame(found, columns=["rows", "cols", "row", "col", "share", "times"])
    return panels(drawn.index, raw, source=drawn.source, how=drawn.how, left_out=drawn.left_out, sinks=table)


def layers_of(layers: Sequence[int], depth: int, how: How | int) -> list[int]:
    """Those of these blocks that `how` names; depth: blocks of the model. Raises ValueError for an unknown or empty choice."""
    there = ", ".join(map(str, layers))
    if isinstance(how, str) and how == "mean":
        return list(layers)
    if isinstance(how, str) and how in THIRDS:
        third = depth // 3
        low, high = {"first_third": (0, third), "mid_third": (third, 2 * third), "last_third": (2 * third, depth)}[how]
        found = [layer for layer in layers if low <= layer < high]
        if not found:
            raise ValueError(f"how={how!r}: no maps of blocks {low}..{high - 1} of {depth}; there: {there}")
        return found
    if isinstance(how, str) or not isinstance(how, Integral) or isinstance(how, bool):
        raise ValueError(f"how={how!r} is unknown; 'mean', {', '.join(map(repr, THIRDS))}, or a layer")
    if how not in layers:
        raise ValueError(f"layer {how} has no maps; there: {there}")
    return [int(how)]


def _chosen_heads(maps: Maps, heads: Sequence[Head]) -> tuple[list[int], list[int]]:
    """Indices into [layer, head, cell]."""
    if not len(heads):
        raise ValueError("heads is empty; name at least one (layer, head)")
    count = maps.weights[0].shape[1] if len(maps) else 0
    for one in heads:
        layer, head = one if np.shape(one) == (2,) else (None, one)
        if layer not in maps.layers or not 0 <= head < count:
            there = f"layers {', '.join(map(str, maps.layers))}, heads 0 to {count - 1}"
            raise ValueError(f"head {one!r} has no maps; (layer, head) is wanted, there: {there}")
    if len(set(map(tuple, heads))) < len(heads):
        raise ValueError("heads names one of them twice")
    return [maps.layers.index(layer) for layer, _ in heads], [head for _, head in heads]
