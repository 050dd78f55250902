"""Other features in the places of a picture's: stored ones put back, tokens masked, low rank, or turned.

Opened by `intervene(vlm, features=replaced(...))`, `masked(...)`, `low_rank(...)` or `rotated(...)`. Acts on what enters the
language model, a picture at a time and in raster order, so it is the same in every family, in a forward, in
`vlm.model.generate(...)` and behind a shared prefix. What is drawn depends on the seed and on the picture's name, not on the
batch. Knows no probe; the same changes are here as functions of arrays, for those who measure them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from spatialprobes.examples import Example
from spatialprobes.seeds import check_seed
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Fill = Literal["zero", "mean"]
Change = Callable[[Tensor, Example | None], Tensor]  # features [token, width] of a picture, and whose they are


@dataclass(frozen=True, eq=False)
class FeaturesEdit:
    """What is done to the features of each picture. by_name: it depends on whose they are, so the batch must be known."""

    change: Change
    by_name: bool


def replaced(features: Mapping[str, Tensor | np.ndarray]) -> FeaturesEdit:
    """Put these features in the places of a picture's own.

    features: by `Example.id`, else by its cluster, [token, width] in raster order, of the model's own number of tokens and width;
    they are cast to its dtype. The mapping is read when a picture is run, so it may read from a disk.
    Raises ValueError, once the model runs, for a picture without features, another shape, and numbers that are not finite.
    """
    if not isinstance(features, Mapping):
        raise ValueError(
            f"features are a mapping from an example's id or cluster to [token, width], not {type(features).__name__}"
        )

    def change(own: Tensor, example: Example) -> Tensor:
        name = next((name for name in (example.id, example.cluster) if name in features), None)
        if name is None:
            raise ValueError(f"no features for example {example.id!r} or its cluster; there are {len(features)}")
        other = torch.as_tensor(features[name])
        if other.shape != own.shape:
            raise ValueError(f"features of {name!r} are of shape {tuple(other.shape)}; the model takes {tuple(own.shape)}")
        if not bool(other.isfinite().all()):
            raise ValueError(f"features of {name!r} hold {int((~other.isfinite()).sum())} numbers that are NaN or infinite")
        return other.to(own)

    return FeaturesEdit(change, by_name=True)


def masked(level: float, seed: int = 0, fill: Fill = "zero") -> FeaturesEdit:
    """Each token is replaced with probability `level` by zeros, or by the mean of the picture's tokens.

    See `drawn_mask` for what is drawn. Raises ValueError for a level outside [0, 1], an unknown fill, and what is no seed.
    """
    _share(level, "level")
    check_seed(seed)
    if fill not in get_args(Fill):
        raise ValueError(f"fill={fill!r} is unknown; {' or '.join(map(repr, get_args(Fill)))}")

    def change(own: Tensor, example: Example) -> Tensor:
        return with_masked(own, drawn_mask(len(own), level, seed, name_of(example)), fill)

    return FeaturesEdit(change, by_name=True)


def low_rank(rank: int | None = None, *, share: float | None = None, energy: float | None = None) -> FeaturesEdit:
    """The nearest features whose tokens, less their mean, have a lower rank; the mean token is put back.

    One of: rank, from 1; share, of min(tokens, width), see `rank_of_share`; energy, the least rank that retains such a share of
    the squared singular values. Raises ValueError for none or several of them, and for a value that is out of range.
    """
    given = {name: value for name, value in (("rank", rank), ("share", share), ("energy", energy)) if value is not None}
    if len(given) != 1:
        raise ValueError(f"low_rank takes one of rank, share and energy, not {', '.join(given) or 'none'}")
    if rank is not None:
        if isinstance(rank, bool) or not isinstance(rank, Integral) or rank < 1:
            raise ValueError(f"rank={rank!r} is no rank; a whole number from 1")
    else:
        ((name, value),) = given.items()
        _share(value, name)
        if value == 0:
            raise ValueError(f"{name}=0 keeps nothing; a share in (0, 1]")

    def change(own: Tensor, _: Example | None) -> Tensor:
        spectrum = Spectrum.of(own)
        chosen = rank if rank is not None else rank_of_share(share, *own.shape) if share is not None else spectrum.rank(energy)
        return spectrum.truncated(own, chosen)

    return FeaturesEdit(change, by_name=False)


def rotated(amount: float, seed: int = 0) -> FeaturesEdit:
    """(1 - amount) X + amount X Q, with one random orthogonal Q [width, width] for all pictures, see `rotation`.

    Raises ValueError for an amount that is not in [0, 1] and for what is no seed.
    """
    _share(amount, "amount")
    check_seed(seed)
    return FeaturesEdit(lambda own, _: turned(own, amount, seed), by_name=False)


def name_of(example: Example) -> str:
    """The name by which a picture's draws are made: its cluster, the id where it has none."""
    return example.cluster or example.id


@contextmanager
def edited_features(vlm: VLM, edit: FeaturesEdit) -> Iterator[None]:
    """While open, every picture's features are changed. Raises ValueError, once it runs, where it is not known whose they are."""

    def of_call(features: list[Tensor]) -> list[Tensor]:
        shown = _shown(vlm, len(features)) if edit.by_name else [None] * len(features)
        return [edit.change(own, example) for own, example in zip(features, shown, strict=True)]

    with vlm.family.edit_image_features(vlm.model, of_call):
        yield


# ---- the changes themselves ----
def drawn_mask(tokens: int, level: float, seed: int, name: str) -> Bool[Tensor, " token"]:
    """Which of a picture's tokens are masked: each with probability `level`, by draws that depend on seed and name alone.

    What is masked at one level is masked at every higher one. 0 masks none, 1 all.
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)  # torch's seeds are signed
    return torch.rand(tokens, generator=generator, dtype=torch.float64) < level


def with_masked(features: Float[Tensor, "token width"], mask: Bool[Tensor, " token"], fill: Fill) -> Float[Tensor, "token width"]:
    """The features with zeros, or with the mean over all the picture's tokens, in the masked places."""
    changed = features.clone()
    mask = mask.to(features.device)
    changed[mask] = 0 if fill == "zero" else _exact(features).mean(0).to(features.dtype)
    return changed


@lru_cache(maxsize=2)
def rotation(width: int, seed: int) -> Float[Tensor, "width width"]:
    """A random orthogonal matrix, evenly over all of them (Haar): Q of a Gaussian matrix with the signs of R's diagonal.

    Mezzadri 2007, "How to generate random matrices from the classical compact groups". float64 on the CPU.
    """
    gaussian = torch.randn(width, width, generator=torch.Generator().manual_seed(check_seed(seed)), dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return q * r.diagonal().sign()


def turned(features: Float[Tensor, "token width"], amount: float, seed: int) -> Float[Tensor, "token width"]:
    """(1 - amount) X + amount X Q; at amount 0 the features themselves."""
    if amount == 0:
        return features
    exact = _exact(features)
    return ((1 - amount) * exact + amount * (exact @ rotation(features.shape[1], seed).to(exact))).to(features.dtype)


def rank_of_share(share: float, tokens: int, width: int) -> int:
    """max(1, round(share min(tokens, width))), the connector study's rule. Raises ValueError for a share outside (0, 1]."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share!r} is not in (0, 1]")
    return max(1, round(share * min(tokens, width)))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Of features less their mean token: energies (squared singular values), largest first, and directions in float64.

    directions: left singular vectors where there are fewer tokens than numbers in one, else right ones, [min(token, width)] each.
    """

    mean: Float[Tensor, " width"]
    energies: Float[Tensor, " rank"]
    directions: Float[Tensor, "side rank"]

    @classmethod
    def of(cls, features: Float[Tensor, "token width"]) -> Spectrum:
        """Through the smaller of the two Gram matrices, which in float64 keeps what float32 features can tell."""
        exact = features.double()
        mean = exact.mean(0)
        centred = exact - mean
        gram = centred @ centred.T if len(centred) <= centred.shape[1] else centred.T @ centred
        energies, directions = torch.linalg.eigh(gram)
        return cls(mean, energies.flip(0).clamp(min=0), directions.flip(1))

    def retained(self, rank: int) -> float:
        """Share of the energy that the first `rank` directions hold; 1 where there is none to lose (all tokens alike)."""
        total = float(self.energies.sum())
        return float(self.energies[:rank].sum()) / total if total > 0 else 1.0

    def rank(self, energy: float) -> int:
        """The least rank that retains such a share of the energy."""
        held = self.energies.cumsum(0)
        return 1 + int((held < energy * float(held[-1]) * (1 - 1e-12)).sum())  # the last sum may differ in its last bit

    def truncated(self, features: Float[Tensor, "token width"], rank: int) -> Float[Tensor, "token width"]:
        """The features at this rank; themselves where it is all there is."""
        if rank >= min(features.shape):
            return features
        kept, centred = self.directions[:, :rank], features.double() - self.mean
        near = kept @ (kept.T @ centred) if len(centred) <= centred.shape[1] else (centred @ kept) @ kept.T
        return (self.mean + near).to(features.dtype)


def _shown(vlm: VLM, count: int) -> list[Example]:
    """Whose pictures the call under way shows, row by row."""
    if vlm.batch is None:
        raise ValueError("features by name need the batch: run by vlm.forward, vlm.generate or `with vlm.running(batch)`")
    if len(vlm.batch) != count:
        raise ValueError(f"features by name: {count} pictures are run where the batch has {len(vlm.batch)} rows")
    return vlm.batch.examples


def _exact(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _share(value: float, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} is not a share in [0, 1]")
