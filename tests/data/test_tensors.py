"""Tensor files: read by the safetensors package, and damaged ones refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.tensors import TensorWriter, checksum, open_tensors


def arrays(count: int = 50) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "labels": rng.integers(0, 256, count).astype(np.uint8),
        "coords": rng.normal(size=(count, 3)).astype(np.float32),
        "edge": rng.random(count) < 0.5,
        "time": rng.random(count),
        "turn": rng.integers(-9, 9, (count, 2)).astype(np.int16),
        "none": np.empty((0, 3), np.float32),
    }


def write(path: Path, content: dict[str, np.ndarray], chunk: int = 7):
    with TensorWriter(path) as writer:
        for name, array in content.items():
            for begin in range(0, max(len(array), 1), chunk):
                writer.append(name, array[begin : begin + chunk])
        return writer.finish({"name": "room", "words": "a ü"})


def test_the_safetensors_package_reads_what_is_written(tmp_path):
    safetensors = pytest.importorskip("safetensors", reason="safetensors is not installed")
    written = write(tmp_path / "room.safetensors", arrays())
    assert written.bytes == (tmp_path / "room.safetensors").stat().st_size
    assert written.checksum == checksum(tmp_path / "room.safetensors")
    with safetensors.safe_open(tmp_path / "room.safetensors", framework="np") as file:
        assert file.metadata() == {"name": "room", "words": "a ü"}
        assert set(file.keys()) == set(arrays())
        for name, array in arrays().items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
            assert file.get_tensor(name).dtype == array.dtype


def test_what_the_safetensors_package_writes_is_read(tmp_path):
    numpy_format = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    numpy_format.save_file(arrays(), tmp_path / "room.safetensors", metadata={"k": "v"})
    stored = open_tensors(tmp_path / "room.safetensors")
    assert stored.metadata == {"k": "v"} and stored.arrays.keys() == arrays().keys()
    for name, array in arrays().items():
        np.testing.assert_array_equal(stored.arrays[name], array)


def test_bytes_do_not_depend_on_the_pieces_or_the_order_and_reading_gives_the_arrays(tmp_path):
    write(tmp_path / "a.safetensors", arrays(), 7)
    write(tmp_path / "b.safetensors", dict(reversed(arrays().items())), 1000)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    stored = open_tensors(tmp_path / "a.safetensors").arrays
    for name, array in arrays().items():
        np.testing.assert_array_equal(stored[name], array)
        assert stored[name].dtype == array.dtype and stored[name].flags.aligned
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_a_changed_column_is_the_change_of_the_whole(tmp_path):
    values = np.random.default_rng(1).normal(size=(100, 3))
    with TensorWriter(tmp_path / "a.safetensors") as writer:
        writer.append("other", np.arange(100))
        writer.append("coords", values)
        writer.convert("coords", lambda rows: (rows - 5).astype(np.float32), rows=9)
        writer.append("more", np.zeros(1))
        writer.finish({})
    stored = open_tensors(tmp_path / "a.safetensors").arrays
    np.testing.assert_array_equal(stored["coords"], (values - 5).astype(np.float32))
    np.testing.assert_array_equal(stored["other"], np.arange(100))
    assert list(tmp_path.iterdir()) == [tmp_path / "a.safetensors"]


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    path = tmp_path / "a.safetensors"
    wrong = r"a\.safetensors: column 'x' was float64.*then float32"
    with pytest.raises(ValueError, match=wrong), TensorWriter(path) as writer:
        writer.append("x", np.zeros(3))
        writer.append("x", np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"column 'x' is <U1"), TensorWriter(path) as writer:
        writer.append("x", np.array(["a"]))
    assert list(tmp_path.iterdir()) == []


def raw(header: object, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: list, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x00",
        (1 << 40).to_bytes(8, "little") + b"{}",
        raw(b"not json"),
        raw([1, 2]),
        raw({"a": 3}),
        raw({"a": {"dtype": "U8", "shape": [8]}}),
        raw({"a": entry(0, 8, [8], "C64")}),
        raw({"a": entry(0, 8, [7])}),
        raw({"a": entry(0, 16, [16])}),
        raw({"a": entry(0, 8, [-8])}),
        raw({"a": entry(0, 8, [True, 8])}),
        raw({"a": entry(0, 8, [8.0])}),
        raw({"a": entry(0, 8, [1] * 70 + [8])}),
        raw({"a": entry(0, 8, [8]), "b": entry(4, 8, [4])}),
        raw({"a": entry(0, 2, [2]), "b": entry(4, 8, [4])}),
        raw({"a": entry(0, 4, [4])}),
        raw({"a": entry(0, 8, [8]), "__metadata__": {"n": 1}}),
        raw({"a": entry(0, 8, [8]), "__metadata__": 5}),
        raw(b"[" * 10_000),
    ],
    ids=range(20),
)
def test_damaged_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "scene.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"scene\.safetensors: ") as caught:
        open_tensors(path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_tensors(tmp_path / "other.safetensors")


def test_any_cut_is_noticed_and_any_other_byte_gives_an_error_or_arrays_inside_the_file(tmp_path):
    path = tmp_path / "scene.safetensors"
    write(path, arrays(5))
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"scene\.safetensors"):
            open_tensors(path)
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(500):
        mutated = bytearray(whole)
        for place in rng.integers(0, header, rng.integers(1, 4)):
            mutated[place] = rng.integers(0, 256)
        path.write_bytes(mutated)
        try:
            stored = open_tensors(path)
        except ValueError as error:
            assert "scene.safetensors" in str(error)
        else:
            assert sum(array.nbytes for array in stored.arrays.values()) == len(whole) - header
