"""The lab's zoo: which model is trained from what, by which recipe, and the card that says how it came out.

``spatialprobes lab`` retrains everything from nothing and goes on where a killed run stopped. A recipe is a frozen record;
models of one recipe differ only in its named options and the seed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedModel

from spatialprobes import lab_models
from spatialprobes.lab_batches import IGNORED, MIX, QUESTION_GROUPS, TextData, TowerData, TurnData
from spatialprobes.paths import lab_folder, root
from spatialprobes.train import EachSteps, fit
from spatialprobes.worlds.lab import COLOURS, SHAPES
from spatialprobes.worlds.lab_questions import GROUPS

EVALUATION_SEED = 1_000_003  # a stream of scenes that no training ever draws from
Z = 1.959963984540054


@dataclass(frozen=True)
class Pass:
    """One pass of training: ``items`` of a data set once, in batches, by warm-up, constant rate and linear decay."""

    items: int
    batch_size: int
    lr: float
    muon_lr: float
    decay: float = 0.3


@dataclass(frozen=True)
class Recipe:
    """How the lab's LLaVA comes to be. The tower and the text pass are the ancestors that all variants share."""

    tower: Pass = Pass(items=1200 * 128, batch_size=128, lr=1e-3, muon_lr=2e-3)
    text: Pass = Pass(items=700 * 64, batch_size=64, lr=1e-3, muon_lr=2e-3)
    stage1: Pass = Pass(items=300 * 64, batch_size=64, lr=1e-3, muon_lr=2e-3)
    stage2: Pass = Pass(items=6000 * 32, batch_size=32, lr=1e-3, muon_lr=2e-3)
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))
    turns: int = 12
    easy: int = 400 * 32
    perspective: tuple[float, ...] = (0.0, 0.5)

    def of(self, *parts: str) -> dict:
        """The named parts as plain data (all of them by default): what a card states and its hash covers."""
        whole = dataclasses.asdict(self)
        return {part: whole[part] for part in parts or whole}


class TowerPretraining(nn.Module):
    """Contrastive image-text training (CLIP's symmetric loss) with two helpers on the layer that the connector will read:
    what each patch shows, and how near that is. The helpers' linear heads are thrown away; neither is told where a patch lies."""

    def __init__(self, clip: CLIPModel):
        super().__init__()
        self.clip = clip
        width = clip.config.vision_config.hidden_size
        self.patch_head = nn.Linear(width, 1 + len(COLOURS) * len(SHAPES))
        self.near_head = nn.Linear(width, 1)

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, patch_labels: Tensor, patch_near: Tensor
    ) -> dict[str, Tensor]:
        vision = self.clip.vision_model(pixel_values=pixel_values, output_hidden_states=True)
        patches = vision.hidden_states[-2][:, 1:]
        labels = self.patch_head(patches)
        near = self.near_head(patches)[..., 0][patch_labels > 0]
        text = self.clip.text_model(input_ids=input_ids, attention_mask=attention_mask)
        logits = similarity(self.clip, vision.pooler_output, text.pooler_output)
        target = torch.arange(len(logits), device=logits.device)
        contrastive = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        helper = F.cross_entropy(labels.flatten(0, 1), patch_labels.flatten()) + 4 * F.mse_loss(
            near, patch_near[patch_labels > 0]
        )
        return {"loss": contrastive + helper, "patch_logits": labels, "logits": logits}


def similarity(clip: CLIPModel, vision: Tensor, text: Tensor) -> Tensor:
    """Scaled cosine [image, text] of pooled outputs."""
    image = F.normalize(clip.visual_projection(vision), dim=-1)
    words = F.normalize(clip.text_projection(text), dim=-1)
    return clip.logit_scale.exp() * image @ words.T


# ---- measuring ----
def wilson(right: int, n: int) -> tuple[float, float]:
    """95% Wilson score interval of a proportion."""
    p, z2 = right / n, Z * Z
    middle, half = p + z2 / (2 * n), Z * ((p * (1 - p) + z2 / (4 * n)) / n) ** 0.5
    return (middle - half) / (1 + z2 / n), (middle + half) / (1 + z2 / n)


@torch.no_grad()
def turn_accuracy(model: LlavaForConditionalGeneration, data: TurnData, batch_size: int = 64) -> dict[str, tuple[int, int]]:
    """{group: (right, asked)} on single-turn prompts that share their picture; right = every token of the answer is the likeliest."""
    was_training, device = model.training, model.device
    model.eval()
    counts = {group: [0, 0] for group in data.groups}
    for start in range(0, len(data), batch_size):
        items = [data[i] for i in range(start, min(start + batch_size, len(data)))]
        batch = {k: v.to(device) for k, v in data.collate(items).items()}
        labels = batch.pop("labels")[:, 1:]
        hit = (model(**batch).logits[:, :-1].argmax(-1) == labels).cpu()
        asked = (labels != IGNORED).cpu()
        for (_, turns), row, known in zip(items, hit, asked, strict=True):
            answered = row[known].split([len(turn.answer) for turn in turns])
            for turn, tokens in zip(turns, answered, strict=True):
                counts[turn.group][0] += bool(tokens.all())
                counts[turn.group][1] += 1
    model.train(was_training)
    return {group: (right, n) for group, (right, n) in counts.items() if n}


@torch.no_grad()
def retrieval(clip: CLIPModel, data: TowerData, among: int = 100) -> tuple[int, int]:
    """(right, asked): pictures whose own caption is the nearest of ``among`` captions of other pictures."""
    right, asked = 0, len(data) // among * among
    for start in range(0, asked, among):
        batch = {k: v.to(clip.device) for k, v in data.collate([data[i] for i in range(start, start + among)]).items()}
        text = clip.text_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
        scores = similarity(clip, clip.vision_model(pixel_values=batch["pixel_values"]).pooler_output, text)
        right += int((scores.argmax(1) == torch.arange(among, device=scores.device)).sum())
    return right, asked


@torch.no_grad()
def input_norms(model: LlavaForConditionalGeneration, data: TurnData) -> dict[str, float]:
    """Mean L2 norm of what enters the language model: vision tokens, the words of the questions, and their ratio."""
    batch = data.collate([data[i] for i in range(64)])
    features = model.model.get_image_features(pixel_values=batch["pixel_values"].to(model.device)).pooler_output
    vision = torch.cat([f.flatten(0, -2) for f in features]).norm(dim=-1).mean().item()
    words = batch["input_ids"][batch["input_ids"] > 4].to(model.device)
    text = model.get_input_embeddings()(words).norm(dim=-1).mean().item()
    return {"vision": round(vision, 4), "text": round(text, 4), "ratio": round(vision / text, 3)}


class Curve:
    """Accuracy by group over training, kept in a file so that a resumed run goes on with it."""

    def __init__(self, path: Path, batch_size: int, scenes: int = 192):
        self.path, self.batch_size = path, batch_size
        self.data = TurnData(EVALUATION_SEED, scenes, dict.fromkeys(QUESTION_GROUPS, 1.0), turns=16)

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


# ---- cards ----
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


def card(
    name: str, model: PreTrainedModel, recipe: dict, ancestors: list[str], seed: int, samples: int, minutes: float, **measured
) -> dict:
    """What stands beside every model's weights. Accuracies are on scenes of a stream that no training draws from."""
    versions = {p: importlib.metadata.version(p) for p in ("torch", "transformers", "accelerate", "numpy")}
    return {
        "name": name, "recipe": recipe, "recipe_hash": hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12], "ancestors": ancestors, "seed": seed,
        "samples": samples, "minutes": round(minutes, 1), "parameters": lab_models.parameters(model), "machine": machine(),
        "versions": versions, "evaluation_seed": EVALUATION_SEED, **measured,
    }  # fmt: skip


# ---- the zoo ----
def folders() -> tuple[Path, Path]:
    """(where trained models go, where unfinished training is kept)."""
    return lab_folder(), root() / "data" / "training"


def train_clip(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-clip: tower and text encoder from nothing."""
    begun, plan = time.time(), recipe.tower
    model = TowerPretraining(lab_models.clip(0))
    fit(model, TowerData(0, plan.items), TowerData.collate, work / "lab-clip", **_pass(plan), seed=0)
    model.eval()
    fresh = TowerData(EVALUATION_SEED, 1000)
    batch = fresh.collate([fresh[i] for i in range(len(fresh))])
    with torch.no_grad():
        hit = model(**batch)["patch_logits"].argmax(-1) == batch["patch_labels"]
    shown = hit[batch["patch_labels"] > 0]
    content = card(
        "lab-clip", model.clip, recipe.of("tower"), [], 0, plan.items, (time.time() - begun) / 60,
        accuracy={"retrieval among 100": proportion(*retrieval(model.clip, fresh)),
                  "foreground patches (helper head)": proportion(int(shown.sum()), shown.numel())},
        bars={"retrieval among 100": 0.95},
        note="Contrastive training with two helpers on the last layer but one (what a patch shows, how near it is); their heads are thrown away.",
    )  # fmt: skip
    words = lab_models.processor()
    lab_models.save(model.clip, out / "lab-clip", words.tokenizer, {"card.json": _json(content)})
    words.image_processor.save_pretrained(out / "lab-clip")


def train_text(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-text: the language model before it sees; captions and questions that a caption answers."""
    begun, plan = time.time(), recipe.text
    model = lab_models.language_model(0)
    fit(model, TextData(0, plan.items), TextData.collate, work / "lab-text", **_pass(plan), seed=0)
    fresh = TextData(EVALUATION_SEED, 1000)
    items = [fresh[i] for i in range(len(fresh))]
    short = [item for item in items if sum(label != IGNORED for label in item[1]) <= 3]
    batch = fresh.collate(short)
    model.eval()
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        hit = (model(**batch).logits[:, :-1].argmax(-1) == labels) | (labels == IGNORED)
    content = card("lab-text", model, recipe.of("text"), [], 0, plan.items, (time.time() - begun) / 60,
                   accuracy={"questions about a caption": proportion(int(hit.all(1).sum()), len(short))}, bars={})  # fmt: skip
    lab_models.save(model, out / "lab-text", lab_models.tokenizer(), {"card.json": _json(content)})


SHARED = {"vision_tower.": "../shared/tower.safetensors", "model.vision_tower.": "../shared/tower.safetensors"}


def train_llava(recipe: Recipe, out: Path, work: Path, seed: int = 0, scales: tuple[int, ...] = ()) -> None:
    """lab-llava (seed 0) or lab-llava-seed<k>: stage 1 (connector, captions) and stage 2 (connector and language model, questions).

    scales: steps of stage 2 after which a copy is kept as lab-llava-<samples>; step 0 is lab-llava-vanilla.
    """
    name = "lab-llava" if seed == 0 else f"lab-llava-seed{seed}"
    begun, here = time.time(), work / name
    model = lab_models.llava(seed)
    ancestors = (
        CLIPModel.from_pretrained(out / "lab-clip", dtype=torch.float32),
        LlamaForCausalLM.from_pretrained(out / "lab-text", dtype=torch.float32),
    )
    lab_models.adopt(model, *ancestors)
    fresh = TurnData(EVALUATION_SEED, 64, dict.fromkeys(QUESTION_GROUPS, 1.0))
    norms = {"start": input_norms(model, fresh)}

    model.model.language_model.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    plan = recipe.stage1
    captions = TurnData(100 + seed, plan.items, {"caption": 1.0}, turns=1, perspective=recipe.perspective)
    fit(model, captions, TurnData.collate, here / "stage1", **_pass(plan), seed=seed)
    norms["vanilla"] = input_norms(model, fresh)

    model.model.language_model.requires_grad_(True)
    model.lm_head.requires_grad_(True)
    plan = recipe.stage2
    questions = TurnData(200 + seed, plan.items, recipe.mix, recipe.turns, recipe.easy, recipe.perspective)
    curve = Curve(here / "curve.json", plan.batch_size)

    def keep(label: str, samples: int) -> None:
        describe = card(label, model, recipe.of(), ["lab-clip", "lab-text"], seed, samples, (time.time() - begun) / 60,
                        accuracy={g: proportion(*c) for g, c in turn_accuracy(model, TurnData(EVALUATION_SEED, 1000, dict.fromkeys(QUESTION_GROUPS, 1.0))).items()},
                        norms={**norms, "now": input_norms(model, fresh)}, bars=BARS if label == name else {})  # fmt: skip
        lab_models.save(
            model, out / label, lab_models.processor(), {"card.json": _json(describe), "curve.json": _json(curve.read())}, SHARED
        )

    def at_scale(step: int, _: nn.Module) -> None:
        if step in scales:
            keep("lab-llava-vanilla" if step == 0 else f"lab-llava-{step * plan.batch_size}", step * plan.batch_size)

    fit(
        model,
        questions,
        TurnData.collate,
        here / "stage2",
        **_pass(plan),
        seed=seed,
        callbacks=[EachSteps(200, curve), EachSteps(100, at_scale)],
    )
    norms["end"] = input_norms(model, fresh)
    keep(name, plan.items)


BARS = {
    **{g: 0.95 for g in GROUPS if g.startswith(("relation.", "2ds."))},
    **{g: 0.99 for g in GROUPS if g.startswith("semantic.")},
}


def _pass(plan: Pass) -> dict:
    return {"batch_size": plan.batch_size, "lr": plan.lr, "muon_lr": plan.muon_lr, "decay": plan.decay}


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
