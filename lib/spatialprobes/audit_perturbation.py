"""The connector study's perturbed captions, from its own files: losses with intervals, who is missing, and how much is noise.

What the study shows as a loss is a mean over the pictures that still got a caption. Its axis, a share of min(tokens, width),
keeps 6 dimensions of one model and 1 of another at the same place; here the kept rank and energy stand beside it. Captions before
the perturbation were made several times; where the runs differ, nothing but the run changed. Knows tables of captions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.audit_moments import interval, means

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Shaped

PILOT = 100  # rows below which the study's own plots leave a file out


def measure(frame: pd.DataFrame, clusters: Shaped[np.ndarray, " n"], seed: int = 0) -> dict[str, float]:
    """One perturbation: losses are means of original - perturbed, positive where the caption got worse.

    Keys: n, empty, empty_share, identical (share of unchanged captions), pilot (fewer than `PILOT` rows); drop, drop_low,
    drop_high (CLIPScore points, over captions that are not empty); drop_of_means (mean of all originals - mean of the scores that
    are there: two sets of pictures); drop_empty_as_zero, with _low and _high (an empty caption scores 0); bert, bert_low,
    bert_high (F1 of perturbed against original), bert_drop (against ground truth); survivors_before: by how much better the
    pictures that kept a caption scored before than all.
    """
    columns = {
        "drop": frame["clipscore_drop"],
        "drop_empty_as_zero": frame["clipscore_original"] - frame["clipscore_perturbed"].fillna(0.0),
        "bert": frame["bertscore_orig_vs_pert"],
    }
    found = with_intervals(pd.DataFrame(columns), clusters, seed)
    there = frame["clipscore_perturbed"].notna()
    before = frame["clipscore_original"]
    return {
        "n": len(frame),
        "empty": int(frame["empty"].sum()),
        "empty_share": float(frame["empty"].mean()),
        "identical": float(frame["identical"].mean()),
        "pilot": len(frame) < PILOT,
        **found,
        "drop_of_means": float(before.mean() - frame["clipscore_perturbed"].mean()),
        "survivors_before": float(before[there].mean() - before.mean()) if there.any() else np.nan,
        "bert_drop": float(frame["bertscore_drop"].mean()),
    }


def kept_rank(level: float, most: float) -> int:
    """The rank that the study's truncation keeps of min(tokens, width) = `most`: a share of it, above 1 the rank itself."""
    return int(min(most, max(1, round(level if level > 1 else level * most))))


def with_axes(table: pd.DataFrame, ranks: Mapping[str, int], spectra: pd.DataFrame) -> pd.DataFrame:
    """The table with rank and energy: what a low-rank file keeps; NaN for other modes and where no spectrum is at hand.

    ranks: min(tokens, width) of E_post by model. spectra: `audit_geometry.spectra`; energy is the mean share of the centred
    tokens' energy in the first `rank` components, NaN where the files list fewer.
    """
    rank, energy = np.full(len(table), np.nan), np.full(len(table), np.nan)
    after = spectra[spectra["side"] == "post"].sort_values("component")
    shares = {model: own["energy"].cumsum().to_numpy() for model, own in after.groupby("model")}
    for place, row in enumerate(table.to_dict("records")):
        if row["mode"] == "lowrank" and row["model"] in ranks:
            rank[place] = kept_rank(row["level"], ranks[row["model"]])
            listed = shares.get(row["model"], np.empty(0))
            if rank[place] <= len(listed):
                energy[place] = min(float(listed[int(rank[place]) - 1]), 1.0)
    return table.assign(rank=rank, energy=energy)


def noise(originals: Mapping[str, pd.DataFrame], clusters_of, seed: int = 0) -> dict[str, float]:
    """How far the captions before the perturbation agree over one model's files: key, caption_original, clipscore_original each.

    Keys: files, runs (files whose captions are all alike count once), n (pictures of all of them), same, same_low, same_high
    (share captioned alike by every run), shift (mean size of the difference of their CLIPScores over pairs of runs, points).
    Files of fewer than `PILOT` rows are left aside, unless there are no others.
    """
    large = {name: one for name, one in originals.items() if len(one) >= PILOT} or dict(originals)
    captions = pd.concat({name: one.set_index("key")["caption_original"] for name, one in large.items()}, axis=1, join="inner")
    scores = pd.concat({name: one.set_index("key")["clipscore_original"] for name, one in large.items()}, axis=1, join="inner")
    runs = captions.T.drop_duplicates().index
    same = (captions.nunique(axis=1) == 1).astype(float).to_frame("same")
    pairs = [(scores[a] - scores[b]).abs().mean() for place, a in enumerate(runs) for b in runs[place + 1 :]]
    return {
        "files": len(large),
        "runs": len(runs),
        "n": len(captions),
        **with_intervals(same, clusters_of(captions.index), seed),
        "shift": float(np.mean(pairs)) if pairs else np.nan,
    }


def clusters_by_copies(keys: Sequence[str], marked: pd.DataFrame) -> Shaped[np.ndarray, " n"]:
    """The first copy of each key, itself where the reconstruction files don't have it. Stems are unique over folders."""
    first = dict(zip(marked["key"].tolist(), marked["anywhere"].tolist(), strict=True)) if len(marked) else {}
    return np.array([first.get(key, key) for key in keys], dtype=object)


def with_intervals(frame: pd.DataFrame, clusters: Shaped[np.ndarray, " n"], seed: int = 0) -> dict[str, float]:
    """<column>, <column>_low and <column>_high: means over the rows that have a number, ends NaN with fewer than 2 clusters."""
    found: dict[str, float] = {}
    for name, (mean, draws) in means(frame, clusters, seed=seed).items():
        low, high = interval(mean, draws) if len(set(clusters)) > 1 else (np.nan, np.nan)
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return found
