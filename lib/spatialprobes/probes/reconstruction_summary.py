"""Means over pictures of what `reconstruction.evaluate` measured, with intervals, for the reconstructor and its baselines.

Knows tables; no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.stats import bootstrap

if TYPE_CHECKING:
    from jaxtyping import Shaped

BY = {"reconstructor": "", "linear": "_linear", "mean": "_mean"}  # what reads back, and the end of its columns
MEASURES = ("r2", "mse", "cosine")


def summary(frame: pd.DataFrame, clusters: Shaped[np.ndarray, " row"] | None = None, seed: int = 0) -> pd.DataFrame:
    """A row for each part, reader and measure: [model, part, by, measure, value, low, high, n, clusters].

    frame: of `evaluate`, perhaps of several models (column "model", "" without). by: "reconstructor", "linear" (ridge
    regression), "mean" (the training mean, its r2 1 - mse). clusters: a label a row, alike for duplicates, which are resampled
    together (each picture by itself without). Raises ValueError for an empty table, labels of another length, and a part of one
    cluster.
    """
    if frame.empty:
        raise ValueError("the table has no rows")
    if clusters is not None and len(clusters) != len(frame):
        raise ValueError(f"{len(clusters)} cluster labels for {len(frame)} rows")
    known = frame.assign(
        model=frame.get("model", ""),
        r2_mean=1 - frame["mse_mean"],
        _cluster=np.arange(len(frame)) if clusters is None else np.asarray(clusters),
    )
    rows = []
    for (model, part), of in known.groupby(["model", "part"], sort=False):
        for by, end in BY.items():
            for measure in MEASURES:
                if of[measure + end].isna().all():  # a baseline that was not fitted
                    continue
                found = bootstrap(of[measure + end].to_numpy(), of["_cluster"].to_numpy(), seed=seed)
                labels = {"model": model, "part": part, "by": by, "measure": measure, "value": found.estimate}
                rows.append({**labels, "low": found.low, "high": found.high, "n": found.n, "clusters": found.clusters})
    return pd.DataFrame(rows)


def raw_r2(frame: pd.DataFrame) -> pd.DataFrame:
    """Variance explained in raw units, pictures pooled: [model, part, r2_raw, n], 1 - sum of errors / sum of deviations.

    A few dimensions of large variance decide it, where `summary`'s r2 counts every dimension alike.
    """
    known = frame.assign(model=frame.get("model", ""))
    sums = known.groupby(["model", "part"], sort=False).agg(
        error=("error_raw", "sum"), deviation=("deviation_raw", "sum"), n=("key", "size")
    )
    return sums.assign(r2_raw=1 - sums["error"] / sums["deviation"]).reset_index()[["model", "part", "r2_raw", "n"]]
