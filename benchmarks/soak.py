"""One long run of everything: migrations by every installed method, captures, live arenas, a relay service, strangers.

``make soak MINUTES=60``, or ``python benchmarks/soak.py --minutes 60 --svg soak.svg``. One process is source and
destination of one migration after another, by a method, channels, kind of memory and way drawn anew for each; some are
cancelled, some meet strangers on their port, some pass through a relay service that runs all the time. Each is
compared byte for byte. After each, the memory, descriptors, threads and files of this process and of the relay are
noted. Once it is warm, none of them may grow: a line through each says by how much it did.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import json
import mmap
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from soak_figure import Series, picture
from soak_relay import Relay, make_ram

import multifd
from multifd import registry
from multifd.engine.canceller import Canceller
from multifd.errors import Cancelled, MultifdError

DEADLINE_S = 120.0
WARM = 0.25
"""The share of a run before memory, descriptors and threads are judged: methods are loaded, malloc has its arenas."""
MOST = {"MiB": 24.0, "descriptors": 1.5, "threads": 1.5, "files": 0.5}
"""By how much the line may rise over the rest of the run; memory as in `soak_relay`: malloc keeps some for itself."""
STRANGERS = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\0",
    b"QEVM\0\0\0\3",
    b"\x11\x22\x33\x44\0\0\0\1",
    bytes(400),
)


@dataclass(frozen=True)
class Held:
    """What a process holds between two migrations."""

    mib: float
    descriptors: int
    threads: int


def held(pid: int | str) -> Held:
    """Of a process, by proc(5)."""
    folder = Path(f"/proc/{pid}")
    lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    return Held(int(lines["VmRSS"].split()[0]) / 1024, len(os.listdir(folder / "fd")), int(lines["Threads"]))


class Receiver:
    """`multifd.receive` in a thread."""

    def __init__(self, uri: str, into: object, **options: object) -> None:
        self.uri, self.error = "", ""
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(uri, into, options))
        self._thread.start()
        self._listening.wait(DEADLINE_S)

    def _run(self, uri: str, into: object, options: dict[str, object]) -> None:
        try:
            multifd.receive(uri, into, timeout=DEADLINE_S, on_listening=self._listens, **options)  # type: ignore[arg-type]
        except MultifdError as e:
            self.error = str(e) or type(e).__name__
        finally:
            self._listening.set()

    def _listens(self, uri: str) -> None:
        self.uri = uri
        self._listening.set()

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        if self._thread.is_alive():
            raise SystemExit("a receiver hangs")


class Soak:
    """What all migrations of a run share.

    Args:
        folder: for files.
        nbytes: of memory.
        seed: of chance.
    """

    def __init__(self, folder: Path, nbytes: int, seed: int) -> None:
        self._folder, self._nbytes, self._rng = folder, nbytes, random.Random(seed)
        self.methods = sorted(registry.installed())
        (folder / "relay").mkdir()
        self.relay = Relay(folder / "relay", 2, 4)
        self._memory = make_ram(seed, nbytes)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._steps: tuple[Callable[[str], str], ...] = (
            self.memory, self.slow_memory, self.capture, self.live, self.relayed,
            self.among_strangers, self.cancelled,
        )  # fmt: skip

    def step(self) -> None:
        """One migration, of a kind and by a method drawn anew."""
        run, method = self._rng.choice(self._steps), self._rng.choice(self.methods)
        if problem := run(method):
            raise SystemExit(f"{run.__name__} by {method}: {problem}")
        self.outcomes[run.__name__.replace("_", " ")] += 1
        self.outcomes[f"by {method}"] += 1

    def _uri(self) -> str:
        return self._rng.choice(("tcp:127.0.0.1:0", f"unix:{self._folder}/socket"))

    def _channels(self) -> int:
        return self._rng.choice((1, 2, 3, 8))

    def memory(self, method: str) -> str:
        """A buffer into another one."""
        into = bytearray(self._nbytes)
        return self._send(method, Receiver(self._uri(), into, methods=[method])) or _compare(into, self._memory)

    def slow_memory(self, method: str) -> str:
        """The same for a second, in the limit's pieces."""
        into = bytearray(self._nbytes)
        receiver = Receiver(self._uri(), into, methods=[method])
        return self._send(method, receiver, max_bandwidth=self._nbytes) or _compare(into, self._memory)

    def capture(self, method: str) -> str:
        """Into a file, and out of it again."""
        path, into = self._folder / "vm.ram", bytearray(self._nbytes)
        form = self._rng.choice(("raw", "mapped-ram"))
        problem = self._send(method, Receiver(self._uri(), path, methods=[method], format=form))
        if not problem:
            back = Receiver(self._uri(), into, methods=[method])
            problem = self._send(method, back, source=path, dialect="9.0") or _compare(into, self._memory)
        path.unlink(missing_ok=True)
        return problem

    def live(self, method: str) -> str:
        """An arena that is written meanwhile, into another one."""
        source, into = (mmap.mmap(-1, self._nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(2))
        with source, into:
            source[:] = self._memory
            is_over, lock = threading.Event(), threading.Lock()

            def write() -> None:
                rng = random.Random(1)
                while not is_over.wait(0.001):
                    with lock:
                        at = rng.randrange(self._nbytes - 8)
                        source[at : at + 8] = rng.randbytes(8)

            writer = threading.Thread(target=write)
            writer.start()
            try:
                with multifd.Arena(source) as here, multifd.Arena(into) as there:
                    live = multifd.Live(here, pause=lock.acquire, resume=lock.release)
                    problem = self._send(method, Receiver(self._uri(), there, methods=[method]), source=live)
                return problem or _compare(into[:], source[:])
            finally:
                is_over.set()
                if lock.locked():
                    lock.release()
                writer.join()

    def relayed(self, method: str) -> str:
        """Through the service, whose routes compress by methods of their own."""
        route = self._rng.choice(self.relay.names)
        into = bytearray(self._nbytes)
        receiver = Receiver(self.relay.to(route), into)
        public = method if method in ("none", "zlib", "zstd") else "none"
        return self._send(public, receiver, uri=self.relay.uris[route]) or _compare(into, self._memory)

    def among_strangers(self, method: str) -> str:
        """A crowd comes to the destination's port before the source does, and to the relay's."""
        into = bytearray(self._nbytes)
        receiver = Receiver("tcp:127.0.0.1:0", into, methods=[method])
        ports = [receiver.uri, *(uri for uri in self.relay.uris.values() if uri.startswith("tcp:"))]
        with contextlib.ExitStack() as stack:
            for i in range(60):
                with contextlib.suppress(OSError):
                    host, port = ports[i % len(ports)].split(":")[1:]
                    sock = stack.enter_context(socket.create_connection((host, int(port)), DEADLINE_S))
                    sock.sendall(STRANGERS[i % len(STRANGERS)])
                    if i % 3:
                        sock.close()
            return self._send(method, receiver) or _compare(into, self._memory)

    def cancelled(self, method: str) -> str:
        """Somewhere in the middle, from another thread."""
        canceller, into = Canceller(), bytearray(self._nbytes)
        receiver = Receiver(self._uri(), into, methods=[method])
        timer = threading.Timer(self._rng.random() * 0.3, canceller.cancel)
        timer.start()
        try:
            problem = self._send(method, receiver, max_bandwidth=2 * self._nbytes, canceller=canceller)
        finally:
            timer.join()
        return "" if problem.startswith("cancelled") else problem or _compare(into, self._memory)

    def _send(self, method: str, receiver: Receiver, *, source: object = None, uri: str = "", **options: object) -> str:
        """What is wrong; empty if nothing."""
        try:
            multifd.send(
                multifd.MemoryImage(self._memory) if source is None else source,  # type: ignore[arg-type]
                uri or receiver.uri, method, channels=self._channels(), timeout=DEADLINE_S, **options,  # type: ignore[arg-type]
            )  # fmt: skip
        except Cancelled:
            return "cancelled"
        except MultifdError as e:
            return f"{e}; the destination: {receiver.error or 'nothing'}"
        finally:
            receiver.join()
        return receiver.error


def _compare(found: bytes | bytearray, expected: bytes) -> str:
    return "" if found == expected else "other memory arrived"


def soak(minutes: float, mebibytes: int, seed: int) -> tuple[list[Series], collections.Counter[str], int]:
    """Run it: what was held over time, and how much was done."""
    rows: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        run = Soak(Path(name), mebibytes << 20, seed)
        start = time.monotonic()
        try:
            while (now := time.monotonic() - start) < 60 * minutes:
                run.step()
                gc.collect()  # what a circle keeps until the collector comes is no leak
                own, relay = held("self"), held(run.relay.process.pid)
                files = len(list(Path(name).iterdir()))
                rows.append(
                    (
                        now / 60,
                        own.mib,
                        own.descriptors,
                        own.threads,
                        files,
                        relay.mib,
                        relay.descriptors,
                        relay.threads,
                    )
                )
        finally:
            run.relay.process.send_signal(signal.SIGTERM)
            status = run.relay.process.wait(2 * DEADLINE_S)
    columns = list(zip(*rows, strict=True))
    names = ["MiB", "descriptors", "threads", "files", "relay's MiB", "relay's descriptors", "relay's threads"]
    at = columns[0]
    return (
        [Series(n, at, values, *_line(at, values)) for n, values in zip(names, columns[1:], strict=True)],
        run.outcomes,
        status,
    )


def _line(at: tuple[float, ...], values: tuple[float, ...]) -> tuple[float, float]:
    """What a line through the warm part rises by over it, and where it begins."""
    first = int(len(at) * WARM)
    if len(at) - first < 8:
        return 0.0, values[-1]
    slope, start = np.polyfit(at[first:], values[first:], 1)
    return float(slope * (at[-1] - at[first])), float(start + slope * at[first])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--mebibytes", type=int, default=8, help="of memory")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--svg", type=Path, help="where to draw it")
    arguments = parser.parse_args()
    series, outcomes, status = soak(arguments.minutes, arguments.mebibytes, arguments.seed)
    print(json.dumps({"migrations": len(series[0].at), **dict(sorted(outcomes.items()))}))
    problems = [f"the relay ended with status {status}"] if status else []
    for one in series:
        most = MOST[one.name.removeprefix("relay's ")]
        print(
            f"{one.name}: {one.start:.1f}, over the warm part {one.rise:+.2f} (at most {most:g}), in all "
            f"{min(one.values):.1f} to {max(one.values):.1f}"
        )
        if one.rise > most:
            problems.append(f"{one.name} grew by {one.rise:.2f}")
    if arguments.svg:
        arguments.svg.write_text(picture(series, WARM))
    for problem in problems:
        print(f"not flat: {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
