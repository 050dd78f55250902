"""Spatial against neutral words: captions differ in one phrase, maps are eager attention's, pairs are compared as pairs."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import picture
from transformers import AutoModelForImageTextToText

from spatialprobes.examples import Example, Object
from spatialprobes.probes import spatial_words
from spatialprobes.stats import benjamini_hochberg, bootstrap, permutation_test
from spatialprobes.vlm import VLM
from spatialprobes.worlds.shapeworld_files import read
from spatialprobes.worlds.shapeworld_questions import ASKED, STATED

PUBLISHED = f"there are two shapes a red circle and a blue square . {ASKED} {STATED}"
CLAUSES = ["is the red circle left of the blue square ?", "a green cross above a red square .", "a cross right of a blue circle"]
BOXES = [Object("a", (0.25, 0.25), (0.1, 0.1, 0.4, 0.4)), Object("b", (0.75, 0.6), (0.6, 0.5, 0.9, 0.7))]


def grounded(texts, **meta):
    return [
        Example(f"e{i}", picture(i), text, "yes", ["yes", "no"], cluster=f"c{i}", objects=BOXES, meta=meta)
        for i, text in enumerate(texts)
    ]


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_qwen2_vl"])
def both(request):
    """The model, and the same weights with eager attention."""
    folder = request.getfixturevalue(request.param)
    reference = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    return VLM.load(str(folder)), reference.eval()


# ---- the captions ----


def test_captions_differ_in_the_relation_phrase_alone():
    found = spatial_words.neutral(grounded([*CLAUSES, f"{PUBLISHED} below ."]))
    said = [[pair.members[member].question for member in spatial_words.MEMBERS] for pair in found]
    assert said == [
        [f"is the red circle {words} the blue square ?" for words in ("left of", "next to", "close to")],
        [f"a green cross {words} a red square ." for words in ("above", "beside", "near")],
        [f"a cross {words} a blue circle" for words in ("right of", "next to", "close to")],
        [f"{PUBLISHED} {words} ." for words in ("below", "adjacent", "near")],
    ]
    assert [pair.relation for pair in found] == ["left", "above", "right", "below"]
    assert [pair.sees for pair in found[2:]] == [
        {"subject": False, "reference": True, "relation": True},
        {"subject": False, "reference": False, "relation": True},
    ]
    words = [pair.words[member]["relation"] for pair in found[::3] for member in spatial_words.MEMBERS]
    assert words == ["left", "next", "close", "below", "adjacent", "near"]
    whole = spatial_words.neutral(grounded(CLAUSES[:1]), relation="phrase")[0]
    assert whole.words["neutral"] == {"subject": "red circle", "reference": "blue square", "relation": "next to"}


def test_members_are_the_same_picture_under_other_ids():
    asked = grounded(CLAUSES[:1], caption=f"{PUBLISHED} left .", word="", subject="red circle")
    pair = spatial_words.neutral(asked)[0]
    one = pair.members["neutral"]
    assert (pair.id, pair.cluster) == ("e0", "c0") and one.id == "e0/neutral" and one.image is asked[0].image
    assert one.question == one.meta["caption"] == f"{PUBLISHED} adjacent ." and one.meta["word"] == "adjacent"
    assert (one.answer, one.choices, one.cluster, one.objects) == (None, None, "c0", asked[0].objects)
    assert pair.members["spatial"].question == f"{PUBLISHED} left ."


def test_captions_that_cannot_be_reworded_are_refused():
    with pytest.raises(ValueError, match=r"'e0': .*states no relation"):
        spatial_words.neutral(grounded(["where is the circle ?"]))
    with pytest.raises(ValueError, match=r"'e0': 'circle' stands before its reference"):
        spatial_words.neutral(grounded(["a red circle left of a circle"]))
    with pytest.raises(ValueError, match="relation='words' is unknown"):
        spatial_words.neutral(grounded(CLAUSES), relation="words")


def test_every_real_caption_can_be_reworded():
    root = os.environ.get("SPATIALPROBES_REAL_DATA")
    if not root:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no real ShapeWorld worlds here")
    asked = read(Path(root) / "shapeworld").examples
    pairs = spatial_words.neutral(asked)
    assert len(pairs) == 300
    for example, pair in zip(asked, pairs, strict=True):
        said = [pair.members[member].question.split() for member in spatial_words.MEMBERS]
        assert " ".join(said[0]) == example.meta["caption"] and said[0][-2] == example.meta["relation"] == pair.relation
        assert [words[:-2] for words in said[1:]] == [said[0][:-2]] * 2
        assert [words[-2:] for words in said[1:]] == [["adjacent", "."], ["near", "."]]
        assert pair.words["neutral"]["subject"] == example.meta["subject"]


# ---- the maps ----


@torch.no_grad()
def slow(vlm, reference, text, shown, words, counted):
    """Entropy and dispersion by layer, and of all layers' mean, of one word's map: eager attention of one prompt alone."""
    batch = vlm.encode([Example("alone", shown, text)])
    maps = reference(**batch.inputs, output_attentions=True).attentions
    vision = (batch.input_ids[0] == vlm.family.image_token_id(vlm.model)).nonzero()[:, 0]
    said = text.split()
    first = next(i for i in range(len(said)) if said[i : i + counted] == words.split()[:counted])
    last = batch.input_ids.shape[1] - 1  # "assistant:", right behind the question
    places = [last - len(said) + first + k for k in range(counted)]
    by_layer = [one[0, :, places][..., vision].double().mean((0, 1)).numpy() for one in maps]
    rows, columns = batch.spans[0].grid
    found = []
    for weights in [*by_layer, np.mean(by_layer, axis=0)]:
        p = (weights / weights.sum()).reshape(rows, columns)
        nats = -sum(share * np.log(share) for share in p.ravel())
        y = sum(p[i, j] * i for i in range(rows) for j in range(columns))
        x = sum(p[i, j] * j for i in range(rows) for j in range(columns))
        spread = sum(p[i, j] * ((i - y) ** 2 + (j - x) ** 2) for i in range(rows) for j in range(columns))
        found.append((nats / np.log(p.size), spread))
    return found


@pytest.mark.parametrize("relation", ["word", "phrase"])
def test_flatness_is_that_of_eager_maps_by_layer_and_of_their_mean(both, relation):
    vlm, reference = both
    pairs = spatial_words.neutral(grounded(CLAUSES[:2]), relation=relation)
    frame = spatial_words.measure(vlm, pairs, batch_size=4)
    assert list(frame.columns) == list(spatial_words.COLUMNS)
    assert len(frame) == 2 * 3 * 3 * (vlm.n_layers + 1)
    for pair in pairs:
        for member, words in pair.words.items():
            text, shown = pair.members[member].question, pair.members[member].image
            for role, word in words.items():
                own = frame[(frame["pair"] == pair.id) & (frame["member"] == member) & (frame["role"] == role)]
                expected = slow(vlm, reference, text, shown, word, len(word.split()))
                own = own.sort_values("layer")  # the mean has layer -1
                assert own["how"].tolist() == ["mean", *["layer"] * vlm.n_layers]
                entropies, spreads = np.array([expected[-1], *expected[:-1]]).T
                assert own["entropy"].to_numpy() == pytest.approx(entropies, abs=2e-6)
                assert own["dispersion"].to_numpy() == pytest.approx(spreads, rel=1e-5)
    assert frame["entropy"].max() < 1 - 1e-4 and frame["dispersion"].std() > 0.01  # no map is flat, and they differ
    flat = [(i - 2.5) ** 2 + (j - 2.5) ** 2 for i in range(6) for j in range(6)]
    assert frame["flat_dispersion"].to_numpy() == pytest.approx(np.mean(flat), rel=1e-5)


def test_layers_the_system_prompt_and_the_store_are_those_asked_for(tiny_llava, tmp_path):
    vlm, pairs = VLM.load(str(tiny_llava)), spatial_words.neutral(grounded(CLAUSES[:2]))
    whole = spatial_words.measure(vlm, pairs)
    one = spatial_words.measure(vlm, pairs, layers=[1], aggregates=("mean", "last_third"))
    for how in ("mean", "last_third", "layer"):
        own = one[one["how"] == how]["entropy"].to_numpy()
        assert own == pytest.approx(whole[whole["layer"] == 1]["entropy"].to_numpy(), abs=1e-7)
    bare = spatial_words.measure(vlm, pairs, system=None)
    assert (bare["entropy"] - whole["entropy"]).abs().max() > 1e-6
    kept = [spatial_words.measure(vlm, pairs, store=tmp_path / "maps") for _ in range(2)]
    assert list((tmp_path / "maps").iterdir())
    for again in kept:
        assert again["entropy"].to_numpy() == pytest.approx(whole["entropy"].to_numpy(), abs=1e-4)


def test_what_stands_before_the_relation_cannot_change_with_it(both):
    vlm, _ = both
    frame = spatial_words.measure(vlm, spatial_words.neutral(grounded(CLAUSES)), batch_size=5)
    wide = frame.pivot(index=["pair", "role", "sees", "how", "layer"], columns="member", values="entropy").reset_index()
    changed = (wide["spatial"] - wide["neutral"]).abs()
    assert set(wide.loc[~wide["sees"], "role"]) == {"subject"} and changed[~wide["sees"]].max() < 1e-6
    deep = wide["sees"] & (wide["layer"] > 0)
    assert changed[deep].min() > 1e-6
    found = spatial_words.summary(frame, by=("how", "layer", "role"))
    assert found.loc[~found["sees"], ["p", "q"]].isna().all(axis=None) and found.loc[found["sees"], "p"].notna().all()


def test_the_vision_tower_never_sees_the_words(tiny_llava):
    vlm = VLM.load(str(tiny_llava))
    frame = spatial_words.measure_tower(vlm, spatial_words.neutral(grounded(CLAUSES)))
    wide = frame.pivot(index=["pair", "role", "how", "layer"], columns="member", values=["entropy", "dispersion"])
    for metric in ("entropy", "dispersion"):
        assert np.array_equal(wide[metric]["spatial"], wide[metric]["neutral"]) and wide[metric]["spatial"].nunique() > 3
    study = spatial_words.as_published(frame)
    assert study["t"].tolist() == [0] * 4 and study["p"].tolist() == [1] * 4 and study["n"].tolist() == [3] * 4
    assert (study["spatial_sd"] > 0).all() and not frame["sees"].any()


def test_maps_need_a_grid(tiny_idefics2):
    with pytest.raises(ValueError, match="no grid"):
        spatial_words.measure(VLM.load(str(tiny_idefics2)), spatial_words.neutral(grounded(CLAUSES)))


def test_unknown_members_and_no_pairs(both):
    with pytest.raises(ValueError, match="member 'other' is unknown"):
        spatial_words.measure(both[0], spatial_words.neutral(grounded(CLAUSES)), members=("spatial", "other"))
    with pytest.raises(ValueError, match="no pairs"):
        spatial_words.measure_tower(both[0], [])


# ---- the comparison ----


def planted(values, relations=None, sees=True, cells=36):
    """A table of `measure`: values [pair, member, metric] of one role and layer."""
    rows = []
    for i, pair in enumerate(values):
        relation = relations[i] if relations else "left"
        for member, (entropy, dispersion) in zip(spatial_words.MEMBERS, pair, strict=False):
            labels = (f"p{i}", f"c{i // 2}", relation, member, "relation", "mean", -1, sees)
            rows.append((*labels, entropy, dispersion, cells, 5.83))
    return pd.DataFrame(rows, columns=list(spatial_words.COLUMNS))


def drawn(n=10, seed=0, shift=(0.0, 0.0)):
    """Pairs that differ much from one another and little within."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.3, 0.9, (n, 1, 2)) + rng.normal(0, 0.002, (n, 3, 2))
    values[:, 0] += shift
    return values


def test_differences_are_paired_and_have_the_houses_statistics():
    values, relations = drawn(12, shift=(0.01, 0)), ["left", "above"] * 6
    relations.sort()
    found = spatial_words.summary(planted(values, relations), seed=2)
    assert found[["relation", "metric"]].apply(tuple, axis=1).tolist() == [
        (relation, metric) for metric in ("entropy", "dispersion") for relation in ("above", "left")
    ]
    for row in found.itertuples():
        own = values[np.array(relations) == row.relation][:, :, spatial_words.METRICS.index(row.metric)]
        clusters = np.arange(12)[np.array(relations) == row.relation] // 2
        change, control = own[:, 0] - own[:, 1], own[:, 1] - own[:, 2]
        assert (row.difference, row.low, row.high) == pytest.approx(bootstrap(change, clusters, seed=2)[:3])
        assert (row.control, row.control_low, row.control_high) == pytest.approx(bootstrap(control, clusters, seed=2)[:3])
        assert row.p == permutation_test(own[:, 0], own[:, 1], clusters, seed=2)
        assert (row.spatial, row.neutral) == pytest.approx(tuple(own[:, :2].mean(0)))
        assert (row.n, row.clusters, row.left_out) == (6, 3, 0)
    assert found["q"].tolist() == pytest.approx(benjamini_hochberg(found["p"].to_numpy()))


def test_pairs_show_what_samples_hide():
    frame = planted(drawn(40, seed=1, shift=(0.004, 0)))
    study = spatial_words.as_published(frame).set_index("metric")
    ours = spatial_words.summary(frame).set_index("metric")
    assert study.loc["entropy", "p"] > 0.5 and ours.loc["entropy", "p"] < 0.001
    assert ours.loc["dispersion", "p"] > 0.05 and abs(ours.loc["entropy", "control"]) < 0.001


def test_the_studys_t_is_students_of_nats():
    values = drawn(8, shift=(0.05, 0.3))
    study = spatial_words.as_published(planted(values)).set_index("metric")
    for metric, scale in (("entropy", np.log(36)), ("dispersion", 1.0)):
        one, other = scale * values[:, :2, spatial_words.METRICS.index(metric)].T
        pooled = (one.var(ddof=1) + other.var(ddof=1)) / 2
        row = study.loc[metric]
        assert row["t"] == pytest.approx((one.mean() - other.mean()) / np.sqrt(2 * pooled / 8))
        assert row[["spatial", "spatial_sd", "neutral", "n"]].tolist() == pytest.approx(
            [one.mean(), one.std(ddof=1), other.mean(), 8]
        )
    same = drawn(8)
    same[:, 1] = same[:, 0]
    alike = spatial_words.as_published(planted(same))
    assert alike["t"].tolist() == [0, 0] and alike["p"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="how='last_third' was not measured"):
        spatial_words.as_published(planted(values), how="last_third")
    layers = pd.concat([planted(values).assign(how="layer", layer=layer) for layer in (0, 1)])
    with pytest.raises(ValueError, match="how='layer' holds 2 layers, of which each would count as a sample; give one"):
        spatial_words.as_published(layers, how="layer")
    one = spatial_words.as_published(layers[layers["layer"] == 1], how="layer")
    assert one["n"].tolist() == [8, 8] and one["t"].tolist() == spatial_words.as_published(planted(values))["t"].tolist()


def test_pairs_without_a_map_are_left_out_and_counted():
    frame = planted(drawn(6))
    frame.loc[(frame["pair"] == "p2") & (frame["member"] == "neutral"), ["entropy", "dispersion"]] = np.nan
    found = spatial_words.summary(frame)
    assert found["n"].tolist() == [5, 5] and found["left_out"].tolist() == [1, 1]
    whole = spatial_words.summary(frame[frame["pair"] != "p2"])
    assert found["difference"].tolist() == pytest.approx(whole["difference"].tolist())
    none = spatial_words.summary(frame.assign(entropy=np.nan, dispersion=np.nan))
    assert none["n"].tolist() == [0, 0] and none["difference"].isna().all()


def test_a_control_is_not_needed_but_both_members_are():
    frame = planted(drawn(6))
    without = spatial_words.summary(frame[frame["member"] != "control"])
    assert without["control"].isna().all() and without["difference"].notna().all()
    with pytest.raises(ValueError, match="member 'neutral' is missing"):
        spatial_words.summary(frame[frame["member"] != "neutral"])
    with pytest.raises(ValueError, match="by="):
        spatial_words.summary(frame, by=("relation",))
    with pytest.raises(ValueError, match="pair 'p0' stands twice"):
        spatial_words.summary(pd.concat([frame, frame]))
    with pytest.raises(ValueError, match="'sees' is missing"):
        spatial_words.summary(frame.drop(columns="sees"))


def test_a_pair_with_a_word_that_no_text_has_is_a_row_without_a_map(both):
    pairs = spatial_words.neutral(grounded(CLAUSES[:2]))
    words = {member: {**own, "subject": "yellow star"} for member, own in pairs[0].words.items()}
    frame = spatial_words.measure(both[0], [dataclasses.replace(pairs[0], words=words), pairs[1]])
    empty = frame[frame["entropy"].isna()]
    assert set(zip(empty["pair"], empty["role"], strict=True)) == {("e0", "subject")}
    found = spatial_words.summary(frame, by=("how", "layer", "role"))
    assert found.loc[found["role"] == "subject", "left_out"].unique().tolist() == [1]
