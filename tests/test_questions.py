"""The table of question groups, over 10,000 scenes: answers balanced, chance as stated, truth against the pixels; captions."""

import re
from collections import Counter

import numpy as np
import pytest

from spatialprobes.worlds import lab
from spatialprobes.worlds import lab_language as language
from spatialprobes.worlds import lab_questions as questions
from spatialprobes.worlds.lab_questions import GROUPS, YES_NO

DRAWS = 10_000


@pytest.fixture(scope="module")
def scenes():
    return list(lab.scenes(11, DRAWS, (0.0, 0.5)))


@pytest.fixture(scope="module")
def asked(scenes):
    """{group: [(scene, question)]}, one question of each group per scene that allows it."""
    rng = np.random.default_rng(0)
    return {group: [(s, q) for s in scenes if (q := questions.ask(s, group, rng)) is not None] for group in GROUPS}


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "caption"])
def test_answers_are_balanced_and_chance_is_as_stated(asked, group):
    table, answers = GROUPS[group], Counter(q.answer for _, q in asked[group])
    n = sum(answers.values())
    assert n >= DRAWS * 0.7
    assert set(answers) == set(table.answers)
    assert table.chance == pytest.approx(1 / len(table.answers))
    # the best constant answer is at most 1.5 points or, for many answers, a tenth better than chance
    assert max(answers.values()) / n <= max(table.chance + 0.015, table.chance * 1.1)
    # nor does the wording (the asked colour, shape, relation or corner) give the answer away
    if set(table.answers) == set(YES_NO):
        for category, part in _by_wording(asked[group]).items():
            assert abs(np.mean([q.answer == "yes" for q in part]) - 0.5) < 0.06, category


def _by_wording(pairs):
    out = {}
    for _, q in pairs:
        words = " ".join(w for w in q.text.split() if w in ("left", "right", "above", "under", "top", "bottom"))
        out.setdefault(words, []).append(q)
    return out


def test_chance_of_one_who_knows_what_but_not_where(asked):
    for group, table in GROUPS.items():
        if group.endswith("_abs"):
            measured = np.mean([1 / len(scene.things) for scene, _ in asked[group]])
            assert table.chance_where == pytest.approx(measured, abs=0.01)


def test_size_tells_about_height_in_perspective_and_nothing_in_flat_scenes():
    """`chance_where` holds in flat scenes alone: in perspective, "the smaller one is above" is a good guess."""
    for perspective, best in ((0.0, 0.5), (0.5, 0.7)):
        pairs = [
            (a, b)
            for s in lab.scenes(8, 3000, perspective)
            for a in s.things
            for b in s.things
            if a.y + questions.SEPARATION < b.y
        ]
        guessed = np.mean([a.radius < b.radius for a, b in pairs])
        assert guessed == pytest.approx(best, abs=0.03)


@pytest.mark.parametrize("group", [g for g in GROUPS if g != "caption"])
def test_answers_are_true_of_the_pixels(asked, group):
    """An independent reading: words of the question looked up in the picture's own pixels."""
    sample = [(scene, q) for scene, q in asked[group] if all(_read_rightly(scene, t) for t in scene.things)][:300]
    assert len(sample) == 300
    for scene, q in sample:
        assert _truth(lab.render(scene), q.text.split()) == q.answer, q.text


def _read_rightly(scene, thing):
    """Whether this test's own reader of shapes knows the smallest circles from crosses: not all of them, at 6 pixels."""
    y, x = np.nonzero(lab.thing_mask(thing, scene.world))
    return _shape(x, y) == thing.shape


def _truth(image, words):
    seen = {}
    for colour, rgb in lab.COLOURS.items():
        y, x = np.nonzero((image == rgb).all(-1))
        if len(x):
            seen[colour] = (x, y)
    shape_of = {c: _shape(*at) for c, at in seen.items()}

    def find(at):
        colour = words[at] if words[at] in lab.COLOURS else next(c for c, s in shape_of.items() if s == words[at])
        return *middles[colour], colour

    middles = {colour: _middle(at, shape_of[colour]) for colour, at in seen.items()}
    text = " ".join(words)
    named = [i for i, w in enumerate(words) if w in lab.COLOURS or (w in lab.SHAPES and words[i - 1] not in lab.COLOURS)]
    if text.startswith("what color is the"):
        if "left" in words or "right" in words or "top" in words or "bottom" in words:
            return _end(middles, words)
        return find(4)[2]
    if text.startswith("what color is"):
        return _end(middles, words)
    if text.startswith("what shape is the") and words[4] in lab.COLOURS:
        return shape_of[words[4]]
    if text.startswith("what shape"):
        return shape_of[_end(middles, words)]
    if text.startswith("what is"):
        colour = _end(middles, words)
        return f"{colour} {shape_of[colour]}"
    if text.startswith("is there a "):
        return "yes" if shape_of.get(words[3]) == words[4] else "no"
    if text.startswith("is there anything"):
        right, down = words[6] == "right", words[5] == "bottom"
        inside = [c for c, (x, y) in middles.items() if (x > 32 if right else x < 16) and (y > 32 if down else y < 16)]
        return "yes" if inside else "no"
    if text.startswith("which column"):
        return str(int(find(named[0])[0] // 8))
    if text.startswith("which row"):
        return str(int(find(named[0])[1] // 8))
    (ax, ay, a), (bx, by, b) = find(named[0]), find(named[1])
    if "far" in words:
        return "close" if _radius(seen[a], shape_of[a]) > _radius(seen[b], shape_of[b]) else "far"
    if " or " in text:
        return ("left" if ax < bx else "right") if "left" in words else ("above" if ay < by else "under")
    holds = {"left": ax < bx, "right": ax > bx, "above": ay < by, "under": ay > by}
    return "yes" if holds[next(w for w in words if w in holds)] else "no"


def _middle(at, shape):
    x, y = at
    height = y.max() - y.min() + 1
    return (x.min() + x.max() + 1) / 2, y.max() + 1 - height * 0.8 / 1.8 if shape == "triangle" else (y.min() + y.max() + 1) / 2


def _end(middles, words):
    axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[
        next(w for w in words if w in ("left", "right", "top", "bottom"))
    ]
    return min(middles, key=lambda c: sign * middles[c][axis])


def _shape(x, y):
    """A square fills its box, a cross does not reach along its diagonals, a triangle is heavier below."""
    width, height = x.max() - x.min() + 1, y.max() - y.min() + 1
    if len(x) == width * height:
        return "square"
    across, down = np.abs(x - (x.min() + x.max()) / 2) / (width / 2), np.abs(y - (y.min() + y.max()) / 2) / (height / 2)
    if np.minimum(across, down).max() < 0.46:
        return "cross"
    below, above = (y > y.min() + height / 2).sum(), (y < y.min() + height / 2 - 1).sum()
    return "triangle" if below > 1.8 * above else "circle"


def _radius(at, shape):
    area = {"circle": np.pi, "square": 3.24, "triangle": 1.782, "cross": 2.31}[shape]
    return np.sqrt(len(at[0]) / area)


def test_captions_are_parsed_back_exactly_and_true(scenes):
    rng = np.random.default_rng(1)
    for scene in scenes[:2000]:
        text = language.caption(scene, rng)
        clauses = language.parse_caption(text)
        assert " ".join(map(str, clauses)) == text
        assert {n for c in clauses for n in (c.subject, c.reference)} == {t.name for t in scene.things}
        assert all(language.true_of(clause, scene) for clause in clauses)
        mirrored = lab.mirror(scene)
        assert all(language.true_of(c, mirrored) == (c.relation in ("above", "under")) for c in clauses)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the caption is empty"),
        ("a red circle left of a blue square", "word 9 is 'the end'; it must be one of ."),
        ("a red circle near a blue square .", "word 4 is 'near'; it must be one of left, right, above, under"),
        ("a pink circle above a blue square .", "word 2 is 'pink'"),
    ],
)
def test_what_is_no_caption_is_said(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        language.parse_caption(text)


def test_every_word_is_in_the_vocabulary_once(asked):
    assert len(set(language.VOCABULARY)) == len(language.VOCABULARY)
    for group, pairs in asked.items():
        for _, q in pairs[:500]:
            assert all(w in language.ID for w in f"{q.text} {q.answer}".split()), group
    shapeworld = (
        "there are two shapes a gray ellipse and a magenta semicircle . what is the spatial relationship from the first shape "
    )
    shapeworld += "to the second shape ? the spatial relation is below . adjacent to next to near rectangle pentagon cyan"
    assert set(shapeworld.split()) <= set(language.VOCABULARY)


def test_twins_exchange_subject_and_reference():
    pairs = questions.examples(
        20, 5, ["relation.horizontal", "relation.vertical", "relation.distance", "2ds.shape_rel"], twins=True
    )
    assert len(pairs) == 160
    by_id = {e.id: e for e in pairs}
    for example in pairs:
        other = by_id[example.twin]
        assert other.twin == example.id and other.cluster == example.cluster
        assert other.answer != example.answer and set((other.answer, example.answer)) == set(example.choices)
        assert other.meta["subject"] == example.meta["reference"]
        assert sorted(other.question.split()) == sorted(example.question.split())


def test_the_same_seed_gives_the_same_questions_and_another_seed_others():
    first, again, other = (questions.examples(5, seed) for seed in (3, 3, 4))
    assert [e.question for e in first] == [e.question for e in again]
    assert [e.question for e in first] != [e.question for e in other]
    assert Counter(e.group for e in first) == dict.fromkeys(GROUPS, 5)
    with pytest.raises(ValueError, match=r"question group is 'colour'; it must be one of semantic\.color"):
        questions.examples(1, 0, ["colour"])


@pytest.mark.parametrize(
    ("count", "seed", "named"), [(-3, 0, "count is -3"), (0, 0, "count is 0"), (1.5, 0, "count is 1.5"), (1, -1, "seed is -1")]
)
def test_counts_and_seeds_that_mean_nothing_are_refused_at_once(count, seed, named):
    with pytest.raises(ValueError, match=re.escape(f"{named}; it must be a whole number of at least")):
        questions.examples(count, seed)
