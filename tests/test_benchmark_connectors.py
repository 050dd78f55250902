"""What reading connectors costs: timed only if equal, counted for published shapes by a formula that is tried on small ones."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import picture

from spatialprobes.examples import Example
from spatialprobes.probes.connector_reading import prepared, run
from spatialprobes.sources.connector_files import SHAPES
from spatialprobes.vlm import VLM

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    names = ("common", "connector_extraction")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield [importlib.import_module(name) for name in names][-1]
        for name in names:
            sys.modules.pop(name)


def test_both_ways_are_timed_only_if_equal(script, tmp_path, capsys, monkeypatch):
    script.main(["--quick", "--repetitions", "1", "--out", str(tmp_path / "extraction.json")])
    content, printed = json.loads((tmp_path / "extraction.json").read_text()), capsys.readouterr().out
    assert all(r["name"] in printed for r in content["results"] + content["floors"])
    assert all(bar["bar"] in printed for bar in content["bars"])
    measured = {r["name"]: r["median"] for r in content["results"]}
    ours, theirs = (measured[f"{name}, a picture"] for name in (script.OURS, script.HOOKED))
    assert measured[f"{script.HOOKED}, over ours"] == pytest.approx(theirs / ours, rel=2e-3)
    speed, difference = content["bars"]
    assert speed["met"] == (speed["measured"] >= 10) and difference["met"]
    assert content["largest_difference"].keys() == {"pre", "post"} and content["new_tokens"] == 32
    vlm = VLM.load(script.MODEL, dtype="float32", device="cpu")
    examples = script.pictures(2)
    found = script.hooked(vlm, examples, 2, tmp_path)
    written = torch.load(tmp_path / "post_vectors_2.pt", weights_only=True)
    assert torch.equal(written["vecs"], found["post"]) and written["keys"] == ["000000000", "000000001"]
    monkeypatch.setattr(script, "hooked", lambda *args: {side: vectors + 2e-5 for side, vectors in found.items()})
    with pytest.raises(AssertionError, match=r"pre: ours differ from the hook's by 2\.\d+e-05"):
        script.check(vlm, examples, script.Sizes(2, 2), tmp_path)


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "idefics2"])
def test_operations_are_counted_as_by_formula(script, request, name):
    """By torch's own counter on small models of three kinds, but for the embedding of patches."""
    vlm = VLM.load(str(request.getfixturevalue(f"tiny_{name}")))
    batch = prepared(vlm, [Example("a", picture(0))])
    counted = sum(script.count(lambda: run(vlm, batch, ("post",))).values())
    vision, text = vlm.model.config.vision_config, vlm.model.config.text_config
    width, mlp = getattr(vision, "hidden_size", None), vision.intermediate_size
    if name == "llava":
        tower = script.Tower(37, width, mlp, 2, 36 * (width * 64 + 64 * 64))
        embedding = 36 * 3 * 8 * 8 * width
    elif name == "qwen2_5_vl":
        merged = 4 * width
        tower = script.Tower(144, width, mlp, 3, 36 * (merged * merged + merged * 64), gated=True, window=16, whole=1)
        embedding = 144 * 3 * 2 * 4 * 4 * width
    else:
        patches, inner = 36, vlm.model.config.perceiver_config
        heads = (inner.resampler_n_heads, inner.num_key_value_heads)
        sizes = [n * inner.resampler_head_dim for n in heads]
        connector = script.resampled(patches, width, text.hidden_size, text.intermediate_size, 10, inner.resampler_depth, *sizes)
        tower = script.Tower(patches, width, mlp, vision.num_hidden_layers, connector)
        embedding = patches * 3 * 8 * 8 * width
    assert counted == tower.operations() + 2 * embedding


def test_the_studys_vectors_in_bytes(script):
    """As the study's notes have them: 11.8, 3.7, 5.0 and 3.5 MB a picture in float32, 2.9 TB in all, half of it in bfloat16."""
    found = script.costs(1e12)
    in_float32 = [1e6 * found[model]["TB, float32 as the study"] / script.PICTURES for model in SHAPES]
    assert in_float32 == pytest.approx([11.8, 3.7, 5.0, 3.5], abs=0.05)
    assert found["all"]["TB, float32 as the study"] == pytest.approx(2.9, abs=0.05)
    assert found["all"]["TB, bfloat16"] == pytest.approx(found["all"]["TB, float32 as the study"] / 2, rel=1e-3)
    hours = found["llava"]["hours here, at the square matmul's rate"]
    assert hours == pytest.approx(script.TOWERS["llava"].operations() * script.PICTURES / 1e12 / 3600, rel=1e-3)
