"""What stored rows depend on, as one dictionary: its canonical text, its hash, and how two of them differ.

Knows JSON. What belongs into a fingerprint is its user's to say.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class FingerprintError(ValueError):
    """A fingerprint that is not JSON, or not the one that was expected."""


def canonical(fingerprint: dict[str, Any]) -> str:
    """JSON with sorted keys and no blanks: equal text for equal content.

    Raises FingerprintError naming a value that JSON lacks.
    """
    try:
        return json.dumps(fingerprint, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        for key, value in fingerprint.items():
            try:
                json.dumps(value, sort_keys=True, allow_nan=False)
            except (TypeError, ValueError):
                raise FingerprintError(f"fingerprint: {key} = {value!r} is not JSON ({error})") from error
        raise FingerprintError(f"fingerprint: {error}; keys are strings") from error


def digest(fingerprint: dict[str, Any]) -> str:
    """sha256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical(fingerprint).encode()).hexdigest()


def text(fingerprint: dict[str, Any]) -> str:
    """What ``read`` reads: the fingerprint for people, with its hash."""
    content = {"sha256": digest(fingerprint), "fingerprint": fingerprint}
    return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read(path: Path) -> dict[str, Any]:
    """The fingerprint in a file that holds ``text``'s output. Raises FingerprintError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise FingerprintError(f"{path}: is no fingerprint of a store ({error})") from error


def compare(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raises FingerprintError naming ``path`` and every key, nested ones with dots, that differs between the two."""
    if differences := list(_differences(there, here)):
        raise FingerprintError(f"{path}: was made from something else: {'; '.join(differences)}. Use another folder for this")


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted({*there, *here}):
        name = f"{prefix}{key}"
        if key not in there or key not in here:
            yield f"{name} is only {'there' if key in there else 'here'}"
        elif isinstance(there[key], dict) and isinstance(here[key], dict):
            yield from _differences(there[key], here[key], f"{name}.")
        elif there[key] != here[key] or type(there[key]) is not type(here[key]):
            yield f"{name} is {_short(there[key])} there, {_short(here[key])} here"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
