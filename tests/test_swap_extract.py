"""States and answers of swap pairs equal those of one question at a time; kills, stores, controls and bad input."""

import os
import signal
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import picture

from spatialprobes import capture, shards
from spatialprobes.answers import score
from spatialprobes.examples import Example
from spatialprobes.fingerprints import FingerprintError
from spatialprobes.intervene import added, intervene
from spatialprobes.pairs import GROUPS, OPPOSITE, Pair, Quad
from spatialprobes.prefix import prefill, shared_pictures
from spatialprobes.probes import swap, swap_run
from spatialprobes.probes.swap import ANSWERS, ExtractionError, extract, extract_quads
from spatialprobes.store import StoreError
from spatialprobes.vlm import VLM

TOLERANCE = 1e-4
SHAPES = ["circle", "square", "cross"]
COLOURS = ["red", "green", "blue"]


def pair(number, cluster=None, group="horizontal", image=None):
    """Questions of unequal length about two things; the longer one names a shape that the shorter one's words hold too."""
    one = SHAPES[number % 3]
    other = f"{COLOURS[number % 2]} {SHAPES[(number + number // 3) % 3]}"
    one, other = (one, other) if number % 4 < 2 else (f"the {COLOURS[2]} {one} in the picture", other)
    answer = GROUPS[group][number % 2]
    cluster = cluster or f"picture-{number // 2}"
    image = image or picture(number // 2, [(48, 48), (72, 40), (40, 64)][number // 2 % 3])

    def example(member, subject, reference, answer):
        words = list(GROUPS[group])
        return Example(
            f"p{number}-{group}:{member}", image, f"is the {subject} {words[0]} or {words[1]} of the {reference} ?", answer,
            words, answer, group, cluster, twin=f"p{number}-{group}:{'swapped' if member == 'original' else 'original'}",
            meta={"subject": subject, "reference": reference},
        )  # fmt: skip

    return Pair(f"p{number}-{group}", example("original", one, other, answer), example("swapped", other, one, OPPOSITE[answer]))


def pairs(n=5):
    return [pair(number, group="horizontal" if number % 3 else "vertical") for number in range(n)]


@pytest.fixture(scope="module")
def family(tiny_family):
    return VLM.load(str(tiny_family))


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


def alone(vlm, example):
    """By transformers itself, of one whole prompt: hidden states [layer, token], logits of the answer, greedy text; the spans."""
    batch = vlm.encode([example])
    with torch.no_grad():
        outputs = vlm.family.forward(vlm.model, batch.inputs, output_hidden_states=True, use_cache=False)
        tokens = vlm.family.generate(vlm.model, batch.inputs, max_new_tokens=8, do_sample=False)
    text = vlm.decode(tokens[:, batch.input_ids.shape[1] :])[0]
    return torch.stack(outputs.hidden_states)[:, 0], outputs.logits[0, -1].log_softmax(-1), text, batch.spans[0]


def place(spans, at):
    """The subject stands before " left or" (" above or"), the reference before " ?"."""
    ends = {"subject": " left or" if " left or" in spans.text else " above or", "reference": " ?", "last": None}
    end = len(spans.text) if ends[at] is None else spans.text.index(ends[at])
    return max(index for index, (low, _) in spans.tokens if low < end)


@pytest.mark.parametrize("prefix_cache", [False, "auto"])
def test_states_and_answers_are_those_of_one_question_at_a_time(family, prefix_cache):
    """Of every family, at every place; the last layer is compared after the final norm, which is all that transformers gives."""
    vlm, asked = family, pairs()
    norm = vlm.family.part(vlm.model, "final_norm")
    expected = {example.id: alone(vlm, example) for one in asked for example in one.members}
    for at in ("last", "subject", "reference"):
        found = extract(vlm, asked, layers=[*range(vlm.n_layers + 1), "norm"], at=at, prefix_cache=prefix_cache, batch_size=6)
        assert found.unplaced == ()
        for i, one in enumerate(asked):
            for member, example in zip(("original", "swapped"), one.members, strict=True):
                hidden, _, _, spans = expected[example.id]
                hidden = hidden[:, place(spans, at)].numpy()
                for layer, states in zip([*range(vlm.n_layers), "norm"], hidden, strict=True):
                    assert np.abs(found.states.read(layer, member)[i] - states).max() < TOLERANCE, (at, layer, example.id)
                with torch.no_grad():
                    normed = norm(torch.from_numpy(found.states.read(vlm.n_layers, member)))
                assert np.abs(normed.numpy()[i] - hidden[-1]).max() < TOLERANCE
    assert found.answers.columns.tolist() == list(ANSWERS)
    rows = found.answers.set_index(["pair", "member"])
    words = swap_run.single_tokens(vlm, asked[0].original, ["left", "right", "above", "under"], "default")
    assert family.family.model_type == "qwen3_5" or None not in words.values()
    for one in asked:
        for member, example in zip(("original", "swapped"), one.members, strict=True):
            _, logprobs, text, _ = expected[example.id]
            row = rows.loc[one.id, member]
            assert row["text"] == text
            assert [row["expected"], row["opposite"]] == [example.answer, OPPOSITE[example.answer]]
            if None not in words.values():
                own, other = (float(logprobs[words[row[name]]]) for name in ("expected", "opposite"))
                assert [row["logprob_expected"], row["logprob_opposite"]] == pytest.approx([own, other], abs=TOLERANCE)
                assert row["correct_logprob"] == (own > other)


def test_log_probabilities_of_the_prefill_are_those_of_teacher_forcing(family, monkeypatch):
    asked = pairs()
    found = extract(family, asked).answers
    monkeypatch.setattr(swap, "single_tokens", lambda vlm, example, words, system: dict.fromkeys(words))
    forced = extract(family, asked).answers
    columns = ["logprob_expected", "logprob_opposite"]
    assert np.abs(found[columns] - forced[columns]).to_numpy().max() < TOLERANCE
    pd.testing.assert_frame_equal(found.drop(columns=columns), forced.drop(columns=columns))


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_answers_of_several_tokens_are_scored_by_teacher_forcing(tiny_llava_pieces, prefix_cache):
    vlm, asked = VLM.load(str(tiny_llava_pieces)), pairs(3)
    words = swap_run.single_tokens(vlm, asked[0].original, ["left", "above"], "default")
    assert None in words.values()
    found = extract(vlm, asked, prefix_cache=prefix_cache).answers
    members = [one for each in asked for one in each.members]
    scores = score(vlm, members).set_index(["id", "choice"])["logprob"]
    for one, row in zip(members, found.to_dict("records"), strict=True):
        assert row["logprob_expected"] == pytest.approx(scores[one.id, one.answer], abs=TOLERANCE)
        assert row["logprob_opposite"] == pytest.approx(scores[one.id, OPPOSITE[one.answer]], abs=TOLERANCE)


class Forwards:
    """(rows, new tokens, tokens in the cache) of every run of the decoder."""

    def __init__(self, vlm):
        self.vlm, self.runs = vlm, []

    def __enter__(self):
        self.hook = self.vlm.family.decoder(self.vlm.model).register_forward_pre_hook(
            lambda module, args, kwargs: self.runs.append(self.vlm.family.decoder_call(args, kwargs)), with_kwargs=True
        )
        return self.runs

    def __exit__(self, *_):
        self.hook.remove()


def test_prompts_are_run_once_and_a_picture_once_for_all_its_questions(vlm):
    asked = [pair(number) for number in range(4)]  # two pictures, eight questions
    with Forwards(vlm) as runs:
        extract(vlm, asked, max_new_tokens=3)
    rows, new, held = zip(*runs, strict=True)
    assert rows[:2] == (2, 8)  # the pictures, then what the questions do not share
    assert held[0] == 0
    assert held[1] == new[0]
    assert new[2:] == (1,) * (len(runs) - 2)  # and then word by word, at most two more
    assert len(runs) <= 4
    with Forwards(vlm) as runs:
        extract(vlm, asked, answers=False)
    assert [run[0] for run in runs] == [2, 8]
    with Forwards(vlm) as runs:
        extract(vlm, asked, answers=False, prefix_cache=False)
    assert [(run[0], run[2]) for run in runs] == [(8, 0)]


@pytest.mark.parametrize("batch_size", [1, 2, 6, 64])
def test_a_pair_is_never_parted_and_batches_do_not_matter(vlm, batch_size):
    asked = pairs(7)
    with Forwards(vlm) as runs:
        found = extract(vlm, asked, batch_size=batch_size, prefix_cache=False)
    assert {run[0] % 2 for run in runs} == {0}
    assert max(run[0] for run in runs) == min(max(2, batch_size), 14)
    whole = extract(vlm, asked)
    columns = ["logprob_expected", "logprob_opposite"]
    pd.testing.assert_frame_equal(found.answers.drop(columns=columns), whole.answers.drop(columns=columns))
    for layer in whole.states.layers:
        assert np.abs(found.states.delta(layer) - whole.states.delta(layer)).max() < TOLERANCE


def test_a_quads_questions_are_run_in_one_batch(vlm):
    quads = []
    for number in range(3):
        vertical = pair(number, f"scene-{number}", "vertical")
        distance = pair(number, f"scene-{number}", "distance", vertical.original.image)
        quads.append(Quad(f"q{number}", vertical, distance))
    with Forwards(vlm) as runs:
        vertical, distance, answers = extract_quads(vlm, quads, batch_size=1)
    assert [run[0] for run in runs if run[2] == 0] == [1, 1, 1]
    assert {run[0] for run in runs if run[2] > 0} == {4}
    assert vertical.pairs["pair"].tolist() == [quad.vertical.id for quad in quads]
    assert distance.pairs["pair"].tolist() == [quad.distance.id for quad in quads]
    assert answers["pair"].drop_duplicates().tolist() == [one.id for quad in quads for one in (quad.vertical, quad.distance)]
    for states, kind in ((vertical, "vertical"), (distance, "distance")):
        expected = extract(vlm, [getattr(quad, kind) for quad in quads]).states
        assert np.abs(states.delta(2) - expected.delta(2)).max() < TOLERANCE
        assert set(states.pairs["group"]) == {kind}


def test_without_answers_the_states_are_the_same(vlm):
    asked = pairs(3)
    with_answers, without = extract(vlm, asked), extract(vlm, asked, answers=False)
    assert without.answers.columns.tolist() == list(ANSWERS)
    assert len(without.answers) == 0
    for layer in without.states.layers:
        assert np.abs(without.states.delta(layer) - with_answers.states.delta(layer)).max() < TOLERANCE


# ---- places ----
def test_words_inside_the_other_objects_words_are_passed_over(vlm):
    """The circle in "blue circle" is not the circle."""
    question = "is the blue circle left of the circle ?"
    one = Example("e", picture(), question, "left", meta={"subject": "blue circle", "reference": "circle"})
    spans = vlm.encode([one]).spans[0]
    first, second = (int(spans.word("circle", number)[-1]) for number in (0, 1))
    assert swap_run.token_of(one, spans, "subject") == first
    assert swap_run.token_of(one, spans, "reference") == second
    assert swap_run.token_of(replace(one, meta={"subject": "circle", "reference": "blue circle"}), spans, "subject") == second
    assert swap_run.token_of(one, spans, "last") == spans.length - 1
    assert swap_run.token_of(replace(one, meta={}), spans, "subject") is None


def test_the_last_piece_of_a_word_is_read(tiny_llava_pieces):
    vlm = VLM.load(str(tiny_llava_pieces))
    one = pair(0).original
    spans = vlm.encode([one]).spans[0]
    pieces = spans.word(one.meta["reference"])
    assert len(pieces) > 2
    assert swap_run.token_of(one, spans, "reference") == int(pieces[-1])


def test_pairs_whose_words_are_not_there_are_nan_and_listed(vlm, tmp_path):
    asked = pairs(4)
    lacking = replace(asked[2].swapped, meta={"subject": "cube", "reference": "cross"})
    asked[2] = replace(asked[2], swapped=lacking)
    for store in (None, tmp_path / "store", tmp_path / "store"):
        found = extract(vlm, asked, at="subject", store=store)
        assert found.unplaced == (asked[2].id,)
        for layer in found.states.layers:
            assert np.isnan(found.states.delta(layer)).all(axis=1).tolist() == [False, False, True, False]
            assert np.isfinite(found.states.original(layer)).all()
    none = [replace(one, original=replace(one.original, meta={})) for one in asked]
    with pytest.raises(ExtractionError, match="no pair has the words of its subject in its questions, first 'p0-vertical'"):
        extract(vlm, none, at="subject")


def test_behind_a_shared_prefix_tokens_of_it_cannot_be_read(vlm):
    """And those behind it are found by word and part as in a whole prompt."""
    examples = [one for each in pairs(3) for one in each.members]
    batch, cache, held = prefill(vlm, shared_pictures(examples), "default", new_tokens=1)
    whole = vlm.encode(examples)
    for spans, other, ids, own in zip(batch.spans, whole.spans, batch.input_ids, whole.input_ids, strict=True):
        for part, places in spans.parts().items():
            assert ids[places].tolist() == own[other.parts()[part]].tolist(), part
        assert ids[spans.start] == own[other.start]
    with capture.capture(vlm, hidden=[1, 2], at="user") as expected:
        vlm.forward(whole)
    with capture.capture(vlm, hidden=[1, 2], at="user") as got:
        vlm.generate(batch, 2, past_key_values=cache)
    for layer in (1, 2):
        there = torch.isfinite(expected.hidden[layer])
        assert there.any()
        assert torch.equal(there, torch.isfinite(got.hidden[layer]))
        assert (got.hidden[layer] - expected.hidden[layer])[there].abs().max() < TOLERANCE
    assert (got.positions[got.positions >= 0] >= held).all()
    batch, cache, held = prefill(vlm, shared_pictures(examples), "default", new_tokens=1)
    with (
        pytest.raises(ValueError, match=f"is one of a prefix of {held} that was run before; run prompts whole"),
        capture.capture(vlm, hidden=1, at="vision"),
    ):
        vlm.generate(batch, 2, past_key_values=cache)


# ---- controls ----
def test_the_blank_control_shows_grey_of_the_same_size(vlm):
    asked = pairs(4)
    grey = [picture(size=one.original.image.size) for one in asked]
    for image in grey:
        image.paste((128, 128, 128), (0, 0, *image.size))
    shown = [
        replace(one, original=replace(one.original, image=image), swapped=replace(one.swapped, image=image))
        for one, image in zip(asked, grey, strict=True)
    ]
    blank, expected = extract(vlm, asked, control="blank"), extract(vlm, shown)
    plain = extract(vlm, asked)
    for layer in blank.states.layers:
        assert np.abs(blank.states.original(layer) - expected.states.original(layer)).max() < TOLERANCE
    assert np.abs(blank.states.original(2) - plain.states.original(2)).max() > 0.01
    assert blank.states.pairs.equals(plain.states.pairs)


@pytest.mark.parametrize("seed", range(3))
def test_the_mismatched_control_shows_another_clusters_picture(vlm, seed, monkeypatch):
    asked = [pair(number) for number in range(10)]
    own = {one.cluster: one.original.image for one in asked}
    of = {image.tobytes(): cluster for cluster, image in own.items()}
    shown = {}
    original = swap.Runner.__call__

    def watched(self, questions):
        shown.update({one.example.id: (one.example.cluster, of[one.example.image.tobytes()]) for one in questions})
        return original(self, questions)

    monkeypatch.setattr(swap.Runner, "__call__", watched)
    found = extract(vlm, asked, control="mismatched", seed=seed, answers=False)
    assert len(shown) == 20
    assert all(cluster != other for cluster, other in shown.values())
    given = dict(shown.values())
    assert sorted(given.values()) == sorted(own)  # each picture goes to one other cluster, so all are shown
    for one in asked:
        assert shown[one.original.id] == shown[one.swapped.id]
    again = extract(vlm, asked, control="mismatched", seed=seed, answers=False)
    assert np.array_equal(again.states.delta(1), found.states.delta(1))
    other = extract(vlm, asked, control="mismatched", seed=seed + 1, answers=False)
    assert not np.array_equal(other.states.original(1), found.states.original(1))


def test_interventions_reach_the_extraction(vlm):
    asked = pairs(2)
    vector = torch.zeros(64)
    vector[0] = 1.0
    plain = extract(vlm, asked, answers=False).states
    with intervene(vlm, steer=added(vector, 1)):
        steered = extract(vlm, asked, answers=False).states
    difference = steered.original(1) - plain.original(1)
    assert np.allclose(difference[:, 0], 1, atol=TOLERANCE)
    assert np.allclose(difference[:, 1:], 0, atol=TOLERANCE)


# ---- the store ----
def same(found, expected):
    """Bit by bit."""
    pd.testing.assert_frame_equal(found.answers, expected.answers, check_exact=True)
    assert found.answers.attrs == expected.answers.attrs
    assert found.states.layers == expected.states.layers
    assert found.states.pairs.equals(expected.states.pairs)
    for layer in expected.states.layers:
        for member in ("original", "swapped"):
            read = found.states.read(layer, member)
            assert read.dtype == np.float32
            assert np.array_equal(read, expected.states.read(layer, member))


def test_what_is_in_the_store_is_not_run_again(vlm, tmp_path):
    asked = pairs(6)
    options = {"layers": [0, 2, "norm"], "batch_size": 4}
    expected = extract(vlm, asked, **options)
    same(extract(vlm, asked, store=tmp_path / "store", **options), expected)
    with Forwards(vlm) as runs:
        same(extract(vlm, asked, store=tmp_path / "store", **options), expected)
    assert runs == []
    with Forwards(vlm) as runs:
        more = extract(vlm, [*asked, *(pair(number) for number in (8, 9))], store=tmp_path / "store", **options)
    assert sum(rows for rows, _, held in runs if held == 0) == 1  # the one new picture
    assert len(more.states) == 8
    backwards = extract(vlm, asked[::-1], store=tmp_path / "store", **options)
    assert np.array_equal(backwards.states.delta(2), expected.states.delta(2)[::-1])


def test_states_stay_on_the_disk_until_they_are_read(vlm, tmp_path, monkeypatch):
    read = []
    original = shards.read_rows
    monkeypatch.setattr(shards, "read_rows", lambda path, block, rows: read.append(block) or original(path, block, rows))
    found = extract(vlm, pairs(4), store=tmp_path / "store", batch_size=4)
    assert not {block.site for block in read} & {"original", "swapped"}
    read.clear()
    found.states.delta(1)
    assert {(block.site, block.layer) for block in read} == {("original", 1), ("swapped", 1)}


STEPS = ("fsync", "replace")  # of every file that a store puts in place


def work(vlm, asked, folder, step):
    """Run in a fork until the step-th step of a commit, and be killed there; True if there were fewer steps."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0, status
        return not os.WIFSIGNALED(status)
    count = 0

    def stepping(act):
        def stepped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*args, **kwargs)

        return stepped

    for name in STEPS:
        setattr(os, name, stepping(getattr(os, name)))
    try:
        extract(vlm, asked, store=folder, batch_size=4)
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_every_step_and_resumed_the_tables_are_identical(vlm, tmp_path):
    asked = pairs(4)
    expected = extract(vlm, asked, batch_size=4)
    batches, step, finished, run_again = 2, 1, False, []
    while not finished:
        folder = tmp_path / str(step)
        finished = work(vlm, asked, folder, step)
        with Forwards(vlm) as runs:
            same(extract(vlm, asked, store=folder, batch_size=4), expected)
        run_again.append(sum(held == 0 for _, _, held in runs))
        step += 1
    assert step > 2 * batches + 1
    assert run_again == sorted(run_again, reverse=True)  # the later the kill, the less there is to do
    assert set(run_again) == set(range(batches + 1))


def test_killed_in_the_model_whole_batches_are_kept(vlm, tmp_path, monkeypatch):
    asked = pairs(6)
    expected = extract(vlm, asked, batch_size=4)
    original = swap.Runner.__call__
    for at in range(3):
        calls = []

        def broken(self, questions, calls=calls, at=at):
            if len(calls) == at:
                raise KeyboardInterrupt
            calls.append(1)
            return original(self, questions)

        monkeypatch.setattr(swap.Runner, "__call__", broken)
        with pytest.raises(KeyboardInterrupt):
            extract(vlm, asked, store=tmp_path / str(at), batch_size=4)
        monkeypatch.setattr(swap.Runner, "__call__", original)
        same(extract(vlm, asked, store=tmp_path / str(at), batch_size=4), expected)


def test_a_store_of_something_else_is_refused(vlm, tiny_llava_grouped, tmp_path):
    asked, folder = pairs(3), tmp_path / "store"
    extract(vlm, asked, store=folder)
    before = sorted(path.name for path in folder.rglob("*"))
    for options, named in [
        ({"layers": [1]}, "layers is"),
        ({"at": "subject"}, 'at is "last" there, "subject" here'),
        ({"control": "blank"}, 'control is "none" there, "blank" here'),
        ({"answers": False}, "answers is true there, false here"),
        ({"max_new_tokens": 2}, "max_new_tokens is 8 there, 2 here"),
        ({"system": None}, 'system is "default" there, null here'),
    ]:
        with pytest.raises(FingerprintError, match=named):
            extract(vlm, asked, store=folder, **options)
    with pytest.raises(FingerprintError, match=r"model\.weights_sha256 is"):
        extract(VLM.load(str(tiny_llava_grouped)), asked, store=folder)
    other = replace(asked[1].original, question="where is the red circle ?")
    with pytest.raises(StoreError, match="holds another pair 'p1-horizontal', with other words or another picture"):
        extract(vlm, [asked[0], replace(asked[1], original=other)], store=folder)
    assert sorted(path.name for path in folder.rglob("*")) == before
    mismatched = tmp_path / "mismatched"
    extract(vlm, asked, control="mismatched", store=mismatched)
    with pytest.raises(FingerprintError, match="seed is 0 there, 1 here"):
        extract(vlm, asked, control="mismatched", store=mismatched, seed=1)
    with pytest.raises(StoreError, match="holds another pair"):  # more clusters, other pictures
        extract(vlm, pairs(8), control="mismatched", store=mismatched)


# ---- bad input ----
def test_what_is_not_finite_is_named_by_layer_and_pair(tiny_llava, tmp_path):
    vlm = VLM.load(str(tiny_llava))
    layers = vlm.family.part(vlm.model, "layers")
    hook = layers[1].register_forward_hook(lambda module, args, output: output / 0)
    with pytest.raises(ExtractionError, match=r"the hidden state of layer 2 of 'p\d-\w+:original': not finite, as of 6 of the 6"):
        extract(vlm, pairs(3), store=tmp_path / "store")
    hook.remove()
    hook = vlm.model.lm_head.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(ExtractionError, match=r"the first answer token's logits of 'p\d-\w+:original': not finite"):
        extract(vlm, pairs(3))
    hook.remove()
    assert extract(vlm, pairs(3), store=tmp_path / "store").unplaced == ()  # nothing of it was kept


def test_what_cannot_be_asked_is_named(vlm, tmp_path):
    one, other = pair(0), pair(1)
    for asked, options, named in [
        ([], {}, "no pairs were given"),
        ([one, one], {}, "two pairs have the id 'p0-horizontal'; ids must be unique"),
        ([one], {"control": "mismatched"}, "needs pictures of two clusters or more; there is 'picture-0' alone"),
        ([one, other], {"control": "mismatched"}, "needs pictures of two clusters or more"),
        ([one], {"control": "grey"}, "control='grey' is unknown; 'none', 'blank', 'mismatched'"),
        ([one], {"at": "first"}, "at='first' is unknown; 'last', 'subject', 'reference'"),
        ([one], {"layers": [7]}, "hidden layer 7 is not there"),
        ([one], {"layers": []}, "capture was given nothing to read"),
        ([one], {"batch_size": 0}, "batch_size=0 must be at least 1"),
        ([one], {"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ([one], {"seed": -1}, "seed=-1 is no seed"),
        ([one], {"prefix_cache": 3}, "prefix_cache=3 is unknown"),
        ([replace(one, original=replace(one.original, answer="beside"))], {}, "expected answer 'beside' is none of"),
        ([replace(one, original=replace(one.original, answer=None))], {}, "'p0-horizontal:original': answer None"),
    ]:
        with pytest.raises(ValueError, match=named):
            extract(vlm, asked, store=tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()
    with pytest.raises(ValueError, match="no pairs were given"):
        extract_quads(vlm, [])


def test_a_picture_is_not_shared_where_that_is_not_exact(family):
    if family.family.shares_prefix:
        assert len(extract(family, pairs(1), prefix_cache=True, answers=False).states) == 1
    else:
        with pytest.raises(ValueError, match="prefix_cache=True: qwen3_5 cannot repeat its cache"):
            extract(family, pairs(1), prefix_cache=True)


@pytest.mark.parametrize("layers", [np.int64(1), [np.int64(1), "norm", 1], "norm"])
def test_layers_are_those_asked_for(vlm, layers, tmp_path):
    found = extract(vlm, pairs(2), layers=layers, answers=False, store=tmp_path / "store")
    whole = extract(vlm, pairs(2), layers=[0, 1, "norm"], answers=False)
    assert found.states.layers == ((1, "norm") if isinstance(layers, list) else (layers,))
    for layer in found.states.layers:
        assert np.array_equal(found.states.swapped(layer), whole.states.swapped(layer))


def test_one_pair_is_enough(vlm):
    found = extract(vlm, [pair(0)])
    assert len(found.states) == 1
    assert found.answers["member"].tolist() == ["original", "swapped"]
    assert found.states.delta(1).shape == (1, 64)


def test_the_unparsed_are_counted(vlm, monkeypatch):
    texts = ["left", "not left", "leftover", "right"]
    monkeypatch.setattr(vlm, "decode", lambda tokens: texts, raising=False)
    asked = [pair(0), pair(2)]  # left, then right; twice
    found = extract(vlm, asked).answers
    assert found["parsed"].tolist() == [True, False, False, True]
    assert found["answer"].fillna("").tolist() == ["left", "", "", "right"]
    assert found["correct"].tolist() == [True, False, False, True]
    assert found["correct_published"].tolist() == [True, False, True, True]
    assert found.attrs["unparsed"] == 0.5


def test_a_store_of_states_at_other_words_is_refused(vlm, tmp_path):
    one = pair(1)
    extract(vlm, [one], at="subject", store=tmp_path / "store")
    meta = {"subject": one.original.meta["reference"], "reference": one.original.meta["subject"]}
    other = replace(one, original=replace(one.original, meta=meta))
    with pytest.raises(StoreError, match="holds another pair 'p1-horizontal', with other words"):
        extract(vlm, [other], at="subject", store=tmp_path / "store")
    extract(vlm, [one], store=tmp_path / "last")
    extract(vlm, [other], store=tmp_path / "last")  # the last token is the same whatever they are


def test_answers_that_are_not_opposite_or_not_of_their_category_are_refused(vlm):
    one = pair(1)
    with pytest.raises(ValueError, match="answer 'above' says above, its category is 'right'"):
        extract(vlm, [replace(one, original=replace(one.original, answer="above"))])
    same = replace(one.swapped, answer="right", category="right")
    with pytest.raises(ValueError, match="pair 'p1-horizontal': answers 'right' and 'right' are not opposite"):
        extract(vlm, [replace(one, swapped=same)])


@pytest.mark.parametrize("options", [{"batch_size": 2.5}, {"batch_size": "4"}, {"max_new_tokens": 1.5}, {"max_new_tokens": True}])
def test_counts_are_whole_numbers(vlm, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value!r} must be at least 1, a whole number"):
        extract(vlm, pairs(2), **options)
