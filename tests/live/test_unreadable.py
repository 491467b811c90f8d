"""Memory that cannot be touched, in what is sent and received into: an error or zero, never a signal.

Each kind runs in a process of its own, because the wrong answer is that it dies.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
import tempfile
import threading

import pytest
from memory_kinds import WHY_NO_LOG

import multifd
from multifd.errors import MultifdError, RamError

METHODS = ("none", "zlib", "zstd")
PAGE = 4096
SIZE = 4 << 20
BAD = SIZE // 2
TRACKERS = ["comparison"] if WHY_NO_LOG else ["write-protect", "comparison"]
MADV_GUARD_INSTALL = 102  # include/uapi/asm-generic/mman-common.h, Linux 6.13
DEADLINE_S = 60


class Memory:
    """Memory whose page at `BAD` can be spoiled: protected, guarded, or behind the end of its file."""

    def __init__(self, kind: str, folder: str) -> None:
        self.kind = kind
        if kind == "eof":
            self._fd = os.open(f"{folder}/f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            os.ftruncate(self._fd, SIZE)
            self.map = mmap.mmap(self._fd, SIZE)
            os.unlink(f"{folder}/f")
        else:
            self.map = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map[:] = bytes(range(1, 129)) * (SIZE // 128)

    def spoil(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        place = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + BAD)
        if self.kind == "eof":
            os.ftruncate(self._fd, BAD)
        elif self.kind in ("none", "read-only"):
            assert libc.mprotect(place, ctypes.c_size_t(PAGE), mmap.PROT_READ if self.kind == "read-only" else 0) == 0
        elif libc.madvise(place, ctypes.c_size_t(PAGE), MADV_GUARD_INSTALL) != 0:
            os.write(1, b"no guard pages")
            os._exit(0)


def one(kind: str, when: str, method: str, tracker: str, into: str) -> None:
    """One migration with a page that is spoiled `when`; without a tracker of a plain buffer."""
    with tempfile.TemporaryDirectory() as folder:
        source, sink = Memory(kind if when != "target" else "none", folder), Memory(kind, folder)
        calls: list[str] = []

        def spoil_once(_: object) -> None:
            if when == "during" and "spoiled" not in calls:
                calls.append("spoiled")
                source.spoil()

        if when == "before":
            source.spoil()
        if when == "target":
            sink.spoil()
        if when == "target of zeros":
            source.map[:] = bytes(SIZE)
            sink.spoil()
        errors: list[BaseException] = []
        listening, uris = threading.Event(), []

        def receive() -> None:
            try:
                target = multifd.Arena(sink.map) if into == "arena" else sink.map
                multifd.receive(
                    f"unix:{folder}/s", target, timeout=30, on_listening=lambda uri: (uris.append(uri), listening.set())
                )
            except MultifdError as e:
                errors.append(e)

        thread = threading.Thread(target=receive)
        thread.start()
        assert listening.wait(DEADLINE_S)
        options = {"on_progress": spoil_once, "timeout": 30, "max_bandwidth": 32 << 20 if when == "during" else 0}
        try:
            if not tracker:
                multifd.send(source.map, uris[0], method, **options)
            else:
                with multifd.Arena(source.map, writers="this-process") as arena:
                    live = multifd.Live(
                        arena, lambda: calls.append("pause"), lambda: calls.append("resume"), tracker=tracker
                    )
                    multifd.send(live, uris[0], method, **options)
        except MultifdError as e:
            errors.append(e)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert calls.count("pause") == calls.count("resume") or not errors
        if when != "during":  # there it may have been sent before
            assert any(isinstance(e, RamError) for e in errors), (kind, when, method, tracker, into, errors)


def main(kind: str) -> None:
    """Every combination of a kind."""
    if kind != "read-only":
        for case in itertools.product(("before", "during"), METHODS, TRACKERS):
            one(kind, *case, "arena")
        for method in METHODS:
            one(kind, "before", method, "", "arena")
        one(kind, "during", "none", "", "buffer")
    for method, into in itertools.product(METHODS, ("arena", "buffer")):
        one(kind, "target", method, TRACKERS[0], into)
    one(kind, "target of zeros", "zstd", "", "buffer")
    os.write(1, b"alive")
    os._exit(0)  # the maps are not fit to be torn down piece by piece


@pytest.mark.parametrize("pump", ["on", "off"])
@pytest.mark.parametrize("kind", ["none", "guard", "eof", "read-only"])
def test_no_signal(kind: str, pump: str) -> None:
    child = subprocess.run(
        [sys.executable, __file__, kind], capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MULTIFD_PUMP": pump}, check=False,
    )  # fmt: skip
    assert child.returncode == 0, (child.returncode, child.stdout, child.stderr)
    if "no guard pages" in child.stdout:
        pytest.skip("this kernel has no guard pages")
    assert child.stdout.strip() == "alive"


if __name__ == "__main__":
    main(sys.argv[1])
