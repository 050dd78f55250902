"""What identifies the files of a model, and of the processor it was given: hashes of folders, commits of the hub.

Knows files; nothing of models and of what is made with them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spatialprobes.loading import Source

PROCESSOR_FILES = (
    "*processor_config.json",
    "tokenizer*",
    "*.jinja",
    "chat_template.json",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
)


def identity(source: Source) -> dict[str, str]:
    """What the model's weights are, and its processor; that of another model (`source.base`) with its name."""
    base = source.base
    if source.path is None:
        found = {"revision": _commit(source)}
    else:
        found = {"weights_sha256": weights_digest(source.path)}
    if base is None:
        return found if source.path is None else found | {"processor_sha256": processor_digest(source.path)}
    if base.path is None:
        return found | {"processor": base.name, "processor_revision": _commit(base)}
    name = base.path.name if base.kind == "folder" else base.name
    return found | {"processor": name, "processor_sha256": processor_digest(base.path)}


def weights_digest(folder: Path) -> str:
    """sha256 over the weight files of a folder, those of its index included, by name order."""
    names = {path.name for path in folder.glob("*.safetensors")} | {path.name for path in folder.glob("pytorch_model*.bin")}
    for index in folder.glob("*.index.json"):
        names |= set(json.loads(index.read_text())["weight_map"].values())
    return _digest([folder / name for name in sorted(names)])


def processor_digest(folder: Path) -> str:
    """sha256 over what turns pictures and words into model inputs: processor, tokenizer, chat template."""
    return _digest(sorted({path for name in PROCESSOR_FILES for path in folder.glob(name)}))


def _commit(source: Source) -> str:
    return source.commit or source.revision or "main"


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()
