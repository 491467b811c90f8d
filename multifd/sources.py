"""What can be sent: RAM in a file, in a buffer, or in use; and how each of them is opened and checked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from multifd.engine.canceller import Canceller, unless_cancelled
from multifd.errors import UsageError, about
from multifd.live.arena import Arena
from multifd.live.driver import LiveSource
from multifd.live.precopy import Decision, Limits
from multifd.pages import Buffer
from multifd.ram.block import Source
from multifd.ram.digest import Verdict, check
from multifd.ram.image import open_source
from multifd.ram.memory import MemorySource
from multifd.ram.raw import RawImageSource
from multifd.ram.stored import StoredSource

_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_AT_MAX_ROUNDS = {"fail": Decision.GIVE_UP, "switch-over": Decision.SWITCH_OVER}


@dataclass(frozen=True)
class Image:
    """RAM in a file: a stored machine (a capture, a plain QEMU stream, a libvirt save image), or a raw image."""

    path: str | os.PathLike[str]
    format: str = "auto"
    """mapped-ram, stream, libvirt, raw, or auto: whichever it is; a file with the mark of anything else is refused."""
    page_size: int = 4096
    """Bytes, of a raw image; a capture knows its own."""
    digest: str = "auto"
    """Of its bytes, which `multifd.ram.digest` has written beside it: auto, compare them before anything is sent if
    there are any; require them; or ignore them."""
    on_digest: Callable[[int, int], object] | None = None
    """Called in the caller's thread, about ten times a second, with the bytes that are compared and all."""


@dataclass(frozen=True)
class MemoryImage:
    """RAM in a buffer of this process that nobody writes while it is sent."""

    buffer: Buffer
    page_size: int = 4096
    """Bytes, a power of two from 4096 to 65536."""


@dataclass(frozen=True)
class Live:
    """An `Arena`, which may be written all the time, and what may be done to its writers.

    What `pause`, `resume` and `throttle` raise ends the migration and comes out of `send`. All are called in the
    thread that called it.
    """

    arena: Arena
    pause: Callable[[], object]
    """Makes everything that writes to it stand still, and returns when it does. Called once, when what is left fits
    the downtime."""
    resume: Callable[[], object]
    """Lets it go on. Called once if the migration fails after `pause` was called (also if `pause` itself raised), and
    never otherwise. After success and when the outcome is unknown the source stays paused: both ends running is
    worse."""
    throttle: Callable[[int], object] | None = None
    """Called with a percentage, 20 at first, up to 99, by which the writers should slow down because they write faster
    than pages can be moved; with 0 after a failure."""
    tracker: str | None = None
    """write-protect, soft-dirty or comparison; None takes the best that works here."""
    page_size: int = 4096
    """Bytes, a power of two from 4096 to 65536."""
    downtime_limit: float = 0.3
    """Seconds that the source may stand still."""
    max_rounds: int = 30
    """After so many, what does not fit the limit is given up."""
    at_max_rounds: str = "fail"
    """Or switch-over: stand still for as long as it takes."""


def source_of(what: str | os.PathLike[str] | Buffer | Image | MemoryImage | Live) -> Image | MemoryImage | Live:
    """What is meant: a path is short for `Image`, a buffer for `MemoryImage`.

    Raises:
        UsageError: it is nothing that can be sent, or has no page size.
    """
    if isinstance(what, Image | MemoryImage | Live):
        source = what
    else:
        source = Image(what) if isinstance(what, str | os.PathLike) else MemoryImage(_buffer(what))
    if source.page_size not in _PAGE_SIZES:
        raise about(
            UsageError(f"page size {source.page_size}, expected a power of two from 4096 to 65536"), "page_size"
        )
    return source


def _buffer(source: object) -> Buffer:
    try:
        return memoryview(source).cast("B")  # type: ignore[arg-type]
    except TypeError as e:
        raise about(
            UsageError(
                f"cannot send {type(source).__name__}: {e}; expected a path, a contiguous buffer, Image, MemoryImage "
                "or Live"
            ),
            "source",
        ) from e


@contextlib.contextmanager
def opened(source: Image | MemoryImage | Live) -> Iterator[Source]:
    """The source as an engine sends it, for the length of a ``with``.

    Raises:
        RamError: a file cannot be read, or is not sound.
        UsageError: an option of it.
    """
    if isinstance(source, Live):
        ram: Source = LiveSource(source.arena, source.page_size, source.tracker)
    elif isinstance(source, MemoryImage):
        ram = MemorySource(source.buffer, source.page_size)
    else:
        ram = open_source(source.path, format=source.format, page_size=source.page_size)
    try:
        yield ram
    finally:
        ram.close()


def compared(source: Image | MemoryImage | Live, ram: Source, canceller: Canceller | None) -> Verdict | None:
    """What the digests of a file say; None if they are not asked for.

    Args:
        source: what is sent.
        ram: as `opened` has it.
        canceller: ends the comparison.

    Raises:
        RamError: the file does not match.
    """
    if not isinstance(source, Image) or source.digest == "ignore":
        return None
    assert isinstance(ram, StoredSource | RawImageSource)  # what an image is opened as
    return check(ram, source.digest, unless_cancelled(canceller, source.on_digest))


def limits_of(live: Live) -> Limits:
    """When live memory switches over.

    Raises:
        UsageError: `Live.at_max_rounds` is nothing that can be done.
    """
    if live.at_max_rounds not in _AT_MAX_ROUNDS:
        allowed = " or ".join(_AT_MAX_ROUNDS)
        raise about(UsageError(f"at_max_rounds {live.at_max_rounds!r}, expected {allowed}"), "at_max_rounds")
    return Limits(live.downtime_limit, live.max_rounds, _AT_MAX_ROUNDS[live.at_max_rounds])
