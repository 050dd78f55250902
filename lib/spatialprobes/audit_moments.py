"""Means and correlations, plain and partial, with cluster bootstrap intervals that share their draws: they can be compared.

Correlations come from covariance matrices: one of the sample, and one for each draw of whole clusters. A partial correlation is
what others leave of two columns (Whittaker 1990, 5.7). Rows are numbers without gaps; what they measure is the caller's concern.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float, Shaped

DRAWS = 1000
SINGULAR = 1e-10  # a determinant of correlations, or a share of variance that is left, below which rounding speaks
FLAT = 1e-9  # a deviation, where columns have 1 in the sample


class Covariances(NamedTuple):
    """Of named columns: [column, column] of the sample, and [draw, column, column]; n rows in `clusters` clusters."""

    names: tuple[str, ...]
    sample: Float[np.ndarray, "column column"]
    draws: Float[np.ndarray, "draw column column"]
    n: int
    clusters: int


def covariances(frame: pd.DataFrame, clusters: Shaped[np.ndarray, " n"], draws: int = DRAWS, seed: int = 0) -> Covariances:
    """Covariances of the columns of `frame`; whole clusters are drawn with replacement, their rows pooled.

    Columns are brought to mean 0 and deviation 1 first, which changes no correlation. Raises ValueError for fewer than 3 rows or
    2 clusters, and for NaN.
    """
    values = frame.to_numpy(float)
    codes, labels = pd.factorize(np.asarray(clusters), sort=True)
    if len(values) < 3 or len(labels) < 2:
        raise ValueError(f"{len(values)} rows in {len(labels)} clusters say nothing of correlations")
    if not np.isfinite(values).all():
        name = frame.columns[(~np.isfinite(values)).any(axis=0).argmax()]
        raise ValueError(f"column {name!r} holds NaN or an infinity")
    deviation = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    rows, columns = values.shape
    upper = np.triu_indices(columns)
    own = np.column_stack([np.ones(rows), values, values[:, upper[0]] * values[:, upper[1]]])
    totals = np.zeros((len(labels), own.shape[1]))
    np.add.at(totals, codes, own)
    sums = [totals.sum(axis=0)[None], cluster_weights(len(labels), draws, seed) @ totals]
    matrices = _matrices(np.concatenate(sums), columns, upper)
    return Covariances(tuple(frame.columns), matrices[0], matrices[1:], rows, len(labels))


@lru_cache(maxsize=2)
def cluster_weights(clusters: int, draws: int = DRAWS, seed: int = 0) -> Float[np.ndarray, "draw cluster"]:
    """How often each draw takes each cluster; the same for every sample with as many clusters. Not to be written to."""
    generator = np.random.default_rng(check_seed(seed))
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws).astype(float)


def means(
    frame: pd.DataFrame, clusters: Shaped[np.ndarray, " n"], draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, Float[np.ndarray, " draw"]]]:
    """The mean of each column over the rows where it is a number, of the sample and of each draw of whole clusters.

    Clusters are taken in the order of their labels, so that tables of the same pictures see the same draws. A draw without any
    number gives NaN.
    """
    values = frame.to_numpy(float)
    codes, labels = pd.factorize(np.asarray(clusters), sort=True)
    there = np.isfinite(values)
    totals = np.zeros((len(labels), 2 * values.shape[1]))
    np.add.at(totals, codes, np.column_stack([np.where(there, values, 0.0), there]))
    sums = np.concatenate([totals.sum(axis=0)[None], cluster_weights(len(labels), draws, seed) @ totals])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = sums[:, : values.shape[1]] / sums[:, values.shape[1] :]
    return {name: (float(found[0, place]), found[1:, place]) for place, name in enumerate(frame.columns)}


def correlation(of: Covariances, x: str, y: str, given: Sequence[str] = ()) -> tuple[float, Float[np.ndarray, " draw"]]:
    """The correlation of x and y, given others held fixed: of the sample, and of each draw; NaN where a column doesn't vary."""
    places = [of.names.index(name) for name in (x, y, *given)]
    return float(_partial(of.sample[None], places)[0]), _partial(of.draws, places)


def explained(of: Covariances, y: str, by: Sequence[str]) -> tuple[float, Float[np.ndarray, " draw"]]:
    """The share of y's variance that a linear regression on `by` explains: of the sample, and of each draw."""
    places = [of.names.index(name) for name in (y, *by)]
    return float(_explained(of.sample[None], places)[0]), _explained(of.draws, places)


def interval(estimate: float, draws: Float[np.ndarray, " draw"], level: float = 0.95) -> tuple[float, float]:
    """The percentile interval of the draws, wide enough to hold the estimate; NaN where either is."""
    if not np.isfinite(estimate) or not np.isfinite(draws).all():
        return np.nan, np.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), estimate), max(float(high), estimate)


def _matrices(sums: np.ndarray, columns: int, upper) -> Float[np.ndarray, "draw column column"]:
    count, means = sums[:, :1], sums[:, 1 : columns + 1] / sums[:, :1]
    second = sums[:, columns + 1 :] / count
    found = np.empty((len(sums), columns, columns))
    found[:, upper[0], upper[1]] = second - means[:, upper[0]] * means[:, upper[1]]
    found[:, upper[1], upper[0]] = found[:, upper[0], upper[1]]
    return found


def _scaled(matrices: np.ndarray, places: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Correlation matrices of these columns, the identity where one of them does not vary; and where that is."""
    own = matrices[:, places][:, :, places]
    deviation = np.sqrt(np.clip(np.diagonal(own, axis1=1, axis2=2), 0, None))
    flat = (deviation < FLAT).any(axis=1)
    deviation = np.where(flat[:, None], 1, deviation)
    return np.where(flat[:, None, None], np.eye(len(places)), own / deviation[:, :, None] / deviation[:, None, :]), flat


def _left(own: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """What the columns from `first` on leave of the covariances of those before; and where they can't be told apart."""
    others = own[:, first:, first:]
    alike = np.linalg.det(others) < SINGULAR
    inverse = np.linalg.inv(np.where(alike[:, None, None], np.eye(others.shape[1]), others))
    return own[:, :first, :first] - own[:, :first, first:] @ inverse @ own[:, first:, :first], alike


def _partial(matrices: np.ndarray, places: list[int]) -> Float[np.ndarray, " draw"]:
    own, unknown = _scaled(matrices, places)
    if len(places) > 2:
        own, alike = _left(own, 2)
        unknown = unknown | alike | (own[:, 0, 0] < SINGULAR) | (own[:, 1, 1] < SINGULAR)
    variances = np.where(unknown, 1, own[:, 0, 0] * own[:, 1, 1])
    return np.where(unknown, np.nan, np.clip(own[:, 0, 1] / np.sqrt(variances), -1, 1))


def _explained(matrices: np.ndarray, places: list[int]) -> Float[np.ndarray, " draw"]:
    own, flat = _scaled(matrices, places)
    left, alike = _left(own, 1)
    return np.where(flat | alike, np.nan, np.clip(1 - left[:, 0, 0], 0, 1))
