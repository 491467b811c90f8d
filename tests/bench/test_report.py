"""The report: what it says, that nothing in it runs or is fetched, and how a browser shows it."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multifd.bench import schema
from multifd.bench.report.crossover import Curve, ranking, span
from multifd.bench.report.group import grouped
from multifd.bench.report.page import html
from multifd.bench.report.quantity import nbytes, rate, seconds
from multifd.errors import UsageError

pytest.importorskip("matplotlib", reason="the extra report is not installed")
pytest.importorskip("jinja2", reason="the extra report is not installed")

SAMPLE = Path(__file__).parent / "sample.json"
DEADLINE_S = 60
HOSTILE = "</td><script>alert(1)</script>&\"'<b>$x_1$ ]]> {{ 7*7 }}\u202e\x1b[2J"
"""A name as somebody may write it who means no good."""


@pytest.fixture(scope="module")
def sample():
    return schema.read(SAMPLE)


def renamed(document, kind, old, new):
    """A document in which a method, source or machine has another name."""
    key = {"methods": "spec", "sources": "id", "machines": "id"}[kind]
    changed = copy.deepcopy(document)
    for entry in changed[kind]:
        if entry[key] == old:
            entry[key] = new
    for part in ("runs", "rows", "codec"):
        for entry in changed[part]:
            if entry[kind.removesuffix("s")] == old:
                entry[kind.removesuffix("s")] = new
    return changed


# -- what a curve says ---------------------------------------------------------------------------------------

NONE = Curve("none", wire_bytes=8e9, free_s=2.0)
SMALL = Curve("small", wire_bytes=2e9, free_s=8.0)


def test_the_crossover_is_where_both_take_as_long():
    low, high = span([NONE, SMALL])
    first, second = ranking([NONE, SMALL], low, high)
    # none takes 8 s, as long as the other does without a limit, at 8e9 bytes in 8 s
    assert (first.name, second.name) == ("small", "none")
    assert first.high == second.low == pytest.approx(8e9, rel=0.03)
    assert (first.low, second.high) == (low, high)


def test_a_line_goes_through_what_was_measured():
    curve = Curve("m", 1e9, 2.0, {1e8: 100.0, 1e9: 9.0, 1e10: 2.5})
    for link, measured in curve.at.items():
        assert curve.seconds(link) == pytest.approx(measured)
    assert curve.seconds(1e7) == pytest.approx(1000.0)
    assert curve.seconds(1e13) == pytest.approx(2.0)


def test_without_an_unlimited_run_nothing_is_said_beyond_the_limits():
    curve = Curve("m", 1e9, None, {1e8: 100.0, 1e9: 9.0})
    assert span([curve]) == (1e8, 1e9)
    assert not curve.covers(0.9e8)
    assert not curve.covers(1.1e9)
    assert [(b.name, b.low, b.high) for b in ranking([curve], 1e7, 1e10)] == [
        ("m", pytest.approx(1e8, rel=0.05), pytest.approx(1e9, rel=0.05))
    ]


def test_a_method_that_gains_next_to_nothing_is_not_named():
    nearly = Curve("nearly", wire_bytes=1.96e9, free_s=8.1)
    first, second = ranking([NONE, nearly, SMALL], 1e8, 1e11)
    assert first.name in ("small", "nearly")
    assert second.name == "none"


CURVES = st.builds(
    Curve, st.sampled_from(["a", "b", "c", "d"]), st.floats(1e3, 1e15), st.floats(1e-3, 1e6),
    st.dictionaries(st.floats(1e6, 1e12), st.floats(1e-3, 1e6), max_size=4),
)  # fmt: skip


@given(st.lists(CURVES, min_size=1, max_size=4, unique_by=lambda curve: curve.name))
def test_ranges_follow_each_other_and_no_named_method_is_far_from_the_best(curves):
    low, high = span(curves)
    found = ranking(curves, low, high)
    assert [found[0].low, found[-1].high] == [low, pytest.approx(high)]
    for a, b in pairwise(found):
        assert a.high == b.low
        assert a.name != b.name


@given(st.floats(0, 1e18, allow_nan=False))
def test_quantities_have_no_powers_of_ten(value):
    for words in (rate, nbytes, seconds):
        assert re.fullmatch(r"[\d.]{1,16} \S+", words(value)), words(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [(rate(2.5e9), "2.5 Gbit/s"), (rate(999.9e6), "1000 Mbit/s"), (nbytes(4 << 30), "4 GiB"), (nbytes(0), "0 B"),
     (seconds(0.0123), "12.3 ms"), (seconds(119), "119 s"), (seconds(1800), "30 min"), (seconds(9000), "2.5 h")],
)  # fmt: skip
def test_quantities(text, words):
    assert text == words


# -- documents together --------------------------------------------------------------------------------------


def test_a_run_that_is_in_two_documents_counts_once(sample):
    once, twice = grouped([sample]), grouped([sample, copy.deepcopy(sample)])
    assert [len(g.runs) for g in once] == [len(g.runs) for g in twice]
    assert sum(len(g.runs) for g in once) == len(sample["runs"])


def test_rows_are_those_of_the_document(sample):
    rows = [row for group in grouped([sample]) for row in group.rows()]
    key = json.dumps
    assert sorted(map(key, rows)) == sorted(key(row) for row in sample["rows"] if row["figures"])


def test_another_machine_of_the_same_name_is_another(sample):
    other = copy.deepcopy(sample)
    other["machines"][0]["cpu"] = "another"
    assert len(grouped([sample, other])) == 2 * len(grouped([sample]))


def test_what_is_measured_and_not_described_is_refused(sample):
    broken = {**sample, "machines": []}
    with pytest.raises(UsageError, match=r"machine .* was measured"):
        grouped([broken])


# -- the page ------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)

    def words(self):
        return " ".join(" ".join(self.text).split())


def written(path, *documents):
    path.write_text(html(documents), "utf-8")
    return path.read_text("utf-8")


def charts(text):
    return re.findall(r"<svg .*?</svg>", text, re.DOTALL)


@pytest.mark.parametrize(("kind", "old"), [("methods", "zlib"), ("sources", "mix:16M"), ("machines", None)])
def test_a_name_is_text_wherever_it_stands(kind, old, sample, tmp_path):
    old = old or sample["machines"][0]["id"]
    document = renamed({**sample, "command": ["multifd", HOSTILE]}, kind, old, HOSTILE)
    document["runs"][0] = {**document["runs"][0], "status": "failed", "figures": None, "error": HOSTILE}
    schema.check(document)
    text = written(tmp_path / "r.html", document)
    page = Page(text)
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "alert(1)" in page.words()
    assert "{{ 7*7 }}" in page.words()
    assert not set(text) & {"\u202e", "\x1b"}
    for chart in charts(text):
        ElementTree.fromstring(chart)


def test_nothing_is_fetched_and_identifiers_are_the_pages_own(sample, tmp_path):
    text = written(tmp_path / "r.html", sample)
    page = Page(text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    for name, value in page.attributes:
        if name in ("href", "xlink:href"):
            assert value.startswith("#"), value
            assert value[1:] in ids, value
        if value and "url(" in value:
            assert re.fullmatch(r".*url\(#([^)]+)\).*", value)[1] in ids, value
    assert not {"src", "srcset", "action", "data"} & {name for name, _ in page.attributes}
    assert not {"script", "link", "iframe", "object", "embed", "img", "image", "foreignobject"} & set(page.tags)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_every_colour_of_a_chart_is_the_pages(sample, tmp_path):
    text = written(tmp_path / "r.html", sample)
    assert len(charts(text)) >= 4 * len(sample["sources"])
    for chart in charts(text):
        assert not re.search(r"#[0-9a-fA-F]{6}\b|rgb\(|DejaVu", chart)
        assert set(re.findall(r"var\(--([\w-]+)\)", chart)) <= set(re.findall(r"--([\w-]+):", text))


def test_it_says_what_was_found(sample, tmp_path):
    words = Page(written(tmp_path / "r.html", sample)).words()
    for method in sample["methods"]:
        assert method["spec"] in words
    for source in sample["sources"]:
        assert source["id"] in words
    assert "is fastest" in words
    assert " ".join(sample["command"]) in words
    assert sample["machines"][0]["cpu"] in words


def test_one_method_one_run_without_anatomy_is_a_page_too(sample, tmp_path):
    only = {**sample, "runs": sample["runs"][:1], "codec": [], "sources": copy.deepcopy(sample["sources"])}
    for source in only["sources"]:
        source["anatomy"] = None
    words = Page(written(tmp_path / "r.html", only)).words()
    assert f"Only {only['runs'][0]['method']} was measured" in words


def test_runs_that_all_failed_are_told(sample, tmp_path):
    runs = [{**run, "status": "failed", "figures": None, "error": "it broke"} for run in sample["runs"]]
    words = Page(written(tmp_path / "r.html", {**sample, "runs": runs, "status": "failed"})).words()
    assert "No migration succeeded" in words
    assert "it broke" in words


def test_more_methods_than_colours_are_in_the_table(sample, tmp_path):
    first = sample["runs"][0]
    runs = [{**first, "method": f"m{i}"} for i in range(20)]
    words = Page(written(tmp_path / "r.html", {**sample, "runs": runs})).words()
    assert all(f"m{i}" in words for i in range(20))
    assert len(re.search(r"Only in the table: ([^.]*)\.", words)[1].split(", ")) == 12


def test_a_run_that_came_to_no_machine_is_told(sample, tmp_path):
    runs = [*sample["runs"], {**sample["runs"][0], "machine": "", "status": "failed", "figures": None, "error": "lost"}]
    words = Page(written(tmp_path / "r.html", {**sample, "runs": runs})).words()
    assert re.search(r"not measured .*lost", words)


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_writes_beside_the_result(cli, tmp_path):
    shutil.copy(SAMPLE, tmp_path / "r.json")
    document = cli("report", tmp_path / "r.json", "--json").json()
    assert document == {"report": str(tmp_path / "r.html"), "runs": len(json.loads(SAMPLE.read_text())["runs"])}
    out, _ = cli("report", tmp_path / "r.json", tmp_path / "r.json", "-o", tmp_path / "both.html").wait()
    assert out.startswith(str(tmp_path / "both.html"))
    assert (tmp_path / "both.html").read_text() != ""


@pytest.mark.parametrize("text", ["", "[]", '{"schema": "multifd-bench", "version": 99}', "<html>"])
def test_what_is_no_result_is_refused_in_a_line(text, cli, tmp_path):
    (tmp_path / "r.json").write_text(text)
    _, err = cli("report", tmp_path / "r.json").wait(status=2)
    assert err.startswith(f"multifd: error: {tmp_path / 'r.json'}")
    assert not (tmp_path / "r.html").exists()


def test_a_page_that_cannot_be_written_is_refused_in_a_line(cli, tmp_path):
    _, err = cli("report", SAMPLE, "-o", tmp_path / "none" / "r.html").wait(status=2)
    assert "No such file or directory" in err


# -- a browser -----------------------------------------------------------------------------------------------


class Browser:
    """Debian's chromium without a window."""

    def __init__(self, folder):
        self._folder = folder
        self._command = shutil.which("chromium")

    def run(self, page, *options):
        """What it prints about a page; skips where it cannot run at all."""
        if self._command is None:
            pytest.skip("chromium is not installed (apt-get install chromium)")
        command = [
            self._command, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-dev-shm-usage", f"--user-data-dir={self._folder / 'profile'}", "--enable-logging=stderr",
            "--window-size=1000,1600", *options, page.as_uri(),
        ]  # fmt: skip
        try:
            return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            pytest.skip(f"chromium did nothing for {DEADLINE_S} s")

    def console(self, page):
        """Its document, and the lines of the console."""
        done = self.run(page, "--dump-dom")
        if not done.stdout:
            pytest.skip(f"chromium does not run here: {done.stderr.decode(errors='replace')[-300:]}")
        return done.stdout.decode(), [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]

    def picture(self, page, scheme):
        """A screenshot, as rows of pixels, shape (height, width, 3)."""
        import numpy as np
        from PIL import Image

        path = self._folder / f"{page.stem}-{scheme}.png"
        number = {"dark": 0, "light": 1}[scheme]  # blink's mojom::PreferredColorScheme
        self.run(page, f"--blink-settings=preferredColorScheme={number}", f"--screenshot={path}")
        if not path.exists():
            pytest.skip("chromium takes no screenshot here")
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")).copy()


@pytest.fixture
def browser(tmp_path):
    return Browser(tmp_path)


def test_a_browser_shows_the_charts_and_has_nothing_to_complain_of(browser, sample, tmp_path):
    control = tmp_path / "control.html"
    control.write_text("<!doctype html><p>x<script>throw new Error('seen')</script>")
    _, lines = browser.console(control)
    if not any("seen" in line for line in lines):
        pytest.skip("this chromium does not print its console")
    page = tmp_path / "r.html"
    written(page, sample)
    dom, lines = browser.console(page)
    assert lines == []
    assert len(charts(dom)) == len(charts(page.read_text()))


def test_it_is_light_or_dark_as_the_reader_wants(browser, sample, tmp_path):
    control = tmp_path / "control.html"
    control.write_text("<style>html{background:#fff}@media(prefers-color-scheme:dark){html{background:#000}}</style>")
    if [browser.picture(control, scheme)[0, 0, 0] for scheme in ("light", "dark")] != [255, 0]:
        pytest.skip("this chromium cannot be told to prefer dark")
    page = tmp_path / "r.html"
    text = written(page, sample)
    light, dark = ({k: tuple(bytes.fromhex(v)) for k, v in re.findall(r"--([\w-]+): #(\w{6})", part)}
                   for part in text.split("@media screen", 1))  # fmt: skip
    for scheme, colours in (("light", light), ("dark", dark)):
        pixels = browser.picture(page, scheme)
        assert tuple(pixels[0, 0]) == colours["paper"]
        for role in ("ink", "series-0", "series-1", "grid", "part-3"):
            assert (pixels == colours[role]).all(axis=2).any(), (scheme, role)
