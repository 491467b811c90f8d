"""Connections as they come: main and channels in any order, told apart by what they start with.

Rules of this file: the first bytes are read, never peeked at, and never more than it takes to know what a connection
is. What is not a migration's is closed and counted; nothing that a stranger sends is an error of this side.
"""

from __future__ import annotations

import logging
import os
import resource
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from multifd.errors import RemoteWireError
from multifd.transport.handed import HandedConnections
from multifd.transport.incoming import Incoming, PlainIncoming
from multifd.transport.listen import Exhausted, Listener, origin_of
from multifd.wire import greeting as greet
from multifd.wire import stream
from multifd.wire.packet import INIT_BYTES, MAGIC_BYTES, InitPacket

_LOG = logging.getLogger(__name__)
Arrival = tuple[Incoming, str, InitPacket | None]
"""A connection to take, its peer's name, and a channel's init packet, None for main."""
Came = tuple[str, float]
"""A peer's name, and when it came, by the monotonic clock."""
_MAX_PENDING = 512
"""Connections that have not said yet what they are; fewer where a process may have few descriptors."""
_SHARE = 4
"""The part of all descriptors that they may hold is one of so many."""
_LEAST = 16
_MAX_ACCEPTS = 64
"""Connections that are accepted in one turn: between turns the caller looks at its migration."""
_EXHAUSTED_S = 0.25
"""How long nobody is accepted after there was no descriptor for one."""
_REMIND_S = 60.0
"""How often it is a warning that somebody may not connect; in between it is said at level INFO."""


@dataclass(slots=True, eq=False)
class _Pending:
    """A connection that has not said yet what it is."""

    incoming: Incoming
    start: bytearray = field(default_factory=bytearray)
    is_announced: bool = False
    """Its magic, or its init packet, was read; nothing has followed yet."""

    @property
    def origin(self) -> str:
        """Where it comes from."""
        return origin_of(self.incoming.peer)

    @property
    def may_become_main(self) -> bool:
        """Whether it has said nothing else."""
        return stream.MAGIC_BYTES.startswith(self.start)

    def missing(self) -> int:
        """Bytes until it has said what it is, or until more is known; 0 if it has."""
        if self.start == stream.MAGIC_BYTES:
            return 0
        return (INIT_BYTES if self.start.startswith(MAGIC_BYTES) else greet.DECIDING_BYTES) - len(self.start)


def room_for(most: int, share: int) -> int:
    """How many connections of strangers may be held: `most`, fewer where a process may have few descriptors.

    Args:
        most: where there are enough.
        share: they may hold at most one of so many descriptors.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if limit == resource.RLIM_INFINITY else min(most, max(_LEAST, limit // share))


class Acceptor:
    """What connects to a listener.

    Thread rule: one thread; `wake` from any.

    Args:
        listener: the caller closes it.
        patience_s: a connection that has not said by then what it is, is closed.
        open: makes what a new socket is read through, from it and its peer's name.
    """

    def __init__(
        self,
        listener: Listener | HandedConnections,
        patience_s: float,
        open: Callable[[socket.socket, str], Incoming] = PlainIncoming,
    ) -> None:
        self.listener, self._patience_s, self._open = listener, patience_s, open
        self._selector = selectors.DefaultSelector()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._wake_lock = threading.Lock()
        self._pending: set[_Pending] = set()
        self._deferred: deque[Arrival] = deque()
        self._is_listening = True
        self._listen_again = 0.0
        self._warn_again = 0.0
        self._most = room_for(_MAX_PENDING, _SHARE)
        self._counting = threading.Lock()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self.rejected = 0
        """Connections that were not a migration's and were closed."""
        self.tls_failures = 0
        """Those of them that did not get through the handshake, or were not authorised."""
        self.exhaustion = ""
        """Why nobody can be accepted at the moment, in words; empty if somebody can."""
        self.last_stranger = ""
        """Who the last of them was that may not connect or does not speak the wire at all, in words."""

    def wait(self, timeout_s: float) -> Iterator[Arrival]:
        """Wait for at most `timeout_s` and give what came.

        The magic of main, or the init packet, is read; the connection is the caller's from then on.

        Raises:
            ChannelError: the listener broke.
        """
        self._after_exhaustion()
        for key, _ in self._selector.select(timeout_s):
            if key.fd == self._wake:
                os.eventfd_read(self._wake)
            elif isinstance(key.data, _Pending):
                yield from self._identify(key.data)
            elif self._is_listening:
                for pending in self._accept():
                    yield from self._identify(pending)  # what it starts with has mostly come with it
        oldest = time.monotonic() - self._patience_s
        for pending in [one for one in self._pending if one.incoming.since < oldest or one.incoming.is_late()]:
            _LOG.info("%s: closed: it did not say what it is", pending.incoming.peer)
            self._drop(pending)

    def wake(self) -> None:
        """End a `wait` that is going on, or the next one. From any thread, after `close` too."""
        with self._wake_lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    def undecided(self) -> list[Came]:
        """Those who may become main, and have not said so yet, or nothing behind it."""
        return [(one.incoming.peer, one.incoming.since) for one in self._pending if one.may_become_main]

    def stop_listening(self) -> None:
        """Everything that is expected has come: close the listener and what has not said what it is.

        Whoever connects from here on is refused by the kernel. Twice is harmless.
        """
        if self._is_listening:
            self._is_listening = False
            if self._listen_again == 0.0:
                self._selector.unregister(self.listener)
            self.listener.close()
            for pending in list(self._pending):
                self._drop(pending)

    def deferred(self) -> Iterator[Arrival]:
        """Those that were kept for this migration, in the order in which they came."""
        while self._deferred:
            yield self._deferred.popleft()

    def defer(self, arrival: Arrival) -> None:
        """Take one back: it belongs to the migration after this one."""
        self._deferred.append(arrival)
        if len(self._deferred) > self._most:
            self.dismiss(self._deferred.popleft()[0])

    def dismiss(self, incoming: Incoming) -> None:
        """Close a connection that is not the migration's, and count it."""
        incoming.close()
        self.count()

    def count(self) -> None:
        """One that was not the migration's was closed. From any thread."""
        with self._counting:
            self.rejected += 1

    @property
    def turned_away(self) -> str:
        """How many were closed and who the last was, as the end of a sentence; empty if nobody was."""
        last = f" (the last was {self.last_stranger})" if self.last_stranger else ""
        return f", {self.rejected} connections that were no migration's were closed{last}" if self.rejected else ""

    def close(self) -> None:
        """Close what nobody took; the listener stays as it is."""
        for pending in list(self._pending):
            self._drop(pending)
        while self._deferred:
            self.dismiss(self._deferred.popleft()[0])
        self._selector.close()
        with self._wake_lock:
            os.close(self._wake)
            self._wake = -1

    def _accept(self) -> Iterator[_Pending]:
        try:
            for _ in range(_MAX_ACCEPTS):
                if not self._is_listening or (accepted := self.listener.accept()) is None:
                    return
                if not self._may_connect(*accepted):
                    continue
                if len(self._pending) >= self._most:
                    self._make_room()
                pending = _Pending(self._open(*accepted))
                self._selector.register(pending.incoming, selectors.EVENT_READ, pending)
                self._pending.add(pending)
                self.exhaustion = ""
                yield pending
        except Exhausted as e:
            self.exhaustion = f"this process had no descriptor or memory for another connection ({e}): see ulimit -n"
            # The connection goes on waiting, and would end every `select` at once.
            self._selector.unregister(self.listener)
            self._listen_again = time.monotonic() + _EXHAUSTED_S
            self._make_room()

    def _may_connect(self, sock: socket.socket, peer: str) -> bool:
        level = logging.INFO
        try:
            objection = self.listener.objection(sock)
            if objection and time.monotonic() >= self._warn_again:
                self._warn_again = time.monotonic() + _REMIND_S
                level = logging.WARNING
        except OSError as e:
            objection = f"a client that was gone at once ({e.strerror})"
        if objection:
            self.last_stranger = objection
            _LOG.log(level, "%s: closed: %s", peer, objection)
            sock.close()
            self.count()
        return not objection

    def _after_exhaustion(self) -> None:
        if self._is_listening and self._listen_again and time.monotonic() >= self._listen_again:
            self._listen_again = 0.0
            self._selector.register(self.listener, selectors.EVENT_READ)

    def _identify(self, pending: _Pending) -> Iterator[Arrival]:
        """Read what a new connection starts with, as much of it as has come."""
        incoming, start = pending.incoming, pending.start
        if pending not in self._pending:
            return
        while missing := pending.missing():
            data = incoming.recv(missing)
            if data is None:
                return
            start += data
            if incoming.trouble:
                self._drop(pending)
                return
            greeting = greet.classify(start) if data else greet.closed(start)
            if greeting.kind is greet.Kind.STRANGER:
                self.last_stranger = greeting.words
                _LOG.info("%s: %s", incoming.peer, greeting.words)
                self._drop(pending)
                return
        init: InitPacket | None = None
        if start != stream.MAGIC_BYTES:
            try:
                init = InitPacket.decode(start)
            except RemoteWireError as e:
                self.last_stranger = f"a channel that cannot be: {e}"
                _LOG.info("%s: closed: %s", incoming.peer, self.last_stranger)
                self._drop(pending)
                return
        # It counts only once something follows main's magic, or a channel's init packet, as on every real one at
        # once: 4 or 64 bytes that anybody may have sent are neither.
        pending.is_announced = True
        follows = incoming.has_more()
        if follows is False:
            what = "main's magic" if init is None else "its init packet"
            self.last_stranger = f"a client that closed after {what}"
            self._drop(pending)
        if not follows:
            return
        self._release(pending)
        yield incoming, incoming.peer, init

    def _make_room(self) -> None:
        """Drop an eighth of those that have not said what they are, the oldest of the many.

        The many are, if most come from one place, those, and of them either who have begun as a migration's do or who
        have not: whichever are more. So a flood of any kind displaces itself, not a source that is about to begin.
        """
        waiting = sorted(self._pending, key=lambda pending: pending.incoming.since)
        origin, count = Counter(pending.origin for pending in waiting).most_common(1)[0] if waiting else ("", 0)
        if 2 * count > len(waiting):
            waiting = [pending for pending in waiting if pending.origin == origin]
        announced = [pending for pending in waiting if pending.is_announced]
        others = [pending for pending in waiting if not pending.is_announced]
        for pending in max(announced, others, key=len)[: -(-len(self._pending) // 8)]:
            _LOG.info("%s: closed: it has not said what it is, and others wait", pending.incoming.peer)
            self._drop(pending)

    def _drop(self, pending: _Pending) -> None:
        self._release(pending)
        pending.incoming.close()
        if pending.incoming.trouble:
            self.tls_failures += 1
            self.last_stranger = f"{pending.incoming.peer}: {pending.incoming.trouble}"
            _LOG.info("%s", self.last_stranger)
        self.count()

    def _release(self, pending: _Pending) -> None:
        self._selector.unregister(pending.incoming)
        self._pending.remove(pending)
