"""From free text to one of a question's choices, or to "could not tell".

Knows words alone. What is not clearly one choice is left unparsed and counted, never guessed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence

NEGATIONS = r"\b(?:not|never|no|neither|nor|without|cannot|\w+n['’]t)\b"
CLAUSE_ENDS = r"[.;:!?,\n]|\b(?:but|not|instead|rather)\b"


def parse(text: str, choices: Sequence[str]) -> str | None:
    """The choice that the text gives, or None.

    Choices are matched as whole words, without regard to case, hyphens and white space counting alike, the longest at each place.
    The earliest wins, unless another one follows in its clause ("left or right"); a choice after a negation in its clause ("not
    left") is none. Clauses end at punctuation, "but", "not", "instead" and "rather".
    Raises ValueError where there are no choices.
    """
    if not choices:
        raise ValueError("parse needs at least one choice")
    found = _not_negated(text, _matches(text, choices))
    if not found:
        return None
    first = found[0]
    for other in found[1:]:
        if other[2] != first[2]:
            between = text[first[1] : other[0]]
            return first[2] if re.search(CLAUSE_ENDS, between, re.IGNORECASE) else None
    return first[2]


def plain(text: str) -> str:
    """Lower case, single spaces, no outer punctuation: for answers that have no choices."""
    return " ".join(text.lower().split()).strip(" .,;:!?\"'")


def _matches(text: str, choices: Sequence[str]) -> list[tuple[int, int, str]]:
    """(start, end, choice) in order; where choices overlap, the longest from the earliest start."""
    found = []
    for choice in choices:
        words = re.split(r"[\s-]+", choice.strip())
        begins = r"(?<![\w])" if words[0] or len(words) == 1 else r"(?<![\w])(?<![\s-][\s-])"  # "-1": not anywhere in a gap
        pattern = begins + r"[\s-]+".join(map(re.escape, words)) + r"(?![\w])"
        found += [(match.start(), match.end(), choice) for match in re.finditer(pattern, text, re.IGNORECASE)]
    kept: list[tuple[int, int, str]] = []
    for match in sorted(found, key=lambda match: (match[0], -match[1])):
        if not kept or match[0] >= kept[-1][1]:
            kept.append(match)
    return kept


def _not_negated(text: str, matches: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Those that no negation precedes in their clause. Clauses and negations are found once, for texts of any length."""
    clauses = [0, *(end.end() for end in re.finditer(r"[.;:!?,\n]|\bbut\b", text, re.IGNORECASE))]
    spans = [negation.span() for negation in re.finditer(NEGATIONS, text, re.IGNORECASE)]
    starts, ends = [-1, *(start for start, _ in spans)], [-1, *(end for _, end in spans)]

    def negated(at: int) -> bool:
        clause, latest = clauses[bisect_right(clauses, at) - 1], starts[bisect_right(ends, at) - 1]
        return latest >= clause

    return [match for match in matches if not negated(match[0])]
