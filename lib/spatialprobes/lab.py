"""The lab's zoo: which model is trained from what, by which recipe, and the card that says how it came out.

``spatialprobes lab`` retrains everything from nothing and goes on where a killed run stopped. Recipes: ``lab_recipes.py``;
what stages 1 and 2 do: ``lab_stages.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, LlamaForCausalLM, LlavaForConditionalGeneration

from spatialprobes import lab_dino, lab_idefics2, lab_models, lab_qwen, lab_qwen35, lab_shapeworld
from spatialprobes.lab_batches import QUESTION_GROUPS, TextData, TowerData
from spatialprobes.lab_cards import (
    EVALUATION_SEED,
    Stopwatch,
    card,
    input_norms,
    proportion,
    retrieval,
    similarity,
    turn_accuracy,
)
from spatialprobes.lab_connectors import CONNECTORS, OTHER_CONNECTORS, RECONSTRUCTORS, lab_connector, lab_reconstructor
from spatialprobes.lab_recipes import (
    BARS,
    CAPTION_BARS,
    DINO,
    DINO_PASS,
    IDEFICS2,
    PERSPECTIVES,
    QWEN,
    QWEN2,
    QWEN35,
    QWEN_BARS,
    RELATION_BARS,
    SHAPEWORLD,
    SHAPEWORLD_BARS,
    Pass,
    Recipe,
    ShapeworldRecipe,
    idefics2_recipe,
    llava_name,
    perspective_name,
    qwen35_recipe,
    qwen_recipe,
    recipe_of,
    world_recipe,
)
from spatialprobes.lab_stages import SCENES, SecondStage, as_json, described, every_group, first_stage, lab_questions, schedule
from spatialprobes.paths import lab_folder, root
from spatialprobes.train import fit
from spatialprobes.worlds.lab import COLOURS, SHAPES


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


# Where the weights that models have in common are stored.
TOWER, QWEN_TOWER = "../shared/tower.safetensors", "../shared/qwen2.5-tower.safetensors"
SHARED = {"vision_tower.": TOWER, "model.vision_tower.": TOWER}
QWEN_SHARED = {f"{start}visual.{part}.": QWEN_TOWER for start in ("", "model.") for part in ("patch_embed", "blocks")}


def train_clip(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-clip: tower and text encoder from nothing."""
    watch, plan = Stopwatch(work / "lab-clip" / "minutes.json"), recipe.tower
    model = TowerPretraining(lab_models.clip(0))
    fit(model, TowerData(0, plan.items), TowerData.collate, work / "lab-clip", **schedule(plan), seed=0)
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
    lab_models.save(model.clip, out / "lab-clip", words.tokenizer, {"card.json": as_json(content)})
    words.image_processor.save_pretrained(out / "lab-clip")


def train_text(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-text: the language model before it sees; captions and questions that a caption answers."""
    watch, plan = Stopwatch(work / "lab-text" / "minutes.json"), recipe.text
    model = lab_models.language_model(0)
    fit(model, TextData(0, plan.items), TextData.collate, work / "lab-text", **schedule(plan), seed=0)
    accuracy = turn_accuracy(model, TextData(EVALUATION_SEED, SCENES["text"]))
    content = card("lab-text", model, recipe.of("text"), [], 0, plan.items, watch.minutes,
                   accuracy={group: proportion(*count) for group, count in accuracy.items()}, bars={})  # fmt: skip
    lab_models.save(model, out / "lab-text", lab_models.tokenizer(), {"card.json": as_json(content)})


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
    about = {"ancestors": ["lab-clip", "lab-text"], "bars": BARS, "norms": norms, "shared": SHARED}
    stage = SecondStage(name, **lab_questions(recipe, seed), **about, out=out, work=work)
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
    about = {"ancestors": ["lab-llava-vanilla"], "bars": RELATION_BARS, "norms": norms, "shared": SHARED}
    stage = SecondStage(name, **lab_questions(own), **about, out=out, work=work)
    stage.run(model, lab_models.processor(), watch)


def train_qwen(recipe: Recipe, out: Path, work: Path, name: str = QWEN, scales: tuple[int, ...] = ()) -> None:
    """lab-qwen2.5-vl or lab-qwen2-vl: its own tower first, then stages 1 and 2 as lab-llava's; copies on the way as train_llava
    keeps them."""
    own = qwen_recipe(recipe, name)
    watch = Stopwatch(work / name / "minutes.json")
    model = {QWEN: lab_qwen.model_2_5, QWEN2: lab_qwen.model_2}[name](0)
    lab_qwen.adopt(model, LlamaForCausalLM.from_pretrained(out / "lab-text", dtype=torch.float32))
    clip = CLIPModel.from_pretrained(out / "lab-clip", dtype=torch.float32)
    tower = _tower_pass(lab_qwen.TowerPretraining(model.model.visual, clip), own.tower, work / name)
    lab_qwen.freeze_tower(model)
    norms = first_stage(model, own, work / name, data=lab_qwen.QwenTurns)
    about = {"ancestors": ["lab-clip", "lab-text"], "bars": QWEN_BARS, "norms": norms, "shared": QWEN_SHARED if scales else {}}
    stage = SecondStage(name, **lab_questions(own, data=lab_qwen.QwenTurns), **about, out=out, work=work, tower=tower)
    stage.run(model.train(), lab_qwen.words(), watch, scales)


def train_shapeworld(recipe: ShapeworldRecipe, out: Path, work: Path) -> None:
    """lab-llava-shapeworld: its own tower, then connector and language model (lab-text at first) on questions. No picture of
    another world is among what it saw."""
    watch = Stopwatch(work / SHAPEWORLD / "minutes.json")
    pretraining = lab_shapeworld.TowerPretraining(lab_models.clip(0, recipe.pixels, recipe.patch))
    for cycle in range(recipe.cycles):
        worlds = lab_shapeworld.ShapeTower(cycle, recipe.tower.items)
        fit(pretraining, worlds, worlds.collate, work / SHAPEWORLD / f"tower-{cycle}", **schedule(recipe.tower), seed=cycle)
    seen = lab_qwen.seen(pretraining.eval(), lab_shapeworld.ShapeTower(EVALUATION_SEED, SCENES["patches"]))
    text = LlamaForCausalLM.from_pretrained(out / "lab-text", dtype=torch.float32)
    model = lab_models.adopt(lab_models.llava(0, recipe.pixels, recipe.patch), pretraining.clip, text)
    norms = {"start": input_norms(model, lab_shapeworld.every_group(64))}
    questions = lab_shapeworld.ShapeTurns(200, recipe.stage2.items, recipe.mix, recipe.turns, recipe.easy, recipe.hard)
    stage = SecondStage(
        SHAPEWORLD, recipe.of(), recipe.stage2, questions, lab_shapeworld.every_group, ["lab-text"], SHAPEWORLD_BARS, norms,
        out, work, tower={what: proportion(*count) for what, count in seen.items()},
    )  # fmt: skip
    stage.run(model, lab_models.processor(recipe.pixels, recipe.patch), watch)


def train_idefics2(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-idefics2: its own tower first, then the connector (a perceiver) on captions, then both on questions and captions."""
    own = idefics2_recipe(recipe)
    watch = Stopwatch(work / IDEFICS2 / "minutes.json")
    model = lab_idefics2.model(0)
    lab_idefics2.adopt(model, LlamaForCausalLM.from_pretrained(out / "lab-text", dtype=torch.float32))
    clip = CLIPModel.from_pretrained(out / "lab-clip", dtype=torch.float32)
    tower = model.model.vision_model
    about = _tower_pass(lab_idefics2.TowerPretraining(tower, clip), own.tower, work / IDEFICS2)
    tower.requires_grad_(False)
    data = lab_idefics2.Idefics2Turns
    norms = first_stage(model, own, work / IDEFICS2, data=data)
    stage = SecondStage(
        IDEFICS2, **lab_questions(own, data=data), ancestors=["lab-clip", "lab-text"], bars=CAPTION_BARS, norms=norms, out=out,
        work=work, tower=about, captions=partial(described, perspective=own.perspective, data=data),
    )  # fmt: skip
    stage.run(model.train(), lab_idefics2.words(), watch)


def train_qwen35(recipe: Recipe, out: Path, work: Path) -> None:
    """lab-qwen3.5: tower as its siblings', a language model that reads captions first, then stages 1 and 2 in conversations.

    Its accuracies are those of single-turn prompts.
    """
    own = qwen35_recipe(recipe)
    watch = Stopwatch(work / QWEN35 / "minutes.json")
    model, data = lab_qwen35.model(0), lab_qwen35.Conversations
    clip = CLIPModel.from_pretrained(out / "lab-clip", dtype=torch.float32)
    about = _tower_pass(lab_qwen.TowerPretraining(model.model.visual, clip), own.tower, work / QWEN35)
    model.model.visual.requires_grad_(False)
    text = lab_qwen35.TextConversations(0, own.text.items, own.turns)
    fit(model, text, text.collate, work / QWEN35 / "text", **schedule(own.text), seed=0)
    lab_qwen.freeze_tower(model)
    norms = first_stage(model, own, work / QWEN35, data=data)

    def fresh(scenes: int) -> lab_qwen35.Conversations:
        groups = dict.fromkeys(QUESTION_GROUPS, 1.0)
        return data(EVALUATION_SEED, 4 * scenes, groups, turns=1, perspective=own.perspective)

    stage = SecondStage(
        QWEN35, **lab_questions(own, data=data) | {"fresh": fresh}, ancestors=["lab-clip"], bars=CAPTION_BARS, norms=norms,
        out=out, work=work, tower=about, captions=partial(described, perspective=own.perspective, data=data),
    )  # fmt: skip
    stage.run(model.train(), lab_qwen.words(), watch)


def _tower_pass(pretraining: nn.Module, plan: Pass, work: Path) -> dict[str, dict]:
    """Train a tower beside lab-clip's text half; what it sees, as the card states it."""
    fit(pretraining, TowerData(0, plan.items), TowerData.collate, work / "tower", **schedule(plan), seed=0)
    seen = lab_qwen.seen(pretraining.eval(), TowerData(EVALUATION_SEED, SCENES["retrieval"]))
    return {what: proportion(*count) for what, count in seen.items()}


def train_dino(plan: Pass, out: Path, work: Path) -> None:
    """lab-dino: a tower of its own, from pictures alone. What is kept is the teacher."""
    watch = Stopwatch(work / DINO / "minutes.json")
    pretraining = lab_dino.SelfDistillation(lab_dino.model(0))
    fit(pretraining, lab_dino.Pictures(0, plan.items), lab_dino.Pictures.collate, work / DINO, **schedule(plan), seed=0)
    tower = pretraining.eval().teacher["tower"]
    seen = lab_dino.seen(tower, lab_dino.Pictures(EVALUATION_SEED, SCENES["retrieval"]))
    content = card(
        DINO, tower, recipe_of(DINO), [], 0, plan.items, watch.minutes,
        accuracy={what: proportion(*count) for what, count in seen.items()}, bars={},
        note="Self-distillation on pictures alone; labels serve only to measure what a linear readout finds.",
    )  # fmt: skip
    lab_models.save(tower, out / DINO, lab_dino.images(), {"card.json": as_json(content)})


@dataclass(frozen=True)
class Model:
    """One entry of the zoo: what trains it, and which others must be there first. The scales of a model come with it."""

    train: Callable[[], None]
    ancestors: tuple[str, ...] = ()


def zoo(recipe: Recipe, out: Path, work: Path) -> dict[str, Model]:
    """Every model by name, ancestors before those that need them."""
    both = ("lab-clip", "lab-text")
    models = {
        "lab-clip": Model(partial(train_clip, recipe, out, work)),
        "lab-text": Model(partial(train_text, recipe, out, work)),
    }
    for seed in (0, 1, 2):
        scales = recipe.scales if seed == 0 else ()
        models[llava_name(seed)] = Model(partial(train_llava, recipe, out, work, seed, scales), both)
    for p in PERSPECTIVES:
        models[perspective_name(p)] = Model(partial(train_perspective, recipe, out, work, p), (*both, "lab-llava"))
    models[QWEN] = Model(partial(train_qwen, recipe, out, work, QWEN, recipe.scales), both)
    models[QWEN2] = Model(partial(train_qwen, recipe, out, work, QWEN2), both)
    models[QWEN35] = Model(partial(train_qwen35, recipe, out, work), ("lab-clip",))
    models[IDEFICS2] = Model(partial(train_idefics2, recipe, out, work), both)
    models[DINO] = Model(partial(train_dino, DINO_PASS, out, work))
    models[SHAPEWORLD] = Model(partial(train_shapeworld, ShapeworldRecipe(), out, work), ("lab-text",))
    for name in ("lab-llava", QWEN, QWEN35, IDEFICS2):
        beside, place = (*models[name].ancestors, name), f"{RECONSTRUCTORS}/{name}"
        models[place] = Model(partial(lab_reconstructor, name, out, work=work / place), beside)
        if kind := OTHER_CONNECTORS.get(name):
            place = f"{CONNECTORS}/{name}-{kind}"
            models[place] = Model(partial(lab_connector, name, out, work=work / place), beside)
    return models


def train_zoo(
    names: Sequence[str] = (), out: Path | None = None, recipe: Recipe | None = None, again: bool = False
) -> list[Path]:
    """Train what is missing, ancestors first, and return the folders of the models.

    names: models and, with them, their ancestors; all if empty. out: where the models go (data/lab if None); unfinished training
    is kept in data/training and gone on with. again: also what is there already. Raises ValueError for an unknown name.
    """
    out, work = out or lab_folder(), root() / "data" / "training"
    models = zoo(recipe or Recipe(), out, work)
    if unknown := [name for name in names if name not in models]:
        raise ValueError(f"no lab model is trained under the name {unknown[0]!r}; {', '.join(models)}")
    wanted = {name for asked in names or models for name in (asked, *models[asked].ancestors)}
    made = [name for name in models if name in wanted]
    for name in made:
        if again or not (out / name / "card.json").is_file():
            print(f"training {name}", flush=True)
            models[name].train()
            shutil.rmtree(work / name, ignore_errors=True)
    return [out / name for name in made]
