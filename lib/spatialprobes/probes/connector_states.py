"""What stands before and behind a connector, of many pictures, on the disk: the store that every measure of it reads.

`extract` runs tower and connector, never the language model, and keeps the tokens at each site (`connector_reading`) and their
mean, so that nothing is read twice (`connector_store`). It can be killed anywhere and go on, and be shared out over jobs. A store
is of one model, one way of preparing pictures and one grid; another is refused. The folder of a picture is the first part of its
id.

Knows nothing of what is made of the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from spatialprobes import capture
from spatialprobes.examples import Example, batches
from spatialprobes.images import ImageError, open_image
from spatialprobes.probes.connector_batches import DTYPES, Way, pixels_digest, run_through
from spatialprobes.probes.connector_reading import SITES, at_side, check_sites
from spatialprobes.probes.connector_store import WHAT, ConnectorStates, Vectors, damaged, folder_of, set_aside
from spatialprobes.store import Store, StoreError
from spatialprobes.vlm import VLM

__all__ = ["SITES", "ConnectorStates", "Vectors", "extract", "folder_of", "open"]
VERSION = 1  # of what is stored; part of the fingerprint: raise it when values change


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
    killed and one that was not leave the same bytes. Of each batch that is there already one picture is looked at again, and must
    be the same. A shard that was cut short is set aside, and its pictures are run again.

    shards: (index, count) takes each count-th batch, so that jobs into one store, or into several, do together what one would.
    limit: pictures in all, limit_per_shard: of each folder, both before they are shared out. dtype: of what is kept; bfloat16
    loses nothing of a model that runs in it, and of one in float32 keeps 8 bits (`ConnectorStates.rounding` says how much is
    lost). side: every picture is squashed to side x side pixels first (the study: 336), for families whose grid follows the
    picture. on_error: a picture that cannot be read is listed (`ConnectorStates.unreadable`) and looked at again the next time,
    or raises.

    Raises ImageError; ValueError for bad options, ids that stand twice, a grid that is not the store's, and numbers that are NaN
    or infinite, naming the picture; FingerprintError for a store of another model or other options.
    """
    sites, examples = check_sites(sites), list(examples)
    _check(examples, dtype, side, on_error)
    todo = shared_out(examples, batch_size, shards, limit, limit_per_shard)
    facts = fingerprint(vlm, sites, dtype, batch_size, side)
    held = Store.open(store, facts)  # first: what another's folder holds is not ours to set aside
    if aside := set_aside(Path(store)):
        held = Store.open(store, facts)
    done = held.done(sites[0], 0)
    for batch in todo:
        _check_same(held, [one for one in batch if one.id in done][:1])
    missing = [left for batch in todo if (left := [one for one in batch if one.id not in done])]
    with at_side(vlm, side):
        run_through(vlm, held, missing, Way(sites, dtype, side, on_error))
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


def _check_same(store: Store, examples: Sequence[Example]) -> None:
    """Raises StoreError where the store holds another picture under an example's id. One that is gone by now is not missed."""
    for one in examples:
        try:
            picture = open_image(one.image)
        except ImageError:
            continue
        if pixels_digest(picture) != store.read("picture", 0, [one.id]).array[0].tobytes():
            raise StoreError(f"{store.path}: holds another picture under {one.id!r}; use another folder")
