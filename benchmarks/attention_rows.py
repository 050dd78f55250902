"""What attention rows cost beside a model's own forward, and what they cost by the usual way, eager attention's full maps.

`python benchmarks/attention_rows.py` writes benchmarks/results/attention_rows.json. Whole-model forwards of the real LLaVA class
with random weights: the values change neither time nor memory. `--shape llava-1.5-7b` has that model's shape, in bf16, on a GPU.
Knows nothing of what the rows say.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isqrt

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
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from spatialprobes.capture import capture
from spatialprobes.families.llava import Llava
from spatialprobes.loading import Source
from spatialprobes.rows import attention_rows
from spatialprobes.vlm import VLM, Batch

SEED = 0
LEAST_TEXT = 32  # tokens of the prompt that are not the picture's, at least
IMAGE_TOKEN = 3
BY_PROCESSOR = ", by processor time"
BARS = {"time": 1.10, "memory": 50}  # at most so many times SDPA's time; at least so many times less extra memory than eager


@dataclass(frozen=True)
class Shape:
    """A LLaVA: (width, heads, layers, width of the MLP) of language model and tower, words, and the sizes that are tried.

    tokens: lengths of prompts. rows: how many rows are read in every layer. square: side of the product that gives the machine's
    rate. copied: bytes of the copy that gives its memory rate.
    """

    text: tuple[int, int, int, int] = (512, 8, 8, 1376)
    tower: tuple[int, int, int, int] = (128, 2, 2, 512)
    words: int = 1024
    dtype: str = "float32"
    tokens: tuple[int, ...] = (576, 2304, 4096)
    rows: tuple[int, ...] = (1, 32)
    square: int = 2048
    copied: int = 2**27


SHAPES = {
    "small": Shape(),
    "llava-1.5-7b": Shape((4096, 32, 32, 11008), (1024, 16, 24, 4096), words=32064, dtype="bfloat16", square=8192, copied=2**31),
}


def quick(shape: Shape) -> Shape:
    tiny = (64, 2, 2, 128)
    return replace(shape, text=tiny, tower=tiny, words=64, tokens=(64, 100), rows=(1, 4), square=64, copied=2**16)


# ---- the model ----
def build(shape: Shape, tokens: int, device: torch.device) -> LlavaForConditionalGeneration:
    """The model with random weights, for prompts of this length, by the constructor of transformers."""
    (width, heads, layers, wide), (t_width, t_heads, t_layers, t_wide) = shape.text, shape.tower
    text = LlamaConfig(vocab_size=shape.words, hidden_size=width, intermediate_size=wide, num_hidden_layers=layers,
                       num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=tokens)  # fmt: skip
    tower = CLIPVisionConfig(hidden_size=t_width, intermediate_size=t_wide, num_hidden_layers=t_layers,
                             num_attention_heads=t_heads, image_size=14 * grid(tokens), patch_size=14)  # fmt: skip
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_id=IMAGE_TOKEN, image_seq_length=grid(tokens) ** 2)
    torch.manual_seed(SEED)
    with device:
        return LlavaForConditionalGeneration._from_config(config, dtype=getattr(torch, shape.dtype)).eval()


def grid(tokens: int) -> int:
    """Side of the picture's grid in a prompt of so many tokens: the largest that leaves words their place."""
    return isqrt(tokens - LEAST_TEXT)


def prompt(shape: Shape, tokens: int, device: torch.device) -> Batch:
    """One prompt: a word, the picture, and as many words as are missing."""
    torch.manual_seed(SEED)
    side = grid(tokens)
    ids = torch.randint(IMAGE_TOKEN + 1, shape.words, (1, tokens))
    ids[0, 1 : 1 + side**2] = IMAGE_TOKEN
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": torch.arange(tokens)[None]}
    pixels = torch.randn(1, 3, 14 * side, 14 * side, dtype=getattr(torch, shape.dtype))
    return Batch({name: value.to(device) for name, value in {**inputs, "pixel_values": pixels}.items()}, [], [], [0])


# ---- paths ----
def forwards(shape: Shape, tokens: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """The ways through the whole model that are compared; each returns what it was run for. Logits of the last token alone."""
    model = build(shape, tokens, device)
    vlm = VLM(model, None, Llava(), Source("random", "folder", None, None), "native", None)
    batch = prompt(shape, tokens, device)

    def plain() -> object:
        return vlm.forward(batch, logits_to_keep=1)

    def beside(rows: int) -> object:
        at = torch.arange(tokens - rows, tokens)
        with capture(vlm, attention_rows="all", at=at) as got:
            vlm.forward(batch, logits_to_keep=1)
        return got

    def eager() -> object:
        model.set_attn_implementation({"text_config": "eager"})
        try:
            return vlm.forward(batch, logits_to_keep=1, output_attentions=True)
        finally:
            model.set_attn_implementation({"text_config": "sdpa"})

    return {"SDPA": plain, **{rows_name(n): partial(beside, n) for n in shape.rows}, "eager": eager}


def rows_name(rows: int) -> str:
    return f"{rows} row{'s' if rows > 1 else ''}"


def check(paths: dict[str, Callable[[], object]], shape: Shape) -> float:
    """Largest difference between our rows and eager's. Raises AssertionError where they are not the same thing."""
    full = paths["eager"]().attentions
    worst = 0.0
    for rows in shape.rows:
        got = paths[rows_name(rows)]()
        for layer, theirs in enumerate(full):
            worst = max(worst, float((got.rows[layer] - theirs[:, :, -rows:].float().cpu()).abs().max()))
    allowed = 1e-5 if shape.dtype == "float32" else 2e-2  # eager rounds probabilities to its dtype
    if worst > allowed:
        raise AssertionError(f"rows differ from eager's by {worst}, more than {allowed}")
    return worst


def alone(shape: Shape, tokens: int, rows: int, device: torch.device) -> tuple[TimedPath, dict[str, int]]:
    """The rows of all layers without the model, on queries and keys of its shape; and the bytes and operations that they need.

    bytes: every key read once, the chosen queries, the rows written in fp32; operations: 2 rows keys width, per layer.
    """
    width, heads, layers, _ = shape.text
    dtype = getattr(torch, shape.dtype)
    queries, keys = (torch.randn(1, heads, tokens, width // heads, device=device, dtype=dtype) for _ in range(2))
    every: list[Tensor] = [keys.clone() for _ in range(layers)]
    at = torch.arange(tokens - rows, tokens, device=device)[None]

    def path() -> None:
        for key in every:
            attention_rows(queries, key, None, (width // heads) ** -0.5, True, at)

    moved = layers * ((tokens + rows) * width * dtype.itemsize + rows * heads * tokens * 4)
    return path, {"bytes": moved, "operations": layers * 2 * rows * tokens * width}


def copying(shape: Shape, device: torch.device) -> tuple[TimedPath, int]:
    """A copy in memory, and the bytes that it reads and writes."""
    source = torch.ones(shape.copied // 4, device=device)
    target = torch.empty_like(source)

    def path() -> None:
        target.copy_(source)

    return path, 2 * shape.copied


def timed(act: Callable[[], object]) -> TimedPath:
    """The same as a path: what it returns is let go."""

    def path() -> None:
        act()

    return path


# ---- what is made of the seconds ----
def memory(ways: dict[str, Callable[[], object]], shape: Shape, device: torch.device) -> dict[str, float]:
    """MB of each way's forward at its peak, weights and inputs apart; what rows and eager need beyond SDPA's; their ratio."""
    peaks = {name: peak_memory(way, device) for name, way in ways.items()}
    extra = {name: max(peak - peaks["SDPA"], 1) for name, peak in peaks.items() if name != "SDPA"}
    times = {f"eager's extra over that of {(name := rows_name(n))}": extra["eager"] / extra[name] for n in shape.rows}
    shown = {f"{name}, peak MB": peak / 1e6 for name, peak in peaks.items()}
    shown |= {f"{name}, extra MB": more / 1e6 for name, more in extra.items()}
    return {name: float(f"{value:.4g}") for name, value in {**shown, **times}.items()}


def summarise(
    timings: Timings, shape: Shape, needs: dict[str, dict[str, int]], flops: dict[int, int], rates: tuple[int, int]
) -> tuple[list[Result], list[Result]]:
    """(results, floors): times, tokens per second, times over SDPA's; shares of what the machine could do, round by round."""
    seconds = timings.seconds
    products = [rates[0] / s for s in seconds["square matmul"]]
    copies = [rates[1] / s for s in seconds["copy"]]
    results = [
        result(f"matmul, square, {shape.dtype}", "GFLOP/s", [r / 1e9 for r in products]),
        result("memory, copy", "GB/s", [r / 1e9 for r in copies]),
    ]
    floors = []

    def over(name: str, other: str, spent: dict[str, list[float]]) -> list[float]:
        return [a / b for a, b in zip(spent[name], spent[other], strict=True)]

    for tokens in shape.tokens:
        plain = f"T={tokens}, SDPA"
        results.append(result(f"{plain}, forward", "ms", [1e3 * s for s in seconds[plain]]))
        results.append(result(f"{plain}, tokens", "tokens/s", [tokens / s for s in seconds[plain]]))
        for way in (*map(rows_name, shape.rows), "eager"):
            for kind, spent in (("", seconds), (BY_PROCESSOR, timings.by_processor)):
                results.append(result(f"T={tokens}, {way}, over SDPA{kind}", "times", over(f"T={tokens}, {way}", plain, spent)))
        floor = [flops[tokens] / r for r in products]
        floors.append(result(f"{plain}, of square matmul", "share", [f / s for f, s in zip(floor, seconds[plain], strict=True)]))
        for rows in shape.rows:
            name = f"T={tokens}, {rows_name(rows)} alone"
            results.append(result(f"{name}, all layers", "ms", [1e3 * s for s in seconds[name]]))
            results.append(result(f"{name}, of SDPA's forward", "share", over(name, plain, seconds)))
            floor = [max(needs[name]["bytes"] / c, needs[name]["operations"] / p) for c, p in zip(copies, products, strict=True)]
            shares = [f / s for f, s in zip(floor, seconds[name], strict=True)]
            floors.append(result(f"{name}, of keys read once", "share", shares))
    return results, floors


def verdicts(results: list[Result], used: dict[str, dict[str, float]], shape: Shape) -> list[dict]:
    """The bars, each with what was measured (times: the worst median over the rounds), and whether it is met."""
    measured = {r.name: r.median for r in results}
    names = [f"T={tokens}, {rows_name(rows)}, over SDPA" for tokens in shape.tokens for rows in shape.rows]
    most, by_processor = (max(measured[name + kind] for name in names) for kind in ("", BY_PROCESSOR))
    tokens = 2304 if 2304 in shape.tokens else shape.tokens[-1]
    less = used[f"T={tokens}"]["eager's extra over that of 1 row"]
    slow = {"bar": f"time over SDPA's, the worst, at most {BARS['time']:.2f}", "measured": most, "met": most <= BARS["time"]}
    large = f"eager's extra peak memory over that of 1 row, T={tokens}, at least {BARS['memory']}"
    return [
        {**slow, "by_processor_time": by_processor},
        {"bar": large, "measured": less, "met": less >= BARS["memory"]},
    ]


def measure(shape: Shape, repetitions: int, device: torch.device, least: float) -> tuple[list[str], dict]:
    """All paths, alternating: (tables to print, content of the results file)."""
    load_before = os.getloadavg()
    square, flops_of_square = matmul(shape.square, shape.square, shape.square, device, getattr(torch, shape.dtype))
    copy, bytes_of_copy = copying(shape, device)
    paths: dict[str, TimedPath] = {"square matmul": square, "copy": copy}
    used, flops, needs, differences = {}, {}, {}, {}
    for tokens in shape.tokens:
        ways = forwards(shape, tokens, device)
        differences[f"T={tokens}"] = check(ways, shape)
        used[f"T={tokens}"] = memory(ways, shape, device)
        flops[tokens] = sum(count(ways["SDPA"]).values())
        paths |= {f"T={tokens}, {name}": timed(way) for name, way in ways.items()}
        for rows in shape.rows:
            name = f"T={tokens}, {rows_name(rows)} alone"
            paths[name], needs[name] = alone(shape, tokens, rows, device)
    begun = time.perf_counter()
    timings = alternate(paths, repetitions, device, least)
    results, floors = summarise(timings, shape, needs, flops, (flops_of_square, bytes_of_copy))
    content = report(
        timings, load_before, device, benchmark="attention_rows", repetitions=repetitions, settings=asdict(shape),
        grids={f"T={tokens}": [grid(tokens)] * 2 for tokens in shape.tokens}, results=results, floors=floors, memory=used,
        bars=verdicts(results, used, shape), largest_difference_from_eager=differences,
        operations={f"T={tokens}": many for tokens, many in flops.items()}, needs_of_rows=needs, not_counted=NOT_COUNTED,
        minutes=round((time.perf_counter() - begun) / 60, 2),
    )  # fmt: skip
    lines = [f"  {where}: {name} {value:,}" for where, values in used.items() for name, value in values.items()]
    bars = [f"  {bar['bar']}: {bar['measured']:,} {'met' if bar['met'] else 'MISSED'}" for bar in content["bars"]]
    tables = [table("measured: median, range", results), table("of its floor: share, range", floors)]
    return [*tables, "\n".join(["memory of a forward", *lines]), "\n".join(["bars", *bars])], content


def main(argv: Sequence[str] | None = None) -> dict:
    options, device = arguments(__doc__.splitlines()[0], argv, repetitions=5, shape=tuple(SHAPES))
    if options.shape != "small" and device.type == "cpu" and not options.quick:
        raise SystemExit(f"--shape {options.shape}: too large for a CPU; use --device cuda, or --quick to try the script out")
    shape = quick(SHAPES[options.shape]) if options.quick else SHAPES[options.shape]
    tables, content = measure(shape, options.repetitions, device, 0 if options.quick else 0.05)
    content |= {"quick": options.quick, "shape": options.shape}
    print(*tables, content["load"], sep="\n")
    name = "attention_rows" + ("" if options.shape == "small" else f"-{options.shape}")
    out = options.out or (None if options.quick else RESULTS / f"{name}{'' if device.type == 'cpu' else '-cuda'}.json")
    if out is not None:
        write(out, content)
        print(f"written: {out}")
    return content


if __name__ == "__main__":
    main()
