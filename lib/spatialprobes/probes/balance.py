"""What does a model look at while it answers: system prompt, picture or question? (Beyond Semantics: shares, and the
cross-modality balance of heads.)

Attention of every decode step's query, summed over the parts of the prompt; rows are read beside SDPA (`capture.py`).
Knows parts of a prompt; knows nothing of grids or figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from spatialprobes.capture import Step, capture
from spatialprobes.examples import Example, batches
from spatialprobes.spans import Spans
from spatialprobes.stats import bootstrap
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

GROUPS = ("bos", "system", "vision", "user", "role", "generated")
TEXT = ("user", "role")  # the study's user text: everything around picture and system prompt, turn markers included
FLOOR = 1e-8  # least attention on picture and text together; the study's


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    layers: Sequence[int] | str = "all",
    max_new_tokens: int = 8,
    system: str | None = "default",
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Attention on each part of the prompt while a greedy answer is made, one row per example, decode step, layer and head.

    Columns: example, cluster (the id where an example names none), step, layer (blocks from 0; those that have attention), head,
    and one for each of `GROUPS`: the share of the query's attention on those tokens; together they are 1. The query of step 0 is
    the prompt's last token, of step s the s-th generated one; step s decides on token s, and steps after the one that ends the
    answer are left out. bos: the prompt's first token, which takes the attention that goes nowhere; where a family has no bos
    token, the one that stands in its place (the study's column 0), and its own part goes without it. generated: tokens made so
    far, the query itself among them. A part that the prompt lacks (a template without system prompt) has exactly 0. system: as
    in `VLM.encode`.
    A batch holds its rows until they are summed: examples x steps x layers x heads x tokens x 4 bytes.
    Nothing is drawn: ``seed`` is there because every probe takes one. Raises ValueError without examples, for max_new_tokens or
    batch_size below 1 and for a layer without attention; PromptError for a system prompt that the template does not write.
    """
    if not examples:
        raise ValueError("no examples were given")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    tables = []
    for chunk in batches(examples, batch_size):
        batch = vlm.encode(chunk, system)
        with capture(vlm, attention_rows=layers) as got:
            tokens = vlm.generate(batch, max_new_tokens)
        for i, (example, spans) in enumerate(zip(chunk, batch.spans, strict=True)):
            tables.append(_table(example, spans, got.steps[: vlm.answer_length(tokens[i])], i))
    return pd.concat(tables, ignore_index=True)


def _table(example: Example, spans: Spans, steps: list[Step], i: int) -> pd.DataFrame:
    """The rows of one example, the i-th of its batch."""
    layers = list(steps[0].rows)
    found = np.stack([[_by_group(step.rows[layer][i, :, -1], spans) for layer in layers] for step in steps])
    step, layer, head = (each.ravel() for each in np.indices(found.shape[:3]))
    labels = {"example": example.id, "cluster": example.cluster or example.id}
    places = {"step": step, "layer": np.array(layers)[layer], "head": head}
    return pd.DataFrame({**labels, **places, **dict(zip(GROUPS, found.reshape(-1, len(GROUPS)).T, strict=True))})


def first_token(spans: Spans) -> Int[torch.Tensor, " 1"]:
    """Index of the prompt's first token: bos, or, in families without one, what stands in its place."""
    return torch.tensor([spans.start])


def _by_group(rows: Float[torch.Tensor, "head key"], spans: Spans) -> Float[np.ndarray, "head group"]:
    rows = rows.double()
    first = first_token(spans)
    parts = {name: index[~torch.isin(index, first)] for name, index in spans.parts().items()} | {"bos": first}
    found = [rows[:, parts[group]].sum(-1) for group in GROUPS[:-1]]
    return torch.stack([*found, rows[:, spans.length :].sum(-1)], -1).numpy()


def cmb(frame: pd.DataFrame, text: Sequence[str] = TEXT) -> pd.DataFrame:
    """Cross-modality balance (Beyond Semantics): [example, cluster, layer, head, cmb], from a table of `measure`.

    cmb: vision / max(vision + text, 1e-8), of raw attention, averaged over the decode steps: 1 looks at the picture alone, 0 at
    the text alone; bos, system prompt and generated tokens count as neither. text: the groups that are text. Raises ValueError
    for an unknown group and for rows of several models or prompts in one table.
    """
    _check_text(text)
    _check_once(frame, ["example", "step", "layer", "head"])
    read = frame[list(text)].sum(axis=1)
    share = frame["vision"] / np.maximum(frame["vision"] + read, FLOOR)
    by = ["example", "cluster", "layer", "head"]
    return frame[by].assign(cmb=share).groupby(by, sort=False, as_index=False)["cmb"].mean()


def cmb_summary(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """[layer, head, cmb, low, high, n, clusters]: means over the examples of a table of `cmb`, pictures resampled."""
    _check_once(frame, ["example", "layer", "head"])
    rows = []
    for (layer, head), part in frame.groupby(["layer", "head"], sort=True):
        found = bootstrap(part["cmb"].to_numpy(), part["cluster"].to_numpy(), seed=seed)
        rows.append({"layer": layer, "head": head, "cmb": found.estimate, **_interval(found)})
    return pd.DataFrame(rows)


def shares(
    frame: pd.DataFrame,
    *,
    definition: Literal["corrected", "as_published"] = "corrected",
    bos: Literal["drop", "keep"] = "drop",
    text: Sequence[str] = TEXT,
) -> pd.DataFrame:
    """System prompt, picture and user text, one row per example: [example, cluster, system, vision, user, vision_vs_user].

    Heads are averaged, then layers; that gives vision v, text t and system prompt y of each decode step (generated tokens count
    as none of them). bos: "drop" takes the attention on bos out of every layer and lets the rest sum to 1, so that a layer that
    rests on bos counts like any other (as the study does); "keep" averages layers as they are. vision_vs_user: the mean over
    steps of v / (v + t), as if there were no system prompt. system: the mean of y / (v + t + y).
    definition: "corrected" has vision and user as means of v / (v + t + y) and t / (v + t + y); "as_published" multiplies means,
    vision = vision_vs_user x (1 - system), which leaves out how the two go together over the steps. Both sum to 1.
    Raises ValueError for an unknown choice and for rows of several models or prompts in one table.
    """
    if definition not in ("corrected", "as_published"):
        raise ValueError(f"definition={definition!r} is unknown; 'corrected' or 'as_published'")
    if bos not in ("drop", "keep"):
        raise ValueError(f"bos={bos!r} is unknown; 'drop' or 'keep'")
    _check_text(text)
    _check_once(frame, ["example", "step", "layer", "head"])
    by = ["example", "cluster", "step"]
    heads = frame.groupby([*by, "layer"], sort=False)[list(GROUPS)].mean()
    if bos == "drop":
        heads = heads.div(heads.drop(columns="bos").sum(axis=1), axis=0)
    steps = heads.groupby(by, sort=False).mean()
    v, t, y = steps["vision"], steps[list(text)].sum(axis=1), steps["system"]
    both, all_ = np.maximum(v + t, FLOOR), np.maximum(v + t + y, FLOOR)
    each = pd.DataFrame({"system": y / all_, "vision": v / all_, "user": t / all_, "vision_vs_user": v / both})
    found = each.groupby(["example", "cluster"], sort=False).mean().reset_index()
    if definition == "as_published":
        rest = 1 - found["system"]
        found["vision"] = found["vision_vs_user"] * rest
        found["user"] = (1 - found["vision_vs_user"]) * rest
    return found


def shares_summary(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Means of a table of `shares` over pictures: [comparison, group, share, low, high, n, clusters].

    comparison: "system, vision and user", or "vision and user" alone. Pictures are resampled.
    """
    _check_once(frame, ["example"])
    clusters = frame["cluster"].to_numpy()
    columns = {("system, vision and user", group): frame[group] for group in ("system", "vision", "user")}
    columns["vision and user", "vision"] = frame["vision_vs_user"]
    columns["vision and user", "user"] = 1 - frame["vision_vs_user"]
    rows = []
    for (comparison, group), values in columns.items():
        found = bootstrap(values.to_numpy().clip(0, 1), clusters, seed=seed)
        rows.append({"comparison": comparison, "group": group, "share": found.estimate, **_interval(found)})
    return pd.DataFrame(rows)


def _interval(found) -> dict[str, float]:
    return {"low": found.low, "high": found.high, "n": found.n, "clusters": found.clusters}


def _check_once(frame: pd.DataFrame, by: list[str]) -> None:
    if (twice := frame.duplicated(by)).any():
        which = ", ".join(f"{name} {value!r}" for name, value in frame.loc[twice, by].iloc[0].to_dict().items())
        raise ValueError(f"{which} stands twice: give the rows of one model and one prompt")


def _check_text(text: Sequence[str]) -> None:
    if isinstance(text, str) or not text or not set(text) <= set(TEXT):
        raise ValueError(f"text={text!r} is no set of groups of text; any of {', '.join(map(repr, TEXT))}")
