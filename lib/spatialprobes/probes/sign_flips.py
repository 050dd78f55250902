"""P-values of many means at once by flipping signs of clusters, fine enough that one head among a thousand can be found.

With m relabellings no p-value is below 1 / (m + 1), which times a thousand tests is no discovery, however large the effect. So
few clusters are enumerated, and what is rare among the first m is drawn anew, finer. Knows arrays alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.probes.paired_columns import BLOCK
from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

EXACT = 13  # clusters up to which all 2^n ways to flip signs are counted
RARE = 10  # of the first relabellings, so few or fewer at least as far from zero: drawn anew
FINER = 40  # relabellings a column the second time: the smallest q of a single column is then 1 / FINER


def refined(
    p: Float[np.ndarray, " column"],
    values: Float[np.ndarray, "row column"],
    clusters: Shaped[np.ndarray, " row"],
    *,
    m: int = 10_000,
    seed: int = 0,
) -> Float[np.ndarray, " column"]:
    """Two-sided p-values of the columns' means: exact for up to `EXACT` clusters, else p, made finer where it is small.

    p: of m random relabellings (`paired_columns.columns`). Where at most `RARE` of these were as far from zero as what was
    found, the p-value is that of fresh ones alone, max(m, FINER x columns) of them; both are (b + 1) / (m + 1), so that the test
    keeps its size: a second look is taken only where the first is below any level that the second can reach.
    One cluster says nothing: p is then returned as it is.
    """
    codes, labels = pd.factorize(np.asarray(clusters), sort=True)
    totals = np.zeros((len(labels), values.shape[1]))
    np.add.at(totals, codes, np.asarray(values, float))
    tie = 1e-12 * np.maximum(2 * np.abs(values).sum(0), 1e-300)  # sums in another order differ in the last bits
    far = np.abs(totals.sum(0)) - tie
    if len(labels) < 2:
        return p
    if len(labels) <= EXACT:
        return _exceeding(_every(len(labels)), totals, far) / 2 ** (len(labels) - 1)
    more = FINER * len(p)
    rare = np.flatnonzero(p <= (RARE + 1) / (m + 1))
    if more <= m or not len(rare):
        return p
    generator = np.random.default_rng([check_seed(seed), 53])
    size = max(1, BLOCK // max(len(labels), len(rare)))
    beyond = np.zeros(len(rare))
    for start in range(0, more, size):
        flips = 2.0 * generator.integers(0, 2, (min(size, more - start), len(labels))) - 1
        beyond += _exceeding(flips, totals[:, rare], far[rare])
    found = p.copy()
    found[rare] = (beyond + 1) / (more + 1)
    return found


def _every(clusters: int) -> Float[np.ndarray, "flip cluster"]:
    """All signs but for that of the first cluster: turning all of them around changes no distance from zero."""
    bits = np.arange(2 ** (clusters - 1))[:, None] >> np.arange(clusters - 1)[None, :] & 1
    return np.column_stack([np.ones(len(bits)), 1.0 - 2 * bits])


def _exceeding(
    flips: Float[np.ndarray, "flip cluster"], totals: Float[np.ndarray, "cluster column"], far: Float[np.ndarray, " column"]
) -> Float[np.ndarray, " column"]:
    """How many of the flips are at least so far from zero."""
    size = max(1, BLOCK // max(len(flips), 1))
    parts = (slice(start, start + size) for start in range(0, totals.shape[1], size))
    return np.concatenate([(np.abs(flips @ totals[:, part]) >= far[part]).sum(0) for part in parts]).astype(float)
