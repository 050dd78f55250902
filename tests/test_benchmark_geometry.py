"""The benchmark of connector geometry: its loop form says what the library says, and a quick run writes what it prints."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_benchmarks import check_schema

from spatialprobes.probes import neighbours

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("geometry")
        for name in ("geometry", "common"):
            sys.modules.pop(name)


def test_the_loop_form_is_the_same_measure(script):
    a, b = script.spaces(130, 12)
    shared, moved = script.looped(a, b)
    lists = [neighbours.nearest(x, 100) for x in (a, b)]
    for place, k in enumerate(script.KS):
        assert shared[place] == pytest.approx(neighbours.overlap(*lists, k).mean())
        assert moved[place] == pytest.approx(neighbours.rank_displacement(*lists, k).mean())
    ours = script.knor(a, b, torch.device("cpu"))
    assert np.allclose(ours, (shared, moved))


def test_a_wrong_list_stops_the_benchmark(script, monkeypatch):
    a, b = script.spaces(script.QUICK.images, script.QUICK.width)
    real = neighbours.nearest
    monkeypatch.setattr(neighbours, "nearest", lambda *args, **more: real(*args, **more)[:, ::-1])
    with pytest.raises(AssertionError, match="list of row 0"):
        script.check(a, (a[:120], b[:120]), script.pictures(script.QUICK), script.QUICK, torch.device("cpu"))


def test_a_quick_run_writes_what_it_prints(script, tmp_path, capsys):
    script.main(["--quick", "--repetitions", "1", "--out", str(tmp_path / "geometry.json")])
    content, printed = json.loads((tmp_path / "geometry.json").read_text()), capsys.readouterr().out
    check_schema(content)
    assert all(r["name"] in printed for r in content["results"] + content["floors"])
    assert all(bar["bar"] in printed for bar in content["bars"]) and len(content["bars"]) == 4
    assert all(bar["met"] for bar in content["bars"][2:])  # what is right, not what is fast
    cost, sizes = content["study"]["cost"], content["settings"]
    assert cost["KNOR of two spaces, operations over 40 TFLOP/s (assumed), minutes"] == pytest.approx(
        4 * 121_861**2 * sizes["width"] / 40e12 / 60, rel=1e-3
    )
    assert cost["tokens before and after, bf16, llava, TB"] == pytest.approx(121_861 * 576 * (1024 + 4096) * 2 / 1e12, rel=1e-3)
    whole = {r["name"]: r["median"] for r in content["results"]}
    parts = 2 * whole["search of one space"] + whole["comparison of lists, all k"]
    assert whole[f"KNOR, {sizes['images']:,} images"] == pytest.approx(parts, rel=1e-3)
