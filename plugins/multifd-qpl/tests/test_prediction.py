"""The prediction: that no parameter comes from what it is scored against, and that what the docs show is fresh."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from multifd_qpl import machine, prediction, published
from multifd_qpl.experiment import published_case, simulate
from multifd_qpl.machine import Machine

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def figure() -> ModuleType:
    """``docs/iaa_figure.py``."""
    spec = importlib.util.spec_from_file_location("iaa_figure", DOCS / "iaa_figure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(name: str) -> list[str]:
    return (DOCS / name).read_text().splitlines()


def test_no_parameter_comes_from_a_scored_row() -> None:
    """By name and by figure."""
    assert not set(published.SCORED) & set(published.CALIBRATION)
    text = Path(machine.__file__).read_text()
    names = {name for name, value in vars(published).items() if value in published.SCORED}
    assert len(names) == len(published.SCORED)
    for name in names:
        assert f"published.{name}" not in text
    for row in published.SCORED:
        for figure in (row.total_time_ms, row.mbps, row.pages_per_second):
            assert str(figure) not in text


def test_the_calibration_rows_agree_about_the_guest() -> None:
    header = published.HEADER_BYTES / 128
    for row in (published.NONE_2, published.NONE_4, published.NONE_8):
        assert row.wire_bytes / (4096 + header) == pytest.approx(published.NORMAL_PAGES, rel=0.001)


def test_score_is_what_the_docs_show(figure: ModuleType) -> None:
    """And the errors that users are told are those of the score, rounded outwards to whole per cents."""
    assert figure.score().splitlines() == lines_of("iaa-score.inc"), "run docs/iaa_figure.py"
    low, high = prediction.ERRORS
    cells = [line.split("|") for line in lines_of("iaa-score.inc")[2:]]
    errors = [float(c[6].strip(" %")) / 100 for c in cells if "v4" not in c[1]]
    assert len(errors) == len(prediction.SENSITIVE)
    assert low <= min(errors) < low + 0.01
    assert high - 0.01 < max(errors) <= high + 0.0005


def test_the_words_around_the_tables_say_the_same() -> None:
    text = " ".join((DOCS / "iaa-evidence.md").read_text().split())
    predicted = [float(line.split("|")[5]) for line in lines_of("iaa-score.inc")[2:4]]
    of = [published.WAIT, published.FALLBACK]
    ratio, measured = predicted[1] / predicted[0], of[1].total_time_ms / of[0].total_time_ms
    assert f"published {measured:.3f}, predicted {ratio:.3f}" in text
    again = next(line for line in lines_of("iaa-simulated.inc") if line.startswith("| 4 | 2 |"))
    assert f"simulated {again.split('|')[3].strip()} ms, measured {published.IAA_2.total_time_ms}" in text


@pytest.mark.parametrize(("devices", "channels"), [(1, 2), (1, 8), (2, 4)])
def test_the_table_is_fresh(figure: ModuleType, devices: int, channels: int) -> None:
    assert figure.table_line(devices, channels) in lines_of("iaa-simulated.inc"), "run docs/iaa_figure.py"


def test_the_cost_of_verification_is_fresh(figure: ModuleType) -> None:
    assert figure.verify().splitlines() == lines_of("iaa-verify.inc"), "run docs/iaa_figure.py"


def test_every_generated_file_is_tested(figure: ModuleType) -> None:
    """A file that `main` writes and no test here reads would go stale."""
    written = set(re.findall(r'"(iaa[\w.-]*)":', Path(figure.__file__ or "").read_text()))
    here = Path(__file__).read_text()
    assert written == {path.name for path in DOCS.glob("iaa*") if path.suffix in (".inc", ".svg")}
    assert all(f'"{name}"' in here for name in written)


def test_the_picture_is_the_tables(figure: ModuleType) -> None:
    assert figure.picture((DOCS / "iaa-simulated.inc").read_text()) == (DOCS / "iaa.svg").read_text()


@pytest.mark.parametrize("parameter", ["engine_ns", "software_ns"])
def test_sensitivity_is_fresh(figure: ModuleType, parameter: str) -> None:
    assert figure.sensitivity_line(parameter).strip() in lines_of("iaa-sensitivity.inc"), "run docs/iaa_figure.py"


def test_every_parameter_is_in_the_table_of_sensitivity() -> None:
    shown = [line.split("`")[1] for line in lines_of("iaa-sensitivity.inc")[2:]]
    inert = {"devices", "engines", "inflate_speedup", "fault_ns", "zero_share"}
    assert set(shown) == set(prediction.PARAMETERS) == set(Machine.__dataclass_fields__) - inert


def test_other_rates_are_fresh(figure: ModuleType) -> None:
    assert figure.rate_line("4 GB/s").strip() in lines_of("iaa-rates.inc"), "run docs/iaa_figure.py"


def test_the_published_row_stands_beside_its_own_parameters_only() -> None:
    def case(policy: str = "fallback", devices: int = 1, channels: int = 4, **others: object) -> object:
        rows = simulate([policy], devices=devices, channels=channels, ram_bytes=1 << 20, **others)  # type: ignore[arg-type]
        return published_case(rows[0])

    assert case() is published.FALLBACK
    assert case("wait") is published.WAIT
    assert case("wait", retries=7) is published.WAIT  # waiting knows no number of retries
    for others in ({"retries": 7}, {"verify": "on"}, {"devices": 2}, {"channels": 8}, {"machine": Machine(jitter=0.1)}):
        assert case(**others) is None  # type: ignore[arg-type]


def test_pages_per_second_need_zero_pages_to_be_explained() -> None:
    """What the docs say of QEMU's last window: as many zero pages as evenly spread ones, or not."""
    zero_pages = published.GUEST_PAGES - published.NORMAL_PAGES
    needed = {row: prediction.zero_pages_in_window(row) for row in (published.WAIT, published.FALLBACK)}
    spread = {row: zero_pages * 100 / row.total_time_ms for row in needed}
    assert [round(n, -3) for n in needed.values()] == [3000, 50000]
    assert [round(n, -3) for n in spread.values()] == [8000, 11000]
