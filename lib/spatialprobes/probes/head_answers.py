"""Does the model answer right whether something is in the corner? By member and by asked corner, beside what guessing gives.

Knows tables of `heads.HeadMass.answers`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from spatialprobes.stats import bootstrap

COLUMNS = ("accuracy", "low", "high", "chance", "constant", "says_yes", "unparsed", "n", "clusters")
LEGAL = ("asked", "member", "corner")


def accuracy(answers: pd.DataFrame, *, by: Sequence[str] = ("asked", "member"), n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Share of right answers: the columns `by`, then COLUMNS.

    by: among asked, member and corner (the subject's); empty for one row of all. low, high: 95%, clusters resampled; NaN for one
    cluster. chance: .5, a guess between yes and no; constant: the better of always yes and always no, on these questions. Where
    all have one answer (full pictures asked about the subject's own corner) that is 1, and accuracy says how often it is given.
    says_yes: share of answers that are yes; unparsed: share that could not be parsed, which count as wrong. n: questions.
    Raises ValueError for another `by`, a missing column, and no rows.
    """
    if isinstance(by, str) or len(set(by)) < len(by):
        raise ValueError(f"by={by!r}: a list of some of {', '.join(LEGAL)}, each of them once")
    if wrong := [name for name in by if name not in LEGAL]:
        raise ValueError(f"by={wrong[0]!r} is unknown; among {', '.join(LEGAL)}")
    if missing := [one for one in (*by, "cluster", "expected", "answer", "correct", "parsed") if one not in answers.columns]:
        raise ValueError(f"the column {missing[0]!r} is missing; there: {', '.join(map(str, answers.columns))}")
    if answers.empty:
        raise ValueError("no answers were given")
    groups = answers.groupby(list(by), sort=False) if by else [((), answers)]
    rows = []
    for key, part in groups:
        right, clusters = part["correct"].to_numpy(float), part["cluster"].to_numpy()
        count = len(set(clusters))
        low = high = np.nan
        if count > 1:
            _, low, high, *_ = bootstrap(right, clusters, n=n, seed=seed, bounds=(0, 1))
        yes = float((part["expected"] == "yes").mean())
        numbers = (right.mean(), low, high, 0.5, max(yes, 1 - yes), float((part["answer"] == "yes").fillna(False).mean()))
        rows.append((*key, *numbers, float(1 - part["parsed"].mean()), len(part), count))
    return pd.DataFrame(rows, columns=[*by, *COLUMNS])
