"""Figures, drawn from saved tables alone: `plots.<module>.<function>(frame, **options) -> Figure`, one module for each probe
or data source.

A run folder's figures.json says which function drew which table with which options, so `redraw` needs neither the model nor
torch. Colours are fixed by meaning over all figures (Okabe & Ito's colour-blind-safe set), and shape or wording always
repeats what a colour says. Knows tables, never models.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import io
import json
import pkgutil
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatialprobes import paths
from spatialprobes.tables import canonical_json, read_table, write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

WIDTHS = {"one": 3.4, "two": 7.0}  # inches: one column of a paper, or both
DPI = 200
COLOURS = {
    "semantic": "#0072B2",
    "spatial": "#D55E00",
    "original": "#000000",
    "permuted": "#E69F00",
    "vision": "#009E73",
    "text": "#CC79A7",
}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C8C00")  # for what has no fixed meaning
GREY = "#6B6B6B"
RC = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs, and bytes, everywhere
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "image.interpolation": "nearest",
    "pdf.fonttype": 42,  # real text in the PDF, not outlines
    "svg.hashsalt": "spatialprobes",
}


@contextmanager
def style() -> Iterator[None]:
    """The house style, over matplotlib's defaults: a reader's own matplotlibrc changes no figure."""
    with matplotlib.style.context(["default", RC]):
        yield


def resolve(plot: str) -> Any:
    """The figure function called `plot`, as "permutation.accuracy". Raises ValueError naming the nearest that exist."""
    module_name, _, function_name = plot.partition(".")
    if plot not in (legal := names()):
        near = difflib.get_close_matches(plot, legal, n=3, cutoff=0.4) or legal
        raise ValueError(f"no figure function {plot!r} in spatialprobes.plots; there: {', '.join(near)}")
    return getattr(importlib.import_module(f"{__name__}.{module_name}"), function_name)


def names() -> list[str]:
    """Every figure function as "module.function": what returns a Figure in a module of this package."""
    found = []
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, member in inspect.getmembers(module, inspect.isfunction):
            if member.__module__ == module.__name__ and member.__annotations__.get("return") == "Figure":
                found.append(f"{info.name}.{name}")
    return sorted(found)


def draw(plot: str, frame: pd.DataFrame, options: Mapping[str, Any]) -> Figure:
    """Draw `frame` with the function called `plot` in the house style, the model's name in small print below.

    Raises ValueError for an unknown function, option or missing column.
    """
    function = resolve(plot)
    legal = [
        name for name, parameter in inspect.signature(function).parameters.items() if parameter.kind is parameter.KEYWORD_ONLY
    ]
    if unknown := sorted(set(options) - set(legal)):
        raise ValueError(f"{plot} has no option {unknown[0]!r}; legal: {', '.join(legal) or 'none'}")
    with style():
        figure = function(frame, **options)
        if model := model_name(frame.attrs.get("provenance", {})):
            words = textwrap.fill(f"model: {model}", int(19 * figure.get_figwidth()))  # letters of 6 points in an inch
            figure.supxlabel(words, x=0.01, ha="left", fontsize=6, color=GREY, parse_math=False)
    return figure


def model_name(provenance: Mapping[str, Any]) -> str:
    """The model that a table is about, by its provenance, or the models; empty where there is none."""
    model = provenance.get("model", "")
    if isinstance(model, list):
        return ", ".join(model_name({"model": one}) for one in model)
    return str(model.get("model", "")) if isinstance(model, Mapping) else str(model)


def save(figure: Figure, stem: str | Path, provenance: Mapping[str, Any], caption: str = "") -> list[Path]:
    """Write `<stem>.png` (200 dots an inch) and `<stem>.pdf`; no dates, so the same figure gives the same bytes.

    The PNG's text chunks hold the caption (Description) and the provenance (Provenance, canonical JSON), the PDF's information
    holds them as Subject and Keywords. Raises OSError in one line when the disk refuses.
    """
    facts = canonical_json(dict(provenance))
    written = []
    for kind, metadata in (
        ("png", {"Description": caption, "Provenance": facts, "Software": None}),
        ("pdf", {"Subject": caption, "Keywords": facts, "CreationDate": None, "Creator": None}),
    ):
        buffer = io.BytesIO()
        with style():
            FigureCanvasAgg(figure).print_figure(buffer, format=kind, dpi=DPI, metadata=metadata)
        written.append(write_atomically(Path(f"{stem}.{kind}"), buffer.getvalue()))
    return written


def load_drawn(run_folder: str | Path) -> list[Drawn]:
    """What figures.json of a run says was drawn, in order; empty without one. Raises ValueError naming a broken file."""
    path = Path(run_folder) / "figures.json"
    if not path.is_file():
        return []
    try:
        return [Drawn(**row) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def save_drawn(drawn: list[Drawn], run_folder: str | Path) -> Path:
    """Write figures.json."""
    rows = ",\n ".join(canonical_json(asdict(one)) for one in drawn)
    return write_atomically(Path(run_folder) / "figures.json", f"[{rows}]\n".encode())


def draw_from_table(one: Drawn, run_folder: str | Path, figure_folder: str | Path) -> list[Path]:
    """Draw one entry of figures.json from the run's saved table into `figure_folder`: the PNG's path, then the PDF's."""
    frame = read_table(Path(run_folder) / "tables" / f"{one.table}.parquet")
    figure = draw(one.plot, frame, one.options)
    facts = {"plot": one.plot, "options": one.options, "table": one.table, "of": frame.attrs["provenance"]}
    return save(figure, Path(figure_folder) / one.name, facts, one.caption)


def redraw(root: str | Path) -> list[Path]:
    """Draw every figure of every run under `<root>/data/runs` again, from its tables alone.

    All that can be drawn is drawn; then ValueError lists what could not, with the reason.
    """
    written, problems = [], []
    for listing in sorted(Path(root).glob("data/runs/[!.]*/figures.json")):
        run = listing.parent
        try:
            drawn = load_drawn(run)
        except ValueError as error:
            problems.append(str(error))
            continue
        for one in drawn:
            try:
                written += draw_from_table(one, run, paths.figure_folder(run.name, Path(root)))
            except (ValueError, FileNotFoundError) as error:
                problems.append(f"{run.name}/{one.name}: {error}")
    if problems:
        raise ValueError(f"{len(problems)} could not be redrawn:\n" + "\n".join(problems))
    return written


def need(frame: pd.DataFrame, columns: tuple[str, ...], plot: str) -> None:
    """Raise ValueError unless `frame` has rows and the columns a figure is drawn from."""
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"{plot} needs the column {missing[0]!r}; the table has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise ValueError(f"{plot}: the table has no rows")


def new_figure(width: str, height: float) -> Figure:
    """An empty figure, `width` "one" or "two" columns wide and `height` inches high, that makes room for its labels."""
    if width not in WIDTHS:
        raise ValueError(f"width {width!r} is not one of {', '.join(WIDTHS)}")
    return Figure(figsize=(WIDTHS[width], height), layout="constrained")


def panels(figure: Figure, count: int, across: int = 3, **options: Any) -> list[Axes]:
    """`count` axes, at most `across` beside one another; options go to `Figure.subplots`."""
    columns = min(across, count)
    axes = figure.subplots(-(-count // columns), columns, squeeze=False, **options).flat
    for ax in axes[count:]:
        ax.set_axis_off()
    return list(axes[:count])


def colour(meaning: str, place: int) -> str:
    """The fixed colour of a meaning, or the `place`-th of the cycle for one without."""
    return COLOURS.get(meaning, CYCLE[place % len(CYCLE)])


@dataclass(frozen=True)
class Drawn:
    """One entry of figures.json: `plot` drew `table` with `options` into `<name>.png` and `<name>.pdf`."""

    name: str
    plot: str
    table: str
    caption: str
    options: dict[str, Any] = field(default_factory=dict)
