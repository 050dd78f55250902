"""The core's equalities on the trained lab model, whose activations and attention are not those of random weights."""

import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from spatialprobes import paths
from spatialprobes.answers import answer, generate, score
from spatialprobes.capture import capture
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_questions import examples as lab_examples

MODEL = "lab-llava"
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(
    not (paths.lab_folder() / MODEL / "config.json").is_file(), reason=f"{MODEL} has not been trained yet"
)


@pytest.fixture(scope="module")
def vlm():
    return VLM.load(MODEL)


@pytest.fixture(scope="module")
def asked():
    return lab_examples(4, 7, ["semantic.color", "relation.horizontal", "bin.column"], twins=True)


def test_words_of_the_world_are_words_of_the_model(vlm, asked):
    batch = vlm.encode(asked, answers=True)
    assert not bool((batch.input_ids == vlm.tokenizer.unk_token_id).any())
    assert {spans.grid for spans in batch.spans} == {(6, 6)}
    assert vlm.default_system == vlm.tokenizer.init_kwargs["system_prompt"]


def test_hidden_states_and_rows(vlm, asked):
    batch = vlm.encode(asked)
    attended = {}
    layers = vlm.family.part(vlm.model, "layers")

    def by_eager(layer):
        module = vlm.family.attention(layer)

        def observe(query, key, mask, scaling, causal):
            assert mask is not None  # the batch is padded
            additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
            attended[layer] = eager_attention_forward(module, query, key, key, additive, scaling)[1]

        return module, observe

    plain = vlm.forward(batch, output_hidden_states=True)
    at = torch.arange(batch.input_ids.shape[1])
    beside = vlm.family.observe_attention(vlm.model, "text", dict(by_eager(layer) for layer in layers))
    with capture(vlm, hidden="all", attention_rows="all", at=at) as got, beside:
        assert torch.equal(vlm.forward(batch).logits, plain.logits)
    real = batch.attention_mask.bool()
    for i, layer in enumerate(layers):
        assert torch.equal(got.hidden[i], plain.hidden_states[i])
        assert (got.rows[i] - attended[layer]).abs().amax((1, 3))[real].max() < 1e-6


def test_batches_and_prefixes_give_what_single_whole_prompts_give(vlm, asked):
    together = vlm.forward(vlm.encode(asked)).logits[:, -1].log_softmax(-1)
    for row, one in zip(together, asked, strict=True):
        assert (row - vlm.forward(vlm.encode([one])).logits[0, -1].log_softmax(-1)).abs().max() < TOLERANCE * row.abs().max()
    shared, whole = (score(vlm, asked, prefix_cache=prefix_cache)["logprob"] for prefix_cache in (True, False))
    assert shared.tolist() == pytest.approx(whole.tolist(), abs=TOLERANCE, rel=TOLERANCE)
    texts = [generate(vlm, asked, prefix_cache=prefix_cache) for prefix_cache in (True, False)]
    assert texts[0].equals(texts[1])


def test_permuting_equals_permuting_embeddings_by_hand(vlm, asked):
    batch = vlm.encode(asked)
    permutation = random_permutations(36, 1, seed=4)[0]
    embeddings = vlm.text_embeddings()[batch.input_ids]
    for row, (spans, feature) in enumerate(zip(batch.spans, vlm.vision_features(asked), strict=True)):
        embeddings[row, spans.vision] = feature[permutation]
    inputs = {name: batch.inputs[name] for name in ("attention_mask", "position_ids")}
    with torch.no_grad():
        expected = vlm.model(inputs_embeds=embeddings, **inputs).logits[:, -1]
        words = vlm.model.generate(inputs_embeds=embeddings, **inputs, max_new_tokens=3, do_sample=False)
    with intervene(vlm, permute=permutation):
        permuted = vlm.forward(batch).logits[:, -1]
        assert torch.equal(vlm.generate(batch, max_new_tokens=3), words)
    assert (permuted - expected).abs().max() < TOLERANCE * expected.abs().max()


def test_answers_are_words_of_the_choices(vlm, asked):
    found = answer(vlm, asked)
    assert found.attrs["unparsed"] < 0.1
    assert found["correct"].mean() > 0.5
