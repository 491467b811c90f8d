"""The trackers: what was written is found, what was not is not, nothing between two looks is lost."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
import struct
import subprocess
import sys
import threading

import numpy as np
import pytest
from memory_kinds import PAGES, TRACKERS, make_memory, needs_log

from multifd.errors import RamError, UsageError
from multifd.live import comparison, kernel, userfaultfd, write_protect
from multifd.live.arena import Arena
from multifd.live.choose import TRACKERS as NAMES
from multifd.live.choose import choose
from multifd.live.ranges import count, packets
from multifd.live.soft_dirty import SoftDirty
from multifd.live.tracker import Unavailable
from multifd.pages import Geometry
from multifd.ram.block import Staging
from multifd.ram.mappings import PAGE

MEMORY = ["private", "shared", "huge", "memfd"]


class Watched:
    """An arena with a tracker, and the part that the sender plays: it loads what is dirty."""

    def __init__(self, memory, name, page_size=PAGE):
        self.memory, self.page_size = memory, page_size
        self.arena = Arena(memory, writers="this-process")
        self.tracker, _ = choose(self.arena, page_size, name)
        assert self.tracker.name == name
        self.staging = Staging(Geometry.of(page_size))
        (self.populated,) = self.tracker.arm()
        self.copy = bytearray(len(memory))
        self.send(self.populated)

    def send(self, ranges):
        (block,) = self.tracker.blocks
        for pages in packets(ranges, 128):
            loaded = block.load(pages * self.page_size, self.staging)
            for page, data in zip(pages.tolist(), loaded, strict=True):
                self.copy[page * self.page_size : (page + 1) * self.page_size] = data

    def scan(self):
        (ranges,) = self.tracker.scan()
        self.send(ranges)
        return [tuple(pair) for pair in ranges.tolist()]


@pytest.fixture
def watch():
    with contextlib.ExitStack() as stack:

        def start(*args, **options):
            watched = Watched(*args, **options)
            stack.callback(watched.arena.close)
            stack.callback(watched.tracker.close)
            return watched

        yield start


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("kind", MEMORY)
class TestEveryTracker:
    def test_writes_are_found_once(self, watch, kind, name):
        memory = make_memory(kind)
        memory[: 700 * PAGE] = b"\1" * (700 * PAGE)
        watched = watch(memory, name)
        assert watched.scan() == []
        memory[5 * PAGE] = 2
        memory[100 * PAGE - 1 : 110 * PAGE] = b"\3" * (10 * PAGE + 1)
        memory[1500 * PAGE + 7] = 1  # not touched before
        memory[-1] = 1
        assert watched.scan() == [(5, 6), (99, 110), (1500, 1501), (2047, 2048)]
        assert watched.scan() == []
        assert watched.copy == memory[:]

    def test_untouched_pages_are_known_and_stay_untouched(self, watch, kind, name):
        memory = make_memory(kind)
        memory[700 * PAGE] = 1
        watched = watch(memory, name)
        if kind == "shared" and count(watched.populated) == PAGES:
            pytest.skip("only the privileged may ask what anonymous shared memory holds")
        # A huge page is touched as a whole.
        assert count(watched.populated) == (512 if kind == "huge" and count(watched.populated) > 1 else 1)
        assert watched.scan() == []
        watched.tracker.close()
        again = watch(memory, name)
        assert count(again.populated) == count(watched.populated)

    def test_pages_that_were_only_read_before(self, watch, kind, name):
        """The kernel's shared zero page, a huge one too, is written to in the end."""
        memory = make_memory(kind)
        assert sum(memory[at] for at in range(0, len(memory), PAGE)) == 0
        watched = watch(memory, name)
        memory[3 * PAGE] = memory[1000 * PAGE] = 1
        assert watched.scan() == [(3, 4), (1000, 1001)]
        assert watched.copy == memory[:]

    def test_system_calls_write_too(self, watch, kind, name):
        memory = make_memory(kind)
        memory[: 64 * PAGE] = b"\1" * (64 * PAGE)
        watched = watch(memory, name)
        ends = socket.socketpair()
        ends[0].sendall(b"\2" * 5000)
        with memoryview(memory) as view:
            ends[1].recv_into(view[10 * PAGE : 10 * PAGE + 5000], 5000, socket.MSG_WAITALL)
        for end in ends:
            end.close()
        assert watched.scan() == [(10, 12)]

    def test_larger_pages(self, watch, kind, name):
        memory = make_memory(kind)
        watched = watch(memory, name, 4 * PAGE)
        memory[9 * PAGE] = memory[12 * PAGE] = memory[13 * PAGE] = memory[2047 * PAGE] = 1
        assert watched.scan() == [(2, 4), (511, 512)]
        assert watched.copy == memory[:]

    def test_nothing_written_by_threads_is_ever_lost(self, watch, kind, name):
        memory = make_memory(kind)
        words = np.frombuffer(memory, np.uint64)
        stop, wrote = threading.Event(), threading.Event()

        def write(seed):
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                words[rng.integers(0, len(words), 50)] += np.uint64(1)
                part = words[rng.integers(0, len(words)) :][:4000]
                np.add(part, 1, out=part)  # without the GIL, so at the same time as a scan
                wrote.set()

        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(2)]
        watched = watch(memory, name)
        for writer in writers:
            writer.start()
        found = []
        for _ in range(6):
            wrote.clear()
            assert wrote.wait(30)
            found += watched.scan()
        assert found
        stop.set()
        for writer in writers:
            writer.join()
        watched.scan()
        assert watched.copy == memory[:]
        assert watched.scan() == []


@pytest.mark.parametrize("name", TRACKERS)
def test_pages_given_back_are_zero(watch, name):
    memory = make_memory("private")
    memory[: 600 * PAGE] = b"\1" * (600 * PAGE)
    watched = watch(memory, name)
    memory.madvise(mmap.MADV_DONTNEED, 20 * PAGE, 5 * PAGE)
    assert watched.scan() == [(20, 25)]
    memory.madvise(mmap.MADV_DONTNEED, 0, 512 * PAGE)
    watched.scan()
    assert watched.copy == memory[:]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_huge_page_that_is_written_in_one_place(watch, name):
    memory = make_memory("huge", 8 << 20)
    memory[:] = b"\1" * len(memory)
    watched = watch(memory, name)
    memory[3 << 20] = 2
    assert watched.scan() == [(768, 769)]


@needs_log
@pytest.mark.parametrize("sharing", [mmap.MAP_PRIVATE, mmap.MAP_SHARED])
def test_reserved_huge_pages_are_reported_whole(sharing):
    map_hugetlb = 0x40000
    try:
        memory = mmap.mmap(-1, 8 << 20, flags=sharing | mmap.MAP_ANONYMOUS | map_hugetlb)
    except OSError:
        pytest.skip("no huge pages are reserved: sysctl vm.nr_hugepages=8")
    with Arena(memory, writers="this-process") as arena:
        tracker, _ = choose(arena, PAGE, "write-protect")
        tracker.arm()
        memory[3 << 20] = 1
        assert tracker.scan()[0].tolist() == [[512, 1024]]
        tracker.close()
    memory.close()


@pytest.mark.parametrize("name", TRACKERS)
def test_several_blocks(name):
    memories = {n: make_memory("private", 64 * PAGE) for n in ("a", "b", "c")}
    with Arena(memories) as arena:
        tracker, _ = choose(arena, PAGE, name)
        assert [block.idstr for block in tracker.blocks] == ["a", "b", "c"]
        tracker.arm()
        memories["c"][0] = memories["a"][5 * PAGE] = 1
        assert [ranges.tolist() for ranges in tracker.scan()] == [[[5, 6]], [], [[0, 1]]]
        tracker.close()
        tracker.close()


@needs_log
def test_more_ranges_than_one_system_call_reports(watch, monkeypatch):
    monkeypatch.setattr(write_protect, "_VECTOR", 16)
    memory = make_memory("private")
    watched = watch(memory, "write-protect")
    memory[:: 2 * PAGE] = b"\1" * (PAGES // 2)
    assert watched.scan() == [(i, i + 1) for i in range(0, PAGES, 2)]
    assert watched.scan() == []


@needs_log
def test_the_log_is_off_after_close(watch):
    memory = make_memory("private")
    watched = watch(memory, "write-protect")
    watched.tracker.close()
    memory[:] = b"\1" * len(memory)
    again = watch(memory, "write-protect")
    assert again.scan() == []
    assert again.copy == memory[:]


@needs_log
def test_a_log_that_cannot_be_read(watch, monkeypatch):
    def ioctl(*_):
        raise OSError(errno.EIO, "Input/output error")

    watched = watch(make_memory("private"), "write-protect")
    monkeypatch.setattr(write_protect.fcntl, "ioctl", ioctl)
    with pytest.raises(RamError, match="cannot be read: Input/output error"):
        watched.scan()


@needs_log
def test_an_arena_that_is_being_migrated_already(watch):
    memory = make_memory("private")
    watch(memory, "write-protect")
    with Arena(memory) as arena, pytest.raises(UsageError, match="the kernel refuses it for this memory"):
        choose(arena, PAGE, "write-protect")


def test_comparison_sees_another_process(watch):
    fd = os.memfd_create("test")
    os.ftruncate(fd, PAGES * PAGE)
    memory = mmap.mmap(fd, PAGES * PAGE)
    watched = watch(memory, "comparison")
    code = "import mmap, sys; m = mmap.mmap(int(sys.argv[1]), 0); m[4096 * 77] = m[4096 * 2000] = 1"
    subprocess.run([sys.executable, "-c", code, str(fd)], check=True, pass_fds=[fd], timeout=30)
    os.close(fd)
    assert watched.scan() == [(77, 78), (2000, 2001)]
    assert watched.copy == memory[:]


def test_comparison_is_not_fooled_by_a_page_that_changes_back(watch):
    """Found dirty with one content, sent with another, then as before: the copy must be what was sent."""
    memory = make_memory("private")
    memory[0] = 1
    watched = watch(memory, "comparison")
    memory[0] = 2
    (ranges,) = watched.tracker.scan()
    memory[0] = 3
    watched.send(ranges)
    memory[0] = 2
    assert watched.scan() == [(0, 1)]
    assert watched.copy == memory[:]


def test_comparison_needs_memory(monkeypatch):

    monkeypatch.setattr(comparison, "_available_bytes", lambda: 1 << 20)
    memory = make_memory("private")
    with Arena(memory) as arena:
        tracker, _ = choose(arena, PAGE, "comparison")
        tracker.arm()  # nothing is touched, so nothing is copied
        memory[: 2 << 20] = b"\1" * (2 << 20)
        with pytest.raises(RamError, match="copy of the arena: 2 MiB, and 1 MiB are free"):
            tracker.arm()


class TestSoftDirty:
    """This machine's kernel may not have the bits: a sparse file stands in for /proc/self/pagemap."""

    SOFT_DIRTY, PRESENT = 1 << 55, 1 << 63

    @pytest.fixture
    def proc(self, tmp_path):
        (tmp_path / "pagemap").touch()
        (tmp_path / "clear_refs").touch()
        with (tmp_path / "pagemap").open("r+b") as pagemap:
            pagemap.truncate(1 << 40)
        return tmp_path

    def mark(self, proc, arena, pages, bits=SOFT_DIRTY | PRESENT):
        with (proc / "pagemap").open("r+b") as pagemap:
            for page in pages:
                pagemap.seek((arena.regions[0].address // PAGE + page) * 8)
                pagemap.write(struct.pack("=Q", bits))

    @pytest.fixture
    def capable(self, monkeypatch):
        monkeypatch.setattr(SoftDirty, "_new_memory_is_dirty", lambda self: True)

    def test_each_scan_finds_everything_since_arm(self, proc, capable):
        with Arena(make_memory("private")) as arena:
            tracker = SoftDirty(arena, PAGE, str(proc))
            tracker.arm()
            assert (proc / "clear_refs").read_text() == "4"
            self.mark(proc, arena, [3, 4, 2047])
            self.mark(proc, arena, [9], self.PRESENT)
            assert tracker.scan()[0].tolist() == [[3, 5], [2047, 2048]]
            self.mark(proc, arena, [5])
            assert tracker.scan()[0].tolist() == [[3, 6], [2047, 2048]]
            tracker.close()

    def test_only_one_at_a_time(self, proc, capable):
        with Arena(make_memory("private")) as arena:
            first = SoftDirty(arena, PAGE, str(proc))
            with pytest.raises(Unavailable, match="another migration"):
                SoftDirty(arena, PAGE, str(proc))
            first.close()
            first.close()
            SoftDirty(arena, PAGE, str(proc)).close()

    def test_bits_that_may_not_be_cleared(self, proc, capable):
        (proc / "clear_refs").unlink()
        with Arena(make_memory("private")) as arena, pytest.raises(Unavailable, match="clear_refs may not be written"):
            SoftDirty(arena, PAGE, str(proc))

    def test_a_kernel_without_the_bits(self, proc):
        with Arena(make_memory("private")) as arena, pytest.raises(Unavailable, match="CONFIG_MEM_SOFT_DIRTY"):
            SoftDirty(arena, PAGE, str(proc))

    def test_the_real_one_if_the_kernel_has_it(self, watch):
        with Arena(make_memory("private")) as arena:
            try:
                SoftDirty(arena, PAGE).close()
            except Unavailable as e:
                pytest.skip(f"soft-dirty: {e}")
        memory = make_memory("private")
        memory[: 64 * PAGE] = b"\1" * (64 * PAGE)
        watched = watch(memory, "soft-dirty")
        memory[5 * PAGE] = 2
        assert watched.scan() == [(5, 6)]
        memory[7 * PAGE] = 2
        assert watched.scan() == [(5, 6), (7, 8)]


class TestChoice:
    def chosen(self, memory, wanted=None, **options):
        with Arena(memory, **options) as arena:
            tracker, reason = choose(arena, PAGE, wanted)
            tracker.close()
            return tracker.name, reason

    @needs_log
    def test_private_memory_has_the_log(self):
        assert self.chosen(make_memory("private")) == ("write-protect", "")

    def test_shared_memory_is_compared(self):
        name, reason = self.chosen(make_memory("shared"))
        assert name == "comparison"
        assert "write-protect: it is shared (/dev/zero" in reason

    @needs_log
    def test_shared_memory_that_only_this_process_writes(self):
        assert self.chosen(make_memory("shared"), writers="this-process") == ("write-protect", "")

    def test_a_log_is_not_forced_on_memory_that_others_write(self):
        with pytest.raises(UsageError, match=r"tracker 'write-protect': .*shared.*this-process"):
            self.chosen(make_memory("shared"), "write-protect")

    def test_no_such_tracker(self):
        with pytest.raises(UsageError, match="expected one of write-protect, soft-dirty, comparison"):
            self.chosen(make_memory("private"), "kvm")

    def test_page_sizes_that_do_not_fit(self):
        with Arena(make_memory("private", 3 * PAGE)) as arena:
            with pytest.raises(RamError, match="every block"):
                choose(arena, 2 * PAGE)
            with pytest.raises(UsageError, match="multiple of the kernel's"):
                choose(arena, PAGE // 2)

    def test_why_the_log_cannot_be_had(self, monkeypatch):
        """Both ways are tried, and what each answered is said."""
        refuse(monkeypatch, errno.EPERM, errno.EACCES)
        assert self.chosen(make_memory("private"), "comparison") == ("comparison", "")
        name, reason = self.chosen(make_memory("private"))
        assert name != "write-protect"
        assert "the system call userfaultfd: Operation not permitted" in reason
        assert "/dev/userfaultfd: Permission denied" in reason

    @needs_log
    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOSYS])
    def test_the_device_is_enough(self, monkeypatch, code):
        """A container's seccomp profile denies the system call; the device, where it is open, gives the same."""
        system_call = userfaultfd._by_system_call
        refuse(monkeypatch, code, None)
        asked = []

        def device():
            asked.append(1)
            return system_call()

        monkeypatch.setattr(userfaultfd, "_by_device", device)
        assert self.chosen(make_memory("private")) == ("write-protect", "")
        assert asked

    @pytest.mark.skipif(not os.access("/dev/userfaultfd", os.R_OK | os.W_OK), reason="no access to /dev/userfaultfd")
    @needs_log
    def test_the_real_device(self, monkeypatch):
        refuse(monkeypatch, errno.EPERM, None)
        before = len(os.listdir("/proc/self/fd"))
        assert self.chosen(make_memory("private")) == ("write-protect", "")
        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize(
        ("code", "words"), [(errno.EINVAL, "6.7 and later"), (errno.EPERM, "cannot be used: Operation not permitted")]
    )
    def test_one_without_what_is_needed(self, monkeypatch, code, words):
        """An old kernel; or one that does not let this process."""

        def ioctl(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(userfaultfd, "_by_system_call", lambda: os.open("/dev/null", os.O_RDONLY))
        monkeypatch.setattr(userfaultfd.fcntl, "ioctl", ioctl)
        assert words in self.chosen(make_memory("private"))[1]

    @pytest.mark.parametrize("writers", [None, "this-process"])
    def test_without_proc(self, monkeypatch, writers):
        """The reason names the file that is missing, and is a sentence."""

        def missing(path, *_):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)

        monkeypatch.setattr("multifd.live.arena.mappings", lambda *_: missing("/proc/self/maps"))
        monkeypatch.setattr(write_protect.os, "open", missing)
        with Arena(make_memory("private"), writers=writers) as arena:
            tracker, reason = choose(arena, PAGE)
            tracker.close()
        assert tracker.name == "comparison"
        file = "/proc/self/maps: " if writers is None else "/proc/self/pagemap ("
        assert f"{file}No such file or directory" in reason

    def test_another_architecture(self, monkeypatch):
        monkeypatch.setattr(userfaultfd.platform, "machine", lambda: "s390x")
        monkeypatch.setattr(userfaultfd, "_DEVICE", "/dev/missing")
        assert "s390x" in self.chosen(make_memory("private"))[1]


def refuse(monkeypatch, system_call, device):
    """What the two ways to a userfaultfd answer; None is as it is."""
    for name, code in (("_by_system_call", system_call), ("_by_device", device)):
        if code is not None:

            def fail(code=code):
                raise OSError(code, os.strerror(code))

            monkeypatch.setattr(userfaultfd, name, fail)


class TestPathsOfMappings:
    """Any mapping of the process, also one that has nothing to do with the arena, may have any name."""

    @pytest.mark.parametrize(
        "name",
        [b"latin-\xe4\xff", b"new\nline", b"carriage\rreturn", b"  spaces  ", b"sep\x1c\x85arate", b"esc\x1b[31m",
         b"a\\012b", b"x (deleted)", "\N{SNOWMAN}".encode()],
    )  # fmt: skip
    @pytest.mark.parametrize("deleted", [False, True])
    def test_arenas_beside_and_on_it(self, tmp_path, name, deleted):
        path = os.fsencode(tmp_path) + b"/" + name
        with open(path, "w+b") as file:
            file.truncate(4 * PAGE)
            file.write(b"x" * PAGE)
            file.flush()
            shared = mmap.mmap(file.fileno(), 4 * PAGE)
        if deleted:
            os.unlink(path)
        with Arena(make_memory("private")) as arena:  # beside it
            assert arena.foreign_writers() == ""
        with Arena(shared) as arena:
            reason = arena.foreign_writers()
            assert "shared" in reason
            assert reason.isprintable()
            tracker, _ = choose(arena, PAGE)
            assert tracker.name == "comparison"
            assert len(tracker.arm()) == 1
            tracker.close()

    def test_shared_memory_with_such_a_name_is_found_by_it(self):
        """What of it was never touched is known without reading it."""
        name = f"/dev/shm/multifd-{os.getpid()}-\xe4\n\udcff"
        with open(name, "w+b") as file:
            try:
                file.truncate(8 * PAGE)
                memory = mmap.mmap(file.fileno(), 8 * PAGE)
            finally:
                os.unlink(name)
            memory[3 * PAGE] = 1
            address = np.frombuffer(memory, np.uint8).ctypes.data
            assert kernel.populated(address, 8 * PAGE).tolist() == [[3, 4]]


def test_the_names_are_those_of_the_trackers():
    assert NAMES == ("write-protect", "soft-dirty", "comparison")
