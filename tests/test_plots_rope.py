"""The RoPE figures: lines and cells are the table's, models are told apart by name, and what cannot be drawn is refused."""

import numpy as np
import pandas as pd
import pytest
from test_plots import assert_legible, phase, phase_by_delta, phase_by_head, phase_by_layer, phase_offline, texts

from spatialprobes import plots
from spatialprobes.plots import rope


def lines(ax):
    """The curves of a panel by their label, without the line at zero."""
    return {line.get_label(): line.get_xydata() for line in ax.get_lines() if not line.get_label().startswith("_")}


def test_curves_hold_the_tables_numbers_whatever_its_order():
    frame = phase_by_layer()
    figure = rope.curves(frame, labels={"lab-llava": "ours"})
    shuffled = rope.curves(frame.iloc[::-1].sort_values("layer", kind="stable"), labels={"lab-llava": "ours"})
    for drawn, order in ((figure, 1), (shuffled, -1)):
        for ax, value in zip(drawn.axes, list(dict.fromkeys(frame["value"]))[::order], strict=True):
            found = lines(ax)
            assert set(found) == {"ours", "a $20 model"}
            for model, label in (("lab-llava", "ours"), ("a $20 model", "a $20 model")):
                rows = frame[(frame["value"] == value) & (frame["model"] == model)]
                assert np.array_equal(found[label], rows[["layer", "mean"]].to_numpy())
    assert "a $20 model" in [words for words, _ in texts(figure)]  # not set as a formula


def test_heads_show_signs_around_zero_and_sizes_from_zero():
    frame = phase_by_head()
    frame.loc[0, "mean"] = -0.2
    signed = rope.heads(frame).axes[0].images[0]
    assert (signed.norm.vmin, signed.norm.vmax) == (-0.2, 0.2)
    assert np.array_equal(signed.get_array(), frame["mean"].to_numpy().reshape(3, 4))
    size = rope.heads(frame.assign(mean=frame["mean"].abs()))
    assert size.axes[0].images[0].norm.vmin == 0
    assert [label.get_text() for label in size.axes[0].get_yticklabels()] == ["3", "7", "11"]  # layers that have attention


def test_offline_has_a_panel_for_each_delta_and_a_line_for_each_way():
    frame = phase_offline()
    figure = rope.offline(frame)
    assert [ax.get_title() for ax in figure.axes] == [
        f"vision tokens {d} position{s}" for d, s in (("-1", ""), ("+1", ""), ("+2.5", "s"), ("+6", "s"))
    ]
    for ax, delta in zip(figure.axes, (-1.0, 1.0, 2.5, 6.0), strict=True):
        for value, label in rope.SHORT.items():
            rows = frame[(frame["value"] == value) & (frame["delta"] == delta)]
            assert np.array_equal(lines(ax)[label][:, 1], rows["mean"])


def test_a_sweep_of_models_is_told_apart_by_their_names():
    one = phase_by_delta().query("value == 'delta_alpha_v'")
    frame = pd.concat([one.assign(model="b$"), one.assign(model="a$", mean=one["mean"] / 2)])
    figure = plots.draw("rope.sweep", frame, {})
    assert_legible(figure)
    assert np.array_equal(lines(figure.axes[0])["a$"], np.stack([one["delta"], one["mean"] / 2], axis=1))


@pytest.mark.parametrize(
    ("draw", "frame", "message"),
    [
        (rope.curves, phase_by_layer().drop(columns="layer"), "needs the column 'layer'"),
        (rope.curves, phase(["delta_alpha_v"], layer=range(2), delta=[1.0, 2.0]), "holds 2 deltas"),
        (rope.curves, pd.concat([phase_by_layer()] * 2), "stands twice"),
        (rope.heads, phase(["g_v", "alpha_v"], layer=range(2), head=range(2)), "draws one value; the table has g_v, alpha_v"),
        (rope.heads, pd.concat([phase_by_head()] * 2), "layer 3, head 0, delta 1.0 stands twice"),
        (rope.offline, phase(["alpha_v"], layer=range(2), delta=[1.0]), "the table has 'alpha_v'"),
        (rope.sweep, phase(["alpha_v", "g_v"], model=["a", "b"], delta=[1.0]), "2 values of 2 models"),
    ],
)
def test_what_cannot_be_drawn_is_named(draw, frame, message):
    with pytest.raises(ValueError, match=message):
        draw(frame)


def test_a_label_for_a_model_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"a label for 'lab-lava'.*there: lab-llava"):
        rope.curves(phase_by_layer(), labels={"lab-lava": "ours"})
