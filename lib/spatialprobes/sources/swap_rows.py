"""Rows of a table of swap pairs, wherever it lies: TSV, parquet, or a ``datasets`` data set. Each row is gone through once, and
read again by its place when it is used, so that memory does not grow with the pictures in the table.

Quoting in a TSV is that of Python's csv module and of pandas ("excel-tab"): a field that begins with a double quote ends at the
next one that is not doubled, and may hold tabs and line breaks; a quote inside an unquoted field is a character as any other.
Lines end in LF or CRLF; blank ones are passed over. What csv would merge without a word is reported: where a row of several
lines has another number of fields than the header, or tabs enough for two rows, its first line alone is bad (a stray quote) and
reading goes on at the next. A field may be as long as a row.
Knows files and columns; what is in the columns is ``swap_pairs``' to know.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

MAX_ROW = 64_000_000  # bytes of a row: a picture of `images.MAX_BYTES` in base64, twice over
MAX_LINES = 100  # that one row may take, by line breaks within quotes
BATCH = 16  # rows of a parquet file read at once
BUFFER = 1 << 20  # bytes of a file read at once
BOM = b"\xef\xbb\xbf"

Place = tuple[int, int]  # where a row lies: (offset, bytes) in a TSV, (row group, row) in parquet, (row, 0) in a data set


@dataclass(frozen=True)
class Row:
    """line: 1-based line on which the row begins (the header is line 1), 1-based row of parquet and data sets."""

    line: int
    place: Place
    values: dict[str, Any]


@dataclass(frozen=True)
class Bad:
    """A row that can't be read, and why."""

    line: int
    problem: str


@dataclass(frozen=True)
class Tsv:
    """A TSV file. stamp: (bytes, time of change) when it was opened first; another file under its name is not read."""

    path: Path
    columns: tuple[str, ...]
    stamp: tuple[int, int]
    start: int
    line: int

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self, columns: Sequence[str]) -> Iterator[Row | Bad]:
        """The rows in order, with the values of some columns, as bytes."""
        with open(self.path, "rb", buffering=BUFFER) as file:
            for line, offset, size, fields in _records(file, self.start, self.line, len(self.columns)):
                if isinstance(fields, str):
                    yield Bad(line, fields)
                else:
                    yield Row(line, (offset, size), self._chosen(fields, columns))

    def fetch(self, place: Place, columns: Sequence[str]) -> dict[str, bytes]:
        """Values of the row at a place. Raises ValueError where the file is not the one that was indexed."""
        offset, size = place
        with open(self.path, "rb") as file:
            _check_stamp(self.path, file, self.stamp)
            file.seek(offset)
            return self._chosen(_fields(file.read(size)), columns)

    def _chosen(self, fields: list[bytes], columns: Sequence[str]) -> dict[str, bytes]:
        return {column: fields[self.columns.index(column)] for column in columns}


@dataclass(frozen=True)
class Parquet:
    """A parquet file. What is held of it is what pyarrow holds of one row group and column, a dictionary for instance, so files
    with pictures are best written in small row groups (`row_group_size=100`)."""

    path: Path
    columns: tuple[str, ...]
    stamp: tuple[int, int]

    @property
    def name(self) -> str:
        return str(self.path)

    def rows(self, columns: Sequence[str]) -> Iterator[Row | Bad]:
        line = 0
        with _opened(self.path) as file:
            for group in range(file.num_row_groups):
                for row, values in enumerate(_group_rows(file, group, columns)):
                    line += 1
                    yield Row(line, (group, row), values)

    def fetch(self, place: Place, columns: Sequence[str]) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            _check_stamp(self.path, file, self.stamp)
        group, row = place
        return _reader(self.path, self.stamp, group, tuple(columns)).at(row)


@dataclass(frozen=True)
class Dataset:
    """A data set of the library ``datasets`` (or what has its `column_names`, `len` and rows by number)."""

    data: Any
    columns: tuple[str, ...]
    name: str

    def rows(self, columns: Sequence[str]) -> Iterator[Row | Bad]:
        for number in range(len(self.data)):
            yield Row(number + 1, (number, 0), self.fetch((number, 0), columns))

    def fetch(self, place: Place, columns: Sequence[str]) -> dict[str, Any]:
        row = self.data[place[0]]
        return {column: row[column] for column in columns}


Rows = Tsv | Parquet | Dataset


def open_rows(source: Any) -> Rows:
    """The rows of a file (parquet by its first bytes, else TSV), of a folder of `save_to_disk`, or of a data set as an object.

    Raises FileNotFoundError; ValueError for an empty file, a packed one, a header that can't be understood, and for a dictionary
    of several splits; ImportError for a folder where ``datasets`` is not installed.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _dataset(source, type(source).__name__)
    path = Path(source)
    if path.is_dir():
        return _dataset(_load(path), str(path))
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    with open(path, "rb") as file:
        stamp, head = _stamp(file), file.read(4)
        if head == b"PAR1":
            return _parquet(path, stamp)
        if head[:2] == b"\x1f\x8b":
            raise ValueError(f"{path}: packed by gzip, where no row can be found by its place; unpack it first")
        return _tsv(path, file, stamp)


def text(value: Any, name: str) -> str:
    """A value as words, outer blanks removed; "" where there is none. Raises ValueError naming the column of what is no text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}: not UTF-8 at byte {error.start}") from error
    if isinstance(value, float) and value.is_integer():  # whole numbers beside empty cells, as pandas keeps them
        value = int(value)
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"{name} holds {type(value).__name__}, not text")
    return str(value).strip()


def _tsv(path: Path, file: BinaryIO, stamp: tuple[int, int]) -> Tsv:
    file.seek(0)
    begin = len(BOM) if file.read(len(BOM)) == BOM else 0
    for line, offset, size, fields in _records(file, begin, 1, None):
        if isinstance(fields, str):
            raise ValueError(f"{path}: line {line}, the header: {fields}")
        try:
            columns = tuple(field.decode("utf-8").strip() for field in fields)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: line {line}, the header: not UTF-8 at byte {error.start} of a name") from error
        file.seek(offset)
        after = line + file.read(size).count(b"\n")
        return Tsv(path, _unique(columns, str(path)), stamp, offset + size, after)
    raise ValueError(f"{path}: empty; a line that names the columns is the least")


def _parquet(path: Path, stamp: tuple[int, int]) -> Parquet:
    try:
        columns = tuple(pq.read_schema(path).names)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a parquet file that can be read: {' '.join(str(error).split())}") from error
    return Parquet(path, _unique(columns, str(path)), stamp)


def _dataset(data: Any, name: str) -> Dataset:
    if isinstance(data, dict):
        raise ValueError(f"{name}: several splits ({', '.join(map(str, data))}); give one of them")
    columns = getattr(data, "column_names", None)
    if not isinstance(columns, (list, tuple)) or not hasattr(data, "__len__"):
        raise ValueError(f"{name} is no table; a path, or a data set with column_names and a length, would be")
    for column, feature in (getattr(data, "features", None) or {}).items():
        if getattr(feature, "decode", None) is True:  # pictures as the bytes they are, decoded when they are used
            data = data.cast_column(column, type(feature)(decode=False))
    return Dataset(data, _unique(tuple(columns), name), name)


def _load(path: Path) -> Any:
    try:
        from datasets import load_from_disk  # here, since it is needed for nothing else
    except ImportError as error:
        raise ImportError(f"{path} is a folder, read by the package datasets, which is missing: pip install datasets") from error
    return load_from_disk(str(path))


def _records(file: BinaryIO, offset: int, line: int, width: int | None) -> Iterator[tuple[int, int, int, list[bytes] | str]]:
    """(line, offset, bytes, fields or what is wrong) of each row from `offset` on, which is on `line`. width: fields wanted."""
    file.seek(offset)
    while first := file.readline(MAX_ROW + 1):
        if len(first) > MAX_ROW and not first.endswith(b"\n"):
            size = len(first)
            while not first.endswith(b"\n") and (first := file.readline(MAX_ROW)):
                size += len(first)
            yield line, offset, size, f"longer than {MAX_ROW:,} bytes"
        elif first not in (b"\n", b"\r\n", b"\r"):
            data, fields = _closed(file, first)
            if fields is None:
                problem = f"a quote opens a field and is not closed within {MAX_LINES} lines"
            elif width is not None and data is not first and data.count(b"\t") >= 2 * (width - 1):
                problem = "a quote opens a field that ends on a later line, behind the tabs of a whole row"
            elif width is not None and len(fields) != width:
                problem = f"{len(fields)} fields; the header has {width}"
            else:
                problem = ""
            if problem and data is not first:
                data = first
                file.seek(offset + len(first))
            yield line, offset, len(data), problem or fields
            size, line = len(data), line + data.count(b"\n") - data.endswith(b"\n")
        else:
            size = len(first)
        offset, line = offset + size, line + 1


def _closed(file: BinaryIO, first: bytes) -> tuple[bytes, list[bytes] | None]:
    """The row that begins with the line `first`, further lines with it while a quote is open; and its fields or None."""
    data, fields, lines = first, _fields(first), 1
    while fields is None and lines < MAX_LINES and len(data) < MAX_ROW and (more := file.readline(MAX_ROW)):
        data, lines = data + more, lines + 1
        if b'"' in more:
            fields = _fields(data)
    return data, fields


def _fields(data: bytes) -> list[bytes] | None:
    """The fields of a row, its line end dropped; None where a quoted field is still open at the end."""
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    if b'"' not in data:
        return data.split(b"\t")
    fields, at = [], 0
    while True:
        parts = []
        if data[at : at + 1] == b'"':
            at += 1
            while (end := data.find(b'"', at)) >= 0 and data[end + 1 : end + 2] == b'"':
                parts.append(data[at : end + 1])
                at = end + 2
            if end < 0:
                return None
            parts.append(data[at:end])
            at = end + 1
        end = data.find(b"\t", at)
        parts.append(data[at:] if end < 0 else data[at:end])
        fields.append(b"".join(parts))
        if end < 0:
            return fields
        at = end + 1


def _unique(columns: tuple[str, ...], name: str) -> tuple[str, ...]:
    if twice := [column for place, column in enumerate(columns) if column in columns[:place]]:
        raise ValueError(f"{name}: two columns are named {twice[0]!r}")
    return columns


def _stamp(file: BinaryIO) -> tuple[int, int]:
    facts = os.fstat(file.fileno())
    return facts.st_size, facts.st_mtime_ns


def _check_stamp(path: Path, file: BinaryIO, stamp: tuple[int, int]) -> None:
    if _stamp(file) != stamp:
        raise ValueError(f"{path} was changed since its rows were indexed; read it again")


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)  # else a whole row group is read at once


def _group_rows(file: pq.ParquetFile, group: int, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(BATCH, row_groups=[group], columns=list(columns), use_threads=False):
        yield from batch.to_pylist()


class _Reader:
    """Rows of one row group. Going on is cheap, going back begins anew; the last row is kept, since several things ask for it."""

    def __init__(self, path: Path, group: int, columns: Sequence[str]):
        self.path, self.group, self.columns, self.lock = path, group, columns, threading.Lock()
        self.next, self.values = 0, {}
        self.rest: Iterator[dict[str, Any]] = iter(())

    def at(self, row: int) -> dict[str, Any]:
        with self.lock:
            if row < self.next - 1 or self.next == 0:
                self.rest, self.next = _group_rows(_opened(self.path), self.group, self.columns), 0
            while self.next <= row:
                self.values, self.next = next(self.rest), self.next + 1
            return self.values


@lru_cache(maxsize=2)  # one for words, one for pictures
def _reader(path: Path, stamp: tuple[int, int], group: int, columns: tuple[str, ...]) -> _Reader:
    return _Reader(path, group, columns)
