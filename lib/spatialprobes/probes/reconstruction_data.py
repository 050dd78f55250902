"""What a reconstructor is trained and measured on: pairs of E_pre and E_post, their split, statistics and linear baseline.

Pairs are [picture, token, width] arrays, or anything that is indexed as they are by slices and lists; they are read by blocks,
never whole. Knows numbers and keys; no model, no network, no files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

BLOCK = 256  # pictures read at a time
RIDGES = tuple(10.0**power for power in range(-6, 3))  # penalties tried, in units of a standardised dimension's variance


def rows(vectors: Any, which: Sequence[int] | slice) -> Float[Tensor, "picture token width"]:
    """These pictures as float32 on the CPU."""
    if isinstance(which, slice):
        found = vectors[which]
    else:
        index = torch.as_tensor(which) if isinstance(vectors, Tensor) else np.asarray(which, dtype=np.int64)
        found = vectors[index]
    return (
        found.float().cpu() if isinstance(found, Tensor) else torch.from_numpy(np.array(found, np.float32))
    )  # a view may be read-only


def check(pre: Any, post: Any, keys: Sequence[str]) -> tuple[tuple[int, int], tuple[int, int]]:
    """(tokens, width) of E_pre and of E_post.

    Raises ValueError for arrays that are not [picture, token, width] or not of as many pictures as there are keys, and for keys
    that repeat or are no text.
    """
    for name, vectors in (("pre", pre), ("post", post)):
        shape = getattr(vectors, "shape", None)
        if shape is None:
            raise ValueError(f"{name} is an array [picture, token, width] of pictures of one size, not {type(vectors).__name__}")
        if len(shape) != 3:
            raise ValueError(f"{name} is [picture, token, width], not of shape {tuple(shape)}")
        if len(vectors) != len(keys):
            raise ValueError(f"{name} holds {len(vectors)} pictures for {len(keys)} keys; align them first")
    if wrong := [key for key in keys if not isinstance(key, str)]:
        raise ValueError(f"keys are strings; {wrong[0]!r} is {type(wrong[0]).__name__}")
    if len(set(keys)) < len(keys):
        twice = sorted(key for key in set(keys) if list(keys).count(key) > 1) if len(keys) < 10_000 else ["..."]
        raise ValueError(f"{len(keys) - len(set(keys))} keys stand twice, such as {twice[0]!r}")
    return tuple(pre.shape[1:]), tuple(post.shape[1:])


def check_finite(pre: Any, post: Any, keys: Sequence[str]) -> None:
    """Raises ValueError naming the side and a picture, and how many there are, that holds NaN or infinities."""
    for name, vectors in (("pre", pre), ("post", post)):
        broken: list[str] = []
        for which, block in blocks(vectors, range(len(keys))):
            finite = torch.isfinite(block).flatten(1).all(1)
            broken += [keys[place] for place, fine in zip(which, finite.tolist(), strict=True) if not fine]
        if broken:
            raise ValueError(f"{name}: {len(broken)} of {len(keys)} pictures hold NaN or infinities, such as {broken[0]!r}")


def digest(facts: Any) -> str:
    """First 16 hex digits of the SHA-256 of facts in JSON's types."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def split(
    keys: Sequence[str], groups: Int[np.ndarray, " picture"] | None = None, validation: float = 0.2, seed: int = 0
) -> Bool[np.ndarray, " picture"]:
    """Which pictures are held out for validation: whole groups of duplicates, about a share `validation` of the pictures.

    groups: a label a picture, the same for pictures that are duplicates of one another (each its own without). The choice depends
    on keys and groups, not on their order. Raises ValueError for lengths that differ, a share outside (0, 1) and fewer than two
    groups.
    """
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation} is no share between 0 and 1")
    labels = np.arange(len(keys)) if groups is None else np.asarray(groups)
    if len(labels) != len(keys):
        raise ValueError(f"{len(labels)} group labels for {len(keys)} keys")
    _, codes = np.unique(labels, return_inverse=True)
    first = {}
    for key, code in sorted(zip(keys, codes.tolist(), strict=True)):
        first.setdefault(code, key)  # a group is known by its first key, whatever its label
    order = sorted(first, key=first.get)
    if len(order) < 2:
        raise ValueError(f"{len(order)} groups of duplicates: at least 2 are needed to hold one out")
    sizes = np.bincount(codes)
    shuffled = np.random.default_rng(check_seed(seed)).permutation(len(order))
    chosen: list[int] = []
    for place in shuffled[:-1]:
        if chosen and sizes[chosen].sum() + sizes[order[place]] / 2 > validation * len(keys):
            break
        chosen.append(order[place])
    return np.isin(codes, chosen)


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each dimension over all tokens of the training pictures, float64.

    A dimension that never moves has deviation 0; it is standardised to 0, and no error is measured in it.
    """

    pre_mean: Float[Tensor, " width"]
    pre_std: Float[Tensor, " width"]
    post_mean: Float[Tensor, " width"]
    post_std: Float[Tensor, " width"]

    def standardised(self, vectors: Tensor, side: str) -> Tensor:
        """E_pre or E_post (side "pre" or "post") with mean 0 and deviation 1 in every dimension that moves."""
        mean, std = getattr(self, f"{side}_mean"), getattr(self, f"{side}_std")
        return (vectors - mean.to(vectors)) * _inverse(std).to(vectors)

    def raw(self, standardised: Tensor) -> Tensor:
        """Standardised E_pre in the model's own units."""
        return standardised * self.pre_std.to(standardised) + self.pre_mean.to(standardised)


def statistics(pre: Any, post: Any, train: Sequence[int]) -> Statistics:
    """Of these pictures: sums in float64, means first and then deviations from them, so that large means cost no digits."""
    found = {}
    for name, vectors in (("pre", pre), ("post", post)):
        count, total = 0, 0.0
        for _, block in blocks(vectors, train):
            flat = block.flatten(0, 1).double()
            count, total = count + len(flat), total + flat.sum(0)
        mean, squares = total / count, 0.0
        for _, block in blocks(vectors, train):
            squares = squares + (block.flatten(0, 1).double() - mean).square().sum(0)
        std = (squares / count).sqrt()
        still = std <= 1e-7 * mean.abs()  # float32's own rounding of a constant
        found[name] = mean, std.masked_fill(still, 0.0)
    return Statistics(*found["pre"], *found["post"])


def blocks(vectors: Any, which: Sequence[int], size: int = BLOCK) -> Iterator[tuple[list[int], Tensor]]:
    """(places, [picture, token, width]) of these pictures, `size` at a time."""
    which = [int(place) for place in which]
    for start in range(0, len(which), size):
        chunk = which[start : start + size]
        yield chunk, rows(vectors, chunk)


class PairsData(Dataset):
    """Item i: (E_post, E_pre) of the i-th of the pictures `which`, raw."""

    def __init__(self, pre: Any, post: Any, which: Sequence[int]):
        self.pre, self.post, self.which = pre, post, [int(place) for place in which]

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        place = self.which[index]
        return rows(self.post, slice(place, place + 1))[0], rows(self.pre, slice(place, place + 1))[0]

    @staticmethod
    def collate(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        post, pre = zip(*items, strict=True)
        return {"post": torch.stack(post), "pre": torch.stack(pre)}


@dataclass(frozen=True)
class Linear:
    """Ridge regression from standardised E_post to standardised E_pre, in closed form.

    weight: [in, out]. Where tokens keep their order (`together` > 0), each token gives the `together` tokens it was made of;
    where they don't (0: latents), their mean gives a shift of every token, beside `places`, the mean of each place. ridge: the
    penalty, the best of `RIDGES` for validation.
    """

    weight: Float[Tensor, "in out"]
    places: Float[Tensor, "pre_token pre_width"]
    together: int
    ridge: float

    def __call__(self, post: Float[Tensor, "n token width"]) -> Float[Tensor, "n pre_token pre_width"]:
        tokens, width = self.places.shape
        weight, places = self.weight.to(post), self.places.to(post)
        if self.together:
            return (post @ weight).reshape(len(post), tokens, width)
        return places + (post.mean(1) @ weight)[:, None]


def aligned(pre_tokens: int, post_tokens: int) -> bool:
    """Whether numbers of tokens speak for a connector that keeps their order: one to one, or four patches to a cell."""
    return pre_tokens in (post_tokens, 4 * post_tokens)


def linear_baseline(
    pre: Any, post: Any, train: Sequence[int], validation: Sequence[int], scales: Statistics, in_order: bool
) -> Linear:
    """Fitted on the training pictures, its penalty chosen by the validation pictures. in_order: tokens of E_post keep theirs."""
    (pre_tokens, pre_width), post_tokens = pre.shape[1:], post.shape[1]
    together = pre_tokens // post_tokens if in_order else 0
    if together:
        places = torch.zeros(pre_tokens, pre_width)  # standardised values have mean 0 over the tokens
    else:
        places = sum(scales.standardised(block, "pre").double().sum(0) for _, block in blocks(pre, train)) / len(train)

    def pairs(which: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        for (_, before), (_, after) in zip(blocks(pre, which), blocks(post, which), strict=True):
            target, read = scales.standardised(before, "pre"), scales.standardised(after, "post")
            if together:
                yield read.flatten(0, 1), target.reshape(-1, together * pre_width)
            else:
                yield read.mean(1), (target - places.to(target)).mean(1)

    fitted, held = _moments(pairs, train), _moments(pairs, validation)
    values, vectors = torch.linalg.eigh(fitted.inner)
    turned = vectors.T @ fitted.cross
    weights = [vectors @ (turned / (values + ridge)[:, None]) for ridge in RIDGES]
    errors = [float((weight * (held.inner @ weight - 2 * held.cross)).sum()) for weight in weights]
    best = int(np.argmin(errors))
    return Linear(weights[best].float(), places.float(), together, RIDGES[best])


@dataclass(frozen=True)
class _Moments:
    """Means over all rows: read^T read [in, in] and read^T target [in, out], float64."""

    inner: Tensor
    cross: Tensor


def _moments(pairs: Callable[[Sequence[int]], Iterator[tuple[Tensor, Tensor]]], which: Sequence[int]) -> _Moments:
    inner = cross = count = 0
    for read, target in pairs(which):
        inner, cross = inner + (read.T @ read).double(), cross + (read.T @ target).double()
        count += len(read)
    return _Moments(inner / count, cross / count)


def _inverse(std: Tensor) -> Tensor:
    return torch.where(std > 0, 1 / std.clamp(min=torch.finfo(std.dtype).tiny), torch.zeros_like(std))
