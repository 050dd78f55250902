"""Swap pairs: two questions about one picture that differ in the order of subject and reference, so that their answers differ.

"where is the red circle compared to the blue square ?" (left), "where is the blue square compared to the red circle ?" (right).
The record that every source of pairs yields (``worlds/lab_pairs.py``, ``sources/swap_pairs.py``) and every swap probe takes. A
quad asks about the same two objects of one scene vertically and by distance. Knows words; knows nothing of models and files.
"""

from __future__ import annotations

from dataclasses import dataclass

from spatialprobes.examples import Example

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
