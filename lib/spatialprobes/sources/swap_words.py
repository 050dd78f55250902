"""Subject and reference of a swap pair, found by what changes places between its two questions.

No list of phrasings: the two questions are P A M B S and P B M A S, whatever they say. Knows words in order, no grammar beyond
articles and the prepositions that mark a reference.
"""

from __future__ import annotations

import re

ARTICLES = ("a", "an", "the")
TO_REFERENCE = ("to", "of", "from", "than", "with", "against")  # "compared to B, is A far ?": B is named first, A is the subject
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
    if not all((first, second, first_there, second_there)):
        return None
    return ((second, first), (second_there, first_there)) if before[0] else ((first, second), (first_there, second_there))


def _exchanged(one: list[str], other: list[str]) -> tuple[Span, Span] | None:
    """The two stretches of `one` that changed places in `other`, as long as they can be; None if there are no such two."""
    if len(one) != len(other) or sorted(one) != sorted(other) or one == other:
        return None
    head = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    tail = len(one) - next(i for i, (a, b) in enumerate(zip(one[::-1], other[::-1], strict=True)) if a != b)
    x, y = one[head:tail], other[head:tail]
    lengths = ((a, b) for both in range(2, len(x)) for a in range(1, both) for b in (both - a,))
    for a, b in lengths:  # the shortest names first, so that what is between them is as long as it can be
        if x[:a] == y[-a:] and x[-b:] == y[:b] and x[a:-b] == y[b:-a]:
            break
    else:
        return None
    start, end, begin, stop = head, head + a, tail - b, tail
    while end < begin and stop < len(one) and one[end] == one[stop] and one[end].isalnum():
        end, stop = end + 1, stop + 1  # words that both names end in: "the red cup ... the blue cup"
    while end < begin and start > 0 and one[start - 1] == one[begin - 1] and one[begin - 1].isalnum() and end < begin - 1:
        start, begin = start - 1, begin - 1  # and those that both begin with
    return (start, end), (begin, stop)


def _before(words: list[str], start: int) -> str:
    """The word before a name, articles (also those that the name itself begins with) passed over."""
    start -= 1
    while start >= 0 and words[start] in ARTICLES:
        start -= 1
    return words[start] if start >= 0 else ""


def _text(text: str, words: list[tuple[str, Span]], span: Span) -> str:
    start, end = span
    while start < end and words[start][0].casefold() in ARTICLES:
        start += 1
    return text[words[start][1][0] : words[end - 1][1][1]] if start < end else ""
