"""What reading a connector costs: tower and connector alone into our store, against one hook in a generate of 32 new tokens.

`python benchmarks/connector_extraction.py` writes benchmarks/results/connector_extraction.json, of lab-llava. The numbers of both
ways must be equal before anything is timed. It also says what 121,861 pictures of the four published shapes would cost: disk by
counting bytes, operations of tower and connector by formula, and hours at rates that are named. Knows nothing of what is measured
on the vectors.
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
    report,
    result,
    table,
    write,
)
from torch import Tensor

from spatialprobes.examples import Example, batches
from spatialprobes.images import open_image
from spatialprobes.probes.connector_states import extract
from spatialprobes.sources.connector_files import SHAPES
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_relations import lab_relations

MODEL = "lab-llava"
SEED = 900_003  # a stream of scenes that neither training nor evaluation draws from
NEW_TOKENS = 32
PICTURES = 121_861  # of the study
BY_PROCESSOR = ", by processor time"
HOOKED, ENDED, OURS, WHOLE, BARE = (
    "generate, forced",
    "generate, to its end",
    "ours",
    "ours, float32",
    "tower and connector alone",
)
BAR = 10
GPU_RATES = {"H200 at 40% of 790 TFLOP/s in bf16": 0.4 * 790e12, "A100 at 40% of 312 TFLOP/s in bf16": 0.4 * 312e12}


@dataclass(frozen=True)
class Sizes:
    """pictures: read in a round. batch: of both ways. square: side of the product that gives the machine's rate."""

    pictures: int = 96
    batch: int = 32
    square: int = 2048


QUICK = Sizes(pictures=4, batch=2, square=64)


@dataclass(frozen=True)
class Tower:
    """A tower. patches: of a picture, a class token included. depth: blocks that the connector reads. window: tokens that a block
    sees at once, 0 for all; whole: blocks that see all nevertheless. gated: whether its MLP has three matrices.

    connector: multiplications a picture.
    """

    patches: int
    width: int
    mlp: int
    depth: int
    connector: int
    gated: bool = False
    window: int = 0
    whole: int = 0

    def operations(self) -> int:
        """Floating-point operations a picture, two a multiplication: matrices of blocks, attention, connector; no embedding."""
        matrices = self.depth * self.patches * (4 * self.width**2 + (2 + self.gated) * self.width * self.mlp)
        seen = self.whole * self.patches + (self.depth - self.whole) * (self.window or self.patches)
        return 2 * (matrices + 2 * self.patches * self.width * seen + self.connector)


def resampled(patches: int, width: int, text: int, mlp: int, latents: int, layers: int, inner: int, inner_kv: int) -> int:
    """Multiplications of Idefics2's connector: a gated MLP of every patch, then latents that attend to patches and latents."""
    queries = latents * text * inner * 2
    keys = (patches + latents) * text * inner_kv * 2
    scores = 2 * latents * (patches + latents) * inner
    return patches * (2 * width * mlp + mlp * text) + layers * (queries + keys + scores + latents * 3 * text * 4 * text)


TOWERS = {  # published sizes, at 336 x 336 pixels (Qwen3.5: 320 x 320)
    "llava": Tower(577, 1024, 4096, 23, 576 * (1024 * 4096 + 4096**2)),
    "idefics2": Tower(576, 1152, 4304, 27, resampled(576, 1152, 4096, 14336, 64, 3, 16 * 96, 4 * 96)),
    "qwen2.5vl": Tower(576, 1280, 3420, 32, 144 * (5120**2 + 5120 * 3584), gated=True, window=64, whole=4),
    "qwen3.5": Tower(400, 1152, 4304, 27, 100 * (4608**2 + 4608 * 4096)),
}


def pictures(many: int) -> list[Example]:
    """Scenes with their pictures drawn, so that no drawing is timed, and one question each."""
    shown = lab_relations(many, SEED)
    return [replace(one, id=f"{i:09d}", image=open_image(one.image)) for i, one in enumerate(shown)]


# ---- paths ----
def hooked(vlm: VLM, examples: Sequence[Example], batch: int, folder: Path, forced: bool = True) -> dict[str, Tensor]:
    """The study's way: one hook on the connector, a generate around it, float32 copies, one pickle of the whole.

    What it read, by side. forced: NEW_TOKENS are generated whatever the model says.
    """
    kept: dict[str, list[Tensor]] = {"pre": [], "post": []}
    captions: list[str] = []

    def keep(module: torch.nn.Module, args: tuple, output: Tensor) -> None:
        kept["pre"].append(args[0].detach().float().cpu())
        kept["post"].append(output.detach().float().cpu())

    for part in batches(examples, batch):
        hook = vlm.family.part(vlm.model, "connector").register_forward_hook(keep)
        least = {"min_new_tokens": NEW_TOKENS} if forced else {}
        tokens = vlm.generate(vlm.encode(part), max_new_tokens=NEW_TOKENS, **least)
        hook.remove()
        captions += vlm.decode(tokens)
    found = {side: torch.cat(parts) for side, parts in kept.items()}
    keys = [one.id for one in examples]
    for side, vectors in found.items():
        torch.save({"keys": keys, "vecs": vectors, "caps": captions}, folder / f"{side}_vectors_{len(keys)}.pt")
    return found


def ours(vlm: VLM, examples: Sequence[Example], batch: int, folder: Path, **options: object) -> None:
    """Into a new store."""
    shutil.rmtree(folder, ignore_errors=True)
    extract(vlm, examples, folder, batch_size=batch, **options)


def bare(vlm: VLM, examples: Sequence[Example], batch: int) -> None:
    """The same batches through tower and connector, with nothing read or kept."""
    for part in batches(examples, batch):
        vlm.vision_features(part, batch)


def paths(vlm: VLM, examples: Sequence[Example], sizes: Sizes, folder: Path) -> dict[str, TimedPath]:
    def path(act, *arguments: object, **options: object) -> TimedPath:
        return lambda: act(vlm, examples, sizes.batch, *arguments, **options) and None

    return {
        HOOKED: path(hooked, folder),
        ENDED: path(hooked, folder, forced=False),
        OURS: path(ours, folder / "ours"),
        WHOLE: path(ours, folder / "whole", sites=("pre", "post"), dtype="float32"),
        BARE: path(bare),
    }


def check(vlm: VLM, examples: Sequence[Example], sizes: Sizes, folder: Path) -> dict[str, float]:
    """Largest difference of our float32 numbers from the hook's, by side. Raises AssertionError where they are not the same."""
    expected = hooked(vlm, examples, sizes.batch, folder)
    states = extract(vlm, examples, folder / "checked", batch_size=sizes.batch, sites=("pre", "post"), dtype="float32")
    worst = {}
    for side, vectors in expected.items():
        found = states.vectors(side, [one.id for one in examples])[:]
        worst[side] = float(np.abs(found - vectors.numpy()).max())
        if worst[side] > 1e-5:
            raise AssertionError(f"{side}: ours differ from the hook's by {worst[side]}")
    return worst


# ---- what is made of it ----
def summarise(timings: Timings, sizes: Sizes, flops: dict[str, int], square_flops: int) -> tuple[list[Result], list[Result]]:
    """(results, floors): milliseconds a picture, how many times ours the hook takes, and what share of it the runs alone are."""
    seconds = timings.seconds
    rates = [square_flops / s for s in seconds["square matmul"]]
    results = [result("matmul, square", "GFLOP/s", [rate / 1e9 for rate in rates])]
    for name in (HOOKED, ENDED, OURS, WHOLE, BARE):
        results.append(result(f"{name}, a picture", "ms", [1e3 * s / sizes.pictures for s in seconds[name]]))
    for name in (HOOKED, ENDED):
        for kind, spent in (("", seconds), (BY_PROCESSOR, timings.by_processor)):
            times = [a / b for a, b in zip(spent[name], spent[OURS], strict=True)]
            results.append(result(f"{name}, over ours{kind}", "times", times))
    floors = [
        result(
            f"{name}, of square matmul", "share", [flops[name] / rate / s for rate, s in zip(rates, seconds[name], strict=True)]
        )
        for name in (OURS, BARE)
    ]
    shares = [a / b for a, b in zip(timings.by_processor[BARE], timings.by_processor[OURS], strict=True)]
    return results, [*floors, result(f"{BARE}, of ours{BY_PROCESSOR}", "share", shares)]


def costs(rate: float) -> dict[str, dict[str, float]]:
    """What the study's pictures would cost, by model: terabytes, operations, and the hours that these take at the least.

    rate: this machine's matmul rate, operations a second. Nothing of this is measured on those models.
    """
    found = {}
    for model, ((before, wide), (behind, text)) in SHAPES.items():
        numbers = before * wide + behind * text
        operations = TOWERS[model].operations()
        found[model] = {
            "TB, float32 as the study": 4 * numbers * PICTURES / 1e12,
            "TB, bfloat16": 2 * numbers * PICTURES / 1e12,
            "TB, bfloat16, with the normed site": 2 * (numbers + before * wide) * PICTURES / 1e12,
            "GFLOP a picture": operations / 1e9,
            "hours here, at the square matmul's rate": operations * PICTURES / rate / 3600,
        } | {f"hours, {name}": operations * PICTURES / speed / 3600 for name, speed in GPU_RATES.items()}
    every = {name: sum(own[name] for own in found.values()) for name in next(iter(found.values())) if name != "GFLOP a picture"}
    return {
        model: {name: float(f"{value:.4g}") for name, value in own.items()} for model, own in (found | {"all": every}).items()
    }


def verdicts(results: list[Result], differences: dict[str, float]) -> list[dict]:
    measured = {r.name: r.median for r in results}
    times, worst = measured[f"{HOOKED}, over ours"], max(differences.values())
    return [
        {
            "bar": f"{HOOKED}, over ours, at least {BAR}",
            "measured": times,
            "met": times >= BAR,
            "by_processor_time": measured[f"{HOOKED}, over ours{BY_PROCESSOR}"],
        },
        {"bar": "largest difference, at most 1e-05", "measured": worst, "met": worst <= 1e-5},
    ]


def measure(vlm: VLM, sizes: Sizes, repetitions: int, device: torch.device, least: float, folder: Path) -> tuple[list[str], dict]:
    """All ways, alternating: (tables to print, content of the results file)."""
    load_before = os.getloadavg()
    examples = pictures(sizes.pictures)
    differences = check(vlm, examples, sizes, folder)
    square, square_flops = matmul(sizes.square, sizes.square, sizes.square, device, vlm.dtype)
    every = paths(vlm, examples, sizes, folder)
    flops = {name: sum(count(every[name]).values()) for name in (OURS, BARE)}  # ours leaves out what the connector does not read
    begun = time.perf_counter()
    timings = alternate({"square matmul": square} | every, repetitions, device, least)
    results, floors = summarise(timings, sizes, flops, square_flops)
    content = report(
        timings, load_before, device, benchmark="connector_extraction", repetitions=repetitions, settings=asdict(sizes),
        results=results, floors=floors, bars=verdicts(results, differences), operations=flops, largest_difference=differences,
        new_tokens=NEW_TOKENS, pictures_of_the_study=PICTURES, cost_of_the_study=costs(1e9 * results[0].median),
        cost_is="disk by bytes, operations by formula, hours at the rates named: none of it measured on these models",
        not_counted=NOT_COUNTED, minutes=round((time.perf_counter() - begun) / 60, 2),
    )  # fmt: skip
    by_model = content["cost_of_the_study"].items()
    cost = [line for model, own in by_model for line in (f"  {model}", *(f"    {value:,} {name}" for name, value in own.items()))]
    bars = [f"  {bar['bar']}: {bar['measured']:,} {'met' if bar['met'] else 'MISSED'}" for bar in content["bars"]]
    tables = [table("measured: median, range", results), table("of its floor: share, range", floors)]
    return [*tables, "\n".join([f"{PICTURES:,} pictures, not measured", *cost]), "\n".join(["bars", *bars])], content


def main(argv: Sequence[str] | None = None) -> dict:
    options, device = arguments(__doc__.splitlines()[0], argv, repetitions=5)
    sizes = QUICK if options.quick else Sizes()
    vlm = VLM.load(MODEL, dtype="float32", device=device.type)
    with tempfile.TemporaryDirectory() as folder:
        tables, content = measure(vlm, sizes, options.repetitions, device, 0 if options.quick else 0.05, Path(folder))
    content |= {"quick": options.quick}
    print(*tables, content["load"], sep="\n")
    name = f"connector_extraction{'' if device.type == 'cpu' else f'-{device.type}'}.json"
    out = options.out or (None if options.quick else RESULTS / name)
    if out is not None:
        write(out, content)
        print(f"written: {out}")
    return content


if __name__ == "__main__":
    main()
