"""Subject and reference of a swap pair, found by what changes places between its two questions.

No list of phrasings: the two questions are P A M B S and P B M A S, whatever they say. Knows words in order, no grammar beyond
articles and the prepositions that mark a reference.
"""

from __future__ import annotations

import re

ARTICLES = ("a", "an", "the")
TO_REFERENCE = ("to", "of", "from", "than", "with", "against")  # "compared to B, is A far ?": B is named first, A is the subject
MAX_WORDS = 60  # of both names together
_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")

Span = tuple[int, int]


def roles(original: str, swapped: str) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """((subject, reference) of the original question, the same of the swapped one), as they are written there, articles left out.

    The swapped question's subject is the original's reference. The subject is the one named first, unless a preposition of
    `TO_REFERENCE` stands before the first name and none before the second. None where the questions do not differ by two names
    that changed places, or where a preposition stands before both.
    """
    one, other = ([(match[0], match.span()) for match in _WORD.finditer(text)] for text in (original, swapped))
    found = _exchanged([word.casefold() for word, _ in one], [word.casefold() for word, _ in other])
    if found is None:
        return None
    (start, end), (begin, stop) = found
    words = [word.casefold() for word, _ in one]
    before = [_before(words, start) in TO_REFERENCE, _before(words, begin) in TO_REFERENCE]
    if all(before):
        return None
    first, second = _text(original, one, (start, end)), _text(original, one, (begin, stop))
    # in the swapped question, the second name stands where the first one stood
    width = stop - begin
    shift = width - (end - start)
    first_there = _text(swapped, other, (start, start + width))
    second_there = _text(swapped, other, (begin + shift, stop))
    return ((second, first), (second_there, first_there)) if before[0] else ((first, second), (first_there, second_there))


def _exchanged(one: list[str], other: list[str]) -> tuple[Span, Span] | None:
    """The two stretches of `one` that changed places in `other`, as long as they can be; None if there are no such two."""
    if len(one) != len(other) or sorted(one) != sorted(other) or one == other:
        return None
    head = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    tail = len(one) - next(i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=True)) if a != b)
    x, y = one[head:tail], other[head:tail]
    lengths = ((a, both - a) for both in range(2, min(len(x), MAX_WORDS)) for a in range(1, both))
    for a, b in lengths:  # the shortest names first, so that what is between them is as long as it can be
        if x[:a] == y[-a:] and x[-b:] == y[:b] and x[a:-b] == y[b:-a]:
            break
    else:
        return None
    start, end, begin, stop = head, head + a, tail - b, tail
    while end < begin and stop < len(one) and one[end] == one[stop] and _word(one, end):
        end, stop = end + 1, stop + 1  # words that both names end in: "the red cup ... the blue cup"
    shared = 0  # and those that both begin with, but for the small words before a name
    while (
        shared < min(start, begin - 1 - end)
        and one[start - shared - 1] == one[begin - shared - 1]
        and _word(one, begin - shared - 1)
    ):
        shared += 1
    while shared and one[begin - shared] in (*ARTICLES, *TO_REFERENCE):
        shared -= 1
    return (start - shared, end), (begin - shared, stop)


def _word(words: list[str], place: int) -> bool:
    return words[place][0].isalnum()


def _before(words: list[str], start: int) -> str:
    """The word before a name, articles passed over."""
    start -= 1
    while start >= 0 and words[start] in ARTICLES:
        start -= 1
    return words[start] if start >= 0 else ""


def _text(text: str, words: list[tuple[str, Span]], span: Span) -> str:
    start, end = span
    while start < end - 1 and words[start][0].casefold() in ARTICLES:
        start += 1
    return text[words[start][1][0] : words[end - 1][1][1]]
