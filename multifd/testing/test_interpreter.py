"""What other threads of the interpreter have while a packet is coded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from multifd.registry import load_method
from multifd.testing.harness import RecvEnd, SendEnd
from multifd.testing.strategies import packet

_JOIN_S = 30.0


def test_gil(multifd_method: str, record_property: Callable[[str, object], None]) -> None:
    """Reported, not judged: how much other threads run while a packet is coded."""
    method = load_method(multifd_method)
    data = packet("mixed", 1, 4096, 128)
    with SendEnd(method) as send, RecvEnd(method) as recv:
        pages = send.place(data)
        send.prepare(pages)
        payload = send.take()
        if method.capabilities.streaming:
            shares = [_free_share(lambda: send.prepare(pages))]
        else:
            shares = [_free_share(lambda: send.prepare(pages)), _free_share(lambda: recv.receive(payload, 128))]
    names = ("send_prepare", "recv")
    text = ", ".join(f"{n} {s:.0%}" for n, s in zip(names, shares, strict=False))
    record_property("multifd", f"{multifd_method}: time in which another Python thread could run: {text}")


def _free_share(call: Callable[[], object]) -> float:
    """Steps of a counting thread while `call` repeats, by those while this thread waits."""
    steps, stop = 0, threading.Event()

    def count() -> None:
        nonlocal steps
        while not stop.is_set():
            steps += 1

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    rates = []
    for busy in (False, True):
        begin, before = time.perf_counter(), steps
        while time.perf_counter() < begin + 0.1:
            if busy:
                call()
            else:
                threading.Event().wait(0.02)
        rates.append((steps - before) / (time.perf_counter() - begin))
    stop.set()
    thread.join(_JOIN_S)
    return min(1.0, rates[1] / max(rates[0], 1.0))
