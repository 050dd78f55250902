"""The study's run folders: read as it writes them, written so that it could read them, and its comparison figure."""

import json

import numpy as np
import pandas as pd
import pytest
from tiny import examples

from spatialprobes import plots
from spatialprobes.plots.diagnostics import PUBLISHED_LABELS, run_labels
from spatialprobes.probes import balance, hidden_norms, rope
from spatialprobes.sources import diagnostics
from spatialprobes.sources.arrays import read_npy, read_npz
from spatialprobes.vlm import VLM

LAYERS, HEADS = 3, 4
NUMBERS = (139, 285, 445658)


def one_picture(seed):
    generator = np.random.default_rng(seed)
    alpha = generator.uniform(0, 1, (LAYERS, HEADS))
    arrays = {
        "head_vision_share": generator.uniform(0, 1, (LAYERS, HEADS)),
        "alphaV": alpha,
        "share_prod_notV": alpha * (1 - alpha),
        "delta_gv": generator.normal(0, 0.01, (LAYERS, HEADS)),
        "delta_alphaV": generator.normal(0, 0.001, (LAYERS, HEADS)),
    }
    norms = {f"hidden_norms_{group}": generator.uniform(1, 40, LAYERS + 1) for group in ("sys", "user_text", "vision")}
    return {name: array.astype(np.float32) for name, array in (arrays | norms).items()}


@pytest.fixture
def published(tmp_path):
    """A run folder made file by file after the original's layout, without our writer: three good pictures and four bad ones."""
    folder = tmp_path / "llava-v1.5-7b__sp-0"
    (folder / "per_image").mkdir(parents=True)
    (folder / "meta.json").write_text(
        json.dumps({"model_name": "llava-v1.5-7b", "delta_steps": 1.0, "prompt_text": "Describe the image."})
    )
    (folder / "preds.json").write_text(json.dumps([{"image_id": number, "caption": "a cat"} for number in NUMBERS]))
    for place, number in enumerate(NUMBERS):
        np.savez(folder / "per_image" / f"{number:012d}.npz", **one_picture(place))
        facts = {"image_id": number, "file_name": f"{number:012d}.jpg", "caption": "a cat", "hidden_norms": {"kind": "l2"}}
        facts |= {"mean_vision_share": 0.7, "mean_text_share": 0.3, "mean_sys_share": 0.72}
        (folder / "per_image" / f"{number:012d}.json").write_text(json.dumps(facts))
    return folder


NORMS = ("hidden_norms_sys", "hidden_norms_user_text", "hidden_norms_vision")


def changed(stem, **arrays):
    """Write the picture's arrays again, some of them others, those that are None left out."""
    known = read_npz(stem.with_suffix(".npz")) | arrays
    np.savez(stem.with_suffix(".npz"), **{name: array for name, array in known.items() if array is not None})


def spot(value):
    array = np.ones((LAYERS, HEADS))
    array[1, 2] = value
    return array


def test_arrays_of_each_picture_are_rows(published):
    run = diagnostics.read_run(published)
    assert (run.slug, run.stripped, run.name, run.delta) == ("llava-v1.5-7b", False, "llava-v1.5-7b__sp-0", 1.0)
    assert len(run.heads) == 3 * LAYERS * HEADS and run.problems.empty
    for place, number in enumerate(NUMBERS):
        arrays = one_picture(place)
        rows = run.heads[run.heads["example"] == f"{number:012d}"]
        for name, column in diagnostics.HEADS.items():
            for row in rows.itertuples():
                assert getattr(row, column) == arrays[name][row.layer, row.head]
        for name, group in (("sys", "system"), ("user_text", "text"), ("vision", "vision")):
            norms = run.hidden[(run.hidden["example"] == f"{number:012d}") & (run.hidden["group"] == group)]
            assert norms["norm"].tolist() == arrays[f"hidden_norms_{name}"].tolist()
            assert norms["site"].tolist() == ["stream"] * LAYERS + ["final norm"]
    assert run.images["image_id"].tolist() == list(NUMBERS) and set(run.images["caption"]) == {"a cat"}
    assert run.images["mean_sys_share"].tolist() == [0.72] * 3


def test_analysis_is_that_of_the_pictures_absolute_values_first(published):
    run = diagnostics.read_run(published)
    stack = {
        name: np.stack([one_picture(place)[name] for place in range(3)]).astype(float)
        for name in ("alphaV", "delta_gv", "delta_alphaV")
    }
    averages = diagnostics.average(run.heads).set_index(["layer", "head"])
    for name, column in (("alphaV", "alpha_v"), ("delta_gv", "delta_g_v"), ("delta_alphaV", "delta_alpha_v")):
        np.testing.assert_allclose(averages[column].to_numpy().reshape(LAYERS, HEADS), stack[name].mean(0), rtol=1e-5, atol=1e-9)
    expected = abs(stack["delta_gv"]).mean(0)
    np.testing.assert_allclose(averages["abs_delta_g_v"].to_numpy().reshape(LAYERS, HEADS), expected, rtol=1e-5)
    assert not np.allclose(expected, abs(stack["delta_gv"].mean(0)))  # the other order would give this
    said = diagnostics.summary(run)
    assert (said["images_used"], said["L"], said["H"], said["strip_system_prompt"]) == (3, LAYERS, HEADS, False)
    assert said["mean_avg_abs_delta_gv"] == pytest.approx(expected.mean(), rel=1e-5)


def test_what_was_read_is_written_again(published, tmp_path):
    run = diagnostics.read_run(published)
    copy = diagnostics.write_run(run, tmp_path / "copy")
    again = diagnostics.read_run(copy)
    for name in ("heads", "hidden", "images", "problems"):
        pd.testing.assert_frame_equal(getattr(again, name), getattr(run, name))
    assert again.meta == run.meta
    for number in NUMBERS:
        old, new = (read_npz(folder / "per_image" / f"{number:012d}.npz") for folder in (published, copy))
        assert set(old) == set(new) and all(np.array_equal(old[name], new[name]) for name in old)
    assert json.loads((copy / "preds.json").read_text()) == json.loads((published / "preds.json").read_text())
    averages, said = diagnostics.read_analysis(copy)
    pd.testing.assert_frame_equal(averages, diagnostics.average(again.heads), check_dtype=False)
    assert said == diagnostics.summary(run)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    diagnostics.write_run(again, tmp_path / "copy")
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            lambda stem: stem.with_suffix(".json").write_text('{"error": "RuntimeError(\'CUDA out of memory\')"}'),
            "CUDA out of memory",
        ),
        (lambda stem: stem.with_suffix(".npz").unlink(), "no file"),
        (lambda stem: stem.with_suffix(".json").unlink(), "no file"),
        (lambda stem: stem.with_suffix(".json").write_text("{"), "not JSON"),
        (lambda stem: stem.with_suffix(".json").write_text('{"mean_sys_share": "most"}'), "mean_sys_share is 'most'"),
        (lambda stem: stem.with_suffix(".npz").write_bytes(b"PK no zip"), "not a readable .npz"),
        (lambda stem: stem.with_suffix(".npz").write_bytes(stem.with_suffix(".npz").read_bytes()[:300]), "not a readable .npz"),
        (lambda stem: np.savez(stem.with_suffix(".npz"), alphaV=np.ones((2, 2))), r"[layer, head] is (2, 2), (3, 4)"),
        (lambda stem: np.savez(stem.with_suffix(".npz"), alphaV=np.ones((2, 2)), delta_gv=np.ones(3)), "arrays of the shapes"),
        (lambda stem: np.savez(stem.with_suffix(".npz"), other=np.ones((2, 2))), "none of the arrays"),
        (lambda stem: np.savez(stem.with_suffix(".npz"), alphaV=np.array([["a"]])), "not numbers"),
        (lambda stem: np.savez(stem.with_suffix(".npz"), alphaV=np.array([[{}]])), "holds objects"),
        (
            lambda stem: changed(stem, delta_gv=None),
            "the list of arrays is head_vision_share, alphaV, share_prod_notV, delta_alphaV",
        ),
        (lambda stem: changed(stem, hidden_norms_sys=None), "the list of arrays is"),
        (lambda stem: changed(stem, delta_gv=spot(np.inf)), "delta_gv holds an infinity, at [1, 2]"),
        (lambda stem: changed(stem, **dict.fromkeys(diagnostics.HEADS, np.full((3, 4), np.nan))), "(3, 4) without a value"),
        (lambda stem: changed(stem, **dict.fromkeys(diagnostics.HEADS, np.ones((0, 0)))), "(0, 0) without a value"),
        (lambda stem: changed(stem, delta_gv=np.full((3, 4), np.nan)), "without a value is delta_gv [0, 1, 2], none in most"),
        (lambda stem: changed(stem, hidden_norms_vision=np.ones(7)), "hidden norms of the shapes [(4,), (7,)]"),
        (lambda stem: changed(stem, **dict.fromkeys(NORMS, np.ones(7))), "layers with hidden norms is 7, 4 in most"),
        (lambda stem: changed(stem, **dict.fromkeys(NORMS, np.ones((4, 2)))), "hidden norms of the shapes [(4, 2)]"),
        (lambda stem: changed(stem, **dict.fromkeys(NORMS, np.ones(3))), "hidden norms of 3 layers, heads of 3"),
        (lambda stem: changed(stem, hidden_norms_grid=np.ones(4)), "it must be [layer, token]"),
        (lambda stem: stem.with_suffix(".json").write_text("[" * 100_000 + "]" * 100_000), "nested too deep"),
        (lambda stem: stem.with_suffix(".json").write_text('{"mean_sys_share": Infinity}'), "mean_sys_share is inf"),
        (lambda stem: stem.with_suffix(".json").write_text('{"mean_sys_share": 1%s}' % ("0" * 400)), "not a number"),
        (lambda stem: stem.with_suffix(".json").write_text('{"caption": ["a"]}'), "caption is ['a'], not text"),
        (lambda stem: stem.with_suffix(".json").write_text('{"example": 5}'), "example is 5, not text"),
        (lambda stem: stem.with_suffix(".json").write_text('{"example": "000000000139"}'), "is that of 000000000139.json"),
    ],
)
def test_pictures_that_failed_are_reported_and_not_counted(published, spoil, says, tmp_path):
    whole = diagnostics.read_run(published)
    spoil(published / "per_image" / f"{NUMBERS[1]:012d}")
    run = diagnostics.read_run(published)
    (problem,) = run.problems.to_dict("records")
    assert problem["example"] == f"{NUMBERS[1]:012d}" and says in problem["error"]
    kept = whole.heads[whole.heads["example"] != f"{NUMBERS[1]:012d}"].reset_index(drop=True)
    pd.testing.assert_frame_equal(run.heads, kept)
    assert diagnostics.summary(run)["images_used"] == 2
    again = diagnostics.read_run(diagnostics.write_run(run, tmp_path / "copy"))
    assert again.problems["error"].tolist() == [problem["error"]]
    assert diagnostics.by_layer([run]).notna().all(axis=None)


def test_most_pictures_say_which_form_is_right(published):
    whole = diagnostics.read_run(published)
    changed(published / "per_image" / f"{NUMBERS[0]:012d}", **dict.fromkeys(diagnostics.HEADS, np.ones((2, 2))))
    run = diagnostics.read_run(published)
    assert run.problems["example"].tolist() == [f"{NUMBERS[0]:012d}"]
    kept = whole.heads[whole.heads["example"] != f"{NUMBERS[0]:012d}"].reset_index(drop=True)
    pd.testing.assert_frame_equal(run.heads, kept)


def test_layers_that_have_no_attention_in_any_picture_have_no_rows(published):
    for number in NUMBERS:
        arrays = read_npz(published / "per_image" / f"{number:012d}.npz")
        empty = {name: np.where([[True], [False], [True]], arrays[name], np.nan) for name in diagnostics.HEADS}
        changed(published / "per_image" / f"{number:012d}", **empty)
    run = diagnostics.read_run(published)
    assert run.problems.empty and set(run.heads["layer"]) == {0, 2} and diagnostics.by_layer([run])["layer"].tolist() == [0, 2]


def test_an_example_without_a_name_is_called_as_its_files(published):
    for number in NUMBERS:
        (published / "per_image" / f"{number:012d}.json").write_text('{"example": null}')
    assert diagnostics.read_run(published).images["example"].tolist() == [f"{number:012d}" for number in NUMBERS]


def test_a_run_written_over_another_leaves_nothing_of_it(published, tmp_path):
    run, folder = diagnostics.read_run(published), tmp_path / "copy" / published.name
    few = run.images["example"].isin(run.images["example"][:2])
    part = {
        name: getattr(run, name)[getattr(run, name)["example"].isin(run.images["example"][few])] for name in ("heads", "hidden")
    }
    less = diagnostics.Run(run.slug, run.stripped, run.meta, **part, images=run.images[few])
    alone = diagnostics.write_run(less, tmp_path / "alone")
    diagnostics.write_run(run, tmp_path / "copy")
    (folder / "per_image" / "notes.json").write_text("{}")
    diagnostics.write_run(less, tmp_path / "copy")
    assert (folder / "per_image" / "notes.json").read_text() == "{}"
    (folder / "per_image" / "notes.json").unlink()
    found, known = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()} for root in (folder, alone)
    )
    assert found == known


def test_a_run_cut_off_while_it_was_written_over_another_is_none(published, tmp_path, monkeypatch):
    run = diagnostics.read_run(published)
    folder = diagnostics.write_run(run, tmp_path / "copy")

    def full(path, arrays):
        raise OSError("no room")

    monkeypatch.setattr(diagnostics, "write_npz", full)
    with pytest.raises(OSError, match="no room"):
        diagnostics.write_run(run, tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match=r"no file .*meta\.json"):
        diagnostics.read_run(folder)


def test_a_place_that_takes_no_run_is_named(published, tmp_path):
    run = diagnostics.read_run(published)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write .*file/llava-v1\.5-7b__sp-0"):
        diagnostics.write_run(run, tmp_path / "file")
    run.slug = "a" * 300
    with pytest.raises(OSError, match=r"cannot write .*File name too long"):
        diagnostics.write_run(run, tmp_path)


def test_a_run_is_read_from_within_its_folder(published, monkeypatch):
    monkeypatch.chdir(published)
    assert diagnostics.read_run(".").name == published.name
    monkeypatch.chdir(published / "per_image")
    assert diagnostics.read_run("..").name == published.name


@pytest.mark.parametrize("said", ['"abc"', "null", "true", "NaN", "Infinity", "[1]"])
def test_settings_without_a_number_of_steps_are_refused(published, said):
    (published / "meta.json").write_text(f'{{"delta_steps": {said}}}')
    with pytest.raises(ValueError, match=r"meta\.json: delta_steps is .*, not a number"):
        diagnostics.read_run(published)


def test_settings_nested_too_deep_are_refused(published):
    (published / "meta.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"meta\.json: .*nested too deep"):
        diagnostics.read_run(published)


def test_an_array_larger_than_its_file_allows_is_refused(tmp_path):
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)}
    with open(tmp_path / "bomb.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"bomb\.npy: 8,000,000,000,000,000,000 bytes"):
        read_npy(tmp_path / "bomb.npy")
    np.save(tmp_path / "short.npy", np.ones(100))
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match="cut short, 792 bytes of 800"):
        read_npy(tmp_path / "short.npy")
    np.savez(tmp_path / "two.npz", a=np.ones(60), b=np.ones(60))
    with pytest.raises(ValueError, match=r"two\.npz: b: 480 bytes"):  # 480 of 500 are taken
        read_npz(tmp_path / "two.npz", max_bytes=500)
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert read_npy(tmp_path / "columns.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


def test_folders_that_are_no_run_are_refused(published, tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        diagnostics.read_run(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        diagnostics.read_run(tmp_path / "gone__sp-1")
    (published / "meta.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*meta\.json"):
        diagnostics.read_run(published)
    empty = tmp_path / "empty__sp-1"
    (empty / "per_image").mkdir(parents=True)
    (empty / "meta.json").write_text("{}")
    with pytest.raises(ValueError, match="no picture of 0 can be counted"):
        diagnostics.read_run(empty)


@pytest.fixture(scope="module")
def ours(tiny_llava):
    vlm, asked = VLM.load(str(tiny_llava)), examples(4)
    read = balance.measure(vlm, asked, max_new_tokens=3)
    tables = {"cmb": balance.cmb(read), "hidden": hidden_norms.measure(vlm, asked), "shares": balance.shares(read)}
    return rope.measure(vlm, asked, deltas=[2.0]), tables


def test_our_tables_become_a_run_and_come_back(ours, tmp_path):
    sensitivity, tables = ours
    captions = {f"e{i}": {"file_name": f"{i}.jpg", "caption": f"picture {i}"} for i in range(4)}
    run = diagnostics.from_tables("tiny", sensitivity, stripped=True, images=captions, meta={"prompt_text": "?"}, **tables)
    folder = diagnostics.write_run(run, tmp_path)
    assert folder.name == "tiny__sp-1"
    found = diagnostics.read_run(folder)
    assert (
        found.meta == {"model_name": "tiny", "strip_system_prompt": True, "delta_steps": 2.0, "prompt_text": "?"}
        and found.delta == 2
    )
    by = ["example", "layer", "head"]
    back, known = found.heads.set_index(by).sort_index(), sensitivity.set_index(by).sort_index()
    for column in ("alpha_v", "delta_g_v", "delta_alpha_v"):
        assert back[column].tolist() == known[column].tolist()
    assert back["cmb"].tolist() == tables["cmb"].set_index(by)["cmb"].sort_index().tolist()
    np.testing.assert_allclose(back["share_prod_not_v"], known["alpha_v"] * (1 - known["alpha_v"]))
    arrays = read_npz(folder / "per_image" / "000000000001.npz")  # ids that are no numbers: by their places
    assert arrays["alphaV"].shape == (2, 4) and arrays["hidden_norms_vision"].shape == (3,)
    hidden = tables["hidden"][tables["hidden"]["example"] == "e1"].set_index(["layer", "site", "group"])
    last = [hidden.loc[(2, "final norm", group)] for group in ("user", "role")]
    weighted = sum(one["norm"] * one["tokens"] for one in last) / sum(one["tokens"] for one in last)
    assert arrays["hidden_norms_user_text"][2] == pytest.approx(weighted)  # turn markers are text there
    assert arrays["hidden_norms_vision"].tolist() == pytest.approx(
        [
            hidden.loc[(0, "stream", "vision"), "norm"],
            hidden.loc[(1, "stream", "vision"), "norm"],
            hidden.loc[(2, "final norm", "vision"), "norm"],
        ]
    )
    shares = tables["shares"].set_index("example")
    row = found.images.set_index("example").loc["e2"]
    assert row["mean_vision_share"] == shares.loc["e2", "vision_vs_user"] == 1 - row["mean_text_share"]
    assert row["mean_sys_share"] == shares.loc["e2", "system"] and row["caption"] == "picture 2"


def test_tables_that_are_not_one_run_are_refused(ours, tmp_path):
    sensitivity, tables = ours
    with pytest.raises(ValueError, match=r"2 values of Delta \(2, 1\); a run has one"):
        diagnostics.from_tables("tiny", pd.concat([sensitivity, sensitivity.assign(delta=1.0)]))
    with pytest.raises(ValueError, match="cmb has 3 examples that are not the 4 of rope"):
        diagnostics.from_tables("tiny", sensitivity, cmb=tables["cmb"][tables["cmb"]["example"] != "e0"])
    run = diagnostics.from_tables("tiny", sensitivity)
    run.problems = pd.DataFrame({"example": ["e1"], "error": ["broken"]})
    with pytest.raises(ValueError, match="'e1' stands twice among the examples and problems"):
        diagnostics.write_run(run, tmp_path)
    for slug in ("../tiny", "a/b", ".hidden", "", "a\nb", "a\0b"):
        with pytest.raises(ValueError, match="is no folder's name"):
            diagnostics.write_run(diagnostics.from_tables(slug, sensitivity), tmp_path)


# --- the comparison figure ---

BASE, NORM, MULTI = "llava-v1.5-7b", "llava-v1.5-7b-normWmean", "llava-v1.5-7b-multilayerNorm"


def compared(models):
    rows = [
        {"run": f"{model}__sp-0", "model": model, "layer": layer, "abs_delta_g_v": len(model) / 1e4, "delta_alpha_v": 0.1}
        for model in models
        for layer in range(4)
    ]
    return pd.DataFrame(rows)


def drawn(frame, definition):
    """{label in the legend: (height of its line, its colour)}."""
    figure = plots.draw("diagnostics.comparison", frame, {"definition": definition})
    lines = {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}
    return {label: (line.get_ydata()[0], line.get_color()) for label, line in lines.items()}


def test_published_labels_go_by_place_and_swap_the_variants():
    """In the order of the study's notebook the two variants' labels are exchanged; in that of its labels nothing differs."""
    as_given, in_order = compared([BASE, MULTI, NORM]), compared([BASE, NORM, MULTI])
    published, corrected = drawn(as_given, "as_published"), drawn(as_given, "corrected")
    assert published["LLaVA 1.5"] == corrected["LLaVA 1.5"]
    assert published["+ Normalize"] == corrected["+ Normalize + Multilayer"]
    assert published["+ Normalize + Multilayer"] == corrected["+ Normalize"]
    assert corrected["+ Normalize"][0] == len(NORM) / 1e4
    assert drawn(in_order, "as_published") == drawn(in_order, "corrected") == corrected


def test_corrected_labels_are_the_models_own():
    assert run_labels(compared([MULTI, "lab-llava", NORM, BASE])) == {
        f"{MULTI}__sp-0": "+ Normalize + Multilayer",
        "lab-llava__sp-0": "lab-llava",
        f"{NORM}__sp-0": "+ Normalize",
        f"{BASE}__sp-0": "LLaVA 1.5",
    }
    both = compared([BASE, MULTI])
    stripped = both.assign(run=both["run"].str.replace("sp-0", "sp-1"))
    labels = run_labels(pd.concat([both, stripped]))
    assert len(set(labels.values())) == 4 and labels[f"{BASE}__sp-1"] == f"LLaVA 1.5 ({BASE}__sp-1)"
    assert run_labels(compared(["a", "b"]), "as_published") == {"a__sp-0": PUBLISHED_LABELS[0], "b__sp-0": PUBLISHED_LABELS[1]}


def test_comparison_refuses_what_it_cannot_label():
    with pytest.raises(ValueError, match="4 runs; as published there are labels for 3"):
        drawn(compared(list("abcd")), "as_published")
    with pytest.raises(ValueError, match="definition='wrong' is unknown"):
        drawn(compared([BASE]), "wrong")
    with pytest.raises(ValueError, match=r"layer 0 of 'llava-v1\.5-7b__sp-0' stands twice"):
        drawn(compared([BASE, BASE]), "corrected")


def test_layer_means_with_intervals_over_pictures(published):
    run = diagnostics.read_run(published)
    frame = diagnostics.by_layer([run])
    assert frame["layer"].tolist() == list(range(LAYERS)) and set(frame["run"]) == {run.name}
    for layer, row in frame.set_index("layer").iterrows():
        values = np.stack([abs(one_picture(place)["delta_gv"][layer].astype(float)) for place in range(3)])
        assert row["abs_delta_g_v"] == pytest.approx(values.mean(), rel=1e-5)
        assert values.mean(1).min() - 1e-8 <= row["abs_delta_g_v_low"] <= row["abs_delta_g_v"] <= row["abs_delta_g_v_high"]
    alone = run.heads[run.heads["example"] == run.heads["example"].iloc[0]]
    single = diagnostics.by_layer([diagnostics.Run(run.slug, False, run.meta, alone, run.hidden, run.images)])
    assert single["abs_delta_g_v_low"].isna().all() and single["abs_delta_g_v"].notna().all()
    assert plots.draw("diagnostics.comparison", pd.concat([frame, single.assign(run="alone")]), {}).axes


def test_layer_means_name_the_picture_that_lacks_a_number(published):
    run = diagnostics.read_run(published)
    heads = run.heads
    bare = heads.assign(delta_g_v=np.nan)
    frame = diagnostics.by_layer([diagnostics.Run(run.slug, False, run.meta, bare, run.hidden, run.images)])
    assert frame["abs_delta_g_v"].isna().all() and frame["delta_alpha_v_low"].notna().all()
    for value in (np.nan, np.inf):
        of = (heads["example"] == f"{NUMBERS[1]:012d}") & (heads["layer"] == 1)
        run.heads = heads.assign(delta_g_v=heads["delta_g_v"].mask(of, value))
        with pytest.raises(ValueError, match=r"llava-v1\.5-7b__sp-0: abs_delta_g_v of '000000000285' in layer 1 is no number"):
            diagnostics.by_layer([run])
