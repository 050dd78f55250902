"""The notebook of section 4: every cell runs on a random model of each family with a grid."""

from functools import partial

import pytest
from notebook_cells import run_cells

from spatialprobes import paths
from spatialprobes.record import Record

SCRIPTS = paths.root() / "notebooks" / "scripts"
notebook = partial(run_cells, SCRIPTS / "04_attention_heads.py")
TABLES = {"answers", "map_scores", "map_summary", "binding", "bind_worth", "as_published", "seed_maps", "text_split",
          "corner_effects", "corner_matrix", "corner_counts", "corner_worth", "spatial_words"}  # fmt: skip


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
