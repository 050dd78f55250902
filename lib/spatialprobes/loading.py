"""From a name to a model on a device: lab name, folder, folder under the weights root, or hub id.

Knows files, dtypes and devices; nothing of prompts or probes. Whatever goes wrong is one clear line, a `ModelError`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import logging

from spatialprobes import paths
from spatialprobes.families import FAMILIES, Family, family_of
from spatialprobes.families.discovery import NotDiscovered, look

WEIGHTS_ROOT = "SPATIALPROBES_WEIGHTS"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ModelError(ValueError):
    """A model that cannot be loaded; the message says which, why, and what would do."""


def find_model(name: str, revision: str | None = None) -> Source:
    """Where the model of this name is. Raises ModelError for a name that is nowhere."""
    lab = paths.lab_folder()
    if "/" not in name and _is_model(lab / name):
        return Source(name, "lab", lab / name, None)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not _is_model(folder):
            raise ModelError(f"folder {name!r} holds no config.json; give the folder of a saved model")
        return Source(name, "folder", folder, None)
    root = os.environ.get(WEIGHTS_ROOT)
    if root and (Path(root).expanduser() / name).is_dir():
        folder = Path(root).expanduser() / name
        if not _is_model(folder):
            raise ModelError(
                f"folder {str(folder)!r} (under {WEIGHTS_ROOT}) holds no config.json; give the folder of a saved model"
            )
        return Source(name, "folder", folder, None)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"model folder {name!r} does not exist")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Source(name, "hub", None, revision)
    known = sorted(path.name for path in lab.iterdir() if _is_known(path)) if lab.is_dir() else []
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else f"; the lab has: {', '.join(known) or f'no model yet (in {lab})'}"
    raise ModelError(f"unknown model {name!r}{hint}; or give a folder, or a hub id such as llava-hf/llava-1.5-7b-hf")


def load(source: Source, dtype: str, device: str, quantize: str | None, trust_remote_code: bool) -> tuple[nn.Module, Any, Family]:
    """Model (eval, frozen, SDPA), processor and family. Raises ModelError."""
    target = choose_device(device)
    options: dict[str, Any] = {"revision": source.revision, "trust_remote_code": trust_remote_code}
    options = {key: value for key, value in options.items() if value is not None}
    where = str(source.path or source.name)
    try:
        config = AutoConfig.from_pretrained(where, **options)
        family = _family(config, trust_remote_code)
        want = choose_dtype(dtype, getattr(config, "dtype", None) or config.get_text_config().dtype, target)
        extra: dict[str, Any] = {"dtype": want or "auto", "attn_implementation": "sdpa"}
        if quantize:
            extra["quantization_config"] = quantisation(quantize, family, want or torch.float16)
        if quantize or target.type != "cpu":
            extra["device_map"] = {"": target}
        with _quiet(source.kind == "lab"):
            model, info = family.load_model(where, **options, **extra)
        processor = family.load_processor(where, **options)
    except NotDiscovered as error:
        raise undiscovered(source, config.model_type, error) from error
    except (OSError, SafetensorError, json.JSONDecodeError, ImportError, ValueError) as error:
        raise ModelError(_why(source, error)) from error
    if quantize == "4bit" and target.type == "cpu":
        _check_blocks(source, model)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"model {source.name!r} lacks {len(missing)} of its weights, such as {missing[0]}")
    if not quantize and want is None and target.type == "cpu" and model.dtype == torch.float16:
        model.float()
    return model.eval().requires_grad_(False), processor, family


def undiscovered(source: Source, model_type: str, error: Exception) -> ModelError:
    """The line for a model of no written family whose parts were not found, or did not stand their proof."""
    why = " ".join(str(error).split())[:300]
    known = ", ".join(sorted(FAMILIES))
    return ModelError(
        f"model {source.name!r}: its family {model_type!r} is unknown (known: {known}), and could not be discovered: {why}"
    )


def choose_device(device: str) -> torch.device:
    """ "auto" is the GPU where torch can use one. Raises ModelError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r} is unknown; auto, cpu, cuda or cuda:<n>") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r}: torch {torch.__version__} sees no CUDA GPU; use device='cpu' or install torch for CUDA"
        )
    return chosen


def choose_dtype(dtype: str, own: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype to load in; None where the checkpoint records none and its files decide.

    "auto": the checkpoint's own, but float32 for float16 on a CPU, and float16 for bfloat16 on a GPU without it.
    """
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ModelError(f"dtype {dtype!r} is unknown; auto, {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if own == torch.float16 and device.type == "cpu":
        return torch.float32
    if own == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return own


def quantisation(quantize: str, family: Family, compute: torch.dtype) -> BitsAndBytesConfig:
    """The language model in 8 or 4 bit; tower, connector and head stay as they are, for they are what is measured."""
    if quantize not in ("8bit", "4bit"):
        raise ModelError(f"quantize {quantize!r} is unknown; 8bit or 4bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantize {quantize!r} needs bitsandbytes: pip install 'spatialprobes[quantize]'")
    skip = list(family.quantise_skip)
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=skip
    )


def weights_digest(folder: Path) -> str:
    """sha256 over the weight files of a folder, those of its index included, by name order."""
    names = {path.name for path in folder.glob("*.safetensors")} | {path.name for path in folder.glob("pytorch_model*.bin")}
    for index in folder.glob("*.index.json"):
        names |= set(json.loads(index.read_text())["weight_map"].values())
    return _digest([folder / name for name in sorted(names)])


def processor_digest(folder: Path) -> str:
    """sha256 over what turns pictures and words into model inputs: processor, tokenizer, chat template."""
    names = (
        "*processor_config.json",
        "tokenizer*",
        "*.jinja",
        "chat_template.json",
        "vocab.*",
        "merges.txt",
        "special_tokens_map.json",
    )
    return _digest(sorted({path for name in names for path in folder.glob(name)}))


@dataclass(frozen=True)
class Source:
    """name: as asked for. kind: "lab", "folder" or "hub". path: its folder, None for the hub. revision: of the hub."""

    name: str
    kind: str
    path: Path | None
    revision: str | None


def _family(config: PreTrainedConfig, trust_remote_code: bool) -> Family:
    """The written family, or what can be seen of an unknown one, to be proved once the model runs."""
    if config.model_type in FAMILIES:
        return family_of(config.model_type)
    return look(config, trust_remote_code=trust_remote_code)


def _check_blocks(source: Source, model: nn.Module) -> None:
    """On a CPU bitsandbytes multiplies 4-bit weights by blocks of 64 inputs; otherwise the first forward fails obscurely."""
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit" and module.in_features % 64:
            raise ModelError(
                f"model {source.name!r}: quantize '4bit' on a CPU needs inputs in multiples of 64, {name} has "
                f"{module.in_features}; use '8bit' or a GPU"
            )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


@contextmanager
def _quiet(small: bool) -> Iterator[None]:
    """No bar of progress for what loads in an instant."""
    shown = logging.is_progress_bar_enabled()
    if small:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if small and shown:
            logging.enable_progress_bar()


def _is_known(folder: Path) -> bool:
    """Of a known family: the lab also holds its models' ancestors."""
    return _is_model(folder) and json.loads((folder / "config.json").read_text()).get("model_type") in FAMILIES


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _why(source: Source, error: Exception) -> str:
    first = " ".join(str(error).split())
    if source.kind == "hub":
        offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        state = "the hub is switched off (HF_HUB_OFFLINE) and it is not in the cache" if offline else "it could not be fetched"
        cure = f"go online, put it under {WEIGHTS_ROOT}=<folder>/{source.name}, or use a lab model"
        detail = "" if offline else f" ({type(error).__name__}: {first[:300]})"
        return f"model {source.name!r}: {state}; {cure}{detail}"
    return f"model {source.name!r} cannot be read from {str(source.path)!r}: {first[:300]}"
