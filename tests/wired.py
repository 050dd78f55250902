"""Hand-wired models: real LLaVA classes whose weights are set, not trained, so that what every probe must find is known.

A picture is a grid of 4 x 4 coloured patches. Two kinds of question: "is there red ?" and "what color is at r1c3 ?". All kinds of
model answer the first by content alone. They differ in where place lives when the second is asked:

- LM_POSITIONS: the tower says the colour of a patch, nothing of its place; a head finds the patch by its distance, through RoPE;
- TOWER_POSITIONS: the tower's position embeddings write a code of the place; a head finds the patch by it, through dimensions of
  RoPE that hardly turn;
- NONE: nowhere; a head attends to all patches alike, so that the most frequent colour is answered.

Besides, heads that only look (their values are zero) have shares known in advance, vectors are VISION times as long as words at
the language model's input, and words grow from layer to layer as TEXT_NORMS says. `seed` deals heads and layers anew and draws
noise on every weight.

How: residual directions are named (DIMS); a token is a unit vector of them (words) or VISION times one (patches), so that
RMSNorm divides by a known number, and a head is what each feature adds to query, key and value, in chosen pairs of RoPE
dimensions (`_toward`).
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from tiny import TEMPLATE, _fast

from spatialprobes.examples import Example
from spatialprobes.families.llava import Llava
from spatialprobes.loading import Source
from spatialprobes.vlm import VLM

LM_POSITIONS, TOWER_POSITIONS, NONE = "lm-positions", "tower-positions", "none"
KINDS = (LM_POSITIONS, TOWER_POSITIONS, NONE)

SIDE, PATCH = 4, 8  # patches of a side, pixels of a patch
CELLS = SIDE * SIDE
PLACES = [f"r{row}c{col}" for row in range(SIDE) for col in range(SIDE)]  # in raster order
COLOURS = {"black": 0, "blue": 1, "green": 2, "cyan": 3, "red": 4, "magenta": 5, "yellow": 6, "white": 7}  # bits are R, G, B
NAMED = [*PLACES, *COLOURS]
SYSTEM = "look well and say so"
FILLERS = "what which color is at stands in there any patch ? here".split()
WORDS = [
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "user:",
    "assistant:",
    *SYSTEM.split(),
    *FILLERS,
    "yes",
    "no",
    "nothing",
    *NAMED,
]

WIDTH, HEADS, SIZE, LAYERS, THETA = 128, 4, 32, 3, 1e6
VISION = 12.0  # norm of what enters for a patch
TEXT_NORMS = (1.0, 2.0, 4.0, 8.0)  # of a word at hidden layers 0..L; patches stay at VISION
BALLAST = [math.sqrt(norm**2 - 1) for norm in TEXT_NORMS]
ANSWER = 4.0  # length of what a reading head writes
VALUE = 3.0  # of a value vector: noise on W_v and on W_o then weigh the same

FLAT = range(10, 16)  # pairs of RoPE dimensions that turn by less than .02 over a prompt
TURNING = range(4)  # pairs that turn by 1, .42, .18 and .07 a token
PEAK, SINK = 80.0, 74.0  # a reading head's score at the right distance, and at rest (on bos)
REST = 30.0  # score of bos in every other head
SLOPE, SLOPE_PAIR, SLOPE_OFFSET = 3.0, 2, 3  # a soft head: score, pair of dimensions, distance of its peak
ON_SYSTEM = 1.5  # score of a system word in a soft head

# Prompt: <s>, system, user:, patches, question, assistant:
FIRST = 1 + len(SYSTEM.split()) + 1  # position of the first patch
PLACE_AT, ASKED_WORDS = 4, 6  # index of the place in its question, words of that question
LAST = FIRST + CELLS + ASKED_WORDS  # position of "assistant:" after a question about a place


def _dims() -> dict[str, int]:
    plain = [*SYSTEM.split(), *FILLERS, "user:", "yes", "no", "nothing"]
    groups = {"colour": COLOURS, "place": range(CELLS + 1), "word": NAMED, "asked": NAMED, "said": COLOURS, "self": plain}
    names = [f"{group}.{name}" for group, members in groups.items() for name in members]
    return {name: i for i, name in enumerate([*names, *"vision text bos ask system user named yes ballast".split()])}


DIMS = _dims()  # place.16 is what a patch has whose place the tower does not tell
CORNERS = {colour: torch.tensor([1.0 if bits & bit else -1.0 for bit in (4, 2, 1)]) for colour, bits in COLOURS.items()}
CODES = [torch.tensor(signs) for signs in itertools.product((1.0, -1.0), repeat=4)]


@dataclass(frozen=True)
class Plan:
    """What is planted where: (layer, head) by role. `reading` is the layer of the heads that answer."""

    kind: str
    seed: int
    noise: float
    reading: int
    heads: dict[str, tuple[int, int]]


def plan(kind: str, seed: int = 0, noise: float = 0.0003) -> Plan:
    """Deals the roles to heads: gather, system and (LM_POSITIONS) slope in layer 0, the readers in layer 1 or 2."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    reading = int(rng.integers(1, LAYERS))
    roles = {
        0: ["gather", "system", *(["slope"] if kind == LM_POSITIONS else [])],
        reading: ["place", "semantic", "look"],
        3 - reading: ["text_only", "vision_only"],
    }
    heads = {
        role: (layer, int(head))
        for layer, names in roles.items()
        for role, head in zip(names, rng.permutation(HEADS), strict=False)
    }
    return Plan(kind, seed, noise, reading, heads)


@torch.no_grad()
def wired(kind: str, seed: int = 0, noise: float = 0.0003) -> tuple[VLM, Plan]:
    """A model of this kind and what is planted in it. noise: standard deviation, on every weight."""
    made = plan(kind, seed, noise)
    model = copy.deepcopy(_blank())
    _set_tower(model.model.vision_tower, places=kind == TOWER_POSITIONS)
    _set_connector(model.model.multi_modal_projector)
    model.get_input_embeddings().weight.copy_(_embeddings())
    for layer, block in enumerate(model.model.language_model.layers):
        roles = {head: role for role, (at, head) in made.heads.items() if at == layer}
        for head in range(HEADS):
            _set_head(block.self_attn, head, layer, _head(kind, roles.get(head, "rest")))
        _set_growth(block.mlp, layer)
    _set_answers(model.lm_head.weight)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    model.eval().requires_grad_(False)
    return VLM(model, _processor(), Llava(), Source(kind, "hub", None, None), "native", None), made


# What the heads do


@dataclass
class Head:
    """What each feature adds to a token's query and key ([SIZE], before RoPE), and what is copied from feature to feature."""

    queries: dict[str, torch.Tensor]
    keys: dict[str, torch.Tensor]
    copies: dict[str, str] = field(default_factory=dict)
    length: float = 1.0  # of what one wholly attended token writes
    sink: float = 0.0  # score of bos for all words and patches


def _toward(pairs: range, score: float, signs: torch.Tensor | None = None, offset: float = 0.0) -> torch.Tensor:
    """A vector of equal parts in these pairs; with itself, and a query of this offset, it scores the mean over pairs of
    score * cos((distance - offset) * frequency).
    """
    vector = torch.zeros(SIZE)
    size = math.sqrt(score * math.sqrt(SIZE) / len(pairs))
    for i, pair in enumerate(pairs):
        angle = -offset * frequency(pair)
        sign = 1.0 if signs is None else float(signs[i])
        vector[pair], vector[pair + SIZE // 2] = sign * size * math.cos(angle), sign * size * math.sin(angle)
    return vector


def frequency(pair: int) -> float:
    """Radians that this pair of RoPE dimensions turns by a token."""
    return THETA ** (-2 * pair / SIZE)


def _head(kind: str, role: str) -> Head:
    if role == "place":
        return _placing(kind, "asked", LAST, copies={f"colour.{one}": f"said.{one}" for one in COLOURS}, length=ANSWER)
    if role == "look":
        return _placing(kind, "word", FIRST + CELLS + PLACE_AT, copies={}, length=0.0)
    return _OTHERS[role]()


def _placing(kind: str, asking: str, position: int, **output) -> Head:
    """Attends to the patch that is named, from the token at this position."""
    queries = {place: f"{asking}.{place}" for place in PLACES}
    if kind == LM_POSITIONS:
        return Head(
            {queries[place]: _toward(TURNING, PEAK, offset=position - FIRST - n) for n, place in enumerate(PLACES)},
            {"vision": _toward(TURNING, PEAK)},
            sink=SINK,
            **output,
        )
    if kind == TOWER_POSITIONS:
        return Head(
            {queries[place]: _toward(FLAT[:4], PEAK, CODES[n]) for n, place in enumerate(PLACES)},
            {f"place.{n}": _toward(FLAT[:4], PEAK, CODES[n]) for n in range(CELLS)},
            sink=PEAK * 3 / 4,
            **output,
        )
    return Head(
        {queries[place]: _toward(FLAT[:1], REST) for place in PLACES},
        {"vision": _toward(FLAT[:1], REST)},
        sink=REST / 2,
        **output,
    )


def _semantic() -> Head:
    """Attends to the patches of the colour that is asked for; to bos where there is none."""
    corners = {one: _toward(FLAT[:3], PEAK, CORNERS[one]) for one in COLOURS}
    return Head(
        {f"asked.{one}": corners[one] for one in COLOURS},
        {f"colour.{one}": corners[one] for one in COLOURS},
        copies={"vision": "yes"},
        length=ANSWER,
        sink=PEAK * 2 / 3,
    )


def _flags(query: str, key: str, score: float, sink: float = REST, **output) -> Head:
    return Head({query: _toward(FLAT[:1], score)}, {key: _toward(FLAT[:1], score)}, sink=sink, **output)


_OTHERS = {
    "rest": lambda: Head({}, {}, sink=REST),
    "gather": lambda: _flags("ask", "named", 2 * REST, copies={f"word.{name}": f"asked.{name}" for name in NAMED}),
    "semantic": _semantic,
    "text_only": lambda: _flags("text", "user", 2 * REST),
    "vision_only": lambda: _flags("text", "vision", 2 * REST),
    "system": lambda: _flags("text", "system", ON_SYSTEM, sink=0.0),
    "slope": lambda: Head(
        {"ask": _toward(range(SLOPE_PAIR, SLOPE_PAIR + 1), SLOPE, offset=SLOPE_OFFSET)},
        {"vision": _toward(range(SLOPE_PAIR, SLOPE_PAIR + 1), SLOPE)},
    ),
}


# Setting weights


def _size(feature: str) -> float:
    """Length of a feature in the tokens that have it, at the language model's input (asked: once gathered)."""
    group = feature.split(".")[0]
    if group in ("vision", "colour", "place"):
        return VISION / math.sqrt(3)
    return {"bos": 1.0, "asked": 1.0, "ask": math.sqrt(0.75)}.get(group, 0.5)


def _normed(feature: str, layer: int) -> float:
    """The same after the RMSNorm of this layer."""
    group = feature.split(".")[0]
    if group in ("vision", "colour", "place"):
        norm = VISION
    elif group in ("ask", "asked"):
        norm = asker_norms()[layer]
    else:
        norm = 1.0 if group == "bos" else TEXT_NORMS[layer]
    return _size(feature) / norm * math.sqrt(WIDTH)


@functools.cache
def asker_norms() -> tuple[float, ...]:
    """Norms of the token that answers ("assistant:") at the entry of each layer, before anything was read."""
    ballast, norms = 0.0, [1.0]
    for layer in range(LAYERS):
        entering = math.sqrt(2 + ballast**2)  # itself and what layer 0 gathered
        share = TEXT_NORMS[layer] / entering
        ballast += (BALLAST[layer + 1] - BALLAST[layer]) * _grown(share)
        norms.append(math.sqrt(2 + ballast**2))
    return tuple(norms)


def _grown(share: float) -> float:
    """Activation of the growing neuron, for a token whose text flag is this share of an ordinary word's."""
    return share * share / (1 + math.exp(-10 * share))


def _set_head(attention, head: int, layer: int, wanted: Head) -> None:
    rows = slice(head * SIZE, (head + 1) * SIZE)
    queries, keys = dict(wanted.queries), dict(wanted.keys)
    if wanted.sink:
        resting = _toward(FLAT[-1:], wanted.sink)
        keys["bos"] = keys.get("bos", 0) + resting
        for flag in ("text", "vision"):
            queries[flag] = queries.get(flag, 0) + resting
        if layer:  # words and the asker have other norms here: give the asker what its text flag lacks
            queries["ask"] = queries.get("ask", 0) + resting * (1 - TEXT_NORMS[layer] / asker_norms()[layer])
    for weight, vectors in ((attention.q_proj.weight, queries), (attention.k_proj.weight, keys)):
        for feature, vector in vectors.items():
            weight[rows, DIMS[feature]] += vector / _normed(feature, layer)
    for i, (source, target) in enumerate(wanted.copies.items()):
        attention.v_proj.weight[head * SIZE + i, DIMS[source]] = VALUE / _normed(source, layer)
        attention.o_proj.weight[DIMS[target], head * SIZE + i] = wanted.length / VALUE


def _set_growth(mlp, layer: int) -> None:
    """One neuron, on by the text flag, makes words as long as TEXT_NORMS says."""
    mlp.gate_proj.weight[0, DIMS["text"]] = 10 / _normed("text", layer)
    mlp.up_proj.weight[0, DIMS["text"]] = 0.2 / _normed("text", layer)
    mlp.down_proj.weight[DIMS["ballast"], 0] = (BALLAST[layer + 1] - BALLAST[layer]) / 2  # silu(10) * .2 is 2


def _set_answers(weight: torch.Tensor) -> None:
    ids = {word: i for i, word in enumerate(WORDS)}
    for colour in COLOURS:
        weight[ids[colour], DIMS[f"said.{colour}"]] = 3.0
        weight[ids["no"], DIMS[f"asked.{colour}"]] = 2.4  # unless a patch says yes
    weight[ids["yes"], DIMS["yes"]] = 3.0
    weight[ids["nothing"], DIMS["ask"]] = 1.5  # where nothing was read
    weight[ids["</s>"], DIMS["text"]] = 1.2  # after any word but "assistant:"


def _embeddings() -> torch.Tensor:
    """A unit vector for every word."""
    made = torch.zeros(len(WORDS), WIDTH)
    half, rest = 0.5, math.sqrt(0.5)
    for i, word in enumerate(WORDS):
        if word == "<s>":
            parts = {"bos": 1.0}
        elif word == "assistant:":
            parts = {"text": half, "ask": math.sqrt(0.75)}
        elif word in NAMED:
            parts = {"text": half, "user": half, "named": half, f"word.{word}": half}
        elif word in SYSTEM.split() or word in FILLERS:
            flag = "system" if word in SYSTEM.split() else "user"
            parts = {"text": half, flag: half, f"self.{word}": rest}
        elif f"self.{word}" in DIMS:
            parts = {"text": half, f"self.{word}": math.sqrt(0.75)}
        else:
            parts = {"text": 1.0}  # <pad>, </s>, <unk>, <image>: never attended to, or replaced
        for feature, size in parts.items():
            made[i, DIMS[feature]] = size
    return made


VISION_WIDTH, LEVEL = 48, 215 / 255  # +-LEVEL: what the processor makes of the colours' 20 and 235
CODE = 3**0.5 * LEVEL  # length of a place's code beside a colour's in the tower
HALF = VISION_WIDTH // 2
STEEP = 5.0


def _set_tower(tower, places: bool) -> None:
    """Features (u, -u), whose mean is 0: u holds mean red, green, blue of the patch and a place code of fixed length.

    The encoder's layers add nothing.
    """
    embeddings = tower.embeddings
    for channel in range(3):
        embeddings.patch_embedding.weight[channel, channel] = 1 / PATCH**2
        embeddings.patch_embedding.weight[HALF + channel, channel] = -1 / PATCH**2
    for n in range(CELLS):
        at = 3 + (n if places else CELLS)
        embeddings.position_embedding.weight[1 + n, at] = CODE
        embeddings.position_embedding.weight[1 + n, HALF + at] = -CODE


def _set_connector(connector) -> None:
    """A step for every colour and every place code: two GELUs that saturate; then the vectors of the language model."""
    scale = 1 / math.sqrt(2 * (3 * LEVEL**2 + CODE**2) / VISION_WIDTH)  # of the tower's LayerNorm
    directions = {f"colour.{one}": (CORNERS[one], slice(0, 3), 3 * LEVEL * scale, LEVEL * scale) for one in COLOURS}
    directions |= {f"place.{n}": (torch.ones(1), slice(3 + n, 4 + n), CODE * scale, 0.0) for n in range(CELLS + 1)}
    for i, (feature, (direction, where, present, absent)) in enumerate(directions.items()):
        gap = present - absent  # between a feature that is there and the nearest that is not
        for unit, threshold, sign in ((2 * i, absent + 0.3 * gap, 1), (2 * i + 1, absent + 0.7 * gap, -1)):
            connector.linear_1.weight[unit, where] = STEEP * direction
            connector.linear_1.bias[unit] = -STEEP * threshold
            connector.linear_2.weight[DIMS[feature], unit] = sign * _size(feature) / (STEEP * 0.4 * gap)
    connector.linear_2.bias[DIMS["vision"]] = _size("vision")


@functools.cache
def _blank():
    """The real class, all weights 0 but those of the norms; to be copied."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    ids = {word: i for i, word in enumerate(WORDS)}
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=SIZE,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        pad_token_id=ids["<pad>"],
        bos_token_id=ids["<s>"],
        eos_token_id=ids["</s>"],
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
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


def examples(seed: int = 0, pictures: int = 8, each: int = 4) -> list[Example]:
    """`each` questions of either kind about every picture, shuffled. meta["colours"]: of the patches, in raster order.

    A picture has 3 to 5 colours, one of them at least two patches ahead of the others. Half of the existence questions are true.
    """
    rng = np.random.default_rng([seed, 77])
    found = []
    for i in range(pictures):
        colours = _colours(rng)
        shown = _picture(colours, rng)
        absent = [one for one in COLOURS if one not in colours]
        common = {"image": shown, "cluster": f"picture-{i}", "meta": {"colours": colours}}
        for j, n in enumerate(rng.choice(CELLS, each, replace=False)):
            wording = rng.choice(["what color is at {} ?", "which color stands in {} ?"])
            found.append(
                Example(
                    f"p{i}-place{j}",
                    question=str(wording).format(PLACES[n]),
                    answer=colours[n],
                    choices=list(COLOURS),
                    category=PLACES[n],
                    group="spatial.place",
                    **common,
                )
            )
        for j in range(each):
            colour = str(rng.choice(sorted(set(colours)) if j % 2 else absent))
            wording = rng.choice(["is there {} ?", "is any {} patch there ?"])
            found.append(
                Example(
                    f"p{i}-colour{j}",
                    question=str(wording).format(colour),
                    answer="yes" if j % 2 else "no",
                    choices=["yes", "no"],
                    category=colour,
                    group="semantic.existence",
                    **common,
                )
            )
    return [found[i] for i in rng.permutation(len(found))]


def _colours(rng: np.random.Generator) -> list[str]:
    while True:
        palette = rng.choice(list(COLOURS), rng.integers(3, 6), replace=False)
        drawn = [str(one) for one in rng.choice(palette, CELLS)]
        counts = sorted((drawn.count(one) for one in set(drawn)), reverse=True)
        if len(counts) > 1 and counts[0] >= counts[1] + 2:
            return drawn


def _picture(colours: list[str], rng: np.random.Generator) -> Image.Image:
    signs = torch.stack([CORNERS[one] for one in colours]).reshape(SIDE, SIDE, 3).numpy()
    levels = np.kron(127.5 + 107.5 * signs, np.ones((PATCH, PATCH, 1)))
    return Image.fromarray((levels + rng.normal(0, 6, levels.shape)).clip(0, 255).astype(np.uint8))


def predict(kind: str, example: Example, order=range(CELLS), shift: int = 0) -> str | None:
    """The answer with patch order[n] in place n and the vision tokens' positions shifted; None for "nothing"."""
    colours = example.meta["colours"]
    if example.group == "semantic.existence":
        return example.answer
    if kind == NONE:
        return max(sorted(set(colours)), key=colours.count)
    named = PLACES.index(example.category)
    if kind == TOWER_POSITIONS:
        return colours[named]
    return colours[order[named - shift]] if 0 <= named - shift < CELLS else None
