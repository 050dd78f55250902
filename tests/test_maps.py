"""Attention maps: equal to eager attention of one prompt at a time, in every family; a wired head's; panels; the cache."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples, picture
from tiny_families import mixed
from transformers import AutoModelForImageTextToText
from unknown import save_gemma3
from wired import LM_POSITIONS, PLACES, SIDE, TOWER_POSITIONS, wired
from wired import examples as wired_examples

from spatialprobes.fingerprints import FingerprintError
from spatialprobes.probes import maps
from spatialprobes.probes.map_records import COLUMNS, LEFT_OUT, Maps
from spatialprobes.probes.map_store import packed, unpacked
from spatialprobes.store import StoreError
from spatialprobes.vlm import VLM

TOLERANCE = 1e-5
# by number of the question: phrases of several words, of a word that is also in the system prompt, and the first of two "the"
WORDS = (
    {"subject": "red circle", "reference": "blue square", "relation": "left"},
    {"subject": "circle", "relation": "what"},
    {"subject": "cross", "reference": "the"},
    {"subject": "green square", "reference": "red cross", "relation": "and"},
)


def words_of(asked):
    return {one.id: WORDS[i % 4] for i, one in enumerate(asked)}


def wide(count=4):
    """Ten cells across and six down where a family takes any shape."""
    return [dataclasses.replace(one, image=picture(i, (80, 48)), cluster="") for i, one in enumerate(examples(count))]


@torch.no_grad()
def eager(vlm, reference, one, system="default", answers=False):
    """Of one example alone: maps [layer, head, row, key], where its vision tokens are, and the text before each token's end."""
    batch = vlm.encode([one], system, answers=answers)
    given = {name: value for name, value in batch.inputs.items() if name != "position_ids"}
    attentions = torch.stack([each[0] for each in reference(**given, output_attentions=True).attentions]).double().numpy()
    ids = batch.input_ids[0]
    return attentions, (ids == vlm.model.config.image_token_id).numpy(), vlm.tokenizer.convert_ids_to_tokens(ids)


def places(tokens, text, word):
    """Indices of the tokens that share a letter with the first whole `word` of the last `text` in the prompt."""
    pieces = any("Ġ" in token for token in tokens)  # byte-level: the space is part of the token
    shown = [token.replace("Ġ", " ").replace("Ċ", "\n") if pieces else f" {token}" for token in tokens]
    ends = np.cumsum([len(token) for token in shown])
    start = "".join(shown).rfind(text) + f" {text} ".index(f" {word} ")
    assert "".join(shown)[start : start + len(word)] == word
    return [i for i, end in enumerate(ends) if end > start and end - len(shown[i]) < start + len(word)]


def reference_of(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture(scope="module", params=["llava", "llava_grouped", "llava_pieces", "qwen2_vl", "qwen2_5_vl", "qwen3_5"])
def family(request):
    folder = request.getfixturevalue(f"tiny_{request.param}")
    return VLM.load(str(folder)), reference_of(folder)


# ---- rows ----
@pytest.mark.parametrize("row", ["query", "emits"])
def test_maps_of_every_family_equal_eager_attention_of_one_prompt(family, row):
    vlm, reference = family
    asked = wide()
    found = maps.extract(vlm, asked, words_of(asked), row=row)
    assert list(found.index.columns) == list(COLUMNS) and found.source == "words" and not len(found.left_out)
    assert found.layers == ([1, 3] if vlm.family.model_type == "qwen3_5" else list(range(vlm.n_layers)))
    assert list(zip(found.index["example"], found.index["role"], strict=True)) == [
        (one.id, role) for one in asked for role in words_of(asked)[one.id]
    ]
    grid = (6, 6) if vlm.family.model_type == "llava" else (6, 10)
    sizes = set()
    for one in asked:
        attentions, vision, tokens = eager(vlm, reference, one)
        for entry in found.index[found.index["example"] == one.id].itertuples():
            at = places(tokens, one.question, entry.word)
            sizes.add(len(at))
            at = at if row == "query" else [at[0] - 1]
            expected = attentions[:, :, at].mean(2)[..., vision]
            got = found.weights[entry.map]
            assert (entry.rows, entry.cols) == grid and got.dtype == np.float32
            assert got.shape == (len(found.layers), 4, grid[0] * grid[1])
            assert np.abs(got - expected).max() < TOLERANCE and expected.max() > 1.2 * expected.mean()
            assert entry.seen == pytest.approx(expected.sum(-1).mean(), abs=TOLERANCE)
    assert max(sizes) > 1


def test_maps_of_a_model_without_a_family_equal_eager_attention(tmp_path):
    """Gemma 3, discovered: its vision tokens see one another."""
    folder = save_gemma3(tmp_path)
    vlm, asked = VLM.load(str(folder)), examples(2)
    reference = reference_of(folder)
    found = maps.extract(vlm, asked, words_of(asked))
    for one in asked:
        batch = vlm.encode([one])
        with torch.no_grad():
            attentions = torch.stack([a[0] for a in reference(**batch.inputs, output_attentions=True).attentions]).numpy()
        vision = batch.spans[0].vision.numpy()
        for entry in found.index[found.index["example"] == one.id].itertuples():
            at = batch.spans[0].word(entry.word).tolist()
            assert np.abs(found.weights[entry.map] - attentions[:, :, at].mean(2)[..., vision]).max() < TOLERANCE


def test_words_of_a_forced_answer_are_those_tokens_and_emitted_by_the_one_before(tiny_llava, vlm):
    reference = reference_of(tiny_llava)
    one = dataclasses.replace(examples(1)[0], answer="left circle")
    attentions, vision, tokens = eager(vlm, reference, one, answers=True)
    place = len(tokens) - 1 - tokens[::-1].index("circle")
    for row, at in (("query", place), ("emits", place - 1)):
        found = maps.extract(vlm, [one], {"e0": {"said": "circle"}}, row=row, part="answer")
        assert found.index["role"].tolist() == ["said"]
        assert np.abs(found.weights[0] - attentions[:, :, at][..., vision]).max() < TOLERANCE
    silent = dataclasses.replace(one, id="silent", answer=None)
    found = maps.extract(vlm, [one, silent], {"e0": {"said": "circle"}, "silent": {"said": "circle"}}, part="answer")
    assert found.left_out.values.tolist() == [["silent", "circle", "it has no answer to force"]] and len(found) == 1


@pytest.mark.parametrize("name", ["tiny_llava", "tiny_qwen2_5_vl"])
def test_a_batch_gives_what_each_prompt_gives_alone(name, request):
    """Questions of unequal length and words about pictures of three shapes."""
    vlm, asked = VLM.load(str(request.getfixturevalue(name))), mixed(6)
    together = maps.extract(vlm, asked, words_of(asked))
    alone = maps.extract(vlm, asked, words_of(asked), batch_size=1)
    pd.testing.assert_frame_equal(together.index, alone.index, rtol=1e-5)
    assert len(set(zip(together.index["rows"], together.index["cols"], strict=True))) == (1 if name == "tiny_llava" else 3)
    for one, other in zip(together.weights, alone.weights, strict=True):
        assert np.abs(one - other).max() < TOLERANCE


def test_only_the_layers_asked_for_are_read_and_one_forward_serves_all_words(vlm, monkeypatch):
    asked, runs = examples(4), []
    forward = vlm.forward
    monkeypatch.setattr(vlm, "forward", lambda batch, **options: runs.append(len(batch)) or forward(batch, **options))
    every = maps.extract(vlm, asked, words_of(asked))
    assert runs == [4] and len(every) == 10
    last = maps.extract(vlm, asked, words_of(asked), layers=1)
    assert last.layers == [1] and last.depth == every.depth == 2
    for one, other in zip(last.weights, every.weights, strict=True):
        assert np.array_equal(one[0], other[1])
    turned = maps.extract(vlm, asked, words_of(asked), layers=[1, 0])
    assert np.array_equal(turned.weights[0], every.weights[0][::-1])


def test_nothing_is_run_behind_the_last_layer_that_is_read_and_nothing_stays_changed(vlm):
    asked = examples(4)
    batch = vlm.encode(asked)
    before, ran = vlm.forward(batch).logits, []
    hooks = [
        block.mlp.register_forward_hook(lambda *_, i=i: ran.append(i))
        for i, block in enumerate(vlm.family.part(vlm.model, "layers"))
    ]
    try:
        for layers, behind in (([0], []), ([1], [0]), ("all", [0]), ([1, 0], [0])):
            maps.extract(vlm, asked, words_of(asked), layers=layers)
            assert ran == behind
            ran.clear()
    finally:
        for hook in hooks:
            hook.remove()
    assert torch.equal(vlm.forward(batch).logits, before) and vlm.batch is None and vlm.whole_prompts == 0
    assert vlm.model.config.text_config._attn_implementation == "sdpa"


def test_words_of_the_meta_are_the_default(vlm):
    one = dataclasses.replace(examples(1)[0], meta={"subject": "red circle", "reference": "blue square", "word": ""})
    bare = dataclasses.replace(one, id="bare", meta={})
    found = maps.extract(vlm, [one, bare])
    assert found.index[["word", "role"]].values.tolist() == [["red circle", "subject"], ["blue square", "reference"]]
    assert found.left_out["example"].tolist() == ["bare"] and "names no words" in found.left_out["reason"][0]
    related = maps.extract(vlm, [dataclasses.replace(one, meta={"word": "right"})])
    assert related.index[["word", "role"]].values.tolist() == [["right", "relation"]]


def test_a_word_that_is_not_there_is_left_out_with_its_reason(vlm, tiny_idefics2):
    asked = examples(3)
    words = {"e0": {"subject": "green", "reference": "blue square"}, "e2": {"subject": "circ"}}
    found = maps.extract(vlm, asked, words)
    assert found.index["word"].tolist() == ["blue square"] and list(found.left_out.columns) == list(LEFT_OUT)
    assert found.left_out[["example", "word"]].values.tolist() == [["e0", "green"], ["e2", "circ"]]
    assert found.left_out["reason"][0].startswith("'green' is not in the user text of 'e0'; ")
    assert "words there: is, the, red" in found.left_out["reason"][0]
    with pytest.raises(ValueError, match=r"no map is left of 1 asked for; the first, 'e2' \('circ'\): 'circ' is not in the user"):
        maps.extract(vlm, asked, {"e2": {"subject": "circ"}})
    with pytest.raises(ValueError, match=r"'e0' \('circle'\): its 10 vision tokens have no grid to draw a map on$"):
        maps.extract(VLM.load(str(tiny_idefics2)), asked, {"e0": {"subject": "circle"}})


def test_what_cannot_be_asked_is_refused_in_one_line(vlm, tiny_qwen3_5):
    asked = examples(2)
    with pytest.raises(KeyError, match=r"words were given for 'e9', which no example is called; nearest: 'e1', 'e0'"):
        maps.extract(vlm, asked, {"e9": {"subject": "red"}})
    with pytest.raises(ValueError, match=r"'e0' is the id of 2 examples"):
        maps.extract(vlm, [asked[0], asked[0]], words_of(asked))
    with pytest.raises(ValueError, match="no words were given for any"):
        maps.extract(vlm, asked, {})
    with pytest.raises(ValueError, match="no examples were given"):
        maps.extract(vlm, [])
    with pytest.raises(ValueError, match="the subject of 'e0' is None; a word or phrase is wanted"):
        maps.extract(vlm, asked, {"e0": {"subject": None}})
    with pytest.raises(ValueError, match=r"layers=\[\] names none; blocks with attention: 0, 1$"):
        maps.extract(vlm, asked, words_of(asked), layers=[])
    with pytest.raises(ValueError, match="row='emit' is unknown; one of 'query', 'emits'"):
        maps.extract(vlm, asked, words_of(asked), row="emit")
    with pytest.raises(ValueError, match="part='system' is unknown"):
        maps.extract(vlm, asked, words_of(asked), part="system")
    with pytest.raises(ValueError, match="layer with attention 2 is not there; 0, 1, or 'all'"):
        maps.extract(vlm, asked, words_of(asked), layers=[2])
    with pytest.raises(ValueError, match="batch_size=0"):
        maps.extract(vlm, asked, words_of(asked), batch_size=0)
    with pytest.raises(ValueError, match=r"layer 2 has no attention map.*: 1, 3$"):
        maps.extract(VLM.load(str(tiny_qwen3_5)), asked, words_of(asked), layers=[2])


def test_frames_say_where_cropped_and_padded_pictures_went(tiny_llava):
    """A picture twice as wide as high: the processor crops its middle square, `pad` puts it into one."""
    one = dataclasses.replace(examples(1)[0], image=picture(0, (96, 48)))
    native = maps.extract(VLM.load(str(tiny_llava)), [one], {"e0": {"subject": "red"}}).index.iloc[0]
    assert native[["scale_x", "scale_y", "shift_x", "shift_y"]].tolist() == [2.0, 1.0, -0.5, 0.0]
    padded = maps.extract(VLM.load(str(tiny_llava), image_fit="pad"), [one], {"e0": {"subject": "red"}}).index.iloc[0]
    assert padded[["scale_x", "scale_y", "shift_x", "shift_y"]].tolist() == [1.0, 0.5, 0.0, 0.25]


@pytest.mark.parametrize("kind", [LM_POSITIONS, TOWER_POSITIONS])
def test_a_wired_head_looks_at_the_cell_that_the_word_names(kind):
    """The head that looks has its map at the named patch, in raster order, for the word alone; the mean of all heads has not."""
    vlm, plan = wired(kind, seed=3)
    asked = [one for one in wired_examples(seed=3, pictures=4) if one.group == "spatial.place"]
    words = {one.id: {"place": one.category, "other": "at" if " at " in one.question else "in"} for one in asked}
    found = maps.extract(vlm, asked, words)
    looks = maps.aggregate(found, heads=[plan.heads["look"]])
    named = looks.index["word"].isin(PLACES).to_numpy()
    assert named.sum() == (~named).sum() == len(asked) > 10
    for entry, panel in zip(looks.index[named].itertuples(), np.array(looks.maps)[named], strict=True):
        assert panel[divmod(PLACES.index(entry.word), SIDE)] > 0.99
    assert np.array(looks.maps)[~named].max() < 0.5
    whole = maps.aggregate(found)
    assert max(panel.max() for panel in np.array(whole.maps)[named]) < 0.9


# ---- panels ----
def made(weights, grid=None, depth=None, clusters=None):
    """Maps of arrays [layer, head, cell], one example each."""
    rows = []
    for i, one in enumerate(weights):
        rows_cols = grid or (1, one.shape[-1])
        label = {
            "map": i,
            "example": f"e{i}",
            "cluster": f"p{i}" if clusters is None else clusters[i],
            "word": "w",
            "role": "subject",
        }
        frame = {"scale_x": 1.0, "scale_y": 1.0, "shift_x": 0.0, "shift_y": 0.0, "seen": 0.5}
        rows.append(label | {"category": "", "rows": rows_cols[0], "cols": rows_cols[1]} | frame)
    return Maps(pd.DataFrame(rows), list(range(weights[0].shape[0])), [np.float32(one) for one in weights], depth=depth)


def test_raw_attention_is_averaged_before_it_is_made_to_sum_to_one():
    weights = np.array([[[0.6, 0.2], [0.0, 0.0]], [[0.0, 0.1], [0.0, 0.1]]])  # [layer, head, cell]
    found = maps.aggregate(made([weights]))
    assert found.maps[0].tolist() == [pytest.approx([0.6, 0.4])] and found.how == "mean"
    assert maps.aggregate(made([weights]), 1).maps[0].tolist() == [[0.0, 1.0]]
    assert maps.aggregate(made([weights]), heads=[(0, 0)]).maps[0].tolist() == [pytest.approx([0.75, 0.25], abs=1e-6)]
    two = maps.aggregate(made([weights]), heads=[(1, 1), (0, 0)])
    assert two.maps[0].tolist() == [pytest.approx([0.6 / 0.9, 0.3 / 0.9], abs=1e-6)] and two.how == "2 heads"
    with pytest.raises(ValueError, match=r"of 1 asked for; the first, 'e0' \('w'\): its map is zero on every cell"):
        maps.aggregate(made([weights]), heads=[(0, 1)])
    kept = maps.aggregate(made([weights, weights * 0]))
    assert kept.index["example"].tolist() == ["e0"] and len(kept.maps) == 1
    assert kept.left_out.values.tolist() == [["e1", "w", "its map is zero on every cell"]]


@pytest.mark.parametrize(("depth", "thirds"), [(28, (range(9), range(9, 18), range(18, 28))), (3, ([0], [1], [2]))])
def test_thirds_are_the_studys(depth, thirds):
    """Layer l looks at cell l alone."""
    found = made([np.eye(depth)[:, None]])
    for how, layers in zip(("first_third", "mid_third", "last_third"), thirds, strict=True):
        assert np.flatnonzero(maps.aggregate(found, how).maps[0]).tolist() == list(layers)
    some = dataclasses.replace(found, layers=[0, depth - 1], weights=[found.weights[0][[0, -1]]], depth=depth)
    assert np.flatnonzero(maps.aggregate(some, "last_third").maps[0]).tolist() == [depth - 1]
    with pytest.raises(ValueError, match=rf"how='mid_third': no maps of blocks .* of {depth}; there: 0, {depth - 1}"):
        maps.aggregate(some, "mid_third")


def test_unknown_ways_to_average_are_refused():
    found = made([np.ones((2, 2, 4))])
    for how, message in (
        ("median", "how='median' is unknown"),
        (2, "layer 2 has no maps; there: 0, 1"),
        (True, "how=True is"),
    ):
        with pytest.raises(ValueError, match=message):
            maps.aggregate(found, how)
    for heads, name in (([(0, 2)], r"\(0, 2\)"), ((0, 1), "0"), ([(0, 1, 1)], r"\(0, 1, 1\)")):
        with pytest.raises(
            ValueError, match=f"head {name} has no maps; .layer, head. is wanted, there: layers 0, 1, heads 0 to 1"
        ):
            maps.aggregate(found, heads=heads)
    with pytest.raises(ValueError, match="heads is empty"):
        maps.aggregate(found, heads=[])
    with pytest.raises(ValueError, match="twice"):
        maps.aggregate(found, heads=[(0, 1), (0, 1)])
    with pytest.raises(ValueError, match="heads name their own layers"):
        maps.aggregate(found, 1, heads=[(0, 1)])
    with pytest.raises(ValueError, match="sink='zero' is unknown"):
        maps.aggregate(found, sink="zero")
    with pytest.raises(ValueError, match="map 0 of 'e0' has shape"):
        made([np.ones((2, 2, 5))], grid=(2, 2))


def test_a_sink_is_a_cell_that_every_panel_looks_at():
    """Cell 3 has half of every panel of 36; each picture's object has the rest, somewhere else."""
    weights = []
    for i in range(12):
        one = np.zeros(36)
        one[3], one[10 + i] = 0.5 * (i + 1), 0.5 * (i + 1)  # pictures that are looked at more count no more
        weights.append(one[None, None])
    found = maps.aggregate(made(weights, (6, 6)), sink="drop")
    assert found.sinks.values.tolist() == [pytest.approx([6, 6, 0, 3, 0.5, 18.0])]
    for i, panel in enumerate(found.maps):
        assert panel.ravel()[10 + i] == 1.0
    assert not len(maps.aggregate(made(weights, (6, 6))).sinks)
    only = [np.eye(36)[[3]][None] * 0.1, *weights]  # a panel that is nothing but the sink
    found = maps.aggregate(made(only, (6, 6)), sink="drop")
    assert found.left_out.values.tolist() == [["e0", "w", "its map is zero on every cell"]] and len(found) == 12
    with pytest.raises(ValueError, match=r"the 12 panels of 6 x 6 cells are of 9 pictures; at least 10 are wanted"):
        maps.aggregate(made(weights, (6, 6), clusters=[f"p{i % 9}" for i in range(12)]), sink="drop")


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 7), st.integers(2, 7), st.floats(0.001, 1), st.integers(0, 2**31))
def test_sinks_never_take_all_cells(rows, cols, spread, seed):
    rng = np.random.default_rng(seed)
    weights = [rng.dirichlet(np.full(rows * cols, spread))[None, None] + 1e-9 for _ in range(10)]
    found = maps.aggregate(made(weights, (rows, cols)), sink="drop")
    assert len(found.sinks) < rows * cols / 10
    assert all(panel.sum() == pytest.approx(1) and (panel >= 0).all() for panel in found.maps)
    at = found.sinks[["row", "col"]].to_numpy(int)
    assert all(panel[row, col] == 0 for panel in found.maps for row, col in at)


# ---- rollout ----
@pytest.mark.parametrize("bos", ["keep", "drop"])
def test_rollout_equals_the_product_of_eager_maps(family, bos):
    vlm, reference = family
    asked = wide(2)
    found = maps.rollout(vlm, asked, words_of(asked), bos=bos)
    assert found.how == f"rollout, bos {bos}"
    for one in asked:
        attentions, vision, tokens = eager(vlm, reference, one)
        product = np.eye(len(tokens))
        for attention in attentions:
            mean = attention.mean(0)
            if bos == "drop":
                mean[:, 0] = 0
                mean[0, 0] = 1  # a row with nothing left is I alone
                mean /= mean.sum(1, keepdims=True)
            product = (0.5 * mean + 0.5 * np.eye(len(tokens))) @ product
        assert product.sum(1) == pytest.approx(np.ones(len(tokens)))
        for entry, panel in zip(found.index.itertuples(), found.maps, strict=True):
            if entry.example == one.id:
                row = product[places(tokens, one.question, entry.word)].mean(0)[vision]
                assert entry.seen == pytest.approx(row.sum(), abs=TOLERANCE)
                assert panel.ravel() == pytest.approx(row / row.sum(), abs=TOLERANCE)


def test_rollout_of_one_prompt_is_that_of_a_batch(vlm):
    asked = mixed(4)
    together, alone = (maps.rollout(vlm, asked, words_of(asked), batch_size=size) for size in (4, 1))
    assert all(np.abs(one - other).max() < TOLERANCE for one, other in zip(together.maps, alone.maps, strict=True))


# ---- the cache ----
def test_a_store_holds_the_maps_and_is_not_run_again(vlm, tmp_path, monkeypatch):
    asked = mixed(5)
    plain = maps.extract(vlm, asked, words_of(asked))
    runs, forward = [], vlm.forward
    monkeypatch.setattr(vlm, "forward", lambda batch, **options: runs.append(batch.ids) or forward(batch, **options))
    some = {one.id: {"subject": WORDS[i % 4]["subject"]} for i, one in enumerate(asked[:3])}
    maps.extract(vlm, asked, some, store=tmp_path / "s", batch_size=2)
    runs.clear()
    first = maps.extract(vlm, asked, words_of(asked), store=tmp_path / "s", batch_size=4)
    again = maps.extract(vlm, asked, words_of(asked), store=tmp_path / "s")
    assert runs == [["e0", "e1", "e2", "e3"], ["e4"]]
    pd.testing.assert_frame_equal(first.index, plain.index, rtol=1e-4)
    pd.testing.assert_frame_equal(first.index, again.index)
    for one, stored, other in zip(plain.weights, first.weights, again.weights, strict=True):
        assert np.array_equal(stored, other) and np.abs(one - stored).max() < TOLERANCE
        assert stored.dtype == np.float32


def test_a_store_remembers_no_word_that_is_not_there(vlm, tmp_path):
    words = {"e0": {"subject": "circle"}, "e1": {"subject": "square"}}
    for _ in range(2):
        found = maps.extract(vlm, examples(2), words, store=tmp_path)
        assert found.index["example"].tolist() == ["e0"] and found.left_out["example"].tolist() == ["e1"]


def test_a_store_of_other_maps_is_refused(vlm, tiny_llava_grouped, tmp_path):
    asked = examples(2)
    words = words_of(asked)
    maps.extract(vlm, asked, words, store=tmp_path)
    other_model = VLM.load(str(tiny_llava_grouped))
    for model, options in ((other_model, {}), (vlm, {"layers": [0]}), (vlm, {"row": "emits"}), (vlm, {"system": None})):
        with pytest.raises(FingerprintError, match="was made from something else"):
            maps.extract(model, asked, words, store=tmp_path, **options)
    shuffled = [dataclasses.replace(one, image=picture(9)) for one in asked]
    reworded = [dataclasses.replace(one, question=f"{one.question} .") for one in asked]
    for changed in (shuffled, reworded):
        with pytest.raises(StoreError, match="holds maps of 'e0' with another question or picture; use another folder"):
            maps.extract(vlm, changed, words, store=tmp_path)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.floats(0.01, 10), st.floats(1e-8, 1), st.integers(0, 2**31))
def test_what_is_packed_is_within_a_hundred_thousandth(cells, spread, mass, seed):
    rng = np.random.default_rng(seed)
    weights = (rng.dirichlet(np.full(cells, spread), (3, 2)) * mass).astype(np.float32)
    weights[0, 0] = 0
    values, scale = packed(weights)
    found = unpacked(values, scale)
    assert values.dtype == np.uint16 and found.dtype == np.float32
    assert (np.abs(found - weights) <= scale[..., None] * (0.5 / 65535 + 1e-7)).all() and np.abs(found - weights).max() <= 1e-5
    assert np.array_equal(found.max(-1), weights.max(-1))  # the largest is kept as it is


def test_maps_are_selected_with_their_rows():
    found = made([np.full((1, 1, 4), n) for n in (1, 2, 3)])
    two = found.select([True, False, True])
    assert two.index["map"].tolist() == [0, 2] and [one.max() for one in two.weights] == [1, 3]
    with pytest.raises(ValueError, match=r"keep has shape \(2,\)"):
        found.select([True, False])
