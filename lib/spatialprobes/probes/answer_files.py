"""Answers that were given elsewhere: two files, vision tokens in place and permuted, as one table for the index.

Reads the study's own answer files (JSON lines of entry_id, test_category, qa_category, question, correct_answer, model_response,
...; Beyond Semantics, evaluation) and tables with id, expected and answer, or with a column that says what was correct. Grades by
rule, where the study asked a language model. Knows files and words; no model.
"""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from spatialprobes.parsing import parse, plain
from spatialprobes.probes.psi import IN_PLACE, ORIGINAL, PERMUTED, psi_table
from spatialprobes.sources.json_files import parse_json

MAX_BYTES = 500_000_000
MAX_LINE = 10_000_000  # characters of a line of JSON
MAX_TEXT = 100_000  # characters of an id, an answer or a question's choices; answers are words or sentences
YES_NO = ("yes", "no")
TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no")
STUDY = ("entry_id", "question", "correct_answer", "model_response")  # one picture (entry) has several questions

Grader = Literal["auto", "exact", "contains"] | Callable[[str, str, "list[str] | None"], bool]


def psi_from_answers(
    original: str | Path,
    permuted: str | Path,
    grader: Grader = "auto",
    chance: Mapping[str, float] | None = None,
    by: Literal["group", "kind"] = "group",
    seed: int = 0,
) -> pd.DataFrame:
    """`psi.psi_table` of two answer files; reads and raises as `read_answers`, whose `attrs` it keeps."""
    frame = read_answers(original, permuted, grader)
    table = psi_table(frame, chance, by, seed)
    table.attrs = dict(frame.attrs)
    return table


def read_answers(original: str | Path, permuted: str | Path, grader: Grader = "auto") -> pd.DataFrame:
    """Two files of answers to the same questions, paired by id: a row a question and condition, as of `permutation.measure`.

    Columns: id, group, kind, cluster, expected, answer, correct, graded_by, condition, draw, permutation.
    Files: .jsonl, .csv or .parquet. Either the study's columns (`STUDY`; the id is entry and question, the cluster the entry, the
    group qa_category and the kind test_category, where there are such columns), or ``id`` with ``correct`` (true or false, 1 or
    0), or ``id``, ``expected`` and ``answer``; then also ``group``, ``kind``, ``cluster`` and ``choices`` (a list, or its JSON).
    A file with ``correct`` is taken at its word, and graded_by says so.

    grader: "auto" reads one of the choices off the answer (`parsing.parse`) where they are known, or where the expected answer is
    yes or no; else "contains": the expected words stand in the answer, whole and not negated ("left or right" contains "left":
    where answers hedge, give choices). "exact": equal but for case, blanks and outer punctuation. Or a function of (expected,
    answer, choices).
    Ids in one file only are left out, counted in a warning, and listed in ``attrs["unmatched"]``.
    Raises FileNotFoundError; ValueError naming the file for an unknown kind of file, a column that is missing or repeated, an id
    that is missing or repeated, an answer file without rows, choices that are no list, texts longer than `MAX_TEXT`, no common
    id, and expected answers that differ between the files or are none of the question's choices.
    """
    frames = {ORIGINAL: _answers(Path(original)), PERMUTED: _answers(Path(permuted))}
    here, there = (frame["id"] for frame in frames.values())
    unmatched = {ORIGINAL: here[~here.isin(set(there))].tolist(), PERMUTED: there[~there.isin(set(here))].tolist()}
    common = set(here) & set(there)
    if not common:
        raise ValueError(f"{original} and {permuted} share no id: {here.iloc[0]!r} is not {there.iloc[0]!r}")
    if alone := sum(map(len, unmatched.values())):
        first = (unmatched[ORIGINAL] + unmatched[PERMUTED])[0]
        warnings.warn(f"{alone} ids are in one of the two answer files only and left out, {first!r} among them", stacklevel=2)
    parts = []
    for condition, frame in frames.items():
        part = frame[frame["id"].isin(common)].reset_index(drop=True)
        graded = [_graded(row, grader) for row in part.to_dict("records")]
        part["correct"], part["graded_by"] = [right for right, _ in graded], [how for _, how in graded]
        name = IN_PLACE if condition == ORIGINAL else "permuted"
        parts.append(part.assign(condition=condition, draw=-1 if condition == ORIGINAL else 0, permutation=name))
    _check_expected(parts[0], parts[1])
    labels = parts[0].set_index("id")[["group", "kind", "cluster"]]
    for column in labels:  # one question, one group, whatever the other file calls it
        parts[1][column] = parts[1]["id"].map(labels[column])
    found = pd.concat(parts, ignore_index=True)
    columns = ["id", "group", "kind", "cluster", "expected", "answer", "correct", "graded_by", "condition", "draw", "permutation"]
    found = found[columns]
    found.attrs = {"unmatched": unmatched}
    return found


def _answers(path: Path) -> pd.DataFrame:
    """[id, group, kind, cluster, expected, answer, choices, given], text all of it; given: the file's own verdict or None."""
    frame = _rows(path)
    if frame.empty:
        raise ValueError(f"{path}: no rows")
    if "model_response" in frame:
        frame = _renamed(frame, path)
    wanted = ("id", "correct") if "correct" in frame else ("id", "expected", "answer")
    if missing := [name for name in wanted if name not in frame]:
        there = ", ".join(map(str, frame.columns))
        raise ValueError(
            f"{path}: no column {missing[0]!r}; there: {there}; legal: {', '.join(STUDY)}; id, expected, answer; id, correct"
        )
    ids = _present(frame["id"], path, "id")
    if (twice := ids.duplicated()).any():
        raise ValueError(f"{path}: {ids[twice].iloc[0]!r} stands twice; ids must be unique")
    found = pd.DataFrame({"id": ids})
    found["group"] = _text(frame["group"]) if "group" in frame else "all"
    found["kind"] = _text(frame["kind"]) if "kind" in frame else found["group"].str.split(".").str[0]
    found["cluster"] = _text(frame["cluster"]) if "cluster" in frame else ids
    for name in ("expected", "answer"):
        found[name] = _text(frame[name]) if name in frame else ""
    for name in ("id", "expected", "answer"):
        if (long := found[name].str.len().to_numpy() > MAX_TEXT).any():
            size = len(found[name][long].iloc[0])
            raise ValueError(f"{path}: row {long.argmax() + 1}: {name} has {size:,} characters; at most {MAX_TEXT:,}")
    found["choices"] = [_choices(value, path) for value in frame["choices"]] if "choices" in frame else None
    found["given"] = [_verdict(value, path) for value in frame["correct"]] if "correct" in frame else None
    return found.astype({"choices": object, "given": object})


def _renamed(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    if missing := [name for name in STUDY if name not in frame]:
        raise ValueError(
            f"{path}: no column {missing[0]!r} beside 'model_response'; the file has {', '.join(map(str, frame.columns))}"
        )
    known = {"correct_answer": "expected", "model_response": "answer", "qa_category": "group", "test_category": "kind"}
    entry = _present(frame["entry_id"], path, "entry_id")
    return frame.rename(columns=known).assign(id=entry + ": " + _text(frame["question"]), cluster=entry)


def _rows(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"no answer file {path}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes; at most {MAX_BYTES:,}")
    if path.suffix == ".jsonl":
        return pd.DataFrame(_json_lines(path))
    try:
        if path.suffix == ".csv":
            return _csv(path)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable: {error}") from error
    raise ValueError(f"{path}: an answer file ends in .jsonl, .csv or .parquet")


def _csv(path: Path) -> pd.DataFrame:
    """Text as it stands ("None" may be an answer, "007" an id). The reader itself refuses fields above 131,072 characters."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, strict=True)
        rows = []
        try:
            for row in filter(None, lines):
                if rows and len(row) != len(rows[0]):
                    raise ValueError(f"line {lines.line_num}: {len(row)} fields, {len(rows[0])} columns")
                rows.append(row)
        except csv.Error as error:
            raise ValueError(f"line {lines.line_num}: {error}") from error
    if not rows:
        raise ValueError("no names of columns")
    if twice := [name for name in rows[0] if rows[0].count(name) > 1]:
        raise ValueError(f"two columns {twice[0]!r}")
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=str)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}") from error
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also cut at separators inside an answer
        if not line.strip():
            continue
        if len(line) > MAX_LINE:
            raise ValueError(f"{path}, line {number}: {len(line):,} characters; at most {MAX_LINE:,}")
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: not an object but {type(row).__name__}")
        rows.append(row)
    return rows


def _text(column: pd.Series) -> pd.Series:
    """As text; whole numbers without a point, missing values empty."""
    return column.map(
        lambda value: (
            ""
            if value is None or value != value
            else str(int(value))
            if isinstance(value, float) and value.is_integer()
            else str(value)
        )
    )


def _present(column: pd.Series, path: Path, name: str) -> pd.Series:
    """As text. Raises ValueError naming the row where there is none."""
    text = _text(column)
    if (blank := text.str.strip().eq("")).any():
        raise ValueError(f"{path}: row {int(blank.to_numpy().argmax()) + 1} has no {name}")
    return text


def _choices(value: Any, path: Path) -> list[str] | None:
    if isinstance(value, str):
        try:
            value = parse_json(value, "choices") if value.strip() else None
        except ValueError as error:
            raise ValueError(f"{path}: choices {value!r:.80} are no JSON list") from error
    if value is None or (isinstance(value, float) and value != value):
        return None
    choices = value.tolist() if isinstance(value, np.ndarray) else value  # parquet's lists are arrays
    if not isinstance(choices, list) or not all(isinstance(one, str | int | float) and str(one).strip() for one in choices):
        raise ValueError(f"{path}: choices {value!s:.80} are no list of texts")
    choices = [str(one) for one in choices]
    if (size := sum(map(len, choices))) > MAX_TEXT:
        raise ValueError(f"{path}: choices of {size:,} characters; at most {MAX_TEXT:,}")
    return choices


def _verdict(value: Any, path: Path) -> bool:
    word = str(value).strip().lower()
    if word not in TRUE + FALSE:
        raise ValueError(f"{path}: correct={value!r} is neither true nor false")
    return word in TRUE


def _graded(row: dict[str, Any], grader: Grader) -> tuple[bool, str]:
    """Right or not, and by which rule."""
    if row["given"] is not None:
        return row["given"], "file"
    expected, answer, choices = row["expected"], row["answer"], row["choices"]
    if callable(grader):
        return bool(grader(expected, answer, choices)), getattr(grader, "__name__", "function")
    if grader not in ("auto", "exact", "contains"):
        raise ValueError(f"grader {grader!r} is unknown; 'auto', 'exact', 'contains' or a function")
    if not plain(expected):
        raise ValueError(f"{row['id']!r} has no expected answer")
    if grader == "exact":
        return plain(answer) == plain(expected), "exact"
    if grader == "auto" and choices and plain(expected) not in map(plain, choices):
        raise ValueError(f"{row['id']!r} expects {expected!r}, which is none of its choices: {', '.join(choices):.200}")
    if grader == "auto" and (choices or plain(expected) in YES_NO):
        found = parse(answer, choices or YES_NO)
        return found is not None and plain(found) == plain(expected), "choices"
    return parse(answer, [expected]) is not None, "contains"


def _check_expected(first: pd.DataFrame, second: pd.DataFrame) -> None:
    both = first.set_index("id")["expected"].map(plain), second.set_index("id")["expected"].map(plain)
    differ = both[0].ne(both[1].reindex(both[0].index)) & both[0].ne("") & both[1].reindex(both[0].index).ne("")
    if differ.any():
        name = differ.index[differ.to_numpy().argmax()]
        raise ValueError(
            f"{name!r} expects {both[0][name]!r} in one file and {both[1][name]!r} in the other: not the same questions"
        )
