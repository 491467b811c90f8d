"""What the tests of qpl share: a libqpl, packets in memory, pages.

The library is the one that MULTIFD_QPL_LIBRARY names, else a stand-in compiled from ``standin.c``.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from multifd.method import Geometry, Memory, MultifdMethods, Pages, RecvParams, SendParams

HERE = Path(__file__).parent
PAGE_SIZES = [4096, 8192, 16384, 65536]


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
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", *defines, str(text), "-o", str(target)], check=True, timeout=60
        )
        return str(target)

    return build


@pytest.fixture(scope="session")
def standin(compile_library: Callable[..., str]) -> str:
    """The path of the stand-in libqpl."""
    return compile_library()


@pytest.fixture
def standin_library(standin: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ctypes.CDLL]:
    """The stand-in as the process's libqpl, with its switches; no job outlives the test."""
    monkeypatch.setenv("MULTIFD_QPL_LIBRARY", standin)
    controls = ctypes.CDLL(standin)
    yield controls
    controls.standin_set_hardware(501)
    assert controls.standin_live_jobs() == 0


@pytest.fixture
def libqpl(request: pytest.FixtureRequest) -> str:
    """Some libqpl in the environment: the named one, else the stand-in."""
    named = os.environ.get("MULTIFD_QPL_LIBRARY")
    if named:
        return named
    request.getfixturevalue("standin_library")
    return str(request.getfixturevalue("standin"))


def make_pages(page_size: int, count: int, seed: int = 1) -> bytearray:
    """Pages of every sort: text, sparse, one byte, noise, and far repeats."""
    rng = random.Random(seed)
    words = [rng.randbytes(rng.randint(2, 9)) for _ in range(300)]
    pages = bytearray()
    for i in range(count):
        kind = i % 5
        if kind == 0:
            page = b" ".join(rng.choice(words) for _ in range(page_size // 3))
        elif kind == 1:
            page = bytearray(page_size)
            for _ in range(page_size // 64):
                page[rng.randrange(page_size)] = rng.randrange(256)
        elif kind == 2:
            page = bytes([rng.randrange(1, 256)]) * page_size
        elif kind == 3:
            page = rng.randbytes(page_size)
        else:
            page = rng.randbytes(5000) * (page_size // 5000 + 1)  # repeats only beyond 4 KiB
        pages += page[:page_size]
    return pages


class Ends:
    """Both ends of one channel, without an engine between them."""

    def __init__(self, method: MultifdMethods, page_size: int = 4096, abort: bytearray | None = None) -> None:
        self.method = method
        self.geometry = Geometry.of(page_size)
        self.abort = bytearray(1) if abort is None else abort
        size = page_size * self.geometry.page_count
        self.scratch = Memory(memoryview(bytearray(size)), page_size)
        none = Pages(self.scratch, np.array([], np.int64), self.scratch)
        self.sender = SendParams(3, self.geometry, self.abort, none)
        self.receiver = RecvParams(3, self.geometry, self.abort, none)

    def __enter__(self) -> Ends:
        try:
            self.method.send_setup(self.sender)
            self.method.recv_setup(self.receiver)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for _ in range(2):  # the second is harmless
            self.method.send_cleanup(self.sender)
            self.method.recv_cleanup(self.receiver)

    def pages(self, memory: bytearray, offsets: list[int] | None = None) -> Pages:
        """Pages of `memory`: all, or those at `offsets`."""
        page_size = self.geometry.page_size
        if offsets is None:
            offsets = list(range(0, len(memory), page_size))
        return Pages(Memory(memoryview(memory), page_size), np.array(offsets, np.int64), self.scratch)

    def send(self, memory: bytearray, offsets: list[int] | None = None) -> bytes:
        """The payload of a packet."""
        self.sender.pages = self.pages(memory, offsets)
        self.sender.iov.clear()
        self.method.send_prepare(self.sender)
        assert len(self.sender.iov) <= 1000
        return b"".join(self.sender.iov)

    def receive(self, payload: bytes, memory: bytearray, offsets: list[int] | None = None) -> None:
        """A packet's payload into `memory`."""
        self.receiver.pages = self.pages(memory, offsets)
        self.receiver.payload = memoryview(payload).toreadonly()
        self.method.recv(self.receiver)


def split(payload: bytes, count: int) -> list[bytes]:
    """The pages' parts of a payload; checks that the table fits."""
    lengths = [int.from_bytes(payload[4 * i : 4 * i + 4], "big") for i in range(count)]
    start, parts = 4 * count, []
    for length in lengths:
        parts.append(payload[start : start + length])
        start += length
    assert start == len(payload)
    return parts
