"""What the figures of captions share: words for scores, arms and perturbations, colours of models.

Holds no figure function of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from spatialprobes.plots import CYCLE
from spatialprobes.plots import swap_looks as looks

if TYPE_CHECKING:
    import pandas as pd

SCORES = {
    "clipscore_100": "CLIPScore (100 cos)",
    "clipscore_hessel": "CLIPScore (2.5 cos)",
    "clipscore_gt": "CLIPScore of the picture's own caption",
    "bertscore_precision": "BERTScore precision, to the original",
    "bertscore_recall": "BERTScore recall, to the original",
    "bertscore_f1": "BERTScore F1, to the original",
    "bertscore_gt_precision": "BERTScore precision, to the reference",
    "bertscore_gt_recall": "BERTScore recall, to the reference",
    "bertscore_gt_f1": "BERTScore F1, to the reference",
    "lab_recall": "objects named (share)",
    "lab_precision": "named objects that are there (share)",
    "lab_invented": "objects invented (a caption)",
    "lab_colours": "colours that are there (share)",
    "lab_shapes": "shapes that are there (share)",
    "lab_relations": "clauses that are true (share)",
    "lab_where": "relations that are true (share)",
    "lab_clauses": "clauses (a caption)",
    "lab_parsed": "captions of the grammar (share)",
    "words": "words",
    "words_change": "words more than the original",
    "words_changed": "words more or fewer",
    "empty": "empty captions (share)",
    "cut": "captions without an end (share)",
    "same": "captions unchanged (share)",
}
PREDICTORS = {
    "reproj_cosine": "cosine of features",
    "reproj_mse": "MSE of features",
    "cosine_pre": "cosine of inputs",
    "mse_pre": "MSE of inputs",
    "relative_error": "relative error of features",
    "retained_energy": "energy retained (share)",
    "knor": "neighbours kept (KNOR)",
    "displacement": "displacement of neighbours",
    "effective_rank": "effective rank of features",
}
ARMS = {
    "live": "live",
    "rerun": "live, run again",
    "stored": "stored features",
    "reconstructed": "reconstructed",
    "connector": "other connector",
}
KINDS = {
    "mask_zero": "tokens masked with zeros",
    "mask_mean": "tokens masked with their mean",
    "low_rank": "low rank",
    "low_rank_energy": "low rank by energy",
    "orthogonal": "turned",
}
MARKS = ("o", "s", "D", "^", "v", "P", "X", "*")


def score_label(value: str) -> str:
    """A score in words; of a drop, that it is the original's minus the changed one's. Its name, where it has none."""
    plain = value.removesuffix("_drop")
    words = SCORES.get(plain, PREDICTORS.get(plain, plain))
    return words if plain == value else f"drop of {words}"


def in_order(found: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names that are there: known ones in their order, then the others as they come."""
    there, known = list(dict.fromkeys(found)), list(known)
    return [name for name in known if name in there] + [name for name in there if name not in known]


def tints(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each model."""
    return {name: (CYCLE[i % len(CYCLE)], MARKS[i % len(MARKS)]) for i, name in enumerate(models)}


def with_empties(frame: pd.DataFrame, plot: str, empties: str) -> pd.DataFrame:
    """The rows in which empty captions count as asked; those that count every caption stand under "as 0" alone.

    Raises ValueError for another word.
    """
    if empties not in ("as 0", "left out"):
        raise ValueError(f"{plot}: empties {empties!r} is not one of as 0, left out")
    always = frame["value"].isin(["empty", "cut", "same", "words", "words_change", "words_changed"])
    return frame[always | (frame["empties"] == empties)]


def models_of(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame["model"])) if "model" in frame.columns else [""]


def count_text(rows: pd.DataFrame) -> str:
    """How many captions, and how many of them are empty."""
    return f"n = {looks.counts(rows['n'])}, {looks.counts(rows['empty'])} empty"
