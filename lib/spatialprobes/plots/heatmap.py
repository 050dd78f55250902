"""Figures of weights on a picture's grid: attention of a word, probability of a cell, change by an intervention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Rectangle

from spatialprobes.plots import need, new_figure
from spatialprobes.plots.scenes import picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOX = ("x_min", "y_min", "x_max", "y_max")


def overlay(
    frame: pd.DataFrame, *, label: str = "attention weight", unit: str = "", greatest: float | None = None, width: str = "two"
) -> Figure:
    """Each example's picture, and beside it one panel for each word: the weights over the picture in grey, on one colour scale.

    Columns: example (text), word (what the panel is about), row and col (grid cell, from the top left, 0-based), weight (>= 0),
    png (the picture's bytes). Optional: x_min, y_min, x_max, y_max, the box of the thing meant, in fractions of the picture, the
    same on all rows of a panel, NaN for none. label and unit name the colour bar; greatest ends its scale (default: the largest
    weight). Cells without a row stay clear. Raises ValueError for a missing column, a cell that stands twice, a negative weight.
    """
    need(frame, ("example", "word", "row", "col", "weight", "png"), "heatmap.overlay")
    if (twice := frame.duplicated(["example", "word", "row", "col"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(
            f"heatmap.overlay: cell ({row['row']}, {row['col']}) of {row['example']!r}, {row['word']!r} stands twice"
        )
    if not (frame["weight"] >= 0).all():
        raise ValueError("heatmap.overlay: a weight is negative or NaN")
    for axis in ("row", "col"):
        if not ((frame[axis] >= 0) & (frame[axis] % 1 == 0)).all():
            raise ValueError(f"heatmap.overlay: {axis} holds what is no place in a grid (0, 1, 2, ...)")
    top = float(frame["weight"].max()) if greatest is None else float(greatest)
    scale = Normalize(0, top if top > 0 else 1)
    examples = [(name, rows, list(rows.groupby("word", sort=False))) for name, rows in frame.groupby("example", sort=False)]
    across = 1 + max(len(words) for _, _, words in examples)
    first = picture(frame["png"].iloc[0])
    cell = 6.0 / max(across, 4)
    figure = new_figure(width, 0.35 + len(examples) * (cell * first.shape[0] / first.shape[1] + 0.3))
    axes = figure.subplots(len(examples), across, squeeze=False)
    for line, (name, rows, words) in zip(axes, examples, strict=True):
        image = picture(rows["png"].iloc[0])
        line[0].imshow(image, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1])
        line[0].set_title(str(name), parse_math=False)
        for ax, (word, cells) in zip(line[1:], words, strict=False):
            shown = _panel(ax, image, cells, scale)
            ax.set_title(str(word), parse_math=False)
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.5)
        for ax in line[1 + len(words) :]:
            ax.set_axis_off()
    bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02, aspect=25)
    bar.set_label(f"{label} ({unit})" if unit else label, parse_math=False)
    return figure


def _ramp() -> ListedColormap:
    """Yellow to dark red, opaque only where the weight is: little weight lets the picture through."""
    colours = colormaps["YlOrRd"](np.linspace(0, 1, 256))
    colours[:, 3] = 0.15 + 0.8 * np.sqrt(np.linspace(0, 1, 256))
    return ListedColormap(colours)


def _panel(ax: Axes, image: np.ndarray, cells: pd.DataFrame, scale: Normalize):
    """Grey picture, weights over it, box around the thing meant; returns what a colour bar is made from."""
    rows, cols = cells["row"].to_numpy(dtype=int), cells["col"].to_numpy(dtype=int)
    grid = np.full((rows.max() + 1, cols.max() + 1), np.nan)
    grid[rows, cols] = cells["weight"]
    grey = image @ np.array([0.299, 0.587, 0.114]) * 0.6 + 102  # luma of ITU-R BT.601, made pale: colour is for the weights
    aspect = image.shape[0] / image.shape[1]
    ax.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0), aspect=aspect)
    shown = ax.imshow(grid, cmap=_ramp(), norm=scale, extent=(0, 1, 1, 0), aspect=aspect)
    if all(name in cells.columns for name in BOX):
        x_min, y_min, x_max, y_max = cells[list(BOX)].iloc[0].astype(float)
        if not np.isnan([x_min, y_min, x_max, y_max]).any():
            for tint, thickness in (("black", 2.4), ("white", 1.2)):  # seen on light and dark cells
                frame = Rectangle((x_min, y_min), x_max - x_min, y_max - y_min, fill=False, edgecolor=tint, linewidth=thickness)
                ax.add_patch(frame)
    return shown
