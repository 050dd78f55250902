"""What the swap measures share: unit deltas, sums by picture, relabellings, p-values, and q-values over layers.

Pictures (clusters) are what is shuffled, never questions alone. Knows arrays; knows nothing of pairs' words, models and figures.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.seeds import check_seed
from spatialprobes.stats import benjamini_hochberg

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

BLOCK = 50_000  # numbers held at once while shuffling: they stay in the cache
LEAST_ROWS = 100  # of a block: a product with fewer takes longer to read its other side than to multiply
TIE = 1e-9  # relative: sums in another order differ in the last bits


def standing(x: Float[np.ndarray, "n width"]) -> Bool[np.ndarray, " n"]:
    """Rows that have a direction: finite, and of a norm above 0."""
    norms = np.linalg.norm(np.asarray(x, float), axis=1)
    return np.isfinite(norms) & (norms > 0)


def units(x: Float[np.ndarray, "n width"]) -> Float[np.ndarray, "n width"]:
    """Rows at length 1, float64; each must be `standing`."""
    x = np.asarray(x, float)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def coded(clusters: Shaped[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " n"], int]:
    """Cluster of each row as 0 .. count - 1 in the order of the labels, and the count."""
    codes, unique = pd.factorize(np.asarray(clusters), sort=True)
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} pairs have no cluster; each pair names its picture")
    return codes, len(unique)


def summed(x: Float[np.ndarray, rows * width], codes: Int[np.ndarray, " n"], count: int) -> Float[np.ndarray, clusters * width]:
    """Sums over the rows of each cluster."""
    totals = np.zeros((count, *x.shape[1:]))
    np.add.at(totals, codes, x)
    return totals


def reduced(x: Float[np.ndarray, "n width"]) -> Float[np.ndarray, "n rank"]:
    """Rows with the same inner products in no more dimensions than there are rows: wide states cost no more than narrow ones."""
    if x.shape[1] <= len(x):
        return x
    try:
        return np.linalg.cholesky(x @ x.T)
    except np.linalg.LinAlgError:  # rows that depend on one another; slower
        return np.linalg.qr(x.T, mode="r").T


@functools.lru_cache(maxsize=4)  # layers and variants share them
def coin_flips(m: int, count: int, seed: int) -> Int[np.ndarray, "shuffle cluster"]:
    """Random signs, int8."""
    return np.random.default_rng(check_seed(seed)).integers(0, 2, (m, count), np.int8) * np.int8(2) - np.int8(1)


def label_shuffles(
    labels: Int[np.ndarray, " n"], codes: Int[np.ndarray, " n"], m: int, seed: int
) -> Int[np.ndarray, "shuffle n"]:
    """Labels dealt anew to the rows, in their dtype: whole clusters' labels among clusters of one size, and within each cluster.

    The count of each label stays, and so does how many of each a cluster may hold: rows of one picture stand together. With one
    row a cluster it is a plain permutation.
    """
    return _shuffles(labels.tobytes(), labels.dtype.str, codes.astype(np.int64).tobytes(), m, check_seed(seed))


@functools.lru_cache(maxsize=4)  # the same for all layers in which the same deltas stand
def _shuffles(labels: bytes, kind: str, codes: bytes, m: int, seed: int) -> Int[np.ndarray, "shuffle n"]:
    labels, codes = np.frombuffer(labels, kind), np.frombuffer(codes, np.int64)
    generator = np.random.default_rng(seed)
    dealt = np.empty((m, len(labels)), labels.dtype)
    order = np.argsort(codes, kind="stable")
    size_of = np.bincount(codes)[codes[order]]
    for size in np.unique(size_of):
        rows = order[size_of == size].reshape(-1, size)  # [cluster, row of it]
        places = generator.permuted(np.broadcast_to(np.arange(len(rows), dtype=np.int32), (m, len(rows))), axis=1)
        moved = labels[rows][places]
        dealt[:, rows] = generator.permuted(moved, axis=2) if size > 1 else moved
    return dealt


def times(
    relabelled: Int[np.ndarray, "shuffle n"], values: Float[np.ndarray, n * width]
) -> Iterator[tuple[Float[np.ndarray, "block n"], Float[np.ndarray, block * width]]]:
    """Blocks of the relabellings as numbers, and their products with the values."""
    start = 0
    for size in sizes(len(relabelled), len(values)):
        block = relabelled[start : start + size].astype(float)
        yield block, block @ values
        start += size


def sizes(total: int, width: int) -> list[int]:
    """Rows of each block: as many as hold BLOCK numbers, and LEAST_ROWS at least."""
    size = max(LEAST_ROWS, BLOCK // max(width, 1))
    return [min(size, total - start) for start in range(0, total, size)]


def share_at_least(null: Float[np.ndarray, " shuffle"], observed: float) -> float:
    """(b + 1) / (m + 1) for b of m values of the null at least as great as the observed one (Phipson & Smyth 2010)."""
    tie = TIE * max(abs(observed), float(np.abs(null).max()))
    return (int((null >= observed - tie).sum()) + 1) / (len(null) + 1)


def with_q(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """With the column q: Benjamini-Hochberg over the layers of each combination of `by`, of the p-values that there are."""
    table = table.assign(q=np.nan)
    for _, part in table[table["p"].notna()].groupby(by, sort=False):
        table.loc[part.index, "q"] = benjamini_hochberg(part["p"].to_numpy())
    return table


def check_m(m: int) -> None:
    """Raises ValueError for fewer than 10,000 relabellings."""
    if m < 10_000:
        raise ValueError(f"m={m} relabellings are too few for a p-value; use at least 10,000")
