"""The destination's end: connections in any order, everything validated, success only when durable.

Rules of this file: the caller's thread accepts, watches time and finishes; one thread reads main, one
each channel. They meet in `Barrier` (sync points) and `Negotiation` (channels and method).
The first error wins: it stops everything, is raised here with the others as notes, and no thread or
socket outlives the call.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from multifd.engine.negotiation import Negotiation
from multifd.engine.payload import receive_payload
from multifd.engine.sync import Barrier
from multifd.errors import (
    ChannelError,
    CodecError,
    HookError,
    MultifdError,
    RemoteWireError,
    StreamError,
    UsageError,
    note_others,
)
from multifd.method import MultifdMethods, RecvParams, run_hook
from multifd.pages import Geometry
from multifd.ram.block import Staging, Target, TargetBlock
from multifd.stats import ChannelStats, MigrationStats, Result
from multifd.transport.accept import Acceptor
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.listen import Listener
from multifd.wire import return_path, stream
from multifd.wire.packet import INIT_BYTES, PREFIX_BYTES, InitPacket, Packet, check_prefix, decode_packet, header_bytes
from multifd.wire.reader import MainStreamReader

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_JOIN_S = 10.0
_PONG_S = 5.0
"""How often the sender hears from us while the disk takes its time."""
_FLUSH_S = 0.02
_DRAIN_S = 5.0


@dataclass(frozen=True)
class ReceiveConfig:
    """How to receive; the command line's and `multifd.receive`'s arguments, checked."""

    channels: int | None = None
    """None: what the sender announces, else 2."""
    methods: tuple[str, ...] = ()
    """Specs (``NAME:key=value``) of the only methods allowed; empty allows all that may be chosen."""
    timeout_s: float = 60.0
    """How long all connections may be silent, and how long to wait for the first."""

    def __post_init__(self) -> None:
        if self.channels is not None and not 1 <= self.channels <= 255:
            raise UsageError(f"channels: got {self.channels}, expected 1 to 255")
        if self.timeout_s <= 0:
            raise UsageError("the timeout must be positive")


class Receiver:
    """One migration into this process; use once.

    Args:
        listener: where the sender connects; the caller closes it.
        target: where RAM goes; committed or discarded when `run` is over.
        config: how.
        on_progress: called in the caller's thread with the figures so far, about ten times a second.
    """

    def __init__(
        self,
        listener: Listener,
        target: Target,
        config: ReceiveConfig,
        on_progress: Callable[[Result], None] | None = None,
    ) -> None:
        self._target, self._config = target, config
        self._on_progress = on_progress
        self._silence = IdleTimer(config.timeout_s, self._describe_connections)
        self._agreement = Negotiation(config.methods, config.channels, is_local=listener.is_local)
        self._barrier = Barrier()
        self._ready = threading.Event()  # geometry and blocks are known, or all is over
        self._flusher: threading.Thread | None = None
        self._flush_over = threading.Event()
        self._arrivals = Acceptor(listener, config.timeout_s)
        self._main: Connection | None = None
        self._has_return_path = False
        self._has_device_state = False
        self._main_ended = False
        self._geometry = Geometry.of(4096)
        self._blocks: dict[str, TargetBlock] = {}
        self._channels: dict[int, Connection] = {}
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self.stats = MigrationStats(time.monotonic())

    @property
    def strangers(self) -> int:
        """Connections that were not a migration's and were closed."""
        return self._arrivals.strangers

    def run(self) -> Result:
        """Wait for a sender and take everything it sends.

        Raises:
            MultifdError: what went wrong first; nothing remains of the target then, `stats` has the figures.
            KeyboardInterrupt: passes through, after everything was torn down.
        """
        try:
            while not self._main_ended:
                self._serve(_POLL_S)
            self._finish()
        except BaseException as e:
            error = self._errors[0] if self._errors and isinstance(e, MultifdError) else e
            note_others(error, self._errors)
            error.add_note("what was received is not kept: the good copy is the sender's")
            self._tear_down(failed=True)
            status = "cancelled" if isinstance(error, KeyboardInterrupt) else "failed"
            self._count_bytes()
            self.stats.finish(time.monotonic(), status, str(error) or type(error).__name__)
            if error is e:
                raise
            raise error from None
        self._count_bytes()
        self.stats.finish(time.monotonic(), "completed")
        self._tear_down(failed=False)
        if self.strangers:
            _LOG.info("%d connections that were no migration's were closed", self.strangers)
        return self.stats.snapshot(time.monotonic())

    # -- the caller's thread ----------------------------------------------------------------------

    def _serve(self, timeout_s: float) -> None:
        """One turn: accept, notice errors and silence, report."""
        self._admit(timeout_s)
        if self._errors:
            raise self._errors[0]
        self._silence.check()
        self._count_bytes()
        if self.stats.tick(time.monotonic()) and self._on_progress is not None:
            self._on_progress(self.stats.snapshot(time.monotonic()))

    def _admit(self, timeout_s: float) -> None:
        for sock, peer, init in self._arrivals.wait(timeout_s):
            if init is not None:
                self._start_channel(sock, peer, init)
            elif self._main is None:
                self._start_main(sock, peer)
            else:
                self._arrivals.dismiss(sock)

    def _count_bytes(self) -> None:
        main = () if self._main is None else (self._main,)
        self.stats.wire_bytes = sum(c.bytes_received for c in (*main, *self._channels.values()))

    def _describe_connections(self) -> str:
        if self._main is None and not self._channels:
            return f"; no sender connected{self._describe_strangers()}"
        if self._has_device_state:
            return (
                "; all of RAM is here, but the end of the devices' state was not seen: machine types up to 2.2 do not "
                "mark it, switch capability return-path off at the source"
            )
        main = "connected" if self._main else "not connected"
        return (
            f"; main is {main}, {len(self._channels)} of {self._agreement.channels} channels are "
            f"(--channels must be the sender's){self._describe_strangers()}"
        )

    def _describe_strangers(self) -> str:
        return f", {self.strangers} connections that were no migration's were closed" if self.strangers else ""

    def _start_main(self, sock: socket.socket, peer: str) -> None:
        self._main = Connection(sock, self._silence, peer)
        self._main.bytes_received = len(stream.MAGIC_BYTES)
        self._silence.touch()
        self.stats = self._restarted_stats()
        self._start_thread("multifdrecv_main", self._run_main, self._main)

    def _restarted_stats(self) -> MigrationStats:
        """Total time counts from the sender's main connection, not from the start of listening."""
        stats = MigrationStats(time.monotonic())
        stats.channels, stats.method = self.stats.channels, self.stats.method
        return stats

    def _start_channel(self, sock: socket.socket, peer: str, init: InitPacket) -> None:
        connection = Connection(sock, self._silence, f"channel {init.id} ({peer})")
        try:
            self._agreement.admit(init)
        except BaseException:
            connection.close()
            raise
        self._silence.touch()
        connection.bytes_received = INIT_BYTES
        if not self._channels:
            self._barrier.expect(self._agreement.channels)
            self.stats.method = init.method
        self._channels[init.id] = connection
        self._start_thread(f"multifdrecv_{init.id}", self._run_channel, init.id, connection, self.stats.add_channel())

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

    def _finish(self) -> None:
        """Main has ended: nothing may be missing, then make it durable and say so."""
        self._barrier.end()
        self._flush_over.set()
        for connection in self._channels.values():
            connection.shutdown_read()
        # Not the disk's: that may take its time, and `_commit` waits for it.
        threads = [thread for thread in self._threads if thread is not self._flusher]
        self._join(threads)
        if busy := [thread.name for thread in threads if thread.is_alive()]:
            raise HookError(f"{', '.join(busy)}: still busy {_JOIN_S:g} s after the last sync point")
        for _ in range(3):  # accept; the magic; the rest of an init packet
            self._admit(0)
        if self._errors:
            raise self._errors[0]
        self._commit()
        main = self._main
        assert main is not None
        with contextlib.suppress(ChannelError):
            if self._has_return_path:
                main.send([return_path.encode_answer(return_path.SHUT, 0)])
            self._drain(main)

    def _commit(self) -> None:
        """Commit in a thread of its own; a slow disk is no silence, so PONGs go out meanwhile."""
        thread = self._start_thread("multifd_commit", self._make_durable)
        while thread.is_alive():
            thread.join(_PONG_S)
            if thread.is_alive() and self._has_return_path and self._main is not None:
                with contextlib.suppress(ChannelError):
                    self._main.send([return_path.encode_answer(return_path.PONG, 0)])
        if self._errors:
            raise self._errors[0]

    def _drain(self, main: Connection) -> None:
        """Read what is left until the sender closes: closing before would reset its connection."""
        deadline = time.monotonic() + _DRAIN_S
        while (left := deadline - time.monotonic()) > 0:
            if not main.wait_readable(left if self._has_return_path else min(left, 0.2)):
                return
            if main.recv_available() == b"":
                return

    def _make_durable(self) -> None:
        if self._flusher is not None:
            self._flusher.join()
        if not self._errors:
            self._target.commit(self._agreement.uuid)

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        deadline = time.monotonic() + _JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _tear_down(self, *, failed: bool) -> None:
        self._silence.stop()
        if failed and self._has_return_path and self._main is not None:
            with contextlib.suppress(MultifdError):
                self._main.send([return_path.encode_answer(return_path.SHUT, 1)])
        self._barrier.end()
        self._ready.set()
        self._flush_over.set()
        connections = [c for c in (*self._channels.values(), self._main) if c is not None]
        for connection in connections:
            connection.shutdown()
        self._join(self._threads)
        self._arrivals.close()
        for connection in connections:
            connection.close()
        self._target.discard()

    # -- the thread of main -----------------------------------------------------------------------

    def _run_main(self, main: Connection) -> None:
        reader = MainStreamReader()
        buffer = memoryview(bytearray(1 << 16))
        reader.feed(stream.MAGIC_BYTES)
        while not self._main_ended:
            got = main.recv_into([buffer], at_least=1)
            if not got:
                try:
                    reader.end()
                except StreamError as e:
                    raise ChannelError(f"{main.peer} closed the main connection: {e}") from e
                self._main_ended = True
                return
            for event in reader.feed(buffer[:got]):
                self._handle(event, main)

    def _handle(self, event: stream.Event, main: Connection) -> None:
        match event:
            case stream.Machine():
                self._geometry = Geometry.of(event.page_size)
                self._blocks.update(self._target.allocate(event))
                self.stats.ram_bytes = sum(b.used_length for b in event.blocks)
                self.stats.setup_done(time.monotonic())
                self._ready.set()
                self._flusher = self._start_thread("multifd_flush", self._run_flush)
            case stream.ZeroPages():
                self._blocks[event.idstr].clear(event.offsets)
                self.stats.zero_pages_on_main += len(event.offsets)
            case stream.SyncPoint():
                self._barrier.reach()
                self.stats.dirty_sync_count += 1
            case stream.ReturnPathOpened():
                self._has_return_path = True
            case stream.Ping():
                main.send([return_path.encode_answer(return_path.PONG, event.value)])
            case stream.DeviceState():
                self._has_device_state = True
                self._target.add_device_state(event.data)
            case stream.StreamEnd():
                self._main_ended = True

    # -- the thread of the disk ------------------------------------------------------------------

    def _run_flush(self) -> None:
        """Keep the disk busy while pages arrive: a source with a return path stands still during `commit`."""
        while not self._flush_over.wait(_FLUSH_S):
            self._target.flush()

    # -- channel threads --------------------------------------------------------------------------

    def _run_channel(self, i: int, connection: Connection, stats: ChannelStats) -> None:
        self._ready.wait()
        self._silence.check()
        geometry = self._geometry
        staging = Staging(geometry)
        p = RecvParams(i, geometry, self._silence.abort, staging.pages(0), counters=stats.counters)
        header = memoryview(bytearray(header_bytes(geometry)))
        lengths = {name: block.used_length for name, block in self._blocks.items()}
        payload = memoryview(b"")
        method: MultifdMethods | None = None
        code = -1
        number = 0
        try:
            unsynced = False
            while got := connection.recv_into([header], at_least=PREFIX_BYTES):
                if got < len(header):
                    check_prefix(header)  # what is no packet may be shorter than one
                    connection.recv_exactly([header[got:]])
                packet = decode_packet(header, geometry, lengths)
                if len(packet.normal):
                    if method is None:
                        method = self._agreement.method_of(packet.code)
                        self.stats.method = method.name
                        payload = memoryview(mmap.mmap(-1, method.capabilities.max_payload))
                        run_hook(method, "recv_setup", p)
                        code = packet.code
                    if packet.code != code:
                        self._agreement.method_of(packet.code)  # raises
                    self._receive_pages(packet, connection, method, p, staging, payload)
                    stats.normal_pages += len(packet.normal)
                if len(packet.zero):
                    self._blocks[packet.ramblock].clear(packet.zero)
                    stats.zero_pages += len(packet.zero)
                has_pages = bool(len(packet.normal) or len(packet.zero))
                unsynced = not packet.is_sync and (unsynced or has_pages)
                if packet.is_sync:
                    self._barrier.arrive(i)
                number += 1
            if unsynced:
                what = "pages after the last sync point: they may be incomplete"
                if not self._main_ended:
                    raise ChannelError(f"{connection.peer} closed the connection: {what}")
                raise RemoteWireError(what)
            self._barrier.leave(i)
        except (RemoteWireError, CodecError) as e:
            e.channel, e.packet = i, number
            raise
        finally:
            if method is not None:
                run_hook(method, "recv_cleanup", p)

    def _receive_pages(
        self,
        packet: Packet,
        connection: Connection,
        method: MultifdMethods,
        p: RecvParams,
        staging: Staging,
        payload: memoryview,
    ) -> None:
        block = self._blocks[packet.ramblock]
        if method.capabilities.verbatim and (views := block.lend(packet.normal)) is not None:
            nbytes = sum(map(len, views))
            if packet.next_packet_size not in (0, nbytes):
                raise RemoteWireError(f"next_packet_size {packet.next_packet_size}, expected {nbytes}", offset=20)
            connection.recv_exactly(views)
            return
        pages = block.place(packet.normal, staging)
        receive_payload(connection, method, p, pages, packet.next_packet_size, payload)
        block.store(packet.normal, staging)
