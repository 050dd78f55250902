"""Attention rows of a vision tower, put together from its attention calls into whole pictures, and merged to the LM's grid.

A tower may attend picture by picture, window by window, or to padded pictures side by side; here a row has every token of its
picture, the patches in raster order, and 0 for those that its call did not see. Knows no model: what the calls hold comes from
the family (`TowerRun`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from spatialprobes.families import TowerRun
from spatialprobes.rows import attention_rows

if TYPE_CHECKING:
    from jaxtyping import Float, Int


At = Literal["all"] | Sequence[int] | Sequence[Sequence[int]]


class TowerRows:
    """The rows of one block in one run of the tower; `add` takes its attention calls in turn.

    at: rows to keep, by index among the tokens of a picture, or "all"; or one list of them a picture. pictures: [head, row, key]
    of each, on the CPU. Raises ValueError for a row that a picture lacks, and lists for another number of pictures.
    """

    def __init__(self, run: TowerRun, block: int, at: At):
        self.calls = iter(run.calls[block])
        self.sizes = [run.tokens(picture) for picture in range(len(run.grids))]
        by_picture = at != "all" and isinstance(at[0], Sequence)
        if by_picture and len(at) != len(self.sizes):
            raise ValueError(f"tower_at: rows of {len(at)} pictures for a run of {len(self.sizes)}")
        each = at if by_picture else [range(size) if at == "all" else at for size in self.sizes]
        for rows, size in zip(each, self.sizes, strict=True):
            if outside := [row for row in rows if not 0 <= row < size]:
                raise ValueError(f"tower_at: row {outside[0]} is not there; a picture has {size} tokens in the tower")
        self.wanted = [torch.tensor(list(rows), dtype=torch.long) for rows in each]
        self.pictures: list[Float[Tensor, "head row key"]] = [torch.empty(0)] * len(self.sizes)

    def add(self, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, causal: bool) -> None:
        """One attention call: query, key, mask and scaling as in `attention_rows`."""
        call = next(self.calls)
        index, taken = [], []
        for picture, places in call:
            where = torch.full((self.sizes[picture],), -1)  # of each token of the picture in this call
            where[places[places >= 0]] = (places >= 0).nonzero().flatten()
            here = where[self.wanted[picture]]
            taken.append((here >= 0).nonzero().flatten())
            index.append(here[here >= 0])
        if not any(map(len, index)):
            return  # a window without a row that is wanted
        rows = pad_sequence(index, batch_first=True, padding_value=-1).to(query.device)
        found = attention_rows(query, key, mask, scaling, causal, rows).cpu()
        for (picture, places), rows_there, values in zip(call, taken, found, strict=True):
            if torch.equal(places, torch.arange(self.sizes[picture])):  # whole and in order, as most are: nothing to place
                self.pictures[picture] = values[:, : len(rows_there)]
                continue
            if not self.pictures[picture].numel():
                self.pictures[picture] = values.new_zeros(len(values), len(self.wanted[picture]), self.sizes[picture])
            real = places >= 0
            self.pictures[picture][:, rows_there[:, None], places[real]] = values[:, : len(rows_there), real]


def merge_rows(
    rows: Float[Tensor, "head row key"], grid: tuple[int, int], merge: int, before: int = 0
) -> Float[Tensor, "head cell_row cell_key"]:
    """Attention of patches to patches as attention of cells to cells, for cells of merge x merge patches, in raster order.

    rows: those of all tokens of one picture, patches in raster order. grid: (rows, columns) of its patches. A cell's row is the
    mean of its patches' rows; what it attends to a cell is the sum over that cell's patches, so that rows keep their sum.
    before: tokens ahead of the patches, each kept as it is, ahead of the cells.
    Raises ValueError where rows are missing or the grid is not made of whole cells.
    """
    height, width = grid
    if rows.shape[-2:] != (before + height * width,) * 2:
        raise ValueError(
            f"rows of shape {tuple(rows.shape)} are not those of all {before} + {height} x {width} tokens of a picture"
        )
    cell = _cells(grid, merge, before).to(rows.device)
    number = before + height * width // merge**2
    counts = torch.bincount(cell, minlength=number).to(rows.dtype)
    keys = merge_keys(rows, grid, merge, before)
    return rows.new_zeros(len(rows), number, number).index_add_(-2, cell, keys) / counts[:, None]


def merge_keys(
    rows: Float[Tensor, "head row key"], grid: tuple[int, int], merge: int, before: int = 0
) -> Float[Tensor, "head row cell_key"]:
    """Any rows of patches, such as a seed's, as attention to cells: what goes to a cell is the sum over its patches.

    Other arguments as in `merge_rows`. Raises ValueError for rows that are not over all tokens of a picture.
    """
    height, width = grid
    if rows.shape[-1] != before + height * width:
        raise ValueError(f"rows over {rows.shape[-1]} keys are not over all {before} + {height} x {width} tokens of a picture")
    cell = _cells(grid, merge, before).to(rows.device)
    number = before + height * width // merge**2
    return rows.new_zeros(*rows.shape[:-1], number).index_add_(-1, cell, rows)


def _cells(grid: tuple[int, int], merge: int, before: int) -> Int[Tensor, " token"]:
    """The cell of every token of a picture."""
    height, width = grid
    if height % merge or width % merge:
        raise ValueError(f"a grid of {height} x {width} patches is not made of cells of {merge} x {merge}")
    cells = torch.arange(height)[:, None] // merge * (width // merge) + torch.arange(width) // merge
    return torch.cat([torch.arange(before), before + cells.flatten()])
