"""Folders of stored streams: nothing but what was written is read, and nothing shows before it is complete."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import file_size_limit

from multifd.errors import RamError
from multifd.ram.folder import StoredFolder
from multifd.ram.manifest import FileEntry, Manifest
from multifd.ram.part_folder import PartFolder

MANIFEST = Manifest(
    "multifd 1", "zstd:level=9", 4096, {n: FileEntry(5, "0" * 64, 1, 2) for n in ("main", "channel-0", "channel-1")}
)
WITH_RAM = replace(MANIFEST, ram={"pc.ram": "ab" * 32, "0000:00:02.0/vga.vram": "0" * 64})


def keep(path: Path, channels: int = 2) -> PartFolder:
    folder = PartFolder(path)
    for name in ("main", *(f"channel-{i}" for i in range(channels))):
        folder.file(name).write(name.encode() * 1000)
    return folder


def check(path: Path) -> None:
    folder = StoredFolder(path)
    try:
        for one in folder.streams:
            one.check(lambda: None)
    finally:
        folder.close()


@pytest.fixture
def stored(tmp_path):
    keep(tmp_path / "stored").commit("none", 4096)
    return tmp_path / "stored"


def test_what_was_written_is_read(stored):
    folder = StoredFolder(stored)
    view = memoryview(bytearray(1 << 20))
    assert view[: folder.channels[1].read(view, 0)] == b"channel-1" * 1000
    assert folder.channels[1].read(view, 9000) == 0
    assert (folder.manifest.method, folder.manifest.page_size, folder.nbytes) == ("none", 4096, 22000)
    folder.close()
    check(stored)
    assert sorted(os.listdir(stored.parent)) == ["stored"]
    assert stored.stat().st_mode & 0o777 == 0o700


def test_a_channel_on_another_disk(stored, tmp_path):
    """A link to it serves as well: files may be moved once they are there."""
    os.rename(stored / "channel-0", tmp_path / "elsewhere")
    (stored / "channel-0").symlink_to(tmp_path / "elsewhere")
    check(stored)


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def grow(path):
    with path.open("ab") as file:
        file.write(b"x")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["main", "channel-0", "channel-1", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, grow, flip, replace_by_pipe, os.unlink])
def test_damage_is_named(stored, name, damage):
    damage(stored / name)
    with pytest.raises(RamError, match=f"{name}: "):
        check(stored)


def test_swapped_files_are_named(stored):
    data = [(stored / f"channel-{i}").read_bytes() for i in range(2)]
    for i in range(2):
        (stored / f"channel-{1 - i}").write_bytes(data[i])
    with pytest.raises(RamError, match=r"channel-0: damaged"):
        check(stored)


def test_what_does_not_belong_there_is_named(stored):
    (stored / "channel-2").write_bytes(b"")
    with pytest.raises(RamError, match=r"channel-2: not in the manifest"):
        StoredFolder(stored)


def test_a_manifest_that_was_begun_is_overlooked(stored):
    (stored / ".manifest.json.multifd-part").write_bytes(b"half")
    check(stored)


def test_no_folder_of_streams(tmp_path):
    for path in (tmp_path, tmp_path / "missing", Path(__file__)):
        with pytest.raises(RamError, match="expected a folder of stored streams"):
            StoredFolder(path)


@given(st.sampled_from([MANIFEST, WITH_RAM]), st.integers(0))
def test_any_flipped_bit_of_a_manifest_shows(said, bit):
    data = bytearray(said.encode())
    assert Manifest.decode(bytes(data)) == said
    bit %= 8 * len(data)
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(RamError):
        Manifest.decode(bytes(data))


@given(st.none() | st.dictionaries(
    st.text(st.characters(max_codepoint=127), min_size=1, max_size=255),
    st.binary(min_size=32, max_size=32).map(bytes.hex),
))  # fmt: skip
def test_digests_of_ram_are_read_as_they_were_written(ram):
    said = replace(MANIFEST, ram=ram)
    found = Manifest.decode(said.encode())
    assert found == said
    assert found.ram is None if ram is None else list(found.ram) == list(ram)
    assert (b'"ram"' in said.encode()) == (ram is not None)


@pytest.mark.parametrize(
    ("ram", "match"),
    [
        (None, "'ram' has no digests"),
        ([], "'ram' has no digests"),
        ("0" * 64, "'ram' has no digests"),
        ({f"{i}": "0" * 64 for i in range(65537)}, "at most 65536 blocks"),
        ({"": "0" * 64}, "1 to 255 ASCII"),
        ({"x" * 256: "0" * 64}, "1 to 255 ASCII"),
        ({"\u00e9": "0" * 64}, "1 to 255 ASCII"),
        ({"pc.ram": "0" * 63}, "64 hexadecimal"),
        ({"pc.ram": "0" * 64 + "\n"}, "64 hexadecimal"),
        ({"pc.ram": "A" * 64}, "64 hexadecimal"),
        ({"pc.ram": None}, "64 hexadecimal"),
        ({"pc.ram": 1}, "64 hexadecimal"),
    ],
)
def test_digests_of_ram_that_cannot_be(ram, match):
    document = json.loads(MANIFEST.encode())
    document["multifd_streams"]["ram"] = ram
    with pytest.raises(RamError, match=match):
        Manifest.decode(json.dumps(document, indent=1).encode() + b"\n")


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(
        st.sampled_from(["multifd_streams", "version", "files", "channels", "main", "channel-0", "bytes"]), some
    ),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(RamError):
        Manifest.decode(data)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda body: body.update(version=2), "version 2"),
        (lambda body: body.update(channels=0), "'files'"),
        (lambda body: body.update(channels=300), "0 to 255"),
        (lambda body: body.update(page_size=5), "'page_size'"),
        (lambda body: body["files"].update({"../main": body["files"].pop("main")}), "'files'"),
        (lambda body: body["files"].pop("channel-1"), "'files'"),
        (lambda body: body["files"]["main"].update(bytes=-1), "'bytes'"),
        (lambda body: body["files"]["main"].update(bytes=True), "'bytes'"),
        (lambda body: body["files"].update(main=[]), "'main'"),
        (lambda body: body.update(method="x" * 2000), "'method'"),
        (lambda body: body.update(method="none"), "its own digest"),
        (lambda body: body.update(more=1), "its own digest"),
        (lambda body: body.update(ram={"pc.ram": "0" * 64}), "its own digest"),
    ],
)
def test_a_manifest_that_somebody_made(change, match):
    document = json.loads(MANIFEST.encode())
    change(document["multifd_streams"])
    with pytest.raises(RamError, match=match):
        Manifest.decode(json.dumps(document, indent=1).encode() + b"\n")


def test_what_is_discarded_leaves_nothing(tmp_path):
    folder = keep(tmp_path / "stored")
    assert os.listdir(tmp_path) == [".stored.multifd-part"]
    folder.discard()
    folder.discard()
    assert os.listdir(tmp_path) == []
    with pytest.raises(RamError, match="discarded"):
        folder.commit("none", 4096)
    with pytest.raises(RamError, match="discarded"):
        folder.file("main")


def test_a_killed_process_leaves_nothing_in_the_way(tmp_path):
    (tmp_path / ".stored.multifd-part").mkdir()
    (tmp_path / ".stored.multifd-part/channel-7").write_bytes(b"half")
    (tmp_path / ".stored.multifd-ram").write_bytes(b"what it had unpacked")
    (tmp_path / "..stored.multifd-ram.multifd-part").write_bytes(b"or was about to")
    keep(tmp_path / "stored").commit("none", 4096)
    check(tmp_path / "stored")
    assert os.listdir(tmp_path) == ["stored"]


def test_one_at_a_time(tmp_path):
    folder = keep(tmp_path / "stored")
    with pytest.raises(RamError, match="another process"):
        PartFolder(tmp_path / "stored")
    folder.discard()


def test_nothing_is_replaced(stored, tmp_path):
    with pytest.raises(RamError, match="exists"):
        PartFolder(stored)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RamError, match="exists"):
        PartFolder(tmp_path / "file")
    folder = keep(tmp_path / "late")
    (tmp_path / "late").mkdir()
    (tmp_path / "late/mine").write_bytes(b"")
    with pytest.raises(RamError, match="cannot be completed"):
        folder.commit("none", 4096)
    folder.discard()
    assert os.listdir(tmp_path / "late") == ["mine"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "stored").mkdir()
    keep(tmp_path / "stored").commit("none", 4096)
    check(tmp_path / "stored")


def test_a_full_disk_is_named(tmp_path):
    folder = PartFolder(tmp_path / "stored")
    with file_size_limit(10_000), pytest.raises(RamError, match=r"stored/main: cannot write 5000 bytes at 10000"):
        folder.file("main").write(bytes(15_000))
    folder.discard()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("path", ["", ".", "..", "missing/stored", "nul\0"])
def test_places_that_cannot_be(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RamError):
        PartFolder(path)
