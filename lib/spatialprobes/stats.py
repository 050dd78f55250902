"""Intervals and tests: how sure a number is, given what was sampled together.

Questions about one picture are not independent, so what is resampled is the cluster (the picture), not the row. Every interval
is a 95% one unless `level` says otherwise. Knows arrays, not tables, models or measures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd

from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

BLOCK = 4_000_000  # numbers held at once while resampling: 32 MB


class Interval(NamedTuple):
    """An estimate with its interval; n rows in `clusters` clusters stand behind it (for a ratio, n counts both samples)."""

    estimate: float
    low: float
    high: float
    n: int
    clusters: int


def proportion(k: int, n: int, level: float = 0.95) -> Interval:
    """k of n independent trials, with Wilson's score interval (Wilson 1927). Raises ValueError unless 0 <= k <= n and n >= 1.

    Trials that share a picture are not independent: use `bootstrap` with clusters for those.
    """
    if n < 1:
        raise ValueError(f"a proportion needs at least one trial, not n={n}")
    if not 0 <= k <= n:
        raise ValueError(f"k={k} is not between 0 and n={n}")
    z2 = _z(level) ** 2
    share = k / n
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if k == 0 else float(middle - half)  # exact at the ends, where rounding could put the estimate outside
    high = 1.0 if k == n else float(middle + half)
    return Interval(share, low, high, int(n), int(n))


def bootstrap(
    values: Float[np.ndarray, " n"],
    clusters: Shaped[np.ndarray, " n"] | None,
    statistic: Literal["mean", "median"] = "mean",
    n: int = 2000,
    seed: int = 0,
    paired: Float[np.ndarray, " n"] | None = None,
    bounds: tuple[float, float] | None = None,
    level: float = 0.95,
) -> Interval:
    """Cluster bootstrap percentile interval of a statistic of `values`, or of `values` minus `paired`.

    Whole clusters are drawn with replacement, `n` times (Davison & Hinkley 1997, 3.8); the statistic pools the rows of the drawn
    clusters, so that a large cluster weighs more. clusters=None makes each row its own. `paired` holds the same rows under the
    other condition: the result is statistic(values) - statistic(paired) on the same draws.

    bounds: the least and greatest legal value, (0, 1) for right or wrong. Resampling cannot show what the sample lacks: rows that
    all agree would give an interval of no width. Given bounds, the interval reaches at least as far as a kind of cluster at the
    bound, so rare that C clusters miss it with probability (1 - level) / 2, could move the estimate: 1 - ((1 - level) / 2)^(1/C)
    of the way (.018 for 200 clusters). Raises ValueError naming the argument that is empty, holds NaN or has another length.
    """
    draw = _Resample(clusters, len(np.asarray(values)), n, seed)
    columns = [_column(values, "values", draw.rows)]
    if paired is not None:
        columns.append(_column(paired, "paired", draw.rows))
    if statistic not in _STATISTICS:
        raise ValueError(f"statistic {statistic!r} is not one of {', '.join(_STATISTICS)}")
    of = _STATISTICS[statistic]
    estimates = [of(column, np.ones((1, draw.count)), draw)[0] for column in columns]
    draws = [of(column, None, draw) for column in columns]
    estimate = estimates[0] - estimates[1] if paired is not None else estimates[0]
    low, high = _percentiles(draws[0] - draws[1] if paired is not None else draws[0], level)
    if bounds is not None:
        least, greatest = bounds
        outside = [value for column in columns for value in (column.min(), column.max()) if not least <= value <= greatest]
        if outside:
            raise ValueError(f"a value of {outside[0]:g} lies outside bounds=({least:g}, {greatest:g})")
        if paired is not None:
            least, greatest = least - greatest, greatest - least
        unseen = unseen_share(draw.count, level)
        low, high = min(low, estimate - unseen * (estimate - least)), max(high, estimate + unseen * (greatest - estimate))
    return Interval(float(estimate), min(low, float(estimate)), max(high, float(estimate)), draw.rows, draw.count)


def unseen_share(clusters: int, level: float = 0.95) -> float:
    """How common a kind of cluster may be and still be missed by so many clusters with probability (1 - level) / 2."""
    return 1 - ((1 - level) / 2) ** (1 / clusters)


def ratio(
    numerator: Float[np.ndarray, " n"],
    denominator: Float[np.ndarray, " m"],
    numerator_clusters: Shaped[np.ndarray, " n"] | None = None,
    denominator_clusters: Shaped[np.ndarray, " m"] | None = None,
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    statistic: Literal["mean", "median"] = "mean",
) -> Interval:
    """mean(numerator) / mean(denominator), two samples of any lengths, with a cluster bootstrap percentile interval.

    statistic: "median" for the ratio of medians. Clusters of one label in both samples (the vision and the text of one picture)
    are drawn together. Without clusters the two samples are drawn apart. Raises ValueError for NaN, empty input, one of two
    clusterings missing, an unknown statistic, or a denominator whose mean (median) is zero or changes sign over the draws (the
    ratio has no interval then).
    """
    if statistic not in _STATISTICS:
        raise ValueError(f"statistic {statistic!r} is not one of {', '.join(_STATISTICS)}")
    of = _STATISTICS[statistic]
    if (numerator_clusters is None) != (denominator_clusters is None):
        raise ValueError("give clusters for both samples or for neither")
    above = _column(numerator, "numerator", None)
    below = _column(denominator, "denominator", None)
    rows = len(above) + len(below)
    if numerator_clusters is None:
        draws_above = of(above, None, _Resample(None, len(above), n, seed))
        draws_below = of(below, None, _Resample(None, len(below), n, seed + 1))
        count = rows
    else:
        labels = np.concatenate([_labels(numerator_clusters, len(above)), _labels(denominator_clusters, len(below))])
        draw = _Resample(labels, rows, n, seed)
        is_above = np.arange(rows) < len(above)
        pooled = np.concatenate([above, below])
        with np.errstate(divide="ignore", invalid="ignore"):  # a draw without any row of one sample is caught below
            draws_above = of(pooled, None, draw, is_above)
            draws_below = of(pooled, None, draw, ~is_above)
        count = draw.count
        if not (np.isfinite(draws_above).all() and np.isfinite(draws_below).all()):
            raise ValueError("some draws hold no row of one sample: too few clusters hold both numerator and denominator")
    of_above, of_below = (float(getattr(np, statistic)(column)) for column in (above, below))
    if of_below == 0 or (np.sign(draws_below) != np.sign(of_below)).any():
        raise ValueError(
            f"the denominator's {statistic} ({of_below:g}) is zero or changes sign over the draws: no interval of a ratio"
        )
    estimate = of_above / of_below
    low, high = _percentiles(draws_above / draws_below, level)
    return Interval(estimate, min(low, estimate), max(high, estimate), rows, count)


def permutation_test(
    first: Float[np.ndarray, " n"],
    second: Float[np.ndarray, " m"],
    clusters: Shaped[np.ndarray, " n"] | None = None,
    paired: bool = True,
    m: int = 10_000,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a difference of means, (b + 1) / (m + 1) for b of m random relabellings at least as far from zero.

    paired: first and second are the same rows under two conditions; the sign of each cluster's difference is flipped at random.
    Unpaired: rows are dealt anew to the two samples, and clusters are not accepted (rows within a picture are not exchangeable).
    Counting the observed labelling keeps the test's size (Phipson & Smyth 2010). Raises ValueError for m < 10,000, NaN or empty
    input.
    """
    if m < 10_000:
        raise ValueError(f"m={m} relabellings are too few for a p-value; use at least 10,000")
    one, two = _column(first, "first", None), _column(second, "second", None if not paired else len(np.asarray(first)))
    generator = np.random.default_rng(check_seed(seed))
    if paired:
        codes, count = _codes(clusters, len(one))
        totals = np.bincount(codes, weights=one - two, minlength=count)
        observed = abs(totals.sum())
        null = np.concatenate([abs((2.0 * generator.integers(0, 2, (size, count)) - 1) @ totals) for size in _blocks(m, count)])
    else:
        if clusters is not None:
            raise ValueError("clusters are for paired rows: unpaired rows within a cluster are not exchangeable")
        pooled = np.concatenate([one, two])
        pooled = pooled - pooled.mean()  # the sum of one part then says the difference of means, up to a factor
        observed = abs(pooled[: len(one)].sum())
        null = np.concatenate(
            [
                abs(generator.permuted(np.broadcast_to(pooled, (size, len(pooled))), axis=1)[:, : len(one)].sum(axis=1))
                for size in _blocks(m, len(pooled))
            ]
        )
    tie = 1e-12 * max(abs(one).sum() + abs(two).sum(), 1e-300)  # sums in another order differ in the last bits
    return (int((null >= observed - tie).sum()) + 1) / (m + 1)


def benjamini_hochberg(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Adjusted p-values that hold the false discovery rate (Benjamini & Hochberg 1995), in the order given.

    Raises ValueError for NaN, empty input or a value outside [0, 1].
    """
    values = _column(p, "p", None)
    if (wrong := values[(values < 0) | (values > 1)]).size:
        raise ValueError(f"a p-value of {wrong[0]:g} is not between 0 and 1")
    order = np.argsort(values, kind="stable")
    scaled = values[order] * len(values) / np.arange(1, len(values) + 1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


class _Resample:
    """The draws of one bootstrap: which cluster each row is in, and how often each draw takes each cluster."""

    def __init__(self, clusters: Shaped[np.ndarray, " n"] | None, rows: int, n: int, seed: int):
        if rows == 0:
            raise ValueError("values is empty: nothing to resample")
        if n < 100:
            raise ValueError(f"n={n} resamples are too few for an interval; use at least 100 (2,000 is usual)")
        self.codes, self.count = _codes(clusters, rows)
        self.rows, self.n, self.seed = rows, n, check_seed(seed)
        if self.count < 2:
            raise ValueError("one cluster says nothing about how clusters differ; at least 2 are needed")

    def weights(self):
        """Yields [block, cluster] counts; the same sequence at each call, so that paired columns see the same draws."""
        generator = np.random.default_rng(self.seed)
        even = np.full(self.count, 1 / self.count)
        for size in _blocks(self.n, max(self.count, self.rows)):
            yield generator.multinomial(self.count, even, size=size)


def _mean(column, weights, draw: _Resample, rows=None):
    """Weighted means of the drawn clusters' rows; `rows` (bool) restricts which rows count."""
    counted = np.ones(draw.rows) if rows is None else rows.astype(float)
    totals = np.bincount(draw.codes, weights=column * counted, minlength=draw.count)
    sizes = np.bincount(draw.codes, weights=counted, minlength=draw.count)
    blocks = draw.weights() if weights is None else [weights]
    return np.concatenate([(block @ totals) / (block @ sizes) for block in blocks])


def _median(column, weights, draw: _Resample, rows=None):
    """Medians of the drawn clusters' rows (the middle two averaged), by cumulated weights over the rows sorted once.

    `rows` (bool) restricts which rows count; NaN for a draw that holds none.
    """
    counted = np.arange(draw.rows) if rows is None else np.flatnonzero(rows)
    order = counted[np.argsort(column[counted], kind="stable")]
    ordered, codes = column[order], draw.codes[order]
    medians = []
    for block in draw.weights() if weights is None else [weights]:
        reached = np.cumsum(block[:, codes], axis=1)
        total = reached[:, -1:]
        lower = (reached >= np.floor((total + 1) / 2)).argmax(axis=1)
        upper = (reached >= np.floor(total / 2) + 1).argmax(axis=1)
        medians.append(np.where(total[:, 0] > 0, (ordered[lower] + ordered[upper]) / 2, np.nan))
    return np.concatenate(medians)


_STATISTICS = {"mean": _mean, "median": _median}


def _blocks(total: int, width: int) -> list[int]:
    size = max(1, BLOCK // max(width, 1))
    return [min(size, total - start) for start in range(0, total, size)]


def _percentiles(draws: Float[np.ndarray, " draws"], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not between 0 and 1")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _column(values, name: str, length: int | None) -> Float[np.ndarray, " n"]:
    try:
        column = np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers: {error}") from error
    if column.ndim != 1:
        raise ValueError(f"{name} must be one column, not of shape {column.shape}")
    if column.size == 0:
        raise ValueError(f"{name} is empty")
    if length is not None and len(column) != length:
        raise ValueError(f"{name} has {len(column)} rows, not {length}")
    if not np.isfinite(column).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(column)).sum())} values that are NaN or infinite, of {len(column)}")
    return column


def _codes(clusters, rows: int) -> tuple[Int[np.ndarray, " n"], int]:
    """Cluster of each row as 0 .. count - 1, in the order of the labels: the order of the rows does not change the draws."""
    codes, unique = pd.factorize(np.arange(rows) if clusters is None else _labels(clusters, rows), sort=True)
    return codes, len(unique)


def _labels(clusters, rows: int) -> Shaped[np.ndarray, " n"]:
    labels = np.asarray(clusters)
    if len(labels) != rows:
        raise ValueError(f"clusters has {len(labels)} rows, not {rows}")
    if pd.isna(labels).any():
        raise ValueError(f"clusters holds {int(pd.isna(labels).sum())} missing labels, of {rows}")
    return labels


def _z(level: float) -> float:
    from scipy.special import ndtri  # a quarter of a second, only where it is used

    if not 0 < level < 1:
        raise ValueError(f"level={level} is not between 0 and 1")
    return float(ndtri((1 + level) / 2))
