"""Reading a model while it runs: hidden states, attention rows, queries and keys, connector input and output, where asked.

Nothing full-size is kept: hooks slice positions before they copy, attention rows are computed from queries and keys beside
SDPA. Logits do not change by a bit. Knows no family (`families/`) and writes nothing (`intervene.py`).

Layers of hidden states: 0 is what enters the first block (the embeddings, vision features among them), i is the output of the
i-th block, so the last, L, is BEFORE the final norm; "norm" is after it (what transformers calls hidden_states[L]). Layers of
attention rows count blocks from 0, so rows of block i - 1 went into hidden state i.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from spatialprobes.families import TowerRun
from spatialprobes.rows import added_rows, chosen_rows
from spatialprobes.rows import attention_rows as rows_of
from spatialprobes.spans import PARTS, Spans
from spatialprobes.tower_rows import TowerRows
from spatialprobes.vlm import VLM

if TYPE_CHECKING:
    from jaxtyping import Float, Int

VERSION = 1  # of what is captured; part of a store's fingerprint: raise it when values change
At = str | Tensor | Sequence  # "last", "word:<w>", a part, or token indices [row] or [example, row]
Visit = Callable[[int, Tensor, Tensor, Tensor, float], None]
Layers = Sequence[int | str] | int | str | None  # one, several, or "all"


@contextmanager
def capture(
    vlm: VLM,
    hidden: Layers = None,
    at: At = "last",
    attention_rows: Layers = None,
    tower_rows: Layers = None,
    tower_at: Literal["all"] | Sequence[int] | Sequence[Sequence[int]] = "all",
    connector: Literal["pre_norm", "post_norm"] | None = None,
    queries_keys: Layers = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
    visit: Visit | None = None,
) -> Iterator[Captured]:
    """While open, every run of the model leaves what was asked for in `got`; afterwards nothing stays hooked.

    hidden: layers, "all" (0..L), or several with "norm" among them. attention_rows: blocks of the language model, or "all" (those
    that have attention). at: the tokens of both: "last"; "word:<w>", every sub-token of a word of the question; "vision", "user"
    or another part of the prompt; or token indices [row] or [example, row] in the padded batch (negative from its end).
    tower_rows: blocks of the vision tower; tower_at: its rows, by index among the tokens of a picture (a class token is 0, then
    the patches in raster order), or one list of them a picture. `tower_rows.merge_rows` brings them to the vision tokens' grid.
    connector: its input and output; the input as the tower leaves it ("pre_norm"), or after the norm that stands before the
    connector's weights ("post_norm").
    queries_keys: blocks of the language model, or "all" (those that have attention): queries of the tokens `at`, keys of all
    tokens, after the rotary embedding, and what is needed to score them.
    visit: is given block, queries, keys, masks and scaling (see `Step`) as each layer runs, where they lie; then none is kept.
    reduce: what is kept of hidden states [example, row, width] instead of themselves, such as their norms; made where they lie.
    `at` by word or part needs to know the batch: run by `vlm.forward` or `vlm.generate`. In generate, the prompt and every
    decoded token are a step each (`got.steps`); later steps hold "last" alone. Prompts that go on from the cache of a prefix
    (`prefix.prefill`) are read behind it, at indices of the batch that `prefill` returns. Tensors are on the CPU, in the model's
    dtype (rows: float32).
    Raises ValueError for a layer that is not there, and, once the model runs, KeyError for a word that is not in a question.
    """
    plan = _Plan(vlm, hidden, at, attention_rows, tower_rows, tower_at, connector, queries_keys, reduce, visit)
    got = Captured()
    with ExitStack() as stack:
        stack.enter_context(vlm.reading_whole_prompts())
        plan.attach(got, stack)
        yield got


@dataclass
class Step:
    """What one run of the model left.

    positions: [example, row], token indices in the padded batch, -1 where an example has fewer rows (its values are NaN).
    hidden: by layer, [example, row, width]. rows: by block, [example, head, row, key]. tower_rows: by block, one [head, row, key]
    per picture, keys in the order of tower_at's rows, 0 outside a window. tower: the grids that these rows are of.
    connector_input, connector_output: one [token, width] per picture, cells in raster order (where several patches become one
    vision token their rows stand together, row by row).
    queries, keys: by block, after the rotary embedding; keys of all tokens so far, padding included, one for several heads where
    queries are grouped (head h reads key head h // (heads / kv_heads)). Scores are queries @ keys^T * scaling + masks, where
    masks is 0 for a key that may be seen and the least float for one that may not.
    """

    positions: Int[Tensor, "example row"] | None = None
    hidden: dict[int | str, Float[Tensor, "example row width"]] = field(default_factory=dict)
    rows: dict[int, Float[Tensor, "example head row key"]] = field(default_factory=dict)
    tower_rows: dict[int, list[Float[Tensor, "head row key"]]] = field(default_factory=dict)
    tower: TowerRun | None = None
    queries: dict[int, Float[Tensor, "example head row size"]] = field(default_factory=dict)
    keys: dict[int, Float[Tensor, "example kv_head key size"]] = field(default_factory=dict)
    masks: dict[int, Float[Tensor, "example row key"]] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)
    connector_input: list[Float[Tensor, "token width"]] = field(default_factory=list)
    connector_output: list[Float[Tensor, "token width"]] = field(default_factory=list)


@dataclass
class Captured:
    """steps: one per run of the language model, oldest first. The attributes of `Step` are those of the latest whole prompt."""

    steps: list[Step] = field(default_factory=list)
    prompt: Step | None = None

    def __getattr__(self, name: str) -> Any:
        if name not in Step.__dataclass_fields__:
            raise AttributeError(name)
        if self.prompt is None:
            raise AttributeError(f"{name}: nothing was captured yet; run the model inside the with block")
        return getattr(self.prompt, name)


class _Plan:
    """What to read, checked against the model; `attach` puts the hooks on."""

    def __init__(
        self,
        vlm: VLM,
        hidden: Layers,
        at: At,
        attention: Layers,
        tower: Layers,
        tower_at: Any,
        connector: str | None,
        queries_keys: Layers,
        reduce: Callable[[Tensor], Tensor] | None,
        visit: Visit | None,
    ):
        family, model = vlm.family, vlm.model
        self.vlm, self.tower_at, self.connector, self.reduce, self.visit = vlm, tower_at, connector, reduce, visit
        self.layers = family.part(model, "layers")
        self.hidden = _chosen(hidden, range(len(self.layers) + 1), "hidden layer", extra=("norm",))
        with_attention = [i for i, layer in enumerate(self.layers) if family.attention(layer) is not None]
        without = set(range(len(self.layers))) - set(with_attention)
        self.attention = _chosen(attention, with_attention, "layer with attention", without=without)
        self.queries_keys = _chosen(queries_keys, with_attention, "layer with attention", without=without)
        self.tower_layers = family.part(model, "tower_layers") if tower is not None else []
        self.tower = _chosen(tower, range(len(self.tower_layers)), "tower layer")
        if visit is not None and not self.queries_keys:
            raise ValueError("visit is given queries and keys: say of which layers (queries_keys)")
        if connector not in (None, "pre_norm", "post_norm"):
            raise ValueError(f"connector={connector!r} is unknown; 'pre_norm' or 'post_norm'")
        self.at = checked_at(at)
        if tower_at != "all" and (isinstance(tower_at, str) or tower_at is None or not len(tower_at)):
            raise ValueError(f"tower_at={tower_at!r} names no row of the tower; 'all', or their indices")
        if not (self.hidden or self.attention or self.queries_keys or self.tower or connector):
            raise ValueError("capture was given nothing to read: hidden, attention_rows, queries_keys, tower_rows or connector")

    def attach(self, got: Captured, stack: ExitStack) -> None:
        """Put the hooks on; the stack takes them off."""
        family, model = self.vlm.family, self.vlm.model
        run = _Run(self, got)

        def hook(module: nn.Module, read: Callable[[Tensor, Any], None]) -> None:
            def call(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
                read(args[0] if args else next(iter(kwargs.values())), output)

            stack.callback(module.register_forward_hook(call, with_kwargs=True).remove)

        decoder = family.decoder(model)
        stack.callback(decoder.register_forward_pre_hook(run.start, with_kwargs=True).remove)
        stack.callback(decoder.register_forward_hook(run.finish).remove)
        for layer in self.hidden:
            if layer == 0:
                hook(self.layers[0], lambda entering, _: run.keep_hidden(0, entering))
            elif layer == "norm":
                hook(family.part(model, "final_norm"), lambda _, output: run.keep_hidden("norm", output))
            else:
                hook(self.layers[layer - 1], lambda _, output, layer=layer: run.keep_hidden(layer, family.hidden(output)))
        if self.attention:
            observers = {family.attention(self.layers[i]): partial(run.keep_rows, i) for i in self.attention}
            stack.enter_context(family.observe_attention(model, "text", observers))
        if self.queries_keys:
            observers = {family.attention(self.layers[i]): partial(run.keep_queries_keys, i) for i in self.queries_keys}
            stack.enter_context(family.observe_attention(model, "text", observers))
        if self.tower or self.connector:
            stack.callback(family.part(model, "tower").register_forward_pre_hook(run.start_tower, with_kwargs=True).remove)
        if self.tower:
            observers = {family.attention(self.tower_layers[i]): partial(run.keep_tower_rows, i) for i in self.tower}
            stack.enter_context(family.observe_attention(model, "vision", observers))
        if self.connector:
            module, take = family.connector_reading(model, self.connector)
            hook(module, lambda entering, output: run.keep_connector("input", take(entering, output)))
            hook(family.part(model, "connector"), lambda _, output: run.keep_connector("output", output))


class _Run:
    """The run of the model that is under way: which tokens of it are read, and where they go."""

    def __init__(self, plan: _Plan, got: Captured):
        self.plan, self.got = plan, got
        self.step = Step()
        self.pictures: Step | None = None  # of a tower that ran, before its language model does
        self.tower: dict[int, TowerRows] = {}  # of the tower that runs, by block
        self.prompt: Tensor | None = None  # positions read, in the padded prompt
        self.local: Tensor | None = None  # the same within this call, None where it has none of them

    def start(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        examples, tokens, held = self.plan.vlm.family.decoder_call(args, kwargs)
        batch = self.plan.vlm.batch
        begins = held == (batch.held if batch is not None else 0)
        if isinstance(self.plan.at, str) and self.plan.at == "last":
            positions = torch.full((examples, 1), held + tokens - 1)
        elif begins:
            positions = self.prompt = token_positions(self.plan.vlm, self.plan.at, examples, held + tokens)
            if before := positions[(positions >= 0) & (positions < held)].tolist():
                raise ValueError(f"at: token {before[0]} is one of a prefix of {held} that was run before; run prompts whole")
        else:
            positions = self.prompt if self.prompt is not None and len(self.prompt) == examples else torch.full((examples, 1), -1)
        local = torch.where((positions >= held) & (positions < held + tokens), positions - held, -1)
        plan = self.plan
        reads = bool(plan.hidden or plan.attention or plan.queries_keys) and bool((local >= 0).any())
        self.local = local.to(self.plan.vlm.device) if reads else None
        self.step, self.pictures = self.pictures or Step(), None
        self.step.positions = torch.where(local >= 0, positions, -1) if reads else None
        if begins:
            self.got.prompt = self.step

    def finish(self, module: nn.Module, args: tuple, output: Any) -> None:
        step = self.step
        for name in ("hidden", "rows", "queries", "keys", "masks"):
            setattr(step, name, {layer: values.to("cpu", non_blocking=True) for layer, values in getattr(step, name).items()})
        if self.plan.vlm.device.type == "cuda":
            torch.cuda.synchronize(self.plan.vlm.device)
        if step.hidden or step.rows or step.keys or step.connector_output or step.tower_rows:
            self.got.steps.append(step)

    def keep_hidden(self, layer: int | str, hidden: Float[Tensor, "example token width"]) -> None:
        if self.local is None:
            return
        index = self.local.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[-1])
        kept = hidden.gather(1, index).masked_fill((self.local < 0)[..., None], torch.nan)
        self.step.hidden[layer] = kept if self.plan.reduce is None else self.plan.reduce(kept)

    def keep_rows(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, causal: bool) -> None:
        if self.local is not None:
            self.step.rows[layer] = rows_of(query, key, mask, scaling, causal, self.local)

    def keep_queries_keys(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, causal: bool
    ) -> None:
        if self.local is None:
            return
        absent = self.local < 0
        queries = chosen_rows(query, self.local).masked_fill(absent[:, None, :, None], torch.nan)
        masks = added_rows(mask, causal, self.local, query.shape[2], key.shape[2]).masked_fill(absent[..., None], torch.nan)
        if self.plan.visit is not None:
            self.plan.visit(layer, queries, key, masks, scaling)
            return
        step = self.step
        step.queries[layer], step.keys[layer], step.masks[layer], step.scaling[layer] = queries, key.detach(), masks, scaling

    def start_tower(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        vlm = self.plan.vlm
        run = vlm.family.tower_run(vlm.model, args, kwargs)
        self.pictures = self.got.prompt = Step(tower=run)
        if run is None and self.plan.tower:
            raise ValueError(f"tower_rows: which patch each token of the tower is, is not known of {vlm.family.model_type!r}")
        self.tower = {layer: TowerRows(run, layer, self.plan.tower_at) for layer in self.plan.tower}

    def keep_tower_rows(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, causal: bool) -> None:
        rows = self.tower[layer]
        rows.add(query, key, mask, scaling, causal)
        self.pictures.tower_rows[layer] = rows.pictures

    def keep_connector(self, side: Literal["input", "output"], tokens: Tensor) -> None:
        vlm, step = self.plan.vlm, self.pictures
        found = vlm.family.connector_tokens(vlm.model, tokens, step.tower, side)
        setattr(step, f"connector_{side}", [one.cpu() for one in found])


def checked_at(at: At, extra: tuple[str, ...] = ()) -> str | Int[Tensor, "*example row"]:
    """`at` as `token_positions` takes it. extra: other names that are legal. Raises ValueError for what names no tokens."""
    if not isinstance(at, str):
        return _indices(at)
    if at not in ("last", *extra, *PARTS) and not at.startswith("word:"):
        named = ", ".join(map(repr, ("last", *extra, "word:<w>", *PARTS)))
        raise ValueError(f"at={at!r} is unknown; {named}, or token indices")
    return at


def token_positions(vlm: VLM, at: str | Tensor, examples: int, tokens: int) -> Int[Tensor, "example row"]:
    """Token indices in the padded batch, -1 where an example has fewer; `tokens` of the prompt. at: checked; not "last".

    Raises ValueError for indices outside the batch and where a name needs a batch that is not known.
    """
    if isinstance(at, str):
        if vlm.batch is None or not vlm.batch.spans:
            raise ValueError(f"at={at!r} needs the batch: run by vlm.forward, vlm.generate or `with vlm.running(batch)`")
        found = [_of(spans, at) for spans in vlm.batch.spans]
        made = torch.full((len(found), max(1, *map(len, found))), -1)
        for row, index in zip(made, found, strict=True):
            row[: len(index)] = index
    else:
        made = at.long().cpu()
        if outside := made[(made < -tokens) | (made >= tokens)].tolist():
            raise ValueError(f"at: token index {outside[0]} is outside a batch of {tokens} tokens")
        made = torch.where(made < 0, made + tokens, made)
        made = made if made.ndim == 2 else made.expand(examples, -1)
    if len(made) != examples:
        raise ValueError(f"at: positions of {len(made)} examples for a batch of {examples}")
    return made


def _of(spans: Spans, at: str) -> Int[Tensor, " token"]:
    return spans.word(at.removeprefix("word:")) if at.startswith("word:") else spans.parts()[at]


def _indices(at: Tensor | Sequence) -> Int[Tensor, "*example row"]:
    legal = "at: token indices are whole numbers [row] or [example, row]"
    try:
        found = torch.as_tensor(at)
    except (TypeError, ValueError, RuntimeError) as error:  # what they raise differs with what is wrong
        raise ValueError(f"{legal}, as many for every example, not {at!r}") from error
    if found.ndim not in (1, 2) or found.is_floating_point() or found.dtype == torch.bool or not found.numel():
        raise ValueError(f"{legal}, not {found.dtype} {tuple(found.shape)}")
    return found


def _chosen(
    asked: Layers, legal: Sequence[int], what: str, extra: tuple[str, ...] = (), without: Collection[int] = ()
) -> list[int | str]:
    """The layers asked for. without: those whose attention is linear, and so without a map, queries and keys to read."""
    if asked is None:
        return []
    if isinstance(asked, str) and asked == "all":
        if not legal:
            raise ValueError(f"this model has no {what}")
        return list(legal)
    layers = [asked] if isinstance(asked, (Real, str)) else list(asked)
    for layer in layers:
        if layer in without and not isinstance(layer, bool):
            named = ", ".join(map(str, legal)) or "none"
            raise ValueError(f"layer {layer} has no attention map, its attention is linear; layers with one: {named}")
        if layer not in extra and (isinstance(layer, bool) or not isinstance(layer, Integral) or layer not in legal):
            named = ", ".join(map(repr, ("all", *extra)))
            raise ValueError(f"{what} {layer!r} is not there; {', '.join(map(str, legal))}, or {named}")
    return list(dict.fromkeys(layer if isinstance(layer, str) else int(layer) for layer in layers))
