"""Steering along swap directions: by hand on tiny models, and where the answer is known because the model was wired."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import wired
from tiny import picture

from spatialprobes import paths
from spatialprobes.answers import score
from spatialprobes.capture import capture
from spatialprobes.examples import Example
from spatialprobes.intervene import added, intervene, removed
from spatialprobes.pairs import GROUPS, SIGN, Pair
from spatialprobes.probes import swap_causal
from spatialprobes.probes.swap_causal import COLUMNS, KINDS, Directions, directions, measure, split, summarise
from spatialprobes.probes.swap_states import MEMBERS, frame, from_arrays
from spatialprobes.prompts import PromptError
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_pairs import lab_pairs

TOLERANCE = 1e-4
NAMES = ["red circle", "blue square", "green cross"]


def pair(i, category, questions, answers, image, cluster=""):
    """A pair as the sources make them."""
    group = next(group for group, found in GROUPS.items() if category in found)
    members = [
        Example(f"p{i}:{name}", image, question, answer, sorted(answers), cluster=cluster or f"picture-{i}", group=group)
        for name, question, answer in zip(MEMBERS, questions, answers, strict=True)
    ]
    return Pair(f"p{i}", replace(members[0], category=category), members[1])


def tiny_pairs(n=4, first=0, groups=("horizontal", "vertical")):
    """Pairs of each group in turn, of both categories."""
    made = []
    for i in range(first, first + n):
        one, other = NAMES[i % 3], NAMES[(i + 1) % 3]
        canonical, opposite = GROUPS[groups[i % len(groups)]]
        answers = (canonical, opposite) if (i // len(groups)) % 2 else (opposite, canonical)
        asked = [f"is the {a} {canonical} or {opposite} of the {b} ?" for a, b in ((one, other), (other, one))]
        made.append(pair(i, answers[0], asked, answers, picture(i)))
    return made


def states_of(vlm, pairs, layers="all"):
    found = {name: {} for name in MEMBERS}
    for name in MEMBERS:
        with capture(vlm, hidden=layers) as got:
            vlm.forward(vlm.encode([getattr(one, name) for one in pairs]))
        found[name] = {layer: hidden[:, 0].float().numpy() for layer, hidden in got.hidden.items()}
    return from_arrays(frame(pairs), found["original"], found["swapped"])


@pytest.fixture(scope="module")
def any_vlm(tiny_family):
    return VLM.load(str(tiny_family))


@pytest.fixture(scope="module")
def vlm(request):
    return VLM.load(str(request.getfixturevalue("tiny_llava_grouped")))


@pytest.fixture(scope="module")
def estimated(vlm):
    return directions(states_of(vlm, tiny_pairs(8)))


# --- directions ---


def planted(n, width=6, noise=0.0, seed=0):
    """States whose delta is 2 e0 in horizontal pairs answered left and -2 e0 in those answered right."""
    rng = np.random.default_rng(seed)
    pairs = tiny_pairs(n, groups=("horizontal",))
    signs = np.array([SIGN[one.category] for one in pairs])
    base = rng.normal(size=(n, width))
    step = np.outer(signs, np.eye(width)[0]) + noise * rng.normal(size=(n, width))
    return pairs, from_arrays(frame(pairs), {1: (base - step).astype("f4")}, {1: (base + step).astype("f4")}), base


def test_directions_lead_from_the_canonical_answer_to_its_opposite():
    pairs, states, base = planted(7)
    got = directions(states)
    assert np.allclose(got["horizontal", 1], [2, 0, 0, 0, 0, 0], atol=1e-6)
    assert np.allclose(got.centres["horizontal", 1], base.mean(0), atol=1e-6)
    assert got.pairs == {one.id for one in pairs} and got.clusters == {one.cluster for one in pairs}
    assert got["horizontal", 1].dtype == np.float32 and got.groups == ["horizontal"]
    of_three = directions(states, [1], pairs[:3])
    assert of_three.pairs == {one.id for one in pairs[:3]}
    assert np.allclose(of_three.centres["horizontal", 1], base[:3].mean(0), atol=1e-6)


def test_pairs_without_states_do_not_count_and_none_at_all_is_an_error():
    _, states, base = planted(4)
    original, swapped = states.original(1).copy(), states.swapped(1).copy()
    original[1] = np.nan
    got = directions(from_arrays(states.pairs, {1: original}, {1: swapped}))
    assert np.allclose(got["horizontal", 1], [2, 0, 0, 0, 0, 0], atol=1e-6)
    assert np.allclose(got.centres["horizontal", 1], base[[0, 2, 3]].mean(0), atol=1e-6)
    with pytest.raises(ValueError, match="horizontal, layer 1: none of 4 pairs has a finite delta"):
        directions(from_arrays(states.pairs, {1: original * np.nan}, {1: swapped}))
    with pytest.raises(ValueError, match="layer 2 was not extracted"):
        directions(states, [2])
    with pytest.raises(ValueError, match="pair 'p9' has no states"):
        directions(states, pairs=tiny_pairs(1, first=9))
    with pytest.raises(ValueError, match="no pairs"):
        directions(states.select(np.zeros(4, bool)))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
def test_split_parts_pictures_and_keeps_categories(share):
    pairs = [replace_cluster(one, f"c{i // 8}-{one.category}") for i, one in enumerate(tiny_pairs(80))]
    train, test = split(pairs, share, seed=3)
    assert sorted(one.id for one in train + test) == sorted(one.id for one in pairs)
    assert {one.cluster for one in train}.isdisjoint(one.cluster for one in test)
    for category in ("left", "right", "above", "under"):
        assert len({one.cluster for one in train if one.category == category}) == round(share * 10)
    assert split(pairs, share, seed=3) == (train, test) != split(pairs, share, seed=4)
    assert [one.id for one in train] == [one.id for one in pairs if one in train]


def replace_cluster(one, cluster):
    return Pair(one.id, replace(one.original, cluster=cluster), replace(one.swapped, cluster=cluster))


def test_split_refuses_what_leaves_nothing():
    for share in (0, 1, -1, float("nan")):
        with pytest.raises(ValueError, match="share"):
            split(tiny_pairs(8), share)
    with pytest.raises(ValueError, match="no pairs"):
        split([])
    with pytest.raises(ValueError, match="none are left"):
        split(tiny_pairs(1))


# --- measure, against single examples steered by hand ---


def asked(vlm, one, opposite):
    """Of one example, its batch and the ids of both answers, each a single token."""
    spelt = [vlm.encode([replace(one, answer=word)], answers=True) for word in (one.answer, opposite)]
    return vlm.encode([one]), [int(batch.input_ids[0, batch.spans[0].answer[0]]) for batch in spelt]


def difference(vlm, batch, ids):
    """logit(expected) - logit(opposite) after the prompt."""
    logits = vlm.forward(batch, logits_to_keep=1).logits[0, -1]
    return float(logits[ids[0]] - logits[ids[1]])


def test_every_row_equals_one_example_steered_by_hand(any_vlm):
    estimated = directions(states_of(any_vlm, tiny_pairs(4)))
    tested = tiny_pairs(2, first=11)  # one answered above, one answered right
    layers = [any_vlm.n_layers - 1, any_vlm.n_layers]
    kinds = ("against", "remove", "toward")
    found = measure(any_vlm, tested, estimated, layers=layers, strengths=(0.5, 2), kinds=kinds, batch_size=3)
    assert len(found) == 2 * 2 * 2 * (2 + 1 + 2)
    by_id = {one.id: one for one in tested}
    for (name, kept), part in found.groupby(["pair", "member"]):
        one = by_id[name]
        member, other = (one.original, one.swapped) if kept == "original" else (one.swapped, one.original)
        to_opposite = 1 if member.answer in ("left", "above", "far") else -1
        batch, ids = asked(any_vlm, member, other.answer)
        unsteered = difference(any_vlm, batch, ids)
        for row in part.itertuples():
            key = (one.group, row.layer)
            if row.kind == "remove":
                steer = removed(estimated[key], row.layer, centre=estimated.centres[key])
            else:
                sign = to_opposite * (1 if row.kind == "toward" else -1)
                steer = added(sign * row.strength * estimated[key], row.layer)
            with intervene(any_vlm, steer=steer):
                assert row.logit_difference == pytest.approx(difference(any_vlm, batch, ids), abs=TOLERANCE)
            assert row.unsteered == pytest.approx(unsteered, abs=TOLERANCE)
            assert row.change == pytest.approx(row.logit_difference - row.unsteered)
            assert (row.flipped is pd.NA) if row.unsteered <= 0 else (row.flipped == (row.logit_difference < 0))
            assert (row.category, row.group, row.cluster) == (one.category, one.group, one.cluster)
            assert (row.expected, row.opposite) == (member.answer, other.answer)
    assert found["change"].abs().min() > 1e-6


def test_controls_have_the_norm_of_the_direction(vlm, estimated, monkeypatch):
    """What is handed to the model: random vectors for each pair and layer, others' directions, at the length of one's own."""
    handed = []

    def spy(vlm, batch, steerings, words):
        handed.extend((kind, batch, one) for kind, one in zip(("random", "other_group") * 2, steerings, strict=True))
        return torch.zeros(len(batch), 1 + len(steerings), 2)

    monkeypatch.setattr(swap_causal, "steered_words", spy)
    tested = tiny_pairs(6, first=20)
    options = {"layers": [1, 2], "strengths": (2,), "kinds": ("random", "other_group")}
    whole, small = (measure(vlm, tested, estimated, **options, batch_size=size) for size in (12, 4))
    assert list(whole["direction"]) == list(small["direction"])
    others = {"horizontal": "vertical", "vertical": "horizontal"}
    vectors: dict[tuple, np.ndarray] = {}
    for kind, batch, one in handed:
        for example, vector in zip(batch.examples, one.values[0].numpy(), strict=True):
            name, _, member = example.id.partition(":")
            own = next(pair for pair in tested if pair.id == name)
            assert np.linalg.norm(vector) == pytest.approx(2 * np.linalg.norm(estimated[own.group, one.layer]), rel=1e-5)
            signed = vector * SIGN[own.category] * (1 if member == "original" else -1)
            if kind == "other_group":
                other = estimated[others[own.group], one.layer]
                assert signed @ other / np.linalg.norm(signed) / np.linalg.norm(other) == pytest.approx(1, abs=1e-5)
            before = vectors.setdefault((kind, name, one.layer), signed)
            assert np.allclose(before, signed, atol=1e-6)  # the same for both members, in any batch
    drawn = np.array([vector / np.linalg.norm(vector) for (kind, _, _), vector in vectors.items() if kind == "random"])
    cosines = np.abs(drawn @ drawn.T)[~np.eye(12, dtype=bool)]
    assert len(drawn) == 12 and cosines.max() < 0.7  # one for each pair and layer
    handed.clear()
    measure(vlm, tested, estimated, **options, seed=1)
    first = handed[0][2].values[0][0].numpy()
    assert not np.allclose(np.abs(first), np.abs(vectors["random", "p20", 1]))


def test_the_order_and_size_of_batches_change_nothing(vlm, estimated):
    tested = tiny_pairs(5, first=30)
    whole = measure(vlm, tested, estimated, layers=[1, 3])
    small = measure(vlm, tested, estimated, layers=[1, 3], batch_size=3)
    back = measure(vlm, tested[::-1], estimated, layers=[1, 3]).sort_values(list(whole.columns[:2]), kind="stable")
    pd.testing.assert_frame_equal(whole, small, atol=TOLERANCE)
    there = whole.sort_values(list(whole.columns[:2]), kind="stable")
    pd.testing.assert_frame_equal(there.reset_index(drop=True), back.reset_index(drop=True), atol=TOLERANCE)
    assert list(whole.columns[: len(COLUMNS)]) == list(COLUMNS)
    assert set(whole["kind"]) == set(KINDS)
    assert whole.groupby("kind")["strength"].unique().map(list).to_dict() == {
        kind: [1.0] if kind == "remove" else [0.5, 1.0, 2.0] for kind in KINDS
    }


def test_strength_zero_changes_nothing_and_layer_zero_is_left_out_by_itself(vlm, estimated):
    found = measure(vlm, tiny_pairs(3, first=40), estimated, strengths=(0,), kinds=("toward", "random"))
    assert found["change"].abs().max() < 1e-5
    assert not found["flipped"].any()
    assert sorted(set(found["layer"])) == [1, 2, 3]  # at layer 0 the last token of the prompt is the same for all questions


def test_answers_that_begin_alike_are_told_apart_where_they_part(tiny_llava_pieces):
    """Of several pieces: the shared ones are forced, and the token before the parting is steered."""
    vlm = VLM.load(str(tiny_llava_pieces))
    asked = ["is it left ?", "is it right ?"]
    made = [pair(i, "left", asked, ("left up", "left or"), picture(i)) for i in range(3)]
    one = made[0].original
    spelt = [vlm.encode([replace(one, answer=word)], answers=True) for word in ("left up", "left or")]
    tokens = [batch.input_ids[0, batch.spans[0].answer].tolist() for batch in spelt]
    shared = next(i for i, (a, b) in enumerate(zip(*tokens, strict=False)) if a != b)
    assert shared > 0
    width = vlm.text_embeddings().shape[1]
    vector = np.random.default_rng(0).normal(size=width).astype("f4")
    own = Directions({("horizontal", 1): vector}, {("horizontal", 1): vector}, (), ())
    found = measure(vlm, made, own, layers=[1], strengths=(1,), kinds=("toward",))
    place = int(spelt[0].spans[0].answer[shared]) - 1
    plain = vlm.forward(spelt[0]).logits[0, place]
    with intervene(vlm, steer=added(vector, 1, at=[place])):
        steered = vlm.forward(spelt[0]).logits[0, place]
    row = found[(found["pair"] == "p0") & (found["member"] == "original")].iloc[0]
    for logits, value in ((plain, row["unsteered"]), (steered, row["logit_difference"])):
        assert value == pytest.approx(float(logits[tokens[0][shared]] - logits[tokens[1][shared]]), abs=TOLERANCE)
    assert abs(row["change"]) > 1e-2
    same = [pair(9, "left", asked, ("left", "left "), picture(0))]
    with pytest.raises(PromptError, match="no token tells the answers"):
        measure(vlm, same, own, layers=[1])


def test_unsteered_differences_are_those_of_the_scores(vlm, estimated):
    tested = tiny_pairs(4, first=50)
    found = measure(vlm, tested, estimated, layers=[1], kinds=("toward",), strengths=(1,)).set_index(["pair", "member"])
    for one in tested:
        for name, member in zip(MEMBERS, one.members, strict=True):
            scores = score(vlm, [member]).set_index("choice")["logprob"]
            opposite = next(word for word in member.choices if word != member.answer)
            expected = scores[member.answer] - scores[opposite]
            assert found.loc[(one.id, name), "unsteered"] == pytest.approx(expected, abs=TOLERANCE)


# --- the answer is known ---

SAID = {"horizontal": ("red", "blue"), "vertical": ("green", "yellow")}


def wired_pairs(n, first=0):
    """Which of two colours a patch has, where others ask on which side a thing is: of one picture, by two questions."""
    rng = np.random.default_rng(first)
    made = []
    for i in range(first, first + n):
        group = list(SAID)[i % 2]
        answers = SAID[group][:: 1 if (i // 2) % 2 else -1]
        colours = [str(one) for one in rng.choice([one for one in wired.COLOURS if one not in answers], wired.CELLS)]
        places = rng.choice(wired.CELLS, 2, replace=False)
        for place, colour in zip(places, answers, strict=True):
            colours[place] = colour
        category = GROUPS[group][SAID[group].index(answers[0])]
        asked = [f"what color is at {wired.PLACES[place]} ?" for place in places]
        made.append(pair(i, category, asked, answers, wired._picture(colours, rng)))
    return made


@pytest.mark.parametrize("kind", [wired.LM_POSITIONS, wired.TOWER_POSITIONS])
def test_in_a_wired_model_the_direction_decides_from_the_layer_where_the_answer_is_written(kind):
    """Of 24 pairs tested: toward flips all at strength 1 and none at .45, removing leaves no preference, and random directions
    and those of the other group flip none. Before that layer, where only what is asked differs, toward does no more than against.
    """
    vlm, plan = wired.wired(kind)
    train, test = split(wired_pairs(48), seed=1)
    found = measure(vlm, test, directions(states_of(vlm, train)), layers=[1, 2, 3], strengths=(0.45, 1, 2))
    assert (found["unsteered"] > 0).all()
    rates = found.groupby(["layer", "kind", "strength"])["flipped"].mean()
    for layer in range(1, plan.reading + 1):
        assert rates[layer, "toward", 1] < 0.2
        assert abs(rates[layer, "toward", 1] - rates[layer, "against", 1]) < 0.1
    for layer in range(plan.reading + 1, 4):
        assert rates[layer, "toward"].to_dict() == {0.45: 0, 1: 1, 2: 1}
        for control in ("against", "random", "other_group"):
            assert rates[layer, control].max() == 0
    after = found[found["layer"] > plan.reading]
    whole = after["unsteered"].mean()
    gone = after[after["kind"] == "remove"]["logit_difference"]
    assert gone.abs().max() < 0.1 * whole
    turned = after[(after["kind"] == "toward") & (after["strength"] == 1)]
    assert np.allclose(turned["logit_difference"], -turned["unsteered"], atol=0.2 * whole)
    summary = summarise(found, n=200).set_index(["layer", "group", "kind", "strength", "measure"])
    top = summary.loc[(3, "vertical", "toward", 1.0, "flip_rate")]
    assert top["estimate"] == top["high"] == 1 and top["low"] < 1
    assert top["n"] == 2 * top["clusters"] == 2 * sum(one.group == "vertical" for one in test)


@pytest.mark.skipif(not (paths.lab_folder() / "lab-llava" / "config.json").is_file(), reason="lab-llava has not been trained yet")
def test_in_the_lab_model_the_last_layers_direction_flips_answers_and_random_ones_do_not():
    vlm = VLM.load("lab-llava")
    train, test = split(lab_pairs(12, 7_000_001), seed=0)
    estimated = directions(states_of(vlm, train))
    last = vlm.n_layers
    found = measure(vlm, test, estimated, layers=[1, last], strengths=(1,))
    right = found[found["flipped"].notna()]
    assert len(right) > 0.9 * len(found)
    rates = right.groupby(["layer", "kind"])["flipped"].mean()
    assert rates[last, "toward"] > 0.9 and rates[1, "toward"] < 0.1
    assert max(rates[last, kind] for kind in ("against", "random")) < 0.1
    gone = found[(found["layer"] == last) & (found["kind"] == "remove")]
    assert gone["logit_difference"].abs().mean() < 0.25 * gone["unsteered"].abs().mean()
    one = test[0].original
    batch, ids = asked(vlm, one, test[0].swapped.answer)
    sign = SIGN[one.answer]
    with intervene(vlm, steer=added(sign * estimated[test[0].group, last], last)):
        row = found[(found["pair"] == test[0].id) & (found["layer"] == last) & (found["kind"] == "toward")].iloc[0]
        assert row["logit_difference"] == pytest.approx(difference(vlm, batch, ids), abs=TOLERANCE)


# --- summaries ---


def table(unsteered, difference, clusters, kind="toward"):
    made = pd.DataFrame({"unsteered": unsteered, "logit_difference": difference, "cluster": clusters})
    made["change"] = made["logit_difference"] - made["unsteered"]
    made["flipped"] = (made["logit_difference"] < 0).astype("boolean").mask(made["unsteered"] <= 0)
    return made.assign(layer=1, group="horizontal", kind=kind, strength=1.0)


def test_flip_rates_count_only_what_was_right_before():
    got = summarise(table([2, 1, 3, -1, 0], [-1, 1, -2, -5, -1], list("aabbc")), n=200).set_index("measure")
    assert list(got.columns) == ["layer", "group", "kind", "strength", "estimate", "low", "high", "n", "clusters"]
    assert got.loc["flip_rate", ["estimate", "n", "clusters"]].tolist() == [pytest.approx(2 / 3), 3, 2]
    assert got.loc["change", ["estimate", "n", "clusters"]].tolist() == [pytest.approx((-3 + 0 - 5 - 4 - 1) / 5), 5, 3]
    assert (got["low"] <= got["estimate"]).all() and (got["estimate"] <= got["high"]).all()
    assert 0 <= got.loc["flip_rate", "low"] < got.loc["flip_rate", "high"] <= 1


def test_summaries_of_too_little_say_so():
    none_right = summarise(table([-1, -2], [-1, -3], ["a", "b"]), n=200).set_index("measure").loc["flip_rate"]
    assert np.isnan(none_right["estimate"]) and none_right["n"] == 0
    one = summarise(table([1, 2], [-1, 3], ["a", "a"]), n=200).set_index("measure").loc["flip_rate"]
    assert one["estimate"] == 0.5 and np.isnan(one["low"]) and np.isnan(one["high"]) and one["clusters"] == 1


# --- what is refused ---


def spoilt(estimated, key, value):
    made = Directions(estimated, estimated.centres, estimated.pairs, estimated.clusters)
    made[key] = np.full_like(made[key], value)
    return made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [9]}, "layer 9 is not among those of the directions: 0, 1, 2, 3"),
        ({"layers": ["norm"]}, "layer 'norm' is not among"),
        ({"layers": [0]}, "direction of (horizontal|vertical) at layer 0 is zero"),
        ({"layers": []}, "nothing is left"),
        ({"strengths": (1, float("nan"))}, "strength nan"),
        ({"strengths": (float("inf"),)}, "strength inf"),
        ({"strengths": (-1,)}, "strength -1"),
        ({"strengths": (), "kinds": ("toward",)}, "nothing is left"),
        ({"kinds": ("sideways",)}, "kind 'sideways' is unknown; toward, against"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_bad_options_are_refused_with_what_would_be_legal(vlm, estimated, options, message):
    with pytest.raises(ValueError, match=message):
        measure(vlm, tiny_pairs(2, first=60), estimated, **options)


def test_bad_pairs_and_directions_are_refused(vlm, estimated):
    tested = tiny_pairs(2, first=60)
    with pytest.raises(ValueError, match="no pairs"):
        measure(vlm, [], estimated)
    with pytest.raises(ValueError, match="'p1' or its picture 'picture-1' was used for the directions"):
        measure(vlm, [*tested, tiny_pairs(2)[1]], estimated)
    with pytest.raises(ValueError, match="its picture 'picture-3' was used"):
        measure(vlm, [replace_cluster(tested[0], "picture-3")], estimated)
    with pytest.raises(ValueError, match="two pairs have the id 'p60'"):
        measure(vlm, [*tested, tested[0]], estimated)
    with pytest.raises(ValueError, match="no direction of distance at layer 0"):
        measure(vlm, tiny_pairs(1, first=60, groups=("distance",)), estimated)
    with pytest.raises(ValueError, match="both members are answered 'left'"):
        measure(vlm, [pair(70, "left", ["is it left ?"] * 2, ("left", "left"), picture(0))], estimated)
    with pytest.raises(ValueError, match="which know what they were estimated from"):
        measure(vlm, tested, dict(estimated))
    for value, what in ((np.nan, "holds NaN"), (np.inf, "holds NaN or inf"), (0, "is zero")):
        for group in ("horizontal", "vertical"):  # the other group's too: it is a control
            with pytest.raises(ValueError, match=f"direction of {group} at layer 2 {what}"):
                measure(vlm, tested[:1], spoilt(estimated, (group, 2), value), layers=[2])
    with pytest.raises(ValueError, match="open a mapping from cluster"), intervene(vlm, steer=added(torch.ones(4, 64), 1)):
        measure(vlm, tested, estimated)


def test_of_one_group_alone_there_is_no_other(vlm):
    own = directions(states_of(vlm, tiny_pairs(4, groups=("horizontal",))))
    found = measure(vlm, tiny_pairs(2, first=60, groups=("horizontal",)), own, layers=[1], strengths=(1,))
    assert set(found["kind"]) == set(KINDS) - {"other_group"} and found.attrs["left_out"] == ["other_group"]
    with pytest.raises(ValueError, match="nothing is left"):
        measure(vlm, tiny_pairs(2, first=60, groups=("horizontal",)), own, layers=[1], kinds=("other_group",))
