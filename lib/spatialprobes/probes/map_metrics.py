"""How well does a map of weights over a grid show a region? The study's measures as it defines them, and sounder ones.

Maps [..., row, col] of weights that are not negative, masks [..., row, col] of the region's cells; leading axes broadcast, the
values have what is left. Units are cells unless said. A value is NaN where it is not defined: a map of zeros, a mask without
cells, or for the measures that need cells outside as well, a mask of all cells. Pure functions: nothing of models, pictures or
tables; where regions come from is map_targets.py's concern, what chance is map_chance.py's.

The study's measures ("Interpreting Attention Mechanisms in VLMs for Spatial Reasoning", its code) keep the small numbers that it
adds to sums, so that they are exact to it, and their faults: ties widen `iou`'s cells; `soft_iou` is at most 1 / (cells of the
mask); `entity_bg_ratio` grows with the area of the region; `com` and `dispersion` depend on how fine the grid is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Maps = Float[np.ndarray, "*n row col"]
    Masks = Bool[np.ndarray, "*n row col"]
    Values = Float[np.ndarray, "*n"]

Axis = Literal["x", "y"]
SMALL = 1e-6  # the study's
SMALLER = 1e-10  # the study's, inside its logarithm


# ---- sounder ones ----
def hit(maps: Maps, masks: Masks) -> Values:
    """Pointing game: whether the greatest weight is in the mask, 0 or 1; cells that tie for it share the hit."""
    top = maps == maps.max((-2, -1), keepdims=True)
    return _on(top.astype(float), masks) / top.sum((-2, -1)) + _undefined(maps, masks)


def mass(maps: Maps, masks: Masks) -> Values:
    """Share of the weight that is in the mask, 0 to 1."""
    return _over(_on(maps, masks), total(maps)) + _undefined(maps, masks)


def lift(maps: Maps, masks: Masks) -> Values:
    """Share of the weight in the mask over the share of cells: 1 for a flat map, at most N / (cells of the mask)."""
    return mass(maps, masks) / masks.mean((-2, -1))


def auc(maps: Maps, masks: Masks) -> Values:
    """Area under the ROC curve of the map as a detector of the mask: that a cell inside has more weight than one outside.

    Rank statistic (Hanley & McNeil 1982), ties count half; .5 for a flat map.
    """
    inside = masks.sum((-2, -1))
    outside = masks.shape[-2] * masks.shape[-1] - inside
    flat = maps.reshape(*maps.shape[:-2], -1)
    wins = _on(average_ranks(flat).reshape(maps.shape), masks) - inside * (inside + 1) / 2
    return _over(wins, inside * outside) + _undefined(maps, masks)


def entropy_share(maps: Maps) -> Values:
    """Entropy over ln N: 0 where one cell has all, 1 for a flat map; NaN for a map of one cell."""
    p = normalised(maps)
    nats = -(p * np.log(np.where(p > 0, p, 1))).sum((-2, -1))
    return _over(nats, np.log(np.full(nats.shape, maps.shape[-2] * maps.shape[-1])))


def distance(maps: Maps, masks: Masks) -> Values:
    """Distance of the map's centre of mass to the mask's, over the grid's diagonal: 0 to 1, comparable between grids."""
    apart = [one - other for one, other in zip(centre(normalised(maps)), centre(normalised(masks)), strict=True)]
    return np.hypot(*apart) / np.hypot(*maps.shape[-2:])


def wasserstein(maps: Maps, target: Float[np.ndarray, "*n cell"], axis: Axis) -> Values:
    """Earth mover's distance, in cells along the axis, of the map's sums across that axis to a target distribution along it.

    target: not negative, of any sum (`along` of a mask, or a `map_targets.gap`); NaN where it is 0 everywhere.
    """
    p, q = along(maps, axis), target / _nonzero(target.sum(-1, keepdims=True))
    p = p / _nonzero(p.sum(-1, keepdims=True))
    return np.abs(np.cumsum(p, -1) - np.cumsum(q, -1)).sum(-1)


# ---- the study's ----
def com(maps: Maps, masks: Masks) -> Values:
    """Distance of the map's centre of mass to the mask's, in cells (its "com"; lower is better)."""
    one, other = centre(maps / (total(maps)[..., None, None] + SMALL)), centre(normalised(masks))
    return np.hypot(one[0] - other[0], one[1] - other[1]) + _undefined(maps, masks)


def iou(maps: Maps, masks: Masks) -> Values:
    """Intersection over union of the mask and as many cells of greatest weight; all that tie with the last of them count too."""
    flat = np.sort(maps.reshape(*maps.shape[:-2], -1), axis=-1)
    inside = np.broadcast_to(masks.sum((-2, -1)), np.broadcast_shapes(maps.shape[:-2], masks.shape[:-2]))
    flat = np.broadcast_to(flat, (*inside.shape, flat.shape[-1]))
    least = np.take_along_axis(flat, (flat.shape[-1] - np.maximum(inside, 1))[..., None], axis=-1)[..., None]
    chosen = maps >= least
    return _over((chosen & masks).sum((-2, -1)), (chosen | masks).sum((-2, -1))) + np.where(inside > 0, 0, np.nan)


def soft_iou(maps: Maps, masks: Masks) -> Values:
    """I / (1 + k - I) for I the share of the weight in the mask of k cells (its "soft IoU"): at most 1 / k, not 1."""
    share = _on(maps, masks) / (total(maps) + SMALL)
    return share / (1 + masks.sum((-2, -1)) - share + SMALL) + _undefined(maps, masks)


def wasserstein_x(maps: Maps, target: Float[np.ndarray, "*n cell"], axis: Axis = "x") -> Values:
    """Its "wasserstein_x": as `wasserstein`, with the study's small number under both sums, so that 0 stays 0."""
    p = along(maps, axis)
    p = p / (p.sum(-1, keepdims=True) + SMALL)
    q = target / (target.sum(-1, keepdims=True) + SMALL)
    return np.abs(np.cumsum(p, -1) - np.cumsum(q, -1)).sum(-1)


def entity_bg_ratio_llava(maps: Maps, masks: Masks, others: Masks) -> Values:
    """Weight on the mask over that on neither mask: what both masks share counts for each. Not normalised by area."""
    return _on(maps, masks) / (_on(maps, ~(masks | others)) + SMALL) + _undefined(maps, masks)


def entity_bg_ratio_qwen(maps: Maps, masks: Masks, others: Masks) -> Values:
    """The same without the cells that both masks share. Not normalised by area."""
    return _on(maps, masks & ~others) / (_on(maps, ~(masks | others)) + SMALL) + _undefined(maps, masks)


def in_out_ratio(maps: Maps, masks: Masks) -> Values:
    """Weight on the mask over that outside it (defined in the study, never reported)."""
    return _on(maps, masks) / (_on(maps, ~masks) + SMALL) + _undefined(maps, masks)


def dispersion(maps: Maps) -> Values:
    """Mean squared distance of the weight to its centre of mass, in cells^2 (its "disperson")."""
    p = maps / (total(maps)[..., None, None] + SMALL)
    y, x = centre(p)
    rows, columns = np.arange(maps.shape[-2]), np.arange(maps.shape[-1])
    squared = (rows - y[..., None])[..., :, None] ** 2 + (columns - x[..., None])[..., None, :] ** 2
    return (p * squared).sum((-2, -1)) + _undefined(maps)


def entropy(maps: Maps) -> Values:
    """Entropy in nats, with the study's small number inside the logarithm."""
    p = maps / (total(maps)[..., None, None] + SMALL)
    return -(p * np.log(p + SMALLER)).sum((-2, -1)) + _undefined(maps)


# ---- parts ----
def total(maps: Maps) -> Values:
    """Sum of each map."""
    return maps.sum((-2, -1))


def normalised(maps: Maps) -> Maps:
    """Each map divided by its sum; NaN for a map of zeros."""
    return maps / _nonzero(total(maps)[..., None, None])


def centre(weights: Maps) -> tuple[Values, Values]:
    """(y, x), in cells from the middle of the first, of weights that sum to 1."""
    rows, columns = np.arange(weights.shape[-2]), np.arange(weights.shape[-1])
    return weights.sum(-1) @ rows, weights.sum(-2) @ columns


def along(weights: Maps, axis: Axis) -> Float[np.ndarray, "*n cell"]:
    """Sums across an axis: "x" gives one number per column, "y" one per row. Raises ValueError for another axis."""
    if axis not in ("x", "y"):
        raise ValueError(f"axis={axis!r} is unknown; 'x' (along a row) or 'y' (down a column)")
    return weights.sum(-2 if axis == "x" else -1)


def average_ranks(values: Float[np.ndarray, "*n cell"]) -> Float[np.ndarray, "*n cell"]:
    """Ranks from 1 along the last axis; values that tie have the mean of their ranks."""
    order = np.argsort(values, axis=-1)
    ordered = np.take_along_axis(values, order, -1)
    changes = np.ones((*values.shape[:-1], values.shape[-1] + 1), bool)
    changes[..., 1:-1] = ordered[..., 1:] != ordered[..., :-1]
    places = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    if not changes.all():  # some tie
        first = np.maximum.accumulate(np.where(changes[..., :-1], places, 0), axis=-1)
        last = np.minimum.accumulate(np.where(changes[..., 1:], places, values.shape[-1])[..., ::-1], axis=-1)[..., ::-1]
        places = (first + last) / 2
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, places + 1, -1)
    return ranks


def _on(maps: Maps, masks: Masks) -> Values:
    """Weight on the cells of the masks."""
    return np.einsum("...rc,...rc->...", maps, masks)


def _over(above: Values, below: Values) -> Values:
    return above / _nonzero(below)


def _nonzero(values: Values) -> Values:
    """NaN instead of 0, to divide by."""
    return np.where(values == 0, np.nan, values)


def _undefined(maps: Maps, masks: Masks | None = None) -> Values:
    """0, and NaN for a map of zeros or a mask without cells: to be added."""
    lacking = np.where(total(maps) > 0, 0.0, np.nan)
    return lacking if masks is None else lacking + np.where(masks.any((-2, -1)), 0.0, np.nan)
