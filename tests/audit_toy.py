"""A small run in the connector study's layout, written by our exporter from tables whose numbers are known, for the audit."""

import json

import numpy as np
import pandas as pd

from spatialprobes.probes import connector_export
from spatialprobes.sources.connector_published import COSINES, SCALARS

MODELS = ("lab-llava", "lab-qwen2.5-vl")
SIZES = {"00000": 24, "00001": 20}
KS = (10, 50, 100)
PAIRS = ("pre_post", "dino_pre", "dino_post")
LEVELS = {"low_rank": (0.1, 0.5), "mask_zero": (0.5,)}


def pictures():
    """Ids as `sources.image_folder` gives them; stems are unique over folders."""
    return [f"{folder}/{10_000 * int(folder) + i:09d}.jpg" for folder, n in SIZES.items() for i in range(n)]


def overlaps(rng, pairs=PAIRS, ks=KS):
    made = {}
    for of in pairs:
        rows = [(key, k, rng.integers(0, k + 1) / k, rng.uniform(0, k)) for key in pictures() for k in ks]
        made[of] = pd.DataFrame(rows, columns=["key", "k", "knor", "displacement"])
    return made


def spectra(rng, components=16):
    made, values = {}, {}
    for side in ("pre", "post"):
        values[side] = -np.sort(-rng.uniform(0.1, 5, (len(pictures()), components)), axis=1)
        frame = pd.DataFrame(rng.uniform(0.1, 1, (len(pictures()), len(SCALARS) + len(COSINES))), columns=[*SCALARS, *COSINES])
        frame["effective_rank"] = frame["effective_rank_normalized"] * components
        made[side] = frame.assign(key=pictures())
    return made, values


def distances(rng, pairs=PAIRS):
    return {(of, folder): float(rng.uniform(-1, 1)) for of in pairs for folder in SIZES}


def reconstruction(rng):
    """Every third picture of a folder is a copy of the one before it."""
    frame = pd.DataFrame(
        {"key": pictures(), "mse": rng.uniform(0, 1, len(pictures())), "cosine": rng.uniform(0.5, 1, len(pictures()))}
    )
    for row in range(2, SIZES["00000"], 3):
        frame.loc[row, ["mse", "cosine"]] = frame.loc[row - 1, ["mse", "cosine"]]
    return frame


def words(rng):
    return " ".join(rng.choice(["a", "red", "cup", "on", "the, table", 'a "plate"'], rng.integers(2, 7)))


def captions(rng):
    """Of the second folder; the loss follows the cosine and the score before."""
    own = [key for key in pictures() if key.startswith("00001/")]
    cosine = rng.uniform(0.5, 1, len(own))
    before = 30 + 3 * rng.standard_normal(len(own))
    loss = -6 * (cosine - 0.75) + 0.3 * (before - 30) + 0.3 * rng.standard_normal(len(own))
    shared = {"key": own, "clipscore_gt": rng.uniform(25, 35, len(own))}
    stored = pd.DataFrame({**shared, "arm": "stored", "clipscore_100": before, "bertscore_f1": np.nan})
    made = pd.DataFrame({**shared, "arm": "reconstructed", "clipscore_100": before - loss, "bertscore_f1": 0.9 + 0.1 * cosine})
    made = made.assign(reproj_mse=2 - cosine + 0.1 * rng.standard_normal(len(own)), reproj_cosine=cosine)
    frame = pd.concat([stored, made], ignore_index=True)
    return frame.assign(caption=[words(rng) for _ in range(len(frame))], bertscore_gt_f1=rng.uniform(0.8, 0.95, len(frame)))


def perturbed(rng, empty=3, rows=None):
    """Of the first folder; masks leave the first `empty` captions empty."""
    own = [key for key in pictures() if key.startswith("00000/")][:rows]
    parts = []
    settings = [("none", np.nan), *((kind, level) for kind, levels in LEVELS.items() for level in levels), ("rerun", np.nan)]
    for kind, level in settings:
        score = rng.uniform(25, 35, len(own)) - (3 if kind == "mask_zero" else 0)
        part = pd.DataFrame({"key": own, "kind": kind, "level": level, "clipscore_100": score, "clipscore_gt": 30.0})
        part["bertscore_f1"], part["bertscore_gt_f1"] = rng.uniform(0.8, 1, len(own)), rng.uniform(0.8, 0.9, len(own))
        part["caption"] = [words(rng) for _ in own]
        if kind == "mask_zero":
            part.loc[: empty - 1, "caption"] = " "
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def write(out, models=MODELS, seed=0):
    """The whole run; the tables it was written from, by model and kind."""
    made = {}
    shared = reconstruction(np.random.default_rng(seed))  # the same pictures are copies for every model
    for place, model in enumerate(models):
        rng = np.random.default_rng([seed, place])
        own = {"overlaps": overlaps(rng), "distances": distances(rng), "captions": captions(rng), "perturbed": perturbed(rng)}
        own["spectra"], own["singular_values"] = spectra(rng)
        own["reconstruction"] = shared.assign(mse=shared["mse"] * (1 + 0.5 * place))
        connector_export.geometry(out, model, own["overlaps"], own["spectra"], own["singular_values"], own["distances"])
        connector_export.reconstruction(out, model, own["reconstruction"])
        connector_export.captions(out, model, own["captions"])
        connector_export.perturbation(out, model, own["perturbed"], seed=1337)
        made[model] = own
    return made


def overlap_file(root, model=MODELS[0], folder="00000"):
    return root / "knn_out" / model / folder / "overlap_top100_l2_torch.json"


def edit_json(path, change):
    """Change the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
