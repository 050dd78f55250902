"""Figures of what predicts a caption's drop: correlations raw and partial, and pooled over models against within them.

Drawn from the tables of `probes/caption_prediction.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.caption_looks import MARKS, PREDICTORS, in_order, models_of, score_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RAW = ""
SPAN = "#CFCFCF"
TINTS = ("#000000", CYCLE[1], CYCLE[0], CYCLE[2], CYCLE[3])
KIND = {"pearson": "Pearson's r", "spearman": "Spearman's r"}


def forest(
    frame: pd.DataFrame,
    *,
    kind: str = "pearson",
    rows: str = "deduplicated",
    outcome: str | None = None,
    width: str = "two",
) -> Figure:
    """Correlations with 95% intervals: a line a predictor and outcome, raw and partial ones below one another, a panel a model.

    Columns: model, predictor, outcome, kind, controls ("" is raw), rows, r, low, high, q, n (`caption_prediction.correlate`).
    kind, rows: which are drawn; "all" where the table has no deduplicated ones. outcome: one alone. Solid marks: q < .05.
    Raises ValueError for a missing column, a kind, set of rows or outcome that is not there, or a row that stands twice.
    """
    plot = "caption_prediction.forest"
    need(frame, ("model", "predictor", "outcome", "kind", "controls", "rows", "r", "low", "high", "q", "n"), plot)
    if rows == "deduplicated" and set(frame["rows"]) == {"all"}:
        rows = "all"
    own = looks.pick(frame, plot, kind=kind, rows=rows, **({} if outcome is None else {"outcome": outcome}))
    own = looks.once(own, plot, ("model", "predictor", "outcome", "controls"))
    pairs = list(dict.fromkeys(zip(own["predictor"], own["outcome"], strict=True)))
    models, controls = models_of(own), in_order(own["controls"], (RAW,))
    across = 1 if width == "one" else min(2, len(models))
    figure = new_figure(width, 0.4 + -(-len(models) // across) * (0.6 + len(pairs) * (0.14 + 0.13 * len(controls))))
    axes = panels(figure, len(models), across, sharex=True, sharey=True)
    step = 0.72 / len(controls)
    for ax, model in zip(axes, models, strict=True):
        part = own[own["model"] == model]
        for i, control in enumerate(controls):
            found = part[part["controls"] == control].set_index(["predictor", "outcome"]).reindex(pairs)
            y = np.arange(len(pairs)) + step * (i - (len(controls) - 1) / 2)
            tint, mark = TINTS[i % len(TINTS)], MARKS[i % len(MARKS)]
            ax.hlines(y, found["low"], found["high"], color=tint, linewidth=1.2)
            sure = (found["q"] < looks.SIGNIFICANT).to_numpy()
            ax.plot(found["r"].where(sure), y, mark, color=tint)
            ax.plot(found["r"].where(~sure), y, mark, color=tint, markerfacecolor="white", markeredgewidth=0.9)
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_title(f"{model}  (n = {looks.counts(part['n'])})", parse_math=False)
        ax.set_yticks(range(len(pairs)), [_pair(*pair) for pair in pairs], parse_math=False)
        ax.set_ylim(len(pairs) - 0.4, -0.6)
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
    for ax in axes[-across:]:
        ax.set_xlabel(f"{KIND.get(kind, kind)} (95% interval)")
    handles = [
        looks.handle(f"holding constant: {name}" if name else "raw", TINTS[i % len(TINTS)], MARKS[i % len(MARKS)], "none")
        for i, name in enumerate(controls)
    ]
    copies = "copies of pictures left out" if rows == "deduplicated" else "all pictures"
    looks.legend(figure, [*handles, *looks.significance_handles(own)], title=copies, most=3)
    return figure


def pooled(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """The correlation pooled over models beside that within them, a line a predictor and outcome; a grey bar spans the models.

    Columns: predictor, outcome, kind, pooled, pooled_low, pooled_high, within, within_low, within_high, least, greatest,
    misleads, n, models (`caption_prediction.simpson`). An asterisk: the pooled one misleads. Raises ValueError for a missing
    column, and for a pair that stands twice.
    """
    plot = "caption_prediction.pooled"
    named = [f"{which}{end}" for which in ("pooled", "within") for end in ("", "_low", "_high")]
    need(frame, ("predictor", "outcome", "kind", *named, "least", "greatest", "misleads", "n", "models"), plot)
    rows = looks.once(frame, plot, ("predictor", "outcome", "kind")).reset_index(drop=True)
    ax = new_figure(width, 0.9 + 0.36 * len(rows)).subplots()
    y = np.arange(len(rows))
    ax.hlines(y, rows["least"], rows["greatest"], color=SPAN, linewidth=9)
    for which, tint, mark, aside in (("pooled", CYCLE[1], "s", -0.13), ("within", CYCLE[0], "o", 0.13)):
        ax.hlines(y + aside, rows[f"{which}_low"], rows[f"{which}_high"], color=tint, linewidth=1.3)
        ax.plot(rows[which], y + aside, mark, color=tint)
    for at, row in zip(y, rows.itertuples(), strict=True):
        if row.misleads:
            right = max(row.pooled_high, row.within_high, row.greatest)
            ax.annotate("*", (right, at), (6, -2.5), textcoords="offset points", ha="center", va="center", fontsize=9)
    ax.axvline(0, color=GREY, linewidth=0.8)
    kinds = rows["kind"].nunique() > 1
    labels = [_pair(row.predictor, row.outcome) + f"\n{KIND.get(row.kind, row.kind)}" * kinds for row in rows.itertuples()]
    ax.set_yticks(y, labels, parse_math=False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    label = "correlation" if kinds else KIND.get(rows["kind"].iloc[0], rows["kind"].iloc[0])
    apart = " " if width == "two" else "\n"
    ax.set_xlabel(f"{label}{apart}(95% interval; n = {looks.counts(rows['n'])})")
    handles = [looks.handle("pooled over models", CYCLE[1], "s", "none"), looks.handle("within models", CYCLE[0], "o", "none")]
    handles.append(Patch(facecolor=SPAN, label=f"from model to model ({looks.counts(rows['models'])})"))
    if rows["misleads"].any():
        handles.append(looks.handle("pooled misleads", "black", "$*$", "none"))
    looks.legend(ax.figure, handles)
    return ax.figure


def _pair(predictor: str, outcome: str) -> str:
    first = PREDICTORS.get(predictor, score_label(predictor))
    return f"{first}\n→ {score_label(outcome)}"
