"""A QEMU as its monitor shows it: settings, a run state, disks, and migrations that `multifd` does.

`hook` is called before each command with its name and its number; what it raises is what the command does. `serve` puts
it behind a QMP socket.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import multifd
from multifd.errors import MultifdError
from multifd.manage.monitor import MonitorLost, Refused

DEADLINE_S = 60
CAPABILITIES = ("multifd", "xbzrle", "return-path", "pause-before-switchover", "postcopy-ram")
BUSY = ("active", "pre-switchover")


class FakeQemu:
    """Its own monitor. Only one thread drives it."""

    def __init__(self, image: bytes, run_state: str = "running") -> None:
        self.capabilities = dict.fromkeys(CAPABILITIES, False) | {"xbzrle": True, "return-path": True}
        self.parameters: dict[str, Any] = {
            "multifd-channels": 4, "multifd-compression": "zlib", "max-bandwidth": 128 << 20, "tls-creds": "tls0",
            "multifd-zstd-level": 1, "downtime-limit": 300,
        }  # fmt: skip
        self.run_state, self.status = run_state, "none"
        self.snapshots: list[str] = []
        self.driver, self.is_lost, self.has_quit = "qcow2", False, False
        self.commands: list[str] = []
        self.hook: Callable[[str, int], None] = lambda command, number: None
        self._image, self._before = image, run_state
        self._after = "paused" if run_state == "inmigrate" else "postmigrate"
        self._migrating: threading.Thread | None = None
        self._canceller = multifd.Canceller()
        self._error: BaseException | None = None

    def look(self) -> tuple[Any, ...]:
        """Everything that a capture must leave as it was."""
        return dict(self.capabilities), dict(self.parameters), self.run_state, tuple(self.snapshots)

    @property
    def address(self) -> dict[str, str]:
        return {"qmp": "fake"}

    def execute(self, command: str, **arguments: Any) -> Any:
        if self.is_lost:
            raise MonitorLost("the monitor is lost")
        self.commands.append(command)
        self.hook(command, len(self.commands))
        call = getattr(self, "_" + command.replace("-", "_"), None)
        if call is None:
            raise Refused(f"QEMU refused {command}: The command {command} has not been found")
        self._step()
        answer = call(**{name.replace("-", "_"): value for name, value in arguments.items()})
        return {} if answer is None else answer

    def resume(self) -> None:
        self.execute("cont")

    def stood_still_ms(self) -> float | None:
        return None

    def reopen(self) -> None:
        self.is_lost = False

    def close(self) -> None:
        """Nothing to do."""

    def end(self) -> None:
        """Wait for its end of a migration."""
        if self._migrating is not None:
            self._canceller.cancel()
            self._migrating.join(DEADLINE_S)
            assert not self._migrating.is_alive()

    def _step(self) -> None:
        """What QEMU does by itself: an end that is over ends the migration."""
        if self.status == "active" and self._migrating is not None and not self._migrating.is_alive():
            failed = self._error is not None
            self.status = "failed" if failed else "completed"
            self.run_state = self._before if failed else self._after

    def _query_status(self) -> Any:
        return {"status": self.run_state}

    def _query_migrate(self) -> Any:
        figures = {"downtime": 7, "ram": {"dirty-sync-count": 3}} if self.status == "completed" else {}
        error = {"error-desc": "the sender failed"} if self.status == "failed" else {}
        return {"status": self.status, **figures, **error} if self.status != "none" else {}

    def _query_migrate_capabilities(self) -> Any:
        return [{"capability": name, "state": state} for name, state in self.capabilities.items()]

    def _query_migrate_parameters(self) -> Any:
        return dict(self.parameters)

    def _query_commands(self) -> Any:
        return [{"name": "cont"}]

    def _query_block(self) -> Any:
        snapshots = [{"name": name} for name in self.snapshots]
        medium = {"ro": False, "drv": self.driver, "node-name": "#block1", "image": {"snapshots": snapshots}}
        return [{"device": "disk", "inserted": medium}, {"device": "cd"}]

    def _query_uuid(self) -> Any:
        return {"UUID": "00000000-0000-0000-0000-000000000000"}

    def _migrate_set_capabilities(self, capabilities: Any) -> None:
        self._idle()
        self.capabilities |= {entry["capability"]: entry["state"] for entry in capabilities}

    def _migrate_set_parameters(self, **parameters: Any) -> None:
        self.parameters |= {name.replace("_", "-"): value for name, value in parameters.items()}

    def _idle(self) -> None:
        if self.status in BUSY:
            raise Refused("There's a migration process in progress")

    def _migrate(self, uri: str) -> None:
        self._idle()
        self.status = "pre-switchover" if self.capabilities["pause-before-switchover"] else "active"
        self.run_state = "finish-migrate"
        self._uri = uri
        if self.status == "active":
            self._send()

    def _migrate_continue(self, state: str) -> None:
        assert self.status == state
        self.status = "active"
        self._send()

    def _send(self) -> None:
        method, channels = self.parameters["multifd-compression"], self.parameters["multifd-channels"]
        self._migrate_by(
            lambda: multifd.send(self._image, self._uri, method, channels=channels, canceller=self._canceller)
        )

    def _migrate_incoming(self, uri: str) -> None:
        self.status, listening = "active", threading.Event()
        channels, memory = self.parameters["multifd-channels"], bytearray(len(self._image))
        self._migrate_by(
            lambda: multifd.receive(
                uri, memory, format="raw", channels=channels, canceller=self._canceller,
                on_listening=lambda _: listening.set(),
            )
        )  # fmt: skip
        assert listening.wait(DEADLINE_S)

    def _migrate_by(self, end: Callable[[], object]) -> None:
        def run() -> None:
            try:
                end()
            except MultifdError as e:
                self._error = e

        self._migrating = threading.Thread(target=run)
        self._migrating.start()

    def _migrate_cancel(self) -> None:
        if self.status in BUSY:
            self.end()
            self.status, self.run_state = "cancelled", self._before

    def _transaction(self, actions: Any) -> None:
        assert self.run_state == "finish-migrate"
        self.snapshots += [action["data"]["name"] for action in actions]

    def _blockdev_snapshot_delete_internal_sync(self, device: str, name: str) -> None:
        self.snapshots.remove(name)

    def _cont(self) -> None:
        self.run_state = "running"

    def _quit(self) -> None:
        self.has_quit = True


@contextlib.contextmanager
def serve(fake: FakeQemu, path: Path) -> Iterator[None]:
    """Behind a QMP socket, one client after another, until this is left."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            sock, _ = listener.accept()
            with sock, contextlib.suppress(ConnectionError):
                sock.sendall(b'{"QMP": {"version": {}, "capabilities": []}}\n')
                for message in _messages(sock):
                    answer = _answer(fake, message)
                    if answer is None:
                        break
                    sock.sendall(json.dumps({**answer, "id": message.get("id")}).encode() + b"\n")

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(str(path))
        thread.join(DEADLINE_S)
        listener.close()
        assert not thread.is_alive()


def _messages(sock: socket.socket) -> Iterator[dict[str, Any]]:
    """JSON objects; a client need not put line ends between them."""
    text = ""
    while got := sock.recv(1 << 16):
        text += got.decode()
        while text:
            try:
                message, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:].lstrip()
            yield message


def _answer(fake: FakeQemu, message: dict[str, Any]) -> dict[str, Any] | None:
    """None: the connection breaks."""
    if message["execute"] == "qmp_capabilities":
        return {"return": {}}
    try:
        return {"return": fake.execute(message["execute"], **message.get("arguments", {}))}
    except Refused as e:
        return {"error": {"class": "GenericError", "desc": str(e)}}
    except MonitorLost:
        fake.is_lost = False
        return None
