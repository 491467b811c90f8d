"""A table in memory moves from one process to the next while it is being written; nothing is lost.

Usage: python examples/handover.py [--mib 64] [--method zstd] [--updates 20000]

The old process counts updates by key and hands the table over to a new one, which it starts itself. The new
process goes on where the old one stood still, and in the end the counts must add up.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

import multifd

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Service:
    """Counts updates by key, in a thread, until it is told to stand still.

    The table is all of its state: word 0 is how many updates there were, the others are counts.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._words = np.frombuffer(memory, np.uint64)
        self._lock = threading.Lock()  # held while it stands still
        self._lock.acquire()
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def updates(self) -> int:
        """How many there were, whichever process made them."""
        return int(self._words[0])

    def is_consistent(self) -> bool:
        """Whether no update was lost and none was made twice."""
        return int(self._words[1:].sum()) == self.updates

    def resume(self) -> None:
        """Go on."""
        self._lock.release()

    def pause(self) -> None:
        """Return when nothing writes any more."""
        self._lock.acquire()

    def wait_for(self, updates: int) -> None:
        """Return when there were so many."""
        while self.updates < updates:
            self._idle.wait(0.01)

    def _work(self) -> None:
        keys = random.Random(1)
        while True:
            with self._lock:
                for _ in range(20):  # a request
                    self._words[1 + keys.randrange(len(self._words) - 1)] += np.uint64(1)
                    self._words[0] += np.uint64(1)
            self._idle.wait(0.0005)


def old_process(mib: int, method: str, updates: int, uri: str) -> None:
    """Serve, start the new process, hand the table over."""
    # [old]
    memory = mmap.mmap(-1, mib << 20, flags=PRIVATE)
    service = Service(memory)
    service.resume()
    service.wait_for(updates)
    with multifd.Arena(memory) as arena:
        result = multifd.send(multifd.Live(arena, service.pause, service.resume), uri, method)
    # [sent]
    print(f"old process: {service.updates} updates, consistent: {service.is_consistent()}", flush=True)
    print(
        f"old process: handed over {mib} MiB in {result.total_time_ms:.0f} ms and {result.rounds} round(s), tracked by "
        f"{result.tracker}; stood still for {result.downtime_ms:.1f} ms",
        flush=True,
    )


def new_process(mib: int, updates: int, uri: str) -> None:
    """Take the table over and go on."""
    # [receive]
    memory = mmap.mmap(-1, mib << 20, flags=PRIVATE)
    with multifd.Arena(memory) as arena:
        multifd.receive(uri, arena)
    service = Service(memory)
    taken = service.updates
    service.resume()
    # [received]
    service.wait_for(taken + updates)
    service.pause()
    print(f"new process: took over at {taken} updates and made {service.updates - taken} more", flush=True)
    print(f"new process: nothing lost: {service.is_consistent()}", flush=True)


def main() -> None:
    """Both processes, or the new one alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--method", default="zstd")
    parser.add_argument("--updates", type=int, default=20000, help="before and after the handover")
    parser.add_argument("--take-over", metavar="URI", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.take_over:
        new_process(args.mib, args.updates, args.take_over)
        return
    with tempfile.TemporaryDirectory() as folder:
        uri = f"unix:{Path(folder, 'handover')}"
        size = ["--mib", str(args.mib), "--updates", str(args.updates)]
        child = subprocess.Popen([sys.executable, os.path.abspath(__file__), *size, "--take-over", uri])
        try:
            old_process(args.mib, args.method, args.updates, uri)
        except BaseException:
            child.kill()
            raise
        finally:
            status = child.wait(60)
    sys.exit(status)


if __name__ == "__main__":
    main()
