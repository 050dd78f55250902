"""What is said and asked about a ShapeWorld world: the published caption, and the questions that a lab model learns from.

Knows worlds and words; knows nothing of files and models.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spatialprobes.worlds.lab import CORNERS
from spatialprobes.worlds.lab_questions import Question
from spatialprobes.worlds.shapeworld import RELATIONS, Entity, TwoShapes

ASKED = "what is the spatial relationship from the first shape to the second shape ?"
STATED = "the spatial relation is"
BINS = 6  # columns and rows that the questions about place count
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_PLACES = {"on the left": (0, 1), "on the right": (0, -1), "at the top": (1, 1), "at the bottom": (1, -1)}
CORNER = 1 / 3  # side of the square that counts as a corner


def named(entity: Entity) -> str:
    """The entity with its article."""
    return f"{'an' if entity.colour[0] in 'aeiou' else 'a'} {entity.name}"


def statement(subject: Entity, reference: Entity) -> str:
    """The first sentence of the published caption."""
    return f"there are two shapes {named(subject)} and {named(reference)} ."


def caption(subject: Entity, reference: Entity, relation: str) -> str:
    """The published caption, with its question and its answer."""
    return f"{statement(subject, reference)} {ASKED} {STATED} {relation} ."


def _relation(world: TwoShapes, rng: np.random.Generator, group: str, text: str) -> Question:
    subject, reference = world.pair
    relation = world.relation
    if rng.random() < 0.5:
        subject, reference, relation = reference, subject, OPPOSITE[relation]
    return Question(
        group, relation, f"{statement(subject, reference)} {text}", relation, subject.name, reference.name,
        f"{statement(reference, subject)} {text}", OPPOSITE[relation],
    )  # fmt: skip


def _asked(world: TwoShapes, rng: np.random.Generator) -> Question:
    return _relation(world, rng, "relation.asked", ASKED)


def _completed(world: TwoShapes, rng: np.random.Generator) -> Question:
    return _relation(world, rng, "relation.caption", f"{ASKED} {STATED}")


def _one(world: TwoShapes, rng: np.random.Generator) -> Entity:
    return world.entities[int(rng.integers(2))]


def _referred(world: TwoShapes, rng: np.random.Generator) -> tuple[Entity, str]:
    """One of the entities, by its shape, by both words, or by its colour where the other has not the same."""
    it = _one(world, rng)
    forms = [it.shape, it.name]
    if world.entities[0].colour != world.entities[1].colour:
        forms.append(f"{it.colour} one")
    return it, forms[int(rng.integers(len(forms)))]


def _colour(world: TwoShapes, rng: np.random.Generator) -> Question:
    it = _one(world, rng)
    return Question("semantic.color", it.colour, f"what color is the {it.shape} ?", it.colour, it.shape)


def _shape(world: TwoShapes, rng: np.random.Generator) -> Question | None:
    it, other = rng.permutation(np.array(world.entities, object))
    if it.colour == other.colour:
        return None
    return Question("semantic.shape", it.shape, f"what shape is the {it.colour} one ?", it.shape, f"{it.colour} one")


def _bin(world: TwoShapes, rng: np.random.Generator, group: str, axis: int) -> Question:
    it, name = _referred(world, rng)
    cell = str(min(int(it.centre[axis] * BINS), BINS - 1))
    return Question(f"bin.{group}", cell, f"which {group} is the {name} in ?", cell, name)


def _column(world: TwoShapes, rng: np.random.Generator) -> Question:
    return _bin(world, rng, "column", 0)


def _row(world: TwoShapes, rng: np.random.Generator) -> Question:
    return _bin(world, rng, "row", 1)


def _end(world: TwoShapes, rng: np.random.Generator) -> Question:
    along = 0 if RELATIONS[world.relation][0] == "x" else 1
    places = [place for place, (axis, _) in _PLACES.items() if axis == along]
    place = places[int(rng.integers(2))]
    axis, sign = _PLACES[place]
    it = min(world.entities, key=lambda e: sign * e.centre[axis])
    return Question("2ds.shape_abs", place.split()[-1], f"what shape is {place} ?", it.shape)


def occupied(world: TwoShapes, corner: str) -> bool | None:
    """Whether an entity's centre lies in the corner's square; None where an extent reaches in but no centre does."""
    right, down = CORNERS[corner]

    def inside(x: float, y: float) -> bool:
        return (x > 1 - CORNER if right else x < CORNER) and (y > 1 - CORNER if down else y < CORNER)

    if any(inside(*entity.centre) for entity in world.entities):
        return True
    reach = [(e.box[2] if right else e.box[0], e.box[3] if down else e.box[1]) for e in world.entities]
    return None if any(inside(x, y) for x, y in reach) else False


def _corner(world: TwoShapes, rng: np.random.Generator) -> Question | None:
    state = {corner: occupied(world, corner) for corner in CORNERS}
    answer = ("yes", "no")[int(rng.integers(2))]
    legal = [corner for corner, there in state.items() if there is (answer == "yes")]
    if not legal:
        return None
    corner = legal[int(rng.integers(len(legal)))]
    return Question("corner", corner, f"is there anything in the {corner} corner ?", answer)


Ask = Callable[[TwoShapes, np.random.Generator], Question | None]
GROUPS: dict[str, Ask] = {
    "relation.asked": _asked, "relation.caption": _completed, "semantic.color": _colour, "semantic.shape": _shape,
    "bin.column": _column, "bin.row": _row, "2ds.shape_abs": _end, "corner": _corner,
}  # fmt: skip
