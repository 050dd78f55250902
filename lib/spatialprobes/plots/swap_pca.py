"""Figures of principal components of swap pairs: each pair a mark in the colour of its category, on axes that panels share.

Drawn from the table of `probes/swap_probe.py`'s projection. Several scales share a figure by a column `scale`, and share axes
where they were projected on one basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from spatialprobes.pairs import CATEGORIES
from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ("layer", "category", "kind", "pc1", "pc2", "share1", "share2")
KINDS = {
    "delta": "difference swapped − original",
    "original": "state of the original question",
    "swapped": "state of the swapped question",
}


def plane(frame: pd.DataFrame, *, kind: str = "delta", layers: Sequence[int | str] | None = None, width: str = "two") -> Figure:
    """The first two components, a mark a pair and an edged one the mean of its category; panels have one range of values.

    Columns: layer, category, kind ("delta", "original", "swapped"), pc1, pc2, share1, share2 (share of the variance).
    Optional: scale (text; in the order of a column samples, where there is one): then panels are scales, a line of them a
    layer, and ranges are of the layer. layers: None for up to six (one where there are scales: the middle one), from the
    first to the last. Rows with a NaN component are left out and counted in the legend. Raises ValueError for a missing
    column, or a kind or layer that is not there.
    """
    plot = "swap_pca.plane"
    need(frame, COLUMNS, plot)
    parts, left_out = _panels(frame, plot, kind, layers, 2)
    across = _across(frame, parts, width)
    figure = new_figure(width, 0.65 + ((6.9 if width == "two" else 3.2) / across + 0.1) * -(-len(parts) // across))
    figure.get_layout_engine().set(h_pad=0.08)  # inches: a label of one line of panels and a title of the next are close
    for ax, (title, part, limits) in zip(panels(figure, len(parts), across), parts, strict=True):
        _marks(ax, part, ("pc1", "pc2"))
        if part.empty:
            ax.text(0.5, 0.5, "nothing varies", transform=ax.transAxes, ha="center", va="center", color=GREY)
        ax.set(xlim=limits[0], ylim=limits[1])
        ax.set_aspect("equal", adjustable="box")
        ax.set_title(title, parse_math=False)
        for axis, number in ((ax.xaxis, 1), (ax.yaxis, 2)):
            axis.set_label_text(_label(part, number))
            axis.set_major_locator(MaxNLocator(4))
        ax.grid()
    looks.legend(figure, _handles(parts, left_out), KINDS.get(kind, kind), most=4)
    return figure


def space(frame: pd.DataFrame, *, kind: str = "delta", layers: Sequence[int | str] | None = None, width: str = "two") -> Figure:
    """The first three components in space; as `plane`, with the columns pc3 and share3 as well, and up to three layers."""
    plot = "swap_pca.space"
    need(frame, (*COLUMNS, "pc3", "share3"), plot)
    parts, left_out = _panels(frame, plot, kind, layers, 3, most=3)
    across = _across(frame, parts, width)
    side = (6.9 if width == "two" else 3.2) / across
    figure = new_figure(width, 0.65 + side * -(-len(parts) // across))
    for ax, (title, part, limits) in zip(panels(figure, len(parts), across, subplot_kw={"projection": "3d"}), parts, strict=True):
        _marks(ax, part, ("pc1", "pc2", "pc3"))
        if part.empty:
            ax.text2D(0.5, 0.5, "nothing varies", transform=ax.transAxes, ha="center", va="center", color=GREY)
        ax.set(xlim=limits[0], ylim=limits[1], zlim=limits[2])
        ax.set_title(title, parse_math=False, pad=0)
        ax.view_init(elev=22, azim=-60)
        ax.set_box_aspect((1, 1, 1), zoom=0.88)
        for axis, number, pad in ((ax.xaxis, 1, -3), (ax.yaxis, 2, -1), (ax.zaxis, 3, -4)):
            axis.set_label_text(_label(part, number, ""), fontsize=6.5)
            axis.set_rotate_label(number == 3)  # along a slanted axis it would lie across the numbers
            axis.labelpad = pad
            axis.set_ticks(*_inner_ticks(*limits[number - 1]))
            axis.set_tick_params(labelsize=5.5, pad=-1 if number == 3 else -3)
            axis.pane.set_facecolor("white")
    looks.legend(figure, _handles(parts, left_out), f"{KINDS.get(kind, kind)} (axes: share of variance)", most=4)
    return figure


Panel = tuple[str, pd.DataFrame, list[tuple[float, float]]]  # title, rows, range of each component


def _panels(
    frame: pd.DataFrame, plot: str, kind: str, layers: Sequence[int | str] | None, dimensions: int, most: int = 6
) -> tuple[list[Panel], int]:
    """What each panel shows, and how many rows have no component."""
    rows = looks.pick(frame, plot, kind=kind)
    looks.known(rows, plot, "category", CATEGORIES)
    names = [f"pc{i + 1}" for i in range(dimensions)]
    rows = rows.assign(
        layer=rows["layer"].map(looks.layer_text), whole=np.isfinite(rows[names].to_numpy(dtype=float)).all(axis=1)
    )
    several = "scale" in rows.columns
    if not rows["whole"].any():
        raise ValueError(f"{plot}: no row of kind {kind!r} has {dimensions} components; do the states vary?")
    if layers is None:  # at layer 0 the last token of a prompt is one and the same: nothing varies there
        there = looks.ordered_layers(rows.loc[rows["whole"], "layer"], plot)
        layers = [there[len(there) // 2]] if several else looks.chosen_layers(rows[rows["whole"]], plot, None, most)
    chosen = looks.chosen_layers(rows, plot, layers, most)
    rows = rows[rows["layer"].isin(chosen)]
    in_order = rows.sort_values("samples", kind="stable") if several and "samples" in rows.columns else rows
    scales = list(dict.fromkeys(in_order["scale"])) if several else [None]
    left_out, rows = int((~rows["whole"]).sum()), rows[rows["whole"]]
    parts = []
    for layer in chosen:
        at_layer = rows[rows["layer"] == layer]
        limits = _limits(at_layer if several else rows, names)
        for scale in scales:
            title = looks.layer_name(layer)
            if several:
                title = f"{scale}" if len(chosen) == 1 else f"{scale}, {title}"
            parts.append((title, at_layer if scale is None else at_layer[at_layer["scale"] == scale], limits))
    return parts, left_out


def _limits(rows: pd.DataFrame, names: list[str]) -> list[tuple[float, float]]:
    """A range about the middle of each component, of one length for all, so that distances compare."""
    values = rows[names].to_numpy(dtype=float)
    if not len(values):
        return [(-1.0, 1.0)] * len(names)
    middle, half = (values.min(axis=0) + values.max(axis=0)) / 2, float(np.ptp(values, axis=0).max()) / 2
    half = 1.06 * half or 1.0
    return [(float(m - half), float(m + half)) for m in middle]


def _across(frame: pd.DataFrame, parts: list[Panel], width: str) -> int:
    if width == "one":
        return 1
    scales = frame["scale"].nunique() if "scale" in frame.columns else 3
    return min(len(parts), scales if scales in (1, 2, 3, 4) else 3)


def _marks(ax: Axes, part: pd.DataFrame, names: tuple[str, ...]) -> None:
    """Every pair, then the mean of each category over them; order of drawing mixed, so that no category hides the others."""
    groups = [(category, part.loc[part["category"] == category, list(names)].to_numpy(float)) for category in CATEGORIES]
    solid = ax.name == "3d"
    for turn in range(4):
        for category, points in groups:
            tint, mark = looks.LOOKS[category]
            some = points[turn::4]
            look = {"markersize": 2.6, "markeredgewidth": 0, "alpha": 0.65, "rasterized": not solid}
            ax.plot(*some.T, mark, color=tint, linestyle="none", **look)
    for category, points in groups:
        if len(points):
            tint, mark = looks.LOOKS[category]
            ax.plot(*points.mean(axis=0)[:, None], mark, color=tint, markersize=7, markeredgecolor="black", markeredgewidth=0.9)


def _label(part: pd.DataFrame, number: int, of: str = " of variance") -> str:
    shares = part[f"share{number}"].dropna().unique()
    share = f" ({_percent(shares[0])}{of})" if len(shares) else ""
    return f"PC{number}{share}"


def _percent(share: float) -> str:
    return "<1%" if 0 < share < 0.005 else f"{100 * share:.0f}%"


def _inner_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers and their names, none near the corners, where the numbers of two axes would meet."""
    beside = 0.17 * (high - low)
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low + beside <= tick <= high - beside]
    return ticks, [f"{tick:g}".replace("-", "−") for tick in ticks]


def _handles(parts: list[Panel], left_out: int) -> list:
    """Categories with how many pairs each has in a panel, and how many rows could not be shown."""
    sizes = pd.DataFrame([part["category"].value_counts() for _, part, _ in parts if len(part)])
    handles = []
    for category in CATEGORIES:
        if category in sizes.columns:
            tint, mark = looks.LOOKS[category]
            handles.append(looks.handle(f"{category} (n = {looks.counts(sizes[category].fillna(0))})", tint, mark, "none"))
    handles.append(looks.handle("mean of a category", "white", "D", "none", markeredgecolor="black"))
    if left_out:
        handles.append(looks.handle(f"{left_out} without components left out", dashes="none"))
    return handles
