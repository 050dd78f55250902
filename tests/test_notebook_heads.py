"""The notebook of section 4: every cell runs on a random model of each family with a grid, and on the real files."""

from functools import partial

import pytest
from notebook_cells import run_cells

from spatialprobes import paths
from spatialprobes.answers import answer
from spatialprobes.record import Record
from spatialprobes.sources import head_results
from spatialprobes.stats import bootstrap
from spatialprobes.vlm import VLM
from spatialprobes.worlds import shapeworld_examples, shapeworld_files

SCRIPTS = paths.root() / "notebooks" / "scripts"
notebook = partial(run_cells, SCRIPTS / "04_attention_heads.py")
TABLES = {"answers", "map_scores", "map_summary", "binding", "bind_worth", "as_published", "seed_maps", "text_split",
          "corner_effects", "corner_matrix", "corner_counts", "corner_worth", "spatial_words"}  # fmt: skip
SHAPEWORLD = "lab-llava-shapeworld"


@pytest.fixture
def in_notebooks(monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)


def test_every_experiment_runs_on_every_family_with_a_grid(tiny_family, tmp_path, in_notebooks, monkeypatch):
    if "idefics" in tiny_family.name:
        with pytest.raises(ValueError, match="no grid"):
            notebook(tmp_path, model=str(tiny_family), limit=8, batch_size=16, feed_size=48, draws=1)
        return
    monkeypatch.setattr(Record, "figure", lambda *args, **options: None)
    scope = notebook(tmp_path, model=str(tiny_family), limit=8, batch_size=16, feed_size=48, draws=1)
    assert {path.stem for path in (tmp_path / "tables").glob("*.parquet")} >= TABLES
    verdicts = scope["run"].verdicts().set_index("claim")["verdict"]
    holding = [name for name in ("heads.bind", "cause.bind", "corners.specific", "cause.corner") if verdicts[name] == "holds"]
    assert not holding  # random weights bind nothing


@pytest.fixture(scope="module")
def real(real_data):
    """Accuracy on the real worlds, both ways around, and on as many generated ones as leave little doubt."""
    vlm = VLM.load(SHAPEWORLD)
    found = {}
    for name, examples in {
        "real": shapeworld_files.read(real_data / "shapeworld").examples,
        "generated": shapeworld_examples.examples(1000, seed=9_000_001),
    }.items():
        table = answer(vlm, examples)
        found[name] = bootstrap(table["correct"].to_numpy(float), table["cluster"].to_numpy(), bounds=(0, 1))
    return found


def test_a_model_of_generated_worlds_knows_the_real_ones(real):
    assert real["real"].n == 300 and real["real"].estimate >= 0.8


def test_the_generator_is_as_hard_as_the_real_worlds(real):
    assert abs(real["generated"].estimate - real["real"].estimate) <= 0.05


def test_the_four_experiments_run_on_the_real_files(real_data, tmp_path, in_notebooks, monkeypatch):
    monkeypatch.setattr(Record, "figure", lambda *args, **options: None)
    scope = notebook(
        tmp_path, model=SHAPEWORLD, data=str(real_data / "shapeworld"), corners=str(real_data / "corners"), limit=10, draws=2
    )
    assert scope["there"] == ["topleft", "bottomright"] and len(scope["shown"]) == 10
    assert scope["run"].verdicts().set_index("claim").loc["maps.binding", "verdict"] in ("holds", "inconclusive", "fails")
    again = head_results.read(tmp_path / "study" / "head_diff_stats_topleft")
    assert again.pairs == 8 and not again.problems  # as many of each corner as the quick size asks
