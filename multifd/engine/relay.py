"""Between two QEMUs: a migration comes in by one method and goes on by another.

Rules of this file: the caller's thread accepts, watches time and ends it all; one thread passes on
each direction of main, one each channel. A packet goes on before the next is read, so a slow
destination holds the source back. Whatever ends the migration goes through `_settle`, where the first error is chosen
and `Fate` says where the memory is.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from uuid import UUID

from multifd.engine.canceller import Canceller
from multifd.engine.candidates import Candidates
from multifd.engine.config import MOST_CHANNELS, SAME, RelayConfig
from multifd.engine.crew import JOIN_S, Crew
from multifd.engine.fate import RELAY, Fate, attach
from multifd.engine.gathering import Gathering, Key, connected_twice, key_of
from multifd.engine.negotiation import Negotiation
from multifd.engine.passing import Passing
from multifd.engine.relay_main import RelayMain
from multifd.engine.transcoder import ChannelFigures, Transcoder
from multifd.errors import (
    Cancelled,
    ChannelError,
    MethodError,
    MultifdError,
    PeerFailed,
    PeerMismatch,
    RemoteWireError,
    StreamError,
    TlsError,
    note_hint,
)
from multifd.method import MultifdMethods
from multifd.registry import load_method
from multifd.stats import RelayResult
from multifd.transport import clear
from multifd.transport.accept import Acceptor, Arrival
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.wire.packet import InitPacket
from multifd.wire.stream import NO_UUID

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_GRACE_S = 0.5
"""How long a destination that has hung up may take to say on the return path what went wrong."""
_PROGRESS_S = 0.1
_LATE_S = 0.5
"""How long after a migration has failed its channels may still come: they were connecting when their source noticed."""
_ALONE_S = 10.0
"""How long after the last of a group of channels their main may come; a source's main is first, or later by little."""


@dataclass(slots=True)
class _Link:
    """A channel's connection to the source, and the one to the destination that goes with it."""

    source: Connection
    init: InitPacket
    destination: Connection | None = None
    figures: ChannelFigures = field(default_factory=ChannelFigures)


class Relay:
    """One migration through this process; use once.

    Args:
        acceptor: who connects; the caller closes it. The next migration's connections may come before this
            one is over, and stay there.
        config: how.
        canceller: to cancel it with.
        on_progress: called in the caller's thread with the figures so far, about ten times a second, also while it
            waits for a source.
    """

    def __init__(
        self,
        acceptor: Acceptor,
        config: RelayConfig,
        canceller: Canceller | None = None,
        on_progress: Callable[[RelayResult], None] | None = None,
    ) -> None:
        self._config, self._acceptor, self._on_progress = config, acceptor, on_progress
        self._canceller = canceller or Canceller()
        self._rejected_before, self._tls_failures_before = acceptor.rejected, acceptor.tls_failures
        self._out = _out_method(config)
        self._negotiation = self._new_negotiation()
        self._idle = IdleTimer(config.timeout_s, self._describe_connections)
        self._limit = self._new_limit()
        self._crew = Crew(self._idle, acceptor.wake)
        self.fate = Fate(RELAY)
        self._main: RelayMain | None = None
        self._channels: dict[int, _Link] = {}
        self._candidates = Candidates(self._crew, "relay_candidate", self._run_candidate)
        self._gathering = Gathering(acceptor)
        self._key: Key | None = None
        self._keys_at_end: frozenset[Key] = frozenset()
        self._started: deque[RelayMain] = deque()
        self._return: threading.Thread | None = None
        self._next_has_come = False
        self._is_draining = False
        self._next_config: RelayConfig | None = None
        self._start = self._end = self._reported = 0.0
        self._status, self._error = "active", ""
        self._notes: tuple[str, ...] = ()

    @property
    def has_begun(self) -> bool:
        """Whether a source has connected: its main is known."""
        return self._start > 0

    def drain(self) -> None:
        """Take no source that has not connected yet: `run` then raises `Cancelled`. From any thread.

        A migration that has begun goes on to its end.
        """
        self._is_draining = True
        self._acceptor.wake()

    def reconfigure(self, config: RelayConfig) -> None:
        """Go by other settings, unless a migration has begun. From any thread; the connections that wait stay."""
        self._next_config = config
        self._acceptor.wake()

    @property
    def is_passing(self) -> bool:
        """Whether a migration is under way."""
        return self.has_begun and not self._end

    def run(self) -> RelayResult:
        """Wait, for ever, for a source, and pass its migration on.

        Raises:
            MultifdError: what went wrong first; ``result`` has the figures up to then.
            Cancelled: by the canceller, or by `drain` before a source had connected.
            KeyboardInterrupt: passes through, after everything was torn down.
        """
        try:
            self._canceller.begin(self._cancel, self._cancel)
            for arrival in self._acceptor.deferred():
                self._take(arrival)
            while not self._is_over():
                self._serve(_POLL_S)
            self._crew.check()
            self.fate.commit()
            self._tear_down()
        except BaseException as error:
            told = error
            try:
                told = self._settle(error)
                self._tear_down()
            except BaseException as e:  # another interrupt: what is known of the memory is said of it, too
                told = self.fate.conclude(e)
            self._end, self._status = time.monotonic(), self.fate.status(told)
            self._error, self._notes = str(told) or type(told).__name__, tuple(getattr(told, "__notes__", ()))
            attach(told, self.result)
            if told is error:
                raise
            raise told from told.__cause__
        self._end, self._status = time.monotonic(), "completed"
        return self.result

    def turn_away_late(self) -> None:
        """After a migration that failed: close what still comes of it, for half a second, or until the next one's main.

        Such a channel may be full of pages that nobody reads, so that its source's end cannot be seen, and the next
        migration would be taken for that channel's.
        """
        keys, until = self._keys_at_end, time.monotonic() + _LATE_S
        with contextlib.suppress(ChannelError):  # the listener broke: whoever waits for the next migration sees it
            while keys and not self._next_has_come and not self._is_draining:
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

    @property
    def result(self) -> RelayResult:
        """The figures so far; from any thread."""
        channels, main = list(self._channels.values()), self._main
        ins = [link.source for link in channels] + ([main.source] if main else [])
        end = self._end or time.monotonic()
        return RelayResult(
            status=self._status if self.has_begun or self._end else "waiting",
            uuid=self._guest(),
            in_method=self._negotiation.method.name if self._negotiation.method else "",
            out_method=self._out.name if self._out else SAME,
            channels=len(channels),
            total_time_ms=round((end - self._start) * 1e3, 3) if self.has_begun else 0.0,
            packets=sum(link.figures.packets for link in channels),
            normal_pages=sum(link.figures.normal_pages for link in channels),
            zero_pages=sum(link.figures.zero_pages for link in channels) + (main.zero_pages if main else 0),
            bytes_in=sum(connection.bytes_received for connection in ins),
            bytes_out=sum(connection.bytes_sent for connection in self._outs()),
            sync_points=main.sync_points if main else 0,
            stalls=sum(connection.stalls for connection in self._outs()),
            rejected=self._acceptor.rejected - self._rejected_before,
            tls_failures=self._acceptor.tls_failures - self._tls_failures_before,
            in_stats=_sum(link.figures.in_counters for link in channels),
            out_stats=_sum(link.figures.out_counters for link in channels),
            error=self._error or None,
            notes=self._notes,
        )

    # -- the caller's thread ----------------------------------------------------------------------

    def _new_negotiation(self) -> Negotiation:
        specs = (self._config.in_method,) if self._config.in_method else ()
        return Negotiation(
            specs,
            self._config.channels,
            is_local=self._acceptor.listener.is_local,
            unannounced=MOST_CHANNELS,
            setting="in_method",
        )

    def _new_limit(self) -> RateLimit | None:
        return RateLimit(self._config.max_bandwidth, self._idle.abort) if self._config.max_bandwidth else None

    def _guest(self) -> str:
        uuid = self._negotiation.uuid
        return "" if uuid == NO_UUID else str(UUID(bytes=uuid))

    def _take_settings(self, config: RelayConfig) -> None:
        self._config = config
        self._out = _out_method(config)
        self._negotiation = self._new_negotiation()
        self._gathering.drop_unfit(self._negotiation.objection)
        self._idle.timeout_s = config.timeout_s
        self._limit = self._new_limit()

    def _is_over(self) -> bool:
        return self._main is not None and not self._crew.is_busy()

    def _serve(self, timeout_s: float) -> None:
        """One turn: accept, notice errors, silence and who has gone, report."""
        if not self.has_begun:
            if self._is_draining:
                raise Cancelled("the relay takes no further migration")
            if (config := self._next_config) is not None:
                self._next_config = None
                self._take_settings(config)
        for arrival in self._acceptor.wait(timeout_s):
            self._take(arrival)
        while self._started:
            self._elect(self._started.popleft())
        self._crew.check()
        if self._main is None:
            timeout_s = self._config.timeout_s
            self._gathering.drop_leftovers(timeout_s if self._candidates else min(timeout_s, _ALONE_S))
        elif self._main.is_understood:
            # In this order: the end may pass in between, and then the destination closes because it has everything.
            gone = [destination for destination in self._outs() if destination.has_hung_up()]
            if gone and not self._main.stream_ended.is_set():
                raise ChannelError(f"{gone[0].peer} closed the connection before it had everything")
        if self._main is not None:
            self._settle_channels(self._main)
            self._idle.check()
        if self._on_progress is not None and time.monotonic() - self._reported >= _PROGRESS_S:
            self._reported = time.monotonic()
            self._on_progress(self.result)

    def _outs(self) -> list[Connection]:
        links = [link.destination for link in list(self._channels.values())]
        main = self._main.destination if self._main else None
        return [connection for connection in (*links, main) if connection is not None]

    def _describe_connections(self) -> str:
        return f"; main is connected, {len(self._channels)} channels are"

    def _take(self, arrival: Arrival) -> None:
        incoming, peer, init = arrival
        if self._next_has_come or (init is None and self._main is not None and self._main.source_is_done.is_set()):
            self._next_has_come = True
            self._acceptor.defer(arrival)
        elif init is not None:
            self._take_channel(arrival, init)
        elif self._main is None:
            source = incoming.take(self._idle, f"the source's main ({peer})")
            self._take_candidate(RelayMain(source, self.fate, peer))
        else:
            self._acceptor.dismiss(incoming)

    def _take_candidate(self, candidate: RelayMain) -> None:
        """What starts like main; it is main once it has said more than strangers do."""
        self._idle.touch()
        self._candidates.add(candidate, candidate.source)

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

    def _elect(self, main: RelayMain) -> None:
        self._candidates.remove(main)
        # Among strangers, what nobody here understands may be any of theirs.
        is_quiet = self._acceptor.listener.is_local or self._acceptor.rejected == self._rejected_before
        if self._main is not None or not (main.is_understood or is_quiet):
            main.source.close()
            self._acceptor.count()
            return
        self._idle.touch()
        self._start = time.monotonic()
        self._main = main
        self._gathering.main_is_from(main.came_from)
        for other in self._candidates:
            other.source.shutdown()
        self._crew.start("relay_main", self._run_main, main)

    def _take_channel(self, arrival: Arrival, init: InitPacket) -> None:
        """Keep a channel until main is there: it says whose the channels are, and a QEMU up to 7.2 needs it first."""
        objection = self._negotiation.objection(init)
        key = key_of(arrival, init)
        if objection is None and self._key not in (None, key):
            objection = RemoteWireError(f"channel {init.id} announces {init}, others of this migration something else")
        if objection is None and self._key is not None and init.id in self._channels:
            objection = connected_twice(init)
        if objection is None and self._key is None:
            objection = self._gathering.add(arrival, init)
        elif objection is None and self._main is not None:
            self._start_channel(arrival, init, self._main)
        if objection is not None:
            # Nobody ends a migration by what he announces; it explains what may go wrong because of it.
            self._gathering.turn_away(arrival, init, objection)

    def _settle_channels(self, main: RelayMain) -> None:
        """Once it is known whose they are: the channels that have come, and from now on those that are like them."""
        for key in self._gathering.choices() if self._key is None else ():
            self._key = key
            for arrival in self._gathering.choose(key).values():
                init = arrival[2]
                if init is not None:
                    if not self._channels:
                        self._negotiation.settle(init)
                    self._start_channel(arrival, init, main)
            return

    def _start_channel(self, arrival: Arrival, init: InitPacket, main: RelayMain) -> None:
        incoming, peer, _ = arrival
        link = _Link(incoming.take(self._idle, f"the source's channel {init.id} ({peer})"), init)
        self._idle.touch()
        self._channels[init.id] = link
        self._crew.start(f"relay_{init.id}", self._run_channel, link, main)

    def _cancel(self) -> None:
        """From `Canceller`, in any thread: what blocks ends, the caller's thread raises `Cancelled`."""
        self._crew.fail(Cancelled("the relay was cancelled"))
        self._idle.abort.set()
        self._acceptor.wake()

    # -- the end ------------------------------------------------------------------------------------

    def _settle(self, error: BaseException) -> BaseException:
        """Decide what happened; returns what to raise."""
        destination = self._main.destination if self._main else None
        is_ours = isinstance(error, MultifdError)
        if is_ours and self._return is not None and destination is not None and destination.has_hung_up():
            # The destination's own word, if it comes, says more than a connection that broke.
            self._return.join(_GRACE_S)
        told = self._crew.first_error(error)
        objection = self._gathering.objection
        if objection is not None and isinstance(told, ChannelError | PeerFailed):
            objection.add_note(str(told))
            told = objection
        if isinstance(told, ChannelError | PeerFailed) and self._may_be_another_method(told):
            told.add_note(
                "if the destination is a QEMU, its multifd-compression may be another than "
                f"{self._config.out_method!r}: libvirt sets it alike at both ends, and what goes out must be of the "
                "source's method then ('same')"
            )
        is_explained = isinstance(told, TlsError) or self.result.packets > len(self._channels)
        if isinstance(told, ChannelError) and destination is not None and not is_explained:
            note_hint(told, destination.silence_hint())
        return self.fate.conclude(told)

    def _may_be_another_method(self, error: MultifdError) -> bool:
        """Whether the destination failed as a QEMU does that was told of another method: pages came, channels ended."""
        main, method = self._main, self._negotiation.method
        if main is None or main.stream_ended.is_set() or self._out is None or method is None or method is self._out:
            return False
        outs = [link.destination for link in list(self._channels.values()) if link.destination is not None]
        has_ended = any(destination.has_hung_up() or destination.was_reset() for destination in outs)
        return method.name != self._out.name and (has_ended or error.setting == "timeout")

    def _tear_down(self) -> None:
        self._idle.abort.set()
        if self._main is not None:
            self._main.release()
        self._keys_at_end = frozenset(self._gathering.choices() if self._key is None else [self._key])
        self._gathering.dismiss()
        connections = [link.source for link in self._channels.values()] + self._outs()
        mains = [*self._candidates, *self._started, *([self._main] if self._main else [])]
        connections += [main.source for main in mains]
        for connection in connections:
            connection.shutdown()
        if late := self._crew.join():
            _LOG.warning("%s: still busy %g s after the end", ", ".join(late), JOIN_S)
        # A thread may have connected while the others were shut down.
        for connection in {*connections, *self._outs()}:
            connection.close()

    # -- threads ------------------------------------------------------------------------------------

    def _connect(self, what: str, *, retry: bool) -> Connection:
        config = self._config
        destination = connect(
            config.to,
            self._idle,
            timeout_s=config.connect_timeout_s,
            limit=self._limit,
            retry=retry,
            tls=config.out_tls,
        )
        destination.peer = f"the destination's {what} ({config.to})"
        if self._idle.abort.is_set():
            destination.close()
            self._idle.check()
        return destination

    def _connect_main(self) -> Connection:
        destination = self._connect("main", retry=True)
        if self._config.out_tls is None:
            clear.warn_leaving(destination, self._config.to)
        return destination

    def _run_main(self, main: RelayMain) -> None:
        main.run(self._connect_main, lambda destination: self._start_return(main, destination))

    def _start_return(self, main: RelayMain, destination: Connection) -> None:
        self._return = self._crew.start("relay_return", main.run_return, destination)

    def _run_channel(self, link: _Link, main: RelayMain) -> None:
        main.is_out.wait()  # the end of everything sets it, too
        self._idle.check()
        init = link.init
        link.destination = destination = self._connect(f"channel {init.id}", retry=False)
        channels = init.channels or self._config.channels or 0
        announced = replace(init, channels=channels)
        if self._out is not None:
            announced = replace(announced, wire_version=self._out.wire_version, method=self._out.name)
        destination.send([announced.encode()])
        main.has_geometry.wait()  # the end of everything sets it, too
        self._idle.check()
        passing: Passing | Transcoder
        if self._out is None:
            passing = Passing(init.id, main.geometry, self._check_method, link.figures)
        else:
            method_of = self._negotiation.method_of
            passing = Transcoder(init.id, main.geometry, method_of, self._out, self._idle, link.figures)
        try:
            passing.run(link.source, destination)
        except ChannelError:
            # 9.1 and 9.2 end with a SYNC that no destination waits for: it may come after its end.
            if not (main.stream_ended.is_set() and destination.has_hung_up()):
                raise
        if link.source.may_be_cut:
            self._check_cut(link, main)
        destination.finish()

    def _check_cut(self, link: _Link, main: RelayMain) -> None:
        """A channel ended, and somebody on the way may have cut it: main says whether all of it is here."""
        while not main.stream_ended.wait(_POLL_S):
            self._idle.check()
        if main.is_understood and link.figures.syncs < main.sync_points:
            raise ChannelError(f"{link.source.peer} closed the connection before sync point {link.figures.syncs + 1}")

    def _check_method(self, code: int) -> None:
        """Of a packet that goes on as it is: the method need not be known here, unless only one may be."""
        try:
            self._negotiation.method_of(code)
        except (MethodError, PeerMismatch, RemoteWireError):
            if self._config.in_method is not None:
                raise


def _out_method(config: RelayConfig) -> MultifdMethods | None:
    """The method towards the destination; None if packets go on as they come."""
    return None if config.out_method == SAME else load_method(config.out_method)


def _sum(counters: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counters:
        total.update(dict(one))  # a copy: the channel goes on counting
    return dict(total)
