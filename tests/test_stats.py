"""Intervals and tests, against closed forms, other implementations and simulation."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from spatialprobes.stats import benjamini_hochberg, bootstrap, permutation_test, proportion, ratio, unseen_share


def clustered(generator, clusters=60, rows=5, spread=1.0, noise=1.0, mean=2.0):
    """Normal rows with a shared shift per cluster: (values, labels)."""
    shift = generator.normal(mean, spread, clusters)
    values = shift[:, None] + generator.normal(0, noise, (clusters, rows))
    return values.ravel(), np.repeat([f"picture-{i}" for i in range(clusters)], rows)


# --- proportion ---


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (499, 500), (1, 1)])
def test_wilson_equals_statsmodels(k, n):
    got = proportion(k, n)
    assert (got.low, got.high) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)
    assert got.estimate == k / n and got.n == n


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.99))
@settings(deadline=None, max_examples=80)
def test_wilson_holds_its_estimate_and_mirrors(pair, level):
    k, n = pair
    got, mirrored = proportion(k, n, level), proportion(n - k, n, level)
    assert 0 <= got.low <= got.estimate <= got.high <= 1
    assert got.low == pytest.approx(1 - mirrored.high, abs=1e-12)


@pytest.mark.parametrize(("k", "n", "says"), [(0, 0, "n=0"), (3, 2, "k=3"), (-1, 2, "k=-1")])
def test_impossible_counts_are_named(k, n, says):
    with pytest.raises(ValueError, match=says):
        proportion(k, n)


# --- bootstrap ---


def slow_bootstrap(values, labels, statistic, n, seed):
    """Plain loop: draw labels, glue their rows together, take the statistic."""
    generator = np.random.default_rng(seed)
    rows = [values[labels == label] for label in np.unique(labels)]
    draws = [statistic(np.concatenate([rows[i] for i in generator.integers(0, len(rows), len(rows))])) for _ in range(n)]
    return np.quantile(draws, [0.025, 0.975])


@pytest.mark.parametrize(("name", "statistic"), [("mean", np.mean), ("median", np.median)])
def test_bootstrap_agrees_with_a_plain_loop(name, statistic):
    generator = np.random.default_rng(5)
    values, labels = clustered(generator, clusters=40, rows=4)
    keep = generator.random(len(values)) < 0.7  # clusters of unequal size
    values, labels = values[keep], labels[keep]
    got = bootstrap(values, labels, name, n=4000, seed=1)
    low, high = slow_bootstrap(values, labels, statistic, 4000, 2)
    width = high - low
    assert got.estimate == pytest.approx(statistic(values))
    assert abs(got.low - low) < 0.06 * width and abs(got.high - high) < 0.06 * width


def test_bootstrap_without_clusters_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=80)
    got = bootstrap(values, None, n=9999, seed=3)
    reference = scipy.stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(4))
    width = reference.confidence_interval.high - reference.confidence_interval.low
    assert abs(got.low - reference.confidence_interval.low) < 0.04 * width
    assert abs(got.high - reference.confidence_interval.high) < 0.04 * width


def test_standard_error_of_a_balanced_cluster_mean_has_its_closed_form():
    values, labels = clustered(np.random.default_rng(8), clusters=200, rows=3)
    means = values.reshape(200, 3).mean(axis=1)
    expected = 2 * 1.959964 * means.std() / np.sqrt(200)  # the bootstrap's variance has 1/C, not 1/(C - 1)
    got = bootstrap(values, labels, n=20_000, seed=0)
    assert got.high - got.low == pytest.approx(expected, rel=0.03)


def test_clusters_widen_the_interval_of_correlated_rows():
    values, labels = clustered(np.random.default_rng(2), clusters=50, rows=20, spread=1.0, noise=0.1)
    together, apart = bootstrap(values, labels), bootstrap(values, None)
    assert (together.high - together.low) > 3 * (apart.high - apart.low)
    assert together.clusters == 50 and apart.clusters == together.n == 1000


def test_intervals_cover_at_their_level():
    generator = np.random.default_rng(12)
    mean_hits = paired_hits = ratio_hits = 0
    for draw in range(200):
        values, labels = clustered(generator, mean=2.0)
        worse = values - 0.5 + generator.normal(0, 1, len(values))
        got = bootstrap(values, labels, n=500, seed=draw)
        mean_hits += got.low <= 2.0 <= got.high
        got = bootstrap(values, labels, n=500, seed=draw, paired=worse)
        paired_hits += got.low <= 0.5 <= got.high
        below, _ = clustered(generator, mean=4.0)
        got = ratio(values, below, labels, labels, n=500, seed=draw)
        ratio_hits += got.low <= 0.5 <= got.high
    for hits in (mean_hits, paired_hits, ratio_hits):
        assert 0.90 <= hits / 200 <= 0.99


def test_paired_difference_is_that_of_the_differences():
    generator = np.random.default_rng(3)
    values, labels = clustered(generator)
    other = values + generator.normal(0.2, 1, len(values))
    assert bootstrap(values, labels, seed=7, paired=other) == pytest.approx(bootstrap(values - other, labels, seed=7))


def test_pairing_narrows_when_the_conditions_move_together():
    values, labels = clustered(np.random.default_rng(4), spread=3.0)
    other = values - 0.1
    got = bootstrap(values, labels, paired=other)
    assert got == pytest.approx((0.1, 0.1, 0.1, 300, 60))
    unpaired = bootstrap(values, labels)
    assert unpaired.high - unpaired.low > 1


def test_bounds_keep_unanimous_rows_from_looking_certain():
    right = np.ones(200)
    assert bootstrap(right, None)[:3] == (1, 1, 1)
    got = bootstrap(right, None, bounds=(0, 1))
    assert got.low == pytest.approx(scipy.stats.binomtest(200, 200).proportion_ci(method="exact").low)  # Clopper and Pearson
    assert got.high == 1
    drop = bootstrap(right, None, paired=right, bounds=(0, 1))
    unseen = 1 - 0.025 ** (1 / 200)
    assert drop[:3] == pytest.approx((0, -unseen, unseen))


def test_bounds_do_not_matter_where_the_rows_vary():
    generator = np.random.default_rng(6)
    right = (generator.random(400) < 0.6).astype(float)
    assert bootstrap(right, None, bounds=(0, 1)) == bootstrap(right, None)


def test_seed_decides_and_the_order_of_rows_does_not():
    values, labels = clustered(np.random.default_rng(1))
    shuffled = np.random.default_rng(2).permutation(len(values))
    assert bootstrap(values, labels, seed=5) == bootstrap(values, labels, seed=5)
    assert bootstrap(values, labels, seed=5).low != bootstrap(values, labels, seed=6).low
    assert bootstrap(values[shuffled], labels[shuffled], seed=5) == pytest.approx(bootstrap(values, labels, seed=5), abs=1e-12)


@given(
    st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 5)), min_size=2, max_size=40).filter(
        lambda rows: len({label for _, label in rows}) > 1
    ),
    st.sampled_from(["mean", "median"]),
)
@settings(deadline=None, max_examples=60)
def test_intervals_hold_their_estimate_and_stay_within_the_data(rows, statistic):
    values, labels = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    got = bootstrap(values, labels, statistic, n=200)
    slack = 1e-9 * (1 + abs(values).max())
    assert values.min() - slack <= got.low <= got.estimate <= got.high <= values.max() + slack
    moved = bootstrap(values + 10, labels, statistic, n=200)
    assert moved[:3] == pytest.approx(tuple(part + 10 for part in got[:3]), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], []), "values is empty"),
        (([1.0, np.nan], [0, 1]), "values holds 1 values that are NaN"),
        ((["a", "b"], [0, 1]), "values must be numbers"),
        (([1.0, 2.0], [0]), "clusters has 1 rows, not 2"),
        (([1.0, 2.0], ["a", None]), "clusters holds 1 missing"),
        (([1.0, 2.0], [0, 0]), "one cluster"),
        (([1.0, 2.0], [0, 1], "mode"), "'mode' is not one of mean, median"),
        (([1.0, 2.0], [0, 1], "mean", 50), "n=50 resamples"),
        (([1.0, 2.0], [0, 1], "mean", 200, 0, [1.0]), "paired has 1 rows, not 2"),
        (([1.0, 2.0], [0, 1], "mean", 200, 0, None, (0, 1)), "2 lies outside bounds"),
    ],
)
def test_input_that_means_nothing_is_named(arguments, says):
    with pytest.raises(ValueError, match=says):
        bootstrap(*[np.array(part) if isinstance(part, list) else part for part in arguments])


# --- ratio ---


def test_ratio_of_samples_of_unequal_length():
    generator = np.random.default_rng(9)
    vision, text = generator.normal(30, 1, 360), generator.normal(0.9, 0.05, 50)
    got = ratio(vision, text, np.repeat(np.arange(10), 36), np.repeat(np.arange(10), 5))
    assert got.estimate == pytest.approx(vision.mean() / text.mean())
    assert got.low < got.estimate < got.high and got.clusters == 10 and got.n == 410
    loose = ratio(vision, text)
    assert loose.estimate == got.estimate and loose.clusters == 410


def test_ratio_of_a_column_to_a_multiple_of_itself_is_certain():
    values, labels = clustered(np.random.default_rng(1), mean=10)
    assert ratio(3 * values, values, labels, labels)[:3] == pytest.approx((3, 3, 3))


def test_ratio_of_medians_agrees_with_a_plain_loop():
    rng = np.random.default_rng(3)
    above, below = rng.lognormal(2, 0.5, 60), rng.lognormal(0, 0.5, 35)
    one, other = np.repeat(np.arange(10), 6), np.repeat(np.arange(5, 12), 5)  # some pictures have rows of one sample alone
    found = ratio(above, below, one, other, n=400, seed=5, statistic="median")
    assert found.estimate == np.median(above) / np.median(below)
    generator, draws = np.random.default_rng(5), []
    counts = generator.multinomial(12, np.full(12, 1 / 12), size=400)
    for count in counts:
        values = [np.repeat(column, count[labels]) for column, labels in ((above, one), (below, other))]
        draws.append(np.median(values[0]) / np.median(values[1]))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    with pytest.raises(ValueError, match="statistic 'mode' is not one of mean, median"):
        ratio(above, below, statistic="mode")
    with pytest.raises(ValueError, match="some draws hold no row of one sample"):
        ratio(np.ones(2), np.ones(2), np.array([0, 0]), np.array([1, 1]), statistic="median")
    with pytest.raises(ValueError, match=r"the denominator's median \(0\) is zero"):
        ratio(np.ones(3), np.array([0.0, 0.0, 9.0]), statistic="median")


def test_unseen_share_is_what_so_many_clusters_miss_by_chance():
    for clusters in (1, 12, 200):
        assert (1 - unseen_share(clusters)) ** clusters == pytest.approx(0.025)
        assert (1 - unseen_share(clusters, level=0.8)) ** clusters == pytest.approx(0.1)
    assert unseen_share(200) == pytest.approx(0.0183, abs=1e-4)


def test_ratio_needs_a_denominator_that_is_not_zero():
    with pytest.raises(ValueError, match="zero or changes sign"):
        ratio(np.ones(50), np.random.default_rng(0).normal(0, 1, 50))
    with pytest.raises(ValueError, match="for both samples or for neither"):
        ratio(np.ones(5), np.ones(5), np.arange(5))
    with pytest.raises(ValueError, match="draws hold no row"):
        ratio(np.ones(2), np.ones(2), np.array([0, 0]), np.array([1, 1]))
    with pytest.raises(ValueError, match="denominator is empty"):
        ratio(np.ones(2), np.ones(0))


# --- tests ---


def test_paired_permutation_test_equals_all_sign_flips():
    generator = np.random.default_rng(0)
    difference = generator.normal(0.5, 1, 12)
    signs = np.array(np.meshgrid(*[[-1, 1]] * 12)).reshape(12, -1).T
    exact = (abs(signs @ difference) >= abs(difference.sum()) - 1e-9).mean()
    got = permutation_test(difference, np.zeros(12), m=100_000, seed=1)
    assert got == pytest.approx(exact, rel=0.05)


def test_unpaired_permutation_test_agrees_with_scipy():
    generator = np.random.default_rng(1)
    first, second = generator.normal(0, 1, 30), generator.normal(0.4, 1, 25)
    reference = scipy.stats.permutation_test(
        (first, second), lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis), vectorized=True, n_resamples=20_000, rng=3
    )
    assert permutation_test(first, second, paired=False, m=20_000) == pytest.approx(reference.pvalue, rel=0.1)


def test_p_values_count_the_observed_labelling_and_ties():
    assert permutation_test(np.full(40, 1.0), np.zeros(40)) == pytest.approx(1 / 10_001)
    assert permutation_test(np.full(3, 0.1), np.full(3, 0.1)) == 1.0


def test_clusters_flip_together():
    values, labels = np.tile([0.3, 0.1], 50), np.repeat([0, 1], 50)
    assert permutation_test(values, np.zeros(100), labels) == pytest.approx(0.5, abs=0.02)  # two signs: only ++ and -- are as far
    assert permutation_test(values, np.zeros(100)) < 0.001


def test_size_of_the_permutation_test_under_the_null():
    generator = np.random.default_rng(2)
    rejected = sum(permutation_test(generator.normal(size=20), generator.normal(size=20), seed=i) <= 0.1 for i in range(200))
    assert 0.05 <= rejected / 200 <= 0.16


def test_permutation_test_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match="m=999"):
        permutation_test(np.ones(3), np.zeros(3), m=999)
    with pytest.raises(ValueError, match="exchangeable"):
        permutation_test(np.ones(3), np.zeros(3), np.arange(3), paired=False)
    with pytest.raises(ValueError, match="second has 2 rows, not 3"):
        permutation_test(np.ones(3), np.zeros(2))
    with pytest.raises(ValueError, match="first holds 1"):
        permutation_test(np.array([1, np.nan]), np.zeros(2))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
@settings(deadline=None)
def test_benjamini_hochberg_equals_statsmodels(p):
    got = benjamini_hochberg(np.array(p))
    assert got == pytest.approx(multipletests(p, method="fdr_bh")[1], abs=1e-12)
    assert (got >= np.array(p) - 1e-15).all() and (got <= 1).all()


@pytest.mark.parametrize(("p", "says"), [([], "empty"), ([0.1, np.nan], "NaN"), ([1.2], "1.2 is not between")])
def test_benjamini_hochberg_refuses_what_is_no_p_value(p, says):
    with pytest.raises(ValueError, match=says):
        benjamini_hochberg(np.array(p))
