"""The lab's reconstructors and its other connectors: what each is trained on, and the card that says how it came out.

Both are small models beside a lab model that is there already: `lab_reconstructor` reads its E_pre back from its E_post,
`lab_connector` takes its connector's place. Scenes come from streams that neither the lab models nor their cards draw from. Knows
what is trained of what; how is in `probes/reconstruction.py` and `probes/connector_training.py`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialprobes.answers import generate
from spatialprobes.examples import Example, batches
from spatialprobes.families import connectors, reconstructors
from spatialprobes.lab_batches import PERSPECTIVE
from spatialprobes.lab_cards import EVALUATION_SEED, Stopwatch, card, proportion, write_json
from spatialprobes.lab_recipes import IDEFICS2
from spatialprobes.paths import lab_folder, root
from spatialprobes.probes import connector_training, reconstruction
from spatialprobes.probes.connector_reading import read
from spatialprobes.probes.connector_training import OtherConnector, swapped
from spatialprobes.probes.lab_captions import graded
from spatialprobes.probes.reconstruction import Reconstructor, agreement, through_connector
from spatialprobes.train_best import Schedule
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab import picture, scene
from spatialprobes.worlds.lab_language import CAPTION_REQUEST, caption

RECONSTRUCTORS, CONNECTORS = "reconstructors", "connectors"  # folders under the lab's
OTHER_CONNECTORS = {"lab-llava": "invertible", IDEFICS2: "cross_attention"}  # by lab model
SCENES_SEED, CAPTIONS_SEED = 300, 400  # streams of scenes
FRESH = 500  # scenes on which a card's numbers are measured
READING = Schedule(epochs=12, batch_size=16, accumulation=1, lr=1e-3, warmup=100, patience=12, min_delta=0.0)
LONGER = dataclasses.replace(READING, epochs=40, lr=2e-3, patience=40)  # a small network, quickly passed through
CAPTIONS = Schedule(epochs=4, batch_size=16, accumulation=1, lr=2e-3, warmup=100, patience=4, min_delta=0.0)
ANEW = dataclasses.replace(CAPTIONS, epochs=20, patience=20)  # attention that has to find its places first


@dataclass(frozen=True)
class ReconstructorRecipe:
    """How a lab model's reconstructor comes to be: kind, sizes and dropout, and one schedule over `scenes` pictures."""

    kind: str
    sizes: dict[str, int]
    dropout: float
    scenes: int = 2500
    schedule: Schedule = READING
    perspective: tuple[float, ...] = PERSPECTIVE
    seed: int = 0


@dataclass(frozen=True)
class ConnectorRecipe:
    """How another connector for a lab model comes to be: sizes, and one schedule over `scenes` pictures with a caption each.

    weight: of the squared distance to the model's own E_post, which brings the connector near to what the language model reads.
    """

    sizes: dict[str, int]
    weight: float = 0.1
    scenes: int = 1500
    schedule: Schedule = CAPTIONS
    perspective: tuple[float, ...] = PERSPECTIVE
    seed: int = 0


def reconstructor_recipe(model: str) -> ReconstructorRecipe:
    """As the study: "mlp" where each token has one of its own before the connector (LLaVA), else "sequence"; without dropout,
    since scenes are never short."""
    kind = "mlp" if model.startswith("lab-llava") else "sequence"
    schedule = LONGER if kind == "mlp" else READING
    return ReconstructorRecipe(kind, reconstructors.SMALL[kind], 0.0, schedule=schedule)


def connector_recipe(model: str) -> ConnectorRecipe:
    """The published proportions, but for couplings as wide as what they read: an eighth of 128 would be narrow."""
    if model.startswith("lab-llava"):
        return ConnectorRecipe({"hidden": 64})
    return ConnectorRecipe({"heads": 4}, schedule=ANEW)


def lab_reconstructor(
    model: str, lab: Path | None = None, recipe: ReconstructorRecipe | None = None, work: Path | None = None
) -> Path:
    """Train the reconstructor of a lab model and write it, with its card, to <lab>/reconstructors/<model>.

    lab: the folder of lab models (data/lab if None). A killed training goes on from `work` (in data/training if None). The card's
    numbers are those of fresh scenes.
    """
    lab = lab or lab_folder()
    out, work = _places(lab / RECONSTRUCTORS / model, work)
    recipe = recipe or reconstructor_recipe(model)
    vlm, watch = VLM.load(str(lab / model)), Stopwatch(work / "minutes.json")
    shown = described_scenes(SCENES_SEED, recipe.scenes, recipe.perspective)
    pre, post = vectors(vlm, shown)
    made = reconstruction.train(
        pre, post, [one.id for one in shown], kind=recipe.kind, out=work, schedule=recipe.schedule, seed=recipe.seed, model=model,
        in_order=vlm.family.model_type != "idefics2", dropout=recipe.dropout, **recipe.sizes,
    )  # fmt: skip
    made.save(out, half=True)
    fresh = described_scenes(EVALUATION_SEED, FRESH, recipe.perspective)
    measured = reconstructed(vlm, Reconstructor.load(out), fresh)
    stated = card(
        f"{RECONSTRUCTORS}/{model}", made.module, dataclasses.asdict(recipe), [model], recipe.seed, recipe.scenes, watch.minutes,
        measured=measured, accuracy={}, bars={},
    )  # fmt: skip
    write_json(out / "card.json", stated)
    shutil.rmtree(work)
    return out


def lab_connector(model: str, lab: Path | None = None, recipe: ConnectorRecipe | None = None, work: Path | None = None) -> Path:
    """Train another connector for a lab model and write it, with its card, to <lab>/connectors/<model>-<kind>.

    lab, work: as of `lab_reconstructor`. The card states captions of fresh scenes with the model's own connector and with this.
    Raises ValueError with the reason for a family without such a connector.
    """
    recipe, lab = recipe or connector_recipe(model), lab or lab_folder()
    vlm = VLM.load(str(lab / model))
    kind = connectors.design(vlm.model.config, **recipe.sizes).kind
    out, work = _places(lab / CONNECTORS / f"{model}-{kind}", work)
    watch = Stopwatch(work / "minutes.json")
    shown = described_scenes(CAPTIONS_SEED, recipe.scenes, recipe.perspective)
    pre, post = vectors(vlm, shown)
    made = connector_training.train(
        vlm, pre, shown, out=work, post=post, weight=recipe.weight, schedule=recipe.schedule, seed=recipe.seed, **recipe.sizes
    )
    made.about["model"] = model
    made.save(out, half=True)
    stored = OtherConnector.load(out)
    fresh = described_scenes(EVALUATION_SEED, FRESH, recipe.perspective)
    own = caption_accuracy(vlm, fresh)
    with swapped(vlm, stored):
        accuracy = caption_accuracy(vlm, fresh)
    stated = card(
        f"{CONNECTORS}/{out.name}", made.module, dataclasses.asdict(recipe), [model], recipe.seed, recipe.scenes, watch.minutes,
        accuracy=accuracy, bars={}, own_connector=own,
    )  # fmt: skip
    write_json(out / "card.json", stated)
    shutil.rmtree(work)
    return out


def described_scenes(seed: int, count: int, perspective: tuple[float, ...] = PERSPECTIVE) -> list[Example]:
    """The first scenes of a stream, each with the request for a caption and one that is true of it."""
    found = []
    for index in range(count):
        shown = scene(seed, index, perspective)
        words, id = caption(shown, np.random.default_rng([seed, index, 1])), f"{seed}-{index:06d}"
        found.append(Example(id, picture(shown), CAPTION_REQUEST, words, group="caption", cluster=id, meta={"scene": shown}))
    return found


def caption_accuracy(vlm: VLM, examples: Sequence[Example]) -> dict[str, dict]:
    """Of captions written greedily: objects named, of those there; clauses that are true, of those written. With intervals."""
    texts = generate(vlm, examples, max_new_tokens=60)["text"]
    named = there = true = clauses = 0
    for example, text in zip(examples, texts, strict=True):
        shown = example.meta["scene"]
        scores = graded(text, shown)
        named, there = named + round(scores["lab_recall"] * len(shown.things)), there + len(shown.things)
        if written := int(scores["lab_clauses"]):
            true, clauses = true + round(scores["lab_relations"] * written), clauses + written
    return {"caption.objects": proportion(named, there), "caption.clauses": proportion(true, max(clauses, 1))}


def _places(out: Path, work: Path | None) -> tuple[Path, Path]:
    """Where the model goes, and where its training is kept until it is done."""
    work = work or root() / "data" / "training" / out.parent.name / out.name
    work.mkdir(parents=True, exist_ok=True)
    return out, work


@torch.no_grad()
def vectors(vlm: VLM, examples: Sequence[Example], batch_size: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """(E_pre, E_post) [picture, token, width], float32, of pictures of one size; the language model is not run."""
    found: dict[str, list[np.ndarray]] = {"pre": [], "post": []}
    for chunk in batches(examples, batch_size):
        tokens = read(vlm, chunk, ("pre", "post")).tokens
        for site, kept in found.items():
            kept.append(torch.stack(tokens[site]).float().cpu().numpy())
    return np.concatenate(found["pre"]), np.concatenate(found["post"])


def reconstructed(vlm: VLM, made: Reconstructor, examples: Sequence[Example]) -> dict[str, Any]:
    """Means over these pictures of what `evaluate` and `agreement` measure, rounded."""
    pre, post = vectors(vlm, examples)
    keys = [one.id for one in examples]
    frame = reconstruction.evaluate(made, pre, post, keys)
    back = agreement(through_connector(vlm, made.predict(post), made.site), post, keys)
    columns = ["r2", "r2_linear", "mse", "mse_mean", "cosine", "cosine_mean"]
    means = {**frame[columns].mean(), **back[["reproj_cosine", "reproj_mse"]].mean()}
    return {"pictures": len(keys), **{name: round(float(value), 4) for name, value in means.items()}}
