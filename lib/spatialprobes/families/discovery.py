"""A family that nobody wrote down: its parts are looked for in the model's structure, and count only once they are proved.

`look` finds module paths (before any weight is loaded, so that quantisation knows what to leave alone); `proofs.prove` runs a
small picture through the model and keeps what holds. What does not hold is refused, with the reason, when it is used. Knows the
conventions of transformers' models, none of them by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig

from spatialprobes.families.attention import Observer
from spatialprobes.families.base import Family, Pictures
from spatialprobes.families.frames import Frame
from spatialprobes.families.heads import Heads
from spatialprobes.families.rotary import Rotary
from spatialprobes.families.towers import TowerRun, batch_of_pictures, by_cells

if TYPE_CHECKING:
    from jaxtyping import Float


Site = tuple[str, Callable[[Tensor, Tensor], Tensor]]  # the module to hook, and what to take of its (input, output)


class NotDiscovered(ValueError):
    """A model that cannot be used without a family of its own; the message says what could not be found or proved."""


def look(config: PreTrainedConfig, **options: Any) -> Discovered:
    """What a model of this configuration seems to consist of; nothing is loaded, and nothing is proved yet.

    options: to AutoModel's from_config. Raises NotDiscovered where no language model with pictures is to be seen.
    """
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, **options)
    except ValueError as error:
        raise NotDiscovered(f"transformers has no class for pictures and text of model type {config.model_type!r}") from error
    return Discovered(config, model)


class Discovered(Family):
    """One model's parts, as found. An instance belongs to one model, unlike those of written families.

    notes: what was found: where it is, how it was found, what proved it. refused: what was not, and why.
    """

    shares_prefix = False  # a copied cache is not proved to continue as the whole prompt would

    def __init__(self, config: PreTrainedConfig, model: nn.Module):
        self.model_type = config.model_type
        self.notes: dict[str, tuple[str, str]] = {}
        self.refused: dict[str, str] = {}
        self.counts_positions = True  # whether positions counted from 0 are the model's own
        self.token_types: str | None = None  # the input that tells vision tokens from words, where the model takes one
        self.pads = False  # whether a padded row is proved to equal the row alone
        self.attention_names: dict[str, str] = {}  # "text", "vision": of the attention module within a block
        self.kinds: dict[type, str] = {}  # of blocks: "text" or "vision"
        self.sites: dict[str, Site] = {}  # of the connector's input
        self.tower_grid, self.tower_before = (0, 0), 0  # patches of a picture, tokens before them
        self.merge = 1  # side of the square of patches that become a vision token
        self.grids: dict[int, tuple[int, int]] = {}  # by number of vision tokens
        self.frames: dict[str, Callable[[int, int], Frame]] = {}  # proved ones by shape: "square", "wide", "tall"
        self._paths = {module: name for name, module in model.named_modules()}
        self._find_decoder(config, model)
        self._find_tower(config, model)
        self._find_connector(model)
        self.quantise_skip = tuple(_beside(model, self.layers))
        del self._paths

    # Looking

    def _find_decoder(self, config: PreTrainedConfig, model: nn.Module) -> None:
        text = config.get_text_config()
        self.parts = {"text": next((name for name in config.sub_configs if getattr(config, name, None) is text), "")}
        if getattr(config, "image_token_id", None) is None:
            raise NotDiscovered(f"the configuration of {self.model_type!r} names no image token (image_token_id)")
        decoder = model.get_decoder()
        if decoder is model or not self.parts["text"]:
            raise NotDiscovered(f"{type(model).__name__} has no language model apart from the rest (get_decoder)")
        lists = [(name, found) for name, found in _block_lists(decoder) if len(found) == text.num_hidden_layers]
        if len(lists) != 1:
            names = ", ".join(name for name, _ in lists) or "none"
            raise NotDiscovered(f"lists of {text.num_hidden_layers} layers in {self._paths[decoder]!r}: {names}; one is needed")
        name, layers = lists[0]
        self.kinds[type(layers[0])] = "text"
        self.layers = f"{self._paths[decoder]}.{name}"
        self.notes["language model"] = (self._paths[decoder], "get_decoder()")
        self.notes["layers"] = (self.layers, f"{len(layers)} x {type(layers[0]).__name__}, the only list so long")
        holder = decoder.get_submodule(name.rpartition(".")[0])
        norms = [self._paths[child] for child in holder.children() if "norm" in type(child).__name__.lower()]
        self._one("final_norm", norms, "the only norm beside the layers")

    def _find_tower(self, config: PreTrainedConfig, model: nn.Module) -> None:
        tower = model.get_encoder(modality="image")
        path = self._paths[tower]
        self._one("tower", [] if not path or self.layers.startswith(f"{path}.") else [path], "get_encoder('image')")
        if "tower" in self.refused:
            self.refused["tower_layers"] = self.refused["tower"]
            return
        lists = _block_lists(tower)
        longest = max((len(found) for _, found in lists), default=0)
        found = [(name, blocks) for name, blocks in lists if len(blocks) == longest]
        kind = type(found[0][1][0]).__name__ if found else ""
        self._one("tower_layers", [f"{self.tower}.{name}" for name, _ in found], f"{longest} x {kind}, the longest list")
        if found:
            self.kinds.setdefault(type(found[0][1][0]), "vision")
        own = getattr(tower, "config", None)
        named = [name for name in config.sub_configs if getattr(config, name, None) is own]
        self.parts["vision"] = named[0] if named else "vision_config"

    def _find_connector(self, model: nn.Module) -> None:
        if "tower" in self.refused:
            self.refused["connector"] = self.refused["tower"]
            return
        decoder = self.notes["language model"][0]
        owner = _common(self.tower, decoder)
        left = [
            self._paths[child]
            for child in model.get_submodule(owner).children()
            if not any(f"{part}.".startswith(f"{self._paths[child]}.") for part in (self.tower, decoder))
            and any(True for _ in child.parameters())
        ]
        self._one("connector", left, "what is left beside tower and language model")

    def _one(self, part: str, found: list[str], how: str) -> None:
        """Note the only candidate for a part, or refuse the part."""
        if len(found) == 1:
            setattr(self, part, found[0])
            self.notes[part] = (found[0], how)
        else:
            self.refuse(part, f"{len(found)} candidates" + (f" ({', '.join(found)})" if found else f" for: {how}"))

    # What holds and what does not

    def confirm(self, part: str, proof: str, where: str = "", how: str = "") -> None:
        """Add to a part's note what proved it."""
        before = self.notes.get(part, (where, how))
        self.notes[part] = (before[0], "; ".join(filter(None, [before[1], proof])))

    def refuse(self, part: str, why: str) -> None:
        """From now on using the part raises ValueError with this reason."""
        self.notes.pop(part, None)
        self.refused[part] = why

    def require(self, part: str) -> None:
        """Raises ValueError with the reason for a part that is not proved."""
        if part in self.refused:
            raise ValueError(f"discovered family {self.model_type!r}: {part} is not proved: {self.refused[part]}")

    def report(self) -> str:
        """What was found, where and how, and what was refused and why: a line each."""
        width = max(map(len, [*self.notes, *self.refused]))
        place = max(len(where) for where, _ in self.notes.values())
        lines = [f"Model family {self.model_type!r} is not among the written ones. Found, and proved on a picture:"]
        lines += [f"  {part:{width}}  {where:{place}}  {how}" for part, (where, how) in self.notes.items()]
        lines += ["Not proved, refused when used:"] * bool(self.refused)
        return "\n".join(lines + [f"  {part:{width}}  {why}" for part, why in self.refused.items()])

    # The family's methods, where a discovered one differs

    def part(self, model: nn.Module, name: str) -> nn.Module:
        self.require(name)
        return super().part(model, name)

    def attention(self, layer: nn.Module) -> nn.Module | None:
        """The attention of a block, None where it has none; the block itself where it is not proved: watching it says why."""
        part = self.kinds.get(type(layer), "text")
        if f"attention ({part})" in self.refused:
            return layer
        name = self.attention_names[part]
        return layer.get_submodule(name) if name in dict(layer.named_modules()) else None

    def heads(self, model: nn.Module, layer: int) -> Heads:
        self.require("heads")
        return super().heads(model, layer)

    def observe_attention(
        self, model: nn.Module, part: str, observers: dict[nn.Module, Observer]
    ) -> AbstractContextManager[None]:
        self.require(f"attention ({part})")
        return super().observe_attention(model, part, observers)

    def rotary(self, model: nn.Module) -> Rotary:
        raise ValueError(f"discovered family {self.model_type!r}: how positions turn queries and keys is not proved")

    def position_axes(self, model: nn.Module) -> tuple[str, ...]:
        self.require("positions")
        return ()

    def tower_run(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> TowerRun:
        """The patches of each picture in raster order, after the tokens that stand before them."""
        self.require("tower grid")
        pixels = args[0] if args else next(iter(kwargs.values()))
        run = batch_of_pictures(len(pixels), self.tower_grid, self.tower_before, len(self.part(model, "tower_layers")))
        return replace(run, merge=self.merge)

    def connector_tokens(self, model: nn.Module, tokens: Tensor, run: TowerRun, side: str) -> list[Float[Tensor, "token width"]]:
        merged = side == "input" and run.merge > 1 and tokens.shape[1] == self.tower_grid[0] * self.tower_grid[1]
        return list(tokens[:, by_cells(self.tower_grid, run.merge).to(tokens.device)] if merged else tokens)

    def connector_reading(self, model: nn.Module, site: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
        """As the proof saw it: the tower's last block, what a norm after it makes of that, or refused."""
        self.require(site)
        module, take = self.sites[site]
        return model.get_submodule(module), take

    def fill(self, processor: Any) -> tuple[int, int, int]:
        mean = getattr(processor.image_processor, "image_mean", None) or (0.5, 0.5, 0.5)
        return tuple(int(255 * value) for value in mean)

    def frame(self, processor: Any, width: int, height: int) -> Frame:
        found = self.frames.get(shape_of(width, height))
        return found(width, height) if found else Frame()

    def grid(self, model: nn.Module, inputs: dict[str, Tensor], index: int, n: int) -> tuple[int, int] | None:
        return self.grids.get(n)

    def processed(self, processor: Any, pictures: list[Image.Image]) -> Any:
        """One list of pictures per prompt: a flat list may be read as one prompt's."""
        return super().processed(processor, [[picture] for picture in pictures])

    def image_inputs(self, processor: Any, pictures: list[Image.Image]) -> dict[str, Tensor] | None:
        """Not proved."""
        return None

    def pictures(self, model: nn.Module, processor: Any, pictures: list[Image.Image], frames: list[Frame]) -> Pictures:
        """As every family's; no grid for pictures of a shape whose place in it was not proved."""
        made = super().pictures(model, processor, pictures, frames)
        known = [shape_of(*picture.size) in self.frames for picture in pictures]
        grids = [grid if proved else None for grid, proved in zip(made.grids, known, strict=True)]
        return Pictures(made.inputs, made.tokens, grids, made.frames)

    def complete(self, model: nn.Module, inputs: dict[str, Tensor], grids: list[tuple[int, int] | None]) -> dict[str, Tensor]:
        """Positions and types of tokens, so far as they were proved to be what the model takes."""
        padded = bool((inputs["attention_mask"] == 0).any())
        if padded and not self.pads:
            self.require("padding")
        made = super().complete(model, inputs, grids) if self.counts_positions else dict(inputs)
        if self.token_types:
            made[self.token_types] = (inputs["input_ids"] == self.image_token_id(model)).long()
        return made


def shape_of(width: int, height: int) -> str:
    """ "square", "wide" or "tall"."""
    return "square" if width == height else "wide" if width > height else "tall"


def _block_lists(module: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Lists of at least one block, all of one type, that are not within another such list."""
    found: list[tuple[str, nn.ModuleList]] = []
    for name, child in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer, _ in found)
        if isinstance(child, nn.ModuleList) and len(child) and not inside and len({type(block) for block in child}) == 1:
            found.append((name, child))
    return found


def _common(*paths: str) -> str:
    """The path of the innermost module that holds all these."""
    parts = list(zip(*(path.split(".") for path in paths), strict=False))
    return ".".join(names[0] for names in itertools.takewhile(lambda names: len(set(names)) == 1, parts))


def _beside(model: nn.Module, path: str) -> list[str]:
    """Paths of all modules on the way down to `path` that are not on it: together, everything outside of it."""
    found, parts = [], path.split(".")
    for depth in range(len(parts)):
        above = ".".join(parts[:depth])
        children = model.get_submodule(above).named_children()
        found += [f"{above}.{name}".lstrip(".") for name, _ in children if name != parts[depth]]
    return found
