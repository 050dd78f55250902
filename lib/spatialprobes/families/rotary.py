"""Turning queries and keys by a number of positions, after the rotary embedding has been applied to them.

A rotation is read from the model's own rotary embedding and proved against what the model does with it, so a kind of embedding
that is not known comes out right or is refused. With several position axes (M-RoPE) each pair of dimensions follows one of them.
Knows modules of transformers, no family by name; what is turned, and why, is the caller's business.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

AXES = ("temporal", "height", "width")  # of M-RoPE, in the order of its position ids
ALL = "all"
TOLERANCE = 1e-4  # of float32 sines at the positions of the proof
GROWING = ("dynamic", "longrope")  # kinds whose frequencies change with the length of the prompt


def check_axis(axis: str, axes: tuple[str, ...]) -> None:
    """Raises ValueError for an axis that the model's positions don't have, naming those they have."""
    if axis != ALL and axis not in axes:
        known = " and ".join(filter(None, [repr(ALL), ", ".join(map(repr, axes))]))
        raise ValueError(
            f"positions have no axis {axis!r}; there: {known}" + ("" if axes else " (the model counts along one axis)")
        )


@dataclass(frozen=True)
class Rotary:
    """How fast each pair of dimensions turns along each axis of the positions.

    frequencies: radians per position (float64), 0 where an axis does not drive a pair. axes: their names, empty where positions
    are plain counts (one row of frequencies). With n pairs, dimension i < n turns with dimension i + n (half-split); dimensions
    from 2n on do not turn (partial rotary embeddings).
    """

    frequencies: Float[Tensor, "axis pair"]
    axes: tuple[str, ...]

    def speeds(self, axis: str = ALL) -> Float[Tensor, " pair"]:
        """Radians per position of each pair when positions move along `axis`. Raises ValueError for one that is not there."""
        check_axis(axis, self.axes)
        return self.frequencies.sum(0) if axis == ALL else self.frequencies[self.axes.index(axis)]

    def rotate(self, vectors: Float[Tensor, "... size"], delta: float, axis: str = ALL) -> Float[Tensor, "... size"]:
        """The vectors as they would be at positions higher by `delta`, any real number (source: Su et al. 2021, eq. 34).

        In the vectors' own precision. Scores depend on differences of positions alone: turning a query by -delta gives what
        turning its keys by delta does.
        """
        angles = self.speeds(axis).to(vectors.device) * delta
        return self._combined(vectors, angles.cos(), angles.sin(), keep=1)

    def derivative(self, vectors: Float[Tensor, "... size"], axis: str = ALL) -> Float[Tensor, "... size"]:
        """d rotate(vectors, delta) / d delta at delta = 0, per position."""
        speeds = self.speeds(axis).to(vectors.device)
        return self._combined(vectors, torch.zeros_like(speeds), speeds, keep=0)

    def _combined(self, vectors: Tensor, cos: Tensor, sin: Tensor, keep: int) -> Tensor:
        pairs = len(cos)
        first, second, rest = vectors[..., :pairs], vectors[..., pairs : 2 * pairs], vectors[..., 2 * pairs :]
        cos, sin = cos.to(vectors.dtype), sin.to(vectors.dtype)
        return torch.cat([first * cos - second * sin, first * sin + second * cos, rest * keep], dim=-1)


def rotary_of(embedding: nn.Module | None, attention: nn.Module) -> Rotary:
    """Read the rotation from a model's rotary embedding and from the module that its attention is written in.

    The embedding's scaling of queries and keys (YaRN's) is theirs already and is divided out.
    Raises ValueError where there is no rotary embedding, or the rotation is not that of fixed frequencies in half-split pairs, as
    found by turning random vectors with the model's own functions.
    """
    if embedding is None:
        raise ValueError("the language model has no rotary embedding (rotary_emb): its positions do not turn queries and keys")
    kind = type(embedding).__name__
    rope_type = getattr(embedding, "rope_type", None)
    apply = getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    size = getattr(attention, "head_dim", None)
    if not isinstance(getattr(embedding, "inv_freq", None), Tensor) or apply is None or size is None:
        needed = "inv_freq, and of its attention head_dim and apply_rotary_pos_emb"
        raise ValueError(f"{kind}: a rotary embedding of this kind cannot be read; {needed} are needed")
    if rope_type in GROWING:
        raise ValueError(f"{kind}: rope type {rope_type!r} turns by frequencies that change with the length of the prompt")
    frequencies = embedding.inv_freq.detach().cpu().double()
    axes = axes_of(embedding)
    if axes:
        moved = torch.stack([_sines(embedding, axis)[: len(frequencies)] for axis in range(len(axes))])
        frequencies = torch.where(moved != 0, frequencies, 0.0)
    rotary = Rotary(frequencies.reshape(-1, frequencies.shape[-1]), axes)
    _prove(rotary, embedding, apply, size)
    return rotary


def axes_of(embedding: nn.Module | None) -> tuple[str, ...]:
    """The names of the axes along which an embedding takes positions; empty where they are plain counts."""
    return AXES if hasattr(embedding, "mrope_section") else ()


def _at(embedding: nn.Module, positions: list[float]) -> tuple[Tensor, Tensor]:
    """Cosines and sines of one token at these positions, one per axis, without the embedding's scaling."""
    like = torch.zeros(1, 1, 1, device=embedding.inv_freq.device)
    ids = torch.tensor(positions, device=like.device)[:, None, None]
    cos, sin = embedding(like, ids if len(positions) > 1 else ids[0])
    return cos / embedding.attention_scaling, sin / embedding.attention_scaling


def _sines(embedding: nn.Module, axis: int) -> Float[Tensor, " dimension"]:
    """Of one step along one axis: not 0 where the axis drives the dimension."""
    return _at(embedding, [float(other == axis) for other in range(len(AXES))])[1].flatten().cpu()


def _prove(rotary: Rotary, embedding: nn.Module, apply: Callable[..., Any], size: int) -> None:
    """Raise ValueError unless turning by the model's functions and by `rotary` is the same, axis by axis and together."""
    vectors = torch.randn(1, 1, 1, size, generator=torch.Generator().manual_seed(0)).to(embedding.inv_freq.device)
    for positions in ([1.0, 5.0, 11.0], [7.0, 0.0, 0.0], [0.0, 6.5, 0.0], [0.0, 0.0, 3.0]):
        names = rotary.axes or (ALL,)
        positions = positions[: len(names)]
        _, expected = apply(vectors, vectors, *_at(embedding, positions))
        turned = vectors
        for axis, delta in zip(names, positions, strict=True):
            turned = rotary.rotate(turned, delta, axis)
        error = float((turned - expected).abs().max())
        if not error < TOLERANCE:
            kind, where = type(embedding).__name__, ", ".join(f"{position:g}" for position in positions)
            raise ValueError(f"{kind}: turning by position {where} differs by {error:.2g} from what the model does; not read")
