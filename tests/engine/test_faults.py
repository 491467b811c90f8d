"""What goes wrong: always one clear error within the timeout, nothing under the final name, no hang."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import peer
import pytest

import multifd
from multifd.engine import crew
from multifd.engine import receiver as receiver_module
from multifd.engine.config import ReceiveConfig
from multifd.engine.disk import Disk
from multifd.engine.recv_main import RecvMain
from multifd.errors import (
    ChannelError,
    CodecError,
    HookError,
    MethodNotFound,
    OutcomeUnknown,
    PeerFailed,
    PeerMismatch,
    RamError,
    RemoteWireError,
)
from multifd.methods.zlib import ZlibMethod
from multifd.ram.memory import MemoryTarget
from multifd.transport.address import Uri
from multifd.transport.listen import Listener
from multifd.wire.return_path import PONG

BLOCK = 64 * peer.PAGE
END_OF_STREAM = b'"devices": []}'


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def any_is_closed(sockets: list[socket.socket]) -> bool:
    """Whether the other end closes one of them."""
    ready, _, _ = select.select(sockets, [], [], 30)
    return any(peer.is_closed(sock) for sock in ready)


class TestScriptedSender:
    """A sender that breaks one rule; the receiver names it."""

    def check(self, receiver, tmp_path, kind, words, *, data=b"", setup=None, end=True, channels=1, **options):
        out = tmp_path / "dest" / "out.ram"
        out.parent.mkdir()
        destination = receiver(out, channels=channels, timeout=5, **options)
        stream = peer.main_stream([(b"ram", BLOCK)], return_path=True)
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["commands"] + (stream["setup"] if setup is None else setup))
            try:
                sender.connect(peer.init(0) + peer.sync() + data)
                if end:
                    main.sendall(stream["end"] + stream["eof"])
            except OSError:
                pass  # the receiver may have closed already
            with pytest.raises(kind, match=words):
                destination.join()
        assert leftovers(out.parent) == []

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (b"\x99" + peer.packet([0])[1:], "packet 1, byte 0: magic 0x99223344"),
            (peer.packet([0])[:4] + b"\0\0\0\2" + peer.packet([0])[8:], "version 2, expected 1"),
            (peer.packet([0], bytes(4096), flags=0x80), "unknown flags in 0x80"),
            (peer.packet([0], bytes(4096), flags=0x40), "device-state packet"),
            (peer.packet([0], bytes(4096), alloc=129), "pages_alloc 129, at most 128"),
            (peer.packet([0] * 3, bytes(4096), alloc=2), "normal_pages 3, at most 2"),
            (peer.packet([0], bytes(4096), zero=[4096], alloc=1), "zero_pages 1, at most 0"),
            (peer.packet([0], bytes(4096), block=b"pc.ram"), "unknown block 'pc.ram'"),
            (peer.packet([BLOCK], bytes(4096)), "page offset 0x40000"),
            (peer.packet([1 << 63], bytes(4096)), "page offset 0x8000000000000000"),
            (peer.packet([100], bytes(4096)), "multiple of 4096"),
            (peer.packet([0], bytes(4096), size=4095), "next_packet_size 4095, expected 4096"),
            (peer.packet([0], b"x", flags=2, size=1 << 24), "next_packet_size 16777216, at most 1048576"),
            (peer.packet([0], b"x", flags=0x3E), "method code 0x3e"),
            (peer.packet([0], b"x", flags=0x0A), "method code 0xa"),
        ],
    )
    def test_damaged_headers(self, receiver, tmp_path, data, words):
        self.check(receiver, tmp_path, (RemoteWireError, PeerMismatch), words, data=data, end=False)

    def test_another_code_later(self, receiver, tmp_path):
        data = peer.packet([0], bytes(4096)) + peer.packet([0], bytes(4096), flags=2)
        self.check(receiver, tmp_path, RemoteWireError, "packet 2.*method code 0x2, expected 0x0", data=data, end=False)

    @pytest.mark.parametrize("flags", [2, 4])
    def test_payload_that_does_not_decode(self, receiver, tmp_path, flags):
        data = peer.packet([0], random.Random(1).randbytes(500), flags=flags)
        self.check(receiver, tmp_path, CodecError, "channel 0, packet 1: (zlib|zstd) payload", data=data, end=False)

    def test_channel_closed_in_a_packet(self, receiver, tmp_path):
        destination = receiver(bytearray(BLOCK), channels=1, timeout=5)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            sender.connect(stream["header"] + stream["setup"])
            sender.connect(peer.init(0) + peer.sync() + peer.packet([0], bytes(4096))[:3000]).close()
            with pytest.raises(ChannelError, match=r"channel 0 .* closed"):
                destination.join()

    def test_channel_closed_after_a_packet(self, receiver, tmp_path):
        """A sender that was killed between two packets broke the connection, not the protocol."""
        destination = receiver(bytearray(BLOCK), channels=1, timeout=5)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            sender.connect(stream["header"] + stream["setup"])
            sender.connect(peer.init(0) + peer.sync() + peer.packet([0], bytes(4096))).close()
            with pytest.raises(ChannelError, match=r"channel 0 .* closed the connection: pages after"):
                destination.join()

    def test_channel_closed_before_its_sync(self, receiver, tmp_path):
        destination = receiver(bytearray(BLOCK), channels=1, timeout=5)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            sender.connect(peer.init(0) + peer.sync()).close()
            main.sendall(stream["end"] + stream["eof"])
            with pytest.raises(ChannelError, match="channel 0 ended before sync point 2"):
                destination.join()

    def test_pages_after_the_last_sync_point(self, receiver, tmp_path):
        """They would be lost without a word."""
        destination = receiver(bytearray(BLOCK), channels=1, timeout=5)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            sender.connect(peer.init(0) + peer.sync() + peer.sync() + peer.packet([0], bytes(4096)))
            main.sendall(stream["end"] + stream["eof"])
            with pytest.raises(RemoteWireError, match="pages after the last sync point"):
                destination.join()

    def test_main_ends_early(self, receiver):
        destination = receiver(bytearray(BLOCK), channels=1, timeout=5)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            sender.connect(stream["header"] + stream["setup"]).close()
            sender.connect(peer.init(0) + peer.sync())
            with pytest.raises(ChannelError, match="closed the main connection"):
                destination.join()

    def test_two_blocks_do_not_fit_a_raw_image(self, receiver, tmp_path):
        setup = peer.main_stream([(b"pc.ram", BLOCK), (b"pc.bios", BLOCK)])["setup"]
        self.check(receiver, tmp_path, RamError, "pc.ram .*, pc.bios", setup=setup, end=False)

    def test_block_larger_than_any_disk(self, receiver, tmp_path):
        setup = peer.main_stream([(b"ram", 1 << 62)])["setup"]
        self.check(receiver, tmp_path, RamError, "cannot hold", setup=setup, end=False)

    def test_silence(self, receiver):
        destination = receiver(bytearray(BLOCK), channels=2, timeout=0.5)
        with peer.Peer(destination.uri) as sender:
            sender.connect(peer.main_stream([(b"ram", BLOCK)])["header"])
            sender.connect(peer.init(0) + peer.sync())
            with pytest.raises(ChannelError, match=r"no byte moved .* main is connected, 1 of 2 channels"):
                destination.join()

    def test_a_channel_too_many(self, receiver):
        """A source whose channel is turned away gives up, and its reason is told then."""
        destination = receiver(bytearray(BLOCK), channels=1, timeout=20)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            last = sender.connect(peer.init(1) + peer.sync())
            assert peer.is_closed(last)
            main.close()
            with pytest.raises(PeerMismatch, match="channel 1 connected, but 1 channels are expected: expect 2"):
                destination.join()

    def test_a_channel_too_many_in_the_backlog(self, receiver):
        """It connects at the very end, when everything else is done."""
        destination = receiver(bytearray(BLOCK), channels=1, timeout=5)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"] + stream["end"])
            sender.connect(peer.init(0) + peer.sync())
            last = sender.connect()
            last.sendall(peer.init(1) + peer.sync())
            sender.sockets[1].sendall(peer.sync())
            main.sendall(stream["eof"])
            with pytest.raises(PeerMismatch, match="channel 1 connected, but 1 channels are expected"):
                destination.join()

    def test_the_same_channel_twice(self, receiver):
        destination = receiver(bytearray(BLOCK), channels=2, timeout=20)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            twice = [sender.connect(peer.init(0) + peer.sync()) for _ in range(2)]
            assert any_is_closed(twice)
            main.close()
            with pytest.raises(RemoteWireError, match="channel 0 connected twice"):
                destination.join()

    @pytest.mark.parametrize(
        "first",
        [
            struct.pack(">II", 0x11223344, 7) + bytes(56),
            peer.init(0),
            peer.init(0) + b"x",
            peer.init(0, channels=1),
            peer.init(0, uuid=b"u" * 16) + peer.sync(),
            b"QEVM",
            b"QEVM" + bytes(400),
            b"QEVM\0\0\0\3" + bytes(400),
        ],
    )
    def test_a_stranger_ends_no_migration(self, receiver, image, first):
        """Whatever a newcomer claims to be, before the source comes and while its pages move."""
        into = bytearray(len(image))
        destination = receiver(into)
        with peer.Peer(destination.uri) as stranger:
            stranger.connect(first)
            again = []

            def disturb(result):
                if not again:
                    again.append(result)
                    with contextlib.suppress(OSError):
                        stranger.connect(first)

            multifd.send(image, destination.uri, "zstd", channels=4, max_bandwidth=16 << 20, on_progress=disturb)
            destination.join()
        assert again
        assert into == image


class TestMismatch:
    def test_method(self, receiver, image):
        destination = receiver(bytearray(len(image)), methods=["zlib"])
        with pytest.raises((PeerFailed, ChannelError)):
            multifd.send(image, destination.uri, "zstd")
        with pytest.raises(PeerMismatch, match="'zstd', here only zlib may be"):
            destination.join()

    def test_channels(self, receiver, image):
        destination = receiver(bytearray(len(image)), channels=3)
        with pytest.raises((PeerFailed, ChannelError)):
            multifd.send(image, destination.uri, channels=2)
        with pytest.raises(PeerMismatch, match="2 channels, here 3 are expected"):
            destination.join()

    def test_size(self, receiver, image):
        destination = receiver(bytearray(4096))
        with pytest.raises(PeerFailed, match="good copy"):
            multifd.send(image, destination.uri)
        with pytest.raises(RamError, match="the buffer to receive into 4096"):
            destination.join()

    def test_announced_private_method_that_is_not_installed(self, receiver):
        destination = receiver(bytearray(BLOCK), timeout=5)
        stream = peer.main_stream([(b"ram", BLOCK)])
        with peer.Peer(destination.uri) as sender:
            sender.connect(stream["header"] + stream["setup"])
            sender.connect(peer.init(0, channels=1, name=b"zst") + peer.sync() + peer.packet([0], b"x", flags=0x3E))
            with pytest.raises(MethodNotFound, match="no method 'zst' is installed"):
                destination.join()


class TestScriptedDestination:
    """A destination that breaks off; the sender says where the good copy is."""

    def serve(self, answer: bytes, take: int | None = None) -> tuple[str, threading.Thread]:
        """Take all connections' bytes; at the end of main's stream (or after `take` bytes), answer and close."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(20)

        def run() -> None:
            with listener:
                main, _ = listener.accept()
                sockets = [listener.accept()[0] for _ in range(2)]
                drains = [threading.Thread(target=drain, args=(s,)) for s in sockets]
                for thread in drains:
                    thread.start()
                if take is None:
                    main.sendall(b"\0\2\0\4\0\0\xff\xff")  # a PONG that answers every PING there will be
                data = b""
                while not data.endswith(END_OF_STREAM) and (take is None or len(data) < take):
                    if not (byte := main.recv(1)):
                        break
                    data += byte
                if answer:
                    main.sendall(answer)
                for sock in (*sockets, main):
                    with contextlib.suppress(OSError):  # the sender may have ended it
                        sock.shutdown(socket.SHUT_RDWR)
                for thread in drains:
                    thread.join()
                for sock in (*sockets, main):
                    sock.close()

        def drain(sock: socket.socket) -> None:
            try:
                while sock.recv(1 << 20):
                    pass
            except OSError:
                pass

        thread = threading.Thread(target=run)
        thread.start()
        return f"tcp:127.0.0.1:{listener.getsockname()[1]}", thread

    @pytest.mark.parametrize(
        ("answer", "take", "kind", "words"),
        [
            (b"\0\1\0\4\0\0\0\0", None, None, ""),
            (b"\0\1\0\4\0\0\0\0" + b"\0\7\0\0", None, None, ""),  # in one read
            (b"", None, OutcomeUnknown, "may hold the memory"),
            (b"\0\1\0\4\0\0\0\1", None, PeerFailed, "good copy"),
            (b"\0\7\0\0", None, OutcomeUnknown, "message 7"),
            (b"\0\1\0\4\0\0\0\1", 30, PeerFailed, "good copy"),
            (b"", 30, ChannelError, "closed"),
            (b"\0\1\0\4\0\0\0\0", 30, ChannelError, "before it had everything|closed"),
        ],
    )
    def test_answers(self, image, answer, take, kind, words):
        uri, thread = self.serve(answer, take)
        try:
            if kind is None:
                assert multifd.send(image * 4, uri, "zstd", timeout=5).status == "completed"
            else:
                with pytest.raises(kind, match=words) as caught:
                    multifd.send(image * 4, uri, "zstd", timeout=5)
                assert caught.value.result.status == ("unknown" if kind is OutcomeUnknown else "failed")
        finally:
            thread.join(20)

    def test_stalled_destination(self, image):
        with socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(ChannelError, match="no byte moved"):
            multifd.send(image * 8, f"tcp:127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)


class TestProcesses:
    """Two processes, one of which is treated badly."""

    @pytest.fixture
    def running(self, cli, tmp_path, image):
        """A migration that is slow enough to be caught in the middle."""
        source = tmp_path / "source.ram"
        source.write_bytes(image * 4)
        (tmp_path / "dest").mkdir()
        out = tmp_path / "dest" / "out.ram"
        receive = cli("receive", "tcp:127.0.0.1:0", out, "--format", "raw", "--timeout", "10")
        uri = receive.listening()
        send = cli("send", source, uri, "--max-bandwidth", "2M", "--timeout", "10", "--json")
        assert send.process.stderr.readline().startswith("send:")  # the first progress line: pages are moving
        assert receive.process.stderr.readline().startswith("receive:")
        return send, receive, out

    def test_receiver_killed(self, running):
        send, receive, out = running
        receive.signal(signal.SIGKILL)
        document = send.json(5)
        assert document["status"] == "failed"
        assert document["error"]
        assert not out.exists()

    def test_receiver_killed_leaves_only_its_part_and_the_next_run_removes_it(self, running, cli):
        send, receive, out = running
        receive.signal(signal.SIGKILL)
        send.json(5)
        receive.process.wait(10)
        assert leftovers(out.parent) == [".out.ram.multifd-part"]
        again = cli("receive", "tcp:127.0.0.1:0", out, "--format", "raw", "--timeout", "0.3")
        again.wait(5)
        assert leftovers(out.parent) == []

    def test_sender_killed(self, running):
        send, receive, out = running
        send.signal(signal.SIGKILL)
        _, err = receive.wait(5)
        assert "closed" in err or "ended" in err
        assert leftovers(out.parent) == []

    def test_sender_interrupted(self, running):
        send, receive, out = running
        send.signal(signal.SIGINT)
        assert send.json(130)["status"] == "cancelled"
        receive.wait(5)
        assert leftovers(out.parent) == []

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_receiver_interrupted(self, running, number, status):
        send, receive, out = running
        receive.signal(number)
        receive.wait(status)
        assert "destination reports that it failed" in send.json(4)["error"]
        assert leftovers(out.parent) == []

    def test_receiver_stopped(self, running):
        send, receive, out = running
        receive.signal(signal.SIGSTOP)
        assert "no byte moved" in send.json(5)["error"]
        receive.signal(signal.SIGCONT)
        receive.wait(5)
        assert leftovers(out.parent) == []

    def test_sender_stopped(self, running):
        send, receive, out = running
        send.signal(signal.SIGSTOP)
        assert "no byte moved" in receive.wait(5)[1]
        send.signal(signal.SIGCONT)
        assert send.json(4)["error"]
        assert leftovers(out.parent) == []

    def test_two_receivers_of_one_file(self, running, cli):
        _, _, out = running
        _, err = cli("receive", "tcp:127.0.0.1:0", out, "--format", "raw").wait(6)
        assert "another process is writing to it" in err

    def test_full_disk(self, cli, image, image_path, tmp_path):
        """A file size limit stands in for it: the write fails in the same place with another errno."""

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, resource.RLIM_INFINITY))

        (tmp_path / "dest").mkdir()
        out = tmp_path / "dest" / "out.ram"
        receive = cli("receive", "tcp:127.0.0.1:0", out, "--format", "raw", preexec_fn=limit)
        send = cli("send", image_path, receive.listening(), "--json")
        assert send.json(4)["status"] == "failed"
        assert "File too large" in receive.wait(6)[1]
        assert leftovers(out.parent) == []

    def test_really_full_disk(self, cli, image_path, tmp_path):
        mount = tmp_path / "small"
        mount.mkdir()
        if os.geteuid() or os.system(f"mount -t tmpfs -o size=2m none {mount} 2>/dev/null"):
            pytest.skip("mounting a small tmpfs needs root")
        try:
            receive = cli("receive", "tcp:127.0.0.1:0", mount / "out.ram", "--format", "raw")
            send = cli("send", image_path, receive.listening(), "--json")
            assert send.json(4)["status"] == "failed"
            assert "No space left" in receive.wait(6)[1]
            assert leftovers(mount) == []
        finally:
            os.system(f"umount {mount}")


def test_garbage_connections_disturb_nothing(receiver, image):
    """200 strangers before and while a migration runs: silent, short, random, HTTP, half a magic."""
    rng = random.Random(5)
    into = bytearray(len(image))
    destination = receiver(into)
    kinds = [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\0", b"\x11\x22", b"QEV", rng.randbytes(64), b"\0" * 400]
    with peer.Peer(destination.uri) as strangers:

        def disturb(count: int) -> None:
            for i in range(count):
                try:
                    sock = strangers.connect()  # refused once all of the migration's are there
                    sock.sendall(kinds[i % len(kinds)])
                    if i % 3 == 0:
                        sock.close()
                except OSError:
                    pass

        disturb(100)
        thread = threading.Thread(target=disturb, args=(100,))
        thread.start()
        result = multifd.send(image, destination.uri, "zstd", channels=4, max_bandwidth=16 << 20)
        thread.join()
        destination.join()
    assert result.status == "completed"
    assert into == image


def test_no_descriptor_or_thread_is_left(receiver, image):
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    into = bytearray(len(image))
    for attempt in range(12):
        destination = receiver(into, timeout=5)
        if attempt % 2:
            multifd.send(image, destination.uri, "zlib", channels=4)
            destination.join()
        else:
            stream = peer.main_stream([(b"ram", len(image))])
            with peer.Peer(destination.uri) as sender:
                sender.connect(struct.pack(">II", 0x11223344, 7) + bytes(56))
                sender.connect(stream["header"] + stream["setup"])
                for i in range(2):
                    sender.connect(peer.init(i) + peer.sync() + b"\x99" * 1344)
                with pytest.raises(RemoteWireError):
                    destination.join()
        if attempt == 1:
            before = descriptors(), threading.active_count()
    assert (descriptors(), threading.active_count()) == before


PEAK = """
import json, resource, sys, multifd
role, uri, path, method = sys.argv[1:]
if role == "send":
    multifd.send(path, uri, method, channels=4, dialect="9.0")
else:
    multifd.receive(uri, path, format="raw", on_listening=lambda u: print(u, file=sys.stderr, flush=True))
with open("/proc/self/status") as f:
    peak = next(line for line in f if line.startswith("VmHWM"))
print(int(peak.split()[1]) >> 10)
"""


def peaks(source, out, method):
    """MiB of memory that sender and receiver took, each at most, with 4 channels."""
    with subprocess.Popen(
        [sys.executable, "-c", PEAK, "receive", "tcp:127.0.0.1:0", str(out), method],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as receive:  # fmt: skip
        uri = receive.stderr.readline().strip()
        send = subprocess.run(
            [sys.executable, "-c", PEAK, "send", uri, str(source), method],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        received, _ = receive.communicate(timeout=60)
    return json.loads(f"[{send.stdout}, {received}]")


def test_memory_stays_within_its_bound(tmp_path):
    """96 MiB and 4 MiB for each channel above the RAM itself, for any RAM size: here a sparse 8 GiB."""
    source, out = tmp_path / "source.ram", tmp_path / "out.ram"
    with source.open("wb") as f:
        f.truncate(8 << 30)
        for i in range(64):
            f.seek(i * (128 << 20))
            f.write(random.Random(i).randbytes(1 << 20))
    assert max(peaks(source, out, "zstd")) <= 96 + 4 * 4
    assert out.stat().st_size == 8 << 30


def test_memory_stays_within_its_bound_where_a_file_is_mapped(receiver, tmp_path):
    """A capture goes by none straight from the page cache; what of it is resident is bounded too."""
    source, out = tmp_path / "source.ram", tmp_path / "out.ram"
    memory = random.Random(1).randbytes(1 << 20) * 192
    destination = receiver(source, format="mapped-ram")
    multifd.send(memory, destination.uri)
    destination.join()
    assert max(peaks(source, out, "none")) <= 96 + 4 * 4
    assert out.read_bytes() == memory


@pytest.mark.parametrize("format", ["mapped-ram", "raw"])
@pytest.mark.parametrize("method", ["none", "zlib"])
def test_a_file_that_is_cut_short_while_it_is_sent(receiver, tmp_path, method, format):
    """An error, whether its pages are mapped or read; in a process of its own, a signal would end it."""
    path = tmp_path / "source.ram"
    destination = receiver(path, format=format)
    multifd.send(random.Random(1).randbytes(2 << 20), destination.uri)
    destination.join()
    script = """
import os, sys, multifd
uri, path, method = sys.argv[1:]
def cut(result):
    os.truncate(path, 1 << 20)
try:
    multifd.send(path, uri, method, dialect="9.0", max_bandwidth=1 << 20, on_progress=cut)
except multifd.errors.RamError as e:
    print(e, *getattr(e, "__notes__", ()))
"""
    destination = receiver(bytearray(2 << 20))
    run = subprocess.run(
        [sys.executable, "-c", script, destination.uri, str(path), method], capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "cut short" in run.stdout
    assert "intact" not in run.stdout  # what was to be sent is not
    with pytest.raises(ChannelError):
        destination.join()


def test_threads_that_end_late_are_no_fault(receiver, monkeypatch):
    """Every page is here: a hook, or a busy machine, may take its time for the rest, and the sender hears of it."""
    monkeypatch.setattr(crew, "JOIN_S", 0.1)
    monkeypatch.setattr(receiver_module, "_PONG_S", 0.2)
    has_told = threading.Event()
    answer = RecvMain.answer

    def tell(main: RecvMain, kind: int, value: int) -> None:
        answer(main, kind, value)
        if (kind, value) == (PONG, 0):
            has_told.set()

    monkeypatch.setattr(RecvMain, "answer", tell)
    monkeypatch.setattr(ZlibMethod, "recv_cleanup", lambda method, p: has_told.wait(20))
    memory, into = b"page" * (1 << 18), bytearray(1 << 20)
    destination = receiver(into)
    assert multifd.send(memory, destination.uri, "zlib").status == "completed"
    assert destination.join().status == "completed"
    assert has_told.is_set()
    assert into == memory


def test_a_thread_that_never_ends_is_one(receiver, monkeypatch):
    """Though every page is here: what it is at work on nobody knows."""
    is_over = threading.Event()
    monkeypatch.setattr(ZlibMethod, "recv_cleanup", lambda method, p: is_over.wait(20))
    monkeypatch.setattr(crew, "JOIN_S", 0.1)
    destination = receiver(bytearray(1 << 20), timeout=1)
    with pytest.raises(PeerFailed):
        multifd.send(b"page" * (1 << 18), destination.uri, "zlib", channels=1)
    is_over.set()
    with pytest.raises(HookError, match="multifdrecv_0: still busy 1 s after the last sync point"):
        destination.join()


def test_a_disk_that_flushes_for_long_is_no_fault(monkeypatch):
    """What was written while pages arrived may become durable after all channels have ended, but before the rest."""
    is_flushing, may_end = threading.Event(), threading.Event()
    order: list[str] = []
    commit = Disk.commit

    def after_all_ended(disk: Disk, uuid: bytes) -> threading.Thread:
        may_end.set()
        return commit(disk, uuid)

    monkeypatch.setattr(Disk, "commit", after_all_ended)

    class SlowDisk(MemoryTarget):
        def flush(self) -> None:
            is_flushing.set()
            assert may_end.wait(20)
            order.append("flushed")

        def add_device_state(self, data: bytes) -> None:
            assert is_flushing.wait(20)

        def commit(self, uuid: bytes) -> None:
            order.append("committed")

    memory = bytearray(1 << 20)
    listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
    try:
        receiver = receiver_module.Receiver(listener, SlowDisk(memory), ReceiveConfig())
        sender = threading.Thread(target=multifd.send, args=(b"page" * (1 << 18), str(listener.uri)))
        sender.start()
        assert receiver.run().status == "completed"
        sender.join(20)
    finally:
        listener.close()
    assert memory == b"page" * (1 << 18)
    assert order[-1] == "committed"
    assert "flushed" in order
