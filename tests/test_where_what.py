"""Where and what before and after a connector: on vectors whose answer is known, and on a trained lab model."""

import numpy as np
import pytest

from spatialprobes.probes import where_what
from spatialprobes.worlds.lab import COLOURS, SHAPES, WORLD

CELLS = WORLD.grid**2


@pytest.fixture(scope="module")
def singles():
    return where_what.single_objects(864, 0)


@pytest.fixture(scope="module")
def scenes():
    return where_what.scenes(150, 1)


def test_every_thing_stands_in_every_cell_once(singles):
    seen = {(e.meta["what"], e.meta["where"]) for e in singles}
    assert len(seen) == len(singles) == len(COLOURS) * len(SHAPES) * CELLS
    for example in singles[:50]:
        (thing,) = example.objects
        column, row = (int(at * WORLD.grid) for at in thing.centre)
        assert thing.name == example.meta["what"] and row * WORLD.grid + column == example.meta["where"]


def planted(singles, factor, noise=0.01):
    """[picture, token, width] that hold one factor and nothing else."""
    codes = np.unique([str(e.meta[factor]) for e in singles], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    points = rng.standard_normal((codes.max() + 1, 4, 8))
    return points[codes] + noise * rng.standard_normal((len(singles), 4, 8))


def test_neighbours_by_a_planted_factor_share_it_and_no_other(singles):
    found = where_what.neighbours({"pre": planted(singles, "what"), "post": planted(singles, "where")}, singles, k=10)
    shares = found.groupby(["site", "form", "factor"])["share"].mean()
    for form in where_what.FORMS:
        assert shares["pre", form, "what"] == shares["post", form, "where"] == 1.0
        assert shares["pre", form, "where"] == shares["post", form, "what"] == 0.0  # each pair of both is shown once
    chances = found.groupby("factor")["chance"].unique()
    assert list(chances["what"]) == [pytest.approx(35 / 863)] and list(chances["where"]) == [pytest.approx(23 / 863)]


def test_noise_has_neighbours_by_chance(singles):
    noise = {"pre": np.random.default_rng(1).standard_normal((len(singles), 2, 16))}
    found = where_what.neighbours(noise, singles, k=20)
    for _, part in found.groupby(["form", "factor"]):
        error = 3 * np.sqrt(part["chance"].mean() / (20 * len(part)))
        assert abs((part["share"] - part["chance"]).mean()) < 3 * error


def written(scenes, what, where):
    """Tokens in which the place of each shape, or its colour, can be read linearly, where asked for."""
    rng = np.random.default_rng(2)
    out = rng.standard_normal((len(scenes), 3, 16))
    flat = out.reshape(len(scenes), -1)
    names = list(COLOURS)
    for i, example in enumerate(scenes):
        for thing in example.objects:
            colour, shape = thing.name.split()
            at = 8 * SHAPES.index(shape)
            if what:
                flat[i, at : at + 6] = 20 * np.eye(6)[names.index(colour)]
            if where:
                flat[i, at + 6 : at + 8] = 20 * np.array(thing.centre)
    return out


def test_a_readout_finds_what_is_written_and_nothing_else(scenes):
    found = where_what.decoding({"pre": written(scenes, True, False), "post": written(scenes, False, True)}, scenes)
    tokens = found[found["form"] == "tokens"]
    right = tokens[tokens["factor"] == "what"].groupby("site")["right"].mean()
    assert right["pre"] > 0.95 and abs(right["post"] - 1 / 6) < 0.1
    places = tokens[tokens["factor"] == "where"].groupby("site")[["error", "spread"]].mean()
    explained = 1 - places["error"] / places["spread"]
    assert explained["post"] > 0.95 and explained["pre"] < 0.1


def test_rows_made_compact_are_the_same_to_a_ridge_regression():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((12, 40)) * np.linspace(1, 50, 40), rng.standard_normal((12, 2))
    x[:, 7] = 3.0
    scaled = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1) / np.sqrt(40)
    small = where_what._compact(x)
    assert small.shape == (12, 12)
    for alpha in (1e-3, 1.0):
        read = [one @ np.linalg.solve(one.T @ one + alpha * np.eye(one.shape[1]), one.T @ y) for one in (scaled, small)]
        assert np.allclose(*read)


def test_changes_are_after_minus_before(singles, scenes):
    near = where_what.neighbours({"pre": planted(singles, "what"), "post": planted(singles, "where")}, singles)
    decoded = where_what.decoding({"pre": written(scenes, True, False), "post": written(scenes, True, True)}, scenes)
    summary = where_what.summary(near, decoded, n=200).set_index(["view", "factor", "form", "site"])["value"]
    kept = where_what.kept(near, decoded, "pre", n=200).set_index(["view", "factor", "form"])
    for key, row in kept.iterrows():
        if key[1] != "where - what":
            assert row["change"] == pytest.approx(summary[(*key, "post")] - summary[(*key, "pre")], abs=1e-9)
        assert row["low"] <= row["change"] <= row["high"]
    difference = kept.loc[("neighbours", "where - what", "tokens"), "change"]
    assert difference == pytest.approx(
        kept.loc[("neighbours", "where", "tokens"), "change"] - kept.loc[("neighbours", "what", "tokens"), "change"]
    )
    where = kept.loc[("decoding", "where", "tokens")]
    assert where["low"] > 0.5  # it could not be read before


def test_bad_input_is_named(singles, scenes):
    with pytest.raises(ValueError, match=r"'post' are \(864, 4\)"):
        where_what.neighbours({"post": np.zeros((864, 4))}, singles)
    with pytest.raises(ValueError, match=r"\[150, token, width\]"):
        where_what.decoding({"pre": np.zeros((149, 2, 2))}, scenes)
    with pytest.raises(ValueError, match="at least 10"):
        where_what.decoding({"pre": np.zeros((9, 2, 2))}, scenes[:9])
    with pytest.raises(ValueError, match="count=0"):
        where_what.single_objects(0, 0)
