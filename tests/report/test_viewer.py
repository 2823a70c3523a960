"""The page of a cloud: what stands in it, and what a browser makes of clicks on it."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from mink_decouple.cli import main
from mink_decouple.data.classes import Classes, save_classes
from mink_decouple.data.cloud import PointCloud
from mink_decouple.data.io import write_cloud
from mink_decouple.engine.view import sight_of_file
from mink_decouple.report.figures import UNLABELLED
from mink_decouple.report.viewer import viewer_page, write_page

CLASSES = Classes(
    ("floor", "wall", "</script>"),
    np.array([[0, 0, 255], [0, 200, 0], [200, 0, 0]], np.uint8),
    {1: 0, 2: 1, 7: 2},
    frozenset({0}),
)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


def cloud(count=900):
    rng = np.random.default_rng(0)
    truth = np.arange(count) % 3
    return rng.uniform(-1, 1, (count, 3)) * [4, 3, 1], {
        "truth": np.where(np.arange(count) < 90, -1, truth),
        "prediction": np.where(np.arange(count) < 300, 0, truth),
        "confidence": rng.random(count),
        "colour": rng.random((count, 3)),
    }


def content(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])


def decoded(text, dtype="u1"):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_page_holds_the_cloud_to_a_65535th_of_its_extent():
    coords, layers = cloud()
    data = content(viewer_page("a <b>", coords + 1e6, layers, CLASSES))
    assert data["count"] == 900
    assert [layer["name"] for layer in data["layers"]] == [*layers, "error"]
    place = decoded(data["coords"], "<u2").reshape(-1, 3) / 65535 * data["extent"]
    np.testing.assert_allclose(place, coords - coords.min(0), atol=1e-4)
    np.testing.assert_array_equal(decoded(data["columns"]["truth"]).astype(np.int8), layers["truth"])
    np.testing.assert_array_equal(decoded(data["columns"]["colour"]), np.rint(255 * layers["colour"]).ravel())
    assert [c["name"] for c in data["classes"]] == list(CLASSES.names)


def test_nothing_is_loaded_from_elsewhere():
    page = viewer_page("a <b>", *cloud(), CLASSES)
    assert "&lt;b&gt;" in page and "http" not in page and "src=" not in page and "@import" not in page


def test_a_larger_cloud_is_thinned_evenly_and_says_so():
    coords, layers = cloud()
    page = viewer_page("c", coords, layers, CLASSES, most=300)
    data = content(page)
    assert data["count"] == 300 and "300 of 900 points are in this page" in page
    assert 20 < (decoded(data["columns"]["truth"]) == 255).sum() < 40  # a third of the 90


def test_what_cannot_be_shown_is_named(tmp_path):
    coords, layers = cloud()
    for wrong, said in (
        ({}, "nothing to show"),
        ({"truth": layers["truth"][:5]}, "layer 'truth' has 5 rows for 900 points"),
        ({"truth": layers["truth"] + 1}, "ids 0..3, there are 3 classes"),
        ({"height": coords[:, 2]}, "layer 'height': choose from truth"),
    ):
        with pytest.raises(ValueError, match=said):
            viewer_page("c", coords, wrong, CLASSES)
    with pytest.raises(ValueError, match=r"must end in \.html, or \.png"):
        write_page(tmp_path / "page.png", "c", coords, layers, CLASSES)
    assert list(tmp_path.iterdir()) == []


STEPS = """
<script>
const seen = [];
const look = what => {
  const c = document.querySelector("canvas"), d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  const colors = new Map();
  for (let i = 0; i < d.length; i += 4) {
    const key = d[i] + "," + d[i + 1] + "," + d[i + 2];
    colors.set(key, (colors.get(key) || 0) + 1);
  }
  seen.push({what, shown: Number(document.getElementById("shown").dataset.shown),
    legend: [...document.querySelectorAll("#legend input")].map(t => t.dataset.name),
    colors: Object.fromEntries(colors)});
};
const press = name => document.querySelector(`[data-layer="${name}"]`).click();
look("truth");
document.querySelector('[data-name="wall"]').click(); look("no wall");
document.getElementById("all").click(); look("all");
press("prediction"); look("prediction");
press("error"); look("error");
document.querySelector('[data-name="right"]').click(); look("wrong only");
press("confidence"); look("confidence");
const key = (name, more) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", {key: name, bubbles: true, ...more}));
document.getElementById("size").focus(); key("1", {ctrlKey: true}); look("another tab"); key("4"); look("colour");
const before = seen[0].colors;
press("truth");
const c = document.querySelector("canvas");
c.setPointerCapture = () => {};
const layerOf = () => document.querySelector("[aria-pressed=true]").dataset.layer;
document.querySelector('[data-name="wall"]').focus(); key("2"); const boxed = layerOf(); key("1");
c.focus(); key("ArrowLeft");
const picture = [document.activeElement === c, c.getAttribute("role"), c.getAttribute("aria-label"), boxed];
const at = (kind, x) => c.dispatchEvent(new PointerEvent(kind, {pointerId: 1, clientX: x, clientY: 200, buttons: 1}));
at("pointerdown", 300); at("pointermove", 420); at("pointerup", 420);
setTimeout(() => {
  look("turned");
  seen.push({what: "picture", is: picture});
  const out = document.createElement("pre");
  out.id = "out";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
}, 500);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_a_browser_switches_layers_and_hides_classes(tmp_path):
    page = viewer_page("scene", *cloud(), CLASSES).replace("</body>", STEPS + "</body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--window-size=900,600", "--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path / 'page.html'}"]
    done = subprocess.run([CHROMIUM, *options], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.S)
    assert found, done.stderr[-2000:]
    text = found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    seen = {step["what"]: step for step in json.loads(text)}
    blue, green, red = "0,0,255", "0,200,0", "200,0,0"
    assert seen["truth"]["shown"] == 900 and seen["truth"]["legend"] == ["floor", "wall", "</script>", "none"]
    none = ",".join(map(str, UNLABELLED))
    assert all(seen["truth"]["colors"].get(c, 0) > 50 for c in (blue, green, red, none))
    assert seen["no wall"]["shown"] == 900 - 270 and green not in seen["no wall"]["colors"]
    assert seen["all"]["colors"] == seen["truth"]["colors"]
    assert seen["prediction"]["legend"] == ["floor", "wall", "</script>"]
    assert seen["prediction"]["colors"][blue] > seen["truth"]["colors"][blue]
    assert seen["error"]["legend"] == ["right", "wrong", "no truth"] and "214,39,40" in seen["error"]["colors"]
    assert seen["wrong only"]["shown"] == 140 + 90  # two thirds of 210 wrong, and 90 without truth
    assert seen["confidence"]["legend"] == [] and len(seen["confidence"]["colors"]) > 50
    assert seen["another tab"]["colors"] == seen["confidence"]["colors"]  # Ctrl+1 is the browser's
    assert len(seen["colour"]["colors"]) > 500  # by a key, though the focus was on a slider
    assert seen["picture"]["is"] == [True, "img", "point cloud: scene", "prediction"]
    assert seen["turned"]["shown"] == 900 and seen["turned"]["colors"] != seen["truth"]["colors"]


def test_labels_of_a_file_beside_a_truth_are_its_prediction(tmp_path):
    """As of a PLY with classes in `label`: without `truth` they are the truth."""
    coords, ids = np.random.default_rng(0).random((30, 3)).astype(np.float32), np.arange(30) % 3
    write_cloud(tmp_path / "mine.ply", PointCloud("m", coords, labels=ids))
    write_cloud(tmp_path / "truth.ply", PointCloud("t", coords, labels=ids[::-1].copy()))
    assert list(sight_of_file(tmp_path / "mine.ply").layers) == ["truth"]
    layers = sight_of_file(tmp_path / "mine.ply", tmp_path / "truth.ply").layers
    np.testing.assert_array_equal(layers["prediction"], ids)
    np.testing.assert_array_equal(layers["truth"], ids[::-1])


def test_view_of_a_predicted_file_and_its_truth(tmp_path, capsys):
    rng = np.random.default_rng(0)
    coords = rng.uniform(0, 5, (60, 3)).astype(np.float32)
    raw = np.array([1, 2, 7])
    truth, found = raw[np.arange(60) % 3], raw[np.arange(60) // 20]
    write_cloud(tmp_path / "truth.las", PointCloud("t", coords, labels=truth))
    confidence = rng.random(60, dtype=np.float32)
    write_cloud(tmp_path / "found.las", PointCloud("f", coords, features={"confidence": confidence}, labels=found))
    save_classes(tmp_path / "classes.yaml", CLASSES)
    arguments = ["view", str(tmp_path / "found.las"), "--output", str(tmp_path / "page.html")]
    asked = [*arguments, "--truth", str(tmp_path / "truth.las"), "--classes", str(tmp_path / "classes.yaml")]
    assert main(asked) == 0
    data = content((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [layer["name"] for layer in data["layers"]] == ["truth", "prediction", "confidence", "error"]
    np.testing.assert_array_equal(decoded(data["columns"]["truth"]), np.arange(60) % 3)
    np.testing.assert_array_equal(decoded(data["columns"]["prediction"]), np.arange(60) // 20)
    assert main(arguments) == 0  # without names the ids are the names
    data = content((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert [c["name"] for c in data["classes"]] == ["class 1", "class 2", "class 7"]
    assert main([*asked, "--output", str(tmp_path / "still.png")]) == 0
    assert (tmp_path / "still.png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main([*arguments, "--points", "0"]) == 2
    assert "--points 0: must be at least 1" in capsys.readouterr().err
    assert main(["view", str(tmp_path), "--output", str(tmp_path / "pages")]) == 2
    assert "no run folder" in capsys.readouterr().err
    write_cloud(tmp_path / "bare.ply", PointCloud("b", coords))
    assert main(["view", str(tmp_path / "bare.ply"), "--output", str(tmp_path / "b.html")]) == 2
    assert "neither colours nor labels nor a prediction" in capsys.readouterr().err
