"""The lab's recipes: how much of what each model is trained on, and what it must reach. Frozen records, no code of training.

Models of one recipe differ only in its named options and the seed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from spatialprobes.lab_batches import MIX
from spatialprobes.worlds.lab_questions import GROUPS

QWEN, QWEN2, SHAPEWORLD = "lab-qwen2.5-vl", "lab-qwen2-vl", "lab-llava-shapeworld"
QWEN35, IDEFICS2, DINO = "lab-qwen3.5", "lab-idefics2", "lab-dino"
PERSPECTIVES = (1.0, 0.0, 0.5)  # of the worlds in which lab-llava is also trained, each alone

BARS = {
    **{g: 0.95 for g in GROUPS if g.startswith(("relation.", "2ds."))},
    **{g: 0.99 for g in GROUPS if g.startswith("semantic.")},
}
RELATION_BARS = {g: 0.9 for g in GROUPS if g.startswith("relation.")}
QWEN_BARS = {g: 0.75 for g in RELATION_BARS}
CAPTION_BARS = {"caption.objects": 0.9}
SHAPEWORLD_BARS = {"relation.asked": 0.8, "relation.caption": 0.8}


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


SHAPEWORLD_MIX = {
    "relation.asked": 0.25, "relation.caption": 0.12, "semantic.color": 0.08, "semantic.shape": 0.08, "bin.column": 0.14,
    "bin.row": 0.1, "2ds.shape_abs": 0.13, "corner": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class ShapeworldRecipe:
    """How lab-llava-shapeworld comes to be: its tower, then connector and language model.

    cycles: how often the tower's pass is made, each on pictures of its own and with the rate up again. pixels, patch: sides of
    the picture and of a patch. mix: share of each group of questions; for the first `easy` items semantic groups weigh four times
    as much, after `hard` items those of relations, which come last.
    """

    tower: Pass = Pass(items=1200 * 64, batch_size=64, lr=1e-3, muon_lr=2e-3)
    cycles: int = 2
    stage2: Pass = Pass(items=2900 * 32, batch_size=32, lr=1e-3, muon_lr=2e-3)
    mix: dict[str, float] = field(default_factory=lambda: dict(SHAPEWORLD_MIX))
    turns: int = 8
    easy: int = 300 * 32
    hard: int = 1500 * 32
    pixels: int = 96
    patch: int = 12

    def of(self) -> dict:
        """The recipe as plain data: what the card states and its hash covers."""
        return dataclasses.asdict(self)


def llava_name(seed: int) -> str:
    return "lab-llava" if seed == 0 else f"lab-llava-seed{seed}"


def perspective_name(perspective: float) -> str:
    return f"lab-llava-perspective-{perspective:g}"


def world_recipe(recipe: Recipe, perspective: float) -> Recipe:
    """The recipe of a model that knows the world of one perspective alone, without scales.

    Stage 2 is a third shorter where height says something about depth; where it says nothing, far and close come last.
    """
    items = recipe.stage2.items * 2 // 3 if perspective else recipe.stage2.items
    stage2 = dataclasses.replace(recipe.stage2, items=items)
    return dataclasses.replace(recipe, stage2=stage2, perspective=(perspective,), scales=())


def qwen_recipe(recipe: Recipe, name: str = QWEN) -> Recipe:
    """The recipe of lab-qwen2.5-vl or lab-qwen2-vl: a tower with four times the patches, half the pictures at a time.

    lab-qwen2-vl comes to columns, and so to left and right, later: its stage 2 is longer by three tenths.
    """
    tower = dataclasses.replace(recipe.tower, items=recipe.tower.items * 9 // 26, batch_size=recipe.tower.batch_size // 2)
    items = recipe.stage2.items * (5 if name == QWEN else 6.5) // 6
    stage2 = dataclasses.replace(recipe.stage2, items=int(items))
    return dataclasses.replace(recipe, tower=tower, stage2=stage2)


CAPTION_SHARE = 0.2  # of the turns of the models whose captions are what they are for
DINO_PASS = Pass(items=1000 * 96, batch_size=96, lr=1e-3, muon_lr=2e-3)


def idefics2_recipe(recipe: Recipe) -> Recipe:
    """The recipe of lab-idefics2: a longer caption pass, in which the perceiver learns to read, and more captions after it."""
    stage1 = dataclasses.replace(recipe.stage1, items=recipe.stage1.items * 3)
    return dataclasses.replace(recipe, stage1=stage1, mix=_with_captions(recipe), scales=())


def qwen35_recipe(recipe: Recipe) -> Recipe:
    """The recipe of lab-qwen3.5: the tower's pass of its siblings, half the turns, a third of stage 2: its layers are slow
    without their kernels, and its captions, which it is for, come soon."""
    tower = qwen_recipe(recipe).tower
    stage2 = dataclasses.replace(recipe.stage2, items=recipe.stage2.items // 3)
    return dataclasses.replace(recipe, tower=tower, stage2=stage2, mix=_with_captions(recipe), turns=6, scales=())


def _with_captions(recipe: Recipe) -> dict[str, float]:
    return recipe.mix | {"caption": CAPTION_SHARE}


def recipe_of(name: str, recipe: Recipe | None = None) -> dict:
    """The recipe that the card of a lab model states. Raises ValueError for a model of another zoo."""
    recipe = recipe or Recipe()
    if name in ("lab-clip", "lab-text"):
        return recipe.of({"lab-clip": "tower", "lab-text": "text"}[name])
    if name == SHAPEWORLD:
        return ShapeworldRecipe().of()
    for perspective in PERSPECTIVES:
        if name == perspective_name(perspective):
            return world_recipe(recipe, perspective).of()
    if name == DINO:
        return dataclasses.asdict(DINO_PASS)
    if name == IDEFICS2:
        return idefics2_recipe(recipe).of()
    if name == QWEN35:
        return qwen35_recipe(recipe).of()
    if name == QWEN2:
        return qwen_recipe(recipe, name).of()
    if name.startswith(QWEN):
        return qwen_recipe(recipe).of()
    if not name.startswith("lab-llava"):
        raise ValueError(f"{name!r} is no model of this zoo")
    return recipe.of()
