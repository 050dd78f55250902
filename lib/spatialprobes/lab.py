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
from transformers import CLIPModel, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedModel, ProcessorMixin

from spatialprobes import lab_models, lab_qwen
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
    watch = Stopwatch(work / name / "minutes.json")
    model = lab_models.llava(seed)
    tower = CLIPModel.from_pretrained(out / "lab-clip", dtype=torch.float32)
    text = LlamaForCausalLM.from_pretrained(out / "lab-text", dtype=torch.float32)
    lab_models.adopt(model, tower, text)
    norms = first_stage(model, recipe, work / name, seed)
    stage = SecondStage(name, recipe, ["lab-clip", "lab-text"], BARS, norms, out, work, SHARED, seed=seed)
    stage.run(model, lab_models.processor(), watch, scales)


def train_perspective(recipe: Recipe, out: Path, work: Path, perspective: float) -> None:
    """lab-llava-perspective-<p>: stage 2 from lab-llava-vanilla (seed 0), the same questions in a world of one perspective.

    Its bars and accuracies are those of its own world.
    """
    own = world_recipe(recipe, perspective)
    name = perspective_name(perspective)
    watch = Stopwatch(work / name / "minutes.json")
    model = LlavaForConditionalGeneration.from_pretrained(out / "lab-llava-vanilla", dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    norms = {"vanilla": input_norms(model, every_group(64, own.perspective))}
    stage = SecondStage(name, own, ["lab-llava-vanilla"], RELATION_BARS, norms, out, work, SHARED)
    stage.run(model, lab_models.processor(), watch)


def train_qwen(recipe: Recipe, out: Path, work: Path, scales: tuple[int, ...] = ()) -> None:
    """lab-qwen2.5-vl: its own tower first, then stages 1 and 2 as lab-llava's; copies on the way as train_llava keeps them."""
    name, own = "lab-qwen2.5-vl", qwen_recipe(recipe)
    watch = Stopwatch(work / name / "minutes.json")
    model = lab_qwen.model(0)
    lab_qwen.adopt(model, LlamaForCausalLM.from_pretrained(out / "lab-text", dtype=torch.float32))
    clip = CLIPModel.from_pretrained(out / "lab-clip", dtype=torch.float32)
    pretraining = lab_qwen.TowerPretraining(model.model.visual, clip)
    fit(pretraining, TowerData(0, own.tower.items), TowerData.collate, work / name / "tower", **_pass(own.tower), seed=0)
    lab_qwen.freeze_tower(model)
    seen = lab_qwen.seen(pretraining.eval(), TowerData(EVALUATION_SEED, SCENES["retrieval"]))
    norms = first_stage(model, own, work / name, data=lab_qwen.QwenTurns)
    stage = SecondStage(
        name, own, ["lab-clip", "lab-text"], QWEN_BARS, norms, out, work, QWEN_SHARED, lab_qwen.QwenTurns,
        tower={what: proportion(*count) for what, count in seen.items()},
    )  # fmt: skip
    stage.run(model.train(), lab_qwen.words(), watch, scales)


def first_stage(model: PreTrainedModel, recipe: Recipe, here: Path, seed: int = 0, data: type[TurnData] = TurnData) -> dict:
    """Train what of the model is not its language model, on captions; returns the norms of the model's input before and after."""
    fresh, plan = every_group(64, recipe.perspective, data), recipe.stage1
    norms = {"start": input_norms(model, fresh)}
    for part in (model.model.language_model, model.lm_head):
        part.requires_grad_(False)
    captions = data(100 + seed, plan.items, {"caption": 1.0}, turns=1, perspective=recipe.perspective)
    fit(model, captions, data.collate, here / "stage1", **_pass(plan), seed=seed)
    for part in (model.model.language_model, model.lm_head):
        part.requires_grad_(True)
    return {**norms, "vanilla": input_norms(model, fresh)}


def every_group(scenes: int, perspective: tuple[float, ...], data: type[TurnData] = TurnData) -> TurnData:
    """Fresh scenes with questions of all groups alike."""
    return data(EVALUATION_SEED, scenes, dict.fromkeys(QUESTION_GROUPS, 1.0), perspective=perspective)


@dataclass(frozen=True)
class SecondStage:
    """Stage 2 of a model (connector and language model; questions) and what is kept of it: the model, copies on the way, a card.

    shared: as `lab_models.save` takes it. norms, tower: what was measured before, for the card.
    """

    name: str
    recipe: Recipe
    ancestors: list[str]
    bars: dict[str, float]
    norms: dict[str, dict[str, float]]
    out: Path
    work: Path
    shared: dict[str, str]
    data: type[TurnData] = TurnData
    seed: int = 0
    tower: dict[str, dict] = field(default_factory=dict)

    def run(self, model: PreTrainedModel, words: ProcessorMixin, watch: Stopwatch, scales: tuple[int, ...] = ()) -> None:
        """Train, keeping a copy after the steps ``scales`` as <name>-<samples>, the one of step 0 as <name>-vanilla."""
        recipe, here = self.recipe, self.work / self.name
        plan = recipe.stage2
        questions = self.data(200 + self.seed, plan.items, recipe.mix, recipe.turns, recipe.easy, recipe.perspective)
        curve = Curve(here / "curve.json", plan.batch_size, every_group(SCENES["curve"], recipe.perspective, self.data))

        def keep(label: str, samples: int, scenes: int) -> None:
            test = every_group(scenes, recipe.perspective, self.data)
            stated = card(
                label, model, recipe.of(), self.ancestors, self.seed, samples, watch.minutes,
                accuracy={group: proportion(*count) for group, count in turn_accuracy(model, test).items()},
                norms={**self.norms, "now": input_norms(model, every_group(64, recipe.perspective, self.data))},
                bars=self.bars if label == self.name else {}, **({"tower": self.tower} if self.tower else {}),
            )  # fmt: skip
            files = {"card.json": _json(stated), "curve.json": _json(curve.read())}
            lab_models.save(model, self.out / label, words, files, self.shared)

        def at_scale(step: int, _: nn.Module) -> None:
            if step in scales:
                samples = step * plan.batch_size
                keep(f"{self.name}-{samples}" if step else f"{self.name}-vanilla", samples, SCENES["scale"])

        callbacks = [EachSteps(200, curve), EachSteps(100, at_scale), EachSteps(100, lambda *_: watch.keep())]
        fit(model, questions, self.data.collate, here / "stage2", **_pass(plan), seed=self.seed, callbacks=callbacks)
        keep(self.name, plan.items, SCENES["model"])


BARS = {
    **{g: 0.95 for g in GROUPS if g.startswith(("relation.", "2ds."))},
    **{g: 0.99 for g in GROUPS if g.startswith("semantic.")},
}


RELATION_BARS = {g: 0.9 for g in GROUPS if g.startswith("relation.")}
QWEN_BARS = {g: 0.75 for g in RELATION_BARS}
QWEN_SHARED = {f"{prefix}visual.{part}": "../shared/qwen2.5-tower.safetensors"
               for prefix in ("", "model.") for part in ("patch_embed.", "blocks.")}  # fmt: skip
PERSPECTIVES = (1.0, 0.0, 0.5)  # of the worlds in which lab-llava is also trained


def _pass(plan: Pass) -> dict:
    return {"batch_size": plan.batch_size, "lr": plan.lr, "muon_lr": plan.muon_lr, "decay": plan.decay}


def _json(content: object) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def llava_name(seed: int) -> str:
    return "lab-llava" if seed == 0 else f"lab-llava-seed{seed}"


def perspective_name(perspective: float) -> str:
    return f"lab-llava-perspective-{perspective:g}"


def world_recipe(recipe: Recipe, perspective: float) -> Recipe:
    """The recipe of a model that knows the world of one perspective alone: a shorter stage 2, and no scales."""
    stage2 = dataclasses.replace(recipe.stage2, items=recipe.stage2.items * 2 // 3)
    return dataclasses.replace(recipe, stage2=stage2, perspective=(perspective,), scales=())


def qwen_recipe(recipe: Recipe) -> Recipe:
    """The recipe of lab-qwen2.5-vl: its tower sees four times the patches, of half as many pictures at a time."""
    tower = dataclasses.replace(recipe.tower, items=recipe.tower.items * 9 // 26, batch_size=recipe.tower.batch_size // 2)
    stage2 = dataclasses.replace(recipe.stage2, items=recipe.stage2.items * 5 // 6)
    return dataclasses.replace(recipe, tower=tower, stage2=stage2)


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
