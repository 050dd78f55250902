"""Builders of tiny random checkpoints of the families beside LLaVA, saved as folders that `VLM.load` loads.

All are 64 wide with 4 heads in the language model, 2 of them key-value heads, and weights four times the usual initialisation, as
in `tiny.py`. A Qwen sees 8 pixels a cell (patch 4, merged 2 x 2), so that 48x48 pixels are 6 x 6 cells, and any other size is its
own grid; it has no bos token, as the real ones. Idefics2 has 10 latents whatever the picture, and patches of 8 pixels.
"""

from __future__ import annotations

from pathlib import Path

from tiny import QUESTIONS, SYSTEM, TEMPLATE, WORDS, picture

from spatialprobes.examples import Example

SIZES = [(48, 48), (72, 40), (40, 64)]  # pixels; wide and high ones, whose grids differ
LATENTS = 10
QWEN_PICTURE = "<|vision_start|> <|image_pad|> <|vision_end|>"
QWEN_SPECIAL = ["<pad>", "</s>", "<unk>", "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"]
IDEFICS2_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<fake_token_around_image>", "<end_of_utterance>"]
PLAIN = [word for word in WORDS if not word.startswith("<")]


def save_qwen2_vl(folder: Path, *, layers: int = 3, system: str = SYSTEM, seed: int = 0) -> Path:
    """A Qwen2-VL: 2 tower blocks, each one attention call per picture."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = _qwen_words()
    vision = dict(_tower(), depth=2, embed_dim=32, hidden_size=64, mlp_ratio=2)
    config = Qwen2VLConfig(text_config=_qwen_text(tokenizer, layers), vision_config=vision, **_qwen_ids(tokenizer))
    return _save_qwen(folder, Qwen2VLForConditionalGeneration, config, tokenizer, system, seed)


def save_qwen2_5_vl(folder: Path, *, layers: int = 3, system: str = SYSTEM, seed: int = 0) -> Path:
    """A Qwen2.5-VL: windows of 2 x 2 cells in tower blocks 0 and 2, the whole picture in block 1."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = _qwen_words()
    vision = dict(
        _tower(), depth=3, hidden_size=32, intermediate_size=64, out_hidden_size=64, window_size=16, fullatt_block_indexes=[1]
    )
    config = Qwen2_5_VLConfig(text_config=_qwen_text(tokenizer, layers), vision_config=vision, **_qwen_ids(tokenizer))
    return _save_qwen(folder, Qwen2_5_VLForConditionalGeneration, config, tokenizer, system, seed)


def save_qwen3_5(folder: Path, *, layers: int = 4, experts: int = 0, system: str = SYSTEM, seed: int = 0) -> Path:
    """A Qwen3.5: linear attention in layers 0 and 2, full attention, with gated heads, in 1 and 3; with `experts`, its MoE.

    As the real one, it is made to think before it answers unless the template is told otherwise.
    """
    from transformers import (
        Qwen3_5Config,
        Qwen3_5ForConditionalGeneration,
        Qwen3_5MoeConfig,
        Qwen3_5MoeForConditionalGeneration,
    )

    tokenizer = _qwen_pieces()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2], "mrope_interleaved": True}
    text = dict(
        _qwen_text(tokenizer, layers),
        layer_types=["full_attention" if i % 2 else "linear_attention" for i in range(layers)],
        head_dim=32,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=rope | {"partial_rotary_factor": 0.5},
    )
    vision = dict(
        _tower(), depth=2, hidden_size=32, intermediate_size=64, out_hidden_size=64, num_position_embeddings=36
    )  # a 6 x 6 table, interpolated to each picture's patches
    if experts:
        text |= {"num_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        text |= {"shared_expert_intermediate_size": 32}
        config = Qwen3_5MoeConfig(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
        return _save_qwen(folder, Qwen3_5MoeForConditionalGeneration, config, tokenizer, system, seed, thinks=True)
    config = Qwen3_5Config(text_config=text, vision_config=vision, **_qwen_ids(tokenizer))
    return _save_qwen(folder, Qwen3_5ForConditionalGeneration, config, tokenizer, system, seed, thinks=True)


def save_idefics2(folder: Path, *, layers: int = 3, system: str = SYSTEM, seed: int = 0) -> Path:
    """An Idefics2: patches of 8 pixels of pictures up to 64 pixels long, resampled to 10 latents, which are drawn at random.

    As transformers makes them, all latents are ones, all vision tokens alike, and every test of a permutation empty.
    """
    import torch
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration, Idefics2ImageProcessorPil, Idefics2Processor

    tokenizer = _words([*IDEFICS2_SPECIAL, *PLAIN], IDEFICS2_SPECIAL[4:], bos_token="<s>")
    ids = tokenizer.get_vocab()
    text = _text(tokenizer, layers) | {"model_type": "mistral", "bos_token_id": ids["<s>"]}
    vision = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "image_size": 48}
    perceiver = {"resampler_n_latents": LATENTS, "resampler_depth": 2, "resampler_n_heads": 4, "resampler_head_dim": 16}
    config = Idefics2Config(
        text_config=text,
        vision_config=vision | {"patch_size": 8},
        perceiver_config=perceiver | {"hidden_size": 64, "num_key_value_heads": 2},
        image_token_id=ids["<image>"],
    )
    model = _model(Idefics2ForConditionalGeneration, config, seed)
    with torch.no_grad():
        model.model.connector.perceiver_resampler.latents.normal_(generator=torch.Generator().manual_seed(seed))
    processor = Idefics2Processor(
        Idefics2ImageProcessorPil(size={"shortest_edge": 16, "longest_edge": 64}, do_image_splitting=True),  # as published
        tokenizer,
        image_seq_len=LATENTS,
        chat_template=_template("<s>", "<image>", system),
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def mixed(n: int = 6) -> list[Example]:
    """Questions of unequal length about three pictures of unequal size in turn."""
    shown = [picture(i, size) for i, size in enumerate(SIZES)]
    found = []
    for i in range(n):
        question, answer, choices = QUESTIONS[i % len(QUESTIONS)]
        found.append(Example(f"e{i}", shown[i % 3], question, answer, choices, cluster=f"picture-{i % 3}"))
    return found


def _save_qwen(folder: Path, kind: type, config, tokenizer, system: str, seed: int, thinks: bool = False) -> Path:
    from transformers import Qwen2VLImageProcessorPil

    template = _template("", QWEN_PICTURE, system)
    if thinks:
        choice = "' <think> </think>' if enable_thinking is defined and enable_thinking is false else ' <think>'"
        template = template.replace("{{ ' assistant:' }}", f"{{{{ ' assistant:' + ({choice}) }}}}")
        template = template.replace("' assistant: '", "' assistant: <think> </think> '")
    tokenizer.chat_template = template
    _model(kind, config, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 16 * 16, "longest_edge": 96 * 48}
    Qwen2VLImageProcessorPil(size=size, patch_size=4, temporal_patch_size=2, merge_size=2).save_pretrained(folder)
    return Path(folder)


def _model(kind: type, config, seed: int):
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def _text(tokenizer, layers: int) -> dict:
    ids = tokenizer.get_vocab()
    return {
        "vocab_size": len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": ids["<pad>"],
        "bos_token_id": None,
        "eos_token_id": ids["</s>"],
    }


def _qwen_text(tokenizer, layers: int) -> dict:
    return _text(tokenizer, layers) | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}


def _qwen_ids(tokenizer) -> dict[str, int]:
    ids = tokenizer.get_vocab()
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad", "vision_start_token_id": "vision_start"}
    return {key: ids[f"<|{name}|>"] for key, name in (names | {"vision_end_token_id": "vision_end"}).items()}


def _tower() -> dict[str, int]:
    return {"num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}


def _template(bos: str, picture: str, system: str) -> str:
    body = TEMPLATE.replace("{{- '<s>' -}}", f"{{{{- '{bos}' -}}}}").replace("'<image> '", f"'{picture} '")
    return f"{{%- set DEFAULT = '{system}' -%}}" + body


def _qwen_words():
    return _words([*QWEN_SPECIAL, *PLAIN], QWEN_SPECIAL[3:])


def _words(words: list[str], special: list[str], **tokens: str):
    """Whole words, parted by spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokens |= {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=special, padding_side="left", **tokens)


def _qwen_pieces():
    """Qwen3.5's own byte-level pieces: transformers makes this class of every folder of the family, whatever the folder says."""
    import json

    from tokenizers import Tokenizer, models, trainers
    from transformers import Qwen3_5Tokenizer

    special = [*QWEN_SPECIAL, "<think>", "</think>"]
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = Qwen3_5Tokenizer()._tokenizer.pre_tokenizer
    learnt.train_from_iterator([" " + " ".join(PLAIN)] * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    model = json.loads(learnt.to_str())["model"]
    return Qwen3_5Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
        padding_side="left",
    )
