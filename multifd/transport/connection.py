"""One connection: exact reads, whole writes, deadlines, byte counters.

Rules of this file: it and `address` are the only ones that know sockets. No MSG_PEEK, and nothing above this file calls
sendmsg, so that a TLS twin can take its place. Sockets block, with a kernel timeout short enough
to notice an abort; a blocking call moves a whole packet with one system call and without the GIL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Sequence

from multifd.errors import Aborted, ChannelError, MultifdError, RamError
from multifd.method import LinkUse
from multifd.pages import Buffer, flat
from multifd.transport.access import ip_address
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit

_SLICE_S = 0.25
"""How long one system call may block before the idle timer and the abort flag are looked at."""
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6))
"""A dead peer host is noticed after 40 s, within the default timeout."""
_IOV_MAX = 1024  # <limits.h>, Linux
_UNLIMITED = 1 << 62
_UNSENT = 256 << 10
"""Bytes that the kernel takes before it has sent those before them (tcp(7), TCP_NOTSENT_LOWAT): enough that a link is
never idle, few enough that a wait tells of the link as it is now. What is on its way is not counted, however long."""
_TCP_INFO = struct.Struct("160xQQQ")
"""linux/tcp.h, struct tcp_info: tcpi_delivery_rate, bytes a second; tcpi_busy_time and tcpi_rwnd_limited, microseconds
in steps of the kernel's timer (Linux 4.10)."""
_LOCAL_SEND_BUFFER = 192 << 10
"""Bytes that wait in a connection to this host, twice as many by the kernel's count (socket(7)): few enough to be read
while they are in the processors' caches. Left to itself the kernel lets 4 MiB wait (tcp_wmem), for links that are long:
with 2 to 8 channels of `none` that took 5 to 10 % more CPU, alternating, 1 GiB, 14 rounds, on 2 cores that had other
work too (2026-11-29)."""


class Connection:
    """A connected stream socket; one thread reads and one writes, which may be the same.

    Args:
        sock: taken over, made blocking with a short kernel timeout.
        idle: the migration's; every byte moved touches it.
        peer: the other end, as error messages name it.
        limit: for what is sent; None is unlimited.
    """

    takes_mapped = True
    """Whether memory that only the kernel may touch can be sent and received into: see `MappedPages`, `lend`."""

    def __init__(self, sock: socket.socket, idle: IdleTimer, peer: str, limit: RateLimit | None = None) -> None:
        self._sock, self._idle, self.peer, self._limit = sock, idle, peer, limit
        self._limited_s = 0.0  # that were waited for the limit
        self.bytes_sent = 0
        self.bytes_received = 0
        self.stalls = 0
        """How often the other end took nothing of what was to be sent for a whole slice, a quarter of a second."""
        self.since = time.monotonic()
        """When it was made; of one that was accepted, when it came."""
        self._is_reset = False
        self._granted = 0
        sock.setblocking(True)
        slice_ = struct.pack("ll", 0, int(min(_SLICE_S, idle.timeout_s) * 1e6))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, slice_)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, slice_)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
            if not self.is_exposed:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LOCAL_SEND_BUFFER)

    @property
    def is_exposed(self) -> bool:
        """Whether it crosses a network: tcp to an address that is neither the loopback's nor this end's own.

        A connection that is gone crosses none.
        """
        if self._sock.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        try:
            own, peer = ip_address(self._sock.getsockname()[0]), ip_address(self._sock.getpeername()[0])
        except OSError:
            return False
        return not peer.is_loopback and peer != own

    @property
    def descriptor(self) -> int | None:
        """The socket's number, for system calls of the packet pump between `grant` and `sent` or `received`; None if
        what goes over it is not what the socket carries."""
        return self._sock.fileno()

    def link_use(self) -> LinkUse | None:
        """What the kernel has counted of the way out; None: it does not say. A limit is part of the way."""
        with contextlib.suppress(OSError, struct.error):
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            rate, busy_us, receiver_us = _TCP_INFO.unpack(info)
            is_limited = self._limit is not None and not self._limit.is_lifted
            return LinkUse(0.0 if is_limited else float(rate), busy_us / 1e6 + self._limited_s, receiver_us / 1e6)
        return None

    def grant(self) -> int:
        """How many bytes may be sent through `descriptor` now; waits for the limit, if there is one."""
        if self._limit is None:
            return _UNLIMITED
        if not self._granted:
            self._granted = self._limit.piece
            self._limited_s += self._limit.wait(self._granted)
        return self._granted

    def sent(self, nbytes: int) -> None:
        """So many were sent through `descriptor`."""
        if nbytes:
            self._idle.touch()
            self.bytes_sent += nbytes
            self._granted = max(self._granted - nbytes, 0)

    def received(self, nbytes: int) -> None:
        """So many were received through `descriptor`."""
        if nbytes:
            self._idle.touch()
            self.bytes_received += nbytes

    def check_idle(self) -> None:
        """A call on `descriptor` waited in vain; raises if nothing has moved for too long, or all is over.

        Raises:
            ChannelError: the peer is silent, or the migration was aborted.
        """
        self._idle.check()

    def send(self, iov: Sequence[Buffer]) -> None:
        """Write all of `iov`, in order; the buffers are free again on return.

        Raises:
            ChannelError: the peer closed, is silent, or the migration was aborted.
            RamError: `iov` lies in the map of a file that ends before it, or cannot be read.
            TypeError, ValueError: an element is no C-contiguous buffer.
        """
        if self._limit is None:
            self._send([flat(buffer) for buffer in iov])
            return
        for buffer in iov:
            view = memoryview(flat(buffer))
            for at in range(0, len(view), self._limit.piece):
                piece = view[at : at + self._limit.piece]
                self._limited_s += self._limit.wait(len(piece))
                self._send([piece])

    def _send(self, pending: list[Buffer]) -> None:
        while pending:
            try:
                sent = self._sock.sendmsg(pending[:_IOV_MAX])
            except BlockingIOError:
                self.stalls += 1
                self._idle.check()
                continue
            except OSError as e:
                raise self.sending_failed(e.errno or 0) from e
            self._idle.touch()
            self.bytes_sent += sent
            done = 0
            while done < len(pending) and sent >= len(pending[done]):
                sent -= len(pending[done])
                done += 1
            del pending[:done]
            if sent:
                pending[0] = memoryview(pending[0])[sent:]

    def send_file(self, fd: int, offset: int, nbytes: int) -> int:
        """Write bytes of a regular file, from the page cache to the socket without a copy in this process.

        Args:
            fd: the file's descriptor; it stays the caller's.
            offset: the first byte.
            nbytes: at most so many.

        Returns:
            How many were written; 0 if the file ends there.

        Raises:
            OSError: the file cannot be read.
            ChannelError: the peer closed, is silent, or the migration was aborted.
        """
        nbytes = min(nbytes, self.grant())
        while True:
            try:
                sent = os.sendfile(self._sock.fileno(), fd, offset, nbytes)
            except BlockingIOError:
                self.stalls += 1
                self._idle.check()
                continue
            except OSError as e:
                if e.errno == errno.EINVAL:  # of a file system that cannot (sendfile(2))
                    return self._send_read(fd, offset, nbytes)
                if e.errno == errno.EIO:
                    raise
                raise self.sending_failed(e.errno or 0) from e
            self.sent(sent)
            return sent

    def _send_read(self, fd: int, offset: int, nbytes: int) -> int:
        data = os.pread(fd, nbytes, offset)
        self.send([data])
        return len(data)

    def recv_into(self, views: Sequence[memoryview], *, at_least: int | None = None) -> int:
        """Fill `views` in order; return the bytes read.

        Args:
            views: writable; filled completely unless `at_least` says otherwise.
            at_least: return once that many bytes are there.

        Returns:
            The bytes read: 0 if the peer closed cleanly before the first byte.

        Raises:
            ChannelError: the peer closed in the middle, is silent, or the migration was aborted.
            RamError: `views` lie in memory that cannot be written.
        """
        pending = list(views)
        flags = socket.MSG_WAITALL if at_least is None else 0
        wanted = sum(map(len, pending)) if at_least is None else at_least
        done = 0
        while done < wanted:
            try:
                if len(pending) == 1:
                    got = self._sock.recv_into(pending[0], 0, flags)
                else:
                    got = self._sock.recvmsg_into(pending[:_IOV_MAX], 0, flags)[0]
            except BlockingIOError:
                self._idle.check()
                continue
            except OSError as e:
                raise self.receiving_failed(e.errno or 0) from e
            if not got:
                if self._idle.abort.is_set():
                    self._idle.check()
                if not done:
                    return 0
                raise self.closed_after(done, wanted)
            self._idle.touch()
            self.bytes_received += got
            done += got
            if done >= wanted:
                break
            while got >= len(pending[0]):
                got -= len(pending.pop(0))
            pending[0] = pending[0][got:]
        return done

    def recv_exactly(self, views: Sequence[memoryview]) -> None:
        """Fill `views` in order, in the middle of something: the peer must not close here.

        Raises:
            ChannelError: as `recv_into`, and if the peer closed.
        """
        if not self.recv_into(views):
            raise self.closed_after(0, sum(map(len, views)))

    def recv_available(self, limit: int = 65536) -> bytes | None:
        """What has arrived, up to `limit` bytes, without waiting; None if nothing has, b"" at the end.

        Raises:
            ChannelError: the connection broke.
        """
        try:
            data = self._sock.recv(limit, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as e:
            raise self.receiving_failed(e.errno or 0) from e
        if data:
            self._idle.touch()
            self.bytes_received += len(data)
        return data

    def wait_readable(self, timeout_s: float) -> bool:
        """Whether a read would not block, after at most `timeout_s`."""
        poll = select.poll()  # which takes no descriptor
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def shutdown_read(self) -> None:
        """Let reads end as if the peer had closed; it notices nothing. From any thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def shutdown_write(self) -> None:
        """Let the peer see the end of what we send; it can go on sending. From any thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def end_marked(self) -> None:
        """Everything was sent, and says itself that it is all: as `shutdown_write`, unless that were an error there."""
        self.shutdown_write()

    def end_answered(self) -> None:
        """Both ends have said their last word: let the peer see that no more comes."""
        self.shutdown_write()

    def finish(self) -> None:
        """Everything was sent: say so, if the connection has a word for it, then as `shutdown_write`.

        On main never: a QEMU does not read main's last word and would answer it with a reset.
        """
        self.shutdown_write()

    @property
    def may_be_cut(self) -> bool:
        """Whether it ended without the word that its kind has for it: somebody on the way may have cut it.

        A plain connection has none, so this is always false.
        """
        return False

    def silence_hint(self) -> str:
        """What it may mean that the peer closed and never said a word; empty if it did say something."""
        if self.bytes_received:
            return ""
        return f"if {self.peer} expects TLS (its tls-creds), tls-creds is missing here"

    def shutdown(self) -> None:
        """End both directions; calls blocked on this connection return at once. From any thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def has_hung_up(self) -> bool:
        """Whether the peer will send no more, though what it sent may not be read yet. From any thread."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def was_reset(self) -> bool:
        """Whether the peer closed it with bytes of ours unread, or broke it off. From any thread."""
        # TCP: a RST came. A unix socket has the same error if its peer closed with something unread (unix(7)).
        self._is_reset = self._is_reset or bool(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return self._is_reset

    def close(self) -> None:
        """Release the socket; call when no thread uses it any more."""
        self._sock.close()

    def sending_failed(self, number: int) -> MultifdError:
        """The error of a call that sends and failed with errno `number`."""
        if number == errno.EFAULT:
            return RamError(
                "what is to be sent cannot be read: its file was cut short, its disk failed, or the memory was "
                "protected"
            )
        return self._broken("sending", number)

    def receiving_failed(self, number: int) -> MultifdError:
        """The error of a call that receives and failed with errno `number`."""
        if number == errno.EFAULT:
            return RamError(
                "what arrives cannot be written where it belongs: the memory was protected, or its file was cut short"
            )
        return self._broken("receiving", number)

    def closed_after(self, done: int, wanted: int) -> ChannelError:
        """The error of a peer that closed in the middle of something."""
        if self._idle.abort.is_set():
            return Aborted("the migration was aborted")
        if not done:
            return ChannelError(f"{self.peer} closed the connection in the middle of a packet")
        return ChannelError(f"{self.peer} closed the connection after {done} of {wanted} bytes")

    def _broken(self, doing: str, number: int) -> ChannelError:
        if self._idle.abort.is_set():
            return Aborted("the migration was aborted")
        self._is_reset = True
        reason = "closed by the peer" if number in (errno.EPIPE, errno.ECONNRESET) else os.strerror(number)
        return ChannelError(f"{self.peer}: connection broke while {doing}: {reason}")
