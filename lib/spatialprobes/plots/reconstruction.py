"""Figures of reconstruction: how much of what entered a connector is read back, against baselines, picture by picture."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READERS = {  # colour, marker, words
    "reconstructor": (CYCLE[0], "o", "reconstructor"),
    "linear": (CYCLE[1], "^", "linear (ridge)"),
    "mean": (GREY, "x", "training mean"),
}
PARTS = {  # words, line of a histogram
    "train": ("trained on", "--"),
    "validation": ("held out, chose the weights", "-"),
    "new": ("new", ":"),
}
MEASURES = {
    "r2": "variance explained, R² (standardised dimensions)",
    "mse": "error (standardised; 1 = the training mean)",
    "cosine": "cosine (raw, mean over tokens)",
    "reproj_cosine": "cosine of p(read back) with the stored tokens",
    "reproj_mse": "squared error of p(read back), the model's own units",
}
BINS = 24


def scores(frame: pd.DataFrame, *, measure: str = "r2", width: str = "two") -> Figure:
    """Mean of a measure with its interval, a row for each model and part, the reconstructor beside its baselines.

    Columns: model, part ("train", "validation", "new" or other words), by ("reconstructor", "linear", "mean"), measure, value,
    low, high, n. measure: "r2", "mse" or "cosine". Raises ValueError for a missing column, a measure without rows, and a row that
    stands twice.
    """
    need(frame, ("model", "part", "by", "measure", "value", "low", "high", "n"), "reconstruction.scores")
    shown = frame[frame["measure"] == measure]
    if shown.empty:
        raise ValueError(f"reconstruction.scores: no rows of measure {measure!r}; there: {', '.join(frame['measure'].unique())}")
    if (twice := shown.duplicated(["model", "part", "by"])).any():
        row = shown[twice].iloc[0]
        raise ValueError(f"reconstruction.scores: {row['by']!r} of {row['model']!r}, {row['part']!r}, stands twice")
    rows = list(dict.fromkeys(zip(shown["model"], shown["part"], strict=True)))
    models = list(dict.fromkeys(model for model, _ in rows))
    rows = [row for model in models for row in rows if row[0] == model]
    heights = {row: place + 1.3 * models.index(row[0]) for place, row in enumerate(rows)}
    figure = new_figure(width, 0.95 + 0.27 * (max(heights.values()) + 1))
    ax = figure.subplots()
    readers = [by for by in READERS if by in set(shown["by"])]
    for place, by in enumerate(readers):
        tint, marker, label = READERS[by]
        of = shown[shown["by"] == by]
        y = np.array([heights[row] for row in zip(of["model"], of["part"], strict=True)])
        y += 0.22 * (place - (len(readers) - 1) / 2)
        ax.hlines(y, of["low"], of["high"], color=tint, linewidth=1.1)
        ax.plot(of["value"], y, linestyle="none", marker=marker, color=tint, label=label)
    sizes = shown.groupby(["model", "part"], sort=False)["n"].max()
    names = {heights[row]: f"{_part(row[1])} (n = {sizes[row]:,})" for row in rows}
    heads = {min(heights[row] for row in rows if row[0] == model) - 0.9: str(model) for model in models if model}
    ax.set_yticks([*names, *heads], [*names.values(), *heads.values()], parse_math=False)
    for label in ax.get_yticklabels()[len(names) :]:
        label.set_fontweight("bold")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(max(heights.values()) + 0.6, min([*heads, 0]) - 0.4)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(f"{MEASURES.get(measure, measure)},\nmean over pictures, 95% interval")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=len(readers))
    return figure


def distributions(frame: pd.DataFrame, *, measure: str = "r2", width: str = "two") -> Figure:
    """How a measure is spread over pictures, a panel for each model, an outline for each part, medians marked.

    Columns: model, part, and the measure's: of `reconstruction.evaluate` or `agreement`, or another with numbers. Each outline
    has the same area. Raises ValueError for a missing column and a measure that is nowhere finite.
    """
    need(frame, ("model", "part", measure), "reconstruction.distributions")
    finite = frame[np.isfinite(frame[measure].to_numpy(float))]
    if finite.empty:
        raise ValueError(f"reconstruction.distributions: {measure!r} is nowhere a finite number")
    models = list(dict.fromkeys(finite["model"]))
    parts = list(dict.fromkeys(part for part in [*PARTS, *finite["part"]] if part in set(finite["part"])))
    across = min(3, len(models))
    figure = new_figure(width, 0.9 + 1.75 * -(-len(models) // across))
    axes = panels(figure, len(models), across)
    for ax, model in zip(axes, models, strict=True):
        _spread(ax, finite[finite["model"] == model], measure, parts, 84 // across)
        ax.set_xlabel(textwrap.fill(MEASURES.get(measure, measure), 90 // across))
    for ax in axes[::across]:
        ax.set_ylabel("pictures (density)")
    handles = [axes[0].plot([], [], color=CYCLE[i % len(CYCLE)], linestyle=_line(part))[0] for i, part in enumerate(parts)]
    legend = figure.legend(handles, [_part(part) for part in parts], loc="outside upper center", ncols=len(parts))
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def _spread(ax: Axes, rows: pd.DataFrame, measure: str, parts: list[str], letters: int) -> None:
    low, high = rows[measure].min(), rows[measure].max()
    room = 0.02 * (high - low) or 0.02 * max(abs(high), 1e-6)
    edges = np.linspace(low - room, high + room, BINS + 1)
    medians = []
    for place, part in enumerate(parts):
        values = rows.loc[rows["part"] == part, measure].to_numpy(float)
        if len(values):
            look = {"color": CYCLE[place % len(CYCLE)], "linestyle": _line(part)}
            ax.hist(values, edges, density=True, histtype="step", linewidth=1.3, **look)
            ax.axvline(np.median(values), linewidth=0.8, **look)
            medians.append(f"{np.median(values):.3g}")
    ax.set_title(f"{textwrap.fill(str(rows['model'].iloc[0]), letters)}\nmedians {', '.join(medians)}", parse_math=False)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)


def _line(part: str) -> str:
    return PARTS.get(part, (part, "-"))[1]


def _part(part: str) -> str:
    return PARTS.get(part, (part, ""))[0]
