"""The library's calls: `send`, `receive` and `relay`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from multifd.engine import resend, storing
from multifd.engine.canceller import Canceller
from multifd.engine.config import SAME, ReceiveConfig, RelayConfig, SendConfig, dialect_for
from multifd.engine.relay import Relay
from multifd.engine.sender import Sender
from multifd.engine.still import send_still
from multifd.errors import Cancelled, ChannelError, MultifdError, OutcomeUnknown, UsageError, about
from multifd.live.arena import Arena, ArenaTarget
from multifd.live.driver import Controls, LiveDriver, LiveSource
from multifd.method import MultifdMethods
from multifd.pages import Buffer
from multifd.ram.block import Target
from multifd.ram.image import open_target
from multifd.ram.memory import MemoryTarget
from multifd.ram.part_folder import PartFolder
from multifd.registry import load_method
from multifd.sources import Image, Live, MemoryImage, compared, limits_of, opened, source_of
from multifd.stats import RelayResult, Result
from multifd.transport import clear
from multifd.transport.accept import Acceptor
from multifd.transport.access import Access
from multifd.transport.address import Uri, folder_of
from multifd.transport.incoming import PlainIncoming
from multifd.transport.listen import Listener
from multifd.transport.listen import listen as listen_at
from multifd.transport.tls import Tls, TlsClient, TlsServer

Progress = Callable[[Result], None]

_LOG = logging.getLogger(__name__)


def send(
    source: str | os.PathLike[str] | Buffer | Image | MemoryImage | Live,
    uri: str,
    method: str | MultifdMethods | None = None,
    *,
    channels: int | None = None,
    max_bandwidth: int = 0,
    connect_timeout: float = 10.0,
    timeout: float = 60.0,
    dialect: str | None = None,
    uuid: str | None = None,
    tls: Tls | None = None,
    on_progress: Progress | None = None,
    canceller: Canceller | None = None,
) -> Result:
    """Migrate RAM to a destination that listens, or will within `connect_timeout`.

    Args:
        source: what is sent; a path is short for `Image`, a buffer for `MemoryImage`; ``dir:PATH`` is a folder of
            stored streams.
        uri: ``tcp:HOST:PORT``, ``unix:PATH``, ``vsock:CID:PORT``, or ``fd:N,N,...``: connected sockets, main's first,
            which are taken over. With ``dir:PATH`` the streams are stored in a folder that is made.
        method: a name, a name with options (``zstd:level=3``), or a method from `load_method`; None: ``none``, or of
            stored streams the one by which they were stored, of which nothing is decoded.
        channels: connections besides main, 1 to 255; None: 2, or as many as stored streams have.
        max_bandwidth: bytes each second; 0 is unlimited.
        connect_timeout: seconds to wait for the destination to listen.
        timeout: seconds that all connections may be silent.
        dialect: the QEMU release whose machine type the destination has: 9.0, 8.1 or 7.2. None: a capture's machine
            type says it, otherwise 9.0.
        uuid: the destination's, instead of the captured guest's; all zero for a destination without one.
        tls: encrypt every connection, and see by its certificate who the destination is; None is in clear.
        on_progress: called in this thread with the figures so far, about ten times a second.
        canceller: cancels this call from another thread.

    Returns:
        The figures; the destination has confirmed that everything is in place.

    Raises:
        MultifdError: see `multifd.errors`; its ``result`` has the figures up to then, and says by its status where
            the memory is. Whatever else is raised, an interrupt or what a callback raised, has that ``result``, too.
    """
    address = Uri.parse(uri)
    client = TlsClient(tls, address) if tls is not None else None
    canceller = canceller or Canceller()
    if folder := folder_of(source):
        if dialect is not None or uuid is not None:
            setting = "uuid" if dialect is None else "dialect"
            raise about(UsageError(f"stored streams go as they are: the {setting} is that of their source"), setting)
        how = resend.Way(address, channels, max_bandwidth, connect_timeout, timeout, client)
        return resend.send(folder, method, how, on_progress, canceller)
    method = method or "none"
    loaded = load_method(method) if isinstance(method, str) else method
    source = source_of(source)
    limits = limits_of(source) if isinstance(source, Live) else None
    count = 2 if channels is None else channels
    with opened(source) as ram, storing.destination(address, method, timeout) as where:
        verdict = compared(source, ram, canceller)
        if uuid is not None:
            ram.machine = dataclasses.replace(ram.machine, uuid=_uuid_bytes(uuid))
        config = SendConfig(where, count, dialect_for(ram, dialect), max_bandwidth, connect_timeout, timeout, client)
        sender = Sender(ram, loaded, config, on_progress, canceller)
        if isinstance(source, Live) and isinstance(ram, LiveSource) and limits is not None:
            controls = Controls(source.pause, source.resume, source.throttle)
            return LiveDriver(sender, ram, limits, controls).run()
        if verdict is None:
            return send_still(sender, ram)
        verdict.log()
        result = send_still(sender, ram)
        return dataclasses.replace(result, notes=(*result.notes, verdict.words))


def _uuid_bytes(text: str) -> bytes:
    try:
        return UUID(text).bytes
    except ValueError:
        raise about(UsageError(f"uuid {text!r}, expected 32 hexadecimal digits"), "uuid") from None


def receive(
    uri: str,
    into: str | os.PathLike[str] | Buffer | Arena,
    *,
    format: str = "mapped-ram",
    xml: str | os.PathLike[str] | None = None,
    methods: Sequence[str] = (),
    channels: int | None = None,
    timeout: float = 60.0,
    access: Access | None = None,
    tls: Tls | None = None,
    on_listening: Callable[[str], None] | None = None,
    on_progress: Progress | None = None,
    canceller: Canceller | None = None,
) -> Result:
    """Wait for a sender, multifd's or QEMU's, and take its RAM.

    Args:
        uri: where to listen, as for `send`; with tcp, port 0 lets the kernel choose. ``fd:N`` is a listening socket,
            ``fd:N,N,...`` are the migration's connections, in any order; they are taken over. With ``dir:PATH``
            nobody connects: stored streams are read.
        into: the path of the file to make (it appears only when complete), or a writable buffer of the right
            length, or an `Arena` with the sender's blocks (either is undefined after a failure); ``dir:PATH`` is a
            folder to make, in which the streams are stored as they come, without decoding.
        format: of the file: mapped-ram, QEMU's own, which holds everything; stream, the same as a plain QEMU stream;
            libvirt-raw or libvirt-sparse, what ``virsh restore`` takes; or raw, for a single RAM block.
        xml: of the libvirt formats: a file with the domain's XML.
        methods: the only methods allowed, as names with options; empty: any that the sender may choose.
        channels: None for what the sender announces, else 2.
        timeout: seconds that all connections may be silent, and to wait for the first.
        access: who may connect; None: anybody over tcp, the own user and root at a unix socket.
        tls: take encrypted connections alone, from who has a certificate; None takes those in clear alone.
        on_listening: called once with the URI that senders can use now, its port filled in.
        on_progress: called in this thread with the figures so far, about ten times a second.
        canceller: cancels this call from another thread.

    Returns:
        The figures; the image is durable and under its name.

    Raises:
        MultifdError: see `multifd.errors`; its ``result`` has the figures up to then, and says by its status where
            the memory is. Whatever else is raised, an interrupt or what a callback raised, has that ``result``, too.
    """
    parsed, canceller = Uri.parse(uri), canceller or Canceller()
    if tls is not None:
        parsed.refuse_folder()
    config = ReceiveConfig(channels, tuple(methods), timeout, TlsServer(tls) if tls is not None else None)
    access = access or Access()
    target = _target(into, format, xml)
    try:
        with storing.source(parsed, access, timeout, canceller, listen_at) as (listener, count):
            config = dataclasses.replace(config, channels=channels or count)
            receiver = storing.receiver(listener, target, config, on_progress, canceller)
            if on_listening is not None and not parsed.folder:
                receiver.announce(on_listening)
            if tls is None:
                clear.warn_arriving(listener, access)
            return receiver.run()
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
    access: Access | None = None,
    in_tls: Tls | None = None,
    out_tls: Tls | None = None,
    max_bandwidth: int = 0,
    on_listening: Callable[[str], None] | None = None,
    on_progress: Callable[[RelayResult], None] | None = None,
    on_result: Callable[[RelayResult], None] | None = None,
    canceller: Canceller | None = None,
) -> None:
    """Relay one migration after another, until interrupted.

    Args:
        listen: where sources connect, ``tcp:HOST:PORT``, ``unix:PATH``, ``vsock:CID:PORT`` or ``fd:N``, a listening
            socket, which is taken over; with tcp, port 0 lets the kernel choose. With `once` also ``dir:PATH``, stored
            streams.
        to: where the destination listens, or will within `connect_timeout`; with `once` also ``dir:PATH``, a folder to
            make, in which the streams are stored.
        in_method: the only method a source may use, ``NAME:key=value``; None: any that it may choose.
        out_method: the method towards the destination; ``same``: the source's, whose packets go on as they are.
        channels: how many a source must have, which is announced to the destination; None: as many as come.
        once: end after one migration, and raise what went wrong with it.
        connect_timeout: seconds to wait for the destination to listen.
        timeout: seconds that all connections of a migration may be silent. Between migrations there is no limit.
        access: who may connect; None: anybody over tcp, the own user and root at a unix socket.
        in_tls: take encrypted connections alone from sources; None takes those in clear alone.
        out_tls: encrypt every connection to the destination; None is in clear.
        max_bandwidth: bytes each second towards the destination; 0 is unlimited.
        on_listening: called once with the URI that sources can use now, its port filled in.
        on_progress: called in this thread with the figures so far, about ten times a second, also while it waits.
        on_result: called in this thread with the figures of each migration. Without `once` also of one that
            failed, whose error goes to the log.
        canceller: ends the relay, and the migration that passes, from another thread.

    Raises:
        MultifdError: arguments that cannot be meant, an address that cannot be had; with `once` also what went
            wrong, with the figures as ``result``.
    """
    address, comes_from = Uri.parse(to), Uri.parse(listen)
    if folder := "" if once else address.folder or comes_from.folder:
        raise about(UsageError(f"dir:{folder}: a folder has one migration"), "once")
    with _named("out_"):
        client = TlsClient(out_tls, address) if out_tls is not None else None
    with _named("in_"):
        if in_tls is not None:
            comes_from.refuse_folder()
        open_ = TlsServer(in_tls).open if in_tls is not None else PlainIncoming
    canceller = canceller or Canceller()
    access = access or Access()
    with (
        storing.destination(address, "" if out_method == SAME else out_method, timeout) as where,
        storing.source(comes_from, access, timeout, canceller, Listener) as (listener, count),
        contextlib.closing(Acceptor(listener, timeout, open_)) as acceptor,
    ):
        config = RelayConfig(
            where, in_method, out_method, channels or count, connect_timeout, timeout, max_bandwidth, out_tls=client
        )
        config.check_listens_at(comes_from)
        if on_listening is not None and not comes_from.folder:
            on_listening(str(listener.uri))
        if in_tls is None:
            clear.warn_arriving(listener, access)
        while True:
            one = Relay(acceptor, config, canceller, on_progress)
            try:
                result = one.run()
            except Cancelled:
                raise
            except MultifdError as e:
                result = e.result
                # Cancelled when the destination may have taken over: that says more than that it was cancelled.
                is_last = canceller.is_cancelled and isinstance(e, OutcomeUnknown)
                if once or is_last or (isinstance(e, ChannelError) and not one.has_begun):
                    raise
                _LOG.error("%s", "; ".join([str(e), *getattr(e, "__notes__", ())]))
            canceller.release()
            if once:
                break
            if result.status != "completed":
                one.turn_away_late()
                result = one.result
            if on_result is not None:
                on_result(result)
    if on_result is not None:
        on_result(result)


@contextlib.contextmanager
def _named(start: str) -> Iterator[None]:
    """An error about a setting is about the one of that side."""
    try:
        yield
    except UsageError as e:
        e.setting = e.setting and start + e.setting
        raise


def _target(
    into: str | os.PathLike[str] | Buffer | Arena, format: str, xml: str | os.PathLike[str] | None
) -> Target | PartFolder:
    if folder := folder_of(into):
        if (format, xml) != ("mapped-ram", None):
            raise about(UsageError(f"{into!r}: streams are stored as they come"), "format" if xml is None else "xml")
        return PartFolder(folder)
    if isinstance(into, Arena):
        return ArenaTarget(into)
    if not isinstance(into, str | os.PathLike):
        return MemoryTarget(into)
    return open_target(into, format=format, xml=xml)
