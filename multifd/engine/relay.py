"""Between two QEMUs: a migration comes in by one method and goes on by another.

Rules of this file: the caller's thread accepts, watches time and ends it all; one thread passes on
each direction of main, one each channel. Whatever ends the migration goes through `_settle`, where the first error is
chosen and `Fate` says where the memory is.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from uuid import UUID

from multifd.engine.canceller import Canceller
from multifd.engine.config import SAME, RelayConfig
from multifd.engine.crew import JOIN_S, Crew
from multifd.engine.fate import RELAY, Fate, attach
from multifd.engine.relay_channel import RelayChannel
from multifd.engine.relay_end import explain
from multifd.engine.relay_main import RelayMain
from multifd.engine.relay_muster import RelayMuster
from multifd.engine.relay_way import RelayWay
from multifd.errors import Cancelled, ChannelError, MultifdError
from multifd.stats import RelayResult
from multifd.transport.accept import Acceptor, Arrival
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.wire.packet import InitPacket
from multifd.wire.stream import NO_UUID

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_GRACE_S = 0.5
"""How long a destination that has hung up may take to say on the return path what went wrong."""
_PROGRESS_S = 0.1


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
        self._acceptor, self._on_progress = acceptor, on_progress
        self._canceller = canceller or Canceller()
        self._rejected_before, self._tls_failures_before = acceptor.rejected, acceptor.tls_failures
        self._idle = IdleTimer(config.timeout_s, self._describe_connections)
        self._way = self._way_of(config)
        self._crew = Crew(self._idle, acceptor.wake)
        self.fate = Fate(RELAY)
        self._muster = RelayMuster(acceptor, self._way.negotiation, self._crew, self._idle, self.fate)
        self._channels: list[RelayChannel] = []
        self._return: threading.Thread | None = None
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
        self._muster.drain()

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
                self._muster.take(arrival)
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
        """After a failure: close what still comes of this migration, as `RelayMuster.turn_away_late` does.

        `result` counts it, too.
        """
        self._muster.turn_away_late()

    @property
    def result(self) -> RelayResult:
        """The figures so far; from any thread."""
        channels, main, way = list(self._channels), self._muster.main, self._way
        ins = [channel.source for channel in channels] + ([main.source] if main else [])
        outs = self._outs()
        end = self._end or time.monotonic()
        return RelayResult(
            status=self._status if self.has_begun or self._end else "waiting",
            uuid=_guest(way.negotiation.uuid),
            in_method=way.negotiation.method.name if way.negotiation.method else "",
            out_method=way.out.name if way.out else SAME,
            channels=len(channels),
            total_time_ms=round((end - self._start) * 1e3, 3) if self.has_begun else 0.0,
            packets=sum(channel.figures.packets for channel in channels),
            normal_pages=sum(channel.figures.normal_pages for channel in channels),
            zero_pages=sum(channel.figures.zero_pages for channel in channels) + (main.zero_pages if main else 0),
            bytes_in=sum(connection.bytes_received for connection in ins),
            bytes_out=sum(connection.bytes_sent for connection in outs),
            sync_points=main.sync_points if main else 0,
            stalls=sum(connection.stalls for connection in outs),
            rejected=self._acceptor.rejected - self._rejected_before,
            tls_failures=self._acceptor.tls_failures - self._tls_failures_before,
            out_tls_failures=way.tls_failures,
            in_stats=_sum(channel.figures.in_counters for channel in channels),
            out_stats=_sum(channel.figures.out_counters for channel in channels),
            error=self._error or None,
            notes=self._notes,
        )

    # -- the caller's thread ----------------------------------------------------------------------

    def _way_of(self, config: RelayConfig) -> RelayWay:
        return RelayWay(config, self._idle, is_local=self._acceptor.listener.is_local)

    def _take_settings(self, config: RelayConfig) -> None:
        self._way = self._way_of(config)
        self._muster.go_by(self._way.negotiation)
        self._idle.timeout_s = config.timeout_s

    def _is_over(self) -> bool:
        return self.has_begun and not self._crew.is_busy()

    def _serve(self, timeout_s: float) -> None:
        """One turn: accept, notice errors, silence and who has gone, report."""
        if not self.has_begun:
            if self._muster.is_draining:
                raise Cancelled("the relay takes no further migration")
            if (config := self._next_config) is not None:
                self._next_config = None
                self._take_settings(config)
        for arrival in self._acceptor.wait(timeout_s):
            self._muster.take(arrival)
        if (elected := self._muster.elect()) is not None:
            self._begin(elected)
        self._crew.check()
        main = self._muster.main
        if main is None:
            self._muster.drop_leftovers(self._way.config.timeout_s)
        else:
            self._check_outs(main)
            main.check_source()
            for arrival, init in self._muster.channels():
                self._start_channel(arrival, init, main)
            self._idle.check()
        if self._on_progress is not None and time.monotonic() - self._reported >= _PROGRESS_S:
            self._reported = time.monotonic()
            self._on_progress(self.result)

    def _check_outs(self, main: RelayMain) -> None:
        if not main.is_understood:
            return
        # In this order: the end may pass in between, and then the destination closes because it has everything.
        gone = [destination for destination in self._outs() if destination.has_hung_up()]
        if gone and not main.stream_ended.is_set():
            raise ChannelError(f"{gone[0].peer} closed the connection before it had everything")

    def _outs(self) -> list[Connection]:
        outs = [channel.destination for channel in list(self._channels)]
        if (main := self._muster.main) is not None:
            outs.append(main.destination)
        return [connection for connection in outs if connection is not None]

    def _describe_connections(self) -> str:
        why = f" ({self._acceptor.exhaustion})" if self._acceptor.exhaustion else ""
        return f"; main is connected, {len(self._channels)} channels are{why}"

    def _begin(self, main: RelayMain) -> None:
        self._start = time.monotonic()
        self._crew.start(
            "relay_main", main.run, self._way.connect_main, lambda destination: self._start_return(main, destination)
        )

    def _start_return(self, main: RelayMain, destination: Connection) -> None:
        """In main's thread."""
        self._return = self._crew.start("relay_return", main.run_return, destination)

    def _start_channel(self, arrival: Arrival, init: InitPacket, main: RelayMain) -> None:
        incoming, peer, _ = arrival
        channel = RelayChannel(incoming.take(self._idle, f"the source's channel {init.id} ({peer})"), init)
        self._idle.touch()
        self._channels.append(channel)
        self._crew.start(f"relay_{init.id}", channel.run, main, self._way)

    def _cancel(self) -> None:
        """From `Canceller`, in any thread: what blocks ends, the caller's thread raises `Cancelled`."""
        self._crew.fail(Cancelled("the relay was cancelled"))
        self._idle.abort.set()
        self._acceptor.wake()

    # -- the end ------------------------------------------------------------------------------------

    def _settle(self, error: BaseException) -> BaseException:
        """Decide what happened; returns what to raise."""
        main = self._muster.main
        destination = main.destination if main else None
        is_ours = isinstance(error, MultifdError)
        if is_ours and self._return is not None and destination is not None and destination.has_hung_up():
            # The destination's own word, if it comes, says more than a connection that broke.
            self._return.join(_GRACE_S)
        first = self._crew.first_error(error)
        told = explain(first, self._way, main, list(self._channels), self._muster.objection)
        return self.fate.conclude(told) if self.has_begun else told  # else there is no memory to speak of

    def _tear_down(self) -> None:
        self._idle.abort.set()
        if self._muster.main is not None:
            self._muster.main.release()
        connections = [main.source for main in self._muster.dismiss()] + self._outs()
        connections += [channel.source for channel in self._channels]
        for connection in connections:
            connection.shutdown()
        if late := self._crew.join():
            _LOG.warning("%s: still busy %g s after the end", ", ".join(late), JOIN_S)
        # A thread may have connected while the others were shut down.
        for connection in {*connections, *self._outs()}:
            connection.close()


def _guest(uuid: bytes) -> str:
    return "" if uuid == NO_UUID else str(UUID(bytes=uuid))


def _sum(counters: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counters:
        total.update(dict(one))  # a copy: the channel goes on counting
    return dict(total)
