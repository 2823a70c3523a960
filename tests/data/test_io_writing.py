"""What the writers of points make of columns that their formats have no room for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import read_cloud, write_cloud
from mink_decouple.data.io_kitti import label_path


@pytest.mark.parametrize(("name", "key"), [("a.las", "intensity"), ("a.las", "user_data"), ("a.bin", "remission")])
def test_a_column_of_one_number_may_be_a_table_and_one_of_two_is_named(tmp_path: Path, name: str, key: str) -> None:
    xyz = np.arange(12, dtype=np.float32).reshape(4, 3)
    values = np.arange(4, dtype=np.uint8)
    for column in (values, values[:, None]):
        write_cloud(tmp_path / name, PointCloud("a", xyz, features={key: column}))
        again = read_cloud(tmp_path / name).features
        assert key not in again or np.array_equal(again[key], values)
    with pytest.raises(
        ValueError, match=rf"{tmp_path / name}: feature '{key}' has 2 numbers a point, the format keeps one"
    ):
        write_cloud(tmp_path / name, PointCloud("a", xyz, features={key: np.c_[values, values]}))


def test_a_scan_written_without_labels_has_none_of_an_earlier_one(tmp_path: Path) -> None:
    cloud = PointCloud("a", np.zeros((3, 3), np.float32), labels=np.arange(3))
    path = tmp_path / "scans" / "a.bin"
    write_cloud(path, cloud)
    confidence = path.with_name("a.confidence.npy")
    confidence.touch()
    write_cloud(path, replace(cloud, labels=None))
    assert not label_path(path).exists() and not confidence.exists() and read_cloud(path).labels is None
    truth = tmp_path / "velodyne" / "a.bin"
    write_cloud(truth, cloud)
    write_cloud(truth, replace(cloud, labels=None))
    assert label_path(truth).is_file()  # the folder beside may be a dataset's


def test_a_suffix_in_capitals_is_kept(tmp_path: Path) -> None:
    for features in ({}, {"intensity": np.ones(2, np.float32)}):
        write_cloud(tmp_path / "a.NPY", PointCloud("a", np.eye(2, 3, dtype=np.float32), features=features))
        assert [path.name for path in tmp_path.iterdir()] == ["a.NPY"]
        np.testing.assert_array_equal(read_cloud(tmp_path / "a.NPY").coords, np.eye(2, 3))
