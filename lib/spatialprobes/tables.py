"""Tidy tables that carry their own provenance: one parquet file, and a JSON sidecar for what differs from run to run.

What is stable (parameters, model and data hash, versions, seed, ...) goes into the parquet metadata as canonical JSON, what is
volatile (wall time, peak memory, host, date) only into the sidecar, so that the same inputs give the same file byte for byte.
Knows nothing of models, probes or plots.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from spatialprobes import __version__

KEY = b"spatialprobes"  # of the provenance in the parquet metadata
PACKAGES = (  # those whose version can change a number
    "torch", "transformers", "accelerate", "numpy", "pandas", "pyarrow", "scipy", "statsmodels", "scikit-learn", "pillow",
    "safetensors",
)  # fmt: skip


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spare blanks, so that equal values give equal text.

    numpy scalars and arrays become plain numbers and lists, paths text. Raises TypeError naming a value that has no JSON form,
    ValueError for NaN and infinities (JSON has neither).
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"NaN, an infinity or a cycle has no JSON form: {value!r}") from error


def write_atomically(path: str | Path, data: bytes) -> Path:
    """Write under a temporary name beside `path`, sync, rename: a reader sees the old file or the new one, never a part.

    Raises OSError in one line (no room, no permission, ...) with the system's errno; an older file is then still there, whole.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = f"cannot write {path} ({len(data):,} bytes): {error.strerror or error}; nothing of it was kept"
        raise OSError(error.errno, reason) from error
    finally:
        with contextlib.suppress(OSError):  # gone already when the rename went well
            temporary.unlink(missing_ok=True)
    return path


def provenance(vlm: Any = None, **facts: Any) -> dict[str, Any]:
    """The stable facts behind a table: versions of code, Python and packages, the model's own facts, and whatever is given.

    vlm: anything with `facts()`, a dict of stable facts (name, hash, dtype, device kind, attention, ...); stands under "model".
    Several in a list stand there as a list, one as itself.
    facts: parameters, seed, data hash, batch size, ...
    """
    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(
            importlib.metadata.PackageNotFoundError
        ):  # an optional one that is absent has no version to state
            packages[name] = importlib.metadata.version(name)
    known: dict[str, Any] = {"code": {"spatialprobes": __version__}, "python": platform.python_version(), "packages": packages}
    if vlm is not None:
        models = [one.facts() for one in vlm] if isinstance(vlm, (list, tuple)) else [vlm.facts()]
        known["model"] = models[0] if len(models) == 1 else models
    return known | facts


def save_table(
    frame: pd.DataFrame, path: str | Path, provenance: Mapping[str, Any], volatile: Mapping[str, Any] | None = None
) -> Path:
    """Write `frame` to `path` (.parquet) with its provenance, and `volatile` facts, if any, to the JSON sidecar beside it.

    Named index levels become columns, an unnamed index is dropped (a table's rows are known by their columns). `frame.attrs` is
    replaced by the provenance. Same frame, same provenance: same bytes. Raises ValueError for repeated or non-text column names
    and for a column of mixed types, TypeError or ValueError for provenance that JSON cannot hold, OSError in one line when the
    disk refuses.
    """
    path = Path(path)
    if path.suffix != ".parquet":
        raise ValueError(f"a table's file ends in .parquet, not {path.name!r}")
    flat = frame.reset_index(drop=all(name is None for name in frame.index.names))
    flat.attrs = {}  # pandas' own metadata would carry them along, a table read back with its provenance twice
    names = list(flat.columns)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"column names must be text, not {wrong[0]!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"column names repeat: {sorted({name for name in names if names.count(name) > 1})}")
    try:
        table = pa.Table.from_pandas(flat, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path.name}: a column does not hold one type: {error}") from error
    facts = canonical_json(dict(provenance)).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: facts})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue().to_pybytes())
    if volatile is not None:
        text = json.dumps(dict(volatile), sort_keys=True, indent=1, ensure_ascii=False, default=_plain)
        write_atomically(sidecar(path), (text + "\n").encode())
    return path


def read_table(path: str | Path) -> pd.DataFrame:
    """The table at `path`, its provenance in `frame.attrs["provenance"]`.

    Raises FileNotFoundError naming the nearest tables that are there, ValueError when the file is no table of this library.
    """
    path = _existing(path)
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    frame = table.to_pandas()
    frame.attrs = {"provenance": _facts(table.schema, path)}
    return frame


def read_provenance(path: str | Path) -> dict[str, Any]:
    """The provenance of the table at `path`, without reading its rows; raises as `read_table`."""
    try:
        schema = pq.read_schema(_existing(path))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    return _facts(schema, path)


def sidecar(path: str | Path) -> Path:
    """Where the volatile facts of the table at `path` stand: `accuracy.parquet` -> `accuracy.json`."""
    return Path(path).with_suffix(".json")


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        there = sorted(found.name for found in path.parent.glob("*.parquet"))
        near = difflib.get_close_matches(path.name, there, n=3, cutoff=0.4) or there[:5]
        raise FileNotFoundError(f"no table {path}; there: {', '.join(near) or 'none'}")
    return path


def _facts(schema: pa.Schema, path: str | Path) -> dict[str, Any]:
    facts = (schema.metadata or {}).get(KEY)
    if facts is None:
        raise ValueError(f"{path} has no provenance: not written by save_table")
    return json.loads(facts)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{value!r} ({type(value).__name__}) has no JSON form; legal: text, numbers, booleans, None, lists, dicts")


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened, and the rename is durable by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
