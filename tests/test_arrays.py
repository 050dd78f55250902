"""Arrays from hostile files: nothing is read beyond the bound, and each refusal is a line that names the file."""

import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialprobes.sources.arrays import headers_npz, read_npy, read_npz, write_npz

LIMIT = 1_000_000


def npy(header, data=b"", version=1, length=None):
    """The bytes of a .npy file, its header written by hand."""
    text = (header + "\n").encode("latin-1")
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", length or len(text)) + text + data


def described(shape="(2,)", descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (npy(described("(-1,)"), bytes(4000)), r"shape \(-1,\); each must be a whole number from 0"),
        (npy(described("(-2, -2)"), bytes(16)), r"shape \(-2, -2\); each must be"),
        (npy(described("(True,)"), bytes(4)), r"shape \(True,\); each must be"),
        (npy(described("[2]"), bytes(8)), "shape is not valid"),
        (npy(described("(2.0,)"), bytes(8)), "shape is not valid"),
        (npy(described(f"(0, {10**30})")), "shape .*: Maximum allowed dimension"),
        (npy(described("(" + "-" * 3500 + "1,)")), "not a NumPy array"),
        (npy(described("(" + "-" * 9000 + "1,)")), "a header of 9,058 bytes; at most 4,096"),
        (npy("{", version=2, length=4_000_000_000), "a header of 4,000,000,000 bytes"),
        (npy("((("), "not a NumPy array"),
        (npy(described(descr="5")), "not a NumPy array"),
        (npy(described(descr="'|V0'")), "which is no number"),
        (npy(described(descr="('<f4', (1000000,))"), bytes(8)), "which is no number"),
        (npy(described(), version=9), r"version \(9, 0\) of the \.npy format is unknown here"),
        (b"\x93NUMPY\x01\x00", "not a NumPy array"),
    ],
)
def test_headers_that_numpy_never_writes_are_refused(tmp_path, content, says):
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npy: " + ".*" + says):
        read_npy(tmp_path / "bad.npy", LIMIT)
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("alphaV.npy", content)
    with pytest.raises(ValueError, match=r"bad\.npz: alphaV: .*" + says):
        read_npz(tmp_path / "bad.npz", LIMIT)


@pytest.mark.parametrize("header", [npy(described("(-1,)")), npy("", version=2, length=50_000_000)])
def test_no_more_is_unpacked_than_the_bound(tmp_path, header):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", header + bytes(50_000_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.npz: a"):
        read_npz(tmp_path / "bomb.npz", LIMIT)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * LIMIT


def test_archives_that_numpy_never_writes_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.ones(1000))
    with zipfile.ZipFile(tmp_path / "bad.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.npy", buffer.getvalue())
    with pytest.raises(ValueError, match=r"bad\.npz: a: packed in a way"):
        read_npz(tmp_path / "bad.npz")
    with zipfile.ZipFile(tmp_path / "bad.npz", "w") as archive:
        archive.writestr("a.npy", buffer.getvalue())
        archive.writestr("a", buffer.getvalue())
    with pytest.raises(ValueError, match=r"bad\.npz: a stands twice"):
        read_npz(tmp_path / "bad.npz")


@settings(deadline=None, max_examples=60)
@given(where=st.integers(0, 700), byte=st.integers(0, 255))
def test_a_spoilt_byte_is_read_or_refused_in_a_line(tmp_path_factory, where, byte):
    path = tmp_path_factory.getbasetemp() / "spoilt.npz"
    np.savez_compressed(path, a=np.arange(60.0), b=np.ones((2, 3), np.float32))
    content = bytearray(path.read_bytes())
    content[where % len(content)] = byte
    path.write_bytes(bytes(content))
    try:
        found = read_npz(path, LIMIT)
    except ValueError as error:
        assert "spoilt.npz" in str(error)
    else:
        assert sum(array.nbytes for array in found.values()) <= LIMIT


def test_what_is_written_is_read(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "empty": np.ones((0, 3)), "one": np.array(3), "half": np.ones(2, np.float16)}
    found = read_npz(write_npz(tmp_path / "some.npz", arrays))
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    with open(tmp_path / "second.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(3), (2, 0))
    assert read_npy(tmp_path / "second.npy").tolist() == [0, 1, 2]


def test_a_directory_that_points_before_the_file_is_named(tmp_path):
    path = write_npz(tmp_path / "a.npz", {"a": np.arange(3)})
    whole = path.read_bytes()
    path.write_bytes(whole[120:])  # its end says where the directory was
    with pytest.raises(ValueError, match=r"a\.npz: "):
        read_npz(path)
    end = whole.rindex(b"PK\x05\x06")
    path.write_bytes(whole[: end + 12] + (2**31).to_bytes(4, "little") + whole[end + 16 :])  # a directory longer than the file
    with pytest.raises(ValueError, match=r"a\.npz: not a readable \.npz file"):
        headers_npz(path)
