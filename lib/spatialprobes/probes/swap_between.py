"""Does *above* point where *far* does, beyond what two questions about one picture share? Alignment between pictures.

The two deltas of a quad are about the same words: part of what they share is that subject and reference have changed places, in
whatever direction that moves the state for these words. Where above goes with far in the pictures, turning both deltas to above
and far turns that part alike, and a model that knows of no relation aligns them perfectly (`alignment` of quads is then the
world's own correlation). Between different pictures nothing is shared but directions. Knows states and tables; nothing of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from spatialprobes.pairs import SIGN
from spatialprobes.probes.swap_intervals import LEAST_CLUSTERS
from spatialprobes.probes.swap_resampling import coded, standing, units, with_q
from spatialprobes.probes.swap_states import States
from spatialprobes.stats import Interval, bootstrap

if TYPE_CHECKING:
    from jaxtyping import Float, Int

COLUMNS = ("layer", "variant", "measure", "definition", "control", "estimate", "low", "high", "p", "q", "n", "clusters")
MEASURE = "between_pictures"


def between(vertical: States, distance: States, answers: pd.DataFrame | None = None) -> pd.DataFrame:
    """Mean cosine of the vertical delta of one picture and the distance delta of another, both turned to above and far, by layer.

    Columns: as `swap_alignment.alignment`; measure "between_pictures". definition "corrected" turns deltas by the right answers,
    "answered" (given answers) by what the model answered: a delta whose two questions were both answered wrongly is turned the
    other way, one with two equal answers is left out. So where a model says far of what is higher, whatever the picture shows,
    "answered" sees the direction that it says far by, "corrected" does not. Above and under weigh alike, so do far and close.

    Intervals and p (two-sided): jackknife over pictures with Student's t (Arvesen 1969); NaN with fewer than 5. Where neither
    kind has a direction the jackknife finds more spread than there is, so that p is too large, not too small. n: quads with a
    delta of either kind. Raises ValueError for states of other layers, and for pairs without answers.
    """
    if vertical.layers != distance.layers:
        raise ValueError(f"layers differ: vertical {list(vertical.layers)}, distance {list(distance.layers)}")
    signs = {"corrected": (vertical.signs, distance.signs)}
    if answers is not None:
        signs["answered"] = (answered_signs(vertical, answers), answered_signs(distance, answers))
    codes, count = coded(np.concatenate([states.pairs["cluster"].to_numpy() for states in (vertical, distance)]))
    rows = []
    for layer in vertical.layers:
        for definition, (one, other) in signs.items():
            kinds = (vertical, one, codes[: len(vertical)]), (distance, other, codes[len(vertical) :])
            parts = [_part(states, layer, sign, own, count) for states, sign, own in kinds]
            where = {"layer": layer, "variant": "all", "measure": MEASURE, "definition": definition, "control": "none"}
            where |= {"n": max(int(part.counts.sum()) for part in parts), "clusters": _pictures(*parts)}
            rows.append(where | _estimated(*parts, where["clusters"]))
    return with_q(pd.DataFrame(rows), ["definition"])[list(COLUMNS)]


def answered_signs(states: States, answers: pd.DataFrame) -> Int[np.ndarray, " pair"]:
    """Sign of each pair by the model's likelier answers: the right one's where both are right, its opposite where both are wrong,
    0 where the two questions were answered alike. Raises ValueError for a pair without answers."""
    right = answers.pivot(index="pair", columns="member", values="correct_logprob").reindex(states.pairs["pair"])
    if right.isna().any(axis=None):
        raise ValueError(f"{int(right.isna().any(axis=1).sum())} pairs have states and no answers")
    one, other = (right[member].to_numpy(bool) for member in ("original", "swapped"))
    return np.where(one == other, np.where(one, 1, -1), 0) * states.signs


def answered_by_height(vertical: States, distance: States, answers: pd.DataFrame, *, n: int = 2000, seed: int = 0) -> Interval:
    """Share of distance questions answered as height would have it (far of what is above), where that is wrong.

    Of quads in which above does not go with far, both members; by the likelier answer, with a cluster bootstrap. 0 for a model
    that reads depth, 1 for one that reads height. Row i of both states is one quad. Raises ValueError where there is none
    such.
    """
    apart = vertical.pairs["category"].map(SIGN).to_numpy() != distance.pairs["category"].map(SIGN).to_numpy()
    chosen = answers[answers["pair"].isin(distance.pairs["pair"][apart])]
    if not len(chosen):
        raise ValueError("above goes with far in every quad: an answer by height is right there, and says nothing")
    wrong = 1.0 - chosen["correct_logprob"].to_numpy(float)
    return bootstrap(wrong, chosen["cluster"].to_numpy(), n=n, seed=seed, bounds=(0, 1))


class _Part(NamedTuple):
    """Unit deltas of one kind, turned, summed by picture and sign; how many there are of each."""

    sums: Float[np.ndarray, "cluster sign width"]
    counts: Int[np.ndarray, "cluster sign"]


def _part(states: States, layer, signs: Int[np.ndarray, " pair"], codes: Int[np.ndarray, " pair"], count: int) -> _Part:
    deltas = np.asarray(states.delta(layer), float)
    keep = standing(deltas) & (signs != 0)
    turned = units(deltas[keep]) * signs[keep, None]
    side = (signs[keep] < 0).astype(int)
    sums, counts = np.zeros((count, 2, deltas.shape[1])), np.zeros((count, 2))
    np.add.at(sums, (codes[keep], side), turned)
    np.add.at(counts, (codes[keep], side), 1)
    return _Part(sums, counts)


def _pictures(one: _Part, other: _Part) -> int:
    return int(((one.counts.sum(1) + other.counts.sum(1)) > 0).sum())


def _estimated(one: _Part, other: _Part, pictures: int) -> dict[str, float]:
    if pictures < LEAST_CLUSTERS or not one.counts.any() or not other.counts.any():
        return dict.fromkeys(("estimate", "low", "high", "p"), np.nan)
    from scipy.special import stdtr, stdtrit  # a quarter of a second, only where they are used

    estimate, without = _statistic(one, other)
    error = float(np.sqrt((pictures - 1) / pictures * np.nansum((without - np.nanmean(without)) ** 2)))
    half = float(stdtrit(pictures - 1, 0.975)) * error
    p = 2 * float(stdtr(pictures - 1, -abs(estimate) / error)) if error else float(estimate == 0)
    return {"estimate": estimate, "low": estimate - half, "high": estimate + half, "p": p}


def _weights(counts: Float[np.ndarray, "*any sign"]) -> Float[np.ndarray, "*any sign"]:
    """Of each delta, so that both signs weigh alike and all weights make 1; of a sign that is not there, 0."""
    there = counts > 0
    return np.where(there, 1 / (np.maximum(counts, 1) * there.sum(-1, keepdims=True)), 0.0)


def _statistic(one: _Part, other: _Part) -> tuple[float, Float[np.ndarray, " cluster"]]:
    """The mean cosine between pictures, and without each picture in turn (NaN for one that has no delta)."""
    shared = np.einsum("csd,ctd->cst", one.sums, other.sums)
    met = one.counts[:, :, None] * other.counts[:, None, :]
    totals = [part.sums.sum(0) for part in (one, other)], [part.counts.sum(0) for part in (one, other)]
    whole = _mean(
        *(total[None] for total in totals[0]), *(total[None] for total in totals[1]), shared.sum(0)[None], met.sum(0)[None]
    )
    left = _mean(
        totals[0][0] - one.sums, totals[0][1] - other.sums, totals[1][0] - one.counts, totals[1][1] - other.counts,
        shared.sum(0) - shared, met.sum(0) - met,
    )  # fmt: skip
    return float(whole[0]), np.where(one.counts.sum(1) + other.counts.sum(1) > 0, left, np.nan)


def _mean(one, other, one_counts, other_counts, shared, met) -> Float[np.ndarray, " sample"]:
    """Of samples given by their sums: all products of their deltas but those within a picture, weighted."""
    a, b = _weights(one_counts), _weights(other_counts)
    product = np.einsum("ns,nsd,nt,ntd->n", a, one, b, other, optimize=True)
    within = np.einsum("ns,nst,nt->n", a, shared, b)
    return (product - within) / (1 - np.einsum("ns,nst,nt->n", a, met, b))
