"""The connector study's files: there and back without a changed number, name or caption; what is broken or mixed is named."""

import pickle
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.vision_utils import get_vision_window_index

from spatialprobes.probes.connector_exchange import adopt, write
from spatialprobes.sources.connector_files import (
    FileError,
    align,
    hub_id,
    open_vectors,
    read_best_model,
    read_manifest,
    read_statistics,
    short,
    write_references,
    write_vectors,
)
from spatialprobes.sources.connector_names import MODELS, class_tokens, stored_order, window_order

WIDTHS = {"llava": (1024, 4096), "idefics2": (1152, 4096), "qwen2.5vl": (1280, 3584), "qwen3.5": (1152, 4096)}


def keys(n, start=0):
    """As the study's: nine digits, zeros in front."""
    return [f"{i:09d}" for i in range(start, start + n)]


def numbers(n, tokens, width, seed=0):
    """float32 numbers that bfloat16 holds."""
    drawn = np.random.default_rng(seed).normal(size=(n, tokens, width)).astype(np.float32)
    return torch.from_numpy(drawn).bfloat16().float().numpy()


def study(path, n=5, tokens=(4, 4), width=(3, 2), model="other", start=0, **options):
    """Files of a folder of pictures, and what they hold."""
    made = SimpleNamespace(keys=keys(n, start), pre=numbers(n, tokens[0], width[0], 1), post=numbers(n, tokens[1], width[1], 2))
    made.paths = write_vectors(path, made.keys, made.pre, made.post, {made.keys[1]: "a bowl"}, model=model, **options)
    return made


# ---- names and orders ----
def test_short_names_stand_for_models():
    assert hub_id("llava") == "llava-hf/llava-1.5-7b-hf" and hub_id("qwen3.5") == "Qwen/Qwen3.5-9B"
    assert hub_id("mine/own") == "mine/own" and short("mine/own") == "mine/own"
    assert [short(hub_id(name)) for name in MODELS] == [*MODELS] == ["llava", "idefics2", "qwen2.5vl", "qwen3.5"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 13), st.integers(1, 13), st.integers(1, 5))
def test_windows_go_as_transformers_has_them(rows, columns, window):
    ours = window_order((rows, columns), window)
    theirs, _ = get_vision_window_index(torch.tensor([[1, 2 * rows, 2 * columns]]), 2, window * 2 * 14, 14)
    assert ours.tolist() == theirs.tolist()


def test_of_a_windowed_model_the_patches_of_a_cell_stay_together():
    assert stored_order("llava", 576) is None and stored_order("qwen3.5", 400, 4) is None
    before, behind = stored_order("qwen2.5vl", 576, 4), stored_order("qwen2.5vl", 144)
    assert before.reshape(144, 4).tolist() == (4 * behind[:, None] + np.arange(4)).tolist()
    assert behind[:5].tolist() == [0, 1, 2, 3, 12]
    with pytest.raises(ValueError, match=r"qwen2\.5vl: 140 tokens are no square grid"):
        stored_order("qwen2.5vl", 140)


@pytest.mark.parametrize(("tokens", "before"), [(576, 0), (577, 1), (64, 0), (1, 0), (2, 1), (400, 0), (257, 1)])
def test_the_rule_of_the_square(tokens, before):
    assert class_tokens(tokens) == before


def test_a_number_that_is_near_no_square_is_refused():
    with pytest.raises(ValueError, match="30 tokens are neither a square number nor one more"):
        class_tokens(30)


def test_keys_that_don_t_align_are_counted_and_named():
    found = align(["b", "a", "c", "d"], ["c", "x", "a"])
    assert (found.keys, found.only_first, found.only_second) == (["a", "c"], ["b", "d"], ["x"])
    assert str(found) == "2 keys in both; in the first alone 2 (b, d), in the second alone 1 (x)"
    many = align(keys(20), keys(5))
    assert str(many).endswith(
        "in the first alone 15 (000000005, 000000006, 000000007, 000000008, 000000009, ...), in the second alone 0"
    )
    with pytest.raises(ValueError, match="keys are strings; 10000 is int: read the column as text"):
        align(["000010000"], [10000])
    with pytest.raises(ValueError, match="1 keys stand twice, first 'a'"):
        align(["a", "a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"no key is in both, of 1 \('10000', ...\) and 1 \('000010000', ...\)"):
        align(["10000"], ["000010000"])


# ---- there and back ----
@pytest.mark.parametrize("model", [*MODELS, "lab-llava"])
def test_there_and_back_is_the_same(tmp_path, model):
    """Names, numbers, captions and manifest; what the files hold is in the study's order, what is read in ours."""
    before, behind = {"llava": (64, 64), "idefics2": (64, 10)}.get(model, (256, 64) if "qwen" in model else (36, 36))
    made = study(tmp_path / "00000", 5, (before, behind), WIDTHS.get(model, (3, 2)), model, batch_size=2, save_every=3)
    names = [path.name for path in made.paths]
    assert names == [f"{kind}_vectors_{n}.pt" for n in (4, 5) for kind in ("pre", "post")] + ["manifest.pt"]
    assert read_manifest(tmp_path / "00000") == {"total_seen": 5, "shards": 2, "model_family": model}
    plain = torch.load(made.paths[0], weights_only=True)
    assert plain["keys"] == made.keys[:4] and plain["caps"] == ["", "a bowl", "", ""] and plain["vecs"].dtype == torch.float32
    order = stored_order(model, before, 4)
    assert (order is None) == (model != "qwen2.5vl")
    assert np.array_equal(plain["vecs"].numpy(), made.pre[:4] if order is None else made.pre[:4, order])
    for kind, expected in (("pre", made.pre), ("post", made.post)):
        for folder in (tmp_path, tmp_path / "00000"):
            found = open_vectors(folder, kind)
            assert found.keys == made.keys and found.model == model and found.reports == []
            assert found.shape == expected.shape and np.array_equal(np.asarray(found), expected)
            assert found.captions == {made.keys[1]: "a bowl"}
        assert np.array_equal(found[[4, 0]], expected[[4, 0]]) and np.array_equal(found[3], expected[3])
        assert found.pooled() == pytest.approx(expected.mean(1), abs=1e-6)
    again = write_vectors(
        tmp_path / "again", found.keys, open_vectors(tmp_path, "pre"), open_vectors(tmp_path, "post"), found.captions,
        model=found.model, batch_size=2, save_every=3,
    )  # fmt: skip
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in made.paths]


def test_a_file_ends_with_the_batch_that_fills_it(tmp_path):
    """Batches of 32 and at least 400 a file: 416, 832, and the rest."""
    made = study(tmp_path, 1000, (1, 1), (1, 1))
    assert sorted(path.name for path in made.paths if path.name.startswith("pre")) == [
        f"pre_vectors_{n}.pt" for n in (1000, 416, 832)
    ]
    found = open_vectors(tmp_path, "pre")
    assert found.keys == made.keys and np.array_equal(np.asarray(found), made.pre)
    blocks = [part for part, _ in found.blocks(300)]
    assert [len(part) for part in blocks] == [300, 300, 300, 100] and [key for part in blocks for key in part] == made.keys


def test_folders_of_pictures_are_one_set(tmp_path):
    parts = [study(tmp_path / f"0000{i}", 3, start=10 * i) for i in (1, 0)]
    found = open_vectors(tmp_path, "post")
    assert found.keys == parts[1].keys + parts[0].keys and found.folder("000000011") == "00001"
    assert np.array_equal(np.asarray(found), np.concatenate([parts[1].post, parts[0].post]))
    with pytest.raises(KeyError, match="post: no vectors of 1 of 2 pictures, first 'x'"):
        found.rows(["x", "000000000"])


def test_references_there_and_back(tmp_path):
    vectors = numbers(7, 1, 5)[:, 0]
    paths = write_references(tmp_path / "00000", keys(7), vectors, pool="cls", model_type="clip", save_every=4, batch_size=4)
    assert [path.name for path in paths] == ["ref_vectors_4.pt", "ref_vectors_7.pt", "manifest.pt"]
    assert read_manifest(tmp_path / "00000") == {"total_seen": 7, "shards": 2, "pool": "cls", "model_type": "clip"}
    found = open_vectors(tmp_path, "ref")
    assert found.shape == (7, 5) and np.array_equal(np.asarray(found), vectors) and np.array_equal(found.pooled(), vectors)


def test_a_class_token_is_left_out_on_both_sides_or_kept(tmp_path):
    made = study(tmp_path / "with", 3, (5, 5))
    for kind, whole in (("pre", made.pre), ("post", made.post)):
        found = open_vectors(tmp_path / "with", kind)
        assert np.array_equal(np.asarray(found), whole[:, 1:]) and found.shape == (3, 4, whole.shape[2])
        assert "5 tokens a picture, one more than a square: the first, a class token, is left out" in found.reports[0]
        assert np.array_equal(np.asarray(open_vectors(tmp_path / "with", kind, class_token="none")), whole)
    latents = study(tmp_path / "latents", 3, (4, 10))
    assert np.array_equal(np.asarray(open_vectors(tmp_path / "latents", "post")), latents.post)
    wide = study(tmp_path / "wide", 3, (6, 6))
    with pytest.raises(FileError, match=r"pre_vectors_3\.pt: 6 tokens are neither .*class_token='none' keeps all"):
        open_vectors(tmp_path / "wide", "pre")
    assert np.array_equal(np.asarray(open_vectors(tmp_path / "wide", "pre", class_token="none")), wide.pre)


# ---- what is broken or mixed ----
def test_models_and_sites_that_differ_are_refused(tmp_path):
    study(tmp_path / "models" / "00000", model="llava", width=(1024, 4096))
    study(tmp_path / "models" / "00001", model="idefics2", width=(1152, 4096), start=10)
    with pytest.raises(FileError, match=r"files of several models: 'llava' by .*00000/manifest\.pt, 'idefics2' by .*00001"):
        open_vectors(tmp_path / "models", "pre")
    with pytest.raises(FileError, match=r"'qwen3\.5' by what was asked for, 'llava'"):
        open_vectors(tmp_path / "models" / "00000", "pre", model="qwen3.5")
    study(tmp_path / "sizes" / "00000")
    study(tmp_path / "sizes" / "00001", tokens=(9, 9), start=10)
    with pytest.raises(FileError, match=r"pre vectors of several models, sites or sizes: \(9, 3\) a picture.*, \(4, 3\)"):
        open_vectors(tmp_path / "sizes", "pre")
    study(tmp_path / "sides", model="llava", width=(4096, 1024))
    with pytest.raises(FileError, match="4096 numbers a token, 1024 are llava's pre: of another model or site"):
        open_vectors(tmp_path / "sides", "pre")


def test_a_file_that_was_cut_short_is_named_or_left_out(tmp_path):
    made = study(tmp_path, 6, batch_size=2, save_every=2)
    cut = tmp_path / "pre_vectors_4.pt"
    cut.write_bytes(cut.read_bytes()[:-300])
    with pytest.raises(FileError, match=r"pre_vectors_4\.pt: damaged or cut short \([\d,]+ bytes\)"):
        open_vectors(tmp_path, "pre")
    found = open_vectors(tmp_path, "pre", on_error="list")
    assert found.keys == made.keys[:2] + made.keys[4:] and np.array_equal(np.asarray(found), made.pre[[0, 1, 4, 5]])
    assert "left out" in found.reports[0] and "its manifest counts 6 pictures, its pre files hold 4" in found.reports[1]
    for path in tmp_path.glob("pre*"):
        path.write_bytes(b"")
    with pytest.raises(FileError, match="none of its files of pre vectors can be read"):
        open_vectors(tmp_path, "pre", on_error="list")


def test_files_of_a_run_that_was_stopped_are_told(tmp_path):
    made = study(tmp_path)
    (tmp_path / "manifest.pt").unlink()
    found = open_vectors(tmp_path, "pre")
    assert found.model == "" and "no manifest.pt" in found.reports[0] and "which model it is of is not said" in found.reports[1]
    assert open_vectors(tmp_path, "pre", model="mine").model == "mine"
    study(tmp_path, 3, model="other")  # another batch size later, and the old file beside
    with pytest.raises(FileError, match=r"3 keys stand twice, first '000000000' in .*pre_vectors_3\.pt and .*pre_vectors_5\.pt"):
        open_vectors(tmp_path, "pre")
    assert made.keys[:3] == keys(3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"keys": ["a"]}, "holds keys; 'keys'"),
        ({"keys": ["a"], "vecs": [1.0]}, "'vecs' .* wanted"),
        ({"keys": ["a"], "vecs": torch.ones(1, 2, 3, dtype=torch.int32)}, "'vecs' .* wanted"),
        ({"keys": ["a", "b"], "vecs": torch.ones(1, 2, 3)}, r"2 keys, 0 captions and vecs of shape \(1, 2, 3\)"),
        ({"keys": ["a"], "vecs": torch.ones(1, 3)}, r"vecs of shape \(1, 3\) don't fit"),
        ({"keys": ["a"], "vecs": torch.ones(1, 4, 3), "caps": ["x", "y"]}, "1 keys, 2 captions"),
        ({"keys": [7], "vecs": torch.ones(1, 4, 3)}, "keys are strings; 7 is int"),
        (["a"], "holds list, not a dictionary"),
        ({"keys": [SimpleNamespace()], "vecs": torch.ones(1, 4, 3)}, "holds more than numbers and text"),
    ],
)
def test_files_of_something_else_are_named(tmp_path, content, message):
    torch.save(content, tmp_path / "pre_vectors_1.pt")
    with pytest.raises(FileError, match=message) as caught:
        open_vectors(tmp_path, "pre")
    assert "pre_vectors_1.pt" in str(caught.value)


def test_nothing_in_a_file_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"keys": ["a"], "vecs": torch.ones(1, 4, 3), "caps": [Trap()]}, tmp_path / "pre_vectors_1.pt")
    torch.save({"state_dict": {}, "meta": {"x": Trap()}}, tmp_path / "best_model.pt")
    (tmp_path / "dataset_stats.pkl").write_bytes(pickle.dumps(Trap()))
    for read, path in ((lambda path: open_vectors(path, "pre"), tmp_path), (read_best_model, tmp_path / "best_model.pt")):
        with pytest.raises(FileError, match="holds more than numbers and text"):
            read(path)
    with pytest.raises(FileError, match=r"bare pickle, which could run anything.*np\.savez"):
        read_statistics(tmp_path / "dataset_stats.pkl")
    assert not (tmp_path / "sprung").exists()


def test_numbers_that_are_none_are_named(tmp_path):
    pre = numbers(4, 4, 3)
    pre[2, 1, 0] = np.inf
    write_vectors(tmp_path, keys(4), pre, numbers(4, 4, 2), model="other")
    with pytest.raises(FileError, match=r"pre_vectors_4\.pt: '000000002' holds NaN or infinite numbers"):
        open_vectors(tmp_path, "pre").pooled()
    with pytest.raises(ValueError, match="'000000002': its pre vectors hold NaN or infinite numbers"):
        adopt(tmp_path, tmp_path / "store")


def test_folders_without_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        open_vectors(tmp_path / "nowhere", "pre")
    with pytest.raises(FileNotFoundError, match=r"holds no post_vectors_<seen>\.pt"):
        open_vectors(tmp_path, "post")
    with pytest.raises(FileNotFoundError, match=r"manifest\.pt"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match="kind='mid' is unknown"):
        open_vectors(tmp_path, "mid")
    torch.save({}, tmp_path / "pre_vectors_last.pt")
    with pytest.raises(FileError, match="does not end in the number of pictures seen"):
        open_vectors(tmp_path, "pre")


@pytest.mark.parametrize(
    ("given_keys", "pre", "message"),
    [
        ([1, 2], (2, 4, 3), "keys are strings; 1 is int"),
        (["a", "a"], (2, 4, 3), "1 keys stand twice"),
        (["a", "b"], (3, 4, 3), r"pre has shape \(3, 4, 3\) for 2 keys"),
        (["a", "b"], (2, 3), "3 axes"),
        ([], (0, 4, 3), "for 0 keys"),
    ],
)
def test_what_does_not_fit_is_not_written(tmp_path, given_keys, pre, message):
    with pytest.raises(ValueError, match=message):
        write_vectors(tmp_path / "x", given_keys, np.zeros(pre, np.float32), np.zeros((len(given_keys), 4, 2)), model="other")
    assert not (tmp_path / "x").exists()


# ---- reconstructors ----
def test_a_reconstructor_is_read(tmp_path):
    state = OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.ones(2))
    meta = {"embed_model": "llava", "model_type": "mlp", "hidden_size": 2048, "num_layers": 3, "normalize": True}
    torch.save({"state_dict": state, "meta": meta}, tmp_path / "best_model.pt")
    found = read_best_model(tmp_path / "best_model.pt")
    assert found.meta == meta and list(found.state) == ["weight", "bias"]
    assert all(torch.equal(found.state[name], state[name]) for name in state)
    torch.save({"state_dict": {"a": 1}, "meta": meta}, tmp_path / "other.pt")
    with pytest.raises(FileError, match=r"'state_dict' .tensors by name. and 'meta' are wanted"):
        read_best_model(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError):
        read_best_model(tmp_path / "nothing.pt")


def test_statistics_are_read_once_converted(tmp_path):
    stats = {name: np.arange(3.0) for name in ("mean_pre", "std_pre", "mean_post", "std_post")}
    np.savez(tmp_path / "dataset_stats.npz", **stats)
    assert {name: found.tolist() for name, found in read_statistics(tmp_path / "dataset_stats.npz").items()} == {
        name: [0, 1, 2] for name in stats
    }
    np.savez(tmp_path / "some.npz", mean_pre=np.ones(3))
    with pytest.raises(FileError, match="std_pre, mean_post, std_post are missing"):
        read_statistics(tmp_path / "some.npz")


# ---- to and from our store ----
@pytest.mark.parametrize("model", ["qwen2.5vl", "idefics2", "lab-llava"])
def test_adopted_and_written_again_is_the_same(tmp_path, model):
    tokens = {"qwen2.5vl": (64, 16), "idefics2": (16, 10)}.get(model, (9, 9))
    made = {f"0000{i}": study(tmp_path / model / f"0000{i}", 5, tokens, WIDTHS.get(model, (3, 2)), model, 10 * i) for i in (0, 1)}
    states = adopt(tmp_path / model, tmp_path / "store", batch_size=3)
    assert states.keys == [f"{folder}/{key}" for folder in made for key in made[folder].keys]
    site = {"idefics2": "pre_normed"}.get(model, "pre")
    assert states.sites == (site, "post") and states.model == hub_id(model) and states.reports == []
    for name, whole in ((site, [one.pre for one in made.values()]), ("post", [one.post for one in made.values()])):
        assert np.array_equal(np.asarray(states.vectors(name)), np.concatenate(whole))
        assert states.pooled(name) == pytest.approx(np.concatenate(whole).mean(1), abs=1e-5)
        assert (states.rounding(name) == 0).all()
    assert states.grids == {
        "qwen2.5vl": {"pre": (8, 8), "post": (4, 4)}, "idefics2": {"pre_normed": (4, 4), "post": None},
    }.get(model, {"pre": (3, 3), "post": (3, 3)})  # fmt: skip
    captions = {f"{folder}/{one.keys[1]}": "a bowl" for folder, one in made.items()}
    again = write(states, tmp_path / "again", captions=captions)
    assert {path.relative_to(tmp_path / "again") for path in again} == {
        path.relative_to(tmp_path) for one in made.values() for path in one.paths
    }
    assert all(path.read_bytes() == (tmp_path / path.relative_to(tmp_path / "again")).read_bytes() for path in again)


def test_an_adoption_goes_on_and_says_what_is_missing(tmp_path):
    study(tmp_path / "f", 6, batch_size=2, save_every=2)
    (tmp_path / "f" / "post_vectors_4.pt").unlink()
    states = adopt(tmp_path / "f", tmp_path / "store")
    assert states.keys == ["000000000", "000000001", "000000004", "000000005"]
    assert "its manifest counts 6 pictures, its post files hold 4" in states.reports[0]
    assert states.reports[1].endswith("4 keys in both; in the first alone 2 (000000002, 000000003), in the second alone 0")
    made = study(tmp_path / "f", 6, batch_size=2, save_every=2)
    whole = adopt(tmp_path / "f", tmp_path / "store")
    assert whole.keys == made.keys and np.array_equal(np.asarray(whole.vectors("post")), made.post) and not whole.reports


def test_what_bfloat16_does_not_hold_is_not_adopted_in_it(tmp_path):
    pre = np.full((2, 4, 3), 0.1, np.float32)
    write_vectors(tmp_path / "f", ["a", "b"], pre, numbers(2, 4, 2), model="other")
    with pytest.raises(ValueError, match=r"'a': its pre vectors are not numbers of torch\.bfloat16; dtype='float32' keeps them"):
        adopt(tmp_path / "f", tmp_path / "half")
    assert np.array_equal(np.asarray(adopt(tmp_path / "f", tmp_path / "whole", dtype="float32").vectors("pre")), pre)


def test_stems_that_stand_twice_are_not_written(tmp_path):
    study(tmp_path / "f")
    states = adopt(tmp_path / "f", tmp_path / "s")
    states.keys = ["f/x.jpg", "f/x.png"]
    with pytest.raises(ValueError, match="f: the stem 'x' stands twice"):
        write(states, tmp_path / "out")
