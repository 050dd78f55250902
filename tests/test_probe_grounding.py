"""The grounding probe: maps equal eager attention, averaged by hand, of one example at a time; closed forms; what is refused."""

import dataclasses
import io

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import QUESTIONS, examples, picture
from transformers import AutoModelForImageTextToText

from spatialprobes import paths, plots
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.probes import grounding
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_questions import examples as lab_examples

LAB = "lab-llava-vanilla"
COLUMNS = "example cluster word layer row col weight seen scale_x scale_y shift_x shift_y".split()
WORDS = (["the", "red circle", "square"], ["circle"], ["cross", "where"], ["green square", "the picture", "and"])


def wanted(asked):
    """Words of one and of several tokens, some of them in the system prompt or twice in the question."""
    return {one.id: WORDS[[question for question, _, _ in QUESTIONS].index(one.question)] for one in asked}


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_llava_grouped", "tiny_llava_pieces", LAB])
def setting(request):
    """Model, the same weights with eager attention, examples and their words."""
    if request.param == LAB:
        folder = paths.lab_folder() / LAB
        if not (folder / "config.json").is_file():
            pytest.skip(f"{LAB} has not been trained yet")
        asked = lab_examples(4, 13, ["relation.horizontal"])
        words = {one.id: [one.meta["subject"]] for one in asked}
    else:
        folder = request.getfixturevalue(request.param)
        asked = examples(6)
        words = wanted(asked)
    reference = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return VLM.load(LAB if request.param == LAB else str(folder)), reference.eval(), asked, words


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@torch.no_grad()
def eager(vlm, reference, one, order=range(36)):
    """Attention maps [layer][head, row, key] of one example alone, places of its vision tokens, and every token's text."""
    batch = vlm.encode([one])
    ids = batch.input_ids[0]
    vision = (ids == vlm.model.config.image_token_id).nonzero()[:, 0]
    embeddings = vlm.model.get_input_embeddings()(ids[None]).clone()
    features = vlm.model.get_image_features(pixel_values=batch.inputs["pixel_values"]).pooler_output[0]
    embeddings[0, vision] = features[list(order)]
    maps = reference(inputs_embeds=embeddings, output_attentions=True).attentions
    return [each[0].double() for each in maps], vision, vlm.tokenizer.convert_ids_to_tokens(ids)


def places(tokens, question, word):
    """Indices of the tokens that share a letter with the first whole `word` of the question."""
    pieces = any("Ġ" in token for token in tokens)  # byte-level: the space is part of the token
    shown = [token.replace("Ġ", " ").replace("Ċ", "\n") if pieces else f" {token}" for token in tokens]
    ends = np.cumsum([len(token) for token in shown])
    start = "".join(shown).rfind(question) + f" {question} ".index(f" {word} ")
    assert "".join(shown)[start : start + len(word)] == word
    return [i for i, end in enumerate(ends) if end > start and end - len(shown[i]) < start + len(word)]


def panel(frame, one, word, layer):
    rows = frame[(frame["example"] == one.id) & (frame["word"] == word) & (frame["layer"] == layer)]
    assert rows["row"].tolist() == [i // 6 for i in range(36)] and rows["col"].tolist() == [i % 6 for i in range(36)]
    return rows


@pytest.mark.parametrize("batch_size", [64, 4])
def test_maps_equal_eager_attention_averaged_by_hand(setting, batch_size):
    vlm, reference, asked, words = setting
    frame = grounding.measure(vlm, asked, words, batch_size=batch_size)
    assert list(frame.columns) == COLUMNS
    assert list(dict.fromkeys(zip(frame["example"], frame["word"], strict=True))) == [
        (one.id, word) for one in asked for word in words[one.id]
    ]
    assert len(frame) == sum(map(len, words.values())) * vlm.n_layers * 36
    sizes = set()
    for one in asked:
        maps, vision, tokens = eager(vlm, reference, one)
        for word in words[one.id]:
            at = places(tokens, one.question, word)
            sizes.add(len(at))
            for layer, attention in enumerate(maps):
                expected = torch.stack([attention[:, place, vision].mean(0) for place in at]).mean(0)
                rows = panel(frame, one, word, layer)
                assert rows["seen"].tolist() == pytest.approx([float(expected.sum())] * 36, rel=1e-4)
                assert rows["weight"].tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-3, abs=1e-6)
                assert rows["weight"].max() > 1.05 / 36  # not flat, so that a wrong map would show
    assert max(sizes) > 1


@pytest.mark.parametrize("row", ["query_first", "emits"])
def test_other_rows_equal_eager_attention_of_their_token(setting, row):
    vlm, reference, asked, words = setting
    frame = grounding.measure(vlm, asked, words, row=row, bos="drop", layers=[1])
    for one in asked[:4]:
        maps, vision, tokens = eager(vlm, reference, one)
        for word in words[one.id]:
            place = places(tokens, one.question, word)[0] - (row == "emits")
            attention = maps[1][:, place].mean(0)
            attention[0] = 0
            expected = attention[vision]
            rows = panel(frame, one, word, 1)
            assert rows["seen"].iloc[0] == pytest.approx(float(expected.sum() / attention.sum()), rel=1e-4)
            assert rows["weight"].tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-3, abs=1e-6)


def test_the_first_of_several_tokens_is_not_all_of_them(tiny_llava_pieces):
    vlm, asked = VLM.load(str(tiny_llava_pieces)), examples(2)
    found = [grounding.measure(vlm, asked, wanted(asked), layers=[0], row=row)["weight"] for row in ("query", "query_first")]
    assert abs(found[0] - found[1]).max() > 1e-3


@torch.no_grad()
def slow_published(vlm, reference, one, word):
    """The study's map: generate with eager attention, first step whose query is the word's first sub-token; head and layer
    means of rows without bos."""
    batch = vlm.encode([one], None)
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    made = reference.generate(**inputs, max_new_tokens=8, do_sample=False, output_attentions=True, return_dict_in_generate=True)
    new = made.sequences[0, inputs["input_ids"].shape[1] :]
    texts = [vlm.tokenizer.decode(token) for token in new]
    step = (
        next(i for i, text in enumerate(texts) if text.strip() and word.startswith(text.strip())) + 1
    )  # step 0 is the prompt's: the token that step s makes is the query of step s + 1
    vision = (inputs["input_ids"][0] == vlm.model.config.image_token_id).nonzero()[:, 0]
    rows = []
    for attention in made.attentions[step]:
        row = attention[0, :, -1].double().mean(0)
        row[0] = 0
        rows.append(row / row.sum())
    w = torch.stack(rows).mean(0)[vision].numpy()
    p = w / w.sum()
    return (w - w.min()) / (w.max() - w.min() + 1e-10), w.sum(), -(p * np.log2(p)).sum() / np.log2(len(p))


def test_the_studys_map_equals_its_own_arithmetic_inside_generate(setting):
    """Of the first word of the model's own answer, forced again."""
    vlm, reference, asked, _ = setting
    said = grounding.with_generated_answers(vlm, asked, max_new_tokens=8, system=None)
    words = {one.id: one.answer.split()[:1] for one in said if one.answer and one.meta["as_generated"]}
    said = [one for one in said if one.id in words and words[one.id][0].isalpha()]
    assert len(said) >= 2
    words = {one.id: words[one.id] for one in said}
    frame = grounding.published(vlm, said, words)
    found = grounding.entropy(frame).set_index("example")["entropy"]
    for one in said:
        scaled, seen, expected = slow_published(vlm, reference, one, words[one.id][0])
        rows = frame[frame["example"] == one.id]
        assert rows["scaled"].tolist() == pytest.approx(scaled.tolist(), abs=1e-4)
        assert rows["seen"].iloc[0] == pytest.approx(seen, rel=1e-4)
        assert found[one.id] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(TypeError, match="row"):
        grounding.published(vlm, said, words, row="emits")


def test_the_row_that_emits_is_the_one_before_in_the_answer(vlm):
    """A forced answer of two words: what emits the second is what queries the first."""
    one = dataclasses.replace(examples(1)[0], answer="left circle")
    emits = grounding.measure(vlm, [one], {"e0": ["circle"]}, part="answer", row="emits")
    queries = grounding.measure(vlm, [one], {"e0": ["left"]}, part="answer", row="query")
    assert emits["weight"].tolist() == pytest.approx(queries["weight"].tolist(), rel=1e-5)
    other = grounding.measure(vlm, [one], {"e0": ["circle"]}, part="answer")
    assert abs(other["weight"] - emits["weight"]).max() > 1e-3
    with pytest.raises(KeyError, match=r"'red' is not in the answer text of 'e0'; words there: left, circle"):
        grounding.measure(vlm, [one], {"e0": ["red"]}, part="answer")


def test_generated_answers_are_those_of_generate(vlm):
    asked = examples(4)
    said = grounding.with_generated_answers(vlm, asked, max_new_tokens=5, batch_size=3)
    assert [one.id for one in said] == [one.id for one in asked]
    for one, before in zip(said, asked, strict=True):
        tokens = vlm.generate([before], 5)[0]
        assert one.answer == vlm.decode(tokens[None])[0] and one.question == before.question
        words = [vlm.tokenizer.decode(token) for token in tokens[: len(one.answer.split())]]
        assert one.meta["as_generated"] == bool(one.answer and " ".join(words) == one.answer)


def test_a_mean_map_weighs_layers_by_what_they_see(vlm):
    cells = {"example": "a", "cluster": "p", "word": "w", "row": [0, 0, 0, 0], "col": [0, 1, 0, 1], "layer": [0, 0, 1, 1]}
    frame = pd.DataFrame({**cells, "weight": [0.75, 0.25, 0.0, 1.0], "seen": [0.8, 0.8, 0.2, 0.2]})
    found = grounding.mean_map(frame)
    assert found["weight"].tolist() == pytest.approx([0.6, 0.4]) and found["seen"].tolist() == pytest.approx([0.5, 0.5])
    assert found["scaled"].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="a cell of a map stands twice"):
        grounding.mean_map(pd.concat([frame, frame]))
    flat = grounding.mean_map(frame.assign(weight=0.5))
    assert flat["scaled"].tolist() == [0.0, 0.0] and grounding.entropy(flat)["entropy"].tolist() == pytest.approx([1.0])
    real = grounding.measure(vlm, examples(2), {"e0": ["circle"], "e1": ["what"]})
    one_layer = real[real["layer"] == 1]
    assert grounding.mean_map(one_layer)["weight"].tolist() == pytest.approx(one_layer["weight"].tolist())


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 40), st.integers(1, 40), st.floats(0.05, 20))
def test_entropy_is_one_for_a_flat_map_and_log_k_over_log_n_for_k_even_cells(n, k, spread):
    k = min(k, n)
    base = {"example": "a", "cluster": "p", "word": "w", "layer": 0, "row": 0, "col": range(n)}
    even = np.r_[np.full(k, 1 / k), np.zeros(n - k)]
    found = grounding.entropy(pd.DataFrame({**base, "weight": even}))
    assert found["entropy"].tolist() == pytest.approx([np.log(k) / np.log(n)], abs=1e-9)
    p = np.random.default_rng(n * k).dirichlet(np.full(n, spread))
    found = grounding.entropy(pd.DataFrame({**base, "weight": p}))["entropy"][0]
    assert -1e-12 <= found <= 1 + 1e-12
    shuffled = grounding.entropy(pd.DataFrame({**base, "weight": p[::-1]}))["entropy"][0]
    assert found == pytest.approx(shuffled)


def test_entropy_refuses_what_is_no_map():
    one = pd.DataFrame({"example": "a", "cluster": "p", "word": "w", "row": [0, 0], "col": [0, 1], "weight": [0.5, 0.2]})
    with pytest.raises(ValueError, match=r"the weights of \('a', 'p', 'w'\) sum to 0.7"):
        grounding.entropy(one)
    with pytest.raises(ValueError, match=r"the map of \('a', 'p', 'w'\) has one cell"):
        grounding.entropy(one.iloc[:1])


def test_the_entropy_table_is_by_data_set_and_model(vlm):
    asked = examples(6)
    maps = grounding.measure(vlm, asked, {one.id: wanted(asked)[one.id][:1] for one in asked})
    each = grounding.entropy(maps)
    mean = grounding.entropy(grounding.mean_map(maps))
    assert list(each.columns) == ["example", "cluster", "word", "layer", "entropy"] and "layer" not in mean.columns
    assert len(each) == 12 and len(mean) == 6
    both = pd.concat([mean.assign(dataset="one", model="a"), mean.assign(dataset="two", model="a", entropy=0.5)])
    found = grounding.entropy_summary(both)
    assert list(found.columns) == ["dataset", "model", "entropy", "low", "high", "n", "clusters"]
    assert found["entropy"].tolist() == pytest.approx([mean["entropy"].mean(), 0.5])
    assert found["n"].tolist() == [6, 6] and found["clusters"].tolist() == [3, 3]
    assert found["low"][0] < found["entropy"][0] < found["high"][0]
    assert plots.draw("heatmap.entropy", found, {}).axes
    with pytest.raises(ValueError, match="maps of 2 layers"):
        grounding.entropy_summary(each.assign(dataset="one", model="a"))
    assert len(grounding.entropy_summary(each.assign(dataset="one"), by=["dataset", "layer"])) == 2
    with pytest.raises(ValueError, match="the column 'dataset' is missing"):
        grounding.entropy_summary(mean)


def test_maps_under_a_permutation_equal_eagers_of_permuted_embeddings(setting):
    vlm, reference, asked, words = setting
    asked = [dataclasses.replace(one, cluster="") for one in asked]
    orders = {one.id: order for one, order in zip(asked, random_permutations(36, len(asked)), strict=True)}
    with intervene(vlm, permute=orders):
        frame = grounding.measure(vlm, asked, words, layers=[1])
    for one in asked[:2]:
        maps, vision, tokens = eager(vlm, reference, one, orders[one.id].tolist())
        word = words[one.id][-1]
        expected = maps[1][:, places(tokens, one.question, word)][..., vision].mean((0, 1))
        rows = panel(frame, one, word, 1)
        assert rows["weight"].tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("row", ["query", "emits"])
def test_every_familys_maps_equal_eager_attention_on_wide_pictures(tiny_family, row):
    """Ten tokens across and six down where a family takes any shape; latents without a grid are refused in one line."""
    vlm = VLM.load(str(tiny_family))
    asked = [dataclasses.replace(one, image=picture(i, (80, 48)), cluster="") for i, one in enumerate(examples(3))]
    if vlm.family.model_type == "idefics2":
        with pytest.raises(ValueError, match=r"the 10 vision tokens of 'e0' have no grid to draw a map on$"):
            grounding.measure(vlm, asked, wanted(asked), row=row)
        return
    reference = AutoModelForImageTextToText.from_pretrained(tiny_family, attn_implementation="eager", dtype=torch.float32).eval()
    frame = grounding.measure(vlm, asked, wanted(asked), row=row, bos="drop")
    layers = [1, 3] if vlm.family.model_type == "qwen3_5" else list(range(vlm.n_layers))  # linear ones have no map
    assert sorted(set(frame["layer"])) == layers
    for one in asked:
        batch = vlm.encode([one])
        with torch.no_grad():
            given = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
            maps = reference(**given, output_attentions=True).attentions
        ids = batch.input_ids[0]
        vision, tokens = (ids == vlm.model.config.image_token_id), vlm.tokenizer.convert_ids_to_tokens(ids)
        grid = (6, 6) if vlm.family.model_type == "llava" else (6, 10)
        for word in wanted(asked)[one.id]:
            at = places(tokens, one.question, word)
            at = [at[0] - 1] if row == "emits" else at
            for layer, attention in zip(layers, maps, strict=True):
                whole = attention[0][:, at].double().mean((0, 1))
                expected = whole[vision]
                rows = frame[(frame["example"] == one.id) & (frame["word"] == word) & (frame["layer"] == layer)]
                assert (rows["row"] * grid[1] + rows["col"]).tolist() == list(range(grid[0] * grid[1]))
                assert rows["weight"].tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=2e-3, abs=1e-6)
                assert rows["seen"].iloc[0] == pytest.approx(float(expected.sum() / whole[1:].sum()), rel=1e-3)
    if vlm.family.model_type == "qwen3_5":
        with pytest.raises(ValueError, match=r"layer 0 has no attention map.*: 1, 3$"):
            grounding.measure(vlm, asked, wanted(asked), layers=[0])


def test_every_panel_sums_to_one_and_sees_a_share(setting):
    vlm, _, asked, words = setting
    frame = grounding.measure(vlm, asked, words)
    panels = frame.groupby(["example", "word", "layer"])
    assert panels["weight"].sum().to_numpy() == pytest.approx(1, abs=1e-9)
    assert (frame["weight"] >= 0).all()
    assert frame["seen"].between(0, 1).all() and (panels["seen"].nunique() == 1).all()
    assert frame["seen"].nunique() > len(asked)


def test_without_queries_attention_is_the_same_everywhere(tiny_llava_pieces):
    """Closed form: query weights of 0 share a token's attention equally among the places up to it."""
    vlm = VLM.load(str(tiny_llava_pieces))
    with torch.no_grad():
        vlm.model.model.language_model.layers[0].self_attn.q_proj.weight.zero_()
    asked = examples(4)
    frame = grounding.measure(vlm, asked, wanted(asked), layers=[0])
    assert frame["weight"].to_numpy() == pytest.approx(1 / 36, rel=1e-5)
    for one in asked:
        tokens = vlm.tokenizer.convert_ids_to_tokens(vlm.encode([one]).input_ids[0])
        for word in wanted(asked)[one.id]:
            expected = np.mean([36 / (place + 1) for place in places(tokens, one.question, word)])
            assert panel(frame, one, word, 0)["seen"].iloc[0] == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=12)
@given(
    chosen=st.lists(st.sampled_from(["e0", "e1", "e2", "e3"]), min_size=1, unique=True).flatmap(
        lambda ids: st.fixed_dictionaries(
            {id: st.lists(st.sampled_from(WORDS[int(id[1])]), min_size=1, unique=True) for id in ids}
        )
    ),
    batch_size=st.integers(1, 6),
    layers=st.sampled_from([[0], [1], [1, 0], "all"]),
)
def test_a_panel_depends_on_its_example_and_word_alone(vlm, chosen, batch_size, layers):
    asked = examples(4)
    whole = grounding.measure(vlm, asked, wanted(asked)).set_index(["example", "word", "layer"])
    found = grounding.measure(vlm, asked, chosen, batch_size=batch_size, layers=layers).set_index(["example", "word", "layer"])
    shown = {0, 1} if layers == "all" else set(layers)
    assert set(found.index) == {(id, word, layer) for id, words in chosen.items() for word in words for layer in shown}
    for key in set(found.index):
        assert found.loc[key, "weight"].tolist() == pytest.approx(whole.loc[key, "weight"].tolist(), rel=1e-4, abs=1e-7)
        assert found.loc[key, "seen"].iloc[0] == pytest.approx(whole.loc[key, "seen"].iloc[0], rel=1e-4)


def test_maps_are_what_the_figure_draws(vlm):
    asked = examples(2)
    maps = grounding.measure(vlm, asked, wanted(asked), layers=[1])
    files = {}
    for one in asked:
        one.image.save(files.setdefault(one.id, io.BytesIO()), "PNG")
    maps["png"] = maps["example"].map({id: file.getvalue() for id, file in files.items()})
    figure = plots.draw("heatmap.overlay", maps, {})
    titles = {axes.get_title(): axes for axes in figure.axes}
    assert {"e0", "e1", "the", "red circle", "square", "circle"} <= set(titles)
    drawn = np.asarray(titles["red circle"].get_images()[-1].get_array())
    assert drawn.ravel().tolist() == panel(maps, asked[0], "red circle", 1)["weight"].tolist()


@pytest.mark.parametrize("word", ["purple", "circl", "look", "user:"])
def test_a_missing_word_names_its_example_and_the_words_there(vlm, word):
    asked = examples(3)
    with pytest.raises(KeyError, match=r"'e1'.*words there: what, color, is, the, circle") as caught:
        grounding.measure(vlm, asked, {"e0": ["red circle"], "e1": ["circle", word]})
    assert repr(word) in str(caught.value)


def test_bad_input_is_refused_and_nothing_stays_hooked(vlm, monkeypatch):
    asked = examples(2)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in vlm.model.modules()]
    for words in ({}, {"e0": []}):
        with pytest.raises(ValueError, match="no words were given"):
            grounding.measure(vlm, asked, words)
    with pytest.raises(ValueError, match="no words were given"):
        grounding.measure(vlm, [], {})
    with pytest.raises(KeyError, match="'e11', which no example is called; nearest: 'e1'"):
        grounding.measure(vlm, asked, {"e0": ["circle"], "e11": ["circle"]})
    for options, message in (
        ({"row": "key"}, "row='key' is unknown; one of 'query', 'query_first', 'emits'"),
        ({"part": "system"}, "part='system' is unknown"),
        ({"bos": "zero"}, "bos='zero' is unknown"),
    ):
        with pytest.raises(ValueError, match=message):
            grounding.measure(vlm, asked, wanted(asked), **options)
    with pytest.raises(ValueError, match="layer with attention 9 is not there; 0, 1"):
        grounding.measure(vlm, asked, wanted(asked), layers=[9])
    with pytest.raises(ValueError, match="the picture of e0"):
        grounding.measure(vlm, [dataclasses.replace(asked[0], image=None)], {"e0": ["circle"]})
    monkeypatch.setattr(type(vlm.family), "grid", lambda *given: None)
    with pytest.raises(ValueError, match="36 vision tokens of 'e0' have no grid"):
        grounding.measure(vlm, asked, wanted(asked))
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in vlm.model.modules()]
    assert vlm.whole_prompts == 0
