"""Who belongs to a relay's migration: which of those that start like main is, whose the channels are.

Rules of this file: nothing that a newcomer says ends a migration. Main is known first, once it has said more than
strangers do; channels are kept until then, since it tells whose they are. The next migration's main may come before
this one is over, and what comes behind it stays with the acceptor.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Iterator

from multifd.engine.candidates import Candidates
from multifd.engine.crew import Crew
from multifd.engine.fate import Fate
from multifd.engine.gathering import Gathering, Key, connected_twice, key_of
from multifd.engine.negotiation import Negotiation
from multifd.engine.relay_main import RelayMain
from multifd.errors import ChannelError, MultifdError, RemoteWireError, StreamError
from multifd.transport.accept import Acceptor, Arrival
from multifd.transport.idle import IdleTimer
from multifd.transport.listen import origin_of
from multifd.wire.packet import InitPacket

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_LATE_S = 0.5
"""How long after a migration has failed its channels may still come: they were connecting when their source noticed."""
_ALONE_S = 10.0
"""How long after the last of a group of channels their main may come; a source's main is first, or later by little."""


class RelayMuster:
    """The newcomers of a relay that waits for one migration.

    Thread rule: one thread, but for `drain`.

    Args:
        acceptor: who connects; the caller closes it.
        negotiation: what is agreed; settled here.
        crew: has the threads of those that start like main.
        idle: the migration's.
        fate: the migration's.
    """

    def __init__(self, acceptor: Acceptor, negotiation: Negotiation, crew: Crew, idle: IdleTimer, fate: Fate) -> None:
        self._acceptor, self._negotiation, self._idle, self._fate = acceptor, negotiation, idle, fate
        self._rejected_before = acceptor.rejected
        self._candidates = Candidates(crew, "relay_candidate", self._run_candidate)
        self._started: deque[RelayMain] = deque()
        self._gathering = Gathering(acceptor)
        self._key: Key | None = None
        self._own: set[int] = set()  # numbers of the migration's channels
        self._ready: deque[tuple[Arrival, InitPacket]] = deque()
        self._keys_at_end: frozenset[Key] = frozenset()
        self._next_has_come = False
        self.main: RelayMain | None = None
        self.is_draining = False

    @property
    def objection(self) -> MultifdError | None:
        """Why the last newcomer was turned away that may have been a channel of this migration."""
        return self._gathering.objection

    def drain(self) -> None:
        """Nobody is waited for any more. From any thread."""
        self.is_draining = True
        self._acceptor.wake()

    def go_by(self, negotiation: Negotiation) -> None:
        """Agree on something else, before a migration has begun; channels that have come and do not fit are closed."""
        self._negotiation = negotiation
        self._gathering.drop_unfit(negotiation.objection)

    def take(self, arrival: Arrival) -> None:
        """Somebody has come."""
        incoming, peer, init = arrival
        if self._next_has_come or (init is None and self._is_done):
            self._next_has_come = True
            self._acceptor.defer(arrival)
        elif init is not None:
            self._take_channel(arrival, init)
        elif self.main is None:
            source = incoming.take(self._idle, f"the source's main ({peer})")
            self._idle.touch()
            self._candidates.add(RelayMain(source, self._fate, peer), source)
        else:
            self._acceptor.dismiss(incoming)

    def elect(self) -> RelayMain | None:
        """Main, the one time that somebody has become it since the last call."""
        elected = None
        while self._started:
            main = self._started.popleft()
            self._candidates.remove(main)
            # Among strangers, what nobody here understands may be any of theirs.
            is_quiet = self._acceptor.listener.is_local or self._acceptor.rejected == self._rejected_before
            if self.main is not None or not (main.is_understood or is_quiet):
                main.source.close()
                self._acceptor.count()
                continue
            self._idle.touch()
            self.main = elected = main
            self._gathering.main_is_from(main.came_from)
            for other in self._candidates:
                other.source.shutdown()
        return elected

    def channels(self) -> Iterator[tuple[Arrival, InitPacket]]:
        """Each channel of the migration, once: those that came before main, then all that are like them."""
        if self.main is not None and self._key is None:
            self._settle()
        while self._ready:
            yield self._ready.popleft()

    def drop_leftovers(self, timeout_s: float) -> None:
        """While no main is there: close channels whose own does not come.

        Args:
            timeout_s: how long one that has connected may be silent.
        """
        self._gathering.drop_ended((one.came_from, one.source.since) for one in self._candidates)
        has_main = self._candidates or self._acceptor.undecided()
        self._gathering.drop_lonely(timeout_s if has_main else min(timeout_s, _ALONE_S))

    def dismiss(self) -> list[RelayMain]:
        """All is over: close channels that nobody took; returns what started like main, for the caller to close."""
        self._keys_at_end = frozenset(self._gathering.choices() if self._key is None else [self._key])
        self._gathering.dismiss()
        while self._ready:
            self._ready.popleft()[0][0].close()
        return [*self._candidates, *self._started, *([self.main] if self.main else [])]

    def turn_away_late(self) -> None:
        """After a failure: close what still comes of this migration, for half a second, or until the next one's main.

        Such a channel may be full of pages that nobody reads, so that its source's end cannot be seen, and the next
        migration would be taken for that channel's.
        """
        keys, until = self._keys_at_end, time.monotonic() + _LATE_S
        with contextlib.suppress(ChannelError):  # the listener broke: whoever waits for the next migration sees it
            while keys and not self._next_has_come and not self.is_draining:
                if time.monotonic() >= until:
                    break
                arrivals = [*self._acceptor.wait(_POLL_S)]
                if arrivals:
                    # A main says what it is before its channels have pages: if one goes with them, it has by now.
                    arrivals += self._acceptor.wait(0)
                self._next_has_come = any(init is None for _, _, init in arrivals)
                for arrival in arrivals:
                    init = arrival[2]
                    if init is not None and not self._next_has_come and key_of(arrival, init) in keys:
                        self._acceptor.dismiss(arrival[0])
                    else:
                        self._acceptor.defer(arrival)

    def _run_candidate(self, candidate: RelayMain) -> None:
        try:
            candidate.read_start()
        except (StreamError, ChannelError) as e:
            _LOG.info("%s was no source's: %s", candidate.source.peer, e)
            self._candidates.remove(candidate)
            self._acceptor.count()
            candidate.source.close()
            return
        self._started.append(candidate)

    def _take_channel(self, arrival: Arrival, init: InitPacket) -> None:
        """Keep a channel until main is there: it says whose the channels are, and a QEMU up to 7.2 needs it first."""
        objection = self._negotiation.objection(init)
        key = key_of(arrival, init)
        if objection is None and self._key not in (None, key):
            objection = RemoteWireError(f"channel {init.id} announces {init}, others of this migration something else")
        if objection is None and init.id in self._own:
            objection = connected_twice(init)
        if objection is None and self._key is None:
            objection = self._gathering.add(arrival, init)
        elif objection is None:
            self._add(arrival, init)
        if objection is not None and self._is_done and self._is_behind_another(arrival):
            self._acceptor.defer(arrival)
        elif objection is not None:
            # Nobody ends a migration by what he announces; it explains what may go wrong because of it.
            self._gathering.turn_away(arrival, init, objection)

    @property
    def _is_done(self) -> bool:
        """Whether another main now is the next migration's."""
        return self.main is not None and self.main.source_is_done.is_set()

    def _is_behind_another(self, arrival: Arrival) -> bool:
        """Whether somebody came from the same place before it who may become the next main: one of QEMU 10.0 says
        nothing before all its channels are connected."""
        origin, since = origin_of(arrival[1]), arrival[0].since
        return any(came <= since and origin_of(peer) == origin for peer, came in self._acceptor.undecided())

    def _settle(self) -> None:
        for key in self._gathering.choices()[:1]:
            self._key = key
            for arrival in self._gathering.choose(key).values():
                init = arrival[2]
                if init is not None:
                    if not self._own:
                        self._negotiation.settle(init)
                    self._add(arrival, init)

    def _add(self, arrival: Arrival, init: InitPacket) -> None:
        self._own.add(init.id)
        self._ready.append((arrival, init))
