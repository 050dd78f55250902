"""Steering equals changing hidden states by hand, in every family and way of running; and nothing stays behind."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples
from unknown import save_gemma3

from spatialprobes.answers import answer, generate, score
from spatialprobes.capture import capture
from spatialprobes.intervene import added, intervene, random_permutations, removed
from spatialprobes.last_token import _can_branch, _one_by_one, _side_by_side, steered_words
from spatialprobes.steering import project_out
from spatialprobes.vlm import VLM

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vlm(request):
    return VLM.load(str(request.getfixturevalue("tiny_llava_grouped")))


@pytest.fixture(scope="module")
def any_vlm(tiny_family):
    return VLM.load(str(tiny_family))


def vectors(vlm, n=1, seed=0, scale=3.0):
    made = scale * torch.randn(n, vlm.text_embeddings().shape[1], generator=torch.Generator().manual_seed(seed))
    return made if n > 1 else made[0]


@torch.no_grad()
def by_hand(vlm, batch, layer, change):
    """Logits with `change` made to all hidden states [example, token, width] of a layer: later blocks run one by one."""
    blocks = vlm.family.part(vlm.model, "layers")
    seen = {}

    def note(i):
        def hook(module, args, kwargs):
            named = dict(kwargs)
            entering = args[0] if args else named.pop(next(iter(named)))
            seen[i] = (entering.clone(), named)

        return hook

    handles = [block.register_forward_pre_hook(note(i), with_kwargs=True) for i, block in enumerate(blocks)]
    vlm.model(**batch.inputs, use_cache=False)
    for handle in handles:
        handle.remove()
    if layer < len(blocks):
        hidden = seen[layer][0]
    else:
        hidden = vlm.family.hidden(blocks[-1](seen[layer - 1][0], **seen[layer - 1][1]))
    hidden = change(hidden.clone())
    for i in range(layer, len(blocks)):
        hidden = vlm.family.hidden(blocks[i](hidden, **seen[i][1]))
    return vlm.model.get_output_embeddings()(vlm.family.part(vlm.model, "final_norm")(hidden))


def test_zero_changes_no_bit_at_any_layer(any_vlm):
    batch = any_vlm.encode(examples(3))
    plain = any_vlm.forward(batch).logits
    for layer in range(any_vlm.n_layers + 1):
        with intervene(any_vlm, steer=added(torch.zeros_like(vectors(any_vlm)), layer, at="all")):
            assert torch.equal(any_vlm.forward(batch).logits, plain)


def test_steering_the_last_token_equals_running_the_later_blocks_on_what_was_changed(any_vlm):
    batch = any_vlm.encode(examples(3))
    real = batch.attention_mask.bool()
    plain = any_vlm.forward(batch).logits
    by_row = vectors(any_vlm, 3)
    for layer in range(any_vlm.n_layers + 1):

        def change(hidden):
            hidden[:, -1] += by_row
            return hidden

        expected = by_hand(any_vlm, batch, layer, change)
        with intervene(any_vlm, steer=added(by_row, layer)):
            found = any_vlm.forward(batch).logits
        assert (found - expected)[real].abs().max() < TOLERANCE
        assert torch.equal(found[:, :-1], plain[:, :-1])
        assert ((found - plain)[:, -1].abs().amax(-1) > 1e-2).all()


def test_a_discovered_family_is_steered_too(tmp_path):
    """Gemma 3, of which the library knows nothing: windows in most layers, another norm and rotary embedding."""
    vlm = VLM.load(str(save_gemma3(tmp_path / "gemma3")), device="cpu")
    batch, vector = vlm.encode(examples(2)), vectors(vlm, 2)
    words = torch.tensor([[7, 9], [8, 6]])
    plain = vlm.forward(batch).logits
    for layer in (0, 1, vlm.n_layers):

        def change(hidden):
            hidden[:, -1] += vector
            return hidden

        expected = by_hand(vlm, batch, layer, change)[:, -1]
        with intervene(vlm, steer=added(vector, layer)):
            found = vlm.forward(batch).logits
        assert (found[:, -1] - expected).abs().max() < TOLERANCE
        assert torch.equal(found[:, :-1], plain[:, :-1]) and not torch.allclose(found[:, -1], plain[:, -1], atol=1e-2)
        again = steered_words(vlm, batch, [added(vector, layer)], words)
        assert (again[:, 1] - expected.gather(-1, words)).abs().max() < TOLERANCE


def test_steering_all_tokens_equals_changing_all_by_hand(any_vlm):
    batch = any_vlm.encode(examples(3))
    real = batch.attention_mask.bool()
    vector, centre = vectors(any_vlm), vectors(any_vlm, seed=1)
    unit = vector / vector.norm()
    expected = by_hand(any_vlm, batch, 1, lambda hidden: hidden - ((hidden - centre) @ unit)[..., None] * unit)
    with intervene(any_vlm, steer=removed(vector, 1, centre=centre, at="all")):
        found = any_vlm.forward(batch).logits
    assert (found - expected)[real].abs().max() < TOLERANCE
    assert (found - any_vlm.forward(batch).logits)[real].abs().max() > 1e-2


@pytest.mark.parametrize("at", ["word:the", "vision", [[5, -2], [6, -3], [7, -1]], [-4, 3]])
def test_only_the_tokens_asked_for_move(vlm, at):
    batch = vlm.encode(examples(3))
    if isinstance(at, str):
        wanted = [spans.word("the").tolist() if at != "vision" else spans.vision.tolist() for spans in batch.spans]
    else:
        wanted = at if isinstance(at[0], list) else [at] * 3
    vector = vectors(vlm)
    everything = list(range(batch.input_ids.shape[1]))
    with capture(vlm, hidden=[1, 2], at=everything) as got:
        vlm.forward(batch)
        plain = dict(got.hidden)
        with intervene(vlm, steer=added(vector, 1, at=at)):
            vlm.forward(batch)
    expected = plain[1].clone()
    for row, tokens in enumerate(wanted):
        expected[row, tokens] += vector
    assert torch.equal(got.hidden[1], expected)
    for row, tokens in enumerate(wanted):  # what comes earlier does not see it, what comes later does
        before = min(token % len(everything) for token in tokens)
        assert torch.equal(got.hidden[2][row, :before], plain[2][row, :before])
        assert not torch.equal(got.hidden[2][row, before:], plain[2][row, before:])


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("capture_first", [True, False])
def test_a_capture_reads_what_was_steered_whichever_was_opened_first(any_vlm, layer, capture_first):
    batch, vector = any_vlm.encode(examples(2)), vectors(any_vlm)
    with capture(any_vlm, hidden=[layer, layer + 1]) as got:
        any_vlm.forward(batch)
    plain = got.hidden
    opened = [capture(any_vlm, hidden=[layer, layer + 1]), intervene(any_vlm, steer=added(vector, layer))]
    first, second = opened if capture_first else opened[::-1]
    with first as a, second as b:
        any_vlm.forward(batch)
    hidden = (a or b).hidden
    assert torch.equal(hidden[layer], plain[layer] + vector)
    assert not torch.equal(hidden[layer + 1], plain[layer + 1])


def generated(vlm, batch, steer=None, use_cache=True, tokens=4):
    """Logits of every step of a plain generate, and the new tokens."""
    options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "use_cache": use_cache}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        if steer is None:
            out = vlm.model.generate(**batch.inputs, **options)
        else:
            with intervene(vlm, steer=steer):
                out = vlm.model.generate(**batch.inputs, **options)
    return torch.stack(out.logits, 1), out.sequences[:, batch.input_ids.shape[1] :]


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("at", ["last", "all"])
def test_plain_generate_steers_the_same_tokens_with_and_without_cache(any_vlm, at, later):
    batch, vector = any_vlm.encode(examples(2)), vectors(any_vlm)
    steer = added(vector, 1, at=at, later=later)
    plain, _ = generated(any_vlm, batch)
    cached, tokens = generated(any_vlm, batch, steer)
    uncached, again = generated(any_vlm, batch, steer, use_cache=False)
    assert torch.equal(tokens, again)
    assert (cached - uncached).abs().max() < TOLERANCE
    assert (cached - plain).abs().max() > 1e-2
    with intervene(any_vlm, steer=steer):
        assert (any_vlm.forward(batch).logits[:, -1] - cached[:, 0]).abs().max() < TOLERANCE


@pytest.mark.parametrize("later", [False, True])
def test_decoded_tokens_are_steered_where_asked_and_only_there(vlm, later):
    """Each step of generate equals a forward of all tokens so far, with the last prompt token, or all from it on, steered."""
    batch, vector = vlm.encode(examples(2)), vectors(vlm)
    steps, new = generated(vlm, batch, added(vector, 1, later=later))
    length, count = batch.input_ids.shape[1], new.shape[1]
    inputs = {**batch.inputs, "input_ids": torch.cat([batch.input_ids, new], -1)}
    inputs["attention_mask"] = torch.cat([batch.attention_mask, torch.ones_like(new)], -1)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    places = list(range(length - 1, length + count)) if later else [length - 1]
    with intervene(vlm, steer=added(vector, 1, at=places)), torch.no_grad():
        expected = vlm.model(**inputs, use_cache=False).logits[:, length - 1 : -1]
    assert (steps - expected).abs().max() < TOLERANCE


def test_scores_and_texts_are_the_same_with_a_shared_prefix_and_without(any_vlm):
    asked = examples(6, pictures=2)
    by_id = {one.id: vector for one, vector in zip(asked, vectors(any_vlm, 6), strict=True)}
    by_cluster = dict(zip(("picture-0", "picture-1"), vectors(any_vlm, 2), strict=True))
    for values in (by_id, by_cluster):
        alone = {}
        for one in asked:
            with intervene(any_vlm, steer=added(values.get(one.id, values.get(one.cluster)), 1)):
                batch = any_vlm.encode([one])
                alone[one.id] = any_vlm.forward(batch).logits[0, -1].log_softmax(-1)
        with intervene(any_vlm, steer=added(values, 1)):
            whole = generate(any_vlm, asked, 3, batch_size=6, prefix_cache=False)["text"].tolist()
            for shared in (True, False) if any_vlm.family.shares_prefix else (False,):
                scores = score(any_vlm, asked, batch_size=4, prefix_cache=shared).set_index(["id", "choice"])["logprob"]
                for one in asked:
                    spelt = [any_vlm.encode([replace(one, answer=choice)], answers=True) for choice in one.choices]
                    words = [batch.input_ids[0, batch.spans[0].answer].tolist() for batch in spelt]
                    for choice, tokens in zip(one.choices, words, strict=True):
                        if len(tokens) == 1:
                            assert scores[one.id, choice] == pytest.approx(float(alone[one.id][tokens[0]]), abs=TOLERANCE)
                texts = generate(any_vlm, asked, 3, batch_size=4, prefix_cache=shared)["text"].tolist()
                assert texts == whole


def test_with_answers_in_the_batch_the_last_prompt_token_is_the_one_before_them(vlm):
    batch, vector = vlm.encode(examples(3), answers=True), vectors(vlm)
    before = [[int(spans.answer[0]) - 1] for spans in batch.spans]
    after = [list(range(place[0], batch.input_ids.shape[1])) for place in before]
    for later, places in ((False, before), (True, None)):
        with intervene(vlm, steer=added(vector, 1, later=later)):
            found = vlm.forward(batch).logits
        for row in range(3):
            with intervene(vlm, steer=added(vector, 1, at=places[row] if places else after[row])):
                assert torch.equal(vlm.forward(batch).logits[row], found[row])


def test_nested_steerings_act_in_the_order_opened_and_end_in_any(vlm):
    batch, one, other = vlm.encode(examples(2)), *vectors(vlm, 2)
    plain = vlm.forward(batch).logits
    with capture(vlm, hidden=1) as got:
        with intervene(vlm, steer=added(one, 1)), intervene(vlm, steer=removed(other, 1)):
            vlm.forward(batch)
        then_removed = got.hidden[1][:, 0]
        with intervene(vlm, steer=removed(other, 1)), intervene(vlm, steer=added(one, 1)):
            vlm.forward(batch)
        then_added = got.hidden[1][:, 0]
    unit = other / other.norm()
    assert (then_removed @ unit).abs().max() < TOLERANCE
    assert (then_added @ unit - one @ unit).abs().max() < TOLERANCE
    assert abs(one @ unit) > 0.1
    outer, inner = intervene(vlm, steer=added(one, 1)), intervene(vlm, steer=added(other, 1))
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    only_inner = vlm.forward(batch).logits
    inner.__exit__(None, None, None)
    with intervene(vlm, steer=added(other, 1)):
        assert torch.equal(vlm.forward(batch).logits, only_inner)
    assert torch.equal(vlm.forward(batch).logits, plain)


def test_steering_and_permuting_at_once(vlm):
    batch, vector = vlm.encode(examples(2)), vectors(vlm)
    permutation = random_permutations(36, 1)[0]
    with intervene(vlm, permute=permutation), intervene(vlm, steer=added(vector, 2)):
        nested = vlm.forward(batch).logits
    with intervene(vlm, permute=permutation, steer=added(vector, 2)):
        assert torch.equal(vlm.forward(batch).logits, nested)
    with intervene(vlm, permute=permutation):
        assert not torch.equal(vlm.forward(batch).logits, nested)


def test_nothing_stays_behind_after_an_exception(any_vlm):
    modules = list(any_vlm.model.modules())

    def left():
        return [(set(vars(one)), len(one._forward_hooks), len(one._forward_pre_hooks)) for one in modules]

    before, batch = left(), any_vlm.encode(examples(2))
    for layer in (0, 1):
        with pytest.raises(ZeroDivisionError), intervene(any_vlm, steer=added(vectors(any_vlm, 2), layer, at="all")):
            assert left() != before
            assert any_vlm.by_row_interventions and any_vlm.whole_prompts
            raise ZeroDivisionError
        wrong = added(vectors(any_vlm, 3), layer)
        with pytest.raises(ValueError, match="3 steering vectors for a batch of 2"), intervene(any_vlm, steer=wrong):
            any_vlm.model.generate(**batch.inputs, max_new_tokens=2)
        assert left() == before
        assert (any_vlm.by_row_interventions, any_vlm.whole_prompts) == (0, 0)
        assert not any_vlm.family.edits_hidden(any_vlm.model)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), strength=st.floats(0, 50))
def test_projections_are_idempotent_and_do_not_see_what_was_added_along_them(seed, strength):
    generator = torch.Generator().manual_seed(seed)
    hidden, unit, centre = torch.randn(3, 4, 16, dtype=torch.float64, generator=generator)
    unit = unit / unit.norm(dim=-1, keepdim=True)
    once = project_out(hidden, unit, centre)
    assert torch.allclose((once * unit).sum(-1), (centre * unit).sum(-1))
    assert torch.allclose(project_out(once, unit, centre), once)
    assert torch.allclose(project_out(hidden + strength * unit, unit, centre), once)
    other = torch.linalg.svd(unit[:1]).Vh[1:]  # what is at right angles to it stays
    assert torch.allclose(once[0] @ other.T, hidden[0] @ other.T)


def test_removing_twice_is_removing_once_and_sums_of_vectors_are_one(vlm):
    batch, vector = vlm.encode(examples(2)), vectors(vlm)

    def logits(*steerings):
        with ExitStack() as stack:
            for one in steerings:
                stack.enter_context(intervene(vlm, steer=one))
            return vlm.forward(batch).logits[:, -1]

    once = logits(removed(vector, 1))
    assert (logits(removed(vector, 1), removed(vector, 1)) - once).abs().max() < TOLERANCE
    assert (logits(removed(-7 * vector, 1)) - once).abs().max() < TOLERANCE
    assert (logits(added(vector, 1), removed(vector, 1)) - once).abs().max() < TOLERANCE
    assert (logits(added(0.25 * vector, 1), added(0.75 * vector, 1)) - logits(added(vector, 1))).abs().max() < TOLERANCE
    assert (logits(added(vector, 1), added(-vector, 1)) - logits()).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays(tiny_llava, dtype):
    vlm = VLM.load(str(tiny_llava), dtype=dtype)
    batch, vector = vlm.encode(examples(2)), vectors(vlm)
    with capture(vlm, hidden=[1, 2]) as got:
        vlm.forward(batch)
        plain = got.hidden[1].float()
        with intervene(vlm, steer=added(vector, 1)), intervene(vlm, steer=removed(vectors(vlm, seed=4), 2)):
            logits = vlm.forward(batch).logits
    assert logits.dtype == got.hidden[1].dtype == getattr(torch, dtype)
    assert torch.equal(got.hidden[1], (plain + vector).to(logits.dtype))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda width: added([float("nan")] * width, 1), "vectors: finite numbers .*; 32|64 of"),
        (lambda width: added({"e0": [float("inf")] * width}, 1), r"vectors\['e0'\]: finite numbers"),
        (lambda width: added({}, 1), "empty mapping"),
        (lambda width: added({"e0": [[1.0] * width]}, 1), r"finite numbers \[width\], not"),
        (lambda width: added([[1.0], [1.0, 2.0]], 1), "finite numbers"),
        (lambda width: added([True] * width, 1), "not torch.bool"),
        (lambda width: added([], 1), "shape \\(0,\\)"),
        (lambda width: added(torch.ones(2, 2, width), 1), "shape \\(2, 2"),
        (lambda width: removed([0.0] * width, 1), "points nowhere"),
        (lambda width: removed([1.0] * width, 1, centre=[float("nan")] * width), "centre: finite"),
        (lambda width: added([1.0] * (width + 1), 1), "65 numbers; the model's hidden states have 64"),
        (lambda width: removed([1.0] * width, 1, centre=[1.0]), "1 numbers"),
        (lambda width: added([1.0] * width, 4), "hidden layers 0 to 3"),
        (lambda width: added([1.0] * width, -1), "layer=-1 cannot"),
        (lambda width: added([1.0] * width, "norm"), "'norm' cannot"),
        (lambda width: added([1.0] * width, True), "True cannot"),
        (lambda width: added([1.0] * width, 1, at="first"), "'last', 'all', 'word:<w>'"),
        (lambda width: added([1.0] * width, 1, at=[0.5]), "whole numbers"),
    ],
)
def test_what_cannot_be_steered_with_is_refused_before_the_model_runs(vlm, make, message):
    with pytest.raises(ValueError, match=message), intervene(vlm, steer=make(64)):
        pytest.fail("was accepted")


def test_what_does_not_fit_the_batch_is_refused(vlm):
    batch, vector = vlm.encode(examples(3)), vectors(vlm)
    two = {"picture-0": vector, "e1": vector}
    with pytest.raises(ValueError, match="no steering vector for example 'e2'"), intervene(vlm, steer=added(two, 1)):
        vlm.forward(batch)
    with pytest.raises(ValueError, match="by id needs the batch"), intervene(vlm, steer=added(two, 1)):
        vlm.model(**batch.inputs)
    with pytest.raises(ValueError, match="not one per row"), intervene(vlm, steer=added(vectors(vlm, 3), 1)):
        answer(vlm, examples(3))
    with pytest.raises(ValueError, match="outside a batch"), intervene(vlm, steer=added(vector, 1, at=[999])):
        vlm.forward(batch)
    with pytest.raises(KeyError, match="zebra"), intervene(vlm, steer=added(vector, 1, at="word:zebra")):
        vlm.forward(batch)


# --- the last token run again ---


def steerings(vlm, examples):
    """A few of each layer, of both kinds, in mixed order."""
    made = []
    for layer in (2, 0, vlm.n_layers, 1, 0):
        own = vectors(vlm, examples, seed=layer + len(made))
        made += [added(own, layer), removed(own, layer, centre=vectors(vlm, seed=9)), added(vectors(vlm, seed=len(made)), layer)]
    return made


def test_running_only_the_last_token_again_equals_whole_prompts(any_vlm, monkeypatch):
    monkeypatch.setattr("spatialprobes.last_token.COPIES", 4)  # several rounds on one cache
    asked = examples(3)
    batch = any_vlm.encode(asked)
    words = torch.tensor([[7, 9, 11], [8, 6, 5], [10, 12, 4]])
    made = steerings(any_vlm, 3)
    expected = [any_vlm.forward(batch).logits[:, -1].gather(-1, words)]
    for one in made:
        with intervene(any_vlm, steer=one):
            expected.append(any_vlm.forward(batch).logits[:, -1].gather(-1, words))
    expected = torch.stack(expected, 1)
    whole = {"qwen3_5": "states of linear attention", "idefics2": "a sliding window, whose cache drops keys"}
    assert _can_branch(any_vlm) == (any_vlm.family.model_type not in whole)
    for run in (steered_words, _one_by_one, *([_side_by_side] if _can_branch(any_vlm) else [])):
        assert (run(any_vlm, batch, made, words) - expected).abs().max() < TOLERANCE
    assert (expected[:, 1:] - expected[:, :1]).abs().amax((0, 2)).min() > 1e-2


def test_what_is_open_acts_on_every_run_of_the_last_token(vlm):
    batch, words = vlm.encode(examples(2)), torch.tensor([[7, 9], [8, 6]])
    made = [added(vectors(vlm, 2), 1), removed(vectors(vlm), 2)]
    plain = steered_words(vlm, batch, made, words)
    permutation, outer = random_permutations(36, 1)[0], vectors(vlm, seed=8)
    for options in ({"permute": permutation}, {"steer": added(outer, 1)}, {"steer": added(outer, 2, at="vision")}):
        with intervene(vlm, **options):
            found = steered_words(vlm, batch, made, words)
            assert (found - _one_by_one(vlm, batch, made, words)).abs().max() < TOLERANCE
        assert (found - plain).abs().amax((0, 2)).min() > 1e-3
    with capture(vlm, hidden=1) as got:
        assert (steered_words(vlm, batch, made, words) - plain).abs().max() < TOLERANCE
    assert len(got.steps) == 3
