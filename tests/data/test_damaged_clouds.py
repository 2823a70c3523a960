"""Damaged clouds of every format: refused in one line that names the file, or read; no crash, no hang, no flood."""

import random
import re
import struct
import time

import numpy as np
import pytest
from damage import damaged

from mink_decouple.data.annotate import require_layout
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import read_cloud, write_cloud
from mink_decouple.data.io_las import las_chunks

SUFFIXES = ("ply", "las", "laz", "pcd", "npy", "npz", "txt", "bin")


def sound(path):
    rng = np.random.default_rng(0)
    rgb = {"rgb": rng.random((60, 3), dtype=np.float32), "intensity": rng.random(60, dtype=np.float32)}
    features = {"remission": rgb["intensity"]} if path.suffix == ".bin" else rgb
    coords, labels = 10 * rng.random((60, 3), dtype=np.float32), rng.integers(0, 5, 60)
    write_cloud(path, PointCloud("a", coords, features=features, labels=labels))
    return path.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_cloud_is_refused_or_read(tmp_path, suffix):
    if suffix in ("las", "laz"):
        pytest.importorskip("laspy")
    original, rng = sound(tmp_path / f"sound.{suffix}"), random.Random(suffix)
    broken, refused, begin = tmp_path / f"broken.{suffix}", 0, time.monotonic()
    for _ in range(250):
        broken.write_bytes(damaged(original, rng))
        try:
            cloud = read_cloud(broken)
        except ValueError as error:
            refused += 1
            assert str(broken) in str(error) and "\n" not in str(error)
            continue
        assert np.isfinite(cloud.coords).all() and len(cloud) <= 70
    assert refused > 60
    assert time.monotonic() - begin < 60, "a hang; each of them takes milliseconds"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_layout_of_a_damaged_cloud_is_refused_or_known(tmp_path, suffix):
    if suffix in ("las", "laz"):
        pytest.importorskip("laspy")
    original, rng = sound(tmp_path / f"sound.{suffix}"), random.Random(suffix)
    broken, refused = tmp_path / f"broken.{suffix}", 0
    for _ in range(100):
        broken.write_bytes(damaged(original, rng))
        try:
            require_layout(broken, (0, 3, 7))
        except ValueError as error:
            refused += 1
            assert str(broken) in str(error) and "\n" not in str(error)
    assert refused


def odd_files(folder):
    """Files that no parser of their format takes, each of its own kind."""
    np.save(folder / "flat.npy", np.arange(9.0))
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object))
    (folder / "empty.npy").write_bytes(b"")
    (folder / "damaged.npz").write_bytes(b"PK\3\4 and no more")
    head = "VERSION .7\nFIELDS x y z\nSIZE 4 4 4\nTYPE F F F\nCOUNT 1 1 1\nWIDTH 1\nHEIGHT 1\nPOINTS {}\nDATA {}\n"
    (folder / "cut.pcd").write_text(head.format("1", "binary_compressed"))
    (folder / "words.pcd").write_text(head.format("abc", "ascii"))
    (folder / "words.ply").write_text("ply\nformat ascii 1.0\nelement vertex abc\nproperty float x\nend_header\n0\n")
    return sorted(folder.iterdir())


def test_odd_files_are_refused_in_a_line_that_names_them(tmp_path):
    files = odd_files(tmp_path)
    assert len(files) == 7
    for path in files:
        with pytest.raises(ValueError, match="^" + re.escape(str(path)) + r": [^\n]+$"):
            require_layout(path, (0, 3, 7))


def set_bytes(data, place, form, value):
    result = bytearray(data)
    struct.pack_into(form, result, place, value)
    return bytes(result)


CLAIMS = {
    "variable-length records": ("las", 100, "<I", 4_000_000_000, "4,000,000,000 variable-length records"),
    "extended records": ("las", 243, "<I", 4_000_000_000, "4,000,000,000 extended variable-length records"),
    "points": ("las", 247, "<Q", 10**12, "1,000,000,000,000 points have no room"),
    "compressed points": ("laz", 247, "<Q", 10**12, "1,000,000,000,000 points have no room"),
    "points behind the end": ("las", 96, "<I", 4_000_000_000, "points begin at byte 4,000,000,000"),
    "chunk size": ("laz", 375 + 66, "<I", 4_000_000_000, "chunks of 4,000,000,000 points in a file of 60"),
}
"""Offsets of the LAS 1.4 specification and of the record that laszip keeps."""


@pytest.mark.parametrize("name", CLAIMS)
def test_a_header_that_claims_too_much_is_refused_before_anything_is_made_of_it(tmp_path, name):
    pytest.importorskip("laspy")
    suffix, place, form, value, message = CLAIMS[name]
    data = sound(tmp_path / f"sound.{suffix}")
    read_cloud(tmp_path / f"sound.{suffix}")
    path = tmp_path / f"claims.{suffix}"
    path.write_bytes(set_bytes(set_bytes(data, 235, "<Q", 375), place, form, value))
    for read in (read_cloud, lambda found: list(las_chunks(found, 10))):
        with pytest.raises(ValueError, match=f"claims.{suffix}: damaged or truncated LAS file: .*{message}"):
            read(path)


def test_a_table_of_chunks_that_claims_too_much_is_refused(tmp_path):
    pytest.importorskip("laspy")
    data = sound(tmp_path / "sound.laz")
    begin = struct.unpack_from("<I", data, 96)[0]
    table = struct.unpack_from("<q", data, begin)[0]
    path = tmp_path / "claims.laz"
    path.write_bytes(set_bytes(data, table + 4, "<I", 4_000_000_000))
    with pytest.raises(ValueError, match=r"claims\.laz: .*4,000,000,000 chunks have no room"):
        read_cloud(path)


def test_a_packed_array_that_claims_too_much_is_refused(tmp_path):
    path = tmp_path / "claims.npy"
    np.save(path, np.zeros((60, 3), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(60, 3)", b"(9" + 12 * b"0" + b", 3)", 1))
    with pytest.raises(ValueError, match=r"claims\.npy: damaged or not a plain NumPy file"):
        read_cloud(path)
