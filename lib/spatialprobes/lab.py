"""The lab's zoo: which model is trained from what, by which recipe, and the card that says how it came out.

``spatialprobes lab`` retrains everything from nothing and goes on where a killed run stopped. A recipe is a frozen record;
models of one recipe differ only in its named options and the seed.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, LlamaForCausalLM

from spatialprobes import lab_models
from spatialprobes.lab_batches import MIX, QUESTION_GROUPS, TextData, TowerData, TurnData
from spatialprobes.lab_cards import (
    EVALUATION_SEED,
    Curve,
    Stopwatch,
    card,
    input_norms,
    proportion,
    retrieval,
    similarity,
    turn_accuracy,
)
from spatialprobes.paths import lab_folder, root
from spatialprobes.train import EachSteps, fit
from spatialprobes.worlds.lab import COLOURS, SHAPES
from spatialprobes.worlds.lab_questions import GROUPS

# Fresh scenes on which the cards' accuracies are measured: pictures to be told from others, finished models, their scales.
SCENES = {"retrieval": 3000, "patches": 1000, "text": 1000, "model": 1500, "scale": 300, "curve": 192}


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

    tower: Pass = Pass(items=1300 * 128, batch_size=128, lr=1e-3, muon_lr=2e-3)
    text: Pass = Pass(items=700 * 48, batch_size=48, lr=1e-3, muon_lr=2e-3)
    stage1: Pass = Pass(items=200 * 64, batch_size=64, lr=1e-3, muon_lr=2e-3)
    stage2: Pass = Pass(items=2400 * 32, batch_size=32, lr=1e-3, muon_lr=2e-3)
    mix: dict[str, float] = field(default_factory=lambda: dict(MIX))
    turns: int = 12
    easy: int = 300 * 32
    perspective: tuple[float, ...] = (0.0, 0.5)
    scales: tuple[int, ...] = (0, 400, 800, 1200, 1600)  # steps of stage 2 at which a copy of seed 0 is kept

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


# ---- the zoo ----
def train_clip(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-clip: tower and text encoder from nothing."""
    watch, plan = Stopwatch(work / "lab-clip" / "minutes.json"), recipe.tower
    model = TowerPretraining(lab_models.clip(0))
    fit(model, TowerData(0, plan.items), TowerData.collate, work / "lab-clip", **_pass(plan), seed=0)
    model.eval()
    fresh = TowerData(EVALUATION_SEED, SCENES["retrieval"])
    batch = fresh.collate([fresh[i] for i in range(SCENES["patches"])])
    with torch.no_grad():
        hit = model(**batch)["patch_logits"].argmax(-1) == batch["patch_labels"]
    shown = hit[batch["patch_labels"] > 0]
    right = {**retrieval(model.clip, fresh), "foreground patches (helper head)": (int(shown.sum()), shown.numel())}
    content = card(
        "lab-clip", model.clip, recipe.of("tower"), [], 0, plan.items, watch.minutes,
        accuracy={what: proportion(*count) for what, count in right.items()}, bars={"retrieval among 100": 0.95},
        note="Contrastive, with two helpers on the last layer but one (what a patch shows, how near); their heads are dropped.",
    )  # fmt: skip
    words = lab_models.processor()
    lab_models.save(model.clip, out / "lab-clip", words.tokenizer, {"card.json": _json(content)})
    words.image_processor.save_pretrained(out / "lab-clip")


def train_text(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-text: the language model before it sees; captions and questions that a caption answers."""
    watch, plan = Stopwatch(work / "lab-text" / "minutes.json"), recipe.text
    model = lab_models.language_model(0)
    fit(model, TextData(0, plan.items), TextData.collate, work / "lab-text", **_pass(plan), seed=0)
    accuracy = turn_accuracy(model, TextData(EVALUATION_SEED, SCENES["text"]))
    content = card("lab-text", model, recipe.of("text"), [], 0, plan.items, watch.minutes,
                   accuracy={group: proportion(*count) for group, count in accuracy.items()}, bars={})  # fmt: skip
    lab_models.save(model, out / "lab-text", lab_models.tokenizer(), {"card.json": _json(content)})


SHARED = {"vision_tower.": "../shared/tower.safetensors", "model.vision_tower.": "../shared/tower.safetensors"}


def train_llava(recipe: Recipe, out: Path, work: Path, seed: int = 0, scales: tuple[int, ...] = ()) -> None:
    """lab-llava (seed 0) or lab-llava-seed<k>: stage 1 (connector; captions), stage 2 (connector and language model; questions).

    scales: steps of stage 2 after which a copy is kept as lab-llava-<samples>; step 0 is lab-llava-vanilla.
    """
    name = llava_name(seed)
    here = work / name
    watch = Stopwatch(here / "minutes.json")
    model = lab_models.llava(seed)
    tower = CLIPModel.from_pretrained(out / "lab-clip", dtype=torch.float32)
    text = LlamaForCausalLM.from_pretrained(out / "lab-text", dtype=torch.float32)
    lab_models.adopt(model, tower, text)
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
    curve = Curve(here / "curve.json", plan.batch_size, SCENES["curve"])

    def keep(label: str, samples: int, scenes: int) -> None:
        test = TurnData(EVALUATION_SEED, scenes, dict.fromkeys(QUESTION_GROUPS, 1.0))
        stated = card(
            label, model, recipe.of(), ["lab-clip", "lab-text"], seed, samples, watch.minutes,
            accuracy={group: proportion(*count) for group, count in turn_accuracy(model, test).items()},
            norms={**norms, "now": input_norms(model, fresh)}, bars=BARS if label == name else {},
        )  # fmt: skip
        files = {"card.json": _json(stated), "curve.json": _json(curve.read())}
        lab_models.save(model, out / label, lab_models.processor(), files, SHARED)

    def at_scale(step: int, _: nn.Module) -> None:
        if step in scales:
            label = "lab-llava-vanilla" if step == 0 else f"lab-llava-{step * plan.batch_size}"
            keep(label, step * plan.batch_size, SCENES["scale"])

    callbacks = [EachSteps(200, curve), EachSteps(100, at_scale), EachSteps(100, lambda *_: watch.keep())]
    fit(model, questions, TurnData.collate, here / "stage2", **_pass(plan), seed=seed, callbacks=callbacks)
    keep(name, plan.items, SCENES["model"])


BARS = {
    **{g: 0.95 for g in GROUPS if g.startswith(("relation.", "2ds."))},
    **{g: 0.99 for g in GROUPS if g.startswith("semantic.")},
}


def _pass(plan: Pass) -> dict:
    return {"batch_size": plan.batch_size, "lr": plan.lr, "muon_lr": plan.muon_lr, "decay": plan.decay}


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def llava_name(seed: int) -> str:
    return "lab-llava" if seed == 0 else f"lab-llava-seed{seed}"


def train_zoo(
    seeds: Sequence[int] = (0, 1, 2), out: Path | None = None, recipe: Recipe | None = None, again: bool = False
) -> list[Path]:
    """Train what is missing, ancestors first, and return the folders of the models.

    seeds: of lab-llava. out: where the models go (data/lab if None); unfinished training is kept in data/training and gone on
    with. again: also what is there already.
    """
    recipe, out = recipe or Recipe(), out or lab_folder()
    work = root() / "data" / "training"
    plan = {"lab-clip": partial(train_clip, recipe, out, work), "lab-text": partial(train_text, recipe, out, work)}
    for seed in seeds:
        scales = recipe.scales if seed == 0 else ()
        plan[llava_name(seed)] = partial(train_llava, recipe, out, work, seed, scales)
    for name, train in plan.items():
        if again or not (out / name / "card.json").is_file():
            print(f"training {name}", flush=True)
            train()
            shutil.rmtree(work / name, ignore_errors=True)
    return [out / name for name in plan]
