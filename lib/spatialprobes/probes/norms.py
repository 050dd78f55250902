"""How long are the vectors that enter the language model? Vision tokens against text (Beyond Semantics, section 4, figure 3).

Knows what enters the language model; knows nothing of figures.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from spatialprobes.examples import Example, batches
from spatialprobes.sources.arrays import read_npz, write_npz
from spatialprobes.stats import Interval, ratio
from spatialprobes.vlm import VLM, Batch

if TYPE_CHECKING:
    from jaxtyping import Int

TRAINED, INITIAL = "trained", "initial"
VISION, TEXT = "vision", "text"
KEYS = {TEXT: "txt", VISION: "img"}  # what the study calls them in vectors.npz
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

Definition = Literal["corrected", "as_published"]
Texts = Literal["question", "captions"]


@torch.inference_mode()
def measure(
    vlm: VLM,
    examples: Sequence[Example],
    *,
    texts: Texts = "question",
    definition: Definition = "corrected",
    when: str = TRAINED,
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """L2 norms at the language model's input, one row per token: [example, cluster, modality, when, norm].

    modality: "vision" (each token of the picture, after connector) or "text" (the embedding of each token of the words).
    texts: "question", or "captions", all those of ``Example.meta["captions"]`` (the study's text is COCO's five a picture).
    definition: "corrected" leaves special tokens out (and system prompt and roles, which are no words about the picture);
    "as_published" counts every token of each text alone as the tokenizer gives it, beginning of sequence first.
    cluster: the picture (the id where an example names none). when: a label for the state of the weights, or for the model.
    Nothing is drawn: ``seed`` is there because every probe takes one. Raises ValueError without examples, for an unknown choice,
    batch_size below 1 and for an example without captions where they are asked for.
    """
    if not examples:
        raise ValueError("no examples were given")
    for name, value, legal in (
        ("texts", texts, ("question", "captions")),
        ("definition", definition, ("corrected", "as_published")),
    ):
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; {' or '.join(map(repr, legal))}")
    in_context = texts == "question" and definition == "corrected"
    table = vlm.text_embeddings().float().norm(dim=-1)
    rows = []
    for chunk in batches(examples, batch_size):
        batch = vlm.encode(chunk) if in_context else None
        for i, (example, features) in enumerate(zip(chunk, vlm.vision_features(chunk), strict=True)):
            ids = _of_the_question(batch, i) if batch else _alone(vlm, example, texts, definition)
            for modality, norms in ((VISION, features.float().norm(dim=-1)), (TEXT, table[ids.to(table.device)])):
                labels = {"example": example.id, "cluster": example.cluster or example.id, "modality": modality, "when": when}
                rows.append(pd.DataFrame({**labels, "norm": norms.cpu().numpy()}))
    frame = pd.concat(rows, ignore_index=True)
    frame["norm"] = frame["norm"].astype(np.float64)
    return frame


def _of_the_question(batch: Batch, i: int) -> Int[torch.Tensor, " token"]:
    return batch.input_ids[i, batch.spans[i].user]


def _alone(vlm: VLM, example: Example, texts: Texts, definition: Definition) -> Int[torch.Tensor, " token"]:
    """Tokens of the example's texts, each tokenised by itself."""
    words = example.meta.get("captions") if texts == "captions" else [example.question]
    if not words or not all(words):
        raise ValueError(f"example {example.id!r} has no {texts}")
    special, bos = definition == "as_published", vlm.tokenizer.bos_token_id
    ids: list[int] = []
    for text in words:
        found = vlm.tokenizer(text, add_special_tokens=special)["input_ids"]
        ids += [bos, *found] if special and bos is not None and found[:1] != [bos] else found
    return torch.tensor(ids, dtype=torch.long)


class Untrained(VLM):
    """A model whose weights nobody trained; its facts say so, and name no checkpoint but the one whose shape it has."""

    seed: int
    shape_of: str

    @cached_property
    def _digests(self) -> dict[str, Any]:
        return {"initial_seed": self.seed, "shape_of": self.shape_of}

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"model": self.name, "source": "initial weights"}


def untrained(vlm: VLM, seed: int = 0) -> VLM:
    """The same architecture with transformers' random initial weights drawn from ``seed``; processor and device as they are.

    Needs the memory of a second model, never quantised.
    """
    devices = [vlm.device] if vlm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = type(vlm.model)(copy.deepcopy(vlm.model.config))
    model.to(device=vlm.device, dtype=vlm.dtype).eval().requires_grad_(False)
    shape = vlm.source.path.name if vlm.source.kind == "folder" else vlm.name
    source = dataclasses.replace(vlm.source, name=f"{shape}, untrained (seed {seed})")
    twin = Untrained(model, vlm.processor, vlm.family, source, vlm.image_fit, None)
    twin.seed, twin.shape_of = seed, shape
    return twin


def quantiles(frame: pd.DataFrame) -> pd.DataFrame:
    """Where the norms lie, a row a state and modality: [when, modality, mean, q05, q25, q50, q75, q95, max, n]; n counts tokens.

    Raises ValueError for an empty table.
    """
    if frame.empty:
        raise ValueError("the table has no rows")
    rows = []
    for (when, modality), part in frame.groupby(["when", "modality"], sort=False):
        norms = part["norm"].to_numpy(float)
        at = {f"q{round(100 * level):02d}": value for level, value in zip(QUANTILES, np.quantile(norms, QUANTILES), strict=True)}
        rows.append({"when": when, "modality": modality, "mean": norms.mean(), **at, "max": norms.max(), "n": len(norms)})
    return pd.DataFrame(rows)


def vision_to_text(frame: pd.DataFrame, seed: int = 0, statistic: Literal["mean", "median"] = "mean") -> Interval:
    """Mean vision norm over mean text norm (ratio of means), pictures and their texts resampled together.

    statistic: "median" for the ratio of medians, which a long tail does not move. Raises ValueError for a table of more than one
    state of the weights (`when`), whose mean is that of no model, for one without clusters, and for another statistic.
    """
    if len(states := frame["when"].unique()) > 1:
        raise ValueError(f"norms of {len(states)} states of the weights ({', '.join(map(str, states))}): give the rows of one")
    if "cluster" not in frame:
        raise ValueError("the table does not say which tokens are of one picture (column 'cluster'): no interval can be given")
    vision, text = frame[frame["modality"] == VISION], frame[frame["modality"] == TEXT]
    norms, clusters = (
        (vision["norm"].to_numpy(), text["norm"].to_numpy()),
        (vision["cluster"].to_numpy(), text["cluster"].to_numpy()),
    )
    return ratio(*norms, *clusters, seed=seed, statistic=statistic)


def ratios(frame: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Vision over text for each state: [when, statistic, ratio, low, high, n, clusters], statistic "mean" and "median"."""
    rows = []
    for when, part in frame.groupby("when", sort=False):
        for statistic in ("mean", "median"):
            found = vision_to_text(part, seed, statistic)
            labels = {"when": when, "statistic": statistic}
            rows.append(
                {
                    **labels,
                    "ratio": found.estimate,
                    "low": found.low,
                    "high": found.high,
                    "n": found.n,
                    "clusters": found.clusters,
                }
            )
    return pd.DataFrame(rows)


def write_vectors(frame: pd.DataFrame, path: str | Path) -> Path:
    """The norms as the study's --save_vectors has them: an .npz of two columns, "txt" and "img"; which picture is lost.

    Raises ValueError for norms of several states, or of one modality alone.
    """
    if len(states := frame["when"].unique()) != 1:
        raise ValueError(f"norms of {len(states)} states of the weights: a file has one")
    arrays = {key: frame.loc[frame["modality"] == modality, "norm"].to_numpy() for modality, key in KEYS.items()}
    if empty := [modality for modality, key in KEYS.items() if not len(arrays[key])]:
        raise ValueError(f"the table has no {empty[0]} norms")
    return write_npz(path, arrays)


def read_vectors(path: str | Path, when: str | None = None) -> pd.DataFrame:
    """The norms of such a file: [modality, when, norm], when the file's name without suffix unless given.

    There are no clusters, so no ratio with an interval.

    Raises FileNotFoundError; ValueError naming the file for a column that is missing, not one-dimensional, empty, or holds what
    is no length.
    """
    path = Path(path)
    arrays, parts = read_npz(path), []
    for modality, key in KEYS.items():
        if key not in arrays:
            raise ValueError(f"{path}: no array {key!r}; there: {', '.join(arrays) or 'none'}")
        norms = arrays[key]
        if norms.ndim != 1 or norms.dtype.kind not in "fiu" or not norms.size:
            raise ValueError(f"{path}: {key} must be one column of numbers, not {norms.dtype} of shape {norms.shape}")
        norms = norms.astype(np.float64)
        if not (np.isfinite(norms) & (norms >= 0)).all():
            raise ValueError(f"{path}: {key} holds norms that are negative, NaN or infinite")
        parts.append(pd.DataFrame({"modality": modality, "when": path.stem if when is None else when, "norm": norms}))
    return pd.concat(parts, ignore_index=True)
