"""One end of a measured migration, as a process: ``python -m multifd.bench.end``.

It is given one JSON document a line on stdin (its order; a source gets ``go`` with the URI as a second), and answers
with one a line on stdout: ``ready``, then its figures or an error. It ends when stdin does, so that none outlives
whoever started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
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


def main() -> int:
    """Serve one order."""
    order = Order(**json.loads(sys.stdin.readline()))
    try:
        report = _source(order) if order.role == "source" else _destination(order)
    except MultifdError as e:
        _answer(error=str(e))
        return e.exit_code
    _answer(result=report.result, cpu_s=report.cpu_s, peak_bytes=report.peak_bytes)
    return 0


def _source(order: Order) -> Report:
    with contextlib.closing(open_source(order.path, format=order.format)) as stored:
        source = LoadedSource(stored)
    method = load_method(order.method)
    _answer(ready=True)
    uri = json.loads(sys.stdin.readline())["uri"]
    _end_with_stdin()
    config = SendConfig(
        Uri.parse(uri), order.channels, _dialect(source), order.max_bandwidth, order.timeout_s, order.timeout_s
    )
    return _measured(lambda: send_still(Sender(source, method, config), source))


def _destination(order: Order) -> Report:
    with contextlib.closing(open_source(order.path, format=order.format)) as stored:
        # A sparse file's holes are zero pages, which stay untouched.
        warm(min(sum(block.used_length for block in stored.blocks), os.stat(order.path).st_blocks * 512))
        target = Destination(stored)
        listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
        try:
            config = ReceiveConfig(order.channels, (order.method,), order.timeout_s)
            receiver = Receiver(listener, target, config)
            receiver.announce(lambda uri: _answer(ready=True, uri=uri))
            _end_with_stdin()
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
    if "error" in document:
        document["error"] = printable(document["error"])
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


def _end_with_stdin() -> None:
    """From here on, the end of stdin ends this process at once: whoever started it is gone or has given up."""

    def watch() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a thread may hold when the interpreter ends
            pass
        os._exit(1)

    threading.Thread(target=watch, name="multifd_bench_stdin", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
