"""The record of a notebook: what it leaves is complete, repeatable and drawn from what lies on the disk."""

import json

import pandas as pd
import pytest

from spatialprobes import plots
from spatialprobes.claims import load_claims
from spatialprobes.record import Record
from spatialprobes.tables import read_provenance, read_table


class Model:
    """Stands for a VLM: all a record wants of one is its facts."""

    def __init__(self, name="lab-llava"):
        self.name = name

    def facts(self):
        return {"model": self.name, "dtype": "float32", "device": "cpu"}


CURVES = pd.DataFrame({"samples": [0, 100], "group": "colour", "accuracy": [0.2, 0.9], "low": [0.1, 0.8], "high": [0.3, 0.95]})


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.delenv("SPATIALPROBES_FIGURES", raising=False)
    return tmp_path


def record(base, run="quickstart-lab", seed=0, **more):
    out = base / "data" / "runs" / run
    given = {"notebook": "00_quickstart", "title": "Quick start", "section": 0, "vlm": Model()} | more
    return Record(out=out, parameters={"model": "lab-llava", "seed": seed, "out": str(out)}, **given)


def note(run, **more):
    fields = {"rule": "low > .25", "estimate": 0.4, "low": 0.3, "high": 0.5, "n": 100, "table": "curves"} | more
    return run.claim("permutation.spatial", "Spatial answers need order.", **fields)


def test_tables_of_equal_facts_are_equal_wherever_they_are_made(base):
    files = []
    for place, seed in (("a", 0), ("b", 0), ("c", 1)):
        run = record(base / place, run=f"run-{place}", seed=seed)
        back = run.table("curves", CURVES, data="ab12")
        pd.testing.assert_frame_equal(back, CURVES)
        files.append((run.folder / "tables" / "curves.parquet").read_bytes())
    assert files[0] == files[1] != files[2]
    facts = back.attrs["provenance"]
    assert (
        facts["model"]["model"] == "lab-llava"
        and facts["data"] == "ab12"
        and facts["parameters"] == {"model": "lab-llava", "seed": 1}
    )
    assert set(facts["code"]) == {"spatialprobes", "library"}
    volatile = json.loads((run.folder / "tables" / "curves.json").read_text())
    assert volatile["peak_memory_gb"] > 0.01 and volatile["seconds_since_start"] >= 0 and {"host", "date"} <= set(volatile)


def test_a_figure_is_drawn_from_the_saved_table_and_redrawn_the_same(base):
    run = record(base)
    run.table("curves", CURVES)
    run.figure("training.curves", table="curves", caption="What is learned when.", scale="linear")
    made = base / "figures" / "quickstart-lab" / "training-curves.png"
    before = made.read_bytes(), made.with_suffix(".pdf").read_bytes()
    assert plots.load_drawn(run.folder) == [
        plots.Drawn("training-curves", "training.curves", "curves", "What is learned when.", {"scale": "linear"})
    ]
    made.unlink()
    plots.redraw(base)
    assert (made.read_bytes(), made.with_suffix(".pdf").read_bytes()) == before


def test_figures_follow_the_engine_or_stay_beside_a_folder_elsewhere(base, monkeypatch):
    run = Record(out=base / "elsewhere", notebook="n", title="t", section=1, parameters={})
    assert run.figure_folder == base / "elsewhere" / "figures"
    monkeypatch.setenv("SPATIALPROBES_FIGURES", str(base / "work"))
    run = Record(out=base / "data" / "runs" / ".work" / "swap-lab", notebook="n", title="t", section=1, parameters={})
    assert run.figure_folder == base / "work" / "swap-lab"


def test_drawing_again_replaces_and_another_table_needs_a_name(base):
    run = record(base)
    run.table("curves", CURVES)
    run.table("more", CURVES)
    run.figure("training.curves", table="curves", caption="First.")
    run.figure("training.curves", table="curves", caption="Better.")
    with pytest.raises(ValueError, match=r"already drawn from table 'curves'; pass name="):
        run.figure("training.curves", table="more", caption="x")
    run.figure("training.curves", table="more", caption="Other.", name="more-curves")
    assert [one.caption for one in plots.load_drawn(run.folder)] == ["Better.", "Other."]


def test_a_figure_that_cannot_be_drawn_is_not_listed(base):
    run = record(base)
    run.table("curves", CURVES)
    with pytest.raises(FileNotFoundError, match=r"no table .*lost.parquet; there: curves.parquet"):
        run.figure("training.curves", table="lost", caption="x")
    with pytest.raises(ValueError, match="no figure function"):
        run.figure("training.loss", table="curves", caption="x")
    with pytest.raises(ValueError, match="no option 'log'"):
        run.figure("training.curves", table="curves", caption="x", log=True)
    with pytest.raises(TypeError, match="has no JSON form"):
        run.figure("training.curves", table="curves", caption="x", ax=object())
    with pytest.raises(ValueError, match="caption is empty"):
        run.figure("training.curves", table="curves", caption=" ")
    assert plots.load_drawn(run.folder) == []


def test_claims_are_saved_at_once_and_failing_ones_stop_nothing(base):
    run = record(base)
    run.table("curves", CURVES)
    note(run, required=True, low=0.1, high=0.2, estimate=0.15)
    assert [one.verdict for one in load_claims(run.folder / "claims.json")] == ["fails"]
    assert run.claims["permutation.spatial"].model == "lab-llava"
    note(run, model="another")
    got = run.verdicts()
    assert got.to_dict("list") == {"claim": ["permutation.spatial"], "rule": ["low > .25"], "verdict": ["holds"]}
    assert load_claims(run.folder / "claims.json")[0].model == "another"


def test_a_claim_needs_its_table(base):
    with pytest.raises(FileNotFoundError, match=r"no table .*curves.parquet; there: none"):
        note(record(base))


def test_names_that_make_no_file_are_refused(base):
    run = record(base)
    for name in ("../x", "a b", "", ".hidden", "a/b"):
        with pytest.raises(ValueError, match="table name"):
            run.table(name, CURVES)
    with pytest.raises(ValueError, match="notebook name"):
        record(base, notebook="../../x")


def test_a_new_record_forgets_the_last_ones_claims_and_figures(base):
    run = record(base)
    run.table("curves", CURVES)
    run.figure("training.curves", table="curves", caption="x")
    note(run)
    again = record(base)
    assert plots.load_drawn(again.folder) == [] and load_claims(again.folder / "claims.json") == []
    assert again.verdicts().empty


def test_tables_may_be_about_another_model_or_none(base):
    run = record(base, vlm=None)
    run.table("curves", CURVES)
    run.table("other", CURVES, vlm=Model("lab-clip"))
    assert "model" not in read_provenance(run.folder / "tables" / "curves.parquet")
    assert read_table(run.folder / "tables" / "other.parquet").attrs["provenance"]["model"]["model"] == "lab-clip"
    with pytest.raises(ValueError, match="model is empty"):
        note(run)
    assert note(run, model="lab-clip").model == "lab-clip"


def test_tables_of_an_earlier_run_do_not_pass_for_this_ones(tmp_path):
    options = {"notebook": "toy", "title": "Toy", "section": 0, "parameters": {}}
    Record(out=tmp_path / "run", **options).table("old", pd.DataFrame({"a": [1]}))
    assert len(list((tmp_path / "run" / "tables").iterdir())) == 2
    again = Record(out=tmp_path / "run", **options)
    assert not list((tmp_path / "run" / "tables").iterdir())
    with pytest.raises(FileNotFoundError):
        again.claim("a.b", "Says.", rule="low > 0", estimate=1, low=1, high=1, n=1, table="old")
