"""The files of corner pairs: ``metadata.jsonl`` and ``images/``, read and written in the study's layout.

Boxes are in pixels there, the last pixel included; pictures are found by their base names, whatever folder the path was written
for. What does not fit is said for each line, and left out. Knows files and pairs; knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from spatialprobes.examples import Object
from spatialprobes.images import ImageError, open_image
from spatialprobes.sources.json_files import parse_json
from spatialprobes.worlds.corners import CORNERS, RELATION, CornerPair, Pixels, corner_at, from_pixels, occupied

METADATA = "metadata.jsonl"
NOTE = "control image removes the subject_shape; object stays in the same position"


@dataclass(frozen=True)
class CornerData:
    """pairs; problems: one row for what was left out, [folder, line, problem], lines counted from 1."""

    pairs: list[CornerPair]
    problems: pd.DataFrame


def read(folder: str | Path) -> CornerData:
    """The pairs of a folder with ``metadata.jsonl``, or of all such folders directly in it (``dataset_topleft`` ...).

    The corner is the one that the subject's box lies in, so folders that mix corners can be read; pictures are decoded once to
    see that they fit (the control is the full picture but for the subject's box), the pairs keep their paths.
    id: "<corner>-<id>", meta["match"]: the id, the same in the four sets that one seed makes.
    Raises FileNotFoundError where there is no such folder or file, ValueError for one that is not UTF-8 or holds no line.
    """
    pairs: list[CornerPair] = []
    problems: list[tuple[str, int, str]] = []
    seen: set[str] = set()
    for where in _folders(Path(folder)):
        for number, line in _lines(where / METADATA):
            try:
                pair = _pair(parse_json(line, "the line"), where)
                if pair.id in seen:
                    raise ValueError(f"{pair.id} stands twice")
            except (ValueError, ImageError) as error:
                problems.append((where.name, number, str(error)))
                continue
            seen.add(pair.id)
            pairs.append(pair)
    return CornerData(pairs, pd.DataFrame(problems, columns=["folder", "line", "problem"]))


def write(pairs: Sequence[CornerPair], folder: str | Path) -> None:
    """Write pairs of one corner as the study does, which knows a subject and one more object.

    Raises ValueError for no pair, pairs of several corners, two of one match, a match that is no name of a file, pairs with more
    objects, and boxes that are no whole pixels of a square picture or say another corner; FileExistsError where there are pairs
    already.
    """
    folder = Path(folder)
    if not pairs:
        raise ValueError("no pairs to write; at least one is needed")
    if len(corners := {pair.corner for pair in pairs}) > 1:
        raise ValueError(f"pairs of {', '.join(sorted(corners))}; a folder holds those of one corner")
    names = [pair.meta.get("match", pair.id) for pair in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice among the pairs")
    if odd := [name for name in names if PurePosixPath(name.replace("\\", "/")).name != name]:
        raise ValueError(f"{odd[0]!r} is no name of a file; pictures are called by it, without a folder")
    if (folder / METADATA).exists():
        raise FileExistsError(f"{folder / METADATA} is there already; write into a folder without it")
    lines = []
    for name, pair in zip(names, pairs, strict=True):
        pictures = {f"{name}_{member}.png": open_image(getattr(pair, member)) for member in ("full", "control")}
        lines.append(json.dumps(_record(name, pair, pictures[f"{name}_full.png"].size, f"data/{folder.name}/images")) + "\n")
        (folder / "images").mkdir(parents=True, exist_ok=True)
        for file, picture in pictures.items():
            picture.save(folder / "images" / file)
    (folder / METADATA).write_text("".join(lines), encoding="utf-8", newline="\n")


# ---- read ----
def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = [folder] if (folder / METADATA).is_file() else sorted(path.parent for path in folder.glob(f"*/{METADATA}"))
    if not found:
        raise FileNotFoundError(f"{folder}: no {METADATA} in it, nor in a folder directly below")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
    if not text.strip():
        raise ValueError(f"{path}: holds no line; one for each pair is needed")
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _pair(record: Any, folder: Path) -> CornerPair:
    if not isinstance(record, dict):
        raise ValueError(f"the line is no object but {type(record).__name__}")
    keys = ("id", "caption", "relation", "subject_shape", "object_shape", "full_image", "control_image", "bounding_boxes")
    if lacking := [key for key in keys if key not in record]:
        raise ValueError(f"the line lacks {', '.join(lacking)}")
    if wrong := [key for key in keys[:-1] if not isinstance(record[key], str) or not record[key]]:
        raise ValueError(f"{wrong[0]} is {record[wrong[0]]!r}; a text is needed")
    full, control = (folder / "images" / PurePosixPath(record[key].replace("\\", "/")).name for key in keys[5:7])
    shown, without = open_image(full), open_image(control)
    objects = _objects(record, shown.size)
    corner = corner_at(*objects[0].centre)
    if corner is None:
        raise ValueError(f"its {objects[0].name} stands in no corner: its middle is ({_point(objects[0])}) of the picture")
    if record["relation"] in RELATION.values() and record["relation"] != RELATION[corner]:
        raise ValueError(f"the relation is {record['relation']}, but the subject stands in the {CORNERS[corner]} corner")
    _check_control(shown, without, objects[0])
    id, meta = f"{corner}-{record['id']}", {"match": record["id"]}
    return CornerPair(id, corner, full, control, objects, record["caption"], record["relation"], occupied(objects), meta)


def _objects(record: dict, size: tuple[int, int]) -> list[Object]:
    """Subject and reference, from boxes in pixels."""
    boxes = record["bounding_boxes"]
    if size[0] != size[1]:
        raise ValueError(f"the picture has {size[0]} x {size[1]} pixels; it must be square")
    try:
        named = [(record["subject_shape"], boxes["subject"]), (record["object_shape"], boxes["object"])]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the boxes are not as the study writes them: {type(error).__name__}: {error}") from error
    return [from_pixels(name, _box(name, box, size[0]), size[0]) for name, box in named]


def _box(name: str, box: Any, size: int) -> Pixels:
    whole = isinstance(box, list) and len(box) == 4 and all(isinstance(one, int) and not isinstance(one, bool) for one in box)
    if not whole:
        raise ValueError(f"the {name}'s box is {box!r}; four whole numbers of pixels are needed")
    left, top, right, bottom = box
    if not (left <= right and top <= bottom):
        raise ValueError(f"the {name}'s box {box} has no extent")
    if min(left, top) < 0 or max(right, bottom) >= size:
        raise ValueError(f"the {name}'s box {box} lies outside the picture of {size} x {size} pixels")
    return left, top, right, bottom


def _check_control(full: Image.Image, control: Image.Image, subject: Object) -> None:
    if full.size != control.size:
        raise ValueError(f"the full picture has {full.size} pixels, its control {control.size}")
    rows, columns = np.nonzero((np.asarray(full) != np.asarray(control)).any(-1))
    if not len(rows):
        raise ValueError("full picture and control are the same")
    left, top, right, bottom = (edge * full.width for edge in subject.box)
    if min(columns) < left or max(columns) >= right or min(rows) < top or max(rows) >= bottom:
        raise ValueError(f"full picture and control differ outside the {subject.name}'s box")


def _point(one: Object) -> str:
    return ", ".join(f"{at:.2f}" for at in one.centre)


# ---- write ----
def _record(name: str, pair: CornerPair, size: tuple[int, int], images: str) -> dict:
    if len(pair.objects) != 2:
        raise ValueError(f"{pair.id} shows {len(pair.objects)} objects; the study's layout knows a subject and one more")
    subject, reference = (_pixels(one, size) for one in pair.objects)
    names = [one.name for one in pair.objects]
    if occupied([from_pixels("", box, size[0]) for box in (subject, reference)]) != pair.occupied:
        raise ValueError(f"{pair.id}: by its boxes other corners are taken than it says")
    return {
        "id": name,
        "caption": pair.caption,
        "relation": pair.relation,
        "subject_shape": names[0],
        "object_shape": names[1],
        "full_image": f"{images}/{name}_full.png",
        "control_image": f"{images}/{name}_control.png",
        "bounding_boxes": {"subject": list(subject), "object": list(reference)},
        "note": NOTE,
    }


def _pixels(one: Object, size: tuple[int, int]) -> Pixels:
    """The first and the last pixel of a box. Raises ValueError where an edge lies within a pixel."""
    if size[0] != size[1]:
        raise ValueError(f"the picture has {size[0]} x {size[1]} pixels; the layout is of square ones")
    edges = [edge * size[0] for edge in one.box]
    if max(abs(edge - round(edge)) for edge in edges) > 1e-6:
        raise ValueError(f"the {one.name}'s box {one.box} has no whole pixels in a picture of {size[0]}")
    left, top, right, bottom = (round(edge) for edge in edges)
    return left, top, right - 1, bottom - 1
