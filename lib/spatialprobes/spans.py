"""Where the parts of a prompt are among its tokens: after image expansion, after padding.

Knows indices and character offsets, no model. Every token that is not padding belongs to exactly one part: bos, system, vision,
user, answer or role (the template's own words: turn markers, separators, end of turn).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spatialprobes.families import Frame
from spatialprobes.prompts import Prompt

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

PARTS = ("bos", "system", "vision", "user", "role", "answer")


def find_spans(
    example: str,
    prompt: Prompt,
    offsets: list[tuple[int, int]],
    has_bos: bool,
    before: int,
    picture: list[bool],
    start: int,
    length: int,
    grid: tuple[int, int] | None,
    frame: Frame,
) -> Spans:
    """Spans of one prompt.

    offsets: characters of each token of the text before the placeholder was expanded. has_bos: the first of them is bos.
    before: how many precede the placeholder. picture: for each token in its place, whether it is a vision token.
    start: tokens of padding on the left. length: tokens of the row.
    """
    first, after = start + before, start + before + len(picture)
    return Spans(
        example,
        vision=torch.tensor([first + i for i, vision in enumerate(picture) if vision], dtype=torch.long),
        grid=grid,
        frame=frame,
        start=start,
        length=length,
        text=prompt.text,
        has_bos=has_bos,
        beside=[first + i for i, vision in enumerate(picture) if not vision],
        ranges={"system": prompt.system, "user": prompt.user, "answer": prompt.answer},
        tokens=[*enumerate(offsets[:before], start), *enumerate(offsets[before + 1 :], after)],
    )


def _of_text(part: str) -> property:
    return property(lambda spans: spans._text_parts[part])


@dataclass(frozen=True)
class Spans:
    """Token indices of one example in its batch: `bos`, `system`, `vision`, `user`, `role` and `answer`.

    Each is a sorted LongTensor, empty where the part is absent; those of the text are made when one is first asked for.
    example: its id. grid: (rows, columns) of `vision` in raster order, None where vision tokens have no grid. frame: the map
    from fractions of the picture to fractions of what the model sees. start: the first token that is not padding.
    length: tokens of the row, padding included. text: the prompt before the picture's placeholder was expanded.
    has_bos: whether the first token is bos. beside: tokens in the placeholder's place that are not vision tokens.
    ranges: characters of the parts of the text. tokens: (index, characters) of each token of the text.
    """

    example: str
    vision: Int[Tensor, " vision"]
    grid: tuple[int, int] | None
    frame: Frame
    start: int
    length: int
    text: str
    has_bos: bool
    beside: list[int] = field(repr=False)
    ranges: dict[str, tuple[int, int]] = field(repr=False)
    tokens: list[tuple[int, tuple[int, int]]] = field(repr=False)

    bos, system, user, role, answer = map(_of_text, ("bos", "system", "user", "role", "answer"))

    @cached_property
    def _text_parts(self) -> dict[str, Int[Tensor, " token"]]:
        found: dict[str, list[int]] = {part: [] for part in PARTS if part != "vision"}
        found["role"] += self.beside
        for place, offset in self.tokens:
            part = next((part for part, span in self.ranges.items() if _overlap(offset, span)), "role")
            found["bos" if self.has_bos and place == self.start else part].append(place)
        return {part: torch.tensor(sorted(places), dtype=torch.long) for part, places in found.items()}

    def parts(self) -> dict[str, Int[Tensor, " token"]]:
        """All parts by name; together they are every token that is not padding, once."""
        return {part: getattr(self, part) for part in PARTS}

    def parted(self, before: int, end: int, length: int) -> Spans:
        """The same prompt, its picture ending before token `before`, and what follows, up to `end` as it was, before `length`.

        What questions about a picture share, and what they don't, may each be padded on the left (`prefix.prefill`).
        """
        after = int(self.vision[-1]) + 1

        def moved(place: int) -> int:
            return place + (before - after if place < after else length - end)

        return replace(
            self,
            vision=self.vision + before - after,
            start=moved(self.start),
            length=length,
            beside=[moved(place) for place in self.beside],
            tokens=[(moved(place), offset) for place, offset in self.tokens if place < end],
        )

    def word(self, word: str, occurrence: int = 0, part: str = "user") -> Int[Tensor, " token"]:
        """Every sub-token of a word or phrase, matched whole and without regard to case.

        occurrence: which one, from 0 (negative from the end). part: "user", "system" or "answer".
        Raises KeyError naming the words that are there.
        """
        if part not in self.ranges:
            raise KeyError(f"words are looked for in {', '.join(map(repr, self.ranges))}, not in {part!r}")
        low, high = self.ranges[part]
        text = self.text[low:high]
        found = occurrences(text, word)
        if not -len(found) <= occurrence < len(found):
            there = list(dict.fromkeys(re.findall(r"\w+(?:'\w+)?", text)))
            near = difflib.get_close_matches(word, there, n=1)
            hint = f"; nearest: {near[0]!r}" if near and not found else ""
            count = f"occurs {len(found)} times" if found else "is not"
            raise KeyError(f"{word!r} {count} in the {part} text of {self.example!r}{hint}; words there: {', '.join(there)}")
        return self.characters(*found[occurrence].span(), part)

    def characters(self, start: int, end: int, part: str = "user") -> Int[Tensor, " token"]:
        """Every token that holds one of the characters start..end (end not included) of a part's text."""
        low = self.ranges[part][0]
        span = (low + start, low + end)
        return torch.tensor([place for place, offset in self.tokens if _overlap(offset, span)], dtype=torch.long)

    def cell(self, x: float, y: float) -> tuple[int, int] | None:
        """(row, column) of the grid cell that shows this point of the picture (fractions, y down); None where it was cropped.

        Raises ValueError where the vision tokens have no grid.
        """
        rows, columns = self._grid()
        u, v = self.frame(x, y)
        if not (0 <= u <= 1 and 0 <= v <= 1):
            return None
        return min(int(v * rows), rows - 1), min(int(u * columns), columns - 1)

    def cells(self, box: tuple[float, float, float, float]) -> Bool[Tensor, "row column"]:
        """The cells that a box (x_min, y_min, x_max, y_max; fractions of the picture) reaches into.

        Raises ValueError where the vision tokens have no grid.
        """
        rows, columns = self._grid()
        (left, top), (right, bottom) = self.frame(*box[:2]), self.frame(*box[2:])
        row, column = torch.arange(rows), torch.arange(columns)
        down = (row < bottom * rows) & (row + 1 > top * rows)
        across = (column < right * columns) & (column + 1 > left * columns)
        return down[:, None] & across[None, :]

    def _grid(self) -> tuple[int, int]:
        if self.grid is None:
            raise ValueError(f"the {len(self.vision)} vision tokens of {self.example!r} have no grid")
        return self.grid


def occurrences(text: str, words: str) -> list[re.Match[str]]:
    """Where a word or phrase stands in a text, whole and without regard to case and width of gaps."""
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words.split())) + r"(?!\w)"
    return list(re.finditer(pattern, text, re.IGNORECASE)) if words.strip() else []


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[1] and b[0] < a[1]
