"""Between two QEMUs: a migration comes in by one method and goes on by another.

Rules of this file: the caller's thread accepts, watches time and ends it all; one thread passes on
each direction of main, one each channel. Main's bytes go on untouched as they come, and are only
looked at; a packet goes on before the next is read, so a slow destination holds the source back.
The first error wins: it closes both sides, is raised here with the others as notes, and no thread
or socket outlives the call.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from multifd.engine.negotiation import Negotiation
from multifd.engine.transcoder import ChannelFigures, Transcoder
from multifd.errors import ChannelError, MultifdError, PeerFailed, StreamError, UsageError, note_others
from multifd.pages import Geometry
from multifd.registry import load_method
from multifd.stats import RelayResult
from multifd.transport.accept import Acceptor, Arrival
from multifd.transport.address import Uri
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.wire import return_path, stream
from multifd.wire.packet import INIT_BYTES, InitPacket
from multifd.wire.reader import MainStreamReader

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_JOIN_S = 10.0
_GRACE_S = 0.5
"""How long a destination that has hung up may take to say on the return path what went wrong."""
_MOST_CHANNELS = 255  # multifd-channels, qapi/migration.json, QEMU 10.0


@dataclass(frozen=True)
class RelayConfig:
    """How to relay; the arguments of `multifd.api.relay`, checked."""

    to: Uri
    in_method: str | None = None
    out_method: str = "none"
    channels: int | None = None
    connect_timeout_s: float = 10.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if self.channels is not None and not 1 <= self.channels <= _MOST_CHANNELS:
            raise UsageError(f"channels: got {self.channels}, expected 1 to {_MOST_CHANNELS}")
        if self.timeout_s <= 0 or self.connect_timeout_s <= 0:
            raise UsageError("the timeouts must be positive")
        for spec in filter(None, (self.in_method, self.out_method)):
            load_method(spec)


@dataclass(slots=True)
class _Link:
    """A connection of the source and the one to the destination that goes with it."""

    source: Connection
    init: InitPacket | None = None
    """None for main."""
    destination: Connection | None = None
    """None until it is connected; from then on closed by whoever closes the source's."""
    figures: ChannelFigures = field(default_factory=ChannelFigures)


class Relay:
    """One migration through this process; use once.

    Args:
        arrivals: who connects; the caller closes it. The next migration's connections may come before this
            one is over, and stay there.
        config: how.
    """

    def __init__(self, arrivals: Acceptor, config: RelayConfig) -> None:
        self._config, self._arrivals = config, arrivals
        self._strangers_before = arrivals.strangers
        self._out = load_method(config.out_method)
        self._agreement = self._new_agreement()
        self._silence = IdleTimer(config.timeout_s, self._describe_connections)
        self._main: _Link | None = None
        self._channels: dict[int, _Link] = {}
        self._main_is_out = threading.Event()  # main is connected to the destination, or all is over
        self._geometry_known = threading.Event()  # or all is over
        self._geometry = Geometry.of(4096)
        self._reader: MainStreamReader | None = MainStreamReader()  # None: main is not understood
        self._has_return_path = False
        self._stream_ended = threading.Event()  # the destination has all of main, or is about to
        self._source_is_done = threading.Event()  # another main now is the next migration's
        self._next_has_come = False
        self._return: threading.Thread | None = None
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._start = self._end = 0.0
        self._status, self._error = "active", ""

    @property
    def has_begun(self) -> bool:
        """Whether a source has connected."""
        return self._start > 0

    def run(self) -> RelayResult:
        """Wait, for ever, for a source, and pass its migration on.

        Raises:
            MultifdError: what went wrong first; `result` has the figures up to then.
            KeyboardInterrupt: passes through, after everything was torn down.
        """
        try:
            for arrival in self._arrivals.take_kept():
                self._take(arrival)
            while not self._is_over():
                self._serve(_POLL_S)
            self._raise_errors()
        except BaseException as e:
            error = self._first_error(e)
            note_others(error, self._errors)
            self._tear_down("failed" if isinstance(error, Exception) else "cancelled", str(error))
            if error is e:
                raise
            raise error from None
        self._tear_down("completed")
        return self.result()

    def result(self) -> RelayResult:
        """The figures so far; from any thread."""
        channels = list(self._channels.values())
        links = [*channels, self._main] if self._main else channels
        end = self._end or time.monotonic()
        return RelayResult(
            status=self._status,
            in_method=self._agreement.method.name if self._agreement.method else "",
            out_method=self._out.name,
            channels=len(channels),
            total_time_ms=round((end - self._start) * 1e3, 3) if self.has_begun else 0.0,
            packets=sum(link.figures.packets for link in channels),
            normal_pages=sum(link.figures.normal_pages for link in channels),
            zero_pages=sum(link.figures.zero_pages for link in channels),
            bytes_in=sum(link.source.bytes_received for link in links),
            bytes_out=sum(link.destination.bytes_sent for link in links if link.destination),
            strangers=self._arrivals.strangers - self._strangers_before,
            in_stats=_sum(link.figures.in_counters for link in channels),
            out_stats=_sum(link.figures.out_counters for link in channels),
            error=self._error or None,
        )

    # -- the caller's thread ----------------------------------------------------------------------

    def _new_agreement(self) -> Negotiation:
        specs = (self._config.in_method,) if self._config.in_method else ()
        return Negotiation(
            specs,
            self._config.channels,
            is_local=self._arrivals.listener.is_local,
            unannounced=_MOST_CHANNELS,
            option="--in",
        )

    def _is_over(self) -> bool:
        return self._main is not None and not any(thread.is_alive() for thread in self._threads)

    def _serve(self, timeout_s: float) -> None:
        """One turn: accept, notice errors, silence and who has gone."""
        for arrival in self._arrivals.wait(timeout_s):
            self._take(arrival)
        self._raise_errors()
        if self._main is None:
            self._forget_who_gave_up()
        elif self._reader is not None and not self._stream_ended.is_set():
            for link in self._channels.values():
                if link.destination is not None and link.destination.has_hung_up():
                    raise ChannelError(f"{link.destination.peer} closed the connection before it had everything")
        if self.has_begun:
            self._silence.check()

    def _raise_errors(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _describe_connections(self) -> str:
        main = "connected" if self._main else "not connected"
        return f"; main is {main}, {len(self._channels)} channels are"

    def _begin(self) -> None:
        self._silence.touch()
        self._start = self._start or time.monotonic()

    def _take(self, arrival: Arrival) -> None:
        sock, peer, init = arrival
        if self._next_has_come or (init is None and self._source_is_done.is_set()):
            self._next_has_come = True
            self._arrivals.keep(arrival)
        elif init is not None:
            self._take_channel(sock, peer, init)
        elif self._main is None:
            self._take_main(sock, peer)
        else:
            self._arrivals.dismiss(sock)

    def _take_main(self, sock: socket.socket, peer: str) -> None:
        self._begin()
        self._main = _Link(Connection(sock, self._silence, f"the source's main ({peer})"))
        self._main.source.bytes_received = len(stream.MAGIC_BYTES)
        self._start_thread("relay_main", self._run_main, self._main)
        for id_, link in self._channels.items():
            self._start_thread(f"relay_{id_}", self._run_channel, link)

    def _take_channel(self, sock: socket.socket, peer: str, init: InitPacket) -> None:
        """Start a channel, or keep it until main is there: a destination up to 7.2 needs main first."""
        self._begin()
        link = _Link(Connection(sock, self._silence, f"the source's channel {init.id} ({peer})"), init)
        try:
            self._agreement.admit(init)
        except BaseException:
            link.source.close()
            raise
        link.source.bytes_received = INIT_BYTES
        self._channels[init.id] = link
        if self._main is not None:
            self._start_thread(f"relay_{init.id}", self._run_channel, link)

    def _forget_who_gave_up(self) -> None:
        """Channels that were closed before their main came: the rest of a migration that failed early."""
        gone = [id_ for id_, link in self._channels.items() if link.source.has_hung_up()]
        if not gone:
            return
        for id_ in gone:
            self._arrivals.strangers += 1
            self._channels.pop(id_).source.close()
        self._agreement = self._new_agreement()
        for link in self._channels.values():
            self._agreement.admit(_init(link))
        if not self._channels:
            self._start = 0.0

    def _start_thread(self, name: str, run: Callable[..., None], *args: object) -> threading.Thread:
        def guarded() -> None:
            try:
                run(*args)
            except BaseException as e:
                self._errors.append(e)
            self._arrivals.wake()

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _first_error(self, caught: BaseException) -> BaseException:
        """What to raise: the destination's own word if it comes, else the first error."""
        if not isinstance(caught, MultifdError):
            return caught
        destination = self._main.destination if self._main else None
        if self._return is not None and destination is not None and destination.has_hung_up():
            self._return.join(_GRACE_S)
        words = [e for e in self._errors if isinstance(e, PeerFailed)]
        return [*words, *self._errors, caught][0]

    def _tear_down(self, status: str, error: str = "") -> None:
        self._silence.stop()
        self._main_is_out.set()
        self._geometry_known.set()
        links = [link for link in (self._main, *self._channels.values()) if link is not None]
        for connection in _connections(links):
            connection.shutdown()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._end, self._status, self._error = time.monotonic(), status, error
        for connection in _connections(links):
            connection.close()

    # -- the threads of main ----------------------------------------------------------------------

    def _connect(self, link: _Link, what: str, *, retry: bool) -> Connection:
        config = self._config
        destination = connect(config.to, self._silence, timeout_s=config.connect_timeout_s, retry=retry)
        destination.peer = f"the destination's {what} ({config.to})"
        if self._silence.stopped.is_set():
            destination.close()
            self._silence.check()
        link.destination = destination
        return destination

    def _run_main(self, link: _Link) -> None:
        source, destination = link.source, self._connect(link, "main", retry=True)
        # Its first bytes at once: a destination of 8.0 or later stands still until it has seen them.
        destination.send([stream.MAGIC_BYTES])
        self._main_is_out.set()
        self._return = self._start_thread("relay_return", self._run_return, source, destination)
        buffer = memoryview(bytearray(1 << 16))
        self._look(stream.MAGIC_BYTES)
        while got := source.recv_into([buffer], at_least=1):
            self._look(buffer[:got])
            destination.send([buffer[:got]])
        if self._reader is not None:
            try:
                self._reader.end()
            except StreamError as e:
                raise ChannelError(f"{source.peer} closed the connection: {e}") from e
        self._stream_ended.set()
        self._source_is_done.set()
        destination.shutdown_write()

    def _look(self, data: bytes | memoryview) -> None:
        """Look at a piece of main before it goes on: the page size, the return path, the end."""
        if self._reader is None:
            return
        reader, events = self._reader, None
        try:
            events = reader.feed(data)
        except StreamError as e:
            _LOG.info("from here on main is passed on without being understood: %s", e)
            self._reader = None
        for event in events or ():
            if isinstance(event, stream.ReturnPathOpened):
                self._has_return_path = True
            elif isinstance(event, stream.StreamEnd):
                self._stream_ended.set()
        if events != [] and not self._geometry_known.is_set():
            self._geometry = Geometry.of(reader.page_size)  # the configuration comes before all else
            self._geometry_known.set()

    def _run_return(self, source: Connection, destination: Connection) -> None:
        """The other direction; its end is the destination's end."""
        answers: return_path.ReturnPathReader | None = return_path.ReturnPathReader()
        shut: int | None = None
        buffer = memoryview(bytearray(4096))
        while got := destination.recv_into([buffer], at_least=1):
            try:
                for kind, value in answers.feed(bytes(buffer[:got])) if answers else ():
                    if kind == return_path.SHUT:
                        shut = value
                        self._source_is_done.set()
            except StreamError as e:
                _LOG.info("from here on the return path is passed on without being understood: %s", e)
                answers = None
            source.send([buffer[:got]])
        if shut:
            raise PeerFailed("the destination reports that it failed; its own message says why")
        if self._reader is not None and not self._stream_ended.is_set():
            raise ChannelError(f"{destination.peer} closed the connection before it had everything")
        if self._has_return_path and answers is not None and shut is None:
            raise ChannelError(f"{destination.peer} closed the connection without a confirmation")
        source.shutdown_write()

    # -- channel threads --------------------------------------------------------------------------

    def _run_channel(self, link: _Link) -> None:
        init = _init(link)
        self._main_is_out.wait()
        self._silence.check()
        destination = self._connect(link, f"channel {init.id}", retry=False)
        out = self._out
        channels = init.channels or self._config.channels or 0
        announced = replace(init, channels=channels, wire_version=out.wire_version, method=out.name)
        destination.send([announced.encode()])
        self._geometry_known.wait()
        self._silence.check()
        recoder = Transcoder(init.id, self._geometry, self._agreement, out, self._silence.abort, link.figures)
        try:
            recoder.run(link.source, destination)
        except ChannelError:
            # 9.1 and 9.2 end with a SYNC that no destination waits for: it may come after its end.
            if not (self._stream_ended.is_set() and destination.has_hung_up()):
                raise
        destination.shutdown_write()


def _init(link: _Link) -> InitPacket:
    assert link.init is not None
    return link.init


def _connections(links: Iterable[_Link]) -> list[Connection]:
    return [c for link in links for c in (link.source, link.destination) if c is not None]


def _sum(counters: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counters:
        total.update(dict(one))  # a copy: the channel goes on counting
    return dict(total)
