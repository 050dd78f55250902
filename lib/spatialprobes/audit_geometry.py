"""The connector study's geometry, from its own files: its table of neighbourhoods and spectra, and what copies make of it.

A picture that stands twice in a folder is its own nearest neighbour in every space, whatever a connector does. Copies are found
without the pictures: those of a folder whose reconstruction scores agree to the last digit. Overlap then has a floor, and what
counts is what lies above it. Knows tables of folders; the files are ``sources.connector_published``'s.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.audit_moments import DRAWS, interval
from spatialprobes.sources.connector_published import COSINES, SCALARS, label

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float

    from spatialprobes.sources.connector_published import Geometry

KS = (10, 50, 100)
IN_SUMMARY = ("effective_rank", "effective_rank_normalized", "top10_energy_ratio")
SUMMARY = (
    *(f"{side}_{name}" for name in IN_SUMMARY for side in ("pre", "post")),
    *(f"pre_post_knor{k}" for k in KS),
    *(f"dino_{side}_knor{k}" for k in KS for side in ("pre", "post")),
)  # fmt: skip
FOLDERS = 5  # with fewer, a bootstrap over folders says little; the interval is then that of independent pictures
Z = 1.959964


def folder_table(found: Mapping[tuple[str, str], Geometry], counts: Mapping[tuple[str, str], int]) -> pd.DataFrame:
    """A row a model and folder: model, folder, n (pictures), then every number of its file (NaN where another file has more).

    counts: pictures by model and folder, from the reconstruction files; where there is none, what the file itself says. A folder
    whose n nobody says is left out (its weight is unknown).
    """
    rows = []
    for (model, folder), one in found.items():
        if n := counts.get((model, folder), one.n):
            rows.append({"model": model, "folder": folder, "n": int(n), **one.values})
    return pd.DataFrame(rows, columns=None if rows else ["model", "folder", "n"])


def knn_summary(folders: pd.DataFrame) -> pd.DataFrame:
    """The study's knn_summary_per_model: folder means weighted by pictures, deviations pooled over all pictures.

    post_max_rank: min(tokens, width) of E_post, as the effective rank and its normalised form say. NaN for what no file has.
    """
    rows = []
    for model, own in folders.groupby("model", sort=False):
        most = (own["post_effective_rank_mean"] / own["post_effective_rank_normalized_mean"]).median()
        row = {"model": model, "n": int(own["n"].sum()), "post_max_rank": round(float(most))}
        for name in SUMMARY:
            row[f"{name}_mean"], row[f"{name}_std"] = pooled(own, name)
        rows.append(row)
    return pd.DataFrame(rows)


def pooled(folders: pd.DataFrame, name: str) -> tuple[float, float]:
    """Mean and deviation of a quantity over all pictures of these folders, from each folder's own; NaN where one lacks it.

    Folders give the deviation of their pictures (over n); that of all is the sample's (over n - 1), as the study's table has it.
    """
    if f"{name}_mean" not in folders or f"{name}_std" not in folders:
        return np.nan, np.nan
    n, mean, deviation = (folders[column].to_numpy(float) for column in ("n", f"{name}_mean", f"{name}_std"))
    centre = (n * mean).sum() / n.sum()
    variance = (n * (deviation**2 + (mean - centre) ** 2)).sum() / max(n.sum() - 1, 1)
    return float(centre), float(np.sqrt(variance))


def mark_copies(reconstruction: pd.DataFrame) -> pd.DataFrame:
    """One model's rows with what is a copy of what: pictures with the very same mse_pre and cosine_pre.

    Added: copies_of (the first such key in the folder) and copies (how many there), anywhere (the first such key in any folder).
    """
    scores = ["mse_pre", "cosine_pre"]
    within = reconstruction.groupby(["folder", *scores], sort=False)["key"]
    anywhere = reconstruction.groupby(scores, sort=False)["key"].transform("first")
    return reconstruction.assign(copies_of=within.transform("first"), copies=within.transform("size"), anywhere=anywhere)


def floor(copies: Float[np.ndarray, " n"], k: int) -> float:
    """The overlap that copies alone give: mean of min(m - 1, k) / k for pictures that stand m times."""
    return float(np.minimum(np.asarray(copies, float) - 1, k).mean() / k)


def certain_floor(copies: Float[np.ndarray, " n"], k: int) -> float:
    """As `floor`, but only what holds however ties are broken: of m - 1 > k equally near copies two lists may take others."""
    others = np.asarray(copies, float) - 1
    return float(np.where(others <= k, others, np.maximum(2 * k - others, 0)).mean() / k)


def duplicates(marked: pd.DataFrame) -> pd.DataFrame:
    """Copies by model and folder: model, folder, n, share (of pictures with a copy), distinct, largest (most alike), and for each
    of `KS` floor<k> and certain_floor<k>.

    folder "all" pools copies within folders; "across" counts copies wherever they are, which matters for a gallery of all.
    """
    rows = []
    for model, own in marked.groupby("model", sort=False):
        across = own.groupby(["mse_pre", "cosine_pre"])["key"].transform("size")
        parts = [
            *((folder, part["copies"]) for folder, part in own.groupby("folder")),
            ("all", own["copies"]),
            ("across", across),
        ]
        for folder, copies in parts:
            row = {"model": model, "folder": folder, "n": len(copies), "share": float((copies > 1).mean())}
            row |= {"distinct": round(float((1 / copies).sum())), "largest": int(copies.max())}
            row |= {f"floor{k}": floor(copies, k) for k in KS} | {f"certain_floor{k}": certain_floor(copies, k) for k in KS}
            rows.append(row)
    return pd.DataFrame(rows)


def copies_agree(marked: pd.DataFrame) -> pd.DataFrame:
    """Whether two models' scores name the same copies: first, second, n (keys of both), same (share whose first copy agrees)."""
    rows = []
    of = {model: own.set_index("key")["copies_of"] for model, own in marked.groupby("model", sort=False)}
    for first, second in combinations(of, 2):
        both = of[first].to_frame("one").join(of[second].rename("other"), how="inner")
        same = float((both["one"] == both["other"]).mean()) if len(both) else np.nan
        rows.append({"first": first, "second": second, "n": len(both), "same": same})
    return pd.DataFrame(rows, columns=["first", "second", "n", "same"])


def knor(folders: pd.DataFrame, marked: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Every overlap there is, as published and above the floor.

    Columns: model, of ("pre_post", or "<reference>_pre" and "_post"), k, mean (weighted by pictures), low, high, unweighted (mean
    of folder means, which the study's plots show), std (pooled), chance (k / (n - 1)), floor and certain_floor (NaN where the
    reconstruction files are missing), excess = (mean - floor) / (1 - floor) with excess_low, excess_high; n, folders, over: what
    the interval resamples ("folders"), or "images" where there are fewer than `FOLDERS` and pictures count as independent.
    """
    copies = _copies_by_folder(marked)
    rows = []
    for model, own in folders.groupby("model", sort=False):
        names = [name for name in own.columns if "_knor" in name and name.endswith("_mean") and own[name].notna().all()]
        for name in names:
            of, _, k = name.removesuffix("_mean").rpartition("_knor")
            rows.append({"model": model, "of": of, "k": int(k)} | _overlap(own, f"{of}_knor{k}", int(k), copies, seed))
    return pd.DataFrame(rows).sort_values(["of", "k"], kind="stable", ignore_index=True) if rows else pd.DataFrame(rows)


def knor_draws(folders: pd.DataFrame, name: str, seed: int = 0) -> tuple[float, Float[np.ndarray, " draw"]]:
    """A weighted mean over these folders and its draws: of whole folders, or a normal one's where there are too few."""
    mean, deviation = pooled(folders, name)
    if len(folders) < FOLDERS:
        n = folders["n"].sum()
        generator = np.random.default_rng([seed, sum(map(ord, name))])
        return mean, mean + deviation / np.sqrt(n) * generator.standard_normal(DRAWS)
    weights = folder_weights(len(folders), seed) * folders["n"].to_numpy(float)
    return mean, weights @ folders[f"{name}_mean"].to_numpy(float) / weights.sum(axis=1)


def folder_weights(count: int, seed: int = 0) -> Float[np.ndarray, "draw folder"]:
    """How often each draw takes each folder: the same for every model with as many, so that differences are paired."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS).astype(float)


def floor_draws(folders: pd.DataFrame, copies: Mapping[tuple[str, str], np.ndarray], k: int, seed: int = 0):
    """The floor over these folders and its draws, paired with `knor_draws`; NaN where a folder's copies are unknown."""
    own = [copies.get((model, folder)) for model, folder in zip(folders["model"], folders["folder"], strict=True)]
    if any(one is None for one in own):
        return np.nan, np.full(DRAWS, np.nan)
    n, floors = folders["n"].to_numpy(float), np.array([floor(one, k) for one in own])
    mean = float((n * floors).sum() / n.sum())
    if len(folders) < FOLDERS:
        return mean, np.full(DRAWS, mean)
    weights = folder_weights(len(folders), seed) * n
    return mean, weights @ floors / weights.sum(axis=1)


def _copies_by_folder(marked: pd.DataFrame) -> dict[tuple[str, str], np.ndarray]:
    if marked.empty:
        return {}
    return {key: own["copies"].to_numpy() for key, own in marked.groupby(["model", "folder"])}


def _overlap(own: pd.DataFrame, name: str, k: int, copies, seed: int) -> dict[str, object]:
    mean, draws = knor_draws(own, name, seed)
    lowest, floors = floor_draws(own, copies, k, seed)
    known = [copies[key] for key in zip(own["model"], own["folder"], strict=True)] if np.isfinite(lowest) else []
    low, high = interval(mean, draws)
    excess = (mean - lowest) / (1 - lowest)
    excess_low, excess_high = interval(excess, (draws - floors) / (1 - floors))
    n = own["n"].to_numpy(float)
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "unweighted": float(own[f"{name}_mean"].mean()),
        "std": pooled(own, name)[1],
        "chance": float((n * k / (n - 1)).sum() / n.sum()),
        "floor": lowest,
        "certain_floor": certain_floor(np.concatenate(known), k) if known else np.nan,
        "excess": excess,
        "excess_low": excess_low,
        "excess_high": excess_high,
        "n": int(n.sum()),
        "folders": len(own),
        "over": "folders" if len(own) >= FOLDERS else "images",
    }


def diagnostics(folders: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Spectrum and token similarity before and after: model, side, measure, mean, low, high, std, n."""
    rows = []
    for model, own in folders.groupby("model", sort=False):
        for name in (*SCALARS, *COSINES):
            for side in ("pre", "post"):
                mean, draws = knor_draws(own, f"{side}_{name}", seed)
                low, high = interval(mean, draws)
                found = {"mean": mean, "low": low, "high": high, "std": pooled(own, f"{side}_{name}")[1]}
                rows.append({"model": model, "side": side, "measure": name, **found, "n": int(own["n"].sum())})
    return pd.DataFrame(rows)


def spectra(found: Mapping[tuple[str, str], Geometry], folders: pd.DataFrame) -> pd.DataFrame:
    """Mean spectra: model, side, component (from 1), singular_value, energy; folders weighted by pictures."""
    weight = folders.set_index(["model", "folder"])["n"]
    parts = [one.spectra.assign(model=key[0], n=weight[key]) for key, one in found.items() if key in weight.index]
    if not parts:
        return pd.DataFrame(columns=["model", "side", "component", "singular_value", "energy"])
    rows = pd.concat(parts, ignore_index=True)
    for name in ("singular_value", "energy"):
        rows[name] *= rows["n"]
    sums = rows.groupby(["model", "side", "component"], sort=False)[["singular_value", "energy", "n"]].sum()
    return sums[["singular_value", "energy"]].div(sums["n"], axis=0).reset_index()


def spectral_tex(summary: pd.DataFrame) -> str:
    """The study's spectral_diagnostics.tex."""
    lines = [r"\begin{tabular}{lcccc}", r"\toprule"]
    lines += [r"Model & $r_{\mathrm{eff}}^{\mathrm{post}}$ & Norm.\ $r_{\mathrm{eff}}$ & Top-10 energy & KNOR@10 \\", r"\midrule"]
    for row in summary.to_dict("records"):
        cells = [label(row["model"]), *(f"{row[f'post_{name}_mean']:.{digits}f}" for name, digits in
                 (("effective_rank", 2), ("effective_rank_normalized", 3), ("top10_energy_ratio", 3)))]  # fmt: skip
        lines.append(" & ".join([*cells, f"{row['pre_post_knor10_mean']:.3f}"]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
