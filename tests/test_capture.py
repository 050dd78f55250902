"""What capture reads equals what transformers would have shown at full size; logits do not change; nothing stays hooked."""

import numpy as np
import pytest
import torch
from tiny import examples
from transformers import AutoModelForImageTextToText

from spatialprobes.capture import capture
from spatialprobes.rows import attention_rows
from spatialprobes.vlm import VLM

ROWS_TOLERANCE = 1e-6


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_llava_grouped"])
def both(request):
    """The model as probes see it, and the same weights with eager attention."""
    folder = str(request.getfixturevalue(request.param))
    return VLM.load(folder), AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def vlm(both):
    return both[0]


def eager(model, batch, vlm):
    """Eager's full maps; the picture's features come from the SDPA tower, so that only attention rows are compared."""
    with torch.inference_mode():
        inputs = {name: value for name, value in batch.inputs.items() if name != "pixel_values"}
        features = vlm.model.get_image_features(pixel_values=batch.inputs["pixel_values"])
        return model(**inputs, mm_encoder_outputs={"image": features}, output_attentions=True)


def hooks(model):
    """Everything that a module can hold for others, by module."""
    return {
        name: (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks), sorted(vars(module)))
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("n", [5, 1])  # padded, and a single row where transformers passes no mask
def test_attention_rows_equal_eagers_and_logits_stay_bit_identical(both, n):
    vlm, reference = both
    batch = vlm.encode(examples(n))
    plain = vlm.forward(batch).logits
    everywhere = torch.arange(batch.input_ids.shape[1])
    with capture(vlm, at=everywhere, attention_rows="all") as got:
        logits = vlm.forward(batch).logits
    assert torch.equal(logits, plain)
    full = eager(reference, batch, vlm).attentions
    real = batch.attention_mask.bool()
    assert len(got.rows) == vlm.n_layers
    for layer, rows in got.rows.items():
        assert (rows - full[layer]).abs().amax((1, 3))[real].max() < ROWS_TOLERANCE
        assert full[layer].std() > 1e-3  # not flat, so that a wrong row would show
        assert torch.allclose(rows.sum(-1)[real[:, None].expand(rows.shape[:3])], torch.ones(()), atol=1e-5)


@pytest.mark.parametrize("n", [5, 1])
def test_hidden_states_equal_output_hidden_states(vlm, n):
    batch = vlm.encode(examples(n))
    full = vlm.forward(batch, output_hidden_states=True).hidden_states
    last_block = {}
    with torch.inference_mode():
        hook = vlm.family.part(vlm.model, "layers")[-1].register_forward_hook(lambda m, a, out: last_block.update(out=out))
        vlm.forward(batch)
        hook.remove()
    at = torch.arange(batch.input_ids.shape[1])
    with capture(vlm, hidden=[*range(vlm.n_layers + 1), "norm"], at=at) as got:
        vlm.forward(batch)
    for layer in range(vlm.n_layers):
        assert torch.equal(got.hidden[layer], full[layer])
    assert torch.equal(got.hidden["norm"], full[-1])
    assert torch.equal(got.hidden[vlm.n_layers], last_block["out"])  # before the final norm
    assert not torch.allclose(got.hidden[vlm.n_layers], got.hidden["norm"])


def test_chosen_positions_are_slices_of_the_whole(vlm):
    batch = vlm.encode(examples(4))
    length = batch.input_ids.shape[1]
    with capture(vlm, hidden=1, at=torch.arange(length), attention_rows=1) as whole:
        vlm.forward(batch)
    choices = {
        "last": torch.full((4, 1), length - 1),
        "user": None,
        "word:is": torch.stack([spans.word("is") for spans in batch.spans]),
        (-1, 20): torch.tensor([[length - 1, 20]] * 4),
    }
    for at, expected in choices.items():
        with capture(vlm, hidden=1, at=list(at) if isinstance(at, tuple) else at, attention_rows=1) as got:
            vlm.forward(batch)
        if expected is not None:
            assert torch.equal(got.positions, expected)
        for row, places in enumerate(got.positions):
            real = places >= 0
            assert torch.equal(got.hidden[1][row][real], whole.hidden[1][row, places[real]])
            assert torch.allclose(got.rows[1][row][:, real], whole.rows[1][row][:, places[real]], atol=ROWS_TOLERANCE)
            assert got.hidden[1][row][~real].isnan().all()
            assert got.rows[1][row][:, ~real].isnan().all()
    with capture(vlm, hidden=1, at="user") as got:
        vlm.forward(batch)
    assert bool((got.positions < 0).any())  # questions differ in length, so the ragged case was there


def test_a_missing_word_names_its_example(vlm):
    with pytest.raises(KeyError, match="'e1'"), capture(vlm, hidden=0, at="word:blue"):
        vlm.forward(vlm.encode(examples(2)))


def test_rows_in_generate_equal_eagers_step_by_step(both):
    vlm, reference = both
    batch = vlm.encode(examples(3))
    with capture(vlm, hidden="all", attention_rows="all") as got:
        tokens = vlm.generate(batch, max_new_tokens=4)
    ids = torch.cat([batch.input_ids, tokens], dim=1)
    mask = torch.cat([batch.attention_mask, torch.ones_like(tokens)], dim=1)
    length = batch.input_ids.shape[1]
    steps = min(tokens.shape[1], len(got.steps))
    assert got.prompt is got.steps[0] and steps >= 2
    with torch.inference_mode():
        features = vlm.model.get_image_features(pixel_values=batch.inputs["pixel_values"])
        whole = vlm.family.complete(vlm.model, {"input_ids": ids, "attention_mask": mask}, [spans.grid for spans in batch.spans])
        full = reference(**whole, mm_encoder_outputs={"image": features}, output_attentions=True, output_hidden_states=True)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    for step, record in enumerate(got.steps[:steps]):
        place = length - 1 + step
        assert record.positions.tolist() == [[place]] * 3
        for layer in range(vlm.n_layers):
            expected = full.attentions[layer][:, :, place : place + 1, : place + 1]
            assert record.rows[layer].shape == expected.shape
            assert (record.rows[layer] - expected)[~ended].abs().max() < 2e-6
            assert (record.hidden[layer][:, 0] - full.hidden_states[layer][:, place])[~ended].abs().max() < 1e-4
        ended |= torch.isin(tokens[:, step], torch.tensor(vlm._ends))


def test_capture_works_around_a_plain_generate_and_a_plain_forward(vlm):
    batch = vlm.encode(examples(2))
    with capture(vlm, hidden=1, connector="pre_norm") as got, torch.inference_mode():
        vlm.model.generate(**batch.inputs, max_new_tokens=2, do_sample=False)
    assert got.hidden[1].shape == (2, 1, 64)
    assert len(got.connector_output) == 2
    with capture(vlm, hidden=1, at="word:is"), pytest.raises(ValueError, match="needs the batch"), torch.inference_mode():
        vlm.model(**batch.inputs)


def test_tower_rows_equal_eagers(both):
    vlm, reference = both
    batch = vlm.encode(examples(3))
    plain = vlm.forward(batch).logits
    with capture(vlm, tower_rows="all") as got, capture(vlm, tower_rows=0, tower_at=[0, 7]) as few:
        assert torch.equal(vlm.forward(batch).logits, plain)
    with torch.inference_mode():
        full = reference.model.vision_tower(batch.inputs["pixel_values"], output_attentions=True).attentions
    for layer, rows in got.tower_rows.items():
        # beyond the first block the inputs differ already, by the rounding of SDPA in the blocks before
        assert (torch.stack(rows) - full[layer]).abs().max() < (ROWS_TOLERANCE if layer == 0 else 1e-5)
    assert torch.allclose(torch.stack(few.tower_rows[0]), torch.stack(got.tower_rows[0])[:, :, [0, 7]], atol=ROWS_TOLERANCE)


def test_connector_input_and_output(vlm):
    asked = examples(3)
    batch = vlm.encode(asked)
    with capture(vlm, connector="pre_norm") as raw, capture(vlm, connector="post_norm") as normed:
        vlm.forward(batch)
    with torch.inference_mode():
        connector, norm = vlm.model.model.multi_modal_projector, vlm.model.model.vision_tower.post_layernorm
        for i, feature in enumerate(vlm.vision_features(asked)):
            assert torch.equal(raw.connector_output[i], feature)
            assert torch.allclose(connector(raw.connector_input[i]), feature, atol=1e-5)
            assert torch.allclose(normed.connector_input[i], norm(raw.connector_input[i]), atol=1e-5)
    with capture(vlm, connector="pre_norm") as alone:
        vlm.vision_features(asked)
        assert torch.equal(alone.connector_input[2], raw.connector_input[2])


def test_what_was_captured_can_be_trained_on(vlm):
    """Tensors made under inference_mode could not be; a linear probe on hidden states must just work."""
    with capture(vlm, hidden=1) as got:
        logits = vlm.forward(vlm.encode(examples(3))).logits
    probe = torch.nn.Linear(64, 1)
    (probe(got.hidden[1]).sum() + logits.add_(0).sum()).backward()
    assert probe.weight.grad.abs().sum() > 0


def test_nothing_stays_hooked_after_an_exception(vlm):
    batch = vlm.encode(examples(2))
    text, vision = vlm.model.config.text_config, vlm.model.config.vision_config
    before = (hooks(vlm.model), text._attn_implementation, vision._attn_implementation, vlm.whole_prompts)
    everything = {"hidden": "all", "attention_rows": "all", "tower_rows": "all", "connector": "post_norm"}
    with pytest.raises(ZeroDivisionError), capture(vlm, **everything), capture(vlm, **everything):
        assert hooks(vlm.model) != before[0]
        vlm.forward(batch)
        raise ZeroDivisionError
    with pytest.raises(KeyError), capture(vlm, **everything, at="word:absent"):
        vlm.forward(batch)
    assert (hooks(vlm.model), text._attn_implementation, vision._attn_implementation, vlm.whole_prompts) == before
    assert vlm.batch is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to read"),
        ({"hidden": 9}, r"hidden layer 9 is not there; 0, 1"),
        ({"hidden": ["nrom"]}, "'norm'"),
        ({"hidden": [True]}, "not there"),
        ({"attention_rows": 7}, "layer with attention 7"),
        ({"tower_rows": [5]}, "tower layer 5"),
        ({"connector": "mid"}, "connector='mid'"),
        ({"hidden": 0, "at": "first"}, "at='first'"),
        ({"hidden": 0, "at": torch.tensor([0.5])}, "whole numbers"),
        ({"hidden": 0, "at": torch.tensor([True])}, "whole numbers"),
        ({"hidden": 0, "at": None}, "whole numbers .*, not None"),
        ({"hidden": 0, "at": []}, "whole numbers"),
        ({"hidden": 0, "at": [[0, 1], [2]]}, "as many for every example"),
        ({"hidden": 1.0}, r"hidden layer 1.0 is not there"),
        ({"tower_rows": 0, "tower_at": []}, r"tower_at=\[\] names no row"),
        ({"tower_rows": 0, "tower_at": "first"}, "tower_at='first' names no row"),
    ],
)
def test_bad_requests_are_refused_at_once(vlm, options, message):
    with pytest.raises(ValueError, match=message), capture(vlm, **options):
        pytest.fail("was accepted")


def test_layers_by_numpys_whole_numbers_are_the_layers(vlm):
    batch = vlm.encode(examples(2))
    with capture(vlm, hidden=np.int64(1), attention_rows=np.arange(2)) as got:
        vlm.forward(batch)
    assert [type(layer) for layer in (*got.hidden, *got.rows)] == [int] * 3 and list(got.hidden) == [1]


def test_positions_outside_the_batch_are_refused(vlm):
    batch = vlm.encode(examples(2))
    with pytest.raises(ValueError, match="token index 500"), capture(vlm, hidden=0, at=[500]):
        vlm.forward(batch)
    with (
        pytest.raises(ValueError, match="3 examples for a batch of 2"),
        capture(vlm, hidden=0, at=torch.zeros(3, 1, dtype=torch.long)),
    ):
        vlm.forward(batch)


def test_rows_beside_another_attention_are_refused(tiny_llava):
    vlm = VLM.load(str(tiny_llava))
    vlm.model.set_attn_implementation("eager")
    with pytest.raises(ValueError, match="'eager'"), capture(vlm, attention_rows=0):
        pytest.fail("was accepted")


def test_rows_under_a_boolean_and_an_additive_mask_equal_the_closed_form():
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8)
    seen = torch.rand(2, 1, 5, 7) > 0.4
    seen[..., 0] = True
    additive = torch.zeros(2, 1, 5, 7).masked_fill(~seen, torch.finfo(torch.float32).min)
    rows = torch.tensor([[4, 0], [2, -1]])
    found = [attention_rows(query, key, mask, 0.3, True, rows) for mask in (seen, additive)]
    causal = attention_rows(query, key, None, 0.3, True, rows)
    for example in range(2):
        for head in range(4):
            for i, row in enumerate(rows[example].tolist()):
                if row < 0:
                    assert found[0][example, head, i].isnan().all()
                    continue
                scores = 0.3 * key[example, head // 2] @ query[example, head, row]
                masked = scores.masked_fill(~seen[example, 0, row], -torch.inf).softmax(0)
                assert torch.allclose(found[0][example, head, i], masked, atol=1e-6)
                assert torch.allclose(found[1][example, head, i], masked, atol=1e-6)
                earlier = scores.masked_fill(torch.arange(7) > row + 2, -torch.inf).softmax(0)
                assert torch.allclose(causal[example, head, i], earlier, atol=1e-6)
