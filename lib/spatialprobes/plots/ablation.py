"""Figure of heads that are taken out: does the found set matter more than random heads of the same layers?

Drawn from the summary of `probes/head_ablation.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from spatialprobes.plots import CYCLE, GREY, need, new_figure
from spatialprobes.plots import swap_looks as looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANDOM = "random:"
HOWS = ("mean", "zero")
HATCHES = {"mean": "", "zero": "////"}
VALUES = {"drop": "accuracy lost", "accuracy": "accuracy"}


def bars(frame: pd.DataFrame, *, value: str = "drop", width: str = "two") -> Figure:
    """Accuracy lost (or left) when heads are taken out: a line a set, bars for the found and the random heads, mean and zero.

    Columns: heads (the set's name; "random:<name>" are random heads of the same layers and count), how ("mean", "zero"), the
    one called `value` ("drop" or "accuracy", shares) and its interval (drop_low, drop_high; low, high), n (questions).
    Optional: q or p (of the found set against the random ones: an asterisk below .05), accuracy and drop, from which the
    accuracy of the whole model is drawn as a line. Raises ValueError for a missing column, an unknown value or how, random
    heads of no set, or a row that stands twice.
    """
    plot = "ablation.bars"
    if value not in VALUES:
        raise ValueError(f"{plot}: value {value!r} is not one of {', '.join(VALUES)}")
    low, high = ("drop_low", "drop_high") if value == "drop" else ("low", "high")
    need(frame, ("heads", "how", value, low, high, "n"), plot)
    hows = looks.known(frame, plot, "how", HOWS)
    rows = looks.once(frame, plot, ("heads", "how"))
    sets = list(map(str, dict.fromkeys(rows["heads"])))
    names = [name for name in sets if not name.startswith(RANDOM)]
    if alone := [name for name in sets if name.startswith(RANDOM) and name.removeprefix(RANDOM) not in names]:
        raise ValueError(f"{plot}: {alone[0]!r} belongs to no set of the table; there: {', '.join(names)}")
    ax = new_figure(width, 0.8 + len(names) * (0.2 + 0.34 * len(hows))).subplots()
    thick = 0.8 / (2 * len(hows))
    tested = next((column for column in ("q", "p") if column in rows.columns and rows[column].notna().any()), None)
    for y, name in enumerate(names):
        for i, how in enumerate(hows):
            for j, (one, tint) in enumerate(((name, CYCLE[1]), (f"{RANDOM}{name}", "#B5B5B5"))):
                at = y - 0.4 + thick * (2 * i + j + 0.5)
                for row in rows[(rows["heads"] == one) & (rows["how"] == how)].to_dict("records"):
                    look = {"color": tint, "hatch": HATCHES[how], "edgecolor": "white", "linewidth": 0.5}
                    ax.barh(at, row[value], height=0.92 * thick, **look)
                    ax.hlines(at, row[low], row[high], color="black", linewidth=1.0)
                    if tested and not j and row[tested] < looks.SIGNIFICANT:
                        end = max(0.0, row[value], row[high])
                        ax.annotate("*", (end, at), (3, -2.5), textcoords="offset points", va="center", fontsize=9)
    if value == "accuracy" and "drop" in rows.columns:
        for whole in np.unique((rows["accuracy"] + rows["drop"]).dropna().round(9)):
            ax.axvline(whole, color="black", linewidth=0.9, linestyle=(0, (5, 2, 1, 2)))
    ax.axvline(0, color=GREY, linewidth=0.7)
    ax.margins(x=0.06)
    labels = [f"{name}  (n = {looks.counts(rows.loc[rows['heads'] == name, 'n'])})" for name in names]
    ax.set_yticks(range(len(names)), labels, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    ax.set_xlabel(f"{VALUES[value]} (share of questions, 95% interval)")
    _legend(ax.figure, rows, hows, value, tested)
    return ax.figure


def _legend(figure: Figure, rows: pd.DataFrame, hows: list[str], value: str, tested: str | None) -> None:
    handles = [Patch(facecolor=CYCLE[1], label="found heads")]
    if rows["heads"].astype(str).str.startswith(RANDOM).any():
        handles.append(Patch(facecolor="#B5B5B5", label="random heads of the same layers"))
    if len(hows) > 1:
        words = {"mean": "output set to its mean", "zero": "output set to 0"}
        handles += [Patch(facecolor="#777777", edgecolor="white", hatch=HATCHES[how], label=words[how]) for how in hows]
    if value == "accuracy" and "drop" in rows.columns:
        handles.append(looks.handle("all heads", "black", dashes=(0, (5, 2, 1, 2)), linewidth=0.9))
    if tested:
        handles.append(looks.handle(f"{tested} < .05 against random heads", "black", "$*$", "none"))
    looks.legend(figure, handles, most=3)
