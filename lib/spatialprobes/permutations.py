"""Ways to rearrange the cells of a grid, from a full shuffle to one that moves no token further than its neighbours.

Every permutation is whole numbers [token] in raster order, read as `intervene` reads them: place i holds what stood at
permute[i]. Knows grids (rows, columns) and random generators; no model, no picture, no question.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Grid = tuple[int, int]  # (rows, columns)
PROPOSALS = 60  # swaps proposed per token in `within_radius`; see there


def full(grid: Grid, generator: np.random.Generator) -> Int[np.ndarray, " token"]:
    """Every token anywhere, all orders equally likely."""
    return generator.permutation(_cells(grid).size)


def rows(grid: Grid, generator: np.random.Generator) -> Int[np.ndarray, " token"]:
    """Whole rows change places; the order within a row stays."""
    return _cells(grid)[generator.permutation(grid[0])].ravel()


def columns(grid: Grid, generator: np.random.Generator) -> Int[np.ndarray, " token"]:
    """Whole columns change places; the order within a column stays."""
    return _cells(grid)[:, generator.permutation(grid[1])].ravel()


def blocks(grid: Grid, generator: np.random.Generator, k: int) -> Int[np.ndarray, " token"]:
    """Blocks of k x k cells change places, each unchanged within.

    Where k does not divide the grid, the smaller blocks at the right and lower edges change places with those of their own shape
    alone (the one in the corner stays). Raises ValueError for k < 2, as blocks of one cell are the full shuffle, and for a k that
    leaves no two blocks of one shape.
    """
    if k == 1:
        raise ValueError("k=1: blocks of one cell are the full shuffle, 'full'; use at least 2")
    by_shape: dict[Grid, list[Int[np.ndarray, "row column"]]] = {}
    for block in _blocks(grid, k):
        by_shape.setdefault(block.shape, []).append(block)
    if all(len(alike) < 2 for alike in by_shape.values()):
        raise ValueError(f"k={k} leaves no two blocks of one shape in a grid of {grid[0]} x {grid[1]}")
    order = _cells(grid).ravel().copy()
    for alike in by_shape.values():
        for to, source in zip(alike, generator.permutation(len(alike)), strict=True):
            order[to] = alike[source]
    return order


def within_blocks(grid: Grid, generator: np.random.Generator, k: int) -> Int[np.ndarray, " token"]:
    """Cells are shuffled inside each block of k x k; at the right and lower edges blocks are smaller where k does not divide.

    Raises ValueError for k < 2, where nothing could move.
    """
    if k == 1:
        raise ValueError("k=1: a block of one cell has nothing to shuffle; use at least 2")
    order = _cells(grid).ravel().copy()
    for block in _blocks(grid, k):
        order[block.ravel()] = generator.permutation(block.ravel())
    return order


def flip_left_right(grid: Grid, generator: np.random.Generator | None = None) -> Int[np.ndarray, " token"]:
    """The mirror picture; nothing is drawn."""
    return _cells(grid)[:, ::-1].ravel()


def flip_up_down(grid: Grid, generator: np.random.Generator | None = None) -> Int[np.ndarray, " token"]:
    """Top becomes bottom; nothing is drawn."""
    return _cells(grid)[::-1].ravel()


def rotate180(grid: Grid, generator: np.random.Generator | None = None) -> Int[np.ndarray, " token"]:
    """Half a turn; nothing is drawn."""
    return _cells(grid)[::-1, ::-1].ravel()


def within_radius(
    grid: Grid, generator: np.random.Generator, radius: float, proposals: int = PROPOSALS
) -> Int[np.ndarray, " token"]:
    """No token moves further than `radius` cells (Euclidean distance between centres).

    Sampled by a Markov chain that begins with every token in place: two places are proposed, the first anywhere, the second at an
    offset of up to 2 x radius; their tokens change places if both then stand within `radius` of where they came from. Every state
    keeps the bound. Proposals are symmetric, so the chain tends to the uniform distribution over what such swaps can reach (for
    radius 1 not all that the bound allows: a ring of eight that turns by one can't be taken apart by a single swap).
    proposals: how many for each token. With the default the mean distance moved is within 2% of its limit for radii up to a
    quarter of a 24 x 24 grid. Raises ValueError for a radius below 1, where no token could move.
    """
    if not radius >= 1:
        raise ValueError(f"radius={radius}: neighbours are 1 apart, so that nothing could move; use at least 1")
    height, width = grid
    n, bound = _cells(grid).size, radius * radius + 1e-9
    reach = int(min(2 * radius, max(grid)))
    count = proposals * n
    first = generator.integers(0, n, count).tolist()
    offsets = generator.integers(-reach, reach + 1, (2, count)).tolist()
    at = [divmod(i, width) for i in range(n)]
    order = list(range(n))
    for i, down, across in zip(first, *offsets, strict=True):
        row, column = at[i]
        other_row, other_column = row + down, column + across
        if not (0 <= other_row < height and 0 <= other_column < width):
            continue
        j = other_row * width + other_column
        from_row, from_column = at[order[i]]
        if (from_row - other_row) ** 2 + (from_column - other_column) ** 2 > bound:
            continue
        from_row, from_column = at[order[j]]
        if (from_row - row) ** 2 + (from_column - column) ** 2 <= bound:
            order[i], order[j] = order[j], order[i]
    return np.array(order)


def of_cells(grid: Grid, generator: np.random.Generator, cells: Bool[np.ndarray, "row column"]) -> Int[np.ndarray, " token"]:
    """Only the given cells are shuffled, among each other: the patches of one object, say, or with `~cells` all but those.

    Fewer than two cells have nothing to change places with: every token stays. Raises ValueError for cells of another shape.
    """
    cells = np.asarray(cells)
    if cells.dtype != bool or cells.shape != tuple(grid):
        raise ValueError(
            f"cells must be bool of the grid's shape {tuple(grid)}, not {cells.dtype} of shape {cells.shape}; one for each token"
        )
    order = _cells(grid).ravel().copy()
    chosen = np.flatnonzero(cells)
    order[chosen] = generator.permutation(chosen)
    return order


def distance(permutation: Int[np.ndarray, " token"], grid: Grid) -> Float[np.ndarray, " token"]:
    """How far, in cells, the token that now stands at each place has moved (Euclidean; 1 is to the next row or column).

    Raises ValueError where permutation and grid differ in size.
    """
    order = np.asarray(permutation)
    if order.shape != (n := _cells(grid).size,):
        raise ValueError(f"a permutation of shape {order.shape} for a grid of {grid[0]} x {grid[1]} = {n} cells")
    places = np.stack(np.divmod(np.arange(n), grid[1]))
    return np.hypot(*(places - places[:, order]))


FIXED = {"flip_left_right": flip_left_right, "flip_up_down": flip_up_down, "rotate180": rotate180}  # nothing is drawn
PLAIN = {"full": full, "rows": rows, "columns": columns} | FIXED
SIZED = {
    "blocks": (blocks, int, "k"),
    "within_blocks": (within_blocks, int, "k"),
    "within_radius": (within_radius, float, "radius"),
}


def named(name: str) -> Callable[[Grid, np.random.Generator], Int[np.ndarray, " token"]]:
    """The function that a name stands for: "full", "rows", "flip_left_right", ...; with a size "blocks:2", "within_radius:1.5".

    Raises ValueError naming the nearest for an unknown name, and for a size that is missing, is no number or is not wanted.
    """
    base, colon, size = name.partition(":")
    if base in SIZED:
        function, kind, argument = SIZED[base]
        try:
            return partial(function, **{argument: kind(size)})
        except ValueError:
            raise ValueError(f"permutation {name!r} needs a size, as in {base + ':2'!r}, not {size!r}") from None
    if base in PLAIN:
        if colon:
            raise ValueError(f"permutation {name!r}: {base!r} takes no size")
        return PLAIN[base]
    legal = [*PLAIN, *(f"{sized}:2" for sized in SIZED)]
    near = difflib.get_close_matches(name, legal, n=1, cutoff=0.4)
    hint = f"; nearest: {near[0]!r}" if near else ""
    raise ValueError(f"unknown permutation {name!r}{hint}; legal: {', '.join(legal)}")


def _cells(grid: Grid) -> Int[np.ndarray, "row column"]:
    height, width = grid
    if height < 1 or width < 1:
        raise ValueError(f"a grid of {height} x {width} has no cells")
    return np.arange(height * width).reshape(height, width)


def _blocks(grid: Grid, k: int) -> list[Int[np.ndarray, "row column"]]:
    if k < 1:
        raise ValueError(f"k={k}: a block has at least one cell a side")
    cells = _cells(grid)
    return [cells[row : row + k, column : column + k] for row in range(0, grid[0], k) for column in range(0, grid[1], k)]
