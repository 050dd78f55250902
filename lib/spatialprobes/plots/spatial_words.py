"""Figure of spatial against neutral words: does the map of a word widen when "left of" becomes "next to"?

Drawn from the summary of `probes/spatial_words.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.head_looks import ROLES, in_order, metric_label, role_look

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RELATIONS = ("all", "left", "right", "above", "below", "under")


def differences(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Paired differences, spatial minus neutral caption: a panel a measure, relations down, a mark with its 95% interval a role.

    Columns: relation, role (whose word's map), measure ("entropy", "dispersion"), difference, low, high, n (pairs). Optional: q
    (solid marks below .05). Raises ValueError for a missing column or a row that stands twice.
    """
    plot = "spatial_words.differences"
    need(frame, ("relation", "role", "measure", "difference", "low", "high", "n"), plot)
    rows = looks.once(frame, plot, ("measure", "relation", "role"))
    measures, roles = list(dict.fromkeys(rows["measure"])), in_order(rows["role"], tuple(ROLES))
    relations = in_order(rows["relation"], RELATIONS)
    across = 1 if width == "one" else min(2, len(measures))
    tall = 0.55 + len(relations) * (0.16 + 0.1 * len(roles))
    figure = new_figure(width, 0.4 + tall * -(-len(measures) // across))
    axes = panels(figure, len(measures), across, sharey=True)
    spread = np.linspace(-0.24, 0.24, len(roles)) if len(roles) > 1 else [0.0]
    for ax, measure in zip(axes, measures, strict=True):
        for place, role in enumerate(roles):
            tint, mark, _ = role_look(role, place)
            own = rows[(rows["measure"] == measure) & (rows["role"] == role)].dropna(subset="difference")
            for row in own.itertuples():
                y = relations.index(row.relation) + spread[place]
                face = {} if pd.isna(getattr(row, "q", np.nan)) or row.q < looks.SIGNIFICANT else {"markerfacecolor": "white"}
                ax.hlines(y, row.low, row.high, color=tint, linewidth=1.4)
                ax.plot([row.difference], [y], mark, color=tint, markersize=4.5, **face)
        ax.axvline(0, color=GREY, linewidth=0.7)
        names = [f"{one}  (n = {looks.counts(rows.loc[rows['relation'] == one, 'n'])})" for one in relations]
        ax.set_yticks(range(len(relations)), names, parse_math=False)
        ax.set_ylim(len(relations) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="x")
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel(f"{metric_label(measure)},\nspatial − neutral", parse_math=False)
    handles = [looks.handle(f"{role}, 95% interval", *role_look(role, place)[:2]) for place, role in enumerate(roles)]
    looks.legend(figure, [*handles, *looks.significance_handles(rows)])
    return figure
