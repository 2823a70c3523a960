"""A folder of clouds, prepared: the same clouds, classes from elsewhere, and nothing kept of other columns."""

import numpy as np
import pytest

from mink_decouple.cli import main
from mink_decouple.data.adapters import ADAPTERS
from mink_decouple.data.folder import FolderDataset
from mink_decouple.data.prepare import describe, prepare
from mink_decouple.data.prepared import PreparedDataset


def test_a_prepared_folder_of_clouds_holds_the_same_clouds(tmp_path):
    root = tmp_path / "clouds"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name in "ab":
        np.savez(
            root / f"{name}.npz",
            coords=rng.uniform(0, 5, (200, 3)).astype(np.float32),
            rgb=(rng.integers(0, 256, (200, 3)) / 255).astype(np.float32),
            intensity=rng.random(200).astype(np.float32),
            label=rng.integers(0, 3, 200).astype(np.uint8),
        )
    np.savez(
        root / "c.npz", coords=rng.uniform(0, 5, (50, 3)).astype(np.float32), rgb=rng.random((50, 3)).astype(np.float32)
    )
    (root / "classes.yaml").write_text(
        "classes: {x: {raw: [1]}, y: {raw: [2]}}\nignore: [0]\nsplits: {train: [a], val: [b]}\n"
    )
    summary = prepare(ADAPTERS["folder"], root, tmp_path / "out", workers=1)
    whole, dataset = FolderDataset(root), PreparedDataset(tmp_path / "out", "folder")
    assert dataset.splits == whole.splits
    for name in "ab":
        first, second = whole.load(name), dataset.load(name)
        np.testing.assert_array_equal(first.coords, second.coords)
        np.testing.assert_array_equal(first.labels, second.labels)
        for key in first.features:
            np.testing.assert_array_equal(first.features[key], second.features[key])
    assert dataset.load("c").labels is None and dataset.record("c").labelled is None
    assert "repaired c.npz: colours finer than 8 bits -> rounded to 8 bits" in describe(summary)


def test_names_of_columns_that_were_corrected_do_not_keep_old_scenes(tmp_path):
    root, out, head = tmp_path / "clouds", tmp_path / "out", "classes: {a: {raw: [1]}}\n"
    root.mkdir()
    np.savetxt(root / "a.txt", [[0, 0, 0, 255, 0, 0, 1], [1, 1, 1, 255, 0, 0, 1]])
    (root / "classes.yaml").write_text(head + "columns: [x, y, z, blue, green, red, label]\n")
    prepare(ADAPTERS["folder"], root, out, workers=1)
    (root / "classes.yaml").write_text(head + "columns: [x, y, z, red, green, blue, label]\n")
    with pytest.raises(
        ValueError, match="prepared by another version, or with other options or names of columns; choose"
    ):
        prepare(ADAPTERS["folder"], root, out, workers=1)


def test_the_classes_of_a_folder_may_lie_elsewhere(tmp_path):
    """As `init` writes them."""
    root = tmp_path / "clouds"
    root.mkdir()
    np.savez(root / "a.npz", coords=np.eye(3), label=np.array([1, 2, 1]))
    (tmp_path / "c.yaml").write_text("classes: {a: {raw: [1]}, b: {raw: [2]}}\n")
    command = ["prepare", "--dataset", "folder", "--root", str(root), "--output", str(tmp_path / "out")]
    assert main([*command, "--set", f"classes={tmp_path / 'c.yaml'}"]) == 0
    assert PreparedDataset(tmp_path / "out", "folder").load("a").labels.tolist() == [0, 1, 0]


def test_a_colour_that_is_missing_is_told_in_the_manifest(tmp_path):
    root = tmp_path / "clouds"
    root.mkdir()
    np.savez(root / "a.npz", coords=np.eye(3), rgb=np.array([[1, np.nan, 0], [1, 1, 1], [0, 0, 0]], np.float32))
    (root / "classes.yaml").write_text("classes: {a: {raw: [1]}}\n")
    summary = prepare(ADAPTERS["folder"], root, tmp_path / "out", workers=1)
    assert "repaired a.npz: 1 points with NaN for a colour -> 0 in its place" in describe(summary)
    assert PreparedDataset(tmp_path / "out", "folder").load("a").features["rgb"][0].tolist() == [1, 0, 0]
