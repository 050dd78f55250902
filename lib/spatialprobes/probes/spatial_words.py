"""Does a spatial word make a model look elsewhere than a neutral one? The same picture and sentence, one phrase exchanged.

"left of" against "next to" (in the published caption: "left" against "adjacent"), and, to see what any exchange of words does,
the neutral phrase against a second neutral one. Measured is how flat the maps of the words over the picture are. A word sees
only what stands before it: what a sentence says before its relation cannot change with it, and such rows are marked, not tested.

The study compares unpaired samples of LLaVA's maps; `as_published` does so with maps of the right tokens, and shows its second
comparison, of the vision tower's attention, which has t = 0 and p = 1 whatever the model: a tower never sees the words. Neither
of the neutral phrases was ever in a caption that the lab's models were trained on. Knows no figures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.probes import map_metrics
from spatialprobes.probes.caption_pairs import Statement, reworded, stated
from spatialprobes.probes.maps import Maps, aggregate, extract
from spatialprobes.probes.paired_columns import columns
from spatialprobes.probes.tower_maps import from_seeds
from spatialprobes.spans import occurrences
from spatialprobes.stats import benjamini_hochberg
from spatialprobes.vlm import VLM

ROLES = ("subject", "reference", "relation")
MEMBERS = ("spatial", "neutral", "control")
METRICS = ("entropy", "dispersion")
COLUMNS = (
    "pair", "cluster", "relation", "member", "role", "how", "layer", "sees", "entropy", "dispersion", "cells", "flat_dispersion",
)  # fmt: skip
_BY = ("how", "layer", "role", "relation")


@dataclass(frozen=True)
class WordPair:
    """One picture with a caption in three wordings that differ in the relation phrase alone.

    id, cluster: the example's. relation: what the spatial one says. members: by name ("spatial", "neutral", "control"), examples
    whose question is the caption. words: by member and role, the words to look from. sees: by role, whether its words stand at
    or behind the relation phrase.
    """

    id: str
    cluster: str
    relation: str
    members: dict[str, Example]
    words: dict[str, dict[str, str]]
    sees: dict[str, bool]


def neutral(examples: Sequence[Example], *, relation: Literal["word", "phrase"] = "word") -> list[WordPair]:
    """Each example's caption (else its question) with its own relation phrase, a neutral one, and a second neutral one.

    The phrases are those of ``caption_pairs.CLAUSE`` and ``PUBLISHED``: "left of", "next to", "close to"; "above", "beside",
    "near"; as many words each. relation: whose tokens stand for the phrase, those of its "word" ("left", "next", "close"), or of
    the whole "phrase". Raises ValueError for an unknown choice, and naming an example whose caption cannot be taken apart, or
    whose second entity is named within the first.
    """
    if relation not in ("word", "phrase"):
        raise ValueError(f"relation={relation!r} is unknown; 'word' or 'phrase'")
    return [_worded(example, stated(example), relation == "phrase") for example in examples]


def _worded(example: Example, statement: Statement, whole: bool) -> WordPair:
    says, place = statement.says, statement.relation
    members, words = {}, {}
    for member, phrase in zip(MEMBERS, (statement.of(place), says.neutral, says.control), strict=True):
        made = reworded(statement, phrase)
        text, own = made.text, made.of(made.word())
        words[member] = {
            "subject": statement.of(statement.noun("first")),
            "reference": statement.of(statement.noun("second")),
            "relation": phrase if whole else own,
        }
        meta = {**example.meta, "word": own, "caption": text}
        asked = {"id": f"{example.id}/{member}", "question": text, "answer": None, "choices": None, "twin": None, "meta": meta}
        members[member] = dataclasses.replace(example, **asked)
    starts = {"subject": statement.noun("first")[0], "reference": statement.noun("second")[0], "relation": place[0]}
    for role in ("subject", "reference"):
        if occurrences(statement.text, words["spatial"][role])[0].start() != starts[role]:
            raise ValueError(f"example {example.id!r}: {words['spatial'][role]!r} stands before its {role} in {statement.text!r}")
    sees = {role: start >= place[0] for role, start in starts.items()}
    return WordPair(example.id, example.cluster or example.id, says.relation, members, words, sees)


def measure(
    vlm: VLM,
    pairs: Sequence[WordPair],
    *,
    members: Sequence[str] = MEMBERS,
    layers: Sequence[int] | str = "all",
    aggregates: Sequence[str] = ("mean",),
    system: str | None = "default",
    batch_size: int = 64,
    store: str | Path | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """How flat the maps of the words are: a row per pair, member, role, and layer or aggregate of layers.

    Columns: `COLUMNS`. role: "subject", "reference" (named first and second) or "relation". how: "layer", a block alone, with its
    number in `layer`; or a name of `aggregates` (as in ``maps.aggregate``), with layer -1. sees: whether the word stands at or
    behind the relation phrase; where not, members are equal by construction. entropy: over ln(cells), 1 for a flat map.
    dispersion: mean squared distance to the map's centre of mass, in cells^2; flat_dispersion: that of a flat map. Both are NaN
    for a map that could not be made. store: a folder for the maps (``maps.extract``).
    Nothing is drawn: ``seed`` is there because every probe takes one.
    Raises ValueError without pairs, for an unknown member, and what ``maps.extract`` raises.
    """
    asked = _members(pairs, members)
    words = {pair.members[member].id: pair.words[member] for pair, member in asked}
    examples = [pair.members[member] for pair, member in asked]
    found = extract(vlm, examples, words, layers=layers, system=system, batch_size=batch_size, store=store)
    return _flatness(found, asked, ROLES, aggregates)


def measure_tower(
    vlm: VLM,
    pairs: Sequence[WordPair],
    *,
    members: Sequence[str] = MEMBERS,
    layers: Sequence[int] | str = "all",
    aggregates: Sequence[str] = ("mean",),
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """The same table of the vision tower's attention from the patch in the middle of each entity (``tower_maps.from_seeds``).

    It is made anew for each member, as in the study; members are equal whatever the model, so `sees` is False. Raises as
    `measure`.
    """
    asked = _members(pairs, members)
    examples = [pair.members[member] for pair, member in asked]
    found = from_seeds(vlm, examples, layers=layers, batch_size=batch_size, seed=seed)
    frame = _flatness(found, asked, ROLES[:2], aggregates)
    return frame.assign(sees=False)


def _members(pairs: Sequence[WordPair], members: Sequence[str]) -> list[tuple[WordPair, str]]:
    if not pairs:
        raise ValueError("no pairs were given")
    if wrong := [member for member in members if member not in MEMBERS]:
        raise ValueError(f"member {wrong[0]!r} is unknown; one of {', '.join(map(repr, MEMBERS))}")
    return [(pair, member) for pair in pairs for member in members]


def _flatness(found: Maps, asked: list[tuple[WordPair, str]], roles: Sequence[str], aggregates: Sequence[str]) -> pd.DataFrame:
    measured = {}
    levels = [*((how, -1) for how in aggregates), *(("layer", layer) for layer in found.layers)]
    for how, layer in levels:
        panels = aggregate(found, layer if how == "layer" else how)
        for example, role, panel in zip(panels.index["example"], panels.index["role"], panels.maps, strict=True):
            measured[example, role, how, layer] = _of_map(panel)
    rows = []
    for pair, member in asked:
        labels = {"pair": pair.id, "cluster": pair.cluster, "relation": pair.relation, "member": member}
        for role in roles:
            for how, layer in levels:
                own = measured.get((pair.members[member].id, role, how, layer), {})
                rows.append({**labels, "role": role, "how": how, "layer": layer, "sees": pair.sees[role], **own})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_map(panel: np.ndarray) -> dict[str, float]:
    flat = np.full(panel.shape, 1 / panel.size)
    return {
        "entropy": float(map_metrics.entropy_share(panel)),
        "dispersion": float(map_metrics.dispersion(panel)),
        "cells": panel.size,
        "flat_dispersion": float(map_metrics.dispersion(flat)),
    }


def summary(frame: pd.DataFrame, *, by: Sequence[str] = _BY, seed: int = 0) -> pd.DataFrame:
    """What the spatial word changes, pair by pair: [*by, metric, sees, spatial, neutral, difference, low, high, p, q, control,
    control_low, control_high, n, clusters, left_out].

    spatial, neutral: means. difference: spatial minus neutral; p: signs flipped by cluster; q: Benjamini-Hochberg over the table.
    control: neutral minus the second neutral phrase, what an exchange of words does that changes no direction (NaN where it was
    not measured). Rows whose words do not see the relation have no p. left_out: pairs without one of the maps.
    by: how, layer and role, and relation or not (then pooled over all four). Raises ValueError for another `by`, a missing
    column or member, and for rows that stand twice.
    """
    if not set(_BY[:3]) <= set(by) or not set(by) <= set(_BY):
        raise ValueError(f"by={tuple(by)!r}: how, layer and role, and relation or not")
    if missing := [name for name in (*COLUMNS[:8], *METRICS) if name not in frame.columns]:
        raise ValueError(f"the column {missing[0]!r} is missing; there: {', '.join(map(str, frame.columns))}")
    if missing := {"spatial", "neutral"} - set(frame["member"]):
        raise ValueError(f"member {min(missing)!r} is missing: nothing to compare")
    if (twice := frame.duplicated(["pair", "member", "how", "layer", "role"])).any():
        raise ValueError(f"pair {frame.loc[twice, 'pair'].iloc[0]!r} stands twice: give one model's rows, and ids that differ")
    rows = []
    for metric in METRICS:
        for key, part in frame.groupby([*by, "sees"], sort=False):
            *labels, sees = key
            rows.append({**dict(zip(by, labels, strict=True)), "metric": metric, "sees": sees, **_paired(part, metric, seed)})
    made = pd.DataFrame(rows)
    made["p"] = made["p"].where(made["sees"])
    made.insert(made.columns.get_loc("p") + 1, "q", np.nan)
    if (known := made["p"].notna()).any():
        made.loc[known, "q"] = benjamini_hochberg(made.loc[known, "p"].to_numpy())
    return made


def _paired(part: pd.DataFrame, metric: str, seed: int) -> dict[str, float]:
    wide = part.pivot(index=["pair", "cluster"], columns="member", values=metric)
    whole = wide.dropna()
    clusters = whole.index.get_level_values("cluster").to_numpy()
    nothing = dict.fromkeys(("spatial", "neutral", "difference", "low", "high", "p"), np.nan)
    nothing |= dict.fromkeys(("control", "control_low", "control_high"), np.nan)
    counts = {"n": len(whole), "clusters": len(set(clusters)), "left_out": len(wide) - len(whole)}
    if whole.empty:
        return {**nothing, **counts}
    changes = [whole["spatial"] - whole["neutral"]]
    if "control" in whole:
        changes.append(whole["neutral"] - whole["control"])
    found = columns(np.stack(changes, axis=1), clusters, seed=seed)
    ends = {"difference": found.mean, "low": found.low, "high": found.high, "p": found.p}
    made = {name: float(values[0]) for name, values in ends.items()}
    if "control" in whole:
        ends = {"control": found.mean, "control_low": found.low, "control_high": found.high}
        made |= {name: float(values[1]) for name, values in ends.items()}
    return {**nothing, "spatial": whole["spatial"].mean(), "neutral": whole["neutral"].mean(), **made, **counts}


def as_published(frame: pd.DataFrame, *, how: str = "mean") -> pd.DataFrame:
    """The study's table: [role, metric, spatial, spatial_sd, neutral, neutral_sd, t, p, n], samples compared unpaired.

    metric: "entropy" in nats and "dispersion" in cells^2, of the maps averaged over all heads and layers (`how`). t, p: Student's
    t-test of two samples with one variance, as the study runs it on what are pairs. Of a table of `measure_tower`, t is 0 and p
    is 1 by construction. n: of each sample.
    Raises ValueError where `how` was not measured, or is "layer" and several are there.
    """
    from scipy.stats import ttest_ind  # a quarter of a second, only where it is used

    part = frame[frame["how"] == how]
    if part.empty:
        raise ValueError(f"how={how!r} was not measured; there: {', '.join(map(repr, frame['how'].unique()))}")
    if part["layer"].nunique() > 1:
        raise ValueError(f"how={how!r} holds {part['layer'].nunique()} layers, of which each would count as a sample; give one")
    part = part.assign(entropy=part["entropy"] * np.log(part["cells"].astype(float)))
    rows = []
    for role, own in part.groupby("role", sort=False):
        for metric in METRICS:
            one, other = (own.loc[own["member"] == member, metric].dropna() for member in MEMBERS[:2])
            test = ttest_ind(one, other)
            values = {"spatial": one.mean(), "spatial_sd": one.std(), "neutral": other.mean(), "neutral_sd": other.std()}
            rows.append({"role": role, "metric": metric, **values, "t": test.statistic, "p": test.pvalue, "n": len(one)})
    return pd.DataFrame(rows)
