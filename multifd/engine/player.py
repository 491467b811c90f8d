"""The source's end of stored streams: each file's bytes over a connection of its own, as they are.

A channel's bytes go from the file to the socket inside the kernel: nobody here looks at them a second time.

Rules of this file: the caller's thread owns time, progress and what the destination answers; one thread writes main,
one each channel, and each waits for its own connection alone, so the destination's sync points hold back what they
would hold back of a living source. How it ends is `multifd.engine.source_end`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from multifd.engine.canceller import Canceller
from multifd.engine.checking import MainStart
from multifd.engine.config import SendConfig
from multifd.engine.fate import Custody
from multifd.engine.refusal import explain
from multifd.engine.source_end import SourceEnd
from multifd.engine.source_main import SourceMain
from multifd.engine.stored_headers import headers
from multifd.errors import (
    ChannelError,
    PeerMismatch,
    RamError,
    RemoteWireError,
    StreamError,
)
from multifd.pages import Geometry
from multifd.ram.block import private_map
from multifd.ram.folder import StoredFolder, StoredStream
from multifd.stats import Result
from multifd.transport.connection import Connection
from multifd.wire.packet import FLAG_SYNC, packet_flags
from multifd.wire.reader import MainStreamReader
from multifd.wire.stream import Ping, SyncPoint
from multifd.wire.walker import PacketWalker

_POLL_S = 0.05
_PIECE_BYTES = 256 << 10
"""Of main, read and sent together."""
_FILE_PIECE_BYTES = 1 << 20
"""Sent by one system call, which ends when the socket has taken all of it, or nothing for a while."""


class Player(SourceEnd):
    """One migration out of a folder; use once.

    Thread rule: one thread, but for `Canceller`.

    Args:
        folder: the caller's, checked by `multifd.engine.checking.check`.
        start: what that has found of main.
        config: where to and how; `channels` are the folder's.
        on_progress: called in the caller's thread with the figures so far, about ten times a second.
        canceller: to cancel it with.
    """

    def __init__(
        self,
        folder: StoredFolder,
        start: MainStart,
        config: SendConfig,
        on_progress: Callable[[Result], None] | None = None,
        canceller: Canceller | None = None,
    ) -> None:
        method = folder.manifest.method.partition(":")[0]
        super().__init__(config, method, start.machine.name, on_progress, canceller)
        self._folder, self._begins = folder, start
        self._has_begun = threading.Event()
        """The destination has main's first bytes."""
        self._changed = threading.Condition()
        self._unsent = config.channels
        self._sync_points = 0
        self.stats.ram_bytes = sum(block.used_length for block in start.machine.blocks)

    def run(self) -> Result:
        """Send all of it, and wait until the destination has everything.

        Raises:
            RamError: a file cannot be read.
            OutcomeUnknown: the destination may have it.
            MultifdError: what else went wrong.
        """
        with self:
            main = self._connect_main()
            self._start(main)
            self._await_confirmation(main)
        return self.result

    def _start(self, main: SourceMain) -> None:
        """Main first, with its first bytes: a destination up to 7.2 takes the first connection for main."""
        self._crew.start("play_main", self._play_main, main)
        while not self._has_begun.wait(_POLL_S):
            self._watch()
        for i, stream in enumerate(self._folder.channels):
            self._crew.start(f"play_{i}", self._play_channel, stream, self._connect_channel(i))
        self.stats.setup_done(time.monotonic())

    def _watch(self) -> None:
        self._check()
        self._report()

    def _await_confirmation(self, main: SourceMain) -> None:
        """Hear the destination out; one that was asked for no answer confirms by closing when it has everything."""
        while not main.has_confirmed:
            self._watch()
            if time.monotonic() > self._give_up_at:
                raise ChannelError("the wait for its word was cut short")
            try:
                main.wait(_POLL_S)
            except ChannelError:
                is_out = self.fate.custody is Custody.HANDED_OVER
                if self._begins.has_return_path or not is_out or main.connection.was_reset():
                    raise
                break
        if self.fate.custody is not Custody.HANDED_OVER:
            raise ChannelError("the destination confirmed before it had everything")
        unread = explain(replace(self._evidence(main), has_confirmed=True))
        if unread and not any(map(self._has_more_syncs, self._folder.channels)):
            self.fate.take_back()
            raise PeerMismatch(unread)
        self.fate.commit()

    def _has_more_syncs(self, channel: StoredStream) -> bool:
        """Whether it ends with a SYNC that no destination waits for, as 9.1's and 9.2's do: it stays unread."""
        walker = PacketWalker(Geometry.of(self._begins.machine.page_size))
        try:
            syncs = sum(bool(packet_flags(header) & FLAG_SYNC) for header in headers(channel, walker))
        except RemoteWireError as e:
            raise RamError(f"{channel.path}: {e}") from e
        return syncs > self._sync_points

    # -- threads ------------------------------------------------------------------------------------

    def _play_main(self, main: SourceMain) -> None:
        """Main as it is; what follows RAM only once all of RAM is out and every PING before it has its answer.

        So a destination that hangs, or reads nothing, is handed nothing.
        """
        reader, at, buffer = MainStreamReader(), 0, private_map(_PIECE_BYTES)
        while got := self._folder.main.read(buffer, at):
            try:
                events = reader.feed(buffer[:got])
            except StreamError as e:
                raise RamError(f"{self._folder.main.path}: {e}") from e
            for event in events:
                self._sync_points += isinstance(event, SyncPoint)
                if isinstance(event, Ping) and self._begins.has_return_path:
                    main.expect_pong(event.value)
            behind_ram = got if reader.ram_end is None else max(reader.ram_end - at, 0)
            main.write(buffer[:behind_ram])
            self._has_begun.set()
            if behind_ram < got:
                self._hand_over(main)
                main.write(buffer[behind_ram:got])
            at += got
        self.stats.zero_pages_on_main = self._folder.main.entry.zero_pages

    def _hand_over(self, main: SourceMain) -> None:
        if self.fate.custody is not Custody.WITH_SOURCE:
            return
        with self._changed:
            while not self._changed.wait_for(lambda: self._unsent == 0 and not main.is_pong_due(), _POLL_S):
                self._idle.check()
        if gone := [connection for connection in self._connections if connection.has_hung_up()]:
            raise ChannelError(f"{gone[0].peer} closed a connection before it had everything")
        self._canceller.close()
        # Before the first byte leaves, so that no moment is told too well.
        self.fate.hand_over()

    def _play_channel(self, stream: StoredStream, connection: Connection) -> None:
        figures, at = self.stats.add_channel(), 0
        while left := stream.entry.nbytes - at:
            at += stream.send(connection.send_file, at, min(left, _FILE_PIECE_BYTES))
        figures.normal_pages, figures.zero_pages = stream.entry.normal_pages, stream.entry.zero_pages
        connection.finish()
        with self._changed:
            self._unsent -= 1
            self._changed.notify_all()
