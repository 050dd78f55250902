"""What a map is held against: the cells of a box, and what lies between two shapes along the axis of their relation.

Two definitions of each. Corrected: the cells that a box reaches into, in the model's own frame, so that padding and cropping are
counted; they are the tokens that show some of the object, the same as ``Spans.cells``. Not weighted by the share that is covered,
which would keep a map that is right from a full score wherever a box ends within a cell. As published: the cells of the floors of
both corners, both included, no frame; a box that ends on a cell's edge takes the next cell as well.

Knows arrays and the boxes of examples. Boxes are (x_min, y_min, x_max, y_max) in fractions of the picture, y down; grids are
(rows, columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.probes.map_metrics import Axis, along

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped

    Boxes = Float[np.ndarray, "n 4"]
    Masks = Bool[np.ndarray, "*n row col"]

NAMES = ("subject", "reference", "relation")
AXES: dict[str, Axis] = {"left": "x", "right": "x", "above": "y", "below": "y"}
SLIVER = 1e-6  # share of a cell's side that a box must reach into it: rounding alone reaches further than 0


def reached(boxes: Boxes, grid: tuple[int, int], scale: Float[np.ndarray, "n 2"], shift: Float[np.ndarray, "n 2"]) -> Masks:
    """The cells that boxes reach into, [n, row, col]; none for a box without extent or outside what the model sees.

    scale, shift: (x, y) of each picture's frame, seen = scale * picture + shift.
    """
    rows, columns = grid
    left, right = ((boxes[:, [0, 2]] * scale[:, :1] + shift[:, :1]) * columns).T[..., None]
    top, bottom = ((boxes[:, [1, 3]] * scale[:, 1:] + shift[:, 1:]) * rows).T[..., None]
    column, row = np.arange(columns), np.arange(rows)
    across = (column + SLIVER < right) & (column + 1 - SLIVER > left)
    down = (row + SLIVER < bottom) & (row + 1 - SLIVER > top)
    return (down & (bottom > top))[:, :, None] & (across & (right > left))[:, None, :]


def reached_as_published(boxes: Boxes, grid: tuple[int, int]) -> Masks:
    """The study's cells of boxes, [n, row, col]: floor of both corners, both included, kept within the grid.

    So its Qwen code. Its LLaVA code does not keep them within: there a box that begins left of or above the picture has no cells.
    """
    rows, columns = grid
    corners = np.floor(boxes * np.array([columns, rows, columns, rows]))
    left, top, right, bottom = np.clip(corners, 0, np.array([columns, rows, columns, rows]) - 1).T[..., None]
    column, row = np.arange(columns), np.arange(rows)
    across, down = (column >= left) & (column <= right), (row >= top) & (row <= bottom)
    return down[:, :, None] & across[:, None, :]


def gap(subjects: Masks, references: Masks, axis: Axis) -> Float[np.ndarray, "*n cell"]:
    """Where between two shapes: |CDF(p) - CDF(q)| of their cells summed across the axis, made to sum to 1.

    It rises over the one shape, is level between them and falls over the other, whichever comes first; 0 everywhere only where
    both have the same cells along the axis.
    """
    apart = np.abs(_cdf(along(subjects, axis)) - _cdf(along(references, axis)))
    sums = apart.sum(-1, keepdims=True)
    return apart / np.where(sums > 0, sums, 1)


def gap_as_published(firsts: Masks, seconds: Masks, relation: str) -> Float[np.ndarray, "*n column"]:
    """The study's target of a relation: relu(CDF(p) - CDF(q)) along x, p and q exchanged for "left", made to sum to 1.

    firsts, seconds: cells of the entities in the order of the world, not of the caption. Wherever both orders agree, p's shape
    lies right of q's, its CDF below, and the target is 0 everywhere; it is what it should be where they differ. Raises ValueError
    for another relation than left and right: the study has no target for those.
    """
    if relation not in ("left", "right"):
        raise ValueError(f"the study has no target for the relation {relation!r}; it has one for left and right")
    p, q = (seconds, firsts) if relation == "left" else (firsts, seconds)
    over = np.maximum(_cdf(along(p, "x")) - _cdf(along(q, "x")), 0)
    over = np.where(over < 1e-12, 0, over)  # sums in another order differ in the last bits
    return over / (over.sum(-1, keepdims=True) + 1e-6)


def between(subjects: Boxes, references: Boxes, axis: Axis) -> Boxes:
    """The box between the facing edges of two boxes along the axis, as wide across it as both; no extent where these overlap."""
    along_it = [0, 2] if axis == "x" else [1, 3]
    across = [1, 3] if axis == "x" else [0, 2]
    out = np.empty_like(subjects)
    out[:, along_it[0]] = np.minimum(subjects[:, along_it[1]], references[:, along_it[1]])
    out[:, along_it[1]] = np.maximum(subjects[:, along_it[0]], references[:, along_it[0]])
    out[:, across[0]] = np.minimum(subjects[:, across[0]], references[:, across[0]])
    out[:, across[1]] = np.maximum(subjects[:, across[1]], references[:, across[1]])
    return out


def _cdf(weights: Float[np.ndarray, "*n cell"]) -> Float[np.ndarray, "*n cell"]:
    """Cumulated shares; 0 everywhere for weights that are."""
    sums = weights.sum(-1, keepdims=True)
    return np.cumsum(weights / np.where(sums > 0, sums, 1), -1)


# ---- the targets of many maps ----
@dataclass(frozen=True)
class Targets:
    """What n maps of one grid and one axis are held against: each of `NAMES`.

    masks: the cells of the subject's box, of the reference's, and between them. others: of the other object, for the first two.
    profiles: what a map's sums across the axis should look like. axis: "x" or "y". reasons: why a mask (for "profile", a profile)
    of a target cannot be used, "" where it can.
    """

    masks: Bool[np.ndarray, "n target row col"]
    others: Bool[np.ndarray, "n target row col"]
    profiles: Float[np.ndarray, "n target cell"]
    axis: Axis
    reasons: dict[str, Shaped[np.ndarray, "n target"]]

    def take(self, targets: Sequence[int]) -> Targets:
        """Only these targets, with an axis added before the cells, for the maps of an example (heads)."""
        masks, others, profiles = (part[:, targets][:, :, None] for part in (self.masks, self.others, self.profiles))
        return Targets(masks, others, profiles, self.axis, {})


def corrected(examples: Sequence[Example], frames: Float[np.ndarray, "n 4"], grid: tuple[int, int], axis: Axis) -> Targets:
    """Targets of maps by the corrected definitions.

    examples: of each map. frames: scale_x, scale_y, shift_x, shift_y of its picture.
    """
    boxes, lacking = _boxes(examples)
    masks = [reached(boxes[:, i], grid, frames[:, :2], frames[:, 2:]) for i in (0, 1)]
    masks.append(reached(between(boxes[:, 0], boxes[:, 1], axis), grid, frames[:, :2], frames[:, 2:]) & ~masks[0] & ~masks[1])
    seen = [_first(lacking[:, i], _unusable(masks[i], boxes[:, i])) for i in (0, 1)]
    profile = gap(masks[0], masks[1], axis)
    unrelated = _reasons(examples, lambda one: one.meta.get("relation") not in AXES, _no_relation)
    middle = _where(~masks[2].any((1, 2)), f"no cells between the two boxes along {axis}")
    level = _where(~profile.any(1), f"both boxes have the same cells along {axis}")
    reasons = {
        "mask": (*seen, _first(unrelated, *seen, middle)),
        "profile": (_first(unrelated, seen[0]), _first(unrelated, seen[1]), _first(unrelated, *seen, level)),
    }
    return _targets(masks, [along(masks[0], axis), along(masks[1], axis), profile], axis, reasons)


def as_published(examples: Sequence[Example], grid: tuple[int, int]) -> Targets:
    """Targets of maps by the study's definitions: along x, whatever the relation; a relation has a profile and no cells.

    Which entity comes first in the world is read from ``meta["world_order"]``: whether it is the subject.
    """
    boxes, lacking = _boxes(examples)
    masks = [reached_as_published(boxes[:, i], grid) for i in (0, 1)]
    seen = [_first(lacking[:, i], _unusable(masks[i], boxes[:, i])) for i in (0, 1)]
    subject_first = np.array([bool(one.meta.get("world_order")) for one in examples])[:, None, None]
    first, second = np.where(subject_first, masks[0], masks[1]), np.where(subject_first, masks[1], masks[0])
    relation = np.array([one.meta.get("relation") for one in examples], object)
    profile = np.zeros((len(examples), grid[1]))
    for name in ("left", "right"):
        profile[relation == name] = gap_as_published(first[relation == name], second[relation == name], name)
    unknown = _reasons(examples, lambda one: "world_order" not in one.meta, lambda one: "the order of the world is not known")
    other = _reasons(examples, lambda one: one.meta.get("relation") not in ("left", "right"), _no_published)
    no_cells = _where(np.ones(len(examples), bool), "the study has no cells for a relation")
    reasons = {"mask": (*seen, no_cells), "profile": (*seen, _first(other, unknown, *seen))}
    masks.append(np.zeros_like(masks[0]))
    return _targets(masks, [along(masks[0], "x"), along(masks[1], "x"), profile], "x", reasons)


def published_relations(examples: Sequence[Example], grid: tuple[int, int] = (24, 24)) -> pd.DataFrame:
    """What the study's target of a relation comes to: [example, relation, world_order, vanishes], left and right alone.

    vanishes: whether it is 0 everywhere, so that every map is as far from it. Examples without boxes or order are left out.
    """
    found = as_published(examples, grid)
    there = found.reasons["profile"][:, NAMES.index("relation")] == ""
    frame = pd.DataFrame(
        {
            "example": [one.id for one in examples],
            "relation": [one.meta.get("relation") for one in examples],
            "world_order": [bool(one.meta.get("world_order")) for one in examples],
            "vanishes": ~found.profiles[:, NAMES.index("relation")].any(-1),
        }
    )
    return frame[there].reset_index(drop=True)


def _targets(masks, profiles, axis: Axis, reasons: dict[str, Sequence]) -> Targets:
    others = np.stack([masks[1], masks[0], np.zeros_like(masks[0])], axis=1)
    columns = {need: np.stack(each, axis=1) for need, each in reasons.items()}
    columns["other"] = np.stack([_first(*reasons["mask"][:2])] * 3, axis=1)
    return Targets(np.stack(masks, axis=1), others, np.stack(profiles, axis=1), axis, columns)


def _boxes(examples: Sequence[Example]) -> tuple[Float[np.ndarray, "n 2 4"], Shaped[np.ndarray, "n 2"]]:
    """Boxes of subject and reference, and why one is missing ("" where it is there)."""
    boxes, lacking = np.zeros((len(examples), 2, 4)), np.full((len(examples), 2), "", object)
    for i, example in enumerate(examples):
        for j, name in enumerate(NAMES[:2]):
            box = example.objects[j].box if len(example.objects) > j else None
            if box is None:
                lacking[i, j] = f"no box of the {name}"
            elif not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
                lacking[i, j] = f"the {name}'s box has no extent"
            else:
                boxes[i, j] = box
    return boxes, lacking


def _unusable(masks: Masks, boxes: Boxes) -> Shaped[np.ndarray, " n"]:
    outside = (boxes[:, 2:] <= 0).any(1) | (boxes[:, :2] >= 1).any(1)
    empty = ~masks.any((1, 2))
    return _first(
        _where(outside, "the box lies outside the picture"),
        _where(empty, "the box lies outside what the model sees"),
        _where(masks.all((1, 2)), "the box covers every cell of the grid"),
    )


def _no_relation(example: Example) -> str:
    return f"no relation along an axis: {example.meta.get('relation')!r}"


def _no_published(example: Example) -> str:
    return f"the study has no target for the relation {example.meta.get('relation')!r}"


def _reasons(examples: Sequence[Example], when, why) -> Shaped[np.ndarray, " n"]:
    return np.array([why(one) if when(one) else "" for one in examples], object)


def _where(wrong: Bool[np.ndarray, " n"], why: str) -> Shaped[np.ndarray, " n"]:
    return np.where(wrong, np.array(why, object), np.array("", object))


def _first(*reasons: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, " n"]:
    """The first reason that there is, for each map."""
    found = reasons[0]
    for other in reasons[1:]:
        found = np.where(found == "", other, found)
    return found
