"""How fast the lab is, and how near to what this machine could do: drawing, one step of each training, evaluation.

`python benchmarks/lab.py` writes benchmarks/results/lab.json (lab-cuda.json on a GPU). Untrained models at the recipe's shapes:
the values of the weights change no time. Every round of a path takes the same items, drawn anew. Knows nothing of accuracy.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from common import NOT_COUNTED, RESULTS, Result, TimedPath, alternate, arguments, count, matmul, now, report, result, table, write
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import Dataset
from transformers.utils.logging import disable_progress_bar

from spatialprobes import lab_models
from spatialprobes.lab import Recipe, TowerPretraining
from spatialprobes.lab_batches import PAD, QUESTION_GROUPS, TextData, TowerData, TurnData
from spatialprobes.lab_cards import EVALUATION_SEED, turn_accuracy
from spatialprobes.train import EachSteps, fit, muon_adamw
from spatialprobes.worlds.lab import draw_with_patches, render, scene

SEED = 900_001  # a stream of scenes that neither training nor evaluation draws from
LR, MUON_LR = 1e-3, 2e-3
LOOP_STEPS = 3  # of the Trainer in each round; the first, which pays for its start, is not counted


@dataclass(frozen=True)
class Sizes:
    """Items per step of the three trainings, scenes drawn and evaluated per call, side of the square product."""

    turns: int = 12
    stage2: int = Recipe().stage2.batch_size
    tower: int = Recipe().tower.batch_size
    text: int = Recipe().text.batch_size
    scenes: int = 64
    evaluated: int = 64
    square: int = 2048


QUICK = Sizes(turns=2, stage2=3, tower=4, text=3, scenes=4, evaluated=3, square=128)


# ---- paths ----
@dataclass(frozen=True)
class Training:
    """One optimiser step of a training: its model, and its batch as the loop gets it, drawn from scratch by ``batch()``."""

    model: nn.Module
    data: Dataset
    per_step: int

    def batch(self, device: torch.device) -> dict[str, torch.Tensor]:
        items = [self.data[i] for i in range(self.per_step)]
        return {k: v.to(device) for k, v in self.data.collate(items).items()}


def trainings(sizes: Sizes, device: torch.device) -> dict[str, Training]:
    """Stage 2 (tower frozen), the tower's pass and the text pass, at the recipe's shapes."""
    llava = lab_models.llava(0)
    llava.model.vision_tower.requires_grad_(False)
    tower, text = TowerPretraining(lab_models.clip(0)), lab_models.language_model(0)
    questions = TurnData(SEED, sizes.stage2, Recipe().mix, sizes.turns, perspective=Recipe().perspective)
    return {
        "stage 2 step": Training(llava.to(device).train(), questions, sizes.stage2),
        "tower step": Training(tower.to(device).train(), TowerData(SEED, sizes.tower), sizes.tower),
        "text step": Training(text.to(device).train(), TextData(SEED, sizes.text), sizes.text),
    }


def step(training: Training, device: torch.device) -> TimedPath:
    """Seconds of data, forward, backward and update (clipping, MuonAdamW, gradients cleared), as ``train.fit`` does them."""
    model, optimiser = training.model, muon_adamw(training.model, LR, MUON_LR)

    def path() -> dict[str, float]:
        begun = now(device)
        batch = training.batch(device)
        data = now(device)
        loss = model(**batch)["loss"]
        forward = now(device)
        loss.backward()
        backward = now(device)
        clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        done = now(device)
        return {
            "data": data - begun,
            "forward": forward - data,
            "backward": backward - forward,
            "update": done - backward,
            "step": done - data,
        }

    return path


class Repeated(Dataset):
    """The items of one batch again and again, drawn each time."""

    def __init__(self, data: Dataset, per_step: int, steps: int):
        self.data, self.per_step, self.steps = data, per_step, steps

    def __len__(self) -> int:
        return self.per_step * self.steps

    def __getitem__(self, index: int) -> tuple:
        return self.data[index % self.per_step]


def loop(training: Training, model: nn.Module, device: torch.device) -> TimedPath:
    """Seconds per step inside ``train.fit``: Hugging Face's Trainer with its loader, hooks and logs around the same step."""

    def path() -> dict[str, float]:
        ticks: list[float] = []
        items = Repeated(training.data, training.per_step, LOOP_STEPS)
        ticking = EachSteps(1, lambda *_: ticks.append(now(device)))
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            collate = training.data.collate
            fit(model, items, collate, Path(folder), batch_size=training.per_step, lr=LR, muon_lr=MUON_LR, callbacks=[ticking])
        return {"step": (ticks[-1] - ticks[1]) / (len(ticks) - 2)}

    return path


def drawing(sizes: Sizes) -> dict[str, TimedPath]:
    """Scenes from nothing to what a training takes; floor: the generator, as an item is drawn from its number alone."""
    n = range(sizes.scenes)
    turns = TurnData(SEED, sizes.scenes, Recipe().mix, sizes.turns)

    def each(act: Callable[[int], object]) -> TimedPath:
        def path() -> None:
            for i in n:
                act(i)

        return path

    return {
        "generator": each(lambda i: np.random.default_rng([SEED, i])),
        "draw": each(lambda i: scene(SEED, i)),
        "draw, render": each(lambda i: render(scene(SEED, i))),
        "draw, render, patch labels": each(lambda i: draw_with_patches(scene(SEED, i))),
        f"draw, render, {sizes.turns} turns": each(lambda i: turns[i]),
    }


# ---- what is made of the seconds ----
def counted(training: Training, device: torch.device) -> dict[str, int]:
    """Floating-point operations of one step by part; forward and backward are fp32, the update's are Muon's, in bf16."""
    model, batch = training.model, training.batch(device)
    optimiser, kept = muon_adamw(model, LR, MUON_LR), []
    forward = count(lambda: kept.append(model(**batch)["loss"]))
    backward = count(kept[0].backward)
    update = count(optimiser.step)
    optimiser.zero_grad()
    parts = {"forward": forward, "backward": backward}
    out = {f"{part}, {kind}": flops for part, kinds in parts.items() for kind, flops in kinds.items()}
    return {**out, "fp32": sum(out.values()), "update, linear, bf16": update["linear"]}


def amounts(training: Training, name: str) -> dict[str, int]:
    """What one step takes in: pictures, questions (turns), tokens without padding."""
    items = [training.data[i] for i in range(training.per_step)]
    batch = training.data.collate(items)
    words = int((batch["input_ids"] != PAD).sum())
    if name == "tower step":
        return {"pictures": len(items), "tokens": words + len(items) * (1 + batch["patch_labels"].shape[1])}
    questions = {"questions": sum(len(turns) for _, turns in items), "tokens": words}
    return {"pictures": len(items), **questions} if "pixel_values" in batch else questions


def summarise(
    seconds: dict[str, list[float]], sizes: Sizes, every: dict[str, Training], flops: dict[str, int]
) -> tuple[list[Result], list[Result]]:
    """(results, floors): rates and costs; and the share of each path's time that its floor would take, round by round."""
    results, floors = [], []
    square = [flops["square"] / s for s in seconds["square matmul"]]
    narrow = [flops["narrow"] / s for s in seconds["narrow matmul"]]
    results.append(result("matmul, square", "GFLOP/s", [r / 1e9 for r in square]))
    results.append(result("matmul, narrow (stage 2's own)", "GFLOP/s", [r / 1e9 for r in narrow]))

    def per_second(name: str, unit: str, many: float, spent: Sequence[float]) -> None:
        results.append(result(name, f"{unit}/s", [many / s for s in spent]))

    def share(name: str, floor: Sequence[float], spent: Sequence[float]) -> Result:
        return result(name, "share", [f / s for f, s in zip(floor, spent, strict=True)])

    def against_matmul(name: str, operations: int, spent: Sequence[float]) -> None:
        for what, rates in (("square matmul", square), ("narrow matmul", narrow)):
            floors.append(share(f"{name}, of {what}", [operations / r for r in rates], spent))

    for name in drawing(sizes):
        per_second(name, "scenes", sizes.scenes, seconds[name])
        if name != "generator":
            generators = 2 if "turns" in name else 1
            floors.append(share(f"{name}, of its generator", [generators * s for s in seconds["generator"]], seconds[name]))
    for name, training in every.items():
        for unit, many in amounts(training, name).items():
            per_second(f"{name}, {unit}", unit, many, seconds[f"{name}.step"])
        for part in ("data", "forward", "backward", "update", "step"):
            results.append(result(f"{name}, {part}", "ms", [1e3 * s for s in seconds[f"{name}.{part}"]]))
        data, per_step = seconds[f"{name}.data"], training.per_step
        results.append(result(f"{name}, one item's data", "ms", [1e3 * s / per_step for s in data]))
        results.append(share(f"{name}, data's share of data and step", data, seconds[name]))
        both = [a + b for a, b in zip(seconds[f"{name}.forward"], seconds[f"{name}.backward"], strict=True)]
        against_matmul(f"{name}, forward and backward", flops[name], both)
        against_matmul(name, flops[name], seconds[f"{name}.step"])
    if "trainer loop.step" in seconds:
        looped = seconds["trainer loop.step"]
        results.append(result("trainer loop (stage 2), step with data", "ms", [1e3 * s for s in looped]))
        per_second("trainer loop (stage 2), questions", "questions", sizes.stage2 * sizes.turns, looped)
        floors.append(share("trainer loop (stage 2), of data and bare step", seconds["stage 2 step"], looped))
    per_second("evaluation, turns answered", "turns", sizes.evaluated * sizes.turns, seconds["evaluation"])
    results.append(share("evaluation, data's share", seconds["evaluation data"], seconds["evaluation"]))
    against_matmul("evaluation", flops["evaluation"], seconds["evaluation"])
    return results, floors


def measure(sizes: Sizes, repetitions: int, device: torch.device, least: float) -> tuple[list[str], dict]:
    """All paths, alternating: (tables to print, content of the results file)."""
    load_before = os.getloadavg()
    every = trainings(sizes, device)
    operations = {name: counted(training, device) for name, training in every.items()}
    flops = {name: parts["fp32"] for name, parts in operations.items()}
    tokens = every["stage 2 step"].batch(device)["input_ids"].numel()
    square, flops["square"] = matmul(sizes.square, sizes.square, sizes.square, device)
    narrow, flops["narrow"] = matmul(tokens, lab_models.WIDTH, 2 * lab_models.WIDTH, device)

    test = TurnData(EVALUATION_SEED, sizes.evaluated, dict.fromkeys(QUESTION_GROUPS, 1.0), sizes.turns)
    asked = every["stage 2 step"].model
    operations["evaluation"] = count(lambda: turn_accuracy(asked, test))
    flops["evaluation"] = sum(operations["evaluation"].values())

    def evaluate() -> None:
        turn_accuracy(asked, test)

    def evaluation_data() -> None:
        test.collate([test[i] for i in range(len(test))])

    paths: dict[str, TimedPath] = {"square matmul": square, "narrow matmul": narrow, **drawing(sizes)}
    paths |= {name: step(training, device) for name, training in every.items()}
    if (device.type == "cuda") == torch.cuda.is_available():  # fit takes a GPU wherever there is one
        looped = trainings(sizes, device)["stage 2 step"]
        paths["trainer loop"] = loop(looped, looped.model, device)
    paths |= {"evaluation": evaluate, "evaluation data": evaluation_data}

    begun = time.perf_counter()
    timings = alternate(paths, repetitions, device, least)
    results, floors = summarise(timings.seconds, sizes, every, flops)
    settings = {"narrow": [tokens, lab_models.WIDTH, 2 * lab_models.WIDTH], "precision": torch.get_float32_matmul_precision()}
    content = report(
        timings, load_before, device, benchmark="lab", settings={**asdict(sizes), **settings}, repetitions=repetitions,
        minutes=round((time.perf_counter() - begun) / 60, 2), results=results, floors=floors, operations=operations,
        not_counted=NOT_COUNTED, taken_per_step={name: amounts(training, name) for name, training in every.items()},
    )  # fmt: skip
    return [table("measured: median, range", results), table("of its floor: share, range", floors)], content


def main(argv: Sequence[str] | None = None) -> dict:
    disable_progress_bar()  # of the Trainer's checkpoints
    options, device = arguments(__doc__.splitlines()[0], argv, repetitions=7)
    tables, content = measure(QUICK if options.quick else Sizes(), options.repetitions, device, 0 if options.quick else 0.05)
    content["quick"] = options.quick
    print(*tables, content["load"], sep="\n")
    standard = RESULTS / ("lab.json" if device.type == "cpu" else f"lab-{device.type}.json")
    out = options.out or (None if options.quick else standard)
    if out is not None:
        write(out, content)
        print(f"written: {out}")
    return content


if __name__ == "__main__":
    main()
