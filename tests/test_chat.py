"""The chat in a terminal: streamed answers equal generated ones, the permutation holds, faults are one line, a pipe works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import picture, save_llava
from typer.testing import CliRunner

import spatialprobes
from spatialprobes.chat import converse, unknown_words
from spatialprobes.cli import app
from spatialprobes.examples import Example
from spatialprobes.intervene import intervene, random_permutations
from spatialprobes.vlm import VLM

COLOUR, PLACE = "what color is the circle ?", "where is the cross ?"


@pytest.fixture(scope="module")
def vlm(tiny_llava):
    return VLM.load(str(tiny_llava))


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "scene.png"
    picture(3).save(path)
    return str(path)


def talk(vlm, questions, **options):
    """What was said, and the pieces in which it was written."""
    written = []
    return converse(vlm, picture(3), questions, written.append, **options), written


def asked(vlm, question, **options):
    example = Example("q", picture(3), question, meta=options.pop("meta", {}))
    return vlm.decode(vlm.generate([example], **options))[0]


def test_answers_are_those_of_generate_and_come_word_by_word(vlm):
    said, written = talk(vlm, [COLOUR, PLACE], max_new_tokens=6)
    assert said == [(question, asked(vlm, question, max_new_tokens=6)) for question in (COLOUR, PLACE)]
    assert "".join(written) == "".join(f"assistant: {answer}\n" for _, answer in said)
    assert len(said[0][1].split()) == 6 and len([piece for piece in written if piece.strip()]) >= 12


def test_the_permutation_holds_for_the_conversation_and_no_longer(vlm):
    # drawn words, for the likeliest ones of a random model hardly depend on its picture
    options = {"temperature": 1.0, "max_new_tokens": 60}
    plain, _ = talk(vlm, [COLOUR, PLACE], seed=5, **options)
    said, written = talk(vlm, [COLOUR, PLACE], permute=True, seed=5, **options)
    with intervene(vlm, permute=random_permutations(36, 1, 5)[0]):
        assert said == [(question, asked(vlm, question, seed=5 + i, **options)) for i, question in enumerate((COLOUR, PLACE))]
    assert said[0] != plain[0] and said[1] != plain[1]
    assert written[0] == "[the 36 vision tokens are permuted, by seed 5, in all of this conversation]\n"
    assert talk(vlm, [COLOUR, PLACE], seed=5, **options)[0] == plain


def test_drawn_words_depend_on_the_seed_alone(vlm):
    options = {"temperature": 2.0, "max_new_tokens": 8}
    first, again, other = (talk(vlm, [COLOUR, COLOUR], seed=seed, **options)[0] for seed in (1, 1, 9))
    assert first == again != other
    assert first[0] != first[1]  # the second is drawn anew, not repeated
    assert first[1][1] == asked(vlm, COLOUR, seed=2, **options)


def test_without_history_each_question_stands_alone_with_it_the_turns_are_in_the_prompt(vlm):
    options = {"temperature": 2.0, "max_new_tokens": 8}
    alone, _ = talk(vlm, [COLOUR, PLACE], **options)
    kept, _ = talk(vlm, [COLOUR, PLACE], history=True, **options)
    assert alone[0] == kept[0] and alone[1] != kept[1]
    assert alone[1][1] == asked(vlm, PLACE, seed=1, **options)
    assert kept[1][1] == asked(vlm, PLACE, seed=1, meta={"earlier": kept[:1]}, **options)

    example = Example("q", picture(3), COLOUR, meta={"earlier": [(COLOUR, "red"), (PLACE, "left")]})
    batch = vlm.encode([example])
    text = vlm.tokenizer.decode([token for token in batch.input_ids[0].tolist() if token != vlm.model.config.image_token_id])
    turns = f"user: {COLOUR} assistant: red </s> user: {PLACE} assistant: left </s> user: {COLOUR} assistant:"
    assert " ".join(text.split()).endswith(turns)
    spans = batch.spans[0]
    assert vlm.tokenizer.decode(batch.input_ids[0][spans.user]).split() == COLOUR.split()
    assert spans.user.min() > spans.vision.max() + 15  # the last of the three
    everything = torch.cat([*spans.parts().values()]).sort().values
    assert torch.equal(everything, torch.arange(batch.input_ids.shape[1]))


def test_a_conversation_that_outgrows_the_model_begins_anew(tmp_path):
    small = VLM.load(str(save_llava(tmp_path / "small", positions=80)))
    said, written = talk(small, [COLOUR] * 6, history=True, max_new_tokens=5)
    assert [question for question, _ in said] == [COLOUR] * 6
    anew = [piece for piece in written if "begins anew" in piece]
    assert anew and all("80 positions" in piece for piece in anew)
    assert said[0][1] in [answer for _, answer in said[2:]]  # a fresh start gives the first answer again
    said, written = talk(small, ["the " * 60, COLOUR], history=True)
    assert [question for question, _ in said] == [COLOUR] and "80 positions" in written[0]
    longest, _ = talk(small, [COLOUR], max_new_tokens=500)  # cut to what the positions leave, not refused
    assert longest[0][1].split()[:5] == talk(small, [COLOUR], max_new_tokens=5)[0][0][1].split()


def test_empty_and_odd_questions_are_said_and_the_next_is_taken(vlm):
    said, written = talk(
        vlm, ["", "  \t", "what colour is the Circle?", "is <image> red ?", PLACE, "exit", COLOUR], max_new_tokens=2
    )
    text = "".join(written)
    assert [question for question, _ in said] == ["what colour is the Circle?", PLACE]
    assert text.count("[an empty question: type one, or exit]") == 2
    assert "[the model does not know: colour (nearest known: color), Circle? (nearest known: circle)]" in text
    assert "holds the image placeholder" in text


def test_unknown_words_are_named_once_and_a_tokenizer_without_unknowns_has_none(vlm):
    assert unknown_words(vlm.tokenizer, "zzz the zzz redd") == ["zzz", "redd (nearest known: red)"]
    assert unknown_words(vlm.tokenizer, PLACE) == []

    class Bytes:
        unk_token_id = None

    assert unknown_words(Bytes(), "anything") == []


def command(*words, stdin=""):
    return CliRunner().invoke(app, ["chat", *words], input=stdin)


@pytest.mark.parametrize("spelling", [("--model", "--permute"), ("--model-path", "--permutation")])
def test_the_command(tiny_llava, vlm, image_file, spelling):
    model, permute = spelling
    result = command(
        model, str(tiny_llava), "--image-file", image_file, "--max-new-tokens", "3", stdin=f"{COLOUR}\nexit\n{PLACE}\n"
    )
    assert result.exit_code == 0
    assert result.stdout == f"user: {COLOUR}\nassistant: {asked(vlm, COLOUR, max_new_tokens=3)}\nuser: exit\n"
    result = command(model, str(tiny_llava), "--image-file", image_file, permute, "--seed", "5", stdin="")
    assert result.exit_code == 0
    assert result.stdout == "[the 36 vision tokens are permuted, by seed 5, in all of this conversation]\nuser: \n"


def test_faults_are_one_line_and_exit_2(tiny_llava, image_file, tmp_path):
    (tmp_path / "cut.png").write_bytes(Path(image_file).read_bytes()[:60])
    for words, message in (
        (["--model", "lab-lava", "--image-file", image_file], "unknown model 'lab-lava'"),
        (["--model", str(tmp_path), "--image-file", image_file], "holds no config.json"),
        (["--model", str(tiny_llava), "--image-file", str(tmp_path / "none.png")], "none.png: no such file"),
        (["--model", str(tiny_llava), "--image-file", str(tmp_path / "cut.png")], "cut.png: "),
        (["--model", str(tiny_llava), "--image-file", "file:///etc/passwd"], "is refused"),
    ):
        result = command(*words)
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and message in line and line.startswith("spatialprobes: ") and not result.stdout
    assert command("--image-file", image_file, "--temperature", "-1").exit_code == 2


def test_through_a_real_pipe(tiny_llava, vlm, image_file):
    environment = {**os.environ, "PYTHONPATH": str(Path(spatialprobes.__file__).parents[1])}
    words = ["chat", "--model", str(tiny_llava), "--image-file", image_file, "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "spatialprobes", *words],
        input=f"{COLOUR}\n\n{PLACE}",
        text=True,
        capture_output=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = (asked(vlm, question, max_new_tokens=4) for question in (COLOUR, PLACE))
    empty = "user: \n[an empty question: type one, or exit]\n"
    assert done.stdout == f"user: {COLOUR}\nassistant: {first}\n{empty}user: {PLACE}\nassistant: {second}\nuser: \n"
    assert "Traceback" not in done.stderr


def test_a_question_that_is_not_utf8_is_answered_and_the_chat_goes_on(tiny_llava, vlm, image_file):
    environment = {**os.environ, "PYTHONPATH": str(Path(spatialprobes.__file__).parents[1]), "PYTHONUTF8": "1"}
    words = ["chat", "--model", str(tiny_llava), "--image-file", image_file, "--max-new-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "spatialprobes", *words],
        input=b"red \xff\xfe ?\n" + COLOUR.encode(),
        capture_output=True,
        env=environment,
        timeout=120,
    )
    shown = done.stdout.decode()
    assert done.returncode == 0, done.stderr
    assert "user: red \ufffd\ufffd ?\n" in shown
    assert f"user: {COLOUR}\nassistant: {asked(vlm, COLOUR, max_new_tokens=4)}\n" in shown
