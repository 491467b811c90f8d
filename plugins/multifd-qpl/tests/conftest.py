"""What the tests of qpl share: a libqpl, packets in memory, pages.

The library is the one that MULTIFD_QPL_LIBRARY names, else a stand-in compiled from ``standin.c``. If one is named,
every test uses it: it does the work of the stand-in, whose hardware path and switches then stand before it, and of
the simulated devices and their software jobs.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from multifd_qpl import _batch
from multifd_qpl._batch import ffi, lib
from multifd_qpl.jobs import Job
from multifd_qpl.library import _load
from multifd_qpl.simulator import Deflate, Fault

HERE = Path(__file__).parent
NAMED = os.environ.get("MULTIFD_QPL_LIBRARY") or None

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1"]
"""What the stand-in is compiled with, too, when the plugin is (`make sanitize`)."""


def pytest_configure() -> None:
    """`make sanitize` must not end up testing the module without sanitizers."""
    folder = os.environ.get("MULTIFD_QPL_SANITIZED")
    if folder and not Path(str(_batch.__file__)).is_relative_to(folder):
        raise pytest.UsageError(f"{_batch.__file__} is tested, expected the one in {folder}")


@pytest.fixture(scope="session")
def vectors() -> dict[str, Any]:
    """Pages and streams of the real libqpl; see its provenance."""
    data = json.loads((HERE / "data" / "vectors.json").read_text())
    data["pages"] = {int(k): base64.b64decode(v) for k, v in data["pages"].items()}
    for entry in (*data["vectors"], *data["decompress_cases"]):
        if "stream" in entry:
            entry["stream"] = base64.b64decode(entry["stream"])
    return data


@pytest.fixture(scope="session")
def compile_library(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Compile ``standin.c``, or another C text, into a shared object; its path."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler for the stand-in libqpl")

    def build(source: str | None = None, *defines: str) -> str:
        folder = tmp_path_factory.mktemp("libqpl")
        if source is None:
            text = HERE / "standin.c"
        else:
            text = folder / "source.c"
            text.write_text(source)
        target = folder / "libqpl.so.1"
        flags = SANITIZERS if "MULTIFD_QPL_SANITIZED" in os.environ else ["-O2"]
        subprocess.run(
            [compiler, *flags, "-shared", "-fPIC", *defines, str(text), "-o", str(target)], check=True, timeout=60
        )
        return str(target)

    return build


@pytest.fixture(scope="session")
def standin(compile_library: Callable[..., str]) -> str:
    """The path of the stand-in libqpl, before the named one if there is one."""
    return compile_library(None, f'-DBEHIND="{NAMED}"') if NAMED else compile_library()


@pytest.fixture(autouse=True)
def _simulate_by_the_named_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated jobs make and read the named library's streams, where no fault asks for others."""
    if NAMED is None:
        return
    by_zlib = Deflate.run

    def run(self: Deflate, job: Any, fault: Fault | None, *, on_device: bool) -> int:
        if fault is not None:
            return by_zlib(self, job, fault, on_device=on_device)
        if on_device and job.op == lib.MQ_DECOMPRESS:
            # A device needs the end mark, which the library forgives: ask zlib whether it is there.
            inflater = zlib.decompressobj(-15)
            with contextlib.suppress(zlib.error):
                inflater.decompress(bytes(ffi.buffer(job.next_in_ptr, job.available_in)))
            if not inflater.eof:
                return by_zlib(self, job, fault, on_device=on_device)
        return _execute(job)

    monkeypatch.setattr(Deflate, "run", run)


_real = threading.local()


def _execute(job: Any) -> int:
    """The named library's software path; a job of its own for each thread."""
    if not hasattr(_real, "job"):
        assert NAMED is not None
        _real.library = _load(NAMED)
        _real.job = Job(_real.library, lib.MQ_SOFTWARE)
    head = ffi.offsetof("qpl_job", "level") + 4
    ffi.memmove(_real.job.pointer, job, head)
    status: int = _real.library.table.execute_job(_real.job.pointer)
    ffi.memmove(job, _real.job.pointer, head)
    return status


@pytest.fixture
def standin_library(standin: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The stand-in as the process's libqpl, with its switches; no job outlives the test."""
    monkeypatch.setenv("MULTIFD_QPL_LIBRARY", standin)
    controls = ctypes.CDLL(standin)
    yield controls
    controls.standin_set_hardware(501)
    controls.standin_set_damage(-1)
    assert controls.standin_live_jobs() == 0


@pytest.fixture
def libqpl(request: pytest.FixtureRequest) -> str:
    """Some libqpl in the environment: the named one, else the stand-in."""
    if NAMED:
        return NAMED
    request.getfixturevalue("standin_library")
    return str(request.getfixturevalue("standin"))
