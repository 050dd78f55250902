"""The swap study's own files: written from our tables and read back, a folder in the original's style, and broken ones."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialprobes.pairs import CATEGORIES, GROUP_OF, GROUPS, OPPOSITE, SIGN
from spatialprobes.probes import swap_export, swap_results
from spatialprobes.probes.swap_accuracy import accuracy
from spatialprobes.probes.swap_alignment import alignment, similarity
from spatialprobes.probes.swap_layout import SCALE, TAGS, blocks, named, representative
from spatialprobes.probes.swap_measures import consistency
from spatialprobes.probes.swap_states import States, from_arrays

EACH, WIDTH, LAYERS = 6, 10, (0, 1, 2, 3, 4, 5, 6, 7, "norm")


def frame_of(categories, ids, clusters):
    columns = {"pair": ids, "category": categories, "group": [GROUP_OF[one] for one in categories], "cluster": clusters}
    return pd.DataFrame(columns)


def made_states(rng, categories, ids, clusters, direction):
    """Deltas of the sign-corrected direction and noise at every layer."""
    pairs = frame_of(categories, ids, clusters)
    signs = pairs["category"].map(SIGN).to_numpy()[:, None]
    original = {layer: rng.normal(size=(len(pairs), WIDTH)).astype("float32") for layer in LAYERS}
    swapped = {}
    for place, layer in enumerate(LAYERS):
        noise = rng.normal(size=(len(pairs), WIDTH))
        swapped[layer] = (original[layer] + noise + 0.3 * place * signs * direction).astype("float32")
    return from_arrays(pairs, original, swapped)


def made_answers(rng, pairs):
    rows = []
    for one in pairs.itertuples():
        for member in ("original", "swapped"):
            category = one.category if member == "original" else OPPOSITE[one.category]
            right = dict(zip(("correct", "correct_published", "correct_logprob"), (rng.random(3) < 0.8).tolist(), strict=True))
            rows.append({"pair": one.pair, "member": member, "category": category, "group": one.group, "cluster": one.cluster,
                         "parsed": True, **right})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def ours():
    """{scale: (states, quads, tables)} as the notebook has them."""
    found = {}
    for seed, scale in enumerate(("2m", "vanilla")):
        rng = np.random.default_rng(seed)
        direction = rng.normal(size=WIDTH)
        categories = [*CATEGORIES] * EACH
        ids = [f"lab-{i}" for i in range(len(categories))]
        states = made_states(rng, categories, ids, [f"scene-{i // 3}" for i in range(len(ids))], direction)
        roles = [("above", "far"), ("under", "close")] * 6
        quad = [f"quad-{i}" for i in range(len(roles))]
        vertical, distance = (made_states(rng, [role[k] for role in roles], quad, quad, direction) for k in (0, 1))
        answers = made_answers(rng, states.pairs)
        tables = {
            "consistency": consistency(states, answers, n=100),
            "similarity": similarity(states, answers),
            "accuracy": accuracy(answers),
            "alignment": alignment(vertical, distance, n=100),
            "answers": answers,
        }
        found[scale] = states, (vertical, distance), tables
    return found


@pytest.fixture(scope="module")
def folder(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "lab-llava"
    for scale, (states, quads, tables) in ours.items():
        swap_results.write(folder, scale, states=states, quads=quads, tables=tables)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copied(results, target):
    for scale in results.scales:
        swap_results.write(
            target, scale, states=results.vectors.get(scale), quads=results.quads.get(scale), tables=results.tables
        )
    return target


def compared(frame, other, columns):
    """Equal in these columns, whatever the order of rows and the width of integers."""
    keys = [name for name in columns if name == "layer" or not pd.api.types.is_numeric_dtype(frame[name])]
    a, b = (one[columns].astype({key: str for key in keys}).sort_values(keys).reset_index(drop=True) for one in (frame, other))
    pd.testing.assert_frame_equal(a, b, check_dtype=False, rtol=0, atol=0)


# There and back


def test_the_files_are_those_of_the_studys_list(folder):
    expected = {"csv/summary.csv"}
    for scale in ("2m", "vanilla"):
        expected |= {f"json/{name}_{scale}.json" for name in ("pred_stats", "category_validity", "cross_alignment")}
        expected |= {f"npz/{name}_{scale}.npz" for name in ("vectors", "cross_group_vectors")}
        for tag in ("all_pairs", "both_correct", "all_with_validity"):
            expected |= {f"json/{name}_consistency_{scale}_{tag}.json" for name in ("sign_corrected", "within_cat")}
            expected |= {f"csv/delta_similarity_{scale}_L{block}_{tag}.csv" for block in range(7)}
    assert set(contents(folder)) == expected


def test_what_was_written_is_read(ours, folder):
    results = swap_results.read(folder)
    assert (results.scales, results.problems, results.ignored) == (["vanilla", "2m"], [], [])
    for scale, (_, _, tables) in ours.items():
        own = {name: frame[frame["scale"] == scale] for name, frame in results.tables.items()}
        numbered = {
            name: frame[frame["layer"].isin(blocks(frame["layer"]))] for name, frame in tables.items() if "layer" in frame
        }

        wrote = numbered["consistency"]
        wrote = wrote[(wrote["control"] == "none") & wrote["upper_triangle"].notna()]
        compared(own["consistency"], wrote, ["layer", "variant", "measure", "of", "control", "upper_triangle", "std", "n"])
        assert (own["consistency"]["estimate"] == own["consistency"]["upper_triangle"]).all()

        compared(
            own["similarity"],
            numbered["similarity"].dropna(),
            ["layer", "variant", "row", "column", "cosine", "n_row", "n_column"],
        )

        wrote = numbered["alignment"]
        wrote = wrote[(wrote["definition"] == "as_published") & (wrote["variant"] == "all") & (wrote["control"] == "none")]
        measured = own["alignment"][own["alignment"]["control"] == "none"]
        compared(measured, wrote, ["layer", "variant", "measure", "definition", "estimate", "n"])

        wrote = tables["accuracy"][tables["accuracy"]["by"] == "as_published"]
        wrote = wrote[(wrote["category"] == "") | (wrote["member"] != "both")]
        compared(own["accuracy"], wrote, ["group", "category", "member", "by", "estimate", "chance", "n"])
        flags = own["accuracy"].set_index(["group", "category", "member"])["reliable"]
        wrote = wrote[wrote["category"] != ""].set_index(["group", "category", "member"])["reliable"]
        assert (flags.loc[wrote.index] == wrote).all()

        columns = ["pair", "member", "category", "group", "cluster", "correct_published"]
        compared(own["answers"], tables["answers"], columns)
        assert own["consistency"][["low", "high", "p", "q", "clusters"]].isna().all(axis=None)
        assert set(own["accuracy"]["samples"]) == {{"vanilla": 0.0, "2m": 2e6}[scale]}


def test_vectors_come_back_at_five_layers_and_from_the_disk(ours, folder):
    results = swap_results.read(folder)
    for scale, (states, quads, _) in ours.items():
        back = results.vectors[scale]
        assert back.layers == (1, 3, 4, 5, 7)
        pd.testing.assert_frame_equal(back.pairs, states.pairs)
        for layer in back.layers:
            np.testing.assert_array_equal(back.original(layer), states.original(layer))
            np.testing.assert_array_equal(back.swapped(layer), states.swapped(layer))
            np.testing.assert_array_equal(results.quads[scale].vertical(layer), quads[0].delta(layer))
            np.testing.assert_array_equal(results.quads[scale].distance(layer), quads[1].delta(layer))


def test_read_and_written_again_every_byte_is_the_same(folder, tmp_path):
    assert contents(copied(swap_results.read(folder), tmp_path / "again")) == contents(folder)


def test_a_scale_written_again_replaces_its_own_files_and_row(ours, folder, tmp_path):
    for scale in ("vanilla", "2m", "vanilla"):
        states, quads, tables = ours[scale]
        written = swap_results.write(tmp_path, scale, states=states, quads=quads, tables=tables)
        assert all(path.is_file() for path in written)
    assert contents(tmp_path) == contents(folder)


# What is written, computed otherwise


def slow(deltas):
    """Mean and standard deviation of the cosines above the diagonal, pair by pair."""
    cosines = [
        float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))
        for i, a in enumerate(deltas.astype(float)) for b in deltas[i + 1 :].astype(float)
    ]  # fmt: skip
    return np.mean(cosines), np.std(cosines), len(deltas)


def test_consistency_is_the_mean_and_deviation_of_all_pairwise_cosines(ours, folder):
    states, _, tables = ours["2m"]
    right = tables["answers"].pivot(index="pair", columns="member", values="correct").all(axis=1)
    both = right.loc[states.pairs["pair"]].to_numpy()
    for tag, keep in (("all_pairs", both | True), ("both_correct", both), ("all_with_validity", both | True)):
        grouped = json.loads((folder / f"json/sign_corrected_consistency_2m_{tag}.json").read_text())
        within = json.loads((folder / f"json/within_cat_consistency_2m_{tag}.json").read_text())
        assert list(grouped)[:2] == ["horizontal_L0", "horizontal_L1"] and len(grouped) == 21 and len(within) == 42
        for block in (0, 6):
            deltas = states.swapped(block + 1) - states.original(block + 1)
            for group, (canonical, other) in GROUPS.items():
                category = states.pairs["category"].to_numpy()
                signs = np.where(category == canonical, 1.0, -1.0)[:, None]
                chosen = keep & np.isin(category, (canonical, other))
                got = grouped[f"{group}_L{block}"]
                np.testing.assert_allclose((got["mean"], got["std"], got["n"]), slow((signs * deltas)[chosen]), atol=1e-7)
                got = within[f"{other}_L{block}"]
                np.testing.assert_allclose(
                    (got["mean"], got["std"], got["n"]), slow(deltas[keep & (category == other)]), atol=1e-7
                )


def test_alignment_holds_the_studys_numbers(ours, folder):
    vertical, distance = ours["2m"][1]
    written = json.loads((folder / "json/cross_alignment_2m.json").read_text())
    assert list(written) == [f"L{block}" for block in range(7)]
    names = ["per_sample_mean", "per_sample_std", "mean_delta_alignment", "permutation_mean", "permutation_std", "n_samples"]
    for block in (0, 6):
        v, d = (one.delta(block + 1).astype(float) for one in (vertical, distance))

        def cosine(a, b):
            return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

        each = [cosine(a, b) for a, b in zip(v, d, strict=True)]
        draw = np.random.RandomState(42)
        chance = [np.mean([cosine(a, d[j]) for a, j in zip(v, draw.permutation(len(d)), strict=True)]) for _ in range(100)]
        expected = [np.mean(each), np.std(each), cosine(v.mean(0), d.mean(0)), np.mean(chance), np.std(chance), len(v)]
        assert list(written[f"L{block}"]) == names
        np.testing.assert_allclose(list(written[f"L{block}"].values()), expected, atol=1e-6)


def test_the_studys_layer_i_is_what_block_i_puts_out(tiny_llava, tmp_path):
    from tiny import examples

    from spatialprobes.capture import capture
    from spatialprobes.vlm import VLM

    vlm, seen = VLM.load(str(tiny_llava), device="cpu"), []
    hooks = [
        block.register_forward_hook(lambda *call: seen.append(vlm.family.hidden(call[-1])[:, -1].numpy()))
        for block in vlm.family.part(vlm.model, "layers")
    ]
    with capture(vlm, hidden=[0, 1, 2, "norm"]) as got:
        vlm.forward(vlm.encode(examples(3)))
    for hook in hooks:
        hook.remove()
    arrays = {layer: array.numpy().reshape(3, -1) for layer, array in got.hidden.items()}
    pairs = frame_of(["left", "right", "above"], ["0", "1", "2"], ["0", "1", "2"])
    swap_results.write(tmp_path, "a", states=from_arrays(pairs, arrays, {layer: array + 1 for layer, array in arrays.items()}))
    with np.load(tmp_path / "npz/vectors_a.npz") as written:
        assert [name for name in written.files if name.startswith("orig")] == ["orig_L0", "orig_L1"]
        for block in (0, 1):
            np.testing.assert_array_equal(written[f"orig_L{block}"], seen[block])


def test_a_quad_that_lacks_a_state_is_left_out_of_both_deltas(ours, tmp_path):
    vertical, distance = ours["2m"][1]
    holes = {layer: distance.original(layer).copy() for layer in distance.layers}
    holes[7][3] = np.nan
    distance = from_arrays(distance.pairs, holes, {layer: distance.swapped(layer) for layer in distance.layers})
    tables = {"alignment": alignment(vertical, distance, n=100)}
    swap_results.write(tmp_path, "a", quads=(vertical, distance), tables=tables)
    keep = np.arange(12) != 3
    with np.load(tmp_path / "npz/cross_group_vectors_a.npz") as arrays:
        np.testing.assert_array_equal(arrays["delta_vert_L6"], vertical.delta(7)[keep])
        np.testing.assert_array_equal(arrays["delta_dist_L6"], distance.delta(7)[keep])
        assert len(arrays["delta_dist_L4"]) == 12
    written = json.loads((tmp_path / "json/cross_alignment_a.json").read_text())
    assert (written["L6"]["n_samples"], written["L5"]["n_samples"]) == (11, 12)


def test_predictions_are_counted(ours, folder):
    answers = ours["2m"][2]["answers"]
    wide = answers.pivot(index=["pair", "group"], columns="member", values="correct_published").reset_index()
    stats = json.loads((folder / "json/pred_stats_2m.json").read_text())
    assert stats["scale"] == "2m" and stats["overall_n"] == 36 and stats["distance_n"] == 12
    vertical = wide[wide["group"] == "vertical"]
    assert stats["vertical_acc_orig"] == vertical["original"].mean()
    assert stats["vertical_acc_both"] == (vertical["original"] & vertical["swapped"]).mean()
    assert stats["overall_acc_swap"] == wide["swapped"].sum() / 36
    assert stats["overall_acc_both"] == (wide["original"] & wide["swapped"]).sum() / 36


def test_arrays_have_the_studys_names_and_no_objects(ours, folder):
    states, _, tables = ours["vanilla"]
    with np.load(folder / "npz/vectors_vanilla.npz", allow_pickle=False) as arrays:
        names = "delta groups categories is_correct_orig is_correct_swap indices orig swap labels clusters".split()
        assert arrays.files == [f"{name}_L{block}" for block in (0, 2, 3, 4, 6) for name in names]
        np.testing.assert_array_equal(arrays["delta_L6"], states.swapped(7) - states.original(7))
        swapped = tables["answers"].set_index(["pair", "member"])["correct_published"].xs("swapped", level="member")
        np.testing.assert_array_equal(arrays["is_correct_swap_L0"], swapped.loc[states.pairs["pair"]])
        np.testing.assert_array_equal(arrays["labels_L3"], states.pairs["category"])
    with np.load(folder / "npz/cross_group_vectors_vanilla.npz", allow_pickle=False) as arrays:
        assert arrays.files == [f"delta_{word}_L{block}" for block in (0, 2, 3, 4, 6) for word in ("vert", "dist")]


def test_a_pair_without_states_is_left_out_of_its_layer(ours, tmp_path):
    states = ours["2m"][0]
    broken = {layer: states.swapped(layer).copy() for layer in states.layers}
    broken[7][4] = np.nan
    holed = from_arrays(states.pairs, {layer: states.original(layer) for layer in states.layers}, broken)
    swap_results.write(tmp_path, "a", states=holed)
    with np.load(tmp_path / "npz/vectors_a.npz") as arrays:
        assert arrays["orig_L6"].shape == (35, WIDTH) and arrays["orig_L4"].shape == (36, WIDTH)
        assert "lab-4" not in arrays["indices_L6"] and "lab-4" in arrays["indices_L4"]
    results = swap_results.read(tmp_path)
    assert results.vectors["a"].layers == (1, 3, 4, 5)
    assert any("npz/vectors_a.npz: L6: its pairs are not those of layer 0" in one for one in results.problems)


@given(scale=st.from_regex(SCALE, fullmatch=True), block=st.integers(0, 9999), tag=st.sampled_from(sorted(TAGS.items())))
def test_names_of_files_say_what_they_were_given(scale, block, tag):
    variant, spelled = tag
    found = named(f"csv/delta_similarity_{scale}_L{block}_{spelled}.csv")
    assert (found.scale, found.layer, found.variant) == (scale, block + 1, variant)
    found = named(f"json/within_cat_consistency_{scale}_{spelled}.json")
    assert (found.kind, found.scale, found.variant) == ("within_cat_consistency", scale, variant)
    assert named(f"npz/vectors_{scale}.npz").scale == scale
    assert named(f"npz/{scale}_vectors.npz") is None


def test_five_layers_are_spread_from_first_to_last():
    assert representative(range(1, 37)) == (1, 10, 19, 27, 36)
    assert representative((2, 5, 9)) == (2, 5, 9) and representative(()) == ()
    assert blocks(["0", "1", "10", "9", "norm", 3, "3"]) == (1, 3, 9, 10)


# A folder in the original's style, written without our writer


@pytest.fixture
def original(tmp_path):
    """Two scales of a model with three blocks, as a script like the study's writes them: json.dump(indent=2), to_csv, savez."""
    folder = tmp_path / "results" / "molmo"
    for name in ("csv", "json", "npz", "plots/all/pca"):
        (folder / name).mkdir(parents=True)
    (folder / "plots/all/pca/pca_80k_L0.png").write_bytes(b"picture")
    rng = np.random.default_rng(7)
    categories = np.array(["left", "right", "above", "under", "far", "close"] * 2)
    groups = np.array([GROUP_OF[one] for one in categories])
    rows = []
    for scale in ("80k", "roborefer"):
        stats = {"scale": scale}
        for group in ("horizontal", "vertical", "distance"):
            stats |= {f"{group}_n": 4, f"{group}_acc_orig": 0.75, f"{group}_acc_swap": 0.5, f"{group}_acc_both": 0.25}
        stats |= {"overall_acc_orig": 0.75, "overall_acc_swap": 0.5, "overall_acc_both": 0.25, "overall_n": 12}
        valid = {one: {"n": 2, "acc_orig": 0.75, "acc_swap": 0.5, "reliable": True} for one in CATEGORIES}
        valid["close"] = {"n": 2, "acc_orig": 0.0, "acc_swap": 0.5, "reliable": False}
        pairs = (("left", "right"), ("above", "under"), ("far", "close"))
        near = [(one, layer) for pair in pairs for layer in range(3) for one in pair]
        within = {f"{one}_L{layer}": {"mean": 0.1 * layer + 0.01, "std": 0.2, "n": 2} for one, layer in near}
        across = [(group, layer) for group in ("horizontal", "vertical", "distance") for layer in range(3)]
        grouped = {f"{group}_L{layer}": {"mean": 0.3 * layer, "std": 0.125, "n": 4} for group, layer in across}
        chance = {"permutation_mean": 0.01, "permutation_std": 0.02, "n_samples": 4}
        aligned = {}
        for layer in range(3):
            measured = {"per_sample_mean": 0.25 + layer / 10, "per_sample_std": 0.1, "mean_delta_alignment": 0.5}
            aligned[f"L{layer}"] = measured | chance
        for name, content in {
            f"pred_stats_{scale}": stats,
            f"category_validity_{scale}": valid,
            f"within_cat_consistency_{scale}_all_pairs": within,
            f"sign_corrected_consistency_{scale}_all_pairs": grouped,
            f"cross_alignment_{scale}": aligned,
        }.items():
            with open(folder / "json" / f"{name}.json", "w") as file:
                json.dump(content, file, indent=2)
        arrays, cross = {}, {}
        for layer in range(3):
            cosines = np.clip(rng.normal(size=(6, 6)) / 3, -1, 1)
            table = pd.DataFrame(cosines, index=list(CATEGORIES), columns=list(CATEGORIES))
            table.to_csv(folder / "csv" / f"delta_similarity_{scale}_L{layer}_all_pairs.csv")
            orig, swap = rng.normal(size=(2, 12, 5)).astype("float32")
            arrays |= {
                f"delta_L{layer}": swap - orig, f"groups_L{layer}": groups, f"categories_L{layer}": categories,
                f"is_correct_orig_L{layer}": np.arange(12) % 4 > 0, f"is_correct_swap_L{layer}": np.arange(12) % 2 > 0,
                f"indices_L{layer}": np.arange(100, 112), f"orig_L{layer}": orig, f"swap_L{layer}": swap,
                f"labels_L{layer}": categories,
            }  # fmt: skip
            cross |= {f"delta_vert_L{layer}": orig[:4], f"delta_dist_L{layer}": swap[:4]}
        np.savez_compressed(folder / "npz" / f"vectors_{scale}.npz", **arrays)
        np.savez_compressed(folder / "npz" / f"cross_group_vectors_{scale}.npz", **cross)
        rows.append(stats | {"alignment_deepest": 0.45})
    pd.DataFrame(rows).to_csv(folder / "csv" / "summary.csv", index=False)
    return folder


def test_the_originals_folder_is_read(original):
    results = swap_results.read(original)
    assert (results.scales, results.problems) == (["80k", "roborefer"], [])
    assert results.ignored == ["plots/all/pca/pca_80k_L0.png"]
    found = results.tables["consistency"].set_index(["scale", "measure", "of", "layer"])
    row = found.loc[("80k", "group", "vertical", 3)]  # the study's layer 2
    assert (row["estimate"], row["std"], row["n"], row["variant"], row["samples"]) == (0.6, 0.125, 4, "all", 80_000)
    assert row["reliable"] and not found.loc[("80k", "group", "distance", 3), "reliable"]
    assert results.tables["consistency"].query("scale == 'roborefer'")["samples"].isna().all()
    assert found.loc[("80k", "within", "far", 1), "estimate"] == 0.01
    aligned = results.tables["alignment"].set_index(["scale", "measure", "control", "layer"])["estimate"]
    assert aligned["80k", "per_sample_mean", "none", 3] == 0.45 and aligned["80k", "mean_delta_alignment", "none", 1] == 0.5
    assert aligned["80k", "per_sample_mean", "shuffled", 1] == 0.01
    assert set(results.tables["alignment"]["definition"]) == {"as_published"}
    right = results.tables["accuracy"].set_index(["scale", "group", "category", "member"])
    assert right.loc[("80k", "distance", "", "both"), ["estimate", "n", "chance"]].tolist() == [0.25, 4, 0.25]
    assert right.loc[("80k", "distance", "close", "original"), ["estimate", "n"]].tolist() == [0.0, 2]
    assert not right.loc[("80k", "distance", "", "both"), "reliable"] and right.loc[("80k", "vertical", "", "both"), "reliable"]
    cells = results.tables["similarity"].set_index(["scale", "layer", "row", "column"])
    written = pd.read_csv(original / "csv/delta_similarity_80k_L2_all_pairs.csv", index_col=0)
    assert cells.loc[("80k", 3, "far", "left"), "cosine"] == pytest.approx(written.loc["far", "left"], abs=1e-15)
    assert cells.loc[("80k", 3, "far", "left"), "n_row"] == 2
    assert results.tables["summary"]["alignment_deepest"].tolist() == [0.45, 0.45]
    states = results.vectors["80k"]
    assert states.layers == (1, 2, 3) and states.pairs["pair"].tolist() == [str(i) for i in range(100, 112)]
    assert (states.pairs["cluster"] == states.pairs["pair"]).all()
    with np.load(original / "npz/vectors_80k.npz") as arrays:
        np.testing.assert_array_equal(states.delta(2), arrays["delta_L1"])
    answers = results.tables["answers"].set_index(["scale", "pair", "member"])
    assert not answers.loc[("80k", "104", "original"), "correct_published"]
    assert answers.loc[("80k", "101", "swapped"), ["category", "correct_published"]].tolist() == ["left", True]


def test_the_originals_files_come_back_byte_for_byte(original, tmp_path):
    before = contents(original)
    del before["plots/all/pca/pca_80k_L0.png"]
    assert contents(copied(swap_results.read(original), tmp_path / "again")) == before


def test_the_other_spelling_of_all_pairs_is_read(original):
    for name in ("within_cat_consistency", "sign_corrected_consistency"):
        (original / f"json/{name}_80k_all_pairs.json").rename(original / f"json/{name}_80k_all.json")
    results = swap_results.read(original)
    assert results.problems == []
    assert set(results.tables["consistency"]["variant"]) == {"all"}
    again = original / "json/within_cat_consistency_80k_all_pairs.json"
    again.write_text("{}")
    problems = swap_results.read(original).problems
    assert problems == ["json/within_cat_consistency_80k_all_pairs.json: says the same as "
                        "json/within_cat_consistency_80k_all.json; left out"]  # fmt: skip


def test_figures_are_drawn_from_it_where_torch_cannot_be_imported(original):
    program = textwrap.dedent(
        f"""
        import sys
        sys.modules["torch"] = sys.modules["transformers"] = None  # importing them raises ImportError
        from spatialprobes import plots
        from spatialprobes.probes import swap_projection, swap_results
        results = swap_results.read({str(original)!r})
        tables = results.tables
        tables["projection"] = swap_projection.projection(results.vectors["80k"], [3])
        one = {{name: frame[frame["scale"] == "80k"] if "scale" in frame else frame for name, frame in tables.items()}}
        for plot, frame, options in (
            ("swap.accuracy", one["accuracy"], {{"by": "as_published"}}),
            ("swap.consistency", one["consistency"], {{}}),
            ("swap.consistency", one["consistency"], {{"measure": "within"}}),
            ("swap.alignment", one["alignment"], {{"definition": "as_published"}}),
            ("swap_similarity.matrix", one["similarity"], {{}}),
            ("swap_pca.plane", one["projection"], {{}}),
            ("swap_scales.by_layer", tables["consistency"], {{}}),
            ("swap_scales.by_layer", tables["alignment"], {{"measure": "per_sample_mean", "definition": "as_published"}}),
            ("swap_scales.trajectory", tables["accuracy"], {{"by": "as_published"}}),
        ):
            figure = plots.draw(plot, frame, options)
            print(plot, sum(len(ax.lines) + len(ax.patches) + len(ax.images) + len(ax.collections) for ax in figure.axes))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "lib"}
    )
    assert done.returncode == 0, done.stderr
    drawn = [line.split() for line in done.stdout.splitlines()]
    assert len(drawn) == 9 and all(int(count) > 0 for _, count in drawn)


# Folders that are broken


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("json/pred_stats_80k.json", "{", "json/pred_stats_80k.json: not JSON"),
        ("json/pred_stats_80k.json", "[1]", "json/pred_stats_80k.json: not an object but list"),
        ("json/pred_stats_80k.json", '{"scale": "9k"}', "pred_stats_80k.json: says scale '9k'; its name counts"),
        ("json/pred_stats_80k.json", '{"scale": "80k"}', "pred_stats_80k.json: vertical: vertical_n is missing"),
        ("json/category_validity_80k.json", '{"below": {}}', "'below' is no category (left, right"),
        ("json/category_validity_80k.json", '{"far": {"n": -1, "acc_orig": 1, "acc_swap": 1}}', "n is '-1', a count is wanted"),
        ("json/category_validity_80k.json", '{"far": {"n": Infinity, "acc_orig": 1, "acc_swap": 1}}', "far: n is 'inf'"),
        ("json/category_validity_80k.json", '{"far": {"n": 1, "acc_orig": 1, "acc_swap": 1}}', "far: reliable is None"),
        ("json/within_cat_consistency_80k_all_pairs.json", '{"left": {}}', "'left' is no category_L<layer>"),
        ("json/within_cat_consistency_80k_all_pairs.json", '{"left_L0": 3}', "left_L0: not an object but int"),
        ("json/within_cat_consistency_80k_all_pairs.json", '{"left_L0": {"mean": "x", "std": 0, "n": 2}}', "mean is 'x'"),
        ("json/sign_corrected_consistency_80k_all_pairs.json", '{"left_L0": {"mean": 0}}', "'left_L0' is no group_L<layer>"),
        ("json/sign_corrected_consistency_80k_all_pairs.json", '{"vertical_L0": {"mean": 7, "std": 0, "n": 2}}', "mean is '7'"),
        ("json/cross_alignment_80k.json", '{"L0": {"per_sample_mean": 0.1}}', "L0: mean_delta_alignment is missing"),
        ("json/cross_alignment_80k.json", '{"layer 0": {}}', "'layer 0' is no L<layer>"),
        ("csv/delta_similarity_80k_L0_all_pairs.csv", "", "L0_all_pairs.csv: No columns"),
        ("csv/delta_similarity_80k_L0_all_pairs.csv", ",left\nleft,1\nright,0\n", "are not the same categories"),
        ("csv/delta_similarity_80k_L0_all_pairs.csv", ",left\nleft,x\n", "could not convert string to float"),
        ("csv/delta_similarity_80k_L0_all_pairs.csv", ",left\nleft,3\n", "3 is no cosine"),
        ("csv/delta_similarity_80k_L0_all_pairs.csv", b"\xff\xfe,left", "delta_similarity_80k_L0_all_pairs.csv: 'utf-8'"),
        ("csv/summary.csv", "a,b\n1,2\n", "csv/summary.csv: has no column scale but a, b"),
        ("csv/summary.csv", "scale,layer\n80k,x\n", "csv/summary.csv: column layer is no number in every row"),
        ("csv/summary.csv", "scale,vertical_n\n80k,1\n80k,2\n", "csv/summary.csv: scale '80k' stands twice"),
        ("csv/summary.csv", "scale,vertical_n\n,1\n", "csv/summary.csv: row 1 names no scale"),
        ("json/within_cat_consistency_80k_all_pairs.json", '{"left_L00": {"mean": 0, "std": 0, "n": 2}}', "'left_L00' is no"),
        ("json/within_cat_consistency_80k_all_pairs.json", f'{{"left_L{"9" * 400}": {{}}}}', "is no category_L<layer>"),
        ("json/within_cat_consistency_80k_all_pairs.json", '{"left_L0": {"mean": 0, "std": -0.1, "n": 2}}', "std is '-0.1'"),
        ("json/cross_alignment_80k.json", '{"L01": {"per_sample_mean": 0, "mean_delta_alignment": 0}}', "'L01' is no L<layer>"),
        ("json/category_validity_80k.json", '{"far": {"n": 1, "acc_orig": -0.1, "acc_swap": 1}}', "acc_orig is '-0.1'"),
        ("npz/vectors_80k.npz", b"PK\x03\x04 no more", "npz/vectors_80k.npz: not a readable .npz file"),
        ("npz/cross_group_vectors_80k.npz", b"", "npz/cross_group_vectors_80k.npz: not a readable .npz file"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_named_and_the_rest_is_read(original, name, content, said):
    whole = swap_results.read(original)
    (original / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    results = swap_results.read(original)
    assert any(said in one and one.startswith(name) for one in results.problems), results.problems
    assert all("\n" not in one and str(original) not in one for one in results.problems)
    assert results.scales == whole.scales and "roborefer" in results.vectors
    for table in ("consistency", "alignment", "similarity", "accuracy", "validity", "answers"):
        own, before = (one.tables[table].query("scale == 'roborefer'") for one in (results, whole))
        assert len(own) == len(before) > 0


@pytest.mark.parametrize("name", ["json/pred_stats_80k.json", "json/cross_alignment_80k.json", "npz/vectors_80k.npz"])
def test_what_is_missing_is_named(original, name):
    (original / name).unlink()
    assert swap_results.read(original).problems == [f"80k: no {name.split('/')[1].rsplit('_', 1)[0]}"]


def test_without_their_validity_nothing_is_called_reliable(original):
    (original / "json/category_validity_80k.json").unlink()
    tables = swap_results.read(original).tables
    for name in ("consistency", "accuracy"):
        own = tables[name][tables[name]["scale"] == "80k"]
        assert len(own) and own["reliable"].isna().all()


def test_objects_are_refused_with_how_to_convert_them(original):
    path = original / "npz/vectors_80k.npz"
    with np.load(path) as arrays:
        held = dict(arrays)
    held["categories_L1"] = held["categories_L1"].astype(object)
    np.savez_compressed(path, **held)
    results = swap_results.read(original)
    (problem,) = results.problems
    assert problem.startswith("npz/vectors_80k.npz: categories_L1 holds objects") and "80k" not in results.vectors
    names = {"np": np, "old": path, "new": original / "npz/new.npz"}
    exec(problem.partition("convert it once: ")[2], names)  # the line does what it says
    (original / "npz/new.npz").replace(path)
    assert swap_results.read(original).problems == []


@pytest.mark.parametrize(
    ("key", "array", "said"),
    [
        ("swap_L1", np.zeros((12, 4)), "L1: orig has shape (12, 5), swap (12, 4)"),
        ("categories_L1", np.array(["left"] * 3), "L1: category: (3,) for 12 pairs"),
        ("categories_L1", np.array(["north"] * 12), "L1: 'north' is no category"),
        ("indices_L1", np.zeros(12, int), "L1: index '0' stands twice"),
        ("indices_L1", np.arange(12), "L1: its pairs are not those of layer 0"),
        ("categories_L1", None, "L1: there are no categories"),
    ],
)
def test_a_layer_whose_arrays_do_not_fit_is_left_out(original, key, array, said):
    path = original / "npz/vectors_80k.npz"
    with np.load(path) as arrays:
        held = dict(arrays)
    held.pop(key) if array is None else held.update({key: array})
    np.savez_compressed(path, **held)
    results = swap_results.read(original)
    assert results.vectors["80k"].layers == (1, 3)
    assert [one for one in results.problems if said in one and one.startswith("npz/vectors_80k.npz: ")]


@pytest.mark.parametrize(
    ("key", "array", "said"),
    [
        ("orig_L1", np.full((12, 5), "x"), "orig_L1 holds <U1; real numbers are wanted"),
        ("is_correct_swap_L0", np.zeros(12, int), "is_correct_swap is not a yes or no for each pair"),
    ],
)
def test_arrays_of_another_kind_are_named(original, key, array, said):
    path = original / "npz/vectors_80k.npz"
    with np.load(path) as arrays:
        held = dict(arrays)
    np.savez_compressed(path, **held | {key: array})
    assert any(said in one for one in swap_results.read(original).problems)


@pytest.mark.parametrize("scale", ["NA", "null", "nan", "001"])
def test_a_scale_may_have_any_name_that_a_file_may(original, scale, tmp_path):
    tables = swap_results.read(original).tables
    for name in (scale, "b"):  # the second reads what the first has written
        own = tables["accuracy"].query("scale == '80k'").assign(scale=name)
        swap_results.write(tmp_path, name, tables={"accuracy": own})
    summary = swap_results.read(tmp_path).tables["summary"]
    assert sorted(summary["scale"]) == sorted([scale, "b"]) and (summary["overall_n"] == 12).all()


def test_what_the_study_left_out_stays_left_out(original, tmp_path):
    path = original / "json/cross_alignment_80k.json"
    path.write_text(json.dumps({"L0": {"per_sample_mean": 0.25, "mean_delta_alignment": 0.5}}))
    path = original / "json/category_validity_80k.json"
    path.write_text(path.read_text().replace("0.75", "NaN", 1))  # of left
    again = copied(swap_results.read(original), tmp_path / "again")
    aligned = json.loads((again / "json/cross_alignment_80k.json").read_text())["L0"]
    assert (aligned["per_sample_mean"], aligned["mean_delta_alignment"]) == (0.25, 0.5) and "n_samples" not in aligned
    assert json.loads((again / "json/category_validity_80k.json").read_text())["left"]["n"] == 0


def test_states_are_read_when_asked_for(original):
    states = swap_results.read(original).vectors["80k"]
    path = original / "npz/vectors_80k.npz"
    with np.load(path) as arrays:
        held = dict(arrays)
    np.savez(path, **{name: array + 1 if name == "orig_L0" else array for name, array in held.items()})
    np.testing.assert_array_equal(states.original(1), held["orig_L0"] + 1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"vectors_80k\.npz"):
        states.original(1)


def test_links_out_of_the_folder_are_not_followed(original, tmp_path):
    secret = tmp_path / "elsewhere.json"
    name = "json/pred_stats_80k.json"
    (original / name).rename(secret)
    (original / name).symlink_to(secret)
    (tmp_path / "csvs").mkdir()
    (original / "more").symlink_to(tmp_path / "csvs")
    results = swap_results.read(original)
    assert f"{name}: a link out of the folder is not followed" in results.problems
    assert "80k" not in set(results.tables["accuracy"].query("category == ''")["scale"])
    (original / name).unlink()
    secret.rename(original / "json/kept.json")
    (original / name).symlink_to("kept.json")  # within the folder
    assert swap_results.read(original).problems == []


def test_sizes_are_bounded(original, monkeypatch):
    monkeypatch.setattr(swap_results, "MAX_TEXT", 300)
    problems = swap_results.read(original).problems
    assert any("cross_alignment_80k.json" in one and "at most 300" in one for one in problems)
    assert any("delta_similarity_80k_L0_all_pairs.csv" in one and "at most 300" in one for one in problems)
    monkeypatch.setattr(swap_results, "MAX_FILES", 5)
    with pytest.raises(ValueError, match="more than 5 files"):
        swap_results.read(original)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        swap_results.read(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        swap_results.read(tmp_path / "file")
    with pytest.raises(ValueError, match="no file of the swap study's layout"):
        swap_results.read(tmp_path)


# What cannot be written


def test_what_cannot_be_written_is_said_and_leaves_nothing(ours, tmp_path):
    states, quads, tables = ours["2m"]
    target = tmp_path / "out"
    for words, change, said in (
        ("../up", {}, "files are named after it"),
        ("a", {"tables": {"probe": tables["accuracy"]}}, "'probe' has no place in the study's layout; legal: consistency"),
        ("a", {"tables": {"accuracy": tables["accuracy"].query("by == 'generate'")}}, "no row with by 'as_published'"),
        ("a", {"tables": {"consistency": tables["consistency"].drop(columns="std")}}, "lacks the column 'std'"),
        ("a", {"tables": {"accuracy": tables["accuracy"].assign(scale="b")}}, "nothing to write for scale 'a'"),
        ("a", {"quads": (quads[0], states)}, "row i of both must be one quad"),
        *(("a", {"tables": {name: pd.concat([table, table.tail(1)])}}, "stands twice") for name, table in tables.items()),
        ("a", {"tables": {"similarity": tables["similarity"].assign(cosine=np.inf)}}, "column 'cosine' holds an infinity"),
        ("a", {"states": states, "tables": {**tables, "answers": tables["answers"].iloc[1:]}}, "not both answers"),
        ("a", {}, "nothing to write"),
    ):
        with pytest.raises(ValueError, match=said.replace("(", r"\(")):
            swap_results.write(target, words, **change)
    assert not target.exists()


def test_an_answer_that_is_missing_is_named(ours, tmp_path):
    states, _, tables = ours["2m"]
    with pytest.raises(ValueError, match="pair 'lab-0' has states but not both answers"):
        swap_results.write(tmp_path, "a", states=states, tables={"answers": tables["answers"].iloc[1:]})


def test_a_summary_that_is_another_is_not_overwritten(ours, tmp_path):
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv/summary.csv").write_text("mine,own\n1,2\n")
    with pytest.raises(ValueError, match="not the summary of earlier scales"):
        swap_results.write(tmp_path, "a", tables={"accuracy": ours["2m"][2]["accuracy"]})
    assert contents(tmp_path) == {"csv/summary.csv": b"mine,own\n1,2\n"}


def test_without_quads_what_only_they_know_is_left_out(ours, tmp_path):
    swap_results.write(tmp_path, "a", tables={"alignment": ours["2m"][2]["alignment"]})
    written = json.loads((tmp_path / "json/cross_alignment_a.json").read_text())
    assert list(written["L0"]) == ["per_sample_mean", "mean_delta_alignment", "permutation_mean", "n_samples"]


def test_a_group_without_pairs_counts_nothing(ours):
    table = ours["2m"][2]["accuracy"].query("group != 'distance'")
    stats = swap_export.pred_stats(table, "a")
    assert stats["distance_n"] == 0 and stats["distance_acc_both"] == 0 and stats["overall_n"] == 24
    assert swap_export.category_validity(table)["far"] == {"n": 0, "acc_orig": 0, "acc_swap": 0, "reliable": False}


def test_states_are_states(folder):
    assert isinstance(swap_results.read(folder).vectors["2m"].select(np.arange(36) % 2 == 0), States)
