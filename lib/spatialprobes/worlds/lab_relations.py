"""Lab scenes asked for one relation of two objects by name, and the same said without a picture.

The questions are of the kind that every lab model learns ("is the red circle left of the blue square ?"), so what a probe finds
in them is not about unknown words. A relation and an answer are wanted in turn and two objects of the next scene are put in the
order that gives them: no scene is chosen by its answer. Knows scenes and words; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import numpy as np

from spatialprobes.examples import Example, Object
from spatialprobes.seeds import check_seed
from spatialprobes.worlds import lab, lab_language
from spatialprobes.worlds import lab_questions as questions
from spatialprobes.worlds.lab import Scene, Thing
from spatialprobes.worlds.shapeworld_examples import check_count

Truth = Literal["both", "true"]
GROUP = "2ds.shape_color_rel"
STREAM, CAPTION_STREAM = 4, 5  # last words of the random streams; `lab_questions` and `lab_pairs` take 1 to 3
NAMES = {"left of": "left", "right of": "right", "above": "above", "under": "below"}  # the lab's phrase -> the relation
_REVERSED = {"left of": "right of", "right of": "left of", "above": "under", "under": "above"}
_AXES = {"left of": "x", "right of": "x", "above": "y", "under": "y"}


def lab_relations(count: int, seed: int, *, truth: Truth = "both", perspective: float = 0.0) -> list[Example]:
    """``count`` questions "is the red circle left of the blue square ?", each on a fresh scene of stream ``seed``.

    The four relations are asked in turn. truth: "both" expects yes and no alike, "true" asks only what is so.
    category and meta["relation"]: the true relation of the two along the asked axis (left, right, above, below), whatever was
    asked; meta["word"]: the relation's word as it stands in the text (left, right, above, under); objects: subject, reference,
    then the scene's others. id: "lab-relation-<seed>-<scene>"; cluster: the scene.
    Raises ValueError for a count below 1, what is no seed, an unknown truth, and a perspective outside [0, 1].
    """
    if truth not in get_args(Truth):
        raise ValueError(f"truth is {truth!r}; it must be one of {', '.join(get_args(Truth))}")
    answers = questions.YES_NO if truth == "both" else ("yes",)
    wanted = [(phrase, answer) for answer in answers for phrase in NAMES]
    (template,) = questions.GROUPS[GROUP].templates

    def put(shown: Scene, a: Thing, b: Thing, turn: int) -> tuple[str, str | None, str, str]:
        phrase, answer = wanted[turn % len(wanted)]
        true = phrase if answer == "yes" else _REVERSED[phrase]
        return template.format(a=a.name, r=phrase, b=b.name), answer, phrase, true

    def legal(a: Thing, b: Thing, turn: int) -> bool:
        phrase, answer = wanted[turn % len(wanted)]
        true = phrase if answer == "yes" else _REVERSED[phrase]
        return questions.apart(a, b, _AXES[phrase]) and _stands(a, b, true)

    return _drawn("relation", count, seed, STREAM, perspective, legal, put)


def lab_captions(count: int, seed: int) -> list[Example]:
    """``count`` sentences "a red circle left of a blue square .", true of a fresh scene of stream ``seed`` each.

    As in the captions that the lab models learn, the relation is the one along the axis on which the two lie farther apart; the
    four are taken in turn. question and meta["caption"] are the sentence, answer is None; the rest as in `lab_relations`.
    Raises ValueError for a count below 1 and what is no seed.
    """
    phrases = tuple(NAMES)

    def put(shown: Scene, a: Thing, b: Thing, turn: int) -> tuple[str, str | None, str, str]:
        phrase = phrases[turn % len(phrases)]
        return str(lab_language.Clause(a.name, phrase, b.name)), None, phrase, phrase

    def legal(a: Thing, b: Thing, turn: int) -> bool:
        return lab_language.relation(a, b) == phrases[turn % len(phrases)]

    return _drawn("caption", count, seed, CAPTION_STREAM, 0.0, legal, put)


def ordered(shown: Scene, subject: Thing, reference: Thing) -> list[Object]:
    """The scene's objects: the subject, the reference, then the others."""
    named = {one.name: one for one in lab.objects(shown)}
    first = [named.pop(subject.name), named.pop(reference.name)]
    return first + list(named.values())


def _stands(a: Thing, b: Thing, phrase: str) -> bool:
    return lab_language.true_of(lab_language.Clause(a.name, phrase, b.name), Scene((a, b), 0.0))


def _drawn(
    what: str,
    count: int,
    seed: int,
    stream: int,
    perspective: float,
    legal: Callable[[Thing, Thing, int], bool],
    put: Callable[[Scene, Thing, Thing, int], tuple[str, str | None, str, str]],
) -> list[Example]:
    """An example of each of the first scenes that allow what is wanted in their turn."""
    check_count(count)
    check_seed(seed)
    out: list[Example] = []
    index = 0
    while len(out) < count:
        shown, turn = lab.scene(seed, index, perspective), len(out)
        things = shown.things
        couples = [(a, b) for a in things for b in things if a is not b and legal(a, b, turn)]
        if couples:
            a, b = couples[int(np.random.default_rng([seed, index, stream]).integers(len(couples)))]
            text, answer, phrase, true = put(shown, a, b, turn)
            out.append(_example(f"lab-{what}-{seed}-{index}", shown, (a, b), text, answer, phrase, true))
        index += 1
    return out


def _example(
    id: str, shown: Scene, couple: tuple[Thing, Thing], text: str, answer: str | None, phrase: str, true: str
) -> Example:
    subject, reference = couple
    return Example(
        id=id,
        image=partial(lab.picture, shown),
        question=text,
        answer=answer,
        choices=None if answer is None else list(questions.YES_NO),
        category=NAMES[true],
        group=GROUP if answer is not None else "caption",
        cluster=id,
        objects=ordered(shown, subject, reference),
        meta={
            "subject": subject.name,
            "reference": reference.name,
            "relation": NAMES[true],
            "word": phrase.split()[0],
            "caption": text if answer is None else "",
            "world_order": shown.things.index(subject) < shown.things.index(reference),
            "perspective": shown.perspective,
        },
    )
