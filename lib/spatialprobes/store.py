"""Arrays captured from models, kept on disk: appended to, killed at any moment, resumed, read without loading the whole.

A store is a folder. A commit adds one *shard* (safetensors) and one *index part* (parquet), and changes no file that is there:

    store/fingerprint.json             what the rows depend on, written when the store is made
    store/lock                         held (flock) while a process writes; released by the kernel however the process ends
    store/shards/<shard>.safetensors   tensors named <site>/<layer>; the header repeats whose rows they hold
    store/index/<part>.parquet         columns example, site, layer, position, shard, row

Order of a commit, all under the lock: (1) the shard under a temporary name, synced; (2) renamed: from here on the rows are safe;
(3) the index part under a temporary name, synced, renamed. A kill before (2) leaves a temporary file, which the next writer
removes: it holds the lock, so nobody else is writing it. A kill after (2) leaves a shard without its part, which is made again
from the shard's header. Both are reported. So the index is only the fast way to what the shards say, and nothing committed is
lost. Rows that are there already, from another process or an earlier run, are not written again: no duplicates.

Knows nothing of models: what a site is called and what the fingerprint holds are its caller's. In memory it keeps some 300 bytes
a row, and nothing of the arrays. POSIX only (flock); on network file systems locks must be on.
"""

from __future__ import annotations

import difflib
import fcntl
import json
import operator
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from spatialprobes import fingerprints, shards
from spatialprobes.index import Group, Index, Key
from spatialprobes.shards import Block

if TYPE_CHECKING:
    from torch import Tensor


class StoreError(ValueError):
    """A store that can't be used as asked: rows that don't fit, or a folder that is something else."""


@dataclass(frozen=True)
class Rows:
    """What was read. array: [row, ...]; examples[i], positions[i]: whose row i is.

    The array is a read-only view of the file where the rows lie in one shard in the order asked for, else a copy.
    """

    array: np.ndarray
    examples: list[str]
    positions: np.ndarray


@dataclass
class Commit:
    """Rows on their way into one shard; see ``Store.commit``. written: how many were new, once it is done."""

    parts: dict[Group, list[tuple[Block, np.ndarray]]] = field(default_factory=dict)
    written: int = 0

    def append(
        self, examples: Sequence[str], site: str, layer: int, positions: int | Sequence[int], array: np.ndarray | Tensor
    ) -> None:
        """See ``Store.append``; nothing is on disk before the commit ends. The array must not change until then."""
        examples, layer = list(examples), operator.index(layer)
        dtype, array = shards.plain(array)
        try:
            positions = [operator.index(positions)] * len(examples)
        except TypeError:
            positions = [operator.index(position) for position in positions]
        if array.ndim == 0 or not len(examples) == len(positions) == len(array):
            counts = f"{len(examples)} examples, {len(positions)} positions, an array of shape {array.shape}"
            raise StoreError(f"{site}/{layer}: {counts}: one of each a row is wanted")
        if wrong := [example for example in examples if not isinstance(example, str)]:
            raise StoreError(f"{site}/{layer}: example ids are strings; {wrong[0]!r} is {type(wrong[0]).__name__}")
        if examples:
            block = Block(site, layer, examples, positions, dtype, array.shape)
            self.parts.setdefault((site, layer), []).append((block, array))


class Store:
    """See ``Store.open``. One thread at a time; several processes each open their own."""

    def __init__(self, path: Path, fingerprint: dict[str, Any], writable: bool, lock_seconds: float):
        self.path, self.fingerprint, self.writable, self.lock_seconds = path, fingerprint, writable, lock_seconds
        self._index = Index(path)
        self._blocks: dict[str, dict[Group, Block]] = {}

    @classmethod
    def open(cls, path: str | Path, fingerprint: dict[str, Any] | None = None, *, lock_seconds: float = 60.0) -> Store:
        """The store at ``path``, made if it is not there.

        fingerprint: all that the rows depend on, in JSON's types: weights (or id and revision), processor, capture parameters,
        version of the capturing code. None opens an existing store for reading, whatever its fingerprint, and touches no file.
        lock_seconds: how long to wait for another process that is writing.

        Raises FingerprintError naming the keys that differ where the store was made from something else; StoreError where the
        folder is no store; FileNotFoundError where there is none to read; TimeoutError, OSError.
        """
        path = Path(path)
        known = path / "fingerprint.json"
        if fingerprint is None:
            if not known.is_file():
                raise FileNotFoundError(f"{path}: no store there (no fingerprint.json)")
            store = cls(path, fingerprints.read(known), False, lock_seconds)
            store.refresh()
            return store
        fingerprint = json.loads(fingerprints.canonical(fingerprint))
        _check_folder(path)
        for folder in ("shards", "index"):
            (path / folder).mkdir(parents=True, exist_ok=True)
        store = cls(path, fingerprint, True, lock_seconds)
        with store._locked():
            if known.exists():
                fingerprints.compare(path, fingerprints.read(known), fingerprint)
            else:
                shards.write_whole(known, [fingerprints.text(fingerprint).encode()])
            store._index.recover()
            store._index.merge()
        return store

    @property
    def reports(self) -> list[str]:
        """What was left over from a kill or is damaged, and what was done about it, one line each (also logged as warnings)."""
        return list(self._index.reports)

    def append(
        self, examples: Sequence[str], site: str, layer: int, positions: int | Sequence[int], array: np.ndarray | Tensor
    ) -> int:
        """Commit rows of one site and layer, safe when this returns. How many were written: rows already there are left out.

        examples: whose row each is, [row]; an example with several positions stands there several times. Give all positions of an
        example at once: ``missing`` looks at examples. positions: token indices, [row], or one for all. array: [row, ...], with
        the dtype and, but for the first axis, the shape of what the store holds for this site and layer; bfloat16 is allowed.

        Raises StoreError on a mismatch, and nothing is written; OSError in one line on a full disk: what is there stays readable,
        and the same append may be made again when there is room.
        """
        with self.commit() as commit:
            commit.append(examples, site, layer, positions, array)
        return commit.written

    @contextmanager
    def commit(self) -> Iterator[Commit]:
        """Several appends (the layers of a batch) as one shard: afterwards all are there or, on an exception or a kill, none."""
        if not self.writable:
            raise StoreError(f"{self.path}: was opened for reading; to append, give Store.open its fingerprint")
        commit = Commit()
        yield commit
        with self._locked():
            self._index.recover()
            parts = [part for group, pieces in commit.parts.items() if len((part := self._new(group, pieces))[1])]
            if parts:
                # the random end keeps two processes apart even where a file system's lock does not
                shard = f"{len(self._index.shards):06d}-{secrets.token_hex(4)}"
                shards.write_whole(self._index.file(shard), shards.encode(parts))
                self._index.add(shard, [block for block, _ in parts])
                commit.written = sum(len(array) for _, array in parts)

    def done(self, site: str, layer: int) -> set[str]:
        """The examples that have a row for this site and layer, as far as this process knows; see ``refresh``."""
        return {example for example, _ in self._index.rows.get((site, layer), ())}

    def missing(self, ids: Iterable[str], site: str, layer: int) -> list[str]:
        """Those of ``ids`` without a row for this site and layer, in their order."""
        done = self.done(site, layer)
        return [example for example in ids if example not in done]

    def groups(self) -> list[Group]:
        """(site, layer) of all that the store holds, sorted."""
        return sorted(self._index.rows)

    def index(self) -> pa.Table:
        """Columns example, site, layer, position, shard, row; sorted by site, layer, example, position."""
        return self._index.table()

    def read(self, site: str, layer: int, examples: Sequence[str] | None = None) -> Rows:
        """The rows of a site and layer: of ``examples`` in their order, or of all, sorted; an example's own by position.

        Only these rows are read from the disk. bfloat16 comes as float32, the same values.
        Raises KeyError naming the nearest there is, for an unknown site, layer or example; ShardError for a damaged shard.
        """
        return self._gather((site, layer), self._keys(site, layer, examples))

    def batches(self, site: str, layer: int, rows: int = 4096, examples: Sequence[str] | None = None) -> Iterator[Rows]:
        """As ``read``, at most ``rows`` at a time: for sums over more than memory holds."""
        keys = self._keys(site, layer, examples)
        for start in range(0, len(keys), rows):
            yield self._gather((site, layer), keys[start : start + rows])

    def refresh(self) -> None:
        """See what other processes have committed since."""
        self._index.load()

    def _keys(self, site: str, layer: int, examples: Sequence[str] | None) -> list[Key]:
        if (site, layer) not in self._index.rows:
            held = [f"{group[0]}/{group[1]}" for group in self.groups()]
            near = difflib.get_close_matches(f"{site}/{layer}", held) or held[:3] or ["nothing yet"]
            raise KeyError(f"{self.path}: holds no {site}/{layer}; it holds {', '.join(near)}")
        keys = sorted(self._index.rows[site, layer])
        if examples is None:
            return keys
        of: dict[str, list[Key]] = {}
        for key in keys:
            of.setdefault(key[0], []).append(key)
        if unknown := [example for example in examples if example not in of]:
            near = ", ".join(difflib.get_close_matches(str(unknown[0]), of) or list(of)[:3])
            count = f"{len(unknown)} of {len(examples)} examples"
            raise KeyError(f"{self.path}: holds no {site}/{layer} for {count}, first {unknown[0]!r}; it holds {near}")
        return [key for example in examples for key in of[example]]

    def _gather(self, group: Group, keys: list[Key]) -> Rows:
        places = [self._index.rows[group][key] for key in keys]
        rows = np.array([row for _, row in places], np.int64)
        where: dict[str, list[int]] = {}
        for i, (shard, _) in enumerate(places):
            where.setdefault(shard, []).append(i)
        some = next(iter(where), next(iter(self._index.rows[group].values()))[0])
        if len(where) <= 1 and (np.diff(rows) == 1).all():
            array = self._read(some, group, slice(rows[0], rows[-1] + 1) if keys else slice(0))
        else:
            none = self._read(some, group, slice(0))
            array = np.empty((len(keys), *none.shape[1:]), none.dtype)
            for shard, which in where.items():
                array[which] = self._read(shard, group, rows[which])
        return Rows(array, [example for example, _ in keys], np.array([position for _, position in keys], np.int64))

    def _read(self, shard: str, group: Group, rows: slice | np.ndarray) -> np.ndarray:
        return shards.read_rows(self._index.file(shard), self._block(shard, group), rows)

    def _block(self, shard: str, group: Group) -> Block:
        if shard not in self._blocks:
            blocks = shards.read_header(self._index.file(shard))
            self._blocks[shard] = {(block.site, block.layer): replace(block, examples=[], positions=[]) for block in blocks}
        return self._blocks[shard][group]

    def _new(self, group: Group, pieces: list[tuple[Block, np.ndarray]]) -> tuple[Block, np.ndarray]:
        """The pieces as one, without the rows that the store holds; checked against each other and against what it holds."""
        where = f"{self.path}: {group[0]}/{group[1]}"
        known = self._index.rows.get(group, {})
        held = self._block(next(iter(known.values()))[0], group) if known else pieces[0][0]
        for block, _ in pieces:
            if (block.dtype, block.shape[1:]) != (held.dtype, held.shape[1:]):
                rows, these = f"{held.dtype} rows of shape {held.shape[1:]}", f"{block.dtype} of {block.shape[1:]}"
                raise StoreError(f"{where}: holds {rows}; these are {these}")
        keys = [key for block, _ in pieces for key in zip(block.examples, block.positions, strict=True)]
        if len(set(keys)) < len(keys):
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise StoreError(f"{where}: example {twice[0]!r}, position {twice[1]} is given twice")
        array = pieces[0][1] if len(pieces) == 1 else np.concatenate([array for _, array in pieces])
        fresh = [i for i, key in enumerate(keys) if key not in known]
        if len(fresh) < len(keys):
            array = array[fresh]
        return Block(*group, [keys[i][0] for i in fresh], [keys[i][1] for i in fresh], held.dtype, array.shape), array

    @contextmanager
    def _locked(self) -> Iterator[None]:
        deadline = time.monotonic() + self.lock_seconds
        with open(self.path / "lock", "ab") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise TimeoutError(
                            f"{self.path}: another process has been writing for {self.lock_seconds:g} s"
                        ) from error
                    time.sleep(0.005)
                except OSError as error:
                    raise OSError(
                        error.errno, f"{self.path}: no locks on this file system ({error.strerror}); use another"
                    ) from error
            yield  # closing the file lets the lock go


def _check_folder(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreError(f"{path}: is a file; name a folder")
    ours = {"lock", "shards", "index"}  # without a fingerprint: its maker was killed, or is at it
    others = sorted(name for name in os.listdir(path) if name not in ours and not name.startswith(shards.TEMPORARY))
    if others and "fingerprint.json" not in others:
        raise StoreError(f"{path}: is no store, and holds {others[0]!r}; name an empty or a new folder")
