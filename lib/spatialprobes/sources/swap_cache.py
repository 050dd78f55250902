"""A cache of the objects that the rows of a table of swap pairs ask about: written, built from a data set, and read.

JSONL, an entry a line, or JSON, a list of entries::

    {"index": "12", "question_id": "mp3d_0", "image_size": [640, 480], "subject": 0, "reference": 1,
     "objects": [{"name": "cup", "box": [10, 20, 60, 90], "depth": 0.3}, {"name": "plate", "box": [200, 40, 380, 120]}]}

index, question_id: those of the table's row; one of them is enough, and where both are given both must be the row's. objects: of
the picture; box: [left, top, right, bottom], y down, in pixels of image_size = [width, height], or in fractions of the picture
where there is no image_size. subject, reference: places in `objects` (from 0) of the two that the row's original question asks
about; where they are left out, the objects are found by the row's words. depth, where it is known: in [0, 1], 0 nearest (whether
the subject is far or close is what the distance row says). centre: [x, y] in the boxes' units, the box's middle if left out.

Knows names and boxes; which rows make quads is ``swap_quads.py``'s to know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spatialprobes.examples import Object
from spatialprobes.images import ImageError, check_header
from spatialprobes.pairs import Pair, named
from spatialprobes.sources.json_files import parse_json, read_json
from spatialprobes.sources.swap_rows import Bad, open_rows
from spatialprobes.tables import write_atomically

MAX_BYTES = 1_000_000_000
MAX_LINE = 16_000_000
KEYS = ("index", "question_id")
ROLES = ("subject", "reference")
BOXES = ("xyxy", "xywh")
LARGEST = 1e9  # of any number: JSON has whole numbers that are no float


@dataclass(frozen=True)
class Entry:
    """An entry of the cache: its objects, and which of them are asked about where it says so."""

    keys: dict[str, str]
    objects: tuple[Object, ...]
    asked: tuple[Object, Object] | None


def write_cache(pairs: Iterable[Pair], path: str | Path) -> Path:
    """Write the objects of pairs as a cache (fractions; JSONL whatever the name), for a table written of the same pairs."""
    lines = []
    for pair in pairs:
        things = pair.original.objects
        entry: dict[str, Any] = {"index": pair.id, "objects": [_plain(thing) for thing in things]}
        for role in ROLES:
            found = named(pair.original, role)
            if found is not None:
                entry[role] = next(place for place, thing in enumerate(things) if thing is found)
        lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    return write_atomically(path, "".join(lines).encode())


def _plain(thing: Object) -> dict[str, Any]:
    found = {"name": thing.name, "box": [float(side) for side in thing.box], "centre": [float(side) for side in thing.centre]}
    return found if thing.depth is None else found | {"depth": float(thing.depth)}


def build_cache(
    source: Any,
    path: str | Path,
    *,
    objects: str = "objects",
    name: str = "name",
    box: str = "bbox",
    form: str = "xyxy",
    size: tuple[str, str] | str | None = ("width", "height"),
    depth: str | None = None,
) -> pd.DataFrame:
    """Write the cache of a table that lists the objects of its pictures, and say what is wrong with its other rows.

    source: as for ``swap_rows.open_rows``; of a data set on the hub, what ``datasets.load_dataset(id, split=...)`` returns. Its
    rows are those of the pairs: column index or question_id, or both. objects: the column of objects, a list of records or a
    record of lists; name, box and depth are their fields (depth in [0, 1]; None: there is none). form: "xyxy" (left, top, right,
    bottom) or "xywh" (left, top, width, height). size: the columns of width and height in pixels, or the column that holds the
    picture's bytes (its header is read), or None where boxes are in fractions of the picture.
    Columns of the table returned: line (1-based row), problem. Raises ValueError for a column that is not there, an unknown form.
    """
    if form not in BOXES:
        raise ValueError(f"form is {form!r}; it must be one of {', '.join(BOXES)}")
    rows = open_rows(source)
    sizes = () if size is None else (size,) if isinstance(size, str) else size
    if lacking := [column for column in (objects, *sizes) if column not in rows.columns]:
        raise ValueError(f"{rows.name}: no column {', '.join(lacking)}; there: {', '.join(rows.columns)[:500]}")
    keys = [key for key in KEYS if key in rows.columns]
    if not keys:
        raise ValueError(f"{rows.name}: neither of the columns {' and '.join(KEYS)}; one of them names the rows")
    lines, problems = [], []
    for row in rows.rows((*keys, objects, *sizes)):
        try:
            if isinstance(row, Bad):
                raise ValueError(row.problem)
            known = {key: str(row.values[key]).strip() for key in keys if row.values[key] not in (None, "")}
            if not known:
                raise ValueError(f"no {' and no '.join(keys)}")
            entry = known | _size(row.values, size)
            entry["objects"] = [_thing(one, name, box, form, depth) for one in _listed(row.values[objects])]
            _parsed(entry, known)
        except ValueError as error:
            problems.append((row.line, str(error)))
        else:
            lines.append(json.dumps(entry, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines).encode())
    return pd.DataFrame(problems, columns=["line", "problem"])


def _size(values: Mapping[str, Any], size: tuple[str, str] | str | None) -> dict[str, Any]:
    if size is None:
        return {}
    if not isinstance(size, str):
        return {"image_size": [values[column] for column in size]}
    picture = values[size]
    picture = picture.get("bytes") if isinstance(picture, dict) else picture
    if not isinstance(picture, bytes):
        raise ValueError(f"{size} holds no bytes of a picture")
    try:
        return {"image_size": list(check_header(picture, name=size))}
    except ImageError as error:
        raise ValueError(str(error)) from error


def _listed(objects: Any) -> list[Mapping[str, Any]]:
    """Objects as a list of records, also where a record of lists was given."""
    if isinstance(objects, Mapping):
        lengths = {len(values) for values in objects.values() if isinstance(values, list)}
        if len(lengths) != 1:
            raise ValueError("the objects' lists are not of one length")
        return [{key: values[place] for key, values in objects.items()} for place in range(lengths.pop())]
    if not isinstance(objects, list) or not all(isinstance(one, Mapping) for one in objects):
        raise ValueError("objects are neither a list of records nor a record of lists")
    return objects


def _thing(one: Mapping[str, Any], name: str, box: str, form: str, depth: str | None) -> dict[str, Any]:
    sides = list(_numbers(one.get(box), 4, f"{box} of {one.get(name)!r}"))
    if form == "xywh":
        sides = [sides[0], sides[1], sides[0] + sides[2], sides[1] + sides[3]]
    found = {"name": one.get(name), "box": sides}
    return found if depth is None or one.get(depth) is None else found | {"depth": one[depth]}


def read_cache(path: Path) -> tuple[dict[tuple[str, str], Entry | str], list[str]]:
    """{(key, value): entry, or what is wrong with it}, and what is wrong with entries that name no row.

    key: "index" or "question_id". Raises FileNotFoundError; ValueError for a file that is no list of entries.
    """
    found: dict[tuple[str, str], Entry | str] = {}
    broken = []
    for where, content in _contents(path):
        if isinstance(content, str):
            broken.append(f"{path.name}, {where}: {content}")
            continue
        keys = {key: str(content[key]).strip() for key in KEYS if content.get(key) not in (None, "")}
        if not keys:
            broken.append(f"{path.name}, {where}: neither index nor question_id")
            continue
        try:
            entry: Entry | str = _parsed(content, keys)
        except ValueError as error:
            entry = f"{path.name}, {where}: {error}"
        for key in keys.items():
            # of several rows of one question_id each may have its own entry, by index; then the question_id alone tells nothing
            if key not in found:
                found[key] = entry
            elif key[0] == "index" or len(keys) == 1:
                found[key] = f"{path.name}, {where}: a second entry of {key[0]} {key[1]!r}"
            else:
                found[key] = f"{path.name}: several entries of {key[0]} {key[1]!r}, to be told apart by index"
    return found, broken


def _contents(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(where it stands, the entry's object or what is wrong) of a JSONL or JSON file."""
    if path.suffix == ".json":
        content = read_json(path, MAX_BYTES)
        if not isinstance(content, list):
            raise ValueError(f"{path}: not a list of entries but {type(content).__name__}")
        for place, entry in enumerate(content, 1):
            yield f"entry {place}", entry if isinstance(entry, dict) else "not an object"
        return
    if not path.is_file():
        raise FileNotFoundError(f"no cache of objects {path}")
    with open(path, "rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
            if len(line) > MAX_LINE:
                raise ValueError(f"{path}: line {number} is longer than {MAX_LINE:,} bytes")
            if line.strip():
                yield f"line {number}", _json_line(line)


def _json_line(line: bytes) -> dict[str, Any] | str:
    try:
        content = parse_json(line, "")
    except ValueError as error:
        return str(error).removeprefix(": ")
    return content if isinstance(content, dict) else "not an object"


def _parsed(content: dict[str, Any], keys: dict[str, str]) -> Entry:
    size = content.get("image_size")
    if size is not None:
        size = _numbers(size, 2, "image_size")
        if min(size) <= 0:
            raise ValueError(f"image_size {list(size)} is not above 0")
    listed = content.get("objects")
    if not isinstance(listed, list) or not listed:
        raise ValueError("no list of objects")
    objects = tuple(_object(thing, size or (1.0, 1.0), f"objects[{place}]") for place, thing in enumerate(listed))
    places = [content.get(role) for role in ROLES]
    if places == [None, None]:
        return Entry(keys, objects, None)
    for role, place in zip(ROLES, places, strict=True):
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(objects):
            raise ValueError(f"{role} is {place!r}; a place among the {len(objects)} objects, from 0, is wanted")
    if places[0] == places[1]:
        raise ValueError("subject and reference are the same object")
    return Entry(keys, objects, (objects[places[0]], objects[places[1]]))


def _object(thing: Any, size: tuple[float, ...], where: str) -> Object:
    if not isinstance(thing, dict) or not isinstance(thing.get("name"), str) or not thing["name"].strip():
        raise ValueError(f"{where} has no name")
    box = [side / whole for side, whole in zip(_numbers(thing.get("box"), 4, f"box of {where}"), size * 2, strict=True)]
    inside = [min(max(side, 0.0), 1.0) for side in box]  # boxes that reach a little out of the picture are common
    if not (inside[0] < inside[2] and inside[1] < inside[3]):
        raise ValueError(f"box of {where} is {thing['box']}: no area within the picture; [left, top, right, bottom] is wanted")
    if (depth := thing.get("depth")) is not None:
        (depth,) = _numbers([depth], 1, f"depth of {where}")
        if not 0 <= depth <= 1:
            raise ValueError(f"depth of {where} is {depth:g}; it must lie in [0, 1], 0 nearest")
    centre = ((inside[0] + inside[2]) / 2, (inside[1] + inside[3]) / 2)
    if thing.get("centre") is not None:
        x, y = _numbers(thing["centre"], 2, f"centre of {where}")
        centre = (x / size[0], y / size[1])
    return Object(thing["name"].strip(), centre, tuple(inside), depth)


def _numbers(value: Any, count: int, name: str) -> tuple[float, ...]:
    fine = isinstance(value, (list, tuple)) and len(value) == count
    if not fine or not all(isinstance(one, (int, float)) and not isinstance(one, bool) and abs(one) <= LARGEST for one in value):
        raise ValueError(f"{name} is {value!r:.80}; {count} numbers are wanted")
    return tuple(float(one) for one in value)
