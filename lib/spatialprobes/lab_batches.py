"""What the lab's models are trained on: scenes turned into tensors, any batch from its number alone.

Three data sets: pictures with captions and patch labels (the tower), captions and questions about captions (the language
model before it sees), and pictures with turns (stages 1 and 2). Item i is drawn from ``(seed, i)``, so a training that is
resumed sees what it would have seen. Knows scenes and words; knows nothing of trainers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spatialprobes.worlds.lab import WORLD, Scene, draw_with_patches, render, scene
from spatialprobes.worlds.lab_language import CAPTION_REQUEST, ID, SYSTEM_PROMPT, caption, ids, parse_caption
from spatialprobes.worlds.lab_questions import GROUPS, Question, ask

if TYPE_CHECKING:
    from jaxtyping import Float, UInt8

PERSPECTIVE = (0.0, 0.5)
PAD, BOS, EOS, IMAGE = ID["<pad>"], ID["<s>"], ID["</s>"], ID["<image>"]
USER, ASSISTANT = ID["user:"], ID["assistant:"]
TOKENS = WORLD.grid**2
PREFIX = [BOS, *ids(SYSTEM_PROMPT), USER, *[IMAGE] * TOKENS]  # what every turn about a picture begins with
IGNORED = -100
QUESTION_GROUPS = tuple(name for name in GROUPS if name != "caption")
SEMANTIC = ("semantic.color", "semantic.shape", "semantic.existence")

# Share of each group among the turns of stage 2: relations (with their 2DS forms) are more than half of the questions.
MIX: dict[str, float] = {
    "semantic.color": 0.05, "semantic.shape": 0.05, "semantic.existence": 0.07,
    "relation.horizontal": 0.16, "relation.vertical": 0.12, "relation.distance": 0.10,
    "2ds.color_abs": 0.05, "2ds.shape_abs": 0.05, "2ds.shape_color_abs": 0.05,
    "2ds.color_rel": 0.05, "2ds.shape_rel": 0.05, "2ds.shape_color_rel": 0.05,
    "bin.column": 0.06, "bin.row": 0.05, "corner": 0.03, "caption": 0.01,
}  # fmt: skip


def normalise(images: UInt8[np.ndarray, "n size size 3"]) -> Float[Tensor, "n 3 size size"]:
    """Pixels to [-1, 1], channels first: what the lab's image processor does (mean and deviation .5)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Right-padded int64 [n, longest]."""
    out = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


class TowerData(Dataset):
    """Picture, caption and what each patch shows; for the tower's contrastive pass."""

    def __init__(self, seed: int, count: int, perspective: float | tuple[float, ...] = PERSPECTIVE):
        self.seed, self.count, self.perspective = seed, count, perspective

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
        shown = scene(self.seed, index, self.perspective)
        words = caption(shown, np.random.default_rng([self.seed, index, 1]))
        return *draw_with_patches(shown), [BOS, *ids(words), EOS]

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        images, labels, near, captions = zip(*items, strict=True)
        input_ids = pad(captions, PAD)
        return {
            "pixel_values": normalise(np.stack(images)),
            "input_ids": input_ids,
            "attention_mask": (input_ids != PAD).long(),
            "patch_labels": torch.from_numpy(np.stack(labels)),
            "patch_near": torch.from_numpy(np.stack(near)),
        }


def answerable(question: Question, words: str, shown: Scene) -> bool:
    """Whether a reader of the caption could answer: every object is named in it, but only some relations are stated."""
    if question.group in SEMANTIC:
        return True
    if not question.reference:
        return False
    things = {form: t.name for t in shown.things for form in (t.shape, f"{t.colour} one", t.name)}
    horizontal = {"left of": True, "right of": True, "above": False, "under": False}
    asked = question.group == "relation.horizontal" or question.category in ("left", "right")
    pair = {things[question.subject], things[question.reference]}
    return any({c.subject, c.reference} == pair and horizontal[c.relation] == asked for c in parse_caption(words))


@dataclass(frozen=True)
class Turn:
    """A question with its answer as token ids (answer with the closing token)."""

    group: str
    question: list[int]
    answer: list[int]


def as_turn(question: Question) -> Turn:
    return Turn(question.group, [*ids(question.text), ASSISTANT], [*ids(question.answer), EOS])


def pack(prefixes: Sequence[Sequence[int]], all_turns: Sequence[Sequence[Turn]]) -> dict[str, Tensor]:
    """Rows of a prefix and its turns, each turn with the positions and the context it would have alone after the prefix.

    Returns input_ids, labels (answers only), position_ids, all int64 [n, T]; attention_mask bool [n, 1, T, T], True = may see.
    """
    n = len(prefixes)
    length = max(
        len(p) + sum(len(t.question) + len(t.answer) for t in turns) for p, turns in zip(prefixes, all_turns, strict=True)
    )
    input_ids, labels = np.full((n, length), PAD, np.int64), np.full((n, length), IGNORED, np.int64)
    positions, block = np.zeros((n, length), np.int64), np.full((n, length), -1, np.int64)
    for i, (prefix, turns) in enumerate(zip(prefixes, all_turns, strict=True)):
        at = start = len(prefix)
        input_ids[i, :start], positions[i, :start], block[i, :start] = prefix, np.arange(start), 0
        for number, turn in enumerate(turns, 1):
            middle, end = at + len(turn.question), at + len(turn.question) + len(turn.answer)
            input_ids[i, at:end] = turn.question + turn.answer
            labels[i, middle:end] = turn.answer
            positions[i, at:end], block[i, at:end] = np.arange(start, start + end - at), number
            at = end
    blocks = torch.from_numpy(block)
    same = (blocks[:, :, None] == blocks[:, None, :]) | (blocks[:, None, :] == 0)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(positions),
        "attention_mask": (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None],
    }


class TextData(Dataset):
    """Text alone: a caption to be written, or a caption to be read and turns that it answers, each as if it were the only one."""

    GROUPS = (*SEMANTIC, "relation.horizontal", "relation.vertical", "2ds.color_rel", "2ds.shape_rel", "2ds.shape_color_rel")

    def __init__(self, seed: int, count: int, turns: int = 10, perspective: float | tuple[float, ...] = PERSPECTIVE):
        self.seed, self.count, self.turns, self.perspective = seed, count, turns, perspective

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[list[int], list[Turn]]:
        rng = np.random.default_rng([self.seed, index, 1])
        shown = scene(self.seed, index, self.perspective)
        words = caption(shown, rng)
        start = [BOS, *ids(SYSTEM_PROMPT), USER]
        if rng.random() < 0.2:
            return start, [Turn("caption", [*ids(CAPTION_REQUEST), ASSISTANT], [*ids(words), EOS])]
        turns: list[Turn] = []
        while len(turns) < self.turns:
            question = ask(shown, self.GROUPS[int(rng.integers(len(self.GROUPS)))], rng)
            if question is not None and answerable(question, words, shown):
                turns.append(as_turn(question))
        return [*start, *ids(words)], turns

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        return pack(*zip(*items, strict=True))


def shares(mix: Mapping[str, float], weighted: Sequence[str] = ()) -> np.ndarray:
    """Cumulated shares of the groups of a mix, those in `weighted` (groups, or the first parts of their names) four times."""
    weights = np.array([w * (4 if {group, group.split(".")[0]} & {*weighted} else 1) for group, w in mix.items()])
    return np.cumsum(weights / weights.sum())


class TurnData(Dataset):
    """A picture and several turns about it, each trained as if it were the only one.

    The turns share the prefix (system prompt and picture) and do not see each other: every one has the positions and the
    context of a single-turn prompt. mix: share of each question group. easy: for the first ``easy`` items the semantic
    groups weigh four times as much.
    """

    def __init__(
        self,
        seed: int,
        count: int,
        mix: Mapping[str, float],
        turns: int = 12,
        easy: int = 0,
        perspective: float | tuple[float, ...] = PERSPECTIVE,
    ):
        self.seed, self.count, self.turns, self.easy, self.perspective = seed, count, turns, easy, perspective
        self.groups = tuple(mix)
        self.cumulative, self.cumulative_easy = shares(mix), shares(mix, SEMANTIC)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, list[Turn]]:
        shown = scene(self.seed, index, self.perspective)
        rng = np.random.default_rng([self.seed, index, 1])
        cumulative = self.cumulative_easy if index < self.easy else self.cumulative
        turns: list[Turn] = []
        while len(turns) < self.turns:
            group = self.groups[min(int(np.searchsorted(cumulative, rng.random())), len(self.groups) - 1)]
            question = ask(shown, group, rng)
            if question is not None:
                turns.append(as_turn(question))
        return render(shown), turns

    @staticmethod
    def collate(items: list) -> dict[str, Tensor]:
        images, turns = zip(*items, strict=True)
        return {"pixel_values": normalise(np.stack(images)), **pack([PREFIX] * len(items), turns)}
