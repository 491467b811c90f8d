"""QEMU to QEMU beside multifd to multifd: ratios of medians of time, CPU and bytes, in one run.

Memory to memory over loopback TCP, one image of real bytes for all. Both sources' memory is touched and huge-page-
advised before the clock starts, and so is both destinations', unless --untouched is given: page faults cost as much as
moving a page, and hide what moves it. Each round migrates by every way once, interleaved; the first does not count.
Each destination's memory is new, and compared with the image afterwards.

The time is what each source counts, both until the destination has said that it has everything (QEMU: return path on).
CPU is that of both ends' processes meanwhile, QEMU's in steps of 10 ms. Bandwidth is unlimited. The QEMU is that of
MULTIFD_QEMU_NEW, 9.0 or later, a machine of RAM alone.

A pair is QEMU's method and ours, with our options; QEMU's level is 1, its default.

Usage: PYTHONPATH=tests python benchmarks/compare.py [--mib 1024] [--rounds 3] [--channels 1 2 4 8]
    [--pairs none=none zstd=zstd:level=1 zstd=qpl] [--ours 16 64] [--image FILE] [--untouched] [--json]
"""

from __future__ import annotations

import argparse
import gc
import json
import mmap
import multiprocessing
import os
import re
import resource
import statistics
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from interop.qemu import Qemu, Release
from qemu import qemu_or_end
from rounds import interleaved
from shaped_link import Ends, Loopback

import multifd
from multifd.bench.synthetic import write_image

PAGE = 4096
PIECE = 1 << 20
TIMEOUT_S = 300
PAIRS = ("none=none", "zstd=zstd:level=1", "zlib=zlib:level=1")
CHANNELS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Figures:
    """Of one migration, both ends together."""

    time_s: float
    cpu_s: float
    wire_bytes: int
    method_stats: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Bed:
    """What every migration has in common."""

    image: Path
    size: int
    checksum: int
    is_touched: bool


class DifferenceError(Exception):
    """A destination's memory is not the image."""


def checksum(pieces: Iterable[bytes]) -> int:
    """CRC-32 of all of them."""
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return value


def pieces_of(path: Path, start: int, size: int) -> Iterator[bytes]:
    """A file's bytes from `start`, also those of a process's memory."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        for _ in range(size // PIECE):
            yield file.read(PIECE)


# QEMU to QEMU


class Machines:
    """One source for all migrations, whose RAM holds the image, and new destinations."""

    def __init__(self, release: Release, folder: Path, bed: Bed) -> None:
        self._release, self._folder, self._bed = release, folder, bed
        self._source = self._start("source", "memory-backend-ram,prealloc=on")
        with Path(f"/proc/{self._source.process.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(_ram_address(self._source))
            for piece in pieces_of(bed.image, 0, bed.size):
                memory.write(piece)

    def _start(self, name: str, backend: str, *, is_incoming: bool = False) -> Qemu:
        return Qemu(
            self._release, self._folder, name, self._bed.size >> 20, machine="none", backend=backend,
            is_incoming=is_incoming,
        )  # fmt: skip

    def migrate(self, method: str, channels: int) -> Figures:
        """Once, into a new destination."""
        prealloc = "on" if self._bed.is_touched else "off"
        destination = self._start("destination", f"memory-backend-ram,prealloc={prealloc}", is_incoming=True)
        try:
            for end in (self._source, destination):
                end.multifd(method, channels, return_path=True)
            uri = destination.listen("tcp:127.0.0.1:0")
            before = _cpu_s(self._source) + _cpu_s(destination)
            self._source("migrate", uri=uri)
            info = self._source.wait_migrated()
            destination.wait_migrated()
            cpu = _cpu_s(self._source) + _cpu_s(destination) - before
            self._source("cont")  # or it will not migrate again
            memory = Path(f"/proc/{destination.process.pid}/mem")
            if checksum(pieces_of(memory, _ram_address(destination), self._bed.size)) != self._bed.checksum:
                raise DifferenceError(f"QEMU to QEMU by {method}")
            return Figures(info["total-time"] / 1e3, cpu, info["ram"]["transferred"])
        finally:
            destination.stop()

    def stop(self) -> None:
        """End the source."""
        self._source.stop()


def _ram_address(qemu: Qemu) -> int:
    """Where guest RAM lies in QEMU's address space."""
    answer = qemu("human-monitor-command", command_line="gpa2hva 0")
    found = re.search(r" is (0x[0-9a-f]+)", answer)
    if found is None:
        raise SystemExit(f"QEMU does not say where its RAM is: {answer}")
    return int(found[1], 16)


def _cpu_s(qemu: Qemu) -> float:
    """Of all its threads so far, also those that have ended: utime and stime, proc(5)."""
    fields = Path(f"/proc/{qemu.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# multifd to multifd


def _memory(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)  # as QEMU does
    return memory


def _own_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _receive(bed: Bed, pipe: Connection) -> None:
    """The destination's process: a migration for each message."""
    while True:
        address, spec = pipe.recv()
        gc.collect()  # the memory before, which what is left of its migration may hold
        memory = _memory(bed.size)
        if bed.is_touched:
            np.frombuffer(memory, np.uint8)[::PAGE] = 0
        before = _own_cpu_s()
        multifd.receive(f"tcp:{address}:0", memory, methods=[spec], on_listening=pipe.send)
        pipe.send((_own_cpu_s() - before, zlib.crc32(memory)))
        del memory


def _send(bed: Bed, pipe: Connection) -> None:
    """The source's process: a migration for each message."""
    memory = _memory(bed.size)
    with bed.image.open("rb", buffering=0) as file, memoryview(memory) as view:
        for at in range(0, bed.size, PIECE):
            file.readinto(view[at : at + PIECE])
    pipe.send(None)
    while True:
        uri, spec, channels, max_bandwidth = pipe.recv()
        before = _own_cpu_s()
        result = multifd.send(memory, uri, spec, channels=channels, max_bandwidth=max_bandwidth)
        cpu = _own_cpu_s() - before
        pipe.send((result.total_time_ms / 1e3, cpu, result.transferred_bytes, result.method_stats))


class Processes:
    """Two processes with multifd imported, for all migrations."""

    def __init__(self, bed: Bed, ends: Ends | None = None) -> None:
        self._checksum = bed.checksum
        self._ends = ends or Loopback()
        context = multiprocessing.get_context("spawn")
        self._source, source = context.Pipe()
        self._destination, destination = context.Pipe()
        self._processes = []
        for place, target, pipe in (
            (self._ends.source, _send, source),
            (self._ends.destination, _receive, destination),
        ):
            process = context.Process(target=target, args=(bed, pipe), daemon=True)
            with place():
                process.start()
            self._processes.append(process)
        source.close()  # so that the end of either process ends a wait for its word
        destination.close()
        self._hear(self._source)

    def _hear(self, pipe: Connection) -> Any:
        if not pipe.poll(TIMEOUT_S):
            raise SystemExit(f"multifd says nothing for {TIMEOUT_S} s")
        return pipe.recv()

    def migrate(self, spec: str, channels: int, max_bandwidth: int = 0) -> Figures:
        """Once, into new memory; `max_bandwidth` in bytes a second, 0 is unlimited."""
        self._destination.send((self._ends.address, spec))
        self._source.send((self._hear(self._destination), spec, channels, max_bandwidth))
        time_s, cpu, wire_bytes, method_stats = self._hear(self._source)
        cpu_there, found = self._hear(self._destination)
        if found != self._checksum:
            raise DifferenceError(f"multifd to multifd by {spec}")
        return Figures(time_s, cpu + cpu_there, wire_bytes, method_stats)

    def stop(self) -> None:
        """End both."""
        for process in self._processes:
            process.terminate()
            process.join(TIMEOUT_S)


# the comparison


@dataclass(frozen=True)
class Way:
    """One row."""

    who: str
    method: str
    channels: int


def ways(pairs: list[tuple[str, str]], channels: list[int], ours: list[int]) -> list[Way]:
    """The order of a round, each once."""
    found = [
        way
        for count in channels
        for theirs, spec in pairs
        for way in (Way("QEMU", theirs, count), Way("multifd", spec, count))
    ]
    found += [Way("multifd", spec, count) for count in ours for _, spec in pairs]
    return list(dict.fromkeys(found))


def median(row: list[Figures]) -> Figures:
    """Of each figure by itself."""
    return Figures(
        statistics.median(f.time_s for f in row),
        statistics.median(f.cpu_s for f in row),
        int(statistics.median(f.wire_bytes for f in row)),
    )


@contextmanager
def running(release: Release, bed: Bed, folder: Path) -> Iterator[Callable[[Way], Figures]]:
    """Everything started; what is given migrates once."""
    with ExitStack() as stack:
        machines = Machines(release, folder, bed)
        stack.callback(machines.stop)
        processes = Processes(bed)
        stack.callback(processes.stop)

        def migrate(way: Way) -> Figures:
            return (machines if way.who == "QEMU" else processes).migrate(way.method, way.channels)

        yield migrate


def ratios(medians: dict[Way, Figures], pairs: list[tuple[str, str]], channels: list[int]) -> list[dict[str, object]]:
    """Ours to QEMU's, for each pair and number of channels."""
    found: list[dict[str, object]] = []
    for theirs, spec in pairs:
        for count in channels:
            qemu, ours = medians[Way("QEMU", theirs, count)], medians[Way("multifd", spec, count)]
            found.append({
                "multifd": spec, "qemu": theirs, "channels": count, "time": ours.time_s / qemu.time_s,
                "cpu": ours.cpu_s / qemu.cpu_s if qemu.cpu_s else None, "bytes": ours.wire_bytes / qemu.wire_bytes,
            })  # fmt: skip
    return found


def _pair(text: str) -> tuple[str, str]:
    theirs, sign, spec = text.partition("=")
    if not (theirs and sign and spec):
        raise argparse.ArgumentTypeError(f"{text!r}, expected QEMU's method, = and ours: zstd=zstd:level=1")
    return theirs, spec


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, nargs="*", default=list(CHANNELS))
    parser.add_argument("--ours", type=int, nargs="*", default=[], help="numbers of channels that only we are tried at")
    parser.add_argument("--pairs", type=_pair, nargs="+", default=[_pair(text) for text in PAIRS])
    parser.add_argument("--image", type=Path, help="of --mib MiB; default: made of this machine's files")
    parser.add_argument("--untouched", action="store_true", help="destinations whose memory nobody has touched")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    release = qemu_or_end()
    size = args.mib << 20
    with tempfile.TemporaryDirectory() as folder:
        image = args.image or Path(folder, "image")
        if args.image is None:
            write_image(image, size)
        bed = Bed(image, size, checksum(pieces_of(image, 0, size)), not args.untouched)
        order = ways(args.pairs, args.channels, args.ours)
        with running(release, bed, Path(folder)) as migrate:
            medians = {way: median(row) for way, row in interleaved(order, migrate, args.rounds).items()}
    found = ratios(medians, args.pairs, args.channels)
    if args.json:
        rows = [{**vars(way), **vars(figures)} for way, figures in medians.items()]
        print(json.dumps({"medians": rows, "ratios": found}))
        return
    for way, figures in medians.items():
        print(
            f"{way.who:8} {way.method:20} {way.channels:3} channels {figures.time_s:7.2f} s   "
            f"CPU {figures.cpu_s:6.2f} s   {figures.wire_bytes / 2**20:8.1f} MiB"
        )
    for row in found:
        cpu = f"{row['cpu']:.2f}" if row["cpu"] else "-"
        print(
            f"{row['multifd']} / QEMU's {row['qemu']}, {row['channels']} channels: "
            f"time {row['time']:.2f}   CPU {cpu}   bytes {row['bytes']:.3f}"
        )


if __name__ == "__main__":
    main()
