"""Ways to rearrange a grid: each a permutation, each keeps what it says it keeps, and moves what it says it moves."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from spatialprobes import permutations as ways

GRIDS = st.tuples(st.integers(1, 7), st.integers(1, 7))
SEEDS = st.integers(0, 2**32)
NAMES = ["full", "rows", "columns", "flip_left_right", "flip_up_down", "rotate180", "within_blocks:3", "within_radius:1.5"]


def drawn(way, grid, seed=0, **options):
    return way(grid, np.random.default_rng(seed), **options)


def places(grid):
    return np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), 1)


@settings(deadline=None, max_examples=60)
@given(grid=GRIDS, seed=SEEDS, name=st.sampled_from(NAMES))
def test_each_is_a_permutation_decided_by_the_seed(grid, seed, name):
    way = ways.named(name)
    order = drawn(way, grid, seed)
    assert sorted(order.tolist()) == list(range(grid[0] * grid[1]))
    assert np.array_equal(order, drawn(way, grid, seed))
    assert np.issubdtype(order.dtype, np.integer)


@pytest.mark.parametrize("name", ["full", "rows", "columns", "blocks:2", "within_blocks:2", "within_radius:2"])
def test_seeds_differ_and_everything_is_reached(name):
    """Over the seeds each token stands in each of the places that are open to it, about equally often where all are alike."""
    grid, count = (4, 6), 400
    orders = np.stack([drawn(ways.named(name), grid, seed) for seed in range(count)])
    assert len({tuple(order) for order in orders}) > 20
    reached = {place: set(orders[:, place]) for place in range(24)}
    row, column = (each.ravel() for each in np.indices(grid))
    open_to = {
        "full": np.ones((24, 24), bool),
        "rows": column[:, None] == column,
        "columns": row[:, None] == row,
        "blocks:2": (row[:, None] % 2 == row % 2) & (column[:, None] % 2 == column % 2),
        "within_blocks:2": (row[:, None] // 2 == row // 2) & (column[:, None] // 2 == column // 2),
        "within_radius:2": (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2 <= 4,
    }[name]
    assert all(reached[place] == set(np.flatnonzero(open_to[place])) for place in range(24))


@settings(deadline=None, max_examples=40)
@given(grid=GRIDS, seed=SEEDS)
def test_rows_and_columns_stay_whole(grid, seed):
    cells = np.arange(grid[0] * grid[1]).reshape(grid)
    by_rows = drawn(ways.rows, grid, seed).reshape(grid)
    assert {tuple(row) for row in by_rows} == {tuple(row) for row in cells}
    by_columns = drawn(ways.columns, grid, seed).reshape(grid)
    assert {tuple(column) for column in by_columns.T} == {tuple(column) for column in cells.T}


def test_flips_and_half_turn_are_those_of_the_picture():
    features = np.arange(15).reshape(3, 5)
    flat = features.ravel()
    assert np.array_equal(flat[ways.flip_left_right((3, 5))].reshape(3, 5), np.fliplr(features))
    assert np.array_equal(flat[ways.flip_up_down((3, 5))].reshape(3, 5), np.flipud(features))
    assert np.array_equal(flat[ways.rotate180((3, 5))].reshape(3, 5), np.rot90(features, 2))


@settings(deadline=None, max_examples=60)
@given(grid=GRIDS, seed=SEEDS, k=st.integers(2, 4))
def test_blocks_move_whole_among_those_of_their_shape(grid, seed, k):
    starts = list(itertools.product(range(0, grid[0], k), range(0, grid[1], k)))
    shapes = [(min(k, grid[0] - row), min(k, grid[1] - column)) for row, column in starts]
    assume(len(set(shapes)) < len(shapes))
    cells = np.arange(grid[0] * grid[1]).reshape(grid)
    order = drawn(ways.blocks, grid, seed, k=k).reshape(grid)

    def cut(array):
        return [array[row : row + h, column : column + w] for (row, column), (h, w) in zip(starts, shapes, strict=True)]

    assert {block.tobytes() for block in cut(order)} == {np.ascontiguousarray(block).tobytes() for block in cut(cells)}
    for one, other in zip(cut(order), cut(cells), strict=True):
        assert one.shape == other.shape


@settings(deadline=None, max_examples=40)
@given(grid=GRIDS, seed=SEEDS, k=st.integers(2, 4))
def test_within_blocks_nothing_leaves_its_block(grid, seed, k):
    order = drawn(ways.within_blocks, grid, seed, k=k)
    row, column = places(grid).T
    assert np.array_equal(row // k, row[order] // k) and np.array_equal(column // k, column[order] // k)


def test_odd_grids_keep_the_corner_and_use_the_edges():
    orders = np.stack([drawn(ways.blocks, (5, 5), seed, k=2) for seed in range(60)])
    assert (orders[:, 24] == 24).all()  # the only 1 x 1 block
    assert set(orders[:, 4]) == {4, 14}  # the right edge's two blocks of 2 x 1 change places
    assert set(orders[:, 0]) == {0, 2, 10, 12}


@settings(deadline=None, max_examples=60)
@given(grid=GRIDS, seed=SEEDS, radius=st.sampled_from([1, 1.2, 2**0.5, 2, 2.5, 4, 50]))
def test_within_radius_no_token_moves_further(grid, seed, radius):
    assert ways.distance(drawn(ways.within_radius, grid, seed, radius=radius), grid).max() <= radius + 1e-12


def reachable(grid, radius):
    """Every order that legal swaps reach from the one in place, found by walking all of them."""
    at = places(grid)
    near = ((at[:, None] - at) ** 2).sum(-1) <= radius**2 + 1e-9
    start = tuple(range(len(at)))
    seen, edge = {start}, [start]
    while edge:
        order = list(edge.pop())
        for i, j in itertools.combinations(range(len(at)), 2):
            if near[order[i], j] and near[order[j], i]:
                swapped = order.copy()
                swapped[i], swapped[j] = order[j], order[i]
                if tuple(swapped) not in seen:
                    seen.add(tuple(swapped))
                    edge.append(tuple(swapped))
    return seen


@pytest.mark.parametrize(("grid", "radius"), [((2, 3), 1), ((1, 5), 2), ((2, 2), 1)])
def test_within_radius_is_uniform_over_what_swaps_reach(grid, radius):
    legal = reachable(grid, radius)
    at = places(grid)
    near = ((at[:, None] - at) ** 2).sum(-1) <= radius**2 + 1e-9
    if grid != (1, 5):  # here it is all that the bound allows, too
        assert len(legal) == sum(all(near[i, p] for i, p in enumerate(order)) for order in itertools.permutations(range(len(at))))
    generator, count = np.random.default_rng(0), 60 * len(legal)
    found = [tuple(ways.within_radius(grid, generator, radius).tolist()) for _ in range(count)]
    assert set(found) == legal
    counts = [found.count(order) for order in legal]
    assert stats.chisquare(counts).pvalue > 0.001


def test_within_radius_a_ring_of_eight_is_out_of_reach_as_the_docstring_says():
    ring = [0, 1, 2, 5, 8, 7, 6, 3]
    turned = np.arange(9)
    turned[ring] = np.roll(ring, 1)
    assert ways.distance(turned, (3, 3)).max() == 1
    assert tuple(turned) not in reachable((3, 3), 1)


def test_within_radius_has_mixed():
    """More proposals change the mean distance by no more than chance does."""

    def mean(proposals):
        found = [
            ways.distance(drawn(ways.within_radius, (12, 12), s, radius=3, proposals=proposals), (12, 12)) for s in range(30)
        ]
        return np.mean(found)

    assert mean(ways.PROPOSALS) == pytest.approx(mean(8 * ways.PROPOSALS), rel=0.03)
    assert mean(1) < 0.5 * mean(ways.PROPOSALS)


@settings(deadline=None, max_examples=40)
@given(grid=GRIDS, seed=SEEDS, data=st.data())
def test_of_cells_only_those_move_and_among_each_other(grid, seed, data):
    n = grid[0] * grid[1]
    cells = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))).reshape(grid)
    order = drawn(ways.of_cells, grid, seed, cells=cells)
    assert (order[~cells.ravel()] == np.flatnonzero(~cells)).all()
    assert sorted(order[cells.ravel()]) == np.flatnonzero(cells).tolist()
    if cells.sum() < 2:
        assert (order == np.arange(n)).all()


def test_of_cells_shuffles_fairly():
    cells = np.zeros((3, 3), bool)
    cells[0, 0] = cells[1, 2] = cells[2, 1] = True
    found = [tuple(drawn(ways.of_cells, (3, 3), seed, cells=cells)[cells.ravel()]) for seed in range(600)]
    assert len(set(found)) == 6
    assert stats.chisquare([found.count(order) for order in set(found)]).pvalue > 0.001


@settings(deadline=None, max_examples=40)
@given(grid=GRIDS, seed=SEEDS)
def test_distance_is_that_of_each_token_by_hand(grid, seed):
    order = drawn(ways.full, grid, seed)
    found = ways.distance(order, grid)
    for place, source in enumerate(order):
        (row, column), (from_row, from_column) = divmod(place, grid[1]), divmod(int(source), grid[1])
        assert found[place] == pytest.approx(((row - from_row) ** 2 + (column - from_column) ** 2) ** 0.5)
    inverse = np.argsort(order)  # the way back is as long
    assert ways.distance(inverse, grid).mean() == pytest.approx(found.mean())


def test_distances_in_closed_form():
    assert ways.distance(np.arange(12), (3, 4)).tolist() == [0] * 12
    assert ways.distance(ways.flip_left_right((3, 4)), (3, 4)).reshape(3, 4).tolist() == [[3, 1, 1, 3]] * 3
    assert ways.distance(ways.rotate180((3, 3)), (3, 3))[[0, 4]].tolist() == pytest.approx([8**0.5, 0])
    n, found = 6, []
    for seed in range(400):
        found.append(ways.distance(drawn(ways.rows, (n, 5), seed), (n, 5)).mean())
    assert np.mean(found) == pytest.approx((n * n - 1) / (3 * n), rel=0.05)  # E|i - j| of a random permutation


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: ways.blocks((3, 3), g, 3), "k=3 leaves no two blocks of one shape in a grid of 3 x 3"),
        (lambda g: ways.blocks((2, 3), g, 2), "k=2 leaves no two blocks"),
        (lambda g: ways.blocks((3, 3), g, 0), "k=0"),
        (lambda g: ways.blocks((3, 3), g, 1), "k=1: blocks of one cell are the full shuffle"),
        (lambda g: ways.within_blocks((3, 3), g, 1), "k=1"),
        (lambda g: ways.within_radius((3, 3), g, 0.9), "radius=0.9"),
        (lambda g: ways.within_radius((3, 3), g, float("nan")), "radius=nan"),
        (lambda g: ways.full((0, 3), g), "0 x 3 has no cells"),
        (lambda g: ways.of_cells((3, 4), g, np.ones((4, 3), bool)), r"shape \(3, 4\)"),
        (lambda g: ways.of_cells((3, 4), g, np.ones((3, 4))), "float64"),
        (lambda g: ways.distance(np.arange(5), (2, 3)), r"shape \(5,\) for a grid of 2 x 3"),
        (lambda g: ways.named("row"), "nearest: 'rows'"),
        (lambda g: ways.named("flip_left"), "nearest: 'flip_left_right'"),
        (lambda g: ways.named("blocks"), "needs a size, as in 'blocks:2'"),
        (lambda g: ways.named("blocks:1.5"), "needs a size"),
        (lambda g: ways.named("within_radius:far"), "needs a size"),
        (lambda g: ways.named("full:2"), "'full' takes no size"),
        (lambda g: ways.named("zzzz"), "unknown permutation 'zzzz'; legal: full, rows"),
    ],
)
def test_what_means_nothing_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.random.default_rng(0))
