"""Clean environments in which what is published is installed and tried."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = ("multifd-qpl", "multifd-lz4")
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_PATIENCE_S = 800
_OF_THE_MACHINE = ("MULTIFD_QEMU_NEW", "MULTIFD_REQUIRE_QEMU")
"""Variables that say what is there beside the interpreter."""


@functools.cache
def interpreter(version: str) -> str:
    """The command that runs a Python, such as 3.12 or 3.14t; skips the test if there is none on this machine."""
    if version == VERSION:
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    places = [*(shutil.which(f"python{version}"),), *sorted(pyenv.glob(f"{version}*/bin/python{version}"))]
    for place in filter(None, places):
        told = subprocess.run([place, "-c", "import ensurepip, venv"], capture_output=True, timeout=60)
        if told.returncode == 0:
            return str(place)
    pytest.skip(f"no Python {version} on this machine: nothing is said of it")


class Environment:
    """A virtual environment, with nothing in it that is not installed here.

    Args:
        folder: where it is made.
        dist: what was built.
        python: the command of its interpreter.
    """

    def __init__(self, folder: Path, dist: Path, python: str = sys.executable) -> None:
        self._folder, self._dist = folder, dist
        self.run_command(python, "-m", "venv", folder)

    def wheel(self, name: str) -> Path:
        """The one that pip takes for this interpreter and machine."""
        found = self._folder / "wheels" / name
        if not found.exists():
            self.pip("download", "--no-index", "--no-deps", "--find-links", self._dist, "--dest", found, name)
        (wheel,) = found.iterdir()
        return wheel

    def pip(self, *arguments: object) -> None:
        self.run("python", "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments)

    def run(self, command: str, *arguments: object, cwd: Path | None = None, fails: bool = False) -> str:
        """What a command of the environment says; with what it says on stderr, if it is to fail."""
        return self.run_command(self._folder / "bin" / command, *arguments, cwd=cwd, fails=fails)

    def run_command(self, *command: object, cwd: Path | None = None, fails: bool = False) -> str:
        # Neither the checkout nor what is chosen for the tests around this is to be seen.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("MULTIFD_", "PYTHON"))}
        env |= {name: os.environ[name] for name in _OF_THE_MACHINE if name in os.environ}
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd or self._folder.parent, env=env, capture_output=True, text=True,
            timeout=_PATIENCE_S,
        )  # fmt: skip
        assert bool(done.returncode) == fails, f"{command}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr if fails else done.stdout

    def path(self, name: str) -> Path:
        """A file of the environment."""
        return self._folder / name

    def pytest(self, *arguments: object) -> None:
        """The project's own tests, of what is installed."""
        self.run("python", "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, cwd=ROOT)
