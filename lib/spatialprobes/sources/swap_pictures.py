"""The picture of a row of a table of swap pairs: base64, bytes, or a path within a folder; decoded when it is used.

Knows columns of pictures; how a row is found is ``swap_rows.py``'s to know, what is a picture ``images.py``'s.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from spatialprobes.images import ImageError, open_image
from spatialprobes.sources.swap_rows import Place, Rows, text

if TYPE_CHECKING:
    from PIL import Image

PICTURES = ("image_base64", "image", "image_path")


@dataclass(frozen=True)
class RowImage:
    """The picture of a row, decoded whenever it is called. Two of one place are equal."""

    rows: Rows = field(repr=False)
    place: Place
    line: int
    column: str
    images: Path | None
    max_pixels: int

    def __call__(self) -> Image.Image:
        """Raises ImageError naming file and line."""
        name = f"{self.rows.name}, line {self.line}"
        try:
            source = picture(self.rows.fetch(self.place, (self.column,))[self.column], self.column, self.images)
            return open_image(source, name=name, max_pixels=self.max_pixels)
        except ImageError as error:
            raise ImageError(name, error.reason) from error
        except (ValueError, OSError) as error:
            raise ImageError(name, str(error)) from error


def picture(value: Any, column: str, folder: Path | None) -> bytes | Path:
    """The bytes of a row's picture, or the path of its file. Raises ValueError that says why there is none."""
    if column == "image_path":
        return _within(text(value, column), folder)
    if column == "image" and isinstance(value, dict):
        value = value.get("bytes")
    if column == "image_base64" and value is not None:
        data = value.encode("ascii", "replace") if isinstance(value, str) else value
        if any(blank in data for blank in (b" ", b"\n", b"\t", b"\r")):  # lines that were wrapped
            data = b"".join(data.split())
        try:
            value = binascii.a2b_base64(data, strict_mode=True)
        except binascii.Error as error:
            raise ValueError(f"image_base64: not base64: {str(error).lower()}") from error
    if value is None or (isinstance(value, bytes) and not value):
        raise ValueError(f"no {column}")
    if not isinstance(value, bytes):
        raise ValueError(f"{column} holds {type(value).__name__}; the bytes of an image file are wanted")
    return value


def _within(name: str, folder: Path) -> Path:
    """The file of that name in the folder. Raises ValueError where it leads out, also by a link, or is not there."""
    if not name:
        raise ValueError("no image_path")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise ValueError(f"image_path {name!r} leads out of the folder")
    path = folder / pure
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"image_path {name!r} leads out of the folder by a link")
        if not path.is_file():
            raise ValueError(f"image_path {name!r}: no such file in {folder}")
    except (OSError, RuntimeError) as error:  # a name that the system can't have; a loop of links, which 3.11 calls RuntimeError
        raise ValueError(f"image_path {name!r}: {getattr(error, 'strerror', None) or 'a loop of links'}") from error
    return path
