"""ShapeWorld's files: shards of two-shape worlds with their captions, read as examples and written as the original writes them.

Subject and reference are taken from ``caption_model.json`` and found in the world by colour and shape, never by their order, and
are checked against the caption's words and the places of the shapes. What does not fit is said for each world, and left out.
Several captions of a world, or several worlds of a caption, are read too. Knows files and worlds; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.images import ImageError, open_image
from spatialprobes.sources.json_files import read_json
from spatialprobes.worlds import shapeworld_format as layout
from spatialprobes.worlds.shapeworld import TwoShapes, holds, picture
from spatialprobes.worlds.shapeworld_examples import Form, check_count, example
from spatialprobes.worlds.shapeworld_questions import caption

MAX_BYTES = 500_000_000  # of a JSON file; the published ones have 0.2 MB for 100 worlds
Shards = Sequence[int | str] | int | str
DEPTH = 4  # folders between the one that is named and a shard, at most (agreement/relational/test/shard0)


@dataclass(frozen=True)
class ShapeData:
    """examples, and the world of each; problems: one row for what was left out, [shard, index, problem]."""

    examples: list[Example]
    worlds: list[TwoShapes]
    problems: pd.DataFrame


@dataclass(frozen=True)
class _Row:
    """What the files say of one caption of one picture, as it stands there; ``lacking`` names what they do not have."""

    id: str
    picture: str
    agreement: str
    caption: str
    tree: Any
    world: Any
    lacking: str = ""


def read(folder: str | Path, *, shards: Shards | None = None, limit: int | None = None, form: Form = "question") -> ShapeData:
    """The worlds of a folder: of a shard, or of one that holds shards (``agreement/relational/shard*``) at most 4 folders down.

    shards: name or number of one to read, or several; all if None. limit: most examples, the first ones; what follows is not
    looked at. form: as in `shapeworld_examples.examples`. Each picture is decoded once to see that it can be; the example keeps
    its path.
    id: "<shard>/world-<index>", with "-<number>" where there are several captions or worlds; cluster: the picture.
    Raises FileNotFoundError where there is no such folder, shard or file; ValueError for a file that is no JSON list, shards
    without a world, a limit below 1, an unknown form, and several captions of several worlds.
    """
    if limit is not None:
        check_count(limit, "limit")
    found = list(_shards(Path(folder), shards).items())
    examples: list[Example] = []
    worlds: list[TwoShapes] = []
    problems: list[tuple[str, int, str]] = []
    for name, shard in found:
        for index, row in _rows(shard):
            if limit is not None and len(examples) == limit:
                break
            try:
                shown = _checked(row, shard)
            except (ValueError, ImageError) as error:
                problems.append((name, index, str(error)))
                continue
            path = shard / row.picture
            examples.append(example(f"{name}/{row.id}", shown, path, form=form, cluster=f"{name}/{path.stem}"))
            worlds.append(shown)
    if not examples and not problems:
        raise ValueError(f"{folder}: no world in its shards ({', '.join(name for name, _ in found)})")
    return ShapeData(examples, worlds, pd.DataFrame(problems, columns=["shard", "index", "problem"]))


def write(worlds: Sequence[TwoShapes], folder: str | Path, *, per_shard: int = 100) -> None:
    """Write worlds in the original's layout: ``agreement-relational.json`` and ``agreement/relational/shard<n>``, with pictures.

    Everything but the preview (data.html). Raises ValueError for no world or a per_shard below 1, FileExistsError where
    there are shards already.
    """
    check_count(per_shard, "per_shard")
    if not worlds:
        raise ValueError("no worlds to write; at least one is needed")
    root = Path(folder) / "agreement" / "relational"
    if root.exists():
        raise FileExistsError(f"{root} is there already; write into a folder without it")
    for start in range(0, len(worlds), per_shard):
        shard = root / f"shard{start // per_shard}"
        shard.mkdir(parents=True)
        part = worlds[start : start + per_shard]
        for index, one in enumerate(part):
            picture(one).save(shard / f"world-{index}.png")
        for name, text in layout.texts(part).items():  # world_model.json, by which a shard is known, is the last
            (shard / name).write_text(text, encoding="utf-8", newline="\n")
    specification = layout.specification(Path(folder).as_posix())
    (Path(folder) / "agreement-relational.json").write_text(specification, encoding="utf-8")


# ---- where the shards are ----
def _shards(folder: Path, wanted: Shards | None) -> dict[str, Path]:
    """Name -> folder, in the order of their numbers."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = [path.parent for depth in range(DEPTH + 1) for path in folder.glob("*/" * depth + "world_model.json")]
    if not found:
        raise FileNotFoundError(f"{folder}: no shard in it; a folder with world_model.json would be one")
    found.sort(key=_number)
    short = [path.name for path in found]
    unique = len(set(short)) == len(short)
    names = short if unique else [path.relative_to(folder).as_posix() for path in found]
    shards = dict(zip(names, found, strict=True))
    if wanted is None:
        return shards
    several = [wanted] if isinstance(wanted, (int, str)) else wanted
    asked = [f"shard{one}" if isinstance(one, int) else one for one in several]
    for one in asked:
        if one not in shards:
            raise FileNotFoundError(f"{folder}: no shard {one!r}; there are {', '.join(shards)}")
    return {one: shards[one] for one in dict.fromkeys(asked)}


def _number(path: Path) -> tuple[str, int, str]:
    digits = path.name.removeprefix("shard")
    return path.parent.as_posix(), int(digits) if digits.isdecimal() else -1, path.name


# ---- what stands in one ----
def _rows(shard: Path) -> Iterator[tuple[int, _Row]]:
    """(index, what the files say), every caption of every picture."""
    worlds, trees = (_list(shard / name) for name in ("world_model.json", "caption_model.json"))
    many_worlds, many_captions = (any(isinstance(one, list) for one in each) for each in (worlds, trees))
    if many_worlds and many_captions:
        raise ValueError(f"{shard}: several captions of several worlds; only one of the two can be more than one")
    texts = _text(shard / "caption.txt")
    captions = [block.split("\n") for block in texts.strip("\n").split("\n\n")] if many_captions else texts.splitlines()
    agreements = _text(shard / "agreement.txt").splitlines()
    columns = {
        "world_model.json": worlds, "caption_model.json": trees, "caption.txt": captions, "agreement.txt": agreements,
    }  # fmt: skip
    for index in range(max(map(len, columns.values()))):
        short = [f"{name} has only {len(each)} of them" for name, each in columns.items() if index >= len(each)]
        if short:
            yield index, _Row("", "", "", "", None, None, f"not in every file: {', '.join(short)}")
            continue
        yield from ((index, row) for row in _variants(index, *(each[index] for each in columns.values())))


def _variants(index: int, world: Any, tree: Any, caption: str | list[str], agreement: str) -> Iterator[_Row]:
    """The captions of a picture, or the pictures of a caption; one of each in the published files."""
    agreements = agreement.split(";")
    if [] in (world, tree):
        yield _Row("", "", "", "", None, None, f"world {index} has an empty list of {'captions' if tree == [] else 'worlds'}")
    elif isinstance(tree, list) and isinstance(caption, list):
        lacking = _uneven(index, captions=caption, models=tree, agreements=agreements)
        for number, (one, said, agreed) in enumerate(zip(tree, caption, agreements, strict=False)):
            yield _Row(f"world-{index}-{number}", f"world-{index}.png", agreed, said, one, world, lacking)
    elif isinstance(world, list):
        lacking = _uneven(index, worlds=world, agreements=agreements)
        for number, (one, agreed) in enumerate(zip(world, agreements, strict=False)):
            name = f"world-{index}-{number}"
            yield _Row(name, f"{name}.png", agreed, str(caption), tree, one, lacking)
    else:
        yield _Row(f"world-{index}", f"world-{index}.png", agreement, str(caption), tree, world)


def _uneven(index: int, **parts: Sequence) -> str:
    if len({len(part) for part in parts.values()}) == 1:
        return ""
    return f"world {index} has {', '.join(f'{len(part)} {name}' for name, part in parts.items())}; there must be as many of each"


def _checked(row: _Row, shard: Path) -> TwoShapes:
    """The world that the row's caption is true of. Raises ValueError, or ImageError, for whatever does not fit."""
    if row.lacking:
        raise ValueError(row.lacking)
    try:
        agreement = float(row.agreement)
    except ValueError:
        raise ValueError(f"agreement is {row.agreement!r}, not a number") from None
    if agreement != 1:
        raise ValueError(f"agreement is {row.agreement}: the caption is not said to be true of the world")
    entities, size = layout.entities(row.world)
    shown = layout.stated(row.tree, entities)
    subject, reference = shown.pair
    if " ".join(row.caption.split()) != (expected := caption(subject, reference, shown.relation)):
        raise ValueError(f"the caption reads {row.caption!r}; its model says {expected!r}")
    if (there := holds(subject, reference)) != shown.relation:
        raise ValueError(
            f"the caption says {shown.relation}; by their centres the first is {there or 'in no relation'} to the second"
        )
    if (side := open_image(shard / row.picture).size) != (size, size):
        raise ValueError(f"{row.picture} has {side[0]} x {side[1]} pixels; its world has {size} x {size}")
    return shown


def _list(path: Path) -> list:
    content = read_json(path, MAX_BYTES)
    if not isinstance(content, list):
        raise ValueError(f"{path}: not a list but {type(content).__name__}; a list with one entry per world is needed")
    return content


def _text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
