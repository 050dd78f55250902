"""Measures of swap pairs: closed forms, slow forms, identities, and what they say where there is nothing to say."""

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge

from spatialprobes.pairs import CATEGORIES, GROUP_OF, OPPOSITE, SIGN
from spatialprobes.probes.swap_accuracy import reliable
from spatialprobes.probes.swap_intervals import _products, cross_cosine, mean_cosine, weights
from spatialprobes.probes.swap_measures import (
    _label_null,
    _Sample,
    accuracy,
    alignment,
    consistency,
    mean_pairwise_cosine,
    similarity,
    variants,
)
from spatialprobes.probes.swap_probe import PENALTY, _hat, linear_probe
from spatialprobes.probes.swap_projection import fit, projection
from spatialprobes.probes.swap_resampling import label_shuffles, reduced
from spatialprobes.probes.swap_states import States, from_arrays

FEW = {"n": 100}


def frame(categories, clusters=None):
    ids = [f"pair-{i}" for i in range(len(categories))]
    pairs = pd.DataFrame({"pair": ids, "category": list(categories), "cluster": ids if clusters is None else list(clusters)})
    return pairs.assign(group=pairs["category"].map(GROUP_OF))


def random_states(seed=0, each=8, width=6, layers=(0, 1), pictures=None, categories=CATEGORIES, place=0.0):
    """Every category `each` times, its pairs dealt to pictures in turn; `place` moves deltas along one axis of its group."""
    generator = np.random.default_rng(seed)
    names = np.repeat(categories, each)
    clusters = None if pictures is None else [f"picture-{i % pictures}" for i in range(len(names))]
    axes = np.eye(width)[[list(dict.fromkeys(GROUP_OF.values())).index(GROUP_OF[name]) for name in names]]
    signs = np.array([SIGN[name] for name in names])[:, None]
    original = {layer: generator.normal(size=(len(names), width)) - place * signs * axes / 2 for layer in layers}
    swapped = {layer: generator.normal(size=(len(names), width)) + place * signs * axes / 2 for layer in layers}
    return from_arrays(frame(names, clusters), original, swapped)


def answers_of(states, original=True, swapped=True, **columns):
    """Rows of both members; original, swapped: right or wrong, for all pairs or each."""
    rows = []
    for member, right in (("original", original), ("swapped", swapped)):
        part = states.pairs.assign(member=member, correct=right, correct_logprob=right, correct_published=right, parsed=True)
        rows.append(part)
    return pd.concat(rows, ignore_index=True).assign(**columns)


def mapped(states, change):
    """The same pairs with other states: change(original, swapped) of each layer."""
    both = {layer: change(states.original(layer), states.swapped(layer)) for layer in states.layers}
    return from_arrays(states.pairs, {k: v[0] for k, v in both.items()}, {k: v[1] for k, v in both.items()})


def one(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# --- mean pairwise cosine ---


finite = st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-3)


@given(arrays(float, st.tuples(st.integers(0, 9), st.integers(1, 5)), elements=st.one_of(finite, st.just(np.nan))))
@settings(deadline=None, max_examples=150)
def test_mean_pairwise_cosine_is_the_mean_of_the_upper_triangle(x):
    rows = [row for row in x if np.isfinite(row).all() and row.any()]
    slow = [cosine(rows[i], rows[j]) for i in range(len(rows)) for j in range(i + 1, len(rows))]
    got = mean_pairwise_cosine(x)
    assert got == pytest.approx(np.mean(slow), abs=1e-12) if slow else np.isnan(got)


def test_mean_pairwise_cosine_of_known_rows():
    assert mean_pairwise_cosine(np.eye(4)) == pytest.approx(0)
    assert mean_pairwise_cosine(np.outer([1, 2, 3], [0.3, 0.4])) == pytest.approx(1)
    assert mean_pairwise_cosine(np.array([[1.0, 0], [-5, 0]])) == pytest.approx(-1)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        mean_pairwise_cosine(np.ones(3))


# --- consistency ---


def slow_cross(unit, labels, clusters):
    """Each two rows of different pictures, averaged within and between labels apart, labels alike in weight."""
    kinds = sorted(set(labels))
    cells = []
    for a in kinds:
        for b in kinds:
            cells.append(
                np.mean(
                    [
                        unit[i] @ unit[j]
                        for i in range(len(unit))
                        for j in range(len(unit))
                        if clusters[i] != clusters[j] and labels[i] == a and labels[j] == b
                    ]
                )
            )
    return np.mean(cells)


def test_consistency_is_the_mean_cosine_between_pictures():
    states = random_states(1, each=7, pictures=9, place=1.0)
    table = consistency(states, **FEW)
    for layer in states.layers:
        delta = states.delta(layer)
        unit = delta / np.linalg.norm(delta, axis=1, keepdims=True)
        for name, members in [("right", ["right"]), ("vertical", ["above", "under"])]:
            keep = states.pairs["category"].isin(members).to_numpy()
            clusters, labels = states.pairs["cluster"].to_numpy()[keep], states.pairs["category"].to_numpy()[keep]
            turned = unit[keep] * states.signs[keep][:, None]
            row = one(table, layer=layer, of=name, control="none")
            assert row["estimate"] == pytest.approx(slow_cross(turned, labels, clusters))
            assert row["upper_triangle"] == pytest.approx(mean_pairwise_cosine(turned))
            triangle = (turned @ turned.T)[np.triu_indices(keep.sum(), 1)]
            assert row["std"] == pytest.approx(triangle.std())
            assert (row["n"], row["clusters"]) == (keep.sum(), len(set(clusters)))
            assert row["low"] <= row["estimate"] <= row["high"]


def test_with_one_pair_a_picture_a_category_has_the_published_number():
    table = consistency(random_states(2), **FEW)
    within = table[(table["measure"] == "within") & (table["control"] == "none")]
    assert within["estimate"].to_numpy() == pytest.approx(within["upper_triangle"].to_numpy())


def test_interval_of_the_cross_cosine_agrees_with_a_plain_loop():
    """Draws written out pair by pair, each with a jackknife that leaves out one drawn cluster after another."""
    generator = np.random.default_rng(3)
    clusters, width, draws = 6, 3, 100
    rows = generator.integers(1, 4, (2, clusters)).astype(float)
    sums = 0.2 * (generator.normal(size=(2, clusters, width)) + 1) * rows[:, :, None]
    drawn = weights(clusters, draws, 0)

    def statistic(chosen, sums):
        cells = []
        for a in range(2):
            for b in range(2):
                pairs = [(i, j) for x, i in enumerate(chosen) for y, j in enumerate(chosen) if x != y]
                many = sum(rows[a, i] * rows[b, j] for i, j in pairs)
                cells.append(sum(sums[a, i] @ sums[b, j] for i, j in pairs) / many if many else np.nan)
        return np.mean(cells)

    def with_error(chosen, sums):
        left = [statistic(np.delete(chosen, k), sums) for k in range(len(chosen))]
        return statistic(chosen, sums), np.sqrt((len(left) - 1) / len(left) * np.sum((left - np.mean(left)) ** 2))

    estimate, error = with_error(np.arange(clusters), sums)
    mean = np.mean([sums[a].sum(axis=0) / rows[a].sum() for a in range(2)], axis=0)
    kept = np.sqrt(min(max(estimate, 0) / (mean @ mean), 1))
    moved = sums - (1 - kept) * rows[:, :, None] * mean
    found = np.array([with_error(np.repeat(np.arange(clusters), counts.astype(int)), moved) for counts in drawn])
    found = found[found[:, 1] > 0]
    high, low = estimate - error * np.quantile((found[:, 0] - max(estimate, 0)) / found[:, 1], [0.025, 0.975])
    got = cross_cosine(sums, rows, drawn)
    assert got.estimate == pytest.approx(estimate)
    assert (got.low, got.high) == pytest.approx((max(min(low, estimate), -1), min(max(high, estimate), 1)))


@given(st.integers(0, 2**20), st.integers(0, 3))
@settings(deadline=None, max_examples=4)
def test_a_group_is_the_same_with_a_pair_s_questions_and_category_exchanged(seed, layer):
    """Also with states turned and scaled, deltas alone made longer, and the rows in another order."""
    generator = np.random.default_rng(seed)
    states = random_states(seed % 1000, each=5, layers=(layer,), pictures=11, categories=("left", "right"))
    turn = np.linalg.qr(generator.normal(size=(6, 6)))[0] * 3.5
    longer = generator.uniform(0.1, 10, (len(states), 1))
    flip = generator.random(len(states)) < 0.5
    names = np.where(flip, states.pairs["category"].map(OPPOSITE), states.pairs["category"])
    original, swapped = states.original(layer), states.swapped(layer)
    twins = from_arrays(
        states.pairs.assign(category=names),
        {layer: np.where(flip[:, None], swapped, original)},
        {layer: np.where(flip[:, None], original, swapped)},
    )
    plain = consistency(states, **FEW)
    group = {"of": "horizontal", "control": "none"}
    one_way, other_way = one(plain, **group), one(consistency(twins, **FEW), **group)
    assert other_way["upper_triangle"] == pytest.approx(one_way["upper_triangle"])
    for same in (
        mapped(states, lambda a, b: (a @ turn + 7, b @ turn + 7)),
        mapped(states, lambda a, b: (a, a + longer * (b - a))),
    ):
        got = consistency(same, **FEW)
        numbers = ["estimate", "low", "high", "p", "upper_triangle"]
        assert got[numbers].to_numpy() == pytest.approx(plain[numbers].to_numpy(), nan_ok=True, abs=1e-9)
    order = generator.permutation(len(states))
    shuffled = from_arrays(states.pairs.iloc[order], {layer: original[order]}, {layer: swapped[order]})
    numbers = ["estimate", "low", "high"]  # p is drawn by the order of the rows
    got = consistency(shuffled, **FEW)
    got, wanted = (table[table["control"] == "none"][numbers].to_numpy() for table in (got, plain))
    assert got == pytest.approx(wanted, nan_ok=True)


def test_balanced_pairs_exchanged_whole_leave_the_group_s_estimate():
    """All pairs exchanged: left is right, and both categories still weigh alike."""
    states = random_states(5, each=6, pictures=8, categories=("left", "right"), place=1.0)
    names = states.pairs["category"].map(OPPOSITE)
    held = {layer: (states.original(layer), states.swapped(layer)) for layer in states.layers}
    twins = from_arrays(
        states.pairs.assign(category=names), {k: v[1] for k, v in held.items()}, {k: v[0] for k, v in held.items()}
    )
    numbers = ["estimate", "low", "high", "p"]
    got, wanted = (
        table[(table["of"] == "horizontal") & (table["control"] == "none")][numbers].to_numpy()
        for table in (consistency(twins, **FEW), consistency(states, **FEW))
    )
    assert got == pytest.approx(wanted)


def test_permutation_p_is_that_of_every_relabelling_counted():
    """Six pictures: all 64 signs, and all 20 deals of three lefts and three rights, written out."""
    states = random_states(6, each=3, layers=(0,), categories=("left", "right"), place=1.0)
    delta = states.delta(0)
    unit = delta / np.linalg.norm(delta, axis=1, keepdims=True)
    table = consistency(states, m=20_000, **FEW)

    def statistic(labels):
        return slow_cross(unit * labels[:, None], list(labels), list(range(6)))

    deals = [np.where(np.isin(np.arange(6), lefts), 1, -1) for lefts in itertools.combinations(range(6), 3)]
    exact = np.mean([statistic(labels) >= statistic(states.signs) - 1e-9 for labels in deals])
    row = one(table, of="horizontal", control="none")
    assert row["p"] == pytest.approx(exact, abs=0.012)
    null = one(table, of="horizontal", control="shuffled")
    assert null["estimate"] == pytest.approx(np.mean([statistic(labels) for labels in deals]), abs=0.012)
    left = unit[:3]
    signs = np.array(np.meshgrid(*[[1, -1]] * 3)).reshape(3, -1).T
    found = np.array([mean_pairwise_cosine(left * sign[:, None]) for sign in signs])
    row = one(table, of="left", control="none")
    assert row["p"] == pytest.approx(np.mean(found >= mean_pairwise_cosine(left) - 1e-9), abs=0.012)


def test_null_of_labels_is_the_statistic_of_the_relabelled_pairs():
    """With several pairs a picture: the closed sums of the null against the estimate itself, relabelled."""
    states = random_states(7, each=9, layers=(0,), pictures=7, categories=("left", "right"))
    table = consistency(states, m=10_000, seed=3, **FEW)
    codes = pd.factorize(states.pairs["cluster"], sort=True)[0]
    dealt = label_shuffles(states.signs.astype(np.int8), codes, 10_000, 3)
    delta = states.delta(0)
    unit = delta / np.linalg.norm(delta, axis=1, keepdims=True)
    slow = [slow_cross(unit * labels[:, None], list(labels), list(codes)) for labels in dealt[:40]]
    sample = _Sample(unit, states.signs.astype(np.int8), codes, 7)
    assert _label_null(sample, 10_000, 3)[:40] == pytest.approx(np.array(slow))
    assert one(table, of="horizontal", control="shuffled")["estimate"] == pytest.approx(np.mean(slow), abs=0.05)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=14), st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_labels_are_dealt_by_picture(clusters, seed):
    codes = pd.factorize(np.array(clusters), sort=True)[0]
    labels = np.random.default_rng(seed).choice([-1, 1], len(codes)).astype(np.int8)
    dealt = label_shuffles(labels, codes, 50, seed)

    def kinds(row):  # size of each picture and how many + it holds, whichever picture it is
        return sorted((int(np.sum(codes == c)), int(np.sum(row[codes == c] == 1))) for c in set(codes))

    assert all(kinds(row) == kinds(labels) for row in dealt)


def test_variants_count_the_pairs_they_name():
    states = random_states(8, each=8, place=2.0)
    right = np.arange(len(states)) % 4 != 0
    told = answers_of(states, original=right, swapped=np.arange(len(states)) % 8 != 1)
    masks = variants(told.sample(frac=1, random_state=1), states.pairs)
    assert masks["both_correct"].tolist() == (right & (np.arange(len(states)) % 8 != 1)).tolist()
    assert masks["all"].all() and masks["all_with_validity"].all()
    table = consistency(states, told, **FEW)
    alone = consistency(states.select(masks["both_correct"]), **FEW)
    numbers = ["estimate", "low", "high", "p", "q", "n"]
    both = table[table["variant"] == "both_correct"]
    assert both[numbers].to_numpy() == pytest.approx(alone[numbers].to_numpy(), nan_ok=True)
    every, marked = (table[table["variant"] == name][numbers].to_numpy() for name in ("all", "all_with_validity"))
    assert every == pytest.approx(marked, nan_ok=True)
    assert consistency(states, **FEW)["reliable"].isna().all()


def test_q_is_benjamini_hochberg_over_layers():
    states = random_states(9, each=6, layers=(0, 1, 2, "norm"), place=1.0)
    table = consistency(states, **FEW)
    part = table[(table["of"] == "vertical") & (table["control"] == "none")]
    p = part["p"].to_numpy()
    wanted = [min(1, min(p[j] * 4 / (np.sum(p <= p[j])) for j in range(4) if p[j] >= p[i])) for i in range(4)]
    assert part["q"].to_numpy() == pytest.approx(wanted) and list(part["layer"]) == [0, 1, 2, "norm"]
    assert table.loc[table["control"] == "shuffled", "q"].isna().all()


# --- nothing to say ---


def test_states_without_direction_are_left_out_and_counted():
    states = random_states(10, each=8)
    original, swapped = states.original(0).copy(), states.swapped(0).copy()
    swapped[0] = np.nan  # left
    original[1] = swapped[1]  # left, a delta of 0
    changed = from_arrays(states.pairs, {0: original}, {0: swapped})
    row = one(consistency(changed, **FEW), of="left", control="none")
    keep = np.arange(len(states)) > 1
    alone = one(
        consistency(from_arrays(states.pairs, {0: original}, {0: swapped}).select(keep), **FEW), of="left", control="none"
    )
    assert row["n"] == 6 and row["estimate"] == alone["estimate"] and np.isfinite(row["low"])


@pytest.mark.parametrize("spoil", [lambda a, b: (a, a), lambda a, b: (a * np.nan, b)], ids=["constant", "nan"])
def test_constant_or_missing_states_give_nan_with_n(spoil):
    states = mapped(random_states(11, pictures=10), spoil)
    table = consistency(states, answers_of(states), **FEW)
    assert table[["estimate", "low", "high", "p", "q"]].isna().all(axis=None) and (table["n"] == 0).all()
    assert similarity(states)["cosine"].isna().all()
    probe = linear_probe(mapped(random_states(11), lambda a, b: (a * np.nan, b)), m=100)
    assert probe["estimate"].isna().all() and (probe["n"] == 0).all()
    vertical, distance = (states.select(states.pairs["group"].to_numpy() == group) for group in ("vertical", "distance"))
    distance = States(distance.pairs.assign(cluster=vertical.pairs["cluster"]), distance.layers, distance.read)
    found = alignment(vertical, distance, **FEW)
    assert found[["estimate", "p"]].isna().all(axis=None) and (found["n"] == 0).all()


def test_one_pair_and_none_are_said():
    states = random_states(12, each=6, categories=("left", "right", "above"))
    keep = np.ones(len(states), bool)
    keep[np.flatnonzero(states.pairs["category"] == "right")[1:]] = False
    table = consistency(states.select(keep), **FEW)
    for name, n in (("right", 1), ("far", 0), ("distance", 0)):
        row = one(table, layer=0, of=name, control="none")
        assert (row["n"], row["clusters"]) == (n, n) and np.isnan(row["estimate"]) and np.isnan(row["p"])
    lonely = one(table, layer=0, of="horizontal", control="none")  # of right no two pictures
    assert lonely["n"] == 7 and np.isnan(lonely["estimate"]) and np.isfinite(lonely["upper_triangle"])
    missing = one(table, layer=0, of="vertical", control="none")  # no under
    assert missing["n"] == 6 and np.isnan(missing["estimate"])
    assert np.isfinite(one(table, layer=0, of="left", control="none")["estimate"])
    cells = similarity(states.select(keep))
    assert one(cells, layer=0, row="left", column="far")[["n_row", "n_column"]].tolist() == [6, 0]
    assert np.isnan(one(cells, layer=0, row="left", column="far")["cosine"])


def test_no_right_answer_leaves_both_correct_empty():
    states = random_states(13, each=6)
    table = consistency(states, answers_of(states, swapped=False), **FEW)
    both = table[table["variant"] == "both_correct"]
    assert (both["n"] == 0).all() and both["estimate"].isna().all() and not table["reliable"].any()
    assert np.isfinite(table.loc[(table["variant"] == "all") & (table["control"] == "none"), "estimate"]).all()


def test_few_pictures_have_an_estimate_and_no_interval():
    row = one(consistency(random_states(14, each=4, layers=(0,)), **FEW), of="left", control="none")
    assert np.isfinite(row["estimate"]) and np.isnan(row["low"]) and np.isnan(row["high"])


def test_deltas_all_alike_are_wholly_consistent():
    states = mapped(random_states(15, each=6), lambda a, b: (a, a + 1.0))
    row = one(consistency(states, **FEW), layer=0, of="left", control="none")
    assert row["estimate"] == pytest.approx(1) and row["p"] == pytest.approx(2 / 2**6, abs=0.01)


@pytest.mark.parametrize(("options", "says"), [({"m": 9_999}, "m=9999"), ({"n": 99}, "n=99"), ({"seed": -1}, "seed=-1")])
def test_settings_that_say_too_little_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        consistency(random_states(16), **options)


def test_answers_that_do_not_fit_are_named():
    states = random_states(17, each=2)
    told = answers_of(states)
    with pytest.raises(ValueError, match="1 pairs have states and no answers, 'pair-3'"):
        consistency(states, told[told["pair"] != "pair-3"], **FEW)
    with pytest.raises(ValueError, match="'pair-0' has two answers"):
        variants(pd.concat([told, told.head(1)]), states.pairs)
    with pytest.raises(ValueError, match="'pair-0' has an answer to one"):
        accuracy(told.iloc[1:])


# --- alignment ---


def quads(seed=20, each=10, width=6, layers=(0,), pictures=None):
    states = random_states(seed, each, width, layers, pictures, ("above", "under", "far", "close"), place=1.5)
    vertical, distance = (states.select(states.pairs["group"].to_numpy() == group) for group in ("vertical", "distance"))
    order = np.random.default_rng(seed).permutation(len(distance))
    held = {layer: (distance.original(layer)[order], distance.swapped(layer)[order]) for layer in layers}
    pairs = distance.pairs.iloc[order].assign(cluster=vertical.pairs["cluster"].to_numpy())
    return vertical, from_arrays(pairs, {k: v[0] for k, v in held.items()}, {k: v[1] for k, v in held.items()})


def test_alignment_is_its_closed_form():
    vertical, distance = quads(pictures=7)
    table = alignment(vertical, distance, **FEW)
    v, d = vertical.delta(0), distance.delta(0)
    a, b = vertical.signs, distance.signs
    each = np.array([cosine(x, y) for x, y in zip(v, d, strict=True)])
    raw, turned = ({"definition": name, "control": "none"} for name in ("as_published", "corrected"))
    assert one(table, measure="per_sample_mean", **raw)["estimate"] == pytest.approx(each.mean())
    assert one(table, measure="per_sample_mean", **turned)["estimate"] == pytest.approx((each * a * b).mean())
    assert one(table, measure="mean_delta_alignment", **raw)["estimate"] == pytest.approx(cosine(v.mean(axis=0), d.mean(axis=0)))
    means = [x[s > 0].mean(axis=0) - x[s < 0].mean(axis=0) for x, s in ((v, a), (d, b))]
    assert one(table, measure="mean_delta_alignment", **turned)["estimate"] == pytest.approx(cosine(*means))
    assert one(table, measure="per_sample_mean", **raw)["p"] >= 1 / 101
    assert one(table, measure="mean_delta_alignment", **raw)["p"] == 1
    assert np.isnan(one(table, measure="mean_delta_alignment", **turned)["p_pairing"])
    assert (table["n"] == 20).all() and (table["clusters"] == 7).all()


def test_alignment_of_a_group_with_itself_is_complete():
    vertical, _ = quads(21)
    names = vertical.pairs["category"].map({"above": "far", "under": "close"})
    same = from_arrays(
        vertical.pairs.assign(category=names, group="distance"), {0: vertical.original(0)}, {0: vertical.swapped(0)}
    )
    table = alignment(vertical, same, **FEW)
    table = table[(table["definition"] == "corrected") & (table["control"] == "none")]
    assert table["estimate"].to_numpy() == pytest.approx([1, 1]) and (table["p"] < 0.001).all()
    opposite = mapped(same, lambda a, b: (b, a))
    table = alignment(vertical, opposite, **FEW)
    table = table[(table["definition"] == "corrected") & (table["control"] == "none")]
    assert table["estimate"].to_numpy() == pytest.approx([-1, -1]) and (table["p"] < 0.001).all()  # two-sided


def test_wording_cancels_in_the_corrected_alignment_of_means():
    """Deltas hold nothing but wording, and one category is rarer in both: as published they align, corrected they do not."""
    vertical, distance = quads(22, each=30, width=20)
    rare = np.arange(60) < 40  # 30 above, 10 under
    wording = 5 * np.eye(20)[7]
    generator = np.random.default_rng(1)

    def worded(states):
        return mapped(states.select(rare), lambda a, b: (a, a + wording + generator.normal(size=a.shape)))

    table = alignment(worded(vertical), worded(distance), **FEW)
    means = table[(table["measure"] == "mean_delta_alignment") & (table["control"] == "none")].set_index("definition")
    assert means.loc["as_published", "estimate"] > 0.9 and means.loc["corrected", "p"] > 0.01
    assert means.loc["corrected", "low"] < 0 < means.loc["corrected", "high"]


def test_interval_of_the_mean_cosine_agrees_with_a_plain_loop():
    generator = np.random.default_rng(4)
    rows = generator.integers(1, 4, 9).astype(float)
    one_sum, other_sum = (generator.normal(size=(9, 3)) + np.array([2, x, 0]) for x in (0, 1))
    drawn = weights(9, 150, 1)

    def shorter(sums):
        total, n = sums.sum(axis=0), rows.sum()
        between = [(i, j) for i in range(9) for j in range(9) if i != j]
        squared = sum(sums[i] @ sums[j] for i, j in between) / sum(rows[i] * rows[j] for i, j in between)
        return sums + rows[:, None] * (np.sqrt(squared) * total / np.linalg.norm(total) - total / n)

    def with_error(chosen, a, b):
        z = [np.arctanh(cosine(a[left].sum(axis=0), b[left].sum(axis=0))) for k in range(9) for left in [np.delete(chosen, k)]]
        return np.arctanh(cosine(a[chosen].sum(axis=0), b[chosen].sum(axis=0))), np.sqrt(8 / 9 * np.sum((z - np.mean(z)) ** 2))

    a, b = shorter(one_sum), shorter(other_sum)
    centre, error = with_error(np.arange(9), one_sum, other_sum)
    moved = np.array([with_error(np.repeat(np.arange(9), counts.astype(int)), a, b) for counts in drawn])
    one_way = error * np.quantile((moved[:, 0] - centre) / moved[:, 1], [0.975, 0.025])
    reach = np.sqrt(9 / 8) * scipy.stats.t.ppf(0.975, 8)
    other_way = np.quantile(moved[:, 0] - centre, scipy.stats.norm.cdf([reach, -reach]))
    wanted = np.tanh(centre - [max(one_way[0], other_way[0]), min(one_way[1], other_way[1])])
    got = mean_cosine(one_sum, other_sum, rows, drawn)
    assert got.estimate == pytest.approx(np.tanh(centre)) and (got.low, got.high) == pytest.approx(tuple(wanted))


def test_a_mean_no_longer_than_noise_may_point_anywhere():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(10, 3))
    x = np.concatenate([x, -x])  # sums to nothing
    got = mean_cosine(x + 1e-6, generator.normal(size=(20, 3)) + 3, np.ones(20), weights(20, 100, 0))
    assert (got.low, got.high) == (-1, 1)


def test_quads_need_all_four_answers_right():
    vertical, distance = quads(23)
    first = answers_of(vertical, original=np.arange(20) % 2 == 0)
    second = answers_of(distance, swapped=np.arange(20) % 4 < 2)
    distance_ids = {name: f"d-{name}" for name in distance.pairs["pair"]}
    second["pair"] = second["pair"].map(distance_ids)
    distance = from_arrays(
        distance.pairs.assign(pair=distance.pairs["pair"].map(distance_ids)), {0: distance.original(0)}, {0: distance.swapped(0)}
    )
    table = alignment(vertical, distance, pd.concat([first, second]), **FEW)
    assert table.groupby("variant")["n"].unique().map(list).to_dict() == {
        "all": [20], "all_with_validity": [20], "both_correct": [5]
    }  # fmt: skip


def test_states_that_are_no_quads_are_refused():
    vertical, distance = quads(24, layers=(0, 1))
    wide = from_arrays(distance.pairs, *({k: np.ones((20, 9)) for k in (0, 1)} for _ in range(2)))
    for other, says in (
        (distance.select(np.arange(20) < 9), "20 vertical and 9 distance"),
        (quads(24, layers=(0,))[1], r"layers differ: vertical \[0, 1\], distance \[0\]"),
        (wide, "layer 0: vertical states are 6 wide, distance states 9"),
        (vertical, "distance states hold pairs of the group 'vertical'"),
        (from_arrays(distance.pairs.assign(cluster="x"), *({k: np.ones((20, 6)) for k in (0, 1)},) * 2), "row 0 is of two"),
    ):
        with pytest.raises(ValueError, match=says):
            alignment(vertical, other, **FEW)


# --- similarity ---


def test_similarity_is_the_cosine_of_means_in_both_orders():
    states = random_states(25, each=5, place=2.0)
    table = similarity(states, answers_of(states, original=np.arange(30) % 5 != 0))
    assert len(table) == 2 * 3 * 36
    for variant, keep in (("all", np.ones(30, bool)), ("both_correct", np.arange(30) % 5 != 0)):
        means = {c: states.delta(1)[keep & (states.pairs["category"] == c).to_numpy()].mean(axis=0) for c in CATEGORIES}
        for a in CATEGORIES:
            for b in CATEGORIES:
                row = one(table, layer=1, variant=variant, row=a, column=b)
                assert row["cosine"] == pytest.approx(cosine(means[a], means[b])) and row["n_row"] == keep.sum() / 6
    assert one(table, layer=0, variant="all", row="left", column="right")["cosine"] < -0.3


# --- accuracy ---


def test_accuracy_is_shares_of_right_answers():
    states = random_states(26, each=4, categories=("left", "right", "far"))
    told = answers_of(states, original=[1, 1, 1, 0] * 3, swapped=[1, 1, 0, 0] * 2 + [0] * 4)
    told["correct"] = told["correct"].astype(bool)
    told.loc[told["pair"] == "pair-3", "parsed"] = False
    told["correct_published"] = True
    table = accuracy(told, n=200)
    assert list(table["by"].unique()) == ["generate", "logprob", "as_published"]
    row = {"by": "generate", "group": "horizontal"}
    for category, member, estimate, n, unparsed in (
        ("left", "original", 0.75, 4, 0.25), ("left", "swapped", 0.5, 4, 0.25), ("left", "both", 0.5, 4, 0.25),
        ("", "original", 0.75, 8, 0.125), ("", "both", 0.5, 8, 0.125), ("right", "both", 0.5, 4, 0),
    ):  # fmt: skip
        found = one(table, category=category, member=member, **row)
        assert (found["estimate"], found["n"], found["unparsed"]) == (estimate, n, unparsed)
        assert found["low"] <= estimate <= found["high"] and found["chance"] == (0.25 if member == "both" else 0.5)
    far = one(table, by="generate", category="far", member="both")
    assert far["estimate"] == 0 and far["high"] > 0  # four pictures are not all pictures
    nothing = one(table, by="generate", category="close", member="original")
    assert nothing["n"] == 0 and np.isnan(nothing["estimate"]) and not nothing["reliable"]
    assert (table.loc[table["by"] == "as_published", "estimate"].dropna() == 1).all()
    assert len(accuracy(told.drop(columns=["correct_logprob", "correct_published"]))) == 27


def test_the_category_of_a_swapped_question_may_be_that_of_its_own_answer():
    states = random_states(27, each=5)
    told = answers_of(states, original=np.arange(30) % 3 != 0)
    own = told.assign(category=np.where(told["member"] == "swapped", told["category"].map(OPPOSITE), told["category"]))
    pd.testing.assert_frame_equal(accuracy(told), accuracy(own))


def test_reliable_is_a_lower_bound_above_the_threshold():
    states = random_states(28, each=40, categories=("left", "right", "above"))
    right = np.concatenate([np.ones(40), np.arange(40) % 20 < 11, np.arange(40) % 4 < 3]).astype(bool)
    told = answers_of(states, original=right, swapped=right)
    assert reliable(told) == {
        "left": True, "right": False, "above": True, "under": False, "far": False, "close": False
    }  # fmt: skip
    assert reliable(told, threshold=0.7)["above"] is False and reliable(told, threshold=0.7)["left"] is True
    assert reliable(told, threshold=0.3)["right"] is True
    one_word = answers_of(states, original=True, swapped=False)  # "left" to every question
    assert not any(reliable(one_word).values())
    table = consistency(states, told, threshold=0.3, **FEW)
    assert one(table, layer=0, variant="all_with_validity", of="horizontal", control="none")["reliable"]
    with pytest.raises(ValueError, match=r"threshold=1\.5"):
        reliable(told, threshold=1.5)


# --- probe ---


def test_probe_reads_a_planted_direction_and_keeps_pictures_together():
    """Pairs of one picture are copies: read by memory they would be right, by what is shared at random labels they are not."""
    found = linear_probe(random_states(29, each=20, layers=(0,), place=6.0), m=200)
    found = found[found["control"] == "none"]
    assert (found["estimate"] > 0.95).all() and (found["p"] == 1 / 201).all() and (found["n"] == 80).all()
    generator = np.random.default_rng(3)
    copies = np.repeat(np.arange(40), 5)
    names = np.repeat(generator.permutation(["left", "right"] * 20), 5)
    x, y = generator.normal(size=(2, 40, 60))[:, copies]
    found = linear_probe(from_arrays(frame(names, copies.astype(str)), {0: x}, {0: y}), m=200)
    row = one(found, group="horizontal", control="none")
    assert row["estimate"] < 0.7 and row["clusters"] == 40 and row["low"] <= row["estimate"] <= row["high"]


def test_probe_is_ridge_regression_of_each_fold():
    generator = np.random.default_rng(4)
    for width in (5, 40):  # fewer and more features than rows
        original, swapped, asked = (generator.normal(size=(n, width)) * 3 + 1 for n in (12, 12, 7))
        labels = generator.choice([-1, 1], 12)
        both, target = np.concatenate([original, swapped]), np.concatenate([labels, -labels])
        mean, spread = both.mean(axis=0), both.std(axis=0)
        ridge = Ridge(alpha=PENALTY * 24).fit((both - mean) / spread, target)
        assert _hat(original, swapped, asked) @ labels == pytest.approx(ridge.predict((asked - mean) / spread))


def test_probe_of_constant_states_guesses():
    states = random_states(30, each=10, layers=(0,))
    found = linear_probe(mapped(states, lambda a, b: (a * 0 + 3, b * 0 + 3)), m=100)
    assert (found.loc[found["control"] == "none", "estimate"] == 0.5).all() and (found["p"].dropna() == 1).all()
    with pytest.raises(ValueError, match="folds=1"):
        linear_probe(states, folds=1)


# --- projection ---


def test_projection_is_principal_components():
    states = random_states(31, each=6, width=9, place=2.0)
    table = projection(states, [1])
    for kind, x in (("delta", states.delta(1)), ("state", np.concatenate([states.original(1), states.swapped(1)]))):
        slow = PCA(3, svd_solver="full").fit(x)
        part = table[table["kind"].isin(["delta"] if kind == "delta" else ["original", "swapped"])]
        got = part[["pc1", "pc2", "pc3"]].to_numpy()
        assert np.abs(got) == pytest.approx(np.abs(slow.transform(x)))
        assert part[["share1", "share2", "share3"]].iloc[0].to_numpy() == pytest.approx(slow.explained_variance_ratio_)
    assert len(table) == 3 * 36 and list(table["pair"].iloc[:36]) == list(states.pairs["pair"])
    axes = fit(states, [1]).axes[1, "delta"][1]
    assert (axes[np.arange(3), np.abs(axes).argmax(axis=1)] > 0).all()


def test_scales_share_the_axes_of_a_reference():
    one_scale, other = random_states(32, each=6), random_states(33, each=6)
    basis = fit(one_scale, [0])
    table = projection(other, [0], reference=basis)
    mean, axes = basis.axes[0, "delta"]
    got = table.loc[table["kind"] == "delta", ["pc1", "pc2", "pc3"]].to_numpy()
    assert got == pytest.approx((other.delta(0) - mean) @ axes.T)
    pd.testing.assert_frame_equal(projection(one_scale, [0], reference=basis), projection(one_scale, [0]))
    assert (table["share1"] < projection(other, [0])["share1"]).all()
    for wrong, says in (
        (fit(random_states(1, width=7), [0]), "axes are 7 wide, the states 6"),
        (fit(one_scale, [1]), "no axes of layer 0; there: 1"),
        (fit(one_scale, [0], components=2), "2 axes, not 3"),
    ):
        with pytest.raises(ValueError, match=says):
            projection(other, [0], reference=wrong)


def test_projection_of_too_little_is_nan_and_missing_rows_stay():
    states = random_states(34, each=2, categories=("left",))
    table = projection(states, [0])
    part = table[table["kind"] == "delta"]
    assert np.isfinite(part["pc1"]).all() and part[["pc2", "pc3", "share2"]].isna().all(axis=None)
    states = mapped(random_states(35, each=4), lambda a, b: (np.where(np.arange(24)[:, None] == 3, np.nan, a), b))
    table = projection(states, [0])
    lost = table[table["pc1"].isna()]
    assert lost["pair"].unique().tolist() == ["pair-3"] and set(lost["kind"]) == {"delta", "original"}
    assert projection(mapped(states, lambda a, b: (b * 0, b * 0)), [0])[["pc1", "share1"]].isna().all(axis=None)


@pytest.mark.parametrize(("n", "width"), [(6, 40), (30, 31), (40, 12)], ids=["wide", "barely-wide", "narrow"])
@pytest.mark.parametrize("alike", [False, True])
def test_fewer_dimensions_keep_inner_products_even_of_rows_that_depend_on_one_another(n, width, alike):
    x = np.random.default_rng(n).normal(size=(n, width))
    if alike:
        x[1], x[2] = x[0], -x[0]
    fewer = reduced(x)
    assert fewer.shape[1] <= max(n, 12)
    assert np.abs(fewer @ fewer.T - x @ x.T).max() < 1e-12 * width


@pytest.mark.parametrize(("clusters", "width"), [(7, 40), (60, 3)], ids=["wide", "narrow"])
def test_products_of_draws_are_those_of_their_sums_in_either_form(clusters, width):
    generator = np.random.default_rng(clusters)
    one, other = generator.normal(size=(2, clusters, width))
    counts = generator.integers(0, 4, (5, clusters)).astype(float)
    whole, each = _products(one, other).of(counts)
    first, second = counts @ one, counts @ other
    assert whole[:, 0] == pytest.approx(np.sum(first * second, axis=1))
    assert each == pytest.approx(first @ other.T + second @ one.T)
