"""Which tokens the words of an example are, and which words have none and why.

Knows prompts; knows nothing of attention.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from spatialprobes.examples import Example
from spatialprobes.spans import Spans
from spatialprobes.vlm import VLM, Batch

Row = Literal["query", "emits"]
Part = Literal["user", "answer"]
Words = Mapping[str, Mapping[str, str]]  # of an example's id: role -> word or phrase
ROLES = {"subject": "subject", "reference": "reference", "relation": "word"}  # role -> where meta has its word


@dataclass(frozen=True)
class Asked:
    """An example and its words, by role."""

    example: Example
    words: dict[str, str]


@dataclass
class Found:
    """A batch in which words were looked for. asked: per prompt, (role, word, tokens) of those that are there."""

    batch: Batch
    words: list[list[tuple[str, str, list[int]]]]
    left_out: list[tuple[str, str, str]] = field(default_factory=list)


def asked_of(
    examples: Sequence[Example], words: Words | None, part: Part = "user"
) -> tuple[list[Asked], list[tuple[str, str, str]]]:
    """The examples that have words, and (example, word, reason) of what is left out before anything is run.

    words: None for those of ``meta``: "subject", "reference" and "word", which is the relation's (none where it is empty).
    Raises KeyError for an id that no example has, naming the nearest; ValueError for ids that stand twice, for what is no
    text, and where no examples or words were given.
    """
    if not examples:
        raise ValueError("no examples were given")
    ids = [example.id for example in examples]
    if twice := [one for one, times in Counter(ids).items() if times > 1]:
        raise ValueError(f"{twice[0]!r} is the id of {ids.count(twice[0])} examples; ids must differ")
    known = set(ids)
    for name in words or ():
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(ids), n=3, cutoff=0.4) or sorted(ids)[:3]
            raise KeyError(f"words were given for {name!r}, which no example is called; nearest: {', '.join(map(repr, near))}")
    found, left_out = [], []
    for example in examples:
        own = dict(words.get(example.id, {})) if words is not None else _of_meta(example)
        if wrong := [role for role, word in own.items() if not isinstance(word, str)]:
            raise ValueError(f"the {wrong[0]} of {example.id!r} is {own[wrong[0]]!r}; a word or phrase is wanted")
        if words is None and not own:
            left_out.append((example.id, "", "its meta names no words: subject, reference or word"))
        if part == "answer" and not (example.answer or "").strip():
            left_out += [(example.id, word, "it has no answer to force") for word in own.values()]
        elif own:
            found.append(Asked(example, own))
    if not found and not left_out:
        raise ValueError("no words were given for any of the examples")
    return found, left_out


def find(vlm: VLM, chunk: Sequence[Asked], row: Row, part: Part, system: str | None) -> Found:
    """Encode these examples and find the tokens of their words; what has no tokens or no grid to look at is left out."""
    batch = vlm.encode([one.example for one in chunk], system, answers=part == "answer")
    found = Found(batch, [])
    for one, spans in zip(chunk, batch.spans, strict=True):
        found.words.append([])
        if spans.grid is None:
            reason = f"its {len(spans.vision)} vision tokens have no grid to draw a map on"
            found.left_out += [(one.example.id, word, reason) for word in one.words.values()]
            continue
        for role, word in one.words.items():
            try:
                found.words[-1].append((role, word, tokens_of(spans, word, row, part)))
            except KeyError as error:
                found.left_out.append((one.example.id, word, error.args[0]))
    return found


def tokens_of(spans: Spans, word: str, row: Row, part: Part) -> list[int]:
    """Indices of the tokens whose attention is meant: those of the word, or the one before it, whose output decides on it.

    Raises KeyError for a word that is not in the text.
    """
    tokens = spans.word(word, part=part).tolist()
    return tokens if row == "query" else [tokens[0] - 1]


def check(**choices: tuple[str, tuple[str, ...]]) -> None:
    """Raises ValueError for a value that is not among the legal ones."""
    for name, (value, legal) in choices.items():
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; one of {', '.join(map(repr, legal))}")


def _of_meta(example: Example) -> dict[str, str]:
    return {role: word for role, name in ROLES.items() if (word := str(example.meta.get(name) or "").strip())}
