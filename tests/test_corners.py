"""Corner pairs: the study's are drawn again to the pixel, sets differ by the corner alone, files that do not fit are told."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from spatialprobes.images import open_image
from spatialprobes.worlds import corners, lab
from spatialprobes.worlds.corner_files import read, write
from spatialprobes.worlds.corners import CORNERS, OPPOSITE, corner_examples, lab_corner_pairs, study_pairs


@pytest.fixture(scope="module")
def real():
    folder = os.environ.get("SPATIALPROBES_REAL_DATA")
    if folder is None:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no published pairs here")
    return Path(folder) / "corners"


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corners") / "dataset_topright"
    write(study_pairs("topright", 4), folder)
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    """Four pairs to spoil."""
    return Path(shutil.copytree(kept, tmp_path / "dataset_topright"))


def pixels(picture):
    return np.asarray(open_image(picture)).astype(int)


def known(pair):
    """All of a pair but its pictures."""
    return replace(pair, full=None, control=None)


def place(pair):
    return [np.array(one.box) for one in pair.objects]


# ---- the study's ----
@pytest.mark.parametrize("corner", ["topleft", "bottomright"])
def test_the_studys_pairs_are_drawn_again_pair_by_pair(real, corner, tmp_path):
    files = read(real / f"dataset_{corner}")
    drawn = study_pairs(corner)
    assert len(drawn) == 100 and files.problems.empty
    assert [known(one) for one in files.pairs] == [known(one) for one in drawn]
    for one, other in zip(files.pairs, drawn, strict=True):
        for member in corners.MEMBERS:
            assert (pixels(getattr(one, member)) == pixels(getattr(other, member))).all(), one.id
    write(drawn, tmp_path / f"dataset_{corner}")
    texts = [(parent / f"dataset_{corner}/metadata.jsonl").read_bytes() for parent in (real, tmp_path)]
    assert texts[0] == texts[1]


def test_the_studys_sets_differ_by_the_corner_alone():
    sets = {corner: study_pairs(corner, 30) for corner in CORNERS}
    for pairs in zip(*sets.values(), strict=True):
        assert len({one.meta["match"] for one in pairs}) == 1 and len({one.id for one in pairs}) == 4
        assert len({tuple(each.name for each in one.objects) for one in pairs}) == 1
        cut = [picture_in(one, 0) for one in pairs] + [picture_in(one, 1) for one in pairs]
        assert all((one == cut[0]).all() for one in cut[:4]) and all((one == cut[4]).all() for one in cut[4:])
        for one in pairs:
            assert (pixels(one.full) != pixels(one.control)).any()
            assert [corners.corner_at(*each.centre) for each in one.objects] == [one.corner, OPPOSITE[one.corner]]
    first, second = study_pairs("topleft", 8, seed=8), study_pairs("topleft", 8)
    assert [place(one)[0].tolist() for one in first] != [place(one)[0].tolist() for one in second]
    assert [known(one) for one in study_pairs("topleft", 3)] == [known(one) for one in second[:3]]


def picture_in(pair, which):
    """What the full picture shows within an object's box."""
    left, top, right, bottom = (round(edge * 64) for edge in pair.objects[which].box)
    return pixels(pair.full)[top:bottom, left:right]


def test_larger_pictures_hold_larger_shapes_in_the_same_corners():
    pairs = study_pairs("bottomleft", 40, size=128)
    sides = [round((one.objects[0].box[2] - one.objects[0].box[0]) * 128) - 1 for one in pairs]
    assert min(sides) >= corners.SMALLEST and max(sides) == corners.LARGEST
    assert all(one.full().size == (128, 128) and one.occupied["control"] == ("topright",) for one in pairs)


# ---- the lab's ----
def test_lab_pairs_are_matched_by_mirrors_and_half_turns():
    sets = {corner: lab_corner_pairs(corner, 12, 5) for corner in CORNERS}
    for pairs in zip(*sets.values(), strict=True):
        pair = dict(zip(CORNERS, pairs, strict=True))
        assert len({one.meta["match"] for one in pairs}) == 1
        boxes = {corner: place(one) for corner, one in pair.items()}
        for i, (left, top, right, bottom) in enumerate(boxes["topleft"]):
            assert boxes["topright"][i] == pytest.approx([1 - right, top, 1 - left, bottom])
            # half a turn: a triangle stays upright, so that the rows it meets lie otherwise, by less than a pixel
            triangle = "triangle" in pair["topleft"].objects[i].name
            across, down = (1e-9 + off / 48 * triangle for off in (1, 2))
            assert boxes["bottomright"][i][[0, 2]] == pytest.approx([1 - right, 1 - left], abs=across)
            assert boxes["bottomright"][i][[1, 3]] == pytest.approx([1 - bottom, 1 - top], abs=down)
        for member in corners.MEMBERS:
            views = {corner: pixels(getattr(one, member)) for corner, one in pair.items()}
            assert (views["topright"] == views["topleft"][:, ::-1]).all()
            assert (views["bottomright"] == views["bottomleft"][:, ::-1]).all()


@pytest.mark.parametrize("corner", CORNERS)
def test_a_lab_pair_differs_by_the_object_in_its_corner_alone(corner):
    for pair in lab_corner_pairs(corner, 20, 11):
        full, control = pixels(pair.full), pixels(pair.control)
        rows, columns = np.nonzero((full != control).any(-1))
        side = 48
        assert pair.objects[0].box == pytest.approx(
            (columns.min() / side, rows.min() / side, (columns.max() + 1) / side, (rows.max() + 1) / side)
        )
        assert corner in pair.occupied["full"] and corner not in pair.occupied["control"]
        assert set(pair.occupied["full"]) - {corner} == set(pair.occupied["control"])
        right, down = lab.CORNERS[CORNERS[corner]]
        free = control[side - 16 if down else 0 :, side - 16 if right else 0 :][:16, :16]
        assert (free == lab.BACKGROUND).all()


# ---- questions ----
def test_in_the_studys_pairs_the_opposite_corner_is_taken_in_both_members():
    pairs = study_pairs("topright", 3)
    found = corner_examples(pairs)
    assert len(found) == 3 * 2 * 4 and len({one.id for one in found}) == 24
    for one in found:
        meta = one.meta
        yes = meta["asked"] == "bottomleft" or (meta["asked"] == "topright" and meta["member"] == "full")
        assert one.answer == ("yes" if yes else "no") and one.choices == ["yes", "no"]
        assert one.id == f"{meta['pair']}-{meta['member']}-{meta['asked']}" and meta["corner"] == "topright"
        assert one.question == f"Is there anything in the {CORNERS[meta['asked']]} corner?"
        assert len(one.objects) == (2 if meta["member"] == "full" else 1) and one.cluster == meta["pair"].split("-")[1]
    assert [one.id for one in corner_examples(pairs[:1], "topleft")] == [
        f"topright-pair_00000-{member}-topleft" for member in corners.MEMBERS
    ]


def test_answers_about_lab_pairs_are_those_of_the_pixels():
    found = corner_examples(lab_corner_pairs("bottomright", 25, 2))
    assert {one.answer for one in found} == {"yes", "no"}
    for one in found:
        right, down = lab.CORNERS[CORNERS[one.meta["asked"]]]
        part = pixels(one.image)[32 if down else 0 :, 32 if right else 0 :][:16, :16]
        assert (one.answer == "yes") == (part != lab.BACKGROUND).any(), one.id


# ---- files ----
def test_folders_of_several_corners_are_read_together(kept, tmp_path):
    for corner in ("topleft", "topright"):
        write(study_pairs(corner, 4), tmp_path / f"dataset_{corner}")
    data = read(tmp_path)
    assert [known(one) for one in data.pairs] == [known(one) for c in ("topleft", "topright") for one in study_pairs(c, 4)]
    assert all(isinstance(one.full, Path) for one in data.pairs) and data.problems.empty


def test_a_folder_that_mixes_corners_and_relations_is_read_by_its_boxes(folder):
    """As the study's dataset_sample: the relation names a side, the subject stands in a corner or between two."""
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        line["relation"] = "right_of"
    lines[1]["bounding_boxes"]["subject"][1::2] = [26, 38]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = read(folder)
    assert [one.meta["match"] for one in data.pairs] == ["pair_00000", "pair_00002", "pair_00003"]
    assert {one.corner for one in data.pairs} == {"topright"} and "stands in no corner" in data.problems["problem"][0]


def black(path):
    Image.new("RGB", (64, 64)).save(path)


SPOILT = [
    (lambda r: r.pop("caption"), "the line lacks caption"),
    (lambda r: r.update(id=3), "id is 3; a text is needed"),
    (lambda r: r["bounding_boxes"]["subject"].__setitem__(2, 64), r"box .* lies outside the picture of 64 x 64"),
    (lambda r: r["bounding_boxes"]["subject"].__setitem__(0, -1), "lies outside the picture"),
    (lambda r: r["bounding_boxes"]["subject"].__setitem__(0, 60.5), "four whole numbers of pixels"),
    (lambda r: r["bounding_boxes"]["object"].reverse(), "has no extent"),
    (lambda r: r.update(bounding_boxes=[]), "boxes are not as the study writes them"),
    (lambda r: r.update(relation="upper_left_of"), "relation is upper_left_of, but the subject stands in the top right corner"),
    (lambda r: r.update(full_image=r["control_image"]), "full picture and control are the same"),
    (lambda r: r["bounding_boxes"].update(subject=[52, 6, 57, 11]), "differ outside the .*'s box"),
    (lambda r: r.update(id="pair_00000"), "topright-pair_00000 stands twice"),
    (lambda r: r.update(control_image="images/none.png"), "none.png: no such file"),
]


@pytest.mark.parametrize(("change", "said"), SPOILT)
def test_a_line_that_does_not_fit_is_left_out_and_told(folder, change, said):
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    record = json.loads(lines[2])
    change(record)
    lines[2] = json.dumps(record)
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    data = read(folder)
    assert [one.meta["match"] for one in data.pairs] == ["pair_00000", "pair_00001", "pair_00003"]
    assert data.problems[["folder", "line"]].values.tolist() == [["dataset_topright", 3]]
    with pytest.raises(ValueError, match=said):
        raise ValueError(data.problems["problem"][0])


def test_broken_pictures_and_lines_are_told(folder):
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(["[1]", "{", *lines[1:]]))
    (folder / "images/pair_00001_full.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    black(folder / "images/pair_00002_control.png")
    Image.new("RGB", (64, 32)).save(folder / "images/pair_00003_full.png")
    data = read(folder)
    assert not data.pairs and data.problems["line"].tolist() == [1, 2, 3, 4, 5]
    for said, problem in zip(
        (
            "no object but list",
            "the line: not JSON",
            "pair_00001_full.png",
            "differ outside",
            "64 x 32 pixels; it must be square",
        ),
        data.problems["problem"],
        strict=True,
    ):
        assert said in problem and "\n" not in problem


def test_what_is_no_pair_is_said_in_a_line(kept, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank/metadata.jsonl").write_text("\n")
    pairs = study_pairs("topleft", 2)
    off = replace(pairs[0], objects=[replace(pairs[0].objects[0], box=(0.1, 0.1, 0.3, 0.3)), pairs[0].objects[1]])
    crowded = next(one for one in lab_corner_pairs("topleft", 9, 0) if len(one.objects) > 2)
    for change, error, said in (
        (lambda: read(tmp_path / "none"), FileNotFoundError, "none: no such folder"),
        (lambda: read(tmp_path / "empty"), FileNotFoundError, "no metadata.jsonl in it"),
        (lambda: read(tmp_path / "blank"), ValueError, "holds no line"),
        (lambda: write([], tmp_path), ValueError, "no pairs to write"),
        (lambda: write(pairs, kept), FileExistsError, "metadata.jsonl is there already"),
        (lambda: write([*pairs, *study_pairs("topright", 1)], tmp_path), ValueError, "pairs of topleft, topright"),
        (lambda: write([*pairs, pairs[1]], tmp_path), ValueError, "'pair_00001' stands twice"),
        (lambda: write([replace(pairs[0], meta={"match": "../up"})], tmp_path / "a"), ValueError, "'../up' is no name of a file"),
        (lambda: write([off], tmp_path / "a"), ValueError, "has no whole pixels in a picture of 64"),
        (lambda: write([replace(pairs[0], occupied={})], tmp_path / "a"), ValueError, "other corners are taken than it says"),
        (lambda: write([crowded], tmp_path / "a"), ValueError, "objects; the study's layout knows a subject and one more"),
        (lambda: study_pairs("middle"), ValueError, "corner is 'middle'; it must be one of topleft, topright"),
        (lambda: study_pairs("topleft", -1), ValueError, "count is -1"),
        (lambda: study_pairs("topleft", seed=-7), ValueError, "seed=-7"),
        (lambda: study_pairs("topleft", size=48), ValueError, "size is 48"),
        (lambda: study_pairs("topleft", size=64.0), ValueError, "size is 64.0"),
        (lambda: lab_corner_pairs("top left", 1, 0), ValueError, "corner is 'top left'"),
        (lambda: lab_corner_pairs("topleft", 0, 0), ValueError, "count is 0"),
        (lambda: lab_corner_pairs("topleft", 1, 0.5), ValueError, "seed=0.5"),
        (lambda: corner_examples(pairs, "left"), ValueError, "corner is 'left'"),
    ):
        with pytest.raises(error, match=said) as caught:
            change()
        assert "\n" not in str(caught.value)
