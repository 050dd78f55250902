"""Swap pairs: two questions about one picture that differ in the order of subject and reference, so that their answers differ.

"where is the red circle compared to the blue square ?" (left), "where is the blue square compared to the red circle ?" (right).
The record that every source of pairs yields (``worlds/lab_pairs.py``, ``sources/swap_pairs.py``) and every swap probe takes. A
quad asks about the same two objects of one scene vertically and by distance. Knows words; knows nothing of models and files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from spatialprobes.examples import Example, Object
from spatialprobes.images import open_image

if TYPE_CHECKING:
    from PIL import Image

# Each group of categories, the canonical one first: deltas of the other one are turned around before a group is pooled.
GROUPS: dict[str, tuple[str, str]] = {
    "horizontal": ("left", "right"),
    "vertical": ("above", "under"),
    "distance": ("far", "close"),
}
CATEGORIES: tuple[str, ...] = tuple(category for pair in GROUPS.values() for category in pair)
GROUP_OF: dict[str, str] = {category: group for group, pair in GROUPS.items() for category in pair}
OPPOSITE: dict[str, str] = {one: other for a, b in GROUPS.values() for one, other in ((a, b), (b, a))}
SIGN: dict[str, int] = {category: 1 if category == pair[0] else -1 for pair in GROUPS.values() for category in pair}


@dataclass(frozen=True)
class Pair:
    """One pair. Its category is the answer to the original question, its group that of the category.

    original, swapped: two Examples with ids ``<id>:original`` and ``<id>:swapped``, one picture and one cluster, each the
    other's twin; ``category`` of each is that of its own answer, ``choices`` the two answers of the group; ``meta`` holds the
    words "subject" and "reference" where they are known.
    """

    id: str
    original: Example
    swapped: Example

    @property
    def category(self) -> str:
        return self.original.category

    @property
    def group(self) -> str:
        return GROUP_OF[self.category]

    @property
    def cluster(self) -> str:
        return self.original.cluster or self.id

    @property
    def members(self) -> tuple[Example, Example]:
        return self.original, self.swapped


@dataclass(frozen=True)
class Quad:
    """The same two objects of one scene, in the same roles, asked vertically and by distance."""

    id: str
    vertical: Pair
    distance: Pair

    @property
    def cluster(self) -> str:
        return self.vertical.cluster


def named(example: Example, role: str) -> Object | None:
    """The object that the example's word in a role ("subject", "reference") stands for: by its name, or by the only one that has
    all of its words ("cross", "red one"). None where there is no such object, or more than one."""
    words = str(example.meta.get(role) or "")
    same = [thing for thing in example.objects if thing.name == words]
    if not same:
        wanted = {word for word in words.lower().split() if word not in ("a", "an", "the", "one")}
        same = [thing for thing in example.objects if wanted and wanted <= set(thing.name.lower().split())]
    return same[0] if len(same) == 1 else None


def first_of_each(pairs: Iterable[Pair], count: int) -> list[Pair]:
    """The first `count` pairs of each category, in the order given."""
    left, found = dict.fromkeys(CATEGORIES, max(count, 0)), []
    for pair in pairs:
        if left[pair.category] > 0:
            left[pair.category] -= 1
            found.append(pair)
        if not any(left.values()):  # pairs of a table are read from the disk one by one
            break
    return found


def with_pictures(pairs: Sequence[Pair], change: Callable[[Image.Image], Image.Image]) -> list[Pair]:
    """The pairs with every picture changed when it is used; what shared one picture still does."""
    made: dict[int, Callable[[], Image.Image]] = {}  # by the identity of what is shown, which the pairs keep alive

    def shown(example: Example) -> Example:
        return replace(example, image=made.setdefault(id(example.image), partial(_changed, change, example.image)))

    return [replace(pair, original=shown(pair.original), swapped=shown(pair.swapped)) for pair in pairs]


def quads_with_pictures(quads: Sequence[Quad], change: Callable[[Image.Image], Image.Image]) -> list[Quad]:
    """As `with_pictures`."""
    changed = iter(with_pictures([pair for quad in quads for pair in (quad.vertical, quad.distance)], change))
    return [replace(quad, vertical=next(changed), distance=next(changed)) for quad in quads]


def _changed(change: Callable[[Image.Image], Image.Image], image: object) -> Image.Image:
    return change(open_image(image))
