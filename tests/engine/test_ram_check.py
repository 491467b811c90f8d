"""Digests of stored streams' RAM: added by who decodes every page, and compared by who does it again."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import peer
import pytest
from conftest import make_image
from limits import file_size_limit

import multifd
from multifd import registry
from multifd.engine import ram_check, streams_info
from multifd.errors import MultifdError, RamError
from multifd.live.arena import Arena
from multifd.ram import manifest, mapped_source
from multifd.ram.amendment import Amendment
from multifd.ram.folder import StoredFolder, alone
from multifd.ram.manifest import Manifest
from multifd.ram.part_folder import PartFolder

PAGE = peer.PAGE
METHODS = ["none", "zlib", "zstd:level=3", "zstd:level=auto", "lz4", "qpl"]


@pytest.fixture(scope="module")
def raw() -> bytes:
    return make_image(700)


@pytest.fixture
def stored(tmp_path, raw) -> Path:
    (tmp_path / "vm.raw").write_bytes(raw)
    multifd.send(tmp_path / "vm.raw", f"dir:{tmp_path}/streams", "zstd")
    return tmp_path / "streams"


def store(path: Path, blocks: list[tuple[bytes, int]], *packets: bytes) -> Path:
    """Streams of packets that somebody else sent, on one channel."""
    folder = PartFolder(path)
    folder.file("main").write(b"".join(peer.main_stream(blocks).values()))
    folder.file("channel-0").write(peer.init(0) + peer.sync() + b"".join(packets) + peer.sync())
    folder.commit("none", PAGE)
    return path


def say(folder: Path, **changes: object) -> None:
    """Another manifest, that is sound in itself."""
    path = folder / manifest.NAME
    path.write_bytes(dataclasses.replace(Manifest.decode(path.read_bytes()), **changes).encode())


def digest_of(data: bytes) -> str:
    return sha256(data).hexdigest()


@pytest.mark.parametrize("method", METHODS)
def test_added_and_compared(tmp_path, raw, method):
    if method.partition(":")[0] not in registry.installed():
        pytest.skip(f"multifd-{method} is not installed")
    (tmp_path / "vm.raw").write_bytes(raw)
    multifd.send(tmp_path / "vm.raw", f"dir:{tmp_path}/streams", method, channels=3)
    before = streams_info.verify(tmp_path / "streams")
    assert (before.ram, before.checked) == (None, None)
    added = ram_check.verify(str(tmp_path / "streams"))
    assert added.ram == {"ram": digest_of(raw)}
    assert added.checked.digest == "added"
    assert streams_info.verify(tmp_path / "streams") == added == dataclasses.replace(before, ram=added.ram)
    kept = (tmp_path / "streams/manifest.json").read_bytes()
    progress = []
    again = ram_check.verify(str(tmp_path / "streams"), lambda *figures: progress.append(figures))
    assert again.checked.digest == "match"
    assert progress[-1][1] == len(raw)
    assert (tmp_path / "streams/manifest.json").read_bytes() == kept
    assert sorted(os.listdir(tmp_path)) == ["streams", "vm.raw"]
    assert multifd.receive(f"dir:{tmp_path}/streams", tmp_path / "back.raw", format="raw").status == "completed"


def test_pages_are_what_they_were_last(tmp_path):
    """A page that came with a payload and then as zeros is zeros, whatever the unpacked file keeps in its place."""
    first, second = b"\1" * PAGE, b"\2" * PAGE
    store(
        tmp_path / "streams", [(b"ram", 8 * PAGE), (b"rom", 2 * PAGE)],
        peer.packet([0, PAGE, 5 * PAGE], first * 3), peer.packet([PAGE], second), peer.packet([], zero=[0, 2 * PAGE]),
        peer.packet([0], first, block=b"rom"),
    )  # fmt: skip
    expected = {
        "ram": digest_of(bytes(PAGE) + second + bytes(3 * PAGE) + first + bytes(2 * PAGE)),
        "rom": digest_of(first + bytes(PAGE)),
    }
    assert ram_check.verify(str(tmp_path / "streams")).ram == expected
    assert list(streams_info.info(tmp_path / "streams").ram) == ["ram", "rom"]


def test_of_memory_that_was_written_while_it_was_sent(tmp_path):
    memory, rng = mmap.mmap(-1, 600 * PAGE), random.Random(1)

    def write():
        for page in range(0, 600, 3):
            memory[page * PAGE : page * PAGE + 64] = rng.choice((bytes(64), rng.randbytes(64)))

    write()
    live = multifd.Live(Arena({"ram": memory}), pause=write, resume=write, tracker="comparison")
    multifd.send(live, f"dir:{tmp_path}/streams", "zstd")
    assert ram_check.verify(str(tmp_path / "streams")).ram == {"ram": digest_of(memory[:])}


def squeeze(tmp_path: Path) -> Path:
    multifd.send(f"dir:{tmp_path}/streams", f"dir:{tmp_path}/squeezed", "zlib:level=1")
    return tmp_path / "squeezed"


def test_what_is_known_goes_along_and_is_compared_there(tmp_path):
    store(
        tmp_path / "streams", [(b"rom", 2 * PAGE), (b"ram", 4 * PAGE)],
        peer.packet([0, PAGE], b"\1" * 2 * PAGE, block=b"rom"), peer.packet([PAGE], b"\2" * PAGE),
    )  # fmt: skip
    known = ram_check.verify(str(tmp_path / "streams")).ram
    squeezed = squeeze(tmp_path)
    assert streams_info.verify(squeezed).ram == known
    assert ram_check.verify(str(squeezed)).checked.digest == "match"


def test_what_is_known_wrongly_is_found_there(tmp_path, stored):
    say(stored, ram={"ram": "0" * 64})
    with pytest.raises(RamError, match="squeezed: block ram decodes to another RAM"):
        ram_check.verify(str(squeeze(tmp_path)))


def test_more_than_a_manifest_takes_is_left_out(tmp_path, monkeypatch):
    store(tmp_path / "streams", [(b"ram", 2 * PAGE)], peer.packet([0], b"\1" * PAGE))
    known = ram_check.verify(str(tmp_path / "streams")).ram
    nbytes = (tmp_path / "streams/manifest.json").stat().st_size
    monkeypatch.setattr(manifest, "MOST_BYTES", nbytes)
    squeezed = squeeze(tmp_path)  # the method's name is longer
    assert (known is not None, streams_info.info(squeezed).ram) == (True, None)


@pytest.mark.parametrize("window", [1 << 8, 1 << 9, 1 << 20])
def test_pieces_are_all_of_a_block_in_order(tmp_path, raw, receiver, monkeypatch, window):
    monkeypatch.setattr(mapped_source, "_WINDOW", window)
    end = receiver(tmp_path / "vm.ram", format="mapped-ram")
    multifd.send(raw, end.uri)
    end.join()
    with contextlib.closing(mapped_source.MappedRamSource(tmp_path / "vm.ram")) as source:
        pieces = [bytes(piece) for piece in source.blocks[0].pieces()]
    assert b"".join(pieces) == raw
    assert {len(piece) for piece in pieces[:-1]} == {1 << 20}


# -- what does not match -----------------------------------------------------------------------------


def test_ram_that_is_another_is_named(stored, raw):
    """The files are as they were stored: what they decode to is not."""
    say(stored, ram={"ram": "0" * 64})
    kept = (stored / manifest.NAME).read_bytes()
    assert streams_info.verify(stored).ram == {"ram": "0" * 64}
    with pytest.raises(RamError, match=f"streams: block ram decodes to another RAM: .*{digest_of(raw)}, not 0000"):
        ram_check.verify(str(stored))
    assert (stored / manifest.NAME).read_bytes() == kept
    assert sorted(os.listdir(stored.parent)) == ["streams", "vm.raw"]


def test_the_first_block_that_differs_is_named(tmp_path):
    folder = store(tmp_path / "streams", [(b"a", PAGE), (b"b\n", PAGE), (b"c", PAGE)])
    say(folder, ram={"a": digest_of(bytes(PAGE)), "b\n": "1" * 64, "c": "2" * 64})
    with pytest.raises(RamError, match=r"block b\\n decodes to another RAM, and 1 more") as caught:
        ram_check.verify(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ram", [{}, {"rom": "0" * 64}, {"ram": "0" * 64, "rom": "0" * 64}])
def test_digests_of_other_blocks_than_there_are(stored, ram):
    say(stored, ram=ram)
    for look in (streams_info.info, streams_info.verify, ram_check.verify):
        with pytest.raises(RamError, match="other blocks of RAM than main has"):
            look(str(stored))


def test_damage_is_found_before_a_page_is_decoded(stored):
    data = bytearray((stored / "channel-1").read_bytes())
    data[len(data) // 2] ^= 1
    (stored / "channel-1").write_bytes(data)
    with pytest.raises(RamError, match="channel-1: damaged"):
        ram_check.verify(str(stored))


def test_what_does_not_decode_adds_nothing(tmp_path):
    folder = store(tmp_path / "streams", [(b"ram", 4 * PAGE)], peer.packet([0], b"no zlib", flags=2))
    with pytest.raises(MultifdError, match="zlib"):
        ram_check.verify(str(folder))
    assert streams_info.verify(folder).ram is None
    assert sorted(os.listdir(folder)) == ["channel-0", "main", "manifest.json"]
    assert os.listdir(tmp_path) == ["streams"]


# -- the manifest is replaced ------------------------------------------------------------------------


def test_who_may_read_it_still_may(stored):
    (stored / manifest.NAME).chmod(0o644)
    ram_check.verify(str(stored))
    assert (stored / manifest.NAME).stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_unpacked(stored, monkeypatch):
    """A folder in the way stands for one that is read-only: root may write everywhere."""
    (stored / ".manifest.json.multifd-part").mkdir()
    monkeypatch.setattr(ram_check.resend, "unpacked", None)
    with pytest.raises(RamError, match=r"streams: nothing can be added to its manifest: .*: cannot be made"):
        ram_check.verify(str(stored))


def test_where_digests_are_known_a_folder_need_not_be_written(stored):
    ram_check.verify(str(stored))
    (stored / ".manifest.json.multifd-part").mkdir()
    assert ram_check.verify(str(stored)).checked.digest == "match"


def test_a_full_disk_while_it_is_unpacked(stored):
    with file_size_limit(1 << 16), pytest.raises(RamError, match=r"File too large|cannot hold"):
        ram_check.verify(str(stored))
    assert streams_info.verify(stored).ram is None
    assert sorted(os.listdir(stored.parent)) == ["streams", "vm.raw"]


def test_a_full_disk_while_the_manifest_is_written(stored):
    kept = (stored / manifest.NAME).read_bytes()
    with contextlib.closing(StoredFolder(stored)) as folder:
        amendment = Amendment(folder)
        said = dataclasses.replace(folder.manifest, ram={"ram": "0" * 64})
        with file_size_limit(100), pytest.raises(RamError, match="cannot write"):
            amendment.commit(said)
        amendment.discard()
    assert (stored / manifest.NAME).read_bytes() == kept
    assert sorted(os.listdir(stored)) == ["channel-0", "channel-1", "main", "manifest.json"]


def test_a_manifest_does_not_grow_out_of_what_is_read(stored):
    with contextlib.closing(StoredFolder(stored)) as folder:
        amendment = Amendment(folder)
        said = dataclasses.replace(folder.manifest, ram={f"{i:0200}": "0" * 64 for i in range(1000)})
        with pytest.raises(RamError, match="at most 262144"):
            amendment.commit(said)
        amendment.discard()
    assert streams_info.verify(stored).ram is None


def test_readers_are_not_held_up_and_overlook_what_is_begun(stored):
    with contextlib.closing(StoredFolder(stored)) as folder, alone(stored):
        amendment = Amendment(folder)
        assert (stored / ".manifest.json.multifd-part").exists()
        assert streams_info.verify(stored).ram is None
        with pytest.raises(RamError, match="another process looks at its RAM"):
            ram_check.verify(str(stored))
        amendment.discard()
    assert ram_check.verify(str(stored)).checked.digest == "added"


def test_the_lock_goes_with_who_has_it(stored):
    with pytest.raises(BlockingIOError, match="not ours"), alone(stored):
        raise BlockingIOError("not ours")
    with alone(stored):
        pass


@pytest.mark.parametrize("name", ["missing", "vm.raw", "nul\0"])
def test_what_is_no_folder(stored, name):
    with pytest.raises(RamError, match="expected a folder of stored streams"):
        ram_check.verify(str(stored.parent / name))


DIES_AT_EVERY_STEP = """
import os, sys
from multifd.engine import ram_check

def counted(call):
    def step(*args, **kwargs):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), 9)
        return call(*args, **kwargs)
    return step

for name in ("fsync", "fchmod", "unlink", "replace"):
    setattr(os, name, counted(getattr(os, name)))
for left in range(1, 60):
    step = left
    if not (child := os.fork()):
        ram_check.verify(f"{sys.argv[1]}/{step}/streams")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(step)
        break
"""


def test_killed_at_any_step(tmp_path):
    """The folder is valid, with digests or without; the next one leaves nothing of what was begun."""
    data, steps = b"\1" * PAGE + bytes(PAGE), range(1, 60)
    for step in steps:
        (tmp_path / str(step)).mkdir()
        store(tmp_path / str(step) / "streams", [(b"ram", 2 * PAGE)], peer.packet([0], b"\1" * PAGE))
    done = subprocess.run(
        [sys.executable, "-c", DIES_AT_EVERY_STEP, tmp_path], capture_output=True, text=True, timeout=60
    )
    last = int(done.stdout)
    assert last > 5
    seen = set()
    for folder in [tmp_path / str(step) / "streams" for step in steps[:last]]:
        seen.add(streams_info.verify(folder).ram is None)
        assert ram_check.verify(str(folder)).ram == {"ram": digest_of(data)}
        assert os.listdir(folder.parent) == ["streams"]
        assert sorted(os.listdir(folder))[-3:] == ["channel-0", "main", "manifest.json"]
    assert seen == {True, False}


# -- the commands ------------------------------------------------------------------------------------


def test_the_commands(stored, raw, cli):
    place = f"dir:{stored}"
    assert "sound, digests of RAM added to its manifest" in cli("verify", "--ram", place).wait()[0]
    assert f"SHA-256 of block ram: {digest_of(raw)}" in cli("info", place).wait()[0]
    found = cli("verify", "--ram", place, "--json").json()
    assert (found["checked"]["digest"], found["ram"]) == ("match", {"ram": digest_of(raw)})
    say(stored, ram={"ram": "0" * 64})
    assert "block ram decodes to another RAM" in cli("verify", "--ram", place).wait(RamError.exit_code)[1]


def test_it_is_for_stored_streams(stored, cli):
    assert "multifd digest" in cli("verify", "--ram", stored.parent / "vm.raw").wait(2)[1]


def test_the_folder_that_one_is_in(stored, monkeypatch):
    monkeypatch.chdir(stored)
    assert ram_check.verify(".").checked.digest == "added"
    assert sorted(os.listdir(stored.parent)) == ["streams", "vm.raw"]
