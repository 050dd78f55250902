"""Do answers need these heads? Take them out, and as many random ones of the same layers, and score the same examples.

A head that looks at the right place need not be read from: what its loss costs shows it. Zero is a value that what comes after
may never have seen, the mean is one that says nothing about the example: of both, the mean is the milder. Knows nothing of how
heads are found, and nothing of figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import comb, prod

import numpy as np
import pandas as pd
import torch

from spatialprobes.answers import each_choice, scorings
from spatialprobes.examples import Example, batches
from spatialprobes.heads_off import HOW, PLACES, Head, HeadMeans, HeadsOff, ablated, heads_off, read_heads
from spatialprobes.seeds import check_seed
from spatialprobes.stats import Interval, bootstrap, permutation_test
from spatialprobes.vlm import VLM

NONE, RANDOM = "none", "random:"
COLUMNS = ("example", "cluster", "category", "heads", "draw", "how", "correct", "margin", "change", "shared")


@torch.no_grad()
def means(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | None = None,
    batch_size: int = 64,
    system: str | None = "default",
) -> HeadMeans:
    """What heads give on average over the tokens of these prompts, apart for each place of a prompt (`heads_off.PLACES`).

    layers: blocks from 0; None for all that have heads. Sums are made in float64. Interventions that are open are in force.
    Raises ValueError for no examples and for a layer without heads.
    """
    if not examples:
        raise ValueError("no examples were given")
    blocks = vlm.family.part(vlm.model, "layers")
    chosen = [i for i, one in enumerate(blocks) if vlm.family.attention(one) is not None] if layers is None else sorted({*layers})
    sums = {layer: 0.0 for layer in chosen}
    counts = torch.zeros(len(PLACES), dtype=torch.long)

    def add(layer: int, outputs: torch.Tensor, places: torch.Tensor) -> None:
        member = torch.stack([places == place for place in range(len(PLACES))]).to(outputs.device)
        sums[layer] += torch.einsum("pet,eths->phs", member.double(), outputs.double()).cpu()
        if layer == chosen[0]:
            counts.add_(member.sum((1, 2)).cpu())

    with read_heads(vlm, chosen, add):
        for chunk in batches(sorted(examples, key=lambda one: -len(one.question or "")), batch_size):
            vlm.forward(vlm.encode(chunk, system), logits_to_keep=1)
    return HeadMeans({layer: (total / counts[:, None, None]).float() for layer, total in sums.items()}, counts, len(examples))


def random_sets(vlm: VLM, heads: Sequence[Head], draws: int = 20, seed: int = 0) -> list[tuple[list[Head], int]]:
    """Other heads of the same layers, as many in each, with the number of those that are the tested ones all the same.

    No two sets are the same, so there may be fewer than `draws`. None are the tested ones but where a layer has too few others:
    then all of these are in the set, and as many of the tested as are lacking. Raises ValueError for a head that is not there.
    """
    tested = ablated(heads).heads
    sizes = {layer: vlm.family.heads(vlm.model, layer).count for layer in tested}
    others = {layer: [head for head in range(sizes[layer]) if head not in own] for layer, own in tested.items()}
    lacking = {layer: max(0, len(own) - len(others[layer])) for layer, own in tested.items()}
    ways = {layer: comb(len(own), lacking[layer]) for layer, own in tested.items()}
    ways = {layer: n * comb(len(others[layer]), len(tested[layer]) - lacking[layer]) for layer, n in ways.items()}
    if all(lacking[layer] == len(own) for layer, own in tested.items()):
        return []  # whole layers: there is no other set
    rng = np.random.default_rng([check_seed(seed), 41])
    found: dict[tuple[Head, ...], int] = {}
    while len(found) < min(draws, prod(ways.values())):
        drawn: list[Head] = []
        for layer, own in tested.items():
            more = rng.choice(own, lacking[layer], replace=False)
            fresh = rng.choice(others[layer], len(own) - lacking[layer], replace=False) if others[layer] else []
            drawn += sorted((layer, int(head)) for head in (*fresh, *more))
        found[tuple(drawn)] = sum(lacking.values())
    return [(list(one), shared) for one, shared in found.items()]


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    groups: Mapping[str, Sequence[Head]],
    *,
    how: Sequence[str] = ("mean", "zero"),
    draws: int = 20,
    at: str = "all",
    reference: HeadMeans | None = None,
    batch_size: int = 64,
    system: str | None = "default",
    seed: int = 0,
) -> pd.DataFrame:
    """Answers without heads: one row per example, set of heads, draw and kind of ablation. Columns: COLUMNS.

    groups: by name, heads (layer, head), both from 0, that are taken out together. heads: that name; "random:<name>" for other
    heads of the same layers (`random_sets`), draw counting these from 0; "none" for the whole model, how "none". draw is -1 for
    what was not drawn. how, at: as in `heads_off.ablated`; reference: the means, None for those of these examples.
    margin: log-probability per token of the expected answer minus that of the best other choice, in nats, by teacher forcing
    (`answers.score`); correct: whether it is above 0; change: margin minus that of the whole model. shared: how many heads of a
    random set are the tested ones, where a layer has too few others.
    attrs: "draws", by group, how many random sets there were; "heads", by group, the heads.
    Raises ValueError for no groups, a name that is "none" or begins with "random:", an unknown `how`, negative draws, and an
    example whose answer is not among its choices or that has no other; PromptError for an example without choices.
    """
    _check(groups, how, draws)
    asked = each_choice(vlm, examples)
    for one in examples:
        if one.answer not in one.choices or len(set(one.choices)) < 2:
            raise ValueError(
                f"example {one.id!r}: answer {one.answer!r} and choices {one.choices}: no margin over another choice"
            )
    sets = list(_sets(vlm, groups, draws, seed))
    if "mean" in how and reference is None:
        layers = sorted({layer for _, _, heads, _ in sets for layer, _ in heads})
        reference = means(vlm, examples, layers=layers, batch_size=batch_size, system=system)
    runs: list[tuple[str, int, str, int, HeadsOff]] = [
        (name, draw, kind, shared, ablated(heads, kind, reference if kind == "mean" else None, at=at))
        for kind in dict.fromkeys(how)
        for name, draw, heads, shared in sets
    ]
    found = np.full((1 + len(runs), len(asked)), np.nan)
    for part in scorings(vlm, asked, batch_size, system=system):  # one batch's pictures are held at a time
        with vlm.family.keep_image_features(vlm.model):
            found[0, part.places] = _per_token(part.logprobs())
            for i, (*_, off) in enumerate(runs, 1):
                with heads_off(vlm, off):
                    found[i, part.places] = _per_token(part.logprobs())
    labels = [(NONE, -1, NONE, 0), *(run[:4] for run in runs)]
    frame = _table(examples, labels, np.stack(list(_margins(examples, found)), axis=1))
    frame.attrs = {
        "draws": {name: max((draw + 1 for other, draw, *_ in sets if other == RANDOM + name), default=0) for name in groups},
        "heads": {name: [list(head) for head in sorted(map(tuple, heads))] for name, heads in groups.items()},
    }
    return frame


def summary(frame: pd.DataFrame, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """What each set of heads is worth, with 95% cluster-bootstrap intervals: one row per group and kind of ablation.

    accuracy (low, high): the share correct without the heads. drop (drop_low, drop_high): that of the whole model minus it,
    paired. random: the share correct without random sets, mean over draws. against_random (and _low, _high): random minus
    accuracy, paired over examples; p: of this difference, two-sided, by flipping the signs of clusters. change, random_change,
    change_against_random (and _low, _high), p_change: the same of the margin, in nats (minus where the heads are missed more than
    random ones). p_rank: that the heads are worth no more than random sets of their layers, (1 + b) / (1 + draws) for b draws
    whose mean change is at most theirs; no less than 1 / (1 + draws). draws; shared: as in `measure`; n: examples; clusters.
    Raises ValueError for a missing column, a table without the whole model, and an example that stands twice in a set.
    The first row, "none", is the whole model. Where there is no random set, what needs one is NaN; where there are fewer than 2
    clusters, intervals and p are.
    """
    by = ["heads", "how", "draw"]
    if missing := [name for name in ("example", "cluster", "margin", "correct", "shared", *by) if name not in frame.columns]:
        raise ValueError(f"the column {missing[0]!r} is missing; there: {', '.join(map(str, frame.columns))}")
    if not (frame["heads"] == NONE).any():
        raise ValueError("the table has no row of the whole model")
    if (twice := frame.duplicated(["example", *by])).any():
        raise ValueError(f"example {frame.loc[twice, 'example'].iloc[0]!r} stands twice: give a table of one measurement")
    margins, correct = (
        frame.pivot(index=["example", "cluster"], columns=by, values=column).astype(float).sort_index(axis=1)
        for column in ("margin", "correct")
    )
    clusters = margins.index.get_level_values("cluster").to_numpy()
    whole = correct[NONE, NONE, -1], margins[NONE, NONE, -1]
    rows = [{"heads": NONE, "how": NONE, **_named("accuracy", _interval(whole[0], clusters, n, seed, (0, 1)), bare=True)}]
    tested = frame.loc[(frame["draw"] < 0) & (frame["heads"] != NONE), ["heads", "how"]].drop_duplicates()
    for name, kind in tested.itertuples(index=False):
        got, margin = correct[name, kind, -1], margins[name, kind, -1]
        row = {"heads": name, "how": kind, **_named("accuracy", _interval(got, clusters, n, seed, (0, 1)), bare=True)}
        row |= _named("drop", _interval(whole[0], clusters, n, seed, (0, 1), got))
        row |= _named("change", _interval(margin, clusters, n, seed, None, whole[1]))
        if (RANDOM + name, kind) in correct.columns.droplevel("draw"):
            others = correct[RANDOM + name, kind], margins[RANDOM + name, kind]
            row |= _against(got, margin, others, whole[1], clusters, n, seed)
        rows.append(row)
    own = frame[frame["heads"].str.startswith(RANDOM)]
    shared = own.groupby("heads")["shared"].first().rename(lambda name: name.removeprefix(RANDOM))
    found = pd.DataFrame(rows, columns=SUMMARY)
    found["shared"] = found["heads"].map(shared)
    return found.assign(n=len(margins), clusters=len(set(clusters)))


SUMMARY = (
    *("heads", "how", "accuracy", "low", "high", "drop", "drop_low", "drop_high"),
    *("random", "against_random", "against_random_low", "against_random_high", "p"),
    *("change", "change_low", "change_high", "random_change"),
    *("change_against_random", "change_against_random_low", "change_against_random_high", "p_change"),
    *("p_rank", "draws", "shared", "n", "clusters"),
)


def _against(
    got: pd.Series,
    margin: pd.Series,
    others: tuple[pd.DataFrame, pd.DataFrame],
    whole: pd.Series,
    clusters: np.ndarray,
    n: int,
    seed: int,
) -> dict[str, float]:
    """The heads against the mean over random sets, paired over examples; others: [example, draw] of correct and margin."""
    right, margins = (one.mean(axis=1) for one in others)
    changes = others[1].sub(whole, axis=0).mean()
    own = (margin - whole).mean()
    row = {"random": right.mean(), "random_change": changes.mean(), "draws": len(changes)}
    row |= _named("against_random", _interval(right, clusters, n, seed, (0, 1), got))
    row |= _named("change_against_random", _interval(margin, clusters, n, seed, None, margins))
    tie = 1e-9 * max(abs(own), 1e-9)
    row["p_rank"] = (1 + int((changes <= own + tie).sum())) / (1 + len(changes))
    if len(set(clusters)) >= 2:
        row["p"] = permutation_test(right.to_numpy(), got.to_numpy(), clusters, seed=seed)
        row["p_change"] = permutation_test(margins.to_numpy(), margin.to_numpy(), clusters, seed=seed)
    return row


def _named(name: str, interval: Interval, bare: bool = False) -> dict[str, float]:
    ends = ("low", "high") if bare else (f"{name}_low", f"{name}_high")
    return {name: interval.estimate, ends[0]: interval.low, ends[1]: interval.high}


def _interval(
    values: pd.Series, clusters: np.ndarray, n: int, seed: int, bounds: tuple | None, paired: pd.Series | None = None
) -> Interval:
    values, paired = values.to_numpy(float), None if paired is None else paired.to_numpy(float)
    if (count := len(set(clusters))) >= 2:
        return bootstrap(values, clusters, n=n, seed=seed, paired=paired, bounds=bounds)
    return Interval(float((values if paired is None else values - paired).mean()), np.nan, np.nan, len(values), count)


def _check(groups: Mapping[str, Sequence[Head]], how: Sequence[str], draws: int) -> None:
    if not groups:
        raise ValueError("no groups of heads were given; {name: [(layer, head), ...]}")
    if wrong := [name for name in groups if name == NONE or name.startswith(RANDOM)]:
        raise ValueError(f"a group of heads cannot be called {wrong[0]!r}: such names are those of the controls")
    if isinstance(how, str) or not how or (wrong := [kind for kind in how if kind not in HOW]):
        raise ValueError(f"how={how!r}: one or several of {', '.join(map(repr, HOW))}")
    if isinstance(draws, bool) or draws < 0:
        raise ValueError(f"draws={draws!r} is not a number of random sets from 0")


def _sets(
    vlm: VLM, groups: Mapping[str, Sequence[Head]], draws: int, seed: int
) -> Iterator[tuple[str, int, Sequence[Head], int]]:
    """(name, draw, heads, shared) of every set that is taken out."""
    for name, heads in groups.items():
        yield name, -1, heads, 0
        for draw, (drawn, shared) in enumerate(random_sets(vlm, heads, draws, seed)):
            yield RANDOM + name, draw, drawn, shared


def _per_token(scores: list[tuple[float, int]]) -> list[float]:
    return [logprob / tokens for logprob, tokens in scores]


def _margins(examples: Sequence[Example], found: np.ndarray) -> Iterator[np.ndarray]:
    """Of each example, [run]; found: [run, example and choice], examples one after the other."""
    start = 0
    for one in examples:
        own = found[:, start : start + len(one.choices)]
        expected = np.array([choice == one.answer for choice in one.choices])
        yield own[:, expected].max(1) - own[:, ~expected].max(1)
        start += len(one.choices)


def _table(examples: Sequence[Example], labels: list[tuple[str, int, str, int]], margins: np.ndarray) -> pd.DataFrame:
    """margins: [run, example], run 0 of the whole model."""
    who = pd.DataFrame(
        {
            "example": [one.id for one in examples],
            "cluster": [one.cluster or one.id for one in examples],
            "category": [one.category for one in examples],
        }
    )
    frames = [
        who.assign(heads=name, draw=draw, how=kind, correct=own > 0, margin=own, change=own - margins[0], shared=shared)
        for (name, draw, kind, shared), own in zip(labels, margins, strict=True)
    ]
    return pd.concat(frames, ignore_index=True)[list(COLUMNS)]
