"""Builders of tiny random checkpoints, saved as ordinary folders, and of pictures and questions for them.

Weights are four times the usual initialisation: at the usual one attention is nearly flat and many a wrong result looks right.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from spatialprobes.examples import Example

SYSTEM = "look at the picture and answer"
WORDS = (
    "<pad> <s> </s> <unk> <image> user: assistant: what color is the red green blue circle square cross left right above under "
    "of or in picture ? . , not yes no a an and where shape look at answer to top"
).split()
TEMPLATE = """\
{%- macro words(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}{{ '<image> ' }}{%- else -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{{- '<s>' -}}
{%- if DEFAULT and messages[0]['role'] != 'system' -%}{{ ' ' + DEFAULT }}{%- endif -%}
{%- for message in messages -%}
{%- set text = words(message['content']) -%}
{%- if message['role'] == 'system' -%}{%- if text -%}{{ ' ' + text }}{%- endif -%}
{%- elif message['role'] == 'user' -%}{{ ' user: ' + text }}
{%- else -%}{{ ' assistant: ' + text + ' </s>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ ' assistant:' }}{%- endif -%}"""

PIECES_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ message['content'][0]['text'] + ' ' }}
{%- elif message['role'] == 'user' -%}{{ 'USER: ' }}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] + ' ' }}{%- endfor -%}
{%- else -%}{{ 'ASSISTANT: ' + message['content'][0]['text'] + ' ' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"""


def save_llava(
    folder: Path,
    *,
    layers: int = 2,
    kv_heads: int = 4,
    system: str = SYSTEM,
    positions: int = 128,
    seed: int = 0,
    dtype: str = "float32",
    tokenizer: str = "words",
) -> Path:
    """A LLaVA of width 64 with 4 heads and 36 vision tokens (48x48 pixels, patch 8), in `folder`.

    tokenizer: "words" with the lab's kind of template, or "pieces" (byte-level BPE, bos by the tokenizer) with LLaVA-1.5's kind.
    """
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    processor = llava_processor(word_tokenizer(), f"{{%- set DEFAULT = '{system}' -%}}" + TEMPLATE)
    if tokenizer == "pieces":
        processor = llava_processor(piece_tokenizer(), PIECES_TEMPLATE)
    ids = processor.tokenizer.get_vocab()
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=48,
        patch_size=8,
        projection_dim=64,
    )
    text = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def llava_processor(tokenizer, template: str):
    """LlavaProcessor for 48x48 pixels in patches of 8."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    return LlavaProcessor(
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def word_tokenizer():
    """Whole words, as in the lab."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(words)


def piece_tokenizer():
    """Byte-level pieces learnt from a few words, so that most words are several; the tokenizer puts <s> in front by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pieces.train_from_iterator(
        [" the red left is or"] * 3, trainers.BpeTrainer(vocab_size=275, special_tokens=special, initial_alphabet=alphabet)
    )
    pieces.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(pieces)


def _fast(tokenizer):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def picture(seed: int = 0, size: tuple[int, int] = (48, 48)) -> Image.Image:
    """Noise in coarse blocks, so that every patch differs from the others."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)


QUESTIONS = [
    ("is the red circle left or right of the blue square ?", "left", ["left", "right"]),
    ("what color is the circle ?", "red", ["red", "green", "blue"]),
    ("where is the cross ?", "above", ["above", "under"]),
    ("what is left of the green square and above the red cross in the picture ?", "circle", ["circle", "square", "cross"]),
]


def examples(n: int = 6, pictures: int = 3) -> list[Example]:
    """n questions of unequal length about `pictures` pictures in turn."""
    shown = [picture(seed) for seed in range(pictures)]
    found = []
    for i in range(n):
        question, answer, choices = QUESTIONS[i % len(QUESTIONS)]
        group = "relation" if "left" in choices or "above" in choices else "semantic"
        cluster = f"picture-{i % pictures}"
        found.append(
            Example(f"e{i}", shown[i % pictures], question, answer, choices, category=answer, group=group, cluster=cluster)
        )
    return found
