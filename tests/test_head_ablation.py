"""Heads are out in every family and way of running, as if their weights were gone; and what that costs is counted right."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples
from unknown import save_gemma3

from spatialprobes.answers import answer, generate, score
from spatialprobes.capture import capture
from spatialprobes.families import FAMILIES
from spatialprobes.heads_off import AFTER, BEFORE, LAST, PLACES, VISION, HeadMeans
from spatialprobes.intervene import ablated, added, intervene, random_permutations
from spatialprobes.last_token import steered_words
from spatialprobes.probes import head_ablation
from spatialprobes.vlm import VLM

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vlm(tiny_llava_grouped):
    return VLM.load(str(tiny_llava_grouped))


@pytest.fixture(scope="module")
def any_vlm(tiny_family):
    return VLM.load(str(tiny_family))


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return VLM.load(str(save_gemma3(tmp_path_factory.mktemp("gemma3"))), device="cpu")


def layers_of(vlm):
    return [i for i, one in enumerate(vlm.family.part(vlm.model, "layers")) if vlm.family.attention(one) is not None]


def some_heads(vlm):
    """Of the first and the last layer that have any."""
    first, *_, last = layers_of(vlm)
    return [(first, 2), (last, 0), (last, 3)]


@contextmanager
def weights_gone(vlm, heads):
    """The same by other means: no number of these heads' output is projected."""
    kept = []
    for layer, head in heads:
        weight = vlm.family.attention(vlm.family.part(vlm.model, "layers")[layer]).o_proj.weight
        size = weight.shape[1] // vlm.model.config.get_text_config().num_attention_heads
        own = weight.data[:, head * size : (head + 1) * size]
        kept.append((own, own.clone()))
        own.zero_()
    try:
        yield
    finally:
        for own, before in kept:
            own.copy_(before)


@contextmanager
def written_into(vlm, layer, heads, places, values):
    """One prompt, heads overwritten by hand: values[i] at tokens places[i] ([head, size])."""
    attention = vlm.family.attention(vlm.family.part(vlm.model, "layers")[layer])

    def hook(module, args):
        outputs = args[0].unflatten(-1, (values[0].shape[0], -1)).clone()
        for at, value in zip(places, values, strict=True):
            for head in heads:
                outputs[0, at, head] = value[head]
        return (outputs.flatten(-2),)

    handle = attention.o_proj.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def places_of(spans):
    """Tokens of each of PLACES, from the spans of one unpadded prompt."""
    begins, ends = int(spans.vision[0]), int(spans.vision[-1])
    assert spans.vision.tolist() == list(range(begins, ends + 1))
    return [list(range(spans.start, begins)), spans.vision.tolist(), list(range(ends + 1, spans.length - 1)), [spans.length - 1]]


def means_by_hand(vlm, asked, layer):
    """Prompt by prompt, from a hook on the projection."""
    attention = vlm.family.attention(vlm.family.part(vlm.model, "layers")[layer])
    count, collected = vlm.model.config.get_text_config().num_attention_heads, [[] for _ in PLACES]
    for one in asked:
        batch, seen = vlm.encode([one]), []
        handle = attention.o_proj.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        vlm.forward(batch)
        handle.remove()
        for found, at in zip(collected, places_of(batch.spans[0]), strict=True):
            found += [seen[0][0, token].unflatten(-1, (count, -1)) for token in at]
    return [torch.stack(found).double().mean(0).float() if found else None for found in collected], [
        len(one) for one in collected
    ]


# --- zero ---


def test_zero_is_as_if_the_weights_behind_the_heads_were_zero(any_vlm):
    heads, batch, asked = some_heads(any_vlm), any_vlm.encode(examples(3)), examples(6, pictures=2)
    plain = any_vlm.forward(batch).logits
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "output_logits": True}

    def everything():
        logits = any_vlm.forward(batch).logits
        steps = [
            torch.stack(
                any_vlm.model.generate(**batch.inputs, use_cache=cache, return_dict_in_generate=True, **options).logits, 1
            )
            for cache in (True, False)
        ]
        scores = [score(any_vlm, asked, batch_size=4, prefix_cache=False)["logprob"].to_numpy()]
        texts = [generate(any_vlm, asked, 3, batch_size=4, prefix_cache=False)["text"].tolist()]
        if any_vlm.family.shares_prefix:
            scores.append(score(any_vlm, asked, batch_size=4, prefix_cache=True)["logprob"].to_numpy())
            texts.append(generate(any_vlm, asked, 3, batch_size=4, prefix_cache=True)["text"].tolist())
        return logits, steps, scores, texts

    with weights_gone(any_vlm, heads):
        expected = everything()
    with intervene(any_vlm, heads=ablated(heads)):
        found = everything()
    assert torch.equal(found[0], expected[0])
    assert (found[0] - plain)[batch.attention_mask.bool()].abs().max() > 1e-2
    for steps, wanted in zip(found[1], expected[1], strict=True):
        assert torch.equal(steps, wanted)
    assert (found[1][0] - found[1][1]).abs().max() < TOLERANCE  # with cache and without
    for scores, wanted in zip(found[2], expected[2], strict=True):
        assert np.array_equal(scores, wanted)
        assert np.abs(scores - expected[2][0]).max() < TOLERANCE
    assert found[3] == expected[3]
    assert torch.equal(any_vlm.forward(batch).logits, plain)


def test_all_heads_of_a_layer_are_its_attention(any_vlm):
    layer = layers_of(any_vlm)[-1]
    attention = any_vlm.family.attention(any_vlm.family.part(any_vlm.model, "layers")[layer])
    batch = any_vlm.encode(examples(2))
    handle = attention.register_forward_hook(lambda module, args, output: (torch.zeros_like(output[0]), *output[1:]))
    expected = any_vlm.forward(batch).logits
    handle.remove()
    with intervene(any_vlm, heads=ablated([(layer, head) for head in range(4)])):
        assert torch.equal(any_vlm.forward(batch).logits, expected)


def test_a_head_that_is_not_projected_is_no_loss(any_vlm):
    heads, batch = some_heads(any_vlm), any_vlm.encode(examples(2))
    with weights_gone(any_vlm, heads):
        plain = any_vlm.forward(batch).logits
        with intervene(any_vlm, heads=ablated(heads)):
            assert torch.equal(any_vlm.forward(batch).logits, plain)
        with intervene(any_vlm, heads=ablated(heads, "mean", head_ablation.means(any_vlm, examples(3)))):
            assert torch.equal(any_vlm.forward(batch).logits, plain)


def test_a_head_that_was_found_in_an_unknown_family_is_out(gemma):
    heads, batch = [(0, 1), (1, 3)], gemma.encode(examples(2))
    assert "o_proj" in gemma.family.notes["heads"][0]
    plain = gemma.forward(batch).logits
    with weights_gone(gemma, heads):
        expected = gemma.forward(batch).logits
    with intervene(gemma, heads=ablated(heads)):
        assert torch.equal(gemma.forward(batch).logits, expected)
    assert (plain - expected).abs().max() > 1e-2


def discovered(tiny_llava, change=lambda model: None):
    """LLaVA without its family, after something was done to the model."""
    from spatialprobes.families.base import Family

    plain = Family.load_model

    def load_model(self, source, **options):
        model, info = plain(self, source, **options)
        change(model)
        return model, info

    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(FAMILIES, "llava")
        patch.setattr(Family, "load_model", load_model)
        return VLM.load(str(tiny_llava), device="cpu")


@pytest.mark.parametrize("change", ["gated", "shuffled", "one block"])
def test_heads_that_do_not_enter_the_projection_as_sdpa_gives_them_are_refused(tiny_llava, change):
    def spoil(model):
        for layer in model.model.language_model.layers[: 1 if change == "one block" else None]:
            hook = (lambda m, a: (a[0].flip(-1),)) if change == "shuffled" else (lambda m, a: (a[0] * 1.1,))
            layer.self_attn.o_proj.register_forward_pre_hook(hook, prepend=True)

    vlm = discovered(tiny_llava, spoil)
    with pytest.raises(ValueError, match="heads is not proved: no projection takes"), intervene(vlm, heads=ablated([(0, 0)])):
        pytest.fail("was accepted")
    with intervene(vlm, steer=added(torch.zeros(64), 1)):  # the rest holds
        vlm.forward(vlm.encode(examples(1)))


def test_llavas_heads_are_found_where_its_family_says(tiny_llava):
    found, written = discovered(tiny_llava), VLM.load(str(tiny_llava), device="cpu")
    for layer in range(2):
        one, other = (vlm.family.heads(vlm.model, layer) for vlm in (found, written))
        assert (one.count, one.size) == (other.count, other.size) == (4, 16)
        assert one.projection is found.model.model.language_model.layers[layer].self_attn.o_proj


# --- means ---


def test_means_are_those_of_a_slow_loop_over_prompts(any_vlm):
    asked = examples(5)
    found = head_ablation.means(any_vlm, asked, batch_size=3)
    assert list(found.values) == layers_of(any_vlm)
    for layer in found.values:
        expected, tokens = means_by_hand(any_vlm, asked, layer)
        assert found.tokens.tolist() == tokens
        for place, wanted in enumerate(expected):
            if wanted is None:
                assert found.values[layer][place].isnan().all()
            else:
                assert (found.values[layer][place] - wanted).abs().max() < 1e-5
    assert found.examples == 5


def test_the_mean_stands_for_the_head_at_each_place_alone_and_in_a_batch(any_vlm):
    asked, heads = examples(4), some_heads(any_vlm)
    layer, own = heads[-1][0], [head for layer, head in heads if layer == heads[-1][0]]
    reference = head_ablation.means(any_vlm, asked)
    off = ablated([(layer, head) for head in own], "mean", reference)
    batch = any_vlm.encode(asked)
    with intervene(any_vlm, heads=off):
        together = any_vlm.forward(batch).logits[:, -1]
    plain = any_vlm.forward(batch).logits[:, -1]
    for row, one in enumerate(asked):
        single = any_vlm.encode([one])
        at = places_of(single.spans[0])
        with written_into(any_vlm, layer, own, at, reference.values[layer]):
            expected = any_vlm.forward(single).logits[0, -1]
        with intervene(any_vlm, heads=off):
            assert torch.equal(any_vlm.forward(single).logits[0, -1], expected)
        assert (together[row] - expected).abs().max() < TOLERANCE
    assert (together - plain).abs().max() > 1e-3


def test_the_mean_of_a_constant_head_changes_nothing(any_vlm):
    heads, batch = some_heads(any_vlm), any_vlm.encode(examples(3))
    sizes = [any_vlm.family.heads(any_vlm.model, layer) for layer in layers_of(any_vlm)]
    constants = {
        layer: torch.randn(1, one.count, one.size, generator=torch.Generator().manual_seed(layer)).repeat(len(PLACES), 1, 1)
        for layer, one in zip(layers_of(any_vlm), sizes, strict=True)
    }
    made = HeadMeans(constants, torch.ones(len(PLACES), dtype=torch.long), 1)
    with intervene(any_vlm, heads=ablated(heads, "mean", made)):  # constant they are
        plain = any_vlm.forward(batch).logits
        found = head_ablation.means(any_vlm, examples(3))
        for layer, head in heads:
            there = found.tokens > 0
            assert torch.equal(found.values[layer][there, head], constants[layer][there, head])
        with intervene(any_vlm, heads=ablated(heads, "mean", found)):
            assert torch.equal(any_vlm.forward(batch).logits, plain)
        with intervene(any_vlm, heads=ablated(heads)):
            assert not torch.equal(any_vlm.forward(batch).logits, plain)


@pytest.mark.parametrize("at", ["all", "last"])
def test_means_with_and_without_cache_and_behind_a_shared_prefix(any_vlm, at):
    asked, batch = examples(6, pictures=2), any_vlm.encode(examples(3))
    off = ablated(some_heads(any_vlm), "mean", head_ablation.means(any_vlm, asked), at=at)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with intervene(any_vlm, heads=off):
        forward = any_vlm.forward(batch).logits[:, -1]
        steps = [
            torch.stack(any_vlm.model.generate(**batch.inputs, use_cache=cache, **options).logits, 1) for cache in (True, False)
        ]
        whole = score(any_vlm, asked, batch_size=5, prefix_cache=False)["logprob"]
        alone = pd.concat([score(any_vlm, [one], prefix_cache=False) for one in asked])["logprob"]
        texts = generate(any_vlm, asked, 3, prefix_cache=False)["text"].tolist()
        if any_vlm.family.shares_prefix:
            assert np.abs(score(any_vlm, asked, batch_size=4, prefix_cache=True)["logprob"] - whole).max() < TOLERANCE
            assert generate(any_vlm, asked, 3, batch_size=4, prefix_cache=True)["text"].tolist() == texts
    assert (steps[0] - steps[1]).abs().max() < TOLERANCE
    assert (steps[0][:, 0] - forward).abs().max() < TOLERANCE
    assert np.abs(alone.to_numpy() - whole.to_numpy()).max() < TOLERANCE
    assert np.abs(whole - score(any_vlm, asked)["logprob"]).max() > 1e-3


def test_decoded_tokens_lose_the_heads_too_and_have_the_mean_of_those_behind_the_picture(vlm):
    """Each step of generate equals one prompt that is as long, overwritten by hand."""
    one, layer, head = examples(1)[0], 2, 1
    reference, batch = head_ablation.means(vlm, examples(4)), vlm.encode([one])
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    for at in ("all", "last"):
        with intervene(vlm, heads=ablated([(layer, head)], "mean", reference, at=at)), torch.no_grad():
            made = vlm.model.generate(**batch.inputs, output_logits=True, **options)
        places = places_of(batch.spans[0])
        length = batch.input_ids.shape[1]
        if at == "all":
            places[AFTER] += range(length, length + 4)
        else:
            places = [[], [], [], places[LAST]]
        inputs = {**batch.inputs, "input_ids": made.sequences, "attention_mask": torch.ones_like(made.sequences)}
        inputs["position_ids"] = torch.arange(length + 4)[None]
        with written_into(vlm, layer, [head], places, reference.values[layer]), torch.no_grad():
            expected = vlm.model(**inputs, use_cache=False).logits[0, length - 1 : -1]
        assert (torch.stack(made.logits, 1)[0] - expected).abs().max() < TOLERANCE


# --- at, nesting, leaving ---


def test_at_last_no_earlier_token_loses_anything(any_vlm):
    heads, batch = some_heads(any_vlm), any_vlm.encode(examples(3))
    with capture(any_vlm, hidden="all", at=list(range(batch.input_ids.shape[1]))) as got:
        any_vlm.forward(batch)
        plain = got.hidden
        with intervene(any_vlm, heads=ablated(heads, at="last")):
            any_vlm.forward(batch)
        last = got.hidden
        with intervene(any_vlm, heads=ablated(heads)):
            any_vlm.forward(batch)
    first = heads[0][0] + 1
    for layer, hidden in last.items():
        if layer == "norm":
            continue
        assert torch.equal(hidden[:, :-1], plain[layer][:, :-1])
        assert torch.equal(hidden[:, -1], plain[layer][:, -1]) == (layer < first)
    assert torch.equal(got.hidden[first][:, -1], last[first][:, -1])  # of one layer, the last token's own loss is the same
    assert not torch.equal(got.hidden[first][:, :-1], plain[first][:, :-1])


def test_with_answers_in_the_batch_the_last_token_is_the_one_before_them(vlm):
    batch = vlm.encode(examples(3), answers=True)
    with capture(vlm, hidden=1, at=list(range(batch.input_ids.shape[1]))) as got:
        vlm.forward(batch)
        plain = got.hidden[1]
        with intervene(vlm, heads=ablated([(0, 1)], at="last")):
            vlm.forward(batch)
    moved = (got.hidden[1] != plain).any(-1)
    assert moved.nonzero().tolist() == [[row, int(spans.answer[0]) - 1] for row, spans in enumerate(batch.spans)]


def test_it_composes_with_everything_else_and_ends_in_any_order(vlm):
    batch, vector = vlm.encode(examples(2)), torch.randn(64, generator=torch.Generator().manual_seed(1))
    permutation, heads = random_permutations(36, 1)[0], [(0, 1), (2, 2)]
    plain = vlm.forward(batch).logits
    with weights_gone(vlm, heads), intervene(vlm, permute=permutation, steer=added(vector, 1)):
        expected = vlm.forward(batch).logits
    with intervene(vlm, permute=permutation, steer=added(vector, 1), heads=ablated(heads)):
        assert torch.equal(vlm.forward(batch).logits, expected)
    with (
        intervene(vlm, heads=ablated(heads[:1])),
        intervene(vlm, permute=permutation),
        intervene(vlm, heads=ablated(heads[1:])),
        intervene(vlm, steer=added(vector, 1)),
    ):
        assert torch.equal(vlm.forward(batch).logits, expected)
    outer, inner = (intervene(vlm, heads=ablated([head])) for head in heads)
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    left = vlm.forward(batch).logits
    inner.__exit__(None, None, None)
    with weights_gone(vlm, heads[1:]):
        assert torch.equal(left, vlm.forward(batch).logits)
    assert torch.equal(vlm.forward(batch).logits, plain)


def test_nothing_stays_behind_after_an_exception(any_vlm):
    modules = list(any_vlm.model.modules())

    def left():
        return [(set(vars(one)), len(one._forward_hooks), len(one._forward_pre_hooks)) for one in modules]

    before, batch = left(), any_vlm.encode(examples(2))
    reference = head_ablation.means(any_vlm, examples(2))
    hollow = HeadMeans(reference.values, torch.zeros(len(PLACES), dtype=torch.long), 0)
    assert left() == before
    with pytest.raises(ZeroDivisionError), intervene(any_vlm, heads=ablated(some_heads(any_vlm), "mean", reference)):
        assert left() != before
        assert any_vlm.family.edits_hidden(any_vlm.model)
        raise ZeroDivisionError
    with (
        pytest.raises(ValueError, match="have no token there"),
        intervene(any_vlm, heads=ablated(some_heads(any_vlm), "mean", hollow)),
    ):
        any_vlm.model.generate(**batch.inputs, max_new_tokens=2)
    with pytest.raises(ValueError, match="has no head 4"), intervene(any_vlm, heads=ablated([*some_heads(any_vlm), (1, 4)])):
        pytest.fail("was accepted")
    with pytest.raises(ZeroDivisionError), any_vlm.family.keep_image_features(any_vlm.model):
        any_vlm.forward(batch)
        raise ZeroDivisionError
    assert left() == before
    assert not any_vlm.family.edits_hidden(any_vlm.model)


def test_the_last_token_run_again_lacks_the_heads_as_whole_prompts_do(vlm):
    batch, steer = vlm.encode(examples(3)), added(torch.randn(64, generator=torch.Generator().manual_seed(2)), 2)
    words = torch.tensor([[3, 5]] * 3)
    for at in ("all", "last"):
        with intervene(vlm, heads=ablated(some_heads(vlm), "mean", head_ablation.means(vlm, examples(3)), at=at)):
            found = steered_words(vlm, batch, [steer], words)
            plain = vlm.forward(batch).logits[:, -1].gather(-1, words)
            with intervene(vlm, steer=steer):
                steered = vlm.forward(batch).logits[:, -1].gather(-1, words)
        assert (found - torch.stack([plain, steered], 1)).abs().max() < TOLERANCE


def test_half_precision_stays(tiny_llava):
    vlm = VLM.load(str(tiny_llava), dtype="bfloat16")
    batch, reference = vlm.encode(examples(2)), head_ablation.means(vlm, examples(3))
    for off in (ablated([(0, 1)]), ablated([(0, 1)], "mean", reference)):
        with intervene(vlm, heads=off):
            assert vlm.forward(batch).logits.dtype == torch.bfloat16
    assert reference.values[0].dtype == torch.float32


def test_places_are_told_by_a_padded_batch_as_by_spans(vlm):
    asked = examples(5)
    found = head_ablation.means(vlm, asked).tokens
    spans = [vlm.encode([one]).spans[0] for one in asked]
    assert found[VISION] == sum(len(one.vision) for one in spans) == 5 * 36
    assert found[LAST] == 5
    assert found[BEFORE] == sum(int(one.vision[0]) - one.start for one in spans)
    assert found.sum() == sum(one.length - one.start for one in spans)


# --- what is refused ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda means: ablated([]), "heads is empty"),
        (lambda means: ablated([3]), "3 is no head"),
        (lambda means: ablated([(0, -1)]), r"\(0, -1\) is no head"),
        (lambda means: ablated([(0, True)]), "is no head"),
        (lambda means: ablated([(0, 1, 2)]), "is no head"),
        (lambda means: ablated([(0, 1)], "median"), "how='median' is unknown; one of 'zero', 'mean'"),
        (lambda means: ablated([(0, 1)], "mean"), "how='mean' needs means"),
        (lambda means: ablated([(0, 1)], "zero", means), "how='zero' takes no means"),
        (lambda means: ablated([(0, 1)], at="vision"), "at='vision' is unknown; 'all' or 'last'"),
        (lambda means: ablated([(0, 4)]), "layer 0 has no head 4; it has heads 0 to 3"),
        (lambda means: ablated([(3, 0)]), "layer 3 has no heads: the model has layers 0 to 2"),
        (lambda means: ablated([(1, 0)], "mean", means), "layer 1 has no means; there are those of layers 0"),
        (lambda means: ablated([(0, 0)], "mean", HeadMeans({0: torch.zeros(4, 2, 16)}, means.tokens, 1)), "2 x 16; .* 4 x 16"),
    ],
)
def test_what_cannot_be_taken_out_is_refused_before_the_model_runs(vlm, make, message):
    reference = head_ablation.means(vlm, examples(2), layers=[0])
    with pytest.raises(ValueError, match=message), intervene(vlm, heads=make(reference)):
        pytest.fail("was accepted")


def test_linear_layers_are_refused_by_name(tiny_qwen3_5):
    vlm = VLM.load(str(tiny_qwen3_5))
    linear = "layer 2 has no heads to take out, its attention is linear; layers with heads: 1, 3"
    with pytest.raises(ValueError, match=linear), intervene(vlm, heads=ablated([(1, 0), (2, 0)])):
        pytest.fail("was accepted")
    with pytest.raises(ValueError, match="its attention is linear"):
        head_ablation.means(vlm, examples(1), layers=[0])
    with pytest.raises(ValueError, match="its attention is linear"):
        head_ablation.measure(vlm, examples(2), {"a": [(0, 1)]})


def test_means_need_to_know_the_tokens(vlm):
    batch, reference = vlm.encode(examples(1)), head_ablation.means(vlm, examples(2))
    embedded = vlm.model.get_input_embeddings()(batch.input_ids)
    with (
        pytest.raises(ValueError, match="run without input_ids"),
        intervene(vlm, heads=ablated([(0, 0)], "mean", reference)),
    ):
        vlm.model(inputs_embeds=embedded)
    with pytest.raises(ValueError, match="no examples were given"):
        head_ablation.means(vlm, [])


# --- the probe ---

GROUPS = {"found": [(0, 1), (1, 0), (1, 3)], "one": [(2, 2)]}


@pytest.fixture(scope="module")
def table(vlm):
    return head_ablation.measure(vlm, examples(6), GROUPS, draws=2, batch_size=5, seed=3)


def margins_slowly(vlm, asked, heads):
    """Whole prompts, weights gone, choice by choice."""
    with weights_gone(vlm, heads):
        scores = score(vlm, asked, prefix_cache=False).set_index(["id", "choice"])["normalised"]
        right = answer(vlm, asked, "score", prefix_cache=False).set_index("id")["correct"]
    margins = {
        one.id: scores[one.id, one.answer] - max(scores[one.id, other] for other in one.choices if other != one.answer)
        for one in asked
    }
    return margins, right.to_dict()


def test_margins_are_those_of_a_model_without_the_weights(vlm, table):
    asked = examples(6)
    sets = {("none", -1): []} | {(name, -1): heads for name, heads in GROUPS.items()}
    for name, heads in GROUPS.items():
        drawn = head_ablation.random_sets(vlm, heads, 2, 3)
        sets |= {(f"random:{name}", draw): own for draw, (own, _) in enumerate(drawn)}
    zero = table[table["how"] != "mean"]
    assert set(zip(zero["heads"], zero["draw"], strict=True)) == set(sets)
    plain, _ = margins_slowly(vlm, asked, [])
    for (name, draw), heads in sets.items():
        own = zero[(zero["heads"] == name) & (zero["draw"] == draw)].set_index("example")
        margins, right = margins_slowly(vlm, asked, heads)
        assert list(own.index) == [one.id for one in asked]
        for one in asked:
            assert own.loc[one.id, "margin"] == pytest.approx(margins[one.id], abs=TOLERANCE)
            assert own.loc[one.id, "change"] == pytest.approx(margins[one.id] - plain[one.id], abs=TOLERANCE)
            assert own.loc[one.id, "correct"] == right[one.id]
    assert zero["change"].abs().max() > 1e-2


def test_mean_ablation_takes_the_means_of_the_examples_or_those_given(vlm, table):
    asked = examples(6)
    reference = head_ablation.means(vlm, asked)
    with intervene(vlm, heads=ablated(GROUPS["found"], "mean", reference)):
        scores = score(vlm, asked).set_index(["id", "choice"])["normalised"]
    own = table[(table["heads"] == "found") & (table["how"] == "mean")].set_index("example")["margin"]
    for one in asked:
        best = max(scores[one.id, other] for other in one.choices if other != one.answer)
        assert own[one.id] == pytest.approx(scores[one.id, one.answer] - best, abs=TOLERANCE)
    others = head_ablation.means(vlm, examples(2))
    given = head_ablation.measure(vlm, asked, GROUPS, how=["mean"], draws=0, reference=others)
    assert set(given["heads"]) == {"none", *GROUPS}
    assert abs(given[given["heads"] == "found"].set_index("example")["margin"] - own).max() > 1e-4


def test_batches_and_order_do_not_matter_but_the_seed_does(vlm, table):
    by = ["example", "heads", "draw", "how"]

    def sorted_table(frame):
        return frame.sort_values(by, ignore_index=True)

    again = head_ablation.measure(vlm, examples(6)[::-1], GROUPS, draws=2, batch_size=64, seed=3)
    pd.testing.assert_frame_equal(sorted_table(table), sorted_table(again), atol=TOLERANCE, rtol=0)
    other = head_ablation.measure(vlm, examples(6), GROUPS, draws=2, how=["zero"], seed=4)
    zero = sorted_table(table[table["how"] != "mean"].reset_index(drop=True))
    assert abs(sorted_table(other)["margin"] - zero["margin"])[zero["heads"].str.startswith("random")].max() > 1e-3
    assert table.attrs == {"draws": {"found": 2, "one": 2}, "heads": {"found": [[0, 1], [1, 0], [1, 3]], "one": [[2, 2]]}}


def test_every_family_is_measured(any_vlm):
    layer = layers_of(any_vlm)[-1]
    frame = head_ablation.measure(any_vlm, examples(4, pictures=2), {"a": [(layer, 1)]}, draws=1, batch_size=3)
    assert len(frame) == 4 * 5
    with weights_gone(any_vlm, [(layer, 1)]):
        right = answer(any_vlm, examples(4, pictures=2), "score").set_index("id")["correct"]
    own = frame[(frame["heads"] == "a") & (frame["how"] == "zero")].set_index("example")["correct"]
    assert own.to_dict() == right.to_dict()


def test_a_batch_is_encoded_when_the_one_before_is_done(vlm, monkeypatch):
    done, assemble, forward = [], vlm.assemble, vlm.forward
    monkeypatch.setattr(vlm, "assemble", lambda *a, **k: done.append("encoded") or assemble(*a, **k))
    monkeypatch.setattr(vlm, "forward", lambda *a, **k: done.append("run") or forward(*a, **k))
    head_ablation.measure(vlm, examples(6), {"a": [(1, 1)]}, how=["zero"], draws=1, batch_size=4)
    batches = done.count("encoded")
    assert batches > 2 and done == ["encoded", "run", "run", "run"] * batches  # the whole model, the head, a random one


def test_pictures_pass_the_tower_once_a_batch(any_vlm):
    asked, layer, runs = examples(4, pictures=2), layers_of(any_vlm)[0], []
    tower = any_vlm.family.part(any_vlm.model, "tower_layers")[0]
    handle = tower.register_forward_hook(lambda *_: runs.append(1))
    permutation = random_permutations(len(any_vlm.encode(asked[:1]).spans[0].vision), 1)[0]
    head_ablation.measure(any_vlm, asked, {"a": [(layer, 1)]}, how=["zero"], draws=3)
    once = len(runs)
    any_vlm.vision_features(asked[:2])
    handle.remove()
    assert once == len(runs) - once
    features = any_vlm.vision_features(asked[:2])
    with any_vlm.family.keep_image_features(any_vlm.model):
        for examples_shown in (asked[:2], asked[:2], asked[1::-1]):
            own = any_vlm.vision_features(examples_shown)
            expected = features if examples_shown == asked[:2] else features[::-1]
            assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(own, expected, strict=True))
    with intervene(any_vlm, permute=permutation):
        moved = any_vlm.vision_features(asked[:2])
        with any_vlm.family.keep_image_features(any_vlm.model):
            for _ in range(2):  # permuted once, not once a run
                kept = any_vlm.vision_features(asked[:2])
                assert all(torch.equal(one, other) for one, other in zip(kept, moved, strict=True))


@settings(deadline=None, max_examples=40)
@given(
    heads=st.sets(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1), draws=st.integers(0, 12), seed=st.integers(0, 9)
)
def test_random_sets_are_other_heads_of_the_same_layers(vlm, heads, draws, seed):
    sets = head_ablation.random_sets(vlm, sorted(heads), draws, seed)
    assert len({tuple(own) for own, _ in sets}) == len(sets) <= draws
    count = {layer: sum(one == layer for one, _ in heads) for layer, _ in heads}
    for own, shared in sets:
        assert len(set(own)) == len(own) and set(own) != heads
        assert {layer: sum(one == layer for one, _ in own) for layer, _ in own} == count
        assert len(heads & set(own)) == shared == sum(max(0, 2 * n - 4) for n in count.values())
    if draws and any(n < 4 for n in count.values()):
        assert sets
    if all(n == 4 for n in count.values()):
        assert not sets


def test_all_other_sets_are_taken_where_there_are_few(vlm):
    assert sorted(own for own, _ in head_ablation.random_sets(vlm, [(1, 2)], 20)) == [[(1, 0)], [(1, 1)], [(1, 3)]]
    sets = head_ablation.random_sets(vlm, [(1, 0), (1, 1), (1, 2)], 20)
    tested = [[(1, 0), (1, 1)], [(1, 0), (1, 2)], [(1, 1), (1, 2)]]
    assert sorted(own for own, _ in sets) == [[*two, (1, 3)] for two in tested]
    assert {shared for _, shared in sets} == {2}


def made_up(margins, draws):
    """A table of one group: margins by set [example], clusters of two examples."""
    frames = []
    for (name, draw), own in margins.items():
        n = np.arange(len(own))
        frames.append(
            pd.DataFrame(
                {
                    "example": [f"e{i}" for i in n],
                    "cluster": [f"c{i // 2}" for i in n],
                    "category": "left",
                    "heads": name,
                    "draw": draw,
                    "how": "none" if name == "none" else "zero",
                    "correct": own > 0,
                    "margin": own,
                    "change": own - margins["none", -1],
                    "shared": 0,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def test_the_summary_in_closed_form():
    rng = np.random.default_rng(0)
    plain = rng.normal(2, 1, 40)
    margins = {("none", -1): plain, ("a", -1): plain - 3}
    margins |= {("random:a", draw): plain - shift for draw, shift in enumerate((0.0, 0.5, 1.0, 4.0))}
    frame = made_up(margins, 4)
    whole, row = (one for _, one in head_ablation.summary(frame.sample(frac=1, random_state=1)).iterrows())
    right = {key: (own > 0).mean() for key, own in margins.items()}
    others = [right["random:a", draw] for draw in range(4)]
    assert (whole["heads"], whole["accuracy"], whole["n"], whole["clusters"]) == ("none", right["none", -1], 40, 20)
    assert row["accuracy"] == right["a", -1]
    assert row["drop"] == pytest.approx(right["none", -1] - right["a", -1])
    assert row["against_random"] == pytest.approx(np.mean(others) - right["a", -1])
    assert row["random"] == pytest.approx(np.mean(others))
    assert row[["change", "change_low", "change_high"]].tolist() == pytest.approx([-3, -3, -3])
    assert row["random_change"] == pytest.approx(-5.5 / 4)
    assert row["change_against_random"] == pytest.approx(-3 + 5.5 / 4)
    assert row["p_rank"] == pytest.approx((1 + 1) / (1 + 4))  # one of four costs more
    assert row["p_change"] < 0.001 and row["p"] < 0.05
    assert row["drop_low"] > 0 and row["against_random_low"] > 0
    assert row["draws"] == 4 and np.isnan(whole["drop"])
    alike = {("none", -1): plain, ("a", -1): plain - 3, ("random:a", 0): plain - 3, ("random:a", 1): plain}
    assert head_ablation.summary(made_up(alike, 2))["p_rank"].iloc[1] == pytest.approx(2 / 3)  # as much is not less


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda frame: frame[frame["heads"] != "none"], "no row of the whole model"),
        (lambda frame: pd.concat([frame, frame]), "example 'e0' stands twice"),
        (lambda frame: frame.drop(columns="margin"), "column 'margin' is missing"),
        (lambda frame: frame[1:], "NaN"),
    ],
)
def test_tables_that_cannot_be_summed_up_are_refused(spoil, message):
    plain = np.random.default_rng(0).normal(2, 1, 8)
    with pytest.raises(ValueError, match=message):
        head_ablation.summary(spoil(made_up({("none", -1): plain, ("a", -1): plain - 1}, 0)))


def test_heads_that_are_like_the_others_are_not_found():
    """Sign flips and ranks hold their size where what is tested is one more random set."""
    ps, ranks = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        plain = rng.normal(1, 1, 30)
        names = [("none", -1), ("a", -1), *(("random:a", draw) for draw in range(9))]
        row = head_ablation.summary(
            made_up({name: plain + rng.normal(0, 1, 30) * (name[0] != "none") for name in names}, 9), n=100
        )
        ps.append(row["p_change"].iloc[1])
        ranks.append(row["p_rank"].iloc[1])
    assert np.mean(np.array(ps) < 0.05) < 0.15
    assert np.mean(np.array(ranks) <= 0.1) < 0.25
    assert min(ranks) == pytest.approx(0.1)


def test_whole_layers_have_no_other_set_and_one_picture_no_interval(vlm):
    asked = [replace(one, cluster="same") for one in examples(3)]
    frame = head_ablation.measure(vlm, asked, {"layer": [(1, head) for head in range(4)]}, how=["zero"])
    row = head_ablation.summary(frame).iloc[1]
    assert frame.attrs["draws"] == {"layer": 0}
    assert np.isnan(row[["against_random", "p", "p_rank", "draws", "low", "drop_low"]].astype(float)).all()
    assert row["drop"] == pytest.approx(head_ablation.summary(frame)["accuracy"].iloc[0] - row["accuracy"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": {}}, "no groups"),
        ({"groups": {"none": [(0, 1)]}}, "cannot be called 'none'"),
        ({"groups": {"random:x": [(0, 1)]}}, "cannot be called 'random:x'"),
        ({"groups": {"a": []}}, "heads is empty"),
        ({"groups": {"a": [(0, 9)]}}, "layer 0 has no head 9"),
        ({"how": "zero"}, "how='zero': one or several of"),
        ({"how": ["zero", "noise"]}, "one or several of"),
        ({"draws": -1}, "draws=-1"),
        ({"examples": [replace(examples(1)[0], answer="blue", choices=["red", "green"])]}, "answer 'blue' and choices"),
        ({"examples": [replace(examples(1)[0], answer="red", choices=["red"])]}, "no margin over another choice"),
        ({"examples": [replace(examples(1)[0], choices=None)]}, "no choices to score"),
        ({"examples": []}, "no examples were given"),
    ],
)
def test_what_cannot_be_measured_is_refused(vlm, change, message):
    options = {"examples": examples(2), "groups": {"a": [(0, 1)]}} | change
    asked, groups = options.pop("examples"), options.pop("groups")
    with pytest.raises(ValueError, match=message):
        head_ablation.measure(vlm, asked, groups, **options)


def test_the_summary_keeps_the_order_of_the_groups(vlm, table):
    rows = head_ablation.summary(table)
    assert list(zip(rows["heads"], rows["how"], strict=True)) == [
        ("none", "none"),
        *((name, how) for how in ("mean", "zero") for name in GROUPS),
    ]
