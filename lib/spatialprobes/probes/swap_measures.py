"""Do the deltas of swap pairs point one way? Consistency within a category and, sign-corrected, within a group, layer by layer.

Cosines of deltas (swapped - original). Alignment between groups is in ``swap_alignment``, right answers in ``swap_accuracy``;
both can be had from here. Knows states and tables; knows nothing of models and figures.

What a consistency is an estimate of: the mean cosine of the deltas of two pairs on two different pictures. The published number,
the mean over all pairs of deltas, also counts those of one picture, which are alike for other reasons; it is kept in the column
`upper_triangle`, and is the same where each picture has one pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

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
    sizes,
    standing,
    summed,
    units,
    with_q,
)
from spatialprobes.probes.swap_states import Layer, States

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
    about the delta. A direction of the wording cancels there where both categories are balanced, and is in estimate and null
    alike where they are not (the null's mean shows it). Neither excludes that the direction is the answer's word, not a place.

    Where nothing can be said the numbers are NaN and n says why. Raises ValueError for m < 10,000, n < 100, and answers that do
    not fit the pairs.
    """
    check_m(m)
    masks = variants(answers, states.pairs) if answers is not None else {"all": np.ones(len(states), bool)}
    trusted = reliable(answers, threshold=threshold, seed=seed) if answers is not None else dict.fromkeys(GROUP_OF)
    kinds = [("within", name, (name,)) for name in GROUP_OF] + [("group", name, pair) for name, pair in GROUPS.items()]
    deltas = {layer: states.delta(layer) for layer in states.layers}
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
            for layer, control, found in _by_layer(deltas, chosen, part, measure, m, n, seed):
                rows.append({"layer": layer, "control": control, **where, **found})
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


def _by_layer(deltas, chosen, part: pd.DataFrame, measure: str, m: int, n: int, seed: int) -> Iterator[tuple[Layer, str, dict]]:
    """(layer, control, numbers); what is drawn is drawn once for all layers in which the same deltas stand."""
    drawn: dict[bytes, tuple] = {}
    labels = part["category"].map(SIGN).to_numpy(np.int8)
    for layer, delta in deltas.items():
        delta = np.asarray(delta[chosen], float)
        there = standing(delta)
        codes, count = coded(part["cluster"].to_numpy()[there])
        unit = units(delta[there])
        sample = _Sample(reduced(unit) if len(unit) else unit, labels[there], codes, count)
        if there.tobytes() not in drawn and count > 1:
            shuffles = label_shuffles(sample.labels, codes, m, seed) if measure == "group" else None
            drawn[there.tobytes()] = weights(count, n, seed), shuffles
        resampled, shuffles = drawn.get(there.tobytes(), (None, None))
        size = {"n": len(unit), "clusters": count}
        published = _published(sample.unit * sample.labels[:, None])
        if count < 2:
            yield layer, "none", size | published
            yield layer, "shuffled", size
            continue
        turned = summed(sample.unit * sample.labels[:, None], codes, count)
        estimate, low, high = cross_cosine(turned, np.bincount(codes).astype(float), resampled)
        null = _coin_null(sample, m, seed) if measure == "within" else _label_null(sample, shuffles)
        p = share_at_least(null, estimate)
        yield layer, "none", size | published | {"estimate": estimate, "low": low, "high": high, "p": p}
        low, high = np.quantile(null, [0.025, 0.975])
        yield layer, "shuffled", size | {"estimate": float(null.mean()), "low": float(low), "high": float(high)}


def _coin_null(sample: _Sample, m: int, seed: int) -> Float[np.ndarray, " shuffle"]:
    """The estimate where each picture's deltas change sign together."""
    sums, rows = summed(sample.unit, sample.codes, sample.count), np.bincount(sample.codes)
    own, between = np.sum(sums**2), len(sample.unit) ** 2 - rows @ rows
    null = [np.sum((flips @ sums) ** 2, axis=1) for flips in coin_flips(m, sample.count, seed)]
    return (np.concatenate(null) - own) / between


def _label_null(sample: _Sample, shuffles: Int[np.ndarray, "shuffle n"]) -> Float[np.ndarray, " shuffle"]:
    """The estimate under other labels of the same deltas."""
    rows = np.bincount(sample.codes)
    within = _within(sample.unit, sample.codes)
    null, start = [], 0
    for size in sizes(len(shuffles), len(sample.unit)):
        labels = shuffles[start : start + size].astype(float)
        own = np.sum((labels @ within) * labels, axis=1)
        null.append(np.sum((labels @ sample.unit) ** 2, axis=1) - own)
        start += size
    return np.concatenate(null) / (len(sample.unit) ** 2 - rows @ rows)


def _within(unit: Float[np.ndarray, "n width"], codes: Int[np.ndarray, " n"]) -> csr_array:
    """Cosines of the rows of one cluster, 0 elsewhere, [n, n]."""
    order = np.argsort(codes, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    left = np.concatenate([np.repeat(rows, len(rows)) for rows in groups])
    right = np.concatenate([np.tile(rows, len(rows)) for rows in groups])
    return csr_array((np.einsum("ij,ij->i", unit[left], unit[right]), (left, right)), shape=(len(unit), len(unit)))


def _published(unit: Float[np.ndarray, "n width"]) -> dict[str, float]:
    """Mean and standard deviation over the upper triangle of the cosine matrix, in O(n width^2)."""
    n = len(unit)
    if n < 2:
        return {}
    mean = mean_pairwise_cosine(unit)
    squares = (np.sum((unit.T @ unit) ** 2) - n) / (n * (n - 1))
    return {"upper_triangle": mean, "std": float(np.sqrt(max(squares - mean**2, 0.0)))}
