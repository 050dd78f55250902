"""The same questions about pictures whose cells are shuffled: what a map says of a box when nothing of the box is where it was.

Knows pictures and grids; no model, no map.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from functools import partial

import numpy as np
from PIL import Image

from spatialprobes.examples import Example
from spatialprobes.images import open_image
from spatialprobes.permutations import full
from spatialprobes.seeds import check_seed

SUFFIX = "~shuffled"


def shuffled(examples: Sequence[Example], grid: tuple[int, int], seed: int = 0) -> list[Example]:
    """Each example with its picture cut into the cells of the model's grid (rows, columns) and these dealt anew.

    Boxes stay where they were, as in the study; the answer is kept but no longer holds. Ids (and twins) end in `SUFFIX`
    (`real_id` takes it off), clusters stay, so that real and shuffled pair up; meta["shuffled_from"] is the id. Each order is
    drawn from the seed and the example's id alone. Pictures are made when they are used. All of the picture is dealt: one whose
    sides the grid does not divide is first enlarged (bilinear) to the next that it does, where the study blackens what remains.
    The cells are the model's own where it is shown all of the picture; give square pictures to a model that pads or crops.
    Raises ValueError for a grid of fewer than two cells and an id that is shuffled already.
    """
    rows, columns = grid
    if rows < 1 or columns < 1 or rows * columns < 2:
        raise ValueError(f"a grid of {rows} x {columns} has no two cells to exchange")
    check_seed(seed)
    for example in examples:
        if example.id.endswith(SUFFIX):
            raise ValueError(f"{example.id!r} is shuffled already")
    return [_shuffled(example, (rows, columns), seed) for example in examples]


def real_id(name: str) -> str:
    """The id of the example that a shuffled one was made from; another id as it is."""
    return name.removesuffix(SUFFIX)


def cells_shuffled(picture: Image.Image, grid: tuple[int, int], order: np.ndarray) -> Image.Image:
    """The picture with its cells in another order: cell i, in raster order, shows what cell order[i] did."""
    rows, columns = grid
    width, height = (-(-side // count) * count for side, count in zip(picture.size, (columns, rows), strict=True))
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(picture).reshape(rows, height // rows, columns, width // columns, -1)
    cells = pixels.swapaxes(1, 2).reshape(rows * columns, height // rows, width // columns, -1)[order]
    cells = cells.reshape(rows, columns, height // rows, width // columns, -1).swapaxes(1, 2)
    return Image.fromarray(np.ascontiguousarray(cells.reshape(height, width, -1)))


def _shuffled(example: Example, grid: tuple[int, int], seed: int) -> Example:
    order = full(grid, np.random.default_rng([seed, zlib.crc32(example.id.encode())]))
    return dataclasses.replace(
        example,
        id=example.id + SUFFIX,
        image=partial(_picture, example, grid, order),
        cluster=example.cluster or example.id,
        twin=None if example.twin is None else example.twin + SUFFIX,
        meta={**example.meta, "shuffled_from": example.id},
    )


def _picture(example: Example, grid: tuple[int, int], order: np.ndarray) -> Image.Image:
    return cells_shuffled(open_image(example.image, name=example.id), grid, order)
