"""Figures of weights on a picture's grid: attention of a word, probability of a cell, change by an intervention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from spatialprobes.plots import CYCLE, need, new_figure
from spatialprobes.plots.scenes import picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BOX = ("x_min", "y_min", "x_max", "y_max")
FRAME = ("scale_x", "scale_y", "shift_x", "shift_y")
MARKS = ("o", "s", "D", "^", "v", "P")


def overlay(
    frame: pd.DataFrame, *, label: str = "attention weight", unit: str = "", greatest: float | None = None, width: str = "two"
) -> Figure:
    """Each example's picture, and beside it one panel for each word: the weights over the picture in grey, on one colour scale.

    Columns: example (text), word (what the panel is about), row and col (grid cell, from the top left, 0-based), weight (>= 0),
    png (the picture's bytes). Optional: x_min, y_min, x_max, y_max, the box of the thing meant, in fractions of the picture, the
    same on all rows of a panel, NaN for none; scale_x, scale_y, shift_x, shift_y, where the model saw the picture, as the probes
    write it (a point at x was seen at scale_x * x + shift_x, in fractions): without them, all of it was. What was cropped away
    has no colour; how much weight lies on padding, beside the picture, is written below. label and unit name the colour bar;
    greatest ends its scale (default: the largest weight). Cells without a row stay clear. Raises ValueError for a missing column,
    a cell that stands twice, a negative weight, a scale that is not above 0 or differs within a panel.
    """
    check_cells(frame, "heatmap.overlay")
    figure, _ = lay_out(frame, _own_box, label=label, unit=unit, greatest=greatest, width=width)
    return figure


def check_cells(frame: pd.DataFrame, plot: str) -> None:
    """Raise ValueError for a table of maps that `overlay` describes as refused, in the name of the figure `plot`."""
    need(frame, ("example", "word", "row", "col", "weight", "png"), plot)
    if (twice := frame.duplicated(["example", "word", "row", "col"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{plot}: cell ({row['row']}, {row['col']}) of {row['example']!r}, {row['word']!r} stands twice")
    if not (frame["weight"] >= 0).all():
        raise ValueError(f"{plot}: a weight is negative or NaN")
    for axis in ("row", "col"):
        if not ((frame[axis] >= 0) & (frame[axis] % 1 == 0)).all():
            raise ValueError(f"{plot}: {axis} holds what is no place in a grid (0, 1, 2, ...)")
    if present := [name for name in FRAME if name in frame.columns]:
        need(frame, FRAME, plot)
        if (frame.groupby(["example", "word"])[present].nunique(dropna=False) != 1).any(axis=None):
            raise ValueError(f"{plot}: scale or shift differs within a panel")
        if not (np.isfinite(frame[present]).all(axis=None) and (frame[["scale_x", "scale_y"]] > 0).all(axis=None)):
            raise ValueError(f"{plot}: a scale is not above 0, or a shift is no number")


def lay_out(
    frame: pd.DataFrame,
    draw_boxes: Callable[[Axes, pd.DataFrame], None],
    *,
    label: str,
    unit: str,
    greatest: float | None,
    width: str,
    room: float = 0.3,
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """One line of panels an example, its picture first and then its maps, on one colour scale; cells as of `overlay`, checked.

    draw_boxes(axes, cells) draws over each map. room: inches for the words around a panel. Returns the figure and, for each
    example, the axes of its picture with the example's rows.
    """
    top = float(frame["weight"].max()) if greatest is None else float(greatest)
    scale = Normalize(0, top if top > 0 else 1)
    examples = [(name, rows, list(rows.groupby("word", sort=False))) for name, rows in frame.groupby("example", sort=False)]
    across = 1 + max(len(words) for _, _, words in examples)
    first = picture(frame["png"].iloc[0])
    cell = 6.0 / max(across, 4)
    figure = new_figure(width, 0.35 + len(examples) * (cell * first.shape[0] / first.shape[1] + room))
    axes = figure.subplots(len(examples), across, squeeze=False)
    pictures = []
    for line, (name, rows, words) in zip(axes, examples, strict=True):
        image = picture(rows["png"].iloc[0])
        line[0].imshow(image, extent=(0, 1, 1, 0), aspect=image.shape[0] / image.shape[1])
        line[0].set_title(str(name), parse_math=False)
        pictures.append((line[0], rows))
        for ax, (word, cells) in zip(line[1:], words, strict=False):
            shown = _panel(ax, image, cells, scale)
            draw_boxes(ax, cells)
            ax.set_title(str(word), parse_math=False)
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#BBBBBB", linewidth=0.5)
        for ax in line[1 + len(words) :]:
            ax.set_axis_off()
    bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02, aspect=25)
    bar.set_label(f"{label} ({unit})" if unit else label, parse_math=False)
    return figure, pictures


def draw_box(ax: Axes, cells: pd.DataFrame, names: Sequence[str], tint: str = "white", under: str = "black", **look: Any) -> None:
    """The box whose left, upper, right and lower edge stand in the first of the rows under `names`; NaN draws none.

    Drawn twice, wide in `under` and thin in `tint`, so that it is seen on light and dark cells; look: of the thin one.
    """
    x_min, y_min, x_max, y_max = cells[list(names)].iloc[0].astype(float)
    if np.isnan([x_min, y_min, x_max, y_max]).any():
        return
    for colour, thickness, more in ((under, 2.4, {}), (tint, 1.2, look)):
        box = Rectangle((x_min, y_min), x_max - x_min, y_max - y_min, fill=False, edgecolor=colour, linewidth=thickness, **more)
        ax.add_patch(box)


def _own_box(ax: Axes, cells: pd.DataFrame) -> None:
    if all(name in cells.columns for name in BOX):
        draw_box(ax, cells, BOX)


def _ramp() -> ListedColormap:
    """Yellow to dark red, equally clear throughout: more weight is darker whatever lies beneath."""
    colours = colormaps["YlOrRd"](np.linspace(0, 1, 256))
    colours[:, 3] = 0.65
    return ListedColormap(colours)


def _panel(ax: Axes, image: np.ndarray, cells: pd.DataFrame, scale: Normalize):
    """Grey picture, weights over it; returns what a colour bar is made from."""
    rows, cols = cells["row"].to_numpy(dtype=int), cells["col"].to_numpy(dtype=int)
    grid = np.full((rows.max() + 1, cols.max() + 1), np.nan)
    grid[rows, cols] = cells["weight"]
    grey = image @ np.array([0.299, 0.587, 0.114]) * 0.85 + 38  # luma of ITU-R BT.601, made pale: colour is for the weights
    aspect = image.shape[0] / image.shape[1]
    ax.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0), aspect=aspect)
    left, right, upper, lower = _window(cells)
    shown = ax.imshow(grid, cmap=_ramp(), norm=scale, extent=(left, right, lower, upper), aspect=aspect)
    ax.set(xlim=(0, 1), ylim=(1, 0))
    x, y = left + (cols + 0.5) / grid.shape[1] * (right - left), upper + (rows + 0.5) / grid.shape[0] * (lower - upper)
    beside = cells["weight"].to_numpy()[(x < 0) | (x > 1) | (y < 0) | (y > 1)].sum() / max(cells["weight"].sum(), 1e-300)
    if beside > 0:
        ax.set_xlabel(f"{100 * beside:.0f}% on padding", fontsize=7)
    return shown


def _window(cells: pd.DataFrame) -> tuple[float, float, float, float]:
    """What the model saw, in fractions of the picture: left, right, upper, lower edge; beyond 0..1 is padding."""
    if "scale_x" not in cells.columns:
        return 0.0, 1.0, 0.0, 1.0
    scale_x, scale_y, shift_x, shift_y = cells[list(FRAME)].iloc[0].astype(float)
    return -shift_x / scale_x, (1 - shift_x) / scale_x, -shift_y / scale_y, (1 - shift_y) / scale_y


def entropy(frame: pd.DataFrame, *, width: str = "one") -> Figure:
    """Normalised entropy of maps: data sets down, a mark with its 95% interval for each model.

    Columns: dataset, model (text), entropy, low, high (0: one cell has it all, 1: a flat map), n (maps). Raises ValueError for a
    missing column, a value outside [0, 1], or a data set that stands twice for a model.
    """
    need(frame, ("dataset", "model", "entropy", "low", "high", "n"), "heatmap.entropy")
    if (twice := frame.duplicated(["dataset", "model"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"heatmap.entropy: {row['dataset']!r} of {row['model']!r} stands twice")
    if not frame["entropy"].between(0, 1).all():
        raise ValueError("heatmap.entropy: an entropy lies outside [0, 1], or is NaN")
    datasets, models = list(dict.fromkeys(frame["dataset"])), list(dict.fromkeys(frame["model"]))
    ax = new_figure(width, 0.95 + 0.17 * len(models) + len(datasets) * (0.2 + 0.12 * len(models))).subplots()
    spread = np.linspace(-0.25, 0.25, len(models)) if len(models) > 1 else [0.0]
    for index, model in enumerate(models):
        rows = frame[frame["model"] == model]
        y = rows["dataset"].map(datasets.index) + spread[index]
        tint = CYCLE[index % len(CYCLE)]
        ax.hlines(y, rows["low"], rows["high"], color=tint, linewidth=1.5)
        ax.plot(rows["entropy"], y, MARKS[index % len(MARKS)], color=tint, label=str(model), markersize=4.5)
    labels = [f"{name}  (n = {_counts(frame.loc[frame['dataset'] == name, 'n'])})" for name in datasets]
    ax.set_yticks(range(len(datasets)), labels, parse_math=False)
    ax.set_ylim(len(datasets) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.set_xlabel("entropy of the map (1: flat)")
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    for text in ax.figure.legend(loc="outside upper center", ncols=1 if width == "one" else len(models)).get_texts():
        text.set_parse_math(False)
    return ax.figure


def _counts(n: pd.Series) -> str:
    return "-".join(f"{count:,}" for count in sorted(set(n)))
