"""Quads from tables: the same two objects in the same roles, from boxes or words, and a reason for each row that makes none."""

import base64
import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialprobes.examples import Example, Object
from spatialprobes.images import open_image, png_bytes
from spatialprobes.pairs import GROUP_OF, GROUPS, OPPOSITE, Pair
from spatialprobes.sources.swap_cache import build_cache, read_cache, write_cache
from spatialprobes.sources.swap_pairs import read, write
from spatialprobes.sources.swap_quads import by_words, read_quads
from spatialprobes.worlds.lab_pairs import correlation, lab_pairs, lab_quads

PICTURE = png_bytes(Image.new("RGB", (64, 48), (5, 6, 7)))
ENCODED = base64.b64encode(PICTURE).decode()
ASK = {"horizontal": "left or right", "vertical": "above or under", "distance": "far or close compared to"}


def pair(id, category, a="cup", b="plate", picture="p", **meta):
    """A pair about two words."""
    group, image = GROUP_OF[category], Image.new("RGB", (4, 4))
    members = []
    for member, other, said, (x, y) in (
        ("original", "swapped", category, (a, b)),
        ("swapped", "original", OPPOSITE[category], (b, a)),
    ):
        words = {"subject": x, "reference": y, "index": id, "line": int(id) + 2} | meta
        question = f"Is the {x} {ASK[group]} the {y}?"
        fixed = dict(answer=said, choices=list(GROUPS[group]), category=said, group=group, cluster=picture, twin=f"{id}:{other}")
        members.append(Example(f"{id}:{member}", image, question, meta=words, **fixed))
    return Pair(id, *members)


def thing(name, box, **more):
    return {"name": name, "box": box, **more}


CUP, PLATE, MUG = thing("cup", [10, 20, 20, 30]), thing("plate", [40, 60, 80, 90]), thing("cup", [50, 5, 60, 15])


def cache(folder, entries, name="cache.jsonl"):
    text = json.dumps(entries) if name.endswith(".json") else "".join(json.dumps(one) + "\n" for one in entries)
    (folder / name).write_text(text)
    return folder / name


def entry(index, subject=0, reference=1, objects=(CUP, PLATE), **more):
    return {"index": index, "image_size": [100, 100], "objects": objects, "subject": subject, "reference": reference} | more


def without_roles(*entries):
    return [{key: value for key, value in one.items() if key not in ("subject", "reference")} for one in entries]


def check(quad):
    """What every quad promises."""
    assert quad.vertical.group == "vertical" and quad.distance.group == "distance"
    assert quad.vertical.cluster == quad.distance.cluster
    for one, other in zip(quad.vertical.members, quad.distance.members, strict=True):
        assert one.image is other.image
        assert [one.meta[role] for role in ("subject", "reference")] == [other.meta[role] for role in ("subject", "reference")]
    for part in (quad.vertical, quad.distance):
        one, other = part.members
        assert (one.id, other.id) == (f"{part.id}:original", f"{part.id}:swapped") == (other.twin, one.twin)
        assert one.answer == one.category == OPPOSITE[other.answer]


# ---- the lab, out and in again ----
def test_lab_quads_come_back_from_table_and_cache_or_words(tmp_path):
    quads = lab_quads(30, 4, perspective=0.5)
    pairs = [one for quad in quads for one in (quad.distance, quad.vertical)]
    path, boxes = write([*pairs, *lab_pairs(2, 4)], tmp_path / "lab.tsv"), write_cache(pairs, tmp_path / "lab.jsonl")
    table = read(path, quads=boxes)
    assert len(table.pairs) == 72 and len(table.quads) == 30 and table.left_out == 0
    # the pairs that are in no cache: vertical and distance ones are named, horizontal ones are no matter
    assert len(table.problems) == 8 and table.problems["problem"].str.startswith("no entry in the cache of index 'lab-pair").all()
    for found, quad in zip(table.quads, quads, strict=True):
        check(found)
        for one, other in ((found.vertical, quad.vertical), (found.distance, quad.distance)):
            assert (one.id, one.category, one.original.question) == (other.id, other.category, other.original.question)
        for one, other in zip(found.vertical.original.objects, quad.vertical.original.objects, strict=True):
            assert (one.name, one.depth) == (other.name, other.depth)
            assert one.box == pytest.approx(other.box) and one.centre == pytest.approx(other.centre)
    a, b = correlation(table.quads), correlation(quads)
    assert a[["estimate", "n"]].to_numpy() == pytest.approx(b[["estimate", "n"]].to_numpy())
    words = read(path, quads="words")
    assert [quad.id for quad in words.quads] == [quad.id for quad in table.quads] and len(words.problems) == 8
    assert read(path).quads == []
    assert [quad.id for quad in read_quads(pairs, boxes)[0]] == [quad.id for quad in table.quads]  # by the pairs' own ids


# ---- the same two objects ----
def test_roles_of_the_distance_question_are_turned_to_those_of_the_vertical_one(tmp_path):
    pairs = [pair("0", "above"), pair("1", "far", "plate", "cup")]
    for quads, problems in (
        by_words(pairs),
        read_quads(pairs, cache(tmp_path, [entry(0), entry(1, 1, 0)])),
        read_quads(pairs, cache(tmp_path, without_roles(entry(0), entry(1)))),
    ):
        (quad,) = quads
        check(quad)
        assert problems.empty and quad.distance.category == "close" and quad.distance.id == "1:turned"
        assert quad.distance.original.question == "Is the cup far or close compared to the plate?"
        assert quad.vertical.original.image is pairs[0].original.image


def test_boxes_tell_two_objects_of_one_name_apart(tmp_path):
    pairs = [pair("0", "above"), pair("1", "far"), pair("2", "close")]
    objects = (CUP, PLATE, MUG)
    path = cache(tmp_path, [entry(0, objects=objects), entry(1, 2, objects=objects), entry(2, objects=objects)])
    quads, problems = read_quads(pairs, path)
    assert [quad.distance.id for quad in quads] == ["2"]
    assert problems.values.tolist() == [[3, "no vertical question about its two objects in the same picture"]]
    without = without_roles(*(entry(i, objects=objects) for i in range(3)))
    quads, problems = read_quads(pairs, cache(tmp_path, without))
    assert not quads and len(problems) == 3
    assert problems["problem"].str.contains("its subject 'cup' is not one of the picture's objects: cup, plate, cup").all()


def test_pictures_are_kept_apart_and_each_pair_is_taken_once():
    pairs = [
        pair("0", "above"), pair("1", "far", picture="q"), pair("2", "far"), pair("3", "close"), pair("4", "left"),
        pair("5", "under", "plate", "cup"), pair("6", "above"), pair("7", "far", subject=None), pair("8", "far", "cup", "cup"),
    ]  # fmt: skip
    quads, problems = by_words(pairs)
    assert [(quad.vertical.id, quad.distance.id) for quad in quads] == [("0", "2"), ("5", "3:turned")]
    assert len({quad.id for quad in quads}) == 2
    said = dict(problems.itertuples(index=False))
    assert said[3].startswith("no vertical question") and said[8].startswith("no distance question")
    assert said[9] == said[10] == "its subject and reference are not known" and set(said) == {3, 8, 9, 10}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["above", "under", "far", "close", "left"]), st.sampled_from("abc"), st.sampled_from("abc"),
                  st.sampled_from("pq")),
        max_size=12,
    )
)  # fmt: skip
def test_quads_are_as_many_as_can_be_and_every_other_row_is_named(rows):
    pairs = [pair(str(i), category, a, b, picture) for i, (category, a, b, picture) in enumerate(rows)]
    quads, problems = by_words(pairs)
    expected = 0
    for picture in "pq":
        for couple in ({"a", "b"}, {"a", "c"}, {"b", "c"}):
            same = [category for category, a, b, there in rows if there == picture and {a, b} == couple]
            expected += min(sum(GROUP_OF[category] == group for category in same) for group in ("vertical", "distance"))
    assert len(quads) == expected
    for quad in quads:
        check(quad)
    used = {part.id.removesuffix(":turned") for quad in quads for part in (quad.vertical, quad.distance)}
    assert len(used) == 2 * len(quads)
    asked = {one.id for one in pairs if one.group != "horizontal"}
    assert {str(line - 2) for line in problems["line"]} == asked - used and len(problems) == len(asked - used)


def test_a_vertical_question_is_asked_beside_a_distance_one(tmp_path):
    level = (thing("cup", [10, 20, 20, 30]), thing("plate", [40, 22, 80, 32]))
    pairs = [pair("0", "far"), pair("1", "close", picture="q"), pair("2", "above", picture="q"), pair("3", "far", picture="r")]
    path = cache(tmp_path, [entry(0), entry(1), entry(2), entry(3, objects=level)])
    template = "is the {subject} over or under the {reference}, in the picture?"
    quads, problems = read_quads(pairs, path, vertical=template)
    assert [quad.id for quad in quads] == ["2+1", "0:vertical+0"]
    for quad in quads:
        check(quad)
    asked = quads[1].vertical
    assert (asked.category, asked.group, asked.original.choices) == ("above", "vertical", ["above", "under"])
    assert asked.original.question == "is the cup over or under the plate, in the picture?"
    assert asked.swapped.question == "is the plate over or under the cup, in the picture?" and asked.swapped.answer == "under"
    too_near = "no vertical question: its objects differ in height by 0.020 of the picture, less than 0.05"
    assert problems.values.tolist() == [[5, too_near]]
    nearer = read_quads(pairs, path, vertical=template, least=0.01)[0]
    assert [quad.id for quad in nearer] == ["2+1", "0:vertical+0", "3:vertical+3"]


# ---- the cache ----
def test_fractions_and_pixels_are_the_same_objects_json_and_jsonl_the_same_entries(tmp_path):
    pixels = entry(7, question_id="q", objects=[thing("cup", [10, 20, 30, 40], depth=0.25), thing("plate", [-5, 50, 130, 100])])
    fractions = {"index": "7", "question_id": "q", "subject": 0, "reference": 1, "objects": [
        thing("cup", [0.1, 0.2, 0.3, 0.4], depth=0.25), thing("plate", [0, 0.5, 1, 1]),
    ]}  # fmt: skip
    found = [read_cache(cache(tmp_path, [one], name))[0] for one in (pixels, fractions) for name in ("a.json", "a.jsonl")]
    for entries in found:
        assert set(entries) == {("index", "7"), ("question_id", "q")}
        one = entries["index", "7"]
        assert [thing.name for thing in one.objects] == ["cup", "plate"] and one.asked == one.objects
        assert one.objects[0].box == pytest.approx((0.1, 0.2, 0.3, 0.4)) and one.objects[0].centre == pytest.approx((0.2, 0.3))
        assert (
            one.objects[0].depth == 0.25 and one.objects[1].depth is None and one.objects[1].box == pytest.approx((0, 0.5, 1, 1))
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objects": []}, "no list of objects"),
        ({"objects": {"name": "cup"}}, "no list of objects"),
        ({"objects": [{"box": [0, 0, 1, 1]}]}, "objects[0] has no name"),
        ({"objects": [CUP, thing("plate", [1, 2, 3])]}, "box of objects[1] is [1, 2, 3]; 4 numbers are wanted"),
        ({"objects": [CUP, thing("plate", [1, 2, 3, math.nan])]}, "box of objects[1] is [1, 2, 3, nan]; 4 numbers"),
        ({"objects": [CUP, thing("plate", [30, 2, 3, 9])]}, "box of objects[1] is [30, 2, 3, 9]: no area within the picture"),
        ({"objects": [CUP, thing("plate", [0, 0, 10**400, 9])]}, "box of objects[1] is [0, 0, 1000"),
        ({"objects": [CUP, thing("plate", [300, 2, 330, 9])]}, "no area within the picture"),
        (
            {"objects": [thing("cup", [1, 2, 3, 4], depth=1.5), PLATE]},
            "depth of objects[0] is 1.5; it must lie in [0, 1], 0 nearest",
        ),
        ({"objects": [thing("cup", [1, 2, 3, 4], depth="near"), PLATE]}, "depth of objects[0]"),
        ({"objects": [thing("cup", [1, 2, 3, 4], centre=[1]), PLATE]}, "centre of objects[0] is [1]; 2 numbers are wanted"),
        ({"image_size": [100, 0]}, "image_size [100.0, 0.0] is not above 0"),
        ({"image_size": 100}, "image_size is 100; 2 numbers are wanted"),
        ({"subject": 2}, "subject is 2; a place among the 2 objects, from 0, is wanted"),
        ({"reference": None}, "reference is None; a place"),
        ({"subject": True}, "subject is True; a place"),
        ({"reference": 0}, "subject and reference are the same object"),
        ({"objects": [CUP, CUP]}, "its subject and reference are one object, 'cup'"),
        ({"question_id": "other"}, "the cache's entry is of question_id 'other', the row of 'q0'"),
    ],
)
def test_a_broken_entry_is_said_of_its_row(tmp_path, changes, message):
    pairs = [pair("0", "above", question_id="q0"), pair("1", "far", question_id="q1")]
    quads, problems = read_quads(pairs, cache(tmp_path, [entry(0, **changes), entry(1)]))
    assert not quads and problems["line"].to_list() == [2, 3] and message in problems["problem"][0]
    assert problems["problem"][1] == "no vertical question about its two objects in the same picture"


def test_entries_that_name_no_row_twice_or_nothing_at_all(tmp_path):
    path = cache(tmp_path, [entry(0), entry(0), entry(None), entry(1)])
    with open(path, "a") as file:
        file.write("\n{not json\n[1]\n")
    quads, problems = read_quads([pair("0", "above"), pair("1", "far"), pair("2", "far", index=None, question_id=None)], path)
    assert not quads
    assert problems.values.tolist()[:3] == [
        [0, "cache.jsonl, line 3: neither index nor question_id"],
        [0, problems["problem"][1]],
        [0, "cache.jsonl, line 7: not an object"],
    ]
    assert problems["problem"][1].startswith("cache.jsonl, line 6: not JSON")
    assert problems["problem"].to_list()[3:] == [
        "cache.jsonl, line 2: a second entry of index '0'",
        "no entry in the cache of index '2'",
        "no vertical question about its two objects in the same picture",
    ]
    with pytest.raises(FileNotFoundError, match="no cache of objects"):
        read_quads([], tmp_path / "none.jsonl")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json: not a list of entries but dict"):
        read_quads([], tmp_path / "a.json")


def test_rows_are_matched_by_question_id_where_it_is_one_entry(tmp_path):
    pairs = [pair("0", "above", question_id="q"), pair("1", "far", question_id="q")]
    by_id = {k: v for k, v in entry(0, question_id="q").items() if k != "index"}
    assert len(read_quads(pairs, cache(tmp_path, [by_id]))[0]) == 1
    assert len(read_quads(pairs, cache(tmp_path, [entry(0, question_id="q"), entry(1, question_id="q")]))[0]) == 1
    unknown = [pair("5", "above", question_id="q"), pair("1", "far", question_id="q")]
    quads, problems = read_quads(unknown, cache(tmp_path, [entry(0, question_id="q"), entry(1, question_id="q")]))
    assert not quads and "several entries of question_id 'q', to be told apart by index" in problems["problem"][0]


# ---- made from a data set ----
class Table:
    """A data set of `datasets`, as far as it matters here."""

    def __init__(self, records):
        self.records, self.column_names, self.features = records, list(records[0]), {}

    def __len__(self):
        return len(self.records)

    def __getitem__(self, number):
        return self.records[number]


def hub(count=2, **changes):
    """Rows as EmbSpatial-Bench has them: a record of lists, boxes as left, top, width, height."""
    objects = {"bbox": [[8, 12, 16, 12], [32, 24, 16, 16]], "name": ["cup", "plate"]}
    rows = [{"question_id": f"q{i}", "objects": objects, "image": {"bytes": PICTURE, "path": None}} for i in range(count)]
    rows[-1].update(changes)
    return rows


def test_a_cache_is_built_from_a_data_set_without_a_net(tmp_path):
    path = tmp_path / "cache.jsonl"
    problems = build_cache(Table(hub()), path, form="xywh", size="image")
    assert problems.empty
    entries, broken = read_cache(path)
    assert set(entries) == {("question_id", "q0"), ("question_id", "q1")} and not broken
    assert entries["question_id", "q0"].objects == (
        Object("cup", (0.25, 0.375), (0.125, 0.25, 0.375, 0.5)),
        Object("plate", pytest.approx((0.625, 32 / 48)), pytest.approx((0.5, 0.5, 0.75, 40 / 48))),
    )
    pairs = [pair("0", "above", question_id="q0"), pair("1", "far", question_id="q1")]
    assert len(read_quads(pairs, path)[0]) == 1
    records = [
        {"index": i, "what": [{"n": "cup", "b": [8, 12, 24, 24], "z": 0.5}, {"n": "plate", "b": [32, 24, 48, 40], "z": None}],
         "w": 64, "h": 48}
        for i in range(2)
    ]  # fmt: skip
    assert build_cache(Table(records), path, objects="what", name="n", box="b", depth="z", size=("w", "h")).empty
    again = read_cache(path)[0]["index", "1"].objects
    assert again[0] == Object("cup", (0.25, 0.375), (0.125, 0.25, 0.375, 0.5), 0.5) and again[1].depth is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_id": ""}, "no question_id"),
        ({"objects": None}, "objects are neither a list of records nor a record of lists"),
        ({"objects": {"bbox": [[1, 2, 3, 4]], "name": ["a", "b"]}}, "the objects' lists are not of one length"),
        ({"objects": {"bbox": [[1, 2, 3]], "name": ["a"]}}, "bbox of 'a' is [1, 2, 3]; 4 numbers are wanted"),
        ({"objects": [{"bbox": [1, 2, 3, 4]}]}, "objects[0] has no name"),
        ({"image": {"bytes": b"GIF", "path": None}}, "image: not an image of a known kind"),
        ({"image": None}, "image holds no bytes of a picture"),
    ],
)
def test_rows_that_make_no_entry_are_named(tmp_path, changes, message):
    problems = build_cache(Table(hub(**changes)), tmp_path / "cache.jsonl", form="xywh", size="image")
    assert problems["line"].to_list() == [2] and message in problems["problem"][0]
    assert len(read_cache(tmp_path / "cache.jsonl")[0]) == 1


def test_columns_and_forms_that_are_not_there_are_refused(tmp_path):
    path = tmp_path / "cache.jsonl"
    with pytest.raises(ValueError, match="form is 'middle'; it must be one of xyxy, xywh"):
        build_cache(Table(hub()), path, form="middle")
    with pytest.raises(ValueError, match="Table: no column width, height; there: question_id, objects, image"):
        build_cache(Table(hub()), path)
    with pytest.raises(ValueError, match="neither of the columns index and question_id"):
        build_cache(Table([{"objects": []}]), path, size=None)
    assert not path.exists()


def test_quads_of_a_table_hold_pictures_that_are_decoded_when_used(tmp_path):
    columns = ("image_base64", "original_question", "swapped_question", "original_answer", "swapped_answer", "category", "index")
    rows = []
    for i, one in enumerate((pair("0", "above"), pair("1", "far", "plate", "cup"))):
        members = one.members
        rows.append([ENCODED, *(m.question for m in members), *(m.answer for m in members), one.category, str(i)])
    path = tmp_path / "a.tsv"
    path.write_text("\n".join("\t".join(row) for row in [columns, *rows]))
    table = read(path, quads=cache(tmp_path, [entry(0), entry(1, 1, 0), entry(9)]))
    (quad,) = table.quads
    check(quad)
    assert (
        open_image(quad.distance.swapped.image).size == (64, 48) and table.report() == "2 pairs of 2 rows (0 left out), 1 quads"
    )
    assert re.fullmatch("image-[0-9a-f]{16}", quad.cluster) and np.asarray(quad.vertical.original.image())[0, 0, 0] == 5
