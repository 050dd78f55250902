"""What holds for every family while it runs: what is read equals what transformers shows, what is written equals work by hand."""

import dataclasses

import pytest
import torch
from tiny import examples, picture
from tiny_families import mixed
from transformers import AutoModelForImageTextToText

from spatialprobes.answers import generate, score
from spatialprobes.capture import capture
from spatialprobes.images import ImageError
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.vlm import VLM

TOLERANCE = 1e-5
ROWS_TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def vlm(tiny_family):
    return VLM.load(str(tiny_family))


@pytest.fixture(scope="module")
def eager(tiny_family):
    return AutoModelForImageTextToText.from_pretrained(tiny_family, attn_implementation="eager").eval()


def test_a_picture_that_the_processor_refuses_is_named(tiny_qwen2_vl, tmp_path):
    """Qwen's takes no sides more than 200 times as long as the others, and says so without the picture's name."""
    vlm = VLM.load(str(tiny_qwen2_vl))
    strip, path = picture(0, (1500, 6)), tmp_path / "strip.png"
    strip.save(path)
    for shown in (strip, path):
        asked = mixed(3)
        asked[1] = dataclasses.replace(asked[1], image=shown)
        with pytest.raises(ImageError, match=r"^the picture of e1: 1500 x 6 pixels are refused by the processor: .*aspect ratio"):
            vlm.encode(asked)


# Reading


@pytest.mark.parametrize("n", [5, 1])
def test_attention_rows_equal_eagers_and_logits_stay_bit_identical(vlm, eager, n):
    batch = vlm.encode(mixed(n))
    plain = vlm.forward(batch).logits
    with capture(vlm, at=torch.arange(batch.input_ids.shape[1]), attention_rows="all", hidden="all") as got:
        assert torch.equal(vlm.forward(batch).logits, plain)
    inputs = {name: value for name, value in batch.inputs.items() if not name.startswith("pixel")}
    with torch.inference_mode():
        pixels = {name: value for name, value in batch.inputs.items() if name.startswith(("pixel", "image_"))}
        features = vlm.model.get_image_features(**pixels)
        full = eager(**inputs, mm_encoder_outputs={"image": features}, output_attentions=True).attentions
    real = batch.attention_mask.bool()
    assert len(full) == len(got.rows)
    for rows, expected in zip(got.rows.values(), full, strict=True):
        assert (rows - expected).abs().amax((1, 3))[real].max() < ROWS_TOLERANCE
        assert expected.std() > 1e-3  # not flat


def test_layers_without_attention_say_that_they_have_no_map(vlm):
    layers = [i for i, layer in enumerate(vlm.family.part(vlm.model, "layers")) if vlm.family.attention(layer) is None]
    assert layers == ([0, 2] if vlm.family.model_type == "qwen3_5" else [])
    for layer in layers:
        with pytest.raises(ValueError, match=rf"layer {layer} has no attention map.*1, 3"), capture(vlm, attention_rows=layer):
            pytest.fail("was accepted")
        with pytest.raises(ValueError, match="no attention map"), capture(vlm, queries_keys=[1, layer]):
            pytest.fail("was accepted")


def test_hidden_states_equal_output_hidden_states(vlm):
    batch = vlm.encode(mixed(5))
    full = vlm.forward(batch, output_hidden_states=True).hidden_states
    last_block = {}
    hook = vlm.family.part(vlm.model, "layers")[-1].register_forward_hook(lambda m, a, out: last_block.update(out=out))
    vlm.forward(batch)
    hook.remove()
    with capture(vlm, hidden=[*range(vlm.n_layers + 1), "norm"], at=torch.arange(batch.input_ids.shape[1])) as got:
        vlm.forward(batch)
    assert all(torch.equal(got.hidden[layer], full[layer]) for layer in range(vlm.n_layers))
    assert torch.equal(got.hidden["norm"], full[-1])
    assert torch.equal(got.hidden[vlm.n_layers], last_block["out"])


def test_rows_in_generate_equal_those_of_the_whole_sequence(vlm):
    batch = vlm.encode(mixed(3))
    with capture(vlm, attention_rows="all") as got:
        tokens = vlm.generate(batch, max_new_tokens=3)
    ids = torch.cat([batch.input_ids, tokens], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.cat([batch.attention_mask, torch.ones_like(tokens)], dim=1)}
    inputs = vlm.family.complete(vlm.model, inputs, [spans.grid for spans in batch.spans])
    inputs |= {name: value for name, value in batch.inputs.items() if name.startswith(("pixel", "image_"))}
    whole = dataclasses.replace(batch, inputs=inputs)
    length = batch.input_ids.shape[1]
    ended = torch.zeros(3, dtype=torch.bool)
    with capture(vlm, at=range(length - 1, ids.shape[1] - 1), attention_rows="all") as full:
        vlm.forward(whole)
    for step, record in enumerate(got.steps[: tokens.shape[1]]):
        for layer, rows in record.rows.items():
            expected = full.rows[layer][:, :, step : step + 1, : length + step]
            assert (rows - expected)[~ended].abs().max() < TOLERANCE
        ended |= torch.isin(tokens[:, step], torch.tensor(vlm._ends))


# Writing


def by_hand(vlm, batch, permutations):
    """Inputs whose vision embeddings stand in the permuted order, made from the model's embedding table and connector."""
    embeddings = vlm.model.get_input_embeddings()(batch.input_ids).clone()
    for row, (feature, spans) in enumerate(zip(vlm.vision_features(batch.examples), batch.spans, strict=True)):
        for place, source in zip(spans.vision.tolist(), permutations[row].tolist(), strict=True):
            embeddings[row, place] = feature[source]
    return {"inputs_embeds": embeddings, **{name: batch.inputs[name] for name in ("attention_mask", "position_ids")}}


def test_permuting_equals_permuting_embeddings_by_hand_and_the_identity_changes_nothing(vlm):
    """Pictures of unequal size: one permutation for each, by cluster."""
    batch = vlm.encode(mixed(5))
    chosen = {}
    for example, spans in zip(batch.examples, batch.spans, strict=True):
        chosen.setdefault(example.cluster, random_permutations(len(spans.vision), 1, seed=len(chosen))[0])
    permutations = [chosen[example.cluster] for example in batch.examples]
    with torch.inference_mode():
        expected = vlm.model(**by_hand(vlm, batch, permutations), use_cache=False).logits[:, -1]
    plain = vlm.forward(batch).logits[:, -1]
    with intervene(vlm, permute=chosen):
        permuted = vlm.forward(batch).logits[:, -1]
    assert (permuted - expected).abs().max() < TOLERANCE
    assert (permuted - plain).abs().max() > 1e-2  # the permutation matters, else the equality would be empty
    with intervene(vlm, permute={cluster: torch.arange(len(one)) for cluster, one in chosen.items()}):
        assert torch.equal(vlm.forward(batch).logits[:, -1], plain)
    assert torch.equal(vlm.forward(batch).logits[:, -1], plain)


@pytest.mark.parametrize("use_cache", [True, False])
def test_plain_generate_equals_permuting_embeddings_by_hand(vlm, use_cache):
    batch = vlm.encode(examples(4))
    permutations = random_permutations(len(batch.spans[0].vision), 4, seed=1)
    options = {"max_new_tokens": 4, "do_sample": False, "use_cache": use_cache, "output_logits": True}
    options |= {"return_dict_in_generate": True, "suppress_tokens": [vlm.model.config.image_token_id]}
    with torch.inference_mode():
        expected = vlm.model.generate(**by_hand(vlm, batch, permutations), **options)
        plain = vlm.model.generate(**batch.inputs, **options)
        with intervene(vlm, permute=permutations):
            permuted = vlm.model.generate(**batch.inputs, **options)
    assert torch.equal(permuted.sequences[:, batch.input_ids.shape[1] :], expected.sequences)
    for step, by_hand_step in zip(permuted.logits, expected.logits, strict=True):
        assert (step - by_hand_step).abs().max() < TOLERANCE
    assert (permuted.logits[0] - plain.logits[0]).abs().max() > 1e-2


def test_permutations_compose_and_leave_nothing_behind(vlm):
    asked = examples(2)
    plain = vlm.vision_features(asked)
    first, second = random_permutations(len(plain[0]), 2, seed=4)
    with pytest.raises(ZeroDivisionError), intervene(vlm, permute=first), intervene(vlm, permute=second):
        for feature, before in zip(vlm.vision_features(asked), plain, strict=True):
            assert torch.equal(feature, before[first[second]])
        raise ZeroDivisionError
    assert all(torch.equal(a, b) for a, b in zip(vlm.vision_features(asked), plain, strict=True))
    with pytest.raises(ValueError, match=f"expected n = {len(plain[0])}"), intervene(vlm, permute=[1, 0]):
        vlm.forward(vlm.encode(asked))


# Answers


def test_answers_after_a_shared_prefix_equal_those_of_whole_prompts(vlm):
    asked = mixed(9)
    if not vlm.family.shares_prefix:
        with pytest.raises(ValueError, match=f"{vlm.family.model_type} cannot repeat its cache"):
            score(vlm, asked, prefix_cache=True)
        return
    shared, whole = (score(vlm, asked, batch_size=8, prefix_cache=cached)["logprob"].tolist() for cached in (True, False))
    assert shared == pytest.approx(whole, abs=TOLERANCE)
    shared, whole = (generate(vlm, asked, 4, prefix_cache=cached)["text"].tolist() for cached in (True, False))
    assert shared == whole


def test_answers_do_not_depend_on_the_batch(vlm):
    asked = mixed(7)
    alone = [generate(vlm, [one], 4)["text"][0] for one in asked]
    assert generate(vlm, asked, 4, batch_size=4)["text"].tolist() == alone
    assert len(set(alone)) > 1
