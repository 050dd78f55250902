"""lab-llava-shapeworld: a LLaVA of 96 pixels whose pictures were all generated ShapeWorld worlds; its data, its tower's pass.

Stage 2 is that of every lab model (``lab_stages.py``), without a connector pass before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPModel

from spatialprobes.lab_batches import BOS, EOS, IMAGE, PAD, Turn, as_turn, normalise, pack, pad, shares
from spatialprobes.lab_cards import EVALUATION_SEED, similarity
from spatialprobes.lab_recipes import ShapeworldRecipe
from spatialprobes.worlds.lab_language import ID, SYSTEM_PROMPT, ids
from spatialprobes.worlds.shapeworld import COLOURS, SHAPES, SIZE, TwoShapes, coverage, picture, world
from spatialprobes.worlds.shapeworld_questions import GROUPS, statement

RECIPE = ShapeworldRecipe()
PIXELS, PATCH = RECIPE.pixels, RECIPE.patch
GRID = PIXELS // PATCH
PREFIX = [BOS, *ids(SYSTEM_PROMPT), ID["user:"], *[IMAGE] * GRID**2]
MIN_COVER = 0.08  # of a patch that an entity must cover to be what the patch shows


def seen_at(world: TwoShapes) -> np.ndarray:
    """The picture as the model's image processor scales it, uint8 [96, 96, 3]."""
    return np.asarray(picture(world).resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))


def patch_labels(world: TwoShapes) -> np.ndarray:
    """What each patch shows, int [cells]: 0 background, else 1 + colour x shape."""
    labels, most = np.zeros((GRID, GRID), np.int64), np.full((GRID, GRID), MIN_COVER * (SIZE / GRID) ** 2)
    cell = np.arange(SIZE) * GRID // SIZE
    for entity in world.entities:
        covered = np.zeros((GRID, GRID))
        np.add.at(covered, (cell[:, None], cell[None]), coverage(entity))
        labels[covered >= most] = 1 + list(COLOURS).index(entity.colour) * len(SHAPES) + SHAPES.index(entity.shape)
        most = np.maximum(most, covered)
    return labels.ravel()


class ShapeTower(Dataset):
    """Picture, the sentence that names its two shapes, and what each patch shows."""

    def __init__(self, seed: int, count: int):
        self.seed, self.count = seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        shown = world(self.seed, index)
        return seen_at(shown), patch_labels(shown), [BOS, *ids(statement(*shown.pair)), EOS]

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        images, labels, sentences = zip(*items, strict=True)
        input_ids = pad(sentences, PAD)
        return {
            "pixel_values": normalise(np.stack(images)),
            "input_ids": input_ids,
            "attention_mask": (input_ids != PAD).long(),
            "patch_labels": torch.from_numpy(np.stack(labels)),
        }


class TowerPretraining(nn.Module):
    """Contrast of pictures and sentences with one helper: what each patch shows, read off the layer that the connector will
    read. The helper's linear head is thrown away; it is not told where a patch lies."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip
        self.patch_head = nn.Linear(clip.config.vision_config.hidden_size, 1 + len(COLOURS) * len(SHAPES))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, patch_labels: Tensor) -> dict[str, Tensor]:
        vision = self.clip.vision_model(pixel_values=pixel_values, output_hidden_states=True)
        labels = self.patch_head(vision.hidden_states[-2][:, 1:])
        text = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask)
        logits = similarity(self.clip, vision.pooler_output, text.pooler_output)
        target = torch.arange(len(logits), device=logits.device)
        contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss = contrastive / 4 + F.cross_entropy(labels.flatten(0, 1), patch_labels.flatten()) * 4
        return {"loss": loss, "patch_logits": labels, "logits": logits}


TRIES = 1000  # questions drawn for each that is wanted, before a world is taken to have none


class ShapeTurns(Dataset):
    """A picture and several turns about it, each trained as if it were the only one (as ``lab_batches.TurnData``)."""

    def __init__(self, seed: int, count: int, mix: Mapping[str, float], turns: int = 8, easy: int = 0, hard: int | None = None):
        self.seed, self.count, self.turns, self.groups = seed, count, turns, tuple(mix)
        self.easy, self.hard = easy, count if hard is None else hard
        self.early, self.usual, self.late = shares(mix, ["semantic"]), shares(mix), shares(mix, ["relation"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[Turn]]:
        rng = np.random.default_rng([self.seed, index, 1])
        shown, turns = world(self.seed, index), []
        cumulative = self.early if index < self.easy else self.late if index >= self.hard else self.usual
        for _ in range(TRIES * self.turns):
            group = self.groups[min(int(np.searchsorted(cumulative, rng.random())), len(self.groups) - 1)]
            question = GROUPS[group](shown, rng)
            if question is not None:
                turns.append(_turn(as_turn(question)))
                if len(turns) == self.turns:
                    return seen_at(shown), turns
        raise ValueError(f"world {index} of stream {self.seed}: none of these can be asked about it: {', '.join(self.groups)}")

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        images, turns = zip(*items, strict=True)
        return {"pixel_values": normalise(np.stack(images)), **pack([PREFIX] * len(items), turns)}


def _turn(turn: Turn) -> Turn:
    """A caption is gone on with by the user's own words, without the assistant's turn."""
    if turn.group != "relation.caption":
        return turn
    return Turn(turn.group, turn.question[:-1], [turn.answer[0], ID["."]])


def every_group(worlds: int) -> ShapeTurns:
    """Worlds that no training draws, with questions of all groups alike."""
    return ShapeTurns(EVALUATION_SEED, worlds, dict.fromkeys(GROUPS, 1.0))
