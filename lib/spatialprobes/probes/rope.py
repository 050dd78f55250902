"""How much does attention depend on where the vision tokens stand? The RoPE probe (Beyond Semantics, sections 4 and 5).

`measure` scores captured queries and keys anew with the vision keys turned by Delta positions, layer by layer, the rest of the
network as it was; `rerun` moves the tokens and runs the model. Knows captures and interventions; knows nothing of figures.

With phi the phase of the vision keys in positions, alpha_v the share of a row's attention that goes to them, and g_v the mean of
their d score / d phi, weighted by the attention among them, d alpha_v / d phi = alpha_v (1 - alpha_v) (g_v - g_t) exactly. Only
vision keys turn, so g_t, the same mean over all other keys that the row sees (bos and system prompt among them), is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from spatialprobes.answers import score
from spatialprobes.capture import At, Layers, capture
from spatialprobes.examples import Example, batches
from spatialprobes.families import ALL, Rotary
from spatialprobes.intervene import intervene, shifted
from spatialprobes.spans import PARTS
from spatialprobes.stats import Interval, bootstrap, ratio
from spatialprobes.vlm import VLM, Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

STEP = 1e-5  # positions, of the central difference in float64: its error is about 1e-10 of the third derivative
PUBLISHED_EPSILON = 1e-12
KEYS = ["example", "cluster", "layer", "head", "delta"]


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    deltas: Sequence[float] = (1.0,),
    axis: str = ALL,
    layers: Layers = "all",
    at: At = "last",
    definition: Literal["corrected", "as_published"] = "corrected",
    batch_size: int = 16,
    system: str | None = "default",
    seed: int = 0,
) -> pd.DataFrame:
    """Sensitivity of each head's attention to the phase of the vision keys, one row per example, layer, head and Delta.

    Columns: example, cluster (the id where an example names none), layer (block, from 0), head, delta (positions), alpha_v (share
    of the row's attention on all vision tokens, of all keys that it may see), g_v and g_t (score per position: exact derivatives
    at 0), delta_g_v (the mean over vision keys, weighted by attention, of the change of their scores, divided by delta),
    delta_alpha_v (the change of alpha_v), derivative (of alpha_v, from g_v and g_t), finite_difference (the same by a central
    difference of 1e-5 positions). In float64 from queries and keys in the model's dtype. axis: "all", or one of M-RoPE's
    "temporal", "height", "width". at: the query's tokens, as in `capture`; columns are means over them where they are several.
    g_v and delta_g_v are means over those that see a vision key, NaN where none does (all of them stand before the picture).
    definition: "as_published" takes for the query an end-of-sequence token appended to the prompt, leaves its own key out, and
    divides by max(delta, 1e-12), so that negative deltas give numbers beyond measure.
    Each layer is done with as it runs: of a batch no more than the keys of one layer are held, and no map of attention. Nothing
    is drawn: `seed` is there because every probe takes one.
    Raises ValueError without examples, for a delta of 0 or not finite, an axis or layer that the model lacks, a part (`at`) that
    a prompt lacks, or an unknown definition.
    """
    _check(examples, deltas)
    if definition not in ("corrected", "as_published"):
        raise ValueError(f"definition={definition!r} is unknown; 'corrected' or 'as_published'")
    published = definition == "as_published"
    if published and (not isinstance(at, str) or at != "last"):
        raise ValueError("definition='as_published' reads an appended end of sequence: at must be 'last'")
    rotary = vlm.family.rotary(vlm.model)
    rotary.speeds(axis)  # an axis that is not there is refused before the model runs
    divisors = [max(delta, PUBLISHED_EPSILON) if published else delta for delta in deltas]
    frames = []
    for chunk in batches(examples, batch_size):
        batch = vlm.encode(chunk, system)
        _check_part(batch, at)
        batch = _with_end(vlm, batch) if published else batch
        found = [[] for _ in batch.examples]

        def visit(layer: int, queries: Tensor, keys: Tensor, masks: Tensor, scaling: float, batch=batch, found=found) -> None:
            queries, keys, masks = queries.cpu(), keys.cpu(), masks.cpu()
            if published:
                masks[..., -1] = torch.finfo(masks.dtype).min  # the key of the query itself
            for row, (example, spans) in enumerate(zip(batch.examples, batch.spans, strict=True)):
                there = ~masks[row, :, 0].isnan()
                scored = queries[row][:, there], keys[row], masks[row][there], scaling
                vision = torch.isin(torch.arange(keys.shape[2]), spans.vision)
                found[row].append(_frame(example, layer, deltas, sensitivity(*scored, vision, rotary, deltas, axis, divisors)))

        with capture(vlm, queries_keys=layers, at=at, visit=visit):
            vlm.forward(batch, logits_to_keep=1)
        frames += [frame for each in found for frame in each]
    return pd.concat(frames, ignore_index=True)


def sensitivity(
    query: Float[Tensor, "head row size"],
    key: Float[Tensor, "kv_head key size"],
    mask: Float[Tensor, "row key"],
    scaling: float,
    vision: Bool[Tensor, " key"],
    rotary: Rotary,
    deltas: Sequence[float],
    axis: str = ALL,
    divisors: Sequence[float] | None = None,
) -> dict[str, Float[np.ndarray, "delta head"]]:
    """What `measure` says of one layer of one prompt, from its queries, keys and mask as `capture` gives them; means over rows.

    g_v and delta_g_v: over rows that see a vision key. divisors: what each change of the scores is divided by, deltas where None.
    """
    query, key = query.double(), key.double()

    def scores(asked: Float[Tensor, "head row size"]) -> Float[Tensor, "head row key"]:
        grouped = asked.reshape(len(key), -1, asked.shape[-1])  # heads that share a key stand together
        return (grouped @ key.transpose(-1, -2)).reshape(*asked.shape[:-1], -1) * scaling

    def turned(delta: float) -> Float[Tensor, "head row key"]:
        """With the vision keys turned by delta: as much as the query turned back, which is one vector instead of hundreds."""
        return torch.where(vision, scores(rotary.rotate(query, -delta, axis)) + mask, plain)

    plain = scores(query) + mask
    rates = -scores(rotary.derivative(query, axis)) * vision
    alpha_v, alpha_t = _share(plain, vision), _share(plain, ~vision)
    within_v, within_t = plain[..., vision].softmax(-1), plain[..., ~vision].softmax(-1)
    sees = (mask[..., vision] == 0).any(-1)  # [row]; else there is nothing to take a mean of
    g_v = (within_v * rates[..., vision]).sum(-1).masked_fill(~sees, torch.nan)
    g_t = (within_t * rates[..., ~vision]).sum(-1)
    found = {
        "alpha_v": alpha_v,
        "g_v": g_v,
        "g_t": g_t,
        "delta_g_v": [],
        "delta_alpha_v": [],
        "derivative": (alpha_v * alpha_t * (g_v - g_t)).masked_fill(~sees, 0),
        "finite_difference": (_share(turned(STEP), vision) - _share(turned(-STEP), vision)) / (2 * STEP),
    }
    for delta, divisor in zip(deltas, divisors or deltas, strict=True):
        moved = turned(delta)
        change = (within_v * (moved - plain)[..., vision]).sum(-1) / divisor
        found["delta_g_v"].append(change.masked_fill(~sees, torch.nan))
        found["delta_alpha_v"].append(_share(moved, vision) - alpha_v)
    stacked = {name: torch.stack(each) if isinstance(each, list) else each[None] for name, each in found.items()}
    return {name: each.nanmean(-1).expand(len(deltas), -1).numpy() for name, each in stacked.items()}


def rerun(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    deltas: Sequence[float] = (1.0,),
    axis: str = ALL,
    layers: Layers = "all",
    batch_size: int = 16,
    system: str | None = "default",
    seed: int = 0,
) -> pd.DataFrame:
    """What happens when the vision tokens really stand delta positions later: the model is run, and changes add up over layers.

    Columns: example, cluster, layer, head, delta, alpha_v (of the last token of the prompt, unmoved), delta_alpha_v_rerun (its
    change), and, the same on all rows of an example and delta, logprob (of the expected answer, natural logarithm, unmoved; NaN
    where an example has none), delta_logprob (its change), changed (whether the most likely next token became another one). In
    the first layer with attention nothing but the turned keys has changed: it agrees with `measure` there. Nothing is drawn:
    `seed` is there because every probe takes one. Raises as `measure`.
    """
    _check(examples, deltas)
    options = layers, batch_size, system
    plain, logprobs, words = _run(vlm, examples, *options)
    frames = []
    for delta in deltas:
        with intervene(vlm, positions=shifted(delta, axis)):
            moved, moved_logprobs, moved_words = _run(vlm, examples, *options)
        frame = plain.assign(delta=float(delta), delta_alpha_v_rerun=moved["alpha_v"] - plain["alpha_v"])
        frame["logprob"] = frame["example"].map(logprobs)
        frame["delta_logprob"] = frame["example"].map(moved_logprobs) - frame["logprob"]
        frame["changed"] = frame["example"].map({name: moved_words[name] != word for name, word in words.items()})
        frames.append(frame)
    columns = [*KEYS, "alpha_v", "delta_alpha_v_rerun", "logprob", "delta_logprob", "changed"]
    return pd.concat(frames, ignore_index=True)[columns]


def compare(offline: pd.DataFrame, real: pd.DataFrame) -> pd.DataFrame:
    """The tables of `measure` and `rerun` in one: the columns of `measure` and delta_alpha_v_rerun, where both have a row.

    Raises ValueError where they have none in common.
    """
    both = offline.merge(real[[*KEYS, "delta_alpha_v_rerun"]], on=KEYS, validate="one_to_one")
    if both.empty:
        raise ValueError("the tables share no example, layer, head and delta: were they made with the same ones?")
    return both


def _check(examples: Sequence[Example], deltas: Sequence[float]) -> None:
    if not examples:
        raise ValueError("no examples were given")
    if len({example.id for example in examples}) < len(examples):
        raise ValueError("two examples have the same id; ids must be unique")
    if np.ndim(deltas) != 1:
        raise ValueError(f"deltas={deltas!r} is no sequence of numbers of positions, such as (1.0,)")
    if not len(deltas) or len(set(deltas)) < len(deltas):
        raise ValueError(f"deltas={tuple(deltas)} must be different numbers of positions, at least one")
    if wrong := [delta for delta in deltas if not isfinite(delta) or delta == 0]:
        raise ValueError(f"delta={wrong[0]!r}: a change of position is finite and not 0, and may be negative")


def _check_part(batch: Batch, at: At) -> None:
    if isinstance(at, str) and at in PARTS:
        for spans in batch.spans:
            if not len(spans.parts()[at]):
                raise ValueError(f"at={at!r}: the prompt of example {spans.example!r} has no such tokens")


def _with_end(vlm: VLM, batch: Batch) -> Batch:
    """The same prompts with an end-of-sequence token after each."""
    added = {"input_ids": vlm.tokenizer.eos_token_id, "attention_mask": 1, "mm_token_type_ids": 0}
    inputs = dict(batch.inputs)
    for name, value in added.items():
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, 1), value=value)
    positions = inputs["position_ids"]
    inputs["position_ids"] = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
    return replace(batch, inputs=inputs)


def _share(scores: Float[Tensor, "... key"], group: Bool[Tensor, " key"]) -> Tensor:
    return (scores[..., group].logsumexp(-1) - scores.logsumexp(-1)).exp()


def _frame(example: Example, layer: int, deltas: Sequence[float], found: dict[str, np.ndarray]) -> pd.DataFrame:
    heads = found["alpha_v"].shape[1]
    labels = {
        "example": example.id,
        "cluster": example.cluster or example.id,
        "layer": layer,
        "head": np.tile(np.arange(heads), len(deltas)),
        "delta": np.repeat(np.asarray(deltas, dtype=float), heads),
    }
    return pd.DataFrame(labels | {name: each.ravel() for name, each in found.items()})


def _run(
    vlm: VLM, examples: Sequence[Example], layers: Layers, batch_size: int, system: str | None
) -> tuple[pd.DataFrame, dict[str, float], dict[str, int]]:
    """alpha_v by example, layer and head; the expected answers' log-probabilities; the most likely next tokens."""
    frames, words = [], {}
    for chunk in batches(examples, batch_size):
        batch = vlm.encode(chunk, system)
        with capture(vlm, attention_rows=layers) as got:
            logits = vlm.forward(batch, logits_to_keep=1).logits[:, -1]
        words |= dict(zip(batch.ids, logits.argmax(-1).tolist(), strict=True))
        for row, (example, spans) in enumerate(zip(batch.examples, batch.spans, strict=True)):
            for layer, rows in got.rows.items():
                alpha = rows[row, :, 0, spans.vision].double().sum(-1).numpy()
                labels = {"example": example.id, "cluster": example.cluster or example.id, "layer": layer}
                frames.append(pd.DataFrame({**labels, "head": np.arange(len(alpha)), "alpha_v": alpha}))
    expected = [replace(example, choices=[example.answer]) for example in examples if example.answer]
    scored = (
        score(vlm, expected, batch_size, prefix_cache=False, system=system)
        if expected
        else pd.DataFrame(columns=["id", "logprob"])
    )
    return pd.concat(frames, ignore_index=True), dict(zip(scored["id"], scored["logprob"], strict=True)), words


# From tables to numbers with intervals


def by_layer(frame: pd.DataFrame, values: Sequence[str] = ("abs_delta_g_v", "delta_alpha_v"), seed: int = 0) -> pd.DataFrame:
    """Means over heads and examples for each layer and delta, with cluster-bootstrap intervals.

    values: columns of the table, or "abs_" and one, whose magnitudes are taken per example and head before any mean (as the study
    does). Columns: value, layer, delta, mean, low, high, n (examples).
    """
    return _means(frame, values, ["layer", "delta"], seed)


def by_head(frame: pd.DataFrame, values: Sequence[str] = ("abs_delta_g_v",), seed: int = 0) -> pd.DataFrame:
    """As `by_layer`, for each head: value, layer, head, delta, mean, low, high, n."""
    return _means(frame, values, ["layer", "head", "delta"], seed)


def by_delta(frame: pd.DataFrame, values: Sequence[str] = ("delta_alpha_v",), seed: int = 0) -> pd.DataFrame:
    """As `by_layer`, over all layers and heads: value, delta, mean, low, high, n."""
    return _means(frame, values, ["delta"], seed)


def effects(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """What `rerun` did to the answers: value ("delta_logprob" or "changed"), delta, mean, low, high, n.

    Examples without an expected answer are left out of delta_logprob.
    """
    once = frame.drop_duplicates(["example", "delta"])
    found = [_means(once.dropna(subset="delta_logprob"), ["delta_logprob"], ["delta"], seed)]
    return pd.concat([*found, _means(once.astype({"changed": float}), ["changed"], ["delta"], seed, (0, 1))], ignore_index=True)


def early_over_late(frame: pd.DataFrame, value: str = "abs_delta_g_v", seed: int = 0) -> Interval:
    """Mean over the first third of the layers over that of the last third (ratio of means), pictures resampled.

    The interval says how sure the ratio is of this model; random weights give ratios well on either side of 1.
    value: as in `by_layer`. A third is at least one layer. Raises ValueError for fewer than two layers, more than one delta, and
    where the late mean is 0.
    """
    layers = sorted(frame["layer"].unique())
    if len(layers) < 2:
        raise ValueError(f"early and late need two layers with attention; the table has {len(layers)}")
    if (count := frame["delta"].nunique()) > 1:
        raise ValueError(f"the table holds {count} deltas: give the rows of one")
    third = max(1, len(layers) // 3)
    parts = [_values(frame[frame["layer"].isin(chosen)], value) for chosen in (layers[:third], layers[-third:])]
    early, late = (part.groupby(["example", "cluster"], as_index=False, sort=False)["value"].mean() for part in parts)
    return ratio(early["value"], late["value"], early["cluster"], late["cluster"], seed=seed)._replace(n=len(early))


def derivative_error(frame: pd.DataFrame, seed: int = 0) -> Interval:
    """Mean over examples of the greatest |derivative - finite_difference|, over the table's greatest |finite_difference|.

    Raises ValueError where nothing depends on the phase.
    """
    scale = frame["finite_difference"].abs().max()
    if not scale > 0:
        raise ValueError("every finite difference is 0: no head's attention on the picture depends on its phase")
    error = (frame["derivative"] - frame["finite_difference"]).abs() / scale
    worst = error.groupby([frame["example"], frame["cluster"]], sort=False).max()
    return bootstrap(worst.to_numpy(), worst.index.get_level_values("cluster").to_numpy(), seed=seed)


def _values(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """The table with a column `value`: one of its columns, or the magnitudes of one."""
    column = value.removeprefix("abs_")
    if column not in frame.columns:
        raise ValueError(f"no column {column!r} in the table; there: {', '.join(map(str, frame.columns))}")
    return frame.assign(value=frame[column].abs() if value.startswith("abs_") else frame[column])


def _means(
    frame: pd.DataFrame, values: Sequence[str], by: list[str], seed: int, bounds: tuple[float, float] | None = None
) -> pd.DataFrame:
    rows = []
    for value in values:
        each = _values(frame, value).groupby([*by, "example", "cluster"], as_index=False, sort=True)["value"].mean()
        for place, part in each.groupby(by, sort=True):
            found = bootstrap(part["value"].to_numpy(), part["cluster"].to_numpy(), seed=seed, bounds=bounds)
            interval = {"mean": found.estimate, "low": found.low, "high": found.high, "n": found.n}
            rows.append({"value": value, **dict(zip(by, place, strict=True)), **interval})
    return pd.DataFrame(rows, columns=["value", *by, "mean", "low", "high", "n"])
