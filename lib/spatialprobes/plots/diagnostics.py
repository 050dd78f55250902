"""Figures of the study's diagnostics runs: how sensitive attention is to position, layer by layer, for several models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatialprobes.plots import CYCLE, need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PUBLISHED_LABELS = ("LLaVA 1.5", "+ Normalize", "+ Normalize + Multilayer")  # in this order, whatever was given
KNOWN = {
    "normWmean": "+ Normalize",
    "multilayerNorm": "+ Normalize + Multilayer",
    "llava-v1.5-7b": "LLaVA 1.5",
}  # by part of name
STYLES = ("-", (0, (4, 1.5)), (0, (1.5, 1)), (0, (5, 1, 1, 1)))
PANELS = {
    "abs_delta_g_v": "|Δg_V|: change of vision scores per position",
    "delta_alpha_v": "Δα_V: change of attention on vision",
}


def comparison(frame: pd.DataFrame, *, definition: str = "corrected", width: str = "two") -> Figure:
    """Sensitivity to position by layer, one line a run, in two panels.

    Columns: run and model (text), layer (block, from 0), abs_delta_g_v, delta_alpha_v (means over the heads of the layer and the
    pictures); where there are columns of these names with _low and _high, bands are drawn. Colours and dashes follow the models'
    names. definition: "corrected" labels each line by its own model; "as_published" gives the labels LLaVA 1.5, + Normalize, and
    + Normalize + Multilayer to the runs in the order in which they stand, as the study's script does, which swaps the last two
    where runs stand as its notebook gives them. Raises ValueError for a missing column, another definition, a run and layer that
    stand twice, and, as published, more runs than labels.
    """
    need(frame, ("run", "model", "layer", "abs_delta_g_v", "delta_alpha_v"), "diagnostics.comparison")
    if (twice := frame.duplicated(["run", "layer"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"diagnostics.comparison: layer {row['layer']} of {row['run']!r} stands twice in the table")
    labels = run_labels(frame, definition)
    looks = {model: i for i, model in enumerate(sorted(set(frame["model"]), key=_by_name))}
    figure = new_figure(width, 2.7)
    axes = figure.subplots(1, 2)
    for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
        for run, part in frame.groupby("run", sort=False):
            _line(ax, part.sort_values("layer"), column, looks[part["model"].iloc[0]], labels[run])
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set_title(title, loc="left", parse_math=False)
        ax.set_xlabel("layer (block, from 0)")
        ax.grid(axis="y")
        ax.margins(x=0.02)
        ax.ticklabel_format(axis="y", scilimits=(-3, 3), useMathText=True)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("mean over heads and pictures")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, handlelength=3.2)
    return figure


def run_labels(frame: pd.DataFrame, definition: str = "corrected") -> dict[str, str]:
    """What each run is called in the legend, by the definitions of `comparison`."""
    if definition not in ("corrected", "as_published"):
        raise ValueError(f"definition={definition!r} is unknown; 'corrected' or 'as_published'")
    models = frame.drop_duplicates("run").set_index("run")["model"]
    if definition == "as_published":
        if len(models) > len(PUBLISHED_LABELS):
            raise ValueError(f"{len(models)} runs; as published there are labels for {len(PUBLISHED_LABELS)}")
        return dict(zip(models.index, PUBLISHED_LABELS, strict=False))
    labels = {run: next((label for part, label in KNOWN.items() if part in model), model) for run, model in models.items()}
    shared = {label for label in labels.values() if list(labels.values()).count(label) > 1}
    return {run: f"{label} ({run})" if label in shared else label for run, label in labels.items()}


def _by_name(model: str) -> tuple[int, str]:
    """The study's models in the order of its labels, then others by name."""
    known = next((label for part, label in KNOWN.items() if part in model), None)
    return (PUBLISHED_LABELS.index(known) if known else len(PUBLISHED_LABELS), model)


def _line(ax: Axes, part: pd.DataFrame, column: str, place: int, label: str) -> None:
    tint, dashes = CYCLE[place % len(CYCLE)], STYLES[place % len(STYLES)]
    if {f"{column}_low", f"{column}_high"} <= set(part.columns):
        ax.fill_between(part["layer"], part[f"{column}_low"], part[f"{column}_high"], color=tint, alpha=0.18, linewidth=0)
    ax.plot(part["layer"], part[column], color=tint, linestyle=dashes, label=label)
