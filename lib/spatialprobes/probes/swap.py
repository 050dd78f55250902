"""What do hidden states say when subject and reference change places? States and answers of swap pairs, layer by layer.

Each question is run once: the prefill that leaves the hidden states also leaves the answer's log-probabilities and the cache that
its text is decoded from. Knows pairs, batches and controls; what the states mean is in `swap_measures.py`. It does not know which
interventions are open: give each its own store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from spatialprobes import capture
from spatialprobes.answers import PrefixCache, check_askable, shares
from spatialprobes.examples import Example, batches
from spatialprobes.images import open_image
from spatialprobes.pairs import OPPOSITE, Pair, Quad
from spatialprobes.probes import swap_answers
from spatialprobes.probes.swap_keep import InMemory, InStore, Item
from spatialprobes.probes.swap_run import NO_TOKEN, Asked, At, ExtractionError, Runner, single_tokens
from spatialprobes.probes.swap_states import MEMBERS, Layer, States, frame
from spatialprobes.seeds import check_seed
from spatialprobes.vlm import VLM

__all__ = ["ANSWERS", "Extraction", "ExtractionError", "extract", "extract_quads"]

VERSION = 1  # of what is extracted; part of a store's fingerprint: raise it when values change
Control = Literal["none", "blank", "mismatched"]
GREY = (128, 128, 128)
BARS_FROM = 20  # batches from which a bar of progress is shown
ANSWERS = (
    "pair", "member", "category", "group", "cluster", "expected", "opposite", "text", "answer", "parsed", "correct",
    "correct_published", "logprob_expected", "logprob_opposite", "correct_logprob",
)  # fmt: skip


@dataclass(frozen=True)
class Extraction:
    """states, answers: see `extract`. unplaced: ids of the pairs whose words were not found; their states are NaN."""

    states: States
    answers: pd.DataFrame
    unplaced: tuple[str, ...] = ()


def extract(
    vlm: VLM,
    pairs: Sequence[Pair],
    *,
    layers: capture.Layers = "all",
    at: At = "last",
    control: Control = "none",
    answers: bool = True,
    store: str | Path | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 8,
    prefix_cache: PrefixCache = "auto",
    system: str | None = "default",
    seed: int = 0,
) -> Extraction:
    """Hidden states and answers of both questions of each pair.

    layers: as in `capture`: 0..L ("all"), or several of them with "norm" among them. at: the last prompt token, or the last token
    of the words that ``Example.meta`` names "subject" or "reference"; pairs whose words are not in both questions have NaN
    states and are listed in `unplaced`. control: "blank" shows a grey picture of the same size, "mismatched" that of another
    cluster (drawn with ``seed``; each cluster's picture goes to one other). store: a folder where batches are kept as they are
    done; what it holds is not run again, and states are read from it. It knows a picture by its cluster's name: where other
    pictures have the same names, use another folder. batch_size: questions run at once; both of a pair always are.
    prefix_cache: "auto" runs a picture once for all its questions of a batch where that is exact.

    answers, one row a question, in the order of the pairs: [pair, member ("original", "swapped"), category (its own answer's),
    group, cluster, expected, opposite, text (greedy, at most `max_new_tokens`), answer (the category said, missing where it could
    not be told), parsed, correct (`swap_answers.check`), correct_published (`swap_answers.as_published`), logprob_expected,
    logprob_opposite (natural, summed over the answer's tokens), correct_logprob (the expected one is likelier)];
    ``attrs["unparsed"]`` is the share of texts that were not parsed. Without answers it has no rows.

    Raises ValueError for no pairs, ids that are not unique, an answer that is no word of its category, answers that are not
    opposite, an unknown option, a single cluster under "mismatched"; ExtractionError for a model output that is not finite;
    FingerprintError for a store of something else, StoreError for one that holds other pairs of these ids;
    PromptError, ImageError.
    """
    options = {"layers": layers, "at": at, "control": control, "answers": answers, "max_new_tokens": max_new_tokens}
    options |= {"system": system, "seed": seed, "prefix_cache": prefix_cache}
    return _extract(vlm, [[pair] for pair in pairs], batch_size, store, options)


def extract_quads(
    vlm: VLM,
    quads: Sequence[Quad],
    *,
    layers: capture.Layers = "all",
    at: At = "last",
    control: Control = "none",
    answers: bool = True,
    store: str | Path | None = None,
    batch_size: int = 64,
    max_new_tokens: int = 8,
    prefix_cache: PrefixCache = "auto",
    system: str | None = "default",
    seed: int = 0,
) -> tuple[States, States, pd.DataFrame]:
    """(vertical, distance, answers): states of the quads' two pairs, in their order, and the answers to all; as `extract`.

    The four questions of a quad are run in one batch.
    """
    options = {"layers": layers, "at": at, "control": control, "answers": answers, "max_new_tokens": max_new_tokens}
    options |= {"system": system, "seed": seed, "prefix_cache": prefix_cache}
    found = _extract(vlm, [[quad.vertical, quad.distance] for quad in quads], batch_size, store, options)
    vertical = np.arange(len(found.states)) % 2 == 0
    return found.states.select(vertical), found.states.select(~vertical), found.answers


def _extract(vlm: VLM, units: list[list[Pair]], batch_size: int, store: str | Path | None, options: dict[str, Any]) -> Extraction:
    """The pairs of a unit are run in one batch."""
    pairs = [pair for unit in units for pair in unit]
    layers = _check(vlm, pairs, options)
    items = _items(pairs, options["at"], options["control"], check_seed(options["seed"]))
    share = shares(vlm, [one.example for item in items for one in item.members], options["prefix_cache"])
    every = _batches(units, items, batch_size, share)
    keep = InMemory(items) if store is None else InStore(items, store, _fingerprint(vlm, layers, options))
    todo = [left for batch in every if (left := keep.missing(batch))]
    if todo:
        run = _runner(vlm, layers, share, todo, options)
        for batch in tqdm(todo, desc="pairs", unit="batch", leave=False, disable=len(todo) < BARS_FROM):
            keep.add(batch, run([one for item in batch for one in item.members]))
    unplaced = tuple(np.array([item.id for item in items])[(keep.positions() < 0).any(axis=1)].tolist())
    if len(unplaced) == len(items):
        raise ExtractionError(f"no pair has the words of its {options['at']} in its questions, first {unplaced[0]!r}")
    table = _answers(vlm, pairs, items, *keep.answers()) if options["answers"] else pd.DataFrame(columns=list(ANSWERS))
    return Extraction(States(frame(pairs), layers, keep.states), table, unplaced)


def _check(vlm: VLM, pairs: Sequence[Pair], options: dict[str, Any]) -> tuple[Layer, ...]:
    """The layers asked for. Raises ValueError for what cannot be asked."""
    if not pairs:
        raise ValueError("no pairs were given")
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise ValueError(f"two pairs have the id {pair.id!r}; ids must be unique")
        seen.add(pair.id)
        for one in pair.members:
            if not one.answer or one.category not in OPPOSITE:
                raise ValueError(f"{one.id!r}: answer {one.answer!r}, category {one.category!r}; both are wanted")
            if (said := swap_answers.meaning(one.answer)) != one.category:
                raise ValueError(f"{one.id!r}: answer {one.answer!r} says {said}, its category is {one.category!r}")
        if pair.swapped.category != OPPOSITE[pair.category]:
            raise ValueError(f"pair {pair.id!r}: answers {pair.category!r} and {pair.swapped.category!r} are not opposite")
    check_askable(vlm, [one for pair in pairs for one in pair.members])
    for name, legal in (("at", ("last", "subject", "reference")), ("control", ("none", "blank", "mismatched"))):
        if options[name] not in legal:
            raise ValueError(f"{name}={options[name]!r} is unknown; {', '.join(map(repr, legal))}")
    _check_count("max_new_tokens", options["max_new_tokens"])
    with capture.capture(vlm, hidden=options["layers"]):  # names a layer that is not there
        pass
    asked = options["layers"]
    if isinstance(asked, str) and asked == "all":
        return tuple(range(vlm.n_layers + 1))
    several = [asked] if isinstance(asked, (Integral, str)) else asked
    return tuple(dict.fromkeys(layer if isinstance(layer, str) else int(layer) for layer in several))


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} must be at least 1, a whole number")


def _items(pairs: Sequence[Pair], at: At, control: Control, seed: int) -> list[Item]:
    """The pairs as they are asked, each with the picture that the control shows."""
    donors = _circle([pair.cluster for pair in pairs], seed) if control == "mismatched" else {}
    pictures = {pair.cluster: pair.original.image for pair in reversed(pairs)}
    items = []
    for pair in pairs:
        shown = donors.get(pair.cluster, "blank" if control == "blank" else pair.cluster)
        grey = partial(_grey, pair.original.image)
        images = {"none": [one.image for one in pair.members], "blank": [grey] * 2, "mismatched": [pictures.get(shown)] * 2}
        asked = [
            Asked(replace(one, image=image, cluster=pair.cluster), one.answer, _opposite(one))
            for one, image in zip(pair.members, images[control], strict=True)
        ]
        words = (
            () if at == "last" else tuple(str(one.meta.get(name)) for one in pair.members for name in ("subject", "reference"))
        )
        items.append(Item(pair.id, (asked[0], asked[1]), pair.cluster, shown, words))
    return items


def _circle(clusters: Sequence[str], seed: int) -> dict[str, str]:
    """For each cluster another: the next one, in a circle of random order. Raises ValueError for a single one."""
    names = list(dict.fromkeys(clusters))
    if len(names) < 2:
        raise ValueError(f"control='mismatched' needs pictures of two clusters or more; there is {names[0]!r} alone")
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[one]: names[other] for one, other in zip(order, np.roll(order, -1), strict=True)}


def _grey(image: Any) -> Image.Image:
    return Image.new("RGB", open_image(image).size, GREY)


def _opposite(one: Example) -> str:
    """The other one of its two choices, or the opposite of its category where it has no choices."""
    others = [choice for choice in one.choices or () if choice != one.answer]
    return others[0] if one.answer in (one.choices or ()) and len(others) == 1 else OPPOSITE[one.category]


def _batches(units: list[list[Pair]], items: list[Item], batch_size: int, share: bool) -> list[list[Item]]:
    """The items in batches that part no unit, longest questions first; where pictures are shared, cluster by cluster.

    All of them, done or not, so that what is left after a kill is run in the batches in which it would have been.
    """
    rest = iter(items)
    held = [[next(rest) for _ in unit] for unit in units]
    longest: dict[str, int] = {}

    def key(unit: list[Item]) -> str:
        return unit[0].cluster if share else unit[0].id

    for unit in held:
        length = max(len(one.example.question or "") for item in unit for one in item.members)
        longest[key(unit)] = max(length, longest.get(key(unit), 0))
    place = {name: i for i, name in enumerate(sorted(longest, key=longest.get, reverse=True))}
    held.sort(key=lambda unit: place[key(unit)])
    questions = 2 * max(map(len, held))
    _check_count("batch_size", batch_size)
    return [[item for unit in chunk for item in unit] for chunk in batches(held, max(1, batch_size // questions))]


def _runner(vlm: VLM, layers: tuple[Layer, ...], share: bool, todo: list[list[Item]], options: dict[str, Any]) -> Runner:
    asked = [one for batch in todo for item in batch for one in item.members]
    words = list(dict.fromkeys(word for one in asked for word in (one.expected, one.opposite)))
    system, answers = options["system"], options["answers"]
    tokens = single_tokens(vlm, asked[0].example, words, system) if answers else {}
    return Runner(vlm, layers, options["at"], answers, options["max_new_tokens"], system, share, tokens)


def _fingerprint(vlm: VLM, layers: tuple[Layer, ...], options: dict[str, Any]) -> dict[str, Any]:
    """What a row depends on; options that have no bearing on it are left out."""
    at, control, answers = options["at"], options["control"], options["answers"]
    return {
        "model": vlm.facts(),
        "capture": capture.VERSION,
        "extraction": VERSION,
        "layers": list(layers),
        "at": at,
        "control": control,
        "seed": options["seed"] if control == "mismatched" else None,
        "answers": answers,
        "max_new_tokens": options["max_new_tokens"] if answers else None,
        "system": options["system"],
    }


def _answers(vlm: VLM, pairs: Sequence[Pair], items: Sequence[Item], tokens: np.ndarray, logprobs: np.ndarray) -> pd.DataFrame:
    """tokens: [pair, member, new token]; logprobs: [pair, member, expected and opposite]."""
    texts = iter(vlm.decode([row[row != NO_TOKEN].tolist() for row in tokens.reshape(-1, tokens.shape[-1])]))
    rows = []
    for i, (pair, item) in enumerate(zip(pairs, items, strict=True)):
        for j, (member, example, asked) in enumerate(zip(MEMBERS, pair.members, item.members, strict=True)):
            text, (expected, opposite) = next(texts), logprobs[i, j].tolist()
            said = swap_answers.said(text, asked.expected)
            rows.append(
                {
                    "pair": pair.id,
                    "member": member,
                    "category": example.category,
                    "group": pair.group,
                    "cluster": pair.cluster,
                    "expected": asked.expected,
                    "opposite": asked.opposite,
                    "text": text,
                    "answer": said,
                    "parsed": said is not None,
                    "correct": said is not None and said == swap_answers.meaning(asked.expected),
                    "correct_published": swap_answers.as_published(text, asked.expected),
                    "logprob_expected": expected,
                    "logprob_opposite": opposite,
                    "correct_logprob": expected > opposite,
                }
            )
    table = pd.DataFrame(rows, columns=list(ANSWERS)).astype({"answer": "string"})
    table.attrs.update(unparsed=float(1 - table["parsed"].mean()))
    return table
