"""What systemd and a service of type ``notify`` say to each other.

Both protocols are a few lines, stable by promise, and documented (sd_notify(3), sd_listen_fds(3)); the packages that
have them need systemd's headers to build, or have not been kept since 2017.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping

_FIRST_FD = 3  # SD_LISTEN_FDS_START, sd_listen_fds(3)
_MOST_FDS = 1024
"""Descriptors that are looked at; systemd's own default limit of a service."""


class Notifier:
    """Tells systemd what the service does; without systemd it tells nobody.

    Thread rule: any thread.

    Args:
        environment: the process's; NOTIFY_SOCKET and WATCHDOG_USEC are read.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s(environment)
        """Within this time `alive` must be called again; None: nobody watches."""

    def ready(self, status: str) -> None:
        """It serves now: after its start, and after settings were read again."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Settings are being read; `ready` follows in any case."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """It takes nothing new and will end."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """The watchdog need not end it."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._address:
            # Nobody may be there any more to hear it; the service goes on all the same, as sd_notify(3) advises.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.connect(self._address)
                sock.send("\n".join(line.replace("\n", " ") for line in lines).encode("utf-8", "backslashreplace"))


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    usec, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not usec.isdecimal() or int(usec) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(usec) / 1e6


def listening(environment: Mapping[str, str]) -> dict[str, socket.socket]:
    """The sockets that systemd listens at for this process, by their FileDescriptorName=.

    Args:
        environment: the process's; LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES are read.

    Returns:
        Each socket, close-on-exec and the caller's; the first of those that share a name. Empty if there are none.
    """
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return {}
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, socket.socket] = {}
    for i in range(min(int(count), _MOST_FDS)):
        name = names[i] if i < len(names) and names[i] else "unknown"  # what sd_listen_fds_with_names(3) says then
        with contextlib.suppress(OSError):  # a descriptor that is no socket, such as a FIFO of the same unit
            sock = socket.socket(fileno=_FIRST_FD + i)
            sock.set_inheritable(False)
            if found.setdefault(name, sock) is not sock:
                sock.close()
    return found
