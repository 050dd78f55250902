"""Copies are found by content, near ones by cosine and what cosines chain together; one stands for each group."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spatialprobes.examples import Example
from spatialprobes.images import ImageError
from spatialprobes.probes import duplicates

FEW = settings(max_examples=40, deadline=None)


def same(a, b):
    """Whether two labellings make the same groups."""
    pairs = set(zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True))
    return len(pairs) == len(set(np.asarray(a).tolist())) == len(set(np.asarray(b).tolist()))


def components(n, one, other):
    return connected_components(coo_array((np.ones(len(one)), (one, other)), (n, n)), directed=False)[1]


def picture(colour, size=(8, 6)):
    return Image.new("RGB", size, colour)


def test_pictures_of_the_same_pixels_are_copies_whatever_their_files(tmp_path):
    picture("red").save(tmp_path / "a.png")
    picture("red").convert("RGBA").save(tmp_path / "b.webp", lossless=True)
    almost = picture("red")
    almost.putpixel((3, 3), (254, 0, 0))
    examples = [
        Example("x/a", tmp_path / "a.png"), Example("x/b", almost), Example("y/c", tmp_path / "b.webp"),
        Example("d", lambda: picture("red", (6, 8))), Example("e", picture("red")),
    ]  # fmt: skip
    assert duplicates.exact(examples).tolist() == [0, 1, 0, 2, 0]
    assert duplicates.exact([*"abacb"]).tolist() == [0, 1, 0, 2, 1]
    with pytest.raises(ImageError, match="x/gone"):
        duplicates.exact([replace(examples[0], id="x/gone", image=tmp_path / "gone.png")])


@pytest.mark.parametrize("kind", [np.int64, np.float32, torch.float32, torch.bfloat16])
def test_rows_of_an_array_that_are_equal_are_copies(kind):
    rows = np.array([[0, 1], [1, 0], [0, 1], [2, 2], [1, 0]])
    x = torch.from_numpy(rows).to(kind) if isinstance(kind, torch.dtype) else rows.astype(kind)
    assert duplicates.exact(x).tolist() == [0, 1, 0, 2, 1]


def test_minus_zero_is_zero_and_nan_is_refused():
    assert duplicates.exact(np.array([[0.0, 1], [-0.0, 1]])).tolist() == [0, 0]
    with pytest.raises(ValueError, match="1 numbers are NaN"):
        duplicates.exact(np.array([[0.0, 1], [np.nan, 1]]))


@FEW
@given(
    st.integers(2, 40), st.sampled_from([0.5, 0.9, 0.99]), st.integers(0, 2**16), st.sampled_from([(512, 4096), (3, 4), (1, 1)])
)
def test_near_copies_are_the_components_of_cosines_above_the_threshold(n, threshold, seed, tile):
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    unit = x / np.linalg.norm(x.astype(float), axis=1, keepdims=True)
    expected = components(n, *np.nonzero(unit @ unit.T >= threshold))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "TILE", tile)
        found = duplicates.near(x, threshold)
    assert same(found, expected)
    first = np.unique(found, return_index=True)[1]
    assert (np.diff(first) > 0).all() and found[0] == 0  # numbered in order of appearance


def test_a_cosine_at_the_threshold_is_decided_in_fp64():
    """Two angles that differ by 1e-9, on both sides of the threshold: fp32 cosines are the same."""
    threshold = np.cos(0.3)
    for turn, expected in ((0.3 - 1e-9, [0, 0]), (0.3 + 1e-9, [0, 1])):
        x = np.array([[1.0, 0.0], [np.cos(turn), np.sin(turn)]])
        assert duplicates.near(x, threshold).tolist() == expected
    copies = np.random.default_rng(0).normal(size=(30, 700)).astype(np.float32)[[*range(30), *range(30)]]
    assert duplicates.near(copies, 1.0).tolist() == [*range(30), *range(30)]
    assert set(duplicates.near(np.full((50, 3), 0.1), 1.0)) == {0}
    assert duplicates.near(copies * np.linspace(1, 9, 60)[:, None], 1.0).tolist() == [*range(30), *range(30)]


def test_vectors_that_have_no_direction_are_named():
    x = np.ones((4, 3))
    x[2] = 0
    with pytest.raises(ValueError, match=r"1 of 4 vectors .* first 'c' \(row 2\)"):
        duplicates.near(x, 0.9, keys=[*"abcd"])
    x[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"2 of 4 vectors .* first row 1"):
        duplicates.near(x, 0.9)
    with pytest.raises(ValueError, match="threshold=1\\.5"):
        duplicates.near(x, 1.5)
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        duplicates.near(np.ones(3), 0.9)


@FEW
@given(
    st.integers(1, 20).flatmap(lambda n: st.lists(st.lists(st.integers(0, 8), min_size=n, max_size=n), min_size=1, max_size=3))
)
def test_joined_groups_are_what_any_labelling_puts_together(labellings):
    n = len(labellings[0])
    one, other = np.nonzero(np.any([np.equal.outer(labels, labels) for labels in labellings], axis=0))
    assert same(duplicates.joined(*labellings), components(n, one, other))


def test_labellings_of_different_lengths_do_not_join():
    with pytest.raises(ValueError, match="3 and 2 items"):
        duplicates.joined(np.arange(3), np.arange(2))


@FEW
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_one_key_stands_for_each_group_the_first_as_text(labels, random):
    keys = [f"{i:03}" for i in range(len(labels))]
    random.shuffle(keys)
    chosen = duplicates.representatives(labels, keys)
    for label in set(labels):
        of = [key for key, one in zip(keys, labels, strict=True) if one == label]
        assert [key for key, one, mine in zip(keys, labels, chosen, strict=True) if one == label and mine] == [min(of)]
    assert duplicates.multiplicity(labels).tolist() == [labels.count(one) for one in labels]


def test_labels_and_keys_fit():
    with pytest.raises(ValueError, match="2 labels do not fit 3 keys"):
        duplicates.representatives([0, 1], [*"abc"])
