"""What a family of vision-language models must say about itself: module paths, image grid, positions, where features enter.

The defaults hold for the models that transformers ships and that scatter image features into the places of an image token.
A family overrides what differs; nothing outside `families/` asks which family it has. Knows no prompts, questions or probes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, AutoProcessor

from spatialprobes.families.attention import Observer, observed_attention
from spatialprobes.families.frames import Frame
from spatialprobes.families.heads import HeadEdit, Heads, edited_heads, heads_of
from spatialprobes.families.positions import edited_positions
from spatialprobes.families.residual import HiddenEdit, edited_entering, edited_leaving, is_edited
from spatialprobes.families.rotary import Rotary, axes_of, rotary_of
from spatialprobes.families.towers import TowerRun

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from PIL import Image

Edit = Callable[[list[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class Pictures:
    """Distinct pictures, ready for a model.

    inputs: the processor's tensors. tokens: for each picture, the token ids that stand in its prompt for the image placeholder.
    grids: (rows, columns) of its vision tokens in raster order, None where they have no grid. frames: picture -> model input.
    """

    inputs: dict[str, Tensor]
    tokens: list[list[int]]
    grids: list[tuple[int, int] | None]
    frames: list[Frame]


class Family:
    """Where things are in one family. Stateless: every method is given the model or the processor."""

    model_type: str
    tower = "model.vision_tower"
    tower_layers = "model.vision_tower.encoder.layers"
    connector = "model.multi_modal_projector"
    layers = "model.language_model.layers"
    final_norm = "model.language_model.norm"
    head_projection = "o_proj"  # of the language model's attention
    parts: ClassVar = {"text": "text_config", "vision": "vision_config"}  # where the attention implementation of each part is set
    image_owner = "model"  # the module whose get_image_features feeds forward and generate
    quantise_skip = ("model.vision_tower", "model.multi_modal_projector", "lm_head")
    shares_prefix = True  # a key-value cache of the picture can be repeated for several questions

    # Loading
    def load_model(self, source: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
        """The model and transformers' loading information (missing keys and so on)."""
        return AutoModelForImageTextToText.from_pretrained(source, output_loading_info=True, **options)

    def load_processor(self, source: str, **options: Any) -> Any:
        return AutoProcessor.from_pretrained(source, **options)

    # Parts of the model
    def part(self, model: nn.Module, name: str) -> nn.Module:
        """The module that this family calls `name`: "tower", "tower_layers", "connector", "layers" or "final_norm"."""
        return model.get_submodule(getattr(self, name))

    def decoder(self, model: nn.Module) -> nn.Module:
        """The language model proper: embeddings in, final-normed hidden states out."""
        return model.get_decoder()

    def attention(self, layer: nn.Module) -> nn.Module | None:
        """The attention of a layer, or None where it has none (linear layers)."""
        return getattr(layer, "self_attn", None)

    def hidden(self, output: Any) -> Float[Tensor, "example token width"]:
        """The hidden states in what a layer returns."""
        return output[0] if isinstance(output, tuple) else output

    def replace_hidden(self, output: Any, hidden: Float[Tensor, "example token width"]) -> Any:
        """What the layer would have returned with these hidden states."""
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def decoder_call(self, args: tuple, kwargs: dict[str, Any]) -> tuple[int, int, int]:
        """Of a call of the decoder: examples, new tokens, and tokens that its cache already holds."""
        entering = kwargs.get("inputs_embeds") if kwargs.get("inputs_embeds") is not None else kwargs.get("input_ids")
        cache = kwargs.get("past_key_values")
        return entering.shape[0], entering.shape[1], int(cache.get_seq_length()) if cache is not None else 0

    def connector_reading(self, model: nn.Module, site: str) -> tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]:
        """The module to hook for the connector's input at a site, and what to take of the module's (input, output).

        site: "pre_norm" or "post_norm"; the norm meant stands between the tower's residual stream and the connector's weights.
        """
        raise NotImplementedError

    def connector_tokens(
        self, model: nn.Module, tokens: Tensor, run: TowerRun | None, side: str
    ) -> list[Float[Tensor, "token width"]]:
        """What a hook sees at one side of the connector ("input" or "output") as one tensor per picture, cells in raster order.

        Where several rows of the input become one of the output, they stand together. run: the tower's, where it is known.
        """
        return list(tokens)

    def connector_call(self, model: nn.Module, tokens: list[Tensor], site: str) -> tuple[Tensor, ...]:
        """Arguments of a call of the connector on these inputs, one [token, width] a picture as `connector_tokens` gives them.

        site: where they were taken, as of `connector_reading`. Raises ValueError where that is not what the connector reads.
        """
        raise ValueError(f"how the connector of {self.model_type!r} is run on given inputs is not known")

    def connect(
        self, model: nn.Module, tokens: list[Tensor], site: str, connector: nn.Module | None = None
    ) -> list[Float[Tensor, "token width"]]:
        """What the connector, or another in its place, makes of these inputs, a picture each; arguments of `connector_call`."""
        module = connector if connector is not None else self.part(model, "connector")
        dtype = next(module.parameters()).dtype
        call = self.connector_call(model, tokens, site)
        return list(module(*(one.to(dtype) if one.is_floating_point() else one for one in call)))

    def unread_blocks(self, model: nn.Module) -> list[nn.Module]:
        """Blocks of the tower behind the last that the connector reads: what they give goes nowhere."""
        return []

    def tower_run(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> TowerRun | None:
        """Of a call of the tower: where the tokens of its attention calls are in the pictures; None where it is not known."""
        return None

    # Attention
    def observe_attention(
        self, model: nn.Module, part: str, observers: dict[nn.Module, Observer]
    ) -> AbstractContextManager[None]:
        """While open, each observer sees queries, keys and mask of its attention module in `part` ("text" or "vision")."""
        return observed_attention(model, self.parts[part], observers)

    def rotary(self, model: nn.Module) -> Rotary:
        """How the language model's queries and keys turn with the positions; every layer with attention is taken to turn so.

        Raises ValueError for an embedding that cannot be read or is not what it seems.
        """
        attention = next(found for layer in self.part(model, "layers") if (found := self.attention(layer)) is not None)
        return rotary_of(getattr(self.decoder(model), "rotary_emb", None), attention)

    def position_axes(self, model: nn.Module) -> tuple[str, ...]:
        """The names of the axes of the position ids; empty where they are plain counts."""
        return axes_of(getattr(self.decoder(model), "rotary_emb", None))

    # Pictures and tokens
    def image_token_id(self, model: nn.Module) -> int:
        return model.config.image_token_id

    def image_token(self, processor: Any) -> str:
        """The placeholder that the chat template writes for a picture."""
        return processor.image_token

    def spell(self, processor: Any, text: str) -> str:
        """A rendered prompt as the processor changes it before it is cut into tokens."""
        return text

    def side(self, processor: Any) -> int | None:
        """Pixels of the model's square input, None where it takes any size."""
        return None

    @contextmanager
    def keeping_side(self, processor: Any, side: int) -> Iterator[None]:
        """While open, the processor leaves pictures of side x side pixels at that size, or as near as its patches allow."""
        yield

    def fill(self, processor: Any) -> tuple[int, int, int]:
        """The colour that is zero after the processor's normalisation."""
        return tuple(int(255 * mean) for mean in processor.image_processor.image_mean)

    def frame(self, processor: Any, width: int, height: int) -> Frame:
        """Where the processor puts the points of a picture of this size."""
        return Frame()

    def grid(self, model: nn.Module, inputs: dict[str, Tensor], index: int, n: int) -> tuple[int, int] | None:
        """(rows, columns) of the n vision tokens of picture `index`, None where they have no raster."""
        raise NotImplementedError

    def processed(self, processor: Any, pictures: list[Image.Image]) -> Any:
        """The processor's output for prompts that are a picture each and nothing else."""
        text = [self.image_token(processor)] * len(pictures)
        return processor(images=pictures, text=text, padding=True, add_special_tokens=False, return_tensors="pt")

    def image_inputs(self, processor: Any, pictures: list[Image.Image]) -> dict[str, Tensor] | None:
        """The picture tensors of `pictures`, made without prompts; None where that is not known to be the same."""
        return dict(processor.image_processor(images=pictures, return_tensors="pt"))

    def pictures(self, model: nn.Module, processor: Any, pictures: list[Image.Image], frames: list[Frame]) -> Pictures:
        """Run the processor once on distinct pictures. frames: what was done to each before."""
        encoded = self.processed(processor, pictures)
        mask = encoded.pop("attention_mask")
        tokens = [ids[keep.bool()].tolist() for ids, keep in zip(encoded.pop("input_ids"), mask, strict=True)]
        inputs = {name: value for name, value in encoded.items() if name not in ("mm_token_type_ids", "token_type_ids")}
        image = self.image_token_id(model)
        grids = [self.grid(model, inputs, i, row.count(image)) for i, row in enumerate(tokens)]
        seen = [frame.then(self.frame(processor, *picture.size)) for frame, picture in zip(frames, pictures, strict=True)]
        return Pictures(inputs, tokens, grids, seen)

    def repeat(self, inputs: dict[str, Tensor], which: list[int]) -> dict[str, Tensor]:
        """The picture tensors for a batch whose row i shows picture which[i]."""
        rows = next(iter(inputs.values())).shape[0]
        if which == list(range(rows)):
            return inputs
        index = torch.tensor(which)
        return {name: value[index] for name, value in inputs.items()}

    def complete(self, model: nn.Module, inputs: dict[str, Tensor], grids: list[tuple[int, int] | None]) -> dict[str, Tensor]:
        """Add what the model would otherwise guess: explicit position ids, and types of tokens where it wants them.

        grids: of the vision tokens of each row. Positions count real tokens from 0 and are 0 on padding.
        """
        position_ids = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return {**inputs, "position_ids": position_ids}

    def continue_positions(self, position_ids: Int[Tensor, "... token"], start: int) -> Int[Tensor, "... token"]:
        """Positions of the tokens from `start` on, for a call that continues a cache."""
        return position_ids[..., start:]

    # Running
    def forward(self, model: nn.Module, inputs: dict[str, Any], **options: Any) -> Any:
        return model(**inputs, **options)

    def generate(self, model: nn.Module, inputs: dict[str, Any], **options: Any) -> Int[Tensor, "example token"]:
        """Prompt and new tokens."""
        return model.generate(**inputs, **options)

    def image_features(self, model: nn.Module, inputs: dict[str, Tensor]) -> list[Float[Tensor, "token width"]]:
        """What enters the language model, one tensor per picture in raster order, with every edit that is in force."""
        return list(self._owner(model).get_image_features(**inputs, return_dict=True).pooler_output)

    @contextmanager
    def edit_image_features(self, model: nn.Module, edit: Edit) -> Iterator[None]:
        """While open, `edit` maps the list of features of each call (one (token, width) tensor per picture, in raster order).

        Edits compose in the order in which they were opened, may be closed in any order, and reach forward and generate alike.
        """
        owner = self._owner(model)
        edits: list[Edit] | None = owner.__dict__.get("_image_feature_edits")
        if edits is None:
            edits = owner.__dict__["_image_feature_edits"] = []
            original = owner.get_image_features

            @functools.wraps(original)  # generate reads the signature
            def edited(*args: Any, **kwargs: Any) -> Any:
                outputs = original(*args, **kwargs)
                features = list(outputs.pooler_output)
                for each in list(edits):
                    features = list(each(features))
                stacked = isinstance(outputs.pooler_output, Tensor)
                outputs.pooler_output = torch.stack(features) if stacked else type(outputs.pooler_output)(features)
                return outputs

            owner.__dict__["get_image_features"] = edited
        edits.append(edit)
        try:
            yield
        finally:
            edits.remove(edit)
            if not edits:
                del owner.__dict__["get_image_features"], owner.__dict__["_image_feature_edits"]

    def edits_image_features(self, model: nn.Module) -> bool:
        """Whether an edit of image features is open."""
        return bool(self._owner(model).__dict__.get("_image_feature_edits"))

    @contextmanager
    def keep_image_features(self, model: nn.Module) -> Iterator[None]:
        """While open, pictures that are run again at once give the features of the run before, instead of passing the tower.

        For runs that differ behind the tower alone: edits of features that are open are kept with them. Open no others within.
        """
        owner = self._owner(model)
        before, original = owner.__dict__.get("get_image_features"), owner.get_image_features
        kept: list[tuple[tuple, dict[str, Any], Any]] = []

        @functools.wraps(original)  # generate reads the signature
        def keeping(*args: Any, **kwargs: Any) -> Any:
            if not kept or not _same_inputs((args, kwargs), kept[0][:2]):
                kept[:] = [(args, kwargs, original(*args, **kwargs))]
            outputs = kept[0][2]
            return type(outputs)(**outputs)  # who is given it may write into it

        owner.__dict__["get_image_features"] = keeping
        try:
            yield
        finally:
            del owner.__dict__["get_image_features"]
            if before is not None:
                owner.__dict__["get_image_features"] = before

    def edit_positions(self, model: nn.Module, edit: Edit) -> AbstractContextManager[None]:
        """While open, `edit` maps the position ids of the vision tokens: per row of the batch [axis, token], in order of place.

        Ids may become fractions; those of the text stay. Edits compose in the order in which they were opened and reach forward
        and generate alike. Raises ValueError, once the model runs, where its ids don't say which tokens are the picture's, and
        for edited ids of another shape or that are not finite.
        """
        return edited_positions(model, self.image_token_id(model), max(1, len(self.position_axes(model))), edit)

    def edit_hidden(self, model: nn.Module, layer: int, edit: HiddenEdit) -> AbstractContextManager[None]:
        """While open, `edit` maps hidden states [example, token, width]: of layer 0 what enters the first block, of i the i-th's
        output.

        Edits compose in the order in which they were opened, may be closed in any order, and come before whatever else is hooked
        to the place, so that what is read there was edited.
        """
        blocks = self.part(model, "layers")
        if layer == 0:
            return edited_entering(blocks[0], edit)
        return edited_leaving(blocks[layer - 1], edit, self.hidden, self.replace_hidden)

    def heads(self, model: nn.Module, layer: int) -> Heads:
        """The heads of the language model's block `layer`, counted from 0, where they enter the output projection.

        Raises ValueError for a block that is not there, and for one whose attention is linear.
        """
        blocks = self.part(model, "layers")
        if not 0 <= layer < len(blocks):
            raise ValueError(f"layer {layer} has no heads: the model has layers 0 to {len(blocks) - 1}")
        if (attention := self.attention(blocks[layer])) is None:
            there = ", ".join(str(i) for i, block in enumerate(blocks) if self.attention(block) is not None)
            raise ValueError(f"layer {layer} has no heads to take out, its attention is linear; layers with heads: {there}")
        return heads_of(attention, self.head_projection)

    def edit_heads(self, model: nn.Module, layer: int, edit: HeadEdit) -> AbstractContextManager[None]:
        """While open, `edit` maps what the heads of a block give, [example, token, head, size], before it is projected.

        Where the family gates it (Qwen3.5), after the gate. Edits compose as those of `edit_hidden`. Raises as `heads`.
        """
        return edited_heads(self.heads(model, layer), edit)

    def edits_hidden(self, model: nn.Module) -> bool:
        """Whether an edit of hidden states or heads is open."""
        return any(is_edited(module) for block in self.part(model, "layers") for module in block.modules())

    def _owner(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.image_owner)


def fitting(tokens: list[Tensor], width: int, like: nn.Module) -> list[Float[Tensor, "token width"]]:
    """The inputs of a connector with the dtype and on the device of its parameters. Raises ValueError for another width."""
    if wrong := [tuple(one.shape) for one in tokens if one.ndim != 2 or one.shape[1] != width]:
        raise ValueError(f"the connector reads [token, {width}] a picture, not {wrong[0]}: vectors of another model or site")
    parameter = next(like.parameters())
    return [one.to(parameter) for one in tokens]


def _same_inputs(one: Any, other: Any) -> bool:
    """Whether two calls were given the same, tensors number by number."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same_inputs(one[name], other[name]) for name in one)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same_inputs, one, other))
    return one == other
