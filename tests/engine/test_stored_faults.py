"""Storing that ends in its middle: killed at any step, by a full disk at any step. Nothing is there under the name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_image

import multifd
from multifd.engine import streams_info
from multifd.errors import RamError
from multifd.ram.part_folder import PartFolder

CALLS = ("mkdir", "open", "pwritev", "fdatasync", "fsync", "replace")
"""Of `os`, which a folder that is stored is made by."""
MOST = 300
DIES_AT_EVERY_STEP = f"""
import os, signal, sys, threading
import multifd

lock = threading.Lock()

def counted(call):
    def step(*args, **kwargs):
        global left
        with lock:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return step

def send(folder):
    multifd.send(sys.argv[1] + "/vm.raw", "dir:" + folder, "none", channels=1)

def receive(folder):
    def start(uri):
        threading.Thread(target=multifd.send, args=(sys.argv[1] + "/vm.raw", uri), daemon=True).start()
    multifd.receive(f"tcp:127.0.0.1:0", "dir:" + folder, on_listening=start)

globals()[sys.argv[2]](sys.argv[1] + "/first")  # what is imported for it is there from here on
for name in {CALLS}:
    setattr(os, name, counted(getattr(os, name)))
for step in range(1, {MOST}):
    left = 0
    os.mkdir(f"{{sys.argv[1]}}/{{step}}")
    if not (child := os.fork()):
        left = step
        globals()[sys.argv[2]](f"{{sys.argv[1]}}/{{step}}/streams")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        print(step)
        break
"""


@pytest.mark.parametrize("command", ["send", "receive"])
def test_killed_at_any_step(tmp_path, command):
    """There is all of it or nothing; the next one removes what was begun."""
    (tmp_path / "vm.raw").write_bytes(make_image(40))
    (tmp_path / "temporary").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DIES_AT_EVERY_STEP, tmp_path, command], capture_output=True, text=True, timeout=100,
        env={**os.environ, "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    assert done.stdout, done.stderr
    seen = set()
    for step in range(1, int(done.stdout) + 1):
        folder = tmp_path / str(step) / "streams"
        found = [str(path.relative_to(folder.parent)) for path in sorted(folder.parent.rglob("*"))]
        assert found[:1] in ([], [".streams.multifd-part"], ["streams"])
        if tuple(found) in seen:
            continue
        seen.add(tuple(found))
        if found[:1] != ["streams"]:
            assert multifd.send(tmp_path / "vm.raw", f"dir:{folder}", "none").status == "completed"
        assert os.listdir(folder.parent) == ["streams"]
        streams_info.verify(folder)
    assert len(seen) >= 5
    assert len({found[:1] for found in seen}) == 3


class FullDisk:
    """Lets one call of `CALLS` fail, the so-many-th from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
        self.left = left
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call):
        def step(*args, **kwargs):
            self.left -= 1
            if not self.left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return step


def store(path: Path) -> RamError | None:
    """What went wrong with it."""
    try:
        folder = PartFolder(path)
    except RamError as e:
        return e
    try:
        for name in ("main", "channel-0"):
            folder.file(name).write(b"bytes")
        folder.flush()
        folder.commit("none", 4096)
    except RamError as e:
        return e
    finally:
        folder.discard()
    return None


def test_a_disk_that_is_full_at_any_step(tmp_path):
    """The error says so, and nothing is left but what could not even be opened; under the name it is whole."""
    for left in range(1, MOST):
        place = tmp_path / str(left)
        place.mkdir()
        with pytest.MonkeyPatch.context() as monkeypatch:
            disk = FullDisk(monkeypatch, left)
            error = store(place / "streams")
        if disk.left > 0:
            break
        assert error is None or os.strerror(errno.ENOSPC) in str(error)
        found = os.listdir(place)
        if error is None:
            assert (found, len(os.listdir(place / "streams"))) == (["streams"], 3)
        elif found:
            assert (found, os.listdir(place / ".streams.multifd-part")) == ([".streams.multifd-part"], [])
        assert store(place / "again") is None
    assert 10 < left < MOST - 1
