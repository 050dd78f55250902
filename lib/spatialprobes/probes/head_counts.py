"""The study's way to corner heads: per pair and layer the three heads that change most, counted, and what is shared or unique.

    D[pair, layer, head] = |full - control|;  count = pairs in which the head is among its layer's top 3;  M = count / pairs
    M_shared = mean of M over corners;  R_c = M_c - M_shared

Three heads a layer are found in every model, one with random weights too: a head drawn blindly is counted in 3 / heads of the
pairs, which the study leaves out. And chance is not all: absolute values are larger for heads that vary more, so counts far
above chance need no effect (``head_effects.py`` has the sign). Both are said beside each count here; the rest is as published.
Knows arrays of `heads.HeadMass`; files are read and written elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.stats import binom

from spatialprobes.probes.heads import HeadMass
from spatialprobes.sources import head_results
from spatialprobes.stats import benjamini_hochberg
from spatialprobes.worlds.corners import CORNERS, check_corner

if TYPE_CHECKING:
    from jaxtyping import Float, Int

TOP = 3
COUNTS = ("corner", "layer", "head", "count", "chance", "p", "q", "n", "ties")
GAPS = ("corner", "layer", *head_results.GAPS)

Reduce = Literal["max", "mean"]
Brightness = Literal["raw", "abs"]


def changes(found: HeadMass, corner: str, *, region: str = "all") -> Float[np.ndarray, "pair layer head"]:
    """D: absolute changes of the pairs whose subject stands in the corner that is asked about.

    region "all" is the study's default, "region" its PATCH_SIZE. Raises ValueError for a corner that was not asked about, where
    no subject stands, and for an asked corner without cells.
    """
    check_corner(corner)
    rows = (found.pairs["corner"] == corner).to_numpy()
    if corner not in found.asked or not rows.any():
        raise ValueError(f"{corner!r} was not asked about with a subject in it; asked: {', '.join(found.asked)}")
    values = np.abs(found.differences(region)[rows, found.asked.index(corner)])
    if np.isnan(values).any():
        raise ValueError(
            f"{corner}: {int(np.isnan(values).any((1, 2)).sum())} of {len(values)} pairs have no cells in that corner"
        )
    return values


def membership(values: Float[np.ndarray, "pair layer head"], k: int = TOP) -> Int[np.ndarray, "layer head pair"]:
    """1 where a head is among the k of its layer that change most, uint8 (the study's count_LHN). Of equals the lower head wins.

    Raises ValueError for k outside 1 .. heads.
    """
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= values.shape[-1]:
        raise ValueError(f"k={k!r} of {values.shape[-1]} heads a layer; 1 to {values.shape[-1]}")
    made = np.zeros(values.shape, np.uint8)
    np.put_along_axis(made, np.argsort(-values, axis=-1, kind="stable")[..., :k], 1, axis=-1)
    return made.transpose(1, 2, 0)


def counts(found: HeadMass, *, k: int = TOP, region: str = "all") -> pd.DataFrame:
    """How often each head is among its layer's top k, against chance: columns COUNTS, for each asked corner with subjects in it.

    count: of n pairs. chance: n x k / heads, the count of a head drawn blindly. p: that a head drawn blindly in every pair is
    counted so often or oftener (binomial; pairs are independent); q: Benjamini-Hochberg over the heads of a corner. It tests
    whether heads are alike, not whether any has an effect: a head that varies more is counted more. ties: in how many pairs the
    k-th and the next head of the layer change alike, so that their order decides.
    Raises ValueError as `changes` and `membership` do.
    """
    frames = []
    for corner in _corners(found):
        values = changes(found, corner, region=region)
        count = membership(values, k).sum(-1, dtype=np.int64)
        heads, n = values.shape[-1], len(values)
        ordered = -np.sort(-values, axis=-1)
        ties = (ordered[..., k - 1] == ordered[..., k]).sum(0) if k < heads else np.zeros(values.shape[1], int)
        p = binom.sf(count.ravel() - 1, n, k / heads)
        labels = {"corner": corner, "layer": np.repeat(found.layers, heads), "head": np.tile(np.arange(heads), len(found.layers))}
        numbers = {"count": count.ravel(), "chance": n * k / heads, "p": p, "q": benjamini_hochberg(p), "n": n}
        frames.append(pd.DataFrame(labels | numbers | {"ties": np.repeat(ties, heads)}))
    return pd.concat(frames, ignore_index=True)[list(COUNTS)]


def first_counts(values: Float[np.ndarray, "pair layer head"]) -> Int[np.ndarray, "layer head"]:
    """In how many pairs a head is the one of its layer that changes most (the study's diff_abs_top1_count)."""
    return membership(values, 1).sum(-1, dtype=np.int64)


def gaps(found: HeadMass, *, region: str = "all") -> pd.DataFrame:
    """How far the first heads of a layer stand out (the study's diff_gap_stats): columns GAPS, means over pairs.

    top1 .. top4: the largest changes of a layer in a pair; median: of its heads. Raises ValueError as `changes` does, and for
    fewer than 4 heads.
    """
    rows = []
    for corner in _corners(found):
        values = changes(found, corner, region=region)
        if values.shape[-1] < 4:
            raise ValueError(f"layers of {values.shape[-1]} heads have no fourth")
        for place, layer in enumerate(found.layers):
            rows.append({"corner": corner, "layer": layer, **head_results.gaps_of(values[:, place])})
    return pd.DataFrame(rows, columns=list(GAPS))


@dataclass(frozen=True)
class Shared:
    """What corners have in common, and what not. layers: of the rows, from 0.

    frequencies: M_c by corner, the share of pairs in which a head is among the top; shared: M_shared, their mean over corners;
    residuals: R_c = M_c - M_shared. shared_head, unique_heads: the study's, the layer discarded. top_shared, top_residual:
    (layer, head) of the largest values, the largest first.
    """

    layers: list[int]
    frequencies: dict[str, Float[np.ndarray, "layer head"]]
    shared: Float[np.ndarray, "layer head"]
    residuals: dict[str, Float[np.ndarray, "layer head"]]
    shared_head: int
    unique_heads: dict[str, int]
    top_shared: list[tuple[int, int]]
    top_residual: dict[str, list[tuple[int, int]]]

    def frame(self) -> pd.DataFrame:
        """[corner, layer, head, frequency, shared, residual], a row per corner, layer and head."""
        heads = self.shared.shape[1]
        labels = {"layer": np.repeat(self.layers, heads), "head": np.tile(np.arange(heads), len(self.layers))}
        parts = [
            pd.DataFrame(
                {
                    "corner": corner,
                    **labels,
                    "frequency": own.ravel(),
                    "shared": self.shared.ravel(),
                    "residual": self.residuals[corner].ravel(),
                }
            )
            for corner, own in self.frequencies.items()
        ]
        return pd.concat(parts, ignore_index=True)


def members(found: HeadMass, *, k: int = TOP, region: str = "all") -> dict[str, Int[np.ndarray, "layer head pair"]]:
    """`membership` of every asked corner with subjects in it: what `shared_and_unique` takes."""
    return {corner: membership(changes(found, corner, region=region), k) for corner in _corners(found)}


def shared_and_unique(
    by_corner: Mapping[str, Int[np.ndarray, "layer head pair"]],
    layers: list[int] | None = None,
    *,
    reduce: Reduce = "max",
    brightness: Brightness = "raw",
    top: int = 3,
) -> Shared:
    """The study's shared and unique heads, from memberships by corner (`members`, or count_LHN.npy of its folders).

    reduce: over layers, "max" (the study's) or "mean", before the head with the most is taken. brightness: whether the top cells
    of residuals are those with the largest values ("raw", the study's) or absolute values. layers: names of the rows, None for
    0, 1, .... Of equals the lower layer, then the lower head wins.
    Raises ValueError for fewer than two corners, arrays that do not fit each other, no pairs, other values than 0 and 1, a top
    below 1, and an unknown choice.
    """
    if isinstance(top, bool) or not isinstance(top, Integral) or top < 1:
        raise ValueError(f"top={top!r} is no number of heads from 1")
    for name, value, legal in (("reduce", reduce, ("max", "mean")), ("brightness", brightness, ("raw", "abs"))):
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; one of {', '.join(map(repr, legal))}")
    shapes = {corner: np.shape(own) for corner, own in by_corner.items()}
    if len(shapes) < 2 or len({shape[:2] for shape in shapes.values()}) > 1 or any(len(one) != 3 for one in shapes.values()):
        raise ValueError(f"memberships [layer, head, pair] of two corners or more, of one model, are needed, not {shapes}")
    if empty := [corner for corner, shape in shapes.items() if not shape[2]]:
        raise ValueError(f"{empty[0]}: no pairs")
    if other := [corner for corner, own in by_corner.items() if not np.isin(own, (0, 1)).all()]:
        raise ValueError(f"{other[0]}: a head is among the top of a pair, 1, or is not, 0; there are other values")
    frequencies = {corner: np.asarray(own, float).mean(-1) for corner, own in by_corner.items()}
    shared = np.mean(list(frequencies.values()), axis=0)
    residuals = {corner: own - shared for corner, own in frequencies.items()}
    layers = list(range(len(shared))) if layers is None else list(layers)
    if len(layers) != len(shared):
        raise ValueError(f"{len(layers)} names of layers for {len(shared)}")
    over = {"max": np.max, "mean": np.mean}[reduce]
    bright = {"raw": np.asarray, "abs": np.abs}[brightness]
    return Shared(
        layers,
        frequencies,
        shared,
        residuals,
        int(over(shared, axis=0).argmax()),
        {corner: int(over(own, axis=0).argmax()) for corner, own in residuals.items()},
        _greatest(shared, layers, top),
        {corner: _greatest(bright(own), layers, top) for corner, own in residuals.items()},
    )


def _greatest(values: Float[np.ndarray, "layer head"], layers: list[int], top: int) -> list[tuple[int, int]]:
    order = np.argsort(-values.ravel(), kind="stable")[:top]
    return [(layers[place // values.shape[1]], int(place % values.shape[1])) for place in order]


def _corners(found: HeadMass) -> list[str]:
    if found.pairs.empty:
        raise ValueError("no pairs were measured")
    there = set(found.pairs["corner"])
    corners = [one for one in CORNERS if one in there and one in found.asked]
    if not corners:
        raise ValueError(f"asked about {', '.join(found.asked)}, and no subject stands in any of these")
    return corners
