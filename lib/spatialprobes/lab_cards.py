"""How a lab model came out: accuracy on fresh scenes, norms, the curve over training, and the card that states them.

Knows the lab's data sets and models; knows nothing of recipes or of how training is run.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, PreTrainedModel

from spatialprobes import lab_models
from spatialprobes.lab_batches import EOS, IGNORED, IMAGE, TextData, TowerData, TurnData
from spatialprobes.worlds.lab import Scene, scene
from spatialprobes.worlds.lab_language import VOCABULARY, parse_caption, true_of

EVALUATION_SEED = 1_000_003  # a stream of scenes that no training ever draws from
Z = 1.959963984540054  # the normal quantile of a 95% interval


def similarity(clip: CLIPModel, vision: Tensor, text: Tensor) -> Tensor:
    """Scaled cosine [image, text] of pooled outputs."""
    image = F.normalize(clip.visual_projection(vision), dim=-1)
    words = F.normalize(clip.text_projection(text), dim=-1)
    return clip.logit_scale.exp() * image @ words.T


def wilson(right: int, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion, exact at its ends."""
    p, z2 = right / n, Z * Z
    middle, half = p + z2 / (2 * n), Z * ((p * (1 - p) + z2 / (4 * n)) / n) ** 0.5
    low, high = (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)
    return (low if right else 0.0), (high if right < n else 1.0)


@torch.no_grad()
def turn_accuracy(model: PreTrainedModel, data: TurnData | TextData, batch_size: int = 64) -> dict[str, tuple[int, int]]:
    """{group: (right, asked)} on single-turn prompts; right = every token of the answer is the likeliest one."""
    was_training, device = model.training, model.device
    model.eval()
    counts: dict[str, list[int]] = {}
    for start in range(0, len(data), batch_size):
        items = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        batch = {k: v.to(device) for k, v in data.collate(items).items()}
        labels = batch.pop("labels")[:, 1:]
        hit = (model(**batch).logits[:, :-1].argmax(-1) == labels).cpu()
        asked = (labels != IGNORED).cpu()
        for (_, turns), row, known in zip(items, hit, asked, strict=True):
            answered = row[known].split([len(turn.answer) for turn in turns])
            for turn, tokens in zip(turns, answered, strict=True):
                count = counts.setdefault(turn.group, [0, 0])
                count[0] += bool(tokens.all())
                count[1] += 1
    model.train(was_training)
    return {group: (right, n) for group, (right, n) in sorted(counts.items())}


@torch.no_grad()
def caption_accuracy(model: PreTrainedModel, data: TurnData, batch_size: int = 100) -> dict[str, tuple[int, int]]:
    """{what: (right, asked)} of captions written greedily: objects named, of those there; clauses true, of those written.

    data: scenes of which a caption is asked, one turn each.
    """
    was_training, device = model.training, model.device
    model.eval()
    named = there = true = clauses = 0
    for start in range(0, len(data), batch_size):
        which = range(start, min(start + batch_size, len(data)))
        asked = [(image, [replace(turn, answer=[]) for turn in turns]) for image, turns in (data[i] for i in which)]
        batch = {k: v.to(device) for k, v in data.collate(asked).items() if k not in ("labels", "position_ids", "attention_mask")}
        if "image_grid_thw" in batch:  # the model makes positions of it, if told which tokens are the picture's
            batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).long()
        written = model.generate(**batch, max_new_tokens=60)[:, batch["input_ids"].shape[1] :]
        for i, row in zip(which, written.tolist(), strict=True):
            words = [VOCABULARY[token] for token in row[: row.index(EOS) if EOS in row else None]]
            shown = scene(data.seed, i, data.perspective)
            pairs = {" ".join(two) for two in pairwise(words)}
            named += sum(thing.name in pairs for thing in shown.things)
            there += len(shown.things)
            said = [clause.split() for clause in " ".join(words).split(".") if clause.split()]
            true += sum(_true(clause, shown) for clause in said)
            clauses += len(said)
    model.train(was_training)
    return {"caption.clauses": (true, clauses), "caption.objects": (named, there)}


def _true(words: list[str], shown: Scene) -> bool:
    try:
        return all(true_of(clause, shown) for clause in parse_caption(" ".join([*words, "."])))
    except ValueError:  # no sentence of the grammar, so not true
        return False


@torch.no_grad()
def retrieval(clip: CLIPModel, data: TowerData, among: int = 100) -> dict[str, tuple[int, int]]:
    """{what: (right, asked)}: is the nearest of ``among`` captions a picture's own; does it at least name its objects."""
    own = objects = 0
    asked = len(data) // among * among
    for start in range(0, asked, among):
        batch = {k: v.to(clip.device) for k, v in data.collate([data[i] for i in range(start, start + among)]).items()}
        text = clip.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        scores = similarity(clip, clip.vision_model(pixel_values=batch["pixel_values"]).pooler_output, text)
        named = [{thing.name for thing in scene(data.seed, start + i, data.perspective).things} for i in range(among)]
        nearest = scores.argmax(1).tolist()
        own += sum(i == j for i, j in enumerate(nearest))
        objects += sum(named[i] == named[j] for i, j in enumerate(nearest))
    return {f"retrieval among {among}": (own, asked), f"retrieval among {among}, objects alone": (objects, asked)}


@torch.no_grad()
def input_norms(model: PreTrainedModel, data: TurnData) -> dict[str, float]:
    """Mean L2 norm of what enters the language model: vision tokens, the words of the questions, and their ratio."""
    batch = data.collate([data[i] for i in range(64)])
    pictures = {k: batch[k].to(model.device) for k in ("pixel_values", "image_grid_thw") if k in batch}
    features = model.model.get_image_features(**pictures).pooler_output
    vision = torch.cat([f.flatten(0, -2) for f in features]).norm(dim=-1).mean().item()
    words = batch["input_ids"][batch["input_ids"] > 4].to(model.device)
    text = model.get_input_embeddings()(words).norm(dim=-1).mean().item()
    return {"vision": round(vision, 4), "text": round(text, 4), "ratio": round(vision / text, 3)}


class Curve:
    """Accuracy by group over training, kept in a file so that a resumed run goes on with it."""

    def __init__(self, path: Path, batch_size: int, data: TurnData):
        self.path, self.batch_size, self.data = path, batch_size, data

    def __call__(self, step: int, model: nn.Module) -> None:
        points = [p for p in self.read() if p["step"] < step]
        accuracy = {group: list(count) for group, count in turn_accuracy(model, self.data).items()}
        points.append({"step": step, "samples": step * self.batch_size, "accuracy": accuracy})
        write_json(self.path, points)
        print(
            f"step {step}",
            " ".join(f"{g.replace('relation', 'rel').replace('semantic', 'sem')} {r / n:.2f}" for g, (r, n) in accuracy.items()),
            flush=True,
        )

    def read(self) -> list[dict]:
        return json.loads(self.path.read_text()) if self.path.is_file() else []


def read_card(folder: Path) -> dict:
    """A lab model's card. Raises FileNotFoundError for a model without one."""
    return json.loads((folder / "card.json").read_text())


def read_curve(folder: Path) -> pd.DataFrame:
    """A model's curve as tidy table: [step, samples, group, accuracy, low, high, n], intervals by Wilson's score.

    Raises FileNotFoundError for a model without a curve.
    """
    rows = []
    for point in json.loads((folder / "curve.json").read_text()):
        for group, (right, n) in point["accuracy"].items():
            low, high = wilson(right, n)
            seen = {"step": point["step"], "samples": point["samples"]}
            rows.append({**seen, "group": group, "accuracy": right / n, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows)


class Stopwatch:
    """Minutes of training over all the runs that it took, kept in a file by ``keep``: a kill loses only the last of them."""

    def __init__(self, path: Path):
        self.path, self.begun = path, time.monotonic()
        self.before = json.loads(path.read_text()) if path.is_file() else 0.0

    @property
    def minutes(self) -> float:
        return self.before + (time.monotonic() - self.begun) / 60

    def keep(self) -> None:
        write_json(self.path, self.minutes)


def machine() -> dict[str, str | int]:
    """Where a model was trained: processor, threads, accelerator."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"processor": cpu, "cores": os.cpu_count() or 0, "threads": torch.get_num_threads(), "gpu": gpu}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if os.path.exists(path) else []


def write_json(path: Path, content: object) -> None:
    """Sorted, readable JSON, put in place at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


def proportion(right: int, n: int) -> dict[str, float | int]:
    low, high = wilson(right, n)
    return {"accuracy": round(right / n, 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def recipe_hash(recipe: dict) -> str:
    """First 12 hex digits of the SHA-256 of the recipe as sorted JSON."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def card(
    name: str, model: PreTrainedModel, recipe: dict, ancestors: list[str], seed: int, samples: int, minutes: float, **measured
) -> dict:
    """What stands beside every model's weights. Accuracies are on scenes of a stream that no training draws from."""
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "accelerate", "numpy")}
    return {
        "name": name, "recipe": recipe, "recipe_hash": recipe_hash(recipe), "ancestors": ancestors, "seed": seed,
        "samples": samples, "minutes": round(minutes, 1), "parameters": lab_models.parameters(model), "machine": machine(),
        "versions": versions, "evaluation_seed": EVALUATION_SEED, **measured,
    }  # fmt: skip
