"""Sources and clients of another kind at a receiver: each by its name, long before any timeout."""

from __future__ import annotations

import socket
import struct
import time

import peer
import pytest

from multifd.errors import ChannelError, PeerMismatch, StreamError
from multifd.transport.accept import Acceptor
from multifd.transport.address import Uri
from multifd.transport.listen import Listener

DEADLINE_S = 60
RAM = 16 * peer.PAGE
PART = struct.pack(">BI", 2, peer.RAM_ID)
PAGE = PART + struct.pack(">Q", 0x08) + b"\x03ram" + bytes(peer.PAGE)
ZERO = PART + struct.pack(">Q", 0x02) + b"\x03ram\0"
EOS = struct.pack(">QBI", 0x10, 0x7E, peer.RAM_ID)


def ordinary(*, return_path: bool) -> bytes:
    """A stream without multifd up to the end of SETUP, as every release sends it."""
    pieces = peer.main_stream([(b"ram", RAM)], return_path=return_path, per_section=True)
    return pieces["header"] + pieces["commands"] + pieces["setup"]


@pytest.mark.parametrize("return_path", [False, True])
@pytest.mark.parametrize("cut", ["nowhere", "behind SETUP", "before SETUP's end", "in the page's word"])
def test_a_source_without_multifd_is_named_whatever_comes_in_which_read(receiver, return_path, cut):
    """It is not told by a timeout, which is a minute here, and longer than a test may last."""
    start = ordinary(return_path=return_path)
    stream = start + PAGE
    at = {"nowhere": len(stream), "behind SETUP": len(start), "before SETUP's end": len(start) - 3}
    cut_at = at.get(cut, len(start) + 7)
    end = receiver(bytearray(RAM), timeout=600)
    with peer.Peer(end.uri) as sender:
        main = sender.connect(stream[:cut_at])
        if return_path and cut_at < len(stream):
            assert main.recv(8) == struct.pack(">HHI", 2, 4, 1)  # PONG: the first piece was read
        main.sendall(stream[cut_at:])
        with pytest.raises(StreamError, match="does not use multifd"):
            end.join()


@pytest.mark.parametrize("return_path", [False, True])
def test_a_source_without_multifd_whose_memory_is_all_zero_is_named(receiver, return_path, monkeypatch):
    monkeypatch.setattr("multifd.engine.recv_main.CHANNELS_S", 0.1)
    end = receiver(bytearray(RAM), timeout=600)
    rest = peer.main_stream([(b"ram", RAM)], per_section=True)
    with peer.Peer(end.uri) as sender:
        main = sender.connect(ordinary(return_path=return_path) + ZERO + EOS + rest["end"] + rest["eof"])
        if not return_path:
            main.shutdown(socket.SHUT_WR)
        with pytest.raises((PeerMismatch, ChannelError), match="does not use multifd"):
            end.join()


def test_a_client_that_speaks_tls_is_named():
    """QEMU with tls-creds, for one: it is closed as soon as it has said four bytes."""
    listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
    acceptor = Acceptor(listener, patience_s=600)
    try:
        with socket.create_connection((listener.uri.host, listener.uri.port), DEADLINE_S) as sock:
            sock.sendall(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")
            deadline = time.monotonic() + DEADLINE_S
            while not acceptor.rejected and time.monotonic() < deadline:
                assert not list(acceptor.wait(0.1))
        assert "a TLS client" in acceptor.last_stranger
    finally:
        acceptor.close()
        listener.close()
