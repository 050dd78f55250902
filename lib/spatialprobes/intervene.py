"""Writing into a model while it runs: `with intervene(vlm, permute=..., positions=..., steer=..., heads=..., features=...)`.

Acts on the image features in raster order, just before they enter the language model (their order here, the features themselves
in `features_edit.py`), on the position ids of their tokens, on hidden states (`steering.py`) and on what heads give
(`heads_off.py`), so it holds in a forward, in a plain `vlm.model.generate(...)`, with and without cache. Composable, and gone on
any exit. Order and positions are apart: a permuted patch
gets the position of the place it comes to, unless `positions=carried(permutation)` says otherwise; the positions of the text
never move. Knows no probe; how features are reached is the family's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spatialprobes.families import ALL, AXES, Edit, check_axis
from spatialprobes.features_edit import FeaturesEdit, edited_features, low_rank, masked, replaced, rotated
from spatialprobes.heads_off import HeadsOff, ablated, heads_off
from spatialprobes.seeds import check_seed
from spatialprobes.steering import Steering, added, removed, steered
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped

__all__ = [
    "ablated", "added", "carried", "constant", "intervene", "low_rank", "masked", "random_permutations", "removed", "replaced",
    "rotated", "shifted",
]  # fmt: skip

Permutation = Tensor | np.ndarray | Sequence[int]  # [token]
Permutations = Permutation | Mapping[str, Permutation]  # one, [image, token], or one per cluster


@contextmanager
def intervene(
    vlm: VLM,
    permute: Permutations | None = None,
    positions: Positions | None = None,
    steer: Steering | None = None,
    heads: HeadsOff | None = None,
    features: FeaturesEdit | None = None,
) -> Iterator[None]:
    """While open, the vision tokens of every picture are permuted (place i holds what stood at permute[i]) or stand elsewhere,
    their features are changed, hidden states are steered, or heads are taken out.

    permute: one permutation for every picture; or one per row of the batch ([image, token]); or a mapping from `Example.cluster`
    (the id where it has none) to the permutation of its picture, which also holds where examples are sorted and batched anew, as
    in `answers`. positions: `shifted(...)`, `constant()`, `carried(...)`, or a function that maps the position ids of a picture's
    tokens ([axis, token], in order of place) to others of that shape, whole numbers or not; positions of the text stay.
    steer: `added(vectors, layer)` or `removed(direction, layer)`: what is done to hidden states after a layer, at which tokens.
    heads: `ablated(heads)`: which give 0, or their mean, and at which tokens.
    features: `replaced(features)`, `masked(level)`, `low_rank(rank)` or `rotated(amount)`: what enters the language model for a
    picture; together with permute, before it.
    Nested interventions act in the order in which they were opened.
    Raises ValueError for what is no permutation and for an axis, layer, head or width that the model lacks, and, once it runs,
    for a length other than the picture's number of tokens, for a number of rows other than the batch's, for a picture without a
    permutation, vector or features, and for position ids that are not finite or of another shape.
    """
    if all(action is None for action in (permute, positions, steer, heads, features)):
        actions = "permute=<permutation>, positions=<function of position ids>, steer=added(<vectors>, <layer>)"
        legal = f"{actions}, heads=ablated(<heads>) or features=replaced(<features>)"
        raise ValueError(f"intervene was given nothing to do; {legal}")
    with ExitStack() as stack:
        if features is not None:
            stack.enter_context(edited_features(vlm, features))
        if permute is not None:
            permutations = _checked(permute)
            stack.enter_context(_in_batch_order(vlm, permutations))
            stack.enter_context(vlm.family.edit_image_features(vlm.model, _permuting(vlm, permutations, dim=0)))
        if positions is not None:
            stack.enter_context(vlm.family.edit_positions(vlm.model, _moving(vlm, positions, stack)))
        if steer is not None:
            for values in steer.values:
                stack.enter_context(_in_batch_order(vlm, values))
            stack.enter_context(steered(vlm, steer))
        if heads is not None:
            stack.enter_context(heads_off(vlm, heads))
        yield


@dataclass(frozen=True)
class Shifted:
    """Position ids [axis, token] moved by `delta` along an axis, or along all."""

    delta: float
    axis: str

    def __call__(self, ids: Shaped[Tensor, "axis token"]) -> Shaped[Tensor, "axis token"]:
        moves = torch.tensor([self.axis in (ALL, name) for name in AXES[: len(ids)]], device=ids.device)
        return ids + self.delta * moves[:, None]


@dataclass(frozen=True)
class Carried:
    """permutations: one, [image, token], or one per cluster, as `intervene` takes them; checked."""

    permutations: Tensor | dict[str, Tensor]


Positions = Callable[[Tensor], Tensor] | Carried


def shifted(delta: float, axis: str = ALL) -> Shifted:
    """Every vision token stands `delta` positions later (any real number; earlier where negative).

    axis: "all", or one of M-RoPE's "temporal", "height", "width". Raises ValueError for a delta that is not finite.
    """
    if isinstance(delta, bool) or not isfinite(delta):
        raise ValueError(f"delta={delta!r} is not a finite number of positions")
    check_axis(axis, AXES)
    return Shifted(delta, axis)


def constant() -> Callable[[Tensor], Tensor]:
    """All vision tokens of a picture stand at one position: the mean of theirs on each axis, as far from the words on average."""
    return lambda ids: ids.float().mean(-1, keepdim=True).expand(ids.shape)


def carried(permutation: Permutations) -> Carried:
    """Position ids that go with the tokens: place i gets the ids of place permutation[i].

    Together with `permute=permutation`, every patch keeps the position of where it came from, and only the order in the sequence
    is shuffled. permutation: as `permute`.
    """
    return Carried(_checked(permutation))


def random_permutations(n: int, count: int, seed: int = 0) -> Int[Tensor, "permutation token"]:
    """Seeded permutations of n tokens, for one picture each. Raises ValueError for what is no seed."""
    generator = torch.Generator().manual_seed(check_seed(seed))
    return torch.stack([torch.randperm(n, generator=generator) for _ in range(count)])


def _permuting(vlm: VLM, permutations: Tensor | dict[str, Tensor], dim: int) -> Edit:
    def edit(values: list[Tensor]) -> list[Tensor]:
        chosen = _for_pictures(permutations, vlm, len(values))
        return [_permuted(one, permutation, dim) for one, permutation in zip(values, chosen, strict=True)]

    return edit


def _moving(vlm: VLM, positions: Positions, stack: ExitStack) -> Edit:
    if isinstance(positions, Carried):
        stack.enter_context(_in_batch_order(vlm, positions.permutations))
        return _permuting(vlm, positions.permutations, dim=1)
    if isinstance(positions, Shifted):
        axes = vlm.family.position_axes(vlm.model)
        check_axis(positions.axis, axes if len(axes) > 1 else ())
    return lambda ids: [positions(one) for one in ids]


@contextmanager
def _in_batch_order(vlm: VLM, values: Tensor | dict[str, Tensor]) -> Iterator[None]:
    """While open, the model knows whether these permutations or vectors hold for the rows of one batch, in its order."""
    by_row = isinstance(values, Tensor) and values.ndim == 2
    vlm.by_row_interventions += by_row
    try:
        yield
    finally:
        vlm.by_row_interventions -= by_row


def _checked(permute: Permutations) -> Tensor | dict[str, Tensor]:
    if isinstance(permute, Mapping):
        return {cluster: _permutation(permutation) for cluster, permutation in permute.items()}
    tensor = _whole(permute)
    if tensor.ndim == 2:
        return torch.stack([_permutation(row) for row in tensor])
    return _permutation(tensor)


def _whole(permute: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    tensor = torch.as_tensor(np.asarray(permute) if not isinstance(permute, Tensor) else permute)
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.ndim not in (1, 2) or not tensor.numel():
        raise ValueError(
            f"a permutation is whole numbers [token] or [image, token], not {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    return tensor.long().cpu()


def _permutation(values: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    tensor = _whole(values)
    n = len(tensor)
    if tensor.ndim != 1 or not torch.equal(tensor.sort().values, torch.arange(n)):
        missing = sorted(set(range(n)) - set(tensor.flatten().tolist()))[:5]
        raise ValueError(
            f"not a permutation of 0..{n - 1}: {', '.join(map(str, missing))} missing from {tensor.tolist()[:10]}..."
        )
    return tensor


def _for_pictures(permutations: Tensor | dict[str, Tensor], vlm: VLM, count: int) -> list[Tensor]:
    if isinstance(permutations, dict):
        if vlm.batch is None:
            raise ValueError(
                "a permutation by cluster needs the batch: run by vlm.forward, vlm.generate or `with vlm.running(batch)`"
            )
        clusters = [example.cluster or example.id for example in vlm.batch.examples]
        if lacking := sorted(set(clusters) - set(permutations)):
            raise ValueError(f"no permutation for cluster {lacking[0]!r} ({len(lacking)} of {len(set(clusters))} lack one)")
        return [permutations[cluster] for cluster in clusters]
    if permutations.ndim == 1:
        return [permutations] * count
    if len(permutations) != count:
        raise ValueError(f"{len(permutations)} permutations for a batch of {count} pictures; give one, or one per picture")
    return list(permutations)


def _permuted(values: Tensor, permutation: Tensor, dim: int) -> Tensor:
    if len(permutation) != values.shape[dim]:
        raise ValueError(
            f"the permutation has {len(permutation)} entries, expected n = {values.shape[dim]}, the picture's vision tokens"
        )
    return values.index_select(dim, permutation.to(values.device))
