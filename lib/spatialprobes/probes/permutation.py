"""Does it matter where the vision tokens stand? The permutation probe (Beyond Semantics, section 3).

The tokens change places between connector and language model, positions stay. What survives does not need place; which way of
changing places hurts says what kind of place is needed. Knows answers and interventions; the arithmetic of the index is in
`psi`, the ways to rearrange a grid are in `permutations`; knows nothing of figures.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from spatialprobes import permutations as ways
from spatialprobes.answers import answer
from spatialprobes.examples import Example, Object, batches
from spatialprobes.families import Frame
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.probes.answer_files import psi_from_answers, read_answers
from spatialprobes.probes.psi import IN_PLACE, ORIGINAL, PERMUTED, drop, psi, psi_by_distance, psi_from_accuracies, psi_table
from spatialprobes.seeds import SEEDS, check_seed
from spatialprobes.spans import Spans
from spatialprobes.stats import bootstrap
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

__all__ = [
    "IN_PLACE",
    "ORIGINAL",
    "PERMUTED",
    "drop",
    "measure",
    "psi",
    "psi_by_distance",
    "psi_from_accuracies",
    "psi_from_answers",
    "psi_table",
    "read_answers",
    "summary",
]

Way = Callable[[ways.Grid, np.random.Generator, Example], Sequence[int]]  # -> [token], numpy arrays too
_Drawer = Callable[[Spans, Example, np.random.Generator], torch.Tensor]
FULL = "full"
OBJECTS, BACKGROUND, OBJECT = (
    "objects",
    "background",
    "object",
)  # cells of all objects; all other cells; object:<place in the list>


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    permutations: Sequence[str] | Mapping[str, Way] = (FULL,),
    draws: int = 3,
    by: str = "generate",
    max_new_tokens: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Answers with the vision tokens in place and under ``draws`` seeded draws of each permutation, a row an example and draw.

    permutations: names, or a mapping from a name of one's own to a function of (grid, generator, example) that returns whole
    numbers [token], place i holding what stood at the i-th. Names: "full", "rows", "columns", "flip_left_right", "flip_up_down",
    "rotate180", "blocks:2", "within_blocks:2", "within_radius:1.5" (see `permutations`; other sizes likewise); and of the
    example's objects "objects" (only cells that show one, among each other), "background" (only those that show none) and
    "object:0" (only those of the first). Flips and the half turn are asked once, nothing being drawn.

    Columns: id, group, category, kind (``Example.meta["kind"]``, else the first part of the group), cluster (the id where an
    example has none), expected, answer, correct, parsed, condition ("original" or "permuted"), draw (-1 for the original),
    permutation ("in place" for the original), moved (mean distance in cells that the picture's tokens moved; NaN where they have
    no grid). Every picture has a permutation of its own in every draw; questions about one picture share it, and of the objects
    those of its first question. ``attrs["unparsed"]``: share of rows that could not be read.
    Raises ValueError for draws < 1, what is no seed, no examples, no permutations, a name that is unknown (naming the nearest) or
    a size that does not fit, tokens without a grid under any but "full", an example without the objects asked for, and a function
    that returns no permutation.
    """
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    if not examples:
        raise ValueError("no examples were given")
    check_seed(seed)
    chosen = _ways(permutations, draws)
    options = {"by": by, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    pictures = {example.cluster or example.id: example for example in reversed(examples)}  # the first of each
    pictures = {cluster: pictures[cluster] for cluster in dict.fromkeys(example.cluster or example.id for example in examples)}
    spans = _spans(vlm, list(pictures.values()), batch_size)
    planned = _planned(chosen, pictures, spans, seed)  # before anything is asked: what does not fit says so at once
    frames = [answer(vlm, examples, **options).assign(condition=ORIGINAL, draw=-1, permutation=IN_PLACE, moved=0.0)]
    clusters = [example.cluster or example.id for example in examples]
    for name, draw, orders, moved in planned:
        with intervene(vlm, permute=orders):
            found = answer(vlm, examples, **options)
        found = found.assign(condition=PERMUTED, draw=draw, permutation=name, moved=[moved[cluster] for cluster in clusters])
        frames.append(found)
    frame = pd.concat(frames, ignore_index=True)
    kinds = {example.id: example.meta.get("kind") or example.group.split(".")[0] for example in examples}
    frame.insert(3, "kind", frame["id"].map(kinds))
    frame["cluster"] = frame["id"].map({example.id: example.cluster or example.id for example in examples})
    frame.attrs = {"unparsed": float(1 - frame["parsed"].mean())}
    return frame.drop(columns="text")


def summary(frame: pd.DataFrame, chance: dict[str, float], seed: int = 0) -> pd.DataFrame:
    """Accuracy by group and condition with cluster-bootstrap intervals.

    Columns: group, kind, condition, permutation ("in place" for the original), accuracy, low, high, chance, n.
    chance: {group: accuracy of the best blind answer}; NaN where a group is not in it. n counts questions; each is asked once
    under every draw of a permutation, and the questions of one picture are resampled together.
    """
    if "permutation" not in frame:
        frame = frame.assign(permutation=np.where(frame["condition"] == ORIGINAL, IN_PLACE, FULL))
    rows = []
    for (group, condition, name), part in frame.groupby(["group", "condition", "permutation"], sort=False):
        found = bootstrap(part["correct"].to_numpy(float), part["cluster"].to_numpy(), seed=seed, bounds=(0, 1))
        rows.append(
            {
                "group": group,
                "kind": part["kind"].iloc[0],
                "condition": condition,
                "permutation": name,
                "accuracy": found.estimate,
                "low": found.low,
                "high": found.high,
                "chance": chance.get(group, np.nan),
                "n": part["id"].nunique(),
            }
        )
    return pd.DataFrame(rows)


# --- which tokens go where ---


def _ways(permutations: Sequence[str] | Mapping[str, Way], draws: int) -> list[tuple[str, _Drawer | None, int]]:
    """(name, what draws the permutation of one picture, how often); None for the full shuffle, which needs no grid."""
    if isinstance(permutations, str):
        raise ValueError(f"permutations={permutations!r} is one name; give a sequence of names, as in ({permutations!r},)")
    if not permutations:
        raise ValueError("no permutations were given; permutations=('full',) is usual")
    if isinstance(permutations, Mapping):
        return [(name, partial(_of_ones_own, name, way), draws) for name, way in permutations.items()]
    if wrong := [name for name in permutations if not isinstance(name, str)]:
        raise ValueError(f"permutation {wrong[0]!r} is no name; such as {FULL!r}, or a mapping from names to functions")
    return [
        (name, None if name == FULL else _drawer(name), 1 if name in ways.FIXED else draws)
        for name in dict.fromkeys(permutations)
    ]


def _drawer(name: str) -> _Drawer:
    kind, _, place = name.partition(":")
    if name in (OBJECTS, BACKGROUND) or (kind == OBJECT and place.isdigit()):
        return partial(_of_objects, name)
    if near := difflib.get_close_matches(name, (OBJECTS, BACKGROUND, f"{OBJECT}:0"), n=1, cutoff=0.75):
        raise ValueError(f"unknown permutation {name!r}; nearest: {near[0]!r}")
    return partial(_of_ones_own, name, _ignoring_the_example(ways.named(name)))


def _ignoring_the_example(way: Callable[[ways.Grid, np.random.Generator], Int[np.ndarray, " token"]]) -> Way:
    return lambda grid, generator, example: way(grid, generator)


def _of_ones_own(name: str, way: Way, spans: Spans, example: Example, generator: np.random.Generator) -> Int[Tensor, " token"]:
    order = np.array(way(_grid(name, spans), generator, example))
    n = len(spans.vision)
    if order.dtype.kind not in "iu" or order.shape != (n,) or not np.array_equal(np.sort(order), np.arange(n)):
        raise ValueError(
            f"permutation {name!r} gave example {example.id!r} no permutation of its {n} tokens: {order.tolist()!r:.60}"
        )
    return torch.as_tensor(order.astype(np.int64))


def _of_objects(name: str, spans: Spans, example: Example, generator: np.random.Generator) -> Int[Tensor, " token"]:
    grid = _grid(name, spans)
    kind, _, place = name.partition(":")
    chosen = example.objects[int(place) : int(place) + 1] if kind == OBJECT else example.objects
    if not chosen:
        raise ValueError(f"permutation {name!r}: example {example.id!r} has {len(example.objects)} objects")
    cells = np.logical_or.reduce([_cells(one, spans) for one in chosen])
    return torch.as_tensor(ways.of_cells(grid, generator, ~cells if kind == BACKGROUND else cells))


def _cells(one: Object, spans: Spans) -> Bool[np.ndarray, "row column"]:
    """The cells that show an object: its mask where that is of this grid and the picture seen whole, else those of its box."""
    if one.mask is not None and one.mask.shape == spans.grid and spans.frame == Frame():
        return np.asarray(one.mask, bool)
    return spans.cells(one.box).numpy()


def _grid(name: str, spans: Spans) -> ways.Grid:
    if spans.grid is None:
        raise ValueError(
            f"permutation {name!r} needs a grid, which the vision tokens of {spans.example!r} do not have; use 'full'"
        )
    return spans.grid


def _planned(
    chosen: list[tuple[str, _Drawer | None, int]], pictures: dict[str, Example], spans: list[Spans], seed: int
) -> list[tuple[str, int, dict[str, Int[Tensor, " token"]], dict[str, float]]]:
    """(name, draw, {cluster: permutation}, {cluster: mean distance moved}), in the order in which they are asked.

    A structured permutation depends on seed, draw, its name and the picture's, not on what else is asked.
    """
    planned = []
    for name, drawer, draws in chosen:
        for draw in range(draws):
            if drawer is None:
                orders = _permutations([len(one.vision) for one in spans], (seed * 1000 + draw) % SEEDS)
            else:
                orders = [
                    drawer(one, example, np.random.default_rng([seed, draw, zlib.crc32(f"{name} {cluster}".encode())]))
                    for (cluster, example), one in zip(pictures.items(), spans, strict=True)
                ]
            moved = [_moved(order, one.grid) for order, one in zip(orders, spans, strict=True)]
            planned.append((name, draw, dict(zip(pictures, orders, strict=True)), dict(zip(pictures, moved, strict=True))))
    return planned


def _permutations(lengths: list[int], seed: int) -> list[Int[Tensor, " token"]]:
    """One full shuffle for every picture, drawn in the order of the pictures; needs no grid."""
    if len(set(lengths)) == 1:
        return list(random_permutations(lengths[0], len(lengths), seed))
    return [random_permutations(n, 1, (seed * 100_003 + i) % SEEDS)[0] for i, n in enumerate(lengths)]


def _moved(order: Int[Tensor, " token"], grid: ways.Grid | None) -> float:
    return float(ways.distance(order.numpy(), grid).mean()) if grid else np.nan


def _spans(vlm: VLM, pictures: Sequence[Example], batch_size: int) -> list[Spans]:
    """Where the vision tokens of each picture are, and on which grid."""
    return [spans for chunk in batches(pictures, batch_size) for spans in vlm.encode(chunk).spans]
