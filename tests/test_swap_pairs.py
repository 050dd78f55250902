"""Tables of swap pairs: every row right or reported, texts as csv reads them, pictures decoded when used, memory flat."""

import base64
import csv
import io
import os
import pickle
import re
import sys
import tracemalloc
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialprobes import images
from spatialprobes.images import ImageError, open_image, png_bytes
from spatialprobes.pairs import GROUPS, OPPOSITE
from spatialprobes.sources import swap_rows
from spatialprobes.sources.swap_pairs import COLUMNS, read, write
from spatialprobes.sources.swap_rows import Bad, open_rows
from spatialprobes.sources.swap_words import roles
from spatialprobes.worlds.lab_pairs import lab_pairs


def encoded(colour=(10, 20, 30), side=4):
    return base64.b64encode(png_bytes(Image.new("RGB", (side, side), colour))).decode()


def record(number=0, kind="left", **changes):
    """A row that is right, with some of its fields changed."""
    group = next(group for group, both in GROUPS.items() if kind in both)
    return {
        "image_base64": encoded((number % 256, 0, 0)),
        "original_question": f"Is cup {number} here, or where is it from the plate?",
        "swapped_question": f"Is plate here, or where is it from the cup {number}?",
        "original_answer": kind,
        "swapped_answer": OPPOSITE[kind],
        "category": kind,
        "group": group,
        "index": str(number),
        "question_id": f"q{number}",
    } | changes


def table(path, records, end="\n", columns=COLUMNS):
    lines = ["\t".join(columns), *("\t".join(one.get(column, "") for column in columns) for one in records)]
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def slow(path):
    """The rows as the csv module reads them, its limit on a field lifted meanwhile; ours has no such limit."""
    limit = csv.field_size_limit(1 << 30)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [row for row in csv.reader(file, "excel-tab") if row]
    finally:
        csv.field_size_limit(limit)


# ---- the study's TSV ----
def test_pairs_are_the_rows(tmp_path):
    categories = ("left", "right", "above", "under", "far", "close")
    path = table(tmp_path / "a.tsv", [record(i, category) for i, category in enumerate(categories)])
    data = read(path)
    assert len(data.pairs) == 6 and data.problems.empty and data.left_out == 0 and data.quads == []
    assert data.rows["category"].to_list() == list(categories) and data.rows["line"].to_list() == [2, 3, 4, 5, 6, 7]
    for number, (pair, category) in enumerate(zip(data.pairs, categories, strict=True)):
        one, other = pair.members
        assert (pair.id, pair.category, pair.cluster) == (str(number), category, one.cluster)
        assert (one.id, other.id) == (f"{number}:original", f"{number}:swapped") == (other.twin, one.twin)
        assert one.question == f"Is cup {number} here, or where is it from the plate?" and other.question.startswith("Is plate")
        assert (one.answer, other.answer) == (category, OPPOSITE[category]) == (one.category, other.category)
        assert one.choices == other.choices == list(GROUPS[pair.group]) and one.group == other.group == pair.group
        assert one.meta["line"] == number + 2 and one.meta["question_id"] == f"q{number}"
        assert one.image is other.image and open_image(one.image).getpixel((0, 0)) == (number, 0, 0)
    assert len({pair.cluster for pair in data.pairs}) == 6
    assert data.report() == "6 pairs of 6 rows (0 left out), 0 quads"


def test_one_picture_is_one_cluster(tmp_path):
    records = [record(0), record(1, image_base64=encoded((0, 0, 0))), record(2)]
    clusters = [pair.cluster for pair in read(table(tmp_path / "a.tsv", records)).pairs]
    assert clusters[0] == clusters[1] != clusters[2]


BROKEN = base64.b64encode(b"not a picture").decode()
BAD = {
    "no image_base64": {"image_base64": ""},
    "image_base64: not base64": {"image_base64": "?" + encoded()},
    "image_base64: not base64: incorrect padding": {"image_base64": "YWI"},
    "image_base64: not an image of a known kind": {"image_base64": BROKEN},
    "category 'up' is unknown; it must be one of left, right": {"category": "up"},
    "category 'left' is not of the group 'vertical' but of 'horizontal'": {"group": "vertical"},
    "category 'left' is not of the group 'sideways'": {"group": "sideways"},
    "no original_answer": {"original_answer": "  "},
    "no swapped_answer": {"swapped_answer": ""},
    "no original_question": {"original_question": ""},
    "no swapped_question": {"swapped_question": ""},
    "no category": {"category": ""},
    "original_answer is 'right'; for the category 'left' it must be 'left'": {"original_answer": "right"},
    "swapped_answer is 'above'; for the category 'left' it must be 'right'": {"swapped_answer": "above"},
    "original_question and swapped_question are the same": {"swapped_question": record(1)["original_question"]},
    "no index": {"index": ""},
    "index '0' stands already on line 2": {"index": "0"},
    "10 fields; the header has 9": {"question_id": "q1\tmore"},
}


@pytest.mark.parametrize(("problem", "changes"), BAD.items(), ids=list(BAD))
def test_a_bad_row_is_named_by_its_line_and_left_out(tmp_path, problem, changes):
    data = read(table(tmp_path / "a.tsv", [record(0), record(1, **changes), record(2)]))
    assert [pair.id for pair in data.pairs] == ["0", "2"] and data.left_out == 1
    ((line, said),) = data.problems.itertuples(index=False)
    assert line == 3 and problem in said
    assert data.report().startswith("2 pairs of 3 rows (1 left out), 0 quads\n  line 3: ")


def test_too_few_fields_bytes_that_are_no_text_and_too_many_pixels(tmp_path):
    path = table(tmp_path / "a.tsv", [record(0), record(1), record(2)])
    lines = path.read_bytes().split(b"\n")
    lines[1] = lines[1].replace(b"Is cup", b"Is caf\xe9")
    lines[2] = lines[2].rpartition(b"\t")[0]
    path.write_bytes(b"\n".join(lines))
    problems = read(path).problems
    assert problems["line"].to_list() == [2, 3]
    assert problems["problem"].to_list() == ["original_question: not UTF-8 at byte 6", "8 fields; the header has 9"]
    small = read(table(tmp_path / "b.tsv", [record(0), record(1, image_base64=encoded(side=9))]), max_pixels=50)
    assert "has 9 x 9 pixels; the limit is 50" in small.problems["problem"].item() and len(small.pairs) == 1


def test_what_a_report_says_of_many_problems(tmp_path):
    data = read(table(tmp_path / "a.tsv", [record(0)] * 8))
    assert data.report(2).splitlines()[0] == "1 pairs of 8 rows (7 left out), 0 quads"
    assert data.report(2).splitlines()[-1] == "  and 5 more" and len(data.report(2).splitlines()) == 4


def test_answers_in_other_words_and_letters_are_the_categories(tmp_path):
    changes = {"original_answer": "Below.", "swapped_answer": "ABOVE", "category": "Under", "group": " vertical"}
    records = [record(0, "under", **changes), record(1, "far", original_answer="distant", swapped_answer="nearby")]
    data = read(table(tmp_path / "a.tsv", records))
    assert [[member.answer for member in pair.members] for pair in data.pairs] == [["under", "above"], ["far", "close"]]


def test_crlf_bom_blank_lines_extra_columns_and_no_last_line_end(tmp_path):
    columns = ("index", "extra", *(c for c in COLUMNS if c not in ("index", "group", "question_id")))
    path = table(tmp_path / "a.tsv", [record(i, extra="?") for i in range(3)], end="\r\n", columns=columns)
    lines = path.read_bytes().split(b"\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + b"\r\n".join([lines[0], b"", *lines[1:3], b"", b"", lines[3]]))
    data = read(path)
    assert data.problems.empty and data.rows["line"].to_list() == [3, 4, 7]
    assert [pair.id for pair in data.pairs] == ["0", "1", "2"] and data.pairs[2].original.meta["question_id"] is None


def test_names_of_rows_without_an_index(tmp_path):
    without = [c for c in COLUMNS if c != "index"]
    path = table(tmp_path / "a.tsv", [record(0), record(1)], columns=without)
    assert [pair.id for pair in read(path).pairs] == ["q0", "q1"]
    path = table(tmp_path / "a.tsv", [record(0), record(1)], columns=without[:-1])
    assert [pair.id for pair in read(path).pairs] == ["line-2", "line-3"]


def test_empty_file_header_alone_one_row(tmp_path):
    for content in (b"", b"\n\n", b"\xef\xbb\xbf"):
        (tmp_path / "empty.tsv").write_bytes(content)
        with pytest.raises(ValueError, match=r"empty\.tsv: empty; a line that names the columns is the least"):
            read(tmp_path / "empty.tsv")
    data = read(table(tmp_path / "header.tsv", []))
    assert len(data.pairs) == 0 and data.report() == "0 pairs of 0 rows (0 left out), 0 quads" and list(data.pairs) == []
    assert len(read(table(tmp_path / "one.tsv", [record()])).pairs) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b,c\n1,2,3\n", r"no column original_question, swapped_question.*there: a,b,c"),
        ("\t".join(COLUMNS[1:]).encode(), "no picture; one of the columns image_base64, image, image_path"),
        ("\t".join((*COLUMNS, "index")).encode(), "two columns are named 'index'"),
        (b"caf\xe9\tb", "line 1, the header: not UTF-8 at byte 3"),
        (b'a\t"b\n', "line 1, the header: a quote opens a field"),
        ("\t".join(("image_path", *COLUMNS[1:])).encode(), "give the folder that holds them as images="),
        (b"\x1f\x8b\x08\x00", "packed by gzip"),
        (b"PAR1 and no more", "not a parquet file that can be read"),
    ],
)
def test_files_that_are_no_such_table_are_refused(tmp_path, content, message):
    (tmp_path / "a.tsv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.tsv")
    with pytest.raises(FileNotFoundError, match=r"no file .*b\.tsv"):
        read(tmp_path / "b.tsv")


# ---- quoting, against the csv module ----
texts = st.text(st.sampled_from('ab"\t\n\r é '), max_size=8)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts), max_size=6), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_what_csv_writes_is_read_back(tmp_path_factory, rows, quoting):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    filled = [[*row, *["-"] * 25] for row in rows]  # so many columns that tabs in quotes are fewer than those of a row
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, "excel-tab", quoting=quoting).writerows([map(str, range(28)), *filled])
    assert (
        [[*map(bytes.decode, row.values.values())] for row in open_rows(path).rows([*map(str, range(28))])]
        == slow(path)[1:]
        == filled
    )


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('ab"\t\t\n'), max_size=60))
def test_any_text_is_read_as_csv_does_or_reported_and_no_line_is_lost(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("tsv") / "a.tsv"
    path.write_bytes(b"x\ty\n" + text.encode())
    rows = open_rows(path)
    found = list(rows.rows(["x", "y"]))
    if not any(isinstance(row, Bad) for row in found):
        assert [[*map(bytes.decode, row.values.values())] for row in found] == slow(path)[1:]
    lines = (b"x\ty\n" + text.encode()).split(b"\n")
    covered = []
    for row in found:
        if isinstance(row, Bad):
            covered.append(row.line)
        else:
            offset, size = row.place
            data = path.read_bytes()[offset : offset + size]
            assert rows.fetch(row.place, ["x", "y"]) == row.values and path.read_bytes()[:offset].count(b"\n") + 1 == row.line
            covered += range(row.line, row.line + data.removesuffix(b"\n").count(b"\n") + 1)
    assert covered == [number for number, line in enumerate(lines, 1) if number > 1 and (line or number in covered)]


def test_a_stray_quote_costs_its_own_row_alone(tmp_path):
    records = [record(i) for i in range(5)]
    records[1]["original_question"] = '"Is the cup here?'
    records[3]["original_question"] = '"Is it the cup?'  # csv glues rows 1 to 3 together, without a word
    data = read(table(tmp_path / "a.tsv", records))
    assert [pair.id for pair in data.pairs] == ["0", "2", "4"]
    assert data.problems["line"].to_list() == [3, 5]
    assert "ends on a later line, behind the tabs of a whole row" in data.problems["problem"][0]
    assert "not closed within 100 lines" in data.problems["problem"][1]
    glued = slow(tmp_path / "a.tsv")[2]
    assert len(glued) == len(COLUMNS) and glued[0] == records[1]["image_base64"] and glued[-1] == "q3"


def test_quoted_fields_hold_tabs_quotes_and_lines_and_the_next_lines_are_counted(tmp_path):
    path = tmp_path / "a.tsv"
    records = [
        record(0, original_question='Is the "big"\ncup\tfar?', swapped_question="Is the plate?"),
        record(1, index="0"),
        record(2),
    ]
    with open(path, "w", newline="") as file:
        out = csv.writer(file, "excel-tab")
        out.writerows([COLUMNS, *([one[column] for column in COLUMNS] for one in records)])
    data = read(path)
    assert data.pairs[0].original.question == 'Is the "big"\ncup\tfar?'
    assert data.problems.values.tolist() == [[4, "index '0' stands already on line 2"]] and data.rows["line"].to_list() == [2, 5]


def test_a_row_without_end_is_bounded_and_passed_over(tmp_path, monkeypatch):
    path = table(tmp_path / "a.tsv", [record(0), record(1, question_id="x" * 5000), record(2)])
    monkeypatch.setattr(swap_rows, "MAX_ROW", 2000)
    data = read(path)
    assert data.problems.values.tolist() == [[3, "longer than 2,000 bytes"]]
    assert data.rows["line"].to_list() == [2, 4] and [pair.id for pair in data.pairs] == ["0", "2"]


# ---- when things are decoded, what is held ----
def test_no_pixel_is_decoded_before_it_is_used(tmp_path, monkeypatch):
    whole = encoded(side=64)
    cut = base64.b64encode(base64.b64decode(whole)[:60]).decode()
    path = table(tmp_path / "a.tsv", [record(0, image_base64=whole), record(1, image_base64=cut)])
    with monkeypatch.context() as patch:
        patch.setattr(images, "_decoded", None)
        data = read(path)
    assert len(data.pairs) == 2
    assert data.pairs[0].original.image().size == (64, 64)
    for use in (data.pairs[1].original.image, lambda: open_image(data.pairs[1].swapped.image)):
        with pytest.raises(ImageError, match=r"a\.tsv, line 3: "):
            use()
    checked = read(path, check_images=True)
    assert [pair.id for pair in checked.pairs] == ["0"] and checked.problems["line"].to_list() == [3]


def test_a_file_that_changed_is_not_read_as_if_it_had_not(tmp_path):
    path = table(tmp_path / "a.tsv", [record(0), record(1)])
    data = read(path)
    pair = data.pairs[1]
    table(path, [record(5), record(6), record(7)])
    for use in (lambda: data.pairs[0], pair.original.image):
        with pytest.raises(ValueError, match=r"a\.tsv.* was changed since its rows were indexed"):
            use()
    path.unlink()
    with pytest.raises(ImageError, match=r"a\.tsv, line 3: .*No such file"):
        pair.original.image()


def test_pairs_are_a_sequence_that_can_be_taken_up_again_anywhere(tmp_path):
    data = read(table(tmp_path / "a.tsv", [record(i) for i in range(9)]))
    everything = [pair.id for pair in data.pairs]
    iterator = iter(data.pairs)
    assert [next(iterator).id for _ in range(4)] + [pair.id for pair in data.pairs[4:]] == everything
    assert (
        data.pairs[-1].id == "8"
        and data.pairs[3] == data.pairs[3]
        and [one.id for one in reversed(data.pairs)] == everything[::-1]
    )
    assert [pair.id for pair in data.pairs[1:8:3]] == ["1", "4", "7"] and len(data.pairs[2:2]) == 0
    with pytest.raises(IndexError):
        data.pairs[9]


def test_pairs_and_pictures_survive_a_pickle(tmp_path):
    data = read(table(tmp_path / "a.tsv", [record(i) for i in range(3)]))
    pairs, pair = pickle.loads(pickle.dumps((data.pairs, data.pairs[2])))
    assert [one.id for one in pairs] == ["0", "1", "2"] and pair == data.pairs[2]
    assert pair.original.image().getpixel((0, 0)) == (2, 0, 0)
    assert len(pickle.dumps(pair)) < 4000


def test_memory_does_not_grow_with_the_pictures(tmp_path):
    peaks = {}
    noise = np.random.default_rng(0).integers(0, 256, (180, 200, 3), dtype=np.uint8)
    large = base64.b64encode(png_bytes(Image.fromarray(noise))).decode()
    assert len(large) > 131_072  # csv's own limit of a field
    for rows in (20, 120):
        path = table(tmp_path / f"{rows}.tsv", [record(i, image_base64=large) for i in range(rows)])
        tracemalloc.start()
        data = read(path)
        held, peaks[rows] = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(data.pairs) == rows and held < 2_000 * rows + 200_000
    assert os.path.getsize(path) > 16_000_000
    assert peaks[120] < peaks[20] + 300_000 < 3_000_000


# ---- other tables ----
def test_parquet_holds_the_same_pairs(tmp_path):
    records = [record(i, category) for i, category in enumerate(("left", "far", "under", "close"))]
    tsv = read(table(tmp_path / "a.tsv", records))
    frame = pd.DataFrame(records).assign(index=[0.0, 1.0, 2.0, np.nan])  # as pandas keeps whole numbers beside an empty cell
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=2)
    data = read(tmp_path / "a.parquet")
    assert [pair.id for pair in data.pairs] == ["0", "1", "2"] and data.problems.values.tolist() == [[4, "no index"]]
    for one, other in zip(data.pairs, tsv.pairs, strict=False):
        assert (one.original.question, one.category, one.cluster) == (other.original.question, other.category, other.cluster)
        assert (np.asarray(one.original.image()) == np.asarray(other.original.image())).all()
    assert pickle.loads(pickle.dumps(data.pairs[2])).original.image().getpixel((0, 0)) == (2, 0, 0)
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=1)
    with pytest.raises(ValueError, match=r"a\.parquet was changed since its rows were indexed"):
        data.pairs[0]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 11), max_size=12), st.integers(1, 12))
def test_rows_of_parquet_in_any_order(tmp_path_factory, order, group):
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    pd.DataFrame([record(i) for i in range(12)]).to_parquet(path, row_group_size=group)
    data = read(path)
    assert [(pair.id, pair.original.image().getpixel((0, 0))[0]) for pair in map(data.pairs.__getitem__, order)] == [
        (str(i), i) for i in order
    ]


def test_parquet_of_picture_bytes(tmp_path):
    records = [{k: v for k, v in record(i).items() if k != "image_base64"} for i in range(4)]
    for i, one in enumerate(records):
        one["image"] = {"bytes": base64.b64decode(encoded((i, 1, 1))), "path": f"{i}.png"}
    records[1]["image"]["bytes"] = None
    records[2]["image"]["bytes"] = b"GIF89a but no more"
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet")
    assert [pair.id for pair in data.pairs] == ["0", "3"] and data.pairs[1].swapped.image().getpixel((0, 0)) == (3, 1, 1)
    assert data.problems["line"].to_list() == [2, 3] and data.problems["problem"][0] == "no image"


class Picture:
    """The `datasets` feature of pictures, as far as it matters here."""

    def __init__(self, decode=True):
        self.decode = decode


class Table:
    """A data set of `datasets`, as far as it matters here: pictures come as bytes once their feature says so."""

    def __init__(self, records, features=None):
        self.records, self.features = records, features or {}
        self.column_names = list(records[0])

    def cast_column(self, column, feature):
        return Table(self.records, self.features | {column: feature})

    def __len__(self):
        return len(self.records)

    def __getitem__(self, number):
        row = dict(self.records[number])
        for column, feature in self.features.items():
            if feature.decode:
                row[column] = Image.open(io.BytesIO(row[column]["bytes"]))
        return row


def dataset_records(count=3):
    records = [{k: v for k, v in record(i).items() if k != "image_base64"} | {"index": np.int64(i)} for i in range(count)]
    return [one | {"image": {"bytes": base64.b64decode(encoded((i, 2, 2))), "path": None}} for i, one in enumerate(records)]


def test_a_data_set_gives_pictures_as_the_bytes_they_are():
    data = read(Table(dataset_records(), {"image": Picture()}))
    assert [pair.id for pair in data.pairs] == ["0", "1", "2"] and data.problems.empty
    assert pickle.loads(pickle.dumps(data.pairs[1])).original.image().getpixel((0, 0)) == (1, 2, 2)
    records = dataset_records()
    records[1]["image"]["bytes"] = base64.b64decode(encoded(side=64))[:70]
    with pytest.raises(ImageError, match="Table, line 2: "):
        read(Table(records)).pairs[1].original.image()
    with pytest.raises(ValueError, match=r"several splits \(train, test\); give one of them"):
        read({"train": Table(records), "test": Table(records)})
    with pytest.raises(ValueError, match="list is no table; a path, or a data set"):
        read(records)


def test_a_folder_is_read_by_datasets_which_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="read by the package datasets, which is missing"):
        read(tmp_path)
    asked = []
    fake = types.SimpleNamespace(load_from_disk=lambda path: asked.append(path) or Table(dataset_records()))
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(read(tmp_path).pairs) == 3 and asked == [str(tmp_path)]


def test_the_library_datasets_itself(tmp_path):
    datasets = pytest.importorskip("datasets", reason="the optional package datasets is not installed")
    data = datasets.Dataset.from_list(dataset_records()).cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "saved"))
    for source in (data, tmp_path / "saved"):
        found = read(source)
        assert found.problems.empty and found.pairs[2].original.image().getpixel((0, 0)) == (2, 2, 2)


def test_image_paths_stay_within_their_folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    Image.new("RGB", (3, 3), (7, 7, 7)).save(folder / "sub/a b.png")
    Image.new("RGB", (3, 3), (9, 9, 9)).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inner.png").symlink_to(folder / "sub/a b.png")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "empty.png").touch()
    good = ["sub/a b.png", "./sub/a b.png", "inner.png"]
    bad = {
        "../outside.png": "leads out of the folder",
        "sub/../../outside.png": "leads out of the folder",
        str(tmp_path / "outside.png"): "leads out of the folder",
        "..\\outside.png": "leads out of the folder",
        "link.png": "leads out of the folder by a link",
        "nowhere.png": "no such file",
        "loop/a.png": "image_path 'loop/a.png': ",
        "sub": "no such file",
        "x" * 300: "image_path 'xxx",
        "http://localhost/a.png": "no such file",
        "empty.png": "holds zero bytes",
        "": "no image_path",
    }
    columns = ["image_path", *COLUMNS[1:]]
    records = [record(i, image_path=path) for i, path in enumerate([*good, *bad])]
    data = read(table(tmp_path / "a.tsv", records, columns=columns), images=folder)
    assert [pair.original.image().getpixel((0, 0)) for pair in data.pairs] == [(7, 7, 7)] * 3
    assert [pair.cluster for pair in data.pairs] == ["sub/a b.png", "sub/a b.png", "inner.png"]
    assert len(data.problems) == len(bad)
    for said, (line, problem) in zip(bad.values(), data.problems.itertuples(index=False), strict=True):
        assert said in problem, line
    (folder / "inner.png").unlink()
    (folder / "inner.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(ImageError, match=r"a\.tsv, line 4: .*leads out of the folder by a link"):
        data.pairs[2].original.image()
    with pytest.raises(FileNotFoundError, match="no such folder of pictures"):
        read(tmp_path / "a.tsv", images=tmp_path / "none")


def test_real_photographs_in_base64_and_by_path(tmp_path):
    root = os.environ.get("SPATIALPROBES_REAL_DATA")
    if root is None:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no real photographs here")
    photos = sorted((Path(root) / "photos").glob("*.jpg"))
    records = [record(i, image_path=photo.name) for i, photo in enumerate(photos)]
    for one, photo in zip(records, photos, strict=True):
        one["image_base64"] = base64.b64encode(photo.read_bytes()).decode()
    inside = read(table(tmp_path / "a.tsv", records), check_images=True)
    beside = read(table(tmp_path / "b.tsv", records, columns=("image_path", *COLUMNS[1:])), images=Path(root) / "photos")
    assert len(inside.pairs) == len(beside.pairs) == len(photos) >= 2
    for one, other, photo in zip(inside.pairs, beside.pairs, photos, strict=True):
        expected = np.asarray(open_image(photo))
        assert (np.asarray(one.original.image()) == expected).all() and (np.asarray(other.swapped.image()) == expected).all()


# ---- out and in again ----
def test_lab_pairs_written_are_the_same_when_read(tmp_path):
    pairs = lab_pairs(4, 3, perspective=0.5)
    data = read(write(pairs, tmp_path / "new" / "lab.tsv"), check_images=True)
    assert slow(tmp_path / "new/lab.tsv")[0] == list(COLUMNS) and len(data.pairs) == len(pairs) == 24
    for one, other in zip(data.pairs, pairs, strict=True):
        assert (one.id, one.category, one.group) == (other.id, other.category, other.group)
        for read_member, member in zip(one.members, other.members, strict=True):
            for name in ("id", "question", "answer", "choices", "category", "group", "twin"):
                assert getattr(read_member, name) == getattr(member, name)
            assert (np.asarray(read_member.image()) == np.asarray(member.image())).all()
            for role in ("subject", "reference"):  # found again by comparing the questions
                assert read_member.meta[role] == member.meta[role]
    again = write(data.pairs, tmp_path / "again.tsv")
    assert again.read_bytes() == (tmp_path / "new/lab.tsv").read_bytes()


@settings(max_examples=40, deadline=None)
@given(texts.filter(str.strip), texts.filter(str.strip))
def test_any_words_that_are_written_are_read(tmp_path_factory, one, other):
    (pair,) = lab_pairs(1, 3, ("above",))
    pair = replace(pair, original=replace(pair.original, question=one), swapped=replace(pair.swapped, question=other))
    path = write([pair], tmp_path_factory.mktemp("tsv") / "a.tsv")
    assert slow(path)[1][1:3] == [one, other]
    found = read(path)
    if len(found.pairs):
        assert [member.question for member in found.pairs[0].members] == [one.strip(), other.strip()]
    elif (one + other).count("\t") < 8:
        assert found.problems["problem"].item() == "original_question and swapped_question are the same"
        assert one.strip() == other.strip()
    else:  # as many tabs in quotes as a row of its own has
        said = found.problems["problem"][0]
        assert "behind the tabs of a whole row" in said or one.strip() == other.strip()


def test_what_can_not_be_written_leaves_the_older_file(tmp_path):
    pairs = lab_pairs(1, 3)
    path = write(pairs, tmp_path / "lab.tsv")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="two pairs have the id 'lab-pair-3-0"):
        write([*pairs, pairs[0]], path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["lab.tsv"]


# ---- subject and reference ----
CUPS = ("cup on the table", "cup on the bed")


@pytest.mark.parametrize(
    ("original", "swapped", "subject", "reference"),
    [
        ("Is the A to the left or right of the B?", "Is the B to the left or right of the A?", "A", "B"),
        ("Is the big cat above or under a dog ?", "Is a dog above or under the big cat ?", "big cat", "dog"),
        ("is the red cup left of the blue cup ?", "is the blue cup left of the red cup ?", "red cup", "blue cup"),
        ("is the red cup left of the red pot ?", "is the red pot left of the red cup ?", "red cup", "red pot"),
        ("Compared to the TV, is the mug far?", "Compared to the mug, is the TV far?", "mug", "TV"),
        ("The mug: where is it, from the desk?", "The desk: where is it, from the mug?", "mug", "desk"),
        ("where is A ?", "where is B ?", None, None),
        ("where is A from B ?", "where is A from B ?", None, None),
        ("is A far from B or C ?", "is C far from A or B ?", None, None),
        ("to A, then to B", "to B, then to A", None, None),
        ("is the tea of A by the tea of B ?", "is the tea of B by the tea of A ?", "tea of A", "tea of B"),
        ("is a cup on the table by a cup on the bed?", "is a cup on the bed by a cup on the table?", *CUPS),
    ],
)
def test_roles_are_what_changes_places(original, swapped, subject, reference):
    found = roles(original, swapped)
    if subject is None:
        assert found is None
    else:
        assert found == ((subject, reference), (reference, subject))


names = st.lists(st.sampled_from(["red", "cup", "Cup", "of", "tea", "it's", "top-left"]), min_size=1, max_size=3).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(names, names, st.sampled_from(["is the {} left or right of the {} ?", "{}: above {}?", "From {}, where is {}?"]))
def test_roles_stand_in_their_questions_and_are_exchanged(a, b, template):
    original, swapped = template.format(a, b), template.format(b, a)
    found = roles(original, swapped)
    if found is None:
        return
    (subject, reference), (subject_there, reference_there) = found
    assert subject in original and reference in original and subject_there in swapped and reference_there in swapped
    assert (subject.casefold(), reference.casefold()) == (reference_there.casefold(), subject_there.casefold())
    again = roles(swapped, original)
    assert again == ((subject_there, reference_there), (subject, reference))


def test_columns_of_subject_and_reference_come_first_where_they_fit(tmp_path):
    columns = (*COLUMNS, "subject", "reference")
    questions = {"original_question": "Is the cup near the old plate?", "swapped_question": "Is the old plate near the cup?"}
    records = [
        record(0, subject="cup", reference="plate", **questions),
        record(1, subject="mug", reference="plate", **questions),
        record(2, **questions),
        record(3, original_question="Left or right?", swapped_question="Right or left?"),
    ]
    metas = [pair.original.meta for pair in read(table(tmp_path / "a.tsv", records, columns=columns)).pairs]
    found = [(meta["subject"], meta["reference"]) for meta in metas]
    assert found[:3] == [("cup", "plate"), ("cup", "old plate"), ("cup", "old plate")]
    assert re.match("left|None", str(found[3][0]).lower())
