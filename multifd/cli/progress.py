"""The figures of what runs, on stderr: a live bar on a terminal, else a line a second."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Self

from multifd.cli.console import remark
from multifd.cli.tables import cell
from multifd.errors import printable
from multifd.stats import RelayResult, Result

_LINE_S = 1.0
_BY = re.compile(r"\w+\.(.+)_packets")
_FEW = 0.1
"""Share of the packets of late under which a word is left out."""


class Progress:
    """A live bar on a terminal, else one line a second; a context manager. Nothing is shown before the first page.

    Args:
        what: the command's name, which starts each line.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None
        self._task: Any = None
        self._start, self._last_line = time.monotonic(), float("-inf")
        self._packets: Counter[str] = Counter()
        self._words = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the bar away until there are figures again."""
        if self._bar is not None:
            with contextlib.suppress(OSError):  # the terminal is gone
                self._bar.stop()
            self._bar = None

    def say(self, text: str) -> None:
        """One line of words."""
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.console.print(cell(text), highlight=False)
        else:
            remark(text)

    def compared(self, done: int, total: int) -> None:
        """Bytes that were digested; nothing is shown in the first second without a terminal."""
        if self._is_due() and (sys.stderr.isatty() or time.monotonic() - self._start >= _LINE_S):
            self._show(done, total, f"{done >> 20} of {total >> 20} MiB digested")

    def update(self, result: Result) -> None:
        """The figures of one end so far."""
        pages = result.normal_pages + result.zero_pages
        if pages and self._is_due():
            moved = f"{result.transferred_bytes >> 20} MiB moved, {result.mbps:.0f} mbps"
            figures = f"{printable(result.method)} {pages} pages, {moved}{self._ways(result.method_stats)}"
            self._show(pages, max(result.ram_bytes // 4096, pages), figures)

    def update_relay(self, result: RelayResult) -> None:
        """The figures of a relay's migration so far."""
        pages = result.normal_pages + result.zero_pages
        if pages and self._is_due():
            moved = f"{result.bytes_in >> 20} MiB in, {result.bytes_out >> 20} MiB out"
            figures = f"{printable(result.out_method)} {pages} pages, {moved}{self._ways(result.out_stats)}"
            self._show(pages, None, figures)

    def _is_due(self) -> bool:
        return sys.stderr.isatty() or time.monotonic() - self._last_line >= _LINE_S

    def _ways(self, stats: Mapping[str, int]) -> str:
        """By what packets went since this was asked last, or before that if none has gone since."""
        packets = packets_by_word(stats)
        self._words = words_of_late(packets, self._packets) or self._words
        self._packets = packets
        return f", now {self._words}" if packets else ""

    def _show(self, done: int, total: int | None, figures: str) -> None:
        self._last_line = time.monotonic()
        if sys.stderr.isatty():
            with contextlib.suppress(OSError):
                self._move_bar(done, total, figures)
        else:
            remark(f"{self._what}: {figures}")

    def _move_bar(self, done: int, total: int | None, figures: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}", markup=False), BarColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(self._what, total=None, figures="")
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total or None, figures=figures)


def packets_by_word(stats: Mapping[str, int]) -> Counter[str]:
    """How many packets went by what, of a method that counts them.

    Args:
        stats: a method's counters, of which those named ``METHOD.WORD_packets`` are meant.
    """
    found = ((_BY.fullmatch(name), count) for name, count in stats.items())
    return Counter({match[1]: count for match, count in found if match})


def words_of_late(packets: Counter[str], before: Counter[str]) -> str:
    """By what packets went since `before`, most of them first; empty if none did."""
    is_another = any(packets[word] < count for word, count in before.items())
    late = packets if is_another else packets - before
    words = [word for word, count in late.most_common() if count >= _FEW * late.total()]
    return " and ".join(printable(word.replace("_", " ")) for word in words)
