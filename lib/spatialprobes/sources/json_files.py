"""JSON from elsewhere: read up to a bound, whatever is wrong with it said in one line that names the file.

Knows files and JSON, nothing of what stands in them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path, max_bytes: int) -> Any:
    """What the file holds. Raises FileNotFoundError; ValueError naming the file if it is too large, or as `parse_json`."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if (size := path.stat().st_size) > max_bytes:
        raise ValueError(f"{path}: {size:,} bytes; at most {max_bytes:,}")
    return parse_json(path.read_bytes(), str(path))


def parse_json(text: str | bytes, name: str) -> Any:
    """What the text says. Raises ValueError, `name` in front, where it is no JSON or nested deeper than Python reads."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: not JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{name}: not JSON that can be read: nested too deep") from None


def read_object(path: str | Path, max_bytes: int) -> dict[str, Any]:
    """As `read_json`, and a ValueError naming the file where it holds anything but an object."""
    content = read_json(path, max_bytes)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not an object but {type(content).__name__}")
    return content
