"""Rows of the connector study's CSV files: cells as text, keys with the zeros that spreadsheets take, numbers or a row named.

Knows files and rows, nothing of what the columns mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

MAX_CSV = 500_000_000
STEM, FOLDER = 9, 5  # digits of the data set's image names and of its folders
SAME = 1e-4  # scores have seven digits; a drop is one score less another


class Malformed(ValueError):
    """A file that is not as the study writes it; says which, and the row or key."""


def padded(text: str, width: int) -> str:
    """Digits with their leading zeros, as many as the data set's names have; anything else as it is."""
    return text.zfill(width) if re.fullmatch(r"[0-9]+", text) else text


def padded_column(column: pd.Series, width: int) -> pd.Series:
    """`padded` of every row."""
    return column.where(~column.str.fullmatch("[0-9]+"), column.str.zfill(width))


def read_rows(path: str | Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """The file as text, every cell as it stands. Raises FileNotFoundError; Malformed naming the row, line or column."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if (size := path.stat().st_size) > MAX_CSV:
        raise Malformed(f"{path}: {size:,} bytes; at most {MAX_CSV:,}")
    with open(path, "rb") as file:
        file.seek(max(0, size - 1))
        if file.read() != b"\n":
            raise Malformed(f"{path}: its last line has no end: empty, or cut short")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except UnicodeDecodeError as error:
        raise Malformed(f"{path}: not UTF-8 at byte {error.start}") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise Malformed(f"{path}: {' '.join(str(error).split())}") from error
    if missing := [name for name in columns if name not in frame]:
        raise Malformed(f"{path}: line 1: no column {missing[0]!r}; there: {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise Malformed(f"{path}: a header and no rows")
    return frame


def numbers(frame: pd.DataFrame, columns: Iterable[str], path: str | Path, may_lack: pd.Series | None = None) -> pd.DataFrame:
    """These columns as finite numbers; where `may_lack`, a cell may be empty (NaN). Raises Malformed naming row and cell."""
    found = {}
    for name in columns:
        if name not in frame:
            raise Malformed(f"{path}: line 1: no column {name!r}; there: {', '.join(frame.columns)}")
        values = pd.to_numeric(frame[name], errors="coerce")
        wrong = ~np.isfinite(values)
        if may_lack is not None:
            wrong &= ~(may_lack & (frame[name].str.strip() == ""))
        if wrong.any():
            row = int(wrong.argmax())
            raise Malformed(f"{path}: row {row + 1}: {name} {frame[name].iloc[row][:40]!r} is no finite number")
        found[name] = values.astype(float)
    return pd.DataFrame(found)


def number(text: str) -> float:
    """The number a text says, NaN where it says none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def constant(frame: pd.DataFrame, column: str, wanted: str, path: str | Path) -> None:
    """Raises Malformed naming the first row that holds anything but what the file's name says."""
    if (other := frame[column] != wanted).any():
        row = int(other.argmax())
        raise Malformed(f"{path}: row {row + 1}: {column} {frame[column].iloc[row][:40]!r}, in a file of {wanted!r}")


def whole_keys(frame: pd.DataFrame) -> list[str]:
    """Keys with the zeros that a spreadsheet took: the sample's id has the whole key as its third part."""
    if "sample_id" not in frame:
        return padded_column(frame["key"], STEM).tolist()
    whole = [text.split(":", 2)[-1] for text in frame["sample_id"]]
    return [
        own if own.lstrip("0") == key.lstrip("0") else padded(key, STEM) for own, key in zip(whole, frame["key"], strict=True)
    ]


def unique(frame: pd.DataFrame, path: str | Path) -> pd.DataFrame:
    """The table, where no key stands twice (files that were appended to). Raises Malformed naming the second row."""
    if (twice := frame.duplicated("key")).any():
        row = int(twice.argmax())
        raise Malformed(f"{path}: row {row + 1}: key {frame['key'].iloc[row]!r} stands there a second time")
    return frame


def alike(one: pd.Series, other: pd.Series) -> pd.Series:
    """Where two scores agree to the digits they have."""
    return (one - other).abs() <= SAME
