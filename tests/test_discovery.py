"""Families that nobody wrote: what is found is what a written family says, what cannot be proved is refused, with the reason."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import examples, picture
from unknown import save_gemma3, save_idefics3, save_llava_next, save_text_only

from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.families import FAMILIES, Family, Llava
from spatialprobes.families.discovery import Discovered
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.vlm import VLM, ModelError

PATHS = ("tower", "tower_layers", "connector", "layers", "final_norm", "image_owner")


@pytest.fixture(scope="module")
def found(tiny_llava):
    """LLaVA, discovered, for its family is taken away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(FAMILIES, "llava")
        return VLM.load(str(tiny_llava), device="cpu")


@pytest.fixture(scope="module")
def written(tiny_llava):
    return VLM.load(str(tiny_llava), device="cpu")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return VLM.load(str(save_gemma3(tmp_path_factory.mktemp("gemma3"))), device="cpu")


@pytest.fixture(scope="module")
def idefics(tmp_path_factory):
    return VLM.load(str(save_idefics3(tmp_path_factory.mktemp("idefics3"))), device="cpu")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    return VLM.load(str(save_llava_next(tmp_path_factory.mktemp("llava-next"))), device="cpu")


# What is found


def test_llava_is_found_where_its_family_says(found, written):
    assert isinstance(found.family, Discovered)
    assert isinstance(written.family, Llava)
    for name in PATHS:
        assert getattr(found.family, name) == getattr(written.family, name), name
    assert found.family.parts == written.family.parts
    assert set(found.family.quantise_skip) >= set(written.family.quantise_skip)
    for one, other in zip(found.family.part(found.model, "layers"), written.family.part(written.model, "layers"), strict=True):
        assert type(found.family.attention(one)) is type(written.family.attention(other))


@pytest.mark.parametrize("size", [(48, 48), (96, 48), (48, 120)])
def test_llavas_pictures_are_fitted_as_its_family_says(found, written, size):
    asked = [dataclasses.replace(examples(1)[0], image=picture(size=size))]
    mine, own = (model.encode(asked).spans[0] for model in (found, written))
    assert mine.grid == own.grid == (6, 6)
    for point in [(0.3, 0.2), (0.9, 0.9), (0.05, 0.5)]:
        assert mine.frame(*point) == pytest.approx(own.frame(*point))


def test_what_is_read_of_llava_equals_what_its_family_reads(found, written):
    asked = examples(4)
    got = []
    for model in (found, written):
        with capture(model, hidden="all", at="user", attention_rows="all", tower_rows="all", connector="pre_norm") as seen:
            logits = model.forward(model.encode(asked)).logits
        got.append((logits, seen))
    (logits, mine), (expected, own) = got
    assert torch.equal(logits, expected)
    for layer in own.hidden:
        assert torch.equal(mine.hidden[layer].nan_to_num(), own.hidden[layer].nan_to_num())
    for layer in own.rows:
        assert torch.equal(mine.rows[layer].nan_to_num(), own.rows[layer].nan_to_num())
        assert all(torch.equal(a, b) for a, b in zip(mine.tower_rows[layer], own.tower_rows[layer], strict=True))
    for side in ("connector_input", "connector_output"):
        assert all(torch.equal(a, b) for a, b in zip(getattr(mine, side), getattr(own, side), strict=True))


@pytest.mark.parametrize("model", ["gemma", "idefics", "tiled"])
def test_encoding_and_logits_of_unknown_families_are_the_processors_and_models_own(model, request):
    vlm = request.getfixturevalue(model)
    asked = examples(3)
    batch = vlm.encode(asked)
    assert len({spans.start for spans in batch.spans}) > 1  # there is padding to get wrong
    for row, (one, logits) in enumerate(zip(asked, vlm.forward(batch).logits, strict=True)):
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": one.question}]}
        text = vlm.processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        own = vlm.processor(images=[[one.image]], text=[text], return_tensors="pt", add_special_tokens=False)
        assert torch.equal(batch.input_ids[row, batch.spans[row].start :], own["input_ids"][0])
        assert torch.allclose(logits[-1], vlm.model(**own).logits[0, -1], atol=1e-4)


@pytest.mark.parametrize("model", ["gemma", "idefics", "tiled"])
def test_permutations_reach_the_answers_of_unknown_families(model, request):
    vlm = request.getfixturevalue(model)
    asked = examples(2, pictures=1)
    features = vlm.vision_features(asked)[0]
    order = random_permutations(len(features), 1, seed=3)[0]
    plain = vlm.forward(vlm.encode(asked)).logits
    with intervene(vlm, permute=order):
        assert torch.equal(vlm.vision_features(asked)[0], features[order])
        assert not torch.allclose(vlm.forward(vlm.encode(asked)).logits, plain, atol=1e-3)
    assert torch.equal(vlm.forward(vlm.encode(asked)).logits, plain)


@pytest.mark.parametrize(("model", "patches"), [("gemma", 64), ("idefics", 64)])
def test_what_is_read_of_unknown_families(model, patches, request):
    vlm = request.getfixturevalue(model)
    asked = examples(2)
    batch = vlm.encode(asked)
    with capture(vlm, hidden=["norm", 2], attention_rows="all", tower_rows="all", connector="post_norm") as got:
        outputs = vlm.forward(batch, output_hidden_states=True)
    assert torch.allclose(got.hidden["norm"][:, 0], outputs.hidden_states[-1][:, -1], atol=1e-5)
    for layer in range(2):
        assert torch.allclose(got.rows[layer].sum(-1), torch.ones(2, 4, 1), atol=1e-5)
        assert [one.shape for one in got.tower_rows[layer]] == [(4, patches, patches)] * 2
    features = vlm.vision_features(asked)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(got.connector_output, features, strict=True))
    assert [one.shape for one in got.connector_input] == [(patches, 64)] * 2


def test_patches_that_become_one_token_stand_together(idefics):
    """Paint one cell: of the connector's input, in fours, the rows of that cell change most."""
    plain = picture()
    for cell in (0, 6, 9, 15):
        row, column = divmod(cell, 4)
        array = np.array(plain)
        array[row * 12 : row * 12 + 12, column * 12 : column * 12 + 12] ^= 255
        shown = [Example("plain", plain, "where ?"), Example("painted", Image.fromarray(array), "where ?")]
        with capture(idefics, connector="pre_norm") as got:
            idefics.forward(idefics.encode(shown))
        before, after = got.connector_input
        change = (after - before).norm(dim=-1).reshape(16, 4).mean(-1)
        assert int(change.argmax()) == cell


def test_gemma_sees_the_types_of_its_tokens(gemma):
    """Without them vision tokens would not see one another, and the answer would be another."""
    batch = gemma.encode(examples(1))
    assert torch.equal(batch.inputs["token_type_ids"][0].nonzero().flatten(), batch.spans[0].vision)
    blind = dataclasses.replace(batch, inputs={k: v for k, v in batch.inputs.items() if k != "token_type_ids"})
    assert not torch.allclose(gemma.forward(batch).logits, gemma.forward(blind).logits, atol=1e-3)


def test_what_was_found_is_printed(tmp_path, capsys):
    VLM.load(str(save_gemma3(tmp_path / "gemma3")), device="cpu")
    shown = capsys.readouterr().out
    lines = {line[2:].split("  ")[0]: line for line in shown.splitlines()[1:]}
    assert "'gemma3'" in shown.splitlines()[0]
    assert "model.multi_modal_projector" in lines["connector"]
    assert "model.language_model.layers" in lines["layers"]
    assert "4 x 4" in lines["grid"]
    assert "squashed" in lines["grid (wide)"]


# What is refused


def test_tiles_have_no_grid_and_no_connector_picture_by_picture(tiled):
    spans = tiled.encode(examples(1)).spans[0]
    assert spans.grid is None
    with pytest.raises(ValueError, match="have no grid"):
        spans.cell(0.5, 0.5)
    assert "make no square" in tiled.family.refused["grid"]
    with (
        pytest.raises(ValueError, match=r"'llava_next': (pre_norm|connector) is not proved"),
        capture(tiled, connector="pre_norm"),
    ):
        pass
    with (
        pytest.raises(ValueError, match="tower grid is not proved: one picture is not one row of patches"),
        capture(tiled, tower_rows=[0]),
    ):
        tiled.forward(tiled.encode(examples(1)))


def test_a_norm_that_the_connector_never_reads_is_refused(found):
    with pytest.raises(ValueError, match="post_norm is not proved: no norm between"), capture(found, connector="post_norm"):
        pass


def test_models_without_pictures_are_refused(tmp_path):
    with pytest.raises(
        ModelError, match=r"'llama' is unknown \(known: .*llava.*could not be discovered: transformers has no class"
    ):
        VLM.load(str(save_text_only(tmp_path / "text")))


@pytest.fixture
def changed(tiny_llava, monkeypatch):
    """Load LLaVA without its family, after something was done to the model."""

    def load(change):
        plain = Family.load_model

        def load_model(self, source, **options):
            model, info = plain(self, source, **options)
            change(model)
            return model, info

        monkeypatch.setattr(Family, "load_model", load_model)
        monkeypatch.delitem(FAMILIES, "llava")
        return VLM.load(str(tiny_llava), device="cpu")

    return load


def test_a_picture_that_also_reaches_deeper_layers_is_refused(changed):
    def leak(model):
        kept = {}
        model.model.vision_tower.register_forward_hook(lambda m, a, out: kept.update(seen=out.last_hidden_state.mean()))
        model.model.language_model.layers[0].register_forward_hook(lambda m, a, out: out + kept["seen"])

    with pytest.raises(ModelError, match="past its image tokens, perhaps at deeper layers"):
        changed(leak)


def test_features_that_are_changed_on_their_way_are_refused(changed):
    def scale(model):
        decoder = model.model.language_model
        double = lambda m, a, kw: (a, kw | {"inputs_embeds": kw["inputs_embeds"] * 2})  # noqa: E731
        decoder.register_forward_pre_hook(double, with_kwargs=True)

    with pytest.raises(ModelError, match="not what get_image_features gives"):
        changed(scale)


@pytest.mark.parametrize("order", ["shuffled", "mirrored", "turned"])
def test_features_in_another_order_than_the_raster_have_no_grid(changed, order):
    cells = torch.arange(36).reshape(6, 6)
    orders = {"shuffled": random_permutations(36, 1, 1)[0], "mirrored": cells.flip(1).flatten(), "turned": cells.T.flatten()}

    def disorder(model):
        projector = model.model.multi_modal_projector
        projector.register_forward_hook(lambda m, a, out: out[:, orders[order]])

    vlm = changed(disorder)
    assert vlm.encode(examples(1)).spans[0].grid is None
    assert "changed their own token most" in vlm.family.refused["grid"]
    assert "connector" in vlm.family.notes  # the rest holds


def test_attention_that_is_no_softmax_of_scores_is_refused(changed, monkeypatch):
    """A model whose eager attention does more than SDPA shows (here: a sink) must not have its rows taken for maps."""
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.eager_attention_forward

    def sink(*args, **kwargs):
        out, weights = plain(*args, **kwargs)
        return out, weights * 0.5

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sink)
    vlm = changed(lambda model: None)
    with (
        pytest.raises(ValueError, match=r"attention \(text\) is not proved: rows .* 0 of 2 blocks"),
        capture(vlm, attention_rows=[0]),
    ):
        pass
    with capture(vlm, tower_rows=[0]) as got:  # the tower's are another matter
        vlm.forward(vlm.encode(examples(1)))
    assert got.tower_rows[0][0].shape == (4, 37, 37)
