"""Figures of relation words that look at their entities without a picture: what goes by position, what by meaning.

Drawn from the tables of `probes/text_only.py`. Positional is the part of the asymmetry that stays when the entities swap places
and the relation is reversed, (a1 + a2) / 2; content the part that turns with them, (a1 - a2) / 2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import Normalize

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.head_looks import TALLEST, colour_bar, grids, in_order, plain, reach

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {"positional": (CYCLE[4], "s"), "content": (CYCLE[0], "o")}
WORDS = {"positional": "positional, (a1 + a2) / 2", "content": "content, (a1 − a2) / 2"}
RELATIONS = ("left", "right", "above", "below", "under")
RELATION_LOOKS = {
    "left": (CYCLE[0], "<"),
    "right": (CYCLE[5], ">"),
    "above": (CYCLE[1], "^"),
    "below": (CYCLE[4], "v"),
    "under": (CYCLE[4], "v"),
}
ALL = "all relations"


def split(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Positional and content part of each head's asymmetry: layers down, heads across, a line of panels a relation, one scale.

    Columns: layer, head, positional, content (attention to the first entity minus that to the second), n (pairs). Optional:
    relation (a line each), positional_q, q (of the content part; a dot below .05). Raises ValueError for a missing column, or a
    head that stands twice.
    """
    plot = "text_only.split"
    need(frame, ("layer", "head", *PARTS, "n"), plot)
    frame = plain(frame)
    rows = frame if "relation" in frame.columns else frame.assign(relation=ALL)
    looks.once(rows, plot, ("relation", "layer", "head"))
    relations = in_order(rows["relation"], RELATIONS)
    long = pd.concat([_panel(rows, part, q) for part, q in zip(PARTS, ("positional_q", "q"), strict=True)], ignore_index=True)
    most = reach(long["value"])
    titles = {f"{relation} {part}": f"{relation}: {words}" for relation in relations for part, words in WORDS.items()}
    look = {"width": width, "tallest": TALLEST if len(relations) < 3 else 1.9}
    figure, axes, shown = grids(long, plot, "panel", "value", Normalize(-most, most), list(titles), titles, **look)
    colour_bar(figure, axes, shown, "attention, first − second entity (share)")
    return figure


def _panel(rows: pd.DataFrame, part: str, q: str) -> pd.DataFrame:
    own = rows[["relation", "layer", "head", "n"]].assign(panel=rows["relation"].astype(str) + f" {part}", value=rows[part])
    return own.assign(q=rows[q] if q in rows.columns else np.nan)


def split_by_layer(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Positional and content part by layer, a panel a relation; bands are 95% intervals.

    Columns: layer, positional, positional_low, positional_high, content, content_low, content_high, n (pairs). Optional: relation
    (a panel each), q (of the content part: solid marks below .05). Raises ValueError for a missing column or a row that stands
    twice.
    """
    plot = "text_only.split_by_layer"
    need(frame, ("layer", *(f"{part}{end}" for part in PARTS for end in ("", "_low", "_high")), "n"), plot)
    frame = plain(frame)
    rows = frame if "relation" in frame.columns else frame.assign(relation=ALL)
    looks.once(rows, plot, ("relation", "layer"))
    relations, layers = in_order(rows["relation"], RELATIONS), looks.ordered_layers(rows["layer"], plot)
    across = 1 if width == "one" else min(2, len(relations))
    figure = new_figure(width, 0.6 + 1.75 * -(-len(relations) // across))
    axes = panels(figure, len(relations), across, sharey=True)
    for ax, relation in zip(axes, relations, strict=True):
        own = rows[rows["relation"] == relation]
        for part, (tint, mark) in PARTS.items():
            line = own.assign(estimate=own[part], low=own[f"{part}_low"], high=own[f"{part}_high"])
            line = line if part == "content" else line.drop(columns="q", errors="ignore")
            looks.by_layer(ax, line, tint, layers, mark=mark, size=looks.mark_size(layers))
        looks.layer_axis(ax, layers)
        ax.set_xlabel("layer")
        ax.set_title(f"{relation}  (n = {looks.counts(own['n'])})", parse_math=False)
    for ax in axes[::across]:
        ax.set_ylabel("attention, first −\nsecond entity (share)")
    handles = [looks.handle(f"{WORDS[part]}, 95% interval", *look) for part, look in PARTS.items()]
    tested = [looks.handle("content: " + one.get_label(), "black", "o", "none", markerfacecolor=one.get_markerfacecolor())
              for one in looks.significance_handles(rows)]  # fmt: skip
    looks.legend(figure, [*handles, *tested], most=2)
    return figure


def asymmetry(frame: pd.DataFrame, *, width: str = "one") -> Figure:
    """Asymmetry of each caption against that of its counterfactual: one mark a pair, both diagonals named.

    Columns: pair, asym_s1, asym_s2 (attention of the relation word to the first entity named minus that to the second; mean
    over layers and heads). Optional: relation (of the caption; a colour and mark each). On the rising diagonal the relation
    word goes by position alone, on the falling one by what the entities are; the cross is the mean. Raises ValueError for a
    missing column, or a pair that stands twice.
    """
    plot = "text_only.asymmetry"
    need(frame, ("pair", "asym_s1", "asym_s2"), plot)
    frame = plain(frame)
    rows = looks.once(frame if "relation" in frame.columns else frame.assign(relation=ALL), plot, ("pair",))
    rows = rows.dropna(subset=["asym_s1", "asym_s2"])
    relations = in_order(rows["relation"], RELATIONS)
    figure = new_figure(width, 3.7 if width == "one" else 5.0)
    ax = figure.subplots()
    most = 1.12 * reach(pd.concat([rows["asym_s1"], rows["asym_s2"]]))
    ax.axhline(0, color="#D5D5D5", linewidth=0.7, zorder=0)
    ax.axvline(0, color="#D5D5D5", linewidth=0.7, zorder=0)
    ax.plot([-most, most], [-most, most], color=CYCLE[4], linewidth=1.0, linestyle=(0, (5, 2)), zorder=1)
    ax.plot([-most, most], [most, -most], color=CYCLE[0], linewidth=1.0, linestyle=(0, (1, 1.2)), zorder=1)
    handles = []
    size = float(np.clip(60 / np.sqrt(max(len(rows), 1)), 2, 5))
    for relation in relations:
        own = rows[rows["relation"] == relation]
        tint, mark = RELATION_LOOKS.get(relation, ("#4D4D4D", "o"))
        ax.plot(own["asym_s1"], own["asym_s2"], mark, color=tint, markersize=size, alpha=0.6, markeredgewidth=0)
        handles.append(looks.handle(f"{relation} (n = {len(own):,})", tint, mark, "none"))
    if len(rows):
        x, y = rows["asym_s1"].mean(), rows["asym_s2"].mean()
        ax.plot([x], [y], "P", color="white", markersize=10, markeredgecolor="black", markeredgewidth=1.0)
        handles.append(looks.handle("mean", "white", "P", "none", markeredgecolor="black"))
    handles += [
        looks.handle("a2 = a1: position", CYCLE[4], dashes=(0, (5, 2)), linewidth=1.0),
        looks.handle("a2 = −a1: content", CYCLE[0], dashes=(0, (1, 1.2)), linewidth=1.0),
    ]
    ax.set(xlim=(-most, most), ylim=(-most, most), aspect="equal")
    ax.locator_params(nbins=5)
    ax.set_xlabel("a1: caption, first − second entity")
    ax.set_ylabel("a2: entities and relation swapped,\nfirst − second entity")
    ax.tick_params(colors="black")
    ax.spines[:].set(color=GREY)
    looks.legend(figure, handles, most=2)
    return figure
