"""Figures of the connector study's published results: every kind that its own scripts draw, and what its files say beyond them.

Drawn from the tables of ``audit``; models are shown under the column `label`. Bars of different units stand on different axes,
means have intervals, and captions that are missing are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.plots import CYCLE, GREY, need, new_figure, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")
NAMES = {
    "clipscore_drop": "CLIPScore lost (points)",
    "clipscore_post_direct": "CLIPScore from E_post (points)",
    "clipscore_recon": "CLIPScore from reconstruction (points)",
    "clipscore_original": "CLIPScore (points)",
    "bertscore_recon_vs_post_f1": "BERTScore F1, recon. to E_post",
    "bertscore_drop": "BERTScore F1 lost, to ground truth",
    "reproj_cosine_recon": "cosine after the connector",
    "reproj_mse_recon": "MSE after the connector",
    "cosine_pre": "cosine before the connector",
    "mse_pre": "MSE before (standardised)",
    "post_effective_rank": "effective rank of E_post",
    "effective_rank": "effective rank",
    "effective_rank_normalized": "effective rank / greatest",
    "top1_energy_ratio": "energy in the first one",
    "top10_energy_ratio": "energy in the first 10",
    "mean_pairwise_cosine": "mean token cosine",
    "pre_post": "before with after",
    "level": "level",
    "rank": "rank kept",
    "energy": "energy kept (share)",
    "singular_value": "singular value",
}
SHOWN = ("effective_rank", "effective_rank_normalized", "top1_energy_ratio", "top10_energy_ratio", "mean_pairwise_cosine")
COMPONENTS = 100
LEAST = 1e-8  # of the largest value: what is smaller is rounding
FEW_EMPTY = 0.01
BEFORE_AFTER = ((-0.2, "#FFFFFF", "before"), (0.2, "", "after"))


def knor(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Overlap against k, a line a model; a panel for before with after, and one a reference (solid: before, dashed: after).

    Columns: label, of, k, mean, low, high (shares in [0, 1]), floor (of copies alone, NaN where unknown). Optional: chance.
    """
    need(frame, ("label", "of", "k", "mean", "low", "high", "floor"), "connector_published.knor")
    groups = _groups(frame)
    figure = new_figure(width, 0.75 + 2.1 * -(-len(groups) // 2))
    axes = panels(figure, len(groups), 2, sharex=True)
    labels = _labels(frame)
    for ax, (name, sides) in zip(axes, groups.items(), strict=True):
        for of, dashes in zip(sides, ("-", "--"), strict=False):
            for label in labels:
                own = frame[(frame["of"] == of) & (frame["label"] == label)].sort_values("k")
                _line(ax, own["k"], own, label, labels, dashes)
        floors = frame[frame["of"].isin(sides)].groupby("k")["floor"].max().dropna()
        if len(floors):
            ax.plot(floors.index, floors, ":", color=GREY, linewidth=1.1, label="copies alone")
        if "chance" in frame:
            chances = frame[frame["of"].isin(sides)].groupby("k")["chance"].mean()
            ax.plot(chances.index, chances, color="black", linewidth=0.7)
        ax.set_title(name, parse_math=False)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("overlap (share of k)")
        ax.set_xticks(sorted(frame["k"].unique()))
    for ax in axes[-2:]:
        ax.set_xlabel("neighbours k")
        ax.tick_params(labelbottom=True)
    extra = [("copies alone", ":", GREY)] if frame["floor"].notna().any() else []
    extra += [("chance", "-", "black")] if "chance" in frame else []
    if len(groups) > 1 or "pre_post" not in set(frame["of"]):
        extra += [("reference with before", "-", "black"), ("reference with after", "--", "black")]
    _legend(figure, labels, extra)
    return figure


def knor_bars(frame: pd.DataFrame, *, k: int = 100, width: str = "two") -> Figure:
    """Overlap at one k as bars, a group a model and a panel a reference: before with after, reference with before, with after.

    Columns as `knor`. Raises ValueError for a k that is not in the table.
    """
    plot = "connector_published.knor_bars"
    need(frame, ("label", "of", "k", "mean", "low", "high"), plot)
    rows = frame[frame["k"] == k]
    if rows.empty:
        raise ValueError(f"{plot}: no overlap at k={k}; there: {', '.join(map(str, sorted(frame['k'].unique())))}")
    groups = _groups(rows)
    sets = {name: ["pre_post", *sides] for name, sides in groups.items() if sides != ["pre_post"]} or {
        "before with after": ["pre_post"]
    }
    labels = _labels(rows)
    figure = new_figure(width, 0.7 + (0.5 + 0.4 * len(labels)) * -(-len(sets) // 2))
    axes = panels(figure, len(sets), 2, sharex=True, sharey=True)
    looks = [("#BFBFBF", "before with after"), (CYCLE[0], "reference with before"), (CYCLE[4], "reference with after")]
    for ax, (name, series) in zip(axes, sets.items(), strict=True):
        for place, (of, (tint, words)) in enumerate(zip(series, looks, strict=False)):
            own = rows[rows["of"] == of].set_index("label").reindex(labels)
            _bar(ax, np.arange(len(labels)) + 0.27 * (place - (len(series) - 1) / 2), own, 0.25, tint, words)
        ax.set_title(f"{name} (k = {k})", parse_math=False)
        ax.set_yticks(range(len(labels)), labels, parse_math=False)
    axes[0].invert_yaxis()  # one axis for all panels
    for ax in axes[-2:]:
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("overlap (share of k)")
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=3)
    return figure


def above_copies(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Overlap before with after at each k: as published (hollow), and what is above the floor of copies (solid); a panel a model.

    Columns as `knor`, with excess, excess_low, excess_high and chance.
    """
    plot = "connector_published.above_copies"
    need(frame, ("label", "of", "k", "mean", "low", "high", "floor", "excess", "excess_low", "excess_high", "chance"), plot)
    rows = frame[frame["of"] == "pre_post"]
    need(rows, ("k",), plot)
    labels = _labels(rows)
    figure = new_figure(width, 0.75 + 1.9 * -(-len(labels) // 4))
    axes = panels(figure, len(labels), 4, sharey=True)
    for place, (ax, label) in enumerate(zip(axes, labels, strict=True)):
        own = rows[rows["label"] == label].sort_values("k")
        x, tint = np.arange(len(own)), CYCLE[place % len(CYCLE)]
        ax.vlines(x - 0.12, own["low"], own["high"], color=tint, linewidth=1)
        ax.plot(x - 0.12, own["mean"], "o", color=tint, markerfacecolor="white", label="published")
        ax.vlines(x + 0.12, own["excess_low"], own["excess_high"], color=tint, linewidth=1)
        ax.plot(x + 0.12, own["excess"], "o", color=tint, label="above copies")
        ax.hlines(own["floor"], x - 0.35, x + 0.35, color=GREY, linestyle=":", label="copies alone")
        ax.hlines(own["chance"], x - 0.35, x + 0.35, color="black", linewidth=0.7, label="chance")
        ax.set_title(label, parse_math=False)
        ax.set_xticks(x, own["k"].astype(str))
        ax.set_xlabel("neighbours k")
        ax.set_xlim(-0.6, len(own) - 0.4)
    axes[0].set_ylim(bottom=0)  # one axis for all panels: set once all are drawn
    axes[0].set_ylabel("overlap (share)")
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=4)
    return figure


def spectrum(frame: pd.DataFrame, *, value: str = "energy", width: str = "two") -> Figure:
    """Mean energy or singular value of the first 100 components, before and after, a line a model.

    Columns: label, side ("pre", "post"), component (from 1), energy (share) and singular_value.
    """
    need(frame, ("label", "side", "component", value), "connector_published.spectrum")
    figure = new_figure(width, 2.6)
    axes = panels(figure, 2, 2, sharey=True)
    labels = _labels(frame)
    for ax, (side, words) in zip(axes, (("pre", "before the connector"), ("post", "after")), strict=True):
        for place, label in enumerate(labels):
            own = frame[(frame["side"] == side) & (frame["label"] == label) & (frame["component"] <= COMPONENTS)]
            own = own[own[value] > own[value].max() * LEAST].sort_values("component")
            dashes = ("-", "--", "-.", ":")[place % 4]
            ax.plot(own["component"], own[value], color=CYCLE[place % len(CYCLE)], linestyle=dashes)
        ax.set_yscale("log")
        ax.set_title(words)
        ax.set_xlabel("component")
    axes[0].set_ylabel("energy (share)" if value == "energy" else "singular value")
    looks = [(label, ("-", "--", "-.", ":")[place % 4], CYCLE[place % len(CYCLE)]) for place, label in enumerate(labels)]
    _legend(figure, [], looks)
    return figure


def diagnostics(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Effective rank, energies and token cosine before (hollow) and after (filled), each on an axis of its own; 95% intervals.

    Columns: label, side ("pre", "post"), measure, mean, low, high.
    """
    need(frame, ("label", "side", "measure", "mean", "low", "high"), "connector_published.diagnostics")
    measures = [name for name in SHOWN if (frame["measure"] == name).any()]
    labels = _labels(frame)
    figure = new_figure(width, 0.5 + (0.55 + 0.27 * len(labels)) * -(-len(measures) // 3))
    axes = panels(figure, len(measures), 3, sharey=True)
    for ax, measure in zip(axes, measures, strict=True):
        rows = frame[frame["measure"] == measure]
        for (aside, fill, words), side in zip(BEFORE_AFTER, ("pre", "post"), strict=True):
            own = rows[rows["side"] == side].set_index("label").reindex(labels)
            _bar(ax, np.arange(len(labels)) + aside, own, 0.36, fill or CYCLE[0], words, edge=CYCLE[0])
        ax.set_title(NAMES.get(measure, measure))
        ax.set_yticks(range(len(labels)), labels, parse_math=False)
        ax.locator_params(axis="x", nbins=4)
    axes[0].invert_yaxis()
    handles, words = axes[0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=2)
    return figure


def perturbation(frame: pd.DataFrame, *, mode: str = "lowrank", axis: str = "level", width: str = "two") -> Figure:
    """What one kind of perturbation costs: CLIPScore lost and BERTScore to the caption before; a line a model, 95% intervals.

    Columns: label, mode, level, rank, energy, drop and bert with _low and _high, empty_share. axis: level, rank or energy. A
    hollow mark: over 1% of the captions are empty and left out. Raises ValueError for a mode that is not in the table.
    """
    plot = "connector_published.perturbation"
    ends = tuple(f"{name}{end}" for name in ("drop", "bert") for end in ("", "_low", "_high"))
    need(frame, ("label", "mode", "level", axis, "empty_share", *ends), plot)
    rows = frame[frame["mode"] == mode].dropna(subset=[axis])
    if rows.empty:
        raise ValueError(f"{plot}: no rows of mode {mode!r} with {axis}; there: {', '.join(map(str, frame['mode'].unique()))}")
    figure = new_figure(width, 2.7)
    labels = _labels(frame[frame["mode"] == mode])
    shown = (("drop", "CLIPScore lost (points)"), ("bert", "BERTScore F1 to before"))
    for ax, (name, words) in zip(panels(figure, 2, 2), shown, strict=True):
        for label in labels:
            own = rows[rows["label"] == label].sort_values(axis)
            own = own.assign(mean=own[name], low=own[f"{name}_low"], high=own[f"{name}_high"])
            _line(ax, own[axis], own, label, labels, hollow=own["empty_share"] > FEW_EMPTY)
        if name == "drop":
            ax.axhline(0, color="black", linewidth=0.6)
        if mode == "lowrank" and axis != "energy":
            ax.set_xscale("log")
        ax.set_xlabel(
            NAMES[axis]
            if axis != "level"
            else {"lowrank": "share of the largest rank kept", "mask": "share of tokens masked"}.get(mode, "level")
        )
        ax.set_ylabel(words)
        _plain_ticks(ax, rows[axis])
    _legend(figure, labels)
    return figure


def empty_captions(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Where captions are empty: how many, and the loss without them and with them counted as 0; a row a perturbation.

    Columns: label, mode, level, empty, n, drop and drop_empty_as_zero with _low and _high.
    """
    ends = tuple(f"{name}{end}" for name in ("drop", "drop_empty_as_zero") for end in ("", "_low", "_high"))
    need(frame, ("label", "mode", "level", "empty", "n", *ends), "connector_published.empty_captions")
    rows = frame[frame["empty"] > 0]
    need(rows, ("empty",), "connector_published.empty_captions")
    figure = new_figure(width, 0.8 + 0.3 * len(rows))
    left, right = panels(figure, 2, 2, sharey=True)
    y = np.arange(len(rows))[::-1]
    left.barh(y, rows["empty"] / rows["n"], 0.6, color=GREY)
    for height, count, n in zip(y, rows["empty"], rows["n"], strict=True):
        left.text(count / n, height, f" {count:,} of {n:,}", va="center", fontsize=7)
    left.set_yticks(y, [f"{row.label}, {row.mode} {row.level:g}" for row in rows.itertuples()], parse_math=False)
    left.set_xlim(0, 1.7 * max(rows["empty"] / rows["n"]))
    left.set_xlabel("share of captions that are empty")
    for name, aside, fill, words in (
        ("drop", 0.12, "white", "left out"),
        ("drop_empty_as_zero", -0.12, CYCLE[1], "counted as 0"),
    ):
        right.hlines(y + aside, rows[f"{name}_low"], rows[f"{name}_high"], color=CYCLE[1], linewidth=1)
        right.plot(rows[name], y + aside, "o", color=CYCLE[1], markerfacecolor=fill, label=f"empty captions {words}")
    right.set_xlabel("CLIPScore lost (points)")
    handles, words = right.get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=2)
    return figure


# --- shared ---


def _labels(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["label"]))


def _groups(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Title of a panel to what is drawn in it: before with after, and the two sides of each reference."""
    there = list(dict.fromkeys(frame["of"]))
    groups = {NAMES["pre_post"]: ["pre_post"]} if "pre_post" in there else {}
    for ref in sorted({of.rpartition("_")[0] for of in there if of != "pre_post"}):
        groups[ref] = [f"{ref}_{side}" for side in ("pre", "post") if f"{ref}_{side}" in there]
    return groups


def _line(ax: Axes, x, own: pd.DataFrame, label: str, labels: list[str], dashes: str = "-", hollow=None) -> None:
    """mean at x with its interval as bars; marks are hollow where said."""
    place = labels.index(label)
    tint, mark = CYCLE[place % len(CYCLE)], MARKS[place % len(MARKS)]
    x = np.asarray(x, float)
    ax.plot(x, own["mean"], color=tint, linestyle=dashes, linewidth=1.1)
    ax.vlines(x, own["low"], own["high"], color=tint, linewidth=1.1)
    hollow = np.zeros(len(x), bool) if hollow is None else np.asarray(hollow, bool)
    ax.plot(x[~hollow], own["mean"][~hollow], mark, color=tint)
    ax.plot(x[hollow], own["mean"][hollow], mark, color=tint, markerfacecolor="white")


def _bar(ax: Axes, y, own: pd.DataFrame, thick: float, tint: str, words: str, edge: str | None = None) -> None:
    """Bars to the right, so that names of models stand beside them whatever their length."""
    ax.barh(y, own["mean"], thick, color=tint, edgecolor=edge or tint, linewidth=0.8, label=words)
    ax.hlines(y, own["low"], own["high"], color="black", linewidth=0.9)


def _legend(figure: Figure, labels: list[str], more: list[tuple[str, str, str]] = ()) -> None:
    """Marks of the models, and lines of a name, dashes and colour."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=CYCLE[place % len(CYCLE)], marker=MARKS[place % len(MARKS)], label=label)
        for place, label in enumerate(labels)
    ]
    handles += [Line2D([], [], color=tint, linestyle=dashes, label=name) for name, dashes, tint in more]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))


def _plain_ticks(ax: Axes, values: pd.Series) -> None:
    """A tick at each value, as far as they don't stand too close."""
    from matplotlib.ticker import NullLocator

    there = np.unique(values.to_numpy(float))
    low, high = ax.get_xlim()
    place = (
        (lambda v: (np.log(v) - np.log(low)) / (np.log(high) - np.log(low)))
        if ax.get_xscale() == "log"
        else (lambda v: (v - low) / (high - low))
    )
    shown: list[float] = []
    for value in there:
        if not shown or place(value) - place(shown[-1]) > 0.1:
            shown.append(float(value))
    ax.set_xticks(shown, [f"{value:.3g}" for value in shown])
    ax.xaxis.set_minor_locator(NullLocator())
