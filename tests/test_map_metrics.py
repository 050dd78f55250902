"""Measures of maps against masks: slow loops, closed forms, all dealings of a small map, the study's numbers on real worlds."""

import itertools
import json
import os
from math import hypot, log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.examples import Example, Object
from spatialprobes.families import Frame
from spatialprobes.probes import map_chance, map_metrics, map_targets
from spatialprobes.probes.map_scores import METRICS
from spatialprobes.spans import Spans
from spatialprobes.worlds.shapeworld_files import read

ON_MASK = ("hit", "mass", "lift", "auc", "distance", "com", "iou", "soft_iou", "in_out_ratio")
SOUND = ("hit", "mass", "lift", "auc", "distance")
RELATIONS = {("x-rel", -1): "left", ("x-rel", 1): "right", ("y-rel", -1): "above", ("y-rel", 1): "below"}


def random_case(seed, rows=4, columns=5, ties=True):
    """A map with ties and zeros, a mask and another that overlaps it."""
    rng = np.random.default_rng(seed)
    one = rng.integers(0, 5, (rows, columns)).astype(float) if ties else rng.random((rows, columns))
    one[0, 0] += 1
    mask, other = rng.random((2, rows, columns)) < 0.35
    mask[1, 2] = other[2, 1] = True
    mask[0, 0] = False
    return one, mask, other


# ---- the same, slowly ----
def slow(name, a, m, other):
    """Each measure as its definition reads, cell by cell."""
    rows, columns = a.shape
    cells = list(itertools.product(range(rows), range(columns)))
    inside = [c for c in cells if m[c]]
    outside = [c for c in cells if not m[c]]
    background = [c for c in cells if not m[c] and not other[c]]
    total = sum(a[c] for c in cells)
    on = sum(a[c] for c in inside)
    middle = [sum(a[c] / (total + 1e-6) * c[i] for c in cells) for i in (0, 1)]
    of_mask = [sum(c[i] for c in inside) / len(inside) for i in (0, 1)]
    if name == "hit":
        top = [c for c in cells if a[c] == max(a[c] for c in cells)]
        return sum(bool(m[c]) for c in top) / len(top)
    if name == "auc":
        wins = [1.0 if a[i] > a[o] else 0.5 if a[i] == a[o] else 0.0 for i in inside for o in outside]
        return sum(wins) / len(wins)
    if name == "iou":
        least = sorted((a[c] for c in cells), reverse=True)[len(inside) - 1]
        chosen = [c for c in cells if a[c] >= least]
        return len(set(chosen) & set(inside)) / len(set(chosen) | set(inside))
    if name == "dispersion":
        return sum(a[c] / (total + 1e-6) * ((c[0] - middle[0]) ** 2 + (c[1] - middle[1]) ** 2) for c in cells)
    return {
        "mass": on / total,
        "lift": on / total / (len(inside) / len(cells)),
        "com": hypot(middle[0] - of_mask[0], middle[1] - of_mask[1]),
        "distance": hypot(*(sum(a[c] / total * c[i] for c in cells) - of_mask[i] for i in (0, 1))) / hypot(rows, columns),
        "soft_iou": on / (total + 1e-6) / (1 + len(inside) - on / (total + 1e-6) + 1e-6),
        "in_out_ratio": on / (sum(a[c] for c in outside) + 1e-6),
        "entity_bg_ratio_llava": on / (sum(a[c] for c in background) + 1e-6),
        "entity_bg_ratio_qwen": sum(a[c] for c in inside if not other[c]) / (sum(a[c] for c in background) + 1e-6),
        "entropy": -sum(a[c] / (total + 1e-6) * log(a[c] / (total + 1e-6) + 1e-10) for c in cells),
        "entropy_share": -sum(a[c] / total * log(a[c] / total) for c in cells if a[c] > 0) / log(len(cells)),
    }[name]


@pytest.mark.parametrize("name", [name for name in METRICS if not name.startswith("wasserstein")])
def test_equals_its_definition_cell_by_cell(name):
    cases = [random_case(seed) for seed in range(25)]
    maps, masks, others = (np.stack(part) for part in zip(*cases, strict=True))
    arguments = {"mask": (masks,), "other": (masks, others), "map": ()}[METRICS[name].needs]
    found = getattr(map_metrics, name)(maps, *arguments)
    assert found == pytest.approx([slow(name, *case) for case in cases], abs=1e-12)


@pytest.mark.parametrize("axis", ["x", "y"])
def test_wasserstein_is_the_least_cost_of_moving_the_weight(axis):
    """Against scipy's, from places and weights; and the study's differs by its small numbers alone."""
    from scipy.stats import wasserstein_distance

    for seed in range(10):
        one, mask, _ = random_case(seed)
        along = 0 if axis == "x" else 1
        places = np.arange(mask.shape[1 - along])
        wanted = wasserstein_distance(places, places, one.sum(along), mask.sum(along))
        target = map_metrics.along(mask, axis)
        assert map_metrics.wasserstein(one, target, axis) == pytest.approx(wanted)
        assert map_metrics.wasserstein_x(one, target, axis) == pytest.approx(wanted, abs=1e-5)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match="axis='z' is unknown; 'x'"):
        map_metrics.along(np.ones((2, 2)), "z")


def test_leading_axes_broadcast_maps_of_heads_against_masks_of_targets():
    rng = np.random.default_rng(3)
    maps, masks = rng.random((4, 1, 6, 3, 5)), rng.random((4, 2, 1, 3, 5)) < 0.4
    masks[..., 0, 0], masks[..., 0, 1] = True, False
    for name in ON_MASK:
        measure = getattr(map_metrics, name)
        found = measure(maps, masks)
        assert found.shape == (4, 2, 6)
        for i, j, k in itertools.product(range(4), range(2), range(6)):
            assert found[i, j, k] == pytest.approx(measure(maps[i, 0, k], masks[i, j, 0]), abs=1e-12), name


# ---- properties ----
cases = st.integers(0, 10_000).map(random_case)


@settings(max_examples=40, deadline=None)
@given(cases, st.floats(1e-4, 1e4))
def test_a_map_times_a_number_says_the_same(case, factor):
    one, mask, _ = case
    for name in (*SOUND, "iou"):
        measure = getattr(map_metrics, name)
        assert measure(one * factor, mask) == pytest.approx(measure(one, mask), rel=1e-9, abs=1e-12)
    assert map_metrics.entropy_share(one * factor) == pytest.approx(map_metrics.entropy_share(one), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(cases)
def test_identities(case):
    one, mask, _ = case
    assert map_metrics.auc(one, mask) + map_metrics.auc(one, ~mask) == pytest.approx(1)
    assert map_metrics.auc(one.max() - one + 1, mask) == pytest.approx(1 - map_metrics.auc(one, mask))
    assert map_metrics.auc(one**3, mask) == pytest.approx(map_metrics.auc(one, mask))  # only the order counts
    assert map_metrics.mass(one, mask) + map_metrics.mass(one, ~mask) == pytest.approx(1)
    assert map_metrics.hit(one, mask) + map_metrics.hit(one, ~mask) == pytest.approx(1)
    assert 0 <= map_metrics.entropy_share(one) <= 1 + 1e-12
    assert map_metrics.soft_iou(one, mask) <= 1 / mask.sum()
    turned = map_metrics.distance(one[::-1, ::-1], mask[::-1, ::-1])
    assert turned == pytest.approx(map_metrics.distance(one, mask)) and 0 <= turned <= 1


@settings(max_examples=30, deadline=None)
@given(cases, st.integers(0, 3), st.integers(0, 4))
def test_flat_maps_and_maps_of_one_cell(case, row, column):
    _, mask, _ = case
    share = mask.mean()
    flat = np.full(mask.shape, 0.3)
    assert map_metrics.lift(flat, mask) == pytest.approx(1) and map_metrics.auc(flat, mask) == pytest.approx(0.5)
    assert map_metrics.hit(flat, mask) == pytest.approx(share) and map_metrics.mass(flat, mask) == pytest.approx(share)
    assert map_metrics.iou(flat, mask) == pytest.approx(share)  # all cells tie
    assert map_metrics.entropy_share(flat) == pytest.approx(1)
    point = np.zeros(mask.shape)
    point[row, column] = 2
    assert map_metrics.hit(point, mask) == mask[row, column] == map_metrics.mass(point, mask)
    assert map_metrics.lift(point, mask) == pytest.approx(mask[row, column] / share)
    assert map_metrics.entropy_share(point) == 0 and map_metrics.dispersion(point) == pytest.approx(0, abs=1e-5)
    assert map_metrics.distance(point, point > 0) == pytest.approx(0, abs=1e-12)


def test_what_is_not_defined_is_nan():
    one, mask, _ = random_case(0)
    for name in ON_MASK:
        measure = getattr(map_metrics, name)
        with np.errstate(invalid="ignore", divide="ignore"):
            assert np.isnan(measure(one, np.zeros_like(mask))), name
            assert name == "iou" or np.isnan(measure(0 * one, mask)), name
    assert np.isnan(map_metrics.auc(one, np.ones_like(mask)))
    assert map_metrics.iou(0 * one, mask) == mask.mean()  # the study's: a map of zeros chooses all cells
    assert np.isnan(map_metrics.entropy(0 * one)) and np.isnan(map_metrics.dispersion(0 * one))
    assert np.isnan(map_metrics.entropy_share(np.ones((1, 1)))) and np.isnan(map_metrics.entropy_share(0 * one))
    assert np.isnan(map_metrics.wasserstein(one, np.zeros(5), "x"))
    assert map_metrics.wasserstein_x(one, np.zeros(5)) == pytest.approx(np.cumsum(one.sum(0) / one.sum()).sum(), rel=1e-5)


# ---- chance ----
@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].expected and not name.startswith("entropy")])
def test_chance_is_the_mean_over_all_dealings(name):
    """Every order of the six weights of a map, two of them alike."""
    one = np.array([[3.0, 1.0, 1.0], [0.0, 0.5, 7.0]])
    for mask in (np.array([[1, 0, 0], [0, 1, 0]]) > 0, np.array([[0, 1, 1], [1, 0, 1]]) > 0):
        held = map_targets.Targets(mask, mask, np.ones(3), "x", {})
        dealt = np.array(list(itertools.permutations(one.ravel()))).reshape(-1, 2, 3)
        wanted = METRICS[name].value(dealt, held).mean()
        assert METRICS[name].expected(one, held) == pytest.approx(wanted, abs=1e-5 if name == "dispersion" else 1e-12)


def test_no_cells_have_no_chance():
    assert np.isnan(map_chance.iou(np.ones((2, 3)), np.zeros((2, 3), bool)))


@pytest.mark.parametrize("name", [name for name in METRICS if METRICS[name].expected is None])
def test_simulated_chance_is_near_the_mean_over_all_dealings(name):
    one = np.array([[3.0, 1.0, 1.0], [0.0, 0.5, 7.0]])
    mask, other = np.array([[1, 0, 0], [0, 1, 0]]) > 0, np.array([[1, 0, 1], [0, 0, 0]]) > 0
    held = map_targets.Targets(mask, other, np.array([0.0, 1.0, 3.0]), "x", {})
    every = METRICS[name].value(np.array(list(itertools.permutations(one.ravel()))).reshape(-1, 2, 3), held)
    found = map_chance.simulated(np.stack([one] * 200), {name: lambda maps: METRICS[name].value(maps, held)}, draws=10, seed=1)[
        name
    ]
    assert found.shape == (200,) and found.std() > 0
    assert found.mean() == pytest.approx(every.mean(), abs=4 * every.std() / 2000**0.5)


def test_chance_of_the_flat_map_for_the_entropies():
    flat = np.ones((3, 4, 6))
    assert map_chance.entropy(flat) == pytest.approx(map_metrics.entropy(flat), abs=1e-5)
    assert map_chance.entropy_share(flat) == pytest.approx(map_metrics.entropy_share(flat))


# ---- cells of boxes ----
def spans_of(grid, frame):
    return Spans("a", torch.arange(grid[0] * grid[1]), grid, frame, 0, 99, "", True, [], {}, [])


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.floats(-0.3, 1.3, allow_subnormal=False)] * 4),
    st.sampled_from([(6, 6), (4, 7), (24, 24)]),
    st.sampled_from([Frame(), Frame((0.5, 1.0), (0.25, 0.0)), Frame((1.0, 1.5), (0.0, -0.25))]),
)
def test_reached_cells_are_those_of_spans(box, grid, frame):
    """Edges further than a sliver from the lines of the grid: nearer than that, rounding decides in Spans."""
    left, right, top, bottom = box
    (u, v), (w, z) = frame(left, top), frame(right, bottom)
    edges = np.array([u * grid[1], w * grid[1], v * grid[0], z * grid[0]])
    if right - left < 1e-3 or bottom - top < 1e-3 or (np.abs(edges - edges.round()) < 1e-3).any():
        return
    box = (left, top, right, bottom)
    found = map_targets.reached(np.array([box]), grid, np.array([frame.scale]), np.array([frame.shift]))[0]
    assert (found == spans_of(grid, frame).cells(box).numpy()).all()


def test_edges_on_the_lines_of_the_grid():
    """The corrected cells stop at the line, also where rounding goes a little beyond; the study's take the next cells too."""
    identity = np.ones((1, 2)), np.zeros((1, 2))
    box = np.array([[0.25, 0.1 + 0.2 - 0.3 + 0.25, 0.5, 0.7 + 1e-9 - 0.2]])
    assert map_targets.reached(box, (4, 4), *identity).astype(int).tolist() == [
        [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    ]
    assert map_targets.reached_as_published(box, (4, 4)).astype(int).tolist() == [
        [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    ]
    whole = map_targets.reached_as_published(np.array([[-0.1, 0.0, 1.0, 1.2]]), (4, 4))
    assert whole.all()
    beyond = map_targets.reached_as_published(np.array([[1.0, 0.3, 1.2, 0.4]]), (4, 4))[0]
    assert np.argwhere(beyond).tolist() == [[1, 3]]  # kept within the grid
    for empty in ([0.4, 0.4, 0.4, 0.6], [0.6, 0.4, 0.4, 0.6], [0.4, 0.4, 0.6, 0.4]):  # no extent, or the other way round
        assert not map_targets.reached(np.array([empty]), (4, 4), *identity).any()


def test_padding_moves_boxes_and_cropping_hides_them():
    box = np.array([[0.0, 0.0, 0.25, 1.0]])
    padded = map_targets.reached(box, (4, 4), np.array([[1.0, 0.5]]), np.array([[0.0, 0.25]]))[0]
    assert padded.astype(int).tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    cropped = map_targets.reached(box, (4, 4), np.array([[2.0, 1.0]]), np.array([[-0.5, 0.0]]))
    assert not cropped.any()


def test_between_is_the_room_that_two_boxes_face_each_other_across():
    a, b = np.array([[0.1, 0.2, 0.3, 0.5]]), np.array([[0.6, 0.3, 0.8, 0.9]])
    assert map_targets.between(a, b, "x")[0] == pytest.approx([0.3, 0.2, 0.6, 0.9])
    assert map_targets.between(b, a, "x")[0] == pytest.approx([0.3, 0.2, 0.6, 0.9])
    overlap = map_targets.between(a, b, "y")[0]
    assert overlap[1] > overlap[3]  # no extent along y


def test_the_gap_is_level_between_two_shapes_whichever_comes_first():
    a, b = np.zeros((2, 3, 8), bool)
    a[1, 0:2] = b[1, 5:7] = True
    wanted = np.array([0.5, 1, 1, 1, 1, 0.5, 0, 0])
    assert map_targets.gap(a, b, "x") == pytest.approx(wanted / wanted.sum())
    assert map_targets.gap(b, a, "x") == pytest.approx(wanted / wanted.sum())
    assert map_targets.gap(a.T, b.T, "y") == pytest.approx(wanted / wanted.sum())
    assert not map_targets.gap(a, b, "y").any()  # the same rows
    # a stands left of b: with a first the study has a target for right and none for left, and the other way round
    assert map_targets.gap_as_published(a, b, "right") == pytest.approx(wanted / wanted.sum(), abs=1e-6)
    assert not map_targets.gap_as_published(a, b, "left").any()
    assert not map_targets.gap_as_published(b, a, "right").any()
    with pytest.raises(ValueError, match="no target for the relation 'above'; it has one for left and right"):
        map_targets.gap_as_published(a, b, "above")


# ---- the real worlds ----
@pytest.fixture(scope="module")
def worlds():
    """The 300 published worlds: subject and reference from the caption's tree."""
    root = os.environ.get("SPATIALPROBES_REAL_DATA")
    if root is None:
        pytest.skip("SPATIALPROBES_REAL_DATA is not set: no published worlds here")
    found = []
    for folder in sorted((Path(root) / "shapeworld/agreement/relational").glob("shard*")):
        captions = json.loads((folder / "caption_model.json").read_text())
        for i, (world, caption) in enumerate(zip(json.loads((folder / "world_model.json").read_text()), captions, strict=True)):
            body = caption["body"]
            shapes = [shape(caption["restrictor"]), shape(body["reference"])]
            by_shape = {entity["shape"]["name"]: entity for entity in world["entities"]}
            objects = [Object(name, (0.0, 0.0), corners(by_shape[name]["bounding_box"])) for name in shapes]
            relation = RELATIONS[body["predtype"], body["value"]]
            meta = {"relation": relation, "world_order": world["entities"][0]["shape"]["name"] == shapes[0]}
            found.append(Example(f"{folder.name}-{i}", Path("none.png"), objects=objects, meta=meta))
    assert len(found) == 300
    return found


def shape(entity):
    return next(attribute["value"] for attribute in entity["value"] if attribute["predtype"] == "shape")


def corners(box):
    return tuple(box[corner][axis] for corner in ("topleft", "bottomright") for axis in "xy")


def test_the_files_reader_says_what_the_study_needs(worlds):
    """Boxes, relation and order as read here from the files by other means."""
    data = read(Path(os.environ["SPATIALPROBES_REAL_DATA"]) / "shapeworld/agreement/relational")
    assert data.problems.empty and len(data.examples) == 300
    for one, ours in zip(data.examples, worlds, strict=True):
        assert one.meta["relation"] == ours.meta["relation"] and one.meta["world_order"] == ours.meta["world_order"]
        boxes = [[thing.box for thing in each.objects] for each in (one, ours)]
        assert np.array(boxes[0]) == pytest.approx(np.clip(boxes[1], 0, 1))  # one box reaches beyond the picture


def test_the_studys_relation_target_vanishes_wherever_the_orders_agree(worlds):
    """147 of the 300 are left or right; the target is 0 everywhere in exactly the 64 whose world and caption agree."""
    found = map_targets.published_relations(worlds)
    assert len(found) == 147 and found["world_order"].sum() == 64
    assert (found["vanishes"] == found["world_order"]).all()
    for axis in "xy":
        along = [one for one in worlds if map_targets.AXES[one.meta["relation"]] == axis]
        mended = map_targets.corrected(along, np.tile([1.0, 1, 0, 0], (len(along), 1)), (24, 24), axis)
        assert mended.profiles[:, 2].sum(-1) == pytest.approx(1)


def test_the_studys_numbers_for_a_flat_map(worlds):
    """Its 500 worlds give 26.9 cells a mask, com 7.25, soft IoU .0017, Wasserstein 6.42, ratio .05; these are 300 of them."""
    held = map_targets.as_published(worlds, (24, 24))
    masks, others = held.masks[:, :2], held.others[:, :2]
    cells = masks.sum((-2, -1))
    assert (cells.min(), cells.max()) == (6, 90) and cells.mean() == pytest.approx(26.9, abs=0.5)
    flat = np.ones((1, 1, 24, 24))
    assert map_metrics.com(flat, masks).mean() == pytest.approx(7.25, abs=0.25)
    assert map_metrics.soft_iou(flat, masks).mean() == pytest.approx(0.0017, abs=0.00005)
    assert map_metrics.wasserstein_x(flat, held.profiles[:, :2]).mean() == pytest.approx(6.42, abs=0.1)
    assert map_metrics.entity_bg_ratio_llava(flat, masks, others).mean() == pytest.approx(0.05, abs=0.003)
    assert map_metrics.dispersion(flat)[0, 0] == pytest.approx((24**2 - 1) / 6, rel=1e-6) == pytest.approx(95.833, abs=1e-3)
    assert map_metrics.entropy(flat)[0, 0] == pytest.approx(6.356, abs=5e-4)
    beyond = [box for one in worlds for box in (o.box for o in one.objects) if min(box) < 0 or max(box) > 1]
    assert len(beyond) == 1 and (held.reasons["mask"][:, :2] == "").all()  # it reaches a little beyond, and has cells
    mended = map_targets.corrected(worlds, np.tile([1.0, 1, 0, 0], (300, 1)), (24, 24), "x")
    assert (mended.masks[:, :2] == masks).all()  # no box ends on a line of this grid, and nothing is padded or cropped
