"""What a model said about a swap pair: the expected word, its opposite, or neither, as far as its text tells.

Two readings: `check`, by whole words, with what is not clear left unparsed; and `as_published`, the study's substring search,
kept so that its numbers can be compared. Knows words; knows nothing of models.
"""

from __future__ import annotations

import re

from spatialprobes.pairs import CATEGORIES, OPPOSITE
from spatialprobes.parsing import NEGATIONS

# The study's synonyms; it searches for substrings.
PUBLISHED: dict[str, tuple[str, ...]] = {
    "left": ("left",),
    "right": ("right",),
    "above": ("above",),
    "under": ("under", "below", "beneath"),
    "far": ("far", "distant"),
    "close": ("close", "near", "nearby"),
}
# Whole words: the same, and the forms that a comparison of two things takes. Superlatives ("leftmost", "closest") point out an
# object more often than they relate two, so they say nothing here.
WORDS: dict[str, tuple[str, ...]] = {
    **PUBLISHED,
    "under": (*PUBLISHED["under"], "underneath"),
    "far": (*PUBLISHED["far"], "farther", "further"),
    "close": (*PUBLISHED["close"], "closer", "nearer"),
}
DENIALS = rf"{NEGATIONS}|\brather\s+than\b|\binstead\s+of\b"
SENTENCE_ENDS = r"[.;:!?\n]"
JOINED = r"\s*(?:,\s*)?(?:/|\b(?:or|and)\b)[^.;:!?\n,]*"  # "left or right", "left and to the right"


def check(text: str, expected: str) -> bool | None:
    """Whether the text says what was expected; None where that cannot be told.

    The earliest whole word for either answer counts, in any case: see `WORDS`. Unparsed are a text with no such word; one that
    denies something in the sentence of that word ("not left", "isn't to the left", "right rather than left"), but for a "no,"
    in front; and one that joins both answers ("left or right").
    Raises ValueError for an expected word that is none of `WORDS`.
    """
    found = said(text, expected)
    return None if found is None else found == meaning(expected)


def said(text: str, expected: str) -> str | None:
    """The category that the text names, of the two that the expected word belongs to; None where `check` cannot tell."""
    one = meaning(expected)
    other = OPPOSITE[one]
    text = text.lower().replace("’", "'")
    of = {word: category for category in (one, other) for word in WORDS[category]}
    found = list(re.finditer(rf"\b(?:{'|'.join(sorted(of, key=len, reverse=True))})\b", text))
    if not found:
        return None
    first = found[0]
    answer = of[first[0]]
    start = max((end.end() for end in re.finditer(SENTENCE_ENDS, text[: first.start()])), default=0)
    stop = re.search(SENTENCE_ENDS, text[first.end() :])
    sentence = text[start : len(text) if stop is None else first.end() + stop.start()]
    if re.search(DENIALS, re.sub(r"^\s*no\s*,", "", sentence)):
        return None
    against = next((match for match in found if of[match[0]] != answer), None)
    if against is not None and re.fullmatch(JOINED, text[first.end() : against.start()]):
        return None
    return answer


def as_published(text: str, expected: str) -> bool:
    """The study's check: the expected word or a synonym is somewhere in the text, before any opposite or synonym of that.

    Substrings count: "leftover" says left, "upright" right, "farther" far, and "not left" says left.
    Raises ValueError for an expected word that is none of `WORDS`.
    """
    one = meaning(expected)
    text = text.lower()
    place, against = (_earliest(text, PUBLISHED[category]) for category in (one, OPPOSITE[one]))
    return place is not None and (against is None or place < against)


def meaning(word: str) -> str:
    """The category of an answer's word. Raises ValueError for a word that is none of `WORDS`."""
    plain = word.strip().lower()
    for category in CATEGORIES:
        if plain in WORDS[category]:
            return category
    legal = ", ".join(one for category in CATEGORIES for one in WORDS[category])
    raise ValueError(f"expected answer {word!r} is none of {legal}")


def _earliest(text: str, words: tuple[str, ...]) -> int | None:
    return min((place for word in words if (place := text.find(word)) >= 0), default=None)
