"""How captions change as what enters the language model is masked, cut to a low rank, or turned.

    mask_zero, mask_mean   each token becomes zeros, or the picture's mean token, with probability `level`
    low_rank               the tokens, less their mean, at a lower rank: max(1, round(level min(tokens, width))), as in the study,
                           or `level` itself where it is above 1
    low_rank_energy        the same at the least rank that retains such a share of the energy
    orthogonal             (1 - level) X + level X Q, with one random orthogonal Q for all pictures

The same level means different things to models with other numbers of tokens: rank .01 leaves LLaVA six directions and the others
one. So each row also says the rank, the energy retained, the relative error and the share of tokens masked. The study's baseline
is captioned once for every setting, by the model itself; here once in all, and once more for the noise of a run. A drop is the
original's score minus the perturbed one's (`caption_summary.drops`). Knows pictures and captions; knows no scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spatialprobes.answers import check_askable
from spatialprobes.examples import Example, batches
from spatialprobes.features_edit import Spectrum, drawn_mask, name_of, rank_of_share, turned, with_masked
from spatialprobes.probes.caption_summary import summary
from spatialprobes.probes.captions import Captioner, described, other_batch_size, shown, with_same
from spatialprobes.seeds import check_seed
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float

Kind = Literal["mask_zero", "mask_mean", "low_rank", "low_rank_energy", "orthogonal"]
NONE, RERUN = "none", "rerun"
BASE = "live"  # the arm of kind "none"
AXES = ("level", "rank", "retained_energy", "relative_error", "masked_share")
SEED = 1337  # the study's


@dataclass(frozen=True)
class Perturbation:
    """One kind at one level. Raises ValueError for an unknown kind and for a level that it does not have."""

    kind: Kind
    level: float

    def __post_init__(self):
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} is unknown; one of {', '.join(get_args(Kind))}")
        low_rank = self.kind.startswith("low_rank")
        above = self.kind == "low_rank" and self.level > 1
        if above and self.level != int(self.level):
            raise ValueError(f"low_rank: level={self.level!r} is above 1 and no whole number, so no rank")
        if not above and not (0 < self.level <= 1 if low_rank else 0 <= self.level <= 1):
            raise ValueError(f"{self.kind}: level={self.level!r} is not a share {'above 0' if low_rank else 'from 0'} to 1")

    @property
    def arm(self) -> str:
        return f"{self.kind} {self.level:g}"


STUDY = tuple(
    Perturbation(kind, level)
    for kind, levels in (("mask_zero", (0.3, 0.5, 0.7)), ("low_rank", (0.01, 0.05, 0.1, 0.2, 0.3, 0.5)))
    for level in levels
)


def plan(**levels: Sequence[float]) -> list[Perturbation]:
    """Perturbations by kind: plan(mask_zero=(.3, .5), low_rank=(.1, .5)). Raises ValueError as `Perturbation`, and for none."""
    found = [Perturbation(kind, level) for kind, each in levels.items() for level in each]
    if not found:
        raise ValueError(f"the plan is empty; levels of {', '.join(get_args(Kind))}")
    return found


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    planned: Sequence[Perturbation] = STUDY,
    *,
    seed: int = SEED,
    rerun: bool = True,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    system: str | None = "default",
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Greedy captions, one row per (kind, level) and example: the columns of `captions.arms` and [kind, tokens_seen, *AXES].

    Kind "none" (arm "live") is the caption of the model as it is, made once; "rerun" the same in batches of another size. arm:
    "<kind> <level>". tokens_seen: vision tokens of the picture. rank, retained_energy: of the tokens less their mean; of masks
    and rotations missing. relative_error: ||X - X'|| / ||X|| (Frobenius) of what enters. masked_share: of the tokens.
    seed: of masks and of Q; what is drawn for a picture depends on it and on the picture's name, not on the batch.
    examples, batch_size, store: as in `captions.arms`. Raises ValueError for a perturbation that stands twice, ids that are not
    unique; PromptError for a picture without a request.
    """
    check_seed(seed)
    check_askable(vlm, examples)
    if len(set(planned)) < len(planned):
        twice = next(one for one in planned if list(planned).count(one) > 1)
        raise ValueError(f"{twice.arm} stands twice in the plan")
    captioner = Captioner(vlm, {"max_new_tokens": max_new_tokens, "system": system}, store)
    plain = {NONE: (BASE, batch_size)} | ({RERUN: (RERUN, other_batch_size(batch_size))} if rerun else {})
    frames = [captioner.arm(examples, arm, size, None).assign(kind=kind, level=0.0) for kind, (arm, size) in plain.items()]
    frames = [_unchanged(frame) for frame in frames]
    parts: dict[Perturbation, list[pd.DataFrame]] = {one: [] for one in planned}
    for chunk in shown(batches(examples, batch_size), "perturbations"):
        features = vlm.vision_features(chunk, batch_size)
        for one, changed in perturbed_batch(features, chunk, planned, seed):
            captions = captioner.batch(chunk, one.arm, {example.id: x for example, (x, _) in zip(chunk, changed, strict=True)})
            axes = pd.DataFrame([facts for _, facts in changed]).assign(key=[example.id for example in chunk])
            parts[one].append(captions.merge(axes, on="key", validate="1:1"))
    for one, found in parts.items():
        rows = pd.concat(found, ignore_index=True)
        captions = described(rows, examples, one.arm, vlm.name).assign(kind=one.kind, level=float(one.level))
        frames.append(captions.merge(rows[["key", "tokens_seen", *AXES[1:]]], on="key", validate="1:1"))
    return with_same(pd.concat(frames, ignore_index=True))


def perturbed_batch(
    features: Sequence[Tensor], examples: Sequence[Example], planned: Sequence[Perturbation], seed: int
) -> Iterator[tuple[Perturbation, list[tuple[Tensor, dict[str, float]]]]]:
    """Each perturbation with the changed features of every picture and its AXES; a picture's spectrum is computed once."""
    spectra: list[Spectrum | None] = [None] * len(features)
    if any(one.kind.startswith("low_rank") for one in planned):
        spectra = [Spectrum.of(own) for own in features]
    for one in planned:
        yield (
            one,
            [
                perturbed(own, one, seed, name_of(example), spectrum)
                for own, example, spectrum in zip(features, examples, spectra, strict=True)
            ],
        )


def perturbed(
    features: Float[Tensor, "token width"], one: Perturbation, seed: int, name: str, spectrum: Spectrum | None = None
) -> tuple[Float[Tensor, "token width"], dict[str, float]]:
    """Changed features, and what was changed: tokens_seen, rank, retained_energy, relative_error, masked_share.

    name: of the picture, for its draws. spectrum: of the features, where it is known.
    """
    facts = {"tokens_seen": len(features), "rank": np.nan, "retained_energy": np.nan, "masked_share": 0.0}
    if one.kind in ("mask_zero", "mask_mean"):
        mask = drawn_mask(len(features), one.level, seed, name)
        changed = with_masked(features, mask, one.kind.removeprefix("mask_"))
        facts["masked_share"] = float(mask.double().mean())
    elif one.kind == "orthogonal":
        changed = turned(features, one.level, seed)
    else:
        spectrum = spectrum or Spectrum.of(features)
        rank = spectrum.rank(one.level) if one.kind == "low_rank_energy" else rank_of_level(one.level, *features.shape)
        changed = spectrum.truncated(features, rank)
        facts |= {"rank": float(rank), "retained_energy": spectrum.retained(rank)}
    return changed, facts | {"relative_error": relative_error(features, changed)}


def rank_of_level(level: float, tokens: int, width: int) -> int:
    """The study's rule: max(1, round(level min(tokens, width))); a level above 1 is a rank, at most the largest there is."""
    return min(int(level), tokens, width) if level > 1 else rank_of_share(level, tokens, width)


def relative_error(features: Float[Tensor, "token width"], changed: Float[Tensor, "token width"]) -> float:
    """||X - X'|| / ||X||, Frobenius; NaN where X is all zeros."""
    length = torch.linalg.vector_norm(features.double())
    return float(torch.linalg.vector_norm(features.double() - changed.double()) / length) if length > 0 else float("nan")


def curves(frame: pd.DataFrame, values: Sequence[str] | None = None, *, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """`caption_summary.summary` by model, kind and level, with the mean of each of AXES over the pictures of that setting.

    frame: of `measure`, scored, with `caption_summary.drops`. Raises as `summary`.
    """
    by = ["model", "kind", "level"]
    found = summary(frame, values, by=by, n=n, seed=seed)
    axes = frame.groupby(by, sort=False)[list(AXES[1:])].mean().reset_index()
    return found.merge(axes, on=by, how="left", validate="m:1")


def _unchanged(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of a kind that changes nothing: all energy is retained, and nothing is masked."""
    return frame.assign(tokens_seen=np.nan, rank=np.nan, retained_energy=1.0, relative_error=0.0, masked_share=0.0)
