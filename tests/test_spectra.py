"""Singular values are those of the token-centred matrix; ranks and energies obey their identities; published ones agree."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.probes import spectra

RANKS = [name for name in spectra.MEASURES if "rank" in name or "energy" in name]  # of shares of energy
FEW = settings(max_examples=30, deadline=None)


def tokens(n=3, token=12, width=20, seed=0):
    return np.random.default_rng(seed).normal(size=(n, token, width))


def directly(x):
    x = np.asarray(x, np.float64)
    return np.stack([np.linalg.svd(one - one.mean(0), compute_uv=False) for one in x])


def rotation(width, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def massive(n=2, token=30, width=200):
    """A residual stream: one dimension a thousand times the others, and large means."""
    x = tokens(n, token, width)
    x[..., 5] *= 1000
    return (x + 3e4 * (np.arange(width) == 7)).astype(np.float32)


CASES = {
    "wide": tokens(),
    "tall": tokens(token=40, width=9),
    "square": tokens(token=11, width=11),
    "fp32": tokens(token=64, width=300).astype(np.float32),
    "fp16": tokens().astype(np.float16),
    "massive": massive(),
    "decaying": tokens(token=60, width=90) * np.logspace(0, -9, 90),
    "low rank": tokens(token=50, width=3) @ tokens(n=1, token=3, width=80),
    "far from 0": tokens().astype(np.float32) + np.float32(1e4),
    "panels": tokens(n=1, token=2 * spectra.PANEL + 5, width=230),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_singular_values_are_those_of_the_centred_matrix(name):
    """To 1e-7 of the largest, where 1e-4 is asked: also those that are a millionth of it, or zero."""
    x = CASES[name]
    found, expected = spectra.singular_values(x), directly(x)
    assert found.dtype == np.float32 and found.shape == expected.shape == (len(x), min(x.shape[1:]))
    assert (np.abs(found - expected) <= 1e-7 * expected.max(1, keepdims=True)).all()
    assert (np.diff(found, axis=1) <= 0).all()
    one, other = spectra.scalars(found), spectra.scalars(expected)
    ranks = [c for c in one if not c.startswith("k")]
    assert one[ranks].to_numpy() == pytest.approx(other[ranks].to_numpy(), rel=1e-4)
    assert (one.filter(like="k8").to_numpy() == other.filter(like="k8").to_numpy()).all()


def test_pictures_are_treated_one_by_one_in_bounded_blocks(monkeypatch):
    x = tokens(n=7).astype(np.float32)
    whole, cosines = spectra.singular_values(x), spectra.token_cosine(x)
    assert whole[:1] == pytest.approx(spectra.singular_values(x[:1]), rel=1e-6)
    seen, real = [], spectra._gram
    monkeypatch.setattr(spectra, "AT_ONCE", 2 * 12 * 20 + 5)
    monkeypatch.setattr(spectra, "_gram", lambda block: seen.append(len(block)) or real(block))
    assert spectra.singular_values(torch.from_numpy(x)) == pytest.approx(whole, rel=1e-6) and seen == [2, 2, 2, 1]
    pd.testing.assert_frame_equal(spectra.token_cosine(iter([x[:3], x[3:]])), cosines)


class OnDisk:
    """What can be sliced but not taken whole, as stored states are."""

    ndim = 3

    def __init__(self, x):
        self.x, self.shape = x, x.shape

    def __getitem__(self, index):
        assert isinstance(index, slice)
        return self.x[index]


def test_one_table_of_arrays_of_blocks_and_of_stores():
    x, keys = tokens(n=5), [f"0000{i}" for i in range(5)]
    frame = spectra.measure(x, keys)
    assert list(frame.columns) == spectra.COLUMNS and list(frame["key"]) == keys
    assert (frame["tokens"] == 12).all() and (frame["width"] == 20).all()
    for other in (iter([x[:2], x[2:]]), OnDisk(x), torch.from_numpy(x), [x]):
        pd.testing.assert_frame_equal(spectra.measure(other, keys), frame)
    assert (x == tokens(n=5)).all()  # what is given is not changed
    collected = spectra.collect(x, keys)
    assert (collected.singular_values == spectra.singular_values(x)).all() and collected.keys == keys
    assert frame["largest"].to_numpy() == pytest.approx(collected.singular_values[:, 0])


@pytest.mark.parametrize(
    ("x", "keys", "fault"),
    [
        (np.ones((4, 5)), [*"abcd"], r"shape \(4, 5\)"),
        (np.ones((0, 4, 5)), [], r"shape \(0, 4, 5\)"),
        (iter([]), [], "no picture"),
        (tokens(), [*"ab"], "3 pictures do not fit 2 keys"),
        (tokens(), [*"abcd"], "3 pictures do not fit 4 keys"),
        ([tokens(), tokens(token=9)], [*"abcdef"], r"\(12, 20\) and \(9, 20\)"),
        ([tokens(), np.where(np.arange(20) == 3, np.inf, tokens())], [*"abcdef"], "'d' holds NaN or infinite"),
        (np.where(np.arange(3)[:, None, None] == 2, np.nan, tokens()), ["x", "y", "00003"], "'00003' holds NaN"),
    ],
)
def test_what_cannot_be_measured_is_named(x, keys, fault):
    with pytest.raises(ValueError, match=fault):
        spectra.measure(x, keys)


def test_numbers_that_sum_beyond_fp32_are_finite_all_the_same():
    x = np.full((1, 4, 3), 3e38, np.float32) * np.array([1, 0.5, 1, 1], np.float32)[:, None]
    assert spectra.singular_values(x) == pytest.approx(directly(x), rel=1e-6, abs=1e31)


@pytest.mark.parametrize("x", [np.full((2, 1, 5), 3.3), np.full((2, 6, 5), 0.1, np.float32), tokens(2, 1, 5).repeat(9, 1)])
def test_one_token_or_equal_tokens_have_no_energy(x):
    frame = spectra.measure(x, ["a", "b"])
    assert (spectra.singular_values(x) == 0).all() and (frame["largest"] == 0).all()
    names = [*frame.filter(like="rank"), *frame.filter(like="energy")]
    assert len(names) == 8 and frame[names].isna().all(axis=None)
    assert frame["mean_pairwise_cosine"].isna().all() == (x.shape[1] == 1)
    with pytest.raises(ValueError, match="no picture has any energy"):
        spectra.spectrum(spectra.singular_values(x))


# --- what is read off ---


@FEW
@given(st.integers(1, 20), st.integers(0, 10), st.floats(1e-6, 1e6))
def test_r_equal_singular_values_have_rank_r(r, zeros, size):
    row = spectra.scalars(np.array([[size] * r + [0.0] * zeros])).iloc[0]
    assert row["effective_rank"] == pytest.approx(r) == row["effective_rank_roy_vetterli"]
    assert row["effective_rank_normalized"] == pytest.approx(r / (r + zeros))
    for k in (1, 5, 10):
        assert row[f"top{k}_energy_ratio"] == pytest.approx(min(k / r, 1))
    assert row["k80_energy"] == int(np.ceil(0.8 * r - 1e-9)) and row["k90_energy"] == int(np.ceil(0.9 * r - 1e-9))


@FEW
@given(st.lists(st.floats(0, 10), min_size=1, max_size=12).filter(lambda s: max(s) > 1e-3))
def test_scalars_equal_the_studys_formulas(s):
    """As they stand in the study's code, for one picture, with its 1e-12."""
    s = np.sort(s)[::-1]
    row = spectra.scalars(s[None]).iloc[0]
    e = s**2
    p = e / (e.sum() + 1e-12)
    assert row["effective_rank"] == pytest.approx(np.exp(-np.sum(p * np.log(p + 1e-12))), rel=1e-4)
    q = s / s.sum()
    assert row["effective_rank_roy_vetterli"] == pytest.approx(np.exp(-sum(x * np.log(x) for x in q if x)))
    assert row["effective_rank"] <= row["effective_rank_roy_vetterli"] + 1e-9 <= len(s) + 1e-6
    for k in (1, 5, 10):
        assert row[f"top{k}_energy_ratio"] == pytest.approx(e[:k].sum() / e.sum())
    for share in (80, 90):
        m = int(row[f"k{share}_energy"])
        assert e[:m].sum() / e.sum() >= share / 100 - 1e-9 and e[: m - 1].sum() / e.sum() < share / 100


@FEW
@given(st.integers(0, 2**20), st.floats(1e-3, 1e3))
def test_ranks_and_energies_do_not_change_with_rotation_scale_or_a_shift_of_all_tokens(seed, scale):
    x = tokens(2, 9, 14, seed)
    moved = scale * x @ rotation(14, seed) + tokens(1, 1, 14, seed + 1)
    one, other = (spectra.scalars(spectra.singular_values(y)).drop(columns="largest") for y in (x, moved))
    assert other.to_numpy() == pytest.approx(one.to_numpy(), rel=1e-5)
    turned = scale * x @ rotation(14, seed)
    pd.testing.assert_frame_equal(spectra.token_cosine(turned), spectra.token_cosine(x), rtol=1e-6, atol=1e-9)


def test_scalars_of_what_are_no_singular_values():
    for s, fault in ((np.ones(3), r"shape \(3,\)"), (-np.ones((1, 3)), "negative"), (np.full((1, 2), np.nan), "NaN")):
        with pytest.raises(ValueError, match=fault):
            spectra.scalars(s)


def test_token_cosines_are_those_of_all_pairs():
    x = tokens(token=9, width=4)
    unit = x / np.linalg.norm(x, axis=2, keepdims=True)
    one, other = np.triu_indices(9, 1)
    pairs = np.einsum("npw,npw->np", unit[:, one], unit[:, other])
    found = spectra.token_cosine(x)
    for name in ("mean", "std", "median"):
        assert found[f"{name}_pairwise_cosine"].to_numpy() == pytest.approx(getattr(np, name)(pairs, axis=1))
    with_zero = np.concatenate([x, np.zeros((3, 2, 4))], axis=1)
    pd.testing.assert_frame_equal(spectra.token_cosine(with_zero), found)
    assert spectra.token_cosine(with_zero[:, 8:]).isna().all(axis=None)


def test_the_mean_spectrum_is_of_each_pictures_own_energy():
    s = np.array([[4.0, 2, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    frame = spectra.spectrum(s, top=3)
    assert list(frame["component"]) == [1, 2, 3] and (frame["n"] == 2).all()
    assert frame["energy"].to_numpy() == pytest.approx([(0.8 + 0.25) / 2, (0.2 + 0.25) / 2, 0.25 / 2])
    assert frame["singular_value"].to_numpy() == pytest.approx([5 / 3, 1, 1 / 3])
    assert (frame["low"] <= frame["energy"]).all() and (frame["energy"] <= frame["high"]).all()


def test_the_summary_is_of_means_and_counts_pictures_without_energy():
    x = tokens(n=8)
    x[3] = 1.0
    frame = pd.concat([spectra.measure(x * 2**i, [*"abcdefgh"]).assign(site=site) for i, site in enumerate(("pre", "post"))])
    table = spectra.summary(frame, ["site"], n=200).set_index(["site", "measure"])
    assert set(table.index.get_level_values(1)) == set(spectra.MEASURES) and len(table) == 24
    for site, own in frame.groupby("site"):
        for measure in spectra.MEASURES:
            row, values = table.loc[site, measure], own[measure].dropna()
            assert row["estimate"] == pytest.approx(values.mean()) and row["low"] <= row["estimate"] <= row["high"]
            assert row["std"] == pytest.approx(values.std(ddof=0)) and row["median"] == pytest.approx(values.median())
            assert (row["n"], row["undefined"]) == ((8, 0) if measure not in RANKS else (7, 1))
    whole = spectra.summary(frame, clusters=np.repeat(np.arange(8), 2), measures=["largest"], n=200)
    assert len(whole) == 1 and whole["n"][0] == 16 and whole["clusters"][0] == 8
    alone = spectra.summary(frame.iloc[3:5], measures=["effective_rank"]).iloc[0]
    assert np.isnan(alone["estimate"]) and alone["n"] == 1 == alone["undefined"]
    with pytest.raises(ValueError, match="no column 'rank'"):
        spectra.summary(frame, measures=["rank"])
    with pytest.raises(ValueError, match="clusters has 2 rows, not 16"):
        spectra.summary(frame, clusters=np.arange(2))


# --- published numbers ---


def test_published_scalars_are_of_the_same_definitions(real_data):
    """Normalised rank is rank over min(T, D); energies are sums of the mean spectrum; ranks lie within what spectra allow."""
    shapes = {("llava", "pre"): (576, 1024), ("llava", "post"): (576, 4096),
              ("qwen2.5vl", "pre"): (576, 1280), ("qwen2.5vl", "post"): (144, 3584)}  # fmt: skip
    seen = 0
    for path in sorted((real_data / "vlm_connectors" / "sample" / "knn_out").glob("*/*/*.json")):
        content = json.loads(path.read_text())["global"]["spectrum_and_rank"]
        for side in ("pre", "post"):
            found = content[f"{side}_summary"]
            rank = found["effective_rank_mean"]
            assert found["effective_rank_normalized_mean"] == pytest.approx(rank / min(shapes[path.parts[-3], side]), rel=1e-5)
            energy = np.array(found["mean_energy_spectrum_topn"])
            for k in (1, 5, 10):
                assert energy[:k].sum() == pytest.approx(found[f"top{k}_energy_ratio_mean"], rel=1e-4)
            assert 1 / found["top1_energy_ratio_mean"] < rank < 1 + min(shapes[path.parts[-3], side])  # no entropy below that
            assert found["k80_energy_mean"] <= found["k90_energy_mean"]
            seen += 1
    assert seen == 56
