"""Steering: adding a vector to the residual stream after a layer, or taking a direction out of it, at chosen tokens.

Opened by `intervene(vlm, steer=added(...))` or `steer=removed(...)`. Layers are those of `capture`: 0 is what enters the first
block, i the output of the i-th; a `capture` of the same layer reads the steered states, whichever was opened first. Knows where a
prompt ends in a forward, in `vlm.model.generate` with and without cache, and behind a shared prefix; in a plain
`vlm.model(...)`, what runs without a cache is taken for a whole prompt, and what continues one for what follows. Knows no probe.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import signature
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from spatialprobes.capture import At, checked_at, token_positions
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Vector = Tensor | np.ndarray | Sequence[float]  # [width]
Vectors = Vector | Mapping[str, Vector]  # one, [example, width], or one per Example.id or cluster
ALL = "all"
Change = Callable[..., Tensor]  # hidden states [token, width] and as many rows of each value -> the steered ones


@dataclass(frozen=True, eq=False)
class Steering:
    """What is done after a layer, and where. values: what `change` takes beside the hidden states, checked."""

    layer: int
    at: str | Tensor
    later: bool
    values: tuple[Tensor | dict[str, Tensor], ...]
    change: Change


def added(vectors: Vectors, layer: int, *, at: At = "last", later: bool = False) -> Steering:
    """Add a vector to the hidden states of `layer`.

    vectors: one [width] for all; one per row of the batch [example, width]; or a mapping from `Example.id`, else its cluster, to
    one, which also holds where examples are sorted and batched anew, as in `answers`.
    at: "last", the last token of the prompt; "all", every token of it; or as in `capture`: "word:<w>", a part, or indices [row]
    or [example, row] in the padded batch. later: also at every token after the prompt (decoded, or forced).
    Sums are made in float32 at least and returned in the model's dtype.
    Raises ValueError for a vector that is not of finite numbers, for what is no layer, and for `at` that names no tokens.
    """
    return Steering(_layer(layer), checked_at(at, (ALL,)), later, (_checked(vectors, "vectors"),), torch.add)


def removed(direction: Vectors, layer: int, *, centre: Vectors | None = None, at: At = "last", later: bool = False) -> Steering:
    """Take a direction out of the hidden states of `layer`: h - ((h - centre) . u) u, with u the direction at length 1.

    direction, at, later: as in `added`; a direction of any length but 0. centre: what h is measured from, 0 where none is given:
    what stays along u is the centre's own part.
    """
    units = _mapped(_checked(direction, "direction"), _unit)
    centres = torch.zeros(()) if centre is None else _checked(centre, "centre")
    return Steering(_layer(layer), checked_at(at, (ALL,)), later, (units, centres), project_out)


def project_out(
    hidden: Float[Tensor, "*token width"], unit: Float[Tensor, "*token width"], centre: Float[Tensor, "*token width"]
) -> Float[Tensor, "*token width"]:
    """h - ((h - centre) . unit) unit."""
    return hidden - ((hidden - centre) * unit).sum(-1, keepdim=True) * unit


def apply(
    steering: Steering, vlm: VLM, hidden: Float[Tensor, "token width"], examples: int, rows: Int[Tensor, " token"]
) -> Float[Tensor, "token width"]:
    """Hidden states of tokens, steered; rows: the row of the batch of `examples` that each is in.

    Raises ValueError where a row has no vector.
    """
    exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    values = [_for_rows(one, vlm, examples, rows).to(exact) for one in steering.values]
    return steering.change(exact, *values).to(hidden.dtype)


@contextmanager
def steered(vlm: VLM, steering: Steering) -> Iterator[None]:
    """While open, every run of the model is steered. Raises ValueError for a layer or width that the model lacks."""
    layers, width = vlm.n_layers, vlm.model.config.get_text_config().hidden_size
    if steering.layer > layers:
        raise ValueError(f"layer {steering.layer} is not there to be steered; the model has hidden layers 0 to {layers}")
    for values in steering.values:
        for vector in values.values() if isinstance(values, dict) else [values]:
            if vector.ndim and vector.shape[-1] != width:
                raise ValueError(f"a steering vector has {vector.shape[-1]} numbers; the model's hidden states have {width}")
    with ExitStack() as stack:
        if not isinstance(steering.at, str) or steering.at != "last":
            stack.enter_context(vlm.reading_whole_prompts())
        run = _Run(vlm, steering)
        stack.enter_context(run.following())
        stack.enter_context(vlm.family.edit_hidden(vlm.model, steering.layer, run.edit))
        yield


class Places:
    """The run of the model that is under way: which of its tokens are meant by `at` and `later`, as in `added`."""

    def __init__(self, vlm: VLM, at: str | Tensor, later: bool):
        self.vlm, self.at, self.later = vlm, at, later
        self.prompts: list[int] = []
        self.seen = 0  # tokens of the latest prompt, where generate does not tell
        self.examples = self.held = 0
        self.chosen = torch.zeros(0, 0, dtype=torch.bool)  # of this call's tokens, [example, token]

    @contextmanager
    def following(self) -> Iterator[None]:
        """While open, every run of the model is followed."""
        with _knowing_prompts(self.vlm.model) as self.prompts:
            handle = self.vlm.family.decoder(self.vlm.model).register_forward_pre_hook(self.start, with_kwargs=True)
            try:
                yield
            finally:
                handle.remove()

    def start(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self.examples, new, self.held = self.vlm.family.decoder_call(args, kwargs)
        if self.held == (self.vlm.batch.held if self.vlm.batch is not None else 0):
            self.seen = self.held + new
        self.chosen = self._tokens(self.held, self.held + new)[:, self.held :]

    def _tokens(self, held: int, tokens: int) -> Bool[Tensor, "example token"]:
        """Which tokens are steered, of those in the cache and of this call."""
        last, at = self._last(held, tokens)[:, None], self.at
        places = torch.arange(tokens)
        chosen = places > last if self.later else torch.zeros(self.examples, tokens, dtype=torch.bool)
        if isinstance(at, str) and at in ("last", ALL):
            return chosen | (places <= last if at == ALL else places == last)
        if self.vlm.batch is not None and not self.vlm.batch.spans:
            raise ValueError(f"at={at!r} needs whole prompts; a shared prefix is run apart")
        prompt = self.prompts[-1] if self.prompts else self.seen
        if prompt == 0:  # a cache is continued of whose prompt nothing is known
            return chosen
        found = token_positions(self.vlm, at, self.examples, prompt)
        return chosen | (places == found[..., None]).any(1)

    def _last(self, held: int, tokens: int) -> Int[Tensor, " example"]:
        """The last token of each prompt; beyond all tokens where this is a part of the prompt that others will end."""
        batch = self.vlm.batch
        if self.prompts:
            return torch.full((self.examples,), self.prompts[-1] - 1)
        if batch is None:
            return torch.full((self.examples,), self.seen - 1)
        if not batch.spans:
            return torch.full((self.examples,), tokens)
        if len(batch) != self.examples:
            raise ValueError(f"interventions: {self.examples} rows are run where the batch has {len(batch)}")
        return torch.tensor([(int(one.answer[0]) if len(one.answer) else one.length) - 1 for one in batch.spans])


class _Run(Places):
    """Steers the tokens that are meant."""

    def __init__(self, vlm: VLM, steering: Steering):
        super().__init__(vlm, steering.at, steering.later)
        self.steering = steering

    def start(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        super().start(module, args, kwargs)
        self.rows, self.columns = self.chosen.nonzero(as_tuple=True)

    def edit(self, hidden: Float[Tensor, "example token width"]) -> Float[Tensor, "example token width"]:
        if not len(self.rows):
            return hidden
        where = self.rows.to(hidden.device), self.columns.to(hidden.device)
        changed = hidden.clone()
        changed[where] = apply(self.steering, self.vlm, hidden[where], self.examples, self.rows)
        return changed


@contextmanager
def _knowing_prompts(model: nn.Module) -> Iterator[list[int]]:
    """While open, the list holds the number of prompt tokens while `model.generate` runs, and nothing else.

    Without a cache, generate runs prompt and new tokens as one call of the decoder: only it knows where the prompt ended.
    """
    kept = model.__dict__.get("_prompts")
    if kept is None:
        original, prompts = model.generate, []

        @functools.wraps(original)
        def generate(*args: Any, **kwargs: Any) -> Any:
            given = signature(original).bind(*args, **kwargs).arguments
            named = {**given, **given.get("kwargs", {})}
            ids = next((named[name] for name in ("inputs", "input_ids", "inputs_embeds") if named.get(name) is not None), None)
            if ids is None:
                raise ValueError("steering: generate was given neither inputs, nor input_ids, nor inputs_embeds")
            prompts.append(ids.shape[1])
            try:
                return original(*args, **kwargs)
            finally:
                prompts.pop()

        kept = model.__dict__["_prompts"] = (prompts, [])
        model.__dict__["generate"] = generate
    prompts, users = kept
    users.append(None)
    try:
        yield prompts
    finally:
        users.pop()
        if not users:
            del model.__dict__["_prompts"], model.__dict__["generate"]


def _for_rows(values: Tensor | dict[str, Tensor], vlm: VLM, examples: int, rows: Int[Tensor, " token"]) -> Tensor:
    """The value of each of these rows of the batch, [token, width], or one for all."""
    if isinstance(values, dict):
        return torch.stack(_by_name(values, vlm, examples))[rows]
    if values.ndim < 2:
        return values
    if len(values) != examples:
        raise ValueError(f"{len(values)} steering vectors for a batch of {examples} rows; give one, or one per row")
    return values[rows]


def _by_name(values: dict[str, Tensor], vlm: VLM, examples: int) -> list[Tensor]:
    if vlm.batch is None:
        raise ValueError("steering by id needs the batch: run by vlm.forward, vlm.generate or `with vlm.running(batch)`")
    if len(vlm.batch) != examples:
        raise ValueError(f"steering by id: {examples} rows are run where the batch has {len(vlm.batch)}")
    found = [values.get(one.id, values.get(one.cluster)) for one in vlm.batch.examples]
    if lacking := [one.id for one, vector in zip(vlm.batch.examples, found, strict=True) if vector is None]:
        raise ValueError(f"no steering vector for example {lacking[0]!r} or its cluster ({len(lacking)} of {examples} lack one)")
    return found


def _layer(layer: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, Integral) or layer < 0:
        raise ValueError(f"layer={layer!r} cannot be steered; a number from 0, what enters the first block, to that of the last")
    return int(layer)


def _mapped(values: Tensor | dict[str, Tensor], function: Callable[[Tensor], Tensor]) -> Tensor | dict[str, Tensor]:
    return {name: function(one) for name, one in values.items()} if isinstance(values, dict) else function(values)


def _unit(direction: Float[Tensor, "*example width"]) -> Float[Tensor, "*example width"]:
    lengths = direction.double().norm(dim=-1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise ValueError("direction: a vector of length 0 points nowhere")
    return (direction.double() / lengths).float()


def _checked(values: Vectors, name: str) -> Tensor | dict[str, Tensor]:
    if isinstance(values, Mapping):
        if not values:
            raise ValueError(f"{name}: an empty mapping steers nothing")
        return {key: _numbers(one, f"{name}[{key!r}]", (1,)) for key, one in values.items()}
    return _numbers(values, name, (1, 2))


def _numbers(values: Vector, name: str, dimensions: tuple[int, ...]) -> Tensor:
    legal = f"{name}: finite numbers [width]" + (" or [example, width]" if 2 in dimensions else "")
    try:
        tensor = torch.as_tensor(values if isinstance(values, Tensor) else np.asarray(values))
    except (TypeError, ValueError) as error:  # of objects, of rows of unequal length
        raise ValueError(f"{legal}, not {values!r:.60}") from error
    if tensor.ndim not in dimensions or not tensor.numel() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{legal}, not {tensor.dtype} of shape {tuple(tensor.shape)}")
    tensor = tensor.detach().to("cpu", torch.float32)
    if wrong := int((~tensor.isfinite()).sum()):
        raise ValueError(f"{legal}; {wrong} of {tensor.numel()} are NaN or infinite")
    return tensor
