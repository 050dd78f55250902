"""The study's files as they may be: cut, mixed up, keys without their zeros, older names; what is wrong is named with its row."""

import shutil

import audit_toy as toy
import numpy as np
import pandas as pd
import pytest

from spatialprobes.audit_files import gather
from spatialprobes.sources import connector_published as published
from spatialprobes.sources.connector_rows import Malformed

CAPTIONS = f"caption_compare_out_nor/lab-llava/{published.CAPTION_FILE}"
RECON = "recon_pre_eval/lab-llava/00001.csv"
LOWRANK = "perturb_out_scored/perturb_lab-llava_lowrank_0.1.csv"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    toy.write(root := tmp_path_factory.mktemp("written"))
    return root


@pytest.fixture
def root(written, tmp_path):
    return shutil.copytree(written, tmp_path / "run")


def rewrite(path, change):
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(frame)
    frame.to_csv(path, index=False)


def put(row, column, value):
    return lambda frame: frame.__setitem__(column, frame[column].where(frame.index != row, value))


def listed(root, file, found=None):
    """What is listed of a file: status and detail."""
    rows = (found or gather(root)).missing()
    return [(row["status"], row["detail"]) for row in rows.to_dict("records") if row["file"] == file]


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        (RECON, put(4, "mse_pre", "o.5"), "row 5: mse_pre 'o.5' is no finite number"),
        (RECON, put(4, "mse_pre", "inf"), "row 5: mse_pre 'inf' is no finite number"),
        (RECON, put(2, "model", "lab-qwen"), "row 3: model 'lab-qwen', in a file of 'lab-llava'"),
        (RECON, put(2, "shard", "7"), "row 3: shard '00007', in a file of '00001'"),
        (RECON, put(6, "key", "10001"), "row 7: key '000010001' stands there a second time"),
        (CAPTIONS, put(3, "clipscore_drop", "9"), "row 4: clipscore_drop is not clipscore_post_direct - clipscore_recon"),
        (CAPTIONS, put(1, "reproj_cosine_recon", ""), "row 2: reproj_cosine_recon '' is no finite number"),
        (CAPTIONS, lambda frame: frame.pop("clipscore_recon"), "line 1: no column 'clipscore_recon'; there: sample_id, key"),
        (LOWRANK, put(3, "clipscore_drop", "9"), "row 4: clipscore_drop is not clipscore_perturbed - clipscore_original"),
        (LOWRANK, put(3, "level", "0.2"), "row 4: level '0.2', in a file of '0.1'"),
        (LOWRANK, put(3, "mode", "mask"), "row 4: mode 'mask', in a file of 'lowrank'"),
        (LOWRANK, put(5, "clipscore_perturbed", ""), "row 6: clipscore_perturbed '' is no finite number"),
    ],
)
def test_a_malformed_row_is_named_and_the_rest_read(root, file, change, words):
    rewrite(root / file, change)
    found = gather(root)
    [(status, detail)] = listed(root, file, found)
    assert status == "malformed" and detail.startswith(words)
    assert (
        len(found.geometry) == 4
        and len(found.captions) == 2 - (file == CAPTIONS)
        and len(found.perturbed) == 8 - (file == LOWRANK)
    )


@pytest.mark.parametrize("file", [RECON, CAPTIONS, LOWRANK])
@pytest.mark.parametrize(("share", "words"), [(0.0, "cut short"), (0.6, "cut short")])
def test_a_truncated_file_is_named(root, file, share, words):
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: int(share * len(content))])
    assert [words in detail for status, detail in listed(root, file) if status == "malformed"] == [True]


def test_lines_that_csv_cannot_be_are_named(root):
    lines = (root / RECON).read_text().splitlines(keepends=True)
    (root / RECON).write_text("".join([*lines[:3], lines[3].rpartition(",")[0] + "\n", *lines[4:]]))
    assert listed(root, RECON) == [("malformed", "row 3: cosine_pre '' is no finite number")]
    (root / RECON).write_text("".join([*lines[:3], "a,b,c,d,e,f\n", *lines[4:]]))
    assert "line 4" in listed(root, RECON)[0][1]
    (root / RECON).write_text("".join([*lines[:3], '"00', *lines[4:]]))
    assert "EOF inside string starting at row 3" in listed(root, RECON)[0][1]
    (root / RECON).write_bytes("".join(lines).encode().replace(b"lab-llava", b"lab-ll\xe4va", 1))
    assert "not UTF-8" in listed(root, RECON)[0][1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content["top50"].pop("mean"), "top50.mean is None, no finite number"),
        (lambda content: content["dino_pre_top10"].update(std=float("nan")), "dino_pre_top10.std is nan, no finite number"),
        (lambda content: content["global"].pop("cosine_concentration"), "no object 'global.cosine_concentration'"),
        (lambda content: content["global"]["spectrum_and_rank"]["pre_summary"].update(mean_energy_spectrum_topn=[]),
         "mean_energy_spectrum_topn is no list of finite numbers"),
    ],
)  # fmt: skip
def test_a_malformed_overlap_file_names_the_key(root, change, words):
    path = toy.overlap_file(root)
    toy.edit_json(path, change)
    assert listed(root, path.relative_to(root).as_posix()) == [("malformed", words)]


def test_an_overlap_file_that_is_no_json_or_stands_twice_is_listed(root):
    path = toy.overlap_file(root)
    path.write_text(path.read_text()[:-40])
    assert "not JSON" in listed(root, path.relative_to(root).as_posix())[0][1]
    path.with_name("overlap_top100_cosine_torch.json").write_text("{}")
    rows = gather(root).missing()
    assert rows["detail"].str.contains("overlap_top100_cosine_torch.json and overlap_top100_l2_torch.json; keep one").any()


def test_keys_get_back_the_zeros_that_a_spreadsheet_took(root):
    before, _ = published.read_captions(root / CAPTIONS, "lab-llava")
    rewrite(root / CAPTIONS, lambda frame: frame.update(frame[["key", "folder_id"]].apply(lambda column: column.str.lstrip("0"))))
    after, _ = published.read_captions(root / CAPTIONS, "lab-llava")
    assert list(after["key"]) == list(before["key"]) and set(after["folder"]) == {"00001"}
    rewrite(root / CAPTIONS, lambda frame: frame.pop("sample_id"))
    alone, _ = published.read_captions(root / CAPTIONS, "lab-llava")
    assert list(alone["key"]) == list(before["key"])


def test_old_names_of_the_bert_columns_are_understood_and_said(root):
    before, _ = published.read_captions(root / CAPTIONS, "lab-llava")

    def old(frame):
        frame["bertscore_f1"] = frame.pop("bertscore_recon_vs_post_f1")
        for name in ("bertscore_post_vs_gt_f1", "bertscore_recon_vs_gt_f1"):
            frame.pop(name)

    rewrite(root / CAPTIONS, old)
    after, notes = published.read_captions(root / CAPTIONS, "lab-llava")
    np.testing.assert_array_equal(after["bertscore_recon_vs_post_f1"], before["bertscore_recon_vs_post_f1"])
    assert len(notes) == 1 and "bertscore_drop" not in after
    assert ("missing", "no column bertscore_post_vs_gt_f1: what is made of it is left empty") in listed(root, CAPTIONS)


def test_a_drop_from_the_ground_truth_is_computed_anew_and_said(root):
    before, _ = published.read_captions(root / CAPTIONS, "lab-llava")

    def without_compare(frame):
        loss = frame["clipscore_gt"].astype(float) - frame["clipscore_recon"].astype(float)
        frame["clipscore_drop"] = loss.astype(str)

    rewrite(root / CAPTIONS, without_compare)
    after, notes = published.read_captions(root / CAPTIONS, "lab-llava")
    np.testing.assert_allclose(after["clipscore_drop"], before["clipscore_drop"])
    assert len(notes) == 1 and "without --compare" in notes[0]


def test_empty_captions_may_lack_scores_and_others_not(root):
    path = root / "perturb_out_scored/perturb_lab-llava_mask_0.5.csv"
    assert published.read_perturbation(path)["empty"].sum() == 3
    rewrite(path, put(0, "caption_perturbed", "a red cup"))
    with pytest.raises(Malformed, match="row 1: clipscore_perturbed '' is no finite number"):
        published.read_perturbation(path)


def test_a_caption_that_reads_NA_is_a_caption(root):
    path = root / "perturb_out_scored/perturb_lab-llava_mask_0.5.csv"
    rewrite(path, put(5, "caption_perturbed", "NA"))
    assert published.read_perturbation(path)["empty"].sum() == 3


def test_what_is_missing_is_listed_by_model_and_folder(root):
    (root / RECON).unlink()
    (root / CAPTIONS).unlink()
    (root / LOWRANK).unlink()
    toy.overlap_file(root, folder="00001").unlink()
    toy.edit_json(toy.overlap_file(root), lambda content: content.pop("dino_post_top50"))
    rows = gather(root).missing()
    found = {(row["kind"], row["folder"], row["detail"].partition(",")[0]) for row in rows.to_dict("records")}
    assert set(rows["model"]) == {"lab-llava"} and set(rows["status"]) == {"missing"}
    of_kinds = {(kind, folder) for kind, folder, _ in found}
    assert of_kinds == {
        ("recon_pre_eval", "00001"),
        ("caption_compare_out_nor", ""),
        ("perturb_out_scored", ""),
        ("knn_out", "00001"),
        ("knn_out", "00000"),
    }
    assert ("perturb_out_scored", "", "lowrank 0.1") in found
    assert ("knn_out", "00000", "no dino_post_top50: left out for this model") in found


def test_captions_of_pictures_that_no_reconstruction_knows_are_counted(root):
    rewrite(root / RECON, put(3, "key", "000099999"))
    assert ("unmatched", "1 of 20 keys are in no recon_pre_eval file, the first '000010003'") in listed(root, CAPTIONS)


def test_sources_that_hold_nothing_say_what_would_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        gather(tmp_path / "gone")
    with pytest.raises(ValueError, match="none of knn_out, recon_pre_eval"):
        gather(tmp_path)
    (tmp_path / "sample/knn_out").mkdir(parents=True)
    with pytest.raises(ValueError, match="name no model"):
        gather(tmp_path)
    (tmp_path / "other/knn_out").mkdir(parents=True)
    with pytest.raises(ValueError, match="results in other and sample; name one"):
        gather(tmp_path)


def test_known_models_come_first_under_the_studys_names(tmp_path):
    for model in ("zeta", "qwen3.5", "llava", "lab-llava", "qwen2.5vl", "idefics2"):
        (tmp_path / "recon_pre_eval" / model).mkdir(parents=True)
    names = published.models(tmp_path)
    assert names == ["llava", "idefics2", "qwen2.5vl", "qwen3.5", "lab-llava", "zeta"]
    assert [published.label(name) for name in names] == ["LLaVA", "Idefics2", "Qwen-2.5-VL", "Qwen-3.5", "lab-llava", "zeta"]
