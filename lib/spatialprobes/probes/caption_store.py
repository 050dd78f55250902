"""Where captions are kept while they are made, so that a run that was killed goes on: a folder with a small table a batch.

A table's name is a digest of what it was made from (arm, keys, requests, features), beside a fingerprint of the run, so that what
is there is exactly what would be made again: batches are the same after a kill, and so is every number. Knows tables; knows
nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spatialprobes import fingerprints
from spatialprobes.tables import read_table, save_table, write_atomically


class CaptionStore:
    """The tables of one run in `folder`, made if it is not there; None keeps nothing.

    fingerprint: all that captions depend on beside what a batch holds, in JSON's types. Raises FingerprintError naming the keys
    that differ where the folder's captions were made from something else, ValueError where it is full of something else.
    """

    def __init__(self, folder: str | Path | None, fingerprint: Mapping[str, Any]):
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            return
        known = self.folder / "fingerprint.json"
        if known.is_file():
            fingerprints.compare(self.folder, fingerprints.read(known), dict(fingerprint))
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder}: is not empty and holds no captions (no fingerprint.json); use another folder")
        write_atomically(known, fingerprints.text(dict(fingerprint)).encode())

    def kept(self, name: str, made_from: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table of a batch of arm `name`: read where it is there, else made and written whole."""
        if self.folder is None:
            return make()
        path = self.folder / name / f"{made_from}.parquet"
        if path.is_file():
            frame = read_table(path)
            frame.attrs = {}
            return frame
        frame = make()
        save_table(frame, path, {"arm": name})
        return frame


def digest(words: Sequence[str], arrays: Iterable[Any] = ()) -> str:
    """sha256, shortened, of words and of arrays or tensors with their shapes and types."""
    found = hashlib.sha256("\0".join(words).encode())
    for array in arrays:
        array = _plain(array)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()[:24]


def _plain(array: Any) -> np.ndarray:
    """An array of a tensor of any type, bfloat16 (which numpy lacks) among them, on any device."""
    if isinstance(array, np.ndarray):
        return array
    return (array.float() if array.is_floating_point() else array).detach().cpu().numpy()
