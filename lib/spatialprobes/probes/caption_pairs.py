"""Captions that state a relation, taken apart: the two entities, the relation, and what is said when they are exchanged.

Two grammars are read. The published ShapeWorld caption ("there are two shapes a red circle and a blue square . ... the spatial
relation is left .") and one clause ("a red circle left of a blue square .", "is the red circle under the blue square ?"). Texts
are lower-cased first, as in the study. Knows words and characters, no tokens and no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.worlds.shapeworld_questions import ASKED, STATED

Range = tuple[int, int]
Form = Literal["as_stated", "published"]
Words = Literal["relation", "neutral"]


class Phrase(NamedTuple):
    """A relation as a text puts it: which one it is, the phrase that reverses it, and two that say nothing about direction.

    The neutral ones fit the same place in the sentence, and are known to the lab's models, which were trained on neither.
    """

    relation: str
    opposite: str
    neutral: str
    control: str


CLAUSE = {
    "to the left of": Phrase("left", "to the right of", "next to", "close to"),
    "to the right of": Phrase("right", "to the left of", "next to", "close to"),
    "left of": Phrase("left", "right of", "next to", "close to"),
    "right of": Phrase("right", "left of", "next to", "close to"),
    "above": Phrase("above", "under", "beside", "near"),
    "under": Phrase("below", "above", "beside", "near"),
    "below": Phrase("below", "above", "beside", "near"),
}
PUBLISHED = {
    "left": Phrase("left", "right", "adjacent", "near"),
    "right": Phrase("right", "left", "adjacent", "near"),
    "above": Phrase("above", "below", "adjacent", "near"),
    "below": Phrase("below", "above", "adjacent", "near"),
}
_WORD = r"(?!(?:left|right|above|under|below|or|and|is|are|not|to|of)\b)[\w-]+"  # "a circle is not" is no entity
_ENTITY = rf"(?:an?|the) (?:{_WORD} ){{0,3}}?{_WORD}"
_SAME = rf"(?:(?!there are two shapes|{STATED}).)*"  # what stands between, of one caption
_PUBLISHED = re.compile(
    rf"there are two shapes (?P<first>{_ENTITY}) and (?P<second>{_ENTITY}) ?\. {_SAME}"
    rf"{STATED} (?P<relation>{'|'.join(PUBLISHED)}) ?\."
)
_CLAUSE = re.compile(
    rf"(?:is |are )?(?P<first>{_ENTITY}) (?:is |are )?(?P<relation>{'|'.join(CLAUSE)}) (?P<second>{_ENTITY})(?: ?[.?])?"
)


@dataclass(frozen=True)
class Statement:
    """A text and the characters (start, end) of its parts.

    first, second: the entities in the order of their first mention, articles included. relation: the whole phrase ("left of").
    says: what the phrase says of the first to the second, and how it could be put otherwise.
    """

    text: str
    first: Range
    second: Range
    relation: Range
    says: Phrase

    def noun(self, which: Literal["first", "second"]) -> Range:
        """The entity without its article."""
        start, end = getattr(self, which)
        return self.text.index(" ", start) + 1, end

    def shape(self, which: Literal["first", "second"]) -> Range:
        """The entity's last word alone, its shape."""
        start, end = getattr(self, which)
        return self.text.rindex(" ", start, end) + 1, end

    def word(self) -> Range:
        """The word of the relation phrase that carries it: "left" of "left of" and of "to the left of"."""
        start, end = self.relation
        phrase = self.text[start:end].removesuffix(" of").removesuffix(" to")
        return start + phrase.rfind(" ") + 1, start + len(phrase)

    def of(self, span: Range) -> str:
        return self.text[slice(*span)]


@dataclass(frozen=True)
class CaptionPair:
    """A caption and its counterfactual: entities exchanged and the relation reversed, so that both say the same of a scene.

    id, cluster: the example's. relation: of the first to the second entity as the caption says: left, right, above or below.
    members: caption and counterfactual.
    """

    id: str
    cluster: str
    relation: str
    members: tuple[Statement, Statement]


def pairs(examples: Sequence[Example], *, form: Form = "as_stated", words: Words = "relation") -> list[CaptionPair]:
    """A pair for each example, of its ``meta["caption"]`` or else of its question.

    form: "as_stated", the example's own sentence; "published" puts the same entities and relation into the study's caption,
    whose relation stands behind both entities. words: "neutral" is the control, in which two words without a direction stand
    for the two that reverse each other: "adjacent" (in a clause "next to" or "beside") wherever left or above was said, "near"
    ("close to") wherever right or below was. Raises ValueError naming the first text that cannot be taken apart (`unparsed`
    lists all of them), and for an unknown choice.
    """
    for name, value, legal in (("form", form, get_args(Form)), ("words", words, get_args(Words))):
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; one of {', '.join(map(repr, legal))}")
    found = []
    for example in examples:
        statement = stated(example)
        if form == "published":
            statement = parse(_published(statement))
        members = (statement, counterfactual(statement))
        if words == "neutral":
            members = tuple(map(_without_direction, members))
        found.append(CaptionPair(example.id, example.cluster or example.id, statement.says.relation, members))
    return found


def _without_direction(statement: Statement) -> Statement:
    says = statement.says
    return reworded(statement, says.neutral if says.relation in ("left", "above") else says.control)


def unparsed(examples: Sequence[Example]) -> pd.DataFrame:
    """The examples of which `pairs` would make no pair: [example, reason]."""
    rows = []
    for example in examples:
        try:
            stated(example)
        except ValueError as error:
            rows.append({"example": example.id, "reason": str(error)})
    return pd.DataFrame(rows, columns=["example", "reason"])


def stated(example: Example) -> Statement:
    """What an example's caption, or else its question, states.

    Raises ValueError where it cannot be taken apart, or names other entities than ``meta["subject"]`` and ``meta["reference"]``.
    """
    text = example.meta.get("caption") or example.question or ""
    try:
        statement = parse(text)
    except ValueError as error:
        raise ValueError(f"example {example.id!r}: {error}") from error
    for which, role in (("first", "subject"), ("second", "reference")):
        known, named = example.meta.get(role), statement.of(statement.noun(which))
        if known is not None and known.lower() != named:
            raise ValueError(f"example {example.id!r}: {text!r} names {named!r} where its {role} is {known!r}")
    return statement


def parse(text: str) -> Statement:
    """The parts of a caption or a clause, lower-cased. Raises ValueError for any other text."""
    text = " ".join(text.lower().split())
    if found := _PUBLISHED.fullmatch(text):
        known = PUBLISHED
    elif found := _CLAUSE.fullmatch(text):
        known = CLAUSE
    else:
        raise ValueError(
            f"{text!r} states no relation of two entities; a published ShapeWorld caption, or one clause as "
            f"'a red circle left of a blue square .', with one of {', '.join(CLAUSE)}"
        )
    return Statement(text, *(found.span(part) for part in ("first", "second", "relation")), known[found["relation"]])


def counterfactual(statement: Statement) -> Statement:
    """Entities exchanged and the relation reversed; whatever else the text says is kept."""
    parts = {
        statement.first: statement.of(statement.second),
        statement.second: statement.of(statement.first),
        statement.relation: statement.says.opposite,
    }
    return parse(_replaced(statement.text, parts))


def reworded(statement: Statement, phrase: str) -> Statement:
    """The same with another relation phrase; `says` stays what it was made from."""
    start, end = statement.relation
    later = len(phrase) - (end - start)
    first, second = (
        (low + later, high + later) if low >= end else (low, high) for low, high in (statement.first, statement.second)
    )
    text = _replaced(statement.text, {statement.relation: phrase})
    return Statement(text, first, second, (start, start + len(phrase)), statement.says)


def _replaced(text: str, parts: dict[Range, str]) -> str:
    for (start, end), words in sorted(parts.items(), reverse=True):
        text = text[:start] + words + text[end:]
    return text


def _published(statement: Statement) -> str:
    nouns = [statement.of(statement.noun(which)) for which in ("first", "second")]
    first, second = (f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in nouns)
    return f"there are two shapes {first} and {second} . {ASKED} {STATED} {statement.says.relation} ."
