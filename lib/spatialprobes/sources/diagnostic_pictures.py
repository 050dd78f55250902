"""One picture of Beyond Semantics' COCO diagnostics: its two files, per_image/<id>.npz and .json, as rows of tables and back.

Knows the arrays' names, shapes and which values can be; nothing of runs, which are `diagnostics`'.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatialprobes.sources.arrays import read_npz
from spatialprobes.sources.json_files import read_object

if TYPE_CHECKING:
    from jaxtyping import Float

HEADS = {  # array of a picture, [layer, head] -> column
    "head_vision_share": "cmb",
    "alphaV": "alpha_v",
    "share_prod_notV": "share_prod_not_v",
    "delta_gv": "delta_g_v",
    "delta_alphaV": "delta_alpha_v",
}
HIDDEN = {"hidden_norms_sys": "system", "hidden_norms_user_text": "text", "hidden_norms_vision": "vision"}  # [layer]
GRID = "hidden_norms_grid"  # [layer, token]
SHARES = ("mean_vision_share", "mean_text_share", "mean_sys_share")
STREAM, NORMED = "stream", "final norm"
MAX_IMAGE_BYTES = 256_000_000  # of the arrays of one picture
MAX_JSON_BYTES = 200_000_000


@dataclass
class Picture:
    """heads, hidden: its rows of a run's tables; image: its row of the table of images; grid: norms, where they were saved.

    form: what must be the same in all pictures of a run, {what it is: how it is here}.
    """

    heads: pd.DataFrame
    hidden: pd.DataFrame
    image: dict[str, Any]
    grid: Float[np.ndarray, "layer token"] | None
    form: dict[str, Any]

    @property
    def example(self) -> str:
        return self.image["example"]


def read_picture(stem: Path) -> Picture:
    """The picture of <stem>.json and <stem>.npz; its example is what the .json says, the stem's name where it says nothing.

    Raises FileNotFoundError; ValueError for the study's own error rows ({"error": ...}), broken files, and values that can't be.
    """
    facts = read_object(stem.with_suffix(".json"), MAX_JSON_BYTES)
    if "error" in facts:
        raise ValueError(str(facts["error"]))
    example = facts.get("example")
    if example is not None and not (isinstance(example, str) and example):
        raise ValueError(f"{stem.name}.json: example is {example!r}, not text")
    image = {"example": example or stem.name}
    for key, kind in (("image_id", int), ("file_name", str), ("caption", str)):
        image[key] = facts.get(key)
        if image[key] is not None and not isinstance(image[key], kind):
            raise ValueError(f"{stem.name}.json: {key} is {image[key]!r}, not {'text' if kind is str else 'a whole number'}")
    image |= {key: number(facts, key) for key in SHARES}
    try:
        arrays = _arrays(stem.with_suffix(".npz"))
        shape, layers = _shape(arrays), _hidden_layers(arrays)
        if layers is not None and layers <= shape[0]:
            raise ValueError(f"hidden norms of {layers} layers, heads of {shape[0]}; embeddings count as one layer more")
    except ValueError as error:
        raise ValueError(f"{stem.name}.npz: {str(error).removeprefix(f'{stem}.npz: ')}") from error
    form = {
        "[layer, head]": shape,
        "the list of arrays": ", ".join(name for name in (*HEADS, *HIDDEN) if name in arrays),
        "the list of layers without a value": _empty(arrays),
        "the number of layers with hidden norms": layers,
    }
    heads, hidden = _heads(image["example"], arrays, shape), _hidden(image["example"], arrays)
    return Picture(heads, hidden, image, arrays.get(GRID), form)


def number(facts: Mapping[str, Any], key: str) -> float:
    """The number under a key, NaN where there is none. Raises ValueError for anything else and for infinities."""
    value = facts.get(key)
    if value is None:
        return np.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise ValueError(f"{key} is {value!r:.80}, not a number")
    return float(value)


def head_arrays(heads: pd.DataFrame) -> dict[str, np.ndarray]:
    """The arrays of a picture's rows of heads, but those without a value."""
    return {name: head_table(heads, column) for name, column in HEADS.items() if heads[column].notna().any()}


def hidden_arrays(hidden: pd.DataFrame) -> dict[str, np.ndarray]:
    """The arrays of a picture's rows of hidden norms."""
    found = {}
    for name, group in HIDDEN.items():
        part = hidden[hidden["group"] == group].sort_values("layer")
        found |= {name: part["norm"].to_numpy(float)} if len(part) else {}
    return found


def head_table(frame: pd.DataFrame, column: str) -> Float[np.ndarray, "layer head"]:
    """A column of [layer, head, ...]; NaN where there is no row."""
    found = np.full((frame["layer"].max() + 1, frame["head"].max() + 1), np.nan)
    found[frame["layer"], frame["head"]] = frame[column]
    return found


def _arrays(path: Path) -> dict[str, np.ndarray]:
    arrays = read_npz(path, MAX_IMAGE_BYTES)
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {array.dtype}, not numbers")
        if np.isinf(array).any():
            place = [int(axis[0]) for axis in np.nonzero(np.isinf(array))]
            raise ValueError(f"{name} holds an infinity, at {place}")
    if GRID in arrays and arrays[GRID].ndim != 2:
        raise ValueError(f"{GRID} has the shape {arrays[GRID].shape}; it must be [layer, token]")
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def _shape(arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    shapes = {arrays[name].shape for name in HEADS if name in arrays}
    if not shapes:
        raise ValueError(f"none of the arrays {', '.join(HEADS)}; there: {', '.join(arrays) or 'none'}")
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"arrays of the shapes {sorted(shapes)}; all must be the same [layer, head]")
    shape = shapes.pop()
    if all(np.isnan(arrays[name]).all() for name in HEADS if name in arrays):  # also where there is nothing to be NaN
        raise ValueError(f"arrays of the shape {shape} without a value")
    return shape


def _hidden_layers(arrays: Mapping[str, np.ndarray]) -> int | None:
    """How many layers have hidden norms, None where none were saved."""
    shapes = {arrays[name].shape for name in HIDDEN if name in arrays}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        raise ValueError(f"hidden norms of the shapes {sorted(shapes)}; all must be the same [layer]")
    return next(iter(shapes))[0] if shapes else None


def _empty(arrays: Mapping[str, np.ndarray]) -> str:
    """The layers that have no value, by array: linear attention has none, and then in all pictures."""
    empty = {name: np.flatnonzero(np.isnan(arrays[name]).all(1)).tolist() for name in HEADS if name in arrays}
    return ", ".join(f"{name} {layers}" for name, layers in empty.items() if layers) or "none"


def _heads(example: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> pd.DataFrame:
    """Layers that have no attention (NaN in all arrays) have no rows."""
    layer, head = (each.ravel() for each in np.indices(shape))
    values = {column: arrays[name].ravel() if name in arrays else np.nan for name, column in HEADS.items()}
    frame = pd.DataFrame({"example": example, "layer": layer, "head": head, **values})
    return frame.dropna(subset=list(HEADS.values()), how="all")


def _hidden(example: str, arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    parts = []
    for name, group in HIDDEN.items():
        if name in arrays:
            norms = arrays[name]
            site = np.where(np.arange(len(norms)) == len(norms) - 1, NORMED, STREAM)
            place = {"layer": np.arange(len(norms)), "site": site, "group": group}
            parts.append(pd.DataFrame({"example": example, **place, "norm": norms}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["example", "layer", "site", "group", "norm"])
