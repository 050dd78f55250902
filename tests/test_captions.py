"""Arms of captions: controls change nothing, what is put in shows, and a run that was killed gives the same bytes."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import examples

from spatialprobes.answers import generate
from spatialprobes.examples import Example
from spatialprobes.fingerprints import FingerprintError
from spatialprobes.probes import captions
from spatialprobes.probes.caption_store import CaptionStore, digest
from spatialprobes.probes.captions import arms, cleaned, folder_of, reprojection, requested
from spatialprobes.prompts import PromptError
from spatialprobes.tables import save_table
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_captions import lab_captioned


@pytest.fixture(scope="module")
def lab():
    return VLM.load("lab-llava")


@pytest.fixture(scope="module")
def scenes():
    return lab_captioned(7, 31)


@pytest.fixture(scope="module")
def post(lab, scenes):
    return dict(zip([one.id for one in scenes], lab.vision_features(scenes), strict=True))


@pytest.fixture(scope="module")
def found(lab, scenes, post):
    others = dict(zip(post, [*list(post.values())[1:], next(iter(post.values()))], strict=True))
    return arms(lab, scenes, post=post, post_hat=others, batch_size=4)


def arm(frame, name):
    return frame[frame["arm"] == name].reset_index(drop=True)


def test_one_row_an_arm_and_picture_with_every_column(found, scenes):
    assert found.columns.tolist() == [*captions.COLUMNS, "reproj_mse", "reproj_cosine"]
    assert found["arm"].drop_duplicates().tolist() == ["live", "rerun", "stored", "reconstructed"]
    for _, rows in found.groupby("arm"):
        assert rows["key"].tolist() == [one.id for one in scenes]
    assert (found["words"] == found["caption"].str.split().str.len()).all()
    assert (found["tokens"] == found["words"] + 1).all()  # whole words, and the end
    assert not found["empty"].any() and not found["cut"].any() and set(found["model"]) == {"lab-llava"}


def test_live_captions_are_those_of_generate(found, lab, scenes):
    assert arm(found, "live")["caption"].tolist() == generate(lab, scenes, 64)["text"].tolist()


def test_controls_change_nothing_and_another_pictures_features_give_its_caption(found):
    live = arm(found, "live")["caption"].tolist()
    assert arm(found, "stored")["caption"].tolist() == live == arm(found, "rerun")["caption"].tolist()
    assert arm(found, "reconstructed")["caption"].tolist() == [*live[1:], live[0]]
    assert arm(found, "stored")["same"].all() and arm(found, "live")["same"].all()
    assert arm(found, "reconstructed")["same"].tolist() == [a == b for a, b in zip(live, [*live[1:], live[0]], strict=True)]
    assert not arm(found, "reconstructed")["same"].all()


def test_reprojection_is_in_raw_units_over_tokens(found, post):
    one, other = (x.numpy().astype(float) for x in list(post.values())[:2])
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    row = arm(found, "reconstructed").iloc[0]
    assert row["reproj_mse"] == pytest.approx(((one - other) ** 2).mean()) and row["reproj_cosine"] == pytest.approx(
        cosines.mean()
    )
    assert arm(found, "stored")["reproj_mse"].isna().all()
    assert reprojection(one, one) == (0.0, pytest.approx(1.0))
    with pytest.raises(ValueError, match=r"\(35, 128\).*do not compare"):
        reprojection(one[:35], one)


def test_every_family_is_captioned_from_stored_features(tiny_family):
    vlm = VLM.load(str(tiny_family))
    asked = [one for one in examples(3, pictures=3)]
    features = dict(zip([one.id for one in asked], vlm.vision_features(asked), strict=True))
    swapped = dict(zip(features, reversed(features.values()), strict=True))
    frame = arms(vlm, asked, post=features, connector=swapped, max_new_tokens=4, batch_size=3)
    assert arm(frame, "stored")["caption"].tolist() == arm(frame, "live")["caption"].tolist()
    by_hand = dict(zip(features, reversed([one.image for one in asked]), strict=True))
    shown = [Example(one.id, by_hand[one.id], one.question) for one in asked]
    assert arm(frame, "connector")["caption"].tolist() == generate(vlm, shown, 4)["text"].tolist()
    assert arm(frame, "live")["cut"].any()  # a random model seldom ends


def test_pictures_without_a_request_are_refused_or_asked(lab, scenes):
    bare = [Example(one.id, one.image) for one in scenes[:2]]
    with pytest.raises(PromptError):
        arms(lab, bare, rerun=False)
    asked = requested(bare, scenes[0].question)
    assert arms(lab, asked, rerun=False)["caption"].tolist() == arms(lab, scenes[:2], rerun=False)["caption"].tolist()
    assert requested(bare)[0].question.startswith("Describe this image in one detailed sentence")


def test_what_does_not_align_is_named(lab, scenes, post):
    with pytest.raises(ValueError, match="no arm to caption"):
        arms(lab, scenes, live=False, rerun=False)
    few = dict(list(post.items())[:5])
    with pytest.raises(ValueError, match=r"arm 'stored': no features for 2 of 7 pictures, 'lab-captioned-31-5'"):
        arms(lab, scenes, post=few)
    with pytest.raises(ValueError, match="two examples have the id"):
        arms(lab, [scenes[0], scenes[0]])


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>is it ?\nyes</think> a red circle . ", "a red circle ."),
        ("a <think>b</think>c<think>d", "a c"),
        ("", ""),
    ],
)
def test_thoughts_are_no_caption(text, left):
    assert cleaned(text) == left


def test_folders_are_the_first_part_of_a_key():
    assert [folder_of(key) for key in ("00003/000030001.jpg", "a/b/c.png", "000010000")] == ["00003", "a", ""]


# ---- resuming ----
class Killed(Exception):
    pass


def killed_after(batches, monkeypatch):
    """Generating dies at the batch after so many."""
    real, left = captions.generate, [batches]

    def dying(*args, **options):
        if not left[0]:
            raise Killed
        left[0] -= 1
        return real(*args, **options)

    monkeypatch.setattr(captions, "generate", dying)


def test_a_killed_run_goes_on_and_gives_the_same_bytes(lab, scenes, post, found, tmp_path, monkeypatch):
    options = {"post": post, "batch_size": 4}
    for done in (1, 3, 0):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_after(done, patch)
            arms(lab, scenes, store=tmp_path / "kept", **options)
    assert len(list(tmp_path.glob("kept/*/*.parquet"))) == 4
    with monkeypatch.context() as patch:
        killed_after(4, patch)  # of 2 + 4 + 2 batches four are there
        resumed = arms(lab, scenes, store=tmp_path / "kept", **options)
        again = arms(lab, scenes, store=tmp_path / "kept", **options)  # all are there
    whole = arms(lab, scenes, **options)
    for name, frame in (("resumed", resumed), ("again", again), ("whole", whole)):
        save_table(frame, tmp_path / f"{name}.parquet", {})
    assert (tmp_path / "resumed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert (tmp_path / "again.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    pd.testing.assert_frame_equal(whole, found[found["arm"] != "reconstructed"][list(whole.columns)], check_dtype=True)


def test_captions_of_something_else_are_not_taken(lab, scenes, post, tmp_path, monkeypatch):
    few = scenes[:2]
    kept = arms(lab, few, post=post, live=False, rerun=False, store=tmp_path)
    other = {key: x + 3 for key, x in post.items()}
    changed = arms(lab, few, post=other, live=False, rerun=False, store=tmp_path)
    assert changed["caption"].tolist() != kept["caption"].tolist()  # the features differ, so it is another batch
    assert len(list(tmp_path.glob("stored/*.parquet"))) == 2
    with pytest.raises(FingerprintError, match="max_new_tokens is 64 there, 8 here"):
        arms(lab, few, post=post, store=tmp_path, max_new_tokens=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no captions"):
        CaptionStore(tmp_path / "full", {})


def test_a_truncated_batch_is_named(lab, scenes, tmp_path):
    arms(lab, scenes[:2], rerun=False, store=tmp_path)
    (path,) = tmp_path.glob("live/*.parquet")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=path.name):
        arms(lab, scenes[:2], rerun=False, store=tmp_path)


def test_digests_tell_arrays_apart():
    x = torch.arange(6.0).reshape(2, 3)
    same = {digest(["a"], [one]) for one in (x, x.numpy(), x.bfloat16().float())}
    assert len(same) == 1
    others = [digest(["a"], [x.reshape(3, 2)]), digest(["a"], [x + 1]), digest(["b"], [x]), digest(["a"]), digest(["a", ""], [x])]
    assert len({*same, *others}) == 6
