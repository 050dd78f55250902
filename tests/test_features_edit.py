"""Features put in place of a picture's own equal embeddings written by hand, in every family; and what each change is."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples

from spatialprobes import features_edit
from spatialprobes.answers import generate
from spatialprobes.examples import Example
from spatialprobes.features_edit import Spectrum, drawn_mask, rank_of_share, rotation, turned, with_masked
from spatialprobes.intervene import intervene, low_rank, masked, random_permutations, replaced, rotated
from spatialprobes.vlm import VLM

TOLERANCE = 1e-4
NEW = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}


@pytest.fixture(scope="module")
def any_vlm(tiny_family):
    return VLM.load(str(tiny_family))


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


def other_features(vlm, asked, seed=0):
    """Random features by cluster, of the size of each picture's own."""
    own = vlm.vision_features(asked)
    generator = torch.Generator().manual_seed(seed)
    return {one.cluster: torch.randn(x.shape, generator=generator) * x.std() for one, x in zip(asked, own, strict=True)}


@torch.no_grad()
def logits_by_hand(vlm, batch, features):
    """Logits of prompts in whose image places the features were written by hand."""
    embeddings = vlm.model.get_input_embeddings()(batch.input_ids).clone()
    for row, spans in enumerate(batch.spans):
        embeddings[row, spans.vision] = features[batch.examples[row].cluster]
    names = ("attention_mask", "position_ids")
    return vlm.model(inputs_embeds=embeddings, **{name: batch.inputs[name] for name in names}, use_cache=False).logits


def test_replaced_features_equal_embeddings_by_hand_in_forward_and_generate(any_vlm):
    asked = examples(4, pictures=3)
    other = other_features(any_vlm, asked)
    batch = any_vlm.encode(asked)
    expected = logits_by_hand(any_vlm, batch, other)
    plain = any_vlm.forward(batch).logits
    real = batch.attention_mask.bool()
    with intervene(any_vlm, features=replaced(other)):
        found = any_vlm.forward(batch).logits
        with any_vlm.running(batch), torch.no_grad():
            first = any_vlm.model.generate(**batch.inputs, **NEW).logits[0]
        alone = torch.cat([any_vlm.forward(any_vlm.encode([one])).logits[:, -1] for one in asked])
    assert (found - expected)[real].abs().max() < TOLERANCE < (found - plain)[real].abs().max()
    assert (first - expected[:, -1]).abs().max() < TOLERANCE
    assert (alone - expected[:, -1]).abs().max() < TOLERANCE  # a picture at a time as well as in a batch
    assert torch.equal(any_vlm.forward(batch).logits, plain)


def test_own_features_put_back_change_no_bit(any_vlm):
    asked = examples(3, pictures=3)
    batch = any_vlm.encode(asked)
    own = {one.id: x.numpy() for one, x in zip(asked, any_vlm.vision_features(asked), strict=True)}  # arrays do as well
    plain = any_vlm.forward(batch).logits
    for edit in (replaced(own), masked(0.0, 3), rotated(0.0), low_rank(10_000), low_rank(share=1.0)):
        with intervene(any_vlm, features=edit):
            assert torch.equal(any_vlm.forward(batch).logits, plain)
            assert all(np.array_equal(x, own[one.id]) for one, x in zip(asked, any_vlm.vision_features(asked), strict=True))


def test_an_id_goes_before_its_cluster_and_bf16_is_cast(vlm):
    asked = examples(2, pictures=1)
    cluster, own = torch.ones(36, 64), torch.full((36, 64), 2.0, dtype=torch.bfloat16)
    with intervene(vlm, features=replaced({asked[0].cluster: cluster, asked[1].id: own})):
        first, second = vlm.vision_features(asked)
    assert first.dtype == second.dtype == torch.float32
    assert (first == 1).all() and (second == 2).all()


def test_shared_prefixes_and_sorted_batches_see_the_same(vlm):
    asked = examples(6, pictures=2)
    features = other_features(vlm, asked, seed=1)
    for edit in (replaced(features), masked(0.5, 7), low_rank(2), rotated(0.7, 1)):
        with intervene(vlm, features=edit):
            one_by_one = [generate(vlm, [one], 5, prefix_cache=False)["text"][0] for one in asked]
            assert generate(vlm, asked, 5, batch_size=4, prefix_cache=False)["text"].tolist() == one_by_one
            assert generate(vlm, asked, 5, prefix_cache=True)["text"].tolist() == one_by_one


def test_features_come_before_the_permutation(vlm):
    asked = examples(1)
    other, order = torch.randn(36, 64), random_permutations(36, 1)[0]
    with intervene(vlm, features=replaced({asked[0].id: other}), permute=order):
        assert torch.equal(vlm.vision_features(asked)[0], other[order])


def test_what_does_not_fit_is_named(vlm):
    asked = examples(2, pictures=2)
    batch = vlm.encode(asked)
    good = torch.zeros(36, 64)
    for features, message in (
        ({"e0": good}, "no features for example 'e1' or its cluster"),
        ({"e0": good, "e1": torch.zeros(35, 64)}, r"'e1' are of shape \(35, 64\); the model takes \(36, 64\)"),
        ({"e0": good, "e1": torch.full((36, 64), torch.nan)}, "'e1' hold 2304 numbers that are NaN"),
    ):
        with pytest.raises(ValueError, match=message), intervene(vlm, features=replaced(features)):
            vlm.forward(batch)
    with pytest.raises(ValueError, match="need the batch"), intervene(vlm, features=masked(0.5)):
        vlm.model(**batch.inputs)
    with pytest.raises(ValueError, match="mapping"):
        replaced([good])
    assert "_image_feature_edits" not in vars(vlm.model.model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masked(1.1), "level=1.1 is not a share"),
        (lambda: masked(float("nan")), "level=nan is not a share"),
        (lambda: masked(0.5, fill="noise"), "fill='noise' is unknown"),
        (lambda: masked(0.5, seed=-1), "seed=-1"),
        (lambda: low_rank(), "not none"),
        (lambda: low_rank(2, share=0.5), "not rank, share"),
        (lambda: low_rank(0), "rank=0 is no rank"),
        (lambda: low_rank(1.5), "rank=1.5 is no rank"),
        (lambda: low_rank(energy=0.0), "energy=0 keeps nothing"),
        (lambda: rotated(-0.1), "amount=-0.1 is not a share"),
    ],
)
def test_what_is_no_change_is_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- the changes as functions of arrays ----
def features(tokens, width, seed=0):
    return torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed)) + 2


def test_masks_depend_on_seed_and_name_are_nested_and_binomial():
    masks = torch.stack([drawn_mask(576, 0.3, 5, f"{i:09d}") for i in range(200)])
    assert masks.shape == (200, 576)
    share, spread = masks.double().mean(), (0.3 * 0.7 / 576) ** 0.5
    assert abs(share - 0.3) < 4 * spread / 200**0.5
    assert 0.8 < masks.double().mean(1).std() / spread < 1.2
    assert torch.equal(drawn_mask(576, 0.3, 5, "000000001"), masks[1])
    assert (masks[1] != drawn_mask(576, 0.3, 6, "000000001")).any() and (masks[1] != masks[2]).any()
    assert not (masks[1] & ~drawn_mask(576, 0.5, 5, "000000001")).any()
    assert not drawn_mask(576, 0.0, 5, "a").any() and drawn_mask(576, 1.0, 5, "a").all()


def test_the_mask_of_a_name_is_pinned():
    """A change of what is drawn would silently be another experiment."""
    assert drawn_mask(12, 0.5, 1337, "000010000").nonzero().flatten().tolist() == [0, 2, 5, 6, 7, 9]


def test_masked_tokens_are_zero_or_the_mean_and_the_others_untouched():
    x, mask = features(9, 5), drawn_mask(9, 0.5, 0, "a")
    assert 0 < mask.sum() < 9
    zeros, means = with_masked(x, mask, "zero"), with_masked(x, mask, "mean")
    assert torch.equal(zeros[~mask], x[~mask]) and torch.equal(means[~mask], x[~mask])
    assert (zeros[mask] == 0).all()
    torch.testing.assert_close(means[mask], x.mean(0).expand(int(mask.sum()), -1))
    everything = torch.ones(9, dtype=torch.bool)
    assert (with_masked(x, everything, "zero") == 0).all() and with_masked(x, everything, "mean").std(0).max() < 1e-6


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_low_rank_is_the_truncated_svd_whatever_the_shape(tokens, width, seed):
    x = features(tokens, width, seed)
    spectrum, mean = Spectrum.of(x), x.mean(0)
    u, s, v = torch.linalg.svd((x - mean).double(), full_matrices=False)
    np.testing.assert_allclose(spectrum.energies.sqrt(), s, atol=2e-6)
    for rank in range(1, min(tokens, width) + 1):
        expected = mean + ((u[:, :rank] * s[:rank]) @ v[:rank]).float()
        torch.testing.assert_close(spectrum.truncated(x, rank), expected, atol=2e-5, rtol=0)
        if float((s**2).sum()) > 1e-9:
            assert spectrum.retained(rank) == pytest.approx(float((s[:rank] ** 2).sum() / (s**2).sum()), abs=1e-6)
    if tokens > 1:  # less their mean, tokens span one direction fewer
        torch.testing.assert_close(spectrum.truncated(x, min(tokens - 1, width)), x, atol=1e-5, rtol=0)


def test_the_rank_for_an_energy_is_the_least():
    x = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))[:, :3]
    x = torch.cat([x, -x])  # mean 0, energies 18, 8, 2
    spectrum = Spectrum.of(x)
    np.testing.assert_allclose(spectrum.energies, [18, 8, 2], atol=1e-9)
    assert [spectrum.rank(energy) for energy in (0.1, 18 / 28, 0.65, 26 / 28, 0.93, 1.0)] == [1, 1, 2, 2, 3, 3]
    alike = torch.ones(4, 3)
    assert Spectrum.of(alike).retained(1) == 1 and Spectrum.of(alike).rank(0.9) == 1
    assert torch.equal(Spectrum.of(alike).truncated(alike, 1), alike)


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((576, 4096), [6, 29, 58, 115, 173, 288]),
        ((64, 4096), [1, 3, 6, 13, 19, 32]),
        ((144, 3584), [1, 7, 14, 29, 43, 72]),
        ((100, 4096), [1, 5, 10, 20, 30, 50]),
    ],
)
def test_ranks_of_shares_are_the_studys(size, kept):
    assert [rank_of_share(share, *size) for share in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)] == kept


def test_rotations_are_orthogonal_evenly_spread_and_keep_lengths():
    q = rotation(40, 3)
    torch.testing.assert_close(q @ q.T, torch.eye(40, dtype=q.dtype), atol=1e-12, rtol=0)
    assert not torch.equal(q, rotation(40, 4))
    diagonals = torch.stack([rotation(4, seed).diagonal() for seed in range(400)])
    assert diagonals.mean(0).abs().max() < 0.1  # QR alone, without signs, has them all of one sign
    x = features(6, 40)
    whole = turned(x, 1.0, 3)
    torch.testing.assert_close(whole, x @ q.float())
    torch.testing.assert_close(whole.norm(dim=1), x.norm(dim=1))
    torch.testing.assert_close(turned(x, 0.25, 3), 0.75 * x + 0.25 * whole)
    assert turned(x, 0.0, 3) is x


def test_half_precision_is_changed_in_full_and_kept():
    x = features(8, 16).to(torch.bfloat16)
    mask = torch.ones(8, dtype=torch.bool)
    changed = [with_masked(x, mask, "mean"), turned(x, 0.5, 0), Spectrum.of(x).truncated(x, 2)]
    assert {one.dtype for one in changed} == {torch.bfloat16}
    torch.testing.assert_close(changed[2].float(), Spectrum.of(x.float()).truncated(x.float(), 2), atol=0.05, rtol=0.02)


def test_a_picture_is_named_by_its_cluster():
    assert features_edit.name_of(Example("a", None, cluster="b")) == "b" and features_edit.name_of(Example("a", None)) == "a"
