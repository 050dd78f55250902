"""The index from two answer files: how they are read, paired and graded, and what is said of files that do not fit."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.probes import permutation
from spatialprobes.probes.answer_files import psi_from_answers, read_answers
from spatialprobes.probes.psi import psi_table


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def study(answers):
    """Rows as the study writes them: two questions about each picture."""
    rows = []
    for place, answer in enumerate(answers):
        question, expected, kind = [
            ("What color is at the bottom?", "red", "Color_abs"),
            ("Is the circle below the square?", "Yes", "Shape_rel"),
        ][place % 2]
        rows.append(
            {
                "entry_id": place // 2,
                "test_category": kind.split("_")[0],
                "qa_category": kind,
                "question": question,
                "correct_answer": expected,
                "model_response": answer,
                "objects": [{"shape": "circle"}],
                "model_id": "llava-v1.5-7b",
            }
        )
    return rows


IN_PLACE = ["The color at the bottom is red.", "Yes, it is.", "Red", "yes", "red.", "No."]
PERMUTED = ["The color at the bottom is blue.", "No, the circle is not below it.", "It is not red", "Yes", "reddish", "no"]


def test_the_studys_files_give_the_index_by_group(tmp_path):
    original, permuted = lines(tmp_path / "a.jsonl", study(IN_PLACE)), lines(tmp_path / "b.jsonl", study(PERMUTED)[::-1])
    frame = read_answers(original, permuted)
    right = frame.pivot(index="id", columns="condition", values="correct")
    assert right.loc["0: What color is at the bottom?"].to_dict() == {"original": True, "permuted": False}
    assert frame.groupby("condition")["correct"].sum().to_dict() == {"original": 5, "permuted": 1}
    assert frame.loc[frame["condition"] == "original", "cluster"].tolist() == ["0", "0", "1", "1", "2", "2"]
    assert set(frame.loc[frame["group"] == "Color_abs", "graded_by"]) == {"contains"}
    assert set(frame.loc[frame["group"] == "Shape_rel", "graded_by"]) == {"choices"}  # yes or no
    table = psi_from_answers(original, permuted, chance={"Shape_rel": 0.5}).set_index("group")
    assert table["psi"].to_dict() == pytest.approx({"Color_abs": 1.0, "Shape_rel": 0.5})
    assert table["kind"].to_dict() == {"Color_abs": "Color", "Shape_rel": "Shape"}
    assert table.loc["Shape_rel", "psi_at_chance"] == pytest.approx(1 - 0.5 / (2 / 3))
    assert table.attrs["unmatched"] == {"original": [], "permuted": []}
    assert permutation.psi_from_answers is psi_from_answers


def test_every_format_gives_the_same(tmp_path):
    rows = pd.DataFrame(
        {"id": ["007", "8", "9"], "expected": ["None", "left", "right"], "answer": ["none", "left", "left"], "group": "x"}
    )
    other = rows.assign(answer=["none", "right", "right"])
    found = []
    for name, write in (
        ("csv", lambda frame, path: frame.to_csv(path, index=False)),
        ("parquet", lambda frame, path: frame.to_parquet(path)),
        ("jsonl", lambda frame, path: lines(path, frame.to_dict("records"))),
    ):
        paths = [tmp_path / f"{place}.{name}" for place in "ab"]
        for frame, path in zip((rows, other), paths, strict=True):
            write(frame, path)
        found.append(read_answers(*paths))
    assert found[0]["id"].tolist() == ["007", "8", "9"] * 2 and found[0]["correct"].tolist() == [
        True,
        True,
        False,
        True,
        False,
        True,
    ]
    for frame in found[1:]:
        pd.testing.assert_frame_equal(frame, found[0])


def test_our_own_table_read_back_gives_the_same_index(tmp_path):
    rng = np.random.default_rng(0)
    ids, choices = [f"q{i}" for i in range(40)], ["left", "right"]
    rows = {"id": ids, "group": "relation.horizontal", "kind": "spatial", "cluster": [f"p{i // 2}" for i in range(40)]}
    frames = {}
    for condition, wrong in (("original", 0.1), ("permuted", 0.5)):
        expected = rng.choice(choices, 40)
        expected = frames["original"]["expected"] if frames else expected
        flip = rng.random(40) < wrong
        answer = [choices[(choices.index(one) + swap) % 2] for one, swap in zip(expected, flip, strict=True)]
        frames[condition] = pd.DataFrame(
            {**rows, "expected": expected, "answer": answer, "correct": ~flip, "choices": [choices] * 40}
        )
        frames[condition].to_parquet(tmp_path / f"{condition}.parquet")
        frames[condition].drop(columns="correct").assign(choices=json.dumps(choices)).to_csv(
            tmp_path / f"{condition}.csv", index=False
        )
    parts = [
        frames[name].assign(condition=name, draw=draw, permutation=how, moved=0.0)
        for name, draw, how in (("original", -1, "in place"), ("permuted", 0, "permuted"))
    ]
    expected = psi_table(pd.concat(parts), seed=1).drop(columns="moved")
    for suffix in ("parquet", "csv"):  # by the column `correct`, then by grading
        found = psi_from_answers(*(tmp_path / f"{name}.{suffix}" for name in ("original", "permuted")), seed=1)
        pd.testing.assert_frame_equal(found.drop(columns="moved"), expected)


@pytest.mark.parametrize(
    ("expected", "answer", "choices", "right"),
    [
        ("red", "it is red", None, {"auto": True, "exact": False, "contains": True}),
        ("red", "Red.", None, {"auto": True, "exact": True, "contains": True}),
        ("red", "reddish", None, {"auto": False, "exact": False, "contains": False}),
        ("red", "not red", None, {"auto": False, "exact": False, "contains": False}),
        ("red", "", None, {"auto": False, "exact": False, "contains": False}),
        ("red circle", "the red  circle, I think", None, {"auto": True, "exact": False, "contains": True}),
        ("left", "left or right", ["left", "right"], {"auto": False, "exact": False, "contains": True}),
        ("A", "A", ["A", "B"], {"auto": True, "exact": True, "contains": True}),
        ("no", "Yes, there is no doubt", None, {"auto": False, "exact": False, "contains": True}),
        ("No", "no, it is above", None, {"auto": True, "exact": False, "contains": True}),
    ],
)
def test_grading_rules(tmp_path, expected, answer, choices, right):
    row = {"id": "q", "expected": expected, "answer": answer, "choices": choices}
    paths = [lines(tmp_path / f"{name}.jsonl", [row]) for name in "ab"]
    for grader, verdict in right.items():
        assert read_answers(*paths, grader)["correct"].tolist() == [verdict] * 2, grader
    last = read_answers(*paths, lambda expected, answer, choices: len(answer) > 5)
    assert last["correct"].tolist() == [len(answer) > 5] * 2
    with pytest.raises(ValueError, match="grader 'llm' is unknown"):
        read_answers(*paths, "llm")


def test_on_pope_a_model_that_always_says_yes_when_permuted_loses_half(tmp_path):
    """3,000 real questions, half of them yes, six about each of 500 pictures; answers as models give them."""
    root = os.environ.get("SPATIALPROBES_REAL_DATA")
    if not root:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no POPE questions here")
    asked = [json.loads(line) for line in (Path(root) / "questions" / "coco_pope_popular.jsonl").read_text().splitlines()]
    words = {"yes": "Yes, there is one in the image.", "no": "No, there isn't."}
    paths = []
    for name, say in (("original", lambda label: words[label]), ("permuted", lambda label: words["yes"])):
        rows = [
            {
                "entry_id": one["image"],
                "question": one["text"],
                "correct_answer": one["label"],
                "model_response": say(one["label"]),
            }
            for one in asked
        ]
        paths.append(lines(tmp_path / f"{name}.jsonl", rows))
    found = psi_from_answers(*paths, chance={"all": 0.5}).iloc[0]
    assert (found["n"], found["clusters"]) == (3000, 500)
    assert (found["accuracy"], found["accuracy_permuted"]) == (1.0, 0.5)
    assert found["psi"] == found["psi_at_chance"] == 0.5 and 0.48 < found["low"] < 0.5 < found["high"] < 0.52


def test_unmatched_ids_are_counted_and_listed(tmp_path):
    rows = [{"id": i, "expected": "a", "answer": "a"} for i in range(5)]
    original, permuted = lines(tmp_path / "a.jsonl", rows[:4]), lines(tmp_path / "b.jsonl", rows[1:])
    with pytest.warns(UserWarning, match="2 ids are in one of the two answer files only and left out, '0' among them"):
        frame = read_answers(original, permuted)
    assert frame["id"].tolist() == ["1", "2", "3"] * 2
    assert frame.attrs["unmatched"] == {"original": ["0"], "permuted": ["4"]}


@settings(deadline=None, max_examples=12)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=3, max_size=15), st.randoms())
def test_pairing_heeds_ids_not_the_order_of_lines(tmp_path_factory, verdicts, random):
    folder = tmp_path_factory.mktemp("answers")
    columns = list(zip(*verdicts, strict=True))
    paths = []
    for name, right in zip("ab", columns, strict=True):
        rows = [{"id": f"q{i}", "correct": bool(one)} for i, one in enumerate(right)]
        random.shuffle(rows)
        paths.append(lines(folder / f"{name}.jsonl", rows))
    frame = read_answers(*paths).set_index(["condition", "id"])["correct"]
    for i, (original, permuted) in enumerate(verdicts):
        assert (frame["original", f"q{i}"], frame["permuted", f"q{i}"]) == (original, permuted)
    table = psi_from_answers(*paths).iloc[0]
    assert np.isnan(table["psi"]) if not any(columns[0]) else table["psi"] == pytest.approx(1 - sum(columns[1]) / sum(columns[0]))


GOOD = [{"id": "q", "expected": "a", "answer": "a"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "a.jsonl: no rows"),
        ([{"id": "q", "answer": "a"}], "a.jsonl: no column 'expected'; there: id, answer; legal: entry_id"),
        ([{"expected": "a", "answer": "a"}], "no column 'id'"),
        ([{"entry_id": 1, "model_response": "a", "question": "?"}], "no column 'correct_answer' beside 'model_response'"),
        ([*GOOD, *GOOD], "'q' stands twice"),
        ([*GOOD, {"id": None, "expected": "a", "answer": "a"}], "row 2 has no id"),
        ([{"id": "other", "expected": "a", "answer": "a"}], "share no id: 'other' is not 'q'"),
        ([{"id": "q", "expected": "b", "answer": "a"}], "'q' expects 'b' in one file and 'a' in the other"),
        ([{"id": "q", "expected": "", "answer": "a"}], "'q' has no expected answer"),
        ([{"id": "q", "correct": "maybe"}], "correct='maybe' is neither true nor false"),
        ([{**GOOD[0], "choices": "a, b"}], "choices 'a, b' are no JSON list"),
        ([{**GOOD[0], "choices": 5}], "a.jsonl: choices 5 are no list of texts"),
        ([{**GOOD[0], "choices": '"abc"'}], "choices abc are no list of texts"),
        ([{**GOOD[0], "choices": {"a": 1, "b": 2}}], "choices {'a': 1, 'b': 2} are no list of texts"),
        ([{**GOOD[0], "choices": ["a", ["b"]]}], "are no list of texts"),
        ([{**GOOD[0], "choices": ["a", " "]}], "are no list of texts"),
        ([{**GOOD[0], "choices": "[" * 50_000}], "a.jsonl: choices '\\[+ are no JSON list"),
        ([{**GOOD[0], "choices": ["b", "c"]}], "'q' expects 'a', which is none of its choices: b, c"),
        ([{**GOOD[0], "choices": ["a", "b" * 100_000]}], "choices of 100,001 characters"),
        ([*GOOD, {"id": " ", "expected": "a", "answer": "a"}], "row 2 has no id"),
        ([{"entry_id": None, "question": "?", "correct_answer": "a", "model_response": "a"}], "row 1 has no entry_id"),
        ([*GOOD, {"id": "r", "expected": "a", "answer": "a " * 60_000}], "row 2: answer has 120,000 characters; at most 100,000"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, rows, message):
    paths = lines(tmp_path / "a.jsonl", rows), lines(tmp_path / "b.jsonl", GOOD)
    with pytest.raises(ValueError, match=message):
        read_answers(*paths)


def test_broken_files_are_named(tmp_path):
    good = lines(tmp_path / "good.jsonl", GOOD)
    with pytest.raises(FileNotFoundError, match=r"no answer file .*gone\.csv"):
        read_answers(tmp_path / "gone.csv", good)
    for name, content, message in (
        ("a.jsonl", b'{"id": 1}\n{oops', "a.jsonl, line 2"),
        ("b.jsonl", b"[1]\n", "line 1: not an object but list"),
        ("c.txt", b"id", "ends in .jsonl, .csv or .parquet"),
        ("d.parquet", b"no parquet", "d.parquet: not readable"),
        ("e.csv", b"", "e.csv: not readable"),
        ("f.jsonl", b"\xff\xfe\n", "f.jsonl: not UTF-8 at byte 0"),
        ("g.jsonl", b"{}\n" + b"[" * 100_000 + b"]" * 100_000, "g.jsonl, line 2: .*nested too deep"),
        ("h.jsonl", b'{}\n{"x": "' + b"a" * 10_000_000 + b'"}', "h.jsonl, line 2: 10,000,009 characters; at most 10,000,000"),
        ("i.csv", b"id,id,expected,answer\n1,2,a,a\n", "i.csv: not readable: two columns 'id'"),
        ("j.csv", b"id,expected,answer\n1,a,a\n,a,a\n", "j.csv: row 2 has no id"),
        ("k.csv", b"id,expected,answer\n1,a,a\n2,a,a,b\n", "k.csv: not readable: line 3: 4 fields, 3 columns"),
        ("l.csv", b"id,expected,answer\n1,a," + b"a " * 500_000, "l.csv: not readable: line 2: field larger than field limit"),
        ("m.csv", b'id,expected,answer\n1,a,"a\n', "m.csv: not readable: line 2: unexpected end of data"),
        ("n.csv", b"id,expected,answer\n1,a,\xe9\n", "n.csv: not readable: 'utf-8' codec can't decode"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_answers(tmp_path / name, good)


def test_a_table_of_text_is_read_as_it_stands(tmp_path):
    """Quotes, blank lines, commas and line ends inside an answer; a byte-order mark before the names."""
    (tmp_path / "a.csv").write_bytes('\ufeffid,expected,answer\r\n007,NA,"it is ""NA"",\nI think"\r\n\r\n8,é,é\r\n'.encode())
    found = read_answers(tmp_path / "a.csv", tmp_path / "a.csv")
    assert found["id"].tolist() == ["007", "8"] * 2 and found["correct"].all()
    assert found["answer"][0] == 'it is "NA",\nI think'


def test_choices_may_be_numbers(tmp_path):
    row = {"id": "q", "expected": "2", "answer": "there are 2"}
    pd.DataFrame([row | {"choices": [1, 2]}]).to_parquet(tmp_path / "a.parquet")
    lines(tmp_path / "a.jsonl", [row | {"choices": "[1, 2]"}])
    found = read_answers(tmp_path / "a.parquet", tmp_path / "a.jsonl")
    assert found["correct"].all() and set(found["graded_by"]) == {"choices"}
