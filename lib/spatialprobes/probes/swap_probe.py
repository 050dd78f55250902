"""Can the answer to a swap question be read from its hidden state by a linear probe, layer by layer?

A ridge classifier, cross-validated with pictures kept whole. Knows states and tables; knows nothing of models and figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.pairs import GROUPS
from spatialprobes.probes.swap_resampling import coded, label_shuffles, share_at_least, sizes, with_q
from spatialprobes.probes.swap_states import States
from spatialprobes.seeds import check_seed
from spatialprobes.stats import bootstrap

if TYPE_CHECKING:
    from jaxtyping import Float, Int

COLUMNS = ["layer", "group", "control", "estimate", "low", "high", "p", "q", "chance", "n", "clusters"]
PENALTY = 1.0  # of the mean squared error, on features of variance 1
CHANCE = 0.5  # each pair has one question of either answer


def linear_probe(states: States, *, folds: int = 5, m: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Cross-validated accuracy of reading the answer's category (canonical or opposite) from the state of one question.

    Both members of a pair are rows, with opposite labels. Least squares on labels +1 and -1 with a ridge penalty, on features
    standardised in the training folds; pictures are dealt to `folds` folds whole, so that a pair never spans two.
    Columns: layer, group, control, estimate, low, high (cluster bootstrap of the held-out answers; how the probe varies with its
    training pictures is not in it), p, q (Benjamini-Hochberg over layers), chance, n (questions), clusters.
    p: one-sided, of m relabellings in which pairs' categories are dealt anew, counts kept, pictures whole, and the probe is
    trained and tested again; (b + 1) / (m + 1). Control "shuffled": mean and 2.5th and 97.5th percentiles of those accuracies.
    NaN with fewer pictures than folds. Raises ValueError for fewer than 2 folds or 100 relabellings.
    """
    if folds < 2 or m < 100:
        raise ValueError(f"folds={folds}, m={m}: at least 2 folds and 100 relabellings are needed")
    rows = []
    for layer in states.layers:
        original, swapped = (np.asarray(each, float) for each in (states.original(layer), states.swapped(layer)))
        finite = np.isfinite(original).all(axis=1) & np.isfinite(swapped).all(axis=1)
        for group in GROUPS:
            keep = finite & (states.pairs["group"] == group).to_numpy()
            codes, count = coded(states.pairs["cluster"].to_numpy()[keep])
            where = {"layer": layer, "group": group, "chance": CHANCE, "n": 2 * int(keep.sum()), "clusters": count}
            if count < folds:
                rows += [where | {"control": control} for control in ("none", "shuffled")]
                continue
            labels = states.signs[keep].astype(np.int8)
            right, null = _cross_validated(original[keep], swapped[keep], labels, codes, count, folds, m, seed)
            found = bootstrap(right, codes, seed=seed, bounds=(0, 1))
            p = share_at_least(null, found.estimate)
            rows.append(where | {"control": "none", "estimate": found.estimate, "low": found.low, "high": found.high, "p": p})
            low, high = np.quantile(null, [0.025, 0.975])
            rows.append(where | {"control": "shuffled", "estimate": float(null.mean()), "low": float(low), "high": float(high)})
    return with_q(pd.DataFrame(rows, columns=COLUMNS), ["group"])[COLUMNS]


def _cross_validated(
    original: Float[np.ndarray, "pair width"],
    swapped: Float[np.ndarray, "pair width"],
    labels: Int[np.ndarray, " pair"],
    codes: Int[np.ndarray, " pair"],
    count: int,
    folds: int,
    m: int,
    seed: int,
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " shuffle"]]:
    """Share right of each pair's two questions, and the accuracies under m relabellings.

    What a ridge probe says is linear in its training labels, so one matrix a fold serves every relabelling.
    """
    fold_of = np.random.default_rng(check_seed(seed)).permutation(np.arange(count) % folds)[codes]
    dealt = np.concatenate([labels[None], label_shuffles(labels, codes, m, seed)])  # the true ones first
    right = np.zeros(len(labels))
    hits = np.zeros(m + 1)
    for fold in range(folds):
        test = fold_of == fold
        for member, sign in ((original, 1), (swapped, -1)):
            says = _hat(original[~test], swapped[~test], member[test])
            start = 0
            for size in sizes(m + 1, len(labels)):
                block = dealt[start : start + size]
                good = (block[:, ~test].astype(float) @ says.T) * block[:, test] * sign
                scored = (good > 0) + 0.5 * (good == 0)  # a probe that says nothing guesses
                hits[start : start + size] += scored.sum(axis=1)
                if start == 0:
                    right[test] += scored[0] / 2
                start += size
    return right, hits[1:] / (2 * len(labels))


def _hat(
    original: Float[np.ndarray, "train width"], swapped: Float[np.ndarray, "train width"], asked: Float[np.ndarray, "test width"]
) -> Float[np.ndarray, "test train"]:
    """What the probe says of each asked state, per unit of each training pair's label (+ of its original, - of its swapped)."""
    both = np.concatenate([original, swapped])
    spread = both.std(axis=0)
    spread[spread <= 1e-12 * np.abs(both).max()] = np.inf  # a constant feature says nothing
    mean = both.mean(axis=0)
    trained, asked = (both - mean) / spread, (asked - mean) / spread
    ridge = PENALTY * len(both)
    if trained.shape[1] <= len(trained):
        solved = np.linalg.solve(trained.T @ trained + ridge * np.eye(trained.shape[1]), trained.T)
        says = asked @ solved
    else:
        says = np.linalg.solve(trained @ trained.T + ridge * np.eye(len(trained)), trained @ asked.T).T
    return says[:, : len(original)] - says[:, len(original) :]
