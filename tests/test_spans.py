"""Spans: every token has one part, words are found by characters with all their sub-tokens, whatever the tokenizer."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import SYSTEM, examples

from spatialprobes.families import Frame
from spatialprobes.prompts import Prompt
from spatialprobes.spans import PARTS, find_spans
from spatialprobes.vlm import VLM


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


def words(vlm, batch, row, index):
    return vlm.tokenizer.convert_ids_to_tokens(batch.input_ids[row, index].tolist())


@pytest.mark.parametrize("system", ["default", None, "where is it"])
@pytest.mark.parametrize("answers", [False, True])
def test_parts_hold_every_real_token_once(vlm, system, answers):
    batch = vlm.encode(examples(5), system=system, answers=answers)
    for row, spans in enumerate(batch.spans):
        together = torch.cat(list(spans.parts().values())).sort().values
        assert torch.equal(together, batch.attention_mask[row].nonzero().flatten())
        assert spans.length == batch.input_ids.shape[1]


def test_parts_are_the_words_they_should_be(vlm):
    asked = examples(4)
    batch = vlm.encode(asked, answers=True)
    for row, (spans, one) in enumerate(zip(batch.spans, asked, strict=True)):
        assert words(vlm, batch, row, spans.bos) == ["<s>"]
        assert words(vlm, batch, row, spans.system) == SYSTEM.split()
        assert words(vlm, batch, row, spans.vision) == ["<image>"] * 36
        assert words(vlm, batch, row, spans.user) == one.question.split()
        assert words(vlm, batch, row, spans.answer) == [one.answer]
        assert words(vlm, batch, row, spans.role) == ["user:", "assistant:", "</s>"]
        assert spans.grid == (6, 6)


def test_a_phrase_is_found_whole_at_every_occurrence_and_in_any_case(vlm):
    asked = dataclasses.replace(examples(1)[0], question="is the red circle left of the red cross ?")
    spans = vlm.encode([examples(4)[3], asked]).spans[1]
    user = spans.user.tolist()
    assert spans.word("Red  circle").tolist() == user[2:4]
    assert spans.word("red", occurrence=1).tolist() == user[7:8]
    assert spans.word("red", occurrence=-1).tolist() == user[7:8]
    assert spans.word("picture", part="system").tolist() == spans.system[3:4].tolist()


def test_words_of_several_pieces_are_found_with_all_of_them(tiny_llava_pieces):
    vlm = VLM.load(str(tiny_llava_pieces))
    asked = examples(4)
    batch = vlm.encode(asked, system="look here", answers=True)
    for row, (spans, one) in enumerate(zip(batch.spans, asked, strict=True)):
        assert words(vlm, batch, row, spans.bos) == ["<s>"]
        assert vlm.tokenizer.decode(batch.input_ids[row, spans.user]).strip() == one.question
        assert vlm.tokenizer.decode(batch.input_ids[row, spans.system]).strip() == "look here"
        assert vlm.tokenizer.decode(batch.input_ids[row, spans.answer]).strip() == one.answer
        for word in set(one.question.split()) - {"?"}:
            assert vlm.tokenizer.decode(batch.input_ids[row, spans.word(word)]).strip() == word
    circle = batch.spans[0].word("circle")
    assert len(circle) > 1 and torch.equal(circle, torch.arange(int(circle[0]), int(circle[-1]) + 1))
    together = torch.cat(list(spans.parts().values())).sort().values
    assert torch.equal(together, batch.attention_mask[3].nonzero().flatten())


def test_a_missing_word_names_those_that_are_there(vlm):
    spans = vlm.encode(examples(1)).spans[0]
    with pytest.raises(KeyError, match=r"'circl' is not in the user text of 'e0'; nearest: 'circle'; words there: is, the, red"):
        spans.word("circl")
    with pytest.raises(KeyError, match="occurs 1 times"):
        spans.word("circle", occurrence=1)
    with pytest.raises(KeyError, match="'footer'"):
        spans.word("circle", part="footer")
    with pytest.raises(KeyError):
        spans.word("")


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_sub_tokens_and_padding_against_a_slow_search(data):
    """Any cut of the text into tokens, any padding, any number of picture tokens: the word's tokens are those that touch it."""
    head, tail = "<s> sys user: ", " is the reddish red circle ? assistant:"
    text = head + "<image>" + tail
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tail) - 1))))
    pieces = [(0, 3), (4, 7), (8, 13), (len(head), len(head) + 7)]
    pieces += [(len(head) + 7 + a, len(head) + 7 + b) for a, b in zip([0, *cuts], [*cuts, len(tail)], strict=True)]
    padding, n = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 5))
    ask = (text.index("is the"), text.index(" assistant:"))
    prompt = Prompt(text, (len(head), len(head) + 7), (4, 7), ask, (len(text), len(text)))
    length = padding + len(pieces) - 1 + n
    spans = find_spans("x", prompt, pieces, True, 3, [True] * n, padding, length, (1, n), Frame())
    assert sorted(i for part in spans.parts().values() for i in part.tolist()) == list(range(padding, length))
    assert set(spans.parts()) == set(PARTS)
    start = text.index(" red ") + 1
    slow = [padding + i + n - 1 for i, (a, b) in enumerate(pieces) if i > 3 and any(start <= c < start + 3 for c in range(a, b))]
    assert spans.word("red").tolist() == slow


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    corners=st.tuples(*[st.floats(-0.2, 1.2, allow_nan=False)] * 4),
    frame=st.sampled_from([Frame(), Frame((2.0, 1.0), (-0.5, 0.0)), Frame((1.0, 0.5), (0.0, 0.25))]),
)
def test_cells_of_a_box_against_sampling_its_inside(rows, columns, corners, frame):
    left, right = sorted(corners[:2])
    top, bottom = sorted(corners[2:])
    prompt = Prompt("<image>", (0, 7), (0, 0), (7, 7), (7, 7))
    spans = find_spans("x", prompt, [(0, 7)], False, 0, [True] * rows * columns, 0, rows * columns, (rows, columns), frame)
    covered = spans.cells((left, top, right, bottom))
    for x in torch.linspace(left, right, 25)[1:-1].tolist():
        for y in torch.linspace(top, bottom, 25)[1:-1].tolist():
            if left < x < right and top < y < bottom and (cell := spans.cell(x, y)) is not None:
                u, v = frame(x, y)
                if 0 < u < 1 and 0 < v < 1 and (u * columns) % 1 and (v * rows) % 1:
                    assert covered[cell]


def test_tokens_without_a_grid_say_so():
    prompt = Prompt("<image>", (0, 7), (0, 0), (7, 7), (7, 7))
    spans = find_spans("x", prompt, [(0, 7)], False, 0, [True] * 16, 0, 16, None, Frame())
    with pytest.raises(ValueError, match="16 vision tokens of 'x' have no grid"):
        spans.cell(0.5, 0.5)
