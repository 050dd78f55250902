"""Prompts without a picture: what the language model of a VLM makes of words alone.

The question of an example is read, its picture is not opened and the vision tower does not run. Batches are those of `VLM.encode`
with no vision tokens in them, so that reading (``capture.py``) and looking for words (`Spans.word`) work as ever; positions are
plain counts on every axis. Knows no probe.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

from spatialprobes.examples import Example
from spatialprobes.families import Frame
from spatialprobes.prompts import Prompt, PromptError, render_text
from spatialprobes.spans import find_spans
from spatialprobes.vlm import VLM, Batch

Template = Literal["chat", "raw"]


def encode_text(vlm: VLM, examples: Sequence[Example], *, template: Template = "chat", system: str | None = "default") -> Batch:
    """A left-padded batch of the examples' questions alone, their pictures left out.

    template: "chat" writes the question as a user's turn through the model's own chat template; "raw" gives the bare text, with
    bos in front where the tokenizer has one. system: as in `VLM.encode`; raw text has no system prompt.
    `vision` of the spans is empty, `grid` is None. Raises PromptError for an empty question, a prompt longer than the model's
    positions, and a chat template that cannot do without a picture; ValueError for an unknown template and without examples.
    """
    if template not in get_args(Template):
        raise ValueError(f"template={template!r} is unknown; one of {', '.join(map(repr, get_args(Template)))}")
    if not examples:
        raise ValueError("no examples were given")
    placeholder = vlm.family.image_token(vlm.processor)
    if template == "chat":
        spell = partial(vlm.family.spell, vlm.processor)
        prompts = [render_text(vlm.processor, placeholder, one, system, vlm.default_system, spell) for one in examples]
        rows, offsets = vlm.tokenize([prompt.text for prompt in prompts])
    else:
        prompts = [_raw(example, placeholder) for example in examples]
        rows, offsets = _with_bos(vlm, [prompt.text for prompt in prompts])
    for example, row in zip(examples, rows, strict=True):
        if len(row) > vlm.max_tokens:
            raise PromptError(f"example {example.id!r}: its text has {len(row)} tokens, the model has {vlm.max_tokens} positions")
    length = max(map(len, rows))
    bos = vlm.tokenizer.bos_token_id
    spans = [
        find_spans(example.id, prompt, offset, row[0] == bos, len(row), [], length - len(row), length, grid=None, frame=Frame())
        for example, prompt, row, offset in zip(examples, prompts, rows, offsets, strict=True)
    ]
    return Batch(vlm.complete(rows, []), spans, list(examples), [])


def _raw(example: Example, placeholder: str) -> Prompt:
    text = (example.question or "").strip()
    if not text or placeholder in text:
        what = f"holds the image placeholder {placeholder!r}" if text else "is empty"
        raise PromptError(f"example {example.id!r}: its text {what}; give it plain words")
    end = len(text)
    return Prompt(text, (end, end), (0, 0), (0, end), (end, end))


def _with_bos(vlm: VLM, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
    """Ids and offsets, bos in front: some tokenizers add it by themselves, others leave it to the chat template."""
    encoded = vlm.tokenizer(texts, return_offsets_mapping=True)
    rows, offsets, bos = encoded["input_ids"], encoded["offset_mapping"], vlm.tokenizer.bos_token_id
    if bos is None or rows[0][0] == bos:
        return rows, offsets
    return [[bos, *row] for row in rows], [[(0, 0), *own] for own in offsets]
