"""QEMUs for tests: which there are, and that none survives its test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from interop.qemu import Qemu, QemuMissing, Release, newer_release, system_release


def _require(find: Callable[[], Release], *, is_required: bool) -> Release:
    try:
        return find()
    except QemuMissing as missing:
        if is_required:
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def releases() -> Callable[[str], Release]:
    """The QEMU that a case calls "system" or "newer", or a skip that says what is missing.

    MULTIFD_REQUIRE_QEMU makes a missing system QEMU a failure.
    """
    known = {
        "system": lambda: _require(system_release, is_required=bool(os.environ.get("MULTIFD_REQUIRE_QEMU"))),
        "newer": lambda: _require(newer_release, is_required=False),
    }
    return lambda name: known[name]()


@pytest.fixture
def qemu(tmp_path: Path, releases: Callable[[str], Release]) -> Iterator[Callable[..., Qemu]]:
    """Start QEMUs: ``qemu(name, mib, release="system", **options of Qemu)``."""
    started: list[Qemu] = []

    def start(name: str, mib: int, release: str = "system", **options: Any) -> Qemu:
        found, machine = releases(release), options.get("machine", "")
        if not found.has(machine):
            pytest.skip(f"QEMU {found.version} has no machine type {machine}")
        started.append(Qemu(found, tmp_path, name, mib, **options))
        return started[-1]

    yield start
    for process in started:
        process.stop()
