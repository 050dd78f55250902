"""The run folders of Beyond Semantics' COCO diagnostics, read into tidy tables and written from ours.

`{slug}__sp-{0|1}/` (1: system prompt stripped) holds meta.json, preds.json, per_image/<id>.npz and .json, and analysis/ with
avg_*.npy and summary.json (its run_coco_diagnostics.py and analyze_coco_diagnostics.py). Knows that layout; no model.

The study's names stand in the files, ours in the tables. Its last layer of hidden norms is taken after the final norm, so it is
labelled so. Its delta_gv is divided by delta_steps, which is 1 in what was published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatialprobes.sources.arrays import read_npy, read_npz, write_npy, write_npz
from spatialprobes.stats import bootstrap
from spatialprobes.tables import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float

HEADS = {  # array of a picture, [layer, head] -> column
    "head_vision_share": "cmb",
    "alphaV": "alpha_v",
    "share_prod_notV": "share_prod_not_v",
    "delta_gv": "delta_g_v",
    "delta_alphaV": "delta_alpha_v",
}
HIDDEN = {"hidden_norms_sys": "system", "hidden_norms_user_text": "text", "hidden_norms_vision": "vision"}  # [layer]
GRID = "hidden_norms_grid"  # [layer, token]
SHARES = ("mean_vision_share", "mean_text_share", "mean_sys_share")
AVERAGES = {"alphaV": "alpha_v", "delta_gv": "delta_g_v", "abs_delta_gv": "abs_delta_g_v", "delta_alphaV": "delta_alpha_v"}
TEXT = ("user", "role")  # the study's user text has the turn markers in it
STREAM, NORMED = "stream", "final norm"
FOLDER = re.compile(r"(?P<slug>[^/\\]+)__sp-(?P<stripped>[01])")
MAX_IMAGE_BYTES = 256_000_000  # of the arrays of one picture
MAX_JSON_BYTES = 200_000_000


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

    A picture is counted where both its files are there and say the same [layer, head]; whatever else is found, the error rows of
    the original ({"error": ...}) among it, stands under `problems`. Raises FileNotFoundError for the folder or what it lacks,
    ValueError for a name that is no run's, a broken meta.json, and where no picture can be counted.
    """
    folder = Path(folder)
    name = FOLDER.fullmatch(folder.name)
    if not name:
        raise ValueError(f"{folder.name!r} is no run folder; it would be called <slug>__sp-0 or <slug>__sp-1")
    for part in (folder, folder / "per_image"):
        if not part.is_dir():
            raise FileNotFoundError(f"no folder {part}")
    meta = _json(folder / "meta.json")
    heads, hidden, images, problems, grids, shape = [], [], [], [], {}, None
    files = {path.stem for path in (folder / "per_image").iterdir() if path.suffix in (".json", ".npz") and path.name[0] != "."}
    for stem in sorted(files):
        try:
            facts, arrays = _picture(folder / "per_image" / stem)
            shares = {key: _number(facts, key) for key in SHARES}
            found = _shape(arrays)
            if shape not in (None, found):
                raise ValueError(f"{stem}.npz: [layer, head] is {found}, {shape} in the pictures before")
        except (ValueError, FileNotFoundError) as error:
            problems.append({"example": stem, "error": str(error)})
            continue
        shape, example = found, str(facts.get("example", stem))
        heads.append(_heads(example, arrays, found))
        hidden.append(_hidden(example, arrays))
        images.append({"example": example, **{key: facts.get(key) for key in ("image_id", "file_name", "caption")}, **shares})
        if GRID in arrays:
            grids[example] = arrays[GRID]
    if not heads:
        first = f", the first: {problems[0]['error']}" if problems else ""
        raise ValueError(f"{folder}: no picture of {len(files)} can be counted{first}")
    tables = (pd.concat(heads, ignore_index=True), pd.concat(hidden, ignore_index=True), pd.DataFrame(images))
    return Run(name["slug"], name["stripped"] == "1", meta, *tables, pd.DataFrame(problems, columns=["example", "error"]), grids)


def write_run(run: Run, root: str | Path) -> Path:
    """Write `<root>/<slug>__sp-{0|1}/` as the original does, analysis included; each file whole or not at all.

    Ids that are whole numbers are the image ids; if any is not, pictures are numbered in their order. Problems are written as
    the original's error rows. Raises ValueError for a slug that is no folder's name and for tables that do not fit together.
    """
    if not FOLDER.fullmatch(run.name) or run.slug.startswith("."):
        raise ValueError(f"slug {run.slug!r} is no folder's name")
    folder = Path(root) / run.name
    examples = list(dict.fromkeys(run.heads["example"]))
    if len(run.images) != len(examples) or set(run.images["example"]) != set(examples):
        raise ValueError(f"{run.name}: {len(examples)} examples in heads, {len(run.images)} in images; they must be the same")
    numbers = _numbers([*examples, *run.problems["example"]])
    hidden = {example: part for example, part in run.hidden.groupby("example", sort=False)}
    images = run.images.set_index("example")
    predictions = []
    for example, part in run.heads.groupby("example", sort=False):
        arrays = _arrays(part) | (_hidden_arrays(hidden[example]) if example in hidden else {})
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
    averages = average(run.heads)
    for name, column in AVERAGES.items():
        write_npy(folder / "analysis" / f"avg_{name}.npy", _table(averages, column))
    _write_json(folder / "analysis" / "summary.json", summary(run))
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
    return frame, _json(folder / "summary.json")


def by_layer(runs: list[Run], seed: int = 0) -> pd.DataFrame:
    """Means over the heads of each layer, for `plots.diagnostics.comparison`; runs in the order given.

    Columns: run, model, layer, abs_delta_g_v, abs_delta_g_v_low, abs_delta_g_v_high, delta_alpha_v, and its _low and _high.
    Intervals resample pictures; NaN where a run has one.
    """
    rows = []
    for run in runs:
        signed = run.heads.assign(abs_delta_g_v=run.heads["delta_g_v"].abs())
        means = signed.groupby(["layer", "example"])[["abs_delta_g_v", "delta_alpha_v"]].mean()
        for layer, part in means.groupby("layer"):
            row = {"run": run.name, "model": str(run.meta.get("model_name", run.slug)), "layer": layer}
            for column in part:
                found = bootstrap(part[column].to_numpy(), None, seed=seed) if len(part) > 1 else None
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


# --- one picture ---


def _picture(stem: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    facts = _json(stem.with_suffix(".json"))
    if "error" in facts:
        raise ValueError(str(facts["error"]))
    arrays = read_npz(stem.with_suffix(".npz"), MAX_IMAGE_BYTES)
    if wrong := [name for name, array in arrays.items() if array.dtype.kind not in "fiu"]:
        raise ValueError(f"{stem.name}.npz: {wrong[0]} holds {arrays[wrong[0]].dtype}, not numbers")
    return facts, {name: array.astype(np.float64) for name, array in arrays.items()}


def _number(facts: Mapping[str, Any], key: str) -> float:
    value = facts.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ValueError(f"{key} is {value!r}, not a number")
    return np.nan if value is None else float(value)


def _shape(arrays: Mapping[str, np.ndarray]) -> tuple[int, int]:
    shapes = {arrays[name].shape for name in HEADS if name in arrays}
    if not shapes:
        raise ValueError(f"none of the arrays {', '.join(HEADS)}; there: {', '.join(arrays) or 'none'}")
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"arrays of the shapes {sorted(shapes)}; all must be the same [layer, head]")
    return shapes.pop()


def _heads(example: str, arrays: Mapping[str, np.ndarray], shape: tuple[int, int]) -> pd.DataFrame:
    """Layers that have no attention (NaN in all arrays) have no rows."""
    layer, head = (each.ravel() for each in np.indices(shape))
    values = {column: arrays[name].ravel() if name in arrays else np.nan for name, column in HEADS.items()}
    frame = pd.DataFrame({"example": example, "layer": layer, "head": head, **values})
    return frame.dropna(subset=list(HEADS.values()), how="all")


def _hidden(example: str, arrays: Mapping[str, np.ndarray]) -> pd.DataFrame:
    parts = []
    for name, group in HIDDEN.items():
        if name in arrays:
            norms = arrays[name].ravel()
            site = np.where(np.arange(len(norms)) == len(norms) - 1, NORMED, STREAM)
            place = {"layer": np.arange(len(norms)), "site": site, "group": group}
            parts.append(pd.DataFrame({"example": example, **place, "norm": norms}))
    return pd.concat(parts) if parts else pd.DataFrame(columns=["example", "layer", "site", "group", "norm"])


def _arrays(heads: pd.DataFrame) -> dict[str, np.ndarray]:
    return {name: _table(heads, column) for name, column in HEADS.items() if heads[column].notna().any()}


def _hidden_arrays(hidden: pd.DataFrame) -> dict[str, np.ndarray]:
    found = {}
    for name, group in HIDDEN.items():
        part = hidden[hidden["group"] == group].sort_values("layer")
        found |= {name: part["norm"].to_numpy(float)} if len(part) else {}
    return found


def _table(frame: pd.DataFrame, column: str) -> Float[np.ndarray, "layer head"]:
    found = np.full((frame["layer"].max() + 1, frame["head"].max() + 1), np.nan)
    found[frame["layer"], frame["head"]] = frame[column]
    return found


def _numbers(examples: list[str]) -> dict[str, int]:
    """The image id of each example: the number that it is, or its place where one of them is none."""
    if all(re.fullmatch("[0-9]+", example) for example in examples) and len({*map(int, examples)}) == len(examples):
        return {example: int(example) for example in examples}
    return {example: place for place, example in enumerate(examples)}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if (size := path.stat().st_size) > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {size:,} bytes; at most {MAX_JSON_BYTES:,}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not an object but {type(content).__name__}")
    return content


def _write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False, default=str) + "\n").encode())
