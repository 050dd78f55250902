"""What holds for every family: encoding as its own processor does it, positions, spans, and where the grid is in the picture."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SYSTEM
from tiny_families import mixed, save_qwen3_5

from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.families import FAMILIES, NATIVE, family_of
from spatialprobes.vlm import VLM

TOLERANCE = 1e-5
M_ROPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_5")


@pytest.fixture(scope="module")
def vlm(tiny_family):
    return VLM.load(str(tiny_family))


def own(vlm, one, system=None, answer=None):
    """The processor's own encoding."""
    words = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    content = [{"type": "image", "image": one.image}, {"type": "text", "text": one.question}]
    words += [{"role": "user", "content": content}]
    words += [] if answer is None else [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": answer is None}
    return vlm.processor.apply_chat_template(words, **options)


# Encoding


@pytest.mark.parametrize("system", ["default", None, "look at the cross"])
def test_encode_equals_the_processors_own_encoding(vlm, system):
    for one in mixed(3):
        encoded = own(vlm, one, system={"default": None, None: ""}.get(system, system))
        batch = vlm.encode([one], system=system)
        for name, value in encoded.items():
            assert torch.equal(batch.inputs[name].to(value.dtype), value), name
        assert set(batch.inputs) == {*encoded, "position_ids"}


def test_encode_with_an_answer_equals_the_processors_own(vlm):
    one = mixed(2)[1]
    assert torch.equal(vlm.encode([one], answers=True).input_ids, own(vlm, one, answer=one.answer)["input_ids"])
    assert vlm.default_system == SYSTEM


def test_qwen3_5_is_asked_to_answer_at_once(tiny_qwen3_5):
    vlm = VLM.load(str(tiny_qwen3_5))
    assert vlm.encode(mixed(1)).spans[0].text.endswith("assistant: <think> </think>")
    words = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]}]
    thinking = vlm.processor.apply_chat_template(words, add_generation_prompt=True, enable_thinking=True)
    assert thinking.endswith("assistant: <think>")


def test_a_word_right_behind_the_picture_is_parted_from_it_as_the_processor_does(tiny_idefics2, monkeypatch):
    """As in the published template of Idefics2, "User:<image>What ...": the tokenizer is given the same text, picture aside."""
    vlm = VLM.load(str(tiny_idefics2))
    vlm.processor.chat_template = vlm.processor.chat_template.replace("'<image> '", "'<image>'")
    given = []
    plain = type(vlm.tokenizer).__call__
    monkeypatch.setattr(type(vlm.tokenizer), "__call__", lambda self, text, **kw: given.append(text) or plain(self, text, **kw))
    one = mixed(1)[0]
    own(vlm, one)
    (theirs,) = given.pop()
    picture = "<fake_token_around_image>" + "<image>" * 10 + "<fake_token_around_image>"
    assert f"{picture} {one.question}" in theirs
    assert vlm.encode([one]).spans[0].text.replace("<image>", picture) == theirs


def test_logits_equal_the_models_own_for_the_processors_own_encoding(vlm):
    """Positions and types of tokens included: the model makes its own here."""
    for one in mixed(3):
        with torch.inference_mode():
            expected = vlm.model(**own(vlm, one)).logits
        assert torch.equal(vlm.forward(vlm.encode([one])).logits, expected)


def test_positions_are_those_of_the_rule(vlm):
    """Text counts on; a picture's tokens share a time and count rows and columns from it; text goes on after the longer side."""
    batch = vlm.encode(mixed())
    given = batch.inputs["position_ids"]
    for row, spans in enumerate(batch.spans):
        expected, now, vision = [], 0, spans.vision.tolist()
        for index in range(spans.start, spans.length):
            if vlm.family.model_type not in M_ROPE or index not in vision:
                expected.append((now,) * 3)
                now += 1
                continue
            place = vision.index(index)
            rows, columns = spans.grid
            expected.append((now, now + place // columns, now + place % columns))
            if place == rows * columns - 1:
                now += max(rows, columns)
        expected = [(0, 0, 0)] * spans.start + expected
        found = given[:, row] if vlm.family.model_type in M_ROPE else given[row].expand(3, -1)
        assert found.T.tolist() == [list(one) for one in expected]
    if vlm.family.model_type in M_ROPE:
        thw = {name: batch.inputs[name] for name in ("input_ids", "attention_mask", "image_grid_thw", "mm_token_type_ids")}
        assert torch.equal(given, vlm.model.model.get_rope_index(**thw)[0])


def test_what_a_model_remembers_of_an_earlier_call_changes_nothing(vlm):
    batch = vlm.encode(mixed(4))
    plain, tokens = vlm.forward(batch).logits, vlm.generate(batch)
    if vlm.family.model_type in M_ROPE:
        vlm.model.model.rope_deltas = torch.tensor([[77]])
    assert torch.equal(vlm.forward(batch).logits, plain)
    assert torch.equal(vlm.generate(batch), tokens)


def test_a_batch_of_mixed_sizes_equals_one_by_one(vlm):
    asked = mixed()
    batch = vlm.encode(asked)
    assert len({spans.start for spans in batch.spans}) > 2
    together = vlm.forward(batch).logits[:, -1]
    for row, one in zip(together, asked, strict=True):
        assert (row - vlm.forward(vlm.encode([one])).logits[0, -1]).abs().max() < TOLERANCE
    one_by_one = [vlm.vision_features([one])[0] for one in asked]
    for feature, alone in zip(vlm.vision_features(asked), one_by_one, strict=True):
        assert (feature - alone).abs().max() < TOLERANCE


def test_vision_features_are_what_enters_the_language_model(vlm):
    asked = mixed()
    batch = vlm.encode(asked)
    seen = {}
    hook = vlm.family.decoder(vlm.model).register_forward_pre_hook(lambda m, a, kw: seen.update(kw), with_kwargs=True)
    vlm.forward(batch)
    hook.remove()
    for feature, row, spans in zip(vlm.vision_features(asked, batch_size=4), seen["inputs_embeds"], batch.spans, strict=True):
        assert torch.allclose(feature, row[spans.vision], atol=TOLERANCE)
        assert feature.std(0).mean() > 1e-2  # tokens differ, so that a wrong order would show
    text = torch.cat([spans.user for spans in batch.spans[:1]])
    assert torch.equal(seen["inputs_embeds"][0, text], vlm.text_embeddings()[batch.input_ids[0, text]])


# Spans


@pytest.mark.parametrize("answers", [False, True])
def test_parts_hold_every_real_token_once_and_are_what_they_should_be(vlm, answers):
    asked = mixed()
    batch = vlm.encode(asked, answers=answers)
    for row, (spans, one) in enumerate(zip(batch.spans, asked, strict=True)):
        ids = batch.input_ids[row]
        together = torch.cat(list(spans.parts().values())).sort().values
        assert torch.equal(together, batch.attention_mask[row].nonzero().flatten())
        assert torch.equal(spans.vision, (ids == vlm.model.config.image_token_id).nonzero().flatten())
        assert vlm.tokenizer.decode(ids[spans.user]).strip() == one.question
        assert vlm.tokenizer.decode(ids[spans.system]).strip() == SYSTEM
        assert vlm.tokenizer.decode(ids[spans.answer]).strip() == (one.answer if answers else "")
        assert ids[spans.bos].tolist() == ([vlm.tokenizer.bos_token_id] if vlm.tokenizer.bos_token else [])
        for word in ("is", "the"):
            assert vlm.tokenizer.decode(ids[spans.word(word)]).strip() == word
        cells = 10 if spans.grid is None else spans.grid[0] * spans.grid[1]
        assert len(spans.vision) == cells


def test_grids_are_those_of_the_resized_picture(vlm):
    grids = [spans.grid for spans in vlm.encode(mixed(3)).spans]
    expected = {"llava": [(6, 6)] * 3, "idefics2": [None] * 3}.get(vlm.family.model_type, [(6, 6), (5, 9), (8, 5)])
    assert grids == expected
    if grids[0] is None:
        with pytest.raises(ValueError, match="have no grid"):
            vlm.encode(mixed(1)).spans[0].cell(0.5, 0.5)


@pytest.mark.parametrize("how", ["native", "pad", "crop", "squash"])
def test_a_painted_cell_changes_most_the_token_in_its_place(vlm, how):
    """Proof of the grid from outside: pixels in, features out, and no reshape of ours between. Latents: the tower's own grid."""
    fitted = VLM(vlm.model, vlm.processor, vlm.family, vlm.source, how, None)
    width, height = 72, 40
    shown = np.random.default_rng(0).integers(0, 256, (8, height, width, 3), dtype=np.uint8)

    def tokens(pictures):
        asked = [Example(str(i), Image.fromarray(one), "what ?") for i, one in enumerate(pictures)]
        with capture(fitted, connector="pre_norm") as got:
            features = fitted.vision_features(asked)
        spans = fitted.encode(asked[:1]).spans[0]
        return spans, spans.grid or got.tower.grids[0], torch.stack(features if spans.grid else got.connector_input)

    spans, (rows, columns), before = tokens(shown)
    (wide, high), (left, top) = spans.frame.scale, spans.frame.shift
    cells = [(0, 0), (1, 3), (2, 1), (2, columns - 1), (rows - 1, 2), (rows - 1, columns - 1), (rows // 2, 2)]
    painted_cells = 0
    for row, column in cells:
        x = [((column + part) / columns - left) / wide * width for part in (0.1, 0.9)]
        y = [((row + part) / rows - top) / high * height for part in (0.1, 0.9)]
        if min(x[0], y[0]) < 0 or x[1] > width or y[1] > height:
            continue  # in the padding
        painted = shown.copy()
        painted[:, round(y[0]) : round(y[1]), round(x[0]) : round(x[1])] = (255, 0, 0)
        change = (tokens(painted)[2] - before).norm(dim=-1).mean(0)
        assert divmod(int(change.argmax()), columns) == (row, column)
        if spans.grid:
            assert spans.cell(sum(x) / 2 / width, sum(y) / 2 / height) == (row, column)
        painted_cells += 1
    assert painted_cells >= 2


# The families themselves


def test_folders_as_they_were_published_load_alike(tiny_qwen2_vl, tmp_path):
    """Chat template in a file of its own kind, bounds of the picture's size as pixels, token ids in a flat config."""
    folder = shutil.copytree(tiny_qwen2_vl, tmp_path / "published")
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    images = json.loads((folder / "preprocessor_config.json").read_text())
    size = images.pop("size")
    images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"], "processor_class": "Qwen2VLProcessor"}
    images["image_processor_type"] = "Qwen2VLImageProcessor"
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    config = json.loads((folder / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text |= {"rope_theta": rope["rope_theta"], "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]}}
    (folder / "config.json").write_text(json.dumps({**text, **config}))
    old, new = VLM.load(str(folder)), VLM.load(str(tiny_qwen2_vl))
    batches = [vlm.encode(mixed(3)) for vlm in (old, new)]
    for name, value in batches[0].inputs.items():
        assert torch.equal(value, batches[1].inputs[name])
    assert torch.equal(old.forward(batches[0]).logits, new.forward(batches[1]).logits)


def test_qwen3_5_with_experts_is_read_as_qwen3_5_is(tmp_path):
    vlm = VLM.load(str(save_qwen3_5(tmp_path / "moe", experts=4)))
    batch = vlm.encode(mixed(3))
    with torch.inference_mode():
        expected = [vlm.model(**own(vlm, one)).logits[0, -1] for one in mixed(3)]
    with capture(vlm, attention_rows="all", tower_rows=0, connector="pre_norm") as got:
        logits = vlm.forward(batch).logits
    assert vlm.family.model_type == "qwen3_5_moe"
    assert list(got.rows) == [1, 3]
    assert [len(one) for one in got.connector_output] == [36, 45, 40]
    assert (logits[:, -1] - torch.stack(expected)).abs().max() < TOLERANCE


def test_every_family_is_known_by_its_name_and_leaves_what_is_measured_whole(vlm):
    assert len(FAMILIES) == len(NATIVE)
    assert type(family_of(vlm.model.config.model_type)) is type(vlm.family)
    names = [name for name, _ in vlm.model.named_modules()]
    for part in ("tower", "connector"):
        path = getattr(vlm.family, part)
        assert any(path == skip or path.startswith(f"{skip}.") for skip in vlm.family.quantise_skip)
    for skip in vlm.family.quantise_skip:  # a path, or the last part of one
        assert any(name == skip or name.endswith(f".{skip}") for name in names)
    assert "lm_head" in vlm.family.quantise_skip
