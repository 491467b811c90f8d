"""Who belongs to the migration: newcomers at the listener, gathered by what they announce, until all are there.

Nothing that a newcomer says ends a migration: one that contradicts is closed, counted, and its reason kept, to
explain what may go wrong later. What all channels announce alike, their terms, tells the migrations apart whose
channels arrive; the first whose channels are all there is the one.
"""

from __future__ import annotations

from collections.abc import Iterator

from multifd.engine.negotiation import Negotiation, Terms, terms_of
from multifd.errors import MultifdError, RemoteWireError
from multifd.transport.accept import Acceptor, Arrival
from multifd.wire.packet import InitPacket

_MAX_GROUPS = 16
"""Terms that are gathered at the same time; the oldest gives way."""


class Muster:
    """The newcomers of a receiver that waits for one migration.

    Thread rule: one thread.

    Args:
        acceptor: who connects; the caller closes it.
        negotiation: what is agreed; settled here.
    """

    def __init__(self, acceptor: Acceptor, negotiation: Negotiation) -> None:
        self._acceptor, self._negotiation = acceptor, negotiation
        self._groups: dict[Terms, dict[int, Arrival]] = {}
        self._admitted: set[int] = set()
        self.objection: MultifdError | None = None
        """Why the last newcomer that was turned away could not be a channel."""
        self._turned_away: dict[Terms, MultifdError] = {}

    @property
    def is_complete(self) -> bool:
        """Whether all channels are there."""
        return bool(self._admitted)

    @property
    def present(self) -> int:
        """How many channels are there, of the migration that has the most."""
        return max([len(self._admitted), *map(len, self._groups.values())])

    @property
    def surplus(self) -> MultifdError | None:
        """Why a channel of this very migration was turned away, if one was: what it carries is lost."""
        terms = self._negotiation.terms
        return self._turned_away.get(terms) if terms is not None else None

    def poll(self, timeout_s: float) -> Iterator[Arrival]:
        """Wait for at most `timeout_s` and give those who belong: candidates for main, and all channels at once.

        Raises:
            ChannelError: the listener broke.
            MethodError: the method that the channels announce cannot be had.
        """
        for arrival in self._acceptor.wait(timeout_s):
            init = arrival[2]
            if init is None:
                yield arrival
            elif self.is_complete:
                self._turn_away(arrival, init, self._late(init))
            else:
                yield from self._gather(arrival, init)

    def _gather(self, arrival: Arrival, init: InitPacket) -> Iterator[Arrival]:
        objection = self._negotiation.objection(init)
        group = self._groups.setdefault(terms_of(init), {})
        if objection is None and init.id in group:
            objection = RemoteWireError(f"channel {init.id} connected twice")
        if objection is not None:
            self._turn_away(arrival, init, objection)
            if not group:
                del self._groups[terms_of(init)]
            return
        group[init.id] = arrival
        if len(group) == self._negotiation.expected(init):
            self._negotiation.settle(init)
            self._admitted = set(group)
            del self._groups[terms_of(init)]
            self.dismiss_others()
            yield from group.values()
        elif len(self._groups) > _MAX_GROUPS:
            for other in self._groups.pop(next(iter(self._groups))).values():
                self._acceptor.dismiss(other[0])

    def _late(self, init: InitPacket) -> MultifdError:
        objection = self._negotiation.objection(init)
        if objection is None:
            objection = RemoteWireError(f"channel {init.id} connected twice")
        return objection

    def _turn_away(self, arrival: Arrival, init: InitPacket, objection: MultifdError) -> None:
        self.objection = objection
        if len(self._turned_away) < _MAX_GROUPS or terms_of(init) == self._negotiation.terms:
            self._turned_away[terms_of(init)] = objection
        self._acceptor.dismiss(arrival[0])

    def dismiss_others(self) -> None:
        """Close who has come and does not belong."""
        for group in self._groups.values():
            for arrival in group.values():
                self._acceptor.dismiss(arrival[0])
        self._groups.clear()
