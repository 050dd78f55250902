"""Swap pairs from a table: the study's TSV, parquet with its columns, or a ``datasets`` data set; and pairs written as that TSV.

Columns, a row a pair: ``original_question``, ``swapped_question``, ``original_answer``, ``swapped_answer``, ``category`` (left
right above under far close) and the picture, in one of ``image_base64``, ``image`` (bytes, or {"bytes": ...} as ``datasets``
keeps them) and ``image_path`` (within the folder ``images``), the first of these that is there. Where there are: ``group``
(horizontal vertical distance; it follows from the category), ``index`` and ``question_id`` (names of the row), ``subject`` and
``reference`` (else found by comparing the two questions, ``swap_words.py``). Others are passed over.

Nothing is decoded while indexing but base64 and the pictures' headers. Rows are read when used, pictures decoded when used.
Rows that are not right are left out and reported. Knows tables (``swap_rows.py``), words and pictures; nothing of models.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.images import MAX_PIXELS, ImageError, check_header, open_image, png_bytes
from spatialprobes.pairs import CATEGORIES, GROUP_OF, GROUPS, OPPOSITE, Pair, Quad
from spatialprobes.sources.swap_pictures import PICTURES, RowImage, picture
from spatialprobes.sources.swap_quads import by_words, read_quads
from spatialprobes.sources.swap_rows import Bad, Row, Rows, open_rows, text
from spatialprobes.sources.swap_words import roles

if TYPE_CHECKING:
    from jaxtyping import Int

QUESTIONS = ("original_question", "swapped_question")
ANSWERS = ("original_answer", "swapped_answer")
NEEDED = (*QUESTIONS, *ANSWERS, "category")
NAMES = ("index", "question_id")
OPTIONAL = ("group", *NAMES, "subject", "reference")
COLUMNS = ("image_base64", *NEEDED, "group", *NAMES)  # of the study's TSV, and of what `write` writes
MEANS = {"below": "under", "beneath": "under", "near": "close", "nearby": "close", "distant": "far"}  # the study's synonyms


@dataclass(frozen=True, eq=False)
class SwapData:
    """pairs: those that are right, made when asked for. quads: see `read`. problems: [line, problem] of the rows left out, and of
    those that make no quad where quads were asked for. rows: [line, pair, question_id, category, group, cluster], one row a pair.
    left_out: how many rows are not among the pairs.
    """

    pairs: Sequence[Pair]
    quads: list[Quad]
    problems: pd.DataFrame
    rows: pd.DataFrame
    left_out: int

    def report(self, most: int = 5) -> str:
        """How many pairs and quads there are and how many rows were left out, with the first few reasons."""
        total = len(self.pairs) + self.left_out
        lines = [f"{len(self.pairs):,} pairs of {total:,} rows ({self.left_out:,} left out), {len(self.quads):,} quads"]
        lines += [f"  line {line}: {problem}" for line, problem in self.problems.head(most).itertuples(index=False)]
        if len(self.problems) > most:
            lines.append(f"  and {len(self.problems) - most:,} more")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class RowPairs(Sequence[Pair]):
    """Pairs of the rows of a table, each made anew whenever it is asked for: what is held is where each row lies."""

    rows: Rows
    column: str
    images: Path | None
    max_pixels: int
    lines: Int[np.ndarray, " pair"]
    places: Int[np.ndarray, "pair 2"]
    names: list[str]
    clusters: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, number: int) -> Pair: ...
    @overload
    def __getitem__(self, number: slice) -> RowPairs: ...
    def __getitem__(self, number):
        if isinstance(number, slice):
            kept = (part[number] for part in (self.lines, self.places, self.names, self.clusters))
            return RowPairs(self.rows, self.column, self.images, self.max_pixels, *kept)
        id, cluster = self.names[number], self.clusters[number]
        line, place = int(self.lines[number]), tuple(map(int, self.places[number]))
        image = RowImage(self.rows, place, line, self.column, self.images, self.max_pixels)
        return _pair(_texts(self.rows.fetch(place, _words(self.rows))), id, cluster, line, image)


def read(
    source: Any,
    *,
    images: str | Path | None = None,
    quads: str | Path | None = None,
    check_images: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> SwapData:
    """The pairs of a table, and what is wrong with its other rows.

    source: a TSV or parquet file, a folder written by ``Dataset.save_to_disk``, or a data set. images: the folder in which the
    paths of the column image_path are looked up; none may lead out of it. quads: "words" for quads of the rows that ask about
    the same two words of one picture vertically and by distance, or the file of an object-box cache (``swap_cache.py``); none if
    None. check_images: decode every picture once now, where otherwise its header alone is looked at. max_pixels: pictures with
    more are refused.

    A pair's id is the row's ``index``, or its ``question_id``, or "line-<n>" in a table that has neither; its cluster the picture
    (a hash of its bytes, or its path). The answers are given in the category's words (under for below); ``meta`` holds line,
    index, question_id, subject and reference (None where unknown).
    Raises FileNotFoundError; ValueError naming columns that the table lacks, for image_path without `images`, and as `open_rows`.
    """
    rows = open_rows(source)
    if lacking := [column for column in NEEDED if column not in rows.columns]:
        raise ValueError(f"{rows.name}: no column {', '.join(lacking)}; there: {', '.join(rows.columns)[:500]}")
    column = next((column for column in PICTURES if column in rows.columns), None)
    if column is None:
        raise ValueError(f"{rows.name}: no picture; one of the columns {', '.join(PICTURES)} is needed")
    if column == "image_path" and images is None:
        raise ValueError(f"{rows.name}: its pictures are paths (image_path); give the folder that holds them as images=")
    folder = None if images is None else Path(images)
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of pictures")

    table, problems, places, seen = [], [], [], {}
    for row in rows.rows((*_words(rows), column)):
        try:
            texts, id, cluster = _checked(row, column, folder, check_images, max_pixels, seen)
        except ValueError as error:
            problems.append((row.line, str(error)))
            continue
        seen[id] = row.line
        places.append(row.place)
        table.append((row.line, id, texts["question_id"], texts["category"], GROUP_OF[texts["category"]], cluster))
    frame = pd.DataFrame(table, columns=["line", "pair", "question_id", "category", "group", "cluster"])
    pairs = RowPairs(
        rows,
        column,
        folder,
        max_pixels,
        frame["line"].to_numpy(np.int64),
        np.array(places, np.int64).reshape(-1, 2),
        frame["pair"].to_list(),
        frame["cluster"].to_list(),
    )
    left_out, found = len(problems), []
    if quads is not None:
        found, unmatched = by_words(pairs) if quads == "words" else read_quads(pairs, quads)
        problems.extend(unmatched.itertuples(index=False, name=None))
    return SwapData(pairs, found, pd.DataFrame(problems, columns=["line", "problem"]), frame, left_out)


def write(pairs: Iterable[Pair], path: str | Path) -> Path:
    """Write pairs as the study's TSV: its columns, pictures as PNG in base64, the pair's id as index (its question_id, where
    ``meta`` knows one). Objects are not in it: ``swap_cache.write_cache`` keeps them. Pictures are decoded one at a time.

    The file stands under its name once it is whole. Raises ValueError for an id that comes twice, ImageError for a picture.
    """
    path, seen = Path(path), set()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            out = csv.writer(file, "excel-tab")  # lines end in CRLF: so a lone CR within a field is quoted
            out.writerow(COLUMNS)
            for pair in pairs:
                if pair.id in seen:
                    raise ValueError(f"two pairs have the id {pair.id!r}")
                seen.add(pair.id)
                encoded = base64.b64encode(png_bytes(open_image(pair.original.image, name=pair.id))).decode()
                questions = [member.question for member in pair.members]
                answers = [member.answer for member in pair.members]
                names = (pair.id, pair.original.meta.get("question_id") or pair.id)
                out.writerow([encoded, *questions, *answers, pair.category, pair.group, *names])
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _checked(
    row: Row | Bad, column: str, folder: Path | None, decode: bool, max_pixels: int, seen: dict[str, int]
) -> tuple[dict[str, str], str, str]:
    """(texts, id, cluster) of a row that is right. Raises ValueError that says what is not."""
    if isinstance(row, Bad):
        raise ValueError(row.problem)
    texts = _texts(row.values)
    for name in NEEDED:
        if not texts[name]:
            raise ValueError(f"no {name}")
    category, group = texts["category"], texts["group"]
    if category not in CATEGORIES:
        raise ValueError(f"category {category!r} is unknown; it must be one of {', '.join(CATEGORIES)}")
    if group and group != GROUP_OF[category]:
        raise ValueError(f"category {category!r} is not of the group {group!r} but of {GROUP_OF[category]!r}")
    for name, expected in zip(ANSWERS, (category, OPPOSITE[category]), strict=True):
        if texts[name] != expected:
            raise ValueError(f"{name} is {texts[name]!r}; for the category {category!r} it must be {expected!r}")
    if texts[QUESTIONS[0]] == texts[QUESTIONS[1]]:
        raise ValueError("original_question and swapped_question are the same")
    name = next((name for name in NAMES if name in row.values), None)
    id = texts[name] if name else f"line-{row.line}"
    if not id:
        raise ValueError(f"no {name}")
    if id in seen:
        raise ValueError(f"{name} {id!r} stands already on line {seen[id]}")
    try:
        source = picture(row.values[column], column, folder)
        (open_image if decode else check_header)(source, name=column, max_pixels=max_pixels)
    except ImageError as error:
        raise ValueError(f"{column}: {error.reason}") from error
    if isinstance(source, Path):
        return texts, id, PurePosixPath(text(row.values[column], column)).as_posix()
    return texts, id, f"image-{hashlib.blake2b(source, digest_size=8).hexdigest()}"


def _words(rows: Rows) -> list[str]:
    """The columns of words that there are."""
    return [column for column in (*NEEDED, *OPTIONAL) if column in rows.columns]


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """The row's words, outer blanks removed; "" where there are none. Category, group and answers in small letters, answers
    in the categories' words. Raises ValueError for what is no UTF-8 text."""
    texts = {name: text(values.get(name), name) for name in (*NEEDED, *OPTIONAL)}
    for name in ("category", "group", *ANSWERS):
        texts[name] = texts[name].lower()
    for name in ANSWERS:
        word = texts[name].rstrip(".")
        texts[name] = MEANS.get(word, word)
    return texts


def _pair(texts: dict[str, str], id: str, cluster: str, line: int, image: RowImage) -> Pair:
    category = texts["category"]
    named = _roles(texts)
    known = {"line": line} | {name: texts[name] or None for name in NAMES}
    members = []
    for place, (member, other) in enumerate((("original", "swapped"), ("swapped", "original"))):
        answer = category if place == 0 else OPPOSITE[category]
        subject, reference = named[place]
        members.append(
            Example(
                id=f"{id}:{member}",
                image=image,
                question=texts[QUESTIONS[place]],
                answer=answer,
                choices=list(GROUPS[GROUP_OF[category]]),
                category=answer,
                group=GROUP_OF[category],
                cluster=cluster,
                twin=f"{id}:{other}",
                meta={**known, "subject": subject, "reference": reference},
            )
        )
    return Pair(id, *members)


def _roles(texts: dict[str, str]) -> tuple[tuple[str | None, str | None], tuple[str | None, str | None]]:
    """((subject, reference) of the original, of the swapped): the columns', where both stand in both questions, else as found."""
    subject, reference = texts["subject"], texts["reference"]
    questions = [texts[name] for name in QUESTIONS]
    if subject and reference and all(word.lower() in question.lower() for word in (subject, reference) for question in questions):
        return (subject, reference), (reference, subject)
    return roles(*questions) or ((None, None), (None, None))
