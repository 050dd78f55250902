"""Figures of captions by arm: their scores, and what a picture's drop has to do with what was done to its features.

Drawn from the tables of `probes/caption_summary.py`. A drop is the original's score minus the changed one's: above 0 is worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.caption_looks import ARMS, count_text, in_order, models_of, score_label, tints, with_empties

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 5000


def scores(
    frame: pd.DataFrame,
    *,
    value: str | Sequence[str] = "clipscore_100",
    empties: str = "as 0",
    chance: float | None = None,
    width: str = "two",
) -> Figure:
    """Mean scores by arm with 95% intervals: a line an arm, a mark a model, a panel a score.

    Columns: model, arm, value, empties, estimate, low, high, n, empty (`caption_summary.summary`). value: one or several of the
    table's. empties: whether an empty caption counts "as 0" or is "left out". chance: a dotted line. Dashed, in a model's
    colour: its live captions. Raises ValueError for a missing column, a value that is not there, or an arm that stands twice.
    """
    plot = "captions.scores"
    need(frame, ("model", "arm", "value", "empties", "estimate", "low", "high", "n", "empty"), plot)
    wanted = [value] if isinstance(value, str) else list(value)
    rows = with_empties(frame, plot, empties)
    for one in wanted:
        looks.pick(rows, plot, value=one)
    rows = looks.once(rows[rows["value"].isin(wanted)], plot, ("model", "arm", "value"))
    arms, models = in_order(rows["arm"], ARMS), models_of(rows)
    look = tints(models)
    across = 1 if width == "one" else min(2, len(wanted))
    figure = new_figure(width, 0.5 + -(-len(wanted) // across) * (0.55 + 0.13 * len(arms) * (1 + len(models))))
    step = 0.7 / len(models)
    axes = panels(figure, len(wanted), across, sharey=True)
    for ax, one in zip(axes, wanted, strict=True):
        for i, model in enumerate(models):
            own = rows[(rows["value"] == one) & (rows["model"] == model)].set_index("arm").reindex(arms)
            y = np.arange(len(arms)) + step * (i - (len(models) - 1) / 2)
            tint, mark = look[model]
            if "live" in arms and np.isfinite(own.loc["live", "estimate"]):
                ax.axvline(own.loc["live", "estimate"], color=tint, linewidth=0.7, linestyle=(0, (4, 2)), alpha=0.7)
            ax.hlines(y, own["low"], own["high"], color=tint, linewidth=1.3)
            ax.plot(own["estimate"], y, mark, color=tint)
        if chance is not None:
            ax.axvline(chance, color="black", linewidth=0.9, linestyle=(0, (1, 1.2)))
        _arm_axis(ax, arms)
        ax.set_xlabel(score_label(one))
    handles = [looks.handle(_named(model, rows), *look[model], dashes="none") for model in models]
    handles.append(looks.handle("live", GREY, dashes=(0, (4, 2)), linewidth=0.7))
    if chance is not None:
        handles.append(looks.handle("chance", "black", dashes=(0, (1, 1.2)), linewidth=0.9))
    looks.legend(figure, handles, title=f"mean with 95% interval; empty captions {'count 0' if empties == 'as 0' else empties}")
    return figure


def drops(
    frame: pd.DataFrame,
    *,
    x: str = "reproj_cosine",
    y: str = "clipscore_100_drop",
    arm: str | None = "reconstructed",
    width: str = "two",
) -> Figure:
    """Each picture's drop against what was done to it, with the line of least squares, r and n: a panel a model.

    Columns: model, x, y, and arm, unless arm is None (`caption_summary.drops`). Rows without either value are left out and
    counted. Of more than MOST_POINTS pictures every so manieth is drawn; line, r and n are of all. Solid: y = 0, no change.
    Raises ValueError for a missing column, an arm that is not there, or fewer than 3 pictures of a model.
    """
    plot = "captions.drops"
    need(frame, ("model", x, y, *(("arm",) if arm is not None else ())), plot)
    rows = frame if arm is None else looks.pick(frame, plot, arm=arm)
    models = models_of(rows)
    look = tints(models)
    across = 1 if width == "one" else min(2, len(models))
    figure = new_figure(width, 0.3 + 2.5 * -(-len(models) // across))
    for ax, model in zip(panels(figure, len(models), across), models, strict=True):
        own = rows[rows["model"] == model]
        used = own.dropna(subset=[x, y])
        if len(used) < 3:
            raise ValueError(f"{plot}: {len(used)} pictures of {model!r} have both {x} and {y}; 3 at least make a line")
        across_, down = (used[name].to_numpy(float) for name in (x, y))
        every = -(-len(used) // MOST_POINTS)
        ax.plot(across_[::every], down[::every], "o", color=look[model][0], markersize=2.6, alpha=0.45, markeredgewidth=0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set_title(f"{model}\n{_fit(ax, across_, down)}, n = {len(used):,}{_missing(len(own) - len(used))}", parse_math=False)
        ax.set_xlabel(score_label(x))
        ax.set_ylabel(score_label(y) + "\n(original − changed)" * y.endswith("_drop"))
        ax.grid()
    return figure


def _fit(ax: Axes, x: np.ndarray, y: np.ndarray) -> str:
    """Draws the line of least squares; says r, which two columns that do not vary have not."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return "r: none, all alike"
    slope, offset = np.polyfit(x, y, 1)
    ends = np.array([x.min(), x.max()])
    ax.plot(ends, offset + slope * ends, color="black", linewidth=1.2)
    return f"r = {np.corrcoef(x, y)[0, 1]:.2f}".replace("-", "−")


def _missing(count: int) -> str:
    return f" ({count:,} without both)" if count else ""


def _arm_axis(ax: Axes, arms: Sequence[str]) -> None:
    ax.set_yticks(range(len(arms)), [ARMS.get(arm, arm) for arm in arms], parse_math=False)
    ax.set_ylim(len(arms) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.margins(x=0.08)


def _named(model: str, rows: pd.DataFrame) -> str:
    return f"{model}  ({count_text(rows[rows['model'] == model])})"
