"""Lines of small text files from elsewhere: bounded, UTF-8, whole; whatever is wrong said in one line that names the file.

Knows files and lines, nothing of what stands in them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 5_000_000
MAX_FILES = 50_000  # more is no folder of results
FIXED = r"nan|-?\d{1,15}\.\d{%d}"  # a number with so many decimals: one that was cut short has fewer


def read_lines(path: str | Path, max_bytes: int = MAX_BYTES) -> list[str]:
    """The lines without their ends.

    Raises FileNotFoundError; ValueError naming a file that is too large, no UTF-8 or cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path}: {size:,} bytes; at most {max_bytes:,}")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
    if not text.endswith("\n"):
        raise ValueError(f"{path}: its last line has no end: empty, or cut short")
    return text.replace("\r\n", "\n").split("\n")[:-1]


def existing_folder(folder: str | Path) -> Path:
    """The folder as a path. Raises FileNotFoundError or NotADirectoryError."""
    folder = Path(folder)
    if not folder.is_dir():
        kind, problem = (NotADirectoryError, "is not a folder") if folder.exists() else (FileNotFoundError, "no such folder")
        raise kind(f"{folder}: {problem}")
    return folder


def files_in(folder: Path) -> Iterator[str]:
    """Names of the plain files right in the folder, in order; links are not followed. Raises ValueError for far too many."""
    with os.scandir(folder) as entries:
        names = [
            entry.name for _, entry in zip(range(MAX_FILES + 1), entries, strict=False) if entry.is_file(follow_symlinks=False)
        ]
    if len(names) > MAX_FILES:
        raise ValueError(f"{folder}: more than {MAX_FILES:,} files, which is no folder of results")
    yield from sorted(names)


def short(error: Exception, path: Path) -> str:
    """What an error says of a file, in one line, without the path before it."""
    return " ".join(str(error).replace(f"{path}: ", "").split())
