"""Alignment between pictures: a slow loop, a model without relations in a world that ties them, planted directions, coverage."""

import numpy as np
import pandas as pd
import pytest

from spatialprobes.pairs import GROUPS, SIGN
from spatialprobes.probes import swap_alignment, swap_between
from spatialprobes.probes.swap_states import from_arrays


def made(deltas, group, categories, clusters):
    frame = pd.DataFrame(
        {"pair": [f"{group}-{i}" for i in range(len(deltas))], "category": categories, "group": group, "cluster": clusters}
    )
    return from_arrays(frame, {0: np.zeros_like(deltas)}, {0: deltas})


def world(rng, count, tied=0.5, cosine=0.0, wording=1.0, signal=1.0, noise=0.5, width=24, per_picture=1):
    """Quads with directions of above and far at the given cosine, and a part that both deltas of a quad share.

    tied: share of quads in which above goes with far. Returns the states of both kinds.
    """
    basis = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    directions = np.stack([basis[0], cosine * basis[0] + np.sqrt(1 - cosine**2) * basis[1]])
    vertical = rng.choice(GROUPS["vertical"], count)
    signs = np.array([SIGN[one] for one in vertical])
    other = signs * np.where(rng.random(count) < tied, 1, -1)
    distance = np.where(other > 0, *GROUPS["distance"])
    words = wording * rng.normal(size=(count, width)) / np.sqrt(width)
    parts = []
    for place, sign in enumerate((signs, other)):
        parts.append(
            signal * sign[:, None] * directions[place] + words + noise * rng.normal(size=(count, width)) / np.sqrt(width)
        )
    clusters = np.array([f"p{i // per_picture}" for i in range(count)])
    return made(parts[0], "vertical", vertical, clusters), made(parts[1], "distance", distance, clusters)


def estimate(frame, definition="corrected"):
    return frame[(frame["control"] == "none") & (frame["definition"] == definition)].iloc[0]


@pytest.mark.parametrize("per_picture", [1, 3])
def test_equals_a_loop_over_all_pairs_of_different_pictures(per_picture):
    vertical, distance = world(np.random.default_rng(0), 17, tied=0.7, cosine=0.6, per_picture=per_picture)
    total = weight = 0.0
    v, d = vertical.canonical(0), distance.canonical(0)
    share = [1 / (2 * states.pairs["category"].map(states.pairs["category"].value_counts())) for states in (vertical, distance)]
    for i in range(17):
        for j in range(17):
            if vertical.pairs["cluster"][i] != distance.pairs["cluster"][j]:
                w = share[0][i] * share[1][j]
                total += w * (v[i] @ d[j]) / np.linalg.norm(v[i]) / np.linalg.norm(d[j])
                weight += w
    found = estimate(swap_between.between(vertical, distance))
    assert found.estimate == pytest.approx(total / weight, abs=1e-12)
    assert found.n == 17 and found.clusters == -(-17 // per_picture)
    assert found.low < found.estimate < found.high


def test_a_model_without_relations_is_aligned_by_the_world_but_not_between_pictures():
    rng = np.random.default_rng(1)
    vertical, distance = world(rng, 400, tied=1.0, signal=0.0, noise=0.1)
    of_quads = swap_alignment.alignment(vertical, distance)
    of_quads = of_quads[(of_quads["control"] == "none") & (of_quads["definition"] == "corrected")].set_index("measure")
    assert of_quads.loc["per_sample_mean", "estimate"] > 0.9 and of_quads.loc["mean_delta_alignment", "estimate"] > 0.9
    found = estimate(swap_between.between(vertical, distance))
    assert abs(found.estimate) < 0.02 and found.low < 0 < found.high and found.p > 0.01


@pytest.mark.parametrize("tied", [0.5, 1.0])
def test_a_shared_direction_is_found_whatever_the_world(tied):
    vertical, distance = world(np.random.default_rng(2), 300, tied=tied, cosine=0.8)
    found = estimate(swap_between.between(vertical, distance))
    lengths = [np.sqrt(max(0, _pairwise(states))) for states in (vertical, distance)]
    assert found.estimate / np.prod(lengths) == pytest.approx(0.8, abs=0.06)
    assert found.p < 0.001 and found.low > 0.2


def _pairwise(states):
    x = states.canonical(0) / np.linalg.norm(states.canonical(0), axis=1, keepdims=True)
    n = len(x)
    return (np.sum(x.sum(0) ** 2) - n) / (n * (n - 1))


def test_intervals_cover_and_nulls_hold():
    rng, covered, hits, draws = np.random.default_rng(3), 0, 0, 200
    truth = estimate(swap_between.between(*world(rng, 6000, tied=0.6, cosine=0.5))).estimate
    for _ in range(draws):
        found = estimate(swap_between.between(*world(rng, 60, tied=0.6, cosine=0.5)))
        covered += found.low <= truth <= found.high
        hits += estimate(swap_between.between(*world(rng, 60, tied=0.9, signal=0.0))).p < 0.05
    assert 0.91 <= covered / draws <= 0.99  # .93 to .97, within two standard errors of 200 draws
    assert hits / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)


def answered(states, right):
    """Answers of both members, right (True), wrong (False) or one of them (None)."""
    rows = []
    for pair, cluster, one in zip(states.pairs["pair"], states.pairs["cluster"], right, strict=True):
        both = (True, False) if one is None else (one, one)
        rows += [(pair, member, cluster, value) for member, value in zip(("original", "swapped"), both, strict=True)]
    return pd.DataFrame(rows, columns=["pair", "member", "cluster", "correct_logprob"])


def test_a_model_that_reads_height_is_seen_by_what_it_answers():
    """It says far of what is above, right or not: its distance deltas follow height."""
    rng = np.random.default_rng(4)
    vertical, _ = world(rng, 200, wording=0.0)
    distance = made(vertical.delta(0) + 0.1, "distance", rng.choice(GROUPS["distance"], 200), vertical.pairs["cluster"])
    by_height = vertical.signs == distance.signs
    answers = pd.concat([answered(vertical, [True] * 200), answered(distance, by_height)])
    found = swap_between.between(vertical, distance, answers)
    assert abs(estimate(found).estimate) < 0.15
    assert estimate(found, "answered").estimate > 0.6
    share = swap_between.answered_by_height(vertical, distance, answers)
    assert share.estimate == 1 and share.n == 2 * int((~by_height).sum())
    honest = pd.concat([answered(vertical, [True] * 200), answered(distance, [True] * 200)])
    assert swap_between.answered_by_height(vertical, distance, honest).estimate == 0


def test_equal_answers_are_left_out_and_nothing_gives_nan():
    vertical, distance = world(np.random.default_rng(5), 12)
    kept = [True] * 6 + [None] * 6
    found = swap_between.between(vertical, distance, pd.concat([answered(vertical, kept), answered(distance, kept)]))
    assert estimate(found, "answered").n == 6 and estimate(found).n == 12
    none = pd.concat([answered(vertical, [None] * 12), answered(distance, [None] * 12)])
    assert np.isnan(estimate(swap_between.between(vertical, distance, none), "answered").estimate)
    few = swap_between.between(vertical.select(np.arange(12) < 3), distance.select(np.arange(12) < 3))
    assert np.isnan(estimate(few).estimate) and estimate(few).n == 3
    with pytest.raises(ValueError, match="pairs have states and no answers"):
        swap_between.between(vertical, distance, answered(vertical, kept))
    tied = distance.select(distance.signs == vertical.signs), vertical.select(distance.signs == vertical.signs)
    with pytest.raises(ValueError, match="in every quad"):
        swap_between.answered_by_height(tied[1], tied[0], answered(tied[0], [True] * len(tied[0])))
