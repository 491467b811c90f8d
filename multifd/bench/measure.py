"""One measured migration: two processes of this machine, over loopback TCP, the destination verified."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from multifd import scratch
from multifd.bench import fetch, machine, synthetic
from multifd.bench.end import Order
from multifd.bench.job import Figures, Job, Row, SourceSpec
from multifd.errors import MultifdError

_END_S = 30.0
"""How long a process may take to end once it has answered."""
_COMPLAINT_S = 2.0
"""How long one end may take to say what it has against a migration that failed at the other."""
_MOST_ANSWER = 1 << 20
"""Characters of a line that a process may answer with."""
_BYTES_PER_S = 10 << 20
"""The slowest that a source is loaded or compared: what a deadline is made of."""


class EndFailed(MultifdError):
    """One of the two processes said why it failed, or ended without a word."""


def measure_one(job: Job) -> Row:
    """Migrate a source once, and verify the destination byte for byte.

    Both ends are processes of their own, which end with the caller's. The source's memory and the destination's
    together need twice its RAM. Thread rule: any thread, but two measurements at a time disturb each other.

    Args:
        job: what, how.

    Returns:
        The figures; a migration that failed, or whose destination differs, is a row with its ``error``.

    Raises:
        MultifdError: the job cannot be meant, or the source cannot be made.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    row = Row(
        job.source.id, job.method, job.channels, job.link_bits_per_s, machine.name(), job.run, started, status="failed"
    )
    with materialised(job.source) as source:
        try:
            with Ends() as ends:
                figures, method_stats = ends.migrate(replace(job, source=source))
        except EndFailed as e:
            return replace(row, error=str(e))
    return replace(row, status="verified", figures=figures, method_stats=method_stats)


@contextlib.contextmanager
def materialised(spec: SourceSpec) -> Iterator[SourceSpec]:
    """The source as a file of this host: what is to be made or fetched is, until the end of the context.

    Raises:
        MultifdError: it cannot be.
    """
    if fetch.is_url(spec.path):
        with fetch.fetched(spec.path) as local:
            yield replace(spec, path=local)
        return
    if spec.path:
        yield spec
        return
    kind, nbytes = synthetic.parse(spec.synthetic)
    with scratch.folder() as folder:
        path = Path(folder, "source.ram")
        synthetic.write_image(path, nbytes, kind)
        yield replace(spec, path=str(path), format="raw", page_size=synthetic.PAGE)


class Ends:
    """Two processes that migrate one source to each other, again and again; a context manager.

    The first migration has to load the source and everything that is imported when it is first used.
    """

    def __init__(self) -> None:
        self._destination = _End("destination")
        self._source = _End("source")

    def migrate(self, job: Job) -> tuple[Figures, dict[str, int]]:
        """One migration, verified.

        Args:
            job: its source is a file.

        Returns:
            The figures, and the method's own counters of the sender.

        Raises:
            EndFailed: it failed, or the destination differs. The processes are of no use any more.
        """
        max_bandwidth = 0 if job.link_bits_per_s is None else max(job.link_bits_per_s // 8, 1)
        order = Order(
            "destination", os.path.abspath(job.source.path), job.source.format, job.source.page_size,
            job.method, job.channels, max_bandwidth, job.timeout_s,
        )  # fmt: skip
        try:
            loading_s = job.timeout_s + os.path.getsize(job.source.path) / _BYTES_PER_S
        except OSError as e:
            raise EndFailed(f"{job.source.path}: {e.strerror}") from e
        self._destination.tell(asdict(order))
        self._source.tell(asdict(replace(order, role="source")))
        uri = self._destination.answer(loading_s)["uri"]
        self._source.answer(loading_s)
        self._source.tell({"uri": uri})
        try:
            # RAM may be many times the file's length; the engines watch for silence themselves.
            sent = self._source.answer(None)
        except EndFailed as e:
            raise EndFailed("; ".join([str(e), *self._destination.complaint()])) from e
        received = self._destination.answer(loading_s + sent["result"]["ram_bytes"] / _BYTES_PER_S)
        return _figures(sent, received), sent["result"]["method_stats"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._source.end()
        self._destination.end()


def _figures(sent: dict[str, Any], received: dict[str, Any]) -> Figures:
    result = sent["result"]
    total_s = result["total_time_ms"] / 1e3
    pages = result["normal_pages"] + result["zero_pages"]
    return Figures(
        total_time_ms=result["total_time_ms"],
        setup_time_ms=result["setup_time_ms"],
        downtime_ms=result["downtime_ms"],
        mbps=round(result["transferred_bytes"] * 8 / total_s / 1e6, 3),
        pages_per_second=round(pages / total_s, 1),
        ram_bytes_per_s=round(result["ram_bytes"] / total_s, 1),
        transferred_bytes=result["transferred_bytes"],
        ram_bytes=result["ram_bytes"],
        normal_pages=result["normal_pages"],
        zero_pages=result["zero_pages"],
        ratio=round(result["ram_bytes"] / result["transferred_bytes"], 4),
        source_cpu_s=round(sent["cpu_s"], 6),
        destination_cpu_s=round(received["cpu_s"], 6),
        source_peak_bytes=sent["peak_bytes"],
        destination_peak_bytes=received["peak_bytes"],
    )


class _End:
    """A process that is one end.

    Args:
        role: source or destination.
    """

    def __init__(self, role: str) -> None:
        self._role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", "multifd.bench.end"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
            start_new_session=True,  # Ctrl-C is for whoever started it
        )  # fmt: skip
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._last_words = ""
        self._readers = [
            threading.Thread(target=reader, name=f"multifd_bench_{role}", daemon=True)
            for reader in (self._read_answers, self._read_words)
        ]
        for reader in self._readers:
            reader.start()

    def tell(self, document: dict[str, Any]) -> None:
        """Tell it something."""
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # why it ended is told by `answer`
                pipe.write(json.dumps(document) + "\n")
                pipe.flush()

    def answer(self, timeout_s: float | None) -> dict[str, Any]:
        """Its next answer.

        Args:
            timeout_s: None while it migrates, when its engine has its own timeouts.

        Raises:
            EndFailed: it says that it failed, has ended, or says nothing.
        """
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise EndFailed(f"the {self._role}'s process said nothing for {timeout_s:.0f} s") from None
        if not line:
            self._readers[-1].join(_END_S)  # its last words
            raise EndFailed(f"the {self._role}'s process ended: {self._last_words or 'it said nothing'}")
        document: dict[str, Any] = json.loads(line)
        if "error" in document:
            raise EndFailed(f"the {self._role}: {document['error']}")
        return document

    def complaint(self) -> list[str]:
        """What it says of a migration that failed at the other end; nothing if it does not say so soon."""
        try:
            self.answer(_COMPLAINT_S)
        except EndFailed as e:
            return [str(e)]
        return []

    def end(self) -> None:
        """End it and wait for it, whatever it does."""
        pipe = self._process.stdin
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(_END_S)

    def _read_answers(self) -> None:
        pipe = self._process.stdout
        if pipe is not None:
            with pipe:
                while line := pipe.readline(_MOST_ANSWER):
                    self._answers.put(line)
        self._answers.put("")

    def _read_words(self) -> None:
        pipe = self._process.stderr
        if pipe is not None:
            with pipe:
                while line := pipe.readline(_MOST_ANSWER):
                    self._last_words = line.strip() or self._last_words
