"""ShapeWorld: the published files hold what is said of them, what is written is read again, what does not fit is told."""

import json
import os
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from spatialprobes.images import open_image
from spatialprobes.worlds import shapeworld as sw
from spatialprobes.worlds import shapeworld_format as layout
from spatialprobes.worlds.shapeworld_examples import example, examples, exchanged
from spatialprobes.worlds.shapeworld_files import read, write

WORLDS = [sw.world(7, index) for index in range(6)]


@pytest.fixture(scope="module")
def root():
    folder = os.environ.get("SPATIALPROBES_REAL_DATA")
    if folder is None:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no published worlds here")
    return Path(folder) / "shapeworld"


@pytest.fixture(scope="module")
def published(root):
    return read(root)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    write(WORLDS, folder, per_shard=4)
    return folder


@pytest.fixture
def shard(kept, tmp_path):
    """Four worlds to spoil."""
    return Path(shutil.copytree(kept / "agreement/relational/shard0", tmp_path / "shard0"))


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_line(path, index, change):
    lines = path.read_text().split("\n")
    lines[index] = change(lines[index])
    path.write_text("\n".join(lines))


# ---- the published files ----
def test_the_300_published_worlds_hold_what_is_known_of_them(published):
    assert len(published.examples) == 300 and published.problems.empty
    assert Counter(one.answer for one in published.examples) == {"above": 88, "right": 74, "left": 73, "below": 65}
    assert sum(one.meta["world_order"] for one in published.examples) == 151
    assert len({one.id for one in published.examples}) == 300
    for one, shown in zip(published.examples, published.worlds, strict=True):
        assert sw.holds(*shown.pair) == one.category == one.meta["relation"]
        subject, reference = one.objects
        axis = 0 if one.answer in ("left", "right") else 1
        apart = subject.centre[axis] - reference.centre[axis]
        assert (apart < -0.1) if one.answer in ("left", "above") else (apart > 0.1)
        assert one.meta["caption"].split(" . ")[0] == one.question.split(" . ")[0]


def test_words_of_the_published_captions_name_subject_and_reference_in_their_order(root, published):
    """By the words of caption.txt alone, without its model."""
    for number in range(3):
        lines = (root / f"agreement/relational/shard{number}/caption.txt").read_text().splitlines()
        part = [one for one in published.examples if one.id.startswith(f"shard{number}/")]
        for line, one in zip(lines, part, strict=True):
            words = line.split()
            at = words.index("and")
            assert (" ".join(words[at - 2 : at]), " ".join(words[at + 2 : at + 4])) == (
                one.meta["subject"],
                one.meta["reference"],
            )
            assert words[-2] == one.answer and line == one.meta["caption"]


def test_published_boxes_are_the_shapes_own_to_rounding(root, published):
    stated = [
        [entity["bounding_box"][corner][axis] for corner in ("topleft", "bottomright") for axis in "xy"]
        for number in range(3)
        for world in json.loads((root / f"agreement/relational/shard{number}/world_model.json").read_text())
        for entity in world["entities"]
    ]
    own = [entity.box for shown in published.worlds for entity in shown.entities]
    assert np.abs(np.array(stated) - np.array(own)).max() < 1e-12


def test_rendered_worlds_are_the_published_pictures_but_for_some_pixels_of_edges(published):
    differing, furthest = [], 0
    for one, shown in zip(published.examples[::5], published.worlds[::5], strict=True):
        real, ours = np.asarray(open_image(one.image)).astype(int), sw.render(shown).astype(int)
        off = np.abs(real - ours).max(-1)
        edges = np.any([(part > 0) & (part < 1) for part in map(sw.coverage, shown.entities)], axis=0)
        assert not (off > 0)[~edges].any(), one.id
        differing.append((off > 0).sum())
        furthest = max(furthest, off.max())
    assert np.mean(differing) < 25 and np.median(differing) == 0 and furthest <= 30


def test_generated_worlds_are_spread_as_the_published_ones(published):
    drawn = [sw.world(11, index) for index in range(700)]

    def centres(shown, across):
        axis = (sw.RELATIONS[shown.relation][0] == "y") != across
        return abs(shown.entities[0].centre[axis] - shown.entities[1].centre[axis])

    for measure in (
        lambda worlds: [centres(one, False) for one in worlds],
        lambda worlds: [centres(one, True) for one in worlds],
        lambda worlds: [one.box[2] - one.box[0] for each in worlds for one in each.entities],
        lambda worlds: [one.rotation for each in worlds for one in each.entities],
    ):
        assert stats.ks_2samp(measure(published.worlds), measure(drawn)).pvalue > 0.01
    shades = [one.shade for each in published.worlds for one in each.entities]  # the farthest off of all that was looked at: .015
    assert stats.kstest(shades, stats.uniform(sw.SHADE[0], sw.SHADE[1] - sw.SHADE[0]).cdf).pvalue > 0.01
    same = [sum(len({one.colour for one in each.entities}) == 1 for each in worlds) for worlds in (published.worlds, drawn)]
    assert same[0] == 68 and stats.fisher_exact([[same[0], 300 - same[0]], [same[1], 700 - same[1]]]).pvalue > 0.01


def test_written_files_are_the_published_ones(root, published, tmp_path):
    """Equal to the byte where nothing is free: the order of a shape's colour and name is, and the last digit of a box."""
    write(published.worlds, tmp_path)
    for number in range(3):
        real, ours = (folder / f"agreement/relational/shard{number}" for folder in (root, tmp_path))
        for name in ("agreement.txt", "caption.txt", "caption_length.txt", "caption_pn_length.txt", "caption_rpn_length.txt"):
            assert (real / name).read_bytes() == (ours / name).read_bytes(), name
        for name in ("caption_pn.txt", "caption_rpn.txt"):
            for one, other in zip((real / name).read_text().split("\n"), (ours / name).read_text().split("\n"), strict=True):
                assert canonical(one) == canonical(other)
        names = {path.name for path in real.iterdir()} - {"data.html"}
        assert names == {path.name for path in ours.iterdir()}
    first = "agreement/relational/shard0/world_model.json"
    assert (root / first).read_bytes() == (tmp_path / first).read_bytes()
    trees = [(folder / "agreement/relational/shard1/caption_model.json").read_text() for folder in (root, tmp_path)]
    assert len(trees[0]) == len(trees[1]) and sorted(trees[0].split("\n")) == sorted(trees[1].split("\n"))
    real, ours = (json.loads((folder / "agreement-relational.json").read_text()) for folder in (root, tmp_path))
    assert ours.pop("directory") == tmp_path.as_posix() and real.pop("directory") and real == ours


def canonical(symbols):
    """Attributes of one entity in a fixed order."""
    words = symbols.split()
    for at in range(len(words) - 1):
        if words[at].startswith("Attribute-shape") and words[at + 1].startswith("Attribute-color"):
            words[at], words[at + 1] = words[at + 1], words[at]
    return words


# ---- generated worlds, out and in again ----
@given(seed=st.integers(0, 2**32 - 1), subject=st.integers(0, 1), count=st.integers(1, 3))
@settings(max_examples=8, deadline=None)
def test_what_is_written_is_read_again(tmp_path_factory, seed, subject, count):
    worlds = [sw.world(seed, index) for index in range(count)]
    worlds = [one if one.subject == subject else exchanged(one) for one in worlds]
    folder = tmp_path_factory.mktemp("worlds")
    write(worlds, folder, per_shard=2)
    data = read(folder, form="caption")
    assert data.worlds == worlds and data.problems.empty
    for one, shown in zip(data.examples, worlds, strict=True):
        assert (np.asarray(open_image(one.image)) == sw.render(shown)).all()
        assert replace(one, image=None) == replace(example(one.id, shown, one.image, form="caption"), image=None)
        assert one.meta["world_order"] is (subject == 0) and one.question.endswith(f"relation is {one.answer} .")


def test_shards_are_found_from_their_parents_and_by_name(kept):
    ids = [f"shard0/world-{i}" for i in range(4)] + ["shard1/world-0", "shard1/world-1"]
    for part in ("", "agreement", "agreement/relational"):
        assert [one.id for one in read(kept / part).examples] == ids
    assert [one.id for one in read(kept / "agreement/relational/shard1").examples] == ids[4:]
    assert [one.id for one in read(kept, shards=[1]).examples] == ids[4:]
    assert [one.id for one in read(kept, shards=["shard1", "shard0"], limit=3).examples] == [*ids[4:], ids[0]]


def test_shards_are_taken_by_their_numbers_and_told_apart_by_their_folders(kept, tmp_path):
    for name in ("a/shard2", "a/shard10", "b/shard2"):
        shutil.copytree(kept / "agreement/relational/shard1", tmp_path / name)
    found = [one.id for one in read(tmp_path).examples]
    assert found == [f"{name}/world-{i}" for name in ("a/shard2", "a/shard10", "b/shard2") for i in range(2)]
    assert [one.id.split("/")[0] for one in read(tmp_path / "a").examples] == ["shard2"] * 2 + ["shard10"] * 2


def test_examples_ask_from_both_sides_without_naming_the_answer():
    found = examples(12, 3, twins=True)
    assert len({one.id for one in found}) == 24
    for one, other in zip(found[::2], found[1::2], strict=True):
        assert one.twin == other.id and other.twin == one.id and one.cluster == other.cluster
        assert {one.answer, other.answer} in ({"left", "right"}, {"above", "below"})
        assert one.objects == other.objects[::-1] and one.meta["world_order"] != other.meta["world_order"]
        assert (one.meta["subject"], one.meta["reference"]) == (other.meta["reference"], other.meta["subject"])
        assert one.answer not in one.question.split() and one.question in one.meta["caption"]
        for thing in one.objects:
            assert all(0 <= edge <= 1 for edge in thing.box)
    forced = examples(12, 3, form="caption")
    assert [one.answer for one in forced] == [one.answer for one in found[::2]]
    assert all(one.question == one.meta["caption"] and one.meta["word"] == one.answer for one in forced)
    assert {one.answer for one in examples(40, 3)} == set(sw.RELATIONS)


def test_a_box_that_reaches_over_the_border_is_cut_to_the_picture():
    entity = replace(WORLDS[0].entities[0], centre=(0.02, 0.99))
    shown = example("a", replace(WORLDS[0], entities=(entity, WORLDS[0].entities[1])), Path("a.png"))
    subject = shown.objects[WORLDS[0].subject]
    assert entity.box[0] < 0 and entity.box[3] > 1 and subject.box[0] == 0 and subject.box[3] == 1
    assert subject.box[1:3] == entity.box[1:3]


# ---- several captions, several worlds ----
def test_several_captions_of_a_world_are_read(shard):
    other = [exchanged(one) for one in WORLDS[:4]]
    write(other, shard.parent / "other")
    beside = shard.parent / "other/agreement/relational/shard0"
    for name in ("caption_model.json",):
        trees = zip(*(json.loads((where / name).read_text()) for where in (shard, beside)), strict=True)
        (shard / name).write_text(json.dumps([list(pair) for pair in trees]))
    blocks = zip(*((where / "caption.txt").read_text().splitlines() for where in (shard, beside)), strict=True)
    (shard / "caption.txt").write_text("\n\n".join("\n".join(block) for block in blocks) + "\n\n")
    (shard / "agreement.txt").write_text("1.0;1.0\n1.0;0.0\n1.0\n1.0;1.0\n")
    data = read(shard)
    assert [one.id for one in data.examples] == [f"shard0/world-{n}" for n in ("0-0", "0-1", "1-0", "3-0", "3-1")]
    assert data.worlds == [WORLDS[0], other[0], WORLDS[1], WORLDS[3], other[3]]
    assert [one.cluster for one in data.examples[:3]] == ["shard0/world-0"] * 2 + ["shard0/world-1"]
    assert data.problems["index"].tolist() == [1, 2]
    assert (
        "agreement is 0.0" in data.problems["problem"][0] and "2 captions, 2 models, 1 agreements" in data.problems["problem"][1]
    )


def test_several_worlds_of_a_caption_are_read(shard):
    edit(shard / "world_model.json", lambda worlds: worlds.__setitem__(slice(None), [[one, one] for one in worlds]))
    (shard / "agreement.txt").write_text("1.0;0.0\n" * 3 + "1.0;1.0\n")
    for index in range(4):
        (shard / f"world-{index}.png").rename(shard / f"world-{index}-0.png")
    data = read(shard)
    assert [one.id for one in data.examples] == [f"shard0/world-{index}-0" for index in range(4)]
    assert data.examples[0].image.name == "world-0-0.png" and data.examples[0].cluster == "shard0/world-0-0"
    assert "agreement is 0.0" in data.problems["problem"][0] and "no such file" in data.problems["problem"][3]
    edit(shard / "caption_model.json", lambda trees: trees.__setitem__(0, [trees[0]]))
    with pytest.raises(ValueError, match="several captions of several worlds"):
        read(shard)


# ---- what does not fit ----
def moved(entity):
    for point in (entity["center"], *entity["bounding_box"].values()):
        point["x"] += 1.5


def doubled(world):
    """Both shapes with one name: shape and colour of the first, each still with the box that it has."""
    world["entities"][1] = {**world["entities"][0], "id": 1}


SPOILT = {
    "world_model.json": [
        (lambda w: w["entities"].pop(), "holds 1 shapes; two are needed"),
        (lambda w: w["entities"].append(w["entities"][0]), "holds 3 shapes"),
        (lambda w: w["entities"][0].pop("center"), "KeyError: 'center'"),
        (lambda w: w["entities"][0]["shape"].update(name="star"), "shape is 'star'; it must be one of square"),
        (lambda w: w["entities"][0]["color"].update(name="pink"), "colour is 'pink'"),
        (lambda w: w["entities"][0]["center"].update(x="left"), "'left' stands in the world model where a number is needed"),
        (lambda w: w["entities"][0].update(rotation=float("nan")), "nan stands in the world model"),
        (lambda w: w["entities"][0].update(rotation=1e308), "1e\\+308 stands in the world model where a number is needed, of at"),
        (lambda w: w["entities"][0]["center"].update(y=10**400), "10{39} stands in the world model where a number is needed"),
        (lambda w: w["entities"][1]["bounding_box"]["topleft"].update(x=-0.2), "bounding box is .*; its shape extends over"),
        (lambda w: moved(w["entities"][0]), "box .* lies outside the picture"),
        (lambda w: w["entities"][0]["shape"]["size"].update(y=0), "a shape has an extent"),
        (doubled, "the caption names '.*'; (both shapes are that|in the world are)"),
        (lambda w: w.update(size=64), "has 100 x 100 pixels; its world has 64 x 64"),
        (lambda w: w.update(size=0), "size is 0"),
    ],
    "caption_model.json": [
        (lambda c: c["restrictor"]["value"][0].update(value="ring"), "the caption names '.*ring.*'; in the world are"),
        (lambda c: c["restrictor"]["value"].pop(0), "the caption names"),
        (lambda c: c["restrictor"].update(c["body"]["reference"]), "names the .* twice"),
        (lambda c: c["body"].update(value=-c["body"]["value"]), "the caption reads .*; its model says"),
        (lambda c: c["body"].update(predtype="z-rel"), "one shape left, right, above or below another is read"),
        (lambda c: c["body"].update(component="Quantifier"), "one shape left, right, above or below another is read"),
        (lambda c: c.pop("body"), "not as ShapeWorld writes it"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "said"), [(name, *each) for name, all_ in SPOILT.items() for each in all_])
def test_a_world_that_does_not_fit_is_left_out_and_said(shard, name, change, said):
    edit(shard / name, lambda content: change(content[2]))
    data = read(shard)
    assert data.worlds == [WORLDS[0], WORLDS[1], WORLDS[3]]
    assert data.problems[["shard", "index"]].values.tolist() == [["shard0", 2]]
    assert_matches(said, data.problems["problem"][0])


def assert_matches(said, problem):
    with pytest.raises(ValueError, match=said):
        raise ValueError(problem)
    assert "\n" not in problem


def test_a_relation_that_does_not_hold_by_the_centres_is_left_out(shard):
    """Model and words agree with each other and not with the world."""
    right = sw.world(7, 0, "left")
    wrong = replace(right, subject=1 - right.subject)
    write([wrong], shard.parent / "wrong")
    data = read(shard.parent / "wrong")
    assert not data.examples
    assert_matches("the caption says left; by their centres the first is right to the second", data.problems["problem"][0])


def test_agreement_captions_and_pictures_that_do_not_fit_are_left_out(shard):
    edit_line(shard / "agreement.txt", 0, lambda _: "0.0")
    edit_line(shard / "caption.txt", 1, lambda line: line.replace("first", "second"))
    (shard / "world-2.png").unlink()
    (shard / "world-3.png").write_bytes((shard / "world-3.png").read_bytes()[:60])
    data = read(shard)
    assert not data.examples and data.problems["index"].tolist() == [0, 1, 2, 3]
    for said, problem in zip(
        ("agreement is 0.0", "caption reads", "world-2.png: no such file", "world-3.png"), data.problems["problem"], strict=True
    ):
        assert_matches(said, problem)
    edit_line(shard / "agreement.txt", 0, lambda _: "yes")
    assert_matches("agreement is 'yes', not a number", read(shard).problems["problem"][0])


@pytest.mark.parametrize("name", ["caption.txt", "agreement.txt"])
def test_lines_that_are_lacking_are_told_by_their_index(shard, name):
    (shard / name).write_text("".join((shard / name).read_text().splitlines(keepends=True)[:3]))
    data = read(shard)
    assert data.worlds == WORLDS[:3] and data.problems["index"].tolist() == [3]
    assert_matches(f"{name} has only 3", data.problems["problem"][0])


def test_a_line_lost_within_puts_no_caption_with_another_world(shard):
    lines = (shard / "caption.txt").read_text().splitlines(keepends=True)
    (shard / "caption.txt").write_text("".join(lines[:1] + lines[2:]))
    data = read(shard)
    assert data.worlds == WORLDS[:1] and data.problems["index"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(("name", "what"), [("world_model.json", "worlds"), ("caption_model.json", "captions")])
def test_an_empty_list_is_told_and_not_passed_over(shard, name, what):
    content = json.loads((shard / name).read_text())
    (shard / name).write_text(json.dumps([content[0], [], *content[2:]]))
    if what == "captions":  # several captions stand in blocks
        (shard / name).write_text(json.dumps([[content[0]], [], *([one] for one in content[2:])]))
        (shard / "caption.txt").write_text((shard / "caption.txt").read_text().strip().replace("\n", "\n\n"))
    data = read(shard)
    assert data.worlds == [WORLDS[0], *WORLDS[2:4]]
    assert data.problems[["index", "problem"]].values.tolist() == [[1, f"world 1 has an empty list of {what}"]]


def test_a_shard_that_was_not_finished_is_none(tmp_path, monkeypatch):
    full = layout.texts

    def texts(part):
        if len(part) == 1:
            raise KeyboardInterrupt
        return full(part)

    monkeypatch.setattr(layout, "texts", texts)
    with pytest.raises(KeyboardInterrupt):
        write(WORLDS[:3], tmp_path / "cut", per_shard=2)
    data = read(tmp_path / "cut")
    assert data.worlds == WORLDS[:2] and not len(data.problems)


def test_what_is_no_data_is_said_in_a_line(kept, shard, tmp_path):
    for change, error, said in (
        (lambda: read(tmp_path / "none"), FileNotFoundError, "none: no such folder"),
        (lambda: read(tmp_path / "empty"), FileNotFoundError, "empty: no shard in it"),
        (lambda: read(kept, shards=[5]), FileNotFoundError, "no shard 'shard5'; there are shard0, shard1"),
        (lambda: read(kept, limit=0), ValueError, "limit is 0"),
        (lambda: read(kept, form="ask"), ValueError, "form is 'ask'; it must be one of question, caption"),
        (lambda: write([], tmp_path / "a"), ValueError, "no worlds to write"),
        (lambda: write(WORLDS, tmp_path / "a", per_shard=0), ValueError, "per_shard is 0"),
        (lambda: write(WORLDS, kept), FileExistsError, "relational is there already"),
        (lambda: examples(-1, 0), ValueError, "count is -1"),
        (lambda: examples(1, -1), ValueError, "seed=-1"),
        (lambda: examples(1, 0, form="ask"), ValueError, "form is 'ask'"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(error, match=said) as caught:
            change()
        assert "\n" not in str(caught.value)
    for content, said in (('{"a": 1}', "not a list but dict"), ("[1,", "not JSON"), ("[]", "caption_model.json has only")):
        (shard / "caption_model.json").write_text(content)
        if content == "[]":
            assert all("caption_model.json has only 0" in problem for problem in read(shard).problems["problem"])
            continue
        with pytest.raises(ValueError, match=f"caption_model.json: {said}"):
            read(shard)
    for name in ("world_model.json", "caption_model.json"):
        (shard / name).write_text("[]")
    for name in ("caption.txt", "agreement.txt"):
        (shard / name).write_text("")
    with pytest.raises(ValueError, match="no world in its shards"):
        read(shard)
    (shard / "agreement.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*agreement\.txt"):
        read(shard)


def test_pictures_are_decoded_only_when_they_are_used(kept):
    one = read(kept, limit=1).examples[0]
    assert isinstance(one.image, Path)
    made = examples(1, 7)[0]
    assert callable(made.image) and isinstance(made.image(), Image.Image)
