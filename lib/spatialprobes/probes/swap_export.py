"""Our tables and states of swap pairs as files in the swap study's own layout, so that its code and figures can take them.

What the study's files hold is written, file by file, in its order and with its names, and nothing of ours that it lacks:
intervals, p values and controls stay in our own tables. Names and layer numbers are in ``swap_layout``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatialprobes.pairs import CATEGORIES, GROUPS
from spatialprobes.probes.swap_layout import (
    CONSISTENCY,
    MEMBERS,
    SCALE,
    TAGS,
    CrossDeltas,
    blocks,
    deltas_of,
    representative,
)
from spatialprobes.probes.swap_states import States
from spatialprobes.series import ordered
from spatialprobes.sources.arrays import write_npz
from spatialprobes.tables import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float

TABLES = ("consistency", "alignment", "similarity", "accuracy", "answers", "validity", "summary")
ROWS = {  # what tells a table's rows apart, and its numbers
    "consistency": (("layer", "variant", "measure", "of", "control"), ("upper_triangle", "std")),
    "alignment": (("layer", "variant", "measure", "definition", "control"), ("estimate",)),
    "similarity": (("layer", "variant", "row", "column"), ("cosine",)),
    "accuracy": (("group", "category", "member", "by"), ("estimate",)),
    "answers": (("pair", "member"), ()),
}
BY = "as_published"  # the study's own check of answers and definition of alignment
SHUFFLES, SHUFFLE_SEED = 100, 42  # the study's permutation control of alignment
SHORT = {"original": "orig", "swapped": "swap", "both": "both"}
NOTHING: Mapping[str, pd.DataFrame] = MappingProxyType({})


def write(
    folder: str | Path,
    scale: str,
    *,
    states: States | None = None,
    quads: tuple[States, States] | CrossDeltas | None = None,
    tables: Mapping[str, pd.DataFrame] = NOTHING,
) -> list[Path]:
    """Write one scale into the folder of its model, beside other scales; the files written, in the order of the study's list.

    tables: any of consistency, alignment, similarity, accuracy as ``swap_measures`` makes them, and answers as the extraction
    does; of a table with a column scale, that scale's rows (so the tables of ``swap_results.read`` can be given; its validity
    and summary are made anew from the others). states, quads (vertical, distance): for the vectors, at 5 layers; quads also
    for what the alignment table lacks, the standard deviation over quads and the study's 100 shuffles. What is not given is not
    written. Of alignment and accuracy the definition "as_published" is taken, of consistency the mean over all pairs of deltas
    (`upper_triangle`) with its `std`; which pairs are both_correct is as in the tables, so by whole words, not by the study's
    substring check. csv/summary.csv keeps its rows of other scales.

    Raises ValueError for a scale that no file can be named after, an unknown table, a missing column, a row that stands twice,
    an infinity, a table without the published definition, and nothing to write.
    """
    if not re.fullmatch(SCALE, scale):
        raise ValueError(f"scale {scale!r}: letters, digits and . _ + - alone, for files are named after it")
    if unknown := sorted(set(tables) - set(TABLES)):
        raise ValueError(f"table {unknown[0]!r} has no place in the study's layout; legal: {', '.join(TABLES)}")
    own = {name: _of_scale(frame, scale) for name, frame in tables.items()}
    own = {name: frame for name, frame in own.items() if len(frame)}
    for name, frame in own.items():
        if name in ROWS:
            _check(frame, name)
    deltas = quads if isinstance(quads, CrossDeltas) or quads is None else deltas_of(*quads)
    folder = Path(folder)
    files: dict[str, bytes] = {}
    if "similarity" in own:
        files |= _similarity(own["similarity"], scale)
    if "accuracy" in own:
        files[f"json/pred_stats_{scale}.json"] = _json(pred_stats(own["accuracy"], scale))
        files[f"json/category_validity_{scale}.json"] = _json(category_validity(own["accuracy"]))
    if "consistency" in own:
        files |= _consistency(own["consistency"], scale)
    if "alignment" in own:
        files[f"json/cross_alignment_{scale}.json"] = _json(cross_alignment(own["alignment"], deltas))
    if not files and states is None and deltas is None:
        raise ValueError(f"there is nothing to write for scale {scale!r}: no table has rows of it, no states or quads are given")
    if "accuracy" in own:  # last of what may be refused: it reads what is there
        files["csv/summary.csv"] = _summary(folder / "csv" / "summary.csv", scale, own)
    arrays = None if states is None else _vectors(states, own.get("answers"))
    written = [write_atomically(folder / name, content) for name, content in files.items()]
    if arrays is not None:
        written.append(write_npz(folder / "npz" / f"vectors_{scale}.npz", arrays, packed=True))
    if deltas is not None:
        arrays = {f"delta_{word}_L{layer - 1}": deltas.read(layer, which) for layer in representative(deltas.layers)
                  for word, which in (("vert", "vertical"), ("dist", "distance"))}  # fmt: skip
        written.append(write_npz(folder / "npz" / f"cross_group_vectors_{scale}.npz", arrays, packed=True))
    return written


def pred_stats(accuracy: pd.DataFrame, scale: str) -> dict[str, Any]:
    """{scale, {group}_n, {group}_acc_orig, ..._swap, ..._both, overall_...}; a group without pairs has 0, as in the study, and
    so has one without estimates."""
    rows = _published(accuracy, "accuracy", "by", ("group", "category", "member", "estimate", "n"))
    rows = rows[(rows["category"] == "") & (rows["n"] > 0) & rows["estimate"].notna()]
    known = {(row.group, row.member): (float(row.estimate), int(row.n)) for row in rows.itertuples()}
    stats: dict[str, Any] = {"scale": scale}
    right, total = dict.fromkeys(SHORT, 0), 0
    for group in GROUPS:
        n = known.get((group, "both"), (0.0, 0))[1]
        stats[f"{group}_n"] = n
        for member, short in SHORT.items():
            share = known.get((group, member), (0, 0))[0]
            stats[f"{group}_acc_{short}"] = share
            right[member] += round(share * n)
        total += n
    stats |= {f"overall_acc_{short}": right[member] / total if total else 0 for member, short in SHORT.items()}
    return stats | {"overall_n": total}


def category_validity(accuracy: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """{category: {n, acc_orig, acc_swap, reliable}}; a category without pairs (or estimates) has 0 and is not reliable, as in
    the study.

    reliable is null where the table doesn't know.
    """
    rows = _published(accuracy, "accuracy", "by", ("category", "member", "estimate", "n", "reliable"))
    rows = rows[(rows["category"] != "") & (rows["n"] > 0) & rows["estimate"].notna()]
    known = {(row.category, row.member): row for row in rows.itertuples()}
    validity = {}
    for category in CATEGORIES:
        one, other = (known.get((category, member)) for member in ("original", "swapped"))
        if one is None or other is None:
            validity[category] = {"n": 0, "acc_orig": 0, "acc_swap": 0, "reliable": False}
            continue
        shares = {"acc_orig": float(one.estimate), "acc_swap": float(other.estimate)}
        validity[category] = {"n": int(one.n), **shares, "reliable": None if pd.isna(one.reliable) else bool(one.reliable)}
    return validity


def cross_alignment(alignment: pd.DataFrame, deltas: CrossDeltas | None = None) -> dict[str, dict[str, Any]]:
    """{L{n}: {per_sample_mean, per_sample_std, mean_delta_alignment, permutation_mean, permutation_std, n_samples}}.

    The standard deviations are those of the table (column std), else of `deltas`, else left out.
    """
    rows = _published(alignment, "alignment", "definition", ("layer", "variant", "measure", "control", "estimate", "n"))
    rows = rows[rows["variant"] == "all"]
    rows = rows.assign(layer=rows["layer"].astype(str), std=rows.get("std", np.nan))
    found = {(row.layer, row.measure, row.control): row for row in rows.itertuples()}
    out = {}
    for layer in blocks(rows["layer"]):
        mean, directions, shuffled = (
            found.get((str(layer), *key))
            for key in (("per_sample_mean", "none"), ("mean_delta_alignment", "none"), ("per_sample_mean", "shuffled"))
        )
        if mean is None or np.isnan(mean.estimate):
            continue
        spread, by_chance = mean.std, (shuffled.estimate, shuffled.std) if shuffled is not None else (np.nan, np.nan)
        if deltas is not None and layer in deltas.layers and np.isnan([spread, by_chance[1]]).any():
            vertical, distance = _unit_deltas(deltas, layer)
            if len(vertical):
                spread = float(np.std(np.sum(vertical * distance, axis=1))) if np.isnan(spread) else spread
                by_chance = _by_chance(vertical, distance) if np.isnan(by_chance[1]) else by_chance
        values = {
            "per_sample_mean": mean.estimate,
            "per_sample_std": spread,
            "mean_delta_alignment": np.nan if directions is None else directions.estimate,
            "permutation_mean": by_chance[0],
            "permutation_std": by_chance[1],
        }
        known = {name: float(value) for name, value in values.items() if not np.isnan(value)}
        out[f"L{layer - 1}"] = known if np.isnan(mean.n) else known | {"n_samples": int(mean.n)}
    return out


def _consistency(frame: pd.DataFrame, scale: str) -> dict[str, bytes]:
    columns = ("layer", "variant", "measure", "of", "control", "upper_triangle", "std", "n")
    _need(frame, "consistency", columns)
    rows = frame[frame["control"] == "none"].dropna(subset=["upper_triangle", "std"])
    rows = rows.assign(layer=rows["layer"].astype(str))
    found = {(row.variant, row.measure, row.of, row.layer): row for row in rows.itertuples()}
    layers, files = blocks(rows["layer"]), {}
    for kind, measure in CONSISTENCY.items():
        for variant, tag in TAGS.items():
            content = {}
            for group, categories in GROUPS.items():
                for layer in layers:
                    for name in (group,) if measure == "group" else categories:
                        if row := found.get((variant, measure, name, str(layer))):
                            values = {"mean": float(row.upper_triangle), "std": float(row.std), "n": int(row.n)}
                            content[f"{name}_L{layer - 1}"] = values
            if content:
                files[f"json/{kind}_{scale}_{tag}.json"] = _json(content)
    return files


def _similarity(frame: pd.DataFrame, scale: str) -> dict[str, bytes]:
    _need(frame, "similarity", ("layer", "variant", "row", "column", "cosine"))
    rows = frame.assign(layer=frame["layer"].astype(str)).dropna(subset=["cosine"])
    files = {}
    for layer in blocks(rows["layer"]):
        for variant, tag in TAGS.items():
            part = rows[(rows["layer"] == str(layer)) & (rows["variant"] == variant)]
            grid = part.pivot(index="row", columns="column", values="cosine")
            there = [name for name in CATEGORIES if name in grid.index and name in grid.columns]
            if len(there) >= 2:
                content = grid.loc[there, there].rename_axis(index=None, columns=None).to_csv(lineterminator="\n")
                files[f"csv/delta_similarity_{scale}_L{layer - 1}_{tag}.csv"] = content.encode()
    return files


def _summary(path: Path, scale: str, own: Mapping[str, pd.DataFrame]) -> bytes:
    """The table with this scale's row, in the study's order of scales."""
    row = pred_stats(own["accuracy"], scale)
    if "alignment" in own and (layers := cross_alignment(own["alignment"])):
        row["alignment_deepest"] = layers[max(layers, key=lambda name: int(name[1:]))]["per_sample_mean"]
    rows = {scale: row}
    if path.is_file():
        try:
            rows = {one["scale"]: one for one in summary_rows(path.read_bytes()).to_dict("records")} | rows
        except ValueError as error:
            raise ValueError(f"{path}: not the summary of earlier scales: {error}; move it away to begin a new one") from error
    frame = pd.DataFrame([rows[name] for name in ordered(rows)], dtype=object)  # earlier numbers stay as they were written
    return frame.to_csv(index=False, lineterminator="\n").encode()


def summary_rows(content: bytes) -> pd.DataFrame:
    """The rows of a csv/summary.csv as text, empty cells NaN. Raises ValueError unless each names a scale of its own."""
    frame = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, na_values=[""])  # "NA" may be a scale's name
    if "scale" not in frame.columns:
        raise ValueError(f"has no column scale but {', '.join(map(str, frame.columns))}")
    if frame["scale"].isna().any():
        raise ValueError(f"row {int(frame['scale'].isna().argmax()) + 1} names no scale")
    if (twice := frame["scale"].duplicated()).any():
        raise ValueError(f"scale {frame.loc[twice, 'scale'].iloc[0]!r} stands twice")
    return frame


def _vectors(states: States, answers: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """Arrays of 5 layers by the study's names; pairs without states are left out of their layer.

    clusters_L{n} is ours: the pictures, where they are not the pairs themselves.
    """
    pairs, arrays = states.pairs, {}
    right = None if answers is None else _right(answers, pairs)
    own = (pairs["cluster"] == pairs["pair"]).all()
    for layer in representative(blocks(states.layers)):
        vectors = {"original": states.original(layer), "swapped": states.swapped(layer)}
        keep = np.isfinite(vectors["original"]).all(axis=1) & np.isfinite(vectors["swapped"]).all(axis=1)
        part = pairs[keep]
        found = {"delta": (vectors["swapped"] - vectors["original"])[keep]}
        found |= {"groups": part["group"].to_numpy(str), "categories": part["category"].to_numpy(str)}
        if right is not None:
            found |= {f"is_correct_{MEMBERS[member]}": right[member][keep] for member in MEMBERS}
        found["indices"] = _indices(part["pair"])
        found |= {MEMBERS[member]: vectors[member][keep] for member in MEMBERS}
        found["labels"] = part["category"].to_numpy(str)
        if not own:
            found["clusters"] = part["cluster"].to_numpy(str)
        arrays |= {f"{name}_L{layer - 1}": array for name, array in found.items()}
    return arrays


def _right(answers: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, np.ndarray]:
    _need(answers, "answers", ("pair", "member", "correct_published"))
    wide = answers.pivot(index="pair", columns="member", values="correct_published")
    missing = pairs.loc[~pairs["pair"].isin(wide.dropna().index), "pair"]
    if len(missing):
        raise ValueError(f"pair {missing.iloc[0]!r} has states but not both answers")
    return {member: wide.loc[pairs["pair"], member].to_numpy(bool) for member in MEMBERS}


def _indices(ids: pd.Series) -> np.ndarray:
    """Numbers where all ids are plain ones, as in the study, else text."""
    plain = all(re.fullmatch(r"0|[1-9]\d{0,17}", str(one)) for one in ids)
    return ids.astype("int64").to_numpy() if plain else ids.to_numpy(str)


def _unit_deltas(deltas: CrossDeltas, layer: int) -> tuple[Float[np.ndarray, "quad width"], Float[np.ndarray, "quad width"]]:
    """Vertical and distance deltas of norm 1; quads with a delta of norm 0 left out."""
    both = [np.asarray(one(layer), float) for one in (deltas.vertical, deltas.distance)]
    norms = [np.linalg.norm(each, axis=1) for each in both]
    stand = (norms[0] > 0) & (norms[1] > 0)
    one, other = (each[stand] / norm[stand, None] for each, norm in zip(both, norms, strict=True))
    return one, other


def _by_chance(vertical: Float[np.ndarray, "quad width"], distance: Float[np.ndarray, "quad width"]) -> tuple[float, float]:
    """Mean and standard deviation of the mean cosine over the study's 100 shuffles of the distance deltas."""
    draw = np.random.RandomState(SHUFFLE_SEED)
    means = [np.sum(vertical * distance[draw.permutation(len(distance))], axis=1).mean() for _ in range(SHUFFLES)]
    return float(np.mean(means)), float(np.std(means))


def _of_scale(frame: pd.DataFrame, scale: str) -> pd.DataFrame:
    return frame[frame["scale"] == scale] if "scale" in frame.columns else frame


def _published(frame: pd.DataFrame, table: str, column: str, columns: tuple[str, ...]) -> pd.DataFrame:
    _need(frame, table, (*columns, column))
    rows = frame[frame[column] == BY]
    if rows.empty:
        there = ", ".join(map(str, frame[column].unique()))
        raise ValueError(f"table {table!r} has no row with {column} {BY!r}, which is what the study's files hold; there: {there}")
    return rows


def _check(frame: pd.DataFrame, table: str) -> None:
    """Raises ValueError for a missing column, a row that stands twice (of several scales, say), and an infinity."""
    keys, numbers = ROWS[table]
    _need(frame, table, (*keys, *numbers))
    if (twice := frame.duplicated(list(keys))).any():
        row = frame[twice].iloc[0]
        raise ValueError(f"table {table!r}: {', '.join(f'{key} {row[key]}' for key in keys)} stands twice")
    for column in numbers:
        if np.isinf(frame[column].to_numpy(float)).any():
            raise ValueError(f"table {table!r}: column {column!r} holds an infinity")


def _need(frame: pd.DataFrame, table: str, columns: tuple[str, ...]) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"table {table!r} lacks the column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2, allow_nan=False).encode()
