"""Between our store of connector states and the connector study's files: from them, and into them for who uses its code.

The study's vectors stand at the site that it hooked (`sources.connector_names.SITES`), and its keys are the stems of files. Knows
stores and files; nothing of models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from spatialprobes.probes.connector_store import WHAT, ConnectorStates
from spatialprobes.sources.connector_files import MODELS, SITES, FileError, PtVectors, align, open_vectors, write_vectors
from spatialprobes.sources.connector_names import GRIDLESS, MERGE, repeated, short, stem
from spatialprobes.store import Store

if TYPE_CHECKING:
    from jaxtyping import Int

VERSION = 1  # of what is stored; part of the fingerprint: raise it when values change
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def adopt(
    folder: str | Path,
    store: str | Path,
    *,
    model: str | None = None,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    batch_size: int = 64,
    class_token: Literal["by square", "none"] = "by square",
    on_error: Literal["raise", "list"] = "raise",
) -> ConnectorStates:
    """The study's files of one model as a store, which is read faster, by picture, and with the means ready.

    Keys become <folder of pictures>/<key>. dtype: the study's float32 files hold what a bfloat16 model gave, so that bfloat16
    keeps every bit in half the room; files of which it would not are refused. Resumable as `extract`. model, class_token,
    on_error: of `open_vectors`; what was left out stands in `reports`, as do keys that have vectors on one side of the connector
    only.

    Raises FileError; ValueError for numbers that are NaN or infinite, or that bfloat16 does not hold; FingerprintError.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is unknown; {', '.join(map(repr, DTYPES))}")
    options = {"model": model, "class_token": class_token, "on_error": on_error}
    pre, post = (open_vectors(folder, kind, **options) for kind in ("pre", "post"))
    if pre.model != post.model:
        raise FileError(f"{folder}: files of several models: {pre.model!r} before the connector, {post.model!r} behind it")
    shared = align(pre.keys, post.keys)
    left_out = [f"{folder}: {shared}"] if shared.only_first or shared.only_second else []
    sites = {SITES.get(pre.model, "pre"): pre, "post": post}
    held = Store.open(store, _fingerprint(pre, sites, dtype))
    done = held.done("post", 0)
    wanted = [key for key in pre.keys if key in set(shared.keys) and _named(pre, key) not in done]
    grid = _grid(pre, post)
    for start in range(0, len(wanted), batch_size):
        _commit(held, sites, wanted[start : start + batch_size], DTYPES[dtype], grid)
    return ConnectorStates(held, [*dict.fromkeys(pre.reports + post.reports), *left_out])


def write(
    states: ConnectorStates,
    root: str | Path,
    *,
    model: str | None = None,
    captions: Mapping[str, str] | None = None,
    batch_size: int = 32,
    save_every: int = 400,
) -> list[Path]:
    """Write a store as the study's files, <root>/<model>/<folder of pictures>/...; the files written.

    model: the study's short name, by default that of the hub id, else the model's own. captions: by our keys. The vectors are
    those of the site that the study hooked. Pictures without a folder go to "00000".
    Raises ValueError for a site that was not extracted, and stems that stand twice in a folder.
    """
    model = short(states.model) if model is None else short(model)
    site = SITES.get(model, "pre")
    by_folder: dict[str, list[str]] = {}
    for key in states.keys:
        by_folder.setdefault(states.folder(key) or "00000", []).append(key)
    said, written = captions or {}, []
    for folder, keys in by_folder.items():
        if twice := repeated([stem(key) for key in keys]):
            raise ValueError(f"{folder}: the stem {twice[0]!r} stands twice; the study's keys are stems")
        own = {stem(key): said[key] for key in keys if key in said}
        pre, post = states.vectors(site, keys), states.vectors("post", keys)
        options = {"model": model, "batch_size": batch_size, "save_every": save_every}
        written += write_vectors(Path(root) / model / folder, [stem(key) for key in keys], pre, post, own, **options)
    return written


def _named(vectors: PtVectors, key: str) -> str:
    folder = vectors.folder(key)
    return f"{folder}/{key}" if folder else key


def _fingerprint(pre: PtVectors, sites: Mapping[str, PtVectors], dtype: str) -> dict[str, Any]:
    """What the files say of themselves; the study's say nothing of revision, precision and prompt."""
    shapes = {site: list(vectors.shape[1:]) for site, vectors in sites.items()}
    facts = {"model": MODELS.get(pre.model, pre.model or "unknown"), "source": "the connector study's files"}
    return {"what": WHAT, "version": VERSION, "model": facts, "sites": list(sites), "dtype": dtype, "shapes": shapes}


def _grid(pre: PtVectors, post: PtVectors) -> Int[np.ndarray, " number"]:
    """As stored: square grids of so many tokens, 0 where they are no square, or latents."""

    def side(tokens: int) -> int:
        return math.isqrt(tokens) if math.isqrt(tokens) ** 2 == tokens else 0

    patches, cells = side(pre.shape[1]), 0 if pre.model in GRIDLESS else side(post.shape[1])
    return np.array([patches, patches, cells, cells, MERGE.get(pre.model, 1)], np.int32)


def _commit(
    held: Store, sites: Mapping[str, PtVectors], keys: list[str], dtype: torch.dtype, grid: Int[np.ndarray, " number"]
) -> None:
    names = [_named(next(iter(sites.values())), key) for key in keys]
    with held.commit() as commit:
        for site, vectors in sites.items():
            read = torch.from_numpy(vectors[vectors.rows(keys)])
            stored = read.to(dtype)
            back = stored.float()
            if (wrong := ~read.isfinite().flatten(1).all(1)).any():
                raise ValueError(f"{keys[int(wrong.nonzero()[0])]!r}: its {site} vectors hold NaN or infinite numbers")
            if (wrong := (back != read).flatten(1).any(1)).any():
                key = keys[int(wrong.nonzero()[0])]
                raise ValueError(f"{key!r}: its {site} vectors are not numbers of {dtype}; dtype='float32' keeps them")
            commit.append(names, site, 0, 0, stored)
            commit.append(names, f"pooled.{site}", 0, 0, back.mean(1))
        commit.append(names, "grid", 0, 0, np.tile(grid, (len(keys), 1)))
        commit.append(names, "rounding", 0, 0, np.zeros((len(keys), len(sites)), np.float32))
