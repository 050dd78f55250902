"""The lab's training: packed turns are single turns, a killed training ends as an uninterrupted one, folders load plainly."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from spatialprobes import lab, lab_cards, lab_models, lab_qwen, lab_recipes, lab_shapeworld, lab_stages
from spatialprobes.examples import Example
from spatialprobes.families.llava import Llava
from spatialprobes.lab_batches import IGNORED, MIX, PREFIX, TextData, TowerData, TurnData, answerable
from spatialprobes.loading import Source
from spatialprobes.train import EachSteps, MuonAdamW, fit, muon_adamw, warmup_stable_decay
from spatialprobes.vlm import VLM
from spatialprobes.worlds import shapeworld
from spatialprobes.worlds.lab import scene
from spatialprobes.worlds.lab_language import VOCABULARY, caption, ids, parse_caption
from spatialprobes.worlds.lab_questions import GROUPS, ask, examples


@pytest.fixture(scope="module")
def model():
    return lab_models.llava(0).eval()


def test_packed_turns_equal_single_turn_prompts(model):
    """Each turn of a packed row gives the logits it would give alone, with plain positions and a plain causal mask."""
    data = TurnData(3, 4, MIX, turns=5)
    items = [data[i] for i in range(4)]
    batch = data.collate(items)
    with torch.no_grad():
        packed = model(**batch).logits
        for row, (_, turns) in enumerate(items):
            at = len(PREFIX)
            for turn in turns:
                tokens = turn.question + turn.answer
                alone = torch.tensor([PREFIX + tokens])
                pixels = batch["pixel_values"][row : row + 1]
                single = model(input_ids=alone, pixel_values=pixels, attention_mask=torch.ones_like(alone)).logits[
                    0, len(PREFIX) :
                ]
                assert torch.allclose(packed[row, at : at + len(tokens)], single, atol=1e-5)
                assert batch["labels"][row, at : at + len(tokens)].tolist() == [IGNORED] * len(turn.question) + turn.answer
                at += len(tokens)
            assert (batch["labels"][row, at:] == IGNORED).all()


def test_training_sees_the_tensors_that_the_processor_makes(model):
    """The numpy path of training and the processor with its chat template agree on every token and pixel."""
    processor = lab_models.processor()
    for example in examples(2, 8):
        message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]
        prompt = processor.apply_chat_template(message, add_generation_prompt=True)
        made = processor(images=example.image(), text=prompt, return_tensors="pt")
        assert made["input_ids"][0].tolist() == [*PREFIX, *ids(example.question), ids("assistant:")[0]]
        pixels = torch.from_numpy(np.asarray(example.image()).copy()).permute(2, 0, 1) / 127.5 - 1
        assert torch.allclose(made["pixel_values"][0], pixels, atol=1e-5)


def test_chat_template_writes_system_and_turns():
    words = lab_models.tokenizer()

    def render(messages):
        return words.apply_chat_template(messages, tokenize=False, add_generation_prompt=messages[-1]["role"] == "user")

    ask_it = {"role": "user", "content": "is there a red circle ?"}
    system = words.init_kwargs["system_prompt"]
    assert render([ask_it]) == f"<s> {system} user: is there a red circle ? assistant:"
    assert render([{"role": "system", "content": ""}, ask_it]) == "<s> user: is there a red circle ? assistant:"
    assert render([{"role": "system", "content": "look"}, ask_it]).startswith("<s> look user:")
    said = {"role": "assistant", "content": "yes"}
    assert render([ask_it, said]).endswith("assistant: yes </s>")
    assert words("What COLOR is the circle?")["input_ids"] == ids("what color is the circle ?")
    assert [words.convert_ids_to_tokens(i) for i in range(len(VOCABULARY))] == list(VOCABULARY)


@pytest.mark.parametrize("make", [TowerData, TextData, lambda seed, count: TurnData(seed, count, MIX)])
def test_item_i_is_always_the_same(make):
    a, b, other = make(1, 50), make(1, 10), make(2, 50)
    for i in (0, 7):
        first, again, another = (repr([np.asarray(x, object).tolist() for x in d[i]]) for d in (a, b, other))
        assert first == again != another


def test_mix_is_what_is_asked():
    data = TurnData(0, 1500, MIX, turns=12)
    groups = [turn.group for i in range(len(data)) for turn in data[i][1]]
    assert sum(MIX.values()) == pytest.approx(1)
    assert set(MIX) == set(GROUPS)
    for group, share in MIX.items():
        assert groups.count(group) / len(groups) == pytest.approx(share, abs=0.025)


def test_text_questions_can_be_answered_from_the_caption():
    """An independent reader of the caption alone, clause by clause, agrees with every relation that is asked."""
    rng, asked = np.random.default_rng(0), 0
    for i in range(300):
        shown = scene(4, i)
        words = caption(shown, rng)
        question = ask(shown, "relation.horizontal", rng)
        if question is None or not answerable(question, words, shown):
            continue
        asked += 1
        stated = {(c.subject, c.reference): c.relation.split()[0] for c in parse_caption(words)}
        said = {"left": "right", "right": "left"}
        both = stated | {(b, a): said.get(r, r) for (a, b), r in stated.items()}
        key = next(k for k in both if _means(question.subject, k[0]) and _means(question.reference, k[1]))
        assert both[key] == question.answer
    assert asked > 50


def _means(words, name):
    return set(words.split()) - {"one"} <= set(name.split())


def test_optimiser_is_muon_on_matrices_and_adamw_on_the_rest(model):
    torch.manual_seed(0)
    small = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    twin = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    twin.load_state_dict(small.state_dict())
    ours = muon_adamw(small, 1e-3, 2e-3)
    muon = torch.optim.Muon([twin[1].weight], lr=2e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in twin.parameters() if p is not twin[1].weight]
    adamw = torch.optim.AdamW(rest, lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98))
    for _ in range(3):
        for net, optimisers in ((small, [ours]), (twin, [muon, adamw])):
            net(torch.arange(7)).pow(2).sum().backward()
            for optimiser in optimisers:
                optimiser.step()
                optimiser.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(small.parameters(), twin.parameters(), strict=True))
    muon_names = {id(p) for p in ours.parts[0].param_groups[0]["params"]} if isinstance(ours, MuonAdamW) else set()
    assert muon_names == {id(small[1].weight)}
    chosen = muon_adamw(model, 1e-3, 2e-3)
    heads = {id(model.lm_head.weight), id(model.get_input_embeddings().weight)}
    assert not heads & {id(p) for p in chosen.parts[0].param_groups[0]["params"]}
    held = sorted(id(p) for p in chosen.state) + sorted(id(p) for g in chosen.param_groups for p in g["params"])
    assert held == sorted(id(p) for p in model.parameters())


def test_learning_rate_warms_up_stays_and_decays_to_zero():
    factor = warmup_stable_decay(100, 10, 0.3)
    assert [factor(0), factor(9), factor(50), factor(70)] == pytest.approx([0.1, 1, 1, 1])
    assert factor(85) == pytest.approx(0.5)
    assert factor(100) == 0


class Killed(Exception):
    pass


def test_a_killed_training_ends_as_an_uninterrupted_one(tmp_path):
    data = TurnData(5, 8 * 2, MIX, turns=3)

    def train(folder, die_at=None):
        def act(step, _):
            if step == die_at:
                raise Killed

        model = lab_models.llava(1)
        model.model.vision_tower.requires_grad_(False)
        options = {"batch_size": 2, "lr": 1e-3, "muon_lr": 2e-3, "save_steps": 3, "warmup": 2}
        return fit(model, data, data.collate, folder, **options, callbacks=[EachSteps(1, act)])

    whole = train(tmp_path / "whole").state_dict()
    with pytest.raises(Killed):
        train(tmp_path / "killed", die_at=5)  # step 3 is on the disk, 4 and 5 are lost
    resumed = train(tmp_path / "killed").state_dict()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    finished = train(tmp_path / "killed", die_at=0).state_dict()  # nothing is left to do, so nothing dies
    assert all(torch.equal(whole[k], finished[k]) for k in whole)
    start = lab_models.llava(1).state_dict()
    assert not torch.equal(whole["lm_head.weight"], start["lm_head.weight"])
    tower = [k for k in whole if "vision_tower" in k]
    assert tower and all(torch.equal(whole[k], start[k]) for k in tower)


def test_models_that_share_a_tower_load_plainly(tmp_path):
    first, second = lab_models.llava(0), lab_models.llava(0)
    nn.init.normal_(second.lm_head.weight)
    for name, one in (("a", first), ("b", second)):
        lab_models.save(one, tmp_path / "lab" / name, lab_models.processor(), {"card.json": b"{}"}, lab.SHARED)
    shared = tmp_path / "lab" / "shared" / "tower.safetensors"
    assert shared.is_file()
    for name, one in (("a", first), ("b", second)):
        loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "lab" / name, dtype=torch.float32)
        for key, value in one.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value.half().float()), key
        assert AutoProcessor.from_pretrained(tmp_path / "lab" / name).tokenizer.padding_side == "left"
    tower_bytes = sum(p.numel() * 2 for p in first.model.vision_tower.parameters())
    assert shared.stat().st_size >= tower_bytes
    assert (tmp_path / "lab" / "b" / lab_models.UNSHARED).stat().st_size < 2.2 * sum(
        p.numel() for n, p in second.named_parameters() if "vision_tower" not in n
    )
    other = lab_models.llava(9)
    with pytest.raises(ValueError, match="holds other weights than this model's"):
        lab_models.save(other, tmp_path / "lab" / "c", lab_models.processor(), {}, lab.SHARED)
    assert not (tmp_path / "lab" / "c").exists()


def test_wilson_equals_scipy():
    from scipy.stats import binomtest

    for right, n in ((0, 10), (7, 9), (480, 500), (500, 500)):
        interval = binomtest(right, n).proportion_ci(0.95, "wilson")
        assert lab_cards.wilson(right, n) == pytest.approx((interval.low, interval.high))


def test_turn_accuracy_counts_whole_answers(model):
    """Against a slow count: one turn at a time, greedy token by token under teacher forcing."""
    data = TurnData(6, 6, dict.fromkeys(("2ds.shape_color_abs", "semantic.shape"), 1.0), turns=4)
    expected = {}
    with torch.no_grad():
        for i in range(len(data)):
            image, turns = data[i]
            for turn in turns:
                row = torch.tensor([PREFIX + turn.question + turn.answer])
                pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
                logits = model(input_ids=row, pixel_values=pixels, attention_mask=torch.ones_like(row)).logits[0]
                guesses = logits[-len(turn.answer) - 1 : -1].argmax(-1).tolist()
                right, n = expected.get(turn.group, (0, 0))
                expected[turn.group] = right + (guesses == turn.answer), n + 1
    assert lab_cards.turn_accuracy(model, data, batch_size=4) == dict(sorted(expected.items()))


def test_minutes_add_up_over_runs(tmp_path):
    watch = lab_cards.Stopwatch(tmp_path / "minutes.json")
    watch.begun -= 120
    watch.keep()
    again = lab_cards.Stopwatch(tmp_path / "minutes.json")
    again.begun -= 60
    assert again.minutes == pytest.approx(3, abs=0.05)


def test_curve_goes_on_after_a_kill(tmp_path, model):
    curve = lab_cards.Curve(tmp_path / "curve.json", batch_size=8, data=lab_stages.every_group(4, (0.0, 0.5)))
    for step in (0, 5, 10, 5):  # killed at 10, gone on from 5
        curve(step, model)
    assert [p["step"] for p in curve.read()] == [0, 5]
    assert [p["samples"] for p in json.loads((tmp_path / "curve.json").read_text())] == [0, 40]


def test_the_zoo_is_trained_from_nothing_and_only_what_is_missing(tmp_path, monkeypatch):
    for name, few in {"retrieval": 100, "patches": 20, "text": 20, "model": 12, "scale": 8, "curve": 8}.items():
        monkeypatch.setitem(lab_stages.SCENES, name, few)
    monkeypatch.setattr(lab, "root", lambda: tmp_path)
    short = lab_recipes.Pass(items=4, batch_size=2, lr=1e-3, muon_lr=2e-3)
    recipe = lab_recipes.Recipe(
        tower=lab_recipes.Pass(items=52, batch_size=8, lr=1e-3, muon_lr=2e-3), text=short, stage1=short,
        stage2=lab_recipes.Pass(items=12, batch_size=2, lr=1e-3, muon_lr=2e-3), scales=(0, 1),
    )  # fmt: skip
    names = ("lab-llava", "lab-llava-perspective-1", "lab-qwen2.5-vl")
    folders = lab.train_zoo(names, tmp_path / "zoo", recipe)
    assert [folder.name for folder in folders] == ["lab-clip", "lab-text", *names]
    made = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "zoo").glob("*/card.json")}
    assert set(made) == {folder.name for folder in folders} | {"lab-llava-vanilla", "lab-qwen2.5-vl-vanilla"}
    for name, card in made.items():
        assert card["recipe"] == json.loads(json.dumps(lab_recipes.recipe_of(name, recipe)))
    assert [made[name]["samples"] for name in (*names, "lab-llava-vanilla")] == [12, 8, 10, 0]
    assert made["lab-llava-perspective-1"]["recipe"]["perspective"] == [1.0]
    assert made["lab-qwen2.5-vl"]["tower"]["retrieval among 100"]["n"] == 100
    assert not any(
        (tmp_path / "data" / "training" / folder.name).exists() for folder in folders
    )  # done, so nothing to go on with
    llava, world, qwen = [AutoModelForImageTextToText.from_pretrained(folder).state_dict() for folder in folders[2:]]
    assert not torch.equal(llava["lm_head.weight"], world["lm_head.weight"])
    towers = [{k: v for k, v in one.items() if "vision_tower" in k} for one in (llava, world)]
    assert towers[0] and all(torch.equal(value, towers[1][name]) for name, value in towers[0].items())
    assert not any("vision_tower" in name for name in qwen)
    before = {folder: (folder / "card.json").stat().st_mtime_ns for folder in folders}
    (tmp_path / "zoo" / "lab-llava" / "card.json").unlink()
    lab.train_zoo(("lab-llava",), tmp_path / "zoo", recipe)
    assert (folders[2] / "card.json").is_file()
    assert all((folder / "card.json").stat().st_mtime_ns == before[folder] for folder in folders if folder != folders[2])
    with pytest.raises(ValueError, match="lab-lava"):
        lab.train_zoo(("lab-lava",), tmp_path / "zoo", recipe)


def test_shapeworld_llava_is_trained_on_its_own_pictures(tmp_path, monkeypatch):
    for name, few in {"patches": 100, "model": 6, "curve": 6}.items():
        monkeypatch.setitem(lab_stages.SCENES, name, few)
    short = lab_recipes.Pass(items=4, batch_size=2, lr=1e-3, muon_lr=2e-3)
    recipe = lab_recipes.ShapeworldRecipe(tower=short, stage2=short, turns=3, easy=2)
    lab_models.save(lab_models.language_model(0), tmp_path / "zoo" / "lab-text", lab_models.tokenizer())
    lab.train_shapeworld(recipe, tmp_path / "zoo", tmp_path / "work")
    vlm = VLM.load(str(tmp_path / "zoo" / "lab-llava-shapeworld"))
    card = json.loads((tmp_path / "zoo" / "lab-llava-shapeworld" / "card.json").read_text())
    assert card["ancestors"] == ["lab-text"] and card["samples"] == 4 and set(card["bars"]) < set(card["accuracy"])
    assert card["tower"]["retrieval among 100"]["n"] == 100
    start = lab_models.llava(0, 96, 12).state_dict()
    tower = [name for name, value in vlm.model.state_dict().items() if "vision_tower" in name and value.is_floating_point()]
    assert tower and any(not torch.allclose(vlm.model.state_dict()[n].float(), start[n], atol=1e-3) for n in tower)
    with pytest.raises(ValueError, match="no model of this zoo"):
        lab_recipes.recipe_of("lab-lava")
    assert lab_recipes.recipe_of("lab-llava-shapeworld") == lab_recipes.ShapeworldRecipe().of()


@pytest.mark.parametrize("group", lab_recipes.SHAPEWORLD_MIX)
def test_shapeworld_llava_trains_on_what_its_processor_makes(group):
    """Logits of a packed batch against single prompts by the processor, from the picture at its own 100 pixels."""
    data = lab_shapeworld.ShapeTurns(3, 40, {group: 1.0}, turns=3)
    two = [i for i in range(40) if len({e.colour for e in shapeworld.world(3, i).entities}) == 2][:2]  # colours: all can be asked
    model = lab_models.llava(0, 96, 12).eval()
    vlm = VLM(model, lab_models.processor(96, 12), Llava(), Source("toy", "hub", None, None), "native", None)
    for index in two:
        packed = data.collate([data[index]])
        labels = packed.pop("labels")[0]
        with torch.no_grad():
            logits = model(**packed).logits[0]
        firsts = [i for i in range(1, len(labels)) if labels[i] != IGNORED and labels[i - 1] == IGNORED]
        shown = shapeworld.picture(shapeworld.world(3, index))
        for turn, first in zip(data[index][1], firsts, strict=True):
            words = [VOCABULARY[token] for token in turn.question]
            said = words[-1] != "assistant:"  # a caption is gone on with where it breaks off
            batch = vlm.encode([Example("e", shown, " ".join(words if said else words[:-1]), cluster="c")])
            single = vlm.forward(batch).logits[0, -2 if said else -1]
            assert torch.allclose(single, logits[first - 1], atol=1e-4)


def test_a_world_about_which_nothing_can_be_asked_is_named_rather_than_asked_for_ever():
    data = lab_shapeworld.ShapeTurns(3, 40, {"semantic.shape": 1.0})
    alike = next(i for i in range(40) if len({e.colour for e in shapeworld.world(3, i).entities}) == 1)
    with pytest.raises(ValueError, match=rf"world {alike} of stream 3: .*semantic.shape"):
        data[alike]


def test_shapeworld_patches_show_what_covers_them():
    """Labels against the picture's own colours: a labelled patch holds the entity's colour, one without shows next to nothing."""
    for index in range(20):
        world = shapeworld.world(11, index)
        labels = lab_shapeworld.patch_labels(world).reshape(8, 8)
        size = shapeworld.SIZE
        for row, column in np.ndindex(8, 8):
            cell = shapeworld.render(world)[
                -(-row * size // 8) : -(-(row + 1) * size // 8), -(-column * size // 8) : -(-(column + 1) * size // 8)
            ]
            lit = (cell.max(-1) > 60).mean()
            if labels[row, column]:
                colour, shape = divmod(labels[row, column] - 1, len(shapeworld.SHAPES))
                name = f"{list(shapeworld.COLOURS)[colour]} {shapeworld.SHAPES[shape]}"
                entity = next(e for e in world.entities if e.name == name)
                near = (np.abs(cell / 255 - entity.rgb).max(-1) < 0.02).mean()
                assert near > 0.02 and lit > 0.02
            else:
                assert lit < 0.2


@pytest.mark.parametrize("untrained", [lab_qwen.model_2_5, lab_qwen.model_2])
def test_lab_qwen_trains_on_what_its_processor_makes(tmp_path, untrained):
    """Pictures, tokens and positions of a packed batch against the family's own processor and position rule; logits too."""
    lab_models.save(untrained(0), tmp_path / "qwen", lab_qwen.words())
    vlm = VLM.load(str(tmp_path / "qwen"), dtype="float32")
    data = lab_qwen.QwenTurns(3, 2, {"relation.vertical": 1.0, "semantic.color": 1.0}, turns=3)
    for item in (data[0], data[1]):
        picture, turns = item
        packed = data.collate([item])
        labels = packed.pop("labels")[0]
        with torch.no_grad():
            logits = vlm.model(**packed).logits[0]
        firsts = [i for i in range(1, len(labels)) if labels[i] != IGNORED and labels[i - 1] == IGNORED]
        for turn, first in zip(turns, firsts, strict=True):
            question = " ".join(VOCABULARY[token] for token in turn.question[:-1])
            batch = vlm.encode([Example("e", Image.fromarray(picture), question, cluster="c")])
            assert torch.allclose(batch.inputs["pixel_values"].float(), packed["pixel_values"], atol=1e-6)
            at = slice(first - len(turn.question), first)
            assert torch.equal(batch.inputs["position_ids"][:, 0, -len(turn.question) :], packed["position_ids"][:, 0, at])
            single = vlm.forward(batch).logits[0, -1]
            assert torch.allclose(single, logits[first - 1], atol=1e-5)


@pytest.mark.parametrize("untrained", [lab_qwen.model_2_5, lab_qwen.model_2])
def test_qwen_tower_pass_reads_cells_in_raster_order(untrained):
    """A cell's output changes most where its pixels do, wherever the windows put it."""
    clip = lab_models.clip(0)
    pretraining = lab_qwen.TowerPretraining(untrained(0).model.visual, clip).eval()
    pictures = torch.zeros(2, 3, 48, 48)
    with torch.no_grad():
        plain = pretraining.cells(pictures)
        for cell in (0, 7, 20, 35):
            row, column = divmod(cell, 6)
            changed = pictures.clone()
            changed[1, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 1.0
            moved = (pretraining.cells(changed) - plain).norm(dim=-1)
            assert moved[1].argmax() == cell and moved[0].max() < 1e-5
