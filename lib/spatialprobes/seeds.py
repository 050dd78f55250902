"""What a seed may be, the same wherever one is taken: numpy, torch and the plan of runs have limits of their own."""

from __future__ import annotations

from typing import Any

SEEDS = 2**32


def check_seed(seed: Any, name: str = "seed") -> int:
    """The seed as an int. Raises ValueError, naming it, unless it is a whole number from 0 to 2^32 - 1."""
    whole = hasattr(seed, "__index__") and not isinstance(seed, bool)
    if not whole or not 0 <= seed.__index__() < SEEDS:
        raise ValueError(f"{name}={seed!r} is no seed; use a whole number from 0 to {SEEDS - 1}")
    return seed.__index__()
