"""What the figures of swap pairs share: one colour and mark a category, the greys of controls, lines by layer with bands.

Holds no figure function of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from spatialprobes.pairs import CATEGORIES, GROUPS
from spatialprobes.plots import GREY

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = tuple[str, str]  # colour, mark
# Opposites are dark and light of one hue; of any two, CIELAB colours lie 26 apart or more also for red- and green-blind eyes.
LOOKS: dict[str, Look] = {
    "left": ("#0072B2", "<"),
    "right": ("#7CC4EE", ">"),
    "above": ("#C04A00", "^"),
    "under": ("#F0A83C", "v"),
    "far": ("#00664B", "s"),
    "close": ("#8FD9BF", "o"),
}
LOOKS |= {group: LOOKS[canonical] for group, (canonical, _) in GROUPS.items()}  # a group is pooled as if all were canonical
ORDER = (*GROUPS, *CATEGORIES)
CONTROLS: dict[str, tuple[str, Any, str]] = {  # grey, dashes, what it is
    "shuffled": ("#6B6B6B", (0, (1, 1.2)), "shuffled"),
    "blank": ("#8A8A8A", (0, (4, 1.5)), "blank image"),
    "mismatched": ("#A6A6A6", "-", "mismatched image"),
}
SIGNIFICANT = 0.05
HANDLE, LETTER = 36.0, 4.3  # points: what stands before a name in a legend, and a letter of it


# --- rows of a table ---


def pick(frame: pd.DataFrame, plot: str, **wanted: Any) -> pd.DataFrame:
    """The rows whose columns have these values, one column after another. Raises ValueError naming the values there are."""
    for column, value in wanted.items():
        rows = frame[frame[column] == value]
        if rows.empty:
            there = ", ".join(sorted(map(str, frame[column].unique())))
            raise ValueError(f"{plot}: no rows with {column} {value!r}; there: {there}")
        frame = rows
    return frame


def once(frame: pd.DataFrame, plot: str, by: Sequence[str]) -> pd.DataFrame:
    """The table, where no two rows agree in the columns `by`. Raises ValueError naming a place that stands twice."""
    if (twice := frame.duplicated(list(by))).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"{plot}: {', '.join(f'{name} {row[name]}' for name in by)} stands twice in the table")
    return frame


def known(frame: pd.DataFrame, plot: str, column: str, legal: Iterable[str]) -> list[str]:
    """What the column holds, in the order of `legal`. Raises ValueError for anything else."""
    legal, found = tuple(legal), set(frame[column])
    if wrong := sorted(map(str, found - set(legal))):
        raise ValueError(f"{plot}: {column} {wrong[0]!r} is not one of {', '.join(legal)}")
    return [name for name in legal if name in found]


def doubted(frame: pd.DataFrame) -> pd.Series:
    """True where the table says that a category is not reliable; not where it says nothing."""
    if "reliable" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return ~frame["reliable"].astype("boolean").fillna(True).astype(bool)


def sized(name: str, rows: pd.DataFrame) -> str:
    """A name with the n of its estimates (of all rows, where there is none)."""
    there = rows[rows["estimate"].notna()]
    return f"{name}  (n = {counts((there if len(there) else rows)['n'])})" if len(rows) else name


def layer_text(layer: Any) -> str:
    """4 as "4"; also 4.0, which is what tables make of it where some rows have no layer."""
    return f"{layer:g}" if isinstance(layer, float | np.floating) else str(layer)


def ordered_layers(layers: Iterable[Any], plot: str) -> list[str]:
    """The layers as text, in the order of the model: 0, 1, ..., then "norm". Raises ValueError for what is no layer."""
    found = {layer_text(layer) for layer in layers}
    if wrong := sorted(layer for layer in found if not re.fullmatch(r"\d+|norm", layer)):
        raise ValueError(f"{plot}: layer {wrong[0]!r} is neither a number from 0 nor 'norm'")
    return sorted(found, key=lambda layer: (layer == "norm", int(layer) if layer != "norm" else 0))


def chosen_layers(frame: pd.DataFrame, plot: str, wanted: Any, most: int) -> list[str]:
    """The layers asked for (one, or several), or `most` of those there, evenly spread from the first to the last."""
    there = ordered_layers(frame["layer"], plot)
    if wanted is None:
        return [there[place] for place in np.unique(np.linspace(0, len(there) - 1, min(most, len(there))).round().astype(int))]
    asked = [layer_text(layer) for layer in (wanted if isinstance(wanted, (list, tuple)) else [wanted])]
    if not asked:
        raise ValueError(f"{plot}: no layer asked for; there: {', '.join(there)}")
    if missing := [layer for layer in asked if layer not in there]:
        raise ValueError(f"{plot}: layer {missing[0]} is not in the table; there: {', '.join(there)}")
    return asked


def layer_name(layer: str) -> str:
    return "after the final norm" if layer == "norm" else f"layer {layer}"


def counts(n: pd.Series) -> str:
    """How many, or from how few to how many; of those that are known (tables from elsewhere may lack n)."""
    if (n := n.dropna()).empty:
        return "?"
    least, most = int(n.min()), int(n.max())
    return f"{least:,}" if least == most else f"{least:,}–{most:,}"


# --- lines with bands ---


def line(
    ax: Axes,
    x: np.ndarray,
    rows: pd.DataFrame,
    tint: str,
    *,
    mark: str = "",
    dashes: Any = "-",
    size: float = 3.5,
    filled: np.ndarray | None = None,
    band: float = 0.18,
    aside: float = 0.0,
) -> None:
    """`estimate` of the rows at x, with its interval as a band (as a bar, where a point stands alone); NaN is a gap.

    filled: which marks are solid; the others are hollow. None: all. aside: how far to the right a point that stands alone is.
    """
    y, low, high = (rows[name].to_numpy(dtype=float) for name in ("estimate", "low", "high"))
    filled = np.ones(len(y), dtype=bool) if filled is None else np.asarray(filled, dtype=bool)
    there = np.isfinite(y)
    beside = np.r_[there[1:], False] | np.r_[False, there[:-1]]
    ax.fill_between(x, np.where(there, low, np.nan), np.where(there, high, np.nan), color=tint, alpha=band, linewidth=0)
    if (alone := there & ~beside).any():
        x = np.where(alone, x + aside, x)
        ax.vlines(x[alone], low[alone], high[alone], color=tint, linewidth=1.1, linestyle=dashes)
        if not mark:
            ax.plot(x[alone], y[alone], "_", color=tint, markersize=4)
    ax.plot(x, y, color=tint, linestyle=dashes, linewidth=1.4 if size > 3 else 1.0)
    if mark:
        ax.plot(x, np.where(filled, y, np.nan), mark, color=tint, markersize=size, markeredgewidth=0.9)
        if not filled[there].all():
            hollow = {"markerfacecolor": "white", "markersize": size, "markeredgewidth": 0.9}
            ax.plot(x, np.where(filled, np.nan, y), mark, color=tint, **hollow)


def by_layer(ax: Axes, rows: pd.DataFrame, tint: str, layers: Sequence[str], **look: Any) -> None:
    """A line over the layers; what comes after the final norm stands apart from it."""
    rows = rows.assign(layer=rows["layer"].map(layer_text))
    if "q" in rows.columns and look.get("mark"):
        rows = rows.assign(_filled=rows["q"] < SIGNIFICANT)
    for part in (rows[rows["layer"] != "norm"], rows[rows["layer"] == "norm"]):
        if len(part):
            part = part.assign(_x=part["layer"].map(places(layers))).sort_values("_x")
            filled = part["_filled"].to_numpy() if "_filled" in part.columns else None
            line(ax, part["_x"].to_numpy(), part, tint, filled=filled, **look)


def places(layers: Sequence[str]) -> dict[str, float]:
    """Where each layer stands on the axis: at its number, and "norm" a little behind the last."""
    last = max((int(layer) for layer in layers if layer != "norm"), default=0)
    return {layer: last + max(1.0, 0.12 * last) if layer == "norm" else float(layer) for layer in layers}


def layer_axis(ax: Axes, layers: Sequence[str], most: int = 6) -> None:
    """Numbers of layers below, a line at 0, and a dotted line before what comes after the final norm."""
    x = places(layers)
    numbers = [int(layer) for layer in layers if layer != "norm"]
    between = MaxNLocator(most, integer=True).tick_values(min(numbers), max(numbers)) if len(numbers) > 1 else numbers
    ticks = sorted({int(tick) for tick in between if min(numbers) <= tick <= max(numbers)})
    labels = [str(tick) for tick in ticks]
    if "norm" in x:
        if numbers:
            ax.axvline((max(numbers) + x["norm"]) / 2, color=GREY, linewidth=0.7, linestyle=(0, (1, 1.5)))
            if ticks and x["norm"] - ticks[-1] < 0.13 * max(x.values()):  # its name would cover the number
                ticks, labels = ticks[:-1], labels[:-1]
        ticks, labels = [*ticks, x["norm"]], [*labels, "norm"]
    ax.set_xticks(ticks, labels)
    beside = 0.04 * _span(layers) if len(x) > 1 else 1.0
    ax.set_xlim(min(x.values()) - beside, max(x.values()) + beside * (2 if "norm" in x else 1))
    ax.set_xlabel("layer (0: input)")
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.grid(axis="y")


def _span(layers: Sequence[str]) -> float:
    """Length of the axis of layers; of one layer alone, the room around it."""
    return max(places(layers).values()) - min(places(layers).values()) or 2.0


def controls(ax: Axes, rows: pd.DataFrame, layers: Sequence[str]) -> None:
    """The controls of a panel, grey and under what is measured."""
    for place, (name, (tint, dashes, _)) in enumerate(CONTROLS.items()):
        if len(part := rows[rows["control"] == name]):
            by_layer(ax, part, tint, layers, dashes=dashes, band=0.15, aside=(place + 1) * 0.02 * _span(layers))


def mark_size(layers: Sequence[str]) -> float:
    """Of marks that do not run into one another."""
    return 3.6 if len(layers) <= 17 else 2.6 if len(layers) <= 40 else 1.8


# --- legends ---


def judged(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows without the column q where nothing measured has one: hollow marks would say that it was too large."""
    return rows if significance_handles(rows[rows["control"] == "none"]) else rows.drop(columns="q", errors="ignore")


def measured_with(rows: pd.DataFrame) -> str:
    """What a measured value is drawn with: tables from elsewhere hold no intervals."""
    return "95% interval" if rows[["low", "high"]].notna().all(axis=1).any() else "no interval known"


def handle(label: str, tint: str = GREY, mark: str = "", dashes: Any = "-", **more: Any) -> Line2D:
    return Line2D([], [], color=tint, marker=mark or "None", linestyle=dashes, label=label, markersize=4.5, **more)


def control_handles(frame: pd.DataFrame) -> list[Line2D]:
    there = set(frame["control"])
    return [handle(name, tint, dashes=dashes) for key, (tint, dashes, name) in CONTROLS.items() if key in there]


def significance_handles(frame: pd.DataFrame) -> list[Line2D]:
    """What solid and hollow marks say, where the table has q."""
    if "q" not in frame.columns or frame["q"].isna().all():
        return []
    hollow = {"markerfacecolor": "white", "markeredgewidth": 0.9}
    return [
        handle(f"q < {SIGNIFICANT:g}".replace("0.", "."), "black", "o", "none"),
        handle(f"q ≥ {SIGNIFICANT:g} or none".replace("0.", "."), "black", "o", "none", **hollow),
    ]


def gap_handles(frame: pd.DataFrame) -> list[Line2D]:
    """A line that says how many estimates there are not, where there are some."""
    missing = int(frame["estimate"].isna().sum())
    return [handle(f"gap: no estimate ({missing} of {len(frame)})", dashes="none")] if missing else []


def legend(figure: Figure, handles: list[Artist], title: str | None = None, most: int = 6) -> None:
    """Above the panels, as many entries beside one another as there is room for, or `most`; names are words, never formulas."""
    room = 72 * figure.get_figwidth() - 12  # points
    for handle in handles:
        handle.set_label(fill(handle.get_label(), int((room - HANDLE) / LETTER)))
    widths = [HANDLE + LETTER * max(map(len, handle.get_label().split("\n"))) for handle in handles]
    columns = next(n for n in range(min(most, len(handles)), 0, -1) if n == 1 or _needed(widths, n) <= room)
    lines = -(-sum(handle.get_label().count("\n") + 1 for handle in handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.16 * max(0, lines - 2))  # so that the panels keep theirs
    look = {"handletextpad": 0.5, "columnspacing": 1.4, "title": title, "title_fontsize": 7.5}
    for text in figure.legend(handles=handles, loc="outside upper center", ncols=columns, **look).get_texts():
        text.set_parse_math(False)


def _needed(widths: list[float], columns: int) -> float:
    """Width of a legend whose entries stand in so many columns, filled one after another, the first ones fullest."""
    return sum(max(column) for column in np.array_split(np.array(widths), columns))


def none_here(ax: Axes, rows: pd.DataFrame) -> None:
    """Says so in a panel that has no estimate at all."""
    if rows["estimate"].isna().all():
        look = {"transform": ax.transAxes, "ha": "center", "va": "center", "color": GREY}
        ax.text(0.5, 0.6, "no estimate", **look)
