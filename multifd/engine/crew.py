"""The threads of a migration: started with a guard, watched, ended; and which of several errors is told.

Rules of this file: a thread's error never gets lost and never ends the process; every wait has a deadline; whoever
starts threads ends them by `stop`, also when it fails.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

from multifd import threads
from multifd.errors import Aborted, ChannelError, MultifdError, PeerFailed, note_others
from multifd.transport.idle import IdleTimer

JOIN_S = 10.0
"""How long threads may take to end once they were told to: a hook that computes is not interrupted."""


class Crew:
    """Threads that belong to one migration.

    Args:
        idle: the migration's; `stop` aborts it.
        on_end: called by each thread when it ends, with or without an error.
    """

    def __init__(self, idle: IdleTimer, on_end: Callable[[], object] = lambda: None) -> None:
        self._idle, self._on_end = idle, on_end
        self._lock = threading.Lock()
        # Those that have ended are forgotten: while a source is waited for, any number of strangers may come.
        self._threads: WeakKeyDictionary[threading.Thread, None] = WeakKeyDictionary()
        self._errors: list[BaseException] = []

    def start(self, name: str, run: Callable[..., object], *args: object) -> threading.Thread:
        """Run something in a thread of its own; what it raises is kept, and `check` raises it.

        Args:
            name: the thread's.
            run: called with `args`.

        Raises:
            ChannelError: this process may have no more threads.
        """

        def guarded() -> None:
            try:
                run(*args)
            except BaseException as e:
                self.fail(e)
            self._on_end()

        # What the caller's context says, such as a log's id of this migration, holds in the thread, too.
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(guarded,), name=name, daemon=True)
        # Listed only once it runs: a tear-down at the same time must not join what was never started.
        threads.start(thread)
        with self._lock:
            self._threads[thread] = None
        return thread

    @property
    def threads(self) -> list[threading.Thread]:
        """All that were started and may still run."""
        with self._lock:
            return list(self._threads)

    def fail(self, error: BaseException) -> None:
        """Report an error (any thread)."""
        with self._lock:
            self._errors.append(error)

    def check(self) -> None:
        """Raise the first error that a thread reported, if there is one."""
        if self._errors:
            raise self._errors[0]

    def is_busy(self) -> bool:
        """Whether a thread is still running."""
        return any(thread.is_alive() for thread in self.threads)

    def first_error(self, caught: BaseException) -> BaseException:
        """The error that is told, with the others as notes.

        What is not multifd's own wins, since the caller asked for it: an interrupt, or what a callback raised. Then
        comes the peer's own word, which explains why a connection broke; then the first error that a thread reported;
        then what was caught. An error that only says that everything was aborted is a consequence and wins over none.
        """
        error = caught
        if isinstance(caught, MultifdError):
            known = [*self._errors, caught]
            causes = [e for e in known if not isinstance(e, Aborted)] or known
            words = [e for e in causes if isinstance(e, PeerFailed)]
            error = words[0] if words and isinstance(causes[0], ChannelError) else causes[0]
        note_others(error, [e for e in self._errors if not isinstance(e, Aborted)])
        return error

    def join(self, threads: Sequence[threading.Thread] | None = None, timeout_s: float | None = None) -> list[str]:
        """Wait for threads, all of them if not said; returns the names of those that are still busy then."""
        deadline = time.monotonic() + (JOIN_S if timeout_s is None else timeout_s)
        threads = self.threads if threads is None else threads
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [thread.name for thread in threads if thread.is_alive()]

    def stop(self) -> list[str]:
        """Abort the migration and wait for all threads; returns the names of those that do not end."""
        self._idle.abort.set()
        return self.join()
