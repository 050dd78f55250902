"""Figures of swap pairs over training: the same measures for a series of checkpoints, by layer and by samples seen.

Drawn from tables of the measures with the columns scale (its name) and samples (seen in training; 0 for the vanilla model).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import to_hex

from spatialprobes.pairs import CATEGORIES, GROUPS
from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.swap import MEASURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "*")
LETTER = 0.041  # of a panel's width, what a letter of a tick needs at three panels a page
EMERGING = {"accuracy": ("#000000", "s", "accuracy (share)"), "consistency": ("", "o", "consistency (mean pairwise cosine)")}


def by_layer(
    frame: pd.DataFrame, *, measure: str = "group", variant: str = "all", definition: str = "corrected", width: str = "two"
) -> Figure:
    """Consistency or alignment by layer, a line a scale, panels with one range of values; bands are 95% intervals.

    Columns: those of `swap.consistency` (measure "group" or "within") or `swap.alignment` ("per_sample_mean",
    "mean_delta_alignment"; then also definition), with scale and samples (NaN where unknown: last). Panels are groups or
    categories. The grey area holds the shuffled control's intervals of all scales. Raises ValueError for a missing column, a
    value that is not there, or a row that stands twice.
    """
    plot = "swap_scales.by_layer"
    need(frame, ("scale", "samples", "layer", "variant", "measure", "control", "estimate", "low", "high", "n"), plot)
    rows = looks.pick(frame, plot, measure=measure, variant=variant)
    if measure in ("group", "within"):
        need(rows, ("of",), plot)
        names = looks.known(rows, plot, "of", looks.ORDER)
    else:
        need(rows, ("definition",), plot)
        rows = looks.pick(rows, plot, definition=definition).assign(of=MEASURES.get(measure, (measure,))[0])
        names = list(dict.fromkeys(rows["of"]))
    looks.once(rows, plot, ("of", "control", "scale", "layer"))
    looks.pick(rows, plot, control="none")
    rows = looks.judged(rows)
    layers, scales = looks.ordered_layers(rows["layer"], plot), _scales(rows, plot)
    across = 1 if width == "one" else 3
    figure = new_figure(width, 0.95 + 1.75 * -(-len(names) // across))
    axes = panels(figure, len(names), across, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        part = rows[rows["of"] == name]
        _shuffled(ax, part[part["control"] == "shuffled"], layers)
        for place, scale in enumerate(scales):
            own = part[(part["scale"] == scale) & (part["control"] == "none")]
            tint, mark = _scale_look(place, len(scales))
            looks.by_layer(ax, own, tint, layers, mark=mark, size=looks.mark_size(layers), band=0.12)
        looks.layer_axis(ax, layers)
        looks.none_here(ax, part)
        ax.set_title(looks.sized(name, part[part["control"] == "none"]), parse_math=False)
    for ax in axes[::across]:
        ax.set_ylabel(MEASURES.get(measure, ("", measure))[1])
    handles = [looks.handle(scale, *_scale_look(place, len(scales))) for place, scale in enumerate(scales)]
    if (rows["control"] == "shuffled").any():
        handles.append(looks.handle("shuffled, all scales", "#D0D0D0", linewidth=6))
    measured = rows[rows["control"] == "none"]
    handles += [*looks.significance_handles(measured), *looks.gap_handles(measured)]
    looks.legend(figure, handles)
    return figure


def trajectory(frame: pd.DataFrame, *, member: str = "both", by: str = "generate", width: str = "two") -> Figure:
    """Accuracy against samples seen, a panel a group, with its categories and chance; bands are 95% intervals.

    Columns: those of `swap.accuracy`, with scale and samples (NaN where unknown: left out, and said). member: "original",
    "swapped" or "both" right. Raises ValueError for a missing column, a value that is not there, or a row that stands twice.
    """
    plot = "swap_scales.trajectory"
    need(frame, ("scale", "samples", "group", "category", "member", "by", "estimate", "low", "high", "chance", "n"), plot)
    rows, unknown = _dated(looks.pick(frame, plot, member=member, by=by), plot)
    looks.once(rows, plot, ("group", "category", "samples"))
    groups = looks.known(rows, plot, "group", GROUPS)
    found = looks.known(rows, plot, "category", ("", *CATEGORIES))
    across = 1 if width == "one" else 3
    figure = new_figure(width, 0.85 + 1.75 * -(-len(groups) // across))
    axes = panels(figure, len(groups), across, sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        part = rows[rows["group"] == group]
        for category in ("", *GROUPS[group]):
            own = part[part["category"] == category].sort_values("samples")
            if len(own):
                tint, mark, dashes = _category_look(category)
                looks.line(ax, own["samples"].to_numpy(float), own, tint, mark=mark, dashes=dashes, band=0.15)
        for level in part["chance"].dropna().unique():
            ax.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (5, 2, 1, 2)))
        _samples(ax, rows["samples"])
        ax.set_ylim(-0.02, 1.02)
        whole = part[part["category"] == ""]
        ax.set_title(looks.sized(group, whole if len(whole) else part))
    for ax in axes[::across]:
        ax.set_ylabel({"both": "share with both right"}.get(member, f"share of {member} questions right"))
    handles = [looks.handle(name or "all of a group", *_category_look(name)) for name in found]
    if rows["chance"].notna().any():
        handles.append(looks.handle("chance", dashes=(0, (5, 2, 1, 2)), linewidth=0.9))
    looks.legend(figure, [*handles, *_unknown_handles(unknown), *looks.gap_handles(rows)])
    return figure


def emergence(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Accuracy and consistency against samples seen, a panel a group, on one axis of samples: which comes first.

    Columns: samples (NaN where unknown: left out, and said), scale, group, measure ("accuracy", share of pairs right, or
    "consistency", mean pairwise cosine at one layer), estimate, low, high, n (pairs). Optional: chance (of accuracy), layer
    (that of the consistency, one a group; said in the title), q. Both measures share the vertical axis, each has its own name
    in the legend. Raises ValueError for a missing column, another measure, several layers in a group, or a row that stands
    twice.
    """
    plot = "swap_scales.emergence"
    need(frame, ("samples", "scale", "group", "measure", "estimate", "low", "high", "n"), plot)
    rows, unknown = _dated(frame, plot)
    looks.once(rows, plot, ("group", "measure", "samples"))
    groups, measures = looks.known(rows, plot, "group", GROUPS), looks.known(rows, plot, "measure", EMERGING)
    across = 1 if width == "one" else 3
    figure = new_figure(width, 0.85 + 1.85 * -(-len(groups) // across))
    axes = panels(figure, len(groups), across, sharey=True)
    for ax, group in zip(axes, groups, strict=True):
        part = rows[rows["group"] == group]
        for measure in measures:
            own = part[part["measure"] == measure].sort_values("samples")
            if len(own):
                tint, mark, _ = EMERGING[measure]
                dashes = "-" if measure == "consistency" else (0, (4, 1.5))
                x = own["samples"].to_numpy(float)
                looks.line(ax, x, own, tint or looks.LOOKS[group][0], mark=mark, dashes=dashes, band=0.15)
        if "chance" in part.columns:
            for level in part.loc[part["measure"] == "accuracy", "chance"].dropna().unique():
                ax.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (5, 2, 1, 2)))
        ax.axhline(0, color=GREY, linewidth=0.7)
        _samples(ax, rows["samples"])
        ax.set_title(looks.sized(f"{group}{_at_layer(part, plot)}", part))
    low = float(np.nanmin([0.0, rows["low"].min(), rows["estimate"].min()]))
    axes[0].set_ylim(low - 0.04, 1.04)
    for ax in axes[::across]:
        ax.set_ylabel("accuracy, consistency")
    handles = []
    for measure in measures:
        tint, mark, label = EMERGING[measure]
        handles.append(looks.handle(label, tint or GREY, mark, "-" if measure == "consistency" else (0, (4, 1.5))))
    if "chance" in rows.columns and rows["chance"].notna().any():
        handles.append(looks.handle("chance of accuracy", dashes=(0, (5, 2, 1, 2)), linewidth=0.9))
    looks.legend(figure, [*handles, *_unknown_handles(unknown), *looks.gap_handles(rows)])
    return figure


def _category_look(category: str) -> tuple[str, str, Any]:
    """Colour, mark and dashes of a category, or of a whole group."""
    return (*looks.LOOKS[category], "-") if category else ("#000000", "", (0, (4, 1.5)))


def _at_layer(part: pd.DataFrame, plot: str) -> str:
    if "layer" not in part.columns:
        return ""
    layers = looks.ordered_layers(part.loc[part["measure"] == "consistency", "layer"], plot)
    if len(layers) > 1:
        raise ValueError(f"{plot}: consistency of {part['group'].iloc[0]} is of the layers {', '.join(layers)}; choose one")
    return f", {looks.layer_name(layers[0])}" if layers else ""


# --- scales and samples ---


def _scales(rows: pd.DataFrame, plot: str) -> list[str]:
    """Names of the scales by samples seen, those of unknown samples last. Raises ValueError for one with several counts."""
    seen = rows.drop_duplicates(["scale", "samples"]).sort_values("samples", kind="stable")
    if (twice := seen.duplicated("scale")).any():
        raise ValueError(f"{plot}: scale {seen.loc[twice, 'scale'].iloc[0]!r} has several counts of samples")
    return list(seen["scale"])


def _scale_look(place: int, count: int) -> looks.Look:
    """From light to dark as training goes on, in a map that colour-blind eyes see as others do, and a mark of its own."""
    return to_hex(colormaps["cividis"](0.88 * (1 - place / max(1, count - 1)))), MARKS[place % len(MARKS)]


def _shuffled(ax: Axes, rows: pd.DataFrame, layers: list[str]) -> None:
    """Where the shuffled control's intervals lie, over all scales."""
    rows = rows.assign(layer=rows["layer"].map(looks.layer_text)).dropna(subset=["low", "high"])
    rows = rows.astype({"low": float, "high": float})
    if rows.empty:
        return
    x = looks.places(layers)
    ends = rows.groupby("layer").agg(low=("low", "min"), high=("high", "max"))
    ends = ends.loc[sorted(ends.index, key=x.get)]
    stream = ends[ends.index != "norm"]
    ax.fill_between([x[layer] for layer in stream.index], stream["low"], stream["high"], color="#D0D0D0", linewidth=0, zorder=0)
    if "norm" in ends.index:
        ax.vlines([x["norm"]], ends.loc["norm", "low"], ends.loc["norm", "high"], color="#D0D0D0", linewidth=5, zorder=0)


def _dated(rows: pd.DataFrame, plot: str) -> tuple[pd.DataFrame, list[str]]:
    """Rows whose samples are known, and the scales of the rest."""
    samples = pd.to_numeric(rows["samples"])
    if (samples < 0).any():
        raise ValueError(f"{plot}: {samples.min():g} samples were seen; legal: 0 or more")
    unknown = list(dict.fromkeys(rows.loc[samples.isna(), "scale"]))
    if samples.isna().all():
        raise ValueError(f"{plot}: no scale has a known count of samples; there: {', '.join(map(str, unknown))}")
    return rows[samples.notna()].assign(samples=samples[samples.notna()]), unknown


def _unknown_handles(unknown: list[str]) -> list:
    return [looks.handle(f"not shown, samples unknown: {', '.join(map(str, unknown))}", dashes="none")] if unknown else []


def _samples(ax: Axes, samples: pd.Series) -> None:
    """A log axis of samples with 0 at its left end; as many of the counts are written as there is room for."""
    counts = np.unique(samples.to_numpy(float))
    positive = counts[counts > 0]
    if len(positive) and counts[0] == 0:
        decades = np.log10(positive.max() / positive.min())
        ax.set_xscale("symlog", linthresh=positive.min(), linscale=max(0.3, 0.18 * decades))
    elif len(positive):
        ax.set_xscale("log")
    place = ax.xaxis.get_transform().transform(counts)
    room = float(np.ptp(place)) or 1.0
    ax.set_xlim(ax.xaxis.get_transform().inverted().transform(np.array([place[0] - 0.05 * room, place[-1] + 0.05 * room])))
    names, shown = [short(count) for count in counts], [len(counts) - 1]
    for i, name in enumerate(names):
        if all(abs(place[i] - place[j]) > LETTER * room * max(len(name), len(names[j])) for j in shown):
            shown.append(i)
    ax.set_xticks(counts, [name if i in shown else "" for i, name in enumerate(names)])
    ax.set_xticks([], minor=True)
    ax.set_xlabel("samples seen (log scale)" if len(positive) else "samples seen")
    ax.grid(axis="y")


def short(count: float) -> str:
    """80000 as 80k, 2000000 as 2M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"
