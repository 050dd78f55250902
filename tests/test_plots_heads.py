"""Figures of attention heads and maps: what is drawn is what the table says, for small and large models, on one scale."""

import head_tables as tables
import numpy as np
import pandas as pd
import pytest
from head_tables import HEAD_FRAMES
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from test_plots import assert_legible, texts

from spatialprobes import plots
from spatialprobes.plots import ablation, head_looks, head_maps, heads, spatial_words, text_only


def words(figure):
    return [text for text, _ in texts(figure)]


def grids(figure):
    return [ax for ax in figure.axes if len(ax.images) == 1]


def drawn_points(ax, marker=None):
    lines = [line for line in ax.lines if len(line.get_xdata()) == 1 and (marker is None or line.get_marker() == marker)]
    return {(round(float(line.get_xdata()[0]), 9), round(float(line.get_ydata()[0]), 9)) for line in lines}


@pytest.mark.parametrize("plot", sorted(HEAD_FRAMES))
def test_one_column_is_legible(plot):
    assert_legible(plots.draw(plot, HEAD_FRAMES[plot](), {"width": "one"}))


@pytest.mark.parametrize(
    ("plot", "frame"),
    [
        ("heads.effects", lambda: tables.corner_effects(32, 32)),
        ("heads.counts", lambda: tables.top_counts(28, 28)),
        ("heads.binding", lambda: tables.bound_heads(40, 40)),
        ("head_maps.by_layer", lambda: tables.metrics_by_layer(32)),
        ("text_only.split", lambda: tables.text_parts(28, 28)),
    ],
)
def test_a_model_of_7_billion_is_legible(plot, frame):
    assert_legible(plots.draw(plot, frame(), {}))


@pytest.mark.parametrize("plot", ["heads.selectivity", "heads.stability", "spatial_words.differences"])
@pytest.mark.parametrize("width", ["one", "two"])
@pytest.mark.filterwarnings("error")
def test_one_row_has_room(plot, width):
    figure = plots.draw(plot, HEAD_FRAMES[plot]().iloc[:1], {"width": width})
    figure.canvas.draw()
    assert figure.axes[0].get_window_extent().height > 0.3 * figure.dpi


@pytest.mark.parametrize("plot", ["head_maps.by_layer", "head_maps.real_and_shuffled", "heads.effects", "heads.binding"])
def test_a_table_of_categories_draws_the_same(plot):
    """The scores' texts are categories, each column with its own, which pandas compares with no other's."""
    frame = HEAD_FRAMES[plot]()
    there = [name for name in frame if isinstance(frame[name].iloc[0], str)]
    coded = frame.astype(dict.fromkeys(there, "category"))
    coded["role" if "role" in there else "asked"] = coded["role" if "role" in there else "asked"].cat.add_categories("more")
    figures = [plots.draw(plot, table, {}) for table in (coded, frame)]
    assert words(figures[0]) == words(figures[1])
    for one, other in zip(*(figure.axes for figure in figures), strict=True):
        for ours, plain in zip(one.lines, other.lines, strict=True):
            np.testing.assert_array_equal(ours.get_xydata(), plain.get_xydata())


# --- heads ---


def test_effects_put_each_head_in_its_cell_on_one_scale_around_zero():
    frame = tables.corner_effects(5, 4)
    figure = heads.effects(frame, region="region")
    own = frame[(frame["asked"] == frame["corner"]) & (frame["region"] == "region")]
    most = own["effect"].abs().max()
    for ax, corner in zip(grids(figure), tables.CORNERS, strict=True):
        image = ax.images[0]
        assert (image.norm.vmin, image.norm.vmax) == (-most, most)
        for row in own[own["asked"] == corner].itertuples():
            assert image.get_array()[row.layer, row.head] == row.effect
        marked = own[(own["asked"] == corner) & (own["q"] < 0.05)]
        dots = {(x, y) for line in ax.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)}
        assert dots == set(zip(marked["head"], marked["layer"], strict=True)) and len(dots) == 1
        assert f"asked: {head_looks.CORNERS[corner]}  (n = 100)\n1 of 20 heads at q < .05" == ax.get_title()
    assert "attention on the asked corner, full − control (share)" in " ".join(" ".join(words(figure)).split())
    figure = heads.effects(frame, value="d")
    assert grids(figure)[0].images[0].norm.vmax == pytest.approx(
        frame.loc[(frame["asked"] == frame["corner"]) & (frame["region"] == "all"), "d"].abs().max()
    )


def test_effects_refuse_what_they_do_not_show():
    frame = tables.corner_effects()
    with pytest.raises(ValueError, match="value 'size' is not one of effect, d"):
        heads.effects(frame, value="size")
    with pytest.raises(ValueError, match="no rows with region 'left'; there: all, region"):
        heads.effects(frame, region="left")
    with pytest.raises(ValueError, match="no rows where the object is in the asked corner"):
        heads.effects(frame[frame["asked"] != frame["corner"]])
    with pytest.raises(ValueError, match="layer 0, head 0 stands twice"):
        heads.effects(pd.concat([frame, frame]))


def test_layers_without_attention_are_left_out_and_keep_their_numbers():
    frame = tables.corner_effects(8, 4)
    figure = heads.effects(frame[frame["layer"] % 2 == 1])
    ax = grids(figure)[0]
    assert ax.images[0].get_array().shape == (4, 4)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["1", "3", "5", "7"]


def test_counts_are_white_at_chance_and_as_far_to_both_sides():
    figure = heads.counts(tables.top_counts(4, 8))
    norm = grids(figure)[0].images[0].norm
    assert norm(37.5) == 0.5 and norm(100) == 1 and norm(0) > 0
    red, green, blue, _ = head_looks.DIVERGING(float(norm(37.5)))
    assert min(red, green, blue) > 0.95
    with pytest.raises(ValueError, match="2 levels of chance"):
        heads.counts(pd.concat([tables.top_counts(), tables.top_counts(n=90)]))


def test_binding_says_what_it_subtracts():
    own = tables.bound_heads().query("role == 'subject'").drop(columns=["role", "target"]).assign(own=2.0, other=1.0)
    assert any("own box − the other's" in " ".join(one.split()) for one in words(heads.binding(own)))
    assert any("above chance" in one for one in words(heads.binding(tables.bound_heads(), value="above")))
    assert any("shuffled" in one for one in words(heads.binding(tables.bound_heads())))
    asked = tables.bound_heads().query("metric == 'lift'").drop(columns=["target", "metric", "q"]).assign(drop=0.1)
    asked["role"] = asked["role"].map({"subject": "relation", "reference": "color"})
    figure = heads.binding(asked, value="drop")
    assert [ax.get_title() for ax in grids(figure)] == ["relation  (n = 800)", "color  (n = 800)"]
    with pytest.raises(ValueError, match="no rows with metric 'mass'; there: auc, lift"):
        heads.binding(tables.bound_heads(), metric="mass")


def test_specificity_prints_each_cell_and_frames_the_diagonal():
    frame = tables.head_matrices()
    figure = heads.specificity(frame)
    for ax, (layer, head) in zip(grids(figure), ((2, 1), (3, 0), (11, 27)), strict=True):
        own = frame[(frame["layer"] == layer) & (frame["head"] == head)]
        frames = {(box.get_x() + 0.47, box.get_y() + 0.47) for box in ax.patches if isinstance(box, Rectangle)}
        assert frames == {(i, i) for i in range(4)}
        printed = {text.get_position(): text for text in ax.texts}
        for row in own.itertuples():
            text = printed[tables.CORNERS.index(row.corner), tables.CORNERS.index(row.asked)]
            assert float(text.get_text().replace("−", "-")) == pytest.approx(row.effect, abs=0.0051)
            assert (text.get_weight() == "bold") == (row.low > 0 or row.high < 0)
    many = tables.head_matrices(tuple((0, i) for i in range(13)))
    with pytest.raises(ValueError, match="13 heads; at most 12 fit"):
        heads.specificity(many)


def test_selectivity_shows_the_most_selective_heads_with_their_intervals():
    frame = tables.selectivities()
    ax = heads.selectivity(frame, most=5).axes[0]
    best = frame.groupby(["layer", "head"])["selectivity"].max().nlargest(5)
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"L{layer} H{head}" for layer, head in best.index]
    rows = frame.set_index(["layer", "head"]).loc[best.index]
    assert sorted(x for x, _ in drawn_points(ax)) == pytest.approx(sorted(rows["selectivity"]))
    ends = sorted(tuple(segment[:, 0]) for lines in ax.collections for segment in lines.get_segments())
    np.testing.assert_allclose(ends, sorted(zip(rows["low"], rows["high"], strict=True)))
    with pytest.raises(ValueError, match="most=0 must be at least 1"):
        heads.selectivity(frame, most=0)


def test_stability_has_the_steadiest_heads_and_chance():
    frame = tables.top_k_stability()
    figure = heads.stability(frame, most=6)
    for ax, corner in zip(figure.axes, tables.CORNERS, strict=True):
        shares = [bar.get_width() for bar in ax.patches]
        assert shares == sorted(frame.loc[frame["asked"] == corner, "share"], reverse=True)[:6]
        assert ax.lines[0].get_xdata()[0] == 5 / 32 and "n = 100" in ax.get_title()
    with pytest.raises(ValueError, match="outside"):
        heads.stability(frame.assign(share=1.2))


# --- maps ---


def test_overlays_draw_both_boxes_in_every_panel_and_the_best_first():
    frame = tables.chosen_maps()
    figure = head_maps.overlays(frame.iloc[::-1])
    panels = [ax for ax in figure.axes if len(ax.images)]
    assert len(panels) == 3 * 4
    for ax in panels:
        edges = [box.get_bbox().bounds for box in ax.patches]
        assert len(edges) == 4 and edges[0] == edges[1] and edges[2] == edges[3]
        assert edges[0] == pytest.approx((4 / 48, 8 / 48, 14 / 48, 14 / 48))
        assert [to_hex(box.get_edgecolor()).upper() for box in ax.patches[1::2]] == [plots.CYCLE[0], plots.CYCLE[2]]
    heads_of = [ax.get_title() for ax in panels if ax.get_title().split("\n")[0] in head_maps.RANKS]
    assert heads_of == ["best\nlift 5.2", "median\nlift 1.4", "worst\nlift 0.21"]
    assert "chosen by rule from n = 500" in words(figure)
    unknown = frame.assign(reference_x_min=np.nan)
    assert {len(ax.patches) for ax in head_maps.overlays(unknown).axes if len(ax.images)} == {2}
    with pytest.raises(ValueError, match="rank 'prettiest' is not one of best, median, worst"):
        head_maps.overlays(frame.assign(rank="prettiest"))
    with pytest.raises(ValueError, match=r"head_maps.overlays: cell \(0, 0\)"):
        head_maps.overlays(pd.concat([frame, frame]))


def test_layers_show_maps_against_their_own_boxes_and_chance_beside():
    frame = tables.metrics_by_layer(6)
    figure = head_maps.by_layer(frame)
    own = frame[frame["role"] == frame["target"]]
    for ax, metric in zip(figure.axes, ("lift", "mass", "hit", "auc"), strict=True):
        lines = [(line.get_color(), np.asarray(line.get_ydata(), float)) for line in ax.lines if line.get_linestyle() == "-"]
        for role, (tint, _, _) in head_looks.ROLES.items():
            part = own[(own["metric"] == metric) & (own["role"] == role)].sort_values("layer")
            assert any(c == tint and np.allclose(y, part["estimate"]) for c, y in lines if len(y) == 6)
        chance = [line for line in ax.lines if line.get_linestyle() not in ("-", "None") and np.ptp(line.get_ydata()) == 0]
        assert len(chance) == (1 if metric in ("lift", "auc") else 3)  # where all roles have the same, one grey line
        assert not any(len(set(line.get_ydata())) == 1 and line.get_ydata()[0] == 0 for line in ax.lines)
    with pytest.raises(ValueError, match="no map is held against what its own word means; there: subject against reference"):
        head_maps.by_layer(frame[frame["role"] != frame["target"]])
    flat = own[own["metric"] == "auc"].assign(metric="entropy_share", target="map")
    assert_legible(plots.draw("head_maps.by_layer", pd.concat([own, flat]), {}))


def test_real_shuffled_and_chance_stand_where_the_table_says():
    frame = tables.metrics_compared()
    figure = head_maps.real_and_shuffled(frame)
    axes = iter(figure.axes)
    for metric in ("lift", "mass", "auc"):
        for definition in head_maps.DEFINITIONS:
            ax, part = next(axes), frame[(frame["metric"] == metric) & (frame["definition"] == definition)]
            places = part["role"].map({"subject": 0, "reference": 1})
            for column, marker in (("chance", "x"), ("shuffled", "|")):
                assert drawn_points(ax, marker) == {(round(x, 9), y) for x, y in zip(part[column], places, strict=True)}
            hollow = {line.get_markerfacecolor() for line in ax.lines if line.get_marker() in "os"}
            assert ("white" in hollow) == (definition == "as_published")
    unshuffled = frame.assign(shuffled=np.nan).drop(columns="definition").drop_duplicates(["role", "metric"])
    assert_legible(plots.draw("head_maps.real_and_shuffled", unshuffled, {}))
    with pytest.raises(ValueError, match="definition 'wrong' is not one of corrected, as_published"):
        head_maps.real_and_shuffled(frame.assign(definition="wrong"))


# --- ablation, captions, words ---


@pytest.mark.parametrize("value", ["drop", "accuracy", "change"])
def test_bars_are_as_long_as_the_table_says(value):
    frame = tables.ablations()
    figure = plots.draw("ablation.bars", frame, {"value": value})
    assert_legible(figure)
    rows = frame[frame["heads"] != "none"]
    random = {"drop": 0.93 - rows["random"], "accuracy": rows["random"], "change": rows["random_change"]}[value]
    ax = figure.axes[0]
    drawn = sorted(round(bar.get_width(), 9) for bar in ax.patches)
    assert drawn == sorted(round(one, 9) for one in (*rows[value], *random))
    assert len(ax.texts) == 4  # asterisks: two sets, mean and zero
    assert {bar.get_hatch() or "" for bar in ax.patches} == {"", "////"}


def test_bars_need_the_whole_model_and_a_set():
    frame = tables.ablations()
    with pytest.raises(ValueError, match="no row of the whole model"):
        ablation.bars(frame[frame["heads"] != "none"])
    with pytest.raises(ValueError, match="no row of a set of heads"):
        ablation.bars(frame[frame["heads"] == "none"])
    with pytest.raises(ValueError, match="how 'scaled' is not one of mean, zero"):
        ablation.bars(frame.replace({"how": {"zero": "scaled"}}))
    assert_legible(plots.draw("ablation.bars", frame.assign(random=np.nan, p=np.nan), {}))


def test_parts_of_captions_share_one_scale_and_are_not_pooled():
    frame = tables.text_parts(3, 5)
    figure = text_only.split(frame)
    panels = grids(figure)
    assert len(panels) == 8 and len({(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in panels}) == 1
    assert panels[0].images[0].norm.vmax == frame[["positional", "content"]].abs().to_numpy().max()
    left = frame[frame["relation"] == "left"].pivot(index="layer", columns="head", values="content")
    np.testing.assert_array_equal(panels[1].images[0].get_array(), left)
    assert panels[1].get_title().startswith("left: content") and "q < .05" not in panels[0].get_title()


def test_asymmetries_stand_where_the_table_says_between_named_diagonals():
    frame = tables.text_asymmetries(12)
    figure = text_only.asymmetry(frame)
    ax = figure.axes[0]
    lines = {tuple(np.sign(line.get_ydata())): line for line in ax.lines[2:4]}
    assert set(lines) == {(-1, 1), (1, -1)}
    assert {"a2 = a1: position", "a2 = −a1: content"} <= set(words(figure))
    marks = [line for line in ax.lines[4:] if line.get_marker() in "<>^v"]
    drawn = sorted((x, y) for line in marks for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert drawn == sorted(zip(frame["asym_s1"], frame["asym_s2"], strict=True))
    cross = next(line for line in ax.lines if line.get_marker() == "P")
    assert (cross.get_xdata()[0], cross.get_ydata()[0]) == pytest.approx((frame["asym_s1"].mean(), frame["asym_s2"].mean()))
    with pytest.raises(ValueError, match="pair pair-0 stands twice"):
        text_only.asymmetry(pd.concat([frame, frame]))


def test_words_that_cannot_change_are_not_drawn():
    frame = tables.word_differences()
    figure = spatial_words.differences(frame, how="layer")
    own = frame[(frame["how"] == "layer") & frame["sees"] & (frame["metric"] == "entropy")]
    marks = [line for line in figure.axes[0].lines if line.get_marker() in ("D", "s")]
    assert sorted(line.get_xdata()[0] for line in marks) == pytest.approx(sorted(own["difference"]))
    assert not any("subject" in one for one in words(figure))
    solid = [line for line in marks if line.get_markerfacecolor() != "white"]
    assert len(solid) == (own["q"] < 0.05).sum()
    with pytest.raises(ValueError, match="no rows with how 'median'"):
        spatial_words.differences(frame, how="median")
    with pytest.raises(ValueError, match="no rows with sees True"):
        spatial_words.differences(frame.assign(sees=False))
