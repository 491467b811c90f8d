"""QEMU's monitor: on its QMP socket, or through libvirt.

Rules of this file: every command has a deadline; what goes wrong is a `ControlError`, and a `MonitorLost` if nobody
knows whether the command was run. A monitor belongs to the thread that made it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import subprocess
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from multifd.errors import ControlError, about

if TYPE_CHECKING:
    from qemu.qmp import EventListener, QMPClient

_T = TypeVar("_T")
COMMAND_S = 60.0
"""Of one command: QEMU answers none while it flushes disks or saves devices under its lock."""
_GREETING_S = 10.0
"""Of connecting: a monitor that serves another client says nothing at all."""


class MonitorLost(ControlError):
    """The connection ended, or an answer did not come: whether QEMU has run the command is not known."""


class Refused(ControlError):
    """QEMU ran the command and said no."""


class Monitor(Protocol):
    """What captures and restores need of a monitor."""

    @property
    def address(self) -> dict[str, str]:
        """What `open_monitor` takes to find it again; plain values."""

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its answer; underscores in names of arguments stand for dashes.

        Raises:
            Refused: by QEMU, in its words.
            MonitorLost: there was no answer.
        """

    def resume(self) -> None:
        """Let the guest run."""

    def stood_still_ms(self) -> float | None:
        """From when it last stopped to when it went on, by QEMU's clock; None if that is not known."""

    def reopen(self) -> None:
        """Connect again after a `MonitorLost`.

        Raises:
            MonitorLost: it cannot be had.
        """

    def close(self) -> None:
        """Disconnect. Twice is harmless."""


def open_monitor(qmp: str | os.PathLike[str] = "", libvirt: str = "", connect: str = "") -> Monitor:
    """A monitor, by one of two ways.

    Args:
        qmp: path of QEMU's QMP socket.
        libvirt: name, uuid or id of a domain.
        connect: libvirt's URI; its own default if empty.

    Raises:
        ControlError: it cannot be had.
    """
    if bool(qmp) == bool(libvirt):
        raise about(ControlError("expected a QMP socket or a libvirt domain, one of the two"), "qmp")
    if libvirt:
        return LibvirtMonitor(libvirt, connect)
    return QmpMonitor(os.fspath(qmp))


def _named(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}


class QmpMonitor:
    """A QMP socket, by the library of the QEMU project.

    Args:
        path: of the unix socket.
    """

    def __init__(self, path: str) -> None:
        self._path = os.path.abspath(path)
        self._loop = asyncio.new_event_loop()
        self._client: QMPClient | None = None
        self._events: EventListener | None = None
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> dict[str, str]:
        """See `Monitor`."""
        return {"qmp": self._path}

    def execute(self, command: str, **arguments: Any) -> Any:
        """See `Monitor`."""
        from qemu.qmp import ExecuteError, QMPError

        if self._client is None:
            raise MonitorLost(f"{self._path}: QEMU's monitor is not connected")
        try:
            return self._wait(self._client.execute(command, _named(arguments)), COMMAND_S)
        except ExecuteError as e:
            raise Refused(f"QEMU refused {command}: {e}") from e
        except TimeoutError as e:
            raise MonitorLost(f"{self._path}: QEMU did not answer {command} in {COMMAND_S:g} s") from e
        except (QMPError, OSError, EOFError) as e:
            raise MonitorLost(f"{self._path}: QEMU's monitor was closed during {command}") from e

    def resume(self) -> None:
        """See `Monitor`."""
        self.execute("cont")

    def stood_still_ms(self) -> float | None:
        """See `Monitor`."""
        with contextlib.suppress(ControlError):
            self.execute("query-status")  # what happened before its answer was said before it
        at: dict[str, float] = {}
        for event in self._events.clear() if self._events is not None else ():
            stamp = event["timestamp"]
            if isinstance(stamp, dict):
                at[str(event["event"])] = stamp["seconds"] * 1e3 + stamp["microseconds"] / 1e3
        if "STOP" not in at or at.get("RESUME", 0.0) < at["STOP"]:
            return None
        return round(at["RESUME"] - at["STOP"], 3)

    def reopen(self) -> None:
        """See `Monitor`."""
        self._disconnect()
        self._connect()

    def close(self) -> None:
        """See `Monitor`."""
        if not self._loop.is_closed():
            self._disconnect()
            self._loop.close()

    def _connect(self) -> None:
        from qemu.qmp import ConnectError, EventListener, QMPClient

        client = QMPClient("multifd")
        client.logger = logging.getLogger(f"{__name__}.qmp")  # what it has to say comes as an exception too
        client.logger.setLevel(logging.CRITICAL + 1)
        try:
            self._wait(client.connect(self._path), _GREETING_S)
        except TimeoutError as e:
            self._client = client
            raise MonitorLost(
                f"{self._path}: no greeting in {_GREETING_S:g} s; a QMP socket serves one client at a time, and "
                "another may be connected"
            ) from e
        except (ConnectError, OSError, EOFError) as e:
            cause = e.exc if isinstance(e, ConnectError) else e
            words = (isinstance(cause, OSError) and cause.strerror) or str(cause) or type(cause).__name__
            raise MonitorLost(f"{self._path}: cannot connect to QEMU's monitor there: {words}") from e
        self._client = client
        self._events = EventListener(("STOP", "RESUME"))
        client.register_listener(self._events)

    def _disconnect(self) -> None:
        if self._client is not None:
            # How a connection ended does not matter any more.
            with contextlib.suppress(Exception):
                self._wait(self._client.disconnect(), _GREETING_S)
        self._client = None

    def _wait(self, what: Awaitable[_T], seconds: float) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(what, seconds))


class LibvirtMonitor:
    """The monitor of a libvirt domain, through ``virsh``.

    Args:
        domain: name, uuid or id.
        connect: libvirt's URI; its own default if empty.
    """

    def __init__(self, domain: str, connect: str = "") -> None:
        self._domain, self._connect = domain, connect
        self.execute("query-status")

    @property
    def address(self) -> dict[str, str]:
        """See `Monitor`."""
        return {"libvirt": self._domain, "connect": self._connect}

    def execute(self, command: str, **arguments: Any) -> Any:
        """See `Monitor`."""
        message = json.dumps({"execute": command, "arguments": _named(arguments)})
        said = self._virsh(command, "qemu-monitor-command", "--domain", self._domain, "--cmd", message)
        try:
            answer = json.loads(said)
            if "error" in answer:
                raise Refused(f"QEMU refused {command}: {answer['error']['desc']}")
            return answer["return"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise MonitorLost(f"{self._domain}: virsh answered {command} with {said[:80]!r}, expected QMP") from e

    def resume(self) -> None:
        """See `Monitor`; libvirt does it, so that it knows."""
        self._virsh("cont", "resume", "--domain", self._domain)

    def stood_still_ms(self) -> float | None:
        """See `Monitor`; libvirt keeps QEMU's events for itself."""
        return None

    def reopen(self) -> None:
        """See `Monitor`; every command has a connection of its own."""

    def close(self) -> None:
        """See `Monitor`."""

    def _virsh(self, what: str, *words: str) -> str:
        command = ["virsh", *(["--connect", self._connect] if self._connect else []), "--quiet", *words]
        try:
            # A signal from the terminal is for us: virsh finishes what it was asked.
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=COMMAND_S, start_new_session=True, check=False,
            )  # fmt: skip
        except FileNotFoundError as e:
            raise about(ControlError("virsh is missing (apt-get install libvirt-clients)"), "libvirt") from e
        except subprocess.TimeoutExpired as e:
            raise MonitorLost(f"{self._domain}: virsh did not answer {what} in {COMMAND_S:g} s") from e
        if done.returncode:
            raise MonitorLost(f"{self._domain}: virsh, {what}: {' '.join(done.stderr.split())}")
        return done.stdout
