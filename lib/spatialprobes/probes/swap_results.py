"""Results of the swap study's own code, read from its folder: tables like ours, and vectors, without any model.

What is damaged or missing is named and the rest is read. Numbers stay as published: no interval, no p value (NaN), and the
standard deviation over pairwise cosines in the column std. Names and layer numbers are in ``swap_layout``, writing in
``swap_export``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatialprobes.pairs import CATEGORIES, GROUP_OF, GROUPS
from spatialprobes.probes.swap_accuracy import CHANCE
from spatialprobes.probes.swap_export import BY, SHORT, summary_rows, write
from spatialprobes.probes.swap_layout import CONSISTENCY, CrossDeltas, Named, layer_of, named
from spatialprobes.probes.swap_states import States
from spatialprobes.probes.swap_vectors import cross_deltas, vectors
from spatialprobes.series import ordered, samples_of
from spatialprobes.sources.json_files import read_object

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["SwapResults", "read", "write"]

MAX_FILES = 20_000  # more is not one model's results
MAX_PAIRS = 10**9
MAX_TEXT = 50_000_000  # bytes of a JSON or CSV file
NONE = {"low": np.nan, "high": np.nan, "p": np.nan, "q": np.nan}
TABLES = {
    "consistency": ["layer", "variant", "measure", "of", "control", "estimate", "low", "high", "p", "q", "n", "clusters",
                    "reliable", "upper_triangle", "std"],
    "alignment": ["layer", "variant", "measure", "definition", "control", "estimate", "low", "high", "p", "q", "n", "clusters",
                  "std"],
    "similarity": ["layer", "variant", "row", "column", "cosine", "n_row", "n_column"],
    "accuracy": ["group", "category", "member", "by", "estimate", "low", "high", "chance", "n", "clusters", "unparsed",
                 "reliable"],
    "validity": ["category", "group", "n", "acc_original", "acc_swapped", "reliable"],
    "answers": ["pair", "member", "category", "group", "cluster", "correct_published"],
    "summary": [],
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SwapResults:
    """What a folder holds. scales: in the study's order. tables: by name (`TABLES`), each with scale and samples first.

    vectors: hidden states by scale, read from the disk when asked for, at the study's 5 layers; a pair's id is its index there,
    and its cluster too where the file names no pictures. quads: the deltas by scale. problems: what was missing or could not be
    read, a line each that begins with the file. ignored: files that are not of the layout.
    """

    scales: list[str]
    tables: dict[str, pd.DataFrame]
    vectors: dict[str, States]
    quads: dict[str, CrossDeltas]
    problems: list[str]
    ignored: list[str]


@dataclass
class _Found:
    """What has been read so far. rows: by table."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in TABLES})
    vectors: dict[str, States] = field(default_factory=dict)
    quads: dict[str, CrossDeltas] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read(folder: str | Path) -> SwapResults:
    """The results of one model in the study's layout, ``csv/``, ``json/`` and ``npz/`` in `folder`.

    Layers are ours (the study's plus 1), control and definition as our tables call them ("as_published"); the study's mean of
    100 shuffles stands as control "shuffled" of the alignment. reliable: by the study's own file, missing without it; a group is
    where both categories are. Links out of the folder are not followed, no file is larger than it may be, nothing is unpickled.
    Raises FileNotFoundError or NotADirectoryError; ValueError where nothing of the layout is there, or far too many files are.
    """
    folder = Path(folder)
    if not folder.is_dir():
        kind, problem = (NotADirectoryError, "is not a folder") if folder.exists() else (FileNotFoundError, "no such folder")
        raise kind(f"{folder}: {problem}")
    found, files, ignored = _Found(), {}, []
    for name, problem in _walk(folder):
        meaning = named(name)
        if meaning is None:
            ignored.append(name)
        elif problem:
            found.problems.append(f"{name}: {problem}")
        elif twin := next((one for one, other in files.items() if other == meaning), None):
            found.problems.append(f"{name}: says the same as {twin}; left out")
        else:
            files[name] = meaning
    if not files and not found.problems:
        raise ValueError(f"{folder}: no file of the swap study's layout in it; csv/, json/ and npz/ of one model would be")
    for name, meaning in files.items():
        try:
            _READERS[meaning.kind](folder / name, meaning, found, partial(_note, found.problems, name))
        except (ValueError, OSError) as error:
            found.problems.append(f"{name}: {' '.join(str(error).replace(f'{folder / name}: ', '').split())}")
    scales = ordered(one.scale for one in files.values() if one.scale)
    found.problems += _missing(scales, files.values())
    tables = {name: _table(name, rows, scales) for name, rows in found.rows.items()}
    _mark(tables)
    vectors = {scale: found.vectors[scale] for scale in scales if scale in found.vectors}
    quads = {scale: found.quads[scale] for scale in scales if scale in found.quads}
    return SwapResults(scales, tables, vectors, quads, found.problems, ignored)


def _walk(folder: Path) -> Iterator[tuple[str, str | None]]:
    """(path within the folder, why it is not read or None) of all files, by name."""
    root, count = folder.resolve(), 0
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            count += 1
            if count > MAX_FILES:
                raise ValueError(f"{folder}: more than {MAX_FILES:,} files; is it the folder of one model's results?")
            path = Path(parent, name)
            problem = None
            if not path.resolve().is_relative_to(root):
                problem = "a link out of the folder is not followed"
            elif not path.is_file():
                problem = "is no plain file"
            yield path.relative_to(folder).as_posix(), problem


def _note(problems: list[str], name: str, text: str) -> None:
    problems.append(f"{name}: {text}")


Note = Callable[[str], None]


def _consistency(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    measure = CONSISTENCY[meaning.kind]
    legal = GROUPS if measure == "group" else CATEGORIES
    for key, values in read_object(path, MAX_TEXT).items():
        of = key.rpartition("_L")[0]
        if of not in legal or (layer := layer_of(key, f"{of}_L")) is None:
            note(f"{key!r} is no {'group' if measure == 'group' else 'category'}_L<layer>; left out")
            continue
        if (numbers := _numbers(values, key, ("mean", "std", "n"), note)) is None:
            continue
        mean, std, n = numbers
        row = {"layer": layer, "variant": meaning.variant, "measure": measure, "of": of, "control": "none"}
        published = {"estimate": mean, "upper_triangle": mean, "std": std, "n": n, "clusters": np.nan}
        found.rows["consistency"].append({"scale": meaning.scale, **row, **NONE, **published})


def _alignment(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    for key, values in read_object(path, MAX_TEXT).items():
        if (layer := layer_of(key, "L")) is None:
            note(f"{key!r} is no L<layer>; left out")
            continue
        if _numbers(values, key, ("per_sample_mean", "mean_delta_alignment"), note) is None:
            continue
        known = {
            ("per_sample_mean", "none"): ("per_sample_mean", "per_sample_std"),
            ("mean_delta_alignment", "none"): ("mean_delta_alignment", None),
            ("per_sample_mean", "shuffled"): ("permutation_mean", "permutation_std"),
        }
        names = {name for pair in known.values() for name in pair if name} | {"n_samples"}
        if unknown := sorted(set(values) - names):
            note(f"{key}: {', '.join(unknown)} not known here; left out")
        for (measure, control), (mean, std) in known.items():
            if mean not in values:
                continue
            wanted = tuple(name for name in (mean, std, "n_samples") if name in values)
            if (numbers := _numbers(values, key, wanted, note)) is None:
                continue
            got = dict(zip(wanted, numbers, strict=True))
            row = {"layer": layer, "variant": "all", "measure": measure, "definition": BY, "control": control}
            published = {"estimate": got[mean], "std": got.get(std, np.nan), "n": got.get("n_samples", np.nan)}
            found.rows["alignment"].append({"scale": meaning.scale, **row, **NONE, **published, "clusters": np.nan})


def _pred_stats(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    content = read_object(path, MAX_TEXT)
    if (said := content.get("scale", meaning.scale)) != meaning.scale:
        note(f"says scale {said!r}; its name counts")
    for group in GROUPS:
        names = [f"{group}_n", *(f"{group}_acc_{short}" for short in SHORT.values())]
        if (numbers := _numbers(content, group, tuple(names), note)) is None or numbers[0] == 0:
            continue
        for member, share in zip(SHORT, numbers[1:], strict=True):
            found.rows["accuracy"].append(_answered(meaning.scale, group, "", member, share, numbers[0]))


def _validity(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    for category, values in read_object(path, MAX_TEXT).items():
        if category not in CATEGORIES:
            note(f"{category!r} is no category ({', '.join(CATEGORIES)}); left out")
            continue
        if (numbers := _numbers(values, category, ("n", "acc_orig", "acc_swap"), note)) is None or numbers[0] == 0:
            continue
        reliable = values.get("reliable")
        if not isinstance(reliable, bool):
            note(f"{category}: reliable is {reliable!r}, true or false is wanted; taken as unknown")
            reliable = None
        n, one, other = numbers
        row = {"category": category, "group": GROUP_OF[category], "n": n, "acc_original": one, "acc_swapped": other}
        found.rows["validity"].append({"scale": meaning.scale, **row, "reliable": reliable})
        for member, share in (("original", one), ("swapped", other)):
            found.rows["accuracy"].append(_answered(meaning.scale, GROUP_OF[category], category, member, share, n))


def _answered(scale: str, group: str, category: str, member: str, share: float, n: float) -> dict[str, Any]:
    where = {"scale": scale, "group": group, "category": category, "member": member, "by": BY, "estimate": share}
    chance = CHANCE**2 if member == "both" else CHANCE
    return where | {"low": np.nan, "high": np.nan, "chance": chance, "n": n, "clusters": np.nan, "unparsed": np.nan}


def _similarity(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    grid = pd.read_csv(io.BytesIO(_text(path)), index_col=0, dtype=str)  # numbers by Python's reader, which is exact
    names = [*map(str, grid.index)]
    if names != [*map(str, grid.columns)] or len({*names}) < len(names) or not {*names} <= {*CATEGORIES}:
        raise ValueError(f"rows {names} and columns {[*map(str, grid.columns)]} are not the same categories")
    cosines: Float[np.ndarray, "row column"] = grid.to_numpy(float)
    if (np.abs(cosines) > 1 + 1e-3).any():
        raise ValueError(f"{np.abs(cosines).max():.3g} is no cosine")
    for i, row in enumerate(names):
        for j, column in enumerate(names):
            where = {"scale": meaning.scale, "layer": meaning.layer, "variant": meaning.variant, "row": row, "column": column}
            found.rows["similarity"].append(where | {"cosine": cosines[i, j]})


def _summary(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    rows = summary_rows(_text(path))
    for name in rows.columns.drop("scale"):
        try:
            rows[name] = rows[name].astype(float)
        except ValueError:
            note(f"column {name} is no number in every row; kept as text")
    found.rows["summary"] += rows.to_dict("records")


def _vectors(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    states, answers = vectors(path, note)
    found.vectors[meaning.scale] = states
    found.rows["answers"] += answers.assign(scale=meaning.scale).to_dict("records")


def _cross(path: Path, meaning: Named, found: _Found, note: Note) -> None:
    found.quads[meaning.scale] = cross_deltas(path, note)


_READERS: Mapping[str, Callable[[Path, Named, _Found, Note], None]] = {
    "similarity": _similarity,
    "summary": _summary,
    "pred_stats": _pred_stats,
    "category_validity": _validity,
    **dict.fromkeys(CONSISTENCY, _consistency),
    "cross_alignment": _alignment,
    "vectors": _vectors,
    "cross_group_vectors": _cross,
}


def _numbers(values: Any, key: str, names: tuple[str, ...], note: Note) -> list[float] | None:
    """The numbers of these names; None, and a note, where one is missing or cannot be."""
    if not isinstance(values, dict):
        note(f"{key}: not an object but {type(values).__name__}; left out")
        return None
    for name in names:
        if name not in values:
            note(f"{key}: {name} is missing; left out")
            return None
        value, count = values[name], name == "n" or name.endswith(("_n", "n_samples"))
        number = isinstance(value, int | float) and not isinstance(value, bool)
        least = 0 if "acc" in name or "std" in name else -1
        if not number or not (_is_count(value) if count else _is_share(value, least)):
            wanted = "a count" if count else "a cosine, a share or a deviation of them"
            note(f"{key}: {name} is {str(value)[:40]!r}, {wanted} is wanted; left out")
            return None
    return [values[name] for name in names]


def _is_count(value: float) -> bool:
    return 0 <= value <= MAX_PAIRS and value == int(value)


def _is_share(value: float, least: int) -> bool:
    """In [least, 1] but for rounding, or NaN, as the study writes what it could not compute."""
    return least - 1e-3 <= value <= 1 + 1e-3 or value != value


def _text(path: Path) -> bytes:
    if (size := path.stat().st_size) > MAX_TEXT:
        raise ValueError(f"{size:,} bytes; at most {MAX_TEXT:,}")
    return path.read_bytes()


def _missing(scales: list[str], files: Any) -> list[str]:
    """What each scale lacks of the layout; only of the variant "all" is everything expected."""
    there = {(one.kind, one.scale) for one in files if one.variant in (None, "all")}
    return [f"{scale}: no {kind}" for scale in scales for kind in _READERS if kind != "summary" and (kind, scale) not in there]


def _table(name: str, rows: list[dict[str, Any]], scales: list[str]) -> pd.DataFrame:
    """Rows by scale in their order, by layer within it, else as they stand in the files. samples: NaN where no label says."""
    columns = ["scale", "samples", *TABLES[name]]
    frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=columns)
    place = {scale: i for i, scale in enumerate(scales)}
    by = [frame["scale"].map(place)] + ([frame["layer"]] if "layer" in TABLES[name] else [])
    frame = frame.iloc[np.lexsort([each.to_numpy(float) for each in reversed(by)])].reset_index(drop=True)
    frame["samples"] = frame["scale"].map(lambda label: samples_of(str(label))).astype(float)
    return frame.reindex(columns=columns if TABLES[name] else [*dict.fromkeys([*columns, *frame.columns])])


def _mark(tables: dict[str, pd.DataFrame]) -> None:
    """What one file says of another: reliable categories, and of how many pairs a mean delta is."""
    validity = tables["validity"]
    known = {(row.scale, row.category): row.reliable for row in validity.itertuples() if row.reliable is not None}

    def reliable(scale: str, of: str) -> bool | None:
        flags = [known.get((scale, one)) for one in GROUPS.get(of, (of,))]
        return None if None in flags else all(flags)

    for name, column in (("consistency", "of"), ("accuracy", "category"), ("validity", "category")):
        table = tables[name]
        of = table[column] if name != "accuracy" else table[column].where(table[column] != "", table["group"])
        flags = [reliable(*each) for each in zip(table["scale"], of, strict=True)]
        table["reliable"] = pd.Series(flags, dtype="boolean" if name == "consistency" else object)  # as our own tables have it
    within = tables["consistency"]
    within = within[within["measure"] == "within"]
    sizes = {(row.scale, row.variant, row.layer, row.of): row.n for row in within.itertuples()}
    table = tables["similarity"]
    for column, category in (("n_row", "row"), ("n_column", "column")):
        keys = zip(table["scale"], table["variant"], table["layer"], table[category], strict=True)
        table[column] = [sizes.get(key, np.nan) for key in keys]
