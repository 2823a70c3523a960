"""A folder with a classes.yaml is a dataset, and its mistakes are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.classes import Classes, default_palette
from mink_decouple.data.cloud import PointCloud, from_world
from mink_decouple.data.folder import FolderDataset
from mink_decouple.data.io import clouds_of, write_cloud
from mink_decouple.data.survey import survey

YAML = """
classes:
  ground: {raw: [2], color: [170, 120, 70]}
  vegetation: {raw: [3, 4, 5]}
ignore: [0, 65]
splits: {train: [tile_a, tile_b], val: [tile_c]}
"""


def _folder(root: Path, yaml: str = YAML) -> Path:
    rng = np.random.default_rng(0)
    xyz = rng.random((6, 3)) * 10 + (652000.0, 6861000.0, 0.0)
    rgb = rng.random((6, 3)).astype(np.float32)
    write_cloud(root / "tile_a.laz", from_world("a", xyz, {"rgb": rgb}, np.array([2, 2, 3, 4, 5, 0])))
    write_cloud(root / "tile_b.ply", from_world("b", xyz, None, np.array([2, 3, 3, 3, 65, 65])))
    write_cloud(root / "tile_c.npz", from_world("c", xyz))
    (root / "classes.yaml").write_text(yaml, encoding="utf-8")
    (root / "notes.md").write_text("not a cloud", encoding="utf-8")
    return root


def test_confidences_beside_a_scan_are_no_cloud(tmp_path: Path) -> None:
    """What `predict` writes; of other files of that name nothing is known."""
    for name in ("1.bin", "2.BIN"):
        np.zeros((3, 4), "<f4").tofile(tmp_path / name)
    for name in ("1", "2", "3"):
        np.save(tmp_path / f"{name}.confidence.npy", np.zeros((3, 3)))
    np.save(tmp_path / ".hidden.npy", np.zeros((3, 3)))
    (tmp_path / "folder.npy").mkdir()
    names = ["1.bin", "2.BIN", "3.confidence.npy"]
    assert [path.name for path in clouds_of(tmp_path)] == names
    (tmp_path / "classes.yaml").write_text("classes: [all]\n")
    assert [path.name for path in FolderDataset(tmp_path).files.values()] == names
    assert [one.path.name for one in survey(tmp_path)] == names


def test_scenes_and_train_ids_of_mixed_files(tmp_path: Path) -> None:
    dataset = FolderDataset(_folder(tmp_path))
    assert dataset.classes.names == ("ground", "vegetation")
    assert dataset.scenes("train") == ["tile_a", "tile_b"] and dataset.scenes("val") == ["tile_c"]
    cloud = dataset.load("tile_a")
    assert cloud.name == "tile_a" and "rgb" in cloud.features
    np.testing.assert_array_equal(cloud.labels, [0, 0, 1, 1, 1, -1])
    np.testing.assert_array_equal(dataset.load("tile_b").labels, [0, 1, 1, 1, -1, -1])
    assert dataset.load("tile_c").labels is None


def test_arguments_override_the_classes_file(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    classes = Classes(("all",), default_palette(1), dict.fromkeys((2, 3, 4, 5), 0), frozenset({0, 65}))
    dataset = FolderDataset(root, classes, {"train": ["tile_b"]})
    assert dataset.scenes("train") == ["tile_b"]
    np.testing.assert_array_equal(dataset.load("tile_b").labels, [0, 0, 0, 0, -1, -1])
    other = tmp_path / "elsewhere.yaml"
    (root / "classes.yaml").rename(other)
    assert FolderDataset(root, other).scenes("val") == ["tile_c"]
    with pytest.raises(FileNotFoundError, match=r"classes\.yaml: no such file; it names the classes"):
        FolderDataset(root)


def test_unknown_raw_id_names_file_id_and_choices(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    write_cloud(root / "tile_b.ply", PointCloud("b", np.zeros((2, 3), np.float32), labels=np.array([2, 17])))
    with pytest.raises(ValueError, match=r"tile_b\.ply: raw id 17 .*\[2, 3, 4, 5\] nor ignored \[0, 65\]"):
        FolderDataset(root).load("tile_b")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["tile_a"], "val": ["tile_a"]}, r"'tile_a' is in splits 'train', 'val'"),
        ({"train": ["tile_a", "tile_a"]}, r"'tile_a' is twice in split 'train'"),
        ({"train": "tile_a"}, r"must be a list"),
        ({"train": [7]}, r"7 is not text"),
        (["tile_a"], r"splits must map"),
    ],
)
def test_wrong_splits_are_refused(splits: object, message: str, tmp_path: Path) -> None:
    root = _folder(tmp_path)
    with pytest.raises(ValueError, match=message):
        FolderDataset(root, splits=splits)  # type: ignore[arg-type]  # wrong types are the point of this test


def test_missing_scene_is_not_found_and_choices_are_given(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"split 'val' names 'tile_x'.*choose from tile_a, tile_b, tile_c"):
        FolderDataset(root, splits={"val": ["tile_x"]})
    with pytest.raises(FileNotFoundError, match="no cloud named 'tile_x'"):
        FolderDataset(root).load("tile_x")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        FolderDataset(root / "absent")


def test_empty_and_unknown_splits_are_refused(tmp_path: Path) -> None:
    dataset = FolderDataset(_folder(tmp_path), splits={"train": ["tile_a"], "val": []})
    with pytest.raises(ValueError, match="split 'val' is empty"):
        dataset.scenes("val")
    with pytest.raises(ValueError, match="unknown split 'test'; choose from train, val"):
        dataset.scenes("test")


def test_two_files_of_one_stem_are_refused(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    write_cloud(root / "tile_a.ply", PointCloud("a", np.zeros((1, 3), np.float32)))
    with pytest.raises(ValueError, match=r"'tile_a\.laz' and 'tile_a\.ply' have the same stem"):
        FolderDataset(root)


def test_folder_without_clouds_or_with_unknown_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("classes: [a]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no point clouds; known suffixes"):
        FolderDataset(tmp_path)
    _folder(tmp_path, YAML + "split: {}\n")
    with pytest.raises(ValueError, match=r"unknown keys \['split'\]; choose from"):
        FolderDataset(tmp_path)


def test_columns_key_names_bare_text_columns(tmp_path: Path) -> None:
    (tmp_path / "room.txt").write_text("1 2 3 0 128 255 1\n", encoding="utf-8")
    (tmp_path / "classes.yaml").write_text(
        "classes: [floor, wall]\ncolumns: [x, y, z, red, green, blue, label]\nsplits: {train: [room]}\n",
        encoding="utf-8",
    )
    cloud = FolderDataset(tmp_path).load("room")
    np.testing.assert_array_equal(cloud.labels, [1])
    assert cloud.features["rgb"].shape == (1, 3)
