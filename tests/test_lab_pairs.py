"""Swap pairs and quads of the lab: true to the picture, balanced, and chosen without a look at how height goes with distance."""

import pickle
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

from spatialprobes.examples import Object
from spatialprobes.images import open_image
from spatialprobes.pairs import CATEGORIES, GROUPS, OPPOSITE, SIGN, named
from spatialprobes.worlds import lab_language as language
from spatialprobes.worlds.lab import COLOURS, scene
from spatialprobes.worlds.lab_pairs import correlation, differences, lab_pairs, lab_quads
from spatialprobes.worlds.lab_questions import DEPTH_SEPARATION, SEPARATION, World, apart
from spatialprobes.worlds.lab_questions import GROUPS as QUESTIONS


@pytest.fixture(scope="module")
def pairs():
    return lab_pairs(40, 5, perspective=(0.0, 0.5))


@pytest.fixture(scope="module")
def quads():
    return {perspective: lab_quads(400, 6, perspective) for perspective in (0.0, 0.5, 1.0)}


def truth(question, image):
    """The answer read off the pixels: where the two named colours are."""
    pixels = np.asarray(image)
    seen = {colour: np.nonzero((pixels == rgb).all(-1)) for colour, rgb in COLOURS.items()}
    words = question.split()
    asked = [word for word in words if word in seen]
    (ay, ax), (by, bx) = (seen[colour] for colour in asked)
    if "left" in words:
        return "left" if ax.mean() < bx.mean() else "right"
    return "above" if ay.mean() < by.mean() else "under"


def test_pairs_are_balanced_and_keep_the_contract(pairs):
    assert Counter(pair.category for pair in pairs) == dict.fromkeys(CATEGORIES, 40)
    assert [pair.category for pair in pairs[:12]] == [*CATEGORIES, *CATEGORIES]
    assert len({pair.id for pair in pairs}) == len(pairs) == len({pair.cluster for pair in pairs})
    for pair in pairs:
        one, other = pair.members
        assert (one.id, other.id) == (f"{pair.id}:original", f"{pair.id}:swapped") == (other.twin, one.twin)
        assert one.answer == one.category == OPPOSITE[other.answer] == OPPOSITE[other.category]
        assert one.cluster == other.cluster and one.image is other.image
        assert one.choices == other.choices == list(GROUPS[pair.group]) and one.group == other.group == pair.group
        assert (one.meta["subject"], one.meta["reference"]) == (other.meta["reference"], other.meta["subject"])
        assert one.question.index(one.meta["subject"]) < one.question.index(one.meta["reference"])
        assert one.meta["perspective"] in (0.0, 0.5)
        text = QUESTIONS[f"relation.{pair.group}"].templates[0]
        assert one.question == text.format(a=one.meta["subject"], b=one.meta["reference"])
        assert all(word in language.ID for word in f"{one.question} {one.answer}".split())


def test_answers_are_those_of_the_picture_and_of_the_objects(pairs):
    by_colour = 0
    for pair in pairs:
        image = pair.original.image()
        for member in pair.members:
            a, b = named(member, "subject"), named(member, "reference")
            difference = {
                "horizontal": b.centre[0] - a.centre[0],
                "vertical": b.centre[1] - a.centre[1],
                "distance": a.depth - b.depth,
            }[pair.group]
            least = DEPTH_SEPARATION if pair.group == "distance" else SEPARATION / 48
            assert abs(difference) >= least - 1e-9
            assert (difference > 0) == (member.answer in ("left", "above", "far"))
        if "one" in pair.original.question.split() and pair.group != "distance":
            by_colour += 1
            assert truth(pair.original.question, image) == pair.original.answer
            assert truth(pair.swapped.question, image) == pair.swapped.answer
    assert by_colour > 20


def test_more_pairs_begin_with_the_same_ones_and_seeds_and_perspectives_give_others():
    few, many = lab_pairs(2, 9), lab_pairs(4, 9)
    assert [pair.id for pair in many[: len(few)]] == [pair.id for pair in few]
    assert [pair.original.question for pair in many[: len(few)]] == [pair.original.question for pair in few]
    other = {pair.id for pair in lab_pairs(2, 10)} | {pair.id for pair in lab_pairs(2, 9, perspective=0.5)}
    assert not other & {pair.id for pair in many}
    assert not {quad.cluster for quad in lab_quads(3, 9)} - {f"lab-scene-9-{i}-0.0" for i in range(20)}
    some = lab_pairs(3, 9, categories=("far", "left"))
    assert [pair.category for pair in some] == ["far", "left"] * 3


def test_pairs_survive_a_pickle_and_are_drawn_when_used(pairs):
    again = pickle.loads(pickle.dumps(pairs[3]))
    assert (np.asarray(again.original.image()) == np.asarray(pairs[3].original.image())).all()
    assert open_image(again.swapped.image).size == (48, 48)


def test_quads_ask_about_the_same_objects_in_the_same_roles(quads):
    for quad in quads[0.5]:
        vertical, distance = quad.vertical.original, quad.distance.original
        assert quad.vertical.group == "vertical" and quad.distance.group == "distance"
        assert quad.cluster == vertical.cluster == distance.cluster and vertical.image is distance.image
        for role in ("subject", "reference"):
            assert vertical.meta[role] == distance.meta[role]
            assert quad.vertical.swapped.meta[role] == quad.distance.swapped.meta[role] != vertical.meta[role]
        a, b = (named(vertical, role) for role in ("subject", "reference"))
        assert abs(a.centre[1] - b.centre[1]) >= SEPARATION / 48 - 1e-9 and abs(a.depth - b.depth) >= DEPTH_SEPARATION
        assert (vertical.answer == "above") == (a.centre[1] < b.centre[1])
        assert (distance.answer == "far") == (a.depth > b.depth)
    ids = {member.id for quad in quads[0.5] for pair in (quad.vertical, quad.distance) for member in pair.members}
    assert len(ids) == 4 * len(quads[0.5])
    assert Counter(quad.vertical.category for quad in quads[0.5]) == {"above": 200, "under": 200}


def test_height_is_independent_of_distance_at_0_and_fully_tied_at_1(quads):
    shares = {}
    for perspective, part in quads.items():
        table = Counter((quad.vertical.category, quad.distance.category) for quad in part)
        shares[perspective] = (table["above", "far"] + table["under", "close"]) / len(part)
        if perspective == 0.0:
            cells = [[table[v, d] for d in ("far", "close")] for v in ("above", "under")]
            assert scipy_stats.chi2_contingency(cells, correction=False).pvalue > 0.01
        if perspective == 1.0:
            assert table["above", "close"] == table["under", "far"] == 0
    assert abs(shares[0.0] - 0.5) < 3 * np.sqrt(0.25 / 400) and shares[1.0] == 1.0
    assert 0.7 < shares[0.5] < 0.9


def test_every_scene_that_has_two_such_objects_makes_a_quad(quads):
    """None is passed over for how height and depth agree: between the first and the last quad, scenes lack only separation."""
    used = {int(quad.id.split("-")[3]) for quad in quads[0.5]}
    legal = {
        i
        for i in range(max(used) + 1)
        for things in [scene(6, i, 0.5).things]
        if any(apart(a, b, "y") and apart(a, b, "depth") for a in things for b in things)
    }
    assert used == legal and len(legal) < max(used) + 1


def test_correlation_is_scipys_and_follows_perspective(quads):
    before = (-0.2, -0.2)
    for perspective, part in quads.items():
        table, frame = correlation(part).set_index("measure"), differences(part)
        assert table.loc["tied", "estimate"] == pytest.approx(frame["tied"].mean())
        expected = {"pearson": scipy_stats.pearsonr, "spearman": scipy_stats.spearmanr}
        for measure, of in expected.items():
            assert table.loc[measure, "estimate"] == pytest.approx(of(frame["height"], frame["distance"])[0])
            fisher = np.tanh(np.arctanh(table.loc["pearson", "estimate"]) + np.array([-1.96, 1.96]) / np.sqrt(len(part) - 3))
            if measure == "pearson" and perspective < 1:  # Fisher's interval is of bivariate normals: roughly the same
                assert table.loc[measure, ["low", "high"]].to_numpy(float) == pytest.approx(fisher, abs=0.04)
        assert (table["low"] <= table["estimate"]).all() and (table["estimate"] <= table["high"]).all()
        assert (table[["n", "clusters"]] == 400).all(None)
        now = tuple(table["estimate"][["tied", "pearson"]])
        assert all(new > old + 0.1 for new, old in zip(now, before, strict=True))
        assert (np.sign(frame["height"] * frame["distance"]) == frame["tied"]).all()
        before = now
    assert now[0] == 1.0 and now[1] > 0.97


def test_correlation_without_depths_knows_the_answers_alone():
    def bare(pair):
        members = (replace(member, objects=[]) for member in pair.members)
        return replace(pair, **dict(zip(("original", "swapped"), members, strict=True)))

    part = [replace(quad, vertical=bare(quad.vertical), distance=bare(quad.distance)) for quad in lab_quads(20, 1)]
    table = correlation(part).set_index("measure")
    tied = np.mean([SIGN[quad.vertical.category] * SIGN[quad.distance.category] for quad in part])
    assert table.loc["tied", "estimate"] == pytest.approx(tied)
    assert table.loc[["pearson", "spearman"], "estimate"].isna().all() and (table.loc[["pearson", "spearman"], "n"] == 0).all()


def test_objects_are_found_by_their_words_or_not_at_all():
    (quad,) = lab_quads(1, 2)
    things = [Object(name, (0.5, 0.5), (0, 0, 1, 1)) for name in ("red cross", "red square", "Blue cross", "square")]

    def find(words):
        found = named(replace(quad.vertical.original, objects=things, meta={"subject": words}), "subject")
        return found and found.name

    assert find("red cross") == "red cross" and find("the blue one") == "Blue cross"
    assert find("square") == "square"  # its very name, though another has the word too
    assert find("red one") is None and find("cross") is None and find("green one") is None
    assert find("") is None and find(None) is None and find("the one") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "count is 0; it must be a whole number of at least 1"),
        ((1.5, 1), "count is 1.5"),
        ((True, 1), "count is True"),
        ((1, -1), "seed=-1 is no seed"),
        ((1, 1, ("left", "up")), "category 'up' is unknown; it must be one of left, right, above"),
        ((1, 1, ("left", "left")), "category 'left' is named twice"),
        ((1, 1, ("left",), 1.5), "perspective is 1.5; it must lie in [0, 1]"),
        ((1, 1, ("far",), 0.0, World(objects=(1, 1))), "1000 scenes in a row allow no question of relation.distance"),
    ],
)
def test_what_means_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lab_pairs(*arguments)


def test_no_quads_and_worlds_without_any_are_refused():
    with pytest.raises(ValueError, match="no quads; at least one"):
        correlation([])
    with pytest.raises(ValueError, match="1000 scenes in a row hold no two objects apart in height and depth"):
        lab_quads(1, 0, world=World(objects=(1, 1)))
