"""A relay between two ends: every method in and out, what passes unchanged, and what ends both sides."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import peer
import pytest
from ends import DEADLINE_S, RelayThread

import multifd
from multifd.api import relay as relay_call
from multifd.engine import relay_muster
from multifd.errors import (
    ChannelError,
    CodecError,
    MethodNotFound,
    OutcomeUnknown,
    PeerFailed,
    PeerMismatch,
    RemoteWireError,
    UsageError,
)
from multifd.stats import RelayResult

BLOCK = 64 * peer.PAGE


@pytest.fixture
def relay() -> Iterator[Callable[..., RelayThread]]:
    started: list[RelayThread] = []

    def start(to: str, listen: str = "tcp:127.0.0.1:0", **options: Any) -> RelayThread:
        thread = RelayThread(to, listen, **options)
        started.append(thread)
        return thread

    yield start
    for thread in started:
        assert thread.is_over(), "the relay hangs"


@pytest.fixture
def destination() -> Iterator[peer.Destination]:
    end = peer.Destination()
    yield end
    end.close()


def read(sock: socket.socket, nbytes: int) -> bytes:
    data = bytearray()
    while len(data) < nbytes:
        piece = sock.recv(nbytes - len(data))
        assert piece, (len(data), nbytes)
        data += piece
    return bytes(data)


def start_of_main() -> bytes:
    """As much as tells a source from a stranger."""
    stream = peer.main_stream([(b"ram", BLOCK)])
    return stream["header"] + stream["setup"]


class Ends:
    """A scripted source and a scripted destination with a relay of one channel between them."""

    def __init__(
        self, relay: Callable[..., RelayThread], destination: peer.Destination, source: peer.Peer, **options: Any
    ):
        stream = peer.main_stream([(b"ram", BLOCK)], return_path=options.pop("return_path", False))
        self.relay = relay(destination.uri, **options)
        source.uri = self.relay.uri
        self.stream = stream
        self.head = stream["header"] + stream["commands"] + stream["setup"]
        self.main_in = source.connect(self.head)
        self.main_out = destination.accept()
        self.channel_in = source.connect(peer.init(0) + peer.sync())  # as every real one
        self.channel_out = destination.accept()
        assert read(self.main_out, len(self.head)) == self.head
        self.init = read(self.channel_out, 64)
        assert read(self.channel_out, 1344) == peer.sync()

    def finish(self) -> RelayResult:
        """The end as two QEMUs without a return path have it."""
        end = self.stream["end"] + self.stream["eof"]
        self.main_in.sendall(end)
        assert read(self.main_out, len(end)) == end
        for sock in (self.channel_in, self.main_in):
            sock.close()
        assert self.channel_out.recv(1) == b""
        assert self.main_out.recv(1) == b""
        self.main_out.close()
        return self.relay.join()


@pytest.fixture
def ends(relay, destination) -> Iterator[Callable[..., Ends]]:
    with peer.Peer("") as source:
        yield lambda **options: Ends(relay, destination, source, **options)


METHODS = ["none", "zlib", "zstd", "qpl", "lz4"]


class TestBetweenOurEnds:
    @pytest.mark.parametrize("out", METHODS)
    @pytest.mark.parametrize("in_", METHODS)
    def test_every_method_in_and_out(self, relay, receiver, image, in_, out):
        memory = bytearray(len(image))
        end = receiver(memory, methods=[out])
        between = relay(end.uri, in_method=in_, out_method=out)
        sent = multifd.send(image, between.uri, in_, channels=3)
        received, passed = end.join(), between.join()
        assert memory == image
        assert (sent.status, passed.status, received.method) == ("completed", "completed", out)
        assert (passed.in_method, passed.out_method, passed.channels) == (in_, out, 3)
        assert passed.bytes_in == sent.transferred_bytes
        assert passed.bytes_out == received.transferred_bytes
        assert (passed.normal_pages, passed.zero_pages) == (sent.normal_pages, sent.zero_pages)

    @pytest.mark.parametrize("method", METHODS)
    def test_same_passes_on_what_the_source_makes(self, relay, receiver, image, method):
        memory = bytearray(len(image))
        end = receiver(memory, methods=[method])
        between = relay(end.uri, in_method=method, out_method="same")
        sent = multifd.send(image, between.uri, method, channels=3)
        received, passed = end.join(), between.join()
        assert memory == image
        assert (received.method, passed.in_method, passed.out_method) == (method, method, "same")
        # Main has the answers alone besides: not a byte more or less went out.
        assert passed.bytes_in == passed.bytes_out == sent.transferred_bytes
        assert (passed.normal_pages, passed.zero_pages) == (sent.normal_pages, sent.zero_pages)

    def test_same_and_a_method_that_may_not_be(self, relay, receiver, image):
        end = receiver(bytearray(len(image)), timeout=30)
        between = relay(end.uri, in_method="zlib", out_method="same", timeout=1)
        with pytest.raises((ChannelError, OutcomeUnknown, PeerFailed)):
            multifd.send(image, between.uri, "zstd")
        with pytest.raises(PeerMismatch, match="'zstd', here only zlib may be"):
            between.join()
        with pytest.raises(ChannelError):
            end.join()

    @pytest.mark.parametrize("between", ["lz4", "qpl", "zstd:level=5"])
    @pytest.mark.parametrize("dialect", ["9.0", "7.2"])
    def test_a_pair(self, relay, receiver, image, between, dialect):
        """Neither end knows the method between the relays."""
        memory = bytearray(len(image))
        end = receiver(memory, methods=["none"])
        second = relay(end.uri, in_method=between)
        first = relay(second.uri, out_method=between)
        multifd.send(image, first.uri, "none", channels=2, dialect=dialect)
        end.join()
        assert memory == image
        assert first.join().bytes_out < first.join().bytes_in
        assert second.join().in_method == between.partition(":")[0]

    def test_unix_sockets_and_a_plain_buffer(self, relay, receiver, image, tmp_path):
        memory = bytearray(len(image))
        end = receiver(memory, uri=f"unix:{tmp_path}/to")
        between = relay(end.uri, f"unix:{tmp_path}/from", out_method="zstd")
        multifd.send(image, between.uri, "zlib")
        end.join()
        between.join()
        assert memory == image

    def test_the_methods_counters(self, relay, receiver, image):
        end = receiver(bytearray(len(image)))
        between = relay(end.uri, out_method="qpl")
        multifd.send(image, between.uri, "qpl")
        end.join()
        result = between.join()
        assert sum(result.in_stats.values()) > 0
        assert sum(result.out_stats.values()) > 0

    def test_large_pages(self, relay, receiver, image):
        """The page size is in main's configuration; without it packets cannot be told apart."""
        memory = bytearray(len(image))
        end = receiver(memory)
        between = relay(end.uri, out_method="zlib")
        multifd.send(multifd.MemoryImage(image, 16384), between.uri, "none")
        end.join()
        between.join()
        assert memory == image

    def test_255_channels(self, relay, receiver, image):
        memory = bytearray(len(image))
        end = receiver(memory)
        between = relay(end.uri)
        multifd.send(image, between.uri, channels=255)
        end.join()
        assert between.join().channels == 255
        assert memory == image


class TestWhatPasses:
    """Packets of real senders, seen byte for byte at the other side."""

    def test_the_announcement(self, ends):
        between = ends(out_method="zstd")
        assert between.init == peer.init(0, version=1, name=b"zstd")
        between.finish()

    def test_the_announcement_with_channels(self, ends):
        between = ends(out_method="lz4", channels=1)
        assert between.init == peer.init(0, channels=1, version=2, name=b"lz4")
        between.finish()

    @pytest.mark.parametrize(
        "data",
        [
            peer.sync(),
            peer.packet([], flags=1, alloc=128, size=113398),  # 7.2: a SYNC with a stale size
            peer.packet([], flags=0, size=4096, block=b"pc.ram"),  # 7.2: an empty packet after a SYNC on data
        ],
    )
    def test_packets_without_pages_are_untouched(self, ends, data):
        between = ends(out_method="zlib")
        between.channel_in.sendall(data + peer.sync())
        assert read(between.channel_out, len(data)) == data
        assert read(between.channel_out, 1344) == peer.sync()
        assert between.finish().packets == 3

    def test_zero_pages_get_the_code_of_the_other_method(self, ends):
        """A destination of 9.0 or later looks at it even if there is no payload."""
        between = ends(out_method="zstd")
        between.channel_in.sendall(peer.packet([], zero=[0, 4096], flags=2))
        assert read(between.channel_out, 1344) == peer.packet([], zero=[0, 4096], flags=4)
        result = between.finish()
        assert (result.normal_pages, result.zero_pages, result.in_method) == (0, 2, "")

    def test_a_sync_on_a_data_packet(self, ends):
        """Up to 8.2."""
        between = ends(out_method="zlib")
        payload = bytes(range(256)) * 32
        between.channel_in.sendall(peer.packet([8192, 0], payload, flags=1, zero=[4096], number=77))
        header = read(between.channel_out, 1344)
        size = int.from_bytes(header[20:24], "big")
        assert header == peer.packet([8192, 0], flags=1 | 2, zero=[4096], size=size, number=77)
        assert zlib.decompressobj().decompress(read(between.channel_out, size)) == payload
        between.finish()

    @pytest.mark.parametrize("size", [4096, 0])
    def test_none_to_none(self, ends, size):
        """A size of 0 is what a sender of `none` may say; it goes on as it is meant."""
        between = ends()
        payload = bytes(range(256)) * 16
        between.channel_in.sendall(peer.packet([0], payload, size=size))
        assert read(between.channel_out, 1344 + 4096) == peer.packet([0], payload)
        between.finish()

    @pytest.mark.parametrize("nbytes", [0, 10, 3 << 20])
    def test_device_state_packets(self, ends, nbytes):
        """QEMU 10.0 with a vfio device: 276 bytes of header, and any number of bytes."""
        between = ends(out_method="zstd")
        header = struct.pack(">III256sII", 0x11223344, 1, 0x40, b"0000:00:02.0/vfio", 0, nbytes)
        data = header + bytes(nbytes) + peer.sync()
        sender = threading.Thread(target=between.channel_in.sendall, args=(data,))
        sender.start()
        assert read(between.channel_out, len(data)) == data
        sender.join()
        between.finish()

    def test_main_is_not_held_back_in_either_direction(self, ends):
        """Even bytes that multifd does not understand, such as a section of vfio, go on at once."""
        between = ends(return_path=True)
        section = b"\x01" + struct.pack(">I", 9) + b"\x11" + b"0000:00:02.0/vfio" + struct.pack(">II", 0, 1)
        for piece in (section[:3], section[3:], b"x" * 100000):
            between.main_in.sendall(piece)
            assert read(between.main_out, len(piece)) == piece
        switchover_ack = struct.pack(">HH", 7, 0)
        shut = struct.pack(">HHI", 1, 4, 0)
        for piece in (struct.pack(">HHI", 2, 4, 1), switchover_ack[:1], switchover_ack[1:], shut):
            between.main_out.sendall(piece)
            assert read(between.main_in, len(piece)) == piece
        between.main_out.close()
        assert between.main_in.recv(1) == b""
        between.main_in.close()
        between.channel_in.close()
        assert between.relay.join().status == "completed"

    def test_half_closes(self, ends):
        """The destination's end is the end at the source, and it may still write."""
        between = ends()
        end = between.stream["end"] + between.stream["eof"]
        between.main_in.sendall(end)
        read(between.main_out, len(end))
        between.main_out.shutdown(socket.SHUT_WR)
        assert between.main_in.recv(1) == b""
        between.main_in.sendall(b"\x06" + struct.pack(">I", 2) + b"{}")
        assert read(between.main_out, 7)
        between.main_in.close()
        between.channel_in.close()
        assert between.main_out.recv(1) == b""
        assert between.relay.join().status == "completed"

    def test_a_sync_after_the_destinations_end(self, ends):
        """9.1 and 9.2 end with a SYNC that has no partner; the destination may be gone by then."""
        between = ends(return_path=True)
        end = between.stream["end"] + between.stream["eof"]
        between.main_in.sendall(end)
        read(between.main_out, len(end))
        between.channel_out.close()
        for _ in range(3):
            between.channel_in.sendall(peer.sync())
        between.main_out.sendall(struct.pack(">HHI", 1, 4, 0))
        assert read(between.main_in, 8) == struct.pack(">HHI", 1, 4, 0)
        between.main_in.close()
        between.channel_in.close()
        between.main_out.close()
        assert between.relay.join().status == "completed"


class TestOrder:
    def test_main_goes_first_though_it_comes_last(self, relay, destination):
        """A destination up to 7.2 takes the first connection for main."""
        between = relay(destination.uri)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(between.uri) as source:
            source.connect(peer.init(1) + peer.sync())
            source.connect(peer.init(0) + peer.sync())
            main = source.connect(b"QE")
            whole = stream["header"] + stream["setup"] + stream["end"] + stream["eof"]
            main.sendall(whole[2:])
            assert read(destination.accept(), len(whole)) == whole
            ids = {read(destination.accept(), 64 + 1344)[24] for _ in range(2)}
            assert ids == {0, 1}
            source.close()
            for sock in destination.sockets:
                assert sock.recv(1) == b""
            destination.close()
            assert between.join().channels == 2

    def test_channels_of_a_source_that_gave_up_are_forgotten(self, relay, receiver, image):
        """A late channel of a migration that failed must not spoil the next one."""
        memory = bytearray(len(image))
        end = receiver(memory)
        between = relay(end.uri)
        with peer.Peer(between.uri) as source:
            late = source.connect(peer.init(0) + peer.sync())
            late.shutdown(socket.SHUT_WR)
            assert peer.is_closed(late)
        multifd.send(image, between.uri)
        end.join()
        assert between.join().status == "completed"
        assert memory == image

    @pytest.mark.parametrize("said", [0, 2, 4, 99], ids=["nothing", "half a word", "its word", "its header"])
    def test_a_channel_may_be_complete_before_its_main_is_known(self, relay, receiver, said):
        """What has little to say has said it, and ended, while main's list of blocks is still to come, or all of it."""
        stream = peer.main_stream([(b"ram", BLOCK)])
        first, rest = stream["header"][:said], stream["header"][said:]
        into = bytearray(BLOCK)
        end = receiver(into, channels=1)
        between = relay(end.uri, channels=1)
        with peer.Peer(between.uri) as source:
            main = source.connect(first)
            channel = source.connect(peer.init(0) + peer.sync() + peer.packet([0], b"x" * peer.PAGE) + peer.sync())
            channel.shutdown(socket.SHUT_WR)
            for _ in range(3):  # each is closed a turn later
                assert peer.is_closed(source.connect(b"GET / HTTP/1.0\r\n\r\n"))
            main.sendall(rest + stream["setup"] + stream["end"] + stream["eof"])
            main.shutdown(socket.SHUT_WR)
            end.join()
            assert between.join().status == "completed"
        assert into == b"x" * peer.PAGE + bytes(BLOCK - peer.PAGE)

    def test_channels_wait_for_a_main_that_has_said_nothing_yet(self, relay, receiver, monkeypatch):
        """Longer than for one that has not come: QEMU 10.0 begins main once all its channels are connected."""
        monkeypatch.setattr(relay_muster, "_ALONE_S", 0.0)
        stream = peer.main_stream([(b"ram", BLOCK)])
        end = receiver(bytearray(BLOCK), channels=1)
        between = relay(end.uri, channels=1)
        with peer.Peer(between.uri) as source:
            main = source.connect()
            channel = source.connect(peer.init(0) + peer.sync())
            for _ in range(3):  # each is closed a turn later
                assert peer.is_closed(source.connect(b"GET / HTTP/1.0\r\n\r\n"))
            main.sendall(stream["header"] + stream["setup"] + stream["end"] + stream["eof"])
            channel.sendall(peer.sync())
            for sock in (channel, main):
                sock.shutdown(socket.SHUT_WR)
            end.join()
            assert between.join().status == "completed"

    def test_a_source_that_died_is_forgotten_though_the_next_is_there(self, relay, receiver):
        """Its channel has ended before the other source came, so it is not taken for that one's."""
        stream = peer.main_stream([(b"ram", BLOCK)])
        into = bytearray(BLOCK)
        end = receiver(into, channels=1)
        between = relay(end.uri, channels=1, timeout=30)
        with peer.Peer(between.uri) as dead, peer.Peer(between.uri) as source:
            dead.connect(stream["header"])
            channel = dead.connect(peer.init(0) + peer.sync())
            channel.shutdown(socket.SHUT_WR)
            main = source.connect(stream["header"])
            dead.sockets[0].close()
            assert peer.is_closed(channel)
            source.connect(peer.init(0) + peer.sync() + peer.packet([0], b"x" * peer.PAGE) + peer.sync())
            main.sendall(stream["setup"] + stream["end"] + stream["eof"])
            source.sockets[1].shutdown(socket.SHUT_WR)
            main.shutdown(socket.SHUT_WR)
            end.join()
            assert between.join().status == "completed"
        assert into == b"x" * peer.PAGE + bytes(BLOCK - peer.PAGE)

    def test_strangers_are_closed_and_counted(self, relay, receiver, image):
        """One of them is silent all the time, and in nobody's way."""
        end = receiver(bytearray(len(image)))
        between = relay(end.uri)
        with peer.Peer(between.uri) as stranger:
            stranger.connect()
            assert peer.is_closed(stranger.connect(b"GET / HTTP/1.0\r\n\r\n"))
            multifd.send(image, between.uri)
            end.join()
            assert between.join().rejected == 1

    def test_a_silent_stranger_is_not_kept(self, relay, receiver, image):
        end = receiver(bytearray(len(image)))
        between = relay(end.uri, timeout=0.5)
        with peer.Peer(between.uri) as stranger:
            assert peer.is_closed(stranger.connect())
        multifd.send(image, between.uri)
        end.join()
        assert between.join().rejected == 1


class TestFaults:
    """One clear error within the timeout, and both sides closed."""

    def check(self, between: Ends, kind: type[BaseException], words: str) -> None:
        with pytest.raises(kind, match=words) as caught:
            between.relay.join()
        assert caught.value.result.status == "failed"
        for sock in (between.main_in, between.channel_in, between.main_out, between.channel_out):
            assert peer.is_closed(sock)

    @pytest.mark.parametrize("flags", [2, 4])
    def test_a_payload_that_does_not_decode(self, ends, flags):
        between = ends()
        between.channel_in.sendall(peer.sync() + peer.packet([0], b"\x55" * 500, flags=flags))
        self.check(between, CodecError, "channel 0, packet 2: (zlib|zstd) payload")

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"\x99" + peer.packet([0])[1:], "packet 1, byte 0: magic 0x99223344"),
            (peer.packet([0], bytes(4096), flags=0x80), "unknown flags in 0x80"),
            (peer.packet([0], bytes(4096), alloc=129), "pages_alloc 129, at most 128"),
            (peer.packet([0] * 3, bytes(4096), alloc=2), "normal_pages 3, at most 2"),
            (peer.packet([0], bytes(4096), size=4095), "next_packet_size 4095, expected 4096"),
            (peer.packet([0], b"x", flags=2, size=1 << 24), "next_packet_size 16777216, at most 1048576"),
            (peer.packet([0], b"x", flags=0x3E), "method code 0x3e"),
            (peer.packet([0], bytes(4096)) + peer.packet([0], b"x", flags=2), "packet 2.*code 0x2, expected 0x0"),
        ],
    )
    def test_damaged_packets(self, ends, data, words):
        between = ends()
        between.channel_in.sendall(data)
        self.check(between, (RemoteWireError, PeerMismatch), words)

    def test_another_method_than_told(self, ends):
        between = ends(in_method="zlib")
        between.channel_in.sendall(peer.packet([0], bytes(4096)))
        self.check(between, PeerMismatch, "that of none; here only zlib may be")

    def test_another_method_than_announced(self, relay, receiver, image):
        end = receiver(bytearray(len(image)), timeout=1)
        between = relay(end.uri, in_method="zstd")
        with pytest.raises((ChannelError, PeerFailed)):
            multifd.send(image, between.uri, "zlib")
        with pytest.raises(PeerMismatch, match="'zlib', here only zstd may be"):
            between.join()
        with pytest.raises(ChannelError):
            end.join()

    def test_a_channel_more_than_told(self, relay, destination):
        between = relay(destination.uri, channels=2)
        with peer.Peer(between.uri) as source:
            main = source.connect(start_of_main())
            destination.accept()
            assert peer.is_closed(source.connect(peer.init(2) + peer.sync()))
            main.close()
            with pytest.raises(PeerMismatch, match="channel 2 connected, but 2 channels are expected: expect 3"):
                between.join()

    @pytest.mark.parametrize(
        "first", [struct.pack(">II", 0x11223344, 7) + bytes(56), b"QEVM" + bytes(400), b"QEVM\0\0\0\3" + bytes(400)]
    )
    def test_a_stranger_ends_no_migration(self, relay, receiver, image, first):
        memory = bytearray(len(image))
        end = receiver(memory)
        between = relay(end.uri)
        with peer.Peer(between.uri) as stranger:
            assert peer.is_closed(stranger.connect(first))
            multifd.send(image, between.uri)
            end.join()
            assert between.join().rejected == 1
        assert memory == image

    def test_the_source_dies_in_a_packet(self, ends):
        between = ends()
        between.channel_in.sendall(peer.packet([0], bytes(4096))[:3000])
        between.channel_in.close()
        between.main_in.close()
        with pytest.raises(ChannelError, match=r"the source's (channel 0|main) .* closed the connection"):
            between.relay.join()
        assert peer.is_closed(between.main_out)
        assert peer.is_closed(between.channel_out)

    def test_the_source_dies_between_packets(self, ends):
        between = ends()
        between.channel_in.close()
        between.main_in.close()
        with pytest.raises(ChannelError, match=r"the source's main .* before all of RAM"):
            between.relay.join()
        assert peer.is_closed(between.main_out)

    @pytest.mark.parametrize("which", ["main_out", "channel_out"])
    def test_the_destination_dies(self, ends, which):
        """It is noticed though nothing is being sent."""
        between = ends()
        getattr(between, which).close()
        with pytest.raises(ChannelError, match=r"the destination's .* closed the connection before it had everything"):
            between.relay.join()
        assert peer.is_closed(between.main_in)
        assert peer.is_closed(between.channel_in)

    def test_the_destination_dies_while_pages_flow(self, ends):
        between = ends()
        between.channel_out.close()
        with pytest.raises(OSError):  # noqa: PT012 - which of them fails depends on buffers
            while True:
                between.channel_in.sendall(peer.packet([0], bytes(4096)))
        with pytest.raises(ChannelError, match=r"the destination's channel 0"):
            between.relay.join()

    def test_the_destination_says_that_it_failed(self, ends):
        between = ends(return_path=True)
        between.main_out.sendall(struct.pack(">HHI", 1, 4, 1))
        assert read(between.main_in, 8) == struct.pack(">HHI", 1, 4, 1)
        between.main_out.close()
        self.check_sides(between, PeerFailed, "the destination reports that it failed")

    def check_sides(self, between: Ends, kind: type[BaseException], words: str) -> None:
        with pytest.raises(kind, match=words):
            between.relay.join()
        assert peer.is_closed(between.main_in)
        assert peer.is_closed(between.channel_in)

    def test_the_destination_ends_without_a_confirmation(self, ends):
        between = ends(return_path=True)
        end = between.stream["end"] + between.stream["eof"]
        between.main_in.sendall(end)
        read(between.main_out, len(end))
        between.main_out.close()
        self.check_sides(between, OutcomeUnknown, "without a confirmation")

    def test_the_first_of_two_last_words_counts(self, ends):
        """The source has heard it, too."""
        between = ends(return_path=True)
        end = between.stream["end"] + between.stream["eof"]
        between.main_in.sendall(end)
        read(between.main_out, len(end))
        words = struct.pack(">HHIHHI", 1, 4, 0, 1, 4, 1)
        between.main_out.sendall(words)
        assert read(between.main_in, len(words)) == words
        for sock in (between.channel_in, between.main_in, between.main_out):
            sock.close()
        assert between.relay.join().status == "completed"

    def test_a_confirmation_that_the_source_does_not_hear(self, ends):
        between = ends(return_path=True)
        end = between.stream["end"] + between.stream["eof"]
        between.main_in.sendall(end)
        read(between.main_out, len(end))
        between.main_in.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        between.main_in.close()
        between.main_out.sendall(struct.pack(">HHI", 1, 4, 0))
        with pytest.raises(OutcomeUnknown) as caught:
            between.relay.join()
        assert "look at the destination" in str(caught.value)

    @pytest.mark.parametrize(
        ("said", "confirmed"),
        [
            (b"\0\7\0\0", True),  # SWITCHOVER_ACK, of a QEMU with VFIO devices
            (b"\0\5\0\7\6pc.ram", True),  # RECV_BITMAP
            (b"\0\7\0\0", False),
            (b"hello, this is no return path\n", True),
            (b"hello, this is no return path\n", False),
        ],
    )
    def test_a_confirmation_among_other_words(self, ends, said, confirmed):
        """Whatever else a destination says is passed on; only its SHUT says that it has the memory."""
        between = ends(return_path=True)
        end = between.stream["end"] + between.stream["eof"]
        between.main_in.sendall(end)
        read(between.main_out, len(end))
        words = said + (struct.pack(">HHI", 1, 4, 0) if confirmed else b"")
        between.main_out.sendall(words)
        assert read(between.main_in, len(words)) == words
        for sock in (between.channel_in, between.main_in, between.main_out):
            sock.close()
        if confirmed and not said.startswith(b"hello"):
            assert between.relay.join().status == "completed"
        else:
            with pytest.raises(OutcomeUnknown, match=r"without a confirmation|connection broke"):
                between.relay.join()

    @pytest.mark.parametrize("pieces", [1, 2])
    def test_what_is_not_understood_hides_nothing_of_what_came_before_it(self, relay, destination, pieces):
        """In whatever pieces main comes: with a return path the destination has to confirm."""
        stream = peer.main_stream([(b"ram", BLOCK)], return_path=True)
        head = stream["header"] + stream["commands"] + stream["setup"]
        unknown = b"\x04\0\0\0\x09\x06device" + bytes(8)
        between = relay(destination.uri)
        with peer.Peer(between.uri) as source:
            main_in = source.connect(head + unknown if pieces == 1 else head)
            main_out = destination.accept()
            assert read(main_out, len(head)) == head
            if pieces == 2:
                main_in.sendall(unknown)
            assert read(main_out, len(unknown)) == unknown
            main_out.close()
            with pytest.raises(OutcomeUnknown, match="without a confirmation"):
                between.join()

    def test_same_passes_a_method_that_nobody_here_knows(self, ends):
        between = ends(out_method="same")
        unknown = peer.packet([0, 4096], b"nobody knows", flags=0x0A) + peer.sync()
        between.channel_in.sendall(unknown)
        assert read(between.channel_out, len(unknown)) == unknown
        assert between.init == peer.init(0)
        passed = between.finish()
        assert (passed.in_method, passed.out_method, passed.normal_pages) == ("", "same", 2)

    @pytest.mark.parametrize(("out", "is_told"), [("zstd", True), ("none", False), ("same", False)])
    def test_a_destination_that_may_speak_another_method(self, ends, out, is_told):
        """As a QEMU's: its channels end once packets have come, and main stays open."""
        between = ends(out_method=out, timeout=5)
        between.channel_in.sendall(peer.packet([0], bytes(4096)))
        assert between.channel_out.recv(1)
        between.channel_out.close()
        with pytest.raises(ChannelError) as caught:
            between.relay.join()
        notes = " ".join(getattr(caught.value, "__notes__", ()))
        assert ("libvirt sets it alike at both ends" in notes) is is_told

    def test_the_source_dies_while_the_destination_is_waited_for(self, relay, tmp_path):
        """It is told at once; the next source need not wait until the destination is given up."""
        between = relay(f"unix:{tmp_path}/nobody", connect_timeout=DEADLINE_S, timeout=DEADLINE_S)
        with peer.Peer(between.uri) as source:
            source.connect(start_of_main())
            source.connect(peer.init(0) + peer.sync())
        with pytest.raises(ChannelError, match=r"source's main .* closed the connection: byte .*before all of RAM"):
            between.join()

    def test_the_source_dies_with_much_of_main_unread(self, relay, tmp_path):
        """Its end comes behind what it has sent, however much that is: zero pages of a machine type before 9.0."""
        between = relay(f"unix:{tmp_path}/nobody", connect_timeout=DEADLINE_S, timeout=DEADLINE_S)
        page = struct.pack(">Q", 0x22) + b"\0"
        zeros = b"\x02" + struct.pack(">I", peer.RAM_ID) + struct.pack(">Q", 2) + b"\x03ram\0" + page * (1 << 18)
        with peer.Peer(between.uri) as source:
            source.connect(start_of_main()).sendall(zeros)
        with pytest.raises(ChannelError, match=r"source's main .* closed the connection: byte .*before all of RAM"):
            between.join()
        assert between.error.result.status == "failed"

    def test_a_source_that_no_longer_waits_for_the_confirmation(self, relay, tmp_path):
        """It has sent everything, and is dead or has given up: a destination that came now would be a second copy."""
        stream = peer.main_stream([(b"ram", BLOCK)], return_path=True)
        between = relay(f"unix:{tmp_path}/nobody", connect_timeout=DEADLINE_S, timeout=DEADLINE_S)
        with peer.Peer(between.uri) as source:
            source.connect(b"".join(stream.values()))
            source.connect(peer.init(0) + peer.sync() + peer.sync())
        with pytest.raises(ChannelError, match=r"source's main .* closed the connection before the destination was th"):
            between.join()
        assert between.error.result.status == "failed"
        assert between.error.__notes__ == ["the good copy is the source's"]

    def test_a_source_that_sent_everything_may_go_before_the_destination_comes(self, relay, receiver, tmp_path):
        """Without a return path nobody waits for an answer."""
        stream = peer.main_stream([(b"ram", BLOCK)])
        between = relay(f"unix:{tmp_path}/late", connect_timeout=DEADLINE_S, timeout=DEADLINE_S, channels=1)
        with peer.Peer(between.uri) as source:
            source.connect(stream["header"] + stream["setup"] + stream["end"] + stream["eof"])
            source.connect(peer.init(0) + peer.sync() + peer.packet([0], b"x" * peer.PAGE) + peer.sync())
        into = bytearray(BLOCK)
        end = receiver(into, uri=f"unix:{tmp_path}/late", channels=1)
        end.join()
        assert between.join().status == "completed"
        assert into == b"x" * peer.PAGE + bytes(BLOCK - peer.PAGE)

    def test_nobody_listens(self, relay):
        with socket.create_server(("127.0.0.1", 0)) as free:
            uri = f"tcp:127.0.0.1:{free.getsockname()[1]}"
        between = relay(uri, connect_timeout=0.2)
        with peer.Peer(between.uri) as source:
            main = source.connect(start_of_main())
            with pytest.raises(ChannelError, match="cannot connect to"):
                between.join()
            assert peer.is_closed(main)

    @pytest.mark.parametrize("is_main", [False, True])
    def test_a_channel_of_a_stranger_does_not_decide_what_a_migrations_are(self, relay, receiver, image, is_main):
        """It came first, from elsewhere, and says nothing that could not be; so does a start of main."""
        memory = bytearray(len(image))
        end = receiver(memory)
        between = relay(end.uri)
        with contextlib.ExitStack() as stack:
            for i in range(20):
                stranger = stack.enter_context(socket.socket())
                stranger.bind(("127.0.0.66", 0))
                stranger.settimeout(DEADLINE_S)
                stranger.connect(peer.address(between.uri))
                head = peer.main_stream([(b"ram", BLOCK)])["header"]
                stranger.sendall(head if is_main else peer.init(i, uuid=b"another guest   ") + peer.sync())
            assert multifd.send(image, between.uri, "zlib", channels=3).status == "completed"
        assert end.join().status == between.join().status == "completed"
        assert memory == image

    def test_channels_that_come_from_elsewhere_than_main(self, relay, destination, monkeypatch):
        """Behind an address translation with several addresses: they are waited for a while, then taken."""
        monkeypatch.setattr("multifd.engine.gathering._ELSEWHERE_S", 0.1)
        between = relay(destination.uri, out_method="same")
        with peer.Peer(between.uri) as source, socket.socket() as channel:
            source.connect(start_of_main())
            channel.bind(("127.0.0.66", 0))
            channel.connect(peer.address(between.uri))
            channel.sendall(peer.init(0) + peer.sync())
            destination.accept()
            assert read(destination.accept(), 64) == peer.init(0)
            source.close()
            channel.close()
            assert between.is_over()

    def test_the_rest_does_not_come(self, relay, destination):
        """A channel to which no main comes is closed, and the relay goes on waiting; main alone ends a migration."""
        between = relay(destination.uri, timeout=0.5)
        with peer.Peer(between.uri) as source:
            assert peer.is_closed(source.connect(peer.init(0) + peer.sync()))
            main = source.connect(start_of_main())
            with pytest.raises(ChannelError, match=r"no byte moved .*; main is connected, 0 channels are"):
                between.join()
            assert peer.is_closed(main)
            assert between.error.result.rejected == 1

    def test_a_half_closed_end_has_a_deadline(self, ends):
        between = ends(timeout=0.5)
        end = between.stream["end"] + between.stream["eof"]
        between.main_in.sendall(end)
        between.main_in.close()
        between.channel_in.close()
        self.check_sides_out(between)

    def check_sides_out(self, between: Ends) -> None:
        with pytest.raises(OutcomeUnknown, match="no byte moved"):
            between.relay.join()
        assert peer.is_closed(between.main_out)
        assert peer.is_closed(between.channel_out)

    def test_a_slow_destination_holds_the_source_back(self, ends):
        """What is under way is what the sockets hold, and one packet; not what the source would send."""
        between = ends()
        between.channel_in.settimeout(1)
        data = peer.packet([i * 4096 for i in range(64)], bytes(BLOCK))
        sent = 0
        with pytest.raises(TimeoutError):  # noqa: PT012 - how many fit is what is asked
            for _ in range(1 << 12):  # 1 GiB
                between.channel_in.sendall(data)
                sent += len(data)
        assert sent < 256 << 20
        between.main_out.close()
        with pytest.raises(ChannelError):
            between.relay.join()

    @pytest.mark.parametrize(
        ("options", "kind"),
        [
            ({"in_method": "nonesuch"}, MethodNotFound),
            ({"out_method": "nonesuch"}, MethodNotFound),
            ({"channels": 256}, UsageError),
            ({"timeout": 0}, UsageError),
        ],
    )
    def test_arguments(self, options, kind):
        with pytest.raises(kind):
            relay_call("tcp:127.0.0.1:0", "tcp:127.0.0.1:1", **options)

    def test_to_itself(self, tmp_path):
        with pytest.raises(UsageError, match=f"unix:{tmp_path}/a is where the relay listens"):
            relay_call(f"unix:{tmp_path}/a", f"unix:{tmp_path}/a")
        assert not (tmp_path / "a").exists()


class TestCommand:
    def test_one_after_another(self, cli, receiver, image, tmp_path):
        """The second fails, which does not end the relay; the third succeeds."""
        to = f"unix:{tmp_path}/to"
        command = cli("relay", "tcp:127.0.0.1:0", to, "--out", "zstd", "--json", "--connect-timeout", "0.3")
        uri = command.listening()
        documents = []
        for attempt in range(3):
            memory = bytearray(len(image))
            if attempt == 1:
                with pytest.raises((ChannelError, OutcomeUnknown)):
                    multifd.send(image, uri)
            else:
                end = receiver(memory, uri=to)
                multifd.send(image, uri)
                end.join()
                assert memory == image
            documents.append(json.loads(command.process.stdout.readline()))
        assert [d["status"] for d in documents] == ["completed", "failed", "completed"]
        assert documents[0]["in_method"] == "none"
        assert "cannot connect" in documents[1]["error"]
        command.signal(signal.SIGINT)
        out, err = command.wait(130)
        assert (json.loads(out)["status"], json.loads(out)["notes"]) == ("cancelled", [])  # of a migration that is none
        assert err.count("cannot connect") == 1

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_ended_when_the_destination_may_have_taken_over(self, cli, destination, number):
        """That is its last word, though it would have gone on: not that it was ended, and no word on a good copy."""
        command = cli("relay", "tcp:127.0.0.1:0", destination.uri, "--json")
        stream = peer.main_stream([(b"ram", BLOCK)], return_path=True)
        whole = b"".join(stream[part] for part in ("header", "commands", "setup", "end", "eof"))
        with peer.Peer(command.listening()) as source:
            source.connect(whole)
            main_out = destination.accept()
            assert read(main_out, len(whole)) == whole
            command.signal(number)
            document = command.json(7)
        assert document["status"] == "unknown"
        assert "look at the destination" in document["error"]
        assert "good copy" not in json.dumps(document)

    def test_the_next_source_may_come_early(self, cli, destination):
        """The first source is done, its destination not yet: the next one waits, it is not turned away."""
        command = cli("relay", "tcp:127.0.0.1:0", destination.uri, "--json")
        stream = peer.main_stream([(b"ram", BLOCK)])
        whole = stream["header"] + stream["setup"] + stream["end"] + stream["eof"]
        with peer.Peer(command.listening()) as source:
            source.connect(whole).close()
            first = destination.accept()
            assert read(first, len(whole)) == whole
            assert first.recv(1) == b""
            second = source.connect(whole)
            assert peer.is_closed(source.connect(b"GET / HTTP/1.0\r\n\r\n"))
            first.close()
            assert json.loads(command.process.stdout.readline())["status"] == "completed"
            second_out = destination.accept()
            assert read(second_out, len(whole)) == whole
            second.close()
            second_out.close()
        assert json.loads(command.process.stdout.readline())["status"] == "completed"
        command.signal(signal.SIGINT)
        command.wait(130)

    def test_a_channel_of_the_next_source_may_come_before_its_main_has_said_what_it_is(self, cli, destination):
        """It is not taken for one that the first source connected twice."""
        command = cli("relay", "tcp:127.0.0.1:0", destination.uri, "--json", "--channels", 1)
        stream = peer.main_stream([(b"ram", BLOCK)])
        whole, begin = stream["header"] + stream["setup"] + stream["end"] + stream["eof"], peer.init(0) + peer.sync()
        with peer.Peer(command.listening()) as source:
            main, channel = source.connect(whole), source.connect(begin)
            main_out, channel_out = destination.accept(), destination.accept()
            assert (read(main_out, len(whole)), read(channel_out, 64 + 1344)[64:]) == (whole, peer.sync())
            main.close()
            channel.close()
            assert main_out.recv(1) == channel_out.recv(1) == b""
            main, channel = source.connect(), source.connect(begin)
            assert peer.is_closed(source.connect(b"GET / HTTP/1.0\r\n\r\n"))
            main.sendall(whole)
            assert peer.is_closed(source.connect(b"GET / HTTP/1.0\r\n\r\n"))
            main_out.close()
            channel_out.close()
            assert json.loads(command.process.stdout.readline())["status"] == "completed"
            main_out, channel_out = destination.accept(), destination.accept()
            assert (read(main_out, len(whole)), read(channel_out, 64 + 1344)[64:]) == (whole, peer.sync())
            for sock in (main, channel, main_out, channel_out):
                sock.close()
        assert json.loads(command.process.stdout.readline())["status"] == "completed"
        command.signal(signal.SIGINT)
        command.wait(130)

    def test_once(self, cli, receiver, image):
        end = receiver(bytearray(len(image)))
        command = cli("relay", "tcp:127.0.0.1:0", end.uri, "--in", "zlib", "--out", "zstd", "--channels", 2, "--once")
        multifd.send(image, command.listening(), "zlib")
        end.join()
        out, _ = command.wait()
        assert out.startswith("zlib to zstd: completed, 2 channels, ")

    def test_once_with_a_failure(self, cli):
        command = cli("relay", "tcp:127.0.0.1:0", "tcp:127.0.0.1:1", "--once", "--json", "--connect-timeout", "0.2")
        with peer.Peer(command.listening()) as source:
            source.connect(start_of_main())
            document = command.json(5)
        assert document["status"] == "failed"
        assert "cannot connect" in document["error"]
        assert document["bytes_in"] > 0

    def test_a_private_method_from_another_host_must_be_named(self, cli, receiver, image, tmp_path):
        """The listener's address decides, so every address of this host counts as another host."""
        command = cli("relay", "tcp::0", f"unix:{tmp_path}/nobody", "--once")
        uri = f"tcp:127.0.0.1:{command.listening().rpartition(':')[2]}"
        with pytest.raises((ChannelError, OutcomeUnknown)):
            multifd.send(image, uri, "lz4")
        _, err = command.wait(4)
        assert "over a network it must be allowed by name (--in)" in err
        end = receiver(bytearray(len(image)))
        command = cli("relay", "tcp::0", end.uri, "--once", "--in", "lz4")
        uri = f"tcp:127.0.0.1:{command.listening().rpartition(':')[2]}"
        multifd.send(image, uri, "lz4")
        end.join()
        command.wait()
