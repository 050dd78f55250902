"""The notebooks of section 5: every cell runs on a random model of each family, and what they refuse is refused at once."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from notebook_cells import run_cells

from spatialprobes import paths
from spatialprobes.record import Record
from spatialprobes.worlds.lab import picture, scene

SCRIPTS = paths.root() / "notebooks" / "scripts"
geometry = partial(run_cells, SCRIPTS / "05_connector_geometry.py")
captions = partial(run_cells, SCRIPTS / "06_connector_captions.py")
SMALL = {"masks": "0.5", "ranks": "0.1", "rotations": "1", "max_new_tokens": 4, "limit": 40, "batch_size": 40}


@pytest.fixture(autouse=True)
def in_notebooks(monkeypatch):
    monkeypatch.chdir(SCRIPTS.parent)
    monkeypatch.setattr(Record, "figure", lambda *args, **options: None)


def test_geometry_runs_on_every_family(tiny_family, tmp_path):
    scope = geometry(tmp_path, model=str(tiny_family), compare="", limit=100, references="lab-clip", side=48)
    tables = {path.stem for path in (tmp_path / "tables").glob("*.parquet")}
    assert {"overlaps", "overlap_summary", "reference_summary", "spectra", "similarity", "where_what", "planted_copies"} <= tables
    assert len(scope["keys"]) == 100 and set(scope["overlaps"]["comparison"]) == {"pre", "pre_normed"}
    verdicts = scope["run"].verdicts().set_index("claim")["verdict"]
    assert {"geometry.kept", "geometry.toward", "geometry.norm_site", "geometry.where_what"} <= set(verdicts.index)
    sites = scope["ranks"].pivot(index="key", columns="site", values="effective_rank")
    assert np.isfinite(sites).all().all() and not np.allclose(sites["pre"], sites["pre_normed"])


def test_captions_run_on_every_family(tiny_family, tmp_path):
    scope = captions(tmp_path, model=str(tiny_family), **SMALL)
    put_back = scope["scored"].set_index(["arm", "key"])["caption"].unstack("arm")
    assert (put_back["stored"] == put_back["live"]).all()  # the very tokens put back give the very caption
    assert {"captions", "caption_summary", "perturbed", "perturbation_curves", "prediction"} <= {
        path.stem for path in (tmp_path / "tables").glob("*.parquet")
    }
    assert {"captions.noise", "captions.identity", "captions.low_rank"} <= set(scope["run"].verdicts()["claim"])


@pytest.fixture
def folder(tmp_path):
    """Pictures in two folders, a copy of one in the other, captions beside some, and one that cannot be read."""
    there = tmp_path / "pictures"
    for i in range(100):
        place = there / f"0000{i % 2}" / f"{i:09d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        picture(scene(77, i)).save(place, quality=95)
        if i % 3 == 0:
            place.with_suffix(".txt").write_text("a red circle left of a blue square .")
    (there / "00001" / "000000200.jpg").write_bytes((there / "00000" / "000000000.jpg").read_bytes())
    (there / "00000" / "000000300.jpg").write_bytes(b"no picture")
    return there


def test_a_folder_of_pictures_stands_in_for_the_lab(folder, tmp_path):
    scope = geometry(tmp_path / "run", compare="", data=str(folder), references="lab-clip", gallery="folder", limit=101, ks="5")
    assert len(scope["keys"]) == 101 and [one.example for one in scope["unreadable"]] == ["00000/000000300.jpg"]
    assert (scope["many"] > 1).sum() == 2
    assert set(scope["overlaps"]["folder"]) == {"00000", "00001"} and scope["overlaps"]["gallery_size"].max() <= 51
    told = captions(tmp_path / "captions", data=str(folder), request="describe the picture .", **SMALL)
    assert told["scored"]["clipscore_gt"].notna().groupby(told["scored"]["key"]).first().between(0, 1).all()
    assert told["scored"]["clipscore_gt"].notna().any() and "lab_recall" not in told["scored"]
    study = pd.read_csv(next((tmp_path / "captions" / "study" / "perturb_out_scored").glob("*mask*.csv")), dtype={"key": str})
    assert study["key"].str.len().eq(9).all()


def test_a_job_of_several_does_its_own_share(tmp_path):
    scope = geometry(tmp_path, compare="", references="lab-clip", limit=100, batch_size=25, shards="1/2", ks="5")
    assert [key.rpartition("-")[2] for key in scope["keys"]] == [str(i) for i in (*range(25, 50), *range(75, 100))]


@pytest.mark.parametrize(
    ("name", "value"),
    [("ks", "5 fifty"), ("ks", "500"), ("shards", "2/2"), ("metric", "l1"), ("limit", 5), ("size", "huge"), ("prepare", "white"),
     ("data", "/nowhere"), ("reconstructor", "/nowhere"), ("near_copies", 0.0)],
)  # fmt: skip
def test_geometry_refuses_what_it_cannot_do(name, value, tmp_path):
    with pytest.raises(ValueError, match=name):
        geometry(tmp_path, **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("masks", "half"), ("masks", "2"), ("ranks", "0"), ("k", 0), ("k", 100), ("limit", 5), ("size", "huge"), ("metric", "l1"),
     ("published", "/nowhere"), ("connector", "/nowhere")],
)  # fmt: skip
def test_captions_refuse_what_they_cannot_do(name, value, tmp_path):
    with pytest.raises(ValueError, match=name):
        captions(tmp_path, **{name: value})
