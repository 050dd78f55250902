"""The permutation probe: its answers equal those to embeddings shuffled by hand, its numbers their closed forms."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import examples, picture

from spatialprobes import paths, plots
from spatialprobes.answers import answer
from spatialprobes.examples import Object
from spatialprobes.parsing import plain
from spatialprobes.probes import permutation
from spatialprobes.tables import save_table
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_questions import examples as lab_examples

LAB = "lab-llava-vanilla"


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture(scope="module")
def asked(vlm):
    """Open questions, whose whole text is the answer; half of them are right in place."""
    free = [dataclasses.replace(one, choices=None) for one in examples(12)]
    given = answer(vlm, free)["answer"]
    return [dataclasses.replace(one, answer=given[i] if i % 2 else "nothing") for i, one in enumerate(free)]


@pytest.fixture
def entered(monkeypatch):
    """A list of {example id: features that enter the language model}, one for each time that the probe asks."""
    seen = []

    def spy(vlm, asked, **options):
        features = vlm.vision_features(asked)
        seen.append({one.id: tokens for one, tokens in zip(asked, features, strict=True)})
        return answer(vlm, asked, **options)

    monkeypatch.setattr(permutation, "answer", spy)
    return seen


def drawn(entered):
    """The permutation that each example was asked under, for each draw, read off the features that entered."""
    in_place, *permuted = entered
    found = []
    for features in permuted:
        found.append({})
        for id, tokens in features.items():
            order = torch.cdist(tokens.double(), in_place[id].double()).argmin(-1)
            assert torch.equal(in_place[id][order], tokens)  # the same vectors, none changed
            found[-1][id] = order.tolist()
    return found


def embedded(vlm, one, order, answers=False):
    """Inputs of one example alone whose picture's embeddings stand in this order, from embedding table and connector."""
    batch = vlm.encode([one], answers=answers)
    vision = batch.input_ids[0] == vlm.model.config.image_token_id
    embeddings = vlm.model.get_input_embeddings()(batch.input_ids).clone()
    features = vlm.model.get_image_features(pixel_values=batch.inputs["pixel_values"]).pooler_output[0]
    for place, source in zip(vision.nonzero()[:, 0].tolist(), order, strict=True):
        embeddings[0, place] = features[source]
    return batch, embeddings


@torch.no_grad()
def text_by_hand(vlm, one, order, max_new_tokens):
    """Greedy words, the whole sequence run anew for each."""
    _, embeddings = embedded(vlm, one, order)
    tokens = []
    for _ in range(max_new_tokens):
        tokens.append(int(vlm.model(inputs_embeds=embeddings).logits[0, -1].argmax()))
        if tokens[-1] == vlm.tokenizer.eos_token_id:
            break
        embeddings = torch.cat([embeddings, vlm.model.get_input_embeddings()(torch.tensor([tokens[-1:]]))], dim=1)
    return plain(vlm.tokenizer.decode(tokens, skip_special_tokens=True)) or None


@torch.no_grad()
def choice_by_hand(vlm, one, order):
    """The choice of greatest mean log-probability per token."""
    scores = {}
    for choice in one.choices:
        batch, embeddings = embedded(vlm, dataclasses.replace(one, answer=choice), order, answers=True)
        logprobs = vlm.model(inputs_embeds=embeddings).logits[0].log_softmax(-1)
        at = batch.spans[0].answer
        scores[choice] = float(logprobs[at - 1, batch.input_ids[0, at]].mean())
    return max(scores, key=scores.get)


def test_the_identity_drops_exactly_nothing(vlm, asked, monkeypatch):
    shuffled = permutation.measure(vlm, asked, draws=2)
    assert permutation.drop(shuffled).estimate > 0  # else that of the identity would say nothing
    monkeypatch.setattr(permutation, "random_permutations", lambda n, count, seed=0: torch.arange(n).expand(count, -1))
    frame = permutation.measure(vlm, asked, draws=2)
    answers = frame.pivot(index="id", columns="draw", values="answer")
    assert (answers[0] == answers[-1]).all() and (answers[1] == answers[-1]).all()
    assert permutation.drop(frame).estimate == 0.0
    none = permutation.psi(frame)
    assert none.estimate == 0.0 and none.low < 0 < none.high


def test_answers_equal_permuting_embeddings_by_hand(vlm, asked, entered):
    frame = permutation.measure(vlm, asked, draws=3, max_new_tokens=3, seed=4).set_index(["draw", "id"])
    by_hand, in_place = {}, {}
    for draw, orders in enumerate(drawn(entered)):
        for one in asked[::5]:
            by_hand[draw, one.id] = text_by_hand(vlm, one, orders[one.id], 3)
            in_place[draw, one.id] = text_by_hand(vlm, one, range(36), 3)
            assert frame.loc[(draw, one.id), "answer"] == by_hand[draw, one.id]
            assert frame.loc[(-1, one.id), "answer"] == in_place[draw, one.id]
    assert by_hand != in_place


def test_choices_equal_permuting_embeddings_by_hand(vlm, entered):
    asked = [dataclasses.replace(one, choices=["and", "blue", "and blue"]) for one in examples(6)]
    frame = permutation.measure(vlm, asked, draws=3, by="score").set_index(["draw", "id"])
    for draw, orders in enumerate(drawn(entered)):
        for one in asked[1:3]:
            assert frame.loc[(draw, one.id), "answer"] == choice_by_hand(vlm, one, orders[one.id])
    assert frame["answer"].groupby("id").nunique().max() > 1  # the permutation matters


@pytest.mark.skipif(not (paths.lab_folder() / LAB / "config.json").is_file(), reason=f"{LAB} has not been trained yet")
def test_answers_of_a_trained_model_equal_permuting_embeddings_by_hand(entered):
    vlm = VLM.load(LAB)
    asked = lab_examples(4, 11, ["semantic.color", "relation.horizontal"])
    frame = permutation.measure(vlm, asked, draws=2).set_index(["draw", "id"])
    for draw, orders in enumerate(drawn(entered)):
        for one in asked[::3]:
            assert frame.loc[(draw, one.id), "answer"] == text_by_hand(vlm, one, orders[one.id], 4)


def test_every_picture_has_one_permutation_in_every_draw(vlm, asked, entered):
    frame = permutation.measure(vlm, asked, draws=3, batch_size=5)
    orders = drawn(entered)
    assert len(orders) == 3
    of_pictures = []
    for draw in orders:
        by_picture = {}
        for one in asked:
            by_picture.setdefault(one.cluster, set()).add(tuple(draw[one.id]))
        assert [len(found) for found in by_picture.values()] == [1, 1, 1]
        of_pictures += [order for found in by_picture.values() for order in found]
    assert len(set(of_pictures)) == 9
    assert all(sorted(order) == list(range(36)) != list(order) for order in of_pictures)
    assert frame.groupby(["condition", "draw"]).size().to_dict() == {
        ("original", -1): 12,
        **{("permuted", draw): 12 for draw in range(3)},
    }
    again = [dataclasses.replace(one, id=f"{one.id} again") for one in asked]
    twice = permutation.measure(vlm, [*asked, *again], draws=1)
    answers = twice[twice["draw"] == 0].set_index("id")["answer"]
    assert all(answers[one.id] == answers[f"{one.id} again"] for one in asked)


def test_questions_without_a_cluster_are_clusters_of_their_own(vlm, asked, entered):
    alone = [dataclasses.replace(one, cluster="") for one in asked]
    frame = permutation.measure(vlm, alone, draws=1)
    (orders,) = drawn(entered)
    assert len({tuple(order) for order in orders.values()}) == 12
    assert (frame["cluster"] == frame["id"]).all()
    assert permutation.drop(frame).clusters == 12


def test_the_seed_decides_the_table_byte_for_byte(vlm, asked, entered, tmp_path):
    files, orders = [], []
    for i, seed in enumerate((3, 3, 4)):
        torch.manual_seed(i)
        state = torch.get_rng_state()
        frame = permutation.measure(vlm, asked, draws=2, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        files.append(save_table(frame, tmp_path / f"{i}.parquet", {"seed": 3}).read_bytes())
        orders.append(drawn(entered))
        entered.clear()
    assert files[0] == files[1] != files[2]
    assert orders[0] == orders[1]
    one, other = ({tuple(order) for draw in found for order in draw.values()} for found in orders[1:])
    assert len(one) == len(other) == 6 and not one & other


def test_batching_changes_nothing(vlm, asked):
    small, large = (permutation.measure(vlm, asked, draws=2, batch_size=size) for size in (5, 64))
    pd.testing.assert_frame_equal(small, large)


def test_columns_and_the_share_that_could_not_be_read(vlm):
    asked = examples(8)
    asked[0] = dataclasses.replace(asked[0], group="relation.horizontal")
    asked[1] = dataclasses.replace(asked[1], meta={"kind": "spatial"})
    frame = permutation.measure(vlm, asked, draws=2)
    columns = ["id", "group", "category", "kind", "cluster", "expected", "answer", "correct", "parsed", "condition", "draw"]
    assert list(frame.columns) == [*columns, "permutation", "moved"]
    assert frame["permutation"].tolist() == ["in place"] * 8 + ["full"] * 16
    assert (frame["moved"] > 0).tolist() == [False] * 8 + [True] * 16
    assert frame["kind"].tolist()[:3] == ["relation", "spatial", "relation"]
    assert frame.attrs == {"unparsed": frame["answer"].isna().mean()}
    assert 0 < frame.attrs["unparsed"] < 1


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 10**6))
def test_permutations_fit_pictures_of_any_lengths(lengths, seed):
    found = permutation._permutations(lengths, seed)
    assert [sorted(order.tolist()) for order in found] == [list(range(n)) for n in lengths]
    assert all(torch.equal(a, b) for a, b in zip(found, permutation._permutations(lengths, seed), strict=True))
    if max(lengths) > 15:  # of shorter ones two seeds may well draw the same
        other = permutation._permutations(lengths, seed + 1)
        assert any(not torch.equal(a, b) for a, b in zip(found, other, strict=True))
    long = [tuple(order.tolist()) for order in found if len(order) > 15]
    assert len(set(long)) == len(long)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda asked: asked, {"draws": 0}, "draws is 0"),
        (lambda asked: asked, {"draws": -2}, "draws is -2"),
        (lambda asked: asked, {"seed": -1}, "seed=-1"),
        (lambda asked: [], {}, "no examples"),
        (lambda asked: [asked[0], dataclasses.replace(asked[1], image=None)], {}, "the picture of e1"),
        (lambda asked: [asked[0], dataclasses.replace(asked[1], question="")], {}, "'e1'"),
        (lambda asked: [asked[0], asked[0]], {}, "two examples have the id 'e0'"),
        (lambda asked: asked, {"by": "guess"}, "by='guess'"),
    ],
)
def test_bad_input_is_refused(vlm, asked, change, options, message):
    with pytest.raises(ValueError, match=message):
        permutation.measure(vlm, change(asked), **options)


# Structured permutations


STRUCTURED = ["full", "rows", "columns", "flip_left_right", "rotate180", "blocks:3", "within_blocks:2", "within_radius:1.5"]


def with_objects(asked):
    """One object in the upper left quarter, one in the lower right, in every picture; the tiny models see 6 x 6 cells."""
    mask = np.zeros((6, 6), bool)
    mask[0, :2] = True
    things = [
        Object("square", (0.25, 0.25), (0.0, 0.0, 0.5, 0.5)),
        Object("circle", (0.75, 0.75), (0.6, 0.6, 0.8, 0.99), mask=mask),  # the mask is believed, not the box
    ]
    return [dataclasses.replace(one, objects=things) for one in asked]


def test_each_name_moves_what_it_says_and_says_how_far(vlm, asked, entered):
    frame = permutation.measure(vlm, asked, permutations=STRUCTURED, draws=2, seed=5)
    row, column = (each.ravel() for each in np.indices((6, 6)))
    keeps = {
        "rows": lambda o: (column[o] == column).all() and (row[o].reshape(6, 6).std(1) == 0).all(),
        "columns": lambda o: (row[o] == row).all() and (column[o].reshape(6, 6).std(0) == 0).all(),
        "flip_left_right": lambda o: (row[o] == row).all() and (column[o] == 5 - column).all(),
        "rotate180": lambda o: (o == 35 - np.arange(36)).all(),
        "blocks:3": lambda o: (row[o] % 3 == row % 3).all() and (column[o] % 3 == column % 3).all(),
        "within_blocks:2": lambda o: (row[o] // 2 == row // 2).all() and (column[o] // 2 == column // 2).all(),
        "within_radius:1.5": lambda o: np.hypot(row[o] - row, column[o] - column).max() <= 1.5,
    }
    named = frame[frame["condition"] == "permuted"].drop_duplicates(["permutation", "draw"])[["permutation", "draw"]]
    expected = [(name, draw) for name in STRUCTURED for draw in range(1 if name in ("flip_left_right", "rotate180") else 2)]
    assert named.apply(tuple, axis=1).tolist() == expected
    for (name, draw), orders in zip(expected, drawn(entered), strict=True):
        rows = frame[(frame["permutation"] == name) & (frame["draw"] == draw)].set_index("id")
        for one in asked:
            order = np.array(orders[one.id])
            assert keeps.get(name, lambda o: True)(order) and (order != np.arange(36)).any(), name
            assert rows.loc[one.id, "moved"] == pytest.approx(np.hypot(row[order] - row, column[order] - column).mean())
    by_draw = frame[frame["permutation"] == "rows"].groupby("draw")["moved"].mean()
    assert by_draw[0] != by_draw[1]


def test_questions_about_one_picture_share_it_and_pictures_do_not(vlm, asked, entered):
    permutation.measure(vlm, asked, permutations=["rows", "within_radius:2"], draws=2)
    for orders in drawn(entered):
        by_cluster = {}
        for one in asked:
            by_cluster.setdefault(one.cluster, set()).add(tuple(orders[one.id]))
        assert all(len(found) == 1 for found in by_cluster.values())
        assert len(set.union(*by_cluster.values())) == len(by_cluster)


def test_a_permutation_depends_on_nothing_else_that_is_asked(vlm, asked, entered):
    permutation.measure(vlm, asked, permutations=["rows"], draws=1, seed=2)
    (alone,) = drawn(entered)
    entered.clear()
    permutation.measure(vlm, asked[::-1][:5], permutations=["columns", "full", "rows"], draws=1, seed=2)
    _, _, again = drawn(entered)
    assert all(again[one.id] == alone[one.id] for one in asked[::-1][:5])
    entered.clear()
    permutation.measure(vlm, asked, permutations=["rows"], draws=1, seed=3)
    assert drawn(entered) != [alone]


def test_only_the_cells_of_objects_move(vlm, asked, entered):
    frame = permutation.measure(vlm, with_objects(asked), permutations=["objects", "background", "object:0", "object:1"], draws=2)
    square = np.zeros((6, 6), bool)
    square[:3, :3] = True
    circle = np.zeros((6, 6), bool)
    circle[0, :2] = True
    cells = {"objects": square | circle, "background": ~(square | circle), "object:0": square, "object:1": circle}
    moved = {name: set() for name in cells}
    for place, orders in enumerate(drawn(entered)):
        name = list(cells)[place // 2]
        for order in orders.values():
            moved[name] |= set(np.flatnonzero(np.array(order) != np.arange(36)))
    assert all(moved[name] == set(np.flatnonzero(cells[name])) for name in cells)
    means = frame.groupby("permutation")["moved"].mean()
    assert means["object:1"] <= 2 / 36 and means["background"] > means["objects"] > means["object:1"]


def test_a_picture_that_is_cropped_uses_boxes_not_masks(tiny_llava, entered):
    """Of a picture twice as wide as high the middle is seen: a mask of the whole picture's cells would name others."""
    vlm = VLM.load(str(tiny_llava), image_fit="crop")
    mask = np.ones((6, 6), bool)
    thing = Object("square", (0.5, 0.5), (0.25, 0.0, 0.5, 1.0), mask=mask)  # the left half of what is seen
    wide = [dataclasses.replace(one, image=picture(3, (96, 48)), cluster="", objects=[thing]) for one in examples(4)]
    permutation.measure(vlm, wide, permutations=["objects"], draws=3)
    moved = {place for orders in drawn(entered) for order in orders.values() for place in range(36) if order[place] != place}
    assert moved == {6 * row + column for row in range(6) for column in range(3)}


def test_a_function_of_ones_own(vlm, asked, entered):
    """It gets grid, generator and example, and decides alone, whatever it is called."""
    seen = []

    def swapped(grid, generator, example):
        seen.append((grid, example.cluster, generator.random()))
        order = list(range(36))
        order[0], order[35] = 35, 0
        return order

    frame = permutation.measure(vlm, asked, permutations={"full": swapped}, draws=2)
    assert all(order == [35, *range(1, 35), 0] for orders in drawn(entered) for order in orders.values())
    assert frame.loc[frame["permutation"] == "full", "moved"].tolist() == pytest.approx([2 * 50**0.5 / 36] * 24)
    assert {(grid, cluster) for grid, cluster, _ in seen} == {((6, 6), f"picture-{i}") for i in range(3)}
    assert len({number for _, _, number in seen}) == len(seen) == 6


def test_every_family_with_a_grid_permutes_on_it(tiny_family):
    vlm = VLM.load(str(tiny_family))
    asked = examples(3)
    grids = [spans.grid for spans in vlm.encode(asked).spans]
    if None in grids:
        with pytest.raises(ValueError, match=r"'rows' needs a grid.*'e0'.*use 'full'"):
            permutation.measure(vlm, asked, permutations=["rows"], draws=1)
        frame = permutation.measure(vlm, asked, draws=1, max_new_tokens=2)
        assert frame.loc[frame["condition"] == "permuted", "moved"].isna().all()
    else:
        frame = permutation.measure(vlm, asked, permutations=["full", "rotate180"], draws=1, max_new_tokens=2)
        height, width = grids[0]
        row, column = np.indices((height, width))
        expected = np.hypot(2 * row - height + 1, 2 * column - width + 1).mean()
        assert frame.loc[frame["permutation"] == "rotate180", "moved"].tolist() == pytest.approx([expected] * 3)


@pytest.mark.parametrize(
    ("permutations", "message"),
    [
        ([], "no permutations"),
        ("full", "one name; give a sequence"),
        (["rowz"], "unknown permutation 'rowz'; nearest: 'rows'"),
        (["object"], "unknown permutation 'object'; nearest: 'object"),
        (["objcts"], "nearest: 'objects'"),
        (["blocks:1"], "k=1: blocks of one cell are the full shuffle"),
        ((5,), "permutation 5 is no name"),
        (["blocks:6"], "k=6 leaves no two blocks of one shape in a grid of 6 x 6"),
        (["objects"], "'objects': example 'e0' has 0 objects"),
        ({"mine": lambda grid, generator, example: range(35)}, "'mine' gave example 'e0' no permutation of its 36 tokens"),
        ({"mine": lambda grid, generator, example: [0] * 36}, "no permutation of its 36 tokens"),
        ({"mine": lambda grid, generator, example: np.arange(36.0)}, "no permutation of its 36 tokens"),
    ],
)
def test_permutations_that_mean_nothing_are_refused_before_anything_is_asked(vlm, asked, entered, permutations, message):
    with pytest.raises(ValueError, match=message):
        permutation.measure(vlm, asked, permutations=permutations)
    assert not entered


def test_an_object_that_is_not_there_is_named(vlm, asked):
    with pytest.raises(ValueError, match="'object:2': example 'e0' has 2 objects"):
        permutation.measure(vlm, with_objects(asked), permutations=["object:2"])


def test_summary_and_figure_have_a_row_for_each_permutation(vlm, asked):
    frame = permutation.measure(vlm, asked, permutations=["full", "rotate180"], draws=2)
    rows = permutation.summary(frame, {})
    assert len(rows) == 6 and set(zip(rows["group"], rows["permutation"], strict=True)) == {
        (group, name) for group in ("semantic", "relation") for name in ("in place", "full", "rotate180")
    }
    figure = plots.draw("permutation.accuracy", rows, {})
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["original", "full", "rotate180"]
    index = permutation.psi_table(frame)
    assert index["permutation"].tolist() == ["full", "rotate180"] * 2 and not (index["n"] != 6).any()
    assert plots.draw("permutation.psi", index, {}).axes
    assert plots.draw("permutation.psi_by_distance", permutation.psi_by_distance(frame), {}).axes


# Numbers, from tables made by hand


def table(original, permuted, clusters=None, group="spatial.x"):
    """original: right or wrong, [question]; permuted: [draw, question]; clusters: [question], by default each its own."""
    original, permuted = np.asarray(original, bool), np.atleast_2d(np.asarray(permuted, bool))
    ids = [f"{group}-q{i}" for i in range(len(original))]
    labels = ids if clusters is None else [f"c{cluster}" for cluster in clusters]
    conditions = [("original", -1, original), *(("permuted", draw, correct) for draw, correct in enumerate(permuted))]
    rows = {"id": ids, "group": group, "kind": group.split(".")[0], "cluster": labels}
    return pd.concat(
        [pd.DataFrame({**rows, "condition": name, "draw": draw, "correct": correct}) for name, draw, correct in conditions],
        ignore_index=True,
    )


def test_psi_and_drop_are_their_closed_forms():
    original = [True] * 8 + [False] * 2  # 0.8
    permuted = [[True] * 4 + [False] * 6, [True] * 5 + [False] * 4 + [True], [False] * 5 + [True] * 5]  # 0.4, 0.6, 0.5
    frame = table(original, permuted)
    drop, psi = permutation.drop(frame), permutation.psi(frame)
    assert drop.estimate == pytest.approx(0.8 - 0.5)
    assert psi.estimate == pytest.approx((0.8 - 0.5) / 0.8)
    assert (drop.n, drop.clusters) == (psi.n, psi.clusters) == (10, 10)
    assert drop.low < drop.estimate < drop.high and psi.low < psi.estimate < psi.high


def test_conditions_are_paired():
    """Every picture loses the same: no resample of pictures can say otherwise, though each accuracy alone varies."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(200), 2)
    original = np.repeat(rng.random(200) < 0.5, 2)
    frame = table(original, [original & (np.arange(400) % 2 == 0)], clusters)
    drop, psi = permutation.drop(frame), permutation.psi(frame)
    unseen = 1 - 0.025 ** (1 / 200)
    right = original.mean()
    assert psi.estimate == pytest.approx(0.5)  # the draws all agree: what is left is what 200 pictures may have missed
    assert psi.low == pytest.approx(1 - ((1 - unseen) * right / 2 + unseen) / ((1 - unseen) * right))
    assert psi.high == pytest.approx(1 - (1 - unseen) * right / 2 / ((1 - unseen) * right + unseen))
    alone = permutation.summary(frame, {})
    assert (alone["high"] - alone["low"]).max() > 0.1
    full = table([True] * 400, [np.arange(400) % 2 == 0], clusters)
    assert permutation.drop(full)[:3] == pytest.approx((0.5, 0.5 - unseen * 1.5, 0.5 + unseen * 0.5))
    assert 0 < drop.low < drop.estimate < drop.high < 0.5


def test_intervals_cover_the_truth_and_are_no_wider_than_it_takes():
    rng = np.random.default_rng(1)
    truth = {"drop": 0.8 - 0.3, "psi": 0.5 / 0.8}
    clusters = np.repeat(np.arange(80), 3)
    found = {"drop": [], "psi": []}
    for repeat in range(80):
        easy = np.repeat(rng.uniform(-0.2, 0.2, 80), 3)  # questions about one picture go together
        original = rng.random(240) < 0.8 + easy
        permuted = rng.random((2, 240)) < 0.3 + easy
        frame = table(original, permuted, clusters)
        found["drop"].append(permutation.drop(frame, seed=repeat))
        found["psi"].append(permutation.psi(frame, seed=repeat))
    for name, intervals in found.items():
        covered = sum(one.low <= truth[name] <= one.high for one in intervals)
        assert covered >= 70  # 76 expected; fewer than 70 has a chance of .002
        spread = np.std([one.estimate for one in intervals])
        assert np.mean([one.high - one.low for one in intervals]) == pytest.approx(2 * 1.96 * spread, rel=0.25)


ANSWERS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n),
        st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1, max_size=3),
        st.lists(st.integers(0, 4), min_size=n, max_size=n),
    )
)


@settings(deadline=None, max_examples=40)
@given(answers=ANSWERS, seed=st.integers(0, 100))
def test_numbers_follow_the_answers_and_not_the_order_of_the_rows(answers, seed):
    original, permuted, clusters = answers
    assume(len(set(clusters)) > 1)
    frame = table(original, permuted, clusters)
    shuffled = frame.sample(frac=1, random_state=seed)
    drop = permutation.drop(frame, seed)
    assert drop.estimate == pytest.approx(np.mean(original) - np.mean(permuted))
    assert -1 <= drop.low <= drop.estimate <= drop.high <= 1
    assert permutation.drop(shuffled, seed) == pytest.approx(drop)
    rows = permutation.summary(frame, {}, seed).set_index("condition")
    again = permutation.summary(shuffled, {}, seed).set_index("condition").loc[rows.index]
    pd.testing.assert_frame_equal(rows, again)
    assert rows["accuracy"].to_dict() == pytest.approx({"original": np.mean(original), "permuted": np.mean(permuted)})
    if all(any(o for o, c in zip(original, clusters, strict=True) if c == cluster) for cluster in clusters):
        psi = permutation.psi(frame, seed)
        assert psi.estimate == pytest.approx(1 - np.mean(permuted) / np.mean(original))
        assert psi.low <= psi.estimate <= psi.high
        assert permutation.psi(shuffled, seed) == pytest.approx(psi)


def test_psi_refuses_what_has_no_ratio():
    with pytest.raises(ValueError, match="no answer is right"):
        permutation.psi(table([False] * 4, [[True] * 4]))
    with pytest.raises(ValueError, match="zero or changes sign"):  # some draws of pictures hold no right answer
        permutation.psi(table([True, False, False], [[False] * 3]))


def test_a_question_that_was_not_asked_permuted_is_refused():
    frame = table([True] * 4, [[True] * 4]).drop(index=7)
    for number in (permutation.drop, permutation.psi):
        with pytest.raises(ValueError, match="1 values that are NaN"):
            number(frame)


def test_summary_counts_questions_and_is_what_the_figure_draws():
    spatial = table([True] * 6 + [False] * 2, [[True] * 2 + [False] * 6, [True] * 4 + [False] * 4], np.arange(8) // 2)
    semantic = table([True] * 9 + [False], [[True] * 9 + [False]] * 2, group="semantic.colour")
    rows = permutation.summary(pd.concat([spatial, semantic], ignore_index=True), {"spatial.x": 0.25})
    assert list(rows.columns) == ["group", "kind", "condition", "permutation", "accuracy", "low", "high", "chance", "n"]
    assert rows[["group", "condition"]].apply(tuple, axis=1).tolist() == [
        (group, condition) for group in ("spatial.x", "semantic.colour") for condition in ("original", "permuted")
    ]
    assert rows["kind"].tolist() == ["spatial", "spatial", "semantic", "semantic"]
    assert rows["accuracy"].tolist() == pytest.approx([0.75, 0.375, 0.9, 0.9])
    assert rows["n"].tolist() == [8, 8, 10, 10]
    assert rows["chance"].tolist() == pytest.approx([0.25, 0.25, np.nan, np.nan], nan_ok=True)
    assert ((rows["low"] >= 0) & (rows["low"] <= rows["accuracy"]) & (rows["accuracy"] <= rows["high"])).all()
    figure = plots.draw("permutation.accuracy", rows, {})
    marks = {line.get_label(): sorted(line.get_xdata()) for line in figure.axes[0].get_lines()}
    assert marks["original"] == pytest.approx([0.75, 0.9]) and marks["permuted"] == pytest.approx([0.375, 0.9])
