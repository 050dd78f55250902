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
SMOOTH = 600  # points of a violin's outline over the whole axis
WIDTH = 0.4  # of a violin to either side, in rows


def distributions(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Norms of each modality on a log axis, medians and their ratio printed, one panel for each state of training.

    Columns: modality ("vision" or "text"), when (such as "trained" or "initial"), norm (Euclidean length, no unit). One row
    a token. Each distribution is scaled to its own peak: heights compare within a colour, not between. Norms of 0 have no
    place on a log axis; their number is printed. Raises ValueError for a missing column, a norm that is negative, NaN or
    infinite, or no positive one.
    """
    norms = _checked(frame, "norms.distributions")
    states = list(dict.fromkeys(frame["when"]))
    edges = np.geomspace(norms[norms > 0].min() / 1.6, norms.max() * 1.6, BINS + 1)
    figure = new_figure(width, 0.75 + 1.25 * len(states))
    axes = figure.subplots(len(states), 1, sharex=True, squeeze=False)[:, 0]
    for ax, state in zip(axes, states, strict=True):
        _panel(ax, frame[frame["when"] == state], str(state), edges)
    _log_axis(axes[-1])
    return figure


def violins(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Norms of each modality on a log axis, one pair of violins for each model or state, with quartiles.

    Columns: as of `distributions`. The outline is a Gaussian kernel estimate over the logarithm (Silverman's rule), each as wide
    as the others at its peak; the line in it is the median, its shorter neighbours are the quartiles, and the thin line reaches
    from the least to the greatest norm. Norms of 0 have no place on a log axis and are left out; their number is printed.
    Raises ValueError as `distributions`.
    """
    norms = _checked(frame, "norms.violins")
    pairs = list(dict.fromkeys(zip(frame["when"], frame["modality"], strict=True)))
    states = list(dict.fromkeys(state for state, _ in pairs))
    modalities = list(dict.fromkeys(modality for _, modality in pairs))
    step = 1.15 / len(modalities)
    figure = new_figure(width, 0.75 + 0.42 * len(states) * len(modalities))
    ax = figure.subplots()
    axis = np.linspace(np.log(norms[norms > 0].min() / 1.6), np.log(norms.max() * 1.6), SMOOTH)
    for state, modality in pairs:
        y = 1.6 * states.index(state) + step * (modalities.index(modality) - (len(modalities) - 1) / 2)
        rows = frame[(frame["when"] == state) & (frame["modality"] == modality)]["norm"].to_numpy(float)
        if (rows > 0).any():
            _violin(ax, rows[rows > 0], y, step * WIDTH, axis, colour(modality, modalities.index(modality)))
    zeros = frame[frame["norm"] == 0].groupby("when").size()
    names = [f"{state}" + (f"\n({zeros[state]:,} of 0 not shown)" if state in zeros else "") for state in states]
    ax.set_yticks([1.6 * place for place in range(len(states))], names, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(1.6 * (len(states) - 1) + 0.95, -0.95)
    ax.set_xscale("log")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    _log_axis(ax)
    handles = [ax.fill([], [], color=colour(modality, i), alpha=0.5, label=modality)[0] for i, modality in enumerate(modalities)]
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(handles))
    return figure


def _violin(ax: Axes, norms: np.ndarray, y: float, half: float, axis: np.ndarray, tint: str) -> None:
    logs = np.log(norms)
    height = _density(logs, axis)
    outline = np.exp(axis)
    shown = height > 0.002
    ax.fill_between(outline, y - half * height, y + half * height, where=shown, color=tint, alpha=0.5, linewidth=0)
    ax.hlines(y, norms.min(), norms.max(), color=tint, linewidth=0.8)
    low, middle, high = np.exp(np.quantile(logs, (0.25, 0.5, 0.75)))
    ax.vlines((low, high), y - 0.45 * half, y + 0.45 * half, color="black", linewidth=1.0)
    ax.vlines(middle, y - half, y + half, color="black", linewidth=1.5)


def _density(logs: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Gaussian kernel estimate on the points of `axis`, 1 at its peak; from counts, so that millions of tokens are quick."""
    step = axis[1] - axis[0]
    spread = min(logs.std(), np.subtract(*np.quantile(logs, (0.75, 0.25))) / 1.34) or logs.std()
    bandwidth = max(0.9 * spread * len(logs) ** -0.2, 1.5 * step)  # Silverman 1986, (3.31); never finer than the points
    counts, _ = np.histogram(logs, np.append(axis - step / 2, axis[-1] + step / 2))
    reach = np.arange(-int(4 * bandwidth / step), int(4 * bandwidth / step) + 1) * step
    kernel = np.exp(-0.5 * (reach / bandwidth) ** 2)
    start = len(reach) // 2
    height = np.convolve(counts, kernel)[start : start + len(axis)]
    return height / height.max()


def _checked(frame: pd.DataFrame, plot: str) -> np.ndarray:
    need(frame, ("modality", "when", "norm"), plot)
    norms = frame["norm"].to_numpy(dtype=float)
    if wrong := int((~np.isfinite(norms) | (norms < 0)).sum()):
        raise ValueError(f"{plot}: {wrong} norms are negative, NaN or infinite")
    if not (norms > 0).any():
        raise ValueError(f"{plot}: every norm is 0")
    return norms


def _log_axis(ax: Axes) -> None:
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 2000 else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("norm of a vector that enters the language model (log scale)")


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
