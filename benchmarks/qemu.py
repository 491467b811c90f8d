"""Captures, replays and relays beside what QEMU does without us: times and downtimes, ratios, in one run.

One source, a running guest with RAM of real bytes, migrates again and again; each round does every
way once, interleaved, after a warm-up round that does not count. Each destination is fresh, its memory
preallocated. Just before each way everything is written to disk and the machine gets free memory at
hand for a file: in a virtual machine, memory that was free for seconds costs several times as much.
Times are QEMU's own total-time, and multifd's total_time_ms for a replay, all with the return path
unless said otherwise: until the destination has everything. max-bandwidth is unlimited. A capture is on
disk when it is complete; QEMU's file is in the page cache.

Source and destination are the QEMU of MULTIFD_QEMU_NEW, 9.0 or later.

Usage: PYTHONPATH=tests python benchmarks/qemu.py [--mib 1024] [--rounds 5] [--folder FOLDER] [--ways WAY ...] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from interop.guest import Guest, passes_printed
from interop.qemu import Qemu, QemuMissing, Release, newer_release
from rounds import Aim, interleaved, ratios

from multifd.bench.synthetic import write_image

CHANNELS = 2
MACHINE = "q35"
GUEST = Guest()
TIMEOUT_S = 300
PIECE = 512 << 10  # a packet's pages: the page cache takes memory in pieces as large as the writes


@dataclass(frozen=True)
class Figures:
    """Of one migration."""

    total_ms: float
    downtime_ms: float


Way = Callable[[], Figures]
_Found = TypeVar("_Found")


def qemu_or_end() -> Release:
    """The QEMU of 9.0 or later that is measured; without one the script has nothing to do and says so."""
    try:
        return newer_release()
    except QemuMissing as missing:
        print(f"QEMU is left out: {missing}", file=sys.stderr)
        sys.exit(0)


@contextlib.contextmanager
def multifd(*args: object) -> Iterator[subprocess.Popen[str]]:
    """A multifd command, whose stdout is one JSON document; it must succeed."""
    command = [sys.executable, "-m", "multifd", *map(str, args), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it printed."""
    out, err = process.communicate(timeout=TIMEOUT_S)
    if process.returncode:
        raise SystemExit(f"{process.args}: {err}")
    result: dict[str, Any] = json.loads(out)
    return result


def listening(process: subprocess.Popen[str]) -> str:
    """The URI it listens at."""
    assert process.stderr is not None
    line = process.stderr.readline()
    if not line.startswith("listening on "):
        raise SystemExit(line + process.stderr.read())
    return line.split()[-1]


class Bed:
    """A source that runs, and fresh destinations.

    Args:
        release: of both.
        mib: guest RAM.
        folder: for files; its disk is the one that is measured.
    """

    def __init__(self, release: Release, mib: int, folder: Path) -> None:
        self._release, self._mib, self.folder = release, mib, folder
        image = folder / "image"
        write_image(image, mib << 20)
        backend = f"memory-backend-file,share=off,mem-path={image}"
        self.source = self._start("source", backend, is_paused=False)
        self.source.wait(lambda: passes_printed(self.source.console()) > 1, "second pass of the guest")

    def _start(self, name: str, backend: str, **options: Any) -> Qemu:
        return Qemu(
            self._release, self.folder, name, self._mib, machine=MACHINE, backend=backend, disk=GUEST.disk(), **options
        )

    @contextlib.contextmanager
    def destination(self, method: str) -> Iterator[tuple[Qemu, str]]:
        """A QEMU and the URI it listens at; the guest must run on in it."""
        process = self._start("destination", "memory-backend-ram,prealloc=on", is_incoming=True)
        try:
            process.multifd(method, CHANNELS)
            yield process, process.listen("tcp:127.0.0.1:0")
            process.wait_migrated()
            process("cont")
            process.wait(lambda: passes_printed(process.console()) > 1, "pass of the guest")
        finally:
            process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()

    def once(self, way: Callable[[], _Found]) -> _Found:
        """What a way gives; the source runs again afterwards."""
        found = way()
        self.source("cont")
        return found

    def file(self, name: str) -> Path:
        """A path on the measured disk where no file is."""
        path = self.folder / name
        path.unlink(missing_ok=True)
        return path

    def settle(self) -> None:
        """Nothing left to be written, and free memory at hand for a file."""
        os.sync()
        path, piece = self.file("settle"), bytes(PIECE)
        with path.open("wb", buffering=0) as file:
            for _ in range((self._mib << 20) // PIECE):
                file.write(piece)
        path.unlink()

    def migrate(self, uri: str) -> Figures:
        """Migrate the source, as it was set."""
        self.settle()
        self.source("migrate", uri=uri)
        info = self.source.wait_migrated()
        return Figures(info["total-time"], info["downtime"])

    def to_qemu(self, method: str) -> Figures:
        """QEMU to QEMU."""
        with self.destination(method) as (_, uri):
            self.source.multifd(method, CHANNELS, return_path=True)
            return self.migrate(uri)

    def to_file(self, *, is_multifd: bool) -> Figures:
        """QEMU's own file."""
        self.source.set({"mapped-ram": True, "multifd": is_multifd, "return-path": False})
        try:
            return self.migrate(f"file:{self.file('qemu.ram')}")
        finally:
            self.source.set({"mapped-ram": False})

    def capture(self, method: str, *, return_path: bool) -> Figures:
        """Our file."""
        path = self.file("capture.ram")
        with multifd("receive", "tcp:127.0.0.1:0", path, "--channels", CHANNELS) as receive:
            self.source.multifd(method, CHANNELS, return_path=return_path)
            figures = self.migrate(listening(receive))
            finished(receive)
        return figures

    def replay(self, method: str) -> Figures:
        """Our file into a QEMU; it has no downtime, the guest is in the file."""
        with self.destination(method) as (_, uri):
            command = ("send", self.folder / "capture.ram", uri, "--method", method, "--channels", CHANNELS)
            self.settle()
            with multifd(*command) as send:
                return Figures(finished(send)["total_time_ms"], 0.0)

    def keep(self, method: str) -> Figures:
        """Streams in a folder, as the source sends them."""
        folder = self.folder / "streams"
        shutil.rmtree(folder, ignore_errors=True)
        with multifd("receive", "tcp:127.0.0.1:0", f"dir:{folder}", "--channels", CHANNELS) as receive:
            self.source.multifd(method, CHANNELS, return_path=True)
            figures = self.migrate(listening(receive))
            finished(receive)
        return figures

    def play(self, method: str) -> Figures:
        """The streams that were kept last into a QEMU, the comparison with their digests included."""
        with self.destination(method) as (_, uri):
            self.settle()
            with multifd("send", f"dir:{self.folder}/streams", uri) as send:
                return Figures(finished(send)["total_time_ms"], 0.0)

    def relay(self) -> Figures:
        """QEMU to QEMU with us between."""
        with self.destination("none") as (_, uri):
            command = ("relay", "tcp:127.0.0.1:0", uri, "--once", "--channels", CHANNELS)
            with multifd(*command) as relay:
                self.source.multifd("none", CHANNELS, return_path=True)
                figures = self.migrate(listening(relay))
                finished(relay)
        return figures


def ways(bed: Bed) -> dict[str, Way]:
    """What is measured, in the order of a round."""
    return {
        "QEMU to QEMU, none": lambda: bed.to_qemu("none"),
        "QEMU to file": lambda: bed.to_file(is_multifd=False),
        "QEMU to file, multifd": lambda: bed.to_file(is_multifd=True),
        "capture, none": lambda: bed.capture("none", return_path=True),
        "capture, none, no return path": lambda: bed.capture("none", return_path=False),
        "replay, none": lambda: bed.replay("none"),
        "streams kept, none": lambda: bed.keep("none"),
        "streams sent, none": lambda: bed.play("none"),
        "relay, none": bed.relay,
        "QEMU to QEMU, zstd": lambda: bed.to_qemu("zstd"),
        "capture, zstd": lambda: bed.capture("zstd", return_path=True),
        "replay, zstd": lambda: bed.replay("zstd"),
        "streams kept, zstd": lambda: bed.keep("zstd"),
        "streams sent, zstd": lambda: bed.play("zstd"),
    }


DOWNTIME_AIM = 2.0, 20.0
"""A capture's downtime: times QEMU to QEMU's, or so many ms more, whichever is larger."""
AIMS = [
    Aim("capture, none", "QEMU to file", 1.1),
    Aim("capture, none, no return path", "QEMU to file", 1.1),
    Aim("capture, none", "QEMU to file, multifd", None),
    Aim("replay, none", "QEMU to QEMU, none", 1.1),
    Aim("streams sent, none", "QEMU to QEMU, none", 1.1),
    Aim("relay, none", "QEMU to QEMU, none", 1.3),
    Aim("capture, zstd", "QEMU to QEMU, zstd", None),
    Aim("replay, zstd", "QEMU to QEMU, zstd", 1.1),
    Aim("streams kept, zstd", "QEMU to QEMU, zstd", None),
    Aim("streams sent, zstd", "QEMU to QEMU, zstd", 1.1),
]


def downtime_aim(medians: dict[str, Figures]) -> float | None:
    """What a capture's downtime may be, ms; None if its yardstick was not measured."""
    yardstick = medians.get("QEMU to QEMU, none")
    return yardstick and max(yardstick.downtime_ms * DOWNTIME_AIM[0], yardstick.downtime_ms + DOWNTIME_AIM[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default the temporary folder")
    ways_help = "these alone, as the table names them; what is sent or replayed must be kept or captured before it"
    parser.add_argument("--ways", nargs="+", metavar="WAY", help=ways_help)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    release = qemu_or_end()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, Bed(release, args.mib, Path(folder)) as bed:
        chosen = {name: way for name, way in ways(bed).items() if not args.ways or name in args.ways}
        rows = interleaved(chosen, lambda name: bed.once(chosen[name]), args.rounds)
    medians = {
        name: Figures(statistics.median(f.total_ms for f in row), statistics.median(f.downtime_ms for f in row))
        for name, row in rows.items()
    }
    compared = ratios({name: [figures.total_ms for figures in row] for name, row in rows.items()}, AIMS)
    if args.json:
        document = {
            "ways": [{"way": n, "total_ms": f.total_ms, "downtime_ms": f.downtime_ms} for n, f in medians.items()],
            "ratios": [ratio._asdict() for ratio in compared],
            "capture_downtime_aim_ms": downtime_aim(medians),
        }
        print(json.dumps(document))
        return
    for name, figures in medians.items():
        print(f"{name:32} {figures.total_ms:7.0f} ms   downtime {figures.downtime_ms:5.0f} ms")
    for ratio in compared:
        print(ratio)
    if (aim := downtime_aim(medians)) is not None and "capture, none" in medians:
        print(f"downtime of a capture: {medians['capture, none'].downtime_ms:.0f} ms   (aim: at most {aim:.0f})")


if __name__ == "__main__":
    main()
