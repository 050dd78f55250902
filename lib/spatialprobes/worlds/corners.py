"""Pairs of pictures that differ by one object in a corner: the study's own, drawn as its generator draws them, and the lab's.

A pair's control is its full picture without the subject. Sets of the four corners are matched: pair i of one corner has the same
shapes, sizes and colours as pair i of another, only elsewhere, and shares ``meta["match"]``, which is what is resampled together.
Facts of the study's generator: seamoon76/VLM-reasoning, ``generate_dataset.py``. Knows nothing of files (``corner_files.py``) and
models.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil, cos, floor, pi, sin
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw

from spatialprobes.examples import Example, Object
from spatialprobes.seeds import check_seed
from spatialprobes.worlds import lab, lab_language
from spatialprobes.worlds.lab import Scene
from spatialprobes.worlds.shapeworld_examples import check_count

CORNERS = {"topleft": "top left", "topright": "top right", "bottomleft": "bottom left", "bottomright": "bottom right"}
OPPOSITE = {"topleft": "bottomright", "topright": "bottomleft", "bottomleft": "topright", "bottomright": "topleft"}
RELATION = {  # of a subject in the corner to a reference in the opposite one
    "topleft": "upper_left_of", "topright": "upper_right_of", "bottomleft": "lower_left_of", "bottomright": "lower_right_of",
}  # fmt: skip
_PHRASE = {
    "topleft": "above and to the left of", "topright": "above and to the right of",
    "bottomleft": "below and to the left of", "bottomright": "below and to the right of",
}  # fmt: skip
QUESTION = "Is there anything in the {words} corner?"
SIDE = 1 / 3  # of the square that counts as a corner, as a share of the picture

SHAPES = ("triangle", "square", "circle", "pentagon", "star")
COLOURS = (
    (52, 101, 164), (192, 57, 43), (39, 174, 96), (142, 68, 173), (243, 156, 18), (41, 128, 185), (22, 160, 133), (127, 140, 141),
)  # fmt: skip
BACKGROUND = (245, 245, 245)
SMALLEST, LARGEST = 12, 22  # pixels between the first and the last of a shape, before a cell cuts the larger ones

Member = Literal["full", "control"]
MEMBERS: tuple[Member, ...] = ("full", "control")
Picture = Path | Image.Image | Callable[[], Image.Image]
Pixels = tuple[int, int, int, int]


@dataclass(frozen=True)
class CornerPair:
    """A picture with a subject in a corner, and the same without it.

    id: unique over the corners; corner: one of ``CORNERS``. full, control: as `Example.image`, decoded when used.
    objects: subject, reference, and what else is there; boxes in fractions of the picture.
    caption, relation: as the source has them. occupied: for "full" and "control" the corners in which an object's middle lies.
    meta: "match", the same for the pairs of the other corners that differ by the corner alone.
    """

    id: str
    corner: str
    full: Picture
    control: Picture
    objects: list[Object]
    caption: str
    relation: str
    occupied: dict[str, tuple[str, ...]]
    meta: dict[str, Any] = field(default_factory=dict)


def check_corner(corner: str) -> str:
    """The corner. Raises ValueError for one that is not among ``CORNERS``."""
    if corner not in CORNERS:
        raise ValueError(f"corner is {corner!r}; it must be one of {', '.join(CORNERS)}")
    return corner


def corner_at(x: float, y: float) -> str | None:
    """The corner whose square a point lies in (fractions of the picture, y down); None elsewhere."""
    row = "top" if y < SIDE else "bottom" if y > 1 - SIDE else None
    column = "left" if x < SIDE else "right" if x > 1 - SIDE else None
    return row + column if row and column else None


def occupied(objects: Sequence[Object]) -> dict[str, tuple[str, ...]]:
    """The corners taken in the full picture, and in the control, which lacks the first of the objects."""
    at = [corner_at(*one.centre) for one in objects]
    return {member: tuple(c for c in CORNERS if c in taken) for member, taken in zip(MEMBERS, (at, at[1:]), strict=True)}


def corner_examples(pairs: Iterable[CornerPair], asked: str | Iterable[str] = tuple(CORNERS)) -> list[Example]:
    """Both members of every pair, asked whether there is anything in each of the corners, yes or no.

    id: "<pair>-<member>-<asked>"; cluster: the pair's match, so that the same pair in four corners counts once; objects: what the
    member shows, the subject first in the full one; meta: pair, corner, member, asked. In the study's pairs the reference stands
    in the opposite corner, of which the answer is yes in both members.
    Raises ValueError for an unknown corner.
    """
    asked = [check_corner(one) for one in ([asked] if isinstance(asked, str) else asked)]
    return [_example(pair, member, corner) for pair in pairs for member in MEMBERS for corner in asked]


def _example(pair: CornerPair, member: Member, asked: str) -> Example:
    return Example(
        id=f"{pair.id}-{member}-{asked}",
        image=pair.full if member == "full" else pair.control,
        question=QUESTION.format(words=CORNERS[asked]),
        answer="yes" if asked in pair.occupied[member] else "no",
        choices=["yes", "no"],
        category=asked,
        group="corner",
        cluster=pair.meta.get("match", pair.id),
        objects=pair.objects if member == "full" else pair.objects[1:],
        meta={"pair": pair.id, "corner": pair.corner, "member": member, "asked": asked},
    )


# ---- the study's pairs ----
def study_pairs(corner: str, count: int = 100, seed: int = 7, size: int = 64) -> list[CornerPair]:
    """What the study's generator makes of a seed: boxes, shapes, colours and pixels, from Python's own random stream.

    Subject in the corner, reference in the opposite one, two of five shapes in two of eight colours. size: side of the picture,
    pixels. The same seed gives the same pairs in every corner, but for their places. id: "<corner>-pair_<number>".
    Raises ValueError for an unknown corner, a count below 1, what is no seed, and a size whose cells hold no shape.
    """
    check_corner(corner)
    check_count(count)
    check_count(size, "size")
    rng = random.Random(check_seed(seed))
    cells = [_cell(one, size) for one in (corner, OPPOSITE[corner])]
    return [_study_pair(rng, corner, number, size, cells) for number in range(count)]


def _cell(corner: str, size: int) -> tuple[range, range]:
    """Pixels along x and y that shapes in this cell of the 3 x 3 may take. Raises ValueError where they are too few."""
    margin, pad = max(4, size // 16), max(2, size // 32)
    third = (size - 2 * margin) / 3
    places = []
    for place in (0 if "left" in corner else 2, 0 if "top" in corner else 2):
        places.append(range(floor(margin + place * third) + pad, ceil(margin + (place + 1) * third) - pad + 1))
    if len(places[0]) <= SMALLEST:
        raise ValueError(f"size is {size}; a cell takes shapes of {SMALLEST} pixels and more in pictures of about 55 and more")
    return places[0], places[1]


def _study_pair(rng: random.Random, corner: str, number: int, size: int, cells: list[tuple[range, range]]) -> CornerPair:
    """Draws in the generator's order, its choice among one relation included: that too takes from the stream."""
    shapes = rng.sample(SHAPES, 2)
    relation = rng.choice((RELATION[corner],))
    sides = [rng.randint(SMALLEST, min(LARGEST, len(columns) - 1)) for columns, _ in cells]
    boxes = []
    for side, cell in zip(sides, cells, strict=True):
        x, y = (rng.randint(along[0], along[-1] - side) for along in cell)
        boxes.append((x, y, x + side, y + side))
    colours = rng.sample(COLOURS, 2)
    things = list(zip(shapes, boxes, colours, strict=True))
    objects = [from_pixels(shape, box, size) for shape, box, _ in things]
    return CornerPair(
        id=f"{corner}-pair_{number:05d}",
        corner=corner,
        full=partial(_picture, tuple(things), size),
        control=partial(_picture, tuple(things[1:]), size),
        objects=objects,
        caption=f"Is the {shapes[0]} {_PHRASE[corner]} the {shapes[1]}?",
        relation=relation,
        occupied=occupied(objects),
        meta={"match": f"pair_{number:05d}"},
    )


def from_pixels(name: str, box: Pixels, size: int) -> Object:
    """An object of the study's box: its first and its last pixel, both included, along x and y."""
    left, top, right, bottom = box[0] / size, box[1] / size, (box[2] + 1) / size, (box[3] + 1) / size
    return Object(name, ((left + right) / 2, (top + bottom) / 2), (left, top, right, bottom))


def _picture(things: tuple[tuple[str, Pixels, tuple[int, int, int]], ...], size: int) -> Image.Image:
    image = Image.new("RGB", (size, size), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    for shape, box, colour in things:
        left, top, right, bottom = box
        if shape == "square":
            canvas.rectangle(box, fill=colour)
        elif shape == "circle":
            canvas.ellipse(box, fill=colour)
        elif shape == "triangle":
            canvas.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill=colour)
        else:
            canvas.polygon(_around(box, *{"pentagon": (0.95,), "star": (0.48, 0.22)}[shape]), fill=colour)
    return image


def _around(box: Pixels, *radii: float) -> list[tuple[float, float]]:
    """Five points a radius, from the top on clockwise; radii in halves of the box, taken in turn."""
    left, top, right, bottom = box
    points = []
    for i in range(5 * len(radii)):
        angle, radius = (-90 + i * (72 // len(radii))) * pi / 180, radii[i % len(radii)]
        x, y = (right - left) / 2 * radius * cos(angle), (bottom - top) / 2 * radius * sin(angle)
        points.append(((left + right) / 2 + x, (top + bottom) / 2 + y))
    return points


# ---- the lab's pairs ----
def lab_corner_pairs(corner: str, count: int, seed: int) -> list[CornerPair]:
    """Lab scenes with an object in the corner, and without it; nothing else has its middle in that corner.

    Scenes are drawn for the top left corner and carried to the others by a mirror or half a turn, so that pair i of each corner
    shows the same objects, of the same size. Scenes of which some corner is neither plainly taken nor plainly free (an outline
    reaches in, no centre does) are passed over. id: "<corner>-lab-<seed>-<scene>"; relation and caption: of the subject to the
    next of the scene's objects, along the axis on which they lie farther apart.
    Raises ValueError for an unknown corner, a count below 1, and what is no seed.
    """
    check_corner(corner)
    check_count(count)
    check_seed(seed)
    out: list[CornerPair] = []
    index = 0
    while len(out) < count:
        full, control = (_carried(one, corner) for one in lab.corner_pair(seed, index, "top left"))
        state = [{name: lab.occupied(one, words) for name, words in CORNERS.items()} for one in (full, control)]
        if state[1][corner] is False and not any(None in one.values() for one in state):
            out.append(_lab_pair(full, control, corner, f"lab-{seed}-{index}", state))
        index += 1
    return out


def _carried(shown: Scene, corner: str) -> Scene:
    """A scene of the top left corner in another one: every place moves alike, every object stays upright."""
    if corner in ("bottomleft", "bottomright"):
        shown = lab.rotate(shown, 2)
    return lab.mirror(shown) if corner in ("topright", "bottomleft") else shown


def _lab_pair(full: Scene, control: Scene, corner: str, match: str, state: list[dict[str, bool | None]]) -> CornerPair:
    subject, reference = full.things[:2]
    relation = lab_language.relation(subject, reference)
    return CornerPair(
        id=f"{corner}-{match}",
        corner=corner,
        full=partial(lab.picture, full),
        control=partial(lab.picture, control),
        objects=lab.objects(full),
        caption=f"is the {subject.name} {relation} the {reference.name} ?",
        relation=relation,
        occupied={m: tuple(c for c, there in one.items() if there) for m, one in zip(MEMBERS, state, strict=True)},
        meta={"match": match},
    )
