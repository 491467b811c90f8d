"""The source's end, driven from outside: open, rounds, switch over, finish.

Rules of this file: the caller's thread owns main, the return path, progress and time; each channel has one thread.
They meet in `Rounds` and `SourceMain` alone. How it ends is `multifd.engine.source_end`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from multifd.engine.canceller import Canceller
from multifd.engine.config import SendConfig
from multifd.engine.refusal import explain
from multifd.engine.send_channel import SendChannel
from multifd.engine.session import SendSession
from multifd.engine.source_end import SourceEnd
from multifd.engine.source_main import SourceMain
from multifd.engine.sync import Portion, Rounds
from multifd.errors import (
    ChannelError,
    PeerMismatch,
    UsageError,
)
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.ram.block import Source
from multifd.stats import Result
from multifd.transport.connection import Connection
from multifd.wire import stream, writer
from multifd.wire.packet import InitPacket, PacketEncoder

_POLL_S = 0.05


class Sender(SourceEnd):
    """One migration out of this process; use once, as a context manager.

    ::

        with Sender(source, method, config) as sender:
            sender.open()
            sender.round(portions)
            sender.switch_over()
            sender.finish(())
        sender.result

    Whatever is raised inside comes out with everything torn down, ``result`` set, and a note on where the memory is.
    Thread rule: one thread, but for `Canceller`.

    Args:
        source: what is sent; the caller closes it.
        method: ready for one migration.
        config: where to and how.
        on_progress: called in the caller's thread with the figures so far, about ten times a second.
        canceller: to cancel it with.
    """

    def __init__(
        self,
        source: Source,
        method: MultifdMethods,
        config: SendConfig,
        on_progress: Callable[[Result], None] | None = None,
        canceller: Canceller | None = None,
    ) -> None:
        super().__init__(config, method.name, source.machine.name, on_progress, canceller)
        self._source, self._method = source, method
        geometry = Geometry.of(source.machine.page_size)
        self._rounds, self._encoder = Rounds(config.channels, geometry.page_count), PacketEncoder(geometry)
        self.stats.ram_bytes = sum(b.used_length for b in source.blocks)

    # -- the migration, step by step -----------------------------------------------------------------

    def open(self) -> None:
        """Connect, announce the machine and its blocks, and have every channel synced.

        Raises:
            MultifdError: what went wrong.
        """
        machine = self._source.machine
        for i, connection in enumerate(self._connect_all()):
            self._start_channel(i, connection)
        self._write(writer.encode_ram_start(machine) + b"".join(map(writer.encode_block, machine.blocks)))
        self._await_channels()
        self._end_section()
        self.stats.setup_done(time.monotonic())

    def round(self, portions: Iterable[Portion]) -> None:
        """Send pages, each at most once, while the source may run.

        Raises:
            MultifdError: what went wrong; the round's end is not announced then.
        """
        self._write(writer.encode_ram_next(stream.PART, self._source.machine.ram_section_id))
        self._rounds.start(portions)
        self._await_channels()
        self._end_section()

    def confirm(self) -> None:
        """Return when the destination has everything of the rounds so far in place: a PING, and its PONG.

        Raises:
            MultifdError: what went wrong.
        """
        main = self._opened()
        main.ping()
        self._watch()
        while main.is_pong_due():
            main.wait(_POLL_S)
            self._watch()

    def switch_over(self) -> None:
        """The source stands still from here on: its downtime begins, the bandwidth limit ends.

        Source: migration/migration.c, migration_completion, QEMU 10.0, which lifts the limit.
        """
        self.stats.switchover(time.monotonic())
        if self._limit is not None:
            self._limit.lift()

    def finish(self, left: Iterable[Portion] | None = None) -> None:
        """Send what is left, and the devices' state, and wait until the destination has everything.

        Args:
            left: pages; None if there are none.

        Raises:
            OutcomeUnknown: on leaving the context; the destination may have it.
            MultifdError: what else went wrong.
        """
        # Behind this answer nothing can be missing but devices: a destination told of another method hangs before
        # it, and one that reads nothing never answers, so neither is handed anything. END comes after it, since what
        # follows END is the devices' to read.
        if left is not None:
            self.round(left)
        self.confirm()
        self._write(writer.encode_ram_next(stream.END, self._source.machine.ram_section_id))
        # Without pages the channels need not be woken.
        for connection in self._connections[1:]:
            connection.send([self._encoder.sync(self._rounds.number())])
        self._end_section()
        last = b""
        for piece in self._source.device_state():
            if last:
                self._write(last)
            last = piece
        self._hand_over(last)
        self._await_confirmation()

    # -- the caller's thread ----------------------------------------------------------------------

    def _opened(self) -> SourceMain:
        if self._main is None:
            raise UsageError("a sender is opened before anything else")
        return self._main

    def _connect_all(self) -> list[Connection]:
        """Main, and the channels, which have said what they are, and that nothing comes before SETUP's end."""
        config, machine, method = self._config, self._source.machine, self._method
        main = self._connect_main()
        # With its magic at once, which a destination of 8.0 or later waits for.
        self._write(writer.encode_header(machine))
        main.open_return_path()
        connections = []
        for i in range(config.channels):
            connection = self._connect_channel(i)
            init = InitPacket(i, machine.uuid, config.channels, method.wire_version, method.name)
            connection.send([init.encode(), self._encoder.sync(self._rounds.number())])
            connections.append(connection)
        return connections

    def _start_channel(self, id: int, connection: Connection) -> None:
        geometry, figures = Geometry.of(self._source.machine.page_size), self.stats.add_channel()
        session = SendSession(self._method, id, geometry, self._idle, figures.counters)
        channel = SendChannel(
            connection, session, self._opened(), self._rounds, geometry, self._config.dialect, figures, self.fate
        )
        self._crew.start(f"multifdsend_{id}", channel.run)  # QEMU's name for it

    def _write(self, data: bytes) -> None:
        self._opened().write(data)

    def _await_channels(self) -> None:
        """Until every channel has synced, or is set up; a round that was cut short raises."""
        while not self._rounds.wait_synced(_POLL_S):
            self._watch()

    def _end_section(self) -> None:
        """Every channel has synced: so does main."""
        if self._config.dialect.flush_words:
            self._write(writer.encode_flush())
        self._write(writer.encode_eos(self._source.machine))

    def _watch(self) -> None:
        """Errors, silence, the destination's word, progress: what the caller's thread waits for."""
        self._check()
        main = self._opened()
        main.read()
        if main.has_confirmed:
            raise ChannelError("the destination confirmed before it had everything")
        self._report()

    def _hand_over(self, end: bytes) -> None:
        """The stream's last piece: once any of it is out, only the destination knows how this ends."""
        self._canceller.close()
        connection = self._opened().connection
        before = connection.bytes_sent
        # Before the first byte leaves, so that no moment is told too well.
        self.fate.hand_over()
        try:
            self._write(end)
        except ChannelError:
            if connection.bytes_sent == before:
                self.fate.take_back()
            raise

    def _await_confirmation(self) -> None:
        main = self._opened()
        self._rounds.end()  # what threads have left to do, they do meanwhile
        while not main.has_confirmed:
            if time.monotonic() > self._give_up_at:
                raise ChannelError("the wait for its word was cut short")
            main.wait(_POLL_S)
            self._idle.check()
        # QEMU closes its channels before it confirms.
        if unread := explain(self._evidence(main)):
            self.fate.take_back()
            raise PeerMismatch(unread)
        self.fate.commit()

    def _cut(self) -> None:
        self._rounds.cut()

    def _let_go(self) -> None:
        for connection in self._connections[1:]:
            connection.finish()
