"""Claims: the rule decides, whatever one hopes."""

import json
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from spatialprobes.claims import Claim, claim, judge, load_claims, markdown, parse_rule, save_claims


def make(rule="low > .25", estimate=0.4, low=0.3, high=0.5, **fields):
    given = {
        "id": "permutation.spatial",
        "statement": "Spatial answers need order.",
        "n": 600,
        "model": "lab-llava",
        "table": "permutation",
    }
    return claim(**(given | fields), rule=rule, estimate=estimate, low=low, high=high)


@pytest.mark.parametrize(
    ("rule", "interval", "verdict"),
    [
        ("low > .25", (0.3, 0.4, 0.5), "holds"),
        ("low > .25", (0.2, 0.4, 0.5), "inconclusive"),
        ("low > .25", (0.1, 0.2, 0.25), "fails"),
        ("low >= .25", (0.1, 0.2, 0.25), "inconclusive"),
        ("low(drop) > 0.25", (0.25, 0.3, 0.5), "inconclusive"),
        ("low >= .25", (0.25, 0.3, 0.5), "holds"),
        ("high(accuracy drop) < .02", (-0.01, 0.0, 0.01), "holds"),
        ("high(accuracy drop) < .02", (-0.01, 0.0, 0.03), "inconclusive"),
        ("high(accuracy drop) < .02", (0.02, 0.05, 0.1), "fails"),
        ("high <= 2e-2", (0.02, 0.05, 0.1), "inconclusive"),
        ("estimate > 1", (0.5, 1.2, 2.0), "holds"),
        ("estimate > 1", (0.5, 0.9, 2.0), "inconclusive"),
        ("estimate > 1", (0.5, 0.9, 1.0), "fails"),
        ("low > -.1 and high < .1", (-0.05, 0.0, 0.05), "holds"),
        ("low > -.1 and high < .1", (-0.05, 0.0, 0.2), "inconclusive"),
        ("low > -.1 and high < .1", (0.2, 0.3, 0.4), "fails"),
        ("low(left and right) > .1 and high(rand) < 1", (0.2, 0.3, 0.4), "holds"),
        ("low > .25", (math.nan, 0.4, 0.5), "inconclusive"),
        ("estimate > .25", (0.3, math.nan, 0.5), "inconclusive"),
    ],
)
def test_verdicts(rule, interval, verdict):
    low, estimate, high = interval
    assert judge(rule, estimate, low, high) == verdict


numbers = st.floats(-100, 100)


@given(
    st.sampled_from(["low", "high", "estimate"]),
    st.sampled_from(["<", "<=", ">", ">="]),
    numbers,
    st.lists(numbers, min_size=3, max_size=3),
)
def test_a_rule_never_holds_and_fails_and_mirrors(name, sign, number, interval):
    low, estimate, high = sorted(interval)
    verdict = judge(f"{name} {sign} {number!r}", estimate, low, high)
    flipped = {"low": "high", "high": "low", "estimate": "estimate"}[name]
    mirrored = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}[sign]
    assert judge(f"{flipped} {mirrored} {-number!r}", -estimate, -high, -low) == verdict
    if verdict == "fails":  # then it fails whatever end is named
        assert all(judge(f"{other} {sign} {number!r}", estimate, low, high) == "fails" for other in ("low", "high", "estimate"))


@given(numbers, st.lists(numbers, min_size=3, max_size=3))
def test_a_narrower_interval_never_turns_holds_into_fails(number, interval):
    low, estimate, high = sorted(interval)
    assume(judge(f"low > {number!r}", estimate, low, high) == "holds")
    assert judge(f"low > {number!r}", estimate, estimate, estimate) == "holds"


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("", "is not a comparison"),
        ("low", "is not a comparison"),
        ("lo > 3", "'lo' is not low, high or estimate; low"),
        ("3 < low", "is not a comparison"),
        ("low > 3 or high < 4", "is not a comparison"),
        ("low > 3 and", "'' is not a comparison"),
        ("low > x", "is not a comparison"),
        ("low == 3", "is not a comparison"),
        ("low > 3; import os", "is not a comparison"),
        ("low > nan", "is not a comparison"),
        ("low((a)) > 3", "is not a comparison"),
    ],
)
def test_what_is_no_rule_is_refused(rule, says):
    with pytest.raises(ValueError, match=says):
        parse_rule(rule)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"id": "Permutation Spatial"}, "claim id"),
        ({"estimate": 0.6}, r"0.6 is not in its interval \[0.3, 0.5\]"),
        ({"n": -1}, "n=-1"),
        ({"n": 2.5}, "n=2.5"),
        ({"n": 0}, "n=0"),
        ({"high": math.inf}, "not finite"),
        ({"statement": " "}, "statement is empty"),
        ({"rule": "certainly"}, "not a comparison"),
    ],
)
def test_fields_that_mean_nothing_are_named(fields, says):
    with pytest.raises(ValueError, match=says):
        make(**fields)


def test_the_verdict_cannot_be_set():
    with pytest.raises(TypeError):
        Claim("a.b", "s", "low > 3", 1.0, 0.0, 2.0, 3, "m", "t", verdict="holds")
    with pytest.raises((FrozenInstanceError, AttributeError)):
        make().verdict = "holds"
    with pytest.raises(FrozenInstanceError):
        make().low = 1.0


def test_nan_is_inconclusive_and_says_so():
    got = make(estimate=math.nan, low=math.nan, high=math.nan, n=0, caveat="lab model")
    assert got.verdict == "inconclusive" and not got.holds
    assert got.caveat == "lab model; no verdict: the estimate or an end of its interval could not be computed"
    assert got.interval() == "not computed"


def test_claims_round_trip_through_json(tmp_path):
    claims = [make(estimate=np.float64(0.4), n=np.int64(600), required=True), make(id="x.nan", estimate=math.nan, caveat="| <b>")]
    path = save_claims(claims, tmp_path / "claims.json")
    back = load_claims(path)
    assert back[0] == claims[0]
    assert math.isnan(back[1].estimate) and back[1].caveat == claims[1].caveat
    assert [row["verdict"] for row in json.loads(path.read_text())] == ["holds", "inconclusive"]
    assert save_claims(back, tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert load_claims(save_claims([], tmp_path / "none.json")) == []


def test_a_doctored_verdict_is_found(tmp_path):
    path = save_claims([make(low=0.2)], tmp_path / "claims.json")
    path.write_text(path.read_text().replace('"inconclusive"', '"holds"'))
    with pytest.raises(
        ValueError, match=r"claims.json: claim permutation.spatial: stored verdict 'holds', but its rule says 'inconclusive'"
    ):
        load_claims(path)


def test_markdown_keeps_its_columns():
    other = make(id="other", caveat="a | b\nc", low=0.1, high=0.24, estimate=0.2)
    text = markdown([make(), other, make(model="lab-two", caveat="small"), make(id="other", model="lab-two", caveat="a | b\nc")])
    lines = text.strip().split("\n")
    first = "lab-llava: 0.4 [0.3, 0.5], 600, **holds**<br>lab-two: 0.4 [0.3, 0.5], 600, **holds** *small*"
    assert lines[2] == f"| Spatial answers need order. | `low > .25` | {first} |"
    assert lines[3].startswith("| Spatial answers need order.<br>*a \\| b c* |") and "**fails**<br>lab-two" in lines[3]
    assert len(lines) == 4 and len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_verdict_stands_beside_its_own_rule_and_statement():
    other = [make(model="lab-two", rule="low > .35"), make(model="lab-three", statement="Every answer needs order.")]
    rows = markdown([make(), *other]).strip().split("\n")[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| Spatial answers need order."] * 2 + ["| Every answer needs order."]
    assert ["`low > .35`" in row and "lab-two" in row and "lab-llava" not in row for row in rows] == [False, True, False]
