"""What Beyond Semantics (arXiv 2503.17349, version 2) printed, and whether its own arithmetic holds; none of it measured here.

The numbers are those of LLaVA-1.5-7B and of its two retrained variants (vision tokens normalised; with multi-layer features too),
as a digest of the paper's tables gives them, in per cent where not said otherwise; the paper's own pages were not at hand. What
can be computed from them is computed here.
"""

from __future__ import annotations

import pandas as pd

from spatialprobes.probes.psi import psi_from_accuracies

SOURCE = "Beyond Semantics, arXiv 2503.17349v2"
MODELS = ("LLaVA", "+ Normalize", "+ Normalize + Multilayer")
ROUNDING = 0.005  # all are printed with two decimals

PERMUTATION = {  # table 1, LLaVA-1.5-7B: accuracy in place, permuted
    "VQAv2": (78.20, 77.35),
    "POPE": (87.30, 87.10),
    "GQA": (61.36, 58.62),
    "CV-Bench 2D": (56.59, 56.26),
}
PSI = {  # table 2, per cent, by `MODELS`
    "VQAv2": (1.09, 2.03, 2.08),
    "POPE": (0.34, 0.35, 0.46),
    "GQA": (4.47, 6.10, 5.64),
    "CV-Bench 2D": (0.57, 11.31, 9.72),
    "2DS": (41.07, 61.21, 54.21),
}
TWO_DS = {  # table 3, accuracy on the study's synthetic set of 3,000 questions, 500 a category, by `MODELS`
    "Color_abs": (79.6, 88.0, 87.8),
    "Color_rel": (37.0, 42.4, 47.2),
    "Shape_abs": (78.6, 79.0, 82.2),
    "Shape_rel": (34.4, 32.8, 40.8),
    "Shape_color_abs": (70.8, 71.8, 80.2),
    "Shape_color_rel": (39.4, 41.8, 50.6),
}
TWO_DS_OVERALL = (56.63, 59.30, 64.80)
ENTROPY = {  # table 8, normalised entropy of attention on the picture, 1 is even, by `MODELS`
    "2DS": (0.76, 0.90, 0.72),
    "COCO val": (0.81, 0.89, 0.72),
    "CV-Bench 2D": (0.80, 0.90, 0.72),
}


def psi_check() -> pd.DataFrame:
    """Table 2's index of LLaVA beside what table 1's accuracies give: does the arithmetic hold?

    Columns: benchmark, accuracy, accuracy_permuted (published, per cent), psi (from these), low, high (what psi may be, given
    that accuracies are rounded to two decimals), psi_published, agrees (the published one, rounded too, is possible), source.
    """
    rows = []
    for benchmark, (original, permuted) in PERMUTATION.items():
        found, low, high = (
            float(100 * psi_from_accuracies(original + up, permuted + down))
            for up, down in ((0, 0), (-ROUNDING, ROUNDING), (ROUNDING, -ROUNDING))
        )
        printed = PSI[benchmark][0]
        rows.append(
            {
                "benchmark": benchmark,
                "accuracy": original,
                "accuracy_permuted": permuted,
                "psi": found,
                "low": low,
                "high": high,
                "psi_published": printed,
                "agrees": low - ROUNDING <= printed <= high + ROUNDING,
                "source": SOURCE,
            }
        )
    return pd.DataFrame(rows)


def two_ds() -> pd.DataFrame:
    """Table 3 by model, with the mean of its rows and what table 2's index says of the permuted accuracy.

    Columns: model, overall (mean of the six categories, which have 500 questions each), overall_published, agrees (to the two
    decimals printed), absolute, relative (means over the three categories that ask for an absolute and a relative place),
    psi_published, accuracy_permuted (implied: overall x (1 - psi)), source. Per cent.
    """
    rows = []
    for place, model in enumerate(MODELS):
        scores = {category: values[place] for category, values in TWO_DS.items()}
        overall = sum(scores.values()) / len(scores)
        kinds = {end: [score for category, score in scores.items() if category.endswith(end)] for end in ("_abs", "_rel")}
        rows.append(
            {
                "model": model,
                "overall": overall,
                "overall_published": TWO_DS_OVERALL[place],
                "agrees": abs(overall - TWO_DS_OVERALL[place]) <= ROUNDING + 1e-9,
                "absolute": sum(kinds["_abs"]) / 3,
                "relative": sum(kinds["_rel"]) / 3,
                "psi_published": PSI["2DS"][place],
                "accuracy_permuted": overall * (1 - PSI["2DS"][place] / 100),
                "source": SOURCE,
            }
        )
    return pd.DataFrame(rows)


def entropy() -> pd.DataFrame:
    """Table 8, tidy: [data, model, entropy, source]; 0 is one patch, 1 is even over all."""
    return pd.DataFrame(
        [
            {"data": data, "model": model, "entropy": value, "source": SOURCE}
            for data, values in ENTROPY.items()
            for model, value in zip(MODELS, values, strict=True)
        ]
    )
