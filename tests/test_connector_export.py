"""A run of ours in the connector study's layout: the study's own names and columns, and what is read back is what was written."""

import json
from collections import Counter

import audit_toy as toy
import numpy as np
import pandas as pd
import pytest

from spatialprobes import audit_geometry
from spatialprobes.probes import connector_export, neighbours, spectra
from spatialprobes.sources import connector_published as published


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    return root, toy.write(root)


def shape(content, name=""):
    """Every key of a JSON object with its parents, and whether a number, a list or a word stands there."""
    if isinstance(content, dict):
        return set().union(*(shape(value, f"{name}.{key}") for key, value in content.items()))
    return {(name, "number" if isinstance(content, int | float) else type(content).__name__)}


def test_overlap_files_have_every_key_of_the_studys(real_data, tmp_path):
    pairs = ("pre_post", *(f"{ref}_{side}" for ref in ("clip", "dino", "dinov3") for side in ("pre", "post")))
    rng = np.random.default_rng(0)
    connector_export.geometry(tmp_path, "lab-llava", toy.overlaps(rng, pairs), *toy.spectra(rng), toy.distances(rng, pairs))
    theirs = real_data / "vlm_connectors/sample/knn_out/llava/00000/overlap_top100_l2_torch.json"
    ours = toy.overlap_file(tmp_path)
    assert shape(json.loads(ours.read_text())) == shape(json.loads(theirs.read_text()))


def test_csv_files_have_the_studys_columns(run, real_data):
    root, _ = run
    sample = real_data / "vlm_connectors/sample"
    for ours, theirs in (
        ("recon_pre_eval/lab-llava/00000.csv", "recon_pre_eval/llava/00000.csv"),
        (
            f"caption_compare_out_nor/lab-llava/{published.CAPTION_FILE}",
            f"caption_compare_out_nor/llava/{published.CAPTION_FILE}",
        ),
        ("perturb_out_scored/perturb_lab-llava_lowrank_0.1.csv", "perturb_out_scored/perturb_llava_lowrank_0.1.csv"),
    ):
        assert list(pd.read_csv(root / ours, nrows=1)) == list(pd.read_csv(sample / theirs, nrows=1))


def test_geometry_read_back_is_what_was_written(run):
    root, tables = run
    assert published.models(root) == sorted(toy.MODELS)
    for model in toy.MODELS:
        own = tables[model]
        for folder, n in toy.SIZES.items():
            found = published.read_geometry(published.geometry_files(root, model)[folder])
            assert found.n == n and Counter(found.knors).total() == len(toy.PAIRS) * len(toy.KS)
            here = [key.startswith(f"{folder}/") for key in toy.pictures()]
            for of in toy.PAIRS:
                frame = own["overlaps"][of]
                for k in toy.KS:
                    rows = frame[frame["key"].str.startswith(f"{folder}/") & (frame["k"] == k)]
                    assert found.values[f"{of}_knor{k}_mean"] == pytest.approx(rows["knor"].mean())
                    assert found.values[f"{of}_knor{k}_std"] == pytest.approx(rows["knor"].std(ddof=0))
                    assert found.values[f"{of}_displacement{k}_mean"] == pytest.approx(rows["displacement"].mean())
                assert found.values[f"{of}_pairwise_corr"] == own["distances"][of, folder]
            for side in ("pre", "post"):
                frame = own["spectra"][side][here]
                for name in (*published.SCALARS, *published.COSINES):
                    assert found.values[f"{side}_{name}_median"] == pytest.approx(frame[name].median())
                energy = own["singular_values"][side][here] ** 2
                listed = found.spectra[found.spectra["side"] == side]
                np.testing.assert_allclose(listed["energy"], (energy / energy.sum(1, keepdims=True)).mean(0))
                np.testing.assert_allclose(listed["singular_value"], own["singular_values"][side][here].mean(0))
                assert list(listed["component"]) == list(range(1, 17))


def test_per_image_tables_hold_each_pictures_numbers(run):
    root, tables = run
    table = published.read_per_image(toy.overlap_file(root).with_name(published.PER_IMAGE)).set_index("key")
    assert list(table.index) == [key[6:15] for key in toy.pictures() if key.startswith("00000/")]
    frame = tables["lab-llava"]["overlaps"]["dino_post"]
    row = frame[(frame["key"] == "00000/000000007.jpg") & (frame["k"] == 50)].iloc[0]
    assert table.loc["000000007", "dino_post_knor50"] == pytest.approx(row["knor"])
    scalars = tables["lab-llava"]["spectra"]["post"].set_index("key")
    assert table.loc["000000007", "post_k90_energy"] == pytest.approx(scalars.loc["00000/000000007.jpg", "k90_energy"])


def test_summary_of_folders_is_that_of_the_pictures(run):
    """Means and deviations pooled from folders are those over all pictures at once, for unequal folders."""
    root, tables = run
    found = {
        ("lab-llava", folder): published.read_geometry(path)
        for folder, path in published.geometry_files(root, "lab-llava").items()
    }
    row = audit_geometry.knn_summary(audit_geometry.folder_table(found, {})).iloc[0]
    frame = tables["lab-llava"]["overlaps"]["pre_post"]
    for k in toy.KS:
        knor = frame.loc[frame["k"] == k, "knor"]
        assert row[f"pre_post_knor{k}_mean"] == pytest.approx(knor.mean())
        assert row[f"pre_post_knor{k}_std"] == pytest.approx(knor.std(ddof=1))
    rank = tables["lab-llava"]["spectra"]["post"]["effective_rank"]
    assert row["post_effective_rank_std"] == pytest.approx(rank.std(ddof=1))
    assert row["n"] == sum(toy.SIZES.values()) and row["post_max_rank"] == 16


def test_captions_read_back_with_one_sign(run):
    root, tables = run
    frame = tables["lab-llava"]["captions"]
    path = root / "caption_compare_out_nor/lab-llava" / published.CAPTION_FILE
    found, notes = published.read_captions(path, "lab-llava")
    stored, made = (frame[frame["arm"] == arm].reset_index(drop=True) for arm in ("stored", "reconstructed"))
    assert notes == [] and list(found["key"]) == [key[6:15] for key in stored["key"]] and set(found["folder"]) == {"00001"}
    np.testing.assert_allclose(found["clipscore_drop"], stored["clipscore_100"] - made["clipscore_100"])
    np.testing.assert_allclose(found["bertscore_drop"], stored["bertscore_gt_f1"] - made["bertscore_gt_f1"])
    np.testing.assert_allclose(found["reproj_mse_recon"], made["reproj_mse"])
    assert list(found["words_recon"]) == [len(text.split()) for text in made["caption"]]


def test_perturbations_read_back_with_the_same_sign_and_without_scores_of_nothing(run):
    root, tables = run
    frame = tables["lab-llava"]["perturbed"]
    files = {
        (one["mode"], float(one["level"])): path
        for one, path in published.perturbation_files(root)
        if one["model"] == "lab-llava"
    }
    assert set(files) == {("lowrank", 0.1), ("lowrank", 0.5), ("mask", 0.5), ("none", 0.0)}
    found = published.read_perturbation(files["mask", 0.5])
    before, after = (frame[frame["kind"] == kind].reset_index(drop=True) for kind in ("none", "mask_zero"))
    loss = before["clipscore_100"] - after["clipscore_100"]
    assert found["empty"].tolist() == [True] * 3 + [False] * (len(found) - 3)
    assert found["clipscore_drop"][:3].isna().all() and found["clipscore_perturbed"][:3].isna().all()
    np.testing.assert_allclose(found["clipscore_drop"][3:], loss[3:])
    raw = pd.read_csv(files["mask", 0.5])
    np.testing.assert_allclose(raw["clipscore_drop"][3:], -loss[3:])  # as the study's scorer has it


def test_what_probes_measure_can_be_exported(tmp_path):
    rng = np.random.default_rng(0)
    keys = [f"{folder}/{i:03d}{folder}" for folder in ("a", "b") for i in range(16)]
    pre, post = rng.standard_normal((32, 6, 5)), rng.standard_normal((32, 4, 7))
    overlap = neighbours.measure(pre.mean(1), post.mean(1), keys, ks=(3, 5), gallery="folder")
    found = {side: spectra.collect(x, keys) for side, x in (("pre", pre), ("post", post))}
    tables, values = (
        {side: one.table() for side, one in found.items()},
        {side: one.singular_values for side, one in found.items()},
    )
    paths = connector_export.geometry(
        tmp_path, "m", {"pre_post": overlap}, tables, values, {("pre_post", "a"): 0.1, ("pre_post", "b"): 0.2}
    )
    assert [path.relative_to(tmp_path).as_posix() for path in paths[::2]] == [
        f"knn_out/m/{folder}/overlap_top5_l2_torch.json" for folder in "ab"
    ]
    read = published.read_geometry(paths[2])
    mine = overlap[overlap["folder"] == "b"]
    assert read.values["pre_post_knor5_mean"] == pytest.approx(mine.loc[mine["k"] == 5, "knor"].mean())
    assert read.values["post_effective_rank_mean"] == pytest.approx(tables["post"]["effective_rank"][16:].mean())


@pytest.mark.parametrize(
    ("key", "folder", "stem"),
    [
        ("00000/000010000.jpg", "00000", "000010000"),
        ("scene 3", "all", "scene 3"),
        ("a/b/c.d.PNG", "a", "c.d"),
        ("v1.5", "all", "v1.5"),
    ],
)
def test_pictures_are_named_by_folder_and_stem(key, folder, stem):
    assert connector_export.place(key) == (folder, stem)


def test_bad_input_is_named(tmp_path):
    rng = np.random.default_rng(0)
    overlaps, (tables, values), distances = toy.overlaps(rng), toy.spectra(rng), toy.distances(rng)
    with pytest.raises(ValueError, match="model 'a_b'"):
        connector_export.geometry(tmp_path, "a_b", overlaps, tables, values, distances)
    fewer = overlaps | {"dino_pre": overlaps["dino_pre"][overlaps["dino_pre"]["key"] != "00000/000000003.jpg"]}
    with pytest.raises(
        ValueError, match=r"overlaps of dino_pre: 1 keys are not in both tables, among them '00000/000000003\.jpg'"
    ):
        connector_export.geometry(tmp_path, "m", fewer, tables, values, distances)
    with pytest.raises(ValueError, match=r"none of 'dino_post' in folder '00001'"):
        connector_export.geometry(
            tmp_path, "m", overlaps, tables, values, {key: 0.0 for key in distances if key != ("dino_post", "00001")}
        )
    with pytest.raises(ValueError, match="singular values of post: 3 rows, 44 pictures"):
        connector_export.geometry(tmp_path, "m", overlaps, tables, values | {"post": values["post"][:3]}, distances)
    frame = toy.reconstruction(rng)
    with pytest.raises(ValueError, match=r"mse of '00000/000000002\.jpg' is not finite"):
        connector_export.reconstruction(tmp_path, "m", frame.assign(mse=frame["mse"].where(frame.index != 2)))
    with pytest.raises(ValueError, match="two pictures are called '000000001'"):
        connector_export.reconstruction(
            tmp_path, "m", frame.assign(key=["a/000000001.jpg", "b/000000001.jpg", *frame["key"][2:]])
        )
    arms = toy.captions(rng)
    with pytest.raises(ValueError, match="no captions of arm stored"):
        connector_export.captions(tmp_path, "m", arms[arms["arm"] == "reconstructed"])
    changed = toy.perturbed(rng)
    with pytest.raises(ValueError, match="perturbation 'blur' has no name"):
        connector_export.perturbation(tmp_path, "m", changed.replace({"kind": {"mask_zero": "blur"}}), seed=0)
