"""Builders of tiny random checkpoints of classes that no family is written for, to be discovered or refused."""

from pathlib import Path

from tiny import TEMPLATE, WORDS, llava_processor, word_tokenizer

VISION = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = VISION | {"num_key_value_heads": 2, "max_position_embeddings": 256}
FORMAT = "{%- set DEFAULT = '' -%}" + TEMPLATE


def save_gemma3(folder: Path, *, seed: int = 0) -> Path:
    """A Gemma 3: 16 vision tokens (64x64 pixels, patch 8, pooled 2x2), which see one another, types of tokens needed for that."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3ImageProcessorPil, Gemma3Processor

    tokenizer = _tokenizer(boi_token="<boi>", eoi_token="<eoi>", image_token="<image>")
    pixels = Gemma3ImageProcessorPil(
        size={"height": 64, "width": 64}, do_pan_and_scan=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    template = FORMAT.replace("<image>", "<boi>")
    processor = Gemma3Processor(pixels, tokenizer, chat_template=template, image_seq_length=16)
    ids = tokenizer.get_vocab()
    config = Gemma3Config(
        text_config=TEXT | _ids(ids) | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64},
        vision_config=VISION | {"image_size": 64, "patch_size": 8},
        mm_tokens_per_image=16,
        image_token_id=ids["<image>"],
        boi_token_id=ids["<boi>"],
        eoi_token_id=ids["<eoi>"],
        eos_token_id=ids["</s>"],
        bos_token_id=ids["<s>"],
        pad_token_id=ids["<pad>"],
    )
    return _save(folder, Gemma3ForConditionalGeneration, config, processor, seed)


def save_idefics3(folder: Path, *, split: bool = False, seed: int = 0) -> Path:
    """An Idefics3: 16 vision tokens (64x64 pixels, patch 8, 2x2 shuffled into one); split: tiles beside the whole picture."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessorPil, Idefics3Processor

    extra = {"fake_token": "<fake_token_around_image>", "end_token": "<end_of_utterance>", "global_token": "<global-img>"}
    rows = {f"cell_{r}_{c}": f"<row_{r}_col_{c}>" for r in range(1, 3) for c in range(1, 3)}
    tokenizer = _tokenizer(image_token="<image>", **extra, **rows)
    pixels = Idefics3ImageProcessorPil(
        size={"longest_edge": 128 if split else 64}, max_image_size={"longest_edge": 64}, do_image_splitting=split
    )
    processor = Idefics3Processor(pixels, tokenizer, image_seq_len=16, chat_template=FORMAT)
    ids = tokenizer.get_vocab()
    config = Idefics3Config(
        text_config=TEXT | _ids(ids) | {"model_type": "llama"},
        vision_config=VISION | {"image_size": 64, "patch_size": 8},
        scale_factor=2,
        image_token_id=ids["<image>"],
        pad_token_id=ids["<pad>"],
        tie_word_embeddings=False,
    )
    return _save(folder, Idefics3ForConditionalGeneration, config, processor, seed)


def save_llava_next(folder: Path, *, seed: int = 0) -> Path:
    """A LLaVA-NeXT: the whole picture and its tiles, with an extra token at the end of each row: no single grid."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextImageProcessorPil, LlavaNextProcessor

    plain = llava_processor(word_tokenizer(), FORMAT)
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]]
    )
    processor = LlavaNextProcessor(
        pixels,
        plain.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=FORMAT,
    )
    ids = plain.tokenizer.get_vocab()
    config = LlavaNextConfig(
        text_config=TEXT | _ids(ids) | {"model_type": "llama"},
        vision_config=VISION | {"model_type": "clip_vision_model", "image_size": 48, "patch_size": 8, "projection_dim": 64},
        image_token_id=ids["<image>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[48, 96], [96, 48], [96, 96]],
    )
    return _save(folder, LlavaNextForConditionalGeneration, config, processor, seed)


def save_text_only(folder: Path) -> Path:
    """A Llama, which takes no pictures."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer()
    LlamaForCausalLM(LlamaConfig(**TEXT, **_ids(tokenizer.get_vocab()))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def _ids(ids: dict[str, int]) -> dict[str, int]:
    return {"vocab_size": len(ids), "pad_token_id": ids["<pad>"], "bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}


def _tokenizer(**special: str):
    """The words of the tiny models and more special tokens, each also an attribute by its name here."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = list(dict.fromkeys([*WORDS, *special.values()]))
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **named, extra_special_tokens=special, padding_side="left")


def _save(folder: Path, kind, config, processor, seed: int) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4) if parameter.any() else parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
