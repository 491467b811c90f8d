"""The source's end of stored streams: each file's bytes over a connection of its own, as they are.

Rules of this file: the caller's thread owns time, progress and what the destination answers; one thread writes main,
one each channel, and each waits for its own connection alone, so the destination's sync points hold back what they
would hold back of a living source. Whatever ends it goes through `_settle`, where the first error is chosen and `Fate`
says where the memory is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from multifd.engine.canceller import Canceller
from multifd.engine.checking import MainStart
from multifd.engine.config import SendConfig
from multifd.engine.crew import JOIN_S, Crew
from multifd.engine.fate import SENDER, Custody, Fate, attach
from multifd.engine.refusal import Evidence, Seen, explain
from multifd.engine.source_main import SourceMain, seen
from multifd.errors import (
    Aborted,
    Cancelled,
    ChannelError,
    MultifdError,
    PeerFailed,
    PeerMismatch,
    RamError,
    StreamError,
    TlsError,
    note_hint,
)
from multifd.ram.block import private_map
from multifd.ram.folder import StoredFolder, StoredStream
from multifd.stats import MigrationStats, Result
from multifd.transport import clear
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.wire.reader import MainStreamReader
from multifd.wire.stream import Ping

_POLL_S = 0.05
_GRACE_S = 0.5
"""How long a broken connection waits for the destination's own word on what went wrong."""
_LAST_WAIT_S = 5.0
"""How long a call that was told to stop waiting still waits for the destination's confirmation."""
_PIECE_BYTES = 256 << 10
"""Read and sent together; it stays in a processor's cache."""


class Player:
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
        self._folder, self._begins, self._config, self._on_progress = folder, start, config, on_progress
        self._canceller = canceller or Canceller()
        self._idle = IdleTimer(config.timeout_s)
        self._limit = RateLimit(config.max_bandwidth, self._idle.abort) if config.max_bandwidth else None
        self._crew = Crew(self._idle)
        self._main: SourceMain | None = None
        self._connections: list[Connection] = []
        self._has_begun = threading.Event()
        """The destination has main's first bytes."""
        self._changed = threading.Condition()
        self._unsent = config.channels
        self._give_up_at = float("inf")
        self.fate = Fate(SENDER)
        self.stats = MigrationStats(time.monotonic())
        self.stats.method = folder.manifest.method.partition(":")[0]

    @property
    def result(self) -> Result:
        """The figures so far, or of the end."""
        self.stats.wire_bytes = sum(c.bytes_sent for c in self._connections)
        return self.stats.snapshot(time.monotonic())

    def run(self) -> Result:
        """Send all of it, and wait until the destination has everything.

        Raises:
            RamError: a file cannot be read.
            OutcomeUnknown: the destination may have it.
            MultifdError: what else went wrong.
        """
        try:
            self._canceller.begin(self._cancel, self._stop_waiting)
            main = self._connect_main()
            self._start(main)
            self._await_confirmation(main)
            notes = self._finish()
        except BaseException as error:
            told: BaseException = error
            try:
                told = self.fate.conclude(self._settle(error))
                self._tear_down()
            except BaseException as e:  # an interrupt: what is known of the memory is said of it, too
                told = self.fate.conclude(e)
            self._record(told)
            if told is error:
                raise
            raise told from told.__cause__
        _ = self.result  # the bytes as they are at the end
        self.stats.finish(time.monotonic(), "completed", notes=notes)
        return self.result

    # -- the caller's thread ----------------------------------------------------------------------

    def _connect_main(self) -> SourceMain:
        self._main = main = SourceMain(self._connect(0, retry=True))
        if self._config.tls is None:
            clear.warn_leaving(main.connection, self._config.uri)
        return main

    def _start(self, main: SourceMain) -> None:
        """Main first, with its first bytes: a destination up to 7.2 takes the first connection for main."""
        self._crew.start("play_main", self._play_main, main)
        while not self._has_begun.wait(_POLL_S):
            self._watch()
        for i, stream in enumerate(self._folder.channels):
            self._crew.start(f"play_{i}", self._play_channel, stream, self._connect(i + 1, retry=False))
        self.stats.setup_done(time.monotonic())

    def _connect(self, number: int, *, retry: bool) -> Connection:
        config = self._config
        connection = connect(
            config.uri,
            self._idle,
            timeout_s=config.connect_timeout_s,
            limit=self._limit,
            retry=retry,
            tls=config.tls,
            number=number,
        )
        self._connections.append(connection)
        return connection

    def _watch(self) -> None:
        """Errors, silence, progress: what the caller's thread waits for."""
        self._crew.check()
        self._idle.check()
        result = self.result
        if self.stats.tick(time.monotonic()) and self._on_progress is not None:
            self._on_progress(result)

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
        if unread := explain(replace(self._evidence(main), has_confirmed=True)):
            self.fate.take_back()
            raise PeerMismatch(unread)
        self.fate.commit()

    def _evidence(self, main: SourceMain) -> Evidence:
        channels = [seen(c) for c in self._connections[1:]]
        if len(channels) < self._config.channels:
            channels.append(Seen.UNREAD)  # the one that could not connect
        return Evidence(
            main.has_answered, seen(main.connection), channels, main.has_failed, main.has_confirmed, self.stats.method,
            self._begins.machine.name,
        )  # fmt: skip

    def _finish(self) -> list[str]:
        """The destination has everything: let the channels end. What fails now is said, not raised."""
        late = self._crew.join()
        notes = [f"{', '.join(late)}: still busy {JOIN_S:g} s after the end"] if late else []
        try:
            self._crew.check()
        except MultifdError as e:
            notes.append(str(e))
        self._tear_down()
        return notes

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
        buffer, at = private_map(_PIECE_BYTES), 0
        figures = self.stats.add_channel()
        while got := stream.read(buffer, at):
            connection.send([buffer[:got]])
            at += got
        figures.normal_pages, figures.zero_pages = stream.entry.normal_pages, stream.entry.zero_pages
        connection.finish()
        with self._changed:
            self._unsent -= 1
            self._changed.notify_all()

    def _cancel(self) -> None:
        """From `Canceller.cancel`, in any thread: what blocks ends, the caller's thread raises `Cancelled`."""
        self._crew.fail(Cancelled("the migration was cancelled"))
        self._idle.abort.set()

    def _stop_waiting(self) -> None:
        self._give_up_at = min(self._give_up_at, time.monotonic() + _LAST_WAIT_S)

    # -- the end ------------------------------------------------------------------------------------

    def _settle(self, error: BaseException) -> BaseException:
        """The error to tell: the destination's own word if it comes, else the first."""
        told = self._crew.first_error(error)
        if isinstance(told, ChannelError) and not isinstance(told, Aborted):
            told = self._last_word(told)
        if isinstance(told, PeerFailed):
            self.fate.refuse()
        is_explained = isinstance(told, TlsError)
        if isinstance(told, ChannelError | PeerFailed) and self._main is not None and not is_explained:
            if len(self._connections) > 1:
                note_hint(told, explain(self._evidence(self._main)))
            if self._main.connection.has_hung_up():
                note_hint(told, self._main.connection.silence_hint())
        return told

    def _last_word(self, error: ChannelError) -> BaseException:
        """What the destination says of a connection that broke; `error` if nothing."""
        if self._main is None:
            return error
        deadline = time.monotonic() + _GRACE_S
        try:
            while (left := deadline - time.monotonic()) > 0 and not self._main.has_confirmed:
                self._main.wait(left)
        except PeerFailed as e:
            e.add_note(str(error))
            return e
        except (ChannelError, StreamError):
            pass
        return error

    def _record(self, told: BaseException) -> None:
        _ = self.result  # the bytes as they are at the end
        text, notes = str(told) or type(told).__name__, getattr(told, "__notes__", ())
        self.stats.finish(time.monotonic(), self.fate.status(told), text, notes)
        attach(told, self.result)

    def _tear_down(self) -> None:
        self._idle.abort.set()
        for connection in self._connections:
            connection.shutdown()
        self._crew.join()
        for connection in self._connections:
            connection.close()
