"""COCO captions: annotations/captions_*.json beside a folder of pictures, one example a picture with all its captions.

Knows the file's layout ({"images": [{id, file_name, ...}], "annotations": [{id, image_id, caption}]}; Lin et al. 2014, the data
format of cocodataset.org). Nothing is decoded here; questions are the caller's to add (`question=`, or `dataclasses.replace`).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from spatialprobes.examples import Example
from spatialprobes.images import Unreadable
from spatialprobes.seeds import check_seed
from spatialprobes.sources.json_files import read_json

MAX_BYTES = 1_000_000_000


def coco(
    annotations: str | Path,
    images: str | Path,
    *,
    limit: int | None = None,
    seed: int | None = None,
    question: str | None = None,
) -> tuple[list[Example], list[Unreadable]]:
    """The pictures of a captions file that are in the folder `images`, in the order of their ids, and what is not right.

    id and cluster: the image id with zeros in front ("000000445658"), as files are called. image: the path, opened when used.
    meta: ``image_id`` (int), ``file_name``, ``captions`` (list of text in the order of the annotations' ids; empty for a picture
    that nobody described). limit: at most so many, the first by id, or with `seed` a random choice of those that can be used.
    The second list names pictures that are not in the folder, entries without id, file name, image id or caption, entries that
    stand twice, second ids of a file, captions of an unknown picture and file names that lead out of the folder; all of those are
    left out.
    Raises FileNotFoundError or NotADirectoryError naming file or folder; ValueError for a file that is no captions file, for a
    limit below 1, for what is no seed and where no picture is left.
    """
    annotations, images = Path(annotations), Path(images)
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit}; it must be at least 1, or None for all")
    if seed is not None:
        check_seed(seed)
    if not images.is_dir():
        kind, problem = (NotADirectoryError, "is not a folder") if images.exists() else (FileNotFoundError, "no such folder")
        raise kind(f"{images}: {problem}")
    listed, captions = _lists(annotations)
    problems: list[Unreadable] = []
    files = _files(listed, annotations, problems)
    texts = _captions(captions, files, annotations, problems)
    usable = {}
    for number, name in sorted(files.items()):
        if problem := _missing(images / name):
            problems.append(Unreadable(f"{number:012d}", str(images / name), problem))
        else:
            usable[number] = name
    if not usable:
        raise ValueError(f"{annotations}: none of its {len(files)} pictures is in {images}")
    chosen = list(usable)
    if limit is not None and limit < len(chosen):
        picked = range(limit) if seed is None else sorted(np.random.default_rng(seed).choice(len(chosen), limit, replace=False))
        chosen = [chosen[i] for i in picked]
    examples = [
        Example(
            id=f"{number:012d}",
            image=images / usable[number],
            question=question,
            cluster=f"{number:012d}",
            meta={
                "image_id": number,
                "file_name": usable[number],
                "captions": [text for _, text in sorted(texts.get(number, []))],
            },
        )
        for number in chosen
    ]
    return examples, problems


def _missing(path: Path) -> str | None:
    """Why there is no such file, None where there is one."""
    try:
        return None if path.is_file() else "no such file"
    except OSError as error:  # a name that the system can't have
        return error.strerror or str(error)


def _lists(path: Path) -> tuple[list[Any], list[Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"no captions file {path}")
    content = read_json(path, MAX_BYTES)
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(f"{path}: no list {key!r}; a COCO captions file has 'images' and 'annotations'")
    return content["images"], content["annotations"]


def _files(listed: list[Any], path: Path, problems: list[Unreadable]) -> dict[int, str]:
    """Image id -> file name."""
    files: dict[int, str] = {}
    owners: dict[PurePosixPath, int] = {}
    for place, entry in enumerate(listed):
        number, name = (entry.get("id"), entry.get("file_name")) if isinstance(entry, dict) else (None, None)
        where = f"images[{place}]"
        if not _is_id(number):
            problems.append(Unreadable(where, path.name, f"its id is {number!r}, not a whole number from 0"))
        elif not isinstance(name, str) or not name:
            problems.append(Unreadable(where, path.name, f"image {number} has no file name"))
        elif PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            problems.append(Unreadable(where, path.name, f"file name {name!r} leads out of the folder"))
        elif number in files:
            problems.append(Unreadable(where, path.name, f"image {number} stands twice"))
        elif (owner := owners.setdefault(PurePosixPath(name), number)) != number:
            problems.append(Unreadable(where, path.name, f"image {number} has the file of image {owner}, {name!r}"))
        else:
            files[number] = name
    return files


def _captions(
    entries: list[Any], files: dict[int, str], path: Path, problems: list[Unreadable]
) -> dict[int, list[tuple[int, str]]]:
    """Image id -> [(annotation id, caption)]."""
    texts: dict[int, list[tuple[int, str]]] = {}
    seen: set[int] = set()
    for place, entry in enumerate(entries):
        one = entry if isinstance(entry, dict) else {}
        number, image, text = one.get("id"), one.get("image_id"), one.get("caption")
        where = f"annotations[{place}]"
        if not _is_id(number) or not _is_id(image):
            problems.append(Unreadable(where, path.name, f"its ids are {number!r}, {image!r}, not whole numbers from 0"))
        elif number in seen:
            problems.append(Unreadable(where, path.name, f"annotation {number} stands twice"))
        elif not isinstance(text, str) or not text.strip():
            problems.append(Unreadable(where, path.name, f"annotation {number} has no caption"))
        elif image not in files:
            problems.append(Unreadable(where, path.name, f"annotation {number} is of an unknown image {image}"))
        else:
            seen.add(number)
            texts.setdefault(image, []).append((number, text.strip()))
    return texts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
