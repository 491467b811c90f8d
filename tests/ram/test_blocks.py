"""RAM images: what is written where, and what remains when it cannot be."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_image
from limits import file_size_limit

from multifd.errors import RamError
from multifd.pages import Geometry
from multifd.ram.block import Staging, private_map
from multifd.ram.memory import MemoryBlock, MemorySource, MemoryTarget
from multifd.ram.part_file import PartFile
from multifd.ram.raw import RawImageSource, RawImageTarget
from multifd.wire.stream import NO_UUID, Block, Machine

PAGE = 4096
IMAGE = make_image(64)


def machine(*blocks: Block) -> Machine:
    return Machine("none", PAGE, blocks)


RAM = machine(Block("ram", len(IMAGE)))


def offsets(*indexes: int) -> np.ndarray:
    return np.array(indexes, np.int64) * PAGE


@pytest.fixture
def staging() -> Staging:
    return Staging(Geometry.of(PAGE))


def fill(target: Any, indexes: list[int], staging: Staging, data: bytes = IMAGE) -> None:
    pages = target.place(offsets(*indexes), staging)
    pages.scatter(b"".join(data[i * PAGE : (i + 1) * PAGE] for i in indexes))
    target.store(offsets(*indexes), staging)


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("indexes", [[0], list(range(64)), [3, 4, 5, 9, 20, 21], [63]])
def test_file_gives_its_bytes(tmp_path: Path, staging: Staging, indexes: list[int]) -> None:
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    with contextlib.closing(RawImageSource(path)) as source:
        assert source.blocks[0].used_length == len(IMAGE)
        pages = source.blocks[0].load(offsets(*indexes), staging)
        assert pages is not None
        assert b"".join(pages) == b"".join(IMAGE[i * PAGE : (i + 1) * PAGE] for i in indexes)


def test_holes_are_not_read(tmp_path: Path, staging: Staging) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 36)  # 64 GiB
        file.seek(1 << 30)
        file.write(b"x" * PAGE)
    with contextlib.closing(RawImageSource(path)) as source:
        at = (1 << 30) // PAGE
        assert source.blocks[0].load(offsets(*range(128)), staging) is None
        assert source.blocks[0].load(offsets((1 << 36) // PAGE - 1), staging) is None
        pages = source.blocks[0].load(offsets(at - 1, at), staging)
        assert pages is not None
        assert b"".join(pages) == bytes(PAGE) + b"x" * PAGE


def test_file_that_shrinks(tmp_path: Path, staging: Staging) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"x" * 8 * PAGE)
    with contextlib.closing(RawImageSource(path)) as source:
        os.truncate(path, 2 * PAGE + 5)
        with pytest.raises(RamError, match="shrank"):
            source.blocks[0].load(offsets(1, 2, 3), staging)
        with pytest.raises(RamError, match="shrank"):  # not a hole
            source.blocks[0].load(offsets(5, 6), staging)


@pytest.mark.parametrize("nbytes", [0, 1, PAGE - 1, PAGE + 1])
def test_sizes_that_are_no_ram(tmp_path: Path, nbytes: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(nbytes))
    with pytest.raises(RamError, match="multiple of the page size"):
        RawImageSource(path)
    with pytest.raises(RamError, match="multiple of the page size"):
        MemorySource(bytearray(nbytes))


def test_what_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(RamError, match=str(path)):
            RawImageSource(path)


def test_close_twice(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(IMAGE)
    source = RawImageSource(path)
    source.close()
    source.close()


# -- writing ---------------------------------------------------------------------------------------


def test_nothing_under_the_name_before_commit(tmp_path: Path, staging: Staging) -> None:
    path = tmp_path / "out"
    target = RawImageTarget(path)
    block = target.allocate(RAM)["ram"]
    fill(block, [5, 1, 2, 60], staging)
    assert [p.name for p in tmp_path.iterdir()] == [".out.multifd-part"]
    target.commit(NO_UUID)
    target.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert path.stat().st_mode & 0o777 == 0o600
    want = bytearray(len(IMAGE))
    for i in (5, 1, 2, 60):
        want[i * PAGE : (i + 1) * PAGE] = IMAGE[i * PAGE : (i + 1) * PAGE]
    assert path.read_bytes() == want


def test_zero_pages_stay_holes_and_erase(tmp_path: Path, staging: Staging) -> None:
    target = RawImageTarget(tmp_path / "out")
    block = target.allocate(machine(Block("ram", 1 << 30)))["ram"]
    block.clear(np.arange((1 << 30) // PAGE, dtype=np.int64) * PAGE)
    part = tmp_path / ".out.multifd-part"
    assert part.stat().st_blocks == 0
    fill(block, [7, 8], staging, b"x" * len(IMAGE))
    block.clear(offsets(6, 7))
    target.commit(NO_UUID)
    with (tmp_path / "out").open("rb") as file:
        file.seek(6 * PAGE)
        assert file.read(4 * PAGE) == bytes(2 * PAGE) + b"x" * PAGE + bytes(PAGE)


def test_discard_leaves_nothing_and_keeps_the_old(tmp_path: Path, staging: Staging) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    target = RawImageTarget(path)
    fill(target.allocate(RAM)["ram"], [0], staging)
    target.discard()
    target.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert path.read_bytes() == b"old"


def test_pages_in_any_order_lie_together(tmp_path: Path, staging: Staging) -> None:
    """A QEMU mixes a packet's pages; what is written together is one run, and of two of a page the last wins."""
    mixed = [7, 4, 6, 5, 9, 8]
    assert len(staging.pages_by_offset(offsets(*mixed)).runs()) == 6
    target = RawImageTarget(tmp_path / "out")
    block = target.allocate(RAM)["ram"]
    fill(block, mixed, staging)
    pages = block.place(offsets(3, 1, 3), staging)
    pages.scatter(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    block.store(offsets(3, 1, 3), staging)
    target.commit(NO_UUID)
    written = (tmp_path / "out").read_bytes()
    assert written[4 * PAGE : 10 * PAGE] == IMAGE[4 * PAGE : 10 * PAGE]
    assert written[PAGE : 4 * PAGE] == b"b" * PAGE + bytes(PAGE) + b"c" * PAGE


def test_commit_replaces_the_old(tmp_path: Path, staging: Staging) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    target = RawImageTarget(path)
    fill(target.allocate(RAM)["ram"], list(range(64)), staging)
    target.commit(NO_UUID)
    assert path.read_bytes() == IMAGE


def test_full_disk(tmp_path: Path, staging: Staging) -> None:
    target = RawImageTarget(tmp_path / "out")
    block = target.allocate(RAM)["ram"]
    with file_size_limit(16 * PAGE):
        fill(block, [0, 15], staging)
        with pytest.raises(RamError, match=r"cannot write .* at 65536"):
            fill(block, [16], staging)
        target.discard()
        target = RawImageTarget(tmp_path / "out")
        with pytest.raises(RamError, match="cannot hold"):
            target.allocate(RAM)
    target.discard()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_in_the_middle_of_a_run(tmp_path: Path, staging: Staging) -> None:
    """The kernel writes what fits first; the rest is an error, not a short image."""
    target = RawImageTarget(tmp_path / "out")
    block = target.allocate(RAM)["ram"]
    with file_size_limit(16 * PAGE), pytest.raises(RamError, match="at 65536"):
        fill(block, [14, 15, 16, 17], staging)
    target.discard()


def test_absurd_size(tmp_path: Path) -> None:
    target = RawImageTarget(tmp_path / "out")
    with pytest.raises(RamError, match="cannot hold"):
        target.allocate(machine(Block("ram", (1 << 63) - PAGE)))
    target.discard()
    assert list(tmp_path.iterdir()) == []


def test_stale_part_of_a_killed_process(tmp_path: Path, staging: Staging) -> None:
    part = tmp_path / ".out.multifd-part"
    part.write_bytes(b"stale" * 1000)
    target = RawImageTarget(tmp_path / "out")
    block = target.allocate(machine(Block("ram", PAGE)))["ram"]
    block.clear(offsets(0))
    target.commit(NO_UUID)
    assert (tmp_path / "out").read_bytes() == bytes(PAGE)


def test_a_stale_part_of_digests_goes_too_and_one_in_use_stays(tmp_path: Path) -> None:
    """Whoever receives without digests would leave it for ever."""
    (tmp_path / ".out.sha256.multifd-part").write_bytes(b"stale")
    in_use = PartFile(tmp_path / "other.sha256")
    for name in ("out", "other"):
        RawImageTarget(tmp_path / name).discard()
    assert [path.name for path in tmp_path.iterdir()] == [".other.sha256.multifd-part"]
    in_use.discard()


def test_two_at_once(tmp_path: Path) -> None:
    first = RawImageTarget(tmp_path / "out")
    with pytest.raises(RamError, match="another process"):
        RawImageTarget(tmp_path / "out")
    assert (tmp_path / ".out.multifd-part").exists()
    first.discard()
    RawImageTarget(tmp_path / "out").discard()


def test_a_rival_between_open_and_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the new file for a stale one: it, and nobody beside it, receives into the name."""
    rivals: list[RawImageTarget] = []
    flock = fcntl.flock

    def late(fd: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        rivals.append(RawImageTarget(tmp_path / "out"))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(RamError, match="another process"):
        RawImageTarget(tmp_path / "out")
    rivals[0].allocate(machine(Block("ram", PAGE)))
    rivals[0].commit(NO_UUID)
    assert (tmp_path / "out").read_bytes() == bytes(PAGE)


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / ".out.multifd-part").symlink_to(victim)
    with pytest.raises(RamError):
        RawImageTarget(tmp_path / "out")
    assert victim.read_bytes() == b"precious"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    for path in (tmp_path / "missing" / "out", tmp_path, Path("/dev/null")):
        with pytest.raises(RamError):
            RawImageTarget(path)
    assert list(tmp_path.iterdir()) == []


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"x")
    (tmp_path / ".link.multifd-part").symlink_to("/dev/null")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        RawImageTarget(tmp_path / "out").discard()
        for wrong in (lambda: RawImageSource(tmp_path / "odd"), lambda: RawImageTarget(tmp_path / "link")):
            with pytest.raises(RamError):
                wrong()
        held = RawImageTarget(tmp_path / "held")
        with pytest.raises(RamError):
            RawImageTarget(tmp_path / "held")
        held.discard()
    assert len(os.listdir("/proc/self/fd")) == before


# -- memory, and the list of blocks -----------------------------------------------------------------


def test_memory_is_used_in_place(staging: Staging) -> None:
    ram = bytearray(IMAGE)
    block = MemoryBlock("ram", ram, PAGE)
    pages = block.load(offsets(1, 2), staging)
    assert pages is not None
    assert b"".join(pages) == IMAGE[PAGE : 3 * PAGE]
    lent = block.lend(offsets(1, 2, 9))
    assert lent is not None
    assert [len(view) for view in lent] == [2 * PAGE, PAGE]
    lent[0][0] ^= 0xFF
    assert next(iter(pages))[0] == ram[PAGE]
    block.place(offsets(9), staging).scatter(b"y" * PAGE)
    block.store(offsets(9), staging)
    assert ram[9 * PAGE : 10 * PAGE] == b"y" * PAGE
    block.clear(offsets(9, 1))
    assert not any(ram[9 * PAGE : 10 * PAGE])
    assert not any(ram[PAGE : 2 * PAGE])
    assert ram[2 * PAGE : 9 * PAGE] == IMAGE[2 * PAGE : 9 * PAGE]


@pytest.mark.parametrize("blocks", [(), (Block("a", PAGE), Block("b", 2 * PAGE))])
def test_one_block_only(tmp_path: Path, blocks: tuple[Block, ...]) -> None:
    target = RawImageTarget(tmp_path / "out")
    for each in (target, MemoryTarget(bytearray(PAGE))):
        with pytest.raises(RamError, match=f"the sender has {len(blocks)}"):
            each.allocate(machine(*blocks))
    target.discard()


def test_buffer_of_another_size() -> None:
    with pytest.raises(RamError, match="4096 bytes, the buffer to receive into 8192"):
        MemoryTarget(bytearray(2 * PAGE)).allocate(machine(Block("ram", PAGE)))


def test_a_buffer_that_is_too_large() -> None:
    with pytest.raises(RamError, match="no memory for a buffer of 4611686018427387904 bytes"):
        private_map(1 << 62)
