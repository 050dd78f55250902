"""Figures of training: what is learned when."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

    Columns: samples (seen so far, 0 or more), group (text), accuracy, low, high (shares in [0, 1]); chance, if there, is drawn as
    a tick at the right edge. scale: of the samples, "log" (0 stands left of the first positive point) or "linear".
    Raises ValueError for a missing column, an unknown scale, or a group with two rows at one count of samples.
    """
    need(frame, ("samples", "group", "accuracy", "low", "high"), "training.curves")
    if scale not in SCALES:
        raise ValueError(f"training.curves: scale {scale!r} is not one of {', '.join(SCALES)}")
    if (twice := frame.duplicated(["group", "samples"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"training.curves: {row['group']!r} stands twice at {row['samples']:,} samples")
    ax = new_figure(width, 3.0).subplots() if ax is None else ax
    for index, (group, rows) in enumerate(frame.groupby("group", sort=False)):
        rows = rows.sort_values("samples")
        tint = CYCLE[index % len(CYCLE)]
        marker, line = MARKERS[index % len(MARKERS)], LINES[index // len(CYCLE) % len(LINES)]
        ax.fill_between(rows["samples"], rows["low"], rows["high"], color=tint, alpha=0.15, linewidth=0)
        ax.plot(rows["samples"], rows["accuracy"], line, color=tint, marker=marker, markersize=3.5, label=group)
        if "chance" in frame.columns:
            ax.plot([1.0, 1.02], [rows["chance"].iloc[-1]] * 2, color=tint, transform=ax.get_yaxis_transform(), clip_on=False)
    if scale == "log":
        positive = frame.loc[frame["samples"] > 0, "samples"]
        if (frame["samples"] == 0).any() and len(positive):
            ax.set_xscale("symlog", linthresh=float(positive.min()), linscale=0.5)
        elif len(positive):
            ax.set_xscale("log")
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("samples seen in training" + (" (log scale)" if scale == "log" else ""))
    ax.set_ylabel("accuracy (95% interval)")
    ax.grid(axis="y")
    title = "question group" + ("\n(tick: chance)" if "chance" in frame.columns else "")
    legend = ax.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), title=title, title_fontsize=7.5, alignment="left")
    legend.get_title().set_color(GREY)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return ax.figure
