"""Writing into a model while it runs: `with intervene(vlm, permute=...)`.

Acts on the image features in raster order, just before they enter the language model, so it holds in a forward, in a plain
`vlm.model.generate(...)`, with and without cache. Composable, and gone on any exit. Positions are not moved: a permuted patch
gets the position of the place it comes to. Knows no probe; how features are reached is the family's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Permutation = Tensor | np.ndarray | Sequence[int]  # [token]
Permutations = Permutation | Mapping[str, Permutation]  # one, [image, token], or one per cluster


@contextmanager
def intervene(vlm: VLM, permute: Permutations | None = None) -> Iterator[None]:
    """While open, the vision tokens of every picture are permuted: place i holds what stood at permute[i].

    permute: one permutation for every picture; or one per row of the batch ([image, token]); or a mapping from `Example.cluster`
    (the id where it has none) to the permutation of its picture, which also holds where examples are sorted and batched anew, as
    in `answers`. Nested interventions act in the order in which they were opened.
    Raises ValueError for what is no permutation, and, once the model runs, for a length other than the picture's number of
    tokens, for a number of rows other than the batch's, and for a picture without one.
    """
    if permute is None:
        raise ValueError("intervene was given nothing to do; permute=<permutation>")
    permutations = _checked(permute)

    def edit(features: list[Float[Tensor, "token width"]]) -> list[Float[Tensor, "token width"]]:
        chosen = _for_pictures(permutations, vlm, len(features))
        return [_permuted(tokens, permutation) for tokens, permutation in zip(features, chosen, strict=True)]

    by_row = isinstance(permutations, Tensor) and permutations.ndim == 2
    vlm.by_row_interventions += by_row
    try:
        with vlm.family.edit_image_features(vlm.model, edit):
            yield
    finally:
        vlm.by_row_interventions -= by_row


def random_permutations(n: int, count: int, seed: int = 0) -> Int[Tensor, "permutation token"]:
    """Seeded permutations of n tokens, for one picture each."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(n, generator=generator) for _ in range(count)])


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


def _permuted(tokens: Float[Tensor, "token width"], permutation: Tensor) -> Float[Tensor, "token width"]:
    if len(permutation) != len(tokens):
        raise ValueError(
            f"the permutation has {len(permutation)} entries, expected n = {len(tokens)}, the picture's vision tokens"
        )
    return tokens[permutation.to(tokens.device)]
