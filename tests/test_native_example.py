"""The guide's method with hooks in C: it compiles without a warning, and the kit has nothing against it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import multifd.pump

EXAMPLE = Path(__file__).parent.parent / "examples" / "native"


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


def run_kit(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    info = folder / "fill-1.0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fill\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[multifd.methods]\nfill = multifd_fill:FillMethod\n")
    shutil.copy(EXAMPLE / "multifd_fill.py", folder)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "--multifd-method", "fill"]
    return subprocess.run(
        [*command, "--pyargs", "multifd.testing", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
    )


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
    run = run_kit(folder, "-k", "test_native or round_trip or hostile or migration")
    assert run.returncode == 0, run.stdout
    assert "SKIPPED" not in run.stdout


def test_without_its_compiled_part_it_runs_in_python(tmp_path: Path) -> None:
    run = run_kit(tmp_path, "-k", "test_native_payloads or round_trip")
    assert run.returncode == 0, run.stdout
    assert "the method offers no hook in native code" in run.stdout
    assert "5 passed, 1 skipped" in run.stdout
