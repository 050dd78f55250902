"""Tables of the connector study's audit with made-up numbers: what its figures are tried on."""

import numpy as np
import pandas as pd

LABELS = ("LLaVA", "Idefics2", "Qwen-2.5-VL", "Qwen-3.5")


def overlaps():
    pairs = ("pre_post", *(f"{ref}_{side}" for ref in ("clip", "dino", "dinov3") for side in ("pre", "post")))
    rows = [
        (label, of, k, 0.5 - 0.1 * m - 0.02 * o + 1 / k)
        for m, label in enumerate(LABELS)
        for o, of in enumerate(pairs)
        for k in (10, 50, 100)
    ]
    frame = pd.DataFrame(rows, columns=["label", "of", "k", "mean"])
    frame = frame.assign(low=frame["mean"] - 0.02, high=frame["mean"] + 0.02, floor=1.7 / frame["k"], chance=frame["k"] / 8000)
    excess = (frame["mean"] - frame["floor"]) / (1 - frame["floor"])
    return frame.assign(excess=excess, excess_low=excess - 0.02, excess_high=excess + 0.02)


def spectra():
    rows = [
        (label, side, i, 500 / i**m, 1 / i ** (m + 1))
        for m, label in enumerate(LABELS)
        for side in ("pre", "post")
        for i in range(1, 129)
    ]
    return pd.DataFrame(rows, columns=["label", "side", "component", "singular_value", "energy"])


def diagnostics():
    names = ("effective_rank", "effective_rank_normalized", "top1_energy_ratio", "top10_energy_ratio", "mean_pairwise_cosine")
    rows = [
        (label, side, name, (30.0 if name == "effective_rank" else 0.5) / (1 + m))
        for m, label in enumerate(LABELS)
        for side in ("pre", "post")
        for name in names
    ]
    frame = pd.DataFrame(rows, columns=["label", "side", "measure", "mean"])
    return frame.assign(low=0.9 * frame["mean"], high=1.1 * frame["mean"])


def captions(rows=60):
    rng = np.random.default_rng(0)
    parts = []
    for m, label in enumerate(LABELS):
        cosine = 0.9 - 0.05 * m + 0.02 * rng.standard_normal(rows)
        drop = -10 * (cosine - cosine.mean()) + rng.standard_normal(rows)
        part = {
            "label": label,
            "reproj_cosine_recon": cosine,
            "reproj_mse_recon": 10.0 ** (-m) * (1.5 - cosine),
            "clipscore_drop": drop,
        }
        parts.append(pd.DataFrame({**part, "bertscore_recon_vs_post_f1": np.clip(0.95 + 0.02 * rng.standard_normal(rows), 0, 1)}))
    return pd.concat(parts, ignore_index=True)


def correlations():
    forms = [("all", "nothing"), ("deduplicated", "nothing"), ("deduplicated", "baseline"), ("deduplicated", "length")]
    rows = [
        (label, x, "clipscore_drop", "pearson", which, given, 0.1 * m - 0.05 * place)
        for m, label in enumerate(LABELS)
        for x in ("reproj_cosine_recon", "reproj_mse_recon", "cosine_pre", "mse_pre")
        for place, (which, given) in enumerate(forms)
    ]
    frame = pd.DataFrame(rows, columns=["label", "x", "y", "statistic", "rows", "given", "r"])
    return frame.assign(low=frame["r"] - 0.04, high=frame["r"] + 0.04)


def perturbations():
    levels = [("lowrank", level) for level in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)] + [("mask", level) for level in (0.3, 0.5, 0.7)]
    rows = [(label, mode, level, 8.0 * level / (1 + m)) for m, label in enumerate(LABELS) for mode, level in levels]
    frame = pd.DataFrame(rows, columns=["label", "mode", "level", "drop"])
    empty = np.where((frame["mode"] == "mask") & (frame["level"] > 0.4), 700, 0)
    frame = frame.assign(
        n=5000,
        empty=empty,
        empty_share=empty / 5000,
        bert=1 - frame["drop"] / 50,
        rank=500 * frame["level"],
        energy=frame["level"],
    )
    frame["drop_empty_as_zero"] = frame["drop"] + 3
    for name in ("drop", "bert", "drop_empty_as_zero"):
        frame[f"{name}_low"], frame[f"{name}_high"] = frame[name] - 0.02, frame[name] + 0.02
    return frame


AUDIT_FRAMES = {
    "connector_published.knor": overlaps,
    "connector_published.knor_bars": overlaps,
    "connector_published.above_copies": overlaps,
    "connector_published.spectrum": spectra,
    "connector_published.diagnostics": diagnostics,
    "connector_published.perturbation": perturbations,
    "connector_published.empty_captions": perturbations,
    "connector_captions_published.scatter": captions,
    "connector_captions_published.scatter_grid": captions,
    "connector_captions_published.violins": captions,
    "connector_captions_published.boxes": captions,
    "connector_captions_published.histograms": captions,
    "connector_captions_published.trend": captions,
    "connector_captions_published.correlations": correlations,
}
