"""The permutation sensitivity index: which share of its right answers a model loses when its vision tokens change places.

PSI = (Acc_original - Acc_permuted) / Acc_original (Beyond Semantics, table 2), as a share. Knows tables of answers, in place and
permuted, wherever they come from; no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from spatialprobes.stats import Interval, bootstrap, ratio, unseen_share

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

ORIGINAL, PERMUTED = "original", "permuted"
IN_PLACE = "in place"  # what stands under `permutation` for answers with the tokens in place


def drop(frame: pd.DataFrame, seed: int = 0) -> Interval:
    """Accuracy in place minus accuracy permuted, over all questions of the frame, with a paired cluster-bootstrap interval.

    frame: as `permutation.measure` makes it; the rows of one permutation and of the answers in place. Raises ValueError for more
    than one permutation, and for questions that were not asked in both conditions.
    """
    original, permuted, clusters = _paired(frame)
    return bootstrap(original, clusters, seed=seed, paired=permuted, bounds=(0, 1))


def psi(frame: pd.DataFrame, seed: int = 0) -> Interval:
    """(Acc_original - Acc_permuted) / Acc_original, with an interval that resamples pictures; both from the same draw.

    As with `stats.bootstrap` and its bounds, the interval reaches at least as far as a kind of picture that so many pictures may
    well have missed could move the index: one that is right only permuted, or only in place. So it has a width even where every
    picture loses the same. Raises ValueError as `drop`, where no answer is right in place, or so few that a draw of pictures may
    hold none.
    """
    original, permuted, clusters = _paired(frame)
    if not original.any():
        raise ValueError("no answer is right with the tokens in place: the index divides by zero")
    kept = ratio(permuted, original, clusters, clusters, seed=seed)
    unseen = unseen_share(kept.clusters)
    seen, right, still = 1 - unseen, float(original.mean()), float(permuted.mean())
    most, least = (seen * still + unseen) / (seen * right), seen * still / (seen * right + unseen)
    return Interval(1 - kept.estimate, 1 - max(kept.high, most), 1 - min(kept.low, least), len(original), kept.clusters)


def if_above_chance(found: Interval, frame: pd.DataFrame, chance: Mapping[str, float], seed: int = 0) -> Interval:
    """The same interval where the answers in place are better than blind ones, else one of NaN, of which no claim holds.

    A model that always says "yes" loses nothing when its tokens change places; that says nothing about place. Better: the whole
    interval of accuracy in place minus chance, over the frame's questions, is above 0. chance: {group: accuracy of the best blind
    answer}. Raises KeyError for a group that is not in it.
    """
    original = _in_place(frame)
    blind = np.array([chance[group] for group in original["group"]])
    gained = bootstrap(original["correct"].to_numpy(float) - blind, original["cluster"].to_numpy(), seed=seed)
    return found if gained.low > 0 else found._replace(estimate=np.nan, low=np.nan, high=np.nan)


def psi_table(
    frame: pd.DataFrame, chance: Mapping[str, float] | None = None, by: Literal["group", "kind"] = "group", seed: int = 0
) -> pd.DataFrame:
    """One row for each group (or kind) and permutation, in the order of the frame.

    Columns: group (the kind's name for by="kind"), kind, permutation, accuracy (in place), accuracy_permuted, psi, low, high,
    chance, psi_at_chance (what the index would be if the permuted answers were at chance; the most that lost places can explain),
    n (questions), clusters, moved (mean distance in cells; NaN where tokens have no grid), note (why a number is NaN, else "").
    chance: {group: accuracy of the best blind answer}; NaN where a group is not in it; of a kind, the mean over its questions.
    psi is NaN where no answer is right in place, and the interval where so few are, or so few pictures, that it has none.
    Raises ValueError for another `by`, no permuted answers, and questions that were not asked in both conditions.
    """
    if by not in ("group", "kind"):
        raise ValueError(f"by={by!r} is unknown; 'group' or 'kind'")
    frame = _with_permutation(frame)
    names = [name for name in dict.fromkeys(frame["permutation"]) if name != IN_PLACE]
    if not names:
        raise ValueError("no permuted answers are in the table")
    rows = []
    for label, part in frame.groupby(by, sort=False):
        for name in names:
            chosen = part[part["permutation"].isin((IN_PLACE, name))]
            if (chosen["permutation"] == name).any():
                rows.append(
                    {"group": label, "kind": part["kind"].iloc[0], "permutation": name, **_row(chosen, chance or {}, seed)}
                )
    return pd.DataFrame(rows)


def psi_by_distance(frame: pd.DataFrame, by: Literal["group", "kind"] = "kind", seed: int = 0) -> pd.DataFrame:
    """The index against how far the tokens moved: [group, permutation, moved, psi, low, high, n, clusters, note].

    One row for each group or kind and permutation, nearest first within a group. Raises ValueError as `psi_table`, and where
    tokens have no grid to measure a distance on.
    """
    table = psi_table(frame, by=by, seed=seed)
    if table["moved"].isna().any():
        name = table.loc[table["moved"].isna(), "permutation"].iloc[0]
        raise ValueError(f"permutation {name!r} has no distance: the vision tokens have no grid, or the table no column 'moved'")
    columns = ["group", "permutation", "moved", "psi", "low", "high", "n", "clusters", "note"]
    order = {group: i for i, group in enumerate(dict.fromkeys(table["group"]))}
    return table.sort_values(["group", "moved"], key=lambda column: column.map(order) if column.name == "group" else column)[
        columns
    ].reset_index(drop=True)


def psi_from_accuracies(
    original: Float[np.ndarray, " *shape"], permuted: Float[np.ndarray, " *shape"]
) -> Float[np.ndarray, " *shape"]:
    """The index from accuracies alone, both shares or both per cent; no interval, for which answers would be needed.

    Raises ValueError where an accuracy in place is not above 0, or a permuted one below it.
    """
    first, second = np.asarray(original, float), np.asarray(permuted, float)
    if not (first > 0).all():
        raise ValueError(f"an accuracy of {first.min():g} in place: the index divides by it, so it must be above 0")
    if not (second >= 0).all():
        raise ValueError(f"a permuted accuracy of {second.min():g}; it must be at least 0")
    return (first - second) / first


def _row(part: pd.DataFrame, chance: Mapping[str, float], seed: int) -> dict:
    original, permuted, clusters = _paired(part)
    right, blind = (
        float(original.mean()),
        float(_in_place(part)["group"].map(lambda group: chance.get(group, np.nan)).mean(skipna=False)),
    )
    found, note = _interval(part, original, permuted, clusters, seed)
    return {
        "accuracy": right,
        "accuracy_permuted": float(permuted.mean()),
        "psi": found.estimate,
        "low": found.low,
        "high": found.high,
        "chance": blind,
        "psi_at_chance": 1 - blind / right if right else np.nan,
        "n": found.n,
        "clusters": found.clusters,
        "moved": float(part.loc[part["permutation"] != IN_PLACE, "moved"].mean(skipna=False)),
        "note": note,
    }


def _interval(part: pd.DataFrame, original, permuted, clusters, seed: int) -> tuple[Interval, str]:
    """The index where it exists, NaN where not, and why."""
    n, count = len(original), pd.Series(clusters).nunique()
    if not original.any():
        return Interval(np.nan, np.nan, np.nan, n, count), "no answer is right in place"
    try:
        return psi(part, seed), ""
    except ValueError as error:  # the pairs were checked before: only the interval can fail here
        return Interval(1 - float(permuted.mean() / original.mean()), np.nan, np.nan, n, count), f"no interval: {error}"


def _paired(frame: pd.DataFrame) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"], Shaped[np.ndarray, " n"]]:
    """Right or not in place, the share right permuted, and the cluster, a row a question."""
    named = set(frame["permutation"]) - {IN_PLACE} if "permutation" in frame else {PERMUTED}
    if len(named) > 1:
        raise ValueError(f"answers under {len(named)} permutations ({', '.join(sorted(named))}): give the rows of one")
    original = _in_place(frame)
    permuted = frame[frame["condition"] == PERMUTED].groupby("id", sort=False)["correct"].mean()
    if len(lacking := permuted.index.difference(original.index, sort=False)):
        raise ValueError(f"{len(lacking)} questions were asked permuted alone: {lacking[0]!r} has no answer in place")
    permuted = permuted.reindex(original.index)
    if permuted.isna().any():
        first = permuted.index[permuted.isna()][0]
        raise ValueError(
            f"the permuted answers have {int(permuted.isna().sum())} values that are NaN: {first!r} was not asked permuted"
        )
    return original["correct"].to_numpy(float), permuted.to_numpy(float), original["cluster"].to_numpy()


def _in_place(frame: pd.DataFrame) -> pd.DataFrame:
    original = frame[frame["condition"] == ORIGINAL].set_index("id")
    if original.empty:
        raise ValueError("no answers with the tokens in place are in the table")
    if original.index.has_duplicates:
        raise ValueError(f"{original.index[original.index.duplicated()][0]!r} was answered twice in place; ids must be unique")
    return original


def _with_permutation(frame: pd.DataFrame) -> pd.DataFrame:
    """With the columns that tables of one permutation may lack."""
    added = {}
    if "permutation" not in frame:
        added["permutation"] = np.where(frame["condition"] == ORIGINAL, IN_PLACE, PERMUTED)
    if "moved" not in frame:
        added["moved"] = np.nan
    if "kind" not in frame:
        added["kind"] = frame["group"]
    return frame.assign(**added)
