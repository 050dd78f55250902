"""A question as the model's own chat template writes it, and where each part of it stands in the text.

Knows text alone: tokens are found later from character offsets (`spans.py`). The picture always comes before the question, so
that prompts about one picture share everything up to and including it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from spatialprobes.examples import Example

SENTINEL = "\u2039system\u203a"  # a system prompt that no template writes of its own accord
Range = tuple[int, int]


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt. Ranges are (start, end) in characters of `text`, equal ends where the part is absent."""

    text: str
    image: Range
    system: Range
    user: Range
    answer: Range


class PromptError(ValueError):
    """An example that cannot be asked; the message names it."""


def default_system(processor: Any) -> str:
    """The system prompt that the chat template writes when it is given none; "" where it writes none."""
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}
    own, marked = _apply(processor, [user]), _apply(processor, [_system(SENTINEL), user])
    if SENTINEL not in marked:
        return ""
    before, after = marked.split(SENTINEL)
    start = len(_common_prefix(own, before))
    end = len(own) - len(_common_prefix(own[::-1], after[::-1]))
    return own[start:end].strip()


def check_template(processor: Any, placeholder: str, spell: Callable[[str], str] = str) -> None:
    """Raises PromptError where the chat template is missing, broken, or does not write one picture and a question."""
    try:
        render(processor, placeholder, Example("template", None, "?"), None, default_system(processor), spell=spell)
    except Exception as error:  # templates are programs, and fail in their own ways
        why = " ".join(str(error).split())[:200] if getattr(processor, "chat_template", None) else "there is none"
        raise PromptError(
            f"its chat template can't be used: {why}; a folder of the model with a chat_template.jinja that writes the picture, "
            "then the question, would do"
        ) from error


def render(
    processor: Any,
    placeholder: str,
    example: Example,
    system: str | None,
    default: str,
    answers: bool = False,
    spell: Callable[[str], str] = str,
) -> Prompt:
    """The prompt for one example.

    system: "default" for the template's own (`default`), None or "" for no system prompt, else the words of one.
    answers: close with the example's answer (teacher forcing) instead of with the call for one.
    `example.meta["earlier"]`: (question, answer) pairs that were asked about the picture before, oldest first, if any; they come
    between the picture and the question, and their tokens count as the template's.
    spell: what the processor still does to the text that the template writes.
    Raises PromptError for an empty question, one that holds the image placeholder, a missing answer, and a system prompt that
    the template does not write.
    """
    question = _question(example, placeholder)
    earlier = [(asked.strip(), said.strip()) for asked, said in example.meta.get("earlier", ())]
    turns = [_turn("user", earlier[0][0] if earlier else question, picture=True)]
    for i, (_, said) in enumerate(earlier):
        turns += [_turn("assistant", said), _turn("user", earlier[i + 1][0] if i + 1 < len(earlier) else question)]
    messages, words = _with_system(turns, system, default)
    text = spell(_apply(processor, messages, ask=True))
    if text.count(placeholder) != 1:
        raise PromptError(
            f"the chat template writes {text.count(placeholder)} image placeholders {placeholder!r} for one picture"
        )
    picture = text.index(placeholder)
    image = (picture, picture + len(placeholder))
    if words and words not in text[:picture]:
        raise PromptError(f"the chat template does not write the system prompt {words!r} before the picture; use system=None")
    head = text.index(words) if words else 0
    after = image[1]
    for part in (part for turn in earlier for part in turn):
        after = text.find(part, after) + len(part)
    ask = text.find(question, after)
    if ask < 0:
        raise PromptError(f"example {example.id!r}: the chat template does not write the question after the picture")
    end = len(text)
    answer = (end, end)
    if answers:
        expected = (example.answer or "").strip()
        if not expected:
            raise PromptError(f"example {example.id!r} has no answer to force")
        closed = spell(_apply(processor, [*messages, _turn("assistant", expected)]))
        if not closed.startswith(text.rstrip()) or expected not in closed[end:]:
            closed = text + ("" if text[-1:].isspace() else " ") + expected  # templates that open an answer in another way
        text, start = closed, closed.index(expected, len(text.rstrip()))
        answer = (start, start + len(expected))
    return Prompt(text, image, (head, head + len(words)), (ask, ask + len(question)), answer)


def render_text(
    processor: Any, placeholder: str, example: Example, system: str | None, default: str, spell: Callable[[str], str] = str
) -> Prompt:
    """The prompt for an example's question alone, without its picture; options as for `render`.

    Raises PromptError for an empty question, one that holds the image placeholder, and a template that does not write it so.
    """
    question = _question(example, placeholder)
    messages, words = _with_system([_turn("user", question)], system, default)
    text = spell(_apply(processor, messages, ask=True))
    ask = text.rfind(question)
    if ask < 0 or placeholder in text:
        raise PromptError(f"example {example.id!r}: the chat template does not write a question without a picture; use raw text")
    if words not in text[:ask]:
        raise PromptError(f"the chat template does not write the system prompt {words!r} before the question; use system=None")
    head, end = text.index(words), len(text)
    return Prompt(text, (end, end), (head, head + len(words)), (ask, ask + len(question)), (end, end))


def _question(example: Example, placeholder: str) -> str:
    question = (example.question or "").strip()
    if not question:
        raise PromptError(f"example {example.id!r} has an empty question; give it words to ask")
    if placeholder in question:
        raise PromptError(f"example {example.id!r}: the question holds the image placeholder {placeholder!r}; leave it out")
    return question


def _with_system(turns: list[dict[str, Any]], system: str | None, default: str) -> tuple[list[dict[str, Any]], str]:
    """The messages, and the words of the system prompt that will stand before them."""
    words = default if system == "default" else (system or "").strip()
    if system == "default" or (not words and not default):
        return turns, words
    return [_system(words), *turns], words


def _system(words: str) -> dict[str, Any]:
    return _turn("system", words)


def _turn(role: str, words: str, picture: bool = False) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * picture + [{"type": "text", "text": words}]}


def _apply(processor: Any, messages: list[dict[str, Any]], ask: bool = False) -> str:
    return processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)


def _common_prefix(a: str, b: str) -> str:
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[:n]
