"""Figures of the permutation probe: what vision tokens that change places cost, by question group and by distance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.plots import COLOURS, CYCLE, GREY, colour, need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "D", "s", "^", "v", "P", "X", "<", ">", "p", "h", "*")
FIRST = ("semantic", "spatial")
LEAST = -1.0  # an index below, of a model better off permuted by as much as it gets right in place, is beyond the axis
ORIGINAL, IN_PLACE = "original", "in place"


def accuracy(frame: pd.DataFrame, *, ax: Axes | None = None, width: str = "two") -> Figure:
    """Accuracy of each question group under each condition, with its interval and chance level.

    Columns: group (text), kind (text, such as "semantic" or "spatial"), condition ("original" or "permuted"), accuracy, low,
    high and chance (shares in [0, 1]; chance NaN where unknown), n (questions), and permutation where there are several. One row
    for each group, condition and permutation. Groups of a kind stand together under its name, semantic and spatial ones first,
    else in the table's order. Raises ValueError for a missing column or a repeated row.
    """
    need(frame, ("group", "kind", "condition", "accuracy", "low", "high", "chance", "n"), "permutation.accuracy")
    several = "permutation" in frame and frame.loc[frame["condition"] != ORIGINAL, "permutation"].nunique() > 1
    series = frame["permutation"].where(frame["condition"] != ORIGINAL, ORIGINAL) if several else frame["condition"]
    frame = frame.assign(series=series)
    if (twice := frame.duplicated(["group", "series"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"permutation.accuracy: {row['group']!r} under {row['series']!r} stands twice in the table")
    ax, places = _rows(frame, ax, width)
    _points(ax, frame, "accuracy", places)
    _ticks(ax, frame, "chance", places, "chance")
    ax.set_xlim(-0.02, 1.02)
    ax.set_xlabel("accuracy (share of questions, 95% interval)")
    _legend(ax)
    return ax.figure


def psi(frame: pd.DataFrame, *, ax: Axes | None = None, width: str = "two") -> Figure:
    """Permutation sensitivity index of each group under each permutation, with its interval and what it would be at chance.

    Columns: group, kind, permutation (text), psi, low, high (share of the right answers lost; NaN where there is none),
    psi_at_chance (NaN where unknown), n. One row for each group and permutation; order as in `accuracy`. Groups without an index
    keep their row. What lies below -1 is not shown. Raises ValueError for a missing column or a repeated row.
    """
    need(frame, ("group", "kind", "permutation", "psi", "low", "high", "psi_at_chance", "n"), "permutation.psi")
    frame = frame.assign(series=frame["permutation"])
    if (twice := frame.duplicated(["group", "series"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"permutation.psi: {row['group']!r} under {row['series']!r} stands twice in the table")
    ax, places = _rows(frame, ax, width)
    ax.axvline(0, color="black", linewidth=0.7)
    _points(ax, frame, "psi", places)
    _ticks(ax, frame, "psi_at_chance", places, "permuted answers at chance")
    for group, part in frame.groupby("group", sort=False):
        if part["psi"].isna().all():
            ax.text(0.01, places[group], "none right in place", color=GREY, va="center", fontsize=7)
    ax.set_xlim(max(LEAST, min(-0.05, frame["low"].min(), frame["psi_at_chance"].min())) - 0.02, 1.02)
    ax.set_xlabel("permutation sensitivity index (share of right answers lost, 95% interval)")
    _legend(ax)
    return ax.figure


def psi_by_distance(frame: pd.DataFrame, *, ax: Axes | None = None, width: str = "two") -> Figure:
    """Permutation sensitivity index against how far the tokens moved, one colour a group and one mark a permutation.

    Columns: group, permutation (text), moved (mean distance in cells), psi, low, high (NaN: left out). Permutations of one sort
    ("within_radius:1", "within_radius:2") are joined. Raises ValueError for a missing column, a repeated row, or moved NaN.
    """
    need(frame, ("group", "permutation", "moved", "psi", "low", "high"), "permutation.psi_by_distance")
    if (twice := frame.duplicated(["group", "permutation"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"permutation.psi_by_distance: {row['group']!r} under {row['permutation']!r} stands twice in the table")
    if frame["moved"].isna().any():
        raise ValueError("permutation.psi_by_distance: moved is NaN for tokens without a grid, which have no distance")
    groups = list(dict.fromkeys(frame["group"]))
    names = list(dict.fromkeys(frame.sort_values("moved", kind="stable")["permutation"]))
    marks = {name: {"marker": MARKERS[i % len(MARKERS)], "linestyle": "none"} for i, name in enumerate(names)}
    for name in names[len(MARKERS) :]:
        marks[name] |= {"fillstyle": "none"}  # once all are used, hollow
    if ax is None:
        ax = new_figure(width, max(3.0, 0.9 + 0.17 * (len(groups) + len(names) + 2))).subplots()
    ax.axhline(0, color="black", linewidth=0.7)
    for place, group in enumerate(groups):
        rows = frame[frame["group"] == group].sort_values("moved")
        tint = colour(group, place)
        for _, alike in rows.groupby(rows["permutation"].str.split(":").str[0]):
            ax.plot(alike["moved"], alike["psi"], color=tint, linewidth=0.8, alpha=0.6)
        ax.vlines(rows["moved"], rows["low"], rows["high"], color=tint, linewidth=1.2)
        for row in rows.itertuples():
            ax.plot(row.moved, row.psi, **marks[row.permutation], color=tint, markersize=5)
    ax.set_ylim(max(LEAST, min(-0.05, frame["low"].min())) - 0.02, 1.02)
    ax.set_xlim(left=min(0.0, frame["moved"].min()))
    ax.set_xlabel("mean distance that a token moved (cells of the grid)")
    ax.set_ylabel("permutation sensitivity index (95% interval)")
    ax.grid(axis="y")
    handles = [ax.plot([], [], color=colour(group, i), linewidth=3, label=group)[0] for i, group in enumerate(groups)]
    handles += [ax.plot([], [], **marks[name], color=GREY, label=name)[0] for name in names]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax.figure


# --- groups as rows, under their kinds ---


def _rows(frame: pd.DataFrame, ax: Axes | None, width: str) -> tuple[Axes, dict[str, float]]:
    """Axes with one row a group, and where each stands."""
    kinds = [
        *(kind for kind in FIRST if kind in set(frame["kind"])),
        *dict.fromkeys(frame.loc[~frame["kind"].isin(FIRST), "kind"]),
    ]
    height = max(1.0, 0.27 * frame["series"].nunique() + 0.35)  # of a row, so that marks do not cover each other
    places, headings, bottom = {}, {}, 0.0
    for kind in kinds:
        groups = list(dict.fromkeys(frame.loc[frame["kind"] == kind, "group"]))
        if groups != [kind]:  # a row called like its kind needs no heading
            headings[kind] = bottom + 0.38
            bottom += 0.5
        for group in groups:
            places[group] = bottom + height / 2
            bottom += height
        bottom += 0.3
    if ax is None:
        ax = new_figure(width, 0.9 + 0.26 * (bottom + 0.3)).subplots()
    for kind, top in headings.items():
        look = {"color": COLOURS.get(kind, "#000000"), "weight": "bold", "va": "center", "parse_math": False}
        look |= {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.8}}  # over the line at 0
        ax.text(0.0, top, kind, transform=ax.get_yaxis_transform(), **look)
    ax.set_yticks(list(places.values()), [_label(frame, group) for group in places], parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(bottom, 0.0)  # the first group on top
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    return ax, places


def _points(ax: Axes, frame: pd.DataFrame, column: str, places: dict[str, float]) -> None:
    """A mark with its interval for each group and series, the series of a group one below the other."""
    series = list(dict.fromkeys(frame["series"]))
    spread = (np.arange(len(series)) - (len(series) - 1) / 2) * (0.34 if len(series) == 2 else 0.26)
    for index, name in enumerate(series):
        rows = frame[frame["series"] == name]
        y = rows["group"].map(places) + spread[index]
        tint = colour(name, index) if len(series) <= 2 else _tint(name, index)
        ax.hlines(y, rows["low"], rows["high"], color=tint, linewidth=1.6)
        ax.plot(rows[column], y, MARKERS[index % len(MARKERS)], color=tint, label=name, markersize=4.5)


def _tint(name: str, index: int) -> str:
    """Black is the original's alone."""
    free = [tint for tint in CYCLE if tint != COLOURS[ORIGINAL]]
    return COLOURS.get(name, free[index % len(free)])


def _ticks(ax: Axes, frame: pd.DataFrame, column: str, places: dict[str, float], label: str) -> None:
    once = frame.drop_duplicates("group")
    y = once["group"].map(places)
    half = max(0.36, 0.135 * frame["series"].nunique() + 0.05)
    ax.vlines(once[column], y - half, y + half, color=GREY, linestyle=(0, (2, 1.2)), linewidth=1.1, label=label)


def _legend(ax: Axes) -> None:
    entries = len(ax.get_legend_handles_labels()[1])
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(entries, 4), handletextpad=0.4, columnspacing=1.6)


def _label(frame: pd.DataFrame, group: str) -> str:
    counts = sorted(set(frame.loc[frame["group"] == group, "n"]))
    return f"{group}  (n = {'-'.join(f'{count:,}' for count in counts)})"
