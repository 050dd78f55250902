"""Hand-wired heads: LLaVA models in which it is known which head binds a word to its object, and which reads a corner.

Pictures are grids of 4 x 4 patches, as in `wired.py`, whose helpers are used. Three kinds of model:

- BINDER: a head lets the token of a colour's name attend to the patches of that colour, and writes their place there; another
  (the "teller") carries the places from the names to the last token. "where is red not blue ?" is answered by a place.
- TEXT: two heads of the relation word ("the red the blue left"), without a picture: one attends to the name of a warm colour,
  wherever it stands, the other to what was named first, whatever it is.
- CORNER: a head lets the last token attend to the patch in the corner that is asked for ("Is there anything in the top left
  corner?") where something is there, that is no black patch, and says "yes"; the first token else, and the answer is "no". The
  "gather" head tells it what is asked.

`seed` deals the heads (and the layer of the planted one) anew and draws noise on every weight. All other heads attend to the
first token, and write nothing.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import wired
from PIL import Image
from tiny import TEMPLATE, _fast
from wired import CELLS, COLOURS, CORNERS, FLAT, PATCH, PLACES, SIDE, SIZE, VISION, _set_tower, _toward

from spatialprobes.examples import Example, Object
from spatialprobes.families.llava import Llava
from spatialprobes.loading import Source
from spatialprobes.probes.caption_pairs import CaptionPair, Phrase, Statement
from spatialprobes.vlm import VLM
from spatialprobes.worlds.corners import RELATION, CornerPair, occupied

BINDER, CORNER, TEXT = "binder", "corner", "text"
KINDS = (BINDER, CORNER, TEXT)
WARM = ("red", "magenta", "yellow", "white")
EDGES = ("top", "bottom", "left", "right")
NAMED = [*COLOURS, *EDGES]
FILLERS = "where is not the ? Is there anything in corner?".split()
SYSTEM = "look well"
WORDS = [
    *("<pad>", "<s>", "</s>", "<unk>", "<image>", "user:", "assistant:", "yes", "no"),
    *dict.fromkeys([*SYSTEM.split(), *FILLERS]),
    *NAMED,
    *PLACES,
]
WIDTH, HEADS, LAYERS = 128, 4, 3
PEAK, REST = 80.0, 30.0  # score of what a planted head looks for, and of the first token in all others
THING, NOTHING = 60.0, 120.0  # what something adds to a patch's score, and the first token's, in a head that reads corners
ANSWER = 4.0  # length of what is written for the answer
VALUE = 3.0


def _dims() -> dict[str, int]:
    groups = {"colour": COLOURS, "place": range(CELLS + 1), "word": NAMED, "asked": EDGES, "found": range(CELLS)}
    groups |= {"said": range(CELLS)}
    names = [f"{group}.{name}" for group, members in groups.items() for name in members]
    return {name: i for i, name in enumerate([*names, *"vision text bos ask named colours yes other".split()])}


DIMS = _dims()


@dataclass(frozen=True)
class Plan:
    """planted: the (layer, head) that is to be found. heads: all that do something, by role."""

    kind: str
    planted: tuple[int, int]
    heads: dict[str, tuple[int, int]]


def plan(kind: str, seed: int) -> Plan:
    rng = np.random.default_rng([seed, 500 + KINDS.index(kind)])
    if kind == BINDER:
        layer = int(rng.integers(0, LAYERS - 1))
        roles = {"bind": layer, "tell": int(rng.integers(layer + 1, LAYERS))}
    elif kind == CORNER:
        roles = {"gather": 0, "corner": int(rng.integers(1, LAYERS))}
    else:
        first, second = (int(layer) for layer in rng.permutation(LAYERS)[:2])
        roles = {"content": first, "positional": second}
    heads = {role: (layer, int(rng.integers(HEADS))) for role, layer in roles.items()}
    return Plan(kind, heads[{BINDER: "bind", CORNER: "corner", TEXT: "content"}[kind]], heads)


@torch.no_grad()
def wired_heads(kind: str, seed: int = 0, noise: float = 0.0003) -> tuple[VLM, Plan]:
    """A model of this kind and what is planted in it. noise: standard deviation, on every weight."""
    made, model = plan(kind, seed), copy.deepcopy(_blank())
    _set_tower(model.model.vision_tower, places=True)
    _set_connector(model.model.multi_modal_projector)
    model.get_input_embeddings().weight.copy_(_embeddings())
    for layer, block in enumerate(model.model.language_model.layers):
        roles = {head: role for role, (at, head) in made.heads.items() if at == layer}
        for head in range(HEADS):
            _WIRING[roles.get(head, "rest")](block.self_attn, head, layer, made)
    ids = {word: i for i, word in enumerate(WORDS)}
    for n, place in enumerate(PLACES):
        model.lm_head.weight[ids[place], DIMS[f"said.{n}"]] = 3.0
    model.lm_head.weight[ids["yes"], DIMS["yes"]] = 3.0
    for edge in EDGES:
        model.lm_head.weight[ids["no"], DIMS[f"asked.{edge}"]] = 1.5  # two are asked for: unless a patch says yes
    _add_noise(model, noise, seed)
    return VLM(model, _processor(), Llava(), Source(kind, "hub", None, None), "native", None), made


@torch.no_grad()
def random_heads(seed: int, scale: float = 0.1) -> VLM:
    """The same architecture and processor, every weight but those of norms drawn, so that heads look here and there."""
    model = copy.deepcopy(_blank())
    _add_noise(model, scale, seed)
    model.get_input_embeddings().weight.mul_(10)
    model.model.multi_modal_projector.linear_2.weight.mul_(10)
    model.model.vision_tower.embeddings.patch_embedding.weight.mul_(3)
    return VLM(model, _processor(), Llava(), Source("random", "hub", None, None), "native", None)


def _add_noise(model, noise: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    model.eval().requires_grad_(False)


# What the heads do. Tokens are vectors of a known norm, so what RMSNorm makes of a feature is known


def _write(
    weight: torch.Tensor, head: int, vectors: dict[str, torch.Tensor], size: dict[str, float], norm: dict[str, float]
) -> None:
    """Each feature adds its vector to what this head makes of a token that has it."""
    for feature, vector in vectors.items():
        group = feature.split(".")[0]
        weight[head * SIZE : (head + 1) * SIZE, DIMS[feature]] += vector * norm[group] / (size[group] * math.sqrt(WIDTH))


SIZES = {
    "bos": 1.0,
    "text": 0.5,
    "ask": math.sqrt(0.75),
    "named": 0.5,
    "colours": 0.5,
    "word": 0.5,
    "asked": 1.0,
    "found": ANSWER,
}
SIZES |= dict.fromkeys(("vision", "colour", "place"), VISION / math.sqrt(3))


def _norms(asker: float = 1.0, name: float = 1.0) -> dict[str, float]:
    """Norms of tokens with a feature. asker: of "assistant:", name: of words that are named (both have "text", too)."""
    norms = {"bos": 1.0, "text": 1.0, "ask": asker, "asked": asker, "named": name, "colours": name, "word": name, "found": name}
    return norms | dict.fromkeys(("vision", "colour", "place"), VISION)


def _wire(
    attention, head: int, queries: dict, keys: dict, copies: dict[str, str], length: float, sink: float, norms: dict
) -> None:
    """sink: score of the first token, of all words and patches."""
    resting = _toward(FLAT[-1:], sink)
    queries = {**queries, "text": resting, "vision": resting}
    for role, flag in (("ask", "ask"), ("named", "named")):  # text is as long in them, their norm is another
        if norms[role] != 1.0:
            queries[flag] = queries.get(flag, 0) + resting * (1 - 1 / norms[role])
    _write(attention.q_proj.weight, head, queries, SIZES, norms)
    _write(attention.k_proj.weight, head, {**keys, "bos": resting}, SIZES, norms)
    for i, (source, target) in enumerate(copies.items()):
        group = source.split(".")[0]
        attention.v_proj.weight[head * SIZE + i, DIMS[source]] = VALUE * norms[group] / (SIZES[group] * math.sqrt(WIDTH))
        attention.o_proj.weight[DIMS[target], head * SIZE + i] = length / VALUE


def _rest(attention, head: int, layer: int, made: Plan) -> None:
    _wire(attention, head, {}, {}, {}, 0.0, REST, _norms())


def _bind(attention, head: int, layer: int, made: Plan) -> None:
    """From a colour's name to the patches of that colour; to the first token where there is none."""
    corners = {one: _toward(FLAT[:3], PEAK, CORNERS[one]) for one in COLOURS}
    queries, keys = ({f"{group}.{one}": corners[one] for one in COLOURS} for group in ("word", "colour"))
    copies = {f"place.{n}": f"found.{n}" for n in range(CELLS)}
    _wire(attention, head, queries, keys, copies, ANSWER, PEAK * 2 / 3, _norms())


def _tell(attention, head: int, layer: int, made: Plan) -> None:
    """From the last token to the names, alike; carries the places that were found there."""
    flag = _toward(FLAT[:1], 2 * REST)
    copies = {f"found.{n}": f"said.{n}" for n in range(CELLS)}
    _wire(attention, head, {"ask": flag}, {"colours": flag}, copies, 2 * ANSWER, REST, _norms(name=math.hypot(1, ANSWER)))


def _gather(attention, head: int, layer: int, made: Plan) -> None:
    """From the last token to the names of edges, of which a question has two."""
    flag = _toward(FLAT[:1], 2 * REST)
    copies = {f"word.{edge}": f"asked.{edge}" for edge in EDGES}
    _wire(attention, head, {"ask": flag}, {"named": flag}, copies, 2.0, REST, _norms())


def _corner(attention, head: int, layer: int, made: Plan) -> None:
    """From the last token to the patch where both edges meet that are asked for, if it is not black."""
    signs = {"top": 1.0, "left": 1.0, "bottom": -1.0, "right": -1.0}
    axes = {"top": FLAT[:2], "bottom": FLAT[:2], "left": FLAT[2:4], "right": FLAT[2:4]}
    edges = {edge: _toward(axes[edge], PEAK / 2) * signs[edge] for edge in EDGES}
    thing = _toward(FLAT[4:5], THING)
    keys = {f"colour.{one}": thing for one in COLOURS if one != "black"}
    for n in range(CELLS):
        row, column = divmod(n, SIDE)
        at = [{0: "top", SIDE - 1: "bottom"}.get(row), {0: "left", SIDE - 1: "right"}.get(column)]
        keys[f"place.{n}"] = sum((edges[edge] for edge in at if edge), torch.zeros(SIZE))
    queries = {f"asked.{edge}": edges[edge] for edge in EDGES} | {"ask": thing}
    _wire(attention, head, queries, keys, {"vision": "yes"}, ANSWER, NOTHING, _norms(asker=math.sqrt(3)))


def _content(attention, head: int, layer: int, made: Plan) -> None:
    """From the words left and right to the names of warm colours."""
    flag = _toward(FLAT[:1], 2 * REST)
    _wire(attention, head, _of_relation(flag), {f"word.{one}": flag for one in WARM}, {}, 0.0, REST, _norms())


def _positional(attention, head: int, layer: int, made: Plan) -> None:
    """From the words left and right to the colour that is named three tokens before."""
    keys = {"colours": _toward(wired.TURNING, PEAK)}
    _wire(attention, head, _of_relation(_toward(wired.TURNING, PEAK, offset=3)), keys, {}, 0.0, wired.SINK, _norms())


def _of_relation(vector: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"word.{one}": vector for one in ("left", "right")}


_WIRING = {"rest": _rest, "bind": _bind, "tell": _tell, "gather": _gather, "corner": _corner}
_WIRING |= {"content": _content, "positional": _positional}


# Weights beside the heads


def _set_connector(connector) -> None:
    """A step for every colour and place, as in `wired._set_connector`, into the directions of this module."""
    before = wired.DIMS
    with_these = {name: DIMS[name] for name in before if name in DIMS}
    wired.DIMS = with_these
    try:
        wired._set_connector(connector)
    finally:
        wired.DIMS = before


def _embeddings() -> torch.Tensor:
    made = torch.zeros(len(WORDS), WIDTH)
    for i, word in enumerate(WORDS):
        if word == "<s>":
            parts = {"bos": 1.0}
        elif word == "assistant:":
            parts = {"text": 0.5, "ask": math.sqrt(0.75)}
        elif word in NAMED:
            flag = "colours" if word in COLOURS else "named"
            parts = {"text": 0.5, flag: 0.5, f"word.{word}": 0.5, "other": 0.5}
        else:
            parts = {"text": 0.5, "other": math.sqrt(0.75)}
        for feature, size in parts.items():
            made[i, DIMS[feature]] = size
    return made


@functools.cache
def _blank():
    """`wired._blank` with these words."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig.from_dict(wired._blank().config.to_dict())
    ids = {word: i for i, word in enumerate(WORDS)}
    config.text_config.update({"vocab_size": len(WORDS), "intermediate_size": 4})
    config.text_config.update({"pad_token_id": ids["<pad>"], "bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]})
    config.image_token_index = config.image_token_id = ids["<image>"]
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        model = LlavaForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(float(parameter.ndim == 1 and "norm" in name and name.endswith("weight")))
    return model


@functools.cache
def _processor():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    side = SIDE * PATCH
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        images,
        _fast(words),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=f"{{%- set DEFAULT = '{SYSTEM}' -%}}" + TEMPLATE,
    )


# Pictures and questions


def picture(colours: list[str] | np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Of names of colours in raster order, or of levels [cell, channel] in -1..1."""
    signs = np.stack([CORNERS[one].numpy() for one in colours]) if isinstance(colours, list) else colours
    levels = np.kron(127.5 + 107.5 * signs.reshape(SIDE, SIDE, 3), np.ones((PATCH, PATCH, 1)))
    return Image.fromarray((levels + rng.normal(0, 6, levels.shape)).clip(0, 255).astype(np.uint8))


def box(cell: int) -> tuple[float, float, float, float]:
    row, column = divmod(cell, SIDE)
    return column / SIDE, row / SIDE, (column + 1) / SIDE, (row + 1) / SIDE


def thing(name: str, cell: int) -> Object:
    left, top, right, bottom = box(cell)
    return Object(name, ((left + right) / 2, (top + bottom) / 2), (left, top, right, bottom))


def where_examples(seed: int, count: int, *, named: bool = True) -> list[Example]:
    """ "where is red not blue ?": one patch of each colour among patches of others; the answer is the place of the first.

    named: False for pictures of colours that have no names, dealt anew for every patch: words then mean nothing there.
    """
    rng = np.random.default_rng([seed, 78])
    found = []
    for i in range(count):
        subject, reference, *others = (str(one) for one in rng.permutation(list(COLOURS)))
        cells = rng.permutation(CELLS)
        first, second = int(cells[0]), int(cells[1])
        colours = [str(one) for one in rng.choice(others[:4], CELLS)]
        colours[first], colours[second] = subject, reference
        shown = picture(colours if named else rng.uniform(-1, 1, (CELLS, 3)), rng)
        row = {-1: "above", 1: "below"}.get(int(np.sign(first // SIDE - second // SIDE)))
        relation = row or ("left" if first < second else "right")
        found.append(
            Example(
                f"w{i}",
                shown,
                f"where is {subject} not {reference} ?",
                PLACES[first],
                [PLACES[int(cell)] for cell in sorted(cells[[0, 2, 3, 4]])],
                category=relation,
                cluster=f"w{i}",
                objects=[thing(subject, first), thing(reference, second)],
                meta={"subject": subject, "reference": reference, "word": "", "relation": relation},
            )
        )
    return found


def corner_pairs(seed: int, count: int, corner: str, *, named: bool = True) -> list[CornerPair]:
    """Pairs of pictures: a patch that is not black in the corner and another in none, or the latter alone; else all is black.

    Pair i is the same in all corners but for the place. named: False for pictures in which all patches have colours of their own,
    in both members: nothing tells them apart.
    """
    top, left = "top" in corner, "left" in corner
    taken = (0 if top else SIDE - 1) * SIDE + (0 if left else SIDE - 1)
    inside = [cell for cell in range(CELLS) if {*divmod(cell, SIDE)} - {0, SIDE - 1}]
    pairs = []
    for i in range(count):
        rng = np.random.default_rng([seed, 79, i])
        one, other = (str(name) for name in rng.choice([name for name in COLOURS if name != "black"], 2, replace=False))
        second = int(rng.choice(inside))
        full, control = (["black"] * CELLS for _ in range(2))
        full[taken], full[second], control[second] = one, other, other
        shown = [picture(colours if named else rng.uniform(-1, 1, (CELLS, 3)), rng) for colours in (full, control)]
        objects = [thing(one, taken), thing(other, second)]
        where = {"objects": objects, "relation": RELATION[corner], "occupied": occupied(objects), "caption": ""}
        pairs.append(CornerPair(f"{corner}-{i}", corner, *shown, **where, meta={"match": f"{i}"}))
    return pairs


def caption_pairs(seed: int, count: int, *, warm: bool = True) -> list[CaptionPair]:
    """ "the red the blue left" and "the blue the red right", left first or right first as chance has it.

    warm: the first colour is a warm one, the second is not; False: any two.
    """
    rng = np.random.default_rng([seed, 80])
    cold = [one for one in COLOURS if one not in WARM]
    pairs = []
    for i in range(count):
        first, second = (str(rng.choice(WARM)), str(rng.choice(cold))) if warm else map(str, rng.permutation(list(COLOURS))[:2])
        words = [str(one) for one in rng.permutation(["left", "right"])]
        members = _stated(first, second, words[0]), _stated(second, first, words[1])
        pairs.append(CaptionPair(f"t{i}", f"t{i}", words[0], members))
    return pairs


def _stated(first: str, second: str, word: str) -> Statement:
    text = f"the {first} the {second} {word}"
    at = len(f"the {first} ")
    says = Phrase(word, "", "", "")
    return Statement(text, (0, at - 1), (at, at + len(f"the {second}")), (len(text) - len(word), len(text)), says)
