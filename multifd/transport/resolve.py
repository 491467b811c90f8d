"""Host names to addresses, by a deadline.

getaddrinfo cannot be interrupted: a resolver that does not answer holds it for as long as /etc/resolv.conf says. So
names are looked up in a thread that is left behind if it is too late; it ends when the resolver gives up. Numeric
addresses need no thread.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from multifd import threads
from multifd.transport.address import Uri

_POLL_S = 0.05
"""How long a call may go on after `check` would raise."""
Address = tuple[socket.AddressFamily, Any]
"""A family, and an address of it as `socket.connect` takes it."""


def resolve(uri: Uri, timeout_s: float, check: Callable[[], None] = lambda: None, *, flags: int = 0) -> list[Address]:
    """The addresses of a tcp URI, in the order in which they should be tried.

    Args:
        uri: with a host, or without: all addresses with AI_PASSIVE in `flags`, else the loopback.
        timeout_s: how long it may take.
        check: called about twenty times a second; what it raises ends the wait.
        flags: of getaddrinfo.

    Raises:
        OSError: there is no such host, or the resolver did not answer in time (TimeoutError).
    """
    try:
        return _look_up(uri, flags | socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name
    lookup = _Lookup(uri, flags)
    deadline = time.monotonic() + timeout_s
    while not lookup.done.wait(max(0.0, min(_POLL_S, deadline - time.monotonic()))):
        check()
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the resolver did not answer for {uri.host!r}")
    if lookup.error is not None:
        raise lookup.error
    return lookup.found


class _Lookup:
    """getaddrinfo in a thread of its own."""

    def __init__(self, uri: Uri, flags: int) -> None:
        self.found: list[Address] = []
        self.error: OSError | UnicodeError | None = None
        self.done = threading.Event()
        threads.start(threading.Thread(target=self._run, args=(uri, flags), name="multifd_resolve", daemon=True))

    def _run(self, uri: Uri, flags: int) -> None:
        try:
            self.found = _look_up(uri, flags)
        except (OSError, UnicodeError) as e:
            self.error = e
        finally:
            self.done.set()


def _look_up(uri: Uri, flags: int) -> list[Address]:
    found = socket.getaddrinfo(uri.host or None, uri.port, type=socket.SOCK_STREAM, flags=flags)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))
