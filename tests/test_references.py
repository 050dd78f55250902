"""References: the class token, or the mean of the patches and of nothing else, of every kind of vision model that there is."""

import math

import numpy as np
import pytest
import torch
from tiny import picture
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ConvNextConfig,
    DINOv3ConvNextModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipModel,
    SwinConfig,
    SwinModel,
)

from spatialprobes.examples import Example
from spatialprobes.fingerprints import FingerprintError
from spatialprobes.loading import ModelError
from spatialprobes.probes.references import References, Tower, embed

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = SMALL | {"image_size": 48, "patch_size": 8}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
DINO = {key: value for key, value in VISION.items() if key != "intermediate_size"}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
MODELS = {  # model, class token, registers, patches
    "clip": (lambda: CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=16)), 1, 0, 36),
    "clip tower": (lambda: CLIPVisionModel(CLIPVisionConfig(**VISION)), 1, 0, 36),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**DINO)), 1, 0, 36),
    "dinov2 with registers": (
        lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=4)), 1, 4, 36,
    ),
    "dinov3": (lambda: DINOv3ViTModel(DINOv3ViTConfig(**VISION, num_register_tokens=4)), 1, 4, 36),
    "siglip": (lambda: SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)), 0, 0, 36),
    "deit": (lambda: DeiTModel(DeiTConfig(**VISION)), 1, 1, 36),  # its second is a token of the teacher's
    "swin": (
        lambda: SwinModel(SwinConfig(image_size=48, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=3)),
        0, 0, 36,
    ),
    "convnext": (lambda: ConvNextModel(ConvNextConfig(**STAGES, num_stages=2, patch_size=4)), 0, 0, 36),
    "dinov3 convnext": (lambda: DINOv3ConvNextModel(DINOv3ConvNextConfig(**STAGES)), 1, 0, 36),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each model, weights drawn far from nothing, with an image processor."""
    found = {}
    for name, (make, *_) in MODELS.items():
        found[name] = folder = tmp_path_factory.mktemp("towers") / name.replace(" ", "-")
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = make()
            for parameter in model.parameters():
                parameter.normal_(0, 0.3)
        model.save_pretrained(folder)
        size = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
        (CLIPImageProcessorPil if "clip" in name else BitImageProcessorPil)(**size).save_pretrained(folder)
    return found


def examples(n=5):
    return [Example(f"{i:05d}", lambda i=i: picture(i)) for i in range(n)]


@pytest.mark.parametrize("name", MODELS)
def test_the_class_token_and_the_mean_of_the_patches(folders, name):
    """By hand: the vision half's last hidden state, of which the first is the class, what follows it no patch."""
    _, classes, registers, patches = MODELS[name]
    source = str(folders[name])
    tower = Tower.load(source, device="cpu")
    shown = [one.image() for one in examples()]
    pixels = tower.processor(images=shown, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = tower.model(pixel_values=pixels).last_hidden_state
    hidden = (hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden).numpy()
    assert hidden.shape[1] == classes + registers + patches
    mean = embed(source, examples(), pool="mean", batch_size=2, device="cpu")
    assert mean.vectors == pytest.approx(hidden[:, classes + registers :].mean(1), abs=1e-4)
    assert mean.vectors.dtype == np.float32 and mean.keys == [one.id for one in examples()]
    assert (mean.model, mean.pool) == (folders[name].name, "mean") and np.ptp(mean.vectors, axis=0).max() > 0.01
    published = {
        pool: embed(source, examples(), pool=pool, definition="as_published", device="cpu").vectors for pool in ("cls", "mean")
    }
    assert published["cls"] == pytest.approx(hidden[:, 0], abs=1e-4)
    assert published["mean"] == pytest.approx(hidden[:, 1:].mean(1), abs=1e-4)
    same = np.allclose(published["mean"], mean.vectors, atol=1e-4)
    assert same == (classes == 1 and registers == 0)
    if classes:
        assert embed(source, examples(), device="cpu").vectors == pytest.approx(hidden[:, 0], abs=1e-4)
    else:
        with pytest.raises(ValueError, match="has no class token; pool='mean'"):
            embed(source, examples(), device="cpu")


def test_clips_vectors_are_neither_normed_nor_projected(folders):
    model = CLIPModel.from_pretrained(folders["clip"])
    tower = Tower.load(str(folders["clip"]), device="cpu")
    pixels = tower.processor(images=[picture(0)], return_tensors="pt")["pixel_values"]
    ours = embed(str(folders["clip"]), examples(1), device="cpu").vectors[0]
    with torch.no_grad():
        outputs = model.vision_model(pixel_values=pixels)
        normed = model.vision_model.post_layernorm(torch.from_numpy(ours)[None])
    assert ours.shape == (32,) and torch.allclose(normed, outputs.pooler_output, atol=1e-4)
    assert not np.allclose(ours, normed[0].numpy(), atol=1e-2)


def test_a_run_that_was_stopped_goes_on(folders, tmp_path, monkeypatch):
    source = str(folders["dinov2"])
    whole = embed(source, examples(7), batch_size=2, device="cpu")
    vectors, runs = Tower.vectors, []

    def stops(self, pictures, pool, definition):
        runs.append(len(pictures))
        if len(runs) == 3:
            raise KeyboardInterrupt
        return vectors(self, pictures, pool, definition)

    monkeypatch.setattr(Tower, "vectors", stops)
    options = {"batch_size": 2, "device": "cpu", "store": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        embed(source, examples(7), **options)
    resumed = embed(source, examples(7), **options)
    assert runs == [2, 2, 2, 2, 1] and resumed.vectors.tobytes() == whole.vectors.tobytes()
    again = embed(source, examples(7)[::-1], **options)
    assert len(runs) == 5 and np.array_equal(again.vectors, whole.vectors[::-1]) and again.keys == whole.keys[::-1]
    for changed in ({"pool": "mean"}, {"definition": "as_published"}, {"batch_size": 3}):
        with pytest.raises(FingerprintError, match=next(iter(changed))):
            embed(source, examples(7), **(options | changed))


def test_pictures_that_cannot_be_read_are_listed(folders, tmp_path):
    shown = [*examples(2), Example("gone", tmp_path / "gone.png")]
    found = embed(str(folders["dinov2"]), shown, device="cpu")
    assert found.keys == ["00000", "00001"] and [one.example for one in found.unreadable] == ["gone"]
    with pytest.raises(ValueError, match=r"gone\.png: no such file"):
        embed(str(folders["dinov2"]), shown, device="cpu", on_error="raise")
    only = embed(str(folders["dinov2"]), shown[2:], device="cpu")
    assert len(only) == 0 and len(only.unreadable) == 1


def test_vectors_by_key():
    found = References(["a", "b", "c"], np.arange(6, dtype=np.float32).reshape(3, 2), "m", "cls", {})
    assert found.of(["c", "a"]).tolist() == [[4, 5], [0, 1]]
    with pytest.raises(KeyError, match="m: no vector of 2 of 3 pictures, first 'x'"):
        found.of(["x", "a", "y"])


def test_what_is_refused(folders, tmp_path):
    source = str(folders["dinov2"])
    for options, message in (
        ({"pool": "max"}, "pool='max' is unknown; 'cls', 'mean'"),
        ({"definition": "mine"}, "definition='mine' is unknown"),
        ({"on_error": "skip"}, "on_error='skip'"),
        ({"batch_size": 0}, "batch_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            embed(source, examples(2), device="cpu", **options)
    with pytest.raises(ValueError, match="two examples have the id '00001'"):
        embed(source, [*examples(2), *examples(2)[1:]], device="cpu")
    with pytest.raises(ValueError, match="no examples"):
        embed(source, [], device="cpu")
    with pytest.raises(ModelError, match="unknown model 'lab-dinosaur'"):
        embed("lab-dinosaur", examples(2))
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(ModelError, match="cannot be read"):
        embed(str(tmp_path), examples(2), device="cpu")


def test_vectors_that_are_no_numbers_name_the_picture(folders, monkeypatch):
    monkeypatch.setattr(Tower, "vectors", lambda self, pictures, pool, definition: np.array([[0.0, 1], [math.nan, 0]]))
    with pytest.raises(ValueError, match="'00001': its vector by dinov2 holds NaN"):
        embed(str(folders["dinov2"]), examples(2), device="cpu")


def test_the_labs_clip_tells_pictures_apart():
    found = embed("lab-clip", examples(4), device="cpu")
    assert found.vectors.shape == (4, 128) and found.facts["model"]["type"] == "clip_vision_model"
    assert np.linalg.norm(found.vectors[:, None] - found.vectors[None], axis=-1)[~np.eye(4, dtype=bool)].min() > 0.1
