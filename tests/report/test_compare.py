"""A comparison: statistics against SciPy and by hand, the page's numbers, what is refused, what a page loads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel
from test_records import run_folder

from mink_decouple.cli import main
from mink_decouple.data.classes import Classes
from mink_decouple.report.compare import compare
from mink_decouple.report.records import Record, load, read_run, save
from mink_decouple.report.scenes import flatten, projection
from mink_decouple.report.statistics import holm, paired
from mink_decouple.report.words import budgets

CLASSES = ["floor", "wall", "sofa"]


def made(title: str = "decoupled", seed: int = 0, miou: float = 0.5, backbone: str = "minkunet") -> Record:
    """A record with made-up figures."""
    rng = np.random.default_rng([seed, len(title)])
    iou = dict(zip(CLASSES, (0.9, miou, 0.1), strict=True))
    scores = {"miou": miou, "head_iou": 0.9, "waist_iou": miou, "tail_iou": miou / 2, "oa": 0.8, "classes_counted": 3}
    scored = {"event": "evaluation", **scores, "iou": iou}
    labels = {
        "event": "pseudo_labels",
        "certain": dict.fromkeys(CLASSES, 10 + seed),
        "uncertain": dict.fromkeys(CLASSES, 2),
        "precision": {"floor": 0.9, "wall": None, "sofa": 0.5},
        "recall": dict.fromkeys(CLASSES, 0.4),
    }
    return Record(
        title=title,
        backbone=backbone,
        labels="1pt",
        recipe=title,
        seed=seed,
        dataset="synthetic",
        digest=f"{title}{backbone}",
        classes=CLASSES,
        colors=[[200, 0, 0], [0, 200, 0], [0, 0, 200]],
        groups={"head": [0], "waist": [1], "tail": [2]},
        metrics={
            **scores,
            "iou": iou,
            "pretrained": {"miou": miou / 2},
            "confusion": rng.multinomial(12, [0.6, 0.3, 0.1], 3).tolist(),  # of the same points in every run
        },
        label_budget={"labelled": 9, "share_of_raw": 0.001},
        parameters={"backbone": 100, "classifier": 10},
        history=[{**scored, "stage": "pretrain"}, labels, {**scored, "stage": "iter_00_II"}],
        cost={
            "seconds": {"pretrain": 60.0, "iter_00_I": 30.0, "iter_00_II": 5.0, "evaluation": 5.0},
            "peak_memory_mib": 900.0,
            "threads": 1,
            "device": "cpu",
            "processor": None,
            "commit": "abc",
            "versions": {"torch": "2"},
        },
    )


def page_of(folder: Path, records: list[Record], **options: object) -> str:
    save(folder / "records.json", records)
    compare([folder / "records.json"], folder / "report.html", **options)
    return (folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Tables as lists of rows of texts, and every address that the page names."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


def test_the_paired_test_is_that_of_scipy():
    rng = np.random.default_rng(0)
    ours, others = (dict(enumerate(rng.normal(size=5))) for _ in range(2))
    found, wanted = paired(ours, others), ttest_rel(list(ours.values()), list(others.values()))
    assert found is not None
    interval = wanted.confidence_interval(0.95)
    assert (found.p, found.low, found.high) == pytest.approx((wanted.pvalue, interval.low, interval.high))


def test_the_paired_test_by_hand():
    # gaps 1, 2, 3: mean 2, sample deviation 1, error 1 / sqrt 3; the 97.5 % point of t with 2 degrees is 4.3027
    found = paired({0: 11, 1: 22, 2: 33, 9: 0}, {0: 10, 1: 20, 2: 30, 7: 5})
    assert found is not None and found.pairs == 3
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    assert paired({0: 1.0}, {1: 1.0}) is None
    alone = paired({0: 3.0}, {0: 1.0})
    assert alone is not None and (alone.mean, alone.p) == (2.0, None)


def test_holms_correction_by_hand():
    # 4 x 0.01; 3 x 0.015; 2 x 0.02 is less than that, so that again; 1 x 0.9
    tests = {"a": 0.02, "b": 0.01, "c": 0.9, "d": 0.015}
    assert holm(tests) == pytest.approx({"b": 0.04, "d": 0.045, "a": 0.045, "c": 0.9})
    assert holm({"a": 0.3, "b": 0.9}) == {"a": 0.6, "b": 0.9} and holm({"a": 0.7, "b": 0.8})["a"] == 1.0


def test_what_many_tests_find_by_chance_is_told_and_corrected_for(tmp_path):
    """A gap with p = 0.035 is beyond chance alone, not as the largest of four."""
    plain = [made("supervised", seed, 0.3) for seed in range(3)]
    best = [made("best", seed, value) for seed, value in enumerate((0.36, 0.34, 0.38))]
    assert "beyond chance by a paired t-test (p = 0.035)" in page_of(tmp_path, plain + best)
    more = [made(title, seed, 0.3 + 0.01 * seed) for title in ("a", "b", "c") for seed in range(3)]
    text = page_of(tmp_path, plain + best + more)
    assert "within chance by a paired t-test (p = 0.035, by Holm&#x27;s correction for 4 tests 0.14)" in text
    assert "These are 8 comparisons: where nothing differs, about 0.4 of so many p" in text  # of mIoU and of tail IoU
    assert "comparisons" not in page_of(tmp_path, plain)


def test_a_budget_is_told_in_raw_points_and_in_grid_points_where_they_are_known():
    budget = {"labelled": 5923, "share_of_raw": 0.0045253, "share_of_view": 0.0097411}
    told = "Budget 1pt: 5,923 labelled points, 0.453 % of the raw points"
    seen = budgets([replace(made(), label_budget=budget)])
    assert seen == [f"{told} and 0.974 % of the grid points, which the network sees, or less."]
    del budget["share_of_view"]
    assert budgets([replace(made(), label_budget=budget)]) == [f"{told} or less."]


@pytest.mark.parametrize(
    ("sums", "told"),
    [
        (("minkunet 0 a", "minkunet 0 a", "randla 0 a", "randla 1 b"), " All runs of a seed have the same ones."),
        (("minkunet 0 a", "minkunet 0 a", "randla 0 b"), " Those of MinkUNet and RandLA-Net are not the same."),
        (("minkunet 0 a", "minkunet 0 b", "randla 0 b"), " Not all runs of a seed have the same ones."),
        (("minkunet 0 a", "minkunet 1 b"), ""),
    ],
)
def test_whether_runs_have_the_same_labelled_points_is_told(sums, told):
    runs = []
    for backbone, seed, checksum in map(str.split, sums):
        budget = {"labelled": 9, "share_of_raw": 0.01, "checksum": checksum}
        runs.append(replace(made(backbone=backbone, seed=int(seed)), label_budget=budget))
    assert budgets(runs) == [f"Budget 1pt: 9 labelled points, 1 % of the raw points or less.{told}"]


def test_the_main_table_holds_the_figures_of_the_records(tmp_path):
    records = [made("supervised", s, v) for s, v in enumerate((0.30, 0.32, 0.34))]
    records += [made("decoupled", s, v) for s, v in enumerate((0.40, 0.43, 0.43))]
    head, first, second = read(page_of(tmp_path, records)).tables[0]
    assert head[2:5] == ["setting", "mIoU", "head"]
    assert first[2:4] == ["supervised", "32.0 ± 2.0"] and second[2:4] == ["decoupled", "42.0 ± 1.7"]
    assert second[head.index("seeds")] == "3"
    gap = ttest_rel([40, 43, 43], [30, 32, 34])
    assert second[-4].startswith("+10.0 (") and second[-3] == f"{gap.pvalue:.2g}"
    figures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert figures["reference"] == "supervised"
    assert figures["settings"][1]["miou"]["mean"] == pytest.approx(42.0)
    assert figures["settings"][1]["miou"]["difference"] == pytest.approx(10.0)


def test_the_words_say_who_leads_and_how_surely(tmp_path):
    plain = [made("supervised", seed, 0.3 + 0.01 * seed) for seed in range(3)]
    text = page_of(tmp_path, plain + [made("best", seed, 0.5 + 0.011 * seed) for seed in range(3)])
    assert "MinkUNet at 1pt: best leads with 51.1 mIoU, +20.1 from supervised (beyond chance" in text
    text = page_of(tmp_path, plain + [made("close", seed, value) for seed, value in enumerate((0.33, 0.30, 0.32))])
    assert "close leads with 31.7 mIoU, +0.7 from supervised (within chance" in text


@pytest.mark.parametrize(
    ("titles", "asked", "told"),
    [
        (("aerial", "decoupled", "supervised"), None, "supervised, the default (--reference)."),
        (("aerial", "decoupled"), None, "decoupled, the default (--reference)."),
        (("aerial", "best"), None, "aerial, the default (--reference)."),
        (("aerial", "decoupled", "supervised"), "aerial", "aerial."),
    ],
)
def test_the_page_says_what_the_others_are_compared_with_and_whether_by_default(tmp_path, titles, asked, told):
    text = page_of(tmp_path, [made(title) for title in titles], reference=asked)
    assert f"The others are compared with {told}<" in text
    assert f"mIoU − {told.rstrip('.').split(',')[0]}</th>" in text


@pytest.mark.parametrize("reference", ["plain", "lucky"])
def test_nothing_leads_what_it_is_below_over_common_seeds(tmp_path, reference):
    """`lucky` has the higher mean for its one seed is the easy one; on that seed it is below `plain`."""
    records = [*(made("plain", seed, value) for seed, value in enumerate((0.2, 0.3, 0.4))), made("lucky", 2, 0.35)]
    text = page_of(tmp_path, records, reference=reference)
    assert "lucky has the highest mean, 35.0 mIoU, but is 5.0 below plain over the seeds that both have" in text
    assert "leads with" not in text


def test_a_page_loads_nothing_and_is_the_same_twice(tmp_path):
    records = [made("supervised", s) for s in range(2)] + [made("decoupled", s, 0.6) for s in range(2)]
    first = page_of(tmp_path, records)
    assert page_of(tmp_path, records) == first
    assert all(address.startswith(("data:", "#")) for address in read(first).addresses)
    assert "@import" not in first and "url(http" not in first


def test_titles_are_text_and_nothing_else(tmp_path):
    evil = "<script>alert(1)</script>"
    odd = [replace(made(title), labels=evil) for title in (evil, "supervised")]
    text = page_of(tmp_path, odd, title=evil)
    assert evil not in text and "&lt;script&gt;alert(1)" in text


def test_what_records_cannot_show_is_said(tmp_path):
    text = page_of(tmp_path, [made("supervised")])
    for said in (
        "Only run folders hold predictions",
        "Only run folders hold features",
        "which nothing is compared with",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([made(), replace(made(seed=1), classes=["a", "b", "c"])], "runs over different classes do not compare"),
        (
            [made(), replace(made(seed=1), dataset="s3dis")],
            "runs on different data do not compare: s3dis and synthetic",
        ),
        ([made(), replace(made(), digest="other")], "two runs of different settings"),
        (
            [
                made(),
                replace(made("supervised"), metrics={**made().metrics, "confusion": [[9, 0, 0], [0, 9, 0], [0, 0, 9]]}),
            ],
            "different scenes do not compare: of floor, decoupled, seed 0: 12 points; supervised, seed 0: 9 points",
        ),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path, capsys, records, said):
    save(tmp_path / "records.json", records)
    arguments = ["compare", str(tmp_path / "records.json"), "--output", str(tmp_path / "report.html")]
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()


def test_no_file_of_another_kind_is_overwritten(tmp_path, capsys):
    save(tmp_path / "records.json", [made()])
    (tmp_path / "report.html").write_text("<p>mine</p>", encoding="utf-8")
    arguments = ["compare", str(tmp_path / "records.json"), "--output", str(tmp_path / "report.html")]
    assert main(arguments) == 2
    assert "exists and is no comparison" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "<p>mine</p>"
    assert main([*arguments[:-1], str(tmp_path / "report.txt")]) == 2
    assert main([*arguments, "--reference", "nobody"]) == 2


def test_no_file_but_an_earlier_page_s_figures_is_overwritten_by_them(tmp_path, capsys):
    """The figures go to the name of the page with .json, where records, a run's own files or anything may lie."""
    mine, other, run = tmp_path / "mine.json", tmp_path / "other.json", tmp_path / "run" / "metrics.json"
    run.parent.mkdir()
    for path in (mine, other):
        save(path, [made()])
    run.write_text('{"miou": 0.5}', encoding="utf-8")
    before = {path: path.read_bytes() for path in (mine, other, run)}
    for output, more, said in (
        (tmp_path / "run" / ".." / "mine.html", (), "is to be compared"),
        (tmp_path / "other.html", (), "exists and holds no figures of a page"),
        (run.with_suffix(".html"), (), "exists and holds no figures of a page"),
        (tmp_path / "new.html", ("--records", str(tmp_path / "new.json")), "is a file of the page"),
        (tmp_path / "new.html", ("--records", str(tmp_path / "new.html")), "is a file of the page"),
        (tmp_path / "new.html", ("--records", str(run)), "not a file of records"),
    ):
        assert main(["compare", str(mine), "--output", str(output), *more]) == 2
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1
        assert {path: path.read_bytes() for path in before} == before and not output.exists()
    for _ in range(2):  # its own figures may be written anew
        assert main(["compare", str(mine), "--output", str(tmp_path / "page.html")]) == 0


def test_records_are_added_to_a_file_that_is_there(tmp_path):
    save(tmp_path / "kept.json", [made(seed=7)])
    save(tmp_path / "new.json", [made(), made("supervised")])
    compare([tmp_path / "new.json"], tmp_path / "report.html", records=tmp_path / "kept.json")
    assert [(one.title, one.seed) for one in load([tmp_path / "kept.json"])] == [
        ("decoupled", 0),
        ("decoupled", 7),
        ("supervised", 0),
    ]


def test_a_run_that_is_there_twice_counts_once(tmp_path):
    save(tmp_path / "a.json", [made()])
    notes = compare([tmp_path / "a.json", tmp_path / "a.json"], tmp_path / "report.html")
    assert notes == ["1 runs stand there twice; each counts once"]


def test_a_row_of_different_settings_is_named(tmp_path, capsys):
    """Seeds of one recipe that were trained with another --set."""
    save(tmp_path / "a.json", [made(), *(replace(made(seed=seed), digest="other") for seed in (1, 2))])
    told = "MinkUNet at 1pt, decoupled: the settings of its seeds differ (0: decoupledminkunet; 1, 2: other)"
    assert main(["compare", str(tmp_path / "a.json"), "--output", str(tmp_path / "report.html")]) == 0
    assert told in capsys.readouterr().out and told in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_principal_components_are_those_of_the_covariance():
    rows = np.random.default_rng(0).normal(size=(40, 5)) * [5, 3, 1, 1, 0.5]
    flat = flatten(rows, "pca")
    values = np.linalg.eigvalsh(np.cov(rows.T))[::-1][:2]
    assert np.cov(flat.T) == pytest.approx(np.diag(values), abs=1e-9)


def test_a_projection_colours_a_head_class_and_the_two_rarest():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2, 3], [100, 60, 40, 20])
    features = {
        "truth": truth,
        "visible": np.where(np.arange(220) % 50 == 0, truth, -1),
        "pretrain": rng.normal(size=(220, 4)),
    }
    classes = Classes(("a", "b", "c", "d"), np.zeros((4, 3), np.uint8), {c: c for c in range(4)}, frozenset())
    uri, shown = projection(features, ["pretrain"], classes, {"head": [1]}, "tsne")
    assert uri.startswith("data:image/png;base64,") and shown == ["b", "c", "d"]


def test_no_two_settings_look_alike():
    """A study of ten settings has more of them than colours."""
    from mink_decouple.report.charts import look, mark

    assert len({tuple(mark(number).values()) for number in range(64)}) == 64
    assert len({tuple(look(number).values()) for number in range(32)}) == 32


def test_the_lines_of_the_page_put_another_program_s_scores_beside_ours(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "compare.md").read_text(encoding="utf-8")
    part = page[page.index("## Another program's scores") : page.index("and `tools/compare.py runs/mine")]
    script = "\n".join(line[4:] for line in part.splitlines() if line.startswith("    "))
    run_folder(tmp_path / "runs" / "mine")
    (tmp_path / "runs" / "mine" / "metrics.jsonl").write_text("", encoding="utf-8")
    ours = read_run(tmp_path / "runs" / "mine")
    (tmp_path / "theirs").mkdir()
    truth = np.repeat(np.arange(len(ours.classes)), np.asarray(ours.metrics["confusion"]).sum(1))
    np.save(tmp_path / "theirs" / "room_1_truth.npy", np.r_[truth, -1])
    np.save(tmp_path / "theirs" / "room_1_prediction.npy", np.r_[truth, 0])
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    compare([tmp_path / "runs" / "mine", tmp_path / "theirs.json"], tmp_path / "report.html")
    head, *rows = read((tmp_path / "report.html").read_text(encoding="utf-8")).tables[0]
    scores = {row[head.index("setting")]: row[head.index("mIoU")] for row in rows}
    assert scores["theirs"] == "100.0" and set(scores) == {"theirs", ours.title}
