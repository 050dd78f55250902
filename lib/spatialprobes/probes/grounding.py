"""Which part of the picture does a word look at? Attention from a word's tokens to the vision tokens, on the picture's grid.

Rows are read beside SDPA (``capture.py``). Knows nothing of boxes, metrics or figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.vlm import VLM


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    words: Mapping[str, Sequence[str]],
    *,
    layers: Sequence[int] | str = "all",
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Attention of words over the picture, one row per example, word, layer and cell.

    Columns: example, word, layer, row, col, weight, seen.
    words: {example id: the words of its question}. layers: blocks of the language model, counted from 0.
    weight: the attention of the word's tokens (mean over tokens and heads) on the cell's vision token, divided by that on all
    vision tokens, so that the weights of a panel sum to 1; seen: that total, the share of the word's attention that goes to the
    picture. Nothing is drawn: ``seed`` is there because every probe takes one.
    Raises KeyError for a word that is not in the question (naming those that are) and ValueError for vision tokens without a
    grid.
    """
    asked = [(example, word) for example in examples for word in words.get(example.id, ())]
    if not asked:
        raise ValueError("no words were given for any of the examples")
    frames = []
    for start in range(0, len(asked), batch_size):
        chunk = asked[start : start + batch_size]
        batch = vlm.encode([example for example, _ in chunk])
        tokens = [spans.word(word).tolist() for spans, (_, word) in zip(batch.spans, chunk, strict=True)]
        longest = max(map(len, tokens))  # shorter words repeat their last token; the repeats are cut off again below
        at = [own + own[-1:] * (longest - len(own)) for own in tokens]
        with capture(vlm, attention_rows=layers, at=at) as got:
            vlm.forward(batch)
        for i, (example, word) in enumerate(chunk):
            spans = batch.spans[i]
            if spans.grid is None:
                raise ValueError(f"the {len(spans.vision)} vision tokens of {example.id!r} have no grid to draw a map on")
            row, col = np.divmod(np.arange(len(spans.vision)), spans.grid[1])
            for layer, rows in got.rows.items():
                on_picture = rows[i, :, : len(tokens[i])][..., spans.vision].double().mean((0, 1)).numpy()
                seen = on_picture.sum()
                cells = {
                    "example": example.id,
                    "word": word,
                    "layer": layer,
                    "row": row,
                    "col": col,
                    "weight": on_picture / seen,
                    "seen": seen,
                }
                frames.append(pd.DataFrame(cells))
    return pd.concat(frames, ignore_index=True)
