"""Tables: what is written is read back, the same inputs give the same bytes, and a refusing disk loses nothing."""

import errno
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.plots import model_name
from spatialprobes.tables import canonical_json, provenance, read_provenance, read_table, save_table, sidecar, write_atomically

FRAME = pd.DataFrame(
    {"id": ["a", "b", "c"], "norm": [0.1, np.nan, 3.0], "correct": [True, False, True], "png": [b"\x00\x01", b"", None]}
)


class Model:
    """Stands for a VLM: all a table needs of one is its facts."""

    def facts(self):
        return {"name": "lab-llava", "sha256": "0" * 64, "dtype": "float32"}


def test_round_trip_keeps_values_types_and_provenance(tmp_path):
    facts = provenance(Model(), seed=3, parameters={"limit": np.int64(4)})
    save_table(FRAME, tmp_path / "norms.parquet", facts)
    back = read_table(tmp_path / "norms.parquet")
    pd.testing.assert_frame_equal(back, FRAME)
    assert back.attrs["provenance"] == read_provenance(tmp_path / "norms.parquet")
    assert back.attrs["provenance"]["model"]["name"] == "lab-llava"
    assert back.attrs["provenance"]["parameters"] == {"limit": 4}
    assert back.attrs["provenance"]["packages"]["numpy"] == np.__version__


def test_a_table_may_be_about_several_models():
    class Other(Model):
        def facts(self):
            return {"model": "other"}

    assert provenance([Model()])["model"] == Model().facts()
    assert provenance([Model(), Other()])["model"] == [Model().facts(), {"model": "other"}]
    assert model_name(provenance([Other(), Other()])) == "other, other"
    assert model_name(provenance(Other())) == "other"


def test_same_inputs_give_the_same_bytes_and_volatile_facts_stay_out(tmp_path):
    first = save_table(FRAME, tmp_path / "first.parquet", {"seed": 1, "a": 2}, volatile={"seconds": 1.5})
    again = save_table(FRAME.copy(), tmp_path / "again.parquet", {"a": 2, "seed": 1}, volatile={"seconds": 99.0})
    assert first.read_bytes() == again.read_bytes()
    assert json.loads(sidecar(again).read_text()) == {"seconds": 99.0}
    other = save_table(FRAME, tmp_path / "other.parquet", {"seed": 2, "a": 2})
    assert other.read_bytes() != first.read_bytes()
    assert not sidecar(other).exists()


def test_a_table_read_back_and_saved_again_is_the_same_file(tmp_path):
    first = save_table(FRAME, tmp_path / "first.parquet", {"seed": 1})
    again = save_table(read_table(first), tmp_path / "again.parquet", {"seed": 1})
    assert first.read_bytes() == again.read_bytes()


def test_named_index_becomes_columns_and_a_leftover_index_goes(tmp_path):
    grouped = FRAME.groupby("correct")[["norm"]].mean()
    assert list(read_table(save_table(grouped, tmp_path / "g.parquet", {})).columns) == ["correct", "norm"]
    filtered = FRAME[FRAME["correct"]]
    back = read_table(save_table(filtered, tmp_path / "f.parquet", {}))
    assert list(back.columns) == list(FRAME.columns) and list(back.index) == [0, 1]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (pd.DataFrame({0: [1]}), "must be text"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "repeat"),
        (pd.DataFrame({"a": [1, "b", [3]]}), "one type"),
    ],
)
def test_frames_that_are_not_tidy_are_refused(tmp_path, frame, says):
    with pytest.raises(ValueError, match=says):
        save_table(frame, tmp_path / "x.parquet", {})
    assert list(tmp_path.iterdir()) == []


def test_provenance_that_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(TypeError, match="object"):
        save_table(FRAME, tmp_path / "x.parquet", {"thing": object()})
    with pytest.raises(ValueError, match="NaN"):
        save_table(FRAME, tmp_path / "x.parquet", {"low": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_missing_and_foreign_files_are_named(tmp_path):
    save_table(FRAME, tmp_path / "permutation.parquet", {})
    with pytest.raises(FileNotFoundError, match=r"permutatoin.parquet; there: permutation.parquet"):
        read_table(tmp_path / "permutatoin.parquet")
    FRAME[["id"]].to_parquet(tmp_path / "foreign.parquet")
    with pytest.raises(ValueError, match="no provenance"):
        read_table(tmp_path / "foreign.parquet")
    (tmp_path / "half.parquet").write_bytes((tmp_path / "permutation.parquet").read_bytes()[:100])
    with pytest.raises(ValueError, match="not a readable parquet"):
        read_table(tmp_path / "half.parquet")


def test_no_room_on_the_disk_is_one_line_and_the_old_table_stays(tmp_path, monkeypatch):
    path = save_table(FRAME, tmp_path / "norms.parquet", {"seed": 1})
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write .*norms.parquet .*No space left") as caught:
        save_table(FRAME, path, {"seed": 2})
    assert caught.value.errno == errno.ENOSPC and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["norms.parquet"]


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_a_write_cut_short_by_the_system_leaves_nothing(tmp_path):
    program = textwrap.dedent(
        f"""
        import resource
        from spatialprobes.tables import write_atomically
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_atomically({str(tmp_path / "big.bin")!r}, bytes(100_000))
        except OSError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "lib"}, check=True
    )
    assert "cannot write" in done.stdout and "100,000 bytes" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_path_below_a_file_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write"):
        write_atomically(tmp_path / "file" / "x.parquet", b"1")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
@settings(deadline=None, max_examples=60)
def test_canonical_json_round_trips_and_ignores_key_order(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text
