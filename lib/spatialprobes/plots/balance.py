"""Figures of the balance probe: what is looked at while answers are made, and which heads look at picture or text."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator, PercentFormatter

from spatialprobes.plots import COLOURS, colour, need, new_figure, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TINTS = {"system": "#56B4E9", "vision": COLOURS["vision"], "user": COLOURS["text"]}
HATCHES = {"system": "....", "vision": "", "user": "////"}  # repeats what the colour says
ROOM = {"one": 0.16, "two": 0.07}  # share from which a number fits into its bar
BETWEEN = LinearSegmentedColormap.from_list("text-vision", ["#5E1F49", COLOURS["text"], "#F7F7F7", COLOURS["vision"], "#004D38"])


def shares(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Stacked bars of attention shares, one panel for each comparison, one bar for each model.

    Columns: comparison (heads a panel, such as "vision and user"), group ("system", "vision", "user"), share, low, high (in
    [0, 1]; the shares of a bar sum to 1). Optional: model (text). A thin line at the end of each part but the last is that part's
    95% interval. A part of share 0 is not there and not drawn. Raises ValueError for a missing column, a group that stands twice,
    or a bar that does not sum to 1.
    """
    need(frame, ("comparison", "group", "share", "low", "high"), "balance.shares")
    frame = frame if "model" in frame.columns else frame.assign(model="")
    if (twice := frame.duplicated(["comparison", "model", "group"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"balance.shares: {row['group']!r} of {row['model'] or 'the model'!r} stands twice")
    sums = frame.groupby(["comparison", "model"], sort=False)["share"].sum()
    if len(wrong := sums[~np.isclose(sums, 1, atol=1e-6)]):
        raise ValueError(f"balance.shares: the shares of {wrong.index[0]} sum to {wrong.iloc[0]:g}, not to 1")
    comparisons, models = list(dict.fromkeys(frame["comparison"])), list(dict.fromkeys(frame["model"]))
    figure = new_figure(width, 1.05 + 0.32 * len(models))
    axes = figure.subplots(1, len(comparisons), sharey=True, squeeze=False)[0]
    for ax, comparison in zip(axes, comparisons, strict=True):
        rows = frame[frame["comparison"] == comparison]
        for y, model in enumerate(models):
            _bar(ax, y, rows[rows["model"] == model], ROOM[width])
        ax.set_title(str(comparison), loc="left", parse_math=False)
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
        ax.set_xlabel("share of attention (%)")
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(models)), models, parse_math=False)
    axes[0].set_ylim(len(models) - 0.5, -0.5)  # the first model on top
    shown = {}
    for ax in axes:
        shown |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown))
    return figure


def _bar(ax: Axes, y: int, rows: pd.DataFrame, room: float) -> None:
    left = 0.0
    known = ax.get_legend_handles_labels()[1]
    drawn = rows[rows["share"] > 0]
    for index, row in enumerate(drawn.itertuples()):
        tint = TINTS.get(row.group, colour(row.group, index))
        label = None if row.group in known else row.group
        look = {"color": tint, "hatch": HATCHES.get(row.group, ""), "edgecolor": "white", "linewidth": 0.6, "label": label}
        ax.barh(y, row.share, left=left, height=0.62, **look)
        if row.share >= room:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2, "alpha": 0.85}
            ax.text(left + row.share / 2, y, f"{100 * row.share:.0f}", ha="center", va="center", fontsize=7, bbox=box)
        if index < len(drawn) - 1:
            ax.hlines(y + 0.39, left + row.low, left + row.high, color="black", linewidth=1.1, clip_on=False)
        left += row.share


def cmb(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Cross-modality balance of every head: layers down, heads across, one panel for each model, on one scale from 0 to 1.

    Columns: layer, head (0-based), cmb (1: picture alone, 0: text alone). Optional: model (text). Layers without a row (those
    that have no attention) are left out, their numbers stay. Raises ValueError for a missing column, a head that stands twice,
    or a value outside [0, 1].
    """
    need(frame, ("layer", "head", "cmb"), "balance.cmb")
    frame = frame if "model" in frame.columns else frame.assign(model="")
    if (twice := frame.duplicated(["model", "layer", "head"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"balance.cmb: layer {row['layer']}, head {row['head']} of {row['model'] or 'the model'!r} stands twice")
    if not frame["cmb"].between(0, 1).all():
        raise ValueError("balance.cmb: a value lies outside [0, 1], or is NaN")
    models = list(dict.fromkeys(frame["model"]))
    most = frame.groupby("model")["layer"].nunique().max()
    figure = new_figure(width, -(-len(models) // 3) * (1.1 + min(max(0.16 * most, 1.1), 4.0)))
    axes = panels(figure, len(models))
    for ax, model in zip(axes, models, strict=True):
        grid = frame[frame["model"] == model].pivot(index="layer", columns="head", values="cmb")
        shown = ax.imshow(grid, cmap=BETWEEN, vmin=0, vmax=1, aspect="auto")
        ax.set_title(fill(str(model), 84 // min(3, len(models))), parse_math=False)
        ax.set_xlabel("head")
        ax.set_ylabel("layer")
        for axis, names in ((ax.xaxis, grid.columns), (ax.yaxis, grid.index)):
            ticks = MaxNLocator(8, integer=True).tick_values(0, len(names) - 1)
            places = sorted({int(tick) for tick in ticks if 0 <= tick < len(names)})
            axis.set_ticks(places, [str(names[place]) for place in places])
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, aspect=25, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0  text", "0.25", "0.5", "0.75", "1  vision"])
    bar.set_label("vision / (vision + text)")
    return figure
