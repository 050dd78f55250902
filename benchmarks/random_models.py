"""Models of published shapes with random weights, that the lab's words and pictures can be put to: values change no time.

The words are the lab's, so prompts have as many text tokens as in the lab and as many of the picture as the real model has. The
vocabulary is as large as the real one's. Knows shapes; knows nothing of what is measured.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from spatialprobes import lab_models, lab_qwen
from spatialprobes.families.llava import Llava
from spatialprobes.families.qwen import Qwen2_5VL
from spatialprobes.lab_models import SPECIAL_IDS
from spatialprobes.loading import Source
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_language import ID

SEED = 0
HALF = [0.5, 0.5, 0.5]
SOURCE = Source("random", "hub", None, None)


@dataclass(frozen=True)
class Shape:
    """text, tower: (width, heads, layers, width of the MLP). kv_heads: of the language model. side: pixels of a picture."""

    kind: str
    text: tuple[int, int, int, int]
    kv_heads: int
    tower: tuple[int, int, int, int]
    words: int
    side: int = 336
    patch: int = 14
    dtype: str = "bfloat16"


SHAPES = {
    "llava-1.5-7b": Shape("llava", (4096, 32, 32, 11008), 32, (1024, 16, 24, 4096), 32064),
    "qwen2.5-vl-3b": Shape("qwen2_5_vl", (2048, 16, 36, 11008), 2, (1280, 16, 32, 3420), 151936),
}


def quick_shape(shape: Shape) -> Shape:
    tiny = (64, 4, 2, 128)
    return replace(shape, text=tiny, kv_heads=2, tower=tiny, words=len(ID), side=56, dtype="float32")


def build(shape: Shape, device: torch.device) -> VLM:
    """The model on the device, in evaluation mode, by the constructor of transformers."""
    torch.manual_seed(SEED)
    return {"llava": _llava, "qwen2_5_vl": _qwen}[shape.kind](shape, device)


def _vlm(kind: type, config: object, shape: Shape, device: torch.device, processor: object, family: object) -> VLM:
    with device:
        model = kind._from_config(config, dtype=getattr(torch, shape.dtype)).eval().requires_grad_(False)
    model.generation_config.update(do_sample=False, **SPECIAL_IDS)
    return VLM(model, processor, family, SOURCE, "native", None)


def _text(shape: Shape) -> dict:
    width, heads, layers, wide = shape.text
    return dict(
        vocab_size=shape.words, hidden_size=width, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=shape.kv_heads, max_position_embeddings=4096, **SPECIAL_IDS,
    )  # fmt: skip


def _llava(shape: Shape, device: torch.device) -> VLM:
    width, heads, layers, wide = shape.tower
    tower = CLIPVisionConfig(
        hidden_size=width, intermediate_size=wide, num_hidden_layers=layers, num_attention_heads=heads, image_size=shape.side,
        patch_size=shape.patch,
    )  # fmt: skip
    tokens = (shape.side // shape.patch) ** 2
    config = LlavaConfig(
        vision_config=tower, text_config=LlamaConfig(**_text(shape)), image_token_id=ID["<image>"], image_seq_length=tokens,
        **SPECIAL_IDS,
    )  # fmt: skip
    processor = lab_models.processor(shape.side, shape.patch)
    return _vlm(LlavaForConditionalGeneration, config, shape, device, processor, Llava())


def _qwen(shape: Shape, device: torch.device) -> VLM:
    width, heads, layers, wide = shape.tower
    tied = {"tie_word_embeddings": True}  # as in the 3B
    text, size = shape.text[0], shape.text[0] // shape.text[1]
    sections = [size // 8, size // 16 * 3, size // 16 * 3]  # of time, row and column, as published: 16, 24 and 24 of 64
    vision = dict(
        depth=layers, hidden_size=width, intermediate_size=wide, num_heads=heads, patch_size=shape.patch, spatial_merge_size=2,
        temporal_patch_size=2, window_size=8 * shape.patch, fullatt_block_indexes=[*range(7, layers, 8)], out_hidden_size=text,
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen2_5_VLConfig(
        text_config=_text(shape) | tied | {"rope_parameters": rope},
        vision_config=vision, image_token_id=ID["<image>"], video_token_id=ID["<spare0>"],
        vision_start_token_id=ID["<spare1>"], vision_end_token_id=ID["<spare2>"], **tied, **SPECIAL_IDS,
    )  # fmt: skip
    area = shape.side**2
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": area, "longest_edge": area}, image_mean=HALF, image_std=HALF, patch_size=shape.patch,
        temporal_patch_size=2, merge_size=2,
    )  # fmt: skip
    words, family = replace(lab_qwen.words(), images=images), Qwen2_5VL()
    with tempfile.TemporaryDirectory() as folder:
        words.save_pretrained(folder)
        processor = family.load_processor(folder)
    return _vlm(Qwen2_5_VLForConditionalGeneration, config, shape, device, processor, family)
