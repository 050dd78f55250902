"""Benchmarks: operations are counted as by hand, paths take turns, results files say where and what. No time is asserted."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from spatialprobes import lab_models
from spatialprobes.lab_batches import TextData
from spatialprobes.train import muon_adamw
from spatialprobes.worlds.lab_language import VOCABULARY

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks():
    """The modules (common, lab), imported as `python benchmarks/lab.py` finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("common"), importlib.import_module("lab")
        for name in ("common", "lab"):
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def scripts(benchmarks):
    """The modules attention_maps, attention_rows, answers, random_models and swap_extraction, by name."""
    names = ("attention_maps", "attention_rows", "answers", "random_models", "swap_extraction")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in names}
        for name in names:
            sys.modules.pop(name)


@pytest.mark.parametrize("wants_input_gradient", [True, False])
def test_linear_layers_count_twice_their_products(benchmarks, wants_input_gradient):
    """Forward 2 n in out; backward once for the weight and once for what came in, if that wants a gradient."""
    common, _ = benchmarks
    n, sizes = 11, [(5, 7), (7, 3)]
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes))
    x = torch.randn(n, 5, requires_grad=wants_input_gradient)
    out = []
    products = [2 * n * a * b for a, b in sizes]
    assert common.count(lambda: out.append(model(x).sum())) == {"linear": sum(products), "attention": 0}
    not_wanted = 0 if wants_input_gradient else products[0]
    assert common.count(out[0].backward) == {"linear": 2 * sum(products) - not_wanted, "attention": 0}


def test_the_labs_language_model_counts_as_by_hand(benchmarks):
    """Linears: 2 tokens x weights, thrice with backward; attention: two T x T products per head, seven with backward."""
    common, _ = benchmarks
    model, data = lab_models.language_model(0), TextData(5, 2, turns=3)
    batch = data.collate([data[i] for i in range(2)])
    rows, length = batch["input_ids"].shape
    width, depth = lab_models.WIDTH, lab_models.DEPTH
    square, wide = width * width, 2 * width * width
    linear = 2 * rows * length * (depth * (4 * square + 3 * wide) + width * len(VOCABULARY))
    product = 2 * rows * length * length * width * depth
    out = []
    assert common.count(lambda: out.append(model(**batch).loss)) == {"linear": linear, "attention": 2 * product}
    assert common.count(out[0].backward) == {"linear": 2 * linear, "attention": 5 * product}

    # Muon's five Newton-Schulz iterations on [a, b], a <= b: X X', then its square, then its product with X.
    def muon(a: int, b: int) -> int:
        return 5 * (2 * a * a * b + 2 * a**3 + 2 * a * a * b)

    update = depth * (4 * muon(width, width) + 3 * muon(width, 2 * width))
    assert common.count(muon_adamw(model, 1e-3, 1e-3).step) == {"linear": update, "attention": 0}


def test_paths_take_turns_and_parts_are_kept_by_round(benchmarks):
    common, _ = benchmarks
    calls = []

    def path(name, parts=None):
        return lambda: calls.append(name) or parts

    paths = {"a": path("a"), "b": path("b", {"half": 2.0}), "c": path("c")}
    timings = common.alternate(paths, 4, torch.device("cpu"), least=0)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert timings.seconds.keys() == {"a", "b", "b.half", "c"}
    assert timings.seconds["b.half"] == [2.0] * 4
    assert all(len(values) == 4 for values in timings.seconds.values())
    assert {name: len(values) for name, values in timings.by_processor.items()} == dict.fromkeys("abc", 4)


def test_the_peak_counts_what_is_alive_at_once(benchmarks):
    """Not what was there before, not what was let go, but what an operation needs for itself."""
    common, _ = benchmarks
    before = torch.ones(1000, 100)

    def act():
        first = torch.empty(50_000)
        del first
        second = torch.empty(30_000)
        third = torch.empty(25_000)
        return second, third

    assert common.peak_memory(act, torch.device("cpu")) == 4 * 55_000
    assert common.peak_memory(lambda: before.sum(1), torch.device("cpu")) == 4 * 1000
    assert common.peak_memory(lambda: None, torch.device("cpu")) == 0


def test_the_load_is_told_by_what_was_measured(benchmarks):
    common, _ = benchmarks
    assert common.load((0.2, 3, 3), 8, 1.96, 2) == (
        "begun on a quiet machine (load average 0.20 on 8 cores), got 1.96 processor seconds per second with 2 threads"
    )
    assert "about 1 other busy process (" in common.load((1.1, 0, 0), 2, 0.5, 1)
    assert "about 2 other busy processes (load average 2.15 on 2 cores), got 0.50 " in common.load((2.15, 0, 0), 2, 0.5, 1)


def check_schema(content):
    """Machine, versions, load, and every result with unit and an ordered range."""
    assert {"processor", "cores", "threads", "gpu", "device", "system"} <= content["machine"].keys()
    assert {"python", "torch", "transformers", "accelerate", "numpy"} <= content["versions"].keys()
    assert "load average" in content["load"]
    assert content["processor_seconds_per_second"] > 0
    for kind in ("results", "floors"):
        names = [r["name"] for r in content[kind]]
        assert len(set(names)) == len(names) > 0
        for r in content[kind]:
            assert r.keys() == {"name", "unit", "median", "min", "max", "repetitions"}
            assert 0 < r["min"] <= r["median"] <= r["max"], r
            assert r["repetitions"] == content["repetitions"]
    assert {r["unit"] for r in content["floors"]} == {"share"}


def test_a_quick_run_writes_what_it_prints(benchmarks, tmp_path, capsys):
    _, lab = benchmarks
    lab.main(["--quick", "--repetitions", "1", "--out", str(tmp_path / "lab.json")])
    content, printed = json.loads((tmp_path / "lab.json").read_text()), capsys.readouterr().out
    check_schema(content)
    assert content["quick"] is True
    assert all(r["name"] in printed for r in content["results"] + content["floors"])
    units = {r["unit"] for r in content["results"]}
    assert {"GFLOP/s", "scenes/s", "pictures/s", "questions/s", "tokens/s", "turns/s", "ms", "share"} == units
    taken = content["taken_per_step"]["stage 2 step"]
    assert taken["questions"] == taken["pictures"] * content["settings"]["turns"]
    operations = content["operations"]["stage 2 step"]
    assert operations["fp32"] == sum(operations[f"{a}, {b}"] for a in ("forward", "backward") for b in ("linear", "attention"))
    # The tower is frozen in stage 2, so backward is less than twice forward; all of the tower step learns.
    assert operations["forward, linear"] < operations["backward, linear"] < 2 * operations["forward, linear"]


@pytest.mark.parametrize("shape", ["small", "llava-1.5-7b"])
def test_attention_rows_are_told_apart_from_eagers_maps(scripts, tmp_path, capsys, shape):
    """Peaks as by hand: eager keeps layers x heads x T x T and more, ours layers x heads x R x T in fp32 and little beside."""
    script = scripts["attention_rows"]
    script.main(["--quick", "--repetitions", "1", "--shape", shape, "--out", str(tmp_path / "rows.json")])
    content, printed = json.loads((tmp_path / "rows.json").read_text()), capsys.readouterr().out
    check_schema(content)
    assert all(r["name"] in printed for r in content["results"] + content["floors"])
    assert all(bar["bar"] in printed for bar in content["bars"])
    sizes = content["settings"]
    width, heads, layers, _ = sizes["text"]
    item = 4 if sizes["dtype"] == "float32" else 2
    for tokens in sizes["tokens"]:
        used, kept = content["memory"][f"T={tokens}"], layers * heads * tokens * 4
        if item == 4:  # in bf16 a CPU's own conversions are more than all of this
            assert used["eager, extra MB"] * 1e6 >= 0.9 * kept * tokens
            assert 0.9 * kept <= used["1 row, extra MB"] * 1e6 <= 2 * kept + 4 * tokens * width
        need = content["needs_of_rows"][f"T={tokens}, 1 row alone"]
        assert need == {
            "bytes": layers * (tokens * width * item + width * item + heads * tokens * 4),
            "operations": 2 * layers * tokens * width,
        }
    assert content["largest_difference_from_eager"].keys() == content["memory"].keys()
    time, memory = content["bars"]
    assert time["met"] == (time["measured"] <= 1.1)
    assert memory["met"] == (memory["measured"] >= 50)


def test_rows_that_are_not_eagers_stop_the_benchmark(scripts):
    script = scripts["attention_rows"]
    shape = script.quick(script.SHAPES["small"])
    ways = script.forwards(shape, 64, torch.device("cpu"))
    assert script.check(ways, shape) < 1e-6
    with pytest.raises(AssertionError, match="rows differ from eager's"):
        script.check({**ways, "1 row": lambda: ways["4 rows"]()}, shape)


def test_large_shapes_are_for_a_gpu(scripts):
    with pytest.raises(SystemExit, match="too large for a CPU; use --device cuda, or --quick"):
        scripts["attention_rows"].main(["--shape", "llava-1.5-7b"])


@pytest.mark.parametrize("shape", ["lab", "llava-1.5-7b"])
def test_maps_are_timed_only_if_equal_to_eagers(scripts, tmp_path, capsys, monkeypatch, shape):
    """Eager keeps layers x heads x T x T in fp32 of a prompt; ours what is made of it, layers x heads x 3 words x cells."""
    script = scripts["attention_maps"]
    script.main(["--quick", "--repetitions", "1", "--shape", shape, "--out", str(tmp_path / "maps.json")])
    content, printed = json.loads((tmp_path / "maps.json").read_text()), capsys.readouterr().out
    check_schema(content)
    assert all(r["name"] in printed for r in content["results"] + content["floors"])
    time, memory, difference = content["bars"]
    assert time["met"] == (time["measured"] >= 10) and memory["met"] == (memory["measured"] >= 30)
    assert difference["met"] and max(content["largest_difference_from_eager"].values()) == difference["measured"] > 0
    prompt, used = content["prompt"], content["memory"]
    vlm = script.load(shape, 336, True, torch.device("cpu"))
    kept = prompt["blocks"] * 4 * 4  # bytes of a number in every layer and head
    if shape == "lab":  # a random model this small has its peak elsewhere
        assert used["eager, one prompt, extra MB"] * 1e6 >= kept * prompt["tokens"] ** 2
        assert used["ours, one prompt, extra MB"] * 1e6 <= 2 * kept * 3 * prompt["cells"]  # its forward ends early: may be less
    assert content["store_mb"] * 1e6 >= 6 * 3 * kept // 2 * prompt["cells"]

    monkeypatch.setattr(script, "full", lambda vlm, example: [torch.ones(1, 1, 1).numpy()] * 3)
    with pytest.raises(AssertionError, match=r"maps .ours. differ from eager's by"):
        script.check(vlm, script.scenes(6), script.QUICK, tmp_path)


def test_answers_are_compared_with_other_ways_only_if_equal(scripts, tmp_path, monkeypatch):
    script = scripts["answers"]
    script.main(["--quick", "--repetitions", "1", "--out", str(tmp_path / "answers.json")])
    content = json.loads((tmp_path / "answers.json").read_text())
    check_schema(content)
    assert content["texts_equal"] == {"3 a picture": 2, "1 a picture": 2}
    assert content["pictures"] == {"3 a picture": 2, "1 a picture": 6}
    measured = {r["name"]: r["median"] for r in content["results"]}
    for per_picture in (3, 1):
        one, ours = (measured[f"{per_picture} a picture, {way}, a question"] for way in ("until its end", "generate by 4"))
        assert measured[f"{per_picture} a picture, until its end, over generate by 4"] == pytest.approx(one / ours, rel=2e-3)
    assert all(bar["met"] == (bar["measured"] >= bar["least"]) for bar in content["bars"])

    vlm, asked = script.VLM.load(script.MODEL), script.questions(6, 3)
    monkeypatch.setattr(script, "singly", lambda vlm, example, **options: "nothing of the kind")
    with pytest.raises(AssertionError, match="one at a time 'nothing of the kind'"):
        script.check(vlm, asked, script.QUICK)


def test_questions_are_as_many_a_picture_as_asked_for(scripts):
    """And of every group in turn, each about the picture that it is shown with."""
    asked = scripts["answers"].questions(64, 16)
    pictures = {one.cluster: id(one.image) for one in asked}
    assert len({one.id for one in asked}) == 64
    assert len(pictures) == 4
    assert all(pictures[one.cluster] == id(one.image) for one in asked)
    assert len({one.group for one in asked}) > 10
    assert len({one.cluster for one in scripts["answers"].questions(20, 1)}) == 20


def test_states_and_answers_of_swap_pairs_are_timed_only_if_equal(scripts, tmp_path, capsys, monkeypatch):
    script = scripts["swap_extraction"]
    script.main(["--quick", "--repetitions", "1", "--out", str(tmp_path / "swap.json")])
    content, printed = json.loads((tmp_path / "swap.json").read_text()), capsys.readouterr().out
    check_schema(content)
    assert all(r["name"] in printed for r in content["results"] + content["floors"])
    assert all(bar["bar"] in printed for bar in content["bars"])
    for kind in (script.ONE, script.TWO):
        assert content["compared"][kind]["pairs"] == 2
        assert content["compared"][kind]["answers_equal"] == 1
        assert 0 < content["compared"][kind]["largest_difference"] < 1e-4
    measured = {r["name"]: r["median"] for r in content["results"]}
    for way in (script.FORCED, script.ENDED, script.WHOLE, script.STORED):
        ours, theirs = (measured[f"{script.ONE}, {name}, rate"] for name in (script.OURS, way))
        assert measured[f"{script.ONE}, {way}, over ours"] == pytest.approx(ours / theirs, rel=2e-3)
    speed, room = content["bars"]
    assert speed["met"] == (speed["measured"] >= 15)
    assert room["met"] == (room["measured"] < 2)
    assert room["measured"] >= content["memory"]["before, GB"] > 0

    vlm = script.VLM.load(script.LAB, dtype="float32")
    pairs, sizes = script.asked(6)[script.ONE], script.QUICK
    assert len({one.cluster for one in pairs}) == 6
    assert len({one.cluster for one in script.asked(6)[script.TWO]}) == 3
    hidden, tokens = script.one_question(vlm, pairs[0].original, min_new_tokens=20, max_new_tokens=20)
    assert list(hidden) == [*range(1, vlm.n_layers + 1)]
    assert len(tokens) == 20
    one_question = script.one_question

    def moved(*args, **options):
        hidden, tokens = one_question(*args, **options)
        return hidden | {3: hidden[3] + 2e-4}, tokens

    monkeypatch.setattr(script, "one_question", moved)
    with pytest.raises(AssertionError, match=r"original, layer 3: states differ by 0\.000\d+, more than 0\.0001"):
        script.check(vlm, pairs, sizes)
    monkeypatch.setattr(script, "one_question", lambda *args, **options: (hidden, [5] * 20))
    with pytest.raises(AssertionError, match=r"original: ours '.+', one at a time '.*', forced"):
        script.check(vlm, pairs, sizes)


@pytest.mark.parametrize("shape", ["llava-1.5-7b", "qwen2.5-vl-3b"])
def test_random_models_of_published_shapes_run_both_ways(scripts, shape):
    """Small ones; the published sizes are of a GPU, where they are only looked at here."""
    script, models = scripts["swap_extraction"], scripts["random_models"]
    vlm = script.load(shape, torch.device("cpu"), quick=True)
    for pairs in script.asked(2).values():
        assert script.check(vlm, pairs, script.QUICK)["answers_equal"] == 1
    cells = 56 // 14 // (2 if "qwen" in shape else 1)
    assert vlm.encode([pairs[0].original]).spans[0].grid == (cells, cells)
    whole = models.build(models.SHAPES[shape], torch.device("meta")).model
    parameters = {"llava-1.5-7b": 7.06e9, "qwen2.5-vl-3b": 3.75e9}[shape]
    assert sum(one.numel() for one in whole.parameters()) == pytest.approx(parameters, rel=0.01)
    with pytest.raises(SystemExit, match="too large for a CPU; use --device cuda, or --quick"):
        script.main(["--shape", shape])


def test_committed_results_have_the_schema():
    """Results in the repository are of full runs."""
    files = sorted((FOLDER / "results").glob("*.json"))
    assert files
    for path in files:
        content = json.loads(path.read_text())
        check_schema(content)
        assert content["quick"] is False


def test_a_device_that_is_not_there_is_named(benchmarks, monkeypatch, capsys):
    _, lab = benchmarks
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        lab.main(["--quick", "--device", "cuda"])
    assert "sees no GPU here; use --device cpu" in capsys.readouterr().err
