"""Does a connector keep *where* things are better or worse than *what* they are?

In the lab both are known. Two views, each before (E_pre) and after (E_post) the connector:

- **neighbours**: pictures of one object, every thing at every place (`single_objects`). Of the k pictures nearest to one, how
  many show the same thing, how many show a thing at the same place (chance: what that share is among all others).
- **decoding**: ordinary scenes. How much of a property can be read off linearly: for what, which colour each shape has (share
  right); for where, row and column of each shape's centre (R^2). Ridge regression on all tokens, folds that share no picture.

Both see whole token matrices ("tokens") or their mean over tokens ("pooled"), which is what neighbourhood overlap is measured on.
Not a part of the study: it has no ground truth to ask. Knows arrays and scenes, no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold

from spatialprobes import stats
from spatialprobes.examples import Example
from spatialprobes.probes.neighbour_search import nearest
from spatialprobes.worlds.lab import COLOURS, SHAPES, WORLD, Scene, Thing, objects, picture, scene

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Vectors = Mapping[str, Float[np.ndarray, "picture token width"]]  # by site

ALPHAS = np.logspace(-5, 3, 9)
FOLDS = 5
FORMS = ("pooled", "tokens")
RADIUS = (WORLD.radius[0] + WORLD.radius[1]) / 2


def single_objects(count: int, seed: int) -> list[Example]:
    """Pictures of one object, every thing in every cell of the grid once before any twice, in random order, jittered in its cell.

    meta: ``what`` ("red circle") and ``where`` (row * columns + column of its cell). Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count={count} must be at least 1")
    rng = np.random.default_rng([seed, 3])
    every = list(product(product(COLOURS, SHAPES), range(WORLD.grid**2)))
    rounds = -(-count // len(every))
    found = [every[i] for _ in range(rounds) for i in rng.permutation(len(every))]
    out = []
    for number, ((colour, shape), place) in enumerate(found[:count]):
        row, column = divmod(place, WORLD.grid)
        jitter = rng.uniform(-1, 1, 2) * (WORLD.patch / 2 - WORLD.margin)
        x, y = ((at + 0.5) * WORLD.patch + by for at, by in zip((column, row), jitter, strict=True))
        low, high = RADIUS, WORLD.size - RADIUS
        shown = Scene((Thing(colour, shape, float(np.clip(x, low, high)), float(np.clip(y, low, high)), RADIUS, 0.5),), 0.0)
        name = f"single-{seed}-{number}"
        meta = {"what": f"{colour} {shape}", "where": place}
        out.append(Example(name, picture(shown), cluster=name, objects=objects(shown), meta=meta))
    return out


def scenes(count: int, seed: int, perspective: float | tuple[float, ...] = (0.0, 0.5)) -> list[Example]:
    """Ordinary scenes of the lab, two to four objects; ``objects`` says what is where."""
    shown = [scene(seed, index, perspective) for index in range(count)]
    return [
        Example(f"scene-{seed}-{i}", picture(s), cluster=f"scene-{seed}-{i}", objects=objects(s)) for i, s in enumerate(shown)
    ]


def neighbours(vectors: Vectors, examples: Sequence[Example], *, k: int = 10) -> pd.DataFrame:
    """Share of each picture's k nearest (l2) that show the same thing, or a thing in the same cell.

    vectors: by site, in the examples' order. Returns [key, site, form, factor (what | where), k, share, chance]: chance is the
    share among all other pictures. Raises ValueError where k is not below the number of pictures, and for other lengths.
    """
    factors = {name: np.unique([str(e.meta[name]) for e in examples], return_inverse=True)[1] for name in ("what", "where")}
    rows = []
    for site, form, x in _forms(vectors, len(examples)):
        near = nearest(x, k)
        for factor, code in factors.items():
            alike = np.bincount(code)[code] - 1
            rows.append(pd.DataFrame({
                "key": [e.id for e in examples], "site": site, "form": form, "factor": factor, "k": k,
                "share": (code[near] == code[:, None]).mean(1), "chance": alike / (len(code) - 1),
            }))  # fmt: skip
    return pd.concat(rows, ignore_index=True)


def decoding(vectors: Vectors, examples: Sequence[Example], *, seed: int = 0) -> pd.DataFrame:
    """What a linear readout says of each shape in each scene, and what is true; folds share no picture.

    Returns [key, site, form, factor, shape, right (what: the likeliest of six colours is the shape's), error, spread (where:
    squared distance of the read centre, and of the mean centre of the other folds, in squared cells)]; NaN where it is not the
    factor's.
    """
    where = {shape: _where(examples, shape) for shape in SHAPES}
    rows = []
    for site, form, x in _forms(vectors, len(examples)):
        x = _compact(x)
        for shape, (present, places, colours) in where.items():
            read = _read(x[present], np.concatenate([np.eye(len(COLOURS))[colours], places], 1), seed)
            told, at, mean = read[:, : len(COLOURS)].argmax(1), read[:, len(COLOURS) : -2], read[:, -2:]
            keys = [examples[i].id for i in present]
            common = {"key": keys, "site": site, "form": form, "shape": shape}
            rows.append(pd.DataFrame({**common, "factor": "what", "right": (told == colours).astype(float)}))
            errors = {"error": ((at - places) ** 2).sum(1), "spread": ((mean - places) ** 2).sum(1)}
            rows.append(pd.DataFrame({**common, "factor": "where", **errors}))
    return pd.concat(rows, ignore_index=True)


def summary(near: pd.DataFrame, decoded: pd.DataFrame, *, n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """[view, factor, form, site, value, low, high, chance, n], 95% intervals over pictures.

    View neighbours: share beyond chance, (share - chance) / (1 - chance); view decoding: share of colours right, R^2 of places.
    """
    rows = []
    for (factor, form, site), part in near.groupby(["factor", "form", "site"], sort=False):
        beyond = (part["share"] - part["chance"]) / (1 - part["chance"])
        found = stats.bootstrap(beyond.to_numpy(), None, n=n, seed=seed)
        rows.append(("neighbours", factor, form, site, *_plain(found), 0.0, found.n))
    for (factor, form, site), part in decoded.groupby(["factor", "form", "site"], sort=False):
        found = _decoded(part, factor, n, seed)
        chance = 1 / len(COLOURS) if factor == "what" else 0.0
        rows.append(("decoding", factor, form, site, *_plain(found), chance, found.n))
    return pd.DataFrame(rows, columns=["view", "factor", "form", "site", "value", "low", "high", "chance", "n"])


def kept(
    near: pd.DataFrame, decoded: pd.DataFrame, before: str, after: str = "post", *, n: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """After minus before, on the same pictures: [view, factor, form, change, low, high, n], and per view and form the factor
    "where - what": how much better the connector keeps where than what (neighbours alone, whose two shares have one unit)."""
    rows = []
    for form in FORMS:
        changes = {}
        for factor in ("what", "where"):
            part = near[(near["form"] == form) & (near["factor"] == factor)]
            beyond = (part["share"] - part["chance"]) / (1 - part["chance"])
            table = beyond.groupby([part["key"], part["site"]]).first().unstack()
            changes[factor] = (table[after] - table[before]).to_numpy()
            found = stats.bootstrap(changes[factor], None, n=n, seed=seed)
            rows.append(("neighbours", factor, form, *_plain(found), found.n))
        found = stats.bootstrap(changes["where"], None, n=n, seed=seed, paired=changes["what"])
        rows.append(("neighbours", "where - what", form, *_plain(found), found.n))
    for (form, factor), part in decoded.groupby(["form", "factor"], sort=False):
        # both R^2 have one denominator: the spread is that of the same folds
        sides = [part[part["site"] == site].reset_index(drop=True) for site in (after, before)]
        if factor == "what":
            found = stats.bootstrap(sides[0]["right"].to_numpy(), sides[0]["key"].to_numpy(), n=n, seed=seed,
                                    paired=sides[1]["right"].to_numpy())  # fmt: skip
        else:
            gain = (sides[1]["error"] - sides[0]["error"]).to_numpy()
            found = _share(gain, sides[0]["spread"].to_numpy(), sides[0]["key"].to_numpy(), n, seed)
        rows.append(("decoding", factor, form, *_plain(found), found.n))
    return pd.DataFrame(rows, columns=["view", "factor", "form", "change", "low", "high", "n"])


def _forms(vectors: Vectors, count: int) -> Iterator[tuple[str, str, Float[np.ndarray, "picture number"]]]:
    """Site, form and [picture, number] of each matrix to look at."""
    for site, tokens in vectors.items():
        tokens = np.asarray(tokens, np.float32)
        if tokens.ndim != 3 or len(tokens) != count:
            raise ValueError(f"vectors of {site!r} are {tokens.shape}; they must be [{count}, token, width], one row an example")
        yield site, "pooled", tokens.mean(1)
        yield site, "tokens", tokens.reshape(count, -1)


def _where(
    examples: Sequence[Example], shape: str
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, "n 2"], Int[np.ndarray, " n"]]:
    """Which scenes hold the shape; its centre there, in cells; the number of its colour."""
    names = list(COLOURS)
    found = [(i, thing) for i, e in enumerate(examples) for thing in e.objects if thing.name.split()[1] == shape]
    places = np.array([thing.centre for _, thing in found]) * WORLD.grid
    return np.array([i for i, _ in found]), places, np.array([names.index(thing.name.split()[0]) for _, thing in found])


def _compact(x: Float[np.ndarray, "n number"]) -> Float[np.ndarray, "n component"]:
    """Each number brought to variance 1 (0 where it never varies), and the rows turned into as many dimensions as they span: to a
    ridge regression they are the same, and quicker."""
    x = np.asarray(x, np.float64) - x.mean(0)
    spread = x.std(0)
    x /= np.where(spread > 0, spread, 1) * np.sqrt(x.shape[1])
    values, directions = np.linalg.eigh(x @ x.T)
    return directions * np.sqrt(np.maximum(values, 0))


def _read(x: Float[np.ndarray, "n number"], y: Float[np.ndarray, "n target"], seed: int) -> Float[np.ndarray, "n target_2"]:
    """Ridge regression's word on each row, learnt on the other folds; last, the mean of the last two targets there."""
    if len(x) < 2 * FOLDS:
        raise ValueError(f"{len(x)} scenes hold a shape; a readout needs at least {2 * FOLDS}")
    out = np.empty((len(y), y.shape[1] + 2))
    for train, test in KFold(FOLDS, shuffle=True, random_state=seed).split(x):
        model = RidgeCV(ALPHAS, alpha_per_target=True).fit(x[train], y[train])
        out[test, :-2] = model.predict(x[test])
        out[test, -2:] = y[train][:, -2:].mean(0)
    return out


def _decoded(part: pd.DataFrame, factor: str, n: int, seed: int) -> stats.Interval:
    keys = part["key"].to_numpy()
    if factor == "what":
        return stats.bootstrap(part["right"].to_numpy(), keys, n=n, seed=seed, bounds=(0, 1))
    spread = part["spread"].to_numpy()
    return _share(spread - part["error"].to_numpy(), spread, keys, n, seed)


def _share(gain: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"], keys: np.ndarray, n: int, seed: int) -> stats.Interval:
    """gain / spread, both of the same rows."""
    return stats.ratio(gain, spread, keys, keys, n=n, seed=seed)


def _plain(found: stats.Interval) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high
