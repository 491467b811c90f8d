"""stdout and stderr that cannot be written: what is done stays done, and the exit status says so."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from multifd.cli import console, streams
from multifd.errors import UsageError

MULTIFD = f"{shlex.quote(sys.executable)} -m multifd"


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("streams", [">/dev/full", "--json >/dev/full 2>/dev/full", "--json 2>&-", "<&- >&- 2>&-"])
def test_a_migration_whose_figures_nobody_sees(tmp_path: Path, streams: str) -> None:
    """It is complete, and its status is 0; with a document on stdout there is nothing else, wherever stderr is."""
    (tmp_path / "ram").write_bytes(os.urandom(1 << 16))
    done = shell(f"{MULTIFD} send ram dir:stored {streams}", tmp_path)
    assert (tmp_path / "stored" / "manifest.json").exists()
    assert done.returncode == 0, done
    assert "bug" not in done.stderr
    if streams == "--json 2>&-":
        assert json.loads(done.stdout)["status"] == "completed"
    if streams == ">/dev/full":
        assert done.stderr.endswith(
            "multifd: the figures are lost: stdout cannot be written: No space left on device\n"
        )


def test_a_table_into_a_pipe_that_nobody_reads(tmp_path: Path) -> None:
    """rich, which draws it, would end the process by itself."""
    (tmp_path / "ram").write_bytes(os.urandom(1 << 16))
    readable, writable = os.pipe()
    os.close(readable)
    command = [sys.executable, "-m", "multifd", "send", "ram", "dir:stored"]
    with open(writable, "w") as nobody:
        done = subprocess.run(command, cwd=tmp_path, stdout=nobody, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (tmp_path / "stored" / "manifest.json").exists()
    assert done.returncode == 0, done
    assert "the figures are lost" in done.stderr


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_what_a_file_was_asked_for_is_in_it_whatever_stdout_takes(tmp_path: Path, kind: str) -> None:
    with unwritable(kind), pytest.raises((UsageError, BrokenPipeError)):
        console.keep({"rows": []}, tmp_path / "result.json", lambda: console.say("a table"))
    assert json.loads((tmp_path / "result.json").read_text()) == {"rows": []}


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    console.write_whole(tmp_path / "pipe", "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_where_no_file_can_be_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        console.write_whole(tmp_path / ("x" * 255), "text")


@pytest.mark.parametrize(("words", "status"), [("--help", 2), ("methods --json", 2)])
def test_nothing_to_tell_but_what_cannot_be_written(tmp_path: Path, words: str, status: int) -> None:
    done = shell(f"{MULTIFD} {words} >/dev/full", tmp_path)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@contextlib.contextmanager
def unwritable(kind: str) -> Iterator[None]:
    """stdout on a full disk, or a pipe that nobody reads."""
    if kind == "full":
        fd = os.open("/dev/full", os.O_WRONLY)
    else:
        readable, fd = os.pipe()
        os.close(readable)
    with open(fd, "w") as stream, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        try:
            yield
        finally:
            streams.forget()


@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_relay_goes_on(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What became of a migration is in its log and metrics, too."""
    with unwritable(kind):
        console.show_one({"status": "completed"}, True, lambda: None)
        console.show_one({"status": "unknown"}, False, lambda: console.say("words"))
    assert capsys.readouterr().err.count("the figures are lost") == 2


@pytest.mark.parametrize(("kind", "error"), [("full", UsageError), ("gone", BrokenPipeError)])
def test_what_is_only_shown_is_an_error(kind: str, error: type[Exception]) -> None:
    with unwritable(kind), pytest.raises(error):
        console.show_one({"format": "raw"}, True, lambda: None)
