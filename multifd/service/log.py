"""The service's log: one line an event, with the route and the migration it belongs to, as text or as JSON.

What the engines log is of a migration, too: its threads inherit the context in which `tag` was called.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from multifd.errors import printable

FORMATS = ("text", "json")
_LOG = logging.getLogger("multifd.service")
_STRANGERS = {
    "multifd.transport.accept": logging.WARNING,
    "multifd.engine.gathering": logging.INFO,
    "multifd.engine.relay_muster": logging.INFO,
    "multifd.service.scrape": logging.INFO,
}
"""Loggers of which anybody who can connect can cause a line, and up to which level."""
_BURST = 20
_PER_S = 1.0
"""So many lines about strangers at once, and each second after that; the rest is counted."""

_tags: ContextVar[dict[str, str]] = ContextVar("multifd_log_tags")


@contextlib.contextmanager
def tag(**tags: str) -> Iterator[None]:
    """What is logged meanwhile, here and in threads that are started here, carries `tags`."""
    token = _tags.set({**_tags.get({}), **tags})
    try:
        yield
    finally:
        _tags.reset(token)


def event(name: str, text: str, level: int = logging.INFO, exc_info: bool = False, **fields: Any) -> None:
    """Log that something happened.

    Args:
        name: of the kind of event, in words joined by ``-``; stable, for whoever counts them.
        text: for a person; one line, the names of route and migration come before it by themselves.
        level: of `logging`.
        exc_info: with the traceback of the exception that is being handled.
        fields: plain values that JSON gets beside.
    """
    _LOG.log(level, "%s", text, exc_info=exc_info, extra={"event": name, "fields": fields})


class Stamp(logging.Filter):
    """Puts the context's tags on each record, before a handler of another thread could ask."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Every record passes."""
        record.tags = _tags.get({})
        return True


class _Bucket:
    """Tokens of one route."""

    def __init__(self) -> None:
        self._tokens, self._at = float(_BURST), time.monotonic()
        self._left_out = 0

    def take(self) -> int | None:
        """How many were left out before this one; None if this one is, too."""
        now = time.monotonic()
        self._tokens = min(float(_BURST), self._tokens + (now - self._at) * _PER_S)
        self._at = now
        if self._tokens < 1:
            self._left_out += 1
            return None
        self._tokens -= 1
        left_out, self._left_out = self._left_out, 0
        return left_out


class StrangerLimit(logging.Filter):
    """Lets through at most 20 lines about a route's strangers at once and 1 a second; says how many were left out.

    Thread rule: any thread.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._buckets: dict[str, _Bucket] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        if record.levelno > _STRANGERS.get(record.name, logging.NOTSET):
            return True
        with self._lock:
            left_out = self._buckets.setdefault(_tags.get({}).get("route", ""), _Bucket()).take()
        if left_out is None:
            return False
        record.event = "stranger"
        if left_out:
            record.msg, record.args = f"{record.getMessage()} (and {left_out} more lines like it were left out)", ()
        return True


class TextFormatter(logging.Formatter):
    """``multifd: warning: [route migration] words``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, or several of a traceback, that move no cursor."""
        tags = " ".join(getattr(record, "tags", {}).values())
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        lines = [f"multifd: {level}{f'[{tags}] ' if tags else ''}{printable(record.getMessage())}"]
        if record.exc_info:
            lines += map(printable, self.formatException(record.exc_info).split("\n"))
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """A JSON object a line: time (UTC, RFC 3339), level, event, the tags, message, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever was said."""
        document: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            **getattr(record, "tags", {}),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


@contextlib.contextmanager
def shown(handlers: Sequence[logging.Handler], format: str) -> Iterator[None]:
    """The service's events, and what the engines say of strangers, go to some handlers meanwhile, a line an event.

    Args:
        handlers: as they were before, afterwards.
        format: one of `FORMATS`.
    """
    loggers = [logging.getLogger(name) for name in (_LOG.name, *_STRANGERS)]
    levels = [logger.level for logger in loggers]
    formatters = [handler.formatter for handler in handlers]
    filters = (StrangerLimit(), Stamp())
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
        for one in filters:
            handler.addFilter(one)
    for logger in loggers:
        if logger.getEffectiveLevel() > logging.INFO:
            logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for handler, formatter in zip(handlers, formatters, strict=True):
            handler.setFormatter(formatter)
            for one in filters:
                handler.removeFilter(one)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
