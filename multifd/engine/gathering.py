"""Channels that have come before it is known whose they are, by where they come from and what they announce.

Rules of this file: it decides nothing by itself. Main, the only connection that cannot be made up without a guest's
memory, tells whose the channels are: those that come from where it comes from; others only if none come from there for
a while. Whatever is kept is bounded, and a flood displaces itself.
"""

from __future__ import annotations

import logging
import math
import select
import time
from collections.abc import Callable, Iterable, Mapping

from multifd.engine.negotiation import Terms, terms_of
from multifd.errors import MultifdError, RemoteWireError
from multifd.transport.accept import Acceptor, Arrival, Came, room_for
from multifd.transport.listen import origin_of
from multifd.wire.packet import InitPacket

_LOG = logging.getLogger(__name__)
_MAX_GROUPS = 16
_MAX_GATHERED = 512
"""Channels that are kept at the same time, of more than one group: twice as many as a migration can have."""
_SHARE = 3
"""The part of all descriptors that they may hold is one of so many."""
_MAX_OBJECTIONS = 256
_ELSEWHERE_S = 2.0
"""How long channels from main's own place are waited for before those from another are taken: behind an address
translation with several addresses, a source's connections come from any of them."""

Key = tuple[str, Terms]
"""Where channels come from, and what they announce alike."""


def key_of(arrival: Arrival, init: InitPacket) -> Key:
    """What a channel has in common with the others of its migration."""
    return origin_of(arrival[1]), terms_of(init)


def connected_twice(init: InitPacket) -> MultifdError:
    """The objection to a channel that is there already."""
    return RemoteWireError(f"channel {init.id} connected twice")


class Gathering:
    """Thread rule: one thread, but for `main_is_from`.

    Args:
        acceptor: where they came; it closes and counts those that are dismissed.
    """

    def __init__(self, acceptor: Acceptor) -> None:
        self._acceptor = acceptor
        self._most = room_for(_MAX_GATHERED, _SHARE)
        self._groups: dict[Key, dict[int, Arrival]] = {}
        self._since: dict[Key, float] = {}
        self._main: tuple[str, float] | None = None
        self._chosen: Key | None = None
        self._objections: dict[Key, MultifdError] = {}

    @property
    def groups(self) -> Mapping[Key, Mapping[int, Arrival]]:
        """Those who have come, by their channel's number."""
        return self._groups

    @property
    def objection(self) -> MultifdError | None:
        """Why the last newcomer was turned away that may have been this migration's."""
        main = self._main
        mine = [e for (origin, _), e in list(self._objections.items()) if main is None or origin == main[0]]
        return mine[-1] if mine else None

    def objection_to(self, key: Key) -> MultifdError | None:
        """Why one of these channels was turned away, if one was."""
        return self._objections.get(key)

    def main_is_from(self, peer: str) -> None:
        """Main is known: its name says where the channels come from. From any thread."""
        self._main = origin_of(peer), time.monotonic()
        self._acceptor.wake()

    def add(self, arrival: Arrival, init: InitPacket) -> MultifdError | None:
        """Keep a channel; returns why it cannot be."""
        group = self._groups.setdefault(key_of(arrival, init), {})
        if init.id in group:
            return connected_twice(init)
        group[init.id] = arrival
        self._since[key_of(arrival, init)] = time.monotonic()
        while len(self._groups) > _MAX_GROUPS or (len(self._groups) > 1 and self._count() > self._most):
            self._forget()
        return None

    def turn_away(self, arrival: Arrival, init: InitPacket, objection: MultifdError) -> None:
        """Close a newcomer, and remember why: it explains what may go wrong because of it."""
        key = key_of(arrival, init)
        self._objections.pop(key, None)
        self._objections[key] = objection
        if len(self._objections) > _MAX_OBJECTIONS:
            del self._objections[self._worst(self._objections)]
        _LOG.info("%s: closed: %s", arrival[1], objection)
        self._acceptor.dismiss(arrival[0])

    def choices(self) -> list[Key]:
        """Whose channels they may be, the first to come first; none as long as main is not known."""
        if self._main is None:
            return []
        origin, since = self._main
        own = [key for key in self._groups if key[0] == origin]
        if not own and time.monotonic() - since > _ELSEWHERE_S:
            return list(self._groups)
        return own

    def choose(self, key: Key) -> Mapping[int, Arrival]:
        """These are the migration's: the caller's from now on. All others are closed."""
        self._chosen = key
        group = self._groups.pop(key)
        self._since.pop(key)
        self.dismiss()
        return group

    def drop(self, key: Key, id_: int) -> None:
        """Close one."""
        group = self._groups[key]
        sock, peer, _ = group.pop(id_)
        _LOG.info("%s: closed: channel %d belongs to no migration here", peer, id_)
        self._acceptor.dismiss(sock)
        if not group:
            del self._groups[key], self._since[key]

    def drop_ended(self, candidates: Iterable[Came]) -> None:
        """While main is not known: close what a migration that failed early has left, who has hung up.

        Not those before whom somebody came from the same place who may become main: a source connects main first, so
        they may be complete.

        Args:
            candidates: who has begun as main does; who has said nothing yet may become it, too.
        """
        mains = [*candidates, *self._acceptor.undecided()]
        for key, group in list(self._groups.items()):
            first = min((since for peer, since in mains if origin_of(peer) == key[0]), default=math.inf)
            for id_, arrival in list(group.items()):
                if arrival[0].since < first and _has_hung_up(arrival):
                    self.drop(key, id_)

    def drop_lonely(self, patience_s: float) -> None:
        """Close those to whom nobody comes any more.

        Args:
            patience_s: how long ago the last of a group came.
        """
        oldest = time.monotonic() - patience_s
        for key in [key for key, since in self._since.items() if since < oldest]:
            for id_ in list(self._groups[key]):
                self.drop(key, id_)

    def drop_unfit(self, objection_to: Callable[[InitPacket], object]) -> None:
        """Close those that cannot be taken any more.

        Args:
            objection_to: why a channel that starts like that cannot be, None if it can.
        """
        for key, group in list(self._groups.items()):
            for id_, (_, _, init) in list(group.items()):
                if init is not None and objection_to(init) is not None:
                    self.drop(key, id_)

    def dismiss(self) -> None:
        """Close all."""
        for key, group in list(self._groups.items()):
            for id_ in list(group):
                self.drop(key, id_)

    def _count(self) -> int:
        return sum(map(len, self._groups.values()))

    def _forget(self) -> None:
        key = self._worst(self._groups)
        for id_ in list(self._groups[key]):
            self.drop(key, id_)

    def _worst(self, keys: Mapping[Key, object]) -> Key:
        """The oldest of the place that has the most, which is main's own only if there is no other."""
        origins = [origin for origin, _ in keys]
        main = self._main[0] if self._main else ""
        # The first of equals.
        return max(keys, key=lambda key: (key != self._chosen, key[0] != main, origins.count(key[0])))


def _has_hung_up(arrival: Arrival) -> bool:
    """Whether the peer of a connection will send no more."""
    poll = select.poll()
    poll.register(arrival[0], select.POLLRDHUP)
    return bool(poll.poll(0))
