"""What a compiler that does not work means: for users ISA-L and a reason, for publishers an error."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent.parent


@pytest.mark.parametrize(("mode", "succeeds"), [("", True), ("strict", False)])
def test_without_a_compiler(tmp_path: Path, mode: str, succeeds: bool) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "work"), "--build-lib", "."],
        cwd=_copy(tmp_path),
        env={**os.environ, "CC": "false", "MULTIFD_QPL_BUILD": mode},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode == 0) == succeeds, done.stderr
    assert not list((tmp_path / "plugin").rglob("*.so"))


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build"],
        cwd=_copy(tmp_path),
        env={**os.environ, "MULTIFD_QPL_BUILD": "fast"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode
    assert "expected strict, sanitize, fuzz or pure" in done.stderr


def _copy(folder: Path) -> Path:
    """What a source distribution has, without what was built from it."""
    target = folder / "plugin"
    package = target / "src" / "multifd_qpl"
    package.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (target / name).write_bytes((PLUGIN / name).read_bytes())
    for path in (PLUGIN / "src" / "multifd_qpl").iterdir():
        if path.suffix in (".py", ".c", ".h"):
            (package / path.name).write_bytes(path.read_bytes())
    return target
