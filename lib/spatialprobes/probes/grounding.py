"""Which part of the picture does a word look at? Attention from a word's tokens to the vision tokens, on the picture's grid.

Rows are read beside SDPA (``capture.py``): of the word itself, or of the token before it, which decides on it. Knows nothing of
boxes, metrics or figures.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd

from spatialprobes.capture import capture
from spatialprobes.examples import Example, batches
from spatialprobes.probes.balance import first_token
from spatialprobes.spans import Spans
from spatialprobes.stats import bootstrap
from spatialprobes.vlm import VLM

Row = Literal["query", "query_first", "emits"]
FRAME = ("scale_x", "scale_y", "shift_x", "shift_y")


def measure(
    vlm: VLM,
    examples: Sequence[Example],
    words: Mapping[str, Sequence[str]],
    *,
    layers: Sequence[int] | str = "all",
    row: Row = "query",
    part: Literal["user", "answer"] = "user",
    bos: Literal["keep", "drop"] = "keep",
    system: str | None = "default",
    batch_size: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Attention of words over the picture, one row per example, word, layer and cell.

    Columns: example, cluster, word, layer, row, col, weight, seen, and the picture's frame: scale_x, scale_y, shift_x, shift_y.
    words: {example id: the words of its question, or answer}. part: where they stand; "answer" forces each example's own answer
    (`with_generated_answers` gives it the model's). layers: blocks of the language model, counted from 0. system: as in
    `VLM.encode`.
    row: whose attention it is: "query", all tokens of the word (their mean); "query_first", the first of them (the study's); or
    "emits", the token before it, whose output decides that the word comes. The model has not read the word there yet.
    weight: the attention of those tokens (mean over tokens and heads) on the cell's vision token, divided by that on all vision
    tokens, so that the weights of a panel sum to 1; seen: that total, the share of the attention that goes to the picture. bos:
    "drop" takes the attention on bos (the prompt's first token, in families without one) out of it and lets the rest sum to 1.
    frame: a cell's place in what the model sees is scale x (place in the picture) + shift, in fractions, for each axis.
    Nothing is drawn: ``seed`` is there because every probe takes one.
    Raises KeyError for an id that no example has (naming the nearest) and for a word that is not in the text (naming those that
    are), ValueError for an unknown choice, without words, for batch_size below 1, and for vision tokens without a grid.
    """
    _check(row=(row, get_args(Row)), part=(part, ("user", "answer")), bos=(bos, ("keep", "drop")))
    asked = _asked(examples, words)
    frames = []
    for chunk in batches(asked, batch_size):
        batch = vlm.encode([example for example, _ in chunk], system, answers=part == "answer")
        tokens = [_rows(spans, word, row, part) for spans, (_, word) in zip(batch.spans, chunk, strict=True)]
        for spans in batch.spans:
            if spans.grid is None:
                raise ValueError(f"the {len(spans.vision)} vision tokens of {spans.example!r} have no grid to draw a map on")
        longest = max(map(len, tokens))  # shorter words repeat their last token; the repeats are cut off again below
        at = [own + own[-1:] * (longest - len(own)) for own in tokens]
        with capture(vlm, attention_rows=layers, at=at) as got:
            vlm.forward(batch, logits_to_keep=1)
        for i, (example, word) in enumerate(chunk):
            labels = {"example": example.id, "cluster": example.cluster or example.id, "word": word}
            for layer, rows in got.rows.items():
                attention = rows[i, :, : len(tokens[i])].double().mean((0, 1)).numpy()
                frames.append(_panel({**labels, "layer": layer}, attention, batch.spans[i], bos))
    return pd.concat(frames, ignore_index=True)


def _asked(examples: Sequence[Example], words: Mapping[str, Sequence[str]]) -> list[tuple[Example, str]]:
    known = {example.id for example in examples}
    for name in words:
        if name not in known:
            near = difflib.get_close_matches(str(name), sorted(known), n=3, cutoff=0.4) or sorted(known)[:3]
            raise KeyError(f"words were given for {name!r}, which no example is called; nearest: {', '.join(map(repr, near))}")
    asked = [(example, word) for example in examples for word in words.get(example.id, ())]
    if not asked:
        raise ValueError("no words were given for any of the examples")
    return asked


def _rows(spans: Spans, word: str, row: str, part: str) -> list[int]:
    """Indices of the tokens whose attention is meant."""
    tokens = spans.word(word, part=part).tolist()
    return {"query": tokens, "query_first": tokens[:1], "emits": [tokens[0] - 1]}[row]


def _panel(labels: dict, attention: np.ndarray, spans: Spans, bos: str) -> pd.DataFrame:
    """The cells of one map; attention: [key] of one query."""
    on_picture = attention[spans.vision.numpy()]
    total = on_picture.sum()
    every = 1.0 if bos == "keep" else attention.sum() - attention[first_token(spans).numpy()].sum()
    row, col = np.divmod(np.arange(len(on_picture)), spans.grid[1])
    cells = {"row": row, "col": col, "weight": on_picture / total, "seen": total / every}
    return pd.DataFrame({**labels, **cells, **dict(zip(FRAME, (*spans.frame.scale, *spans.frame.shift), strict=True))})


def _check(**choices: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, legal) in choices.items():
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; one of {', '.join(map(repr, legal))}")


def with_generated_answers(
    vlm: VLM, examples: Sequence[Example], *, max_new_tokens: int = 32, system: str | None = "default", batch_size: int = 64
) -> list[Example]:
    """The same examples with the model's own greedy answers, to look for words in (`measure(..., part="answer")`).

    ``meta["as_generated"]``: whether the answer, as text, has the very tokens that were generated, the end aside. Where it has
    not (the model spelt a word in other pieces, or was cut short by an end within), what is forced reads the same but is not what
    was run.
    """
    found = []
    for chunk in batches(examples, batch_size):
        tokens = vlm.generate(vlm.encode(chunk, system), max_new_tokens)
        said = [dataclasses.replace(one, answer=text) for one, text in zip(chunk, vlm.decode(tokens), strict=True)]
        for one, row in zip(said, tokens.tolist(), strict=True):
            forced = _forced(vlm, one, system) if one.answer else []
            kept = row[: len(forced)]
            found.append(dataclasses.replace(one, meta={**one.meta, "as_generated": bool(forced) and kept == forced}))
    return found


def _forced(vlm: VLM, example: Example, system: str | None) -> list[int]:
    batch = vlm.encode([example], system, answers=True)
    return batch.input_ids[0, batch.spans[0].answer].tolist()


def mean_map(frame: pd.DataFrame) -> pd.DataFrame:
    """Maps averaged over the layers of a table of `measure`: one row per example, word and cell, without layer.

    weight: the mean over layers of the attention on the cell, divided by that on all cells (sums to 1; a layer that looks at the
    picture more weighs more); seen: the mean over layers; scaled: the weights stretched to 0..1, (w - min) / (max - min), all 0
    for a flat map. Raises ValueError for maps of several models or rows in one table.
    """
    if frame.duplicated(["example", "word", "layer", "row", "col"]).any():
        raise ValueError("a cell of a map stands twice: give the maps of one model, and of one row")
    by = [name for name in ("example", "cluster", "word", "row", "col", *FRAME) if name in frame.columns]
    raw = frame.assign(raw=frame["weight"] * frame["seen"]).groupby(by, sort=False, as_index=False)[["raw", "seen"]].mean()
    panels = raw.groupby(["example", "word"], sort=False)["raw"]
    least, most = panels.transform("min"), panels.transform("max")
    flat = most == least
    scaled = ((raw["raw"] - least) / (most - least).mask(flat, 1)).mask(flat, 0.0)
    return raw.assign(weight=raw["raw"] / panels.transform("sum"), scaled=scaled).drop(columns="raw")


def published(vlm: VLM, examples: Sequence[Example], words: Mapping[str, Sequence[str]], **options) -> pd.DataFrame:
    """The study's map (Beyond Semantics, 1.7 of its code): `mean_map` of the first sub-token's own row, bos left out.

    The study strips the system prompt and looks for the word in the generated answer; here both are options (of `measure`), with
    the study's as the default: system=None, part="answer". What it draws is `scaled`, what its entropy is of is `weight`.
    """
    own = {"system": None, "part": "answer", **options}
    return mean_map(measure(vlm, examples, words, row="query_first", bos="drop", **own))


def entropy(frame: pd.DataFrame) -> pd.DataFrame:
    """Normalised entropy of every map of a table of `measure` or `mean_map`: [example, cluster, word, layer, entropy].

    -sum p log p / log N over the N cells: 0 where one cell has it all, 1 for a flat map. No layer where the table has none.
    Raises ValueError for a map of one cell, which has no entropy, and one whose weights do not sum to 1.
    """
    by = [name for name in ("example", "cluster", "word", "layer") if name in frame.columns]
    panels = frame.groupby(by, sort=False)["weight"]
    cells, totals = panels.size(), panels.sum()
    if (cells < 2).any():
        raise ValueError(f"the map of {cells.index[cells < 2][0]!r} has one cell: no entropy")
    if (wrong := ~np.isclose(totals, 1, atol=1e-6)).any():
        raise ValueError(f"the weights of {totals.index[wrong][0]!r} sum to {totals[wrong].iloc[0]:g}, not to 1")
    p = frame["weight"].to_numpy()
    bits = frame[by].assign(entropy=-p * np.log(np.where(p > 0, p, 1)))
    return (bits.groupby(by, sort=False)["entropy"].sum() / np.log(cells)).rename("entropy").reset_index()


def entropy_summary(frame: pd.DataFrame, by: Sequence[str] = ("dataset", "model"), seed: int = 0) -> pd.DataFrame:
    """Mean entropy by data set and model (the study's table 8): [*by, entropy, low, high, n, clusters].

    frame: tables of `entropy` under one another, with the columns `by` added; n counts maps, whole pictures are resampled. Raises
    ValueError for a missing column, and where several layers of a map would be averaged (give their `mean_map`, or one layer).
    """
    if missing := [name for name in (*by, "cluster", "entropy") if name not in frame.columns]:
        raise ValueError(f"the column {missing[0]!r} is missing; there: {', '.join(map(str, frame.columns))}")
    if "layer" in frame.columns and "layer" not in by and frame["layer"].nunique() > 1:
        raise ValueError(f"maps of {frame['layer'].nunique()} layers: give those of `mean_map`, or 'layer' among by")
    rows = []
    for key, part in frame.groupby(list(by), sort=False):
        found = bootstrap(part["entropy"].to_numpy(), part["cluster"].to_numpy(), seed=seed)
        rows.append({**dict(zip(by, key, strict=True)), "entropy": found.estimate, **found._asdict()})
    return pd.DataFrame(rows).drop(columns="estimate")
