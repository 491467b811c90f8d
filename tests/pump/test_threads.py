"""Channels at the same time under ThreadSanitizer, by a driver in C."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import multifd.pump

HERE = Path(__file__).parent
SOURCES = Path(multifd.pump.__file__).parent
FILES = ("memory.c", "send.c", "recv.c", "splice.c")


@pytest.mark.parametrize("sanitizer", ["none", "thread", "address,undefined"])
def test_channels_share_nothing_unguarded(tmp_path: Path, sanitizer: str) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs gcc")
    program = tmp_path / "threads"
    flags = [] if sanitizer == "none" else [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command = [compiler, "-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{SOURCES}", *flags]
    files = [HERE / "threads.c", *(SOURCES / name for name in FILES)]
    built = subprocess.run(
        [*command, *map(str, files), "-o", str(program)], capture_output=True, text=True, timeout=100, check=False
    )
    if built.returncode and re.search(r"(-l|lib)([at]|ub)san", built.stderr):
        pytest.skip(f"gcc has no sanitizer {sanitizer} here")
    assert (built.returncode, built.stderr) == (0, "")
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["TSAN_OPTIONS"] = "halt_on_error=1"
    done = subprocess.run([str(program)], env=environment, capture_output=True, text=True, timeout=100, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this gcc's ThreadSanitizer does not start under this kernel's address layout")
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "done\n")
