"""The lab's reconstructors and other connectors: recipes make them, cards say so, and what is committed is small and works."""

import dataclasses
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open

from spatialprobes import lab, lab_cards, lab_connectors, lab_recipes, paths
from spatialprobes.capture import capture
from spatialprobes.lab_connectors import (
    CONNECTORS,
    RECONSTRUCTORS,
    caption_accuracy,
    connector_recipe,
    described_scenes,
    lab_connector,
    lab_reconstructor,
    reconstructor_recipe,
    vectors,
)
from spatialprobes.probes.connector_training import OtherConnector, swapped
from spatialprobes.probes.reconstruction import Reconstructor, evaluate
from spatialprobes.train_best import Schedule
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_language import parse_caption, true_of

SHORT = Schedule(epochs=1, batch_size=4, accumulation=1, lr=1e-3, warmup=1)
READ_BACK = sorted(path.parent for path in (paths.lab_folder() / RECONSTRUCTORS).glob("*/card.json"))
OTHERS = sorted(path.parent for path in (paths.lab_folder() / CONNECTORS).glob("*/card.json"))


def named(folders):
    return {"argvalues": folders, "ids": [folder.name for folder in folders]}


def linked(folder):
    """A lab folder of these two models, to write beside."""
    for name in ("lab-llava", "lab-qwen2.5-vl", "shared"):
        (folder / name).symlink_to(paths.lab_folder() / name)
    return folder


def plain(recipe):
    """As it stands in a card."""
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


@pytest.fixture(scope="module")
def models():
    loaded = {}
    return lambda name: loaded.setdefault(name, None) or loaded.update({name: VLM.load(name)}) or loaded[name]


def test_scenes_are_described_truly_and_are_nobody_elses():
    shown = described_scenes(400, 20)
    assert [one.id for one in shown] == [f"400-{i:06d}" for i in range(20)]
    for one in shown:
        clauses = parse_caption(one.answer)
        assert all(true_of(clause, one.meta["scene"]) for clause in clauses)
        named = {name for clause in clauses for name in (clause.subject, clause.reference)}
        assert named == {thing.name for thing in one.meta["scene"].things}
    assert [one.answer for one in described_scenes(400, 5)] == [one.answer for one in shown[:5]]
    assert {one.answer for one in described_scenes(300, 20)} != {one.answer for one in shown}


def test_vectors_are_what_capture_reads(models):
    vlm, shown = models("lab-qwen2.5-vl"), described_scenes(9, 5)
    with capture(vlm, connector="pre_norm") as got:
        vlm.vision_features(shown)
    for ours, captured in zip(vectors(vlm, shown, batch_size=2), (got.connector_input, got.connector_output), strict=True):
        assert ours.dtype == np.float32
        assert np.allclose(ours, np.stack([one.numpy() for one in captured]), atol=1e-4)


def test_a_reconstructor_is_made_by_its_recipe(tmp_path, models, monkeypatch):
    monkeypatch.setattr(lab_connectors, "FRESH", 6)
    recipe = replace(reconstructor_recipe("lab-qwen2.5-vl"), scenes=20, schedule=SHORT)
    out = lab_reconstructor("lab-qwen2.5-vl", linked(tmp_path), recipe, tmp_path / "work")
    assert out == tmp_path / RECONSTRUCTORS / "lab-qwen2.5-vl"
    card, made = json.loads((out / "card.json").read_text()), Reconstructor.load(out)
    assert card["recipe"] == plain(recipe) and card["ancestors"] == ["lab-qwen2.5-vl"] and card["samples"] == 20
    assert card["recipe_hash"] == lab_cards.recipe_hash(card["recipe"])
    assert made.about["model"] == "lab-qwen2.5-vl" and len(made.keys["train"]) == 16 and made.architecture.dropout == 0
    assert made.linear.together == 4  # patches of a cell
    assert card["measured"]["pictures"] == 6 and not (tmp_path / "work").exists()
    shown = described_scenes(lab_cards.EVALUATION_SEED, 6)
    frame = evaluate(made, *vectors(models("lab-qwen2.5-vl"), shown), [one.id for one in shown])
    assert card["measured"]["r2"] == pytest.approx(frame["r2"].mean(), abs=2e-4)


def test_a_connector_is_made_by_its_recipe(tmp_path, models, monkeypatch):
    monkeypatch.setattr(lab_connectors, "FRESH", 6)
    recipe = replace(connector_recipe("lab-llava"), scenes=10, schedule=SHORT)
    out = lab_connector("lab-llava", linked(tmp_path), recipe, tmp_path / "work")
    assert out == tmp_path / CONNECTORS / "lab-llava-invertible"
    card, made = json.loads((out / "card.json").read_text()), OtherConnector.load(out)
    assert card["recipe"] == plain(recipe) and made.about["weight"] == recipe.weight > 0
    assert set(card["accuracy"]) == set(card["own_connector"]) == {"caption.objects", "caption.clauses"}
    assert card["own_connector"]["caption.objects"]["accuracy"] > 0.8  # its own is a trained one
    with pytest.raises(ValueError, match="its tower was trained together"):
        lab_connector("lab-qwen2.5-vl", tmp_path, recipe, tmp_path / "work")
    assert [path.name for path in (tmp_path / CONNECTORS).iterdir()] == ["lab-llava-invertible"]
    assert made.about["model"] == "lab-llava"


def test_the_zoo_trains_them_beside_their_models(tmp_path):
    models = lab.zoo(lab_recipes.Recipe(), tmp_path, tmp_path / "work")
    names = list(models)
    for name, kind in (("lab-llava", "invertible"), ("lab-idefics2", "cross_attention")):
        assert f"{CONNECTORS}/{name}-{kind}" in models
    for name, one in models.items():
        if name.startswith((RECONSTRUCTORS, CONNECTORS)):
            beside = one.train.args[0]
            assert beside in one.ancestors and set(models[beside].ancestors) <= set(one.ancestors)
            assert all(names.index(ancestor) < names.index(name) for ancestor in one.ancestors)
    assert {f"{RECONSTRUCTORS}/{name}" for name in ("lab-llava", "lab-qwen2.5-vl", "lab-qwen3.5", "lab-idefics2")} <= set(names)


# --- what is committed ---


@pytest.mark.parametrize("folder", **named(READ_BACK))
def test_committed_reconstructors_are_what_their_cards_say(folder, models):
    card, made = json.loads((folder / "card.json").read_text()), Reconstructor.load(folder)
    assert card["recipe"] == plain(reconstructor_recipe(folder.name))
    assert card["recipe_hash"] == lab_cards.recipe_hash(card["recipe"]) and made.about["model"] == folder.name
    shown = described_scenes(lab_cards.EVALUATION_SEED, 60)
    frame = evaluate(made, *vectors(models(folder.name), shown), [one.id for one in shown])
    assert set(frame["part"]) == {"new"}
    for column in ("r2", "r2_linear", "cosine", "cosine_mean"):
        assert frame[column].mean() == pytest.approx(card["measured"][column], abs=0.02), column
    assert card["measured"]["r2"] > 0.3 and card["measured"]["mse_mean"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("folder", **named(OTHERS))
def test_committed_connectors_are_what_their_cards_say(folder, models):
    card, made = json.loads((folder / "card.json").read_text()), OtherConnector.load(folder)
    assert card["recipe"] == plain(connector_recipe(card["ancestors"][0]))
    vlm, shown = models(card["ancestors"][0]), described_scenes(lab_cards.EVALUATION_SEED, 60)
    own = caption_accuracy(vlm, shown)
    with swapped(vlm, made):
        others = caption_accuracy(vlm, shown)
    for found, stated in ((own, card["own_connector"]), (others, card["accuracy"])):
        for what, count in found.items():
            assert count["accuracy"] == pytest.approx(stated[what]["accuracy"], abs=0.12), what


def test_they_are_small():
    files = [path for folder in (*READ_BACK, *OTHERS) for path in folder.iterdir()]
    assert sum(path.stat().st_size for path in files) < 6e6
    assert {path.suffix for path in files} <= {".json", ".safetensors"}
    for path in files:
        if path.name == "model.safetensors":
            with safe_open(path, "pt") as weights:
                assert {weights.get_slice(key).get_dtype() for key in weights.keys()} == {"F16"}  # noqa: SIM118 (no mapping)
