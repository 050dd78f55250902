"""The connector study's captions, from its own files: its two tables of correlations, and the same with what they left out.

Left out were: pictures that stand several times, that a good caption has more to lose than a bad one, that a caption of another
length is another caption for BERTScore, intervals, and how many correlations were looked at. Knows tables of captions; the
files are ``sources.connector_published``'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from spatialprobes.audit_moments import Covariances, correlation, covariances, interval
from spatialprobes.sources.connector_published import label
from spatialprobes.stats import benjamini_hochberg

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUMMARISED = ("clipscore_drop", "clipscore_post_direct", "clipscore_recon", "reproj_cosine_recon", "reproj_mse_recon",
              "bertscore_recon_vs_post_f1", "bertscore_drop")  # fmt: skip
DISTORTIONS = {"cos": "reproj_cosine_recon", "MSE": "reproj_mse_recon"}
OUTCOMES = {
    "CLIPScore Drop": "clipscore_drop",
    "BERTScore(recon/post)": "bertscore_recon_vs_post_f1",
    "BERTScore Drop": "bertscore_drop",
}
BEFORE = ("cosine_pre", "mse_pre")
ALL = "all"
BASELINE = {"clipscore_drop": "clipscore_post_direct", "bertscore_drop": "bertscore_post_vs_gt_f1"}
LENGTH = "words_changed"
STARS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def summary_stats(captions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The study's summary_stats: model (its name there), column, n, mean, median, std (n - 1), q25, q75, min, max."""
    rows = []
    for model, frame in captions.items():
        for name in (name for name in SUMMARISED if name in frame):
            values = frame[name].dropna()
            found = [values.mean(), values.median(), values.std(), *values.quantile([0.25, 0.75]), values.min(), values.max()]
            rows.append((label(model), name, len(values), *map(float, found)))
    return pd.DataFrame(rows, columns=["model", "column", "n", "mean", "median", "std", "q25", "q75", "min", "max"])


def recon_correlations(captions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The study's caption_recon_correlations: Model, and r and p, Pearson's and Spearman's, of each distortion and outcome.

    As there: every row counts as independent, and p is of one test alone. NaN where a file lacks the outcome.
    """
    rows = []
    for model, frame in captions.items():
        row: dict[str, object] = {"Model": label(model)}
        for outcome, y in OUTCOMES.items():
            for distortion, x in DISTORTIONS.items():
                found = _both(frame, x, y) if y in frame else [np.nan] * 4
                stem = f"{distortion}→{outcome}"
                row |= zip(
                    [f"{stem}_{end}" for end in ("pearson_r", "pearson_p", "spearman_r", "spearman_p")], found, strict=True
                )
        rows.append(row)
    return pd.DataFrame(rows)


def pre_correlations(captions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The study's caption_recon_pre_correlations: model ("all" first), x, y, n, pearson_r, spearman_r.

    captions must hold `BEFORE` (see `with_reconstruction`); "all" pools the models that are there, whose scales differ.
    """
    parts = {model: frame for model, frame in captions.items() if set(BEFORE) <= set(frame)}
    if len(parts) > 1:
        parts = {ALL: pd.concat(parts.values()), **parts}
    rows = []
    for model, frame in parts.items():
        for y in ("clipscore_drop", "bertscore_recon_vs_post_f1"):
            for x in BEFORE:
                own = frame[[x, y]].dropna()
                found = _both(own, x, y)
                rows.append((model, x, y, len(own), found[0], found[2]))
    return pd.DataFrame(rows, columns=["model", "x", "y", "n", "pearson_r", "spearman_r"])


def with_reconstruction(captions: pd.DataFrame, marked: pd.DataFrame) -> pd.DataFrame:
    """A model's captions with mse_pre and cosine_pre of the same picture, and `cluster`: the first of its copies anywhere.

    marked: that model's rows of `audit_geometry.mark_copies`; without any, every picture is its own cluster.
    """
    frame = captions.assign(**{LENGTH: (captions["words_recon"] - captions["words_post"]).abs()})
    if marked.empty:
        return frame.assign(cluster=frame["key"])
    own = marked[["folder", "key", "mse_pre", "cosine_pre", "anywhere"]]
    joined = frame.merge(own, on=["folder", "key"], how="left", validate="one_to_one")
    return joined.assign(cluster=joined["anywhere"].fillna(joined["key"])).drop(columns="anywhere")


def deduplicated(frame: pd.DataFrame) -> pd.DataFrame:
    """The first row of each cluster."""
    return frame.drop_duplicates("cluster")


def corrected(captions: Mapping[str, pd.DataFrame], seed: int = 0) -> pd.DataFrame:
    """Correlations of each distortion with each outcome, with intervals: plain and partial, with copies and without.

    captions: from `with_reconstruction`. Columns: model, x, y, statistic ("pearson", or "spearman": of ranks taken once), rows
    ("all", with copies resampled together, or "deduplicated"), given ("nothing", "baseline": the score of the caption before
    (`BASELINE`), "length": by how many words the captions differ, or both), r, low, high, n, clusters, p (two-sided t test that
    counts clusters, not rows), q (Benjamini and Hochberg over all models and pairs of the same statistic, rows and given).
    """
    rows = []
    for model, frame in captions.items():
        for which, part in (("all", frame), ("deduplicated", deduplicated(frame))):
            for statistic in ("pearson", "spearman"):
                found = _correlated(part, statistic, seed)
                rows += [{"model": model, "statistic": statistic, "rows": which, **one} for one in found]
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    for _, own in frame.dropna(subset="p").groupby(["statistic", "rows", "given"]):
        frame.loc[own.index, "q"] = benjamini_hochberg(own["p"].to_numpy())
    return frame


def moments(frame: pd.DataFrame, outcome: str, more: Sequence[str] = (), seed: int = 0) -> Covariances | None:
    """Covariances of what there is to explain `outcome`: distortions, scores before the connector's loss, length, baseline.

    Rows without a score are left out. None where the table has no such outcome or too few rows.
    """
    if outcome not in frame:
        return None
    names = [name for name in (*DISTORTIONS.values(), *BEFORE) if name in frame and frame[name].notna().any()]
    names += [name for name in (LENGTH, BASELINE.get(outcome, outcome), *more) if name in frame]
    own = frame[list(dict.fromkeys([*names, outcome, "cluster"]))].dropna()
    if own["cluster"].nunique() < 3:
        return None
    return covariances(own.drop(columns="cluster"), own["cluster"].to_numpy(), seed=seed)


def test_p(r: float, clusters: int, given: int) -> float:
    """Two-sided p of a correlation with so many others held fixed, by Student's t over independent clusters."""
    freedom = clusters - 2 - given
    if not np.isfinite(r) or freedom < 1:
        return np.nan
    return float(2 * scipy_stats.t.sf(abs(r) * np.sqrt(freedom / max(1 - r * r, 1e-300)), freedom))


def conditions(outcome: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """What can be held fixed for an outcome: name to columns."""
    found: dict[str, list[str]] = {"nothing": []}
    baseline = BASELINE.get(outcome)
    if baseline in columns:
        found["baseline"] = [baseline]
    if LENGTH in columns:
        found["length"] = [LENGTH]
    if len(found) == 3:
        found["baseline and length"] = [baseline, LENGTH]
    return found


def _correlated(frame: pd.DataFrame, statistic: str, seed: int) -> list[dict[str, object]]:
    rows = []
    for y in OUTCOMES.values():
        if statistic == "spearman" and y in frame:
            numbers = frame.drop(columns="cluster").select_dtypes("number").loc[frame[y].notna()]
            own = moments(numbers.rank().assign(cluster=frame["cluster"]), y, seed=seed)
        else:
            own = moments(frame, y, seed=seed)
        if own is None:
            continue
        for x in (name for name in (*DISTORTIONS.values(), *BEFORE) if name in own.names):
            for given, names in conditions(y, own.names).items():
                r, draws = correlation(own, x, y, names)
                low, high = interval(r, draws)
                p = test_p(r, own.clusters, len(names))
                found = {"x": x, "y": y, "given": given, "r": r, "low": low, "high": high}
                rows.append(found | {"n": own.n, "clusters": own.clusters, "p": p, "q": np.nan})
    return rows


def _both(frame: pd.DataFrame, x: str, y: str) -> list[float]:
    """Pearson's r and p, Spearman's r and p, as the study took them."""
    own = frame[[x, y]].dropna()
    if len(own) < 3 or own[x].nunique() < 2 or own[y].nunique() < 2:
        return [np.nan] * 4
    pearson, spearman = scipy_stats.pearsonr(own[x], own[y]), scipy_stats.spearmanr(own[x], own[y])
    return [float(value) for value in (*pearson, *spearman)]


def correlations_tex(table: pd.DataFrame) -> str:
    """The study's caption_recon_correlations.tex: Pearson's r with its stars, Spearman's in brackets; four columns.

    As there, three decimals are made of the four of the CSV: -0.05648 becomes -0.0565 and that -0.057.
    """
    table = table.round(4)
    lines = [r"\begin{tabular}{lcccc}", r"\toprule"]
    head = [f"{x}$\\to${y}" for y in (r"CLIP$\downarrow$", r"BERT$\uparrow$") for x in DISTORTIONS]
    lines += [" & ".join(["Model", *head]) + r" \\", r"\midrule"]
    for row in table.to_dict("records"):
        cells = [row["Model"]]
        for outcome in list(OUTCOMES)[:2]:
            for distortion in DISTORTIONS:
                r, p, rank, _ = (row[f"{distortion}→{outcome}_{end}"] for end in
                                 ("pearson_r", "pearson_p", "spearman_r", "spearman_p"))  # fmt: skip
                stars = next((f"$^{{{mark}}}$" for level, mark in STARS if p < level), "")
                cells.append(f"{r:.3f}{stars} ({rank:.3f})")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
