"""Figures of the positions probe: accuracy by question group under each way of moving tokens or their position ids."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.plots import need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

CHANCE = "chance"


def accuracy(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """A table of coloured cells: question groups down, conditions across, chance in the last column.

    Columns: group, kind, condition (text), accuracy, low, high, chance (shares in [0, 1]; chance NaN where unknown), n. One row
    for each group and condition. A cell shows accuracy and, smaller, its 95% interval; grey where a group was not asked under a
    condition. Raises ValueError for a missing column or a repeated group and condition.
    """
    need(frame, ("group", "kind", "condition", "accuracy", "low", "high", "chance", "n"), "positions.accuracy")
    if (twice := frame.duplicated(["group", "condition"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"positions.accuracy: {row['group']!r} under {row['condition']!r} stands twice in the table")
    groups, conditions = list(dict.fromkeys(frame["group"])), list(dict.fromkeys(frame["condition"]))
    cells = np.full((len(groups), len(conditions) + 1), np.nan)
    figure = new_figure(width, 1.1 + 0.32 * len(groups))
    ax = figure.subplots()
    for row in frame.itertuples():
        i, j = groups.index(row.group), conditions.index(row.condition)
        cells[i, j], cells[i, -1] = row.accuracy, row.chance
        tint = "black" if row.accuracy > 0.55 else "white"
        ax.text(j, i - 0.14, f"{row.accuracy:.2f}", ha="center", va="center", color=tint, fontsize=7)
        ax.text(j, i + 0.24, f"{row.low:.2f}\u2013{row.high:.2f}", ha="center", va="center", color=tint, fontsize=5.5)
    for i, value in enumerate(cells[:, -1]):
        if not np.isnan(value):
            ax.text(len(conditions), i, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.55 else "white")
    ax.set_facecolor("#DDDDDD")
    ax.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    ax.axvline(len(conditions) - 0.5, color="white", linewidth=3)
    counts = frame.groupby("group", sort=False)["n"].max()
    ax.set_yticks(range(len(groups)), [f"{group}  (n = {counts[group]:,})" for group in groups], parse_math=False)
    ax.set_xticks(range(len(conditions) + 1), [fill(name, 10) for name in [*conditions, CHANCE]], parse_math=False, fontsize=6)
    ax.tick_params(axis="both", length=0)
    ax.xaxis.tick_top()
    ax.spines[:].set_visible(False)
    return figure
