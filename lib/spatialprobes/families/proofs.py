"""What proves the parts of a discovered family: a small picture, run through the model, with hooks on what was found.

Each proof tells the family what it showed (`confirm`), or why a part cannot be relied on (`refuse`). What nothing works without,
the encoding, the features and the layers, raises NotDiscovered instead. Knows `VLM` by what it does alone: encode, forward,
generate, vision_features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from spatialprobes.families.attention import observed_attention
from spatialprobes.families.discovery import Discovered, NotDiscovered
from spatialprobes.families.head_proof import prove_heads
from spatialprobes.families.painting import QUESTION, hooks, probe_example, prove_grids

if TYPE_CHECKING:
    from jaxtyping import Float

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}  # of the largest value
QUANTISED = 5e-2  # the same where weights are quantised


def prove(vlm: Any) -> None:
    """Prove the parts of `vlm.family`, a `Discovered`, and print what was found and what was refused.

    Raises NotDiscovered where what everything rests on does not hold.
    """
    try:
        _prove(vlm)
    except NotDiscovered:
        raise
    except Exception as error:  # a foreign model may fail in its own ways
        raise NotDiscovered(f"running it failed: {type(error).__name__}: {error}") from error
    print(vlm.family.report())


@torch.no_grad()
def _prove(vlm: Any) -> None:
    _encoding(vlm)
    _features(vlm)
    _layers(vlm)
    _attention(vlm, "text", "layers")
    prove_heads(vlm)
    _padding(vlm)
    _tower(vlm)
    if "tower_layers" not in vlm.family.refused:
        _attention(vlm, "vision", "tower_layers")
    _connector(vlm)
    prove_grids(vlm)


# What everything rests on


def _encoding(vlm: Any) -> None:
    """Prompts are encoded as the processor does it, and run as the model itself would run them."""
    family, example = vlm.family, probe_example()
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": example.question}]}]
    text = vlm.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    begins = vlm.tokenizer.bos_token is not None and text.startswith(vlm.tokenizer.bos_token)
    own = vlm.processor(images=[[example.image]], text=[text], return_tensors="pt", add_special_tokens=not begins)
    image = own["input_ids"] == family.image_token_id(vlm.model)
    types = [name for name in ("token_type_ids", "mm_token_type_ids") if name in own]
    if types and not torch.equal(own[types[0]].bool(), image):
        raise NotDiscovered(f"{types[0]} tells more than which tokens are the picture's")
    family.token_types = types[0] if types else None
    batch = vlm.encode([example])
    if not torch.equal(batch.input_ids.cpu(), own["input_ids"]):
        raise NotDiscovered("the processor writes the tokens of a picture otherwise within a prompt than alone")
    want = vlm.model(**vlm.to_device(own), use_cache=False).logits
    for family.counts_positions in (True, False):
        if _close(vlm, vlm.forward(vlm.encode([example])).logits, want):
            break
    else:
        raise NotDiscovered("the model's answer to an encoded prompt differs from that to its own processor's")
    spelled, n = family.image_token(vlm.processor), len(batch.spans[0].vision)
    where = f"{spelled!r} becomes {n} tokens {family.image_token_id(vlm.model)}"
    family.confirm("image token", "prompts and logits equal the processor's own", where)
    if family.counts_positions:
        family.confirm("positions", "give the same answer as the model's own", "counted from 0")
    else:
        family.refuse("positions", "those counted from 0 are not the model's own, which it is left to make")


def _features(vlm: Any) -> None:
    """What get_image_features gives is what enters at the image tokens, and nothing else carries the picture."""
    family = vlm.family
    owners = [name for name, module in vlm.model.named_modules() if hasattr(module, "get_image_features")]
    if not owners:
        raise NotDiscovered(f"{type(vlm.model).__name__} has no get_image_features")
    family.image_owner = max(owners, key=lambda name: name.count(".") + bool(name))
    batch, other = (vlm.encode([probe_example(seed)]) for seed in (0, 1))
    entering: dict[str, Any] = {}
    with hooks([(family.decoder(vlm.model), lambda args, kwargs, _: entering.update(kwargs))]):
        plain = vlm.forward(batch).logits
    features, place = _own_features(vlm, batch), batch.spans[0].vision
    embedded = entering.get("inputs_embeds")
    if embedded is None or family.decoder_call((), entering) != (*embedded.shape[:2], 0):
        raise NotDiscovered("the language model is not called with inputs_embeds")
    if len(features) != 1 or features[0].shape != (len(place), embedded.shape[-1]):
        shapes = ", ".join(str(tuple(one.shape)) for one in features) or "none"
        raise NotDiscovered(f"one picture has {len(place)} image tokens of width {embedded.shape[-1]}, its features are {shapes}")
    if not _close(vlm, features[0], embedded[0, place]):
        raise NotDiscovered("what enters at the image tokens is not what get_image_features gives")
    if _close(vlm, features[0].flip(0), features[0]):
        raise NotDiscovered("all parts of a picture have the same features, so that nothing can be told by them")
    calls = []

    def replace(given: list[Tensor]) -> list[Tensor]:
        calls.append(len(given))
        return [features[0].flip(0)]

    with family.edit_image_features(vlm.model, replace):
        edited = [vlm.forward(one).logits for one in (batch, other)]
        made = [_first_logits(vlm, one) for one in (batch, other)]
    if len(calls) != 4 or _close(vlm, edited[0], plain):
        raise NotDiscovered("edited image features do not reach the language model, in forward and in generate")
    if not (_close(vlm, edited[0], edited[1]) and all(_close(vlm, one, edited[0][:, -1]) for one in made)):
        raise NotDiscovered("the picture reaches the language model also past its image tokens, perhaps at deeper layers")
    family.confirm(
        "image features",
        "enter at the image tokens, and nothing else carries the picture",
        f"{family.image_owner}.get_image_features".lstrip("."),
        "the innermost one",
    )


def _layers(vlm: Any) -> None:
    """Hooks on the layers see the model's own hidden states, and what they write changes what comes after."""
    family, batch = vlm.family, vlm.encode([probe_example()])
    layers = family.part(vlm.model, "layers")
    into, out = {}, {}
    reads = [(layer, _keep(into, out, i, family)) for i, layer in enumerate(layers)]
    if "final_norm" not in family.refused:
        reads.append((family.part(vlm.model, "final_norm"), _keep(into, out, "norm", family)))
    with hooks(reads):
        outputs = vlm.forward(batch, output_hidden_states=True)
    own, last = outputs.hidden_states, len(layers) - 1
    same = own is not None and len(own) == len(layers) + 1 and len(into) == len(reads)
    if not (same and _close(vlm, into[0], own[0]) and all(_close(vlm, out[i], own[i + 1]) for i in range(last))):
        raise NotDiscovered("hooks on the layers that were found do not see the model's own hidden states")
    turned = [(layers[0], lambda args, kwargs, output: family.replace_hidden(output, family.hidden(output).flip(-1)))]
    with hooks(turned):
        if _close(vlm, vlm.forward(batch).logits, outputs.logits):
            raise NotDiscovered("what is written into a layer does not change the answer")
    family.confirm("layers", "hooks see its hidden states, writing changes its answer")
    if "final_norm" in family.refused:
        return
    if _close(vlm, into["norm"], out[last]) and _close(vlm, out["norm"], own[-1]):
        family.confirm("final_norm", "takes the last layer's output, gives the last hidden states")
    else:
        family.refuse("final_norm", "it does not stand between the last layer and the last hidden states")


# Parts that may be refused


def _attention(vlm: Any, part: str, layers: str) -> None:
    """Rows made of the queries and keys that are seen beside SDPA equal the maps of eager attention."""
    family, name, batch = vlm.family, f"attention ({part})", vlm.encode([probe_example()])
    blocks = family.part(vlm.model, layers)
    seen: dict[nn.Module, tuple] = {}
    within = {module: block for block in blocks for module in block.modules()}
    watch = {module: (lambda *found, module=module: seen.setdefault(module, found)) for module in within}
    eager: dict[nn.Module, Tensor] = {}
    config = family.parts[part]
    try:
        with observed_attention(vlm.model, config, watch):
            vlm.forward(batch)
        vlm.model.set_attn_implementation({config: "eager"})
        with hooks([(module, _keep_map(eager, module)) for module in seen]):
            vlm.forward(batch)
    except (ValueError, AttributeError) as error:
        return family.refuse(name, " ".join(str(error).split())[:200])
    finally:
        vlm.model.set_attn_implementation({config: "sdpa"})
    paths = {next(path for path, found in within[module].named_modules() if found is module) for module in seen}
    if len(paths) != 1:
        return family.refuse(name, f"{len(paths)} places in a block run SDPA ({', '.join(sorted(paths))})")
    family.attention_names[part] = paths.pop()
    right = [module for module in eager if _close(vlm, _two_rows(*seen[module]), eager[module])]
    if len(right) < len(seen):
        return family.refuse(
            name, f"rows from queries and keys equal those of eager attention in {len(right)} of {len(seen)} blocks"
        )
    what = f"rows equal those of eager attention in {len(seen)} of {len(blocks)} blocks"
    family.confirm(name, what, f"{getattr(family, layers)}.*.{family.attention_names[part]}", "what runs SDPA")


def _padding(vlm: Any) -> None:
    """In a padded batch of two pictures each row answers as it does alone."""
    family, pair = vlm.family, [probe_example(0, f"{QUESTION} {QUESTION}"), probe_example(1)]
    family.pads = True
    together = vlm.forward(vlm.encode(pair)).logits[:, -1]
    alone = [vlm.forward(vlm.encode([one])).logits[0, -1] for one in pair]
    family.pads = all(_close(vlm, row, one) for row, one in zip(together, alone, strict=True))
    if family.pads:
        family.confirm("padding", "rows of a padded batch equal the rows alone", "on the left")
    else:
        family.refuse("padding", "rows of a padded batch differ from the rows alone; use a batch size of 1")


def _tower(vlm: Any) -> None:
    """The tower's blocks run once a picture, each on what the one before gave."""
    family = vlm.family
    if "tower_layers" in family.refused:
        return
    blocks = family.part(vlm.model, "tower_layers")
    into, out = {}, {}
    with hooks([(block, _keep(into, out, i, family)) for i, block in enumerate(blocks)]):
        vlm.vision_features([probe_example()])
    if len(out) == len(blocks) and all(torch.equal(out[i - 1], into[i]) for i in range(1, len(blocks))):
        family.confirm("tower_layers", "each takes what the one before gave")
    else:
        family.refuse("tower_layers", f"{len(out)} of {len(blocks)} blocks ran, or not one after the other")


def _connector(vlm: Any) -> None:
    """The connector's output is the image features; its input is traced back to the tower's residual stream."""
    family = vlm.family
    if "connector" in family.refused or "tower_layers" in family.refused:
        for site in ("pre_norm", "post_norm", *["connector"] * ("connector" not in family.refused)):
            family.refuse(site, "tower and connector are not both known")
        return
    batch = vlm.encode([probe_example(seed) for seed in (0, 1)]) if family.pads else vlm.encode([probe_example()])
    features, into, out = _own_features(vlm, batch), {}, {}
    reads = [(family.part(vlm.model, "connector"), _keep(into, out, "connector", family))]
    reads += [(block, _keep(into, out, i, family)) for i, block in enumerate(family.part(vlm.model, "tower_layers"))]
    tower = family.part(vlm.model, "tower")
    norms = {name: module for name, module in tower.named_children() if "norm" in type(module).__name__.lower()}
    reads += [(module, _keep(into, out, name, family)) for name, module in norms.items()]
    with hooks(reads):
        _own_features(vlm, batch)
    given = list(out["connector"])
    shapes = [[tuple(one.shape) for one in found] for found in (given, features)]
    if shapes[0] != shapes[1] or not all(_close(vlm, a, b) for a, b in zip(given, features, strict=True)):
        for part in ("connector", "pre_norm", "post_norm"):
            family.refuse(part, "what it gives is not, picture by picture, what enters the language model")
        return
    family.confirm("connector", "gives what enters the language model")
    _sites(vlm, into, out, norms)


def _sites(vlm: Any, into: dict, out: dict, norms: dict[str, nn.Module]) -> None:
    """Where the connector's input can be read: in the tower's residual stream, and after a norm that follows it."""
    family, entering = vlm.family, into["connector"]
    kept = entering.shape[-2]
    blocks = [name for name in out if isinstance(name, int)]

    def tail(hidden: Tensor) -> Tensor:
        return hidden[..., -kept:, :]

    def same(hidden: Tensor) -> bool:
        return tail(hidden).shape == entering.shape and _close(vlm, tail(hidden), entering)

    direct = [i for i in blocks if same(out[i])]
    normed = [name for name in norms if name in out and same(out[name]) and into[name].ndim == 3]
    if direct:
        family.sites["pre_norm"] = (family.connector, lambda entering, _: entering)
        family.confirm("pre_norm", "equals what this block gives", f"{family.tower_layers}.{direct[0]}", "the connector's input")
        family.refuse("post_norm", "no norm between the tower's blocks and the connector is known")
    elif normed and any(_close(vlm, into[normed[0]], out[i]) for i in blocks):
        norm = f"{family.tower}.{normed[0]}"
        family.sites["pre_norm"] = (norm, lambda entering, _: tail(entering))
        family.sites["post_norm"] = (norm, lambda _, output: tail(output))
        family.confirm("pre_norm", "equals what the last block gives", norm, "what enters this norm")
        family.confirm("post_norm", "equals the connector's input", norm, "what this norm gives")
    else:
        for site in ("pre_norm", "post_norm"):
            family.refuse(site, "the connector's input is not what a block of the tower, or a norm after it, gives")


# Helpers


def _own_features(vlm: Any, batch: Any) -> list[Float[Tensor, "token width"]]:
    return vlm.vision_features(batch.examples)


def _first_logits(vlm: Any, batch: Any) -> Float[Tensor, "example word"]:
    """Of the first token that generate makes."""
    made = vlm.family.generate(
        vlm.model, batch.inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    return made.logits[0]


def _close(vlm: Any, a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding in the model's precision."""
    tolerance = max(TOLERANCE[vlm.dtype], QUANTISED if vlm.quantize else 0.0)
    a, b = a.float(), b.to(a.device).float()
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


def _keep(into: dict, out: dict, name: Any, family: Discovered) -> Callable:
    def keep(args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        into[name] = args[0] if args else next(iter(kwargs.values()))
        out[name] = family.hidden(output)

    return keep


def _keep_map(eager: dict[nn.Module, Tensor], module: nn.Module) -> Callable:
    def keep(args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        maps = [one for one in output if isinstance(one, Tensor) and one.ndim == 4] if isinstance(output, tuple) else []
        if len(maps) == 1:
            eager.setdefault(module, _two(maps[0], 2))

    return keep


def _two(tensor: Tensor, axis: int) -> Tensor:
    """The middle and the last entry along an axis."""
    return tensor.index_select(axis, torch.tensor([tensor.shape[axis] // 2, tensor.shape[axis] - 1], device=tensor.device))


def _two_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, scaling: float, causal: bool
) -> Float[Tensor, "example head row key"]:
    """Attention of the middle and the last query, by softmax of their scores."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = _two(query, 2).float() @ key.float().transpose(-1, -2) * scaling
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~_two(mask, 2), torch.finfo(torch.float32).min)
    elif mask is not None:
        scores = scores + _two(mask, 2).float()
    elif causal and query.shape[2] > 1:
        keys = torch.arange(key.shape[2], device=key.device)
        after = keys > _two(keys, 0)[:, None]
        scores = scores.masked_fill(after, torch.finfo(torch.float32).min)
    return scores.softmax(-1)
