"""Which rows a store holds and where: parquet parts on disk, a dictionary in memory, mended from the shards after a kill.

Knows file names and row numbers. Locking, reading arrays and checking what is appended are ``store``'s.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spatialprobes import shards
from spatialprobes.shards import Block, ShardError

SCHEMA = pa.schema(
    [
        *[("example", pa.string()), ("site", pa.string()), ("layer", pa.int64())],
        *[("position", pa.int64()), ("shard", pa.string()), ("row", pa.int64())],
    ]
)
MERGE_PARTS = 256  # beyond so many, opening for writing makes them one

Group = tuple[str, int]  # site, layer
Key = tuple[str, int]  # example, position
Record = tuple[str, str, int, int, str, int]  # a row of SCHEMA

_log = logging.getLogger(__name__)


class Index:
    """rows[site, layer][example, position] is (shard, row). reports: what was found damaged or half done, one line each."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[Group, dict[Key, tuple[str, int]]] = {}
        self.shards: set[str] = set()  # whose rows are known
        self.reports: list[str] = []
        self._parts: set[str] = set()  # which have been read

    def file(self, shard: str) -> Path:
        """Where a shard lies."""
        return self.path / "shards" / f"{shard}.safetensors"

    def table(self) -> pa.Table:
        """Columns example, site, layer, position, shard, row; sorted by site, layer, example, position."""
        return _table(
            (key[0], *group, key[1], *self.rows[group][key]) for group in sorted(self.rows) for key in sorted(self.rows[group])
        )

    def load(self) -> tuple[list[str], list[str]]:
        """Take in what is new on disk, and change nothing there. The parts that can't be read, the shards that no part names."""
        for attempt in range(10):
            try:
                damaged, tables = self._read_parts()
                break
            except FileNotFoundError:  # a writer merged parts between our look and our reading: look again
                if attempt == 9:
                    raise
        # Listed after the parts were read: a part is younger than its shard, so what it names is there or was deleted.
        present = {path.stem for path in (self.path / "shards").glob("*.safetensors")}
        gone: dict[str, int] = {}
        for part, table in tables.items():
            self._parts.add(part)
            for record in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if record[4] in present:
                    self._take(record)
                else:
                    gone[record[4]] = gone.get(record[4], 0) + 1
        for shard, count in gone.items():
            self.report(f"shard {shard} was deleted: its {count} rows count as missing")
        unnamed = sorted(present - self.shards)
        for shard in unnamed:
            try:
                for record in _records(shard, shards.read_header(self.file(shard))):
                    self._take(record)
            except ShardError as error:
                self.report(f"left out, {error}")
        return damaged, unnamed

    def recover(self) -> None:
        """``load``, and put in order what a killed writer left. Only under the lock: then nobody is in the middle of a write."""
        for temporary in [*self.path.glob(f"{shards.TEMPORARY}*"), *self.path.glob(f"*/{shards.TEMPORARY}*")]:
            temporary.unlink()
            self.report(f"removed a half-written file, {temporary.relative_to(self.path)}")
        damaged, unnamed = self.load()
        for part in damaged:
            self._part(part).unlink()
            self.report(f"removed a damaged index part, {part}; its shards are indexed again")
        for shard in unnamed:
            if shard in self.shards:
                self._write_part(shard, _records(shard, shards.read_header(self.file(shard))))
                self.report(f"indexed shard {shard}, whose writer was stopped between shard and index")
            else:
                os.replace(self.file(shard), self.file(shard).with_suffix(".damaged"))

    def add(self, shard: str, blocks: list[Block]) -> None:
        """Index a shard that is on disk."""
        records = _records(shard, blocks)
        self._write_part(shard, records)
        for record in records:
            self._take(record)

    def merge(self) -> None:
        """One part in place of many, where there are very many. Killed in between, both are there and say the same."""
        parts = [path.stem for path in (self.path / "index").glob("*.parquet")]
        if len(parts) <= MERGE_PARTS:
            return
        records = [(key[0], *group, key[1], *place) for group, rows in self.rows.items() for key, place in rows.items()]
        self._write_part(f"merged-{secrets.token_hex(4)}", records)
        for part in parts:
            self._part(part).unlink()

    def report(self, line: str) -> None:
        if line not in self.reports:
            self.reports.append(line)
            _log.warning("%s: %s", self.path, line)

    def _part(self, name: str) -> Path:
        return self.path / "index" / f"{name}.parquet"

    def _read_parts(self) -> tuple[list[str], dict[str, pa.Table]]:
        damaged, tables = [], {}
        for part in sorted({path.stem for path in (self.path / "index").glob("*.parquet")} - self._parts):
            try:
                with pq.ParquetFile(self._part(part)) as file:
                    tables[part] = file.read().cast(SCHEMA)
            except (ValueError, OSError) as error:  # arrow's words for a damaged file, which have no errno
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                damaged.append(part)
        return damaged, tables

    def _take(self, record: Record) -> None:
        example, site, layer, position, shard, row = record
        self.shards.add(shard)
        # interned: an example's name recurs in every layer
        self.rows.setdefault((site, layer), {}).setdefault((sys.intern(example), position), (sys.intern(shard), row))

    def _write_part(self, name: str, records: Iterable[Record]) -> None:
        buffer = pa.BufferOutputStream()
        pq.write_table(_table(records), buffer)
        shards.write_whole(self._part(name), [memoryview(buffer.getvalue())])
        self._parts.add(name)


def _records(shard: str, blocks: list[Block]) -> list[Record]:
    return [
        (example, block.site, block.layer, position, shard, row)
        for block in blocks
        for row, (example, position) in enumerate(zip(block.examples, block.positions, strict=True))
    ]


def _table(records: Iterable[Record]) -> pa.Table:
    columns: Iterator = zip(*records, strict=True)
    columns = list(columns) or [()] * len(SCHEMA)
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
