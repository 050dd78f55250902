"""Pictures in: any source that a user may have, out comes an upright 8-bit RGB ``PIL.Image``, or one line that says why not.

Knows files, bytes and pixel formats; ``fetch`` knows the network. Knows nothing of models: resizing and cropping to what a tower
wants is the processor's.

What is done to pixels, and nothing else: EXIF orientation is applied; transparency is composited on a stated background; 16-bit
and float values are scaled to 8 bits (not clipped); a picture longer than ``max_side`` is reduced to it. Embedded colour profiles
are ignored, as the models' own processors do. Of animations and multi-page files the first frame is taken.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from spatialprobes.examples import Example

Colour = tuple[int, int, int]
Source = str | Path | bytes | Image.Image | Callable[[], Image.Image]

# Only formats whose decoders are Pillow's own or its codecs': others would start programs (EPS) or follow references.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
MAX_PIXELS = 178_956_970  # where Pillow itself stops; 12,000 x 12,000 is below
MAX_SIDE = 4096  # more than any family here reads; keeps a picture in memory under 70 MB
MAX_BYTES = 20_000_000

_ORIENTATION = 0x0112
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
SIGNATURES = (
    *(b"\xff\xd8\xff", b"\x89PNG\r\n", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"),
    *(b"P%d" % kind for kind in range(1, 8)),
)

_pillow_limit = threading.Lock()


class ImageError(ValueError):
    """A picture that can't be read. ``name`` says which, ``reason`` why; the message is both."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Unreadable:
    """An example that was left out. example: its id; name: the file, URL or kind of source; reason: why it can't be read."""

    example: str
    name: str
    reason: str

    def __str__(self) -> str:
        which = self.name if self.name.endswith(self.example) else f"{self.example} ({self.name})"
        return f"{which}: {self.reason}"


def open_image(
    source: Source,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    max_side: int | None = MAX_SIDE,
    background: Colour = (255, 255, 255),
    max_bytes: int = MAX_BYTES,
    seconds: float = 30.0,
) -> Image.Image:
    """The picture, upright, RGB, decoded; reading the result again changes nothing.

    source: a path, an http(s) URL, the bytes of a file, a PIL image, or a function without arguments that returns a PIL image.
    name: what errors call it, where the source itself has no name.
    max_pixels: a picture with more is refused before it is decoded (a small file can announce a huge one).
    max_side: pixels; a picture longer than this is reduced to it, its shape kept. None: never.
    background: what shows through transparent pixels.
    max_bytes, seconds: limits of a download; see ``fetch``.

    Raises ImageError naming the source and the reason: missing, empty, truncated, not an image, too large, refused URL.
    """
    name = name or _name(source)
    if isinstance(source, str) and _scheme(source):
        from spatialprobes.fetch import FetchError, fetch  # here, since a bare GPU machine may lack requests

        try:
            source = fetch(source, begins_with=SIGNATURES, max_bytes=max_bytes, seconds=seconds)
        except FetchError as error:
            raise ImageError(name, error.reason) from error
    if isinstance(source, (str, Path)):
        source = _existing(Path(source), name)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        if not len(source):
            raise ImageError(name, "holds zero bytes")
        source = io.BytesIO(source)
    elif callable(source):
        source = _called(source, name)
    elif not isinstance(source, Image.Image):
        raise ImageError(
            name, "is no source of a picture; a path, a URL, bytes, a PIL image or a function returning one would be"
        )

    if isinstance(source, Image.Image):
        return _decoded(source, name, max_pixels, max_side, background)
    with _opened(source, name) as image:
        return _decoded(image, name, max_pixels, max_side, background)


def check_header(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(width, height) that the file announces, before any turning; no pixel is decoded, so a file cut behind its header passes.

    Raises ImageError as `open_image` does, for what can be told from the header.
    """
    name = name or _name(source)
    if isinstance(source, Path):
        source = _existing(source, name)
    elif not len(source):
        raise ImageError(name, "holds zero bytes")
    else:
        source = io.BytesIO(source)
    with _opened(source, name) as image:
        _check_size(image, name, max_pixels)
        return image.size


def enlarged(image: Image.Image, side: int) -> Image.Image:
    """The picture as side x side pixels, its pixels repeated: a small drawing for a model that sees large ones."""
    return image.resize((side, side), Image.Resampling.NEAREST)


def png_bytes(image: Image.Image) -> bytes:
    """The picture as a PNG file's bytes: how pictures are kept in tables."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def read_all(examples: Iterable[Example], strict: bool = False, **options) -> tuple[list[Example], list[Unreadable]]:
    """The examples whose pictures can be read, and a list of those that can't, in the order given.

    Each picture is decoded once to see, and let go, so memory stays that of one; pictures from the network are kept, already
    decoded, so that they are fetched once. A picture that several examples share is checked once.
    strict: the first unreadable picture raises ImageError instead. options: those of ``open_image``.
    """
    good, bad = [], []
    seen: dict[str | int, tuple[Source, Image.Image | ImageError | None]] = {}  # with the source, so that no id is used again
    for example in examples:
        source = example.image
        key = str(source) if isinstance(source, (str, Path)) else id(source)
        if key not in seen:
            try:
                picture = open_image(source, name=_name(source, example.id), **options)
                seen[key] = (source, picture if isinstance(source, str) and _scheme(source) else None)
            except ImageError as error:
                if strict:
                    raise
                seen[key] = (source, error)
        outcome = seen[key][1]
        if isinstance(outcome, ImageError):
            bad.append(Unreadable(example.id, outcome.name, outcome.reason))
        else:
            good.append(replace(example, image=outcome) if outcome else example)
    return good, bad


def _scheme(source: str) -> str:
    """The scheme of what is written as a URL, "" for a path (also for a Windows drive, one letter)."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://|(data|file):", source, re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else ""


def _name(source: Source, otherwise: str | None = None) -> str:
    if isinstance(source, (str, Path)):
        return str(source) or "'' (an empty path)"
    if otherwise:
        return otherwise
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or f"a {source.mode} picture of {source.width}x{source.height}")
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"a picture given as {len(source):,} bytes"
    return f"a picture from {getattr(source, '__qualname__', type(source).__name__)}"


def _existing(path: Path, name: str) -> Path:
    try:
        if not path.is_file():
            reason = "is a folder" if path.is_dir() else "is not a plain file" if path.exists() else "no such file"
        elif not path.stat().st_size:
            reason = "holds zero bytes"
        else:
            return path
    except (OSError, ValueError) as error:  # a name that no file system takes; a folder that may not be entered
        raise ImageError(name, _because(error)) from error
    raise ImageError(name, reason)


def _called(function: Callable[[], Image.Image], name: str) -> Image.Image:
    try:
        picture = function()
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(name, f"the function that makes it raised {type(error).__name__}: {error}") from error
    if not isinstance(picture, Image.Image):
        raise ImageError(name, f"the function that makes it returned {type(picture).__name__}, not a PIL image")
    return picture


@contextmanager
def _pillow_limit_off() -> Iterator[None]:
    """Pillow's own limit is one global number; here each call has its own, checked before anything is decoded."""
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _opened(source: Path | io.BytesIO, name: str) -> Image.Image:
    """The file's picture, its header read and nothing more."""
    try:
        with _pillow_limit_off(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's many notes on odd files; what matters is raised
            return Image.open(source, formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ImageError(name, f"not an image of a known kind ({', '.join(FORMATS)}), or cut within its header") from error
    except Exception as error:
        raise ImageError(name, _because(error)) from error


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(name, f"has {width:,} x {height:,} pixels; the limit is {max_pixels:,} in all")
    if not width or not height:
        raise ImageError(name, f"has no pixels ({width} x {height})")


def _decoded(image: Image.Image, name: str, max_pixels: int, max_side: int | None, background: Colour) -> Image.Image:
    _check_size(image, name, max_pixels)
    try:
        if max_side and max(image.size) > max_side:
            image.draft(None, (max_side, max_side))  # JPEG: decode at a half, quarter or eighth where that is still enough
        image.load()
        if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
            image = ImageOps.exif_transpose(image)
        if image.mode in ("L", "RGB", "CMYK") and not image.has_transparency_data:
            image = _reduced(image, max_side)  # before conversion, where it means the same and needs less memory
        image = _reduced(_rgb(image, background), max_side)
    except Exception as error:
        raise ImageError(name, _because(error)) from error
    return image


def _reduced(image: Image.Image, max_side: int | None) -> Image.Image:
    if not max_side or max(image.size) <= max_side:
        return image
    scale = max_side / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _rgb(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _DEEP_GREY:
        return _eight_bits(image, background)
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(layer, mask=layer.getchannel("A"))
    return canvas


def _eight_bits(image: Image.Image, background: Colour) -> Image.Image:
    """Grey of more than 8 bits. 16-bit values fill 0 to 65,535; floats 0 to 1, or 0 to 255 where some exceed 1."""
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= (255 if image.mode == "F" else 65535)):
        raise ValueError(
            f"{image.mode} values from {low:g} to {high:g}: what is white is not known; 0 to 1, 255 or 65535 would be"
        )
    white = 65535.0 if image.mode != "F" else 1.0 if high <= 1 else 255.0
    grey = np.rint(values * np.float32(255.0 / white)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=-1)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = background
    return Image.fromarray(pixels)


def _because(error: Exception) -> str:
    """Pillow's and the system's reasons in one line; without the file name, which the message already has."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return " ".join(str(error).split()) or type(error).__name__
