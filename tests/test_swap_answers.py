"""What a text says of a swap pair: by whole words, and by the study's substrings, and where the two part."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatialprobes.pairs import CATEGORIES, GROUPS, OPPOSITE
from spatialprobes.probes.swap_answers import PUBLISHED, WORDS, as_published, check, meaning, said

EVERY = [(category, word) for category in CATEGORIES for word in WORDS[category]]


@pytest.mark.parametrize(("category", "word"), EVERY)
def test_every_word_is_right_for_its_own_answer_and_wrong_for_the_opposite(category, word):
    for text in (word, word.upper(), f"It is {word}.", f"the circle is {word} of the square, I think"):
        assert check(text, category) is True
        assert check(text, OPPOSITE[category]) is False
        assert said(text, category) == said(text, OPPOSITE[category]) == category
    assert meaning(f" {word.upper()} ") == category


@pytest.mark.parametrize(
    ("text", "expected", "whole", "published"),
    [
        ("some leftover soup", "left", None, True),  # where a substring says what no word says
        ("the upright one", "right", None, True),
        ("the upright one", "left", None, False),
        ("an underground station", "under", None, True),
        ("unclear", "close", None, False),
        ("a linear row", "close", None, True),
        ("farther", "far", True, True),  # comparatives are forms of the word; the study found them by luck
        ("further", "far", True, False),
        ("closer", "close", True, True),
        ("nearby", "close", True, True),
        ("nearby", "far", False, False),
        ("the leftmost", "left", None, True),  # superlatives point out an object
        ("the closest one", "close", None, True),
        ("not left", "left", None, True),  # denials say neither
        ("not left", "right", None, False),
        ("It isn't to the left of it", "left", None, True),
        ("It isn’t to the left of it", "left", None, True),
        ("it cannot be above", "above", None, True),
        ("right rather than left", "right", None, True),
        ("left instead of right", "left", None, True),
        ("not left but right", "right", None, False),
        ("left. It does not touch the square", "left", True, True),  # of another sentence
        ("I am not sure. Left", "left", True, True),
        ("no, it is left", "left", True, True),
        ("no, not left", "left", None, True),
        ("left or right", "left", None, True),  # both at once say neither
        ("left, or to the right", "left", None, True),
        ("far and close", "close", None, False),
        ("left of the one on the right", "left", True, True),  # the earliest counts
        ("left of the one on the right", "right", False, False),
        ("below the one above", "under", True, True),
        ("a distant, not far, thing. close", "far", None, True),
        ("", "left", None, False),
        ("the red circle", "left", None, False),
        ("above", "left", None, False),  # of another group
    ],
)
def test_where_the_two_readings_part(text, expected, whole, published):
    assert check(text, expected) is whole
    assert as_published(text, expected) is published


def slow(text, expected):
    """The published check as its description reads, position by position."""
    text = text.lower()
    for start in range(len(text)):
        for category, result in ((expected, True), (OPPOSITE[expected], False)):
            if any(text[start:].startswith(word) for word in PUBLISHED[category]):
                return result
    return False


LETTERS = st.lists(st.sampled_from([*"aeflnrt ", "left", "right", "near", "far", "close", "under", "above", " not "]), max_size=8)


@given(LETTERS.map("".join), st.sampled_from(CATEGORIES))
def test_the_published_check_is_the_first_substring(text, expected):
    assert as_published(text, expected) is slow(text, expected)


@given(LETTERS.map("".join), st.sampled_from(list(GROUPS)))
def test_what_is_right_for_one_answer_is_wrong_for_the_other(text, group):
    one, other = GROUPS[group]
    pair = check(text, one), check(text, other)
    assert pair in [(None, None), (True, False), (False, True)]
    if "not" in text.split():
        assert pair == (None, None)


@pytest.mark.parametrize("read", [check, as_published, said])
def test_an_expected_word_of_no_category_is_named(read):
    with pytest.raises(ValueError, match="expected answer 'beside' is none of left, right, above, under"):
        read("left", "beside")
