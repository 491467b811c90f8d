"""One route: a thread that passes one migration after another on.

Rules of this file: nothing that goes wrong in a route leaves its thread: a migration that fails is counted and told,
and the next one is waited for. The listening socket stays from one migration to the next, so nobody is refused in
between. Only `run` and what it calls run in the route's thread; everything else may be called from any.
"""

from __future__ import annotations

import gc
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from multifd.engine.canceller import Canceller
from multifd.engine.relay import Relay
from multifd.errors import Cancelled, MultifdError, UsageError
from multifd.service import log
from multifd.service.config import RouteSettings, of_route
from multifd.service.metrics import UNOBSERVED, Observer
from multifd.stats import RelayResult
from multifd.transport import clear
from multifd.transport.accept import Acceptor
from multifd.transport.incoming import Incoming, PlainIncoming
from multifd.transport.listen import Listener

_PAUSES_S = (1.0, 2.0, 5.0, 10.0)
"""After a route failed itself, such as when its address is lost: how long until it tries again, longer each time."""
CUT_S = 20.0
"""How long a route may take to end once it was cancelled: `multifd.engine.crew.JOIN_S`, and some."""
_STUCK_S = 30.0
"""A route that has not turned for so long hangs; the longest that it may be busy between migrations is a tear-down,
`multifd.engine.crew.JOIN_S` and a few waits of seconds."""


@dataclass(frozen=True)
class Ended:
    """A migration that has ended."""

    route: str
    migration: str
    """Its id, as the log has it."""
    result: RelayResult


class Route:
    """Passes migrations on until it is drained.

    Args:
        settings: how; those of the next migration can be changed.
        open_listener: gives a listener, again after one has broken.
        on_ended: called in the route's thread after each migration.
        on_over: called in it at the very end.

    Raises:
        ChannelError: the address cannot be had.
    """

    def __init__(
        self,
        settings: RouteSettings,
        open_listener: Callable[[], Listener],
        on_ended: Callable[[Ended], None],
        on_over: Callable[[], None],
    ) -> None:
        self.settings, self._open_listener = settings, open_listener
        self._observer: Observer = UNOBSERVED
        self._on_ended, self._on_over = on_ended, on_over
        self._listener: Listener | None = open_listener()
        self._acceptor: Acceptor | None = None
        self._lock = threading.Lock()
        self._relay: Relay | None = None
        self._canceller = Canceller()
        self._is_draining = threading.Event()
        self._has_failed = self._has_told = False
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"route_{settings.name}", daemon=True)

    @property
    def name(self) -> str:
        """The route's."""
        return self.settings.name

    @property
    def state(self) -> str:
        """waiting, active (a migration is under way), draining, failed (sources cannot connect), stuck, or over."""
        if not self._thread.is_alive():
            return "over"
        if time.monotonic() - self._beat > _STUCK_S:
            return "stuck"
        if self._is_draining.is_set():
            return "draining"
        if self._has_failed:
            return "failed"
        return "active" if self.is_active else "waiting"

    @property
    def is_active(self) -> bool:
        """Whether a migration is under way."""
        relay = self._relay
        return relay is not None and relay.is_passing and self._thread.is_alive()

    def start(self, observer: Observer) -> None:
        """Begin to serve.

        Args:
            observer: is told what is counted, in the route's thread.
        """
        self._observer = observer
        listener = self._listener
        with log.tag(route=self.name):
            log.event(
                "listening", f"listening on {listener.uri if listener else '?'}, on to {self.settings.relay.to}",
                listen=str(listener.uri) if listener else "", to=str(self.settings.relay.to),
            )  # fmt: skip
            if listener is not None and self.settings.in_tls is None:
                clear.warn_arriving(listener, self.settings.access)
        self._thread.start()

    @property
    def uri(self) -> str:
        """Where sources connect, the port filled in; empty while they cannot."""
        listener = self._listener
        return str(listener.uri) if listener else ""

    def check(self, settings: RouteSettings) -> None:
        """Raise unless the route can go by other settings.

        Raises:
            UsageError: who may connect cannot be said, or not without listening anew.
        """
        listener = self._listener
        try:
            if listener is not None:
                listener.check(settings.access)
        except UsageError as e:
            raise of_route(settings.name, e) from e

    def reconfigure(self, settings: RouteSettings, open_listener: Callable[[], Listener]) -> None:
        """Go by other settings from the next migration on, and for who may connect from now on; where it listens stays.

        Who connects is asked for TLS by the new ones at once, so that a certificate that was revoked opens no
        connection any more; one that is there stays as it began.

        Args:
            settings: something that `check` takes.
            open_listener: as in the constructor.
        """
        with self._lock:
            self.settings, self._open_listener = settings, open_listener
            if (listener := self._listener) is not None:
                listener.reconfigure(settings.access)
            if self._relay is not None:
                self._relay.reconfigure(settings.relay)

    def drain(self) -> None:
        """Take no further migration; one that is under way goes on to its end."""
        with self._lock:
            self._is_draining.set()
            if self._relay is not None:
                self._relay.drain()

    def cancel(self) -> None:
        """Drain, and end the migration that is under way."""
        self.drain()
        self._canceller.cancel()

    def close(self) -> None:
        """End in any case; twice is harmless."""
        if self._thread.ident is not None:
            self.cancel()
            self.join(CUT_S)
        elif self._listener is not None:
            self._listener.close()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end; whether it has come."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # -- the route's thread -------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        with log.tag(route=self.name):
            try:
                while not self._is_draining.is_set():
                    self._beat = time.monotonic()
                    if self._serve_one():
                        failures = 0
                        continue
                    self._close()
                    self._beat = time.monotonic()
                    pause = _PAUSES_S[min(failures, len(_PAUSES_S) - 1)]
                    self._is_draining.wait(pause)
                    failures += 1
            finally:
                self._close()
                self._observer.up(False)
                self._on_over()

    def _close(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        if self._listener is not None:
            self._listener.close()
        self._acceptor = self._listener = None

    def _serve_one(self) -> bool:
        """Wait for one migration and pass it on; whether the route itself is sound."""
        migration = uuid.uuid4().hex[:12]
        with log.tag(migration=migration):
            try:
                relay = self._prepare()
            except MultifdError as e:
                self._fail(str(e))
                return False
            try:
                result: RelayResult = relay.run()
            except MultifdError as e:
                if not relay.has_begun:
                    self._observer.forget()
                    if not isinstance(e, Cancelled):
                        self._fail(str(e))
                    return isinstance(e, Cancelled)
                result = e.result
            except Exception as e:
                # A defect here or in a plugin: it ends this migration, not the others, and is told with all there is.
                log.event("defect", f"a bug in multifd, please report it: {e!r}", logging.ERROR, exc_info=True)
                result = getattr(e, "result", None) or relay.result
            finally:
                self._canceller.release()
            if result.status != "completed":
                relay.turn_away_late()
                result = relay.result
            self._tell(Ended(self.name, migration, result))
        # What is over refers to itself in circles, with its buffers: a service does not wait until somebody looks.
        with self._lock:
            self._relay = None
        del relay
        gc.collect()
        return True

    def _prepare(self) -> Relay:
        """A relay for the next migration.

        Raises:
            MultifdError: the address cannot be had again, or a method cannot be had any more.
        """
        if self._listener is None:
            self._listener = self._open_listener()
        if self._acceptor is None:
            self._acceptor = Acceptor(self._listener, self.settings.relay.timeout_s, self._receive)
        with self._lock:
            self._relay = relay = Relay(self._acceptor, self.settings.relay, self._canceller, self._progress)
            if self._is_draining.is_set():
                relay.drain()
        self._has_failed = self._has_told = False
        self._observer.up(True)
        return relay

    def _receive(self, sock: socket.socket, peer: str) -> Incoming:
        """What a new connection is read through, by the settings that hold when it comes."""
        tls = self.settings.in_tls
        return PlainIncoming(sock, peer) if tls is None else tls.open(sock, peer)

    def _progress(self, result: RelayResult) -> None:
        self._beat = time.monotonic()
        self._observer.update(result)
        if result.status == "active" and not self._has_told:
            self._has_told = True
            log.event("migration-began", "a source has connected")

    def _fail(self, why: str) -> None:
        self._has_failed = True
        self._observer.forget()
        self._observer.up(False)
        log.event("route-failed", f"sources cannot connect: {why}", logging.ERROR)

    def _tell(self, ended: Ended) -> None:
        self._observer.finish(ended.result)
        result = ended.result
        words = f"{result.in_method or '?'} -> {result.out_method}, {result.channels} channels, "
        words += f"{result.total_time_ms / 1e3:.1f} s, {result.bytes_in} bytes in, {result.bytes_out} out"
        if result.error:
            words = "; ".join([result.error, *result.notes, words])
        level = logging.INFO if result.status == "completed" else logging.WARNING
        log.event(f"migration-{result.status}", f"migration {result.status}: {words}", level, result=result.as_dict())
        self._on_ended(ended)
