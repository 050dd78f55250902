"""The lab's questions: one table of groups, each with its templates, answers, chance level and kind.

A group is asked of a scene only if the scene could have either answer, so that answers stay balanced whatever the scene.
Knows scenes and words; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from spatialprobes.examples import Example
from spatialprobes.worlds.lab import COLOURS, CORNERS, SHAPES, WORLD, Scene, Thing, World, objects, occupied, picture, scene
from spatialprobes.worlds.lab_language import CAPTION_REQUEST, caption

SEPARATION = 4.0  # pixels by which asked objects differ on the asked axis
DEPTH_SEPARATION = 0.3  # the same for depth; 1.05 px of radius
YES_NO = ("yes", "no")


@dataclass(frozen=True)
class Question:
    """A question about a scene. ``subject`` and ``reference`` are the words that stand for the two objects, where there are two;
    ``twin`` is the same question with the two exchanged, ``twin_answer`` its answer."""

    group: str
    category: str
    text: str
    answer: str
    subject: str = ""
    reference: str = ""
    twin: str = ""
    twin_answer: str = ""


Ask = Callable[[Scene, np.random.Generator, str], Question | None]


@dataclass(frozen=True)
class Group:
    """A kind of question.

    kind: "semantic" (what is there), "spatial" (where in the picture), "depth" (how near; visible as size), "caption".
    answers: the closed set. chance: accuracy of the best answer that ignores picture and wording. chance_where: of the best
    answer by someone who knows which objects there are, but not where (None where place is not asked); it holds in flat scenes
    alone (perspective 0), since in perspective the smaller object is likely to be the higher one.
    """

    name: str
    kind: str
    templates: tuple[str, ...]
    answers: tuple[str, ...]
    chance: float
    chance_where: float | None
    ask: Ask


def refer(thing: Thing, form: str) -> str:
    """An object by its shape, its colour or both."""
    return {"shape": thing.shape, "colour": f"{thing.colour} one", "both": thing.name}[form]


FORMS = ("shape", "colour", "both")


def _pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def apart(a: Thing, b: Thing, axis: str) -> bool:
    """Whether two objects are far enough apart on the axis (x, y or depth) to be asked about."""
    return abs(getattr(a, axis) - getattr(b, axis)) >= (DEPTH_SEPARATION if axis == "depth" else SEPARATION)


def _pair(scene: Scene, rng: np.random.Generator, axis: str) -> tuple[Thing, Thing] | None:
    """Two objects far enough apart on the axis, in random order."""
    legal = [(a, b) for a in scene.things for b in scene.things if apart(a, b, axis)]
    return _pick(rng, legal) if legal else None


# ---- semantic ----
def _colour(scene: Scene, rng: np.random.Generator, template: str) -> Question:
    thing = _pick(rng, scene.things)
    return Question("semantic.color", "color", template.format(a=thing.shape), thing.colour, thing.shape)


def _shape(scene: Scene, rng: np.random.Generator, template: str) -> Question:
    thing = _pick(rng, scene.things)
    return Question("semantic.shape", "shape", template.format(a=f"{thing.colour} one"), thing.shape, f"{thing.colour} one")


def _existence(scene: Scene, rng: np.random.Generator, template: str) -> Question:
    there = {t.name for t in scene.things}
    if rng.random() < 0.5:
        name, answer = _pick(rng, sorted(there)), "yes"
    else:  # a colour that is there with a shape that is there, wrongly bound, or anything that is not there
        bound = [f"{a.colour} {b.shape}" for a in scene.things for b in scene.things if a is not b]
        any_ = [f"{c} {s}" for c in COLOURS for s in SHAPES if f"{c} {s}" not in there]
        name, answer = _pick(rng, bound if rng.random() < 0.5 else any_), "no"
    return Question("semantic.existence", answer, template.format(a=name), answer, name)


# ---- relations ----
_WORDS = {"x": ("left", "right"), "y": ("above", "under"), "depth": ("close", "far")}
AXES = {"relation.horizontal": "x", "relation.vertical": "y", "relation.distance": "depth"}


def _relation(scene: Scene, rng: np.random.Generator, template: str, *, group: str) -> Question | None:
    pair = _pair(scene, rng, AXES[group])
    return None if pair is None else relate(*pair, group, template, _pick(rng, FORMS))


def relate(a: Thing, b: Thing, group: str, template: str, form: str) -> Question:
    """Where a is, seen from b, on the axis of the group (one of ``AXES``), both named in the same form (one of ``FORMS``)."""
    axis = AXES[group]
    less, more = _WORDS[axis]
    first = getattr(a, axis) < getattr(b, axis)
    answer, other = (less, more) if first else (more, less)
    a_name, b_name = refer(a, form), refer(b, form)
    return Question(
        group, answer, template.format(a=a_name, b=b_name), answer, a_name, b_name, template.format(a=b_name, b=a_name), other
    )


# ---- the six kinds of 2DS: {colour, shape, shape and colour} x {absolute, relative} ----
_ENDS = {"on the left": ("x", 1), "on the right": ("x", -1), "at the top": ("y", 1), "at the bottom": ("y", -1)}


def _absolute(scene: Scene, rng: np.random.Generator, template: str, *, group: str, form: str) -> Question | None:
    legal = []
    for place, (axis, sign) in _ENDS.items():
        order = sorted(scene.things, key=lambda t: sign * getattr(t, axis))
        if abs(getattr(order[0], axis) - getattr(order[1], axis)) >= SEPARATION:
            legal.append((place, order[0]))
    if not legal:
        return None
    place, thing = _pick(rng, legal)
    answer = {"colour": thing.colour, "shape": thing.shape, "both": thing.name}[form]
    return Question(group, place.split()[-1], template.format(place=place), answer)


_RELATIONS = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "under": ("y", -1)}


def _relative(scene: Scene, rng: np.random.Generator, template: str, *, group: str, form: str) -> Question | None:
    word = _pick(rng, tuple(_RELATIONS))
    axis, sign = _RELATIONS[word]
    pair = _pair(scene, rng, axis)
    if pair is None:
        return None
    a, b = pair
    answer, other = YES_NO if sign * getattr(a, axis) < sign * getattr(b, axis) else YES_NO[::-1]
    a_name, b_name = refer(a, form), refer(b, form)
    return Question(
        group,
        word.split()[0],
        template.format(a=a_name, r=word, b=b_name),
        answer,
        a_name,
        b_name,
        template.format(a=b_name, r=word, b=a_name),
        other,
    )


# ---- bins, corners, captions ----
def _bin(scene: Scene, rng: np.random.Generator, template: str, *, group: str, axis: str) -> Question:
    thing = _pick(rng, scene.things)
    name = refer(thing, _pick(rng, FORMS))
    cell = str(int(getattr(thing, axis) // scene.world.patch))
    return Question(group, cell, template.format(a=name), cell, name)


def _corner(scene: Scene, rng: np.random.Generator, template: str) -> Question | None:
    state = {corner: occupied(scene, corner) for corner in CORNERS}
    yes, no = ([c for c, s in state.items() if s is wanted] for wanted in (True, False))
    if not yes or not no:
        return None
    answer = _pick(rng, YES_NO)
    corner = _pick(rng, yes if answer == "yes" else no)
    return Question("corner", corner, template.format(corner=corner), answer)


def _caption(scene: Scene, rng: np.random.Generator, template: str) -> Question:
    return Question("caption", "caption", template, caption(scene, rng))


_BOTH = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES)
_CELLS = tuple(map(str, range(WORLD.grid)))
_SEEN = (1 / 2 + 1 / 3 + 1 / 4) / 3  # one of 2, 3 or 4 objects, each number as likely


def _groups() -> Iterator[Group]:
    yield Group("semantic.color", "semantic", ("what color is the {a} ?",), tuple(COLOURS), 1 / 6, None, _colour)
    yield Group("semantic.shape", "semantic", ("what shape is the {a} ?",), SHAPES, 1 / 4, None, _shape)
    yield Group("semantic.existence", "semantic", ("is there a {a} ?",), YES_NO, 1 / 2, None, _existence)
    for name, kind, template in (
        ("relation.horizontal", "spatial", "is the {a} left or right of the {b} ?"),
        ("relation.vertical", "spatial", "is the {a} above or under the {b} ?"),
        ("relation.distance", "depth", "is the {a} far or close compared to the {b} ?"),
    ):
        where = 1 / 2 if kind == "spatial" else None
        yield Group(name, kind, (template,), _WORDS[AXES[name]], 1 / 2, where, partial(_relation, group=name))
    for what, form, answers in (("color", "colour", tuple(COLOURS)), ("shape", "shape", SHAPES), ("shape_color", "both", _BOTH)):
        name = f"2ds.{what}_abs"
        template = f"what {what} is {{place}} ?" if form != "both" else "what is {place} ?"
        yield Group(name, "spatial", (template,), answers, 1 / len(answers), _SEEN, partial(_absolute, group=name, form=form))
        name = f"2ds.{what}_rel"
        yield Group(
            name, "spatial", ("is the {a} {r} the {b} ?",), YES_NO, 1 / 2, 1 / 2, partial(_relative, group=name, form=form)
        )
    yield Group(
        "bin.column",
        "spatial",
        ("which column is the {a} in ?",),
        _CELLS,
        1 / 6,
        1 / 6,
        partial(_bin, group="bin.column", axis="x"),
    )
    yield Group(
        "bin.row", "spatial", ("which row is the {a} in ?",), _CELLS, 1 / 6, 1 / 6, partial(_bin, group="bin.row", axis="y")
    )
    yield Group("corner", "spatial", ("is there anything in the {corner} corner ?",), YES_NO, 1 / 2, 1 / 2, _corner)
    yield Group("caption", "caption", (CAPTION_REQUEST,), (), 0.0, None, _caption)


GROUPS: dict[str, Group] = {group.name: group for group in _groups()}


def of_kind(kind: str) -> tuple[str, ...]:
    """Names of the groups of a kind."""
    return tuple(name for name, group in GROUPS.items() if group.kind == kind)


def ask(scene: Scene, group: str, rng: np.random.Generator) -> Question | None:
    """A question of the group about the scene; None where the scene does not allow one."""
    if group not in GROUPS:
        raise ValueError(f"question group is {group!r}; it must be one of {', '.join(GROUPS)}")
    return GROUPS[group].ask(scene, rng, _pick(rng, GROUPS[group].templates))


def examples(
    count: int,
    seed: int,
    groups: Sequence[str] | None = None,
    perspective: float | tuple[float, ...] = (0.0, 0.5),
    twins: bool = False,
    world: World = WORLD,
) -> list[Example]:
    """``count`` questions of every group, each on a fresh scene of stream ``seed``, as single turns.

    Scene i of the stream is asked group i mod len(groups), again and again until every group has its count.
    twins: with every question that has one, also its twin (same picture, subject and reference exchanged), right after it.
    Raises ValueError for a count below 1, a negative seed, or an unknown group.
    """
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    groups = list(GROUPS) if groups is None else list(groups)
    left, out, index = dict.fromkeys(groups, count), [], 0
    while any(left.values()):
        group, index = groups[index % len(groups)], index + 1
        if not left[group]:
            continue
        rng = np.random.default_rng([seed, index, 1])
        shown = scene(seed, index, perspective, world=world)
        question = ask(shown, group, rng)
        if question is None:
            continue
        left[group] -= 1
        out.extend(as_examples(shown, question, f"lab-{seed}-{index}", twins=twins))
    return out


def as_examples(shown: Scene, question: Question, id: str, twins: bool = False) -> list[Example]:
    """The question about the scene as Example, with its twin as a second one if asked for and there is one."""
    has_twin = twins and bool(question.twin)
    common = dict(
        image=partial(picture, shown),
        group=question.group,
        cluster=id,
        objects=objects(shown),
        choices=list(GROUPS[question.group].answers) or None,
    )
    meta = {
        "perspective": shown.perspective,
        "kind": GROUPS[question.group].kind,
        "subject": question.subject,
        "reference": question.reference,
    }
    out = [
        Example(
            id=id,
            question=question.text,
            answer=question.answer,
            category=question.category,
            twin=f"{id}-twin" if has_twin else None,
            meta=meta,
            **common,
        )
    ]
    if has_twin:
        category = question.category if question.answer in YES_NO else question.twin_answer
        swapped = {**meta, "subject": question.reference, "reference": question.subject}
        out.append(
            Example(
                id=f"{id}-twin",
                question=question.twin,
                answer=question.twin_answer,
                category=category,
                twin=id,
                meta=swapped,
                **common,
            )
        )
    return out
