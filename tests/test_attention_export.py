"""Our results in the attention study's files: read back by its readers, they are what the tables say, computed another way."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from spatialprobes import paths
from spatialprobes.examples import Example, Object
from spatialprobes.probes import attention_export, heads, map_baseline, maps, text_only
from spatialprobes.probes.heads import HeadMass
from spatialprobes.probes.map_records import Panels
from spatialprobes.sources import attention_pairs, attention_results, head_reports, head_results
from spatialprobes.vlm import VLM
from spatialprobes.worlds.corners import CORNERS, lab_corner_pairs
from spatialprobes.worlds.lab_relations import lab_captions, lab_relations

PAIRS, ROLES = 3, ("subject", "reference", "relation")
LEFT, RIGHT = (0.05, 0.1, 0.3, 0.3), (0.55, 0.4, 0.95, 0.9)


# ---- made by hand ----
def example(name, relation="left", **meta):
    """The subject on the left; the world has the reference first."""
    words = {"subject": "red circle", "reference": "blue square", "word": relation}
    objects = [Object(word, ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), box) for word, box in (("a", LEFT), ("b", RIGHT))]
    return Example(
        name, None, "a caption", relation, objects=objects, meta={**words, "relation": relation, "world_order": False, **meta}
    )


def panels_of(examples, seed=0, roles=ROLES):
    """Random panels of 6 x 6 for the roles of every example."""
    rng = np.random.default_rng(seed)
    rows = [(one.id, one.id, one.meta["word" if role == "relation" else role], role) for one in examples for role in roles]
    index = pd.DataFrame(rows, columns=["example", "cluster", "word", "role"]).assign(map=range(len(rows)), category="")
    index = index.assign(rows=6, cols=6, scale_x=1.0, scale_y=1.0, shift_x=0.0, shift_y=0.0)
    return Panels(index, [rng.dirichlet(np.full(36, 0.3)).reshape(6, 6) for _ in rows])


def mass_of(counts, n_heads=5, layers=(0, 2), seed=0):
    """Random attention of pairs; counts: by corner, how many."""
    rng = np.random.default_rng(seed)
    pairs = [(f"{corner}-{i}", corner, str(i)) for corner, count in counts.items() for i in range(count)]
    values = rng.random((len(pairs), len(counts), 2, 3, len(layers), n_heads)).astype(np.float32)
    frame = pd.DataFrame(pairs, columns=["pair", "corner", "cluster"])
    return HeadMass(frame, list(counts), list(layers), values, pd.DataFrame())


def asymmetry_of(captions, tokens=(1, 1)):
    rows = [
        (pair.id, pair.cluster, pair.relation, member, layer, head, tokens[i % 2], 0.1 * i + 0.01 * layer - 0.02 * head * member)
        for i, pair in enumerate(captions)
        for member in (1, 2)
        for layer in (0, 1)
        for head in (0, 1)
    ]
    names = ["pair", "cluster", "relation", "member", "layer", "head", "first_tokens", "asymmetry"]
    more = {"entity": "shape", "second_tokens": 1, "chance_first": 0.1, "chance_second": 0.1}
    return pd.DataFrame(rows, columns=names).assign(**more)


def by_hand(examples=None, counts=None, tokens=(1, 1), n_heads=5, **more):
    examples = examples or [example("a"), example("b", "right", world_order=True)]
    captions = text_only.pairs(lab_captions(4, 1), form="published")
    made = {"panels": panels_of(examples), "examples": examples, "shuffled": None, "captions": captions}
    mass = mass_of(counts or dict.fromkeys(("topleft", "bottomright"), PAIRS), n_heads)
    return made | {"asymmetry": asymmetry_of(captions, tokens), "mass": mass} | more


# ---- tables computed independently ----
def com(panel, box):
    """The study's distance of centres, cell by cell, in cells."""
    rows, cols = panel.shape
    x0, y0, x1, y1 = (int(np.floor(edge * side)) for edge, side in zip(box, (cols, rows, cols, rows), strict=True))
    cells = [(row, col) for row in range(y0, min(y1, rows - 1) + 1) for col in range(x0, min(x1, cols - 1) + 1)]
    centre = np.mean(cells, axis=0)
    share = panel / (panel.sum() + 1e-6)
    own = [sum(share[row, col] * (row, col)[axis] for row in range(rows) for col in range(cols)) for axis in (0, 1)]
    return float(np.hypot(*(centre - own)))


def coms(panels, examples):
    """{(example, entity): com}, entities in the world's order."""
    known, found = {one.id: one for one in examples}, {}
    for row, panel in zip(panels.index.itertuples(), panels.maps, strict=True):
        one = known[row.example]
        if row.role != "relation":
            place = ("subject", "reference").index(row.role)
            first = one.meta["world_order"] if place == 0 else not one.meta["world_order"]
            found[row.example, "entity1" if first else "entity2"] = com(panel, one.objects[place].box)
    return found


def top_three(mass, corner):
    """How often each (layer, head) is among the three that change most, counted pair by pair."""
    found, asked = Counter(), mass.asked.index(corner)
    for row, pair in enumerate(mass.pairs.itertuples()):
        for place, layer in enumerate(mass.layers):
            full, control = mass.mass[row, asked, :, 0, place].astype(float)
            largest = sorted(range(len(full)), key=lambda head: -abs(full[head] - control[head]))[:3]
            if pair.corner == corner:
                found.update((layer, head) for head in largest)
    return found


def check_heads(folder, layout, mass):
    for corner in set(mass.pairs["corner"]):
        found = head_results.read(folder / f"head_diff_stats_{corner}")
        assert (found.corner, found.layout, found.pairs, found.problems) == (corner, layout, PAIRS, [])
        counted = found.counts.set_index(["layer", "head"])["count"]
        assert counted[counted > 0].to_dict() == top_three(mass, corner)
        own = (mass.pairs["corner"] == corner).to_numpy()
        changes = mass.mass[own, mass.asked.index(corner), :, 0].astype(float)
        for place, layer in enumerate(mass.layers if layout == "llava" else ()):
            np.testing.assert_array_equal(found.changes[layer], abs(changes[:, 0, place] - changes[:, 1, place]))


def check_reports(folder, mass):
    found = head_reports.read(folder / "count_shared_unique")
    counts = {corner: top_three(mass, corner) for corner in set(mass.pairs["corner"])}
    cells = [(layer, head) for layer in mass.layers for head in range(mass.mass.shape[-1])]
    shared = {cell: np.mean([own[cell] for own in counts.values()]) for cell in cells}
    assert not found.problems and (found.pairs, found.order, found.reduced, found.scale) == (PAIRS, "raw", "max", "count")
    for row in found.cells.to_dict("records"):
        cell = mass.layers[row["layer"]], row["head"]  # their layer is the row of count_LHN
        corner = row["map"].removeprefix("head_diff_stats_")
        values = shared if corner == "shared" else {cell: counts[corner][cell] - shared[cell] for cell in cells}
        assert row["value"] == row["score"] == pytest.approx(values[cell], abs=1e-6)
        assert row["value"] == pytest.approx(sorted(values.values())[-row["rank"]], abs=1e-6)
        for name, own in counts.items():
            other = own[cell] - (0 if corner == "shared" else shared[cell])
            assert row[f"head_diff_stats_{name}"] == pytest.approx(other, abs=1e-6)
    best = found.heads.set_index("map")
    assert best.loc["shared", "score"] == pytest.approx(max(shared.values()), abs=1e-6) and len(best) == len(counts) + 1


# ---- tests ----
def test_a_lab_model_end_to_end(tmp_path):
    """6 scenes, real and shuffled, 6 captions and 3 pairs a corner, in both layouts."""
    if not (paths.lab_folder() / "lab-llava" / "config.json").is_file():
        pytest.skip("lab-llava has not been trained yet")
    vlm, asked = VLM.load("lab-llava"), lab_relations(6, 5)
    panels = maps.aggregate(maps.extract(vlm, asked))
    mixed = map_baseline.shuffled(asked, tuple(panels.index[["rows", "cols"]].iloc[0]))
    others = maps.aggregate(maps.extract(vlm, mixed))
    captions = text_only.pairs(lab_captions(6, 5), form="published")
    asymmetry = text_only.measure(vlm, captions, entity="shape")
    mass = heads.measure(vlm, [pair for corner in CORNERS for pair in lab_corner_pairs(corner, PAIRS, 11)])
    given = {"panels": panels, "examples": asked, "shuffled": (others, mixed), "captions": captions}
    places = {one.id: place for place, one in enumerate(asked) if one.meta["relation"] in ("left", "right")}
    for layout in ("llava", "qwen2"):
        folder = tmp_path / layout
        written = attention_export.write(folder, layout, asymmetry=asymmetry, mass=mass, **given)
        assert set(written) == {path for path in folder.rglob("*") if path.is_file()}
        found = attention_results.read(folder / attention_export.MAPS[layout])
        assert found.layout == layout and not found.problems and found.samples["sample"].tolist() == [*places.values()]
        keys = ["condition", "sample", "role"]
        read = found.metrics[(found.metrics["kind"] == "words") & (found.metrics["metric"] == "com")].set_index(keys)["value"]
        for condition, own, shown in (("real", panels, asked), ("shuffled", others, mixed)):
            within = 5.1e-5 if condition == "real" else 0.0051  # LLaVA's script writes the shuffled one to 2 decimals
            wanted = {(map_baseline.real_id(name), role): value for (name, role), value in coms(own, shown).items()}
            for (name, role), value in wanted.items():
                if name in places:
                    assert read[condition, places[name], role] == pytest.approx(value, abs=within)
        means = found.means[found.means["kind"] == "words"].set_index(["condition", "role", "metric"])["value"]
        real = [value for (name, role), value in coms(panels, asked).items() if role == "entity1" and name in places]
        assert means["real", "entity1", "com"] == pytest.approx(np.mean(real), abs=1e-4) and means.notna().all()
        check_heads(folder, layout, mass)
    check_reports(tmp_path / "qwen2", mass)
    pairs = attention_pairs.read_pairs(tmp_path / "qwen2" / attention_export.PAIRS)
    assert pairs["sent1"].tolist() == [one.members[0].text for one in captions]
    assert pairs["sent2"].tolist() == [one.members[1].text for one in captions]
    for row, one in zip(pairs.itertuples(), captions, strict=True):
        own = asymmetry[asymmetry["pair"] == one.id]
        for member, value in ((1, row.asym_s1), (2, row.asym_s2)):
            chosen = own[own["member"] == member]
            assert value == pytest.approx((chosen["to_first"] - chosen["to_second"]).mean())


@pytest.mark.parametrize("layout", ["llava", "qwen2"])
def test_what_was_given_by_hand_is_read_back(layout, tmp_path):
    """Ids that tell shard and number; a role without maps, patches and (LLaVA) shuffled pictures are nan; above is no sample."""
    names = ("shard2/world-7", "shard0/world-3", "shard0/world-4")
    shown = [example(names[0]), example(names[1], "right", world_order=True), example(names[2], "above")]
    given = by_hand(shown, panels=panels_of(shown, roles=ROLES[:2]))
    attention_export.write(tmp_path, layout, **given)
    found = attention_results.read(tmp_path / attention_export.MAPS[layout])
    assert list(zip(found.samples["shard"], found.samples["sample"], strict=True)) == [(0, 3), (2, 7)]
    read = found.metrics.set_index(["condition", "kind", "shard", "sample", "role", "metric"]).sort_index()["value"]
    wanted = coms(given["panels"], shown)
    assert wanted[names[0], "entity1"] == com(given["panels"].maps[1], RIGHT)  # the world has the reference first
    for name, place in ((names[1], (0, 3)), (names[0], (2, 7))):
        for role in ("entity1", "entity2"):
            assert read["real", "words", *place, role, "com"] == pytest.approx(wanted[name, role], abs=5.1e-5)
    real = read["real"]
    assert real["words"].drop("relation", level="role").notna().all()
    assert real.xs("relation", level="role").isna().all() and real["self"].isna().all()
    assert set(found.metrics["condition"]) == ({"real"} if layout == "qwen2" else {"real", "shuffled"})
    assert layout == "qwen2" or read["shuffled"].isna().all()
    check_heads(tmp_path, layout, given["mass"])
    theirs = [attention_export.PAIRS, attention_export.STATS, attention_export.REPORTS]
    assert [(tmp_path / name).exists() for name in theirs] == [layout == "qwen2"] * 3
    if layout == "qwen2":
        assert found.samples["prompt"].tolist() == ["a caption"] * 2 and found.samples["rows"].tolist() == [6, 6]
        check_reports(tmp_path, given["mass"])


def test_only_pairs_of_single_tokens_are_kept_and_the_others_counted(tmp_path):
    given = by_hand(tokens=(2, 1))
    attention_export.write(tmp_path, "qwen2", **given)
    stats = attention_pairs.read_stats(tmp_path / attention_export.STATS)
    assert (stats["shards"], stats["total_lines"], stats["kept_pairs"], stats["skipped_pairs"]) == ([0], 4, 2, 2)
    read = attention_pairs.read_pairs(tmp_path / attention_export.PAIRS)
    assert read["sent1"].tolist() == [one.members[0].text for one in given["captions"][1::2]]
    np.testing.assert_allclose(
        read[["asym_s1", "asym_s2"]], [[0.1 + 0.005 - 0.01, 0.1 + 0.005 - 0.02], [0.3 - 0.005, 0.3 - 0.015]]
    )
    assert stats["asym_s1_mean"] == pytest.approx(read["asym_s1"].mean(), abs=1e-6)


@pytest.mark.parametrize(("layout", "n_heads", "said"), [("llava", 3, "wants 4"), ("qwen2", 2, "wants 3")])
def test_too_few_heads_leave_the_heads_out(layout, n_heads, said, tmp_path):
    with pytest.warns(UserWarning, match=f"files of heads are left out: layers of {n_heads} heads; the {layout} layout {said}"):
        written = attention_export.write(tmp_path, layout, **by_hand(n_heads=n_heads))
    assert (tmp_path / attention_export.MAPS[layout]).is_dir() and len(written) >= 3
    assert not list(tmp_path.glob("head_diff_stats_*")) and not (tmp_path / attention_export.REPORTS).exists()


def test_three_heads_are_enough_for_counts_alone(tmp_path):
    attention_export.write(tmp_path, "qwen2", **by_hand(n_heads=3))
    assert (head_results.read(tmp_path / "head_diff_stats_topleft").counts["count"] == PAIRS).all()


@pytest.mark.parametrize(
    ("change", "said", "lacking"),
    [
        ({"examples": [example("a", "above")]}, "maps are left out: no example says left or right", "MAPS"),
        ({"tokens": (2, 2)}, "captions are left out: no pair names shapes of one token each", "PAIRS"),
        ({"counts": {"topleft": 3, "topright": 4}}, "shared heads are left out: corners of 3, 4 pairs", "REPORTS"),
        ({"mass": replace(mass_of({"topleft": 3}), asked=["topright"])}, r"heads are left out: no subject .*\(topright\)", ""),
    ],
)
def test_what_cannot_be_made_is_left_out_with_a_line(change, said, lacking, tmp_path):
    with pytest.warns(UserWarning, match=said):
        written = attention_export.write(tmp_path, "qwen2", **by_hand(**change))
    name = getattr(attention_export, lacking, None) or "head_diff_stats_topleft"
    assert written and not (tmp_path / (name["qwen2"] if lacking == "MAPS" else name)).exists()


def test_one_corner_has_nothing_to_share(tmp_path, recwarn):
    attention_export.write(tmp_path, "qwen2", **by_hand(counts={"topleft": 3}))
    assert (tmp_path / "head_diff_stats_topleft").is_dir() and not (tmp_path / attention_export.REPORTS).exists()
    assert not [one for one in recwarn if one.category is UserWarning]


def test_places_are_told_by_ids_or_counted():
    assert attention_export.places(["shard3/world-14", "x/shard0/world-2"]) == [(3, 14), (0, 2)]
    for names in (["shard3/world-14", "lab-1"], ["a/shard0/world-1", "b/shard0/world-1"], ["shard0/world-1-2", "shard0/world-1"]):
        assert attention_export.places(names) == [(0, 0), (0, 1)]


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ValueError, match="'gpt' is unknown; one of 'llava', 'qwen2'"):
        attention_export.write(tmp_path, "gpt", **by_hand())
    nameless = example("x")
    del nameless.meta["world_order"]
    with pytest.raises(ValueError, match="'x' does not say in meta"):
        attention_export.write(tmp_path, "qwen2", **by_hand([nameless]))
    given = by_hand()
    with pytest.raises(ValueError, match="4 pairs for 3 captions"):
        attention_export.write(tmp_path, "qwen2", **given | {"captions": given["captions"][1:]})
    attention_export.write(tmp_path, "llava", **given)
    with pytest.raises(ValueError, match="of the other script"):
        attention_export.write(tmp_path, "qwen2", **given)
