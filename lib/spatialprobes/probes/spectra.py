"""How many directions do a picture's tokens take up? Singular values of token matrices, and what is read off them.

A picture is a matrix [token, width]; its tokens are centred (their mean taken away) and its singular values had from the smaller
of the two Gram matrices, picture after picture. Knows arrays and keys; knows nothing of models and figures. Scalars bear the
study's names; "effective rank" is there in both definitions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from spatialprobes import stats

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    Tokens = Float[np.ndarray, "n token width"] | Iterable[Float[np.ndarray, "block token width"]]

TOP = 128  # components that a mean spectrum keeps, as the study
AT_ONCE = 1 << 22  # numbers of token matrices held at once: 32 MB in fp64
PANEL = 96  # columns of a Gram matrix made at once, from the diagonal down
TOP_ENERGIES = (1, 5, 10)
ENERGIES = (0.80, 0.90)
COLUMNS = [
    "key", "effective_rank", "effective_rank_normalized", "effective_rank_roy_vetterli", "top1_energy_ratio", "top5_energy_ratio",
    "top10_energy_ratio", "k80_energy", "k90_energy", "largest", "mean_pairwise_cosine", "std_pairwise_cosine",
    "median_pairwise_cosine", "tokens", "width",
]  # fmt: skip
MEASURES = COLUMNS[1:13]  # what a summary is of


@dataclass(frozen=True, eq=False)
class Spectra:
    """Of each picture of one site: singular values, fp32 [n, min(token, width)], and cosines of its tokens."""

    keys: list[str]
    singular_values: Float[np.ndarray, "n component"]
    cosines: pd.DataFrame
    tokens: int
    width: int

    def table(self) -> pd.DataFrame:
        """The table of `measure`."""
        parts = [scalars(self.singular_values), self.cosines]
        frame = pd.concat(parts, axis=1).assign(key=self.keys, tokens=self.tokens, width=self.width)
        return frame[COLUMNS]


def measure(x: Tokens, keys: Sequence[str], *, device: str = "cpu", seed: int = 0) -> pd.DataFrame:
    """One row a picture: [key, the columns of `scalars` and of `token_cosine`, tokens, width].

    x: [n, token, width], anything of that shape that can be sliced (`ConnectorStates.vectors`), or an iterable of such blocks;
    read once. Nothing is drawn: ``seed`` is there because every probe takes
    one. Raises ValueError as `collect`.
    """
    return collect(x, keys, device=device).table()


def collect(x: Tokens, keys: Sequence[str], *, device: str = "cpu") -> Spectra:
    """Singular values and token cosines of each picture, in one pass over x (see `measure`).

    Raises ValueError for a picture that is not finite, by its key, for more or fewer pictures than keys, for blocks of different
    shapes.
    """
    names, values, cosines, shape = list(keys), [], [], None
    for block in _blocks(x):
        begin = sum(map(len, values))
        if shape not in (None, block.shape[1:]):
            raise ValueError(f"pictures of {tuple(shape)} and {tuple(block.shape[1:])} tokens and width in one collection")
        shape = block.shape[1:]
        _check(block, names[begin : begin + len(block)], begin)
        values.append(singular_values(block, device=device))
        cosines.append(token_cosine(block, device=device))
    if sum(map(len, values)) != len(names):
        raise ValueError(f"{sum(map(len, values))} pictures do not fit {len(names)} keys")
    if shape is None:
        raise ValueError("no picture was given")
    return Spectra(names, np.concatenate(values), pd.concat(cosines, ignore_index=True), int(shape[0]), int(shape[1]))


def summary(
    frame: pd.DataFrame,
    by: Sequence[str] = (),
    *,
    clusters: Shaped[np.ndarray, " n"] | None = None,
    measures: Sequence[str] = MEASURES,
    n: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Means over pictures with 95% intervals: [*by, measure, estimate, low, high, median, std, n, clusters, undefined].

    frame: as `measure` gives it, perhaps several with columns to tell them apart, named in `by` ("model", "site"). clusters: a
    label a row, what is resampled together (copies); None: each row its own. undefined: rows whose value is NaN (pictures without
    energy), which the rest leaves out; where fewer than two clusters have one, the numbers are NaN. std is the population's.
    Raises ValueError for clusters that do not fit and measures that are not there.
    """
    if missing := sorted({*by, *measures} - set(frame.columns)):
        raise ValueError(f"no column {missing[0]!r}; there: {', '.join(map(str, frame.columns))}")
    labels = np.arange(len(frame)) if clusters is None else np.asarray(clusters)
    if len(labels) != len(frame):
        raise ValueError(f"clusters has {len(labels)} rows, not {len(frame)}")
    groups = frame.groupby(list(by), sort=False).indices if by else {(): np.arange(len(frame))}
    rows = []
    for label, places in groups.items():
        named = dict(zip(by, label if isinstance(label, tuple) else (label,), strict=True))
        for measure in measures:
            values = frame[measure].to_numpy(float)[places]
            there = np.isfinite(values)
            rows.append({**named, "measure": measure, **_mean(values[there], labels[places][there], n, seed)})
            rows[-1]["undefined"] = int((~there).sum())
    return pd.DataFrame(rows)


def _mean(values: Float[np.ndarray, " n"], clusters: Shaped[np.ndarray, " n"], n: int, seed: int) -> dict[str, float]:
    few = len(set(clusters.tolist()))
    if few < 2:
        return dict.fromkeys(("estimate", "low", "high", "median", "std"), np.nan) | {"n": len(values), "clusters": few}
    found = stats.bootstrap(values, clusters, n=n, seed=seed)
    middle = {"median": float(np.median(values)), "std": float(values.std())}
    return {"estimate": found.estimate, "low": found.low, "high": found.high, **middle, "n": found.n, "clusters": found.clusters}


def singular_values(x: Float[np.ndarray, "n token width"], *, device: str = "cpu") -> Float[np.ndarray, "n component"]:
    """Singular values of each picture's token-centred matrix, largest first: fp32 [n, min(token, width)].

    Square roots of the eigenvalues of the smaller Gram matrix in fp64: off by up to 2e-8 of the largest, of fp32 as given. One
    token, or tokens that are all the same, give zeros.
    Raises ValueError for what is not [n, token, width] or not finite.
    """
    made = []
    for block in _blocks(x):
        _check(block)
        squares = torch.linalg.eigvalsh(_gram(block.to(device)), UPLO="L").flip(-1)
        made.append(squares.clamp(min=0).sqrt().float().cpu().numpy())
    return np.concatenate(made)


def scalars(s: Float[np.ndarray, "n component"]) -> pd.DataFrame:
    """What is read off singular values, a row a picture. With e = s^2 and p = e / sum e:

    effective_rank: exp of the entropy of p (the study's); effective_rank_normalized: as a share of the number of components,
    which centred tokens never reach where they are fewer than dimensions. effective_rank_roy_vetterli: with s for e (2007).
    top1/5/10_energy_ratio: sum of the first of p; k80/k90_energy: least number of components that hold so much. largest: s_1.
    NaN where all are zero: there is no energy to share out. Raises ValueError for what is not [n, component], negative or not
    finite.
    """
    s = np.asarray(s, float)
    if s.ndim != 2 or s.shape[1] == 0:
        raise ValueError(f"singular values of shape {s.shape}; [n, component] is wanted")
    if not (np.isfinite(s).all() and (s >= 0).all()):
        raise ValueError("singular values that are negative, NaN or infinite")
    s = -np.sort(-s, axis=1)
    largest = s[:, :1]
    with np.errstate(invalid="ignore"):
        scaled = s / largest  # squares of 10^200 are no numbers; NaN where all are zero
        p, q = scaled**2, scaled
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    reached = np.cumsum(p, axis=1)
    none = np.isnan(p[:, 0])
    columns = {
        "effective_rank": _exp_entropy(p),
        "effective_rank_normalized": _exp_entropy(p) / s.shape[1],
        "effective_rank_roy_vetterli": _exp_entropy(q),
    }
    columns |= {f"top{k}_energy_ratio": reached[:, min(k, s.shape[1]) - 1] for k in TOP_ENERGIES}
    for share in ENERGIES:
        columns[f"k{round(100 * share)}_energy"] = np.where(none, np.nan, 1 + (reached < share - 1e-12).sum(1))
    return pd.DataFrame(columns | {"largest": largest[:, 0]})


def token_cosine(x: Float[np.ndarray, "n token width"], *, device: str = "cpu") -> pd.DataFrame:
    """Cosines of all pairs of different tokens of a picture, not centred: [mean_, std_, median_pairwise_cosine], a row a picture.

    std is the population's. Tokens of length 0 have no direction and are left out; NaN where fewer than two are left.
    Raises ValueError for what is not [n, token, width] or not finite.
    """
    rows = []
    for block in _blocks(x):
        _check(block)
        tokens = block.to(device)
        norms = torch.linalg.vector_norm(tokens, dim=2, keepdim=True, dtype=torch.float64)
        unit = (tokens / norms.clamp(min=torch.finfo(torch.float64).tiny)).to(tokens.dtype)
        cosines, there = unit @ unit.mT, (norms > 0)[..., 0]
        for picture, keep in zip(cosines, there, strict=True):
            rows.append(_pairs(picture if keep.all() else picture[keep][:, keep]))
    return pd.DataFrame(rows, columns=["mean_pairwise_cosine", "std_pairwise_cosine", "median_pairwise_cosine"])


def spectrum(s: Float[np.ndarray, "n component"], top: int = TOP) -> pd.DataFrame:
    """Mean spectrum over pictures: [component (from 1), singular_value, energy, low, high (of energy: 2.5th and 97.5th percentile
    over pictures), n].

    energy: share of the picture's own, averaged over pictures that have any. Raises ValueError as `scalars`.
    """
    s = np.asarray(s, float)
    some = s[s.max(1) > 0]
    if not len(some):
        raise ValueError("no picture has any energy")
    p = (some / some.max(1, keepdims=True)) ** 2
    p = (p / p.sum(1, keepdims=True))[:, :top]
    low, high = np.quantile(p, [0.025, 0.975], axis=0)
    columns = {"singular_value": s[:, :top].mean(0), "energy": p.mean(0), "low": low, "high": high}
    return pd.DataFrame({"component": np.arange(1, p.shape[1] + 1), **columns, "n": len(some)})


def _pairs(cosines: Float[torch.Tensor, "token token"]) -> tuple[float, float, float]:
    if len(cosines) < 2:
        return (np.nan,) * 3
    one, other = torch.triu_indices(len(cosines), len(cosines), 1, device=cosines.device)
    values = cosines[one, other].double()
    middle = (values.median() - (-values).median()) / 2  # torch takes the lower of two middle ones
    return float(values.mean()), float(values.std(correction=0)), float(middle)


def _exp_entropy(p: Float[np.ndarray, "n component"]) -> Float[np.ndarray, " n"]:
    logs = np.log(np.where(p > 0, p, 1.0))
    return np.where(np.isnan(p[:, 0]), np.nan, np.exp(-(np.nan_to_num(p) * logs).sum(1)))


def _gram(x: Float[torch.Tensor, "n token width"]) -> Float[torch.Tensor, "n small small"]:
    """The lower half of the smaller of x x' and x' x, x less its mean over tokens, in fp64.

    fp32 would not do: what is rounded off the largest eigenvalue is of the size of the square of 2e-4 times its root.
    """
    # tokens that are all the same become 0: in fp64 the mean of equal fp32 numbers is exact, that of fp64 ones may not be
    x = x - x[:, :1] if x.dtype == torch.float64 else x.double()
    x -= x.mean(1, keepdim=True)
    x = x if x.shape[1] <= x.shape[2] else x.mT
    small = x.shape[1]
    gram = torch.zeros(len(x), small, small, dtype=torch.float64, device=x.device)
    for start in range(0, small, PANEL):
        torch.bmm(x[:, start:], x[:, start : start + PANEL].mT, out=gram[:, start:, start : start + PANEL])
    return gram


def _check(block: Float[torch.Tensor, "n token width"], keys: Sequence[str] = (), begin: int = 0) -> None:
    for i in torch.nonzero(~torch.isfinite(block.sum((1, 2)))).flatten().tolist():
        if not torch.isfinite(block[i]).all():
            name = repr(keys[i]) if i < len(keys) else f"number {begin + i}"
            raise ValueError(f"picture {name} holds NaN or infinite numbers")


def _blocks(x: Tokens) -> Iterator[Float[torch.Tensor, "block token width"]]:
    """Some pictures at a time as torch, fp64 if they were, else fp32; of what is kept on a disk no more is read at once."""
    for whole in [x] if hasattr(x, "ndim") else x:
        if len(whole.shape) != 3 or 0 in whole.shape:
            raise ValueError(f"tokens of shape {tuple(whole.shape)}; [n, token, width] with at least one of each is wanted")
        step = max(1, AT_ONCE // (whole.shape[1] * max(whole.shape[1:])))  # cosines of all pairs of tokens too
        for start in range(0, whole.shape[0], step):
            block = torch.as_tensor(whole[start : start + step]).detach()
            yield block if block.dtype in (torch.float32, torch.float64) else block.float()
