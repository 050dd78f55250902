"""Where things are in each family of models. The only place that knows models: a new one is a module here and a line below.

| family             | grid of vision tokens     | attention maps of the language model | of the tower      | shares a prefix |
|--------------------|---------------------------|--------------------------------------|-------------------|-----------------|
| LLaVA              | the patches               | all layers                           | patches and class | yes             |
| Qwen2-VL           | cells of 2 x 2 patches    | all layers                           | patches           | yes             |
| Qwen2.5-VL         | cells of 2 x 2 patches    | all layers                           | patches; windows  | yes             |
| Qwen3.5 (also MoE) | cells of 2 x 2 patches    | full-attention layers (every fourth) | patches           | no              |
| Idefics2           | none: perceiver's latents | all layers                           | patches           | yes             |

All give hidden states of every layer, the connector's input and output, permutation and positions of vision tokens, and let heads
of layers with attention maps be taken out. "windows": a patch attends within its window in most blocks. "shares a prefix":
questions about one picture reuse its keys and values.

A model type that is not here is discovered (discovery.py): what can be proved of it on a picture (proofs.py, head_proof.py,
painting.py) is used and printed, the rest is refused with the reason.
"""

from __future__ import annotations

import difflib

from spatialprobes.families.base import Edit, Family, Pictures
from spatialprobes.families.frames import Frame, ImageFit, check_fit, fit_picture
from spatialprobes.families.idefics2 import Idefics2
from spatialprobes.families.llava import Llava
from spatialprobes.families.qwen import Qwen2_5VL, Qwen2VL, Qwen3_5, Qwen3_5Moe
from spatialprobes.families.rotary import ALL, AXES, Rotary, check_axis
from spatialprobes.families.towers import TowerRun

NATIVE = (Llava, Qwen2VL, Qwen2_5VL, Qwen3_5, Qwen3_5Moe, Idefics2)
FAMILIES: dict[str, type[Family]] = {family.model_type: family for family in NATIVE}

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
    "TowerRun",
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
