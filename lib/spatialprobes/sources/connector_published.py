"""Result files of the connector study ("Connector-Induced Representation Distortion and Semantic Stability in VLMs"), as it lays
them out.

``knn_out/<model>/<folder>/overlap_top<k>_<metric>_torch.json`` (and ``per_image.csv`` beside it, where it was asked for),
``recon_pre_eval/<model>/<folder>.csv``, ``caption_compare_out_nor/<model>/caption_original_vs_recon.csv`` and
``perturb_out_scored/perturb_<model>_<mode>_<level>.csv``. Keys are read as text, the zeros that spreadsheets take from them put
back; every drop comes out as a loss (before minus after), which the study's files say with two signs. A file that is not whole is
refused, naming its row. Knows files and their columns; what is made of them is the audit's concern.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from spatialprobes.sources.connector_rows import (
    FOLDER,
    STEM,
    Malformed,
    alike,
    constant,
    number,
    numbers,
    padded,
    padded_column,
    read_rows,
    unique,
    whole_keys,
)
from spatialprobes.sources.json_files import read_object
from spatialprobes.sources.text_lines import existing_folder

GEOMETRY, RECONSTRUCTION, CAPTIONS, PERTURBATION = KINDS = (
    "knn_out",
    "recon_pre_eval",
    "caption_compare_out_nor",
    "perturb_out_scored",
)
LABELS = {
    "llava": "LLaVA",
    "idefics2": "Idefics2",
    "qwen2.5vl": "Qwen-2.5-VL",
    "qwen3.5": "Qwen-3.5",
}  # the study's, in its order
CAPTION_FILE, PER_IMAGE = "caption_original_vs_recon.csv", "per_image.csv"
OVERLAP = re.compile(r"overlap_top\d+_[a-z0-9]+_torch\.json")
PERTURBED = re.compile(r"perturb_(?P<model>.+)_(?P<mode>[a-z]+)_(?P<level>\d+(?:\.\d+)?)\.csv")
PAIR = re.compile(r"(?:(?P<ref>[A-Za-z0-9\-.]+)_(?P<side>pre|post)_)?top(?P<k>\d+)")
MAX_JSON = 50_000_000
SCALARS = (
    "effective_rank",
    "effective_rank_normalized",
    "top1_energy_ratio",
    "top5_energy_ratio",
    "top10_energy_ratio",
    "k80_energy",
    "k90_energy",
)
COSINES = ("mean_pairwise_cosine", "std_pairwise_cosine", "median_pairwise_cosine")
LISTS = {"mean_singular_values_topn": "singular_value", "mean_energy_spectrum_topn": "energy"}


class Geometry(NamedTuple):
    """One folder of one model. values: every number of the file by a flat name ("pre_effective_rank_mean",
    "pre_post_knor10_std", "dino_pre_pairwise_corr"); spectra: [side, component, singular_value, energy]; n: pictures, None where
    the file does not say; knors: (reference or "", side or "", k) of each overlap there."""

    values: dict[str, float]
    spectra: pd.DataFrame
    n: int | None
    knors: list[tuple[str, str, int]]


# --- where things are ---


def locate(source: str | Path) -> Path:
    """The folder that holds the study's output folders: `source`, or a folder right in it (a checkout has them in ``sample``).

    Raises FileNotFoundError or NotADirectoryError; ValueError naming the folders that would be legal, or where two hold some.
    """
    source = existing_folder(source)
    found = [folder for folder in (source, *sorted(source.iterdir())) if any((folder / kind).is_dir() for kind in KINDS)]
    if not found:
        raise ValueError(f"{source}: none of {', '.join(KINDS)} in it or in a folder of it: no results of the connector study")
    if len(found) > 1 and found[0] != source:
        raise ValueError(f"{source}: results in {' and '.join(path.name for path in found)}; name one of them")
    return found[0]


def models(root: Path) -> list[str]:
    """Every model that any file is about: the study's in its order, then others by name."""
    found = {path.name for kind in KINDS[:3] for path in _folders(root / kind)}
    found |= {one["model"] for one, _ in perturbation_files(root)}
    return sorted(found, key=lambda name: (list(LABELS).index(name) if name in LABELS else len(LABELS), name))


def label(model: str) -> str:
    """The study's name of a model for tables and figures; any other model's own."""
    return LABELS.get(model, model)


def geometry_files(root: Path, model: str) -> dict[str, Path]:
    """The overlap file of each folder, by folder. Raises Malformed where one holds several: which was meant is unknown."""
    found = {}
    for folder in _folders(root / GEOMETRY / model):
        there = sorted(path for path in folder.iterdir() if OVERLAP.fullmatch(path.name))
        if len(there) > 1:
            raise Malformed(f"{folder}: {' and '.join(path.name for path in there)}; keep one")
        if there:
            found[padded(folder.name, FOLDER)] = there[0]
    return found


def reconstruction_files(root: Path, model: str) -> dict[str, Path]:
    """The CSV of each folder, by folder; one of all folders beside them is left aside."""
    folder = root / RECONSTRUCTION / model
    return {padded(path.stem, FOLDER): path for path in sorted(folder.glob("*.csv"))} if folder.is_dir() else {}


def perturbation_files(root: Path) -> list[tuple[dict[str, str], Path]]:
    """What each file's name says (model, mode, level), with the file, in the order of mode and level."""
    folder = root / PERTURBATION
    there = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    found = [(match.groupdict(), path) for path in there if (match := PERTURBED.fullmatch(path.name))]
    return sorted(found, key=lambda one: (one[0]["model"], one[0]["mode"], float(one[0]["level"])))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


# --- reading ---


def read_geometry(path: str | Path) -> Geometry:
    """One overlap file. Raises FileNotFoundError; Malformed naming the key that is missing or no finite number."""
    content = read_object(path, MAX_JSON)
    values, lists, knors, counts = {}, {}, [], set()
    spectrum, cosine = (_object(content, f"global.{name}", path) for name in ("spectrum_and_rank", "cosine_concentration"))
    values["pre_post_pairwise_corr"] = _number(_object(content, "global", path), "pairwise_corr", path)
    for side in ("pre", "post"):
        for block, names in ((spectrum, SCALARS), (cosine, COSINES)):
            own = _object(block, f"{side}_summary", path)
            for name in (f"{scalar}_{statistic}" for scalar in names for statistic in ("mean", "median", "std")):
                values[f"{side}_{name}"] = _number(own, name, path)
        summary = _object(spectrum, f"{side}_summary", path)
        lists[side] = {name: _numbers(summary, name, path) for name in LISTS}
    for name, block in content.items():
        if not (pair := PAIR.fullmatch(name)):
            continue
        ref, side, k = pair["ref"] or "", pair["side"] or "", int(pair["k"])
        stem = f"{ref}_{side}" if ref else "pre_post"
        for inside, outside in (("mean", "mean"), ("median", "median"), ("std", "std")):
            values[f"{stem}_knor{k}_{outside}"] = _number(block, inside, path, name)
        values[f"{stem}_displacement{k}_mean"] = _number(block, "mean_rank_displacement", path, name)
        knors.append((ref, side, k))
    for name, block in content["global"].items():
        if name.endswith("_analysis"):
            ref = name.removesuffix("_analysis")
            counts.add(int(_number(block, "n_common_3way", path, name)))
            for side in ("pre", "post"):
                values[f"{ref}_{side}_pairwise_corr"] = _number(block, f"pairwise_corr_ref_{side}", path, name)
    if not knors:
        raise Malformed(f"{path}: no key 'top<k>': no overlap in it")
    spectra = pd.concat(
        pd.DataFrame({LISTS[name]: pd.Series(row) for name, row in own.items()}).assign(side=side, component=_from_one)
        for side, own in lists.items()
    )
    return Geometry(values, spectra, max(counts, default=None), knors)


def read_per_image(path: str | Path) -> pd.DataFrame:
    """The per-image scalars beside an overlap file, `key` as text; columns as they stand there.

    Raises Malformed naming the row.
    """
    frame = read_rows(path, ("key",))
    scores = numbers(frame, [name for name in frame.columns if name != "key"], path)
    return unique(scores.assign(key=padded_column(frame["key"], STEM)), path)


def read_reconstruction(path: str | Path, model: str, folder: str) -> pd.DataFrame:
    """[key, folder, mse_pre, cosine_pre] of one folder. Raises Malformed naming the row, also where it is of another model."""
    frame = read_rows(path, ("key", "shard", "model", "mse_pre", "cosine_pre"))
    constant(frame, "model", model, path)
    frame["shard"] = padded_column(frame["shard"], FOLDER)
    constant(frame, "shard", folder, path)
    scores = numbers(frame, ["mse_pre", "cosine_pre"], path)
    return unique(scores.assign(key=padded_column(frame["key"], STEM), folder=folder), path)


CAPTION_NUMBERS = ("reproj_mse_recon", "reproj_cosine_recon", "clipscore_post_direct", "clipscore_recon", "clipscore_drop",
                   "bertscore_recon_vs_post_f1")  # fmt: skip
CAPTION_MAYBE = (
    "clipscore_gt",
    "bertscore_post_vs_gt_f1",
    "bertscore_recon_vs_gt_f1",
)  # the sample of Qwen-3.5 has no BERT of GT
RENAMED = {
    f"bertscore_{old}": f"bertscore_recon_vs_post_{new}" for old, new in (("f1", "f1"), ("precision", "p"), ("recall", "r"))
}


def read_captions(path: str | Path, model: str) -> tuple[pd.DataFrame, list[str]]:
    """A model's captions from stored and from reconstructed E_post, and what was mended while reading, a line each.

    Columns: key, folder, `CAPTION_NUMBERS`, those of `CAPTION_MAYBE` that are there, bertscore_drop (post_vs_gt - recon_vs_gt)
    where both are, words_post and words_recon (counts), identical (the two captions), empty (either: its scores may be NaN).
    clipscore_drop is post - recon; where a file made without --compare holds ground truth - recon under that name, it is computed
    anew, and said. Old names of the BERT columns are understood. Raises Malformed naming the row.
    """
    frame, notes = read_rows(path, ("key", "folder_id", "model", "caption_post_direct", "caption_recon")), []
    if "bertscore_recon_vs_post_f1" not in frame and "bertscore_f1" in frame:
        frame = frame.rename(columns=RENAMED)
        notes.append("bertscore_precision, _recall and _f1 are read as those of recon against post, their later names")
    constant(frame, "model", model, path)
    names = [*CAPTION_NUMBERS, *(name for name in CAPTION_MAYBE if name in frame)]
    post, recon = frame["caption_post_direct"], frame["caption_recon"]
    empty = (post.str.strip() == "") | (recon.str.strip() == "")
    scores = numbers(frame, names, path, may_lack=empty)
    loss = scores["clipscore_post_direct"] - scores["clipscore_recon"]
    if (off := ~(alike(scores["clipscore_drop"], loss) | empty)).any():
        other = scores["clipscore_gt"] - scores["clipscore_recon"] if "clipscore_gt" in scores else loss
        if not (alike(scores["clipscore_drop"], other) | empty).all():
            raise Malformed(f"{path}: row {int(off.argmax()) + 1}: clipscore_drop is not clipscore_post_direct - clipscore_recon")
        scores["clipscore_drop"] = loss
        notes.append(
            "clipscore_drop held clipscore_gt - clipscore_recon (written without --compare); computed anew as post - recon"
        )
    if {"bertscore_post_vs_gt_f1", "bertscore_recon_vs_gt_f1"} <= set(scores):
        scores["bertscore_drop"] = scores["bertscore_post_vs_gt_f1"] - scores["bertscore_recon_vs_gt_f1"]
    scores = scores.assign(
        key=whole_keys(frame),
        folder=padded_column(frame["folder_id"], FOLDER),
        words_post=post.str.split().str.len(),
        words_recon=recon.str.split().str.len(),
        identical=post == recon,
        empty=empty,
    )
    return unique(scores, path), notes


PERTURBED_NUMBERS = ("clipscore_original", "clipscore_perturbed", "clipscore_drop", "bertscore_orig_vs_pert")
PERTURBED_MAYBE = ("bertscore_original", "bertscore_perturbed")  # against a caption by hand, where there is one


def read_perturbation(path: str | Path) -> pd.DataFrame:
    """Captions before and after one perturbation: key, caption_original, empty, identical, clipscore_original,
    clipscore_perturbed, clipscore_drop, bertscore_orig_vs_pert, bertscore_drop.

    Here both drops are losses, original - perturbed, though the file's clipscore_drop is perturbed - original. Where the caption
    after it is empty there is no score (NaN), whatever the file says. Raises Malformed naming the row.
    """
    frame = read_rows(path, ("key", "caption_original", "caption_perturbed", "mode", "level"))
    named = PERTURBED.fullmatch(Path(path).name)
    if named:
        constant(frame, "mode", named["mode"], path)
        frame["level"] = [f"{number(level):g}" for level in frame["level"]]
        constant(frame, "level", f"{float(named['level']):g}", path)
    empty = frame["caption_perturbed"].str.strip() == ""
    before = frame["caption_original"].str.strip() == ""
    there = [name for name in PERTURBED_MAYBE if name in frame and (frame[name].str.strip() != "").any()]
    scores = numbers(frame, (*PERTURBED_NUMBERS, *there), path, may_lack=empty | before)
    scores = scores.reindex(columns=[*PERTURBED_NUMBERS, *PERTURBED_MAYBE])
    scores.loc[empty, [name for name in scores if not name.endswith("_original")]] = math.nan
    scores.loc[before, [name for name in scores if not name.endswith("_perturbed")]] = math.nan
    loss = scores["clipscore_original"] - scores["clipscore_perturbed"]
    if (off := ~(alike(-scores["clipscore_drop"], loss) | empty | before)).any():
        raise Malformed(f"{path}: row {int(off.argmax()) + 1}: clipscore_drop is not clipscore_perturbed - clipscore_original")
    made = scores[["clipscore_original", "clipscore_perturbed", "bertscore_orig_vs_pert"]].assign(
        key=whole_keys(frame),
        caption_original=frame["caption_original"],
        empty=empty,
        identical=frame["caption_original"] == frame["caption_perturbed"],
        clipscore_drop=loss,
        bertscore_drop=scores["bertscore_original"] - scores["bertscore_perturbed"],
    )
    return unique(made, path)


# --- objects ---


def _object(content: Any, name: str, path) -> dict[str, Any]:
    for part in name.split("."):
        content = content.get(part) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            raise Malformed(f"{path}: no object {name!r}")
    return content


def _number(block: Any, name: str, path, of: str = "") -> float:
    value = block.get(name) if isinstance(block, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Malformed(f"{path}: {f'{of}.' if of else ''}{name} is {value!r}, no finite number")
    return float(value)


def _numbers(block: Mapping[str, Any], name: str, path) -> list[float]:
    row = block.get(name)
    if not isinstance(row, list) or not row or not all(isinstance(x, int | float) and math.isfinite(x) for x in row):
        raise Malformed(f"{path}: {name} is no list of finite numbers")
    return [float(x) for x in row]


def _from_one(frame: pd.DataFrame) -> range:
    return range(1, len(frame) + 1)
