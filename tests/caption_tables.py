"""Tables of captions as the probes write them, with made-up numbers of a likely size: what the figures are tried on."""

import numpy as np
import pandas as pd

MODELS = ("lab-llava", "lab-idefics2", "lab-qwen2.5-vl")
ARMS = ("live", "rerun", "stored", "reconstructed", "connector")
LEVELS = {
    "mask_zero": (0.3, 0.5, 0.7), "mask_mean": (0.3, 0.5, 0.7), "low_rank": (0.01, 0.05, 0.1, 0.2, 0.3, 0.5),
    "low_rank_energy": (0.5, 0.9), "orthogonal": (0.3, 1.0),
}  # fmt: skip


def arms_summary():
    rows = []
    for i, model in enumerate(MODELS):
        for j, arm in enumerate(ARMS):
            for value, best, half in (
                ("clipscore_100", 93 - 2 * i, 0.8),
                ("lab_where", 0.8 - 0.05 * i, 0.05),
                ("empty", 0.02, 0.01),
            ):
                lost = (0, 0, 0.01, 0.12, 0.2)[j] * best * (1 + i)
                for empties in ("as 0", "left out")[: 1 if value == "empty" else 2]:
                    rows.append((model, arm, value, empties, best - lost, best - lost - half, best - lost + half, 200, j))
    return pd.DataFrame(rows, columns=["model", "arm", "value", "empties", "estimate", "low", "high", "n", "empty"])


def picture_drops(n=150):
    rng, frames = np.random.default_rng(0), []
    for i, model in enumerate(MODELS[:2]):
        cosine = 0.9 - 0.08 * rng.random(n) * (1 + i)
        drop = 60 * (0.9 - cosine) + rng.normal(0, 3, n)
        frames.append(pd.DataFrame({"model": model, "arm": "reconstructed", "reproj_cosine": cosine, "clipscore_100_drop": drop}))
    found = pd.concat(frames, ignore_index=True)
    found.loc[3, "clipscore_100_drop"] = np.nan
    return pd.concat([found, found.assign(arm="stored", reproj_cosine=np.nan)], ignore_index=True)


def perturbed_curves(models=MODELS[:2]):
    rows = []
    for i, model in enumerate(models):
        base = {"retained_energy": 1.0, "relative_error": 0.0, "masked_share": 0.0}
        rows.append((model, "none", 0.0, 0.0, 0.0, 0.0, 0.0, base))
        rows.append((model, "rerun", 0.0, 0.1, -0.6, 0.8, 0.0, base))
        for kind, levels in LEVELS.items():
            for level in levels:
                low = kind.startswith("low_rank")
                lost = (1 - level) ** (1 if kind == "low_rank_energy" else 12) if low else level**2
                rank = max(1, round(level * (36, 16)[i])) if low else np.nan
                axes = {"rank": rank, "retained_energy": 1 - 0.6 * lost if low else np.nan}
                axes |= {"relative_error": 0.6 * lost if low else level, "masked_share": level * kind.startswith("mask")}
                drop = 60 * lost / (1 + i)
                rows.append((model, kind, level, drop, drop - 3, drop + 3, lost / 3, axes))
    found = []
    for model, kind, level, drop, low, high, empty, axes in rows:
        one = {"model": model, "kind": kind, "level": level, "n": 200, "empty": int(200 * empty), "rank": np.nan, **axes}
        for empties in ("as 0", "left out"):
            value = {"value": "clipscore_100_drop", "empties": empties, "estimate": drop, "low": low, "high": high}
            found.append({**one, **value})
        share = {"value": "empty", "empties": "as 0", "estimate": empty, "low": max(0, empty - 0.05), "high": empty + 0.05}
        found.append({**one, **share})
    return pd.DataFrame(found)


def correlations():
    rng, rows = np.random.default_rng(1), []
    for model in MODELS[:2]:
        for predictor in ("reproj_cosine", "reproj_mse", "effective_rank_post"):
            for outcome in ("clipscore_100_drop", "bertscore_f1"):
                for kind in ("pearson", "spearman"):
                    for which in ("all", "deduplicated"):
                        for control in ("", "baseline", "baseline, length"):
                            r = rng.normal(0, 0.15)
                            q = 0.01 if abs(r) > 0.1 else 0.4
                            n = 2000 if which == "all" else 1477
                            rows.append((model, predictor, outcome, kind, control, which, r, r - 0.06, r + 0.06, q, n))
    names = ["model", "predictor", "outcome", "kind", "controls", "rows", "r", "low", "high", "q", "n"]
    return pd.DataFrame(rows, columns=names)


def pooled_correlations():
    rows = []
    for predictor, pooled, within in (("reproj_cosine", -0.03, -0.04), ("reproj_mse", -0.36, 0.004)):
        ends = [pooled, pooled - 0.03, pooled + 0.03, within, within - 0.03, within + 0.03, within - 0.05, within + 0.06]
        rows.append((predictor, "bertscore_f1", "pearson", *ends, pooled < -0.1, 4000, 2))
    names = [
        "pooled",
        "pooled_low",
        "pooled_high",
        "within",
        "within_low",
        "within_high",
        "least",
        "greatest",
        "misleads",
        "n",
        "models",
    ]
    return pd.DataFrame(rows, columns=["predictor", "outcome", "kind", *names])


CAPTION_FRAMES = {
    "captions.scores": arms_summary,
    "captions.drops": picture_drops,
    "perturbation.curves": perturbed_curves,
    "caption_prediction.forest": correlations,
    "caption_prediction.pooled": pooled_correlations,
}
