"""Tables of attention heads and maps as the probes write them, with made-up numbers: what the figures are tried on."""

import io

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

CORNERS = ("topleft", "topright", "bottomleft", "bottomright")


def _png(size=48):
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((4, 8, 18, 22), fill="red")
    draw.rectangle((28, 24, 42, 38), fill="blue")
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def _product(**axes):
    return pd.MultiIndex.from_product(axes.values(), names=list(axes)).to_frame(index=False)


def chosen_maps():
    boxes = {"subject": (4 / 48, 8 / 48, 18 / 48, 22 / 48), "reference": (28 / 48, 24 / 48, 42 / 48, 38 / 48)}
    edges = {f"{role}_{edge}": v for role, box in boxes.items()
             for edge, v in zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True)}  # fmt: skip
    rows = []
    for place, (rank, value) in enumerate((("best", 5.2), ("median", 1.4), ("worst", 0.21))):
        for i, word in enumerate(("red circle", "left of", "blue square")):
            weights = np.random.default_rng(3 * place + i).random((6, 6)) ** (6 - 2 * place)
            for r, c in np.ndindex(6, 6):
                one = {
                    "example": f"lab-7000000-{place}",
                    "word": word,
                    "row": r,
                    "col": c,
                    "weight": weights[r, c] / weights.sum(),
                }
                rows.append({**one, "png": _png(), "rank": rank, "metric": "lift", "value": value, "n": 500, **edges})
    return pd.DataFrame(rows)


def _scored(frame, seed=0):
    base = {"lift": (2.0, 1.0), "mass": (0.2, 0.06), "auc": (0.7, 0.5), "hit": (0.4, 0.06)}
    wobble = _noise(len(frame), seed=seed)
    mean = frame["metric"].map(lambda name: base[name][0])
    chance = frame["metric"].map(lambda name: base[name][1])
    estimate = chance + (mean - chance) * (1 + 0.4 * wobble)
    frame = frame.assign(estimate=estimate, chance=chance, shuffled=chance * (1 + 0.1 * _noise(len(frame), seed=seed + 1)))
    half = 0.15 * (mean - chance)
    return frame.assign(low=estimate - half, high=estimate + half, q=np.where(np.abs(estimate - chance) > half, 0.01, 0.4), n=500)


def metrics_by_layer(layers=8):
    frame = _product(layer=range(layers), role=("subject", "reference", "relation"), metric=("lift", "mass", "hit", "auc"))
    frame = _scored(frame.assign(target=frame["role"]))
    by_role = (
        frame["role"].map({"subject": 1.0, "reference": 1.1, "relation": 1.6}).where(frame["metric"].isin(("mass", "hit")), 1.0)
    )
    other = frame.assign(target=frame["role"].map({"subject": "reference", "reference": "subject", "relation": "subject"}))
    return pd.concat([frame.assign(chance=frame["chance"] * by_role), other.assign(estimate=1.0)], ignore_index=True)


def metrics_compared():
    axes = {"role": ("subject", "reference"), "metric": ("lift", "mass", "auc"), "definition": ("corrected", "as_published")}
    frame = _product(**axes)
    frame = _scored(frame.assign(target=frame["role"]), seed=4)
    published = frame["definition"] == "as_published"
    columns = ["estimate", "low", "high"]
    frame.loc[published, columns] = frame.loc[published, columns].sub(frame.loc[published, "estimate"] - frame["chance"], axis=0)
    frame.loc[published, "q"] = 0.7
    return frame.reset_index(drop=True)


def corner_effects(layers=4, heads=4, n=100):
    frame = _product(asked=CORNERS, corner=CORNERS, region=("all", "region"), layer=range(layers), head=range(heads))
    effect = 0.01 * _noise(len(frame), seed=1)
    strong = (
        (frame["layer"] == layers - 2)
        & (frame["head"] == frame["asked"].map(CORNERS.index))
        & (frame["asked"] == frame["corner"])
    )
    effect = effect + 0.15 * strong
    d = effect / 0.05
    frame = frame.assign(effect=effect, d=d, low=effect - 0.02, high=effect + 0.02)
    return frame.assign(p=np.where(strong, 0.0005, 0.4), q=np.where(strong, 0.004, 0.6), n=n)


def bound_heads(layers=4, heads=4):
    frame = _product(layer=range(layers), head=range(heads), role=("subject", "reference"), metric=("lift", "auc"))
    above = 0.3 * _noise(len(frame), seed=2) + 4.0 * ((frame["layer"] == 2) & (frame["head"] == 1))
    frame = frame.assign(target=frame["role"], estimate=1 + above, above=above, difference=above / 2)
    return frame.assign(q=np.where(above > 1, 0.001, 0.5), n=800)


def top_counts(layers=4, heads=8, n=100):
    frame = _product(corner=CORNERS, layer=range(layers), head=range(heads))
    count = np.random.default_rng(3).binomial(n, 3 / heads, len(frame))
    count[5] = n
    return frame.assign(count=count, chance=3 * n / heads, n=n)


def head_matrices(heads=((2, 1), (3, 0), (11, 27))):
    frame = pd.concat([_product(layer=[a], head=[b], asked=CORNERS, corner=CORNERS) for a, b in heads], ignore_index=True)
    effect = 0.02 * _noise(len(frame), seed=5) + 0.2 * (frame["asked"] == frame["corner"]) * (frame["layer"] < 10)
    return frame.assign(effect=effect, low=effect - 0.03, high=effect + 0.03, n=100)


def selectivities():
    frame = _product(layer=range(4), head=range(4), asked=CORNERS)
    value = 0.02 * _noise(len(frame), seed=6) + 0.15 * (
        (frame["layer"] == 2) & (frame["head"] == frame["asked"].map(CORNERS.index))
    )
    return frame.assign(selectivity=value, low=value - 0.02, high=value + 0.02, q=np.where(value > 0.1, 0.01, 0.5), n=100)


def top_k_stability():
    frame = _product(layer=range(4), head=range(8), asked=CORNERS)
    share = np.clip(0.3 + 0.4 * _noise(len(frame), seed=7), 0, 1)
    return frame.assign(share=share, k=5, chance=5 / 32, n=100)


def ablations():
    rows = [("none", "none", 0.0, np.nan, np.nan)]
    for name, drop in (("binding", 0.31), ("corner, 8 heads", 0.12), ("none found", 0.0)):
        p = 0.001 if drop > 0.1 else 0.5
        rows += [(name, how, drop + more, 0.91 - more, p) for how, more in (("mean", 0.0), ("zero", 0.04))]
    frame = pd.DataFrame(rows, columns=["heads", "how", "drop", "random", "p"])
    frame["accuracy"] = 0.93 - frame["drop"]
    frame = frame.assign(low=frame["accuracy"] - 0.03, high=frame["accuracy"] + 0.03)
    frame = frame.assign(drop_low=frame["drop"] - 0.03, drop_high=frame["drop"] + 0.03)
    frame = frame.assign(change=-8 * frame["drop"], random_change=-0.2)
    frame = frame.assign(change_low=frame["change"] - 0.2, change_high=frame["change"] + 0.2, p_change=frame["p"], draws=20)
    return frame.assign(n=400, clusters=400)


def _parts(frame, seed):
    content = 0.01 * _noise(len(frame), seed=seed) + 0.05 * (frame["layer"] == 2)
    positional = -0.06 + 0.02 * _noise(len(frame), seed=seed + 1)
    frame = frame.assign(positional=positional, positional_low=positional - 0.01, positional_high=positional + 0.01)
    frame = frame.assign(content=content, content_low=content - 0.01, content_high=content + 0.01)
    return frame.assign(q=np.where(np.abs(content) > 0.03, 0.01, 0.5), n=250)


def text_parts(layers=4, heads=4):
    return _parts(_product(layer=range(layers), head=range(heads), relation=("left", "right", "above", "below")), 8)


def text_parts_by_layer(layers=4):
    return _parts(_product(layer=range(layers), relation=("left", "right", "above", "below")), 9)


def text_asymmetries(n=200):
    first = -0.003 + 0.001 * _noise(n, seed=10)
    second = -0.0026 + 0.001 * _noise(n, seed=11)
    relation = np.array(["left", "right", "above", "below"])[np.arange(n) % 4]
    return pd.DataFrame({"pair": [f"pair-{i}" for i in range(n)], "asym_s1": first, "asym_s2": second, "relation": relation})


def word_differences():
    roles, relations = ("relation", "subject", "reference"), ("left", "right", "above", "below")
    frame = _product(role=roles, metric=("entropy", "dispersion"), relation=relations, how=("mean", "layer"))
    size = frame["metric"].map({"entropy": 0.01, "dispersion": 1.0})
    difference, control = (size * _noise(len(frame), seed=seed) for seed in (12, 13))
    frame = frame.assign(difference=difference, low=difference - size / 2, high=difference + size / 2)
    frame = frame.assign(control=control / 2, control_low=control / 2 - size / 3, control_high=control / 2 + size / 3)
    return frame.assign(q=np.where(np.abs(difference) > size / 2, 0.02, 0.4), sees=frame["role"] != "subject", n=120)


HEAD_FRAMES = {
    "ablation.bars": ablations,
    "head_maps.by_layer": metrics_by_layer,
    "head_maps.overlays": chosen_maps,
    "head_maps.real_and_shuffled": metrics_compared,
    "heads.binding": bound_heads,
    "heads.counts": top_counts,
    "heads.effects": corner_effects,
    "heads.selectivity": selectivities,
    "heads.specificity": head_matrices,
    "heads.stability": top_k_stability,
    "spatial_words.differences": word_differences,
    "text_only.asymmetry": text_asymmetries,
    "text_only.split": text_parts,
    "text_only.split_by_layer": text_parts_by_layer,
}
