"""Figures of words' maps over pictures: the maps themselves with the boxes of what is meant, and how well they meet them.

Drawn from the summaries of `probes/map_scores.py`, and from a table of cells. A role (subject, reference, relation) has the same
colour, mark and dash in all of them.
"""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.plots import GREY, heatmap, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.head_looks import METRICS, ROLES, in_order, metric_label, plain, role_look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EDGES = ("x_min", "y_min", "x_max", "y_max")
BOXED = ("subject", "reference")
RANKS = ("best", "median", "worst")
DEFINITIONS = ("corrected", "as_published")
CHANCE, SHUFFLED = (0, (5, 2, 1, 2)), (0, (1, 1))


def overlays(
    frame: pd.DataFrame, *, label: str = "attention weight", unit: str = "", greatest: float | None = None, width: str = "two"
) -> Figure:
    """Each example's picture and, beside it, the maps of its words, with the boxes of the subject and the reference in all.

    Columns: as for `heatmap.overlay` (example, word, row, col, weight, png; optional scale_x, scale_y, shift_x, shift_y), and
    subject_x_min, subject_y_min, subject_x_max, subject_y_max, reference_x_min, ... in fractions of the picture, NaN for none.
    Optional: rank ("best", "median", "worst"), metric, value and n (examples), by which it was chosen: they head its picture, and
    order the lines. Raises ValueError as `heatmap.overlay`, for a missing column and a rank that is none of these.
    """
    plot = "head_maps.overlays"
    heatmap.check_cells(frame, plot)
    need(frame, tuple(f"{role}_{edge}" for role in BOXED for edge in EDGES), plot)
    if "rank" in frame.columns:
        ranks = looks.known(frame, plot, "rank", RANKS)
        frame = frame.assign(_order=frame["rank"].map(ranks.index)).sort_values("_order", kind="stable")
    look = {"label": label, "unit": unit, "greatest": greatest, "width": width}
    figure, pictures = heatmap.lay_out(frame, _boxes, **look, room=0.5 if "rank" in frame.columns else 0.3)
    for ax, rows in pictures:
        _boxes(ax, rows)
        if "rank" in rows.columns:
            ax.set_title(_why(rows.iloc[0]), parse_math=False)
            ax.set_xlabel(_short(rows.iloc[0]["example"]), fontsize=6, color=GREY, parse_math=False)
    handles = [looks.handle(f"{role}'s box", ROLES[role][0], dashes=ROLES[role][2]) for role in BOXED]
    if {"rank", "n"} <= set(frame.columns):
        handles.append(looks.handle(f"chosen by rule from n = {looks.counts(frame['n'])}", dashes="none"))
    looks.legend(figure, handles)
    return figure


def _boxes(ax: Axes, cells: pd.DataFrame) -> None:
    for role in BOXED:
        names = [f"{role}_{edge}" for edge in EDGES]
        heatmap.draw_box(ax, cells, names, ROLES[role][0], "white", linestyle=ROLES[role][2])


def _why(row: pd.Series) -> str:
    """How the example was chosen: its rank, and the value of the metric where the table has it."""
    known = "metric" in row.index and "value" in row.index
    return f"{row['rank']}\n{row['metric']} {row['value']:.3g}" if known else str(row["rank"])


def _short(name: str, most: int = 28) -> str:
    return name if len(str(name)) <= most else f"{str(name)[: most - 1]}…"


def by_layer(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """How well the words' maps meet what they mean, by layer: a panel a metric, a line a role, bands are 95% intervals.

    Columns: layer, role, metric, estimate, low, high, n (maps). Optional: chance and shuffled (the same metric by chance, and
    in pictures whose cells are shuffled), drawn in the role's colour, or grey where they are the same for all roles; q (marks
    are solid below .05). A role's map against its own box is meant: of a table with `target`, the rows where target is role, or
    "map". Raises ValueError for a missing column, a table without such rows, or a row that stands twice.
    """
    plot = "head_maps.by_layer"
    need(frame, ("layer", "role", "metric", "estimate", "low", "high", "n"), plot)
    rows = looks.once(_own(plain(frame), plot), plot, ("metric", "role", "layer"))
    metrics, roles = in_order(rows["metric"], tuple(METRICS)), in_order(rows["role"], tuple(ROLES))
    layers = looks.ordered_layers(rows["layer"], plot)
    across = 1 if width == "one" else 2
    figure = new_figure(width, 0.6 + 1.95 * -(-len(metrics) // across))
    axes = panels(figure, len(metrics), across)
    for ax, metric in zip(axes, metrics, strict=True):
        part = rows[rows["metric"] == metric]
        for name, dashes in (("chance", CHANCE), ("shuffled", SHUFFLED)):
            _levels(ax, part, name, dashes, roles, layers)
        for place, role in enumerate(roles):
            tint, mark, _ = role_look(role, place)
            looks.by_layer(ax, part[part["role"] == role], tint, layers, mark=mark, size=looks.mark_size(layers))
        _layer_axis(ax, layers)
        ax.set_title(f"{metric_label(metric)}\nn = {looks.counts(part['n'])}", parse_math=False)
    handles = [looks.handle(f"{role}, 95% interval", *role_look(role, place)[:2]) for place, role in enumerate(roles)]
    looks.legend(figure, [*handles, *_level_handles(rows), *looks.significance_handles(rows), *looks.gap_handles(rows)])
    return figure


def _own(frame: pd.DataFrame, plot: str) -> pd.DataFrame:
    """The rows of maps held against what their own word means, and of measures of a map alone."""
    if "target" not in frame.columns:
        return frame
    rows = frame[(frame["target"] == frame["role"]) | (frame["target"] == "map")]
    if rows.empty:
        there = ", ".join(f"{role} against {target}" for role, target in frame[["role", "target"]].drop_duplicates().to_numpy())
        raise ValueError(f"{plot}: no map is held against what its own word means; there: {there}")
    return rows


def _levels(ax: Axes, part: pd.DataFrame, name: str, dashes, roles: list[str], layers: list[str]) -> None:
    """Lines of chance or of shuffled pictures: one grey line where all roles agree, else one in the colour of each."""
    if name not in part.columns or part[name].isna().all():
        return
    grouped = part.groupby(part["layer"].map(looks.layer_text))[name]
    alike = np.allclose(grouped.max(), grouped.min(), rtol=0, atol=1e-9)
    x = looks.places(layers)
    for place, role in enumerate(roles[:1] if alike else roles):
        own = part[part["role"] == role] if not alike else part.drop_duplicates("layer")
        own = own.assign(_x=own["layer"].map(looks.layer_text).map(x)).sort_values("_x")
        tint = GREY if alike else role_look(role, place)[0]
        if len(own) == 1:
            ax.axhline(own[name].iloc[0], color=tint, linestyle=dashes, linewidth=0.9)
        else:
            ax.plot(own["_x"], own[name], color=tint, linestyle=dashes, linewidth=0.9)


def _level_handles(rows: pd.DataFrame) -> list:
    shown = (("chance", CHANCE, "chance"), ("shuffled", SHUFFLED, "cells of the picture shuffled"))
    there = [one for one in shown if one[0] in rows.columns and rows[one[0]].notna().any()]
    return [looks.handle(words, GREY, dashes=dashes, linewidth=0.9) for _, dashes, words in there]


def _layer_axis(ax: Axes, layers: list[str]) -> None:
    """As of `swap_looks.layer_axis`, for blocks: layer 0 is the first that attends, and 0 is no level of its own."""
    looks.layer_axis(ax, layers)
    ax.set_xlabel("layer")
    ax.lines[-1].remove()  # the line at 0
    ax.relim()
    ax.autoscale_view(scalex=False)


def real_and_shuffled(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Each metric in real pictures, in pictures whose cells are shuffled, and by chance: a line of panels a metric, a column a
    definition, roles down.

    Columns: role, metric, estimate, low, high (95% interval), chance, shuffled (NaN where unknown), n (maps). Optional:
    definition ("corrected", "as_published"), target (as for `by_layer`), q (of real against shuffled; solid marks below .05).
    Raises ValueError for a missing column, a definition that is neither, a table without maps held against their own box, or a
    row that stands twice.
    """
    plot = "head_maps.real_and_shuffled"
    need(frame, ("role", "metric", "estimate", "low", "high", "chance", "shuffled", "n"), plot)
    frame = frame if "definition" in frame.columns else frame.assign(definition="corrected")
    definitions = looks.known(frame, plot, "definition", DEFINITIONS)
    rows = looks.once(_own(plain(frame), plot), plot, ("metric", "role", "definition"))
    metrics, roles = in_order(rows["metric"], tuple(METRICS)), in_order(rows["role"], tuple(ROLES))
    figure = new_figure(width, 0.5 + len(metrics) * (0.62 + 0.2 * len(roles)))
    letters = (38 if width == "one" else 110) // len(definitions)
    axes = figure.subplots(len(metrics), len(definitions), sharex="row", sharey=True, squeeze=False)
    for line, metric in zip(axes, metrics, strict=True):
        for ax, definition in zip(line, definitions, strict=True):
            part = rows[(rows["metric"] == metric) & (rows["definition"] == definition)]
            for place, role in enumerate(roles):
                _compared(ax, part[part["role"] == role], place, role_look(role, place))
            if part["estimate"].isna().all():
                ax.text(0.5, 0.5, "no estimate", transform=ax.transAxes, ha="center", va="center", color=GREY)
            ax.set_xlabel(fill(metric_label(metric), letters), parse_math=False)
            ax.grid(axis="x")
            ax.set_ylim(len(roles) - 0.5, -0.5)
            ax.set_yticks(range(len(roles)), [f"{role}  (n = {_of(rows, metric, role)})" for role in roles], parse_math=False)
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
    if len(definitions) > 1:
        for ax, definition in zip(axes[0], definitions, strict=True):
            ax.set_title(definition.replace("_", " "))
    handles = [
        looks.handle("picture as it is, 95% interval", "black", "o"),
        looks.handle("cells of the picture shuffled", "black", "|", "none", markeredgewidth=1.6),
        looks.handle("chance", GREY, "x", "none", markeredgewidth=1.1),
    ]
    looks.legend(figure, [*handles, *looks.significance_handles(rows), *looks.gap_handles(rows)])
    return figure


def _of(rows: pd.DataFrame, metric: str, role: str) -> str:
    return looks.counts(rows.loc[(rows["metric"] == metric) & (rows["role"] == role), "n"])


def _compared(ax: Axes, rows: pd.DataFrame, y: int, look: tuple) -> None:
    tint, mark, _ = look
    for row in rows.dropna(subset="estimate").itertuples():
        face = {} if pd.isna(getattr(row, "q", np.nan)) or row.q < looks.SIGNIFICANT else {"markerfacecolor": "white"}
        ax.hlines(y, row.low, row.high, color=tint, linewidth=1.5)
        ax.plot([row.chance], [y], "x", color=GREY, markersize=4.5, markeredgewidth=1.1)
        ax.plot([row.shuffled], [y], "|", color=tint, markersize=9, markeredgewidth=1.6)
        ax.plot([row.estimate], [y], mark, color=tint, markersize=4.5, **face)
