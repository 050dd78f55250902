"""Turning what was captured equals moving the tokens, in every family; moved positions act in any run and leave no trace."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples
from torch import nn
from transformers import CohereConfig, LlamaConfig, Qwen2VLTextConfig, Qwen3_5TextConfig
from transformers.models.cohere.modeling_cohere import CohereAttention, CohereRotaryEmbedding
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention, Qwen2VLRotaryEmbedding
from transformers.models.qwen3_5 import modeling_qwen3_5

from spatialprobes.answers import score
from spatialprobes.capture import capture
from spatialprobes.families.rotary import AXES, rotary_of
from spatialprobes.intervene import carried, constant, intervene, random_permutations, shifted
from spatialprobes.rows import added_rows
from spatialprobes.vlm import VLM

KINDS = {
    "default": {"rope_theta": 1e4},
    "linear": {"rope_theta": 1e4, "factor": 4.0},
    "llama3": {
        "rope_theta": 1e4,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64},
}
SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1, "head_dim": 32}


def llama(kind, **more):
    config = LlamaConfig(**SMALL, rope_parameters={"rope_type": kind, **KINDS.get(kind, {"rope_theta": 1e4}), **more})
    return LlamaRotaryEmbedding(config), LlamaAttention(config, 0)


def qwen(kind):
    rope = {"rope_type": "default", "rope_theta": 1e2}
    if kind == "qwen2_vl":
        config = Qwen2VLTextConfig(**SMALL, rope_parameters=rope | {"mrope_section": [4, 6, 6]})
        return Qwen2VLRotaryEmbedding(config), Qwen2VLAttention(config, 0), apply_rotary_pos_emb
    config = Qwen3_5TextConfig(**SMALL, rope_parameters=rope | {"mrope_section": [3, 3, 2], "partial_rotary_factor": 0.5})
    embedding = modeling_qwen3_5.Qwen3_5TextRotaryEmbedding(config)
    return embedding, modeling_qwen3_5.Qwen3_5Attention(config, 0), modeling_qwen3_5.apply_rotary_pos_emb


def vectors(seed=0, size=32):
    return torch.randn(1, 2, 3, size, generator=torch.Generator().manual_seed(seed))


positions = st.floats(-40, 40)


@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(sorted(KINDS)), place=positions, delta=positions)
def test_turning_equals_embedding_at_the_other_position(kind, place, delta):
    embedding, attention = llama(kind)
    keys = vectors()
    places = torch.tensor([[place, place + 1, place + 7]])
    _, here = apply_rotary_pos_emb(keys, keys, *embedding(keys, places))
    _, there = apply_rotary_pos_emb(keys, keys, *embedding(keys, places + delta))
    turned = rotary_of(embedding, attention).rotate(here, delta)
    assert torch.allclose(turned, there, atol=2e-5)
    assert kind != "yarn" or embedding.attention_scaling > 1.05  # so that dividing it out matters


@settings(deadline=None, max_examples=25)
@given(kind=st.sampled_from(["qwen2_vl", "qwen3_5"]), place=st.tuples(*[positions] * 3), delta=positions, axis=st.integers(0, 3))
def test_turning_along_one_axis_of_several(kind, place, delta, axis):
    embedding, attention, apply = qwen(kind)
    keys = vectors()
    places = torch.tensor(place)[:, None, None] + torch.arange(3)
    move = torch.full((3,), delta) if axis == 3 else delta * torch.eye(3)[axis]
    _, here = apply(keys, keys, *embedding(keys, places))
    _, there = apply(keys, keys, *embedding(keys, places + move[:, None, None]))
    turned = rotary_of(embedding, attention).rotate(here, delta, (*AXES, "all")[axis])
    assert torch.allclose(turned, there, atol=2e-5)


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen3_5"])
def test_every_pair_follows_one_axis_and_the_rest_does_not_turn(kind):
    embedding, attention, _ = qwen(kind)
    rotary = rotary_of(embedding, attention)
    assert ((rotary.frequencies > 0).sum(0) == 1).all()
    assert torch.equal(rotary.frequencies.sum(0), embedding.inv_freq.double())
    counts = (rotary.frequencies > 0).sum(1).tolist()
    assert counts == ([4, 6, 6] if kind == "qwen2_vl" else [3, 3, 2])
    still = 2 * rotary.frequencies.shape[1]
    keys = vectors().double()
    assert torch.equal(rotary.rotate(keys, 3.7)[..., still:], keys[..., still:])
    assert still == 32 or not rotary.derivative(keys)[..., still:].any()


@settings(deadline=None, max_examples=15)
@given(kind=st.sampled_from(["qwen2_vl", "qwen3_5"]), axis=st.sampled_from(["all", *AXES]), seed=st.integers(0, 99))
def test_the_derivative_is_the_limit_of_turning(kind, axis, seed):
    embedding, attention, _ = qwen(kind)
    rotary, keys = rotary_of(embedding, attention), vectors(seed).double()
    step = 1e-5
    slope = (rotary.rotate(keys, step, axis) - rotary.rotate(keys, -step, axis)) / (2 * step)
    assert torch.allclose(rotary.derivative(keys, axis), slope, atol=1e-9)


def test_embeddings_that_cannot_be_read_are_refused():
    growing = {"factor": 2.0, "original_max_position_embeddings": 64}
    with pytest.raises(ValueError, match=r"'dynamic' turns by frequencies that change"):
        rotary_of(*llama("dynamic", **growing))
    with pytest.raises(ValueError, match="'longrope'"):
        rotary_of(*llama("longrope", **growing, short_factor=[1.0] * 16, long_factor=[2.0] * 16))
    interleaved = CohereConfig(**SMALL)
    with pytest.raises(ValueError, match=r"CohereRotaryEmbedding: .* differs by .* from what the model does"):
        rotary_of(CohereRotaryEmbedding(interleaved), CohereAttention(interleaved, 0))
    with pytest.raises(ValueError, match=r"Identity: .* cannot be read"):
        rotary_of(nn.Identity(), llama("default")[1])
    with pytest.raises(ValueError, match="has no rotary embedding"):
        rotary_of(None, llama("default")[1])


@pytest.fixture(scope="module")
def loaded():
    return {}


@pytest.fixture
def vlm(tiny_family, loaded):
    """A model of each family in turn."""
    if str(tiny_family) not in loaded:
        loaded[str(tiny_family)] = VLM.load(str(tiny_family))
    return loaded[str(tiny_family)]


@pytest.fixture
def llava(tiny_llava_grouped, loaded):
    if "grouped" not in loaded:
        loaded["grouped"] = VLM.load(str(tiny_llava_grouped))
    return loaded["grouped"]


def read(vlm, batch, **asked):
    with capture(vlm, **{"queries_keys": "all", **asked}) as got:
        vlm.forward(batch)
    return got


def test_turned_keys_are_those_of_moved_tokens(vlm):
    """In the first layer with attention, whose input does not depend on positions."""
    batch = vlm.encode(examples(3))
    rotary, plain = vlm.family.rotary(vlm.model), read(vlm, batch)
    first = min(plain.keys)
    for axis in ("all", *rotary.axes):
        for delta in (1, -2.5):
            with intervene(vlm, positions=shifted(delta, axis)):
                moved = read(vlm, batch)
            for row, spans in enumerate(batch.spans):
                before, after = plain.keys[first][row], moved.keys[first][row]
                assert torch.allclose(rotary.rotate(before[:, spans.vision], delta, axis), after[:, spans.vision], atol=5e-6)
                assert (before - after)[:, spans.vision].abs().max() > 1e-3
                text = torch.tensor(sorted(set(range(spans.length)) - set(spans.vision.tolist())))
                assert torch.equal(before[:, text], after[:, text])
            assert torch.equal(moved.queries[first], plain.queries[first])


def test_scores_of_captured_queries_and_keys_are_the_attention_rows(vlm):
    batch = vlm.encode(examples(4))
    got = read(vlm, batch, attention_rows="all", at="user")
    assert bool((got.positions < 0).any())  # questions of unequal length
    for layer, rows in got.rows.items():
        keys = got.keys[layer].repeat_interleave(rows.shape[1] // got.keys[layer].shape[1], dim=1)
        assert keys.shape[2] == batch.input_ids.shape[1]
        scores = got.queries[layer] @ keys.transpose(-1, -2) * got.scaling[layer] + got.masks[layer][:, None]
        assert torch.allclose(scores.softmax(-1), rows, atol=1e-6, equal_nan=True)
        absent = got.positions < 0
        assert got.queries[layer].transpose(1, 2)[absent].isnan().all()
        assert not got.queries[layer].transpose(1, 2)[~absent].isnan().any()


def test_keys_grow_with_generated_tokens(llava):
    batch = llava.encode(examples(2))
    with capture(llava, queries_keys=1) as got:
        llava.generate(batch, max_new_tokens=3)
    held = batch.input_ids.shape[1]
    assert [step.keys[1].shape for step in got.steps[:2]] == [(2, 2, held, 16), (2, 2, held + 1, 16)]
    assert [step.queries[1].shape for step in got.steps[:2]] == [(2, 4, 1, 16)] * 2
    assert torch.allclose(got.steps[1].keys[1][:, :, :held], got.steps[0].keys[1])


def test_without_a_mask_a_row_sees_the_keys_before_it():
    found = added_rows(None, True, torch.tensor([[2, 0], [1, -1]]), tokens=3, keys=7)
    assert (found == 0).sum(-1).tolist() == [[7, 5], [6, 5]]
    assert (found[0, 1, :5] == 0).all() and (found[0, 1, 5:] == torch.finfo(torch.float32).min).all()
    assert not added_rows(None, False, torch.tensor([[0]]), tokens=3, keys=7).any()


def test_a_visitor_sees_each_layer_as_it_runs_and_nothing_is_kept(llava):
    batch, seen = llava.encode(examples(2)), {}
    kept = read(llava, batch, at="user")

    def visit(layer, *read_there):
        seen[layer] = read_there

    visited = read(llava, batch, at="user", visit=visit)
    assert list(seen) == [0, 1, 2]
    for layer, (queries, keys, masks, scaling) in seen.items():
        for found, expected in ((queries, kept.queries), (keys, kept.keys), (masks, kept.masks)):
            assert torch.equal(found.nan_to_num(), expected[layer].nan_to_num())
        assert scaling == kept.scaling[layer] == 16**-0.5
    assert not (visited.queries or visited.keys or visited.masks or visited.scaling)
    with pytest.raises(ValueError, match="of which layers"), capture(llava, hidden=0, visit=visit):
        pytest.fail("was accepted")


def moved_inputs(batch, move):
    """The batch's inputs with the ids of vision tokens mapped by hand, row by row."""
    ids = batch.inputs["position_ids"].clone().float()
    for row, spans in enumerate(batch.spans):
        ids[..., row, spans.vision] = move(ids[..., row, spans.vision])
    return {**batch.inputs, "position_ids": ids}


MOVES = {
    "shifted": (lambda n: shifted(3), lambda ids: ids + 3),
    "fractions": (lambda n: shifted(-0.25), lambda ids: ids - 0.25),
    "constant": (lambda n: constant(), lambda ids: ids.mean(-1, keepdim=True).expand(ids.shape)),
    "carried": (lambda n: carried(range(n - 1, -1, -1)), lambda ids: ids.flip(-1)),
    "own": (lambda n: lambda ids: 2 * ids, lambda ids: 2 * ids),
}


@pytest.mark.parametrize("name", sorted(MOVES))
def test_forward_equals_position_ids_edited_by_hand(vlm, name):
    batch = vlm.encode(examples(3))
    make, by_hand = MOVES[name]
    plain = vlm.forward(batch).logits[:, -1]
    with torch.inference_mode():
        expected = vlm.model(**moved_inputs(batch, by_hand), use_cache=False).logits[:, -1]
    with intervene(vlm, positions=make(len(batch.spans[0].vision))):
        found = vlm.forward(batch).logits[:, -1]
    assert torch.equal(found, expected)
    assert (found - plain).abs().max() > 1e-3
    assert torch.equal(vlm.forward(batch).logits[:, -1], plain)


@pytest.mark.parametrize("use_cache", [True, False])
def test_plain_generate_equals_a_loop_by_hand(vlm, use_cache, monkeypatch):
    """The positions of the text do not follow: a new token comes one after the last word, wherever the picture is."""
    monkeypatch.setattr(vlm.model.generation_config, "eos_token_id", None)  # the loop does not stop either
    batch = vlm.encode(examples(2))
    inputs, logits, new = moved_inputs(batch, lambda ids: ids - 2.5), [], 4
    with torch.inference_mode():
        for _ in range(new):
            logits.append(vlm.family.forward(vlm.model, inputs, use_cache=False).logits[:, -1])
            positions = inputs["position_ids"]
            inputs["input_ids"] = torch.cat([inputs["input_ids"], logits[-1].argmax(-1)[:, None]], 1)
            inputs["position_ids"] = torch.cat([positions, positions[..., -1:] + 1], -1)
            inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
            if "mm_token_type_ids" in inputs:
                inputs["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, 1))
        options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        with intervene(vlm, positions=shifted(-2.5)):
            found = vlm.model.generate(**batch.inputs, max_new_tokens=new, use_cache=use_cache, **options)
    assert torch.equal(found.sequences, inputs["input_ids"])
    for step, by_hand in zip(found.logits, logits, strict=True):
        assert (step - by_hand).abs().max() < 2e-5


def test_gaps_without_a_mask_do_not_part_the_prompt(llava):
    """Transformers takes them for packed sequences; the intervention gives the mask that was missing."""
    batch = llava.encode(examples(1))
    moved = moved_inputs(batch, lambda ids: ids + 5)
    bare = {name: value for name, value in batch.inputs.items() if name != "attention_mask"}
    with torch.inference_mode():
        expected = llava.model(**moved, use_cache=False).logits
        parted = llava.model(**{**bare, "position_ids": moved["position_ids"].long()}, use_cache=False).logits
        with intervene(llava, positions=shifted(5)):
            found = llava.model(**bare, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert (parted - expected).abs().max() > 1e-2  # the trap is real


def test_only_differences_of_positions_matter(vlm):
    batch = vlm.encode(examples(3))
    plain = vlm.forward(batch).logits[:, -1]
    with torch.inference_mode():
        everything = {**batch.inputs, "position_ids": batch.inputs["position_ids"] + 17}
        assert torch.allclose(vlm.model(**everything, use_cache=False).logits[:, -1], plain, atol=2e-5)


def test_a_patch_that_carries_its_position_keeps_its_keys(vlm):
    batch = vlm.encode(examples(3))
    permutations = random_permutations(len(batch.spans[0].vision), 3, seed=4)
    plain = read(vlm, batch)
    if 0 not in plain.keys:
        pytest.skip("a linear layer comes first and mixes tokens in their order")
    for permute in (permutations[0], permutations, dict(zip(("picture-0", "picture-1", "picture-2"), permutations, strict=True))):
        with intervene(vlm, permute=permute, positions=carried(permute)):
            there = read(vlm, batch)
        for row, spans in enumerate(batch.spans):
            own = permute if isinstance(permute, torch.Tensor) and permute.ndim == 1 else permutations[row]
            assert torch.allclose(there.keys[0][row][:, spans.vision], plain.keys[0][row][:, spans.vision[own]], atol=1e-6)


def test_positions_compose_and_may_end_in_any_order(llava):
    batch = llava.encode(examples(2))
    order = random_permutations(36, 1, seed=1)[0]
    plain = llava.forward(batch).logits
    with intervene(llava, positions=shifted(5)):
        joined = llava.forward(batch).logits
    with intervene(llava, positions=shifted(2)), intervene(llava, positions=shifted(3)):
        assert torch.equal(llava.forward(batch).logits, joined)
    with intervene(llava, positions=carried(order)), intervene(llava, positions=carried(order.argsort())):
        assert torch.equal(llava.forward(batch).logits, plain)
    outer, inner = intervene(llava, positions=shifted(1)), intervene(llava, positions=shifted(5))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert torch.equal(llava.forward(batch).logits, joined)
    inner.__exit__(None, None, None)
    assert torch.equal(llava.forward(batch).logits, plain)


def test_shared_prefixes_hold_moved_pictures(vlm):
    if not vlm.family.shares_prefix:
        pytest.skip(f"{vlm.family.model_type} runs whole prompts")
    asked = examples(6)
    n = len(vlm.vision_features(asked[:1])[0])
    by_cluster = dict(zip(("picture-0", "picture-1", "picture-2"), random_permutations(n, 3), strict=True))
    plain = score(vlm, asked)["logprob"]
    for edit in (shifted(4), carried(by_cluster)):
        with intervene(vlm, positions=edit):
            shared, whole = (score(vlm, asked, prefix_cache=cache)["logprob"] for cache in (True, False))
        assert (shared - whole).abs().max() < 2e-5
        assert (whole - plain).abs().max() > 1e-3


def test_nothing_stays_hooked_after_an_exception(llava):
    batch = llava.encode(examples(2))
    plain = llava.forward(batch).logits
    for wrong, message in (
        (lambda ids: ids[:, 1:], r"shape \(1, 35\), not \(1, 36\)"),
        (lambda ids: ids * float("nan"), "36 of 36 edited position ids are not finite"),
        (carried(range(35)), "35 entries, expected n = 36"),
        (carried(random_permutations(36, 3)), "3 permutations for a batch of 2"),
    ):
        with pytest.raises(ValueError, match=message), intervene(llava, positions=wrong):
            llava.forward(batch)
    with pytest.raises(ZeroDivisionError), intervene(llava, positions=constant()):
        raise ZeroDivisionError
    assert not llava.model._forward_pre_hooks
    assert llava.by_row_interventions == 0
    assert torch.equal(llava.forward(batch).logits, plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: shifted(float("inf")), "delta=inf is not a finite"),
        (lambda: shifted(True), "delta=True"),
        (lambda: shifted(1, "depth"), r"no axis 'depth'; there: 'all' and 'temporal', 'height', 'width'"),
        (lambda: shifted(1, "height"), r"no axis 'height'; there: 'all' \(the model counts along one axis\)"),
        (lambda: carried([0, 0]), "not a permutation of 0..1: 1 missing"),
        (lambda: None, "nothing to do"),
    ],
)
def test_bad_moves_are_refused_at_once(llava, make, message):
    with pytest.raises(ValueError, match=message), intervene(llava, positions=make()):
        pytest.fail("was accepted")


def test_runs_that_do_not_say_where_the_picture_is_are_refused(llava):
    batch = llava.encode(examples(1))
    with intervene(llava, positions=shifted(1)), torch.inference_mode():
        embedded = llava.model.get_input_embeddings()(batch.input_ids)
        with pytest.raises(ValueError, match="inputs_embeds"):
            llava.model(inputs_embeds=embedded)
        bare = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
        with pytest.raises(ValueError, match="where position_ids are given"):
            llava.model(**bare)
