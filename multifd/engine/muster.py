"""Who belongs to the migration: newcomers at the listener, gathered by what they announce, until all are there.

Nothing that a newcomer says ends a migration: one that contradicts is closed, counted, and its reason kept, to
explain what may go wrong later. Where channels come from, and what they announce alike, tells the migrations apart
whose channels arrive; the first whose channels are all there, and come from where main comes from, is the one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from multifd.engine.gathering import Gathering, Key, connected_twice
from multifd.engine.negotiation import Negotiation
from multifd.errors import MultifdError
from multifd.transport.accept import Acceptor, Arrival, Came


class Muster:
    """The newcomers of a receiver that waits for one migration.

    Thread rule: one thread, but for `main_is_from`.

    Args:
        acceptor: who connects; the caller closes it.
        negotiation: what is agreed; settled here.
    """

    def __init__(self, acceptor: Acceptor, negotiation: Negotiation) -> None:
        self._acceptor, self._negotiation = acceptor, negotiation
        self._gathering = Gathering(acceptor)
        self._key: Key | None = None

    @property
    def is_complete(self) -> bool:
        """Whether all channels are there."""
        return self._key is not None

    @property
    def present(self) -> int:
        """How many channels are there, of the migration that has the most."""
        if self.is_complete:
            return self._negotiation.expected()
        return max([0, *map(len, self._gathering.groups.values())])

    @property
    def objection(self) -> MultifdError | None:
        """Why the last newcomer was turned away that may have been a channel of this migration."""
        return self._gathering.objection

    @property
    def surplus(self) -> MultifdError | None:
        """Why a channel of this very migration was turned away, if one was: what it carries is lost."""
        return self._gathering.objection_to(self._key) if self._key is not None else None

    def main_is_from(self, peer: str) -> None:
        """Main is known: its name says where the channels come from. From any thread."""
        self._gathering.main_is_from(peer)

    def drop_ended(self, candidates: Iterable[Came]) -> None:
        """While main is not known: see `Gathering.drop_ended`."""
        self._gathering.drop_ended(candidates)

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
                continue
            objection = self._negotiation.objection(init)
            if objection is None:
                objection = connected_twice(init) if self.is_complete else self._gathering.add(arrival, init)
            if objection is not None:
                self._gathering.turn_away(arrival, init, objection)
            yield from self._settle()
        yield from self._settle()

    def _settle(self) -> Iterator[Arrival]:
        for key in () if self.is_complete else self._gathering.choices():
            group = self._gathering.groups[key]
            init = next(iter(group.values()))[2]
            if init is not None and len(group) == self._negotiation.expected(init):
                self._negotiation.settle(init)
                self._key = key
                yield from self._gathering.choose(key).values()
                return

    def dismiss_others(self) -> None:
        """Close who has come and does not belong."""
        self._gathering.dismiss()
