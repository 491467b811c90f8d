"""The library's calls: `send` and `receive`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from multifd.channel import Listener, Uri
from multifd.errors import MultifdError, UsageError
from multifd.method import Buffer, MultifdMethods
from multifd.ram import MemorySource, MemoryTarget, RawImageSource, RawImageTarget, Source, Target
from multifd.receiver import ReceiveConfig, Receiver
from multifd.registry import load_method
from multifd.sender import SendConfig, Sender
from multifd.stats import Result
from multifd.wire import DIALECTS

Progress = Callable[[Result], None]


def send(
    ram: str | os.PathLike[str] | Buffer,
    uri: str,
    method: str | MultifdMethods = "none",
    *,
    channels: int = 2,
    page_size: int = 4096,
    max_bandwidth: int = 0,
    connect_timeout: float = 10.0,
    timeout: float = 60.0,
    dialect: str = "9.0",
    on_progress: Progress | None = None,
) -> Result:
    """Migrate RAM to a destination that listens, or will within `connect_timeout`.

    Args:
        ram: the path of a raw image, or a buffer of this process that nobody writes meanwhile.
        uri: ``tcp:HOST:PORT`` or ``unix:PATH``.
        method: a name, a name with options (``zstd:level=3``), or a method from `load_method`.
        channels: connections besides main, 1 to 255.
        page_size: bytes, a power of two from 4096 to 65536.
        max_bandwidth: bytes each second; 0 is unlimited.
        connect_timeout: seconds to wait for the destination to listen.
        timeout: seconds that all connections may be silent.
        dialect: the QEMU release whose machine type the destination has: 9.0, 8.1 or 7.2.
        on_progress: called in this thread with the figures so far, about ten times a second.

    Returns:
        The figures; the destination has confirmed that everything is in place.

    Raises:
        MultifdError: see `multifd.errors`; its ``result`` has the figures up to then.
    """
    if dialect not in DIALECTS:
        raise UsageError(f"dialect {dialect!r}, expected one of {', '.join(DIALECTS)}")
    if page_size not in (4096, 8192, 16384, 32768, 65536):
        raise UsageError(f"page size {page_size}, expected a power of two from 4096 to 65536")
    config = SendConfig(Uri.parse(uri), channels, DIALECTS[dialect], max_bandwidth, connect_timeout, timeout)
    loaded = load_method(method) if isinstance(method, str) else method
    source = _source(ram, page_size)
    try:
        return _run(Sender(source, loaded, config, on_progress))
    finally:
        source.close()


def receive(
    uri: str,
    into: str | os.PathLike[str] | Buffer,
    *,
    methods: Sequence[str] = (),
    channels: int | None = None,
    timeout: float = 60.0,
    on_listening: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
) -> Result:
    """Wait for a sender, multifd's or QEMU's, and take its RAM.

    Args:
        uri: where to listen; port 0 lets the kernel choose.
        into: the path of a raw image to make (it appears only when complete), or a writable buffer of the right
            length (undefined after a failure).
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
    target = _target(into)
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


def _source(ram: str | os.PathLike[str] | Buffer, page_size: int) -> Source:
    if isinstance(ram, str | os.PathLike):
        return RawImageSource(ram, page_size)
    return MemorySource(ram, page_size)


def _target(into: str | os.PathLike[str] | Buffer) -> Target:
    if isinstance(into, str | os.PathLike):
        return RawImageTarget(into)
    return MemoryTarget(into)


def _run(end: Sender | Receiver) -> Result:
    try:
        return end.run()
    except MultifdError as e:
        e.result = end.stats.snapshot(0.0)
        raise
