"""Quads from a table of swap pairs: the same two objects of one picture asked vertically and by distance.

Which objects a row asks about stands in a cache (``swap_cache.py`` describes it) or follows from its words (`by_words`).
Knows pairs and objects; knows nothing of tables, pixels and models.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from spatialprobes.examples import Example, Object
from spatialprobes.pairs import GROUPS, OPPOSITE, Pair, Quad, named
from spatialprobes.sources.swap_cache import KEYS, ROLES, Entry, read_cache

BOX_DIGITS = 4  # of a fraction: boxes that agree to this are one object's


@dataclass(frozen=True)
class _Asked:
    """A pair and what tells its subject and its reference from anything else in the picture."""

    pair: Pair
    subject: Hashable
    reference: Hashable


def read_quads(
    pairs: Iterable[Pair], cache: str | Path, *, vertical: str | None = None, least: float = 0.05
) -> tuple[list[Quad], pd.DataFrame]:
    """Quads of the vertical and distance pairs that ask about the same two objects of one picture, and what makes none.

    The objects of each pair are those of its entry in the cache; pairs are matched within their cluster, each taken once, and the
    distance pair is turned around (id "<id>:turned") where its roles are the vertical one's exchanged. Examples get the entry's
    objects and share the picture. id: "<vertical id>+<distance id>".
    vertical: a question such as "Is the {subject} above or under the {reference}?", asked beside every distance pair that no
    vertical pair goes with, its answer from the middles of the boxes; only where they differ by `least` (fraction of the height).
    The table says [line, problem]: rows without an entry, with a broken one, or left alone; line 0 stands for the cache itself.
    """
    entries, broken = read_cache(Path(cache))
    problems: list[tuple[int, str]] = [(0, problem) for problem in broken]
    asked = []
    for pair in pairs:
        if pair.group not in ("vertical", "distance"):
            continue
        try:
            asked.append(_with_objects(pair, _entry(pair, entries)))
        except ValueError as error:
            problems.append((_line(pair), str(error)))
    quads, alone = _matched(asked)
    for one in alone:
        if vertical is not None and one.pair.group == "distance":
            try:
                quads.append(_quad(_Asked(_ask_vertical(one, vertical, least), one.subject, one.reference), one))
                continue
            except ValueError as error:
                problems.append((_line(one.pair), str(error)))
        else:
            problems.append((_line(one.pair), _lonely(one.pair)))
    return quads, pd.DataFrame(problems, columns=["line", "problem"])


def by_words(pairs: Iterable[Pair]) -> tuple[list[Quad], pd.DataFrame]:
    """As `read_quads`, without a cache: two pairs ask about the same objects if their words for them are the same."""
    asked, problems = [], []
    for pair in pairs:
        if pair.group not in ("vertical", "distance"):
            continue
        subject, reference = (str(pair.original.meta.get(role) or "").casefold() for role in ROLES)
        if subject and reference and subject != reference:
            asked.append(_Asked(pair, subject, reference))
        else:
            problems.append((_line(pair), "its subject and reference are not known"))
    quads, alone = _matched(asked)
    problems.extend((_line(one.pair), _lonely(one.pair)) for one in alone)
    return quads, pd.DataFrame(problems, columns=["line", "problem"])


def _entry(pair: Pair, entries: dict[tuple[str, str], Entry | str]) -> Entry:
    """The pair's entry, by index, else by question_id. Raises ValueError where there is none that is right."""
    keys = {key: str(pair.original.meta.get(key) or "") for key in KEYS}
    if not any(keys.values()):
        keys["index"] = pair.id
    found = next((entries[key] for key in keys.items() if key in entries), None)
    if found is None:
        raise ValueError(f"no entry in the cache of {' or '.join(f'{key} {value!r}' for key, value in keys.items() if value)}")
    if isinstance(found, str):
        raise ValueError(found)
    for key, value in keys.items():
        if value and found.keys.get(key, value) != value:
            raise ValueError(f"the cache's entry is of {key} {found.keys[key]!r}, the row of {value!r}")
    return found


def _with_objects(pair: Pair, entry: Entry) -> _Asked:
    """The pair with the entry's objects, and which two of them it asks about. Raises ValueError where these are not known."""
    one, other = (replace(member, objects=list(entry.objects)) for member in pair.members)
    things = entry.asked or tuple(named(one, role) for role in ROLES)
    for role, thing in zip(ROLES, things, strict=True):
        if thing is None:
            words, there = one.meta.get(role), ", ".join(each.name for each in entry.objects)
            raise ValueError(f"its {role} {words!r} is not one of the picture's objects: {there}")
    if _same(things[0]) == _same(things[1]):
        raise ValueError(f"its subject and reference are one object, {things[0].name!r}")
    words = tuple(_word(one, role, thing) for role, thing in zip(ROLES, things, strict=True))
    one = replace(one, meta=one.meta | dict(zip(ROLES, words, strict=True)))
    other = replace(other, meta=other.meta | dict(zip(ROLES, words[::-1], strict=True)))
    return _Asked(Pair(pair.id, one, other), *map(_same, things))


def _word(example: Example, role: str, thing: Object) -> str | None:
    """The question's words for an object: those known, else the object's name if it stands there."""
    said = thing.name if thing.name.casefold() in (example.question or "").casefold() else None
    return example.meta.get(role) or said


def _same(thing: Object) -> Hashable:
    return (thing.name.casefold(), *(round(float(side), BOX_DIGITS) for side in thing.box))


def _matched(asked: Sequence[_Asked]) -> tuple[list[Quad], list[_Asked]]:
    """Quads of the pairs that ask about the same two things of one picture, each taken once, in order; and those left alone."""
    waiting: dict[tuple[str, frozenset[Hashable]], dict[str, list[_Asked]]] = {}
    for one in asked:
        key = (one.pair.cluster, frozenset((one.subject, one.reference)))
        waiting.setdefault(key, {"vertical": [], "distance": []})[one.pair.group].append(one)
    quads, alone = [], []
    for groups in waiting.values():
        both = min(map(len, groups.values()))
        quads.extend(_quad(*couple) for couple in zip(groups["vertical"], groups["distance"], strict=False))
        alone.extend(one for group in groups.values() for one in group[both:])
    order = {one.pair.id: place for place, one in enumerate(asked)}
    return quads, sorted(alone, key=lambda one: order[one.pair.id])


def _quad(vertical: _Asked, distance: _Asked) -> Quad:
    pair = distance.pair if vertical.subject == distance.subject else _turned(distance.pair)
    image = vertical.pair.original.image  # one for all four, so that what is asked of one picture can be told by it
    shared = (replace(member, image=image) for member in pair.members)
    return Quad(f"{vertical.pair.id}+{distance.pair.id}", vertical.pair, Pair(pair.id, *shared))


def _turned(pair: Pair) -> Pair:
    """The pair with its two questions in the other order: of the opposite category."""
    id = f"{pair.id}:turned"
    names = (f"{id}:original", f"{id}:swapped")
    return Pair(id, replace(pair.swapped, id=names[0], twin=names[1]), replace(pair.original, id=names[1], twin=names[0]))


def _ask_vertical(distance: _Asked, template: str, least: float) -> Pair:
    """A vertical pair about the objects of a distance pair. Raises ValueError where they are too close in height."""
    one, other = distance.pair.members
    words = [one.meta[role] for role in ROLES]
    if None in words:
        raise ValueError("no vertical question: its words for subject and reference are not known")
    things = {_same(thing): thing for thing in one.objects}
    rise = things[distance.reference].centre[1] - things[distance.subject].centre[1]
    if abs(rise) < least:
        raise ValueError(
            f"no vertical question: its objects differ in height by {abs(rise):.3f} of the picture, less than {least}"
        )
    answer = GROUPS["vertical"][0 if rise > 0 else 1]
    id = f"{distance.pair.id}:vertical"
    members = []
    for member, example, said in (("original", one, answer), ("swapped", other, OPPOSITE[answer])):
        question = template.format(subject=example.meta["subject"], reference=example.meta["reference"])
        twin = f"{id}:{'swapped' if member == 'original' else 'original'}"
        kind = {"question": question, "answer": said, "category": said, "group": "vertical", "choices": list(GROUPS["vertical"])}
        members.append(replace(example, id=f"{id}:{member}", twin=twin, **kind))
    return Pair(id, *members)


def _lonely(pair: Pair) -> str:
    other = "distance" if pair.group == "vertical" else "vertical"
    return f"no {other} question about its two objects in the same picture"


def _line(pair: Pair) -> int:
    return int(pair.original.meta.get("line") or 0)
