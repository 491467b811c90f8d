"""What files, peers and plugins say reaches a terminal as text: no control, no markup, and it fits the width."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from multifd import errors
from multifd.cli import console, signals, tables
from multifd.cli.main import main
from multifd.cli.progress import Progress, packets_by_word, words_of_late
from multifd.errors import MultifdError, StreamError, exit_statuses, printable
from multifd.ram.capture import BlockInfo, CaptureInfo
from multifd.registry import MethodInfo
from multifd.stats import RelayResult, Result
from multifd.wire.reader import MainStreamReader

EVIL = "[/x][red]\x1b]0;owned\x07\x1b[2J\r\n\u202e\u2066\x9b1m\x7f\ud800[bold"
"""Markup, escape sequences, a new line, bidirectional marks, a C1 control, a lone surrogate."""


class Screen(io.StringIO):
    """A terminal of some width."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(params=[80, 200, 0], ids=["80", "200", "no terminal"])
def columns(request, monkeypatch):
    """Of the terminal that stdout is; 0 if it is none."""
    monkeypatch.setenv("COLUMNS", str(request.param or 80))
    monkeypatch.setenv("TERM", "dumb")
    return request.param


def shown(columns: int, printer: Callable[[], None]) -> list[str]:
    """The lines that it prints."""
    stream = Screen() if columns else io.StringIO()
    with contextlib.redirect_stdout(stream):
        printer()
    return stream.getvalue().split("\n")


@given(st.text(st.characters()))
def test_printable_is_printable_and_stays_so(text):
    once = printable(text)
    assert once.isprintable()
    assert printable(once) == once
    if text.isprintable() and len(text) <= 2000:
        assert once == text


def test_printable_has_a_bound():
    assert len(printable("\x00" * 10**6)) == 2000


@pytest.mark.parametrize(
    "cls", [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, MultifdError)]
)
def test_no_error_says_more_than_text(cls):
    arguments = {errors.MethodNotFound: (EVIL, [EVIL], [EVIL]), errors.OptionError: (EVIL, EVIL, EVIL, EVIL)}
    error = cls(*arguments.get(cls, (EVIL,)))
    error.add_note(EVIL)
    errors.note_others(error, [ValueError(EVIL + "2")])
    assert str(error).isprintable()
    assert all(note.isprintable() for note in error.__notes__)


def test_a_command_that_fails_says_one_line():
    @click.command(cls=click.Command)
    @console.reporting
    def wrong(as_json: bool) -> None:
        error = ValueError(EVIL)
        error.add_note(EVIL)
        raise error

    with signals.raising():
        done = CliRunner().invoke(wrong, ["--json"])
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 2
    assert all(line.isprintable() for line in done.stderr.splitlines())
    assert json.loads(done.stdout)["status"] == "failed"


def test_a_wrong_combination_of_arguments_is_no_bug():
    @click.group(cls=console.Group)
    def group() -> None:
        pass

    @group.command()
    @console.reporting
    def wrong(as_json: bool) -> None:
        raise click.UsageError("one of the two is needed")

    done = CliRunner().invoke(group, ["wrong", "--json"])
    assert done.exit_code == 2
    assert "one of the two" in json.loads(done.stdout)["error"]
    assert "bug" not in done.stderr


def test_a_line_of_the_log():
    record = logging.LogRecord("multifd", logging.INFO, "", 0, "%s", (EVIL,), None)
    assert all(line.isprintable() for line in console._Formatter("multifd: %(message)s").format(record).split("\n"))


def method(name: str, text: str) -> MethodInfo:
    options = [{"name": text, "default": text, "type": text, "allowed": text}]
    return MethodInfo(name, "unavailable", text, text, text, text, None, options)


CAPTURE = CaptureInfo(EVIL, "9.0", 4096, None, (BlockInfo(EVIL, 4096, 1, 0),), 9, (EVIL,))
RESULT = Result("completed", EVIL, 2, tracker=EVIL, tracker_reason=EVIL, method_stats={EVIL: 1})
PRINTERS = {
    "methods": lambda: tables.print_methods([method(EVIL, EVIL)]),
    "capture": lambda: tables.print_capture(CAPTURE),
    "results": lambda: tables.print_results([RESULT]),
    "relay": lambda: tables.print_relay(RelayResult("failed", EVIL, EVIL)),
}


@pytest.mark.parametrize("printer", PRINTERS.values(), ids=PRINTERS)
def test_tables_show_markup_and_controls_as_text(printer, columns):
    lines = shown(columns, printer)
    assert all(map(str.isprintable, lines))
    assert any("[/x][red]" in line for line in lines)


def test_figures_are_not_lost_among_counters_of_nothing(columns):
    """A method that adapts has one for each level; documents have them all."""
    counters = {"mine.raw_packets": 16, "mine.level_9_packets": 0}
    lines = shown(columns, lambda: tables.print_results([Result("completed", "mine", 2, method_stats=counters)]))
    assert [line for line in lines if "_packets" in line] == ["mine: mine.raw_packets 16"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_shows_markup_as_text(is_terminal, monkeypatch):
    stream = Screen() if is_terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(EVIL) as progress:
        progress.say(EVIL)
        progress.update(replace(RESULT, normal_pages=1))
    assert "[/x][red]" in stream.getvalue()
    assert "owned\x07" not in stream.getvalue()


def test_progress_says_what_packets_went_by_of_late(monkeypatch):
    """A method's counters say it, by their names alone; a word that hardly a packet went by is left out."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("multifd.cli.progress._LINE_S", 0)
    first = {"mine.level_1_packets": 90, "mine.raw_packets": 10, "mine.level_1_bytes": 5000, "mine.level_9_packets": 0}
    figures = [
        first,
        first,
        {**first, "mine.raw_packets": 30, "mine.level_9_packets": 1},
        {"mine.level_-7_packets": 4},  # the next migration
        {"pages": 3},
    ]
    with Progress("send") as progress:
        for stats in figures:
            progress.update(replace(RESULT, normal_pages=1, method_stats=stats))
        progress.update_relay(RelayResult("active", out_method="mine", zero_pages=1, out_stats=first))
    ends = [line.rpartition(", ")[2] for line in stream.getvalue().splitlines()]
    assert ends[:4] == ["now level 1 and raw", "now level 1 and raw", "now raw", "now level -7"]
    assert ends[4].endswith("mbps")
    assert ends[5] == "now level 1 and raw"


@given(st.dictionaries(st.text(), st.integers(0, 1 << 40)), st.dictionaries(st.text(), st.integers(0, 1 << 40)))
def test_any_counters_give_printable_words(now, before):
    words = words_of_late(packets_by_word(now), packets_by_word(before))
    assert words.isprintable()


@pytest.mark.parametrize("count", [1, 3, 12])
def test_what_a_terminal_shows_fits_it(count, columns):
    names = [f"method{i}" for i in range(count)]
    results = [Result("completed", name, 2, 123456.0, transferred_bytes=10**12) for name in names]
    methods = [method(name, "some words that go on, " * 9) for name in names]
    capture = replace(CAPTURE, blocks=(BlockInfo("/rom@etc/acpi/tables" * 5, 1 << 40, 1 << 28, 0),) * count)
    for lines in (
        shown(columns, lambda: tables.print_results(results)),
        shown(columns, lambda: tables.print_methods(methods)),
    ):
        assert max(map(len, lines)) <= (columns or 10_000)
        assert all(any(name in line for line in lines) for name in names)
    lines = shown(columns, lambda: tables.print_capture(capture))
    assert max(len(line) for line in lines if "/rom@" in line) <= (columns or 10_000)


def test_without_a_terminal_no_line_is_broken():
    lines = shown(0, lambda: tables.print_methods([method("lz4", "x" * 1999)]))
    assert len([line for line in lines if "xxx" in line]) == 1


def test_json_is_exact(tmp_path, monkeypatch):
    monkeypatch.setattr("multifd.ram.capture.info", lambda path: CAPTURE)
    (tmp_path / "x").write_bytes(b"")
    done = CliRunner().invoke(main, ["info", str(tmp_path / "x"), "--json"])
    assert json.loads(done.stdout)["devices"] == [EVIL]


def test_a_peers_block_names_are_printable_in_errors():
    stream = b"QEVM\0\0\0\3" + b"\1\0\0\0\1" + bytes([7]) + b"\x1b[2J\r\n\0"[:7] + bytes(8)
    with pytest.raises(StreamError) as caught:
        MainStreamReader().feed(stream)
    assert str(caught.value).isprintable()


def test_the_help_has_every_exit_status():
    text = " ".join(CliRunner().invoke(main, ["--help"]).stdout.split())
    for status, meaning in exit_statuses().items():
        assert f"{status} {meaning}" in text
