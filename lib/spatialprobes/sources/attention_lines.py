"""The lines of the attention study's result texts, from the tables of `attention_results`: what its two scripts print.

Knows words and numbers, no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

WORD_METRICS = ("com", "iou", "soft_iou", "wasserstein_x")
SELF_METRICS = (*WORD_METRICS, "entity_bg_ratio", "dispersion")
SPELT = {"disperson": "dispersion"}  # theirs -> ours
NAMES = {  # of the words' metrics, in the order they are written
    "llava": ("COM distance", "IoU", "Soft IoU", "Wasserstein"),
    "qwen2": ("COM", "IoU", "SoftIoU", "WassersteinX"),
}
TAGS = {"REAL": "real", "SHUF": "shuffled"}
ENTITIES = ("entity1", "entity2")
THEIRS = {ours: theirs for theirs, ours in SPELT.items()}
CONDITIONS = {condition: tag for tag, condition in TAGS.items()}


class _Values:
    """The numbers of one file by (condition, kind, role, metric)."""

    def __init__(self, rows: pd.DataFrame):
        keys = ["condition", "kind", "role", "metric"]
        if (twice := rows.duplicated(keys)).any():
            raise ValueError(f"{' '.join(rows.loc[twice, keys].iloc[0])} stands twice")
        self.value = {tuple(row[key] for key in keys): row["value"] for row in rows.to_dict("records")}
        self.word = {row["role"]: row["word"] for row in rows.to_dict("records") if row["word"]}

    def has(self, condition: str, kind: str, role: str) -> bool:
        return any(key[:3] == (condition, kind, role) for key in self.value)

    def text(self, condition: str, kind: str, role: str, metric: str, digits: int = 4) -> str:
        """Raises ValueError for a number that is not there."""
        try:
            return f"{self.value[condition, kind, role, metric]:.{digits}f}"
        except KeyError:
            raise ValueError(f"no {condition} {metric} of {role} ({kind}), which the layout needs") from None

    def words(self, layout: str, condition: str, role: str, prefix: str = "") -> str:
        named = list(zip(NAMES[layout], WORD_METRICS, strict=True))
        digits = {metric: 2 if prefix and metric == "com" else 4 for metric in WORD_METRICS}  # theirs, for what it is worth
        return ", ".join(f"{prefix}{name}: {self.text(condition, 'words', role, m, digits[m])}" for name, m in named)


def sample_lines(layout: str, header: Mapping[str, Any], rows: pd.DataFrame) -> list[str]:
    """The lines of one sample's file.

    Raises ValueError, naming the sample, for numbers that the layout needs and that are not there.
    """
    try:
        return (_llava_sample if layout == "llava" else _qwen2_sample)(header, _Values(rows))
    except ValueError as error:
        raise ValueError(f"sample {header['sample']} of shard {header['shard']}: {error}") from error


def mean_lines(layout: str, rows: pd.DataFrame) -> list[str]:
    """The lines of the file of means. Raises ValueError as `sample_lines`."""
    try:
        return (_llava_means if layout == "llava" else _qwen2_means)(_Values(rows))
    except ValueError as error:
        raise ValueError(f"means: {error}") from error


def _llava_sample(header: Mapping[str, Any], values: _Values) -> list[str]:
    lines = [f"sample idx: {header['sample']}"]
    for role in ENTITIES:
        both = values.words("llava", "real", role), values.words("llava", "shuffled", role, "Shuffle ")
        lines.append(f"{role.capitalize()} - {', '.join(both)}")
    real, other = (values.text(condition, "words", "relation", "wasserstein_x") for condition in CONDITIONS)
    lines.append(f"Right token x-axis Wasserstein: {real}, Shuffle Wasserstein: {other}")
    for condition, mark in (("real", ""), ("shuffled", " (Shuffled)")):
        if values.has(condition, "self", "background"):
            lines.append(f"Background disperson{mark}: {values.text(condition, 'self', 'background', 'dispersion')}")
    lines.append(f"Sample {header['sample']} - Vision Self-Attention")
    for condition, mark in (("real", ""), ("shuffled", " (Shuffled)")):
        for role in ENTITIES:
            lines += [f"{role.capitalize()}{mark} {name}: {value}" for name, value in _self(values, condition, role)]
    return lines


def _qwen2_sample(header: Mapping[str, Any], values: _Values) -> list[str]:
    shuffled = values.has("shuffled", "words", "relation")
    lines = [f"{key} idx: {header[key]}" for key in ("shard", "sample")]
    if not pd.isna(header.get("rows")):
        lines.append(f"grid: {int(header['rows'])}x{int(header['cols'])}")
    if isinstance(header.get("prompt"), str):
        lines.append(f"prompt: {' '.join(header['prompt'].split())}")
    if not pd.isna(header.get("shuffle_seed")):
        seed, cells = int(header["shuffle_seed"]), int(header["shuffle_grid"])
        lines.append(f"baseline: patch-shuffle enabled=True, seed={seed}, grid={cells}")
    lines.append("")
    for condition in CONDITIONS if shuffled else ("real",):
        tag = f"[{CONDITIONS[condition]}]"
        if condition == "shuffled":
            lines += ["", f"{tag} ===== Patch-Shuffle Baseline ====="]
        for role in [role for role in ENTITIES if values.has(condition, "words", role)]:
            name = f"{role.capitalize()}({values.word.get(role, '')})"
            lines.append(f"{tag} {name} - {values.words('qwen2', condition, role)}")
        number = values.text(condition, "words", "relation", "wasserstein_x")
        lines.append(f"{tag} Relation({values.word.get('relation', '')}) x-axis Wasserstein: {number}")
        if values.has(condition, "self", "background"):
            lines.append(f"{tag} Background disperson: {values.text(condition, 'self', 'background', 'dispersion')}")
        lines += ["", f"{tag} Vision Self-Attention (LM vision sub-block)"]
        for role in ENTITIES:
            lines += [f"{tag} {role.capitalize()} self {name}: {value}" for name, value in _self(values, condition, role)]
    return lines


def _self(values: _Values, condition: str, role: str) -> list[tuple[str, str]]:
    """Their names and the numbers of a patch's own attention."""
    return [(THEIRS.get(metric, metric), values.text(condition, "self", role, metric)) for metric in SELF_METRICS]


def _llava_means(values: _Values) -> list[str]:
    lines = ["=== Mean Analysis over all samples ==="]
    marks = {"real": "", "shuffled": " (Shuffled)"}
    for condition, mark in marks.items():
        lines += [f"{role.capitalize()}{mark} - {values.words('llava', condition, role)}" for role in ENTITIES]
        number = values.text(condition, "words", "relation", "wasserstein_x")
        lines.append(f"Relation token x-axis Wasserstein{mark}: {number}")
    lines.append("=== Mean Vision Self-Attention Analysis ===")
    for metric in SELF_METRICS:
        lines += [f"{THEIRS.get(metric, metric)}{mark}: {_both(values, condition, metric)}" for condition, mark in marks.items()]
    for condition, mark in marks.items():
        if values.has(condition, "self", "background"):
            lines.append(f"Background disperson mean{mark}: {values.text(condition, 'self', 'background', 'dispersion')}")
    return lines


def _qwen2_means(values: _Values) -> list[str]:
    conditions = [one for one in CONDITIONS if values.has(one, "words", "relation")]
    lines = ["=== Mean Analysis over ALL shards ==="]
    for condition in conditions:
        tag = f"[{CONDITIONS[condition]}]"
        lines += ["", "=== Patch-Shuffle Baseline ==="] if condition == "shuffled" else []
        lines += [f"{tag} {role.capitalize()} - {values.words('qwen2', condition, role)}" for role in ENTITIES]
        lines.append(f"{tag} Relation x-axis Wasserstein: {values.text(condition, 'words', 'relation', 'wasserstein_x')}")
    lines += ["", "=== Mean Vision Self-Attention Analysis (ALL SHARDS) ==="]
    for condition in conditions:
        tag = f"[{CONDITIONS[condition]}]"
        lines += ["", f"{tag} Vision Self-Attention"]
        lines += [f"{tag} {THEIRS.get(metric, metric)}: {_both(values, condition, metric)}" for metric in SELF_METRICS]
        if values.has(condition, "self", "background"):
            lines.append(f"{tag} Background disperson mean: {values.text(condition, 'self', 'background', 'dispersion')}")
    return lines


def _both(values: _Values, condition: str, metric: str) -> str:
    return ", ".join(f"{role.capitalize()}={values.text(condition, 'self', role, metric)}" for role in ENTITIES)
