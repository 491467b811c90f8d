"""What a compiler that does not work means: for users the path in Python and a reason, for publishers an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from multifd.pump import library

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What a source distribution has, without what was built from it."""
    target = tmp_path / "source"
    target.mkdir()
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    shutil.copytree(ROOT / "multifd", target / "multifd", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return target


def build(source: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", "work", "--build-lib", "lib"]
    env = {**os.environ, "MULTIFD_BUILD": "", **environment}
    return subprocess.run(command, cwd=source, env=env, capture_output=True, text=True, timeout=110)


BUILT_ALONE = """
import sys
# An editable installation finds submodules that the package before it on the path lacks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""
SHOW_VERSION = "from multifd.cli.main import main; main(['--version'])"
MIGRATE = """
import threading, multifd
target, listening = bytearray(1 << 20), threading.Event()
def receive():
    multifd.receive("unix:sock", target, on_listening=lambda uri: listening.set(), timeout=50)
thread = threading.Thread(target=receive)
thread.start()
assert listening.wait(50)
memory = bytes(range(256)) * 4096
multifd.send(multifd.MemoryImage(memory), "unix:sock", "zlib", timeout=50)
thread.join(50)
assert target == memory
"""


def run_built(lib: Path, cwd: Path, code: str) -> subprocess.CompletedProcess[str]:
    command, env = [sys.executable, "-P", "-c", BUILT_ALONE + code], {**os.environ, "PYTHONPATH": str(lib)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=110)


def test_without_a_compiler_it_runs_in_python_and_says_why(source: Path, tmp_path: Path) -> None:
    done = build(source, CC="false")
    assert done.returncode == 0, done.stderr
    assert not list(source.rglob("*.so"))
    migrated, told = (run_built(source / "lib", tmp_path, code) for code in (MIGRATE, SHOW_VERSION))
    assert (migrated.returncode, migrated.stderr) == (0, "")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[1:] == [
        "packets travel in Python: no packet pump in this installation: a pure wheel, or built without a C compiler"
    ]


def test_publishers_get_an_error(source: Path) -> None:
    assert build(source, CC="false", MULTIFD_BUILD="strict").returncode


def test_an_unknown_mode_is_refused(source: Path) -> None:
    done = build(source, MULTIFD_BUILD="fast")
    assert done.returncode
    assert "expected strict, sanitize, fuzz or pure" in done.stderr


@pytest.mark.skipif("MULTIFD_SANITIZED" not in os.environ, reason="make sanitize asks")
def test_what_is_under_test_is_sanitized() -> None:
    assert not library.unavailable_reason()
    import multifd._pump

    assert multifd._pump.__file__.startswith(os.environ["MULTIFD_SANITIZED"])


@pytest.mark.skipif(bool(library.unavailable_reason()), reason=f"no pump: {library.unavailable_reason()}")
@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "packets travel by the packet pump"),
        ({"MULTIFD_PUMP": "off"}, "packets travel in Python: MULTIFD_PUMP=off"),
    ],
)
def test_the_command_says_how_packets_travel(environment: dict[str, str], words: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "MULTIFD_PUMP"} | environment
    run = [sys.executable, "-m", "multifd", "--version"]
    told = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[1:] == [words]
