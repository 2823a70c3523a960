"""The page of a comparison as a browser shows it: sorted by a click, opened by a click, no wider than the window."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from test_compare import made, page_of

from mink_decouple.report.compare import compare

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
STEPS = """
<script>
const found = {};
const failures = [];
addEventListener("error", event => failures.push(event.message));
const column = (table, place) => [...table.tBodies[0].rows].map(row => row.children[place].textContent);
const head = document.querySelector("th.sortable"), table = head.closest("table");
const heads = [...table.querySelectorAll("th")].map(cell => cell.textContent);
const miou = heads.findIndex(text => text.startsWith("mIoU"));
found.before = column(table, miou);
table.querySelectorAll("th")[miou].click(); found.first = column(table, miou);
table.querySelectorAll("th")[miou].click(); found.second = column(table, miou);
const key = name => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: name, bubbles: true}));
head.focus();
found.focused = document.activeElement === head;
const seeds = heads.findIndex(text => text === "seeds");
table.querySelectorAll("th")[seeds].focus(); key("Enter"); found.enter = column(table, seeds);
key(" "); found.space = column(table, seeds); found.sort = document.activeElement.getAttribute("aria-sort");
const fold = document.querySelector("details");
found.closed = fold.open; fold.querySelector("summary").click(); found.opened = fold.open;
found.wide = document.documentElement.scrollWidth - innerWidth;
found.links = [...document.querySelectorAll("nav a")].every(a => document.querySelector(a.getAttribute("href")));
found.failures = failures;
const out = document.createElement("pre");
out.id = "out"; out.textContent = JSON.stringify(found);
document.body.append(out);
</script>
"""


NARROW = """
<script>
const drawn = [...document.querySelectorAll("svg")].filter(svg => svg.getBoundingClientRect().width);
const found = {
  charts: drawn.length,
  scale: Math.min(...drawn.map(svg => svg.getBoundingClientRect().width / svg.viewBox.baseVal.width)),
  wide: document.documentElement.scrollWidth - innerWidth,
};
const out = document.createElement("pre");
out.id = "out"; out.textContent = JSON.stringify(found);
document.body.append(out);
</script>
"""
PAPER = 1047
"""Width in CSS pixels of what A4 landscape leaves between margins of 10 mm."""
PRINTED = """
<script>
dispatchEvent(new Event("beforeprint"));
const tables = [...document.querySelectorAll("table")];
const found = {
  tables: tables.length,
  right: Math.max(...tables.map(table => table.getBoundingClientRect().right)),
  cut: tables.filter(table => getComputedStyle(table.closest(".scroll")).overflowX !== "visible").length,
  folded: document.querySelectorAll("details:not([open])").length,
  folds: document.querySelectorAll("details").length,
};
dispatchEvent(new Event("afterprint"));
found.after = document.querySelectorAll("details:not([open])").length;
const out = document.createElement("pre");
out.id = "out"; out.textContent = JSON.stringify(found);
document.body.append(out);
</script>
"""


def open_page(tmp_path, *options):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    return subprocess.run(
        [*command, *options, f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=120
    )


def told_by_page(tmp_path, width):
    """What the script at the end of the page found."""
    shown = open_page(tmp_path, f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom")
    found = re.search(r'<pre id="out">(.*?)</pre>', shown.stdout, re.S)
    assert found, shown.stderr[-2000:]
    return json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_a_browser_sorts_opens_and_fits_the_page(tmp_path):
    records = [
        made(title, seed, score + 0.01 * seed) for title, score in (("a", 0.4), ("b", 0.6)) for seed in range(3)
    ][1:]
    text = page_of(tmp_path, records)
    (tmp_path / "page.html").write_text(text.replace("</body>", STEPS + "</body>"), encoding="utf-8")
    seen = told_by_page(tmp_path, 1280)
    numbers = [[float(text.split()[0]) for text in seen[key]] for key in ("first", "second")]
    assert len(numbers[0]) == 2 and numbers[0] == sorted(numbers[0], reverse=True) and numbers[1] == sorted(numbers[1])
    assert seen["focused"] and (seen["enter"], seen["space"]) == (["3", "2"], ["2", "3"])
    assert seen["sort"] == "ascending"
    assert seen["closed"] is False and seen["opened"] is True
    assert seen["wide"] <= 0 and seen["links"] and seen["failures"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_a_picture_of_the_page_has_text_and_colour(tmp_path):
    text = page_of(tmp_path, [made("a", 0, 0.4), made("b", 0, 0.6)])
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    open_page(tmp_path, "--window-size=1280,2400", f"--screenshot={tmp_path / 'page.png'}")
    picture = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    assert picture.shape[1] == 1280
    dark, coloured = picture.max(2) < 0.4, picture.max(2) - picture.min(2) > 0.2
    assert dark.mean() > 0.005 and coloured.mean() > 0.002 and np.median(picture) > 0.9


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
@pytest.mark.parametrize("name", ["lidar", "main"])
def test_on_paper_no_column_is_cut_and_nothing_is_folded(tmp_path, name):
    """The rules for print, applied to a window as wide as the paper."""
    records = Path(__file__).parents[2] / "docs" / "records" / f"{name}.json"
    compare([records], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "@page { size: A4 landscape; margin: 10mm; }" in text
    printed = text.replace("@media print", "@media all").replace("</body>", PRINTED + "</body>")
    (tmp_path / "page.html").write_text(printed, encoding="utf-8")
    seen = told_by_page(tmp_path, PAPER)
    assert seen["tables"] > 4 and seen["right"] <= PAPER and seen["cut"] == 0
    assert seen["folds"] > 1 and seen["folded"] == 0 and seen["after"] == seen["folds"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to open the page in")
def test_charts_stay_readable_in_a_narrow_window(tmp_path):
    """They scroll: their smallest text, of 7 points, has 7 pixels or more, and the page is no wider than the window."""
    text = page_of(tmp_path, [made(title, seed) for title in ("a", "b") for seed in range(2)])
    (tmp_path / "page.html").write_text(text.replace("</body>", NARROW + "</body>"), encoding="utf-8")
    seen = told_by_page(tmp_path, 500)
    assert seen["charts"] > 1 and 7 * seen["scale"] >= 7 and seen["wide"] <= 0
