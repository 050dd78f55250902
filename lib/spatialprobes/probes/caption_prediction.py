"""Does what a connector does to a picture predict what happens to its caption? Correlations over pictures, raw and partial.

A raw correlation of a reconstruction's error with a caption's drop may be of something else: a caption that scored high has
further to fall (regression to the mean), and one that got longer or shorter scores otherwise whatever it says. So each is there
beside the same with these held constant, with an interval over pictures (copies of one drawn together), and with the false
discovery rate of all tests of the table. Models are never pooled in silence: `simpson` shows the pooled correlation beside that
within the models. Knows tables; knows no models and no figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import numpy as np
import pandas as pd

from spatialprobes.seeds import check_seed
from spatialprobes.stats import BLOCK, benjamini_hochberg

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

Kind = Literal["pearson", "spearman"]
IntervalBy = Literal["bootstrap", "fisher"]
COLUMNS = (
    "predictor", "outcome", "kind", "controls", "rows", "r", "low", "high", "p", "q", "n", "clusters", "left_out",
)  # fmt: skip
RAW = ""


class Correlation(NamedTuple):
    """A correlation with its 95% interval and two-sided p; n rows in `clusters` clusters."""

    r: float
    low: float
    high: float
    p: float
    n: int
    clusters: int


def correlation(
    x: Float[np.ndarray, " n"],
    y: Float[np.ndarray, " n"],
    controls: Float[np.ndarray, "n control"] | None = None,
    *,
    kind: Kind = "pearson",
    clusters: Shaped[np.ndarray, " n"] | None = None,
    interval: IntervalBy = "bootstrap",
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Correlation:
    """The (partial) correlation of two columns: of what is left of both after least squares on the controls and a constant.

    kind: "spearman" takes the ranks of all columns first (ties: their mean rank). clusters: rows that are drawn together and that
    count as one in p; None: each row its own. interval: "bootstrap", percentiles over draws of clusters (of ranks: those of the
    whole sample); "fisher", tanh(atanh r ± z / sqrt(m - 3 - controls)) with m clusters. p: Student's t with m - 2 - controls
    degrees of freedom, so with clusters it is at most too large.
    NaN throughout for fewer than 4 + controls clusters, and for a column that the controls leave nothing of; an interval is NaN
    where a draw has no correlation. Raises ValueError for NaN, unequal lengths, and an unknown kind or interval.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind={kind!r} is unknown; {' or '.join(map(repr, get_args(Kind)))}")
    if interval not in get_args(IntervalBy):
        raise ValueError(f"interval={interval!r} is unknown; {' or '.join(map(repr, get_args(IntervalBy)))}")
    check_seed(seed)
    data = _columns(x, y, controls)
    labels = np.arange(len(data)) if clusters is None else np.asarray(clusters)
    if len(labels) != len(data):
        raise ValueError(f"clusters has {len(labels)} rows, not {len(data)}")
    codes, unique = pd.factorize(labels, sort=True)
    count, held = len(unique), data.shape[1] - 2
    if kind == "spearman":
        data = np.column_stack([pd.Series(column).rank().to_numpy() for column in data.T])
    r = _of_residuals(data) if count >= 4 + held else np.nan
    if not np.isfinite(r):
        return Correlation(np.nan, np.nan, np.nan, np.nan, len(data), count)
    if interval == "fisher":
        low, high = _fisher(r, count - 3 - held, level)
    else:
        found = _drawn(data, codes, count, draws, seed)
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2]) if np.isfinite(found).all() else (np.nan, np.nan)
    # NaN stays NaN: np.minimum, where np.fmin would make an interval of no width of it
    return Correlation(r, float(np.minimum(low, r)), float(np.maximum(high, r)), _p(r, count - 2 - held), len(data), count)


def correlate(
    frame: pd.DataFrame,
    predictors: Sequence[str],
    outcomes: Sequence[str],
    *,
    controls: Mapping[str, Sequence[str]] | None = None,
    by: Sequence[str] = ("model",),
    kinds: Sequence[Kind] = get_args(Kind),
    duplicates: str | None = None,
    interval: IntervalBy = "bootstrap",
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Each predictor with each outcome within each group of `by`: [*by, *COLUMNS].

    controls: by name, the columns that are held constant in the row of that name; besides there is always the raw one, "". Such
    as {"baseline": ["clipscore_100_base"], "baseline, length": ["clipscore_100_base", "words_change_size"]}.
    duplicates: a column that is alike for copies of a picture. Then there are two sets of rows: "all", whose interval and p take
    copies as one cluster, and "deduplicated", the first of each alone; without it "all", each row by itself.
    q: Benjamini-Hochberg over all finite p of the table. left_out: rows of the group without one of the columns.
    Raises ValueError for a missing column and no predictor or outcome.
    """
    controls = {RAW: [], **(controls or {})}
    columns = [*by, *predictors, *outcomes, *(name for names in controls.values() for name in names)]
    _need(frame, [*columns, *([duplicates] if duplicates else [])])
    if not predictors or not outcomes:
        raise ValueError("nothing to correlate: at least one predictor and one outcome")
    rows = []
    for labels, part in _groups(frame, by):
        sets = {"all": part}
        if duplicates is not None:
            sets["deduplicated"] = part.drop_duplicates(duplicates)
        for (name, own), predictor, outcome, (control, held), kind in product(
            sets.items(), predictors, outcomes, controls.items(), kinds
        ):
            used = own.dropna(subset=[predictor, outcome, *held])
            clusters = used[duplicates].to_numpy() if duplicates is not None else None
            found = correlation(
                used[predictor], used[outcome], used[held].to_numpy(float) if held else None,
                kind=kind, clusters=clusters, interval=interval, draws=draws, seed=seed,
            )  # fmt: skip
            facts = {"predictor": predictor, "outcome": outcome, "kind": kind, "controls": control, "rows": name}
            rows.append({**labels, **facts, **found._asdict(), "left_out": len(own) - len(used)})
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table["q"] = np.nan
    if tested.any():
        table.loc[tested, "q"] = benjamini_hochberg(table.loc[tested, "p"].to_numpy())
    return table[[*by, *COLUMNS]]


def simpson(
    frame: pd.DataFrame,
    predictors: Sequence[str],
    outcomes: Sequence[str],
    *,
    model: str = "model",
    kind: Kind = "pearson",
    clusters: str | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The correlation pooled over models beside that within them: [predictor, outcome, kind, pooled, pooled_low, pooled_high,
    within, within_low, within_high, least, greatest, misleads, n, models].

    within: of both columns less their model's mean (of ranks within the model, where kind is "spearman"), so that it holds what
    pictures differ in and nothing that models do. least, greatest: of the models, each by itself. misleads: the pooled interval
    lies on one side of 0, that within the models does not lie there as well (Simpson's paradox).
    Raises ValueError for a missing column and fewer than two models.
    """
    _need(frame, [model, *predictors, *outcomes, *([clusters] if clusters else [])])
    if frame[model].nunique() < 2:
        raise ValueError(f"{frame[model].nunique()} model in the table; pooling needs two at least")
    rows = []
    for predictor, outcome in product(predictors, outcomes):
        used = frame.dropna(subset=[predictor, outcome])
        labels = used[clusters].to_numpy() if clusters else None
        options = {"clusters": labels, "draws": draws, "seed": seed}
        pooled = correlation(used[predictor], used[outcome], kind=kind, **options)
        centred = [_within(used, name, model, kind) for name in (predictor, outcome)]
        within = correlation(*centred, **options)
        parts = [part for _, part in used.groupby(model, sort=False)]
        each = [correlation(part[predictor], part[outcome], kind=kind, interval="fisher").r for part in parts]
        row = {"predictor": predictor, "outcome": outcome, "kind": kind}
        row |= {"pooled": pooled.r, "pooled_low": pooled.low, "pooled_high": pooled.high}
        row |= {"within": within.r, "within_low": within.low, "within_high": within.high}
        misleads = (pooled.low > 0 and not within.low > 0) or (pooled.high < 0 and not within.high < 0)
        row |= {"least": np.min(each), "greatest": np.max(each), "misleads": bool(misleads)}
        rows.append({**row, "n": len(used), "models": used[model].nunique()})
    return pd.DataFrame(rows)


# ---- correlations of arrays ----
def _columns(x, y, controls) -> Float[np.ndarray, "n column"]:
    parts = [np.asarray(one, dtype=float) for one in (x, y)]
    if controls is not None:
        held = np.asarray(controls, dtype=float)
        parts.append(held if held.ndim == 2 else held[:, None])
    if len({len(one) for one in parts}) > 1:
        raise ValueError(f"columns of {', '.join(str(len(one)) for one in parts)} rows do not correlate")
    data = np.column_stack(parts)
    if not np.isfinite(data).all():
        raise ValueError(f"{int((~np.isfinite(data)).any(axis=1).sum())} of {len(data)} rows hold NaN or infinities")
    return data


def _of_residuals(data: Float[np.ndarray, "n column"]) -> float:
    """Correlation of the first two columns, less what the others and a constant say of each (least squares)."""
    centred = data - data.mean(0)
    pair, held = centred[:, :2], centred[:, 2:]
    left = pair - held @ np.linalg.lstsq(held, pair, rcond=None)[0] if held.shape[1] else pair
    lengths, all_of_it = np.linalg.norm(left, axis=0), np.linalg.norm(data[:, :2], axis=0)
    if (lengths <= 1e-12 * np.maximum(all_of_it, 1e-300)).any():  # nothing but rounding is left
        return np.nan
    return float(np.clip(left[:, 0] @ left[:, 1] / lengths.prod(), -1, 1))


def _drawn(data: Float[np.ndarray, "n column"], codes, count: int, draws: int, seed: int) -> Float[np.ndarray, " draw"]:
    """The partial correlation in each bootstrap draw of clusters, from weighted sums of products: no row is touched twice."""
    if draws < 100:
        raise ValueError(f"draws={draws} are too few for an interval; use at least 100 (2,000 is usual)")
    scale = data.std(0)
    columns = np.column_stack([np.ones(len(data)), (data - data.mean(0)) / np.where(scale > 0, scale, 1)])
    products = np.einsum("ni,nj->nij", columns, columns).reshape(len(data), -1)
    sums = np.zeros((count, products.shape[1]))
    np.add.at(sums, codes, products)
    width = columns.shape[1]
    return np.concatenate([_partial((weights @ sums).reshape(-1, width, width)) for weights in _weights(count, draws, seed)])


def _weights(count: int, draws: int, seed: int) -> Iterable[Float[np.ndarray, "draw cluster"]]:
    """How often each draw takes each cluster, by blocks; kept for the next correlation of as many clusters where it is small."""
    if count * draws <= BLOCK:
        return [_kept_weights(count, draws, seed)]
    size, generator, even = max(1, BLOCK // count), np.random.default_rng(seed), np.full(count, 1 / count)
    return (generator.multinomial(count, even, size=min(size, draws - start)).astype(float) for start in range(0, draws, size))


@lru_cache(maxsize=2)
def _kept_weights(count: int, draws: int, seed: int) -> Float[np.ndarray, "draw cluster"]:
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _partial(moments: Float[np.ndarray, "draw column column"]) -> Float[np.ndarray, " draw"]:
    """Partial correlation of columns 1 and 2, given the others, from sums of products; column 0 is the constant."""
    means = moments[:, 0, 1:] / moments[:, :1, 0]
    covariance = moments[:, 1:, 1:] / moments[:, 0, 0, None, None] - means[:, :, None] * means[:, None, :]
    pair, across, held = covariance[:, :2, :2], covariance[:, :2, 2:], covariance[:, 2:, 2:]
    if held.shape[1]:
        pair = pair - across @ np.linalg.pinv(held, hermitian=True) @ across.transpose(0, 2, 1)
    spread = np.maximum(pair[:, 0, 0] * pair[:, 1, 1], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 1e-24, np.clip(pair[:, 0, 1] / np.sqrt(spread), -1, 1), np.nan)


def _fisher(r: float, freedom: int, level: float) -> tuple[float, float]:
    from scipy.special import ndtri  # a quarter of a second, only where it is used

    if freedom < 1 or abs(r) >= 1:
        return np.nan, np.nan
    half = float(ndtri((1 + level) / 2)) / np.sqrt(freedom)
    return float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))


def _p(r: float, freedom: int) -> float:
    from scipy.special import stdtr

    if abs(r) >= 1:
        return 0.0
    return float(2 * stdtr(freedom, -abs(r) * np.sqrt(freedom / (1 - r * r))))


def _within(frame: pd.DataFrame, column: str, model: str, kind: Kind) -> Float[np.ndarray, " n"]:
    own = frame.groupby(model, sort=False)[column]
    if kind == "spearman":
        return (own.rank() - (own.transform("size") + 1) / 2).to_numpy() / own.transform("size").to_numpy()
    return (frame[column] - own.transform("mean")).to_numpy()


# ---- tables ----
def _groups(frame: pd.DataFrame, by: Sequence[str]) -> Iterator[tuple[dict[str, object], pd.DataFrame]]:
    if not by:
        yield {}, frame
        return
    for group, part in frame.groupby(list(by), sort=False, dropna=False):
        yield dict(zip(by, group if isinstance(group, tuple) else (group,), strict=True)), part


def _need(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    if missing := [name for name in columns if name not in frame.columns]:
        raise ValueError(f"no column {missing[0]!r}; the table has {', '.join(map(str, frame.columns))}")
