"""The warning that guest memory crosses a network in the clear: once in a process for each address.

Rules of this file: it warns, it refuses nothing. Who calls it knows that there is no TLS.
"""

from __future__ import annotations

import logging
import threading

from multifd.transport.access import Access
from multifd.transport.address import Uri
from multifd.transport.connection import Connection
from multifd.transport.handed import HandedConnections
from multifd.transport.listen import Listener

_LOG = logging.getLogger(__name__)
_MOST = 1024
"""Addresses that are remembered; to those after them there is no warning."""
_lock = threading.Lock()
_warned: set[str] = set()


def warn_arriving(listener: Listener | HandedConnections, access: Access) -> None:
    """Warn if what arrives at a listener has crossed a network.

    Args:
        listener: where this process listens, without TLS.
        access: who may connect.
    """
    if isinstance(listener, Listener) and listener.is_exposed:
        anybody = "" if access.allow else ", from whoever reaches this address (allow limits that)"
        _warn(listener.uri, f"guest memory arrives in the clear, with every secret that is in it{anybody}")


def warn_leaving(connection: Connection, uri: Uri) -> None:
    """Warn if what is sent crosses a network.

    Args:
        connection: to the destination, without TLS.
        uri: of the destination.
    """
    if connection.is_exposed:
        _warn(uri, "guest memory leaves this host in the clear, with every secret that is in it")


def _warn(uri: Uri, words: str) -> None:
    with _lock:
        if str(uri) in _warned or len(_warned) >= _MOST:
            return
        _warned.add(str(uri))
    _LOG.warning("%s is no loopback address, and without TLS: %s", uri, words)
