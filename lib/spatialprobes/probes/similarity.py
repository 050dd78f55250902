"""Are two spaces alike as wholes? Correlation of their pairwise distances, and linear CKA, with intervals over pictures.

Both compare [n, n] matrices of the same n pictures, so they are of a sample of them. Knows arrays; knows nothing of keys, models
and figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from spatialprobes.probes.neighbour_search import METRICS, Metric, Prepare, checked, known, lengths, prepared
from spatialprobes.seeds import check_seed
from spatialprobes.stats import Interval

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

Kind = Literal["pearson", "spearman"]
KINDS = ("pearson", "spearman")
SAMPLE = 2000  # pictures
GROUPS = 50  # parts that the jackknife leaves out in turn


def measure(
    a: Float[np.ndarray, "n width_a"],
    b: Float[np.ndarray, "n width_b"],
    *,
    prepare: Prepare = "raw",
    clusters: Shaped[np.ndarray, " n"] | None = None,
    sample: int | None = SAMPLE,
    seed: int = 0,
) -> pd.DataFrame:
    """All of it: [measure, metric, estimate, low, high, n, clusters] for the two correlations under both metrics, and both CKAs.

    measure: "pearson", "spearman" (of distances), "cka", "cka_unbiased". Raises as `distance_correlation` and `linear_cka`.
    """
    one, other = (prepared(checked(x, name), prepare) for name, x in (("a", a), ("b", b)))
    options = {"sample": sample, "clusters": clusters, "seed": seed}
    rows = [
        {"measure": kind, "metric": metric, **distance_correlation(one, other, metric, kind=kind, **options)._asdict()}
        for metric in METRICS
        for kind in KINDS
    ]
    for name, unbiased in (("cka", False), ("cka_unbiased", True)):
        rows.append({"measure": name, "metric": "linear", **linear_cka(one, other, unbiased=unbiased, **options)._asdict()})
    return pd.DataFrame(rows)


def distance_correlation(
    a: Float[np.ndarray, "n width_a"],
    b: Float[np.ndarray, "n width_b"],
    metric: Metric = "l2",
    sample: int | None = SAMPLE,
    seed: int = 0,
    kind: Kind = "pearson",
    *,
    clusters: Shaped[np.ndarray, " n"] | None = None,
    draws: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Correlation, over pairs of pictures, of their distance in `a` with their distance in `b` (a Mantel statistic).

    Pairs are all those among `sample` pictures drawn without replacement (the study: 10,000, Pearson); sample=None takes all.
    metric: "l2", or "cosine" for 1 - cosine. clusters: two pictures of one (copies) make no pair; None: each its own.
    Interval: bootstrap over clusters, percentiles of `draws`; a pair counts as often as the product of how often its two
    clusters were drawn, a cluster drawn twice makes no pair with itself, and of Spearman the ranks stay those of the sample.
    n: pairs; clusters: those of the sample. Raises ValueError for rows that do not match or are not finite, fewer than 3
    clusters, and distances that are all the same (there is no correlation then).
    """
    known(kind, "kind", KINDS)
    known(metric, "metric", METRICS)
    one, other, codes = _sampled(a, b, clusters, sample, seed, least=3)
    pair = codes[:, None] != codes[None, :]
    columns = []
    for name, x in (("a", one), ("b", other)):
        distances = _distances(x, metric)
        if kind == "spearman":
            distances[pair] = _ranks(distances[pair])
        values = distances[pair]
        spread = values.std()
        if spread <= 1e-12 * abs(values).max():
            raise ValueError(f"all distances in {name} are the same: nothing to correlate")
        columns.append(np.where(pair, (distances - values.mean()) / spread, 0.0))
    u, v = columns
    moments = [pair.astype(float), u, v, u * u, v * v, u * v]
    estimate = _correlation(*(m.sum() for m in moments))
    weights = _multinomial(codes, draws, seed)
    drawn = _correlation(*(np.einsum("ij,ij->i", weights @ m, weights) for m in moments))
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    count = int(codes.max()) + 1
    return Interval(float(estimate), float(min(low, estimate)), float(max(high, estimate)), int(pair.sum()) // 2, count)


def linear_cka(
    a: Float[np.ndarray, "n width_a"],
    b: Float[np.ndarray, "n width_b"],
    *,
    unbiased: bool = False,
    sample: int | None = SAMPLE,
    clusters: Shaped[np.ndarray, " n"] | None = None,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Linear centred kernel alignment (Kornblith et al. 2019) of the two spaces, of `sample` pictures drawn without replacement.

    HSIC(a, b) / sqrt(HSIC(a, a) HSIC(b, b)); 1 for spaces that rotation, scale and shift bring together. The biased form tends to
    1 where there are more dimensions than pictures, whatever they are; unbiased=True takes the estimator of HSIC without the
    diagonal (Song et al. 2012; as Nguyen et al. 2021), about 0 for unrelated spaces; NaN where one of a few pictures with itself
    is not above 0.
    Interval: jackknife that leaves out each of up to 50 parts of the clusters in turn, with Student's t; a bootstrap would count
    copies of a picture as likeness. n: pictures. Raises ValueError for rows that do not match, are not finite, or are all the
    same, and for fewer than 5 clusters.
    """
    one, other, codes = _sampled(a, b, clusters, sample, seed, least=5)
    kernels = [_kernel(x, name) for name, x in (("a", one), ("b", other))]
    count = int(codes.max()) + 1
    parts = min(GROUPS, count)
    part = np.random.default_rng(check_seed(seed)).permutation(count) % parts
    kept = (part[codes] != np.arange(parts)[:, None]).astype(float)
    alignment = _alignment(*kernels, np.concatenate([np.ones((1, len(codes))), kept]), unbiased)
    estimate, left = float(alignment[0]), alignment[1:]
    from scipy.special import stdtrit  # a quarter of a second, only where it is used

    error = np.sqrt((parts - 1) / parts * np.sum((left - left.mean()) ** 2))
    half = float(stdtrit(parts - 1, (1 + level) / 2) * error)
    return Interval(estimate, estimate - half, estimate + half, len(codes), count)


def _sampled(a, b, clusters, sample: int | None, seed: int, least: int):
    """The same sample of both, and the cluster of each row as 0 .. count - 1."""
    one, other = checked(a, "a"), checked(b, "b")
    if len(one) != len(other):
        raise ValueError(f"a has {len(one)} rows and b {len(other)}; both are of the same pictures")
    labels = np.arange(len(one)) if clusters is None else np.asarray(clusters)
    if len(labels) != len(one):
        raise ValueError(f"clusters has {len(labels)} rows, not {len(one)}")
    generator = np.random.default_rng(check_seed(seed))
    if sample is not None and sample < len(one):
        rows = np.sort(generator.choice(len(one), sample, replace=False))
        one, other, labels = one[torch.from_numpy(rows)], other[torch.from_numpy(rows)], labels[rows]
    codes = pd.factorize(labels, sort=True)[0]
    if len(set(codes)) < least:
        raise ValueError(f"{len(set(codes))} clusters of pictures are too few; at least {least}")
    return one.double(), other.double(), codes


def _distances(x: Float[torch.Tensor, "n width"], metric: Metric) -> Float[np.ndarray, "n n"]:
    """Pairwise distances in fp64; what is below the rounding of the product is 0."""
    if metric == "cosine":
        norms = lengths(x)
        if none := torch.nonzero(norms == 0).flatten().tolist():
            raise ValueError(f"{len(none)} of {len(x)} rows have length 0 and no direction")
        x = x / norms[:, None]
    x = x - x.mean(0)
    product = (x @ x.T).numpy()
    squares = np.diagonal(product)
    scale = squares[:, None] + squares
    apart = scale - 2 * product
    apart[apart <= 1e-13 * scale] = 0.0
    return apart / 2 if metric == "cosine" else np.sqrt(apart)


def _ranks(values: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
    return pd.Series(values).rank().to_numpy()


def _correlation(weight, u, v, uu, vv, uv):
    """Weighted Pearson correlation from sums of the weights and of the products."""
    covariance, one, other = uv - u * v / weight, uu - u * u / weight, vv - v * v / weight
    return covariance / np.sqrt(one * other)


def _multinomial(codes: Int[np.ndarray, " n"], draws: int, seed: int) -> Float[np.ndarray, "draw n"]:
    count = int(codes.max()) + 1
    generator = np.random.default_rng([check_seed(seed), 1])
    return generator.multinomial(count, np.full(count, 1 / count), size=draws)[:, codes].astype(float)


def _kernel(x: Float[torch.Tensor, "n width"], name: str) -> Float[np.ndarray, "n n"]:
    x = x - x.mean(0)
    largest = float(x.abs().max())
    if largest == 0:
        raise ValueError(f"all rows of {name} are the same: nothing to align")
    x = x / largest
    return (x @ x.T).numpy()


def _alignment(k, m, weights: Float[np.ndarray, "set n"], unbiased: bool) -> Float[np.ndarray, " set"]:
    """CKA of each subset of the pictures, given as rows of 0 and 1."""
    own = _hsic(k, k, weights, unbiased), _hsic(m, m, weights, unbiased)
    there = (own[0] > 0) & (own[1] > 0)
    norm = np.sqrt(np.where(there, own[0] * own[1], 1.0))
    return np.where(there, _hsic(k, m, weights, unbiased) / norm, np.nan)


def _hsic(k, m, weights: Float[np.ndarray, "set n"], unbiased: bool) -> Float[np.ndarray, " set"]:
    """HSIC of each subset up to factors that cancel in the alignment."""
    n = weights.sum(1)
    if unbiased:
        k, m = (one - np.diag(np.diagonal(one)) for one in (k, m))
    one, other = weights @ k, weights @ m
    both = np.einsum("ij,ij->i", weights @ (k * m), weights)
    rows = np.einsum("ij,ij,ij->i", one, other, weights)
    sums = np.einsum("ij,ij->i", one, weights) * np.einsum("ij,ij->i", other, weights)
    if unbiased:
        return both + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)
    return both + sums / n**2 - 2 * rows / n
