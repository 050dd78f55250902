"""The balance probe: shares equal those of eager attention inside generate, summed by hand as the study does; identities."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SYSTEM, examples
from transformers import AutoModelForImageTextToText

from spatialprobes import paths
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.probes import balance
from spatialprobes.prompts import PromptError
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_questions import examples as lab_examples

LAB = "lab-llava"
GROUPS = list(balance.GROUPS)
STEPS = 3


TINY = ["tiny_llava", "tiny_llava_grouped", "tiny_llava_pieces"]
FAMILIES = ["tiny_qwen2_vl", "tiny_qwen2_5_vl", "tiny_qwen3_5", "tiny_idefics2"]


@pytest.fixture(scope="module", params=[*TINY, *FAMILIES, LAB])
def setting(request):
    """Model, the same weights with eager attention, and examples."""
    if request.param == LAB:
        folder = paths.lab_folder() / LAB
        if not (folder / "config.json").is_file():
            pytest.skip(f"{LAB} has not been trained yet")
        asked = lab_examples(4, 13, ["relation.horizontal"])
    else:
        folder, asked = request.getfixturevalue(request.param), examples(5)
    reference = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return VLM.load(LAB if request.param == LAB else str(folder)), reference.eval(), asked


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture(scope="module")
def frame(vlm):
    return balance.measure(vlm, examples(5), max_new_tokens=STEPS)


@torch.no_grad()
def eager_rows(vlm, reference, one, system="default", n=STEPS):
    """Last row of every map, [step, layer, head, key (0 where there is none yet)], by transformers' own generate; and its ids."""
    batch = vlm.encode([one], system)
    inputs = {name: value for name, value in batch.inputs.items() if name != "position_ids"}  # those are transformers' own
    made = reference.generate(
        **inputs, max_new_tokens=n, do_sample=False, output_attentions=True, return_dict_in_generate=True, use_cache=True
    )
    keys = inputs["input_ids"].shape[1] + len(made.attentions) - 1
    rows = np.zeros((len(made.attentions), len(made.attentions[0]), made.attentions[0][0].shape[1], keys))
    for step, layers in enumerate(made.attentions):
        for layer, attention in enumerate(layers):
            rows[step, layer, :, : attention.shape[-1]] = attention[0, :, -1].double().numpy()
    return rows, inputs["input_ids"][0], vlm.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])


def groups_by_hand(vlm, ids, tokens, one, system):
    """Name of the group of every token of the prompt, by reading it from left to right."""
    image = vlm.model.config.image_token_id
    pieces = any("Ġ" in token for token in tokens)
    shown = [token.replace("Ġ", " ").replace("Ċ", "\n") if pieces else f"{token} " for token in tokens]
    picture = (ids == image).nonzero()[:, 0].tolist()
    words = vlm.default_system if system == "default" else system or ""
    names = []
    for i, token in enumerate(shown):
        before = "".join(shown[j] for j in range(i) if j not in picture and ids[j] != vlm.tokenizer.bos_token_id)
        start, end = len(before), len(before) + len(token)
        text = "".join(shown[j] for j in range(len(shown)) if j not in picture and ids[j] != vlm.tokenizer.bos_token_id)
        head, ask = (text.index(words) if words else -1), text.rindex(one.question)
        if i == 0:  # bos, or what stands in its place
            names.append("bos")
        elif i in picture:
            names.append("vision")
        elif words and start < head + len(words) and end > head:
            names.append("system")
        elif start < ask + len(one.question) and end > ask:
            names.append("user")
        else:
            names.append("role")
    return names


@pytest.mark.parametrize("batch_size", [16, 2])
def test_shares_equal_eager_attention_inside_generate(setting, batch_size):
    vlm, reference, asked = setting
    found = balance.measure(vlm, asked, max_new_tokens=STEPS, batch_size=batch_size)
    assert list(found.columns) == ["example", "cluster", "step", "layer", "head", *GROUPS]
    lengths = set()
    for one in asked:
        rows, ids, tokens = eager_rows(vlm, reference, one)
        names = np.array([*groups_by_hand(vlm, ids, tokens, one, "default"), *["generated"] * (rows.shape[-1] - len(ids))])
        mine = found[found["example"] == one.id]
        assert len(mine) == np.prod(rows.shape[:3]) and (mine["cluster"] == (one.cluster or one.id)).all()
        lengths.add(rows.shape[0])
        for group in GROUPS:
            expected = rows[..., names == group].sum(-1).ravel()
            assert mine[group].to_numpy() == pytest.approx(expected, abs=2e-6), (one.id, group)
        layers = [1, 3] if vlm.family.model_type == "qwen3_5" else range(vlm.n_layers)  # linear ones have no rows
        places = [[step, layer, head] for step in range(len(rows)) for layer in layers for head in range(rows.shape[2])]
        assert mine[["step", "layer", "head"]].to_numpy().tolist() == places
    assert max(lengths) <= STEPS


def published_by_hand(rows, names, keep_bos=False):
    """The study's own arithmetic on one example: [step, layer, head, key] -> its four means and the two exact ones."""
    v_t, y_all, exact = [], [], []
    for step in rows:
        layers = step.mean(1)
        if not keep_bos:
            layers = np.where(names == "bos", 0, layers)
            layers = layers / layers.sum(-1, keepdims=True)
        row = layers.mean(0)
        v, y = row[names == "vision"].sum(), row[names == "system"].sum()
        t = row[(names == "user") | (names == "role")].sum()
        v_t.append(v / (v + t))
        y_all.append(y / (v + t + y))
        exact.append(np.array([y, v, t]) / (v + t + y))
    vision, system = np.mean(v_t), np.mean(y_all)
    absolute = np.array([vision * (1 - system), (1 - vision) * (1 - system)])
    absolute = absolute / (absolute.sum() + system)
    return vision, system, absolute, np.mean(exact, axis=0)


@pytest.mark.parametrize("bos, system", [("drop", "default"), ("keep", None)])
def test_both_definitions_equal_the_slow_ones(setting, bos, system):
    vlm, reference, asked = setting
    found = balance.measure(vlm, asked, max_new_tokens=STEPS, system=system)
    corrected = balance.shares(found, bos=bos).set_index("example")
    study = balance.shares(found, definition="as_published", bos=bos).set_index("example")
    balances = balance.cmb(found)
    for one in asked:
        rows, ids, tokens = eager_rows(vlm, reference, one, system)
        names = np.array([*groups_by_hand(vlm, ids, tokens, one, system), *["generated"] * (rows.shape[-1] - len(ids))])
        vision, sys_share, absolute, exact = published_by_hand(rows, names, bos == "keep")
        assert corrected.loc[one.id, ["system", "vision", "user"]].tolist() == pytest.approx(exact.tolist(), abs=1e-5)
        assert study.loc[one.id, ["vision", "user"]].tolist() == pytest.approx(absolute.tolist(), abs=1e-5)
        for table in (corrected, study):
            assert table.loc[one.id, "vision_vs_user"] == pytest.approx(vision, abs=1e-5)
            assert table.loc[one.id, "system"] == pytest.approx(sys_share, abs=1e-5)
        v, t = (rows[..., np.isin(names, group)].sum(-1) for group in (["vision"], ["user", "role"]))
        expected = (v / np.maximum(v + t, 1e-8)).mean(0).ravel()
        assert balances.loc[balances["example"] == one.id, "cmb"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    if system is None or not vlm.default_system:
        assert (corrected["system"] == 0).all() and (found["system"] == 0).all()
    else:
        assert (corrected["system"] > 0).all()


def test_a_layer_without_attention_and_a_model_without_any_are_one_line(tiny_qwen3_5, monkeypatch):
    vlm = VLM.load(str(tiny_qwen3_5))
    with pytest.raises(ValueError, match=r"^layer 0 has no attention map.*: 1, 3$"):
        balance.measure(vlm, examples(2), layers=[0])
    monkeypatch.setattr(type(vlm.family), "attention", lambda self, layer: None)
    with pytest.raises(ValueError, match=r"^this model has no layer with attention$"):
        balance.measure(vlm, examples(2))


def test_steps_after_the_end_of_an_answer_are_left_out(vlm, monkeypatch):
    """Both answers end at token 2 or run to the limit, whatever the other one of the batch does."""
    asked = examples(2)
    whole = balance.measure(vlm, asked, max_new_tokens=4)
    made = vlm.generate(vlm.encode(asked[:1]), 4)[0].tolist()
    monkeypatch.setattr(type(vlm), "_ends", property(lambda self: [made[1]]))
    cut = balance.measure(vlm, asked, max_new_tokens=4)
    first, longer = (cut[cut["example"] == one.id] for one in asked)
    steps = made.index(made[1]) + 1
    assert sorted(set(first["step"])) == list(range(steps))
    expected = whole[(whole["example"] == "e0") & (whole["step"] < steps)]
    assert first[GROUPS].to_numpy() == pytest.approx(expected[GROUPS].to_numpy(), abs=1e-6)
    assert longer["step"].max() >= steps - 1


def test_rows_sum_to_one_and_generated_grows_from_nothing(frame):
    assert frame[GROUPS].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    assert (frame[GROUPS] >= 0).all(axis=None)
    assert (frame.loc[frame["step"] == 0, "generated"] == 0).all()
    assert (frame.loc[frame["step"] > 0, "generated"] > 0).all()


def test_without_queries_a_groups_share_is_its_share_of_tokens(tiny_llava):
    """Closed form: query weights of 0 spread attention equally over the keys there are."""
    vlm = VLM.load(str(tiny_llava))
    with torch.no_grad():
        vlm.model.model.language_model.layers[0].self_attn.q_proj.weight.zero_()
    one = examples(1)[0]
    found = balance.measure(vlm, [one], layers=[0], max_new_tokens=2)
    words, asked, vision = len(SYSTEM.split()), len(one.question.split()), 36
    role = 2  # user: and assistant:
    for row in found.to_dict("records"):
        counts = {"bos": 1, "system": words, "vision": vision, "user": asked, "role": role, "generated": row["step"]}
        total = sum(counts.values())
        assert [row[group] for group in GROUPS] == pytest.approx([counts[group] / total for group in GROUPS], abs=1e-6)
    shares = balance.shares(found).iloc[0]
    text = asked + role
    assert shares["vision"] == pytest.approx(vision / (vision + text + words), abs=1e-6)
    assert shares["vision_vs_user"] == pytest.approx(vision / (vision + text), abs=1e-6)
    assert balance.cmb(found, text=["user"])["cmb"].tolist() == pytest.approx([vision / (vision + asked)] * 4, abs=1e-6)


def test_a_permutation_of_the_picture_is_seen(vlm, frame):
    asked = examples(5)
    with intervene(vlm, permute=random_permutations(36, 1, 3)[0]):
        moved = balance.measure(vlm, asked, max_new_tokens=STEPS)
    first = frame["step"] == 0
    change = moved.loc[moved["step"] == 0, "vision"].to_numpy() - frame.loc[first, "vision"].to_numpy()
    assert abs(change).max() > 1e-3


def random_table(draw):
    """A table as `measure` makes it, of one layer or two, with shares of any size."""
    steps, layers, heads = draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    found = rng.dirichlet(np.full(6, draw(st.sampled_from([0.3, 1.0, 5.0]))), size=(2, steps, layers, heads))
    places = np.array(list(np.ndindex(found.shape[:4])))
    table = pd.DataFrame(places, columns=["example", "step", "layer", "head"]).assign(cluster="x")
    return table.assign(**dict(zip(GROUPS, found.reshape(-1, 6).T, strict=True)))


@settings(deadline=None, max_examples=12)
@given(st.composite(random_table)(), st.sampled_from(["drop", "keep"]))
def test_shares_sum_to_one_and_definitions_agree_where_they_must(table, bos):
    corrected, study = (balance.shares(table, definition=each, bos=bos) for each in ("corrected", "as_published"))
    for found in (corrected, study):
        assert found[["system", "vision", "user"]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-9)
    assert corrected["system"].tolist() == study["system"].tolist()
    one_step = table[table["step"] == 0]
    pair = [balance.shares(one_step, definition=each, bos=bos)["vision"].to_numpy() for each in ("corrected", "as_published")]
    assert pair[0] == pytest.approx(pair[1], abs=1e-9)  # over one step the mean of products is the product of means
    without = table.assign(vision=table["vision"] + table["system"], system=0.0)
    none = balance.shares(without, bos=bos)
    assert (none["system"] == 0).all() and none["vision"].to_numpy() == pytest.approx(none["vision_vs_user"].to_numpy(), abs=1e-9)
    assert balance.cmb(table)["cmb"].between(0, 1).all()


def test_the_product_of_means_differs_where_shares_go_together():
    """By hand: system takes all but .1 where vision leads and nothing where text does; the study's product cannot know."""
    steps = [{"system": 0.9, "vision": 0.1, "user": 0.0}, {"system": 0.0, "vision": 0.0, "user": 1.0}]
    table = pd.DataFrame(
        [{"example": "a", "cluster": "a", "step": i, "layer": 0, "head": 0, "bos": 0, "role": 0, "generated": 0, **s}
         for i, s in enumerate(steps)]
    )  # fmt: skip
    corrected, study = balance.shares(table).iloc[0], balance.shares(table, definition="as_published").iloc[0]
    assert (corrected["system"], corrected["vision"], corrected["user"]) == pytest.approx((0.45, 0.05, 0.5))
    assert (study["system"], study["vision"], study["user"]) == pytest.approx((0.45, 0.275, 0.275))


def test_bos_policy_weighs_layers():
    """By hand: a layer that rests on bos and a layer that does not count alike when bos is dropped, else by what is left."""
    rows = [(0, 0.9, 0.1, 0.0), (1, 0.0, 0.0, 1.0)]
    table = pd.DataFrame(
        [{"example": "a", "cluster": "a", "step": 0, "layer": layer, "head": 0, "bos": b, "vision": v, "user": u, "role": 0.0,
          "system": 0.0, "generated": 0.0} for layer, b, v, u in rows]
    )  # fmt: skip
    assert balance.shares(table, bos="drop").iloc[0]["vision"] == pytest.approx(0.5)
    assert balance.shares(table, bos="keep").iloc[0]["vision"] == pytest.approx(0.1 / 1.1)


def test_summaries_are_means_over_examples_with_pictures_resampled(frame):
    shares, balances = balance.shares(frame), balance.cmb(frame)
    summary = balance.shares_summary(shares).set_index(["comparison", "group"])
    for group in ("system", "vision", "user"):
        row = summary.loc[("system, vision and user", group)]
        assert row["share"] == pytest.approx(shares[group].mean()) and row["low"] <= row["share"] <= row["high"]
        assert row["n"] == 5 and row["clusters"] == 3
    assert summary.loc[("vision and user", "user"), "share"] == pytest.approx(1 - shares["vision_vs_user"].mean())
    assert summary.groupby("comparison")["share"].sum().tolist() == pytest.approx([1, 1])
    heads = balance.cmb_summary(balances).set_index(["layer", "head"])
    assert len(heads) == 8
    assert heads["cmb"].to_numpy() == pytest.approx(balances.groupby(["layer", "head"])["cmb"].mean().to_numpy())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layers": [7]}, "layer with attention 7 is not there; 0, 1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line(vlm, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        balance.measure(vlm, examples(2), **options)
    assert "\n" not in str(caught.value)


def test_a_picture_that_is_none_and_examples_that_are_none_are_refused(vlm):
    with pytest.raises(ValueError, match="no examples"):
        balance.measure(vlm, [])
    with pytest.raises(ValueError, match="the picture of e0"):
        balance.measure(vlm, [dataclasses.replace(examples(1)[0], image=None)])


def test_a_template_without_system_prompt_says_so_and_has_no_share(tiny_llava_grouped, tmp_path):
    vlm = VLM.load(str(tiny_llava_grouped))
    found = balance.measure(vlm, examples(2), max_new_tokens=1)
    assert vlm.default_system == "" and (found["system"] == 0).all() and (balance.shares(found)["system"] == 0).all()
    vlm.processor.chat_template = vlm.processor.chat_template.replace("{%- if text -%}{{ ' ' + text }}{%- endif -%}", "")
    with pytest.raises(PromptError, match="does not write the system prompt 'look'"):
        balance.measure(vlm, examples(2), system="look")


def test_tables_of_two_models_are_not_mixed(frame):
    both = pd.concat([frame.assign(model="a"), frame.assign(model="b")])
    for summary in (balance.cmb, balance.shares):
        with pytest.raises(ValueError, match="example 'e0', step 0, layer 0, head 0 stands twice: give the rows of one model"):
            summary(both)
    with pytest.raises(ValueError, match="example 'e0' stands twice"):
        balance.shares_summary(pd.concat([balance.shares(frame)] * 2))
    with pytest.raises(ValueError, match="example 'e0', layer 0, head 0 stands twice"):
        balance.cmb_summary(pd.concat([balance.cmb(frame)] * 2))


def test_unknown_choices_are_refused(frame):
    for options, message in (
        ({"definition": "exact"}, "definition='exact' is unknown; 'corrected' or 'as_published'"),
        ({"bos": "zero"}, "bos='zero' is unknown; 'drop' or 'keep'"),
        ({"text": ["bos"]}, "no set of groups of text"),
        ({"text": "user"}, "no set of groups of text"),
    ):
        with pytest.raises(ValueError, match=message):
            balance.shares(frame, **options)
    with pytest.raises(ValueError, match="no set of groups of text"):
        balance.cmb(frame, text=[])
