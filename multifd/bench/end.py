"""One end of a measured migration, as a process: ``python -m multifd.bench.end``.

It is given JSON documents on stdin, one a line: an order, for a source a second one with the URI to send to, then the
next order. It answers with one a line on stdout: ``ready``, then its figures or an error. It ends when stdin does, so
that none outlives whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from multifd.bench.memory import Destination, LoadedSource, warm
from multifd.engine.config import ReceiveConfig, SendConfig
from multifd.engine.receiver import Receiver
from multifd.engine.sender import Sender
from multifd.engine.still import send_still
from multifd.errors import MultifdError, UsageError, printable
from multifd.ram.block import Source
from multifd.ram.image import open_source
from multifd.registry import load_method
from multifd.stats import Result
from multifd.transport.address import Uri
from multifd.transport.listen import Listener
from multifd.wire.dialect import DIALECTS, Dialect, dialect_of

_RESET_PEAK = "5"  # to /proc/self/clear_refs: VmHWM begins anew, proc_pid_clear_refs(5)


@dataclass(frozen=True)
class Order:
    """What an end is told."""

    role: str
    """source or destination."""
    path: str
    format: str
    page_size: int
    method: str
    channels: int
    max_bandwidth: int
    """Bytes a second, 0 is unlimited; the source's alone."""
    timeout_s: float


@dataclass(frozen=True)
class Report:
    """What an end answers after the migration."""

    result: dict[str, Any]
    cpu_s: float
    peak_bytes: int


def main() -> None:
    """Serve one order after the other, until stdin ends."""
    told = _told()
    loaded: dict[tuple[str, str], LoadedSource] = {}
    while True:
        order = Order(**json.loads(told.get()))
        try:
            is_source = order.role == "source"
            report = _source(order, loaded, told) if is_source else _destination(order)
        except MultifdError as e:
            _answer(error=printable(str(e)))
        else:
            _answer(**asdict(report))


def _source(order: Order, loaded: dict[tuple[str, str], LoadedSource], told: queue.SimpleQueue[str]) -> Report:
    where = order.path, order.format
    if where not in loaded:
        loaded.clear()
        with contextlib.closing(open_source(order.path, format=order.format, page_size=order.page_size)) as stored:
            loaded[where] = LoadedSource(stored)
    source, method = loaded[where], load_method(order.method)
    _answer(ready=True)
    uri = json.loads(told.get())["uri"]
    config = SendConfig(
        Uri.parse(uri), order.channels, _dialect(source), order.max_bandwidth, order.timeout_s, order.timeout_s
    )
    return _measured(lambda: send_still(Sender(source, method, config), source))


def _destination(order: Order) -> Report:
    with contextlib.closing(open_source(order.path, format=order.format, page_size=order.page_size)) as stored:
        # A sparse file's holes are zero pages, which stay untouched.
        warm(min(sum(block.used_length for block in stored.blocks), os.stat(order.path).st_blocks * 512))
        target = Destination(stored)
        listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
        try:
            config = ReceiveConfig(order.channels, (order.method,), order.timeout_s)
            receiver = Receiver(listener, target, config)
            receiver.announce(lambda uri: _answer(ready=True, uri=uri))
            report = _measured(receiver.run)
        finally:
            listener.close()
        target.compare()
        return report


def _dialect(source: Source) -> Dialect:
    """Of the machine type; a type that does not tell its release is taken for a new one."""
    with contextlib.suppress(UsageError):
        return dialect_of(source.machine.name)
    return DIALECTS["9.0"]


def _measured(call: Callable[[], Result]) -> Report:
    _reset_peak()
    before = _cpu_s()
    result = call()
    return Report(result.as_dict(), _cpu_s() - before, _peak_bytes())


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _reset_peak() -> None:
    # Where it is not allowed, the peak is that of the whole process, with the loading before.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write(_RESET_PEAK)


def _peak_bytes() -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)


def _answer(**document: Any) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _told() -> queue.SimpleQueue[str]:
    """The lines of stdin as they come. Its end ends this process at once: whoever started it is gone, or is done."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        with open(0, encoding="utf-8", closefd=False) as stdin:
            for line in stdin:
                lines.put(line)
        os._exit(0)

    threading.Thread(target=read, name="multifd_bench_stdin", daemon=True).start()
    return lines


if __name__ == "__main__":
    main()
