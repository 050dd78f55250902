"""The hidden-norms probe: norms equal those of transformers' own hidden states, group by group; ratios by hand; identities."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples
from transformers import AutoModelForImageTextToText

from spatialprobes import paths
from spatialprobes.probes import hidden_norms
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_questions import examples as lab_examples

LAB = "lab-llava"


TINY = ["tiny_llava", "tiny_llava_grouped", "tiny_llava_pieces"]
FAMILIES = ["tiny_qwen2_vl", "tiny_qwen2_5_vl", "tiny_qwen3_5", "tiny_idefics2"]


@pytest.fixture(scope="module", params=[*TINY, *FAMILIES, LAB])
def setting(request):
    """Model, the same weights loaded apart, and examples."""
    if request.param == LAB:
        folder = paths.lab_folder() / LAB
        if not (folder / "config.json").is_file():
            pytest.skip(f"{LAB} has not been trained yet")
        asked = lab_examples(4, 13, ["relation.horizontal"])
    else:
        folder, asked = request.getfixturevalue(request.param), examples(5)
    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return VLM.load(LAB if request.param == LAB else str(folder)), reference.eval(), asked


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture(scope="module")
def frame(vlm):
    return hidden_norms.measure(vlm, examples(5))


@torch.no_grad()
def slow(vlm, reference, one, kind, system):
    """{(layer, site, group): norms of its tokens} from transformers' hidden states of one example alone."""
    batch = vlm.encode([one], system)
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}  # those are transformers' own
    last = {}
    layers = reference.get_decoder().layers
    hook = layers[-1].register_forward_hook(lambda module, given, output: last.update(raw=output))
    states = reference(**inputs, output_hidden_states=True).hidden_states
    hook.remove()
    deep = len(layers)
    places = {(i, "stream"): state for i, state in enumerate(states[:-1])}
    places |= {(deep, "stream"): last["raw"], (deep, "final norm"): states[-1]}
    found = {}
    for (layer, site), state in places.items():
        rows = state[0].double().numpy()
        norms = np.sqrt((rows**2).sum(-1)) if kind == "l2" else np.sqrt((rows**2).mean(-1))
        for group in ("system", "user", "vision", "role"):
            found[layer, site, group] = norms[getattr(batch.spans[0], group).numpy()]
    return found


@pytest.mark.parametrize("kind, system, batch_size", [("l2", "default", 16), ("rms", None, 2)])
def test_norms_equal_those_of_all_hidden_states(setting, kind, system, batch_size):
    vlm, reference, asked = setting
    found = hidden_norms.measure(vlm, asked, kind=kind, system=system, batch_size=batch_size)
    assert list(found.columns) == ["example", "cluster", "layer", "site", "group", "norm", "tokens"]
    assert len(found) == len(asked) * (vlm.n_layers + 2) * 4
    keyed = found.set_index(["example", "layer", "site", "group"])
    for one in asked:
        for place, norms in slow(vlm, reference, one, kind, system).items():
            row = keyed.loc[(one.id, *place)]
            assert row["tokens"] == len(norms) and row["cluster"] == (one.cluster or one.id)
            if len(norms):
                assert row["norm"] == pytest.approx(norms.mean(), rel=2e-5)
            else:
                assert np.isnan(row["norm"]) and place[2] == "system"


def test_the_row_after_the_final_norm_has_the_norms_length(frame, vlm):
    """Closed form: RMSNorm with unit weights leaves every token at the root of the width; before it they differ."""
    with torch.no_grad():
        assert (vlm.model.model.language_model.norm.weight == 1).all()
    after, before = (frame[(frame["layer"] == 2) & (frame["site"] == site)] for site in ("final norm", "stream"))
    assert after["norm"].dropna().to_numpy() == pytest.approx(8.0, rel=1e-4)
    assert before["norm"].std() > 0.1


def test_layer_0_is_what_the_norms_probe_sees_enter(frame, vlm):
    entering = [features.norm(dim=-1).mean().item() for features in vlm.vision_features(examples(5))]
    mine = frame[(frame["layer"] == 0) & (frame["group"] == "vision")]
    assert mine["norm"].tolist() == pytest.approx(entering, rel=1e-5)


def test_chosen_layers_are_those_of_all(vlm, frame):
    some = hidden_norms.measure(vlm, examples(5), layers=[1, "norm"])
    expected = frame[(frame["layer"] == 1) | (frame["site"] == "final norm")].reset_index(drop=True)
    pd.testing.assert_frame_equal(some, expected, rtol=1e-5)


def test_no_hidden_states_are_kept(vlm, monkeypatch):
    """What capture leaves behind is one number a token and layer, not its width."""
    sizes = []
    original = hidden_norms._norms

    def noting(hidden, root):
        made = original(hidden, root)
        sizes.append((hidden.shape[-1], made.shape[-1], made.untyped_storage().nbytes()))
        return made

    monkeypatch.setattr(hidden_norms, "_norms", noting)
    hidden_norms.measure(vlm, examples(4), batch_size=4)
    assert len(sizes) == 4
    tokens = vlm.encode(examples(4)).input_ids.numel()
    assert all(size == (64, 1, 4 * tokens) for size in sizes)


def table(vision, user, role, layers=(0, 1)):
    """A table of `measure` for pictures with these norms; user has 3 tokens, role 1; layer i has vision / (i + 1)."""
    rows = []
    for i, (v, u, r) in enumerate(zip(vision, user, role, strict=True)):
        for layer in layers:
            for group, norm, n in (("vision", v / (layer + 1), 36), ("user", u, 3), ("role", r, 1), ("system", np.nan, 0)):
                rows.append((f"e{i}", f"p{i}", layer, "stream", group, norm, n))
    return pd.DataFrame(rows, columns=["example", "cluster", "layer", "site", "group", "norm", "tokens"])


def test_ratios_by_hand():
    found = table([10.0, 40.0], [1.0, 2.0], [5.0, 6.0])
    text = [2.0, 3.0]  # (3 x 1 + 5) / 4, (3 x 2 + 6) / 4
    of_ratios = hidden_norms.ratio(found).set_index("layer")["ratio"]
    assert of_ratios[0] == pytest.approx((10 / text[0] + 40 / text[1]) / 2)
    assert of_ratios[1] == pytest.approx(of_ratios[0] / 2)
    of_means = hidden_norms.ratio(found, "ratio_of_means").set_index("layer")
    assert of_means["ratio"][0] == pytest.approx(50 / sum(text)) and of_means["n"][0] == of_means["clusters"][0] == 2
    alone = hidden_norms.ratio(found, text=["user"]).set_index("layer")["ratio"]
    assert alone[0] == pytest.approx((10 / 1 + 40 / 2) / 2)
    fall = hidden_norms.decay(found)
    assert fall.estimate == pytest.approx(0.5) and fall.low == pytest.approx(0.5) and fall.high == pytest.approx(0.5)


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(0.1, 50))
def test_ratios_and_decay_hold_their_identities(seed, n, factor):
    """Scaling vision scales every ratio and no decay; where all examples are alike, both ways agree."""
    rng = np.random.default_rng(seed)
    vision, user, role = rng.uniform(1, 60, n), rng.uniform(0.5, 2, n), rng.uniform(0.5, 2, n)
    plain, scaled = table(vision, user, role), table(factor * vision, user, role)
    for how in ("mean_of_ratios", "ratio_of_means"):
        one, other = hidden_norms.ratio(plain, how), hidden_norms.ratio(scaled, how)
        for name in ("ratio", "low", "high"):
            assert (one[name] * factor).to_numpy() == pytest.approx(other[name].to_numpy())
        assert ((one["low"] <= one["ratio"]) & (one["ratio"] <= one["high"])).all()
    assert hidden_norms.decay(plain).estimate == pytest.approx(hidden_norms.decay(scaled).estimate)
    same = table(vision, np.full(n, 2.0), np.full(n, 2.0))
    both = [hidden_norms.ratio(same, how)["ratio"].to_numpy() for how in ("mean_of_ratios", "ratio_of_means")]
    assert both[0] == pytest.approx(both[1])


def test_summary_and_decay_are_of_the_rows_meant(frame):
    means = hidden_norms.summary(frame).set_index(["layer", "site", "group"])
    there = frame.dropna(subset="norm")
    expected = there.groupby(["layer", "site", "group"])["norm"].mean()
    assert means["norm"].sort_index().to_numpy() == pytest.approx(expected.sort_index().to_numpy())
    ratios = hidden_norms.ratio(frame).set_index(["site", "layer"])["ratio"]
    assert hidden_norms.decay(frame).estimate == pytest.approx(ratios["stream", 2] / ratios["stream", 0])  # not the normed row


def test_bad_input_is_one_line(vlm, frame):
    asked = examples(2)
    for options, message in (
        ({"layers": [5]}, "hidden layer 5 is not there; 0, 1, 2, or 'all', 'norm'"),
        ({"kind": "l1"}, "kind='l1' is unknown; 'l2' or 'rms'"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            hidden_norms.measure(vlm, asked, **options)
    with pytest.raises(ValueError, match="no examples"):
        hidden_norms.measure(vlm, [])
    with pytest.raises(ValueError, match="the picture of e0"):
        hidden_norms.measure(vlm, [dataclasses.replace(asked[0], image=None)])
    with pytest.raises(ValueError, match="how='mean' is unknown"):
        hidden_norms.ratio(frame, "mean")
    for text in (["vision"], "user", []):
        with pytest.raises(ValueError, match="no set of groups of text; any of 'system', 'user', 'role'"):
            hidden_norms.ratio(frame, text=text)
    with pytest.raises(ValueError, match="'e0' has no tokens of vision, or none of system"):
        hidden_norms.ratio(table([1.0, 1.0], [1.0, 1.0], [1.0, 1.0]), text=["system"])
    for of in (hidden_norms.summary, hidden_norms.ratio, hidden_norms.decay):
        with pytest.raises(ValueError, match="example 'e0', layer 0, site 'stream', group 'system' stands twice"):
            of(pd.concat([frame, frame]))
    with pytest.raises(ValueError, match=r"decay compares layer 0 with the last; the table has \[1, 2\]"):
        hidden_norms.decay(frame[frame["layer"] > 0])
