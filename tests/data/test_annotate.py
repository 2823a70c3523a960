"""Annotated copies: what the file held is there unchanged, and beside it what was predicted, to other readers."""

import numpy as np
import pytest

from mink_decouple.data.annotate import _WRITERS, SUFFIXES, annotate, require_layout, side_file
from mink_decouple.data.blocks import Block
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import read_cloud, write_cloud
from mink_decouple.data.io_pcd import loaded

COUNT = 500
IDS = (0, 3, 7)


def cloud(count=COUNT):
    rng = np.random.default_rng(1)
    return PointCloud(
        "scene",
        rng.uniform(-5, 5, (count, 3)).astype(np.float32),
        np.array([0.0, 0.0, 0.0]),
        {
            "rgb": (rng.integers(0, 256, (count, 3)) / 255).astype(np.float32),
            "intensity": rng.uniform(0, 900, count).astype(np.float32),
        },
        rng.integers(0, 5, count),
    )


def blocks(count=COUNT, seed=2, sizes=(1, 0, 199, 10_000)):
    rng = np.random.default_rng(seed)
    ids, sure = rng.choice(IDS, count), rng.random(count, dtype=np.float32)
    ends = np.minimum(np.cumsum(sizes), count)
    return [Block(ids[a:b], sure[a:b]) for a, b in zip([0, *ends], ends, strict=False)], ids, sure


def made(tmp_path, suffix, **options):
    source = tmp_path / f"in{suffix}"
    write_cloud(source, cloud(), **options)
    target = tmp_path / "out" / f"result{suffix}"
    told, ids, sure = blocks()
    annotate(source, target, told, IDS)
    return source, target, ids, sure


def text_table(path):
    lines = [line.split("#")[-1].strip() for line in path.read_text().splitlines()]
    mark = "," if path.suffix == ".csv" else None
    return lines[0].split(mark), [line.split(mark) for line in lines[1:]]


@pytest.mark.parametrize("suffix", [".las", ".laz"])
@pytest.mark.parametrize("point_format", [1, 3, 6, 7])
def test_las_keeps_header_records_and_every_dimension_to_the_bit(tmp_path, suffix, point_format):
    laspy = pytest.importorskip("laspy")
    rng = np.random.default_rng(0)
    header = laspy.LasHeader(point_format=point_format, version="1.4")
    header.scales, header.offsets = [0.01, 0.02, 0.001], [600_000.0, 6_800_000.0, -3.0]
    header.vlrs.append(laspy.VLR("somebody", 77, "a record", b"content"))
    header.add_extra_dim(laspy.ExtraBytesParams("amplitude", np.float64))
    las = laspy.LasData(header)
    las.xyz = np.array([600_000, 6_800_000, 0]) + rng.uniform(0, 50, (COUNT, 3))
    las.intensity, las.gps_time = rng.integers(0, 65536, COUNT), rng.random(COUNT)
    las.return_number = las.number_of_returns = rng.integers(1, 6, COUNT)
    las.edge_of_flight_line, las.synthetic = rng.integers(0, 2, COUNT), rng.integers(0, 2, COUNT)
    las.classification, las.amplitude = rng.integers(0, 20, COUNT), rng.random(COUNT)
    if point_format >= 6:
        las.evlrs = laspy.vlrs.vlrlist.VLRList([laspy.VLR("somebody", 78, "a long record", b"x" * 70_000)])
    source = tmp_path / f"in{suffix}"
    las.write(str(source))

    told, ids, sure = blocks()
    annotate(source, tmp_path / f"out{suffix}", told, IDS)
    before, after = laspy.read(source), laspy.read(tmp_path / f"out{suffix}")
    np.testing.assert_array_equal(after.classification, ids)
    np.testing.assert_array_equal(after.confidence, sure)
    for name in before.point_format.dimension_names:
        if name != "classification":
            np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    np.testing.assert_array_equal(after.X, before.X)
    assert after.header.scales.tolist() == before.header.scales.tolist()
    assert after.header.offsets.tolist() == before.header.offsets.tolist()
    assert after.header.point_format.id == point_format and str(after.header.version) == "1.4"
    assert [v.record_data_bytes() for v in after.header.vlrs if v.user_id == "somebody"] == [b"content"]
    if point_format >= 6:
        assert [len(v.record_data_bytes()) for v in after.evlrs] == [70_000]


def test_las_ids_beyond_its_classification_go_to_a_dimension_of_their_own(tmp_path):
    laspy = pytest.importorskip("laspy")
    source = tmp_path / "in.las"
    write_cloud(source, cloud())
    before = np.asarray(laspy.read(source).classification)
    told = [Block(np.full(COUNT, 1000), np.ones(COUNT, np.float32))]
    annotate(source, tmp_path / "out.las", told, [2, 1000])
    after = laspy.read(tmp_path / "out.las")
    assert set(after.prediction) == {1000}
    np.testing.assert_array_equal(after.classification, before)


def test_las_with_a_dimension_label_keeps_it_and_gets_a_prediction(tmp_path):
    """Readers take that dimension for the labels, and would show the old ones as the prediction."""
    laspy = pytest.importorskip("laspy")
    before = cloud()
    write_cloud(tmp_path / "in.las", PointCloud("scene", before.coords, labels=before.labels + 1000))
    told, ids, _ = blocks()
    annotate(tmp_path / "in.las", tmp_path / "out.las", told, IDS)
    np.testing.assert_array_equal(laspy.read(tmp_path / "out.las").prediction, ids)
    again = read_cloud(tmp_path / "out.las")
    np.testing.assert_array_equal(again.features["prediction"], ids)
    np.testing.assert_array_equal(again.labels, before.labels + 1000)


def copc(path):
    """A LAZ file with the records of a COPC file's octree, as laspy would read one."""
    laspy = pytest.importorskip("laspy")
    header = laspy.LasHeader(point_format=6, version="1.4")
    header.vlrs.append(laspy.VLR("copc", 1, "info", bytes(160)))
    header.vlrs.append(laspy.VLR("somebody", 77, "a record", b"content"))
    las = laspy.LasData(header)
    las.x = las.y = las.z = np.arange(COUNT)
    las.evlrs = laspy.vlrs.vlrlist.VLRList(
        [laspy.VLR("copc", 1000, "", bytes(32)), laspy.VLR("somebody", 78, "", b"long")]
    )
    las.write(str(path))
    return laspy


def test_the_index_of_a_copc_file_is_left_out_and_all_else_stays(tmp_path):
    laspy = copc(tmp_path / "in.copc.laz")
    told, ids, _ = blocks()
    annotate(tmp_path / "in.copc.laz", tmp_path / "out.laz", told, IDS)
    write_cloud(tmp_path / "like.laz", read_cloud(tmp_path / "in.copc.laz"), like=tmp_path / "in.copc.laz")
    for name in ("out.laz", "like.laz"):
        after = laspy.read(tmp_path / name)
        np.testing.assert_array_equal(after.X, laspy.read(tmp_path / "in.copc.laz").X)
        records = [(v.user_id, v.record_data_bytes()) for v in (*after.header.vlrs, *after.evlrs)]
        assert ("somebody", b"content") in records and ("somebody", b"long") in records
        assert "copc" not in dict(records)
    np.testing.assert_array_equal(laspy.read(tmp_path / "out.laz").classification, ids)


def test_texts_of_a_las_header_need_not_be_ascii(tmp_path):
    write_cloud(tmp_path / "in.las", cloud())
    content = bytearray((tmp_path / "in.las").read_bytes())
    content[26:58] = "Büro für Vermessung".encode("latin-1").ljust(32, b"\0")  # the system identifier
    (tmp_path / "in.las").write_bytes(content)
    annotate(tmp_path / "in.las", tmp_path / "out.las", blocks()[0], IDS)
    write_cloud(tmp_path / "like.las", read_cloud(tmp_path / "in.las"), like=tmp_path / "in.las")
    for name in ("out.las", "like.las"):
        assert (tmp_path / name).read_bytes()[26:58] == content[26:58]


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.parametrize(("text", "end"), [(True, b"\r\n"), (False, b"\r\n"), (True, b"\n"), (False, b"\n")])
def test_ply_headers_of_other_systems(tmp_path, text, end, encoding):
    """Their line ends stay one kind, and comments in any encoding stay as they were."""
    from plyfile import PlyData, PlyElement

    vertex = np.array([(1, 2, 3), (4, 5, 6)], [("x", "f4"), ("y", "f4"), ("z", "f4")])
    PlyData([PlyElement.describe(vertex, "vertex")], text=text, byte_order="<" if text else ">").write(
        str(tmp_path / "plain.ply")
    )
    head, rows = (tmp_path / "plain.ply").read_bytes().split(b"end_header\n")
    comment = "comment größer".encode(encoding) + b"\n"
    lines = head.replace(b"element", comment + b"element") + b"end_header\n"
    (tmp_path / "in.ply").write_bytes(lines.replace(b"\n", end) + (rows.replace(b"\n", end) if text else rows))
    told = [Block(np.array([3, 7]), np.array([0.5, 1.0], np.float32))]
    annotate(tmp_path / "in.ply", tmp_path / "out.ply", told, IDS)
    for name in ("in.ply", "out.ply"):
        np.testing.assert_array_equal(read_cloud(tmp_path / name).coords, [[1, 2, 3], [4, 5, 6]])
    assert read_cloud(tmp_path / "out.ply").features["prediction"].tolist() == [3, 7]
    assert comment.strip() in (tmp_path / "out.ply").read_bytes()


@pytest.mark.parametrize("order", ["<", ">", "="])
def test_ply_keeps_its_vertices_and_faces(tmp_path, order):
    from plyfile import PlyData, PlyElement

    rng = np.random.default_rng(0)
    vertex = np.empty(COUNT, [("x", "f8"), ("y", "f8"), ("z", "f8"), ("red", "u1"), ("scalar_time", "f4"), ("k", "i2")])
    for name in vertex.dtype.names:
        vertex[name] = rng.integers(0, 200, COUNT) + (0.125 if vertex[name].dtype.kind == "f" else 0)
    face = np.empty(3, [("vertex_indices", "i4", (3,))])
    face["vertex_indices"] = rng.integers(0, COUNT, (3, 3))
    text = order == "="
    elements = [PlyElement.describe(vertex, "vertex"), PlyElement.describe(face, "face")]
    PlyData(elements, text=text, byte_order="<" if text else order, comments=["by hand"]).write(
        str(tmp_path / "in.ply")
    )
    told, ids, sure = blocks()
    annotate(tmp_path / "in.ply", tmp_path / "out.ply", told, IDS)
    after = PlyData.read(str(tmp_path / "out.ply"))
    assert after.comments == ["by hand"] and after.text == text
    for name in vertex.dtype.names:
        np.testing.assert_array_equal(after["vertex"][name], vertex[name])
    np.testing.assert_array_equal(np.stack(after["face"]["vertex_indices"]), face["vertex_indices"])
    np.testing.assert_array_equal(after["vertex"]["prediction"], ids)
    np.testing.assert_allclose(after["vertex"]["confidence"], sure, atol=1e-5 if text else 0)


@pytest.mark.parametrize("counts", [True, False], ids=["with COUNT", "without"])
@pytest.mark.parametrize("encoding", ["ASCII", "BINARY", "BINARY_COMPRESSED"])
def test_pcd_keeps_its_fields(tmp_path, encoding, counts):
    from pypcd4 import Encoding
    from pypcd4 import PointCloud as Pcd

    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, 200, COUNT).astype(dtype) for name, dtype in
               (("x", "f4"), ("y", "f4"), ("z", "f4"), ("ring", "u2"), ("t", "f8"))}  # fmt: skip
    dtypes = [column.dtype.type for column in columns.values()]
    source = Pcd.from_points(list(columns.values()), list(columns), dtypes)
    source.save(tmp_path / "in.pcd", getattr(Encoding, encoding))
    if not counts:  # by the format's description all are 1 then
        content = (tmp_path / "in.pcd").read_bytes()
        (tmp_path / "in.pcd").write_bytes(content.replace(b"COUNT 1 1 1 1 1\n", b""))
        assert b"COUNT" not in (tmp_path / "in.pcd").read_bytes()[:400]
    told, ids, sure = blocks()
    annotate(tmp_path / "in.pcd", tmp_path / "out.pcd", told, IDS)
    assert read_cloud(tmp_path / "in.pcd").coords[:, 0].tolist() == columns["x"].tolist()
    after = loaded(tmp_path / "out.pcd")
    assert after.fields == (*columns, "prediction", "confidence")
    for name, column in columns.items():
        np.testing.assert_array_equal(after.pc_data[name], column)
    np.testing.assert_array_equal(after.pc_data["prediction"], ids)
    np.testing.assert_allclose(after.pc_data["confidence"], sure, atol=1e-5 if encoding == "ASCII" else 0)


def test_npy_of_fields_and_plain(tmp_path):
    table = np.zeros(COUNT, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("normal", "f4", (3,)), ("time", "i8")])
    table["time"], table["normal"] = np.arange(COUNT) + 2**40, np.arange(3)
    np.save(tmp_path / "in.npy", table)
    told, ids, sure = blocks()
    annotate(tmp_path / "in.npy", tmp_path / "out.npy", told, IDS)
    after = np.load(tmp_path / "out.npy")
    for name in table.dtype.names:
        np.testing.assert_array_equal(after[name], table[name])
    np.testing.assert_array_equal(after["prediction"], ids)
    np.testing.assert_array_equal(after["confidence"], sure)
    plain = np.random.default_rng(0).random((COUNT, 4))
    np.save(tmp_path / "plain.npy", plain)
    annotate(tmp_path / "plain.npy", tmp_path / "plain_out.npy", blocks()[0], IDS)
    np.testing.assert_array_equal(np.load(tmp_path / "plain_out.npy"), np.column_stack([plain, ids, sure]))


def test_npz_keeps_every_array(tmp_path):
    source, target, ids, sure = made(tmp_path, ".npz")
    with np.load(source) as before, np.load(target) as after:
        assert set(after.files) == {*before.files, "prediction", "confidence"}
        for name in before.files:
            np.testing.assert_array_equal(after[name], before[name])
        np.testing.assert_array_equal(after["prediction"], ids)
        np.testing.assert_array_equal(after["confidence"], sure)


@pytest.mark.parametrize("count", [1, 2])
def test_npz_of_fewer_points_than_numbers_in_its_offset(tmp_path, count):
    write_cloud(tmp_path / "in.npz", PointCloud("in", np.eye(count, 3, dtype=np.float32)))
    annotate(tmp_path / "in.npz", tmp_path / "out.npz", [Block(np.full(count, 3), np.ones(count, np.float32))], IDS)
    assert read_cloud(tmp_path / "out.npz").features["prediction"].tolist() == [3] * count


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".xyz"])
def test_text_keeps_every_number_as_it_was_written(tmp_path, suffix):
    source, target, ids, sure = made(tmp_path, suffix)
    names, before = text_table(source)
    wider, after = text_table(target)
    assert wider == [*names, "prediction", "confidence"]
    assert [row[: len(names)] for row in after] == before
    assert [int(row[-2]) for row in after] == ids.tolist()
    np.testing.assert_allclose([float(row[-1]) for row in after], sure, atol=1e-5)


def test_text_without_names_keeps_comments_and_empty_lines(tmp_path):
    (tmp_path / "in.txt").write_text("# made by hand\n\n1.50 2 3\r\n4 5 6.000 # second\n\n7 8 9")
    told = [Block(np.array([3, 0, 7]), np.array([0.5, 1.0, 0.25], np.float32))]
    annotate(tmp_path / "in.txt", tmp_path / "out.txt", told, IDS)
    assert (tmp_path / "out.txt").read_text() == ("# made by hand\n\n1.50 2 3 3 0.5\n4 5 6.000 0 1\n\n7 8 9 7 0.25\n")


@pytest.mark.parametrize("first", ["X,Y,Z", "scalar_x,scalar_y,scalar_z", "// x y z", '"x";"y";"z"'])
def test_names_of_every_spelling_get_two_more(tmp_path, first):
    mark = next((m for m in ",;" if m in first), " ")
    (tmp_path / "in.txt").write_text(f"{first}\n{mark.join(['1', '2', '3'])}\n")
    told = [Block(np.array([3]), np.array([0.5], np.float32))]
    annotate(tmp_path / "in.txt", tmp_path / "out.txt", told, IDS)
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines == [mark.join([first, "prediction", "confidence"]), mark.join(["1", "2", "3", "3", "0.5"])]
    found = read_cloud(tmp_path / "out.txt")
    assert found.features["prediction"].tolist() == [3] and found.features["confidence"].tolist() == [0.5]


def test_a_kitti_scan_gets_its_labels_and_confidences_beside_it(tmp_path):
    source, target, ids, sure = made(tmp_path, ".bin")
    assert target.read_bytes() == source.read_bytes()
    np.testing.assert_array_equal(np.fromfile(side_file(target, ".label"), "<u4"), ids)
    np.testing.assert_array_equal(np.load(side_file(target, ".confidence.npy")), sure)


def test_a_scan_of_other_columns_is_annotated_by_their_number(tmp_path):
    columns = ("x", "y", "z", "intensity", "ring")
    np.arange(4 * 5, dtype="<f4").tofile(tmp_path / "in.pcd.bin")
    told = [Block(np.array([3, 0, 7, 3]), np.ones(4, np.float32))]
    require_layout(tmp_path / "in.pcd.bin", IDS, columns)
    annotate(tmp_path / "in.pcd.bin", tmp_path / "out.pcd.bin", told, IDS, columns)
    assert np.load(tmp_path / "out.pcd.confidence.npy").shape == (4,)
    assert read_cloud(tmp_path / "out.pcd.bin", columns).labels.tolist() == [3, 0, 7, 3]
    with pytest.raises(ValueError, match=r"in\.pcd\.bin: a scan of nuScenes has other columns"):
        require_layout(tmp_path / "in.pcd.bin", IDS)


@pytest.mark.parametrize("suffix", [s for s in SUFFIXES if s not in (".bin", ".npy")])
def test_a_second_prediction_replaces_the_first(tmp_path, suffix):
    _, first, *_ = made(tmp_path, suffix)
    again, once = tmp_path / f"again{suffix}", tmp_path / f"once{suffix}"
    told, *_ = blocks(seed=9)
    annotate(first, again, told, IDS)
    annotate(tmp_path / f"in{suffix}", once, told, IDS)
    if suffix in (".las", ".laz"):
        laspy = pytest.importorskip("laspy")
        a, b = laspy.read(again), laspy.read(once)
        assert list(a.point_format.dimension_names) == list(b.point_format.dimension_names)
        assert a.points.array.tobytes() == b.points.array.tobytes()
    elif suffix == ".npz":
        with np.load(again) as a, np.load(once) as b:
            assert set(a.files) == set(b.files)
            assert all(np.array_equal(a[name], b[name]) for name in a.files)
    else:
        assert again.read_bytes() == once.read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("by", [-1, 1])
def test_another_number_of_predictions_is_refused_and_nothing_is_left(tmp_path, suffix, by):
    source, target = tmp_path / f"in{suffix}", tmp_path / "out" / f"result{suffix}"
    write_cloud(source, cloud())
    with pytest.raises(ValueError, match="prediction"):
        annotate(source, target, blocks(COUNT + by)[0], IDS)
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("suffix", [".las", ".laz", ".ply", ".pcd", ".bin"])
def test_a_file_that_was_cut_off_is_refused_and_nothing_is_left(tmp_path, suffix):
    source, target = tmp_path / f"in{suffix}", tmp_path / "out" / f"result{suffix}"
    write_cloud(source, cloud())
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3 + 1])
    with pytest.raises(ValueError, match=rf"in\{suffix}"):
        annotate(source, target, blocks()[0], IDS)
    assert list(target.parent.iterdir()) == []


def test_the_input_is_never_the_output_and_suffixes_agree(tmp_path):
    source = tmp_path / "in.ply"
    write_cloud(source, cloud())
    with pytest.raises(ValueError, match="is the input itself"):
        annotate(source, tmp_path / "." / "in.ply", blocks()[0], IDS)
    with pytest.raises(ValueError, match=r"must end in \.ply"):
        annotate(source, tmp_path / "out.las", blocks()[0], IDS)
    with pytest.raises(ValueError, match=r"unknown suffix '\.e57'; choose from"):
        annotate(tmp_path / "a.e57", tmp_path / "b.e57", [], IDS)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("element face 1\nproperty list uchar int i\nelement vertex 1\nproperty float x\n", "first element"),
        ("element vertex 1\nproperty float confidence\nproperty float x\n", "a column of its own named confidence"),
        ("element vertex 1\nproperty list uchar int x\n", "numbers only"),
    ],
)
def test_a_ply_file_that_takes_no_columns_says_why(tmp_path, text, said):
    source = tmp_path / "in.ply"
    source.write_text(f"ply\nformat ascii 1.0\n{text}end_header\n0 0\n")
    with pytest.raises(ValueError, match=said):
        annotate(source, tmp_path / "out.ply", blocks(1)[0], IDS)
    with pytest.raises(ValueError, match=said):
        require_layout(source, IDS)


def test_a_full_disk_or_a_missing_library_is_no_damaged_file(tmp_path, monkeypatch):
    source = tmp_path / "in.ply"
    write_cloud(source, cloud())
    for error in (OSError(28, "No space left on device"), ImportError("pypcd4 is missing")):
        monkeypatch.setitem(_WRITERS, ".ply", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error), match=r"^(?!.*damaged)"):
            require_layout(source, IDS)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_layout_is_tried_without_a_prediction_and_nothing_is_left(tmp_path, suffix):
    source = tmp_path / f"in{suffix}"
    write_cloud(source, cloud())
    before = sorted(tmp_path.iterdir())
    require_layout(source, IDS)
    assert sorted(tmp_path.iterdir()) == before
    if suffix == ".bin":
        with pytest.raises(ValueError, match=r"in\.bin: KITTI labels are 0\.\.65535"):
            require_layout(source, [1 << 16])
