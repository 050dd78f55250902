"""Does a connector keep who is near to whom? k-nearest-neighbour overlap (KNOR) of two spaces, with chance and duplicates.

KNOR of an image is the share of its k nearest others in one space that are among its k nearest in the other; 1 where nothing
moved, k / (N - 1) where the spaces have nothing to do with one another. Copies of a picture are near to one another in any space:
what they alone give is the duplicate floor. Knows arrays and keys; knows nothing of models and figures. Spec of the study: KNOR
and rank displacement of its kNN script, whose lists leave the image itself out (Li et al. 2025 leave it in: `included`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from spatialprobes import stats
from spatialprobes.probes.connector_store import folder_of
from spatialprobes.probes.duplicates import multiplicity, representatives
from spatialprobes.probes.neighbour_search import (
    BLOCK,
    Metric,
    Prepare,
    checked,
    galleries,
    known,
    nearest,
    nearest_as_published,
    prepared,
)
from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

__all__ = [
    "chance", "duplicate_floor", "folder_of", "included", "measure", "nearest", "nearest_as_published", "overlap", "prepared",
    "rank_displacement", "summary",
]  # fmt: skip

COLUMNS = ["key", "folder", "cluster", "k", "knor", "displacement", "chance", "floor", "gallery_size"]
ROWS = 8192  # images whose lists are compared at once


def overlap(a: Int[np.ndarray, "n most"], b: Int[np.ndarray, "n most"], k: int | None = None) -> Float[np.ndarray, " n"]:
    """KNOR of each image: how many of its first k neighbours two lists share, in whatever order, over k.

    Lists as `nearest` gives them; k=None: all of both. -1 is nobody; lists shortened by it are divided by what they hold.
    Raises ValueError for lists of other shapes or lengths, k they do not have, a neighbour that stands twice.
    """
    one, other = _lists(a, b, k)
    shared = np.empty(len(one))
    for rows in _blocks(len(one)):
        mine, theirs = np.sort(one[rows], axis=1), np.sort(np.where(other[rows] < 0, -2, other[rows]), axis=1)
        for lists in (mine, theirs):
            if ((lists[:, 1:] == lists[:, :-1]) & (lists[:, 1:] >= 0)).any():
                raise ValueError("a neighbour stands twice in one list")
        both = np.sort(np.concatenate([mine, theirs], axis=1), axis=1)
        equal = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] >= 0)
        shared[rows] = equal.sum(1) / (mine >= 0).sum(1)
    return shared


def rank_displacement(
    a: Int[np.ndarray, "n most"], b: Int[np.ndarray, "n most"], k: int | None = None
) -> Float[np.ndarray, " n"]:
    """Mean over an image's first k neighbours in `a` of how many ranks each moves in `b`; one that is not there counts as k.

    0 where the lists are the same in order, k where they share nobody. Not symmetric. Shortened lists: k is what they hold.
    Raises as `overlap`.
    """
    one, other = _lists(a, b, k)
    moved = np.empty(len(one))
    width = one.shape[1]
    for rows in _blocks(len(one)):
        mine, theirs = one[rows], other[rows]
        there = mine >= 0
        length = there.sum(1)
        base = np.arange(len(mine))[:, None] * (max(mine.max(), theirs.max()) + 2) + 1  # no two rows share a number
        sought, order = (mine + base).ravel(), np.argsort(theirs, axis=1, kind="stable")
        ordered = (np.take_along_axis(theirs, order, axis=1) + base).ravel()
        place = np.minimum(np.searchsorted(ordered, sought), ordered.size - 1)
        hit = (ordered[place] == sought).reshape(mine.shape) & there
        distance = np.abs(np.arange(width) - order.ravel()[place].reshape(mine.shape))
        moved[rows] = (np.where(hit, distance, length[:, None]) * there).sum(1) / length
    return moved


def chance(n: int | Int[np.ndarray, " ..."], k: int | Int[np.ndarray, " ..."]) -> float | Float[np.ndarray, " ..."]:
    """Expected KNOR of two unrelated spaces of n images, self excluded: k / (n - 1); 1 from k = n - 1 on."""
    return np.minimum(np.asarray(k) / (np.asarray(n) - 1), 1.0)[()]


def duplicate_floor(groups: Int[np.ndarray, " n"], k: int) -> Float[np.ndarray, " n"]:
    """The KNOR that an image's copies alone give it: min(m - 1, k) / k for a group of m. Its mean is the floor of a gallery.

    groups: a label an image, as `duplicates` gives them, all of one gallery.
    """
    return np.minimum(multiplicity(groups) - 1, k) / k


def included(excluded: float | Float[np.ndarray, " n"], k: int) -> float | Float[np.ndarray, " n"]:
    """KNOR @ k with the image itself among its neighbours, from KNOR @ k - 1 without: (1 + (k - 1) R) / k. At k=1 it is 1."""
    return (1 + (k - 1) * np.asarray(excluded, float))[()] / k


def measure(
    a: Float[np.ndarray, "n width_a"],
    b: Float[np.ndarray, "n width_b"],
    keys: Sequence[str],
    *,
    ks: Sequence[int] = (10, 50, 100),
    metric: Metric = "l2",
    prepare: Prepare = "raw",
    include_self: bool = False,
    gallery: Literal["all", "folder"] = "all",
    deduplicate: bool = False,
    duplicates: Int[np.ndarray, " n"] | None = None,
    clusters: Shaped[np.ndarray, " n"] | None = None,
    few: Literal["refuse", "shorten"] = "refuse",
    definition: Literal["corrected", "as_published"] = "corrected",
    block: int = BLOCK,
    device: str = "cpu",
    seed: int = 0,
) -> pd.DataFrame:
    """KNOR and rank displacement of each image between two spaces: [key, folder, cluster, k, knor, displacement, chance, floor,
    gallery_size], one row an image and k.

    a, b: pooled vectors of the same images, rows in the order of keys. prepare: as `prepared`, over all images.
    metric, include_self, few: as `nearest`; with the image itself included, chance and floor are those of `included`, and
    displacement counts it as a neighbour that does not move. gallery: neighbours among all images, or those of the same folder
    (the study's; see `folder_of`). duplicates: a label an image (`duplicates.exact`, `.near`); None: no two are copies, and the
    floor is 0. deduplicate: only the representative of each group in each gallery stays, as query and as neighbour.
    clusters: carried for the intervals; None: the duplicates' label, or each image its own. k: where few="shorten" leaves fewer
    neighbours, `k` is as asked and the others are of what there is. definition: "as_published" searches with the study's fp32
    scores (l2, self excluded). Nothing is drawn: ``seed`` is there because every probe takes one.

    Raises ValueError for keys that repeat, are no strings or do not fit, naming the first, and as `nearest`.
    """
    check_seed(seed)
    known(gallery, "gallery", ("all", "folder"))
    known(definition, "definition", ("corrected", "as_published"))
    if definition == "as_published" and (metric != "l2" or include_self):
        raise ValueError("definition='as_published' is of metric='l2' without the image itself")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)}: at least one k, each at least 1")
    names = _keys(keys)
    copies = np.arange(len(names)) if duplicates is None else _fitting(np.asarray(duplicates), "duplicates", names)
    label = copies if clusters is None else _fitting(np.asarray(clusters), "clusters", names)
    spaces = [checked(_fitting(x, name, names), name, names) for name, x in (("a", a), ("b", b))]
    folders = np.array([folder_of(name) for name in names])
    kept = _representing(copies, names, folders if gallery == "folder" else None) if deduplicate else np.arange(len(names))
    groups = folders[kept] if gallery == "folder" else None

    def search(x):
        x = prepared(x, prepare)
        x = x if len(kept) == len(x) else x[torch.from_numpy(kept)]
        if definition == "as_published":
            return nearest_as_published(x, max(ks), groups=groups, few=few, block=block)
        return nearest(x, max(ks), metric=metric, include_self=include_self, groups=groups, few=few, block=block, device=device)

    one, other = (search(x) for x in spaces)
    named = {"key": [names[i] for i in kept], "folder": folders[kept], "cluster": label[kept]}
    rows = []
    for k in ks:
        measured = {"k": k, "knor": overlap(one, other, k), "displacement": rank_displacement(one, other, k)}
        rows.append(pd.DataFrame(named | measured | _expected(copies[kept], groups, k, include_self)))
    return pd.concat(rows, ignore_index=True)[COLUMNS]


def summary(frame: pd.DataFrame, by: Sequence[str] = (), *, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Means over images with 95% intervals, by k and whatever else: [*by, k, knor, low, high, chance, floor, excess, excess_low,
    excess_high, displacement, displacement_low, displacement_high, n, clusters, std, median].

    frame: as `measure` gives it, perhaps several with columns to tell them apart, named in `by` ("model", "folder").
    excess: (knor - floor) / (1 - floor) of the means, what there is beyond copies. std (population) and median: over images.
    Intervals resample the rows of clusters, n times. An image's KNOR hangs on who else is in the gallery: the intervals say how
    the mean varies with which images are asked about, the gallery given, not what another gallery would give.
    """
    by = [*by, "k"]
    rows = []
    for label, part in frame.groupby(by, sort=False):
        clusters = part["cluster"].to_numpy()
        columns = {name: part[name].to_numpy(float) for name in ("knor", "displacement", "chance", "floor")}
        knor = stats.bootstrap(columns["knor"], clusters, n=n, seed=seed, bounds=(0, 1))
        moved = stats.bootstrap(columns["displacement"], clusters, n=n, seed=seed)
        row = dict(zip(by, label, strict=True))
        row |= {"knor": knor.estimate, "low": knor.low, "high": knor.high}
        row |= {name: columns[name].mean() for name in ("chance", "floor")}
        row |= dict(zip(("excess", "excess_low", "excess_high"), _excess(columns, clusters, knor, n, seed), strict=True))
        row |= {"displacement": moved.estimate, "displacement_low": moved.low, "displacement_high": moved.high}
        row |= {"n": knor.n, "clusters": knor.clusters, "std": columns["knor"].std(), "median": np.median(columns["knor"])}
        rows.append(row)
    return pd.DataFrame(rows)


def _excess(columns, clusters, knor: stats.Interval, n: int, seed: int) -> tuple[float, float, float]:
    floor = columns["floor"]
    if not floor.any():
        return knor.estimate, knor.low, knor.high
    if (floor == 1).all():
        return (np.nan,) * 3
    missed = stats.ratio(1 - columns["knor"], 1 - floor, clusters, clusters, n=n, seed=seed)
    return 1 - missed.estimate, 1 - missed.high, 1 - missed.low


def _representing(copies: Int[np.ndarray, " n"], names: list[str], groups) -> Int[np.ndarray, " kept"]:
    """One row of each group of copies in each gallery, ascending."""
    kept = []
    for members in galleries(groups, len(names)):
        kept.append(members[representatives(copies[members], [names[i] for i in members])])
    return np.sort(np.concatenate(kept))


def _expected(copies: Int[np.ndarray, " n"], groups, k: int, include_self: bool) -> dict[str, np.ndarray]:
    """What each image's KNOR would be by chance, and by its copies alone, in a gallery of so many."""
    found = {"chance": np.empty(len(copies)), "floor": np.empty(len(copies)), "gallery_size": np.empty(len(copies), np.int64)}
    for members in galleries(groups, len(copies)):
        others = min(k - include_self, len(members) - 1)
        values = (chance(len(members), others), duplicate_floor(copies[members], others)) if others else (0.0, 0.0)
        for name, value in zip(("chance", "floor"), values, strict=True):
            found[name][members] = included(value, others + 1) if include_self else value
        found["gallery_size"][members] = len(members)
    return found


def _fitting(column, name: str, names: list[str]):
    if len(column) != len(names):
        raise ValueError(f"{name} has {len(column)} rows, not {len(names)} as keys")
    return column


def _keys(keys: Sequence[str]) -> list[str]:
    names = list(keys)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"keys are strings, not {type(wrong[0]).__name__} as {wrong[0]!r}")
    if len(set(names)) < len(names):
        twice = pd.Series(names)
        raise ValueError(f"{int(twice.duplicated().sum())} keys stand twice, first {twice[twice.duplicated()].iloc[0]!r}")
    return names


def _lists(a, b, k: int | None) -> tuple[Int[np.ndarray, "n k"], Int[np.ndarray, "n k"]]:
    one, other = np.asarray(a), np.asarray(b)
    if one.ndim != 2 or other.ndim != 2 or len(one) != len(other):
        raise ValueError(f"lists of shapes {one.shape} and {other.shape}; two of [n, k] over the same images are wanted")
    k = one.shape[1] if k is None else k
    if not 1 <= k <= min(one.shape[1], other.shape[1]):
        raise ValueError(f"k={k} of lists that hold {one.shape[1]} and {other.shape[1]}")
    one, other = one[:, :k], other[:, :k]
    if ((one >= 0).sum(1) != (other >= 0).sum(1)).any():
        raise ValueError("lists of one image hold different numbers of neighbours")
    if len(one) and not (one[:, 0] >= 0).all():
        raise ValueError(f"{int((one[:, 0] < 0).sum())} images have no neighbour at all")
    return one, other


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, n, ROWS)]
