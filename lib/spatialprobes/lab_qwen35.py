"""The lab's Qwen3.5: the untrained model and its training data.

Three of its four layers are linear attention, whose state takes up all that came before: turns can't be kept apart in one row by
a mask, as in the other lab models. So a row is one conversation, each turn sees those before it, and only its first turn is a
single-turn prompt. Its language model is of its own kind, so it reads captions before it sees. Tower, processor and pictures are
those of the other Qwens (``lab_qwen.py``). Knows nothing of stages 1 and 2 and of the zoo (``lab.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from spatialprobes import lab_qwen
from spatialprobes.lab_batches import IGNORED, PAD, PREFIX, USER, TextData, Turn, TurnData, pad
from spatialprobes.lab_models import DEPTH, HEADS, SPECIAL_IDS, WIDTH
from spatialprobes.lab_qwen import ROPE_THETA, SIDE

MROPE_SECTION = [2, 3, 3]  # time, row, column; half of each head of the fourth layer turns with the position


def model(seed: int) -> Qwen3_5ForConditionalGeneration:
    """Untrained Qwen3.5 with the width, depth and words of lab-llava: linear attention in its first three layers, full attention
    with gated heads in the fourth."""
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": ROPE_THETA, "mrope_section": MROPE_SECTION, "mrope_interleaved": True}
    common = lab_qwen.common()
    text = common.pop("text_config") | dict(
        layer_types=[*["linear_attention"] * (DEPTH - 1), "full_attention"], head_dim=WIDTH // HEADS,
        linear_key_head_dim=WIDTH // HEADS, linear_value_head_dim=WIDTH // HEADS, linear_num_key_heads=HEADS,
        linear_num_value_heads=HEADS, rope_parameters=rope | {"partial_rotary_factor": 0.5},
    )  # fmt: skip
    vision = lab_qwen.vision() | dict(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, out_hidden_size=WIDTH, num_position_embeddings=SIDE**2
    )
    made = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=text, vision_config=vision, **common))
    made.generation_config.update(do_sample=False, **SPECIAL_IDS)
    return made


def chain(prefixes: Sequence[Sequence[int]], all_turns: Sequence[Sequence[Turn]]) -> dict[str, Tensor]:
    """Rows of a prefix and its turns one after another, as one conversation.

    Returns input_ids, labels (answers only), attention_mask (no padding), int64 [n, T].
    """
    rows, labels = [], []
    for prefix, turns in zip(prefixes, all_turns, strict=True):
        row, known = list(prefix), [IGNORED] * len(prefix)
        for number, turn in enumerate(turns):
            asked = [USER, *turn.question] if number else turn.question
            row += [*asked, *turn.answer]
            known += [*[IGNORED] * len(asked), *turn.answer]
        rows.append(row)
        labels.append(known)
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = pad(rows, PAD)
    mask = (torch.arange(input_ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": input_ids, "labels": pad(labels, IGNORED), "attention_mask": mask}


class Conversations(TurnData):
    """``TurnData`` with the turns of a picture as one conversation, pictures as packed patches, positions on three axes."""

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        pictures = TurnData.collate(items)["pixel_values"]
        batch = chain([PREFIX] * len(items), [turns for _, turns in items])
        places = torch.arange(batch["input_ids"].shape[1]).expand(len(items), -1)
        seen = {"pixel_values": lab_qwen.patches(pictures), "image_grid_thw": lab_qwen.grids(len(items))}
        return {**batch, **seen, "position_ids": lab_qwen.position_ids(places)}


class TextConversations(TextData):
    """``TextData`` with the turns about a caption as one conversation."""

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        return chain(*zip(*items, strict=True))
