"""The guide's method with hooks in C: it compiles without a warning, and the kit has nothing against it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from example_methods import EXAMPLES, run_kit

import multifd.pump

EXAMPLE = EXAMPLES / "native"
FILL = EXAMPLE / "multifd_fill.py"


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    command = [compiler(), "-std=c11", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    command += [f"-I{path}" for path in multifd.pump.__path__]
    done = subprocess.run(
        [*command, str(EXAMPLE / "fill.c"), "-o", str(tmp_path / "fill.so")], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path


def test_it_passes_the_kit(folder: Path) -> None:
    run = run_kit(folder, FILL, "fill", "-k", "test_native or round_trip or hostile or migration")
    assert run.returncode == 0, run.stdout
    assert "SKIPPED" not in run.stdout


def test_without_its_compiled_part_it_runs_in_python(tmp_path: Path) -> None:
    run = run_kit(tmp_path, FILL, "fill", "-k", "test_native_payloads or round_trip")
    assert run.returncode == 0, run.stdout
    assert "the method offers no hook in native code" in run.stdout
    assert "5 passed, 1 skipped" in run.stdout
