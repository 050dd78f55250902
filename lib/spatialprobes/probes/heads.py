"""Which heads notice that something stands in a corner? Attention of the last prompt token to the picture, with and without it.

Every pair of pictures (with the subject in a corner, and without it) is asked about every corner, so that the corner asked about
and the corner that is taken can be told apart. The answer is read in the same run. What the numbers say is made of them in
``head_effects.py``; the study's counts in ``head_counts.py``. Knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from spatialprobes.answers import check_askable, shares
from spatialprobes.examples import Example, batches
from spatialprobes.images import enlarged, open_image
from spatialprobes.parsing import parse
from spatialprobes.probes.head_reading import Corner, Read, read
from spatialprobes.probes.map_rows import blocks_with_attention
from spatialprobes.probes.map_store import digest
from spatialprobes.store import Store, StoreError
from spatialprobes.vlm import VLM
from spatialprobes.worlds.corners import CORNERS, MEMBERS, SIDE, CornerPair, check_corner, corner_examples

if TYPE_CHECKING:
    from jaxtyping import Float

VERSION = 2  # of what is measured; part of a store's fingerprint: raise it when values change
KINDS = ("all", "region", "object")
CHOICES = ("yes", "no")
ANSWERS = (
    "pair", "corner", "cluster", "asked", "member", "expected", "answer", "correct", "parsed", "text", "logprob_yes",
    "logprob_no", "vision", "cells",
)  # fmt: skip
BARS_FROM = 20  # batches from which a bar of progress is shown


@dataclass(frozen=True)
class HeadMass:
    """Attention of the last prompt token to the picture, by pair, question, member and head.

    pairs: [pair, corner (the subject's), cluster (what is resampled together: pairs that differ by the corner alone)], in the
    order of `mass`. asked: corners asked about. layers: blocks with attention maps, from 0; those without are not there.
    mass: float32 [pair, asked, member, kind, layer, head], member 0 full, 1 control; kind 0 "all": summed over all vision
    tokens, 1 "region": over the asked corner's cells, 2 "object": over those of the corner that the subject stands in, whichever
    is asked about; NaN where there are none (no grid, cropped away). A head that looks at objects wherever they are has more
    on the asked corner when the subject is there, whatever is asked; whether the question matters shows on the same cells, those
    of "object".
    answers: columns ANSWERS, a row per pair, member and asked corner: answer (missing where it could not be parsed), text (the
    first greedy token), logprob_yes, logprob_no (of the first token of "yes" and of "no", nats), vision (tokens), cells (of them
    the asked corner's: cells / vision is what `region` would be were attention on the picture even).
    depth: blocks of the model in all.
    Raises ValueError where the shapes do not fit.
    """

    pairs: pd.DataFrame
    asked: list[str]
    layers: list[int]
    mass: Float[np.ndarray, "pair asked member kind layer head"]
    answers: pd.DataFrame
    depth: int | None = None

    def __post_init__(self):
        expected = (len(self.pairs), len(self.asked), len(MEMBERS), len(KINDS), len(self.layers))
        if self.mass.ndim != 6 or self.mass.shape[:5] != expected:
            raise ValueError(f"mass of shape {self.mass.shape} does not fit [pair, asked, member, kind, layer] = {expected}")

    def differences(self, region: str = "all") -> Float[np.ndarray, "pair asked layer head"]:
        """Full minus control, float64. Raises ValueError for an unknown region."""
        if region not in KINDS:
            raise ValueError(f"region={region!r} is unknown; one of {', '.join(map(repr, KINDS))}")
        own = self.mass[:, :, :, KINDS.index(region)].astype(float)
        return own[:, :, 0] - own[:, :, 1]

    def frame(self) -> pd.DataFrame:
        """[pair, corner, cluster, asked, member, layer, head, all, region, object], a row per pair, question, member and head."""
        heads = range(self.mass.shape[-1])
        axes = {"at": range(len(self.pairs)), "asked": self.asked, "member": MEMBERS, "layer": self.layers, "head": heads}
        index = pd.MultiIndex.from_product(axes.values(), names=axes).to_frame(index=False)
        who = self.pairs.iloc[index.pop("at")].reset_index(drop=True)
        values = {kind: self.mass[:, :, :, i].ravel() for i, kind in enumerate(KINDS)}
        return pd.concat([who, index], axis=1).assign(**values)


def measure(
    vlm: VLM,
    pairs: Iterable[CornerPair],
    *,
    asked: str | Iterable[str] = tuple(CORNERS),
    layers: Sequence[int] | int | str = "all",
    side: float = SIDE,
    patches: int | None = None,
    feed_size: int = 0,
    batch_size: int = 64,
    store: str | Path | None = None,
    system: str | None = "default",
    seed: int = 0,
) -> HeadMass:
    """Ask both members of every pair about every corner, and read every head.

    The attention is the last prompt token's, whose output is the answer's first token, raw (bos and text have the rest). layers:
    blocks from 0, "all" those that have attention maps. side, patches: what counts as a corner's cells (`head_reading.Corner`).
    feed_size: pixels of a side that pictures are enlarged to first, 0 for their own. The study's are of 64, which Qwen2-VL
    sees as 2 x 2 cells. store: a folder in which all is kept as it is made, and from which a killed run goes on; pictures are
    decoded all the same, since what was asked must be the same. Interventions are not known to it: give each its own.
    Nothing is drawn: ``seed`` is there because every probe takes one.
    Raises ValueError for no pairs, ids that are not unique, an unknown corner, a side or patches that are none, a layer without
    attention, and a model whose "yes" and "no" begin with the same token; ImageError for a picture that cannot be read;
    FingerprintError and StoreError for a store of something else.
    """
    pairs = list(pairs)
    asked = [check_corner(one) for one in ([asked] if isinstance(asked, str) else dict.fromkeys(asked))]
    if not asked:
        raise ValueError("no corner to ask about was given")
    if feed_size < 0:
        raise ValueError(f"feed_size={feed_size} is no side in pixels; 0 keeps the pictures' own")
    corner = Corner(side, patches)
    chosen = blocks_with_attention(vlm, layers)
    questions = corner_examples(pairs, asked)
    check_askable(vlm, questions)
    options = {"layers": chosen, "side": side, "patches": patches, "feed_size": feed_size, "system": system, "version": VERSION}
    kept = None if store is None else Store.open(store, {**vlm.facts(), **options, "made": "attention of heads to corners"})
    share = shares(vlm, questions, "auto")
    opened = _opened(questions[:1], feed_size)
    first_tokens = _first_tokens(vlm, opened[0], system)
    found = []
    parts = batches(questions, batch_size)
    for chunk in tqdm(parts, desc="heads", unit="batch", leave=False, disable=len(parts) < BARS_FROM):
        shown = _opened(chunk, feed_size)
        there = _held(kept, shown)
        new = [one for one in shown if one.id not in there]
        if new:
            there |= _rows(new, read(vlm, new, chosen, corner, first_tokens, share=share, system=system))
            _keep(kept, new, there)
        found += [there[one.id] for one in shown]
    mass = np.stack([own.mass for own in found])
    mass = mass.reshape(len(pairs), len(MEMBERS), len(asked), *mass.shape[1:]).swapaxes(1, 2)
    who = {
        "pair": [one.id for one in pairs],
        "corner": [one.corner for one in pairs],
        "cluster": [one.meta.get("match", one.id) for one in pairs],
    }
    return HeadMass(pd.DataFrame(who), asked, chosen, mass, _answers(vlm, questions, found), vlm.n_layers)


@dataclass(frozen=True)
class _Row:
    """Of one question. said: token, log-probabilities of CHOICES, vision, cells."""

    mass: Float[np.ndarray, "kind layer head"]
    said: Float[np.ndarray, " 5"]


def _rows(examples: Sequence[Example], got: Read) -> dict[str, _Row]:
    said = np.column_stack([got.token, got.logprobs, got.vision, got.cells]).astype(float)
    return {one.id: _Row(mass, own) for one, mass, own in zip(examples, got.mass, said, strict=True)}


def _opened(examples: Sequence[Example], feed_size: int) -> list[Example]:
    """The examples with their pictures decoded, once each, and enlarged."""
    pictures = {}
    for one in examples:
        member = one.meta["pair"], one.meta["member"]
        if member not in pictures:
            image = open_image(one.image)
            pictures[member] = enlarged(image, feed_size) if feed_size else image
    return [replace(one, image=pictures[one.meta["pair"], one.meta["member"]]) for one in examples]


def _first_tokens(vlm: VLM, example: Example, system: str | None) -> list[int]:
    """The first token of each of CHOICES as an answer."""
    batch = vlm.encode([replace(example, answer=choice) for choice in CHOICES], system, answers=True)
    first = [int(batch.input_ids[row, spans.answer[0]]) for row, spans in enumerate(batch.spans)]
    if len(set(first)) < len(first):
        raise ValueError(f"the answers {' and '.join(CHOICES)} both begin with token {first[0]}, which does not tell them apart")
    return first


def _digest(one: Example) -> np.ndarray:
    """Of question, picture and the subject's corner: all that the row depends on."""
    return digest(replace(one, question=f"{one.meta['corner']}: {one.question}"), answers=False)


def _held(kept: Store | None, examples: Sequence[Example]) -> dict[str, _Row]:
    """What the store has of these. Raises StoreError where it was asked something else under an id."""
    if kept is None:
        return {}
    done = kept.done("mass", 0)
    there = [one for one in examples if one.id in done]
    if not there:
        return {}
    names = [one.id for one in there]
    mass, said, asked = (kept.read(site, 0, names).array for site in ("mass", "said", "asked"))
    for one, hashed in zip(there, asked, strict=True):
        if not np.array_equal(hashed, _digest(one)):
            raise StoreError(f"{kept.path}: holds {one.id!r} with another question, picture or corner; use another folder")
    return {name: _Row(np.array(own), np.array(more)) for name, own, more in zip(names, mass, said, strict=True)}


def _keep(kept: Store | None, examples: Sequence[Example], rows: dict[str, _Row]) -> None:
    if kept is None:
        return
    names = [one.id for one in examples]
    with kept.commit() as commit:
        commit.append(names, "mass", 0, 0, np.stack([rows[name].mass for name in names]))
        commit.append(names, "said", 0, 0, np.stack([rows[name].said for name in names]))
        commit.append(names, "asked", 0, 0, np.stack([_digest(one) for one in examples]))


def _answers(vlm: VLM, examples: Sequence[Example], found: Sequence[_Row]) -> pd.DataFrame:
    texts = vlm.decode([[int(own.said[0])] for own in found])
    rows = []
    for one, own, text in zip(examples, found, texts, strict=True):
        given = parse(text, CHOICES)
        rows.append(
            {
                **{name: one.meta[name] for name in ("pair", "corner", "asked", "member")},
                "cluster": one.cluster,
                "expected": one.answer,
                "answer": given,
                "correct": given == one.answer,
                "parsed": given is not None,
                "text": text,
                "logprob_yes": own.said[1],
                "logprob_no": own.said[2],
                "vision": int(own.said[3]),
                "cells": int(own.said[4]),
            }
        )
    return pd.DataFrame(rows, columns=list(ANSWERS)).astype({"answer": "string"})
