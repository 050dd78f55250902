"""Our maps, captions and corner heads as files in the attention study's own layout, so that its code and figures can take them.

What a script of the study leaves is written, in its names and numbers, and nothing of ours that it lacks: Qwen2-VL's scripts
leave all of it, LLaVA's no texts of captions and no shared heads. What the study has and is not given here
(attention between patches, a word without a map) is "nan" in its place. Intervals, chance and controls stay in our own tables.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.probes import head_counts, map_scores
from spatialprobes.probes.heads import HeadMass
from spatialprobes.probes.map_baseline import real_id
from spatialprobes.probes.map_records import Panels
from spatialprobes.probes.text_only import CaptionPair, published_pairs
from spatialprobes.sources import attention_results, head_reports, head_results
from spatialprobes.sources.attention_lines import ENTITIES, SELF_METRICS, WORD_METRICS
from spatialprobes.sources.attention_pairs import write_pairs, write_stats
from spatialprobes.sources.attention_results import MEANS, METRICS, SAMPLES, AttentionResults, Layout
from spatialprobes.sources.head_reports import CELLS, HEADS, SHARED, HeadReports
from spatialprobes.sources.head_results import PREFIX, HeadResults
from spatialprobes.worlds.corners import CORNERS

MAPS = {"llava": "left_right_analysis_outputs", "qwen2": "qwen2_metrics_allshards"}  # theirs ends in its size and layers
PAIRS, STATS = "pair_level_symmetry_pairs_qwen2_allshards.csv", "pair_level_symmetry_stats_qwen2_allshards.txt"
REPORTS = "count_shared_unique"
LEAST_HEADS = {"llava": 4, "qwen2": head_counts.TOP}  # the gaps of LLaVA's want a fourth
RELATIONS = ("left", "right")  # the study's samples; it has no target for the others
PLACE = re.compile(r"(?:.*/)?shard(\d{1,6})/world-(\d{1,9})")
NUMBERS = [
    *(("words", role, metric) for role, metric in product(ENTITIES, WORD_METRICS)),
    ("words", "relation", "wasserstein_x"),
    *(("self", role, metric) for role, metric in product(ENTITIES, SELF_METRICS)),
]


def write(
    folder: str | Path,
    layout: Layout,
    *,
    panels: Panels,
    examples: Sequence[Example],
    shuffled: tuple[Panels, Sequence[Example]] | None,
    captions: Sequence[CaptionPair],
    asymmetry: pd.DataFrame,
    mass: HeadMass,
) -> list[Path]:
    """Write what a script of the study for `layout` leaves, below `folder`; the files written.

    panels, examples: of words, and what was shown; only left and right are the study's. shuffled: the same of shuffled pictures
    (`map_baseline.shuffled`), None for none. captions, asymmetry: pairs and their `text_only.measure(entity="shape")`. mass: of
    pairs of corners. Files of an earlier call are replaced by name, none is removed. What cannot be made of these (no left and
    right, too few heads, no shape of one token) is left out with a warning.
    Raises ValueError for an unknown layout, examples that do not say which entity comes first in the world, captions that are
    not those of the asymmetry, and files of the other layout in the folder; and as `map_scores.score`.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout {layout!r} is unknown; one of {', '.join(map(repr, get_args(Layout)))}")
    folder = Path(folder)
    written = _write_maps(folder / MAPS[layout], layout, panels, examples, shuffled)
    if layout == "qwen2":
        written += _write_captions(folder, captions, asymmetry)
    return written + _write_heads(folder, layout, mass)


def places(names: Sequence[str]) -> list[tuple[int, int]]:
    """Shard and number of each example or pair: those that its id tells ("shard3/world-14"), or else shard 0 and its place."""
    found = [PLACE.fullmatch(name) for name in names]
    told = [(int(one[1]), int(one[2])) for one in found if one]
    return told if len(set(told)) == len(names) else [(0, place) for place in range(len(names))]


# ---- maps ----
def _write_maps(folder: Path, layout: Layout, panels: Panels, examples: Sequence[Example], shuffled) -> list[Path]:
    measured = {"real": _measured(panels, examples)}
    if shuffled is not None:
        measured["shuffled"] = _measured(*shuffled)
    samples = _samples(panels, examples, set(measured["real"]["example"]))
    if samples.empty:
        _leave_out("maps", "no example says left or right, which alone the study measures")
        return []
    conditions = ("real", "shuffled") if layout == "llava" else tuple(measured)  # LLaVA's lines hold both
    key = ["example", "condition", "kind", "role", "metric"]
    wanted = [(name, condition, *number) for name, condition, number in product(samples["example"], conditions, NUMBERS)]
    values = pd.concat([frame.assign(condition=condition, kind="words") for condition, frame in measured.items()])
    metrics = pd.DataFrame(wanted, columns=key).merge(values, on=key, how="left").fillna({"word": ""})
    metrics = metrics.merge(samples[["example", "shard", "sample"]], on="example")
    results = AttentionResults(layout, samples[SAMPLES], metrics[METRICS], pd.DataFrame(columns=MEANS))
    return attention_results.write(results, folder)


def _measured(panels: Panels, examples: Sequence[Example]) -> pd.DataFrame:
    """The study's numbers of words, entities in the world's order: [example (the real one's id), role, word, metric, value]."""
    if unknown := [one.id for one in examples if "world_order" not in one.meta]:
        raise ValueError(f"example {unknown[0]!r} does not say in meta['world_order'] which entity comes first in the world")
    found = map_scores.score(panels, examples, metrics=WORD_METRICS, definition="as_published")
    text = ["example", "role", "target", "word", "metric"]
    found = found.astype(dict.fromkeys(text, str))
    found = found[found["role"] == found["target"]]
    in_order = found["example"].map({one.id: bool(one.meta["world_order"]) for one in examples})
    entity = np.where((found["role"] == "subject") == in_order, *ENTITIES)
    role = np.where(found["role"] == "relation", "relation", entity)
    made = found.assign(role=role, example=found["example"].map(real_id))
    return made[["example", "role", "word", "metric", "value"]]


def _samples(panels: Panels, examples: Sequence[Example], measured: set[str]) -> pd.DataFrame:
    """`SAMPLES` and example: a row for each measured example that says left or right."""
    grids = panels.index.drop_duplicates("example").set_index("example")[["rows", "cols"]]
    rows = []
    for one, (shard, sample) in zip(examples, places([one.id for one in examples]), strict=True):
        if one.id in measured and one.meta.get("relation") in RELATIONS:
            grid = grids.loc[one.id].to_dict() if one.id in grids.index else {}
            rows.append({"example": one.id, "shard": shard, "sample": sample, "prompt": one.question, **grid})
    return pd.DataFrame(rows, columns=["example", *SAMPLES]).sort_values(["shard", "sample"], ignore_index=True)


# ---- captions ----
def _write_captions(folder: Path, captions: Sequence[CaptionPair], asymmetry: pd.DataFrame) -> list[Path]:
    pairs, names = published_pairs(asymmetry), [one.id for one in captions]
    if sorted(pairs["pair"]) != sorted(names):
        raise ValueError(f"an asymmetry of {len(pairs)} pairs for {len(names)} captions: give those that were measured")
    if not pairs["kept"].any():
        _leave_out("captions", "no pair names shapes of one token each, which alone the study keeps")
        return []
    texts = {one.id: [member.text for member in one.members] for one in captions}
    said = pd.DataFrame(list(pairs["pair"].map(texts)), columns=["sent1", "sent2"], index=pairs.index)
    pairs = pairs.join(said)
    shards = sorted({shard for shard, _ in places(names)})
    stats = write_stats(pairs, folder / STATS, shards=shards, total_lines=len(names), total_pairs=len(names))
    return [write_pairs(pairs, folder / PAIRS), stats]


# ---- heads ----
def _write_heads(folder: Path, layout: Layout, mass: HeadMass) -> list[Path]:
    heads, there = mass.mass.shape[-1], set(mass.pairs["corner"])
    corners = [one for one in CORNERS if one in there and one in mass.asked]
    if heads < LEAST_HEADS[layout]:
        _leave_out("heads", f"layers of {heads} heads; the {layout} layout wants {LEAST_HEADS[layout]} at least")
        return []
    if not corners:
        _leave_out("heads", f"no subject stands in a corner that was asked about ({', '.join(mass.asked)})")
    written, found = [], {}
    for corner in corners:
        values = head_counts.changes(mass, corner)
        by_layer = {layer: values[:, place] for place, layer in enumerate(mass.layers)}
        found[PREFIX + corner] = head_results.of_changes(by_layer, layout, corner=corner, topk=head_counts.TOP)
        written += head_results.write(found[PREFIX + corner], folder / (PREFIX + corner))
    if layout == "qwen2" and len(corners) > 1:
        written += _write_reports(folder / REPORTS, found)
    return written


def _write_reports(folder: Path, found: Mapping[str, HeadResults]) -> list[Path]:
    """The study's reports on what corners share, of the very memberships that were written. Layers are rows of count_LHN."""
    counts = {one.pairs for one in found.values()}
    if len(counts) > 1:
        _leave_out("shared heads", f"corners of {', '.join(map(str, sorted(counts)))} pairs; the study wants as many in each")
        return []
    pairs = counts.pop()
    cubes = {name: np.stack([one.members[layer] for layer in sorted(one.members)]) for name, one in found.items()}
    made = head_counts.shared_and_unique(cubes)
    maps = {SHARED: made.shared, **made.residuals}
    tops, best = {SHARED: made.top_shared, **made.top_residual}, {SHARED: made.shared_head, **made.unique_heads}
    cells, heads = [], []
    for of, values in maps.items():
        beside = made.frequencies if of == SHARED else made.residuals
        for rank, (layer, head) in enumerate(tops[of], 1):
            value = float(values[layer, head] * pairs)
            corners = {name: float(own[layer, head] * pairs) for name, own in beside.items()}
            cells.append(dict(zip(CELLS, (of, rank, layer, head, value, value), strict=True)) | corners)
        heads.append((of, best[of], float(values[:, best[of]].max() * pairs)))
    reports = HeadReports(pd.DataFrame(cells), pd.DataFrame(heads, columns=HEADS), *made.shared.shape, pairs)
    return head_reports.write(reports, folder)


def _leave_out(what: str, why: str) -> None:
    warnings.warn(f"the study's files of {what} are left out: {why}", stacklevel=4)
