"""How ShapeWorld writes a two-shape world and its caption: JSON trees and lines of words, both ways.

Formats: AlexKuhnle/ShapeWorld, ``agreement/relational``. Knows worlds and texts; knows nothing of folders
(``shapeworld_files.py``) and models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from typing import Any

from spatialprobes.worlds.shapeworld import COLOURS, RELATIONS, SHAPES, SIZE, Entity, TwoShapes
from spatialprobes.worlds.shapeworld_questions import caption

CLOSE = 1e-6  # of the picture; by how much a stated box may differ from the shape's own
FAR = 1e6  # pictures, or turns: no angle or place is read from numbers beyond
_WORDS = """. ? a above an and are as behind below besides bigger blue circle closer color cross cyan darker different does
ellipse exist exists farther first from front gray green in is left lighter magenta not of pentagon rectangle red relation
relationship right same second semicircle shape shapes smaller spatial square than the there to triangle two
what yellow""".split()


# ---- read ----
def entities(world: Any) -> tuple[tuple[Entity, Entity], int]:
    """The two shapes of a world of ``world_model.json``, and the side of its picture in pixels.

    Raises ValueError for another number of them, and for what is missing, unknown or does not fit together.
    """
    try:
        found, size = [_entity(one) for one in world["entities"]], world["size"]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"the world model is not as ShapeWorld writes it: {type(error).__name__}: {error}") from error
    if len(found) != 2:
        raise ValueError(f"the world holds {len(found)} shapes; two are needed")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"the world's size is {size!r}; a number of pixels is needed")
    return (found[0], found[1]), size


def _entity(one: Any) -> Entity:
    shape, colour = one["shape"]["name"], one["color"]["name"]
    for what, value, legal in (("shape", shape, SHAPES), ("colour", colour, COLOURS)):
        if value not in legal:
            raise ValueError(f"{what} is {value!r}; it must be one of {', '.join(legal)}")
    half, centre = ((_length(at["x"]), _length(at["y"])) for at in (one["shape"]["size"], one["center"]))
    if min(half) <= 0:
        raise ValueError(f"the {colour} {shape} is {half[0]} x {half[1]}; a shape has an extent")
    entity = Entity(shape, colour, _length(one["color"]["shade"]), half, centre, _length(one["rotation"]))
    box = [_length(one["bounding_box"][at][axis]) for at in ("topleft", "bottomright") for axis in ("x", "y")]
    if max(abs(a - b) for a, b in zip(box, entity.box, strict=True)) > CLOSE:
        raise ValueError(f"the {entity.name}'s bounding box is {_numbers(box)}; its shape extends over {_numbers(entity.box)}")
    if min(box[2:]) <= 0 or max(box[:2]) >= 1:
        raise ValueError(f"the {entity.name}'s box {_numbers(box)} lies outside the picture")
    return entity


def _length(value: Any) -> float:
    try:
        length = float("nan" if isinstance(value, bool) or not isinstance(value, (int, float)) else value)
    except OverflowError:  # JSON's whole numbers have no end
        length = inf
    if not abs(length) <= FAR:
        raise ValueError(f"{repr(value)[:40]} stands in the world model where a number is needed, of at most {FAR:g}")
    return length


def _numbers(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def stated(tree: Any, among: tuple[Entity, Entity]) -> TwoShapes:
    """The world seen from a caption of ``caption_model.json``: its subject, its reference and their relation.

    Raises ValueError for a caption of another kind, and for a shape that is not in the world, or not told from the other.
    """
    try:
        kinds = tree["component"], tree["body"]["component"]
        named = [_attributes(part) for part in (tree["restrictor"], tree["body"]["reference"])]
        stands = tree["body"]["predtype"].removesuffix("-rel"), tree["body"]["value"]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"the caption model is not as ShapeWorld writes it: {type(error).__name__}: {error}") from error
    relation = next((name for name, way in RELATIONS.items() if way == stands), None)
    if kinds != ("Existential", "Relation") or relation is None:
        raise ValueError(
            f"the caption model is {' of '.join(map(str, kinds))} {stands}; one shape left, right, above or below another is read"
        )
    subject, reference = (_named(one, among) for one in named)
    if subject == reference:
        raise ValueError(f"the caption names the {among[subject].name} twice")
    return TwoShapes(among, subject, relation)


def _attributes(part: Any) -> dict[str, str]:
    return {one["predtype"]: one["value"] for one in part["value"]}


def _named(attributes: dict[str, str], among: tuple[Entity, Entity]) -> int:
    """Which of the two has the colour and the shape, in whatever order they are stated."""
    fitting = [i for i, one in enumerate(among) if attributes == {"shape": one.shape, "color": one.colour}]
    if len(fitting) == 1:
        return fitting[0]
    said = " ".join(str(attributes[key]) for key in ("color", "shape") if key in attributes) or "nothing"
    there = " and ".join(one.name for one in among)
    raise ValueError(f"the caption names {said!r}; {'both shapes are that' if fitting else f'in the world are {there}'}")


# ---- write ----
def texts(worlds: Sequence[TwoShapes]) -> dict[str, str]:
    """Name -> content of a shard's files, pictures and preview aside."""
    captions = [caption(*one.pair, one.relation) for one in worlds]
    polish, reverse = [_polish(one) for one in worlds], [_reverse(one) for one in worlds]
    out = {"agreement.txt": _lines("1.0" for _ in worlds)}
    for name, said in (("caption", captions), ("caption_pn", polish), ("caption_rpn", reverse)):
        out[f"{name}.txt"] = _lines(said)
        out[f"{name}_length.txt"] = _lines(str(len(one.split())) for one in said)
    out["caption_model.json"] = _json([_tree(one) for one in worlds])
    out["world_model.json"] = _json([_world(one) for one in worlds])
    return out


def _lines(values) -> str:
    return "".join(f"{value}\n" for value in values)


def _json(content: Any) -> str:
    return json.dumps(content, indent=2, sort_keys=True)


def _world(world: TwoShapes) -> dict:
    drawn = []
    for id, one in enumerate(world.entities):
        left, top, right, bottom = one.box
        drawn.append({
            "id": id,
            "shape": {"name": one.shape, "size": _point(*one.half)},
            "color": {"name": one.colour, "rgb": list(COLOURS[one.colour]), "shade": one.shade},
            "texture": {"name": "solid"},
            "center": _point(*one.centre),
            "rotation": one.rotation,
            "bounding_box": {"topleft": _point(left, top), "bottomright": _point(right, bottom)},
        })  # fmt: skip
    return {"size": SIZE, "color": {"name": "black", "rgb": [0.0] * 3, "shade": 0.0}, "meta": {}, "entities": drawn}


def _point(x: float, y: float) -> dict[str, float]:
    return {"x": float(x), "y": float(y)}


def _tree(world: TwoShapes) -> dict:
    subject, reference = ({
        "component": "EntityType", "predtype": "type",
        "value": [{"component": "Attribute", "predtype": kind, "value": value} for kind, value in _kinds(one)],
    } for one in world.pair)  # fmt: skip
    axis, sign = RELATIONS[world.relation]
    body = {"component": "Relation", "predtype": f"{axis}-rel", "value": sign, "reference": reference}
    return {"component": "Existential", "restrictor": subject, "body": body}


def _kinds(one: Entity) -> tuple[tuple[str, str], ...]:
    return ("shape", one.shape), ("color", one.colour)


def _symbols(world: TwoShapes) -> tuple[list[str], str, list[str]]:
    """The caption's parts: what the subject is, the relation, what the reference is."""
    subject, reference = ([f"Attribute-{kind}-{value}" for kind, value in _kinds(one)] for one in world.pair)
    axis, sign = RELATIONS[world.relation]
    return subject, f"Relation-{axis}-rel-{sign}", reference


def _polish(world: TwoShapes) -> str:
    subject, relation, reference = _symbols(world)
    return " ".join(["Existential", "EntityType2", *subject, relation, "EntityType2", *reference])


def _reverse(world: TwoShapes) -> str:
    subject, relation, reference = _symbols(world)
    return " ".join([*subject, "EntityType2", *reference, "EntityType2", relation, "Existential"])


def specification(directory: str) -> str:
    """Content of ``agreement-relational.json``: the kinds of values, the ids of words and symbols, and the folder it lies in,
    which the original's loader goes by."""
    attributes = [f"Attribute-{kind}-{value}" for kind, values in (("color", COLOURS), ("shape", SHAPES)) for value in values]
    types = [f"EntityType{n}" for n in range(4)]
    relations = [f"Relation-{axis}-rel-{sign}" for axis, sign in RELATIONS.values()]
    one_more = {"": 1, "[UNKNOWN]": 1}
    arity = {name: n for n, name in enumerate(types)} | dict.fromkeys(attributes, 0)
    arity |= dict.fromkeys(["Selector-unique", *relations], 1) | {"Existential": 2} | one_more
    kinds = {"agreement": "float", "world": "world", "world_model": "model"}
    for name, kind in (("caption", "language"), ("caption_pn", "pn"), ("caption_rpn", "pn")):
        kinds |= {name: kind, f"{name}_length": "int"}
    return json.dumps({
        "type": "agreement", "name": "relational", "values": kinds | {"caption_model": "model"}, "world_size": SIZE,
        "vectors": {"caption": 40, "caption_pn": 14, "caption_rpn": 14},
        "vocabularies": {"language": _ids(_WORDS), "pn": _ids(sorted(set(arity) - set(one_more)))},
        "worlds_per_instance": 1, "captions_per_instance": 1, "pn_arity": arity, "generated": True, "directory": directory,
        "include_model": True, "image_format": "png", "relative_directory": "agreement/relational",
    })  # fmt: skip


def _ids(words: Sequence[str]) -> dict[str, int]:
    return {word: n for n, word in enumerate(words, 1)} | {"": 0, "[UNKNOWN]": len(words) + 1}
