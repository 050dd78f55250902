"""One run of a vision tower: which picture, and which patch of it, each token of each attention call is.

A tower may see pictures side by side in a batch, padded, packed one after another, or cut into windows; a family says which by
a `TowerRun`, so that whoever reads attention (`tower_rows.py`) can put it back into whole pictures. Knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int

Call = list[tuple[int, Tensor]]  # of each row of an attention call's batch: the picture, and the place of each of its tokens


@dataclass(frozen=True)
class TowerRun:
    """grids: (rows, columns) of the patches of each picture. before: tokens of a picture ahead of its patches (a class token).

    merge: side of the square of patches that become one vision token, 1 where each is one or tokens have no grid. calls: by block
    of the tower, its attention calls in order. A token's place is its index among its picture's tokens, the patches in raster
    order after those `before`; -1 is padding.
    """

    grids: list[tuple[int, int]]
    before: int
    merge: int
    calls: list[list[Call]]

    def tokens(self, picture: int) -> int:
        """Tokens of this picture in the tower."""
        rows, columns = self.grids[picture]
        return self.before + rows * columns


def batch_of_pictures(count: int, grid: tuple[int, int], before: int, blocks: int) -> TowerRun:
    """A tower that sees pictures of one size side by side, one attention call a block."""
    places = torch.arange(before + grid[0] * grid[1])
    return TowerRun([grid] * count, before, 1, [[[(picture, places) for picture in range(count)]]] * blocks)


def by_cells(grid: tuple[int, int], merge: int) -> Int[Tensor, " patch"]:
    """Raster places of a picture's patches in the order of its cells (merge x merge patches each), which are in raster order."""
    rows, columns = grid
    places = torch.arange(rows * columns).reshape(rows // merge, merge, columns // merge, merge)
    return places.transpose(1, 2).flatten()
