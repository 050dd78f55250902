"""The lab's models as folders: untrained models of the real transformers classes, their words, and how weights are shared.

Knows nothing of training (``lab.py``) and of what is asked of the models.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Punctuation, Sequence, WhitespaceSplit
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from spatialprobes.worlds.lab import WORLD
from spatialprobes.worlds.lab_language import CHAT_TEMPLATE, ID, ROLES, SPECIAL, SYSTEM_PROMPT, VOCABULARY

WIDTH, HEADS, DEPTH, TOWER_DEPTH = 128, 4, 4, 4
INITIALIZER_RANGE = 0.08  # about 1 / sqrt(width); with transformers' default of .02 training stays on a plateau
UNSHARED = "unshared.safetensors"  # a model's own weights, where others are shared
SPECIAL_IDS = {"pad_token_id": ID["<pad>"], "bos_token_id": ID["<s>"], "eos_token_id": ID["</s>"]}


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """Lower-cased words of ``VOCABULARY``, parted by space and punctuation, padded on the left; options as its class takes."""
    inner = Tokenizer(WordLevel(dict(ID), unk_token="<unk>"))
    inner.normalizer = Lowercase()
    inner.pre_tokenizer = Sequence([WhitespaceSplit(), Punctuation("isolated")])
    inner.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    inner.add_tokens([AddedToken(word, special=False, normalized=False) for word in (*ROLES, "side-by-side", *VOCABULARY[-24:])])
    out = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left", model_max_length=512, clean_up_tokenization_spaces=False,
        system_prompt=SYSTEM_PROMPT, **options,
    )  # fmt: skip
    out.chat_template = CHAT_TEMPLATE
    return out


def image_processor(size: int = WORLD.size) -> CLIPImageProcessorPil:
    """Bicubic to size x size, pixels to [-1, 1]."""
    half = [0.5, 0.5, 0.5]
    return CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=half, image_std=half
    )


def processor(size: int = WORLD.size, patch: int = WORLD.patch) -> LlavaProcessor:
    return LlavaProcessor(image_processor(size), tokenizer(), patch_size=patch, vision_feature_select_strategy="default",
                          num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE)  # fmt: skip


def _tower_config(size: int, patch: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=TOWER_DEPTH,
        num_attention_heads=HEADS,
        image_size=size,
        patch_size=patch,
        projection_dim=WIDTH,
    )


def _text_config() -> LlamaConfig:
    return LlamaConfig(vocab_size=len(VOCABULARY), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=DEPTH,
                       num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=512,
                       initializer_range=INITIALIZER_RANGE, **SPECIAL_IDS)  # fmt: skip


def clip(seed: int, size: int = WORLD.size, patch: int = WORLD.patch) -> CLIPModel:
    """Untrained tower with a text encoder beside it."""
    torch.manual_seed(seed)
    text = CLIPTextConfig(vocab_size=len(VOCABULARY), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
                          num_attention_heads=HEADS, max_position_embeddings=64, projection_dim=WIDTH, **SPECIAL_IDS)  # fmt: skip
    return CLIPModel(
        CLIPConfig(vision_config=_tower_config(size, patch).to_dict(), text_config=text.to_dict(), projection_dim=WIDTH)
    )


def language_model(seed: int) -> LlamaForCausalLM:
    """Untrained language model."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_text_config())


def llava(seed: int, size: int = WORLD.size, patch: int = WORLD.patch) -> LlavaForConditionalGeneration:
    """Untrained LLaVA; the connector reads the tower's last layer but one, as LLaVA-1.5 does."""
    torch.manual_seed(seed)
    config = LlavaConfig(vision_config=_tower_config(size, patch), text_config=_text_config(), image_token_id=ID["<image>"],
                         image_seq_length=(size // patch) ** 2, vision_feature_layer=-2, **SPECIAL_IDS)  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(do_sample=False, **SPECIAL_IDS)
    return model


def adopt(model: LlavaForConditionalGeneration, tower: CLIPModel, text: LlamaForCausalLM) -> LlavaForConditionalGeneration:
    """Put the ancestors' weights into the model; only the connector stays new. The tower is frozen."""
    model.model.vision_tower.load_state_dict(tower.vision_model.state_dict())
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.model.vision_tower.requires_grad_(False)
    return model


def save(
    model: nn.Module,
    folder: Path,
    words: Any,
    files: dict[str, bytes] | None = None,
    shared: dict[str, str] | None = None,
) -> None:
    """Write a model folder that plain ``from_pretrained`` loads; it appears whole or not at all.

    words: the processor or tokenizer, whatever has ``save_pretrained``. Weights are stored in fp16. shared: {prefix of a stored
    weight's name: path relative to the folder} of the weights that go to a file that several models point to; such a file is
    written if it is not there, else it must hold the same values
    (ValueError if not). files: further files by name, e.g. the card.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        half = {k: v.detach().half().contiguous() for k, v in model.state_dict().items()}
        model.save_pretrained(new, state_dict=half, max_shard_size="1GB")
        words.save_pretrained(new)
        _set_dtype(new / "config.json")
        if shared:
            _share(new, folder, shared)
        for name, content in (files or {}).items():
            (new / name).write_bytes(content)
        old = folder.with_name(f".{folder.name}-old")
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _set_dtype(config: Path) -> None:
    content = json.loads(config.read_text())
    content["dtype"] = "float16"
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _share(new: Path, folder: Path, shared: dict[str, str]) -> None:
    weights = load_file(new / "model.safetensors")
    (new / "model.safetensors").unlink()  # transformers prefers it to an index
    where = {name: next((path for prefix, path in shared.items() if name.startswith(prefix)), UNSHARED) for name in weights}
    for path in sorted(set(where.values())):
        part = {name: weights[name] for name in weights if where[name] == path}
        if path == UNSHARED:
            save_file(part, new / path, metadata={"format": "pt"})
            continue
        resolved = Path(os.path.normpath(folder / path))
        if resolved.exists():
            _must_equal(load_file(resolved), part, resolved)
        else:
            resolved.parent.mkdir(parents=True, exist_ok=True)
            temporary = resolved.with_suffix(".tmp")
            save_file(part, temporary, metadata={"format": "pt"})
            os.replace(temporary, resolved)
    size = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (new / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _must_equal(stored: dict[str, Tensor], ours: dict[str, Tensor], path: Path) -> None:
    differ = sorted(set(stored) ^ set(ours)) or [k for k in ours if not torch.equal(stored[k], ours[k])]
    if differ:
        raise ValueError(f"{path} holds other weights than this model's ({len(differ)} differ, {differ[0]} first); "
                         "models that share a tower must come from the same tower")  # fmt: skip


def parameters(model: PreTrainedModel) -> int:
    return sum(p.numel() for p in model.parameters())
