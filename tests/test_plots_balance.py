"""Figures of shares, head balance, hidden norms and maps: what is drawn stands where the table, and the picture, say."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image
from test_plots import assert_legible, attention_shares, entropies, head_balance, hidden_norms_by_layer, norm_ratios, texts

from spatialprobes import plots
from spatialprobes.examples import Example
from spatialprobes.families.frames import Frame, fit_picture
from spatialprobes.plots import balance, heatmap, hidden_norms
from spatialprobes.probes import grounding
from spatialprobes.vlm import VLM


def luminance(rgb):
    return np.asarray(rgb)[..., :3] @ [0.2126, 0.7152, 0.0722]


# --- shares ---


def test_bars_are_stacked_to_one_with_intervals_at_their_ends():
    frame = attention_shares()
    figure = balance.shares(frame)
    ax = figure.axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in ax.patches[:3]]
    assert np.ravel(bars).tolist() == pytest.approx([0, 0.7, 0.7, 0.22, 0.92, 0.08])
    lines = [segment[:, 0].tolist() for collection in ax.collections[:2] for segment in collection.get_segments()]
    assert np.ravel(lines).tolist() == pytest.approx([0.67, 0.73, 0.7 + 0.19, 0.7 + 0.25])
    assert [text.get_text() for text in ax.texts] == ["70", "22", "8"] * 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["system", "vision", "user"]


@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.parametrize("models", [1, 6])
def test_shares_are_legible(width, models):
    one = attention_shares().query("model == 'lab-llava'").drop(columns="model")
    frame = one if models == 1 else pd.concat([one.assign(model=f"model {i}, no system prompt") for i in range(models)])
    with plots.style():
        assert_legible(balance.shares(frame, width="two" if models > 1 else width))


def test_a_prompt_without_system_has_no_part_for_it():
    frame = attention_shares().query("model == 'lab-llava'")
    frame.loc[frame["group"] == "system", ["share", "low", "high"]] = 0.0
    frame.loc[(frame["comparison"] == "system, vision and user") & (frame["group"] == "vision"), "share"] = 0.92
    ax = balance.shares(frame).axes[0]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.92, 0.08])


def test_shares_refuse_what_is_no_division():
    with pytest.raises(ValueError, match=r"the shares of \('system, vision and user', 'lab-llava'\) sum to 1.1"):
        balance.shares(attention_shares().assign(share=lambda rows: rows["share"] + 0.1 * (rows.index == 0)))
    with pytest.raises(ValueError, match="'system' of 'lab-llava' stands twice"):
        balance.shares(pd.concat([attention_shares(), attention_shares()]))


# --- balance of heads ---


def test_heads_stand_at_their_layer_on_one_diverging_scale():
    frame = head_balance(5, 3)
    figure = balance.cmb(frame.sample(frac=1, random_state=0))
    panels = [ax for ax in figure.axes if ax.images]
    assert {ax.get_title() for ax in panels} == set(frame["model"])
    for ax in panels:
        image = ax.images[0]
        assert (image.norm.vmin, image.norm.vmax) == (0, 1)
        expected = frame[frame["model"] == ax.get_title()].sort_values(["layer", "head"])["cmb"].to_numpy().reshape(5, 3)
        np.testing.assert_allclose(image.get_array(), expected)
        assert ax.get_ylim()[0] > ax.get_ylim()[1]  # layer 0 on top


def test_balance_colours_lighten_to_the_middle_and_differ_at_the_ends():
    light = luminance(balance.BETWEEN(np.linspace(0, 1, 101)))
    assert (np.diff(light[:50]) > 0).all() and (np.diff(light[51:]) < 0).all() and light[50] > 0.9
    text, vision = balance.BETWEEN(0.25), balance.BETWEEN(0.75)
    assert text[0] > text[1] and vision[1] > vision[0]  # pink and green: told apart with any common colour blindness


def test_layers_without_attention_keep_the_numbers_of_the_others():
    frame = head_balance(8, 4, ["m"])
    figure = plots.draw("balance.cmb", frame[frame["layer"].isin([3, 7])], {})
    labels = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert labels == ["3", "7"] and figure.axes[0].images[0].get_array().shape == (2, 4)
    assert_legible(figure)


@pytest.mark.parametrize("layers, heads", [(1, 1), (2, 4), (32, 32), (80, 64)])
def test_heatmaps_of_all_sizes_are_legible(layers, heads):
    assert_legible(plots.draw("balance.cmb", head_balance(layers, heads), {}))


def test_balance_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match="layer 0, head 0 of 'lab-llava' stands twice"):
        balance.cmb(pd.concat([head_balance(), head_balance()]))
    with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
        balance.cmb(head_balance().assign(cmb=1.2))


# --- hidden norms ---


def test_curves_mark_the_row_after_the_norm_apart():
    frame = hidden_norms_by_layer(4)
    ax = hidden_norms.curves(frame).axes[0]
    stream, after = ax.lines[0], ax.lines[1]
    vision = frame[frame["group"] == "vision"]
    assert list(stream.get_xdata()) == [0, 1, 2, 3, 4]
    assert list(stream.get_ydata()) == vision.loc[vision["site"] == "stream", "norm"].tolist()
    assert list(after.get_ydata()) == vision.loc[vision["site"] == "final norm", "norm"].tolist()
    assert after.get_xdata()[0] > 4 and after.get_markerfacecolor() == "white"
    assert ax.get_xticklabels()[-1].get_text() == "after\nnorm" and ax.get_yscale() == "log"


def test_ratios_are_logs_and_lines_are_named():
    frame = norm_ratios(4)
    ax = hidden_norms.ratios(frame).axes[0]
    assert ax.lines[0].get_ydata()[0] == pytest.approx(np.log10(40))
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["a, mean of ratios", "b, mean of ratios", "a, ratio of means", "b, ratio of means"]
    alone = hidden_norms.ratios(frame[frame["model"] == "a"].drop(columns="model")).axes[0]
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["mean of ratios", "ratio of means"]


@pytest.mark.parametrize("layers", [1, 4, 32, 80])
def test_norms_by_layer_are_legible(layers):
    frame = hidden_norms_by_layer(layers)
    three = pd.concat([frame.assign(model=name) for name in ("LLaVA-1.5-7B", "+ Normalize", "+ Multilayer")])
    assert_legible(plots.draw("hidden_norms.curves", three, {}))
    assert_legible(plots.draw("hidden_norms.ratios", norm_ratios(layers), {}))
    assert_legible(plots.draw("hidden_norms.curves", frame[frame["site"] == "stream"], {}))


def test_norms_refuse_what_has_no_log():
    with pytest.raises(ValueError, match="a norm or the end of its interval is not above 0"):
        hidden_norms.curves(hidden_norms_by_layer().assign(low=0.0))
    with pytest.raises(ValueError, match="'vision' stands twice at layer 0, stream"):
        hidden_norms.curves(pd.concat([hidden_norms_by_layer()] * 2))
    with pytest.raises(ValueError, match="'mean_of_ratios' stands twice"):
        hidden_norms.ratios(norm_ratios().assign(model="a"))


# --- entropy ---


def test_entropies_stand_at_their_data_set():
    frame = entropies()
    ax = heatmap.entropy(frame).axes[0]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0.76, 0.81], [0.9, 0.89]]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["2DS  (n = 40)", "COCO  (n = 40)"]
    many = pd.concat([frame.assign(model=frame["model"] + str(i)) for i in range(3)])
    for width in ("one", "two"):
        assert_legible(plots.draw("heatmap.entropy", many, {"width": width}))
    with pytest.raises(ValueError, match="'2DS' of 'a' stands twice"):
        heatmap.entropy(pd.concat([frame, frame]))
    with pytest.raises(ValueError, match="outside"):
        heatmap.entropy(frame.assign(entropy=1.5))


# --- maps over pictures that are not square ---


def cells(rows, columns, frame, size, weight=None):
    """A map's table on a black picture of this size."""
    buffer = io.BytesIO()
    Image.new("RGB", size, "black").save(buffer, "png")
    at = [(i, j) for i in range(rows) for j in range(columns)]
    table = pd.DataFrame(at, columns=["row", "col"]).assign(example="a", word="w", png=buffer.getvalue())
    table["weight"] = np.arange(1.0, len(at) + 1) if weight is None else weight
    return table.assign(**dict(zip(heatmap.FRAME, (*frame.scale, *frame.shift), strict=True)))


def drawn_weight(ax, x, y):
    """The weight drawn at a place of the picture; None outside the map."""
    image = ax.images[1]
    left, right, lower, upper = image.get_extent()
    array = np.asarray(image.get_array())
    column, row = (x - left) / (right - left) * array.shape[1], (y - upper) / (lower - upper) * array.shape[0]
    inside = 0 <= column < array.shape[1] and 0 <= row < array.shape[0]
    return array[int(row), int(column)] if inside else None


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(["native", "pad", "crop", "squash"]),
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(0, 1000),
)
def test_a_cell_is_drawn_where_the_model_saw_it(fit, size, grid, seed):
    """Any fit, any shape of picture and grid: the place of a point in what the model sees picks the cell that is drawn there."""
    _, frame = fit_picture(Image.new("RGB", size), fit)
    if fit == "native":  # a processor's own centre crop
        side = min(size)
        frame = Frame.window((size[0] - side) / 2, (size[1] - side) / 2, side, side, *size)
    rows, columns = grid
    ax = heatmap.overlay(cells(rows, columns, frame, size)).axes[1]
    assert ax.get_xlim() == (0, 1) and ax.get_ylim() == (1, 0)
    for x, y in np.random.default_rng(seed).uniform(0, 1, (20, 2)):
        u, v = frame(x, y)
        if min(abs(u * columns - round(u * columns)), abs(v * rows - round(v * rows))) < 1e-6:
            continue
        seen = 0 <= u < 1 and 0 <= v < 1
        expected = int(v * rows) * columns + int(u * columns) + 1 if seen else None
        assert drawn_weight(ax, x, y) == expected


@pytest.mark.parametrize(
    "fit, corners",
    [  # of cell (0, 0) on a 2 x 2 grid over a picture of 80 x 40 pixels, in fractions: left, top, right, bottom
        ("pad", (0.0, -0.5, 0.5, 0.5)),
        ("crop", (0.25, 0.0, 0.5, 0.5)),
        ("squash", (0.0, 0.0, 0.5, 0.5)),
    ],
)
def test_corners_of_a_cell_by_hand(fit, corners):
    _, frame = fit_picture(Image.new("RGB", (80, 40)), fit)
    left, right, lower, upper = heatmap.overlay(cells(2, 2, frame, (80, 40))).axes[1].images[1].get_extent()
    assert (left, upper, (left + right) / 2, (upper + lower) / 2) == pytest.approx(corners)


def test_pixels_of_the_saved_figure_are_coloured_where_the_cell_is():
    """By pixels: of a cropped 80 x 40 picture only the middle half can be coloured, and the one heavy cell is."""
    _, frame = fit_picture(Image.new("RGB", (80, 40)), "crop")
    figure = plots.draw("heatmap.overlay", cells(2, 2, frame, (80, 40), weight=[0.0, 0.0, 0.0, 1.0]), {})
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    buffer.seek(0)
    pixels = plt.imread(buffer)
    box = figure.axes[1].get_position()
    height, width = pixels.shape[:2]

    def at(x, y):
        return pixels[int((1 - box.y1 + y * box.height) * height), int((box.x0 + x * box.width) * width), :3]

    assert at(0.62, 0.75)[0] - at(0.62, 0.75)[2] > 0.2  # red, in the lower right cell
    for x in (0.1, 0.9):
        assert np.ptp(at(x, 0.5)) < 0.02  # cropped away: grey
    assert luminance(at(0.62, 0.75)) < luminance(at(0.4, 0.25))


@pytest.mark.parametrize("fit", ["native", "pad", "crop", "squash"])
def test_a_models_map_of_a_wide_picture_lies_where_its_spans_say(tiny_llava, fit):
    """From the picture to the figure: the heaviest cell is drawn where `Spans.cell` finds it."""
    vlm = VLM.load(str(tiny_llava), image_fit=fit)
    wide = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 80, 3), dtype=np.uint8))
    one = Example("a", wide, "is the red circle left or right of the blue square ?")
    table = grounding.measure(vlm, [one], {"a": ["circle"]}, layers=[1])
    buffer = io.BytesIO()
    wide.save(buffer, "png")
    ax = heatmap.overlay(table.assign(png=buffer.getvalue())).axes[1]
    spans = vlm.encode([one]).spans[0]
    weights = table.set_index(["row", "col"])["weight"]
    seen = set()
    for x, y in np.random.default_rng(0).uniform(0, 1, (40, 2)):
        cell = spans.cell(x, y)
        seen.add(cell)
        assert drawn_weight(ax, x, y) == (None if cell is None else weights[cell])
    assert (None in seen) == (fit in ("native", "crop")) and len(seen) > 10
    assert ("on padding" in ax.get_xlabel()) == (fit == "pad")


def test_what_lies_on_padding_is_said():
    _, frame = fit_picture(Image.new("RGB", (80, 40)), "pad")
    weight = np.repeat([0.5, 0.2, 0.2, 0.1], 4) / 4  # rows 0 and 3 of 4 are padding
    figure = plots.draw("heatmap.overlay", cells(4, 4, frame, (80, 40), weight), {})
    assert "60% on padding" in [words for words, _ in texts(figure)]
    assert_legible(figure)


def test_colours_of_maps_darken_with_weight_over_any_grey():
    ramp = heatmap._ramp()(np.linspace(0, 1, 64))
    for grey in (0.0, 0.4, 0.7, 1.0):
        over = ramp[:, :3] * ramp[:, 3:] + grey * (1 - ramp[:, 3:])
        light = luminance(over)
        assert (np.diff(light) < 0).all() and light[-1] < light[0] - 0.2


def test_frames_that_are_none_are_refused():
    table = cells(2, 2, Frame(), (80, 40))
    with pytest.raises(ValueError, match=r"heatmap.overlay needs the column 'scale_y'"):
        heatmap.overlay(table.drop(columns="scale_y"))
    with pytest.raises(ValueError, match="scale or shift differs within a panel"):
        heatmap.overlay(table.assign(scale_x=[1.0, 1.0, 1.0, 2.0]))
    for wrong in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="a scale is not above 0"):
            heatmap.overlay(table.assign(scale_x=wrong))


def test_meanings_have_one_colour_in_all_figures():
    assert balance.TINTS["vision"] == plots.COLOURS["vision"] == hidden_norms.LOOKS["vision"][0]
    assert balance.TINTS["user"] == plots.COLOURS["text"] == hidden_norms.LOOKS["user"][0]
    assert balance.TINTS["system"] == hidden_norms.LOOKS["system"][0]
    assert to_rgb(balance.TINTS["system"])
