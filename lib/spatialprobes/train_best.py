"""Training with validation: as ``train.fit`` on Hugging Face's Trainer, and what is left are the weights of the lowest loss.

Resumable in the same way. Knows neither what is trained nor on what.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import EarlyStoppingCallback, PrinterCallback, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from spatialprobes.train import ResumingTrainer


@dataclass(frozen=True)
class Schedule:
    """How `fit_best` trains; the defaults are the connector study's. Steps are those of the optimiser, after accumulation.

    epochs: passes over the data, at most. batch_size, accumulation: items at a time, and batches to a step. lr, weight_decay: of
    AdamW. warmup: steps of linear warm-up (held to a tenth of all); then a cosine down to `floor` of the rate. patience: epochs
    without a validation loss lower by `min_delta` after which training ends. bf16: autocast, for GPUs.
    """

    epochs: int = 20
    batch_size: int = 8
    accumulation: int = 4
    lr: float = 3e-4
    weight_decay: float = 0.01
    warmup: int = 500
    floor: float = 0.01
    patience: int = 10
    min_delta: float = 1e-3
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulation", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    def steps(self, items: int) -> int:
        """Steps of the optimiser in one epoch; items that don't fill a last step are left to the next epochs."""
        return max(1, items // (self.batch_size * self.accumulation))


def claim(out: Path, facts: dict[str, Any]) -> None:
    """Note in the folder what is trained there: a resumed training must be the same one.

    facts: all that the training depends on, in JSON's types. Raises ValueError naming what differs where others are noted.
    """
    facts, note = json.loads(json.dumps(facts)), out / "training.json"
    if note.is_file():
        before = json.loads(note.read_text())
        if differ := [name for name in facts if before.get(name) != facts[name]]:
            raise ValueError(f"{out} holds checkpoints of another training ({', '.join(differ)} differ); name another folder")
        return
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / "training.tmp"
    temporary.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, note)


def warmup_cosine(steps: int, warmup: int, floor: float) -> Callable[[int], float]:
    """Factor on the learning rate at a step of the optimiser: linear warm-up, then half a cosine down to `floor` at `steps`.

    (The connector study counts batches but moves on by steps of 4 batches: its rate stays near the top of the cosine.)
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

    return factor


class Shuffled(Dataset):
    """`count` items of `data`, shuffled anew for every pass; item i is always the same, so a resumed training sees it too."""

    def __init__(self, data: Dataset, count: int, seed: int):
        self.data, self.count, self.seed = data, count, seed
        self._pass, self._order = -1, np.arange(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        number, place = divmod(index, len(self.data))
        if number != self._pass:
            self._pass, self._order = number, np.random.default_rng([self.seed, number]).permutation(len(self.data))
        return self.data[int(self._order[place])]


@dataclass(frozen=True)
class Fitted:
    """How a training with validation went. history: [{"step", "loss"}] of the validation, step by step; best_step, best_loss:
    of the weights that the model has now; steps: of the optimiser until training ended."""

    history: list[dict[str, float]]
    best_step: int
    best_loss: float
    steps: int


def fit_best(
    model: nn.Module,
    data: Dataset,
    validation: Dataset,
    collate: Callable[[list], dict[str, torch.Tensor]],
    out: Path,
    schedule: Schedule,
    *,
    labels: Sequence[str],
    seed: int = 0,
    device: str = "cpu",
    callbacks: Sequence[TrainerCallback] = (),
) -> Fitted:
    """Train the model's trainable parameters and leave it with the weights of the lowest validation loss, in evaluation mode.

    The model's forward returns {"loss": ...}; validated once an epoch, without gradients, in evaluation mode. labels: names of
    the inputs without which there is no loss. out: folder for checkpoints (the best and the last); where it holds some, training
    goes on from there with the same data in the same order. device: "cpu" or "cuda". Gradients are clipped at norm 1.
    Raises ValueError for data or validation without items, and where no validation loss was a number.
    """
    if not len(data) or not len(validation):
        raise ValueError(f"{len(data)} items to train on and {len(validation)} to validate with: both need some")
    per_epoch = schedule.steps(len(data))
    steps = schedule.epochs * per_epoch
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=min(schedule.batch_size, len(data)),
        per_device_eval_batch_size=schedule.batch_size,
        gradient_accumulation_steps=schedule.accumulation,
        max_steps=steps,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        label_names=list(labels),
        prediction_loss_only=True,
        eval_strategy="steps",
        eval_steps=per_epoch,
        save_strategy="steps",
        save_steps=per_epoch,
        save_total_limit=1,  # and the best one
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        logging_steps=max(1, per_epoch),
        report_to="none",
        disable_tqdm=True,
        bf16=schedule.bf16,
        seed=seed,
        use_cpu=device == "cpu",
    )
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimiser = AdamW(trainable, lr=schedule.lr, weight_decay=schedule.weight_decay)
    factor = warmup_cosine(steps, min(schedule.warmup, max(1, steps // 10)), schedule.floor)
    items = steps * schedule.batch_size * schedule.accumulation
    trainer = ResumingTrainer(
        model=model,
        args=arguments,
        train_dataset=Shuffled(data, items, seed),
        eval_dataset=validation,
        data_collator=collate,
        optimizers=(optimiser, LambdaLR(optimiser, factor)),
        callbacks=[EarlyStoppingCallback(schedule.patience, schedule.min_delta), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    checkpoint = get_last_checkpoint(str(out)) if out.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    history = [{"step": int(row["step"]), "loss": float(row["eval_loss"])} for row in state.log_history if "eval_loss" in row]
    if state.best_global_step is None:
        raise ValueError(f"no validation loss in {state.global_step} steps was a number: nothing to keep")
    model.eval()
    return Fitted(history, int(state.best_global_step), float(state.best_metric), int(state.global_step))
