"""What maps of words cost: subject, reference and relation of 500 scenes, against full eager maps of one prompt at a time.

`python benchmarks/attention_maps.py` writes benchmarks/results/attention_maps.json, of lab-llava. `--device cuda --shape
llava-1.5-7b [--side 672]` does the same with random weights of that shape. Maps must be equal before anything is timed. Knows
nothing of what maps say.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from common import (
    NOT_COUNTED,
    RESULTS,
    Result,
    TimedPath,
    Timings,
    alternate,
    arguments,
    count,
    matmul,
    peak_memory,
    report,
    result,
    table,
    write,
)
from random_models import SHAPES, build, quick_shape

from spatialprobes.examples import Example, batches
from spatialprobes.images import open_image
from spatialprobes.probes import maps
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_relations import lab_relations

MODEL = "lab-llava"
SEED = 900_002  # a stream of scenes that neither training nor evaluation draws from
ROLES = {"subject": "subject", "reference": "reference", "relation": "word"}
BY_PROCESSOR = ", by processor time"
SINGLY, CACHED, KEPT, BARE = "one by one, eager", "ours, cached", "ours", "forwards alone"
BARS = {"time": 10, "memory": 30, "difference": 1e-5}


@dataclass(frozen=True)
class Sizes:
    """scenes: in all. singly: of them, evenly spread, are asked one at a time. batch: prompts of one forward of ours.

    square: side of the product that gives the machine's rate.
    """

    scenes: int = 500
    singly: int = 20
    batch: int = 64
    square: int = 2048


QUICK = Sizes(scenes=6, singly=2, batch=4, square=64)
LARGE = Sizes(scenes=32, singly=4, batch=8, square=8192)


def scenes(many: int) -> list[Example]:
    """Examples with their pictures drawn, so that no drawing is timed."""
    return [replace(one, image=open_image(one.image)) for one in lab_relations(many, SEED)]


def load(shape: str, side: int, quick: bool, device: torch.device) -> VLM:
    if shape == "lab":
        return VLM.load(MODEL, dtype="float32", device=device.type)
    wanted = replace(SHAPES[shape], side=side)
    return build(quick_shape(wanted) if quick else wanted, device)


# ---- paths ----
def full(vlm: VLM, example: Example) -> list[np.ndarray]:
    """The study's way: every layer's whole map in float32 on the CPU, and then the rows and columns that are wanted.

    One [layer, head, cell] a word. The model runs eager attention meanwhile.
    """
    batch = vlm.encode([example])
    spans = batch.spans[0]
    with torch.no_grad():
        made = vlm.family.forward(vlm.model, batch.inputs, use_cache=False, output_attentions=True)
    kept = torch.stack([layer[0].float().cpu() for layer in made.attentions])
    tokens = [spans.word(example.meta[name]) for name in ROLES.values()]
    return [kept[:, :, at][..., spans.vision].mean(2).numpy() for at in tokens]


def eager(vlm: VLM, examples: Sequence[Example]) -> list[list[np.ndarray]]:
    """`full` of each, one after another."""
    vlm.model.set_attn_implementation({"text_config": "eager"})
    try:
        return [full(vlm, example) for example in examples]
    finally:
        vlm.model.set_attn_implementation({"text_config": "sdpa"})


def forwards(vlm: VLM, examples: Sequence[Example], batch: int) -> None:
    """The same prompts in the same batches, with nothing read."""
    for chunk in batches(examples, batch):
        vlm.forward(vlm.encode(chunk), logits_to_keep=1)


def spread(examples: Sequence[Example], many: int) -> list[Example]:
    """So many of them, at equal distances."""
    return [examples[i * len(examples) // many] for i in range(many)]


def paths(vlm: VLM, examples: Sequence[Example], sizes: Sizes, folder: Path) -> dict[str, tuple[TimedPath, int]]:
    """Every way with the number of scenes that a call of it maps. folder: for stores, each made anew."""
    chosen = spread(examples, sizes.singly)

    def singly() -> None:
        eager(vlm, chosen)

    def cached() -> None:
        maps.extract(vlm, examples, batch_size=sizes.batch, store=folder / "maps")
        shutil.rmtree(folder / "maps")

    def kept() -> None:
        maps.extract(vlm, examples, batch_size=sizes.batch)

    def bare() -> None:
        forwards(vlm, examples, sizes.batch)

    every = len(examples)
    return {SINGLY: (singly, sizes.singly), CACHED: (cached, every), KEPT: (kept, every), BARE: (bare, every)}


def check(vlm: VLM, examples: Sequence[Example], sizes: Sizes, folder: Path) -> dict[str, float]:
    """Largest difference of our maps, kept and cached, from eager's. Raises AssertionError where it is too large.

    In bf16 eager rounds its probabilities to 8 bits, and the states that enter differ: 2e-2 is allowed.
    """
    chosen = spread(examples, sizes.singly)
    expected = [one for own in eager(vlm, chosen) for one in own]
    allowed = BARS["difference"] if vlm.dtype == torch.float32 else 2e-2
    worst = {}
    for name, store in ((KEPT, None), (CACHED, folder / "checked")):
        found = maps.extract(vlm, examples, batch_size=sizes.batch, store=store)
        ids = {one.id for one in chosen}
        ours = found.select(found.index["example"].isin(ids).to_numpy()).weights
        worst[name] = float(max(np.abs(a - b).max() for a, b in zip(ours, expected, strict=True)))
        if worst[name] > allowed:
            raise AssertionError(f"maps ({name}) differ from eager's by {worst[name]}, more than {allowed}")
    return worst


# ---- memory ----
def memory(vlm: VLM, examples: Sequence[Example], sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Extra peak MB over the same forward with nothing read: of one prompt by eager maps, of a batch and of one prompt by ours.

    Ours holds a batch at once; a prompt's part of its extra is what is compared, the batch's whole beside it.
    """
    one, some = spread(examples, 1), spread(examples, min(sizes.batch, len(examples)))

    def extra(act: TimedPath, shown: Sequence[Example]) -> float:
        return max(peak_memory(act, device) - peak_memory(lambda: forwards(vlm, shown, len(shown)), device), 1)

    full_maps = extra(lambda: eager(vlm, one), one)
    of_one = extra(lambda: maps.extract(vlm, one, batch_size=1), one)
    of_batch = extra(lambda: maps.extract(vlm, some, batch_size=len(some)), some)
    found = {
        "eager, one prompt, extra MB": full_maps / 1e6,
        "ours, one prompt, extra MB": of_one / 1e6,
        f"ours, {len(some)} prompts at once, extra MB": of_batch / 1e6,
        "eager over ours, one prompt each": full_maps / of_one,
        "eager over ours, a prompt of a batch": full_maps * len(some) / of_batch,
        "eager's one prompt over ours' whole batch": full_maps / of_batch,
    }
    return {name: float(f"{value:.4g}") for name, value in found.items()}


# ---- what is made of the seconds ----
def summarise(timings: Timings, many: dict[str, int], flops: int, square_flops: int) -> tuple[list[Result], list[Result]]:
    """(results, floors): milliseconds a scene, how many times ours eager takes, ours of the matmul rate and of bare forwards."""
    seconds = timings.seconds
    rates = [square_flops / s for s in seconds["square matmul"]]
    results = [result("matmul, square", "GFLOP/s", [r / 1e9 for r in rates])]
    for name, scenes_of in many.items():
        results.append(result(f"{name}, a scene", "ms", [1e3 * s / scenes_of for s in seconds[name]]))
    for ours in (CACHED, KEPT):
        scale = many[ours] / many[SINGLY]
        for kind, spent in (("", seconds), (BY_PROCESSOR, timings.by_processor)):
            times = [scale * a / b for a, b in zip(spent[SINGLY], spent[ours], strict=True)]
            results.append(result(f"{SINGLY}, over {ours}{kind}", "times", times))
    floors = []
    for name in (CACHED, KEPT, BARE):
        shares = [flops / rate / s for rate, s in zip(rates, seconds[name], strict=True)]
        floors.append(result(f"{name}, of square matmul", "share", shares))
    for name in (CACHED, KEPT):
        shares = [bare / ours for bare, ours in zip(seconds[BARE], seconds[name], strict=True)]
        floors.append(result(f"{name}, of forwards alone", "share", shares))
    return results, floors


def verdicts(results: list[Result], used: dict[str, float], differences: dict[str, float]) -> list[dict]:
    """The bars with what was measured, and whether they are met."""
    measured = {r.name: r.median for r in results}
    name = f"{SINGLY}, over {CACHED}"
    times, part = measured[name], used["eager over ours, a prompt of a batch"]
    worst = max(differences.values())
    return [
        {
            "bar": f"{name}, a scene, at least {BARS['time']}",
            "measured": times,
            "met": times >= BARS["time"],
            "by_processor_time": measured[name + BY_PROCESSOR],
        },
        {
            "bar": f"extra peak memory a prompt, at least {BARS['memory']} times less",
            "measured": part,
            "met": part >= BARS["memory"],
        },
        {"bar": f"largest difference, at most {BARS['difference']}", "measured": worst, "met": worst <= BARS["difference"]},
    ]


def measure(vlm: VLM, sizes: Sizes, repetitions: int, device: torch.device, least: float, folder: Path) -> tuple[list[str], dict]:
    """All ways, alternating: (tables to print, content of the results file)."""
    load_before = os.getloadavg()
    examples = scenes(sizes.scenes)
    differences = check(vlm, examples, sizes, folder)
    kept = sum(file.stat().st_size for file in (folder / "checked").rglob("*") if file.is_file())
    used = memory(vlm, examples, sizes, device)
    square, square_flops = matmul(sizes.square, sizes.square, sizes.square, device, vlm.dtype)
    every = paths(vlm, examples, sizes, folder)
    many = {name: scenes_of for name, (_, scenes_of) in every.items()}
    flops = sum(count(every[BARE][0]).values())
    begun = time.perf_counter()
    timings = alternate({"square matmul": square} | {name: path for name, (path, _) in every.items()}, repetitions, device, least)
    results, floors = summarise(timings, many, flops, square_flops)
    spans = vlm.encode(examples[:1]).spans[0]
    prompt = {"tokens": spans.length, "cells": len(spans.vision), "grid": list(spans.grid), "blocks": vlm.n_layers}
    content = report(
        timings, load_before, device, benchmark="attention_maps", repetitions=repetitions, settings=asdict(sizes), prompt=prompt,
        results=results, floors=floors, memory=used, bars=verdicts(results, used, differences), operations=flops,
        largest_difference_from_eager=differences, store_mb=float(f"{kept / 1e6:.4g}"), not_counted=NOT_COUNTED,
        minutes=round((time.perf_counter() - begun) / 60, 2),
    )  # fmt: skip
    lines = [f"  {name} {value:,}" for name, value in used.items()]
    bars = [f"  {bar['bar']}: {bar['measured']:,} {'met' if bar['met'] else 'MISSED'}" for bar in content["bars"]]
    tables = [table("measured: median, range", results), table("of its floor: share, range", floors)]
    return [*tables, "\n".join(["memory", *lines]), "\n".join(["bars", *bars])], content


def main(argv: Sequence[str] | None = None) -> dict:
    options, device = arguments(
        __doc__.splitlines()[0], argv, repetitions=5, shape=("lab", "llava-1.5-7b", "qwen2.5-vl-3b"), side=("336", "672")
    )
    if options.shape != "lab" and device.type == "cpu" and not options.quick:
        raise SystemExit(f"--shape {options.shape}: too large for a CPU; use --device cuda, or --quick to try the script out")
    sizes = QUICK if options.quick else Sizes() if options.shape == "lab" else LARGE
    vlm = load(options.shape, int(options.side), options.quick, device)
    with tempfile.TemporaryDirectory() as folder:
        least = 0 if options.quick else 0.05
        tables, content = measure(vlm, sizes, options.repetitions, device, least, Path(folder))
    content |= {"quick": options.quick, "shape": options.shape}
    print(*tables, content["load"], sep="\n")
    shape = "" if options.shape == "lab" else f"-{options.shape}-{options.side}"
    name = f"attention_maps{shape}{'' if device.type == 'cpu' else f'-{device.type}'}.json"
    out = options.out or (None if options.quick else RESULTS / name)
    if out is not None:
        write(out, content)
        print(f"written: {out}")
    return content


if __name__ == "__main__":
    main()
