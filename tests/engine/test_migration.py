"""Both ends over sockets: every method, channel count and transport; and a sender that is not ours."""

from __future__ import annotations

import json
import socket
import threading
import zlib
from pathlib import Path

import peer
import pytest

import multifd

RESULT_KEYS = {
    "status", "method", "channels", "total_time_ms", "setup_time_ms", "downtime_ms", "mbps", "pages_per_second",
    "normal_pages", "zero_pages", "transferred_bytes", "ram_bytes", "dirty_sync_count", "method_stats", "error",
    "tracker", "tracker_reason", "rounds",
    "dirty_pages", "dirty_pages_rate", "expected_downtime_ms", "throttle_percent", "notes",
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 2, 4, 16])
@pytest.mark.parametrize("method", ["none", "zlib", "zstd", "zlib:engine=zlib,level=9", "zstd:engine=zstandard"])
def test_every_method_and_channel_count(receiver, image, tmp_path, method, channels):
    out = tmp_path / "out.ram"
    destination = receiver(out)
    sent = multifd.send(image, destination.uri, method, channels=channels)
    received = destination.join()
    assert out.read_bytes() == image
    assert sent.status == received.status == "completed"
    assert sent.channels == received.channels == channels
    assert (sent.normal_pages, sent.zero_pages) == (received.normal_pages, received.zero_pages)
    assert sent.normal_pages + sent.zero_pages == len(image) // 4096
    assert sent.transferred_bytes == received.transferred_bytes
    assert sent.method == received.method == method.partition(":")[0]


@pytest.mark.parametrize("dialect", ["9.0", "8.1", "7.2"])
def test_dialects(receiver, image, dialect):
    into = bytearray(b"\xff") * len(image)
    destination = receiver(into)
    multifd.send(image, destination.uri, "zstd", dialect=dialect)
    destination.join()
    assert into == image


def test_unix_file_to_file(receiver, image, image_path, tmp_path):
    out = tmp_path / "out.ram"
    destination = receiver(out, f"unix:{tmp_path}/sock")
    multifd.send(image_path, destination.uri, "zlib", channels=3)
    destination.join()
    assert out.read_bytes() == image
    assert out.stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.ram", "source.ram"]


def test_ipv6(receiver, image):
    into = bytearray(len(image))
    try:
        destination = receiver(into, "tcp:[::1]:0")
        multifd.send(image, destination.uri)
        destination.join()
    except multifd.errors.ChannelError as e:
        if "Cannot assign" in str(e) or not destination.uri:
            pytest.skip("this machine has no IPv6 loopback")
        raise
    assert into == image


@pytest.mark.parametrize("page_size", [8192, 16384, 65536])
def test_page_sizes(receiver, image, page_size):
    into = bytearray(len(image))
    destination = receiver(into)
    multifd.send(multifd.MemoryImage(image, page_size), destination.uri, "zstd")
    result = destination.join()
    assert into == image
    assert result.normal_pages + result.zero_pages == len(image) // page_size


def test_255_channels(receiver, image):
    into = bytearray(len(image))
    destination = receiver(into)
    multifd.send(image, destination.uri, channels=255)
    assert destination.join().channels == 255
    assert into == image


def test_memory_that_holds_something_else_becomes_equal(receiver, image):
    into = bytearray(b"\x55") * len(image)
    destination = receiver(into)
    multifd.send(image, destination.uri, "zlib")
    destination.join()
    assert into == image


def test_sparse_source_stays_sparse(receiver, tmp_path):
    source, out = tmp_path / "source.ram", tmp_path / "out.ram"
    with source.open("wb") as f:
        f.truncate(1 << 30)
        f.seek(300 << 20)
        f.write(b"x" * 5000)
    destination = receiver(out)
    sent = multifd.send(source, destination.uri)
    destination.join()
    assert sent.normal_pages == 2
    assert out.stat().st_size == 1 << 30
    assert out.stat().st_blocks * 512 < 1 << 20
    with out.open("rb") as f:
        f.seek(300 << 20)
        assert f.read(8192) == (b"x" * 5000).ljust(8192, b"\0")


def test_progress_is_reported_in_the_callers_thread(receiver, tmp_path):
    image = bytes(4096) + b"x" * 4096 * 2047
    into = bytearray(len(image))
    seen = []
    destination = receiver(into)
    multifd.send(
        image,
        destination.uri,
        max_bandwidth=16 << 20,
        on_progress=lambda r: seen.append((r, threading.current_thread())),
    )
    destination.join()
    assert into == image
    assert len(seen) >= 2
    assert {thread for _, thread in seen} == {threading.current_thread()}
    assert [r.transferred_bytes for r, _ in seen] == sorted(r.transferred_bytes for r, _ in seen)
    assert all(r.status == "active" for r, _ in seen)


class TestForeignSender:
    """What others send: no announcement, other orders, with and without return path and configuration."""

    BLOCK = 16 * peer.PAGE

    def run(self, uri, *, channels=2, config=True, return_path=False, per_section=False, main_last=False):
        stream = peer.main_stream(
            [(b"ram", self.BLOCK)], return_path=return_path, config=config, per_section=per_section
        )
        page = b"\xab" * peer.PAGE
        with peer.Peer(uri) as sender:
            main = None if main_last else sender.connect(stream["header"])
            sockets = [sender.connect(peer.init(i)) for i in reversed(range(channels))]
            main = main or sender.connect(stream["header"])
            main.sendall(stream["commands"] + stream["setup"])
            for sock in sockets:
                sock.sendall(peer.sync())
            sockets[0].sendall(peer.packet([0, 3 * peer.PAGE], page * 2, zero=[peer.PAGE]))
            sockets[-1].sendall(peer.packet([15 * peer.PAGE], page, size=0))  # QEMU accepts 0 for none
            for sock in sockets:
                sock.sendall(peer.sync())
            main.sendall(stream["end"] + stream["eof"])
            answers = b""
            if return_path:
                while data := main.recv(100):
                    answers += data
                    if answers.endswith(b"\0\1\0\4\0\0\0\0"):
                        break
            elif main_last:  # channels that come before main and end before it is known belong to nobody
                main.shutdown(socket.SHUT_WR)
                assert main.recv(1) == b""
            return answers

    @pytest.mark.parametrize("config", [True, False])
    @pytest.mark.parametrize("return_path", [True, False])
    @pytest.mark.parametrize("per_section", [True, False])
    @pytest.mark.parametrize("main_last", [True, False])
    def test_is_understood(self, receiver, config, return_path, per_section, main_last):
        into = bytearray(b"\xee") * self.BLOCK
        destination = receiver(into)
        answers = self.run(
            destination.uri, config=config, return_path=return_path, per_section=per_section, main_last=main_last
        )
        result = destination.join()
        expected = bytearray(b"\xee") * self.BLOCK
        for i in (0, 3, 15):
            expected[i * peer.PAGE : (i + 1) * peer.PAGE] = b"\xab" * peer.PAGE
        expected[peer.PAGE : 2 * peer.PAGE] = bytes(peer.PAGE)
        assert into == expected
        assert (result.normal_pages, result.zero_pages, result.method) == (3, 1, "none")
        # PONG 1, then SHUT 0
        assert answers == (b"\0\2\0\4\0\0\0\1\0\1\0\4\0\0\0\0" if return_path else b"")

    def test_channels_must_be_told_if_not_2(self, receiver):
        into = bytearray(self.BLOCK)
        destination = receiver(into, channels=5)
        self.run(destination.uri, channels=5)
        assert destination.join().channels == 5

    def test_the_method_comes_from_the_packets_code(self, receiver):
        into = bytearray(self.BLOCK)
        destination = receiver(into)
        stream = peer.main_stream([(b"ram", self.BLOCK)])
        deflate = zlib.compressobj(1)
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            a, b = (sender.connect(peer.init(i) + peer.sync()) for i in range(2))
            for i in range(3):
                payload = deflate.compress(bytes([i + 1]) * peer.PAGE) + deflate.flush(zlib.Z_SYNC_FLUSH)
                a.sendall(peer.packet([i * peer.PAGE], payload, flags=2))
            a.sendall(peer.sync())
            b.sendall(peer.sync())
            main.sendall(stream["end"] + stream["eof"])
            result = destination.join()
        assert result.method == "zlib"
        assert into == b"\1" * peer.PAGE + b"\2" * peer.PAGE + b"\3" * peer.PAGE + bytes(self.BLOCK - 3 * peer.PAGE)

    def test_sync_on_a_data_packet_and_stale_fields_of_an_empty_one(self, receiver):
        into = bytearray(self.BLOCK)
        destination = receiver(into, channels=1)
        stream = peer.main_stream([(b"ram", self.BLOCK)], per_section=True)
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            channel = sender.connect(peer.init(0) + peer.sync())
            channel.sendall(peer.packet([0], b"\1" * peer.PAGE, flags=1))
            channel.sendall(peer.packet([], size=99999, block=b"gone"))
            main.sendall(stream["end"] + stream["eof"])
            destination.join()
        assert into == b"\1" * peer.PAGE + bytes(self.BLOCK - peer.PAGE)

    def test_a_surplus_sync_at_the_end_is_harmless(self, receiver):
        into = bytearray(self.BLOCK)
        destination = receiver(into, channels=1)
        stream = peer.main_stream([(b"ram", self.BLOCK)])
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            sender.connect(peer.init(0) + peer.sync() + peer.sync() + peer.sync())
            main.sendall(stream["end"] + stream["eof"])
            assert destination.join().status == "completed"


class TestCommandLine:
    def test_send_and_receive_in_json(self, cli, image, image_path, tmp_path):
        out = tmp_path / "out.ram"
        receive = cli("receive", "tcp:127.0.0.1:0", out, "--format", "raw", "--json")
        send = cli("send", image_path, receive.listening(), "--method", "zstd:level=3", "--channels", "3", "--json")
        sent, received = send.json(), receive.json()
        assert out.read_bytes() == image
        assert set(sent) == set(received) - {"sidecar"} == RESULT_KEYS
        assert sent["status"] == received["status"] == "completed"
        assert sent["error"] is received["error"] is None
        assert sent["method"] == received["method"] == "zstd"

    def test_the_sender_may_start_first(self, cli, image, image_path, tmp_path):
        uri, out = f"unix:{tmp_path}/sock", tmp_path / "out.ram"
        send = cli("send", image_path, uri)
        receive = cli("receive", uri, out, "--format", "raw")
        send.wait()
        receive.wait()
        assert out.read_bytes() == image

    def test_methods(self, cli):
        methods = {m["name"]: m for m in cli("methods", "--json").json()}
        assert {"none", "zlib", "zstd"} <= set(methods)
        for method in methods.values():
            assert set(method) == {
                "name", "status", "engine", "reason", "distribution", "version", "wire_code", "options",
                "promises",
            }  # fmt: skip
        assert methods["zstd"]["wire_code"] == 4
        assert methods["zstd"]["options"][0]["name"] == "level"
        assert "zstd" in cli("methods").wait()[0]

    @pytest.mark.parametrize(
        ("arguments", "status", "words"),
        [
            (["send", "IMAGE", "tcp:nowhere"], 2, "expected tcp:HOST:PORT"),
            (["send", "IMAGE", "unix:x", "--method", "zst"], 3, "did you mean 'zstd'"),
            (["send", "IMAGE", "unix:x", "--method", "zstd:level=99"], 2, "from -7 to 22"),
            (["send", "IMAGE", "unix:x", "--method", "zstd:speed=1"], 2, "options: level, engine"),
            (["send", "IMAGE", "unix:x", "--method", "none:level=1"], 2, "it has none"),
            (["send", "IMAGE", "unix:x", "--channels", "0"], 2, "a whole number from 1 to 255"),
            (["send", "IMAGE", "unix:x", "--max-bandwidth", "fast"], 2, "expected bytes"),
            (["send", "ODD", "unix:x"], 6, "multiple of the page size"),
            (["send", "MISSING", "unix:x"], 6, "No such file"),
            (["send", "IMAGE", "tcp:127.0.0.1:1", "--connect-timeout", "0.2"], 5, "refused"),
            (["receive", "tcp:127.0.0.1:0", "/proc/none/x", "--format", "raw"], 6, "No such file"),
            (["receive", "tcp:127.0.0.1:0", "OUT", "--format", "raw", "--method", "zst"], 3, "did you mean 'zstd'"),
            (
                ["receive", "tcp:127.0.0.1:0", "OUT", "--format", "raw", "--timeout", "0.3"],
                5,
                "no sender connected within 0.3 s",
            ),
        ],
    )
    @pytest.mark.parametrize("as_json", [True, False])
    def test_bad_input_is_one_clear_line(self, cli, image_path, tmp_path, arguments, status, words, as_json):
        (tmp_path / "odd").write_bytes(b"x" * 5000)
        names = {"IMAGE": image_path, "ODD": tmp_path / "odd", "MISSING": tmp_path / "no", "OUT": tmp_path / "out"}
        command = cli(*[names.get(a, a) for a in arguments], *(["--json"] if as_json else []), cwd=tmp_path)
        out, err = command.wait(status)
        assert words in err
        assert not (tmp_path / "out").exists()
        if as_json:
            document = json.loads(out)
            assert document["status"] == "failed"
            assert words in document["error"]

    def test_demo(self, cli):
        rows = cli("demo", "--size", "16M", "--method", "none", "--method", "zstd", "--json").json()
        assert [row["method"] for row in rows] == ["none", "zstd"]
        assert all(row["status"] == "completed" and row["error"] is None for row in rows)
        assert all(set(row) == RESULT_KEYS for row in rows)
        assert all(row["tracker"] and row["rounds"] for row in rows), "memory that is written, not an image"

    def test_interrupt(self, cli, image_path, tmp_path):
        import signal

        out = tmp_path / "out.ram"
        receive = cli("receive", "tcp:127.0.0.1:0", out, "--format", "raw", "--json")
        receive.listening()
        receive.signal(signal.SIGINT)
        assert receive.json(130)["status"] == "cancelled"
        assert [p for p in Path(tmp_path).iterdir() if p != image_path] == []
