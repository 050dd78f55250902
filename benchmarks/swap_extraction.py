"""What it costs to extract hidden states and answers of swap pairs: ours against the study's own protocol, on the same pairs.

The protocol, from its description: a question at a time, its picture encoded anew; hooks on every decoder layer copy the last
token's state to the CPU in float32 during the prefill; then `generate` goes on for 20 new tokens, greedily; twice a pair.
`python benchmarks/swap_extraction.py` writes benchmarks/results/swap_extraction.json; states and answers must be equal before
anything is timed. `--device cuda --shape llava-1.5-7b` (or qwen2.5-vl-3b) has that model's shape with random weights, in bf16.
Knows nothing of what the states say.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from random_models import SHAPES, Shape, build, quick_shape

from spatialprobes.examples import Example
from spatialprobes.pairs import CATEGORIES, Pair
from spatialprobes.probes.swap import Extraction, extract
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_pairs import lab_pairs, lab_quads

LAB = "lab-llava"
SEED = 900_002  # a stream of scenes that neither training nor evaluation draws from
NEW_TOKENS = 20  # of the protocol
MOST = 8  # of ours, as `extract` has it
TOLERANCE = 1e-4  # between hidden states, in float32
FORCED, ENDED = f"original, {NEW_TOKENS} forced tokens", "original, until its end"
OURS, WHOLE, STORED = "ours", "ours, whole prompts", "ours, stored"
ONE, TWO = "1 pair a picture", "2 pairs a picture"
BY_PROCESSOR = ", by processor time"
BARS = {"cpu": 15, "cuda": 8}  # at least so many times the protocol's pairs per second, one pair a picture, forced tokens
MEMORY_GB = 2.0


@dataclass(frozen=True)
class Sizes:
    """pairs: that ours takes in a call, of each kind. asked_singly: of them, evenly spread, are put through the protocol.
    batch: questions. square: side of the product that gives the machine's rate. many: pairs of the memory's measure."""

    pairs: int = 192
    asked_singly: int = 8
    batch: int = 64
    square: int = 2048
    many: int = 10_000


QUICK = Sizes(pairs=6, asked_singly=2, batch=4, square=64, many=12)


def asked(many: int) -> dict[str, list[Pair]]:
    """So many pairs with a picture each, and so many of quads: two pairs about one picture."""
    alone = lab_pairs(-(-many // len(CATEGORIES)), SEED)[:many]
    together = [pair for quad in lab_quads(-(-many // 2), SEED) for pair in (quad.vertical, quad.distance)][:many]
    return {ONE: alone, TWO: together}


# ---- the study's protocol ----
@dataclass(frozen=True)
class Record:
    """What it keeps of a pair: by member, the state after each decoder layer, and the new tokens."""

    hidden: tuple[dict[int, np.ndarray], dict[int, np.ndarray]]
    tokens: tuple[list[int], list[int]]


def original(vlm: VLM, pair: Pair, **options: int) -> Record:
    """Both questions of a pair, one after the other, by the model's own generate."""
    done = [one_question(vlm, one, **options) for one in pair.members]
    return Record((done[0][0], done[1][0]), (done[0][1], done[1][1]))


def one_question(vlm: VLM, example: Example, **options: int) -> tuple[dict[int, np.ndarray], list[int]]:
    kept: dict[int, np.ndarray] = {}

    def keep(layer: int, module: torch.nn.Module, args: tuple, output: object) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] > 1:  # the prefill
            kept[layer] = hidden[0, -1].detach().float().cpu().numpy()

    layers = vlm.family.part(vlm.model, "layers")
    hooks = [layer.register_forward_hook(partial(keep, i)) for i, layer in enumerate(layers, 1)]
    picture = example.image() if callable(example.image) else example.image
    content = [{"type": "image", "image": picture}, {"type": "text", "text": example.question}]
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    ).to(vlm.device, vlm.dtype)  # fmt: skip
    try:
        with torch.inference_mode():
            made = vlm.model.generate(**inputs, do_sample=False, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return kept, made[0, inputs["input_ids"].shape[1] :].tolist()


def protocols() -> dict[str, Callable[[VLM, Pair], Record]]:
    """The protocol as it is read most literally, and as `generate` stops of itself."""
    return {
        FORCED: partial(original, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS),
        ENDED: partial(original, max_new_tokens=NEW_TOKENS),
    }


# ---- ours ----
def ours(vlm: VLM, pairs: Sequence[Pair], sizes: Sizes, **options: object) -> Extraction:
    return extract(vlm, pairs, batch_size=sizes.batch, max_new_tokens=MOST, **options)


def stored(vlm: VLM, pairs: Sequence[Pair], sizes: Sizes) -> Extraction:
    """Into a new store, on the disk when this returns."""
    with tempfile.TemporaryDirectory() as folder:
        return ours(vlm, pairs, sizes, store=Path(folder) / "store")


def spread(pairs: Sequence[Pair], many: int) -> list[Pair]:
    """So many of them, at equal distances."""
    return [pairs[i * len(pairs) // many] for i in range(many)]


def check(vlm: VLM, pairs: Sequence[Pair], sizes: Sizes) -> dict[str, float]:
    """{"pairs", "answers_equal": share, "largest_difference": between states}.

    Raises AssertionError where answers or, by more than `TOLERANCE`, states differ in float32. A narrower dtype rounds otherwise
    in other batches: there they are reported alone.
    """
    found = ours(vlm, pairs, sizes)
    texts = found.answers.set_index(["pair", "member"])["text"]
    places = {name: i for i, name in enumerate(found.states.pairs["pair"])}
    exact, equal, worst = vlm.dtype == torch.float32, [], 0.0
    for pair in spread(pairs, sizes.asked_singly):
        records = {name: way(vlm, pair) for name, way in protocols().items()}
        for i, member in enumerate(("original", "swapped")):
            text = texts[pair.id, member]
            ended, forced = (vlm.decode([records[name].tokens[i][:MOST]])[0] for name in (ENDED, FORCED))
            equal.append(text == ended and forced.startswith(text))
            if exact and not equal[-1]:
                raise AssertionError(f"{pair.id}, {member}: ours {text!r}, one at a time {ended!r}, forced {forced!r}")
            for layer, states in records[ENDED].hidden[i].items():
                here = found.states.read(layer, member)[places[pair.id]]
                worst = max(worst, float(np.abs(here - states).max()))
                if exact and worst > TOLERANCE:
                    raise AssertionError(f"{pair.id}, {member}, layer {layer}: states differ by {worst}, more than {TOLERANCE}")
    return {"pairs": sizes.asked_singly, "answers_equal": sum(equal) / len(equal), "largest_difference": worst}


def paths(vlm: VLM, pairs: Sequence[Pair], sizes: Sizes) -> dict[str, tuple[TimedPath, int]]:
    """Every way with the number of pairs that a call of it takes."""

    def singly(way: Callable[[VLM, Pair], Record]) -> TimedPath:
        def path() -> None:
            for pair in spread(pairs, sizes.asked_singly):
                way(vlm, pair)

        return path

    def together(act: Callable[..., Extraction], **options: object) -> TimedPath:
        def path() -> None:
            act(vlm, pairs, sizes, **options)

        return path

    made = {name: (singly(way), sizes.asked_singly) for name, way in protocols().items()}
    made |= {OURS: (together(ours), len(pairs)), WHOLE: (together(ours, prefix_cache=False), len(pairs))}
    return made | {STORED: (together(stored), len(pairs))}


def memory(vlm: VLM, sizes: Sizes) -> dict[str, float]:
    """Peak resident memory in GB of this process, before and after so many pairs are extracted into a store and read by layer.

    The peak is of the process's whole life, so this is measured first.
    """
    before, begun = _peak_gb(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = ours(
            vlm, lab_pairs(-(-sizes.many // len(CATEGORIES)), SEED + 1)[: sizes.many], sizes, store=Path(folder) / "store"
        )
        extracted = _peak_gb()
        for layer in found.states.layers:
            if not np.isfinite(found.states.canonical(layer)).all():
                raise AssertionError(f"states of layer {layer} are not finite")
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    shown = {"before": before, "extracted": extracted, "read": _peak_gb(), "store": size / 1e9}
    return {"pairs": sizes.many, "seconds": round(time.perf_counter() - begun, 1)} | {
        f"{name}, GB": float(f"{value:.3g}") for name, value in shown.items()
    }


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


# ---- what is made of the seconds ----
def summarise(
    timings: Timings, many: dict[str, int], flops: dict[str, int], square_flops: int
) -> tuple[list[Result], list[Result]]:
    """(results, floors): pairs per second, how many times ours the protocol takes, ours of the matmul rate."""
    seconds = timings.seconds
    rates = [square_flops / s for s in seconds["square matmul"]]
    results = [result("matmul, square", "GFLOP/s", [r / 1e9 for r in rates])]
    for name in many:
        results.append(result(f"{name}, rate", "pairs/s", [many[name] / s for s in seconds[name]]))
    for kind in (ONE, TWO):
        for way in (FORCED, ENDED, WHOLE, STORED):
            theirs, own = f"{kind}, {way}", f"{kind}, {OURS}"
            scale = many[own] / many[theirs]
            for by, spent in (("", seconds), (BY_PROCESSOR, timings.by_processor)):
                times = [scale * a / b for a, b in zip(spent[theirs], spent[own], strict=True)]
                results.append(result(f"{theirs}, over {OURS}{by}", "times", times))
    floors = []
    for name, operations in flops.items():
        shares = [operations / rate / s for rate, s in zip(rates, seconds[name], strict=True)]
        floors.append(result(f"{name}, of square matmul", "share", shares))
    return results, floors


def verdicts(results: list[Result], used: dict[str, float] | None, device: torch.device) -> list[dict]:
    """The bars with what was measured, and whether they are met: of the protocol's two readings the first alone has one."""
    measured = {r.name: r.median for r in results}
    name, least = f"{ONE}, {FORCED}, over {OURS}", BARS[device.type]
    times, by_processor = measured[name], measured[name + BY_PROCESSOR]
    found = [{"bar": f"{name}, at least {least}", "measured": times, "met": times >= least, "by_processor_time": by_processor}]
    if used is not None:
        peak = used["read, GB"]
        found.append({"bar": f"GB for {used['pairs']:,} pairs, below {MEMORY_GB:g}", "measured": peak, "met": peak < MEMORY_GB})
    return found


def measure(vlm: VLM, sizes: Sizes, shape: str, repetitions: int, device: torch.device, least: float) -> tuple[list[str], dict]:
    """All ways, alternating: (tables to print, content of the results file)."""
    load_before = os.getloadavg()
    used = memory(vlm, sizes) if shape == LAB and device.type == "cpu" else None
    square, square_flops = matmul(sizes.square, sizes.square, sizes.square, device, vlm.dtype)
    every: dict[str, TimedPath] = {"square matmul": square}
    many, flops, compared = {}, {}, {}
    for kind, pairs in asked(sizes.pairs).items():
        compared[kind] = check(vlm, pairs, sizes)
        for name, (path, count_of) in paths(vlm, pairs, sizes).items():
            every[f"{kind}, {name}"], many[f"{kind}, {name}"] = path, count_of
            if name in (OURS, WHOLE):
                flops[f"{kind}, {name}"] = sum(count(path).values())
    begun = time.perf_counter()
    timings = alternate(every, repetitions, device, least)
    results, floors = summarise(timings, many, flops, square_flops)
    content = report(
        timings, load_before, device, benchmark="swap_extraction", model=shape, repetitions=repetitions,
        settings={**asdict(sizes), "dtype": str(vlm.dtype).removeprefix("torch."), "max_new_tokens": MOST, "forced": NEW_TOKENS},
        compared=compared, memory=used, results=results, floors=floors, bars=verdicts(results, used, device), operations=flops,
        not_counted=NOT_COUNTED, minutes=round((time.perf_counter() - begun) / 60, 2),
    )  # fmt: skip
    bars = [f"  {bar['bar']}: {bar['measured']} {'met' if bar['met'] else 'MISSED'}" for bar in content["bars"]]
    equal = [f"  {kind}: {', '.join(f'{name} {value:.3g}' for name, value in each.items())}" for kind, each in compared.items()]
    room = [f"  {name}: {value:,}" for name, value in (used or {}).items()]
    tables = [table("measured: median, range", results), table("of its floor: share, range", floors)]
    tables += ["\n".join(["compared with the protocol", *equal]), *(["\n".join(["memory", *room])] if room else [])]
    return [*tables, "\n".join(["bars", *bars])], content


def load(name: str, device: torch.device, quick: bool) -> VLM:
    """The trained lab model, or one of a shape with random weights."""
    if name == LAB:
        return VLM.load(LAB, dtype="float32", device=device.type)
    shape: Shape = quick_shape(SHAPES[name]) if quick else SHAPES[name]
    return build(shape, device)


def main(argv: Sequence[str] | None = None) -> dict:
    options, device = arguments(__doc__.splitlines()[0], argv, repetitions=7, shape=(LAB, *SHAPES))
    if options.shape != LAB and device.type == "cpu" and not options.quick:
        raise SystemExit(f"--shape {options.shape}: too large for a CPU; use --device cuda, or --quick to try the script out")
    sizes = QUICK if options.quick else Sizes()
    if device.type == "cuda" and not options.quick:
        sizes = replace(sizes, square=8192)
    vlm = load(options.shape, device, options.quick)
    tables, content = measure(vlm, sizes, options.shape, options.repetitions, device, 0 if options.quick else 0.05)
    content["quick"] = options.quick
    print(*tables, content["load"], sep="\n")
    name = "swap_extraction" + ("" if options.shape == LAB else f"-{options.shape}")
    out = options.out or (None if options.quick else RESULTS / f"{name}{'' if device.type == 'cpu' else '-cuda'}.json")
    if out is not None:
        write(out, content)
        print(f"written: {out}")
    return content


if __name__ == "__main__":
    main()
