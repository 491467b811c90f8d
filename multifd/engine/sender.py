"""The source's end: channels pull packets from one shared round, a SYNC on each ends the round.

Rules of this file: the caller's thread owns main, the return path, progress and time; each channel
has one thread, which owns its connection, its `SendParams` and its `Staging`. They meet in `Rounds`
alone. The first error wins: it stops everything, is raised here with the others as notes, and no
thread or socket outlives the call.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from multifd.engine.canceller import Canceller
from multifd.engine.payload import prepare_payload
from multifd.engine.sync import OneRound, Packet, Rounds, Schedule
from multifd.errors import (
    Cancelled,
    ChannelError,
    MultifdError,
    OutcomeUnknown,
    PeerFailed,
    RamError,
    StreamError,
    UsageError,
    note_others,
)
from multifd.method import MultifdMethods, SendParams, run_hook
from multifd.methods.none import NoneMethod
from multifd.pages import Geometry
from multifd.ram.block import Source, Staging
from multifd.stats import ChannelStats, MigrationStats, Result
from multifd.transport.address import Uri
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.wire import return_path, stream, writer
from multifd.wire.dialect import Dialect
from multifd.wire.packet import NO_OFFSETS, PRIVATE_CODE, InitPacket, PacketEncoder

_POLL_S = 0.05
_JOIN_S = 10.0
_GRACE_S = 0.5
"""How long a broken channel waits for the destination's own word on what went wrong."""
_STATUS = {OutcomeUnknown: "unknown", KeyboardInterrupt: "cancelled", Cancelled: "cancelled"}
_LOOK = "It may hold the memory: look there before the source runs again"


@dataclass(frozen=True)
class SendConfig:
    """How to send; the command line's and `multifd.send`'s arguments, checked."""

    uri: Uri
    channels: int
    dialect: Dialect
    max_bandwidth: int = 0
    """Bytes each second over all connections; 0 is unlimited."""
    connect_timeout_s: float = 10.0
    timeout_s: float = 60.0
    """How long all connections may be silent."""

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 255:
            raise UsageError(f"channels: got {self.channels}, expected 1 to 255")
        if self.max_bandwidth < 0 or self.timeout_s <= 0 or self.connect_timeout_s <= 0:
            raise UsageError("max-bandwidth and the timeouts must not be negative")


class Sender:
    """One migration out of this process; use once.

    Args:
        source: what is sent; the caller closes it.
        method: ready for one migration.
        config: where to and how.
        on_progress: called in the caller's thread with the figures so far, about ten times a second.
        schedule: which pages go in which round; None: all at once.
        handle: to cancel it with.
    """

    def __init__(
        self,
        source: Source,
        method: MultifdMethods,
        config: SendConfig,
        on_progress: Callable[[Result], None] | None = None,
        schedule: Schedule | None = None,
        handle: Canceller | None = None,
    ) -> None:
        self._source, self._method, self._config = source, method, config
        self._on_progress = on_progress
        self._geometry = Geometry.of(source.machine.page_size)
        self._schedule = schedule or OneRound(source.blocks, self._geometry)
        self._handle = handle or Canceller()
        self._code = PRIVATE_CODE if method.wire_code is None else method.wire_code
        # The payload is the pages themselves: no hook needs to see them.
        self._sends_in_place = method.capabilities.verbatim and type(method).send_prepare is NoneMethod.send_prepare
        self._silence = IdleTimer(config.timeout_s)
        self._limit = RateLimit(config.max_bandwidth, self._silence.stopped) if config.max_bandwidth else None
        self._rounds = Rounds(config.channels)
        self._packet_nums = itertools.count(1)
        self._answers = return_path.ReturnPathReader()
        self._ping, self._pong = 1, 0  # PING 1 goes out with the return path's opening
        self.is_handed_over = False
        """The destination has the memory, or may have it; the source must not run."""
        self._main: Connection | None = None
        self._main_lock = threading.Lock()
        self._channels: list[Connection] = []
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self.stats = MigrationStats(time.monotonic())
        self.stats.method = method.name
        self.stats.ram_bytes = sum(b.used_length for b in source.blocks)

    def run(self) -> Result:
        """Send everything and wait until the destination has it.

        Raises:
            MultifdError: what went wrong first; `stats` has the figures up to then.
            KeyboardInterrupt: passes through, after everything was torn down.
        """
        try:
            self._handle.begin(self._cancel)
            with self._schedule.recovery(self):
                self._migrate()
        except BaseException as e:
            error = self._first_error(e)
            status = _STATUS.get(type(error), "failed")
            self._tear_down(graceful=False)
            self._count_bytes()
            self.stats.finish(time.monotonic(), status, str(error) or type(error).__name__)
            if error is e:
                raise
            raise error from None
        self._count_bytes()
        self.stats.finish(time.monotonic(), "completed")
        self._tear_down(graceful=True)
        return self.stats.snapshot(time.monotonic())

    # -- the caller's thread ----------------------------------------------------------------------

    def _migrate(self) -> None:
        machine = self._source.machine
        self._connect()
        self._write(writer.encode_ram_start(machine) + b"".join(map(writer.encode_block, machine.blocks)))
        self._round(())
        self.stats.setup_done(time.monotonic())
        for packets in self._schedule.rounds(self):
            self._write(writer.encode_ram_next(stream.PART, machine.ram_section_id))
            self._round(packets)
        self.stats.switchover(time.monotonic())
        left = self._schedule.last(self)
        self._write(writer.encode_ram_next(stream.END, machine.ram_section_id))
        self._round(left)
        last = b""
        for piece in self._source.device_state():
            self._write(last)
            last = piece
        self._hand_over(last)
        self._await_shut()

    def confirm(self) -> None:
        """Return when the destination has everything of the rounds so far in place: a PING, and its PONG."""
        main = self._main
        assert main is not None
        self._ping += 1
        self._write(writer.encode_ping(self._ping))
        self._watch()
        while self._pong < self._ping:
            main.wait_readable(_POLL_S)
            self._watch()

    def lift_limit(self) -> None:
        """The bandwidth limit ends: the source stands still (migration/migration.c, migration_completion)."""
        if self._limit is not None:
            self._limit.lift()

    def _cancel(self) -> None:
        """From `Canceller.cancel`, in any thread: what blocks ends, the caller's thread raises `Cancelled`."""
        self._errors.append(Cancelled("the migration was cancelled"))
        self._rounds.close()
        self._silence.stop()

    def _hand_over(self, end: bytes) -> None:
        """The stream's last piece: once any of it is out, only the destination knows how this ends."""
        main = self._main
        assert main is not None
        self._handle.hand_over()
        before, self.is_handed_over = main.bytes_sent, True
        try:
            self._write(end)
        except ChannelError as e:
            if main.bytes_sent != before:
                raise OutcomeUnknown(f"the connection broke with the last bytes: {e}. {_LOOK}") from e
            self.is_handed_over = False
            raise

    def _connect(self) -> None:
        config = self._config
        self._main = connect(
            config.uri, self._silence, timeout_s=config.connect_timeout_s, limit=self._limit, retry=True
        )
        # Main first, with its magic: a destination up to 7.2 takes the first connection for main.
        self._write(writer.encode_header(self._source.machine))
        self._write(writer.encode_return_path())
        for i in range(config.channels):
            connection = connect(config.uri, self._silence, timeout_s=config.connect_timeout_s, limit=self._limit)
            self._channels.append(connection)
            method = self._method
            init = InitPacket(i, self._source.machine.uuid, config.channels, method.wire_version, method.name)
            connection.send([init.encode()])
            thread = threading.Thread(
                target=self._run_channel,
                args=(i, connection, self.stats.add_channel()),
                name=f"multifdsend_{i}",  # QEMU's name for it
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()

    def _write(self, data: bytes) -> None:
        """Bytes of the main stream; channel threads write ZERO words between ours."""
        main = self._main
        assert main is not None
        with self._main_lock:
            main.send([data])

    def _round(self, packets: Iterable[Packet]) -> None:
        """Hand out the packets, wait until every channel has synced, end the section."""
        self._rounds.start(packets)
        while not self._rounds.wait_synced(_POLL_S):
            self._watch()
        self._raise_errors()
        if self._config.dialect.flush_words:
            self._write(writer.encode_flush())
        self._write(writer.encode_eos(self._source.machine))

    def _watch(self) -> None:
        """Errors, silence, the destination's word, progress: what the caller's thread waits for."""
        self._raise_errors()
        self._silence.check()
        if self._read_answers():
            raise ChannelError("the destination confirmed before it had everything")
        self._count_bytes()
        if self.stats.tick(time.monotonic()) and self._on_progress is not None:
            self._on_progress(self.stats.snapshot(time.monotonic()))

    def _count_bytes(self) -> None:
        main = () if self._main is None else (self._main,)
        self.stats.wire_bytes = sum(c.bytes_sent for c in (*main, *self._channels))

    def _raise_errors(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _read_answers(self) -> bool:
        """Whether SHUT(0) has arrived.

        Raises:
            PeerFailed: SHUT with another value.
            ChannelError: the connection ended.
        """
        main = self._main
        assert main is not None
        while (data := main.recv_available()) is not None:
            if not data:
                raise ChannelError(f"{main.peer} closed the main connection")
            for kind, value in self._answers.feed(data):
                if kind == return_path.PONG:
                    self._pong = max(self._pong, value)
                elif kind == return_path.SHUT:
                    if value:
                        self.is_handed_over = False
                        raise PeerFailed(
                            "the destination reports that it failed; its own message says why. "
                            "The memory here is intact and the good copy"
                        )
                    return True
        return False

    def _await_shut(self) -> None:
        main = self._main
        assert main is not None
        try:
            while not self._read_answers():
                main.wait_readable(_POLL_S)
                self._silence.check()
        except (ChannelError, StreamError) as e:
            raise OutcomeUnknown(f"everything was sent, but the destination did not confirm: {e}. {_LOOK}") from e
        except KeyboardInterrupt as e:
            e.add_note(f"everything was sent and the destination had not confirmed yet. {_LOOK}")
            raise

    def _first_error(self, caught: BaseException) -> BaseException:
        """What to raise: the destination's own word if it comes, else the first error, with notes."""
        self._silence.stop()
        self._rounds.close()
        is_first = not isinstance(caught, MultifdError) or isinstance(caught, OutcomeUnknown | PeerFailed)
        error = caught if is_first or not self._errors else self._errors[0]
        if isinstance(error, ChannelError) and self._main is not None:
            deadline = time.monotonic() + _GRACE_S
            try:
                while (left := deadline - time.monotonic()) > 0 and self._main.wait_readable(left):
                    self._read_answers()  # a PONG may come before the word
            except PeerFailed as e:
                e.add_note(str(error))
                error = e
            except (ChannelError, StreamError):
                pass
        note_others(error, self._errors)
        if isinstance(error, ChannelError) and self._channels and not self._pong:
            error.add_note(
                "if the destination is a QEMU: it closes at once on another uuid than its own (--uuid), on another "
                "machine type, and without capability multifd; its own stderr says which"
            )
        if not isinstance(error, OutcomeUnknown | PeerFailed | RamError | KeyboardInterrupt):
            error.add_note("the memory here is intact and the good copy")
        return error

    def _tear_down(self, *, graceful: bool) -> None:
        self._rounds.close()
        if not graceful:
            self._silence.stop()
        connections = [c for c in (*self._channels, self._main) if c is not None]
        for connection in connections:
            if not graceful:
                connection.shutdown()
        deadline = time.monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for connection in connections:
            connection.close()

    # -- channel threads --------------------------------------------------------------------------

    def _run_channel(self, i: int, connection: Connection, stats: ChannelStats) -> None:
        method = self._method
        staging = Staging(self._geometry)
        p = SendParams(i, self._geometry, self._silence.abort, staging.pages(0), counters=stats.counters)
        encoder = PacketEncoder(self._geometry)
        try:
            try:
                run_hook(method, "send_setup", p)
                for number in itertools.count(1):
                    if not self._rounds.wait_next(number):
                        return
                    while (packet := self._rounds.take()) is not None:
                        self._send_packet(packet, connection, p, encoder, staging, stats)
                    connection.send([encoder.sync(next(self._packet_nums))])
                    self._rounds.synced()
            finally:
                run_hook(method, "send_cleanup", p)
        except BaseException as e:
            self._errors.append(e)
            self._rounds.close()

    def _send_packet(
        self,
        packet: Packet,
        connection: Connection,
        p: SendParams,
        encoder: PacketEncoder,
        staging: Staging,
        stats: ChannelStats,
    ) -> None:
        block, offsets = packet
        p.iov.clear()
        mapped = block.map(offsets, staging) if self._sends_in_place else None
        if mapped is not None:
            mask, payload = mapped.zero_mask, sum(map(len, mapped.views))
            p.iov.extend(mapped.views)
        else:
            pages = block.load(offsets, staging)
            mask, payload = np.ones(len(offsets), np.bool_) if pages is None else pages.zero_mask(), 0
        zero, normal = (NO_OFFSETS, offsets) if mask is None else (offsets[mask], offsets[~mask])
        if mapped is None and pages is not None and len(normal):
            payload = prepare_payload(self._method, p, pages if mask is None else pages.select(~mask))
        if not self._config.dialect.zero_pages_in_packets and len(zero):
            self._write(writer.encode_zero_pages(block.idstr, zero))
            stats.zero_pages += len(zero)
            zero = NO_OFFSETS
        if len(normal) or len(zero):
            header = encoder.data(self._code, next(self._packet_nums), block.idstr, normal, zero, payload)
            connection.send([header, *p.iov])
        stats.normal_pages += len(normal)
        stats.zero_pages += len(zero)
