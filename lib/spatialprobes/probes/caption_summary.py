"""What is made of scored captions: drops against the original arm, and means by arm with intervals, empty captions counted.

One sign throughout: a drop is the original's score minus the changed one's, so that above zero is worse. (The study's tables of
perturbations have the opposite; only `connector_export.py` writes it.) Empty captions are in every summary twice, as 0 and left
out: the study leaves them out, and what breaks a model's captions then looks mild. Knows tables; knows no models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spatialprobes.probes.lab_captions import SCORES as LAB_SCORES
from spatialprobes.stats import bootstrap

SHARES = ("empty", "cut", "same")  # of captions; the same whether empty ones count
LENGTHS = ("words", "words_change", "words_changed")
LAB_SHARES = tuple(name for name in LAB_SCORES if name not in ("lab_invented", "lab_clauses"))
VALUES = (
    "clipscore_100", "clipscore_hessel", "bertscore_precision", "bertscore_recall", "bertscore_f1", "bertscore_gt_precision",
    "bertscore_gt_recall", "bertscore_gt_f1", *LAB_SCORES,
)  # fmt: skip
EMPTIES = ("as 0", "left out")


def drops(frame: pd.DataFrame, values: Sequence[str] | None = None, *, base: str = "live") -> pd.DataFrame:
    """The table with <value>_drop, the score of arm `base` of the same key and model minus the row's own, and <value>_base.

    values: columns; None: those of VALUES that are there. Also words_change, the row's words minus the original's, words_changed,
    its size, and empty_base. Rows of the base itself have a drop of 0. Missing where either score is.
    Raises ValueError for a missing column, no rows of `base`, and a key that stands twice among them.
    """
    values = _values(frame, values, [])
    own = frame[frame["arm"] == base]
    if own.empty:
        raise ValueError(f"no rows of arm {base!r}; there: {', '.join(dict.fromkeys(frame['arm']))}")
    if (twice := own.duplicated(["model", "key"])).any():
        raise ValueError(f"arm {base!r} holds the key {own[twice].iloc[0]['key']!r} twice")
    found = own.set_index(["model", "key"]).reindex(pd.MultiIndex.from_frame(frame[["model", "key"]]))
    added = {}
    for name in values:
        original = found[name].to_numpy(float)
        added |= {f"{name}_base": original, f"{name}_drop": original - frame[name].to_numpy(float)}
    words = frame["words"].to_numpy(float) - found["words"].to_numpy(float)
    return frame.assign(**added, words_change=words, words_changed=np.abs(words), empty_base=found["empty"].array)


def summary(
    frame: pd.DataFrame,
    values: Sequence[str] | None = None,
    *,
    by: Sequence[str] = ("model", "arm"),
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Means by group: [*by, value, empties, estimate, low, high, n, empty, clusters], the groups in the order of the table.

    values: columns; None: those of VALUES, their drops, words and SHARES that are there. empties: "as 0", where an empty caption
    scores 0, also where it states nothing that could be right or wrong (lab_relations and others), and so does any caption in
    these; "left out", where rows with a missing value or an empty caption (the row's own, or for drops the original) are left
    out. low, high: 95%, over clusters; missing for fewer than two. n: rows of the mean; empty: empty captions of the group.
    Values of SHARES and words count every row and stand under "as 0" alone. Groups without any value are left out.
    Raises ValueError for a missing column.
    """
    names = _values(frame, values, [f"{name}_drop" for name in VALUES] + [*LENGTHS, *SHARES])
    rows = []
    for group, part in frame.groupby(list(by), sort=False, dropna=False):
        labels = dict(zip(by, group if isinstance(group, tuple) else (group,), strict=True))
        for name in names:
            for empties in EMPTIES if name not in (*SHARES, *LENGTHS) else EMPTIES[:1]:
                column, clusters = counted(part, name, empties)
                if len(column):
                    interval = _interval(column, clusters, _bounds(name), n, seed)
                    found = {"value": name, "empties": empties, **interval, "empty": int(part["empty"].sum())}
                    rows.append({**labels, **found, "clusters": len(set(clusters))})
    columns = [*by, "value", "empties", "estimate", "low", "high", "n", "empty", "clusters"]
    return pd.DataFrame(rows, columns=columns)


def counted(frame: pd.DataFrame, value: str, empties: str) -> tuple[np.ndarray, np.ndarray]:
    """A column of the table and its clusters, as `summary` counts it: with empty captions "as 0", or with them "left out"."""
    if empties not in EMPTIES:
        raise ValueError(f"empties={empties!r} is unknown; {' or '.join(map(repr, EMPTIES))}")
    column = frame[value].to_numpy(float, na_value=np.nan)
    empty = frame["empty"].to_numpy(bool)
    plain, is_drop = value.removesuffix("_drop"), value.endswith("_drop")
    if is_drop and empties == "as 0":
        own, original = (frame[name].to_numpy(float) for name in (plain, f"{plain}_base"))
        column = _filled(original, plain) - _filled(own, plain)
    elif empties == "as 0":
        column = _filled(column, value)
    elif value not in SHARES:
        gone = empty | frame["empty_base"].to_numpy(bool) if is_drop else empty
        column = np.where(gone, np.nan, column)
    there = ~np.isnan(column)
    return column[there], frame["cluster"].to_numpy()[there]


def _filled(column: np.ndarray, value: str) -> np.ndarray:
    """The lab's scores with 0 where a caption says nothing that could be right; other scores of an empty one are 0 already."""
    return np.where(np.isnan(column), 0.0, column) if value in LAB_SCORES else column


def _interval(column: np.ndarray, clusters: np.ndarray, bounds: tuple[float, float] | None, n: int, seed: int) -> dict:
    if len(set(clusters)) < 2:
        return {"estimate": float(column.mean()), "low": np.nan, "high": np.nan, "n": len(column)}
    found = bootstrap(column, clusters, n=n, seed=seed, bounds=bounds)
    return {"estimate": found.estimate, "low": found.low, "high": found.high, "n": found.n}


def _bounds(value: str) -> tuple[float, float] | None:
    if value in SHARES or value in LAB_SHARES:
        return (0.0, 1.0)
    return (-1.0, 1.0) if value.removesuffix("_drop") in LAB_SHARES else None


def _values(frame: pd.DataFrame, values: Sequence[str] | None, more: Sequence[str]) -> list[str]:
    if values is None:
        return [name for name in (*VALUES, *more) if name in frame.columns]
    if missing := [name for name in values if name not in frame.columns]:
        raise ValueError(f"no column {missing[0]!r}; the table has {', '.join(frame.columns)}")
    return list(values)
