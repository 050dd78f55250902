"""Tables of swap pairs as the probes write them, with made-up numbers of a likely size: what the figures are tried on."""

import numpy as np
import pandas as pd

from spatialprobes.pairs import CATEGORIES, GROUP_OF, GROUPS, OPPOSITE

SCALES = {"vanilla": 0, "80k": 80_000, "400k": 400_000, "800k": 800_000, "2m": 2_000_000}
PEAK = {"horizontal": 0.55, "vertical": 0.7, "distance": 0.32}


def _rows(names, rows):
    return pd.DataFrame(rows, columns=names)


def _banded(frame, half):
    return frame.assign(low=frame["estimate"] - half, high=frame["estimate"] + half)


def _rise(layers, peak):
    """Nothing in the first third, then a rise to the peak, then a slight fall."""
    x = np.linspace(0, 1, layers)
    return 0.03 + peak / (1 + np.exp(-14 * (x - 0.45))) - 0.12 * peak * np.clip(x - 0.8, 0, 1) / 0.2


def by_layer(of, layers, controls=("shuffled", "blank", "mismatched"), share=1.0):
    rows = []
    for name in of:
        for layer, value in enumerate(_rise(layers, share * PEAK[GROUP_OF.get(name, name)])):
            rows.append((layer, name, "none", value, 0.001 if value > 0.1 else 0.4))
            for place, control in enumerate(controls):
                rows.append((layer, name, control, (0.0, 0.05, 0.12)[place] * (1 + value), 0.5))
    frame = _rows(["layer", "of", "control", "estimate", "q"], rows)
    return _banded(frame, np.where(frame["control"] == "none", 0.05, 0.02)).assign(p=frame["q"] / 2, n=400, clusters=400)


def consistencies(layers=8):
    group = by_layer(GROUPS, layers).assign(measure="group")
    within = by_layer(CATEGORIES, layers).assign(measure="within")
    frame = pd.concat([group, within], ignore_index=True).assign(variant="all", reliable=None)
    marked = frame.assign(variant="all_with_validity", reliable=~frame["of"].isin(["close", "distance"]))
    return pd.concat([frame, marked], ignore_index=True)


def alignments(layers=8):
    rows = by_layer(["vertical"], layers).drop(columns="of")
    both = [rows.assign(measure="per_sample_mean", estimate=rows["estimate"] * 0.6), rows.assign(measure="mean_delta_alignment")]
    frame = pd.concat([_banded(part, 0.04) for part in both], ignore_index=True).assign(variant="all")
    other = _banded(frame.assign(estimate=-frame["estimate"] / 2), 0.04)
    return pd.concat([frame.assign(definition="corrected"), other.assign(definition="as_published")], ignore_index=True)


def probes(layers=8):
    frame = by_layer(GROUPS, layers, ("shuffled",)).rename(columns={"of": "group"})
    estimate = np.where(frame["control"] == "none", 0.5 + 0.62 * frame["estimate"], 0.5)
    return _banded(frame.assign(estimate=estimate), 0.05).assign(chance=0.5)


def accuracies():
    rows = []
    for group, categories in GROUPS.items():
        for category in ("", *categories):
            right = {"horizontal": 0.95, "vertical": 0.9, "distance": 0.66}[group] - 0.12 * (category == "close")
            for member, value, chance in (("original", right, 0.5), ("swapped", right - 0.04, 0.5), ("both", right**2, 0.25)):
                for by, less in (("generate", 0.0), ("logprob", -0.02), ("as_published", -0.05)):
                    n = 400 if category else 800
                    rows.append((group, category, member, by, value - less, chance, n, n, 0.03, category != "close"))
    names = ["group", "category", "member", "by", "estimate", "chance", "n", "clusters", "unparsed", "reliable"]
    frame = _banded(_rows(names, rows), 0.03)
    return frame.assign(high=frame["high"].clip(upper=1))


def similarities(layers=8):
    rows = []
    for layer in range(layers):
        strength = layer / max(1, layers - 1)
        for row in CATEGORIES:
            for column in CATEGORIES:
                cosine = 1.0 if row == column else -0.85 * strength if OPPOSITE[row] == column else 0.3 * (1 - strength)
                if {row, column} in ({"above", "far"}, {"under", "close"}):
                    cosine = 0.63 * strength
                rows.append((layer, "all", row, column, cosine, 400, 400))
    return _rows(["layer", "variant", "row", "column", "cosine", "n_row", "n_column"], rows)


def components(layers=8, each=30, seed=0):
    rng = np.random.default_rng(seed)
    centres = dict(
        zip(CATEGORIES, ((3, 0, 0), (-3, 0, 0), (0, 2.5, 1), (0, -2.5, -1), (0.5, 1.6, -1.5), (-0.5, -1.6, 1.5)), strict=True)
    )
    parts = []
    for layer in range(layers):
        grown = layer / max(1, layers - 1)
        for kind in ("delta", "original", "swapped"):
            for category in CATEGORIES:
                points = rng.normal(size=(each, 3)) + grown * np.array(centres[category])
                part = pd.DataFrame(points, columns=["pc1", "pc2", "pc3"])
                parts.append(part.assign(layer=layer, pair=[f"{category}-{i}" for i in range(each)], category=category,
                                         group=GROUP_OF[category], kind=kind))  # fmt: skip
    return pd.concat(parts, ignore_index=True).assign(share1=0.43, share2=0.21, share3=0.088)


def components_by_scale(scales=SCALES, each=40):
    parts = [components(1, each, seed=i).assign(scale=name, samples=n) for i, (name, n) in enumerate(scales.items())]
    for place, part in enumerate(parts):
        part[["pc1", "pc2", "pc3"]] *= 1 + place / 2
    return pd.concat(parts, ignore_index=True)


def scaled(make, scales=SCALES):
    """The table of each scale: estimates grow with training."""
    parts = []
    for place, (name, samples) in enumerate(scales.items()):
        frame, share = make(), (place + 1) / len(scales)
        parts.append(frame.assign(scale=name, samples=samples, **{c: frame[c] * share for c in ("estimate", "low", "high")}))
    return pd.concat(parts, ignore_index=True)


def consistencies_by_scale():
    return scaled(consistencies)


def accuracies_by_scale():
    return scaled(accuracies)


def emerging(scales=SCALES):
    rows = []
    for group, peak in PEAK.items():
        for place, (name, samples) in enumerate(scales.items()):
            done = place / (len(scales) - 1)
            rows.append((samples, name, group, "accuracy", 0.2 + 0.7 * done**2, 400, 0.25, 20, np.nan))
            rows.append((samples, name, group, "consistency", 0.02 + peak * done**0.5, 400, np.nan, 20, 0.01 if place else 0.6))
    names = ["samples", "scale", "group", "measure", "estimate", "n", "chance", "layer", "q"]
    return _banded(_rows(names, rows), 0.04)


def effects(layers=8, strengths=(0.5, 1.0, 2.0)):
    sizes = {"toward": 1.0, "against": -0.2, "remove": 0.4, "random": 0.06, "other_group": 0.12}
    rows = []
    for group, peak in PEAK.items():
        for layer, value in enumerate(_rise(layers, peak)):
            for kind, size in sizes.items():
                for strength in strengths if kind != "remove" else (1.0,):
                    change = -size * value * strength * 6
                    flips = 0.02 + max(0.0, min(0.95, size * value * strength))
                    rows += [(layer, group, kind, strength, "flip_rate", flips), (layer, group, kind, strength, "change", change)]
    frame = _rows(["layer", "group", "kind", "strength", "measure", "estimate"], rows)
    return _banded(frame, np.where(frame["measure"] == "change", 0.2, 0.02)).assign(n=800, clusters=400)


def perspectives(layers=8):
    rows = []
    for perspective, correlation in ((0.0, 0.01), (0.5, 0.41), (1.0, 0.93)):
        for layer, value in enumerate(_rise(layers, 0.5)):
            rows.append((perspective, correlation, layer, "per_sample_mean", value * correlation))
            rows.append((perspective, correlation, layer, "mean_delta_alignment", 1.5 * value * correlation))
    frame = _rows(["perspective", "world_correlation", "layer", "measure", "estimate"], rows)
    return _banded(frame, 0.06)


SWAP_FRAMES = {
    "swap.accuracy": accuracies,
    "swap.alignment": alignments,
    "swap.consistency": consistencies,
    "swap.probe": probes,
    "swap_causal.curves": effects,
    "swap_causal.strengths": effects,
    "swap_pca.plane": components,
    "swap_pca.space": components,
    "swap_perspective.alignment": perspectives,
    "swap_scales.by_layer": consistencies_by_scale,
    "swap_scales.emergence": emerging,
    "swap_scales.trajectory": accuracies_by_scale,
    "swap_similarity.matrix": similarities,
}
