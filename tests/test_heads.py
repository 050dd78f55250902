"""Heads are read as whole rows of attention say, one by one: in every family, however batched, stored or asked."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialprobes import answers
from spatialprobes.capture import capture
from spatialprobes.families import Frame
from spatialprobes.fingerprints import FingerprintError
from spatialprobes.images import enlarged, open_image
from spatialprobes.probes import head_answers, head_effects, heads
from spatialprobes.probes.head_reading import Corner
from spatialprobes.store import StoreError
from spatialprobes.vlm import VLM
from spatialprobes.worlds.corner_files import read
from spatialprobes.worlds.corners import CORNERS, MEMBERS, corner_examples, lab_corner_pairs, study_pairs

TOLERANCE = 1e-5
ASKED = ["topleft", "bottomright"]


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


def small(pair):
    """The pair with pictures of 48 pixels, as the tiny models are made for."""
    return replace(pair, **{name: open_image(getattr(pair, name)).resize((48, 48)) for name in MEMBERS})


@pytest.fixture(scope="module")
def pairs():
    return [small(pair) for corner in ASKED for pair in study_pairs(corner, 2)]


def by_whole_rows(vlm, example, layers, side):
    """[kind, layer, head] from all of a prompt's attention, cell by cell."""
    batch = vlm.encode([example])
    with capture(vlm, attention_rows=layers, at="last") as got:
        vlm.forward(batch, logits_to_keep=1)
    spans, rows = batch.spans[0], [got.rows[layer][0, :, 0] for layer in layers]
    inside = [inside_of(spans, example.meta[name], side) for name in ("asked", "corner")]
    every = torch.stack([row[:, spans.vision].sum(-1) for row in rows])
    sums = [torch.stack([row[:, own].sum(-1) for row in rows]) if own else torch.full_like(every, torch.nan) for own in inside]
    return torch.stack([every, *sums]).numpy(), len(spans.vision), len(inside[0])


def inside_of(spans, corner, side):
    """Tokens of the cells whose middle lies in the corner."""
    found = []
    for cell, token in enumerate(spans.vision.tolist() if spans.grid is not None else []):
        y, x = (cell // spans.grid[1] + 0.5) / spans.grid[0], (cell % spans.grid[1] + 0.5) / spans.grid[1]
        if (y < side if "top" in corner else y > 1 - side) and (x < side if "left" in corner else x > 1 - side):
            found.append(token)
    return found


# ---- what is measured ----
@pytest.mark.parametrize("batch_size", [3, 64])
def test_every_family_is_read_as_its_whole_rows_say(tiny_family, pairs, batch_size):
    vlm = VLM.load(str(tiny_family))
    found = heads.measure(vlm, pairs[1:3], asked=ASKED, batch_size=batch_size, side=0.4)
    assert found.layers == ([1, 3] if "qwen3" in str(tiny_family) else list(range(vlm.n_layers)))
    table = found.answers.set_index(["pair", "asked", "member"])
    for example in corner_examples(pairs[1:3], ASKED):
        expected, vision, cells = by_whole_rows(vlm, example, found.layers, 0.4)
        key = example.meta["pair"], example.meta["asked"], example.meta["member"]
        place = [one.id for one in pairs[1:3]].index(key[0]), ASKED.index(key[1]), MEMBERS.index(key[2])
        np.testing.assert_allclose(found.mass[place], expected, atol=TOLERANCE)
        assert table.loc[key, ["vision", "cells"]].tolist() == [vision, cells]
    if "idefics2" in str(tiny_family):
        assert np.isnan(found.mass[:, :, :, 1:]).all() and (table["cells"] == 0).all()
        for region in ("region", "object"):
            with pytest.raises(ValueError, match="of 2 pairs none has cells in the corner"):
                head_effects.effects(found, region=region)
    else:
        assert (found.mass[:, :, :, 1:] < found.mass[:, :, :, :1]).all() and (table["cells"] == 4).all()


def test_the_subjects_corner_is_that_whatever_is_asked(vlm, pairs):
    found = heads.measure(vlm, pairs, asked=ASKED)
    for pair, corner in enumerate(found.pairs["corner"]):
        asked = ASKED.index(corner)
        np.testing.assert_array_equal(found.mass[pair, asked, :, 2], found.mass[pair, asked, :, 1])
        assert (found.mass[pair, 1 - asked, :, 2] != found.mass[pair, 1 - asked, :, 1]).all()
    own = head_effects.effects(found, region="object", n=100).set_index(["asked", "corner", "layer", "head"])["effect"]
    expected = found.mass[found.pairs["corner"] == ASKED[1]][:, 0, :, 2, 1, 3].astype(float)
    assert own[ASKED[0], ASKED[1], 1, 3] == pytest.approx((expected[:, 0] - expected[:, 1]).mean())


def test_members_differ_only_where_their_pictures_do(vlm, pairs):
    same = replace(pairs[0], control=pairs[0].full)
    found = heads.measure(vlm, [same, pairs[1]])
    assert not found.differences()[0].any() and (found.differences()[1] != 0).all()
    first, second = found.differences()[1].swapaxes(0, 1)[:, :2]
    assert first.shape == second.shape and not np.allclose(found.differences()[1, 0], found.differences()[1, 1])


def test_one_layer_and_one_corner_are_those_of_all(vlm, pairs):
    whole = heads.measure(vlm, pairs)
    part = heads.measure(vlm, pairs, asked="bottomright", layers=[1])
    assert part.layers == [1] and part.asked == ["bottomright"]
    np.testing.assert_allclose(part.mass[:, 0, :, :, 0], whole.mass[:, 3, :, :, 1], atol=TOLERANCE)


def test_the_frame_says_what_the_array_does(vlm, pairs):
    found = heads.measure(vlm, pairs, asked=ASKED)
    frame = found.frame().set_index(["pair", "asked", "member", "layer", "head"])
    assert len(frame) == found.mass.size / len(heads.KINDS) and frame.index.is_unique
    for p, a, m, layer, head in [(0, 0, 0, 0, 0), (3, 1, 1, 1, 3), (2, 0, 1, 1, 2)]:
        row = frame.loc[(pairs[p].id, ASKED[a], MEMBERS[m], layer, head)]
        assert row[list(heads.KINDS)].tolist() == found.mass[p, a, m, :, layer, head].tolist()
        assert row[["corner", "cluster"]].tolist() == [pairs[p].corner, pairs[p].meta["match"]]


def test_pictures_are_enlarged_before_they_are_asked_about(tiny_qwen2_vl):
    vlm, pairs = VLM.load(str(tiny_qwen2_vl)), study_pairs("topleft", 1)
    found = heads.measure(vlm, pairs, asked=ASKED, feed_size=48)
    larger = replace(pairs[0], **{name: enlarged(open_image(getattr(pairs[0], name)), 48) for name in MEMBERS})
    np.testing.assert_array_equal(found.mass, heads.measure(vlm, [larger], asked=ASKED).mass)
    assert (found.answers["vision"] == 36).all() and (heads.measure(vlm, pairs, asked=ASKED).answers["vision"] == 64).all()


# ---- answers ----
def test_answers_are_those_of_generating_and_of_scoring(vlm, pairs):
    found = heads.measure(vlm, pairs, asked=ASKED).answers
    asked = corner_examples(pairs, ASKED)
    said = answers.generate(vlm, asked, max_new_tokens=1)
    scores = answers.score(vlm, asked).pivot(index="id", columns="choice", values="logprob").loc[[one.id for one in asked]]
    assert found["text"].tolist() == said["text"].tolist()
    np.testing.assert_allclose(found[["logprob_yes", "logprob_no"]], scores[["yes", "no"]], atol=1e-4)
    assert found["expected"].tolist() == [one.answer for one in asked]
    assert found["parsed"].tolist() == [text in ("yes", "no") for text in said["text"]]


def test_the_lab_model_answers_and_looks():
    vlm = VLM.load("lab-llava")
    pairs = [pair for corner in CORNERS for pair in lab_corner_pairs(corner, 4, 11)]
    found = heads.measure(vlm, pairs)
    table = head_answers.accuracy(found.answers, by=())
    assert table["accuracy"].item() > 0.9 and table["clusters"].item() == 4 and table["n"].item() == 128
    effects = head_effects.effects(found, region="region")
    own = effects[effects["asked"] == effects["corner"]]
    other = effects[effects["asked"] != effects["corner"]]
    by_head = [part.groupby(["layer", "head"])["effect"].mean() for part in (own, other)]
    head = by_head[0].idxmax()
    assert by_head[0][head] > 0.2 > 2 * abs(by_head[1][head])  # it looks into the corner that is asked about, and only there


# ---- kept on the disk ----
def test_a_store_gives_back_what_was_measured_and_runs_only_what_lacks(vlm, pairs, tmp_path, monkeypatch):
    runs = []
    forward = vlm.forward
    monkeypatch.setattr(vlm, "forward", lambda batch, **options: runs.append(len(batch.examples)) or forward(batch, **options))
    first = heads.measure(vlm, pairs[:2], asked=ASKED, store=tmp_path / "kept")
    assert runs == [8]
    whole = heads.measure(vlm, pairs, asked=ASKED, store=tmp_path / "kept")
    assert runs == [8, 8]
    np.testing.assert_array_equal(whole.mass[:2], first.mass)
    again = heads.measure(vlm, pairs[::-1], asked=ASKED[::-1], store=tmp_path / "kept", batch_size=5)
    assert runs == [8, 8]
    np.testing.assert_array_equal(again.mass[::-1, ::-1], whole.mass)
    key = ["pair", "asked", "member"]
    assert again.answers.sort_values(key, ignore_index=True).equals(whole.answers.sort_values(key, ignore_index=True))


def test_a_store_of_something_else_is_refused(vlm, pairs, tmp_path):
    heads.measure(vlm, pairs[:1], asked=ASKED, store=tmp_path / "kept")
    with pytest.raises(FingerprintError, match="side"):
        heads.measure(vlm, pairs[:1], asked=ASKED, side=0.5, store=tmp_path / "kept")
    other = replace(pairs[0], control=Image.new("RGB", (48, 48)))
    with pytest.raises(StoreError, match="another question, picture or corner"):
        heads.measure(vlm, [other], asked=ASKED, store=tmp_path / "kept")
    with pytest.raises(StoreError, match="or corner"):
        heads.measure(vlm, [replace(pairs[0], corner="bottomright")], asked=ASKED, store=tmp_path / "kept")


# ---- a corner's cells ----
@pytest.fixture(scope="module")
def spans(vlm, pairs):
    return vlm.encode(corner_examples(pairs[:1], "topleft")[:1]).spans[0]


def on(spans, grid, frame=None):
    return replace(spans, grid=grid, vision=torch.arange(grid[0] * grid[1]), frame=frame or Frame())


@settings(deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), side=st.floats(0.05, 0.5), patches=st.integers(1, 9))
def test_cells_of_corners_are_mirrored_and_apart(spans, rows, columns, side, patches):
    spans = on(spans, (rows, columns))
    for corner in (Corner(side), Corner(side, min(patches, rows, columns))):
        at = {name: corner.cells(spans, name).reshape(rows, columns) for name in CORNERS}
        assert torch.equal(at["topright"], at["topleft"].flip(1)) and torch.equal(at["bottomleft"], at["topleft"].flip(0))
        assert torch.equal(at["bottomright"], at["topleft"].flip(0, 1))
        if corner.patches:
            assert at["topleft"].sum() == corner.patches**2 and at["topleft"][0, 0]
        else:
            assert sum(one.int() for one in at.values()).max() <= 1
            inside = [sum((i + 0.5) / count < side for i in range(count)) for count in (rows, columns)]
            assert at["topleft"].sum() == inside[0] * inside[1]


def test_cells_follow_the_picture_where_it_lies_on_the_grid(spans):
    padded = Frame((1.0, 0.5), (0.0, 0.25))  # the picture fills the middle half of the grid's height
    found = Corner(1 / 3).cells(on(spans, (12, 6), padded), "bottomleft").reshape(12, 6)
    assert found.nonzero().tolist() == [[row, column] for row in (7, 8) for column in (0, 1)]
    cropped = Frame((2.0, 1.0), (-0.5, 0.0))  # only the middle half of its width is seen
    assert not Corner(0.25).cells(on(spans, (6, 6), cropped), "topleft").any()


def test_study_patches_need_a_grid_that_has_them(vlm, pairs):
    assert (heads.measure(vlm, pairs, asked=ASKED, patches=3).answers["cells"] == 9).all()
    with pytest.raises(ValueError, match="patches=7 of a corner on a grid of 6 x 6 cells"):
        heads.measure(vlm, pairs, asked=ASKED, patches=7)


# ---- what is refused ----
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"asked": "middle"}, "corner is 'middle'"),
        ({"asked": []}, "no corner to ask about"),
        ({"side": 0.0}, "side=0.0"),
        ({"side": 0.6}, "side=0.6"),
        ({"patches": 0}, "patches=0"),
        ({"feed_size": -1}, "feed_size=-1"),
        ({"layers": [5]}, "5 is not there"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_bad_options_are_named(vlm, pairs, options, message):
    with pytest.raises(ValueError, match=message):
        heads.measure(vlm, pairs, **options)


def test_pairs_must_be_there_and_be_told_apart(vlm, pairs):
    with pytest.raises(ValueError, match="no examples were given"):
        heads.measure(vlm, [])
    with pytest.raises(ValueError, match="ids must be unique"):
        heads.measure(vlm, [pairs[0], pairs[0]])


def test_linear_layers_have_no_heads_to_read(tiny_qwen3_5, pairs):
    with pytest.raises(ValueError, match="layer 2 has no attention map, its attention is linear"):
        heads.measure(VLM.load(str(tiny_qwen3_5)), pairs, layers=[2])


def test_answers_that_begin_alike_are_refused(vlm, pairs, monkeypatch):
    monkeypatch.setattr(heads, "CHOICES", ("yes no", "yes yes"))
    with pytest.raises(ValueError, match="both begin with token"):
        heads.measure(vlm, pairs[:1])


# ---- the published pairs ----
def test_published_pairs_are_read_and_asked(vlm):
    folder = os.environ.get("SPATIALPROBES_REAL_DATA")
    if folder is None:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no published pairs here")
    data = read(Path(folder) / "corners")
    by_corner = {corner: [pair for pair in data.pairs if pair.corner == corner] for corner in CORNERS}
    there = {corner: own for corner, own in by_corner.items() if own}
    assert data.problems.empty and {len(own) for own in there.values()} == {100} and len(there) >= 2
    found = heads.measure(vlm, [pair for own in there.values() for pair in own[:3]])
    assert found.pairs["cluster"].nunique() == 3  # the sets are matched: a pair of one corner is that of another, elsewhere
    table = found.answers.set_index(["member", "corner", "asked"])["expected"]
    for corner in there:
        assert (table["full", corner, corner] == "yes").all() and (table["control", corner, corner] == "no").all()
