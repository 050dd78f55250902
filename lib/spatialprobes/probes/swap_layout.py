"""The files of the swap study's own results, and what their names say: scale, layer, which pairs count.

``csv/``, ``json/`` and ``npz/`` of one model. The study counts decoder blocks from 0 and its layer i is what block i puts out.
Here 0 is what enters the first block, so that its layer i is hidden layer i + 1, and neither 0 nor "norm" (after the final norm)
has a place there. Knows names and arrays; reading is ``swap_results``, writing ``swap_export``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spatialprobes.probes.swap_states import Layer, States

if TYPE_CHECKING:
    from jaxtyping import Float

REPRESENTATIVE = 5  # layers whose vectors are kept
TAGS = {"all": "all_pairs", "both_correct": "both_correct", "all_with_validity": "all_with_validity"}  # variant -> its tag there
VARIANTS = {tag: variant for variant, tag in TAGS.items()} | {"all": "all"}  # both spellings of the first are read
CONSISTENCY = {"sign_corrected_consistency": "group", "within_cat_consistency": "within"}  # file -> measure
MEMBERS = {"original": "orig", "swapped": "swap"}
SCALE = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
BLOCK = r"0|[1-9][0-9]{0,3}"  # as the study writes its layers: one spelling each
_TAG = r"all_pairs|both_correct|all_with_validity|all"
_KINDS = {
    "similarity": rf"csv/delta_similarity_(?P<scale>{SCALE})_L(?P<block>{BLOCK})_(?P<tag>{_TAG})\.csv",
    "summary": r"csv/summary\.csv",
    "pred_stats": rf"json/pred_stats_(?P<scale>{SCALE})\.json",
    "category_validity": rf"json/category_validity_(?P<scale>{SCALE})\.json",
    **{kind: rf"json/{kind}_(?P<scale>{SCALE}?)_(?P<tag>{_TAG})\.json" for kind in CONSISTENCY},
    "cross_alignment": rf"json/cross_alignment_(?P<scale>{SCALE})\.json",
    "vectors": rf"npz/vectors_(?P<scale>{SCALE})\.npz",
    "cross_group_vectors": rf"npz/cross_group_vectors_(?P<scale>{SCALE})\.npz",
}


@dataclass(frozen=True)
class Named:
    """A file of the layout by its name. layer: ours. scale, layer and variant are None where the name has none."""

    kind: str
    scale: str | None
    layer: int | None
    variant: str | None


@dataclass(frozen=True)
class CrossDeltas:
    """Deltas of quads: row i of both arrays is one quad. All that the study keeps of them: no states, no categories.

    read: of one layer, "vertical" or "distance", [quad, width].
    """

    layers: tuple[int, ...]
    read: Callable[[int, str], Float[np.ndarray, "quad width"]]

    def vertical(self, layer: int) -> Float[np.ndarray, "quad width"]:
        return self.read(layer, "vertical")

    def distance(self, layer: int) -> Float[np.ndarray, "quad width"]:
        return self.read(layer, "distance")


def deltas_of(vertical: States, distance: States) -> CrossDeltas:
    """Those of the states of quads; quads that lack any are left out layer by layer.

    Raises ValueError unless rows and layers agree.
    """
    if len(vertical) != len(distance) or vertical.layers != distance.layers:
        raise ValueError(
            f"vertical states have {len(vertical)} pairs and layers {list(vertical.layers)}, those of distance "
            f"{len(distance)} and {list(distance.layers)}; row i of both must be one quad"
        )
    both = {"vertical": vertical, "distance": distance}

    def read(layer: int, which: str) -> Float[np.ndarray, "quad width"]:
        keep = np.isfinite(vertical.delta(layer)).all(axis=1) & np.isfinite(distance.delta(layer)).all(axis=1)
        return both[which].delta(layer)[keep]

    return CrossDeltas(blocks(vertical.layers), read)


def named(path: str) -> Named | None:
    """What the path within the folder ("json/pred_stats_80k.json") says; None for a file that is not of the layout."""
    for kind, pattern in _KINDS.items():
        if found := re.fullmatch(pattern, path):
            parts = found.groupdict()
            layer = None if parts.get("block") is None else int(parts["block"]) + 1
            return Named(kind, parts.get("scale"), layer, VARIANTS.get(parts.get("tag", "")))
    return None


def layer_of(key: str, before: str) -> int | None:
    """Our layer of a name such as "orig_L11" (before: "orig_L"); None for any other name."""
    block = key.removeprefix(before)
    return int(block) + 1 if block != key and re.fullmatch(BLOCK, block) else None


def blocks(layers: Iterable[Layer]) -> tuple[int, ...]:
    """The layers that the study has too, in order: outputs of blocks, 1 to L; also where tables hold numbers as text."""
    return tuple(sorted({int(layer) for layer in layers if str(layer).isdecimal() and int(layer) > 0}))


def representative(layers: Sequence[int]) -> tuple[int, ...]:
    """At most 5 of them, evenly spread, first and last included."""
    chosen = np.linspace(0, len(layers) - 1, min(REPRESENTATIVE, len(layers))).round().astype(int)
    return tuple(layers[place] for place in chosen)
