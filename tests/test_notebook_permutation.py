"""The notebook of section 2: every cell runs on a random model of each family, says what it lacks, and claims nothing of it."""

from functools import partial

import pandas as pd
import pytest
from notebook_cells import run_cells

from spatialprobes import paths
from spatialprobes.record import Record
from spatialprobes.sources import diagnostics
from spatialprobes.tables import read_table

SCRIPT = paths.root() / "notebooks" / "scripts" / "02_permutation_and_rope.py"
EVERYWHERE = {"norms", "hidden_norms", "answers", "psi", "positions", "rope", "rope_rerun", "shares", "cmb"}
ON_A_GRID = {"structured", "psi_structured", "psi_distance"}
run = partial(run_cells, SCRIPT)


def study_run(name, root):
    """A run folder in the study's layout: two pictures, three layers of two heads."""
    rows = [(f"{e:012d}", layer, head) for e in range(2) for layer in range(3) for head in range(2)]
    frame = pd.DataFrame(rows, columns=["example", "layer", "head"])
    frame = frame.assign(delta=1.0, alpha_v=0.4, delta_g_v=0.1 * frame["layer"], delta_alpha_v=0.01 * frame["head"])
    return diagnostics.write_run(diagnostics.from_tables(name, frame), root)


@pytest.fixture
def in_notebooks(monkeypatch):
    monkeypatch.chdir(SCRIPT.parents[1])


def test_every_diagnostic_runs_on_every_family(tiny_family, tmp_path, in_notebooks, monkeypatch, capsys):
    if not any(name in tiny_family.name for name in ("qwen3-5", "idefics2")):  # figures of the others' tables are drawn below
        monkeypatch.setattr(Record, "figure", lambda *args, **options: None)
    scope = run(tmp_path, model=str(tiny_family), limit=3, draws=1, batch_size=8, pixels=48, export=str(tmp_path / "study"))
    grid = scope["gridded"]
    assert grid == ("idefics2" not in tiny_family.name)
    tables = {path.stem for path in (tmp_path / "tables").glob("*.parquet")}
    assert tables >= EVERYWHERE | (ON_A_GRID if grid else set())
    assert grid or not tables & ON_A_GRID
    assert ("without a grid" in capsys.readouterr().out) is not grid
    rope = read_table(tmp_path / "tables" / "rope.parquet")
    with_maps = {1, 3} if "qwen3-5" in tiny_family.name else set(range(scope["vlm"].n_layers))
    assert set(rope["layer"]) == with_maps
    verdicts = scope["run"].verdicts().set_index("claim")["verdict"]
    assert verdicts["rope.derivative"] == "holds"  # an identity, of any weights
    assert verdicts["psi.semantic"] != "holds" and verdicts["psi.spatial"] != "holds" and verdicts["positions.ids"] != "holds"
    assert len(list((tmp_path / "study").glob("*__sp-0/per_image/*.npz"))) == 3
    assert len(list((tmp_path / "study").glob("*__sp-0/vectors.npz"))) == 1


def test_pictures_of_ones_own_variants_and_answer_files(tiny_llava, tiny_llava_grouped, tmp_path, in_notebooks):
    folder = tmp_path / "pictures"
    folder.mkdir()
    from tiny import picture

    for i in range(3):
        picture(i, (60, 40)).save(folder / f"{i:012d}.png")
    for name, right in (("a", (True, True, True)), ("b", (True, False, False))):
        frame = pd.DataFrame({"id": ["x", "y", "z"], "correct": right})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    studied = [study_run(name, tmp_path / "study") for name in ("llava-v1.5-7b", "llava-v1.5-7b-normWmean")]
    scope = run(
        tmp_path / "out",
        model=str(tiny_llava),
        variants=str(tiny_llava_grouped),
        images=str(folder),
        prompt="what color is the circle ?",
        limit=2,
        draws=1,
        pixels=48,
        answers_in_place=str(tmp_path / "a.csv"),
        answers_permuted=str(tmp_path / "b.csv"),
        delta=-2.0,
        study_runs=" ".join(map(str, studied)),
    )
    tables = tmp_path / "out" / "tables"
    assert set(read_table(tables / "rope.parquet")["model"]) == {"tiny-llava", "tiny-llava-grouped"}
    assert read_table(tables / "psi_from_files.parquet")["psi"].iloc[0] == pytest.approx(2 / 3)
    assert set(scope["offline"]["example"]) <= {f"{i:012d}.png" for i in range(3)}
    assert read_table(tables / "compared.parquet")["run"].nunique() == 4
    figures = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert {"diagnostics-comparison", "comparison-as-published", "rope-curves", "balance-shares"} <= figures


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"limit": 1}, "limit is 1; it must be 0, or at least 2"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"draws": 0}, "draws is 0; it must be at least 1"),
        ({"seed": -1}, "seed"),
        ({"captions": "captions.json"}, "captions is 'captions.json'; it must be a file about the pictures of images"),
        ({"answers_in_place": "a.csv"}, "answers_permuted is ''; it must be given together"),
        ({"export": __file__}, "export is .*it must be a folder"),
        ({"study_runs": "nowhere__sp-0"}, "nowhere__sp-0"),
        ({"axis": "height"}, "height"),
        ({"variants": "lab-llava-vanilla lab-llava-vanilla"}, "two models are called the same"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_measured(tmp_path, in_notebooks, monkeypatch, parameters, message):
    monkeypatch.setattr(Record, "table", lambda *args, **options: pytest.fail("measured"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(tmp_path, model="lab-llava", **parameters)
