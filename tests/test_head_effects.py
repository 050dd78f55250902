"""Effects of heads on made-up arrays: planted ones are found with sign and size, nothing is found beyond the stated rate."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, kstest, ttest_1samp

from spatialprobes.probes import head_answers, head_counts, head_effects, heads
from spatialprobes.probes.head_stability import jaccard_by_chance
from spatialprobes.probes.paired_columns import columns
from spatialprobes.probes.sign_flips import refined
from spatialprobes.stats import bootstrap, permutation_test
from spatialprobes.worlds.corners import CORNERS

NAMES = list(CORNERS)


def made(n=30, layers=3, heads_=5, corners=NAMES, asked=NAMES, seed=0, spread=0.1):
    """Noise alone: n matched pairs a corner."""
    shape = (n * len(corners), len(asked), 2, 2, layers, heads_)
    mass = np.random.default_rng(seed).normal(0.5, spread, shape)
    mass = np.concatenate([mass, np.random.default_rng([seed, 1]).normal(0.5, spread, mass[:, :, :, :1].shape)], axis=3)
    pairs = [{"pair": f"{corner}-{i}", "corner": corner, "cluster": f"match-{i:03d}"} for corner in corners for i in range(n)]
    return heads.HeadMass(pd.DataFrame(pairs), list(asked), list(range(0, 2 * layers, 2)), mass, pd.DataFrame())


def planted(effect=0.15, **options):
    """(2, 1) answers where the asked corner is the subject's, (4, 3) less, to every subject, whatever is asked."""
    found = made(**options)
    for i, asked in enumerate(found.asked):
        found.mass[(found.pairs["corner"] == asked).to_numpy(), i, 0, :, 1, 1] += effect
    found.mass[:, :, 0, :, 2, 3] -= effect
    return found


def row(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


# ---- effects ----
def test_planted_effects_are_found_with_sign_size_and_nothing_else():
    table = head_effects.effects(planted())
    assert len(table) == 16 * 15 and tuple(table.columns) == head_effects.EFFECTS
    sure = table[table["q"] < 0.05]
    expected = {(2, 1, c, c) for c in NAMES} | {(4, 3, a, c) for a in NAMES for c in NAMES}
    there = set(sure[["layer", "head", "asked", "corner"]].itertuples(index=False, name=None))
    assert expected <= there and len(there - expected) <= 4  # of 220 without an effect, in 16 families
    assert (sure[sure["layer"] == 2]["effect"] > 0).sum() >= 4 and (sure.query("layer == 4 and head == 3")["effect"] < 0).all()


def test_numbers_are_those_of_the_plain_statistics():
    found = planted()
    found.pairs.loc[::3, "cluster"] = "match-000"  # clusters of several pairs
    table = head_effects.effects(found, region="region", seed=3)
    rows = (found.pairs["corner"] == "topright").to_numpy()
    values = np.array([mass[2, 0, 1, 1, 1] - mass[2, 1, 1, 1, 1] for mass in found.mass[rows]])
    clusters = found.pairs["cluster"].to_numpy()[rows]
    one = row(table, asked="bottomleft", corner="topright", layer=2, head=1)
    interval = bootstrap(values, clusters, seed=3)
    np.testing.assert_allclose(one[["effect", "low", "high"]].astype(float), interval[:3], atol=1e-12)
    assert one["p"] == permutation_test(values, np.zeros_like(values), clusters, seed=3)
    assert one["d"] * np.sqrt(len(values)) == pytest.approx(ttest_1samp(values, 0).statistic)
    assert (one["n"], one["clusters"]) == (30, interval.clusters)


def test_published_effects_are_of_absolute_values_and_claim_no_test():
    found = made()
    table = head_effects.effects(found, definition="as_published")
    values = abs(found.mass[:30, 0, 0, 0, 2, 4] - found.mass[:30, 0, 1, 0, 2, 4])
    assert row(table, asked="topleft", corner="topleft", layer=4, head=4)["effect"] == pytest.approx(values.mean())
    assert (table["low"] > 0).all() and table[["d", "p", "q"]].isna().all(axis=None)


def test_pairs_without_cells_are_left_out_and_counted():
    found = made()
    found.mass[:7, 1, :, 1] = np.nan
    table = head_effects.effects(found, region="region")
    assert set(table.query("corner == 'topleft' and asked == 'topright'")["n"]) == {23}
    assert set(table.query("corner != 'topleft' or asked != 'topright'")["n"]) == {30}


def test_one_pair_has_an_estimate_alone():
    table = head_effects.effects(made(n=1))
    assert table["effect"].notna().all() and table[["low", "high", "d", "p", "q"]].isna().all(axis=None)


def test_heads_that_give_the_same_every_time_have_no_effect_size():
    found = made()
    found.mass[:, :, 0] = found.mass[:, :, 1] + 0.25
    table = head_effects.effects(found)
    np.testing.assert_allclose(table["effect"], 0.25)
    assert table["d"].isna().all()


# ---- p-values ----
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=7), st.integers(1, 3))
def test_few_clusters_are_counted_out(values, each):
    values = np.repeat(np.array(values, float), each)[:, None]
    clusters = np.repeat(np.arange(len(values) // each), each)
    totals = values[:, 0].reshape(-1, each).sum(1)
    ways = [abs(np.dot(signs, totals)) for signs in itertools.product((1, -1), repeat=len(totals))]
    expected = np.mean([way >= abs(totals.sum()) - 1e-9 for way in ways])
    assert refined(np.array([np.nan]), values, clusters)[0] == pytest.approx(expected)


def test_p_values_of_heads_without_effect_are_even():
    found = made(n=20, layers=40, heads_=40, corners=NAMES[:1], asked=NAMES[:1])
    assert kstest(head_effects.effects(found)["p"], "uniform").pvalue > 0.001


def test_one_head_among_a_thousand_is_found():
    found = planted(n=40, layers=20, heads_=50, corners=NAMES[:1], asked=NAMES[:1])
    values = found.differences()[:, 0].reshape(40, -1)
    coarse = columns(values, found.pairs["cluster"].to_numpy()).p
    table = head_effects.effects(found)
    assert coarse.min() * 1000 > 0.05  # ten thousand relabellings cannot
    assert row(table, layer=2, head=1)["q"] < 0.05
    kept = coarse > 11 / 10_001
    np.testing.assert_array_equal(table["p"][kept], coarse[kept])
    assert abs(table["p"][~kept] - coarse[~kept]).max() < 0.002


def test_the_rate_of_false_discoveries_is_held():
    """Of 200 made-up models: any discovery without effects, and the share of false ones beside real ones."""
    any_false, shares = 0, []
    for seed in range(200):
        options = {"n": 14, "layers": 4, "heads_": 6, "corners": NAMES[:1], "asked": NAMES[:1], "seed": seed}
        any_false += (head_effects.effects(made(**options), n=100)["q"] < 0.05).any()
        found = head_effects.effects(planted(0.25, **options), n=100)
        wrong = ~(((found["layer"] == 2) & (found["head"] == 1)) | ((found["layer"] == 4) & (found["head"] == 3)))
        sure = found["q"] < 0.05
        shares.append((sure & wrong).sum() / max(1, sure.sum()))
    assert any_false <= binom.ppf(0.999, 200, 0.05)
    assert np.mean(shares) <= 0.05 + 3.1 * np.std(shares) / np.sqrt(200)


# ---- for which corner ----
@pytest.mark.parametrize("control", ["content", "prompt"])
def test_selectivity_is_made_within_clusters(control):
    found = planted(n=8)
    order = np.random.default_rng(1).permutation(len(found.pairs))
    found = replace(found, pairs=found.pairs.iloc[order].reset_index(drop=True), mass=found.mass[order])
    table = head_effects.selectivity(found, control=control)
    at = {(p.cluster, p.corner): i for i, p in enumerate(found.pairs.itertuples())}
    changes = found.mass[:, :, 0, 0] - found.mass[:, :, 1, 0]
    for asked, layer, head in itertools.product(NAMES, range(3), (1, 3)):
        values = []
        for cluster in sorted(set(found.pairs["cluster"])):
            cell = {(a, c): changes[at[cluster, c], NAMES.index(a), layer, head] for a in NAMES for c in NAMES}
            rest = [cell[(asked, c) if control == "content" else (c, asked)] for c in NAMES if c != asked]
            values.append(cell[asked, asked] - sum(rest) / 3)
        one = row(table, asked=asked, layer=2 * layer, head=head)
        np.testing.assert_allclose(one[["selectivity", "low", "high"]].astype(float), bootstrap(np.array(values), None)[:3])
        assert (one["n"], one["clusters"], one["control"]) == (8, 8, control)


def test_selectivity_and_diagonal_find_the_head_of_the_corner_and_not_that_of_any():
    found = planted(n=60)
    for table in (head_effects.selectivity(found), head_effects.selectivity(found, control="prompt")):
        assert (table.query("layer == 2 and head == 1")["q"] < 0.05).all()
        assert (table.query("layer == 4 and head == 3")["p"] > 0.01).all()
    table = head_effects.diagonal(found)
    assert row(table, layer=2, head=1)["q"] < 0.05 < row(table, layer=4, head=3)["q"]
    effects = head_effects.effects(found).groupby(["layer", "head", "asked", "corner"])["effect"].first()
    own, rest = (np.mean([effects[2, 1, a, c] for a in NAMES for c in NAMES if (a == c) is same]) for same in (True, False))
    assert row(table, layer=2, head=1)["selectivity"] == pytest.approx(own - rest)
    kinds = head_effects.kinds(head_effects.effects(found), head_effects.selectivity(found)).set_index(["layer", "head"])
    assert kinds.loc[(2, 1)].tolist() == ["specific", " ".join(NAMES)] and kinds.loc[(4, 3), "kind"] == "shared"
    assert (kinds["kind"] == "none").sum() >= 11


def test_clusters_that_lack_a_corner_are_left_out_of_what_compares_contents():
    found = planted(n=12)
    keep = ~found.pairs["pair"].isin(["topleft-3", "bottomright-7"]).to_numpy()
    part = heads.HeadMass(found.pairs[keep].reset_index(drop=True), NAMES, found.layers, found.mass[keep], pd.DataFrame())
    assert set(head_effects.selectivity(part)["n"]) == {10} == set(head_effects.diagonal(part)["n"])
    assert row(head_effects.selectivity(part, control="prompt"), asked="topleft", layer=0, head=0)["n"] == 11


def test_kinds_need_signs_that_agree():
    names = ["layer", "head", "asked", "corner", "effect", "q", "selectivity", "q_selective"]
    rows = [(0, 0, "topleft", 1, 0.2, 1), (0, 1, "topleft", 1, -0.2, 1), (0, 2, "topleft", -1, -0.2, 1)]
    rows = [(*row[:3], *row[3:], other) for row in rows for other in (1, -1)]  # the effect in the other corner
    table = []
    for number, (layer, _, _, sign, selective, size, other) in enumerate(rows):
        table.append((layer, number, "topleft", "topleft", size * sign, 0.01, selective, 0.01))
        table.append((layer, number, "topright", "topright", size * other, 0.01, 0.0, 0.9))
    frame = pd.DataFrame(table, columns=names)
    own = frame[["layer", "head", "asked", "corner", "effect", "q"]]
    selective = frame[["layer", "head", "asked", "selectivity", "q_selective"]].rename(columns={"q_selective": "q"})
    found = head_effects.kinds(own, selective).set_index("head")["kind"]
    assert found.tolist() == ["specific", "specific", "shared", "some", "specific", "specific"]


def test_kinds_are_told_from_one_region_and_one_control():
    own, selective = head_effects.effects(made(n=4), n=100), head_effects.selectivity(made(n=4), n=100)
    for tables in ((pd.concat([own, own]), selective), (own, pd.concat([selective, selective.assign(control="prompt")]))):
        with pytest.raises(ValueError, match=r"head \(0, 0\) stands twice for 'topleft'"):
            head_effects.kinds(*tables)


def test_specificity_is_a_matrix_of_effects_for_each_head():
    found = planted()
    table = head_effects.specificity(found, [(4, 3), (2, 1)])
    assert len(table) == 32 and table[["layer", "head"]].drop_duplicates().to_numpy().tolist() == [[4, 3], [2, 1]]
    whole = head_effects.effects(found)
    shared = ["layer", "head", "asked", "corner", "region", "effect", "low", "high"]
    assert len(table.merge(whole, on=shared)) == 32
    assert len(head_effects.specificity(found)) == len(whole)


# ---- stability ----
def test_shares_of_the_top_are_those_of_slow_draws():
    found = planted(0.05, n=9)
    table = head_effects.stability(found, k=4, n=150, seed=5)
    values = found.differences()[(found.pairs["corner"] == "bottomleft").to_numpy(), 2].reshape(9, 15)
    draws = np.random.default_rng([5, 59]).multinomial(9, np.full(9, 1 / 9), 150)
    count = np.zeros(15)
    for draw in draws:
        means = abs(np.repeat(values, draw, axis=0).mean(0))
        count[sorted(range(15), key=lambda head: -means[head])[:4]] += 1
    own = table[table["asked"] == "bottomleft"]
    np.testing.assert_allclose(own["share"], count / 150)
    assert own["share"].sum() == pytest.approx(4) and (own["chance"] == 4 / 15).all()
    assert own.sort_values("rank")["rank"].tolist() == list(range(1, 16))
    assert (own["layer"] * 5 / 2 + own["head"]).iloc[own["rank"].argmin()] == np.argmax(abs(values.mean(0)))


def test_halves_agree_on_planted_heads_and_by_chance_on_none():
    strong = head_effects.agreement(planted(0.5), k=2, n=200)
    assert (strong["jaccard"] > 0.95).all()
    none = [head_effects.agreement(made(n=40, seed=seed), k=3, n=100)["jaccard"].mean() for seed in range(12)]
    chance = jaccard_by_chance(3, 15)
    assert (strong["chance"] == jaccard_by_chance(2, 15)).all() and abs(np.mean(none) - chance) < 0.06


@pytest.mark.parametrize(("k", "heads_"), [(1, 4), (2, 5), (3, 5)])
def test_chance_of_agreement_is_that_of_all_sets(k, heads_):
    sets = [set(one) for one in itertools.combinations(range(heads_), k)]
    expected = np.mean([len(a & b) / len(a | b) for a in sets for b in sets])
    assert jaccard_by_chance(k, heads_) == pytest.approx(expected)


# ---- the study's counts ----
def test_counts_are_those_of_slow_loops():
    found = made(n=6, heads_=7)
    found.mass[:] = found.mass.round(1)  # ties, of which the lower head wins
    table, cubes = head_counts.counts(found), head_counts.members(found)
    for corner in NAMES:
        rows = found.mass[(found.pairs["corner"] == corner).to_numpy(), NAMES.index(corner), :, 0]
        for layer in range(3):
            count, ties = np.zeros(7, int), 0
            for full, control in rows[:, :, layer]:
                change = abs(full - control)
                order = sorted(range(7), key=lambda head: -change[head])
                count[order[:3]] += 1
                ties += change[order[2]] == change[order[3]]
            own = table[(table["corner"] == corner) & (table["layer"] == 2 * layer)]
            assert own["count"].tolist() == count.tolist() == cubes[corner][layer].sum(-1).tolist()
            assert set(own["ties"]) == {ties} and set(own["chance"]) == {6 * 3 / 7}
    assert table["ties"].sum() > 0
    np.testing.assert_allclose(table["p"], [sum(binom.pmf(range(c, 7), 6, 3 / 7)) for c in table["count"]])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 9), st.integers(2, 6))
def test_three_heads_a_layer_are_found_whatever_the_model(seed, heads_, n):
    found = made(n=n, layers=2, heads_=heads_, seed=seed)
    per_layer = head_counts.counts(found).groupby(["corner", "layer"])
    assert (per_layer["count"].sum() == 3 * n).all() and np.allclose(per_layer["chance"].sum(), 3 * n)
    assert (head_counts.first_counts(head_counts.changes(found, "topleft")).sum(1) == n).all()


def test_counts_far_above_chance_need_no_effect():
    found = made(n=100, heads_=10, corners=NAMES[:1], asked=NAMES[:1])
    found.mass[:, :, :, :, 1, 4] = 0.5 + 4 * (found.mass[:, :, :, :, 1, 4] - 0.5)  # it only varies more
    count, effect = (row(table, layer=2, head=4) for table in (head_counts.counts(found), head_effects.effects(found)))
    assert count["q"] < 1e-6 and count["count"] > 2 * count["chance"] and effect["p"] > 0.01
    others = head_counts.counts(made(n=100, heads_=10, corners=NAMES[:1], asked=NAMES[:1], seed=4))
    assert (others["q"] < 0.05).sum() == 0


def test_what_is_shared_and_what_is_unique():
    by_corner = {}
    for i, corner in enumerate(NAMES):
        cube = np.zeros((3, 6, 10), np.uint8)
        cube[1, 5] = 1  # in every pair of every corner
        cube[2, i, :8] = 1
        by_corner[corner] = cube
    found = head_counts.shared_and_unique(by_corner, [0, 2, 4])
    assert found.shared_head == 5 and found.unique_heads == dict(zip(NAMES, range(4), strict=True))
    assert found.top_shared[0] == (2, 5) and found.shared[1, 5] == 1 and found.shared[2, 0] == pytest.approx(0.2)
    assert found.residuals["topright"][2, 1] == pytest.approx(0.6) and found.top_residual["topright"][0] == (4, 1)
    frame = found.frame()
    assert len(frame) == 4 * 18 and row(frame, corner="topright", layer=4, head=1)["residual"] == pytest.approx(0.6)
    np.testing.assert_allclose(frame["frequency"], frame["shared"] + frame["residual"])


def test_options_of_the_study_change_what_they_say():
    cubes = {"a": np.zeros((3, 2, 4), np.uint8), "b": np.zeros((3, 2, 4), np.uint8)}
    cubes["a"][:, 0, :3], cubes["b"][:, 0, :3] = 1, 1  # in every layer, three of four
    cubes["a"][0, 1], cubes["b"][0, 1] = 1, 1  # in one layer, always
    cubes["b"][2, 1] = 1
    assert head_counts.shared_and_unique(cubes).shared_head == 1
    assert head_counts.shared_and_unique(cubes, reduce="mean").shared_head == 0
    raw, bright = (head_counts.shared_and_unique(cubes, brightness=one).top_residual["a"] for one in ("raw", "abs"))
    assert bright[0] == (2, 1) and raw[0] == (0, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_residuals_cancel_over_corners(seed):
    found = head_counts.shared_and_unique(head_counts.members(made(n=3, seed=seed)))
    np.testing.assert_allclose(sum(found.residuals.values()), 0, atol=1e-12)
    np.testing.assert_allclose(found.shared.sum(1), 3)


def test_gaps_are_means_of_sorted_changes():
    found = made(n=5, heads_=6)
    table = head_counts.gaps(found)
    values = abs(found.differences()[5:10, 1, 2])
    tops = [np.mean([sorted(own)[-k] for own in values]) for k in (1, 2, 3, 4)]
    middle = np.mean([np.median(own) for own in values])
    one = row(table, corner="topright", layer=4)
    expected = [*tops, middle, tops[0] - middle, tops[0] - tops[3], tops[0] - tops[1]]
    np.testing.assert_allclose(one[list(head_counts.GAPS[2:])].astype(float), expected)


# ---- answers ----
def test_accuracy_by_member_and_corner():
    rows = []
    for i, member, asked in itertools.product(range(10), ("full", "control"), ("topleft", "topright")):
        expected = "yes" if member == "full" and asked == "topleft" else "no"
        text = "yes" if asked == "topleft" else "no" if i else "perhaps"
        answer = None if text == "perhaps" else text
        rows.append((asked, member, "topleft", f"m{i}", expected, answer, answer == expected, answer is not None))
    names = ["asked", "member", "corner", "cluster", "expected", "answer", "correct", "parsed"]
    table = pd.DataFrame(rows, columns=names).astype({"answer": "string"})
    found = head_answers.accuracy(table).set_index(["asked", "member"])
    assert found["accuracy"].round(9).to_dict() == {
        ("topleft", "full"): 1, ("topleft", "control"): 0, ("topright", "full"): 0.9, ("topright", "control"): 0.9,
    }  # fmt: skip
    assert found["unparsed"].round(9).tolist() == [0, 0.1, 0, 0.1] and found["says_yes"].tolist() == [1, 0, 1, 0]
    assert (found["low"] < 1).all() and (found["high"] > 0).all() and (found["constant"] == 1).all()
    whole = head_answers.accuracy(table, by=()).iloc[0]
    assert (whole["accuracy"], whole["constant"], whole["n"], whole["clusters"]) == (0.7, 0.75, 40, 10)


# ---- what is refused ----
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: head_effects.effects(made(), region="edge"), "region='edge'"),
        (lambda: head_effects.effects(made(), definition="raw"), "definition='raw'"),
        (lambda: head_effects.selectivity(made(), control="none"), "control='none'"),
        (lambda: head_effects.selectivity(made(corners=NAMES[:1])), "control='content' has none"),
        (lambda: head_effects.selectivity(made(asked=NAMES[:1]), control="prompt"), "control='prompt' has none"),
        (lambda: head_effects.diagonal(made(corners=NAMES[:1], asked=NAMES[:1])), "no diagonal"),
        (lambda: head_effects.specificity(made(), [(1, 0)]), r"head \(1, 0\) was measured"),
        (lambda: head_effects.specificity(made(), []), "no heads were given"),
        (lambda: head_effects.stability(made(), k=16), "k=16 of 15 heads"),
        (lambda: head_effects.stability(made(), k=0), "k=0 of 15 heads"),
        (lambda: head_effects.stability(made(), n=10), "n=10 draws"),
        (lambda: head_effects.agreement(made(), n=0), "n=0 draws"),
        (lambda: head_effects.effects(made(), n=0), "n=0 draws"),
        (lambda: head_effects.diagonal(made(), n=1e3), "n=1000.0 draws"),
        (lambda: head_effects.effects(made(n=0)), "no pairs were measured"),
        (lambda: head_effects.specificity(made(), [0, 1]), r"pairs \(layer, head\), not \[0, 1\]"),
        (lambda: head_effects.stability(made(), k=2.5), "k=2.5 of 15 heads"),
        (lambda: head_counts.counts(made(), k=2.0), "k=2.0 of 5 heads"),
        (lambda: head_counts.counts(made(n=0)), "no pairs were measured"),
        (lambda: head_counts.shared_and_unique(head_counts.members(made(n=2)), top=0), "top=0"),
        (lambda: head_counts.shared_and_unique({"a": np.ones((1, 2, 3)), "b": np.full((1, 2, 3), 2)}), "b: .*other values"),
        (lambda: head_answers.accuracy(pd.DataFrame(), by="asked"), "by='asked'"),
        (lambda: head_effects.agreement(made(n=1), k=2), "1 clusters with a value"),
        (lambda: head_counts.changes(made(asked=NAMES[:2]), "bottomleft"), "'bottomleft' was not asked about"),
        (lambda: head_counts.counts(made(), k=6), "k=6 of 5 heads"),
        (lambda: head_counts.counts(made(corners=NAMES[:1], asked=NAMES[1:])), "no subject stands in any"),
        (lambda: head_counts.gaps(made(heads_=3)), "layers of 3 heads have no fourth"),
        (lambda: head_counts.shared_and_unique({"a": np.zeros((1, 2, 3))}), "two corners or more"),
        (lambda: head_counts.shared_and_unique({"a": np.zeros((1, 2, 3)), "b": np.zeros((1, 3, 3))}), "of one model"),
        (lambda: head_counts.shared_and_unique({"a": np.zeros((1, 2, 3)), "b": np.zeros((1, 2, 0))}), "b: no pairs"),
        (lambda: head_counts.shared_and_unique({}, reduce="sum"), "reduce='sum'"),
        (lambda: head_answers.accuracy(pd.DataFrame(), by=["layer"]), "by='layer'"),
        (lambda: head_answers.accuracy(pd.DataFrame({"asked": []}), by=["asked"]), "column 'cluster' is missing"),
    ],
)
def test_what_cannot_be_said_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_two_pairs_of_a_cluster_in_one_corner_are_refused_where_pairs_are_matched():
    found = made()
    found.pairs.loc[1, "cluster"] = "match-000"
    with pytest.raises(ValueError, match="'match-000' has two pairs with the subject in 'topleft'"):
        head_effects.selectivity(found)
    assert set(head_effects.effects(found).query("corner == 'topleft'")["clusters"]) == {29}


def test_arrays_must_fit_their_pairs():
    found = made()
    with pytest.raises(ValueError, match=r"mass of shape .* does not fit"):
        heads.HeadMass(found.pairs[:5], found.asked, found.layers, found.mass, found.answers)
