"""Where the memory is after a signal at any moment: words, statuses, documents and the file agree at both ends."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

PAGES = 512
PERMILLE = [0, 1, 5, 20, 300, 700, 950, 990, 999, 1000]


class Wire:
    """Passes connections through to a listener, and calls once so many bytes have gone forward.

    Args:
        uri: of the listener.
        after: bytes, over all connections.
        call: in the thread that forwards, before the last of these bytes goes on.
        on_answer: call when the destination's last word comes back instead.
    """

    def __init__(self, uri: str, after: int, call: Callable[[], object], *, on_answer: bool = False) -> None:
        self._to = uri.removeprefix("unix:")
        self._left, self._lock, self._call, self._on_answer = after, threading.Lock(), call, on_answer
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self.uri = f"{uri}.wire"
        self._listener.bind(self.uri.removeprefix("unix:"))
        self._listener.listen(16)
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=run, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                self._sockets += [near, far]
                far.connect(self._to)
                self._start(self._forward, near, far)
                self._start(self._back, far, near)

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65536):
                with self._lock:
                    is_now = self._left > 0 and self._left <= len(data) and not self._on_answer
                    self._left -= len(data)
                if is_now:
                    self._call()
                far.sendall(data)
        with contextlib.suppress(OSError):
            far.shutdown(socket.SHUT_WR)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                # SHUT of the return path: u16 1, u16 4, u32 value
                if self._on_answer and b"\0\1\0\4\0\0\0\0" in data:
                    self._call()
                near.sendall(data)
        with contextlib.suppress(OSError):
            near.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for sock in (self._listener, *self._sockets):
            sock.close()


def ended(command, as_json: bool) -> tuple[int, str]:
    """A command's exit status and all its words; one document on stdout where that was asked for."""
    out, err = command.process.communicate(timeout=60)
    assert "Traceback" not in err
    status = command.process.returncode
    if as_json:
        document = json.loads(out)
        expected = {0: "completed", 7: "unknown", 130: "cancelled", 143: "cancelled"}.get(status, "failed")
        assert document["status"] == expected, (status, document)
        return status, " ".join([str(document["error"]), *document["notes"]])
    return status, out + command.stderr + err


def check(sent: tuple[int, str], received: tuple[int, str], out: Path, memory: bytes) -> None:
    """What both ends say is so."""
    is_there = out.exists()
    if is_there:
        assert out.read_bytes() == memory
    names = {p.name for p in out.parent.iterdir()}
    assert names == {"out", *(names & {"out.sha256"})} if is_there else not names
    status, words = received
    assert (status == 0) == is_there, received
    assert ("not kept" in words) == (not is_there), received
    status, words = sent
    if status == 0:
        assert is_there, sent
    if "intact" in words:
        assert not is_there, sent
    if status not in (0, 7):
        assert "intact" in words, sent
        assert not is_there, sent


@pytest.fixture
def trial(cli, image, tmp_path):
    memory = image[: PAGES * 4096]
    source, folder = tmp_path / "source", tmp_path / "dest"
    source.write_bytes(memory)
    folder.mkdir()

    def run(number: signal.Signals, end: str, after: int, *, as_json: bool, on_answer: bool = False) -> None:
        """A migration in which one end gets a signal once so many bytes have passed."""
        more = ["--json"] if as_json else []
        out = folder / "out"
        receive = cli("receive", f"unix:{tmp_path}/sock", out, "--format", "raw", "--timeout", "20", *more)
        uri = receive.listening()
        started: dict[str, object] = {"receive": receive}
        may_signal = threading.Event()

        def strike() -> None:
            assert may_signal.wait(30)
            with contextlib.suppress(ProcessLookupError):
                started[end].signal(number)

        with Wire(uri, max(after, 1), strike, on_answer=on_answer) as wire:
            send = started["send"] = cli("send", source, wire.uri, "--timeout", "20", *more)
            may_signal.set()
            sent = ended(send, as_json)
            received = ended(receive, as_json)
        check(sent, received, out, memory)

    return run


@pytest.mark.parametrize("permille", PERMILLE)
@pytest.mark.parametrize("end", ["send", "receive"])
def test_a_signal_after_so_many_bytes(trial, end, permille):
    number = [signal.SIGINT, signal.SIGTERM][PERMILLE.index(permille) % 2]
    # About what goes over the wire: most pages, headers, SYNCs.
    trial(number, end, PAGES * 4096 * 6 // 10 * permille // 1000, as_json=permille % 3 == 0)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("end", ["send", "receive"])
def test_a_signal_while_the_last_word_is_under_way(trial, end, as_json):
    trial(signal.SIGTERM, end, 0, as_json=as_json, on_answer=True)


def test_a_signal_at_a_source_whose_destination_does_not_answer(cli, image_path, tmp_path):
    """It waits no longer than it must, and never calls its memory the good copy."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{tmp_path}/sock")
        listener.listen(8)
        listener.settimeout(30)
        send = cli("send", image_path, f"unix:{tmp_path}/sock", "--json", "--channels", "1")
        main, _ = listener.accept()
        channel, _ = listener.accept()
        drain = threading.Thread(target=read_all, args=(channel,))
        drain.start()
        # PONG 1 and 2: it has read everything up to the end of RAM.
        main.sendall(b"".join(b"\0\2\0\4\0\0\0" + bytes([i]) for i in (1, 2)))
        data = b""
        while not data.endswith(b'"devices": []}'):
            data += main.recv(65536)
        send.signal(signal.SIGTERM)
        document = send.json(7)
        assert document["status"] == "unknown"
        assert "look there before the source runs again" in document["error"]
        assert "intact" not in json.dumps(document)
        main.close()
        drain.join(30)
        channel.close()


def read_all(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while sock.recv(1 << 20):
            pass
