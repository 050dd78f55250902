"""Batches of pictures on their way into a store of connector states: opened, run, and kept, three at once.

While the model runs one batch, another thread opens and prepares the next, and a third brings the last to the disk, so that
neither waits for the others; no more than three batches are in memory. Knows one batch at a time and nothing of the plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from spatialprobes.examples import Example
from spatialprobes.images import ImageError, Unreadable, open_image
from spatialprobes.probes.connector_reading import Prepared, Reading, prepared, run, squashed
from spatialprobes.probes.connector_store import packed
from spatialprobes.store import Store
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
BARS_FROM = 4  # batches from which a bar of progress is shown


@dataclass(frozen=True)
class Way:
    """How pictures become rows: the options of `connector_states.extract`, checked."""

    sites: tuple[str, ...]
    dtype: str
    side: int | None
    on_error: str


@dataclass
class Opened:
    """The pictures of a batch that can be read, prepared for the model, and those that cannot.

    digests: by id. pictures: the good ones, None where there is none.
    """

    good: list[Example] = field(default_factory=list)
    digests: dict[str, bytes] = field(default_factory=dict)
    bad: list[Unreadable] = field(default_factory=list)
    pictures: Prepared | None = None


@dataclass(frozen=True)
class Rows:
    """What a batch leaves: by group of the store, an array with a row for each key; and the pictures that were left out."""

    keys: list[str]
    arrays: dict[str, Tensor | np.ndarray]
    bad: list[Unreadable]


def run_through(vlm: VLM, store: Store, todo: Sequence[list[Example]], way: Way) -> None:
    """Run these batches and commit each, in order. An exception of any of them stops it; what came before is kept."""
    keeper = Keeper(store)
    with ThreadPoolExecutor(1) as opener, ThreadPoolExecutor(1) as writer:
        coming = opener.submit(opened, vlm, todo[0], way) if todo else None
        kept: Future | None = None
        for i in tqdm(range(len(todo)), desc="connector", unit="batch", leave=False, disable=len(todo) < BARS_FROM):
            here = coming.result()
            coming = opener.submit(opened, vlm, todo[i + 1], way) if i + 1 < len(todo) else None
            rows = computed(vlm, here, way)
            if kept is not None:
                kept.result()
            kept = writer.submit(keeper.add, rows)
        if kept is not None:
            kept.result()


def opened(vlm: VLM, batch: Sequence[Example], way: Way) -> Opened:
    """Open each picture and prepare them, leaving out what cannot be read and what the processor refuses. Raises ImageError."""
    found = Opened()
    for one in batch:
        try:
            picture = open_image(one.image)
        except ImageError as error:
            if way.on_error == "raise":
                raise
            found.bad.append(Unreadable(one.id, error.name, error.reason))
            continue
        found.digests[one.id] = pixels_digest(picture)
        found.good.append(replace(one, image=squashed(picture, way.side)))
    while found.good:
        try:
            found.pictures = prepared(vlm, found.good)
            break
        except ImageError as error:
            refused = [one for one in found.good if error.name == f"the picture of {one.id}"]
            if way.on_error == "raise" or not refused:
                raise
            found.good = [one for one in found.good if one not in refused]
            found.bad += [Unreadable(one.id, error.name, error.reason) for one in refused]
    return found


def computed(vlm: VLM, batch: Opened, way: Way) -> Rows:
    """Run the model. Raises ValueError for numbers that are NaN or infinite and for pictures of several grids, naming one."""
    if batch.pictures is None:
        return Rows([], {}, batch.bad)
    keys = [one.id for one in batch.good]
    reading = run(vlm, batch.pictures, way.sites)
    grids = np.array([_grid_row(reading, i) for i in range(len(keys))], np.int32)
    _check_grids(keys, grids, keys[0], grids[0])
    arrays: dict[str, Tensor | np.ndarray] = {}
    lost = []
    for site in way.sites:
        exact = torch.stack(reading.tokens[site])
        stored = exact.to(DTYPES[way.dtype])
        full = stored.float()
        pooled = full.mean(1)
        _check_finite(site, full, pooled, keys)
        arrays[site], arrays[f"pooled.{site}"] = stored.cpu(), pooled.cpu()
        lost.append(torch.zeros(len(keys)) if exact.dtype == stored.dtype else _relative(full, exact.float()).cpu())
    arrays |= {"grid": grids, "rounding": torch.stack(lost, 1)}
    arrays["picture"] = np.stack([np.frombuffer(batch.digests[key], np.uint8) for key in keys])
    return Rows(keys, arrays, batch.bad)


class Keeper:
    """Commits batches to a store, all of one grid."""

    def __init__(self, store: Store):
        self.store = store
        held = sorted(store.done("grid", 0))[:1]
        self.first = (held[0], store.read("grid", 0, held).array[0]) if held else None  # a picture of the store, and its grid

    def add(self, rows: Rows) -> None:
        """All of a batch is on the disk when this returns, or none. Raises ValueError for another grid than the store's."""
        if rows.keys:
            self.first = self.first or (rows.keys[0], rows.arrays["grid"][0])
            _check_grids(rows.keys, rows.arrays["grid"], *self.first)
        known = self.store.done("unreadable", 0)
        with self.store.commit() as commit:
            for group, array in rows.arrays.items():
                commit.append(rows.keys, group, 0, 0, array)
            if new := [one for one in rows.bad if one.example not in known]:
                commit.append([one.example for one in new], "unreadable", 0, 0, np.stack([packed(one) for one in new]))


def pixels_digest(picture: Image.Image) -> bytes:
    """sha256 of a picture: its size and its pixels."""
    hashed = hashlib.sha256(json.dumps(picture.size).encode())
    hashed.update(picture.tobytes())
    return hashed.digest()


def _grid_row(reading: Reading, picture: int) -> tuple[int, ...]:
    """As it is stored: patches, cells, merge; 0 where there is no grid."""
    return (*(reading.patches[picture] or (0, 0)), *(reading.grids[picture] or (0, 0)), reading.merge)


def _check_grids(
    keys: Sequence[str], grids: Int[np.ndarray, "picture number"], first: str, wanted: Int[np.ndarray, " number"]
) -> None:
    """Raises ValueError for a picture of another grid than the first's: an array holds one number of tokens a picture."""
    if other := np.flatnonzero((grids != wanted).any(1)).tolist():
        raise ValueError(
            f"{keys[other[0]]!r}: {_grid_text(grids[other[0]])}; {first!r} has {_grid_text(wanted)}, and a store holds one grid: "
            "give side=<pixels>, which squashes every picture, or a store for each shape of picture"
        )


def _grid_text(row: Int[np.ndarray, " number"]) -> str:
    return f"{row[0]} x {row[1]} patches" + (f" and {row[2]} x {row[3]} tokens" if row[2] else "")


def _check_finite(
    site: str, stored: Float[Tensor, "picture token width"], pooled: Float[Tensor, "picture width"], keys: Sequence[str]
) -> None:
    """Looks at the means, which are not finite where a token is not."""
    if not (finite := pooled.isfinite().all(1)).all():
        wrong = int((~finite).nonzero()[0])
        count = int((~stored[wrong].isfinite()).sum())
        raise ValueError(f"{keys[wrong]!r}: {count:,} of {stored[wrong].numel():,} numbers at site {site!r} are NaN or infinite")


def _relative(stored: Tensor, computed: Tensor) -> Float[Tensor, " picture"]:
    return (stored - computed).flatten(1).norm(dim=1) / computed.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
