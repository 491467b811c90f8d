"""A relay of several routes: starts them, reads their settings again, drains them, says how they are.

Rules of this file: the caller's thread runs the service and does everything there is to do, one request after another;
`request` only puts a word into its mailbox, so a signal handler may call it. Settings are taken whole or not at all:
every new address is had before any route changes.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import queue
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from multifd.errors import ChannelError, MultifdError, UsageError
from multifd.service import log
from multifd.service.config import RouteSettings, of_route, read
from multifd.service.metrics import UNOBSERVED, Metrics
from multifd.service.route import CUT_S, Ended, Route
from multifd.service.systemd import Notifier
from multifd.transport.listen import Listener

_TURN_S = 1.0
"""How often routes are looked at while nobody asks for anything."""


class Request(enum.Enum):
    """What can be asked of a service that runs."""

    DRAIN = "end when the migrations under way have ended, and take no new ones"
    CANCEL = "end now"
    RELOAD = "read the settings again"
    LOOK = "look whether routes have ended"


class RelayService:
    """The routes of one file; a context manager, since its addresses are had as soon as it is made.

    Args:
        path: of relay.toml.
        drain_timeout_s: migrations that are still under way so long after a drain began are cancelled.
        notifier: tells systemd.
        handed: sockets of systemd, by name; the caller's.
        metrics: counts; None: nobody does.
        on_ended: called after each migration, in its route's thread.

    Raises:
        UsageError: the file cannot be meant, or a socket that it names was not handed over.
        ChannelError: an address cannot be had.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        drain_timeout_s: float,
        notifier: Notifier,
        handed: Mapping[str, socket.socket],
        metrics: Metrics | None = None,
        on_ended: Callable[[Ended], None] = lambda ended: None,
    ) -> None:
        self._path, self._drain_timeout_s = path, drain_timeout_s
        self._notifier, self._handed = notifier, handed
        self._metrics, self._on_ended = metrics, on_ended
        self._mailbox: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._routes: dict[str, Route] = {}
        self._leaving: list[Route] = []
        self._drain_until: float | None = None
        self._is_cut = self._has_cancelled = False
        self._stuck: set[str] = set()
        with self._opened(read(path)) as new:
            self._routes = new

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Give up what is held, if `run` has not done that; no migration survives it."""
        for route in (*self._routes.values(), *self._leaving):
            route.close()

    def request(self, request: Request) -> None:
        """Ask for something; from any thread, and from a signal handler."""
        self._mailbox.put(request)

    @property
    def uris(self) -> dict[str, str]:
        """Where each route listens, by name."""
        return {name: route.uri for name, route in list(self._routes.items())}

    def health(self) -> tuple[bool, Mapping[str, Any]]:
        """Whether any route takes migrations, and a document that says how each is. From any thread."""
        states = {name: route.state for name, route in list(self._routes.items())}
        if self._drain_until is not None:
            return False, {"state": "draining", "routes": states}
        up = [state in ("waiting", "active") for state in states.values()]
        return any(up), {"state": "ready" if all(up) else "degraded", "routes": states}

    def run(self) -> bool:
        """Serve until a request ends it and every route has ended.

        Returns:
            Whether every migration ended by itself: False if some were cancelled.
        """
        for route in self._routes.values():
            self._start(route)
        self._notifier.ready(self._describe())
        watchdog_s = self._notifier.watchdog_s
        turn_s = _TURN_S if watchdog_s is None else min(_TURN_S, watchdog_s / 4)
        while self._drain_until is None or self._running():
            with contextlib.suppress(queue.Empty):  # then it is time to look at the routes
                self._handle(self._mailbox.get(timeout=turn_s))
            self._leaving = [route for route in self._leaving if not route.join(0)]
            if self._is_alive():
                self._notifier.alive()
            if self._drain_until is not None and time.monotonic() >= self._drain_until:
                if self._has_cancelled:
                    break
                self._cancel()
        if busy := self._running():
            log.event("stopped", f"still busy: {', '.join(route.name for route in busy)}", logging.ERROR)
        else:
            log.event("stopped", "every route has ended")
        return not self._is_cut

    # -- the caller's thread ----------------------------------------------------------------------

    def _handle(self, request: Request) -> None:
        is_draining = self._drain_until is not None
        match request:
            case Request.RELOAD if not is_draining:
                self._reload()
            case Request.DRAIN if not is_draining:
                self._drain()
            case Request.DRAIN | Request.CANCEL:
                self._cancel()

    def _start(self, route: Route) -> None:
        route.start(UNOBSERVED if self._metrics is None else self._metrics.meter(route.name))

    def _running(self) -> list[Route]:
        return [route for route in (*self._routes.values(), *self._leaving) if not route.join(0)]

    def _describe(self) -> str:
        states = [route.state for route in self._routes.values()]
        return f"{len(states)} routes, {states.count('active')} migrations under way"

    def _is_alive(self) -> bool:
        """Whether the watchdog may go on waiting.

        A route that hangs is told in the log and by ``/health``. It is no reason to end the process as long as another
        has a migration under way, which would be lost.
        """
        routes = self._running()
        stuck = {route.name for route in routes if route.state == "stuck"}
        for name in sorted(stuck - self._stuck):
            log.event("route-stuck", f"route {name} hangs", logging.ERROR, route=name)
        self._stuck = stuck
        return not stuck or any(route.is_active for route in routes if route.name not in stuck)

    def _drain(self) -> None:
        self._drain_until = time.monotonic() + self._drain_timeout_s
        if self._metrics is not None:
            self._metrics["multifd_draining"].set(1)
        for route in self._routes.values():
            route.drain()
        active = sum(route.is_active for route in self._running())
        text = f"draining: {active} migrations go on for at most {self._drain_timeout_s:g} s, no others are taken"
        log.event("draining", text)
        self._notifier.stopping(text)

    def _cancel(self) -> None:
        """End everything."""
        running = self._running()
        active = sum(route.is_active for route in running)
        self._has_cancelled = True
        self._is_cut = self._is_cut or active > 0
        self._drain_until = time.monotonic() + CUT_S
        log.event("cancelling", f"{active} migrations are cancelled", logging.WARNING if active else logging.INFO)
        for route in running:
            route.cancel()

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            settings = read(self._path)
            with self._opened(settings) as new:
                self._replace(settings, new)
        except MultifdError as e:
            log.event("reload-refused", f"the old settings stay: {e}", logging.ERROR)
            self._count_reload("refused")
        else:
            log.event("reloaded", f"{os.fspath(self._path)} holds from the next migrations on")
            self._count_reload("accepted")
        self._notifier.ready(self._describe())

    def _count_reload(self, outcome: str) -> None:
        if self._metrics is not None:
            self._metrics.reloaded(outcome)

    @contextlib.contextmanager
    def _opened(self, settings: Sequence[RouteSettings]) -> Iterator[dict[str, Route]]:
        """Routes for what does not listen yet; closed again if anything fails."""
        new: dict[str, Route] = {}
        try:
            for one in settings:
                if self._keeps(one):
                    self._routes[one.name].check(one)
                else:
                    new[one.name] = self._open(one)
            yield new
        except BaseException:
            for route in new.values():
                route.close()
            raise

    def _open(self, settings: RouteSettings) -> Route:
        try:
            return Route(settings, self._opener(settings), self._on_ended, self._look)
        except ChannelError as e:
            raise ChannelError(f"{os.fspath(self._path)}: route {settings.name!r}: listen: {e}") from e

    def _keeps(self, settings: RouteSettings) -> bool:
        """Whether a route of that name listens there already."""
        route = self._routes.get(settings.name)
        return route is not None and route.settings.listen == settings.listen

    def _replace(self, settings: Sequence[RouteSettings], new: Mapping[str, Route]) -> None:
        """Go by new settings; nothing here can fail."""
        kept = {one.name: self._routes[one.name] for one in settings if one.name not in new}
        for name, route in self._routes.items():
            if kept.get(name) is not route:
                route.drain()
                self._leaving.append(route)
        for one in settings:
            if one.name in kept:
                kept[one.name].reconfigure(one, self._opener(one))
        self._routes = {one.name: {**kept, **new}[one.name] for one in settings}
        for route in new.values():
            self._start(route)

    def _opener(self, settings: RouteSettings) -> Callable[[], Listener]:
        listen = settings.listen
        if not isinstance(listen, str):
            return lambda: Listener(listen, settings.access)
        handed = self._handed.get(listen)
        if handed is None:
            known = ", ".join(self._handed) or "none"
            raise UsageError(
                f"route {settings.name!r}: listen: systemd hands over no socket with FileDescriptorName={listen}; "
                f"those it does: {known}"
            )
        return lambda: _adopt(settings, handed)

    def _look(self) -> None:
        self.request(Request.LOOK)


def _adopt(settings: RouteSettings, handed: socket.socket) -> Listener:
    sock = _duplicate(handed)
    try:
        return Listener.adopt(sock, settings.access)
    except UsageError as e:
        sock.close()
        raise of_route(settings.name, e) from e


def _duplicate(sock: socket.socket) -> socket.socket:
    """Another descriptor of a socket: the first one stays, for when the route is opened again."""
    try:
        return sock.dup()
    except OSError as e:
        raise ChannelError(f"cannot duplicate a socket: {e.strerror}") from e
