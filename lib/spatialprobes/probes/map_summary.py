"""Tables of `map_scores` summed up: above chance, above shuffled pictures, and whether a word's map prefers its own object.

Intervals resample, and tests flip the signs of, whole clusters (pictures). Knows tables alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spatialprobes.probes.map_baseline import real_id
from spatialprobes.probes.paired_columns import columns
from spatialprobes.stats import benjamini_hochberg, unseen_share

PLACES = ("layer", "head")
CEILING = ("entropy", "entropy_share")  # their chance is the most that there is
YES_OR_NO = ("hit",)  # of which a sample may have one kind alone
ROLES = ("subject", "reference")


def summary(
    scores: pd.DataFrame,
    shuffled: pd.DataFrame | None = None,
    *,
    by: Sequence[str] = ("role", "target", "metric"),
    seed: int = 0,
) -> pd.DataFrame:
    """Means with 95% intervals over clusters, one row per group of `by`.

    Columns: *by, estimate, low, high; chance, above, above_low, above_high: paired, each value less its own chance; shuffled,
    difference, difference_low, difference_high: paired, each value less that of the same map of the shuffled picture (a table of
    `score` of `map_baseline.shuffled` examples), over the maps that have both, NaN without; p: two-sided, the signs of clusters
    flipped, of difference where there are shuffled pictures, else of above; q: p's by Benjamini and Hochberg over all rows of
    this summary, NaN for the entropies' above, whose chance is a bound that no map passes; n: maps; clusters; left_out: maps
    without a value.
    The test asks whether a mean differs from 0. It is exact for differences that are symmetric without an effect, as those of
    real and shuffled are. Values of peaked maps are skewed around chance: means of few pictures are significantly below it more
    often than they should be (at .05, up to .16 of maps of one cell on a 24 x 24 grid with 40 to 100 pictures), and above it less
    often (at most .025). Raises ValueError where maps of several metrics, layers or heads would be averaged,
    or a map stands twice.
    """
    by = list(by)
    _check(scores, by)
    kept = scores[scores["value"].notna()]
    if kept.empty:
        raise ValueError("no map has a value: " + ", ".join(map(repr, scores["left_out"].unique()[:3])))
    out = _means(kept, kept["value"], by, seed, "estimate", "low", "high", least=0)
    out["chance"] = _grouped(kept, by)["chance"].mean()
    above = _means(kept, kept["value"] - kept["chance"], by, seed, "above", "above_low", "above_high")
    out = out.join(above[["above", "above_low", "above_high"]])
    if shuffled is None:
        above.loc[above.index.get_level_values("metric").isin(CEILING), "p"] = np.nan
        out = out.assign(shuffled=np.nan, difference=np.nan, difference_low=np.nan, difference_high=np.nan, p=above["p"])
    else:
        both = _paired(kept, shuffled)
        out["shuffled"] = _grouped(both, by)["shuffled"].mean()
        names = ("difference", "difference_low", "difference_high")
        difference = _means(both, both["value"] - both["shuffled"], by, seed, *names)
        out = out.drop(columns="p").join(difference[[*names, "p"]])
    out["q"] = _q(out["p"].to_numpy())
    lacking = _grouped(scores.assign(lacking=scores["value"].isna()), by)["lacking"].sum()
    out = out.reindex(lacking.index).fillna({"n": 0, "clusters": 0}).astype({"n": int, "clusters": int})
    out["left_out"] = lacking.astype(int)
    order = [
        *("estimate", "low", "high", "chance", "above", "above_low", "above_high"),
        *("shuffled", "difference", "difference_low", "difference_high", "p", "q", "n", "clusters", "left_out"),
    ]
    return _plain(out[order].reset_index())


def binding(scores: pd.DataFrame, *, by: Sequence[str] | None = None, seed: int = 0) -> pd.DataFrame:
    """Does a word's map prefer the word's own object?

    Columns: *by, metric, own, other, difference, low, high, p, q, n, clusters, left_out. own: mean value of the
    subject's word on the subject's box and the reference's word on the reference's; other: of each on the other's box;
    difference: own - other, paired within an example over both of its words. A map that is the same for both words, wherever it
    looks, has a difference of 0 exactly: neither salience nor size of an object can make one. Measures of which less is better
    have negative differences. by: None for layer and head where they are columns. n: examples with both words and both
    boxes; left_out: those without. p, q as in `summary`, q over all rows. Raises ValueError where layers or heads would be
    averaged, and where no example has all four values.
    """
    by = [name for name in PLACES if name in scores.columns] if by is None else list(by)
    if "role" in by or "target" in by:
        raise ValueError("a binding is a contrast over both roles and both targets; by can hold neither")
    by = [*by, *(["metric"] if "metric" not in by else [])]
    _check(scores, by)
    part = scores[scores["role"].isin(ROLES) & scores["target"].isin(ROLES)]
    keys = list(dict.fromkeys(["example", "cluster", *by]))
    own = part["role"].astype(str) == part["target"].astype(str)
    sides = {}
    for name, side in (("own", part[own]), ("other", part[~own])):
        grouped = _grouped(side, keys)["value"]
        sides[name] = grouped.mean().where(grouped.count() == len(ROLES))
    wide = pd.DataFrame(sides).reset_index()
    whole = wide[wide["own"].notna() & wide["other"].notna()]
    if whole.empty:
        raise ValueError("no example has maps of both words against both boxes")
    out = _means(whole, whole["own"] - whole["other"], by, seed, "difference", "low", "high")
    out["own"], out["other"] = _grouped(whole, by)["own"].mean(), _grouped(whole, by)["other"].mean()
    out["q"] = _q(out["p"].to_numpy())
    out["left_out"] = (_grouped(wide, by).size().reindex(out.index) - out["n"]).astype(int)
    return _plain(out[["own", "other", "difference", "low", "high", "p", "q", "n", "clusters", "left_out"]].reset_index())


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The same with text for categories, which can't be compared across columns."""
    return frame.astype({name: object for name in frame.columns if frame[name].dtype == "category"})


def _means(frame: pd.DataFrame, values: pd.Series, by: list[str], seed: int, *names: str, least: float = -1) -> pd.DataFrame:
    """Mean, low and high of each group, called as in `names`; p, n, clusters. Indexed by group, in the order of the rows.

    least: the least value of a measure that is yes or no, or of what it is compared by (the greatest is 1): its interval reaches
    at least as far as `stats.bootstrap` lets one of known bounds.
    """
    grouped = _grouped(frame, by)
    codes = grouped.ngroup().to_numpy()
    clusters, labels = pd.factorize(frame["cluster"].astype(str), sort=True)
    order = np.lexsort((clusters, codes))
    starts = np.searchsorted(codes[order], np.arange(grouped.ngroups + 1))
    alike: dict[bytes, list[int]] = {}  # groups whose rows are of the same clusters share their draws
    for group in range(grouped.ngroups):
        alike.setdefault(clusters[order[starts[group] : starts[group + 1]]].tobytes(), []).append(group)
    column = values.to_numpy(float)
    found = np.full((grouped.ngroups, 6), np.nan)
    for groups in alike.values():
        rows = np.stack([order[starts[group] : starts[group + 1]] for group in groups], axis=1)
        means = columns(column[rows], labels[clusters[rows[:, 0]]], seed=seed)
        counts = [np.full(len(groups), float(count)) for count in (means.n, means.clusters)]
        found[groups] = np.stack([means.mean, means.low, means.high, means.p, *counts], axis=1)
    out = pd.DataFrame(found, index=grouped.size().index, columns=[*names, "p", "n", "clusters"]).astype(
        {"n": int, "clusters": int}
    )
    wide = out.index.get_level_values("metric").isin(YES_OR_NO) & (out["clusters"] > 1)
    estimate, low, high = (out.loc[wide, name] for name in names)
    unseen = unseen_share(out.loc[wide, "clusters"])
    out.loc[wide, names[1]] = np.minimum(low, estimate - unseen * (estimate - least))
    out.loc[wide, names[2]] = np.maximum(high, estimate + unseen * (1 - estimate))
    return out


def _grouped(frame: pd.DataFrame, by: list[str]):
    return frame.groupby(by, sort=False, observed=True)


def _paired(real: pd.DataFrame, shuffled: pd.DataFrame) -> pd.DataFrame:
    """Rows of real with the value of the shuffled picture's map, those that have one."""
    keys = [name for name in ("example", "word", "role", "target", "metric", *PLACES) if name in real.columns]
    if missing := [name for name in keys if name not in shuffled.columns]:
        raise ValueError(f"the table of shuffled pictures has no column {missing[0]!r}, that of real ones has")
    other = shuffled.loc[shuffled["value"].notna(), [*keys, "value"]].rename(columns={"value": "shuffled"})
    other["example"] = other["example"].astype(str).map(real_id)
    if other.duplicated(keys).any():
        raise ValueError("a map of a shuffled picture stands twice")
    for name in keys:  # categories of two tables differ
        if name not in PLACES:
            known = real[name].astype("category").cat.categories
            other = other[other[name].astype(str).isin(known)]  # of pictures or words that the real table lacks
            other = other.assign(**{name: pd.Categorical(other[name].astype(str), categories=known)})
    both = real.merge(other, on=keys, how="inner")
    if both.empty:
        raise ValueError("no map of a shuffled picture has the example, word, role and target of a real one")
    return both


def _check(scores: pd.DataFrame, by: Sequence[str]) -> None:
    needed = ("example", "cluster", "word", "role", "target", "metric", "value", "chance", "left_out")
    if missing := [name for name in (*needed, *by) if name not in scores.columns]:
        raise ValueError(f"the column {missing[0]!r} is missing; there: {', '.join(map(str, scores.columns))}")
    if not by:
        raise ValueError("by is empty; name at least one column, such as 'metric'")
    if scores["cluster"].isna().any():
        raise ValueError(f"{int(scores['cluster'].isna().sum())} of {len(scores)} scores have no cluster")
    for name in ("metric", *PLACES):
        if name in scores.columns and name not in by and scores[name].nunique() > 1:
            raise ValueError(f"scores of {scores[name].nunique()} {name}s would be averaged: put {name!r} among by, or give one")
    keys = [name for name in ("example", "word", "role", "target", "metric", *PLACES) if name in scores.columns]
    if scores.duplicated(keys).any():
        raise ValueError(f"a map of {scores.loc[scores.duplicated(keys), 'example'].iloc[0]!r} stands twice")


def _q(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg's, over the groups that have a p-value."""
    q = np.full(len(p), np.nan)
    if (there := np.isfinite(p)).any():
        q[there] = benjamini_hochberg(p[there])
    return q
