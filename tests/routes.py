"""A relay service in a thread, and migrations through it that go as far as a test says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peer
from peer import Destination, is_closed

from multifd.service.metrics import Metrics
from multifd.service.route import Ended
from multifd.service.service import RelayService, Request
from multifd.service.systemd import Notifier

DEADLINE_S = 60
BLOCK = 64 * peer.PAGE


class Migration:
    """Of one channel, without a return path, as two QEMUs have it; it is under way once this is made.

    Args:
        uri: where the route listens.
        destination: where it goes on to.
        guest: the uuid that its channel announces.
    """

    def __init__(self, uri: str, destination: Destination, guest: bytes = bytes(16)) -> None:
        self._uri = uri
        self._source: list[socket.socket] = []
        stream = peer.main_stream([(b"ram", BLOCK)])
        self._end = stream["end"] + stream["eof"]
        self._main = self.connect(stream["header"] + stream["commands"] + stream["setup"])
        self.channel = self.connect(peer.init(0, uuid=guest) + peer.sync())
        self._outs = [destination.accept(), destination.accept()]

    def connect(self, first: bytes) -> socket.socket:
        """One more connection of the source, and what it starts with."""
        kind, _, where = self._uri.partition(":")
        sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
        sock.settimeout(DEADLINE_S)
        sock.connect(where if kind == "unix" else peer.address(self._uri))
        self._source.append(sock)
        sock.sendall(first)
        return sock

    def finish(self) -> None:
        """To its good end."""
        self._main.sendall(self._end)
        self.channel.close()
        self._main.shutdown(socket.SHUT_WR)
        main, channel = self._outs
        read = b""
        while not read.endswith(self._end):  # a QEMU knows the end by that, and closes
            read += main.recv(1 << 16)
        is_closed(channel)
        main.close()
        channel.close()
        assert self._main.recv(1) == b""
        self._main.close()

    def break_off(self) -> None:
        """The source is killed."""
        for sock in self._source:
            sock.close()

    def main_is_closed(self) -> bool:
        """Whether the relay has closed the source's main; waits for it."""
        return is_closed(self._main)

    def is_closed(self) -> bool:
        """Whether the relay has closed both sides of main; waits for it, and closes everything here."""
        for sock in (self._main, *self._outs):
            is_closed(sock)
        for sock in (*self._source, *self._outs):
            sock.close()
        return True


def is_refused(uri: str) -> bool:
    """Whether nobody listens there, or whoever does closes at once."""
    kind, _, where = uri.partition(":")
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as sock:
        sock.settimeout(DEADLINE_S)
        try:
            sock.connect(where if kind == "unix" else peer.address(uri))
            sock.sendall(b"QEVM\0\0\0\3")  # a stream's start and its version
            return sock.recv(1) == b""
        except (ConnectionError, FileNotFoundError):
            return True


class ServiceThread:
    """`RelayService.run` in a thread."""

    def __init__(
        self, path: Path, *, drain_timeout_s: float = DEADLINE_S, handed: Mapping[str, socket.socket] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.ended: list[Ended] = []
        self.metrics = Metrics()
        self.service = RelayService(
            path, drain_timeout_s=drain_timeout_s, notifier=Notifier(environment or {}), handed=handed or {},
            metrics=self.metrics, on_ended=self.ended.append,
        )  # fmt: skip
        self.has_drained: bool | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.has_drained = self.service.run()

    def ask(self, request: Request) -> None:
        self.service.request(request)

    def uri(self, route: str) -> str:
        return self.service.uris[route]

    def state(self, route: str) -> str:
        return self.service.health()[1]["routes"].get(route, "none")

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    def stop(self, request: Request = Request.CANCEL) -> bool:
        """Ask for the end and wait for it; whether all drained."""
        self.ask(request)
        return self.join()

    def join(self) -> bool:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the service hangs"
        assert self.has_drained is not None, "it raised"
        return self.has_drained


def wait_for(condition: Callable[[], Any]) -> None:
    """Until it holds; a test fails if it does not within a minute."""
    deadline = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        pause.wait(0.01)
