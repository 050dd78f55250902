"""A checkpoint that takes its base model's processor: the same inputs as the base's; a processor that does not fit is refused."""

import json
import shutil

import pytest
import torch
from tiny import examples, save_llava

from spatialprobes.digests import PROCESSOR_FILES
from spatialprobes.loading import ModelError
from spatialprobes.vlm import VLM


def bare(folder, target):
    """A copy of the model folder without any file of its processor."""
    shutil.copytree(folder, target)
    for name in PROCESSOR_FILES:
        for path in target.glob(name):
            path.unlink()
    assert not list(target.glob("*token*")) and not list(target.glob("*processor*"))
    return target


def line(name, **options):
    with pytest.raises(ModelError) as caught:
        VLM.load(str(name), device="cpu", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tuned(tmp_path):
    """Other weights than the base's, and no processor."""
    save_llava(tmp_path / "whole", seed=5)
    return bare(tmp_path / "whole", tmp_path / "tuned")


def same(a, b):
    assert a.inputs.keys() == b.inputs.keys()
    for name in a.inputs:
        assert torch.equal(a.inputs[name], b.inputs[name]), name


def test_a_checkpoint_without_a_processor_takes_its_bases(tiny_llava, tuned, tmp_path):
    vlm, base = VLM.load(str(tuned), processor=str(tiny_llava), device="cpu"), VLM.load(str(tiny_llava), device="cpu")
    whole = VLM.load(str(tmp_path / "whole"), device="cpu")
    batch = vlm.encode(examples(3))
    same(batch, base.encode(examples(3)))
    assert torch.equal(vlm.forward(batch).logits, whole.forward(batch).logits)  # its own weights
    assert not torch.equal(vlm.forward(batch).logits, base.forward(batch).logits)


def test_every_family_takes_a_bases_processor(tiny_family, tmp_path):
    base = VLM.load(str(tiny_family), device="cpu")
    vlm = VLM.load(str(bare(tiny_family, tmp_path / "tuned")), processor=str(tiny_family), device="cpu")
    same(vlm.encode(examples(2)), base.encode(examples(2)))


def test_without_one_the_line_says_what_would_do(tuned):
    assert "processor=<folder or hub id of the base model>" in line(tuned)


def test_an_empty_name_stands_for_none(tiny_llava):
    assert VLM.load(str(tiny_llava), processor="", device="cpu").source.base is None


def test_its_own_processor_gives_way_to_the_bases(tiny_llava, tmp_path):
    save_llava(tmp_path / "tuned", system="say what you see")
    vlm = VLM.load(str(tmp_path / "tuned"), processor=str(tiny_llava), device="cpu")
    assert vlm.default_system == VLM.load(str(tiny_llava), device="cpu").default_system != "say what you see"


# Provenance


def test_facts_say_whose_processor_it_is(tiny_llava, tuned):
    facts = VLM.load(str(tuned), processor=str(tiny_llava), device="cpu").facts()
    base = VLM.load(str(tiny_llava), device="cpu").facts()
    assert facts["processor"] == tiny_llava.name and "processor" not in base
    assert facts["processor_sha256"] == base["processor_sha256"]
    assert facts["weights_sha256"] != base["weights_sha256"]
    assert facts["model"] == "tuned"


def test_another_processor_is_another_fingerprint(tiny_llava, tuned, tmp_path):
    other = shutil.copytree(tiny_llava, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant:", "assistant: a"))
    first, second = (VLM.load(str(tuned), processor=str(one), device="cpu").facts() for one in (tiny_llava, other))
    assert first["processor_sha256"] != second["processor_sha256"]
    assert first["weights_sha256"] == second["weights_sha256"]


def test_a_base_on_the_hub_is_taken_from_the_cache_and_named_with_its_commit(tuned, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    store = tmp_path / "hub" / "models--org--base"
    (store / "refs").mkdir(parents=True)
    save_llava(store / "snapshots" / ("c" * 40))
    (store / "refs" / "main").write_text("c" * 40)
    facts = VLM.load(str(tuned), processor="org/base", device="cpu").facts()
    assert (facts["processor"], facts["processor_revision"]) == ("org/base", "c" * 40)
    assert "processor_sha256" not in facts


def test_a_lab_model_may_be_the_base(tuned, tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALPROBES_LAB", str(tmp_path / "lab"))
    shutil.copytree(tiny_llava, tmp_path / "lab" / "lab-base")
    assert VLM.load(str(tuned), processor="lab-base", device="cpu").facts()["processor"] == "lab-base"


# What does not fit


def test_a_base_of_another_family_is_refused_before_weights_are_read(tuned, tiny_qwen2_vl, monkeypatch):
    monkeypatch.setattr("spatialprobes.families.base.AutoModelForImageTextToText.from_pretrained", lambda *a, **k: pytest.fail())
    found = line(tuned, processor=str(tiny_qwen2_vl))
    assert "family 'llava'" in found and "'qwen2_vl'" in found and "fine-tuned from" in found


def test_a_vocabulary_larger_than_the_model_is_refused(tuned, tiny_llava_pieces):
    found = line(tuned, processor=str(tiny_llava_pieces))
    assert "does not fit it: its vocabulary has" in found and "embeddings" in found


def test_an_image_token_with_another_id_is_refused(tuned, tiny_llava):
    config = json.loads((tuned / "config.json").read_text())
    config["image_token_id"] = 7
    (tuned / "config.json").write_text(json.dumps(config))
    assert "the image token '<image>' has the id 4 in it, in the model's config.json 7" in line(tuned, processor=str(tiny_llava))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"patch_size": 16}, "it writes 9 image tokens for a picture of which the model makes 36"),
        ({"image_processor": {"crop_size": {"height": 64, "width": 64}}}, "a picture cannot be run"),
    ],
)
def test_a_processor_for_other_pictures_is_refused(tuned, tiny_llava, tmp_path, change, said):
    other = shutil.copytree(tiny_llava, tmp_path / "other")
    settings = json.loads((other / "processor_config.json").read_text())
    for name, value in change.items():
        settings[name] = settings[name] | value if isinstance(value, dict) else value
    (other / "processor_config.json").write_text(json.dumps(settings))
    assert said in line(tuned, processor=str(other))


@pytest.mark.parametrize(("name", "said"), [("no-such-model", "unknown model"), ("org/base", "not in the cache")])
def test_a_base_that_is_nowhere_is_named(tuned, name, said):
    found = line(tuned, processor=name)
    assert name in found and said in found


def test_a_base_without_a_processor_is_named(tuned, tiny_llava, tmp_path):
    assert "'base'" in line(tuned, processor=str(bare(tiny_llava, tmp_path / "base"))).replace(str(tmp_path) + "/", "")
