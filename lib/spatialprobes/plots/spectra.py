"""Figures of token spectra before and after a connector: mean spectra, and what is read off them on axes of their own.

Drawn from the tables of `probes.spectra.spectrum` and `.summary`, with columns site and, perhaps, model. Knows tables, never
models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from spatialprobes.plots import CYCLE, need, new_figure, panels
from spatialprobes.plots.geometry import MARKS, SITE_LOOKS, SITES, legend, named, once, with_columns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALUES = {"energy": "mean share of energy", "singular_value": "mean singular value"}
MEASURES = {
    "effective_rank": "effective rank",
    "effective_rank_normalized": "effective rank, share of largest",
    "effective_rank_roy_vetterli": "effective rank (Roy & Vetterli)",
    "top1_energy_ratio": "energy of the first component",
    "top5_energy_ratio": "energy of the first 5",
    "top10_energy_ratio": "energy of the first 10",
    "k80_energy": "components for 80% of energy",
    "k90_energy": "components for 90% of energy",
    "largest": "largest singular value",
    "mean_pairwise_cosine": "mean cosine of two tokens",
    "std_pairwise_cosine": "spread of token cosines",
    "median_pairwise_cosine": "median cosine of two tokens",
}
SHOWN = ("effective_rank", "effective_rank_normalized", "top1_energy_ratio", "top10_energy_ratio", "k90_energy",
         "mean_pairwise_cosine")  # fmt: skip
SHARES = ("effective_rank_normalized", "top1_energy_ratio", "top5_energy_ratio", "top10_energy_ratio")
FLOOR = 1e-6  # of the largest value: what is less is rounding, and would stretch the axis


def curves(frame: pd.DataFrame, *, value: str = "energy", width: str = "two") -> Figure:
    """Mean spectrum of a picture's tokens, log axis, against the number of the component; a line a site, a panel a model.

    Columns: component (from 1), energy, singular_value, low, high (of energy: where 95% of pictures lie, a band), site. Optional:
    model. value: "energy" (shares, comparable over sites) or "singular_value" (no band). What is below a millionth of the largest
    is left out. Raises ValueError for a missing column, an unknown value, or a component that stands twice.
    """
    plot = "spectra.curves"
    need(frame, ("component", "energy", "singular_value", "low", "high", "site"), plot)
    if value not in VALUES:
        raise ValueError(f"{plot}: value {value!r} is not one of {', '.join(VALUES)}")
    rows = with_columns(frame, ("model", "site"))
    once(rows, plot, ("model", "site", "component"))
    models, sites = list(dict.fromkeys(rows["model"])), _sites(rows)
    across = 1 if width == "one" else min(2, len(models))
    figure = new_figure(width, 0.7 + 2.3 * -(-len(models) // across))
    axes = panels(figure, len(models), across, sharex=True, sharey=True)
    least = FLOOR * float(rows[value].max())
    for ax, model in zip(axes, models, strict=True):
        for place, site in enumerate(sites):
            own = rows[(rows["model"] == model) & (rows["site"] == site)].sort_values("component")
            own = own[own[value] > least]
            tint, mark = _look(site, place)
            every = max(1, len(own) // 6)
            ax.plot(own["component"], own[value], color=tint, marker=mark, markevery=(place * every // 3, every))
            if value == "energy":
                ax.fill_between(own["component"], own["low"].clip(lower=least), own["high"], color=tint, alpha=0.18, linewidth=0)
        ax.set_yscale("log")
        ax.set_title(str(model), parse_math=False)
        ax.grid(axis="y")
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("component")
    for ax in axes[::across]:
        ax.set_ylabel(f"{VALUES[value]} (log scale)")
    legend(figure, [_line(named(site), *_look(site, i)) for i, site in enumerate(sites)])
    return figure


def bars(frame: pd.DataFrame, *, measures: Sequence[str] = SHOWN, width: str = "two") -> Figure:
    """What spectra say before and after, a panel a measure with an axis of its own; bars by site, groups by model.

    Columns: measure, estimate, low, high (95% interval of the mean), site. Optional: model. The number over the bars is how
    many times as large as before the connector the measure is after it. Raises ValueError for a missing column, a measure that is
    not in the table, or a bar that stands twice.
    """
    plot = "spectra.bars"
    need(frame, ("measure", "estimate", "low", "high", "site"), plot)
    rows = with_columns(frame, ("model", "site"))
    shown = [measure for measure in measures if measure in set(rows["measure"])]
    if wrong := [m for m in measures if m not in shown and (measures is not SHOWN or not shown)]:
        raise ValueError(f"{plot}: no measure {wrong[0]!r}; there: {', '.join(dict.fromkeys(rows['measure']))}")
    rows = rows[rows["measure"].isin(shown)]
    once(rows, plot, ("model", "site", "measure"))
    models, sites = list(dict.fromkeys(rows["model"])), _sites(rows)
    across = 1 if width == "one" or len(models) > 5 else 3 if len(models) < 3 else 2
    figure = new_figure(width, 0.5 + 1.9 * -(-len(shown) // across))
    step = 0.8 / len(sites)
    for ax, measure in zip(panels(figure, len(shown), across), shown, strict=True):
        own = rows[rows["measure"] == measure].set_index(["model", "site"])
        for place, site in enumerate(sites):
            part = own.reindex([(model, site) for model in models])
            x = np.arange(len(models)) + step * (place - (len(sites) - 1) / 2)
            error = np.maximum([part["estimate"] - part["low"], part["high"] - part["estimate"]], 0)
            tint = _look(site, place)[0]
            ax.bar(x, part["estimate"], 0.92 * step, yerr=error, color=tint, error_kw={"elinewidth": 0.9})
        _ratios(ax, own, models, sites)
        ax.set_title(MEASURES.get(measure, str(measure).replace("_", " ")), parse_math=False)
        ax.set_xticks(range(len(models)), models, parse_math=False)
        ax.tick_params(axis="x", length=0, labelsize=7)
        ax.axhline(0, color="black", linewidth=0.6)
        ax.margins(y=0.16)
        ax.grid(axis="y")
    handles = [Patch(color=_look(site, i)[0], label=named(site)) for i, site in enumerate(sites)]
    if len(sites) > 1:
        handles.append(Line2D([], [], linestyle="none", label=f"×: {named(sites[-1])} over {named(sites[0])}"))
    legend(figure, handles)
    return figure


def _ratios(ax: Axes, own: pd.DataFrame, models: list, sites: list) -> None:
    """Over the bars of a model: times what it is at the first site, at the last."""
    if len(sites) < 2:
        return
    for place, model in enumerate(models):
        part = own.reindex([(model, site) for site in sites])
        before, after = part["estimate"].iloc[0], part["estimate"].iloc[-1]
        if before > 0 and after > 0:
            words = f"×{after / before:.2g}" if after / before < 100 else f"×{after / before:.0f}"
            ax.annotate(words, (place, part["high"].max()), (0, 2), textcoords="offset points", ha="center", fontsize=6.5)


def _sites(rows: pd.DataFrame) -> list[str]:
    there = list(dict.fromkeys(rows["site"]))
    return sorted(there, key=lambda site: list(SITES).index(site) if site in SITES else len(SITES))


def _look(site: str, place: int) -> tuple[str, str]:
    return SITE_LOOKS.get(site, (CYCLE[(2 + place) % len(CYCLE)], MARKS[place % len(MARKS)]))


def _line(label: str, tint: str, mark: str) -> Line2D:
    return Line2D([], [], color=tint, marker=mark, label=label)
