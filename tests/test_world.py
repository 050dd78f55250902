"""The lab's world: every stated property of a scene against its pixels, and the identities of moving scenes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.worlds import lab
from spatialprobes.worlds.lab import COLOURS, CORNERS, WORLD

seeds = st.integers(0, 2**31)
perspectives = st.sampled_from([0.0, 0.5, 1.0])


@given(seeds, perspectives)
@settings(max_examples=60, deadline=None)
def test_objects_are_where_the_pixels_are(seed, perspective):
    scene = lab.scene(seed, 0, perspective)
    image = lab.render(scene)
    for thing, stated in zip(scene.things, lab.objects(scene), strict=True):
        pixels = (image == COLOURS[thing.colour]).all(-1)  # colours are unique, nothing hides anything
        rows, columns = np.nonzero(pixels)
        box = (columns.min() / 48, rows.min() / 48, (columns.max() + 1) / 48, (rows.max() + 1) / 48)
        assert stated.box == pytest.approx(box)
        assert box[0] <= stated.centre[0] <= box[2] and box[1] <= stated.centre[1] <= box[3]
        by_patch = pixels.reshape(6, 8, 6, 8).sum((1, 3))
        assert (stated.mask == ((by_patch >= lab.MIN_COVER) | (by_patch == by_patch.max()))).all()
        widest = {"circle": 2, "square": 1.8, "triangle": 1.98, "cross": 2}[thing.shape] * thing.radius
        assert abs((columns.max() + 1 - columns.min()) - widest) <= 2
        assert thing.radius == pytest.approx(WORLD.radius[1] - stated.depth * (WORLD.radius[1] - WORLD.radius[0]))
    assert (image == lab.BACKGROUND).all(-1).sum() == 48 * 48 - sum(lab.thing_mask(t).sum() for t in scene.things)


@given(seeds, perspectives)
@settings(max_examples=60, deadline=None)
def test_scenes_keep_their_promises(seed, perspective):
    scene = lab.scene(seed, 1, perspective)
    things = scene.things
    assert 2 <= len(things) <= 4
    assert len({t.colour for t in things}) == len({t.shape for t in things}) == len(things)
    for i, a in enumerate(things):
        assert a.radius <= min(a.x, a.y, 48 - a.x, 48 - a.y) + 1e-9
        assert min(a.x % 8, 8 - a.x % 8, a.y % 8, 8 - a.y % 8) >= WORLD.margin - 1e-9
        for b in things[i + 1 :]:
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + WORLD.gap
    assert scene == lab.scene(seed, 1, perspective)


def test_perspective_is_the_correlation_of_height_and_depth_and_moves_no_margin():
    for perspective, tied in ((0.0, False), (0.5, True), (1.0, True)):
        things = [t for i in range(1500) for t in lab.scene(7, i, perspective).things]
        depth, y = np.array([(t.depth, t.y) for t in things]).T
        correlation = np.corrcoef(depth, y)[0, 1]
        assert (correlation < -0.4) if tied else abs(correlation) < 0.05
        if perspective == 1.0:
            assert correlation < -0.97
        rows = np.bincount((y // 8).astype(int), minlength=6) / len(y)
        assert abs(rows - 1 / 6).max() < 0.05


@given(seeds)
@settings(max_examples=40, deadline=None)
def test_mirror_and_rotation(seed):
    scene = lab.scene(seed, 2)
    assert (lab.render(lab.mirror(scene)) == lab.render(scene)[:, ::-1]).all()
    assert np.allclose([(t.x, t.y) for t in lab.mirror(lab.mirror(scene)).things], [(t.x, t.y) for t in scene.things])
    back = lab.rotate(lab.rotate(scene, 1), 3)
    assert np.allclose([(t.x, t.y) for t in back.things], [(t.x, t.y) for t in scene.things])
    half = lab.rotate(scene, 2)
    assert np.allclose([(48 - t.x, 48 - t.y) for t in half.things], [(t.x, t.y) for t in scene.things])
    a, b = scene.things[0], lab.rotate(scene, 1).things[0]
    assert (b.x, b.y) == (a.y, 48 - a.x)  # what was at the right is now at the top


@pytest.mark.parametrize("corner", CORNERS)
def test_corner_pairs_differ_by_the_object_in_the_corner(corner):
    right, down = CORNERS[corner]
    for index in range(30):
        full, control = lab.corner_pair(3, index, corner)
        assert len(full.things) == len(control.things) + 1
        assert lab.occupied(full, corner) is True
        taken = full.things[0]
        changed = (lab.render(full) != lab.render(control)).any(-1)
        assert (changed == lab.thing_mask(taken)).all()
        assert (taken.x > 32 if right else taken.x < 16) and (taken.y > 32 if down else taken.y < 16)


def test_bad_values_are_named():
    with pytest.raises(ValueError, match=r"perspective is 2; it must lie in \[0, 1\]"):
        lab.scene(0, 0, 2)
    with pytest.raises(ValueError, match="corner is 'middle'; it must be one of top left"):
        lab.scene(0, 0, corner="middle")
    with pytest.raises(ValueError, match="no 'red star' in the scene; there are "):
        lab.without(lab.scene(0, 0), "red star")
    with pytest.raises(ValueError, match="shape is 'star'"):
        lab.thing_mask(lab.Thing("red", "star", 9, 9, 4, 0.5))
