"""The attention study's result files: what is written is what is read, in the study's own lines; what is damaged is named."""

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.sources import attention_pairs, attention_results, head_reports, head_results
from spatialprobes.sources.attention_results import AttentionResults

QWEN2 = """shard idx: 1
sample idx: 7
grid: 24x24
prompt: there are two shapes a red circle and a blue square . the spatial relation is left .
baseline: patch-shuffle enabled=True, seed=123, grid=24

[REAL] Entity1(circle) - COM: 4.1234, IoU: 0.1000, SoftIoU: 0.0019, WassersteinX: 3.0000
[REAL] Relation(left) x-axis Wasserstein: 5.5000
[REAL] Background disperson: 60.0001

[REAL] Vision Self-Attention (LM vision sub-block)
"""
SELF = ("com", "iou", "soft_iou", "wasserstein_x", "entity_bg_ratio", "disperson")
QWEN2 += "".join(f"[REAL] Entity{e} self {name}: {e}.{i}000\n" for e in (1, 2) for i, name in enumerate(SELF))
WORDS = (
    "Entity{e} - COM distance: {c}.2501, IoU: 0.040{e}, Soft IoU: 0.001{e}, Wasserstein: 6.420{e}, "
    "Shuffle COM distance: {c}.2{e}, Shuffle IoU: 0.030{e}, Shuffle Soft IoU: 0.002{e}, Shuffle Wasserstein: 6.410{e}\n"
)
LLAVA = f"sample idx: 7\n{WORDS.format(e=1, c=7)}{WORDS.format(e=2, c=6)}"
LLAVA += """Right token x-axis Wasserstein: nan, Shuffle Wasserstein: 2.0000
Background disperson: 73.2999
Background disperson (Shuffled): 74.8999
Sample 7 - Vision Self-Attention
"""
LLAVA += "".join(
    f"Entity{e}{mark} {name}: {e}.{i}000\n" for mark in ("", " (Shuffled)") for e in (1, 2) for i, name in enumerate(SELF)
)
TEXTS = {"qwen2": QWEN2, "llava": LLAVA}
VALUES = st.floats(-999, 999, allow_nan=False).map(lambda one: round(one, 4) + 0.0)


def put(folder, text, name="shard1/metrics_sample_7.txt"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return folder


def results(layout, number, samples=2):
    """Every number of a layout, made by number()."""
    rows = []
    for sample in range(samples):
        for condition in ("real", "shuffled"):
            own = [("words", role, metric) for role in ("entity1", "entity2") for metric in attention_results.WORD_METRICS]
            own += [("self", role, metric) for role in ("entity1", "entity2") for metric in attention_results.SELF_METRICS]
            own += [("words", "relation", "wasserstein_x"), ("self", "background", "dispersion")]
            for kind, role, metric in own:
                named = layout == "qwen2" and kind == "words"
                word = {"entity1": "circle", "entity2": "cross", "relation": "right"}[role] if named else ""
                rows.append((0, sample, condition, kind, role, word, metric, number()))
    header = [(0, sample, "a red circle .", 24, 24, 123, 24) for sample in range(samples)]
    none = [(0, sample, None, None, None, None, None) for sample in range(samples)]
    frame = pd.DataFrame(header if layout == "qwen2" else none, columns=attention_results.SAMPLES)
    empty = pd.DataFrame(columns=attention_results.MEANS)
    return AttentionResults(layout, frame, pd.DataFrame(rows, columns=attention_results.METRICS), empty)


# --- maps ---


def test_the_lines_of_both_scripts_are_read(tmp_path):
    found = attention_results.read(put(tmp_path / "q", QWEN2))
    assert found.layout == "qwen2" and not found.problems and len(found.metrics) == 4 + 1 + 1 + 12
    assert found.samples.iloc[0][["rows", "cols", "shuffle_seed", "shuffle_grid"]].tolist() == [24, 24, 123, 24]
    first = found.metrics.iloc[0]
    assert first.tolist() == [1, 7, "real", "words", "entity1", "circle", "com", 4.1234]
    other = attention_results.read(put(tmp_path / "l", LLAVA))
    assert other.layout == "llava" and len(other.metrics) == 16 + 2 + 2 + 24
    shuffled = other.metrics.query("condition == 'shuffled' and metric == 'com' and kind == 'words'")
    assert shuffled["value"].tolist() == [7.21, 6.22]
    assert np.isnan(other.metrics.query("role == 'relation' and condition == 'real'")["value"].item())
    assert set(other.metrics["metric"]) == set(attention_results.SELF_METRICS)  # "dispersion", as it is spelt here


@pytest.mark.parametrize("layout", ["qwen2", "llava"])
def test_what_is_read_is_written_byte_for_byte(layout, tmp_path):
    found = attention_results.read(put(tmp_path / "in", TEXTS[layout]))
    if layout == "qwen2":  # the script's means need both entities
        found = AttentionResults(layout, found.samples, found.metrics, results(layout, lambda: 1.0).metrics.query("sample == 0"))
    attention_results.write(found, tmp_path / "out")
    assert (tmp_path / "out/shard1/metrics_sample_7.txt").read_text() == TEXTS[layout]
    again = attention_results.read(tmp_path / "out")
    pd.testing.assert_frame_equal(again.metrics, found.metrics)
    pd.testing.assert_frame_equal(again.samples, found.samples)


@settings(deadline=None, max_examples=6)
@given(st.data(), st.sampled_from(["qwen2", "llava"]))
def test_what_is_written_is_read(tmp_path_factory, data, layout):
    folder = tmp_path_factory.mktemp("maps")
    made = results(layout, lambda: data.draw(VALUES), samples=1)
    attention_results.write(made, folder)
    found = attention_results.read(folder)
    keys = list(attention_results.METRICS[:-1])
    both = made.metrics.set_index(keys)["value"], found.metrics.set_index(keys)["value"]
    both[1].index.set_names(keys, inplace=True)
    coarse = (both[0].index.get_level_values("metric") == "com") & (both[0].index.get_level_values("condition") == "shuffled")
    coarse &= (both[0].index.get_level_values("kind") == "words") & (layout == "llava")
    wanted = both[0].where(~coarse, both[0].round(2))
    assert sorted(wanted.index) == sorted(both[1].index)
    np.testing.assert_allclose(both[1].loc[wanted.index], wanted, atol=0.0051 * coarse.max() + 1e-9)
    np.testing.assert_allclose(both[1].loc[wanted.index[~coarse]], wanted[~coarse], atol=1e-9)


@pytest.mark.parametrize("layout", ["qwen2", "llava"])
def test_means_are_those_of_the_samples(layout, tmp_path):
    numbers = iter(np.arange(1000) / 8)
    made = results(layout, lambda: next(numbers), samples=3)
    attention_results.write(made, tmp_path)
    found = attention_results.read(tmp_path).means.set_index(["condition", "kind", "role", "metric"])["value"]
    each = made.metrics.groupby(["condition", "kind", "role", "metric"])["value"]
    assert set(found.index) == set(each.groups)
    for key, values in each:
        assert found[key] == pytest.approx(sum(values) / 3, abs=5.1e-5)
    gap = made.metrics.assign(value=made.metrics["value"].where(made.metrics["sample"] != 1))
    assert attention_results.means(gap)["value"].isna().all()  # the study's plain mean


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("4.1234", "4.12", "line 7: .* is no line"),
        ("4.1234", "inf", "line 7: .* is no line"),
        ("SoftIoU: 0.0019, ", "", "line 7"),
        ("IoU: 0.1000, SoftIoU: 0.0019", "SoftIoU: 0.0019, IoU: 0.1000", "line 7"),
        ("[REAL] Background disperson: 60.0001", "Background disperson: 60.0001", "of two scripts"),
        ("sample idx: 7", "sample idx: 8", "says sample idx 8, but its name 7"),
        ("grid: 24x24", "grid: 24", "grid '24' is not rows x columns"),
        ("seed=123", "seed=x", "baseline .* is not as the study writes it"),
        ("[REAL] Entity2 self com", "[REAL] Entity1 self com", "real self entity1 com stands twice"),
        ("shard idx: 1\n", "shard idx: 1\nshard idx: 1\n", "shard idx stands twice"),
        ("Entity2 self iou", "Entity2 self beauty", "is no line"),
    ],
)
def test_damaged_samples_are_named_and_the_rest_is_read(old, new, says, tmp_path):
    assert old in QWEN2
    put(tmp_path, QWEN2.replace(old, new, 1))
    put(tmp_path, QWEN2.replace("sample idx: 7", "sample idx: 8"), "shard1/metrics_sample_8.txt")
    found = attention_results.read(tmp_path)
    assert found.samples["sample"].tolist() == [8] and len(found.problems) == 1
    assert re.match(rf"shard1/metrics_sample_7\.txt: .*{says}", found.problems[0]), found.problems


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, len(QWEN2) - 1))
def test_a_file_that_was_cut_short_is_read_up_to_whole_lines_or_refused(tmp_path_factory, cut):
    folder = put(tmp_path_factory.mktemp("cut"), QWEN2[:cut])
    whole = {tuple(row) for row in attention_results.read(put(tmp_path_factory.mktemp("whole"), QWEN2)).metrics.to_numpy()}
    try:
        found = attention_results.read(folder)
    except ValueError as error:
        assert "metrics_sample_7.txt" in str(error)
    else:
        assert QWEN2[cut - 1] == "\n" and {tuple(row) for row in found.metrics.to_numpy()} <= whole


def test_files_of_both_models_in_one_folder_are_refused(tmp_path):
    put(tmp_path, QWEN2)
    put(tmp_path, LLAVA.replace("7", "8", 1), "shard1/metrics_sample_8.txt")
    with pytest.raises(ValueError, match=r"files of both models: .*sample_7\.txt \(qwen2\) and .*sample_8\.txt \(llava\)"):
        attention_results.read(tmp_path)


def test_folders_without_results_and_files_too_large_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        attention_results.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no result file that can be read"):
        attention_results.read(tmp_path)
    put(tmp_path, "x" * 6_000_000)
    with pytest.raises(ValueError, match="6,000,000 bytes; at most 5,000,000"):
        attention_results.read(tmp_path)
    made = results("llava", lambda: 1.0)
    lacking = made.metrics[made.metrics["condition"] == "real"]
    with pytest.raises(ValueError, match=r"sample 0 of shard 0: no shuffled com of entity1 \(words\)"):
        attention_results.write(AttentionResults("llava", made.samples, lacking, made.means), tmp_path / "out")


# --- pairs ---

STATS = """=== Pair-level symmetry statistics (Qwen2, ALL SHARDS) ===
shards=[0, 1, 2, 3, 4]
total_lines=500
total_pairs_after_cf=500
cf_fail=0
kept_pairs=252
skipped_pairs=248

asym_s1_mean=-0.002924
asym_s2_mean=-0.002566
symmetry_score_mean=-0.005490
abs_symmetry_score_mean=0.005490
"""  # the published text: its numbers are the study's, for Qwen2-VL-7B


def pairs(n=4):
    a1, a2 = np.random.default_rng(0).normal(size=(2, n)) / 100
    sentences = {"sent1": [f"a, {i} 'and' \"b\" ." for i in range(n)], "sent2": [f"b and a {i} ." for i in range(n)]}
    return pd.DataFrame({**sentences, "asym_s1": a1, "asym_s2": a2, "symmetry_score": a1 + a2})


def test_pairs_are_written_and_read(tmp_path):
    made = pairs()
    found = attention_pairs.read_pairs(attention_pairs.write_pairs(made, tmp_path / "pairs.csv"))
    pd.testing.assert_frame_equal(found[attention_pairs.PAIRS], made, check_exact=True)
    np.testing.assert_allclose(found["positional"] + found["content"], made["asym_s1"])
    np.testing.assert_allclose(found["positional"] - found["content"], made["asym_s2"])
    some = attention_pairs.write_pairs(made.assign(kept=[True, False, True, True]), tmp_path / "kept.csv")
    assert len(attention_pairs.read_pairs(some)) == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda f: f.assign(asym_s1=["x", *f["asym_s1"][1:]]), "row 1: asym_s1 is 'x', no number"),
        (lambda f: f.assign(asym_s1=[*f["asym_s1"][:-1], np.inf]), "row 4: asym_s1 is 'inf'"),
        (lambda f: f.assign(symmetry_score=f["asym_s1"]), "row 1: symmetry_score is not"),
        (lambda f: f.assign(sent2=["a", " ", "c", "d"]), "row 2 has no sent2"),
        (lambda f: f.drop(columns="sent1"), "columns sent2"),
        (lambda f: f.iloc[:0], "no rows"),
    ],
)
def test_damaged_pairs_are_refused_by_row(change, says, tmp_path):
    change(pairs()).to_csv(tmp_path / "pairs.csv", index=False)
    with pytest.raises(ValueError, match=rf"pairs\.csv: .*{says}"):
        attention_pairs.read_pairs(tmp_path / "pairs.csv")
    with pytest.raises(ValueError, match="NaN"):
        attention_pairs.write_pairs(pairs().assign(asym_s1=np.nan), tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text.rstrip("\n") + ",0.5\n", "Expected 5 fields in line 5, saw 6"),
        (lambda text: "".join(line + ",0.5\n" for line in text.splitlines()), "columns sent1, .*, 0.5;"),
        (lambda text: text.rstrip("\n"), "cut short"),
        (lambda text: "", "not readable"),
    ],
)
def test_pairs_of_other_widths_and_halves_of_files_are_refused(spoil, says, tmp_path):
    path = attention_pairs.write_pairs(pairs(), tmp_path / "pairs.csv")
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=rf"pairs\.csv: .*{says}"):
        attention_pairs.read_pairs(path)


def test_the_published_means_are_read_and_their_format_is_what_is_written(tmp_path):
    (tmp_path / "stats.txt").write_text(STATS)
    found = attention_pairs.read_stats(tmp_path / "stats.txt")
    assert found["kept_pairs"] + found["skipped_pairs"] == 500 and found["shards"] == [0, 1, 2, 3, 4]
    assert found["symmetry_score_mean"] == pytest.approx(found["asym_s1_mean"] + found["asym_s2_mean"])
    alike = {"asym_s1": [-0.002924] * 252, "asym_s2": [-0.002566] * 252, "symmetry_score": [-0.00549] * 252}
    made = pd.DataFrame({"sent1": "a", "sent2": "b", **alike})
    out = attention_pairs.write_stats(made, tmp_path / "out.txt", shards=range(5), total_lines=500, total_pairs=500)
    assert out.read_text() == STATS
    with pytest.raises(ValueError, match="252 pairs kept of 251"):
        attention_pairs.write_stats(made, tmp_path / "x.txt", shards=[0], total_lines=500, total_pairs=251)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kept_pairs=252", "kept_pairs=251", "251 kept and 248 skipped are not 500"),
        ("cf_fail=0\n", "", "no cf_fail"),
        ("shards=[0, 1, 2, 3, 4]", "shards=__import__('os')", "line 2"),
        ("-0.002924", "-0.0029", "line 9"),
        ("total_lines=500", "total_lines=500\ntotal_lines=500", "total_lines stands twice"),
        ("0.005490\n", "0.005490", "cut short"),
        ("cf_fail=0", "cf_fail=7", "500 pairs and 7 failures are not 500 lines"),
        ("symmetry_score_mean=-0.005490", "symmetry_score_mean=-0.705490", "contradict one another"),
        ("0.005490\n", "0.002490\n", "contradict one another"),
    ],
)
def test_damaged_means_are_refused_by_line(old, new, says, tmp_path):
    head, _, tail = STATS.rpartition(old) if old.startswith("0") else STATS.partition(old)
    (tmp_path / "stats.txt").write_text(head + new + tail)
    with pytest.raises(ValueError, match=rf"stats\.txt: .*{says}"):
        attention_pairs.read_stats(tmp_path / "stats.txt")


# --- heads ---


def changes(layers=(0, 2, 3), pairs=12, heads=8, seed=0):
    generator = np.random.default_rng(seed)
    return {layer: generator.normal(size=(pairs, heads)).astype(np.float32) for layer in layers}


def equal(one, other):
    assert (one.corner, one.layout, one.topk, one.pairs) == (other.corner, other.layout, other.topk, other.pairs)
    pd.testing.assert_frame_equal(one.counts, other.counts)
    for mine, theirs in ((one.changes, other.changes), (one.members, other.members)):
        assert mine.keys() == theirs.keys()
        for layer, array in mine.items():
            assert array.dtype == theirs[layer].dtype and np.array_equal(array, theirs[layer])
    np.testing.assert_allclose(one.gaps.to_numpy(float), other.gaps.to_numpy(float), atol=5.1e-7)


@pytest.mark.parametrize(("layout", "topk"), [("llava", 3), ("qwen2", 3), ("qwen2", 5)])
def test_heads_are_written_and_read(layout, topk, tmp_path):
    made = head_results.of_changes(changes(), layout, corner="topleft", topk=topk)
    head_results.write(made, tmp_path / "head_diff_stats_topleft")
    found = head_results.read(tmp_path / "head_diff_stats_topleft")
    assert not found.problems
    equal(found, made)
    names = {path.name for path in (tmp_path / "head_diff_stats_topleft").iterdir()}
    assert {f"layer_{layer}_top{topk}_counts.npy" for layer in (1, 3, 4)} <= names  # from 1 in names
    assert ("count_LHN.npy" in names) == (layout == "qwen2") and ("layer_3_diff_abs.npy" in names) == (layout == "llava")
    again = tmp_path / "again"
    head_results.write(found, again)
    for name in names:
        assert (again / name).read_bytes() == (tmp_path / "head_diff_stats_topleft" / name).read_bytes()


def test_counts_are_those_of_a_loop():
    made = changes()
    found = head_results.of_changes(made, "qwen2")
    for place, array in made.items():
        count = [0] * 8
        for row in np.abs(array):
            for head in sorted(range(8), key=lambda h: -row[h])[:3]:
                count[head] += 1
        assert found.counts[found.counts["layer"] == place]["count"].tolist() == count
        gaps = head_results.gaps_of(np.abs(array))
        tops = [sorted(np.abs(row))[::-1] for row in array.astype(float)]
        assert gaps["top1_minus_top4_mean"] == pytest.approx(np.mean([row[0] - row[3] for row in tops]))
        assert gaps["median_mean"] == pytest.approx(np.mean([(row[3] + row[4]) / 2 for row in tops]))


def test_results_of_both_scripts_in_one_folder_are_refused(tmp_path):
    llava, qwen2 = (head_results.of_changes(changes(heads=n), layout) for layout, n in (("llava", 8), ("qwen2", 7)))
    head_results.write(llava, tmp_path / "a")
    with pytest.raises(ValueError, match="of the other script lies there"):
        head_results.write(qwen2, tmp_path / "a")
    head_results.write(qwen2, tmp_path / "b")
    for path in list((tmp_path / "b").iterdir()):
        path.replace(tmp_path / "a" / path.name)  # as the study's scripts do: one after the other into one folder
    with pytest.raises(
        ValueError, match=r"files of both scripts, layer_1_diff_abs\.npy \(LLaVA\) and count_LHN\.npy \(Qwen2-VL\)"
    ):
        head_results.read(tmp_path / "a")
    counts = [path for path in (tmp_path / "a").iterdir() if not path.name.endswith("_counts.npy")]
    for path in counts:
        path.unlink()
    np.save(tmp_path / "a/layer_4_top3_counts.npy", np.full(8, 3))  # LLaVA has layers that Qwen2-VL has not
    np.save(tmp_path / "a/layer_5_top3_counts.npy", np.array([12, 12, 12, 0, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match="layers of 7 and 8 heads: results of more than one model"):
        head_results.read(tmp_path / "a")


def test_counts_that_another_run_left_are_refused(tmp_path):
    head_results.write(head_results.of_changes(changes(), "qwen2"), tmp_path)
    np.save(tmp_path / "layer_9_top3_counts.npy", np.array([12, 12, 12, 0, 0, 0, 0, 0]))
    with pytest.raises(ValueError, match=r"layer_9_top3_counts\.npy is not what count_LHN\.npy sums to"):
        head_results.read(tmp_path)
    (tmp_path / "layer_9_top3_counts.npy").rename(tmp_path / "layer_1_top3_counts.npy")
    with pytest.raises(ValueError, match=r"layer_1_top3_counts\.npy is not what"):
        head_results.read(tmp_path)


def test_counts_alone_are_read_and_no_one_is_said_to_have_made_them(tmp_path):
    head_results.write(head_results.of_changes(changes(), "llava"), tmp_path)
    for path in [*tmp_path.glob("*diff*")]:
        path.unlink()
    found = head_results.read(tmp_path)
    assert found.layout is None and found.pairs == 12 and not found.changes and found.corner == ""
    np.save(tmp_path / "layer_1_top3_counts.npy", np.full(8, 3))
    with pytest.raises(ValueError, match="results of 8 and 12 pairs: of two runs"):
        head_results.read(tmp_path)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([300, 0, 0, 0], "a head counted 300 times in 100 pairs"),
        ([2**62] * 4, "counts that sum to 18446744073709551616"),
        ([0, 0, 0, 0], "counts that sum to 0"),
    ],
)
def test_counts_that_no_pairs_can_give_are_named(counts, says, tmp_path):
    np.save(tmp_path / "layer_1_top3_counts.npy", np.array(counts))
    np.save(tmp_path / "layer_1_diff_abs.npy", np.ones((6, 4)))
    assert [line for line in head_results.read(tmp_path).problems if says in line]


def test_more_heads_counted_than_there_are_are_named(tmp_path):
    np.save(tmp_path / "layer_1_top9_counts.npy", np.array([9, 9, 9, 0]))
    np.save(tmp_path / "layer_1_diff_abs.npy", np.ones((3, 4)))
    found = head_results.read(tmp_path)
    assert found.problems == ["layer_1_top9_counts.npy: a head counted 9 times in 3 pairs"] and found.counts.empty


@pytest.mark.parametrize(
    ("made", "options", "says"),
    [
        ({0: np.full((3, 4), np.nan)}, {}, "layer 0 hold a NaN"),
        ({0: np.ones((0, 4))}, {}, r"shapes \[\(0, 4\)\]"),
        ({0: np.ones((3, 4))}, {"layout": "gpt"}, "layout 'gpt'"),
        ({0: np.ones((3, 4))}, {"topk": True}, "topk=True of 4 heads"),
    ],
)
def test_changes_that_cannot_be_counted_are_refused(made, options, says):
    with pytest.raises(ValueError, match=says):
        head_results.of_changes(made, **{"layout": "llava", **options})


class Pickled:
    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


def test_each_damaged_file_of_heads_is_named_and_the_rest_read(tmp_path):
    head_results.write(head_results.of_changes(changes((0, 1, 2, 3, 4, 5)), "llava"), tmp_path)
    np.save(tmp_path / "layer_1_top3_counts.npy", np.array([Pickled()] * 8), allow_pickle=True)
    (tmp_path / "layer_2_top3_counts.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "layer_3_top3_counts.npy", np.array([9, 9, 9, 9, 0, 0, 0, 0]))
    np.save(tmp_path / "layer_4_diff_abs.npy", np.full((12, 8), -1.0))
    np.save(tmp_path / "layer_5_diff_abs.npy", np.full((12, 8), np.nan))
    gaps = (tmp_path / "layer_6_diff_gap_stats.txt").read_text()
    (tmp_path / "layer_6_diff_gap_stats.txt").write_text(gaps.replace("top2_mean=", "top2_mean=9", 1))
    found = head_results.read(tmp_path)
    named = [line.partition(":")[0] for line in found.problems]
    assert sorted(named) == ["layer_1_top3_counts.npy", "layer_2_top3_counts.npy", "layer_3_top3_counts.npy",
                             "layer_4_diff_abs.npy", "layer_5_diff_abs.npy", "layer_6_diff_gap_stats.txt"]  # fmt: skip
    assert sorted(found.counts["layer"].unique()) == [3, 4, 5] and sorted(found.changes) == [0, 1, 2, 5]


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("count_LHN.npy", lambda path: np.save(path, 2 * np.load(path)), "other values than 0 and 1"),
        ("count_LHN.npy", lambda path: np.save(path, np.zeros_like(np.load(path))), "other than 3 heads"),
        ("count_LHN.npy", lambda path: path.unlink(), "missing beside"),
        ("count_LH.npy", lambda path: np.save(path, np.load(path) + 1), "is not the sum"),
        ("count_shape.txt", lambda path: path.write_text(path.read_text().replace("N=12", "N=13")), "contradict one another"),
        ("count_shape.txt", lambda path: path.write_text(path.read_text().replace("topk", "top")), "not the four lines"),
        ("count_shape.txt", lambda path: path.write_text(path.read_text().replace("topk=3", "topk=0")), "not the four lines"),
        ("count_shape.txt", lambda path: path.write_text(path.read_text().replace("[0, 2", "[0 2")), "not the four lines"),
    ],
)
def test_damaged_cubes_are_named(name, spoil, says, tmp_path):
    head_results.write(head_results.of_changes(changes(), "qwen2"), tmp_path)
    spoil(tmp_path / name)
    found = head_results.read(tmp_path)
    assert len(found.problems) == 1 and found.problems[0].startswith(f"{name}: ") and says in found.problems[0]
    assert len(found.counts) == 24


def test_ties_are_counted_either_way(tmp_path):
    tied = {0: np.ones((6, 8), np.float32)}
    made = head_results.of_changes(tied, "llava")
    head_results.write(made, tmp_path)
    np.save(tmp_path / "layer_1_top3_counts.npy", np.array([6, 6, 6, 0, 0, 0, 0, 0]))  # another sort's choice
    assert not head_results.read(tmp_path).problems


# --- reports ---


def reports():
    folders = [f"head_diff_stats_{corner}" for corner in head_results.CORNERS]
    cells, heads = [], [("shared", 5, 41.5)]
    for place, of in enumerate(["shared", *folders]):
        for rank in (1, 2, 3):
            value = 40.0 - rank - place / 8
            cells.append({"map": of, "rank": rank, "layer": 2 * rank, "head": place, "value": value, "score": abs(value),
                          **{name: value + i / 4 for i, name in enumerate(folders)}})  # fmt: skip
        heads += [] if of == "shared" else [(of, place, 9.25)]
    return head_reports.HeadReports(
        pd.DataFrame(cells), pd.DataFrame(heads, columns=head_reports.HEADS), 28, 28, 100, order="abs"
    )


def test_reports_are_written_and_read_in_the_studys_lines(tmp_path):
    made = reports()
    head_reports.write(made, tmp_path)
    found = head_reports.read(tmp_path)
    assert not found.problems
    key = ["map", "rank"]
    pd.testing.assert_frame_equal(found.cells.sort_values(key, ignore_index=True), made.cells.sort_values(key, ignore_index=True))
    pd.testing.assert_frame_equal(found.heads, made.heads)
    assert (found.layers, found.heads_per_layer, found.pairs, found.scale, found.order) == (28, 28, 100, "count", "abs")
    lines = (tmp_path / "top_pixels_shared.txt").read_text().splitlines()
    corners = "{" + ", ".join(f"'head_diff_stats_{c}': {39 + i / 4}" for i, c in enumerate(head_results.CORNERS)) + "}"
    assert lines[5] == f"#1: layer=3 head=0  main_value_count=39.000000  sort_score_count=39.000000  corners={corners}"
    assert lines[1:4] == ["shape L,H = 28,28", "scale_suffix=count, scale=100.0", "diff_brightness=N/A"]
    assert "head_diff_stats_topright unique_best_head=2 score_count=9.250000" in (tmp_path / "unique_heads.txt").read_text()


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("shared_head.txt", "shared_best_head=5", "shared_best_head=28", "head 28 of 28"),
        ("top_pixels_shared.txt", "#2:", "#3:", "line 7: #3 in count; #2 in count is next"),
        ("top_pixels_shared.txt", "layer=3 ", "layer=29 ", "layer 29, head 0 of 28 layers"),
        ("top_pixels_shared.txt", "{'head", "{__import__('os').system('x'): 1, 'head", "names with numbers"),
        ("top_pixels_shared.txt", "39.000000", "39.0", "line 6: .* is no line"),
        ("top_pixels_shared.txt", "{'head_diff_stats_topleft': 39.0, ", "{1, 'head: ", "names with numbers"),
        ("top_pixels_shared.txt", "{'head_diff_stats_topleft'", "{'layer'", "names with numbers"),
        ("top_pixels_shared.txt", "{'head_diff_stats_topleft'", "{'head_diff_stats_topright'", "each of them once"),
        ("top_pixels_shared.txt", "corners={'", "corners={" + "(" * 2000 + "'", "names with numbers"),
        ("top_pixels_shared.txt", "count=39.000000", "count=139.000000", "line 6: a count beyond 100.0"),
        ("top_pixels_shared.txt", "scale=100.0", "scale=99.5", "counts of 99.5 pairs"),
        ("top_pixels_shared.txt", "shared mean map", "mean map", "line 1"),
        ("unique_heads.txt", "score_count=9.250000", "score_freq=9.250000", "on two scales"),
    ],
)
def test_damaged_reports_are_named_and_the_rest_is_read(name, old, new, says, tmp_path):
    head_reports.write(reports(), tmp_path)
    text = (tmp_path / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    found = head_reports.read(tmp_path)
    assert len(found.problems) == 1
    with pytest.raises(ValueError, match=rf"{name}: .*({says})"):
        raise ValueError(found.problems[0])
    assert len(found.cells) + len(found.heads) < len(reports().cells) + len(reports().heads)


def test_reports_of_two_runs_are_refused(tmp_path):
    head_reports.write(reports(), tmp_path)
    text = (tmp_path / "shared_head.txt").read_text()
    (tmp_path / "shared_head.txt").write_text(text.replace("28,28,100", "32,32,100"))
    with pytest.raises(ValueError, match=r"says layers 28, shared_head\.txt says 32: of two runs"):
        head_reports.read(tmp_path)
    with pytest.raises(ValueError, match="no report that can be read"):
        head_reports.read(put(tmp_path / "none", "x\n", "notes.txt"))
