"""Figures of the hidden-norms probe: how long the hidden states of picture and words are, from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.ticker import MaxNLocator

from spatialprobes.plots import COLOURS, CYCLE, GREY, need, new_figure, panels

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STREAM = "stream"  # as the probe calls what stands before the final norm
LOOKS = {  # colour, mark
    "vision": (COLOURS["vision"], "o"),
    "user": (COLOURS["text"], "s"),
    "system": ("#56B4E9", "^"),
    "role": ("#000000", "v"),
}
MARKS = ("o", "s", "^", "D", "v", "P")


def curves(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Mean norm of each group by layer on a log axis, one panel for each model; the row after the final norm stands apart.

    Columns: layer, site ("stream", or "final norm" after it), group, norm, low, high. Optional: model (text). Bands and bars are
    95% intervals. Raises ValueError for a missing column, a norm that is not above 0, or a group that stands twice at a layer.
    """
    need(frame, ("layer", "site", "group", "norm", "low", "high"), "hidden_norms.curves")
    frame = frame if "model" in frame.columns else frame.assign(model="")
    _check(frame, "norm", ["model", "group"], "hidden_norms.curves")
    models = list(dict.fromkeys(frame["model"]))
    lines = -(-len(models) // 3)
    figure = new_figure(width, 0.4 + 2.5 * lines)
    axes = panels(figure, len(models), sharey=True)
    for ax, model in zip(axes, models, strict=True):
        rows = frame[frame["model"] == model]
        for index, (group, part) in enumerate(rows.groupby("group", sort=False)):
            tint, mark = LOOKS.get(group, (CYCLE[index % len(CYCLE)], MARKS[index % len(MARKS)]))
            _line(ax, part, "norm", tint, mark, str(group))
        ax.set_yscale("log")
        ax.set_title(str(model), parse_math=False)
        _layers(ax, rows)
    for ax in axes[::3]:
        ax.set_ylabel("mean norm (log scale)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(set(frame["group"])))
    return figure


def ratios(frame: pd.DataFrame, *, width: str = "two") -> Figure:
    """Norm of vision over that of text by layer, as log10, one line for each model; the row after the final norm stands apart.

    Columns: layer, site ("stream", or "final norm" after it), how (how it was averaged), ratio, low, high (above 0). Optional:
    model (text). 0 is the same length, 1 ten times as long. Raises ValueError for a missing column, a ratio that is not above 0,
    or a line that stands twice at a layer.
    """
    need(frame, ("layer", "site", "how", "ratio", "low", "high"), "hidden_norms.ratios")
    frame = frame if "model" in frame.columns else frame.assign(model="")
    _check(frame, "ratio", ["model", "how"], "hidden_norms.ratios")
    logs = frame.assign(**{name: np.log10(frame[name]) for name in ("ratio", "low", "high")})
    several, hows = frame["model"].nunique() > 1, frame["how"].nunique() > 1
    ax = new_figure(width, 2.9).subplots()
    for index, ((model, how), part) in enumerate(logs.groupby(["model", "how"], sort=False)):
        named = str(how).replace("_", " ")
        label = f"{model}, {named}" if several and hows else str(model) if several else named
        dashes = "-" if how == logs["how"].iloc[0] else (0, (3, 3))  # lines that coincide both show
        _line(ax, part, "ratio", CYCLE[index % len(CYCLE)], MARKS[index % len(MARKS)], label, dashes)
    ax.axhline(0, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    ax.set_ylabel("log10 of vision / text norm")
    _layers(ax, logs)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2 if several and hows else 4)
    return ax.figure


def _check(frame: pd.DataFrame, value: str, by: list[str], plot: str) -> None:
    if not (frame[[value, "low", "high"]] > 0).all(axis=None):
        raise ValueError(f"{plot}: a {value} or the end of its interval is not above 0, or is NaN")
    if (twice := frame.duplicated([*by, "layer", "site"])).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{plot}: {row[by[-1]]!r} stands twice at layer {row['layer']}, {row['site']}")


def _line(ax: Axes, rows: pd.DataFrame, value: str, tint: str, mark: str, label: str, dashes="-") -> None:
    stream = rows[rows["site"] == STREAM].sort_values("layer")
    after = rows[rows["site"] != STREAM]
    ax.fill_between(stream["layer"], stream["low"], stream["high"], color=tint, alpha=0.2, linewidth=0)
    ax.plot(stream["layer"], stream[value], mark, linestyle=dashes, color=tint, label=label, markersize=3.5)
    place = after["layer"] + _apart(rows)
    ax.vlines(place, after["low"], after["high"], color=tint, linewidth=1.2)
    ax.plot(place, after[value], mark, color=tint, markerfacecolor="white", markersize=4.5)


def _layers(ax: Axes, rows: pd.DataFrame) -> None:
    """The axis of layers; what comes after the final norm stands behind a line, under its own name."""
    last = int(rows["layer"].max())
    ticks = [int(tick) for tick in MaxNLocator(8, integer=True).tick_values(0, last) if 0 <= tick <= last]
    labels = [str(tick) for tick in ticks]
    if (rows["site"] != STREAM).any():
        apart = _apart(rows)
        ax.axvline(last + apart / 2, color=GREY, linewidth=0.7, linestyle=(0, (1, 1.5)))
        ticks, labels = [*ticks, last + apart], [*labels, "after\nnorm"]
    ax.set_xticks(ticks, labels)
    ax.set_xlabel("layer (0: input)")
    ax.grid(axis="y")


def _apart(rows: pd.DataFrame) -> float:
    """How far behind the last layer the row after the norm is drawn."""
    return max(1.0, 0.2 * float(rows["layer"].max()))
