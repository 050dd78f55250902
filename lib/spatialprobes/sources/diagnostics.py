"""The run folders of Beyond Semantics' COCO diagnostics, read into tidy tables and written from ours.

`{slug}__sp-{0|1}/` (1: system prompt stripped) holds meta.json, preds.json, per_image/<id>.npz and .json, and analysis/ with
avg_*.npy and summary.json (its run_coco_diagnostics.py and analyze_coco_diagnostics.py). Knows that layout; no model.

The study's names stand in the files, ours in the tables. Its last layer of hidden norms is taken after the final norm, so it is
labelled so. Its delta_gv is divided by delta_steps, which is 1 in what was published.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatialprobes.sources.arrays import read_npy, write_npy, write_npz
from spatialprobes.sources.diagnostic_pictures import (
    GRID,
    HEADS,
    MAX_IMAGE_BYTES,
    MAX_JSON_BYTES,
    NORMED,
    SHARES,
    Picture,
    head_arrays,
    head_table,
    hidden_arrays,
    number,
    read_picture,
)
from spatialprobes.sources.json_files import read_object
from spatialprobes.stats import bootstrap
from spatialprobes.tables import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float

AVERAGES = {"alphaV": "alpha_v", "delta_gv": "delta_g_v", "abs_delta_gv": "abs_delta_g_v", "delta_alphaV": "delta_alpha_v"}
TEXT = ("user", "role")  # the study's user text has the turn markers in it
FOLDER = re.compile(r"(?P<slug>[^/\\\x00-\x1f\x7f]+)__sp-(?P<stripped>[01])")
PICTURE = re.compile(r"[0-9]+\.(npz|json)")  # of a file in per_image


@dataclass
class Run:
    """One run: its settings and tables.

    slug: of the model; stripped: whether the system prompt was taken out. meta: settings as they stand in meta.json.
    heads: [example, layer, head, cmb, alpha_v, share_prod_not_v, delta_g_v, delta_alpha_v], NaN for an array that was not saved.
    hidden: [example, layer, site, group, norm], site "stream" or, for the last layer, "final norm"; group "system", "text" (turn
    markers included) or "vision". images: [example, image_id, file_name, caption, mean_vision_share, mean_text_share,
    mean_sys_share]. problems: [example, error], pictures that failed or can't be read; they are in no other table.
    grids: {example: norms [layer, token]} where they were saved.
    """

    slug: str
    stripped: bool
    meta: dict[str, Any]
    heads: pd.DataFrame
    hidden: pd.DataFrame
    images: pd.DataFrame
    problems: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=["example", "error"], dtype="object"))
    grids: dict[str, Float[np.ndarray, "layer token"]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.slug}__sp-{int(self.stripped)}"

    @property
    def delta(self) -> float:
        """Positions by which the vision keys were turned; the study's default where meta.json does not say."""
        return float(self.meta.get("delta_steps", 1.0))


def read_run(folder: str | Path) -> Run:
    """The run in `folder`, whose name says slug and system prompt.

    A picture is counted where both its files are there, hold what they can, and have the form (`Picture.form`) that most pictures
    have; whatever else is found, the error rows of the original ({"error": ...}) and second files of one example among it, stands
    under `problems`. Raises FileNotFoundError for the folder or what it lacks, ValueError for a name that is no run's, a broken
    meta.json, and where no picture can be counted.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name; a link keeps its own
    name = FOLDER.fullmatch(folder.name)
    if not name:
        raise ValueError(f"{folder.name!r} is no run folder; it would be called <slug>__sp-0 or <slug>__sp-1")
    for part in (folder, folder / "per_image"):
        if not part.is_dir():
            raise FileNotFoundError(f"no folder {part}")
    meta = _meta(folder / "meta.json")
    pictures, problems = _pictures(folder / "per_image")
    if not pictures:
        first = f", the first: {next(iter(problems.values()))}" if problems else ""
        raise ValueError(f"{folder}: no picture of {len(problems)} can be counted{first}")
    heads, hidden = (pd.concat([getattr(one, table) for one in pictures], ignore_index=True) for table in ("heads", "hidden"))
    images = pd.DataFrame([one.image for one in pictures])
    left_out = pd.DataFrame(sorted(problems.items()), columns=["example", "error"], dtype="object")
    grids = {one.example: one.grid for one in pictures if one.grid is not None}
    return Run(name["slug"], name["stripped"] == "1", meta, heads, hidden, images, left_out, grids)


def write_run(run: Run, root: str | Path) -> Path:
    """Write `<root>/<slug>__sp-{0|1}/` as the original does, analysis included; each file whole or not at all.

    The pictures of an older run there are taken away; files that are none of the layout's stay. Ids that are whole numbers are
    the image ids; if any is not, pictures are numbered in their order. Problems are written as the original's error rows. Raises
    ValueError for a slug that is no folder's name and for tables that do not fit together.
    """
    if not FOLDER.fullmatch(run.name) or run.slug.startswith("."):
        raise ValueError(f"slug {run.slug!r} is no folder's name")
    folder = Path(root) / run.name
    examples = list(dict.fromkeys(run.heads["example"]))
    if len(run.images) != len(examples) or set(run.images["example"]) != set(examples):
        raise ValueError(f"{run.name}: {len(examples)} examples in heads, {len(run.images)} in images; they must be the same")
    names = [*examples, *run.problems["example"]]
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{run.name}: {twice[0]!r} stands twice among the examples and problems")
    numbers, averages, said = _numbers(names), average(run.heads), summary(run)
    hidden = {example: part for example, part in run.hidden.groupby("example", sort=False)}
    images = run.images.set_index("example")
    predictions = []
    _clear(folder)
    for example, part in run.heads.groupby("example", sort=False):
        arrays = head_arrays(part) | (hidden_arrays(hidden[example]) if example in hidden else {})
        arrays |= {GRID: run.grids[example]} if example in run.grids else {}
        row = images.loc[example]
        known = {key: row[key] for key in ("file_name", "caption", *SHARES) if key in row and not pd.isna(row[key])}
        facts = {"image_id": numbers[example], **known, "example": example}
        stem = folder / "per_image" / f"{numbers[example]:012d}"
        write_npz(stem.with_suffix(".npz"), arrays)
        _write_json(stem.with_suffix(".json"), facts)
        if "caption" in known:
            predictions.append({"image_id": numbers[example], "caption": known["caption"]})
    for example, error in run.problems[["example", "error"]].itertuples(index=False):
        _write_json(folder / "per_image" / f"{numbers[example]:012d}.json", {"error": error, "example": example})
    _write_json(folder / "preds.json", predictions)
    for name, column in AVERAGES.items():
        write_npy(folder / "analysis" / f"avg_{name}.npy", head_table(averages, column))
    _write_json(folder / "analysis" / "summary.json", said)
    _write_json(folder / "meta.json", run.meta)  # last: where it is, the rest is
    return folder


def average(heads: pd.DataFrame) -> pd.DataFrame:
    """Means over the pictures of a run: [layer, head, alpha_v, delta_g_v, abs_delta_g_v, delta_alpha_v].

    The absolute value is taken for each picture, before averaging, as in the original.
    """
    signed = heads.assign(abs_delta_g_v=heads["delta_g_v"].abs())
    return signed.groupby(["layer", "head"])[list(AVERAGES.values())].agg(lambda column: column.mean(skipna=False)).reset_index()


def summary(run: Run) -> dict[str, Any]:
    """What the original's summary.json says of a run, computed from its tables."""
    averages = average(run.heads)
    return {
        "images_used": int(run.heads["example"].nunique()),
        "L": int(averages["layer"].max()) + 1,
        "H": int(averages["head"].max()) + 1,
        "run_dir": run.name,
        "model_name": run.meta.get("model_name", run.slug),
        "strip_system_prompt": run.stripped,
        "delta_steps": run.delta,
        "mean_avg_abs_delta_gv": float(averages["abs_delta_g_v"].mean()),
        "mean_avg_delta_alphaV": float(averages["delta_alpha_v"].mean()),
    }


def read_analysis(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """What stands in a run's analysis/: the averages as `average` has them, and summary.json.

    Raises FileNotFoundError for a file that is missing, ValueError for arrays of different shapes.
    """
    folder = Path(folder) / "analysis"
    arrays = {column: read_npy(folder / f"avg_{name}.npy", MAX_IMAGE_BYTES) for name, column in AVERAGES.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"{folder}: arrays of the shapes {sorted(shapes)}; all must be the same [layer, head]")
    layer, head = (each.ravel() for each in np.indices(shapes.pop()))
    frame = pd.DataFrame({"layer": layer, "head": head, **{column: array.ravel() for column, array in arrays.items()}})
    return frame, read_object(folder / "summary.json", MAX_JSON_BYTES)


def by_layer(runs: list[Run], seed: int = 0) -> pd.DataFrame:
    """Means over the heads of each layer, for `plots.diagnostics.comparison`; runs in the order given.

    Columns: run, model, layer, abs_delta_g_v, abs_delta_g_v_low, abs_delta_g_v_high, delta_alpha_v, and its _low and _high.
    Intervals resample pictures; NaN where a run has one. Arrays that a run does not have are NaN. Raises ValueError naming the
    example where one picture lacks a number that others have.
    """
    rows = []
    for run in runs:
        signed = run.heads.assign(abs_delta_g_v=run.heads["delta_g_v"].abs())
        means = signed.groupby(["layer", "example"])[["abs_delta_g_v", "delta_alpha_v"]].mean()
        for layer, part in means.groupby("layer"):
            row = {"run": run.name, "model": str(run.meta.get("model_name", run.slug)), "layer": layer}
            for column in part:
                lacking = ~np.isfinite(part[column])
                if lacking.any() and part[column].notna().any():
                    example = part.index[lacking][0][1]
                    raise ValueError(
                        f"{run.name}: {column} of {example!r} in layer {layer} is no number; other pictures have one"
                    )
                found = bootstrap(part[column].to_numpy(), None, seed=seed) if len(part) > 1 and not lacking.any() else None
                low, high = (found.low, found.high) if found else (np.nan, np.nan)
                row |= {column: part[column].mean(), f"{column}_low": low, f"{column}_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def from_tables(
    slug: str,
    rope: pd.DataFrame,
    *,
    stripped: bool = False,
    cmb: pd.DataFrame | None = None,
    hidden: pd.DataFrame | None = None,
    shares: pd.DataFrame | None = None,
    images: Mapping[str, Mapping[str, str]] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> Run:
    """A run from the tables of our probes.

    rope: of `rope.measure` with one Delta; cmb: of `balance.cmb`; hidden: of `hidden_norms.measure` (the layout has no place for
    the last layer before the final norm, which is left out); shares: of `balance.shares`; images: {example: file_name, caption}.
    Raises ValueError for several values of Delta, and for a table whose examples are not those of `rope`.
    """
    deltas = rope["delta"].unique()
    if len(deltas) != 1:
        raise ValueError(f"rope has {len(deltas)} values of Delta ({', '.join(f'{delta:g}' for delta in deltas)}); a run has one")
    examples = list(dict.fromkeys(rope["example"]))
    for name, table in (("cmb", cmb), ("hidden", hidden), ("shares", shares)):
        if table is not None and set(table["example"]) != set(examples):
            raise ValueError(f"{name} has {table['example'].nunique()} examples that are not the {len(examples)} of rope")
    heads = rope[["example", "layer", "head", "alpha_v", "delta_g_v", "delta_alpha_v"]]
    heads = heads.assign(share_prod_not_v=heads["alpha_v"] * (1 - heads["alpha_v"]))
    by = ["example", "layer", "head"]
    heads = heads.assign(cmb=np.nan) if cmb is None else heads.merge(cmb[[*by, "cmb"]], on=by, how="left", validate="1:1")
    rows = pd.DataFrame({"example": examples, "image_id": [_numbers(examples)[example] for example in examples]})
    for key in ("file_name", "caption"):
        rows[key] = [(images or {}).get(example, {}).get(key) for example in examples]
    if shares is not None:
        of = shares.set_index("example").loc[examples]
        rows["mean_vision_share"], rows["mean_text_share"] = of["vision_vs_user"].to_numpy(), 1 - of["vision_vs_user"].to_numpy()
        rows["mean_sys_share"] = of["system"].to_numpy()
    else:
        rows[list(SHARES)] = np.nan
    known = {"model_name": slug, "strip_system_prompt": stripped, "delta_steps": float(deltas[0]), **(meta or {})}
    return Run(slug, stripped, known, heads[[*by, *HEADS.values()]], _as_published(hidden), rows)


def _as_published(hidden: pd.DataFrame | None) -> pd.DataFrame:
    """Hidden norms as the layout has them: turn markers are text, the last layer is the one after the final norm."""
    if hidden is None:
        return pd.DataFrame(columns=["example", "layer", "site", "group", "norm"])
    last = hidden["layer"].max()
    kept = hidden[(hidden["layer"] < last) | (hidden["site"] == NORMED)]
    group = kept["group"].replace(dict.fromkeys(TEXT, "text"))
    kept = kept.assign(group=group, total=kept["norm"].fillna(0) * kept["tokens"])
    sums = kept.groupby(["example", "layer", "site", "group"], sort=False)[["total", "tokens"]].sum()
    return (sums["total"] / sums["tokens"].where(sums["tokens"] > 0)).rename("norm").reset_index()


def _meta(path: Path) -> dict[str, Any]:
    meta = read_object(path, MAX_JSON_BYTES)
    try:
        known = "delta_steps" not in meta or not np.isnan(number(meta, "delta_steps"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not known:
        raise ValueError(f"{path}: delta_steps is {meta['delta_steps']!r}, not a number")
    return meta


def _pictures(folder: Path) -> tuple[list[Picture], dict[str, str]]:
    """The pictures that count, and what is wrong with each other stem."""
    found: dict[str, Picture] = {}
    problems: dict[str, str] = {}
    files = (path for path in folder.iterdir() if path.suffix in (".json", ".npz") and path.name[0] != ".")
    for stem in sorted({path.stem for path in files}):
        try:
            found[stem] = read_picture(folder / stem)
        except (ValueError, FileNotFoundError) as error:
            problems[stem] = str(error)
    forms = Counter(tuple(picture.form.items()) for picture in found.values())
    usual = dict(forms.most_common(1)[0][0]) if forms else {}
    kept: dict[str, tuple[str, Picture]] = {}  # by example
    for stem, picture in found.items():
        differs = [what for what, how in picture.form.items() if how != usual[what]]
        if differs:
            what = differs[0]
            problems[stem] = f"{stem}.npz: {what} is {picture.form[what]}, {usual[what]} in most pictures"
        elif picture.example in kept:
            problems[stem] = f"{stem}.json: example {picture.example!r} is that of {kept[picture.example][0]}.json"
        else:
            kept[picture.example] = stem, picture
    return [picture for _, picture in kept.values()], problems


def _clear(folder: Path) -> None:
    """Take away an older run's pictures, meta.json before them: a folder without it is none that `read_run` takes for whole."""
    if not os.path.isdir(folder):
        return
    (folder / "meta.json").unlink(missing_ok=True)
    for path in (folder / "per_image").glob("*"):
        if PICTURE.fullmatch(path.name) and path.is_file():
            path.unlink()


def _numbers(examples: list[str]) -> dict[str, int]:
    """The image id of each example: the number that it is, or its place where one of them is none."""
    if all(re.fullmatch("[0-9]+", example) for example in examples) and len({*map(int, examples)}) == len(examples):
        return {example: int(example) for example in examples}
    return {example: place for place, example in enumerate(examples)}


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n").encode())
