"""How many questions of swap pairs are answered rightly, in which categories that can be relied on, and which pairs count.

Knows tables of answers; knows nothing of hidden states, models and figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.pairs import GROUP_OF, GROUPS
from spatialprobes.probes.swap_states import MEMBERS
from spatialprobes.stats import bootstrap

if TYPE_CHECKING:
    from jaxtyping import Bool

VARIANTS = ("all", "both_correct", "all_with_validity")
BY = {"generate": "correct", "logprob": "correct_logprob", "as_published": "correct_published"}
CHANCE = 0.5  # of one question, whose two answers are as frequent: every answer of a pair is the other's opposite
COLUMNS = [
    "group", "category", "member", "by", "estimate", "low", "high", "chance", "n", "clusters", "unparsed", "reliable"
]  # fmt: skip


def variants(answers: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Bool[np.ndarray, " pair"]]:
    """Which pairs count: {"all", "both_correct", "all_with_validity": mask over the rows of `pairs`}.

    both_correct: both questions right by generation. all_with_validity counts as "all"; its unreliable categories are marked.
    answers: [pair, member, correct, ...], one row a question. Raises ValueError for a pair that lacks an answer or has it twice.
    """
    both = _wide(answers, "correct").all(axis=1)
    if len(lacking := pd.Index(pairs["pair"]).difference(both.index, sort=False)):
        raise ValueError(f"{len(lacking)} pairs have states and no answers, {lacking[0]!r} among them")
    every = np.ones(len(pairs), bool)
    return {"all": every, "both_correct": both.loc[pairs["pair"]].to_numpy(bool), "all_with_validity": every.copy()}


def accuracy(answers: pd.DataFrame, *, threshold: float | None = None, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Share of right answers by group, category of the pair, member, and way of answering.

    Columns: group, category ("" = the whole group), member ("original", "swapped": that question; "both": pairs with both right),
    by ("generate": whole words; "logprob": the likelier of the two answers; "as_published": the substring check; those that the
    table has), estimate, low, high (cluster bootstrap), chance (.5 for a question, .25 for both, by guessing each; answers
    by the wording alone, without the picture, can have up to .5 of both), n (questions, for "both" pairs), clusters, unparsed
    (share of them without a readable answer, of both with either such; NaN but for "generate"), reliable (see `reliable`; of a
    group, both its categories). threshold: that a category must exceed, chance by default. Every group and category has its rows:
    NaN with n = 0 where there are no answers, no interval with fewer than 2 pictures.
    """
    answers = _with_pair_category(answers)
    rows = []
    for by, column in ((by, column) for by, column in BY.items() if column in answers):
        trusted = reliable(answers, threshold=threshold, column=column, n=n, seed=seed)
        for group, pair in GROUPS.items():
            for category in ("", *pair):
                of_it = answers[answers["pair_category"].isin([category] if category else pair)]
                flag = trusted[category] if category else all(trusted[one] for one in pair)
                where = {"group": group, "category": category, "by": by, "reliable": flag}
                rows += [where | _row(of_it, member, column, n, seed) for member in (*MEMBERS, "both")]
    return pd.DataFrame(rows, columns=COLUMNS)


def reliable(
    answers: pd.DataFrame, *, threshold: float | None = None, column: str = "correct", n: int = 2000, seed: int = 0
) -> dict[str, bool]:
    """{category: whether the lower 95% bound of its accuracy is above the threshold, .5 by default}.

    Its accuracy: the share right of all questions of its pairs, original and swapped, with pictures as clusters. That the two
    members of a pair have opposite answers makes .5 what one word for all gets. False without answers or with one picture.
    Raises ValueError for a threshold outside [0, 1].
    """
    least = CHANCE if threshold is None else float(threshold)
    if not 0 <= least <= 1:
        raise ValueError(f"threshold={threshold!r} is no share of right answers, between 0 and 1")
    answers = _with_pair_category(answers)
    parts = {category: answers[answers["pair_category"] == category] for category in GROUP_OF}
    return {name: bool(_interval(part[column], part["cluster"], n, seed)[1] > least) for name, part in parts.items()}


def _row(of_it: pd.DataFrame, member: str, column: str, n: int, seed: int) -> dict:
    if member == "both":
        by_pair = of_it.groupby("pair", sort=False)
        right, unread, chance = by_pair[column].all(), ~by_pair["parsed"].all(), CHANCE**2
        clusters = by_pair["cluster"].first()
    else:
        chosen = of_it[of_it["member"] == member]
        right, unread, clusters, chance = chosen[column], ~chosen["parsed"].astype(bool), chosen["cluster"], CHANCE
    estimate, low, high = _interval(right, clusters, n, seed)
    return {
        "member": member,
        "estimate": estimate,
        "low": low,
        "high": high,
        "chance": chance,
        "n": len(right),
        "clusters": clusters.nunique(),
        "unparsed": float(unread.mean()) if column == BY["generate"] and len(right) else np.nan,
    }


def _interval(right: pd.Series, clusters: pd.Series, n: int, seed: int) -> tuple[float, float, float]:
    if clusters.nunique() < 2:
        return float(right.astype(float).mean()), np.nan, np.nan
    return bootstrap(right.to_numpy(float), clusters.to_numpy(), n=n, seed=seed, bounds=(0, 1))[:3]


def _with_pair_category(answers: pd.DataFrame) -> pd.DataFrame:
    """With the category of each row's pair, which is that of its original question."""
    _wide(answers, "correct")
    original = answers[answers["member"] == "original"].set_index("pair")["category"]
    return answers.assign(pair_category=answers["pair"].map(original))


def _wide(answers: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column by pair and member."""
    if (twice := answers.duplicated(["pair", "member"])).any():
        raise ValueError(f"pair {answers.loc[twice, 'pair'].iloc[0]!r} has two answers of one member")
    wide = answers.pivot(index="pair", columns="member", values=column).reindex(columns=list(MEMBERS))
    if wide.isna().any(axis=None):
        raise ValueError(f"pair {wide.index[wide.isna().any(axis=1)][0]!r} has an answer to one of its two questions alone")
    return wide.astype(bool)
