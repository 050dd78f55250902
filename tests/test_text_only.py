"""Captions without a picture: taken apart, turned around, read as eager attention reads them, and split as the algebra says."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples
from transformers import AutoModelForImageTextToText

from spatialprobes.examples import Example
from spatialprobes.probes import caption_pairs, text_only
from spatialprobes.probes.paired_columns import columns
from spatialprobes.stats import benjamini_hochberg, bootstrap, permutation_test
from spatialprobes.text_prompts import encode_text
from spatialprobes.vlm import VLM, PromptError
from spatialprobes.worlds.lab import scene
from spatialprobes.worlds.lab_language import RELATION_WORDS, VOCABULARY, Clause, relation, true_of
from spatialprobes.worlds.shapeworld_questions import ASKED, OPPOSITE, STATED

NOUNS = [f"{colour} {shape}" for colour in ("red", "orange", "blue") for shape in ("circle", "ellipse", "semicircle", "square")]
FAMILIES = ["tiny_llava", "tiny_llava_pieces", "tiny_qwen2_vl", "tiny_qwen3_5"]


def published(first, second, word):
    a, b = (f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}" for noun in (first, second))
    return f"there are two shapes {a} and {b} . {ASKED} {STATED} {word} ."


def example(name, text, **meta):
    return Example(name, None, text, meta=meta)


# ---- taking captions apart ----


@given(st.sampled_from(NOUNS), st.sampled_from(NOUNS), st.sampled_from(sorted(OPPOSITE)))
def test_a_published_caption_turned_around_twice_is_itself(first, second, word):
    one = caption_pairs.parse(published(first, second, word))
    assert [one.of(one.noun("first")), one.of(one.noun("second")), one.of(one.relation)] == [first, second, word]
    assert [one.of(one.shape(which)) for which in ("first", "second")] == [first.split()[1], second.split()[1]]
    other = caption_pairs.counterfactual(one)
    assert other.text == published(second, first, OPPOSITE[word])
    assert caption_pairs.counterfactual(other) == one


@settings(deadline=None)
@given(st.integers(0, 500))
def test_a_clause_and_its_counterfactual_are_true_of_the_same_scenes(seed):
    shown = scene(seed, 0)
    a, b = shown.things[:2]
    for word in RELATION_WORDS:
        clause = Clause(a.name, word, b.name)
        turned = caption_pairs.counterfactual(caption_pairs.parse(str(clause)))
        (made,) = [Clause(b.name, other, a.name) for other in RELATION_WORDS if str(Clause(b.name, other, a.name)) == turned.text]
        assert true_of(made, shown) == true_of(clause, shown)
        assert turned.says.relation == OPPOSITE[caption_pairs.parse(str(clause)).says.relation]
    assert true_of(Clause(a.name, relation(a, b), b.name), shown)


@pytest.mark.parametrize("grammar", ["CLAUSE", "PUBLISHED"])
def test_phrases_reverse_each_other_in_words_that_the_lab_knows(grammar):
    known = getattr(caption_pairs, grammar)
    for phrase, says in known.items():
        back = known[known[says.opposite].opposite]
        assert known[says.opposite].relation == OPPOSITE[says.relation] and back.relation == says.relation
        assert set(f"{phrase} {says.neutral} {says.control}".split()) <= set(VOCABULARY) and says.neutral != says.control
        counts = {len(words.split()) for words in (phrase.removeprefix("to the "), says.neutral, says.control)}
        assert len(counts) == 1  # so that nothing behind the phrase moves


def test_clauses_with_verbs_and_longer_phrases():
    one = caption_pairs.parse("A red circle is  to the left of an orange square")
    assert one.of(one.word()) == "left" and one.of(one.relation) == "to the left of"
    turned = caption_pairs.counterfactual(one)
    assert turned.text == "an orange square is to the right of a red circle" and turned.of(turned.word()) == "right"
    asked = caption_pairs.parse("is the red circle under the blue square ?")
    assert caption_pairs.counterfactual(asked).text == "is the blue square above the red circle ?"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "is the red circle left or right of the blue square ?",
        "a red circle left of a blue square . a star above a cross .",
        "a red circle near a blue square .",
        "a red circle is not left of a blue square .",
        "a red circle to left of a blue square .",
        " ".join([published("red circle", "blue square", "left"), published("red star", "blue cross", "above")]),
        published("red circle", "blue square", "left").replace("left .", "adjacent ."),
        published("red circle", "blue square", "left").removesuffix("left ."),
    ],
)
def test_what_states_no_relation_is_refused_and_listed(text):
    with pytest.raises(ValueError, match=r"example 'x'.*states no relation of two entities"):
        text_only.pairs([example("x", text)])
    listed = text_only.unparsed([example("x", text), example("y", published("red circle", "blue square", "left"))])
    assert listed["example"].tolist() == ["x"]


def test_entities_must_be_those_that_the_example_means():
    text = "a red circle left of a blue square ."
    assert text_only.pairs([example("x", text, subject="red circle", reference="Blue square")])[0].relation == "left"
    with pytest.raises(ValueError, match="names 'red circle' where its subject is 'blue square'"):
        text_only.pairs([example("x", text, subject="blue square")])
    with pytest.raises(ValueError, match="form='other' is unknown"):
        text_only.pairs([example("x", text)], form="other")


def test_any_statement_can_be_put_in_the_published_form():
    asked = [
        example("a", "is the orange circle under the blue square ?"),
        example("b", "?", caption=published(*NOUNS[:2], "above")),
    ]
    found = text_only.pairs(asked, form="published")
    assert found[0].members[0].text == published("orange circle", "blue square", "below")
    assert found[0].members[1].text == published("blue square", "orange circle", "above")
    assert found[1] == text_only.pairs(asked)[1]


def test_neutral_pairs_say_one_word_wherever_left_was_said_and_another_for_right():
    for text, said in (
        (
            "a red circle left of a blue square .",
            ["a red circle next to a blue square .", "a blue square close to a red circle ."],
        ),
        ("is the red circle under the cross ?", ["is the red circle near the cross ?", "is the cross beside the red circle ?"]),
        (SAID[0], [published("red circle", "blue square", "adjacent"), published("blue square", "red circle", "near")]),
        (SAID[1], [published("green cross", "red square", "adjacent"), published("red square", "green cross", "near")]),
    ):
        (pair,), (plain,) = (text_only.pairs([example("s", text)], words=words) for words in ("neutral", "relation"))
        assert [member.text for member in pair.members] == said and pair.relation == plain.relation
        for member, other in zip(pair.members, plain.members, strict=True):
            for which in ("first", "second"):
                assert member.of(member.noun(which)) == other.of(other.noun(which))
            assert member.of(member.word()) in ("next", "close", "beside", "near", "adjacent")
    with pytest.raises(ValueError, match="words='none' is unknown"):
        text_only.pairs([example("s", SAID[0])], words="none")


def test_every_real_caption_is_taken_apart_as_its_model_says():
    root = os.environ.get("SPATIALPROBES_REAL_DATA")
    if not root:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no real ShapeWorld captions here")
    seen = 0
    for shard in sorted((Path(root) / "shapeworld/agreement/relational").glob("shard*")):
        texts = (shard / "caption.txt").read_text().splitlines()
        for text, model in zip(texts, json.loads((shard / "caption_model.json").read_text()), strict=True):
            one = caption_pairs.parse(text)
            body = model["body"]
            values = [
                {part["predtype"]: part["value"] for part in one["value"]} for one in (model["restrictor"], body["reference"])
            ]
            expected = [f"{value['color']} {value['shape']}" for value in values]
            relations = {("x-rel", -1): "left", ("x-rel", 1): "right", ("y-rel", -1): "above", ("y-rel", 1): "below"}
            assert [one.of(one.noun(which)) for which in ("first", "second")] == expected
            assert one.says.relation == relations[body["predtype"], body["value"]]
            other = caption_pairs.counterfactual(one)
            assert caption_pairs.counterfactual(other).text == text != other.text
            seen += 1
    assert seen == 300


# ---- prompts without a picture ----


@pytest.mark.parametrize("template", ["chat", "raw"])
def test_a_text_batch_is_the_plain_language_model(tiny_family, template):
    """Padded rows give the logits of each text alone, in positions that the model itself takes for text."""
    vlm, asked = VLM.load(str(tiny_family)), examples(3)
    batch = encode_text(vlm, asked, template=template)
    logits = vlm.forward(batch).logits
    for row, (one, spans) in enumerate(zip(asked, batch.spans, strict=True)):
        alone = batch.input_ids[row, spans.start :][None]
        with torch.no_grad():
            expected = vlm.model(input_ids=alone, attention_mask=torch.ones_like(alone)).logits[0]
        assert torch.allclose(logits[row, spans.start :], expected, atol=2e-4)
        assert expected.std() > 0.1
        parts = spans.parts()
        assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(spans.start, spans.length))
        assert len(spans.vision) == 0 and spans.grid is None
        first = vlm.tokenizer.decode(batch.input_ids[row, spans.user]).strip()
        assert first == one.question.strip()
        own = vlm.tokenizer.bos_token_id
        assert (own is None) == (len(spans.bos) == 0) and (own is None or alone[0, 0] == own)
        assert vlm.tokenizer.decode(batch.input_ids[row, spans.word(one.question.split()[0])]).strip() == one.question.split()[0]
    assert (vlm.family.image_token_id(vlm.model) == batch.input_ids).sum() == 0


def test_chat_prompts_are_those_of_the_template(tiny_llava):
    vlm = VLM.load(str(tiny_llava))
    spans = [encode_text(vlm, examples(1), system=system).spans[0] for system in ("default", None, "be brief")]
    assert [one.text for one in spans] == [
        f"<s>{system} user: {examples(1)[0].question} assistant:" for system in (f" {vlm.default_system}", "", " be brief")
    ]
    assert [len(one.system) for one in spans] == [6, 0, 2]


def test_what_cannot_be_asked_without_a_picture(tiny_llava):
    vlm = VLM.load(str(tiny_llava))
    for template in ("chat", "raw"):
        for text in ("", "is <image> red"):
            with pytest.raises(PromptError, match="'x'"):
                encode_text(vlm, [example("x", text)], template=template)
    with pytest.raises(PromptError, match=r"'x': its text has \d+ tokens, the model has 128 positions"):
        encode_text(vlm, [example("x", "red " * 130)])
    with pytest.raises(ValueError, match="template='plain' is unknown"):
        encode_text(vlm, examples(1), template="plain")
    with pytest.raises(ValueError, match="no examples"):
        encode_text(vlm, [])


# ---- attention ----

SAID = [published("red circle", "blue square", "left"), published("green cross", "red square", "above")]


@torch.no_grad()
def slow(folder, vlm, text, entities, word, template):
    """Attention to each entity by layer and head: eager maps of one text alone, tokens found by their characters."""
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    whole = text
    if template == "chat":
        turn = [{"role": "user", "content": [{"type": "text", "text": text}]}]
        whole = vlm.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    made = vlm.tokenizer(whole, return_offsets_mapping=True, return_tensors="pt")
    ids, offsets = made["input_ids"], made["offset_mapping"][0].tolist()
    bos = vlm.tokenizer.bos_token_id
    if bos is not None and ids[0, 0] != bos:
        ids, offsets = torch.cat([torch.tensor([[bos]]), ids], dim=1), [[0, 0], *offsets]
    maps = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True).attentions

    def tokens(words, last=False):
        start = whole.rindex(f" {words} ") + 1 if last else whole.index(f" {words} ") + 1
        return [i for i, (low, high) in enumerate(offsets) if any(start <= c < start + len(words) for c in range(low, high))]

    asking = tokens(word, last=True)
    found = [
        [sum(one[0, :, asking, key].mean(1) for key in tokens(entity)) for entity in entities] for one in maps if one is not None
    ]
    return found, len(asking), len(tokens(entities[0]))


@pytest.mark.parametrize("template", ["chat", "raw"])
@pytest.mark.parametrize("family", FAMILIES)
def test_attention_equals_eagers_in_every_layer_and_head(request, family, template):
    folder = str(request.getfixturevalue(family))
    vlm = VLM.load(folder)
    found = text_only.pairs([example(f"s{i}", text) for i, text in enumerate(SAID)])
    frame = text_only.measure(vlm, found, template=template, batch_size=3)
    assert list(frame.columns) == list(text_only.COLUMNS)
    assert len(frame) == 2 * 2 * 4 * (2 if "qwen2" not in family else 3)
    sizes = set()
    for pair in found:
        for number, member in enumerate(pair.members, 1):
            entities = [member.of(member.noun(which)) for which in ("first", "second")]
            expected, asking, summed = slow(folder, vlm, member.text, entities, member.of(member.word()), template)
            own = frame[(frame["pair"] == pair.id) & (frame["member"] == number)]
            sizes.add((asking, summed))
            for (_, rows), (first, second) in zip(own.groupby("layer"), expected, strict=True):
                assert rows["to_first"].tolist() == pytest.approx(first.tolist(), abs=1e-5)
                assert rows["to_second"].tolist() == pytest.approx(second.tolist(), abs=1e-5)
            assert (own["first_tokens"] == summed).all()
    if family == "tiny_llava_pieces":
        assert max(sizes) > (1, 2)  # relation and entity are several tokens each
    assert frame["asymmetry"].abs().max() > 0.01
    assert np.allclose(frame["asymmetry"], frame["to_first"] - frame["to_second"])
    assert sorted(frame["layer"].unique()) == ([1, 3] if family == "tiny_qwen3_5" else list(range(vlm.n_layers)))


def test_the_shape_alone_and_even_attention(tiny_llava):
    vlm = VLM.load(str(tiny_llava))
    found = text_only.pairs([example("s", SAID[0])])
    whole, shape = (text_only.measure(vlm, found, entity=entity, template="raw") for entity in ("phrase", "shape"))
    assert (whole["to_first"] > shape["to_first"]).all()
    assert set(whole["first_tokens"]) == {2} and set(shape["first_tokens"]) == {1}
    seen = len(SAID[0].split())  # bos, and all words but the full stop
    assert whole["chance_first"].unique().tolist() == pytest.approx([2 / seen])
    assert shape["chance_second"].unique().tolist() == pytest.approx([1 / seen])


def test_layers_and_the_system_prompt_are_those_asked_for(tiny_llava):
    vlm = VLM.load(str(tiny_llava))
    found = text_only.pairs([example("s", SAID[0])])
    whole, one, bare = (text_only.measure(vlm, found, **own) for own in ({}, {"layers": [1]}, {"system": None}))
    pd.testing.assert_frame_equal(one, whole[whole["layer"] == 1].reset_index(drop=True))
    words = len(vlm.default_system.split())
    assert (1 / bare["chance_second"] * 2 + words).tolist() == pytest.approx((1 / whole["chance_second"] * 2).tolist())
    assert (whole["to_first"] - bare["to_first"]).abs().min() > 0


def test_even_attention_favours_longer_names(tiny_llava_pieces):
    """Of a long and a short name, even attention gives the caption's first its length, on whichever side it stands."""
    vlm = VLM.load(str(tiny_llava_pieces))
    frame = text_only.measure(vlm, text_only.pairs([example("s", SAID[0])]), template="raw")
    tokens = frame.groupby("member")[["first_tokens", "second_tokens"]].first()
    assert tokens.loc[1, "first_tokens"] != tokens.loc[1, "second_tokens"]
    assert tokens.loc[1].tolist() == tokens.loc[2].tolist()[::-1]
    found = text_only.split(frame, by=()).iloc[0]
    even = []
    for text, word in ((SAID[0], "left"), (published("blue square", "red circle", "right"), "right")):
        asking = encode_text(vlm, [example("m", text)], template="raw").spans[0].word(word)
        even.append(np.mean([1 / (place + 1) for place in asking.tolist()]))
    longer = tokens.loc[1, "first_tokens"] - tokens.loc[1, "second_tokens"]
    assert found["content_chance"] == pytest.approx(longer * (even[0] + even[1]) / 2)
    assert found["positional_chance"] == pytest.approx(longer * (even[0] - even[1]) / 2)


def test_a_relation_before_its_entity_is_refused_and_the_last_token_sees_both(tiny_llava):
    vlm = VLM.load(str(tiny_llava))
    found = text_only.pairs([example("l", "a red circle left of a blue square .")])
    with pytest.raises(ValueError, match=r"stands before an entity.*in 2 of 2 texts\).*form='published'\) or query='end'"):
        text_only.measure(vlm, found)
    frame = text_only.measure(vlm, found, query="end", template="raw")
    assert (frame[["to_first", "to_second"]] > 0).all(axis=None)
    batch = encode_text(vlm, [example("l", found[0].members[0].text)], template="raw")
    assert frame["chance_first"].iloc[0] == pytest.approx(2 / batch.input_ids.shape[1])
    for option in ({"entity": "word"}, {"query": "last"}, {"pairs": []}):
        with pytest.raises(ValueError, match=r"is unknown|no pairs"):
            text_only.measure(vlm, **{"pairs": found, **option})


# ---- the two parts ----


def planted(a1, a2, relations=None, clusters=None, tokens=1):
    """A table of `measure` with these asymmetries [pair, layer, head] of captions and counterfactuals."""
    rows = []
    for member, values in ((1, a1), (2, a2)):
        for (pair, layer, head), value in np.ndenumerate(values):
            rows.append(
                {
                    "pair": f"p{pair:03}", "cluster": f"c{pair if clusters is None else clusters[pair]:03}",
                    "relation": "left" if relations is None else relations[pair], "member": member, "layer": layer, "head": head,
                    "asymmetry": value, "first_tokens": tokens if np.isscalar(tokens) else tokens[pair], "second_tokens": 1,
                    "entity": "shape", "chance_first": 0.1, "chance_second": 0.1,
                }
            )  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def drawn(seed, pairs=12, layers=2, heads=3):
    return np.random.default_rng(seed).normal(size=(2, pairs, layers, heads))


def test_the_parts_are_half_the_sum_and_half_the_difference_with_the_houses_statistics():
    a1, a2 = drawn(0)
    relations, clusters = ["left", "above"] * 6, np.arange(12) // 3
    found = text_only.split(planted(a1, a2, relations, clusters), seed=3).set_index(["layer", "head", "relation"])
    assert list(found.columns) == list(text_only.SPLIT) and len(found) == 12
    ps = {}
    for (layer, head, word), row in found.iterrows():
        own = np.array([name == word for name in relations])
        one, other, labels = a1[own, layer, head], a2[own, layer, head], clusters[own]
        for part, values in {"positional": (one + other) / 2, "content": (one - other) / 2}.items():
            interval = bootstrap(values, labels, seed=3)
            p = permutation_test(values, np.zeros(len(values)), labels, seed=3)
            assert row[[part, f"{part}_low", f"{part}_high"]].tolist() == pytest.approx(interval[:3])
            assert row["p" if part == "content" else "positional_p"] == pytest.approx(p)
            ps.setdefault(part, []).append(p)
        assert (row["n"], row["clusters"]) == (6, 4)
    assert found["q"].tolist() == pytest.approx(benjamini_hochberg(ps["content"]))
    assert found["positional_q"].tolist() == pytest.approx(benjamini_hochberg(ps["positional"]))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.sampled_from([(), ("layer",), ("head", "layer"), ("relation",)]))
def test_exchanging_members_turns_content_alone(seed, by):
    a1, a2 = drawn(seed, pairs=5, layers=1, heads=2)
    one, other = (text_only.split(planted(*both), by=by) for both in ((a1, a2), (a2, a1)))
    assert one["positional"].tolist() == pytest.approx(other["positional"].tolist())
    assert one["content"].tolist() == pytest.approx((-other["content"]).tolist())
    assert one["content_low"].tolist() == pytest.approx((-other["content_high"]).tolist())
    assert one[["p", "q"]].to_numpy() == pytest.approx(other[["p", "q"]].to_numpy())
    assert list(one.columns) == [*by, *text_only.SPLIT]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_the_studys_score_is_twice_the_positional_part(seed):
    frame = planted(*drawn(seed, pairs=4))
    study, ours = text_only.as_published(frame).iloc[0], text_only.split(frame, by=()).iloc[0]
    assert study["symmetry_score"] == pytest.approx(2 * ours["positional"])
    assert study["asym_s1"] - study["asym_s2"] == pytest.approx(2 * ours["content"])
    each = text_only.published_pairs(frame)
    assert each["symmetry_score"].tolist() == pytest.approx((each["asym_s1"] + each["asym_s2"]).tolist())


def test_recency_is_positional_and_binding_is_content():
    noise = drawn(1, pairs=40, layers=1, heads=2) / 100
    recency, binding = np.array([-0.2, 0.0]), np.array([0.0, 0.3])  # head 0 looks at the last mention, head 1 at the subject
    frame = planted(recency + binding + noise[0], recency - binding + noise[1])
    found = text_only.split(frame, by=("head",)).set_index("head")
    assert found["positional"].tolist() == pytest.approx([-0.2, 0], abs=0.01)
    assert found["content"].tolist() == pytest.approx([0, 0.3], abs=0.01)
    assert found["q"][1] < 0.01 < found["q"][0] and found["positional_q"][0] < 0.01 < found["positional_q"][1]
    assert (found["content_low"] <= found["content"]).all() and found["content_low"][1] > 0.29
    only = text_only.as_published(planted(recency + binding + 0 * noise[0], recency - binding + 0 * noise[1])).iloc[0]
    assert only["symmetry_score"] == pytest.approx(-0.2)  # of its two heads; the binding head leaves no trace


def test_a_preference_for_the_left_entity_cancels_over_relations_unless_oriented():
    relations = ["left", "right", "above", "below"] * 5
    sign = np.array([1 if name in ("left", "above") else -1 for name in relations])[:, None, None]
    frame = planted(0.1 * sign * np.ones((20, 1, 1)), -0.1 * sign * np.ones((20, 1, 1)), relations)
    assert text_only.split(frame, by=())["content"].tolist() == pytest.approx([0])
    assert text_only.split(frame, by=("relation",)).set_index("relation")["content"].to_dict() == pytest.approx(
        {"left": 0.1, "right": -0.1, "above": 0.1, "below": -0.1}
    )
    turned = text_only.oriented(frame)
    assert text_only.split(turned, by=("relation",)).set_index("relation")["content"].to_dict() == pytest.approx(
        {"left": 0.1, "above": 0.1}
    )
    assert text_only.split(turned, by=("relation",))["n"].tolist() == [10, 10]
    assert text_only.oriented(turned).equals(turned)


def test_orienting_is_the_same_as_stating_the_pair_from_the_other_end(tiny_llava):
    """ "a left of b" and "b right of a" make the same pair, but for which comes first."""
    vlm = VLM.load(str(tiny_llava))
    one, other = published("red circle", "blue square", "left"), published("blue square", "red circle", "right")
    found = [text_only.measure(vlm, text_only.pairs([example("s", text)]), template="raw") for text in (one, other)]
    key = ["member", "layer", "head"]
    turned = text_only.oriented(found[1]).sort_values(key, ignore_index=True)
    straight = found[0].sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(turned, straight, rtol=1e-4, atol=1e-6)


def test_excess_is_the_size_of_content_over_that_of_the_control():
    (a1, a2), (b1, b2) = drawn(1, layers=1, heads=2) / 10, drawn(2, layers=1, heads=2) / 10
    relations, clusters = ["left", "above"] * 6, np.arange(12) // 3
    frame = planted(a1 + 0.5, a2 - 0.5, relations, clusters)
    for sign in (1, -1):  # which neutral word stands for which direction means nothing
        control = planted(b1 + sign * 0.2, b2 - sign * 0.2, relations, clusters)
        for by in (("head", "relation"), ("head",), ()):
            found = text_only.against_neutral(frame, control, by=by, seed=5)
            splits = [text_only.split(table, by=by, seed=5) for table in (frame, control)]
            assert found["content"].tolist() == pytest.approx(splits[0]["content"].tolist())
            assert found["control"].tolist() == pytest.approx(splits[1]["content"].tolist())
            for row in found.itertuples():
                own = np.array([name == getattr(row, "relation", name) for name in relations])
                heads = [row.head] if "head" in by else [0, 1]
                one, other = ((first - second)[own][:, 0, heads].mean(1) / 2 for first, second in ((a1, a2), (b1, b2)))
                expected = bootstrap(one + 0.5, clusters[own], paired=sign * other + 0.2, seed=5)
                assert (row.excess, row.low, row.high) == pytest.approx(expected[:3])
                assert (row.n, row.clusters) == expected[3:]
    with pytest.raises(ValueError, match="the control is of other pairs"):
        text_only.against_neutral(frame, planted(b1[:6], b2[:6], relations, clusters))
    with pytest.raises(ValueError, match="by='word' is unknown"):
        text_only.against_neutral(frame, frame, by=("word",))


def test_a_random_model_has_content_too(tiny_llava):
    """Why content alone is no binding: two words look at first and second mentions differently, whatever they mean."""
    vlm = VLM.load(str(tiny_llava))
    names = [f"{colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square", "cross")]
    asked = [example(f"{a}-{b}", published(a, b, "left")) for a in names for b in names if a != b]
    frame = text_only.measure(vlm, text_only.pairs(asked), template="raw", entity="shape")
    found = text_only.split(frame, by=("layer", "head"))
    assert (found["q"] < 0.01).sum() >= 2


def test_the_study_drops_pairs_of_several_tokens_and_counts_them():
    a1, a2 = drawn(5, pairs=4)
    tokens = [1, 2, 1, 3]
    frame = planted(a1, a2, tokens=tokens)
    study = text_only.as_published(frame).iloc[0]
    assert study[["total_pairs", "kept_pairs", "skipped_pairs"]].tolist() == [4, 2, 2]
    means = [values.mean((1, 2))[[0, 2]] for values in (a1, a2)]
    assert study["asym_s1"] == pytest.approx(means[0].mean()) and study["asym_s2"] == pytest.approx(means[1].mean())
    assert study["mean_abs_symmetry_score"] == pytest.approx(np.abs(means[0] + means[1]).mean())
    assert text_only.published_pairs(frame)["kept"].sum() == 2
    none = text_only.as_published(planted(a1, a2, tokens=2)).iloc[0]
    assert none["kept_pairs"] == 0 and np.isnan(none["symmetry_score"])
    with pytest.raises(ValueError, match="entity='shape'"):
        text_only.as_published(frame.assign(entity="phrase"))


def test_tables_that_are_no_pairs_are_refused():
    frame = planted(*drawn(2, pairs=3))
    with pytest.raises(ValueError, match=r"member 1.*member 2"):
        text_only.split(frame[frame["member"] == 1])
    with pytest.raises(ValueError, match=r"'p00[0-2]' stands twice"):
        text_only.split(pd.concat([frame, frame]))
    with pytest.raises(ValueError, match="by='pair' is unknown"):
        text_only.split(frame, by=("pair",))
    with pytest.raises(ValueError, match="'asymmetry' is missing"):
        text_only.split(frame.drop(columns="asymmetry"))
    alone = text_only.split(planted(*drawn(2, pairs=1)))
    assert alone["content"].notna().all() and alone[["content_low", "p", "q"]].isna().all(axis=None)


# ---- statistics of many columns ----


def test_columns_are_the_houses_interval_and_p_whatever_their_number():
    rng = np.random.default_rng(4)
    values, clusters = rng.normal(0.3, 1, (30, 450)), rng.integers(0, 9, 30)
    found = columns(values, clusters, seed=7)
    for j in (0, 199, 200, 449):  # on both sides of a block's end
        expected = bootstrap(values[:, j], clusters, seed=7)
        assert (found.mean[j], found.low[j], found.high[j]) == pytest.approx(expected[:3])
        assert found.p[j] == permutation_test(values[:, j], np.zeros(30), clusters, seed=7)
    assert (found.n, found.clusters) == (30, 9)
    null = columns(rng.normal(size=(40, 400)), np.arange(40))
    assert 0.02 < (null.p < 0.05).mean() < 0.09
    for wrong, message in (((values[:5], clusters), "clusters has 30 rows, not 5"), ((values * np.nan, clusters), "NaN")):
        with pytest.raises(ValueError, match=message):
            columns(*wrong)


def test_pairs_know_their_pictures():
    one = dataclasses.replace(example("s", SAID[0]), cluster="picture")
    found = text_only.pairs([one, example("t", SAID[1])])
    assert [(pair.id, pair.cluster, pair.relation) for pair in found] == [("s", "picture", "left"), ("t", "t", "above")]
