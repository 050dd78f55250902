"""How long are the hidden states of picture and words, layer by layer? (Beyond Semantics, figure 4.)

Norms are taken where the hidden states are made, so nothing of their width is kept. Knows parts of a prompt and layers; knows
nothing of figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from spatialprobes import stats
from spatialprobes.capture import Layers, capture
from spatialprobes.examples import Example, batches
from spatialprobes.stats import Interval
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float

GROUPS = ("system", "user", "vision", "role")
TEXT = ("user", "role")  # the study's user text: everything around picture and system prompt, turn markers included
STREAM, NORMED = "stream", "final norm"


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    kind: Literal["l2", "rms"] = "l2",
    layers: Layers = "all",
    system: str | None = "default",
    batch_size: int = 16,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean norm of the hidden states of each part of the prompt: [example, cluster, layer, site, group, norm, tokens].

    layer: 0 is what enters the first block, i the output of the i-th, the last, L, before the final norm. site: "stream", and
    "final norm" for the rows after it (layer L again): the study's last layer, which is another thing. layers: as in `capture`;
    "all" is both. group: one of `GROUPS`; bos, whose norm is of another order, belongs to none. norm: mean over the tokens of the
    group, NaN where the prompt has none; tokens: their number. kind: "l2", or "rms", root of the mean square.
    Nothing is drawn: ``seed`` is there because every probe takes one. Raises ValueError without examples, for an unknown kind, a
    layer that is not there or batch_size below 1.
    """
    if not examples:
        raise ValueError("no examples were given")
    length_of = _length_of(kind)
    wanted = [*range(vlm.n_layers + 1), "norm"] if isinstance(layers, str) and layers == "all" else layers
    rows = []
    for chunk in batches(examples, batch_size):
        batch = vlm.encode(chunk, system)
        everywhere = torch.arange(batch.input_ids.shape[1])
        with capture(vlm, hidden=wanted, at=everywhere, reduce=length_of) as got:
            vlm.forward(batch, logits_to_keep=1)
        for i, (example, spans) in enumerate(zip(chunk, batch.spans, strict=True)):
            labels = {"example": example.id, "cluster": example.cluster or example.id}
            for layer, norms in got.hidden.items():
                place = {"layer": vlm.n_layers, "site": NORMED} if layer == "norm" else {"layer": layer, "site": STREAM}
                for group in GROUPS:
                    index = spans.parts()[group]
                    mean = float(norms[i, index, 0].double().mean()) if len(index) else np.nan
                    rows.append({**labels, **place, "group": group, "norm": mean, "tokens": len(index)})
    return pd.DataFrame(rows)


def _length_of(kind: str) -> Callable[[torch.Tensor], Float[torch.Tensor, "example row 1"]]:
    if kind not in ("l2", "rms"):
        raise ValueError(f"kind={kind!r} is unknown; 'l2' or 'rms'")
    return partial(_norms, root=kind == "rms")


def _norms(hidden: Float[torch.Tensor, "example row width"], root: bool) -> Float[torch.Tensor, "example row 1"]:
    norms = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True, dtype=torch.float32)
    return norms / hidden.shape[-1] ** 0.5 if root else norms


def summary(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Means over the examples of a table of `measure`: [layer, site, group, norm, low, high, n, clusters].

    Pictures are resampled. Groups without tokens are left out. Raises ValueError for rows of several models in one table.
    """
    _check_once(frame)
    rows = []
    there = frame.dropna(subset="norm")
    for (layer, site, group), part in there.groupby(["layer", "site", "group"], sort=False):
        found = stats.bootstrap(part["norm"].to_numpy(), part["cluster"].to_numpy(), seed=seed)
        rows.append({"layer": layer, "site": site, "group": group, "norm": found.estimate, **_interval(found)})
    return pd.DataFrame(rows)


def ratio(
    frame: pd.DataFrame,
    how: Literal["mean_of_ratios", "ratio_of_means"] = "mean_of_ratios",
    *,
    text: Sequence[str] = TEXT,
    seed: int = 0,
) -> pd.DataFrame:
    """Norm of vision over norm of user text, layer by layer: [layer, site, how, ratio, low, high, n, clusters].

    how: "mean_of_ratios", the mean over examples of each one's ratio (what the study plots); "ratio_of_means", the mean over
    examples of vision over that of text (what its two curves say). text: the groups that are text, pooled token by token.
    Pictures are resampled. Raises ValueError for an unknown choice and where an example has no text or no vision tokens.
    """
    if how not in ("mean_of_ratios", "ratio_of_means"):
        raise ValueError(f"how={how!r} is unknown; 'mean_of_ratios' or 'ratio_of_means'")
    rows = []
    for (layer, site), part in _vision_and_text(frame, text).groupby(["layer", "site"], sort=False):
        vision, words, clusters = part["vision"].to_numpy(), part["text"].to_numpy(), part["cluster"].to_numpy()
        if how == "mean_of_ratios":
            found = stats.bootstrap(vision / words, clusters, seed=seed)
        else:
            found = stats.ratio(vision, words, clusters, clusters, seed=seed)._replace(n=len(part))
        rows.append({"layer": layer, "site": site, "how": how, "ratio": found.estimate, **_interval(found)})
    return pd.DataFrame(rows)


def decay(frame: pd.DataFrame, *, text: Sequence[str] = TEXT, seed: int = 0) -> Interval:
    """Mean ratio of vision to text at the last layer (before the final norm) over that at layer 0; below 1 where the gap closes.

    Both are of the same draw of pictures. Raises ValueError for a table that lacks layer 0, or has no other.
    """
    stream = _vision_and_text(frame[frame["site"] == STREAM], text)
    last = stream["layer"].max()
    if last == 0 or stream["layer"].min() != 0:
        raise ValueError(f"decay compares layer 0 with the last; the table has {sorted(set(stream['layer'].tolist()))}")
    first, final = (stream[stream["layer"] == layer] for layer in (0, last))
    ends = [(part["vision"] / part["text"]).to_numpy() for part in (final, first)]
    found = stats.ratio(*ends, final["cluster"].to_numpy(), first["cluster"].to_numpy(), seed=seed)
    return found._replace(n=len(first))


def _vision_and_text(frame: pd.DataFrame, text: Sequence[str]) -> pd.DataFrame:
    """[example, cluster, layer, site, vision, text]: mean norms of each example's vision tokens, and of its text tokens."""
    if isinstance(text, str) or not text or not set(text) <= set(GROUPS) - {"vision"}:
        legal = ", ".join(repr(group) for group in GROUPS if group != "vision")
        raise ValueError(f"text={text!r} is no set of groups of text; any of {legal}")
    _check_once(frame)
    by = ["example", "cluster", "layer", "site"]
    vision = frame[frame["group"] == "vision"].set_index(by)["norm"]
    words = frame[frame["group"].isin(text) & (frame["tokens"] > 0)]
    totals = words.assign(total=words["norm"] * words["tokens"]).groupby(by, sort=False)[["total", "tokens"]].sum()
    found = pd.DataFrame({"vision": vision, "text": (totals["total"] / totals["tokens"]).reindex(vision.index)}).reset_index()
    if len(missing := found[found[["vision", "text"]].isna().any(axis=1)]):
        raise ValueError(f"example {missing['example'].iloc[0]!r} has no tokens of vision, or none of {' and '.join(text)}")
    return found


def _check_once(frame: pd.DataFrame) -> None:
    by = ["example", "layer", "site", "group"]
    if (twice := frame.duplicated(by)).any():
        which = ", ".join(f"{name} {value!r}" for name, value in frame.loc[twice, by].iloc[0].to_dict().items())
        raise ValueError(f"{which} stands twice: give the rows of one model and one prompt")


def _interval(found: Interval) -> dict[str, float]:
    return {"low": found.low, "high": found.high, "n": found.n, "clusters": found.clusters}
