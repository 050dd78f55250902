"""The RoPE probe: the published definition written out slowly, the exact derivative, and the model run with moved tokens."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples

from spatialprobes.answers import score
from spatialprobes.capture import capture
from spatialprobes.families import AXES, Rotary
from spatialprobes.intervene import intervene, shifted
from spatialprobes.probes import rope
from spatialprobes.vlm import VLM


@pytest.fixture(scope="module")
def loaded():
    return {}


@pytest.fixture
def vlm(tiny_family, loaded):
    """A model of each family in turn."""
    if str(tiny_family) not in loaded:
        loaded[str(tiny_family)] = VLM.load(str(tiny_family))
    return loaded[str(tiny_family)]


@pytest.fixture(scope="module")
def llava(tiny_llava_grouped):
    """4 heads on 2 key-value heads of size 16, 3 layers."""
    return VLM.load(str(tiny_llava_grouped))


# Slowly, from the definitions, in numpy


def turned(key, theta, delta):
    """One key, half-split pairs, turned by delta positions."""
    out, n = key.copy(), len(theta)
    for i in range(n):
        c, s = math.cos(delta * theta[i]), math.sin(delta * theta[i])
        out[i], out[i + n] = key[i] * c - key[i + n] * s, key[i] * s + key[i + n] * c
    return out


def softmax(scores):
    weights = [math.exp(x - max(scores)) for x in scores]
    return [w / sum(weights) for w in weights]


def by_the_book(query, keys, seen, vision, theta, delta, divisor):
    """alpha_v, delta_alpha_v and delta_g_v of one head and row: beyond the softmax nothing but sums over keys."""
    size = len(query)
    plain = [sum(query * keys[k]) / math.sqrt(size) for k in seen]
    moved = [sum(query * (turned(keys[k], theta, delta) if k in vision else keys[k])) / math.sqrt(size) for k in seen]
    before, after = softmax(plain), softmax(moved)
    alpha = sum(a for a, k in zip(before, seen, strict=True) if k in vision)
    delta_alpha = sum(a for a, k in zip(after, seen, strict=True) if k in vision) - alpha
    delta_g = sum(a / alpha * (m - p) for a, m, p, k in zip(before, moved, plain, seen, strict=True) if k in vision) / divisor
    return alpha, delta_alpha, delta_g


@pytest.mark.parametrize("delta", [1.0, -2.0, 0.3])
@pytest.mark.parametrize("definition", ["corrected", "as_published"])
def test_measure_equals_the_definition_written_out(llava, definition, delta):
    asked = examples(2)
    frame = rope.measure(llava, asked, deltas=[delta], definition=definition).set_index(["example", "layer", "head"])
    theta = [10_000 ** (-2 * i / 16) for i in range(8)]
    published = definition == "as_published"
    for one in asked:
        batch = llava.encode([one])
        inputs, length = dict(batch.inputs), batch.input_ids.shape[1]
        if published:  # the end of sequence asks, all before it is asked
            end = torch.tensor([[llava.tokenizer.eos_token_id]])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], end], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["position_ids"] = torch.arange(length + 1)[None]
        with capture(llava, queries_keys="all") as got, torch.inference_mode():
            llava.model(**inputs, use_cache=False)
        vision = set(batch.spans[0].vision.tolist())
        for layer in range(3):
            for head in range(4):
                query, keys = got.queries[layer][0, head, 0].double().numpy(), got.keys[layer][0, head // 2].double().numpy()
                divisor = max(delta, 1e-12) if published else delta
                alpha, delta_alpha, delta_g = by_the_book(query, keys, range(length), vision, theta, delta, divisor)
                row = frame.loc[(one.id, layer, head)]
                assert row["alpha_v"] == pytest.approx(alpha, rel=1e-6)
                assert row["delta_alpha_v"] == pytest.approx(delta_alpha, abs=1e-6)
                assert row["delta_g_v"] == pytest.approx(delta_g, rel=1e-4, abs=1e-6)


def test_the_published_form_fails_for_negative_deltas_and_the_corrected_does_not(llava):
    published, corrected = (
        rope.measure(llava, examples(2), deltas=[-1.0, 1.0], definition=name) for name in ("as_published", "corrected")
    )
    sizes = published["delta_g_v"].abs().groupby(published["delta"]).max()
    assert sizes[-1.0] > 1e8 and sizes[1.0] < 1
    assert corrected["delta_g_v"].abs().max() < 1
    columns = ["alpha_v", "delta_alpha_v"]
    assert not np.allclose(published[columns], corrected[columns], atol=1e-3)  # another row asks


# Identities, on any queries and keys


@st.composite
def layers(draw):
    """Random queries, keys, mask, vision keys and rotation; heads in groups, one axis or three, some keys unseen."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    groups, kv_heads, keys, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(4, 12)), 4
    rest = draw(st.sampled_from([0, 3]))
    query = draw(st.sampled_from([1.0, 4.0])) * torch.randn(groups * kv_heads, 2, 2 * pairs + rest, generator=generator)
    key = torch.randn(kv_heads, keys, 2 * pairs + rest, generator=generator)
    mask = torch.zeros(2, keys)
    vision = torch.zeros(keys, dtype=torch.bool)
    vision[1 : draw(st.integers(2, keys - 2))] = True
    mask[:, -1] = torch.finfo(torch.float32).min
    speeds = torch.rand(pairs, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        axes, rotary = AXES, Rotary(speeds * torch.nn.functional.one_hot(torch.arange(pairs) % 3, 3).T, AXES)
    else:
        axes, rotary = (), Rotary(speeds[None], ())
    return query, key, mask, 0.5, vision, rotary, draw(st.sampled_from(["all", *axes]))


def share(query, key, mask, scaling, vision):
    """alpha_v by the definition, mean over rows."""
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    weights = (query.double() @ key.double().transpose(-1, -2) * scaling + mask).softmax(-1)
    return weights[..., vision].sum(-1).mean(-1).numpy()


@settings(deadline=None, max_examples=40)
@given(layers())
def test_the_derivative_is_exact(layer):
    query, key, mask, scaling, vision, rotary, axis = layer
    found = rope.sensitivity(query, key, mask, scaling, vision, rotary, [1.0], axis)
    step = 1e-5
    there, back = (torch.where(vision[:, None], rotary.rotate(key.double(), d, axis), key.double()) for d in (step, -step))
    slope = (share(query, there, mask, scaling, vision) - share(query, back, mask, scaling, vision)) / (2 * step)
    assert np.allclose(found["derivative"][0], slope, atol=1e-8)
    assert np.allclose(found["finite_difference"][0], slope, atol=1e-8)
    assert np.array_equal(found["g_t"], np.zeros_like(found["g_t"]))
    one = rope.sensitivity(query[:, :1], key, mask[:1], scaling, vision, rotary, [1.0], axis)  # of one row it is the product
    assert np.allclose(one["derivative"], one["alpha_v"] * (1 - one["alpha_v"]) * (one["g_v"] - one["g_t"]), atol=1e-12)


def test_rows_before_the_picture_have_no_slope(vlm):
    """They see no vision key: nothing to take a mean of, and a share of 0 that stays 0."""
    spans = vlm.encode(examples(1)).spans[0]
    before = list(range(spans.start, int(spans.vision[0])))
    frame = rope.measure(vlm, examples(1), at=before, deltas=(1.0, -2.0))
    assert frame[["g_v", "delta_g_v"]].isna().all(axis=None)
    assert (frame[["alpha_v", "delta_alpha_v", "derivative", "finite_difference", "g_t"]] == 0).all(axis=None)
    after = [spans.length - 2, spans.length - 1]
    both, alone = (rope.measure(vlm, examples(1), at=at) for at in (before + after, after))
    assert both["g_v"].to_numpy() == pytest.approx(alone["g_v"].to_numpy())
    assert both["alpha_v"].to_numpy() * len(before + after) == pytest.approx(alone["alpha_v"].to_numpy() * 2)


@settings(deadline=None, max_examples=40)
@given(layers(), st.floats(-9, 9).filter(lambda delta: abs(delta) > 1e-3))
def test_turning_the_picture_on_is_turning_all_else_back(layer, delta):
    query, key, mask, scaling, vision, rotary, axis = layer
    found = rope.sensitivity(query, key, mask, scaling, vision, rotary, [delta], axis)
    forth = torch.where(vision[:, None], rotary.rotate(key.double(), delta, axis), key.double())
    back = torch.where(vision[:, None], key.double(), rotary.rotate(key.double(), -delta, axis))
    moved = share(query, forth, mask, scaling, vision)
    assert np.allclose(moved, share(rotary.rotate(query.double(), -delta, axis), back, mask, scaling, vision), atol=1e-12)
    assert np.allclose(found["alpha_v"][0] + found["delta_alpha_v"][0], moved, atol=1e-12)
    everything = share(rotary.rotate(query.double(), delta), rotary.rotate(key.double(), delta), mask, scaling, vision)
    assert np.allclose(everything, found["alpha_v"][0], atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(layers(), st.floats(1e-4, 1e-2))
def test_small_deltas_of_either_sign_give_the_slope(layer, delta):
    """delta_g_v is even and delta_alpha_v odd in delta at first order; both differ from the slope by terms of the next order."""
    query, key, mask, scaling, vision, rotary, axis = layer
    found = rope.sensitivity(query, key, mask, scaling, vision, rotary, [delta, -delta], axis)
    bound = 40 * delta  # second derivatives of scores of this size
    assert np.allclose(found["delta_g_v"], found["g_v"], atol=bound)
    assert np.allclose(found["delta_alpha_v"][0], -found["delta_alpha_v"][1], atol=bound * delta)
    assert np.allclose(found["delta_alpha_v"][0], delta * found["derivative"][0], atol=bound * delta)


# In models


def test_the_first_layer_agrees_with_the_model_really_run(vlm):
    asked = examples(2)
    for axis in ("all", *vlm.family.position_axes(vlm.model)):
        options = {"deltas": (1.0, -2.5), "axis": axis}
        both = rope.compare(rope.measure(vlm, asked, **options), rope.rerun(vlm, asked, **options))
        assert both["layer"].unique().tolist() == [
            i for i, layer in enumerate(vlm.family.part(vlm.model, "layers")) if vlm.family.attention(layer) is not None
        ]
        error = (both["delta_alpha_v"] - both["delta_alpha_v_rerun"]).abs().groupby(both["layer"]).max()
        assert error.iloc[0] < 1e-6
        assert both.loc[both["layer"] == error.index[0], "delta_alpha_v"].abs().max() > 1e-5
        if axis == "all":
            assert error.iloc[-1] > 1e-3  # deeper ones feel the layers before
        assert rope.derivative_error(both).high < 1e-5


def test_the_row_is_the_prompts_last_whatever_the_batch(llava):
    asked = examples(5)
    frame = rope.measure(llava, asked, deltas=(2.0,))
    alone = pd.concat([rope.measure(llava, [one], deltas=(2.0,)) for one in asked], ignore_index=True)
    pd.testing.assert_frame_equal(frame, alone, check_exact=False, atol=1e-5, rtol=1e-3)
    batch = llava.encode(asked)
    with capture(llava, attention_rows="all") as got:
        llava.forward(batch)
    for row, spans in enumerate(batch.spans):
        for layer, rows in got.rows.items():
            own = frame[(frame["example"] == asked[row].id) & (frame["layer"] == layer)]
            assert np.allclose(own["alpha_v"], rows[row, :, 0, spans.vision].sum(-1), atol=1e-6)


def test_several_tokens_give_the_mean_over_them(llava):
    asked = examples(3)
    batch = llava.encode(asked)
    frame = rope.measure(llava, asked, at="user", layers=2)
    with capture(llava, attention_rows=2, at="user") as got:
        llava.forward(batch)
    for row, spans in enumerate(batch.spans):
        expected = got.rows[2][row][:, got.positions[row] >= 0][..., spans.vision].sum(-1).mean(-1)
        assert np.allclose(frame.loc[frame["example"] == asked[row].id, "alpha_v"], expected, atol=1e-6)


def test_rerun_says_what_became_of_the_answers(llava):
    asked = [*examples(3), dataclasses.replace(examples(4)[3], answer=None, choices=None)]
    real = rope.rerun(llava, asked, deltas=(6.0, -6.0), layers=[0, 2])
    assert len(real) == 4 * 2 * 2 * 4
    expected = [dataclasses.replace(one, choices=[one.answer]) for one in asked[:3]]
    plain = score(llava, expected)["logprob"].to_numpy()
    with intervene(llava, positions=shifted(-6.0)):
        moved = score(llava, expected)["logprob"].to_numpy()
        words = llava.forward(llava.encode(asked)).logits[:, -1].argmax(-1)
    before = llava.forward(llava.encode(asked)).logits[:, -1].argmax(-1)
    once = real[real["delta"] == -6.0].drop_duplicates("example").set_index("example")
    assert np.allclose(once["logprob"].iloc[:3], plain, atol=1e-5)
    assert np.allclose(once["delta_logprob"].iloc[:3], moved - plain, atol=1e-5) and abs(moved - plain).max() > 1e-3
    assert once["logprob"].isna().tolist() == [False, False, False, True]
    assert once["changed"].tolist() == (words != before).tolist()
    told = rope.effects(real).set_index(["value", "delta"])
    assert told.loc[("delta_logprob", -6.0), "mean"] == pytest.approx((moved - plain).mean(), abs=1e-5)
    assert told.loc[("delta_logprob", -6.0), "n"] == 3 and told.loc[("changed", -6.0), "n"] == 4
    silent = rope.effects(rope.rerun(llava, [dataclasses.replace(one, answer=None) for one in asked], layers=0))
    assert silent["value"].tolist() == ["changed"]  # pictures that are only described


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"deltas": ()}, "at least one"),
        ({"deltas": 1.0}, "deltas=1.0 is no sequence"),
        ({"deltas": (1.0, 1.0)}, "different"),
        ({"deltas": (0.0,)}, r"delta=0.0: .* not 0"),
        ({"deltas": (float("nan"),)}, "delta=nan"),
        ({"axis": "height"}, "no axis 'height'"),
        ({"layers": 9}, r"layer with attention 9 is not there; 0, 1, 2"),
    ],
)
def test_bad_requests_are_refused(llava, options, message):
    for probe in (rope.measure, rope.rerun):
        with pytest.raises(ValueError, match=message):
            probe(llava, examples(2), **options)
        with pytest.raises(ValueError, match="no examples"):
            probe(llava, [])
        with pytest.raises(ValueError, match="same id"):
            probe(llava, examples(1) * 2)
    with pytest.raises(ValueError, match="at='system': the prompt of example 'e0' has no such tokens"):
        rope.measure(llava, examples(2), at="system", system=None)
    for wrong in ({"definition": "published"}, {"definition": "as_published", "at": "user"}, {"at": "word"}):
        with pytest.raises(ValueError, match=r"definition=|at="):
            rope.measure(llava, examples(2), **wrong)


def test_a_layer_without_attention_is_refused_by_number(tiny_qwen3_5, loaded):
    vlm = loaded.setdefault(str(tiny_qwen3_5), VLM.load(str(tiny_qwen3_5)))
    with pytest.raises(ValueError, match=r"layer 0 has no attention map, .*: 1, 3"):
        rope.measure(vlm, examples(2), layers=0)


# Summaries


def table():
    """3 examples of 2 clusters, 3 layers, 2 heads: delta_g_v is (-1)^head times (example + 1) * (layer + 1)."""
    rows = [
        (f"e{e}", f"c{e // 2}", layer, head, 1.0, (-1) ** head * (e + 1) * (layer + 1.0))
        for e in range(3)
        for layer in range(3)
        for head in range(2)
    ]
    frame = pd.DataFrame(rows, columns=[*rope.KEYS, "delta_g_v"])
    return frame.assign(finite_difference=frame["delta_g_v"], derivative=frame["delta_g_v"] + 0.009 * (frame["layer"] == 1))


def test_magnitudes_are_taken_before_any_mean():
    layered = rope.by_layer(table(), ["abs_delta_g_v", "delta_g_v"]).set_index(["value", "layer"])
    assert [layered.loc[("abs_delta_g_v", layer), "mean"] for layer in range(3)] == [2.0, 4.0, 6.0]
    assert (layered.loc["delta_g_v", "mean"] == 0).all()
    assert (layered["n"] == 3).all()
    assert layered.loc[("abs_delta_g_v", 0), "low"] == pytest.approx(1.5) and layered.loc[("abs_delta_g_v", 0), "high"] == 3.0
    each = rope.by_head(table(), ["delta_g_v"]).set_index(["layer", "head"])
    assert each.loc[(2, 1), "mean"] == -6.0
    assert rope.by_delta(table(), ["abs_delta_g_v"])["mean"].tolist() == [4.0]
    with pytest.raises(ValueError, match="no column 'delta_g'"):
        rope.by_layer(table(), ["abs_delta_g"])


def test_early_over_late_compares_the_outer_thirds():
    found = rope.early_over_late(table())
    assert (found.estimate, found.n, found.clusters) == (pytest.approx(2 / 6), 3, 2)
    assert found.low == pytest.approx(1 / 3) == found.high  # every example has the same ratio
    seven = pd.concat([table().assign(layer=table()["layer"] + 3 * k) for k in range(3)]).query("layer < 7")
    values = seven.assign(delta_g_v=1 + seven["layer"] ** 2.0)
    assert rope.early_over_late(values).estimate == pytest.approx((1 + 2) / (26 + 37))
    uneven = table().assign(delta_g_v=lambda rows: rows["delta_g_v"].where(rows["layer"] > 0, rows["example"].eq("e0")))
    assert rope.early_over_late(uneven).estimate == pytest.approx(1 / 3 / 6)  # the ratio of means, not the mean of ratios
    with pytest.raises(ValueError, match="two layers"):
        rope.early_over_late(table().query("layer == 0"))
    with pytest.raises(ValueError, match="2 deltas"):
        rope.early_over_late(pd.concat([table(), table().assign(delta=2.0)]))


def test_derivative_error_is_the_worst_of_each_example_on_the_tables_scale():
    assert rope.derivative_error(table()).estimate == pytest.approx(0.009 / 9)
    with pytest.raises(ValueError, match="depends on its phase"):
        rope.derivative_error(table().assign(finite_difference=0.0))


def test_tables_without_a_common_row_are_not_compared():
    with pytest.raises(ValueError, match="share no example, layer, head and delta"):
        rope.compare(table(), table().assign(delta=2.0, delta_alpha_v_rerun=0.0))
