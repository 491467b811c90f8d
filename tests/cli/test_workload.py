"""The demo's workload: it writes while it runs, and stands still when it is told to."""

from __future__ import annotations

import threading

from multifd.cli.workload import Workload


def test_it_runs_pauses_and_ends():
    memory = bytearray(64 * 4096)
    turn = threading.Event()

    def wait_for_change():
        before = bytes(memory)
        for _ in range(1000):
            if memory != before:
                return True
            turn.wait(0.01)
        return False

    with Workload(memory, 4096, 10000) as workload:
        assert wait_for_change()
        workload.pause()
        still = bytes(memory)
        assert all(memory == still for _ in range(500))
        workload.resume()
        workload.resume()
        assert wait_for_change()
        workload.pause()
    after = bytes(memory)
    assert all(memory == after for _ in range(500))
