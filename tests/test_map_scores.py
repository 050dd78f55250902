"""Maps of words held against boxes: tables against their measures one by one, what is left out, intervals, binding, shuffling."""

import dataclasses
import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from spatialprobes import paths
from spatialprobes.examples import Example, Object
from spatialprobes.probes import map_baseline, map_metrics, map_scores, map_targets, maps
from spatialprobes.probes.map_records import Maps, Panels
from spatialprobes.stats import benjamini_hochberg, bootstrap, permutation_test
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_relations import lab_relations

GRID = (5, 6)
WORDS = {"subject": "red circle", "reference": "square"}
LEFT = ((0.02, 0.3, 0.3, 0.55), (0.52, 0.25, 0.8, 0.6))


def example(i, boxes=LEFT, relation="left", **meta):
    objects = [Object(name, (0.0, 0.0), box) for name, box in zip(WORDS.values(), boxes, strict=False)]
    meta = {**WORDS, "relation": relation, "word": relation, "world_order": bool(i % 2), **meta}
    return Example(f"e{i}", Image.new("RGB", (10, 10)), category=relation or "", cluster=f"c{i // 2}", objects=objects, meta=meta)


def examples(n=8, seed=0):
    """Two questions a picture; a box left of, or above, the other, now and then too near for cells between them."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        x, y, far = *rng.uniform(0.05, 0.3, 2), rng.uniform(0.3, 0.5)
        one, other = (x, y, x + 0.25, y + 0.2), (x + far, y + 0.03, x + far + 0.2, y + 0.3)
        if i % 3 == 2:
            one, other = (tuple(box[k] for k in (1, 0, 3, 2)) for box in (one, other))
        found.append(example(i, (one, other), "above" if i % 3 == 2 else "left"))
    return found


def index_of(asked, roles=("subject", "reference"), grid=GRID):
    frame = {"rows": grid[0], "cols": grid[1], "scale_x": 1.0, "scale_y": 1.0, "shift_x": 0.0, "shift_y": 0.0}
    rows = [
        {"example": one.id, "cluster": one.cluster, "word": one.meta[role], "role": role, "category": one.category, **frame}
        for one in asked
        for role in roles
    ]
    return pd.DataFrame(rows).reset_index(names="map")


def maps_of(asked, seed=0, layers=(1, 4), heads=3, grid=GRID):
    rng = np.random.default_rng(seed)
    index = index_of(asked, grid=grid)
    weights = [rng.random((len(layers), heads, grid[0] * grid[1])).astype(np.float32) for _ in range(len(index))]
    return Maps(index, list(layers), weights)


def panels_of(asked, seed=0):
    maps = maps_of(asked, seed)
    return Panels(maps.index, [one[0, 0].reshape(GRID) / one[0, 0].sum(dtype=float) for one in maps.weights])


def masks_of(one, grid=GRID):
    """The cells of both boxes by sampling points of the picture on a fine raster."""
    y, x = ((np.arange(600) + 0.5) / 600 for _ in range(2))
    out = []
    for thing in one.objects:
        left, top, right, bottom = thing.box
        cells = np.zeros(grid, bool)
        rows, columns = (y[(y > top) & (y < bottom)] * grid[0]).astype(int), (x[(x > left) & (x < right)] * grid[1]).astype(int)
        cells[np.ix_(np.unique(rows), np.unique(columns))] = True
        out.append(cells)
    return out


# ---- score and by_head ----
def test_every_map_is_held_against_both_boxes():
    asked = examples()
    panels = panels_of(asked)
    found = map_scores.score(panels, asked)
    assert list(found.columns) == "example cluster word role category target metric value chance left_out".split()
    for row, panel in zip(panels.index.itertuples(), panels.maps, strict=True):
        one = next(one for one in asked if one.id == row.example)
        own = found[(found["example"] == row.example) & (found["role"] == row.role)]
        masks = dict(zip(("subject", "reference"), masks_of(one), strict=True))
        axis = map_targets.AXES[one.meta["relation"]]
        for target, mask in masks.items():
            held = own[own["target"] == target].set_index("metric")
            assert list(held.index) == ["hit", "mass", "lift", "auc", "distance", "wasserstein"]
            for name in ("hit", "mass", "lift", "auc", "distance"):
                assert held["value"][name] == pytest.approx(getattr(map_metrics, name)(panel, mask))
            along = map_metrics.along(mask, axis)
            assert held["value"]["wasserstein"] == pytest.approx(map_metrics.wasserstein(panel, along, axis))
            assert held["chance"]["mass"] == held["chance"]["hit"] == pytest.approx(mask.mean())
            assert held["chance"]["lift"] == 1 and held["chance"]["auc"] == 0.5
            assert (held["cluster"] == one.cluster).all() and (held["word"] == row.word).all()
        gap = own[(own["target"] == "relation") & (own["metric"] == "wasserstein")]["value"].item()
        wanted = map_targets.gap(masks["subject"], masks["reference"], axis)
        assert gap == pytest.approx(map_metrics.wasserstein(panel, wanted, axis))
        assert own[own["target"] == "map"]["value"].item() == pytest.approx(map_metrics.entropy_share(panel))


def cells_between(one, grid=GRID):
    """The cells between the facing edges of both boxes, along the relation's axis, that neither has; by sampled points."""
    (a, b), k = (thing.box for thing in one.objects), "xy".index(map_targets.AXES[one.meta["relation"]])
    box = [0.0] * 4
    box[k], box[k + 2] = min(a[k + 2], b[k + 2]), max(a[k], b[k])
    box[1 - k], box[3 - k] = min(a[1 - k], b[1 - k]), max(a[3 - k], b[3 - k])
    room = masks_of(dataclasses.replace(one, objects=[Object("room", (0.0, 0.0), tuple(box))]), grid)[0]
    return room & ~np.logical_or(*masks_of(one, grid))


def test_relations_are_held_against_the_cells_between_both_boxes():
    asked = [*examples(9), example(9, ((0.05, 0.3, 0.2, 0.4), (0.7, 0.1, 0.95, 0.35)))]
    panels, seen = panels_of(asked), 0
    found = map_scores.score(panels, asked, metrics=["mass", "auc"]).query("target == 'relation'")
    for one, panel in zip(asked, panels.maps[::2], strict=True):
        own = found[(found["example"] == one.id) & (found["role"] == "subject")].set_index("metric")
        room = cells_between(one)
        seen += room.any()
        if room.any():
            assert own["value"]["mass"] == pytest.approx(map_metrics.mass(panel, room))
            assert own["value"]["auc"] == pytest.approx(map_metrics.auc(panel, room))
            assert own["chance"]["mass"] == pytest.approx(room.mean())
        else:
            assert own["value"].isna().all() and own["left_out"]["mass"].startswith("no cells between the two boxes along")
    assert 1 < seen < len(asked)


def test_the_studys_measures_are_held_against_its_cells_of_both_boxes():
    touching = example(6, ((0.1, 0.1, 0.5, 0.6), (0.3, 0.4, 0.8, 1.0)))  # they share cells
    asked = [*examples(6), touching]
    panels = panels_of(asked)
    found = map_scores.score(panels, asked, definition="as_published").astype({"example": str, "role": str, "target": str})
    found = found.set_index(["example", "role", "target", "metric"])["value"].sort_index()
    for row, panel in zip(panels.index.itertuples(), panels.maps, strict=True):
        masks = {}
        for name, thing in zip(WORDS, next(one for one in asked if one.id == row.example).objects, strict=True):
            left, top, right, bottom = (int(edge * side) for edge, side in zip(thing.box, GRID[::-1] * 2, strict=True))
            masks[name] = np.zeros(GRID, bool)
            masks[name][top : min(bottom, GRID[0] - 1) + 1, left : min(right, GRID[1] - 1) + 1] = True
        for target, other in zip(masks, reversed(masks), strict=True):
            value = found[row.example, row.role, target]
            mask, across = masks[target], masks[target].sum(0)
            for name in ("com", "iou", "soft_iou", "in_out_ratio"):
                assert value[name] == pytest.approx(getattr(map_metrics, name)(panel, mask))
            assert value["wasserstein_x"] == pytest.approx(map_metrics.wasserstein_x(panel, across))
            outside = panel[~(mask | masks[other])].sum() + 1e-6
            assert value["entity_bg_ratio_llava"] == pytest.approx(panel[mask].sum() / outside)
            assert value["entity_bg_ratio_qwen"] == pytest.approx(panel[mask & ~masks[other]].sum() / outside)


def test_as_published_holds_maps_along_x_and_against_the_orders_of_the_world():
    asked = examples(6)
    found = map_scores.score(panels_of(asked), asked, definition="as_published")
    assert set(found["metric"]) == set(map_scores.PUBLISHED)
    relation = found[found["target"] == "relation"]
    assert set(relation["metric"]) == {"wasserstein_x"}
    for one, panel in zip(asked[:2], panels_of(asked).maps[::2], strict=False):
        value = relation[(relation["example"] == one.id) & (relation["role"] == "subject")]["value"].item()
        cumulated = np.cumsum(panel.sum(0))
        wanted = map_targets.gap(*masks_of(one), "x")
        wrong = np.abs(cumulated if one.meta["world_order"] else cumulated - np.cumsum(wanted)).sum()
        assert value == pytest.approx(wrong, rel=1e-4)  # the same for every target where the orders agree
    above = relation[relation["category"] == "above"]
    assert len(above) and (above["left_out"] == "the study has no target for the relation 'above'").all()
    boxes = found[(found["category"] == "above") & (found["target"] == "subject")]
    assert boxes["value"].notna().all()  # along x all the same
    beside = [example(0, ((-0.2, 0.1, 0.0, 0.3), LEFT[1]))]  # the study would give it the first column
    outside = map_scores.score(panels_of(beside), beside, metrics=["com"], definition="as_published")
    assert set(outside["left_out"][outside["target"] == "subject"]) == {"the box lies outside the picture"}
    unknown = [dataclasses.replace(one, meta={**one.meta, "relation": "left"}) for one in asked[:1]]
    del unknown[0].meta["world_order"]
    lost = map_scores.score(panels_of(unknown), unknown, definition="as_published").query("target == 'relation'")
    assert (lost["left_out"] == "the order of the world is not known").all()
    alone = [example(0, LEFT[:1])]
    lost = map_scores.score(panels_of(alone), alone, definition="as_published").query("target == 'relation'")
    assert (lost["left_out"] == "no box of the reference").all()


@pytest.mark.parametrize("block", [1, 10**9])
def test_heads_are_scored_as_panels_are(block, monkeypatch):
    """The same values whatever fits in a block, and layers by their own numbers."""
    monkeypatch.setattr(map_scores, "BLOCK", block)
    asked, chosen = examples(5), ("lift", "mass", "hit", "auc", "iou", "entity_bg_ratio_qwen", "dispersion")
    maps = maps_of(asked)
    found = map_scores.by_head(maps, asked, metrics=chosen)
    assert [*found.columns][7:9] == ["layer", "head"] and set(found["layer"]) == {1, 4} and set(found["head"]) == {0, 1, 2}
    for (i, layer), head in itertools.product(enumerate(maps.layers), range(3)):
        panels = Panels(maps.index, [one[i, head].reshape(GRID).astype(float) for one in maps.weights])
        alone = map_scores.score(panels, asked, metrics=chosen)
        ours = found[(found["layer"] == layer) & (found["head"] == head)]
        keys = ["example", "role", "target", "metric"]
        both = ours.merge(alone, on=keys, suffixes=("", "_alone"))
        assert len(both) == len(ours) == len(alone)
        assert both["value"].to_numpy() == pytest.approx(both["value_alone"].to_numpy(), nan_ok=True)
        closed = both["metric"] != "entity_bg_ratio_qwen"
        assert both["chance"][closed].to_numpy() == pytest.approx(both["chance_alone"][closed].to_numpy(), nan_ok=True)
        assert (both["left_out"].astype(str) == both["left_out_alone"].astype(str)).all()


def test_the_default_of_heads_is_four_measures_with_chance():
    found = map_scores.by_head(maps_of(examples(2)), examples(2))
    assert set(found["metric"]) == {"lift", "mass", "hit", "auc"} and found["chance"].isna().equals(found["value"].isna())


def test_pictures_of_several_grids_are_scored_together():
    asked = examples(4)
    small, large = panels_of(asked[:2]), maps_of(asked[2:], 1, grid=(3, 4))
    index = pd.concat([small.index, large.index], ignore_index=True)
    mixed = Panels(index, [*small.maps, *(one[0, 0].reshape(3, 4).astype(float) for one in large.weights)])
    found = map_scores.score(mixed, asked, metrics=["mass"])
    apart = map_scores.score(small, asked[:2], metrics=["mass"])
    assert found["value"].to_numpy()[: len(apart)] == pytest.approx(apart["value"].to_numpy(), nan_ok=True)
    assert list(dict.fromkeys(found["example"])) == [one.id for one in asked]


def test_what_cannot_be_measured_says_why():
    whole, sliver = (0.0, 0.0, 1.0, 1.0), (0.4, 0.4, 0.4, 0.5)
    asked = [
        example(0),
        example(1, ((1.2, 0.1, 1.4, 0.3), LEFT[1])),
        example(2, (whole, LEFT[1])),
        example(3, (LEFT[0], sliver)),
        example(4, LEFT[:1]),
        example(5, relation=None),
        example(6, ((0.1, 0.3, 0.4, 0.5), (0.3, 0.3, 0.6, 0.5))),
    ]
    maps = maps_of(asked)
    maps.index.loc[maps.index["example"] == "e0", ["scale_x", "shift_x"]] = (2.0, -1.0)  # cropped: the left box is not seen
    maps.weights[-1][1, 2] = 0
    found = map_scores.by_head(maps, asked, metrics=["mass", "wasserstein", "entity_bg_ratio_llava"])
    assert (found["value"].isna() == (found["left_out"] != "")).all() and found["chance"].isna().equals(found["value"].isna())

    def why(name, target, metric="mass"):
        part = found[(found["example"] == name) & (found["target"] == target) & (found["metric"] == metric)]
        return set(part["left_out"])

    assert why("e0", "subject") == {"the box lies outside what the model sees"} and why("e0", "reference") == {""}
    assert why("e1", "subject") == {"the box lies outside the picture"} == why("e1", "relation")
    assert why("e1", "relation", "wasserstein") == {"the box lies outside the picture"}
    assert why("e2", "subject") == {"the box covers every cell of the grid"}
    assert why("e3", "reference") == {"the reference's box has no extent"} and why("e3", "subject") == {""}
    assert why("e4", "reference") == {"no box of the reference"} == why("e4", "subject", "entity_bg_ratio_llava")
    assert why("e5", "relation") == {"no relation along an axis: None"} and why("e5", "subject") == {""}
    assert why("e5", "subject", "wasserstein") == {"no relation along an axis: None"}
    assert why("e6", "relation") == {"no cells between the two boxes along x"} and why("e6", "relation", "wasserstein") == {
        "",
        map_scores.NOT_DEFINED,  # the head without weight
    }
    summed = map_scores.summary(found, by=("layer", "head", "role", "target", "metric"))
    part = summed[(summed["target"] == "relation") & (summed["metric"] == "mass")]
    assert (part["n"] == 0).all() and (part["left_out"] == 7).all() and part["p"].isna().all()  # nothing, and it says so
    part = summed.query("target == 'subject' and metric == 'mass' and role == 'subject'")
    assert (part["n"] == 4).all() and (part["left_out"] == 3).all()


def test_words_without_a_map_are_counted():
    asked = examples(4)
    panels = panels_of(asked[:3])
    lost = pd.DataFrame(
        [("e3", "square", "'square' is not in the text"), ("e3", "", "no grid")], columns=["example", "word", "reason"]
    )
    found = map_scores.score(dataclasses.replace(panels, left_out=lost), asked, metrics=["mass", "entropy_share"])
    gone = found[found["example"] == "e3"].drop_duplicates("role").set_index("role")["left_out"]
    assert gone.to_dict() == {"reference": "'square' is not in the text", "subject": "no grid", "relation": "no grid"}
    assert found["value"][found["example"] == "e3"].isna().all()
    once = map_scores.score(dataclasses.replace(panels, left_out=lost[:1]), asked, metrics=["mass"])
    summed = map_scores.summary(once).query("target == 'subject'").set_index("role")
    assert summed["left_out"].to_dict() == {"subject": 0, "reference": 1} and (summed["n"] == 3).all()
    other = pd.DataFrame([("e3", "zebra", "'zebra' is not in the text")], columns=["example", "word", "reason"])
    found = map_scores.score(dataclasses.replace(panels, left_out=other), asked, metrics=["mass"])
    gone = found[found["example"] == "e3"]  # a word that the example does not name has no role of its own
    assert set(zip(gone["word"], gone["role"], gone["left_out"], strict=True)) == {("zebra", "", "'zebra' is not in the text")}


def test_what_is_refused():
    asked = examples(2)
    panels = panels_of(asked)
    with pytest.raises(KeyError, match=r"maps of 1 examples that are not given: 'e1'"):
        map_scores.score(panels, asked[:1])
    with pytest.raises(ValueError, match="3 examples have 2 ids; ids must differ"):
        map_scores.score(panels, [*asked, asked[0]])
    with pytest.raises(KeyError, match="unknown metric 'lifts'; nearest: 'lift'; there are hit, mass"):
        map_scores.score(panels, asked, metrics=["lifts"])
    for metrics in ([], ""):
        with pytest.raises(ValueError, match=r"metrics=.* names none; there are hit, mass"):
            map_scores.score(panels, asked, metrics=metrics)
    assert set(map_scores.score(panels, asked, metrics="lift")["metric"]) == {"lift"}
    with pytest.raises(ValueError, match="definition='published' is unknown; one of 'corrected', 'as_published'"):
        map_scores.by_head(maps_of(asked), asked, definition="published")
    for spoilt in (panels.maps[-1] - 0.5, np.where(panels.maps[-1] > 0.02, np.inf, 0), panels.maps[-1] * np.nan):
        found = map_scores.score(Panels(panels.index, [*panels.maps[:-1], spoilt]), asked, metrics=["mass"])
        of_it = found["role"].eq("reference") & found["example"].eq("e1")
        assert set(found["left_out"][of_it]) == {map_scores.BAD_WEIGHTS} and found["value"][~of_it].notna().any()


# ---- summaries ----
def test_a_summary_is_that_of_stats_group_by_group():
    asked = examples(24)
    found = map_scores.by_head(maps_of(asked), asked, metrics=["lift", "auc"])
    summed = map_scores.summary(found, by=("layer", "head", "category", "role", "target", "metric"), seed=3)
    assert len(summed) == 2 * 3 * 2 * 2 * 3 * 2
    for row in summed.itertuples():
        keys = ("layer", "head", "category", "role", "target", "metric")
        rows = np.logical_and.reduce([found[name] == getattr(row, name) for name in keys])
        part = found[rows & found["value"].notna()]
        value, chance, clusters = (part[name].to_numpy() for name in ("value", "chance", "cluster"))
        level = bootstrap(value, clusters, seed=3)
        above = bootstrap(value, clusters, paired=chance, seed=3)
        assert (row.estimate, row.low, row.high, row.n, row.clusters) == pytest.approx(tuple(level))
        assert (row.above, row.above_low, row.above_high) == pytest.approx(tuple(above)[:3])
        assert row.left_out == rows.sum() - len(part)
        assert row.chance == pytest.approx(chance.mean()) and np.isnan(row.difference)
        if row.head == 0:
            assert row.p == pytest.approx(permutation_test(value, chance, clusters, seed=3))
    assert summed["q"].to_numpy() == pytest.approx(benjamini_hochberg(summed["p"].to_numpy()))


def test_a_summary_pairs_real_with_shuffled_maps():
    asked = examples(20)
    real = map_scores.score(panels_of(asked), asked)
    others = map_baseline.shuffled(asked, GRID)
    wrong = map_scores.score(panels_of(others[:-1], seed=9), others)
    summed = map_scores.summary(real, wrong, seed=1).set_index(["role", "target", "metric"])
    keys = ["example", "role", "target", "metric"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # shuffled pictures of which the real table has none are passed over
        some = map_scores.summary(real[real["example"].isin(["e0", "e3", "e5"])], wrong)
    assert some["n"].max() == 3 and some["difference"].notna().all()
    lost = wrong["example"].astype(str) == wrong["example"].astype(str).iloc[0]
    less = map_scores.summary(real, wrong.assign(value=wrong["value"].where(~lost)), seed=1)
    assert less.equals(map_scores.summary(real, wrong[~lost], seed=1)) and less["difference"].notna().all()
    wrong["example"] = wrong["example"].astype(str).map(map_baseline.real_id)
    both = real.merge(wrong, on=keys, suffixes=("", "_shuffled"))
    for key in (("subject", "subject", "lift"), ("reference", "relation", "wasserstein"), ("subject", "map", "entropy_share")):
        part = both[np.logical_and.reduce([both[name] == value for name, value in zip(keys[1:], key, strict=True)])]
        value, other, clusters = (part[name].to_numpy() for name in ("value", "value_shuffled", "cluster"))
        row = summed.loc[key]
        paired = bootstrap(value, clusters, paired=other, seed=1)
        assert len(part) == 19 and row["n"] == 20
        assert row["shuffled"] == pytest.approx(other.mean())
        assert tuple(row[["difference", "difference_low", "difference_high"]]) == pytest.approx(tuple(paired)[:3])
        assert row["p"] == pytest.approx(permutation_test(value, other, clusters, seed=1))
    assert np.isnan(map_scores.summary(real).set_index(["role", "target", "metric"])["p"]["subject", "map", "entropy_share"])


def test_hits_that_all_agree_have_an_interval():
    """As that of `stats.bootstrap` with bounds: ten pictures without a miss don't prove that there is none."""
    asked = examples(20)
    panels = Panels(index_of(asked), [mask / mask.sum() for one in asked for mask in masks_of(one)])
    summed = map_scores.summary(map_scores.score(panels, asked, metrics=["hit"])).set_index(["role", "target"])
    row = summed.loc["subject", "subject"]
    wanted = bootstrap(np.ones(20), np.arange(20) // 2, bounds=(0, 1))
    assert (row["estimate"], row["low"], row["high"]) == pytest.approx(tuple(wanted)[:3]) and row["low"] < 0.75
    unseen = 1 - 0.025**0.1  # above: of values less their chance, the least of which is -1
    assert row["above_low"] <= row["above"] - unseen * (row["above"] + 1) + 1e-12
    assert row["above_high"] >= row["above"] + unseen * (1 - row["above"]) - 1e-12


def test_a_summary_survives_parquet(tmp_path):
    asked = examples(6)
    found = map_scores.by_head(maps_of(asked), asked)
    found.to_parquet(tmp_path / "a.parquet")
    by = ("layer", "head", "role", "target", "metric")
    again = map_scores.summary(pd.read_parquet(tmp_path / "a.parquet"), by=by)
    pd.testing.assert_frame_equal(again, map_scores.summary(found, by=by), check_dtype=False, check_categorical=False)


def test_summaries_refuse_what_would_mix():
    asked = examples(4)
    heads = map_scores.by_head(maps_of(asked), asked)
    for by, said in ((("role", "metric", "target"), "scores of 2 layers"), (("layer", "head", "target"), "scores of 4 metrics")):
        with pytest.raises(ValueError, match=f"{said} would be averaged"):
            map_scores.summary(heads, by=by)
    with pytest.raises(ValueError, match="a map of 'e0' stands twice"):
        map_scores.summary(pd.concat([heads, heads]), by=("layer", "head", "role", "target", "metric"))
    with pytest.raises(ValueError, match="the column 'chance' is missing"):
        map_scores.summary(heads.drop(columns="chance"))
    panels = map_scores.score(panels_of(asked), asked)
    with pytest.raises(ValueError, match="no map of a shuffled picture has the example"):
        map_scores.summary(panels, panels.assign(word="other"))
    wrong = map_scores.score(panels_of(others := map_baseline.shuffled(asked, GRID)), others)
    with pytest.raises(ValueError, match="a map of a shuffled picture stands twice"):
        map_scores.summary(panels, pd.concat([wrong, wrong]))
    with pytest.raises(ValueError, match="shuffled pictures has no column 'layer'"):
        map_scores.summary(heads, panels, by=("layer", "head", "role", "target", "metric"))
    with pytest.raises(ValueError, match="by is empty"):
        map_scores.summary(panels[panels["metric"] == "lift"], by=())
    with pytest.raises(ValueError, match=f"{len(panels)} of {len(panels)} scores have no cluster"):
        map_scores.summary(panels.assign(cluster=None))
    with pytest.raises(ValueError, match="no map has a value: 'the box covers"):
        full = [example(i, [(0.0, 0.0, 1.0, 1.0)] * 2) for i in range(2)]
        map_scores.summary(map_scores.score(panels_of(full), full, metrics=["mass"]))


# ---- binding ----
def test_binding_is_own_less_other_over_both_words():
    asked = examples(15)
    found = map_scores.score(panels_of(asked[:14]), asked)
    part = found[(found["metric"] == "lift")].pivot(index="example", columns=["role", "target"], values="value")
    own = (part["subject", "subject"] + part["reference", "reference"]) / 2
    other = (part["subject", "reference"] + part["reference", "subject"]) / 2
    clusters = found.drop_duplicates("example").set_index("example")["cluster"].loc[part.index].to_numpy()
    wanted = bootstrap(own.to_numpy(), clusters, paired=other.to_numpy(), seed=2)
    bound = map_scores.binding(found, seed=2).set_index("metric")
    assert list(bound.columns) == "own other difference low high p q n clusters left_out".split()
    row = bound.loc["lift"]
    assert tuple(row[["difference", "low", "high", "n", "clusters"]]) == pytest.approx(tuple(wanted))
    assert (row["own"], row["other"]) == pytest.approx((own.mean(), other.mean()))
    assert row["p"] == pytest.approx(permutation_test(own.to_numpy(), other.to_numpy(), clusters, seed=2))
    assert set(bound.index) == {"hit", "mass", "lift", "auc", "distance", "wasserstein"}


def test_binding_is_nothing_where_both_words_look_alike():
    """A map that looks at the subject whatever the word is far above chance there, and binds nothing: exactly 0."""
    asked = examples(12)
    panels = Panels(index_of(asked), [masks_of(one)[0] / masks_of(one)[0].sum() for one in asked for _ in WORDS])
    found = map_scores.score(panels, asked)
    summed = map_scores.summary(found).set_index(["role", "target", "metric"])
    assert summed.loc[("subject", "subject", "lift"), "above_low"] > 3 and summed.loc[("subject", "subject", "lift"), "q"] < 0.1
    bound = map_scores.binding(found)
    assert bound["difference"].to_numpy() == pytest.approx(0, abs=1e-12) and (bound["p"] == 1).all()


def test_binding_finds_the_head_that_binds():
    """One of six heads looks a little more at the word's own object; the others are random."""
    asked = examples(40)
    maps = maps_of(asked)
    for row, weights in zip(maps.index.itertuples(), maps.weights, strict=True):
        one = next(one for one in asked if one.id == row.example)
        weights[1, 2] += 0.5 * masks_of(one)[("subject", "reference").index(row.role)].ravel()
    bound = map_scores.binding(map_scores.by_head(maps, asked)).set_index(["metric", "layer", "head"])
    assert len(bound) == 24 and (bound["n"] == 40).all() and (bound["left_out"] == 0).all()
    for name in ("lift", "mass", "auc"):
        found = bound.loc[name]
        assert found["p"].idxmin() == (4, 2) and found.loc[(4, 2), "q"] < 0.01 and found.loc[(4, 2), "low"] > 0
        assert (found.drop(index=(4, 2))["q"] > 0.05).all()


def test_binding_counts_examples_that_lack_a_word_and_refuses_mixtures():
    asked = examples(6)
    found = map_scores.score(panels_of(asked), asked, metrics=["mass"])
    lame = found[~((found["example"] == "e2") & (found["role"] == "subject"))]
    bound = map_scores.binding(lame)
    assert bound["n"].item() == 5 and bound["left_out"].item() == 1
    with pytest.raises(ValueError, match="by can hold neither"):
        map_scores.binding(found, by=["role"])
    with pytest.raises(ValueError, match="no example has maps of both words against both boxes"):
        map_scores.binding(found[found["role"] == "subject"])
    heads = map_scores.by_head(maps_of(asked), asked)
    with pytest.raises(ValueError, match="scores of 3 heads would be averaged"):
        map_scores.binding(heads, by=["layer"])
    assert len(map_scores.binding(heads, by=["layer", "head", "category"])) == 6 * 2 * 4


# ---- shuffled pictures ----
def noise(side, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*side[::-1], 3), np.uint8))


def pieces(picture, grid):
    pixels = np.asarray(picture)
    height, width = pixels.shape[0] // grid[0], pixels.shape[1] // grid[1]
    return [
        pixels[r * height : (r + 1) * height, c * width : (c + 1) * width].tobytes()
        for r in range(grid[0])
        for c in range(grid[1])
    ]


def test_shuffled_pictures_hold_the_same_cells_elsewhere():
    one = dataclasses.replace(example(0), image=noise((12, 10)), twin="e1", cluster="")
    (other,) = map_baseline.shuffled([one], (5, 6), seed=4)
    before, after = pieces(one.image, (5, 6)), pieces(other.image(), (5, 6))
    assert sorted(before) == sorted(after) and before != after
    assert other.objects == one.objects and other.question == one.question
    assert (other.id, other.twin, other.cluster) == ("e0~shuffled", "e1~shuffled", "e0")
    assert map_baseline.real_id(other.id) == one.id == other.meta["shuffled_from"] and map_baseline.real_id("e1") == "e1"


def test_the_order_comes_of_the_seed_and_the_id_alone():
    asked = [dataclasses.replace(example(i), image=noise((12, 10))) for i in range(3)]
    np.random.seed(1)
    first = [one.image().tobytes() for one in map_baseline.shuffled(asked, GRID, seed=4)]
    np.random.seed(2)
    again = [one.image().tobytes() for one in map_baseline.shuffled(asked[::-1], GRID, seed=4)][::-1]
    other = [one.image().tobytes() for one in map_baseline.shuffled(asked, GRID, seed=5)]
    assert first == again and len({*first, *other}) == 6


def test_cells_stand_where_the_order_says():
    picture = noise((12, 10))
    order = np.random.default_rng(0).permutation(30)
    before, after = pieces(picture, GRID), pieces(map_baseline.cells_shuffled(picture, GRID, order), GRID)
    assert after == [before[i] for i in order]


def test_all_of_a_picture_that_the_grid_does_not_divide_is_dealt():
    """The study's LLaVA run blackens the last 4 of 100 pixels; here the picture is enlarged to the next 24 cells, 120 pixels."""
    picture = noise((100, 97))
    moved = map_baseline.cells_shuffled(picture, (24, 24), np.random.default_rng(0).permutation(576))
    assert moved.size == (120, 120)
    assert sorted(pieces(moved, (24, 24))) == sorted(pieces(picture.resize((120, 120), Image.Resampling.BILINEAR), (24, 24)))


def test_what_shuffling_refuses():
    with pytest.raises(ValueError, match="a grid of 1 x 1 has no two cells"):
        map_baseline.shuffled([example(0)], (1, 1))
    with pytest.raises(ValueError, match="'e0~shuffled' is shuffled already"):
        map_baseline.shuffled(map_baseline.shuffled([example(0)], GRID), GRID)


def test_a_map_of_what_is_bright_falls_to_chance_on_shuffled_pictures():
    """The whole baseline without a model: brightness finds bright boxes, and nothing once their cells are dealt anew."""
    asked = []
    for one in examples(60, seed=1):
        pixels = np.zeros((50, 60, 3), np.uint8)
        pixels[:, :] = 40
        for thing in one.objects:
            left, top, right, bottom = (round(edge * side) for edge, side in zip(thing.box, (60, 50, 60, 50), strict=True))
            pixels[top:bottom, left:right] = 250
        asked.append(dataclasses.replace(one, image=Image.fromarray(pixels)))

    def bright(given):
        opened = [one.image if isinstance(one.image, Image.Image) else one.image() for one in given]
        cells = [np.asarray(image, float).reshape(5, 10, 6, 10, 3).mean((1, 3, 4)) for image in opened]
        return Panels(index_of(given), [cell / cell.sum() for cell in cells for _ in WORDS])

    others = map_baseline.shuffled(asked, GRID, seed=0)
    real = map_scores.score(bright(asked), asked, metrics=["lift", "auc"])
    wrong = map_scores.score(bright(others), others, metrics=["lift", "auc"])
    summed = map_scores.summary(real, wrong).set_index(["role", "target", "metric"]).loc["subject"]
    for target in ("subject", "reference"):
        lift, auc = summed.loc[(target, "lift")], summed.loc[(target, "auc")]
        assert lift["difference_low"] > 0.5 and auc["difference_low"] > 0.3 and lift["p"] == auc["p"] == 1 / 10_001
        assert lift["shuffled"] == pytest.approx(1, abs=0.15) and auc["shuffled"] == pytest.approx(0.5, abs=0.06)


# ---- a model ----
def test_the_labs_model_binds_words_to_objects_in_pictures_that_are_whole():
    """From pictures to binding: one head of lab-llava looks at the word's own object, and at nothing once cells are shuffled."""
    if not (paths.lab_folder() / "lab-llava" / "config.json").is_file():
        pytest.skip("lab-llava has not been trained yet")
    vlm, asked = VLM.load("lab-llava"), lab_relations(40, 5)
    whole = maps.extract(vlm, asked)
    grid = tuple(whole.index[["rows", "cols"]].iloc[0])
    others = map_baseline.shuffled(asked, grid)
    real = map_scores.by_head(whole, asked, metrics=["lift"])
    wrong = map_scores.by_head(maps.extract(vlm, others), others, metrics=["lift"])
    bound = map_scores.binding(real).set_index(["layer", "head"])
    best = bound["difference"].idxmax()
    assert bound.loc[best, "low"] > 3 and bound.loc[best, "q"] < 0.01 and bound.loc[best, "n"] == 40
    assert abs(map_scores.binding(wrong).set_index(["layer", "head"]).loc[best, "difference"]) < 1
    summed = map_scores.summary(real, wrong, by=("layer", "head", "role", "target", "metric"))
    summed = summed.set_index(["layer", "head", "role", "target"]).sort_index().loc[best]
    for role, other in itertools.permutations(WORDS):
        assert summed.loc[(role, role), "difference_low"] > 3 > summed.loc[(role, other), "difference_high"]
