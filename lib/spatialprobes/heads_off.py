"""Taking heads out: what a head gives becomes 0, or its mean over other prompts, before it is projected.

Opened by `intervene(vlm, heads=ablated(...))`; `read_heads` shows what heads give. A head is (layer, head), both counted from 0.
In force in a forward, in `vlm.model.generate` with and without cache, and behind a shared prefix, whose keys and values are then
those of the changed model. Knows no probe, and not how means are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from spatialprobes.steering import ALL, Places
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Head = tuple[int, int]  # layer and head, from 0
HOW = ("zero", "mean")
PLACES = ("before", "vision", "after", "last")  # of a prompt's tokens: around and in its picture, and the one that answers
BEFORE, VISION, AFTER, LAST = range(len(PLACES))
Read = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True, eq=False)
class HeadMeans:
    """What heads give on average: by layer, [place, head, size] in float32.

    The places are PLACES: tokens before the picture, the picture's own, those behind it, and the last of the prompt, which is in
    none of the others. Prompts without a picture are all "after" up to their last. tokens: how many stand behind the mean of a
    place; one that has none is NaN. examples: how many prompts.
    """

    values: Mapping[int, Float[Tensor, "place head size"]]
    tokens: Int[Tensor, " place"]
    examples: int


@dataclass(frozen=True, eq=False)
class HeadsOff:
    """Which heads are out, by layer, and what stands for them: their means, or 0 where there are none."""

    heads: Mapping[int, tuple[int, ...]]
    means: HeadMeans | None
    at: str


def ablated(
    heads: Sequence[Head], how: Literal["zero", "mean"] = "zero", means: HeadMeans | None = None, *, at: str = ALL
) -> HeadsOff:
    """Take heads out: their output is 0 ("zero"), or their mean at such a place of a prompt ("mean", see `HeadMeans`).

    heads: (layer, head), both from 0. at: "all", every token of the prompt and those that follow it; or "last", the last token of
    the prompt alone. Tokens that follow a prompt have the mean of those behind the picture.
    Raises ValueError for no heads, what is no pair of whole numbers from 0, an unknown `how` or `at`, and means that are missing,
    not wanted or not of these layers.
    """
    if how not in HOW:
        raise ValueError(f"how={how!r} is unknown; one of {', '.join(map(repr, HOW))}")
    if at not in (ALL, "last"):
        raise ValueError(f"at={at!r} is unknown; 'all' or 'last'")
    if (how == "mean") != (means is not None):
        wanted = "needs means=<HeadMeans>" if how == "mean" else "takes no means"
        raise ValueError(f"how={how!r} {wanted}")
    found: dict[int, tuple[int, ...]] = {}
    for layer, head in sorted(map(_head, heads)):
        if means is not None and layer not in means.values:
            raise ValueError(f"layer {layer} has no means; there are those of layers {', '.join(map(str, means.values))}")
        if head not in found.get(layer, ()):
            found[layer] = (*found.get(layer, ()), head)
    if not found:
        raise ValueError("heads is empty: nothing to take out; [(layer, head), ...]")
    return HeadsOff(found, means, at)


@contextmanager
def heads_off(vlm: VLM, off: HeadsOff) -> Iterator[None]:
    """While open, every run of the model lacks these heads.

    Raises ValueError for a layer or head that the model lacks, linear layers among them, and for means of heads of another size;
    once it runs, for a place of a prompt at which the means have no token.
    """
    with ExitStack() as stack:
        run = _Run(vlm, off.at, off.means)
        for layer, heads in off.heads.items():
            there = vlm.family.heads(vlm.model, layer)
            if heads[-1] >= there.count:
                raise ValueError(f"layer {layer} has no head {heads[-1]}; it has heads 0 to {there.count - 1}")
            if off.means is not None and (own := off.means.values[layer].shape[1:]) != (there.count, there.size):
                raise ValueError(f"means of layer {layer} are of {own[0]} x {own[1]}; its heads are {there.count} x {there.size}")
            stack.enter_context(vlm.family.edit_heads(vlm.model, layer, partial(run.take_out, layer, heads)))
        stack.enter_context(run.following())
        yield


@contextmanager
def read_heads(vlm: VLM, layers: Sequence[int], read: Read) -> Iterator[None]:
    """While open, every run shows what the heads of these layers give: read(layer, outputs, places), nothing is changed.

    outputs: [example, token, head, size], where they lie; places: [example, token], index in PLACES, -1 for padding.
    """
    with ExitStack() as stack:
        run = _Run(vlm, ALL, None)

        def show(layer: int, outputs: Tensor) -> Tensor:
            read(layer, outputs, run.places.to(outputs.device))
            return outputs

        for layer in layers:
            stack.enter_context(vlm.family.edit_heads(vlm.model, layer, partial(show, layer)))
        stack.enter_context(run.following())
        yield


class _Run(Places):
    """The run that is under way: which tokens lose the heads, and at which places of the prompt they stand."""

    def __init__(self, vlm: VLM, at: str, means: HeadMeans | None):
        super().__init__(vlm, at, later=at == ALL)
        self.means = means
        self.entering: dict[str, Any] = {}
        self.places: Int[Tensor, "example token"] = torch.zeros(0, 0, dtype=torch.long)

    @contextmanager
    def following(self) -> Iterator[None]:
        handle = self.vlm.model.register_forward_pre_hook(self._enter, with_kwargs=True)
        try:
            with super().following():
                yield
        finally:
            handle.remove()

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.entering = {**dict(zip(("input_ids",), args, strict=False)), **kwargs}

    def start(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        super().start(module, args, kwargs)
        examples, tokens = self.chosen.shape
        self.places = self._places(self._real(examples, tokens))
        if self.means is None:
            return
        used = self.places[self.chosen & (self.places >= 0)].unique()
        if lacking := [PLACES[place] for place in used.tolist() if not self.means.tokens[place]]:
            raise ValueError(f"heads cannot be replaced by means at {lacking[0]!r}: the prompts of the means have no token there")

    def take_out(
        self, layer: int, heads: tuple[int, ...], outputs: Float[Tensor, "example token head size"]
    ) -> Float[Tensor, "example token head size"]:
        if not bool(self.chosen.any()):
            return outputs
        own = list(heads)
        chosen = self.chosen.to(outputs.device)[..., None, None]
        instead = torch.zeros((), dtype=outputs.dtype, device=outputs.device)
        if self.means is not None:
            means = self.means.values[layer][:, own].to(outputs)
            instead = means[self.places.clamp(min=0).to(outputs.device)]
        changed = outputs.clone()
        changed[:, :, own] = torch.where(chosen, instead, outputs[:, :, own])
        return changed

    def _real(self, examples: int, tokens: int) -> Bool[Tensor, "example token"]:
        """Which tokens of this call are not padding."""
        mask = self.entering.get("attention_mask")
        if mask is None or mask.ndim != 2:
            return torch.ones(examples, tokens, dtype=torch.bool)
        return mask[:, -tokens:].bool().cpu()

    def _places(self, real: Bool[Tensor, "example token"]) -> Int[Tensor, "example token"]:
        """The place of each token of this call, by its id: a call without a picture goes on from one that has it."""
        tokens = real.shape[1]
        ids = self.entering.get("input_ids")
        if ids is None:
            raise ValueError("heads: the model was run without input_ids, so that the places of its tokens are not known")
        image = (ids == self.vlm.family.image_token_id(self.vlm.model)).cpu()
        begun, pictured = image.cumsum(-1) > 0, image.any(-1, keepdim=True)
        found = torch.where(image, VISION, torch.where(begun | ~pictured, AFTER, BEFORE))
        last = self._last(self.held, self.held + tokens)[:, None] - self.held
        found = torch.where(torch.arange(tokens) == last, LAST, found)
        return torch.where(real, found, -1)


def _head(head: Head) -> Head:
    pair = tuple(head) if isinstance(head, Sequence) and not isinstance(head, str) else ()
    if len(pair) != 2 or any(isinstance(one, bool) or not isinstance(one, Integral) or one < 0 for one in pair):
        raise ValueError(f"{head!r} is no head; (layer, head), whole numbers from 0")
    return int(pair[0]), int(pair[1])
