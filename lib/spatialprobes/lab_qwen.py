"""The lab's Qwen2-VL and Qwen2.5-VL: untrained models, their processor and training data, the pass that teaches a tower to see.

A picture of 48 x 48 pixels is 12 x 12 patches of 4 pixels, four of them (a cell of 8 pixels) merged to a vision token: the same
6 x 6 tokens as in lab-llava. The tower has its own pass, since no other lab model has one of this kind. Knows nothing of stages
1 and 2 and of the zoo (``lab.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)
from transformers.vision_utils import get_vision_window_index

from spatialprobes import lab_models
from spatialprobes.lab_batches import IMAGE, PREFIX, TOKENS, TowerData, TurnData
from spatialprobes.lab_models import DEPTH, HEADS, INITIALIZER_RANGE, SPECIAL_IDS, TOWER_DEPTH, WIDTH
from spatialprobes.worlds.lab import COLOURS, SHAPES, WORLD
from spatialprobes.worlds.lab_language import ID, VOCABULARY

if TYPE_CHECKING:
    from jaxtyping import Float, Int

MERGE, FRAMES = 2, 2  # patches along a cell's side; a still picture stands as two frames
PATCH = WORLD.patch // MERGE
SIDE = WORLD.size // PATCH
WINDOW = 3 * WORLD.patch  # pixels: the picture is four windows of 3 x 3 cells
# M-RoPE gives columns the slowest rotations. At the usual base of 10,000 they would turn by .016 rad across the whole picture;
# at 30 they turn by .6 rad, and rows by 2.1 rad.
ROPE_THETA, MROPE_SECTION = 30.0, [4, 6, 6]  # time, row, column
BEFORE_PICTURE = PREFIX.index(IMAGE)


Model = Qwen2_5_VLForConditionalGeneration | Qwen2VLForConditionalGeneration


def model_2_5(seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Untrained Qwen2.5-VL with the width, depth and words of lab-llava; whole-picture attention in the tower's second and last
    block, windows in the others."""
    torch.manual_seed(seed)
    tower = dict(
        **vision(), hidden_size=WIDTH, out_hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        window_size=WINDOW, fullatt_block_indexes=[1, TOWER_DEPTH - 1],
    )  # fmt: skip
    return _greedy(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(vision_config=tower, **common())))


def model_2(seed: int) -> Qwen2VLForConditionalGeneration:
    """Untrained Qwen2-VL of the same sizes; its tower sees the whole picture in every block."""
    torch.manual_seed(seed)
    tower = dict(**vision(), embed_dim=WIDTH, hidden_size=WIDTH, mlp_ratio=2)
    return _greedy(Qwen2VLForConditionalGeneration(Qwen2VLConfig(vision_config=tower, **common())))


def vision() -> dict:
    """What the towers of all the lab's Qwens have in common."""
    return dict(
        depth=TOWER_DEPTH, num_heads=HEADS, patch_size=PATCH, spatial_merge_size=MERGE, temporal_patch_size=FRAMES,
        initializer_range=INITIALIZER_RANGE,
    )  # fmt: skip


def common() -> dict:
    """What the rest of all the lab's Qwens has in common."""
    text = dict(
        vocab_size=len(VOCABULARY), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=DEPTH,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512, initializer_range=INITIALIZER_RANGE,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": MROPE_SECTION},
        tie_word_embeddings=False, use_sliding_window=False, **SPECIAL_IDS,
    )  # fmt: skip
    return dict(
        text_config=text, image_token_id=IMAGE, video_token_id=ID["<spare0>"], vision_start_token_id=ID["<spare1>"],
        vision_end_token_id=ID["<spare2>"], tie_word_embeddings=False, **SPECIAL_IDS,
    )  # fmt: skip


def _greedy(made: Model) -> Model:
    made.generation_config.update(do_sample=False, **SPECIAL_IDS)
    return made


def adopt(model: Model, text: nn.Module) -> None:
    """Put lab-text's weights into the language model; biases of queries, keys and values, which lab-text has not, are 0."""
    missing, unexpected = model.model.language_model.load_state_dict(text.model.state_dict(), strict=False)
    if unexpected or not all(name.endswith("proj.bias") for name in missing):
        raise ValueError(f"lab-text does not fit: {len(unexpected)} weights too many, missing {missing}")
    with torch.no_grad():
        for name in missing:
            model.model.language_model.get_parameter(name).zero_()
    model.lm_head.load_state_dict(text.lm_head.state_dict())


def freeze_tower(model: Model) -> None:
    """All of the vision side but the connector (the merger)."""
    model.model.visual.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)


@dataclass(frozen=True)
class Words:
    """Tokenizer and image processor; one picture token in the prompt, which the processor of the family repeats."""

    tokenizer: PreTrainedTokenizerFast
    images: Qwen2VLImageProcessorPil

    def save_pretrained(self, folder: str | Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.images.save_pretrained(folder)


def words() -> Words:
    """The lab's words, and pictures at about 48 x 48 pixels whatever their size."""
    half, area = [0.5, 0.5, 0.5], WORLD.size**2
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": area, "longest_edge": area}, image_mean=half, image_std=half,
        patch_size=PATCH, temporal_patch_size=FRAMES, merge_size=MERGE,
    )  # fmt: skip
    return Words(lab_models.tokenizer(extra_special_tokens={"image_token": "<image>"}), images)


def patches(pictures: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n_patch pixel"]:
    """What the Qwen image processor makes of normalised pictures: patches cell by cell, four of a cell in a row, each as the
    values of [channel, frame, row, column]."""
    n, side, cells = len(pictures), SIDE, SIDE // MERGE
    cut = pictures.reshape(n, 3, cells, MERGE, PATCH, cells, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return cut[:, :, :, :, :, :, None].expand(*cut.shape[:6], FRAMES, PATCH, PATCH).reshape(n * side**2, -1)


def grids(n: int) -> Int[Tensor, "n 3"]:
    return torch.tensor([[1, SIDE, SIDE]]).expand(n, 3)


def position_ids(single: Int[Tensor, "n token"]) -> Int[Tensor, "3 n token"]:
    """Time, row and column of every token, from its place in the single-turn prompt: a picture takes up the places of its side,
    not of its tokens."""
    cells = SIDE // MERGE
    offset = single - BEFORE_PICTURE
    inside, after = (offset >= 0) & (offset < TOKENS), offset >= TOKENS
    later = torch.where(after, single - TOKENS + cells, single)
    row, column = (torch.where(inside, BEFORE_PICTURE + part, later) for part in (offset // cells, offset % cells))
    return torch.stack([torch.where(inside, BEFORE_PICTURE, later), row, column])


class QwenTurns(TurnData):
    """``TurnData`` with pictures as packed patches and positions on three axes."""

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        batch = TurnData.collate(items)
        return {
            **batch,
            "pixel_values": patches(batch["pixel_values"]),
            "image_grid_thw": grids(len(items)),
            "position_ids": position_ids(batch["position_ids"]),
        }


class TowerPretraining(nn.Module):
    """What lab-clip's tower learned by, for a Qwen tower: contrast with captions, read by lab-clip's text half, which stays as it
    is, and two helpers on the last block (what each cell shows, how near it is), whose linear heads are thrown away."""

    def __init__(self, visual: nn.Module, clip: CLIPModel, patches: int = MERGE**2):
        super().__init__()
        self.visual, self.clip = visual, clip.requires_grad_(False)
        cell = patches * WIDTH  # of the patches of a cell
        self.patch_head, self.near_head = nn.Linear(cell, 1 + len(COLOURS) * len(SHAPES)), nn.Linear(cell, 1)
        self.image_head = nn.Linear(WIDTH, clip.config.projection_dim)

    def cells(self, pixel_values: Tensor) -> Float[Tensor, "n cell four_width"]:
        """The last block's output by cell in raster order (a tower with windows holds the cells window by window)."""
        n = len(pixel_values)
        thw = grids(n)
        hidden = self.visual(patches(pixel_values), grid_thw=thw).last_hidden_state.reshape(n * TOKENS, -1)
        if window := getattr(self.visual.config, "window_size", None):
            order, _ = get_vision_window_index(thw, MERGE, window, PATCH)
            hidden = hidden[order.argsort()]
        return hidden.reshape(n, TOKENS, -1)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, patch_labels: Tensor, patch_near: Tensor
    ) -> dict[str, Tensor]:
        cells = self.cells(pixel_values)
        labels = self.patch_head(cells)
        near = self.near_head(cells)[..., 0][patch_labels > 0]
        pooled = self.image_head(cells.unflatten(-1, (-1, WIDTH)).mean((1, 2)))
        with torch.no_grad():
            text = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask).pooler_output
            words = F.normalize(self.clip.text_projection(text), dim=-1)
        logits = self.clip.logit_scale.exp() * F.normalize(pooled, dim=-1) @ words.T
        target = torch.arange(len(logits), device=logits.device)
        contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        helper = F.cross_entropy(labels.flatten(0, 1), patch_labels.flatten()) + 4 * F.mse_loss(
            near, patch_near[patch_labels > 0]
        )
        return {"loss": contrastive + helper, "patch_logits": labels, "logits": logits}


@torch.no_grad()
def seen(model: nn.Module, data: TowerData, batch_size: int = 100) -> dict[str, tuple[int, int]]:
    """{what: (right, asked)}: the helper head's label of each cell that shows an object; the nearest of 100 captions."""
    shown = right = own = asked = 0
    for start in range(0, len(data) // batch_size * batch_size, batch_size):
        batch = data.collate([data[i] for i in range(start, start + batch_size)])
        found = model(**batch)
        there = batch["patch_labels"] > 0
        right += int((found["patch_logits"].argmax(-1) == batch["patch_labels"])[there].sum())
        shown += int(there.sum())
        own += int((found["logits"].argmax(1) == torch.arange(batch_size)).sum())
        asked += batch_size
    return {"foreground patches (helper head)": (right, shown), f"retrieval among {batch_size}": (own, asked)}
