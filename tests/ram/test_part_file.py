"""A file that appears when it is complete: whose descriptor, which name, and that what is said of it is true."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifd.errors import RamError
from multifd.pages import Geometry
from multifd.ram.block import Staging
from multifd.ram.file import OpenFile, open_regular, read_exactly, write
from multifd.ram.mapped_target import MappedRamTarget
from multifd.ram.part_file import PartFile
from multifd.ram.raw import RawImageSource, RawImageTarget
from multifd.wire.stream import NO_UUID, Block, Machine

PAGE = 4096
DEADLINE_S = 30
RAM = Machine("none", PAGE, (Block("ram", 8 * PAGE),))


def offsets(*indexes: int) -> np.ndarray:
    return np.array(indexes, np.int64) * PAGE


@pytest.fixture
def staging() -> Staging:
    return Staging(Geometry.of(PAGE))


class Gate:
    """Stands in for a system call of `os` and holds up the first thread that makes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._real = getattr(os, name)
        monkeypatch.setattr(os, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self.reached.is_set():
            self.reached.set()
            assert self.go.wait(DEADLINE_S)
        return self._real(*args, **kwargs)


class InThread:
    """A call in a thread, and what it raised."""

    def __init__(self, call: Any) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Any) -> None:
        try:
            call()
        except BaseException as e:
            self.error = e

    def join(self) -> BaseException | None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self.error


# -- who comes late meets a closed file, never another's ---------------------------------------------


@pytest.mark.parametrize("kind", [RawImageTarget, MappedRamTarget])
def test_a_late_write_never_reaches_another_file(tmp_path: Path, staging: Staging, kind: Any) -> None:
    target = kind(tmp_path / "out")
    block = target.allocate(RAM)["ram"]
    block.place(offsets(1, 2), staging).scatter(b"x" * 2 * PAGE)
    target.discard()
    others = [(tmp_path / f"other{i}").open("wb") for i in range(8)]  # one of them has the old number
    for late in (
        lambda: block.store(offsets(1, 2), staging),
        lambda: target.add_device_state(b"state"),
        lambda: target.flush(),
        lambda: target.commit(NO_UUID),
    ):
        if kind is RawImageTarget and late.__code__.co_names == ("add_device_state",):
            continue
        with pytest.raises(RamError, match="closed"):
            late()
    for other in others:
        assert os.fstat(other.fileno()).st_size == 0
        other.close()
    assert not target.is_committed


def test_a_late_read_never_comes_from_another_file(tmp_path: Path, staging: Staging) -> None:
    (tmp_path / "ram").write_bytes(b"x" * 8 * PAGE)
    source = RawImageSource(tmp_path / "ram")
    source.close()
    (tmp_path / "other").write_bytes(b"secret" * 8 * PAGE)
    others = [(tmp_path / "other").open("rb") for _ in range(8)]
    with pytest.raises(RamError, match="closed"):
        source.blocks[0].load(offsets(1, 2), staging)
    for other in others:
        other.close()


def test_a_write_that_hangs_keeps_its_own_file(
    tmp_path: Path, staging: Staging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk holds a write up, the migration is given up meanwhile: the bytes end in the file that was removed."""
    target = RawImageTarget(tmp_path / "out")
    block = target.allocate(RAM)["ram"]
    block.place(offsets(1, 2), staging).scatter(b"x" * 2 * PAGE)
    before = len(os.listdir("/proc/self/fd"))
    gate = Gate(monkeypatch, "pwritev")
    late = InThread(lambda: block.store(offsets(1, 2), staging))
    assert gate.reached.wait(DEADLINE_S)
    target.discard()
    others = [(tmp_path / f"other{i}").open("wb") for i in range(8)]
    gate.go.set()
    assert late.join() is None
    for other in others:
        assert os.fstat(other.fileno()).st_size == 0
        other.close()
    assert len(os.listdir("/proc/self/fd")) == before - 2  # the file and its folder


def test_an_open_file_is_closed_once(tmp_path: Path) -> None:
    file = OpenFile(os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT), tmp_path / "f")
    write(file, b"abc", 0, file.path)
    with file.use() as fd:
        file.close()
        file.close()
        assert os.fstat(fd).st_size == 3
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    with pytest.raises(RamError, match="closed"):
        read_exactly(file, memoryview(bytearray(3)), 0, file.path)


def test_a_forgotten_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    before = len(os.listdir("/proc/self/fd"))
    file, _ = open_regular(tmp_path / "f")
    del file
    assert len(os.listdir("/proc/self/fd")) == before


# -- commit and discard ------------------------------------------------------------------------------


def test_discard_during_the_sync_prevents_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PartFile(tmp_path / "out")
    gate = Gate(monkeypatch, "fsync")
    commit = InThread(file.commit)
    assert gate.reached.wait(DEADLINE_S)
    file.discard()  # does not wait for the disk
    assert not file.is_committed
    gate.go.set()
    assert isinstance(error := commit.join(), RamError)
    assert "discarded" in str(error)
    assert not file.is_committed
    assert list(tmp_path.iterdir()) == []


def test_discard_after_the_rename_comes_too_late_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`discard` is called while the folder is synced: it waits, and the file is there and said to be."""
    file = PartFile(tmp_path / "out")
    real, renamed, go = os.replace, threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        renamed.set()
        assert go.wait(DEADLINE_S)

    monkeypatch.setattr(os, "replace", slow)
    commit = InThread(file.commit)
    assert renamed.wait(DEADLINE_S)
    discard = InThread(file.discard)
    go.set()
    assert discard.join() is None
    assert commit.join() is None
    assert file.is_committed
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_commit_against_discard(tmp_path: Path) -> None:
    """Whoever wins: the file is there exactly if `is_committed` says so, and nothing else remains."""
    before = len(os.listdir("/proc/self/fd"))
    for i in range(50):
        file = PartFile(tmp_path / f"out{i}")
        start = threading.Barrier(2)
        commit = InThread(lambda file=file, start=start: (start.wait(DEADLINE_S), file.commit()))
        start.wait(DEADLINE_S)
        file.discard()
        is_committed = file.is_committed
        error = commit.join()
        assert (error is None) == is_committed == file.is_committed == (tmp_path / f"out{i}").exists()
        assert error is None or isinstance(error, RamError)
    assert not list(tmp_path.glob(".*"))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failed_commit_publishes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "out").write_bytes(b"old")
    file = PartFile(tmp_path / "out")
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(RamError, match="Input/output error"):
        file.commit()
    assert not file.is_committed
    file.discard()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_bytes() == b"old"


def test_a_published_file_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder cannot be synced once the file has its name: that is said, and the migration is complete."""
    file = PartFile(tmp_path / "out")
    synced: list[int] = []
    real = os.fsync

    def only_files(fd: int) -> None:
        synced.append(fd)
        if len(synced) > 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    with caplog.at_level(logging.WARNING):
        file.commit()
    assert file.is_committed
    assert (tmp_path / "out").exists()
    assert "power failure" in caplog.text


@pytest.mark.parametrize("may_commit", [True, False])
def test_an_error_at_close_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, may_commit: bool) -> None:
    """Over NFS, or beyond a quota; the descriptor is gone all the same, and what counts was synced before."""
    real = os.close

    def fail(fd: int) -> None:
        real(fd)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "close", fail)
    file = PartFile(tmp_path / "out")
    if may_commit:
        file.commit()
    file.discard()
    assert file.is_committed == may_commit
    assert [p.name for p in tmp_path.iterdir()] == ["out"] * may_commit
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_moves_away(tmp_path: Path) -> None:
    """The file goes where its folder went: no other folder of that name gets it."""
    (tmp_path / "a").mkdir()
    file = PartFile(tmp_path / "a" / "out")
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "a").mkdir()
    file.commit()
    assert (tmp_path / "b" / "out").exists()
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir(mode=0o300)
    try:
        with pytest.raises(RamError, match="its folder cannot be opened: Permission denied"):
            PartFile(tmp_path / "f" / "out")
    finally:
        (tmp_path / "f").chmod(0o700)
    assert list((tmp_path / "f").iterdir()) == []


def test_folders_as_root_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as above for whoever runs the tests: the system call refuses."""

    def refuse(*args: Any, **kwargs: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(RamError, match="Permission denied"):
        PartFile(tmp_path / "out")


# -- paths -------------------------------------------------------------------------------------------


BAD_PATHS = [
    ".",
    "/",
    "..",
    "",
    "missing/out",
    "file/out",
    "n" * 250,
    "n" * 5000,
    "nul\0byte",
    "\ud800",
    "folder",
    "fifo",
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda p: ascii(p)[:12])
@pytest.mark.parametrize("kind", [RawImageTarget, MappedRamTarget])
def test_a_path_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    before = len(os.listdir("/proc/self/fd")), sorted(os.listdir(tmp_path))
    with pytest.raises(RamError) as caught:
        kind(path)
    assert "\n" not in str(caught.value)
    assert (len(os.listdir("/proc/self/fd")), sorted(os.listdir(tmp_path))) == before


@pytest.mark.parametrize(
    "path", ["", ".", "/", "missing", "n" * 300, "nul\0byte", "\ud800"], ids=lambda p: ascii(p)[:12]
)
def test_a_path_that_cannot_be_read(path: str) -> None:
    with pytest.raises(RamError):
        RawImageSource(path)


def test_the_longest_name(tmp_path: Path) -> None:
    name = "n" * 241  # 255 bytes less what the temporary name adds
    file = PartFile(tmp_path / name)
    file.commit()
    assert (tmp_path / name).exists()


# -- blocks of any length ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [RawImageTarget, MappedRamTarget])
@pytest.mark.parametrize("nbytes", [1 << 50, 1 << 62, (1 << 63) - PAGE, (1 << 64) - PAGE])
def test_a_huge_block_is_refused_or_costs_nothing(tmp_path: Path, kind: Any, nbytes: int) -> None:
    """Whether the file system takes such a file or not: no memory goes into it, and no "bug in multifd" comes out."""
    target = kind(tmp_path / "out")
    with contextlib.suppress(RamError):
        target.allocate(Machine("none", PAGE, (Block("ram", nbytes),)))
    target.discard()
    assert list(tmp_path.iterdir()) == []
