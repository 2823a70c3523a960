"""Text tables: many looks, one cloud; names of columns; broken lines are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.io import read_cloud


@pytest.mark.parametrize(
    "text",
    [
        "1 2 3 10 20 255\n4 5 6 40 50 60\n",
        "# a remark\n1\t2\t3\t10\t20\t255\n\n4 5 6 40 50 60",
        "x,y,z,red,green,blue\n1,2,3,10,20,255\n4,5,6,40,50,60\n",
        "//X Y Z R G B\n1 2 3 10 20 255\n4 5 6 40 50 60\n",
        '"blue";"z";"y";"x";"red";"green"\n255;3;2;1;10;20\n60;6;5;4;40;50\n',
    ],
)
def test_text_tables_of_many_looks_give_one_cloud(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    cloud = read_cloud(tmp_path / "a.txt")
    np.testing.assert_array_equal(cloud.coords, [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_allclose(cloud.features["rgb"] * 255, [[10, 20, 255], [40, 50, 60]], atol=1e-4)


@pytest.mark.parametrize("text", ["x,y,z,label\n1,2,3,4\n", "# x y z label\n1 2 3 4\n", "1 2 3 4\n"])
def test_text_may_begin_with_a_byte_order_mark(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text, encoding="utf-8-sig")
    cloud = read_cloud(tmp_path / "a.csv", ("x", "y", "z", "label") if text[0] == "1" else None)
    assert cloud.coords.tolist() == [[1, 2, 3]] and cloud.labels is not None and cloud.labels.tolist() == [4]


def test_columns_without_names_can_be_named_by_the_caller(tmp_path: Path) -> None:
    names = ["x", "y", "z", "red", "green", "blue", "label"]
    table = np.array([[1, 2, 3, 0, 255, 0, 9]], dtype=np.float32)
    np.save(tmp_path / "a.npy", table)
    np.savetxt(tmp_path / "a.txt", table)
    for file in ("a.npy", "a.txt"):
        cloud = read_cloud(tmp_path / file, columns=names)
        np.testing.assert_array_equal(cloud.labels, [9])
        np.testing.assert_array_equal(cloud.features["rgb"], [[0, 1, 0]])
        with pytest.raises(ValueError, match="7 columns without names"):
            read_cloud(tmp_path / file)
        with pytest.raises(ValueError, match="7 columns, but 2 names"):
            read_cloud(tmp_path / file, columns=["x", "y"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3\n4 5\n", r"line 2 has 2 columns instead of 3: '4 5'"),
        ("x,y,z\n1,2,3\n\n4,5,6,7\n", r"line 4 has 4 columns instead of 3: '4,5,6,7'"),
        ("1 2 3\n4 abc 6\n", r"line 2 is not all numbers: '4 abc 6'"),
        ("1 2 3\n4 5\x006 7\n", r"line 2 "),
        ("a b c\n1 2 3\n", r"no column x, y, z; found: a, b, c"),
        ("x y z\n1 2 3 4\n", r"3 names \(x, y, z\) for 4 columns"),
        ("x y z z\n1 2 3 4\n", r"repeat one name"),
        ("x y 3\n1 2 3\n", r"line 1 is neither names nor numbers"),
        ("", r"no points"),
        ("x y z\n", r"no points"),
        ("0 0 0\nnan 1 1\n0 inf 0\n", r"2 of 3 points have NaN .* index 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_broken_text_is_named_with_line_and_content(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_cloud(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names", ["nx ny nz", "Nz Nx Ny", "normal_x normal_y normal_z", "scalar_nx scalar_ny scalar_nz"]
)
def test_normals_of_other_tools_are_found(names: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"x y z {names} curvature\n1 2 3 0 0.6 0.8 9\n", encoding="utf-8")
    features = read_cloud(tmp_path / "a.txt").features
    assert set(features) == {"normal", "curvature"}
    expected = [0.6, 0.8, 0] if names[0] == "N" else [0, 0.6, 0.8]
    np.testing.assert_array_equal(features["normal"], np.array([expected], np.float32))
    (tmp_path / "b.txt").write_text("x y z nx ny\n1 2 3 0 1\n", encoding="utf-8")
    assert set(read_cloud(tmp_path / "b.txt").features) == {"nx", "ny"}


def test_points_without_a_label_column_of_their_own_have_no_label(tmp_path: Path) -> None:
    """NaN is what CloudCompare writes for them."""
    (tmp_path / "a.csv").write_text("x,y,z,scalar_Label\n0,0,0,3\n0,0,0,nan\n", encoding="utf-8")
    np.savez(tmp_path / "a.npz", coords=np.zeros((2, 3)), labels=np.array([3, np.nan], np.float32))
    for name in ("a.csv", "a.npz"):
        assert read_cloud(tmp_path / name).labels.tolist() == [3, -1]
    (tmp_path / "a.csv").write_text("x,y,z,label\n0,0,0,nan\n0,0,0,inf\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.csv: column 'label' must hold whole numbers, found inf at row 1"):
        read_cloud(tmp_path / "a.csv")
