"""Where the states and answers of swap pairs are kept while they are extracted: in memory, or in a store that survives a kill.

In a store each batch of pairs is one commit, so that after a kill whole batches are there or not, and what is there is not run
again. Rows carry the id of their pair:

    original/<layer>, swapped/<layer>        hidden states, float32 [width], at the position of the token read (-1: none)
    original.norm/0, swapped.norm/0          those after the final norm
    places/0                                 both positions again, to be read without the states
    tokens/0, logprobs/0                     the two answers, at positions 0 (original) and 1 (swapped)
    asked/0                                  sha256 of what was asked, so that other pairs of the same ids are refused

Knows arrays, ids and stores; knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatialprobes.probes.swap_run import Asked, Found
from spatialprobes.probes.swap_states import MEMBERS, Layer
from spatialprobes.store import Store, StoreError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Answers = tuple["Int[np.ndarray, 'pair member new_token']", "Float[np.ndarray, 'pair member logprob']"]
DIGEST = "asked"


@dataclass(frozen=True)
class Item:
    """A pair on its way: its id, its two questions as they are asked, and the cluster whose picture they are shown with.

    words: those that name its objects, where what is read depends on them.
    """

    id: str
    members: tuple[Asked, Asked]
    cluster: str
    shown: str
    words: tuple[str, ...] = ()

    def digest(self) -> Int[np.ndarray, " byte"]:
        """Of words and names; the picture is known by the cluster that it is of."""
        asked = [[one.example.question, one.expected, one.opposite] for one in self.members]
        text = json.dumps([asked, self.cluster, self.shown, *self.words], ensure_ascii=False)
        return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)


class InMemory:
    """Arrays of all pairs, made when the first batch says how wide they are."""

    def __init__(self, items: Sequence[Item]):
        self.rows = {item.id: row for row, item in enumerate(items)}
        self.hidden: dict[tuple[Layer, str], Float[np.ndarray, "pair width"]] = {}
        self.places = np.full((len(items), 2), -1)
        self.tokens: Int[np.ndarray, "pair member new_token"] | None = None
        self.logprobs = np.full((len(items), 2, 2), np.nan)

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return list(items)

    def add(self, items: Sequence[Item], found: Found) -> None:
        """Rows of `found` are the items' questions: original, swapped, original, ..."""
        rows = [self.rows[item.id] for item in items]
        for layer, states in found.hidden.items():
            for i, member in enumerate(MEMBERS):
                if (layer, member) not in self.hidden:
                    self.hidden[layer, member] = np.empty((len(self.rows), states.shape[1]), np.float32)
                self.hidden[layer, member][rows] = states[i::2]
        self.places[rows] = found.positions.reshape(-1, 2)
        if found.tokens is not None:
            if self.tokens is None:
                self.tokens = np.empty((len(self.rows), 2, found.tokens.shape[1]), np.int64)
            self.tokens[rows] = found.tokens.reshape(len(items), 2, -1)
            self.logprobs[rows] = found.logprobs.reshape(-1, 2, 2)

    def states(self, layer: Layer, member: str) -> Float[np.ndarray, "pair width"]:
        return self.hidden[layer, member]

    def positions(self) -> Int[np.ndarray, "pair member"]:
        return self.places

    def answers(self) -> Answers:
        return self.tokens, self.logprobs


class InStore:
    """Rows of a store that was made for the same model and options; arrays are read from it when they are asked for."""

    def __init__(self, items: Sequence[Item], path: str | Path, fingerprint: dict[str, Any]):
        """Raises FingerprintError for a store of something else, StoreError where it holds other pairs of these ids."""
        self.ids = [item.id for item in items]
        self.store = Store.open(path, fingerprint)
        self.done = self.store.done(DIGEST, 0)
        held = [item for item in items if item.id in self.done]
        if held:
            there = self.store.read(DIGEST, 0, [item.id for item in held]).array
            for item, digest in zip(held, there, strict=True):
                if not np.array_equal(digest, item.digest()):
                    raise StoreError(f"{path}: holds another pair {item.id!r}, with other words or another picture; use another")

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if item.id not in self.done]

    def add(self, items: Sequence[Item], found: Found) -> None:
        """As `InMemory.add`; on the disk when this returns."""
        ids = [item.id for item in items]
        both = [one for one in ids for _ in MEMBERS]
        with self.store.commit() as commit:
            for i, member in enumerate(MEMBERS):
                for layer, states in found.hidden.items():
                    commit.append(ids, *_site(layer, member), found.positions[i::2].tolist(), np.ascontiguousarray(states[i::2]))
            if found.tokens is not None:
                sides = [0, 1] * len(ids)
                commit.append(both, "tokens", 0, sides, found.tokens)
                commit.append(both, "logprobs", 0, sides, found.logprobs)
            commit.append(ids, "places", 0, 0, found.positions.reshape(-1, 2))
            commit.append(ids, DIGEST, 0, 0, np.stack([item.digest() for item in items]))
        self.done.update(ids)

    def states(self, layer: Layer, member: str) -> Float[np.ndarray, "pair width"]:
        return self.store.read(*_site(layer, member), self.ids).array

    def positions(self) -> Int[np.ndarray, "pair member"]:
        return self.store.read("places", 0, self.ids).array

    def answers(self) -> Answers:
        read = (self.store.read(site, 0, self.ids).array for site in ("tokens", "logprobs"))
        tokens, logprobs = (array.reshape(len(self.ids), 2, -1) for array in read)
        return tokens, logprobs


def _site(layer: Layer, member: str) -> tuple[str, int]:
    return (f"{member}.norm", 0) if layer == "norm" else (member, layer)
