"""The lab models that are there for their captions, and the tower without labels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from spatialprobes import (
    lab,
    lab_batches,
    lab_cards,
    lab_dino,
    lab_idefics2,
    lab_models,
    lab_qwen,
    lab_qwen35,
    lab_recipes,
    lab_stages,
)
from spatialprobes.examples import Example
from spatialprobes.lab_batches import EOS, IGNORED, USER, Turn
from spatialprobes.paths import lab_folder
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab import scene
from spatialprobes.worlds.lab_language import VOCABULARY, caption

MADE = {
    "lab-idefics2": (lab_idefics2.model, lab_idefics2.words, lab_idefics2.Idefics2Turns),
    "lab-qwen3.5": (lab_qwen35.model, lab_qwen.words, lab_qwen35.Conversations),
}
SHORT = lab_recipes.Pass(items=4, batch_size=2, lr=1e-3, muon_lr=2e-3)


@pytest.fixture(scope="module", params=MADE)
def made(request, tmp_path_factory):
    """An untrained model as a folder, loaded, and the data it is trained on."""
    model, words, data = MADE[request.param]
    folder = tmp_path_factory.mktemp("lab") / request.param
    lab_models.save(model(0), folder, words())
    return VLM.load(str(folder), dtype="float32"), data


@pytest.mark.parametrize("group", ["relation.horizontal", "caption"])
def test_first_turns_are_what_the_processor_makes_of_a_prompt(made, group):
    vlm, data = made
    rows = data(3, 2, {group: 1.0}, turns=2)
    for picture, turns in (rows[0], rows[1]):
        batch = rows.collate([(picture, turns)])
        labels = batch.pop("labels")[0]
        first = next(i for i, label in enumerate(labels) if label != IGNORED)
        with torch.no_grad():
            logits = vlm.model(**batch).logits[0, first - 1]
        words = " ".join(VOCABULARY[token] for token in turns[0].question[:-1])
        encoded = vlm.encode([Example("e", Image.fromarray(picture), words, cluster="c")])
        assert encoded.inputs["input_ids"][0].tolist() == batch["input_ids"][0, :first].tolist()
        assert torch.allclose(vlm.forward(encoded).logits[0, -1], logits, atol=1e-5)


def test_a_conversation_is_its_turns_one_after_another():
    turns = [Turn("a", [11, 12], [13, EOS]), Turn("b", [14], [15, 16, EOS])]
    batch = lab_qwen35.chain([[1, 2], [1]], [turns, turns[:1]])
    assert batch["input_ids"].tolist() == [[1, 2, 11, 12, 13, EOS, USER, 14, 15, 16, EOS], [1, 11, 12, 13, EOS, *[0] * 6]]
    answers = [IGNORED] * 4 + [13, EOS] + [IGNORED] * 2 + [15, 16, EOS]
    assert batch["labels"].tolist() == [answers, [*[IGNORED] * 3, 13, EOS, *[IGNORED] * 6]]
    assert batch["attention_mask"].sum(1).tolist() == [11, 5]


class Writes:
    """A model that writes given words, whatever it is shown."""

    training, device = False, torch.device("cpu")

    def __init__(self, texts):
        self.texts = list(texts)

    def eval(self):
        return self

    def train(self, mode):
        return self

    def generate(self, input_ids, pixel_values, max_new_tokens):
        rows = [[*(lab_batches.ids(self.texts.pop(0))), EOS] for _ in input_ids]
        assert max(map(len, rows)) <= max_new_tokens
        return torch.cat([input_ids, lab_batches.pad(rows, EOS)], 1)


def test_captions_are_held_to_the_scene():
    asked = lab_stages.described(6, (0.0,), lab_batches.TurnData)
    scenes = [scene(asked.seed, i, (0.0,)) for i in range(6)]
    true = [caption(one, np.random.default_rng(i)) for i, one in enumerate(scenes)]
    things = sum(len(one.things) for one in scenes)
    clauses = sum(text.count(".") for text in true)
    assert lab_cards.caption_accuracy(Writes(true), asked, 4) == {
        "caption.clauses": (clauses, clauses),
        "caption.objects": (things, things),
    }
    swap = {"left": "right", "right": "left", "above": "under", "under": "above"}
    false = [" ".join(swap.get(word, word) for word in text.split()) for text in true]
    found = lab_cards.caption_accuracy(Writes(false), asked, 4)
    assert found == {"caption.clauses": (0, clauses), "caption.objects": (things, things)}
    absent = next(name for name in ("red circle", "blue square", "green cross") if all(name != t.name for t in scenes[0].things))
    broken = [f"a {absent} left a ."] + [""] * 5
    assert lab_cards.caption_accuracy(Writes(broken), asked, 4) == {"caption.clauses": (0, 1), "caption.objects": (0, things)}


def test_captions_of_a_finished_model_are_measured_as_they_are_written():
    vlm = VLM.load("lab-llava")
    found = lab_cards.caption_accuracy(vlm.model, lab_stages.described(40, (0.0, 0.5), lab_batches.TurnData))
    named, there = found["caption.objects"]
    assert there == sum(len(scene(lab_cards.EVALUATION_SEED, i, (0.0, 0.5)).things) for i in range(40)) and named >= 0.95 * there


def test_the_zoo_trains_them_from_nothing(tmp_path, monkeypatch):
    for name, few in {"retrieval": 100, "patches": 20, "text": 20, "model": 4, "scale": 4, "curve": 4}.items():
        monkeypatch.setitem(lab_stages.SCENES, name, few)
    monkeypatch.setattr(lab, "root", lambda: tmp_path)
    monkeypatch.setattr(lab, "DINO_PASS", SHORT)
    recipe = lab_recipes.Recipe(
        tower=lab_recipes.Pass(items=52, batch_size=8, lr=1e-3, muon_lr=2e-3), text=SHORT, stage1=SHORT, stage2=SHORT, turns=4
    )
    for name in ("lab-clip", "lab-text"):
        (tmp_path / "zoo").mkdir(exist_ok=True)
        (tmp_path / "zoo" / name).symlink_to(lab_folder() / name)
    names = ("lab-idefics2", "lab-qwen3.5", "lab-dino")
    folders = lab.train_zoo(names, tmp_path / "zoo", recipe)
    cards = {folder.name: json.loads((folder / "card.json").read_text()) for folder in folders}
    for name in names[:2]:
        assert cards[name]["recipe"] == json.loads(json.dumps(lab_recipes.recipe_of(name, recipe)))
        assert {"caption.objects", "caption.clauses", "relation.horizontal"} <= set(cards[name]["accuracy"])
        vlm, made = VLM.load(str(tmp_path / "zoo" / name)), MADE[name][0](0).state_dict()
        tower = [k for k in made if "vision_model." in k or ".blocks." in k]
        assert tower and any(not torch.equal(vlm.model.state_dict()[k].half(), made[k].half()) for k in tower)
    tower = AutoModel.from_pretrained(tmp_path / "zoo" / "lab-dino")
    assert type(tower).__name__ == "Dinov2Model" and set(cards["lab-dino"]["accuracy"]) == set(
        lab_dino.seen(tower.float(), lab_dino.Pictures(1, 20), among=10)
    ) - {"other view among 10"} | {"other view among 100"}


def test_a_view_with_the_whole_picture_is_the_picture_and_a_mirrored_one_its_mirror():
    pictures = torch.rand(3, 3, 48, 48)
    whole = torch.tensor([1.0, 0.5, 0.5, 0.9, 0.5, 0.5]).expand(3, -1)
    assert torch.allclose(lab_dino.views(pictures, whole), pictures, atol=1e-5)
    mirrored = whole.clone()
    mirrored[:, 3] = 0.1
    assert torch.allclose(lab_dino.views(pictures, mirrored), pictures.flip(-1), atol=1e-5)
    darker = whole.clone()
    darker[:, 5] = 0.0
    assert torch.allclose(lab_dino.views(pictures, darker), pictures - 0.15, atol=1e-5)


def test_teacher_follows_the_student_in_training_alone():
    pretraining = lab_dino.SelfDistillation(lab_dino.model(0))
    data = lab_dino.Pictures(0, 4)
    batch = data.collate([data[i] for i in range(4)])
    with torch.no_grad():
        for parameter in pretraining.student.parameters():
            parameter.add_(1.0)
    before = {name: value.clone() for name, value in pretraining.teacher.named_parameters()}
    pretraining.eval()(**batch)
    assert all(torch.equal(value, before[name]) for name, value in pretraining.teacher.named_parameters())
    pretraining.train()(**batch)
    step = 1 - lab_dino.MOMENTUM
    for name, value in pretraining.teacher.named_parameters():
        assert torch.allclose(value - before[name], torch.full_like(value, step), atol=1e-5)
    assert not any(parameter.requires_grad for parameter in pretraining.teacher.parameters())


def test_distillation_is_the_cross_entropy_to_the_other_view():
    pretraining = lab_dino.SelfDistillation(lab_dino.model(0)).eval()
    data = lab_dino.Pictures(0, 3)
    batch = data.collate([data[i] for i in range(3)])
    with torch.no_grad():
        loss = pretraining(**batch)["loss"]
        outputs = lab_dino._prototypes(pretraining.student, batch["pixel_values"])  # the teacher is its copy yet
    expected = 0.0
    for i, j in [(0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2)]:
        told = torch.softmax(outputs[j] / lab_dino.TEACHER, -1)
        expected -= (told * torch.log_softmax(outputs[i] / lab_dino.STUDENT, -1)).sum() / 6
    assert torch.allclose(loss, expected, atol=1e-4)
