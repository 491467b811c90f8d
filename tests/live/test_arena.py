"""Arenas: what memory they take, what they say of it, receiving into them."""

from __future__ import annotations

import ctypes
import mmap
import os
from multiprocessing import shared_memory

import numpy as np
import peer
import pytest

import multifd
from multifd.errors import PeerFailed, RamError
from multifd.live.arena import Arena, ArenaTarget
from multifd.live.kernel import populated
from multifd.ram.mappings import PAGE, mappings
from multifd.wire.stream import Block, Machine

PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def pages_of(ranges):
    return [tuple(pair) for pair in ranges.tolist()]


@pytest.fixture
def shm():
    memory = shared_memory.SharedMemory(create=True, size=16 * PAGE)
    yield memory
    memory.close()
    memory.unlink()


def test_any_page_aligned_writable_buffer(shm):
    for buffer in (mmap.mmap(-1, 4 * PAGE), shm.buf, np.frombuffer(mmap.mmap(-1, 4 * PAGE), np.float64).reshape(2, -1)):
        with Arena(buffer) as arena:
            (region,) = arena.regions
            assert region.idstr == "ram"
            assert region.address % PAGE == 0
            assert region.nbytes == arena.nbytes == memoryview(buffer).nbytes
            region.view[5] = 7
        assert bytes(memoryview(buffer).cast("B")[5:6]) == b"\7"


@pytest.mark.parametrize(
    ("memory", "words"),
    [
        (lambda: bytes(4096), "read-only"),
        (lambda: bytearray(PAGE * 2 + 1), "begins on a page boundary"),
        (lambda: memoryview(mmap.mmap(-1, 2 * PAGE))[64 : 64 + PAGE], "begins on a page boundary"),
        (lambda: memoryview(mmap.mmap(-1, 2 * PAGE))[: PAGE + 8], "multiple of"),
        (lambda: memoryview(mmap.mmap(-1, 2 * PAGE))[:0], "above 0"),
        (lambda: np.frombuffer(mmap.mmap(-1, 2 * PAGE), np.uint8)[::2], "contiguous"),
        (lambda: "text", "bytes-like"),
        (dict, "at least one block"),
        (lambda: {"": mmap.mmap(-1, PAGE)}, "block name"),
        (lambda: {"n" * 256: mmap.mmap(-1, PAGE)}, "block name"),
        (lambda: {"naïve": mmap.mmap(-1, PAGE)}, "block name"),
    ],
)
def test_other_memory_is_refused(memory, words):
    with pytest.raises(RamError, match=words):
        Arena(memory())


def test_blocks_that_overlap_are_refused():
    memory = memoryview(mmap.mmap(-1, 4 * PAGE))
    with pytest.raises(RamError, match="'a' and 'b' overlap"):
        Arena({"b": memory[PAGE:], "a": memory[: 2 * PAGE]})


def test_the_buffer_cannot_be_closed_under_an_open_arena():
    memory = mmap.mmap(-1, PAGE)
    arena = Arena(memory)
    with pytest.raises(BufferError):
        memory.close()
    arena.close()
    arena.close()
    memory.close()


def test_who_may_write(shm, tmp_path):
    private = mmap.mmap(-1, PAGE, flags=PRIVATE)
    assert Arena(private).foreign_writers() == ""
    assert "shared (/dev/zero" in Arena(mmap.mmap(-1, PAGE)).foreign_writers()
    with Arena(shm.buf) as arena:
        assert "shared (/dev/shm/" in arena.foreign_writers()
    with Arena(shm.buf, writers="this-process") as arena:
        assert arena.foreign_writers() == ""
    assert Arena(private, writers="any").foreign_writers() == "other processes write to it"
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    with path.open("r+b") as file:
        copy_on_write = mmap.mmap(file.fileno(), PAGE, access=mmap.ACCESS_COPY)
    assert str(path) in Arena(copy_on_write).foreign_writers()
    with pytest.raises(RamError, match="writers 'me'"):
        Arena(private, writers="me")


class TestPopulated:
    """Which pages hold anything, without reading them."""

    def found(self, buffer):
        with Arena(buffer) as arena:
            (region,) = arena.regions
            return pages_of(populated(region.address, region.nbytes))

    def test_private_memory(self):
        memory = mmap.mmap(-1, 64 * PAGE, flags=PRIVATE)
        assert self.found(memory) == []
        memory[3 * PAGE] = memory[10 * PAGE] = memory[11 * PAGE] = 1
        assert self.found(memory) == [(3, 4), (10, 12)]

    def test_shared_memory_asks_the_file(self, shm):
        shm.buf[2 * PAGE] = 1
        assert self.found(shm.buf) == [(2, 3)]

    def test_shared_memory_that_another_process_wrote(self):
        fd = os.memfd_create("test")
        os.ftruncate(fd, 32 * PAGE)
        memory = mmap.mmap(fd, 16 * PAGE, offset=8 * PAGE)
        os.pwrite(fd, b"x", 4 * PAGE)
        os.pwrite(fd, b"x", 12 * PAGE)  # page 4 of the mapping, which has no entry in our page table
        os.pwrite(fd, b"x", 30 * PAGE)
        before = os.lseek(fd, 0, os.SEEK_CUR)
        assert self.found(memory) == [(4, 5)]
        assert os.lseek(fd, 0, os.SEEK_CUR) == before
        os.close(fd)

    def test_a_file_is_read_whole(self, tmp_path):
        with (tmp_path / "file").open("w+b") as file:
            file.truncate(8 * PAGE)
            assert self.found(mmap.mmap(file.fileno(), 8 * PAGE)) == [(0, 8)]

    def test_several_mappings_in_one_buffer(self):
        memory = mmap.mmap(-1, 16 * PAGE, flags=PRIVATE)
        with Arena(memory) as arena:
            (region,) = arena.regions
            libc = ctypes.CDLL(None, use_errno=True)
            # Another permission makes it a mapping of its own.
            assert libc.mprotect(ctypes.c_void_p(region.address + 4 * PAGE), 4 * PAGE, mmap.PROT_READ) == 0
            assert len(mappings(region.address, region.nbytes)) == 3
            memory[PAGE] = memory[9 * PAGE] = 1
            assert pages_of(populated(region.address, region.nbytes)) == [(1, 2), (9, 10)]


class TestReceive:
    def test_several_blocks_by_name(self):
        memories = {"table": mmap.mmap(-1, 4 * PAGE), "index": mmap.mmap(-1, 2 * PAGE)}
        target = ArenaTarget(Arena(memories))
        blocks = target.allocate(Machine("none", PAGE, (Block("index", 2 * PAGE), Block("table", 4 * PAGE))))
        assert {name: block.used_length for name, block in blocks.items()} == {"table": 4 * PAGE, "index": 2 * PAGE}

    @pytest.mark.parametrize(
        "theirs",
        [
            [("table", 4), ("index", 3)],
            [("table", 4)],
            [("table", 4), ("index", 2), ("more", 1)],
            [("table", 4), ("Index", 2)],
        ],
    )
    def test_other_names_or_lengths_are_refused(self, theirs):
        arena = Arena({"table": mmap.mmap(-1, 4 * PAGE), "index": mmap.mmap(-1, 2 * PAGE)})
        with pytest.raises(RamError, match=r"the sender has block .* the arena to receive into has block 'index'"):
            ArenaTarget(arena).allocate(Machine("none", PAGE, tuple(Block(name, n * PAGE) for name, n in theirs)))

    def test_an_ordinary_sender(self, receiver, image):
        memory = mmap.mmap(-1, len(image))
        destination = receiver(Arena(memory))
        multifd.send(image, destination.uri, "zstd")
        assert destination.join().status == "completed"
        assert memory[:] == image

    def test_nothing_is_written_when_the_size_is_wrong(self, receiver, image):
        memory = mmap.mmap(-1, 4 * PAGE)
        memory[:] = b"\x11" * len(memory)
        destination = receiver(Arena(memory))
        with pytest.raises(PeerFailed):
            multifd.send(image, destination.uri)
        with pytest.raises(RamError, match="block 'ram' of 16384 bytes"):
            destination.join()
        assert memory[:] == b"\x11" * len(memory)

    def test_two_blocks_over_the_wire(self, receiver):
        memories = {"a": mmap.mmap(-1, 16 * PAGE), "b": mmap.mmap(-1, 8 * PAGE)}
        destination = receiver(Arena(memories), channels=1, timeout=5)
        stream = peer.main_stream([(b"b", 8 * PAGE), (b"a", 16 * PAGE)])
        with peer.Peer(destination.uri) as sender:
            main = sender.connect(stream["header"] + stream["setup"])
            channel = sender.connect(peer.init(0) + peer.sync())
            channel.sendall(peer.packet([2 * PAGE], b"\1" * PAGE, block=b"a"))
            channel.sendall(peer.packet([PAGE], b"\2" * PAGE, block=b"b") + peer.sync())
            main.sendall(stream["end"] + stream["eof"])
            destination.join()
        assert memories["a"][:] == bytes(2 * PAGE) + b"\1" * PAGE + bytes(13 * PAGE)
        assert memories["b"][:] == bytes(PAGE) + b"\2" * PAGE + bytes(6 * PAGE)
