"""Permuting by intervene equals permuting embeddings by hand, everywhere; and nothing stays behind."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples, picture

from spatialprobes.answers import answer, generate, score
from spatialprobes.intervene import carried, intervene, random_permutations
from spatialprobes.vlm import VLM

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_llava_grouped"])
def vlm(request):
    return VLM.load(str(request.getfixturevalue(request.param)))


def by_hand(vlm, batch, permutations):
    """Inputs whose vision embeddings stand in the permuted order, made from the model's embedding table and connector."""
    ids = batch.input_ids
    embeddings = vlm.model.get_input_embeddings()(ids).clone()
    features = vlm.vision_features(batch.examples)
    for row, spans in enumerate(batch.spans):
        for place, source in zip(spans.vision.tolist(), permutations[row].tolist(), strict=True):
            embeddings[row, place] = features[row][source]
    return {"inputs_embeds": embeddings, **{name: batch.inputs[name] for name in ("attention_mask", "position_ids")}}


@pytest.mark.parametrize("one_each", [False, True])
def test_forward_equals_permuting_embeddings_by_hand(vlm, one_each):
    batch = vlm.encode(examples(4))
    permutations = random_permutations(36, 4, seed=3) if one_each else random_permutations(36, 1).expand(4, -1)
    with torch.inference_mode():
        expected = vlm.model(**by_hand(vlm, batch, permutations)).logits[:, -1]
    plain = vlm.forward(batch).logits[:, -1]
    with intervene(vlm, permute=permutations if one_each else permutations[0].tolist()):
        permuted = vlm.forward(batch).logits[:, -1]
    assert (permuted - expected).abs().max() < TOLERANCE
    assert (permuted - plain).abs().max() > 1e-2  # the permutation matters, else the equality would be empty
    assert torch.equal(vlm.forward(batch).logits[:, -1], plain)


@pytest.mark.parametrize("use_cache", [True, False])
def test_plain_generate_equals_permuting_embeddings_by_hand(vlm, use_cache):
    batch = vlm.encode(examples(4))
    permutations = random_permutations(36, 4, seed=1)
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "use_cache": use_cache,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with torch.inference_mode():
        expected = vlm.model.generate(**by_hand(vlm, batch, permutations), **options)
        plain = vlm.model.generate(**batch.inputs, **options)
        with intervene(vlm, permute=permutations):
            permuted = vlm.model.generate(**batch.inputs, **options)
    new = batch.input_ids.shape[1]
    assert torch.equal(permuted.sequences[:, new:], expected.sequences)
    for step, by_hand_step in zip(permuted.logits, expected.logits, strict=True):
        assert (step - by_hand_step).abs().max() < TOLERANCE
    assert (permuted.logits[0] - plain.logits[0]).abs().max() > 1e-2


def test_forward_equals_replacing_the_encoders_outputs(vlm):
    """The second public route of transformers, `mm_encoder_outputs`, agrees."""
    batch = vlm.encode(examples(3))
    permutation = random_permutations(36, 1)[0]
    inputs = dict(batch.inputs)
    with torch.inference_mode():
        outputs = vlm.model.get_image_features(pixel_values=inputs.pop("pixel_values"))
        outputs.pooler_output = [one[permutation] for one in outputs.pooler_output]
        expected = vlm.model(**inputs, mm_encoder_outputs={"image": outputs}).logits
    with intervene(vlm, permute=permutation):
        assert torch.equal(vlm.forward(batch).logits, expected)


@settings(deadline=None, max_examples=15)
@given(seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)))
def test_nested_permutations_compose(vlm, seeds):
    first, second = (random_permutations(36, 1, seed)[0] for seed in seeds)
    asked = examples(2)
    with intervene(vlm, permute=first), intervene(vlm, permute=second):
        nested = vlm.vision_features(asked)
    with intervene(vlm, permute=first[second]):
        joined = vlm.vision_features(asked)
    with intervene(vlm, permute=first), intervene(vlm, permute=first.argsort()):
        undone = vlm.vision_features(asked)
    assert all(torch.equal(a, b) for a, b in zip(nested, joined, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(undone, vlm.vision_features(asked), strict=True))


def test_interventions_may_end_in_any_order(vlm):
    asked = examples(1)
    first, second = random_permutations(36, 2)
    plain = vlm.vision_features(asked)[0]
    outer, inner = intervene(vlm, permute=first), intervene(vlm, permute=second)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert torch.equal(vlm.vision_features(asked)[0], plain[second])
    inner.__exit__(None, None, None)
    assert torch.equal(vlm.vision_features(asked)[0], plain)


def test_nothing_stays_behind_after_an_exception(vlm):
    owner = vlm.model.model
    before = set(vars(owner))
    batch = vlm.encode(examples(2))
    plain = vlm.forward(batch).logits
    with pytest.raises(ZeroDivisionError), intervene(vlm, permute=list(range(36))[::-1]):
        assert set(vars(owner)) != before
        raise ZeroDivisionError
    with pytest.raises(ValueError), intervene(vlm, permute=[1, 0]):
        vlm.forward(batch)
    assert set(vars(owner)) == before
    assert owner.get_image_features.__func__ is type(owner).get_image_features
    assert vlm.by_row_interventions == 0
    assert torch.equal(vlm.forward(batch).logits, plain)


@pytest.mark.parametrize(
    ("permute", "message"),
    [
        (None, "nothing to do"),
        ([0, 1, 1], "not a permutation of 0..2: 2 missing"),
        ([0.0, 1.0], "whole numbers"),
        ([[[0]]], "whole numbers"),
        ([], "whole numbers"),
        ({"picture-0": [1, 2]}, "not a permutation"),
    ],
)
def test_what_is_no_permutation_is_refused_at_once(vlm, permute, message):
    with pytest.raises(ValueError, match=message), intervene(vlm, permute=permute):
        pytest.fail("was accepted")


def test_wrong_lengths_and_counts_name_what_would_fit(vlm):
    batch = vlm.encode(examples(3))
    with pytest.raises(ValueError, match="35 entries, expected n = 36"), intervene(vlm, permute=list(range(35))):
        vlm.forward(batch)
    with pytest.raises(ValueError, match="2 permutations for a batch of 3"), intervene(vlm, permute=random_permutations(36, 2)):
        vlm.forward(batch)
    two = {"picture-0": range(36), "picture-2": range(36)}
    with pytest.raises(ValueError, match="no permutation for cluster 'picture-1'"), intervene(vlm, permute=two):
        vlm.forward(batch)


def test_one_permutation_per_picture_survives_sorting_and_prefix_sharing(vlm):
    asked = examples(12)
    by_cluster = dict(zip(("picture-0", "picture-1", "picture-2"), random_permutations(36, 3, seed=5), strict=True))
    alone = {}
    for one in asked:
        with intervene(vlm, permute=by_cluster[one.cluster]):
            alone[one.id] = score(vlm, [one])["logprob"].tolist()
    with intervene(vlm, permute=by_cluster):
        for prefix_cache in (True, False):
            together = score(vlm, asked, batch_size=5, prefix_cache=prefix_cache)
            assert together.groupby("id")["logprob"].agg(list).to_dict() == {
                key: pytest.approx(values, abs=TOLERANCE) for key, values in alone.items()
            }
            assert len(generate(vlm, asked, prefix_cache=prefix_cache)) == 12
        lone = [dataclasses.replace(asked[0], cluster="", id="picture-0")]
        assert answer(vlm, lone, by="score")["id"].tolist() == ["picture-0"]


def test_one_permutation_per_row_is_refused_where_rows_are_rearranged(vlm):
    with intervene(vlm, permute=random_permutations(36, 4)):
        with pytest.raises(ValueError, match="mapping from cluster"):
            answer(vlm, examples(4))
        with pytest.raises(ValueError, match="holds for one batch"):
            vlm.vision_features(examples(8), batch_size=4)


def test_random_permutations_are_permutations_decided_by_the_seed():
    drawn = random_permutations(36, 5, seed=2)
    assert torch.equal(drawn.sort(-1).values, torch.arange(36).expand(5, -1))
    assert torch.equal(drawn, random_permutations(36, 5, seed=2))
    assert not torch.equal(drawn, random_permutations(36, 5, seed=3))


@pytest.mark.parametrize("as_path", [False, True])
@pytest.mark.parametrize("clusters", [3, 0])
def test_one_picture_under_several_clusters_is_permuted_for_each(vlm, tmp_path, clusters, as_path):
    """Prefixes are shared within a cluster alone (without one, the id stands in): else all got the permutation of its first."""
    shown = picture(0)
    if as_path:
        shown.save(shown := tmp_path / "picture.png")
    asked = [
        dataclasses.replace(one, image=shown, cluster=f"c{i % clusters}" if clusters else "") for i, one in enumerate(examples(6))
    ]
    names = list(dict.fromkeys(one.cluster or one.id for one in asked))
    permutations = dict(zip(names, random_permutations(36, len(names), seed=4), strict=True))
    plain = score(vlm, asked)["logprob"]
    for options in ({"permute": permutations}, {"positions": carried(permutations)}):
        with intervene(vlm, **options):
            whole, shared = (score(vlm, asked, prefix_cache=prefix_cache)["logprob"] for prefix_cache in (False, True))
            said, said_shared = (answer(vlm, asked, prefix_cache=prefix_cache)["text"].tolist() for prefix_cache in (False, True))
        assert (shared - whole).abs().max() < TOLERANCE
        assert said_shared == said
        assert (whole - plain).abs().max() > 1e-3
