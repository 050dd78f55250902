"""Correlations and means with their draws, against slow independent forms: rows drawn one by one, residuals, least squares."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes import audit_moments as moments


def table(seed=0, rows=60, columns="abcd"):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((rows, len(columns))) @ rng.standard_normal((len(columns), len(columns)))
    return pd.DataFrame(mixed + 5, columns=list(columns)), rng.integers(0, rows // 3, rows)


def residual(y, by):
    design = np.column_stack([np.ones(len(y)), by])
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


@given(st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_partial_correlation_is_that_of_residuals(seed):
    frame, clusters = table(seed)
    of = moments.covariances(frame, clusters, draws=100)
    plain = np.corrcoef(frame["a"], frame["b"])[0, 1]
    assert moments.correlation(of, "a", "b")[0] == pytest.approx(plain)
    others = frame[["c", "d"]].to_numpy()
    partial = np.corrcoef(residual(frame["a"].to_numpy(), others), residual(frame["b"].to_numpy(), others))[0, 1]
    assert moments.correlation(of, "a", "b", ["c", "d"])[0] == pytest.approx(partial, abs=1e-8)
    left = residual(frame["a"].to_numpy(), frame[["b", "c", "d"]].to_numpy())
    assert moments.explained(of, "a", ["b", "c", "d"])[0] == pytest.approx(1 - left.var() / frame["a"].var(ddof=0), abs=1e-8)


def test_each_draw_is_the_correlation_of_the_rows_it_takes():
    frame, clusters = table(3)
    of = moments.covariances(frame, clusters, draws=100, seed=5)
    weights = moments.cluster_weights(len(set(clusters)), 100, 5)
    drawn, partial, share = moments.correlation(of, "a", "b")[1], moments.correlation(of, "a", "b", ["c"])[1], None
    share = moments.explained(of, "a", ["b", "c"])[1]
    codes = pd.factorize(clusters, sort=True)[0]
    for draw in (0, 17, 99):
        rows = np.repeat(np.arange(len(frame)), weights[draw][codes].astype(int))
        own = frame.iloc[rows]
        assert drawn[draw] == pytest.approx(np.corrcoef(own["a"], own["b"])[0, 1])
        a, b = (residual(own[name].to_numpy(), own[["c"]].to_numpy()) for name in "ab")
        assert partial[draw] == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-8)
        left = residual(own["a"].to_numpy(), own[["b", "c"]].to_numpy())
        assert share[draw] == pytest.approx(1 - left.var() / own["a"].var(ddof=0), abs=1e-8)


def test_means_of_draws_count_what_is_there():
    frame, clusters = table(4)
    frame.loc[::4, "b"] = np.nan
    found = moments.means(frame[["a", "b"]], clusters, draws=100, seed=2)
    weights = moments.cluster_weights(len(set(clusters)), 100, 2)
    codes = pd.factorize(clusters, sort=True)[0]
    for name, (mean, draws) in found.items():
        assert mean == pytest.approx(frame[name].mean())
        own = frame[name].to_numpy()[np.repeat(np.arange(len(frame)), weights[42][codes].astype(int))]
        assert draws[42] == pytest.approx(np.nanmean(own))


def test_copies_widen_an_interval():
    """Rows that stand four times say no more than once: their clusters' interval is twice that of rows that count as others."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": np.repeat(rng.standard_normal(400), 4)})
    width = {}
    for name, clusters in (("clusters", np.repeat(np.arange(400), 4)), ("rows", np.arange(1600))):
        low, high = moments.interval(*moments.means(frame, clusters)["a"])
        width[name] = high - low
    assert width["clusters"] / width["rows"] == pytest.approx(2, rel=0.15)


def test_what_does_not_vary_has_no_correlation():
    frame, clusters = table(1)
    of = moments.covariances(frame.assign(a=3.0, d=frame["c"]), clusters, draws=100)
    assert np.isnan(moments.correlation(of, "a", "b")[0]) and np.isnan(moments.correlation(of, "b", "c", ["d"])[0])
    assert moments.correlation(of, "c", "d")[0] == pytest.approx(1)
    assert moments.interval(np.nan, np.zeros(3)) == pytest.approx((np.nan, np.nan), nan_ok=True)
    with pytest.raises(ValueError, match="column 'b' holds NaN"):
        moments.covariances(frame.assign(b=np.nan), clusters)
    with pytest.raises(ValueError, match="60 rows in 1 clusters"):
        moments.covariances(frame, np.zeros(60))
