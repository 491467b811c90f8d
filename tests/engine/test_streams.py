"""Streams in a folder, end to end: stored, given back, sent on as they are or otherwise, and never in part."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import random
import shutil
import socket
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import peer
import pytest
from conftest import DEADLINE_S, make_image
from ends import RelayThread
from limits import file_size_limit

import multifd
from multifd import registry
from multifd.engine import keeper, streams_info
from multifd.errors import (
    Cancelled,
    ChannelError,
    MultifdError,
    PeerFailed,
    PeerMismatch,
    RamError,
    StreamError,
    UsageError,
)
from multifd.live.arena import Arena
from multifd.ram.manifest import Manifest
from multifd.ram.part_folder import PartFolder

METHODS = ["none", "zlib", "zstd:level=3"]
DAMAGED = int(os.environ.get("MULTIFD_DAMAGED", "60"))
"""How many damaged copies are tried."""


@pytest.fixture(scope="module")
def raw() -> bytes:
    return make_image(2000)


@pytest.fixture
def file(tmp_path, raw):
    (tmp_path / "vm.raw").write_bytes(raw)
    return tmp_path / "vm.raw"


def back(folder: Path, out: Path) -> bytes:
    assert multifd.receive(f"dir:{folder}", out, format="raw").status == "completed"
    return out.read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("method", METHODS)
def test_there_and_back(tmp_path, file, raw, method):
    stored = multifd.send(file, f"dir:{tmp_path}/streams", method, channels=3)
    assert (stored.status, stored.channels) == ("completed", 3)
    found = streams_info.verify(tmp_path / "streams")
    assert (found.method, len(found.streams), found.blocks) == (method, 4, {"ram": len(raw)})
    assert (found.repeated_pages, found.stored_bytes) == (0, stored.transferred_bytes)
    assert sum(s.normal_pages for s in found.streams) == stored.normal_pages
    assert back(tmp_path / "streams", tmp_path / "back.raw") == raw
    assert sorted(os.listdir(tmp_path)) == ["back.raw", "streams", "vm.raw"]


def test_where_the_ends_of_a_folder_meet_is_in_no_file_system(tmp_path, file, monkeypatch):
    """So nobody else finds it, and whoever is killed leaves nothing where nobody looks."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    seen = []

    def look(result):
        seen.append(os.listdir(tmp_path / "tmp"))

    for source, to in ((file, "one"), (f"dir:{tmp_path}/one", "two")):
        multifd.send(source, f"dir:{tmp_path}/{to}", max_bandwidth=64 << 20, on_progress=look)
    multifd.receive(f"dir:{tmp_path}/two", tmp_path / "back", on_progress=look)
    assert seen
    assert not any(seen)


def test_a_long_way_to_the_place_for_the_ends_to_meet(tmp_path, file, monkeypatch):
    """A socket's path has 107 bytes."""
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/{'x' * 100}")
    multifd.send(file, f"dir:{tmp_path}/stored")
    assert (tmp_path / "stored" / "manifest.json").exists()


def test_without_a_place_for_the_ends_to_meet(tmp_path, file, monkeypatch):
    """It is said in a line, and what it is about: the folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/absent")
    with pytest.raises(RamError, match=r"no folder for temporary files.*TMPDIR"):
        multifd.send(file, f"dir:{tmp_path}/stored")
    assert not {p.name for p in tmp_path.iterdir()} & {"stored", ".stored.multifd-part"}


def test_a_sync_counts_when_its_payload_is_here(tmp_path, receiver):
    """Up to 8.2 a SYNC may carry pages, and a QEMU writes its main's sync point when they are out."""
    main = peer.main_stream([(b"ram", 128 * peer.PAGE)], per_section=True)
    pages = random.Random(1).randbytes(128 * peer.PAGE)
    options = {"format": "mapped-ram", "channels": 1, "timeout": DEADLINE_S}
    end = receiver(f"dir:{tmp_path}/streams", f"unix:{tmp_path}/socket", **options)
    with socket.socket(socket.AF_UNIX) as on_main, socket.socket(socket.AF_UNIX) as channel:
        for sock in (on_main, channel):
            sock.settimeout(DEADLINE_S / 4)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
            sock.connect(end.uri.removeprefix("unix:"))
        on_main.sendall(main["header"] + main["commands"] + main["setup"])
        channel.sendall(peer.init(0) + peer.sync())
        channel.sendall(peer.packet(range(0, 128 * peer.PAGE, peer.PAGE), pages, flags=1))
        on_main.sendall(main["end"] + main["eof"])
        channel.shutdown(socket.SHUT_WR)
        assert end.join().status == "completed"
    assert back(tmp_path / "streams", tmp_path / "back.raw") == pages


@pytest.mark.parametrize("method", ["lz4", "qpl"])
def test_by_a_plugins_method(tmp_path, file, raw, method):
    if method not in registry.installed():
        pytest.skip(f"multifd-{method} is not installed")
    multifd.send(file, f"dir:{tmp_path}/streams", method)
    assert back(tmp_path / "streams", tmp_path / "back.raw") == raw


@pytest.mark.parametrize("method", METHODS)
def test_files_are_what_goes_over_the_wire(tmp_path, file, receiver, method):
    """What a receiver over tcp gets of a folder, and keeps, is the folder."""
    multifd.send(file, f"dir:{tmp_path}/streams", method, channels=2)
    end = receiver(f"dir:{tmp_path}/again", format="mapped-ram")
    sent = multifd.send(f"dir:{tmp_path}/streams", end.uri)
    assert (sent.status, end.join().status) == ("completed", "completed")
    first, second = files(tmp_path / "streams"), files(tmp_path / "again")
    assert sent.transferred_bytes == sum(len(data) for name, data in first.items() if name != "manifest.json")
    for name in ("main", "channel-0", "channel-1"):
        assert first[name] == second[name]


def test_sent_by_another_method(tmp_path, file, raw, receiver):
    multifd.send(file, f"dir:{tmp_path}/streams", "zlib", channels=3)
    end = receiver(tmp_path / "back.raw", methods=["zstd"])
    progress = []
    sent = multifd.send(f"dir:{tmp_path}/streams", end.uri, "zstd", on_progress=progress.append)
    assert (sent.status, sent.method, end.join().method) == ("completed", "zstd", "zstd")
    assert (tmp_path / "back.raw").read_bytes() == raw


def test_what_was_sent_again_and_again_is_squeezed_out(tmp_path):
    """Memory that is written while it is sent has pages in its streams that no longer count."""
    memory, rng = mmap.mmap(-1, 256 * peer.PAGE), random.Random(1)

    def write():
        for page in range(0, 256, 2):
            memory[page * peer.PAGE : page * peer.PAGE + 64] = rng.randbytes(64)

    write()
    live = multifd.Live(Arena({"ram": memory}), pause=write, resume=write, tracker="comparison")
    result = multifd.send(live, f"dir:{tmp_path}/streams", "zstd")
    assert result.status == "completed"
    before = streams_info.info(tmp_path / "streams")
    assert before.repeated_pages == 128
    assert multifd.send(f"dir:{tmp_path}/streams", f"dir:{tmp_path}/squeezed", channels=1).status == "completed"
    after = streams_info.verify(tmp_path / "squeezed")
    assert (after.repeated_pages, after.method, len(after.streams)) == (0, "zstd", 2)
    assert after.stored_bytes < before.stored_bytes
    assert back(tmp_path / "squeezed", tmp_path / "a.raw") == back(tmp_path / "streams", tmp_path / "b.raw")
    assert (tmp_path / "a.raw").read_bytes() == memory[:]


def test_into_an_arena_and_a_buffer(tmp_path, file, raw):
    multifd.send(file, f"dir:{tmp_path}/streams", "zstd")
    buffer = bytearray(len(raw))
    multifd.receive(f"dir:{tmp_path}/streams", buffer)
    assert buffer == raw


def test_through_a_relay(tmp_path, file, raw):
    """A relay keeps what comes by the method that it was told, and plays what is kept."""
    relay = RelayThread(f"dir:{tmp_path}/streams", out_method="zstd:level=2")
    multifd.send(file, relay.uri)
    assert relay.join().status == "completed"
    assert streams_info.verify(tmp_path / "streams").method == "zstd:level=2"
    results = []
    multifd.api.relay(
        f"dir:{tmp_path}/streams", f"dir:{tmp_path}/plain", out_method="none", once=True, on_result=results.append
    )
    assert (results[0].in_method, results[0].status) == ("zstd", "completed")
    assert back(tmp_path / "plain", tmp_path / "back.raw") == raw


@pytest.mark.parametrize("count", [1, 3])
def test_through_a_relay_of_a_source_that_says_no_number_of_channels(tmp_path, count):
    """As every QEMU: stored streams know it; of others it must be told, and what is not kept is no success."""
    stored = PartFolder(tmp_path / "streams")
    main = b"".join(peer.main_stream([(b"ram", 64 * peer.PAGE)]).values())
    pages = [peer.packet([i * peer.PAGE], b"x" * peer.PAGE) for i in range(count)]
    channels = [peer.init(i) + peer.sync() + page + peer.sync() for i, page in enumerate(pages)]
    stored.file("main").write(main)
    for i, data in enumerate(channels):
        stored.file(f"channel-{i}").write(data)
    stored.commit("none", peer.PAGE)
    results = []
    multifd.api.relay(f"dir:{tmp_path}/streams", f"dir:{tmp_path}/out", once=True, on_result=results.append)
    assert [result.status for result in results] == ["completed"]
    assert streams_info.verify(tmp_path / "out").streams[1].normal_pages == 1

    relay = RelayThread(f"dir:{tmp_path}/kept", timeout=2)
    with peer.Peer(relay.uri) as source:
        source.connect(main)
        for data in channels:
            source.connect(data)
    with pytest.raises(MultifdError):
        relay.join()
    assert relay.results == []
    assert not (tmp_path / "kept").exists()


def test_a_method_that_is_not_installed_here_is_kept(tmp_path, receiver):
    """Nothing is decoded, so nothing need be known."""
    end = receiver(f"dir:{tmp_path}/streams", format="mapped-ram", channels=1)
    main = peer.main_stream([(b"ram", 64 * peer.PAGE)])
    sender = peer.Peer(end.uri)
    with contextlib.closing(sender):
        data = peer.init(0) + peer.sync() + peer.packet([0], b"secret", flags=0x20) + peer.sync()
        sender.connect(b"".join(main.values()))
        sender.connect(data)
        assert end.join().status == "completed"
    assert files(tmp_path / "streams")["channel-0"] == data
    assert files(tmp_path / "streams")["main"] == b"".join(main.values())


@pytest.mark.parametrize("extra", [0, 1])
def test_a_sync_that_nobody_waits_for_may_stay_unread(tmp_path, receiver, extra):
    """9.1 and 9.2 end each channel with one; what else a destination leaves unread is missing there."""
    end = receiver(f"dir:{tmp_path}/streams", format="mapped-ram", channels=1)
    main = b"".join(peer.main_stream([(b"ram", 64 * peer.PAGE)]).values())
    data = peer.init(0) + peer.sync() + peer.packet([0], bytes(4096)) + peer.sync()
    sender = peer.Peer(end.uri)
    with contextlib.closing(sender):
        sender.connect(main)
        sender.connect(data + peer.sync() * extra)
        end.join()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        listener.settimeout(DEADLINE_S)
        uri = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        sent = pool.submit(multifd.send, f"dir:{tmp_path}/streams", uri)
        mains, _ = listener.accept()
        channel, _ = listener.accept()
        with mains, channel:
            mains.settimeout(DEADLINE_S)
            got = b""
            while len(got) < len(main):
                got += mains.recv(len(main) - len(got))
            assert len(channel.recv(len(data) - 1344 * (1 - extra), socket.MSG_WAITALL))
            channel.close()  # a reset: something is unread
        if extra:
            assert sent.result(DEADLINE_S).status == "completed"
        else:
            with pytest.raises(PeerMismatch, match="closed channel 0 unread"):
                sent.result(DEADLINE_S)


# -- damage ------------------------------------------------------------------------------------------


def damage_a_digest(path: Path, rng: random.Random) -> str:
    """A manifest in which a file has another XXH3-128, sealed as if it were right."""
    said = Manifest.decode(path.read_bytes())
    name, entry = rng.choice(sorted(said.files.items()))
    digits = list(entry.xxh3)
    at = rng.randrange(32)
    digits[at] = rng.choice([c for c in "0123456789abcdef" if c != digits[at]])
    entry = dataclasses.replace(entry, xxh3="".join(digits))
    path.write_bytes(dataclasses.replace(said, files={**said.files, name: entry}).encode())
    return name


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one file in one way; what an error has to name."""
    name = rng.choice(sorted(os.listdir(folder)))
    path = folder / name
    data = bytearray(path.read_bytes())
    match rng.randrange(7):
        case 0:
            path.unlink()
        case 1:
            os.truncate(path, rng.randrange(len(data)))
        case 2:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
        case 3:
            start = rng.randrange(len(data))
            data[start : start + 4096] = bytes(len(data[start : start + 4096]))
            if path.read_bytes() == data:
                return damage(folder, rng)
            path.write_bytes(data)
        case 4:
            other = rng.choice([n for n in sorted(os.listdir(folder)) if n != name])
            (folder / other).rename(folder / "swap")
            path.rename(folder / other)
            (folder / "swap").rename(path)
            return "(" + "|".join(sorted((name, other))) + ")"
        case 5:
            return damage_a_digest(folder / "manifest.json", rng)
        case _:
            name = f"channel-{rng.randrange(2, 300)}"
            (folder / name).write_bytes(bytes(data))
    return name


def test_damaged_copies_are_refused_by_name(tmp_path, file):
    """Whatever is wrong is said before a byte is sent: nobody listens where this would connect."""
    multifd.send(file, f"dir:{tmp_path}/streams", "zstd", channels=2)
    rng = random.Random(os.environ.get("MULTIFD_DAMAGED_SEED", "1"))
    for number in range(DAMAGED):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "streams", copy)
        name = damage(copy, rng)
        with pytest.raises(RamError, match=f"copy-{number}/{name}: "):
            multifd.send(f"dir:{copy}", f"unix:{tmp_path}/nobody", connect_timeout=0.001)
        shutil.rmtree(copy)


# -- faults ------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_nothing(tmp_path, file):
    with file_size_limit(1 << 20), pytest.raises(RamError, match=r"cannot write .*File too large") as caught:
        multifd.send(file, f"dir:{tmp_path}/streams", "none")
    assert caught.value.result.status == "failed"
    assert "the good copy" in "".join(caught.value.__notes__)
    assert os.listdir(tmp_path) == ["vm.raw"]


def test_a_full_disk_while_it_is_unpacked(tmp_path, file):
    multifd.send(file, f"dir:{tmp_path}/streams", "zstd")
    with file_size_limit(1 << 20), pytest.raises(RamError, match=r"File too large|cannot hold"):
        multifd.send(f"dir:{tmp_path}/streams", f"dir:{tmp_path}/squeezed")
    assert sorted(os.listdir(tmp_path)) == ["streams", "vm.raw"]


def test_a_source_that_breaks_off_leaves_nothing(tmp_path, receiver):
    end = receiver(f"dir:{tmp_path}/streams", format="mapped-ram", channels=1)
    sender = peer.Peer(end.uri)
    with contextlib.closing(sender):
        main = peer.main_stream([(b"ram", 64 * peer.PAGE)])
        sender.connect(main["header"] + main["setup"])
        sender.connect(peer.init(0) + peer.sync() + peer.packet([0], b"x" * 4096)[:2000])
    with pytest.raises(ChannelError):
        end.join()
    assert os.listdir(tmp_path) == []


def test_main_that_never_says_its_blocks_is_let_go(tmp_path, receiver, monkeypatch):
    """It is held in memory until then, so there is a bound."""
    monkeypatch.setattr(keeper, "_MOST_START", 1 << 12)
    end = receiver(f"dir:{tmp_path}/streams", format="mapped-ram", channels=1)
    sender = peer.Peer(end.uri)
    with contextlib.closing(sender):
        main = sender.connect(peer.main_stream([])["header"])
        command = struct.pack(">BHH", 8, 1, 0)
        with contextlib.suppress(ConnectionError):
            main.sendall(command * (1 << 12))
        with pytest.raises(StreamError, match="no list of RAM blocks within 4096 bytes"):
            end.join()
    assert os.listdir(tmp_path) == []


def test_a_channel_that_lacks_a_sync_is_not_kept(tmp_path, receiver):
    end = receiver(f"dir:{tmp_path}/streams", format="mapped-ram", channels=1)
    sender = peer.Peer(end.uri)
    with contextlib.closing(sender):
        sender.connect(b"".join(peer.main_stream([(b"ram", 64 * peer.PAGE)]).values()))
        sender.connect(peer.init(0) + peer.sync() + peer.packet([0], bytes(4096))).shutdown(1)
        with pytest.raises(ChannelError, match="pages after the last sync point"):
            end.join()
    assert os.listdir(tmp_path) == []


def test_cancelled_it_leaves_nothing(tmp_path, file):
    canceller = multifd.Canceller()
    with pytest.raises(Cancelled):
        multifd.send(
            file, f"dir:{tmp_path}/streams", "zstd:level=19", canceller=canceller,
            on_progress=lambda _: canceller.cancel(),
        )  # fmt: skip
    assert os.listdir(tmp_path) == ["vm.raw"]


def test_an_interrupt_leaves_nothing(tmp_path, file):
    def interrupt(_result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        multifd.send(file, f"dir:{tmp_path}/streams", "zstd:level=19", on_progress=interrupt)
    assert os.listdir(tmp_path) == ["vm.raw"]


def test_a_destination_that_fails_is_told(tmp_path, file, receiver):
    multifd.send(file, f"dir:{tmp_path}/streams", "zstd", channels=3)
    end = receiver(bytearray(4096))
    with pytest.raises(PeerFailed) as caught:
        multifd.send(f"dir:{tmp_path}/streams", end.uri)
    assert caught.value.result.status == "failed"
    assert "good copy" in "".join(caught.value.__notes__)
    with pytest.raises(RamError):
        end.join()


def test_nobody_listens(tmp_path, file):
    multifd.send(file, f"dir:{tmp_path}/streams", "zstd")
    with pytest.raises(ChannelError, match="cannot connect"):
        multifd.send(f"dir:{tmp_path}/streams", f"unix:{tmp_path}/nobody", connect_timeout=0.05)


def test_what_cannot_be_decoded_is_told_by_who_decodes(tmp_path, receiver):
    end = receiver(f"dir:{tmp_path}/streams", format="mapped-ram", channels=1)
    sender = peer.Peer(end.uri)
    with contextlib.closing(sender):
        sender.connect(b"".join(peer.main_stream([(b"ram", 64 * peer.PAGE)]).values()))
        sender.connect(peer.init(0) + peer.sync() + peer.packet([0], b"no zlib", flags=2) + peer.sync())
        end.join()
    with pytest.raises(MultifdError, match="zlib") as caught:
        multifd.receive(f"dir:{tmp_path}/streams", tmp_path / "out.raw", format="raw")
    assert not isinstance(caught.value, ChannelError | PeerFailed)
    assert os.listdir(tmp_path) == ["streams"]


@pytest.mark.parametrize(
    ("call", "setting"),
    [
        (lambda d: multifd.send(f"dir:{d}/streams", "tcp:127.0.0.1:1", channels=4), "channels"),
        (lambda d: multifd.send(f"dir:{d}/streams", "tcp:127.0.0.1:1", dialect="9.0"), "dialect"),
        (lambda d: multifd.send(f"dir:{d}/streams", "tcp:127.0.0.1:1", uuid="0" * 32), "uuid"),
        (lambda d: multifd.send(f"dir:{d}/streams", "tcp:127.0.0.1:1", multifd.load_method("none")), "method"),
        (lambda d: multifd.receive("tcp:127.0.0.1:0", f"dir:{d}/x", format="raw"), "format"),
        (lambda d: multifd.api.relay("tcp:127.0.0.1:0", f"dir:{d}/x"), "once"),
        (lambda d: multifd.receive("dir:", bytearray(4096)), ""),
    ],
)
def test_arguments_that_cannot_be_meant(tmp_path, file, call, setting):
    multifd.send(file, f"dir:{tmp_path}/streams", "zstd")
    with pytest.raises(UsageError) as caught:
        call(tmp_path)
    assert caught.value.setting == setting
    assert sorted(os.listdir(tmp_path)) == ["streams", "vm.raw"]


# -- the commands ------------------------------------------------------------------------------------


def test_the_commands(tmp_path, file, raw, cli):
    streams = f"dir:{tmp_path}/streams"
    assert cli("send", file, streams, "--method", "zstd:level=5", "--channels", 4, "--json").json()["channels"] == 4
    found = cli("verify", streams, "--json").json()
    assert (found["format"], found["method"], len(found["streams"])) == ("streams", "zstd:level=5", 5)
    said = cli("info", streams).wait()[0]
    assert "method: zstd:level=5" in said
    assert "channel-3" in said
    assert cli("receive", streams, tmp_path / "back.raw", "--format", "raw", "--json").json()["status"] == "completed"
    assert (tmp_path / "back.raw").read_bytes() == raw
    cli("export", streams, tmp_path / "exported.raw").wait()
    assert (tmp_path / "exported.raw").read_bytes() == raw
    os.truncate(tmp_path / "streams/channel-2", 7)
    assert "channel-2: 7 bytes, the manifest says" in cli("verify", streams).wait(RamError.exit_code)[1]
    document = json.loads((tmp_path / "streams/manifest.json").read_text())
    assert document["multifd_streams"]["writer"] == f"multifd {multifd.__version__}"
