"""What a command leaves behind when it ends early: nothing, or what it was to make as a whole; and one line says it.

A signal comes after each step of each command, see `interrupting`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import peer
import pytest
from cli.interrupting import Steps
from manage.fake_qemu import FakeQemu, serve
from mapped_files import build

import multifd
from multifd.cli.main import main
from multifd.errors import MultifdError
from multifd.ram.part_folder import PartFolder

RAM = bytes(4096) + os.urandom(4096) + bytes(2 * 4096)
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
Case = Callable[[Path], contextlib.AbstractContextManager[list[object]]]
CASES: dict[str, Case] = {}


def case(made: Callable[[Path], Iterator[list[object]]]) -> None:
    """A command, by the name of the function that prepares a folder for it and gives its words."""
    CASES[made.__name__.replace("_", " ").strip()] = contextlib.contextmanager(made)


def capture(folder: Path, name: str = "vm.ram") -> Path:
    path = folder / name
    path.write_bytes(build([(b"pc.ram", RAM)]))
    return path


def streams(folder: Path) -> str:
    """Of one channel with a page that is not zero."""
    stored = PartFolder(folder / "streams")
    stored.file("main").write(b"".join(peer.main_stream([(b"ram", len(RAM))]).values()))
    packets = (peer.init(0), peer.sync(), peer.packet([4096], RAM[4096:8192]), peer.sync())
    stored.file("channel-0").write(b"".join(packets))
    stored.commit("none", peer.PAGE)
    return f"dir:{folder}/streams"


@case
def digest(folder):
    yield ["digest", capture(folder)]


@case
def verify_streams(folder):
    yield ["verify", streams(folder)]


@case
def verify_ram(folder):
    yield ["verify", "--ram", streams(folder)]


@case
def export(folder):
    yield ["export", capture(folder), folder / "out"]


@case
def export_streams(folder):
    yield ["export", streams(folder), folder / "out"]


@case
def send_to_a_folder(folder):
    yield ["send", capture(folder), f"dir:{folder}/out", "--channels", 1]


@case
def send_from_folder_to_folder(folder):
    yield ["send", streams(folder), f"dir:{folder}/out", "--method", "zlib"]


@case
def receive(folder):
    """With the sockets of a listener and of metrics."""
    canceller = multifd.Canceller()

    def send():
        with contextlib.suppress(MultifdError):
            multifd.send(RAM, f"unix:{folder}/socket", channels=1, canceller=canceller)

    source = threading.Thread(target=send)
    source.start()
    try:
        yield ["receive", f"unix:{folder}/socket", folder / "out", "--metrics", f"unix:{folder}/metrics"]
    finally:
        canceller.cancel()
        source.join()


@case
def receive_from_a_folder(folder):
    yield ["receive", streams(folder), folder / "out"]


@case
def relay(folder):
    yield ["relay", "--once", streams(folder), f"dir:{folder}/out", "--metrics", f"unix:{folder}/metrics"]


@case
def relay_service(folder):
    """SIGTERM ends it once it listens; a signal that has come before does not need it."""
    (folder / "relay.toml").write_text(f'[routes.a]\nlisten = "unix:{folder}/in"\nto = "unix:{folder}/to"\n')
    is_over = threading.Event()

    def end():
        while not is_over.wait(0.01):
            with socket.socket(socket.AF_UNIX) as stranger:
                if stranger.connect_ex(f"{folder}/in") == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

    before = signal.signal(signal.SIGTERM, lambda *_: None)  # it may come when all is over
    other = threading.Thread(target=end)
    other.start()
    try:
        yield ["relay", "--config", folder / "relay.toml"]
    finally:
        is_over.set()
        other.join()
        signal.signal(signal.SIGTERM, before)


@case
def capture_of_a_guest(folder):
    fake = FakeQemu(RAM)
    with serve(fake, folder / "qmp"):
        yield ["capture", folder / "out", "--qmp", folder / "qmp", "--channels", 1]
    fake.end()
    assert (fake.run_state, fake.capabilities["multifd"]) == ("running", False)


@case
def restore(folder):
    fake = FakeQemu(RAM, "inmigrate")
    with serve(fake, folder / "qmp"):
        yield ["restore", capture(folder), "--qmp", folder / "qmp", "--channels", 1]
    fake.end()


@case
def new_plugin(folder):
    with contextlib.chdir(folder):
        yield ["new-plugin", "mine"]


@case
def tls_new(folder):
    pytest.importorskip("cryptography", reason="the package cryptography is not installed")
    yield ["tls", "new", folder / "out", "vm.example"]


@case
def report(folder):
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    sample = Path(__file__).parent.parent / "bench" / "sample.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multifd.bench.report.page.html", lambda documents: "a page")  # which takes seconds
        yield ["report", sample, "--output", folder / "out.html"]


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short path: that of a socket has 107 bytes, and pytest's folders of several workers take most of them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Place:
    """A folder in which a command runs, with one for temporary files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "tmp").mkdir(parents=True)
        for name in ("fsync", "fdatasync"):  # not what is asked here, and slow on a busy disk
            monkeypatch.setattr(os, name, lambda fd: None)
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))

    def run(self, made: Case, steps: Steps) -> tuple[int, set[str], set[str]]:
        """Its exit status, what was there before, and what is afterwards."""
        threads = threading.active_count()
        with made(self.folder) as words:
            before = names(self.folder)
            try:
                steps.run(lambda: main([*map(str, words)]))
                status = 0
            except SystemExit as e:
                status = e.code
            if status:
                gc.collect()  # what the error's frames still hold
        assert threading.active_count() <= threads, threading.enumerate()
        with contextlib.suppress(ChildProcessError):  # those of bench end when nobody holds their pipes any more
            while os.waitpid(-1, 0):
                pass
        after = names(self.folder)
        return status, before, after

    def check(self, made: Case, steps: Steps, number: signal.Signals, err: Callable[[], str]) -> set[str]:
        """Run it with a signal; returns what is there afterwards, empty if it is what was there before."""
        status, before, after = self.run(made, steps)
        lines = err().splitlines()
        told = [line for line in lines if "error:" in line]
        assert status in (0, STATUS[number]), (steps.taken, status, lines)
        assert len(told) == (status != 0), (steps.taken, lines)
        assert not any("Traceback" in line for line in lines)
        is_whole = status == 0 or any(
            "the file is complete" in line for line in lines
        )  # it was too late, and that is told
        assert is_whole or after == before, (steps.taken, status, after - before, before - after)
        return after if is_whole else set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a file that nobody has yet
@pytest.mark.parametrize("name", CASES)
def test_a_signal_after_each_step(name, tmp_path, monkeypatch, capsys):
    first = Steps()
    status, _, complete = Place(tmp_path / "whole", monkeypatch).run(CASES[name], first)
    assert (status, first.taken != {}) == (0, True), capsys.readouterr().err
    capsys.readouterr()
    for at in range(len(first.taken)):
        number = list(STATUS)[at % 2]
        place = Place(tmp_path / str(at), monkeypatch)
        left = place.check(CASES[name], Steps(number, at), number, lambda: capsys.readouterr().err)
        assert left in (set(), complete, {name for name in complete if not name.endswith(".sha256")})


@pytest.mark.parametrize(
    ("words", "step"),
    [
        (["bench", "--runs", 1, "--synthetic", "zero:64K"], "mkdir"),
        (["demo", "--size", "64K"], "mkdir"),
        (["demo", "--size", "64K"], "fork_exec"),
    ],
)
def test_a_signal_where_folders_and_processes_are_made(words, step, tmp_path, monkeypatch, capsys):
    """Of commands that a signal ends wherever they are; `tests/test_scratch.py` has all steps of their folders."""
    monkeypatch.setattr("multifd.cli.demo._roomy_folder", lambda need: None)
    made = contextlib.contextmanager(lambda folder: iter([[*words, "--method", "none", "--channels", 1]]))
    steps = Steps(signal.SIGINT, 0, frozenset({step}))
    place = Place(tmp_path / "one", monkeypatch)
    assert place.check(made, steps, signal.SIGINT, lambda: capsys.readouterr().err) == set()


@pytest.mark.parametrize(
    ("words", "state", "at", "then"),
    [
        (["capture", "out"], "running", "migrate", ["capture", "out", "--recover"]),
        (["restore", "vm.ram"], "inmigrate", "migrate-incoming", ["restore", "vm.ram"]),
    ],
)
def test_sigkill_between_two_commands_of_qemu(cli, tmp_path, monkeypatch, words, state, at, then):
    """The private folder of the migration's socket goes with the next command that needs one, or recovers."""
    place = Place(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    capture(tmp_path)
    fake, killed = FakeQemu(RAM, state), []
    process = None

    def kill(command, number):
        if command == at and not killed:
            killed.append(number)
            process.process.kill()
            process.process.wait()

    fake.hook = kill
    with serve(fake, tmp_path / "qmp"):
        process = cli(*words, "--qmp", tmp_path / "qmp", env={**os.environ, "TMPDIR": str(tmp_path / "tmp")})
        process.wait(-signal.SIGKILL)
        assert [path.name[:16] for path in (tmp_path / "tmp").iterdir()] == ["multifd-scratch-"]
    fake.end()
    (tmp_path / "qmp").unlink()
    fake = FakeQemu(RAM, state)
    with serve(fake, tmp_path / "qmp"):
        main([*then, *([] if "--recover" in then else ["--qmp", str(tmp_path / "qmp")])])
    fake.end()
    assert not list((tmp_path / "tmp").iterdir())
    assert place.folder.joinpath("out").exists() is False
