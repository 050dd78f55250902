"""The attention study's text reports on shared and corner-specific heads, ``count_shared_unique``.

``top_pixels_shared.txt`` and ``top_pixels_diff_{folder}.txt``: the (layer, head) of greatest mean count over the corners (M),
and of greatest residual of one corner (R = M_corner - M). ``shared_head.txt`` and ``unique_heads.txt``: the head alone, its
layer dropped. Layers count from 1 in the files and from 0 here. Knows files and tables.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from spatialprobes.sources.text_lines import FIXED, existing_folder, files_in, read_lines, short
from spatialprobes.tables import write_atomically

SHARED = "shared"
CELLS = ["map", "rank", "layer", "head", "value", "score"]
HEADS = ["map", "head", "score"]
DIFF = re.compile(r"top_pixels_diff_([A-Za-z0-9_.-]{1,200})\.txt")
_6 = FIXED % 6
CELL = re.compile(
    rf"#(?P<rank>\d{{1,6}}): layer=(?P<layer>[1-9]\d{{0,5}}) head=(?P<head>\d{{1,6}})  "
    rf"main_value_(?P<scale>count|freq)=(?P<value>{_6})  sort_score_(?P=scale)=(?P<score>{_6})  "
    r"corners=\{(?P<corners>[^{}]{0,4000})\}"
)
CORNER = re.compile(r"(['\"])([A-Za-z0-9_.-]{1,200})\1: (-?\d{1,15}(?:\.\d{1,18})?(?:e-?\d{1,2})?)")
SIZES = re.compile(r"shape L,H = (\d{1,9}),(\d{1,9})")
SCALE = re.compile(r"scale_suffix=(count|freq), scale=(\d{1,12}\.\d{1,6})")
ORDER = re.compile(r"diff_brightness=(N/A|abs|raw)")
SHAPE = re.compile(r"L,H,N=(\d{1,9}),(\d{1,9}),(\d{1,9})")
REDUCED = re.compile(r"reduce_level=(max|mean)")
BEST = re.compile(r"shared_best_head=(\d{1,6})")
BEST_SCORE = re.compile(rf"shared_best_score_(count|freq)=({_6})")
UNIQUE = re.compile(rf"([A-Za-z0-9_.-]{{1,200}}) unique_best_head=(\d{{1,6}}) score_(count|freq)=({_6})")


@dataclass(frozen=True, eq=False)
class HeadReports:
    """What the reports say.

    cells: `CELLS` and a column for each corner's folder with the same cell's value there; map is "shared" or the folder whose
    residual it is; value, score: the map's, and what was sorted by. heads: `HEADS`, the best head of each map over its layers.
    layers, heads_per_layer, pairs: the sizes. scale: "count" (of pairs) or "freq" (share). reduced: "max" or "mean" over layers.
    order: of the residuals, "raw" or "abs". problems: what could not be read, a line each that begins with the file.
    """

    cells: pd.DataFrame
    heads: pd.DataFrame
    layers: int
    heads_per_layer: int
    pairs: int
    scale: str = "count"
    reduced: str = "max"
    order: str = "raw"
    problems: list[str] = field(default_factory=list)


def read(folder: str | Path) -> HeadReports:
    """The reports in `folder`. A damaged one is named in problems, and the rest is read.

    Raises FileNotFoundError or NotADirectoryError; ValueError where none can be read, where neither says how many pairs there
    were, and where reports contradict one another in sizes or scale.
    """
    folder = existing_folder(folder)
    cells, heads, problems = [], [], []
    facts: dict[str, dict[str, object]] = {}
    for name in files_in(folder):
        reader = _reader(name)
        if reader is None:
            continue
        try:
            rows, facts[name] = reader(read_lines(folder / name))
            (heads if "rank" not in rows[0] else cells).extend(rows)
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {short(error, folder / name)}")
    if not facts:
        raise ValueError(f"{folder}: no report that can be read" + (f"; {problems[0]}" if problems else ""))
    known: dict[str, tuple[object, str]] = {}
    for name, own in facts.items():
        for key, value in own.items():
            if known.setdefault(key, (value, name))[0] != value:
                raise ValueError(f"{folder}: {name} says {key} {value}, {known[key][1]} says {known[key][0]}: of two runs")
    if "pairs" not in known:
        raise ValueError(f"{folder}: no report says how many pairs there were")
    own = {key: value for key, (value, _) in known.items()}
    frame = pd.DataFrame(cells) if cells else pd.DataFrame(columns=CELLS)
    return HeadReports(frame, pd.DataFrame(heads, columns=HEADS), **own, problems=problems)


def _reader(name: str):
    if name == "top_pixels_shared.txt":
        return lambda lines: _cells(lines, SHARED)
    if found := DIFF.fullmatch(name):
        return lambda lines: _cells(lines, found[1])
    return {"shared_head.txt": _shared, "unique_heads.txt": _unique}.get(name)


def _title(of: str) -> str:
    shared = "Top pixels in shared mean map (M_shared)"
    return shared if of == SHARED else f"Top pixels in difference map (residual): {of} - shared"


def _taken(pattern: re.Pattern, line: str, number: int) -> re.Match:
    if not (found := pattern.fullmatch(line)):
        raise ValueError(f"line {number}: {line[:80]!r} is no line of the study's")
    return found


def _header(lines: list[str], patterns: tuple[re.Pattern, ...], start: int) -> list[re.Match]:
    if len(lines) < start + len(patterns):
        raise ValueError(f"{len(lines)} lines; cut short")
    return [_taken(pattern, lines[start + i], start + i + 1) for i, pattern in enumerate(patterns)]


def _cells(lines: list[str], of: str) -> tuple[list[dict[str, object]], dict[str, object]]:
    sizes, scale, order = _header(lines, (SIZES, SCALE, ORDER), 1)
    title = _title(of)
    if lines[0] != title:
        raise ValueError(f"line 1: {lines[0][:80]!r}; {title!r} belongs here")
    rows = []
    for number, line in enumerate(lines[4:], 5):
        if not line:
            continue
        found = _taken(CELL, line, number)
        corners = _corners(found["corners"], number)
        if int(found["rank"]) != len(rows) + 1 or found["scale"] != scale[1]:
            raise ValueError(f"line {number}: #{found['rank']} in {found['scale']}; #{len(rows) + 1} in {scale[1]} is next")
        layer, head = int(found["layer"]) - 1, int(found["head"])
        if layer >= int(sizes[1]) or head >= int(sizes[2]):
            raise ValueError(f"line {number}: layer {layer + 1}, head {head} of {sizes[1]} layers of {sizes[2]} heads")
        place = dict(zip(CELLS, (of, len(rows) + 1, layer, head, float(found["value"]), float(found["score"])), strict=True))
        if max(abs(one) for one in (place["value"], place["score"], *corners.values())) > float(scale[2]):
            raise ValueError(f"line {number}: a {scale[1]} beyond {scale[2]}, which is that of every pair")
        rows.append(place | corners)
    if not rows:
        raise ValueError("no cell")
    facts: dict[str, object] = {"layers": int(sizes[1]), "heads_per_layer": int(sizes[2]), "scale": scale[1]}
    if scale[1] == "count":
        facts["pairs"] = _whole(scale[2])
    return rows, facts | ({"order": order[1]} if of != SHARED else {})


def _corners(text: str, number: int) -> dict[str, float]:
    """What stands between the braces of a line: the same cell's value in each corner's folder."""
    found = [CORNER.fullmatch(part) for part in text.split(", ")] if text else []
    corners = {one[2]: float(one[3]) for one in found if one}
    if len(corners) < len(found) or set(corners) & set(CELLS):
        raise ValueError(f"line {number}: corners {text[:80]!r} are not names with numbers, each of them once")
    return corners


def _whole(scale: str) -> int:
    if not float(scale).is_integer():
        raise ValueError(f"line 3: counts of {scale} pairs")
    return int(float(scale))


def _sized(lines: list[str]) -> dict[str, object]:
    sizes, reduced = _header(lines, (SHAPE, REDUCED), 0)
    names = ("layers", "heads_per_layer", "pairs")
    return dict(zip(names, map(int, sizes.groups()), strict=True)) | {"reduced": reduced[1]}


def _shared(lines: list[str]) -> tuple[list[dict[str, object]], dict[str, object]]:
    facts = _sized(lines)
    best, score = _header(lines, (BEST, BEST_SCORE), 2)
    row = {"map": SHARED, "head": _head(int(best[1]), facts), "score": float(score[2])}
    return [row], facts | {"scale": score[1]}


def _unique(lines: list[str]) -> tuple[list[dict[str, object]], dict[str, object]]:
    facts = _sized(lines)
    found = [_taken(UNIQUE, line, number) for number, line in enumerate(lines[2:], 3)]
    if not found or len({one[3] for one in found}) > 1 or len({one[1] for one in found}) < len(found):
        raise ValueError("no heads, heads on two scales, or a folder that stands twice")
    rows = [{"map": one[1], "head": _head(int(one[2]), facts), "score": float(one[4])} for one in found]
    return rows, facts | {"scale": found[0][3]}


def _head(head: int, facts: dict[str, object]) -> int:
    if head >= facts["heads_per_layer"]:
        raise ValueError(f"head {head} of {facts['heads_per_layer']}")
    return head


def write(reports: HeadReports, folder: str | Path) -> list[Path]:
    """Write the reports as the study's script does, its figures aside; what is read from there is equal, to 6 decimals.

    Raises ValueError for an unknown scale, a missing column, and maps without a best head or cells.
    """
    if reports.scale not in ("count", "freq"):
        raise ValueError(f"scale {reports.scale!r} is unknown; 'count' or 'freq'")
    for name, frame, columns in (("cells", reports.cells, CELLS), ("heads", reports.heads, HEADS)):
        if missing := [column for column in columns if column not in frame.columns]:
            raise ValueError(f"{name} lack the column {missing[0]!r}; they have {', '.join(map(str, frame.columns))}")
    maps, best = sorted(set(reports.cells["map"])), {row["map"]: row for row in reports.heads.to_dict("records")}
    if SHARED not in maps or maps != sorted(best):
        raise ValueError(f"cells of {maps}, heads of {sorted(best)}: 'shared' and the same folders are wanted")
    files = {}
    for of, rows in reports.cells.groupby("map", sort=False):
        files["top_pixels_shared.txt" if of == SHARED else f"top_pixels_diff_{of}.txt"] = _cell_lines(reports, str(of), rows)
    sizes = [f"L,H,N={reports.layers},{reports.heads_per_layer},{reports.pairs}", f"reduce_level={reports.reduced}"]
    one = best.pop(SHARED)
    scores = [f"shared_best_head={one['head']}", f"shared_best_score_{reports.scale}={one['score']:.6f}"]
    files["shared_head.txt"] = [*sizes, *scores]
    unique = [f"{of} unique_best_head={row['head']} score_{reports.scale}={row['score']:.6f}" for of, row in best.items()]
    files["unique_heads.txt"] = [*sizes, *unique]
    folder = Path(folder)
    return [write_atomically(folder / name, "".join(f"{line}\n" for line in lines).encode()) for name, lines in files.items()]


def _cell_lines(reports: HeadReports, of: str, rows: pd.DataFrame) -> list[str]:
    shared = of == SHARED
    scale = float(reports.pairs) if reports.scale == "count" else 1.0
    lines = [
        _title(of),
        f"shape L,H = {reports.layers},{reports.heads_per_layer}",
        f"scale_suffix={reports.scale}, scale={scale}",
    ]
    lines += [f"diff_brightness={'N/A' if shared else reports.order}", ""]
    folders = [name for name in rows.columns if name not in CELLS]
    for row in rows.sort_values("rank").to_dict("records"):
        corners = {name: round(float(row[name]), 6) for name in folders if not pd.isna(row[name])}
        place = f"#{row['rank']}: layer={row['layer'] + 1} head={row['head']}"
        values = f"main_value_{reports.scale}={row['value']:.6f}  sort_score_{reports.scale}={row['score']:.6f}"
        lines.append(f"{place}  {values}  corners={corners}")
    return lines
