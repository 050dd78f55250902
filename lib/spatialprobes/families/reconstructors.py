"""Models that read what entered a connector back from what left it: the vision tokens E_post to the tower's E_pre.

Three kinds (Li et al. 2025; the connector study, section 4): "mlp" and "transformer" keep the order of tokens, where each of
E_post was made of as many of E_pre that stand together; "sequence" also serves latents, which have no place. All work on
standardised values and take their sizes from the data. Knows no data, no training and no vision-language model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float

KINDS = ("mlp", "transformer", "sequence")
PUBLISHED: dict[str, dict[str, int]] = {  # what the study ran; its transformer's heads stay at 8 whatever is asked for
    "mlp": {"hidden": 2048, "layers": 3, "heads": 1, "feed_forward": 0},
    "transformer": {"hidden": 2048, "layers": 3, "heads": 8, "feed_forward": 2048},
    "sequence": {"hidden": 2048, "layers": 8, "heads": 16, "feed_forward": 8192},
}
SMALL: dict[str, dict[str, int]] = {  # what a lab model of width 128 needs
    "mlp": {"hidden": 256, "layers": 4, "heads": 1, "feed_forward": 0},
    "transformer": {"hidden": 128, "layers": 3, "heads": 4, "feed_forward": 256},
    "sequence": {"hidden": 128, "layers": 2, "heads": 4, "feed_forward": 256},
}
STUDY_NAMES = {  # of the modules in the study's best_model.pt, and ours
    "mlp": {"model": "blocks"},
    "transformer": {
        "input_proj": "entry", "pos_embedding": "places", "transformer_encoder": "encoder", "output_proj": "exit",
        "final_norm": "output_norm",
    },
    "sequence": {
        "input_projection": "entry", "pos_encoder": "places", "sequence_processor": "encoder", "length_adjust": "lengthen",
        "output_projection": "exit",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """What a reconstructor is made of.

    post_tokens, post_width, pre_tokens, pre_width: of E_post, which it reads, and of E_pre, which it gives. hidden, layers,
    heads, feed_forward: of the network ("mlp" has neither of the last two). output_norm: a LayerNorm on the output of
    "transformer", as published; standardised targets have no unit norm, so it can only hurt.
    Raises ValueError for an unknown kind, sizes that don't divide and tokens that "mlp" and "transformer" can't match.
    """

    kind: str
    post_tokens: int
    post_width: int
    pre_tokens: int
    pre_width: int
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    dropout: float = 0.1
    activation: str = "gelu"
    output_norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} is unknown; {', '.join(map(repr, KINDS))}")
        sizes = ("post_tokens", "post_width", "pre_tokens", "pre_width", "hidden", "layers", "heads")
        if wrong := [name for name in sizes if getattr(self, name) < 1]:
            raise ValueError(f"{wrong[0]}={getattr(self, wrong[0])} must be at least 1")
        if self.kind != "sequence" and self.pre_tokens % self.post_tokens:
            counts = f"{self.pre_tokens} tokens before the connector are no multiple of {self.post_tokens} after it"
            raise ValueError(f"kind={self.kind!r}: {counts}; kind='sequence' takes any numbers")
        if self.kind != "mlp" and self.hidden % self.heads:
            raise ValueError(f"hidden={self.hidden} is not a multiple of heads={self.heads}")

    @property
    def together(self) -> int:
        """Tokens of E_pre that became one of E_post, where tokens keep their order."""
        return self.pre_tokens // self.post_tokens


def architecture(kind: str, pre: tuple[int, int], post: tuple[int, int], **sizes: Any) -> Architecture:
    """The architecture of a kind for E_pre and E_post of these (tokens, width): the published sizes but for those given.

    Raises ValueError as `Architecture`.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; {', '.join(map(repr, KINDS))}")
    legal = {field.name for field in dataclasses.fields(Architecture)}
    if unknown := sorted(set(sizes) - legal):
        raise ValueError(f"{unknown[0]!r} is no size of a reconstructor; {', '.join(sorted(legal))}")
    of_data = {"post_tokens": post[0], "post_width": post[1], "pre_tokens": pre[0], "pre_width": pre[1]}
    made = {**PUBLISHED[kind], **sizes}
    if kind == "sequence" and "hidden" in sizes and "feed_forward" not in sizes:
        made["feed_forward"] = 4 * made["hidden"]
    return Architecture(kind, **of_data, **made)


def build(shape: Architecture, seed: int = 0) -> nn.Module:
    """The untrained network, [n, post_tokens, post_width] -> [n, pre_tokens, pre_width], weights drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"mlp": PerToken, "transformer": AmongTokens, "sequence": AnyTokens}[shape.kind](shape)


class PerToken(nn.Module):
    """Each token by itself: (Linear, LayerNorm, GELU, dropout) at E_post's width, then at the hidden one, then a Linear."""

    def __init__(self, shape: Architecture):
        super().__init__()
        self.shape = shape
        out = shape.together * shape.pre_width
        hidden = min(shape.hidden, max(shape.post_width, out))
        widths = [shape.post_width, shape.post_width, *[hidden] * max(1, shape.layers - 2)]
        blocks: list[nn.Module] = []
        for entering, leaving in pairwise(widths):
            blocks += [nn.Linear(entering, leaving), nn.LayerNorm(leaving), nn.GELU(), nn.Dropout(shape.dropout)]
        self.blocks = nn.Sequential(*blocks, nn.Linear(hidden, out))

    def forward(self, post: Float[Tensor, "n token width"]) -> Float[Tensor, "n pre_token pre_width"]:
        return self.blocks(post).reshape(len(post), self.shape.pre_tokens, self.shape.pre_width)


class AmongTokens(nn.Module):
    """A transformer encoder (norms after) over E_post's tokens with learned places, then a Linear for each token."""

    def __init__(self, shape: Architecture):
        super().__init__()
        self.shape = shape
        self.entry = nn.Linear(shape.post_width, shape.hidden)
        self.places = nn.Parameter(torch.randn(1, shape.post_tokens, shape.hidden))
        self.encoder = _encoder(shape, norm_first=False)
        out = shape.together * shape.pre_width
        self.exit = nn.Linear(shape.hidden, out)
        self.output_norm = nn.LayerNorm(out) if shape.output_norm else nn.Identity()

    def forward(self, post: Float[Tensor, "n token width"]) -> Float[Tensor, "n pre_token pre_width"]:
        hidden = self.encoder(self.entry(post) + self.places)
        return self.output_norm(self.exit(hidden)).reshape(len(post), self.shape.pre_tokens, self.shape.pre_width)


class AnyTokens(nn.Module):
    """A transformer encoder (norms before) over E_post's tokens, mixed to E_pre's number of tokens by an MLP over their axis."""

    def __init__(self, shape: Architecture):
        super().__init__()
        self.shape = shape
        twice = 2 * shape.hidden
        self.entry = nn.Sequential(nn.Linear(shape.post_width, twice), nn.GELU(), nn.Linear(twice, shape.hidden))
        self.places = nn.Parameter(torch.randn(1, shape.post_tokens, shape.hidden))
        self.encoder = _encoder(shape, norm_first=True)
        middle = 2 * shape.pre_tokens
        self.lengthen = nn.Sequential(nn.Linear(shape.post_tokens, middle), nn.GELU(), nn.Linear(middle, shape.pre_tokens))
        self.exit = nn.Sequential(nn.Linear(shape.hidden, twice), nn.GELU(), nn.Linear(twice, shape.pre_width))

    def forward(self, post: Float[Tensor, "n token width"]) -> Float[Tensor, "n pre_token pre_width"]:
        hidden = self.encoder(self.entry(post) + self.places)
        return self.exit(self.lengthen(hidden.transpose(1, 2)).transpose(1, 2))


def from_study(state_dict: Mapping[str, Tensor], meta: Mapping[str, Any]) -> nn.Module:
    """The network of the study's `best_model.pt`, from its "state_dict" and "meta", in evaluation mode; sizes are the weights'.

    meta: "embed_model" and "model_type", as the study writes them ("model_type" counts for LLaVA alone), and "num_heads".
    Raises ValueError naming a weight that is missing or too many.
    """
    if unnamed := [name for name in ("embed_model", "model_type") if name not in meta]:
        raise ValueError(f"meta names no {unnamed[0]!r}; it has {', '.join(map(str, meta)) or 'nothing'}")
    kind = "sequence" if meta["embed_model"] != "llava" else "mlp" if meta["model_type"] == "mlp" else "transformer"
    names = STUDY_NAMES[kind]
    weights = {}
    for name, value in state_dict.items():
        first, dot, rest = name.partition(".")
        if first not in names:
            raise ValueError(f"{name!r} is no weight of a {kind} reconstructor; they begin with {', '.join(names)}")
        weights[names[first] + dot + rest] = value
    try:
        shape = _read_off(kind, weights, meta)
    except (KeyError, StopIteration) as error:
        raise ValueError(f"weights of a {kind} reconstructor are missing: {error}") from error
    with torch.device("meta"):
        module = build(shape)
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from error
    return module.eval()


def _encoder(shape: Architecture, norm_first: bool) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(
        shape.hidden, shape.heads, shape.feed_forward, shape.dropout, shape.activation, batch_first=True, norm_first=norm_first
    )
    return nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)


def _read_off(kind: str, weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Architecture:
    """The sizes of the study's weights, under our names."""
    if kind == "mlp":
        linear = sorted((int(name.split(".")[1]), value.shape) for name, value in weights.items() if value.ndim == 2)
        tokens = int(meta.get("seq_length") or 576)
        post, hidden, out = linear[0][1][1], linear[-1][1][1], linear[-1][1][0]
        return Architecture(kind, tokens, post, tokens, out, hidden, len(linear), 1, 0)
    _, tokens, hidden = weights["places"].shape
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layers."))
    feed_forward = weights["encoder.layers.0.linear1.weight"].shape[0]
    if kind == "transformer":
        (out, _), post = weights["exit.weight"].shape, weights["entry.weight"].shape[1]
        heads = PUBLISHED[kind]["heads"]
        return Architecture(kind, tokens, post, tokens, out, hidden, layers, heads, feed_forward, output_norm=True)
    post, out, pre_tokens = weights["entry.0.weight"].shape[1], weights["exit.2.weight"].shape[0], len(weights["lengthen.2.bias"])
    heads = int(meta.get("num_heads") or PUBLISHED[kind]["heads"])
    return Architecture(kind, tokens, post, pre_tokens, out, hidden, layers, heads, feed_forward, activation="relu")
