"""The service's log: one line an event, whatever is in it; strangers cannot fill a disk with it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading

import pytest

from multifd.service import log

EVIL = "a\nb\x1b[2J\u202e"


@pytest.fixture
def start():
    """Log into memory."""
    root = logging.getLogger()
    with contextlib.ExitStack() as stack:

        def start(format: str) -> io.StringIO:
            stream = io.StringIO()
            handler = logging.StreamHandler(stream)
            stack.enter_context(log.shown([handler], format))
            root.addHandler(handler)
            stack.callback(root.removeHandler, handler)
            return stream

        yield start


def test_handlers_and_levels_are_as_they_were():
    handler, logger = logging.NullHandler(), logging.getLogger("multifd.service")
    before = handler.formatter, handler.filters[:], logger.level
    with log.shown([handler], "json"):
        assert (logger.level, len(handler.filters)) == (logging.INFO, 2)
    assert (handler.formatter, handler.filters, logger.level) == before


def test_text(start):
    stream = start("text")
    log.event("x", "nobody's")
    with log.tag(route="web"), log.tag(migration="12ab"):
        log.event("x", "words", logging.WARNING, figure=1)
        log.event("x", EVIL)
    assert stream.getvalue().splitlines() == [
        "multifd: nobody's",
        "multifd: warning: [web 12ab] words",
        r"multifd: [web 12ab] a\nb\x1b[2J\u202e",
    ]


def test_json(start):
    stream = start("json")
    with log.tag(route="web", migration="12ab"):
        log.event("migration-completed", EVIL, figure=1, result={"bytes_in": 3})
    logging.getLogger("multifd.engine.relay").warning("of an engine: %s", 3)
    first, second = map(json.loads, stream.getvalue().splitlines())
    time = first.pop("time")
    assert time.endswith("+00:00")
    assert first == {
        "level": "info", "event": "migration-completed", "route": "web", "migration": "12ab", "message": EVIL,
        "figure": 1, "result": {"bytes_in": 3},
    }  # fmt: skip
    assert (second["event"], second["message"]) == ("log", "of an engine: 3")


@pytest.mark.parametrize("format", log.FORMATS)
def test_a_traceback(start, format):
    stream = start(format)
    try:
        raise RuntimeError(EVIL)
    except RuntimeError:
        log.event("defect", "a bug", logging.ERROR, exc_info=True)
    assert "RuntimeError" in stream.getvalue()
    assert all(line.isprintable() for line in stream.getvalue().splitlines())


def test_threads_of_a_migration_carry_its_tags(start):
    from multifd.engine.crew import Crew
    from multifd.transport.idle import IdleTimer

    stream = start("text")
    crew = Crew(IdleTimer(60, lambda: ""))
    with log.tag(route="web", migration="12ab"):
        crew.start("x", logging.getLogger("multifd.engine.relay").warning, "from a thread")
    assert crew.join() == []
    assert stream.getvalue() == "multifd: warning: [web 12ab] from a thread\n"


@pytest.mark.parametrize("logger", ["transport.accept", "engine.gathering", "engine.relay_muster", "service.scrape"])
def test_strangers_are_limited_by_route_and_counted(start, monkeypatch, logger):
    """Whoever may connect causes lines of these."""
    now = [0.0]
    monkeypatch.setattr("multifd.service.log.time.monotonic", lambda: now[0])
    stream = start("text")
    stranger = logging.getLogger(f"multifd.{logger}").info
    with log.tag(route="a"):
        for i in range(100):
            stranger("stranger %d", i)
    with log.tag(route="b"):
        stranger("another")
    log.event("x", "an event is not limited")
    now[0] = 2.0
    with log.tag(route="a"):
        for i in range(100, 105):
            stranger("stranger %d", i)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 20 + 1 + 1 + 2
    assert "multifd: [b] another" in lines
    assert lines[-2] == "multifd: [a] stranger 100 (and 80 more lines like it were left out)"
    assert lines[-1] == "multifd: [a] stranger 101"


def test_tags_end_where_they_were_set():
    seen = []
    with log.tag(route="a"):
        thread = threading.Thread(target=lambda: seen.append(log._tags.get({})))
        thread.start()
        thread.join(60)
    assert seen == [{}]
    assert log._tags.get({}) == {}
