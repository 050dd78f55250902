"""Figure of heads that are taken out: does the found set matter more than random heads of the same layers?

Drawn from the summary of `probes/head_ablation.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.patches import Patch

from spatialprobes.plots import CYCLE, GREY, need, new_figure
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.head_looks import plain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NONE = "none"
HOWS = ("mean", "zero")
HATCHES = {"mean": "", "zero": "////"}
WORDS = {"mean": "output set to its mean", "zero": "output set to 0"}
FOUND, RANDOM = CYCLE[1], "#B5B5B5"
VALUES = {  # what is drawn: its interval, its p, and its label
    "drop": ("drop_low", "drop_high", "p", "accuracy lost (share of questions, 95% interval)"),
    "accuracy": ("low", "high", "p", "accuracy (share of questions, 95% interval)"),
    "change": ("change_low", "change_high", "p_change", "change of the answer's margin (nats, 95% interval)"),
}
WHOLE = (0, (5, 2, 1, 2))


def bars(frame: pd.DataFrame, *, value: str = "drop", width: str = "two") -> Figure:
    """What is lost when heads are taken out: a line a set, bars for the found heads and for random ones, mean and zero.

    Columns: heads (the set; "none" is the whole model), how ("mean", "zero"), accuracy, random (accuracy without random heads
    of the same layers, mean over the draws; NaN for none), n (questions), and the one called `value` ("drop" or "accuracy",
    shares, or "change" of the margin, beside random_change) with its interval (drop_low, drop_high; low, high; change_low,
    change_high). Optional: p (p_change), of the found set against the random ones: an asterisk below .05. Raises ValueError for
    a missing column, an unknown value or how, a table without a set or without the whole model, or a row that stands twice.
    """
    plot = "ablation.bars"
    if value not in VALUES:
        raise ValueError(f"{plot}: value {value!r} is not one of {', '.join(VALUES)}")
    low, high, tested, label = VALUES[value]
    need(frame, ("heads", "how", "accuracy", "random", value, low, high, "n"), plot)
    frame = looks.once(plain(frame), plot, ("heads", "how"))
    whole, rows = frame[frame["heads"] == NONE], frame[frame["heads"] != NONE]
    if whole.empty or rows.empty:
        raise ValueError(f"{plot}: the table has no row of {'the whole model' if whole.empty else 'a set of heads'}")
    hows = looks.known(rows, plot, "how", HOWS)
    rows = rows.assign(_random=_of_random(rows, value, float(whole["accuracy"].iloc[0]), plot))
    names = list(dict.fromkeys(rows["heads"]))
    ax = new_figure(width, 0.8 + len(names) * (0.2 + 0.34 * len(hows))).subplots()
    thick = 0.8 / (2 * len(hows))
    for row in rows.to_dict("records"):
        at = names.index(row["heads"]) - 0.4 + thick * (2 * hows.index(row["how"]) + 0.5)
        look = {"height": 0.92 * thick, "hatch": HATCHES[row["how"]], "edgecolor": "white", "linewidth": 0.5}
        ax.barh(at, row[value], color=FOUND, **look)
        ax.barh(at + thick, row["_random"], color=RANDOM, **look)
        ax.hlines(at, row[low], row[high], color="black", linewidth=1.0)
        if row.get(tested, 1.0) < looks.SIGNIFICANT:
            _asterisk(ax, at, min(0.0, row[value], row[low]) if value == "change" else max(row[value], row[high]))
    if value == "accuracy":
        ax.axvline(whole["accuracy"].iloc[0], color="black", linewidth=0.9, linestyle=WHOLE)
    ax.axvline(0, color=GREY, linewidth=0.7)
    ax.margins(x=0.06)
    labels = [f"{name}  (n = {looks.counts(rows.loc[rows['heads'] == name, 'n'])})" for name in names]
    ax.set_yticks(range(len(names)), labels, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel(label if width == "two" else label.replace(" (", "\n("))
    looks.legend(ax.figure, _handles(rows, hows, value, tested), most=3)
    return ax.figure


def _of_random(rows: pd.DataFrame, value: str, whole: float, plot: str) -> pd.Series:
    """The same value of the random sets."""
    if value == "change":
        need(rows, ("random_change",), plot)
        return rows["random_change"]
    return rows["random"] if value == "accuracy" else whole - rows["random"]


def _asterisk(ax: Axes, y: float, end: float) -> None:
    ax.annotate("*", (end, y), (-4 if end < 0 else 4, -2.5), textcoords="offset points", ha="center", va="center", fontsize=9)


def _handles(rows: pd.DataFrame, hows: list[str], value: str, tested: str) -> list[Artist]:
    handles: list[Artist] = [Patch(facecolor=FOUND, label="found heads")]
    if rows["_random"].notna().any():
        draws = f", mean of {looks.counts(rows['draws'])} draws" if "draws" in rows.columns else ""
        handles.append(Patch(facecolor=RANDOM, label=f"random heads of the same layers{draws}"))
    if len(hows) > 1:
        handles += [Patch(facecolor="#777777", edgecolor="white", hatch=HATCHES[how], label=WORDS[how]) for how in hows]
    if value == "accuracy":
        handles.append(looks.handle("all heads", "black", dashes=WHOLE, linewidth=0.9))
    if tested in rows.columns and rows[tested].notna().any():
        handles.append(looks.handle("p < .05 against random heads", "black", "$*$", "none"))
    return handles
