"""A folder of pictures, at any depth, each perhaps with a caption in a text file of the same stem beside it.

Knows names and captions. Decoding, and what counts as unreadable, is ``images``'; questions are the caller's to add
(``dataclasses.replace(example, question=...)``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from spatialprobes.examples import Example
from spatialprobes.images import Unreadable, read_all

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class CaptionError(ValueError):
    """A caption file that is not UTF-8 text; names the file and the byte."""


def walk(folder: str | Path) -> Iterator[Example]:
    """An example a picture, in the order of their ids, nothing decoded yet.

    id and cluster: the path from the folder, with / and the suffix, always a string ("00000/000010000.jpg" keeps its zeros).
    meta: ``stem`` (a string too), and ``caption`` where ``<stem>.txt`` is beside the picture and not empty, outer blanks removed.
    Suffixes jpg, jpeg, png, webp in any case. Names that begin with a dot are left out (thumbnails and twins that systems leave);
    links to files are followed, links to folders are not, so that a loop can't hang it.

    Raises FileNotFoundError or NotADirectoryError naming the folder; ValueError where it holds no picture; CaptionError.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind, problem = (NotADirectoryError, "is not a folder") if folder.exists() else (FileNotFoundError, "no such folder")
        raise kind(f"{folder}: {problem}")
    found = _pictures(folder)
    if not found:
        raise ValueError(f"{folder}: no picture in it, at any depth; {', '.join(SUFFIXES)} would be")
    for key, path, caption in found:
        meta = {"stem": path.stem}
        if caption is not None and (text := _text(caption)):
            meta["caption"] = text
        yield Example(id=key, image=path, cluster=key, meta=meta)


def image_folder(folder: str | Path, strict: bool = False, **options) -> tuple[list[Example], list[Unreadable]]:
    """The examples of ``walk`` whose pictures can be decoded, and the list of those left out with the reasons.

    strict: the first unreadable picture raises ``images.ImageError``. options: those of ``images.open_image``.
    """
    return read_all(walk(folder), strict=strict, **options)


def _pictures(folder: Path) -> list[tuple[str, Path, Path | None]]:
    def unlisted(error: OSError) -> None:
        raise error  # os.walk's default is to leave out, without a word, what it may not enter

    found = []
    for parent, folders, files in os.walk(folder, onerror=unlisted):
        folders[:] = [name for name in folders if not name.startswith(".")]
        captions = {Path(name).stem: Path(parent, name) for name in files if name.lower().endswith(".txt")}
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                path = Path(parent, name)
                found.append((path.relative_to(folder).as_posix(), path, captions.get(path.stem)))
    return sorted(found)


def _text(caption: Path) -> str:
    try:
        return caption.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise CaptionError(f"{caption}: not UTF-8 at byte {error.start}; convert it, or move it away") from error
