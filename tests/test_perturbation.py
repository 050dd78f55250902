"""Perturbed captions: what is put in is what the axes say, baselines are made once, batches change nothing."""

import numpy as np
import pandas as pd
import pytest
import torch

from spatialprobes.features_edit import drawn_mask, rotation
from spatialprobes.intervene import intervene, low_rank, masked, rotated
from spatialprobes.probes import captions, perturbation
from spatialprobes.probes.caption_summary import drops
from spatialprobes.probes.perturbation import AXES, STUDY, Perturbation, curves, measure, perturbed, plan, rank_of_level
from spatialprobes.tables import save_table
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_captions import lab_captioned

PLANNED = plan(mask_zero=(0.0, 0.5), mask_mean=(1.0,), low_rank=(0.1, 3, 1.0), low_rank_energy=(0.9,), orthogonal=(0.0, 1.0))


@pytest.fixture(scope="module")
def lab():
    return VLM.load("lab-llava")


@pytest.fixture(scope="module")
def scenes():
    return lab_captioned(4, 41)


@pytest.fixture(scope="module")
def found(lab, scenes):
    return measure(lab, scenes, PLANNED, seed=5, batch_size=3, max_new_tokens=24)


def of(frame, arm):
    return frame[frame["arm"] == arm].reset_index(drop=True)


def test_one_row_a_setting_and_picture(found, scenes):
    assert found["arm"].drop_duplicates().tolist() == ["live", "rerun", *(one.arm for one in PLANNED)]
    assert (found.groupby("arm")["key"].apply(list).map(lambda keys: keys == [one.id for one in scenes])).all()
    kinds = found.drop_duplicates("arm").set_index("arm")[["kind", "level"]]
    assert kinds.loc["live"].tolist() == ["none", 0.0] and kinds.loc["low_rank 3"].tolist() == ["low_rank", 3.0]
    assert set(AXES) | {"kind", "tokens_seen", *captions.COLUMNS} == set(found.columns)


def test_settings_that_change_nothing_give_the_same_captions(found):
    live = of(found, "live")["caption"].tolist()
    for arm in ("rerun", "mask_zero 0", "low_rank 1", "orthogonal 0"):
        rows = of(found, arm)
        assert rows["caption"].tolist() == live and rows["same"].all() and (rows["relative_error"] == 0).all()
    for arm in ("mask_mean 1", "orthogonal 1"):
        assert not of(found, arm)["same"].any()


def test_captions_are_those_of_the_same_interventions_by_name(found, lab, scenes):
    edits = {
        "mask_zero 0.5": masked(0.5, 5),
        "mask_mean 1": masked(1.0, 5, "mean"),
        "low_rank 3": low_rank(3),
        "low_rank 0.1": low_rank(share=0.1),
        "low_rank_energy 0.9": low_rank(energy=0.9),
        "orthogonal 1": rotated(1.0, 5),
    }
    for arm, edit in edits.items():
        with intervene(lab, features=edit):
            expected = captions.arms(lab, scenes, rerun=False, batch_size=4, max_new_tokens=24)[
                "caption"
            ].tolist()  # in other batches
        assert of(found, arm)["caption"].tolist() == expected


def test_axes_say_what_was_put_in(found, lab, scenes):
    features = dict(zip([one.id for one in scenes], lab.vision_features(scenes), strict=True))
    for _, row in found[~found["kind"].isin(["none", "rerun"])].iterrows():
        x = features[row["key"]].double()
        assert row["tokens_seen"] == 36
        s = torch.linalg.svdvals(x - x.mean(0))
        if row["kind"].startswith("low_rank"):
            rank = int(row["rank"])
            kept, lost = (s[:rank] ** 2).sum(), (s[rank:] ** 2).sum()
            assert row["retained_energy"] == pytest.approx(float(kept / (kept + lost)), abs=1e-6)
            assert row["relative_error"] == pytest.approx(float(lost.sqrt() / x.norm()), abs=1e-5)
            if row["kind"] == "low_rank_energy":
                assert row["retained_energy"] >= 0.9 > float((s[: rank - 1] ** 2).sum() / (s**2).sum())
        elif row["kind"] == "mask_zero":
            mask = drawn_mask(36, row["level"], 5, row["key"])
            assert row["masked_share"] == pytest.approx(float(mask.double().mean()))
            assert row["relative_error"] == pytest.approx(float(x[mask].norm() / x.norm()), abs=1e-6)
        elif row["kind"] == "orthogonal" and row["level"] == 1:
            assert row["relative_error"] == pytest.approx(float((x - x @ rotation(128, 5)).norm() / x.norm()), abs=1e-5)
            assert np.isnan(row["rank"]) and np.isnan(row["retained_energy"]) and row["masked_share"] == 0
    ranks = found.groupby("arm")["rank"].unique()
    assert ranks["low_rank 0.1"] == [4] and ranks["low_rank 3"] == [3] and ranks["low_rank 1"] == [36]


def test_batches_and_order_change_no_number(lab, scenes, found):
    again = measure(lab, scenes[::-1], PLANNED, seed=5, batch_size=4, rerun=False, max_new_tokens=24)
    by = ["arm", "key"]
    one, other = (frame.set_index(by).sort_index() for frame in (found[found["arm"] != "rerun"], again))
    assert one["caption"].equals(other["caption"])
    pd.testing.assert_frame_equal(one[list(AXES)], other[list(AXES)], atol=1e-5)


def test_another_seed_draws_other_masks(lab, scenes):
    few = plan(mask_zero=(0.5,))
    one, other = (measure(lab, scenes, few, seed=seed, rerun=False, max_new_tokens=1)["masked_share"] for seed in (5, 6))
    assert one.tolist() != other.tolist()


def test_a_resumed_run_gives_the_same_bytes_and_makes_the_baseline_once(lab, scenes, found, tmp_path, monkeypatch):
    real, made = captions.generate, []
    few, options = plan(mask_zero=(0.5,), low_rank=(3,)), {"seed": 5, "batch_size": 3, "max_new_tokens": 24}

    def counted(vlm, chunk, **settings):
        if len(made) == 7:
            made.append("killed")
            raise KeyboardInterrupt
        made.append(len(chunk))
        return real(vlm, chunk, **settings)

    monkeypatch.setattr(captions, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        measure(lab, scenes, few, store=tmp_path / "kept", **options)
    resumed = measure(lab, scenes, few, store=tmp_path / "kept", **options)
    assert len(made) - 1 == 2 + 4 + 2 * len(few)  # each batch once: baseline, rerun in other batches, every setting
    whole = found[found["arm"].isin(["live", "rerun", *(one.arm for one in few)])]
    save_table(whole.sort_values(["level", "kind"], kind="stable")[list(resumed.columns)], tmp_path / "whole.parquet", {})
    save_table(resumed.sort_values(["level", "kind"], kind="stable"), tmp_path / "resumed.parquet", {})
    assert (tmp_path / "whole.parquet").read_bytes() == (tmp_path / "resumed.parquet").read_bytes()


def test_every_family_is_perturbed(tiny_family):
    vlm = VLM.load(str(tiny_family))
    asked = [one for one in lab_captioned(2, 3)]
    frame = measure(vlm, asked, plan(mask_zero=(1.0,), low_rank=(0.2,)), max_new_tokens=3, rerun=False)
    (tokens,) = set(frame["tokens_seen"].dropna())
    assert tokens == len(vlm.vision_features(asked)[0])
    assert of(frame, "low_rank 0.2")["rank"].tolist() == [max(1, round(0.2 * tokens))] * 2
    assert of(frame, "mask_zero 1")["relative_error"].tolist() == [1.0, 1.0]


def test_curves_hold_the_mean_axes_of_each_setting(found):
    frame = drops(found.assign(clipscore_100=np.arange(len(found), dtype=float)))
    table = curves(frame, ["clipscore_100_drop", "empty"], n=200)
    rows = table[(table["kind"] == "mask_zero") & (table["level"] == 0.5) & (table["value"] == "empty")]
    own = of(found, "mask_zero 0.5")
    assert rows["masked_share"].tolist() == [pytest.approx(own["masked_share"].mean())] and rows["n"].tolist() == [4]
    assert rows["relative_error"].tolist() == [pytest.approx(own["relative_error"].mean())]
    assert len(table) == (2 + len(PLANNED)) * 3  # drops twice, as 0 and left out, and empties once
    assert table[table["kind"] == "none"]["retained_energy"].eq(1).all()


def test_the_studys_plan_is_its_own():
    assert [one.arm for one in STUDY[:3]] == ["mask_zero 0.3", "mask_zero 0.5", "mask_zero 0.7"]
    assert [rank_of_level(one.level, 576, 4096) for one in STUDY[3:]] == [6, 29, 58, 115, 173, 288]
    assert rank_of_level(7, 36, 128) == 7 and rank_of_level(500, 36, 128) == 36


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("mask", 0.5, "kind='mask' is unknown; one of mask_zero"),
        ("mask_zero", 1.5, "level=1.5 is not a share from 0 to 1"),
        ("low_rank", 0.0, "level=0.0 is not a share above 0"),
        ("low_rank", 2.5, "is above 1 and no whole number"),
        ("low_rank_energy", 2.0, "level=2.0 is not a share above 0"),
        ("orthogonal", float("nan"), "level=nan is not a share"),
    ],
)
def test_what_is_no_perturbation_is_refused(kind, level, message):
    with pytest.raises(ValueError, match=message):
        Perturbation(kind, level)


def test_plans_are_neither_empty_nor_twice(lab, scenes):
    with pytest.raises(ValueError, match="the plan is empty"):
        plan()
    with pytest.raises(ValueError, match=r"low_rank 0\.5 stands twice"):
        measure(lab, scenes, plan(low_rank=(0.5, 0.5)))
    with pytest.raises(ValueError, match="seed=-1"):
        measure(lab, scenes, STUDY, seed=-1)


def test_alike_and_single_tokens_lose_nothing_at_any_rank():
    for x in (torch.ones(5, 7), torch.randn(1, 7)):
        changed, facts = perturbed(x, Perturbation("low_rank", 0.2), 0, "a")
        torch.testing.assert_close(changed, x)
        assert facts["retained_energy"] == 1 and facts["relative_error"] < 1e-6 and facts["rank"] == 1
    assert np.isnan(perturbation.relative_error(torch.zeros(2, 2), torch.ones(2, 2)))
