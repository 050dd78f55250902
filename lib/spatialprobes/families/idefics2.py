"""Idefics2: SigLIP patches of pictures of any size, resampled by a perceiver to a fixed number of latents, Mistral decoder.

The vision tokens are latents, so they have no grid and no place in the picture; each may read all of it. The tower does have a
grid, of the whole patches of each picture, and it is its own: that of no vision token; a frame maps to the resized picture, of
which an incomplete patch at the right or below is not seen. Pictures in a batch are padded to its largest, right and below, and
the padding is masked. Knows no prompts and no probe.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor

from spatialprobes.families.base import Family, fitting
from spatialprobes.families.towers import TowerRun

if TYPE_CHECKING:
    from jaxtyping import Float
    from PIL import Image


class Idefics2(Family):
    model_type = "idefics2"
    tower = "model.vision_model"
    tower_layers = "model.vision_model.encoder.layers"
    connector = "model.connector"
    layers = "model.text_model.layers"
    final_norm = "model.text_model.norm"
    quantise_skip = ("model.vision_model", "model.connector", "lm_head")

    # Loading
    def load_processor(self, source: str, **options: Any) -> Any:
        """The processor, with pictures kept whole: cut into four and added to itself, a picture would be five."""
        processor = AutoProcessor.from_pretrained(source, backend="pil", **options)
        processor.image_processor.do_image_splitting = False
        return processor

    # Parts of the model
    def connector_reading(self, model: nn.Module, site: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
        """The tower's post-layernorm: its input is the residual stream, its output what the connector's first weights see."""
        norm = self.part(model, "tower").post_layernorm
        return norm, (lambda entering, _: entering) if site == "pre_norm" else (lambda _, output: output)

    def connector_tokens(self, model: nn.Module, tokens: Tensor, run: TowerRun, side: str) -> list[Float[Tensor, "token width"]]:
        """The input without padding, the patches of each picture in raster order; the output as it is, the latents."""
        if side == "output":
            return list(tokens)
        (call,) = run.calls[0]
        return [one[(places >= 0).to(one.device)] for one, (_, places) in zip(tokens, call, strict=True)]

    def connector_call(self, model: nn.Module, tokens: list[Tensor], site: str) -> tuple[Tensor, ...]:
        """Pictures padded at their end, and which patches are there: the perceiver knows no places, so that padding may stand
        anywhere. At "pre_norm" the tower's post-layernorm comes first."""
        norm = self.part(model, "tower").post_layernorm
        patches = fitting(tokens, len(norm.weight), norm)
        padded = pad_sequence([norm(one) if site == "pre_norm" else one for one in patches], batch_first=True)
        lengths = torch.tensor([len(one) for one in patches], device=padded.device)
        return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]

    def tower_run(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> TowerRun:
        """One attention call a block, over the padded pictures; only whole patches are seen."""
        seen = kwargs["patch_attention_mask"].cpu()
        grids = [(int(one[:, 0].sum()), int(one[0].sum())) for one in seen]
        call = []
        for picture, (mask, (_, columns)) in enumerate(zip(seen, grids, strict=True)):
            row, column = torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij")
            call.append((picture, torch.where(mask, row * columns + column, -1).flatten()))
        return TowerRun(grids, 0, 1, [[call]] * len(self.part(model, "tower_layers")))

    # Pictures and tokens
    def image_inputs(self, processor: Any, pictures: list[Image.Image]) -> dict[str, Tensor] | None:
        """One list of pictures per prompt."""
        return super().image_inputs(processor, [[picture] for picture in pictures])

    @contextmanager
    def keeping_side(self, processor: Any, side: int) -> Iterator[None]:
        """Its longest and shortest edge are the side; as published a picture is enlarged until its shortest edge is 378."""
        images = processor.image_processor
        before, images.size = images.size, type(images.size)(longest_edge=side, shortest_edge=side)
        try:
            yield
        finally:
            images.size = before

    def spell(self, processor: Any, text: str) -> str:
        """The processor parts the picture from a word that follows it directly."""
        placeholder = self.image_token(processor)
        return re.sub(rf"{re.escape(placeholder)}(?=[^\s<])", f"{placeholder} ", text)

    def grid(self, model: nn.Module, inputs: dict[str, Tensor], index: int, n: int) -> tuple[int, int] | None:
        return None
