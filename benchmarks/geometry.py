"""Connector geometry: overlap of neighbours (KNOR) and token spectra, against the matmul rate and against one at a time.

KNOR of two spaces is two searches and a comparison. Vectors are spread alike in all directions, so that distances lie as close
together as they can and the most candidates are measured again. The loop form is written as the study's is described:
blocks of 256 queries by 4,096 gallery rows, an image after another compared with `isin`, ranks moved one after another. Lists
must be those of fp64 distances, overlaps those of the loop, singular values those of svdvals before anything is timed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from common import (
    RESULTS,
    Result,
    TimedPath,
    Timings,
    alternate,
    arguments,
    matmul,
    peak_memory,
    report,
    result,
    table,
    write,
)

from spatialprobes.probes import neighbours, spectra
from spatialprobes.probes.neighbour_search import BLOCK

KS = (10, 50, 100)
STUDY_IMAGES = 121_861
SHAPES = {  # tokens and width before and after the connector, as published
    "llava": ((576, 1024), (576, 4096)),
    "idefics2": ((576, 1152), (64, 4096)),
    "qwen2.5vl": ((576, 1280), (144, 3584)),
    "qwen3.5": ((400, 1152), (100, 4096)),
}
GPU_RATE = 40e12  # fp32 products a second: assumed, of a data-centre GPU without its tensor cores; not measured
SQUARE, SEARCH, COMPARE = "square matmul", "search of one space", "comparison of lists, all k"
KNOR, SMALL, LOOP = "KNOR", "KNOR, few images", "the loop form, few images"
OURS, SINGLY = "spectra, ours", "svdvals one by one"
BARS = {"knor": 0.60, "spectra": 8}
OFF = 1e-4  # what singular values, over the largest, and scalars may differ by


@dataclass(frozen=True)
class Sizes:
    """images, width: of the search; few: of the comparison with the loop. pictures of tokens x wide: of spectra.

    square: side of the product that gives the machine's rate. checked: rows whose lists are compared with fp64.
    """

    images: int = 20_000
    width: int = 4096
    few: int = 1000
    pictures: int = 6
    tokens: int = 576
    square: int = 2048
    checked: int = 24


QUICK = Sizes(images=300, width=64, few=150, pictures=2, tokens=24, square=64, checked=8)


def spaces(images: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(images, width, generator=generator)
    return a, a + torch.randn(images, width, generator=generator)


def pictures(sizes: Sizes) -> torch.Tensor:
    """Tokens with a spectrum that falls off, and one direction a hundred times the others in half of the pictures."""
    x = torch.randn(sizes.pictures, sizes.tokens, sizes.width, generator=torch.Generator().manual_seed(1))
    x *= torch.logspace(0, -3, sizes.width)
    x[::2, :, 7] *= 100
    return x


# ---- paths ----
def knor(a: torch.Tensor, b: torch.Tensor, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Mean overlap and displacement at each k."""
    return compared(*(neighbours.nearest(x, max(KS), device=device.type) for x in (a, b)))


def compared(one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shared = [neighbours.overlap(one, other, k).mean() for k in KS]
    return np.array(shared), np.array([neighbours.rank_displacement(one, other, k).mean() for k in KS])


def looped(a: torch.Tensor, b: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The same by the study's form: fp32 scores in tiles, and Python loops over images and ranks."""
    lists = [_searched(x, max(KS)) for x in (a, b)]
    shared, moved = [], []
    for k in KS:
        one, other = (found[:, :k] for found in lists)
        shared.append(np.mean([torch.isin(one[i], other[i]).sum().item() / k for i in range(len(one))]))
        total = 0.0
        for mine, theirs in zip(one, other, strict=True):
            place = {int(index): rank for rank, index in enumerate(theirs)}
            total += sum(abs(rank - place[int(index)]) if int(index) in place else k for rank, index in enumerate(mine)) / k
        moved.append(total / len(one))
    return np.array(shared), np.array(moved)


def _searched(x: torch.Tensor, k: int) -> torch.Tensor:
    squares = x.square().sum(1)
    found = []
    for start in range(0, len(x), 256):
        query = x[start : start + 256]
        best = None
        for begin in range(0, len(x), 4096):
            rows = x[begin : begin + 4096]
            scores = -(squares[start : start + 256, None] + squares[begin : begin + 4096] - 2 * (query @ rows.T))
            own = torch.arange(start, start + len(query)) - begin
            inside = (own >= 0) & (own < len(rows))
            scores[torch.arange(len(query))[inside], own[inside]] = -torch.inf
            values, index = scores.topk(min(k, len(rows)), dim=1)
            both = (values, index + begin) if best is None else (
                torch.cat([best[0], values], 1), torch.cat([best[1], index + begin], 1)
            )  # fmt: skip
            values, order = both[0].topk(min(k, both[0].shape[1]), dim=1)
            best = values, both[1].gather(1, order)
        found.append(best[1])
    return torch.cat(found)


def singly(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.linalg.svdvals(one - one.mean(0)) for one in x]


# ---- what must be right first ----
def check(
    a: torch.Tensor, few: tuple[torch.Tensor, torch.Tensor], x: torch.Tensor, sizes: Sizes, device: torch.device
) -> tuple[np.ndarray, dict[str, float]]:
    """Raises AssertionError where lists, overlaps or spectra are not what they should be; lists, and the differences there are.

    The search is also what peak memory is taken of.
    """
    found = {}
    peak = peak_memory(lambda: found.update(lists=neighbours.nearest(a, max(KS), device=device.type)), device)
    wide = a.double()
    for row in np.linspace(0, len(a) - 1, sizes.checked).astype(int):
        apart = (wide - wide[row]).square().sum(1)
        apart[row] = torch.inf
        assert np.array_equal(found["lists"][row], apart.argsort(stable=True)[: max(KS)].numpy()), f"list of row {row}"
    del wide
    ours, theirs = knor(*few, device), looped(*few)
    off = max(float(np.abs(mine - other).max()) for mine, other in zip(ours, theirs, strict=True))
    assert off < 1e-3, f"overlaps differ from the loop's by {off}"  # lists of fp32 scores are not always those of distances
    exactly = np.stack([torch.linalg.svdvals(one.double() - one.double().mean(0)).numpy() for one in x])
    values = spectra.singular_values(x)
    worst = float((np.abs(values - exactly) / exactly.max(1, keepdims=True)).max())
    mine, other = (spectra.scalars(s).to_numpy() for s in (values, exactly))
    relative = float(np.abs(mine / other - 1).max())
    assert worst <= OFF and relative <= OFF, f"spectra differ by {worst} and {relative}"
    return found["lists"], {
        "peak extra MB of a search": peak / 1e6,
        "of it, block of scores MB": 4 * min(BLOCK, len(a)) * len(a) / 1e6,
        "of it, centred copy MB": 4 * a.numel() / 1e6,
        "overlap and displacement, largest difference from the loop": off,
        "singular values, largest difference over the largest": worst,
        "scalars, largest relative difference": relative,
    }


# ---- what is made of the seconds ----
def summarise(timings: Timings, sizes: Sizes, square_flops: int) -> tuple[list[Result], list[Result]]:
    """(results, floors): times of all paths, by the clock and by processor time; KNOR's share of the matmul rate."""
    flops = 2 * 2 * sizes.images**2 * sizes.width  # of two spaces
    results, floors = [], []
    for kind, spent in (("", timings.seconds), (", by processor time", timings.by_processor)):
        rates = [square_flops / s for s in spent[SQUARE]]
        results.append(result(f"matmul, square{kind}", "GFLOP/s", [rate / 1e9 for rate in rates]))
        whole = [2 * search + compare for search, compare in zip(spent[SEARCH], spent[COMPARE], strict=True)]
        results.append(result(f"{KNOR}, {sizes.images:,} images{kind}", "s", whole))
        results.append(result(f"loop form over ours, {sizes.few:,} images{kind}", "times", _over(spent[LOOP], spent[SMALL])))
        for name in (OURS, SINGLY):
            results.append(result(f"{name}, a picture{kind}", "ms", [1e3 * s / sizes.pictures for s in spent[name]]))
        results.append(result(f"svdvals over ours{kind}", "times", _over(spent[SINGLY], spent[OURS])))
        shares = [flops / rate / s for rate, s in zip(rates, whole, strict=True)]
        floors.append(result(f"{KNOR}, of square matmul{kind}", "share", shares))
        for name in (SEARCH, COMPARE):
            results.append(result(f"{name}{kind}", "s", spent[name]))
    return results, floors


def _over(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slow, fast, strict=True)]


def cost(results: list[Result], sizes: Sizes) -> dict[str, float]:
    """What the study's images would take, each model's two spaces compared and all token matrices' spectra; hours and TB.

    Here: by what was measured, the search with the square of the images, spectra by the picture at the benchmark's shape. On a
    GPU: operations of the search over a rate that is assumed.
    """
    by_name = {r.name: r.median for r in results}
    knor_here = by_name[f"{KNOR}, {sizes.images:,} images, by processor time"] * (STUDY_IMAGES / sizes.images) ** 2
    flops = 2 * 2 * STUDY_IMAGES**2 * sizes.width
    tokens = {name: sum(t * w for t, w in sides) for name, sides in SHAPES.items()}
    found = {
        "KNOR of two spaces, all images one gallery, here, processor hours": knor_here / 3600,
        "KNOR of two spaces, operations over 40 TFLOP/s (assumed), minutes": flops / GPU_RATE / 60,
        "spectra of one site, here, processor hours": by_name[f"{OURS}, a picture, by processor time"] * STUDY_IMAGES / 3.6e6,
        "the same by svdvals, here, processor hours": by_name[f"{SINGLY}, a picture, by processor time"] * STUDY_IMAGES / 3.6e6,
        "pooled vectors of one site, fp32, GB": 4 * STUDY_IMAGES * sizes.width / 1e9,
        "scores held at once, GB": 4 * BLOCK * STUDY_IMAGES / 1e9,
    }
    found |= {f"tokens before and after, bf16, {name}, TB": 2 * STUDY_IMAGES * n / 1e12 for name, n in tokens.items()}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def verdicts(results: list[Result], floors: list[Result], checked: dict[str, float]) -> list[dict]:
    """The bars with what was measured, by the clock and by processor time, and whether they are met."""
    measured = {r.name: r.median for r in [*results, *floors]}
    rows = []
    for words, name, least in (
        (f"{KNOR}, at least {BARS['knor']:.0%} of the matmul rate", f"{KNOR}, of square matmul", BARS["knor"]),
        (f"spectra, at least {BARS['spectra']} times faster than svdvals one by one", "svdvals over ours", BARS["spectra"]),
    ):
        by_processor = measured[f"{name}, by processor time"]
        rows.append({"bar": words, "measured": measured[name], "met": measured[name] >= least, "by_processor_time": by_processor})
    for words, name, most in (
        (
            "singular values, at most 1e-4 of the largest off",
            "singular values, largest difference over the largest",
            OFF,
        ),
        ("ranks and energies, off by at most 1e-4", "scalars, largest relative difference", OFF),
    ):
        rows.append({"bar": words, "measured": checked[name], "met": checked[name] <= most})
    return rows


def _silent(act: Callable[[], object]) -> TimedPath:
    """A path that reports no parts."""

    def path() -> None:
        act()

    return path


def measure(sizes: Sizes, repetitions: int, device: torch.device, least: float) -> tuple[list[str], dict]:
    """All ways, alternating: (tables to print, content of the results file)."""
    load_before = os.getloadavg()
    a, b = spaces(sizes.images, sizes.width)
    few = a[: sizes.few].clone(), b[: sizes.few].clone()
    del b
    x = pictures(sizes)
    lists, checked = check(a, few, x, sizes, device)
    checked = {name: float(f"{value:.4g}") for name, value in checked.items()}
    others = np.roll(lists, 1, axis=0)  # of other images: comparing takes as long whatever lists hold
    square, square_flops = matmul(sizes.square, sizes.square, sizes.square, device)
    paths = {
        SQUARE: square,
        SEARCH: _silent(lambda: neighbours.nearest(a, max(KS), device=device.type)),
        COMPARE: _silent(lambda: compared(lists, others)),
        SMALL: _silent(lambda: knor(*few, device)),
        LOOP: _silent(lambda: looped(*few)),
        OURS: _silent(lambda: spectra.singular_values(x, device=device.type)),
        SINGLY: _silent(lambda: singly(x)),
    }
    begun = time.perf_counter()
    timings = alternate(paths, repetitions, device, least)
    results, floors = summarise(timings, sizes, square_flops)
    costs = cost(results, sizes)
    content = report(
        timings, load_before, device, benchmark="geometry", repetitions=repetitions, settings=asdict(sizes), ks=list(KS),
        results=results, floors=floors, checked=checked, bars=verdicts(results, floors, checked),
        study={"images": STUDY_IMAGES, "gpu_rate_assumed": GPU_RATE, "cost": costs},
        minutes=round((time.perf_counter() - begun) / 60, 2),
    )  # fmt: skip
    bars = [f"  {bar['bar']}: {bar['measured']:,} {'met' if bar['met'] else 'MISSED'}" for bar in content["bars"]]
    tables = [table("measured: median, range", results), table("of its floor: share, range", floors)]
    lines = ["checked and memory", *(f"  {name} {value:,}" for name, value in checked.items())]
    lines += [f"{STUDY_IMAGES:,} images", *(f"  {name} {value:,}" for name, value in costs.items()), "bars", *bars]
    return [*tables, "\n".join(lines)], content


def main(argv: Sequence[str] | None = None) -> dict:
    options, device = arguments(__doc__.splitlines()[0], argv, repetitions=3)
    tables, content = measure(QUICK if options.quick else Sizes(), options.repetitions, device, 0 if options.quick else 0.05)
    content |= {"quick": options.quick}
    print(*tables, content["load"], sep="\n")
    name = f"geometry{'' if device.type == 'cpu' else f'-{device.type}'}.json"
    out = options.out or (None if options.quick else RESULTS / name)
    if out is not None:
        write(out, content)
        print(f"written: {out}")
    return content


if __name__ == "__main__":
    main()
