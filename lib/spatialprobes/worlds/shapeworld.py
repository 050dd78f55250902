"""ShapeWorld's relational two-shape worlds: drawn from a seed, and rendered as the original renders them.

Two coloured shapes on black, one of them left of, right of, above or below the other. All lengths are fractions of the picture,
x to the right and y down, as in the original's ``world_model.json``; sizes are half-lengths, rotations are turns. Rules and
ranges: AlexKuhnle/ShapeWorld with the configuration ``spatial_twoshapes``. Knows nothing of files (``shapeworld_files.py``),
questions (``shapeworld_questions.py``) or models.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin, sqrt
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

SIZE = 100  # pixels
SHAPES = ("square", "rectangle", "triangle", "pentagon", "cross", "circle", "semicircle", "ellipse")
COLOURS = {
    "red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0), "yellow": (1.0, 1.0, 0.0),
    "magenta": (1.0, 0.0, 1.0), "cyan": (0.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5),
}  # fmt: skip
RELATIONS = {"left": ("x", -1), "right": ("x", 1), "above": ("y", -1), "below": ("y", 1)}  # axis, sign of subject - object
SIDES = (0.1, 0.25)  # full side, before distortion
DISTORTION = (2.0, 3.0)  # of rectangles and ellipses: width over height
SHADE = (-0.4, 0.4)
ALIGNED = 0.05  # farthest that the centres may lie apart across the relation's axis
APART = 0.1  # least distance of the centres along it
PROVOKED = 0.6  # share of second centres put beside the first: what the distances in the published worlds call for
_FIFTH = (sqrt(5) - 1) / 2  # share of a pentagon's width that is its base, and of its height that lies below its widest line


@dataclass(frozen=True)
class Entity:
    """One shape: half-width and half-height before rotation, centre, rotation in turns, shade in [-1, 1] (0 the pure colour)."""

    shape: str
    colour: str
    shade: float
    half: tuple[float, float]
    centre: tuple[float, float]
    rotation: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def rgb(self) -> Float[np.ndarray, 3]:
        """The colour darkened (shade below 0) or lightened, in [0, 1]."""
        pure = np.array(COLOURS[self.colour])
        return pure * (1 + self.shade) if self.shade < 0 else pure + (1 - pure) * self.shade

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The original's bounding box (x_min, y_min, x_max, y_max): of the rotated polygon that stands for the shape."""
        points = _rotated(_outline(self.shape, self.half), self.rotation)
        (left, top), (right, bottom) = points.min(0), points.max(0)
        x, y = self.centre
        return left + x, top + y, right + x, bottom + y


@dataclass(frozen=True)
class TwoShapes:
    """A world in which ``subject`` stands in ``relation`` to ``reference``. entities: both, in the world's own order."""

    entities: tuple[Entity, Entity]
    subject: int
    relation: str

    @property
    def pair(self) -> tuple[Entity, Entity]:
        """Subject and reference."""
        return self.entities[self.subject], self.entities[1 - self.subject]


def holds(subject: Entity, reference: Entity) -> str | None:
    """The relation of the subject to the reference; None where the original would state none."""
    for relation, (axis, sign) in RELATIONS.items():
        along = 0 if axis == "x" else 1
        difference = [a - b for a, b in zip(subject.centre, reference.centre, strict=True)]
        if difference[along] * sign > APART and abs(difference[1 - along]) <= ALIGNED:
            return relation
    return None


def draw(rng: np.random.Generator, relation: str | None = None) -> TwoShapes:
    """A world by the original's rules: two different shapes that do not touch; sizes, shades and rotations at random.

    relation: of the subject to the reference (one of ``RELATIONS``); each is as likely if None. Raises ValueError for another.
    """
    relation = tuple(RELATIONS)[int(rng.integers(len(RELATIONS)))] if relation is None else relation
    if relation not in RELATIONS:
        raise ValueError(f"relation is {relation!r}; it must be one of {', '.join(RELATIONS)}")
    axis, sign = RELATIONS[relation]
    while True:
        shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))[:2]]
        colours = list(COLOURS)
        first = colours[int(rng.integers(len(colours)))]
        pool = [*colours, first]  # the original puts the first entity's colour into the second's pool once more
        second = pool[int(rng.integers(len(pool)))]
        halves = [_half(rng, shape) for shape in shapes]
        centre = rng.random(2)
        other = _near(rng, centre, halves[0]) if rng.random() < PROVOKED else rng.random(2)
        difference = centre - other
        along = 0 if axis == "x" else 1
        if abs(difference[along]) <= APART or abs(difference[1 - along]) > ALIGNED:
            continue
        entities = (_entity(rng, shapes[0], first, halves[0], centre), _entity(rng, shapes[1], second, halves[1], other))
        if all(0 <= edge <= 1 for entity in entities for edge in entity.box) and not touch(*entities):
            return TwoShapes(entities, 0 if difference[along] * sign > 0 else 1, relation)


def world(seed: int, index: int, relation: str | None = None) -> TwoShapes:
    """The world number ``index`` of stream ``seed``."""
    return draw(np.random.default_rng([seed, index]), relation)


def _half(rng: np.random.Generator, shape: str) -> tuple[float, float]:
    distortion, least = rng.uniform(*DISTORTION), SIDES[0]
    if shape in ("rectangle", "ellipse"):
        least += (SIDES[1] - SIDES[0]) * (distortion - DISTORTION[0]) / (DISTORTION[1] - DISTORTION[0]) / 2
        ratio = 1 / distortion
    else:
        ratio = {"triangle": sqrt(0.75), "pentagon": cos(pi / 10), "semicircle": 0.5}.get(shape, 1.0)
    side = sqrt(rng.uniform(least**2, SIDES[1] ** 2))
    return side / 2, side * ratio / 2


def _near(rng: np.random.Generator, centre: np.ndarray, half: tuple[float, float]) -> np.ndarray:
    """A place close to the first entity: the original provokes collisions in a share of the worlds."""
    angle = 2 * pi * rng.random()
    return centre + np.array([cos(angle), sin(angle)]) * half * (0.75 + rng.random())


def _entity(rng: np.random.Generator, shape: str, colour: str, half: tuple[float, float], centre: np.ndarray) -> Entity:
    return Entity(shape, colour, rng.uniform(*SHADE), half, (float(centre[0]), float(centre[1])), rng.random())


# ---- outlines and distances, in the shape's own frame: its middle at the origin, not rotated ----
def _outline(shape: str, half: tuple[float, float]) -> Float[np.ndarray, "point 2"]:
    """Corners of the polygon that the original takes for the shape's extent."""
    cut = 1 - sqrt(0.5)
    corners = {
        "triangle": [(-1, -1), (1, -1), (0, 1)],
        "pentagon": [(-_FIFTH, -1), (_FIFTH, -1), (1, 2 * _FIFTH - 1), (0, 1), (-1, 2 * _FIFTH - 1)],
        "cross": [(-1, -1 / 3), (-1 / 3, -1), (1 / 3, -1), (1, -1 / 3), (1, 1 / 3), (1 / 3, 1), (-1 / 3, 1), (-1, 1 / 3)],
        "semicircle": [(-1, -1), (1, -1), (1, 2 * cut - 1), (cut, 1), (-cut, 1), (-1, 2 * cut - 1)],
    }
    eight = [(-1, -cut), (-cut, -1), (cut, -1), (1, -cut), (1, cut), (cut, 1), (-cut, 1), (-1, cut)]
    four = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
    points = corners.get(shape, eight if shape in ("circle", "ellipse") else four)
    return np.array(points, float) * half


def _rotated(points: np.ndarray, turns: float) -> np.ndarray:
    c, s = cos(2 * pi * turns), sin(2 * pi * turns)
    return np.stack([points[..., 0] * c - points[..., 1] * s, points[..., 0] * s + points[..., 1] * c], -1)


def _outside(points: np.ndarray, half: tuple[float, float]) -> np.ndarray:
    """Distance to a rectangle around the origin, 0 inside."""
    return np.hypot(*np.moveaxis(np.maximum(np.abs(points) - half, 0), -1, 0))


def _to_polygon(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance to a convex polygon whose corners run around it, 0 inside."""
    following = np.roll(corners, -1, 0)
    edge = following - corners
    to = points[..., None, :] - corners
    share = np.clip((to * edge).sum(-1) / (edge * edge).sum(-1), 0, 1)
    nearest = np.linalg.norm(to - share[..., None] * edge, axis=-1).min(-1)
    side = edge[:, 0] * to[..., 1] - edge[:, 1] * to[..., 0]
    return np.where((side >= 0).all(-1) | (side <= 0).all(-1), 0.0, nearest)


def distance(entity: Entity, points: Float[np.ndarray, "*n 2"]) -> Float[np.ndarray, "*n"]:
    """Distance of points of the picture to the shape, 0 inside."""
    half, shape = entity.half, entity.shape
    own = _rotated(points - np.array(entity.centre), -entity.rotation)
    if shape in ("square", "rectangle"):
        return _outside(own, half)
    if shape == "cross":
        third = half[0] / 3
        return np.minimum(_outside(own, (half[0], third)), _outside(own, (third, half[1])))
    if shape in ("triangle", "pentagon"):
        return _to_polygon(own, _outline(shape, half))
    if shape == "circle":
        return np.maximum(np.linalg.norm(own, axis=-1) - half[0], 0)
    if shape == "semicircle":
        x, y = own[..., 0], own[..., 1] + half[1]
        below = np.hypot(np.maximum(np.abs(x) - half[0], 0), y)
        return np.where(y < 0, below, np.maximum(np.hypot(x, y) - half[0], 0))
    if shape == "ellipse":  # along the ray from the middle, as the original measures it
        length = np.linalg.norm(own / half, axis=-1)
        return np.linalg.norm(own, axis=-1) * np.maximum(1 - 1 / np.maximum(length, 1e-12), 0)
    raise ValueError(f"shape is {shape!r}; it must be one of {', '.join(SHAPES)}")


def touch(a: Entity, b: Entity, size: int = SIZE) -> bool:
    """Whether some pixel lies within a pixel of both shapes."""
    (left, top), (right, bottom) = np.maximum(a.box[:2], b.box[:2]), np.minimum(a.box[2:], b.box[2:])
    if left > right or top > bottom:
        return False
    x, y = np.arange(np.floor(left * size), right * size + 1) / size, np.arange(np.floor(top * size), bottom * size + 1) / size
    points = np.stack(np.meshgrid(x, y), -1)
    return bool(((distance(a, points) <= 1 / size) & (distance(b, points) <= 1 / size)).any())


# ---- pictures ----
def coverage(entity: Entity, size: int = SIZE) -> Float[np.ndarray, "size size"]:
    """How much of the entity's colour each pixel takes on: 1 inside, falling to 0 one pixel outside."""
    scale, shift = 1 + 4 / size, 2 / size  # the original shows a border of two pixels around the world
    low = [max(int((edge + shift) / scale * size) - 2, 0) for edge in entity.box[:2]]
    high = [min(int((edge + shift) / scale * size) + 3, size) for edge in entity.box[2:]]
    x, y = (np.arange(a, max(b, a)) / (size - 1) * scale - shift for a, b in zip(low, high, strict=True))
    out = np.zeros((size, size))
    near = np.maximum(1 - distance(entity, np.stack(np.meshgrid(x, y), -1)) * size, 0)
    out[low[1] : low[1] + len(y), low[0] : low[0] + len(x)] = near
    return out


def render(world: TwoShapes, size: int = SIZE) -> UInt8[np.ndarray, "size size 3"]:
    """The picture."""
    image = np.zeros((size, size, 3))
    for entity in world.entities:
        share = coverage(entity, size)[..., None]
        image = share * entity.rgb + (1 - share) * image
    return (image * 255).astype(np.uint8)


def picture(world: TwoShapes, size: int = SIZE) -> Image.Image:
    """The picture as PIL image."""
    return Image.fromarray(render(world, size))


def mask(entity: Entity, grid: int, size: int = SIZE) -> Bool[np.ndarray, "grid grid"]:
    """The cells that the shape's pixels lie in: the pixels of which it makes up at least half."""
    rows, columns = np.nonzero(coverage(entity, size) >= 0.5)
    out = np.zeros((grid, grid), bool)
    out[rows * grid // size, columns * grid // size] = True
    return out
