"""Where deltas and states of swap pairs lie in the plane or the space of their greatest variance, with one basis for many scales.

Knows states and tables; knows nothing of models and figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.probes.swap_states import Layer, States

if TYPE_CHECKING:
    from jaxtyping import Float

KINDS = ("delta", "original", "swapped")
SPACE = {"delta": "delta", "original": "state", "swapped": "state"}  # originals and swapped ones lie in one space


@dataclass(frozen=True)
class Basis:
    """{(layer, "delta" | "state"): (mean [width], axes [component, width])}, as `fit` makes it."""

    axes: dict[tuple[Layer, str], tuple[Float[np.ndarray, " width"], Float[np.ndarray, "component width"]]]


def fit(states: States, layers: Sequence[Layer], *, components: int = 3) -> Basis:
    """Principal axes, by exact SVD, of the deltas and of the originals and swapped together, at each layer.

    An axis points where its greatest loading is positive, so that it does not depend on the library's choice of sign. Rows that
    are not finite are left out; an axis that the data have not (fewer rows, no variance) is NaN. Raises ValueError for fewer than
    1 component or a layer that is not there.
    """
    if components < 1:
        raise ValueError(f"components={components}: at least 1 is needed")
    axes = {}
    for layer in layers:
        held = _held(states, layer)
        axes[layer, "delta"] = _principal(held["delta"], components)
        axes[layer, "state"] = _principal(np.concatenate([held["original"], held["swapped"]]), components)
    return Basis(axes)


def projection(states: States, layers: Sequence[Layer], *, components: int = 3, reference: Basis | None = None) -> pd.DataFrame:
    """Places of deltas, originals and swapped states along principal axes: one row a pair, layer and kind.

    Columns: layer, pair, category, group, kind ("delta", "original", "swapped"), pc1 .. (in units of the states), share1 .. (of
    the variance of the rows of its space, what lies along the axis). reference: a basis from `fit`, of one scale, so that all
    scales share its axes; of the states themselves where None. Raises ValueError as `fit`, and for a basis of another layer,
    width or number of components.
    """
    basis = fit(states, layers, components=components) if reference is None else reference
    frames = []
    for layer in layers:
        held = _held(states, layer)
        shares = {
            "delta": _shares(held["delta"], *_axes(basis, layer, "delta", held["delta"].shape[1], components)),
            "state": _shares(
                np.concatenate([held["original"], held["swapped"]]),
                *_axes(basis, layer, "state", held["original"].shape[1], components),
            ),
        }
        for kind in KINDS:
            mean, axes = basis.axes[layer, SPACE[kind]]
            with np.errstate(invalid="ignore"):  # infinite states have no place
                places = (held[kind] - mean) @ axes.T
            frame = states.pairs[["pair", "category", "group"]].assign(layer=layer, kind=kind)
            for i in range(components):
                frame[f"pc{i + 1}"] = places[:, i]
            for i in range(components):
                frame[f"share{i + 1}"] = shares[SPACE[kind]][i]
            frames.append(frame)
    names = [f"{name}{i + 1}" for name in ("pc", "share") for i in range(components)]
    return pd.concat(frames, ignore_index=True)[["layer", "pair", "category", "group", "kind", *names]]


def _held(states: States, layer: Layer) -> dict[str, Float[np.ndarray, "pair width"]]:
    original, swapped = (np.asarray(each, float) for each in (states.original(layer), states.swapped(layer)))
    return {"delta": swapped - original, "original": original, "swapped": swapped}


def _principal(x: Float[np.ndarray, "n width"], components: int):
    x = x[np.isfinite(x).all(axis=1)]
    axes = np.full((components, x.shape[1]), np.nan)
    if not len(x):
        return np.full(x.shape[1], np.nan), axes
    mean = x.mean(axis=0)
    _, sizes, found = np.linalg.svd(x - mean, full_matrices=False)
    there = int((sizes[:components] > 1e-10 * max(np.abs(x).max(), 1e-300) * np.sqrt(x.size)).sum())
    found = found[:there]
    greatest = np.abs(found).argmax(axis=1)
    axes[:there] = found * np.where(found[np.arange(there), greatest] < 0, -1, 1)[:, None]
    return mean, axes


def _shares(x: Float[np.ndarray, "n width"], mean, axes) -> Float[np.ndarray, " component"]:
    x = x[np.isfinite(x).all(axis=1)]
    if len(x) < 2:
        return np.full(len(axes), np.nan)
    centred = x - x.mean(axis=0)
    total = np.sum(centred**2)
    return np.sum((centred @ axes.T) ** 2, axis=0) / total if total > 0 else np.full(len(axes), np.nan)


def _axes(basis: Basis, layer: Layer, space: str, width: int, components: int):
    if (layer, space) not in basis.axes:
        there = ", ".join(dict.fromkeys(str(one) for one, _ in basis.axes))
        raise ValueError(f"the reference has no axes of layer {layer!r}; there: {there}")
    mean, axes = basis.axes[layer, space]
    if len(mean) != width:
        raise ValueError(f"layer {layer!r}: the reference's axes are {len(mean)} wide, the states {width}: of another model?")
    if len(axes) < components:
        raise ValueError(f"the reference has {len(axes)} axes, not {components}")
    return mean, axes[:components]
