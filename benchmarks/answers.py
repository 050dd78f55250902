"""What it costs to ask the lab's model: our answers and scores against one `generate` for each question, as people do it.

`python benchmarks/answers.py` writes benchmarks/results/answers.json (answers-cuda.json on a GPU). Greedy answers must be equal
before anything is timed. Knows nothing of whether they are right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

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

from spatialprobes import answers
from spatialprobes.examples import Example
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab import picture, scene
from spatialprobes.worlds.lab_questions import GROUPS, as_examples, ask

MODEL = "lab-llava"
SEED = 900_001  # a stream of scenes that neither training nor evaluation draws from
FORCED = 20  # new tokens of the way that does not stop at the end of the answer
MOST = 8  # new tokens of ours, as `answers.generate` has it
BY_PROCESSOR = ", by processor time"
BARS = {"until its end": 8, f"{FORCED} forced tokens": 50}  # at least so many times our time per question


@dataclass(frozen=True)
class Sizes:
    """questions: in all. per_picture: how many are asked of a picture; the lab's own evaluation asks 16, `examples()` one.
    asked_singly: of them, evenly spread, are asked by the ways that take one question at a time. batches: batch sizes of ours.
    """

    questions: int = 512
    per_picture: tuple[int, ...] = (16, 1)
    asked_singly: int = 32
    batches: tuple[int, ...] = (64, 256)
    square: int = 2048


QUICK = Sizes(questions=6, per_picture=(3, 1), asked_singly=2, batches=(4,), square=64)


def questions(many: int, per_picture: int) -> list[Example]:
    """So many questions, captions apart, the groups in turn; those that a scene does not allow are left out."""
    groups = [group for group in GROUPS if group != "caption"]
    found: list[Example] = []
    number = 0
    while len(found) < many:
        shown, rng = scene(SEED, number), np.random.default_rng([SEED, number, 1])
        drawn = picture(shown)
        asked = 0
        for turn in range(4 * per_picture):
            question = ask(shown, groups[(number + turn) % len(groups)], rng)
            if question is not None and asked < per_picture:
                one = as_examples(shown, question, f"{number}-{turn}")[0]
                found.append(replace(one, image=drawn, cluster=str(number)))
                asked += 1
        number += 1
    return found[:many]


# ---- paths ----
def singly(vlm: VLM, example: Example, **options: int) -> str:
    """One question by the processor's own encoding and the model's own greedy search."""
    content = [{"type": "image", "image": example.image}, {"type": "text", "text": example.question}]
    inputs = vlm.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    ).to(vlm.device)  # fmt: skip
    with torch.inference_mode():
        tokens = vlm.model.generate(**inputs, do_sample=False, **options)
    return vlm.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def ways_of_one() -> dict[str, Callable[[VLM, Example], str]]:
    """The ways that take one question at a time, by name."""
    return {
        "until its end": partial(singly, max_new_tokens=FORCED),
        f"{FORCED} forced tokens": partial(singly, min_new_tokens=FORCED, max_new_tokens=FORCED),
    }


def check(vlm: VLM, asked: Sequence[Example], sizes: Sizes) -> int:
    """How many texts were compared. Raises AssertionError where ours are not those of the other ways.

    A forced answer goes on after its end, so it must begin with ours.
    """
    chosen = spread(asked, sizes.asked_singly)
    single = {one.id: [way(vlm, one) for way in ways_of_one().values()] for one in chosen}
    for batch_size in sizes.batches:
        ours = answers.generate(vlm, asked, MOST, batch_size).set_index("id")["text"]
        for one in chosen:
            ended, forced = single[one.id]
            if ours[one.id] != ended or not forced.startswith(ours[one.id]):
                raise AssertionError(f"{one.id}: ours {ours[one.id]!r}, one at a time {ended!r}, forced {forced!r}")
    return len(chosen)


def spread(asked: Sequence[Example], many: int) -> list[Example]:
    """So many of them, at equal distances."""
    return [asked[i * len(asked) // many] for i in range(many)]


def paths(vlm: VLM, asked: Sequence[Example], sizes: Sizes) -> dict[str, tuple[TimedPath, int]]:
    """Every way with the number of questions that a call of it answers."""

    def each(way: Callable[[VLM, Example], str]) -> TimedPath:
        def path() -> None:
            for one in spread(asked, sizes.asked_singly):
                way(vlm, one)

        return path

    def ours(act: Callable[..., object], batch_size: int) -> TimedPath:
        def path() -> None:
            act(vlm, asked, batch_size=batch_size)

        return path

    made = {name: (each(way), sizes.asked_singly) for name, way in ways_of_one().items()}
    for batch_size in sizes.batches:
        made[f"generate by {batch_size}"] = ours(answers.generate, batch_size), len(asked)
    return made | {f"score by {sizes.batches[-1]}": (ours(answers.score, sizes.batches[-1]), len(asked))}


# ---- what is made of the seconds ----
def summarise(
    timings: Timings, many: dict[str, int], sizes: Sizes, flops: dict[str, int], square_flops: int
) -> tuple[list[Result], list[Result]]:
    """(results, floors): milliseconds per question, how many times ours the other ways take, ours of the matmul rate."""
    seconds = timings.seconds
    rates = [square_flops / s for s in seconds["square matmul"]]
    results = [result("matmul, square", "GFLOP/s", [r / 1e9 for r in rates])]
    floors = []
    per_question = {name: [s / many[name] for s in seconds[name]] for name in many}
    for name, spent in per_question.items():
        results.append(result(f"{name}, a question", "ms", [1e3 * s for s in spent]))
    for per_picture in sizes.per_picture:
        about = f"{per_picture} a picture"
        for ours in (name for name in per_question if name.startswith(f"{about}, generate")):
            for other in (*ways_of_one(), f"score by {sizes.batches[-1]}"):
                theirs, name = f"{about}, {other}", f"{about}, {other}, over {ours.removeprefix(f'{about}, ')}"
                scale = many[ours] / many[theirs]
                for kind, spent in (("", seconds), (BY_PROCESSOR, timings.by_processor)):
                    times = [scale * a / b for a, b in zip(spent[theirs], spent[ours], strict=True)]
                    results.append(result(name + kind, "times", times))
    for name, operations in flops.items():
        shares = [operations / rate / s for rate, s in zip(rates, seconds[name], strict=True)]
        floors.append(result(f"{name}, of square matmul", "share", shares))
    return results, floors


def verdicts(results: list[Result], sizes: Sizes) -> list[dict]:
    """The bars with what was measured (the median over the rounds) at our larger batch, and whether they are met."""
    measured = {r.name: r.median for r in results}
    found = []
    for per_picture in sizes.per_picture:
        for other, least in BARS.items():
            name = f"{per_picture} a picture, {other}, over generate by {sizes.batches[-1]}"
            times, by_processor = measured[name], measured[name + BY_PROCESSOR]
            bar = {"per_picture": per_picture, "way": other, "least": least, "measured": times, "met": times >= least}
            found.append({**bar, "by_processor_time": by_processor})
    return found


def measure(sizes: Sizes, repetitions: int, device: torch.device, least: float) -> tuple[list[str], dict]:
    """All ways, alternating: (tables to print, content of the results file)."""
    load_before = os.getloadavg()
    vlm = VLM.load(MODEL, dtype="float32", device=device.type)
    square, square_flops = matmul(sizes.square, sizes.square, sizes.square, device)
    every: dict[str, TimedPath] = {"square matmul": square}
    many, flops, compared, pictures = {}, {}, {}, {}
    for per_picture in sizes.per_picture:
        asked, about = questions(sizes.questions, per_picture), f"{per_picture} a picture"
        compared[about] = check(vlm, asked, sizes)
        pictures[about] = len({one.cluster for one in asked})
        for name, (path, count_of) in paths(vlm, asked, sizes).items():
            every[f"{about}, {name}"], many[f"{about}, {name}"] = path, count_of
            if name.startswith("generate"):
                flops[f"{about}, {name}"] = sum(count(path).values())
    begun = time.perf_counter()
    timings = alternate(every, repetitions, device, least)
    results, floors = summarise(timings, many, sizes, flops, square_flops)
    content = report(
        timings, load_before, device, benchmark="answers", model=MODEL, repetitions=repetitions,
        settings={**asdict(sizes), "max_new_tokens": MOST, "forced": FORCED}, pictures=pictures, texts_equal=compared,
        results=results, floors=floors, bars=verdicts(results, sizes), operations=flops, not_counted=NOT_COUNTED,
        minutes=round((time.perf_counter() - begun) / 60, 2),
    )  # fmt: skip
    bars = [
        f"  {b['per_picture']} a picture, {b['way']}, at least {b['least']}: {b['measured']} {'met' if b['met'] else 'MISSED'}"
        for b in content["bars"]
    ]
    tables = [table("measured: median, range", results), table("of its floor: share, range", floors)]
    return [*tables, "\n".join(["bars", *bars])], content


def main(argv: Sequence[str] | None = None) -> dict:
    options, device = arguments(__doc__.splitlines()[0], argv, repetitions=7)
    tables, content = measure(QUICK if options.quick else Sizes(), options.repetitions, device, 0 if options.quick else 0.05)
    content["quick"] = options.quick
    print(*tables, content["load"], sep="\n")
    standard = RESULTS / ("answers.json" if device.type == "cpu" else f"answers-{device.type}.json")
    out = options.out or (None if options.quick else standard)
    if out is not None:
        write(out, content)
        print(f"written: {out}")
    return content


if __name__ == "__main__":
    main()
