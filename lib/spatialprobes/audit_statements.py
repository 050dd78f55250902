"""Claims on draws, and what the connector study's claims share: caveats, families of models, overlaps with their draws.

Knows tables of folders and draws; which claims are made is the business of the modules above.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from spatialprobes import audit_geometry as geometry
from spatialprobes.audit_moments import interval
from spatialprobes.claims import Claim, claim

if TYPE_CHECKING:
    import pandas as pd

    from spatialprobes.audit_files import Material

LARGE_K, SMALL_K = 100, 10
LIMITS = ("not which model is best; the study's pictures are food with one reference caption; CLIPScore and BERTScore stand in "
          "for people's judgement")  # fmt: skip
NORM_SITE = ("E_pre is no ground truth, and the files take Qwen's before the norm of its merger, the others' where they come: "
             "one direction of large activations then decides who is near in raw l2")  # fmt: skip
VIEWS = "CLIP's and DINO's neighbourhoods are views, not truth; LLaVA's own tower is a CLIP"
CAPACITY = "how well E_pre is recovered depends on the reconstructor's capacity and training data too"
KINDS = "masks, truncations and rotations do not exhaust how a connector may fail"


def states(id: str, statement: str, rule: str, estimate: float, draws: np.ndarray, **named) -> Claim:
    """A claim on an estimate with its draws."""
    return claim(id, statement, rule, estimate, *interval(estimate, draws), **named)


def differs(id: str, statement: str, rule: str, one, other, **named) -> Claim:
    """A claim on the difference of two estimates, each with its draws."""
    return states(id, statement, rule, one[0] - other[0], one[1] - other[1], **named)


def larger_first(one, other):
    """Two estimates with their draws, so that the difference of the estimates is not negative: a two-sided question."""
    return (one, other) if one[0] >= other[0] else (other, one)


def slug(*models: str) -> str:
    """Models as the end of a claim's id."""
    return "-".join(re.sub(r"[^a-z0-9]+", "_", model.lower()).strip("_") for model in models)


def references(folders: pd.DataFrame) -> list[str]:
    """References with an overlap before and after in all of these folders, by name."""
    names = [
        name.removesuffix(f"_pre_knor{LARGE_K}_mean") for name in folders.columns if name.endswith(f"_pre_knor{LARGE_K}_mean")
    ]
    return sorted(name for name in names if folders[f"{name}_post_knor{LARGE_K}_mean"].notna().all())


def families(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Models that are no Qwen, and those that are."""
    names = list(dict.fromkeys(table["model"]))
    return [name for name in names if "qwen" not in name.lower()], [name for name in names if "qwen" in name.lower()]


def common(folders: pd.DataFrame, one: str, other: str):
    """The rows of two models for the folders both have, in one order, and a note where that leaves some out."""
    parts = [folders[folders["model"] == name].set_index("folder") for name in (one, other)]
    both = parts[0].index.intersection(parts[1].index)
    left = sum(len(part) for part in parts) - 2 * len(both)
    note = f"; {left} folders that only one of them has are left out" if left else ""
    return *(part.loc[both].reset_index() for part in parts), note


def overlap(found: Material, folders: pd.DataFrame, of: str, k: int, above: bool, seed: int):
    """An overlap (above the floor of copies) with its draws; None where a file or the copies are missing."""
    name = f"{of}_knor{k}"
    if f"{name}_mean" not in folders or folders[f"{name}_mean"].isna().any():
        return None
    mean, draws = geometry.knor_draws(folders, name, seed)
    if not above:
        return mean, draws
    copies = {key: own["copies"].to_numpy() for key, own in found.marked.groupby(["model", "folder"])}
    lowest, floors = geometry.floor_draws(folders, copies, k, seed)
    return None if np.isnan(lowest) else ((mean - lowest) / (1 - lowest), (draws - floors) / (1 - floors))


def size(one):
    return abs(one[0]), np.abs(one[1])
