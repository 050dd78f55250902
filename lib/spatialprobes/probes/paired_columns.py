"""Means of many columns at once with intervals and p-values over clusters: one column a head, thousands of them.

Draws and relabellings are those of ``stats.bootstrap`` and ``stats.permutation_test``, made once and shared by all columns, so
that each column's numbers are theirs. Knows arrays alone.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spatialprobes.probes.swap_resampling import coded, sizes, summed, times
from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

BLOCK = 2_000_000  # numbers held at once: 16 MB


class Columns(NamedTuple):
    """Of each column: its mean, the 95% interval over clusters, and the two-sided p-value of signs flipped by cluster.

    All NaN but the mean where there is one cluster.
    """

    mean: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]
    p: Float[np.ndarray, " column"]
    n: int
    clusters: int


def columns(
    values: Float[np.ndarray, "row column"],
    clusters: Shaped[np.ndarray, " row"],
    *,
    n: int = 2000,
    m: int = 10_000,
    seed: int = 0,
) -> Columns:
    """Means of the columns; whole clusters are resampled n times, and their signs flipped m times.

    Raises ValueError for values that are not finite, none at all, or clusters of another length.
    """
    values, totals, sizes = _by_cluster(values, clusters)
    count = len(sizes)
    mean = totals.sum(axis=0) / len(values)
    if count < 2:
        nothing = np.full(len(mean), np.nan)
        return Columns(mean, nothing, nothing, nothing, len(values), count)
    weights, flips = _draws(count, n, check_seed(seed)), _flips(count, m, seed)
    tie = 1e-12 * np.maximum(2 * np.abs(values).sum(axis=0), 1e-300)  # sums in another order differ in the last bits
    low, high, p = (np.empty(len(mean)) for _ in range(3))
    width = max(1, BLOCK // max(n, m))
    for start in range(0, len(mean), width):
        part = slice(start, start + width)
        drawn = (weights @ totals[:, part]) / (weights @ sizes)[:, None]
        low[part], high[part] = np.quantile(drawn, [0.025, 0.975], axis=0)
        null = np.abs(np.concatenate([flipped for _, flipped in times(flips, totals[:, part])]))
        p[part] = ((null >= np.abs(totals[:, part].sum(axis=0)) - tie[part]).sum(axis=0) + 1) / (m + 1)
    return Columns(mean, np.minimum(low, mean), np.maximum(high, mean), p, len(values), count)


def excess(
    values: Float[np.ndarray, "row column"],
    control: Float[np.ndarray, "row column"],
    clusters: Shaped[np.ndarray, " row"],
    *,
    n: int = 2000,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """By how much the means of the columns lie farther from 0 than those of a control on the same rows, |mean| - |control mean|,
    and the 95% interval over clusters, both resampled alike; NaN for the interval of one cluster. Raises as `columns`.
    """
    (_, totals, sizes), (_, others, _) = _by_cluster(values, clusters), _by_cluster(control, clusters)
    found = np.abs(totals.sum(0)) / sizes.sum() - np.abs(others.sum(0)) / sizes.sum()
    if len(sizes) < 2:
        return found, np.full(len(found), np.nan), np.full(len(found), np.nan)
    weights = _draws(len(sizes), n, check_seed(seed))
    drawn = (np.abs(weights @ totals) - np.abs(weights @ others)) / (weights @ sizes)[:, None]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return found, np.minimum(low, found), np.maximum(high, found)


def _by_cluster(values, clusters) -> tuple[Float[np.ndarray, "row column"], Float[np.ndarray, "cluster column"], np.ndarray]:
    """The values, their sums by cluster and the rows of each, checked."""
    values = np.asarray(values, float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"values of the shape {values.shape} are no table of rows and columns")
    if len(clusters) != len(values):
        raise ValueError(f"clusters has {len(clusters)} rows, not {len(values)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are NaN or infinite")
    codes, count = coded(clusters)
    return values, summed(values, codes, count), np.bincount(codes, minlength=count).astype(float)


@functools.lru_cache(maxsize=2)  # tables of one set of pictures share them
def _draws(count: int, n: int, seed: int) -> Float[np.ndarray, "draw cluster"]:
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=n).astype(float)


@functools.lru_cache(maxsize=2)
def _flips(count: int, m: int, seed: int) -> Int[np.ndarray, "flip cluster"]:
    """The signs of `stats.permutation_test`, in its order of drawing, a byte each."""
    generator = np.random.default_rng(seed)
    parts = [(2 * generator.integers(0, 2, (size, count)) - 1).astype(np.int8) for size in sizes(m, count)]
    return np.concatenate(parts)
