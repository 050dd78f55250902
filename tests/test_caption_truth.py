"""Captions of lab scenes graded against the scene: true ones in full, and each kind of fault by its own score."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.examples import Example
from spatialprobes.probes import captions
from spatialprobes.probes.lab_captions import SCORES, graded, lab_captioned, measure
from spatialprobes.vlm import VLM
from spatialprobes.worlds import lab
from spatialprobes.worlds.lab import Scene, Thing
from spatialprobes.worlds.lab_language import CAPTION_REQUEST, Clause, caption, parse_caption

RED, BLUE, CYAN = (
    Thing("red", "circle", 10, 10, 4, 0.5),
    Thing("blue", "square", 30, 12, 4, 0.5),
    Thing("cyan", "cross", 32, 40, 4, 0.5),
)
SCENE = Scene((RED, BLUE, CYAN), 0.0)


@pytest.mark.parametrize(
    ("text", "scores"),
    [  # recall, precision, invented, colours, shapes, relations, where, clauses, parsed
        ("a red circle left of a blue square . a cyan cross under a red circle .", (1, 1, 0, 1, 1, 1, 1, 2, 1)),
        ("a red circle above a blue square .", (2 / 3, 1, 0, 1, 1, 1, 1, 1, 1)),  # 2 px higher: true on its own axis
        ("a red circle right of a blue square .", (2 / 3, 1, 0, 1, 1, 0, 0, 1, 1)),
        ("a red square left of a blue circle .", (0, 0, 2, 1, 1, 0, None, 1, 1)),  # bound wrongly
        ("a green circle left of a blue triangle .", (0, 0, 2, 1 / 2, 1 / 2, 0, None, 1, 1)),
        ("a red circle left of a green cross . a red circle above a cyan cross .", (2 / 3, 2 / 3, 1, 2 / 3, 1, 1 / 2, 1, 2, 1)),
        ("a red circle left of a red circle .", (1 / 3, 1, 0, 1, 1, 0, None, 1, 1)),
        ("a red circle yes of a blue square .", (2 / 3, 1, 0, 1, 1, None, None, 0, 0)),
        ("a red circle left of a blue square . a cyan", (2 / 3, 1, 0, 1, 1, 1, 1, 1, 0)),
        ("yes red circles yes", (0, None, 0, None, None, None, None, 0, 0)),
        ("", (0, None, 0, None, None, None, None, 0, 0)),
    ],
)
def test_each_fault_shows_in_its_own_score(text, scores):
    found = graded(text, SCENE)
    assert tuple(found) == SCORES
    for name, expected in zip(SCORES, scores, strict=True):
        assert math.isnan(found[name]) if expected is None else found[name] == pytest.approx(expected), name


@given(st.integers(0, 10_000), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_true_captions_are_right_in_everything_and_reversed_ones_in_all_but_where(index, draw):
    shown = lab.scene(5, index, 0.5)
    text = caption(shown, np.random.default_rng(draw))
    found = graded(text, shown)
    assert all(found[name] == 1 for name in SCORES if name not in ("lab_invented", "lab_clauses"))
    assert found["lab_invented"] == 0 and found["lab_clauses"] == math.ceil(len(shown.things) / 2)
    opposite = {"left of": "right of", "right of": "left of", "above": "under", "under": "above"}
    wrong = " ".join(str(replace(clause, relation=opposite[clause.relation])) for clause in parse_caption(text))
    reversed_ = graded(wrong, shown)
    assert reversed_["lab_relations"] == reversed_["lab_where"] == 0
    assert all(reversed_[name] == found[name] for name in SCORES if name not in ("lab_relations", "lab_where"))


def test_a_relation_by_chance_is_true_half_the_time():
    rng, right = np.random.default_rng(0), []
    for index in range(300):
        shown = lab.scene(6, index)
        a, b = shown.things[:2]
        word = ("left of", "right of", "above", "under")[rng.integers(4)]
        right.append(graded(str(Clause(a.name, word, b.name)), shown)["lab_where"])
    assert abs(np.mean(right) - 0.5) < 4 * 0.5 / 300**0.5


# ---- scenes to caption ----
def test_scenes_are_asked_for_a_caption_and_hold_a_true_one():
    few, more = lab_captioned(5, 3), lab_captioned(9, 3)
    for i, (one, again) in enumerate(zip(few, more, strict=False)):
        assert one.id == again.id == one.cluster == f"lab-captioned-3-{i}" and one.question == CAPTION_REQUEST
        assert one.meta["scene"] == again.meta["scene"] == lab.scene(3, i, 0.5) and one.meta["caption"] == again.meta["caption"]
        assert graded(one.meta["caption"], one.meta["scene"])["lab_recall"] == 1
        assert (np.asarray(one.image()) == lab.render(one.meta["scene"])).all()
        assert [thing.name for thing in one.objects] == [thing.name for thing in one.meta["scene"].things]
    assert lab_captioned(3, 4)[0].meta["scene"] != few[0].meta["scene"]
    assert lab_captioned(1, 3, perspective=0.0)[0].meta["perspective"] == 0.0


@pytest.mark.parametrize(("count", "seed", "perspective"), [(0, 0, 0.5), (1, -1, 0.5), (1, 0, 1.5)])
def test_what_cannot_be_drawn_is_refused(count, seed, perspective):
    with pytest.raises(ValueError):
        lab_captioned(count, seed, perspective)


# ---- tables ----
def test_a_table_is_graded_row_by_row():
    asked = lab_captioned(2, 8)
    frame = pd.DataFrame({"key": [one.id for one in asked[::-1]], "caption": [asked[1].meta["caption"], ""]}, index=[7, 3])
    found = measure(frame, asked)
    assert found.index.tolist() == [7, 3] and found["lab_recall"].tolist() == [1, 0]
    assert found["lab_relations"].isna().tolist() == [False, True]
    with pytest.raises(ValueError, match=r"no scene of 'x' among the examples \(1 lack one\)"):
        measure(frame.assign(key="x"), [Example("x", None)])


def test_lab_llava_names_what_it_sees_and_places_it_better_than_chance():
    vlm, asked = VLM.load("lab-llava"), lab_captioned(40, 12)
    frame = measure(captions.arms(vlm, asked, rerun=False, batch_size=40), asked)
    assert frame["lab_recall"].mean() > 0.95 and frame["lab_parsed"].mean() > 0.95
    assert 0.6 < frame["lab_where"].mean() < 0.95
