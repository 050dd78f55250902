"""Answers do not depend on batching or prefix sharing, scores equal a slow teacher forcing, parsing never guesses."""

import dataclasses
import io
import re

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import examples, picture
from transformers.cache_utils import DynamicLayer

from spatialprobes.answers import answer, generate, parse, score
from spatialprobes.capture import capture
from spatialprobes.parsing import CLAUSE_ENDS, NEGATIONS
from spatialprobes.prefix import _Roomy, prefill, shared_pictures
from spatialprobes.vlm import VLM, PromptError

TOLERANCE = 1e-5


@pytest.fixture(scope="module", params=["tiny_llava", "tiny_llava_grouped"])
def vlm(request):
    return VLM.load(str(request.getfixturevalue(request.param)))


def slow_scores(vlm, one):
    """One choice at a time, one token at a time, from whole prompts."""
    scores = []
    for choice in one.choices:
        batch = vlm.encode([dataclasses.replace(one, answer=choice)], answers=True)
        total = 0.0
        for index in batch.spans[0].answer.tolist():
            cut = {name: value[:, :index] if name != "pixel_values" else value for name, value in batch.inputs.items()}
            with torch.inference_mode():
                logits = vlm.model(**cut, use_cache=False).logits[0, -1]
            total += float(logits.log_softmax(-1)[batch.input_ids[0, index]])
        scores.append(total)
    return scores


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_scores_equal_slow_teacher_forcing_with_word_pieces(tiny_llava_pieces, prefix_cache):
    vlm = VLM.load(str(tiny_llava_pieces))
    asked = examples(5)
    found = score(vlm, asked, batch_size=4, prefix_cache=prefix_cache)
    expected = [value for one in asked for value in slow_scores(vlm, one)]
    assert found["logprob"].tolist() == pytest.approx(expected, abs=TOLERANCE)
    assert found["tokens"].max() > 2
    assert generate(vlm, asked, prefix_cache=True)["text"].tolist() == generate(vlm, asked, prefix_cache=False)["text"].tolist()


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_scores_equal_slow_teacher_forcing(vlm, prefix_cache):
    asked = [dataclasses.replace(one, choices=[*one.choices, "left of the red", "blue cross"]) for one in examples(7)]
    found = score(vlm, asked, batch_size=6, prefix_cache=prefix_cache)
    assert found[["id", "choice"]].values.tolist() == [[one.id, choice] for one in asked for choice in one.choices]
    expected = [value for one in asked for value in slow_scores(vlm, one)]
    assert found["logprob"].tolist() == pytest.approx(expected, abs=TOLERANCE)
    assert found["tokens"].tolist() == [len(choice.split()) for choice in found["choice"]]
    assert (found["normalised"] * found["tokens"]).tolist() == pytest.approx(expected, abs=TOLERANCE)


def test_choices_that_differ_in_their_last_tokens_alone_are_run_as_one(vlm):
    """Nothing is read after the last token of a choice, so that all choices of one token read the same row."""
    asked = [dataclasses.replace(one, choices=["left", "right", "left of", "left by", "red"]) for one in examples(3)]
    rows = []
    hook = vlm.family.decoder(vlm.model).register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(vlm.family.decoder_call(args, kwargs)[0]), with_kwargs=True
    )
    score(vlm, asked, prefix_cache=True)
    hook.remove()
    assert rows == [
        len({one.cluster for one in asked}),
        2 * len(asked),
    ]  # pictures; first and second tokens


@pytest.mark.parametrize("system", ["default", None, "where is it"])
def test_logits_after_a_shared_prefix_equal_those_of_whole_prompts(vlm, system):
    asked = shared_pictures(examples(9, pictures=2))
    with torch.inference_mode():
        batch, cache, held = prefill(vlm, asked, system)
        inputs = {name: value if name == "attention_mask" else value[..., held:] for name, value in batch.inputs.items()}
        shared = vlm.model(**inputs, past_key_values=cache).logits[:, -1]
    whole = vlm.forward(vlm.encode(asked, system)).logits[:, -1]
    assert (shared - whole).abs().max() < TOLERANCE
    assert len(set(batch.which)) == 2


@pytest.mark.parametrize("room", [0, 3, 9])
def test_a_cache_with_room_holds_what_a_growing_one_holds(room):
    """Through appending beyond the room, taking back and reordering, each of which may leave the buffers behind."""
    torch.manual_seed(room)
    few, rows = DynamicLayer(), [1, 1, 0, 1]
    few.update(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5))
    growing, roomy = DynamicLayer(), _Roomy(few, rows, room)
    growing.update(few.keys[rows], few.values[rows])

    def same():
        assert torch.equal(roomy.keys, growing.keys)
        assert torch.equal(roomy.values, growing.values)
        assert roomy.get_seq_length() == growing.get_seq_length()

    for act in ("keep", "crop", "reorder"):
        for tokens in (2, 1, 3):
            new = torch.randn(2, 4, 3, tokens, 5)
            returned = [layer.update(*new) for layer in (growing, roomy)]
            assert all(torch.equal(a, b) for a, b in zip(*returned, strict=True))
            same()
            for layer in (growing, roomy):
                if act == "crop":
                    layer.crop(-2)
                elif act == "reorder":
                    layer.reorder_cache(torch.tensor([3, 0, 0, 1]))
            same()


def test_generated_tables_are_the_same_however_they_are_batched(vlm):
    asked = examples(11)
    alone = pd.concat([generate(vlm, [one], prefix_cache=False) for one in asked], ignore_index=True)
    for batch_size in (1, 3, 64):
        for prefix_cache in (True, False, "auto"):
            together = generate(vlm, asked, batch_size=batch_size, prefix_cache=prefix_cache)
            pd.testing.assert_frame_equal(together, alone)
    backwards = generate(vlm, asked[::-1], batch_size=3)
    pd.testing.assert_frame_equal(backwards.iloc[::-1].reset_index(drop=True), alone)


def test_generated_text_equals_transformers_own_greedy_search(vlm):
    one = examples(3)[2]
    batch = vlm.encode([one])
    with torch.inference_mode():
        tokens = vlm.model.generate(**batch.inputs, max_new_tokens=5, do_sample=False)[0, batch.input_ids.shape[1] :]
    found = generate(vlm, [one], max_new_tokens=5)
    assert found["text"].tolist() == [vlm.tokenizer.decode(tokens, skip_special_tokens=True)]


def test_the_end_of_an_answer_is_counted_and_cut(vlm):
    """Force an end of turn through the head's bias-free weights: a model whose likeliest word is the end answers nothing."""
    row = torch.tensor([7, 9, vlm._ends[0], 0, 0])
    assert vlm.answer_length(row) == 3
    assert vlm.answer_length(row[:2]) == 2
    assert vlm.decode(row[None]) == [vlm.tokenizer.decode(row[:2])]


def test_the_same_seed_gives_the_same_sampled_table(vlm):
    asked = examples(6)
    draws = [generate(vlm, asked, temperature=2.0, seed=seed) for seed in (3, 3, 4)]
    pd.testing.assert_frame_equal(draws[0], draws[1])
    assert not draws[0].equals(draws[2])


def test_the_same_questions_give_the_same_table_byte_for_byte(tiny_llava):
    """From two loads of the model, written as parquet."""
    written = []
    for _ in range(2):
        vlm, file = VLM.load(str(tiny_llava)), io.BytesIO()
        answer(vlm, examples(6), by="score").merge(score(vlm, examples(6)), on="id").to_parquet(file)
        written.append(file.getvalue())
    assert written[0] == written[1]


def test_equal_pictures_of_a_cluster_are_shared_and_unequal_ones_are_not():
    one = examples(1)[0]
    same = dataclasses.replace(one, id="same", image=picture(0))
    mirrored = dataclasses.replace(one, id="mirrored", image=picture(0).transpose(0))
    lazy = dataclasses.replace(one, id="lazy", image=lambda: picture(0))
    elsewhere = dataclasses.replace(one, id="elsewhere", cluster="other", image=picture(0))
    found = shared_pictures([one, same, mirrored, lazy, elsewhere])
    assert found[0].image is found[1].image is found[3].image
    assert found[2].image is not found[0].image
    assert [example.id for example in found] == ["e0", "same", "mirrored", "lazy", "elsewhere"]


def test_mirrored_pictures_of_one_cluster_keep_their_own_answers(vlm):
    asked = [dataclasses.replace(one, cluster="both") for one in examples(6, pictures=2)]
    shared, whole = (score(vlm, asked, prefix_cache=prefix_cache)["logprob"].tolist() for prefix_cache in (True, False))
    assert shared == pytest.approx(whole, abs=TOLERANCE)


def test_sharing_is_off_while_whole_prompts_are_captured(vlm):
    asked = examples(6, pictures=1)
    with capture(vlm, hidden=1) as got:
        generate(vlm, asked, max_new_tokens=1)
        assert got.hidden[1].shape[0] == 6
        with pytest.raises(ValueError, match="a capture is open"):
            generate(vlm, asked, prefix_cache=True)


@pytest.mark.parametrize("by", ["generate", "score"])
def test_answer_has_one_row_per_example_in_order(vlm, by):
    asked = examples(8)
    found = answer(vlm, asked, by=by)
    assert list(found.columns) == ["id", "group", "category", "cluster", "expected", "answer", "correct", "parsed", "text"]
    assert found["id"].tolist() == [one.id for one in asked]
    assert found["expected"].tolist() == [one.answer for one in asked]
    assert (found["correct"] == (found["answer"] == found["expected"]).fillna(False)).all()
    assert found.attrs["unparsed"] == pytest.approx(1 - found["parsed"].mean())
    if by == "score":
        scores = score(vlm, asked)
        best = [
            max(rows.itertuples(), key=lambda row: row.logprob / row.tokens).choice
            for _, rows in scores.groupby("id", sort=False)
        ]
        assert found["answer"].tolist() == best
        assert found.attrs["unparsed"] == 0
    else:
        for row, one in zip(found.itertuples(), asked, strict=True):
            read = parse(row.text, one.choices)
            assert row.parsed == (read is not None)
            assert row.answer == read if row.parsed else (pd.isna(row.answer) and not row.correct)


def test_answers_without_choices_are_the_text_itself(vlm):
    found = answer(vlm, [dataclasses.replace(examples(1)[0], choices=None)])
    assert found["answer"][0] == found["text"][0].lower()
    assert bool(found["parsed"][0])


def test_bad_requests_name_the_example(vlm):
    one = examples(1)[0]
    with pytest.raises(PromptError, match="'e0' has no choices"):
        score(vlm, [dataclasses.replace(one, choices=None)])
    with pytest.raises(PromptError, match="'e0' has an empty question"):
        score(vlm, [dataclasses.replace(one, question=" ")])
    with pytest.raises(ValueError, match="two examples have the id 'e0'"):
        generate(vlm, [one, one])
    with pytest.raises(ValueError, match="no examples"):
        answer(vlm, [])
    with pytest.raises(ValueError, match="by='guess'"):
        answer(vlm, [one], by="guess")
    with pytest.raises(ValueError, match="batch_size=0"):
        generate(vlm, [one], batch_size=0)
    with pytest.raises(ValueError, match="prefix_cache='maybe'"):
        generate(vlm, [one], prefix_cache="maybe")


# Parsing

SIDES = ["left", "right"]


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("left", SIDES, "left"),
        ("It is to the LEFT of the square.", SIDES, "left"),
        ("Left. The square is right of it.", SIDES, "left"),
        ("left, not right", SIDES, "left"),
        ("left not right", SIDES, "left"),
        ("left rather than right", SIDES, "left"),
        ("left or right", SIDES, None),
        ("either left or right", SIDES, None),
        ("not left", SIDES, None),
        ("it isn't left", SIDES, None),
        ("It isn’t to the left", SIDES, None),
        ("not left, but right", SIDES, "right"),
        ("neither left nor right", SIDES, None),
        ("leftmost", SIDES, None),
        ("bright", SIDES, None),
        ("", SIDES, None),
        ("right right right", SIDES, "right"),
        ("No, it is not.", ["yes", "no"], "no"),
        ("Yes", ["yes", "no"], "yes"),
        ("the top-left corner", ["left", "top left"], "top left"),
        ("top  left", ["left", "top left"], "top left"),
        ("A red circle", ["red", "green"], "red"),
        ("I cannot tell whether left", SIDES, None),
    ],
)
def test_parse(text, choices, expected):
    assert parse(text, choices) == expected


@given(
    choice=st.sampled_from(SIDES),
    before=st.sampled_from(["", "it is ", "The answer: "]),
    after=st.sampled_from(["", ".", " of it", "!"]),
)
def test_parse_is_indifferent_to_case_and_to_the_order_of_choices(choice, before, after):
    text = before + choice + after
    assert parse(text, SIDES) == parse(text.upper(), SIDES) == parse(text, SIDES[::-1]) == choice


@given(st.text(alphabet="leftrightnoa ,.", max_size=30))
def test_parse_only_finds_whole_words_that_are_there(text):
    found = parse(text, SIDES)
    assert found is None or found in text.replace(",", " ").replace(".", " ").lower().split()


def slow_parse(text, choices):
    """By the rule as it is said, every match with the whole text before it."""
    found, kept, free = [], [], 0
    for choice in choices:
        pattern = r"(?<!\w)" + r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", choice.strip()))) + r"(?!\w)"
        found += [(*match.span(), choice) for match in re.finditer(pattern, text, re.IGNORECASE)]
    for start, end, choice in sorted(found, key=lambda match: (match[0], -match[1])):
        if start < free:
            continue
        free = end
        clause = re.split(r"[.;:!?,\n]|\bbut\b", text[:start], flags=re.IGNORECASE)[-1]
        if not re.search(NEGATIONS, clause, re.IGNORECASE):
            kept.append((start, end, choice))
    others = [match for match in kept if match[2] != kept[0][2]]
    if others and not re.search(CLAUSE_ENDS, text[kept[0][1] : others[0][0]], re.IGNORECASE):
        return None
    return kept[0][2] if kept else None


PIECES = [*"nt'’ .,-\n", "left", "right", "top", "but", "BUT", "not", "no", "don't", "isn’t", "n't", "instead", "nor", "without"]


@settings(max_examples=500)
@given(
    st.lists(st.sampled_from([*PIECES, *("  " * 4)]), max_size=20).map("".join),
    st.sampled_from(
        [SIDES, ["t", "no"], ["top left", "left", "n't"], ["-left", "'t"], ["-", "left-"], ["", "right"], ["but left", "right"]]
    ),
)
def test_parse_equals_the_slow_rule(text, choices):
    assert parse(text, choices) == slow_parse(text, choices)


def test_parse_looks_for_clauses_and_negations_once_in_a_long_text(monkeypatch):
    """Cutting the text before every match anew took seconds for 20,000 letters; counted, not timed."""
    searches = []
    for name in ("split", "search", "finditer"):
        plain_one = getattr(re, name)
        monkeypatch.setattr(
            re, name, lambda *args, plain_one=plain_one, **options: searches.append(1) or plain_one(*args, **options)
        )
    assert parse("left " * 4000, ["left"]) == "left"
    assert parse("left right " * 4000, SIDES) is None
    assert parse("not left " * 4000, ["left"]) is None
    assert len(searches) < 30


def test_parse_needs_choices():
    with pytest.raises(ValueError, match="at least one choice"):
        parse("left", [])
