"""QEMUs for tests: which there are, that none survives its test, and which cases are tried."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from interop.guest import Guest, passes_printed
from interop.pairwise import pairwise
from interop.qemu import Qemu, QemuMissing, Release, newer_release, qpl_release, system_release
from interop.scenario import MIB


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case`: of a module's EVERY a pairwise selection, with --every all."""
    if "case" in metafunc.fixturenames:
        every = metafunc.module.EVERY
        cases = every if metafunc.config.getoption("every") else pairwise(every)
        metafunc.parametrize("case", cases, ids=lambda c: "-".join(map(str, [*c.route, *c[1:]])))


def _require(find: Callable[[], Release], *, is_required: bool) -> Release:
    try:
        return find()
    except QemuMissing as missing:
        if is_required:
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@pytest.fixture(scope="session")
def releases() -> Callable[[str], Release]:
    """The QEMU that a case calls "system", "newer" or "qpl", or a skip that says what is missing.

    MULTIFD_REQUIRE_QEMU makes it a failure if the system's QEMU is missing, or the one that MULTIFD_QEMU_NEW names.
    """
    is_required = bool(os.environ.get("MULTIFD_REQUIRE_QEMU"))

    @cache
    def find(name: str) -> Release:
        if name == "system":
            return _require(system_release, is_required=is_required)
        if name == "qpl":
            return _require(qpl_release, is_required=is_required and "MULTIFD_QEMU_QPL" in os.environ)
        return _require(newer_release, is_required=is_required and "MULTIFD_QEMU_NEW" in os.environ)

    return find


@pytest.fixture
def qemu(tmp_path: Path, releases: Callable[[str], Release]) -> Iterator[Callable[..., Qemu]]:
    """Start QEMUs: ``qemu(name, mib, release="system", **options of Qemu)``."""
    started: list[Qemu] = []

    def start(name: str, mib: int, release: str = "system", **options: Any) -> Qemu:
        found, machine = releases(release), options["machine"]
        if machine not in found.machines:
            pytest.skip(f"QEMU {found.version} has no machine type {machine}")
        started.append(Qemu(found, tmp_path, name, mib, **options))
        return started[-1]

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def start(qemu: Callable[..., Qemu], image: bytes) -> Callable[..., Qemu]:
    """Start a source: it runs `guest` above an image in RAM, or, paused, has the image alone."""

    def start(name: str, release: str, machine: str, guest: Guest, *, is_paused: bool = False, **options: Any) -> Qemu:
        disk = guest.disk()
        process = qemu(name, MIB, release, machine=machine, disk=disk, image=image, is_paused=is_paused, **options)
        if not is_paused:
            process.wait(lambda: passes_printed(process.console()) > 1, "second pass of the guest")
        return process

    return start
