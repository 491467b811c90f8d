"""Whole migrations over a socket, by name and by a simulated device, and what the figures say."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.simulator import Fault, Machine, SeededFaults, SimulatedIaa
from qpl_ends import make_pages

from multifd import MemoryImage, receive, send
from multifd.method import MultifdMethods
from multifd.stats import Result

PAGES = 128 * 9 + 5


def migrate(method: str | MultifdMethods, page_size: int = 4096) -> tuple[Result, Result]:
    """Over loopback, two channels; both ends' figures. The memory must arrive."""
    source = make_pages(page_size, PAGES * 4096 // page_size)
    target, address, results = bytearray(len(source)), queue.Queue[str](), queue.Queue[Any]()

    def run() -> None:
        try:
            results.put(receive("tcp:127.0.0.1:0", target, timeout=30, on_listening=address.put))
        except BaseException as e:
            results.put(e)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    sent = send(MemoryImage(source, page_size), address.get(timeout=20), method, channels=2, timeout=30)
    received = results.get(timeout=20)
    thread.join(20)
    if isinstance(received, BaseException):
        raise received
    assert target == source
    return sent, received


@pytest.mark.parametrize("page_size", [4096, 8192, 16384, 65536])
@pytest.mark.parametrize("software", ["isal", "libqpl"])
def test_by_name(libqpl: str, software: str, page_size: int) -> None:
    sent, received = migrate(f"qpl:software={software},hardware=off", page_size)
    pages = PAGES * 4096 // page_size
    for result in (sent, received):
        assert result.status == "completed"
        assert result.method_stats["software"] + result.method_stats["raw"] == pages
    assert sent.transferred_bytes < sent.ram_bytes


@pytest.mark.parametrize("busy", ["fallback", "wait"])
def test_by_a_simulated_device(busy: str) -> None:
    faults = SeededFaults(3, 0.05, (Fault.SUBMIT_ERROR, Fault.READ_FAULT, Fault.SHORT))
    with SimulatedIaa(Machine(queue_entries=32), faults=faults) as iaa:
        sent, _ = migrate(QplMethod(QplOptions(busy=busy), library=iaa.library))
    stats = sent.method_stats
    assert stats["completed"] + stats["software"] + stats["raw"] == PAGES
    assert stats["busy"] - stats["retried"] + stats["failed"] == stats["fell_back"] > 0
    assert stats["completed"] > 0
