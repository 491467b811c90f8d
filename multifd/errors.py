"""What can go wrong, whose fault it is, and the exit status the command line gives it.

::

    MultifdError                      1  a bug here, if it is raised itself
    ├── MethodError                   3
    │   ├── MethodNotFound            3  also a LookupError
    │   ├── MethodUnavailable         3  installed, but cannot run here
    │   ├── MethodIncompatible        3  written for another plugin API, or not a method at all
    │   ├── HookError                 3  a hook broke the contract: the plugin's bug
    │   ├── OptionError               2  also a ValueError
    │   └── CodecError                4  a payload that does not decode
    ├── WireError
    │   ├── LocalWireError            1  we were asked to emit something illegal: our bug
    │   └── RemoteWireError           4  the peer broke the protocol on a channel
    ├── StreamError                   4  the peer broke the protocol on the main stream
    ├── PeerMismatch                  4  both ends are sound, but were told different things
    ├── PeerFailed                    4  the destination reported, on the return path, that it failed
    ├── ChannelError                  5  closed early, refused, silent for too long; also an OSError
    │   └── TlsError                  5  the other end is not who it should be, or refuses this one
    ├── RamError                      6  a RAM image that cannot be read or written as asked
    ├── OutcomeUnknown                7  the connection died when the destination may have taken over
    ├── NotConverged                  8  a live source writes faster than its pages can be moved
    ├── ControlError                  9  QEMU's monitor refused a command, or cannot be had
    ├── Cancelled                   130  by `Canceller.cancel`
    └── UsageError                    2  an argument that cannot be meant; also a ValueError

Status 0 is success and 130 is Ctrl-C. Whatever else leaves the library is a bug in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

_LONGEST = 2000  # characters of a message; a plugin or a peer may hand over any number


def printable(text: str) -> str:
    """A text that cannot move a terminal's cursor, break a line or turn its direction.

    What comes from a file, a peer or a plugin goes through here before it is shown. Whatever is not a visible
    character or a space (controls, escape sequences, bidirectional marks, lone surrogates) becomes its backslash
    escape, and what is longer than 2000 characters is cut. To do it twice changes nothing.

    Args:
        text: any string.
    """
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


class MultifdError(Exception):
    """Base of everything multifd raises on purpose; ``exit_code`` is the command line's status.

    The message and the notes are printable, whatever text of a peer, a file or a plugin they quote.
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "a bug in multifd"
    """Of the exit status, for the command line's help; a class with a status of its own says it."""
    result: Any = None
    """A `multifd.stats.Result`: the figures of the migration that failed, if there was one."""
    setting: str = ""
    """The argument of the library's call that the message is about, such as ``timeout``, if it is about one."""

    def __str__(self) -> str:
        return printable(super().__str__())

    def add_note(self, note: str) -> None:
        """Attach a line to the message."""
        super().add_note(printable(note))


class UsageError(MultifdError, ValueError):
    """An argument of a call or a command that cannot be meant."""

    exit_code = 2
    meaning = "wrong arguments or options"


class MethodError(MultifdError):
    """A method cannot be had, or broke its contract."""

    exit_code = 3
    meaning = "a method is missing, unavailable or broken"


class MethodNotFound(MethodError, LookupError):
    """No installed distribution provides the method.

    Args:
        name: what was asked for.
        installed: the names that exist.
        near: those of them that look like `name`.
    """

    def __init__(self, name: str, installed: Sequence[str], near: Sequence[str] = ()) -> None:
        self.name, self.installed, self.near = name, tuple(installed), tuple(near)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        if not near and re.fullmatch(r"[a-z][a-z0-9-]*", name):
            hint = f"; if it is a plugin's: pip install multifd-{name}"
        super().__init__(f"no method {name!r} is installed (installed: {', '.join(installed) or 'none at all'}){hint}")


class MethodUnavailable(MethodError):
    """The method is installed but cannot run on this machine; the message says why."""


class MethodIncompatible(MethodError):
    """The entry point does not lead to a method of this plugin API."""


class HookError(MethodError):
    """A hook raised what the contract does not allow, or broke one of its bounds: the plugin's bug."""


class OptionError(MethodError, ValueError):
    """An option that the method does not have, or a value that it does not allow.

    Args:
        option: the option's name.
        value: what was given.
        allowed: what would be accepted, in words.
        method: the method's name, if known.
    """

    exit_code = 2

    def __init__(self, option: str, value: object, allowed: str, method: str = "") -> None:
        self.option, self.value, self.allowed, self.method = option, value, allowed, method
        super().__init__(option, value, allowed, method)

    def __str__(self) -> str:
        where = f"method {self.method!r}: " if self.method else ""
        return printable(f"{where}option {self.option!r}: got {self.value!r}, {self.allowed}")


class _Located(MultifdError):
    """A fault of the peer with the place where it was found, filled in by whoever knows it.

    Args:
        what: the fact that is wrong, with what was got and what was expected.
        offset: bytes from the start of the header, packet or stream that `what` speaks of.
    """

    exit_code = 4
    meaning = "the peer broke the protocol, failed, or was configured differently"

    def __init__(self, what: str, *, offset: int | None = None) -> None:
        super().__init__(what)
        self.what, self.offset = what, offset
        self.channel: int | None = None
        self.packet: int | None = None

    def __str__(self) -> str:
        place = [
            f"{name} {value}"
            for name, value in (("channel", self.channel), ("packet", self.packet), ("byte", self.offset))
            if value is not None
        ]
        return printable(f"{', '.join(place)}: {self.what}" if place else self.what)


class CodecError(_Located, MethodError):
    """A payload does not decode to exactly its pages."""

    exit_code = 4


class WireError(_Located):
    """The multifd wire."""


class LocalWireError(WireError):
    """We were asked to emit something illegal: a bug on this side."""

    exit_code = 1


class RemoteWireError(WireError):
    """The peer broke the protocol on a channel."""


class StreamError(_Located):
    """The peer broke the protocol on the main stream."""


class PeerMismatch(MultifdError):
    """Both ends work but were configured differently; the message names the setting."""

    exit_code = 4


class PeerFailed(MultifdError):
    """The destination said on the return path that it failed; its own message says why."""

    exit_code = 4


class ChannelError(MultifdError, OSError):
    """A connection was refused, closed early, or silent for longer than the timeout."""

    exit_code = 5
    meaning = "a connection was refused, broke, or was silent for too long"


class TlsError(ChannelError):
    """TLS failed: the other end could not prove who it is, does not accept this one, or does not speak TLS."""


class Aborted(ChannelError):
    """A wait that ended because the migration is being torn down: a consequence, which never leaves an engine."""


class RamError(MultifdError):
    """A RAM source or destination cannot be used as asked: not RAM, full disk, wrong size."""

    exit_code = 6
    meaning = "a RAM image or a capture cannot be read or written, or is not sound"


class OutcomeUnknown(MultifdError):
    """The connection died after the whole stream was sent and before the destination confirmed it.

    The destination may or may not hold the memory. Look there before the source runs again: two
    running copies are worse than none.
    """

    exit_code = 7
    meaning = "the outcome is unknown: look at the destination before the source runs again"


class NotConverged(MultifdError):
    """A live source writes faster than its pages can be moved; the message has the figures. It runs on."""

    exit_code = 8
    meaning = "a live source writes faster than its pages can be moved"


class ControlError(MultifdError):
    """QEMU refused what its monitor was asked for, failed, or cannot be asked."""

    exit_code = 9
    meaning = "QEMU refused or failed, or its monitor cannot be had"


class Cancelled(MultifdError):
    """The caller cancelled the migration; the source keeps its memory."""

    exit_code = 130
    meaning = "interrupted"


_Error = TypeVar("_Error", bound=MultifdError)


def about(error: _Error, setting: str) -> _Error:
    """The error, marked as one about an argument of the library's call: see `MultifdError.setting`."""
    error.setting = setting
    return error


def note_hint(error: MultifdError, hint: str) -> None:
    """Attach what to look at, if there is anything to say."""
    if hint:
        error.add_note(hint)


def note_others(error: BaseException, others: Sequence[BaseException]) -> None:
    """Attach what else went wrong to the error that is raised, without saying anything twice."""
    for other in others:
        if other is not error and str(other) not in str(error):
            error.add_note(f"also: {other}")


def exit_statuses() -> Mapping[int, str]:
    """What each exit status of the command line means, in ascending order: the one place that says it."""
    own = {cls.exit_code: cls.meaning for cls in _classes(MultifdError) if "meaning" in vars(cls)}
    return dict(sorted({0: "done", **own, 143: "terminated"}.items()))


def _classes(base: type[MultifdError]) -> Iterator[type[MultifdError]]:
    yield base
    for cls in base.__subclasses__():
        yield from _classes(cls)
