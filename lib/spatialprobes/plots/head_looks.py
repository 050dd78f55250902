"""What the figures of attention heads share: a colour, mark and dash a role, corners by name, grids of layers and heads.

Holds no figure function of its own.
"""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from spatialprobes.plots import CYCLE, WIDTHS, new_figure, panels
from spatialprobes.plots.swap_looks import SIGNIFICANT, counts, once

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

ROLES: dict[str, tuple[str, str, Any]] = {  # colour, mark, dashes
    "subject": (CYCLE[0], "o", "-"),
    "reference": (CYCLE[2], "s", (0, (4, 1.5))),
    "relation": (CYCLE[3], "D", (0, (1, 1.2))),
}
CORNERS = {
    "topleft": "top left",
    "topright": "top right",
    "bottomleft": "bottom left",
    "bottomright": "bottom right",
}
METRICS = {  # what is measured, as an axis label; a metric that is not here goes by its own name
    "lift": "lift (share of the map in the box / share of the area)",
    "mass": "mass in the box (share of the map)",
    "hit": "pointing game (share of hits)",
    "auc": "area under the ROC curve",
    "entropy_share": "entropy / ln N (1: flat)",
    "entropy": "entropy (nats)",
    "com": "distance of the centres (cells)",
    "iou": "IoU of the greatest cells",
    "soft_iou": "soft IoU",
    "wasserstein": "earth mover's distance along the axis (cells)",
    "wasserstein_x": "Wasserstein distance along x (columns)",
    "distance": "distance of the centres (diagonals)",
    "entity_bg_ratio": "mass on box / mass on background",
    "dispersion": "dispersion (cells²)",
    "disperson": "dispersion (cells²)",
}
LOWER_IS_BETTER = ("com", "wasserstein_x", "distance", "dispersion", "disperson", "entropy", "wasserstein")
DIVERGING = colormaps["PuOr"]  # orange below, violet above
TALLEST = 2.7  # inches of a grid


def plain(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with text instead of categories, which could not be compared between columns."""
    found = [name for name, kind in frame.dtypes.items() if isinstance(kind, pd.CategoricalDtype)]
    return frame.astype(dict.fromkeys(found, object)) if found else frame


def role_look(role: str, place: int) -> tuple[str, str, Any]:
    """Colour, mark and dashes of a role, or those of the `place`-th that has none of its own."""
    return ROLES.get(role, (CYCLE[(4 + place) % len(CYCLE)], ("^", "v", "P", "X")[place % 4], "-"))


def metric_label(metric: str) -> str:
    return METRICS.get(metric, str(metric).replace("_", " "))


def corner_name(corner: str) -> str:
    return CORNERS.get(str(corner), str(corner))


def in_order(found: pd.Series, order: tuple[str, ...] | list[str]) -> list[str]:
    """What the column holds: first what `order` knows, in its order, then the rest as it comes."""
    there = list(dict.fromkeys(found))
    return [one for one in order if one in there] + [one for one in there if one not in order]


def head_name(layer: Any, head: Any) -> str:
    return f"L{int(layer)} H{int(head)}"


def grids(
    frame: pd.DataFrame,
    plot: str,
    by: str,
    value: str,
    scale: Normalize,
    names: list[Any],
    titles: dict[Any, str],
    width: str,
    across: int = 2,
    tallest: float = TALLEST,
) -> tuple[Figure, list[Axes], Any]:
    """A panel for each of `names` (values of the column `by`): layers down, heads across, one colour scale.

    Where the table has q, heads with q < .05 have a dot, and the title says how many. Layers without a row are left out, their
    numbers stay. Returns the figure, its axes and what a colour bar is made from. Raises ValueError for a head that stands twice.
    """
    once(frame, plot, (by, "layer", "head"))
    across = 1 if width == "one" else min(across, len(names))
    layers = int(frame.groupby(by)["layer"].nunique().max())
    tall = min(max(0.17 * layers, 1.1), tallest)
    figure = new_figure(width, 0.35 + -(-len(names) // across) * (tall + 0.75))
    axes = panels(figure, len(names), across)
    for ax, name in zip(axes, names, strict=True):
        rows = frame[frame[by] == name]
        grid = rows.pivot(index="layer", columns="head", values=value)
        shown = ax.imshow(grid, aspect="auto", cmap=DIVERGING, norm=scale)
        title = f"{titles[name]}  (n = {counts(rows['n'])})"
        if "q" in rows.columns and rows["q"].notna().any():
            q = rows.pivot(index="layer", columns="head", values="q").loc[grid.index, grid.columns].to_numpy(float)
            cell = min((WIDTHS[width] - 0.9) / across / grid.shape[1] * 0.8, tall / grid.shape[0])  # inches
            _dots(ax, grid.to_numpy(float), q < SIGNIFICANT, scale, cell)
            title += f"\n{int((q < SIGNIFICANT).sum()):,} of {int(np.isfinite(q).sum()):,} heads at q < .05"
        ax.set_title(title, parse_math=False)
        for axis, labels, word in ((ax.xaxis, grid.columns, "head"), (ax.yaxis, grid.index, "layer")):
            between = MaxNLocator(8, integer=True).tick_values(0, max(1, len(labels) - 1))
            places = [int(place) for place in between if 0 <= place < len(labels)]
            axis.set_ticks(places, [str(labels[place]) for place in places])
            axis.set_label_text(word)
    return figure, axes, shown


def _dots(ax: Axes, values: np.ndarray, marked: np.ndarray, scale: Normalize, cell: float) -> None:
    """A dot in each marked cell: black on light cells, white on dark ones."""
    dark = np.abs(2 * np.ma.getdata(scale(values)) - 1) > 0.6
    for some, tint in ((marked & ~dark, "black"), (marked & dark, "white")):
        rows, cols = np.nonzero(some)
        ax.plot(cols, rows, "o", color=tint, markersize=float(np.clip(0.3 * 72 * cell, 0.8, 3.5)), markeredgewidth=0)


def colour_bar(figure: Figure, axes: list[Axes], shown: Any, label: str) -> Axes:
    """Beside all panels, its label in as many lines as it needs; returns its axes."""
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.02, aspect=30)
    room = int(0.72 * 72 * figure.get_figheight() / 4.3)  # letters
    bar.set_label("\n".join(fill(line, room) for line in label.split("\n")), parse_math=False)
    return bar.ax


def reach(values: pd.Series) -> float:
    """The largest size among the values, for a scale around 0; 1 where all are 0 or missing."""
    found = np.abs(values.to_numpy(dtype=float))
    return float(found[np.isfinite(found)].max(initial=0.0)) or 1.0
