"""A small HTTP server for Prometheus and for health checks: ``/metrics`` and ``/health``.

Rules of this file: nothing that is asked for changes anything. A client that is slow or silent holds a thread for a
few seconds, and at most so many do.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import BaseServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any

from multifd.transport.listen import Exhausted, Listener

if TYPE_CHECKING:
    import socket

    from prometheus_client import CollectorRegistry

_LOG = logging.getLogger(__name__)
_PATIENCE_S = 5.0
"""How long a client may take to ask, and to take each piece of the answer."""
_MOST_AT_ONCE = 16
"""Clients; a Prometheus and a few health checks."""
_POLL_S = 0.1
_STOP_S = 10.0

Health = Callable[[], tuple[bool, Mapping[str, Any]]]
"""Whether migrations are taken, and what to say beside."""


class ScrapeServer:
    """Answers until it is closed, in threads of its own.

    Args:
        listener: where; taken over.
        registry: of the metrics.
        health: asked for each ``/health``, in any thread; the answer is 200 or 503, and JSON.
    """

    def __init__(self, listener: Listener, registry: CollectorRegistry, health: Health) -> None:
        self._listener = listener
        self._server = _Server(listener, registry, health)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="scrape", daemon=True)
        self._thread.start()

    @property
    def uri(self) -> str:
        """Where it listens, the port filled in."""
        return str(self._listener.uri)

    def close(self) -> None:
        """Answer nobody any more."""
        self._server.shutdown()
        self._thread.join(_STOP_S)
        self._listener.close()


class _Server(ThreadingMixIn, BaseServer):
    """`socketserver`'s loop over a `Listener`."""

    daemon_threads = True

    def __init__(self, listener: Listener, registry: CollectorRegistry, health: Health) -> None:
        super().__init__(listener.sock.getsockname(), _Handler)
        self._listener = listener
        self.registry, self.health = registry, health
        self._places = threading.BoundedSemaphore(_MOST_AT_ONCE)

    def fileno(self) -> int:
        """What `serve_forever` waits on."""
        return self._listener.sock.fileno()

    def get_request(self) -> tuple[socket.socket, str]:
        """The next client; an OSError lets `serve_forever` go on without one."""
        try:
            accepted = self._listener.accept()
        except Exhausted as e:
            raise OSError(str(e)) from e
        if accepted is None:
            raise OSError("nobody is there any more")
        sock, peer = accepted
        sock.settimeout(_PATIENCE_S)
        return sock, peer

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close at once if too many are being answered."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def shutdown_request(self, request: Any) -> None:
        """The answer is out."""
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, or a defect here; the server goes on."""
        _LOG.info("%s: its request was not answered", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "multifd"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer."""
        match self.path.partition("?")[0]:
            case "/metrics":
                from prometheus_client.exposition import choose_encoder

                try:
                    encode, kind = choose_encoder(self.headers.get("Accept", ""))
                except (TypeError, ValueError):  # it is asked for a version that is none
                    encode, kind = choose_encoder("")
                self._answer(HTTPStatus.OK, kind, encode(self.server.registry))
            case "/health":
                is_ready, document = self.server.health()
                status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "application/json", json.dumps(document).encode() + b"\n")
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics and /health are here\n")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Each request, for whoever looks for it."""
        _LOG.debug(format, *args)

    def address_string(self) -> str:
        """The client's name, which `Listener` has made."""
        return str(self.client_address)
