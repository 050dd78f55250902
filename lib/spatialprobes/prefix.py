"""Questions about one picture share the keys and values of everything up to and including it.

The prefix (system prompt and picture) of each distinct picture is run once, its cache repeated for its questions, and only the
rest of each prompt is run. Results equal those of whole prompts but for the order of floating-point sums. Knows batches and
caches; what is asked is the business of `answers.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from spatialprobes.examples import Example
from spatialprobes.families import Pictures
from spatialprobes.images import open_image
from spatialprobes.vlm import VLM, Batch, Spans

if TYPE_CHECKING:
    from jaxtyping import Float


def shared_pictures(examples: Sequence[Example]) -> list[Example]:
    """The same examples, those of one cluster with pixel-equal pictures showing one and the same picture object.

    Those of different clusters (the id where an example has none) never do: interventions by cluster act on their prefixes.
    """
    opened: dict[str, list[Image.Image]] = {}
    by_source: dict[Any, Image.Image] = {}
    found = []
    for example in examples:
        cluster = example.cluster or example.id
        source = example.image if isinstance(example.image, str) or hasattr(example.image, "__fspath__") else id(example.image)
        if (source, cluster) not in by_source:
            picture = open_image(example.image)
            known = opened.setdefault(cluster, [])
            same = next((one for one in known if one.size == picture.size and one.tobytes() == picture.tobytes()), None)
            if same is None:
                same = picture.copy()  # a picture that is open already may be shown by other clusters too
                known.append(same)
            by_source[source, cluster] = same
        found.append(replace(example, image=by_source[source, cluster]))
    return found


@torch.no_grad()
def prefill(vlm: VLM, examples: Sequence[Example], system: str | None, new_tokens: int = 0) -> tuple[Batch, DynamicCache, int]:
    """Run the prefixes of these prompts once per distinct picture. new_tokens: how many are expected after the prompts.

    examples: from `shared_pictures`.
    Returns the batch of whole prompts, prefix and rest each left-padded (so there may be padding between them), without the
    picture tensors; the cache of the prefixes, one row per prompt; and the number of tokens that it holds.
    """
    pictures, which = vlm.pictures(examples)
    whole = vlm.assemble(examples, pictures, which, system)
    return _prefill(vlm, whole, pictures, [(row, spans.length) for row, spans in enumerate(whole.spans)], new_tokens)


@dataclass(frozen=True)
class Asked:
    """Prompts with their answers, encoded, without the picture tensors; and the pictures."""

    whole: Batch
    pictures: Pictures


def asked_after(vlm: VLM, examples: Sequence[Example], system: str | None) -> Asked:
    """These prompts with their answers. examples: from `shared_pictures`."""
    pictures, which = vlm.pictures(examples)
    return Asked(vlm.assemble(examples, pictures, which, system, answers=True), pictures)


@torch.no_grad()
def answer_logits(vlm: VLM, asked: Asked) -> list[Float[Tensor, "token word"]]:
    """For each of these prompts the logits of its answer's tokens, under whatever interventions are open.

    No logits depend on the answer's last token or on what follows it: prompts that differ only in these are run as one.
    """
    whole, which = asked.whole, asked.whole.which
    lasts = [int(spans.answer[-1]) for spans in whole.spans]
    ids = whole.input_ids.tolist()
    read = [(which[row], *ids[row][_end(whole.spans[row]) : last]) for row, last in enumerate(lasts)]
    places = {key: place for place, key in enumerate(dict.fromkeys(read))}
    run = [read.index(key) for key in places]
    batch, cache, held = _prefill(vlm, whole, asked.pictures, [(row, lasts[row]) for row in run])
    inputs = {name: value if name == "attention_mask" else value[..., held:] for name, value in batch.inputs.items()}
    keep = max(last + 1 - int(spans.answer[0]) for last, spans in zip(lasts, whole.spans, strict=True))
    options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": keep}
    logits = vlm.forward(replace(batch, inputs=inputs), **options).logits
    return [
        logits[places[key], (spans.answer - last - 1).to(logits.device)]
        for key, last, spans in zip(read, lasts, whole.spans, strict=True)
    ]


def _end(spans: Spans) -> int:
    """Where the rest of a prompt begins: what questions about its picture don't share."""
    return int(spans.vision[-1]) + 1


def _prefill(
    vlm: VLM, whole: Batch, pictures: Pictures, pieces: list[tuple[int, int]], new_tokens: int = 0
) -> tuple[Batch, DynamicCache, int]:
    """As `prefill`, for these (row, end) of assembled prompts, of every picture at least one."""
    which = [whole.which[row] for row, _ in pieces]
    firsts = [pieces[which.index(picture)][0] for picture in range(len(pictures.tokens))]
    prefix = cut(whole, [(row, whole.spans[row].start, _end(whole.spans[row])) for row in firsts])
    rest = cut(whole, [(row, _end(whole.spans[row]), end) for row, end in pieces])

    inputs = {**prefix, **vlm.to_device(pictures.inputs)}
    cache = DynamicCache(config=vlm.model.config)
    with vlm.running(Batch(inputs, [], [whole.examples[row] for row in firsts], list(range(len(firsts))))):
        vlm.family.forward(vlm.model, inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    index = torch.tensor(which, device=vlm.device)
    _repeat(cache, which, rest["input_ids"].shape[1] + new_tokens)
    joined = {name: torch.cat([value.index_select(value.ndim - 2, index), rest[name]], dim=-1) for name, value in prefix.items()}
    held, length = prefix["input_ids"].shape[1], joined["input_ids"].shape[1]
    spans = [whole.spans[row].parted(held, end, length) for row, end in pieces]
    return Batch(joined, spans, [whole.examples[row] for row, _ in pieces], which, held), cache, held


def _repeat(cache: DynamicCache, rows: list[int], room: int) -> None:
    """Row i of the cache becomes what row rows[i] was, with room for this many tokens behind."""
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = _Roomy(layer, rows, room)
        else:  # sliding windows and states do not grow
            layer.batch_select_indices(torch.tensor(rows))


class _Roomy(DynamicLayer):
    """Keys and values at the head of longer buffers: new tokens are written behind them, where a DynamicLayer copies all anew."""

    def __init__(self, held: DynamicLayer, rows: list[int], room: int):
        super().__init__()
        self.lazy_initialization(held.keys, held.values)
        self.buffers, self.keys, self.values = [], held.keys, held.values
        for name in ("keys", "values"):
            few = getattr(held, name)
            buffer = few.new_empty(len(rows), few.shape[1], few.shape[2] + room, few.shape[3])
            at_head = buffer[..., : few.shape[2], :]
            start = 0
            for row, run in groupby(rows):  # broadcast into place: indexing would copy twice
                end = start + len(list(run))
                at_head[start:end] = few[row]
                start = end
            self.buffers.append(buffer)
            setattr(self, name, at_head)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, end = self.keys.shape[-2], self.keys.shape[-2] + key_states.shape[-2]
        whole = self.keys.data_ptr() == self.buffers[0].data_ptr()  # not so once rows were reordered, or the room was used up
        if not whole or end > self.buffers[0].shape[-2]:
            return super().update(key_states, value_states, *args, **kwargs)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[..., start:end, :] = new
        self.keys, self.values = (buffer[..., :end, :] for buffer in self.buffers)
        return self.keys, self.values


def cut(batch: Batch, pieces: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """Per-token inputs of these (row, start, end), left-padded anew; padding has mask, position and id 0."""
    length = max(end - start for _, start, end in pieces)
    found = {}
    for name, value in batch.inputs.items():
        made = value.new_zeros(*value.shape[:-2], len(pieces), length)
        for i, (row, start, end) in enumerate(pieces):
            made[..., i, length - (end - start) :] = value[..., row, start:end]
        found[name] = made
    return found
