"""Does it matter where the vision tokens stand? The permutation probe (Beyond Semantics, section 3).

The tokens are shuffled between connector and language model, positions stay. What survives does not need place.
Knows answers and interventions; knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.answers import answer
from spatialprobes.examples import Example
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.stats import Interval, bootstrap, ratio
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

ORIGINAL, PERMUTED = "original", "permuted"


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    draws: int = 3,
    by: str = "generate",
    max_new_tokens: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Answers with the vision tokens in place and under ``draws`` seeded permutations, one row per example and condition.

    Columns: id, group, category, kind (``Example.meta["kind"]``, else the first part of the group), cluster (the id where an
    example has none), expected, answer, correct, parsed, condition ("original" or "permuted"), draw (-1 for the original). Every
    picture has a permutation of its own in every draw; questions about one picture share it. ``attrs["unparsed"]``: share of
    rows that could not be read.
    Raises ValueError for draws < 1 or no examples.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    if not examples:
        raise ValueError("no examples were given")
    options = {"by": by, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    frames = [answer(vlm, examples, **options).assign(condition=ORIGINAL, draw=-1)]
    pictures = {example.cluster or example.id: example for example in examples}
    lengths = [len(tokens) for tokens in vlm.vision_features(list(pictures.values()), batch_size)]
    for draw in range(draws):
        permutations = dict(zip(pictures, _permutations(lengths, seed * 1000 + draw), strict=True))
        with intervene(vlm, permute=permutations):
            frames.append(answer(vlm, examples, **options).assign(condition=PERMUTED, draw=draw))
    frame = pd.concat(frames, ignore_index=True)
    kinds = {example.id: example.meta.get("kind") or example.group.split(".")[0] for example in examples}
    frame.insert(3, "kind", frame["id"].map(kinds))
    frame["cluster"] = frame["id"].map({example.id: example.cluster or example.id for example in examples})
    frame.attrs = {"unparsed": float(1 - frame["parsed"].mean())}
    return frame.drop(columns="text")


def _permutations(lengths: list[int], seed: int) -> list[Int[Tensor, " token"]]:
    """One permutation for every picture, drawn in the order of the pictures."""
    if len(set(lengths)) == 1:
        return list(random_permutations(lengths[0], len(lengths), seed))
    return [random_permutations(n, 1, seed * 100_003 + i)[0] for i, n in enumerate(lengths)]


def summary(frame: pd.DataFrame, chance: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Accuracy by group and condition with cluster-bootstrap intervals: [group, kind, condition, accuracy, low, high, chance, n].

    chance: {group: accuracy of the best blind answer}; NaN where a group is not in it. n counts questions; each is asked once
    under every permutation, and the questions of one picture are resampled together.
    """
    rows = []
    for (group, condition), part in frame.groupby(["group", "condition"], sort=False):
        found = bootstrap(part["correct"].to_numpy(float), part["cluster"].to_numpy(), seed=seed, bounds=(0, 1))
        rows.append(
            {
                "group": group,
                "kind": part["kind"].iloc[0],
                "condition": condition,
                "accuracy": found.estimate,
                "low": found.low,
                "high": found.high,
                "chance": chance.get(group, np.nan),
                "n": part["id"].nunique(),
            }
        )
    return pd.DataFrame(rows)


def drop(frame: pd.DataFrame, seed: int = 0) -> Interval:
    """Accuracy in place minus accuracy permuted, over all questions of the frame, with a paired cluster-bootstrap interval."""
    original = frame[frame["condition"] == ORIGINAL].set_index("id")
    permuted = frame[frame["condition"] == PERMUTED].groupby("id", sort=False)["correct"].mean().reindex(original.index)
    return bootstrap(
        original["correct"].to_numpy(float),
        original["cluster"].to_numpy(),
        seed=seed,
        paired=permuted.to_numpy(float),
        bounds=(0, 1),
    )


def psi(frame: pd.DataFrame, seed: int = 0) -> Interval:
    """Permutation sensitivity index, (Acc_original - Acc_permuted) / Acc_original (Beyond Semantics, table 2), as a share.

    The interval resamples pictures; both accuracies come from the same draw. Raises ValueError where no answer is right in place,
    or so few that a draw of pictures may hold none.
    """
    original = frame[frame["condition"] == ORIGINAL].set_index("id")
    if not original["correct"].any():
        raise ValueError("no answer is right with the tokens in place: the index divides by zero")
    permuted = frame[frame["condition"] == PERMUTED].groupby("id", sort=False)["correct"].mean().reindex(original.index)
    clusters = original["cluster"].to_numpy()
    kept = ratio(permuted.to_numpy(float), original["correct"].to_numpy(float), clusters, clusters, seed=seed)
    return Interval(1 - kept.estimate, 1 - kept.high, 1 - kept.low, len(original), kept.clusters)
