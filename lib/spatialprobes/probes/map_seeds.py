"""Seeds of self-attention maps: the cell of the picture whose row is read, of an object or of the background.

Knows boxes and grids; knows nothing of models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from spatialprobes.examples import Example
from spatialprobes.probes.map_targets import reached

if TYPE_CHECKING:
    from jaxtyping import Bool

Seeds = Literal["objects", "background"]
ROLES = ("subject", "reference")  # of an example's first two objects
BACKGROUND = "background"
Place = tuple[float, ...]  # rows, cols, scale_x, scale_y, shift_x, shift_y: `map_records.place_of`


@dataclass(frozen=True)
class Seed:
    """One seed. own: bool [row, col], the cells of its object; none of them for the background."""

    role: str
    word: str
    row: int
    col: int
    own: Bool[np.ndarray, "row col"]


def seeds_of(example: Example, place: Place, seeds: Seeds, seed: int) -> tuple[list[Seed], list[tuple[str, str, str]]]:
    """The seeds of one example, and (example, word, reason) of what has none. See `tower_maps.from_seeds`."""
    if seeds == BACKGROUND:
        return _background(example, place, seed)
    found, left_out = [], []
    for role, thing in zip(ROLES, example.objects, strict=False):
        if thing.box is None:
            left_out.append((example.id, thing.name, "it has no box"))
            continue
        own = cells(thing.box, place)
        if own.any():
            row, col = centre(own)
            found.append(Seed(role, thing.name, row, col, own))
        else:
            left_out.append((example.id, thing.name, f"its box {tuple(round(edge, 3) for edge in thing.box)} shows no cell"))
    if not example.objects:
        left_out.append((example.id, "", "it has no objects to seed from"))
    return found, left_out


def centre(own: Bool[np.ndarray, "row col"]) -> tuple[int, int]:
    """(row, column) of the cell in the middle of these: mean row and mean column, each rounded, halves to the even number.

    The study's rule (`round` of Python and torch): of rows 4 and 5 it is 4, of 5 and 6 it is 6.
    """
    rows, cols = np.nonzero(own)
    return round(float(rows.mean())), round(float(cols.mean()))


def cells(box: tuple[float, float, float, float], place: Place) -> Bool[np.ndarray, "row col"]:
    """The cells that a box (fractions of the picture) reaches into."""
    rows, cols, *frame = place
    scale, shift = np.array([frame[:2]]), np.array([frame[2:]])
    return reached(np.array([box], float), (int(rows), int(cols)), scale, shift)[0]


def _background(example: Example, place: Place, seed: int) -> tuple[list[Seed], list[tuple[str, str, str]]]:
    grid = int(place[0]), int(place[1])
    free = np.ones(grid, bool)
    for thing in example.objects:
        if thing.box is None:  # where it lies is not known, so neither is what is background
            return [], [(example.id, BACKGROUND, f"its {thing.name} has no box")]
        free &= ~cells(thing.box, place)
    places = np.argwhere(free)
    if not len(places):
        return [], [(example.id, BACKGROUND, f"its boxes cover all {grid[0]} x {grid[1]} cells")]
    drawn = np.random.default_rng([seed, *hashlib.sha256(example.id.encode()).digest()[:8]])  # whatever else is in the run
    row, col = map(int, places[drawn.integers(len(places))])
    return [Seed(BACKGROUND, BACKGROUND, row, col, np.zeros(grid, bool))], []
