"""Captures through the whole of multifd: capture, replay, capture again; what the commands say of one."""

from __future__ import annotations

import json
import random
import socket
import struct
import threading
from pathlib import Path

import peer
import pytest
from conftest import DEADLINE_S, make_image
from interop.mapped import read_blocks
from mapped_files import build

import multifd
from multifd.errors import RamError, UsageError
from multifd.ram import capture
from multifd.ram.export import export
from multifd.wire.reader import MainStreamReader
from multifd.wire.stream import DeviceState, Machine, ZeroPages

PAGE = peer.PAGE
RAM_BLOCKS = [
    (b"pc.ram", make_image(300, 7)),
    (b"pc.bios", bytes(PAGE) + b"bios" * 3072),
    (b"empty", bytes(2 * PAGE)),
]
EXPECTED = {name.decode(): data for name, data in RAM_BLOCKS}
UUID = bytes(range(16))
UUID_TEXT = "00010203-0405-0607-0809-0a0b0c0d0e0f"


def vmdesc(**more: object) -> bytes:
    devices = [{"name": "timer", "instance_id": 0}, {"name": "0000:00:02.0/vga"}, {"no": "name"}]
    text = json.dumps({"page_size": PAGE, "devices": devices, **more}).encode()
    return b"\x06" + struct.pack(">I", len(text)) + text


STATE = b"\x04\0\0\0\x05" + random.Random(5).randbytes(300_000) + b"\x7e\0\0\0\x05\0" + vmdesc(configuration={})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A capture that somebody else wrote."""
    path = tmp_path / "vm.ram"
    path.write_bytes(build(RAM_BLOCKS, uuid=UUID, devices=STATE))
    return path


def state(path: Path) -> bytes:
    return path.read_bytes()[-capture.info(path).device_state_bytes :]


class TestRoundTrip:
    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("method", ["none", "zlib", "zstd"])
    def test_methods(self, receiver, path, tmp_path, method, channels):
        again = tmp_path / "again"
        destination = receiver(again, format="mapped-ram")
        sent = multifd.send(path, destination.uri, method, channels=channels)
        received = destination.join()
        assert read_blocks(again) == EXPECTED
        assert state(again) == STATE
        assert capture.verify(again) == capture.info(path)
        assert again.read_bytes() == path.read_bytes()
        assert (sent.normal_pages, sent.zero_pages) == (received.normal_pages, received.zero_pages)

    @pytest.mark.parametrize("dialect", ["9.0", "8.1", "7.2"])
    def test_dialects(self, receiver, path, tmp_path, dialect):
        again = tmp_path / "again"
        destination = receiver(again, format="mapped-ram")
        multifd.send(path, destination.uri, "zstd", dialect=dialect)
        destination.join()
        assert again.read_bytes() == path.read_bytes()

    @pytest.mark.parametrize("page", [8192, 65536])
    def test_page_sizes(self, receiver, tmp_path, page):
        path, again = tmp_path / "vm.ram", tmp_path / "again"
        path.write_bytes(build([(b"ram", make_image(320)), (b"x", bytes(page))], page=page, devices=STATE))
        destination = receiver(again, format="mapped-ram")
        multifd.send(path, destination.uri)
        destination.join()
        assert again.read_bytes() == path.read_bytes()

    @pytest.mark.parametrize(("uuid", "expected"), [(UUID_TEXT[::-1], UUID_TEXT[::-1]), ("0" * 32, None)])
    def test_uuid(self, receiver, path, tmp_path, uuid, expected):
        uuid = uuid.replace("-", "")
        again = tmp_path / "again"
        destination = receiver(again, format="mapped-ram")
        multifd.send(path, destination.uri, uuid=uuid)
        destination.join()
        found = capture.info(again).uuid
        assert found == (
            expected if expected is None else f"{uuid[:8]}-{uuid[8:12]}-{uuid[12:16]}-{uuid[16:20]}-{uuid[20:]}"
        )
        assert read_blocks(again) == EXPECTED

    def test_not_a_uuid(self, path):
        with pytest.raises(UsageError, match="32 hexadecimal digits"):
            multifd.send(path, "tcp:127.0.0.1:1", uuid="me")

    def test_unknown_machine(self, receiver, tmp_path):
        """A wrong dialect can load devices over missing RAM, so it is asked for."""
        path, again = tmp_path / "vm.ram", tmp_path / "again"
        path.write_bytes(build(RAM_BLOCKS, machine=b"my-board", devices=STATE))
        with pytest.raises(UsageError, match=r"'my-board' .* --dialect"):
            multifd.send(path, "tcp:127.0.0.1:1")
        destination = receiver(again, format="mapped-ram")
        multifd.send(path, destination.uri, dialect="9.0")
        destination.join()
        assert again.read_bytes() == path.read_bytes()

    def test_formats(self, path):
        with pytest.raises(UsageError, match="expected"):
            multifd.send(multifd.Image(path, "qcow2"), "tcp:127.0.0.1:1")
        with pytest.raises(UsageError, match="expected"):
            multifd.send(path, "tcp:127.0.0.1:1", dialect="6.0")
        with pytest.raises(UsageError, match="expected mapped-ram, raw"):
            multifd.receive("tcp:127.0.0.1:0", path, format="qcow2")

    def test_forced_formats(self, receiver, path, tmp_path):
        (tmp_path / "raw").write_bytes(b"x" * PAGE)
        with pytest.raises(RamError, match="not a capture"):
            multifd.send(multifd.Image(tmp_path / "raw", "mapped-ram"), "tcp:127.0.0.1:1")
        data = path.read_bytes()
        (tmp_path / "pages").write_bytes(data[: len(data) // PAGE * PAGE])
        into = bytearray(len(data) // PAGE * PAGE)
        destination = receiver(into)
        multifd.send(multifd.Image(tmp_path / "pages", "raw"), destination.uri)
        destination.join()
        assert into == data[: len(into)]


class Destination:
    """Takes what comes on so many connections, main first, and says that all is well when main's end is there."""

    def __init__(self, connections: int) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(DEADLINE_S)
        self.uri = f"tcp:127.0.0.1:{self._server.getsockname()[1]}"
        self.received = [b""] * connections
        self._threads = [threading.Thread(target=self._accept)]

    def _accept(self) -> None:
        for i in range(len(self.received)):
            thread = threading.Thread(target=self._read, args=(i, self._server.accept()[0]))
            self._threads.append(thread)
            thread.start()

    def _read(self, i: int, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_S)
        with sock:
            if i == 0:  # PONG 1 and 2: the source waits for the second before it hands over
                sock.sendall(bytes.fromhex("0002 0004 00000001  0002 0004 00000002"))
            while data := sock.recv(1 << 16):
                self.received[i] += data
                if i == 0 and self.received[0].endswith(STATE[-100:]):
                    sock.sendall(bytes.fromhex("0001 0004 00000000"))

    def __enter__(self) -> Destination:
        self._threads[0].start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._server.close()


class TestOnTheWire:
    def test_zero_pages_of_a_replay_are_on_main(self, path):
        """A QEMU clears a zero page in a packet only if it received that page before, one on main always."""
        zeros = {
            (name.decode(), at)
            for name, data in RAM_BLOCKS
            for at in range(0, len(data), PAGE)
            if not any(data[at : at + PAGE])
        }
        with Destination(3) as destination:
            sent = multifd.send(path, destination.uri)
        assert sent.zero_pages == len(zeros) > 20
        reader, found, state = MainStreamReader(), [], b""
        for event in reader.feed(destination.received[0]):
            if isinstance(event, ZeroPages):
                found += [(event.idstr, offset) for offset in event.offsets.tolist()]
            elif isinstance(event, DeviceState):
                state += event.data
            elif isinstance(event, Machine):
                assert (event.name, event.uuid) == ("pc-q35-9.0", UUID)
        assert sorted(found) == sorted(zeros)
        assert state == STATE
        for data in destination.received[1:]:
            assert data[8:24] == UUID
            at = 64
            while at < len(data):
                _, _, _, _, normal, _, _, zero = struct.unpack_from(">IIIIIIQI", data, at)
                assert zero == 0
                at += 1344 + normal * PAGE

    @pytest.mark.parametrize("return_path", [False, True])
    @pytest.mark.parametrize("uuid", [bytes(16), UUID])
    def test_somebody_elses_sender(self, receiver, tmp_path, return_path, uuid):
        """Several blocks, devices, a uuid that only the channels have."""
        out = tmp_path / "vm.ram"
        destination = receiver(out, format="mapped-ram")
        listed = [(name, len(data)) for name, data in RAM_BLOCKS]
        stream = peer.main_stream(listed, return_path=return_path, machine=b"pc-q35-9.0")
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["commands"] + stream["setup"])
            sockets = [sender.connect(peer.init(i, uuid=uuid) + peer.sync()) for i in range(2)]
            for turn, (name, data) in enumerate(RAM_BLOCKS):
                for at in range(0, len(data), PAGE):
                    if any(page := data[at : at + PAGE]):
                        sockets[(turn + at) // PAGE % 2].sendall(peer.packet([at], page, block=name))
            for sock in sockets:
                sock.sendall(peer.sync())
            main.sendall(stream["end"] + STATE)
            if return_path:
                answers = b""
                while len(answers) < 16:
                    answers += main.recv(16)
                assert answers == bytes.fromhex("0002 0004 00000001  0001 0004 00000000")
        destination.join()
        assert read_blocks(out) == EXPECTED
        assert state(out) == STATE
        found = capture.verify(out)
        assert (found.machine, found.uuid) == ("pc-q35-9.0", UUID_TEXT if any(uuid) else None)

    def test_raw_is_for_one_block(self, receiver, path, tmp_path):
        destination = receiver(tmp_path / "out", format="raw")
        with pytest.raises(multifd.errors.MultifdError):
            multifd.send(path, destination.uri)
        with pytest.raises(RamError, match=r"exactly one RAM block, the sender has 3: pc.ram"):
            destination.join()


class TestInfo:
    def test_fields(self, path):
        found = capture.info(path)
        assert (found.machine, found.page_size, found.uuid) == ("pc-q35-9.0", PAGE, UUID_TEXT)
        assert found.qemu_at_least == "9.0"
        assert [(b.idstr, b.used_length, b.zero_pages) for b in found.blocks][1:] == [
            ("pc.bios", 4 * PAGE, 1), ("empty", 2 * PAGE, 2),
        ]  # fmt: skip
        assert all((b.present_pages + b.zero_pages) * PAGE == b.used_length for b in found.blocks)
        assert found.device_state_bytes == len(STATE)
        assert found.devices == ("timer 0", "0000:00:02.0/vga 0")
        assert capture.verify(path) == found

    @pytest.mark.parametrize(
        ("machine", "more", "expected"),
        [
            (b"pc-i440fx-7.2", {}, "7.2"),
            (b"pc-i440fx-7.2", {"configuration": {}}, "8.2"),
            (b"my-board", {"configuration": {}}, "8.2"),
            (b"my-board", {}, None),
            (b"", {}, "2.3"),
            (b"pc-q35-10.0", {"configuration": {}}, "10.0"),
        ],
    )
    def test_release(self, tmp_path, machine, more, expected):
        (tmp_path / "f").write_bytes(build([(b"ram", b"x" * PAGE)], machine=machine, devices=b"\0" + vmdesc(**more)))
        assert capture.info(tmp_path / "f").qemu_at_least == expected

    @pytest.mark.parametrize("idstr", list(EXPECTED))
    def test_export(self, path, tmp_path, idstr):
        out = tmp_path / "raw"
        (found,) = export(path, out, idstr).blocks
        assert out.read_bytes() == EXPECTED[idstr]
        assert found in capture.info(path).blocks
        assert out.stat().st_blocks * 512 == found.present_pages * PAGE

    def test_export_refused(self, path, tmp_path):
        with pytest.raises(RamError, match=r"name one: pc.ram, pc.bios, empty"):
            export(path, tmp_path / "raw")
        with pytest.raises(RamError, match=r"no block 'ram', there are: pc.ram, pc.bios, empty"):
            export(path, tmp_path / "raw", "ram")
        assert [p.name for p in tmp_path.iterdir()] == ["vm.ram"]


class TestCommandLine:
    def test_json(self, cli, path, tmp_path):
        expected = json.loads(json.dumps(capture.info(path).as_dict()))
        assert cli("info", path, "--json").json() == expected
        verified = cli("verify", path, "--json").json()
        assert (verified.pop("checked")["digest"], expected.pop("checked")) == ("none", None)
        assert verified == expected
        block = cli("export", path, tmp_path / "raw", "--block", "pc.bios", "--json").json()
        assert block["blocks"] == [expected["blocks"][1]]
        assert (tmp_path / "raw").read_bytes() == EXPECTED["pc.bios"]

    def test_text(self, cli, path):
        out, err = cli("info", path).wait()
        for words in ("pc-q35-9.0", "9.0 or later", UUID_TEXT, "pc.bios", "timer 0"):
            assert words in out
        assert err == ""

    def test_errors(self, cli, path, tmp_path):
        path.write_bytes(path.read_bytes()[: 1 << 20])
        for command in (
            ["info", path],
            ["verify", path],
            ["export", path, tmp_path / "raw"],
            ["info", tmp_path / "no"],
        ):
            running = [cli(*command), cli(*command, "--json")]
            out, err = running[0].wait(6)
            assert out == ""
            assert err.startswith("multifd: error: ")
            assert err.count("\n") == 1
            document = running[1].json(6)
            assert document["status"] == "failed"
            assert document["error"] in err

    def test_send_and_receive(self, cli, path, tmp_path):
        destination = cli("receive", "tcp:127.0.0.1:0", tmp_path / "again", "--json")
        source = cli(
            "send", path, destination.listening(), "--channels", 3, "--method", "zlib", "--uuid", "0" * 32, "--json"
        )
        assert source.json()["status"] == destination.json()["status"] == "completed"
        assert capture.verify(tmp_path / "again").uuid is None
        assert read_blocks(tmp_path / "again") == EXPECTED

    def test_unknown_machine(self, cli, path):
        path.write_bytes(build(RAM_BLOCKS, machine=b"my-board", devices=STATE))
        _, err = cli("send", path, "tcp:127.0.0.1:1").wait(2)
        assert "--dialect" in err
        assert err.count("\n") == 1
