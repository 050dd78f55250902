"""Questions about one picture in a terminal, answered word by word as the model makes them, its vision tokens permuted if asked.

Each question is asked on its own: the lab's models know single turns only. With history the earlier turns stand before it.
Knows no family; the command is `spatialprobes chat`.
"""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from transformers import TextStreamer

from spatialprobes.examples import Example
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.seeds import SEEDS, check_seed
from spatialprobes.vlm import VLM, PromptError

if TYPE_CHECKING:
    from PIL import Image

SMALL_VOCABULARY = 5000  # words up to which the nearest known one is looked for
LEAVE = ("exit", "quit")


def converse(
    vlm: VLM,
    picture: Image.Image,
    questions: Iterable[str],
    write: Callable[[str], None],
    *,
    permute: bool = False,
    temperature: float = 0.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    history: bool = False,
) -> list[tuple[str, str]]:
    """Answer the questions as they come; what was asked and answered, in order.

    write: takes text as it is made, ends of lines included. permute: one permutation, drawn from `seed`, holds to the end.
    temperature: 0 takes the likeliest word; above, question i is sampled with seed + i. max_new_tokens: fewer where the model's
    positions run out. history: earlier turns stand before a question, until they no longer fit, and then from there on anew.
    What can't be asked (an empty question, one that is too long) is said, and the next one is taken.
    """
    check_seed(seed)
    said: list[tuple[str, str]] = []
    earlier: list[tuple[str, str]] = []
    with ExitStack() as stack:
        if permute:
            n = len(vlm.vision_features([Example("picture", picture)])[0])
            stack.enter_context(intervene(vlm, permute=random_permutations(n, 1, seed)[0]))
            write(f"[the {n} vision tokens are permuted, by seed {seed}, in all of this conversation]\n")
        for question in map(str.strip, questions):
            if question.lower() in LEAVE:
                break
            if not question:
                write("[an empty question: type one, or exit]\n")
                continue
            if unknown := unknown_words(vlm.tokenizer, question):
                write(f"[the model does not know: {', '.join(unknown)}]\n")
            options = {"temperature": temperature, "seed": (seed + len(said)) % SEEDS, "max_new_tokens": max_new_tokens}
            for context in [earlier, []] if earlier else [[]]:
                try:
                    answer = _reply(vlm, picture, question, context, write, **options)
                except PromptError as error:
                    write(f"[{error}{'; the conversation begins anew' if context else ''}]\n")
                else:
                    said.append((question, answer))
                    earlier = [*context, (question, answer)] if history else []
                    break
    return said


def typed(echo: bool) -> Iterator[str]:
    """Questions from the terminal or a pipe, until it ends; what is not UTF-8 in one is shown as U+FFFD.

    echo: repeat each, for a pipe's questions are not seen.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            question = input("user: ")
        except EOFError:
            print()
            return
        if echo:
            print(question, flush=True)
        yield question


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """The words of a text that the tokenizer has no token for, each with the nearest it has, where its vocabulary is small."""
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return []
    words = [word for word in dict.fromkeys(text.split()) if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]]
    known = [word for word in tokenizer.get_vocab() if word not in tokenizer.all_special_tokens]
    if len(known) > SMALL_VOCABULARY:
        return words
    near = {word: difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5) for word in words}
    return [f"{word} (nearest known: {near[word][0]})" if near[word] else word for word in words]


class _Words(TextStreamer):
    """Hands on the words of an answer as they are whole, and an end of line after the last."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text + "\n" * stream_end)


def _reply(
    vlm: VLM,
    picture: Image.Image,
    question: str,
    earlier: list[tuple[str, str]],
    write: Callable[[str], None],
    *,
    max_new_tokens: int,
    **options: Any,
) -> str:
    batch = vlm.encode([Example("question", picture, question, meta={"earlier": earlier})])
    room = vlm.max_tokens - batch.input_ids.shape[1]
    if room < 1:
        raise PromptError(f"the question fills the model's {vlm.max_tokens} positions: no room for an answer")
    write("assistant: ")
    tokens = vlm.generate(batch, min(max_new_tokens, room), streamer=_Words(vlm.tokenizer, write), **options)
    return vlm.decode(tokens)[0]
