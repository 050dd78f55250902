"""The connector study's files of vectors, read: {pre,post,ref}_vectors_<seen>.pt and manifest.pt.

Each .pt is {"keys": names, "vecs": float32 [picture, token, width] (references: [picture, width]), "caps": captions}; <seen>
counts the pictures of the folder so far. Folders of pictures (00000, 00001, ...) may lie below one of a model. A file is mapped
into memory, so that keys alone, or a few rows, cost no more than they are. Nothing is unpickled but what torch knows to be safe.

Tokens come in our order (`connector_names`). Knows files; nothing of models.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from spatialprobes.sources.connector_names import MERGE, SHAPES, class_tokens, repeated, short, stored_order

if TYPE_CHECKING:
    from jaxtyping import Float, Int

KINDS = ("pre", "post", "ref")
BLOCK = 64  # pictures read at once


class FileError(ValueError):
    """A file that is broken, or that is not what its name says; the message names it."""


@dataclass(frozen=True)
class _Part:
    """One file. keys: of its rows. shape: of its tensor."""

    path: Path
    folder: str
    keys: list[str]
    shape: tuple[int, ...]


@dataclass
class PtVectors:
    """Vectors of one kind, float32 [picture, token, width] (references: [picture, width]), read when they are asked for.

    An index (whole number, slice, list) reads these pictures; `blocks` reads all, some at a time; `np.asarray` reads the whole.
    keys: in the order of folders and files. captions: by key, those that are not empty. model: the study's name of it, "" where
    nothing says. reports: what is missing, damaged or taken on trust, one line each.
    """

    kind: str
    model: str
    keys: list[str]
    captions: dict[str, str]
    shape: tuple[int, ...]
    reports: list[str] = field(default_factory=list)
    parts: list[_Part] = field(default_factory=list, repr=False)
    first: int = 0  # tokens left out in front: a class token
    order: Int[np.ndarray, " token"] | None = None  # where the token of each of our places stands in the files

    dtype = np.dtype(np.float32)

    def __post_init__(self) -> None:
        self._starts = np.cumsum([0] + [len(part.keys) for part in self.parts])
        self._row = {key: row for row, key in enumerate(self.keys)}
        self._pooled: np.ndarray | None = None
        self._opened: tuple[Path, Tensor] | None = None  # the file that was read last

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.keys)

    def folder(self, key: str) -> str:
        """The folder of pictures that a key's file is in, "" where the files lie in no such folder."""
        return self.parts[self._part(self.rows([key])[0])].folder

    def rows(self, keys: Sequence[str]) -> list[int]:
        """Where these pictures stand. Raises KeyError saying how many are not there."""
        if lacking := [key for key in keys if key not in self._row]:
            raise KeyError(f"{self.kind}: no vectors of {len(lacking)} of {len(keys)} pictures, first {lacking[0]!r}")
        return [self._row[key] for key in keys]

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> Float[np.ndarray, "*picture token width"]:
        rows = np.arange(len(self))[index]
        wanted = np.atleast_1d(rows)
        found = np.empty((len(wanted), *self.shape[1:]), np.float32)
        parts = np.array([self._part(row) for row in wanted], int)
        for which in np.unique(parts):
            here = np.flatnonzero(parts == which)
            tensor = self._tensor(self.parts[which].path)
            found[here] = self._ours(tensor[torch.from_numpy(wanted[here] - self._starts[which])].float().numpy())
        return found if rows.ndim else found[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype)

    def blocks(self, pictures: int = BLOCK) -> Iterator[tuple[list[str], Float[np.ndarray, "picture token width"]]]:
        """(keys, vectors) of so many pictures at a time, in order. Raises FileError for NaN or infinite numbers."""
        for start in range(0, len(self), pictures):
            keys, found = self.keys[start : start + pictures], self[start : start + pictures]
            if wrong := np.flatnonzero(~np.isfinite(found).reshape(len(found), -1).all(1)).tolist():
                raise FileError(
                    f"{self.parts[self._part(start + wrong[0])].path}: {keys[wrong[0]]!r} holds NaN or infinite numbers"
                )
            yield keys, found

    def pooled(self) -> Float[np.ndarray, "picture width"]:
        """The mean over the tokens, read once and kept; references as they are."""
        if self._pooled is None:
            parts = [found.mean(1) if self.ndim == 3 else found for _, found in self.blocks()]
            self._pooled = np.concatenate(parts) if parts else np.zeros((0, self.shape[-1]), np.float32)
        return self._pooled

    def _part(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _tensor(self, path: Path) -> Tensor:
        if self._opened is None or self._opened[0] != path:
            self._opened = (path, load(path)["vecs"])
        return self._opened[1]

    def _ours(self, stored: np.ndarray) -> np.ndarray:
        if self.ndim == 2:
            return stored
        stored = stored[:, self.first :]
        return stored if self.order is None else stored[:, self.order]


def open_vectors(
    folder: str | Path,
    kind: Literal["pre", "post", "ref"],
    *,
    model: str | None = None,
    class_token: Literal["by square", "none"] = "by square",
    on_error: Literal["raise", "list"] = "raise",
) -> PtVectors:
    """The vectors of one kind in a folder of the study's files, or in the folders of pictures below it.

    model: the study's short name, where no manifest says. class_token: "by square" leaves out a first token where a picture has
    one more than a square number of them (behind the connector only if so before it), "none" leaves out none. on_error: a file
    that is damaged raises, or is left out and reported.

    Raises FileNotFoundError; FileError naming the file for one that is damaged, files of several models, sites or sizes, and keys
    that stand twice (files of an earlier run that was stopped are not removed by the study's code).
    """
    for name, value, legal in (
        ("kind", kind, KINDS), ("class_token", class_token, ("by square", "none")), ("on_error", on_error, ("raise", "list")),
    ):  # fmt: skip
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; {', '.join(map(repr, legal))}")
    folder, parts, reports = Path(folder), [], []
    captions: dict[str, str] = {}
    named = {} if model is None else {"what was asked for": short(model)}
    for name, own in _folders(folder, kind):
        manifest = _manifest(own, reports)
        if "model_family" in manifest:
            named[f"{own / 'manifest.pt'}"] = short(manifest["model_family"])
        for path in _files(own, kind):
            try:
                part, said = _read_part(path, name, kind)
            except FileError as error:
                if on_error == "raise":
                    raise
                reports.append(f"left out, {error}")
                continue
            parts.append(part)
            captions |= said
        _check_count(own, kind, manifest, [part for part in parts if part.folder == name], reports)
    if not parts:
        raise FileError(f"{folder}: none of its files of {kind} vectors can be read")
    return _put_together(folder, kind, parts, captions, _one_model(named), class_token, reports)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """manifest.pt: total_seen, shards and model_family; of references pool and model_type. FileNotFoundError; FileError."""
    path = Path(folder) / "manifest.pt"
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    return load(path)


def load(path: Path) -> dict[str, Any]:
    """A dictionary in a .pt file, its tensors mapped. Raises FileError."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise FileError(f"{path}: holds more than numbers and text, which only an unsafe load could give back") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise FileError(f"{path}: damaged or cut short ({path.stat().st_size:,} bytes): {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise FileError(f"{path}: holds {type(found).__name__}, not a dictionary")
    return found


def _folders(folder: Path, kind: str) -> list[tuple[str, Path]]:
    """(name of a folder of pictures, where its files are), "" where they lie in the folder itself."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    if _files(folder, kind):
        return [("", folder)]
    found = [(below.name, below) for below in sorted(folder.iterdir()) if below.is_dir() and _files(below, kind)]
    if not found:
        raise FileNotFoundError(f"{folder}: holds no {kind}_vectors_<seen>.pt, nor does a folder in it")
    return found


def _files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}_vectors_*.pt"), key=_seen)


def _seen(path: Path) -> int:
    found = re.fullmatch(r"\w+_vectors_(\d+)", path.stem)
    if found is None:
        raise FileError(f"{path}: its name does not end in the number of pictures seen")
    return int(found[1])


def _manifest(folder: Path, reports: list[str]) -> dict[str, Any]:
    if (folder / "manifest.pt").is_file():
        return read_manifest(folder)
    reports.append(f"{folder}: no manifest.pt, so the run may have been stopped before its end")
    return {}


def _read_part(path: Path, folder: str, kind: str) -> tuple[_Part, dict[str, str]]:
    found = load(path)
    keys, vecs, captions = found.get("keys"), found.get("vecs"), found.get("caps") or []
    if not isinstance(keys, list) or not isinstance(vecs, Tensor) or not vecs.is_floating_point():
        raise FileError(
            f"{path}: holds {', '.join(map(str, found))}; 'keys' (a list) and 'vecs' (a tensor of numbers) are wanted"
        )
    if wrong := [key for key in keys if not isinstance(key, str)]:
        raise FileError(f"{path}: keys are strings; {wrong[0]!r} is {type(wrong[0]).__name__}")
    if vecs.ndim != (2 if kind == "ref" else 3) or len(vecs) != len(keys) or (captions and len(captions) != len(keys)):
        raise FileError(f"{path}: {len(keys)} keys, {len(captions)} captions and vecs of shape {tuple(vecs.shape)} don't fit")
    said = {key: text for key, text in zip(keys, captions, strict=True) if text} if captions else {}
    return _Part(path, folder, keys, tuple(vecs.shape)), said


def _check_count(folder: Path, kind: str, manifest: dict[str, Any], parts: list[_Part], reports: list[str]) -> None:
    there = sum(len(part.keys) for part in parts)
    if manifest and there != manifest.get("total_seen"):
        reports.append(f"{folder}: its manifest counts {manifest.get('total_seen')} pictures, its {kind} files hold {there}")


def _one_model(named: dict[str, str]) -> str:
    if len(set(named.values())) > 1:
        (first, one), (second, other) = next((a, b) for a in named.items() for b in named.items() if a[1] != b[1])
        raise FileError(f"files of several models: {one!r} by {first}, {other!r} by {second}")
    return next(iter(named.values()), "")


def _put_together(
    folder: Path, kind: str, parts: list[_Part], captions: dict[str, str], model: str, class_token: str, reports: list[str]
) -> PtVectors:
    for part in parts:
        if part.shape[1:] != parts[0].shape[1:]:
            own, others = (f"{each.shape[1:]} a picture ({each.path})" for each in (part, parts[0]))
            raise FileError(f"{folder}: {kind} vectors of several models, sites or sizes: {own}, {others}")
    keys = [key for part in parts for key in part.keys]
    if twice := repeated(keys):
        where = [str(part.path) for part in parts if twice[0] in part.keys]
        raise FileError(f"{len(twice):,} keys stand twice, first {twice[0]!r} in {' and '.join(where)}: files of an earlier run?")
    if kind == "ref":
        return PtVectors(kind, model, keys, captions, (len(keys), *parts[0].shape[1:]), reports, parts)
    tokens, width = parts[0].shape[1:]
    known = SHAPES[model][kind == "post"][1] if model in SHAPES else width
    if width != known:
        raise FileError(f"{parts[0].path}: {width} numbers a token, {known} are {model}'s {kind}: of another model or site?")
    if not model:
        reports.append(f"{folder}: which model it is of is not said, so tokens come in the order of the files")
    try:
        first = _class_tokens(parts[0], kind, tokens) if class_token == "by square" else 0
        order = stored_order(model, tokens - first, MERGE.get(model, 1) ** 2 if kind == "pre" else 1)
    except ValueError as error:
        raise FileError(f"{parts[0].path}: {error}; class_token='none' keeps all") from error
    if first:
        reports.append(f"{folder}: {tokens} tokens a picture, one more than a square: the first, a class token, is left out")
    ours = None if order is None else np.argsort(order)
    return PtVectors(kind, model, keys, captions, (len(keys), tokens - first, width), reports, parts, first, ours)


def _class_tokens(part: _Part, kind: str, tokens: int) -> int:
    """By the perfect square; behind a connector only where as many tokens came to it, for latents may be any number."""
    if kind == "post":
        before = _files(part.path.parent, "pre")
        if not before or load(before[0])["vecs"].shape[1] != tokens:
            return 0
    return class_tokens(tokens)
