"""What stands before and behind a connector, of many pictures, on the disk: the store that every measure of it reads.

`extract` runs tower and connector, never the language model, and keeps the tokens at each site (`connector_reading`) and their
mean, so that nothing is read twice (`connector_store`). It can be killed anywhere and go on, and be shared out over jobs. A store
is of one model, one way of preparing pictures and one grid; another is refused. The folder of a picture is the first part of its
id.

Knows nothing of what is made of the tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from spatialprobes import capture
from spatialprobes.examples import Example, batches
from spatialprobes.images import ImageError, Unreadable
from spatialprobes.probes.connector_reading import SITES, Reading, at_side, check_sites, read, squashed
from spatialprobes.probes.connector_store import WHAT, ConnectorStates, Vectors, damaged, folder_of, packed, set_aside
from spatialprobes.store import Store, StoreError
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

VERSION = 1  # of what is stored; part of the fingerprint: raise it when values change
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
__all__ = ["SITES", "ConnectorStates", "Vectors", "extract", "folder_of", "open"]
BARS_FROM = 4  # batches from which a bar of progress is shown


def extract(
    vlm: VLM,
    examples: Iterable[Example],
    store: str | Path,
    *,
    sites: Sequence[str] = SITES,
    batch_size: int = 32,
    shards: tuple[int, int] = (0, 1),
    limit: int | None = None,
    limit_per_shard: int | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    side: int | None = None,
    on_error: Literal["list", "raise"] = "list",
) -> ConnectorStates:
    """The tokens at the sites of each example's picture, in the store, where those that are there already are not run again.

    Pictures are run in batches of one folder, in the order given; a batch is kept whole or not at all, so that a run that was
    killed and one that was not leave the same bytes. shards: (index, count) takes each count-th batch, so that jobs into one
    store, or into several, do together what one would. limit: pictures in all, limit_per_shard: of each folder, both before they
    are shared out. dtype: of what is kept. bfloat16 loses nothing of a model that runs in it; of one in float32 it keeps 8 bits
    (`ConnectorStates.rounding` says how much is lost). side: every picture is squashed to side x side pixels first (the study:
    336), for families whose grid follows the picture.
    on_error: a picture that cannot be read is listed (`ConnectorStates.unreadable`) and looked at again the next time, or raises.

    Raises ImageError; ValueError for bad options, ids that stand twice, a grid that is not the store's, and numbers that are NaN
    or infinite, naming the picture; FingerprintError for a store of another model or other options.
    """
    sites, examples = check_sites(sites), list(examples)
    _check(examples, dtype, side, on_error)
    todo = shared_out(examples, batch_size, shards, limit, limit_per_shard)
    aside = set_aside(Path(store))
    held = Store.open(store, fingerprint(vlm, sites, dtype, batch_size, side))
    done = held.done(sites[0], 0)
    with at_side(vlm, side):
        for batch in tqdm(todo, desc="connector", unit="batch", leave=False, disable=len(todo) < BARS_FROM):
            _check_same(held, [one for one in batch if one.id in done][:1])
            if missing := [one for one in batch if one.id not in done]:
                _add(vlm, held, missing, sites, dtype, side, on_error)
    return ConnectorStates(held, aside)


def open(folder: str | Path) -> ConnectorStates:
    """The states that an `extract` left, with a line in `reports` for each file that is damaged.

    Raises FileNotFoundError; StoreError for a store of something else.
    """
    return ConnectorStates(Store.open(folder), list(damaged(Path(folder)).values()))


def fingerprint(vlm: VLM, sites: Sequence[str], dtype: str, batch_size: int, side: int | None) -> dict[str, Any]:
    """All that the numbers depend on. The size of a batch is of it: another rounds the last bits otherwise."""
    images = json.loads(vlm.processor.image_processor.to_json_string())
    return {
        "what": WHAT,
        "version": VERSION,
        "capture": capture.VERSION,
        "model": vlm.facts(),
        "image_processor": images,
        "sites": list(sites),
        "dtype": dtype,
        "batch_size": batch_size,
        "side": side,
    }


def shared_out(
    examples: Sequence[Example],
    batch_size: int = 32,
    shards: tuple[int, int] = (0, 1),
    limit: int | None = None,
    limit_per_shard: int | None = None,
) -> list[list[Example]]:
    """The batches of one job, each of one folder. Raises ValueError for numbers that are out of range."""
    index, count = shards
    if not (isinstance(index, Integral) and isinstance(count, Integral) and 0 <= index < count):
        raise ValueError(f"shards={shards!r}: (index, count) with 0 <= index < count")
    for name, value in (("limit", limit), ("limit_per_shard", limit_per_shard)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise ValueError(f"{name}={value!r} must be at least 1, a whole number")
    by_folder: dict[str, list[Example]] = {}
    for one in examples:
        by_folder.setdefault(folder_of(one.id), []).append(one)
    kept, left = [], len(examples) if limit is None else limit
    for own in by_folder.values():
        own = own[:limit_per_shard][:left]
        left -= len(own)
        kept += batches(own, batch_size)
    return kept[index::count]


@dataclass
class _Readable:
    """The pictures of a batch that could be read, and those that could not."""

    good: list[Example] = field(default_factory=list)
    digests: dict[str, bytes] = field(default_factory=dict)
    bad: list[Unreadable] = field(default_factory=list)


def _check(examples: Sequence[Example], dtype: str, side: int | None, on_error: str) -> None:
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; {', '.join(map(repr, DTYPES))}")
    if on_error not in ("list", "raise"):
        raise ValueError(f"on_error={on_error!r} is unknown; 'list' or 'raise'")
    if side is not None and (isinstance(side, bool) or not isinstance(side, Integral) or side < 1):
        raise ValueError(f"side={side!r} must be at least 1 pixel, a whole number, or None")
    if not examples:
        raise ValueError("no examples were given")
    seen: set[str] = set()
    for one in examples:
        if not isinstance(one.id, str):
            raise ValueError(f"example ids are strings; {one.id!r} is {type(one.id).__name__}")
        if one.id in seen:
            raise ValueError(f"two examples have the id {one.id!r}; one picture each is wanted")
        seen.add(one.id)


def _add(
    vlm: VLM, store: Store, batch: list[Example], sites: tuple[str, ...], dtype: str, side: int | None, on_error: str
) -> None:
    """Run one batch and commit it."""
    found = _readable(batch, side, on_error)
    reading = _read(vlm, found, sites, on_error)
    with store.commit() as commit:
        if reading is not None:
            keys = [one.id for one in found.good]
            grids = np.array([_grid_row(reading, i) for i in range(len(keys))], np.int32)
            _check_grids(store, keys, grids)
            lost = []
            for site in sites:
                computed = torch.stack(reading.tokens[site])
                stored = computed.to(DTYPES[dtype])
                _check_finite(site, stored, keys)
                lost.append(_relative(stored.float(), computed.float()))
                commit.append(keys, site, 0, 0, stored)
                commit.append(keys, f"pooled.{site}", 0, 0, stored.float().mean(1))
            commit.append(keys, "grid", 0, 0, grids)
            commit.append(keys, "rounding", 0, 0, torch.stack(lost, 1))
            commit.append(keys, "picture", 0, 0, np.stack([np.frombuffer(found.digests[key], np.uint8) for key in keys]))
        known = store.done("unreadable", 0)
        if new := [one for one in found.bad if one.example not in known]:
            commit.append([one.example for one in new], "unreadable", 0, 0, np.stack([packed(one) for one in new]))


def _readable(batch: Sequence[Example], side: int | None, on_error: str) -> _Readable:
    """Open each picture, and leave out what cannot be read."""
    found = _Readable()
    for one in batch:
        try:
            opened = squashed(one, None)
        except ImageError as error:
            if on_error == "raise":
                raise
            found.bad.append(Unreadable(one.id, error.name, error.reason))
            continue
        found.digests[one.id] = pixels_digest(opened)
        found.good.append(squashed(opened, side))
    return found


def _read(vlm: VLM, found: _Readable, sites: tuple[str, ...], on_error: str) -> Reading | None:
    """The tokens of those that can be read; the ones that the processor refuses go to the others. None where none is left."""
    while found.good:
        try:
            return read(vlm, found.good, sites)
        except ImageError as error:
            refused = [one for one in found.good if error.name == f"the picture of {one.id}"]
            if on_error == "raise" or not refused:
                raise
            found.good = [one for one in found.good if one not in refused]
            found.bad += [Unreadable(one.id, error.name, error.reason) for one in refused]
    return None


def pixels_digest(example: Example) -> bytes:
    """sha256 of an open picture: its size and its pixels."""
    hashed = hashlib.sha256(json.dumps(example.image.size).encode())
    hashed.update(example.image.tobytes())
    return hashed.digest()


def _check_same(store: Store, examples: Sequence[Example]) -> None:
    """Raises StoreError where the store holds another picture under an example's id."""
    for one in examples:
        held = store.read("picture", 0, [one.id]).array[0].tobytes()
        if pixels_digest(squashed(one, None)) != held:
            raise StoreError(f"{store.path}: holds another picture under {one.id!r}; use another folder")


def _grid_row(reading: Reading, picture: int) -> tuple[int, ...]:
    """As it is stored: patches, cells, merge; 0 where there is no grid."""
    return (*(reading.patches[picture] or (0, 0)), *(reading.grids[picture] or (0, 0)), reading.merge)


def _check_grids(store: Store, keys: Sequence[str], grids: Int[np.ndarray, "picture number"]) -> None:
    """Raises ValueError for a picture of another grid than the store's: one array holds one number of tokens a picture."""
    held = sorted(store.done("grid", 0))
    first, wanted = (held[0], store.read("grid", 0, held[:1]).array[0]) if held else (keys[0], grids[0])
    if other := [i for i, row in enumerate(grids) if not np.array_equal(row, wanted)]:
        own = grids[other[0]]
        raise ValueError(
            f"{keys[other[0]]!r}: {_grid_text(own)}; {first!r} has {_grid_text(wanted)}, and a store holds one grid: "
            "give side=<pixels>, which squashes every picture, or a store for each shape of picture"
        )


def _grid_text(row: Int[np.ndarray, " number"]) -> str:
    return f"{row[0]} x {row[1]} patches" + (f" and {row[2]} x {row[3]} tokens" if row[2] else "")


def _check_finite(site: str, stored: Float[Tensor, "picture token width"], keys: Sequence[str]) -> None:
    finite = stored.isfinite().flatten(1)
    if not finite.all():
        wrong = int((~finite.all(1)).nonzero()[0])
        count = int((~finite[wrong]).sum())
        raise ValueError(f"{keys[wrong]!r}: {count:,} of {finite.shape[1]:,} numbers at site {site!r} are NaN or infinite")


def _relative(stored: Tensor, computed: Tensor) -> Float[Tensor, " picture"]:
    return (stored - computed).flatten(1).norm(dim=1) / computed.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
