"""Where things are in each family of models. The only place that knows models: a new one is a module here and a line below."""

from __future__ import annotations

import difflib

from spatialprobes.families.base import Edit, Family, Pictures
from spatialprobes.families.frames import Frame, ImageFit, check_fit, fit_picture
from spatialprobes.families.llava import Llava
from spatialprobes.families.rotary import ALL, AXES, Rotary, check_axis

FAMILIES: dict[str, type[Family]] = {family.model_type: family for family in (Llava,)}

__all__ = [
    "ALL",
    "AXES",
    "FAMILIES",
    "Edit",
    "Family",
    "Frame",
    "ImageFit",
    "Pictures",
    "Rotary",
    "check_axis",
    "check_fit",
    "family_of",
    "fit_picture",
]


def family_of(model_type: str) -> Family:
    """The family with this `model_type` of config.json. Raises KeyError naming the nearest ones and all."""
    if model_type not in FAMILIES:
        near = difflib.get_close_matches(model_type, FAMILIES, n=3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise KeyError(f"model family {model_type!r} is unknown{hint}; known: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]()
