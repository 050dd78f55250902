"""Figure of spatial against neutral words: does the map of a word widen when "left of" becomes "next to"?

Drawn from the summary of `probes/spatial_words.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.head_looks import ROLES, in_order, plain, role_look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTROL = "#8A8A8A"
RELATIONS = ("all", "left", "right", "above", "below", "under")
LABELS = {"entropy": "entropy / ln N (1: flat)", "dispersion": "dispersion (cells²)"}


def differences(frame: pd.DataFrame, *, how: str = "mean", layer: int | None = None, width: str = "two") -> Figure:
    """Paired differences, spatial minus neutral caption: a panel a metric, relations down, a mark with its 95% interval a role.

    Columns: role (whose word's map), metric ("entropy", "dispersion"), difference, low, high, n (pairs). Optional: relation;
    how and layer (`how` is drawn, and with "layer" the block called `layer`); sees (words before the relation phrase are left
    out: they cannot change with it); control, control_low, control_high (neutral minus another neutral phrase, grey); q (solid
    marks below .05). Raises ValueError for a missing column, a value that is not there, no row that sees the relation, or one
    that stands twice.
    """
    plot = "spatial_words.differences"
    need(frame, ("role", "metric", "difference", "low", "high", "n"), plot)
    rows = plain(frame)
    rows = looks.pick(rows, plot, how=how) if "how" in rows.columns else rows
    rows = rows if layer is None else looks.pick(rows, plot, layer=layer)
    rows = looks.pick(rows, plot, sees=True) if "sees" in rows.columns else rows
    rows = rows if "relation" in rows.columns else rows.assign(relation="all")
    looks.once(rows, plot, ("metric", "relation", "role"))
    metrics, roles = list(dict.fromkeys(rows["metric"])), in_order(rows["role"], tuple(ROLES))
    relations = in_order(rows["relation"], RELATIONS)
    across = 1 if width == "one" else min(2, len(metrics))
    tall = 0.55 + max(0.75, len(relations) * (0.16 + 0.13 * len(roles)))
    figure = new_figure(width, 0.4 + tall * -(-len(metrics) // across))
    axes = panels(figure, len(metrics), across, sharey=True)
    spread = np.linspace(-0.24, 0.24, len(roles)) if len(roles) > 1 else [0.0]
    for ax, metric in zip(axes, metrics, strict=True):
        for place, role in enumerate(roles):
            own = rows[(rows["metric"] == metric) & (rows["role"] == role)]
            _marks(ax, own, own["relation"].map(relations.index) + spread[place], role_look(role, place))
        ax.axvline(0, color=GREY, linewidth=0.7)
        names = [f"{one}  (n = {looks.counts(rows.loc[rows['relation'] == one, 'n'])})" for one in relations]
        ax.set_yticks(range(len(relations)), names, parse_math=False)
        ax.set_ylim(len(relations) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel(f"{LABELS.get(metric, metric)},\nspatial − neutral", parse_math=False)
    handles = [looks.handle(f"{role}, 95% interval", *role_look(role, place)[:2]) for place, role in enumerate(roles)]
    if "control" in rows.columns and rows["control"].notna().any():
        handles.append(looks.handle("neutral − another neutral phrase", CONTROL, "|"))
    looks.legend(figure, [*handles, *looks.significance_handles(rows)], most=3)
    return figure


def _marks(ax: Axes, own: pd.DataFrame, places: pd.Series, look: tuple) -> None:
    tint, mark, _ = look
    for y, row in zip(places, own.to_dict("records"), strict=True):
        q = row.get("q", np.nan)
        face = {} if pd.isna(q) or q < looks.SIGNIFICANT else {"markerfacecolor": "white"}
        if not pd.isna(row.get("control", np.nan)):
            ax.hlines(y + 0.1, row["control_low"], row["control_high"], color=CONTROL, linewidth=1.0)
            ax.plot([row["control"]], [y + 0.1], "|", color=CONTROL, markersize=5)
        ax.hlines(y, row["low"], row["high"], color=tint, linewidth=1.4)
        ax.plot([row["difference"]], [y], mark, color=tint, markersize=4.5, **face)
