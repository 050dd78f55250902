"""Ask a model about examples: generate answers, or score the choices, in batches; read off what was answered.

Knows no family and no grading beyond "the expected choice": what a benchmark counts is in `grading.py`. Results do not depend on
the batching but for the order of floating-point sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pandas as pd
import torch
from tqdm.auto import tqdm

from spatialprobes.examples import Example, batches
from spatialprobes.parsing import parse, plain
from spatialprobes.prefix import Asked, answer_logits, asked_after, prefill, shared_pictures
from spatialprobes.vlm import VLM, Batch, PromptError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["answer", "generate", "parse", "score"]

PrefixCache = bool | Literal["auto"]
FEWEST_SHARING = 2.0  # questions per picture from which the prefix cache is worth its copies
BARS_FROM = 20  # batches from which a bar of progress is shown


def answer(
    vlm: VLM,
    examples: Sequence[Example],
    by: Literal["generate", "score"] = "generate",
    *,
    max_new_tokens: int = 8,
    batch_size: int = 64,
    prefix_cache: PrefixCache = "auto",
    system: str | None = "default",
) -> pd.DataFrame:
    """One row per example, in their order: [id, group, category, cluster, expected, answer, correct, parsed, text].

    by: "generate" reads the answer from greedy text (`parse`; without choices the text itself is the answer); "score" takes the
    choice with the highest mean log-probability per token. answer is missing where the text could not be parsed; that counts as
    not correct. `attrs` holds "unparsed", the share of such rows, and "by".
    Raises PromptError naming an example that cannot be asked, ValueError for an unknown `by`.
    """
    options = {"batch_size": batch_size, "prefix_cache": prefix_cache, "system": system}
    if by == "generate":
        texts = generate(vlm, examples, max_new_tokens, **options)["text"].tolist()
        given = [
            parse(text, one.choices) if one.choices else plain(text) or None for one, text in zip(examples, texts, strict=True)
        ]
    elif by == "score":
        scores = score(vlm, examples, **options)
        best = scores.loc[scores.groupby("id", sort=False)["normalised"].idxmax()].set_index("id")["choice"]
        given = texts = [best[example.id] for example in examples]
    else:
        raise ValueError(f"by={by!r} is unknown; 'generate' or 'score'")
    rows = [
        {
            "id": one.id,
            "group": one.group,
            "category": one.category,
            "cluster": one.cluster,
            "expected": one.answer,
            "answer": found,
            "correct": found is not None and one.answer is not None and plain(found) == plain(one.answer),
            "parsed": found is not None,
            "text": text,
        }
        for one, found, text in zip(examples, given, texts, strict=True)
    ]
    frame = pd.DataFrame(rows).astype({"expected": "string", "answer": "string"})  # text also where all of it is missing
    frame.attrs.update(unparsed=float(1 - frame["parsed"].mean()), by=by)
    return frame


def generate(
    vlm: VLM,
    examples: Sequence[Example],
    max_new_tokens: int = 8,
    batch_size: int = 64,
    prefix_cache: PrefixCache = "auto",
    *,
    system: str | None = "default",
    temperature: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Generated answers, in the order of the examples: [id, text, tokens]; tokens is the number of new ones, the end included.

    prefix_cache: run what questions about one picture share only once; "auto" where a picture has at least two questions.
    Greedy at temperature 0; sampled texts depend on `seed` and on batch_size.
    Raises PromptError naming an example with an empty question or with too long a prompt.
    """
    check_askable(vlm, examples)
    share = shares(vlm, examples, prefix_cache)
    texts: dict[str, tuple[str, int]] = {}
    for places in _batches(examples, batch_size, share):
        chunk = [examples[i] for i in places]
        if share:
            batch, cache, _ = prefill(vlm, shared_pictures(chunk), system, new_tokens=max_new_tokens)
            options = {"past_key_values": cache}
        else:
            batch, options = vlm.encode(chunk, system), {}
        tokens = vlm.generate(batch, max_new_tokens, temperature, seed, **options).cpu()
        for example, text, row in zip(chunk, vlm.decode(tokens), tokens, strict=True):
            texts[example.id] = (text, vlm.answer_length(row))
    return pd.DataFrame([{"id": one.id, "text": texts[one.id][0], "tokens": texts[one.id][1]} for one in examples])


def score(
    vlm: VLM,
    examples: Sequence[Example],
    batch_size: int = 64,
    prefix_cache: PrefixCache = "auto",
    *,
    system: str | None = "default",
) -> pd.DataFrame:
    """Log-probability of every choice by teacher forcing: [id, choice, logprob, tokens, normalised].

    logprob: natural logarithm, summed over the tokens of the choice (the end of the turn is not counted); tokens: how many;
    normalised: logprob / tokens. Rows follow the examples and, within one, its choices.
    Raises PromptError naming an example that cannot be asked or has no choices.
    """
    found: dict[int, tuple[float, int]] = {}
    asked = each_choice(vlm, examples)
    for one in scorings(vlm, asked, batch_size, prefix_cache, system=system):
        found.update(zip(one.places, one.logprobs(), strict=True))
    return pd.DataFrame(
        [
            {"id": one.id, "choice": one.answer, "logprob": logprob, "tokens": n, "normalised": logprob / n}
            for one, (logprob, n) in ((one, found[i]) for i, one in enumerate(asked))
        ]
    )


def each_choice(vlm: VLM, examples: Sequence[Example]) -> list[Example]:
    """The examples, once for each of their choices, with that as answer. Raises PromptError for one without choices."""
    check_askable(vlm, examples)
    for example in examples:
        if not example.choices:
            raise PromptError(f"example {example.id!r} has no choices to score")
    return [replace(one, answer=choice) for one in examples for choice in one.choices]


def scorings(
    vlm: VLM,
    asked: Sequence[Example],
    batch_size: int = 64,
    prefix_cache: PrefixCache = "auto",
    *,
    system: str | None = "default",
) -> Iterator[Scoring]:
    """Batches of these examples, encoded once, whose answers can be scored again and again under other interventions."""
    share = shares(vlm, asked, prefix_cache)
    for places in _batches(asked, batch_size, share):
        chunk = [asked[i] for i in places]
        yield Scoring(vlm, places, *_encoded(vlm, chunk, share, system))


@dataclass(frozen=True)
class Scoring:
    """A batch to score. places: of its rows among the examples; prefixed: the same to run on prefixes, where they are shared."""

    vlm: VLM
    places: list[int]
    batch: Batch
    prefixed: Asked | None

    @torch.no_grad()
    def logprobs(self) -> list[tuple[float, int]]:
        """Summed log-probability of each row's answer, and its number of tokens, under the interventions that are open."""
        scores = []
        for row, (spans, own) in enumerate(zip(self.batch.spans, self._logits(), strict=True)):
            tokens = self.batch.input_ids[row, spans.answer.to(own.device)]
            scores.append((float(own.float().log_softmax(-1).gather(-1, tokens[:, None]).sum()), len(tokens)))
        return scores

    def _logits(self) -> list[Float[Tensor, "token word"]]:
        """Of the tokens of each row's answer."""
        if self.prefixed is not None:
            return answer_logits(self.vlm, self.prefixed)
        first = min(int(spans.answer[0]) for spans in self.batch.spans) - 1
        kept = self.vlm.forward(self.batch, logits_to_keep=self.batch.input_ids.shape[1] - first).logits
        return [kept[row, spans.answer.to(kept.device) - 1 - first] for row, spans in enumerate(self.batch.spans)]


def _encoded(vlm: VLM, chunk: list[Example], share: bool, system: str | None) -> tuple[Batch, Asked | None]:
    if not share:
        return vlm.encode(chunk, system, answers=True), None
    prefixed = asked_after(vlm, shared_pictures(chunk), system)
    return prefixed.whole, prefixed


def check_askable(vlm: VLM, examples: Sequence[Example]) -> None:
    """Raises ValueError for no examples, ids that are not unique, and interventions that hold for the rows of one batch."""
    if not examples:
        raise ValueError("no examples were given")
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise ValueError(f"two examples have the id {example.id!r}; ids must be unique")
        seen.add(example.id)
    if vlm.by_row_interventions:
        raise ValueError(
            "answers batches and sorts examples: give one permutation or vector, or a mapping from cluster to it, not one per row"
        )


def shares(vlm: VLM, examples: Sequence[Example], prefix_cache: PrefixCache) -> bool:
    """Whether questions share the run of their pictures. Raises ValueError where they are told to and cannot."""
    if prefix_cache not in (True, False, "auto"):
        raise ValueError(f"prefix_cache={prefix_cache!r} is unknown; True, False or 'auto'")
    possible = vlm.family.shares_prefix and not vlm.whole_prompts
    if prefix_cache is True and not possible:
        why = (
            "a capture is open that reads whole prompts"
            if vlm.whole_prompts
            else f"{vlm.family.model_type} cannot repeat its cache"
        )
        raise ValueError(f"prefix_cache=True: {why}")
    clusters = {example.cluster or example.id for example in examples}
    return possible and (prefix_cache is True or (prefix_cache == "auto" and len(examples) >= FEWEST_SHARING * len(clusters)))


def _batches(examples: Sequence[Example], batch_size: int, share: bool) -> Iterator[list[int]]:
    """Indices of the examples, in batches of similar length, or, where pictures are shared, cluster by cluster."""
    clusters: dict[str, int] = {}
    for one in examples:
        clusters.setdefault(one.cluster or one.id, len(clusters))

    def key(i: int) -> int:
        one = examples[i]
        return clusters[one.cluster or one.id] if share else -len(one.question or "") - len(one.answer or "")

    found = batches(sorted(range(len(examples)), key=key), batch_size)
    yield from tqdm(found, desc="answers", unit="batch", leave=False, disable=len(found) < BARS_FROM)
