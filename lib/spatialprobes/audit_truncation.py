"""The connector study's fourth finding as claims: what truncation and masking cost which model's captions.

At one share of min(tokens, width) one model keeps more dimensions than another; the claim is made again at like ranks. Empty
captions have no score and are left out here; the corrections count them. Knows tables of captions and draws.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from spatialprobes.audit_moments import means
from spatialprobes.audit_perturbation import clusters_by_copies
from spatialprobes.audit_statements import KINDS, LIMITS, differs, families, slug, states
from spatialprobes.claims import Claim
from spatialprobes.sources.connector_published import label

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from spatialprobes.audit_files import Material

HURT_BY_MASKS, SPARED = ("llava", "qwen2.5"), ("idefics2", "qwen3.5")
HALF = (0.4, 0.6)  # shares of masked tokens that count as about half


def truncation(found: Material, tables: Mapping[str, pd.DataFrame], seed: int) -> list[Claim]:
    if "perturbation" not in tables:
        return []
    table = tables["perturbation"]
    low = table[(table["mode"] == "lowrank") & ~table["pilot"].astype(bool)]
    made = []
    for other, qwen in product(*families(low)):
        one, two = (low[low["model"] == model] for model in (qwen, other))
        if shared := sorted(set(one["level"]) & set(two["level"])):
            statement = "Keeping the smallest share of dimensions costs Qwen's captions more than LLaVA's and Idefics2's"
            rule = f"low(Qwen's loss - the other's, CLIPScore points, at ratio {shared[0]:g}) > 0"
            levels = shared[0], shared[0]
            made.append(_losses(found, "audit.truncation", statement, rule, (qwen, other), levels, "lowrank", seed))
        if levels := _equal_ranks(one, two):
            statement = "Kept to about as many dimensions, Qwen's captions lose more than LLaVA's and Idefics2's"
            ranks = [
                int(frame.loc[frame["level"] == level, "rank"].iloc[0]) for frame, level in zip((one, two), levels, strict=True)
            ]
            rule = "low(Qwen's loss - the other's, CLIPScore points, at like ranks) > 0"
            words = f"ranks {ranks[0]} and {ranks[1]}; "
            made.append(
                _losses(found, "audit.truncation_at_equal_rank", statement, rule, (qwen, other), levels, "lowrank", seed, words)
            )
    return made


def _equal_ranks(one: pd.DataFrame, two: pd.DataFrame) -> tuple[float, float] | None:
    """The levels of the smallest ranks of two models that differ by at most a half; None where there are none."""
    pairs = [
        (max(a["rank"], b["rank"]), a["level"], b["level"])
        for a in one.to_dict("records")
        for b in two.to_dict("records")
        if max(a["rank"], b["rank"]) <= 1.5 * min(a["rank"], b["rank"])
    ]
    return min(pairs)[1:] if pairs else None


def masking(found: Material, seed: int) -> list[Claim]:
    made = []
    of = {
        model: sorted(level for one, mode, level in found.perturbed if one == model and mode == "mask") for model in found.models
    }
    hurt, spared = (
        [model for model in found.models if any(part in model for part in parts)] for parts in (HURT_BY_MASKS, SPARED)
    )
    for one, other in product(hurt, spared):
        shared = [level for level in of[one] if level in of[other]]
        if shared:
            level = min(shared, key=lambda level: abs(level - 0.5))
            statement = "Setting tokens to zero costs LLaVA's and Qwen-2.5-VL's captions more than Idefics2's and Qwen-3.5's"
            rule = f"low(difference of losses, CLIPScore points, at mask {level:g}) > 0"
            made.append(_losses(found, "audit.masking", statement, rule, (one, other), (level, level), "mask", seed))
    for model in (name for name in hurt if of[name]):
        level = min(of[model], key=lambda level: abs(level - 0.5))
        frame = found.perturbed[model, "mask", level]
        loss = means(frame[["clipscore_drop"]], clusters_by_copies(frame["key"], found.of(model)), seed=seed)["clipscore_drop"]
        made.append(
            states(
                f"audit.masking_hurts.{slug(model)}",
                "Setting about half of the tokens to zero costs captions of LLaVA and Qwen-2.5-VL over a point of CLIPScore",
                "low(loss, CLIPScore points) > 1",
                *loss,
                model=label(model),
                n=int(frame["clipscore_drop"].notna().sum()),
                table="perturbation",
                caveat=f"mask {level:g}; {int(frame['empty'].sum())} empty captions left out; {KINDS}; {LIMITS}",
            )
        )
    return made


def _losses(found, name, statement, rule, pair, levels, mode, seed, words="") -> Claim:
    """Whether the first model loses more than the second; each over its captions that are not empty."""
    drawn, n, empty = [], 0, 0
    for model, level in zip(pair, levels, strict=True):
        frame = found.perturbed[model, mode, level]
        clusters = clusters_by_copies(frame["key"], found.of(model))
        drawn.append(means(frame[["clipscore_drop"]], clusters, seed=seed)["clipscore_drop"])
        n, empty = n + len(frame), empty + int(frame["empty"].sum())
    caveat = f"{words}{empty} empty captions left out; {KINDS}; {LIMITS}"
    named = {"model": f"{label(pair[0])} - {label(pair[1])}", "n": n, "table": "perturbation", "caveat": caveat}
    return differs(f"{name}.{slug(*pair)}", statement, rule, *drawn, **named)
