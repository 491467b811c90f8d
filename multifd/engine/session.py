"""A method at work on one channel: set-up, a packet's payload, clean-up, with the bounds that the contract promises.

Thread rule: a session belongs to the channel's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Protocol, Self

from multifd.errors import HookError, MultifdError, RemoteWireError
from multifd.method import (
    MAX_IOV,
    LinkUse,
    MultifdMethods,
    NativeHook,
    RecvParams,
    SendParams,
    max_payload,
    native_hook,
    run_hook,
)
from multifd.pages import Buffer, Geometry, Pages
from multifd.pump import library
from multifd.pump.extent import Extent
from multifd.pump.receiving import RecvPump
from multifd.pump.sending import SendPump
from multifd.ram.block import Staging, private_map
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
        self._hook: NativeHook | None = None
        self._pump: SendPump | None = None

    def __enter__(self) -> Self:
        try:
            run_hook(self.method, "send_setup", self._p)
        except BaseException:
            run_hook(self.method, "send_cleanup", self._p)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._pump is not None:
            self._pump.close()
        self._hook = None
        run_hook(self.method, "send_cleanup", self._p)

    def follow(self, link_use: Callable[[], LinkUse | None]) -> None:
        """Let the method know how the channel's connection goes; before it is set up.

        Args:
            link_use: see `SendParams`.
        """
        self._p.link_use = link_use

    def open_pump(self, descriptor: int | None, zero_pages_in_packets: bool) -> SendPump | None:
        """The channel's pump, once it is set up; None if its packets must go through Python.

        Args:
            descriptor: the connection's socket, None if it has none to write to.
            zero_pages_in_packets: whether the destination takes zero pages in packets.
        """
        if descriptor is None or library.unavailable_reason():
            return None
        if not self.is_verbatim:
            self._hook = native_hook(self.method, "native_send", self._p)
            if self._hook is None:
                return None
        p = self._p
        self._pump = SendPump(
            descriptor, p.geometry, p.abort, self.code, zero_pages_in_packets=zero_pages_in_packets,
            capacity=self._bound, staging=self.staging.data, hook=self._hook,
        )  # fmt: skip
        return self._pump

    def native_error(self, result: int) -> Exception:
        """What is wrong, after the native hook gave `result`."""
        if result >= 0 or self._hook is None:
            return self._too_much(result, 1)
        return _explained(self.method, self._hook, result)

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
        if not 0 < payload <= self._bound or len(p.iov) > MAX_IOV:
            raise self._too_much(payload, len(p.iov))
        return p.iov, payload

    def _too_much(self, payload: int, buffers: int) -> HookError:
        return HookError(
            f"method {self.method.name!r}: payload of {payload} bytes in {buffers} buffers, "
            f"at most {self._bound} in {MAX_IOV}"
        )


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
        self._hook: NativeHook | None = None
        self._pump: RecvPump | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._pump is not None:
            self._pump.close()
        self._hook = None
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
            self._payload = private_map(max_payload(method, self._p.geometry))
            self._method, self._code = method, code
            run_hook(method, "recv_setup", self._p)
            self._aim_pump()
        elif code != self._code:
            self._method_of(code)  # raises
        return self._method

    def open_pump(self, descriptor: int | None, blocks: Mapping[str, tuple[int, Extent | None]]) -> RecvPump | None:
        """The channel's pump; None if its packets must go through Python.

        Args:
            descriptor: the connection's socket, None if it has none to read from.
            blocks: name, used_length in bytes, and where it lies, if it can be reached, of every block.
        """
        if descriptor is None or library.unavailable_reason():
            return None
        self._pump = RecvPump(descriptor, self._p.geometry, self._p.abort, blocks, self.staging.data)
        return self._pump

    def _aim_pump(self) -> None:
        """The method is known: the pump may take its packets, if they are the pages or there is a native hook."""
        if self._pump is None or self._method is None:
            return
        if not self._method.capabilities.verbatim:
            self._hook = native_hook(self._method, "native_recv", self._p)
            if self._hook is None:
                return
        self._pump.aim(self._code, self._hook, self._payload)

    def native_error(self, result: int) -> Exception:
        """What is wrong, after the native hook gave `result`."""
        if self._method is None or self._hook is None:
            return HookError(f"a native hook gave {result}, and there is none")
        if result > 0:
            return HookError(f"method {self._method.name!r}: its native hook gave {result}, expected 0 or less")
        return _explained(self._method, self._hook, result)

    def decode(self, pages: Pages, payload_bytes: int) -> None:
        """Put what the payload that was read decodes to into `pages`.

        Args:
            pages: writable, as many as the packet has.
            payload_bytes: of the payload, checked.

        Raises:
            CodecError: the payload does not decode.
        """
        if self._method is None:
            raise HookError("a payload came before a method")
        self._p.pages, self._p.payload = pages, self._payload[:payload_bytes].toreadonly()
        run_hook(self._method, "recv", self._p)

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
        self.decode(pages, next_packet_size)

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


def _explained(method: MultifdMethods, hook: NativeHook, result: int) -> Exception:
    """The method's own words for a negative result of its native hook, if it has any that the contract allows."""
    try:
        error = hook.explain(result)
    except Exception as e:
        return HookError(f"method {method.name!r}: explain raised {e!r}")
    if isinstance(error, MultifdError):
        return error
    return HookError(f"method {method.name!r}: its native hook gave {result}: {error!r}")


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
