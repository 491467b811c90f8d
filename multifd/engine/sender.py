"""The source's end, driven from outside: open, rounds, switch over, finish.

Rules of this file: the caller's thread owns main, the return path, progress and time; each channel has one thread.
They meet in `Rounds` and `SourceMain` alone. Whatever ends the migration leaves by `Sender.__exit__`, where the first
error is chosen, everything is torn down and `Fate` says where the memory is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from multifd.engine.canceller import Canceller
from multifd.engine.config import SendConfig
from multifd.engine.crew import JOIN_S, Crew
from multifd.engine.fate import SENDER, Custody, Fate, attach
from multifd.engine.refusal import Evidence, Seen, explain
from multifd.engine.send_channel import SendChannel
from multifd.engine.session import SendSession
from multifd.engine.source_main import SourceMain, seen
from multifd.engine.sync import Portion, Rounds
from multifd.errors import (
    Aborted,
    Cancelled,
    ChannelError,
    MultifdError,
    PeerFailed,
    PeerMismatch,
    StreamError,
    TlsError,
    UsageError,
    note_hint,
)
from multifd.method import MultifdMethods
from multifd.pages import Geometry
from multifd.ram.block import Source
from multifd.stats import MigrationStats, Result
from multifd.transport import clear
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit
from multifd.wire import stream, writer
from multifd.wire.packet import InitPacket

_LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_GRACE_S = 0.5
"""How long a broken channel waits for the destination's own word on what went wrong."""
_LAST_WAIT_S = 5.0
"""How long a sender that was told to stop waiting still waits for the destination's confirmation."""


class Sender:
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
        self._source, self._method, self._config = source, method, config
        self._on_progress = on_progress
        self._canceller = canceller or Canceller()
        self._idle = IdleTimer(config.timeout_s)
        self._limit = RateLimit(config.max_bandwidth, self._idle.abort) if config.max_bandwidth else None
        self._crew = Crew(self._idle)
        self._rounds = Rounds(config.channels, Geometry.of(source.machine.page_size).page_count)
        self._main: SourceMain | None = None
        self._connections: list[Connection] = []
        self._give_up_at = float("inf")
        self._settled: tuple[BaseException, BaseException] | None = None
        self.fate = Fate(SENDER)
        self.stats = MigrationStats(time.monotonic())
        self.stats.method = method.name
        self.stats.ram_bytes = sum(b.used_length for b in source.blocks)

    @property
    def result(self) -> Result:
        """The figures so far, or of the end."""
        self.stats.wire_bytes = sum(c.bytes_sent for c in self._connections)
        return self.stats.snapshot(time.monotonic())

    # -- the migration, step by step -----------------------------------------------------------------

    def open(self) -> None:
        """Connect, announce the machine and its blocks, and have every channel synced.

        Raises:
            MultifdError: what went wrong.
        """
        self._canceller.begin(self._cancel, self._stop_waiting)
        machine = self._source.machine
        self._connect()
        start = writer.encode_ram_start(machine) + b"".join(map(writer.encode_block, machine.blocks))
        self._write(start)
        self._round(())
        self.stats.setup_done(time.monotonic())

    def round(self, portions: Iterable[Portion]) -> None:
        """Send pages, each at most once, while the source may run.

        Raises:
            MultifdError: what went wrong; the round's end is not announced then.
        """
        self._write(writer.encode_ram_next(stream.PART, self._source.machine.ram_section_id))
        self._round(portions)

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
        self._round(())
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

    def _connect(self) -> None:
        config, machine = self._config, self._source.machine
        self._main = main = SourceMain(self._new_connection(0, retry=True))
        if config.tls is None:
            clear.warn_leaving(main.connection, config.uri)
        # Main first, with its magic: a destination up to 7.2 takes the first connection for main.
        self._write(writer.encode_header(machine))
        main.open_return_path()
        geometry = Geometry.of(machine.page_size)
        for i in range(config.channels):
            connection = self._new_connection(i + 1, retry=False)
            method = self._method
            init = InitPacket(i, machine.uuid, config.channels, method.wire_version, method.name)
            connection.send([init.encode()])
            figures = self.stats.add_channel()
            session = SendSession(method, i, geometry, self._idle, figures.counters)
            channel = SendChannel(connection, session, main, self._rounds, geometry, config.dialect, figures, self.fate)
            self._crew.start(f"multifdsend_{i}", channel.run)  # QEMU's name for it

    def _new_connection(self, number: int, *, retry: bool) -> Connection:
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

    def _write(self, data: bytes) -> None:
        self._opened().write(data)

    def _round(self, portions: Iterable[Portion]) -> None:
        """Hand out the pages, wait until every channel has synced, end the section."""
        self._rounds.start(portions)
        while not self._rounds.wait_synced(_POLL_S):
            self._watch()
        # A round that was cut short has raised: only a complete one gets its end.
        if self._config.dialect.flush_words:
            self._write(writer.encode_flush())
        self._write(writer.encode_eos(self._source.machine))

    def _watch(self) -> None:
        """Errors, silence, the destination's word, progress: what the caller's thread waits for."""
        self._crew.check()
        self._idle.check()
        main = self._opened()
        main.read()
        if main.has_confirmed:
            raise ChannelError("the destination confirmed before it had everything")
        result = self.result
        if self.stats.tick(time.monotonic()) and self._on_progress is not None:
            self._on_progress(result)

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

    def _evidence(self, main: SourceMain) -> Evidence:
        channels = [seen(c) for c in self._connections[1:]]
        if len(channels) < self._config.channels:
            channels.append(Seen.UNREAD)  # the one that could not connect
        return Evidence(
            main.has_answered, seen(main.connection), channels, main.has_failed, main.has_confirmed, self._method.name,
            self._source.machine.name,
        )  # fmt: skip

    def _cancel(self) -> None:
        """From `Canceller.cancel`, in any thread: what blocks ends, the caller's thread raises `Cancelled`."""
        self._crew.fail(Cancelled("the migration was cancelled"))
        self._rounds.cut()
        self._idle.abort.set()

    def _stop_waiting(self) -> None:
        self._give_up_at = min(self._give_up_at, time.monotonic() + _LAST_WAIT_S)

    # -- the end ------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def settle(self, error: BaseException) -> BaseException:
        """Find out what `error`, raised between the steps, means for the memory; `fate` is final afterwards.

        A driver that must act on it, such as by letting the source go on, calls this first: it takes at most half a
        second, the tear-down that follows may take longer.

        Returns:
            What will leave the context; the driver may add notes to it.
        """
        if self._settled is None or self._settled[0] is not error:
            self._rounds.cut()
            self._settled = error, self.fate.conclude(self._explain(error))
        return self._settled[1]

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self._complete()
            return
        told: BaseException = error
        try:
            told = self.settle(error)
            self._tear_down()
        except BaseException as e:  # an interrupt: what is known of the memory is said of it, too
            told = self.fate.conclude(e)
        self._record(told)
        if told is not error:
            raise told from told.__cause__

    def _complete(self) -> None:
        """The destination has confirmed: let the channels end."""
        notes: list[str] = []
        try:
            self._rounds.end()
            late = self._crew.join()
            self._crew.check()
            if late:
                raise MultifdError(f"{', '.join(late)}: still busy {JOIN_S:g} s after the end")
        except MultifdError as e:
            # The memory is where it should be; what failed after that, such as a clean-up, is said, not raised.
            _LOG.warning("%s", e)
            notes.append(str(e))
        except BaseException as e:
            self._record(self.fate.conclude(e))
            raise
        finally:
            self._close()
        self.stats.finish(time.monotonic(), "completed", notes=notes)

    def _explain(self, error: BaseException) -> BaseException:
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
                self._main.wait(left)  # a PONG may come before the word
            if self._main.has_confirmed and self.fate.custody is Custody.HANDED_OVER:
                self.fate.commit()
        except PeerFailed as e:
            e.add_note(str(error))
            return e
        except (ChannelError, StreamError):
            pass
        return error

    def _record(self, told: BaseException) -> None:
        _ = self.result  # the bytes as they are at the end
        text = str(told) or type(told).__name__
        notes = getattr(told, "__notes__", ())
        self.stats.finish(time.monotonic(), self.fate.status(told), text, notes)
        attach(told, self.result)

    def _tear_down(self) -> None:
        self._idle.abort.set()
        for connection in self._connections:
            connection.shutdown()
        self._crew.join()
        self._close()

    def _close(self) -> None:
        for connection in self._connections:
            connection.close()
