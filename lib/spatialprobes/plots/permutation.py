"""Figures of the permutation probe: what shuffled vision tokens cost, by question group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.plots import COLOURS, GREY, colour, need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "D", "s", "^", "v", "P")
FIRST = ("semantic", "spatial")


def accuracy(frame: pd.DataFrame, *, ax: Axes | None = None, width: str = "two") -> Figure:
    """Accuracy of each question group under each condition, with its interval and chance level.

    Columns: group (text), kind (text, such as "semantic" or "spatial"), condition ("original" or "permuted"), accuracy, low,
    high and chance (shares in [0, 1]; chance NaN where unknown), n (questions). One row for each group and condition. Groups of
    a kind stand together under its name, semantic and spatial ones first, else in the table's order. Raises ValueError for a
    missing column or a repeated group and condition.
    """
    need(frame, ("group", "kind", "condition", "accuracy", "low", "high", "chance", "n"), "permutation.accuracy")
    if (twice := frame.duplicated(["group", "condition"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"permutation.accuracy: {row['group']!r} under {row['condition']!r} stands twice in the table")
    kinds = [
        *(kind for kind in FIRST if kind in set(frame["kind"])),
        *dict.fromkeys(frame.loc[~frame["kind"].isin(FIRST), "kind"]),
    ]
    conditions = list(dict.fromkeys(frame["condition"]))
    places, bottom = {}, 0.0
    for kind in kinds:
        for group in dict.fromkeys(frame.loc[frame["kind"] == kind, "group"]):
            places[group] = bottom = bottom + 1
        bottom += 0.8  # room for the next kind's heading
    if ax is None:
        ax = new_figure(width, 0.9 + 0.26 * (bottom + 0.5)).subplots()
    spread = np.linspace(-0.17, 0.17, len(conditions)) if len(conditions) > 1 else [0.0]
    for index, condition in enumerate(conditions):
        rows = frame[frame["condition"] == condition]
        y = rows["group"].map(places) + spread[index]
        tint = colour(condition, index)
        ax.hlines(y, rows["low"], rows["high"], color=tint, linewidth=1.6)
        ax.plot(rows["accuracy"], y, MARKERS[index % len(MARKERS)], color=tint, label=condition, markersize=4.5)
    once = frame.drop_duplicates("group")
    y = once["group"].map(places)
    ax.vlines(once["chance"], y - 0.36, y + 0.36, color=GREY, linestyle=(0, (2, 1.2)), linewidth=1.1, label="chance")
    for kind in kinds:
        top = y[once["kind"] == kind].min() - 0.62
        look = {"color": COLOURS.get(kind, "#000000"), "weight": "bold", "va": "center", "parse_math": False}
        ax.text(0.0, top, kind, transform=ax.get_yaxis_transform(), **look)
    ax.set_yticks(list(places.values()), [_label(frame, group) for group in places], parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(bottom - 0.1, 0.1)  # the first group on top
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("accuracy (share of questions, 95% interval)")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(conditions) + 1, handletextpad=0.4, columnspacing=1.6)
    return ax.figure


def _label(frame: pd.DataFrame, group: str) -> str:
    counts = sorted(set(frame.loc[frame["group"] == group, "n"]))
    return f"{group}  (n = {'-'.join(f'{count:,}' for count in counts)})"
