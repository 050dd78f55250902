"""Neighbours are those of fp64 distances; overlap, displacement, chance and floors obey their identities; bad input is named."""

import csv
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spatialprobes.probes import duplicates, neighbour_search, neighbours

FEW = settings(max_examples=30, deadline=None)
KS = (10, 50, 100)


def directly(x, k, metric="l2"):
    """By fp64 differences, one row after another, ties by the lower row."""
    x = np.asarray(x, np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    lists = []
    for i, row in enumerate(x):
        apart = ((row - x) ** 2).sum(1)
        apart[i] = np.inf
        lists.append(np.lexsort((np.arange(len(x)), apart))[:k])
    return np.array(lists)


def gaussian(n=120, width=16, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width))


def rotation(width, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def keyed(n, folders=1):
    return [f"{i % folders:05}/{i:09}.jpg" for i in range(n)]


def massive(n=120, width=16):
    """Residual streams: one dimension a thousand times the others, and a mean far from 0."""
    x = gaussian(n, width)
    x[:, 3] *= 1000
    return x.astype(np.float32) + np.float32(5000)


HARD = {
    "gaussian": gaussian(),
    "fp32": gaussian().astype(np.float32),
    "far from 0": gaussian().astype(np.float32) + np.float32(10_000),
    "massive": massive(),
    "grid, many ties": np.random.default_rng(1).integers(1, 3, (150, 5)).astype(np.float32),
    "all equal": np.full((70, 4), 0.1, np.float32),
    "copies": np.repeat(gaussian(12), 12, axis=0).astype(np.float32),
    "a crowd of copies": np.concatenate([gaussian(40), np.ones((60, 16))]),
    "huge": gaussian() * 1e30,
    "tiny": gaussian() * 1e-30,
    "one number": np.arange(1.0, 90)[:, None] ** 2,
    "nearly equal": 1 + 1e-6 * gaussian().astype(np.float64),
}


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("name", sorted(HARD))
def test_lists_are_those_of_fp64_distances(name, metric):
    x = HARD[name]
    if metric == "cosine" and name == "one number":
        x = np.concatenate([x, x[::-1]], axis=1)  # in one dimension every direction is the same
    if metric == "cosine" and name == "grid, many ties":
        x = x[:, :1] * [3.0, 4.0]  # lengths that are no roots: which of two equal cosines is larger is chance otherwise
    for k in (1, 7, 40):
        found = neighbours.nearest(x, k, metric=metric, block=32)
        assert found.shape == (len(x), k) and (found == directly(x, k, metric)).all()


def test_a_crowd_is_looked_through_in_parts(monkeypatch):
    x = HARD["a crowd of copies"]
    monkeypatch.setattr(neighbour_search, "CROWD", 250)
    assert (neighbours.nearest(x, 7, block=64) == directly(x, 7)).all()


@FEW
@given(
    arrays(np.float32, st.tuples(st.integers(3, 30), st.integers(1, 4)), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 30),
    st.integers(1, 9),
)
@example(np.zeros((40, 2), np.float32), 20, 7)
def test_ties_go_to_the_lower_row(x, k, block):
    k = min(k, len(x) - 1)
    assert (neighbours.nearest(x, k, block=block) == directly(x, k)).all()


def test_scores_err_by_less_than_is_allowed_for():
    """The error that is measured on some scores bounds that of all of them; a bound of a hundredth would not."""
    for x in (massive(700, 300), gaussian(700, 300), gaussian(700, 300) + 3):
        gallery = neighbour_search._Gallery(neighbour_search.checked(x), "l2", torch.device("cpu"))
        scores = gallery._scores(slice(0, 700), torch.empty(700, 700))
        points = gallery.points.double()
        squares = points.square().sum(1)
        exactly = points @ points.T - squares / 2
        off = (scores.double() - exactly).abs() / (torch.outer(squares.sqrt(), squares.sqrt()) + squares / 2)
        assert gallery._error(scores) / 100 < float(off.max()) < gallery._error(scores)


def test_the_studys_scores_lose_neighbours_that_differences_keep():
    x = HARD["far from 0"]
    published, found = neighbours.nearest_as_published(x, 10), neighbours.nearest(x, 10)
    assert neighbours.overlap(found, directly(x, 10)).mean() == 1
    assert neighbours.overlap(published, directly(x, 10)).mean() < 0.9
    near_zero = gaussian()
    assert (neighbours.nearest_as_published(near_zero, 10, block=7) == directly(near_zero, 10)).all()


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, torch.bfloat16])
def test_any_kind_of_number_and_tensor(kind):
    x = torch.from_numpy(gaussian()).to(kind) if isinstance(kind, torch.dtype) else gaussian().astype(kind)
    values = x.double().numpy() if isinstance(x, torch.Tensor) else x
    assert (neighbours.nearest(x, 9) == directly(values, 9)).all()


def test_precision_that_a_caller_allows_elsewhere_is_not_used_here():
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert (neighbours.nearest(gaussian(), 9) == directly(gaussian(), 9)).all()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_more_than_a_block_of_scores_is_held(monkeypatch):
    seen, real = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, **more: seen.append(more["out"]) or real(*args, **more))
    found = neighbours.nearest(gaussian(), 5, block=25)
    assert {tuple(part.shape) for part in seen} == {(25, 120), (20, 120)}
    assert len({part.data_ptr() for part in seen}) == 1
    assert (found == neighbours.nearest(gaussian(), 5, block=1000)).all()


def test_galleries_of_a_label_are_searched_alone():
    x, labels = gaussian(90), np.array(["b", "a", "c"] * 30)
    found = neighbours.nearest(x, 6, groups=labels)
    for label in "abc":
        members = np.flatnonzero(labels == label)
        assert (found[members] == members[directly(x[members], 6)]).all()
    published = neighbours.nearest_as_published(x, 6, groups=labels)
    assert (published == found).all()


def test_the_image_itself_comes_first_where_it_is_included():
    x = np.repeat(gaussian(10), 3, axis=0)
    found = neighbours.nearest(x, 5, include_self=True)
    assert (found[:, 0] == np.arange(30)).all() and (found[:, 1:] == directly(x, 4)).all()
    assert (neighbours.nearest(x, 1, include_self=True)[:, 0] == np.arange(30)).all()


def test_too_few_rows_are_refused_or_the_lists_shortened():
    x = gaussian(4)
    with pytest.raises(ValueError, match=r"4 nearest others .* of 4 rows, which have 3"):
        neighbours.nearest(x, 4)
    with pytest.raises(ValueError, match="few='shorten'"):
        neighbours.nearest_as_published(x, 4)
    found = neighbours.nearest(x, 6, few="shorten")
    assert (found[:, :3] == directly(x, 3)).all() and (found[:, 3:] == -1).all()
    assert neighbours.nearest(x, 4, include_self=True).shape == (4, 4)
    assert (neighbours.nearest(x[:1], 2, few="shorten") == -1).all()
    assert (neighbours.overlap(found, found) == 1).all()
    other = found[:, [2, 1, 0, 3, 4, 5]]
    assert neighbours.rank_displacement(found, other) == pytest.approx(np.full(4, 4 / 3))


@pytest.mark.parametrize(
    ("x", "options", "fault"),
    [
        (np.zeros(4), {}, r"shape \(4,\)"),
        (np.zeros((0, 4)), {}, r"shape \(0, 4\)"),
        (np.array([[1.0, 2], [np.nan, 1], [3, 4]]), {}, "NaN or infinite numbers in 1 of 3 rows, first row 1"),
        (np.array([[1.0, 2], [2, 1], [np.inf, 4]]), {}, "first row 2"),
        (np.array([[1.0, 2], [0, 0], [3, 4]]), {"metric": "cosine"}, "length 0 and no direction, first row 1"),
        (gaussian(), {"metric": "l1"}, "metric='l1' is not one of l2, cosine"),
        (gaussian(), {"k": 0}, "k=0"),
        (gaussian(), {"few": "cut"}, "few='cut'"),
        (gaussian(), {"groups": np.zeros(3)}, r"groups has shape \(3,\), not \(120,\)"),
    ],
)
def test_what_cannot_be_searched_is_named(x, options, fault):
    with pytest.raises(ValueError, match=fault):
        neighbours.nearest(x, **{"k": 1, **options})


def test_large_numbers_that_sum_beyond_fp32_are_finite_all_the_same():
    x = np.full((5, 4), 3e38, np.float32) * (np.arange(1, 6) / 5).astype(np.float32)[:, None] ** 2
    assert (neighbours.nearest(x, 2) == directly(x, 2)).all()


def test_prepared_rows():
    x = gaussian().astype(np.float32) * 7 + 3
    x[:, 2] = 0.1
    assert neighbours.prepared(x, "raw").numpy() is not None and (neighbours.prepared(x, "raw").numpy() == x).all()
    centred, standard = (neighbours.prepared(x, how).numpy() for how in ("centred", "standardised"))
    assert centred.mean(0) == pytest.approx(np.zeros(16), abs=1e-5)
    assert standard.std(0) == pytest.approx([1, 1, 0, *[1] * 13], abs=1e-5) and (standard[:, 2] == 0).all()
    assert standard == pytest.approx(centred / np.where(centred.std(0) < 1e-6, np.inf, centred.std(0)), abs=1e-5)
    with pytest.raises(ValueError, match="prepare='white'"):
        neighbours.prepared(x, "white")


# --- overlap and displacement ---


def lists_of(n=25, k=8, most=14):
    one = st.permutations(range(most)).map(lambda order: order[:k])
    return st.tuples(*(st.lists(one, min_size=n, max_size=n).map(np.array) for _ in "ab"))


@FEW
@given(lists_of(n=4), st.integers(1, 8))
def test_overlap_and_displacement_equal_loops(pair, k):
    a, b = pair
    shared, moved = [], []
    for mine, theirs in zip(a[:, :k].tolist(), b[:, :k].tolist(), strict=True):
        shared.append(len(set(mine) & set(theirs)) / k)
        moved.append(sum(abs(j - theirs.index(one)) if one in theirs else k for j, one in enumerate(mine)) / k)
    assert neighbours.overlap(a, b, k) == pytest.approx(shared)
    assert neighbours.rank_displacement(a, b, k) == pytest.approx(moved)
    assert (neighbours.overlap(a, b, k) == neighbours.overlap(b, a, k)).all()
    low = k * (1 - neighbours.overlap(a, b, k))  # those that are not there count k each
    moved = neighbours.rank_displacement(a, b, k)
    assert (moved >= low - 1e-9).all() and (moved <= k).all()


@FEW
@given(lists_of(n=3, k=5, most=11))
def test_displacement_is_0_for_the_same_order_only_and_k_for_nobody_shared_only(pair):
    a, b = pair
    moved = neighbours.rank_displacement(a, b)
    assert ((moved == 0) == (a == b).all(1)).all()
    assert ((moved == 5) == (neighbours.overlap(a, b) == 0)).all()
    assert (neighbours.rank_displacement(a, a + 100) == 5).all() and (neighbours.overlap(a, a + 100) == 0).all()


def test_blocks_of_images_make_no_difference(monkeypatch):
    a, b = directly(gaussian(), 20), directly(gaussian(seed=1), 20)
    whole = neighbours.overlap(a, b), neighbours.rank_displacement(a, b)
    monkeypatch.setattr(neighbours, "ROWS", 7)
    for one, other in zip(whole, (neighbours.overlap(a, b), neighbours.rank_displacement(a, b)), strict=True):
        assert (one == other).all()


def test_lists_that_do_not_fit_are_named():
    a = directly(gaussian(), 5)
    with pytest.raises(ValueError, match=r"shapes \(120, 5\) and \(119, 5\)"):
        neighbours.overlap(a, a[1:])
    with pytest.raises(ValueError, match="k=6 of lists that hold 5 and 5"):
        neighbours.rank_displacement(a, a, 6)
    with pytest.raises(ValueError, match="stands twice"):
        neighbours.overlap(a, a[:, [0, 0, 1, 2, 3]])
    with pytest.raises(ValueError, match="different numbers"):
        neighbours.overlap(a, np.where(np.arange(5) > 2, -1, a))
    with pytest.raises(ValueError, match="120 images have no neighbour"):
        neighbours.overlap(np.full_like(a, -1), np.full_like(a, -1))


# --- the identities of KNOR ---


@FEW
@given(st.integers(0, 2**20), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.sampled_from([1, 3, 20]))
def test_knor_is_1_for_what_moves_nobody(seed, scale, shift, k):
    """Rotation, scale and translation under l2; rotation and scale of each row under cosine. Another space: not 1."""
    x = gaussian(60, 8, seed)
    moved = scale * x @ rotation(8, seed) + shift
    assert (neighbours.overlap(neighbours.nearest(x, k), neighbours.nearest(moved, k)) == 1).all()
    turned = np.exp(gaussian(60, 1, seed + 1)) * (x @ rotation(8, seed))
    lists = (neighbours.nearest(y, k, metric="cosine") for y in (x, turned))
    assert (neighbours.overlap(*lists) == 1).all()
    assert neighbours.overlap(neighbours.nearest(x, 20), neighbours.nearest(turned, 20)).mean() < 1


def test_cosine_hangs_on_the_origin_until_rows_are_centred():
    x = gaussian()
    shifted = x + 20
    frames = {
        how: neighbours.measure(x, shifted, keyed(120), ks=(10,), metric="cosine", prepare=how) for how in ("raw", "centred")
    }
    assert frames["raw"]["knor"].mean() < 0.8 and (frames["centred"]["knor"] == 1).all()
    scaled = x * np.geomspace(1, 50, 16)
    frames = {how: neighbours.measure(x, scaled, keyed(120), ks=(10,), prepare=how) for how in ("raw", "standardised")}
    assert frames["raw"]["knor"].mean() < 0.8
    assert neighbours.overlap(
        neighbours.nearest(neighbours.prepared(x, "standardised"), 10),
        neighbours.nearest(neighbours.prepared(scaled, "standardised"), 10),
    ).mean() == 1 == frames["standardised"]["knor"].mean()  # fmt: skip


def test_unrelated_spaces_share_what_chance_gives():
    many = [
        neighbours.overlap(
            neighbours.nearest(gaussian(60, 6, seed), 9), neighbours.nearest(gaussian(60, 6, seed + 999), 9)
        ).mean()
        for seed in range(40)
    ]
    error = np.std(many) / np.sqrt(len(many))
    assert abs(np.mean(many) - neighbours.chance(60, 9)) < 3.5 * error < 0.1 * neighbours.chance(60, 9)
    assert neighbours.chance(60, 9) == 9 / 59 and neighbours.chance(5, 9) == 1
    assert neighbours.chance(np.array([11, 21]), 10) == pytest.approx([1.0, 0.5])


@FEW
@given(st.lists(st.integers(1, 9), min_size=4, max_size=9), st.integers(1, 6), st.integers(0, 99))
def test_copies_alone_give_the_floor(sizes, k, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    k = min(k, len(labels) - 1)
    floor = neighbours.duplicate_floor(labels, k)
    assert floor == pytest.approx(np.minimum(np.array(sizes)[labels] - 1, k) / k)
    a, b = (gaussian(len(sizes), 5, seed + extra)[labels] for extra in (0, 1000))
    shared = neighbours.overlap(neighbours.nearest(a, k), neighbours.nearest(b, k))
    assert (shared >= floor - 1e-12).all()


@FEW
@given(st.integers(0, 2**20), st.integers(2, 12))
def test_including_the_image_itself_is_an_identity(seed, k):
    a, b = gaussian(30, 5, seed), gaussian(30, 5, seed) + 2 * gaussian(30, 5, seed + 1)
    excluded = neighbours.overlap(neighbours.nearest(a, k - 1), neighbours.nearest(b, k - 1))
    within = neighbours.overlap(*(neighbours.nearest(x, k, include_self=True) for x in (a, b)))
    assert within == pytest.approx((1 + (k - 1) * excluded) / k, abs=1e-12)
    assert neighbours.included(excluded, k) == pytest.approx(within, abs=1e-12)
    frame = neighbours.measure(a, b, keyed(30), ks=(k,), include_self=True)
    assert frame["knor"].to_numpy() == pytest.approx(within)
    assert frame["chance"].to_numpy() == pytest.approx((1 + (k - 1) * (k - 1) / 29) / k)
    assert (frame["floor"] == 1 / k).all() and neighbours.included(0.3, 1) == 1


# --- the table and its summary ---


def two_spaces(n=120, noise=1.0):
    return gaussian(n), gaussian(n) + noise * gaussian(n, seed=1)


def test_the_table_holds_a_row_an_image_and_k():
    a, b = two_spaces()
    keys = keyed(120, folders=2)
    frame = neighbours.measure(a, b, keys, ks=(5, 20))
    assert list(frame.columns) == neighbours.COLUMNS and len(frame) == 240
    assert list(frame["key"][:120]) == keys and set(frame["folder"]) == {"00000", "00001"}
    for k, part in frame.groupby("k"):
        lists = directly(a, k), directly(b, k)
        assert part["knor"].to_numpy() == pytest.approx(neighbours.overlap(*lists))
        assert part["displacement"].to_numpy() == pytest.approx(neighbours.rank_displacement(*lists))
        assert (part["chance"] == k / 119).all() and (part["floor"] == 0).all() and (part["gallery_size"] == 120).all()


def test_the_gallery_of_a_folder_is_the_folder():
    a, b = two_spaces()
    keys = keyed(120, folders=3)
    frame = neighbours.measure(a, b, keys, ks=(5,), gallery="folder").set_index("key")
    assert (frame["gallery_size"] == 40).all() and (frame["chance"] == 5 / 39).all()
    for folder in range(3):
        members = np.arange(folder, 120, 3)
        alone = neighbours.measure(a[members], b[members], [keys[i] for i in members], ks=(5,))
        assert (frame.loc[alone["key"], "knor"].to_numpy() == alone["knor"].to_numpy()).all()
    assert (frame["knor"].to_numpy() != neighbours.measure(a, b, keys, ks=(5,))["knor"].to_numpy()).any()


def test_deduplication_keeps_the_first_key_of_each_group_as_query_and_neighbour():
    a, b = two_spaces(40)
    labels = np.array([*range(40), *range(20)])
    a, b, order = a[labels], b[labels], np.random.default_rng(0).permutation(60)
    keys = [keyed(60)[i] for i in order]  # key i goes with row order.index(i): representatives are not the first rows
    place = np.argsort(order)
    kept = [keyed(60)[i] for i in range(60) if i == min(j for j in range(60) if labels[place[j]] == labels[place[i]])]
    frame = neighbours.measure(a, b, keys, ks=(6,), duplicates=labels, deduplicate=True)
    assert sorted(frame["key"]) == sorted(kept) and len(frame) == 40 and (frame["gallery_size"] == 40).all()
    assert (frame["floor"] == 0).all() and (frame["chance"] == 6 / 39).all()
    single = neighbours.measure(*two_spaces(40), keyed(40), ks=(6,))
    assert frame["knor"].mean() == pytest.approx(single["knor"].mean())
    doubled = neighbours.measure(a, b, keys, ks=(6,), duplicates=labels)
    assert doubled["floor"].mean() == pytest.approx(40 / 60 / 6) and set(doubled["cluster"]) == set(range(40))


def test_copies_in_another_folder_are_no_copies_in_a_folders_gallery():
    labels = np.repeat(np.arange(10), 2)
    keys = [f"{i % 2}/{i:02}" for i in range(20)]
    a, b = (x[labels] for x in two_spaces(10))
    frame = neighbours.measure(a, b, keys, ks=(3,), gallery="folder", duplicates=labels, deduplicate=True)
    assert len(frame) == 20 and (frame["floor"] == 0).all() and (frame["gallery_size"] == 10).all()


def test_shortened_galleries_say_what_there_is():
    a, b = two_spaces(12)
    keys = [f"{'small' if i < 3 else 'large'}/{i}" for i in range(12)]
    with pytest.raises(ValueError, match=r"5 nearest others .* of 3 rows"):
        neighbours.measure(a, b, keys, ks=(5,), gallery="folder")
    frame = neighbours.measure(a, b, keys, ks=(5,), gallery="folder", few="shorten")
    small = frame[frame["folder"] == "small"]
    assert (small["knor"] == 1).all() and (small["chance"] == 1).all() and (small["gallery_size"] == 3).all()


def test_the_published_form_can_be_chosen():
    x = HARD["far from 0"]
    y = x + 0.3 * gaussian(seed=5).astype(np.float32)
    ours = neighbours.measure(x, y, keyed(120), ks=(10,))
    published = neighbours.measure(x, y, keyed(120), ks=(10,), definition="as_published")
    lists = (neighbours.nearest_as_published(z, 10) for z in (x, y))
    assert (published["knor"].to_numpy() == neighbours.overlap(*lists)).all()
    assert published["knor"].mean() != ours["knor"].mean()
    with pytest.raises(ValueError, match="metric='l2'"):
        neighbours.measure(x, y, keyed(120), ks=(10,), definition="as_published", metric="cosine")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"keys": keyed(119)}, "a has 120 rows, not 119 as keys"),
        ({"b": gaussian(7)}, "b has 7 rows, not 120"),
        ({"keys": ["x"] * 120}, "119 keys stand twice, first 'x'"),
        ({"keys": list(range(120))}, "keys are strings, not int as 0"),
        ({"duplicates": np.zeros(3)}, "duplicates has 3 rows"),
        ({"clusters": np.zeros(3)}, "clusters has 3 rows"),
        ({"ks": ()}, "at least one k"),
        ({"ks": (0, 5)}, r"ks=\(0, 5\)"),
        ({"gallery": "shard"}, "gallery='shard' is not one of all, folder"),
        ({"definition": "mine"}, "definition='mine'"),
        ({"prepare": "white"}, "prepare='white'"),
        ({"seed": -1}, "seed=-1"),
        ({"b": np.where(np.arange(120)[:, None] == 17, np.nan, gaussian())}, r"b holds NaN .* '00000/000000017.jpg' \(row 17\)"),
    ],
)
def test_what_cannot_be_measured_is_named(change, fault):
    a, b = two_spaces()
    given_ = {"a": a, "b": b, "keys": keyed(120), "ks": (5,)} | change
    with pytest.raises(ValueError, match=fault):
        neighbours.measure(given_.pop("a"), given_.pop("b"), given_.pop("keys"), **given_)


def test_the_summary_is_of_means_with_intervals_that_hold_them():
    a, b = two_spaces(60)
    labels = np.array([*range(40), *range(20)])
    frame = neighbours.measure(a[labels], b[labels], keyed(60, folders=2), ks=(5, 10), duplicates=labels)
    table = neighbours.summary(frame, n=300).set_index("k")
    for k, part in frame.groupby("k"):
        row = table.loc[k]
        means = part[["knor", "floor", "chance", "displacement"]].mean()
        assert row[["knor", "floor", "chance", "displacement"]].to_numpy(float) == pytest.approx(means.to_numpy())
        assert row["excess"] == pytest.approx((means["knor"] - means["floor"]) / (1 - means["floor"]))
        for name, low, high in (("knor", "low", "high"), ("excess", "excess_low", "excess_high"),
                                ("displacement", "displacement_low", "displacement_high")):  # fmt: skip
            assert row[low] < row[name] < row[high]
        assert row["n"] == 60 and row["clusters"] == 40
        assert row["std"] == pytest.approx(part["knor"].std(ddof=0)) and row["median"] == part["knor"].median()
    parts = neighbours.summary(frame, by=["folder"], n=300)
    assert list(parts["folder"]) == ["00000", "00001"] * 2 and (parts["n"] == 30).all()


def test_an_interval_covers_the_mean_over_images_as_often_as_it_says():
    """Clusters of two that agree: rows taken as independent would give an interval too narrow by a factor of root 2."""
    values = np.random.default_rng(0).uniform(size=200)
    frame = pd.DataFrame({"key": range(400), "folder": "", "cluster": np.repeat(range(200), 2), "k": 10,
                          "knor": np.repeat(values, 2), "displacement": 1.0, "chance": 0.1, "floor": 0.0})  # fmt: skip
    row = neighbours.summary(frame, n=1000).iloc[0]
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.15)


def test_a_gallery_of_copies_alone_has_no_excess():
    x = np.ones((6, 3))
    frame = neighbours.measure(x, x, keyed(6), ks=(2,), duplicates=np.zeros(6, int), clusters=np.arange(6))
    row = neighbours.summary(frame, n=100).iloc[0]
    assert row["knor"] == 1 == row["floor"] and np.isnan(row["excess"])


# --- published numbers ---


def published_folders(real_data):
    """(model, folder, content of the JSON, images) of every folder of the sample."""
    root = real_data / "vlm_connectors" / "sample"
    for path in sorted((root / "knn_out").glob("*/*/overlap_top100_l2_torch.json")):
        model, folder = path.parts[-3:-1]
        with (root / "recon_pre_eval" / model / f"{folder}.csv").open() as lines:
            images = sum(1 for _ in csv.reader(lines)) - 1
        yield model, folder, json.loads(path.read_text()), images


def test_published_overlaps_are_counts_and_bound_displacement(real_data):
    """Mean KNOR times k and images is a whole number; those not shared count k; a longer list shares no fewer."""
    folders = list(published_folders(real_data))
    assert len(folders) == 28
    for *_, content, images in folders:
        counts = [content[f"top{k}"]["mean"] * k * images for k in KS]
        assert counts == pytest.approx(np.round(counts), abs=0.02 * max(1, counts[-1] * 6e-6))
        assert counts == sorted(counts)
        for k in KS:
            knor, moved = content[f"top{k}"]["mean"], content[f"top{k}"]["mean_rank_displacement"]
            assert k * (1 - knor) < moved < k
            assert knor > neighbours.chance(images, k)


def test_published_means_weighted_by_images_give_the_published_table(real_data):
    expected = pd.read_csv(real_data / "vlm_connectors" / "expected" / "knn_summary_per_model.csv").set_index("model")
    rows = pd.DataFrame(
        {"model": model, "n": n, "k": k, "mean": content[f"top{k}"]["mean"], "std": content[f"top{k}"]["std"]}
        for model, _, content, n in published_folders(real_data)
        for k in KS
    )
    for (model, k), part in rows.groupby(["model", "k"]):
        mean = np.average(part["mean"], weights=part["n"])
        std = np.sqrt(np.average(part["std"] ** 2 + part["mean"] ** 2, weights=part["n"]) - mean**2)
        assert round(mean, 4) == expected.loc[model, f"pre_post_knor{k}_mean"]
        assert round(std, 4) == expected.loc[model, f"pre_post_knor{k}_std"]


def test_the_floor_of_the_studys_duplicates(real_data):
    """Groups of equal reconstruction scores: half of a folder has a copy in it, and the floor is under what was published."""
    floors, copied, largest = [], [], 0
    for model, folder, content, _ in published_folders(real_data):
        path = real_data / "vlm_connectors" / "sample" / "recon_pre_eval" / model / f"{folder}.csv"
        labels = duplicates.exact(pd.read_csv(path)[["mse_pre", "cosine_pre"]].to_numpy())
        sizes = duplicates.multiplicity(labels)
        floor = [neighbours.duplicate_floor(labels, k).mean() for k in KS]
        assert all(content[f"top{k}"]["mean"] > least for k, least in zip(KS, floor, strict=True))
        floors.append(floor)
        copied.append((sizes > 1).mean())
        largest = max(largest, sizes.max())
    assert np.mean(floors, axis=0) == pytest.approx([0.170, 0.041, 0.021], abs=6e-4)
    assert np.mean(copied) == pytest.approx(0.494, abs=0.002) and largest == 57
