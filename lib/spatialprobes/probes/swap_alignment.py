"""Do deltas of two groups point one way? Vertical against distance quad by quad, and the mean deltas of all categories.

A consistently positive vertical x distance alignment says that "above" and "far" share a direction: height is confounded with
depth. Knows states and tables; knows nothing of models and figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.pairs import CATEGORIES
from spatialprobes.probes.swap_accuracy import variants
from spatialprobes.probes.swap_resampling import (
    LEAST_CLUSTERS,
    check_m,
    coded,
    coin_flips,
    label_shuffles,
    levels,
    share_at_least,
    standing,
    summed,
    units,
    weights,
    with_q,
)
from spatialprobes.probes.swap_states import States

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

COLUMNS = [
    "layer", "variant", "measure", "definition", "control", "estimate", "low", "high", "p", "q", "n", "clusters", "p_pairing"
]  # fmt: skip
MEASURES = ("per_sample_mean", "mean_delta_alignment")
DEFINITIONS = ("corrected", "as_published")
PUBLISHED_SHUFFLES = 100


def alignment(
    vertical: States,
    distance: States,
    answers: pd.DataFrame | None = None,
    *,
    m: int = 10_000,
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Cosine of vertical and distance deltas by layer, variant, measure and definition; row i of both states is one quad.

    Columns: layer, variant, measure, definition, control, estimate, low, high, p, q, n, clusters, p_pairing.
    """
    check_m(m)
    _check(vertical, distance)
    masks = {"all": np.ones(len(vertical), bool)}
    if answers is not None:
        one, other = variants(answers, vertical.pairs), variants(answers, distance.pairs)
        masks = {name: one[name] & other[name] for name in one}
    signs = {"corrected": (vertical.signs, distance.signs), "as_published": (1, 1)}
    rows = []
    for layer in vertical.layers:
        v, d = (np.asarray(each.delta(layer), float) for each in (vertical, distance))
        if v.shape[1] != d.shape[1]:
            raise ValueError(
                f"layer {layer}: vertical states are {v.shape[1]} wide, distance states {d.shape[1]}: of two models?"
            )
        stand = standing(v) & standing(d)
        for variant, mask in masks.items():
            keep = stand & mask
            codes, count = coded(vertical.pairs["cluster"].to_numpy()[keep])
            for definition in DEFINITIONS:
                a, b = (np.reshape(sign, (-1, 1)) * x for sign, x in zip(signs[definition], (v, d), strict=True))
                where = {"layer": layer, "variant": variant, "definition": definition, "n": int(keep.sum()), "clusters": count}
                if count < 2:
                    found = [{"measure": name, "control": control} for name in MEASURES for control in ("none", "shuffled")]
                elif definition == "corrected":
                    found = _corrected(a[keep], b[keep], codes, count, m, n, seed)
                else:
                    found = _as_published(a[keep], b[keep], codes, count, n, seed)
                rows += [where | row for row in found]
    return with_q(pd.DataFrame(rows, columns=COLUMNS), ["variant", "measure", "definition"])[COLUMNS]


def _corrected(a, b, codes, count, m: int, n: int, seed: int) -> list[dict]:
    """Rows of both measures and their nulls, of sign-corrected deltas that stand."""
    rows, resampled = np.bincount(codes).astype(float), weights(count, n, seed)
    cosines = np.sum(units(a) * units(b), axis=1)
    per_cluster = summed(cosines, codes, count)
    flipped = np.concatenate([flips @ per_cluster for flips in coin_flips(m, count, seed)]) / len(a)
    draws = (resampled @ per_cluster) / (resampled @ rows)
    first = {
        "p": _two_sided(flipped, cosines.mean()),
        "p_pairing": share_at_least(_pairings(a, b, codes, m, seed), cosines.mean()),
    }
    sums = summed(a, codes, count), summed(b, codes, count)
    cosine, low, high = mean_cosine(*sums, rows, resampled)
    null = _mean_null(*sums, rows, m, seed)
    second = {"p": _two_sided(null, cosine)}
    return [
        {"measure": MEASURES[0], "control": "none", "estimate": float(cosines.mean())}
        | _cut(draws, count, cosines.mean())
        | first,
        {"measure": MEASURES[0], "control": "shuffled"} | _null_row(flipped),
        {"measure": MEASURES[1], "control": "none", "estimate": cosine, "low": low, "high": high} | second,
        {"measure": MEASURES[1], "control": "shuffled"} | _null_row(null),
    ]


def _as_published(a, b, codes, count, n: int, seed: int) -> list[dict]:
    """The same of deltas as they are, with 100 shuffles of the pairing; they leave the cosine of the means as it is: its p is 1."""
    rows, resampled = np.bincount(codes).astype(float), weights(count, n, seed)
    cosines = np.sum(units(a) * units(b), axis=1)
    draws = (resampled @ summed(cosines, codes, count)) / (resampled @ rows)
    paired = _pairings(a, b, codes, PUBLISHED_SHUFFLES, seed)
    p = share_at_least(paired, cosines.mean())
    cosine, low, high = mean_cosine(summed(a, codes, count), summed(b, codes, count), rows, resampled)
    return [
        {"measure": MEASURES[0], "control": "none", "estimate": float(cosines.mean()), "p": p, "p_pairing": p}
        | _cut(draws, count, cosines.mean()),
        {"measure": MEASURES[0], "control": "shuffled"} | _null_row(paired),
        {"measure": MEASURES[1], "control": "none", "estimate": cosine, "low": low, "high": high, "p": 1.0, "p_pairing": 1.0},
        {"measure": MEASURES[1], "control": "shuffled", "estimate": cosine, "low": cosine, "high": cosine},
    ]


def mean_cosine(a, b, rows, resampled) -> tuple[float, float, float]:
    """Cosine of the means of two cluster sums, with its bootstrap interval."""
    estimate = float(_cosine(a.sum(axis=0), b.sum(axis=0)))
    cut = _cut(_cosine(resampled @ a, resampled @ b), len(rows), estimate)
    return estimate, cut["low"], cut["high"]


def _cosine(a, b):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.sum(a * b, axis=-1) / np.sqrt(np.sum(a**2, axis=-1) * np.sum(b**2, axis=-1))


def _mean_null(a, b, rows, m: int, seed: int):
    total_a, total_b, n = a.sum(axis=0), b.sum(axis=0), rows.sum()
    dot = total_a @ total_b
    influence = (b @ total_a + a @ total_b) - 2 * dot * rows / n
    scale = np.sqrt((total_a @ total_a) * (total_b @ total_b))
    return np.concatenate([flips @ influence for flips in coin_flips(m, len(rows), seed)]) / scale


def _pairings(a, b, codes, m: int, seed: int):
    """Mean cosine with the distance deltas dealt to other quads, whole pictures among those with as many quads."""
    cosines = units(a) @ units(b).T
    index = np.arange(len(a))
    return cosines[index, label_shuffles(index.astype(np.int32), codes, m, seed)].mean(axis=1)


def _two_sided(null, observed: float) -> float:
    return share_at_least(np.abs(null), abs(observed))


def _null_row(null) -> dict[str, float]:
    low, high = np.quantile(null, [0.025, 0.975])
    return {"estimate": float(null.mean()), "low": float(low), "high": float(high)}


def _cut(draws, count: int, estimate: float) -> dict[str, float]:
    if count < LEAST_CLUSTERS:
        return {"low": np.nan, "high": np.nan}
    low, high = np.quantile(draws, levels(count))
    return {"low": min(float(low), estimate), "high": max(float(high), estimate)}


def _check(vertical: States, distance: States) -> None:
    if len(vertical) != len(distance):
        raise ValueError(f"{len(vertical)} vertical and {len(distance)} distance pairs: row i of both must be one quad")
    if vertical.layers != distance.layers:
        raise ValueError(f"layers differ: vertical {list(vertical.layers)}, distance {list(distance.layers)}")
    for name, states in (("vertical", vertical), ("distance", distance)):
        if wrong := sorted(set(states.pairs["group"]) - {name}):
            raise ValueError(f"the {name} states hold pairs of the group {wrong[0]!r}")
    if len(differ := np.flatnonzero(vertical.pairs["cluster"].to_numpy() != distance.pairs["cluster"].to_numpy())):
        raise ValueError(f"row {differ[0]} is of two pictures: row i of both must be one quad")


def similarity(states: States, answers: pd.DataFrame | None = None) -> pd.DataFrame:
    """Cosine of the mean deltas of every two categories, by layer and variant, in both orders and with themselves.

    Columns: layer, variant ("all"; given answers also "both_correct" and "all_with_validity"), row, column, cosine, n_row, n_column
    (deltas that are finite). Deltas as they are, not sign-corrected: left and right are opposite where the direction is one of
    place, alike where it is one of wording. NaN for a category without deltas or whose mean is 0.
    """
    masks = variants(answers, states.pairs) if answers is not None else {"all": np.ones(len(states), bool)}
    category = states.pairs["category"].to_numpy()
    rows = []
    for layer in states.layers:
        delta = np.asarray(states.delta(layer), float)
        finite = np.isfinite(delta).all(axis=1)
        for variant, mask in masks.items():
            chosen = {name: delta[mask & finite & (category == name)] for name in CATEGORIES}
            means = np.stack([each.mean(axis=0) if len(each) else np.full(delta.shape[1], np.nan) for each in chosen.values()])
            cosines = _cosines(means)
            for i, row in enumerate(CATEGORIES):
                for j, column in enumerate(CATEGORIES):
                    rows.append((layer, variant, row, column, cosines[i, j], len(chosen[row]), len(chosen[column])))
    return pd.DataFrame(rows, columns=["layer", "variant", "row", "column", "cosine", "n_row", "n_column"])


def _cosines(means: Float[np.ndarray, "category width"]) -> Float[np.ndarray, "category category"]:
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        unit = means / np.where(norms > 0, norms, np.nan)
    return unit @ unit.T
