"""What a head does when something stands in a corner: its effect with sign and uncertainty, and whether it is for that corner.

An effect is attention with the subject minus without it, pair by pair. The study takes its absolute value, which is above zero
for heads that do nothing, and ranks heads within a layer, which always finds three; both forms are here and in
``head_counts.py``. What is resampled, and whose signs are flipped, are clusters: pairs that differ by the corner alone.
Knows tables and arrays of `heads.HeadMass`; knows no models and no figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from spatialprobes.probes.head_stability import agreement, check_draws, stability
from spatialprobes.probes.heads import HeadMass
from spatialprobes.probes.paired_columns import columns
from spatialprobes.probes.sign_flips import refined
from spatialprobes.stats import benjamini_hochberg
from spatialprobes.worlds.corners import CORNERS, check_corner

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

__all__ = ["agreement", "diagonal", "effects", "kinds", "selectivity", "specificity", "stability"]

Head = tuple[int, int]
EFFECTS = ("asked", "corner", "region", "layer", "head", "effect", "low", "high", "d", "p", "q", "n", "clusters")
CONTRASTS = ("selectivity", "low", "high", "d", "p", "q", "n", "clusters")
FLIPS = 10_000  # random relabellings of a p-value, at first


def effects(
    found: HeadMass,
    *,
    region: str = "all",
    definition: Literal["corrected", "as_published"] = "corrected",
    seed: int = 0,
    n: int = 2000,
) -> pd.DataFrame:
    """Effect of the subject on every head, for each asked corner and each corner that the subject stands in: columns EFFECTS.

    effect: mean over pairs of the attention of the last prompt token, full minus control, on all vision tokens (region "all"), on
    the asked corner's cells ("region") or on those of the subject's corner ("object"), a share of that token's attention, signed;
    low, high: 95%, n draws of clusters. d: Cohen's for paired samples, mean / standard deviation of the differences, NaN where
    these are all alike. p: two-sided, signs flipped by cluster (`sign_flips.refined`); q: Benjamini-Hochberg over the heads of
    one asked corner and corner. n: pairs.
    definition: "as_published" is the mean of absolute differences, which no head has at zero: without d, p and q.
    Pairs whose corner has no cells are left out of "region" and "object"; n says how many are left. A group of one cluster has an
    estimate alone.
    Raises ValueError for an unknown region or definition, fewer than 100 draws, and where no pair is left.
    """
    if definition not in ("corrected", "as_published"):
        raise ValueError(f"definition={definition!r} is unknown; 'corrected' or 'as_published'")
    values = found.differences(region)
    frames = []
    for corner in _corners(found):
        rows = (found.pairs["corner"] == corner).to_numpy()
        for i, asked in enumerate(found.asked):
            own, clusters = _known(values[rows, i], found.pairs["cluster"].to_numpy()[rows])
            if not len(own):
                continue
            if definition == "corrected":
                table = _tested(own, clusters, seed, n)
            else:
                table = _tested(np.abs(own), clusters, seed, n).assign(d=np.nan, p=np.nan, q=np.nan)
            frames.append(_labelled(found, table).assign(asked=asked, corner=corner, region=region))
    if not frames:
        raise ValueError(_no_cells(found))
    return pd.concat(frames, ignore_index=True).rename(columns={"mean": "effect"})[list(EFFECTS)]


def specificity(
    found: HeadMass, heads: Sequence[Head] | None = None, *, region: str = "all", seed: int = 0, n: int = 2000
) -> pd.DataFrame:
    """`effects` of chosen heads (layer, head), asked corner by the subject's corner: [layer, head, asked, corner, region, effect,
    low, high, d, p, n], the heads in the order given. None: all. p is of one head by itself.

    Raises ValueError for a head that is not there, and what is no (layer, head).
    """
    known = [(layer, head) for layer in found.layers for head in range(found.mass.shape[-1])]
    heads = known if heads is None else _read(heads)
    if wrong := [one for one in heads if one not in known]:
        raise ValueError(
            f"no attention of head {wrong[0]} was measured; layers {found.layers}, heads 0..{found.mass.shape[-1] - 1}"
        )
    table = effects(found, region=region, seed=seed, n=n).set_index(["layer", "head"])
    kept = [table.loc[[one]].reset_index() for one in dict.fromkeys(heads)]
    if not kept:
        raise ValueError("no heads were given")
    names = ["layer", "head", "asked", "corner", "region", "effect", "low", "high", "d", "p", "n"]
    return pd.concat(kept, ignore_index=True)[names]


def _read(heads: Sequence[Head]) -> list[Head]:
    try:
        return [(int(layer), int(head)) for layer, head in heads]
    except (TypeError, ValueError) as error:
        raise ValueError(f"heads are pairs (layer, head), not {str(list(heads))[:80]}") from error


def selectivity(
    found: HeadMass,
    *,
    control: Literal["content", "prompt"] = "content",
    region: str = "all",
    seed: int = 0,
    n: int = 2000,
) -> pd.DataFrame:
    """How much more a head answers when the subject is in the asked corner: [layer, head, asked, control, *CONTRASTS].

    selectivity: the effect for the asked corner minus the mean of the three others. control "content": the same question about
    pairs whose subject stands in another corner; "prompt": the same pairs asked about another corner. In "region" cells change
    with the question, so that a head that looks at any object is selective by either control; "object" with "prompt" keeps
    pictures and cells and changes the question alone. Differences are made within clusters, d, p and q are as in `effects`, q
    over the heads of one asked corner. Clusters without a pair in every corner that is compared are left out of "content"; n
    counts those that are left.
    Raises ValueError for an unknown control or region, fewer than two corners to compare, two pairs of a cluster in one corner,
    and where nothing is left.
    """
    if control not in ("content", "prompt"):
        raise ValueError(f"control={control!r} is unknown; 'content' or 'prompt'")
    cells, clusters = _matrices(found, region, whole=control == "content")
    here = [one for one in _corners(found) if one in found.asked]
    frames = []
    for corner in here:
        asked, taken = found.asked.index(corner), _corners(found).index(corner)
        own = cells[:, asked, taken]
        others = (
            np.delete(cells[:, asked], taken, axis=1) if control == "content" else np.delete(cells[:, :, taken], asked, axis=1)
        )
        if not others.shape[1]:
            raise ValueError(f"selectivity for {corner!r} needs other corners to compare with: control={control!r} has none")
        values, kept = _known(own - others.mean(1), clusters)
        if len(values):
            frames.append(_labelled(found, _tested(values, kept, seed, n)).assign(asked=corner))
    if not frames:
        raise ValueError(f"no cluster has what control={control!r} compares; " + _no_cells(found))
    made = pd.concat(frames, ignore_index=True).rename(columns={"mean": "selectivity"}).assign(control=control)
    return made[["layer", "head", "asked", "control", *CONTRASTS]]


def diagonal(found: HeadMass, *, region: str = "all", seed: int = 0, n: int = 2000) -> pd.DataFrame:
    """One number a head over all corners: the mean effect where the asked corner is the subject's, minus the mean of all others.

    [layer, head, *CONTRASTS]; clusters that have a pair in every corner. Raises ValueError as `selectivity` does.
    """
    cells, clusters = _matrices(found, region, whole=True)
    corners = _corners(found)
    own = np.array([[asked == corner for corner in corners] for asked in found.asked])
    if not own.any() or own.all():
        raise ValueError(f"asked about {found.asked}, subjects in {corners}: there is no diagonal to hold against the rest")
    values, kept = _known(cells[:, own].mean(1) - cells[:, ~own].mean(1), clusters)
    if not len(values):
        raise ValueError("no cluster has a pair in every corner; " + _no_cells(found))
    table = _labelled(found, _tested(values, kept, seed, n)).rename(columns={"mean": "selectivity"})
    return table[["layer", "head", *CONTRASTS]]


def kinds(own: pd.DataFrame, selective: pd.DataFrame, *, level: float = 0.05) -> pd.DataFrame:
    """Which heads are for one corner and which for any: [layer, head, kind, corners], by q < level of both tables.

    own: of `effects`; selective: of `selectivity`. kind: "specific" where for some corner effect and selectivity are significant
    with the same sign (corners: which, joined by spaces); else "shared" where the effect is significant with the same sign in
    every corner; else "some" (in some corners, selective for none) or "none".
    Raises ValueError for tables without rows in common, and where a head stands twice for a corner: one region, one control.
    """
    diagonals = own[own["asked"] == own["corner"]]
    both = diagonals.merge(selective, on=["layer", "head", "asked"], suffixes=("", "_selective"))
    if both.empty:
        raise ValueError("the tables of effects and of selectivity have no head and asked corner in common")
    if (twice := both.duplicated(["layer", "head", "asked"])).any():
        layer, head, asked = both.loc[twice, ["layer", "head", "asked"]].iloc[0]
        raise ValueError(f"head ({layer}, {head}) stands twice for {asked!r}: give tables of one region and one control")
    both = both.assign(
        sure=both["q"] < level,
        up=both["effect"] > 0,
        special=(both["q"] < level) & (both["q_selective"] < level) & (both["effect"] * both["selectivity"] > 0),
    )
    rows = []
    for (layer, head), part in both.groupby(["layer", "head"]):
        special = part.loc[part["special"], "asked"]
        shared = part["sure"].all() and part["up"].nunique() == 1
        kind = "specific" if len(special) else "shared" if shared else "some" if part["sure"].any() else "none"
        rows.append({"layer": layer, "head": head, "kind": kind, "corners": " ".join(special)})
    return pd.DataFrame(rows)


def _corners(found: HeadMass) -> list[str]:
    if found.pairs.empty:
        raise ValueError("no pairs were measured")
    there = set(found.pairs["corner"])
    return [check_corner(one) for one in CORNERS if one in there]


def _matrices(
    found: HeadMass, region: str, whole: bool
) -> tuple[Float[np.ndarray, "row asked corner layer head"], Shaped[np.ndarray, " row"]]:
    """Differences by asked corner and the subject's, a row per cluster; NaN where a cluster has no pair in a corner.

    whole: only the clusters that have one in every corner that any has.
    """
    values, corners = found.differences(region), _corners(found)
    names = list(dict.fromkeys(found.pairs["cluster"]))
    made = np.full((len(names), len(corners), *values.shape[1:]), np.nan)
    there = np.zeros((len(names), len(corners)), bool)
    for pair, (cluster, corner) in enumerate(zip(found.pairs["cluster"], found.pairs["corner"], strict=True)):
        at = names.index(cluster), corners.index(corner)
        if there[at]:
            raise ValueError(
                f"cluster {cluster!r} has two pairs with the subject in {corner!r}: which belongs to those of others?"
            )
        made[at], there[at] = values[pair], True
    kept = there.all(1) if whole else there.any(1)
    return made.swapaxes(1, 2)[kept], np.array(names)[kept]


def _known(values: np.ndarray, clusters: np.ndarray) -> tuple[Float[np.ndarray, "row column"], Shaped[np.ndarray, " row"]]:
    """Rows without NaN, heads in one line."""
    flat = values.reshape(len(values), int(np.prod(values.shape[1:])))
    kept = ~np.isnan(flat).any(1)
    return flat[kept], np.asarray(clusters)[kept]


def _tested(values: Float[np.ndarray, "row column"], clusters: np.ndarray, seed: int, n: int) -> pd.DataFrame:
    got = columns(values, clusters, n=check_draws(n), m=FLIPS, seed=seed)
    p = refined(got.p, values, clusters, m=FLIPS, seed=seed)
    spread = values.std(0, ddof=1) if len(values) > 1 else np.full(values.shape[1], np.nan)
    known = spread > 1e-12 * np.abs(values).max(0)
    d = np.divide(got.mean, spread, out=np.full(len(p), np.nan), where=known)
    q = p if np.isnan(p).any() else benjamini_hochberg(p)
    return pd.DataFrame(
        {"mean": got.mean, "low": got.low, "high": got.high, "d": d, "p": p, "q": q, "n": got.n, "clusters": got.clusters}
    )


def _labelled(found: HeadMass, table: pd.DataFrame) -> pd.DataFrame:
    heads = found.mass.shape[-1]
    return table.assign(layer=np.repeat(found.layers, heads), head=np.tile(np.arange(heads), len(found.layers)))


def _no_cells(found: HeadMass) -> str:
    return f"of {len(found.pairs)} pairs none has cells in the corner that it is asked about (no grid, or cropped)"
