"""What several test files share: an image, receivers, the command line as a process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from certificates import Folders
from ends import ReceiverThread
from shaped_link import LinkUnavailable, ShapedLink

DEADLINE_S = 60

# A busy machine is no defect.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Whoever started the tests may ignore SIGINT, as a shell does for what it puts in the background: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", action="store_true", help="against real QEMUs, every case, not a pairwise selection")


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A command that a test runs in this process leaves the signals' handlers as it found them."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)
    assert after == before


def make_image(pages: int, seed: int = 1) -> bytes:
    """RAM with runs of zero, text-like, repeating and random pages."""
    rng = random.Random(seed)
    words = [b"page", b"block", b"packet", b"channel", b"migrate", b"\0\0\0\0", b"return", b"0x7f00"]
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: bytes(4096),
        lambda: b" ".join(rng.choices(words, k=1200))[:4096].ljust(4096, b"."),
        lambda: rng.randbytes(64) * 64,
        lambda: rng.randbytes(4096),
        lambda: bytes(4088) + rng.randbytes(8),
    )
    out: list[bytes] = []
    while len(out) < pages:
        maker = rng.choice(makers)
        out += [maker() for _ in range(rng.randint(1, 40))]
    return b"".join(out[:pages])


@pytest.fixture
def receiver() -> Iterator[Callable[..., ReceiverThread]]:
    """Start receivers; whatever happens, the test does not leave one behind."""
    started: list[ReceiverThread] = []

    def start(into: Any, uri: str = "tcp:127.0.0.1:0", **options: Any) -> ReceiverThread:
        thread = ReceiverThread(into, uri, **options)
        started.append(thread)
        return thread

    before = threading.active_count()
    yield start
    for thread in started:
        thread.is_over()
    assert threading.active_count() <= before, [t.name for t in threading.enumerate()]


class Cli:
    """`multifd ARGS` as a process."""

    def __init__(self, *args: object, **options: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "multifd", *map(str, args)],
            stdout=subprocess.PIPE, text=True, **{"stderr": subprocess.PIPE, **options},
        )  # fmt: skip
        self.stderr = ""

    def listening(self) -> str:
        """The URI that it prints."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        self.stderr += line
        assert line.startswith("listening on "), line + self.process.stderr.read()
        return line.split()[-1]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, status: int = 0) -> tuple[str, str]:
        """stdout and stderr, after it exited with `status` and without a traceback."""
        out, err = self.process.communicate(timeout=DEADLINE_S)
        self.stderr += err or ""  # a test may have sent it elsewhere
        assert self.process.returncode == status, (self.process.returncode, self.stderr)
        assert "Traceback" not in self.stderr
        return out, self.stderr

    def json(self, status: int = 0) -> Any:
        """The one document on stdout."""
        return json.loads(self.wait(status)[0])


@pytest.fixture
def cli() -> Iterator[Callable[..., Cli]]:
    """Start commands; none survives the test."""
    started: list[Cli] = []

    def start(*args: object, **options: Any) -> Cli:
        command = Cli(*args, **options)
        started.append(command)
        return command

    yield start
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders with certificates, good ones and others."""
    return Folders(tmp_path_factory.mktemp("credentials"))


@pytest.fixture
def link() -> Iterator[ShapedLink]:
    """Of 100 Mbit/s, whose rate may be changed."""
    try:
        made = ShapedLink(10**8)
    except LinkUnavailable as e:
        pytest.skip(f"no link can be shaped here: {e}")
    with made:
        yield made


@pytest.fixture(scope="session")
def image() -> bytes:
    """8 MiB of RAM."""
    return make_image(2048)


@pytest.fixture
def image_path(image: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "source.ram"
    path.write_bytes(image)
    return path
