"""Result files of the attention study's captions without a picture (its experiment 2): a table of pairs and a text of means.

asym_s1, asym_s2: attention of the relation word to the first entity named minus that to the second, in the caption and in its
counterfactual; symmetry_score, their sum, is twice the positional part. Knows files and tables.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from spatialprobes.sources.text_lines import FIXED, read_lines
from spatialprobes.tables import write_atomically

PAIRS = ["sent1", "sent2", "asym_s1", "asym_s2", "symmetry_score"]
MAX_BYTES = 200_000_000
COUNTS = ("total_lines", "total_pairs_after_cf", "cf_fail", "kept_pairs", "skipped_pairs")
MEANS = ("asym_s1_mean", "asym_s2_mean", "symmetry_score_mean", "abs_symmetry_score_mean")
HEADING = re.compile(r"|=== .* ===")


def read_pairs(path: str | Path) -> pd.DataFrame:
    """The table of pairs: `PAIRS`, and pair (the row, from 0, as text), positional (a1 + a2) / 2 and content (a1 - a2) / 2.

    Raises FileNotFoundError; ValueError naming the file for one that is too large, has other columns or no rows, and naming the
    row for what is no number, an empty sentence, or a symmetry_score that is not asym_s1 + asym_s2.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes; at most {MAX_BYTES:,}")
    with path.open("rb") as file:
        if size and (file.seek(-1, 2), file.read())[1] != b"\n":
            raise ValueError(f"{path}: its last line has no end: cut short")
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, header=None)
        frame = frame[1:].set_axis(frame.iloc[0], axis=1).rename_axis(columns=None).reset_index(drop=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable: {' '.join(str(error).split())}") from error
    if list(frame.columns) != PAIRS:
        raise ValueError(f"{path}: columns {', '.join(map(str, frame.columns))[:200]}; {', '.join(PAIRS)} are the study's")
    if frame.empty:
        raise ValueError(f"{path}: no rows")
    for name in PAIRS[2:]:
        numbers = pd.to_numeric(frame[name], errors="coerce").to_numpy(float)
        if not np.isfinite(numbers).all():
            row = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise ValueError(f"{path}: row {row + 1}: {name} is {frame[name][row][:40]!r}, no number")
        frame[name] = frame[name].astype(float)
    for name in PAIRS[:2]:
        if (blank := frame[name].str.strip() == "").any():
            raise ValueError(f"{path}: row {int(blank.to_numpy().argmax()) + 1} has no {name}")
    wrong = ~np.isclose(frame["symmetry_score"], frame["asym_s1"] + frame["asym_s2"], rtol=1e-5, atol=1e-9)
    if wrong.any():
        raise ValueError(f"{path}: row {int(wrong.argmax()) + 1}: symmetry_score is not asym_s1 + asym_s2")
    a1, a2 = frame["asym_s1"], frame["asym_s2"]
    return frame.assign(pair=frame.index.astype(str), positional=(a1 + a2) / 2, content=(a1 - a2) / 2)


def write_pairs(pairs: pd.DataFrame, path: str | Path) -> Path:
    """Write the table of pairs; what is read from there equals it.

    pairs: `PAIRS` at least; where it has kept, only what the study would keep. Raises ValueError for a missing column, a NaN,
    and nothing to write.
    """
    if missing := [name for name in PAIRS if name not in pairs.columns]:
        raise ValueError(f"the table of pairs lacks the column {missing[0]!r}; it has {', '.join(map(str, pairs.columns))}")
    rows = pairs[pairs["kept"].astype(bool)] if "kept" in pairs.columns else pairs
    if rows.empty or rows[PAIRS].isna().any(axis=None):
        raise ValueError("the table of pairs has no rows to write" if rows.empty else "the table of pairs has a NaN")
    return write_atomically(path, rows[PAIRS].to_csv(index=False, lineterminator="\n").encode())


def read_stats(path: str | Path) -> dict[str, int | float | list[int]]:
    """The means and counts of a ``*_stats.txt``: shards, `COUNTS` and `MEANS`.

    Raises FileNotFoundError; ValueError naming the file and the line that is not the study's, what is missing, and counts that
    do not add up.
    """
    found: dict[str, int | float | list[int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        if HEADING.fullmatch(line):
            continue
        key, _, value = line.partition("=")
        if key in found:
            raise ValueError(f"{path}: line {number}: {key} stands twice")
        if key == "shards" and re.fullmatch(r"\[\d{1,6}(, \d{1,6}){0,999}\]|\[\]", value):
            found[key] = [int(shard) for shard in value[1:-1].split(", ") if shard]
        elif key in COUNTS and re.fullmatch(r"\d{1,15}", value):
            found[key] = int(value)
        elif key in MEANS and re.fullmatch(FIXED % 6, value):
            found[key] = float(value)
        else:
            raise ValueError(f"{path}: line {number}: {line[:80]!r} is no line of the study's")
    if missing := [key for key in ("shards", *COUNTS, *MEANS) if key not in found]:
        raise ValueError(f"{path}: no {missing[0]}")
    if found["kept_pairs"] + found["skipped_pairs"] != found["total_pairs_after_cf"]:
        raise ValueError(
            f"{path}: {found['kept_pairs']} kept and {found['skipped_pairs']} skipped are not {found['total_pairs_after_cf']}"
        )
    if found["total_pairs_after_cf"] + found["cf_fail"] != found["total_lines"]:
        raise ValueError(
            f"{path}: {found['total_pairs_after_cf']} pairs and {found['cf_fail']} failures are not {found['total_lines']} lines"
        )
    first, second, both, size = (found[key] for key in MEANS)
    if abs(first + second - both) > 2e-6 or size < abs(both) - 2e-6:
        raise ValueError(f"{path}: means {first} and {second} with their sum {both}, {size} in size: they contradict one another")
    return found


def write_stats(
    pairs: pd.DataFrame,
    path: str | Path,
    *,
    shards: Sequence[int],
    total_lines: int,
    total_pairs: int,
    title: str = "Qwen2, ALL SHARDS",
) -> Path:
    """Write the means of a table of pairs (as for `write_pairs`) as the study does.

    total_lines: captions read; total_pairs: those with a counterfactual. Raises ValueError where more pairs are kept than there
    were.
    """
    rows = pairs[pairs["kept"].astype(bool)] if "kept" in pairs.columns else pairs
    if not len(rows) <= total_pairs <= total_lines:
        raise ValueError(f"{len(rows)} pairs kept of {total_pairs}, of {total_lines} captions: each must be at most the next")
    counts = (total_lines, total_pairs, total_lines - total_pairs, len(rows), total_pairs - len(rows))
    lines = [f"=== Pair-level symmetry statistics ({title}) ===", f"shards={[int(one) for one in shards]}"]
    lines += [f"{key}={value}" for key, value in zip(COUNTS, counts, strict=True)]
    scores = rows["symmetry_score"]
    means = (rows["asym_s1"].mean(), rows["asym_s2"].mean(), scores.mean(), scores.abs().mean())
    lines += ["", *(f"{key}={value:.6f}" for key, value in zip(MEANS, means, strict=True))]
    return write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
