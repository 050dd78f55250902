"""Figures of swap pairs: what is drawn is where the table says, scales share axes, and colours mean categories."""

import itertools

import numpy as np
import pandas as pd
import pytest
import swap_tables as tables
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex, to_rgb
from test_plots import assert_legible, texts

from spatialprobes import plots
from spatialprobes.pairs import CATEGORIES, GROUPS, OPPOSITE
from spatialprobes.plots import (
    swap,
    swap_causal,
    swap_looks,
    swap_pca,
    swap_perspective,
    swap_scales,
    swap_similarity,
)


def with_norm(frame):
    """A row after the final norm, as the last layer's."""
    last = frame[frame["layer"] == frame["layer"].max()]
    return pd.concat([frame.astype({"layer": object}), last.assign(layer="norm")], ignore_index=True)


def lines_of(ax, tint):
    """y of the lines of this colour that join points (not of marks alone)."""
    return [
        np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_color() == tint and line.get_linestyle() != "None"
    ]


def marks_of(ax, tint, hollow):
    """y of the marks of this colour."""
    found = []
    for line in ax.lines:
        marked = line.get_color() == tint and line.get_marker() not in ("None", "_", "")
        if marked and (line.get_markerfacecolor() == "white") == hollow:
            found += [y for y in np.asarray(line.get_ydata(), float) if np.isfinite(y)]
    return sorted(found)


def bands_of(ax, tint):
    """Corners of the bands of this colour, rounded."""
    found = set()
    for band in ax.collections:
        if isinstance(band, PolyCollection) and to_hex(band.get_facecolor()[0]) == tint.lower():
            for path in band.get_paths():
                found |= {tuple(np.round(corner, 6)) for corner in path.vertices}
    return found


def corners(rows, x="layer"):
    return {
        (round(float(a), 6), round(float(b), 6)) for name in ("low", "high") for a, b in zip(rows[x], rows[name], strict=True)
    }


def words_of(figure):
    return [words for words, _ in texts(figure)]


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- looks ---

SEEN = {  # Machado, Oliveira & Fernandes 2009, severity 1: linear RGB as seen by normal, red-blind and green-blind eyes
    "normal": np.eye(3),
    "protan": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deutan": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
}


def cielab(colour, eyes):
    """CIELAB (D65) of an sRGB colour as these eyes see it."""
    encoded = np.array(to_rgb(colour))
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(SEEN[eyes] @ linear, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("eyes", SEEN)
def test_any_two_categories_are_told_apart_by_colour_and_by_mark(eyes):
    for one, other in itertools.combinations(CATEGORIES, 2):
        (tint, mark), (another, shape) = swap_looks.LOOKS[one], swap_looks.LOOKS[other]
        assert np.linalg.norm(cielab(tint, eyes) - cielab(another, eyes)) > 26 and mark != shape, (one, other)


def test_opposites_are_dark_and_light_of_one_hue_and_groups_look_like_their_canonical_category():
    for group, (canonical, opposite) in GROUPS.items():
        one, other = (cielab(swap_looks.LOOKS[name][0], "normal") for name in (canonical, opposite))
        turn = abs(np.angle(np.exp(1j * (np.arctan2(one[2], one[1]) - np.arctan2(other[2], other[1])))))
        assert other[0] - one[0] > 20 and turn < np.pi / 5
        assert swap_looks.LOOKS[group] == swap_looks.LOOKS[canonical] and OPPOSITE[canonical] == opposite


# --- by layer ---


@pytest.mark.parametrize("measure", ["group", "within"])
def test_consistency_draws_lines_bands_and_controls_where_the_table_says(measure):
    frame = tables.consistencies()
    figure = swap.consistency(frame, measure=measure)
    names = list(GROUPS) if measure == "group" else list(CATEGORIES)
    assert [ax.get_title() for ax in figure.axes] == [f"{name}  (n = 400)" for name in names]
    for ax, name in zip(figure.axes, names, strict=True):
        rows = frame[(frame["of"] == name) & (frame["measure"] == measure) & (frame["variant"] == "all")]
        looks = {"none": swap_looks.LOOKS[name][0], **{key: tint for key, (tint, *_) in swap_looks.CONTROLS.items()}}
        for control, tint in looks.items():
            own = rows[rows["control"] == control]
            assert np.allclose(lines_of(ax, tint)[0], own["estimate"])
            assert corners(own) <= bands_of(ax, tint)
        assert len({line.get_linestyle() for line in ax.lines if line.get_color() == looks["shuffled"]}) >= 1
        own = rows[rows["control"] == "none"]
        assert marks_of(ax, looks["none"], hollow=False) == pytest.approx(sorted(own.loc[own["q"] < 0.05, "estimate"]))
        assert marks_of(ax, looks["none"], hollow=True) == pytest.approx(sorted(own.loc[own["q"] >= 0.05, "estimate"]))
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert legend_of(figure) == [
        "measured, 95% interval", "shuffled", "blank image", "mismatched image", "q < .05", "q ≥ .05 or none"
    ]  # fmt: skip


def test_many_layers_gaps_and_the_norm_are_legible_and_said():
    frame = with_norm(tables.consistencies(37)).astype({"reliable": "boolean"})
    frame.loc[frame["layer"].isin([0, 12]), ["estimate", "low", "high"]] = np.nan
    frame.loc[frame["layer"] == 0, "n"] = 0
    figure = plots.draw("swap.consistency", frame, {"measure": "within", "variant": "all_with_validity"})
    assert_legible(figure)
    ax = figure.axes[0]
    line, apart = lines_of(ax, swap_looks.LOOKS["left"][0])
    assert np.flatnonzero(np.isnan(line)).tolist() == [0, 12] and len(apart) == 1 and len(line) == 37
    assert "gap: no estimate (48 of 912)" in legend_of(figure)
    assert [ax.get_title() for ax in figure.axes][-1] == "close, unreliable  (n = 400)"
    ticks = dict(zip([text.get_text() for text in ax.get_xticklabels()], ax.get_xticks(), strict=True))
    assert ticks["norm"] > 37 and ticks["0"] == 0
    as_text = frame.astype({"layer": str})  # as parquet keeps numbers and words in one column
    again = swap.consistency(as_text, measure="within", variant="all_with_validity").axes[0]
    assert np.array_equal(lines_of(again, swap_looks.LOOKS["left"][0])[0], line, equal_nan=True)


@pytest.mark.parametrize("width", ["one", "two"])
def test_one_layer_of_one_group_has_bars_instead_of_bands(width):
    frame = tables.consistencies(1).query("of == 'vertical'")
    figure = plots.draw("swap.consistency", frame, {"width": width})
    assert_legible(figure)
    (ax,) = figure.axes
    ends = {tuple(np.round(segment[:, 1], 6)) for bars in ax.collections[1::2] for segment in bars.get_segments()}
    assert ends == {tuple(np.round(pair, 6)) for pair in frame.query("variant == 'all'")[["low", "high"]].to_numpy()}


def test_a_group_without_any_estimate_says_so():
    frame = tables.consistencies()
    frame.loc[frame["of"] == "distance", ["estimate", "low", "high", "q"]] = np.nan
    figure = plots.draw("swap.consistency", frame, {})
    assert words_of(figure).count("no estimate") == 1
    assert_legible(figure)


def test_by_layer_figures_refuse_what_is_not_there():
    frame = tables.consistencies()
    with pytest.raises(ValueError, match=r"no rows with variant 'both_correct'; there: all"):
        swap.consistency(frame, variant="both_correct")
    with pytest.raises(ValueError, match=r"of distance, control none, layer 0 stands twice"):
        swap.consistency(pd.concat([frame, frame[frame["of"] == "distance"]]))
    with pytest.raises(ValueError, match=r"control 'noise' is not one of none, shuffled, blank, mismatched"):
        swap.consistency(frame.assign(control=frame["control"].replace("blank", "noise")))
    with pytest.raises(ValueError, match=r"layer 'last' is neither a number from 0 nor 'norm'"):
        swap.consistency(frame.assign(layer="last").drop_duplicates(["of", "control", "variant", "measure"]))
    with pytest.raises(ValueError, match=r"no rows with definition 'mended'; there: as_published, corrected"):
        swap.alignment(tables.alignments(), definition="mended")


def test_alignment_draws_the_definition_asked_for():
    frame = tables.alignments()
    for definition in ("corrected", "as_published"):
        figure = swap.alignment(frame, definition=definition)
        for ax, measure in zip(figure.axes, ("per_sample_mean", "mean_delta_alignment"), strict=True):
            rows = frame[(frame["measure"] == measure) & (frame["definition"] == definition) & (frame["control"] == "none")]
            assert np.allclose(lines_of(ax, "#000000")[0], rows["estimate"])
            assert corners(rows) <= bands_of(ax, "#000000")
    assert len(swap.alignment(frame, measure="per_sample_mean").axes) == 1


def test_probe_shows_accuracy_shuffled_labels_and_chance():
    frame = tables.probes().assign(chance=0.5)
    for ax, group in zip(swap.probe(frame).axes, GROUPS, strict=True):
        rows = frame[frame["group"] == group].set_index("control")
        assert np.allclose(lines_of(ax, swap_looks.LOOKS[group][0])[0], rows.loc["none", "estimate"])
        assert np.allclose(lines_of(ax, swap_looks.CONTROLS["shuffled"][0])[0], rows.loc["shuffled", "estimate"])
        assert [0.5, 0.5] in [list(line) for line in lines_of(ax, "black")]
        assert ax.get_ylim() == (-0.02, 1.02)


# --- answers ---


def test_accuracy_has_a_bar_an_interval_and_chance_for_every_row():
    frame = tables.accuracies().astype({"reliable": "boolean"})
    frame.loc[frame["category"] == "far", "reliable"] = pd.NA
    frame.loc[frame["category"] == "left", ["estimate", "low", "high"]] = np.nan
    figure = plots.draw("swap.accuracy", frame, {"by": "logprob"})
    assert_legible(figure)
    (ax,) = figure.axes
    rows = frame[(frame["by"] == "logprob") & frame["estimate"].notna()]
    assert sorted(bar.get_height() for bar in ax.patches) == pytest.approx(sorted(rows["estimate"]))
    assert sum(bar.get_hatch() is not None for bar in ax.patches) == 3  # close; of far nothing is known
    segments = [tuple(np.round(segment.ravel(), 6)) for group in ax.collections for segment in group.get_segments()]
    upright = {(a[1], a[3]) for a in segments if a[0] == a[2]}
    assert upright == {tuple(np.round(pair, 6)) for pair in rows[["low", "high"]].to_numpy()}
    assert {a[1] for a in segments if a[1] == a[3]} == {0.25, 0.5}
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[:2] == ["all horizontal\nn = 800\n3% unread", "left\nn = 400\n3% unread"]
    assert {"not reliable", "no estimate"} < set(legend_of(figure))
    assert_legible(plots.draw("swap.accuracy", frame.assign(unparsed=np.nan), {"width": "one"}))


@pytest.mark.parametrize(("share", "said"), [(0.0, "0% unread"), (0.004, "<1% unread"), (0.126, "13% unread"), (np.nan, None)])
def test_the_unread_share_is_said(share, said):
    frame = tables.accuracies().query("group == 'vertical'").assign(unparsed=share)
    (ax,) = swap.accuracy(frame).axes
    lines = [label.get_text().split("\n") for label in ax.get_xticklabels()]
    assert [line[2:] for line in lines] == [[said] if said else []] * 3


# --- similarity ---


def test_matrix_has_the_tables_cosines_opposites_side_by_side_on_one_scale():
    frame = tables.similarities(9).sample(frac=1, random_state=0)
    figure = swap_similarity.matrix(frame)
    *axes, _ = figure.axes
    assert [ax.get_title() for ax in axes] == ["layer 0", "layer 4", "layer 8"]
    cells = frame.set_index(["layer", "row", "column"])["cosine"]
    for ax, layer in zip(axes, (0, 4, 8), strict=True):
        (shown,) = ax.images
        assert (shown.norm.vmin, shown.norm.vmax) == (-1, 1)
        wanted = [[cells[layer, row, column] for column in CATEGORIES] for row in CATEGORIES]
        np.testing.assert_allclose(np.asarray(shown.get_array()), wanted)
        assert [label.get_text() for label in ax.get_xticklabels()] == list(CATEGORIES)
        for text in ax.texts:
            value = float(text.get_text().replace("−", "-"))
            i, j = int(text.get_position()[1]), int(text.get_position()[0])
            assert value == pytest.approx(wanted[i][j], abs=0.00501)
        assert not any(text.get_text() == "−.00" for text in ax.texts)


def test_matrix_cells_contrast_with_their_numbers():
    """WCAG's contrast ratio of number and cell, over all cosines: 3 or more."""
    frame = tables.similarities(1)
    cosines = np.linspace(-1, 1, len(frame))
    ax = swap_similarity.matrix(frame.assign(cosine=cosines)).axes[0]
    (shown,) = ax.images
    for cosine, text in zip(cosines, sorted(ax.texts, key=lambda text: text.get_position()[::-1]), strict=True):
        assert float(text.get_text().replace("−", "-")) == pytest.approx(cosine, abs=0.00501)
        light = []
        for colour in (shown.cmap(shown.norm(cosine))[:3], to_rgb(text.get_color())):
            encoded = np.array(colour)
            linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
            light.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
        assert max(light) / min(light) > 3, cosine


def test_matrix_shows_missing_cells_and_refuses_what_is_no_cosine():
    frame = tables.similarities()
    missing = frame.assign(cosine=frame["cosine"].where(frame["row"] != "far"))
    figure = plots.draw("swap_similarity.matrix", missing, {"layer": [0, 2, 4, 6, 7]})
    assert words_of(figure).count("none") == 5 * 6
    assert_legible(figure)
    empty = frame.assign(cosine=frame["cosine"].where(frame["layer"] > 0))
    assert [ax.get_title() for ax in swap_similarity.matrix(empty).axes[:3]] == ["layer 1", "layer 4", "layer 7"]
    with pytest.raises(ValueError, match=r"layer 12 is not in the table; there: 0, 1, 2"):
        swap_similarity.matrix(frame, layer=12)
    with pytest.raises(ValueError, match="cosine 2 is no cosine"):
        swap_similarity.matrix(frame.assign(cosine=2.0))


# --- principal components ---


def test_plane_draws_every_pair_in_its_categorys_look_on_one_range():
    frame = tables.components(4)
    figure = swap_pca.plane(frame, layers=[1, 3])
    assert [ax.get_title() for ax in figure.axes] == ["layer 1", "layer 3"]
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    for ax, layer in zip(figure.axes, (1, 3), strict=True):
        rows = frame[(frame["layer"] == layer) & (frame["kind"] == "delta")]
        for category in CATEGORIES:
            tint, mark = swap_looks.LOOKS[category]
            lines = [line for line in ax.lines if line.get_color() == tint and line.get_marker() == mark]
            points = np.concatenate([line.get_xydata() for line in lines if line.get_markersize() < 5])
            own = rows.loc[rows["category"] == category, ["pc1", "pc2"]].to_numpy()
            np.testing.assert_allclose(np.sort(points, axis=0), np.sort(own, axis=0))
            (mean,) = (line.get_xydata()[0] for line in lines if line.get_markersize() > 5)
            np.testing.assert_allclose(mean, own.mean(axis=0))
        (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
        assert rows["pc1"].between(low, high).all() and rows["pc2"].between(bottom, top).all()
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("PC1 (43% of variance)", "PC2 (21% of variance)")


def test_scales_share_axes_in_the_plane_and_in_space():
    frame = tables.components_by_scale({"vanilla": 0, "80k": 80_000, "2m": 2_000_000}, each=8)
    plane, space = swap_pca.plane(frame), swap_pca.space(frame)
    for figure in (plane, space):
        assert [ax.get_title() for ax in figure.axes] == ["vanilla", "80k", "2m"]
        assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    assert len({ax.get_zlim() for ax in space.axes}) == 1
    far = frame[frame["kind"] == "delta"][["pc1", "pc2", "pc3"]].abs().to_numpy().max()
    assert space.axes[0].get_xlim()[1] - space.axes[0].get_xlim()[0] >= far
    assert [axis.get_label_text() for axis in (space.axes[0].xaxis, space.axes[0].zaxis)] == ["PC1 (43%)", "PC3 (9%)"]
    assert_legible(plots.draw("swap_pca.space", frame, {}))
    turned = frame.iloc[::-1]
    assert [ax.get_title() for ax in swap_pca.plane(turned).axes] == ["vanilla", "80k", "2m"]  # by samples
    assert [ax.get_title() for ax in swap_pca.plane(turned.drop(columns="samples")).axes] == ["2m", "80k", "vanilla"]
    slight = swap_pca.plane(frame.assign(share1=0.001, share2=np.nan)).axes[0]
    assert (slight.get_xlabel(), slight.get_ylabel()) == ("PC1 (<1% of variance)", "PC2")


def test_components_that_are_not_there_are_left_out_and_said():
    frame = tables.components(3, each=10)
    frame.loc[frame["layer"] == 0, ["pc1", "pc2", "share1", "share2"]] = np.nan  # the last token of a prompt at layer 0
    assert [ax.get_title() for ax in swap_pca.plane(frame).axes] == ["layer 1", "layer 2"]
    figure = plots.draw("swap_pca.plane", frame, {"layers": [0, 2]})
    assert "nothing varies" in words_of(figure) and "60 without components left out" in legend_of(figure)
    assert_legible(figure)
    series = tables.components_by_scale({"vanilla": 0, "80k": 80_000}, each=10)
    series.loc[series["scale"] == "vanilla", ["pc1", "pc2", "pc3"]] = np.nan
    for plot in ("swap_pca.plane", "swap_pca.space"):
        figure = plots.draw(plot, series, {})
        assert words_of(figure).count("nothing varies") == 1 and [ax.get_title() for ax in figure.axes] == ["vanilla", "80k"]
    with pytest.raises(ValueError, match="no row of kind 'delta' has 2 components"):
        swap_pca.plane(frame[frame["layer"] == 0])
    with pytest.raises(ValueError, match="no rows with kind 'sum'; there: delta, original, swapped"):
        swap_pca.plane(frame, kind="sum")


# --- scales ---


def test_scales_by_layer_share_one_range_and_keep_their_order_of_training():
    frame = tables.consistencies_by_scale()
    figure = swap_scales.by_layer(frame.sample(frac=1, random_state=1))
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert legend_of(figure)[:6] == [*tables.SCALES, "shuffled, all scales"]
    rows = frame[(frame["measure"] == "group") & (frame["variant"] == "all")]
    shades = []
    for place, scale in enumerate(tables.SCALES):
        tint, _ = swap_scales._scale_look(place, len(tables.SCALES))
        shades.append(cielab(tint, "normal")[0])
        for ax, group in zip(figure.axes, GROUPS, strict=True):
            own = rows[(rows["scale"] == scale) & (rows["of"] == group) & (rows["control"] == "none")]
            assert np.allclose(lines_of(ax, tint)[0], own["estimate"]) and corners(own) <= bands_of(ax, tint)
    assert all(before > after + 5 for before, after in itertools.pairwise(shades))
    grey = bands_of(figure.axes[0], "#d0d0d0")
    control = rows[(rows["of"] == "horizontal") & (rows["control"] == "shuffled")]
    assert min(y for _, y in grey) == pytest.approx(control["low"].min())
    assert max(y for _, y in grey) == pytest.approx(control["high"].max())


def test_long_names_of_many_scales_and_models_fit():
    names = {f"an-organisation/a-model-of-seven-billion-parameters, fine-tuned to {i}": 2**i for i in range(7)}
    frame = with_norm(tables.scaled(lambda: tables.consistencies(3), names))
    frame.attrs["provenance"] = {"model": list(names)}
    figure = plots.draw("swap_scales.by_layer", frame, {"width": "one"})
    assert_legible(figure)
    assert any(words.startswith("model: an-organisation") for words in words_of(figure))


def test_alignment_of_scales_needs_no_column_of():
    frame = tables.scaled(tables.alignments)
    (ax,) = swap_scales.by_layer(frame, measure="per_sample_mean").axes
    assert ax.get_title() == "mean over quads  (n = 400)" and len(lines_of(ax, swap_scales._scale_look(0, 5)[0])) == 1


def test_one_scale_has_one_count_of_samples():
    frame = tables.consistencies_by_scale()
    broken = frame.assign(samples=frame["samples"].where(frame["layer"] != 3, 7))
    with pytest.raises(ValueError, match="scale 'vanilla' has several counts of samples"):
        swap_scales.by_layer(broken)


def test_trajectory_puts_accuracy_at_its_samples_and_leaves_out_unknown_ones():
    frame = tables.accuracies_by_scale().astype({"samples": float})
    frame.loc[frame["scale"] == "800k", "samples"] = np.nan
    figure = plots.draw("swap_scales.trajectory", frame, {"member": "original"})
    assert_legible(figure)
    assert "not shown, samples unknown: 800k" in legend_of(figure)
    rows = frame[(frame["member"] == "original") & (frame["by"] == "generate") & frame["samples"].notna()]
    for ax, group in zip(figure.axes, GROUPS, strict=True):
        for category in GROUPS[group]:
            own = rows[rows["category"] == category]
            tint = swap_looks.LOOKS[category][0]
            (line,) = (one for one in ax.lines if one.get_color() == tint and one.get_linestyle() != "None")
            np.testing.assert_allclose(line.get_xydata(), own[["samples", "estimate"]].to_numpy())
            assert corners(own, "samples") <= bands_of(ax, tint)
        assert ax.get_xscale() == "symlog" and ax.get_xticks()[0] == 0
    assert len({ax.get_xlim() for ax in figure.axes}) == 1
    with pytest.raises(ValueError, match="no scale has a known count of samples"):
        swap_scales.trajectory(frame.assign(samples=np.nan))
    with pytest.raises(ValueError, match="-1 samples were seen"):
        swap_scales.trajectory(frame.assign(samples=-1))


def test_the_vanilla_model_stands_left_of_the_first_training_at_a_sensible_distance():
    ax = swap_scales.emergence(tables.emerging()).axes[0]
    x = ax.xaxis.get_transform().transform(np.array([0.0, 80_000, 400_000, 2_000_000]))
    gaps = np.diff(x) / np.ptp(x)
    assert 0.1 < gaps[0] < 0.4 and gaps[1] == pytest.approx(gaps[2])  # each five times as many
    left, right = ax.xaxis.get_transform().transform(np.array(ax.get_xlim()))
    assert left < x[0] and x[-1] < right


@pytest.mark.parametrize("samples", [[0], [80_000], [80_000, 400_000], [0, *(2**i for i in range(20))], [0, 1, 2, 10**9]])
def test_emergence_is_legible_for_any_series(samples):
    scales = {f"s{count}": count for count in samples}
    frame = tables.emerging(scales | ({"other": 5} if len(samples) == 1 else {}))
    frame = frame[frame["scale"] != "other"]
    for width in ("one", "two"):
        assert_legible(plots.draw("swap_scales.emergence", frame, {"width": width}))


def test_emergence_draws_both_measures_on_one_axis():
    frame = tables.emerging()
    figure = swap_scales.emergence(frame)
    for ax, group in zip(figure.axes, GROUPS, strict=True):
        for measure, tint in (("accuracy", "#000000"), ("consistency", swap_looks.LOOKS[group][0])):
            own = frame[(frame["group"] == group) & (frame["measure"] == measure)]
            assert any(np.array_equal(line, own["estimate"]) for line in lines_of(ax, tint))
            assert corners(own, "samples") <= bands_of(ax, tint)
        assert ax.get_title() == f"{group}, layer 20  (n = 400)"
    assert len({(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes}) == 1
    joined = frame.assign(layer=frame["layer"].where(frame["measure"] == "consistency"))  # floats, and NaN for accuracy
    assert swap_scales.emergence(joined).axes[0].get_title() == "horizontal, layer 20  (n = 400)"
    with pytest.raises(ValueError, match=r"consistency of horizontal is of the layers 4, 20; choose one"):
        swap_scales.emergence(frame.assign(layer=np.where(frame["samples"] == 0, 4, 20)))
    with pytest.raises(ValueError, match="measure 'loss' is not one of accuracy, consistency"):
        swap_scales.emergence(frame.assign(measure=frame["measure"].replace("accuracy", "loss")))


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0"), (999, "999"), (1250, "1.25k"), (80_000, "80k"), (131_072, "131k"), (2_000_000, "2M")]
)
def test_counts_are_short(count, words):
    assert swap_scales.short(count) == words


# --- cause ---


@pytest.mark.parametrize("measure", ["flip_rate", "change"])
@pytest.mark.parametrize("strength", [None, 2])
def test_causal_curves_draw_the_strength_asked_for_and_removal_always(measure, strength):
    frame = tables.effects()
    figure = swap_causal.curves(frame, measure=measure, strength=strength)
    assert f"strength {strength or 1}" in legend_of(figure)
    for ax, group in zip(figure.axes, GROUPS, strict=True):
        rows = frame[(frame["group"] == group) & (frame["measure"] == measure)]
        for kind in ("toward", "against", "remove"):
            own = rows[(rows["kind"] == kind) & (rows["strength"] == (1 if kind == "remove" else strength or 1))]
            tint = swap_causal.KINDS[kind][0].lower()
            tint = next(line.get_color() for line in ax.lines if line.get_color().lower() == tint)
            assert any(np.array_equal(line, own["estimate"]) for line in lines_of(ax, tint))
            assert corners(own) <= bands_of(ax, tint)
        greys = [line for line in ax.lines if line.get_color() == swap_causal.KINDS["random"][0]]
        assert len(greys) == 2 and greys[0].get_linestyle() != "-" and greys[0]._dash_pattern != greys[1]._dash_pattern
    with pytest.raises(ValueError, match=r"no rows with strength 3; there: 0.5, 1, 2"):
        swap_causal.curves(frame, strength=3)


def test_causal_strengths_are_of_one_layer_and_removal_is_a_level():
    frame = tables.effects()
    figure = swap_causal.strengths(frame, layer=5)
    assert "layer 5" in legend_of(figure)
    own = frame.query("group == 'vertical' and kind == 'toward' and layer == 5 and measure == 'flip_rate'")
    tint = swap_causal.KINDS["toward"][0]
    (line,) = (one for one in figure.axes[1].lines if one.get_color() == tint and one.get_linestyle() != "None")
    np.testing.assert_array_equal(line.get_xydata(), own[["strength", "estimate"]])
    assert "layer 4" in legend_of(swap_causal.strengths(frame))  # the middle one
    without = frame.assign(strength=frame["strength"].where(frame["kind"] != "remove"))
    ax = swap_causal.strengths(without, layer=5).axes[1]
    removed = without.query("group == 'vertical' and kind == 'remove' and layer == 5 and measure == 'flip_rate'")
    assert lines_of(ax, swap_causal.KINDS["remove"][0])[0] == pytest.approx([removed["estimate"].item()] * 2)
    assert_legible(plots.draw("swap_causal.strengths", without, {"measure": "change"}))
    with pytest.raises(ValueError, match="draws one layer, not 1, 2"):
        swap_causal.strengths(frame, layer=[1, 2])


def test_causal_figures_do_without_kinds_that_were_not_tried():
    frame = tables.effects(1).query("group == 'distance' and kind in ['toward', 'random']")
    for plot in ("swap_causal.curves", "swap_causal.strengths"):
        figure = plots.draw(plot, frame, {})
        assert_legible(figure)
        assert legend_of(figure)[:2] == ["toward the opposite answer", "random, equal norm"]
    with pytest.raises(ValueError, match=r"kind 'sideways' is not one of toward, against"):
        swap_causal.curves(frame.assign(kind="sideways"))


# --- perspective ---


def test_perspective_draws_alignment_against_the_worlds_correlation():
    frame = tables.perspectives()
    figure = swap_perspective.alignment(frame, layer=[3, 7])
    for ax, measure in zip(figure.axes, ("per_sample_mean", "mean_delta_alignment"), strict=True):
        joined = [line.get_xydata() for line in ax.lines if len(line.get_xdata()) == 3]
        for layer, found in zip((3, 7), joined, strict=True):
            own = frame[(frame["layer"] == layer) & (frame["measure"] == measure)]
            np.testing.assert_array_equal(found, own[["world_correlation", "estimate"]])
        ends = {tuple(np.round(s[:, 1], 6)) for bars in ax.collections for s in bars.get_segments()}
        own = frame[frame["layer"].isin([3, 7]) & (frame["measure"] == measure)]
        assert ends == {tuple(np.round(pair, 6)) for pair in own[["low", "high"]].to_numpy()}
    assert legend_of(figure) == ["layer 3", "layer 7", "perspective 0", "perspective 0.5", "perspective 1"]
    empty = frame.assign(estimate=frame["estimate"].where(frame["layer"] > 0))
    assert legend_of(swap_perspective.alignment(empty))[:4] == ["layer 1", "layer 3", "layer 5", "layer 7"]
    with pytest.raises(ValueError, match="stands twice"):
        swap_perspective.alignment(pd.concat([frame, frame]))


# --- tables from elsewhere ---


@pytest.mark.parametrize(
    "plot", ["swap.consistency", "swap.alignment", "swap.probe", "swap.accuracy", "swap_perspective.alignment"]
)
def test_no_interval_is_promised_where_there_is_none(plot):
    frame = tables.SWAP_FRAMES[plot]()
    for known, said in ((frame, "95% interval"), (frame.assign(low=np.nan, high=np.nan), "no interval known")):
        figure = plots.draw(plot, known, {})
        assert [said in words for words in words_of(figure) if "interval" in words] == [True]
        assert_legible(figure)


@pytest.mark.parametrize("plot", [name for name, make in tables.SWAP_FRAMES.items() if {"n", "n_row"} & {*make().columns}])
def test_a_table_without_n_is_drawn_and_says_so(plot):
    frame = tables.SWAP_FRAMES[plot]()
    figure = plots.draw(plot, frame.assign(**{name: np.nan for name in ("n", "n_row") if name in frame}), {})
    words = words_of(figure)
    assert any("(?)" in one or "n = ?" in one for one in words) and not any("nan" in one for one in words)
    assert_legible(figure)


def test_emergence_shows_what_lies_below_0_also_without_intervals():
    frame = tables.emerging().assign(low=np.nan, high=np.nan)
    frame.loc[frame["measure"] == "consistency", "estimate"] -= 0.5
    figure = swap_scales.emergence(frame)
    assert figure.axes[0].get_ylim()[0] < frame["estimate"].min()


def test_perspective_wants_to_know_every_world():
    frame = tables.perspectives()
    with pytest.raises(ValueError, match="no perspective or no world_correlation"):
        swap_perspective.alignment(frame.assign(world_correlation=frame["world_correlation"].where(frame["perspective"] > 0)))


@pytest.mark.parametrize("plot", ["swap.consistency", "swap_scales.by_layer"])
def test_marks_are_solid_where_no_q_is_known_at_all(plot):
    frame = tables.SWAP_FRAMES[plot]()
    for known, hollow in ((frame, True), (frame.assign(q=np.nan), False)):
        figure = plots.draw(plot, known, {})
        faces = {line.get_markerfacecolor() for ax in figure.axes for line in ax.lines if line.get_marker() not in ("None", "_")}
        assert ("white" in faces) == hollow == any("q <" in words for words in words_of(figure))
