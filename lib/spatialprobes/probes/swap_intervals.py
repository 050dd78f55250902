"""Cosines of deltas with intervals that cover them: resampling pictures, with the mean direction at the length that it has.

The mean of few deltas is longer than that of many: |mean|^2 holds the noise of each delta, divided by their number. A bootstrap
takes the sample for the world, in which the mean is that long without noise, and adds the noise once more. So the mean is
shortened to the length that different pictures agree on before it is resampled; what is drawn then has the noise once. Without
this, intervals are too wide where there is little direction, and those of an alignment centre too near 0.
tests/test_swap_known.py measures the coverage.

Sums by cluster come in (``swap_resampling.summed``), an estimate and its 95% interval come out, NaN with fewer than 5 clusters.
Knows arrays alone.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spatialprobes.probes.swap_resampling import sizes
from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from jaxtyping import Float

LEAST_CLUSTERS = 5  # below, resampling says nothing of use
LEVEL = 0.95
NEARLY_ONE = 1 - 1e-9  # Fisher's z of 1 is infinite


class Estimate(NamedTuple):
    estimate: float
    low: float
    high: float


@functools.lru_cache(maxsize=4)  # layers share them
def weights(count: int, n: int, seed: int) -> Float[np.ndarray, "draw cluster"]:
    """How often each of n bootstrap draws takes each cluster. Raises ValueError for n < 100."""
    if n < 100:
        raise ValueError(f"n={n} resamples are too few for an interval; use at least 100 (2,000 is usual)")
    return np.random.default_rng(check_seed(seed)).multinomial(count, np.full(count, 1 / count), size=n).astype(float)


def reach(clusters: int) -> float:
    """How many standard errors, as resampling knows them, a 95% interval reaches: t, and sqrt(C / (C - 1)) for their own bias.

    Resampling C clusters has a variance (C - 1) / C of what it should be, and knows it no better than a t with C - 1 degrees of
    freedom says (Hesterberg 2015, The American Statistician 69, 371-386).
    """
    from scipy.special import stdtrit  # a quarter of a second, only where it is used

    return float(np.sqrt(clusters / (clusters - 1)) * stdtrit(clusters - 1, (1 + LEVEL) / 2))


def levels(clusters: int) -> tuple[float, float]:
    """Shares at which to cut bootstrap draws of so many clusters: wider than (.025, .975), as `reach` is than z."""
    from scipy.special import ndtr

    return float(ndtr(-reach(clusters))), float(ndtr(reach(clusters)))


def mean_value(
    sums: Float[np.ndarray, " cluster"], rows: Float[np.ndarray, " cluster"], resampled: Float[np.ndarray, "draw cluster"]
) -> Estimate:
    """Mean of rows summed by cluster, with the expanded percentile interval of its bootstrap."""
    estimate = float(sums.sum() / rows.sum())
    if len(rows) < LEAST_CLUSTERS:
        return Estimate(estimate, np.nan, np.nan)
    return _around(estimate, *np.quantile((resampled @ sums) / (resampled @ rows), levels(len(rows))))


def cross_cosine(
    sums: Float[np.ndarray, "part cluster width"],
    rows: Float[np.ndarray, "part cluster"],
    resampled: Float[np.ndarray, "draw cluster"],
) -> Estimate:
    """Mean cosine of unit rows of different clusters, the part of each of the two drawn by a fair coin.

    sums, rows: of the unit rows of each part (category), and their number. One part with one row a cluster: the mean of the upper
    triangle of the cosine matrix. Parts weigh alike, and pairs within and between them are averaged apart, so that what adds to
    one and takes from the other cancels exactly. NaN where two parts have no rows on two different clusters; no interval where a
    part is on so few clusters that leaving one out, or one draw in ten, leaves it without.

    Studentised bootstrap (Davison & Hinkley 1997, 5.2), each draw by its own jackknife. Two draws of one cluster are two clusters
    alike, not one with itself: of a draw only its pairs with itself are left out.
    """
    clusters = rows.shape[1]
    (estimate,), (error,) = _cross_draws(sums, rows, np.ones((1, clusters)))
    estimate = float(estimate)
    if clusters < LEAST_CLUSTERS or not np.isfinite(error):
        return Estimate(estimate, np.nan, np.nan)
    mean = np.mean(sums.sum(axis=1) / rows.sum(axis=1)[:, None], axis=0)
    kept = _kept(max(estimate, 0.0), float(mean @ mean))
    drawn, errors = _cross_draws(sums - (1 - kept) * rows[:, :, None] * mean, rows, resampled)
    there = errors > 0  # false for draws that lack a part
    if not error > 0 or there.mean() < 0.9:
        return Estimate(estimate, np.nan, np.nan)
    far = np.quantile((drawn[there] - max(estimate, 0.0)) / errors[there], [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    return _around(estimate, *np.clip(estimate - far * error, -1, 1))


def mean_cosine(
    one: Float[np.ndarray, "cluster width"],
    other: Float[np.ndarray, "cluster width"],
    rows: Float[np.ndarray, " cluster"],
    resampled: Float[np.ndarray, "draw cluster"],
) -> Estimate:
    """Cosine of the means of two sets of rows, summed by the same clusters.

    Bootstrap on Fisher's z: draws are nearer 0 than the truth by as much as the estimate is, and that is taken back. Each end is
    the further of two, the studentised one (each draw by its own jackknife) and the basic one (cut at `levels`): either alone
    covers 88 to 95 of 100 where directions are faint or pictures fewer than 100, both together 93 to 96, or more where all is
    clear. -1 to 1 where one mean is no longer than noise would make it.
    """
    (estimate,), (error,) = _cosine_draws(one, other, np.ones((1, len(rows))))
    if len(rows) < LEAST_CLUSTERS or not np.isfinite(estimate):
        return Estimate(float(estimate), np.nan, np.nan)
    one, other = shortened(one, rows), shortened(other, rows)
    if not (_has_mean(one) and _has_mean(other)):
        return Estimate(float(estimate), -1.0, 1.0)
    drawn, errors = _cosine_draws(one, other, resampled)
    there = errors > 0
    if not error > 0 or there.mean() < 0.9:  # all alike
        return Estimate(float(estimate), np.nan, np.nan)
    moved = _z(drawn[there]) - _z(estimate)
    studentised = error * np.quantile(moved / errors[there], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    basic = np.quantile(moved, levels(len(rows)))
    high, low = np.tanh(_z(estimate) - [min(studentised[0], basic[0]), max(studentised[1], basic[1])])
    return _around(float(estimate), low, high)


def shortened(
    sums: Float[np.ndarray, "cluster width"], rows: Float[np.ndarray, " cluster"]
) -> Float[np.ndarray, "cluster width"]:
    """The same deviations around a mean as long as products of different clusters say; 0 where they say less than that."""
    total, n = sums.sum(axis=0), rows.sum()
    wanted = max(float(total @ total - np.sum(sums**2)) / (n**2 - rows @ rows), 0.0)
    return sums - (1 - _kept(wanted, float(total @ total) / n**2)) * rows[:, None] * total / n


def _kept(wanted: float, squared: float) -> float:
    """By what to multiply a mean of that squared length for the wanted one; never more than 1."""
    return float(np.sqrt(min(wanted / squared, 1.0))) if squared > 0 else 1.0


def _cross_draws(sums, rows, drawn) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Mean cosine of rows of different draws, and its jackknife standard error, for each row of counts; NaN for none."""
    found, errors = [], []
    parts, count = rows.shape
    couples = list(itertools.combinations_with_replacement(range(parts), 2))
    products = [_products(sums[one], sums[other]) for one, other in couples]
    start = 0
    for size in sizes(len(drawn), count):
        counts = drawn[start : start + size]
        start += size
        mean, without = np.zeros(len(counts)), np.zeros((len(counts), count))
        for (one, other), product in zip(couples, products, strict=True):
            share = (1 if one == other else 2) / parts**2
            all_of_it, left = _ratio(counts, product, rows[one], rows[other])
            mean += share * all_of_it
            without += share * left
        spread = without - (np.sum(counts * without, axis=1) / count)[:, None]
        found.append(mean)
        errors.append(np.sqrt((count - 1) / count * np.sum(counts * spread**2, axis=1)))
    return np.concatenate(found), np.concatenate(errors)


class _Products(NamedTuple):
    """Inner products of two sums by cluster.

    own: of each cluster's with its other. factors: matrices whose product is one @ other.T + other @ one.T.
    """

    own: Float[np.ndarray, " cluster"]
    factors: tuple[np.ndarray, ...]

    def of(self, counts: Float[np.ndarray, "draw cluster"]) -> tuple[np.ndarray, np.ndarray]:
        """Of each draw, the product of both totals [draw, 1], and of each cluster's sums with the other total [draw, cluster]."""
        each = functools.reduce(np.matmul, self.factors, counts)
        return np.sum(counts * each, axis=1, keepdims=True) / 2, each


def _products(one: Float[np.ndarray, "cluster width"], other: Float[np.ndarray, "cluster width"]) -> _Products:
    """In the form that is cheaper to multiply counts with: products of clusters where these are fewer than numbers in a row."""
    factors = np.concatenate([one, other], axis=1), np.concatenate([other, one], axis=1).T
    if len(one) < 4 * one.shape[1]:
        product = one @ other.T
        factors = (product + product.T,)
    return _Products(np.sum(one * other, axis=1), factors)


def _ratio(counts, products: _Products, rows_one, rows_other):
    """Mean product of rows of two parts of different draws, and the same without one draw of each cluster."""
    own, own_rows = products.own, rows_one * rows_other
    n_first, n_second, (whole, each) = counts @ rows_one, counts @ rows_other, products.of(counts)
    between, pairs = whole[:, 0] - counts @ own, n_first * n_second - counts @ own_rows
    left = between[:, None] - each + 2 * own
    left_pairs = pairs[:, None] - np.outer(n_first, rows_other) - np.outer(n_second, rows_one) + 2 * own_rows
    with np.errstate(divide="ignore", invalid="ignore"):
        all_of_it = np.where(pairs > 0.5, between / pairs, np.nan)
        # without a cluster that was not drawn counts for nothing, whatever it says
        return all_of_it, np.where(counts > 0, np.where(left_pairs > 0.5, left / left_pairs, np.nan), 0.0)


def _cosine_draws(one, other, drawn) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """Cosine of the sums of each row of counts, and the jackknife standard error of its z."""
    found, errors = [], []
    products = [_products(a, b) for a, b in ((one, other), (one, one), (other, other))]
    start = 0
    for size in sizes(len(drawn), len(one)):
        counts = drawn[start : start + size]
        start += size
        wholes, each = zip(*(product.of(counts) for product in products), strict=True)
        dot, left, right = wholes
        less = [whole - part + product.own for whole, part, product in zip(wholes, each, products, strict=True)]
        with np.errstate(divide="ignore", invalid="ignore"):  # NaN where a sum is 0
            found.append((dot / np.sqrt(left * right))[:, 0])
            cosines = less[0] / np.sqrt(less[1] * less[2])
        cosines = np.where(counts > 0, _z(cosines), 0.0)
        spread = cosines - np.sum(counts * cosines, axis=1, keepdims=True) / len(one)
        errors.append(np.sqrt((len(one) - 1) / len(one) * np.sum(counts * spread**2, axis=1)))
    return np.concatenate(found), np.concatenate(errors)


def _has_mean(sums: Float[np.ndarray, "cluster width"]) -> bool:
    return bool(np.sum(sums.sum(axis=0) ** 2) > 1e-18 * np.sum(sums**2))


def _z(cosine):
    return np.arctanh(np.clip(cosine, -NEARLY_ONE, NEARLY_ONE))


def _around(estimate: float, low: float, high: float) -> Estimate:
    return Estimate(estimate, min(float(low), estimate), max(float(high), estimate))
