"""Watching attention beside SDPA, through the attention registry of transformers.

A registered implementation hands queries, keys and mask of the modules that are asked for to an observer, then delegates to SDPA
unchanged: logits stay bit-identical and nothing of size T x T is made. Which modules are watched stands in a context variable, so
the process-global registration has no state of its own. For models outside the registry the family patches its own attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

# observer(query (B, H, T, D), key (B, Hkv, S, D), mask (bool or additive, (B, 1, T, S)) or None, scaling, causal)
Observer = Callable[[Tensor, Tensor, Tensor | None, float, bool], None]
NAME = "sdpa_observed"
_observers: ContextVar[tuple[dict[int, Observer], ...]] = ContextVar("attention_observers", default=())


def _observed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    for watched in _observers.get():
        if observer := watched.get(id(module)):
            observer(query, key, attention_mask, scale, causal)
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )


AttentionInterface.register(NAME, _observed_sdpa)
AttentionMaskInterface.register(NAME, sdpa_mask)  # without it padded batches silently get no mask


@contextmanager
def observed_attention(model: nn.Module, part: str, observers: dict[nn.Module, Observer]) -> Iterator[None]:
    """While open, `model.config.<part>` runs observed SDPA; afterwards what it ran before.

    Raises ValueError where the part did not run SDPA: results would differ from the model as it was loaded.
    """
    before = getattr(model.config, part)._attn_implementation
    if before not in ("sdpa", NAME):
        raise ValueError(f"attention rows are read beside SDPA, but {part} runs {before!r}; load the model with sdpa")
    token = _observers.set((*_observers.get(), {id(module): observer for module, observer in observers.items()}))
    model.set_attn_implementation({part: NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({part: before})
        _observers.reset(token)
