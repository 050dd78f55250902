"""Figures of connector geometry: overlap of neighbours with what chance and copies give, and the likeness of whole spaces.

Drawn from the tables of `probes.neighbours.summary` and `probes.similarity.measure`, perhaps several with columns that tell them
apart (model, comparison, reference, site). Knows tables, never models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SITES = {"pre": "before", "pre_normed": "before, normed", "post": "after"}
SITE_LOOKS = {"pre": (CYCLE[0], "o"), "pre_normed": (CYCLE[5], "^"), "post": (CYCLE[1], "s")}
COMPARISONS = {"pre": "before with after", "pre_normed": "before (normed) with after"}
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "oo")
MEASURES = {
    ("pearson", "l2"): "distances (l2), Pearson",
    ("spearman", "l2"): "distances (l2), Spearman",
    ("pearson", "cosine"): "distances (cosine), Pearson",
    ("spearman", "cosine"): "distances (cosine), Spearman",
    ("cka", "linear"): "linear CKA",
    ("cka_unbiased", "linear"): "linear CKA, unbiased",
}
FLOOR, CHANCE = (0, (4, 1.5)), (0, (1, 1.2))


def knor(frame: pd.DataFrame, *, panel: str = "comparison", line: str = "model", width: str = "two") -> Figure:
    """Overlap of neighbours against k on a log axis, a line each of `line` with 95% intervals, a panel each of `panel`.

    Columns: k, knor, low, high, chance, floor. Optional: those named by panel and line. Dotted: chance; dashed: what copies alone
    give, in the colour of its line where lines have floors of their own. Raises ValueError for a missing column, a share outside
    [0, 1], or a k that stands twice on a line.
    """
    plot = "geometry.knor"
    rows = _checked(frame, plot, (panel, line), "k")
    groups, lines = _values(rows, panel), _values(rows, line)
    across = 1 if width == "one" else 2
    figure = new_figure(width, 0.7 + 2.3 * -(-len(groups) // across))
    axes = panels(figure, len(groups), across, sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        own = rows[rows[panel] == group].sort_values("k")
        for place, name in enumerate(lines):
            part, tint = own[own[line] == name], CYCLE[place % len(CYCLE)]
            ax.fill_between(part["k"], part["low"], part["high"], color=tint, alpha=0.2, linewidth=0)
            ax.plot(part["k"], part["knor"], color=tint, marker=MARKS[place % len(MARKS)])
        for column, dashes in (("floor", FLOOR), ("chance", CHANCE)):
            _levels(ax, own, column, line, lines, dashes)
        _k_axis(ax, rows["k"])
        ax.set_title(named(group, COMPARISONS) if group else "", parse_math=False)
        ax.grid(axis="y")
    axes[0].set_ylim(0, min(1.0, 1.08 * float(rows[["high", "floor", "chance"]].max(axis=None)) + 0.02))
    for ax in axes[::across]:
        ax.set_ylabel("overlap, share of k")
    handles = [_handle(named(name), CYCLE[i % len(CYCLE)], MARKS[i % len(MARKS)]) for i, name in enumerate(lines) if name]
    controls = [_handle("chance", GREY, dashes=CHANCE)]
    if (rows["floor"] > 0).any():
        controls.insert(0, _handle("copies alone", GREY, dashes=FLOOR))
    legend(figure, [*handles, *controls])
    return figure


def bars(
    frame: pd.DataFrame,
    *,
    k: int | None = None,
    group: str = "model",
    bar: str = "comparison",
    panel: str = "reference",
    width: str = "two",
) -> Figure:
    """Overlap of neighbours at one k as bars: a group each of `group`, a bar each of `bar`, a panel each of `panel`.

    Columns: k, knor, low, high (95% interval), chance, floor. Optional: those named by group, bar and panel. k: None takes the
    largest. A dotted line across a bar is its chance level, a dashed one what copies alone give. Raises ValueError for a missing
    column, a k that is not there, a share outside [0, 1], or a bar that stands twice.
    """
    plot = "geometry.bars"
    rows = _checked(frame, plot, (group, bar, panel), "k")
    chosen = int(rows["k"].max()) if k is None else k
    if not (rows["k"] == chosen).any():
        raise ValueError(f"{plot}: no overlap at k = {chosen}; there: {', '.join(map(str, sorted(set(rows['k']))))}")
    rows = rows[rows["k"] == chosen]
    groups, series, cells = _values(rows, group), _values(rows, bar), _values(rows, panel)
    across = 1 if width == "one" or len(groups) * len(series) > 9 else min(2, len(cells))
    figure = new_figure(width, 0.75 + 2.1 * -(-len(cells) // across))
    axes = panels(figure, len(cells), across, sharey=True)
    step = 0.8 / len(series)
    for ax, cell in zip(axes, cells, strict=True):
        for place, name in enumerate(series):
            own = rows[(rows[panel] == cell) & (rows[bar] == name)].set_index(group).reindex(groups)
            x = np.arange(len(groups)) + step * (place - (len(series) - 1) / 2)
            tint = SITE_LOOKS[name][0] if name in SITE_LOOKS else CYCLE[place % len(CYCLE)]
            error = np.maximum([own["knor"] - own["low"], own["high"] - own["knor"]], 0)
            look = {"hatch": HATCHES[place % len(HATCHES)], "edgecolor": "white", "linewidth": 0}
            ax.bar(x, own["knor"], 0.92 * step, yerr=error, color=tint, error_kw={"elinewidth": 0.9}, **look)
            for column, dashes in (("chance", CHANCE), ("floor", FLOOR)):
                level = own[column].where(own[column] > 0)
                ax.hlines(level, x - step / 2, x + step / 2, color="black", linewidth=1.0, linestyle=dashes)
        ax.set_xticks(range(len(groups)), [named(one) for one in groups], parse_math=False)
        ax.tick_params(axis="x", length=0)
        ax.set_title(str(cell), parse_math=False)
        ax.grid(axis="y")
    for ax in axes[::across]:
        ax.set_ylabel(f"overlap at k = {chosen}, share")
    words = COMPARISONS if bar == "comparison" else SITES
    handles = [_swatch(named(name, words), i, name) for i, name in enumerate(series) if name]
    controls = [_handle("chance", "black", dashes=CHANCE)]
    if (rows["floor"] > 0).any():
        controls.insert(0, _handle("copies alone", "black", dashes=FLOOR))
    legend(figure, [*handles, *controls])
    return figure


def similarity(frame: pd.DataFrame, *, panel: str = "comparison", point: str = "model", width: str = "two") -> Figure:
    """Likeness of two spaces by each measure, with 95% intervals: a line of marks a measure, a colour each of `point`.

    Columns: measure, metric, estimate, low, high. Optional: those named by panel and point. 1 is the same up to rotation and
    scale, the line at 0 is nothing alike. Raises ValueError for a missing column, an unknown measure, or a mark that stands
    twice.
    """
    plot = "geometry.similarity"
    need(frame, ("measure", "metric", "estimate", "low", "high"), plot)
    rows = with_columns(frame, (panel, point))
    kinds = list(zip(rows["measure"], rows["metric"], strict=True))
    if wrong := [kind for kind in kinds if kind not in MEASURES]:
        raise ValueError(f"{plot}: {' of '.join(map(str, wrong[0]))} is no measure that is known")
    once(rows, plot, (panel, point, "measure", "metric"))
    order = [kind for kind in MEASURES if kind in kinds]
    cells, points = _values(rows, panel), _values(rows, point)
    across = 1 if width == "one" else min(2, len(cells))
    figure = new_figure(width, 0.7 + (0.2 + 0.1 * len(points)) * len(order) * -(-len(cells) // across))
    axes = panels(figure, len(cells), across, sharex=True, sharey=True)
    for ax, cell in zip(axes, cells, strict=True):
        for place, name in enumerate(points):
            own = rows[(rows[panel] == cell) & (rows[point] == name)].set_index(["measure", "metric"]).reindex(order)
            y = np.arange(len(order)) + 0.6 * ((place + 0.5) / len(points) - 0.5)
            tint = CYCLE[place % len(CYCLE)]
            ax.hlines(y, own["low"], own["high"], color=tint, linewidth=1.2)
            ax.plot(own["estimate"], y, MARKS[place % len(MARKS)], color=tint)
        ax.axvline(0, color=GREY, linewidth=0.7)
        ax.set_xlim(min(-0.05, float(rows["low"].min()) - 0.03), 1.03)
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.set_yticks(range(len(order)), [MEASURES[kind] for kind in order])
        ax.tick_params(axis="y", length=0)
        ax.set_title(named(cell, COMPARISONS) if cell else "", parse_math=False)
        ax.grid(axis="x")
        ax.set_xlabel("likeness")
        ax.tick_params(labelbottom=True)
    if handles := [_handle(named(n), CYCLE[i % len(CYCLE)], MARKS[i % len(MARKS)], "none") for i, n in enumerate(points) if n]:
        legend(figure, handles)
    return figure


# --- what the figures of geometry and spectra share ---


def with_columns(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The table with an empty text where it lacks a column, and text instead of categories."""
    frame = frame.assign(**{name: "" for name in names if name not in frame.columns})
    return frame.astype({name: object for name in names if isinstance(frame[name].dtype, pd.CategoricalDtype)})


def once(frame: pd.DataFrame, plot: str, by: Sequence[str]) -> None:
    """Raise ValueError naming a place that stands twice."""
    if (twice := frame.duplicated(list(by))).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{plot}: {', '.join(f'{name} {row[name]}' for name in by)} stands twice in the table")


def named(value: Any, words: dict[str, str] = SITES) -> str:
    return words.get(value, str(value))


def legend(figure: Figure, handles: list) -> None:
    """Above the panels, as many beside one another as there is room for; names are words, never formulas."""
    room, letter, handle = 72 * figure.get_figwidth() - 12, 4.3, 40.0  # points
    widest = max(handle + letter * len(one.get_label()) for one in handles)
    columns = max(1, min(len(handles), int(room // widest)))
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * (lines - 1))
    for text in figure.legend(handles=handles, loc="outside upper center", ncols=columns).get_texts():
        text.set_parse_math(False)


def _checked(frame: pd.DataFrame, plot: str, optional: Sequence[str], *by: str) -> pd.DataFrame:
    need(frame, ("k", "knor", "low", "high", "chance", "floor"), plot)
    rows = with_columns(frame, optional)
    once(rows, plot, (*optional, *by))
    shares = rows[["knor", "low", "high", "chance", "floor"]]
    if not ((shares >= 0) & (shares <= 1)).all(axis=None):
        raise ValueError(f"{plot}: a share is not between 0 and 1, or is NaN")
    return rows


def _values(rows: pd.DataFrame, column: str) -> list:
    """What stands in a column: sites in their order, else as it comes."""
    there = list(dict.fromkeys(rows[column]))
    return sorted(there, key=list(SITES).index) if set(there) <= set(SITES) else there


def _levels(ax: Axes, rows: pd.DataFrame, column: str, line: str, lines: list, dashes: Any) -> None:
    """A level against k: one grey line where all lines share it, else one a line in its colour; none where it is 0."""
    if rows.groupby("k")[column].agg(np.ptp).max() < 1e-9:
        parts = [(rows.drop_duplicates("k"), GREY)]
    else:
        parts = [(rows[rows[line] == name], CYCLE[i % len(CYCLE)]) for i, name in enumerate(lines)]
    for part, tint in parts:
        if (part[column] > 0).any():
            ax.plot(part["k"], part[column], color=tint, linestyle=dashes, linewidth=1.0)


def _k_axis(ax: Axes, ks: pd.Series) -> None:
    there = sorted(set(ks))
    ax.set_xscale("log")
    ax.set_xticks(there, [str(k) for k in there])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlim(there[0] / 1.15, there[-1] * 1.15)
    ax.set_xlabel("k nearest neighbours (log scale)")


def _handle(label: str, tint: str, mark: str = "", dashes: Any = "-") -> Line2D:
    return Line2D([], [], color=tint, marker=mark or "None", linestyle=dashes, label=label)


def _swatch(label: str, place: int, name: str) -> Patch:
    tint = SITE_LOOKS[name][0] if name in SITE_LOOKS else CYCLE[place % len(CYCLE)]
    return Patch(facecolor=tint, hatch=HATCHES[place % len(HATCHES)], edgecolor="white", linewidth=0, label=label)
