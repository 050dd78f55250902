"""LLaVA-1.5 and the lab's LLaVA: CLIP patches, a two-layer projector, features in the places of `<image>`, Llama decoder.

Knows nothing of prompts; positions are plain counts, vision tokens are in raster order everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spatialprobes.families.base import Family, fitting
from spatialprobes.families.frames import Frame
from spatialprobes.families.towers import TowerRun, batch_of_pictures


class Llava(Family):
    model_type = "llava"

    def side(self, processor: Any) -> int | None:
        images = processor.image_processor
        size = images.crop_size if images.do_center_crop else images.size
        return size["height"] if size["height"] == size["width"] else None

    def frame(self, processor: Any, width: int, height: int) -> Frame:
        """CLIP's own: the shorter side is resized to `size`, then the centre is cropped; a wide picture loses its ends."""
        images = processor.image_processor
        short = images.size.get("shortest_edge") if images.do_resize else None
        if (images.do_resize and short is None) or not images.do_center_crop:
            return Frame()
        if short is not None:
            resized_width = short if width <= height else int(short * width / height)
            resized_height = short if height <= width else int(short * height / width)
        else:
            resized_width, resized_height = width, height
        crop_width, crop_height = images.crop_size["width"], images.crop_size["height"]
        left, top = (resized_width - crop_width) // 2, (resized_height - crop_height) // 2
        return Frame.window(left, top, crop_width, crop_height, resized_width, resized_height)

    def grid(self, model: nn.Module, inputs: dict[str, Tensor], index: int, n: int) -> tuple[int, int] | None:
        patch = model.config.vision_config.patch_size
        height, width = inputs["pixel_values"].shape[-2:]
        rows, columns = height // patch, width // patch
        return (rows, columns) if rows * columns == n else None

    def connector_reading(self, model: nn.Module, site: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
        """The residual stream, and for "post_norm" CLIP's post-layernorm of it, which the checkpoint itself applies to the class
        token alone and never to what the connector reads.
        """
        norm = self.part(model, "tower").post_layernorm
        return self.part(model, "connector"), (lambda entering, _: entering) if site == "pre_norm" else (
            lambda entering, _: norm(entering)
        )

    def connector_call(self, model: nn.Module, tokens: list[Tensor], site: str) -> tuple[Tensor, ...]:
        """Pictures side by side. The projector reads the residual stream: there is no norm before it ("post_norm" is refused)."""
        if site != "pre_norm":
            raise ValueError("LLaVA's projector reads the tower as it is ('pre_norm'); no norm stands before its weights")
        layers, width = model.config.vision_feature_layer, model.config.vision_config.hidden_size
        width *= 1 if isinstance(layers, int) else len(layers)
        patches = fitting(tokens, width, self.part(model, "connector"))
        if len(counts := {len(one) for one in patches}) > 1:
            raise ValueError(f"pictures of {', '.join(map(str, sorted(counts)))} patches: LLaVA's have one size")
        return (torch.stack(patches),)

    def unread_blocks(self, model: nn.Module) -> list[nn.Module]:
        """Those behind the deepest of the hidden states that are selected: of LLaVA-1.5 the last."""
        blocks, chosen = self.part(model, "tower_layers"), model.config.vision_feature_layer
        states = range(len(blocks) + 1)
        return list(blocks[max(states[layer] for layer in ([chosen] if isinstance(chosen, int) else chosen)) :])

    def tower_run(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> TowerRun:
        """One attention call a block; CLIP's class token stands before the patches."""
        pixels = kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]
        patch = model.config.vision_config.patch_size
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        before = int(hasattr(self.part(model, "tower").embeddings, "class_embedding"))
        return batch_of_pictures(len(pixels), grid, before, len(self.part(model, "tower_layers")))
