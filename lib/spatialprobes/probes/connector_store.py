"""A store of connector states, read: tokens and their means by site and picture, and what is known of the pictures.

Rows of a `store.Store`, one a picture:

    <site>/0           the tokens, bfloat16 or float32 [token, width]
    pooled.<site>/0    float32 [width]: the mean over the stored tokens
    grid/0             int32 [rows, columns (of the patches), rows, columns (behind the connector), merge], 0 where there is none
    rounding/0         float32 [site]: |stored - computed| / |computed|, 0 where the dtype holds what the model gave
    picture/0          uint8 [32]: sha256 of the picture's pixels, before it was squashed
    unreadable/0       uint8 [1024]: name and reason of a picture that was left out, JSON

`connector_states` fills it. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialprobes.families.towers import by_cells
from spatialprobes.images import Unreadable
from spatialprobes.shards import ShardError, read_header
from spatialprobes.store import Store, StoreError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

WHAT = "connector states"  # in a store's fingerprint
BLOCK = 64  # pictures read at once
REASON = 1024  # bytes kept of why a picture was left out


def folder_of(key: str) -> str:
    """The first part of an id, "" where it has one part only."""
    return key.partition("/")[0] if "/" in key else ""


class ConnectorStates:
    """What a store of connector states holds. keys: ids, sorted, always strings. sites: those that were extracted.

    model: its name; facts: all that the numbers depend on. reports: what was found damaged or half done.
    """

    def __init__(self, store: Store, reports: Sequence[str] = ()):
        facts = store.fingerprint
        if facts.get("what") != WHAT:
            raise StoreError(f"{store.path}: holds {facts.get('what', 'something else')!r}, not {WHAT}")
        self.store, self.facts, self._reports = store, facts, list(reports)
        self.sites: tuple[str, ...] = tuple(facts["sites"])
        self.model: str = facts["model"]["model"]
        self.keys: list[str] = sorted(store.done(self.sites[0], 0))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def reports(self) -> list[str]:
        return self._reports + self.store.reports

    @property
    def grids(self) -> dict[str, tuple[int, int] | None]:
        """(rows, columns) of the tokens by site; None where they have no grid. Before a merging connector: of the patches."""
        patches, cells, _ = self._grid()
        return {site: cells if site == "post" else patches for site in self.sites}

    @property
    def merge(self) -> int:
        """Side of the square of patches that becomes one token: tokens merge**2 * j and on become the j-th behind it."""
        return self._grid()[2]

    def places(self, site: str) -> Int[np.ndarray, " token"]:
        """Which place of the site's grid, in raster order, each token stands for. Raises ValueError where it has no grid."""
        if (grid := self.grids[self._known(site)]) is None:
            raise ValueError(f"{self.model}: the tokens of {site!r} have no grid")
        return by_cells(grid, self.merge if site != "post" else 1).numpy()

    def folder(self, key: str) -> str:
        """The first part of a key, "" where it has one part only."""
        return folder_of(key)

    def vectors(self, site: str, keys: Sequence[str] | None = None) -> Vectors:
        """Tokens [picture, token, width] of these pictures, or of all, read when they are asked for. KeyError; ValueError."""
        return Vectors(self.store, self._known(site), self.keys if keys is None else list(keys))

    def pooled(self, site: str, keys: Sequence[str] | None = None) -> Float[np.ndarray, "picture width"]:
        """The mean over the tokens, float32; no token is read."""
        return np.array(self._rows(f"pooled.{self._known(site)}", keys))

    def rounding(self, site: str) -> Float[np.ndarray, " picture"]:
        """What keeping the tokens in the store's dtype lost of each picture: |stored - computed| / |computed|."""
        return np.array(self._rows("rounding", None)[:, self.sites.index(self._known(site))])

    def digests(self, keys: Sequence[str] | None = None) -> list[str]:
        """sha256 of each picture's pixels, in hexadecimal: equal for exact copies, whatever their files are."""
        return [row.tobytes().hex() for row in self._rows("picture", keys)]

    @property
    def unreadable(self) -> list[Unreadable]:
        """The pictures that were left out, by id."""
        there = sorted(self.store.done("unreadable", 0) - set(self.keys))
        rows = self.store.read("unreadable", 0, there).array if there else []
        return [Unreadable(key, *unpacked(row)) for key, row in zip(there, rows, strict=True)]

    def _rows(self, group: str, keys: Sequence[str] | None) -> np.ndarray:
        return self.store.read(group, 0, self.keys if keys is None else keys).array

    def _grid(self) -> tuple[tuple[int, int] | None, tuple[int, int] | None, int]:
        if not self.keys:
            raise ValueError(f"{self.store.path}: holds no picture yet, so no grid is known")
        a, b, c, d, merge = self._rows("grid", self.keys[:1])[0].tolist()
        return (a, b) if a else None, (c, d) if c else None, merge

    def _known(self, site: str) -> str:
        if site not in self.sites:
            raise ValueError(f"site {site!r} was not extracted; there: {', '.join(self.sites)}")
        return site


class Vectors:
    """Tokens of pictures as an array [picture, token, width] of float32 that stays on the disk until it is asked for.

    An index (whole number, slice, list) reads these pictures; `blocks` reads all, some at a time; `np.asarray` reads the whole.
    """

    dtype = np.dtype(np.float32)
    ndim = 3

    def __init__(self, store: Store, site: str, keys: list[str]):
        self.store, self.site, self.keys = store, site, keys
        some = store.read(site, 0, keys[:1]).array
        self.shape: tuple[int, int, int] = (len(keys), *some.shape[1:])

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Float[np.ndarray, "*picture token width"]:
        rows = np.arange(len(self.keys))[index]
        found = self.store.read(self.site, 0, [self.keys[i] for i in np.atleast_1d(rows)]).array
        return found if rows.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)

    def blocks(self, pictures: int = BLOCK) -> Iterator[tuple[list[str], Float[np.ndarray, "picture token width"]]]:
        """(keys, tokens) of so many pictures at a time, in order."""
        for start in range(0, len(self.keys), pictures):
            yield self.keys[start : start + pictures], self[start : start + pictures]


def damaged(folder: Path) -> dict[Path, str]:
    """What is wrong with each shard that is not whole, such as one that was cut short."""
    found = {}
    for path in sorted((folder / "shards").glob("*.safetensors")):
        try:
            read_header(path)
        except ShardError as error:
            found[path] = f"{error}; `extract` makes its pictures again"
    return found


def set_aside(folder: Path) -> list[str]:
    """Rename the shards that are not whole, so that their pictures count as missing; a line for each."""
    found = damaged(folder)
    for path in found:
        path.rename(path.with_suffix(".damaged"))
    return [f"set aside, {line}" for line in found.values()]


def packed(one: Unreadable) -> Int[np.ndarray, " byte"]:
    """Name and reason as JSON, filled up with zero bytes; a longer reason is cut."""
    name, reason = one.name, one.reason
    while len(text := json.dumps([name, reason]).encode()) > REASON:
        name, reason = name[-REASON // 4 :], reason[: min(len(reason) - 1, REASON // 4)]
    return np.frombuffer(text.ljust(REASON, b"\0"), np.uint8)


def unpacked(row: Int[np.ndarray, " byte"]) -> list[str]:
    return json.loads(row.tobytes().rstrip(b"\0"))
