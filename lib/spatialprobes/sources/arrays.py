"""NumPy files from elsewhere, .npy and .npz: read without running what may be in them, written so that no reader sees half.

A file's header says how large its array is before a byte of it is read, so that a small file can't ask for all memory. Object
arrays, which are pickles, are refused. Knows files and arrays, nothing of what they mean.
"""

from __future__ import annotations

import errno
import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from spatialprobes.tables import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Shaped

MAX_BYTES = 2_000_000_000  # of the arrays of one file, unpacked
MAX_HEADER = 4096  # NumPy writes 128 bytes for an array of numbers
HEADERS = {  # version -> its length field, how it is read
    (1, 0): ("<H", np.lib.format.read_array_header_1_0),
    (2, 0): ("<I", np.lib.format.read_array_header_2_0),
}
# what NumPy's reader and Python's parser below it raise for headers that NumPy never writes
MALFORMED = (
    *(ValueError, TypeError, LookupError, EOFError, struct.error),
    *(SyntaxError, tokenize.TokenError, RecursionError, MemoryError),
)


def read_npy(path: str | Path, max_bytes: int = MAX_BYTES) -> Shaped[np.ndarray, " *shape"]:
    """The array of a .npy file. Raises FileNotFoundError; ValueError naming the file if it is broken, an object, or too large."""
    path = _existing(path)
    with open(path, "rb") as file:
        return _array(file, str(path), max_bytes)[0]


def read_npz(
    path: str | Path, max_bytes: int = MAX_BYTES, only: Container[str] | None = None
) -> dict[str, Shaped[np.ndarray, " *shape"]]:
    """The arrays of a .npz file by name, or those in `only`. Raises as `read_npy`; the bound is on all of them together."""
    found, left = {}, max_bytes
    with _opened(path) as members:
        for key, open_member in members.items():
            if only is None or key in only:
                with open_member() as file:
                    found[key], size = _array(file, f"{path}: {key}", left)
                    left -= size
    return found


def headers_npz(path: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and type of each array of a .npz file, objects included, read from their headers alone. Raises as `read_npz`."""
    found = {}
    with _opened(path) as members:
        for key, open_member in members.items():
            with open_member() as file:
                found[key] = _described(file, f"{path}: {key}")
    return {key: (shape, dtype) for key, (shape, _, dtype) in found.items()}


def write_npy(path: str | Path, array: Shaped[np.ndarray, " *shape"]) -> Path:
    """Write a .npy file; the same array gives the same bytes. Raises OSError in one line when the disk refuses."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return write_atomically(path, buffer.getvalue())


def write_npz(path: str | Path, arrays: Mapping[str, Shaped[np.ndarray, " *shape"]], packed: bool = False) -> Path:
    """Write a .npz file as `numpy.savez` does, packed as `numpy.savez_compressed`; the same arrays give the same bytes.

    Raises as `write_npy`.
    """
    buffer = io.BytesIO()
    save = np.savez_compressed if packed else np.savez
    save(buffer, allow_pickle=False, **arrays)
    return write_atomically(path, buffer.getvalue())


@contextmanager
def _opened(path: str | Path) -> Iterator[dict[str, Callable[[], IO[bytes]]]]:
    """How to open each array of a .npz file. Raises ValueError for what NumPy does not write, and for what breaks while open."""
    path, found = _existing(path), {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                key = member.filename.removesuffix(".npy")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"{path}: {key}: packed in a way that NumPy does not use")
                if key in found:
                    raise ValueError(f"{path}: {key} stands twice")
                found[key] = partial(archive.open, member)
            yield found
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable .npz file: {str(error)[:200]}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path}: not a readable .npz file: it points to where nothing can be") from error


def _array(file: IO[bytes], name: str, max_bytes: int) -> tuple[Shaped[np.ndarray, " *shape"], int]:
    """The array and its bytes."""
    shape, by_column, dtype = _described(file, name)
    if dtype.hasobject:
        raise ValueError(f"{name}: holds objects, which only a pickle could give back; save numbers")
    if dtype.itemsize == 0 or dtype.subdtype:
        raise ValueError(f"{name}: holds {dtype!r}, which is no number; save numbers")
    if any(isinstance(one, bool) or one < 0 for one in shape):  # a negative size would read all that there is
        raise ValueError(f"{name}: shape {shape}; each must be a whole number from 0")
    if (size := math.prod(shape) * dtype.itemsize) > max_bytes:
        raise ValueError(f"{name}: {size:,} bytes (shape {shape}, {dtype}); at most {max_bytes:,} are read")
    data = file.read(size)
    if len(data) < size:
        raise ValueError(f"{name}: cut short, {len(data):,} bytes of {size:,}")
    try:
        return np.frombuffer(data, dtype).reshape(shape, order="F" if by_column else "C").copy(), size
    except ValueError as error:  # more dimensions than there are, or an empty array too wide for them
        raise ValueError(f"{name}: shape {shape}: {error}") from error


def _described(file: IO[bytes], name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """As `_header`; raises ValueError naming the array."""
    try:
        return _header(file)
    except MALFORMED as error:
        raise ValueError(f"{name}: not a NumPy array: {str(error)[:200]}") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it goes by columns, and type. Raises one of `MALFORMED`."""
    version = np.lib.format.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"version {version} of the .npy format is unknown here")
    length_format, read = HEADERS[version]
    prefix = file.read(struct.calcsize(length_format))
    (length,) = struct.unpack(length_format, prefix)
    if length > MAX_HEADER:
        raise ValueError(f"a header of {length:,} bytes; at most {MAX_HEADER:,}")
    return read(io.BytesIO(prefix + file.read(length)))


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return path
