"""What every benchmark shares: alternating timing in one process, the machine's own matmul rate, counted operations, the file.

A path is a function without arguments; every round runs each path once, in a rotated order, so that whatever else the machine
does falls on all of them alike, and a ratio of two paths is taken within a round. Knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from spatialprobes.lab_cards import machine, write_json

RESULTS = Path(__file__).resolve().parent / "results"
TimedPath = Callable[[], Mapping[str, float] | None]  # what it returns are seconds of its parts


# ---- time ----
def now(device: torch.device) -> float:
    """Seconds by the monotonic clock, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Timings:
    """Seconds of every round by path (and ``path.part``), and processor seconds per second of all rounds together.

    by_processor: processor seconds of every round by path; steadier on a busy machine, on a GPU the host's alone.
    """

    seconds: dict[str, list[float]]
    processor: float
    by_processor: dict[str, list[float]]


def alternate(paths: Mapping[str, TimedPath], repetitions: int, device: torch.device, least: float = 0.05) -> Timings:
    """Seconds per call of each path in each of ``repetitions`` rounds; a round runs every path once, each round in another order.

    Two calls that are not counted warm a path up. A path shorter than ``least`` seconds is called as often as that takes in
    each round, and its time divided by the calls.
    """
    calls = {}
    for name, path in paths.items():
        path()
        begun = now(device)
        path()
        calls[name] = max(1, math.ceil(least / max(now(device) - begun, 1e-9)))
    seconds: dict[str, list[float]] = {}
    by_processor: dict[str, list[float]] = {name: [] for name in paths}
    names = list(paths)
    wall, processor = time.perf_counter(), time.process_time()
    for turn in range(repetitions):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            total: dict[str, float] = {}
            begun, busy = now(device), time.process_time()
            for _ in range(calls[name]):
                for part, spent in (paths[name]() or {}).items():
                    total[f"{name}.{part}"] = total.get(f"{name}.{part}", 0.0) + spent
            total[name] = now(device) - begun
            by_processor[name].append((time.process_time() - busy) / calls[name])
            for key, spent in total.items():
                seconds.setdefault(key, []).append(spent / calls[name])
    processor = (time.process_time() - processor) / (time.perf_counter() - wall)
    return Timings(seconds, processor, by_processor)


# ---- operations ----
def matmul(
    rows: int, inner: int, columns: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[TimedPath, int]:
    """A path that multiplies [rows, inner] by [inner, columns], and its floating-point operations, 2 rows inner columns."""
    a, b = torch.randn(rows, inner, device=device, dtype=dtype), torch.randn(inner, columns, device=device, dtype=dtype)
    out = torch.empty(rows, columns, device=device, dtype=dtype)

    def path() -> None:
        torch.mm(a, b, out=out)

    return path, 2 * rows * inner * columns


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


NOT_COUNTED = (
    "whatever works element by element or looks up: norms, rotary positions, activations, softmax outside fused attention, "
    "embeddings, losses, clipping, AdamW"
)
ON_CPU = {  # the counter knows the attention kernels of CUDA only; these are counted by its own formula for those
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count(act: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations while ``act`` runs: {"linear": matrix products and convolutions, "attention": fused attention}.

    A multiplication and the addition after it are two. Attention counts as if every position saw every other one (masks are
    ignored), its backward pass with the scores computed anew. Not counted: ``NOT_COUNTED``.
    """
    with FlopCounterMode(display=False, custom_mapping=ON_CPU) as counter:
        act()
    by_kind = {"linear": 0, "attention": 0}
    for operation, flops in counter.get_flop_counts().get("Global", {}).items():
        by_kind["attention" if "attention" in str(operation) else "linear"] += flops
    return by_kind


# ---- memory ----
def peak_memory(act: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that were alive at once while ``act`` ran, beyond those alive before it.

    By what torch's allocator hands out, temporaries inside an operation included; scratch space that a kernel library takes for
    itself is not seen. On a CPU the profiler reports every allocation.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        act()
    with tempfile.TemporaryDirectory() as folder:
        profiled.export_chrome_trace(trace := f"{folder}/trace.json")
        events = json.loads(Path(trace).read_text())["traceEvents"]
    handed = sorted((e["args"]["Ev Idx"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    return max(accumulate((size for _, size in handed), initial=0))


# ---- results ----
@dataclass(frozen=True)
class Result:
    """A measured quantity: median, least and greatest over the rounds."""

    name: str
    unit: str
    median: float
    min: float
    max: float
    repetitions: int


def result(name: str, unit: str, values: Sequence[float]) -> Result:
    """Summary of one value per round, to four digits."""
    median, least, most = (float(f"{v:.4g}") for v in (statistics.median(values), min(values), max(values)))
    return Result(name, unit, median, least, most, len(values))


def table(title: str, results: Sequence[Result]) -> str:
    """Lines of text: name, median, unit and range; shares in percent."""
    width = max(len(r.name) for r in results)

    def shown(value: float, unit: str) -> str:
        return f"{100 * value:.1f}" if unit == "share" else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"

    lines = [title]
    for r in results:
        unit = "%" if r.unit == "share" else r.unit
        low, mid, high = (shown(v, r.unit) for v in (r.min, r.median, r.max))
        lines.append(f"  {r.name:<{width}}  {mid:>9} {unit:<12} {low} .. {high}")
    return "\n".join(lines)


def load(before: Sequence[float], cores: int, processor: float, threads: int) -> str:
    """One line on how quiet the machine was: the load average over the minute before, and the processor time that was got."""
    busy = round(before[0])
    beside = f"begun beside about {busy} other busy process{'es' if busy > 1 else ''}" if busy else "begun on a quiet machine"
    got = f"got {processor:.2f} processor seconds per second with {threads} thread{'s' if threads > 1 else ''}"
    return f"{beside} (load average {before[0]:.2f} on {cores} cores), {got}"


def report(timings: Timings, load_before: Sequence[float], device: torch.device, **content: object) -> dict:
    """What a results file holds: date, machine, versions, load at start and end, and the benchmark's own ``content``."""
    packages = ("torch", "transformers", "accelerate", "numpy", "pillow")
    return {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {**machine(), "device": str(device), "system": f"{platform.system()} {platform.machine()}"},
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "load": load(load_before, os.cpu_count() or 1, timings.processor, torch.get_num_threads()),
        "load_average": {"before": list(load_before), "after": list(os.getloadavg())},
        "processor_seconds_per_second": round(timings.processor, 3),
        **content,
    }


def write(path: Path, content: dict) -> None:
    """Put the results file in place at once; records become objects."""
    write_json(path, json.loads(json.dumps(content, default=vars)))


def arguments(
    description: str, argv: Sequence[str] | None, repetitions: int, **choices: Sequence[str]
) -> tuple[argparse.Namespace, torch.device]:
    """The options that every benchmark has, and the device that they choose; sets torch's threads.

    choices: options of this benchmark alone, each with its values, the first of them the default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where tensors live (default: cpu)")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0 leaves torch's own choice (default: 0)")
    parser.add_argument("--repetitions", type=int, default=0, help=f"rounds measured (default: {repetitions}; 2 if quick)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script out, measures nothing of worth")
    parser.add_argument("--out", type=Path, help="results file (default: benchmarks/results/<name>.json, none if quick)")
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0], help=f"(default: {values[0]})")
    options = parser.parse_args(argv)
    if options.threads < 0 or options.repetitions < 0:
        parser.error(f"--threads {options.threads} --repetitions {options.repetitions}: neither can be negative")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device cuda: torch {torch.__version__} sees no GPU here; use --device cpu")
    if options.threads:
        torch.set_num_threads(options.threads)
    options.repetitions = options.repetitions or (2 if options.quick else repetitions)
    return options, torch.device(options.device)
