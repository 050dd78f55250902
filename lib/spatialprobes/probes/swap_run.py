"""One batch of swap questions through the model, once: hidden states at a token, the answer's text, its log-probability.

The prefill that leaves the hidden states also leaves the logits of the answer's first token and the cache that decoding goes on
from. Knows one batch; knows nothing of pairs, stores and measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from spatialprobes.answers import score
from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.prefix import prefill, shared_pictures
from spatialprobes.probes.swap_states import Layer
from spatialprobes.spans import Spans, occurrences
from spatialprobes.vlm import VLM, Batch

if TYPE_CHECKING:
    from jaxtyping import Float, Int

At = Literal["last", "subject", "reference"]
NO_TOKEN = -1  # fills the answers' rows behind their end


class ExtractionError(ValueError):
    """Pairs whose states cannot be extracted; the message names the pair."""


@dataclass(frozen=True)
class Asked:
    """One question. expected, opposite: the words of the two answers."""

    example: Example
    expected: str
    opposite: str


@dataclass(frozen=True)
class Found:
    """What a batch left, a row a question. NaN and position -1 where the words asked for are not in the question.

    positions: the token read, counted from the prompt's own first. tokens: of the answer, its end included, then `NO_TOKEN`.
    logprobs: natural, of the expected answer and of its opposite, summed over their tokens. Both None without answers.
    """

    hidden: dict[Layer, Float[np.ndarray, "question width"]]
    positions: Int[np.ndarray, " question"]
    tokens: Int[np.ndarray, "question new_token"] | None
    logprobs: Float[np.ndarray, "question 2"] | None


@dataclass(frozen=True)
class Runner:
    """How batches are run; see `swap.extract`.

    share: the picture of several questions is run once. words: the id of each answer that is one token (`single_tokens`).
    """

    vlm: VLM
    layers: tuple[Layer, ...]
    at: At
    answers: bool
    max_new_tokens: int
    system: str | None
    share: bool
    words: dict[str, int | None]

    def __call__(self, asked: Sequence[Asked]) -> Found:
        """Raises ExtractionError naming layer and question for a state or a logit that is not finite; PromptError."""
        vlm, examples = self.vlm, [one.example for one in asked]
        if self.share:
            batch, held, _ = prefill(vlm, shared_pictures(examples), self.system, self.max_new_tokens)
            options = {"past_key_values": held}
        else:
            batch, options = vlm.encode(examples, self.system), {}
        places = [token_of(one, spans, self.at) for one, spans in zip(examples, batch.spans, strict=True)]
        last = batch.input_ids.shape[1] - 1
        index = torch.tensor([[last if place is None else place] for place in places])
        with capture(vlm, hidden=self.layers, at=index) as got:
            tokens, logits = self._answered(batch, options) if self.answers else self._read(batch, options)
        hidden = {layer: states[:, 0].float().numpy() for layer, states in got.hidden.items()}
        for layer, states in hidden.items():
            _check_finite(states, examples, f"the hidden state of layer {layer}")
        there = np.array([place is not None for place in places])
        for states in hidden.values():
            states[~there] = np.nan
        before = batch.attention_mask.cumsum(-1).cpu().gather(1, index)[:, 0].numpy() - 1
        positions = np.where(there, before, -1)
        if logits is None:
            return Found(hidden, positions, None, None)
        _check_finite(logits.numpy(), examples, "the first answer token's logits")
        return Found(hidden, positions, tokens, self._logprobs(asked, logits))

    def _read(self, batch: Batch, options: dict[str, Any]) -> tuple[None, None]:
        inputs = {
            name: value if name == "attention_mask" or not batch.held else value[..., batch.held :]
            for name, value in batch.inputs.items()
        }
        self.vlm.forward(replace(batch, inputs=inputs), use_cache=bool(options), logits_to_keep=1, **options)
        return None, None

    def _answered(
        self, batch: Batch, options: dict[str, Any]
    ) -> tuple[Int[np.ndarray, "question new_token"], Float[torch.Tensor, "question word"]]:
        """Tokens of the answers and the logits of their first."""
        first: list[torch.Tensor] = []

        def keep(module: torch.nn.Module, args: tuple, output: Any) -> None:
            if not first:
                first.append(output.logits[:, -1].float().cpu())

        hook = self.vlm.model.register_forward_hook(keep)
        try:
            made = self.vlm.generate(batch, self.max_new_tokens, **options).cpu()
        finally:
            hook.remove()
        tokens = np.full((len(batch), self.max_new_tokens), NO_TOKEN, np.int64)
        for row, new in zip(tokens, made, strict=True):
            length = self.vlm.answer_length(new)
            row[:length] = new[:length]
        return tokens, first[0]

    def _logprobs(self, asked: Sequence[Asked], logits: Float[torch.Tensor, "question word"]) -> Float[np.ndarray, "question 2"]:
        """From the prefill's logits where both answers are one token, else by teacher forcing."""
        every = logits.log_softmax(-1)
        found = np.full((len(asked), 2), np.nan)
        long = []
        for i, one in enumerate(asked):
            ids = [self.words[word] for word in (one.expected, one.opposite)]
            if None in ids:
                long.append(i)
            else:
                found[i] = every[i, ids]
        if long:
            questions = [replace(asked[i].example, choices=[asked[i].expected, asked[i].opposite]) for i in long]
            scores = score(self.vlm, questions, len(questions), self.share, system=self.system)
            found[long] = scores["logprob"].to_numpy().reshape(-1, 2)
        return found


def token_of(example: Example, spans: Spans, at: At) -> int | None:
    """The index of the last prompt token, or of the last one of the subject's or reference's words in the question.

    Words that stand inside the other object's ("circle" in "blue circle") are passed over. None where they are not there.
    """
    if at == "last":
        return spans.length - 1
    words, other = (str(example.meta.get(name) or "") for name in ((at, "reference") if at == "subject" else (at, "subject")))
    question = example.question.strip()
    taken = [match.span() for match in occurrences(question, other)] if len(other) > len(words) else []
    for number, match in enumerate(occurrences(question, words)):
        if not any(start <= match.start() and match.end() <= end for start, end in taken):
            return int(spans.word(words, number)[-1])
    return None


def single_tokens(vlm: VLM, example: Example, words: Sequence[str], system: str | None) -> dict[str, int | None]:
    """The id of each answer that is one token, right behind the prompt that the example makes; None for the others."""
    pictures, which = vlm.pictures([example])
    prompt = vlm.assemble([example], pictures, which, system).input_ids[0].tolist()
    found: dict[str, int | None] = {}
    for word in words:
        batch = vlm.assemble([replace(example, answer=word)], pictures, which, system, answers=True)
        ids, places = batch.input_ids[0].tolist(), batch.spans[0].answer.tolist()
        found[word] = ids[places[0]] if len(places) == 1 and ids[: places[0]] == prompt else None
    return found


def _check_finite(values: Float[np.ndarray, "question some"], examples: Sequence[Example], what: str) -> None:
    wrong = ~np.isfinite(values).all(axis=1)
    if wrong.any():
        name, count = examples[int(wrong.argmax())].id, f"{int(wrong.sum())} of the {len(wrong)} questions of its batch"
        raise ExtractionError(f"{what} of {name!r}: not finite, as of {count}; try another dtype")
