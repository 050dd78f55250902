"""Do the deltas of swap pairs point one way? Consistency within a category and, sign-corrected, within a group, layer by layer.

Cosines of deltas (swapped - original). Alignment between groups is in ``swap_alignment``, right answers in ``swap_accuracy``;
both can be had from here. Knows states and tables; knows nothing of models and figures.

What a consistency is an estimate of: the mean cosine of the deltas of two pairs on two different pictures; of a group, with the
category of each of the two drawn by a fair coin. The published number is the mean over all pairs of deltas. It also counts those
of one picture, which are alike for other reasons; and in a group what any two deltas share adds to it where one category is
rarer, and takes a little away where both are as frequent, since no delta is paired with itself. It is kept in the column
`upper_triangle`; within a category the two are the same where each picture has one pair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from spatialprobes.pairs import GROUP_OF, GROUPS, SIGN
from spatialprobes.probes.swap_accuracy import accuracy, reliable, variants
from spatialprobes.probes.swap_alignment import alignment, similarity
from spatialprobes.probes.swap_intervals import cross_cosine, weights
from spatialprobes.probes.swap_resampling import (
    check_m,
    coded,
    coin_flips,
    label_shuffles,
    reduced,
    share_at_least,
    standing,
    summed,
    times,
    units,
    with_q,
)
from spatialprobes.probes.swap_states import States

if TYPE_CHECKING:
    from jaxtyping import Float, Int

__all__ = ["accuracy", "alignment", "consistency", "mean_pairwise_cosine", "similarity", "variants"]

COLUMNS = [
    "layer", "variant", "measure", "of", "control", "estimate", "low", "high", "p", "q", "n", "clusters", "reliable",
    "upper_triangle", "std",
]  # fmt: skip


def mean_pairwise_cosine(x: Float[np.ndarray, "n width"]) -> float:
    """Mean cosine of all n (n - 1) / 2 pairs of rows, exactly, in O(n width): (|sum of units|^2 - n) / (n (n - 1)).

    Rows of norm 0, or that are not finite, have no direction and are left out (`swap_resampling.standing` says which); NaN where
    fewer than two stand. Raises ValueError unless x is [n, width].
    """
    x = np.asarray(x, float)
    if x.ndim != 2:
        raise ValueError(f"x has shape {x.shape}; rows [n, width] are wanted")
    unit = units(x[standing(x)])
    n = len(unit)
    return float((np.sum(unit.sum(axis=0) ** 2) - n) / (n * (n - 1))) if n > 1 else np.nan


def consistency(
    states: States,
    answers: pd.DataFrame | None = None,
    *,
    threshold: float | None = None,
    m: int = 10_000,
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean cosine of deltas of different pictures, by layer, variant, and category ("within") or group ("group").

    Columns: layer, variant ("all"; given answers also "both_correct" and "all_with_validity"), measure, of (category or group),
    control, estimate, low, high, p, q (Benjamini-Hochberg over layers), n (deltas that stand: finite and not 0), clusters
    (pictures), reliable (see `swap_accuracy.reliable`; of a group both its categories; missing without answers), upper_triangle
    and std (the published mean and standard deviation over all pairs of deltas; such pairs are not independent: no error of it).
    Rows of control "shuffled" hold the mean of the null in `estimate` and its 2.5th and 97.5th percentiles in `low` and `high`.

    Intervals: studentised cluster bootstrap of n draws (`swap_intervals.cross_cosine`); NaN with fewer than 5 pictures.

    p: one-sided, of m relabellings, (b + 1) / (m + 1). "within": each picture's deltas change sign at random; the null is that a
    delta is as likely as its opposite. It does not exclude a direction that any two deltas share because the wording changed,
    whatever the relation: that survives here, in a category's number as in its opposite's. "group": the labels left and right
    (above, under; far, close) are dealt anew to pairs, counts kept, pictures whole; the null is that the category says nothing
    about the delta. A direction of the wording cancels there, as both categories weigh alike. Neither excludes that the direction
    is the answer's word, not a place.

    Where nothing can be said the numbers are NaN and n says why. Raises ValueError for m < 10,000, n < 100, and answers that do
    not fit the pairs.
    """
    check_m(m)
    masks = variants(answers, states.pairs) if answers is not None else {"all": np.ones(len(states), bool)}
    trusted = reliable(answers, threshold=threshold, seed=seed) if answers is not None else dict.fromkeys(GROUP_OF)
    kinds = [("within", name, (name,)) for name in GROUP_OF] + [("group", name, pair) for name, pair in GROUPS.items()]
    deltas = {layer: states.delta(layer) for layer in states.layers}  # as they come: all layers are held at once
    tables = {}
    for variant, mask in masks.items():
        if variant == "all_with_validity":
            tables[variant] = tables["all"].assign(variant=variant)
            continue
        rows = []
        for measure, name, categories in kinds:
            chosen = np.flatnonzero(mask & states.pairs["category"].isin(categories).to_numpy())
            flags = [trusted[category] for category in categories]
            where = {"variant": variant, "measure": measure, "of": name, "reliable": None if None in flags else all(flags)}
            part = states.pairs.iloc[chosen]
            for layer, delta in deltas.items():
                rows += [{"layer": layer, **where, **row} for row in _rows(delta[chosen], part, measure, m, n, seed)]
        tables[variant] = pd.DataFrame(rows, columns=COLUMNS)
    table = with_q(pd.concat(tables.values(), ignore_index=True), ["variant", "measure", "of"])
    order = {layer: place for place, layer in enumerate(states.layers)}
    place = table["layer"].map(order)
    return table.iloc[np.argsort(place, kind="stable")].reset_index(drop=True).astype({"reliable": "boolean"})[COLUMNS]


class _Sample(NamedTuple):
    """Unit deltas that stand, of one category or group, in no more dimensions than needed."""

    unit: Float[np.ndarray, "n width"]
    labels: Int[np.ndarray, " n"]  # +1 for left, above, far
    codes: Int[np.ndarray, " n"]
    count: int

    @property
    def rows(self) -> Float[np.ndarray, " cluster"]:
        return np.bincount(self.codes, minlength=self.count).astype(float)

    @property
    def between(self) -> float:
        """Ordered pairs of deltas of different pictures."""
        return float(len(self.codes) ** 2 - self.rows @ self.rows)


def _rows(delta: Float[np.ndarray, "n width"], part: pd.DataFrame, measure: str, m: int, n: int, seed: int) -> list[dict]:
    """The estimate and its null, of the deltas of one layer and their pairs."""
    there = standing(delta)
    codes, count = coded(part["cluster"].to_numpy()[there])
    labels = part["category"].map(SIGN).to_numpy(np.int8)[there]
    sample = _Sample(reduced(units(delta[there])), labels, codes, count)
    size = {"n": len(labels), "clusters": count}
    turned = sample.unit * labels[:, None]
    parts = [labels == label for label in ((1, -1) if measure == "group" else np.unique(labels))]
    none, shuffled = {"control": "none", **size, **_published(turned)}, {"control": "shuffled", **size}
    if count < 2:
        return [none, shuffled]
    sums = np.stack([summed(turned * part[:, None], codes, count) for part in parts])
    rows = np.stack([summed(part.astype(float), codes, count) for part in parts])
    found = cross_cosine(sums, rows, weights(count, n, seed))
    if not np.isfinite(found.estimate):
        return [none, shuffled]
    null = (_coin_null if measure == "within" else _label_null)(sample, m, seed)
    low, high = np.quantile(null, [0.025, 0.975])
    return [
        none | found._asdict() | {"p": share_at_least(null, found.estimate)},
        shuffled | {"estimate": float(null.mean()), "low": float(low), "high": float(high)},
    ]


def _coin_null(sample: _Sample, m: int, seed: int) -> Float[np.ndarray, " shuffle"]:
    """The estimate where each picture's deltas change sign together."""
    sums = summed(sample.unit, sample.codes, sample.count)
    flipped = times(coin_flips(m, sample.count, seed), reduced(sums))
    return (np.concatenate([np.sum(total**2, axis=1) for _, total in flipped]) - np.sum(sums**2)) / sample.between


def _label_null(sample: _Sample, m: int, seed: int) -> Float[np.ndarray, " shuffle"]:
    """The estimate under other labels of the same deltas."""
    one, other = _neighbours(sample.codes)
    cosines = np.einsum("ij,ij->i", sample.unit[one], sample.unit[other])
    beside = np.bincount(one, cosines, len(sample.codes)) + np.bincount(other, cosines, len(sample.codes))
    whole, (n_plus, n_minus) = sample.unit.sum(axis=0), (np.count_nonzero(sample.labels == label) for label in (1, -1))
    pairs = [
        summed((sample.labels == a) * 1.0, sample.codes, sample.count)
        @ summed((sample.labels == b) * 1.0, sample.codes, sample.count)
        for a, b in ((1, 1), (-1, -1), (1, -1))
    ]
    null = []
    for labels, total in times(label_shuffles(sample.labels, sample.codes, m, seed), sample.unit):
        alike = (labels[:, one] * labels[:, other]) @ cosines + cosines.sum()  # twice the cosines of neighbours of one label
        lean, along = labels @ beside, 2 * total @ whole
        even = whole @ whole + np.sum(total**2, axis=1)
        # products of the sums under + and under -, less those of each picture with itself
        plus = (even + along) / 4 - (n_plus + (alike + lean) / 2)
        minus = (even - along) / 4 - (n_minus + (alike - lean) / 2)
        between = (2 * (whole @ whole) - even) / 4 - (cosines.sum() - alike / 2)
        found = plus / (n_plus**2 - pairs[0]) + minus / (n_minus**2 - pairs[1]) - 2 * between / (n_plus * n_minus - pairs[2])
        null.append(found / 4)
    return np.concatenate(null)


def _neighbours(codes: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " two"], Int[np.ndarray, " two"]]:
    """Every two rows of one picture."""
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes))[codes[order]]  # where the picture of each row ends, in that order
    places = np.arange(len(codes))
    later = ends - places - 1
    one = np.repeat(places, later)
    other = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(later) - later, later)
    return order[one], order[other]


def _published(unit: Float[np.ndarray, "n width"]) -> dict[str, float]:
    """Mean and standard deviation over the upper triangle of the cosine matrix, in O(n width^2)."""
    n = len(unit)
    if n < 2:
        return {}
    mean = mean_pairwise_cosine(unit)
    squares = (np.sum((unit.T @ unit) ** 2) - n) / (n * (n - 1))
    return {"upper_triangle": mean, "std": float(np.sqrt(max(squares - mean**2, 0.0)))}
