"""The audit of the connector study: its tables to the printed digit, its faults as numbers, claims by rules; a run of ours."""

import json
import subprocess
import sys
from itertools import permutations

import audit_toy as toy
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from spatialprobes import audit, audit_captions, audit_geometry, audit_perturbation, paths, plots
from spatialprobes.audit_files import gather
from spatialprobes.claims import load_claims
from spatialprobes.cli import app
from spatialprobes.plots import connector_captions_published, connector_published
from spatialprobes.tables import read_table

WITHOUT_TORCH = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}")

sys.meta_path.insert(0, Absent())
from spatialprobes import audit, cli
figures = audit.figures
audit.figures = lambda tables: figures(tables)[:1]
cli.app()
"""
DRAWN = ("knor-lines", "erank-vs-clip")  # of a run's figures: all are drawn from made-up tables elsewhere


@pytest.fixture(scope="module")
def expected(real_data):
    return real_data / "vlm_connectors/expected"


@pytest.fixture(scope="module")
def found(real_data):
    """The audit of the study's sample, nothing written."""
    return audit.audit(real_data / "vlm_connectors")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A toy run and its audit, written."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    toy.write(source)
    return source, out, audit.audit(source, out, draw=DRAWN)


# --- the study's tables ---


@pytest.mark.parametrize(
    "name", ["summary_stats", "knn_summary_per_model", "caption_recon_correlations", "caption_recon_pre_correlations"]
)
def test_the_studys_tables_digit_by_digit(found, expected, name):
    """Every row of the models at hand. Not in the sample, so not checked: Idefics2, Qwen-3.5 and "all", of four models."""
    theirs = (expected / f"{name}.csv").read_text().splitlines()
    ours = found.texts()[f"{name}.csv"].splitlines()
    assert ours[0] == theirs[0]
    pooled = [row for row in ours[1:] if row.startswith("all,")]
    assert [row for row in ours[1:] if row not in pooled] == theirs[1:]
    assert len(pooled) == (4 if name == "caption_recon_pre_correlations" else 0)
    assert ours[1 : 1 + len(pooled)] == pooled  # first, as there


def test_the_studys_tex_tables(found):
    """As printed there, where three decimals are made of four: r of Qwen-2.5-VL is -0.05648."""
    texts = found.texts()
    assert r"LLaVA & 3.41 & 0.006 & 0.969 & 0.473 \\" in texts["spectral_diagnostics.tex"]
    assert r"Qwen-2.5-VL & 30.70 & 0.213 & 0.661 & 0.214 \\" in texts["spectral_diagnostics.tex"]
    rows = texts["caption_recon_correlations.tex"].splitlines()
    assert rows[4:6] == [
        r"LLaVA & -0.001 (0.037) & 0.013 (-0.039) & 0.042 (0.014) & -0.041 (-0.007) \\",
        r"Qwen-2.5-VL & -0.057$^{*}$ (-0.043) & -0.017 (-0.011) & 0.124$^{***}$ (0.118) & 0.006 (0.029) \\",
    ]
    assert all(
        text.startswith(r"\begin{tabular}{lcccc}") and text.endswith("\\end{tabular}\n")
        for name, text in texts.items()
        if "tex" in name
    )


def test_what_the_sample_lacks_is_listed(found):
    rows = {(row["kind"], row["model"], row["detail"].partition(",")[0]) for row in found.missing.to_dict("records")}
    assert set(found.missing["status"]) == {"missing"}
    assert {(kind, model) for kind, model, _ in rows} == {
        ("all", "idefics2"), ("all", "qwen3.5"), ("per_image.csv", "llava"), ("per_image.csv", "qwen2.5vl"),
        ("perturb_out_scored", "qwen2.5vl"),
    }  # fmt: skip
    assert {detail for kind, _, detail in rows if kind == "perturb_out_scored"} == {"mask 0.3", "orthogonal 1"}


# --- what they left out, on the study's files ---


def test_half_of_the_pictures_are_copies(found):
    table = found.tables["duplicates"].set_index(["model", "folder"])
    for model in ("llava", "qwen2.5vl"):
        row = table.loc[model, "all"]
        assert row[["share", "floor10", "floor50", "floor100"]].round(3).tolist() == [0.494, 0.169, 0.041, 0.021]
        assert row["floor10"] == pytest.approx(0.1695, abs=5e-5) and row["largest"] == 57
        assert row["certain_floor10"] < row["floor10"] and row["certain_floor100"] == row["floor100"]
    assert found.tables["duplicates_agreement"].loc[0, "same"] > 0.9999  # two models' scores name the same copies
    assert table.loc[("llava", "00000"), "n"] == 8675


def test_overlap_above_the_floor_of_copies(found):
    table = found.tables["knor"]
    rows = table[(table["of"] == "pre_post") & (table["k"] == 10)].set_index("model")
    assert rows["excess"].round(3).to_dict() == {"llava": 0.366, "qwen2.5vl": 0.053}
    assert (rows["over"] == "folders").all() and (rows["excess_low"] < rows["excess"]).all()
    at_100 = table[(table["of"] == "pre_post") & (table["k"] == 100)]
    assert at_100["chance"].round(4).tolist() == [0.0115, 0.0115]
    shown = table[table["k"] == 100].set_index(["model", "of"])["unweighted"].round(3)
    printed = {
        "clip_pre": (0.246, 0.072),
        "clip_post": (0.171, 0.323),
        "dinov3_pre": (0.193, 0.065),
        "dinov3_post": (0.131, 0.302),
    }
    for of, values in printed.items():
        assert tuple(shown[model, of] for model in ("llava", "qwen2.5vl")) == values


def test_correlations_with_baseline_and_length(found, real_data):
    table = found.tables["correlations"]
    own = table[(table["statistic"] == "pearson") & (table["x"] == "reproj_cosine_recon") & (table["rows"] == "deduplicated")]
    partial = own[(own["y"] == "clipscore_drop") & (own["given"] == "baseline")].set_index("model")
    assert partial["r"].round(2).to_dict() == {"llava": -0.07, "qwen2.5vl": -0.10}
    assert set(partial["n"]) == {1477} == set(partial["clusters"])
    captions = found.tables["captions"]
    for model, of_baseline, of_length in (("llava", 0.32, -0.61), ("qwen2.5vl", 0.37, -0.46)):
        rows = captions[captions["model"] == model]
        assert np.corrcoef(rows["clipscore_post_direct"], rows["clipscore_drop"])[0, 1] == pytest.approx(of_baseline, abs=0.005)
        assert np.corrcoef(rows["words_changed"], rows["bertscore_recon_vs_post_f1"])[0, 1] == pytest.approx(of_length, abs=0.005)
    assert captions.groupby("model")["identical"].mean().round(2).to_dict() == {"llava": 0.36, "qwen2.5vl": 0.03}
    everything = table[(table["rows"] == "all") & (table["given"] == "nothing")].set_index(["statistic", "model", "x", "y"])["r"]
    theirs = pd.read_csv(real_data / "vlm_connectors/expected/caption_recon_pre_correlations.csv")
    for row in theirs.to_dict("records"):  # the same numbers by another way
        assert everything["pearson", row["model"], row["x"], row["y"]] == pytest.approx(row["pearson_r"], abs=1e-6)
        assert everything["spearman", row["model"], row["x"], row["y"]] == pytest.approx(row["spearman_r"], abs=1e-6)


def test_perturbations_count_the_empty_and_say_the_rank(found):
    table = found.tables["perturbation"].set_index(["model", "mode", "level"])
    low = table.loc["llava", "lowrank"]
    assert low["rank"].tolist() == [6, 29, 58, 115, 173, 288] and table.loc["qwen2.5vl", "lowrank"]["rank"].tolist() == [
        1,
        7,
        14,
        29,
        43,
        72,
    ]
    assert low["drop"].round(2).tolist() == [1.55, -0.06, -0.06, -0.04, -0.04, -0.04]
    assert low["bert"].round(3).tolist() == [0.936, 0.976, 0.983, 0.987, 0.989, 0.988]
    masked = table.loc[("llava", "mask", 0.7)]
    assert (masked["empty"], masked["n"]) == (691, 5000) and table.loc[("qwen2.5vl", "mask", 0.5), "empty"] == 1158
    assert masked["drop_of_means"] == pytest.approx(9.99, abs=0.005)  # what is printed subtracts means over other pictures
    assert masked["drop"] == pytest.approx(9.92, abs=0.005) and masked["drop_empty_as_zero"] > 12.9
    assert table.loc[("llava", "orthogonal", 1.0), "pilot"] and table["pilot"].sum() == 1
    energy = table.loc["qwen2.5vl", "lowrank"]["energy"]
    assert energy.is_monotonic_increasing and energy.iloc[0] == pytest.approx(0.191, abs=5e-4)  # top-1 energy
    assert low["energy"].isna().tolist() == [False] * 4 + [True] * 2  # the files list 128 components


def test_a_second_run_changes_captions(found):
    table = found.tables["noise_floor"].set_index("model")
    assert table["same"].round(3).to_dict() == {"llava": 0.786, "qwen2.5vl": 0.471} and (table["runs"] == 2).all()


def test_claims_on_the_studys_files(found):
    verdicts = {one.id: one.verdict for one in found.claims}
    assert len(verdicts) == len(found.claims)
    for holds in (
        "audit.neighbourhood.llava-qwen2_5vl", "audit.neighbourhood_above_copies.llava-qwen2_5vl",
        "audit.reorganisation_clip.qwen2_5vl",
        "audit.truncation.qwen2_5vl-llava", "audit.masking_hurts.llava", "audit.not_alone_clip.llava", "audit.copies.llava",
        "audit.copies_make_overlap.qwen2_5vl", "audit.copies_make_order.qwen2_5vl", "audit.norm_site.qwen2_5vl",
        "audit.baseline_tells_more.llava", "audit.length_tells_more.qwen2_5vl", "audit.second_run_differs.llava",
        "audit.empty_left_out.llava-mask-0_7", "audit.many_tests", "audit.pooling_makes.mse_pre",
    ):  # fmt: skip
        assert verdicts[holds] == "holds", holds
    for fails in (
        "audit.truncation_at_equal_rank.qwen2_5vl-llava",
        "audit.cosine_tells_drop.llava",
        "audit.copies_make_overlap.llava",
    ):
        assert verdicts[fails] == "fails", fails
    by_id = {one.id: one for one in found.claims}
    assert by_id["audit.truncation_at_equal_rank.qwen2_5vl-llava"].estimate == pytest.approx(0.369 - 1.554, abs=2e-3)
    assert "ranks 7 and 6" in by_id["audit.truncation_at_equal_rank.qwen2_5vl-llava"].caveat
    assert all(one.caveat for one in found.claims) and not any("above_all_qwen35" in name for name in verdicts)
    assert {one.table for one in found.claims} <= set(found.tables)


def test_every_kind_of_figure_that_the_files_allow_is_there(found):
    """All but effective rank against CLIPScore, whose per-image file the sample lacks."""
    drawn = {one.plot.partition(".")[2] for one in found.drawn}
    assert drawn == {
        "knor", "knor_bars", "above_copies", "spectrum", "diagnostics", "scatter", "scatter_grid", "violins", "boxes",
        "histograms", "trend", "correlations", "perturbation", "empty_captions",
    }  # fmt: skip
    assert len({one.name for one in found.drawn}) == len(found.drawn) and "erank-vs-clip" not in {one.name for one in found.drawn}


# --- pieces, by closed forms ---


@pytest.mark.parametrize(("m", "k"), [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2), (4, 3), (6, 3)])
def test_floors_of_copies(m, k):
    """Of m - 1 copies at no distance each list takes the first k, in any order: at most, and at least, so many agree."""
    others = range(m - 1)
    lists = [set(order[:k]) for order in permutations(others)] if m > 1 else [set()]
    agree = [len(one & other) / k for one in lists for other in lists]
    copies = np.full(m, m)
    assert audit_geometry.floor(copies, k) == max(agree) and audit_geometry.certain_floor(copies, k) == min(agree)


@pytest.mark.parametrize(
    ("level", "most", "rank"),
    [(0.01, 576, 6), (0.05, 576, 29), (0.01, 64, 1), (0.3, 64, 19), (0.5, 100, 50), (3, 64, 3), (200, 64, 64)],
)
def test_kept_rank_is_the_studys(level, most, rank):
    assert audit_perturbation.kept_rank(level, most) == rank


def test_copies_are_found_within_folders_and_across():
    frame = pd.DataFrame(
        {"key": list("abcdef"), "folder": list("xxxyyy"), "mse_pre": [1, 1, 2, 1, 3, 3], "cosine_pre": [5, 5, 5, 5, 6, 7]}
    )
    marked = audit_geometry.mark_copies(frame)
    assert marked["copies"].tolist() == [2, 2, 1, 1, 1, 1] and marked["copies_of"].tolist() == list("aacdef")
    assert marked["anywhere"].tolist() == list("aacaef")
    table = audit_geometry.duplicates(marked.assign(model="m")).set_index("folder")
    assert table.loc["all", "share"] == pytest.approx(2 / 6) and table.loc["across", "share"] == 0.5
    assert table.loc["all", "distinct"] == 5 and table.loc["across", "distinct"] == 4


def test_survivors_and_pilots_are_counted():
    frame = pd.DataFrame(
        {"clipscore_original": [30.0, 40, 20], "clipscore_perturbed": [20.0, 30, np.nan], "empty": [False, False, True]}
    )
    frame["clipscore_drop"] = frame["clipscore_original"] - frame["clipscore_perturbed"]
    found = audit_perturbation.measure(
        frame.assign(identical=False, bertscore_orig_vs_pert=0.9, bertscore_drop=0.1), np.arange(3)
    )
    assert found["drop"] == 10 and found["drop_of_means"] == 5 and found["drop_empty_as_zero"] == pytest.approx(40 / 3)
    assert found["survivors_before"] == 5 and found["empty"] == 1 and found["pilot"]


def test_noise_counts_runs_not_files():
    one = pd.DataFrame({"key": list("abcd"), "caption_original": list("wxyz"), "clipscore_original": [1.0, 2, 3, 4]})
    other = one.assign(caption_original=list("wxyy"), clipscore_original=[1.0, 2, 3, 6])
    found = audit_perturbation.noise({"a": one, "b": one, "c": other}, np.asarray)
    assert (found["files"], found["runs"], found["same"], found["shift"]) == (3, 2, 0.75, 0.5)


def test_false_discovery_is_held_over_models_and_pairs():
    rng = np.random.default_rng(0)
    frames = {}
    for model in "ab":
        frame = pd.DataFrame(rng.standard_normal((80, 3)), columns=["reproj_cosine_recon", "reproj_mse_recon", "clipscore_drop"])
        frames[model] = frame.assign(bertscore_recon_vs_post_f1=frame["reproj_mse_recon"], cluster=np.arange(80))
    table = audit_captions.corrected(frames)
    own = table[(table["statistic"] == "pearson") & (table["rows"] == "all") & (table["given"] == "nothing")]
    assert len(own) == 8 and (own["q"] >= own["p"]).all()
    exact = own[(own["x"] == "reproj_mse_recon") & (own["y"] == "bertscore_recon_vs_post_f1")]
    assert (exact["r"] > 0.999).all() and (exact["q"] < 1e-6).all()


# --- a run of ours ---


def test_a_run_of_ours_is_audited_under_its_own_names(run):
    source, _, made = run
    assert made.models == list(toy.MODELS) and made.missing.empty
    assert set(made.tables) >= {"erank_clip", "noise_floor", "knor", "correlations", *audit.THEIRS}
    assert made.tables["summary_stats"]["model"].unique().tolist() == list(toy.MODELS)
    assert (made.tables["knor"]["over"] == "images").all()  # two folders are too few to resample
    ids = {one.id for one in made.claims}
    assert {"audit.neighbourhood.lab_llava-lab_qwen2_5_vl", "audit.reorganisation_dino.lab_qwen2_5_vl"} <= ids
    share = made.tables["duplicates"].set_index(["model", "folder"])["share"]
    assert share["lab-llava", "00000"] == pytest.approx(16 / 24) and share["lab-llava", "00001"] == 0
    assert made.tables["duplicates_agreement"]["same"].tolist() == [1.0]
    assert len(made.tables["erank_clip"]) == 2 * toy.SIZES["00000"]
    with pytest.raises(ValueError, match="no figure 'knor' from these files; there: knor-lines"):
        audit.audit(source, draw=["knor"])


def test_everything_is_written(run):
    _, out, made = run
    for name, text in made.texts().items():
        assert (out / name).read_text() == text
    assert [one.to_dict() for one in load_claims(out / "claims.json")] == [one.to_dict() for one in made.claims]
    for name, table in made.tables.items():
        back = read_table(out / "tables" / f"{name}.parquet")
        assert len(back) == len(table) and back.attrs["provenance"]["files"] == audit.fingerprint(run[0])
    assert list(pd.read_csv(out / "missing.csv")) == ["kind", "model", "folder", "file", "status", "detail"]
    for one in plots.load_drawn(out):
        assert (out / "figures" / f"{one.name}.png").is_file() and (out / "figures" / f"{one.name}.pdf").is_file()
    assert [one.name for one in plots.load_drawn(out)] == [one.name for one in made.drawn] == list(DRAWN)


def test_one_model_or_one_kind_of_file_is_enough(tmp_path):
    toy.write(tmp_path, models=("lab-llava",))
    alone = audit.audit(tmp_path)
    assert set(audit.THEIRS) <= set(alone.tables)
    assert list(alone.tables["caption_recon_pre_correlations"]["model"].unique()) == ["lab-llava"]  # no row "all" of one model
    for kind in ("knn_out", "recon_pre_eval", "caption_compare_out_nor"):
        (tmp_path / kind).rename(tmp_path / f"without_{kind}")
    rest = audit.audit(tmp_path)
    assert set(rest.tables) == {"perturbation", "noise_floor"} and rest.texts() == {}
    assert set(rest.missing["kind"]) >= {"caption_compare_out_nor", "per_image.csv"}


def test_without_reconstruction_files_copies_are_unknown(tmp_path):
    toy.write(tmp_path)
    (tmp_path / "recon_pre_eval").rename(tmp_path / "elsewhere")
    made = audit.audit(tmp_path)
    assert made.tables["knor"]["floor"].isna().all() and "duplicates" not in made.tables
    assert made.tables["knor"]["mean"].notna().all()  # weighted by what the overlap files say
    assert not any("copies" in one.id for one in made.claims)


def test_the_command_needs_no_torch(run, tmp_path):
    """As where it is not installed: importing it fails. The second process gives the same numbers, drawn from a seed."""
    words = ["published", "vlm-connectors", str(run[0]), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/summary_stats.csv").read_text() == (run[1] / "summary_stats.csv").read_text()
    assert json.loads((tmp_path / "out/claims.json").read_text()) == json.loads((run[1] / "claims.json").read_text())
    assert done.stdout.splitlines()[-2].startswith("lab-llava, lab-qwen2.5-vl: ")


def test_the_command_lists_what_is_missing_and_refuses_an_empty_source(tmp_path, monkeypatch):
    toy.write(tmp_path / "run", models=("llava",))
    monkeypatch.setattr(audit, "figures", lambda tables: [])
    result = CliRunner().invoke(app, ["published", "vlm-connectors", str(tmp_path / "run"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0 and "missing all/qwen3.5: no file of this model" in result.stdout
    result = CliRunner().invoke(app, ["published", "vlm-connectors", str(tmp_path / "nowhere")])
    assert result.exit_code == 2 and result.stderr.splitlines()[-1].endswith("nowhere: no such folder")


# --- figures say what the tables say ---


def test_figures_put_marks_where_the_table_says(run):
    tables = run[2].tables
    figure = connector_published.knor(tables["knor"])
    ax = figure.axes[0]
    own = tables["knor"][(tables["knor"]["of"] == "pre_post") & (tables["knor"]["model"] == "lab-llava")]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), own["mean"])
    bars = connector_published.knor_bars(tables["knor"], k=50).axes[0].patches
    at_50 = tables["knor"][tables["knor"]["k"] == 50].set_index(["of", "model"])["mean"]
    assert [bar.get_width() for bar in bars] == [
        at_50[of, model] for of in ("pre_post", "dino_pre", "dino_post") for model in toy.MODELS
    ]
    with pytest.raises(ValueError, match="no overlap at k=7; there: 10, 50, 100"):
        connector_published.knor_bars(tables["knor"], k=7)
    axes = connector_published.diagnostics(tables["diagnostics"]).axes[:5]
    assert len({tuple(ax.get_xlim()) for ax in axes}) == 5  # each on its own
    with pytest.raises(ValueError, match="no rows of mode 'blur' with level; there: lowrank, mask, none"):
        connector_published.perturbation(tables["perturbation"], mode="blur")


def test_scatters_state_r_and_leave_out_what_is_missing(run):
    frame = run[2].tables["captions"].copy()
    frame.loc[0, "clipscore_drop"] = np.nan
    own = frame[frame["model"] == "lab-llava"].dropna(subset=["clipscore_drop"])
    r = np.corrcoef(own["reproj_cosine_recon"], own["clipscore_drop"])[0, 1]
    figure = connector_captions_published.scatter(frame, x="reproj_cosine_recon", y="clipscore_drop")
    assert figure.axes[0].get_title() == f"lab-llava  (n = 19, r = {r:.3f})"
    slope = np.polyfit(own["reproj_cosine_recon"], own["clipscore_drop"], 1)[0]
    x, y = figure.axes[0].lines[-1].get_data()
    assert (y[-1] - y[0]) / (x[-1] - x[0]) == pytest.approx(slope)
    trend = connector_captions_published.trend(frame, x="reproj_cosine_recon", y="clipscore_drop").axes[0]
    assert trend.lines[0].get_ydata().mean() == pytest.approx(own["clipscore_drop"].mean(), abs=0.3)
    with pytest.raises(ValueError, match="needs the column 'gone'"):
        connector_captions_published.scatter(frame, x="gone", y="clipscore_drop")


def test_bounded_by_a_folder_at_a_time(run):
    """What is kept of the captions are numbers; the texts go but the one that tells runs apart."""
    found = gather(run[0])
    texts = [name for frame in found.captions.values() for name in frame if name.startswith("caption")]
    texts += [name for frame in found.perturbed.values() for name in frame if name.startswith("caption")]
    assert set(texts) == {"caption_original"}


def test_what_the_clone_holds_in_the_studys_layout_is_read_whole():
    made = audit.audit(paths.root() / "data" / "samples" / "vlm_connectors")
    assert made.models == ["lab-idefics2", "lab-llava", "lab-qwen2.5-vl", "lab-qwen3.5"]
    table = made.tables["knn_summary_per_model"].set_index("model")
    assert table["n"].eq(150).all() and table.filter(like="_mean").notna().all().all()
    assert {one.verdict for one in made.claims} >= {"holds", "fails"}
