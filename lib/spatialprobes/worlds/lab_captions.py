"""Lab scenes to be described: the caption request, the scene itself, and one true caption.

Knows scenes and words; what a model's caption is worth is `probes/lab_captions.py`.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from spatialprobes.examples import Example
from spatialprobes.seeds import check_seed
from spatialprobes.worlds import lab
from spatialprobes.worlds.lab_language import CAPTION_REQUEST, caption
from spatialprobes.worlds.shapeworld_examples import check_count

STREAM = 6  # last word of the random stream; `lab_questions`, `lab_pairs` and `lab_relations` take 1 to 5


def lab_captioned(count: int, seed: int, perspective: float = 0.5) -> list[Example]:
    """``count`` scenes of stream ``seed`` with the request for a caption.

    id and cluster: "lab-captioned-<seed>-<scene>"; meta: "scene" (`lab.Scene`), "caption" (a true one, which names every object
    in random order, as those that the lab models learn), "stem" (the id), "perspective".
    Raises ValueError for a count below 1, what is no seed, and a perspective outside [0, 1].
    """
    check_count(count)
    check_seed(seed)
    return [_example(lab.scene(seed, index, perspective), seed, index) for index in range(count)]


def _example(shown: lab.Scene, seed: int, index: int) -> Example:
    id = f"lab-captioned-{seed}-{index}"
    words = caption(shown, np.random.default_rng([seed, index, STREAM]))
    return Example(
        id=id,
        image=partial(lab.picture, shown),
        question=CAPTION_REQUEST,
        category="caption",
        group="caption",
        cluster=id,
        objects=lab.objects(shown),
        meta={"scene": shown, "caption": words, "stem": id, "perspective": shown.perspective},
    )
