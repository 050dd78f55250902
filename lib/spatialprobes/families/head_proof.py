"""What proves the heads of a discovered family: what SDPA makes of queries, keys and cached values enters a projection.

Knows `VLM` by what it does alone: encode, forward.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from spatialprobes.families.attention import observed_attention
from spatialprobes.families.heads import heads_of
from spatialprobes.families.painting import hooks, probe_example

if TYPE_CHECKING:
    from jaxtyping import Float

PART = "heads"
CLOSE = 1e-2  # of the largest value: another tensor of the block is off by its own size


def prove_heads(vlm: Any) -> None:
    """Find the projection that the heads enter side by side, the same in every block, or refuse the part."""
    family = vlm.family
    if "attention (text)" in family.refused:
        return family.refuse(PART, "attention (text) is not proved")
    blocks = list(family.part(vlm.model, "layers"))
    attentions = [family.attention(block) for block in blocks]
    given = _given_by_heads(vlm, attentions)
    entering: dict[nn.Module, Tensor] = {}
    linear = {
        module: name
        for attention in given
        for name, module in attention.named_children()
        if getattr(module, "in_features", None) == given[attention].shape[-1]
    }

    def keep(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        entering[module] = args[0]

    with hooks([(module, partial(keep, module)) for module in linear]):
        vlm.forward(vlm.encode([probe_example()]))
    names = {name for attention in given for name in _matching(attention, given[attention], linear, entering)}
    every = [name for name in names if all(name in _matching(one, given[one], linear, entering) for one in given)]
    if len(every) != 1 or not given or len(given) != sum(attention is not None for attention in attentions):
        return family.refuse(PART, "no projection takes what SDPA makes of queries, keys and values, in every block")
    try:
        found = [heads_of(attention, every[0]) for attention in given]
    except (ValueError, AttributeError) as error:
        return family.refuse(PART, str(error))
    family.head_projection = every[0]
    what = f"{found[0].count} of {found[0].size} enter it side by side in {len(found)} of {len(blocks)} blocks"
    family.confirm(PART, what, f"{family.layers}.*.{family.attention_names['text']}.{every[0]}", "what SDPA gives")


def _given_by_heads(vlm: Any, attentions: list[nn.Module | None]) -> dict[nn.Module, Float[Tensor, "example token width"]]:
    """By attention module, what its heads give side by side, for those whose queries, keys and values were all seen."""
    seen: dict[nn.Module, tuple] = {}
    watch = {
        module: (lambda *found, module=module: seen.setdefault(module, found)) for module in attentions if module is not None
    }
    with observed_attention(vlm.model, vlm.family.parts["text"], watch):
        cache = vlm.forward(vlm.encode([probe_example()]), use_cache=True).past_key_values
    given = {}
    for layer, attention in enumerate(attentions):
        values = getattr(cache.layers[layer], "values", None) if attention in seen else None
        if values is None:
            continue
        query, key, mask, scaling, causal = seen[attention]
        if values.shape[:3] != key.shape[:3]:
            continue
        groups = query.shape[1] // key.shape[1]
        key, values = (one.repeat_interleave(groups, 1) for one in (key, values))
        alone = causal and mask is None
        got = scaled_dot_product_attention(query, key, values, mask, is_causal=alone, scale=scaling)
        given[attention] = got.transpose(1, 2).flatten(2)
    return given


def _matching(attention: nn.Module, given: Tensor, linear: dict[nn.Module, str], entering: dict[nn.Module, Tensor]) -> set[str]:
    """Names of the projections of this attention that take what its heads give."""
    return {linear[module] for module in attention.children() if module in entering and _close(entering[module], given)}


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a.float() - b.float()).abs().max() <= CLOSE * b.float().abs().max())
