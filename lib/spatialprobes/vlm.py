"""A vision-language model as the probes see it: load, encode with spans, forward, generate, and what enters the language model.

Knows no family (`families/`), no probe, and writes nothing into the model: reading is `capture.py`, writing `intervene.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatialprobes import loading
from spatialprobes.digests import identity
from spatialprobes.examples import Example, batches
from spatialprobes.families import Family, ImageFit, Pictures, check_fit, fit_picture
from spatialprobes.families.discovery import Discovered, NotDiscovered
from spatialprobes.families.proofs import prove
from spatialprobes.images import ImageError, open_image
from spatialprobes.loading import ModelError
from spatialprobes.processors import check_processor
from spatialprobes.prompts import PromptError, check_template, default_system, render
from spatialprobes.seeds import check_seed
from spatialprobes.spans import Spans, find_spans

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from PIL import Image

__all__ = ["VLM", "Batch", "ModelError", "PromptError", "Spans"]


@dataclass
class Batch:
    """Left-padded model inputs, with where everything is in each row.

    inputs: what the model's forward takes. spans, examples: one per row. which: row i shows the which[i]-th distinct picture.
    held: how many of its tokens a cache holds before the first run (`prefix.prefill`), 0 for whole prompts.
    """

    inputs: dict[str, Tensor]
    spans: list[Spans]
    examples: list[Example]
    which: list[int]
    held: int = 0

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def ids(self) -> list[str]:
        return [example.id for example in self.examples]

    @property
    def input_ids(self) -> Int[Tensor, "example token"]:
        return self.inputs["input_ids"]

    @property
    def attention_mask(self) -> Int[Tensor, "example token"]:
        return self.inputs["attention_mask"]


class VLM:
    """A model, its processor, and its family's knowledge of where things are. Made by `VLM.load`."""

    def __init__(
        self, model: nn.Module, processor: Any, family: Family, source: loading.Source, image_fit: ImageFit, quantize: str | None
    ):
        self.model = model
        self.processor = processor
        self.family = family
        self.source = source
        self.image_fit = image_fit
        self.quantize = quantize
        self.batch: Batch | None = None  # the batch that is being run, for hooks that need its spans
        self.whole_prompts = 0  # open captures that read whole prompts, so that prefixes must not be run apart
        self.by_row_interventions = 0  # open ones that hold for the rows of one batch, in its order

    @classmethod
    def load(
        cls,
        name_or_path: str,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        quantize: str | None = None,
        image_fit: ImageFit = "native",
        trust_remote_code: bool = False,
        processor: str | None = None,
    ) -> VLM:
        """Load a model in evaluation mode, frozen, with SDPA attention.

        name_or_path: a lab name ("lab-llava"), a folder, `<org>/<name>` under the folder SPATIALPROBES_WEIGHTS, or a hub id.
        revision: of a hub id.
        dtype: "auto" (the checkpoint's own, but float32 for float16 on a CPU), "float32", "float16" or "bfloat16".
        device: "auto", "cpu", "cuda", "cuda:1". quantize: None, "8bit" or "4bit" (language model only).
        image_fit: what is done to a picture before the processor: "native" nothing, "pad", "crop" or "squash" to a square.
        processor: the model to take image processor, tokenizer and chat template from, named as name_or_path: fine-tuned
        checkpoints are often saved without them. None: its own.
        An empty string stands for None, as in notebook parameters.
        Raises ModelError, in one line, for whatever cannot be loaded.
        """
        check_fit(image_fit)
        loading.check_options(dtype or "auto", quantize or None)
        source = loading.find(str(name_or_path), revision or None, processor or None)
        model, own, family = loading.load(source, dtype or "auto", device or "auto", quantize or None, trust_remote_code)
        vlm = cls(model, own, family, source, image_fit, quantize or None)
        check_processor(vlm)
        try:
            check_template(own, family.image_token(own), partial(family.spell, own))
            if isinstance(family, Discovered):
                prove(vlm)
        except PromptError as error:
            raise ModelError(f"model {source.name!r}: {error}") from error
        except NotDiscovered as error:
            raise loading.undiscovered(source, family.model_type, error) from error
        return vlm

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def n_layers(self) -> int:
        return len(self.family.part(self.model, "layers"))

    @property
    def max_tokens(self) -> int:
        """Positions that the language model was made for."""
        return self.model.config.get_text_config().max_position_embeddings

    @cached_property
    def default_system(self) -> str:
        """The system prompt that the chat template writes when it is given none; "" where it writes none."""
        return default_system(self.processor)

    @cached_property
    def _digests(self) -> dict[str, str]:
        return identity(self.source)

    def facts(self) -> dict[str, Any]:
        """What identifies this model and how it runs; the same on every machine with the same files, device kind and options."""
        return {
            "model": self.name if self.source.kind != "folder" else self.source.path.name,
            "source": self.source.kind,
            **self._digests,
            "family": self.family.model_type,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.type,
            "quantize": self.quantize or "none",
            "attention": self.model.config.get_text_config()._attn_implementation,
            "image_fit": self.image_fit,
        }

    # Pictures and prompts to tensors

    def encode(self, examples: Sequence[Example], system: str | None = "default", answers: bool = False) -> Batch:
        """A left-padded batch of single-turn prompts, picture before question, through the model's own chat template.

        system: "default" for the template's own system prompt, None (or "") for none, else the words of one.
        answers: append each example's answer, for teacher forcing.
        Raises PromptError naming the example for an empty question, a missing answer, a prompt longer than the model's positions.
        """
        pictures, which = self.pictures(examples)
        batch = self.assemble(examples, pictures, which, system, answers)
        batch.inputs.update(self.to_device(self.family.repeat(pictures.inputs, which)))
        return batch

    def pictures(self, examples: Sequence[Example]) -> tuple[Pictures, list[int]]:
        """The distinct pictures of these examples, processed once each, and which of them each example shows.

        Pictures are the same where `Example.image` is the same object or the same path. Raises ImageError naming an example whose
        picture can't be read, or is refused by the processor.
        """
        known: dict[Any, int] = {}
        fitted, frames, which = [], [], []
        side, fill = self.family.side(self.processor), self.family.fill(self.processor)
        for example in examples:
            named = isinstance(example.image, (str, PathLike))
            key = str(example.image) if named else id(example.image)
            if key not in known:
                known[key] = len(known)
                opened = open_image(example.image, name=None if named else f"the picture of {example.id}")
                picture, frame = fit_picture(opened, self.image_fit, side, fill)
                fitted.append(picture)
                frames.append(frame)
            which.append(known[key])
        if not examples:
            raise ValueError("no examples were given")
        try:
            return self.family.pictures(self.model, self.processor, fitted, frames), which
        except ValueError:
            self._check_processed(fitted, [examples[which.index(picture)] for picture in range(len(fitted))])
            raise

    def _check_processed(self, fitted: Sequence[Image.Image], shown: Sequence[Example]) -> None:
        """Raises ImageError naming the first of these examples whose picture the processor refuses."""
        for picture, example in zip(fitted, shown, strict=True):
            try:
                self.family.processed(self.processor, [picture])
            except ValueError as error:
                reason = f"{picture.width} x {picture.height} pixels are refused by the processor: {error}"
                raise ImageError(f"the picture of {example.id}", reason) from error

    def assemble(
        self,
        examples: Sequence[Example],
        pictures: Pictures,
        which: list[int],
        system: str | None = "default",
        answers: bool = False,
    ) -> Batch:
        """As `encode`, from processed pictures, and without the picture tensors."""
        placeholder, image_id = self.family.image_token(self.processor), self.family.image_token_id(self.model)
        marker = self.tokenizer.convert_tokens_to_ids(placeholder)
        spell = partial(self.family.spell, self.processor)
        prompts = [
            render(self.processor, placeholder, example, system, self.default_system, answers, spell) for example in examples
        ]
        encoded = self.tokenize([prompt.text for prompt in prompts])
        seen = [[token == image_id for token in expansion] for expansion in pictures.tokens]
        rows, layouts, most = [], [], self.max_tokens
        for example, ids, offsets, shown in zip(examples, *encoded, which, strict=True):
            before = ids.index(marker)
            row = ids[:before] + pictures.tokens[shown] + ids[before + 1 :]
            if len(row) > most:
                raise PromptError(f"example {example.id!r}: its prompt has {len(row)} tokens, the model has {most} positions")
            rows.append(row)
            layouts.append((offsets, ids[0] == self.tokenizer.bos_token_id, before, seen[shown]))
        length = max(map(len, rows))
        inputs = self.complete(rows, [pictures.grids[shown] for shown in which])
        spans = [
            find_spans(
                example.id, prompt, *layout, length - len(row), length, grid=pictures.grids[shown], frame=pictures.frames[shown]
            )
            for example, prompt, layout, row, shown in zip(examples, prompts, layouts, rows, which, strict=True)
        ]
        return Batch(inputs, spans, list(examples), list(which))

    def tokenize(self, texts: list[str]) -> tuple[list[list[int]], list[list[tuple[int, int]]]]:
        """Ids and offsets of each. They are of one template, which writes its bos before all of them or before none."""
        bos = self.tokenizer.bos_token
        own_bos = bos is not None and texts[0].startswith(bos)
        encoded = self.tokenizer(texts, add_special_tokens=not own_bos, return_offsets_mapping=True)
        return encoded["input_ids"], encoded["offset_mapping"]

    def complete(self, rows: list[list[int]], grids: list[tuple[int, int] | None]) -> dict[str, Tensor]:
        """Inputs of prompts of these tokens, left-padded. grids: of the pictures that they show, in order."""
        length = max(map(len, rows))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        inputs = {
            "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows]),
        }
        return self.to_device(self.family.complete(self.model, inputs, grids))

    def to_device(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inputs on the model's device, floating ones in its dtype."""
        return {
            name: value.to(self.device, self.dtype if value.is_floating_point() else None, non_blocking=True)
            for name, value in inputs.items()
        }

    # Running

    @contextmanager
    def running(self, batch: Batch) -> Iterator[None]:
        """While open, hooks know that the model runs this batch. `forward` and `generate` do it themselves."""
        before, self.batch = self.batch, batch
        try:
            yield
        finally:
            self.batch = before

    @contextmanager
    def reading_whole_prompts(self) -> Iterator[None]:
        """While open, prompts are run whole: `answers` shares no prefixes."""
        self.whole_prompts += 1
        try:
            yield
        finally:
            self.whole_prompts -= 1

    @torch.no_grad()  # not inference_mode: what is read may be trained on
    def forward(self, batch: Batch, **options: Any) -> Any:
        """The model's own outputs (`.logits`: [example, token, word]); options go to its forward."""
        with self.running(batch):
            return self.family.forward(self.model, batch.inputs, **{"use_cache": False, **options})

    @torch.no_grad()
    def generate(
        self, batch: Batch | Sequence[Example], max_new_tokens: int = 8, temperature: float = 0.0, seed: int = 0, **options: Any
    ) -> Int[Tensor, "example new_token"]:
        """Ids of the new tokens alone, padded after the end of each answer; greedy at temperature 0, else sampled with `seed`.

        batch: an encoded batch, or examples to encode with the default system prompt. options (`streamer`, `past_key_values`,
        ...) go to transformers' generate. Raises PromptError where prompt and new tokens exceed the model's positions.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature!r} is not 0 (the likeliest word) or a number above 0 (words are drawn)")
        check_seed(seed)
        if not isinstance(batch, Batch):
            batch = self.encode(batch)
        length = batch.input_ids.shape[1]
        lengths = batch.attention_mask.sum(-1).tolist()
        if (longest := max(lengths)) + max_new_tokens > self.max_tokens:
            name = batch.ids[lengths.index(longest)]
            asked = f"{longest} prompt tokens and {max_new_tokens} new ones"
            raise PromptError(f"example {name!r}: {asked} exceed the model's {self.max_tokens} positions")
        choice = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False, "temperature": None}
        choice |= {"top_p": None, "top_k": None, "pad_token_id": self._pad, "eos_token_id": self._ends}
        devices = [self.device] if self.device.type == "cuda" else []
        with self.running(batch), torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            tokens = self.family.generate(self.model, batch.inputs, max_new_tokens=max_new_tokens, **choice, **options)
        return tokens[:, length:]

    def decode(self, tokens: Int[Tensor, "example token"]) -> list[str]:
        """Words of generated tokens, without special ones."""
        return [text.strip() for text in self.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def answer_length(self, tokens: Int[Tensor, " new_token"]) -> int:
        """Tokens of one generated row up to its end, the end included."""
        ends = self._ends
        return next((n for n, token in enumerate(tokens.tolist(), 1) if token in ends), len(tokens))

    # What enters the language model

    @torch.no_grad()
    def vision_features(self, examples: Sequence[Example], batch_size: int = 64) -> list[Float[Tensor, "token width"]]:
        """What enters the language model for each example's picture, in raster order, interventions included.

        Needs no question.
        """
        chunks = batches(examples, batch_size)
        if self.by_row_interventions and len(examples) > batch_size:
            raise ValueError(f"one permutation per row holds for one batch: {len(examples)} examples, batch_size {batch_size}")
        features: list[Tensor] = []
        for chunk in chunks:
            pictures, which = self.pictures(chunk)
            inputs = self.to_device(self.family.repeat(pictures.inputs, which))
            with self.running(Batch(inputs, [], chunk, which)):
                features += self.family.image_features(self.model, inputs)
        return features

    def text_embeddings(self) -> Float[Tensor, "word width"]:
        """The input embedding of every token of the vocabulary; row `input_ids[i]` is what enters for a text token."""
        return self.model.get_input_embeddings().weight

    @property
    def _ends(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        ends = ends if ends is not None else self.tokenizer.eos_token_id
        return ends if isinstance(ends, list) else [ends]

    @property
    def _pad(self) -> int:
        return self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self._ends[0]
