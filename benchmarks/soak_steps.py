"""What a long run does: migrations of every kind, one after another, each compared byte for byte; for `soak`."""

from __future__ import annotations

import collections
import contextlib
import mmap
import random
import shutil
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from relay_process import DEADLINE_S, METHODS, Relay, make_ram

import multifd
from multifd import registry
from multifd.cli.new_credentials import new_credentials
from multifd.engine.canceller import Canceller
from multifd.errors import Cancelled, MultifdError

ADAPTIVE = ("zlib:level=auto", "zstd:level=auto")
ABANDONED_S = 5.0
"""How long a destination waits for a source that may have been cancelled before it connected."""
STRANGERS = (
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\0",
    b"QEVM\0\0\0\3",
    b"\x11\x22\x33\x44\0\0\0\1",
    bytes(400),
)


class Failed(Exception):
    """A migration that did not go as it should, in words."""


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
            multifd.receive(uri, into, on_listening=self._listens, **{"timeout": DEADLINE_S, **options})  # type: ignore[arg-type]
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
            raise Failed("a receiver hangs")


class Soak:
    """What all migrations of a run share.

    Args:
        folder: for files.
        nbytes: of memory.
        seed: of chance.
    """

    def __init__(self, folder: Path, nbytes: int, seed: int) -> None:
        self._folder, self._nbytes, self._rng = folder, nbytes, random.Random(seed)
        self.methods = [*sorted(registry.installed()), *ADAPTIVE]
        (folder / "relay").mkdir()
        new_credentials(folder / "credentials", ["127.0.0.1"])
        self._tls = multifd.Tls(folder / "credentials")
        self.relay = Relay(folder / "relay", 2, 4)
        self._memory = make_ram(seed, nbytes)
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._steps: tuple[Callable[[str], str], ...] = (
            self.memory, self.slow_memory, self.capture, self.live, self.relayed,
            self.among_strangers, self.cancelled, self.encrypted, self.stored,
        )  # fmt: skip

    def step(self) -> None:
        """One migration, of a kind and by a method drawn anew.

        Raises:
            Failed: it did not go as it should.
        """
        run, method = self._rng.choice(self._steps), self._rng.choice(self.methods)
        if problem := run(method):
            raise Failed(f"{run.__name__} by {method}: {problem}")
        self.outcomes[run.__name__.replace("_", " ")] += 1
        self.outcomes[f"by {method}"] += 1

    def _uri(self) -> str:
        return self._rng.choice(("tcp:127.0.0.1:0", f"unix:{self._folder}/socket"))

    def _channels(self) -> int:
        return self._rng.choice((1, 2, 3, 8))

    def memory(self, method: str) -> str:
        """A buffer into another one."""
        into = bytearray(self._nbytes)
        return self._send(method, Receiver(self._uri(), into, methods=[_name(method)])) or _compare(into, self._memory)

    def slow_memory(self, method: str) -> str:
        """The same for a second, in the limit's pieces."""
        into = bytearray(self._nbytes)
        receiver = Receiver(self._uri(), into, methods=[_name(method)])
        return self._send(method, receiver, max_bandwidth=self._nbytes) or _compare(into, self._memory)

    def capture(self, method: str) -> str:
        """Into a file, and out of it again."""
        path, into = self._folder / "vm.ram", bytearray(self._nbytes)
        form = self._rng.choice(("raw", "mapped-ram"))
        problem = self._send(method, Receiver(self._uri(), path, methods=[_name(method)], format=form))
        if not problem:
            back = Receiver(self._uri(), into, methods=[_name(method)])
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
                    problem = self._send(method, Receiver(self._uri(), there, methods=[_name(method)]), source=live)
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
        public = method if _name(method) in METHODS else "none"
        return self._send(public, receiver, uri=self.relay.uris[route]) or _compare(into, self._memory)

    def among_strangers(self, method: str) -> str:
        """A crowd comes to the destination's port before the source does, and to the relay's."""
        into = bytearray(self._nbytes)
        receiver = Receiver("tcp:127.0.0.1:0", into, methods=[_name(method)])
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
        receiver = Receiver(self._uri(), into, methods=[_name(method)], timeout=ABANDONED_S)
        timer = threading.Timer(self._rng.random() * 0.3, canceller.cancel)
        timer.start()
        try:
            problem = self._send(method, receiver, max_bandwidth=2 * self._nbytes, canceller=canceller)
        finally:
            timer.join()
        if problem == "cancelled":
            self.outcomes["cancelled in time"] += 1
            return ""
        return problem or _compare(into, self._memory)

    def encrypted(self, method: str) -> str:
        """By TLS, with certificates."""
        into = bytearray(self._nbytes)
        receiver = Receiver("tcp:127.0.0.1:0", into, methods=[_name(method)], tls=self._tls)
        return self._send(method, receiver, tls=self._tls) or _compare(into, self._memory)

    def stored(self, method: str) -> str:
        """As streams in a folder, which are sent from there."""
        folder, into = self._folder / "vm.streams", bytearray(self._nbytes)
        try:
            multifd.send(multifd.MemoryImage(self._memory), f"dir:{folder}", method, channels=self._channels())
            receiver = Receiver(self._uri(), into, methods=[_name(method)])
            return self._send(None, receiver, source=f"dir:{folder}", channels=None) or _compare(into, self._memory)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _send(
        self, method: str | None, receiver: Receiver, *, source: object = None, uri: str = "", **options: object
    ) -> str:
        """What is wrong; empty if nothing."""
        try:
            multifd.send(
                multifd.MemoryImage(self._memory) if source is None else source,  # type: ignore[arg-type]
                uri or receiver.uri, method, **{"channels": self._channels(), "timeout": DEADLINE_S, **options},  # type: ignore[arg-type]
            )  # fmt: skip
        except Cancelled:
            return "cancelled"
        except MultifdError as e:
            receiver.join()  # else it has not said its word yet
            return f"{type(e).__name__}: {e}; the destination: {receiver.error or 'nothing'}"
        finally:
            receiver.join()
        return receiver.error


def _compare(found: bytes | bytearray, expected: bytes) -> str:
    return "" if found == expected else "other memory arrived"


def _name(method: str) -> str:
    """A method's name, without its options."""
    return method.split(":")[0]
