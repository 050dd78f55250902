"""Figure of perturbed captions: how a score falls as more is taken from what enters the language model, on any of the axes.

Drawn from the table of `probes/perturbation.py` (`curves`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from spatialprobes.plots import GREY, WIDTHS, need, new_figure
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.caption_looks import KINDS, in_order, models_of, score_label, tints, with_empties

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = {
    "level": "level",
    "rank": "rank kept",
    "retained_energy": "energy retained (share)",
    "relative_error": "relative error ‖X − X′‖ / ‖X‖",
    "masked_share": "tokens masked (share)",
}
FAMILIES = {
    "mask": ("mask_zero", "mask_mean"),
    "low_rank": ("low_rank",),
    "low_rank_energy": ("low_rank_energy",),
    "orthogonal": ("orthogonal",),
}
LEVELS = {
    "mask": "probability of a mask",
    "low_rank": "share of the ranks kept",
    "low_rank_energy": "energy to retain (share)",
    "orthogonal": "share of QX",
}
TITLES = {
    "mask": "tokens masked",
    "low_rank": "low rank",
    "low_rank_energy": "low rank by energy",
    "orthogonal": "turned",
}
DASHES = {
    "mask_zero": "-",
    "mask_mean": (0, (4, 1.5)),
    "low_rank": (0, (6, 1.3, 1.3, 1.3)),
    "low_rank_energy": (0, (3, 1, 1, 1, 1, 1)),
    "orthogonal": (0, (1, 1.2)),
}
TICK = 0.36  # inches that a number on a log axis takes
NONE, RERUN = "none", "rerun"


def curves(
    frame: pd.DataFrame,
    *,
    x: str = "level",
    value: str = "clipscore_100_drop",
    empties: str = "as 0",
    chance: float | None = None,
    width: str = "two",
) -> Figure:
    """A score against how much was changed, with 95% intervals; below it the share of empty captions.

    Columns: model, kind, level, value, empties, estimate, low, high, n, and x, one of AXES (`perturbation.curves`); rows of the
    value "empty" are drawn below, where there are some. x "level" has a panel each for masks, ranks and turns, since a level
    is another thing in each; the other axes compare all kinds that have a value on them, in one panel. Ranks and shares of them
    are on a log axis. Thin line: the caption of the model as it is; grey band: the same run again, the noise of a run. chance: a
    dotted line. Raises ValueError for a missing column, an unknown x or kind, or a point that stands twice.
    """
    plot = "perturbation.curves"
    if x not in AXES:
        raise ValueError(f"{plot}: x {x!r} is not one of {', '.join(AXES)}")
    need(frame, ("model", "kind", "level", "value", "empties", "estimate", "low", "high", "n", x), plot)
    looks.known(frame, plot, "kind", (NONE, RERUN, *KINDS))
    looks.pick(frame, plot, value=value)
    rows = with_empties(frame, plot, empties)
    rows = looks.once(rows[rows["value"].isin([value, "empty"])], plot, ("model", "kind", "level", "value"))
    drawn = rows[~rows["kind"].isin([NONE, RERUN]) & rows[x].notna()]
    if drawn.empty:
        raise ValueError(f"{plot}: no perturbation has a value of {x}; there are {', '.join(map(str, set(rows['kind'])))}")
    groups = _groups(drawn, x)
    below = bool((drawn["value"] == "empty").any()) and value != "empty"
    figure = new_figure(width, 3.4 if below else 2.7)
    grid = figure.subplots(1 + below, len(groups), squeeze=False, sharey="row", sharex="col", height_ratios=[3, 1][: 1 + below])
    look = tints(models_of(rows))
    for column, (group, kinds) in enumerate(groups.items()):
        own = drawn[drawn["kind"].isin(kinds)]
        _panel(grid[0, column], own[own["value"] == value], x, look)
        _controls(grid[0, column], rows[rows["value"] == value], look, value, chance)
        if below:
            _panel(grid[1, column], own[own["value"] == "empty"], x, look)
            grid[1, column].set_ylim(-0.05, 1.05)
        _x_axis(grid[-1, column], own[x], x, group, (WIDTHS[width] - 0.8) / len(groups))
        if len(groups) > 1:
            grid[0, column].set_title(TITLES[group])
    grid[0, 0].set_ylabel(score_label(value) + "\n(original − changed)" * value.endswith("_drop"))
    if below:
        grid[1, 0].set_ylabel("empty\n(share)")
    looks.legend(figure, _handles(rows, drawn, look, value, chance))
    return figure


def _groups(drawn: pd.DataFrame, x: str) -> dict[str, list[str]]:
    """The panels, each with its kinds."""
    kinds = in_order(drawn["kind"], KINDS)
    if x != "level":
        return {"": kinds}
    return {name: list(own) for name, own in FAMILIES.items() if set(own) & set(kinds)}


def _panel(ax: Axes, rows: pd.DataFrame, x: str, look: dict[str, tuple[str, str]]) -> None:
    for (model, kind), own in rows.groupby(["model", "kind"], sort=False):
        own = own.sort_values(x)
        tint, mark = look[model]
        looks.line(ax, own[x].to_numpy(float), own, tint, mark=mark, dashes=DASHES[kind], band=0.15)
    ax.grid(axis="y")


def _controls(ax: Axes, rows: pd.DataFrame, look: dict[str, tuple[str, str]], value: str, chance: float | None) -> None:
    """The unchanged captions of each model, the noise of a run, and chance."""
    for row in rows[rows["kind"] == RERUN].itertuples():
        if np.isfinite([row.low, row.high]).all():
            ax.axhspan(row.low, row.high, color=GREY, alpha=0.18, linewidth=0)
    for row in rows[rows["kind"] == NONE].itertuples():
        ax.axhline(row.estimate, color=look[row.model][0], linewidth=0.8)
    if value.endswith("_drop"):
        ax.axhline(0, color=GREY, linewidth=0.8)
    if chance is not None:
        ax.axhline(chance, color="black", linewidth=0.9, linestyle=(0, (1, 1.2)))


def _x_axis(ax: Axes, x: pd.Series, name: str, group: str, inches: float) -> None:
    label = AXES[name]
    if name == "level" and group in LEVELS:
        label = LEVELS[group]
    ax.set_xlabel(label)
    positive = x[x > 0]
    if (name == "rank" or (name == "level" and group == "low_rank")) and len(positive) == len(x) and x.max() > 5 * x.min():
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_locator(FixedLocator(_apart(sorted(set(x)), (x.max() / x.min()) ** (TICK / inches))))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))


def _apart(values: list[float], factor: float) -> list[float]:
    """Those of the values, from the last down, that are at least such a factor apart: their numbers must not meet."""
    kept: list[float] = []
    for one in reversed(values):
        if not kept or kept[-1] / one >= factor:
            kept.append(one)
    return kept[::-1]


def _handles(
    rows: pd.DataFrame, drawn: pd.DataFrame, look: dict[str, tuple[str, str]], value: str, chance: float | None
) -> list[Artist]:
    own = drawn[drawn["value"] == value]
    handles: list[Artist] = [
        looks.handle(f"{model}  (n = {looks.counts(own.loc[own['model'] == model, 'n'])})", *look[model])
        for model in models_of(own)
    ]
    kinds = in_order(drawn["kind"], KINDS)
    if len(kinds) > 1:
        handles += [looks.handle(KINDS[kind], GREY, dashes=DASHES[kind]) for kind in kinds]
    if (rows["kind"] == NONE).any():
        handles.append(looks.handle("unchanged", GREY, linewidth=0.8))
    if (rows["kind"] == RERUN).any():
        handles.append(Patch(facecolor=GREY, alpha=0.18, label="run again (95% interval)"))
    if chance is not None:
        handles.append(looks.handle("chance", "black", dashes=(0, (1, 1.2)), linewidth=0.9))
    return handles
