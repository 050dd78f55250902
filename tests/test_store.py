"""A store under everything that can happen to it: kills at every step, two writers, a full disk, damage."""

import errno
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open

from spatialprobes import index as indexing
from spatialprobes import shards
from spatialprobes.fingerprints import FingerprintError, canonical, digest
from spatialprobes.shards import ShardError
from spatialprobes.store import Store, StoreError

MADE_FROM = {"weights": "abc", "capture": {"layers": [0, 1], "at": "last"}, "version": 1}

# What the processes below share: 24 examples in batches of 4, two layers each, two positions in the second.
WORK = """
import os, signal, sys
import numpy as np
from spatialprobes import index, shards
from spatialprobes.store import Store

IDS = [f"e{i:02}" for i in range(24)]
def rows(ids, layer):
    return np.array([[hash_of(i), layer, 7] for i in ids], np.float32)
def hash_of(i):
    return float(int(i[1:]) * 31 % 17)
def work(path, ids=IDS, size=4):
    store = Store.open(path, {"weights": "abc"})
    for start in range(0, len(ids), size):
        batch = store.missing(ids[start : start + size], "hidden", 1)
        with store.commit() as commit:
            commit.append(batch, "hidden", 0, 5, rows(batch, 0))
            commit.append([i for i in batch for _ in range(2)], "hidden", 1, [3, 4] * len(batch), np.repeat(rows(batch, 1), 2, 0))
    return store
"""


def python(code, *arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(shards.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", WORK + code, *map(str, arguments)], env=environment, text=True, stdout=subprocess.PIPE, **options
    )


def expected():
    space = {}
    exec(WORK, space)
    ids = space["IDS"]
    return {0: space["rows"](ids, 0), 1: np.repeat(space["rows"](ids, 1), 2, 0)}, ids


def assert_complete(path):
    """All rows, the right ones, each once: in the index, and in the shards themselves."""
    arrays, ids = expected()
    store = Store.open(path)
    for layer, array in arrays.items():
        got = store.read("hidden", layer)
        assert got.examples == sorted(ids * len(set(got.positions))) and np.array_equal(got.array, array)
    table = store.index().to_pandas()
    assert not table.duplicated(["example", "site", "layer", "position"]).any() and len(table) == 3 * len(ids)
    stored = [block.shape[0] for shard in (path / "shards").glob("*.safetensors") for block in shards.read_header(shard)]
    assert sum(stored) == 3 * len(ids)
    assert not list(path.glob("**/.tmp-*"))
    assert {*table["shard"]} == {file.stem for file in (path / "shards").iterdir()}


def test_what_goes_in_comes_out(tmp_path):
    store = Store.open(tmp_path / "s", MADE_FROM)
    random = np.random.default_rng(0)
    first, second = random.normal(size=(3, 4, 5)).astype(np.float32), random.normal(size=(2, 4, 5)).astype(np.float32)
    assert store.append(["b", "a", "c"], "hidden", 2, [9, 8, 7], first) == 3
    assert store.append(["d", "a"], "hidden", 2, [1, 2], second) == 2
    assert store.append([], "hidden", 2, [], np.empty((0, 4, 5), np.float32)) == 0
    for opened in (store, Store.open(tmp_path / "s", MADE_FROM), Store.open(tmp_path / "s")):
        got = opened.read("hidden", 2)
        assert got.examples == ["a", "a", "b", "c", "d"] and got.positions.tolist() == [2, 8, 9, 7, 1]
        assert np.array_equal(got.array, np.stack([second[1], first[1], first[0], first[2], second[0]]))
        some = opened.read("hidden", 2, ["d", "b"])
        assert some.examples == ["d", "b"] and np.array_equal(some.array, np.stack([second[0], first[0]]))
        assert opened.read("hidden", 2, []).array.shape == (0, 4, 5)
        assert opened.done("hidden", 2) == {"a", "b", "c", "d"} and opened.done("hidden", 3) == set()
        assert opened.missing(["x", "a", "w"], "hidden", 2) == ["x", "w"]
        pieces = list(opened.batches("hidden", 2, rows=2))
        assert [len(piece.examples) for piece in pieces] == [2, 2, 1]
        assert np.array_equal(np.concatenate([piece.array for piece in pieces]), got.array)
        assert opened.groups() == [("hidden", 2)]
        assert opened.index().column_names == ["example", "site", "layer", "position", "shard", "row"]
    assert isinstance(store.read("hidden", 2, ["b"]).array, np.memmap)


NUMBERS = st.one_of(
    hnp.floating_dtypes(sizes=(16, 32, 64)), hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.boolean_dtypes()
)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), dtype=NUMBERS, tail=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
def test_any_dtype_and_shape_in_any_portions(tmp_path_factory, data, dtype, tail):
    store = Store.open(tmp_path_factory.mktemp("store"), MADE_FROM)
    held = {}
    for _ in range(data.draw(st.integers(1, 3))):
        keys = data.draw(st.lists(st.tuples(st.text(max_size=3), st.integers(-1, 3)), unique=True, min_size=1, max_size=4))
        array = data.draw(hnp.arrays(dtype, (len(keys), *tail)))
        new = {key: row for key, row in zip(keys, array, strict=True) if key not in held}
        assert store.append([key[0] for key in keys], "site / ü", 0, [key[1] for key in keys], array) == len(new)
        held.update(new)
    for opened in (store, Store.open(store.path)):
        got = opened.read("site / ü", 0)
        assert got.array.dtype == dtype.newbyteorder("=")
        assert [*zip(got.examples, got.positions.tolist(), strict=True)] == sorted(held)
        assert np.array_equal(got.array, np.stack([held[key] for key in sorted(held)]), equal_nan=dtype.kind == "f")


def test_bfloat16_and_torch_tensors(tmp_path):
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    values[0, 0], values[0, 1] = float("inf"), float("nan")
    store = Store.open(tmp_path, MADE_FROM)
    names = list("fedcba")
    store.append(names, "hidden", 0, 0, values.requires_grad_())
    got = store.read("hidden", 0)
    assert got.array.dtype == np.float32
    assert np.array_equal(got.array, values.detach().float().numpy()[::-1], equal_nan=True)
    assert np.array_equal(store.read("hidden", 0, names).array, values.detach().float().numpy(), equal_nan=True)
    store.append(names, "strided", 0, 0, torch.arange(12).reshape(2, 6).T)
    assert store.read("strided", 0, names).array.tolist() == [[i, i + 6] for i in range(6)]
    with pytest.raises(TypeError, match=r"complex64 can't be stored; float64, .*torch.bfloat16 can"):
        store.append(["a"], "hidden", 1, 0, np.zeros((1, 2), np.complex64))


def test_a_shard_is_plain_safetensors(tmp_path):
    store = Store.open(tmp_path, MADE_FROM)
    wide, flags, half = np.arange(6.0).reshape(3, 2), np.array([[True], [False], [True]]), torch.ones(3, 5).bfloat16()
    with store.commit() as commit:
        commit.append(list("abc"), "flags", 0, 0, flags)
        commit.append(list("abc"), "half", 1, 0, half)
        commit.append(list("abc"), "wide", 2, 0, wide)
    (shard,) = (tmp_path / "shards").iterdir()
    with safe_open(shard, "pt") as file:
        assert torch.equal(file.get_tensor("half/1"), half)
        assert torch.equal(file.get_tensor("wide/2"), torch.from_numpy(wide))
        assert torch.equal(file.get_tensor("flags/0"), torch.from_numpy(flags))
        rows = json.loads(file.metadata()["rows"])
    assert {row["tensor"]: row["examples"] for row in rows} == {name: list("abc") for name in ("wide/2", "half/1", "flags/0")}
    offsets = {block.site: block.offset for block in shards.read_header(shard)}
    assert offsets["wide"] % 8 == 0 and offsets["half"] % 2 == 0


def test_a_commit_is_all_or_nothing(tmp_path):
    store = Store.open(tmp_path, MADE_FROM)
    with pytest.raises(ZeroDivisionError), store.commit() as commit:
        commit.append(["a"], "hidden", 0, 0, np.zeros((1, 2)))
        _ = 1 / 0
    assert store.groups() == [] and not list((tmp_path / "shards").iterdir())
    with store.commit() as commit:
        for layer in range(3):
            commit.append(["a"], "hidden", layer, 0, np.full((1, 2), layer))
            commit.append(["b"], "hidden", layer, 0, np.full((1, 2), 10 + layer))
    assert commit.written == 6 and len(list((tmp_path / "shards").iterdir())) == 1
    assert store.read("hidden", 2).array.tolist() == [[2, 2], [12, 12]]


def test_what_does_not_fit_is_refused_and_nothing_written(tmp_path):
    store = Store.open(tmp_path, MADE_FROM)
    store.append(["a", "b"], "hidden", 0, 0, np.zeros((2, 3), np.float32))
    for wrong, message in (
        (
            (["c"], "hidden", 0, 0, np.zeros((1, 4), np.float32)),
            r"hidden/0: holds F32 rows of shape \(3,\); these are F32 of \(4,\)",
        ),
        ((["c"], "hidden", 0, 0, np.zeros((1, 3))), r"these are F64 of \(3,\)"),
        ((["c"], "hidden", 0, 0, np.zeros((2, 3), np.float32)), r"1 examples, 1 positions, an array of shape \(2, 3\)"),
        ((["c"], "hidden", 0, [1, 2], np.zeros((1, 3), np.float32)), "1 examples, 2 positions"),
        ((["c"], "hidden", 0, [0], np.float32(3)), r"an array of shape \(\)"),
        ((["c", "d", "c"], "hidden", 0, 4, np.zeros((3, 3), np.float32)), "example 'c', position 4 is given twice"),
        (([10000], "hidden", 0, 0, np.zeros((1, 3), np.float32)), "example ids are strings; 10000 is int"),
    ):
        with pytest.raises(StoreError, match=message):
            store.append(*wrong)
    assert store.index().num_rows == 2 and len(list((tmp_path / "shards").iterdir())) == 1
    with pytest.raises(StoreError, match="opened for reading"):
        Store.open(tmp_path).append(["c"], "hidden", 0, 0, np.zeros((1, 3), np.float32))


def test_what_is_said_of_reads(tmp_path):
    store = Store.open(tmp_path, MADE_FROM)
    with pytest.raises(KeyError, match="it holds nothing yet"):
        store.read("hidden", 0)
    store.append(["scene-1", "scene-2"], "hidden", 0, 0, np.zeros((2, 3)))
    with pytest.raises(KeyError, match="holds no hiden/0; it holds hidden/0"):
        store.read("hiden", 0)
    with pytest.raises(KeyError, match="for 1 of 2 examples, first 'scene-3'; it holds scene-"):
        store.read("hidden", 0, ["scene-1", "scene-3"])


def test_another_fingerprint_is_refused_naming_the_keys(tmp_path):
    Store.open(tmp_path, MADE_FROM).append(["a"], "hidden", 0, 0, np.zeros((1, 2)))
    other = {"weights": "abd", "capture": {"layers": (0, 1), "at": "first"}, "dtype": "float32", "version": 1}
    with pytest.raises(FingerprintError) as info:
        Store.open(tmp_path, other)
    said = str(info.value)
    assert 'weights is "abc" there, "abd" here' in said and 'capture.at is "last" there, "first" here' in said
    assert "dtype is only here" in said and "layers" not in said and "version" not in said and "\n" not in said
    assert Store.open(tmp_path).fingerprint == MADE_FROM
    written = json.loads((tmp_path / "fingerprint.json").read_text())
    assert written["sha256"] == digest(MADE_FROM) == digest(dict(reversed(MADE_FROM.items())))
    for odd in ({"a": np.float32(1)}, {"a": float("nan")}, {"a": {1, 2}}):
        with pytest.raises(FingerprintError, match=r"fingerprint: a = .* is not JSON"):
            canonical(odd)
    with pytest.raises(FingerprintError, match="version is 1 there, true here"):
        Store.open(tmp_path, {**MADE_FROM, "version": True})


def test_folders_that_are_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no store there"):
        Store.open(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(StoreError, match=r"is no store, and holds 'thesis\.tex'"):
        Store.open(tmp_path, MADE_FROM)
    with pytest.raises(StoreError, match="is a file"):
        Store.open(tmp_path / "thesis.tex", MADE_FROM)
    (tmp_path / "s").mkdir()
    (tmp_path / "s/fingerprint.json").write_text("{")
    with pytest.raises(FingerprintError, match="is no fingerprint of a store"):
        Store.open(tmp_path / "s", MADE_FROM)


# Kills

EVERYWHERE = """
# Fork by fork: one process works and is killed at step n, a fresh one resumes; until a process ends without reaching step n.
# The parent itself runs no arrow code, whose threads would not survive the fork.
import pandas  # arrow looks for it once a process, which takes long

def die_at(n):
    left = [n]
    def step():
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    def around(function):
        def stepped(*arguments, **options):
            step()
            result = function(*arguments, **options)
            step()
            return result
        return stepped
    class Halves:
        def __init__(self, file):
            self.file = file
        def __enter__(self):
            return self
        def __exit__(self, *arguments):
            self.file.close()
        def write(self, piece):
            piece = bytes(piece)
            step()
            self.file.write(piece[: len(piece) // 2])
            self.file.flush()
            step()
            self.file.write(piece[len(piece) // 2 :])
        def __getattr__(self, name):
            return getattr(self.file, name)
    shards.open = lambda path, mode: Halves(open(path, mode)) if mode == "xb" else open(path, mode)
    os.replace, os.fsync, index.Path.unlink = around(os.replace), around(os.fsync), around(index.Path.unlink)

os.fsync = lambda descriptor: None  # a kill, unlike a power cut, loses nothing that was written: no need to wait for the disk

def forked(function):
    child = os.fork()
    if not child:
        code = 1
        try:
            function()
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitpid(child, 0)[1]

folder, merge = sys.argv[1], int(sys.argv[2])
n, killed = 1, True
while killed:
    def first():
        if merge:
            work(f"{folder}/{n}", size=12)
            index.MERGE_PARTS = 1
        die_at(n)
        work(f"{folder}/{n}", size=12)
    status = forked(first)
    killed = os.WIFSIGNALED(status)
    assert killed or status == 0, status
    index.MERGE_PARTS = 256
    assert forked(lambda: work(f"{folder}/{n}", size=12)) == 0, f"resuming after step {n}"
    n += 1
print(n)
"""


@pytest.mark.parametrize("merge", [0, 1])
def test_killed_at_every_step_and_resumed(tmp_path, merge):
    process = python(EVERYWHERE, tmp_path, merge)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert int(out) > (8 if merge else 40)  # it did go through the steps of two commits
    for path in tmp_path.iterdir():
        assert_complete(path)


def test_killed_from_outside_at_random_moments_and_resumed(tmp_path):
    path = tmp_path / "s"
    slowly = """
def slow(*arguments):
    print("ready", flush=True)
    return work(*arguments)
slow(sys.argv[1], IDS, 1)
"""
    random = np.random.default_rng(0)
    for _ in range(3):
        process = python(slowly, path)
        process.stdout.readline()
        time.sleep(random.uniform(0, 0.08))
        process.kill()
        process.wait()
    process = python(slowly, path)
    process.wait(timeout=60)
    assert process.returncode == 0
    assert_complete(path)


def test_two_processes_append_without_loss_or_doubles(tmp_path):
    both = [
        python(
            f"print('ready', flush=True); sys.stdin.readline(); work(sys.argv[1], {ids}, 3)",
            tmp_path / "s",
            stdin=subprocess.PIPE,
        )
        for ids in ("IDS[:16]", "IDS[::-1][:18]")  # ten examples are in both
    ]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert_complete(tmp_path / "s")


def test_a_reader_sees_what_another_commits(tmp_path):
    writer = Store.open(tmp_path, MADE_FROM)
    reader, second = Store.open(tmp_path), Store.open(tmp_path, MADE_FROM)
    writer.append(["a"], "hidden", 0, 0, np.zeros((1, 2)))
    assert reader.done("hidden", 0) == set()
    reader.refresh()
    assert reader.done("hidden", 0) == {"a"}
    assert second.append(["a", "b"], "hidden", 0, 0, np.ones((2, 2))) == 1  # seen under the lock, though not before
    assert second.read("hidden", 0).array.tolist() == [[0, 0], [1, 1]]


def test_a_lock_that_is_held_is_waited_for_and_said(tmp_path):
    store = Store.open(tmp_path, MADE_FROM, lock_seconds=0.05)
    with (
        Store.open(tmp_path, MADE_FROM)._locked(),
        pytest.raises(TimeoutError, match=r"another process has been writing for 0\.05 s"),
    ):
        store.append(["a"], "hidden", 0, 0, np.zeros((1, 2)))
    assert store.append(["a"], "hidden", 0, 0, np.zeros((1, 2))) == 1


def test_many_index_parts_become_one(tmp_path, monkeypatch):
    store = Store.open(tmp_path, MADE_FROM)
    for i in range(6):
        store.append([f"e{i}"], "hidden", 0, 0, np.full((1, 2), i))
    before, reader = store.index(), Store.open(tmp_path)
    monkeypatch.setattr(indexing, "MERGE_PARTS", 3)
    merged = Store.open(tmp_path, MADE_FROM)
    assert len(list((tmp_path / "index").iterdir())) == 1
    reader.refresh()
    for opened in (merged, Store.open(tmp_path), reader):
        assert opened.index().equals(before)
    assert merged.append(["e3", "new"], "hidden", 0, 0, np.zeros((2, 2), int)) == 1


# Disks


def test_a_full_disk_is_one_line_and_the_store_stays(tmp_path):
    store = Store.open(tmp_path, MADE_FROM)
    store.append(["a"], "hidden", 0, 0, np.ones((1, 3)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"no room for 0\.8 MB .*untouched") as info:
            store.append(["b"], "hidden", 1, 0, np.ones((1, 100_000)))
        assert info.value.errno == errno.EFBIG and "\n" not in str(info.value)
        assert store.append(["b"], "hidden", 0, 0, np.ones((1, 3))) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("**/.tmp-*"))
    assert Store.open(tmp_path, MADE_FROM).read("hidden", 0).array.tolist() == [[1, 1, 1]] * 2
    assert store.append(["b"], "hidden", 1, 0, np.ones((1, 100_000))) == 1


@pytest.mark.parametrize("full", [1, 2])  # at the shard, at its index part
def test_a_disk_that_fills_within_a_commit(tmp_path, monkeypatch, full):
    store = Store.open(tmp_path, MADE_FROM)
    store.append(["a"], "hidden", 0, 0, np.ones((1, 3)))
    files = []
    fsync = os.fsync

    def filled(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].startswith(shards.TEMPORARY):
            files.append(descriptor)
            if len(files) == full:
                raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", filled)
    with pytest.raises(OSError, match=r"no room for .*no space left on device"):
        store.append(["b"], "hidden", 0, 0, np.ones((1, 3)))
    monkeypatch.undo()
    store.append(["b"], "hidden", 0, 0, np.ones((1, 3)))
    for opened in (store, Store.open(tmp_path), Store.open(tmp_path, MADE_FROM)):
        assert opened.read("hidden", 0).examples == ["a", "b"]
    assert sum(block.shape[0] for shard in (tmp_path / "shards").iterdir() for block in shards.read_header(shard)) == 2


def test_leftovers_are_mended_and_reported(tmp_path):
    store = Store.open(tmp_path, MADE_FROM)
    for name in "abcd":
        store.append([name], "hidden", 0, 0, np.full((1, 2), ord(name)))
    files = sorted((tmp_path / "shards").iterdir())
    (tmp_path / "shards/.tmp-123").write_bytes(b"half")
    (tmp_path / "index" / f"{files[0].stem}.parquet").write_bytes(b"PAR1 cut")  # damaged part
    (tmp_path / "index" / f"{files[1].stem}.parquet").unlink()  # writer stopped between shard and index
    files[2].unlink()  # deleted by hand
    (tmp_path / "shards/999999-aa.safetensors").write_bytes(files[3].read_bytes()[:-3])  # cut, and never indexed

    reader = Store.open(tmp_path)
    assert reader.read("hidden", 0).array[:, 0].tolist() == [ord(name) for name in "abd"]
    assert (tmp_path / "shards/.tmp-123").exists()  # a reader touches nothing
    writer = Store.open(tmp_path, MADE_FROM)
    assert writer.read("hidden", 0).array[:, 0].tolist() == [ord(name) for name in "abd"]
    said = "\n".join(writer.reports)
    for part in (
        "half-written file, shards/.tmp-123",
        "damaged index part",
        "indexed shard 000001",
        "was deleted: its 1 rows",
        "left out, ",
    ):
        assert part in said
    assert writer.missing("abcd", "hidden", 0) == ["c"]
    assert writer.append(["c"], "hidden", 0, 0, np.full((1, 2), ord("c"))) == 1
    again = Store.open(tmp_path, MADE_FROM)
    assert again.read("hidden", 0).array[:, 0].tolist() == [ord(name) for name in "abcd"]
    assert all("was deleted" in line for line in again.reports)  # the rest was settled


def test_a_shard_damaged_later_is_named_when_it_is_read(tmp_path):
    Store.open(tmp_path, MADE_FROM).append(["a"], "hidden", 0, 0, np.ones((1, 200)))
    (shard,) = (tmp_path / "shards").iterdir()
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole + b"x", whole[:8] + b"\xff" * (len(whole) - 8)):
        shard.write_bytes(damaged)
        with pytest.raises(ShardError, match=rf"{shard.name}: damaged"):
            Store.open(tmp_path).read("hidden", 0)
