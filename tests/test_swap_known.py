"""Swap measures on hidden states in which a direction was planted, or none: intervals cover the truth, null claims seldom hold.

Every draw of a world is a layer of one States, so that 200 draws cost one call. Truths are closed forms: a delta has a random
length and the direction s' sign + w' + g; s' is on average s long, w' on average w, and g is noise at right angles to the planes
of both that makes it a unit vector. So the mean cosine of two pictures is s^2 + w^2 within a category and s^2 in a group.
"""

import numpy as np
import pandas as pd
import pytest

from spatialprobes.pairs import GROUP_OF
from spatialprobes.probes.swap_measures import alignment, consistency
from spatialprobes.probes.swap_probe import linear_probe
from spatialprobes.probes.swap_states import from_arrays

DRAWS = 200
COVERED = range(182, 199)  # of 200: .95 +- 2.6 standard errors of a share of 200; a right interval fails in one of 100 tests
REJECTED = 18  # of 200, at most: .05 + 2.6 standard errors
WIDTH = 12
TURN = 0.6  # radians, by which the planted direction of a picture lies to one side
SCALE = 1 / np.sqrt(np.arange(1, WIDTH - 3))  # of noise, not alike in all directions


def noise(generator, pictures, each, spread=0.3):
    """Unit vectors [draw, pair, width] at right angles to the first four axes, those of a picture alike."""
    shape = DRAWS, pictures, each, WIDTH - 4
    shared, own = generator.normal(size=(DRAWS, pictures, 1, WIDTH - 4)), generator.normal(size=shape)
    x = ((np.sqrt(spread) * shared + np.sqrt(1 - spread) * own) * SCALE).reshape(DRAWS, pictures * each, WIDTH - 4)
    padded = np.concatenate([np.zeros((*x.shape[:2], 4)), x], axis=2)
    return padded / np.linalg.norm(padded, axis=2, keepdims=True)


def deltas(generator, signs, place, aside, wording, g, clusters):
    """Of random lengths, by a factor of 3. place, aside (at right angles, as long), wording: planted vectors.

    Each picture has .5 or 1.5 of the wording, .7 or 1.3 of the place, turned to one side or the other; all at random.
    """
    much, more, side = (generator.choice([-1, 1], (3, DRAWS, max(clusters) + 1, 1)))[:, :, clusters]
    where = (1 + 0.3 * more) * (np.cos(TURN) * place + np.sin(TURN) * side * aside)
    said = (1 + 0.5 * much) * wording
    left = np.sqrt(1 - np.sum(where**2 + said**2, axis=2, keepdims=True))
    return (signs[:, None] * where + said + left * g) * np.exp(0.5 * generator.normal(size=(*g.shape[:2], 1)))


def states(categories, clusters, delta, generator):
    """Originals at random, far from 0; swapped = original + delta."""
    pairs = pd.DataFrame({"category": categories, "cluster": clusters})
    pairs = pairs.assign(pair=[f"pair-{i}" for i in range(len(pairs))], group=pairs["category"].map(GROUP_OF))
    original = 5 + generator.normal(size=delta.shape)
    return from_arrays(pairs, dict(enumerate(original)), dict(enumerate(original + delta)))


def axis(i, length):
    return length * np.eye(WIDTH)[i]


def one_group(seed, s, w, pictures=30, each=2, share=0.5):
    """Left and right; `share` of the pictures show pairs of left, the rest of right."""
    generator = np.random.default_rng(seed)
    lefts = np.arange(pictures) < share * pictures
    categories = np.repeat(np.where(lefts, "left", "right"), each)
    signs = np.where(categories == "left", 1, -1)
    numbers, length = np.arange(pictures * each) // each, s / np.cos(TURN)
    g = noise(generator, pictures, each)
    delta = deltas(generator, signs, axis(0, length), axis(2, length), axis(1, w), g, numbers)
    return states(categories, np.repeat([f"picture-{i}" for i in range(pictures)], each), delta, generator)


def quads(seed, s, w, cosine, kept, pictures=40, each=2):
    """Vertical and distance states. kept: the share of quads whose two deltas have the same noise, once they are sign-corrected.

    Among each sign of one are as many of either sign of the other: what the wording shares cancels.
    """
    generator = np.random.default_rng(seed)
    one, other = noise(generator, pictures, each), noise(generator, pictures, each)
    order = generator.permutation(pictures * each)
    up, far = (np.resize(pattern, pictures * each)[order] for pattern in ([1, 1, -1, -1], [1, -1, 1, -1]))
    same = generator.random((DRAWS, pictures * each, 1)) < kept
    other = np.where(same, one * (up * far)[:, None], other)
    s, sine = s / np.cos(TURN), np.sqrt(1 - cosine**2)
    away, aside = axis(0, s * cosine) + axis(2, s * sine), axis(2, s * cosine) - axis(0, s * sine)
    clusters = np.repeat([f"picture-{i}" for i in range(pictures)], each)
    numbers = np.arange(pictures * each) // each
    vertical = deltas(generator, up, axis(0, s), axis(2, s), axis(1, w), one, numbers)
    distance = deltas(generator, far, away, aside, axis(1, w), other, numbers)
    return (
        states(np.where(up > 0, "above", "under"), clusters, vertical, generator),
        states(np.where(far > 0, "far", "close"), clusters, distance, generator),
    )


def covered(table, truth):
    return int(((table["low"] <= truth) & (truth <= table["high"])).sum())


def chosen(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table) == DRAWS
    return table


@pytest.mark.parametrize(("s", "w", "each"), [(0.55, 0.3, 2), (0.35, 0.5, 1)], ids=["strong", "weak"])
def test_consistency_covers_the_planted_direction(s, w, each):
    table = consistency(one_group(1, s, w, each=each, pictures=60 // each), n=300)
    for name in ("left", "right"):
        found = chosen(table, of=name, control="none")
        assert covered(found, s**2 + w**2) in COVERED and (found["p"] < 0.05).mean() > 0.95
    found = chosen(table, of="horizontal", control="none")
    assert covered(found, s**2) in COVERED and (found["p"] < 0.05).mean() > 0.9


def test_without_a_direction_consistency_is_seldom_claimed_and_0_is_covered():
    table = consistency(one_group(2, 0, 0), n=300)
    for name in ("left", "right", "horizontal"):
        found = chosen(table, of=name, control="none")
        assert (found["p"] < 0.05).sum() <= REJECTED
        assert covered(found, 0) >= min(COVERED)  # not too often: intervals may be too wide where there is nothing
        assert abs(found["estimate"].mean()) < 0.01


def test_a_direction_of_the_wording_is_no_consistency_of_the_group_even_where_one_category_is_rarer():
    table = consistency(one_group(3, 0, 0.6, share=0.7), n=300)
    found, null = chosen(table, of="horizontal", control="none"), chosen(table, of="horizontal", control="shuffled")
    assert (found["p"] < 0.05).sum() <= REJECTED
    assert covered(found, 0) >= min(COVERED)
    assert abs(found["estimate"].mean()) < 0.01 and abs(null["estimate"].mean()) < 0.01
    assert found["upper_triangle"].mean() == pytest.approx(0.6**2 * 0.4**2, abs=0.03)  # the published number has it: 70 to 30
    assert (chosen(table, of="left", control="none")["p"] < 0.05).mean() > 0.95  # `within` does not exclude it


@pytest.mark.parametrize(("s", "w", "cosine"), [(0.55, 0.3, 0.5), (0.4, 0.3, -0.3)], ids=["strong", "weak"])
def test_alignment_covers_the_planted_angle(s, w, cosine):
    table = alignment(*quads(4, s, w, cosine, kept=0.2, pictures=80, each=1), n=300)
    table = table[(table["definition"] == "corrected") & (table["control"] == "none")]
    left = np.mean([np.sqrt(1 - (a * s / np.cos(TURN)) ** 2 - (b * w) ** 2) for a in (0.7, 1.3) for b in (0.5, 1.5)])
    mean = s**2 * cosine + left**2 * 0.2
    assert covered(chosen(table, measure="per_sample_mean"), mean) in COVERED
    assert covered(chosen(table, measure="mean_delta_alignment"), cosine) in COVERED


@pytest.mark.parametrize("s", [0.5, 0], ids=["right-angles", "no-directions"])
def test_alignment_is_seldom_claimed_of_directions_at_right_angles_or_of_none(s):
    table = alignment(*quads(5, s, 0.35, 0, kept=0), n=300)
    for measure in ("per_sample_mean", "mean_delta_alignment"):
        found = chosen(table, measure=measure, definition="corrected", control="none")
        assert (found["p"] < 0.05).sum() <= REJECTED
        assert covered(found, 0) >= min(COVERED)
    paired = table[(table["measure"] == "per_sample_mean") & (table["control"] == "none")]
    assert (chosen(paired, definition="corrected")["p_pairing"] < 0.05).sum() <= REJECTED
    assert (chosen(paired, definition="as_published")["p"] < 0.05).sum() <= REJECTED


def test_the_probe_finds_a_planted_direction_and_no_wording():
    planted, wording = one_group(6, 0.55, 0.3, pictures=30), one_group(7, 0, 0.6, pictures=30, share=0.7)
    few = tuple(range(60))
    found = linear_probe(from_arrays(wording.pairs, *layers(wording, few)), m=200)
    found = found[(found["group"] == "horizontal") & (found["control"] == "none")]
    assert (found["p"] < 0.05).sum() <= 8  # of 60: .05 + 2.6 standard errors is 7.4
    found = linear_probe(from_arrays(planted.pairs, *layers(planted, few)), m=200)
    found = found[(found["group"] == "horizontal") & (found["control"] == "none")]
    assert found["estimate"].mean() > 0.55


def layers(held, names):
    return {name: held.original(name) for name in names}, {name: held.swapped(name) for name in names}
