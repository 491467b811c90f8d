"""What every source's end is made of, whatever it sends: connections, threads, time, and how it ends.

Rules of this file: the caller's thread connects, watches and ends it all. Whatever ends the migration leaves by
`SourceEnd.__exit__`, where the first error is chosen, everything is torn down and `Fate` says where the memory is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from multifd.engine.canceller import Canceller
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
    StreamError,
    TlsError,
    note_hint,
)
from multifd.stats import MigrationStats, Result
from multifd.transport import clear
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit

_LOG = logging.getLogger(__name__)
_GRACE_S = 0.5
"""How long a broken channel waits for the destination's own word on what went wrong."""
_LAST_WAIT_S = 5.0
"""How long a sender that was told to stop waiting still waits for the destination's confirmation."""


class SourceEnd:
    """One migration out of this process; use once, as a context manager.

    Whatever is raised inside comes out with everything torn down, ``result`` set, and a note on where the memory is.
    Thread rule: one thread, but for `Canceller`.

    Args:
        config: where to and how.
        method: the name of the method.
        machine: the machine type; empty if it has none.
        on_progress: called in the caller's thread with the figures so far, about ten times a second.
        canceller: to cancel it with.
    """

    def __init__(
        self,
        config: SendConfig,
        method: str,
        machine: str,
        on_progress: Callable[[Result], None] | None,
        canceller: Canceller | None,
    ) -> None:
        self._config, self._machine, self._on_progress = config, machine, on_progress
        self._canceller = canceller or Canceller()
        self._idle = IdleTimer(config.timeout_s)
        self._limit = RateLimit(config.max_bandwidth, self._idle.abort) if config.max_bandwidth else None
        self._crew = Crew(self._idle)
        self._main: SourceMain | None = None
        self._connections: list[Connection] = []
        self._give_up_at = float("inf")
        self._settled: tuple[BaseException, BaseException] | None = None
        self.fate = Fate(SENDER)
        self.stats = MigrationStats(time.monotonic())
        self.stats.method = method

    @property
    def result(self) -> Result:
        """The figures so far, or of the end."""
        self.stats.wire_bytes = sum(c.bytes_sent for c in self._connections)
        return self.stats.snapshot(time.monotonic())

    # -- the caller's thread ----------------------------------------------------------------------

    def _connect_main(self) -> SourceMain:
        """Connect main, before any channel: a destination up to 7.2 takes the first connection for it."""
        self._canceller.begin(self._cancel, self._stop_waiting)
        self._main = main = SourceMain(self._connect(0, retry=True))
        if self._config.tls is None:
            clear.warn_leaving(main.connection, self._config.uri)
        return main

    def _connect_channel(self, id: int) -> Connection:
        return self._connect(id + 1, retry=False)

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

    def _check(self) -> None:
        """Errors and silence."""
        self._crew.check()
        self._idle.check()

    def _report(self) -> None:
        now = time.monotonic()
        if self.stats.is_due(now):
            result = self.result
            self.stats.tick(now)
            if self._on_progress is not None:
                self._on_progress(result)

    def _evidence(self, main: SourceMain) -> Evidence:
        channels = [seen(c) for c in self._connections[1:]]
        if len(channels) < self._config.channels:
            channels.append(Seen.UNREAD)  # the one that could not connect
        return Evidence(
            main.has_answered, seen(main.connection), channels, main.has_failed, main.has_confirmed, self.stats.method,
            self._machine,
        )  # fmt: skip

    def _cancel(self) -> None:
        """From `Canceller.cancel`, in any thread: what blocks ends, the caller's thread raises `Cancelled`."""
        self._crew.fail(Cancelled("the migration was cancelled"))
        self._cut()
        self._idle.abort.set()

    def _cut(self) -> None:
        """All is over: what threads wait for among themselves will not come. From any thread, again and again."""

    def _let_go(self) -> None:
        """The destination has everything."""

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
            self._cut()
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
            self._let_go()
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
