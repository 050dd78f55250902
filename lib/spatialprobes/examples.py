"""The record that every source of data yields and every probe takes.

Knows nothing of models, prompts or files formats; a source (``worlds/``, ``sources/``) fills it in, ``VLM.encode`` reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

T = TypeVar("T")


@dataclass(frozen=True)
class Object:
    """One thing in a picture. All lengths are fractions of the picture, x to the right, y down.

    name: the words that refer to it ("red circle").
    centre: (x, y).
    box: (x_min, y_min, x_max, y_max), edges of its visible extent.
    depth: distance from the viewer in [0, 1], 0 nearest; None where unknown.
    mask: bool [grid_h, grid_w], the cells of the model's patch grid that it covers; None where unknown.
    """

    name: str
    centre: tuple[float, float]
    box: tuple[float, float, float, float]
    depth: float | None = None
    mask: np.ndarray | None = None


@dataclass(frozen=True)
class Example:
    """A picture, perhaps with a question.

    id: unique within its source.
    image: a path, a PIL image, or a function without arguments that returns a PIL image (decoded only when it is used).
    question, answer: the words; answer is the expected one. None where there is none.
    choices: the legal answers, where the question has a closed set.
    category: the finest label of the question ("left", "colour"); group: what it is pooled by ("relation.horizontal").
    cluster: names what is resampled together (the picture).
    twin: id of the question with subject and reference swapped.
    """

    id: str
    image: Path | Image.Image | Callable[[], Image.Image]
    question: str | None = None
    answer: str | None = None
    choices: list[str] | None = None
    category: str = ""
    group: str = ""
    cluster: str = ""
    objects: list[Object] = field(default_factory=list)
    twin: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)


def batches(items: Sequence[T], batch_size: int) -> list[list[T]]:
    """Examples, or what stands for them, in their order, batch_size at a time; the last batch may be smaller.

    Raises ValueError for a batch_size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    return [list(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
