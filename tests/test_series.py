"""A series of checkpoints: as it is written, in which order, and as the tables of its runs."""

import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import ROOT

from spatialprobes.cli import app
from spatialprobes.series import STUDY, Scale, ordered, parse, same_layers, samples_of, tables_of_runs
from spatialprobes.tables import save_table


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Lab models with cards: their names say nothing."""
    for name, card in (("lab-a", {"samples": 12800}), ("lab-b", {"samples": 76800}), ("lab-none", {"name": "lab-none"})):
        (tmp_path / "lab" / name).mkdir(parents=True)
        (tmp_path / "lab" / name / "card.json").write_text(json.dumps(card))
    monkeypatch.setenv("SPATIALPROBES_LAB", str(tmp_path / "lab"))


# What is written


def test_labels_say_samples_and_order(lab):
    found = parse("2m=org/a  vanilla=org/b 80k=org/c 400k=/x/y=z\n 800k=d")
    assert found == [
        Scale("vanilla", "org/b", 0),
        Scale("80k", "org/c", 80_000),
        Scale("400k", "/x/y=z", 400_000),
        Scale("800k", "d", 800_000),
        Scale("2m", "org/a", 2_000_000),
    ]
    assert [scale.label for scale in found] == [*STUDY[:-1]]
    assert found[1].samples == 1_250 * 64 and found[4].samples == 31_250 * 64  # the study's steps of batch 64


def test_cards_say_what_labels_do_not_and_the_unknown_comes_last(lab):
    found = parse("roborefer=org/a final=lab-b base:7=org/c start=lab-a other=lab-none 1.5m=org/d")
    assert [(one.label, one.samples) for one in found] == [
        ("base", 7), ("start", 12_800), ("final", 76_800), ("1.5m", 1_500_000), ("roborefer", None), ("other", None),
    ]  # fmt: skip


def test_the_labs_own_series():
    found = parse("final=lab-llava 12800=lab-llava-12800 vanilla=lab-llava-vanilla")
    cards = [json.loads((ROOT / "data" / "lab" / one.model / "card.json").read_text()) for one in found]
    assert [one.samples for one in found] == [card["samples"] for card in cards] == [0, 12_800, 76_800]


def test_samples_given_count_more_than_card_and_label(lab):
    assert parse("80k:5k=lab-a") == [Scale("80k", "lab-a", 5_000)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the series is empty"),
        ("  ", "the series is empty"),
        ("vanilla", "'vanilla' is no label=model; a series is written as 'vanilla=lab-llava-vanilla"),
        ("vanilla=", "'vanilla=' is no label=model"),
        ("=lab-a", "label '' of '=lab-a'"),
        ("a/b=c", "label 'a/b' of 'a/b=c': letters, digits"),
        ("..=c", "label '..'"),
        ("80k=a 80k=b", "the label '80k' for a, b"),
        ("a:x=b", "'x' is no number of samples; write 12800, 80k or 2m"),
        ("a:=b", "'' is no number of samples"),
        ("a:-1=b", "'-1' is no number of samples"),
        ("a:1.2345k=b", "'1.2345k' is no number of samples"),
        ("80k=lab-a", "the label says 80,000 samples, the card of lab-a 12,800; write 80k:12800="),
        ("vanilla=lab-b", "the label says 0 samples, the card of lab-b 76,800"),
    ],
)
def test_a_series_that_is_none(lab, text, said):
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert said in str(caught.value)


@given(st.integers(0, 10**9))
def test_numbers_are_read_however_they_are_short(samples):
    assert samples_of(str(samples)) == samples
    assert samples_of(f"{samples}k") == samples_of(f"{samples}K") == 1_000 * samples
    assert samples_of(f"{samples // 1000}.{samples % 1000:03d}k") == samples


@given(st.sampled_from(["final", "roborefer", "lab-80k", "k", "1e5", "-3", "80kk", "½m", "1.0005k"]))
def test_words_say_no_samples(label):
    assert samples_of(label) is None


@given(st.permutations([*STUDY, "zeta", "alpha", "80k"]))
def test_scales_are_in_the_studys_order(labels):
    assert ordered(labels) == [*STUDY, "alpha", "zeta"]


# What runs left


def left(base, run, name="consistency", layers=(0, 1, 2), model=None, **columns):
    frame = pd.DataFrame({"layer": layers, "estimate": [0.1 * layer for layer in range(len(layers))], **columns})
    facts = {"model": run, "family": "llava"} if model is None else model
    save_table(frame, base / "data" / "runs" / run / "tables" / f"{name}.parquet", {"model": facts})


def test_tables_of_runs_stand_one_below_the_other(tmp_path):
    left(tmp_path, "swap-b", layers=(0, 1))
    left(tmp_path, "swap-a", layers=(2, 3), model={"model": "lab-a", "family": "llava", "dtype": "float32"})
    found = tables_of_runs(["swap-b", "swap-a"], "consistency", tmp_path)
    assert found["run"].tolist() == ["swap-b"] * 2 + ["swap-a"] * 2
    assert found["model"].tolist() == ["swap-b"] * 2 + ["lab-a"] * 2
    assert found["layer"].tolist() == [0, 1, 2, 3] and found.index.tolist() == [0, 1, 2, 3]
    known = found.attrs["provenance"]
    assert known["runs"] == ["swap-b", "swap-a"] and known["model"][1]["dtype"] == "float32"


def test_a_column_model_is_kept_and_a_table_without_model_has_none(tmp_path):
    left(tmp_path, "one", model="", variant=["x", "y", "z"])
    left(tmp_path, "two", **{"model": {"model": "m"}})
    found = tables_of_runs(["one", "two"], "consistency", tmp_path)
    assert found["model"].tolist() == [""] * 3 + ["m"] * 3 and found["variant"].isna().sum() == 3
    save_table(pd.DataFrame({"model": ["own"]}), tmp_path / "data/runs/one/tables/mine.parquet", {"model": "other"})
    assert tables_of_runs(["one"], "mine", tmp_path)["model"].tolist() == ["own"]


def test_what_is_missing_is_named_with_what_makes_it(tmp_path):
    left(tmp_path, "swap-a")
    with pytest.raises(FileNotFoundError, match=r"run 'swap-b' has left nothing yet .*make it: spatialprobes run swap-b"):
        tables_of_runs(["swap-a", "swap-b"], "consistency", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no table 'accuracy'; there: consistency.*spatialprobes run swap-a --force"):
        tables_of_runs(["swap-a"], "accuracy", tmp_path)


def test_the_command_that_is_named_exists():
    command = next(one for one in app.registered_commands if one.callback.__name__ == "run")
    assert "force" in command.callback.__annotations__


def test_runs_that_cannot_be_put_together(tmp_path):
    mine = pd.DataFrame({"layer": [0], "run": ["x"]})
    save_table(mine, tmp_path / "data/runs/a/tables/consistency.parquet", {"model": "m"})
    for runs, said in (([], "no runs were given"), (["a", "a"], "named twice"), (["a"], "has a column 'run' already")):
        with pytest.raises(ValueError, match=said):
            tables_of_runs(runs, "consistency", tmp_path)


# One axis of layers


def scaled(**layers):
    return pd.concat([pd.DataFrame({"scale": scale, "layer": list(values)}) for scale, values in layers.items()])


def test_scales_of_one_architecture_share_their_layers():
    frame = scaled(a=[0, 1, "norm", 1], b=["norm", 1, 0])
    assert same_layers(frame) is frame


@pytest.mark.parametrize(
    ("frame", "said"),
    [
        (scaled(a=range(5), b=range(4)), r"a and b differ in layers \(0\.\.4 against 0\.\.3\): of different architectures"),
        (scaled(a=range(5), b=[0, 1, 2, 3, 4, "norm"]), r"\(0\.\.4 against 0\.\.4, norm\)"),
        (scaled(a=[0, 2], b=[0, 1]), r"\(0, 2 against 0, 1\)"),
        (scaled(a=[1, 2]).assign(width=64).merge(scaled(b=[1, 2]).assign(width=32), how="outer"), "a and b differ in width"),
        (scaled(a=[1]).drop(columns="scale"), "no column 'scale'; there: layer"),
        (scaled(a=[1]).drop(columns="layer"), "no column 'layer'; there: scale"),
    ],
)
def test_scales_of_different_architectures_are_refused(frame, said):
    with pytest.raises(ValueError, match=said):
        same_layers(frame)


def test_families_are_told_apart_where_layers_agree(tmp_path):
    left(tmp_path, "a")
    left(tmp_path, "b", model={"model": "b", "family": "qwen2_vl"})
    left(tmp_path, "c", layers=(0, 1))
    with pytest.raises(ValueError, match=r"a and b differ in family \(llava against qwen2_vl\)"):
        same_layers(tables_of_runs(["a", "b"], "consistency", tmp_path), by="run")
    with pytest.raises(ValueError, match="a and c differ in layers"):
        same_layers(tables_of_runs(["a", "c"], "consistency", tmp_path), by="run")
    assert len(same_layers(tables_of_runs(["a"], "consistency", tmp_path), by="run")) == 3


@pytest.mark.parametrize("model", ["y" * 300, "a\0b", ".."])
def test_a_model_that_no_folder_could_be_has_no_card(model):
    assert parse(f"a={model}") == [Scale("a", model, None)]


@pytest.mark.parametrize("label", ["9" * 5000, "٣k", "1." + "0" * 20 + "m"])
def test_samples_are_numbers_of_a_sensible_size_in_plain_digits(label):
    assert samples_of(label) is None


@pytest.mark.parametrize("content", ["{", "[1]", "3"])
def test_a_broken_card_is_named(content, lab, tmp_path):
    (tmp_path / "lab/lab-a/card.json").write_text(content)
    with pytest.raises(ValueError, match="the card of lab-a cannot be read"):
        parse("a=lab-a")


def test_layers_of_a_checkpoint_without_a_name_count_too():
    frame = pd.DataFrame({"scale": ["a", "a", None], "layer": [0, 1, 7]})
    with pytest.raises(ValueError, match="a and nan differ in layers"):
        same_layers(frame)
