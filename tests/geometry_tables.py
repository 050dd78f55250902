"""Tables of connector geometry as the probes write them, with made-up numbers: what the figures are tried on."""

import numpy as np
import pandas as pd

MODELS = ("lab-llava", "lab-idefics2", "lab-qwen2.5-vl", "lab-qwen3.5")
SITES = ("pre", "pre_normed", "post")


def _product(**axes):
    return pd.MultiIndex.from_product(axes.values(), names=list(axes)).to_frame(index=False)


def _within(estimate, half):
    return {"low": np.clip(estimate - half, 0, 1), "high": np.clip(estimate + half, 0, 1)}


def overlaps(**columns):
    """As `neighbours.summary`."""
    frame = _product(**(columns or {"model": MODELS, "comparison": ("pre", "pre_normed")}), k=(10, 50, 100))
    kept = 0.5 - 0.12 * frame["model"].map({name: i for i, name in enumerate(MODELS)})
    knor = kept + 0.1 * np.random.default_rng(0).uniform(size=len(frame)) + (frame["k"] == 10) * 0.05
    floor = frame["k"].map({10: 0.17, 50: 0.041, 100: 0.021})
    return frame.assign(knor=knor, **_within(knor, 0.02), chance=frame["k"] / 8674, floor=floor, n=8675)


def reference_overlaps():
    return overlaps(model=MODELS, reference=("lab-clip", "lab-dino"), site=SITES)


def likeness():
    """As `similarity.measure`."""
    kinds = [("pearson", "l2"), ("spearman", "l2"), ("pearson", "cosine"), ("spearman", "cosine"), ("cka", "linear"),
             ("cka_unbiased", "linear")]  # fmt: skip
    frame = _product(model=MODELS, comparison=("pre", "pre_normed"), kind=kinds)
    estimate = np.random.default_rng(1).uniform(0.1, 0.95, size=len(frame))
    frame = frame.assign(measure=frame["kind"].str[0], metric=frame["kind"].str[1], estimate=estimate)
    return frame.drop(columns="kind").assign(low=estimate - 0.05, high=estimate + 0.04, n=2000, clusters=1900)


def mean_spectra():
    """As `spectra.spectrum`."""
    frame = _product(model=MODELS, site=SITES, component=range(1, 65))
    rate = frame["site"].map({"pre": 0.05, "pre_normed": 0.09, "post": 0.2}) * (1 + frame["model"].map(MODELS.index))
    energy = np.exp(-rate * frame["component"]) * (1 - np.exp(-rate))
    return frame.assign(
        energy=energy, singular_value=400 * np.sqrt(energy), low=energy * 0.6, high=energy * 1.5, n=300
    )[["component", "energy", "singular_value", "low", "high", "model", "site", "n"]]  # fmt: skip


def spectral_summary():
    """As `spectra.summary`."""
    names = {"effective_rank": 20.0, "effective_rank_normalized": 0.2, "top1_energy_ratio": 0.4, "top10_energy_ratio": 0.8,
             "k90_energy": 30.0, "mean_pairwise_cosine": 0.3}  # fmt: skip
    frame = _product(model=MODELS, site=SITES, measure=names)
    estimate = frame["measure"].map(names) * np.random.default_rng(2).uniform(0.1, 1.2, size=len(frame))
    found = frame.assign(estimate=estimate, low=0.95 * estimate, high=1.05 * estimate, n=300)
    return found[["measure", "estimate", "low", "high", "model", "site", "n"]]


GEOMETRY_FRAMES = {
    "geometry.bars": lambda: overlaps()[["k", "knor", "low", "high", "chance", "floor", "model", "comparison"]],
    "geometry.knor": lambda: overlaps()[["k", "knor", "low", "high", "chance", "floor", "model", "comparison"]],
    "geometry.similarity": lambda: likeness()[["measure", "metric", "estimate", "low", "high", "model", "comparison"]],
    "spectra.bars": spectral_summary,
    "spectra.curves": mean_spectra,
}
