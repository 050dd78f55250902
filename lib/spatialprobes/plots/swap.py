"""Figures of swap pairs by layer: consistency and alignment of their differences, the linear probe, and the answers behind them.

Drawn from the tables of `probes/swap_measures.py` and `probes/swap_probe.py`. Controls are grey, marks are solid where q < .05.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from spatialprobes.pairs import CATEGORIES, GROUPS
from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {  # of consistency and alignment: name, axis
    "group": ("sign-corrected group consistency", "mean pairwise cosine"),
    "within": ("within-category consistency", "mean pairwise cosine"),
    "per_sample_mean": ("mean over quads", "cosine of the differences"),
    "mean_delta_alignment": ("of the mean differences", "cosine of the differences"),
    "between_pictures": ("between pictures", "cosine of the differences"),
}
LIMIT = 1.03  # of the axis: cosines and shares; a null may reach further where nothing is known of a cosine
MEMBERS = ("original", "swapped", "both")


def consistency(frame: pd.DataFrame, *, measure: str = "group", variant: str = "all", width: str = "two") -> Figure:
    """Consistency by layer, one panel a group (measure "group") or category ("within"), bands are 95% intervals.

    Columns: layer (0, 1, ... or "norm"), variant, measure, of (group or category), control ("none", "shuffled", "blank",
    "mismatched"), estimate (mean pairwise cosine), low, high, n (pairs). Optional: q (marks are solid below .05), reliable
    (False: said in the title). NaN estimates are gaps, counted in the legend. Raises ValueError for a missing column, a
    measure, variant or control that is not there, or a row that stands twice.
    """
    plot = "swap.consistency"
    need(frame, ("layer", "variant", "measure", "of", "control", "estimate", "low", "high", "n"), plot)
    rows = looks.pick(frame, plot, measure=measure, variant=variant)
    names = looks.known(rows, plot, "of", looks.ORDER)
    looks.once(rows, plot, ("of", "control", "layer"))
    titles = {}
    for name in names:
        own = rows[(rows["of"] == name) & (rows["control"] == "none")]
        titles[name] = looks.sized(f"{name}{', unreliable' if looks.doubted(own).any() else ''}", own)
    look = {name: looks.LOOKS[name] for name in names}
    label = MEASURES.get(measure, ("", measure))[1]
    return _by_layer(rows.assign(panel=rows["of"]), plot, look, titles, label, width)[0].figure


def alignment(
    frame: pd.DataFrame,
    *,
    measure: str | None = None,
    definition: str = "corrected",
    variant: str = "all",
    width: str = "two",
) -> Figure:
    """Alignment of vertical with distance differences by layer, one panel a measure (None: each), bands are 95% intervals.

    Columns: layer, variant, measure ("per_sample_mean", "mean_delta_alignment"), definition ("corrected", "as_published"),
    control, estimate (cosine), low, high, n (quads). Optional: q. NaN estimates are gaps, counted in the legend. Raises
    ValueError for a missing column, a value that is not there, or a row that stands twice.
    """
    plot = "swap.alignment"
    need(frame, ("layer", "variant", "measure", "definition", "control", "estimate", "low", "high", "n"), plot)
    rows = looks.pick(frame, plot, variant=variant, definition=definition, **({} if measure is None else {"measure": measure}))
    looks.once(rows, plot, ("measure", "control", "layer"))
    names = list(dict.fromkeys(rows["measure"]))
    titles = {}
    for name in names:
        own = rows[(rows["measure"] == name) & (rows["control"] == "none")]
        titles[name] = looks.sized(MEASURES.get(name, (name,))[0], own)
    look = dict.fromkeys(names, ("#000000", "o"))
    label = "cosine, vertical × distance"
    return _by_layer(rows.assign(panel=rows["measure"]), plot, look, titles, label, width)[0].figure


def probe(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Accuracy of a linear probe by layer, one panel a group, with shuffled labels and chance; bands are 95% intervals.

    Columns: layer, group, control ("none", "shuffled"), estimate (share), low, high, chance (NaN where unknown), n (pairs).
    Optional: q (marks are solid below .05). Raises ValueError for a missing column or a row that stands twice.
    """
    plot = "swap.probe"
    need(frame, ("layer", "group", "control", "estimate", "low", "high", "chance", "n"), plot)
    looks.once(frame, plot, ("group", "control", "layer"))
    names = looks.known(frame, plot, "group", GROUPS)
    titles = {name: looks.sized(name, frame[(frame["group"] == name) & (frame["control"] == "none")]) for name in names}
    look = {name: looks.LOOKS[name] for name in names}
    axes = _by_layer(frame.assign(panel=frame["group"]), plot, look, titles, "accuracy of the probe (share)", width)
    for ax in axes:
        ax.set_ylim(-0.02, 1.02)
    return axes[0].figure


def _by_layer(
    rows: pd.DataFrame, plot: str, look: dict[str, looks.Look], titles: dict[str, str], label: str, width: str
) -> list[Axes]:
    """Panels over the layers, what is measured in the panel's colour and its controls in grey, one range of values."""
    looks.known(rows, plot, "control", ("none", *looks.CONTROLS))
    rows = looks.judged(rows)
    layers = looks.ordered_layers(rows["layer"], plot)
    across = 1 if width == "one" else 3
    figure = new_figure(width, 0.75 + 1.75 * -(-len(look) // across))
    axes = panels(figure, len(look), across, sharey=True)
    for ax, (name, (tint, mark)) in zip(axes, look.items(), strict=True):
        part = rows[rows["panel"] == name]
        looks.controls(ax, part, layers)
        looks.by_layer(ax, part[part["control"] == "none"], tint, layers, mark=mark, size=looks.mark_size(layers))
        if "chance" in part.columns:
            for level in part["chance"].dropna().unique():
                ax.axhline(level, color="black", linewidth=0.8, linestyle=(0, (5, 2, 1, 2)))
        looks.layer_axis(ax, layers)
        looks.none_here(ax, part)
        ax.set_title(titles[name], parse_math=False)
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(max(low, -LIMIT), min(high, LIMIT))
    for ax in axes[::across]:
        ax.set_ylabel(label)
    handles = [looks.handle(f"measured, {looks.measured_with(rows)}", "black", "o"), *looks.control_handles(rows)]
    if "chance" in rows.columns and rows["chance"].notna().any():
        handles.append(looks.handle("chance", "black", dashes=(0, (5, 2, 1, 2)), linewidth=0.8))
    handles += [*looks.significance_handles(rows[rows["control"] == "none"]), *looks.gap_handles(rows)]
    looks.legend(figure, handles)
    return axes


# --- answers ---


def accuracy(frame: pd.DataFrame, *, by: str = "generate", width: str = "two") -> Figure:
    """Share of right answers per category and whole group: to the original question, the swapped one, and to both.

    Columns: group, category ("" for the whole group), member ("original", "swapped", "both"), by, estimate, low, high
    (shares), chance (NaN where unknown), n (pairs), unparsed (share of answers that could not be read). Optional: reliable
    (False: hatched). A NaN estimate has no bar but a cross. Raises ValueError for a missing column, a `by` that is not there,
    or a row that stands twice.
    """
    plot = "swap.accuracy"
    need(frame, ("group", "category", "member", "by", "estimate", "low", "high", "chance", "n", "unparsed"), plot)
    rows = looks.once(looks.pick(frame, plot, by=by), plot, ("group", "category", "member"))
    rows = rows.assign(doubted=looks.doubted(rows))
    groups = looks.known(rows, plot, "group", GROUPS)
    looks.known(rows, plot, "category", ("", *CATEGORIES))
    looks.known(rows, plot, "member", MEMBERS)
    ax = new_figure(width, 3.0 if width == "two" else 4.2).subplots()
    ticks, left = {}, 0.0
    for group in groups:
        for category in ("", *GROUPS[group]):
            part = rows[(rows["group"] == group) & (rows["category"] == category)]
            if len(part):
                tint = looks.LOOKS[category][0] if category else GREY
                for row in part.itertuples():
                    _bar(ax, row, left + 0.27 * (MEMBERS.index(row.member) - 1), tint)
                words = [category or f"all {group}", f"n = {looks.counts(part['n'])}", _unparsed(part)]
                ticks[left] = ("\n" if width == "two" else ", ").join(filter(None, words))
                left += 1
        left += 0.5
    ax.set_xticks(list(ticks), list(ticks.values()), fontsize=6.5, rotation=0 if width == "two" else 90)
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel(f"share right ({looks.measured_with(rows)})")
    ax.grid(axis="y")
    handles = [
        Patch(facecolor=GREY, edgecolor=GREY, label="original question"),
        Patch(facecolor="#B5B5B5", edgecolor=GREY, label="swapped question"),
        Patch(facecolor="white", edgecolor=GREY, label="both"),
    ]
    if rows["chance"].notna().any():
        handles.append(looks.handle("chance", "black", dashes=(0, (2, 1)), linewidth=1.1))
    if rows["doubted"].any():
        handles.append(Patch(facecolor="white", edgecolor="black", hatch="/////", label="not reliable"))
    if rows["estimate"].isna().any():
        handles.append(looks.handle("no estimate", GREY, "x", "none"))
    looks.legend(ax.figure, handles)
    return ax.figure


def _bar(ax: Axes, row, x: float, tint: str) -> None:
    if np.isnan(row.estimate):
        ax.plot([x], [0.02], "x", color=GREY, markersize=4)
        return
    face = {"original": tint, "swapped": _paler(tint), "both": "white"}[row.member]
    hatch = "/////" if row.doubted else None
    ax.bar([x], [row.estimate], 0.25, facecolor=face, edgecolor=tint if hatch is None else "#333333", hatch=hatch, linewidth=0.8)
    ax.vlines([x] * 2, [row.low] * 2, [row.high] * 2, color=["white", "black"], linewidth=[2.2, 0.9])  # seen on dark bars too
    if not np.isnan(row.chance):
        look = {"color": ["white", "black"], "linewidth": [1.9, 1.1], "linestyle": ["-", (0, (2, 1))]}
        ax.hlines([row.chance] * 2, [x - 0.125] * 2, [x + 0.125] * 2, **look)


def _paler(tint: str) -> tuple[float, float, float]:
    """Half way to white."""
    return tuple((int(tint[i : i + 2], 16) / 255 + 1) / 2 for i in (1, 3, 5))


def _unparsed(part: pd.DataFrame) -> str:
    share = part.loc[part["member"] == "both", "unparsed"]
    worst = (share if len(share) else part["unparsed"]).max()
    return "" if pd.isna(worst) else f"{100 * worst:.0f}% unread" if worst >= 0.005 or worst == 0 else "<1% unread"
