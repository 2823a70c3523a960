"""The window: which layer in which colours, and a clear line where there is no screen or no open3d."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from mink_decouple.cli import main
from mink_decouple.data.classes import Classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import write_cloud
from mink_decouple.report.window import colors_of, show

CLASSES = Classes(("floor", "wall"), np.array([[0, 0, 255], [0, 200, 0]], np.uint8), {1: 0, 2: 1}, frozenset({0}))
COLUMNS = {"truth": np.array([0, 1, -1]), "prediction": np.array([0, 0, 1]), "confidence": np.array([0.1, 0.5, 1.0])}


def test_each_layer_has_its_colours():
    name, colors = colors_of(COLUMNS, CLASSES, None)
    assert name == "prediction" and colors.tolist() == [[0, 0, 255], [0, 0, 255], [0, 200, 0]]
    error = colors_of(COLUMNS, CLASSES, "error")[1]
    assert len({tuple(c) for c in error.tolist()}) == 3  # right, wrong, no truth
    assert colors_of({"colour": np.full((3, 3), 0.5)}, CLASSES, None)[1].tolist() == [[128] * 3] * 3
    with pytest.raises(ValueError, match=r"--layer height: choose from truth, prediction, confidence, error"):
        colors_of(COLUMNS, CLASSES, "height")


def test_without_a_screen_or_open3d_the_page_is_offered(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    write_cloud(tmp_path / "a.ply", PointCloud("a", np.eye(3, dtype=np.float32), labels=np.array([1, 2, 2])))
    assert main(["view", str(tmp_path / "a.ply"), "--window"]) == 2
    assert "no screen here (DISPLAY is not set); write a page with --output FILE.html" in capsys.readouterr().err
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setitem(sys.modules, "open3d", None)
    assert main(["view", str(tmp_path / "a.ply"), "--window"]) == 2
    assert "needs open3d; run: pip install open3d" in capsys.readouterr().err
    assert main(["view", str(tmp_path / "a.ply")]) == 2
    assert "say where to with --output FILE.html or FILE.png, or --window" in capsys.readouterr().err


def test_a_window_gets_the_points_and_colours(monkeypatch):
    opened = []
    fake = SimpleNamespace(
        geometry=SimpleNamespace(PointCloud=SimpleNamespace),
        utility=SimpleNamespace(Vector3dVector=lambda rows: rows),
        visualization=SimpleNamespace(draw_geometries=lambda clouds, window_name: opened.append((clouds, window_name))),
    )
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setitem(sys.modules, "open3d", fake)
    show("room", np.eye(3, dtype=np.float32) + 7, COLUMNS, CLASSES, "truth")
    ((cloud,), title) = opened[0]
    assert title == "room: truth"
    np.testing.assert_allclose(cloud.points.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(cloud.colors[0], [0, 0, 1])
