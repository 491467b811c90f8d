"""Channels at the same time under ThreadSanitizer, by a driver in C."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import multifd_qpl
import pytest

HERE = Path(__file__).parent
SOURCES = Path(multifd_qpl.__file__).parent


@pytest.mark.parametrize("sanitizer", ["none", "thread"])
def test_channels_share_nothing_unguarded(tmp_path: Path, sanitizer: str) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    program = tmp_path / "threads"
    flags = [] if sanitizer == "none" else [f"-fsanitize={sanitizer}"]
    files = [HERE / "threads.c", HERE / "standin.c", *sorted(SOURCES.glob("_[!b]*.c"))]
    command = [compiler, "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCES}", *flags]
    built = subprocess.run(
        [*command, *map(str, files), "-o", str(program)], capture_output=True, text=True, timeout=100, check=False
    )
    if "-ltsan" in built.stderr or "libtsan" in built.stderr:
        pytest.skip("gcc has no ThreadSanitizer here")
    assert (built.returncode, built.stderr) == (0, "")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["TSAN_OPTIONS"] = "halt_on_error=1"
    done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, timeout=100, check=False)
    if "FATAL: ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip("this gcc's ThreadSanitizer does not start under this kernel's address layout")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")
