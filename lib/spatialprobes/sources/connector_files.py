"""The connector study's files: vectors before and behind connectors and of references, read and written, and its reconstructors.

    <folder of pictures>/{pre,post,ref}_vectors_<seen>.pt, manifest.pt     `open_vectors`, `write_vectors`, `write_references`
    best_model.pt                                                          `read_best_model`
    dataset_stats.pkl                                                      a bare pickle: refused, with how to convert it

What is written is read back number by number and name by name, by this and by the study's own code. Knows files, not models.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spatialprobes.sources.arrays import read_npz
from spatialprobes.sources.connector_names import (
    MERGE,
    MODELS,
    SHAPES,
    SITES,
    Alignment,
    align,
    hub_id,
    repeated,
    short,
    stem,
    stored_order,
)  # fmt: skip
from spatialprobes.sources.connector_pt import FileError, PtVectors, load, open_vectors, read_manifest
from spatialprobes.tables import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = [
    "MODELS", "SHAPES", "SITES", "Alignment", "BestModel", "FileError", "PtVectors", "align", "hub_id", "open_vectors",
    "read_best_model", "read_manifest", "read_statistics", "short", "stem", "write_references", "write_vectors",
]  # fmt: skip
STATISTICS = ("mean_pre", "std_pre", "mean_post", "std_post")
CONVERT = (
    "if you trust it, convert it once: np.savez('dataset_stats.npz', "
    "**{key: np.asarray(value) for key, value in pickle.load(open('dataset_stats.pkl', 'rb')).items()})"
)


def write_vectors(
    folder: str | Path,
    keys: Sequence[str],
    pre: Float[np.ndarray, "picture token width"],
    post: Float[np.ndarray, "picture token width"],
    captions: Mapping[str, str] | None = None,
    *,
    model: str,
    batch_size: int = 32,
    save_every: int = 400,
) -> list[Path]:
    """Write one folder of pictures as the study does, manifest last; the files written.

    pre, post: arrays, or what reads rows when it is asked (`connector_states.Vectors`); at most one file's rows are held.
    model: the study's short name, or any other. batch_size, save_every: a file ends with the first batch that brings it to so
    many pictures. Raises ValueError for keys that are no strings or stand twice, and arrays that don't fit them.
    """
    model = short(model)
    _check(keys, {"pre": pre, "post": post}, ndim=3)
    orders = {"pre": stored_order(model, pre.shape[1], MERGE.get(model, 1) ** 2), "post": stored_order(model, post.shape[1])}
    said = captions or {}
    written = []
    ends = _ends(len(keys), batch_size, save_every)
    for start, end in zip([0, *ends], ends, strict=False):
        own = list(keys[start:end])
        for kind, vectors in (("pre", pre), ("post", post)):
            rows = np.asarray(vectors[start:end], np.float32)
            rows = rows if orders[kind] is None else rows[:, orders[kind]]
            content = {"keys": own, "vecs": torch.tensor(rows), "caps": [said.get(key, "") for key in own]}
            written.append(_save(Path(folder) / f"{kind}_vectors_{end}.pt", content))
    manifest = {"total_seen": len(keys), "shards": len(ends), "model_family": model}
    return [*written, _save(Path(folder) / "manifest.pt", manifest)]


def write_references(
    folder: str | Path,
    keys: Sequence[str],
    vectors: Float[np.ndarray, "picture width"],
    *,
    pool: str,
    model_type: str,
    batch_size: int = 32,
    save_every: int = 400,
) -> list[Path]:
    """As `write_vectors`, of one reference: ref_vectors_<seen>.pt and its manifest. model_type: the study's "clip" or "dino"."""
    _check(keys, {"vectors": vectors}, ndim=2)
    ends = _ends(len(keys), batch_size, save_every)
    written = []
    for start, end in zip([0, *ends], ends, strict=False):
        content = {"keys": list(keys[start:end]), "vecs": torch.tensor(np.asarray(vectors[start:end], np.float32))}
        written.append(_save(Path(folder) / f"ref_vectors_{end}.pt", content))
    manifest = {"total_seen": len(keys), "shards": len(ends), "pool": pool, "model_type": model_type}
    return [*written, _save(Path(folder) / "manifest.pt", manifest)]


@dataclass(frozen=True)
class BestModel:
    """A trained reconstructor. state: its weights by name. meta: embed_model, model_type, hidden_size, num_layers and so on."""

    state: dict[str, Tensor]
    meta: dict[str, Any]


def read_best_model(path: str | Path) -> BestModel:
    """best_model.pt, weights and plain values only. Raises FileNotFoundError; FileError."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    found = load(path)
    state, meta = found.get("state_dict"), found.get("meta")
    if not isinstance(state, dict) or not isinstance(meta, dict) or not all(isinstance(one, Tensor) for one in state.values()):
        raise FileError(f"{path}: holds {', '.join(map(str, found))}; 'state_dict' (tensors by name) and 'meta' are wanted")
    return BestModel(dict(state), meta)


def read_statistics(path: str | Path) -> dict[str, Float[np.ndarray, " width"]]:
    """Means and standard deviations by name (`STATISTICS`) of an .npz file. Raises FileError for the study's pickle."""
    path = Path(path)
    if path.suffix != ".npz":
        raise FileError(f"{path}: is a bare pickle, which could run anything when read; {CONVERT}")
    found = read_npz(path)
    if missing := [name for name in STATISTICS if name not in found]:
        raise FileError(f"{path}: holds {', '.join(found)}; {', '.join(missing)} are missing")
    return {name: found[name] for name in STATISTICS}


def _check(keys: Sequence[str], arrays: Mapping[str, Any], ndim: int) -> None:
    if wrong := [key for key in keys if not isinstance(key, str)]:
        raise ValueError(f"keys are strings; {wrong[0]!r} is {type(wrong[0]).__name__}")
    if twice := repeated(keys):
        raise ValueError(
            f"{len(twice)} keys stand twice, first {twice[0]!r}; the study's keys are stems, one folder of pictures at a time"
        )
    for name, array in arrays.items():
        if len(array.shape) != ndim or array.shape[0] != len(keys) or not keys:
            raise ValueError(
                f"{name} has shape {tuple(array.shape)} for {len(keys)} keys; {ndim} axes, the first by key, are wanted"
            )


def _ends(pictures: int, batch_size: int, save_every: int) -> list[int]:
    """Pictures seen at the end of each file: 416, 832, ... for batches of 32 and files of at least 400."""
    a_file = -(-save_every // batch_size) * batch_size
    return [*range(a_file, pictures, a_file), pictures]


def _save(path: Path, content: dict[str, Any]) -> Path:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_atomically(path, buffer.getvalue())
