"""CLIPScore and BERTScore against slow forms of their own, and what they do with texts that are empty, long or out of order."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from spatialprobes.lab_batches import BOS, EOS, normalise
from spatialprobes.loading import ModelError
from spatialprobes.probes import caption_scores as scores
from spatialprobes.probes.caption_scores import batches_in_order, clipscore_100, clipscore_hessel, padded, score, tokenized
from spatialprobes.worlds.lab import render
from spatialprobes.worlds.lab_captions import lab_captioned
from spatialprobes.worlds.lab_language import ids

WORDS = "a red green blue circle square cross left right of above under .".split()


@pytest.fixture(scope="module")
def clip():
    return scores.clip()


@pytest.fixture(scope="module")
def bert():
    return scores.bert()


@pytest.fixture(scope="module")
def scenes():
    return lab_captioned(40, 77)


def save_encoder(folder, kind=BertModel, positions=32):
    """A random encoder of two layers with a tokenizer of whole words that puts [CLS] and [SEP] nowhere by itself."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    config = {BertModel: BertConfig, RobertaModel: RobertaConfig}[kind](
        vocab_size=len(WORDS) + 4, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=positions, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, **tokens).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny-bert")


# ---- CLIPScore ----
def test_the_two_conventions():
    cosine = np.array([-0.2, 0.0, 0.25, 1.0])
    np.testing.assert_allclose(clipscore_100(cosine), [0, 0, 25, 100])
    np.testing.assert_allclose(clipscore_hessel(cosine), [0, 0, 0.625, 2.5])


@torch.no_grad()
def test_vectors_are_those_that_lab_clip_was_trained_on(clip, scenes):
    """Start and end of a text, and pixels, as in its training; lengths 1."""
    few = scenes[:5]
    pixels = normalise(np.stack([render(one.meta["scene"]) for one in few]))
    shown = clip.model.visual_projection(clip.model.vision_model(pixel_values=pixels).pooler_output)
    found = clip.image_vectors(few, batch_size=2)
    torch.testing.assert_close(found, shown / shown.norm(dim=-1, keepdim=True), atol=1e-5, rtol=0)
    texts = [one.meta["caption"] for one in few]
    vectors, cut = clip.text_vectors(texts, batch_size=3)
    for text, vector in zip(texts, vectors, strict=True):
        rows = torch.tensor([[BOS, *ids(text), EOS]])
        own = clip.model.text_projection(clip.model.text_model(input_ids=rows).pooler_output)[0]
        torch.testing.assert_close(vector, own / own.norm(), atol=1e-5, rtol=0)
    assert not cut.any()


def test_a_true_caption_scores_above_those_of_other_scenes(clip, scenes):
    shown = clip.image_vectors(scenes)
    vectors, _ = clip.text_vectors([one.meta["caption"] for one in scenes])
    cosine = (shown @ vectors.T).numpy()
    assert (cosine.argmax(1) == np.arange(len(scenes))).mean() > 0.85
    frame = table(scenes, [one.meta["caption"] for one in scenes])
    np.testing.assert_allclose(score(frame, scenes, clip=clip)["clipscore_100"], 100 * cosine.diagonal(), atol=1e-4)


def test_long_texts_are_cut_at_the_models_positions_and_said(clip, scenes):
    words = ("a red circle left of a blue square . " * 9).split()
    assert clip.model.config.text_config.max_position_embeddings == 64
    texts = [" ".join(words[:n]) for n in (61, 62, 63, 81)]
    vectors, cut = clip.text_vectors(texts)
    assert cut.tolist() == [False, False, True, True]
    assert torch.equal(vectors[1], vectors[2]) and torch.equal(vectors[1], vectors[3]) and not torch.equal(vectors[0], vectors[1])
    frame = score(table(scenes[:2], texts[1:3]), scenes, clip=clip)
    assert frame["clipscore_cut"].tolist() == [False, True]


def test_what_is_no_clip_model_is_said_in_a_line(encoder):
    with pytest.raises(ModelError, match="is a BertModel, which embeds no picture"):
        scores.clip(encoder)
    with pytest.raises(ModelError, match="unknown model 'lab-clap'"):
        scores.clip("lab-clap")


# ---- BERTScore ----
@torch.no_grad()
def by_hand(bert, candidate, reference):
    """Precision, recall and F1 of one pair, from hidden states of each text alone, token by token; no token counts below 0."""
    states = []
    for text in (candidate, reference):
        ((row,), _) = tokenized(bert.tokenizer, [text], bert.positions)
        inputs = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
        out = bert.model(**inputs, output_hidden_states=True)
        hidden = out.last_hidden_state if bert.layer is None else out.hidden_states[bert.layer]
        states.append([vector / vector.norm() for vector in hidden[0, 1:-1]])
    best = [[max(0.0, *(float(one @ other) for other in there)) for one in here] for here, there in (states, states[::-1])]
    precision, recall = (sum(values) / len(values) for values in best)
    return precision, recall, 2 * precision * recall / (precision + recall)


def sentences(n, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(1, 12))) for _ in range(n)]


@pytest.mark.parametrize("name", ["lab-clip", "tiny-bert"])
def test_each_pair_is_scored_as_by_hand_whatever_the_order_and_the_batch(bert, encoder, name):
    """torchmetrics alone mixes the pairs of a batch up where their lengths differ."""
    own = bert if name == "lab-clip" else scores.bert(encoder)
    ones, others = sentences(40, 0), sentences(40, 1)
    ones += ["a red circle left of a blue square ."] * 25  # many of one length: torchmetrics' sort is not stable
    others += sentences(25, 2)
    expected = [by_hand(own, *pair) for pair in zip(ones, others, strict=True)]
    found, cut = own.scores(ones, others)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(own.scores(ones, others, batch_size=3)[0], expected, atol=2e-6)
    assert found[:, 2].std() > 0.02 and not cut.any()


def test_it_is_torchmetrics_of_one_pair(encoder):
    from torchmetrics.functional.text.bert import bert_score

    own = scores.bert(encoder)
    for one, other in zip(sentences(4, 5), sentences(4, 6), strict=True):
        sides = [padded(tokenized(own.tokenizer, [text], 32)[0], 0) for text in (one, other)]
        there = bert_score(*sides, model=own.model, user_tokenizer=own.tokenizer)
        np.testing.assert_allclose(own.scores([one], [other])[0][0], [float(there[name]) for name in scores.BERT], atol=1e-6)


def test_a_text_against_itself_scores_1_and_swapping_swaps_precision_and_recall(bert):
    ones, others = sentences(12, 3), sentences(12, 4)
    np.testing.assert_allclose(bert.scores(ones, ones)[0], 1, atol=1e-6)
    forward, backward = bert.scores(ones, others)[0], bert.scores(others, ones)[0]
    np.testing.assert_allclose(forward[:, [1, 0, 2]], backward, atol=1e-6)
    assert (forward <= 1 + 1e-6).all()


def test_empty_texts_score_0_and_the_others_as_without_them(bert):
    ones, others = ["", "a red circle .", " ", "a blue cross ."], ["a red circle .", "", "", "a red cross ."]
    found, _ = bert.scores(ones, others)
    assert (found[:3] == 0).all() and found[3] == pytest.approx(bert.scores(ones[3:], others[3:])[0][0])
    assert bert.scores([], [])[0].shape == (0, 3)
    with pytest.raises(ValueError, match="2 candidates for 1 references"):
        bert.scores(["a", "b"], ["a"])


def test_a_layer_and_the_name_say_what_was_compared(encoder):
    first, last = scores.bert(encoder, layer=0), scores.bert(encoder)
    assert (first.name, last.name) == ("BERTScore(tiny-bert, layer 0)", "BERTScore(tiny-bert)")
    assert scores.bert().name == "BERTScore(lab-clip text)"
    pair = ["a red circle left of a cross ."], ["a cross right of a red circle ."]
    np.testing.assert_allclose(first.scores(*pair)[0][0], by_hand(first, pair[0][0], pair[1][0]), atol=1e-6)
    assert abs(first.scores(*pair)[0] - last.scores(*pair)[0]).max() > 1e-4
    with pytest.raises(ModelError, match=r"layer=3 of .* is not there; 0 to 2"):
        scores.bert(encoder, layer=3)


def test_positions_that_begin_behind_the_padding_are_counted_off(tmp_path):
    own = scores.bert(save_encoder(tmp_path / "tiny-roberta", RobertaModel, positions=12))
    assert own.positions == 11
    long = " ".join(WORDS)
    found, cut = own.scores([long, "a red cross"], [long, "a red cross"])  # 12 tokens would be beyond the embeddings
    assert cut.tolist() == [True, False] and found == pytest.approx(1, abs=1e-6)


lengths = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=40)


@given(lengths, st.integers(1, 5))
@settings(deadline=None)
def test_batches_hold_every_pair_once_and_never_shrink(pairs, size):
    ones, others = [one for one, _ in pairs], [other for _, other in pairs]
    found = batches_in_order(ones, others, size)
    assert sorted(place for batch in found for place in batch) == list(range(len(pairs)))
    for batch in found:
        assert 1 <= len(batch) <= size
        for side in (ones, others):
            assert [side[i] for i in batch] == sorted(side[i] for i in batch)
    assert len(batches_in_order(ones, others, 100)) <= 9  # as many runs as there are lengths, at most


# ---- tables ----
def table(examples, captions, arm="live"):
    words = [len(text.split()) for text in captions]
    columns = {"key": [one.id for one in examples], "cluster": [one.id for one in examples], "model": "m", "arm": arm}
    return pd.DataFrame({**columns, "caption": captions, "words": words, "empty": [not n for n in words]})


def test_a_table_gets_scores_against_picture_base_and_reference(clip, bert, scenes):
    few = scenes[:3]
    truth = [one.meta["caption"] for one in few]
    changed = [truth[1], "", truth[2]]
    frame = pd.concat([table(few, truth), table(few, changed, "masked")], ignore_index=True)
    bare = [*few[:2], type(few[2])("unlike", few[2].image)]
    frame["key"] = frame["key"].replace(few[2].id, "unlike")  # a picture without a caption of its own
    found = score(frame, bare, clip=clip, bert=bert).set_index(["arm", "key"])
    live, masked = found.loc["live"], found.loc["masked"]
    assert live["bertscore_f1"].isna().all()  # nothing to compare with but itself
    assert masked["bertscore_f1"].tolist() == [
        pytest.approx(by_hand(bert, truth[1], truth[0])[2], abs=1e-5),
        0.0,
        pytest.approx(1),
    ]
    np.testing.assert_allclose(live["bertscore_gt_f1"].iloc[:2], 1, atol=1e-6)
    assert masked["bertscore_gt_recall"].iloc[1] == 0 and found["bertscore_gt_f1"].isna().tolist() == [False, False, True] * 2
    assert masked["clipscore_100"].iloc[1] == 0 and (live["clipscore_100"] > 80).all()
    np.testing.assert_allclose(found["clipscore_hessel"], found["clipscore_100"] / 40)
    np.testing.assert_allclose(found["clipscore_gt"].iloc[:2], live["clipscore_100"].iloc[:2])
    assert np.isnan(live["clipscore_gt"].iloc[2])
    assert set(found["bertscore_model"]) == {"BERTScore(lab-clip text)"} and set(found["clipscore_model"]) == {"lab-clip"}
    assert masked["clipscore_100"].iloc[0] < live["clipscore_100"].iloc[0]


def test_a_table_that_cannot_be_scored_is_said(clip, scenes):
    with pytest.raises(ValueError, match="nothing to score with"):
        score(table(scenes[:1], ["a"]), scenes)
    with pytest.raises(ValueError, match=r"no example 'lab-captioned-77-1' \(1 of 2 keys lack one\)"):
        score(table(scenes[:2], ["a", "a"]), scenes[:1], clip=clip)
