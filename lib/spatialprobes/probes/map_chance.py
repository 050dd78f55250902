"""What a measure of maps would say by chance: its expectation when a map's own weights are dealt to the cells at random.

The null is that cells are exchangeable: the map keeps its values, peaked or flat, and says nothing of where. It is exact in
closed form for most measures, and simulated from a seed for those that are not linear in the map. For the entropy, which no
dealing changes, chance is the flat map. All cells of the grid are dealt to, also those that show padding and no picture, and
those that a causal map could not see: there, compare with shuffled pictures.
"""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.probes.map_metrics import normalised

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from spatialprobes.probes.map_metrics import Maps, Masks, Values

DRAWS = 32  # dealings for each map: the mean over a hundred maps then errs by 1/57 of their spread


def share(maps: Maps, masks: Masks) -> Values:
    """Of `hit` and `mass`: the share of cells in the mask. Exact."""
    return _broadcast(masks.mean((-2, -1)), maps, masks)


def one(maps: Maps, masks: Masks) -> Values:
    """Of `lift`: 1. Exact."""
    return _broadcast(1.0, maps, masks)


def half(maps: Maps, masks: Masks) -> Values:
    """Of `auc`: 1/2. Exact."""
    return _broadcast(0.5, maps, masks)


def iou(maps: Maps, masks: Masks) -> Values:
    """Of `iou`: the b chosen cells, ties and all, meet the mask's k in a hypergeometric number of cells. Exact."""
    cells = maps.shape[-2] * maps.shape[-1]
    inside = _broadcast(masks.sum((-2, -1)), maps, masks)
    flat = np.sort(maps.reshape(*maps.shape[:-2], cells), axis=-1)
    flat = np.broadcast_to(flat, (*inside.shape, cells))
    least = np.take_along_axis(flat, (cells - np.maximum(inside, 1))[..., None], axis=-1)
    chosen = (flat >= least).sum(-1)
    pairs, which = np.unique(np.stack([inside.ravel(), chosen.ravel()]), axis=1, return_inverse=True)
    expected = np.array([_expected_iou(cells, int(k), int(b)) for k, b in pairs.T])
    return expected[which.ravel()].reshape(inside.shape)


def _expected_iou(cells: int, k: int, b: int) -> float:
    """Mean of j / (k + b - j) for j the overlap of k given cells with b drawn ones. NaN for k = 0."""
    if k == 0:
        return float("nan")
    overlaps = range(max(0, k + b - cells), min(k, b) + 1)
    ways = comb(cells, b)
    return sum(comb(k, j) * comb(cells - k, b - j) / ways * j / (k + b - j) for j in overlaps)


def dispersion(maps: Maps) -> Values:
    """Of `dispersion`: that of the flat map, less the variance of the centre of mass. Exact, but for the study's small number.

    V (1 - (N S - 1) / (N - 1)) for V the flat map's and S the sum of squared shares: sampling from a finite population.
    """
    rows, columns = maps.shape[-2:]
    cells = rows * columns
    flat = (rows**2 - 1 + columns**2 - 1) / 12
    squares = (normalised(maps) ** 2).sum((-2, -1))
    return flat * (1 - (cells * squares - 1) / max(cells - 1, 1))


def entropy(maps: Maps) -> Values:
    """Of `entropy`: of the flat map, ln N."""
    return np.full(maps.shape[:-2], np.log(maps.shape[-2] * maps.shape[-1]))


def entropy_share(maps: Maps) -> Values:
    """Of `entropy_share`: of the flat map, 1."""
    return np.ones(maps.shape[:-2])


def simulated(
    maps: Maps, measures: Mapping[str, Callable[[Maps], Values]], draws: int = DRAWS, seed: int | Sequence[int] = 0
) -> dict[str, Values]:
    """Mean of each measure over `draws` dealings of each map's weights to its cells, every map dealt anew."""
    generator = np.random.default_rng(seed)
    flat = np.ascontiguousarray(maps.reshape(*maps.shape[:-2], -1))
    sums = dict.fromkeys(measures, 0.0)
    for _ in range(draws if measures else 0):
        dealt = generator.permuted(flat, axis=-1).reshape(maps.shape)
        for name, measure in measures.items():
            sums[name] = sums[name] + measure(dealt)
    return {name: found / draws for name, found in sums.items()}


def _broadcast(value, maps: Maps, masks: Masks) -> Values:
    return np.broadcast_to(value, np.broadcast_shapes(maps.shape[:-2], masks.shape[:-2]))
