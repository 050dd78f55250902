"""The lab's world: small pictures of coloured shapes whose every property is known.

A scene is drawn from ``(seed, index)`` alone, so any of them can be drawn again without a file. Lengths inside a scene are
pixels, x to the right and y down, the origin at the outer corner of the first pixel (the middle of pixel i is i + .5).
Knows nothing of words (``lab_language.py``), questions (``lab_questions.py``) or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import erf, sqrt
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from spatialprobes.examples import Object

if TYPE_CHECKING:
    from jaxtyping import Bool, Int, UInt8

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (230, 210, 40),
    "purple": (150, 60, 190),
    "cyan": (60, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "cross")
CORNERS = {"top left": (0, 0), "top right": (1, 0), "bottom left": (0, 1), "bottom right": (1, 1)}
BACKGROUND = 245
MIN_COVER = 6  # pixels of a patch that an object must cover to be what the patch shows


@dataclass(frozen=True)
class World:
    """Sizes of the world. The trained models are tied to the defaults.

    size: side of the picture, pixels. patch: side of a patch, so that the grid has (size / patch)^2 cells.
    objects: fewest and most objects. radius: of the farthest and the nearest object. gap: least distance between two
    outlines. margin: least distance of a centre to the border of its cell, so that no cell is a matter of rounding.
    corner: side of the square that counts as a corner.
    """

    size: int = 48
    patch: int = 8
    objects: tuple[int, int] = (2, 4)
    radius: tuple[float, float] = (3.0, 6.5)
    gap: float = 1.0
    margin: float = 1.0
    corner: int = 16

    @property
    def grid(self) -> int:
        return self.size // self.patch


WORLD = World()


@dataclass(frozen=True)
class Thing:
    """One object: centre and radius in pixels, depth in [0, 1] with 0 nearest (and largest)."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    depth: float

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What is in a picture, and how strongly height was tied to depth when it was drawn."""

    things: tuple[Thing, ...]
    perspective: float
    world: World = WORLD


def _place(u: float, radius: float, world: World) -> float:
    """A quantile u in [0, 1) -> a coordinate: every cell is equally likely, the object stays inside the picture."""
    cell = min(int(u * world.grid), world.grid - 1)
    low = max(cell * world.patch + world.margin, radius)
    high = min((cell + 1) * world.patch - world.margin, world.size - radius)
    return low + (u * world.grid - cell) * (high - low)


def _normal_cdf(z: float) -> float:
    return 0.5 * (1 + erf(z / sqrt(2)))


def draw(
    rng: np.random.Generator, perspective: float = 0.0, n: int | None = None, corner: str | None = None, world: World = WORLD
) -> Scene:
    """Draw a scene: colours and shapes unique, no outlines closer than ``world.gap``, columns and rows equally likely.

    perspective: in [0, 1], the correlation of a Gaussian copula between depth and height in the picture: 0 leaves them
        independent, at 1 the farther object is always the higher one. The share of every row stays the same.
    n: number of objects (drawn between the world's limits if None). corner: name of a corner that the first object is put into.
    Raises ValueError for a perspective outside [0, 1] or an unknown corner.
    """
    if not 0 <= perspective <= 1:
        raise ValueError(f"perspective is {perspective}; it must lie in [0, 1]")
    if corner is not None and corner not in CORNERS:
        raise ValueError(f"corner is {corner!r}; it must be one of {', '.join(CORNERS)}")
    n = int(rng.integers(world.objects[0], world.objects[1] + 1)) if n is None else n
    while True:
        colours = rng.permutation(len(COLOURS))[:n]
        shapes = rng.permutation(len(SHAPES))[:n]
        things: list[Thing] = []
        names = list(COLOURS)
        for k in range(n):
            for _ in range(30):
                z, noise = rng.standard_normal(2)
                depth, u = _normal_cdf(z), rng.random()
                v = 1 - _normal_cdf(perspective * z + sqrt(1 - perspective**2) * noise)
                if corner is not None and k == 0:
                    right, down = CORNERS[corner]
                    share = (world.corner // world.patch) / world.grid
                    u = (u * share) if not right else 1 - (1 - u) * share
                    v = (v * share) if not down else 1 - (1 - v) * share
                radius = world.radius[1] - depth * (world.radius[1] - world.radius[0])
                x, y = _place(u, radius, world), _place(v, radius, world)
                if all((x - t.x) ** 2 + (y - t.y) ** 2 > (radius + t.radius + world.gap) ** 2 for t in things):
                    things.append(Thing(names[colours[k]], SHAPES[shapes[k]], x, y, radius, depth))
                    break
            else:
                break
        if len(things) == n:
            return Scene(tuple(things), perspective, world)


def scene(
    seed: int,
    index: int,
    perspective: float | tuple[float, ...] = 0.0,
    n: int | None = None,
    corner: str | None = None,
    world: World = WORLD,
) -> Scene:
    """The scene number ``index`` of stream ``seed``; of several perspectives one is drawn for the scene."""
    rng = np.random.default_rng([seed, index])
    if isinstance(perspective, tuple):
        perspective = perspective[int(rng.integers(len(perspective)))]
    return draw(rng, perspective, n, corner, world)


def scenes(seed: int, count: int, perspective: float | tuple[float, ...] = 0.0, world: World = WORLD) -> Iterator[Scene]:
    """The first ``count`` scenes of stream ``seed``."""
    return (scene(seed, index, perspective, world=world) for index in range(count))


def mirror(scene: Scene) -> Scene:
    """Left and right exchanged; the picture is exactly the mirrored picture, since every shape is symmetric."""
    return replace(scene, things=tuple(replace(t, x=scene.world.size - t.x) for t in scene.things))


def rotate(scene: Scene, quarter_turns: int) -> Scene:
    """Objects carried around the centre counter-clockwise by quarter turns; each stays upright and keeps its depth."""
    s, things = scene.world.size, scene.things
    for _ in range(quarter_turns % 4):
        things = tuple(replace(t, x=t.y, y=s - t.x) for t in things)
    return replace(scene, things=things)


def without(scene: Scene, name: str) -> Scene:
    """The scene with one object taken away (the control of a corner pair). Raises ValueError naming what is there."""
    if name not in {t.name for t in scene.things}:
        raise ValueError(f"no {name!r} in the scene; there are {', '.join(t.name for t in scene.things)}")
    return replace(scene, things=tuple(t for t in scene.things if t.name != name))


def corner_pair(seed: int, index: int, corner: str, perspective: float = 0.0, world: World = WORLD) -> tuple[Scene, Scene]:
    """(full, control): an object in the named corner, and the same scene without it."""
    full = scene(seed, index, perspective, corner=corner, world=world)
    return full, without(full, full.things[0].name)


def occupied(scene: Scene, corner: str) -> bool | None:
    """Whether an object's centre lies in the corner's square; None where an outline reaches in but no centre does."""
    side, size = scene.world.corner, scene.world.size
    right, down = CORNERS[corner]
    near = [((size - t.x) if right else t.x, (size - t.y) if down else t.y, t.radius) for t in scene.things]
    if any(x < side and y < side for x, y, _ in near):
        return True
    return None if any(x - r < side and y - r < side for x, y, r in near) else False


def thing_mask(thing: Thing, world: World = WORLD) -> Bool[np.ndarray, "size size"]:
    """The pixels whose middle lies inside the object."""
    middle = np.arange(world.size) + 0.5
    dx, dy, r = (middle - thing.x)[None], (middle - thing.y)[:, None], thing.radius
    if thing.shape == "circle":
        return dx**2 + dy**2 <= r * r
    if thing.shape == "square":
        return (abs(dx) <= 0.9 * r) & (abs(dy) <= 0.9 * r)
    if thing.shape == "triangle":
        return (dy <= 0.8 * r) & (dy >= -r) & (abs(dx) <= 0.55 * (dy + r))
    if thing.shape == "cross":
        return ((abs(dx) <= 0.35 * r) & (abs(dy) <= r)) | ((abs(dy) <= 0.35 * r) & (abs(dx) <= r))
    raise ValueError(f"shape is {thing.shape!r}; it must be one of {', '.join(SHAPES)}")


def render(scene: Scene) -> UInt8[np.ndarray, "size size 3"]:
    """The picture."""
    image = np.full((scene.world.size, scene.world.size, 3), BACKGROUND, np.uint8)
    for thing in scene.things:
        image[thing_mask(thing, scene.world)] = COLOURS[thing.colour]
    return image


def cover(thing: Thing, world: World = WORLD) -> Int[np.ndarray, "grid grid"]:
    """Pixels of the object in each patch."""
    g, p = world.grid, world.patch
    return thing_mask(thing, world).reshape(g, p, g, p).sum((1, 3))


def draw_with_patches(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture uint8 [size, size, 3], what each patch shows int [cells] (0 background, else 1 + colour x shape), and how
    near it is, float [cells] (1 - depth of what the patch shows, 0 on background). For the tower's helper task.
    """
    world, g, p = scene.world, scene.world.grid, scene.world.patch
    image = np.full((world.size, world.size, 3), BACKGROUND, np.uint8)
    label, near, most = np.zeros((g, g), np.int64), np.zeros((g, g), np.float32), np.full((g, g), MIN_COVER)
    names = list(COLOURS)
    for thing in scene.things:
        mask = thing_mask(thing, world)
        image[mask] = COLOURS[thing.colour]
        covered = mask.reshape(g, p, g, p).sum((1, 3))
        shown = covered >= most
        label[shown] = 1 + names.index(thing.colour) * len(SHAPES) + SHAPES.index(thing.shape)
        near[shown] = 1 - thing.depth
        most = np.maximum(most, covered)
    return image, label.ravel(), near.ravel()


def picture(scene: Scene) -> Image.Image:
    """The picture as PIL image."""
    return Image.fromarray(render(scene))


def objects(scene: Scene) -> list[Object]:
    """The scene's objects in fractions of the picture, boxes and patch masks read off the pixels."""
    size = scene.world.size
    out = []
    for thing in scene.things:
        mask = thing_mask(thing, scene.world)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (columns[0] / size, rows[0] / size, (columns[-1] + 1) / size, (rows[-1] + 1) / size)
        covered = cover(thing, scene.world)
        cells = (covered >= MIN_COVER) | (covered == covered.max())
        out.append(Object(thing.name, (thing.x / size, thing.y / size), box, thing.depth, cells))
    return out
