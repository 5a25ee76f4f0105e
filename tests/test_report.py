"""The leaderboard in all its forms; the page also in a real browser, where there is one."""

from __future__ import annotations

import doctest
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import csunmix as cu
from csunmix import report as report_module
from csunmix.metrics import THRESHOLDS, frame_gospa
from csunmix.report import COLUMNS, FILES, Report
from csunmix.targets import make_table

SETUP = cu.presets.csist_100k()
EVIL = '<script>alert("x")</script> & $\\alpha$ σ½ | `b`'
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


@pytest.fixture(scope="module")
def scenes():
    return cu.simulate(SETUP.psf, SETUP.sensor, SETUP.scene, shape=(11, 11), n=20, rng=4)


def shaken(truth, sigma, rng=0):
    """The truth with errors."""
    rng = np.random.default_rng(rng)
    moved = truth.copy()
    for name in ("y", "x"):
        moved[name] += rng.normal(0, sigma, len(truth))
    moved["flux"] *= rng.normal(1, 0.05, len(truth))
    return moved


@pytest.fixture(scope="module")
def runs(scenes):
    return {
        "worse": shaken(scenes.truth, 0.15),
        EVIL: shaken(scenes.truth, 0.05),
        "nothing": make_table([], [], [], [], n_frames=20),
    }


@pytest.fixture(scope="module")
def report(scenes, runs):
    published = pd.DataFrame({"method": ["<b>Net</b>"], "mAP": ["46.74"], "source": ["a & b"]})
    return Report(
        runs,
        scenes.truth,
        images=scenes.images,
        names=[f"<i>image_{k}</i>.png" for k in range(20)],
        seconds={"worse": 0.25},
        parameters={EVIL: 2_179_000},
        published=published,
        title="A < B",
        n_cases=2,
    )


@pytest.fixture(scope="module")
def page(report):
    pytest.importorskip("matplotlib")
    return report.to_html()


# The table


def test_table_has_the_metrics_of_compare(report, runs, scenes):
    expected = cu.compare(runs, scenes.truth)
    table = report.table
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert list(table.index) == [EVIL, "worse", "nothing"]
    pd.testing.assert_frame_equal(table[expected.columns], expected.loc[table.index])
    assert table["images/s"].tolist()[1] == 20 / 0.25
    assert table["images/s"].isna().tolist() == [True, False, True]
    assert table.loc[EVIL, "parameters"] == 2_179_000


def test_ranked_by_score(scenes):
    truth = scenes.truth
    scored = shaken(truth, 0.1).assign(score=np.linspace(0.1, 0.9, len(truth)))
    table = Report({"a": scored}, truth, rank_by="score").table
    expected = cu.compare({"a": scored}, truth, rank_by="score")
    pd.testing.assert_frame_equal(table[expected.columns], expected)


def test_what_a_table_says_of_itself(scenes):
    truth = scenes.truth
    by_column = truth.assign(seconds=4.0, parameters=100)
    by_attrs = truth.copy()
    by_attrs.attrs |= {"seconds": 2.0, "parameters": 7, "flux_known": False}
    odd = truth.assign(seconds="soon")
    runs = {"column": by_column, "attrs": by_attrs, "both": by_attrs, "odd": odd}
    table = Report(runs, truth, seconds={"both": 1.0}).table
    assert table.loc[["column", "attrs", "both"], "images/s"].tolist() == [5.0, 10.0, 20.0]
    assert table.loc[["column", "attrs"], "parameters"].tolist() == [100, 7]
    assert np.isnan(table.loc["odd", "images/s"])
    assert table["flux error"].isna().to_dict() == {
        "column": False, "attrs": True, "both": True, "odd": False
    }  # fmt: skip
    assert by_attrs.attrs["seconds"] == 2.0  # inputs stay as they are


def test_network_unmixer_carries_its_time(scenes):
    unmix = cu.NetworkUnmixer(lambda a: np.kron(a[:, 0], np.eye(3)))
    table = Report({"network": unmix(scenes.images)}, scenes.truth).table
    assert table.loc["network", "images/s"] > 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"runs": {}}, ValueError, "runs must name at least one method"),
        ({"runs": [1]}, TypeError, "runs must be a mapping"),
        ({"runs": {"a": 3}}, TypeError, r"runs\['a'\] must be of type DataFrame"),
        ({"truth": None}, TypeError, "truth must be of type DataFrame"),
        ({"rank_by": "size"}, ValueError, "rank_by must be one of"),
        ({"n_cases": -1}, ValueError, "n_cases must be at least 0"),
        ({"images": np.zeros((3, 11, 11))}, ValueError, "images must be the 20 of the truth"),
        ({"images": np.zeros((20, 11))}, ValueError, "images must be the 20 of the truth"),
        ({"names": ["a"]}, ValueError, "names must be those of 20 images, got 1"),
        ({"seconds": {"b": 1}}, ValueError, r"seconds must be of the methods \['a'\], got 'b'"),
        ({"seconds": {"a": 0}}, ValueError, r"seconds\['a'\] must be above 0"),
        ({"parameters": {"a": "1"}}, TypeError, r"parameters\['a'\] must be a real number"),
    ],
)
def test_bad_arguments(scenes, change, error, message):
    good = {"runs": {"a": scenes.truth}, "truth": scenes.truth}
    with pytest.raises(error, match=message):
        Report(**(good | change))


# The hardest images


def test_hardest_images_have_the_largest_gospa(report, runs, scenes):
    each = np.mean([frame_gospa(run, scenes.truth) for run in runs.values()], axis=0)
    assert report.hardest == np.argsort(-each, kind="stable")[:2].tolist()
    assert each[report.hardest[0]] == each.max()


def test_nothing_is_hard_for_a_perfect_answer(scenes):
    report = Report({"truth": scenes.truth}, scenes.truth, images=scenes.images)
    assert report.hardest == []
    assert "Hardest" not in report.to_html()


# Text, CSV, Markdown


def test_text(report):
    lines = report.to_text().splitlines()
    n = report.truth.shape[0]
    assert lines[0] == f"3 methods, 20 images, {n} true targets; ranked by flux"
    assert lines[2].startswith("method")
    assert lines[2].endswith("worse  nothing")
    row = next(line for line in lines if line.startswith("CSO-mAP"))
    assert row.split()[2:] == [f"{value:.2f}" for value in report.table["CSO-mAP"]]
    row = next(line for line in lines if line.startswith("parameters"))
    assert row.split() == ["parameters", "2,179,000", "-", "-"]


def test_csv_has_every_digit(report, tmp_path):
    (tmp_path / "t.csv").write_text(report.to_csv())
    table = pd.read_csv(tmp_path / "t.csv", index_col="method", dtype=str).astype(float)
    pd.testing.assert_frame_equal(table, report.table, check_exact=True, check_dtype=False)


def test_markdown(report):
    lines = report.to_markdown().splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[:5]]
    assert {len(row) for row in cells} == {1 + len(COLUMNS)}
    assert "<" not in cells[2][0].replace("\\<", "")
    best = [cell.strip() for cell in cells[2][1:]]
    assert best[0] == f"**{report.table['CSO-mAP'].iloc[0]:.2f}**"
    assert not best[-1].startswith("**")  # more parameters are not better
    assert lines[-1] == report.summary() + "."


def test_one_method_alone_is_not_the_best(scenes):
    report = Report({"a": scenes.truth}, scenes.truth)
    assert "**" not in report.to_markdown()
    assert not np.any(report.best())
    assert report.summary().startswith("1 method, 20 images, ")


def test_equal_numbers_are_equally_good(scenes):
    truth = scenes.truth
    best = np.array(Report({"a": truth, "b": truth}, truth).best())
    assert (best[0] == best[1]).all()
    assert best[:, 0].all()


def test_truth_without_targets_in_some_frames():
    truth = make_table([1, 1], [4.0, 5.0], [5.0, 5.0], [230.0, 240.0], n_frames=4)
    images = np.zeros((4, 11, 11))
    images[:, 5, 6] = 200.0
    found = make_table([0, 1], [5.0, 4.0], [6.0, 5.0], [200.0, 230.0])
    report = Report({"a": found}, truth, images=images)
    assert report.table["count accuracy"].iloc[0] == 50.0
    assert set(report.hardest) == {0, 1}
    assert "0 targets" in report.to_html()


def test_images_that_are_not_finite_may_be_the_hardest():
    truth = make_table([0, 1], [4.0, 5.0], [5.0, 5.0], [230.0, 240.0], n_frames=3)
    images = np.full((3, 11, 11), np.nan)
    images[0] = np.inf
    report = Report({"none": truth[:0]}, truth, images=images)
    assert report.hardest == [0, 1]
    assert report.to_html().count("<img") == 2


def test_no_truth_at_all():
    empty = make_table([], [], [], [], n_frames=3)
    report = Report({"a": empty, "b": empty}, empty, images=np.zeros((3, 11, 11)))
    assert np.isnan(report.table["CSO-mAP"]).all()
    assert report.table["count accuracy"].tolist() == [100.0, 100.0]
    assert report.to_text()
    assert "NaN" not in report.to_html()


# The page


class Structure(HTMLParser):
    """Notes elements, and stops at one that is not closed in its turn."""

    VOID = ("meta", "link", "img", "input", "br", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture(scope="module")
def structure(page):
    parser = Structure()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def test_page_is_whole_in_itself(page, structure):
    ids = [attrs["id"] for _, attrs in structure.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in structure.elements:
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "data", "action", "srcset", "poster"):
                inside = value.startswith("data:") or value[1:] in ids
                assert inside, (tag, name, value)
            assert not name.startswith("on")
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)
    assert "@import" not in page
    outside = re.sub(r'xmlns(:\w+)?="http://www.w3.org/[^"]*"', "", page)
    assert "://" not in outside
    assert "default-src 'none'" in page


def test_page_escapes_all_names(page, structure):
    assert [tag for tag, _ in structure.elements].count("script") == 1
    assert not {"b", "i"} & {tag for tag, _ in structure.elements}
    text = "".join(structure.text)
    assert EVIL in text
    assert "<b>Net</b>" in text
    assert "a & b" in text
    assert "<i>image_" in text
    assert "A < B" in text
    assert "alert(" not in re.sub(r"&lt;script&gt;alert\(", "", page)


def test_page_has_every_part(report, structure):
    tags = [tag for tag, _ in structure.elements]
    sections = [attrs["id"] for tag, attrs in structure.elements if tag == "section"]
    assert sections == ["errors", "precision", "cases", "published"]
    charts = [a for tag, a in structure.elements if tag == "svg" and a.get("role") == "img"]
    assert len(charts) == 3 + len(THRESHOLDS)
    assert tags.count("img") == 2 * 3
    assert tags.count("article") == 2
    cells = [attrs for tag, attrs in structure.elements if tag == "td" and "data-value" in attrs]
    assert len(cells) == 3 * len(COLUMNS)
    values = [attrs["data-value"] for attrs in cells]
    first = report.table.iloc[0]
    assert float(values[0]) == first["CSO-mAP"]
    assert sum(attrs.get("class") == "best" for attrs in cells) == int(np.sum(report.best()))


def test_plots_take_the_colours_of_the_page(page):
    charts = re.findall(r'<svg role="img".*?</svg>', page, flags=re.S)
    for chart in charts:
        assert not re.search(r"#[0-9a-f]{6}\b", chart.replace("#ffffff", "")), chart[:200]
        assert "currentColor" in chart
        assert "var(--m0)" in chart


def test_page_is_the_same_every_time(report, page):
    assert report.to_html() == page


def test_scores_that_are_no_fluxes_have_no_flux_errors(scenes):
    run = scenes.truth.copy()
    run.attrs["flux_known"] = False
    assert "errors of flux" not in Report({"a": run}, scenes.truth).to_html()


def test_page_without_matplotlib(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = report.to_html()
    assert "No plots: they need matplotlib" in page
    assert "<svg role" not in page
    assert "published" in page


def test_write(report, tmp_path):
    folder = tmp_path / "a" / "b"
    paths = report.write(folder)
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert [path.name for path in paths] == list(FILES)
    content = [path.read_text(encoding="utf-8") for path in paths]
    forms = (report.to_text(), report.to_csv(), report.to_markdown(), report.to_html())
    assert content == list(forms)
    assert report.write(folder) == paths  # again, over its own files


def test_many_frames_with_flags(tmp_path):
    """Attributes of tables are large then, and pandas copies them."""
    rng = np.random.default_rng(0)
    frame = np.repeat(np.arange(10_000), 3)
    y, x = rng.uniform(4, 6, (2, frame.size))
    flags = dict.fromkeys(range(10_000), 1)
    truth = make_table(frame, y, x, rng.uniform(220, 250, frame.size), frame_flags=flags)
    runs = {"a": shaken(truth, 0.1), "b": shaken(truth, 0.2)}
    report = Report(runs, truth, images=np.zeros((10_000, 11, 11), np.uint8))
    assert all(len(run.attrs) == 1 for run in report.runs.values())
    page = report.to_html()
    assert len(page) < 3_000_000  # curves are simplified
    assert f"{len(truth):,} true targets" in page


def test_examples_in_docstrings():
    assert doctest.testmod(report_module).failed == 0


# In a browser

PROBE = """<script>
const order = () => Array.from(document.querySelectorAll("main table tbody tr th"))
  .slice(0, 3).map((cell) => cell.textContent.trim());
const heads = document.querySelectorAll("main thead button");
const seen = [order()];
for (const k of [1, 1, 0, 0, 12]) { heads[k].click(); seen.push(order()); }
const sorted = document.querySelectorAll("[aria-sort]");
document.body.innerHTML = "";
const out = document.createElement("pre");
out.textContent = JSON.stringify({seen, sorted: sorted.length});
document.body.append(out);
</script>"""
WIDTHS = """<script>
const root = document.documentElement;
const pictures = Array.from(document.images).every((image) => image.naturalWidth > 0);
const text = JSON.stringify({width: root.scrollWidth, window: window.innerWidth, pictures});
document.body.innerHTML = "<pre>" + text + "</pre>";
</script>"""


@pytest.fixture
def browse(page, tmp_path):
    """Open the page, with a script more at its end; give what that says and the browser's log."""
    if BROWSER is None:
        pytest.skip("no chromium is installed")

    def browse(script, *options):
        file = tmp_path / "page.html"
        file.write_text(page.replace("</body>", f"{script}</body>"), encoding="utf-8")
        argv = [
            *(BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
            *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
            *("--enable-logging=stderr", "--virtual-time-budget=5000", *options),
            *("--dump-dom", f"file://{file}"),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        found = re.search(r"<pre>(.*?)</pre>", done.stdout, flags=re.S)
        return json.loads(unescaped(found[1])), console

    return browse


def unescaped(text):
    from html import unescape

    return unescape(text)


def test_browser_sorts_the_table(browse):
    said, console = browse(PROBE)
    assert console == []
    by_map = [EVIL, "worse", "nothing"]
    assert said["seen"][0] == by_map
    assert said["seen"][1] == by_map[::-1]  # was descending already
    assert said["seen"][2] == by_map
    assert sorted(said["seen"][3]) == sorted(by_map)
    assert said["seen"][4] == said["seen"][3][::-1]
    assert said["seen"][5][0] == "worse"  # the only one with a time; unknown ones stand last
    assert said["sorted"] == 1


@pytest.mark.parametrize("width", [500, 1300])  # chromium has no narrower window
def test_browser_shows_the_page_without_overflow(browse, width):
    said, console = browse(WIDTHS, f"--window-size={width},900")
    assert console == []
    assert said["pictures"]
    assert said["width"] <= said["window"]
