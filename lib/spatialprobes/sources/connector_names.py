"""What the connector study calls its models and pictures, and the order in which it keeps tokens.

The study hooked the connector itself: what it calls E_pre is our site "pre" of LLaVA and both Qwens, but "pre_normed" of Idefics2
(`SITES`), and Qwen2.5-VL's tokens stand in the order of the tower's windows. Knows no files and no models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int

MODELS = {
    "llava": "llava-hf/llava-1.5-7b-hf",
    "idefics2": "HuggingFaceM4/idefics2-8b",
    "qwen2.5vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3.5": "Qwen/Qwen3.5-9B",
}
SITES = {"llava": "pre", "idefics2": "pre_normed", "qwen2.5vl": "pre", "qwen3.5": "pre"}
SHAPES = {  # [token, width] before and behind the connector, of pictures squashed to 336 x 336 pixels
    "llava": ((576, 1024), (576, 4096)),
    "idefics2": ((576, 1152), (64, 4096)),
    "qwen2.5vl": ((576, 1280), (144, 3584)),
    "qwen3.5": ((400, 1152), (100, 4096)),
}
MERGE = {"llava": 1, "idefics2": 1, "qwen2.5vl": 2, "qwen3.5": 2}  # side of the square of patches that becomes one token
GRIDLESS = ("idefics2",)  # behind the connector: latents
WINDOWED = {"qwen2.5vl": 4}  # cells along a window of the tower, in whose order tokens are kept: 112 pixels of 28


def hub_id(name: str) -> str:
    """The hub id of one of the study's short names; any other name as it is."""
    return MODELS.get(name, name)


def short(name: str) -> str:
    """The study's name of a model given by its hub id; any other name as it is."""
    return next((known for known, hub in MODELS.items() if hub == name), name)


def stem(key: str) -> str:
    """The study's key of a picture: its file's name without folder and suffix ("00000/000010000.jpg" is "000010000")."""
    return PurePosixPath(key).stem


@dataclass(frozen=True)
class Alignment:
    """keys: those in both, sorted. only_first, only_second: those that are in one alone, sorted."""

    keys: list[str]
    only_first: list[str]
    only_second: list[str]

    def __str__(self) -> str:
        def named(keys: list[str]) -> str:
            return f"{len(keys):,}" + (f" ({', '.join(keys[:5])}{', ...' * (len(keys) > 5)})" if keys else "")

        first, second = named(self.only_first), named(self.only_second)
        return f"{len(self.keys):,} keys in both; in the first alone {first}, in the second alone {second}"


def align(first: Sequence[str], second: Sequence[str]) -> Alignment:
    """Which keys two sets of pictures share, and which they don't.

    Raises ValueError for a key that is no string (a table that reads "000010000" as a number loses its zeros), for one that
    stands twice on a side, and where none is shared.
    """
    for keys in (first, second):
        if wrong := [key for key in keys if not isinstance(key, str)]:
            raise ValueError(f"keys are strings; {wrong[0]!r} is {type(wrong[0]).__name__}: read the column as text")
        if twice := repeated(keys):
            raise ValueError(f"{len(twice):,} keys stand twice, first {twice[0]!r}")
    both = set(first) & set(second)
    if not both:
        shown = " and ".join(f"{len(keys):,} ({', '.join(map(repr, list(keys)[:2]))}, ...)" for keys in (first, second))
        raise ValueError(f"no key is in both, of {shown}")
    return Alignment(sorted(both), sorted(set(first) - both), sorted(set(second) - both))


def repeated(keys: Sequence[str]) -> list[str]:
    """Keys that stood there before, in order."""
    seen: set[str] = set()
    found = []
    for key in keys:
        if key in seen:
            found.append(key)
        seen.add(key)
    return found


def class_tokens(tokens: int) -> int:
    """How many of a picture's tokens are a class token, by the study's rule of the perfect square: 0 or 1, then the first.

    Our own extraction never has one: it does not pass the connector. Raises ValueError where neither the number of tokens nor one
    less is a square, as of a grid that is none.
    """
    for before in (0, 1):
        if math.isqrt(tokens - before) ** 2 == tokens - before:
            return before
    raise ValueError(
        f"{tokens} tokens are neither a square number nor one more, so whether the first is a class token is not known"
    )


def window_order(grid: tuple[int, int], window: int) -> Int[np.ndarray, " cell"]:
    """The raster index of the cell at each place, where cells go window by window (window x window, smaller at the edges)."""
    cells = np.arange(math.prod(grid)).reshape(grid)
    rows, columns = (range(0, size, window) for size in grid)
    return np.concatenate([cells[r : r + window, c : c + window].ravel() for r in rows for c in columns])


def stored_order(model: str, tokens: int, merged: int = 1) -> Int[np.ndarray, " token"] | None:
    """The token, in our order, at each place of the study's files; None where both are the same.

    merged: tokens that become one behind the connector, and stand together. Raises ValueError for a windowed model whose cells
    are no square grid.
    """
    if model not in WINDOWED:
        return None
    side = math.isqrt(tokens // merged)
    if side**2 * merged != tokens:
        raise ValueError(f"{model}: {tokens} tokens are no square grid, so the order of its windows is not known")
    cells = window_order((side, side), WINDOWED[model])
    return (cells[:, None] * merged + np.arange(merged)).ravel()
