"""What vision models beside the one under study see in the same pictures: a vector a picture, of CLIP, DINO or any other.

A neighbourhood in such a space is a view, not the truth; LLaVA's own tower is a CLIP, so that CLIP favours what it sees, and DINO
is the neutral anchor. The study takes the last hidden state: of CLIP its vision half's, neither normed nor projected. Knows
pictures and vision models; nothing of connectors and neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoImageProcessor, AutoModel

from spatialprobes import loading
from spatialprobes.digests import identity
from spatialprobes.examples import Example, batches
from spatialprobes.images import ImageError, Unreadable, open_image
from spatialprobes.store import Store

if TYPE_CHECKING:
    from jaxtyping import Float

VERSION = 1  # of what is stored; part of the fingerprint: raise it when values change
POOLS = ("cls", "mean")
DEFINITIONS = ("corrected", "as_published")
CLASS_TOKENS = ("cls_token", "class_embedding", "class_token")  # what parameters of a class token are called
BARS_FROM = 4  # batches from which a bar of progress is shown


@dataclass(frozen=True)
class References:
    """keys: ids, in the order given. vectors: float32, row i is of keys[i]. model: its name; facts: all that they depend on.

    unreadable: the pictures that were left out.
    """

    keys: list[str]
    vectors: Float[np.ndarray, "picture width"]
    model: str
    pool: str
    facts: dict[str, Any]
    unreadable: list[Unreadable] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)

    def of(self, keys: Sequence[str]) -> Float[np.ndarray, "picture width"]:
        """The vectors of these pictures, in this order. Raises KeyError saying how many are not there."""
        rows = {key: row for row, key in enumerate(self.keys)}
        if lacking := [key for key in keys if key not in rows]:
            raise KeyError(f"{self.model}: no vector of {len(lacking)} of {len(keys)} pictures, first {lacking[0]!r}")
        return self.vectors[[rows[key] for key in keys]]


def embed(
    source: str,
    examples: Iterable[Example],
    *,
    pool: Literal["cls", "mean"] = "cls",
    definition: Literal["corrected", "as_published"] = "corrected",
    batch_size: int = 64,
    device: str = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    store: str | Path | None = None,
    on_error: Literal["list", "raise"] = "list",
) -> References:
    """A vector for each picture, by a vision model: a lab name, a folder, or a hub id.

    pool: "cls" takes the class token of the last hidden state, "mean" the mean over its patches. definition: "corrected" takes
    the patches alone; "as_published" takes all tokens but the first, whatever they are: DINOv3's registers with the patches, and
    SigLIP's, which has no class token, without one patch. store: a folder that keeps what is done, so that a run that was killed
    goes on.
    on_error: a picture that cannot be read is listed, or raises.

    Raises loading.ModelError; ImageError; ValueError for bad options, ids that stand twice, a class token that is not there,
    tokens that cannot be told apart, and vectors that are NaN or infinite, naming the picture; FingerprintError for a store of
    other vectors.
    """
    examples = list(examples)
    _check(examples, pool, definition, on_error)
    tower = Tower.load(source, device=device, dtype=dtype, revision=revision)
    facts = {"what": "reference vectors", "version": VERSION, "model": tower.facts, "pool": pool, "definition": definition}
    facts |= {"batch_size": batch_size}
    keep = _InMemory() if store is None else _InStore(store, facts)
    done, unreadable = keep.done(), []
    todo = [left for part in batches(examples, batch_size) if (left := [one for one in part if one.id not in done])]
    for part in tqdm(todo, desc="references", unit="batch", leave=False, disable=len(todo) < BARS_FROM):
        pictures, keys = [], []
        for one in part:
            try:
                pictures.append(open_image(one.image))
                keys.append(one.id)
            except ImageError as error:
                if on_error == "raise":
                    raise
                unreadable.append(Unreadable(one.id, error.name, error.reason))
        if keys:
            keep.add(keys, _finite(tower.name, keys, tower.vectors(pictures, pool, definition)))
    left_out = {one.example for one in unreadable}
    keys = [one.id for one in examples if one.id not in left_out]
    return References(keys, keep.rows(keys), tower.name, pool, facts, unreadable)


class Tower:
    """A vision model and its image processor."""

    def __init__(self, model: nn.Module, processor: Any, name: str, facts: dict[str, Any]):
        self.model, self.processor, self.name, self.facts = model, processor, name, facts
        self.has_class = any(parameter.rpartition(".")[2] in CLASS_TOKENS for parameter, _ in model.named_parameters())

    @classmethod
    def load(cls, source: str, *, device: str = "auto", dtype: str = "float32", revision: str | None = None) -> Tower:
        """The vision half of a model that has one, else the model. Raises loading.ModelError."""
        target = loading.choose_device(device)
        loading.check_options(dtype, None)
        found = loading.find(source, revision)
        where, options = str(found.path or found.name), found.options()
        try:
            model = AutoModel.from_pretrained(where, dtype="auto" if dtype == "auto" else loading.DTYPES[dtype], **options)
            processor = AutoImageProcessor.from_pretrained(where, backend="pil", **options)
        except (OSError, ValueError, ImportError) as error:
            why = " ".join(str(error).split())[:300]
            raise loading.ModelError(f"vision model {source!r} cannot be read from {where!r}: {why}") from error
        vision = getattr(model, "vision_model", model).to(target).eval().requires_grad_(False)
        facts = {"name": source if found.kind != "folder" else found.path.name, **identity(found)}
        facts |= {"type": vision.config.model_type, "dtype": str(vision.dtype).removeprefix("torch."), "device": target.type}
        return cls(vision, processor, facts["name"], facts)

    @torch.no_grad()
    def tokens(self, pictures: Sequence[Any]) -> tuple[Float[Tensor, "picture token width"], int]:
        """The last hidden state, and how many of its tokens stand before the patches."""
        inputs = self.processor(images=list(pictures), return_tensors="pt")
        pixels = inputs.pop("pixel_values").to(self.model.device, self.model.dtype)
        if pixels.ndim != 4:
            raise ValueError(
                f"{self.name}: its processor gives pictures of shape {tuple(pixels.shape[1:])}; whole ones are wanted"
            )
        hidden = self.model(pixel_values=pixels).last_hidden_state
        if hidden.ndim == 4:  # a convolutional model's map
            return hidden.flatten(2).transpose(1, 2), 0
        return hidden, self._before(hidden.shape[1], pixels.shape[-2:])

    def vectors(self, pictures: Sequence[Any], pool: str, definition: str = "corrected") -> Float[np.ndarray, "picture width"]:
        """One a picture; see `embed`."""
        hidden, before = self.tokens(pictures)
        hidden = hidden.float()
        if definition == "as_published":
            return (hidden[:, 0] if pool == "cls" else hidden[:, 1:].mean(1)).cpu().numpy()
        if pool == "cls" and not before:
            raise ValueError(f"{self.name} has no class token; pool='mean' takes the mean over its patches")
        return (hidden[:, 0] if pool == "cls" else hidden[:, before:].mean(1)).cpu().numpy()

    def _before(self, tokens: int, size: Sequence[int]) -> int:
        """Tokens that are no patches: class token, registers. They stand in front, as in every model that transformers has.

        Counted by the patches where a model's configuration says how large they are; else by the study's rule: a square number
        of tokens are patches alone, one more than a square has a class token in front.
        """
        patch = getattr(self.model.config, "patch_size", None)
        if isinstance(patch, int):
            patches = (size[0] // patch) * (size[1] // patch)
            if tokens >= patches and (tokens > patches) == self.has_class:
                return tokens - patches
        for before in (0, 1):
            if math.isqrt(tokens - before) ** 2 == tokens - before and not (self.has_class and not before):
                return before
        raise ValueError(f"{self.name}: which of its {tokens} tokens are patches is not known")


class _InMemory:
    """Vectors as they are made."""

    def __init__(self) -> None:
        self.held: dict[str, np.ndarray] = {}

    def done(self) -> set[str]:
        return set()

    def add(self, keys: Sequence[str], vectors: Float[np.ndarray, "picture width"]) -> None:
        self.held |= dict(zip(keys, vectors, strict=True))

    def rows(self, keys: Sequence[str]) -> Float[np.ndarray, "picture width"]:
        return np.stack([self.held[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)


class _InStore:
    """Vectors on the disk."""

    def __init__(self, path: str | Path, facts: dict[str, Any]):
        self.store = Store.open(path, facts)

    def done(self) -> set[str]:
        return self.store.done("reference", 0)

    def add(self, keys: Sequence[str], vectors: Float[np.ndarray, "picture width"]) -> None:
        self.store.append(keys, "reference", 0, 0, vectors)

    def rows(self, keys: Sequence[str]) -> Float[np.ndarray, "picture width"]:
        return np.array(self.store.read("reference", 0, keys).array) if keys else np.zeros((0, 0), np.float32)


def _finite(name: str, keys: Sequence[str], vectors: Float[np.ndarray, "picture width"]) -> Float[np.ndarray, "picture width"]:
    if wrong := np.flatnonzero(~np.isfinite(vectors).all(1)).tolist():
        raise ValueError(f"{keys[wrong[0]]!r}: its vector by {name} holds NaN or infinite numbers")
    return vectors


def _check(examples: Sequence[Example], pool: str, definition: str, on_error: str) -> None:
    for name, value, legal in (
        ("pool", pool, POOLS),
        ("definition", definition, DEFINITIONS),
        ("on_error", on_error, ("list", "raise")),
    ):
        if value not in legal:
            raise ValueError(f"{name}={value!r} is unknown; {', '.join(map(repr, legal))}")
    if not examples:
        raise ValueError("no examples were given")
    if len(ids := {one.id for one in examples}) < len(examples):
        twice = next(one.id for one in examples if one.id not in ids or ids.remove(one.id))
        raise ValueError(f"two examples have the id {twice!r}; one picture each is wanted")
