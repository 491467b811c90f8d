"""A packet's payload between a connection and a method's hooks, with the bounds that the contract promises."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from multifd.errors import HookError, RemoteWireError
from multifd.method import MAX_IOV, MultifdMethods, RecvParams, SendParams, run_hook
from multifd.pages import Pages


class Inbound(Protocol):
    """Where a channel's bytes come from: a connection, or a passage from one to another."""

    def recv_exactly(self, views: Sequence[memoryview]) -> None:
        """Fill `views` in order.

        Raises:
            ChannelError: the peer closed, or is silent.
        """
        ...


def verbatim_bytes(pages: Pages, next_packet_size: int) -> int:
    """Payload bytes of a method whose payload is the pages themselves.

    Raises:
        RemoteWireError: the header says otherwise.
    """
    # QEMU ignores the field for these and accepts 0: migration/multifd-nocomp.c, 10.0
    if next_packet_size not in (0, pages.nbytes):
        raise RemoteWireError(f"next_packet_size {next_packet_size}, expected {pages.nbytes}", offset=20)
    return pages.nbytes


def receive_payload(
    inbound: Inbound, method: MultifdMethods, p: RecvParams, pages: Pages, next_packet_size: int,
    buffer: memoryview,
) -> None:  # fmt: skip
    """Read a packet's payload and put what it decodes to into `pages` (the channel's thread).

    Args:
        inbound: where the payload comes from.
        method: whose payload it is.
        p: the channel's.
        pages: writable, as many as the packet has.
        next_packet_size: the header's, not checked yet.
        buffer: at least ``max_payload`` bytes, the channel's; its content is free again on return.

    Raises:
        RemoteWireError: a length that cannot be.
        CodecError: the payload does not decode.
        ChannelError: the connection broke.
    """
    if method.capabilities.verbatim:
        verbatim_bytes(pages, next_packet_size)
        inbound.recv_exactly(pages.runs())
        return
    bound = method.capabilities.max_payload
    if next_packet_size > bound:
        raise RemoteWireError(f"next_packet_size {next_packet_size}, at most {bound} ({method.name})", offset=20)
    if next_packet_size:
        inbound.recv_exactly([buffer[:next_packet_size]])
    p.pages, p.payload = pages, buffer[:next_packet_size].toreadonly()
    run_hook(method, "recv", p)


def prepare_payload(method: MultifdMethods, p: SendParams, pages: Pages) -> int:
    """Let the method fill ``p.iov``, empty before, from `pages`; returns the payload's bytes (the channel's thread).

    Raises:
        HookError: more than the method promised, or nothing at all.
    """
    p.pages = pages
    run_hook(method, "send_prepare", p)
    payload = sum(b.nbytes if isinstance(b, memoryview) else len(b) for b in p.iov)
    bound = method.capabilities.max_payload
    if not 0 < payload <= bound or len(p.iov) > MAX_IOV:
        raise HookError(
            f"method {method.name!r}: payload of {payload} bytes in {len(p.iov)} buffers, at most {bound} in {MAX_IOV}"
        )
    return payload
