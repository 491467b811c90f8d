"""What a live migration costs: the writers, in total, and while the source stands still.

Usage: python benchmarks/live.py cost     what the dirty log costs a writer, for each page it touches
       python benchmarks/live.py curve    total time and downtime against the dirty rate; --svg draws it
       python benchmarks/live.py soak     random migrations, each compared byte for byte; --count 500, --seed 1

The destination is a second process; both share the memory that it receives into, so that the parent can compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import multiprocessing
import os
import random
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from live_figure import Point, picture

import multifd
from multifd.errors import MultifdError, NotConverged
from multifd.live.choose import choose
from multifd.live.ranges import Ranges, packets
from multifd.live.tracker import Tracker
from multifd.pages import Geometry
from multifd.ram.block import Staging
from multifd.stats import Result

PAGE = 4096
MIB = 1 << 20
PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
TICK_S = 0.005
SPAWN = multiprocessing.get_context("spawn")


# -- both ends ------------------------------------------------------------------------------------


def destination(fd: int, nbytes: int, pipe: Connection) -> None:
    """The other process: one migration for each message."""
    with multifd.Arena(mmap.mmap(fd, nbytes)) as arena:
        while pipe.recv():
            try:
                multifd.receive("tcp:127.0.0.1:0", arena, on_listening=pipe.send, timeout=30)
                pipe.send("")
            except MultifdError as e:
                pipe.send(str(e) or "failed")


class Destination:
    """The other process and the memory it receives into."""

    def __init__(self, nbytes: int) -> None:
        self._fd = os.memfd_create("destination", 0)
        os.ftruncate(self._fd, nbytes)
        self.memory = mmap.mmap(self._fd, nbytes)
        self._pipe, theirs = multiprocessing.Pipe()
        # fork, so that the descriptor is inherited; no thread runs yet
        self._process = multiprocessing.get_context("fork").Process(
            target=destination, args=(self._fd, nbytes, theirs), daemon=True
        )
        self._process.start()

    def listen(self) -> str:
        self._pipe.send(True)
        return str(self._pipe.recv())

    def result(self) -> str:
        return str(self._pipe.recv()) if self._pipe.poll(60) else "hangs"

    def close(self) -> None:
        self._pipe.send(False)
        self._process.join(10)


class Writers:
    """Threads that write one word in each of so many pages a second, neighbours at a random place, without the GIL.

    Args:
        pages: uint64, shape (n, 512).
        threads: how many.
        rate: pages each second of all of them; None is as fast as they can.
    """

    def __init__(self, pages: np.ndarray, threads: int, rate: float | None) -> None:
        self._pages = pages
        self._batch = 512 if rate is None else max(int(rate * TICK_S / threads), 1)
        self._pause_s = TICK_S if rate is not None else 0.0
        self._locks = [threading.Lock() for _ in range(threads)]
        self._stop = threading.Event()
        self._may_write = threading.Event()  # a lock alone is not fair: a writer would take it again at once
        self._may_write.set()
        self._is_paused = False
        self.written = [0] * threads
        self._threads = [threading.Thread(target=self._write, args=(i,)) for i in range(threads)]

    def _write(self, i: int) -> None:
        rng = np.random.default_rng(i)
        due = time.monotonic()
        while not self._stop.is_set():
            self._may_write.wait()
            with self._locks[i]:
                at = int(rng.integers(0, max(len(self._pages) - self._batch, 1)))
                column = self._pages[at : at + self._batch, int(rng.integers(0, 512))]
                np.add(column, 1, out=column)
                self.written[i] += len(column)
            due = max(due + self._pause_s, time.monotonic() - 4 * TICK_S)
            if (wait := due - time.monotonic()) > 0:
                self._stop.wait(wait)

    def pause(self) -> None:
        self._may_write.clear()
        for lock in self._locks:
            lock.acquire()
        self._is_paused = True

    def resume(self) -> None:
        self._is_paused = False
        self._may_write.set()
        for lock in self._locks:
            lock.release()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            if self._is_paused:
                self.resume()
            for thread in self._threads:
                thread.join()


def fill(memory: mmap.mmap, seed: int) -> np.ndarray:
    """Half noise, a quarter words, a quarter zero, in runs; the pages as uint64, shape (n, 512)."""
    pages = np.frombuffer(memory, np.uint64).reshape(-1, PAGE // 8)
    rng = np.random.default_rng(seed)
    text = np.frombuffer((b"page block packet channel migrate 0x7f00 " * 100)[:PAGE], np.uint64)
    at = 0
    while at < len(pages):
        run = int(rng.integers(1, 129))
        kind = rng.integers(0, 4)
        part = pages[at : at + run]
        part[:] = 0 if kind == 0 else text if kind == 1 else rng.integers(0, 1 << 63, part.shape, np.uint64)
        at += run
    return pages


# -- cost -----------------------------------------------------------------------------------------


def load(tracker: Tracker, dirty: list[Ranges]) -> None:
    """What sending would do: read the pages."""
    staging = Staging(Geometry.of(PAGE))
    for block, found in zip(tracker.blocks, dirty, strict=True):
        for pages in packets(found, 128):
            block.load(pages * PAGE, staging)


def cost(args: argparse.Namespace) -> None:
    """Nanoseconds to write one word in each page: as it is, and when each write is the first since a scan."""
    rows = []
    for kind in ("4 KiB pages", "transparent huge pages", "shared memory"):
        flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS if kind == "shared memory" else PRIVATE
        memory = mmap.mmap(-1, args.mib * MIB, flags=flags)
        if kind == "transparent huge pages":
            memory.madvise(mmap.MADV_HUGEPAGE)
        pages = fill(memory, 1)
        column = pages[:, 7]

        def touch(column: np.ndarray = column) -> float:
            start = time.perf_counter()
            np.add(column, 1, out=column)
            return (time.perf_counter() - start) / len(column) * 1e9

        with multifd.Arena(memory, writers="this-process") as arena:
            before = statistics.median(touch() for _ in range(5))
            row: dict[str, object] = {"memory": kind, "no log, ns": round(before, 1)}
            for name in ("write-protect", "comparison"):
                tracker, _ = choose(arena, PAGE, name)
                start = time.perf_counter()
                used = tracker.arm()
                row[f"{name}: arm, ms"] = round((time.perf_counter() - start) * 1e3, 1)
                first, again, scans = [], [], []
                for _ in range(3):
                    load(tracker, used)
                    first.append(touch())
                    again.append(touch())
                    start = time.perf_counter()
                    used = tracker.scan()
                    scans.append(time.perf_counter() - start)
                load(tracker, used)
                start = time.perf_counter()
                tracker.scan()
                row[f"{name}: scan without writes, ms"] = round((time.perf_counter() - start) * 1e3, 1)
                row[f"{name}: first write, ns"] = round(statistics.median(first), 1)
                row[f"{name}: next, ns"] = round(statistics.median(again), 1)
                row[f"{name}: scan, ms"] = round(statistics.median(scans) * 1e3, 1)
                tracker.close()
            rows.append(row)
    for row in rows:
        print(json.dumps(row))


# -- curve ----------------------------------------------------------------------------------------

RATES = (0, 100, 200, 300, 400, 600, 800, 1200, 1600, 2400)


def measure(other: Destination, memory: mmap.mmap, spec: str, rate: int, limit_s: float) -> Point:
    pages = fill(memory, 1)
    writers = Writers(pages, 1, rate * MIB / PAGE)
    uri = other.listen()
    with multifd.Arena(memory) as arena, writers.running() if rate else contextlib.nullcontext():
        try:
            result = multifd.send(
                multifd.Live(arena, writers.pause, writers.resume, downtime_limit=limit_s, max_rounds=8), uri, spec
            )
            down: float | None = result.downtime_ms
            if memory[:] != other.memory[:]:
                raise SystemExit(f"{spec}, {rate} MiB/s: the destination differs")
        except NotConverged as e:
            result, down = e.result, None
    other.result()
    return result.dirty_pages_rate * PAGE / MIB, result.total_time_ms / 1e3, down, result.rounds


def curve(args: argparse.Namespace) -> None:
    """Total time and downtime for each method and dirty rate."""
    nbytes = args.mib * MIB
    other, memory = Destination(nbytes), mmap.mmap(-1, nbytes, flags=PRIVATE)
    found: dict[str, list[tuple[int, Point]]] = {}
    for spec in args.method or ["none", "zstd"]:
        measure(other, memory, spec, 0, args.limit)  # warms up
        found[spec] = []
        for rate in RATES:
            runs = [measure(other, memory, spec, rate, args.limit) for _ in range(args.rounds)]
            point = sorted(runs, key=lambda p: p[1])[len(runs) // 2]
            found[spec].append((rate, point))
            down = "refused" if point[2] is None else f"{point[2]:.0f} ms"
            asked = f"{spec:6} asked {rate:5} MiB/s, found {point[0]:6.0f}"
            print(f"{asked}, total {point[1]:.2f} s, down {down}, {point[3]} rounds")
            if all(p[2] is None for _, p in found[spec][-2:]) and len(found[spec]) > 1:
                break
    other.close()
    if args.svg:
        args.svg.write_text(picture(found, args.mib, args.limit))


# -- soak -----------------------------------------------------------------------------------------


def foreign_writer(fd: int, nbytes: int, lock: object, stop: object, seed: int) -> None:
    """A process that writes to the source's memory."""
    with mmap.mmap(fd, nbytes) as memory:
        rng = random.Random(seed)
        while not stop.is_set():  # type: ignore[attr-defined]
            with lock:  # type: ignore[attr-defined]
                for _ in range(200):
                    at = rng.randrange(nbytes)
                    memory[at] = (memory[at] + 1) % 256
            time.sleep(0.0005)


def soak(args: argparse.Namespace) -> None:
    """Random migrations; stops at the first that is not right."""
    nbytes = args.mib * MIB
    fd = os.memfd_create("source", 0)
    os.ftruncate(fd, nbytes)
    other, foreign = Destination(nbytes), multiprocessing.get_context("fork")
    lock, stop = foreign.Lock(), foreign.Event()
    shared, private = mmap.mmap(fd, nbytes), mmap.mmap(-1, nbytes, flags=PRIVATE)
    rng = random.Random(args.seed)
    outcomes: dict[str, int] = {}
    worst: list[float] = []
    for number in range(args.count):
        spec = rng.choice(["none", "zlib", "zstd", "lz4"])
        tracker = rng.choice(["write-protect", "comparison", "other process"])
        channels, threads = rng.randint(1, 8), rng.randint(1, 8)
        rate = rng.choice([0.0, 1000.0, 20000.0, 100000.0, None])
        memory = shared if tracker == "other process" else private
        pages = fill(memory, number)
        note = f"{number}: {spec}, {tracker}, {channels} channels, {threads} writers, {rate} pages/s"
        result = one(args, other, memory, pages, spec, tracker, channels, threads, rate, (fd, lock, stop, foreign))
        if isinstance(result, str):
            raise SystemExit(f"{note}: {result}")
        word = "refused" if result.error else "equal"
        outcomes[word] = outcomes.get(word, 0) + 1
        if word == "equal":
            worst.append(result.downtime_ms)
        print(f"{note}: {word}, {result.rounds} rounds, down {result.downtime_ms:.0f} ms", flush=True)
    other.close()
    over = sum(d > 1.5 * args.limit * 1e3 for d in worst)
    print(
        json.dumps(
            {
                **outcomes,
                "downtime, median ms": statistics.median(worst),
                "longest ms": max(worst),
                "over 1.5 limits": over,
            }
        )
    )


def one(
    args: argparse.Namespace, other: Destination, memory: mmap.mmap, pages: np.ndarray, spec: str, tracker: str,
    channels: int, threads: int, rate: float | None, outside: tuple[int, object, object, object],
) -> Result | str:  # fmt: skip
    """One migration: its figures if it is right, what is wrong if not."""
    fd, lock, stop, context = outside
    writers = Writers(pages, threads, rate)
    uri = other.listen()
    paused = [0]

    def pause() -> None:
        paused[0] += 1
        writers.pause()
        lock.acquire()  # type: ignore[attr-defined]

    def resume() -> None:
        paused[0] -= 1
        writers.resume()
        lock.release()  # type: ignore[attr-defined]

    process = None
    if tracker == "other process":
        stop.clear()  # type: ignore[attr-defined]
        process = context.Process(target=foreign_writer, args=(fd, len(memory), lock, stop, 1), daemon=True)  # type: ignore[attr-defined]
        process.start()
    name = None if tracker == "other process" else tracker
    writing = writers.running() if rate != 0.0 else contextlib.nullcontext()
    with multifd.Arena(memory) as arena, writing:
        try:
            result = multifd.send(
                multifd.Live(arena, pause, resume, tracker=name, downtime_limit=args.limit, max_rounds=6), uri, spec,
                channels=channels,
            )  # fmt: skip
            wrong = "" if memory[:] == other.memory[:] else "the destination differs"
            if paused[0] != 1:
                wrong = "the source runs"
        except NotConverged as e:
            result, wrong = e.result, "left paused" if paused[0] else ""
        except MultifdError as e:
            return f"failed: {e}"
        if paused[0]:
            lock.release()  # type: ignore[attr-defined]
    if process is not None:
        stop.set()  # type: ignore[attr-defined]
        process.join(10)
    there = other.result()
    if not wrong and bool(there) != bool(result.error):
        wrong = f"the destination says {there!r}"
    return wrong or result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "curve", "soak"])
    parser.add_argument("--mib", type=int, help="of the arena; default 256, curve 1024, soak 64")
    parser.add_argument("--limit", type=float, default=0.3, help="downtime limit in seconds")
    parser.add_argument("--method", action="append", help="curve: may be repeated; default none, zstd")
    parser.add_argument("--rounds", type=int, default=3, help="curve: the middle of so many runs counts")
    parser.add_argument("--svg", type=Path, help="curve: where to draw it")
    parser.add_argument("--count", type=int, default=500, help="soak: how many")
    parser.add_argument("--seed", type=int, default=1, help="soak")
    args = parser.parse_args()
    args.mib = args.mib or {"cost": 256, "curve": 1024, "soak": 64}[args.what]
    {"cost": cost, "curve": curve, "soak": soak}[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
