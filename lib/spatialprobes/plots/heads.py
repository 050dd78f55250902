"""Figures of single attention heads: which change with a corner or bind a word to its object, how surely, how specifically.

Drawn from the tables of `probes/head_effects.py`, `probes/head_counts.py` and, head by head, `probes/map_scores.py`. Layers and
heads count from 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.head_looks import (
    CORNERS,
    DIVERGING,
    ROLES,
    colour_bar,
    corner_name,
    grids,
    head_name,
    in_order,
    metric_label,
    plain,
    reach,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALUES = {
    "effect": "attention on the picture, full − control (share)",
    "d": "effect size of full − control (Cohen's d)",
    "above": "{metric}, above chance",
    "difference": "{metric}, minus that in shuffled pictures",
    "drop": "accuracy lost (share of questions)",
    "change": "change of the answer's margin (nats)",
    "own_minus_other": "{metric}, own box − the other's",
}
REGIONS = {"all": "the picture", "region": "the asked corner", "object": "the object's corner"}
SHORT_METRICS = {"lift": "lift", "mass": "mass in the box", "hit": "share of hits", "auc": "AUC"}
MARKS = ("o", "s", "D", "^")
MOST_HEADS = 12


def effects(frame: pd.DataFrame, *, value: str = "effect", region: str = "all", width: str = "two") -> Figure:
    """What the object in the asked corner changes, head by head: layers down, heads across, a panel an asked corner, one scale.

    Columns: asked, layer, head, n (pairs), and the one called `value`: "effect" (signed, full minus control) or "d". Optional: q
    (a dot below .05), region (`region` is drawn: "all" patches, or those of the asked corner), corner (where the object is; only
    rows where it is in the asked one are drawn). Raises ValueError for a missing column, a region that is not there, a table
    without the asked corners' own rows, or a head that stands twice.
    """
    plot = "heads.effects"
    if value not in ("effect", "d"):
        raise ValueError(f"{plot}: value {value!r} is not one of effect, d")
    need(frame, ("asked", "layer", "head", value, "n"), plot)
    rows = plain(frame)
    rows = looks.pick(rows, plot, region=region) if "region" in rows.columns else rows
    if "corner" in rows.columns:
        rows = rows[rows["corner"] == rows["asked"]]
        if rows.empty:
            raise ValueError(f"{plot}: no rows where the object is in the asked corner")
    corners = in_order(rows["asked"], tuple(CORNERS))
    most = reach(rows[value])
    titles = {corner: f"asked: {corner_name(corner)}" for corner in corners}
    figure, axes, shown = grids(rows, plot, "asked", value, Normalize(-most, most), corners, titles, width)
    label = VALUES[value].replace("the picture", REGIONS.get(region, region))
    colour_bar(figure, axes, shown, label)
    return figure


def binding(frame: pd.DataFrame, *, metric: str = "lift", value: str = "difference", width: str = "two") -> Figure:
    """Which heads bind a word to its object: layers down, heads across, on one scale around 0; a panel a role, where it has any.

    Columns: layer, head, n (examples or maps), and the one called `value`. Of `map_summary.binding`: "difference", on the
    word's own box minus on the other's. Of `map_summary.summary`: "above" (minus chance) or "difference" (minus shuffled
    pictures), with role. Of `head_ablation.summary`, a head a row: "drop", "change". Optional: q (a dot below .05), metric
    (`metric` is drawn), target (only the rows where it is the role are drawn). Raises ValueError for a missing column, a metric
    that is not there, or a head that stands twice.
    """
    plot = "heads.binding"
    need(frame, ("layer", "head", value, "n"), plot)
    rows = plain(frame)
    rows = looks.pick(rows, plot, metric=metric) if "metric" in rows.columns else rows
    if {"target", "role"} <= set(rows.columns):
        rows = rows[rows["target"] == rows["role"]]
        if rows.empty:
            raise ValueError(f"{plot}: no map is held against what its own word means")
    rows = rows if "role" in rows.columns else rows.assign(role="both words")
    roles = in_order(rows["role"], tuple(ROLES))
    most = reach(rows[value])
    of_words = value in ("above", "difference")
    titles = {role: f"word of the {role}" if of_words and role in ROLES else str(role) for role in roles}
    figure, axes, shown = grids(rows, plot, "role", value, Normalize(-most, most), roles, titles, width)
    kind = "own_minus_other" if value == "difference" and {"own", "other"} <= set(frame.columns) else value
    label = VALUES.get(kind, value.replace("_", " ")).format(metric=SHORT_METRICS.get(metric, metric_label(metric)))
    colour_bar(figure, axes, shown, label)
    return figure


def counts(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """How often each head is among the three that change most in its layer, against chance: a panel a corner, one scale.

    Columns: corner, layer, head, count (of pairs), chance (the count expected when heads are alike), n (pairs). Optional: q (a
    dot below .05). White is chance. Raises ValueError for a missing column, several levels of chance, or a head that stands
    twice.
    """
    plot = "heads.counts"
    need(frame, ("corner", "layer", "head", "count", "chance", "n"), plot)
    if len(levels := frame["chance"].unique()) > 1:
        raise ValueError(f"{plot}: {len(levels)} levels of chance in one table; draw models and numbers of pairs one by one")
    chance, most = float(levels[0]), float(frame["count"].max())
    far = max(most - chance, chance) or 1.0
    scale = Normalize(chance - far, chance + far)
    frame = plain(frame)
    corners = in_order(frame["corner"], tuple(CORNERS))
    titles = {corner: corner_name(corner) for corner in corners}
    figure, axes, shown = grids(frame, plot, "corner", "count", scale, corners, titles, width)
    label = f"pairs with the head in its layer's top 3\n(white: chance, {chance:.1f})"
    colour_bar(figure, axes, shown, label).set_ylim(0, max(most, chance))
    return figure


def specificity(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Effect of chosen heads by asked corner and by where the object is: a 4x4 matrix a head, one scale, the diagonal framed.

    Columns: layer, head, asked, corner (the object's), effect (attention, full minus control), low, high, n (pairs). Optional:
    region (one). The number of a cell is bold where its 95% interval excludes 0. Raises ValueError for a missing column, more
    than 12 heads, or a cell that stands twice.
    """
    plot = "heads.specificity"
    need(frame, ("layer", "head", "asked", "corner", "effect", "low", "high", "n"), plot)
    rows = looks.once(plain(frame), plot, ("layer", "head", "asked", "corner"))
    heads = list(dict.fromkeys(zip(rows["layer"], rows["head"], strict=True)))
    if len(heads) > MOST_HEADS:
        raise ValueError(f"{plot}: {len(heads)} heads; at most {MOST_HEADS} fit, choose some of the rows")
    asked, corners = in_order(rows["asked"], tuple(CORNERS)), in_order(rows["corner"], tuple(CORNERS))
    most = reach(rows["effect"])
    across = 1 if width == "one" else min(3, len(heads))
    figure = new_figure(width, 0.35 + -(-len(heads) // across) * 2.15)
    axes = panels(figure, len(heads), across)
    for index, (ax, (layer, head)) in enumerate(zip(axes, heads, strict=True)):
        own = rows[(rows["layer"] == layer) & (rows["head"] == head)]
        shown = _matrix(ax, own, asked, corners, most)
        ax.set_title(f"{head_name(layer, head)}  (n = {looks.counts(own['n'])})")
        ax.set_xticks(range(len(corners)), [corner_name(one).replace(" ", "\n") for one in corners], fontsize=5.5)
        ax.set_yticks(range(len(asked)), [corner_name(one).replace(" ", "\n") for one in asked], fontsize=5.5)
        ax.set_xlabel("object in")
        if index % across == 0:
            ax.set_ylabel("asked about")
    regions = set(rows["region"]) if "region" in rows.columns else set()
    where = f" on {REGIONS.get(one, one)}" if len(regions) == 1 and (one := regions.pop()) else ""
    colour_bar(figure, axes, shown, f"attention{where}, full − control (share)")
    return figure


def _matrix(ax: Axes, own: pd.DataFrame, asked: list[str], corners: list[str], most: float):
    grid = np.full((len(asked), len(corners)), np.nan)
    for row in own.itertuples():
        grid[asked.index(row.asked), corners.index(row.corner)] = row.effect
    shown = ax.imshow(grid, cmap=DIVERGING, vmin=-most, vmax=most)
    for row in own.dropna(subset="effect").itertuples():
        y, x = asked.index(row.asked), corners.index(row.corner)
        sure = row.low > 0 or row.high < 0
        tint = "white" if abs(row.effect) > 0.6 * most else "black"
        weight = "bold" if sure else "normal"
        ax.text(x, y, _number(row.effect, most), ha="center", va="center", fontsize=5.5, color=tint, weight=weight)
        if row.asked == row.corner:
            ax.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.1))
    return shown


def _number(value: float, most: float) -> str:
    """With as many places as the largest of the matrices has two figures of; no 0 before the point."""
    places = int(np.clip(1 - np.floor(np.log10(most)), 0, 4))
    text = f"{value:+.{places}f}".replace("0.", ".", 1)
    return "0" if not float(text) else text.replace("-", "−")


def selectivity(frame: pd.DataFrame, *, most: int = 12, width: str = "two") -> Figure:
    """How much more a head answers to one corner than to the others: heads down, a mark with its 95% interval a corner.

    Columns: layer, head, asked, selectivity (effect for the asked corner minus the mean of the others), low, high, n. Optional: q
    (solid marks below .05). most: heads drawn, those with the largest selectivity. Raises ValueError for a missing column, most
    below 1, or a row that stands twice.
    """
    plot = "heads.selectivity"
    need(frame, ("layer", "head", "asked", "selectivity", "low", "high", "n"), plot)
    rows = looks.once(plain(frame), plot, ("layer", "head", "asked"))
    corners = in_order(rows["asked"], tuple(CORNERS))
    heads = _greatest(rows, "selectivity", most, plot)
    ax = new_figure(width, max(1.7, 0.8 + len(heads) * (0.16 + 0.07 * len(corners)))).subplots()
    spread = np.linspace(-0.27, 0.27, len(corners)) if len(corners) > 1 else [0.0]
    for index, corner in enumerate(corners):
        for y, (layer, head) in enumerate(heads):
            own = rows[(rows["layer"] == layer) & (rows["head"] == head) & (rows["asked"] == corner)]
            for row in own.dropna(subset="selectivity").itertuples():
                tint = CYCLE[index % len(CYCLE)]
                face = {} if pd.isna(getattr(row, "q", np.nan)) or row.q < looks.SIGNIFICANT else {"markerfacecolor": "white"}
                ax.hlines(y + spread[index], row.low, row.high, color=tint, linewidth=1.3)
                ax.plot([row.selectivity], [y + spread[index]], MARKS[index % 4], color=tint, markersize=4, **face)
    ax.axvline(0, color=GREY, linewidth=0.7)
    ax.set_yticks(range(len(heads)), [head_name(*one) for one in heads])
    ax.set_ylim(len(heads) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    size = f"attention share, n = {looks.counts(rows['n'])}"
    ax.set_xlabel(f"effect for the corner − mean of the others\n({size})")
    handles = [looks.handle(f"asked: {corner_name(one)}", CYCLE[i], MARKS[i % 4]) for i, one in enumerate(corners)]
    looks.legend(ax.figure, [*handles, *looks.significance_handles(rows)])
    return ax.figure


def stability(frame: pd.DataFrame, *, most: int = 20, width: str = "two") -> Figure:
    """In what share of bootstrap draws a head is among the top k: the `most` steadiest heads down, a panel an asked corner.

    Columns: layer, head, share (of the draws), n (pairs). Optional: asked (a panel each), k (in the axis label), chance (a
    dashed line: the share of a head drawn blindly). Raises ValueError for a missing column, a share outside [0, 1], most below
    1, or a head that stands twice.
    """
    plot = "heads.stability"
    need(frame, ("layer", "head", "share", "n"), plot)
    if not frame["share"].between(0, 1).all():
        raise ValueError(f"{plot}: a share lies outside [0, 1], or is NaN")
    frame = plain(frame)
    rows = looks.once(frame if "asked" in frame.columns else frame.assign(asked=""), plot, ("asked", "layer", "head"))
    corners = in_order(rows["asked"], tuple(CORNERS))
    chosen = {one: _greatest(rows[rows["asked"] == one], "share", most, plot) for one in corners}
    across = 1 if width == "one" else min(4, len(corners))
    tall = max(map(len, chosen.values()))
    figure = new_figure(width, 0.3 + -(-len(corners) // across) * (0.75 + max(0.6, 0.15 * tall)))
    axes = panels(figure, len(corners), across, sharex=True)
    k = f" {int(frame['k'].iloc[0])}" if "k" in frame.columns and frame["k"].nunique() == 1 else " heads"
    for ax, corner in zip(axes, corners, strict=True):
        own = rows[rows["asked"] == corner].set_index(["layer", "head"]).loc[chosen[corner]]
        ax.barh(range(len(own)), own["share"], height=0.7, color=CYCLE[0])
        if "chance" in own.columns and own["chance"].notna().any():
            ax.axvline(own["chance"].iloc[0], color="black", linewidth=0.9, linestyle=(0, (5, 2, 1, 2)))
        ax.set_yticks(range(len(own)), [head_name(*one) for one in own.index])
        ax.set_ylim(tall - 0.5, -0.5)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
        ax.tick_params(labelbottom=True)
        size = f"n = {looks.counts(own['n'])}"
        ax.set_title(f"{corner_name(corner)}  ({size})" if corner else size, parse_math=False)
        ax.set_xlabel(f"share of draws\nin the top{k}")
    if "chance" in rows.columns and rows["chance"].notna().any():
        looks.legend(figure, [looks.handle("by chance", "black", dashes=(0, (5, 2, 1, 2)), linewidth=0.9)])
    return figure


def _greatest(rows: pd.DataFrame, value: str, most: int, plot: str) -> list[tuple[int, int]]:
    """The `most` heads whose greatest value is largest, the largest first; ties by layer and head."""
    if most < 1:
        raise ValueError(f"{plot}: most={most} must be at least 1")
    best = rows.groupby(["layer", "head"])[value].max().rename("value").reset_index()
    best = best.sort_values(["value", "layer", "head"], ascending=[False, True, True]).head(most)
    return [(int(layer), int(head)) for layer, head in zip(best["layer"], best["head"], strict=True)]
