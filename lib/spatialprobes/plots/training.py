"""Figures of training: what is learned when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter

from spatialprobes.plots import CYCLE, GREY, need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
SCALES = ("log", "linear")


def curves(frame: pd.DataFrame, *, scale: str = "log", ax: Axes | None = None, width: str = "two") -> Figure:
    """Accuracy over the samples seen in training, one line for each question group with its interval as a band.

    Columns: samples (seen so far, 0 or more), group (text), accuracy, low, high (shares in [0, 1]). Optional: chance, the same
    on all rows of a group (NaN where unknown); drawn dotted, and as a number beside the group's name. scale: of the samples,
    "log" (0 stands left of the first positive count) or "linear". Raises ValueError for a missing column, an unknown scale, or
    a group with two rows at one count of samples.
    """
    need(frame, ("samples", "group", "accuracy", "low", "high"), "training.curves")
    if scale not in SCALES:
        raise ValueError(f"training.curves: scale {scale!r} is not one of {', '.join(SCALES)}")
    if (twice := frame.duplicated(["group", "samples"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"training.curves: {row['group']!r} stands twice at {row['samples']:,} samples")
    ax = new_figure(width, 3.0).subplots() if ax is None else ax
    with_chance = "chance" in frame.columns
    for index, (group, rows) in enumerate(frame.groupby("group", sort=False)):
        rows = rows.sort_values("samples")
        tint = CYCLE[index % len(CYCLE)]
        look = {"marker": MARKERS[index % len(MARKERS)], "linestyle": LINES[index // len(CYCLE) % len(LINES)], "markersize": 3.5}
        label = f"{group} ({rows['chance'].iloc[0]:.2f})" if with_chance and rows["chance"].notna().all() else str(group)
        ax.fill_between(rows["samples"], rows["low"], rows["high"], color=tint, alpha=0.15, linewidth=0)
        ax.plot(rows["samples"], rows["accuracy"], color=tint, label=label, **look)
    if with_chance:
        levels = sorted(frame["chance"].dropna().unique())
        ax.hlines(levels, 0, 1, transform=ax.get_yaxis_transform(), color=GREY, linewidth=0.9, linestyle=":", zorder=0)
    if scale == "log" and (frame["samples"] > 0).any():
        _log_axis(ax, frame["samples"])
    else:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}"))
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("samples seen in training" + (" (log scale)" if scale == "log" else ""))
    ax.set_ylabel("accuracy (95% interval)")
    ax.grid(axis="y")
    title = "question group" + (" (chance, dotted)" if with_chance else "")
    legend = ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title=title, title_fontsize=7.5, alignment="left")
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax.figure


def _log_axis(ax: Axes, samples: pd.Series) -> None:
    """A log axis with room for 0 left of the first positive count, and plain numbers at 1 (2, 5) times powers of ten."""
    least, greatest = float(samples[samples > 0].min()), float(samples.max())
    steps = (1,) if greatest / least > 300 else (1, 2, 5)
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(greatest)) + 1)
    ticks = [step * 10.0**decade for decade in decades for step in steps if least <= step * 10.0**decade <= greatest]
    if (samples == 0).any():
        ax.set_xscale("symlog", linthresh=least, linscale=0.5)
        ticks = [0.0, *ticks]
    else:
        ax.set_xscale("log")
    ax.set_xticks(ticks or [least], [f"{tick:,.0f}" for tick in ticks or [least]])
    ax.set_xticks([], minor=True)
