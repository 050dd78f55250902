"""A run of ours in the connector study's layout of result files, so that its scripts, and our audit of it, read both alike.

Each function takes plain tables (columns as our probes name them) and writes one kind of file below `out`: `geometry`,
`reconstruction`, `captions`, `perturbation`. Pictures are named as there, by folder and stem; one without a folder goes to
``all``. Signs are the study's: CLIPScore's drop is before - after in the captions' file and after - before in the perturbations'.
Knows tables; measures nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatialprobes.sources.connector_published import (
    CAPTION_FILE,
    CAPTIONS,
    COSINES,
    GEOMETRY,
    PER_IMAGE,
    PERTURBATION,
    RECONSTRUCTION,
    SCALARS,
)
from spatialprobes.tables import write_atomically

if TYPE_CHECKING:
    from jaxtyping import Float

LISTED = 128  # components of a mean spectrum
NO_FOLDER = "all"
PICTURE = re.compile(r"\.(jpe?g|png|webp|bmp)$", re.IGNORECASE)
KINDS = {"mask_zero": "mask", "low_rank": "lowrank", "orthogonal": "orthogonal", "mask_mean": "maskmean",
         "low_rank_energy": "lowrankenergy", "rerun": "none"}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9\-.]+")


def place(key: str) -> tuple[str, str]:
    """Folder and stem of a picture's key: "00000/000010000.jpg" is ("00000", "000010000"), "scene 3" is ("all", "scene 3")."""
    folder, slash, rest = key.partition("/")
    name = PICTURE.sub("", rest if slash else key).rpartition("/")[2]
    return (folder if slash else NO_FOLDER), name


def geometry(
    out: str | Path,
    model: str,
    overlaps: Mapping[str, pd.DataFrame],
    spectra: Mapping[str, pd.DataFrame],
    singular_values: Mapping[str, Float[np.ndarray, "n component"]],
    distances: Mapping[tuple[str, str], float],
    *,
    metric: str = "l2",
    per_image: bool = True,
) -> list[Path]:
    """``knn_out/<model>/<folder>/overlap_top<k>_<metric>_torch.json`` for every folder, and ``per_image.csv`` beside it.

    overlaps: "pre_post", and "<reference>_pre" and "_post", to [key, k, knor, displacement], a row a picture and k, neighbours
    taken among the pictures of the same folder (`neighbours.measure(gallery="folder")`). spectra: "pre" and "post" to [key,
    effective_rank, ...] (`spectra.measure`), in the order of the rows of singular_values, [n, all components]. distances: (which,
    folder) to the correlation of pairwise distances, which as in overlaps, folder as `place` gives it. Deviations are over n.

    Raises ValueError naming what is missing, keys that the tables don't share, and numbers that JSON can't hold.
    """
    _check_model(model)
    keys = _keys(spectra["pre"], "spectra of pre")
    for name, frame in {"spectra of post": spectra["post"], **{f"overlaps of {of}": one for of, one in overlaps.items()}}.items():
        _same_keys(keys, frame, name)
    for side in ("pre", "post"):
        if len(singular_values[side]) != len(spectra[side]):
            raise ValueError(f"singular values of {side}: {len(singular_values[side])} rows, {len(spectra[side])} pictures")
    wide = _per_image(overlaps, spectra)
    places = pd.DataFrame([place(key) for key in wide.index], columns=["folder", "stem"], index=wide.index)
    _unique(places, model)
    folders = places["folder"]
    largest = max(int(k) for k in overlaps["pre_post"]["k"].unique())
    written = []
    for folder in sorted(folders.unique()):
        own = wide.index[folders == folder]
        content = _overlap_file(own, wide, overlaps, spectra, singular_values, _of(distances, folder, overlaps))
        path = Path(out) / GEOMETRY / model / folder / f"overlap_top{largest}_{metric}_torch.json"
        written.append(write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()))
        if per_image:
            table = wide.loc[own].assign(key=places.loc[own, "stem"])
            written.append(_csv(path.with_name(PER_IMAGE), table[["key", *wide.columns]]))
    return written


def reconstruction(out: str | Path, model: str, frame: pd.DataFrame) -> list[Path]:
    """``recon_pre_eval/<model>/<folder>.csv``: from [key, mse, cosine] (`reconstruction.evaluate`), six decimals as there.

    Raises ValueError for numbers that are not finite.
    """
    _check_model(model)
    _finite(frame, ("mse", "cosine"), RECONSTRUCTION)
    places = pd.DataFrame([place(key) for key in _keys(frame, RECONSTRUCTION)], columns=["folder", "stem"])
    _unique(places, model)
    rows = places.assign(mse_pre=frame["mse"].to_numpy(float), cosine_pre=frame["cosine"].to_numpy(float), model=model)
    written = []
    for folder, own in rows.groupby("folder"):
        table = own.rename(columns={"stem": "key", "folder": "shard"})[["key", "shard", "model", "mse_pre", "cosine_pre"]]
        written.append(_csv(Path(out) / RECONSTRUCTION / model / f"{folder}.csv", table, "%.6f"))
    return written


def captions(out: str | Path, model: str, frame: pd.DataFrame) -> Path:
    """``caption_compare_out_nor/<model>/caption_original_vs_recon.csv``: from captions by arm with their scores.

    frame: [key, arm, caption, clipscore_100, bertscore_f1] of the arms "stored" and "reconstructed", scored against "stored";
    reproj_mse and reproj_cosine on the reconstructed rows, and clipscore_gt and bertscore_gt_f1 where there is a caption by hand.
    Scores of empty captions are left empty, as there. Raises ValueError for an arm that is missing, or for other keys in it.
    """
    _check_model(model)
    before, after = (_arm(frame, arm) for arm in ("stored", "reconstructed"))
    _same_keys(list(before.index), after.reset_index(), "captions of reconstructed")
    after = after.loc[before.index]
    score_before, score_after = _scores(before, "clipscore_100"), _scores(after, "clipscore_100")
    places = [place(key) for key in before.index]
    _unique(pd.DataFrame(places, columns=["folder", "stem"]), model)
    table = pd.DataFrame(
        {
            "sample_id": [f"{folder}:{row}:{name}" for row, (folder, name) in enumerate(places)],
            "key": [name for _, name in places],
            "folder_id": [folder for folder, _ in places],
            "model": model,
            "image_path": list(before.index),
            "caption_post_direct": before["caption"].to_numpy(),
            "caption_recon": after["caption"].to_numpy(),
            "reproj_mse_recon": after["reproj_mse"].to_numpy(float),
            "reproj_cosine_recon": after["reproj_cosine"].to_numpy(float),
            "clipscore_post_direct": score_before,
            "clipscore_recon": score_after,
            "clipscore_drop": score_before - score_after,
            "bertscore_recon_vs_post_f1": np.where(_empty(before), np.nan, _scores(after, "bertscore_f1")),
        }
    )
    if "clipscore_gt" in before:
        table.insert(9, "clipscore_gt", before["clipscore_gt"].to_numpy(float))
    if "bertscore_gt_f1" in before:
        table["bertscore_post_vs_gt_f1"] = _scores(before, "bertscore_gt_f1")
        table["bertscore_recon_vs_gt_f1"] = _scores(after, "bertscore_gt_f1")
    table = table.drop(columns=[name for name in table if name.endswith(("_gt", "_gt_f1")) and table[name].isna().all()])
    return _csv(Path(out) / CAPTIONS / model / CAPTION_FILE, table)


def perturbation(out: str | Path, model: str, frame: pd.DataFrame, seed: int) -> list[Path]:
    """``perturb_out_scored/perturb_<model>_<mode>_<level>.csv`` for every kind and level: from perturbed captions with scores.

    frame: [key, kind, level, caption, clipscore_100, bertscore_f1] with rows of kind "none" (the captions before, against which
    BERTScore was taken), and clipscore_gt and bertscore_gt_f1 where there is a caption by hand. Kinds are written by the study's
    names (`KINDS`); the second run ("rerun") as mode "none". seed: of the masks. Raises ValueError for any other kind.
    """
    _check_model(model)
    base = _rows(frame[frame["kind"] == "none"], "kind none")
    written = []
    for (kind, level), own in frame[frame["kind"] != "none"].groupby(["kind", "level"], dropna=False):
        if kind not in KINDS:
            raise ValueError(f"perturbation {kind!r} has no name in the study's files; legal: {', '.join(KINDS)}")
        level = 0.0 if kind == "rerun" or pd.isna(level) else float(level)
        after = _rows(own, f"{kind} {level:g}")
        _same_keys(list(base.index), after.reset_index(), f"captions of {kind} {level:g}")
        table = _perturbed(base, after.loc[base.index], model).assign(mode=KINDS[kind], level=level, seed=seed)
        order = ["sample_id", "key", "image_path", "caption_original", "caption_perturbed", "mode", "level", "seed"]
        table = table[[*order, *(name for name in table if name not in order)]]
        written.append(_csv(Path(out) / PERTURBATION / f"perturb_{model}_{KINDS[kind]}_{level:g}.csv", table))
    return written


# --- one file ---


def _per_image(overlaps: Mapping[str, pd.DataFrame], spectra: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """A row a picture, by key: the study's columns of ``per_image.csv``."""
    parts = [spectra[side].set_index("key")[list(SCALARS)].add_prefix(f"{side}_") for side in ("pre", "post")]
    for of, frame in overlaps.items():
        wide = frame.pivot(index="key", columns="k", values="knor")
        parts.append(wide.rename(columns=lambda k, of=of: f"{of}_knor{int(k)}").rename_axis(columns=None))
    return pd.concat(parts, axis=1, join="inner")


def _overlap_file(own, wide, overlaps, spectra, singular_values, distances: Mapping[str, float]) -> dict[str, Any]:
    """The content of the overlap file of the pictures `own` (keys)."""
    summaries = {side: spectra[side].set_index("key").loc[own] for side in ("pre", "post")}
    spectrum: dict[str, Any] = {}
    for side, frame in summaries.items():
        rows = np.asarray(singular_values[side], np.float64)[np.flatnonzero(spectra[side]["key"].isin(own))]
        spectrum[f"{side}_summary"] = _summary(frame, SCALARS) | _spectrum(rows)
    for name in (
        "effective_rank",
        "effective_rank_normalized",
        "top10_energy_ratio",
        "top1_energy_ratio",
        "k80_energy",
        "k90_energy",
    ):
        spectrum[f"{name}_mean_delta"] = _delta(spectrum, name)
    cosines = {f"{side}_summary": _summary(frame, COSINES) for side, frame in summaries.items()}
    for name in COSINES:
        cosines[f"{name}_mean_delta"] = _delta(cosines, name)
    facts: dict[str, Any] = {"knn_pool": "mean", "pairwise_corr": distances["pre_post"], "spectrum_and_rank": spectrum,
                             "cosine_concentration": cosines}  # fmt: skip
    for ref in sorted({of.rpartition("_")[0] for of in overlaps if of != "pre_post"}):
        both = {f"pairwise_corr_ref_{side}": distances[f"{ref}_{side}"] for side in ("pre", "post")}
        facts[f"{ref}_analysis"] = {"n_common_3way": len(own), **both}
    content: dict[str, Any] = {"global": facts}
    for of, frame in overlaps.items():
        part = frame[frame["key"].isin(own)]
        for k, rows in part.groupby("k"):
            content[f"top{int(k)}" if of == "pre_post" else f"{of}_top{int(k)}"] = _overlap(of, rows, distances[of])
    return content


def _overlap(of: str, rows: pd.DataFrame, distance: float) -> dict[str, float]:
    knor, moved = rows["knor"].to_numpy(float), rows["displacement"].to_numpy(float)
    found = {"mean": float(knor.mean()), "median": float(np.median(knor)), "std": float(knor.std())}
    found["mean_rank_displacement"] = float(moved.mean())
    if of == "pre_post":
        found |= {"median_rank_displacement": float(np.median(moved)), "std_rank_displacement": float(moved.std())}
        return found | {"pairwise_corr": distance}
    return found | {f"pairwise_corr_ref_{of.rpartition('_')[2]}": distance}


def _summary(frame: pd.DataFrame, names: Sequence[str]) -> dict[str, float]:
    """Mean, median and deviation over the pictures that have a value; there must be one."""
    found = {}
    for name in names:
        values = frame[name].dropna().to_numpy(float)
        if not len(values):
            raise ValueError(f"{name}: no picture of the folder has a value")
        found |= {
            f"{name}_mean": float(values.mean()),
            f"{name}_median": float(np.median(values)),
            f"{name}_std": float(values.std()),
        }
    return found


def _spectrum(rows: Float[np.ndarray, "n component"]) -> dict[str, list[float]]:
    energy = rows**2
    total = energy.sum(axis=1, keepdims=True)
    shares = energy[total[:, 0] > 0] / total[total[:, 0] > 0]
    return {
        "mean_singular_values_topn": rows[:, :LISTED].mean(axis=0).tolist(),
        "mean_energy_spectrum_topn": shares[:, :LISTED].mean(axis=0).tolist(),
    }


def _delta(block: Mapping[str, Any], name: str) -> float:
    return block["post_summary"][f"{name}_mean"] - block["pre_summary"][f"{name}_mean"]


def _perturbed(base: pd.DataFrame, after: pd.DataFrame, model: str) -> pd.DataFrame:
    places = [place(key) for key in base.index]
    _unique(pd.DataFrame(places, columns=["folder", "stem"]), model)
    original, perturbed = _scores(base, "clipscore_100"), _scores(after, "clipscore_100")
    found = {
        "sample_id": [f"{folder}:{row}:{name}" for row, (folder, name) in enumerate(places)],
        "key": [name for _, name in places],
        "image_path": list(base.index),
        "caption_original": base["caption"].to_numpy(),
        "caption_perturbed": after["caption"].to_numpy(),
        "clipscore_original": original,
        "clipscore_perturbed": perturbed,
        "clipscore_gt": base["clipscore_gt"].to_numpy(float) if "clipscore_gt" in base else np.nan,
        "clipscore_drop": perturbed - original,
        "bertscore_original": _scores(base, "bertscore_gt_f1") if "bertscore_gt_f1" in base else np.nan,
        "bertscore_perturbed": _scores(after, "bertscore_gt_f1") if "bertscore_gt_f1" in after else np.nan,
        "bertscore_orig_vs_pert": np.where(_empty(base), np.nan, _scores(after, "bertscore_f1")),
    }
    return pd.DataFrame(found)


# --- rows ---


def _arm(frame: pd.DataFrame, arm: str) -> pd.DataFrame:
    return _rows(frame[frame["arm"] == arm], f"arm {arm}")


def _rows(frame: pd.DataFrame, what: str) -> pd.DataFrame:
    if frame.empty:
        raise ValueError(f"no captions of {what}")
    _keys(frame, f"captions of {what}")
    return frame.set_index("key")


def _scores(frame: pd.DataFrame, name: str) -> Float[np.ndarray, " n"]:
    """A score, NaN for empty captions."""
    return np.where(_empty(frame), np.nan, frame[name].to_numpy(float))


def _empty(frame: pd.DataFrame) -> np.ndarray:
    return (frame["caption"].str.strip() == "").to_numpy()


def _keys(frame: pd.DataFrame, what: str) -> list[str]:
    keys = frame["key"].tolist()
    if twice := frame.loc[frame["key"].duplicated(), "key"].tolist():
        raise ValueError(f"{what}: key {twice[0]!r} stands twice")
    if wrong := [key for key in keys if not isinstance(key, str)]:
        raise ValueError(f"{what}: key {wrong[0]!r} is {type(wrong[0]).__name__}; keys are strings")
    return keys


def _same_keys(keys: Sequence[str], frame: pd.DataFrame, what: str) -> None:
    if apart := set(keys) ^ set(frame["key"]):
        raise ValueError(f"{what}: {len(apart)} keys are not in both tables, among them {min(apart)!r}")


def _unique(places: pd.DataFrame, model: str) -> None:
    if (twice := places.duplicated("stem")).any():
        raise ValueError(
            f"{model}: two pictures are called {places.loc[twice, 'stem'].iloc[0]!r}; the study's files know stems alone"
        )


def _finite(frame: pd.DataFrame, names: Sequence[str], what: str) -> None:
    for name in names:
        if not np.isfinite(values := frame[name].to_numpy(float)).all():
            raise ValueError(f"{what}: {name} of {frame['key'].iloc[int((~np.isfinite(values)).argmax())]!r} is not finite")


def _of(distances: Mapping[tuple[str, str], float], folder: str, overlaps: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for of in overlaps:
        if (of, folder) not in distances:
            raise ValueError(f"distances: none of {of!r} in folder {folder!r}")
        found[of] = float(distances[of, folder])
    return found


def _check_model(model: str) -> None:
    if not NAME.fullmatch(model):
        raise ValueError(f"model {model!r} becomes part of files' names: letters, digits, '-' and '.'")


def _csv(path: Path, table: pd.DataFrame, form: str | None = None) -> Path:
    return write_atomically(path, table.to_csv(index=False, float_format=form).encode())
