"""The library's calls: `send`, `receive` and `relay`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from uuid import UUID

from multifd.engine.canceller import Canceller
from multifd.engine.receiver import ReceiveConfig, Receiver
from multifd.engine.relay import Relay, RelayConfig
from multifd.engine.sender import SendConfig, Sender
from multifd.errors import ChannelError, MultifdError, UsageError
from multifd.live.arena import Arena, ArenaTarget
from multifd.live.driver import LiveSchedule, LiveSource
from multifd.live.precopy import Decision, Limits
from multifd.method import MultifdMethods
from multifd.pages import Buffer
from multifd.ram.block import Source, Target
from multifd.ram.mapped_ram import is_mapped_ram
from multifd.ram.mapped_source import MappedRamSource
from multifd.ram.mapped_target import MappedRamTarget
from multifd.ram.memory import MemorySource, MemoryTarget
from multifd.ram.raw import RawImageSource, RawImageTarget
from multifd.registry import describe, load_method
from multifd.stats import RelayResult, Result
from multifd.transport.accept import Acceptor
from multifd.transport.address import Uri
from multifd.transport.listen import Listener
from multifd.wire.dialect import DIALECTS, Dialect, dialect_of

Progress = Callable[[Result], None]
_LOG = logging.getLogger(__name__)


def send(
    ram: str | os.PathLike[str] | Buffer | Arena,
    uri: str,
    method: str | MultifdMethods = "none",
    *,
    channels: int = 2,
    page_size: int = 4096,
    max_bandwidth: int = 0,
    connect_timeout: float = 10.0,
    timeout: float = 60.0,
    dialect: str | None = None,
    uuid: str | None = None,
    source_format: str = "auto",
    on_progress: Progress | None = None,
    handle: Canceller | None = None,
    pause: Callable[[], object] | None = None,
    resume: Callable[[], object] | None = None,
    throttle: Callable[[int], object] | None = None,
    tracker: str | None = None,
    downtime_limit: float = 0.3,
    max_rounds: int = 30,
    at_max_rounds: str = "fail",
) -> Result:
    """Migrate RAM to a destination that listens, or will within `connect_timeout`.

    Args:
        ram: the path of a capture (QEMU's mapped-ram file) or of a raw image, or a buffer of this process that
            nobody writes meanwhile, or an `Arena`, which may be written all the time.
        uri: ``tcp:HOST:PORT`` or ``unix:PATH``.
        method: a name, a name with options (``zstd:level=3``), or a method from `load_method`.
        channels: connections besides main, 1 to 255.
        page_size: bytes, a power of two from 4096 to 65536; a capture knows its own.
        max_bandwidth: bytes each second; 0 is unlimited.
        connect_timeout: seconds to wait for the destination to listen.
        timeout: seconds that all connections may be silent.
        dialect: the QEMU release whose machine type the destination has: 9.0, 8.1 or 7.2. None: a capture's machine
            type says it, otherwise 9.0.
        uuid: the destination's, instead of the captured guest's; all zero for a destination without one.
        source_format: raw, mapped-ram, or auto: mapped-ram if the file starts as a QEMU stream does.
        on_progress: called in this thread with the figures so far, about ten times a second.
        handle: cancels this call from another thread.
        pause: of an arena, needed: make everything that writes to it stand still, and return when it does. Called
            once, in this thread, when what is left fits the downtime.
        resume: of an arena, needed: let it go on. Called once, in this thread, if the migration fails after `pause`
            was called (also if `pause` itself raised), and never otherwise. After success and when the outcome is
            unknown the source stays paused: both ends running is worse.
        throttle: of an arena: called with a percentage, 20 at first, up to 99, by which the writers should slow
            down because they write faster than pages can be moved; with 0 after a failure.
        tracker: of an arena: write-protect, soft-dirty or comparison; None takes the best that works here.
        downtime_limit: seconds that the source of an arena may stand still.
        max_rounds: after which an arena that does not fit the limit is given up.
        at_max_rounds: fail, or switch-over: stand still for as long as it takes.

    What `pause`, `resume`, `throttle` and `on_progress` raise ends the migration and comes out of this call.

    Returns:
        The figures; the destination has confirmed that everything is in place.

    Raises:
        MultifdError: see `multifd.errors`; its ``result`` has the figures up to then.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise UsageError(f"dialect {dialect!r}, expected one of {', '.join(DIALECTS)}")
    if page_size not in (4096, 8192, 16384, 32768, 65536):
        raise UsageError(f"page size {page_size}, expected a power of two from 4096 to 65536")
    loaded = load_method(method) if isinstance(method, str) else method
    with contextlib.ExitStack() as stack:
        schedule: LiveSchedule | None = None
        if isinstance(ram, Arena):
            limits = Limits(downtime_limit, max_rounds, _at_max_rounds(at_max_rounds))
            if pause is None or resume is None:
                raise UsageError("an arena is sent while it is written: pause and resume are needed")
            live = LiveSource(ram, page_size, tracker)
            schedule = LiveSchedule(live, limits, pause, resume, throttle)
            source: Source = live
        elif pause or resume or throttle or tracker:
            raise UsageError("pause, resume, throttle and tracker are for an arena")
        else:
            source = _source(ram, page_size, source_format)
        stack.callback(source.close)
        if uuid is not None:
            source.machine = dataclasses.replace(source.machine, uuid=_uuid_bytes(uuid))
        config = SendConfig(
            Uri.parse(uri), channels, _dialect(source, dialect), max_bandwidth, connect_timeout, timeout
        )
        return _run(Sender(source, loaded, config, on_progress, schedule, handle))


def _at_max_rounds(text: str) -> Decision:
    allowed = {"fail": Decision.GIVE_UP, "switch-over": Decision.SWITCH_OVER}
    if text not in allowed:
        raise UsageError(f"at_max_rounds {text!r}, expected {' or '.join(allowed)}")
    return allowed[text]


def _uuid_bytes(text: str) -> bytes:
    try:
        return UUID(text).bytes
    except ValueError:
        raise UsageError(f"uuid {text!r}, expected 32 hexadecimal digits") from None


def _dialect(source: Source, name: str | None) -> Dialect:
    if not isinstance(source, MappedRamSource):
        return DIALECTS[name or "9.0"]
    # A destination may hold other bytes where a page is zero, such as its own firmware. A QEMU clears a
    # zero page in a packet only if it received that page before, one on main always.
    dialect = DIALECTS[name] if name else dialect_of(source.machine.name)
    return dataclasses.replace(dialect, zero_pages_in_packets=False)


def receive(
    uri: str,
    into: str | os.PathLike[str] | Buffer | Arena,
    *,
    format: str = "mapped-ram",
    methods: Sequence[str] = (),
    channels: int | None = None,
    timeout: float = 60.0,
    on_listening: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
) -> Result:
    """Wait for a sender, multifd's or QEMU's, and take its RAM.

    Args:
        uri: where to listen; port 0 lets the kernel choose.
        into: the path of the file to make (it appears only when complete), or a writable buffer of the right
            length, or an `Arena` with the sender's blocks (either is undefined after a failure).
        format: of the file: mapped-ram, QEMU's own, which holds everything; or raw, for a single RAM block.
        methods: the only methods allowed, as names with options; empty: any that the sender may choose.
        channels: None for what the sender announces, else 2.
        timeout: seconds that all connections may be silent, and to wait for the first.
        on_listening: called once with the URI that senders can use now, its port filled in.
        on_progress: called in this thread with the figures so far, about ten times a second.

    Returns:
        The figures; the image is durable and under its name.

    Raises:
        MultifdError: see `multifd.errors`; its ``result`` has the figures up to then.
    """
    parsed = Uri.parse(uri)
    config = ReceiveConfig(channels, tuple(methods), timeout)
    target = _target(into, format)
    try:
        listener = Listener(parsed)
        try:
            receiver = Receiver(listener, target, config, on_progress)
            if on_listening is not None:
                on_listening(str(listener.uri))
            return _run(receiver)
        finally:
            listener.close()
    finally:
        target.discard()


def relay(
    listen: str,
    to: str,
    *,
    in_method: str | None = None,
    out_method: str = "none",
    channels: int | None = None,
    once: bool = False,
    connect_timeout: float = 10.0,
    timeout: float = 60.0,
    on_listening: Callable[[str], None] | None = None,
    on_result: Callable[[RelayResult], None] | None = None,
) -> None:
    """Relay one migration after another, until interrupted.

    Args:
        listen: where sources connect, ``tcp:HOST:PORT`` or ``unix:PATH``; port 0 lets the kernel choose.
        to: where the destination listens, or will within `connect_timeout`.
        in_method: the only method a source may use, ``NAME:key=value``; None: any that it may choose.
        out_method: the method towards the destination.
        channels: how many a source must have, which is announced to the destination; None: as many as come.
        once: end after one migration, and raise what went wrong with it.
        connect_timeout: seconds to wait for the destination to listen.
        timeout: seconds that all connections of a migration may be silent. Between migrations there is no limit.
        on_listening: called once with the URI that sources can use now, its port filled in.
        on_result: called in this thread with the figures of each migration. Without `once` also of one that
            failed, whose error goes to the log.

    Raises:
        MultifdError: arguments that cannot be meant, an address that cannot be had; with `once` also what went
            wrong, with the figures as ``result``.
    """
    config = RelayConfig(Uri.parse(to), in_method, out_method, channels, connect_timeout, timeout)
    describe()  # imports every method now, not while the first packet waits
    listener = Listener(Uri.parse(listen))
    arrivals = Acceptor(listener, timeout)
    try:
        if on_listening is not None:
            on_listening(str(listener.uri))
        while True:
            one = Relay(arrivals, config)
            try:
                result = one.run()
            except MultifdError as e:
                e.result = result = one.result()
                if once or (isinstance(e, ChannelError) and not one.has_begun):
                    raise
                _LOG.error("%s", "; ".join([str(e), *getattr(e, "__notes__", ())]))
            if on_result is not None:
                on_result(result)
            if once:
                return
    finally:
        arrivals.close()
        listener.close()


def _source(ram: str | os.PathLike[str] | Buffer, page_size: int, source_format: str) -> Source:
    if source_format not in ("auto", "raw", "mapped-ram"):
        raise UsageError(f"source format {source_format!r}, expected auto, raw or mapped-ram")
    if not isinstance(ram, str | os.PathLike):
        return MemorySource(ram, page_size)
    if source_format == "mapped-ram" or (source_format == "auto" and is_mapped_ram(ram)):
        return MappedRamSource(ram)
    return RawImageSource(ram, page_size)


def _target(into: str | os.PathLike[str] | Buffer | Arena, format: str) -> Target:
    if format not in ("mapped-ram", "raw"):
        raise UsageError(f"format {format!r}, expected mapped-ram or raw")
    if isinstance(into, Arena):
        return ArenaTarget(into)
    if not isinstance(into, str | os.PathLike):
        return MemoryTarget(into)
    return MappedRamTarget(into) if format == "mapped-ram" else RawImageTarget(into)


def _run(end: Sender | Receiver) -> Result:
    try:
        return end.run()
    except MultifdError as e:
        e.result = end.stats.snapshot(0.0)
        raise
