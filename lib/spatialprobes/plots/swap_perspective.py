"""Figure of worlds of more and less perspective: does the model's alignment of height with distance follow the world's own?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib import colormaps
from matplotlib.colors import to_hex

from spatialprobes.plots import GREY, need, new_figure, panels
from spatialprobes.plots import swap_looks as looks
from spatialprobes.plots.swap import MEASURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")


def alignment(
    frame: pd.DataFrame,
    *,
    measure: str | None = None,
    layer: int | str | Sequence[int | str] | None = None,
    width: str = "two",
) -> Figure:
    """Alignment of vertical with distance differences against the world's correlation of height with distance, a line a layer.

    Columns: perspective (of the world a model was trained in), world_correlation (of height in the picture with distance,
    measured in that world), layer, measure, estimate (cosine), low, high. A mark's shape is its world's perspective, a bar
    its 95% interval. measure: None for a panel each. layer: one or several; None: up to four of those with an estimate, from
    the first to the last. Raises ValueError for a missing column, a value that is not there, or a row that stands twice.
    """
    plot = "swap_perspective.alignment"
    need(frame, ("perspective", "world_correlation", "layer", "measure", "estimate", "low", "high"), plot)
    rows = frame if measure is None else looks.pick(frame, plot, measure=measure)
    if rows[["perspective", "world_correlation"]].isna().any(axis=None):
        raise ValueError(f"{plot}: a row has no perspective or no world_correlation; every model's world must be known")
    some = rows[rows["estimate"].notna()]  # at layer 0 the last token of a prompt is one and the same: there are no differences
    layers = looks.chosen_layers(some if layer is None and len(some) else rows, plot, layer, 4)
    rows = rows.assign(layer=rows["layer"].map(looks.layer_text))
    rows = looks.once(rows[rows["layer"].isin(layers)], plot, ("measure", "layer", "perspective"))
    names, worlds = list(dict.fromkeys(rows["measure"])), sorted(rows["perspective"].unique())
    tints = [to_hex(colormaps["viridis"](0.85 * (1 - i / max(1, len(layers) - 1)))) for i in range(len(layers))]
    across = 1 if width == "one" else 2
    figure = new_figure(width, 0.5 + 2.3 * -(-len(names) // across))
    axes = panels(figure, len(names), across, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for tint, one in zip(tints, layers, strict=True):
            own = rows[(rows["measure"] == name) & (rows["layer"] == one)].sort_values("world_correlation")
            ax.plot(own["world_correlation"], own["estimate"], color=tint)
            ax.vlines(own["world_correlation"], own["low"], own["high"], color=tint, linewidth=1.3)
            for row in own.itertuples():
                ax.plot([row.world_correlation], [row.estimate], MARKS[worlds.index(row.perspective) % len(MARKS)], color=tint)
        ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)
        ax.axvline(0, color=GREY, linewidth=0.7, zorder=0)
        ax.set_title(MEASURES.get(name, (name,))[0], parse_math=False)
        ax.set_xlabel("correlation of height and distance in the world")
        ax.grid(axis="y")
    for ax in axes[::across]:
        ax.set_ylabel(f"alignment (cosine, {looks.measured_with(rows)})")
    handles = [looks.handle(looks.layer_name(one), tint) for tint, one in zip(tints, layers, strict=True)]
    for index, world in enumerate(worlds):
        handles.append(looks.handle(f"perspective {world:g}", GREY, MARKS[index % len(MARKS)], "none"))
    looks.legend(figure, [*handles, *looks.gap_handles(rows)])
    return figure
