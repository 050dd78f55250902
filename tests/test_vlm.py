"""Loading, encoding and running a model: against transformers' own processor and forward, and against bad input."""

import dataclasses
import json
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import SYSTEM, examples, picture, save_llava

from spatialprobes.answers import generate, score
from spatialprobes.digests import weights_digest
from spatialprobes.families import Frame, family_of, fit_picture
from spatialprobes.loading import choose_dtype
from spatialprobes.probes import balance, grounding, hidden_norms, norms, permutation, positions, rope
from spatialprobes.vlm import VLM, ModelError, PromptError

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture(scope="module")
def grouped(tiny_llava_grouped):
    return VLM.load(str(tiny_llava_grouped))


def conversation(example, *, system=None, answer=None):
    messages = [] if system is None else [{"role": "system", "content": [{"type": "text", "text": system}]}]
    messages += [
        {"role": "user", "content": [{"type": "image", "image": example.image}, {"type": "text", "text": example.question}]}
    ]
    if answer is not None:
        messages += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    return messages


# Encoding


@pytest.mark.parametrize("system", [None, "", "look at the cross"])
def test_encode_equals_the_processors_own_encoding(vlm, system):
    one = examples(2)[1]
    own = vlm.processor.apply_chat_template(
        conversation(one, system=system or ""), tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    batch = vlm.encode([one], system=system)
    assert torch.equal(batch.input_ids, own["input_ids"])
    assert torch.equal(batch.inputs["pixel_values"], own["pixel_values"])


def test_encode_with_default_system_and_answer_equals_the_processors_own(vlm, grouped, tiny_llava_pieces):
    one = examples(1)[0]
    for model in (vlm, grouped, VLM.load(str(tiny_llava_pieces))):
        own = model.processor.apply_chat_template(
            conversation(one, answer=one.answer), tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert torch.equal(model.encode([one], answers=True).input_ids, own["input_ids"])


def test_the_templates_default_system_prompt_is_found(vlm, grouped):
    assert vlm.default_system == SYSTEM
    assert grouped.default_system == ""


@pytest.mark.parametrize("which", ["vlm", "grouped"])
def test_a_left_padded_batch_equals_one_by_one(which, request):
    model = request.getfixturevalue(which)
    asked = examples(6)
    together = model.forward(model.encode(asked)).logits[:, -1]
    assert len({spans.start for spans in model.encode(asked).spans}) > 1  # lengths differ, so there is padding to get wrong
    for row, one in zip(together, asked, strict=True):
        alone = model.forward(model.encode([one])).logits[0, -1]
        assert (row - alone).abs().max() < TOLERANCE


def test_repeated_pictures_are_processed_once_and_land_in_their_rows(vlm):
    asked = examples(6, pictures=2)
    pictures, which = vlm.pictures(asked)
    assert which == [0, 1, 0, 1, 0, 1]
    assert len(pictures.inputs["pixel_values"]) == 2
    batch = vlm.encode(asked)
    assert torch.equal(batch.inputs["pixel_values"][3], vlm.encode(asked[1:2]).inputs["pixel_values"][0])


def test_vision_features_are_what_enters_the_language_model(vlm):
    batch = vlm.encode(examples(4))
    seen = {}
    hook = vlm.family.decoder(vlm.model).register_forward_pre_hook(lambda m, a, kw: seen.update(kw), with_kwargs=True)
    vlm.forward(batch)
    hook.remove()
    features = vlm.vision_features(examples(4), batch_size=3)
    for row, spans in enumerate(batch.spans):
        assert torch.allclose(features[row], seen["inputs_embeds"][row, spans.vision], atol=TOLERANCE)
        assert torch.equal(seen["inputs_embeds"][row, spans.user], vlm.text_embeddings()[batch.input_ids[row, spans.user]])


def test_vision_features_need_no_question(vlm):
    blank = [dataclasses.replace(one, question=None) for one in examples(2)]
    assert [tuple(one.shape) for one in vlm.vision_features(blank)] == [(36, 64)] * 2


@pytest.mark.parametrize("question", [None, "", "  \n"])
def test_an_empty_question_names_the_example(vlm, question):
    asked = [*examples(1), dataclasses.replace(examples(2)[1], question=question)]
    with pytest.raises(PromptError, match="'e1' has an empty question"):
        vlm.encode(asked)


def test_a_too_long_prompt_names_the_example_and_the_limit(vlm):
    long = dataclasses.replace(examples(2)[1], question="red " * 100)
    with pytest.raises(PromptError, match=r"'e1'.*128 positions"):
        vlm.encode([examples(1)[0], long])
    near = dataclasses.replace(examples(1)[0], question="red " * 79)
    with pytest.raises(PromptError, match="20 new ones"):
        vlm.generate([near], max_new_tokens=20)


def test_other_unaskable_examples(vlm):
    one = examples(1)[0]
    with pytest.raises(PromptError, match="placeholder"):
        vlm.encode([dataclasses.replace(one, question="what is <image> ?")])
    with pytest.raises(PromptError, match="no answer to force"):
        vlm.encode([dataclasses.replace(one, answer=None)], answers=True)
    with pytest.raises(ValueError, match="no examples"):
        vlm.encode([])


# Running


def test_sampling_is_decided_by_its_seed(vlm):
    batch = vlm.encode(examples(4))
    draws = [vlm.generate(batch, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_generate_leaves_the_random_state_alone(vlm):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    vlm.generate(examples(1), temperature=1.0, seed=7)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("temperature", [-0.1, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(vlm, temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}"):
        vlm.generate(examples(1), temperature=temperature)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_nothing_is_refused_wherever_one_is_made(vlm, batch_size):
    asked = examples(2)
    calls = [
        lambda **options: grounding.measure(vlm, asked, {"e0": ["red"]}, **options),
        *(
            partial(takes, vlm, asked)
            for takes in (
                VLM.vision_features,
                generate,
                score,
                norms.measure,
                hidden_norms.measure,
                balance.measure,
                permutation.measure,
                positions.measure,
                rope.measure,
                rope.rerun,
                grounding.with_generated_answers,
            )
        ),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^batch_size={batch_size} must be at least 1$"):
            call(batch_size=batch_size)


# Loading


def test_a_loaded_model_is_frozen_in_evaluation_mode_with_sdpa(vlm):
    assert not vlm.model.training
    assert not any(parameter.requires_grad for parameter in vlm.model.parameters())
    assert vlm.facts()["attention"] == "sdpa"


def test_half_precision_files_run_in_single_precision_on_a_cpu(tmp_path):
    folder = save_llava(tmp_path / "half", dtype="float16")
    vlm = VLM.load(str(folder), device="cpu")
    stored = load_file(folder / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    assert vlm.dtype == torch.float32
    assert torch.equal(vlm.text_embeddings(), next(stored[name] for name in stored if "embed_tokens" in name).float())
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert VLM.load(str(folder), device="cpu").dtype == torch.float32  # also where only the files tell
    assert VLM.load(str(folder), device="cpu", dtype="bfloat16").dtype == torch.bfloat16


def test_dtype_choice():
    cpu = torch.device("cpu")
    assert choose_dtype("auto", torch.float16, cpu) == torch.float32
    assert choose_dtype("auto", torch.bfloat16, cpu) == torch.bfloat16
    assert choose_dtype("float16", torch.float32, cpu) == torch.float16
    assert choose_dtype("auto", None, cpu) is None


def test_lab_names_folders_and_the_weights_root(tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALPROBES_LAB", str(tmp_path / "lab"))
    monkeypatch.setenv("SPATIALPROBES_WEIGHTS", str(tmp_path / "weights"))
    shutil.copytree(tiny_llava, tmp_path / "lab" / "lab-llava")
    shutil.copytree(tiny_llava, tmp_path / "weights" / "some-org" / "some-model")
    lab, folder, root = (VLM.load(name) for name in ("lab-llava", str(tiny_llava), "some-org/some-model"))
    assert [one.facts()["source"] for one in (lab, folder, root)] == ["lab", "folder", "folder"]
    assert len({one.facts()["weights_sha256"] for one in (lab, folder, root)}) == 1
    with pytest.raises(ModelError, match=r"unknown model 'lab-lava'; nearest: lab-llava"):
        VLM.load("lab-lava")


def test_shared_weights_are_loaded_and_hashed(tiny_llava, tmp_path):
    from safetensors.torch import save_file

    folder = tmp_path / "lab" / "variant"
    shutil.copytree(tiny_llava, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tower = {name: tensor for name, tensor in weights.items() if "vision_tower" in name}
    own = {name: tensor for name, tensor in weights.items() if name not in tower}
    (tmp_path / "lab" / "shared").mkdir()
    save_file(tower, tmp_path / "lab" / "shared" / "tower.safetensors", {"format": "pt"})
    save_file(own, folder / "own.safetensors", {"format": "pt"})
    places = dict.fromkeys(tower, "../shared/tower.safetensors") | dict.fromkeys(own, "own.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    whole, parted = VLM.load(str(tiny_llava)), VLM.load(str(folder))
    batch = whole.encode(examples(2))
    assert torch.equal(whole.forward(batch).logits, parted.forward(batch).logits)
    before = weights_digest(folder)
    tower[next(iter(tower))][0] += 1
    save_file(tower, tmp_path / "lab" / "shared" / "tower.safetensors", {"format": "pt"})
    assert weights_digest(folder) != before


def test_models_that_cannot_be_loaded_say_why_in_one_line(tiny_llava, tmp_path, monkeypatch):
    monkeypatch.setenv("SPATIALPROBES_LAB", str(tmp_path / "no-lab"))
    (tmp_path / "empty").mkdir()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text('{"model_type": "bert"}')
    broken, cut, partial = (shutil.copytree(tiny_llava, tmp_path / name) for name in ("broken", "cut", "partial"))
    (broken / "config.json").write_text("{ not json")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    from safetensors.torch import save_file

    weights = load_file(partial / "model.safetensors")
    weights.pop(next(name for name in weights if name.endswith("multi_modal_projector.linear_1.weight")))
    save_file(weights, partial / "model.safetensors", {"format": "pt"})
    cases = {
        "lab-nothing": r"unknown model 'lab-nothing'.*no model yet",
        "some-org/some-model": r"HF_HUB_OFFLINE.*not in the cache.*SPATIALPROBES_WEIGHTS",
        str(tmp_path / "nowhere"): "does not exist",
        str(tmp_path / "empty"): "no config.json",
        str(foreign): r"family 'bert' is unknown.*llava",
        str(broken): "cannot be read",
        str(cut): "cannot be read",
        str(partial): r"lacks 1 of its weights.*multi_modal_projector",
    }
    for name, message in cases.items():
        with pytest.raises(ModelError, match=message) as caught:
            VLM.load(name)
        assert "\n" not in str(caught.value)


def test_bad_options_are_named(tiny_llava):
    with pytest.raises(ModelError, match="device 'tpu9'"):
        VLM.load(str(tiny_llava), device="tpu9")
    with pytest.raises(ModelError, match="quantize '2bit'"):
        VLM.load(str(tiny_llava), quantize="2bit")
    with pytest.raises(ValueError, match=r"image_fit 'stretch'.*squash"):
        VLM.load(str(tiny_llava), image_fit="stretch")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="sees no CUDA GPU"):
            VLM.load(str(tiny_llava), device="cuda")
    with pytest.raises(KeyError, match="nearest: llava"):
        family_of("lava")


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_quantisation_leaves_tower_connector_and_head_alone(tiny_llava, quantize):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    vlm = VLM.load(str(tiny_llava), quantize=quantize, device="cpu")
    quantised = {name for name, module in vlm.model.named_modules() if "bit" in type(module).__name__}
    assert len(quantised) == 2 * 7
    assert all(name.startswith("model.language_model.layers.") for name in quantised)
    whole = VLM.load(str(tiny_llava))
    batch = whole.encode(examples(2))
    near = torch.cosine_similarity(whole.forward(batch).logits[:, -1], vlm.forward(batch).logits[:, -1], dim=-1)
    assert bool((near > 0.9).all())


# Fitting pictures


@pytest.mark.parametrize("how", ["native", "pad", "crop", "squash"])
@pytest.mark.parametrize("size", [(96, 48), (48, 120), (48, 48)])
def test_a_marked_point_lands_in_the_cell_that_spans_say(vlm, how, size):
    """A red dot on grey, in the middle of the picture's kept part and off centre: the reddest patch is the cell of its point."""
    width, height = size
    point = (0.5 + 9.0 / width, 0.5 - 13.0 / height)
    array = np.full((height, width, 3), 128, np.uint8)
    x, y = int(point[0] * width), int(point[1] * height)
    array[max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2] = (255, 0, 0)
    fitted = VLM(vlm.model, vlm.processor, vlm.family, vlm.source, how, None)
    batch = fitted.encode([dataclasses.replace(examples(1)[0], image=Image.fromarray(array))])
    pixels = batch.inputs["pixel_values"][0]
    redness = (pixels[0] - pixels[1]).reshape(6, 8, 6, 8).mean((1, 3))
    assert batch.spans[0].cell(*point) == divmod(int(redness.argmax()), 6)


def test_points_cropped_away_have_no_cell(vlm):
    wide = dataclasses.replace(examples(1)[0], image=picture(size=(96, 48)))
    spans = vlm.encode([wide]).spans[0]
    assert spans.cell(0.1, 0.5) is None
    assert spans.cell(0.26, 0.5) == (3, 0)
    assert int(spans.cells((0.0, 0.0, 0.2, 1.0)).sum()) == 0


def test_frames_compose():
    first, second = Frame((2.0, 0.5), (-0.5, 0.25)), Frame((3.0, 1.0), (0.1, -0.2))
    assert first.then(second)(0.3, 0.7) == pytest.approx(second(*first(0.3, 0.7)))
    padded, frame = fit_picture(picture(size=(40, 20)), "pad")
    assert padded.size == (40, 40)
    assert frame(0.5, 0.0) == pytest.approx((0.5, 0.25))


# What may be imported


ALLOWED = "torch transformers accelerate numpy pandas pyarrow PIL safetensors tqdm"
LENT = "scipy yaml requests pydantic jaxtyping matplotlib sklearn typer statsmodels"  # what those may have brought along
BARE = f"""
import importlib.abc, sys
import torch, transformers, accelerate, numpy, pandas, pyarrow.parquet, PIL.Image, safetensors.torch, tqdm.auto
import transformers.integrations.sdpa_attention, transformers.masking_utils, transformers.image_utils
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig, DynamicCache, LlavaProcessor
allowed = {{"spatialprobes", *"{ALLOWED}".split(), *sys.stdlib_module_names}}
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in allowed:
            raise ModuleNotFoundError("blocked: " + name)
for name in [name for name in sys.modules if name.split(".")[0] in "{LENT}".split()]:
    del sys.modules[name]
sys.meta_path.insert(0, Block())
"""


def test_the_core_imports_only_what_a_bare_gpu_machine_has():
    script = (
        BARE
        + """
import spatialprobes.vlm, spatialprobes.families, spatialprobes.capture, spatialprobes.intervene, spatialprobes.answers
try:
    import scipy.stats  # the block itself must be noticed
except ModuleNotFoundError:
    print("fine")
"""
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr[-2000:]
