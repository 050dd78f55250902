"""Do deltas of two groups point one way? Vertical against distance quad by quad, and the mean deltas of all categories.

A consistently positive vertical x distance alignment says that "above" and "far" share a direction: height is confounded with
depth. Knows states and tables; knows nothing of models and figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from spatialprobes.pairs import CATEGORIES
from spatialprobes.probes.swap_accuracy import variants
from spatialprobes.probes.swap_intervals import Estimate, mean_cosine, mean_value, reach, weights
from spatialprobes.probes.swap_resampling import (
    check_m,
    coded,
    coin_flips,
    label_shuffles,
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

COLUMNS = [
    "layer", "variant", "measure", "definition", "control", "estimate", "low", "high", "p", "q", "n", "clusters", "p_pairing"
]  # fmt: skip
MEASURES = ("per_sample_mean", "mean_delta_alignment")
DEFINITIONS = ("corrected", "as_published")
PUBLISHED_SHUFFLES = 100
NORMAL = 1.959963984540054  # the 97.5th percentile, for which `reach` stands where clusters are few


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

    Columns: layer, variant ("all"; given answers also "both_correct", all four questions right, and "all_with_validity"),
    measure, definition, control, estimate, low, high, p, q (Benjamini-Hochberg over layers), n (quads whose deltas both stand),
    clusters, p_pairing. Rows of control "shuffled": the mean of the null of `p`, and its 2.5th and 97.5th percentiles.

    measure: "per_sample_mean", of the quads' cosines, or "mean_delta_alignment", the cosine of the two mean deltas.
    definition: "corrected" turns deltas so that above and far are positive: the alignment is positive where above goes with far.
    Both categories weigh alike in a mean delta, so that what any two deltas share (the changed wording) cancels there. In
    per_sample_mean it does not where above occurs with far more often than with close: compare with a blank image there.
    "as_published" takes deltas as they are, so that an alignment is above all what any two deltas share, and 100 shuffles, so
    that no p is below 1/101.

    Intervals: cluster bootstrap of n draws (`swap_intervals.mean_value`, `mean_cosine`); NaN with fewer than 5 pictures.

    p, "corrected", of m relabellings, two-sided. per_sample_mean: the sign of each picture's distance deltas is turned at random;
    the null is that a quad's cosine is as likely as its opposite. mean_delta_alignment: the null is that the mean directions, if
    there are any, stand at right angles (`_mean_null`; it holds its size in large samples, not exactly).
    p_pairing, one-sided: the distance deltas are dealt to other quads; the null is that it does not matter to which. It says
    whether the alignment is of the scene, beyond what the mean directions share: a p_pairing of .5 beside a p of .0001 is an
    alignment that is the same in all scenes. To the means the pairing is nothing: there p_pairing is NaN and the p of
    "as_published", which is of the pairing, is 1.

    Raises ValueError for m < 10,000, n < 100, states whose rows are not the same quads or that differ in layers or width, and
    answers that do not fit.
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
                even = [_even(np.broadcast_to(sign, len(keep))[keep]) for sign in signs[definition]]
                quads = _Quads(a[keep], b[keep], codes, count, tuple(even))
                if count < 2:
                    found = [{"measure": name, "control": control} for name in MEASURES for control in ("none", "shuffled")]
                elif definition == "corrected":
                    found = _corrected(quads, m, n, seed)
                else:
                    found = _as_published(quads, PUBLISHED_SHUFFLES, n, seed)
                rows += [where | row for row in found]
    return with_q(pd.DataFrame(rows, columns=COLUMNS), ["variant", "measure", "definition"])[COLUMNS]


class _Quads(NamedTuple):
    """Vertical and distance deltas that stand, a row a quad, and the picture of each."""

    vertical: Float[np.ndarray, "quad width"]
    distance: Float[np.ndarray, "quad width"]
    codes: Int[np.ndarray, " quad"]
    count: int
    weight: tuple[Float[np.ndarray, " quad"], Float[np.ndarray, " quad"]]  # of each row in the two means

    def estimates(self, n: int, seed: int) -> tuple[Estimate, Estimate]:
        """Mean cosine of the quads, and cosine of the mean deltas."""
        rows, resampled = np.bincount(self.codes).astype(float), weights(self.count, n, seed)
        return mean_value(self.by_picture(self.cosines()), rows, resampled), mean_cosine(*self.sums(), rows, resampled)

    def cosines(self) -> Float[np.ndarray, " quad"]:
        return np.sum(units(self.vertical) * units(self.distance), axis=1)

    def sums(self) -> tuple[Float[np.ndarray, "cluster width"], Float[np.ndarray, "cluster width"]]:
        one, other = (weight[:, None] for weight in self.weight)
        return self.by_picture(self.vertical * one), self.by_picture(self.distance * other)

    def by_picture(self, values):
        return summed(values, self.codes, self.count)


def _even(signs: Int[np.ndarray, " quad"]) -> Float[np.ndarray, " quad"]:
    """Weights of mean 1 with which each sign that there is weighs alike."""
    _, place, counts = np.unique(signs, return_inverse=True, return_counts=True)
    return len(signs) / (len(counts) * counts[place])


def _corrected(quads: _Quads, m: int, n: int, seed: int) -> list[dict]:
    """Rows of both measures of sign-corrected deltas, and of their nulls."""
    first, second = quads.estimates(n, seed)
    by_picture = quads.by_picture(quads.cosines())
    flipped = np.concatenate([sums for _, sums in times(coin_flips(m, quads.count, seed), by_picture)]) / len(quads.codes)
    turned = _mean_null(quads, m, seed)
    pairing = share_at_least(_pairings(quads, m, seed), first.estimate)
    return [
        {"measure": MEASURES[0], "control": "none", **first._asdict(), "p": _two_sided(flipped, first), "p_pairing": pairing},
        {"measure": MEASURES[0], "control": "shuffled", **_null_row(flipped)},
        {"measure": MEASURES[1], "control": "none", **second._asdict(), "p": _two_sided(turned, second)},
        {"measure": MEASURES[1], "control": "shuffled", **_null_row(turned)},
    ]


def _as_published(quads: _Quads, m: int, n: int, seed: int) -> list[dict]:
    """The same of deltas as they are, with the study's shuffles of the pairing, which leave the cosine of the means as it is."""
    first, second = quads.estimates(n, seed)
    paired, still = _pairings(quads, m, seed), np.full(m, second.estimate)
    return [
        {"measure": MEASURES[0], "control": "none", **first._asdict(), "p": share_at_least(paired, first.estimate)},
        {"measure": MEASURES[0], "control": "shuffled", **_null_row(paired)},
        {"measure": MEASURES[1], "control": "none", **second._asdict(), "p": share_at_least(still, second.estimate)},
        {"measure": MEASURES[1], "control": "shuffled", **_null_row(still)},
    ]


def _pairings(quads: _Quads, m: int, seed: int) -> Float[np.ndarray, " shuffle"]:
    """Mean cosine with the distance deltas dealt to other quads, those of a picture to one that has as many."""
    index = np.arange(len(quads.codes))
    cosines = units(quads.vertical) @ units(quads.distance).T
    return cosines[index, label_shuffles(index.astype(np.int32), quads.codes, m, seed)].mean(axis=1)


def _mean_null(quads: _Quads, m: int, seed: int) -> Float[np.ndarray, " shuffle"]:
    """What the cosine of the means would be about 0: what each picture does to it, with random signs (a wild bootstrap).

    Signs of the distance deltas alone would be the null that they have no mean direction; mean directions at right angles are a
    null too, for which that is the wrong spread, as it leaves out the noise of the vertical mean. What each picture adds
    to the product of the two sums, less its share of it, holds for both.
    """
    (vertical, distance), rows = quads.sums(), np.bincount(quads.codes)
    one, other = vertical.sum(axis=0), distance.sum(axis=0)
    adds = distance @ one + vertical @ other - 2 * (one @ other) * rows / rows.sum()
    scale = reach(quads.count) / NORMAL / np.sqrt((one @ one) * (other @ other))
    return np.concatenate([sums for _, sums in times(coin_flips(m, quads.count, seed), adds)]) * scale


def _two_sided(null: Float[np.ndarray, " shuffle"], found: Estimate) -> float:
    return share_at_least(np.abs(null), abs(found.estimate))


def _null_row(null: Float[np.ndarray, " shuffle"]) -> dict[str, float]:
    low, high = np.quantile(null, [0.025, 0.975])
    return {"estimate": float(null.mean()), "low": float(low), "high": float(high)}


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

    Columns: layer, variant ("all"; given answers also "both_correct" and "all_with_validity"), row, column, cosine, n_row,
    n_column (deltas that are finite). Deltas as they are, not sign-corrected: left and right are opposite where the direction is
    one of place, alike where it is one of wording. NaN for a category without deltas or whose mean is 0.
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
