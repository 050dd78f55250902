"""Figure of the similarity of categories: cosines of their mean differences, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.pairs import CATEGORIES, GROUPS
from spatialprobes.plots import need, new_figure, panels
from spatialprobes.plots import swap_looks as looks

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ACROSS = {"one": 1, "two": 3}


def matrix(
    frame: pd.DataFrame, *, layer: int | str | Sequence[int | str] | None = None, variant: str = "all", width: str = "two"
) -> Figure:
    """Cosine of the mean differences of each two categories, opposites side by side, one panel a layer, colours from -1 to 1.

    Columns: layer, variant, row, column (categories), cosine, n_row (pairs of the row's category). layer: one or several;
    None: up to three of those with a cosine, from the first to the last. NaN cells are grey and say "none". Raises ValueError
    for a missing column, a layer or variant that is not there, a cell that stands twice, or a cosine outside [-1, 1].
    """
    plot = "swap_similarity.matrix"
    need(frame, ("layer", "variant", "row", "column", "cosine", "n_row"), plot)
    rows = looks.pick(frame, plot, variant=variant)
    rows = rows.assign(layer=rows["layer"].map(looks.layer_text))
    some = rows[rows["cosine"].notna()]  # at layer 0 the last token of a prompt is one and the same: there are no differences
    layers = looks.chosen_layers(some if layer is None and len(some) else rows, plot, layer, 3)
    rows = looks.once(rows[rows["layer"].isin(layers)], plot, ("layer", "row", "column"))
    if (rows["cosine"].abs() > 1 + 1e-6).any():
        raise ValueError(f"{plot}: cosine {rows['cosine'].abs().max():.3g} is no cosine")
    there = {*looks.known(rows, plot, "row", CATEGORIES), *looks.known(rows, plot, "column", CATEGORIES)}
    names = [name for name in CATEGORIES if name in there]
    across = ACROSS.get(width, 1)
    figure = new_figure(width, 0.5 + 2.25 * -(-len(layers) // across))
    for place, (ax, name) in enumerate(zip(panels(figure, len(layers), across), layers, strict=True)):
        part = rows[rows["layer"] == name]
        grid = part.pivot(index="row", columns="column", values="cosine").reindex(index=names, columns=names).to_numpy(float)
        shown = ax.imshow(grid, cmap="RdBu_r", vmin=-1, vmax=1)
        _values(ax, grid)
        many = part.groupby("row")["n_row"].max()
        labels = [f"{one} ({looks.counts(many.reindex([one]))})" for one in names]
        ax.set_yticks(range(len(names)), labels if place % across == 0 else [])
        ax.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.set_title(looks.layer_name(name))
    bar = figure.colorbar(shown, ax=figure.axes, fraction=0.05, pad=0.02, aspect=25, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("cosine of mean differences")
    return figure


def _values(ax, grid: np.ndarray) -> None:
    """The number in each cell, in black or white, and lines between the groups."""
    ax.set_facecolor("#DDDDDD")
    for (i, j), value in np.ndenumerate(grid):
        words = "none" if np.isnan(value) else f"{round(value, 2) + 0:.2f}".replace("0.", ".").replace("-", "−")
        ax.text(j, i, words, ha="center", va="center", fontsize=6, color="white" if abs(value) > 0.62 else "black")
    if len(grid) == 2 * len(GROUPS):
        for edge in range(2, len(grid), 2):
            ax.axvline(edge - 0.5, color="white", linewidth=2)
            ax.axhline(edge - 0.5, color="white", linewidth=2)
