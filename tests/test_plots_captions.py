"""Figures of captions: what is drawn is what the table says, for every option, and no text runs into another."""

import numpy as np
import pandas as pd
import pytest
from caption_tables import CAPTION_FRAMES, arms_summary, correlations, perturbed_curves, picture_drops, pooled_correlations
from test_plots import assert_legible, texts

from spatialprobes import plots
from spatialprobes.plots import caption_prediction, captions, perturbation


@pytest.mark.parametrize(
    ("plot", "options"),
    [
        ("captions.scores", {"value": ["clipscore_100", "lab_where"], "chance": 0.5}),
        ("captions.scores", {"value": "lab_where", "width": "one", "empties": "left out"}),
        ("captions.scores", {"value": "empty"}),
        ("captions.drops", {"width": "one"}),
        ("perturbation.curves", {"x": "relative_error"}),
        ("perturbation.curves", {"x": "rank", "width": "one"}),
        ("perturbation.curves", {"x": "masked_share", "empties": "left out", "chance": 0.0}),
        ("perturbation.curves", {"x": "retained_energy"}),
        ("caption_prediction.forest", {"outcome": "bertscore_f1", "kind": "spearman", "rows": "all", "width": "one"}),
        ("caption_prediction.pooled", {"width": "one"}),
    ],
)
def test_every_option_is_legible(plot, options):
    assert_legible(plots.draw(plot, CAPTION_FRAMES[plot](), options))


def marks(ax, colour=None):
    """(x, y) of all marks of a panel that stand alone, NaN left out."""
    found = [
        (x, y)
        for line in ax.lines
        if line.get_marker() not in ("None", "") and (colour is None or line.get_color() == colour)
        for x, y in zip(np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float), strict=True)
    ]
    return sorted((x, y) for x, y in found if np.isfinite([x, y]).all())


def test_scores_are_where_the_table_says_and_arms_in_their_order():
    frame = arms_summary()
    (ax,) = captions.scores(frame.iloc[::-1], value="lab_where", empties="left out").axes
    own = frame[(frame["value"] == "lab_where") & (frame["empties"] == "left out")]
    np.testing.assert_allclose([x for x, _ in marks(ax)], sorted(own["estimate"]))
    assert [tick.get_text() for tick in ax.get_yticklabels()][:2] == ["live", "live, run again"] and ax.yaxis_inverted()
    spans = sorted(tuple(segment[:, 0]) for lines in ax.collections for segment in lines.get_segments())
    np.testing.assert_allclose(spans, sorted(zip(own["low"], own["high"], strict=True)))
    assert any("0–4 empty" in words for words, _ in texts(ax.figure))


def test_drops_say_r_and_n_of_the_drawn_pictures():
    frame = picture_drops()
    axes = captions.drops(frame).axes
    own = frame[(frame["arm"] == "reconstructed") & (frame["model"] == "lab-llava")].dropna()
    r = own["reproj_cosine"].corr(own["clipscore_100_drop"])
    assert axes[0].get_title() == f"lab-llava\nr = {r:.2f}, n = 149 (1 without both)".replace("-0", "−0")
    np.testing.assert_allclose(marks(axes[0]), sorted(zip(own["reproj_cosine"], own["clipscore_100_drop"], strict=True)))
    alike = frame.assign(reproj_cosine=frame["reproj_cosine"] * 0 + 1)
    assert "r: none, all alike" in captions.drops(alike).axes[0].get_title()
    with pytest.raises(ValueError, match="2 pictures of 'lab-llava'"):
        captions.drops(frame.head(2))
    with pytest.raises(ValueError, match="no rows with arm 'connector'; there: reconstructed, stored"):
        captions.drops(frame, arm="connector")


def test_curves_put_levels_in_panels_of_their_kind_and_empties_below():
    frame = perturbed_curves(("m",))
    figure = perturbation.curves(frame)
    above, below = figure.axes[:4], figure.axes[4:]
    assert [ax.get_title() for ax in above] == ["tokens masked", "low rank", "low rank by energy", "turned"]
    assert [ax.get_xscale() for ax in above] == ["linear", "log", "linear", "linear"]
    drop = frame[(frame["value"] == "clipscore_100_drop") & (frame["empties"] == "as 0")]
    ranks = drop[drop["kind"] == "low_rank"]
    np.testing.assert_allclose(marks(above[1]), sorted(zip(ranks["level"], ranks["estimate"], strict=True)))
    empty = frame[(frame["value"] == "empty") & (frame["kind"] == "orthogonal")]
    np.testing.assert_allclose(marks(below[3]), sorted(zip(empty["level"], empty["estimate"], strict=True)))
    (band,) = [patch for patch in above[0].patches if patch.get_height() == pytest.approx(1.4)]
    assert band.get_y() == pytest.approx(-0.6)  # the run again, from low to high
    lines = {line.get_linestyle() for line in perturbation.curves(frame, x="relative_error").axes[0].lines}
    assert len(lines) > 2  # kinds in one panel are told apart


def test_curves_leave_out_kinds_without_a_place_on_the_axis():
    frame = perturbed_curves(("m",))
    ax = perturbation.curves(frame, x="rank").axes[0]
    drop = frame[(frame["value"] == "clipscore_100_drop") & (frame["empties"] == "as 0") & frame["rank"].notna()]
    np.testing.assert_allclose(marks(ax), sorted(zip(drop["rank"], drop["estimate"], strict=True)))
    masks = frame[frame["kind"].isin(["mask_zero", "none"])]
    with pytest.raises(ValueError, match="no perturbation has a value of rank"):
        perturbation.curves(masks, x="rank")
    assert len(perturbation.curves(frame, value="empty").axes) == 4  # not below itself
    with pytest.raises(ValueError, match="x 'energy' is not one of level, rank"):
        perturbation.curves(frame, x="energy")
    with pytest.raises(ValueError, match="kind 'blur' is not one of none, rerun, mask_zero"):
        perturbation.curves(frame.replace({"kind": {"orthogonal": "blur"}}))
    with pytest.raises(ValueError, match="stands twice"):
        perturbation.curves(pd.concat([frame, frame]))


def test_numbers_on_a_log_axis_keep_their_distance():
    assert perturbation._apart([0.01, 0.05, 0.1, 0.2, 0.3, 0.5], 2) == [0.01, 0.05, 0.1, 0.2, 0.5]


def test_forest_draws_raw_and_partial_solid_where_they_are_sure():
    frame = correlations()
    ax = caption_prediction.forest(frame).axes[1]
    own = frame[(frame["model"] == "lab-idefics2") & (frame["kind"] == "pearson") & (frame["rows"] == "deduplicated")]
    np.testing.assert_allclose([x for x, _ in marks(ax)], sorted(own["r"]))
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    drawn = sorted(x for line in hollow for x in np.asarray(line.get_xdata(), float) if np.isfinite(x))
    np.testing.assert_allclose(drawn, sorted(own.loc[own["q"] >= 0.05, "r"]))
    assert len(marks(ax, "#000000")) == (own["controls"] == "").sum()
    everything = frame[frame["rows"] == "all"]
    assert any(words == "all pictures" for words, _ in texts(caption_prediction.forest(everything)))
    with pytest.raises(ValueError, match="no rows with outcome 'words'"):
        caption_prediction.forest(frame, outcome="words")


def test_pooled_and_within_stand_beside_one_another():
    frame = pooled_correlations()
    ax = caption_prediction.pooled(frame).axes[0]
    found = [x for x, _ in marks(ax)]
    np.testing.assert_allclose(found, sorted([*frame["pooled"], *frame["within"]]))
    assert sum(text.get_text() == "*" for text in ax.texts) == 1
    assert not caption_prediction.pooled(frame.assign(misleads=False)).axes[0].texts
