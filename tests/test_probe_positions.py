"""The positions probe: its answers equal those to embeddings and position ids moved by hand; in the lab, columns and rows follow
the ids."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import examples

from spatialprobes import plots
from spatialprobes.answers import answer
from spatialprobes.intervene import Carried, intervene
from spatialprobes.parsing import plain
from spatialprobes.probes import positions
from spatialprobes.vlm import VLM
from spatialprobes.worlds.lab_questions import examples as lab_examples


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture(scope="module")
def asked(vlm):
    """Open questions, whose whole text is the answer; it is right in place."""
    free = [dataclasses.replace(one, choices=None) for one in examples(6)]
    return [dataclasses.replace(one, answer=text) for one, text in zip(free, answer(vlm, free)["answer"], strict=True)]


def by_hand(vlm, example, order, ids):
    """The greedy answer with the picture's embeddings in this order and its position ids edited."""
    batch = vlm.encode([example])
    at = batch.spans[0].vision
    embeds = vlm.model.get_input_embeddings()(batch.input_ids).clone()
    embeds[0, at] = vlm.vision_features([example])[0][order]
    places = batch.inputs["position_ids"].float().clone()
    places[0, at] = ids(places[0, at])
    made = vlm.model.generate(
        inputs_embeds=embeds, attention_mask=batch.attention_mask, position_ids=places, max_new_tokens=8, do_sample=False
    )
    return plain(vlm.decode(made)[0])


def test_answers_equal_those_to_tokens_and_ids_moved_by_hand(vlm, asked, monkeypatch):
    opened = []

    def spy(vlm, **moves):
        opened.append(moves)
        return intervene(vlm, **moves)

    monkeypatch.setattr(positions, "intervene", spy)
    frame = positions.measure(vlm, asked, shifts=(7.0, -0.5), draws=2, seed=5)
    names = [*positions.DRAWN] * 2 + ["one id for all", "ids shifted by +7", "ids shifted by -0.5"]
    blocks = [frame.iloc[i : i + len(asked)] for i in range(0, len(frame), len(asked))]
    assert [block["condition"].iloc[0] for block in blocks] == ["in place", *names]
    assert blocks[0]["correct"].all() and not all(block["correct"].all() for block in blocks[1:])
    still = torch.arange(36)
    for block, moves, name in zip(blocks[1:], opened, names, strict=True):
        for example, given in zip(asked, block["answer"].fillna(""), strict=True):
            order = torch.as_tensor(moves["permute"][example.cluster]) if "permute" in moves else still
            if isinstance(moved := moves.get("positions"), Carried):
                steps = moved.permutations[example.cluster]
                ids = lambda at, steps=steps: at[steps]  # noqa: E731
            else:
                ids = {
                    "one id for all": lambda at: at.mean(),
                    "one id for all, tokens shuffled": lambda at: at.mean(),
                    "ids shifted by +7": lambda at: at + 7,
                    "ids shifted by -0.5": lambda at: at - 0.5,
                }.get(name, lambda at: at)
            assert given == by_hand(vlm, example, order, ids), name


def test_together_carries_the_ids_of_the_very_permutation_and_draws_differ(vlm, asked, monkeypatch):
    opened = []
    monkeypatch.setattr(positions, "intervene", lambda vlm, **moves: opened.append(moves) or intervene(vlm, **moves))
    positions.measure(vlm, asked, shifts=(), draws=2, seed=1)
    together = [moves for moves in opened if isinstance(moves.get("positions"), Carried) and "permute" in moves]
    for moves in together:
        for picture, order in moves["permute"].items():
            assert moves["positions"].permutations[picture].tolist() == order.tolist()
    first, second = (moves["permute"] for moves in together)
    orders = [tuple(order) for moves in (first, second) for order in moves.values()]
    assert len(set(orders)) == len(orders)  # no picture and no draw shares one


def test_columns_and_rows_of_the_lab_follow_the_position_ids():
    vlm = VLM.load("lab-llava")
    asked = lab_examples(40, 7_100_000, ["bin.column", "bin.row"], perspective=0.0)
    frame = positions.measure(vlm, asked, conditions=(), shifts=(1.0, 6.0)).set_index("id")
    cells = frame[["expected", "answer"]].astype(int)
    told = (cells["answer"] - cells["expected"]).where(cells["expected"] < 5).dropna()  # the last has no next
    for condition, group, moved in (
        ("in place", "bin.column", 0),
        ("in place", "bin.row", 0),
        ("ids shifted by +1", "bin.column", 1),
        ("ids shifted by +6", "bin.column", 0),
        ("ids shifted by +6", "bin.row", 1),
    ):
        chosen = frame["condition"].eq(condition) & frame["group"].eq(group) & frame["expected"].ne("5")
        assert (told[chosen[frame["expected"].ne("5")]] == moved).mean() > 0.85, (condition, group)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": ["shuffled"]}, "condition 'shuffled' is unknown"),
        ({"draws": 0}, "draws is 0"),
        ({"shifts": [float("nan")]}, "nan"),
        ({"shifts": [(1.0, "height")]}, "height"),
        ({"shifts": [1.0, 1.0000001]}, "two of them have one name"),
        ({"seed": -1}, "seed"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(vlm, asked, options, message):
    with pytest.raises(ValueError, match=message):
        positions.measure(vlm, asked, **options)


def test_no_examples(vlm):
    with pytest.raises(ValueError, match="no examples"):
        positions.measure(vlm, [])


def test_drop_is_the_difference_of_paired_accuracies(vlm, asked):
    frame = positions.measure(vlm, asked, shifts=(), draws=2)
    by = frame.groupby("condition")["correct"].mean()
    for condition in positions.CONDITIONS:
        found = positions.drop(frame, condition)
        assert found.estimate == pytest.approx(by["in place"] - by[condition])
        assert found.low <= found.estimate <= found.high and found.n == len(asked)
    with pytest.raises(ValueError, match="'shuffled' is not in the table; there: in place, tokens shuffled"):
        positions.drop(frame, "shuffled")


def test_the_figure_shows_every_cell_once_and_what_was_not_asked_stays_empty():
    rows = [("bin.row", "in place", 0.9), ("bin.row", "ids shuffled", 0.2), ("semantic.color", "in place", 1.0)]
    frame = pd.DataFrame(rows, columns=["group", "condition", "accuracy"])
    frame = frame.assign(kind="spatial", low=0.1, high=1.0, chance=[1 / 6, 1 / 6, np.nan], n=20)
    figure = plots.draw("positions.accuracy", frame, {})
    cells = figure.axes[0].images[0].get_array()
    assert cells.filled(-1).round(2).tolist() == [[0.9, 0.2, 0.17], [1.0, -1, -1]]
    assert [text.get_text() for text in figure.axes[0].texts].count("0.90") == 1
    with pytest.raises(ValueError, match=r"'bin.row' under 'in place' stands twice"):
        plots.draw("positions.accuracy", pd.concat([frame, frame[:1]]), {})
