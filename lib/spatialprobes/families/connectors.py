"""Connectors to put in the native one's place: an invertible one for LLaVA, one by cross-attention for Idefics2.

Qwen's towers were trained together with their mergers, so another connector there is no connector alone; it is refused. Sizes
come from the model's configuration. Definitions: the connector study, section 5. Knows the families' configurations, nothing of
training, pictures or prompts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from transformers import PreTrainedConfig

KINDS = {"llava": "invertible", "idefics2": "cross_attention"}  # by model type
WHY_NOT = {  # what is said of families beside these
    "qwen": "its tower was trained together with its merger, so that a new one would read a tower made for another",
}


@dataclass(frozen=True)
class Design:
    """What a connector is made of.

    pre_width, post_width: of the vectors it reads and of those that enter the language model. layers: affine couplings, or blocks
    of cross-attention. hidden: width of the couplings' networks, or of the first projection. latents, heads: of cross-attention.
    Raises ValueError for an unknown kind and sizes that don't divide.
    """

    kind: str
    pre_width: int
    post_width: int
    layers: int
    hidden: int
    latents: int = 0
    heads: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS.values():
            raise ValueError(f"kind={self.kind!r} is unknown; {', '.join(map(repr, KINDS.values()))}")
        needed = () if self.kind == "invertible" else ("latents", "heads")
        for name in ("pre_width", "post_width", "layers", "hidden", *needed):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.kind == "invertible" and self.post_width % 2:
            raise ValueError(f"post_width={self.post_width} can't be halved for affine couplings")
        if self.kind == "cross_attention" and self.post_width % self.heads:
            raise ValueError(f"post_width={self.post_width} is not a multiple of heads={self.heads}")


def design(config: PreTrainedConfig, kind: str | None = None, **sizes: Any) -> Design:
    """The connector of a model of this configuration, with the published proportions but for the sizes given.

    kind: None for the family's: "invertible" for LLaVA, "cross_attention" for Idefics2. Raises ValueError with the reason for
    another family, and for a kind that is not the family's.
    """
    own = KINDS.get(config.model_type)
    if own is None:
        why = next((why for start, why in WHY_NOT.items() if config.model_type.startswith(start)), "none was written for it")
        raise ValueError(f"no other connector for {config.model_type!r}: {why}; there is one for {', '.join(KINDS)}")
    if kind not in (None, own):
        raise ValueError(f"kind={kind!r} is not for {config.model_type!r}: its tokens are counted by its own kind, {own!r}")
    pre, post = config.vision_config.hidden_size, config.get_text_config().hidden_size
    if own == "invertible":
        chosen = {"layers": 4, "hidden": max(1, post // 8)}
    else:
        chosen = {"layers": 2, "hidden": 2 * post, "latents": config.perceiver_config.resampler_n_latents, "heads": 8}
    legal = {field.name for field in dataclasses.fields(Design)} - {"kind", "pre_width", "post_width"}
    if unknown := sorted(set(sizes) - legal):
        raise ValueError(f"{unknown[0]!r} is no size of a connector; {', '.join(sorted(legal))}")
    return Design(own, pre, post, **{**chosen, **sizes})


def build(plan: Design, seed: int = 0) -> nn.Module:
    """The untrained connector, weights drawn from `seed`; called as the native one: vectors, then a mask where it has one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"invertible": Invertible, "cross_attention": CrossAttention}[plan.kind](plan)


class Invertible(nn.Module):
    """Linear, LayerNorm, then RealNVP's affine couplings (Dinh et al. 2017) at the language model's width, token by token.

    Invertible down to the LayerNorm's output; what the Linear loses between unequal widths stays lost.
    """

    def __init__(self, plan: Design):
        super().__init__()
        self.entry = nn.Linear(plan.pre_width, plan.post_width)
        self.norm = nn.LayerNorm(plan.post_width)
        half = plan.post_width // 2
        self.couplings = nn.ModuleList([Coupling(half, plan.hidden, first_moves=bool(i % 2)) for i in range(plan.layers)])

    def forward(self, pre: Float[Tensor, "... token width"]) -> Float[Tensor, "... token post_width"]:
        hidden = self.normed(pre)
        for coupling in self.couplings:
            hidden = coupling(hidden)
        return hidden

    def normed(self, pre: Float[Tensor, "... token width"]) -> Float[Tensor, "... token post_width"]:
        """What enters the couplings, and what `inverse` gives back."""
        return self.norm(self.entry(pre))

    def inverse(self, post: Float[Tensor, "... token post_width"]) -> Float[Tensor, "... token post_width"]:
        """The LayerNorm's output that these vectors were made from."""
        for coupling in reversed(self.couplings):
            post = coupling.inverse(post)
        return post


class Coupling(nn.Module):
    """One half moves, x exp(s) + t, with s and t read from the other half, which stays; s is held within (-2, 2)."""

    def __init__(self, half: int, hidden: int, first_moves: bool):
        super().__init__()
        self.first_moves = first_moves
        self.scale, self.shift = _network(half, hidden), _network(half, hidden)

    def forward(self, x: Tensor) -> Tensor:
        stays, moves = self._halves(x)
        return self._joined(stays, moves * self._log_scale(stays).exp() + self.shift(stays))

    def inverse(self, y: Tensor) -> Tensor:
        stays, moved = self._halves(y)
        return self._joined(stays, (moved - self.shift(stays)) * (-self._log_scale(stays)).exp())

    def _log_scale(self, stays: Tensor) -> Tensor:
        return 2 * self.scale(stays).tanh()

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.chunk(2, dim=-1)
        return (second, first) if self.first_moves else (first, second)

    def _joined(self, stays: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([moved, stays] if self.first_moves else [stays, moved], dim=-1)


class CrossAttention(nn.Module):
    """Two Linears around SiLU bring patches to the language model's width; learned queries then read them, block by block."""

    def __init__(self, plan: Design):
        super().__init__()
        width = plan.post_width
        self.entry = nn.Sequential(nn.Linear(plan.pre_width, plan.hidden), nn.SiLU(), nn.Linear(plan.hidden, width))
        self.queries = nn.Parameter(0.02 * torch.randn(plan.latents, width))
        self.blocks = nn.ModuleList([Reading(width, plan.heads) for _ in range(plan.layers)])
        self.norm = nn.LayerNorm(width)

    def forward(
        self, pre: Float[Tensor, "n token width"], attention_mask: Bool[Tensor, "n token"] | None = None
    ) -> Float[Tensor, "n latent post_width"]:
        """attention_mask: True for patches of the picture, False for padding; all are read without one."""
        patches = self.entry(pre)
        latents = self.queries.expand(len(pre), -1, -1)
        for block in self.blocks:
            latents = block(latents, patches, attention_mask)
        return self.norm(latents)


class Reading(nn.Module):
    """Pre-norm cross-attention of latents to patches, then a feed-forward network of four times the width."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.latent_norm, self.patch_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents: Tensor, patches: Tensor, seen: Tensor | None) -> Tensor:
        entering = self.patch_norm(patches)
        padding = None if seen is None else ~seen.bool()
        read, _ = self.attention(self.latent_norm(latents), entering, entering, key_padding_mask=padding, need_weights=False)
        latents = latents + read
        return latents + self.feed_forward(latents)


def _network(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
