"""Hidden states and deltas in the swap study's .npz files: small arrays read at once, states when they are asked for.

One array a name and layer: orig_L{n}, swap_L{n}, delta_L{n}, categories_L{n}, groups_L{n}, indices_L{n}, is_correct_orig_L{n},
is_correct_swap_L{n}, labels_L{n}; delta_vert_L{n} and delta_dist_L{n} of quads. clusters_L{n}, which is ours, names the pictures.
Knows these names; nothing of the other files.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.pairs import CATEGORIES, GROUP_OF, OPPOSITE
from spatialprobes.probes.swap_layout import MEMBERS, CrossDeltas, layer_of
from spatialprobes.probes.swap_states import States
from spatialprobes.sources.arrays import headers_npz, read_npz

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_IDS = 200_000_000  # bytes of the names of pairs in one file
CURE = (
    "if you trust it, convert it once: np.savez_compressed(new, **{k: v.astype(str) if v.dtype == object else v "
    "for k, v in np.load(old, allow_pickle=True).items()})"
)
Note = Callable[[str], None]


def vectors(path: Path, note: Note) -> tuple[States, pd.DataFrame]:
    """The states of a vectors_{scale}.npz, and which answers were right, [pair, member, category, ..., correct_published].

    A layer whose arrays don't fit one another is noted and left out. Raises ValueError for objects, and where no layer is left.
    """
    shapes = _shapes(path)
    names = sorted(layer - 1 for key in shapes if (layer := layer_of(key, "orig_L")))
    small = ("categories", "indices", "clusters", "is_correct_orig", "is_correct_swap")
    known = read_npz(path, MAX_IDS, {f"{name}_L{block}" for block in names for name in small})
    pairs, layers, right = None, [], {}
    for block in names:
        try:
            own = _pairs(block, known, shapes)
            if pairs is not None and not own.equals(pairs):
                raise ValueError(f"its pairs are not those of layer {layers[0] - 1}")
        except ValueError as error:
            note(f"L{block}: {error}; left out")
            continue
        pairs = own
        layers.append(block + 1)
        right = right or {member: known.get(f"is_correct_{short}_L{block}") for member, short in MEMBERS.items()}
    if pairs is None:
        raise ValueError("no layer with states (orig_L<n>, swap_L<n>, categories_L<n>) in it")

    def read(layer: int, member: str) -> Float[np.ndarray, "pair width"]:
        key = f"{MEMBERS[member]}_L{layer - 1}"
        return read_npz(path, only={key})[key].astype(np.float32, copy=False)

    return States(pairs, tuple(layers), read), _answers(pairs, right, note)


def cross_deltas(path: Path, note: Note) -> CrossDeltas:
    """The deltas of a cross_group_vectors_{scale}.npz. Raises as `vectors`."""
    shapes, layers = _shapes(path), []
    for key in shapes:
        if (layer := layer_of(key, "delta_vert_L")) is None:
            continue
        block = layer - 1
        one, other = shapes[key], shapes.get(f"delta_dist_L{block}")
        if len(one) == 2 and one == other:
            layers.append(layer)
        else:
            note(f"L{block}: delta_vert has shape {one}, delta_dist {other}; the same [quad, width] is wanted; left out")
    if not layers:
        raise ValueError("no layer with delta_vert_L<n> and delta_dist_L<n> in it")

    def read(layer: int, which: str) -> Float[np.ndarray, "quad width"]:
        key = f"delta_{which[:4]}_L{layer - 1}"
        return read_npz(path, only={key})[key].astype(np.float32, copy=False)

    return CrossDeltas(tuple(sorted(layers)), read)


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    found = headers_npz(path)
    if objects := [key for key, (_, dtype) in found.items() if dtype.hasobject]:
        raise ValueError(f"{objects[0]} holds objects, which only a pickle could give back; {CURE}")
    for key, (_, dtype) in found.items():
        if re.match("(orig|swap|delta_vert|delta_dist)_L", key) and dtype.kind not in "fiu":
            raise ValueError(f"{key} holds {dtype}; real numbers are wanted")
    return {key: shape for key, (shape, _) in found.items()}


def _pairs(block: int, known: dict[str, np.ndarray], shapes: dict[str, tuple[int, ...]]) -> pd.DataFrame:
    """[pair, category, group, cluster] of one layer."""
    shape = shapes[f"orig_L{block}"]
    if len(shape) != 2 or shapes.get(f"swap_L{block}") != shape:
        raise ValueError(f"orig has shape {shape}, swap {shapes.get(f'swap_L{block}')}; the same [pair, width] is wanted")
    if (categories := known.get(f"categories_L{block}")) is None:
        raise ValueError("there are no categories")
    columns = {"category": categories, "pair": known.get(f"indices_L{block}", np.arange(shape[0]))}
    columns["cluster"] = known.get(f"clusters_L{block}", columns["pair"])
    if wrong := [name for name, each in columns.items() if each.shape != shape[:1]]:
        raise ValueError(f"{wrong[0]}: {columns[wrong[0]].shape} for {shape[0]} pairs")
    frame = pd.DataFrame({name: each.astype(str).astype(object) for name, each in columns.items()})
    if unknown := sorted({*frame["category"]} - {*CATEGORIES}):
        raise ValueError(f"{unknown[0]!r} is no category ({', '.join(CATEGORIES)})")
    if frame["pair"].duplicated().any():
        raise ValueError(f"index {frame.loc[frame['pair'].duplicated(), 'pair'].iloc[0]!r} stands twice")
    return frame.assign(group=frame["category"].map(GROUP_OF))[["pair", "category", "group", "cluster"]]


def _answers(pairs: pd.DataFrame, right: dict[str, np.ndarray | None], note: Note) -> pd.DataFrame:
    """One row a question; none where the file does not say of both members."""
    parts = []
    for member, flags in right.items():
        if flags is None or flags.shape != (len(pairs),) or flags.dtype != bool:
            note(f"is_correct_{MEMBERS[member]} is not a yes or no for each pair; which answers were right is left out")
            return pd.DataFrame()
        category = pairs["category"] if member == "original" else pairs["category"].map(OPPOSITE)
        parts.append(pairs.assign(member=member, category=category, correct_published=flags))
    return pd.concat(parts).sort_index(kind="stable")
