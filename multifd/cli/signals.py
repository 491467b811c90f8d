"""SIGINT and SIGTERM as exceptions, once, and not while a result is being printed.

Rules of this file: it knows no command. A first signal raises in the main thread, so that everything is cleaned up;
further ones change nothing, since every clean-up has its deadlines (SIGQUIT or SIGKILL ends at once). Both signals are
handled even if whoever started us ignores them, as QEMU does: a shell without job control starts what stands before an
``&`` with SIGINT ignored, and Ctrl-C at such a script would leave a receiver behind.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from multifd.engine.canceller import Canceller
from multifd.errors import Cancelled
from multifd.interrupts import ENDING, handle_by, restore

_Request = TypeVar("_Request")


class Terminated(BaseException):
    """SIGTERM, as an exception; beside KeyboardInterrupt, which is SIGINT's."""

    result: Any = None
    """As `multifd.errors.MultifdError.result`."""

    def __init__(self) -> None:
        super().__init__("terminated")


def install() -> None:
    """From here on, until the process ends: the first SIGINT raises KeyboardInterrupt, a first SIGTERM `Terminated`."""
    handle_by(_raise)


@contextmanager
def raising() -> Iterator[None]:
    """As `install`, for as long as this is entered: a process that goes on has its own handlers back then."""
    before = handle_by(_raise)
    try:
        yield
    finally:
        restore(before)


@contextmanager
def polled() -> Iterator[Callable[[], None]]:
    """A signal that comes meanwhile breaks in nowhere: it raises, as after `install`, where it is asked about.

    When this is left, one that nobody has asked about changes nothing: what it would have ended is done.

    Returns:
        What asks.
    """
    came: list[int] = []
    before = handle_by(lambda number, _: came.append(number))

    def ask() -> None:
        if came:
            _raise(came[0], None)

    try:
        yield ask
    finally:
        restore(before)


@contextmanager
def cancelling(canceller: Canceller) -> Iterator[None]:
    """A signal cancels a migration, which ends by itself then; it never breaks in where the memory is on its way.

    The first signal cancels if that is in time, else the migration is told to wait no longer than it must. When this
    is left, a signal changes nothing any more: how it ended is known.

    Args:
        canceller: of the migration that runs meanwhile.

    Raises:
        Terminated: it was cancelled by SIGTERM; with the figures and notes of the error.
    """
    came: list[int] = []

    def cancel(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if not canceller.cancel():
            canceller.stop_waiting()

    handle_by(cancel)
    try:
        yield
    except Cancelled as e:
        if came[:1] == [signal.SIGTERM]:
            terminated = Terminated()
            terminated.result = e.result
            for note in getattr(e, "__notes__", ()):
                terminated.add_note(note)
            raise terminated from e
        raise
    finally:
        ignore()


@contextmanager
def handing_on(requests: Mapping[signal.Signals, _Request], ask: Callable[[_Request], object]) -> Iterator[list[int]]:
    """Signals ask something of a service that runs; they never break in.

    When this is left, SIGINT and SIGTERM change nothing any more: how it ended is known.

    Args:
        requests: what each signal asks for.
        ask: called in the handler, so it may only hand the request on.

    Returns:
        The signals that came and end something, in order.
    """
    came: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        if number in ENDING:
            came.append(number)
        ask(requests[signal.Signals(number)])

    before = {number: signal.signal(number, hand_on) for number in requests}
    try:
        yield came
    finally:
        ignore()
        restore({number: handler for number, handler in before.items() if number not in ENDING})


def ignore() -> None:
    """From here on a signal changes nothing: how it ended is known, and only remains to be said."""
    handle_by(_ignore)


def _raise(number: int, frame: FrameType | None) -> None:
    ignore()
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _ignore(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN, which a process that we start would inherit."""
