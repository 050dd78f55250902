"""Figures of connector geometry: what is drawn is what the table says, and tables that say too much or nonsense are refused."""

import matplotlib.patches
import numpy as np
import pandas as pd
import pytest
from geometry_tables import MODELS, likeness, mean_spectra, overlaps, reference_overlaps, spectral_summary
from test_plots import assert_legible, texts

from spatialprobes import plots
from spatialprobes.plots import geometry, spectra


def words(figure):
    return [text for text, _ in texts(figure)]


def test_lines_bands_floor_and_chance_stand_where_the_table_says():
    frame = overlaps()
    ax = geometry.knor(frame).axes[0]
    drawn = {tuple(np.round(line.get_ydata(), 9)) for line in ax.lines}
    own = frame[frame["comparison"] == "pre"]
    for _, part in own.groupby("model"):
        assert tuple(part["knor"].round(9)) in drawn
    assert {tuple(own[column].iloc[:3].round(9)) for column in ("floor", "chance")} <= drawn and len(drawn) == 6
    for band, (_, part) in zip(ax.collections, own.groupby("model", sort=False), strict=True):
        ends = band.get_paths()[0].vertices[:, 1]
        assert (ends.min(), ends.max()) == pytest.approx((part["low"].min(), part["high"].max()))
    assert ax.get_ylim()[1] > frame["high"].max()


def test_floors_of_their_own_are_in_the_colour_of_their_line():
    frame = overlaps(model=MODELS[:2], comparison=("pre",))
    frame["floor"] = frame["floor"].where(frame["model"] == MODELS[0], 0.0)
    figure = plots.draw("geometry.knor", frame, {})
    dashed = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_color() for line in dashed] == [plots.CYCLE[0], plots.GREY]  # the floor of one line, chance of both
    assert_legible(figure)


def test_no_floor_is_not_in_the_legend():
    assert "copies alone" in words(plots.draw("geometry.knor", overlaps(), {}))
    for plot in ("geometry.knor", "geometry.bars"):
        shown = words(plots.draw(plot, overlaps().assign(floor=0.0), {}))
        assert "copies alone" not in shown and "chance" in shown


@pytest.mark.parametrize("width", ["one", "two"])
def test_one_space_alone_needs_no_names(width):
    frame = overlaps().query("model == 'lab-llava' and comparison == 'pre'").drop(columns=["model", "comparison"])
    for plot in ("geometry.knor", "geometry.bars"):
        assert_legible(plots.draw(plot, frame, {"width": width}))


def bars_of(ax):
    return [patch.get_height() for patch in ax.patches if isinstance(patch, matplotlib.patches.Rectangle)]


def test_bars_are_grouped_by_model_and_panelled_by_reference():
    frame = reference_overlaps()
    figure = plots.draw("geometry.bars", frame, {"k": 10, "bar": "site"})
    assert_legible(figure)
    shown = words(figure)
    assert {"before", "before, normed", "after", "lab-clip", "lab-dino"} <= set(shown) and "overlap at k = 10, share" in shown
    for ax, name in zip(figure.axes, ("lab-clip", "lab-dino"), strict=True):
        own = frame[(frame["reference"] == name) & (frame["k"] == 10)].set_index(["site", "model"])["knor"]
        expected = [own[site, model] for site in ("pre", "pre_normed", "post") for model in MODELS]
        assert bars_of(ax) == pytest.approx(expected)
    assert bars_of(geometry.bars(frame, bar="site").axes[0])[0] == pytest.approx(
        frame[(frame["k"] == 100) & (frame["site"] == "pre")]["knor"].iloc[0]
    )


def test_likeness_has_a_mark_with_an_interval_for_each_measure():
    frame = likeness()
    figure = geometry.similarity(frame)
    own = frame[frame["comparison"] == "pre"]
    marks = np.concatenate([line.get_xdata() for line in figure.axes[0].lines if line.get_marker() not in ("", "None")])
    assert sorted(marks) == pytest.approx(sorted(own["estimate"]))
    ends = np.array([segment[:, 0] for lines in figure.axes[0].collections for segment in lines.get_segments()])
    assert ends[np.lexsort(ends.T)] == pytest.approx(
        own[["low", "high"]].to_numpy()[np.lexsort(own[["low", "high"]].to_numpy().T)]
    )
    assert_legible(plots.draw("geometry.similarity", frame[frame["model"] == MODELS[0]].drop(columns="model"), {}))


def test_spectra_are_drawn_by_site_without_what_is_rounding():
    frame = mean_spectra()
    frame.loc[frame["component"] > 50, ["energy", "singular_value"]] = 1e-12
    for value in ("energy", "singular_value"):
        figure = plots.draw("spectra.curves", frame, {"value": value})
        assert_legible(figure)
        ax = figure.axes[0]
        own = frame[(frame["model"] == MODELS[0]) & (frame["site"] == "pre") & (frame["component"] <= 50)]
        assert ax.lines[0].get_ydata() == pytest.approx(own[value]) and ax.get_yscale() == "log"
        assert len(ax.collections) == (3 if value == "energy" else 0)


def test_each_measure_has_an_axis_of_its_own_and_says_the_ratio():
    frame = spectral_summary()
    figure = plots.draw("spectra.bars", frame, {})
    assert_legible(figure)
    tops = [ax.get_ylim()[1] for ax in figure.axes]
    assert max(tops) > 30 * min(tops)
    own = frame[(frame["measure"] == "effective_rank") & (frame["model"] == MODELS[0])].set_index("site")["estimate"]
    assert f"×{own['post'] / own['pre']:.2g}" in words(figure)
    assert sorted(bars_of(figure.axes[0])) == pytest.approx(sorted(frame[frame["measure"] == "effective_rank"]["estimate"]))
    assert "×: after over before" in words(figure)
    one = plots.draw("spectra.bars", frame, {"measures": ["k90_energy"], "width": "one"})
    assert len(one.axes) == 1 and "components for 90% of energy" in words(one)
    massive = frame.assign(estimate=frame["estimate"] * np.where(frame["site"] == "post", 12345.0, 1))
    assert_legible(plots.draw("spectra.bars", massive.assign(high=massive["estimate"]), {}))
    assert not [w for w in words(plots.draw("spectra.bars", frame[frame["site"] == "pre"], {})) if "×" in w]


def twice(frame):
    return pd.concat([frame, frame.iloc[:1]])


@pytest.mark.parametrize(
    ("plot", "frame", "options", "fault"),
    [
        ("geometry.knor", twice(overlaps()), {}, "comparison pre, model lab-llava, k 10 stands twice"),
        ("geometry.knor", overlaps().assign(knor=1.2), {}, "a share is not between 0 and 1"),
        ("geometry.bars", overlaps().assign(chance=np.nan), {}, "a share is not between 0 and 1, or is NaN"),
        ("geometry.bars", overlaps(), {"k": 20}, "no overlap at k = 20; there: 10, 50, 100"),
        ("geometry.bars", reference_overlaps(), {}, "stands twice"),
        ("geometry.similarity", twice(likeness()), {}, "measure pearson, metric l2 stands twice"),
        ("geometry.similarity", likeness().assign(measure="rv"), {}, "rv of l2 is no measure"),
        ("spectra.curves", twice(mean_spectra()), {}, "component 1 stands twice"),
        ("spectra.curves", mean_spectra(), {"value": "power"}, "value 'power' is not one of energy, singular_value"),
        ("spectra.bars", spectral_summary(), {"measures": ["rank"]}, "no measure 'rank'; there: effective_rank"),
        ("spectra.bars", twice(spectral_summary()), {}, "measure effective_rank stands twice"),
        ("spectra.bars", spectral_summary().assign(measure="rank"), {}, "no measure 'effective_rank'; there: rank"),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(plot, frame, options, fault):
    with pytest.raises(ValueError, match=fault):
        plots.draw(plot, frame, options)


def test_the_probes_tables_can_be_drawn():
    from spatialprobes.probes import neighbours, similarity
    from spatialprobes.probes import spectra as spectrum

    a = np.random.default_rng(0).normal(size=(40, 6))
    b = a + np.random.default_rng(1).normal(size=(40, 6))
    keys = [str(i) for i in range(40)]
    table = neighbours.summary(neighbours.measure(a, b, keys, ks=(3, 10)), n=100)
    for plot in ("geometry.knor", "geometry.bars"):
        assert_legible(plots.draw(plot, table, {}))
    assert_legible(plots.draw("geometry.similarity", similarity.measure(a, b), {}))
    x = np.random.default_rng(2).normal(size=(6, 7, 9))
    states = {site: spectrum.collect(x * (i + 1), keys[:6]) for i, site in enumerate(("pre", "post"))}
    curves = pd.concat([spectrum.spectrum(one.singular_values).assign(site=site) for site, one in states.items()])
    assert_legible(plots.draw("spectra.curves", curves, {}))
    rows = pd.concat([one.table().assign(site=site) for site, one in states.items()])
    assert_legible(plots.draw("spectra.bars", spectrum.summary(rows, ["site"], n=100), {}))
    assert spectra.SHOWN and set(spectra.MEASURES) == set(spectrum.MEASURES)
