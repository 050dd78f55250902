"""Result files of the attention study's maps (its experiment 1): a text a sample and one of means, of LLaVA or of Qwen2-VL.

"Interpreting Attention Mechanisms in VLMs for Spatial Reasoning", its code: ``shard{s}/metrics_sample_{i}.txt`` and
``mean_analysis.txt`` (LLaVA) or ``mean_analysis_allshards.txt`` (Qwen2-VL). Read into tables and written from them, numbers as
they stand there: to 4 decimals, the LLaVA script's shuffled centre distance to 2. entity1 and entity2 are in the world's order,
which need not be the caption's. Knows files and tables; how the numbers came about is not its concern.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from spatialprobes.sources.attention_lines import (
    ENTITIES,
    NAMES,
    SELF_METRICS,
    SPELT,
    WORD_METRICS,
    mean_lines,
    sample_lines,
)
from spatialprobes.sources.text_lines import FIXED, existing_folder, files_in, read_lines, short
from spatialprobes.tables import write_atomically

Layout = Literal["llava", "qwen2"]
KEY = ("condition", "kind", "role", "word", "metric")
METRICS = ["shard", "sample", *KEY, "value"]
SAMPLES = ["shard", "sample", "prompt", "rows", "cols", "shuffle_seed", "shuffle_grid"]
MEANS = [*KEY, "value"]
MEAN_FILE = {"llava": "mean_analysis.txt", "qwen2": "mean_analysis_allshards.txt"}


_4, _2 = FIXED % 4, FIXED % 2
_TAG = r"(?:\[(?P<tag>REAL|SHUF)\] )?"
_SHUFFLED = r"(?P<shuffled> \(Shuffled\))?"
WORDS = re.compile(rf"{_TAG}Entity(?P<entity>[12])(?:\((?P<word>[^()]*)\))?{_SHUFFLED} - (?P<rest>.+)")
RELATION = re.compile(
    rf"{_TAG}(?:Relation\((?P<word>[^()]*)\)|Right token|Relation token|Relation) x-axis Wasserstein{_SHUFFLED}: "
    rf"(?P<value>{_4})(?:, Shuffle Wasserstein: (?P<other>{_4}))?"
)
BACKGROUND = re.compile(rf"{_TAG}Background disperson(?: mean)?{_SHUFFLED}: (?P<value>{_4})")
SELF = re.compile(rf"{_TAG}Entity(?P<entity>[12])(?: self)?{_SHUFFLED} (?P<metric>[a-z_]+): (?P<value>{_4})")
SELF_MEAN = re.compile(rf"{_TAG}(?P<metric>[a-z_]+){_SHUFFLED}: Entity1=(?P<value>{_4}), Entity2=(?P<other>{_4})")
HEADING = re.compile(r"|(?:\[(?:REAL|SHUF)\] )?(?:=+ .* =+|(?:Sample \d+ - )?Vision Self-Attention.*)")
HEADER = re.compile(r"(shard idx|sample idx|grid|prompt|baseline): (.*)")
BASELINE = re.compile(r"patch-shuffle enabled=(True|False), seed=(\d{1,18}), grid=(\d{1,9})")


@dataclass(frozen=True, eq=False)
class AttentionResults:
    """layout: "llava" or "qwen2".

    samples: `SAMPLES`, what the LLaVA script does not write is missing. metrics: `METRICS`, one row a number; condition "real"
    or "shuffled" (patches); kind "words" (text to picture) or "self" (a patch's own); role "entity1", "entity2", "relation" or
    "background"; word: as in the file, "" where it has none. means: `MEANS`, as the study's own file says. problems: what could
    not be read, a line each that begins with the file.
    """

    layout: Layout
    samples: pd.DataFrame
    metrics: pd.DataFrame
    means: pd.DataFrame
    problems: list[str] = field(default_factory=list)


def read(folder: str | Path) -> AttentionResults:
    """The results in `folder`: its means and its ``shard*`` folders. Damaged files are named in problems, and the rest is read.

    Raises FileNotFoundError or NotADirectoryError; ValueError where nothing can be read, and where files of both models lie in
    one folder, which cannot be told apart by their names.
    """
    folder = existing_folder(folder)
    found: dict[str, tuple[str, dict[str, Any], list[dict[str, Any]]]] = {}
    problems, means = [], {}
    for name in _names(folder):
        try:
            layout, header, rows = parse(read_lines(folder / name))
            if name in MEAN_FILE.values():
                means[name] = layout, rows
            else:
                found[name] = layout, _placed(header, name), rows
        except (ValueError, OSError) as error:
            problems.append(f"{name}: {short(error, folder / name)}")
    kinds: dict[str, str] = {}
    for name, layout in [(name, one[0]) for name, one in (*found.items(), *means.items())]:
        kinds.setdefault(layout, name)
    if len(kinds) > 1:
        raise ValueError(
            f"{folder}: files of both models: {' and '.join(f'{n} ({k})' for k, n in kinds.items())}; keep them apart"
        )
    if not kinds:
        raise ValueError(f"{folder}: no result file that can be read" + (f"; {problems[0]}" if problems else ""))
    layout = next(iter(kinds))
    samples = pd.DataFrame([header for _, header, _ in found.values()], columns=SAMPLES)
    rows = [{**_place(header), **row} for _, header, own in found.values() for row in own]
    mean_rows = [row for _, own in means.values() for row in own]
    return AttentionResults(
        layout, samples, pd.DataFrame(rows, columns=METRICS), pd.DataFrame(mean_rows, columns=MEANS), problems
    )


def parse(lines: Iterable[str]) -> tuple[Layout, dict[str, Any], list[dict[str, Any]]]:
    """Layout, header and numbers of one file.

    Raises ValueError naming a line that is none of the study's, or says twice the same.
    """
    header, rows, tagged = {}, {}, set()
    for number, line in enumerate(lines, 1):
        if len(line) > 10_000:
            raise ValueError(f"line {number}: {len(line):,} characters")
        if HEADING.fullmatch(line):
            continue
        if known := HEADER.fullmatch(line):
            if known[1] in header:
                raise ValueError(f"line {number}: {known[1]} stands twice")
            header[known[1]] = known[2]
            continue
        found = _numbers(line)
        if found is None:
            raise ValueError(f"line {number}: {line[:80]!r} is no line of the study's")
        tagged.add(line.startswith("["))
        for row in found:
            key = tuple(row[name] for name in KEY if name != "word")
            if key in rows:
                raise ValueError(f"line {number}: {' '.join(key)} stands twice")
            rows[key] = row
    if not rows:
        raise ValueError("no numbers")
    if len(tagged) > 1:
        raise ValueError("lines with and without [REAL] and [SHUF]: of two scripts")
    return ("qwen2" if tagged.pop() else "llava"), header, list(rows.values())


def _numbers(line: str) -> list[dict[str, Any]] | None:
    """The rows of a line; None for a line that is none of the study's."""
    for pattern, read_one in (
        (WORDS, _words),
        (RELATION, _relation),
        (BACKGROUND, _background),
        (SELF, _self),
        (SELF_MEAN, _means),
    ):
        if found := pattern.fullmatch(line):
            groups = found.groupdict()
            shuffled = groups["tag"] == "SHUF" or bool(groups["shuffled"])
            return read_one(groups, "shuffled" if shuffled else "real")
    return None


def _row(condition: str, kind: str, role: str, metric: str, value: str, word: str | None = None) -> dict[str, Any]:
    return {"condition": condition, "kind": kind, "role": role, "word": word or "", "metric": metric, "value": float(value)}


def _words(groups: Mapping[str, str], condition: str) -> list[dict[str, Any]] | None:
    parts = [part.rpartition(": ") for part in groups["rest"].split(", ")]
    rows = []
    for place, (name, _, value) in enumerate(parts):
        own, short_name = ("shuffled", name[len("Shuffle ") :]) if name.startswith("Shuffle ") else (condition, name)
        names = next((names for names in NAMES.values() if short_name in names), None)
        digits = _2 if own != condition and short_name == "COM distance" else _4
        if names is None or names.index(short_name) != place % 4 or not re.fullmatch(digits, value):
            return None
        rows.append(_row(own, "words", f"entity{groups['entity']}", WORD_METRICS[place % 4], value, groups["word"]))
    return rows if len(rows) in (4, 8) else None


def _relation(groups: Mapping[str, str], condition: str) -> list[dict[str, Any]]:
    rows = [_row(condition, "words", "relation", "wasserstein_x", groups["value"], groups["word"])]
    return rows if groups["other"] is None else [*rows, _row("shuffled", "words", "relation", "wasserstein_x", groups["other"])]


def _background(groups: Mapping[str, str], condition: str) -> list[dict[str, Any]]:
    return [_row(condition, "self", "background", "dispersion", groups["value"])]


def _self(groups: Mapping[str, str], condition: str) -> list[dict[str, Any]] | None:
    metric = SPELT.get(groups["metric"], groups["metric"])
    return [_row(condition, "self", f"entity{groups['entity']}", metric, groups["value"])] if metric in SELF_METRICS else None


def _means(groups: Mapping[str, str], condition: str) -> list[dict[str, Any]] | None:
    metric = SPELT.get(groups["metric"], groups["metric"])
    values = zip(ENTITIES, (groups["value"], groups["other"]), strict=True)
    return [_row(condition, "self", role, metric, value) for role, value in values] if metric in SELF_METRICS else None


def _names(folder: Path) -> list[str]:
    """The result files, means first, then samples by shard and number; links out of the folder are not followed."""
    there = [name for name in files_in(folder) if name in MEAN_FILE.values()]
    shards = sorted(
        (int(one.name[5:]), one) for one in folder.iterdir() if re.fullmatch(r"shard\d{1,6}", one.name) and _real(one)
    )
    for _, shard in shards:
        found = [re.fullmatch(r"metrics_sample_(\d{1,9})\.txt", name) for name in files_in(shard)]
        there += [f"{shard.name}/{one[0]}" for one in sorted(filter(None, found), key=lambda one: int(one[1]))]
    return there


def _real(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


def _placed(header: Mapping[str, str], name: str) -> dict[str, Any]:
    """The row of `SAMPLES` of a file. Raises ValueError where what it says of itself is not where it lies."""
    shard, sample = (int(one) for one in re.fullmatch(r"shard(\d+)/metrics_sample_(\d+)\.txt", name).groups())
    for key, own in (("shard idx", shard), ("sample idx", sample)):
        if header.get(key, str(own)) != str(own):
            raise ValueError(f"says {key} {header[key]}, but its name {own}")
    rows = cols = seed = cells = None
    if "grid" in header:
        if not (grid := re.fullmatch(r"(\d{1,5})x(\d{1,5})", header["grid"])):
            raise ValueError(f"grid {header['grid']!r} is not rows x columns")
        rows, cols = int(grid[1]), int(grid[2])
    if "baseline" in header:
        if not (baseline := BASELINE.fullmatch(header["baseline"])):
            raise ValueError(f"baseline {header['baseline'][:80]!r} is not as the study writes it")
        seed, cells = (int(baseline[2]), int(baseline[3])) if baseline[1] == "True" else (None, None)
    return dict(zip(SAMPLES, (shard, sample, header.get("prompt"), rows, cols, seed, cells), strict=True))


def _place(header: Mapping[str, Any]) -> dict[str, Any]:
    return {name: header[name] for name in ("shard", "sample")}


# --- means and writing ---


def means(metrics: pd.DataFrame) -> pd.DataFrame:
    """The study's means over samples, `MEANS`: plain, so that one sample without a number leaves none (the study's rule)."""
    keys = [name for name in KEY if name != "word"]
    found = metrics.groupby(keys, sort=False)["value"].agg(lambda values: float(np.mean(values.to_numpy(float))))
    return found.reset_index().assign(word="")[MEANS]


def write(results: AttentionResults, folder: str | Path) -> list[Path]:
    """Write `results` as the study's script of the layout does, below `folder`.

    What is read from there equals what was written, to its decimals. Means are those of results, or those of its samples where
    it has none. Raises ValueError for an unknown layout, and for a sample that the layout cannot hold: LLaVA's writes real and
    shuffled numbers in one line, and needs both.
    """
    if results.layout not in NAMES:
        raise ValueError(f"layout {results.layout!r} is unknown; one of {', '.join(map(repr, NAMES))}")
    written = []
    headers = {(row["shard"], row["sample"]): row for row in results.samples.to_dict("records")}
    for (shard, sample), rows in results.metrics.groupby(["shard", "sample"], sort=False):
        header = headers.get((shard, sample), {"shard": shard, "sample": sample})
        name = f"shard{shard}/metrics_sample_{sample}.txt"
        written.append(_write(Path(folder) / name, sample_lines(results.layout, header, rows)))
    own = results.means if len(results.means) else means(results.metrics)
    written.append(_write(Path(folder) / MEAN_FILE[results.layout], mean_lines(results.layout, own)))
    return written


def _write(path: Path, lines: list[str]) -> Path:
    return write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
