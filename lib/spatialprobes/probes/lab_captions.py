"""What a caption of a lab scene gets right, exactly: objects, their colours and shapes, and where it puts them.

The lab's captions have one grammar and its scenes are known, so nothing stands between a caption and the truth. Read in two ways:
objects and clauses wherever they stand in the text, so that broken captions count for what they say, and the whole caption by
the grammar (`parsed`). Knows words and scenes; knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.worlds.lab import COLOURS, SHAPES, Scene
from spatialprobes.worlds.lab_captions import lab_captioned
from spatialprobes.worlds.lab_language import RELATION_WORDS, Clause, parse_caption, true_of

__all__ = ["SCORES", "graded", "lab_captioned", "measure"]

SCORES = (
    "lab_recall",
    "lab_precision",
    "lab_invented",
    "lab_colours",
    "lab_shapes",
    "lab_relations",
    "lab_where",
    "lab_clauses",
    "lab_parsed",
)
_NAME = rf"(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})"
_CLAUSE = re.compile(rf"\ba ({_NAME}) ({'|'.join(RELATION_WORDS)}) a ({_NAME})\b")
_OBJECT = re.compile(rf"\b{_NAME}\b")


def graded(text: str, scene: Scene) -> dict[str, float]:
    """The scores of one caption, by name in SCORES.

    lab_recall: share of the scene's objects that it names (colour and shape together). lab_precision: share of the objects it
    names, each counted once, that are there; lab_invented: how many are not. lab_colours, lab_shapes: share of the named whose
    colour (shape) is in the scene, be it of another object. lab_relations: share of its clauses that are true, which takes both
    objects and the relation on its own axis; lab_where: the same of those clauses alone that are about two objects of the scene,
    which leaves the relation (chance: 1/2); lab_clauses: how many it has. lab_parsed: 1 where all of it is of the grammar.
    NaN: shares of none (it names no object, states no clause), not for recall.
    """
    there = {thing.name for thing in scene.things}
    colours, shapes = {thing.colour for thing in scene.things}, {thing.shape for thing in scene.things}
    named = dict.fromkeys(_OBJECT.findall(text))
    clauses = [Clause(*found) for found in _CLAUSE.findall(text)]
    placed = [clause for clause in clauses if {clause.subject, clause.reference} <= there and clause.subject != clause.reference]
    return {
        "lab_recall": len(there & set(named)) / len(there),
        "lab_precision": _share([name in there for name in named]),
        "lab_invented": float(len(set(named) - there)),
        "lab_colours": _share([name.split()[0] in colours for name in named]),
        "lab_shapes": _share([name.split()[1] in shapes for name in named]),
        "lab_relations": _share([true_of(clause, scene) for clause in clauses]),
        "lab_where": _share([true_of(clause, scene) for clause in placed]),
        "lab_clauses": float(len(clauses)),
        "lab_parsed": float(_parses(text)),
    }


def measure(frame: pd.DataFrame, examples: Sequence[Example]) -> pd.DataFrame:
    """The table of captions (`captions.arms`, `perturbation.measure`) with the columns SCORES.

    examples: those that were captioned, with ``meta["scene"]``. Raises ValueError for a key without its scene.
    """
    scenes = {example.id: example.meta.get("scene") for example in examples}
    if lacking := [key for key in dict.fromkeys(frame["key"]) if not isinstance(scenes.get(key), Scene)]:
        raise ValueError(f"no scene of {lacking[0]!r} among the examples ({len(lacking)} lack one); see `lab_captioned`")
    rows = [graded(text, scenes[key]) for text, key in zip(frame["caption"], frame["key"], strict=True)]
    return frame.assign(**pd.DataFrame(rows, columns=list(SCORES), index=frame.index, dtype=float))


def _parses(text: str) -> bool:
    try:
        parse_caption(text)
    except ValueError:
        return False
    return True


def _share(held: list[bool]) -> float:
    return float(np.mean(held)) if held else float("nan")
