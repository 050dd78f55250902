"""One rule for seeds, wherever one is taken."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import examples

from spatialprobes import chat, stats
from spatialprobes.intervene import random_permutations
from spatialprobes.params import parse_parameters
from spatialprobes.seeds import SEEDS, check_seed
from spatialprobes.vlm import VLM

NONE = [-1, 2**32, 10**30, "3", 1.0, None, True, float("nan")]


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava), device="cpu")


@given(st.integers(0, SEEDS - 1))
def test_every_seed_serves_numpy_and_torch(seed):
    assert check_seed(seed) == check_seed(np.int64(seed)) == check_seed(torch.tensor(seed)) == seed
    np.random.RandomState(check_seed(seed))  # the narrowest of them
    torch.Generator().manual_seed(check_seed(seed))


@pytest.mark.parametrize("seed", NONE)
def test_what_is_no_seed_is_named_wherever_one_is_taken(vlm, seed):
    values = np.arange(200.0)
    calls = [
        lambda: check_seed(seed),
        lambda: random_permutations(4, 1, seed=seed),
        lambda: vlm.generate(examples(1), seed=seed),
        lambda: chat.converse(vlm, examples(1)[0].image, [], print, seed=seed),
        lambda: stats.bootstrap(values, None, seed=seed),
        lambda: stats.permutation_test(values, values, seed=seed),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="is no seed; use a whole number from 0 to 4294967295") as caught:
            call()
        assert repr(seed) in str(caught.value)


def test_a_notebooks_seed_is_checked_with_the_plan():
    seed = parse_parameters("seed: int = 0  # of what is drawn")["seed"]
    assert seed.fault(0) is None and seed.fault(SEEDS - 1) is None
    assert seed.fault(-1) == seed.fault(-1) and "-1 is no seed" in seed.fault(-1)
    assert "no seed" in seed.fault(SEEDS)
    assert parse_parameters("shift: int = -1  # not a seed")["shift"].fault(-5) is None


def test_a_chats_seed_goes_round_at_the_end(vlm):
    """Question i is drawn with seed + i, also where that is beyond the last seed."""
    one = examples(1)[0]
    said = chat.converse(vlm, one.image, [one.question] * 2, lambda text: None, seed=SEEDS - 1, temperature=2.0, max_new_tokens=6)
    again = chat.converse(vlm, one.image, [one.question], lambda text: None, seed=0, temperature=2.0, max_new_tokens=6)
    assert said[1] == again[0] != said[0]
