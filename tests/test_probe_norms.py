"""The norms probe: equal to norms taken by hand, scaled exactly by a scaled connector; random weights that are only that."""

import contextlib
import dataclasses
import random

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import QUESTIONS, examples, picture

from spatialprobes import plots
from spatialprobes.examples import Example
from spatialprobes.probes import norms
from spatialprobes.vlm import VLM

COLUMNS = ["example", "cluster", "modality", "when", "norm"]


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_llava_pieces", "tiny_llava_grouped"])
def vlm(request):
    return VLM.load(str(request.getfixturevalue(request.param)))


@torch.no_grad()
def by_hand(vlm, one):
    """Norms of one example alone: its picture through the model, the words of its question through tokenizer and table."""
    pixels = vlm.processor.image_processor(one.image, return_tensors="pt")["pixel_values"]
    (features,) = vlm.model.get_image_features(pixel_values=pixels).pooler_output
    ids = vlm.tokenizer(one.question, add_special_tokens=False)["input_ids"]
    words = vlm.model.get_input_embeddings()(torch.tensor(ids))
    return {"vision": [float(token.norm()) for token in features], "text": [float(word.norm()) for word in words]}


@contextlib.contextmanager
def scaled(vlm, factor):
    """The last layer of the connector, weights and bias, times `factor`."""
    last = vlm.model.model.multi_modal_projector.linear_2
    before = [last.weight.clone(), last.bias.clone()]
    with torch.no_grad():
        last.bias.copy_(torch.linspace(-1, 1, len(last.bias)) * factor)  # the tiny models' bias is 0
        last.weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            last.weight.copy_(before[0])
            last.bias.copy_(before[1])


@pytest.mark.parametrize("batch_size", [64, 3, 1])
def test_norms_equal_those_taken_by_hand(vlm, batch_size):
    asked = examples(7)
    frame = norms.measure(vlm, asked, batch_size=batch_size)
    assert list(frame.columns) == COLUMNS and frame["norm"].dtype == np.float64
    assert list(frame.groupby(["example", "modality"], sort=False).groups) == [
        (one.id, modality) for one in asked for modality in ("vision", "text")
    ]
    lengths = set()
    for one in asked:
        rows = frame[frame["example"] == one.id]
        for modality, expected in by_hand(vlm, one).items():
            assert rows.loc[rows["modality"] == modality, "norm"].tolist() == pytest.approx(expected, rel=1e-5)
        assert set(rows["cluster"]) == {one.cluster} and set(rows["when"]) == {"trained"}
        lengths.add((rows["modality"] == "text").sum())
    assert len(lengths) == 4  # questions of four lengths, so that padding was there
    assert (frame["modality"] == "vision").sum() == 7 * 36


def test_norms_are_euclidean_lengths_of_the_table_and_the_connector(tiny_llava):
    """Closed form: row i of the table gets length i + 1, the connector gives its bias whatever it is given."""
    vlm = VLM.load(str(tiny_llava))
    last = vlm.model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        lengths = torch.arange(1.0, len(vlm.tokenizer) + 1)
        vlm.text_embeddings().zero_()[:, :2] = lengths[:, None] * torch.tensor([0.6, -0.8])
        last.weight.zero_()
        last.bias.zero_()[:4] = 5.0
    frame = norms.measure(vlm, examples(3), when="made by hand")
    assert frame.loc[frame["modality"] == "vision", "norm"].tolist() == pytest.approx([10.0] * 36 * 3)
    ids = vlm.tokenizer(QUESTIONS[1][0], add_special_tokens=False)["input_ids"]
    text = frame[(frame["example"] == "e1") & (frame["modality"] == "text")]
    assert text["norm"].tolist() == pytest.approx([id + 1 for id in ids])
    assert set(frame["when"]) == {"made by hand"}


def test_a_scaled_connector_scales_vision_and_ratio_exactly(vlm):
    asked = examples(6)
    with scaled(vlm, 1):
        plain = norms.measure(vlm, asked)
    with scaled(vlm, 4):  # a power of two: exact in floating point
        larger = norms.measure(vlm, asked)
    vision = plain["modality"] == "vision"
    assert (larger.loc[vision, "norm"] == 4 * plain.loc[vision, "norm"]).all()
    assert (larger.loc[~vision, "norm"] == plain.loc[~vision, "norm"]).all()
    ratios = [norms.vision_to_text(frame) for frame in (plain, larger)]
    assert [4 * number for number in ratios[0][:3]] == list(ratios[1][:3])
    with scaled(vlm, 3.7):
        other = norms.vision_to_text(norms.measure(vlm, asked))
    assert other.estimate == pytest.approx(3.7 * ratios[0].estimate, rel=1e-5)


@settings(deadline=None, max_examples=8)
@given(order=st.permutations(range(6)), batch_size=st.integers(1, 7))
def test_rows_of_an_example_depend_on_nothing_else(vlm, order, batch_size):
    asked = examples(6)
    alone = norms.measure(vlm, asked).set_index("example")["norm"]
    found = norms.measure(vlm, [asked[i] for i in order], batch_size=batch_size).set_index("example")["norm"]
    assert list(dict.fromkeys(found.index)) == [asked[i].id for i in order]
    for one in asked:
        assert found[one.id].tolist() == pytest.approx(alone[one.id].tolist(), rel=1e-5)


def test_words_outside_the_question_do_not_count(vlm):
    """Neither system prompt nor answer nor choices enter: only the question's own tokens are counted."""
    asked = Example("e", picture(), "what color is the circle ?", "red", ["red", "blue"])
    text = norms.measure(vlm, [asked])
    text = text[text["modality"] == "text"]
    assert len(text) == len(vlm.tokenizer(asked.question, add_special_tokens=False)["input_ids"])
    bare = norms.measure(vlm, [dataclasses.replace(asked, answer=None, choices=None)])
    assert bare.loc[bare["modality"] == "text", "norm"].tolist() == text["norm"].tolist()
    assert set(text["cluster"]) == {"e"}  # of its own, where it names none


def test_the_ratio_is_that_of_the_means_and_resamples_pictures():
    rng = np.random.default_rng(0)
    rows = []
    for place in range(30):  # every picture is asked about four times: the same vision tokens, four rows each
        vision = rng.lognormal(1, 0.3, 5)
        for question in range(4):
            common = {"example": f"e{place}-{question}", "cluster": f"p{place}", "when": "trained"}
            rows += [{**common, "modality": "vision", "norm": norm} for norm in vision]
            rows += [{**common, "modality": "text", "norm": norm} for norm in rng.lognormal(0, 0.3, 3 + question)]
    frame = pd.DataFrame(rows)
    found = norms.vision_to_text(frame)
    means = frame.groupby("modality")["norm"].mean()
    assert found.estimate == pytest.approx(means["vision"] / means["text"])
    assert found.clusters == 30
    once = norms.vision_to_text(frame[frame["example"].str.endswith("-0") | (frame["modality"] == "text")])
    assert found.high - found.low == pytest.approx(once.high - once.low, rel=0.05)  # asking again tells nothing new of a picture
    with pytest.raises(ValueError, match=r"2 states of the weights \(trained, initial\)"):
        norms.vision_to_text(pd.concat([frame, frame.assign(when="initial")]))
    with pytest.raises(ValueError, match="denominator is empty"):
        norms.vision_to_text(frame[frame["modality"] == "vision"])


def test_the_ratio_of_medians_is_that_and_a_long_tail_does_not_move_it():
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "example": f"e{i}",
                "cluster": f"p{i}",
                "modality": modality,
                "when": "trained",
                "norm": rng.lognormal(mean, 0.3, 20),
            }
        )
        for i in range(25)
        for modality, mean in (("vision", 2), ("text", 0))
    ]
    frame = pd.concat(parts, ignore_index=True)
    medians = frame.groupby("modality")["norm"].median()
    found = norms.vision_to_text(frame, statistic="median")
    assert found.estimate == pytest.approx(medians["vision"] / medians["text"])
    assert found.low < found.estimate < found.high
    tail = frame.copy()
    tail.loc[
        (tail["modality"] == "vision") & (tail["norm"] == frame.loc[frame["modality"] == "vision", "norm"].max()), "norm"
    ] = 1e6
    assert norms.vision_to_text(tail, statistic="median")[:3] == found[:3]
    assert norms.vision_to_text(tail).estimate > 50 * norms.vision_to_text(frame).estimate
    rows = norms.ratios(pd.concat([frame, tail.assign(when="tail")])).set_index(["when", "statistic"])
    assert tuple(rows.loc[("trained", "median"), ["ratio", "low", "high"]]) == found[:3]
    assert rows.loc[("trained", "mean"), "ratio"] == norms.vision_to_text(frame).estimate and len(rows) == 4
    with pytest.raises(ValueError, match="statistic 'mode'"):
        norms.vision_to_text(frame, statistic="mode")
    with pytest.raises(ValueError, match="which tokens are of one picture"):
        norms.vision_to_text(frame.drop(columns="cluster"))


def test_quantiles_are_those_of_each_modality():
    frame = pd.DataFrame({"modality": ["text"] * 101 + ["vision"] * 2, "when": "trained", "norm": [*range(101), 3, 5]})
    found = norms.quantiles(frame.sample(frac=1, random_state=0)).set_index("modality")
    assert found.loc["text"].to_dict() == {
        **{"when": "trained", "mean": 50, "q05": 5, "q25": 25, "q50": 50, "q75": 75, "q95": 95, "max": 100, "n": 101}
    }
    assert found.loc["vision", ["mean", "q50", "max", "n"]].tolist() == [4, 4, 5, 2]
    with pytest.raises(ValueError, match="no rows"):
        norms.quantiles(frame.iloc[:0])


def captioned(n=3):
    texts = ["the red circle is left of the blue square", "red , green and blue"]
    return [dataclasses.replace(one, question=None, meta={"captions": texts[: 1 + i % 2]}) for i, one in enumerate(examples(n))]


@pytest.mark.parametrize("definition", ["corrected", "as_published"])
def test_captions_count_token_by_token_with_their_beginnings_only_as_published(vlm, definition):
    asked = captioned()
    frame = norms.measure(vlm, asked, texts="captions", definition=definition)
    table = vlm.model.get_input_embeddings().weight.detach()
    for one in asked:
        ids = []
        for text in one.meta["captions"]:
            ids += [vlm.tokenizer.bos_token_id] if definition == "as_published" else []
            ids += vlm.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = frame[(frame["example"] == one.id) & (frame["modality"] == "text")]["norm"].tolist()
        assert found == pytest.approx([float(table[id].norm()) for id in ids], rel=1e-5)
        assert ((frame["example"] == one.id) & (frame["modality"] == "vision")).sum() == 36


def test_as_published_a_question_is_its_tokens_after_a_beginning_of_sequence(vlm):
    asked = examples(4)
    plain, published = (norms.measure(vlm, asked, definition=name) for name in ("corrected", "as_published"))
    bos = float(vlm.text_embeddings()[vlm.tokenizer.bos_token_id].norm())
    for one in asked:
        short, long = (
            frame[(frame["example"] == one.id) & (frame["modality"] == "text")]["norm"].tolist() for frame in (plain, published)
        )
        assert long == pytest.approx([bos, *short], rel=1e-5)
    vision = plain["modality"] == "vision"
    assert plain.loc[vision, "norm"].tolist() == published.loc[published["modality"] == "vision", "norm"].tolist()


def test_vectors_are_written_as_the_study_has_them_and_come_back(vlm, tmp_path):
    frame = norms.measure(vlm, examples(3))
    path = norms.write_vectors(frame, tmp_path / "vectors.npz")
    with np.load(path, allow_pickle=False) as file:
        assert set(file) == {"txt", "img"} and file["img"].shape == (3 * 36,)
        assert file["txt"].tolist() == frame.loc[frame["modality"] == "text", "norm"].tolist()
    back = norms.read_vectors(path, when="trained")
    for modality in ("vision", "text"):
        assert (
            back.loc[back["modality"] == modality, "norm"].tolist() == frame.loc[frame["modality"] == modality, "norm"].tolist()
        )
    pd.testing.assert_frame_equal(
        norms.quantiles(back).sort_values("modality", ignore_index=True),
        norms.quantiles(frame).sort_values("modality", ignore_index=True),
    )
    assert set(norms.read_vectors(path)["when"]) == {"vectors"}
    assert plots.draw("norms.violins", back, {}).axes
    with pytest.raises(ValueError, match="2 states"):
        norms.write_vectors(pd.concat([frame, frame.assign(when="initial")]), path)
    with pytest.raises(ValueError, match="no text norms"):
        norms.write_vectors(frame[frame["modality"] == "vision"], path)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"img": np.ones(3)}, r"v\.npz: no array 'txt'; there: img"),
        ({"img": np.ones((3, 2)), "txt": np.ones(3)}, r"img must be one column of numbers, not float64 of shape \(3, 2\)"),
        ({"img": np.ones(3), "txt": np.ones(0)}, "txt must be one column"),
        ({"img": np.array([1, -1.0]), "txt": np.ones(3)}, "img holds norms that are negative"),
        ({"img": np.array([1, np.nan]), "txt": np.ones(3)}, "img holds norms that are negative, NaN"),
        ({"img": np.array(["a"]), "txt": np.ones(3)}, "img must be one column of numbers"),
    ],
)
def test_vectors_that_are_none_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "v.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        norms.read_vectors(tmp_path / "v.npz")


def test_an_untrained_twin_does_not_pass_for_the_trained_model(vlm):
    twin, facts = norms.untrained(vlm, 7), vlm.facts()
    told = twin.facts()
    assert "weights_sha256" not in told and "revision" not in told
    assert told["model"] == f"{facts['model']}, untrained (seed 7)" and told["source"] == "initial weights"
    assert told["initial_seed"] == 7 and told["shape_of"] == facts["model"]
    assert not set(facts[key] for key in ("weights_sha256", "model")) & {told[key] for key in told if key != "shape_of"}
    assert told != norms.untrained(vlm, 8).facts()
    assert {key: told[key] for key in ("family", "dtype", "device")} == {key: facts[key] for key in ("family", "dtype", "device")}


def test_the_untrained_twin_of_a_quantised_model_is_whole_and_says_so(vlm):
    quantised = VLM(vlm.model, vlm.processor, vlm.family, vlm.source, vlm.image_fit, "8bit")
    assert quantised.facts()["quantize"] == "8bit"
    assert norms.untrained(quantised).facts()["quantize"] == "none"


def weights(vlm):
    return {name: value.clone() for name, value in vlm.model.state_dict().items()}


def test_untrained_is_the_same_architecture_with_other_weights_by_seed(vlm):
    before = weights(vlm)
    first, again, other = (norms.untrained(vlm, seed) for seed in (5, 5, 6))
    drawn = weights(first)
    assert {name: (value.shape, value.dtype) for name, value in drawn.items()} == {
        name: (value.shape, value.dtype) for name, value in before.items()
    }
    assert all(torch.equal(value, weights(again)[name]) for name, value in drawn.items())
    for name, value in drawn.items():
        if value.is_floating_point() and value.ndim > 1:
            assert not torch.equal(value, before[name]) and not torch.equal(value, weights(other)[name]), name
    assert all(torch.equal(value, before[name]) for name, value in weights(vlm).items())
    assert not {id(one) for one in first.model.parameters()} & {id(one) for one in vlm.model.parameters()}
    assert first.model.config is not vlm.model.config
    assert not first.model.training and not any(one.requires_grad for one in first.model.parameters())
    attention = [each.model.config.get_text_config()._attn_implementation for each in (first, vlm)]
    assert attention == ["sdpa", "sdpa"]


def test_untrained_leaves_the_global_random_state_alone_and_does_not_heed_it(vlm):
    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = weights(norms.untrained(vlm))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    torch.manual_seed(2)
    assert all(torch.equal(value, first[name]) for name, value in weights(norms.untrained(vlm)).items())


def test_untrained_starts_where_transformers_does(vlm):
    """Embeddings are normal with the config's deviation: norms of sqrt(width) times it (four times that in the tiny models)."""
    start = norms.measure(norms.untrained(vlm, 3), examples(6), when=norms.INITIAL)
    now = norms.measure(vlm, examples(6))
    config = vlm.model.config.get_text_config()
    expected = config.initializer_range * config.hidden_size**0.5
    text = start["modality"] == "text"
    assert start.loc[text, "norm"].mean() == pytest.approx(expected, rel=0.05)
    assert now.loc[text, "norm"].mean() == pytest.approx(4 * expected, rel=0.1)
    assert set(start["when"]) == {"initial"}
    assert start[["example", "cluster", "modality"]].equals(now[["example", "cluster", "modality"]])


def test_a_table_of_both_states_is_what_the_figure_draws(vlm):
    both = pd.concat([norms.measure(vlm, examples(3)), norms.measure(norms.untrained(vlm), examples(3), when=norms.INITIAL)])
    figure = plots.draw("norms.distributions", both, {})
    assert len(figure.axes) == 2


def test_choices_and_captions_that_are_not_there_are_refused(vlm):
    with pytest.raises(ValueError, match="texts='answers' is unknown; 'question' or 'captions'"):
        norms.measure(vlm, examples(1), texts="answers")
    with pytest.raises(ValueError, match="definition='wrong' is unknown"):
        norms.measure(vlm, examples(1), definition="wrong")
    for captions in ([], None, ["", "red"]):
        with pytest.raises(ValueError, match="'e0' has no captions"):
            norms.measure(vlm, [dataclasses.replace(examples(1)[0], meta={"captions": captions})], texts="captions")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda asked: [], "no examples"),
        (lambda asked: [asked[0], dataclasses.replace(asked[1], question=None)], "'e1'"),
        (lambda asked: [asked[0], dataclasses.replace(asked[1], image=None)], "the picture of e1"),
    ],
)
def test_bad_input_is_refused(vlm, change, message):
    with pytest.raises(ValueError, match=message):
        norms.measure(vlm, change(examples(2)))
