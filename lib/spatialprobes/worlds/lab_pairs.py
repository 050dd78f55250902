"""Swap pairs and quads of the lab's world, and how strongly that world itself ties height to distance.

The questions are those of ``lab_questions.py`` (relation.horizontal, .vertical, .distance), which every trained lab model knows.
A scene is never chosen by how its height and depth agree, so the quads keep what the world's ``perspective`` puts in: nothing
at 0, everything at 1. Knows scenes and words; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd

from spatialprobes.pairs import CATEGORIES, GROUP_OF, GROUPS, SIGN, Pair, Quad, named
from spatialprobes.seeds import check_seed
from spatialprobes.stats import bootstrap
from spatialprobes.worlds import lab_questions as questions
from spatialprobes.worlds.lab import WORLD, Scene, World, picture, scene

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from PIL import Image

T = TypeVar("T")

# Last words of the random streams beside a scene's own [seed, index]; `lab_questions.examples` draws from [seed, index, 1].
PAIR_STREAM, QUAD_STREAM = 2, 3
TRIES = 1000  # scenes in a row without a question before a world is said to allow none


def lab_pairs(
    count: int,
    seed: int,
    categories: Sequence[str] = CATEGORIES,
    perspective: float | tuple[float, ...] = 0.0,
    world: World = WORLD,
) -> list[Pair]:
    """``count`` pairs of every category, in turn (left, right, above, ..., left, ...), each on a fresh scene of stream ``seed``.

    Scene i of the stream is asked one question of the category's group; where the answer is the opposite one, the two members
    change places, so that no scene is chosen by its answer. Scenes that allow no question of the group are passed over.
    id: "lab-pair-<seed>-<scene>-<perspective>", the same for any ``count``; cluster: the scene; ``objects``: all of the scene's;
    meta: subject, reference, perspective, kind.
    Raises ValueError for a count below 1, what is no seed, an unknown or repeated category, a perspective outside [0, 1], and a
    world whose scenes allow no question of a group.
    """
    _check(count, seed)
    categories = list(categories)
    for place, category in enumerate(categories):
        if category not in GROUP_OF:
            raise ValueError(f"category {category!r} is unknown; it must be one of {', '.join(CATEGORIES)}")
        if category in categories[:place]:
            raise ValueError(f"category {category!r} is named twice")
    out, start = [], 0
    for number in range(count * len(categories)):
        category = categories[number % len(categories)]
        group = f"relation.{GROUP_OF[category]}"
        ask, lack = partial(_one, group=group), f"allow no question of {group}"
        index, shown, question = _next(start, seed, PAIR_STREAM, perspective, world, ask, lack)
        id, cluster = _name("pair", seed, index, shown), _name("scene", seed, index, shown)
        out.append(_pair(shown, partial(picture, shown), question, category, id, cluster))
        start = index + 1
    return out


def lab_quads(count: int, seed: int, perspective: float | tuple[float, ...] = 0.0, world: World = WORLD) -> list[Quad]:
    """``count`` quads, each on a fresh scene of stream ``seed``: two of its objects asked vertically and by distance.

    The two objects are a random one of the scene's couples that are far enough apart in height and in depth; which one is the
    subject is chosen so that the vertical answer is above and under in turn. Neither choice looks at whether above goes with far.
    ids "lab-quad-<seed>-<scene>-<perspective>" with ":vertical" and ":distance"; cluster, objects and meta as in `lab_pairs`.
    Raises ValueError as `lab_pairs` does.
    """
    _check(count, seed)
    lack = "hold no two objects apart in height and depth"
    out, start = [], 0
    for number in range(count):
        ask = partial(_both, above=number % 2 == 0)
        index, shown, both = _next(start, seed, QUAD_STREAM, perspective, world, ask, lack)
        id, cluster = _name("quad", seed, index, shown), _name("scene", seed, index, shown)
        image = partial(picture, shown)  # one object for all four questions: what is asked of one picture can be told by it
        pairs = (_pair(shown, image, one, one.answer, f"{id}:{GROUP_OF[one.answer]}", cluster) for one in both)
        out.append(Quad(id, *pairs))
        start = index + 1
    return out


def differences(quads: Sequence[Quad]) -> pd.DataFrame:
    """By how much the subject of each quad is higher and farther than its reference, one row a quad.

    Columns: quad, cluster; tied (1 where above goes with far and under with close, -1 where not); height (fraction of the
    picture, positive where the subject is higher) and distance (in units of depth, positive where it is farther), between the
    objects that the words name, NaN where they are not among the example's objects or have no depth.
    """
    rows = []
    for quad in quads:
        tied = SIGN[quad.vertical.category] * SIGN[quad.distance.category]
        a, b = (named(quad.vertical.original, role) for role in ("subject", "reference"))
        height = np.nan if a is None or b is None else b.centre[1] - a.centre[1]
        a, b = (named(quad.distance.original, role) for role in ("subject", "reference"))
        known = a is not None and b is not None and a.depth is not None and b.depth is not None
        rows.append((quad.id, quad.cluster, tied, height, a.depth - b.depth if known else np.nan))
    return pd.DataFrame(rows, columns=["quad", "cluster", "tied", "height", "distance"])


def correlation(quads: Sequence[Quad], *, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How strongly the world ties height to distance, over the quads: what a cross-group alignment is to be compared with.

    Columns: measure, estimate, low, high, n, clusters; 95% intervals by `n` draws of clusters. Measures: "tied", the share of
    quads in which above goes with far (under with close) minus the rest, in [-1, 1]; "pearson" and "spearman", the correlations
    of the differences in height and distance (Spearman's of ranks that are not made anew in each draw). The last two are NaN
    with n = 0 where fewer than three quads know both differences. Raises ValueError where there is no quad.
    """
    if not quads:
        raise ValueError("no quads; at least one is needed to say how height goes with distance")
    frame = differences(quads)
    tied = bootstrap(frame["tied"].to_numpy(float), frame["cluster"].to_numpy(), n=n, seed=seed, bounds=(-1, 1))
    rows = [("tied", *tied)]
    known = frame.dropna(subset=["height", "distance"])
    clusters = pd.factorize(known["cluster"])[0]
    for measure, part in (("pearson", known), ("spearman", known[["height", "distance"]].rank())):
        x, y = part["height"].to_numpy(float), part["distance"].to_numpy(float)
        if len(known) < 3:
            rows.append((measure, np.nan, np.nan, np.nan, 0, 0))
            continue
        weights = np.random.default_rng(check_seed(seed)).multinomial(
            clusters.max() + 1, np.full(clusters.max() + 1, 1 / (clusters.max() + 1)), n
        )
        (estimate,), drawn = _pearson(x, y, np.ones((1, len(x)))), _pearson(x, y, weights[:, clusters])
        rows.append((measure, estimate, *np.nanquantile(drawn, [0.025, 0.975]), len(x), clusters.max() + 1))
    return pd.DataFrame(rows, columns=["measure", "estimate", "low", "high", "n", "clusters"])


def _pearson(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], weights: Int[np.ndarray, "draws n"]) -> np.ndarray:
    """Weighted correlation of each draw, NaN where one side does not vary."""
    total = weights.sum(1)
    mean = (weights @ x / total, weights @ y / total)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt((weights @ x**2 / total - mean[0] ** 2) * (weights @ y**2 / total - mean[1] ** 2))
        return (weights @ (x * y) / total - mean[0] * mean[1]) / spread


def _next(
    start: int,
    seed: int,
    stream: int,
    perspective: float | tuple[float, ...],
    world: World,
    ask: Callable[[Scene, np.random.Generator], T | None],
    lack: str,
) -> tuple[int, Scene, T]:
    """The first scene from number `start` on of which something can be asked: (number, scene, what is asked)."""
    for index in range(start, start + TRIES):
        shown = scene(seed, index, perspective, world=world)
        found = ask(shown, np.random.default_rng([seed, index, stream]))
        if found is not None:
            return index, shown, found
    raise ValueError(f"{TRIES} scenes in a row {lack}; they are of {world}")


def _one(shown: Scene, rng: np.random.Generator, group: str) -> questions.Question | None:
    """A question of the group about two objects that are apart on its axis."""
    return questions.ask(shown, group, rng)


def _both(shown: Scene, rng: np.random.Generator, above: bool) -> list[questions.Question] | None:
    """A vertical question and one by distance about two objects in the same roles, the subject above the reference or not."""
    things = shown.things
    couples = [
        (a, b)
        for i, a in enumerate(things)
        for b in things[i + 1 :]
        if questions.apart(a, b, "y") and questions.apart(a, b, "depth")
    ]
    if not couples:
        return None
    a, b = couples[int(rng.integers(len(couples)))]
    subject, reference = (a, b) if (a.y < b.y) == above else (b, a)
    form = questions.FORMS[int(rng.integers(len(questions.FORMS)))]
    groups = ("relation.vertical", "relation.distance")
    templates = [questions.GROUPS[group].templates for group in groups]
    chosen = [options[int(rng.integers(len(options)))] for options in templates]
    return [questions.relate(subject, reference, *one, form) for one in zip(groups, chosen, strict=True)]


def _pair(
    shown: Scene, image: Callable[[], Image.Image], question: questions.Question, category: str, id: str, cluster: str
) -> Pair:
    """The question and its twin, in the order in which the first one's answer is `category`."""
    members = questions.as_examples(shown, question, id, twins=True)
    if members[0].answer != category:
        members.reverse()
    group = GROUP_OF[category]
    names = (f"{id}:original", f"{id}:swapped")
    common = {"image": image, "group": group, "cluster": cluster, "choices": list(GROUPS[group])}
    one, other = (replace(member, id=name, **common) for member, name in zip(members, names, strict=True))
    return Pair(id, replace(one, twin=other.id), replace(other, twin=one.id))


def _name(what: str, seed: int, index: int, shown: Scene) -> str:
    return f"lab-{what}-{seed}-{index}-{float(shown.perspective)}"


def _check(count: int, seed: int) -> None:
    if isinstance(count, bool) or not hasattr(count, "__index__") or count < 1:
        raise ValueError(f"count is {count!r}; it must be a whole number of at least 1")
    check_seed(seed)
