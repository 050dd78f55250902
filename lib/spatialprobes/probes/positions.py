"""Where does the language model read place from: the order of the vision tokens, their position ids, or the tokens themselves?

The same questions, asked with the vision tokens or their position ids moved. In a decoder with rotary embeddings a token's place
is in its phase and, through the causal mask, in which tokens it can see; what the tower wrote into the token is a third way.
Shuffling the tokens breaks the first two, shuffling them together with their position ids only the second, one position for all
only the first. What survives all of them is in the tokens. Knows answers and interventions; knows nothing of figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pandas as pd

from spatialprobes.answers import answer
from spatialprobes.examples import Example
from spatialprobes.families import ALL
from spatialprobes.intervene import carried, constant, intervene, shifted
from spatialprobes.probes import psi
from spatialprobes.seeds import check_seed
from spatialprobes.stats import Interval
from spatialprobes.vlm import VLM

IN_PLACE = "in place"
SHUFFLED, TOGETHER, IDS, ONE = "tokens shuffled", "tokens and ids shuffled together", "ids shuffled", "one id for all"
NEITHER = "one id for all, tokens shuffled"
DRAWN = (SHUFFLED, TOGETHER, IDS, NEITHER)
CONDITIONS = (SHUFFLED, TOGETHER, IDS, ONE, NEITHER)


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    conditions: Sequence[str] = CONDITIONS,
    shifts: Sequence[float | tuple[float, str]] = (1.0, -1.0),
    draws: int = 1,
    by: str = "generate",
    max_new_tokens: int = 8,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Answers with the vision tokens in place and under each condition, one row per example, condition and draw.

    Columns: id, group, category, kind (``Example.meta["kind"]``, else the first part of the group), cluster (the id where an
    example has none), expected, answer, correct, parsed, condition, draw (-1 where nothing is drawn).
    conditions: of `CONDITIONS`. "tokens shuffled": tokens change places, position ids stay (the permutation probe).
    "tokens and ids shuffled together": each token keeps its id, so that only the causal order changes. "ids shuffled": tokens
    stay, ids change places. "one id for all": all tokens of a picture at the mean of their positions; "one id for all, tokens
    shuffled": neither ids nor order are left. shifts: also "ids shifted by <d>", all ids of the picture moved by d positions
    along every axis, and for (d, axis) "ids shifted by <d>, <axis>", of M-RoPE's "temporal", "height" and "width". draws: of the
    shuffled ones; every picture has its own permutation.
    Raises ValueError for an unknown condition, draws < 1, no examples, a seed that is none, an axis that the model lacks and
    shifts that would have one name.
    """
    if unknown := [name for name in conditions if name not in CONDITIONS]:
        raise ValueError(f"condition {unknown[0]!r} is unknown; {', '.join(map(repr, CONDITIONS))}")
    if draws < 1:
        raise ValueError(f"draws is {draws}; it must be at least 1")
    if not examples:
        raise ValueError("no examples were given")
    check_seed(seed)
    moves_of_ids = [shift if isinstance(shift, tuple) else (shift, ALL) for shift in shifts]
    shifted_ids = {f"ids shifted by {d:+g}" + (f", {axis}" if axis != ALL else ""): shifted(d, axis) for d, axis in moves_of_ids}
    if len(shifted_ids) < len(shifts):
        raise ValueError(f"shifts={tuple(shifts)}: two of them have one name; they must differ in six digits")
    pictures = {example.cluster or example.id: example for example in examples}
    lengths = [len(tokens) for tokens in vlm.vision_features(list(pictures.values()), batch_size)]

    def asked(condition: str, draw: int, moved: AbstractContextManager[None]) -> pd.DataFrame:
        with moved:
            found = answer(vlm, examples, by, max_new_tokens=max_new_tokens, batch_size=batch_size)
        return found.assign(condition=condition, draw=draw)

    frames = [asked(IN_PLACE, -1, nullcontext())]
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        permutations = {picture: rng.permutation(n) for picture, n in zip(pictures, lengths, strict=True)}
        moves = {
            SHUFFLED: {"permute": permutations},
            TOGETHER: {"permute": permutations, "positions": carried(permutations)},
            IDS: {"positions": carried(permutations)},
            NEITHER: {"permute": permutations, "positions": constant()},
        }
        frames += [asked(name, draw, intervene(vlm, **moves[name])) for name in conditions if name in DRAWN]
    if ONE in conditions:
        frames.append(asked(ONE, -1, intervene(vlm, positions=constant())))
    frames += [asked(name, -1, intervene(vlm, positions=move)) for name, move in shifted_ids.items()]
    frame = pd.concat(frames, ignore_index=True)
    kinds = {example.id: example.meta.get("kind") or example.group.split(".")[0] for example in examples}
    frame.insert(3, "kind", frame["id"].map(kinds))
    frame["cluster"] = frame["id"].map({example.id: example.cluster or example.id for example in examples})
    return frame.drop(columns="text")


def drop(frame: pd.DataFrame, condition: str, seed: int = 0) -> Interval:
    """Accuracy in place minus accuracy under a condition, paired by question, pictures resampled.

    Raises ValueError naming the conditions that are in the table.
    """
    there = list(dict.fromkeys(frame["condition"]))
    if condition not in there or condition == IN_PLACE:
        raise ValueError(f"condition {condition!r} is not in the table; there: {', '.join(there)}")
    pair = frame[frame["condition"].isin((IN_PLACE, condition))]
    return psi.drop(pair.assign(condition=pair["condition"].map({IN_PLACE: psi.ORIGINAL, condition: psi.PERMUTED})), seed)
