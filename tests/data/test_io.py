"""Every format gives back what was written, and says in one line what is wrong with a file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mink_decouple.data.cloud import PointCloud, from_world
from mink_decouple.data.io import SUFFIXES, read_cloud, write_cloud
from mink_decouple.data.io_kitti import label_path

SAMPLES = Path(os.environ.get("MINK_DECOUPLE_SAMPLES", Path(__file__).resolve().parents[3] / "shared" / "data"))
WITH_COLUMNS = tuple(suffix for suffix in SUFFIXES if suffix != ".bin")
UTM = (652000.0, 6861000.0, 35.0)


def sample(*parts: str) -> Path:
    path = SAMPLES.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no real sample {'/'.join(parts)}; set MINK_DECOUPLE_SAMPLES")
    return path


def make(origin: tuple[float, float, float] = (0.0, 0.0, 0.0), count: int = 40, labelled: bool = True) -> PointCloud:
    rng = np.random.default_rng(3)
    return from_world(
        "tile",
        rng.random((count, 3)) * (900.0, 900.0, 60.0) + origin,
        {
            "rgb": rng.random((count, 3)).astype(np.float32),
            "intensity": rng.integers(0, 65536, count).astype(np.float32),
            "return_number": rng.integers(1, 5, count).astype(np.uint8),
            "number_of_returns": np.full(count, 5, dtype=np.uint8),
            "confidence": rng.random(count).astype(np.float32),
            "segment": rng.integers(-9, 70000, count).astype(np.int32),
        },
        rng.integers(0, 30, count) if labelled else None,
    )


@pytest.mark.parametrize("origin", [(0.0, 0.0, 0.0), UTM, (-4e5, 5e6, -100.0)])
@pytest.mark.parametrize("suffix", WITH_COLUMNS)
def test_round_trip_keeps_millimetres_columns_and_labels(
    suffix: str, origin: tuple[float, float, float], tmp_path: Path
) -> None:
    cloud, path = make(origin), tmp_path / f"out{suffix}"
    write_cloud(path, cloud)
    again = read_cloud(path)
    assert again.name == "out"
    assert np.abs(again.world() - cloud.world()).max() < 1e-3
    assert again.labels is not None and again.labels.dtype == np.int64
    np.testing.assert_array_equal(again.labels, cloud.labels)
    assert set(again.features) == set(cloud.features)
    for key in set(cloud.features) - {"rgb"}:
        # Text has no column types: numbers come back as float64 and are the same once cast.
        np.testing.assert_array_equal(again.features[key].astype(cloud.features[key].dtype), cloud.features[key])
    np.testing.assert_allclose(again.features["rgb"], cloud.features["rgb"], atol=0.5 / 255 + 1e-6)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_bare_cloud_without_labels_stays_without(suffix: str, tmp_path: Path) -> None:
    cloud = PointCloud("bare", np.random.default_rng(0).random((7, 3)).astype(np.float32))
    write_cloud(tmp_path / f"bare{suffix}", cloud)
    again = read_cloud(tmp_path / f"bare{suffix}")
    assert again.labels is None and "rgb" not in again.features
    np.testing.assert_allclose(again.coords, cloud.coords, atol=1e-4)


@pytest.mark.parametrize("suffix", WITH_COLUMNS)
def test_single_point_labels_beyond_a_byte_and_dark_colours_survive(suffix: str, tmp_path: Path) -> None:
    cloud = from_world(
        "one", np.array([[1.0, 2.0, 3.0]]), {"rgb": np.array([[0, 1, 0]], np.float32) / 255}, np.array([-1])
    )
    for labels in (np.array([-1]), np.array([40000])):
        write_cloud(tmp_path / f"one{suffix}", replace(cloud, labels=labels))
        again = read_cloud(tmp_path / f"one{suffix}")
        np.testing.assert_array_equal(again.labels, labels)
        np.testing.assert_allclose(again.features["rgb"], cloud.features["rgb"], atol=0.5 / 255)


def test_npz_gives_back_every_array_bit_for_bit(tmp_path: Path) -> None:
    cloud = make(UTM)
    cloud = replace(cloud, features={**cloud.features, "embedding": np.eye(40, 5)})
    write_cloud(tmp_path / "a.npz", cloud)
    again = read_cloud(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.coords, cloud.coords)
    np.testing.assert_array_equal(again.offset, cloud.offset)
    for key, column in cloud.features.items():
        assert again.features[key].dtype == column.dtype
        np.testing.assert_array_equal(again.features[key], column)


def test_wide_features_become_numbered_columns(tmp_path: Path) -> None:
    cloud = PointCloud(
        "a", np.zeros((4, 3), np.float32), features={"field": np.arange(12, dtype=np.float32).reshape(4, 3)}
    )
    write_cloud(tmp_path / "a.ply", cloud)
    assert set(read_cloud(tmp_path / "a.ply").features) == {"field_0", "field_1", "field_2"}
    write_cloud(tmp_path / "a.las", cloud)
    np.testing.assert_array_equal(read_cloud(tmp_path / "a.las").features["field"], cloud.features["field"])


@pytest.mark.parametrize("suffix", WITH_COLUMNS)
def test_normals_stay_one_feature(suffix: str, tmp_path: Path) -> None:
    """Only so are they turned with the cloud."""
    normal = np.array([[0, 0, 1], [0.6, 0, 0.8], [1, 0, 0]], np.float32)
    write_cloud(tmp_path / f"a{suffix}", PointCloud("a", np.eye(3, dtype=np.float32), features={"normal": normal}))
    again = read_cloud(tmp_path / f"a{suffix}").features["normal"]
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, normal)


@pytest.mark.parametrize(
    "name", ["label", "class", "Classification", "scalar_Label", "scalar_Classification", "sem_class"]
)
def test_label_columns_of_other_tools_are_found(name: str, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    table = np.zeros(3, dtype=[("x", "f8"), ("y", "f8"), ("z", "f8"), (name, "f4")])
    table[name] = [4, 0, 7]
    element = plyfile.PlyElement.describe(table, "vertex")
    for text, order in ((True, "="), (False, "<"), (False, ">")):
        plyfile.PlyData([element], text=text, byte_order=order).write(str(tmp_path / "a.ply"))
        cloud = read_cloud(tmp_path / "a.ply")
        assert cloud.labels is not None and not cloud.features
        np.testing.assert_array_equal(cloud.labels, [4, 0, 7])


def test_fractional_labels_are_refused_with_their_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y,z,label\n0,0,0,1\n0,0,0,1.5\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.csv: column 'label' must hold whole numbers, found 1\.5 at row 1"):
        read_cloud(tmp_path / "a.csv")


@pytest.mark.parametrize("encoding", ["ASCII", "BINARY", "BINARY_COMPRESSED"])
def test_pcd_encodings_and_packed_colour_are_read(encoding: str, tmp_path: Path) -> None:
    pypcd4 = pytest.importorskip("pypcd4")
    columns = [np.array([650000.125, 1.0]), np.array([2.0, 3.0]), np.array([4.0, 5.0]), np.array([0xFF8000, 0x0000FF])]
    dtypes = [np.float64, np.float64, np.float64, np.uint32]
    columns[0][1] = 650001.0
    pcd = pypcd4.PointCloud.from_points(
        [c.astype(t) for c, t in zip(columns, dtypes, strict=True)], ("x", "y", "z", "rgb"), dtypes
    )
    pcd.save(tmp_path / "a.pcd", getattr(pypcd4.Encoding, encoding))
    cloud = read_cloud(tmp_path / "a.pcd")
    np.testing.assert_allclose(cloud.world()[:, 0], columns[0], atol=1e-3)
    np.testing.assert_allclose(cloud.features["rgb"] * 255, [[255, 128, 0], [0, 0, 255]], atol=1e-4)


@pytest.mark.parametrize(("highest", "divisor"), [(255, 255), (65535, 65535)])
def test_las_colours_of_8_and_16_bits_are_scaled_to_one(highest: int, divisor: int, tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    las = laspy.LasData(laspy.LasHeader(point_format=3, version="1.2"))
    las.x, las.y, las.z = [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]
    las.red, las.green, las.blue = [0, highest], [7, 7], [0, 1]
    las.classification = [2, 6]
    las.write(str(tmp_path / "a.las"))
    cloud = read_cloud(tmp_path / "a.las")
    np.testing.assert_allclose(cloud.features["rgb"], np.array([[0, 7, 0], [highest, 7, 1]]) / divisor, rtol=1e-6)
    np.testing.assert_array_equal(cloud.labels, [2, 6])


def test_las_written_like_another_keeps_its_header_and_dimensions(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=8, version="1.4")
    header.scales, header.offsets = np.array([0.01, 0.01, 0.001]), np.array([600000.0, 6800000.0, 0.0])
    las = laspy.LasData(header)
    las.xyz = np.array([[652000.01, 6861000.02, 3.004], [652010.0, 6861010.0, 5.0]])
    las.gps_time, las.nir = [1.5, 2.5], [3, 4]
    las.write(str(tmp_path / "in.laz"))
    cloud = read_cloud(tmp_path / "in.laz")
    assert cloud.labels is None
    predicted = replace(cloud, features={"confidence": np.array([0.5, 0.9], np.float32)}, labels=np.array([6, 2]))
    write_cloud(tmp_path / "out.laz", predicted, like=tmp_path / "in.laz")
    out = laspy.read(str(tmp_path / "out.laz"))
    np.testing.assert_array_equal(out.X, las.X)
    np.testing.assert_array_equal(out.header.scales, header.scales)
    np.testing.assert_array_equal(out.gps_time, [1.5, 2.5])
    np.testing.assert_array_equal(out.nir, [3, 4])
    np.testing.assert_array_equal(out.classification, [6, 2])
    np.testing.assert_array_equal(out["confidence"], predicted.features["confidence"])
    with pytest.raises(ValueError, match="1 points, but"):
        write_cloud(tmp_path / "out.laz", predicted.select(np.array([0])), like=tmp_path / "in.laz")


def test_a_colour_that_is_missing_leaves_the_scale_of_the_others(tmp_path: Path) -> None:
    color = np.array([[10, 20, 255], [np.nan, 50, 60]], np.float32)
    np.savez(tmp_path / "a.npz", coords=np.zeros((2, 3)), rgb=color)
    np.testing.assert_allclose(read_cloud(tmp_path / "a.npz").features["rgb"] * 255, color, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".ply", ".las", ".laz", ".pcd", ".npy", ".npz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.05, 0.7, 0.95])
def test_truncated_binary_files_are_one_line_errors(suffix: str, share: float, tmp_path: Path) -> None:
    write_cloud(tmp_path / f"whole{suffix}", make())
    content = (tmp_path / f"whole{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"damaged|truncated|no points") as caught:
        read_cloud(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_las_and_pcd_cut_between_two_points_are_noticed(tmp_path: Path) -> None:
    laspy = pytest.importorskip("laspy")
    write_cloud(tmp_path / "a.las", make())
    with laspy.open(str(tmp_path / "a.las")) as reader:
        record = reader.header.point_format.size
    content = (tmp_path / "a.las").read_bytes()
    (tmp_path / "a.las").write_bytes(content[: -2 * record])
    with pytest.raises(ValueError, match="truncated"):
        read_cloud(tmp_path / "a.las")
    write_cloud(tmp_path / "a.pcd", PointCloud("a", np.ones((9, 3), np.float32)))
    (tmp_path / "a.pcd").write_bytes((tmp_path / "a.pcd").read_bytes()[:-24])
    with pytest.raises(ValueError, match="truncated PCD file: 7 of 9"):
        read_cloud(tmp_path / "a.pcd")


def test_ply_without_coordinates_lists_its_columns(tmp_path: Path) -> None:
    text = "ply\nformat ascii 1.0\nelement vertex 1\nproperty float u\nproperty float y\nend_header\n1 2\n"
    (tmp_path / "a.ply").write_text(text, encoding="ascii")
    with pytest.raises(ValueError, match=r"no column x, z; found: u, y"):
        read_cloud(tmp_path / "a.ply")


@pytest.mark.parametrize("corners", [3, 4])
def test_ply_meshes_give_their_vertices(corners: int, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    vertex = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], dtype=[("x", "f4"), ("y", "f4"), ("z", "f4")])
    face = np.array([(np.arange(corners),)], dtype=[("vertex_indices", "i4", (corners,))])
    elements = [plyfile.PlyElement.describe(vertex, "vertex"), plyfile.PlyElement.describe(face, "face")]
    plyfile.PlyData(elements).write(str(tmp_path / "a.ply"))
    cloud = read_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(cloud.coords, [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
    assert not cloud.features


def test_unknown_suffix_missing_file_and_empty_cloud_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.e57").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"unknown suffix '\.e57'; choose from \.ply, \.las"):
        read_cloud(tmp_path / "a.e57")
    with pytest.raises(ValueError, match=r"unknown suffix '\.e57'"):
        write_cloud(tmp_path / "b.e57", make())
    with pytest.raises(FileNotFoundError, match=r"none\.ply: no such file"):
        read_cloud(tmp_path / "none.ply")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_cloud(tmp_path)
    with pytest.raises(ValueError, match="'tile' has no points"):
        write_cloud(tmp_path / "b.ply", make().select(np.zeros(0, dtype=int)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.e57"]


def test_empty_files_have_no_points(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", coords=np.zeros((0, 3)))
    np.save(tmp_path / "a.npy", np.zeros((0, 3)))
    (tmp_path / "a.bin").write_bytes(b"")
    for suffix in (".npz", ".npy", ".bin"):
        with pytest.raises(ValueError, match="no points"):
            read_cloud(tmp_path / f"a{suffix}")


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", coords=np.zeros((2, 3)), extra=np.array([{}, {}], dtype=object))
    with pytest.raises(ValueError, match="not a plain NumPy file"):
        read_cloud(tmp_path / "a.npz")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    write_cloud(path, make())
    before = path.read_bytes()
    cloud = replace(make(), features={"big": np.full(40, 2**60)})
    with pytest.raises(ValueError, match="column 'big'"):
        write_cloud(path, cloud)
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == ["a.ply"]


def test_kitti_scan_and_labels_lie_in_sibling_folders(tmp_path: Path) -> None:
    path = tmp_path / "00" / "velodyne" / "000001.bin"
    cloud = PointCloud(
        "scan",
        np.arange(12, dtype=np.float32).reshape(4, 3),
        features={"remission": np.array([0.1, 0.2, 0.3, 0.4], np.float32)},
        labels=np.array([10, 252, 40, 0]),
    )
    write_cloud(path, cloud)
    assert label_path(path) == tmp_path / "00" / "labels" / "000001.label"
    raw = np.fromfile(label_path(path), dtype="<u4")
    (raw | (7 << 16)).astype("<u4").tofile(label_path(path))
    again = read_cloud(path)
    np.testing.assert_array_equal(again.coords, cloud.coords)
    np.testing.assert_array_equal(again.features["remission"], cloud.features["remission"])
    np.testing.assert_array_equal(again.labels, cloud.labels)


def test_a_scan_of_other_columns_is_read_by_their_names(tmp_path: Path) -> None:
    path, names = tmp_path / "a.pcd.bin", ["x", "y", "z", "intensity", "ring"]
    table = np.array([[1, 2, 3, 0.5, 7], [4, 5, 6, 0.25, 9]], "<f4")
    table.tofile(path)
    cloud = read_cloud(path, names)
    np.testing.assert_array_equal(cloud.coords, table[:, :3])
    np.testing.assert_array_equal(cloud.features["intensity"], table[:, 3])
    np.testing.assert_array_equal(cloud.features["ring"], table[:, 4])
    np.array([3, 4], "<u4").tofile(label_path(path))
    assert read_cloud(path, names).labels.tolist() == [3, 4]
    with pytest.raises(ValueError, match=r"a\.pcd\.bin: a scan of nuScenes has other columns .*name them"):
        read_cloud(path)
    with pytest.raises(ValueError, match="40 bytes is not a whole number of 12-byte points"):
        read_cloud(path, ["x", "y", "z"])
    with pytest.raises(ValueError, match="columns repeat one name"):
        read_cloud(path, ["x", "y", "z", "ring", "ring"])
    with pytest.raises(ValueError, match=r"columns \[\]: need three at least"):
        read_cloud(path, [])


def test_kitti_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_cloud(path, PointCloud("a", np.zeros((3, 3), np.float32), labels=np.zeros(3, np.int64)))
    label_path(path).write_bytes(b"\0" * 8)
    with pytest.raises(ValueError, match=r"a\.label: 2 labels for 3 points"):
        read_cloud(path)
    label_path(path).unlink()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="45 bytes is not a whole number of 16-byte points"):
        read_cloud(path)
    with pytest.raises(ValueError, match="float32 cannot keep"):
        write_cloud(path, make(UTM))
    with pytest.raises(ValueError, match="no labels to write"):
        write_cloud(tmp_path / "b.label", make(labelled=False))
    write_cloud(tmp_path / "b.label", make())
    with pytest.raises(ValueError, match=r"read the \.bin"):
        read_cloud(tmp_path / "b.label")


@pytest.mark.parametrize(
    ("tile", "count", "ground", "building"),
    [
        ("lidar_hd_dense/crop_1.laz", 210582, 126450, 12122),
        ("lidar_hd_dense/tile_77050_627755.laz", 84524, 21172, 29447),
        ("lidar_hd_sparse/semis_2023_0292_6833.laz", 289055, 152678, 43278),
    ],
)
def test_real_laz_tiles_have_their_counts_and_classes(tile: str, count: int, ground: int, building: int) -> None:
    cloud = read_cloud(sample(*tile.split("/")))
    assert len(cloud) == count and cloud.labels is not None
    assert int((cloud.labels == 2).sum()) == ground
    assert int((cloud.labels == 6).sum()) == building
    assert {"intensity", "return_number", "number_of_returns"} <= set(cloud.features)
    # The tiles are stored in centimetres.
    cm = cloud.world() * 100
    assert np.abs(cm - np.rint(cm)).max() < 0.05


def test_real_kitti_scan_has_its_golden_numbers() -> None:
    cloud = read_cloud(sample("semantickitti", "sequences", "00", "velodyne", "000000.bin"))
    assert len(cloud) == 124668 and cloud.labels is not None
    first = [*cloud.coords[0], cloud.features["remission"][0]]
    np.testing.assert_allclose(first, [52.897942, 0.022990, 1.997995, 0.08], atol=1e-6)
    road = np.isin(cloud.labels, (40, 60)).sum()
    assert (int(road), int((cloud.labels == 48).sum()), int((cloud.labels == 80).sum())) == (35281, 26360, 532)


def test_real_scannet_mesh_has_colours_and_labels() -> None:
    path = sample("scannet", "scans", "scene0000_00", "scene0000_00_vh_clean_2.labels.ply")
    cloud = read_cloud(path)
    assert len(cloud) == 81369 and cloud.labels is not None
    assert set(cloud.features) == {"rgb", "alpha"}
    assert 0 <= cloud.features["rgb"].min() < cloud.features["rgb"].max() <= 1
    assert int((cloud.labels == 1).sum()) == 13899
    assert read_cloud(path.with_name("scene0000_00_vh_clean_2.ply")).labels is None
