"""Correlations of distances and CKA equal slow formulas, do not see what they should not see, and cover as often as they say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, spearmanr

from spatialprobes.probes import similarity

FEW = settings(max_examples=20, deadline=None)


def gaussian(n=60, width=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width))


def rotation(width, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def two_spaces(n=60, noise=1.0, seed=0):
    a = gaussian(n, 8, seed)
    return a, a @ gaussian(8, 11, seed + 1) + noise * gaussian(n, 11, seed + 2)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_correlations_of_distances_equal_scipys(kind, metric):
    a, b = two_spaces()
    distances = [pdist(x, {"l2": "euclidean"}.get(metric, metric)) for x in (a, b)]
    found = similarity.distance_correlation(a, b, metric, kind=kind, draws=100)
    assert found.estimate == pytest.approx({"pearson": pearsonr, "spearman": spearmanr}[kind](*distances)[0])
    assert found.n == 60 * 59 // 2 and found.clusters == 60 and found.low < found.estimate < found.high
    again = similarity.distance_correlation(torch.from_numpy(a), torch.from_numpy(b), metric, kind=kind, draws=100)
    assert again == found


@FEW
@given(st.integers(0, 2**16), st.floats(0.01, 100), st.floats(-50, 50))
def test_rotation_scale_and_shift_leave_distances_and_alignment(seed, scale, shift):
    a = gaussian(20, 6, seed)
    moved = scale * a @ rotation(6, seed) + shift
    assert similarity.distance_correlation(a, moved, draws=100).estimate == pytest.approx(1)
    assert similarity.distance_correlation(a, moved - shift, "cosine", kind="spearman", draws=100).estimate == pytest.approx(1)
    for unbiased in (False, True):
        assert similarity.linear_cka(a, moved, unbiased=unbiased).estimate == pytest.approx(1)
    other = gaussian(20, 6, seed + 1)
    assert similarity.linear_cka(a, other).estimate == pytest.approx(similarity.linear_cka(other, moved).estimate)


def test_spearman_sees_order_alone():
    """Places on a line and on half a circle: chords grow with arcs, but not in proportion."""
    angle = np.sort(np.random.default_rng(0).uniform(0, np.pi, 15))
    line, circle = angle[:, None], np.stack([np.cos(angle), np.sin(angle)], axis=1)
    found = {kind: similarity.distance_correlation(line, circle, kind=kind, draws=100).estimate for kind in similarity.KINDS}
    assert found["pearson"] < 0.99 and found["spearman"] == pytest.approx(1)


def test_a_pair_of_copies_is_no_pair():
    a, b = two_spaces(30)
    labels = np.array([*range(30), *range(20)])
    distances = [np.linalg.norm(x[labels][:, None] - x[labels], axis=2) for x in (a, b)]
    pair = np.triu(labels[:, None] != labels, 1)
    found = similarity.distance_correlation(a[labels], b[labels], clusters=labels, draws=100)
    assert found.estimate == pytest.approx(pearsonr(distances[0][pair], distances[1][pair])[0])
    assert found.n == pair.sum() and found.clusters == 30
    assert similarity.distance_correlation(a[labels], b[labels], draws=100).estimate > found.estimate


def test_a_draw_weighs_pairs_by_how_often_both_were_drawn():
    """The bootstrap's own number for one draw equals the correlation over the pairs of the drawn pictures, listed."""
    a, b = two_spaces(12)
    codes = np.arange(12)
    weights = similarity._multinomial(codes, 100, 3)
    drawn = []
    for weight in weights:
        rows = np.repeat(codes, weight.astype(int))
        one, other = np.triu_indices(len(rows), 1)
        pairs = [(rows[i], rows[j]) for i, j in zip(one, other, strict=True) if rows[i] != rows[j]]
        u, v = (np.array([np.linalg.norm(x[i] - x[j]) for i, j in pairs]) for x in (a, b))
        drawn.append(pearsonr(u, v)[0])
    found = similarity.distance_correlation(a, b, seed=3, draws=100)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))


def hsic(k, m):
    """Song et al. 2012, equation 5, with matrices written out."""
    n = len(k)
    k, m, one = k - np.diag(np.diag(k)), m - np.diag(np.diag(m)), np.ones(n)
    whole = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * one @ k @ m @ one
    return whole / (n * (n - 3))


def cka(a, b, unbiased):
    if unbiased:
        k, m = a @ a.T, b @ b.T
        return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
    a, b = a - a.mean(0), b - b.mean(0)
    return np.sum((a.T @ b) ** 2) / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))


@FEW
@given(st.integers(6, 30), st.integers(0, 2**16), st.booleans())
def test_alignment_equals_its_formula(n, seed, unbiased):
    a, b = two_spaces(n, seed=seed)
    found = similarity.linear_cka(a, b, unbiased=unbiased)
    assert found.estimate == pytest.approx(cka(a, b, unbiased), rel=1e-6)
    assert (found.n, found.clusters) == (n, n)


def test_each_part_that_the_jackknife_leaves_out_is_left_out():
    a, b = two_spaces(30)
    labels = np.arange(30) // 3
    codes = np.random.default_rng(0).permutation(10) % 10
    for unbiased in (False, True):
        left = np.array([cka(a[codes[labels] != part], b[codes[labels] != part], unbiased) for part in range(10)])
        error = np.sqrt(0.9 * np.sum((left - left.mean()) ** 2))
        found = similarity.linear_cka(a, b, unbiased=unbiased, clusters=labels)
        assert found.high - found.estimate == pytest.approx(2.262157 * error, rel=1e-4)
        assert found.estimate - found.low == pytest.approx(found.high - found.estimate) and found.clusters == 10


def test_the_biased_form_sees_likeness_in_unrelated_wide_spaces_and_the_unbiased_does_not():
    biased, unbiased = (
        [similarity.linear_cka(gaussian(40, 500, s), gaussian(40, 500, s + 100), unbiased=u).estimate for s in range(20)]
        for u in (False, True)
    )
    assert min(biased) > 0.8
    assert abs(np.mean(unbiased)) < 3.5 * np.std(unbiased) / np.sqrt(20) + 1e-3 and np.std(unbiased) < 0.1


@pytest.mark.parametrize("measure", ["correlation", "cka"])
def test_intervals_cover_what_many_pictures_would_give(measure):
    """Of 40 samples of 50 pictures, at least 34 intervals of 95% hold the value of 3000 (36 to 40 are expected)."""

    def of(a, b):
        if measure == "cka":
            return similarity.linear_cka(a, b, unbiased=True, sample=None)
        return similarity.distance_correlation(a, b, draws=200, sample=None)

    mix = gaussian(8, 11, 77)

    def spaces(n, seed):
        a = gaussian(n, 8, seed)
        return a, a @ mix + 4 * gaussian(n, 11, seed + 5000)

    truth = of(*spaces(1500, 9999)).estimate
    found = [of(*spaces(50, seed)) for seed in range(40)]
    assert sum(one.low <= truth <= one.high for one in found) >= 34
    assert np.mean([one.high - one.low for one in found]) < 0.5


def test_a_sample_is_of_the_same_pictures_in_both_and_follows_the_seed():
    a = gaussian(200, 5)
    assert similarity.distance_correlation(a, 2 * a, sample=20, draws=100).estimate == pytest.approx(1)
    one, again, other = (similarity.linear_cka(a, gaussian(200, 5, 1), sample=20, seed=s) for s in (0, 0, 1))
    assert one == again != other and one.n == 20
    assert similarity.linear_cka(a, a, sample=500).n == 200


def test_copies_in_fp32_have_no_distance():
    x = gaussian(10, 300).astype(np.float32)[[*range(10), *range(10)]] + np.float32(100)
    for metric in ("l2", "cosine"):
        distances = similarity._distances(torch.from_numpy(x).double(), metric)
        assert (distances[np.arange(10), np.arange(10, 20)] == 0).all() and (distances[0, 1:10] > 0).all()


def test_the_table_holds_all_measures():
    a, b = two_spaces()
    frame = similarity.measure(a, b, clusters=np.arange(60) // 2, prepare="standardised")
    assert [*zip(frame["measure"], frame["metric"], strict=True)] == [
        ("pearson", "l2"), ("spearman", "l2"), ("pearson", "cosine"), ("spearman", "cosine"), ("cka", "linear"),
        ("cka_unbiased", "linear"),
    ]  # fmt: skip
    assert (
        (frame["low"] < frame["estimate"]).all() and (frame["estimate"] < frame["high"]).all() and (frame["clusters"] == 30).all()
    )
    standard = [(x - x.mean(0)) / x.std(0) for x in (a, b)]
    expected = similarity.linear_cka(*standard, clusters=np.arange(60) // 2)
    assert frame["estimate"].iloc[4] == pytest.approx(expected.estimate)


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        (lambda: similarity.distance_correlation(gaussian(5), gaussian(6)), "a has 5 rows and b 6"),
        (lambda: similarity.distance_correlation(gaussian(2), gaussian(2)), "2 clusters of pictures are too few; at least 3"),
        (lambda: similarity.linear_cka(gaussian(9), gaussian(9), clusters=np.arange(9) // 3), "3 clusters .* at least 5"),
        (lambda: similarity.linear_cka(gaussian(5), gaussian(5), clusters=np.arange(4)), "clusters has 4 rows, not 5"),
        (lambda: similarity.linear_cka(np.ones((5, 2)), gaussian(5)), "all rows of a are the same"),
        (lambda: similarity.distance_correlation(gaussian(5), np.eye(5)), "all distances in b are the same"),
        (lambda: similarity.distance_correlation(gaussian(5), np.zeros((5, 2)), "cosine"), "length 0"),
        (lambda: similarity.distance_correlation(gaussian(5), gaussian(5), "l1"), "metric='l1'"),
        (lambda: similarity.distance_correlation(gaussian(5), gaussian(5), kind="kendall"), "kind='kendall'"),
        (lambda: similarity.linear_cka(gaussian(5), np.full((5, 2), np.nan)), "b holds NaN"),
        (lambda: similarity.linear_cka(gaussian(5), gaussian(5), seed=-1), "seed=-1"),
    ],
)
def test_what_cannot_be_compared_is_named(act, fault):
    with pytest.raises(ValueError, match=fault):
        act()
