"""One batch of questions about corners: what the last prompt token gives picture and corners, by head, and the answer.

Attention is summed over the vision tokens as each layer runs; nothing wider than one layer's rows of one token is held. The
pictures' runs are shared by their questions where a family's cache allows it. Knows batches; knows nothing of pairs and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.prefix import prefill, shared_pictures
from spatialprobes.probes.map_rows import seen_by
from spatialprobes.spans import Spans
from spatialprobes.vlm import VLM, Batch
from spatialprobes.worlds.corners import check_corner

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Corner:
    """Which cells count as a corner.

    side: those whose middle lies in a square of this side at the picture's corner, a share of the picture. patches: where given,
    instead, so many by so many cells at the grid's corner (the study's PATCH_SIZE), wherever the picture lies on the grid.
    Raises ValueError for a side outside (0, 1/2] and for patches below 1.
    """

    side: float
    patches: int | None = None

    def __post_init__(self):
        if not 0 < self.side <= 0.5:
            raise ValueError(f"side={self.side!r} of a corner is a share of the picture, above 0, at most .5")
        if self.patches is not None and (isinstance(self.patches, bool) or self.patches < 1):
            raise ValueError(f"patches={self.patches!r} is no number of cells from 1")

    def cells(self, spans: Spans, corner: str) -> Bool[Tensor, " cell"]:
        """Which of the vision tokens, in raster order. Raises ValueError without a grid, or for more patches than it has."""
        check_corner(corner)
        if spans.grid is None:
            raise ValueError(f"the {len(spans.vision)} vision tokens of {spans.example!r} have no grid")
        rows, columns = (self._along(spans, axis, corner) for axis in (0, 1))
        return (rows[:, None] & columns[None, :]).flatten()

    def _along(self, spans: Spans, axis: int, corner: str) -> Bool[Tensor, " cell"]:
        """axis: 0 down, 1 across."""
        count = spans.grid[axis]
        first = ("top", "left")[axis] in corner
        if self.patches is not None:
            if self.patches > count:
                raise ValueError(f"patches={self.patches} of a corner on a grid of {spans.grid[0]} x {spans.grid[1]} cells")
            at = torch.arange(count)
            return at < self.patches if first else at >= count - self.patches
        scale, shift = (both[1 - axis] for both in (spans.frame.scale, spans.frame.shift))
        middle = ((torch.arange(count).double() + 0.5) / count - shift) / scale
        return (middle >= 0) & (middle < self.side) if first else (middle > 1 - self.side) & (middle <= 1)


@dataclass(frozen=True)
class Read:
    """Of one batch. mass: [example, 3, layer, head], on all vision tokens, on the asked corner's, and on those of the corner that
    the pair's subject stands in (NaN where there are no cells).

    token: the first token of the greedy answer. logprobs: of the first tokens of the choices, [example, choice]. vision, cells:
    how many vision tokens there are, and how many of them are the asked corner's.
    """

    mass: Float[np.ndarray, "example kind layer head"]
    token: np.ndarray
    logprobs: Float[np.ndarray, "example choice"]
    vision: np.ndarray
    cells: np.ndarray


def read(
    vlm: VLM,
    examples: Sequence[Example],
    layers: Sequence[int],
    corner: Corner,
    first_tokens: Sequence[int],
    *,
    share: bool,
    system: str | None,
) -> Read:
    """Run the questions once; ``meta`` names the corner that is asked about, and the subject's. share: run each distinct picture
    once."""
    batch, options = _prepared(vlm, examples, share, system)
    reader = _Reader(batch, [(one.meta["asked"], one.meta["corner"]) for one in examples], corner, vlm.device)
    with capture(vlm, queries_keys=list(layers), at="last", visit=reader):
        logits = vlm.forward(batch, logits_to_keep=1, **options).logits[:, -1].float()
    said = logits.log_softmax(-1)
    mass = torch.stack([reader.layers[layer] for layer in layers], 2)  # [example, kind, layer, head]
    for kind in (1, 2):
        mass[:, kind].masked_fill_(reader.weights[kind].sum(1).cpu()[:, None, None] == 0, torch.nan)
    vision, cells = (one.sum(1).long().cpu().numpy() for one in reader.weights[:2])
    return Read(
        mass.numpy(),
        logits.argmax(-1).cpu().numpy(),
        said[:, list(first_tokens)].double().cpu().numpy(),
        vision,
        cells,
    )


def _prepared(vlm: VLM, examples: Sequence[Example], share: bool, system: str | None) -> tuple[Batch, dict]:
    """The batch to run, and what its forward needs besides."""
    if not share:
        return vlm.encode(examples, system), {}
    batch, cache, held = prefill(vlm, shared_pictures(examples), system)
    inputs = {name: value if name == "attention_mask" else value[..., held:] for name, value in batch.inputs.items()}
    return replace(batch, inputs=inputs), {"past_key_values": cache, "use_cache": True}


class _Reader:
    """What `capture` calls at every layer. weights: 1 for the tokens that are summed, [example, key] each for all, and for the
    corners of each example."""

    def __init__(self, batch: Batch, corners: Sequence[tuple[str, str]], corner: Corner, device: torch.device):
        tokens = batch.spans[0].length
        self.weights = [torch.zeros(len(batch.spans), tokens, device=device) for _ in range(3)]
        for row, (spans, names) in enumerate(zip(batch.spans, corners, strict=True)):
            self.weights[0][row, spans.vision.to(device)] = 1
            for kind, name in enumerate(names if spans.grid is not None else (), 1):
                self.weights[kind][row, spans.vision[corner.cells(spans, name)].to(device)] = 1
        self.layers: dict[int, Float[Tensor, "example kind head"]] = {}

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, masks: Tensor, scaling: float) -> None:
        rows = seen_by(queries, keys, masks, scaling)[:, :, 0]  # [example, head, key]
        summed = [torch.einsum("ehk,ek->eh", rows, one[:, -rows.shape[-1] :]) for one in self.weights]
        self.layers[layer] = torch.stack(summed, 1).cpu()
