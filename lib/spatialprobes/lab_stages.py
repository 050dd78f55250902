"""Stages 1 and 2 of a lab model, alike for every family, and what is kept of them: the model, copies on the way, the card.

Knows models and data by what they do; which model has which ancestors is the zoo's business (``lab.py``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from spatialprobes import lab_models
from spatialprobes.lab_batches import QUESTION_GROUPS, TurnData
from spatialprobes.lab_cards import (
    EVALUATION_SEED,
    Curve,
    Stopwatch,
    caption_accuracy,
    card,
    input_norms,
    proportion,
    turn_accuracy,
)
from spatialprobes.lab_recipes import Pass, Recipe
from spatialprobes.train import EachSteps, fit

# Fresh scenes on which the cards' accuracies are measured: pictures to be told from others, finished models, their scales.
SCENES = {"retrieval": 3000, "patches": 1000, "text": 1000, "model": 1500, "scale": 300, "curve": 192}


def first_stage(model: PreTrainedModel, recipe: Recipe, here: Path, seed: int = 0, data: type[TurnData] = TurnData) -> dict:
    """Train what of the model is not its language model, on captions; returns the norms of the model's input before and after."""
    fresh, plan = every_group(64, recipe.perspective, data), recipe.stage1
    norms = {"start": input_norms(model, fresh)}
    for part in (model.get_decoder(), model.lm_head):
        part.requires_grad_(False)
    captions = data(100 + seed, plan.items, {"caption": 1.0}, turns=1, perspective=recipe.perspective)
    fit(model, captions, data.collate, here / "stage1", **schedule(plan), seed=seed)
    for part in (model.get_decoder(), model.lm_head):
        part.requires_grad_(True)
    return {**norms, "vanilla": input_norms(model, fresh)}


def every_group(scenes: int, perspective: tuple[float, ...], data: type[TurnData] = TurnData) -> TurnData:
    """Fresh scenes with questions of all groups alike."""
    return data(EVALUATION_SEED, scenes, dict.fromkeys(QUESTION_GROUPS, 1.0), perspective=perspective)


@dataclass(frozen=True)
class SecondStage:
    """Stage 2 of a model (connector and language model; questions) and what is kept of it: the model, copies on the way, a card.

    recipe, plan: what the card states, and the pass that is made of it. questions: what is trained on; fresh: so many scenes that
    are not, with questions of every group; captions: so many that are not, each to be described, for a model that is measured
    by what it writes. shared: as `lab_models.save` takes it. norms, tower: what was measured before.
    """

    name: str
    recipe: dict
    plan: Pass
    questions: Dataset
    fresh: Callable[[int], Dataset]
    ancestors: list[str]
    bars: dict[str, float]
    norms: dict[str, dict[str, float]]
    out: Path
    work: Path
    shared: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    tower: dict[str, dict] = field(default_factory=dict)
    captions: Callable[[int], Dataset] | None = None

    def run(self, model: PreTrainedModel, words: ProcessorMixin, watch: Stopwatch, scales: tuple[int, ...] = ()) -> None:
        """Train, keeping a copy after the steps ``scales`` as <name>-<samples>, the one of step 0 as <name>-vanilla."""
        plan, here = self.plan, self.work / self.name
        curve = Curve(here / "curve.json", plan.batch_size, self.fresh(SCENES["curve"]))

        def keep(label: str, samples: int, scenes: int) -> None:
            counts = turn_accuracy(model, self.fresh(scenes))
            if self.captions is not None:
                counts |= caption_accuracy(model, self.captions(scenes))
            stated = card(
                label, model, self.recipe, self.ancestors, self.seed, samples, watch.minutes,
                accuracy={group: proportion(*count) for group, count in counts.items()},
                norms={**self.norms, "now": input_norms(model, self.fresh(64))},
                bars=self.bars if label == self.name else {}, **({"tower": self.tower} if self.tower else {}),
            )  # fmt: skip
            files = {"card.json": as_json(stated), "curve.json": as_json(curve.read())}
            lab_models.save(model, self.out / label, words, files, self.shared)

        def at_scale(step: int, _: nn.Module) -> None:
            if step in scales:
                samples = step * plan.batch_size
                keep(f"{self.name}-{samples}" if step else f"{self.name}-vanilla", samples, SCENES["scale"])

        callbacks = [EachSteps(200, curve), EachSteps(100, at_scale), EachSteps(100, lambda *_: watch.keep())]
        collate = self.questions.collate
        fit(model, self.questions, collate, here / "stage2", **schedule(plan), seed=self.seed, callbacks=callbacks)
        keep(self.name, plan.items, SCENES["model"])


def lab_questions(recipe: Recipe, seed: int = 0, data: type[TurnData] = TurnData) -> dict:
    """What `SecondStage` trains on in the lab's world: recipe, plan, questions, fresh scenes and seed."""
    plan = recipe.stage2
    questions = data(200 + seed, plan.items, recipe.mix, recipe.turns, recipe.easy, recipe.perspective)
    fresh = partial(every_group, perspective=recipe.perspective, data=data)
    return {"recipe": recipe.of(), "plan": plan, "questions": questions, "fresh": fresh, "seed": seed}


def described(scenes: int, perspective: tuple[float, ...], data: type[TurnData]) -> TurnData:
    """Fresh scenes, each to be described."""
    return data(EVALUATION_SEED, scenes, {"caption": 1.0}, turns=1, perspective=perspective)


def schedule(plan: Pass) -> dict:
    return {"batch_size": plan.batch_size, "lr": plan.lr, "muon_lr": plan.muon_lr, "decay": plan.decay}


def as_json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
