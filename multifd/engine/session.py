"""A method at work on one channel: set-up, a packet's payload, clean-up, with the bounds that the contract promises.

Thread rule: a session belongs to the channel's thread.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from multifd.errors import HookError, RemoteWireError
from multifd.method import MAX_IOV, MultifdMethods, RecvParams, SendParams, max_payload, run_hook
from multifd.pages import Buffer, Geometry, Pages
from multifd.ram.block import Staging
from multifd.transport.idle import IdleTimer
from multifd.wire.packet import PRIVATE_CODE


def wire_code(method: MultifdMethods) -> int:
    """The value of the compression field that the method's packets carry."""
    return PRIVATE_CODE if method.wire_code is None else method.wire_code


class Inbound(Protocol):
    """Where a channel's bytes come from: a connection, or a splice from one to another."""

    def recv_exactly(self, views: Sequence[memoryview]) -> None:
        """Fill `views` in order.

        Raises:
            ChannelError: the peer closed, or is silent.
        """
        ...


class SendSession:
    """A method at a sender's channel; a context manager, which sets the method up and cleans it up.

    Args:
        method: shared by all channels of the migration.
        channel: its id.
        geometry: the migration's.
        idle: the migration's; its abort flag is the hooks'.
        counters: where the method counts.
    """

    def __init__(
        self, method: MultifdMethods, channel: int, geometry: Geometry, idle: IdleTimer, counters: dict[str, int]
    ) -> None:
        self.method, self.code = method, wire_code(method)
        self.is_verbatim = method.capabilities.verbatim
        """The payload is the pages themselves: the engine moves them, and no hook sees them."""
        self.staging = Staging(geometry)
        self._p = SendParams(
            channel, geometry, idle.abort.flag, self.staging.pages(0), counters=counters, timeout_s=idle.timeout_s
        )
        self._bound = max_payload(method, geometry)

    def __enter__(self) -> Self:
        try:
            run_hook(self.method, "send_setup", self._p)
        except BaseException:
            run_hook(self.method, "send_cleanup", self._p)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        run_hook(self.method, "send_cleanup", self._p)

    def prepare(self, pages: Pages) -> tuple[Sequence[Buffer], int]:
        """The payload of a packet's pages, and its bytes; the buffers are valid until the next call.

        Raises:
            HookError: more than the method promised, or nothing at all.
        """
        if self.is_verbatim:
            return pages.runs(), pages.nbytes
        p = self._p
        p.iov.clear()
        p.pages = pages
        run_hook(self.method, "send_prepare", p)
        payload = sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in p.iov)
        bound = self._bound
        if not 0 < payload <= bound or len(p.iov) > MAX_IOV:
            raise HookError(
                f"method {self.method.name!r}: payload of {payload} bytes in {len(p.iov)} buffers, "
                f"at most {bound} in {MAX_IOV}"
            )
        return p.iov, payload


class RecvSession:
    """A method at a receiver's channel; a context manager. The first packet with a payload says which method it is.

    Args:
        method_of: gives the method of a packet's code, or raises.
        channel: its id.
        geometry: the migration's.
        idle: the migration's; its abort flag is the hooks'.
        counters: where the method counts.
    """

    def __init__(
        self,
        method_of: Callable[[int], MultifdMethods],
        channel: int,
        geometry: Geometry,
        idle: IdleTimer,
        counters: dict[str, int],
    ) -> None:
        self._method_of = method_of
        self.staging = Staging(geometry)
        self._p = RecvParams(
            channel, geometry, idle.abort.flag, self.staging.pages(0), counters=counters, timeout_s=idle.timeout_s
        )
        self._method: MultifdMethods | None = None
        self._code = -1
        self._payload = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._method is not None:
            run_hook(self._method, "recv_cleanup", self._p)

    def method(self, code: int) -> MultifdMethods:
        """The method of a packet's code; it is set up at the first.

        Raises:
            PeerMismatch, MethodNotFound: no installed and allowed method has it.
            RemoteWireError: it is not that of the packets before.
        """
        if self._method is None:
            method = self._method_of(code)
            # Anonymous and private: a child that somebody forks does not share it.
            bound = max_payload(method, self._p.geometry)
            self._payload = memoryview(mmap.mmap(-1, bound, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            self._method, self._code = method, code
            run_hook(method, "recv_setup", self._p)
        elif code != self._code:
            self._method_of(code)  # raises
        return self._method

    def receive(self, inbound: Inbound, code: int, pages: Pages, next_packet_size: int) -> None:
        """Read a packet's payload and put what it decodes to into `pages`.

        Args:
            inbound: where the payload comes from.
            code: the packet's.
            pages: writable, as many as the packet has.
            next_packet_size: the header's, not checked yet.

        Raises:
            RemoteWireError: a length that cannot be.
            CodecError: the payload does not decode.
            ChannelError: the connection broke.
        """
        method = self.method(code)
        if method.capabilities.verbatim:
            self.receive_verbatim(inbound, pages.runs(), next_packet_size)
            return
        bound = len(self._payload)
        if next_packet_size > bound:
            raise RemoteWireError(f"next_packet_size {next_packet_size}, at most {bound} ({method.name})", offset=20)
        if next_packet_size:
            inbound.recv_exactly([self._payload[:next_packet_size]])
        self._p.pages, self._p.payload = pages, self._payload[:next_packet_size].toreadonly()
        run_hook(method, "recv", self._p)

    def receive_verbatim(self, inbound: Inbound, views: Sequence[memoryview], next_packet_size: int) -> None:
        """Read a payload that is the pages themselves, straight to where they belong.

        Args:
            inbound: where the payload comes from.
            views: the pages, in wire order; for system calls alone.
            next_packet_size: the header's, not checked yet.

        Raises:
            RemoteWireError: a length that cannot be.
            ChannelError: the connection broke.
            RamError: the pages cannot be written.
        """
        verbatim_bytes(sum(map(len, views)), next_packet_size)
        inbound.recv_exactly(views)


def verbatim_bytes(nbytes: int, next_packet_size: int) -> int:
    """Payload bytes of a method whose payload is the pages themselves.

    Args:
        nbytes: of the pages.
        next_packet_size: the header's.

    Raises:
        RemoteWireError: the header says otherwise.
    """
    # QEMU ignores the field for these and accepts 0: migration/multifd-nocomp.c, 10.0
    if next_packet_size not in (0, nbytes):
        raise RemoteWireError(f"next_packet_size {next_packet_size}, expected {nbytes}", offset=20)
    return nbytes
