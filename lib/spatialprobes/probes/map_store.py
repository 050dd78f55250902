"""Maps on the disk while they are made, so that a run that was killed goes on where it was, and figures need no model.

Rows of a store carry the id of their example, its role and its word, as JSON:

    map.<rows>x<cols>/<layer>      uint16 [head, cell]: weight = value / 65535 * scale, so at most scale / 131070 off
    scale.<rows>x<cols>/<layer>    float32 [head]: the largest weight of the map in that head
    grid/0                         float64 [rows, cols, scale_x, scale_y, shift_x, shift_y], written for each map
    asked/0                        sha256 of question, forced answer and picture, one an example

Knows arrays, ids and stores; knows nothing of attention.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialprobes.examples import Example
from spatialprobes.images import open_image
from spatialprobes.store import Store, StoreError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LEVELS = 65535


@dataclass(frozen=True)
class Drawn:
    """One map and where its cells are: place is (rows, cols, scale_x, scale_y, shift_x, shift_y)."""

    place: tuple[float, ...]
    weights: Float[np.ndarray, "layer head cell"]

    @property
    def grid(self) -> str:
        return f"{self.place[0]:.0f}x{self.place[1]:.0f}"


Key = tuple[str, str, str]  # example, role, word


class Cache:
    """Maps of one model and one way of asking. Raises FingerprintError for a folder that was made with others."""

    def __init__(self, path: str | Path, fingerprint: Mapping[str, Any], layers: Sequence[int], answers: bool):
        self.store, self.layers, self.answers = Store.open(path, dict(fingerprint)), list(layers), answers

    def opened(self, examples: Sequence[Example]) -> list[Example]:
        """The examples with their pictures decoded, once each, and checked to be what the store holds under their ids.

        Raises StoreError for an id under which something else was asked.
        """
        pictures: dict[Any, Any] = {}
        found = []
        for example in examples:
            source = str(example.image) if isinstance(example.image, (str, PathLike)) else id(example.image)
            if source not in pictures:
                pictures[source] = open_image(example.image)
            found.append(replace(example, image=pictures[source]))
        digests = {example.id: digest(example, self.answers) for example in found}
        known = self.store.done("asked", 0)
        there = [one for one in digests if one in known]
        for one, held in zip(there, self.store.read("asked", 0, there).array if there else [], strict=True):
            if not np.array_equal(held, digests[one]):
                raise StoreError(f"{self.store.path}: holds maps of {one!r} with another question or picture; use another folder")
        new = [one for one in digests if one not in known]
        if new:
            self.store.append(new, "asked", 0, 0, np.stack([digests[one] for one in new]))
        return found

    def held(self, keys: Sequence[Key]) -> dict[Key, Drawn]:
        """Of these maps, those that are there."""
        done = self.store.done("grid", 0)
        there = [key for key in keys if _name(key) in done]
        if not there:
            return {}
        places = self.store.read("grid", 0, [_name(key) for key in there]).array
        by_grid: dict[tuple[int, int], list[int]] = {}
        for i, place in enumerate(places):
            by_grid.setdefault((int(place[0]), int(place[1])), []).append(i)
        found: dict[Key, Drawn] = {}
        for (rows, cols), which in by_grid.items():
            names = [_name(there[i]) for i in which]
            values = [self.store.read(f"map.{rows}x{cols}", layer, names).array for layer in self.layers]
            scales = [self.store.read(f"scale.{rows}x{cols}", layer, names).array for layer in self.layers]
            weights = np.stack([unpacked(*one) for one in zip(values, scales, strict=True)], 1)
            found |= {there[i]: Drawn(tuple(map(float, places[i])), one) for i, one in zip(which, weights, strict=True)}
        return found

    def add(self, drawn: Mapping[Key, Drawn]) -> None:
        """On the disk when this returns, all or none."""
        by_grid: dict[str, list[Key]] = {}
        for key, one in drawn.items():
            by_grid.setdefault(one.grid, []).append(key)
        with self.store.commit() as commit:
            for grid, keys in by_grid.items():
                names = [_name(key) for key in keys]
                values, scales = packed(np.stack([drawn[key].weights for key in keys]))
                for i, layer in enumerate(self.layers):
                    commit.append(names, f"map.{grid}", layer, 0, np.ascontiguousarray(values[:, i]))
                    commit.append(names, f"scale.{grid}", layer, 0, np.ascontiguousarray(scales[:, i]))
                commit.append(names, "grid", 0, 0, np.array([drawn[key].place for key in keys]))


def packed(
    weights: Float[np.ndarray, "... head cell"],
) -> tuple[Int[np.ndarray, "... head cell"], Float[np.ndarray, "... head"]]:
    """Two bytes a weight, each row in units of its own largest."""
    scale = weights.max(-1).astype(np.float32)
    unit = np.where(scale > 0, scale, 1)[..., None].astype(np.float64)
    return np.rint(weights / unit * LEVELS).astype(np.uint16), scale


def unpacked(
    values: Int[np.ndarray, "... head cell"], scale: Float[np.ndarray, "... head"]
) -> Float[np.ndarray, "... head cell"]:
    """float32 weights, each at most its row's largest / 131070 from what was packed, apart from float32's own rounding."""
    return (values / np.float64(LEVELS) * np.float64(scale)[..., None]).astype(np.float32)


def digest(example: Example, answers: bool) -> Int[np.ndarray, " byte"]:
    """sha256 of what is asked: words, and the picture's pixels. The picture must be open."""
    asked = [example.question, example.answer if answers else None, example.meta.get("earlier", ()), example.image.size]
    hashed = hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode())
    hashed.update(example.image.tobytes())
    return np.frombuffer(hashed.digest(), np.uint8)


def _name(key: Key) -> str:
    return json.dumps(key, ensure_ascii=False)
