"""Training: one path for the lab and for full-size models, on Hugging Face's Trainer.

``fit`` takes any model whose forward returns a loss, any map-style data set whose item i is always the same, and goes on
where a killed run stopped; ``train_best.fit_best`` also validates and keeps the best weights. Knows nothing of the lab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the inner weight matrices, AdamW for all the rest, as one optimiser.

    Both parts take the same kind of learning rate: Muon's updates are scaled to the root mean square of AdamW's.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        lr: float,
        muon_lr: float,
        weight_decay: float = 0.01,
    ):
        self.parts = (
            Muon(matrices, lr=muon_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(others, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98)),
        )
        super().__init__([p for part in self.parts for group in part.param_groups for p in group["params"]], {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The groups are the parts' own; the base class has none."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts for group in part.param_groups]

    @param_groups.setter
    def param_groups(self, value: list) -> None:
        """The base class sets an empty list at birth; the parts keep theirs."""

    @property
    def state(self) -> dict[nn.Parameter, Any]:
        return {p: s for part in self.parts for p, s in part.state.items()}

    @state.setter
    def state(self, value: dict) -> None:
        """As for param_groups."""

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> None:
        for part in self.parts:
            part.step()


def muon_adamw(model: nn.Module, lr: float, muon_lr: float, weight_decay: float = 0.01) -> MuonAdamW:
    """The optimiser of all trainable parameters: weights of linear layers go to Muon, but for heads and vocabulary."""
    inner = {
        id(m.weight)
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear) and m.weight.requires_grad and not name.endswith(("lm_head", "head"))
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    return MuonAdamW(
        [p for p in trainable if id(p) in inner], [p for p in trainable if id(p) not in inner], lr, muon_lr, weight_decay
    )


def warmup_stable_decay(steps: int, warmup: int, decay: float) -> Callable[[int], float]:
    """Factor on the learning rate at a step: linear warm-up, constant, linear to zero over the last ``decay`` of the steps."""
    start = steps * (1 - decay)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / max(warmup, 1), max(0.0, (steps - step) / max(steps - start, 1)))

    return factor


class ResumingTrainer(Trainer):
    """Trainer that reads a checkpoint by ``from_pretrained``.

    Trainer itself loads the file's names as they are, not strictly, while ``save_pretrained`` writes many models (LLaVA among
    them) under other names than their modules have: a resumed training would silently begin with untrained weights.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.model if model is None else model
        if not isinstance(target, PreTrainedModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(stored.state_dict())


class EachSteps(TrainerCallback):
    """Calls ``act(step, model)`` before the first step, then after every ``every`` steps and after the last."""

    def __init__(self, every: int, act: Callable[[int, nn.Module], None]):
        self.every, self.act = every, act

    def on_train_begin(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step == 0:
            self.act(0, model)

    def on_step_end(self, args, state, control, model=None, **kwargs) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.act(state.global_step, model)


def fit(
    model: nn.Module,
    data: Dataset,
    collate: Callable[[list], dict[str, torch.Tensor]],
    out: Path,
    *,
    batch_size: int,
    lr: float,
    muon_lr: float,
    warmup: int = 100,
    decay: float = 0.3,
    seed: int = 0,
    save_steps: int = 500,
    callbacks: Sequence[TrainerCallback] = (),
) -> nn.Module:
    """Train the model's trainable parameters on the items of ``data`` in their order, once, and return it.

    out: folder for the checkpoints; if it holds one, training goes on from there with the same data in the same order.
    lr: for embeddings, heads, gains and biases (AdamW); muon_lr: for inner matrices (Muon).
    Gradients are clipped at norm 1. Uses a GPU when there is one.
    """
    steps = len(data) // batch_size
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=batch_size,
        max_steps=steps,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        dataloader_num_workers=4 if torch.cuda.is_available() else 0,
        remove_unused_columns=False,
        save_steps=save_steps,
        save_total_limit=1,
        logging_steps=100,
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    optimiser = muon_adamw(model, lr, muon_lr)
    trainer = ResumingTrainer(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=collate,
        optimizers=(optimiser, LambdaLR(optimiser, warmup_stable_decay(steps, warmup, decay))),
        callbacks=list(callbacks),
    )
    checkpoint = get_last_checkpoint(str(out)) if out.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    return model
