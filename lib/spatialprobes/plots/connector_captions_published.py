"""Figures of the connector study's captions: scatters with lines, distributions of losses, trends, correlations with intervals.

Drawn from the tables ``captions`` and ``correlations`` of ``audit``; a panel or a colour a model, shown under `label`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels
from spatialprobes.plots.connector_published import MARKS, NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSINE, DROP = "reproj_cosine_recon", "clipscore_drop"
BINS = 20
PANELS = (("reproj_cosine_recon", "clipscore_drop"), ("reproj_mse_recon", "clipscore_drop"),
          ("reproj_cosine_recon", "bertscore_recon_vs_post_f1"), ("reproj_mse_recon", "bertscore_recon_vs_post_f1"))  # fmt: skip
FORMS = (  # rows, given, words, filled
    ("all", "nothing", "as published", False),
    ("deduplicated", "nothing", "each picture once", True),
    ("deduplicated", "baseline", "given the score before", True),
    ("deduplicated", "length", "given the change of length", True),
)


def scatter(frame: pd.DataFrame, *, x: str = COSINE, y: str = DROP, width: str = "two") -> Figure:
    """y against x, a panel a model, with the least-squares line, Pearson's r and n.

    Columns: label, x and y; rows without either are left out. Raises ValueError where a column is missing or nothing is left.
    """
    rows = _rows(frame, "connector_captions_published.scatter", x, y)
    labels = list(dict.fromkeys(rows["label"]))
    across = 2 if len(labels) < 5 else 3
    figure = new_figure(width, 0.5 + 2.1 * -(-len(labels) // across))
    axes = panels(figure, len(labels), across, sharey=True)
    for place, (ax, label) in enumerate(zip(axes, labels, strict=True)):
        own = rows[rows["label"] == label]
        r = _points(ax, own[x].to_numpy(float), own[y].to_numpy(float), CYCLE[place % len(CYCLE)])
        ax.set_title(f"{label}  (n = {len(own):,}, r = {r:.3f})", parse_math=False)
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel(NAMES.get(x, x), parse_math=False)
    for ax in axes[::across]:
        ax.set_ylabel(NAMES.get(y, y), parse_math=False)
    return figure


def scatter_grid(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Cosine and MSE after the connector against both outcomes, all models in each of four panels, a line and r a model.

    Columns: label, reproj_cosine_recon, reproj_mse_recon, clipscore_drop, bertscore_recon_vs_post_f1.
    """
    plot = "connector_captions_published.scatter_grid"
    need(frame, ("label", *{name for pair in PANELS for name in pair}), plot)
    labels = list(dict.fromkeys(frame["label"]))
    figure = new_figure(width, 5.2)
    for ax, (x, y) in zip(panels(figure, 4, 2), PANELS, strict=True):
        words = []
        for place, label in enumerate(labels):
            own = frame[frame["label"] == label].dropna(subset=[x, y])
            if len(own):
                r = _points(
                    ax, own[x].to_numpy(float), own[y].to_numpy(float), CYCLE[place % len(CYCLE)], MARKS[place % len(MARKS)]
                )
                words.append(f"{r:.2f}")
        ax.locator_params(axis="x", nbins=5)
        if x == "reproj_mse_recon":
            ax.set_xscale("log")  # scales of MSE differ by orders between models; lines are straight on the plain axis
        ax.set_title(f"r: {', '.join(words)}", parse_math=False)
        ax.set_xlabel(NAMES[x])
        ax.set_ylabel(NAMES[y])
    _legend(figure, labels)
    return figure


def violins(frame: pd.DataFrame, *, y: str = DROP, width: str = "two") -> Figure:
    """The distribution of y by model, its median and quartiles marked. Columns: label and y."""
    parts = _parts(frame, "connector_captions_published.violins", y)
    figure = new_figure(width, 2.6)
    ax = figure.subplots()
    drawn = ax.violinplot([values for _, values in parts], showextrema=False, widths=0.85)
    for place, (body, (_, values)) in enumerate(zip(drawn["bodies"], parts, strict=True), 1):
        body.set(facecolor=CYCLE[(place - 1) % len(CYCLE)], alpha=0.5, edgecolor="none")
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        ax.vlines(place, low, high, color="black", linewidth=2.5)
        ax.plot(place, middle, "o", color="white", markersize=3)
    _by_model(ax, parts, y)
    return figure


def boxes(frame: pd.DataFrame, *, y: str = DROP, width: str = "two") -> Figure:
    """Quartiles of y by model, whiskers to 1.5 interquartile ranges, what lies beyond as points. Columns: label and y."""
    parts = _parts(frame, "connector_captions_published.boxes", y)
    figure = new_figure(width, 2.6)
    ax = figure.subplots()
    looks = {"medianprops": {"color": "black"}, "flierprops": {"marker": ".", "markersize": 2, "markeredgecolor": GREY}}
    drawn = ax.boxplot([values for _, values in parts], widths=0.55, patch_artist=True, **looks)
    for place, box in enumerate(drawn["boxes"]):
        box.set(facecolor=CYCLE[place % len(CYCLE)], alpha=0.5)
    _by_model(ax, parts, y)
    return figure


def histograms(frame: pd.DataFrame, *, y: str = DROP, width: str = "two") -> Figure:
    """Histograms of y, a panel a model on one axis and the same bins; the mean is marked. Columns: label and y."""
    parts = _parts(frame, "connector_captions_published.histograms", y)
    values = np.concatenate([values for _, values in parts])
    edges = np.linspace(values.min(), values.max(), 51) if np.ptp(values) > 0 else np.linspace(values[0] - 1, values[0] + 1, 51)
    figure = new_figure(width, 0.5 + 1.5 * -(-len(parts) // 2))
    axes = panels(figure, len(parts), 2, sharex=True)
    for place, (ax, (label, own)) in enumerate(zip(axes, parts, strict=True)):
        ax.hist(own, bins=edges, color=CYCLE[place % len(CYCLE)], alpha=0.7)
        ax.axvline(own.mean(), color="black", linewidth=0.9, linestyle="--")
        ax.set_title(f"{label}  (mean {own.mean():.3g})", parse_math=False)
        ax.set_ylabel("captions")
        ax.set_xlabel(NAMES.get(y, y), parse_math=False)
    return figure


def trend(frame: pd.DataFrame, *, x: str = COSINE, y: str = DROP, width: str = "two") -> Figure:
    """Mean of y in 20 bins of x with as many rows each (fewer where rows are few), a panel a model; bars are 95% intervals.

    Columns: label, x and y. The intervals are normal ones of independent rows.
    """
    rows = _rows(frame, "connector_captions_published.trend", x, y)
    labels = list(dict.fromkeys(rows["label"]))
    across = 2 if len(labels) < 5 else 3
    figure = new_figure(width, 0.5 + 1.9 * -(-len(labels) // across))
    axes = panels(figure, len(labels), across, sharey=True)
    for place, (ax, label) in enumerate(zip(axes, labels, strict=True)):
        own = rows[rows["label"] == label].sort_values(x, kind="stable")
        bins = [part for part in np.array_split(np.arange(len(own)), min(BINS, max(1, len(own) // 5))) if len(part)]
        centre = [own[x].to_numpy(float)[part].mean() for part in bins]
        mean = np.array([own[y].to_numpy(float)[part].mean() for part in bins])
        half = np.array(
            [1.96 * own[y].to_numpy(float)[part].std(ddof=1) / np.sqrt(len(part)) if len(part) > 1 else np.nan for part in bins]
        )
        tint = CYCLE[place % len(CYCLE)]
        ax.plot(centre, mean, "o-", color=tint, linewidth=1, markersize=3)
        ax.vlines(centre, mean - half, mean + half, color=tint, linewidth=0.9)
        ax.axhline(0, color="black", linewidth=0.6)
        ax.set_title(f"{label}  (n = {len(own):,})", parse_math=False)
        ax.locator_params(axis="x", nbins=5)
        ax.set_xlabel(NAMES.get(x, x), parse_math=False)
    for ax in axes[::across]:
        ax.set_ylabel(f"mean of {NAMES.get(y, y)}", parse_math=False)
    return figure


def correlations(frame: pd.DataFrame, *, y: str = DROP, width: str = "two") -> Figure:
    """Pearson's r of each distortion with y: as published, each picture once, and partial; a panel a distortion, a row a model.

    Columns: label, x, y, statistic, rows, given, r, low, high.
    """
    plot = "connector_captions_published.correlations"
    need(frame, ("label", "x", "y", "statistic", "rows", "given", "r", "low", "high"), plot)
    rows = frame[(frame["statistic"] == "pearson") & (frame["y"] == y)]
    need(rows, ("r",), f"{plot} of {y}")
    forms = [form for form in FORMS if ((rows["rows"] == form[0]) & (rows["given"] == form[1])).any()]
    names, labels = list(dict.fromkeys(rows["x"])), list(dict.fromkeys(rows["label"]))
    figure = new_figure(width, 0.9 + (0.25 + 0.13 * len(forms)) * len(labels) * -(-len(names) // 2))
    axes = panels(figure, len(names), 2, sharex=True, sharey=True)
    for ax, x in zip(axes, names, strict=True):
        for place, (which, given, words, filled) in enumerate(forms):
            own = rows[(rows["x"] == x) & (rows["rows"] == which) & (rows["given"] == given)].set_index("label").reindex(labels)
            heights = -np.arange(len(labels)) + 0.7 * (0.5 - (place + 0.5) / len(forms))
            ax.hlines(heights, own["low"], own["high"], color=CYCLE[place], linewidth=1.1)
            look = {"markerfacecolor": CYCLE[place] if filled else "white"}
            ax.plot(own["r"], heights, MARKS[place], color=CYCLE[place], markersize=4, label=words, **look)
        ax.axvline(0, color="black", linewidth=0.6)
        ax.set_yticks(-np.arange(len(labels)), labels, parse_math=False)
        ax.set_title(NAMES.get(x, x), parse_math=False)
    for ax in axes[-2:]:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel(f"r with {NAMES.get(y, y)}", parse_math=False)
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=2)
    return figure


# --- shared ---


def _rows(frame: pd.DataFrame, plot: str, x: str, y: str) -> pd.DataFrame:
    need(frame, ("label", x, y), plot)
    rows = frame.dropna(subset=[x, y])
    need(rows, (x,), f"{plot} of {y} against {x}")
    return rows


def _parts(frame: pd.DataFrame, plot: str, y: str) -> list[tuple[str, np.ndarray]]:
    """Model and values, those without any left out."""
    need(frame, ("label", y), plot)
    rows = frame.dropna(subset=[y])
    need(rows, (y,), f"{plot} of {y}")
    return [(label, own[y].to_numpy(float)) for label, own in rows.groupby("label", sort=False)]


def _points(ax: Axes, x: np.ndarray, y: np.ndarray, tint: str, mark: str = "o") -> float:
    """Points and their least-squares line; Pearson's r, NaN where one does not vary."""
    ax.plot(x, y, mark, color=tint, markersize=1.8, alpha=0.35, markeredgewidth=0, rasterized=True)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    slope, intercept = np.polyfit(x, y, 1)
    ends = np.linspace(x.min(), x.max(), 50)
    ax.plot(ends, slope * ends + intercept, color="white", linewidth=2.6)
    ax.plot(ends, slope * ends + intercept, color=tint, linewidth=1.4)
    return float(np.corrcoef(x, y)[0, 1])


def _by_model(ax: Axes, parts: list[tuple[str, np.ndarray]], y: str) -> None:
    labels = [f"{label}\n(n = {len(values):,})" for label, values in parts]
    ax.set_xticks(range(1, len(parts) + 1), labels, parse_math=False)
    ax.set_ylabel(NAMES.get(y, y), parse_math=False)
    if y.endswith("_drop"):
        ax.axhline(0, color="black", linewidth=0.6)


def _legend(figure: Figure, labels: list[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=CYCLE[place % len(CYCLE)], marker=MARKS[place % len(MARKS)], label=label)
        for place, label in enumerate(labels)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
