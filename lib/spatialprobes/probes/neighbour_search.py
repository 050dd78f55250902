"""Who is nearest to whom? Exact neighbours of rows by blocked matrix products, in bounded memory, on a CPU or a GPU.

Products are in fp32 and only propose: what lies within their rounding error of one another, or of the k-th, is measured again in
fp64 from the rows as given, so that the lists are those of fp64 distances, ties by the lower row. Knows arrays; knows nothing of
pictures, models and figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from spatialprobes.probes.duplicates import exact

if TYPE_CHECKING:
    from jaxtyping import Float, Int, Shaped

Metric = Literal["l2", "cosine"]
Prepare = Literal["raw", "centred", "standardised"]
METRICS = ("l2", "cosine")
PREPARATIONS = ("raw", "centred", "standardised")
BLOCK = 512  # queries at once
SPARE = 16  # candidates beyond the k-th
AT_ONCE = 1 << 18  # numbers taken to fp64 at once: they stay in the cache
SAMPLE = 256  # queries whose scores are checked
SAFETY = 4
CROWD = 1 << 22  # scores looked through at once where many are as good
PART = 4096  # rows taken to fp64 at once
UNIT = 2.0**-24  # half the distance of 1 and the next fp32


def nearest(
    x: Float[np.ndarray, "n width"],
    k: int,
    *,
    metric: Metric = "l2",
    include_self: bool = False,
    groups: Shaped[np.ndarray, " n"] | None = None,
    few: Literal["refuse", "shorten"] = "refuse",
    block: int = BLOCK,
    device: str = "cpu",
) -> Int[np.ndarray, "n k"]:
    """The k nearest rows of each row, nearest first; of rows equally near the lower number comes first.

    x: numpy or torch. metric: "l2", or "cosine" (rows at length 1, which orders as l2 between them does). The order is that of
    fp64 distances between the rows as given; the fp32 products that propose candidates are of centred rows, and are taken to err
    by no more than 4 times the most seen among up to 300,000 of them, measured here and on this machine.
    include_self: False leaves the row itself out; True puts it first, and the k - 1 nearest others after it.
    groups: a label a row; neighbours are then sought among the rows of the same label alone. None: among all.
    few: where a gallery holds fewer than k (others), "refuse", or "shorten": what is not there is -1, at the end.
    block: queries at once; [block, n] fp32 scores are held. device: where products are made, "cpu" or "cuda".

    Raises ValueError for what is not [n, width], not finite or of length 0 under cosine (naming the first row), an unknown metric
    or `few`, k < 1, or galleries that are too small.
    """
    rows = checked(x)
    known(metric, "metric", METRICS)
    _check_counts(k, block, few)
    found = np.full((len(rows), k), -1, np.int64)
    for members in _large_enough(galleries(groups, len(rows)), k - include_self, few):
        if include_self:
            found[members, 0] = members
        if wanted := min(k - include_self, len(members) - 1):
            part = rows if len(members) == len(rows) else rows[torch.from_numpy(members)]
            local = _Gallery(part, metric, torch.device(device)).search(wanted, block)
            found[members, include_self : include_self + wanted] = members[local]
    return found


def nearest_as_published(
    x: Float[np.ndarray, "n width"],
    k: int,
    *,
    groups: Shaped[np.ndarray, " n"] | None = None,
    few: Literal["refuse", "shorten"] = "refuse",
    block: int = BLOCK,
) -> Int[np.ndarray, "n k"]:
    """The k nearest others by the study's fp32 score -(|q|^2 + |g|^2 - 2 q.g), which cancels where rows are long and close.

    Ties as torch.topk leaves them. To see what `nearest` mends. Arguments and errors as `nearest`.
    """
    rows = checked(x).float()
    _check_counts(k, block, few)
    found = np.full((len(rows), k), -1, np.int64)
    for members in _large_enough(galleries(groups, len(rows)), k, few):
        part = rows[torch.from_numpy(members)]
        squares = (part * part).sum(1)
        wanted = min(k, len(members) - 1)
        for start in range(0, len(part) if wanted else 0, block):
            query = part[start : start + block]
            scores = -(squares[start : start + block, None] + squares - 2 * (query @ part.T))
            scores[torch.arange(len(query)), torch.arange(start, start + len(query))] = -torch.inf
            found[members[start : start + block], :wanted] = members[scores.topk(wanted).indices.numpy()]
    return found


def prepared(x: Float[np.ndarray, "n width"], how: Prepare = "raw") -> Float[torch.Tensor, "n width"]:
    """Rows as they are ("raw"), less their mean ("centred"), or also divided by each dimension's standard deviation.

    Mean and deviation (population) are over all rows, in fp64; dimensions that do not vary become 0. Raises as `nearest` does.
    """
    rows = checked(x)
    known(how, "prepare", PREPARATIONS)
    if how == "raw":
        return rows
    centre = rows.mean(0, dtype=torch.float64)
    if how == "centred":
        return torch.cat([(part.double() - centre).to(rows.dtype) for part in rows.split(PART)])
    square = torch.zeros_like(centre)
    for part in rows.split(PART):  # two passes: sums of squares alone would cancel
        square += (part.double() - centre).square().sum(0)
    deviation = (square / len(rows)).sqrt()
    deviation[deviation <= UNIT * centre.abs()] = torch.inf  # what is left of a constant after rounding
    return torch.cat([((part.double() - centre) / deviation).to(rows.dtype) for part in rows.split(PART)])


def checked(x: Float[np.ndarray, "n width"], name: str = "x", keys: list[str] | None = None) -> Float[torch.Tensor, "n width"]:
    """x as a torch matrix on the CPU, fp64 if it was, else fp32. Raises ValueError naming the first row that is not finite."""
    rows = x.detach().cpu() if isinstance(x, torch.Tensor) else torch.as_tensor(np.asarray(x))
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}; [n, width] with at least one of each is wanted")
    rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
    # a sum is finite unless a number is not (or it overflows): one pass without a mask as large as x
    wrong = [i for i in torch.nonzero(~torch.isfinite(rows.sum(1))).flatten().tolist() if not torch.isfinite(rows[i]).all()]
    if wrong:
        first = f"row {wrong[0]}" if keys is None else f"{keys[wrong[0]]!r} (row {wrong[0]})"
        raise ValueError(f"{name} holds NaN or infinite numbers in {len(wrong)} of {len(rows)} rows, first {first}")
    return rows


def known(value: str, name: str, legal: tuple[str, ...]) -> str:
    """The value. Raises ValueError unless it is one of the legal ones."""
    if value not in legal:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(legal)}")
    return value


def galleries(groups: Shaped[np.ndarray, " n"] | None, n: int) -> Iterator[Int[np.ndarray, " member"]]:
    """The rows of each label, ascending, labels in their order of appearance; all rows at once without labels."""
    if groups is None:
        yield np.arange(n)
        return
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups has shape {labels.shape}, not ({n},)")
    _, first, codes = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(codes, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(codes))[:-1])
    for place in np.argsort(first):
        yield parts[place]


def _check_counts(k: int, block: int, few: str) -> None:
    known(few, "few", ("refuse", "shorten"))
    if k < 1 or block < 1:
        raise ValueError(f"k={k}, block={block}: both must be at least 1")


def _large_enough(parts: Iterator[Int[np.ndarray, " member"]], others: int, few: str) -> Iterator[Int[np.ndarray, " member"]]:
    """The galleries, unless one holds too few other rows and that is refused."""
    for members in parts:
        if len(members) <= others and few == "refuse":
            raise ValueError(
                f"{others} nearest others are wanted of each of {len(members)} rows, which have {len(members) - 1}; "
                "few='shorten' takes what there is"
            )
        yield members


class _Gallery:
    """Rows to search among themselves: as given, and centred and scaled in fp32 on the device."""

    def __init__(self, rows: Float[torch.Tensor, "n width"], metric: Metric, device: torch.device):
        self.rows, self.device, self.scale = rows, device, None
        if metric == "cosine":
            self.scale = lengths(rows)[:, None]
            if none := torch.nonzero(self.scale[:, 0] == 0).flatten().tolist():
                raise ValueError(f"{len(none)} of {len(rows)} rows have length 0 and no direction, first row {none[0]}")
        centre = sum(part.sum(0) for _, part in self._parts()) / len(rows)
        largest = max(float((part - centre).abs().max()) for _, part in self._parts())
        shrink = 2.0 ** -np.ceil(np.log2(largest or 1.0))  # a power of two, exactly: squares of 10^20 are no fp32 numbers
        self.points = torch.empty(rows.shape, dtype=torch.float32, device=device)
        squares = torch.empty(len(rows), dtype=torch.float64)
        for at, part in self._parts():
            part = (part - centre) * shrink
            squares[at] = torch.linalg.vecdot(part, part)
            self.points[at] = part.float()
        self.half = (squares / 2).float().to(device)
        self.length = squares.sqrt().float().to(device)

    def _parts(self) -> Iterator[tuple[slice, Float[torch.Tensor, "part width"]]]:
        """Places and rows in fp64, at length 1 under cosine, some at a time."""
        step = max(1, AT_ONCE // self.rows.shape[1])
        for start in range(0, len(self.rows), step):
            yield (at := slice(start, start + step)), self._exact(at)

    def _exact(self, at) -> Float[torch.Tensor, "part width"]:
        part = self.rows[at].double()
        return part if self.scale is None else part / self.scale[at]

    def _scores(self, at: slice, out: Float[torch.Tensor, "query n"]) -> Float[torch.Tensor, "query n"]:
        """q.g - |g|^2 / 2, the higher the nearer, of the queries at `at` and all rows."""
        return torch.addmm(self.half, self.points[at], self.points.T, beta=-1, out=out)

    def _error(self, scores: Float[torch.Tensor, "query n"]) -> float:
        """By how much scores err, over |q| |g| + |g|^2 / 2: SAFETY times the most seen among the first queries and rows spread
        over all, and themselves."""
        some = scores[:SAMPLE]
        rows = torch.cat([torch.arange(len(some)), torch.linspace(0, len(self.rows) - 1, 4 * SAMPLE).long()]).to(self.device)
        queries, others = self.points[: len(some)].double(), self.points[rows].double()
        size = torch.linalg.vecdot(others, others)
        off = (queries @ others.T - size / 2 - some[:, rows].double()).abs()
        most = (off / (torch.outer(queries.norm(dim=1), size.sqrt()) + size / 2).clamp(min=1e-300)).max()
        return SAFETY * max(float(most), 2 * UNIT)

    @cached_property
    def copies(self) -> Int[np.ndarray, " n"]:
        """The first row that each row is equal to."""
        labels = exact(self.rows)
        return np.unique(labels, return_index=True)[1][labels]

    def search(self, k: int, block: int) -> Int[np.ndarray, "n k"]:
        """The k nearest others of each row; k < n."""
        many = len(self.rows)
        found = np.empty((many, k), np.int64)
        held = torch.empty(min(block, many), many, dtype=torch.float32, device=self.device)
        with full_precision():
            for start in range(0, many, block):
                at = slice(start, min(start + block, many))
                scores = self._scores(at, held[: at.stop - start])
                if start == 0:
                    share, most = self._error(scores), float(self.length.max())
                own = torch.arange(len(scores), device=self.device)
                scores[own, own + start] = -torch.inf
                found[at] = self._best(scores, start, k, share * most * (self.length[at, None] + most / 2))
        return found

    def _best(
        self, scores: Float[torch.Tensor, "query n"], start: int, k: int, error: Float[torch.Tensor, "query 1"]
    ) -> Int[np.ndarray, "query k"]:
        """Of one block of queries: candidates by score, and again by distance where scores do not decide."""
        many = scores.shape[1] - 1
        values, candidates = scores.topk(min(k + SPARE, many))
        margin = 2 * error
        found = candidates[:, :k].cpu().numpy()
        close = (values[:, :-1] - values[:, 1:] <= margin).cpu().numpy()
        crowded = np.zeros(len(scores), bool)
        if values.shape[1] < many:  # something as good may be left outside
            crowded = (values[:, -1:] >= values[:, k - 1 : k] - margin)[:, 0].cpu().numpy()
        self._settle(found, candidates.cpu().numpy(), close, ~crowded, start)
        step = max(1, CROWD // (many + 1))
        for rows in np.split(np.flatnonzero(crowded), range(step, int(crowded.sum()), step)) if crowded.any() else []:
            at = torch.from_numpy(rows).to(self.device)
            row, column = torch.nonzero(scores[at] >= values[at, k - 1 : k] - margin[at], as_tuple=True)
            row, column = row.cpu().numpy(), column.cpu().numpy()
            order = np.lexsort((column, self._distances(rows[row] + start, column), row))
            begins = np.searchsorted(row[order], np.arange(len(rows)))
            found[rows] = column[order][begins[:, None] + np.arange(k)]
        return found

    def _settle(self, found, candidates, close, rows, start: int) -> None:
        """Order runs of candidates whose scores are too close to tell by their distances, in place."""
        k = found.shape[1]
        run = np.concatenate([np.zeros((len(found), 1), np.int64), np.cumsum(~close, axis=1)], axis=1)
        tied = np.zeros(candidates.shape, bool)
        tied[:, 1:] |= close
        tied[:, :-1] |= close
        tied &= rows[:, None] & (run <= run[:, k - 1 : k])
        row, place = np.nonzero(tied)
        column = candidates[row, place]
        order = np.lexsort((column, self._distances(row + start, column), run[row, place], row))
        kept = place < k
        found[row[kept], place[kept]] = column[order][kept]

    def _distances(self, one: Int[np.ndarray, " pair"], other: Int[np.ndarray, " pair"]) -> Float[np.ndarray, " pair"]:
        """Squared distances of pairs of rows in fp64; of rows that are copies of one another each is measured once."""
        if len(one) > len(self.rows):  # many: perhaps copies
            pairs, back = np.unique(self.copies[one] * len(self.rows) + self.copies[other], return_inverse=True)
            one, other = np.divmod(pairs, len(self.rows))
        else:
            back = slice(None)
        apart = np.zeros(len(one))
        step = max(1, AT_ONCE // self.rows.shape[1])
        for begin in range(0, len(one), step):
            a, b = (self._exact(torch.from_numpy(side[begin : begin + step])) for side in (one, other))
            apart[begin : begin + step] = torch.linalg.vecdot(a.sub_(b), a).numpy()
        return apart[back]


def lengths(rows: Float[torch.Tensor, "n width"]) -> Float[torch.Tensor, " n"]:
    """Euclidean length of each row in fp64."""
    return torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in rows.split(PART)])


@contextmanager
def full_precision() -> Iterator[None]:
    """fp32 products in fp32, whatever the caller allows elsewhere (TF32, bf16)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
