"""Lab scenes asked for one relation: what is said to be true is so by the boxes, in words that every lab model knows."""

from collections import Counter

import numpy as np
import pytest

from spatialprobes.worlds import lab_questions
from spatialprobes.worlds.lab import COLOURS
from spatialprobes.worlds.lab_language import VOCABULARY, parse_caption
from spatialprobes.worlds.lab_relations import lab_captions, lab_relations

AXIS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
MEANT = {"left": "left", "right": "right", "above": "above", "under": "below"}


def difference(example):
    """Subject minus reference along the relation's axis, in its direction, as a share of the picture."""
    axis, sign = AXIS[example.meta["relation"]]
    subject, reference = example.objects[:2]
    return sign * (subject.centre[axis] - reference.centre[axis])


def test_relations_and_answers_are_balanced_and_true():
    found = lab_relations(80, 3)
    assert Counter((one.meta["word"], one.answer) for one in found) == {(w, a): 10 for w in MEANT for a in ("yes", "no")}
    for one in found:
        assert one.meta["relation"] == one.category and difference(one) >= lab_questions.SEPARATION / 48
        assert (one.answer == "yes") == (MEANT[one.meta["word"]] == one.meta["relation"])
        assert [each.name for each in one.objects[:2]] == [one.meta["subject"], one.meta["reference"]]
        phrase = one.meta["word"] + (" of" if one.meta["word"] in ("left", "right") else "")
        assert one.question == f"is the {one.meta['subject']} {phrase} the {one.meta['reference']} ?"
        assert set(one.question.split()) <= set(VOCABULARY) and one.choices == ["yes", "no"]


def test_true_questions_are_all_answered_yes():
    found = lab_relations(20, 3, truth="true")
    assert Counter(one.answer for one in found) == {"yes": 20}
    assert Counter(one.category for one in found) == dict.fromkeys(AXIS, 5)


def test_their_form_is_one_that_the_lab_models_are_asked():
    """The very words of the group that training draws from, subject, relation and reference aside."""
    (template,) = lab_questions.GROUPS["2ds.shape_color_rel"].templates
    trained = lab_questions.examples(30, 0, ["2ds.shape_color_rel"])
    ours = lab_relations(30, 0)
    for one in (*trained, *ours):
        phrase = "left of" if " left of " in one.question else "right of" if " right of " in one.question else None
        phrase = phrase or ("above" if " above " in one.question else "under")
        assert one.question == template.format(a=one.meta["subject"], r=phrase, b=one.meta["reference"])
    assert {one.group for one in ours} == {one.group for one in trained}


def test_objects_are_where_the_picture_shows_them():
    for one in lab_relations(12, 9):
        pixels = np.asarray(one.image()).astype(int)
        for thing in one.objects:
            left, top, right, bottom = (round(edge * 48) for edge in thing.box)
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            colours = Counter(map(tuple, inside.tolist()))
            assert COLOURS[thing.name.split()[0]] in colours
        assert len({each.name for each in one.objects}) == len(one.objects) >= 2


def test_captions_state_what_is_so_along_the_longer_axis():
    found = lab_captions(40, 4)
    assert Counter(one.category for one in found) == dict.fromkeys(AXIS, 10)
    for one in found:
        (clause,) = parse_caption(one.question)
        assert (clause.subject, clause.reference) == (one.meta["subject"], one.meta["reference"])
        assert clause.relation.split()[0] == one.meta["word"] and MEANT[one.meta["word"]] == one.meta["relation"]
        subject, reference = (np.array(each.centre) for each in one.objects[:2])
        axis = AXIS[one.meta["relation"]][0]
        assert difference(one) >= abs(subject - reference)[1 - axis] and one.answer is None
        assert one.meta["caption"] == one.question


def test_a_stream_goes_on_where_a_shorter_one_ended():
    for draw in (lab_relations, lab_captions):
        long, short = draw(12, 6), draw(5, 6)
        assert [(one.id, one.question, one.answer) for one in long[:5]] == [(one.id, one.question, one.answer) for one in short]
        assert len({one.id for one in long}) == 12 and long[0].question != draw(1, 7)[0].question


def test_perspective_ties_height_to_distance():
    def tied(perspective):
        pairs = [one.objects[:2] for one in lab_relations(150, 1, perspective=perspective)]
        return np.corrcoef([a.centre[1] - b.centre[1] for a, b in pairs], [a.depth - b.depth for a, b in pairs])[0, 1]

    assert abs(tied(0.0)) < 0.25 and tied(1.0) < -0.9


def test_what_cannot_be_drawn_is_said_in_a_line():
    for change, said in (
        (lambda: lab_relations(-1, 0), "count is -1"),
        (lambda: lab_relations(True, 0), "count is True"),
        (lambda: lab_relations(1, 2**32), "is no seed"),
        (lambda: lab_relations(1, 0, truth="false"), "truth is 'false'; it must be one of both, true"),
        (lambda: lab_relations(1, 0, perspective=2), r"perspective is 2; it must lie in \[0, 1\]"),
        (lambda: lab_captions(0, 0), "count is 0"),
        (lambda: lab_captions(1, "a"), "seed='a' is no seed"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            change()
        assert "\n" not in str(caught.value)
