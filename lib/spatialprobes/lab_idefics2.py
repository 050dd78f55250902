"""The lab's Idefics2: the untrained model, its processor and training data, and the pass of its tower.

36 patches of 8 pixels, as in lab-llava, which a perceiver resamples to 16 latents: vision tokens without a grid. Knows nothing of
stages 1 and 2 and of the zoo (``lab.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import (
    CLIPModel,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessorPil,
    Idefics2Processor,
    LlamaForCausalLM,
)

from spatialprobes import lab_models, lab_qwen
from spatialprobes.lab_batches import IMAGE, PREFIX, TurnData, pack
from spatialprobes.lab_models import DEPTH, HEADS, INITIALIZER_RANGE, SPECIAL_IDS, TOWER_DEPTH, WIDTH
from spatialprobes.worlds.lab import WORLD
from spatialprobes.worlds.lab_language import CHAT_TEMPLATE, ID, VOCABULARY

if TYPE_CHECKING:
    from jaxtyping import Float

LATENTS, RESAMPLER_DEPTH = 16, 2
BOUNDARY = "<spare0>"  # what the processor sets before and after a picture
START = [*PREFIX[: PREFIX.index(IMAGE)], ID[BOUNDARY], *[IMAGE] * LATENTS, ID[BOUNDARY]]
WORDS = len(VOCABULARY) + 1  # the processor adds an end of utterance, which no prompt of the lab holds


def model(seed: int) -> Idefics2ForConditionalGeneration:
    """Untrained Idefics2 with the width and depth of lab-llava; its latents are drawn at random (alike, they would stay so)."""
    torch.manual_seed(seed)
    text = dict(
        model_type="mistral", vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512, sliding_window=None,
        initializer_range=INITIALIZER_RANGE, tie_word_embeddings=False, **SPECIAL_IDS,
    )  # fmt: skip
    vision = dict(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=TOWER_DEPTH, num_attention_heads=HEADS,
        image_size=WORLD.size, patch_size=WORLD.patch, initializer_range=INITIALIZER_RANGE,
    )  # fmt: skip
    perceiver = dict(
        hidden_size=WIDTH, resampler_n_latents=LATENTS, resampler_depth=RESAMPLER_DEPTH, resampler_n_heads=HEADS,
        resampler_head_dim=WIDTH // HEADS, num_key_value_heads=HEADS, initializer_range=INITIALIZER_RANGE,
    )  # fmt: skip
    config = Idefics2Config(
        text_config=text, vision_config=vision, perceiver_config=perceiver, image_token_id=IMAGE, tie_word_embeddings=False,
        **SPECIAL_IDS,
    )  # fmt: skip
    made = Idefics2ForConditionalGeneration(config)
    with torch.no_grad():
        made.model.connector.perceiver_resampler.latents.normal_()
    made.generation_config.update(do_sample=False, **SPECIAL_IDS)
    return made


@torch.no_grad()
def adopt(made: Idefics2ForConditionalGeneration, text: LlamaForCausalLM) -> None:
    """Put lab-text's weights into the language model; the row of the added word stays as it is."""
    words = {"embed_tokens.weight": made.model.text_model.embed_tokens.weight, "lm_head.weight": made.lm_head.weight}
    own = text.model.state_dict()
    for name, given in (("embed_tokens.weight", own.pop("embed_tokens.weight")), ("lm_head.weight", text.lm_head.weight)):
        words[name][: len(given)] = given
    missing, unexpected = made.model.text_model.load_state_dict(own, strict=False)
    if unexpected or set(missing) != {"embed_tokens.weight"}:
        raise ValueError(f"lab-text does not fit: {len(unexpected)} weights too many, missing {missing}")


def words() -> Idefics2Processor:
    """The lab's words, and pictures at 48 pixels on their longer side, kept whole."""
    half, side = [0.5, 0.5, 0.5], WORLD.size
    images = Idefics2ImageProcessorPil(
        size={"shortest_edge": side, "longest_edge": side}, image_mean=half, image_std=half, do_image_splitting=False
    )
    known = {"image_token": "<image>", "image_boundary_token": BOUNDARY}
    tokenizer = lab_models.tokenizer(extra_special_tokens=known)
    return Idefics2Processor(images, tokenizer, image_seq_len=LATENTS, chat_template=CHAT_TEMPLATE)


class Idefics2Turns(TurnData):
    """``TurnData`` with 16 latents for a picture, between boundaries."""

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        pictures = TurnData.collate(items)["pixel_values"][:, None]
        return {"pixel_values": pictures, **pack([START] * len(items), [turns for _, turns in items])}


class TowerPretraining(lab_qwen.TowerPretraining):
    """As a Qwen tower learns, with a patch for a cell."""

    def __init__(self, tower: nn.Module, clip: CLIPModel):
        super().__init__(tower, clip, patches=1)

    def cells(self, pixel_values: Tensor) -> Float[Tensor, "n patch width"]:
        """The tower's output, after its last norm, in raster order."""
        whole = torch.ones(len(pixel_values), WORLD.grid, WORLD.grid, dtype=torch.bool, device=pixel_values.device)
        return self.visual(pixel_values=pixel_values, patch_attention_mask=whole).last_hidden_state
