"""What real QEMUs sent, recorded: into the readers, and over loopback into the receiver. See recorded/README.md."""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import peer
import pytest
from interop.mapped import read_blocks
from recordings import load

import multifd
from multifd.errors import MultifdError, RamError, RemoteWireError, StreamError
from multifd.pages import Geometry
from multifd.ram import capture
from multifd.wire.packet import InitPacket, decode_packet, header_bytes
from multifd.wire.reader import MainStreamReader
from multifd.wire.stream import DeviceState, Machine, Ping, StreamEnd, SyncPoint, ZeroPages

STREAMS = ["7.2-pc-zlib", "10.0-q35-zstd", "10.0-old-type-zlib", "10.0-bare-none"]
FILE = "10.0-mapped-ram"
PAGE = 4096


def events(data: bytes, step: int) -> tuple[list[object], bytes]:
    """What a reader says: all but zero pages and device state as it comes, those as counts and bytes."""
    reader, out, zeros, state = MainStreamReader(), [], 0, b""
    for at in range(0, len(data), step):
        for event in reader.feed(data[at : at + step]):
            if isinstance(event, ZeroPages):
                zeros += len(event.offsets)
            elif isinstance(event, DeviceState):
                state += event.data
            else:
                out.append(event)
    reader.end()
    return [*out, zeros], state


class Header(NamedTuple):
    flags: int
    normal: int
    size: int
    zero: int


def headers(data: bytes) -> list[Header]:
    """Of a channel, by struct alone; up to 8.1 the size of a packet without pages is stale."""
    found, at = [], 64
    while at < len(data):
        _, _, flags, _, normal, size, _, zero = struct.unpack_from(">IIIIIIQI", data, at)
        found.append(Header(flags, normal, size, zero))
        at += 1344 + (size if normal else 0)
    assert at == len(data)
    return found


def replay(name: str, uri: str, damaged: dict[int, bytes] | None = None) -> None:
    """Send a recording's bytes, connections in their order; `damaged` replaces some."""
    recording = load(name)
    with peer.Peer(uri) as sender, contextlib.suppress(OSError):
        sockets = [sender.connect() for _ in recording.connections]
        data = [(damaged or {}).get(i, c) for i, c in enumerate(recording.connections)]
        # Whoever waits for the other is never the one we stand at: a little of each in turn.
        step, left = 1 << 13, dict(enumerate(data))
        while left:
            for i, rest in list(left.items()):
                sockets[i].sendall(rest[:step])
                left[i] = rest[step:]
                if not left[i]:
                    del left[i]
        if not recording.head["return_path"]:
            for sock in sockets:
                sock.shutdown(socket.SHUT_WR)
        # PONG and SHUT, or the end when the receiver is through.
        answers, main = b"", sockets[recording.connections.index(recording.main)]
        while len(answers) < 16 and (got := main.recv(16)):
            answers += got


def check_blocks(path: Path, name: str) -> None:
    """RAM and BIOS are the source's; nothing else holds anything, so no firmware is in the recording."""
    known = load(name).head["blocks"]
    found = read_blocks(path)
    for idstr, data in found.items():
        if idstr in known:
            assert hashlib.sha256(data).hexdigest() == known[idstr], idstr
        else:
            assert not any(data), idstr
    assert known.keys() <= found.keys()


class TestReaders:
    @pytest.mark.parametrize("name", STREAMS)
    def test_byte_by_byte_is_at_once(self, name):
        main = load(name).main
        whole, state = events(main, len(main))
        assert events(main, 1) == (whole, state)
        machine = next(e for e in whole if isinstance(e, Machine))
        assert machine.name == load(name).head["machine"]
        assert load(name).head["blocks"].keys() <= {b.idstr for b in machine.blocks}
        assert whole[-2] == StreamEnd()
        assert main.endswith(state)
        assert (Ping(1) in whole) == load(name).head["return_path"]

    @pytest.mark.parametrize("name", STREAMS)
    def test_every_sync_point_has_its_syncs(self, name):
        found, _ = events(load(name).main, 1 << 20)
        assert len(load(name).channels) == load(name).head["channels"]
        for channel in load(name).channels:
            assert sum(h.flags & 1 for h in headers(channel)) == found.count(SyncPoint()) >= 3

    @pytest.mark.parametrize("name", STREAMS)
    def test_packets(self, name):
        """The decoder's view is the plain one; every page is either on main or on a channel."""
        found, _ = events(load(name).main, 1 << 20)
        machine = next(e for e in found if isinstance(e, Machine))
        lengths = {b.idstr: b.used_length for b in machine.blocks}
        pages, ids = found[-1], set()
        for channel in load(name).channels:
            ids.add(InitPacket.decode(channel[:64]).id)
            at = 64
            for header in headers(channel):
                packet = decode_packet(bytearray(channel[at : at + 1344]), Geometry.of(PAGE), lengths)
                assert (len(packet.normal), len(packet.zero)) == (header.normal, header.zero)
                assert packet.is_sync == bool(header.flags & 1)
                assert packet.next_packet_size == (header.size if header.normal else 0)
                pages += header.normal + header.zero
                at += header_bytes(Geometry.of(PAGE)) + packet.next_packet_size
        assert ids == set(range(load(name).head["channels"]))
        assert pages == sum(lengths.values()) // PAGE

    def test_what_is_special_in_them(self):
        """Else they would not test what they are kept for."""
        old = [h for c in load("7.2-pc-zlib").channels for h in headers(c)]
        assert any(h.flags & 1 and h.normal for h in old)  # SYNC rides on data
        assert any(not h.normal and h.size for h in old)  # stale
        assert any(not h.flags & 1 and not h.normal for h in old)  # neither SYNC nor pages
        new = [h for c in load("10.0-q35-zstd").channels for h in headers(c)]
        assert any(h.zero for h in new)
        assert any(h.zero and not h.normal for h in new)
        assert not any(h.flags & 1 and (h.normal or h.zero) for h in new)
        assert struct.pack(">BHH", 8, 11, 0) in load("10.0-q35-zstd").main  # SWITCHOVER_START
        for name in STREAMS:
            is_legacy = "7.2" in load(name).head["machine"]
            assert (events(load(name).main, 1 << 20)[0][-1] > 0) == is_legacy  # zero pages on main


class TestDamage:
    """Of what is on main before the devices, and of packet headers: an error of ours, or the same shape."""

    @pytest.mark.parametrize("name", STREAMS)
    def test_truncated(self, name):
        main = load(name).main
        rng = random.Random(name)
        cuts = [*range(min(1200, len(main))), *(rng.randrange(len(main)) for _ in range(300))]
        for cut in cuts:
            if cut != main.rindex(b"\0\x06") + 1:  # all but the vmdesc is a stream
                with pytest.raises(StreamError):
                    events(main[:cut], 1 << 16)

    @pytest.mark.parametrize("name", STREAMS)
    def test_bits(self, name):
        main = load(name).main
        ram, rng = len(main) - len(events(main, len(main))[1]), random.Random(name)
        refused = 0
        for _ in range(400):
            data, bit = bytearray(main), rng.randrange(8 * ram)
            data[bit // 8] ^= 1 << bit % 8
            outcomes = []
            for step in (1 << 16, 97):
                try:
                    found, state = events(bytes(data), step)
                except StreamError as e:
                    outcomes.append(str(e))
                else:
                    outcomes.append((len(found), len(state)))
            assert outcomes[0] == outcomes[1]
            refused += isinstance(outcomes[0], str)
        assert refused > 40

    @pytest.mark.parametrize("name", STREAMS)
    def test_bits_of_packets(self, name):
        found, _ = events(load(name).main, 1 << 20)
        lengths = {b.idstr: b.used_length for e in found if isinstance(e, Machine) for b in e.blocks}
        rng, refused = random.Random(name), 0
        for _ in range(1500):
            header = bytearray(load(name).channels[0][64 : 64 + 1344])
            bit = rng.randrange(8 * len(header))
            header[bit // 8] ^= 1 << bit % 8
            try:
                packet = decode_packet(header, Geometry.of(PAGE), lengths)
            except RemoteWireError:
                refused += 1
            else:
                assert len(packet.normal) + len(packet.zero) <= 128
                assert all(0 <= o <= lengths[packet.ramblock] - PAGE for o in [*packet.normal, *packet.zero])
        assert refused > 20


class TestReceiver:
    @pytest.mark.parametrize("name", STREAMS)
    def test_capture(self, receiver, tmp_path, name):
        out = tmp_path / "vm.ram"
        destination = receiver(out, format="mapped-ram", channels=load(name).head["channels"])
        replay(name, destination.uri)
        result = destination.join()
        check_blocks(out, name)
        _, state = events(load(name).main, 1 << 20)
        if len(state) > 1:  # else it gets a vmdesc, for QEMU waits for one
            assert out.read_bytes().endswith(state)
        found = capture.verify(out)
        assert found.machine == load(name).head["machine"]
        assert result.normal_pages + result.zero_pages == sum(b.used_length for b in found.blocks) // PAGE
        assert "timer 0" in found.devices
        assert (len(found.devices) > 20) == (found.machine != "none")
        assert result.status == "completed"

    @pytest.mark.parametrize("name", ["7.2-pc-zlib", "10.0-q35-zstd"])
    def test_damaged(self, receiver, tmp_path, name):
        """An error of ours or a capture of the same shape, within the timeout; nothing is left of a failure."""
        connections, rng = load(name).connections, random.Random(name)
        for i in range(4):
            which = rng.randrange(len(connections))
            data = bytearray(connections[which])
            if i % 2:
                del data[rng.randrange(5, len(data) - 100) :]
            else:
                data[rng.randrange(4, 2000)] ^= 1 << rng.randrange(8)
            out = tmp_path / str(i) / "vm.ram"
            out.parent.mkdir()
            destination = receiver(out, format="mapped-ram", channels=load(name).head["channels"], timeout=1)
            replay(name, destination.uri, {which: bytes(data)})
            try:
                destination.join()
            except MultifdError:
                assert list(out.parent.iterdir()) == []
            else:
                capture.verify(out)


class TestFile:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "qemu.file"
        path.write_bytes(load(FILE).connections[0])
        return path

    def test_what_qemu_wrote(self, path):
        check_blocks(path, FILE)
        found = capture.verify(path)
        assert (found.machine, found.qemu_at_least, found.uuid) == ("pc-q35-10.0", "10.0", None)
        assert "timer 0" in found.devices
        blocks = read_blocks(path)
        assert [b.idstr for b in found.blocks] == list(blocks)
        for block in found.blocks:
            data = blocks[block.idstr]
            pages = [data[at : at + PAGE] for at in range(0, len(data), PAGE)]
            assert block.zero_pages == sum(not any(p) for p in pages)

    def test_replayed(self, receiver, path, tmp_path):
        out = tmp_path / "again"
        destination = receiver(out, format="mapped-ram")
        multifd.send(path, destination.uri, "zlib")
        destination.join()
        assert read_blocks(out) == read_blocks(path)
        with path.open("rb") as a, out.open("rb") as b:
            a.seek(-capture.info(path).device_state_bytes, 2)
            b.seek(-capture.info(out).device_state_bytes, 2)
            assert a.read() == b.read()

    def test_truncated(self, path):
        data = path.read_bytes()
        rng = random.Random(1)
        for cut in sorted(rng.randrange(len(data)) for _ in range(60))[::-1]:
            path.write_bytes(data[:cut])
            with pytest.raises(RamError):
                capture.verify(path)
