"""The notebooks of section 3: every cell runs on random models of each family and claims nothing of them; runs are merged."""

from functools import partial

import numpy as np
import pytest
from notebook_cells import run_cells

from spatialprobes import paths
from spatialprobes.images import enlarged
from spatialprobes.pairs import with_pictures
from spatialprobes.probes import swap, swap_results
from spatialprobes.record import Record
from spatialprobes.sources import swap_pairs
from spatialprobes.tables import read_table
from spatialprobes.worlds import lab_pairs

SCRIPTS = paths.root() / "notebooks" / "scripts"
one_model = partial(run_cells, SCRIPTS / "03_swap_consistency.py")
over_scales = partial(run_cells, SCRIPTS / "03_swap_over_scales.py")
perspective = partial(run_cells, SCRIPTS / "03_swap_perspective.py")
TABLES = {"answers", "accuracy", "consistency", "similarity", "probe", "projection", "alignment", "world", "causal", "steered"}
OF_QUADS = {"alignment", "world"}


@pytest.fixture
def in_notebooks(monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)


def test_every_measure_runs_on_every_family(tiny_family, tmp_path, in_notebooks, monkeypatch):
    """Pairs of two groups, whose words the random models' vocabulary has; no quads."""
    if "llava" not in tiny_family.name:  # figures of the others' tables are drawn from one family's
        monkeypatch.setattr(Record, "figure", lambda *args, **options: None)
    pairs = lab_pairs.lab_pairs(10, 5, categories=("left", "right", "above", "under"))
    data = str(swap_pairs.write(pairs, tmp_path / "pairs.tsv"))
    scope = one_model(tmp_path, model=str(tiny_family), data=data, batch_size=16, scale="80k", store=str(tmp_path / "store"))
    assert {path.stem for path in (tmp_path / "tables").glob("*.parquet")} >= TABLES - OF_QUADS
    assert scope["there"] == ["horizontal", "vertical"] and not scope["quads"]
    verdicts = scope["run"].verdicts().set_index("claim")["verdict"]
    assert not [name for name in verdicts.index if verdicts[name] == "holds" and name.startswith("cause")]
    written = swap_results.read(tmp_path / "study")
    assert written.scales == ["80k"] and len(written.vectors["80k"]) == 40


def test_pairs_of_a_file_give_what_the_lab_gives(tmp_path, in_notebooks, monkeypatch):
    monkeypatch.setattr(Record, "figure", lambda *args, **options: None)
    pairs = with_pictures(lab_pairs.lab_pairs(10, 7_000_000), partial(enlarged, side=48))
    swap_pairs.write(pairs, tmp_path / "pairs.tsv")
    ours = one_model(tmp_path / "lab", model="lab-llava-38400", limit=10)
    theirs = one_model(tmp_path / "file", model="lab-llava-38400", limit=10, data=str(tmp_path / "pairs.tsv"))
    tables = [read_table(tmp_path / name / "tables" / "accuracy.parquet") for name in ("lab", "file")]
    assert tables[0]["estimate"].equals(tables[1]["estimate"])
    measured = [scope["at_deep"][scope["at_deep"]["control"] == "none"]["estimate"].to_numpy() for scope in (ours, theirs)]
    assert np.allclose(*measured, atol=1e-5) and len(measured[0]) == 3
    assert len(theirs["quads"]) == 0


def test_a_series_is_merged_from_its_runs_and_equals_what_is_measured_in_place(tmp_path, in_notebooks, monkeypatch):
    """Per-scale runs, then the merge of their tables and vectors, against the same series measured by the merge notebook."""
    monkeypatch.setattr(paths, "run_folder", lambda name, root=None: tmp_path / "data" / "runs" / name)
    monkeypatch.setattr(Record, "figure", lambda *args, **options: None)
    series = "vanilla=lab-llava-vanilla 38400=lab-llava-38400"
    for label, model in (part.split("=") for part in series.split()):
        one_model(tmp_path / "data" / "runs" / f"swap-{label}", model=model, scale=label, limit=10)
    merged = over_scales(tmp_path / "merged", series=series, runs="swap-vanilla swap-38400", limit=10)
    placed = over_scales(tmp_path / "placed", series=series, limit=10)
    for name in ("consistency", "accuracy", "emergence"):
        one, other = (read_table(tmp_path / folder / "tables" / f"{name}.parquet") for folder in ("merged", "placed"))
        if "control" in one:  # the runs measured further controls
            one = one[one["control"].isin(other["control"])]
        assert one["scale"].tolist() == other["scale"].tolist() and one["samples"].tolist() == other["samples"].tolist()
        assert np.allclose(one["estimate"], other["estimate"], atol=1e-5, equal_nan=True)
    assert merged["run"].verdicts().equals(placed["run"].verdicts())
    facts = read_table(tmp_path / "merged" / "tables" / "accuracy.parquet").attrs["provenance"]["model"]
    assert [one["model"] for one in facts] == ["lab-llava-vanilla", "lab-llava-38400"]
    points = read_table(tmp_path / "merged" / "tables" / "projection.parquet")
    assert set(points["scale"]) == {"vanilla", "38400"}


def test_worlds_of_perspective_are_told_apart(tmp_path, in_notebooks):
    scope = perspective(tmp_path, models="lab-llava-perspective-0 lab-llava-perspective-1", worlds="0 1", limit=30)
    verdicts = scope["run"].verdicts().set_index("claim")["verdict"]
    assert verdicts["perspective.answers"] == "holds" and verdicts["perspective.answers_free"] != "fails"
    within = scope["within"]
    assert within.loc[0.0, 1.0] > within.loc[0.0, 0.0]  # the same model: what it is asked about makes the difference


@pytest.mark.parametrize(
    ("notebook", "parameters", "message"),
    [
        (one_model, {"limit": 5}, "limit is 5; it must be 0, or at least 10"),
        (one_model, {"at": "verb"}, "at is 'verb'"),
        (one_model, {"images": "pictures"}, "images is 'pictures'; it must be a folder of the pictures that data names"),
        (one_model, {"boxes": "boxes.jsonl"}, "boxes is 'boxes.jsonl'"),
        (one_model, {"perspective": 2.0}, "perspective is 2.0"),
        (one_model, {"strengths": "1 x"}, "strengths is '1 x'; it must be numbers above 0"),
        (one_model, {"layers": "norm"}, "layers is 'norm'"),
        (one_model, {"seed": -1}, "seed"),
        (over_scales, {"series": "lab-llava"}, "no label=model"),
        (over_scales, {"runs": "swap-one"}, "runs names 1 runs for a series of 4"),
        (over_scales, {"runs": "a b c d"}, "run 'a' has left nothing yet"),
        (over_scales, {"runs": "a a b c"}, "names a run twice"),
        (perspective, {"models": "lab-llava lab-llava-seed1"}, "was not trained in a world of one perspective"),
        (perspective, {"models": "lab-llava-perspective-1"}, "at least two of each are compared"),
        (perspective, {"worlds": "0 2"}, "worlds between 0 and 1"),
        (perspective, {"worlds": "0 0.5"}, "both of these among them"),
        (perspective, {"models": "lab-llava-perspective-0.5 lab-llava-perspective-1"}, "0 and 1 must be among them"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_measured(
    tmp_path, in_notebooks, monkeypatch, notebook, parameters, message
):
    monkeypatch.setattr(swap, "extract", lambda *args, **options: pytest.fail("measured"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        notebook(tmp_path, **parameters)
