"""The tables and the picture of links in the documentation are those of what was measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def figure(monkeypatch):
    """``benchmarks/links_figure.py``."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("links_figure", ROOT / "benchmarks/links_figure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("links_row", None)


def test_the_documentations_links_are_what_was_measured(figure):
    rows = figure.rows(ROOT / "docs/links.json")
    for name, made in (
        ("links.inc", figure.constant_table(rows)),
        ("links-changing.inc", figure.changing_table(rows)),
        ("links.svg", figure.picture(rows)),
    ):
        assert (ROOT / "docs" / name).read_text() == made, "run benchmarks/links_figure.py"


@pytest.mark.parametrize(
    ("link", "is_changing", "auto", "is_kept"),
    [
        ("1Gbit", False, 1.04, True),
        ("1Gbit", False, 1.06, False),
        ("loopback", False, 0.6, False),  # of none, which took 0.4
        ("loopback", False, 0.5, True),
        ("1Gbit, 100Mbit", True, 1.01, False),
        ("1Gbit, 100Mbit", True, 0.99, True),
        ("1Gbit", False, None, None),
    ],
)
def test_what_is_promised(figure, link, is_changing, auto, is_kept):
    times = {"none": 0.4, "zstd:level=1": 1.0, "zstd:level=3": 1.2, "zstd:level=auto": auto}
    found = figure.Row(
        link, is_changing, "real", 64, 2, 1e9, {way: time for way, time in times.items() if time is not None}, {}
    )
    assert found.best_fixed == "zstd:level=1"
    assert found.is_kept is is_kept
