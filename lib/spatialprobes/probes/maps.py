"""Attention maps of words: what a word or phrase of the text looks at in the picture, in every layer and head.

Text query -> vision key, read beside SDPA: only the rows and layers asked for, one forward for a picture and its question however
many words are asked about, prompts batched. One panel a word (`aggregate`) and attention rollout are made of the same rows. Maps
of patches are in `tower_maps`, the forms that were published in `maps_as_published`. Knows nothing of boxes, metrics, figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from spatialprobes.examples import Example, batches
from spatialprobes.probes.map_aggregate import aggregate
from spatialprobes.probes.map_records import Maps, Panels, check_any, labels, left_out_table, numbered, place_of
from spatialprobes.probes.map_rollout import rollout
from spatialprobes.probes.map_rows import blocks_with_attention, read
from spatialprobes.probes.map_store import Cache, Drawn, Key
from spatialprobes.probes.map_words import Asked, Part, Row, Words, asked_of, check, find
from spatialprobes.vlm import VLM

VERSION = 1  # of what is made; part of a store's fingerprint: raise it when values change

__all__ = ["Maps", "Panels", "aggregate", "extract", "rollout"]


def extract(
    vlm: VLM,
    examples: Sequence[Example],
    words: Words | None = None,
    *,
    layers: Sequence[int] | int | str = "all",
    row: Row = "query",
    part: Part = "user",
    system: str | None = "default",
    batch_size: int = 64,
    store: str | Path | None = None,
) -> Maps:
    """Attention of words over the cells of their pictures: one map a word, [layer, head, cell], raw.

    words: {example id: {role: word or phrase}}; None: subject, reference and relation as ``meta`` names them ("subject",
    "reference", "word"). layers: blocks of the language model, counted from 0; "all": those that have attention; the forward ends
    where the last of them was read, so another `capture` around this sees nothing of it. part: where the words stand, in the
    question or in the example's own answer, which is then forced. system: as in `VLM.encode`.
    row: whose attention: "query", the word's own tokens (their mean, all sub-tokens of all words of a phrase); or "emits", the
    token before the word, whose output decides that it comes: the model has not read the word there yet. A word that stands
    several times is read where it stands first.
    store: a folder in which maps are kept as they are made, 2 bytes a weight (each at most 8e-6 of its map's largest weight in
    that head off, so at most 1e-5). What is there is not run again, so a run that was killed goes on where it was; pictures are
    still decoded, since what was asked must be the same, picture included. Interventions are not known to it: give each its own.
    Attention is that of eager attention in float32, to 1e-5. A word that is not in its text, an example without an answer to
    force, vision tokens without a grid: left out, with the reason in `Maps.left_out`.
    Raises KeyError for an id that no example has; ValueError for an unknown choice, a layer without attention, batch_size below
    1, and where nothing is left; FingerprintError for a store of another model or other parameters, StoreError where it holds
    other questions or pictures of these ids.
    """
    check(row=(row, get_args(Row)), part=(part, get_args(Part)))
    chosen = blocks_with_attention(vlm, layers)
    asked, left_out = asked_of(examples, words, part)
    cache = None
    if store is not None:
        options = {"layers": chosen, "row": row, "part": part, "system": system, "made": "maps of words", "version": VERSION}
        cache = Cache(store, {**vlm.facts(), **options}, chosen, answers=part == "answer")
    rows, weights = [], []
    for chunk in batches(asked, batch_size):
        if cache is None:
            drawn, lost = _drawn(vlm, chunk, chosen, row, part, system)
        else:
            shown = cache.opened([one.example for one in chunk])
            chunk = [Asked(example, one.words) for example, one in zip(shown, chunk, strict=True)]
            keys = [key for one in chunk for key in _keys(one)]
            there = cache.held(keys)
            new, lost = _drawn(vlm, _without(chunk, there), chosen, row, part, system)
            cache.add(new)
            drawn = there | cache.held(list(new))  # what was just made is read again, as it will be by a later run
        left_out += lost
        for one in chunk:
            for key in _keys(one):
                if key in drawn:
                    rows.append(labels(one.example, *key[1:], drawn[key].place, drawn[key].weights))
                    weights.append(drawn[key].weights)
    gone = left_out_table(left_out)
    check_any(weights, gone)
    return Maps(numbered(rows), chosen, weights, "words", gone, vlm.n_layers)


def _drawn(
    vlm: VLM, chunk: Sequence[Asked], layers: Sequence[int], row: Row, part: Part, system: str | None
) -> tuple[dict[Key, Drawn], list[tuple[str, str, str]]]:
    """The maps of one batch, and what has none: (example, word, reason)."""
    if not chunk:
        return {}, []
    found = find(vlm, chunk, row, part, system)
    tokens = [[at for _, _, at in own] for own in found.words]
    if not any(tokens):
        return {}, found.left_out
    made, _ = read(vlm, found.batch, tokens, layers)
    drawn = {}
    for one, spans, own, arrays in zip(chunk, found.batch.spans, found.words, made, strict=True):
        for (role, word, _), array in zip(own, arrays, strict=True):
            drawn[one.example.id, role, word] = Drawn(place_of(spans), array)
    return drawn, found.left_out


def _keys(one: Asked) -> list[Key]:
    return [(one.example.id, role, word) for role, word in one.words.items()]


def _without(chunk: Sequence[Asked], there: dict[Key, Drawn]) -> list[Asked]:
    """What is still to be run: examples with those of their words that have no map yet."""
    left = [
        Asked(one.example, {role: word for name, role, word in _keys(one) if (name, role, word) not in there}) for one in chunk
    ]
    return [one for one in left if one.words]
