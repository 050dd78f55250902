"""Which figures of the connector study's results are drawn, from which table, with which caption.

Every kind the study's own scripts draw, as far as its tables are there, and ours of what they left out. Knows names of tables and
columns; drawing is that of ``plots``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spatialprobes.audit_captions import BEFORE, DISTORTIONS
from spatialprobes.plots import Drawn

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

GEOMETRY, CAPTIONS = "connector_published", "connector_captions_published"
OF_CAPTIONS = ("scatter", "scatter_grid", "violins", "boxes", "histograms", "trend", "correlations")
DROP, BERT, BERT_DROP = "clipscore_drop", "bertscore_recon_vs_post_f1", "bertscore_drop"
SCATTERS = [
    *((x, y) for x in (*DISTORTIONS.values(), *BEFORE) for y in (DROP, BERT)),
    (DISTORTIONS["cos"], BERT_DROP),
    (BERT, DROP),
]


def figures(tables: Mapping[str, pd.DataFrame]) -> list[Drawn]:
    """The figures that these tables allow, in the order of the study's parts."""
    made: list[Drawn] = []

    def add(name: str, plot: str, table: str, caption: str, **options: Any) -> None:
        made.append(Drawn(name, f"{CAPTIONS if plot in OF_CAPTIONS else GEOMETRY}.{plot}", table, caption, options))

    if "knor" in tables:
        add(
            "knor-lines",
            "knor",
            "knor",
            "Overlap of neighbours by k, before with after and each with a reference; dotted: copies alone.",
        )
        add("knor-bars", "knor_bars", "knor", "Overlap of the 100 nearest neighbours (k = 100), with 95% intervals.", k=100)
        add(
            "knor-above-copies",
            "above_copies",
            "knor",
            "Overlap before and after as published, and what lies above the floor of copies.",
        )
    if "spectra" in tables:
        add("energy-spectrum", "spectrum", "spectra", "Mean energy of each component of the centred tokens.", value="energy")
        add("singular-spectrum", "spectrum", "spectra", "Mean singular values of the centred tokens.", value="singular_value")
    if "diagnostics" in tables:
        add("diagnostics", "diagnostics", "diagnostics", "Spectrum and token similarity before and after, each on its own axis.")
    if "captions" in tables:
        _captions(tables["captions"], add)
    if "correlations" in tables:
        for y in (DROP, BERT):
            caption = "Correlations as published, with each picture once, and with baseline and length held fixed; 95% intervals."
            add(f"correlations-{y}", "correlations", "correlations", caption, y=y)
    if "erank_clip" in tables:
        caption = "Effective rank of E_post against the CLIPScore of the caption, with the least-squares line."
        add("erank-vs-clip", "scatter", "erank_clip", caption, x="post_effective_rank", y="clipscore_original")
    if "perturbation" in tables:
        _perturbations(tables["perturbation"], add)
    return made


def _captions(table: pd.DataFrame, add) -> None:
    there = [name for name in table if table[name].notna().any()]
    for x, y in SCATTERS:
        if x in there and y in there:
            add(
                f"{x}-vs-{y}",
                "scatter",
                "captions",
                f"{y} against {x}, a panel a model, with the least-squares line and r.",
                x=x,
                y=y,
            )
    for y in (DROP, BERT, BERT_DROP):
        if y in there:
            add(f"violins-{y}", "violins", "captions", f"Distribution of {y} by model.", y=y)
    for y in (DROP, "clipscore_post_direct", "clipscore_recon", DISTORTIONS["cos"], DISTORTIONS["MSE"], BERT):
        if y in there:
            add(f"boxes-{y}", "boxes", "captions", f"Quartiles of {y} by model; whiskers reach 1.5 interquartile ranges.", y=y)
    add(f"histograms-{DROP}", "histograms", "captions", f"Histogram of {DROP} by model.", y=DROP)
    for x in (DISTORTIONS["cos"], "cosine_pre"):
        if x in there:
            add(
                f"trend-{x}",
                "trend",
                "captions",
                f"Mean {DROP} in 20 bins of equal size of {x}, with 95% intervals.",
                x=x,
                y=DROP,
            )
    add(
        "grid",
        "scatter_grid",
        "captions",
        "Cosine and MSE after the connector against both outcomes, all models, with lines and r.",
    )


def _perturbations(table: pd.DataFrame, add) -> None:
    large = table[~table["pilot"].astype(bool)]
    for mode in (mode for mode in dict.fromkeys(large["mode"]) if mode != "none"):
        caption = f"What {mode} costs: CLIPScore lost, BERTScore to the caption before; hollow: over 1% are empty and left out."
        add(f"perturbation-{mode}", "perturbation", "perturbation", caption, mode=mode)
    low = large[large["mode"] == "lowrank"]
    for axis in ("rank", "energy"):
        if low[axis].notna().any():
            caption = f"What low-rank truncation costs by the {axis} it keeps, on which models can be compared."
            add(f"perturbation-lowrank-by-{axis}", "perturbation", "perturbation", caption, mode="lowrank", axis=axis)
    if (large["empty"] > 0).any():
        caption = "Share of captions that are empty, and the loss of CLIPScore without them and with them counted as 0."
        add("empty-captions", "empty_captions", "perturbation", caption)
