"""Are the strongest heads the same in other pairs? Resampled and halved sets of pairs, against heads drawn blindly.

Strongest: the largest effect for the asked corner when the subject stands there, by absolute value, over all layers at once.
Knows arrays of `heads.HeadMass`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.probes.heads import HeadMass
from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

BLOCK = 2_000_000  # numbers held at once: 16 MB


def stability(found: HeadMass, k: int = 10, n: int = 1000, seed: int = 0, *, region: str = "all") -> pd.DataFrame:
    """In what share of n bootstrap draws of clusters each head is among the k strongest.

    [asked, layer, head, share, rank, k, chance, n, clusters]: rank from 1 in the whole sample; chance: k / heads, the share of a
    head drawn blindly; n: pairs. Equal heads rank by layer and head. Raises ValueError for k outside 1 .. heads, fewer than 100
    draws, an unknown region, and a corner with fewer than 2 clusters.
    """
    check_draws(n)
    frames = []
    for asked, totals, sizes in _clustered(found, region, k):
        whole = np.argsort(-np.abs(totals.sum(0)), kind="stable")
        generator = np.random.default_rng([check_seed(seed), 59])
        even = np.full(len(sizes), 1 / len(sizes))
        inside, left = np.zeros(totals.shape[1]), n
        while left:
            count = min(left, max(1, BLOCK // totals.shape[1]))
            drawn = generator.multinomial(len(sizes), even, count).astype(float)
            inside += _strongest(drawn @ totals / (drawn @ sizes)[:, None], k).sum(0)
            left -= count
        heads = found.mass.shape[-1]
        rank = np.empty(len(whole), int)
        rank[whole] = np.arange(1, len(whole) + 1)
        labels = {"asked": asked, "layer": np.repeat(found.layers, heads), "head": np.tile(range(heads), len(found.layers))}
        shares = {
            "share": inside / n,
            "rank": rank,
            "k": k,
            "chance": k / len(whole),
            "n": int(sizes.sum()),
            "clusters": len(sizes),
        }
        frames.append(pd.DataFrame(labels | shares))
    return pd.concat(frames, ignore_index=True)


def agreement(found: HeadMass, k: int = 10, n: int = 1000, seed: int = 0, *, region: str = "all") -> pd.DataFrame:
    """How alike the k strongest heads of two halves of the pairs are, by Jaccard's index (shared / all of both).

    [asked, k, jaccard, low, high, chance, n, clusters]: jaccard: the mean over n random halvings of the clusters; low, high: 95%
    of the halvings (how much they vary, no interval of the mean); chance: of two sets drawn blindly. Raises ValueError as
    `stability` does.
    """
    check_draws(n)
    rows = []
    for asked, totals, sizes in _clustered(found, region, k):
        generator = np.random.default_rng([check_seed(seed), 61])
        indices = np.empty(n)
        for draw in range(n):
            order = generator.permutation(len(sizes))
            halves = order[: len(order) // 2], order[len(order) // 2 : len(order) // 2 * 2]
            first, second = (_strongest(totals[half].sum(0)[None] / sizes[half].sum(), k)[0] for half in halves)
            indices[draw] = (first & second).sum() / (first | second).sum()
        low, high = np.quantile(indices, [0.025, 0.975])
        chance = jaccard_by_chance(k, totals.shape[1])
        rows.append((asked, k, indices.mean(), low, high, chance, int(sizes.sum()), len(sizes)))
    return pd.DataFrame(rows, columns=["asked", "k", "jaccard", "low", "high", "chance", "n", "clusters"])


def jaccard_by_chance(k: int, heads: int) -> float:
    """Mean index of two sets of k of so many heads, drawn blindly (hypergeometric)."""
    ways = ((both, comb(k, both) * comb(heads - k, k - both)) for both in range(k + 1))
    return sum(both / (2 * k - both) * count for both, count in ways) / comb(heads, k)


def check_draws(n: int) -> int:
    """The number of draws. Raises ValueError for one from which quantiles and shares cannot be told."""
    if isinstance(n, bool) or not isinstance(n, Integral) or n < 100:
        raise ValueError(f"n={n!r} draws are too few, or no whole number; use at least 100")
    return n


def _clustered(
    found: HeadMass, region: str, k: int
) -> Iterator[tuple[str, Float[np.ndarray, "cluster head"], Float[np.ndarray, " cluster"]]]:
    """Of each asked corner with subjects in it: sums of differences by cluster, and how many pairs each has."""
    values = found.differences(region)
    heads = values.shape[2] * values.shape[3]
    if isinstance(k, bool) or not isinstance(k, Integral) or not 1 <= k <= heads:
        raise ValueError(f"k={k!r} of {heads} heads; 1 to {heads}")
    there = [one for one in found.asked if (found.pairs["corner"] == one).any()]
    if not there:
        raise ValueError(f"asked about {found.asked}, and no subject stands in any of these")
    for asked in there:
        rows = (found.pairs["corner"] == asked).to_numpy()
        own = values[rows, found.asked.index(asked)].reshape(rows.sum(), heads)
        kept = ~np.isnan(own).any(1)
        codes, labels = pd.factorize(found.pairs["cluster"].to_numpy()[rows][kept], sort=True)
        if len(labels) < 2:
            raise ValueError(f"{asked}: {len(labels)} clusters with a value; at least 2 are needed")
        totals = np.zeros((len(labels), heads))
        np.add.at(totals, codes, own[kept])
        yield asked, totals, np.bincount(codes).astype(float)


def _strongest(means: Float[np.ndarray, "draw head"], k: int) -> Bool[np.ndarray, "draw head"]:
    found = np.zeros(means.shape, bool)
    np.put_along_axis(found, np.argsort(-np.abs(means), axis=1, kind="stable")[:, :k], True, axis=1)
    return found
