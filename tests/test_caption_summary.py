"""Drops and means of scores: one sign, empty captions counted, intervals over pictures."""

import numpy as np
import pandas as pd
import pytest

from spatialprobes.probes.caption_summary import EMPTIES, counted, drops, summary
from spatialprobes.stats import bootstrap


def scored():
    """4 pictures in 3 clusters; masking empties one caption, breaks another, and makes one better."""
    columns = ["key", "cluster", "model", "arm", "words", "empty", "clipscore_100", "lab_relations"]
    rows = [
        ("a", "p", "m", "live", 8, False, 30.0, 1.0),
        ("b", "p", "m", "live", 8, False, 20.0, 0.5),
        ("c", "q", "m", "live", 16, False, 10.0, 0.0),
        ("d", "r", "m", "live", 0, True, 0.0, np.nan),
        ("a", "p", "m", "mask", 0, True, 0.0, np.nan),
        ("b", "p", "m", "mask", 9, False, 25.0, 0.5),
        ("c", "q", "m", "mask", 4, False, 4.0, np.nan),
        ("d", "r", "m", "mask", 8, False, 12.0, 1.0),
    ]
    return pd.DataFrame(rows, columns=columns).assign(cut=False, same=[*[True] * 4, *[False] * 4])


def test_a_drop_is_the_originals_minus_the_changed_and_above_zero_is_worse():
    found = drops(scored().iloc[::-1])  # in any order
    mask = found[found["arm"] == "mask"].set_index("key").sort_index()
    assert mask["clipscore_100_drop"].tolist() == [30, -5, 6, -12] and mask["clipscore_100_base"].tolist() == [30, 20, 10, 0]
    assert mask["words_change"].tolist() == [-8, 1, -12, 8] and mask["words_changed"].tolist() == [8, 1, 12, 8]
    assert mask["empty_base"].tolist() == [False, False, False, True]
    assert (found[found["arm"] == "live"]["clipscore_100_drop"] == 0).all()
    assert mask["lab_relations_drop"].isna().tolist() == [True, False, True, True]


def test_models_are_kept_apart():
    other = scored().assign(model="other", clipscore_100=lambda rows: rows["clipscore_100"] * 2)
    found = drops(pd.concat([scored(), other], ignore_index=True))
    by = found[found["arm"] == "mask"].groupby("model")["clipscore_100_drop"].sum()
    assert by["other"] == 2 * by["m"] == 38


def test_empty_captions_count_as_0_or_are_left_out_and_are_counted_either_way():
    frame = drops(scored())
    rows = summary(frame, n=200).set_index(["arm", "value", "empties"])
    mask = rows.loc["mask"]
    assert mask.loc[("clipscore_100", "as 0"), "estimate"] == pytest.approx((0 + 25 + 4 + 12) / 4)
    assert mask.loc[("clipscore_100", "left out"), "estimate"] == pytest.approx((25 + 4 + 12) / 3)  # survivors look better
    assert mask.loc[("clipscore_100_drop", "as 0"), "estimate"] == pytest.approx((30 - 5 + 6 - 12) / 4)
    assert mask.loc[("clipscore_100_drop", "left out"), "estimate"] == pytest.approx((-5 + 6) / 2)  # neither side empty
    assert mask.loc[("lab_relations", "as 0"), "estimate"] == pytest.approx(1.5 / 4)  # what states nothing is not right
    assert mask.loc[("lab_relations", "left out"), "estimate"] == pytest.approx(1.5 / 2)
    assert mask.loc[("lab_relations_drop", "as 0"), "estimate"] == pytest.approx((1 + 0 + 0 - 1) / 4)
    assert mask.loc[("empty", "as 0"), "estimate"] == 0.25 and mask.loc[("words", "as 0"), "estimate"] == 5.25
    assert (mask["empty"] == 1).all() and ("empty", "left out") not in mask.index
    assert mask.loc[("clipscore_100", "left out"), "n"] == 3 and mask.loc[("clipscore_100", "as 0"), "clusters"] == 3


def test_an_empty_caption_does_not_make_up_a_score_that_nothing_has():
    """The original is not compared with itself: its BERTScore is missing, also where its caption is empty."""
    frame = drops(scored().assign(bertscore_f1=[np.nan] * 4 + [0.0, 0.9, 0.5, 0.0]))
    rows = summary(frame, ["bertscore_f1"], n=200)
    assert rows["arm"].unique().tolist() == ["mask"]
    assert rows["estimate"].tolist() == [pytest.approx(1.4 / 4), pytest.approx(1.4 / 3)]


def test_intervals_are_over_pictures():
    frame = drops(scored())
    found = summary(frame, ["clipscore_100"], n=500, seed=3).set_index(["arm", "empties"]).loc[("mask", "as 0")]
    own = frame[frame["arm"] == "mask"]
    expected = bootstrap(own["clipscore_100"], own["cluster"], n=500, seed=3)
    assert (found["low"], found["high"]) == (expected.low, expected.high)
    one = summary(frame[frame["cluster"] == "q"], ["clipscore_100"])
    assert one["low"].isna().all() and one["estimate"].notna().all()  # one picture says nothing of pictures
    shares = summary(frame, ["same"], n=200).set_index("arm")
    assert shares.loc["live", "estimate"] == 1 and shares.loc["live", "low"] < 1  # all agree, of three pictures


def test_groups_and_columns_are_as_asked():
    frame = drops(scored())
    whole = summary(frame, ["clipscore_100"], by=("model",), n=200)
    assert whole["estimate"].tolist() == [pytest.approx(101 / 8), pytest.approx(101 / 6)] and whole["n"].tolist() == [8, 6]
    with pytest.raises(ValueError, match="no column 'f1'; the table has key"):
        summary(frame, ["f1"])
    with pytest.raises(ValueError, match="no rows of arm 'stored'; there: live, mask"):
        drops(frame, base="stored")
    with pytest.raises(ValueError, match="arm 'live' holds the key 'a' twice"):
        drops(pd.concat([scored(), scored()]))
    with pytest.raises(ValueError, match="empties='no' is unknown"):
        counted(frame, "clipscore_100", "no")
    assert EMPTIES == ("as 0", "left out")
