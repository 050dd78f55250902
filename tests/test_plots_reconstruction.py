"""Figures and summaries of reconstruction: what is drawn and averaged is what the tables say."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from reconstruction_tables import PARTS, means, pictures
from test_plots import assert_legible

from spatialprobes import plots
from spatialprobes.plots import reconstruction
from spatialprobes.probes.reconstruction_summary import raw_r2, summary


@pytest.mark.parametrize("measure", ["r2", "mse", "cosine"])
def test_scores_puts_points_and_intervals_where_the_table_says(measure):
    frame = means()
    shown = frame[frame["measure"] == measure]
    ax = plots.draw("reconstruction.scores", frame, {"measure": measure}).axes[0]
    for line, by in zip(ax.lines, ("reconstructor", "linear", "mean"), strict=True):
        assert list(line.get_xdata()) == pytest.approx(list(shown.loc[shown["by"] == by, "value"]))
    ends = [s[:, 0] for c in ax.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    assert np.allclose(sorted(map(tuple, ends)), sorted(map(tuple, shown[["low", "high"]].to_numpy())))
    heights = [y for line in ax.lines for y in line.get_ydata()]
    assert np.diff(sorted(heights)).min() > 0.1  # no two in one place
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "trained on (n = 1,735)" and labels[-2:] == ["lab-llava", "a $20 model of quite some length"]


def test_scores_of_one_nameless_model_have_no_heading():
    frame = means()
    figure = plots.draw("reconstruction.scores", frame[frame["model"] == "lab-llava"].assign(model=""), {})
    assert len(figure.axes[0].get_yticklabels()) == 3
    assert_legible(figure)


def test_scores_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="no rows of measure 'r3'; there: r2, mse, cosine"):
        reconstruction.scores(means(), measure="r3")
    with pytest.raises(ValueError, match="'reconstructor' of 'lab-llava', 'train', stands twice"):
        reconstruction.scores(pd.concat([means(), means()]))


def test_distributions_have_the_tables_medians_and_equal_areas():
    frame = pictures()
    figure = plots.draw("reconstruction.distributions", frame, {})
    for ax, (_, rows) in zip(figure.axes, frame.groupby("model", sort=False), strict=True):
        medians = rows.groupby("part", sort=False)["r2"].median()
        upright = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) == 0]
        assert upright[:3] == pytest.approx(list(medians[list(PARTS)]))
        for patch in ax.patches:
            outline = patch.get_xy()
            area = abs(np.trapezoid(outline[:, 1], outline[:, 0]))
            assert area == pytest.approx(1, rel=0.02)
    assert len(figure.axes[0].patches) == 3


@pytest.mark.parametrize("count", [1, 4])
def test_distributions_are_legible_for_any_number_of_models_and_where_all_are_alike(count):
    frame = pictures(20, models=[f"model {i} with a rather long name" for i in range(count)])
    assert_legible(plots.draw("reconstruction.distributions", frame, {}))
    assert_legible(plots.draw("reconstruction.distributions", frame.assign(r2=0.5), {}))
    with pytest.raises(ValueError, match="'r2' is nowhere a finite number"):
        reconstruction.distributions(frame.assign(r2=np.nan))


def measured(n=30):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"key": [f"{i}" for i in range(n)], "part": ["train"] * 20 + ["new"] * (n - 20)})
    for column in ("mse", "mse_mean", "mse_linear", "cosine", "cosine_mean", "cosine_linear", "error_raw", "deviation_raw"):
        frame[column] = rng.uniform(0.1, 1.0, n)
    return frame.assign(r2=1 - frame["mse"], r2_linear=1 - frame["mse_linear"])


def test_summary_is_the_means_of_each_part_and_reader():
    frame = measured()
    found = summary(frame, clusters=np.arange(30) // 2).set_index(["part", "by", "measure"])
    for part, of in frame.groupby("part"):
        assert found.loc[(part, "reconstructor", "mse"), "value"] == pytest.approx(of["mse"].mean())
        assert found.loc[(part, "mean", "r2"), "value"] == pytest.approx(1 - of["mse_mean"].mean())
        assert found.loc[(part, "linear", "cosine"), "value"] == pytest.approx(of["cosine_linear"].mean())
        assert (found.loc[part, "n"] == len(of)).all() and (found.loc[part, "clusters"] == len(of) // 2).all()
    assert ((found["low"] < found["value"]) & (found["value"] < found["high"])).all()
    two = summary(pd.concat([frame.assign(model="a"), frame.assign(model="b", mse=0.5, r2=0.5)]))
    assert set(two["model"]) == {"a", "b"} and len(two) == 2 * len(found)
    fixed = two[(two["model"] == "b") & (two["by"] == "reconstructor") & (two["measure"] == "mse")]
    assert (fixed["low"] == 0.5).all() and (fixed["high"] == 0.5).all()
    for wrong, message in ((frame.iloc[:0], "no rows"), (frame, "29 cluster labels for 30 rows")):
        with pytest.raises(ValueError, match=message):
            summary(wrong, clusters=np.arange(29) if len(wrong) else None)


def test_raw_variance_explained_pools_pictures():
    frame = measured()
    found = raw_r2(frame).set_index("part")
    for part, of in frame.groupby("part"):
        assert found.loc[part, "r2_raw"] == pytest.approx(1 - of["error_raw"].sum() / of["deviation_raw"].sum())
        assert found.loc[part, "n"] == len(of)
