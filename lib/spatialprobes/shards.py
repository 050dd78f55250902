"""The files under a store: safetensors whose header says whose rows they hold, and a way to write a file whole or not at all.

Knows formats and the disk. Which rows belong together, and what is there already, is ``store``'s. The safetensors layout (8 bytes
of header length, a JSON header, the tensors without gaps) is written here rather than by its package, so that a full disk is an
OSError and the bytes are synced before they get their name; ``safetensors.safe_open`` reads the files (tested).
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = ".tmp-"
FORMAT = "spatialprobes rows 1"
NUMPY_DTYPE = {
    **{"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1"},
    **{"U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1"},
    "BF16": "<u2",  # numpy lacks it: kept as its 16 bits, read as the float32 of the same value
}
_NAME = {np.dtype(code): name for name, code in NUMPY_DTYPE.items() if name != "BF16"}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ShardError(ValueError):
    """A shard that is damaged or was not written here."""


@dataclass(frozen=True)
class Block:
    """Rows of one site and layer. examples[i], positions[i]: whose row i is. dtype: safetensors' name; shape: [row, ...].

    offset: of its first byte in the file, once it is in one.
    """

    site: str
    layer: int
    examples: list[str]
    positions: list[int]
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0


def plain(array: np.ndarray | Tensor) -> tuple[str, np.ndarray]:
    """safetensors' name of the dtype, and the numbers as a contiguous little-endian array (bfloat16 as its 16 bits).

    Raises TypeError for a dtype that safetensors lacks.
    """
    if hasattr(array, "detach"):  # a torch tensor; numpy users need no torch
        import torch

        array = array.detach().cpu().contiguous()
        if array.dtype == torch.bfloat16:
            return "BF16", array.view(torch.int16).numpy().view("<u2")
        array = array.numpy()
    array = np.asarray(array)
    name = _NAME.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise TypeError(f"{array.dtype} can't be stored; {', '.join(str(dtype) for dtype in _NAME)} or torch.bfloat16 can")
    return name, np.ascontiguousarray(array, NUMPY_DTYPE[name]).reshape(array.shape)


def encode(parts: Sequence[tuple[Block, np.ndarray]]) -> list[bytes | memoryview]:
    """The bytes of a shard, in pieces; ``parts`` are blocks with their numbers as ``plain`` gives them. Nothing is copied."""
    parts = sorted(parts, key=lambda part: -part[1].itemsize)  # the widest first, so that all are aligned
    header: dict[str, object] = {}
    rows = []
    start = 0
    for block, array in parts:
        name = f"{block.site}/{block.layer}"
        header[name] = {"dtype": block.dtype, "shape": block.shape, "data_offsets": [start, start + array.nbytes]}
        rows.append(
            {"tensor": name, "site": block.site, "layer": block.layer, "examples": block.examples, "positions": block.positions}
        )
        start += array.nbytes
    header["__metadata__"] = {"format": FORMAT, "rows": json.dumps(rows, ensure_ascii=False)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *(array.reshape(-1).view(np.uint8).data for _, array in parts)]


def read_header(path: Path) -> list[Block]:
    """The blocks of a shard. Raises ShardError where it is not whole; FileNotFoundError."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= size - 8:
            raise ShardError(f"{path}: damaged: {size:,} bytes, and a header of {length:,} announced")
        text = file.read(length)
    try:
        header = json.loads(text)
        if header["__metadata__"]["format"] != FORMAT:
            raise ShardError(f"{path}: holds {header['__metadata__']['format']!r}, not {FORMAT!r}")
        blocks = []
        for entry in json.loads(header["__metadata__"]["rows"]):
            tensor = header[entry["tensor"]]
            offset = 8 + length + tensor["data_offsets"][0]
            shape = tuple(tensor["shape"])
            block = Block(entry["site"], entry["layer"], entry["examples"], entry["positions"], tensor["dtype"], shape, offset)
            blocks.append(block)
        end = 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: damaged: its header can't be read ({type(error).__name__}: {error})") from error
    if end != size:
        raise ShardError(f"{path}: damaged: {size:,} bytes where its header announces {end:,}")
    return blocks


def read_rows(path: Path, block: Block, rows: slice | np.ndarray) -> np.ndarray:
    """Rows of a block. A slice is a read-only view of the file, but for bfloat16, which comes as a float32 copy."""
    dtype = np.dtype(NUMPY_DTYPE[block.dtype])
    if 0 in block.shape:  # nothing to map
        found = np.empty(block.shape, dtype)[rows]
    else:
        found = np.memmap(path, dtype, "r", block.offset, block.shape)[rows]
    if block.dtype == "BF16":  # the upper half of a float32's bits
        return (found.astype(np.uint32) << 16).view(np.float32)
    return found


def write_whole(path: Path, pieces: Sequence[bytes | memoryview]) -> None:
    """Write a file so that, whenever the process is killed, it is there whole or not at all; on return it is on the disk.

    Raises OSError in one line; then nothing is left behind.
    """
    temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            needed = sum(memoryview(piece).nbytes for piece in pieces)
            free = shutil.disk_usage(path.parent).free
            line = f"{path}: no room for {needed / 1e6:.1f} MB ({os.strerror(error.errno).lower()}; {free / 1e6:.1f} MB free)"
            raise OSError(error.errno, f"{line}; what was there before is untouched") from error
        raise


def sync_folder(folder: Path) -> None:
    """Make renames within a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
