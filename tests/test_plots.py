"""Figures: what is drawn is what the table says, nothing overlaps, and the same table gives the same bytes."""

import io
import json
import os
import subprocess
import sys
import textwrap

import matplotlib
import numpy as np
import pandas as pd
import pytest
from audit_tables import AUDIT_FRAMES
from caption_tables import CAPTION_FRAMES
from geometry_tables import GEOMETRY_FRAMES
from head_tables import HEAD_FRAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from reconstruction_tables import RECONSTRUCTION_FRAMES
from swap_tables import SWAP_FRAMES

from spatialprobes import plots
from spatialprobes.plots import heatmap, norms, permutation, scenes, training
from spatialprobes.tables import save_table


def png(colour="red", size=(48, 48)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "png")
    return buffer.getvalue()


def accuracies():
    rows = [
        ("semantic.colour", "semantic", "original", 0.99, 1 / 6),
        ("semantic.colour", "semantic", "permuted", 0.98, 1 / 6),
        ("relation.horizontal", "spatial", "original", 0.95, 0.5),
        ("relation.horizontal", "spatial", "permuted", 0.52, 0.5),
    ]
    frame = pd.DataFrame(rows, columns=["group", "kind", "condition", "accuracy", "chance"])
    return frame.assign(low=frame["accuracy"] - 0.04, high=np.minimum(frame["accuracy"] + 0.04, 1), n=200)


def indices():
    names = [("full", 3.1), ("rows", 1.9), ("rotate180", 4.5), *((f"within_radius:{r}", 0.7 * r) for r in range(1, 12))]
    groups = [
        ("semantic.colour", "semantic", 0.01, 5 / 6),
        ("relation.horizontal", "spatial", 0.4, 0.5),
        ("corner", "spatial", 0.3, np.nan),
    ]
    frame = pd.DataFrame(
        {"group": group, "kind": kind, "permutation": name, "psi": psi, "moved": moved, "psi_at_chance": chance}
        for group, kind, psi, chance in groups
        for name, moved in names
    )
    frame.loc[frame["group"] == "corner", "psi"] = np.nan
    return frame.assign(low=frame["psi"] - 0.1, high=frame["psi"] + 0.05, n=200)


def compared_runs():
    models = ["llava-v1.5-7b", "llava-v1.5-7b-multilayerNorm", "llava-v1.5-7b-normWmean"]  # in the order of the study's notebook
    frame = pd.DataFrame(
        {
            "run": f"{model}__sp-0",
            "model": model,
            "layer": layer,
            "abs_delta_g_v": 0.007 + place / 1e4,
            "delta_alpha_v": (layer - 3) / 1e4,
        }
        for place, model in enumerate(models)
        for layer in range(8)
    )
    return frame.assign(delta_alpha_v_low=frame["delta_alpha_v"] - 1e-4, delta_alpha_v_high=frame["delta_alpha_v"] + 1e-4)


def token_norms(vision=30.0):
    generator = np.random.default_rng(0)
    parts = [("vision", "trained", vision), ("text", "trained", 0.9), ("vision", "initial", 6.0), ("text", "initial", 0.9)]
    return pd.concat(
        pd.DataFrame({"modality": m, "when": w, "norm": generator.normal(mean, 0.02 * mean, 99)}) for m, w, mean in parts
    )


def weights():
    rows = [
        {"example": f"scene {e}", "word": word, "row": i, "col": j, "weight": (i + j) / 90, "png": png()}
        for e, words in enumerate([["circle", "left"], ["blue"]])
        for word in words
        for i in range(6)
        for j in range(6)
    ]
    return pd.DataFrame(rows)


def learning():
    rows = [(s, g, min(0.9, 0.2 + s / 1e5)) for g in ("colour", "row") for s in (0, 1000, 20_000, 90_000)]
    frame = pd.DataFrame(rows, columns=["samples", "group", "accuracy"])
    return frame.assign(low=frame["accuracy"] - 0.05, high=frame["accuracy"] + 0.05, chance=0.25)


def shown_scenes(count=3, text="Q: what color is the circle ?\nA: red"):
    return pd.DataFrame({"png": [png()] * count, "title": [f"scene {i}" for i in range(count)], "text": [text] * count})


def attention_shares():
    rows = [
        ("system, vision and user", "system", 0.7),
        ("system, vision and user", "vision", 0.22),
        ("system, vision and user", "user", 0.08),
    ]
    rows += [("vision and user", "vision", 0.74), ("vision and user", "user", 0.26)]
    frame = pd.DataFrame(rows, columns=["comparison", "group", "share"])
    frame = frame.assign(low=frame["share"] - 0.03, high=frame["share"] + 0.03)
    return pd.concat([frame.assign(model="lab-llava"), frame.assign(model="+ Normalize + Multilayer")], ignore_index=True)


def head_balance(layers=4, heads=4, models=("lab-llava", "+ Normalize", "+ Normalize + Multilayer")):
    values = np.random.default_rng(0).uniform(size=(len(models), layers, heads))
    rows = [(i, j, values[m, i, j], model) for m, model in enumerate(models) for i in range(layers) for j in range(heads)]
    return pd.DataFrame(rows, columns=["layer", "head", "cmb", "model"])


def hidden_norms_by_layer(layers=4):
    places = [*((i, "stream") for i in range(layers + 1)), (layers, "final norm")]
    rows = [(i, s, g, norm * (i + 1)) for i, s in places for g, norm in (("vision", 40.0), ("user", 0.9), ("system", 1.1))]
    frame = pd.DataFrame(rows, columns=["layer", "site", "group", "norm"])
    return frame.assign(low=0.9 * frame["norm"], high=1.1 * frame["norm"])


def norm_ratios(layers=4):
    places = [*((i, "stream") for i in range(layers + 1)), (layers, "final norm")]
    rows = [(i, s, how, 40.0 / (i + 1), m) for i, s in places for how in ("mean_of_ratios", "ratio_of_means") for m in "ab"]
    frame = pd.DataFrame(rows, columns=["layer", "site", "how", "ratio", "model"])
    return frame.assign(low=0.9 * frame["ratio"], high=1.1 * frame["ratio"])


def entropies():
    rows = [(d, m, e) for d, es in (("2DS", (0.76, 0.9)), ("COCO", (0.81, 0.89))) for m, e in zip(("a", "b"), es, strict=True)]
    frame = pd.DataFrame(rows, columns=["dataset", "model", "entropy"])
    return frame.assign(low=frame["entropy"] - 0.02, high=frame["entropy"] + 0.02, n=40)


def phase(values, **axes):
    """Means and intervals of these values at each place of these axes."""
    frame = pd.MultiIndex.from_product([values, *axes.values()], names=["value", *axes]).to_frame(index=False)
    mean = np.sin(np.arange(len(frame))) / 50 + 0.03
    return frame.assign(mean=mean, low=mean - 0.01, high=mean + 0.01, n=20)


def phase_by_layer():
    return phase(["abs_delta_g_v", "delta_alpha_v"], model=["lab-llava", "a $20 model"], layer=range(5))


def phase_by_head():
    return phase(["delta_g_v"], layer=[3, 7, 11], head=range(4), delta=[1.0])


def phase_offline():
    return phase(["delta_alpha_v", "delta_alpha_v_rerun"], layer=range(3), delta=[-1.0, 1.0, 2.5, 6.0])


def phase_by_delta():
    return phase(["delta_alpha_v", "delta_alpha_v_rerun"], delta=[-4.0, -1.0, 1.0, 8.0])


def placed():
    groups = [("semantic.color", "semantic"), ("relation.horizontal", "spatial"), ("2ds.shape_color_abs", "spatial")]
    conditions = ("in place", "tokens shuffled", "tokens and ids shuffled together", "ids shuffled",
                  "one id for all, tokens shuffled", "one id for all", "ids shifted by +1", "ids shifted by +12",
                  "ids shifted by +1, height")  # fmt: skip
    rows = [(g, k, c, 1 - 0.1 * i - 0.05 * j) for i, (g, k) in enumerate(groups) for j, c in enumerate(conditions)]
    frame = pd.DataFrame(rows, columns=["group", "kind", "condition", "accuracy"])
    return frame.assign(low=frame["accuracy"] - 0.1, high=frame["accuracy"], chance=0.25, n=1000)


def kept_by_connector():
    axes = [["neighbours", "decoding"], ["what", "where"], ["pooled", "tokens"], ["pre", "pre_normed", "post"]]
    frame = pd.MultiIndex.from_product(axes, names=["view", "factor", "form", "site"]).to_frame(index=False)
    value = np.abs(np.sin(np.arange(len(frame))))
    return frame.assign(value=value, low=value - 0.04, high=value + 0.02, chance=0.1)


FRAMES = (
    {
        "balance.cmb": head_balance,
        "balance.shares": attention_shares,
        "heatmap.entropy": entropies,
        "hidden_norms.curves": hidden_norms_by_layer,
        "hidden_norms.ratios": norm_ratios,
        "heatmap.overlay": weights,
        "diagnostics.comparison": compared_runs,
        "norms.distributions": token_norms,
        "norms.violins": token_norms,
        "permutation.accuracy": accuracies,
        "positions.accuracy": placed,
        "permutation.psi": indices,
        "permutation.psi_by_distance": indices,
        "rope.curves": phase_by_layer,
        "rope.heads": phase_by_head,
        "rope.offline": phase_offline,
        "rope.sweep": phase_by_delta,
        "scenes.gallery": shown_scenes,
        "training.curves": learning,
        "where_what.before_after": kept_by_connector,
    }
    | SWAP_FRAMES
    | HEAD_FRAMES
    | GEOMETRY_FRAMES
    | RECONSTRUCTION_FRAMES
    | AUDIT_FRAMES
    | CAPTION_FRAMES
)


def texts(figure):
    """Every text that is really drawn (ticks out of sight are not), with its box in pixels."""
    drawn, draw = [], matplotlib.text.Text.draw

    def noting(self, renderer, *rest, **more):
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        return draw(self, renderer, *rest, **more)

    canvas = FigureCanvasAgg(figure)
    with pytest.MonkeyPatch.context() as patch, plots.style():
        patch.setattr(matplotlib.text.Text, "draw", noting)
        canvas.draw()
    return [(text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in drawn]


def assert_legible(figure):
    """Every text lies within the page, no two overlap."""
    width, height = figure.bbox.size
    boxes = texts(figure)
    for words, box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, f"{words!r} is cut"
    for place, (words, box) in enumerate(boxes):
        for others, other in boxes[place + 1 :]:
            across = min(box.x1, other.x1) - max(box.x0, other.x0)
            down = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert across <= 1 or down <= 1, f"{words!r} overlaps {others!r}"


def test_every_figure_function_is_known_by_name():
    assert plots.names() == sorted(FRAMES)
    with pytest.raises(ValueError, match=r"'permutation.acuracy'.*permutation.accuracy"):
        plots.resolve("permutation.acuracy")
    with pytest.raises(ValueError, match="no figure function"):
        plots.resolve("os.system")


@pytest.mark.parametrize("plot", sorted(FRAMES))
def test_figures_are_legible_and_say_which_model(plot):
    frame = FRAMES[plot]()
    frame.attrs["provenance"] = {"model": {"model": "lab-llava"}}
    figure = plots.draw(plot, frame, {})
    assert "model: lab-llava" in [words for words, _ in texts(figure)]
    assert_legible(figure)


@pytest.mark.parametrize("plot", sorted(FRAMES))
def test_same_table_same_bytes(plot, tmp_path):
    files = []
    for place in ("a", "b"):
        figure = plots.draw(plot, FRAMES[plot](), {})
        files.append(plots.save(figure, tmp_path / place / "x.y", {"seed": 1}, "A caption of norms: ‖v‖ × 3"))
    assert [path.name for path in files[0]] == ["x.y.png", "x.y.pdf"]
    for first, again in zip(*files, strict=True):
        assert first.read_bytes() == again.read_bytes()


def test_saved_files_hold_caption_and_provenance_and_no_date(tmp_path):
    image, pdf = plots.save(plots.draw("permutation.accuracy", accuracies(), {}), tmp_path / "x", {"seed": 1}, "Ein schöner Satz")
    with Image.open(image) as opened:
        assert opened.text["Description"] == "Ein schöner Satz"
        assert json.loads(opened.text["Provenance"]) == {"seed": 1}
        assert set(opened.text) == {"Description", "Provenance"}
        assert opened.size[0] == 7 * 200
    assert b"CreationDate" not in pdf.read_bytes()


def test_a_readers_own_settings_change_nothing(tmp_path):
    before = plots.save(plots.draw("training.curves", learning(), {}), tmp_path / "a", {})[0].read_bytes()
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "black", "savefig.dpi": 30, "lines.linewidth": 9}):
        after = plots.save(plots.draw("training.curves", learning(), {}), tmp_path / "b", {})[0].read_bytes()
    assert before == after


def test_style_leaves_no_trace():
    before = dict(matplotlib.rcParams)
    with plots.style():
        assert matplotlib.rcParams["font.size"] == 8
    assert dict(matplotlib.rcParams) == before


def test_options_and_columns_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"training.curves has no option 'colour'; legal: scale, ax, width"):
        plots.draw("training.curves", learning(), {"colour": "red"})
    for plot, make in FRAMES.items():
        frame = make()
        with pytest.raises(ValueError, match=f"{plot} needs the column '{frame.columns[0]}'"):
            plots.draw(plot, frame.drop(columns=frame.columns[0]), {})
        with pytest.raises(ValueError, match=f"{plot}: the table has no rows"):
            plots.draw(plot, frame.iloc[:0], {})


# --- each figure ---


def test_accuracy_puts_points_intervals_and_chance_where_the_table_says():
    frame = accuracies()
    ax = permutation.accuracy(frame).axes[0]
    for line in ax.lines:
        rows = frame[frame["condition"] == line.get_label()]
        assert sorted(line.get_xdata()) == pytest.approx(sorted(rows["accuracy"]))
    ends = [segment[:, 0] for collection in ax.collections[:2] for segment in collection.get_segments()]
    assert sorted(map(tuple, np.round(ends, 6))) == sorted(map(tuple, np.round(frame[["low", "high"]].to_numpy(), 6)))
    chances = {round(segment[0, 0], 6) for segment in ax.collections[2].get_segments()}
    assert chances == {round(1 / 6, 6), 0.5}
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["semantic.colour  (n = 200)", "relation.horizontal  (n = 200)"]


def test_unknown_chance_is_left_out():
    assert_legible(plots.draw("permutation.accuracy", accuracies().assign(chance=np.nan), {}))
    figure = plots.draw("training.curves", learning().assign(chance=np.nan), {})
    assert "colour" in [words for words, _ in texts(figure)] and not any("nan" in words for words, _ in texts(figure))


def test_accuracy_draws_into_given_axes():
    ax = Figure().subplots()
    assert permutation.accuracy(accuracies(), ax=ax) is ax.figure
    assert training.curves(learning(), ax=(other := Figure().subplots())) is other.figure


def test_accuracy_heads_each_kind_semantic_and_spatial_first():
    frame = accuracies().assign(kind=["depth", "depth", "spatial", "spatial"])
    frame = pd.concat([frame, accuracies().assign(group=lambda rows: rows["group"] + " again")])
    figure = plots.draw("permutation.accuracy", frame, {})
    assert [text.get_text() for text in figure.axes[0].texts] == ["semantic", "spatial", "depth"]
    assert_legible(figure)


def test_accuracy_refuses_repeated_rows():
    with pytest.raises(ValueError, match=r"'semantic\.colour' under 'original' stands twice"):
        permutation.accuracy(pd.concat([accuracies(), accuracies()]))


def test_norms_print_medians_and_their_ratio():
    frame = token_norms()
    figure = norms.distributions(frame)
    trained = frame[frame["when"] == "trained"].groupby("modality")["norm"].median()
    assert figure.axes[0].get_title(loc="left") == (
        f"trained: medians differ by a factor of {trained['vision'] / trained['text']:.3g} (vision / text)"
    )
    assert {text.get_text() for text in figure.axes[0].texts} == {f"{name}  {median:.3g}" for name, median in trained.items()}


@pytest.mark.parametrize("vision", [0.9, 0.91, 1.2])
def test_norms_are_legible_where_the_medians_meet(vision):
    assert_legible(plots.draw("norms.distributions", token_norms(vision), {}))


def test_norms_are_legible_where_the_medians_are_one():
    frame = pd.DataFrame({"modality": ["vision", "text"], "when": "trained", "norm": 1.0})
    assert_legible(plots.draw("norms.distributions", frame, {}))


def test_violins_mark_quartiles_and_range_where_the_table_says():
    frame = token_norms().reset_index(drop=True)
    ax = norms.violins(frame).axes[0]
    marks = [segment for lines in ax.collections if isinstance(lines, LineCollection) for segment in lines.get_segments()]
    across = sorted(segment[:, 0].tolist() for segment in marks if segment[0, 1] == segment[1, 1])
    upright = sorted(segment[0, 0] for segment in marks if segment[0, 0] == segment[1, 0])
    logs = np.log(frame["norm"]).groupby([frame["when"], frame["modality"]])
    assert np.allclose(across, sorted(np.exp([logs.min(), logs.max()]).T.tolist()))
    assert np.allclose(upright, sorted(np.exp(np.concatenate([logs.quantile(level) for level in (0.25, 0.5, 0.75)]))))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["trained", "initial"]
    places = sorted({segment[0, 1] for segment in marks if segment[0, 1] == segment[1, 1]})
    assert len(places) == 4 and np.diff(places).min() > 0.5  # no two violins in one place


def test_violins_show_the_density():
    """Half of the tokens at 1, half at 100: two humps of equal height, next to nothing between them."""
    axis = np.linspace(-2, 7, 600)
    rng = np.random.default_rng(0)
    logs = np.concatenate([rng.normal(0, 0.1, 5000), rng.normal(np.log(100), 0.1, 5000)])
    height = norms._density(logs, axis)
    at = dict(zip(("one", "ten", "hundred"), np.interp(np.log([1, 10, 100]), axis, height), strict=True))
    assert at["one"] > 0.9 and at["hundred"] > 0.9 and at["ten"] < 0.01 and height.max() == 1
    wide = rng.normal(2, 0.5, 20_000)
    assert np.allclose(norms._density(wide, axis), np.exp(-0.5 * ((axis - 2) / 0.5) ** 2), atol=0.06)
    assert norms._density(np.zeros(3), axis).max() == 1  # all alike: a narrow one


def test_violins_are_legible_with_many_long_names_and_zeros():
    frame = pd.concat(
        [token_norms().assign(when=lambda rows, i=i: rows["when"] + f" after {i} steps of training") for i in range(4)]
    )
    frame = frame.reset_index(drop=True)
    frame.loc[:3, "norm"] = 0.0
    figure = plots.draw("norms.violins", frame, {})
    assert_legible(figure)
    assert any("(4 of 0 not shown)" in words for words, _ in texts(figure))
    assert_legible(plots.draw("norms.violins", frame[frame["modality"] == "vision"], {}))


def test_index_puts_marks_intervals_and_chance_where_the_table_says():
    frame = indices()
    ax = permutation.psi(frame).axes[0]
    for line in ax.lines[1:]:
        rows = frame[(frame["permutation"] == line.get_label()) & frame["psi"].notna()]
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        assert sorted(x[~np.isnan(x)]) == pytest.approx(sorted(rows["psi"])) and len(set(y)) == 3
    names = list(dict.fromkeys(frame["permutation"]))
    heights = {line.get_label(): line.get_ydata()[0] for line in ax.lines[1:]}
    assert [heights[name] for name in names] == sorted(heights.values())  # one below the other, none on another
    assert [text.get_text() for text in ax.texts] == ["semantic", "spatial", "none right in place"]
    with pytest.raises(ValueError, match=r"'semantic\.colour' under 'full' stands twice"):
        permutation.psi(pd.concat([frame, frame]))
    kinds = frame[frame["group"] != "corner"].assign(group=lambda rows: rows["kind"])
    assert not permutation.psi(kinds).axes[0].texts  # a row called like its kind has no heading


def test_index_against_distance_has_every_permutation_once_and_joins_one_sort():
    frame = indices()
    ax = permutation.psi_by_distance(frame).axes[0]
    marks = [line for line in ax.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 1]
    found = sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in marks if not np.isnan(line.get_ydata()[0]))
    known = frame.dropna(subset="psi")
    np.testing.assert_allclose(found, sorted(zip(known["moved"], known["psi"], strict=True)))
    looks = {(line.get_marker(), line.get_fillstyle()) for line in marks}
    assert len(looks) == frame["permutation"].nunique() == 14  # more than there are shapes: told apart by filling
    assert max(len(line.get_xdata()) for line in ax.lines if line.get_linestyle() == "-") == 11
    with pytest.raises(ValueError, match="moved is NaN"):
        permutation.psi_by_distance(frame.assign(moved=np.nan))
    with pytest.raises(ValueError, match="stands twice"):
        permutation.psi_by_distance(pd.concat([frame, frame]))


def test_accuracy_of_several_permutations_names_each():
    frame = accuracies().assign(permutation=lambda rows: rows["condition"].map({"original": "in place", "permuted": "full"}))
    again = frame[frame["condition"] == "permuted"].assign(permutation="rows", accuracy=0.7, low=0.6, high=0.8)
    figure = plots.draw("permutation.accuracy", pd.concat([frame, again]), {})
    assert [line.get_label() for line in figure.axes[0].lines] == ["original", "full", "rows"]
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours[0] == plots.COLOURS["original"] and len(set(colours)) == 3
    assert_legible(figure)


def test_norms_of_zero_are_counted_and_impossible_ones_refused():
    frame = token_norms().reset_index(drop=True)
    frame.loc[:3, "norm"] = 0.0
    assert norms.distributions(frame).axes[0].get_title(loc="left").endswith("; 4 norms of 0 not shown")
    with pytest.raises(ValueError, match="1 norms are negative, NaN"):
        norms.distributions(frame.assign(norm=[*frame["norm"][1:], np.nan]))
    with pytest.raises(ValueError, match="every norm is 0"):
        norms.distributions(frame.assign(norm=0.0))


LONG = "Q: is the red circle left or right of the blue square?\nA: left, as in Donaudampfschifffahrtsgesellschaftskapitänspatent"


@pytest.mark.parametrize("count", [1, 2, 4, 5, 12])
@pytest.mark.parametrize("width", ["one", "two"])
def test_scenes_text_never_overlaps(count, width):
    frame = shown_scenes(count, LONG)
    frame.loc[0, "title"] = "a title that is much too long for its one small picture " * 2
    frame.loc[count - 1, "png"] = png(size=(20, 60))  # tall
    with plots.style():
        assert_legible(scenes.gallery(frame, columns=3, width=width))


def test_scenes_print_dollars_and_say_what_does_not_fit():
    words = [text for text, _ in texts(scenes.gallery(shown_scenes(1, "costs $3, not $4_2")))]
    assert "costs $3, not $4_2" in words
    with pytest.raises(ValueError, match="13 pictures; at most 12"):
        scenes.gallery(shown_scenes(13))
    with pytest.raises(ValueError, match="columns=0"):
        scenes.gallery(shown_scenes(3), columns=0)
    with pytest.raises(ValueError, match="no picture"):
        scenes.gallery(shown_scenes(1).assign(png=[b"not a picture"]))


@given(st.text(st.characters(codec="latin-1", categories=["L", "N", "P", "Zs"]), max_size=60), st.floats(0.3, 2.5))
@settings(deadline=None, max_examples=40)
def test_wrapped_lines_fit_and_lose_nothing(text, room):
    lines = scenes.wrap(text, room, "normal")
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(scenes.text_width(line, "normal") <= room or len(line) == 1 for line in lines)


def test_overlay_shares_one_scale_and_leaves_unused_panels_empty():
    frame = weights()
    figure = heatmap.overlay(frame, label="attention", unit="share")
    panels = [ax for ax in figure.axes if len(ax.images) == 2]
    assert len(panels) == 3
    assert {(ax.images[1].norm.vmin, ax.images[1].norm.vmax) for ax in panels} == {(0.0, frame["weight"].max())}
    assert [ax.get_title() for ax in panels] == ["circle", "left", "blue"]
    np.testing.assert_allclose(panels[0].images[1].get_array()[2, 3], 5 / 90)
    assert "attention (share)" in [words for words, _ in texts(figure)]


def test_overlay_draws_the_box_in_fractions_of_the_picture():
    frame = weights().assign(x_min=0.25, y_min=0.5, x_max=0.5, y_max=1.0)
    frame.loc[frame["word"] == "left", ["x_min", "y_min", "x_max", "y_max"]] = np.nan
    panels = [ax for ax in heatmap.overlay(frame).axes if len(ax.images) == 2]
    assert [len(ax.patches) for ax in panels] == [2, 0, 2]
    assert panels[0].patches[0].get_bbox().bounds == (0.25, 0.5, 0.25, 0.5)


def test_overlay_refuses_what_it_cannot_show():
    with pytest.raises(ValueError, match=r"cell \(0, 0\) of 'scene 0', 'circle' stands twice"):
        heatmap.overlay(pd.concat([weights(), weights()]))
    with pytest.raises(ValueError, match="negative or NaN"):
        heatmap.overlay(weights().assign(weight=-0.1))
    with pytest.raises(ValueError, match="row holds what is no place"):
        heatmap.overlay(weights().assign(row=weights()["row"] - 1))
    assert heatmap.overlay(weights().assign(weight=0.0)).axes  # nothing attended: drawn, all clear


def test_curves_keep_the_untrained_point_on_a_log_axis():
    figure = training.curves(learning())
    ax = figure.axes[0]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1,000", "2,000", "5,000", "10,000", "20,000", "50,000"]
    assert ax.get_xscale() == "symlog" and ax.lines[0].get_xdata()[0] == 0
    assert training.curves(learning().query("samples > 0")).axes[0].get_xscale() == "log"
    assert training.curves(learning(), scale="linear").axes[0].get_xscale() == "linear"
    assert training.curves(learning().query("samples == 1000")).axes[0].get_xscale() == "log"
    with pytest.raises(ValueError, match="scale 'square' is not one of log, linear"):
        training.curves(learning(), scale="square")
    with pytest.raises(ValueError, match="'colour' stands twice at 0 samples"):
        training.curves(pd.concat([learning(), learning()]))


def test_eight_colours_are_told_apart_and_fixed():
    assert len({*plots.CYCLE}) == len(plots.CYCLE) == 8
    assert len({*plots.COLOURS.values()}) == len(plots.COLOURS)
    assert plots.colour("vision", 5) == plots.COLOURS["vision"] and plots.colour("elsewhere", 9) == plots.CYCLE[1]


# --- drawing again ---


def test_redraw_rebuilds_every_figure_without_torch(tmp_path):
    run = tmp_path / "data" / "runs" / "training-lab"
    save_table(learning(), run / "tables" / "training.parquet", {"model": "lab-llava"})
    drawn = [
        plots.Drawn("curves", "training.curves", "training", "On a log axis."),
        plots.Drawn("linear", "training.curves", "training", "On a linear axis.", {"scale": "linear"}),
    ]
    plots.save_drawn(drawn, run)
    (tmp_path / "data" / "runs" / ".work").mkdir()
    written = plots.redraw(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        f"figures/training-lab/{name}" for name in ("curves.png", "curves.pdf", "linear.png", "linear.pdf")
    ]
    before = {path: path.read_bytes() for path in written}
    for path in written:
        path.unlink()
    program = textwrap.dedent(
        f"""
        import sys
        sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises ImportError
        from spatialprobes import plots
        plots.redraw({str(tmp_path)!r})
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": "lib"})
    assert {path: path.read_bytes() for path in written} == before


def test_redraw_draws_what_it_can_and_lists_the_rest(tmp_path):
    run = tmp_path / "data" / "runs" / "a"
    save_table(learning(), run / "tables" / "training.parquet", {})
    plots.save_drawn(
        [plots.Drawn("gone", "training.curves", "lost", "x"), plots.Drawn("kept", "training.curves", "training", "x")], run
    )
    (tmp_path / "data" / "runs" / "b").mkdir()
    (tmp_path / "data" / "runs" / "b" / "figures.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"(?s)^2 could not be redrawn:.*a/gone: no table.*b/figures.json"):
        plots.redraw(tmp_path)
    assert (tmp_path / "figures" / "a" / "kept.png").is_file()


def test_what_draws_and_tells_imports_without_torch():
    program = textwrap.dedent(
        """
        import importlib, sys
        sys.modules["torch"] = sys.modules["transformers"] = None
        for name in ("tables", "stats", "claims", "plots", "record", "gallery", "runs"):
            importlib.import_module(f"spatialprobes.{name}")
        from spatialprobes import plots
        assert plots.names()
        """
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "PYTHONPATH": "lib"})
