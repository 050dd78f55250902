"""Figures of the causal test of swap pairs: what adding or removing a group's direction does to the answer.

Drawn from the summary of `probes/swap_causal.py`. What is done to the direction has its own colour; controls are grey.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatialprobes.pairs import GROUPS
from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("layer", "group", "kind", "strength", "measure", "estimate", "low", "high", "n")
KINDS: dict[str, tuple[str, str, Any, str]] = {  # colour, mark, dashes, what it is
    "toward": ("#B03A8C", "D", "-", "toward the opposite answer"),
    "against": ("#000000", "o", "-", "away from the opposite answer"),
    "remove": ("#7A7A00", "s", "-", "direction removed"),
    "random": ("#8A8A8A", "", (0, (1, 1.2)), "random, equal norm"),
    "other_group": ("#8A8A8A", "", (0, (4, 1.5)), "another group's direction"),
}
BANDS = {"toward": 0.2, "against": 0.12, "remove": 0.2, "random": 0.1, "other_group": 0.1}  # how dense, as they overlap
MEASURES = {"flip_rate": "right answers flipped (share)", "change": "change of logit(expected) − logit(opposite)"}


def curves(frame: pd.DataFrame, *, measure: str = "flip_rate", strength: float | None = None, width: str = "two") -> Figure:
    """Effect by layer, a panel a group and a line a kind; bands are 95% intervals.

    Columns: layer, group, kind ("toward", "against", "remove", "random", "other_group"), strength, measure ("flip_rate",
    "change" of the logit difference), estimate, low, high, n (pair members). strength: one that the table has; None: the one
    nearest 1. A kind of one strength only, or of none (NaN), is drawn whatever the strength. Raises ValueError for a missing
    column, a kind, measure or strength that is not there, or a row that stands twice.
    """
    plot = "swap_causal.curves"
    need(frame, COLUMNS, plot)
    rows = looks.pick(frame, plot, measure=measure)
    kinds, groups = looks.known(rows, plot, "kind", KINDS), looks.known(rows, plot, "group", GROUPS)
    rows, strength = _of_strength(rows, plot, strength)
    looks.once(rows, plot, ("group", "kind", "layer"))
    layers = looks.ordered_layers(rows["layer"], plot)
    figure, axes = _figure(groups, width)
    for ax, group in zip(axes, groups, strict=True):
        part = rows[rows["group"] == group]
        for kind in reversed(kinds):
            if len(own := part[part["kind"] == kind]):
                tint, mark, dashes, _ = KINDS[kind]
                own = own.drop(columns="q", errors="ignore")
                looks.by_layer(ax, own, tint, layers, mark=mark, dashes=dashes, size=looks.mark_size(layers), band=BANDS[kind])
        looks.layer_axis(ax, layers)
        looks.none_here(ax, part)
        ax.set_title(looks.sized(group, part))
    _finish(figure, axes, rows, measure, kinds, width, [] if strength is None else [f"strength {strength:g}"])
    return figure


def strengths(frame: pd.DataFrame, *, measure: str = "flip_rate", layer: int | str | None = None, width: str = "two") -> Figure:
    """Effect over strength at one layer, a panel a group and a line a kind; bands are 95% intervals.

    Columns as for `curves`. layer: None for the middle one of those measured. A kind without a strength (NaN) is a level line.
    Raises ValueError for a missing column, a kind, measure or layer that is not there, or a row that stands twice.
    """
    plot = "swap_causal.strengths"
    need(frame, COLUMNS, plot)
    rows = looks.pick(frame, plot, measure=measure)
    kinds, groups = looks.known(rows, plot, "kind", KINDS), looks.known(rows, plot, "group", GROUPS)
    there = looks.ordered_layers(rows["layer"], plot)
    chosen = looks.chosen_layers(rows, plot, there[len(there) // 2] if layer is None else layer, 1)
    if len(chosen) > 1:
        raise ValueError(f"{plot} draws one layer, not {', '.join(chosen)}")
    rows = looks.once(rows[rows["layer"].map(looks.layer_text) == chosen[0]], plot, ("group", "kind", "strength"))
    figure, axes = _figure(groups, width)
    for ax, group in zip(axes, groups, strict=True):
        part = rows[rows["group"] == group]
        for kind in reversed(kinds):
            _over_strength(ax, part[part["kind"] == kind], kind)
        ax.axhline(0, color=GREY, linewidth=0.7)
        ax.grid(axis="y")
        if (some := np.unique(rows["strength"].dropna())).size:
            ax.set_xticks(some if some.size <= 6 else some[:: -(-some.size // 6)])
            ax.xaxis.set_major_formatter("{x:g}")
        ax.set_xlabel("strength (× mean difference)")
        looks.none_here(ax, part)
        ax.set_title(looks.sized(group, part))
    _finish(figure, axes, rows, measure, kinds, width, [looks.layer_name(chosen[0])])
    return figure


def _over_strength(ax: Axes, own: pd.DataFrame, kind: str) -> None:
    tint, mark, dashes, _ = KINDS[kind]
    level = own[own["strength"].isna()]
    for row in level.dropna(subset="estimate").itertuples():
        ax.axhspan(row.low, row.high, color=tint, alpha=BANDS[kind], linewidth=0)
        ax.axhline(row.estimate, color=tint, linestyle=dashes)
    own = own.dropna(subset="strength").sort_values("strength")
    if len(own):
        looks.line(ax, own["strength"].to_numpy(float), own, tint, mark=mark, dashes=dashes, band=BANDS[kind])


def _of_strength(rows: pd.DataFrame, plot: str, strength: float | None) -> tuple[pd.DataFrame, float | None]:
    """The rows of one strength, with the kinds that have but one or none; and that strength."""
    there = np.unique(rows["strength"].dropna().to_numpy(float))
    if strength is None:
        strength = float(there[np.abs(there - 1).argmin()]) if there.size else None
    elif not np.isclose(there, strength).any():
        raise ValueError(f"{plot}: no rows with strength {strength:g}; there: {', '.join(f'{one:g}' for one in there)}")
    several = rows.groupby("kind")["strength"].transform("nunique") > 1
    at = np.isclose(rows["strength"].to_numpy(float), np.nan if strength is None else strength)
    return rows[at | ~several], strength


def _figure(groups: list[str], width: str) -> tuple[Figure, list[Axes]]:
    across = 1 if width == "one" else 3
    figure = new_figure(width, 0.95 + 1.8 * -(-len(groups) // across))
    return figure, panels(figure, len(groups), across, sharey=True)


def _finish(
    figure: Figure, axes: list[Axes], rows: pd.DataFrame, measure: str, kinds: list[str], width: str, notes: list[str]
) -> None:
    """Axis of values and legend."""
    label = MEASURES.get(measure, measure)
    for ax in axes[:: 1 if width == "one" else 3]:
        ax.set_ylabel(label.replace("of logit", "of\nlogit"))
    if measure == "flip_rate":
        axes[0].set_ylim(-0.04, 1.04)
    handles = [looks.handle(KINDS[kind][3], *KINDS[kind][:3]) for kind in kinds]
    handles += [looks.handle(note, dashes="none") for note in notes]
    looks.legend(figure, [*handles, *looks.gap_handles(rows)])
