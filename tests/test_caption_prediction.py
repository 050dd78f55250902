"""Correlations against scipy and statsmodels, partial ones against regressions, and the study's own numbers on its own files."""

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from spatialprobes.probes.caption_prediction import COLUMNS, correlate, correlation, simpson
from spatialprobes.stats import benjamini_hochberg


def drawn(n=120, seed=0, controls=2):
    """x and y that share a cause: correlated raw, and not once it is held constant."""
    rng = np.random.default_rng(seed)
    held = rng.normal(size=(n, controls))
    x = held @ rng.normal(size=controls) + rng.normal(size=n)
    y = held @ np.full(controls, 2.0) + np.exp(rng.normal(size=n))
    return x, y, held


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_raw_correlations_and_their_p_are_scipys(kind):
    x, y, _ = drawn()
    x[:20] = x[0]  # ties
    expected = getattr(stats, f"{kind}r")(x, y)
    found = correlation(x, y, kind=kind, interval="fisher")
    assert (found.r, found.p) == (pytest.approx(expected.statistic), pytest.approx(expected.pvalue))
    if kind == "pearson":
        interval = expected.confidence_interval(0.95)
        assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (found.n, found.clusters) == (120, 120)


@given(st.integers(0, 999), st.integers(1, 4))
@settings(deadline=None, max_examples=25)
def test_partial_correlations_are_the_regressions_t_test(seed, controls):
    """r / sqrt(1 - r^2) sqrt(df) is the t of x in the regression of y on x and the controls."""
    x, y, held = drawn(40, seed, controls)
    found = correlation(x, y, held, interval="fisher")
    fit = sm.OLS(y, sm.add_constant(np.column_stack([x, held]))).fit()
    assert found.p == pytest.approx(fit.pvalues[1], rel=1e-6)
    t = found.r * np.sqrt((40 - 2 - controls) / (1 - found.r**2))
    assert t == pytest.approx(fit.tvalues[1], rel=1e-6)


def test_a_shared_cause_is_taken_out_and_ranks_first():
    x, y, held = drawn(2000, 3)
    assert abs(correlation(x, y, interval="fisher").r) > 0.2
    partial = correlation(x, y, held, interval="fisher")
    assert abs(partial.r) < 0.05 and partial.low < 0 < partial.high
    ranked = [stats.rankdata(column) for column in (x, y, *held.T)]
    residuals = [own - sm.OLS(own, sm.add_constant(np.column_stack(ranked[2:]))).fit().fittedvalues for own in ranked[:2]]
    expected = stats.pearsonr(*residuals).statistic
    assert correlation(x, y, held, kind="spearman", interval="fisher").r == pytest.approx(expected)


@given(st.floats(-5, 5), st.floats(0.1, 9), st.sampled_from(["pearson", "spearman"]))
@settings(deadline=None, max_examples=20)
def test_shifts_and_scales_change_nothing(shift, scale, kind):
    x, y, held = drawn(50, 7)
    one = correlation(x, y, held, kind=kind, interval="fisher")
    other = correlation(shift + scale * x, y, held, kind=kind, interval="fisher")
    opposite = correlation(-x, y, held, kind=kind, interval="fisher")
    assert one.r == pytest.approx(other.r) == pytest.approx(-opposite.r)


def slow_draws(x, y, held, clusters, n, seed):
    """Partial correlations of drawn clusters, row by row and by regression."""
    labels = np.unique(clusters)
    found = []
    for weights in np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=n):
        rows = np.concatenate([np.flatnonzero(clusters == one) for one, k in zip(labels, weights, strict=True) for _ in range(k)])
        left = [own[rows] - sm.OLS(own[rows], sm.add_constant(held[rows])).fit().fittedvalues for own in (x, y)]
        found.append(stats.pearsonr(*left).statistic)
    return np.array(found)


def test_bootstrap_intervals_equal_drawing_clusters_row_by_row():
    x, y, held = drawn(60, 5)
    clusters = np.repeat(np.arange(20), 3)[np.random.default_rng(0).permutation(60)]
    found = correlation(x, y, held, clusters=clusters, draws=150, seed=4)
    expected = np.quantile(slow_draws(x, y, held, clusters, 150, 4), [0.025, 0.975])
    np.testing.assert_allclose([found.low, found.high], expected, atol=1e-9)
    assert found.clusters == 20 and found.n == 60


def test_copies_of_pictures_widen_the_interval_and_do_not_help_p():
    x, y, _ = drawn(80, 9)
    once = correlation(x, y)
    alone, copied = np.arange(80), np.tile(np.arange(80), 5)
    many = [np.tile(one, 5) for one in (x, y)]
    naive, right = correlation(*many), correlation(*many, clusters=copied)
    assert naive.p < once.p / 100 and naive.high - naive.low < 0.6 * (once.high - once.low)
    assert right.p == pytest.approx(once.p) and right.r == pytest.approx(once.r)
    assert (right.low, right.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert correlation(x, y, clusters=alone) == once


def test_bootstrap_and_fisher_agree_on_normal_data_and_cover():
    rng, covered = np.random.default_rng(1), {"bootstrap": 0, "fisher": 0}
    for _ in range(120):
        x = rng.normal(size=150)
        y = 0.5 * x + rng.normal(size=150) * np.sqrt(0.75)
        for interval in covered:
            found = correlation(x, y, interval=interval, draws=400)
            covered[interval] += found.low <= 0.5 <= found.high
    assert all(0.88 <= count / 120 <= 1 for count in covered.values())


def test_what_cannot_be_correlated_is_missing_or_refused():
    x, y, held = drawn(30)
    assert np.isnan(correlation(np.ones(30), y)[:4]).all()
    assert np.isnan(correlation(held[:, 0], y, held)[:4]).all()  # the controls leave nothing of x
    assert np.isnan(correlation(x[:5], y[:5], held[:5])[:4]).all() and correlation(x[:5], y[:5], held[:5]).n == 5
    perfect = correlation(x, 2 * x)
    assert perfect.r == pytest.approx(1) and perfect.p < 1e-100 and perfect.low == pytest.approx(1)
    with pytest.raises(ValueError, match="1 of 30 rows hold NaN"):
        correlation(np.where(np.arange(30) == 3, np.nan, x), y)
    with pytest.raises(ValueError, match="columns of 30, 29 rows"):
        correlation(x, y[1:])
    with pytest.raises(ValueError, match="kind='kendall' is unknown"):
        correlation(x, y, kind="kendall")
    with pytest.raises(ValueError, match="interval='normal' is unknown"):
        correlation(x, y, interval="normal")
    with pytest.raises(ValueError, match="draws=10 are too few"):
        correlation(x, y, draws=10)
    with pytest.raises(ValueError, match="clusters has 2 rows"):
        correlation(x, y, clusters=[1, 2])


# ---- tables ----
def pictures(n=60):
    frames = []
    for i, model in enumerate(("one", "two")):
        x, y, held = drawn(n, i, 1)
        rows = {"model": model, "cosine": x, "drop": y, "base": held[:, 0], "copy": [f"{model}{k // 2}" for k in range(n)]}
        frames.append(pd.DataFrame(rows))
    return pd.concat(frames, ignore_index=True)


def test_every_pair_raw_and_partial_for_each_model_and_set_of_rows():
    frame = pictures()
    frame.loc[3, "drop"] = np.nan
    found = correlate(frame, ["cosine"], ["drop"], controls={"baseline": ["base"]}, duplicates="copy", draws=200)
    assert found.columns.tolist() == ["model", *COLUMNS] and len(found) == 2 * 2 * 2 * 2
    at = found.set_index(["model", "rows", "controls", "kind"])
    own = frame[(frame["model"] == "one") & frame["drop"].notna()]
    raw, partial = at.loc[("one", "all", "", "pearson")], at.loc[("one", "all", "baseline", "pearson")]
    assert raw["r"] == pytest.approx(own["cosine"].corr(own["drop"])) and (raw["n"], raw["clusters"], raw["left_out"]) == (
        59,
        30,
        1,
    )
    assert partial["r"] == pytest.approx(correlation(own["cosine"], own["drop"], own[["base"]]).r)
    first = own.drop_duplicates("copy")
    assert at.loc[("one", "deduplicated", "", "spearman"), "r"] == pytest.approx(
        first["cosine"].corr(first["drop"], method="spearman")
    )
    assert at.loc[("two", "deduplicated", "", "pearson"), "n"] == 30
    np.testing.assert_allclose(found["q"], benjamini_hochberg(found["p"].to_numpy()))


def test_tests_without_a_value_do_not_count_in_q():
    frame = pictures().assign(flat=1.0)
    found = correlate(frame, ["cosine", "flat"], ["drop"], kinds=["pearson"], interval="fisher")
    assert found["q"].isna().tolist() == [False, True, False, True]
    tested = found.dropna(subset="p")
    np.testing.assert_allclose(tested["q"], benjamini_hochberg(tested["p"].to_numpy()))


def test_missing_columns_and_nothing_to_do_are_said():
    with pytest.raises(ValueError, match="no column 'mse'; the table has model"):
        correlate(pictures(), ["mse"], ["drop"])
    with pytest.raises(ValueError, match="no column 'length'"):
        correlate(pictures(), ["cosine"], ["drop"], controls={"length": ["length"]})
    with pytest.raises(ValueError, match="nothing to correlate"):
        correlate(pictures(), [], ["drop"])
    with pytest.raises(ValueError, match="1 model in the table"):
        simpson(pictures().query("model == 'one'"), ["cosine"], ["drop"])


def test_pooling_models_shows_beside_what_is_within_them():
    """Two models far apart, each with a falling line: pooled it rises."""
    rng = np.random.default_rng(0)
    frames = []
    for model, centre in (("one", 0.0), ("two", 10.0)):
        x = rng.normal(size=200)
        frames.append(pd.DataFrame({"model": model, "x": centre + x, "y": centre - 0.5 * x + rng.normal(size=200)}))
    for kind in ("pearson", "spearman"):
        (row,) = simpson(pd.concat(frames), ["x"], ["y"], kind=kind, draws=300).to_dict("records")
        assert row["pooled"] > 0.5 and row["within"] < -0.3 and row["misleads"] is True
        assert row["least"] <= row["within"] <= row["greatest"] < 0 and (row["n"], row["models"]) == (400, 2)
    alike = [frame.assign(x=frame["x"] - frame["x"].mean(), y=frame["y"] - frame["y"].mean()) for frame in frames]
    assert not simpson(pd.concat(alike), ["x"], ["y"], draws=300)["misleads"].any()


# ---- the study's files ----
@pytest.fixture(scope="module")
def published(real_data):
    frames = []
    for model in ("llava", "qwen2.5vl"):
        path = real_data / "vlm_connectors/sample/caption_compare_out_nor" / model / "caption_original_vs_recon.csv"
        frame = pd.read_csv(path, dtype={"key": str})
        words = [frame[name].fillna("").str.split().str.len() for name in ("caption_recon", "caption_post_direct")]
        copies = frame["reproj_mse_recon"].map(repr) + " " + frame["reproj_cosine_recon"].map(repr)
        frames.append(frame.assign(words_changed=(words[0] - words[1]).abs(), copy=copies))
    return pd.concat(frames, ignore_index=True)


def test_the_studys_correlations_are_found_and_what_its_baseline_hid(published):
    found = correlate(
        published, ["reproj_cosine_recon"], ["clipscore_drop", "bertscore_recon_vs_post_f1"],
        controls={"baseline": ["clipscore_post_direct"]}, duplicates="copy", interval="fisher",
    ).set_index(["model", "outcome", "kind", "controls", "rows"])["r"].sort_index()  # fmt: skip
    for model, raw, ranks, bert, partial in (("llava", -0.001, 0.037, 0.042, -0.07), ("qwen2.5vl", -0.057, -0.043, 0.124, -0.10)):
        drop = found.loc[model, "clipscore_drop"]
        assert drop["pearson", "", "all"] == pytest.approx(raw, abs=1e-3)
        assert drop["spearman", "", "all"] == pytest.approx(ranks, abs=1e-3)
        assert found.loc[model, "bertscore_recon_vs_post_f1", "pearson", "", "all"] == pytest.approx(bert, abs=1e-3)
        assert drop["pearson", "baseline", "deduplicated"] == pytest.approx(partial, abs=5e-3)
    counts = correlate(published, ["reproj_cosine_recon"], ["clipscore_drop"], duplicates="copy", interval="fisher")
    assert set(counts.loc[counts["rows"] == "deduplicated", "n"]) == {1477}


def test_baseline_and_length_predict_better_than_the_connector(published):
    found = correlate(
        published, ["clipscore_post_direct", "words_changed", "reproj_cosine_recon"],
        ["clipscore_drop", "bertscore_recon_vs_post_f1"], kinds=["pearson"], interval="fisher",
    ).set_index(["model", "predictor", "outcome"])["r"]  # fmt: skip
    for model, baseline, length in (("llava", 0.32, -0.61), ("qwen2.5vl", 0.37, -0.46)):
        assert found[model, "clipscore_post_direct", "clipscore_drop"] == pytest.approx(baseline, abs=5e-3)
        assert found[model, "words_changed", "bertscore_recon_vs_post_f1"] == pytest.approx(length, abs=5e-3)
        assert abs(found[model, "reproj_cosine_recon", "clipscore_drop"]) < 0.1


def test_a_pooled_correlation_misleads_on_the_studys_own_files(published):
    rows = simpson(published, ["reproj_mse_recon"], ["bertscore_recon_vs_post_f1"], clusters="copy", draws=300).iloc[0]
    assert rows["pooled"] < -0.3 and abs(rows["within"]) < 0.05 and rows["misleads"]


def test_correlations_equal_the_published_table(published, real_data):
    expected = pd.read_csv(real_data / "vlm_connectors/expected/caption_recon_correlations.csv").set_index("Model")
    found = correlate(
        published,
        ["reproj_cosine_recon", "reproj_mse_recon"],
        ["clipscore_drop", "bertscore_recon_vs_post_f1"],
        interval="fisher",
    )
    short = {"reproj_cosine_recon": "cos", "reproj_mse_recon": "MSE"}
    outcomes = {"clipscore_drop": "CLIPScore Drop", "bertscore_recon_vs_post_f1": "BERTScore(recon/post)"}
    models = {"llava": "LLaVA", "qwen2.5vl": "Qwen-2.5-VL"}
    for row in found.itertuples():
        column = f"{short[row.predictor]}→{outcomes[row.outcome]}_{row.kind}"
        printed = expected.loc[models[row.model]]
        assert (round(row.r, 4), round(row.p, 4)) == (printed[f"{column}_r"], printed[f"{column}_p"])


def test_an_interval_that_some_draws_lack_is_nan_and_not_of_no_width():
    x, y = np.arange(12.0), np.zeros(12)
    y[3] = 1.0  # about a third of the draws miss it, and then nothing varies
    found = correlation(x, y)
    assert np.isfinite(found.r) and np.isnan([found.low, found.high]).all()


def test_an_outcome_that_no_row_has_gives_no_correlation_and_no_error():
    frame = pd.DataFrame({"model": "m", "x": np.arange(9.0), "y": np.nan, "base": np.arange(9.0) % 4})
    found = correlate(frame, ["x"], ["y"], controls={"baseline": ["base"]})
    assert found["r"].isna().all() and (found["n"] == 0).all() and (found["left_out"] == 9).all()
