"""Swap pairs: words, signs, the first of each category, changed pictures that stay shared."""

import numpy as np
import pytest
from PIL import Image

from spatialprobes import pairs
from spatialprobes.images import enlarged, open_image
from spatialprobes.worlds import lab_pairs


def test_every_category_has_one_opposite_of_its_group_and_the_other_sign():
    for category in pairs.CATEGORIES:
        other = pairs.OPPOSITE[category]
        assert pairs.OPPOSITE[other] == category != other
        assert pairs.GROUP_OF[category] == pairs.GROUP_OF[other]
        assert pairs.SIGN[category] == -pairs.SIGN[other]
    assert [category for category in pairs.CATEGORIES if pairs.SIGN[category] == 1] == ["left", "above", "far"]


def test_first_of_each_keeps_order_and_counts():
    found = lab_pairs.lab_pairs(3, 5)
    some = pairs.first_of_each(found, 2)
    assert [one.id for one in some] == [one.id for one in found[:12]]
    assert pairs.first_of_each(found[:7], 2) == found[:7]
    assert pairs.first_of_each([], 2) == [] == pairs.first_of_each(found, 0)


@pytest.mark.parametrize("side", [96, 336])
def test_changed_pictures_are_changed_when_used_and_stay_shared(side):
    quads = lab_pairs.lab_quads(2, 3)
    changed = pairs.quads_with_pictures(quads, lambda picture: enlarged(picture, side))
    for quad, now in zip(quads, changed, strict=True):
        shown = [member.image for pair in (now.vertical, now.distance) for member in pair.members]
        assert all(image is shown[0] for image in shown)
        before, after = (np.asarray(open_image(image)) for image in (quad.vertical.original.image, shown[0]))
        repeat = side // before.shape[0]
        assert np.array_equal(after, before.repeat(repeat, 0).repeat(repeat, 1))
        assert [member.question for member in now.vertical.members] == [member.question for member in quad.vertical.members]
    plain = Image.new("RGB", (4, 4))
    one = pairs.with_pictures(lab_pairs.lab_pairs(1, 3)[:1], lambda picture: plain)
    assert open_image(one[0].swapped.image).size == (4, 4)


def test_first_of_each_reads_no_pair_more_than_it_needs():
    found = lab_pairs.lab_pairs(3, 5)
    rest = iter(found)
    assert pairs.first_of_each(rest, 1) == found[:6]
    assert next(rest) == found[6]
