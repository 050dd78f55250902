"""Which pictures are copies of one another, exactly or nearly? A label a picture; pictures of one label are one group.

Exact copies have the same pixels (or the same numbers); near ones are joined by cosines of pooled vectors above a threshold, and
by whatever chain of such cosines links them. Knows pictures and arrays; knows nothing of models and figures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from spatialprobes.examples import Example
from spatialprobes.images import open_image

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Shaped

TILE = (512, 4096)  # cosines held at once


def exact(items: Sequence[Example] | Sequence[str] | Shaped[np.ndarray, "n ..."]) -> Int[np.ndarray, " n"]:
    """A label for each item, 0, 1, ... in order of appearance, the same for items whose content is the same.

    items: Examples, whose decoded pixels and size are compared (by SHA-256, so that no picture is kept); their digests, where
    they are known (`ConnectorStates.digests`); or an array (numpy or torch) whose rows are compared bit by bit, 0 and -0 alike.
    Raises ValueError for NaN, which equals nothing, and ImageError naming a picture that can't be read.
    """
    if isinstance(items, (np.ndarray, torch.Tensor)):
        return _labels([_digest(row) for row in _rows(items)])
    return _labels([item if isinstance(item, str) else _pixels(item) for item in items])


def near(
    vectors: Float[np.ndarray, "n width"], threshold: float = 0.99, keys: Sequence[str] | None = None
) -> Int[np.ndarray, " n"]:
    """A label for each row, as `exact`: rows with a cosine of at least `threshold` are joined, and all that such joints link.

    vectors: pooled ones, numpy or torch; cosines in fp32, in tiles, and in fp64 where that does not decide. keys: what errors
    call the rows.
    Raises ValueError for a threshold outside (-1, 1], a row that is not finite or of length 0, or not [n, width].
    """
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold={threshold} is no cosine above -1 and up to 1")
    rows = _directed(vectors, keys)
    unit = torch.cat([_unit(part).float() for part in rows.split(TILE[1])])
    margin = 2.0**-22 * (rows.shape[1] ** 0.5 + 4)  # more than fp32 rounds off a cosine
    label = np.arange(len(rows))
    for i in range(0, len(rows), TILE[0]):
        for j in range(i, len(rows), TILE[1]):
            cosines = unit[i : i + TILE[0]] @ unit[j : j + TILE[1]].T
            one, other = torch.nonzero(cosines >= threshold - margin, as_tuple=True)
            new = label[one.numpy() + i] != label[other.numpy() + j]
            one, other = one[new], other[new]
            close = cosines[one, other] < threshold + margin
            alike = ~close
            alike[close] = _cosine(rows[one[close] + i], rows[other[close] + j]) >= threshold - 1e-12  # of equal rows 1 - 1e-16
            label = _linked(label, label[one[alike].numpy() + i], label[other[alike].numpy() + j])
    return _labels(label.tolist())


def joined(*labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The groups of several labellings together: what any of them puts together, and what that links. Raises ValueError for
    labellings of different lengths."""
    first, *rest = (np.asarray(one) for one in labels)
    together = _labels(first.tolist())
    for other in rest:
        if len(other) != len(first):
            raise ValueError(f"labellings of {len(first)} and {len(other)} items do not join")
        begins = np.unique(other, return_index=True, return_inverse=True)
        together = _linked(together, together, together[begins[1][begins[2]]])
    return _labels(together.tolist())


def representatives(labels: Int[np.ndarray, " n"], keys: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Whether each item stands for its group: the one whose key comes first in the order of text. Raises ValueError for labels
    and keys of different lengths."""
    labels = np.asarray(labels)
    if len(labels) != len(keys):
        raise ValueError(f"{len(labels)} labels do not fit {len(keys)} keys")
    order = np.argsort(np.asarray(keys, dtype=str), kind="stable")
    chosen = np.zeros(len(labels), bool)
    chosen[order[np.unique(labels[order], return_index=True)[1]]] = True
    return chosen


def multiplicity(labels: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many items there are in each item's group, itself included."""
    _, codes, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return counts[codes]


def _linked(label: Int[np.ndarray, " n"], one: Int[np.ndarray, " pair"], other: Int[np.ndarray, " pair"]):
    """`label` with the labels of each pair made one, the lower of all that are linked."""
    differ = one != other
    if not differ.any():
        return label
    pairs = np.unique(np.stack([one[differ], other[differ]]), axis=1)
    parent = np.arange(label.max() + 1)
    while True:
        low = np.minimum(parent[pairs[0]], parent[pairs[1]])
        before = parent.copy()
        np.minimum.at(parent, before[pairs[0]], low)
        np.minimum.at(parent, before[pairs[1]], low)
        parent = parent[parent]
        if np.array_equal(parent, before):
            return parent[label]


def _labels(contents: Sequence) -> Int[np.ndarray, " n"]:
    numbers: dict = {}
    return np.array([numbers.setdefault(content, len(numbers)) for content in contents], np.int64)


def _pixels(example: Example) -> bytes:
    image = open_image(example.image, name=example.id)
    return _digest(np.asarray(image), str(image.size).encode())


def _digest(array: np.ndarray, begin: bytes = b"") -> bytes:
    digest = hashlib.sha256(begin)
    digest.update(np.ascontiguousarray(array))
    return digest.digest()


def _rows(items: Shaped[np.ndarray, "n ..."]) -> Shaped[np.ndarray, "n ..."]:
    array = items.detach().cpu() if isinstance(items, torch.Tensor) else items
    if isinstance(array, torch.Tensor):
        array = (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    if array.dtype.kind == "f":
        if np.isnan(array).any():
            raise ValueError(f"{int(np.isnan(array).sum())} numbers are NaN, which equal nothing: no copies among such rows")
        array = array + np.zeros((), array.dtype)  # -0 becomes 0
    return array


def _directed(vectors: Float[np.ndarray, "n width"], keys: Sequence[str] | None) -> Float[torch.Tensor, "n width"]:
    """Rows, each of which has a direction."""
    rows = vectors.detach().cpu() if isinstance(vectors, torch.Tensor) else torch.as_tensor(np.asarray(vectors))
    if rows.ndim != 2:
        raise ValueError(f"vectors has shape {tuple(rows.shape)}; [n, width] is wanted")
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    if wrong := torch.nonzero(~(torch.isfinite(norms) & (norms > 0))).flatten().tolist():
        first = f"row {wrong[0]}" if keys is None else f"{keys[wrong[0]]!r} (row {wrong[0]})"
        raise ValueError(f"{len(wrong)} of {len(rows)} vectors are not finite or of length 0, first {first}")
    return rows


def _unit(rows: Float[torch.Tensor, "n width"]) -> Float[torch.Tensor, "n width"]:
    return torch.nn.functional.normalize(rows.double(), dim=1, eps=0.0)


def _cosine(one: Float[torch.Tensor, "pair width"], other: Float[torch.Tensor, "pair width"]) -> Float[torch.Tensor, " pair"]:
    """In fp64; of equal rows a gathering of all at once, so tiles bound it."""
    return torch.linalg.vecdot(_unit(one), _unit(other))
