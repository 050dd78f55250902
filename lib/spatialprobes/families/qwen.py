"""Qwen2-VL, Qwen2.5-VL and Qwen3.5: pictures of any size, packed patches, 2 x 2 of them merged to a vision token, M-RoPE.

The tower sees the patches of all pictures one after another, cell by cell (a cell is what becomes one vision token), so that four
consecutive rows are one cell; cells are in raster order, except inside Qwen2.5's tower and connector, which hold them window by
window. Here everything is given back picture by picture with the cells in raster order. Position ids are (time, row, column) and
always explicit: left to itself a model takes part of them from what it remembers of an earlier call. Knows no prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.vision_utils import get_vision_window_index

from spatialprobes.families.base import Family, fitting
from spatialprobes.families.towers import Call, TowerRun, by_cells

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Qwen2VL(Family):
    model_type = "qwen2_vl"
    tower = "model.visual"
    tower_layers = "model.visual.blocks"
    connector = "model.visual.merger"
    connector_norm = "ln_q"
    quantise_skip = ("model.visual", "lm_head")
    processor_type: type[ProcessorMixin] = Qwen2VLProcessor
    template_options: ClassVar[dict[str, Any]] = {}  # of the chat template

    # Loading
    def load_processor(self, source: str, **options: Any) -> Any:
        """The family's processor without its video processor, which needs torchvision, and with pictures prepared by Pillow."""
        tokenizer = self.load_tokenizer(source, **options)
        images = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
        own, _ = self.processor_type.get_processor_dict(source, **options)
        kind = type(self.processor_type.__name__, (_OurProcessor, self.processor_type), {"options": self.template_options})
        return kind(images, tokenizer, None, chat_template=own.get("chat_template") or tokenizer.chat_template)

    def load_tokenizer(self, source: str, **options: Any) -> Any:
        return AutoTokenizer.from_pretrained(source, **options)

    # Parts of the model
    def attention(self, layer: nn.Module) -> nn.Module | None:
        """A layer of the language model has `self_attn`, or none where its attention is linear; a block of the tower `attn`."""
        return getattr(layer, "self_attn", None) or getattr(layer, "attn", None)

    def connector_reading(self, model: nn.Module, site: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
        """The merger's own norm of each patch: its input is the tower's residual stream, its output what the weights see."""
        norm = self.part(model, "connector").get_submodule(self.connector_norm)
        return norm, (lambda entering, _: entering) if site == "pre_norm" else (lambda _, output: output)

    def connector_tokens(self, model: nn.Module, tokens: Tensor, run: TowerRun, side: str) -> list[Float[Tensor, "token width"]]:
        """Cells in raster order: of the output one row each, of the input the merge x merge rows of their patches, row by row."""
        cells = [rows * columns // run.merge**2 for rows, columns in run.grids]
        by_cell = tokens.reshape(sum(cells), -1, tokens.shape[-1])
        by_cell = by_cell[self.order(model, run.grids).argsort().to(tokens.device)]
        return [one.flatten(0, 1) for one in by_cell.split(cells)]

    def connect(
        self, model: nn.Module, tokens: list[Tensor], site: str, connector: nn.Module | None = None
    ) -> list[Float[Tensor, "token width"]]:
        """The merger reads the patches of each cell, which stand together, by themselves: the order of cells is all one to it,
        windows or raster, and so is where pictures end. At "post_norm" its own norm is passed over."""
        merger = connector if connector is not None else self.part(model, "connector")
        norm, cell = merger.get_submodule(self.connector_norm), self.merge(model) ** 2
        patches = fitting(tokens, len(norm.weight), merger)
        if broken := [len(one) for one in patches if len(one) % cell]:
            raise ValueError(f"{broken[0]} patches are no multiple of {cell}, the patches of a cell")
        with ExitStack() as stack:
            if site == "post_norm":
                stack.callback(norm.register_forward_hook(lambda _, entering, output: entering[0]).remove)
            made = merger(torch.cat(patches))
        return list(made.split([len(one) // cell for one in patches]))

    def order(self, model: nn.Module, grids: list[tuple[int, int]]) -> Int[Tensor, " cell"]:
        """Which cell (raster, pictures one after another) the tower holds at each place."""
        merge = self.merge(model)
        return torch.arange(sum(rows * columns for rows, columns in grids) // merge**2)

    def tower_run(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> TowerRun:
        """One attention call a picture, or, in a windowed block, one a window."""
        thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        grids = [(rows, columns) for _, rows, columns in thw.tolist()]
        merge = self.merge(model)
        places = torch.cat([by_cells(grid, merge) for grid in grids]).reshape(-1, merge**2)
        sizes = [rows * columns for rows, columns in grids]
        pictures = torch.repeat_interleave(torch.arange(len(grids)), torch.tensor(sizes)).reshape(-1, merge**2)
        order = self.order(model, grids)
        pictures, places = pictures[order].flatten(), places[order].flatten()

        def calls(lengths: list[int]) -> list[Call]:
            parts = zip(pictures.split(lengths), places.split(lengths), strict=True)
            return [[(int(picture[0]), place)] for picture, place in parts]

        by_block = self.call_lengths(model, grids)
        known = {lengths: calls(list(lengths)) for lengths in set(by_block)}
        return TowerRun(grids, 0, merge, [known[lengths] for lengths in by_block])

    def call_lengths(self, model: nn.Module, grids: list[tuple[int, int]]) -> list[tuple[int, ...]]:
        """Of each block of the tower, the patches of each of its attention calls."""
        return [tuple(rows * columns for rows, columns in grids)] * len(self.part(model, "tower_layers"))

    def merge(self, model: nn.Module) -> int:
        """Patches along each side of a cell."""
        return model.config.vision_config.spatial_merge_size

    # Pictures and tokens
    def grid(self, model: nn.Module, inputs: dict[str, Tensor], index: int, n: int) -> tuple[int, int] | None:
        _, rows, columns = inputs["image_grid_thw"][index].tolist()
        merge = self.merge(model)
        return rows // merge, columns // merge

    def repeat(self, inputs: dict[str, Tensor], which: list[int]) -> dict[str, Tensor]:
        thw = inputs["image_grid_thw"]
        if which == list(range(len(thw))):
            return inputs
        patches = inputs["pixel_values"].split(thw.prod(-1).tolist())
        return {"pixel_values": torch.cat([patches[i] for i in which]), "image_grid_thw": thw[torch.tensor(which)]}

    def complete(self, model: nn.Module, inputs: dict[str, Tensor], grids: list[tuple[int, int] | None]) -> dict[str, Tensor]:
        """Position ids [axis, example, token], the axes time, row and column, by the model's own rule; and types of tokens."""
        merge = self.merge(model)
        types = (inputs["input_ids"] == self.image_token_id(model)).long()
        thw = torch.tensor([(1, rows * merge, columns * merge) for rows, columns in grids])
        position_ids, _ = model.model.get_rope_index(
            inputs["input_ids"], mm_token_type_ids=types, image_grid_thw=thw, attention_mask=inputs["attention_mask"]
        )
        return {**inputs, "position_ids": position_ids, "mm_token_type_ids": types}


class Qwen2_5VL(Qwen2VL):
    model_type = "qwen2_5_vl"
    processor_type = Qwen2_5_VLProcessor

    def order(self, model: nn.Module, grids: list[tuple[int, int]]) -> Int[Tensor, " cell"]:
        return self._windows(model, grids)[0]

    def call_lengths(self, model: nn.Module, grids: list[tuple[int, int]]) -> list[tuple[int, ...]]:
        windows = tuple(self._windows(model, grids)[1].diff().tolist())
        whole = model.config.vision_config.fullatt_block_indexes
        pictures = super().call_lengths(model, grids)
        return [lengths if block in whole else windows for block, lengths in enumerate(pictures)]

    def _windows(self, model: nn.Module, grids: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Cells in the order of windows, and where each window ends, in patches, by transformers' own rule."""
        vision = model.config.vision_config
        thw = torch.tensor([(1, rows, columns) for rows, columns in grids])
        return get_vision_window_index(thw, vision.spatial_merge_size, vision.window_size, vision.patch_size)


class Qwen3_5(Qwen2VL):
    """Three in four layers of the language model are linear attention: they have no attention map, and their state after a
    picture cannot be continued by questions of unequal length, which are padded on the left. It is asked to answer at once,
    where its chat template would have it think first.
    """

    model_type = "qwen3_5"
    quantise_skip = (*Qwen2VL.quantise_skip, "in_proj_a", "in_proj_b")  # a gate for each head: few weights, of odd numbers
    connector_norm = "norm"
    processor_type = Qwen3VLProcessor
    template_options: ClassVar = {"enable_thinking": False}
    shares_prefix = False

    def load_tokenizer(self, source: str, **options: Any) -> Any:
        """The one that the folder states: transformers would make the family's byte-level pieces of any file."""
        stated = get_tokenizer_config(source, **options).get("tokenizer_class")
        plain = stated in ("TokenizersBackend", "PreTrainedTokenizerFast")
        return (PreTrainedTokenizerFast if plain else AutoTokenizer).from_pretrained(source, **options)


class Qwen3_5Moe(Qwen3_5):
    model_type = "qwen3_5_moe"


class _OurProcessor:
    """Lets a processor be made without a video processor, and gives its chat template the family's options."""

    options: ClassVar[dict[str, Any]]

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        if name == "video_processor" and argument is None:
            return None
        return super().check_argument_for_proper_class(name, argument)

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **options: Any) -> Any:
        template = str(chat_template or self.chat_template)
        # one that the template does not name would be taken for the tokenizer's
        known = {name: value for name, value in self.options.items() if name in template}
        return super().apply_chat_template(conversation, chat_template, **{**known, **options})
