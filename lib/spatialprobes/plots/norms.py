"""Figures of the norms probe: how long vision and text vectors are where they enter the language model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from spatialprobes.plots import colour, need, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BINS = 90


def distributions(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Norms of each modality on a log axis, medians and their ratio printed, one panel for each state of training.

    Columns: modality ("vision" or "text"), when (such as "trained" or "initial"), norm (Euclidean length, no unit). One row
    a token. Each distribution is scaled to its own peak: heights compare within a colour, not between. Norms of 0 have no
    place on a log axis; their number is printed. Raises ValueError for a missing column, a norm that is negative, NaN or
    infinite, or no positive one.
    """
    need(frame, ("modality", "when", "norm"), "norms.distributions")
    norms = frame["norm"].to_numpy(dtype=float)
    if wrong := int((~np.isfinite(norms) | (norms < 0)).sum()):
        raise ValueError(f"norms.distributions: {wrong} norms are negative, NaN or infinite")
    if not (norms > 0).any():
        raise ValueError("norms.distributions: every norm is 0")
    states = list(dict.fromkeys(frame["when"]))
    edges = np.geomspace(norms[norms > 0].min() / 1.6, norms.max() * 1.6, BINS + 1)
    figure = new_figure(width, 0.75 + 1.25 * len(states))
    axes = figure.subplots(len(states), 1, sharex=True, squeeze=False)[:, 0]
    for ax, state in zip(axes, states, strict=True):
        _panel(ax, frame[frame["when"] == state], str(state), edges)
    axes[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[-1].xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes[-1].xaxis.set_minor_formatter(NullFormatter())
    axes[-1].set_xlabel("norm of a vector that enters the language model (log scale)")
    return figure


def _panel(ax: Axes, rows: pd.DataFrame, state: str, edges: np.ndarray) -> None:
    medians = rows.groupby("modality", sort=False)["norm"].median().to_dict()
    rightmost = max(medians, key=medians.get)
    for index, (modality, median) in enumerate(medians.items()):
        norms = rows.loc[rows["modality"] == modality, "norm"].to_numpy(dtype=float)
        tint = colour(modality, index)
        counts, _ = np.histogram(norms[norms > 0], edges)
        ax.stairs(counts / max(counts.max(), 1), edges, fill=True, color=tint, alpha=0.45)
        ax.stairs(counts / max(counts.max(), 1), edges, color=tint, linewidth=0.9)
        if median > 0:
            ax.vlines(median, 0, 1.06, color=tint, linewidth=1.2)
            left = modality != rightmost  # names on either side: apart, even where the medians meet
            place = {"xytext": (-2 if left else 2, 2), "textcoords": "offset points", "ha": "right" if left else "left"}
            ax.annotate(f"{modality}  {median:.3g}", (median, 1.06), color=tint, weight="bold", **place)
    ax.set_xscale("log")
    ax.set_ylim(0, 1.3)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    title = f"{state}: medians"
    if medians.get("text", 0) > 0 and medians.get("vision", 0) > 0:
        ax.hlines(0.55, *sorted((medians["vision"], medians["text"])), color="black", linewidth=0.8, linestyle=(0, (4, 2)))
        title += f" differ by a factor of {medians['vision'] / medians['text']:.3g} (vision / text)"
    zeros = int((rows["norm"] == 0).sum())
    ax.set_title(title + (f"; {zeros:,} norms of 0 not shown" if zeros else ""), loc="left", parse_math=False)
