"""Maps of words held against boxes: every map against its own object, the other one, and what is between them.

A map alone says little: it may be a model that looks at whatever is there. So each is held against both boxes (the difference is
the binding of the word to its object, `map_summary.binding`), each value has its chance (map_chance.py) beside it, and pictures
with shuffled cells (map_baseline.py) show what is left without a picture. Knows maps, examples and tables; no model.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd

from spatialprobes.examples import Example
from spatialprobes.probes import map_chance as chance
from spatialprobes.probes import map_metrics as metric
from spatialprobes.probes import map_targets as targets
from spatialprobes.probes.map_summary import binding, summary
from spatialprobes.seeds import check_seed

if TYPE_CHECKING:
    from spatialprobes.probes.map_records import Maps, Panels

__all__ = ["BETTER", "METRICS", "PUBLISHED", "Measure", "binding", "by_head", "score", "summary"]

Definition = Literal["corrected", "as_published"]
ON_MAP = "map"  # the target of measures that need none
BLOCK = 2_000_000  # weights measured at once: some hundred MB
NOT_DEFINED = "not defined for a map without weight, or of one cell"
BAD_WEIGHTS = "the map holds weights that are negative or not finite"
ROLES = {"subject": "subject", "reference": "reference", "relation": "word"}  # and where an example names its word
LABELS = ("example", "cluster", "word", "role", "category")
FRAME = ("rows", "cols", "scale_x", "scale_y", "shift_x", "shift_y")


@dataclass(frozen=True)
class Measure:
    """A measure of maps [n, target, head, row, col] against targets of the same shape.

    expected: its chance in closed form; None where it is simulated. needs: "mask", "other", "profile" or "map" (no target).
    better: whether a map that shows its target has a "higher" or a "lower" value; "" where it says nothing of that.
    """

    value: Callable
    expected: Callable | None
    needs: str
    better: str


def _of_mask(function: Callable) -> Callable:
    return lambda maps, held: function(maps, held.masks)


def _of_other(function: Callable) -> Callable:
    return lambda maps, held: function(maps, held.masks, held.others)


def _of_profile(function: Callable) -> Callable:
    return lambda maps, held: function(maps, held.profiles, held.axis)


def _of_map(function: Callable) -> Callable:
    return lambda maps, held: function(maps)


BETTER = {
    "hit": Measure(_of_mask(metric.hit), _of_mask(chance.share), "mask", "higher"),
    "mass": Measure(_of_mask(metric.mass), _of_mask(chance.share), "mask", "higher"),
    "lift": Measure(_of_mask(metric.lift), _of_mask(chance.one), "mask", "higher"),
    "auc": Measure(_of_mask(metric.auc), _of_mask(chance.half), "mask", "higher"),
    "distance": Measure(_of_mask(metric.distance), None, "mask", "lower"),
    "wasserstein": Measure(_of_profile(metric.wasserstein), None, "profile", "lower"),
    "entropy_share": Measure(_of_map(metric.entropy_share), _of_map(chance.entropy_share), "map", ""),
}
PUBLISHED = {
    "com": Measure(_of_mask(metric.com), None, "mask", "lower"),
    "iou": Measure(_of_mask(metric.iou), _of_mask(chance.iou), "mask", "higher"),
    "soft_iou": Measure(_of_mask(metric.soft_iou), None, "mask", "higher"),
    "wasserstein_x": Measure(_of_profile(metric.wasserstein_x), None, "profile", "lower"),
    "entity_bg_ratio_llava": Measure(_of_other(metric.entity_bg_ratio_llava), None, "other", "higher"),
    "entity_bg_ratio_qwen": Measure(_of_other(metric.entity_bg_ratio_qwen), None, "other", "higher"),
    "in_out_ratio": Measure(_of_mask(metric.in_out_ratio), None, "mask", "higher"),
    "dispersion": Measure(_of_map(metric.dispersion), _of_map(chance.dispersion), "map", ""),
    "entropy": Measure(_of_map(metric.entropy), _of_map(chance.entropy), "map", ""),
}
METRICS = BETTER | PUBLISHED


def score(
    panels: Panels,
    examples: Sequence[Example],
    *,
    metrics: Sequence[str] | None = None,
    definition: Definition = "corrected",
    seed: int = 0,
) -> pd.DataFrame:
    """Every map against every target: [example, cluster, word, role, category, target, metric, value, chance, left_out].

    examples: those of the maps; objects[0] is the subject, objects[1] the reference, meta["relation"] the relation of the one to
    the other. target: "subject" and "reference", the cells of their boxes; "relation", the cells between them, and for the
    Wasserstein distances the gap along the relation's axis; "map" for measures that need no target.
    metrics: names of `METRICS`; None for `BETTER`, or `PUBLISHED` with definition "as_published", which also takes boxes, axis
    and the relation's target as the study does (map_targets.py). chance: the expectation under the null of map_chance.py, some
    of it simulated from `seed`. left_out: why a value is NaN, "" where it is not; words without a map are there too.
    Raises KeyError for a map of an example that is not given or an unknown metric, ValueError for an unknown definition and for
    ids that stand twice.
    """
    _check_definition(definition)
    chosen = _chosen(metrics, PUBLISHED if definition == "as_published" else BETTER)
    weights = [np.asarray(panel)[None] for panel in panels.maps]
    return _scored(panels, weights, examples, chosen, definition, check_seed(seed), None)


def by_head(
    maps: Maps,
    examples: Sequence[Example],
    *,
    metrics: Sequence[str] = ("lift", "mass", "hit", "auc"),
    definition: Definition = "corrected",
    seed: int = 0,
) -> pd.DataFrame:
    """`score` of every head alone: the same columns, and layer and head before value."""
    _check_definition(definition)
    heads = maps.weights[0].shape[1] if maps.weights else 0
    places = pd.DataFrame({"layer": np.repeat(maps.layers, heads), "head": np.tile(np.arange(heads), len(maps.layers))})
    weights = [np.asarray(one).reshape(-1, one.shape[-1]) for one in maps.weights]
    return _scored(maps, weights, examples, _chosen(metrics, {}), definition, check_seed(seed), places)


def _scored(
    maps: Maps | Panels,
    weights: list[np.ndarray],
    examples: Sequence[Example],
    chosen: dict[str, Measure],
    definition: Definition,
    seed: int,
    places: pd.DataFrame | None,
) -> pd.DataFrame:
    """weights: of each map, [head, ...]; places: layer and head of each head, None for maps that have none."""
    known = {example.id: example for example in examples}
    if len(known) < len(examples):
        raise ValueError(f"{len(examples)} examples have {len(known)} ids; ids must differ")
    asked = [*maps.index["example"], *maps.left_out["example"]]
    if missing := [name for name in dict.fromkeys(asked) if name not in known]:
        raise KeyError(f"maps of {len(missing)} examples that are not given: {', '.join(map(repr, missing[:3]))}")
    index, problems = _with_left_out(maps, weights, known)
    shown = [known[name] for name in index["example"]]
    heads = 1 if places is None else len(places)
    codes = _Codes(list(chosen))
    for number, (rows, grid, axis, problem) in enumerate(_blocks(index, heads, shown, problems)):
        frames = index.loc[rows, ["scale_x", "scale_y", "shift_x", "shift_y"]].to_numpy(float)
        asked = [shown[row] for row in rows]
        if definition == "corrected":
            held = targets.corrected(asked, frames, grid, axis)
        else:
            held = targets.as_published(asked, grid)
        if problem:
            values = np.full((len(rows), 1, heads, *grid), np.nan)
        else:
            values = np.stack([weights[row].reshape(1, -1, *grid) for row in rows]).astype(float)
        for name, (which, value, expected) in _measured(values, held, chosen, definition, (seed, number)).items():
            on_map = chosen[name].needs == ON_MAP
            lacking = np.full((len(rows), 1), "", object) if on_map else held.reasons[chosen[name].needs][:, which]
            lacking = np.full_like(lacking, problem) if problem else lacking
            codes.add(rows, name, [len(targets.NAMES)] if on_map else which, value, expected, lacking)
    return codes.frame(index, places)


def _measured(
    maps: np.ndarray, held: targets.Targets, chosen: dict[str, Measure], definition: Definition, seed: tuple[int, int]
) -> dict[str, tuple[list[int], np.ndarray, np.ndarray]]:
    """Of each measure: the targets that it is held against, its values [n, target, head], and chance, of the same shape."""
    found, unknown = {}, {}
    for name, measure in chosen.items():
        which = _targets_of(measure, definition)
        against = held.take(which)
        shape = (len(maps), len(which), maps.shape[2])
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN is what an undefined value is
            value = np.broadcast_to(measure.value(maps, against), shape)
            expected = measure.expected(maps, against) if measure.expected else np.nan
        found[name] = which, value, np.broadcast_to(expected, shape)
        if measure.expected is None:
            unknown[name] = partial(measure.value, held=against)
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, expected in chance.simulated(maps, unknown, seed=seed).items():
            found[name] = *found[name][:2], expected
    return found


def _targets_of(measure: Measure, definition: Definition) -> list[int]:
    """Places in `targets.NAMES`: a relation has no other object, and no cells in the study."""
    if measure.needs == ON_MAP:
        return [0]
    alone = measure.needs == "other" or (measure.needs == "mask" and definition == "as_published")
    return [0, 1] if alone else [0, 1, 2]


def _blocks(
    index: pd.DataFrame, heads: int, shown: Sequence[Example], problems: Sequence[str]
) -> Iterator[tuple[list[int], tuple[int, int], str, str]]:
    """Rows that can be measured at once, their grid and relation's axis, what is wrong with them ("" where nothing is)."""
    groups: dict[tuple, list[int]] = {}
    for row, (height, width) in enumerate(zip(index["rows"], index["cols"], strict=True)):
        axis = targets.AXES.get(shown[row].meta.get("relation"), "x")
        groups.setdefault(((int(height), int(width)), axis, problems[row]), []).append(row)
    for (grid, axis, problem), rows in groups.items():
        size = max(1, BLOCK // (heads * grid[0] * grid[1]))
        for start in range(0, len(rows), size):
            yield rows[start : start + size], grid, axis, problem


def _with_left_out(
    maps: Maps | Panels, weights: list[np.ndarray], known: Mapping[str, Example]
) -> tuple[pd.DataFrame, list[str]]:
    """The index with a row for every word without a map, on a grid of one cell, and what is wrong with each row ("": nothing)."""
    problems = ["" if np.isfinite(each).all() and (each >= 0).all() else BAD_WEIGHTS for each in weights]
    lost: dict[tuple[str, str], dict] = {}  # by example and role
    for name, word, reason in maps.left_out[["example", "word", "reason"]].itertuples(index=False):
        meta = {role: known[name].meta.get(key) for role, key in ROLES.items()}
        for role in [role for role, own in meta.items() if own and word in ("", own)] or [""]:
            frame = {"rows": 1, "cols": 1, "scale_x": 1.0, "scale_y": 1.0, "shift_x": 0.0, "shift_y": 0.0}
            label = {"example": name, "cluster": known[name].cluster or name, "category": known[name].category}
            lost.setdefault((name, role), {**label, "word": word or meta.get(role, ""), "role": role, "why": reason, **frame})
    problems += [one["why"] for one in lost.values()]
    index = maps.index[[*LABELS, *FRAME]].reset_index(drop=True)
    if not lost:
        return index, problems
    return pd.concat([index, pd.DataFrame(list(lost.values()))[index.columns]], ignore_index=True), problems


class _Codes:
    """Values as they come, with whole numbers for what they are of: a table of millions of rows in hundreds of megabytes."""

    def __init__(self, metrics: list[str]):
        self.metrics, self.parts = metrics, []
        self.reasons = {"": 0, NOT_DEFINED: 1}

    def add(self, rows, name: str, which: list[int], value, expected, lacking) -> None:
        """lacking: [n, target]; value, expected: [n, target, head]."""
        n, count, heads = value.shape
        reason = np.array([[self.reasons.setdefault(why, len(self.reasons)) for why in each] for each in lacking], np.int32)
        reason = np.broadcast_to(reason[:, :, None], value.shape)
        reason = np.where((reason == 0) & np.isnan(value), 1, reason).ravel()
        out = reason > 0
        self.parts.append(
            {
                "row": np.repeat(np.asarray(rows, np.int32), count * heads),
                "target": np.tile(np.repeat(np.asarray(which, np.int8), heads), n),
                "metric": np.full(value.size, self.metrics.index(name), np.int8),
                "place": np.tile(np.arange(heads, dtype=np.int32), n * count),
                "value": np.where(out, np.nan, value.ravel()),
                "chance": np.where(out, np.nan, expected.ravel()),
                "left_out": reason,
            }
        )

    def frame(self, index: pd.DataFrame, places: pd.DataFrame | None) -> pd.DataFrame:
        """The table, in the order of the maps."""
        if not self.parts:
            raise ValueError("no maps were given")
        found = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        self.parts.clear()
        order = np.argsort(found["row"], kind="stable")
        found = {name: column[order] for name, column in found.items()}
        columns = {}
        for name in LABELS:
            codes, values = pd.factorize(index[name])
            columns[name] = pd.Categorical.from_codes(codes[found["row"]], values)
        columns["target"] = pd.Categorical.from_codes(found["target"], [*targets.NAMES, ON_MAP])
        columns["metric"] = pd.Categorical.from_codes(found["metric"], self.metrics)
        if places is not None:
            columns |= {name: places[name].to_numpy()[found["place"]] for name in places}
        columns |= {"value": found["value"], "chance": found["chance"]}
        columns["left_out"] = pd.Categorical.from_codes(found["left_out"], list(self.reasons))
        return pd.DataFrame(columns)


def _chosen(metrics: Sequence[str] | None, otherwise: dict[str, Measure]) -> dict[str, Measure]:
    metrics = [metrics] if isinstance(metrics, str) and metrics else metrics
    for name in metrics or ():
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.4)
            hint = f"; nearest: {near[0]!r}" if near else ""
            raise KeyError(f"unknown metric {name!r}{hint}; there are {', '.join(METRICS)}")
    chosen = dict(otherwise) if metrics is None else {name: METRICS[name] for name in metrics}
    if not chosen:
        raise ValueError(f"metrics={metrics!r} names none; there are {', '.join(METRICS)}")
    return chosen


def _check_definition(definition: str) -> None:
    if definition not in get_args(Definition):
        raise ValueError(f"definition={definition!r} is unknown; one of {', '.join(map(repr, get_args(Definition)))}")
