"""Is the direction of a swap what the model uses? Steer with it, and see whether answers flip (section 3).

The mean sign-corrected delta of a group leads from the states of questions answered left, above or far to those answered right,
under or close. Added to the state of the last prompt token, it should turn one answer into the other where the model reads it
there; random directions of equal norm and those of other groups should not. Directions come from other pictures than those that
are tested. Knows steering and swap states; knows nothing of figures.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from numbers import Integral
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from spatialprobes.examples import Example, batches
from spatialprobes.last_token import steered_words
from spatialprobes.pairs import GROUPS, SIGN, Pair
from spatialprobes.prefix import cut
from spatialprobes.probes.swap_states import MEMBERS, Layer, States
from spatialprobes.seeds import check_seed
from spatialprobes.spans import Spans
from spatialprobes.stats import Interval, bootstrap
from spatialprobes.steering import Steering, added, removed
from spatialprobes.vlm import VLM, Batch, PromptError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Key = tuple[str, Layer]  # group and layer
Vector = np.ndarray  # float32 [width]
TOWARD, AGAINST, REMOVE, RANDOM, OTHER = KINDS = ("toward", "against", "remove", "random", "other_group")
COLUMNS = ("pair", "member", "category", "group", "cluster", "layer", "kind", "strength", "logit_difference", "change", "flipped")
BARS_FROM = 20  # batches from which a bar of progress is shown


class Directions(dict[Key, Vector]):
    """By (group, layer), the mean sign-corrected delta, float32 [width].

    centres: by (group, layer), the mean state of both members. pairs, clusters: ids of what they were estimated from.
    """

    def __init__(
        self, vectors: Mapping[Key, Vector], centres: Mapping[Key, Vector], pairs: Iterable[str], clusters: Iterable[str]
    ):
        super().__init__(vectors)
        self.centres, self.pairs, self.clusters = dict(centres), frozenset(pairs), frozenset(clusters)

    @property
    def groups(self) -> list[str]:
        """Those there are, in the order of `pairs.GROUPS`."""
        return [group for group in GROUPS if any(group == found for found, _ in self)]


def split(pairs: Sequence[Pair], share: float = 0.5, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Pairs to estimate directions from and pairs to test them on, of different clusters (pictures); both in their order.

    share: of the clusters of each category, those to estimate from, rounded; a cluster counts for the category of its first pair.
    Raises ValueError for a share that is not between 0 and 1, no pairs, and where one side would be empty.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share!r} is not between 0 and 1: some pictures are for estimating, the others for testing")
    if not pairs:
        raise ValueError("no pairs were given")
    rng = np.random.default_rng(check_seed(seed))
    categories: dict[str, str] = {}
    for pair in pairs:
        categories.setdefault(pair.cluster, pair.category)
    chosen: set[str] = set()
    for category in SIGN:
        own = [cluster for cluster, found in categories.items() if found == category]
        chosen.update(own[i] for i in rng.permutation(len(own))[: round(share * len(own))])
    sides = [pair for pair in pairs if pair.cluster in chosen], [pair for pair in pairs if pair.cluster not in chosen]
    if not all(sides):
        raise ValueError(f"{len(categories)} pictures, share={share}: none are left for one side")
    return sides


def directions(states: States, layers: Sequence[Layer] | None = None, pairs: Sequence[Pair] | None = None) -> Directions:
    """Mean sign-corrected delta of every group and layer: from states of left, above, far to those of right, under, close.

    (delta is swapped - original, turned around for pairs answered right, under or close.) layers: of the states; None for all.
    pairs: those to estimate from; None for all. Pairs without a state at a layer (NaN) do not count there.
    Raises ValueError for pairs that have no states, a layer that was not extracted, and a group without a single finite delta.
    """
    if pairs is not None:
        wanted, known = {pair.id for pair in pairs}, set(states.pairs["pair"])
        if lacking := sorted(wanted - known):
            raise ValueError(f"pair {lacking[0]!r} has no states ({len(lacking)} of {len(wanted)} have none)")
        states = states.select(states.pairs["pair"].isin(wanted).to_numpy())
    if not len(states):
        raise ValueError("no pairs were given to estimate directions from")
    groups = states.pairs["group"].to_numpy()
    vectors, centres = {}, {}
    for layer in states.layers if layers is None else layers:
        deltas, middles = states.canonical(layer), (states.original(layer) + states.swapped(layer)) / 2
        finite = np.isfinite(deltas).all(axis=1)
        for group in dict.fromkeys(groups):
            own = finite & (groups == group)
            if not own.any():
                raise ValueError(f"{group}, layer {layer}: none of {int((groups == group).sum())} pairs has a finite delta")
            vectors[group, layer] = deltas[own].mean(axis=0, dtype=np.float64).astype(np.float32)
            centres[group, layer] = middles[own].mean(axis=0, dtype=np.float64).astype(np.float32)
    return Directions(vectors, centres, states.pairs["pair"], states.pairs["cluster"])


def measure(
    vlm: VLM,
    pairs: Sequence[Pair],
    directions: Directions,
    *,
    layers: Sequence[int] | None = None,
    strengths: Sequence[float] = (0.5, 1, 2),
    kinds: Sequence[str] = KINDS,
    batch_size: int = 64,
    system: str | None = "default",
    seed: int = 0,
) -> pd.DataFrame:
    """How steering at the last prompt token changes logit(expected) - logit(opposite): a row a member, layer, kind and strength.

    kinds: "toward" adds strength x the group's direction, signed so that it leads to the opposite answer; "against" subtracts it;
    "remove" projects it out around the mean state (`Directions.centres`), once, at strength 1; "random" adds a direction of
    equal norm drawn for each pair and layer, signed as "toward"; "other_group" that of another group, one drawn for each pair,
    scaled to equal norm; where directions are of one group alone it is left out (`attrs["left_out"]`). layers: 0..L as in
    `capture`; None for all of the directions but those at which one is zero (as at layer 0, where the last prompt token is the
    same for all questions).

    Columns: COLUMNS and unsteered, direction, expected, opposite. category: of the pair, whose original question has it as
    answer; group, cluster: the pair's. logit_difference: under steering; unsteered: without; change: the difference of these.
    flipped: whether unsteered > 0 became logit_difference < 0; missing where the unsteered preference was not the expected
    answer. direction: the group whose direction was used, or "random". expected, opposite: the member's answer and that of the
    other member; logits are those of the first token at which they differ, after the tokens that they share (forced), and what
    is steered is the token before it: the last of the prompt where they share none.
    Raises ValueError for pairs that were used for the directions or share a picture with those, for no pairs, twice the same
    pair, members with one and the same answer, a layer or group that the directions lack, a direction that is zero or not
    finite, an unknown kind, a strength that is not a finite number from 0.
    """
    _check_pairs(vlm, pairs, directions)
    chosen = _layers(pairs, directions, layers)
    conditions, left_out = _conditions(directions, chosen, kinds, strengths)
    check_seed(seed)
    members = [(pair, name, one) for pair in pairs for name, one in zip(MEMBERS, pair.members, strict=True)]
    parts = batches(members, batch_size)
    found = []
    for part in tqdm(parts, desc="steering", unit="batch", leave=False, disable=len(parts) < BARS_FROM):
        batch, words = _asked(vlm, part, system)
        plans = [_steering(directions, part, *condition, seed) for condition in conditions]
        logits = steered_words(vlm, batch, [steering for steering, _ in plans], words).double().numpy()
        found.append(_table(part, conditions, [names for _, names in plans], logits[..., 0] - logits[..., 1]))
    frame = pd.concat(found, ignore_index=True)
    frame.attrs = {"left_out": left_out}
    return frame


def summarise(frame: pd.DataFrame, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Flip rates and mean changes with cluster-bootstrap intervals: [layer, group, kind, strength, measure, estimate, low, high,
    n, clusters].

    measure: "flip_rate", the share of rows flipped among those whose unsteered preference was right (n counts these), or
    "change", in logits, of all rows. low and high are NaN where there are fewer than 2 clusters, estimate where there is no row.
    """
    rows = []
    for (layer, group, kind, strength), part in frame.groupby(["layer", "group", "kind", "strength"], sort=False):
        right = part[part["flipped"].notna()]
        for name, own, column, bounds in (("flip_rate", right, "flipped", (0, 1)), ("change", part, "change", None)):
            got = _interval(own[column].to_numpy(float), own["cluster"].to_numpy(), n, seed, bounds)
            rows.append({"layer": layer, "group": group, "kind": kind, "strength": strength, "measure": name, **got._asdict()})
    return pd.DataFrame(rows)


def _interval(values: Float[np.ndarray, " row"], clusters: np.ndarray, n: int, seed: int, bounds: tuple | None) -> Interval:
    count = len(set(clusters))
    if count >= 2:
        return bootstrap(values, clusters, n=n, seed=seed, bounds=bounds)
    return Interval(float(values.mean()) if count else np.nan, np.nan, np.nan, len(values), count)


# --- what is asked ---


def _check_pairs(vlm: VLM, pairs: Sequence[Pair], directions: Directions) -> None:
    if not isinstance(directions, Directions):
        raise ValueError(f"directions: Directions are wanted, which know what they were estimated from, not {type(directions)}")
    if not pairs:
        raise ValueError("no pairs were given")
    if vlm.by_row_interventions:
        raise ValueError("measure batches pairs: what is open per row of a batch does not fit; open a mapping from cluster")
    seen: set[str] = set()
    for pair in pairs:
        if pair.id in seen:
            raise ValueError(f"two pairs have the id {pair.id!r}; ids must be unique")
        seen.add(pair.id)
        if pair.id in directions.pairs or pair.cluster in directions.clusters:
            raise ValueError(f"pair {pair.id!r} or its picture {pair.cluster!r} was used for the directions; see `split`")
        if pair.original.answer == pair.swapped.answer:
            raise ValueError(f"pair {pair.id!r}: both members are answered {pair.original.answer!r}")


def _layers(pairs: Sequence[Pair], directions: Directions, layers: Sequence[int] | None) -> list[int]:
    groups = dict.fromkeys([*(pair.group for pair in pairs), *directions.groups])  # the others are controls
    there = list(dict.fromkeys(layer for _, layer in directions if isinstance(layer, Integral)))
    if wrong := [layer for layer in layers or () if layer not in there]:
        raise ValueError(f"layer {wrong[0]!r} is not among those of the directions: {', '.join(map(str, there))}")
    for key in ((group, layer) for group in groups for layer in (there if layers is None else layers)):
        if key not in directions:
            raise ValueError(f"there is no direction of {key[0]} at layer {key[1]}; there: {', '.join(directions.groups)}")
        if not np.isfinite(directions[key]).all() or not np.isfinite(directions.centres[key]).all():
            raise ValueError(f"the direction of {key[0]} at layer {key[1]} holds NaN or infinite numbers")
        if layers is not None and not directions[key].any():
            raise ValueError(f"the direction of {key[0]} at layer {key[1]} is zero: nothing there tells the questions apart")
    if layers is not None:
        return list(dict.fromkeys(layers))
    return [layer for layer in there if all(directions[group, layer].any() for group in groups)]


def _conditions(
    directions: Directions, layers: list[int], kinds: Sequence[str], strengths: Sequence[float]
) -> tuple[list[tuple[int, str, float]], list[str]]:
    """(layer, kind, strength) of every run, and the kinds that can't be had."""
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"kind {wrong[0]!r} is unknown; {', '.join(KINDS)}")
    if wrong := [one for one in strengths if isinstance(one, bool) or not isfinite(one) or one < 0]:
        raise ValueError(f"strength {wrong[0]!r} is not a finite number from 0")
    left_out = [OTHER] if OTHER in kinds and len(directions.groups) < 2 else []
    kept = [kind for kind in dict.fromkeys(kinds) if kind not in left_out]
    sweep = list(dict.fromkeys(map(float, strengths)))
    found = [(layer, kind, one) for layer in layers for kind in kept for one in ((1.0,) if kind == REMOVE else sweep)]
    if not found:
        raise ValueError(f"nothing is left to steer: layers {layers}, kinds {kept}, strengths {sweep}")
    return found, left_out


def _asked(vlm: VLM, part: list[tuple[Pair, str, Example]], system: str | None) -> tuple[Batch, Int[Tensor, "example 2"]]:
    """Prompts up to where expected and opposite answer part, and the tokens [expected, opposite] that come there."""
    examples = [one for _, _, one in part]
    pictures, which = vlm.pictures(examples)
    others = [replace(one, answer=_opposite(pair, name)) for pair, name, one in part]
    whole, other = (vlm.assemble(asked, pictures, which, system, answers=True) for asked in (examples, others))
    pieces, words = [], []
    for row, example in enumerate(examples):
        start = whole.spans[row].start
        expected, opposite = (_tokens(batch, row) for batch in (whole, other))
        shared = next((i for i, (a, b) in enumerate(zip(expected, opposite, strict=False)) if a != b), None)
        if shared is None:
            answers = f"{example.answer!r} and {others[row].answer!r}"
            raise PromptError(f"example {example.id!r}: no token tells the answers {answers} apart")
        pieces.append((row, start, start + shared))
        words.append((expected[shared], opposite[shared]))
    inputs = {**cut(whole, pieces), **vlm.to_device(vlm.family.repeat(pictures.inputs, which))}
    length = inputs["input_ids"].shape[1]
    spans = [_ending(whole.spans[row], end, length) for row, _, end in pieces]
    return Batch(inputs, spans, examples, which), torch.tensor(words)


def _ending(spans: Spans, end: int, length: int) -> Spans:
    """Of the prompt cut before `end` and moved to the end of `length` tokens."""
    return spans.parted(int(spans.vision[-1]) + 1 + length - end, end, length)


def _tokens(batch: Batch, row: int) -> list[int]:
    """Prompt and answer, without padding and without what the template writes behind the answer."""
    spans = batch.spans[row]
    return batch.input_ids[row, spans.start : int(spans.answer[-1]) + 1].tolist()


def _opposite(pair: Pair, name: str) -> str | None:
    return pair.swapped.answer if name == MEMBERS[0] else pair.original.answer


# --- how it is steered ---


def _steering(
    directions: Directions, part: list[tuple[Pair, str, Example]], layer: int, kind: str, strength: float, seed: int
) -> tuple[Steering, list[str]]:
    """The steering of a batch, a vector a row, and the name of each row's direction."""
    keys = [(pair.group, layer) for pair, _, _ in part]
    own = np.stack([directions[key] for key in keys])
    signs = np.array([SIGN[pair.category] * (1 if name == MEMBERS[0] else -1) for pair, name, _ in part])
    names = [group for group, _ in keys]
    if kind == REMOVE:
        return removed(own, layer, centre=np.stack([directions.centres[key] for key in keys])), names
    if kind == RANDOM:
        own, names = (
            np.stack([_random(directions[key], pair, layer, seed) for key, (pair, _, _) in zip(keys, part, strict=True)]),
            ["random"] * len(part),
        )
    if kind == OTHER:
        names = [_other(directions, pair, seed) for pair, _, _ in part]
        own = np.stack([_scaled(directions[name, layer], directions[key]) for name, key in zip(names, keys, strict=True)])
    toward = -1 if kind == AGAINST else 1
    return added(own * (toward * strength * signs)[:, None], layer), names


def _random(like: Vector, pair: Pair, layer: int, seed: int) -> Vector:
    rng = np.random.default_rng([seed, zlib.crc32(pair.id.encode()), layer])
    return _scaled(rng.standard_normal(len(like)), like)


def _other(directions: Directions, pair: Pair, seed: int) -> str:
    rng = np.random.default_rng([seed, zlib.crc32(pair.id.encode())])
    return str(rng.choice([group for group in directions.groups if group != pair.group]))


def _scaled(vector: Vector, like: Vector) -> Vector:
    """The vector at the length of another."""
    return vector * (np.linalg.norm(like.astype(np.float64)) / np.linalg.norm(vector.astype(np.float64)))


def _table(
    part: list[tuple[Pair, str, Example]],
    conditions: list[tuple[int, str, float]],
    names: list[list[str]],
    differences: Float[np.ndarray, "member run"],
) -> pd.DataFrame:
    rows = []
    for i, (pair, name, one) in enumerate(part):
        unsteered = differences[i, 0]
        who = (pair.id, name, pair.category, pair.group, pair.cluster)
        for j, (layer, kind, strength) in enumerate(conditions):
            difference = differences[i, j + 1]
            flipped = bool(difference < 0) if unsteered > 0 else pd.NA
            seen = (*who, layer, kind, strength, difference, difference - unsteered, flipped)
            rows.append((*seen, unsteered, names[j][i], one.answer, _opposite(pair, name)))
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "unsteered", "direction", "expected", "opposite"])
    return frame.astype({"flipped": "boolean"})
