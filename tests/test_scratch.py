"""Folders for what is needed for a while: gone at the end, and what a killed process has left goes with the next."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from cli.interrupting import Steps

from multifd import scratch
from multifd.errors import RamError

HOLDING = """
import sys
from multifd import scratch
with scratch.folder() as folder:
    open(folder + "/guest.ram", "w").write("memory")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def tmp(tmp_path, monkeypatch):
    """Where temporary files go."""
    path = tmp_path / "tmp"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


@pytest.fixture
def other(tmp):
    """A process that has such a folder with a file in it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp)},
    )  # fmt: skip
    process.folder = Path(process.stdout.readline().strip())
    yield process
    process.kill()
    process.communicate()


def test_it_is_this_users_alone_and_goes_with_the_context(tmp):
    with scratch.folder() as folder:
        assert Path(folder).parent == tmp
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        Path(folder, "below").mkdir()
        Path(folder, "below", "file").write_text("x")
    assert not list(tmp.iterdir())


def test_one_in_use_stays_and_what_a_killed_process_has_left_goes(tmp, other):
    assert list(other.folder.iterdir())
    with scratch.folder():
        assert other.folder.exists()
    other.kill()
    other.wait()
    assert list(tmp.iterdir()) == [other.folder]
    with scratch.folder() as folder:
        assert list(tmp.iterdir()) == [Path(folder)]


@pytest.mark.parametrize("name", ["multifd-scratch-a", "multifd-abcdefgh"])
def test_what_is_no_folder_of_ours_stays(tmp, name):
    """A link, and what only begins alike."""
    (tmp / "data").mkdir()
    (tmp / "data" / "file").write_text("x")
    if name.startswith("multifd-scratch-"):
        (tmp / name).symlink_to("data")
    else:
        (tmp / name).mkdir()
    scratch.remove_stale()
    assert (tmp / name).is_dir()
    assert (tmp / "data" / "file").read_text() == "x"


def test_a_new_one_that_is_taken_for_stale_is_made_anew(tmp, monkeypatch):
    """By another process, before it is locked."""
    claim, taken = scratch._claim, []

    def late(path):
        if not taken:
            taken.append(path)
            scratch.remove_stale()
        return claim(path)

    monkeypatch.setattr(scratch, "_claim", late)
    with scratch.folder() as folder:
        assert os.path.isdir(folder)
        assert folder not in taken
        assert list(tmp.iterdir()) == [Path(folder)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_step_leaves_nothing(tmp, number):
    """Also where a signal raises at once, as while a method is measured."""
    from multifd.cli import signals

    def use():
        with signals.raising(), scratch.folder() as folder:
            Path(folder, "below").mkdir()

    counted = Steps(number)
    counted.run(use)
    for at in range(len(counted.taken)):
        with pytest.raises((KeyboardInterrupt, signals.Terminated)):
            Steps(number, at).run(use)
        assert not list(tmp.iterdir()), counted.taken[at]


def test_where_none_can_be_made_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    words = "no folder for temporary files: No such file or directory; TMPDIR can"
    with pytest.raises(RamError, match=words), scratch.folder():
        pass
