"""How long are the vectors that enter the language model? Vision tokens against text (Beyond Semantics, section 4, figure 3).

Knows what enters the language model; knows nothing of figures.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from spatialprobes.examples import Example
from spatialprobes.stats import Interval, ratio
from spatialprobes.vlm import VLM

TRAINED, INITIAL = "trained", "initial"


@torch.inference_mode()
def measure(vlm: VLM, examples: Sequence[Example], *, when: str = TRAINED, batch_size: int = 64, seed: int = 0) -> pd.DataFrame:
    """L2 norms at the language model's input, one row per token: [example, cluster, modality, when, norm].

    modality: "vision" (each token of the picture, after connector) or "text" (the embedding of each token of the question;
    system prompt, roles and special tokens left out). cluster: the picture (the id where an example names none). when: a label
    for the state of the weights. Nothing is drawn: ``seed`` is there because every probe takes one. Raises ValueError without
    examples.
    """
    if not examples:
        raise ValueError("no examples were given")
    table = vlm.text_embeddings().float().norm(dim=-1)
    rows = []
    for start in range(0, len(examples), batch_size):
        chunk = list(examples[start : start + batch_size])
        batch = vlm.encode(chunk)
        for i, (example, spans, features) in enumerate(zip(chunk, batch.spans, vlm.vision_features(chunk), strict=True)):
            words = table[batch.input_ids[i, spans.user]]
            for modality, norms in (("vision", features.float().norm(dim=-1)), ("text", words)):
                labels = {"example": example.id, "cluster": example.cluster or example.id, "modality": modality, "when": when}
                rows.append(pd.DataFrame({**labels, "norm": norms.cpu().numpy()}))
    frame = pd.concat(rows, ignore_index=True)
    frame["norm"] = frame["norm"].astype(np.float64)
    return frame


def untrained(vlm: VLM, seed: int = 0) -> VLM:
    """The same architecture with transformers' random initial weights drawn from ``seed``; processor and device as they are.

    Needs the memory of a second model.
    """
    devices = [vlm.device] if vlm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = type(vlm.model)(copy.deepcopy(vlm.model.config))
    model.to(device=vlm.device, dtype=vlm.dtype).eval().requires_grad_(False)
    return VLM(model, vlm.processor, vlm.family, vlm.source, vlm.image_fit, vlm.quantize)


def vision_to_text(frame: pd.DataFrame, seed: int = 0) -> Interval:
    """Mean vision norm over mean text norm (ratio of means), pictures and their questions resampled together.

    Raises ValueError for a table of more than one state of the weights (`when`), whose mean is that of no model.
    """
    if len(states := frame["when"].unique()) > 1:
        raise ValueError(f"norms of {len(states)} states of the weights ({', '.join(map(str, states))}): give the rows of one")
    vision, text = frame[frame["modality"] == "vision"], frame[frame["modality"] == "text"]
    return ratio(
        vision["norm"].to_numpy(), text["norm"].to_numpy(), vision["cluster"].to_numpy(), text["cluster"].to_numpy(), seed=seed
    )
