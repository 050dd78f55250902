"""From a name to a model on a device: lab name, folder, folder under the weights root, or hub id.

Knows files, dtypes and devices; nothing of prompts or probes. Whatever goes wrong is one clear line, a `ModelError`.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import LogRecord
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from torch import nn
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils import cached_file, extract_commit_hash, logging

from spatialprobes import paths
from spatialprobes.families import FAMILIES, Family, family_of
from spatialprobes.families.discovery import NotDiscovered, look

WEIGHTS_ROOT = "SPATIALPROBES_WEIGHTS"
REACH = 5.0  # seconds in which a hub that can be reached takes a connection
PORTS = {"http": 80, "https": 443}
NAME_SHOWN = 80  # characters of an overlong name that an error repeats
HUB_ID = r"[\w.-]{1,96}/[\w.-]{1,96}"
BARE = " (it holds none; a fine-tuned checkpoint takes its base model's: processor=<folder or hub id of the base model>)"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ModelError(ValueError):
    """A model that cannot be loaded; the message says which, why, and what would do."""


def find(name: str, revision: str | None = None, processor: str | None = None) -> Source:
    """Where the model of this name is, and the one whose processor it takes, each pinned. Raises ModelError."""
    source = pinned(find_model(name, revision))
    return replace(source, base=pinned(find_model(processor))) if processor else source


def find_model(name: str, revision: str | None = None) -> Source:
    """Where the model of this name is. Raises ModelError for a name that is nowhere, or that no file could have."""
    if not name.strip():
        raise ModelError("the model's name is empty; give a lab name, a folder, or a hub id such as llava-hf/llava-1.5-7b-hf")
    try:
        return _find(name, revision)
    except (OSError, RuntimeError) as error:  # the file system's and pathlib's own: too long, no such user, not allowed
        why = str(getattr(error, "strerror", None) or error).rstrip(".")
        raise ModelError(f"model {_short(name)} cannot be looked for: {why}; give a lab name, a folder, or a hub id") from error


def _find(name: str, revision: str | None) -> Source:
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
        raise ModelError(f"model folder {_short(name)} does not exist")
    if re.fullmatch(HUB_ID, name):
        return Source(name, "hub", None, revision)
    known = sorted(path.name for path in lab.iterdir() if _is_known(path)) if lab.is_dir() else []
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"; nearest: {', '.join(near)}" if near else f"; the lab has: {', '.join(known) or f'no model yet (in {lab})'}"
    raise ModelError(f"unknown model {_short(name)}{hint}; or give a folder, or a hub id such as llava-hf/llava-1.5-7b-hf")


def pinned(source: Source) -> Source:
    """The source with the commit that a hub id's revision stands for now, so that all its files are of one; others as they are.

    Raises ModelError for a hub id that can be neither fetched nor found in the cache.
    """
    if source.kind != "hub":
        return source
    source = replace(source, cached=not _switched_off() and not _reachable())
    try:
        config = cached_file(source.name, "config.json", **source.options())
    except (OSError, ValueError) as error:
        raise ModelError(_why(source, error)) from error
    return replace(source, commit=extract_commit_hash(config, None))


def load(source: Source, dtype: str, device: str, quantize: str | None, trust_remote_code: bool) -> tuple[nn.Module, Any, Family]:
    """Model (eval, frozen, SDPA), processor and family. Raises ModelError."""
    target = choose_device(device)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code} | source.options()
    where = str(source.path or source.name)
    try:
        config = AutoConfig.from_pretrained(where, **options)
        family = _family(config, trust_remote_code)
        if source.base:
            _check_family(source, source.base, config.model_type, trust_remote_code)
        want = choose_dtype(dtype, getattr(config, "dtype", None) or config.get_text_config().dtype, target)
        extra: dict[str, Any] = {"dtype": want or "auto", "attn_implementation": "sdpa", "ignore_mismatched_sizes": True}
        if quantize:
            extra["quantization_config"] = quantisation(quantize, family, want or torch.float16)
        if quantize or target.type != "cpu":
            extra["device_map"] = {"": target}
        with quiet(source.kind == "lab"):
            model, info = family.load_model(where, **options, **extra)
        processor = load_processor(source.base or source, family, trust_remote_code)
    except ModelError:
        raise
    except NotDiscovered as error:
        raise undiscovered(source, config.model_type, error) from error
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"model {source.name!r} does not fit into the memory of {target}; a smaller dtype or quantize='4bit' may do"
        ) from error
    except Exception as error:  # of files that are broken in any way: transformers, tokenizers and the rest raise all kinds
        raise ModelError(_why(source, error)) from error
    _check_weights(source, family, info)
    if quantize == "4bit" and target.type == "cpu":
        _check_blocks(source, model)
    if not quantize and want is None and target.type == "cpu" and model.dtype == torch.float16:
        model.float()
    return model.eval().requires_grad_(False), processor, family


def load_processor(source: Source, family: Family, trust_remote_code: bool) -> Any:
    """The processor that is saved with the model at `source`. Raises ModelError, with what would do where it has none."""
    try:
        return family.load_processor(str(source.path or source.name), trust_remote_code=trust_remote_code, **source.options())
    except Exception as error:  # as in `load`
        bare = source.path is not None and not any(source.path.glob("*processor_config.json"))
        raise ModelError(_why(source, error) + BARE * bare) from error


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
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"device {device!r} is unknown; auto, cpu, cuda or cuda:<n>") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"device {device!r}: torch {torch.__version__} sees no CUDA GPU; use device='cpu' or install torch for CUDA"
        )
    if chosen.type == "meta":
        raise ModelError("device 'meta' holds no values to compute with; auto, cpu, cuda or cuda:<n>")
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).strip().partition("\n")[0].partition(". ")[0][:120]
        raise ModelError(f"device {device!r} is not available here ({why}); auto, cpu, cuda or cuda:<n>") from error
    return chosen


def check_options(dtype: str, quantize: str | None) -> None:
    """Raises ModelError for a dtype or a quantisation that is unknown, or that lacks what it needs."""
    if dtype != "auto" and dtype not in DTYPES:
        raise ModelError(f"dtype {dtype!r} is unknown; auto, {', '.join(DTYPES)}")
    if quantize is None:
        return
    if quantize not in ("8bit", "4bit"):
        raise ModelError(f"quantize {quantize!r} is unknown; 8bit or 4bit")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"quantize {quantize!r} needs bitsandbytes: pip install 'spatialprobes[quantize]'")


def choose_dtype(dtype: str, own: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype to load in; None where the checkpoint records none and its files decide.

    "auto": the checkpoint's own, but float32 for float16 on a CPU, and float16 for bfloat16 on a GPU without it.
    """
    if dtype != "auto":
        return DTYPES[dtype]
    if own == torch.float16 and device.type == "cpu":
        return torch.float32
    if own == torch.bfloat16 and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return own


def quantisation(quantize: str, family: Family, compute: torch.dtype) -> BitsAndBytesConfig:
    """The language model in 8 or 4 bit; tower, connector and head stay as they are, for they are what is measured."""
    skip = list(family.quantise_skip)
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute, llm_int8_skip_modules=skip
    )


@dataclass(frozen=True)
class Source:
    """name: as asked for. kind: "lab", "folder" or "hub". path: its folder, None for the hub. revision: of the hub, as asked for.

    commit: what the revision stands for. cached: the hub cannot be reached, so only what was fetched before is looked at.
    base: the model whose processor is taken, if not its own.
    """

    name: str
    kind: str
    path: Path | None
    revision: str | None
    commit: str | None = None
    cached: bool = False
    base: Source | None = None

    def options(self) -> dict[str, Any]:
        """What transformers' `from_pretrained` is told beside the name."""
        found = {"revision": self.commit or self.revision} if self.commit or self.revision else {}
        # or transformers would ask a hub that does not answer again and again, file by file
        return found | ({"local_files_only": True} if self.cached else {})


def _family(config: PreTrainedConfig, trust_remote_code: bool) -> Family:
    """The written family, or what can be seen of an unknown one, to be proved once the model runs."""
    if config.model_type in FAMILIES:
        return family_of(config.model_type)
    return look(config, trust_remote_code=trust_remote_code)


def _check_family(source: Source, base: Source, model_type: str, trust_remote_code: bool) -> None:
    """Before weights are loaded: the processor must come from a model of the same family."""
    try:
        found = AutoConfig.from_pretrained(str(base.path or base.name), trust_remote_code=trust_remote_code, **base.options())
    except Exception as error:  # as in `load`
        raise ModelError(_why(base, error)) from error
    if found.model_type != model_type:
        raise ModelError(
            f"model {source.name!r} is of the family {model_type!r}, the processor of {base.name!r} for {found.model_type!r}; "
            "give the model that it was fine-tuned from"
        )


def _check_weights(source: Source, family: Family, info: dict[str, Any]) -> None:
    """Weights that the configuration does not fit: of other shapes, missing, or of layers that it does not have."""
    if wrong := sorted(info["mismatched_keys"]):
        name, stored, made = wrong[0]
        raise ModelError(
            f"model {source.name!r}: its config.json does not fit {len(wrong)} of its weights, such as {name}: "
            f"{tuple(stored)} in the file, {tuple(made)} by the configuration"
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"model {source.name!r} lacks {len(missing)} of its weights, such as {missing[0]}")
    blocks = (f"{family.layers}.", f"{family.tower_layers}.")
    if left := sorted(key for key in info["unexpected_keys"] if key.startswith(blocks)):
        raise ModelError(f"model {source.name!r} has {len(left)} weights of layers that its config.json lacks, such as {left[0]}")


def _switched_off() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def _reachable() -> bool:
    """Whether the hub, or the proxy on the way to it, takes a connection. Asked once, for what is slow to fail asks often."""
    hub = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    proxy = None if proxy_bypass(hub.hostname or "") else getproxies().get(hub.scheme)
    target = urlsplit(proxy if "://" in proxy else f"//{proxy}") if proxy else hub
    try:
        with socket.create_connection((target.hostname, target.port or PORTS.get(target.scheme, 80)), timeout=REACH):
            return True
    except OSError:
        return False


def _check_blocks(source: Source, model: nn.Module) -> None:
    """On a CPU bitsandbytes multiplies 4-bit weights by blocks, of 64 inputs and, where the processor has bfloat16 instructions,
    of 32 outputs; otherwise the first forward fails obscurely.
    """
    for name, module in model.named_modules():
        if type(module).__name__ != "Linear4bit":
            continue
        size, by = f"{module.in_features} inputs and {module.out_features} outputs", "64 inputs and 32 outputs"
        if module.in_features % 64 or module.out_features % 32:
            raise ModelError(
                f"model {source.name!r}: quantize '4bit' on a CPU works by blocks of {by}, {name} has {size}; use '8bit' or a GPU"
            )


def _short(name: str) -> str:
    return repr(name if len(name) <= NAME_SHOWN else f"{name[:NAME_SHOWN]}...")


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


@contextmanager
def quiet(small: bool) -> Iterator[None]:
    """No table of what did not fit, which `_check_weights` says in a line; no bar of progress for what loads in an instant."""
    shown, logger = logging.is_progress_bar_enabled(), logging.get_logger("transformers.modeling_utils")
    logger.addFilter(_no_table)
    if small:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logger.removeFilter(_no_table)
        if small and shown:
            logging.enable_progress_bar()


def _no_table(record: LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def _is_known(folder: Path) -> bool:
    """Of a known family: the lab also holds its models' ancestors."""
    return _is_model(folder) and json.loads((folder / "config.json").read_text()).get("model_type") in FAMILIES


def _why(source: Source, error: Exception) -> str:
    first = " ".join(str(error).split()) or type(error).__name__
    if source.kind == "hub" and isinstance(error, OSError):
        if _switched_off():
            state, detail = "the hub is switched off (HF_HUB_OFFLINE) and it is not in the cache", ""
        elif source.cached:
            state, detail = "the hub cannot be reached and it is not in the cache", ""
        else:
            state, detail = "it could not be fetched", f" ({type(error).__name__}: {first[:300]})"
        at = f" at revision {source.revision!r}" if source.revision else ""
        cure = f"go online, put it under {WEIGHTS_ROOT}=<folder>/{source.name}, or use a lab model"
        return f"model {source.name!r}{at}: {state}; {cure}{detail}"
    kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
    return f"model {source.name!r} cannot be read from {str(source.path or 'the hub')!r}: {kind}{first[:300]}"
