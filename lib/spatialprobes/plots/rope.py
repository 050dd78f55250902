"""Figures of the RoPE probe: where in the model, and how far, attention on the picture follows the phase of its keys.

Drawn from the summaries of `probes/rope.py`: by layer, by head, by delta. Several models share a figure by a column `model`, and
are told apart by their names, never by their order.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "D", "s", "^", "v", "P")
NAMES = {  # what the probe measures, in words and as an axis label; a column that is not here goes by its own name
    "alpha_v": ("attention on the picture", "$\\alpha_V$ (share)"),
    "delta_alpha_v": ("change of attention on the picture", "$\\Delta\\alpha_V$ (share)"),
    "delta_alpha_v_rerun": ("change of attention, model run anew", "$\\Delta\\alpha_V$ (share)"),
    "abs_delta_alpha_v": ("size of the change of attention", "$|\\Delta\\alpha_V|$ (share)"),
    "delta_g_v": ("change of the picture's scores", "$\\Delta g_V$ (score / position)"),
    "abs_delta_g_v": ("size of the change of the picture's scores", "$|\\Delta g_V|$ (score / position)"),
    "abs_g_v": ("slope of the picture's scores in the phase", "$|g_V|$ (score / position)"),
}
SHORT = {"delta_alpha_v": "queries and keys re-scored", "delta_alpha_v_rerun": "model run anew"}


def curves(frame: pd.DataFrame, *, labels: Mapping[str, str] | None = None, width: str = "two") -> Figure:
    """Each quantity by layer, one panel a quantity, one line a model, bands are 95% intervals.

    Columns: value (what is measured, such as "abs_delta_g_v"), layer, mean, low, high. Optional: model (text), delta (one value).
    labels: {model: its name in the legend}. Raises ValueError for a missing column, a label for a model that is not there, a
    layer that stands twice, or more than one delta.
    """
    need(frame, ("value", "layer", "mean", "low", "high"), "rope.curves")
    frame = _one_delta(_with_model(frame, "rope.curves", ("value", "layer")), "rope.curves")
    models, values = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["value"]))
    labels = dict(labels or {})
    if unknown := [name for name in labels if name not in models]:
        raise ValueError(f"rope.curves: a label for {unknown[0]!r}, which is not in the table; there: {', '.join(models)}")
    figure = new_figure(width, 2.5)
    axes = figure.subplots(1, len(values), squeeze=False)[0]
    for ax, value in zip(axes, values, strict=True):
        for index, model in enumerate(models):
            rows = frame[(frame["value"] == value) & (frame["model"] == model)]
            _line(ax, rows, "layer", index, labels.get(model, model))
        title, label = NAMES.get(value, (value, ""))
        _layers(ax, label)
        ax.set_title(title, loc="left", parse_math=False)
        if frame.loc[frame["value"] == value, "low"].min() >= 0:
            ax.set_ylim(bottom=0)
    if models != [""]:
        _legend(figure, axes[0], min(3, len(models)), math=False)
    return figure


def heads(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """One quantity of every head: layers down, heads across, one panel a model, on one scale.

    Columns: value (one), layer, head, mean. Optional: model (text), delta (one value). Quantities of both signs are coloured
    around 0. Layers without attention are left out, their numbers stay. Raises ValueError for a missing column, a head that
    stands twice, or more than one value or delta.
    """
    need(frame, ("value", "layer", "head", "mean"), "rope.heads")
    frame = _one_delta(_with_model(frame, "rope.heads", ("value", "layer", "head")), "rope.heads")
    if len(values := frame["value"].unique()) > 1:
        raise ValueError(f"rope.heads draws one value; the table has {', '.join(values)}")
    models = list(dict.fromkeys(frame["model"]))
    most = frame["mean"].abs().max() or 1.0
    look = (
        {"cmap": "PuOr", "vmin": -most, "vmax": most}
        if (frame["mean"] < 0).any()
        else {"cmap": "viridis", "vmin": 0, "vmax": most}
    )
    rows = frame.groupby("model")["layer"].nunique().max()
    figure = new_figure(width, -(-len(models) // 3) * (1.0 + min(max(0.16 * rows, 1.1), 4.0)))
    axes = panels(figure, len(models))
    for ax, model in zip(axes, models, strict=True):
        grid = frame[frame["model"] == model].pivot(index="layer", columns="head", values="mean")
        shown = ax.imshow(grid, aspect="auto", **look)
        ax.set_title(fill(str(model), 84 // min(3, len(models))), parse_math=False)
        ax.set_xlabel("head")
        ax.set_ylabel("layer")
        for axis, names in ((ax.xaxis, grid.columns), (ax.yaxis, grid.index)):
            places = [int(p) for p in MaxNLocator(8, integer=True).tick_values(0, len(names) - 1) if 0 <= p < len(names)]
            axis.set_ticks(places, [str(names[place]) for place in places])
    label = NAMES.get(values[0], ("", values[0]))[1]
    figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, aspect=25).set_label(label)
    return figure


def offline(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """The change of attention on the picture by layer, re-scored and with the model run anew, one panel a delta.

    Columns: value ("delta_alpha_v" and "delta_alpha_v_rerun"), layer, delta, mean, low, high. Bands are 95% intervals. Raises
    ValueError for a missing column or a value that is neither.
    """
    need(frame, ("value", "layer", "delta", "mean", "low", "high"), "rope.offline")
    if wrong := sorted(set(frame["value"]) - set(SHORT)):
        raise ValueError(f"rope.offline compares {' and '.join(SHORT)}; the table has {wrong[0]!r}")
    deltas = sorted(frame["delta"].unique())
    columns = min(3, len(deltas))
    count = -(-len(deltas) // columns)
    figure = new_figure(width, 0.6 + 1.9 * count)
    axes = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[len(deltas) :]:
        ax.remove()
    for ax, delta in zip(axes.flat, deltas, strict=False):
        for index, (value, name) in enumerate(SHORT.items()):
            _line(ax, frame[(frame["value"] == value) & (frame["delta"] == delta)], "layer", index, name)
        _layers(ax, "")
        ax.tick_params(labelbottom=True)
        ax.set_title(f"vision tokens {delta:+g} position{'' if abs(delta) == 1 else 's'}")
    figure.supylabel("change of attention on the picture, $\\Delta\\alpha_V$ (share)", fontsize=8)
    _legend(figure, axes.flat[0], len(SHORT), math=True)
    return figure


def sweep(frame: pd.DataFrame, *, width: str = "one") -> Figure:
    """One or several quantities against delta, a line each, bands are 95% intervals.

    Columns: value, delta (positions), mean, low, high. Optional: model (text); then the table holds one value, and lines are
    models. Raises ValueError for a missing column, a delta that stands twice, or several values of several models.
    """
    need(frame, ("value", "delta", "mean", "low", "high"), "rope.sweep")
    frame = _with_model(frame, "rope.sweep", ("value", "delta"))
    values, models = list(dict.fromkeys(frame["value"])), list(dict.fromkeys(frame["model"]))
    if len(values) > 1 and len(models) > 1:
        raise ValueError(f"rope.sweep: {len(values)} values of {len(models)} models are too much for one figure")
    figure = new_figure(width, 2.5)
    ax = figure.subplots()
    by = "model" if len(models) > 1 else "value"
    for index, name in enumerate(dict.fromkeys(frame[by])):
        _line(ax, frame[frame[by] == name].sort_values("delta"), "delta", index, SHORT.get(name, NAMES.get(name, (name,))[0]))
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.grid(axis="y")
    ax.set_xlabel("positions by which the vision tokens move")
    ax.set_ylabel(NAMES.get(values[0], ("", values[0]))[1])
    if len(values) > 1 or len(models) > 1:
        _legend(figure, ax, 1, math=by == "value")
    return figure


def _with_model(frame: pd.DataFrame, plot: str, once: tuple[str, ...]) -> pd.DataFrame:
    """The table with a column `model`, checked to have one row for each model, delta and what else must stand once."""
    frame = frame if "model" in frame.columns else frame.assign(model="")
    key = list(dict.fromkeys(["model", *once, *(["delta"] if "delta" in frame.columns else [])]))
    if (twice := frame.duplicated(key)).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{plot}: {', '.join(f'{name} {row[name]}' for name in key if row[name] != '')} stands twice")
    return frame


def _one_delta(frame: pd.DataFrame, plot: str) -> pd.DataFrame:
    if "delta" in frame.columns and frame["delta"].nunique() > 1:
        raise ValueError(f"{plot}: the table holds {frame['delta'].nunique()} deltas; give the rows of one")
    return frame


def _line(ax: Axes, rows: pd.DataFrame, x: str, index: int, label: str) -> None:
    tint = CYCLE[index % len(CYCLE)]
    ax.fill_between(rows[x], rows["low"], rows["high"], color=tint, alpha=0.18, linewidth=0)
    ax.plot(rows[x], rows["mean"], marker=MARKERS[index % len(MARKERS)], markersize=3.2, color=tint, label=label)


def _layers(ax: Axes, label: str) -> None:
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel(label)
    if np.ptp(ax.dataLim.intervalx) == 0:
        ax.set_xlim(ax.dataLim.x0 - 1, ax.dataLim.x0 + 1)


def _legend(figure: Figure, ax: Axes, columns: int, math: bool) -> None:
    """math: whether dollar signs stand for formulas; in the names of models they are just that."""
    for text in figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=columns).get_texts():
        text.set_parse_math(math)
