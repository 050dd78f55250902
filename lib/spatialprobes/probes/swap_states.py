"""Hidden states of swap pairs, layer by layer, wherever they lie: what the extraction leaves and every measure reads.

Knows arrays and tables; knows nothing of models, stores and measures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spatialprobes.pairs import GROUP_OF, SIGN, Pair

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Layer = int | str  # 0..L as in `capture`, or "norm"
MEMBERS = ("original", "swapped")
COLUMNS = ("pair", "category", "group", "cluster")


@dataclass(frozen=True)
class States:
    """pairs: one row a pair, [pair, category, group, cluster]. layers: those there are.

    read: states of one layer and member ("original" or "swapped"), float32 [pair, width], rows as in `pairs`; NaN where a pair
    has none.
    """

    pairs: pd.DataFrame
    layers: tuple[Layer, ...]
    read: Callable[[Layer, str], Float[np.ndarray, "pair width"]]

    def __len__(self) -> int:
        return len(self.pairs)

    def original(self, layer: Layer) -> Float[np.ndarray, "pair width"]:
        return self._read(layer, "original")

    def swapped(self, layer: Layer) -> Float[np.ndarray, "pair width"]:
        return self._read(layer, "swapped")

    def delta(self, layer: Layer) -> Float[np.ndarray, "pair width"]:
        """swapped - original."""
        return self.swapped(layer) - self.original(layer)

    @property
    def signs(self) -> Int[np.ndarray, " pair"]:
        """+1 for left, above and far, -1 for their opposites."""
        return self.pairs["category"].map(SIGN).to_numpy()

    def canonical(self, layer: Layer) -> Float[np.ndarray, "pair width"]:
        """Sign-corrected deltas: each as if its pair were left, above or far."""
        return self.delta(layer) * self.signs[:, None]

    def select(self, keep: Bool[np.ndarray, " pair"]) -> States:
        """The pairs for which `keep` is true."""
        keep = np.asarray(keep, dtype=bool)
        if keep.shape != (len(self),):
            raise ValueError(f"keep has shape {keep.shape}; one value for each of {len(self)} pairs is wanted")
        read = self.read
        return States(self.pairs[keep].reset_index(drop=True), self.layers, lambda layer, member: read(layer, member)[keep])

    def _read(self, layer: Layer, member: str) -> Float[np.ndarray, "pair width"]:
        if layer not in self.layers:
            raise ValueError(f"layer {layer!r} was not extracted; there: {', '.join(map(str, self.layers))}")
        return self.read(layer, member)


def from_arrays(
    pairs: pd.DataFrame,
    original: Mapping[Layer, Float[np.ndarray, "pair width"]],
    swapped: Mapping[Layer, Float[np.ndarray, "pair width"]],
) -> States:
    """States held in memory. Raises ValueError for arrays that do not fit one another or the pairs."""
    if missing := [name for name in COLUMNS if name not in pairs.columns]:
        raise ValueError(f"pairs lacks the column {missing[0]!r}; wanted: {', '.join(COLUMNS)}")
    if tuple(original) != tuple(swapped) or not original:
        raise ValueError(f"layers of original {list(original)} and swapped {list(swapped)} must be the same, and at least one")
    held = {"original": dict(original), "swapped": dict(swapped)}
    for member, arrays in held.items():
        for layer, array in arrays.items():
            if array.ndim != 2 or array.shape != original[layer].shape or len(array) != len(pairs):
                raise ValueError(f"{member} states of layer {layer} have shape {array.shape}; {len(pairs)} pairs are wanted")
    return States(pairs.reset_index(drop=True), tuple(original), lambda layer, member: held[member][layer])


def frame(pairs: Sequence[Pair]) -> pd.DataFrame:
    """[pair, category, group, cluster] of pairs, in their order."""
    rows = [(one.id, one.category, GROUP_OF[one.category], one.cluster) for one in pairs]
    return pd.DataFrame(rows, columns=list(COLUMNS))
