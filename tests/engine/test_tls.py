"""Whole migrations over TLS: every method, relays in every combination, what becomes of the memory when it fails."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peer
import pytest
from certificates import Folders
from ends import DEADLINE_S, ReceiverThread, RelayThread

import multifd
from multifd import Canceller, Tls
from multifd.errors import Cancelled, ChannelError, MultifdError, OutcomeUnknown, TlsError, UsageError

TIMEOUT_S = 40
"""Of an end that must not end by its own timeout before the other has."""


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("method", ["none", "zlib", "zstd", "zstd:engine=zstandard"])
def test_every_method(receiver, image, image_path, credentials: Folders, tmp_path, method, channels):
    """From memory into memory, and from a file into a file."""
    tls, into, out = Tls(credentials.good), bytearray(len(image)), tmp_path / "out.ram"
    destination = receiver(into, tls=tls)
    multifd.send(image, destination.uri, method, channels=channels, tls=tls)
    assert destination.join().status == "completed"
    assert into == image
    destination = receiver(out, tls=tls)
    sent = multifd.send(image_path, destination.uri, method, channels=channels, tls=tls)
    received = destination.join()
    assert out.read_bytes() == image
    # As the wire has them, handshakes too; but a receiver that is done does not read its channels' close_notify.
    assert sent.transferred_bytes - 64 * channels < received.transferred_bytes <= sent.transferred_bytes


def test_live_memory(receiver, image, credentials: Folders):
    """Rounds with a PONG after each: main is read and written all the time."""
    import mmap

    memory = mmap.mmap(-1, len(image), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = image
    tls, into = Tls(credentials.good), bytearray(len(image))
    destination = receiver(into, tls=tls)
    with multifd.Arena(memory) as arena:
        live = multifd.Live(arena, pause=lambda: memory.__setitem__(slice(0, 4), b"last"), resume=lambda: None)
        multifd.send(live, destination.uri, "none", tls=tls)
    destination.join()
    assert into == memory[:]


def test_a_unix_socket_and_a_bandwidth(receiver, image, credentials: Folders, tmp_path):
    into = bytearray(len(image))
    destination = receiver(into, f"unix:{tmp_path}/sock", tls=Tls(credentials.good, authz=["DNS:client.example"]))
    tls = Tls(credentials.good, hostname="vm.example")
    multifd.send(image, destination.uri, "zstd", max_bandwidth=1 << 30, tls=tls)
    destination.join()
    assert into == image


@pytest.mark.parametrize(("tls_in", "tls_out"), list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize(("method_in", "method_out"), [("none", "none"), ("none", "zstd"), ("zstd", "none")])
def test_a_relay(receiver, image, credentials: Folders, tls_in, tls_out, method_in, method_out):
    tls, into = Tls(credentials.good), bytearray(len(image))
    destination = receiver(into, tls=tls if tls_out else None)
    relay = RelayThread(
        destination.uri, out_method=method_out, in_tls=tls if tls_in else None, out_tls=tls if tls_out else None
    )
    multifd.send(image, relay.uri, method_in, channels=4, tls=tls if tls_in else None)
    assert relay.join().status == destination.join().status == "completed"
    assert into == image


# -- who does not fit ---------------------------------------------------------------------------------


class Attempt:
    """One migration that fails at its sender; what each end says."""

    def __init__(
        self, out: Path, source: Any, there: Tls | None, here: Tls | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        canceller = Canceller()
        thread = ReceiverThread(out, tls=there, timeout=TIMEOUT_S, canceller=canceller)
        try:
            with pytest.raises(MultifdError) as caught:
                multifd.send(source, thread.uri, tls=here, timeout=TIMEOUT_S)
        finally:
            canceller.cancel()
        with pytest.raises((Cancelled, ChannelError)):
            thread.join()
        self.error = caught.value
        self.said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
        self.heard = caplog.text
        assert self.error.result.status == "failed"
        assert "intact and the good copy" in self.said
        assert list(out.parent.iterdir()) == []


FAILURES: dict[str, tuple[str, str, dict[str, Any], str, str]] = {
    # there, here, options there; what is said here, what is logged there
    "another CA": ("good", "other", {}, "does not pass", "ended TLS"),
    "another name": ("elsewhere", "good", {}, "not valid for '127.0.0.1'", "ended TLS"),
    "no client certificate": ("good", "bare", {}, "has no client-cert.pem", "shows no certificate"),
    "a client of another CA": ("good", "foreign", {}, "client-cert.pem: CN=client", "does not pass"),
    "not authorised": ("good", "good", {"authz": ["CN=nobody"]}, "client-cert.pem: CN=client", "does not allow"),
}


@pytest.mark.parametrize(("there", "here", "options", "said", "heard"), FAILURES.values(), ids=FAILURES)
def test_who_does_not_fit(image, credentials: Folders, tmp_path, caplog, there, here, options, said, heard):
    """In words on both ends, in time; nothing is written there, the source is intact."""
    caplog.set_level("INFO")
    folders = [Tls(getattr(credentials, there), **options), Tls(getattr(credentials, here))]
    (tmp_path / "out").mkdir()
    attempt = Attempt(tmp_path / "out" / "ram", image, *folders, caplog)
    assert said in attempt.said
    assert heard in attempt.heard


def test_plain_to_tls(image, credentials: Folders, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "out").mkdir()
    attempt = Attempt(tmp_path / "out" / "ram", image, Tls(credentials.good), None, caplog)
    assert "expects TLS (its tls-creds), tls-creds is missing here" in attempt.said
    assert "without TLS, which this side expects" in attempt.heard


def test_tls_to_plain(image, credentials: Folders, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "out").mkdir()
    attempt = Attempt(tmp_path / "out" / "ram", image, None, Tls(credentials.good), caplog)
    assert "does not use TLS (tls-creds is missing there)" in attempt.said
    assert "a TLS client" in attempt.heard


@pytest.mark.parametrize("name", ["expired", "future"])
def test_an_own_certificate_out_of_time(image, credentials: Folders, name):
    """Before anything is listened at or connected to."""
    tls = Tls(getattr(credentials, name))
    with pytest.raises(UsageError, match=r"-cert\.pem: it"):
        multifd.send(image, "tcp:127.0.0.1:1", tls=tls)
    with pytest.raises(UsageError, match=r"-cert\.pem: it"):
        multifd.receive("tcp:127.0.0.1:0", bytearray(4096), tls=tls)


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_relay_that_does_not_fit(image, credentials: Folders, side):
    """It says whose credentials; the source is told, and keeps its memory."""
    good, other = Tls(credentials.good), Tls(credentials.other)
    canceller = Canceller()
    into = bytearray(len(image))
    thread = ReceiverThread(into, tls=good, timeout=TIMEOUT_S, canceller=canceller)
    relay_canceller = Canceller()
    relay = RelayThread(
        thread.uri, in_tls=other if side == "in" else good, out_tls=good if side == "in" else other,
        canceller=relay_canceller, timeout=TIMEOUT_S,
    )  # fmt: skip
    try:
        with pytest.raises(ChannelError) as caught:
            multifd.send(image, relay.uri, tls=good, timeout=TIMEOUT_S)
        assert caught.value.result.status == "failed"
        if side == "out":
            with pytest.raises(TlsError, match="does not pass"):
                relay.join()
    finally:
        relay_canceller.cancel()
        canceller.cancel()
        relay.is_over()
    with pytest.raises(Cancelled):
        thread.join()
    assert into == bytes(len(image))


# -- cut on the way ---------------------------------------------------------------------------------


class Cutter:
    """A proxy that passes on TLS records and cuts one connection after so many of the source's.

    Args:
        to: where it connects.
        which: the connection to cut, in the order in which they come: 0 is main.
        after: whole records of the source's that still go through, or None for all.
    """

    def __init__(self, to: str, which: int, after: int | None) -> None:
        self._to, self._which, self._after = peer.address(to), which, after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.05)
        self.uri = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self.records: dict[int, int] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        for number in itertools.count():
            while True:
                try:
                    near, _ = self._listener.accept()
                    break
                except TimeoutError:
                    if self._stop.is_set():
                        return
            try:
                far = socket.create_connection(self._to, DEADLINE_S)
            except OSError:  # the receiver has given up
                near.close()
                continue
            thread = threading.Thread(target=self._serve, args=(number, near, far))
            self._threads.append(thread)
            thread.start()

    def _serve(self, number: int, near: socket.socket, far: socket.socket) -> None:
        held = bytearray()
        with near, far, contextlib.suppress(OSError):
            near.settimeout(DEADLINE_S)
            far.settimeout(DEADLINE_S)
            while not self._stop.is_set():
                for sock in select.select([near, far], [], [], 0.05)[0]:
                    data = sock.recv(1 << 16)
                    if sock is far and data:
                        near.sendall(data)
                    elif sock is far:
                        near.shutdown(socket.SHUT_WR)
                        return
                    elif not data:
                        far.shutdown(socket.SHUT_WR)
                        self._rest(near, far)
                        return
                    else:
                        held += data
                        if self._pass_on(number, held, far):
                            return

    def _pass_on(self, number: int, held: bytearray, far: socket.socket) -> bool:
        """Send the whole records among `held`; whether the connection is to be cut now."""
        while len(held) >= 5 and len(held) >= 5 + int.from_bytes(held[3:5]):
            if number == self._which and self._after is not None and self.records.get(number, 0) >= self._after:
                return True
            length = 5 + int.from_bytes(held[3:5])
            far.sendall(held[:length])
            del held[:length]
            self.records[number] = self.records.get(number, 0) + 1
        return False

    def _rest(self, near: socket.socket, far: socket.socket) -> None:
        while not self._stop.is_set():
            if select.select([far], [], [], 0.05)[0]:
                data = far.recv(1 << 16)
                if not data:
                    return
                near.sendall(data)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        self._listener.close()


@pytest.fixture
def cutter() -> Iterator[Callable[..., Cutter]]:
    made: list[Cutter] = []

    def make(to: str, which: int = 0, after: int | None = None) -> Cutter:
        made.append(Cutter(to, which, after))
        return made[-1]

    yield make
    for one in made:
        one.close()


CUT_S = 0.5
"""How long an end waits for one that is cut off. However long it takes, whatever is said must be true."""
RAM = bytes(range(256)) * 16 * 64
"""64 pages without a zero one."""


def records_of_a_whole_migration(cutter: Callable[..., Cutter], receiver: Callable[..., Any], tls: Tls) -> Cutter:
    destination = receiver(bytearray(len(RAM)), tls=tls)
    through = cutter(destination.uri)
    multifd.send(RAM, through.uri, channels=1, tls=tls)
    destination.join()
    return through


@pytest.mark.parametrize("which", [0, 1], ids=["main", "a channel"])
def test_a_cut_at_any_record_is_no_success(receiver, cutter, credentials: Folders, tmp_path, which):
    """Records end where packets do, and a cut there looks like an end: neither side says completed but for the
    whole stream."""
    tls = Tls(credentials.good)
    whole = records_of_a_whole_migration(cutter, receiver, tls).records[which]
    assert whole > 4
    outcomes = set()
    for after in range(whole):
        out = tmp_path / f"{which}-{after}"
        destination = ReceiverThread(out, tls=tls, timeout=CUT_S)
        through = cutter(destination.uri, which, after)
        status = "completed"
        try:
            multifd.send(RAM, through.uri, channels=1, tls=tls, timeout=CUT_S)
        except MultifdError as e:
            status = e.result.status
        with contextlib.suppress(MultifdError):
            destination.join()
        through.close()
        is_there = out.exists() and out.read_bytes() == RAM
        assert out.exists() == is_there, after
        # Whoever says completed is right, and whoever says failed, too.
        assert {"completed": is_there, "failed": not is_there}.get(status, True), (after, status, is_there)
        if destination.result is not None:
            assert is_there
        outcomes.add((status, is_there))
    assert ("failed", False) in outcomes


@pytest.mark.parametrize("tls_out", [False, True])
def test_a_relay_passes_no_cut_on_as_an_end(cutter, credentials: Folders, tls_out):
    """A source without a return path, whose channel is cut behind a packet: main is whole, the SYNC is missing."""
    tls = Tls(credentials.good)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        to = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        relay = RelayThread(to, in_tls=tls, channels=1)
        stream = peer.main_stream([(b"ram", len(RAM))], return_path=False)
        client = _Client(tls, relay.uri)
        main, channel = client.connect(), client.connect()
        main.send([stream["header"] + stream["setup"]])
        channel.send([peer.init(0) + peer.sync()])
        outs = [listener.accept()[0] for _ in range(2)]
        channel.send([peer.packet([0], RAM[:4096])])
        channel.shutdown_write()  # no close_notify, as of 7.2, and as of a cut
        main.send([stream["end"] + stream["eof"]])
        main.shutdown_write()
        with pytest.raises(OutcomeUnknown, match="before sync point 2"):
            relay.join()
        assert relay.results == []
        for end in (main, channel, *outs):
            end.close()


def test_main_towards_openssl_stays_open_until_it_closes(credentials: Folders):
    """As of a proxy in front of a QEMU: OpenSSL takes an end without close_notify for an attack, and ends it all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials.good / "server-cert.pem", credentials.good / "server-key.pem")
    turns = threading.Semaphore(0)
    stream = peer.main_stream([(b"ram", len(RAM))])
    end = stream["end"] + stream["eof"]
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        listener.settimeout(DEADLINE_S)
        to = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        relay = RelayThread(to, out_tls=Tls(credentials.good), channels=1, on_progress=lambda _: turns.release())
        source = stack.enter_context(peer.Peer(relay.uri))
        main_in = source.connect(stream["header"] + stream["setup"])
        channel_in = source.connect(peer.init(0) + peer.sync() + peer.sync())
        outs = [stack.enter_context(context.wrap_socket(listener.accept()[0], server_side=True)) for _ in range(2)]
        main_in.sendall(end)
        main_in.shutdown(socket.SHUT_WR)
        channel_in.shutdown(socket.SHUT_WR)
        read = b""
        while not read.endswith(end):
            read += outs[0].recv(1 << 16)
        while outs[1].recv(1 << 16):
            pass
        while turns.acquire(blocking=False):
            pass
        for _ in range(3):  # half a second in which it would say anything
            assert turns.acquire(timeout=DEADLINE_S)
        outs[0].setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            outs[0].recv(1)
        for out in outs:
            out.close()
        assert relay.join().status == "completed"


def test_main_towards_tls_ends_once_both_have_said_their_last_word(credentials: Folders):
    """A receiver that has confirmed waits for the end of main, as `multifd receive` does, before it closes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(credentials.good / "server-cert.pem", credentials.good / "server-key.pem")
    stream = peer.main_stream([(b"ram", len(RAM))], return_path=True)
    end, shut = stream["end"] + stream["eof"], struct.pack(">HHI", 1, 4, 0)
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as stack:
        listener.settimeout(DEADLINE_S)
        to = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        relay = RelayThread(to, out_tls=Tls(credentials.good), channels=1)
        source = stack.enter_context(peer.Peer(relay.uri))
        main_in = source.connect(stream["header"] + stream["setup"])
        channel_in = source.connect(peer.init(0) + peer.sync() + peer.sync())
        outs = [stack.enter_context(context.wrap_socket(listener.accept()[0], server_side=True)) for _ in range(2)]
        outs[0].settimeout(DEADLINE_S)
        main_in.sendall(end)
        channel_in.shutdown(socket.SHUT_WR)
        read = b""
        while not read.endswith(end):
            read += outs[0].recv(1 << 16)
        outs[0].sendall(shut)
        answer = b""
        while not answer.endswith(shut):
            answer += main_in.recv(1 << 16)
        main_in.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ssl.SSLEOFError):
            assert outs[0].recv(1) == b""
        for out in outs:
            out.close()
        assert relay.join().status == "completed"


class _Client:
    """Connections of a scripted source, encrypted."""

    def __init__(self, tls: Tls, uri: str) -> None:
        from multifd.transport.address import Uri
        from multifd.transport.idle import IdleTimer
        from multifd.transport.tls import TlsClient

        self._uri, self._idle = Uri.parse(uri), IdleTimer(DEADLINE_S)
        self._tls = TlsClient(tls, self._uri)

    def connect(self) -> Any:
        from multifd.transport.connect import connect

        return connect(self._uri, self._idle, timeout_s=DEADLINE_S, tls=self._tls)


@pytest.mark.parametrize("is_said", [False, True])
def test_a_stream_whose_end_is_not_marked(receiver, credentials: Folders, is_said):
    """Devices without a vmdesc: only the connection's end says that they are complete, so it has to be said."""
    tls, into = Tls(credentials.good), bytearray(len(RAM))
    destination = receiver(into, channels=1, tls=tls)
    client = _Client(tls, destination.uri)
    stream = peer.main_stream([(b"ram", len(RAM))])
    main, channel = client.connect(), client.connect()
    main.send([stream["header"] + stream["setup"]])
    channel.send([peer.init(0) + peer.sync()])
    pages = [i * peer.PAGE for i in range(64)]
    channel.send([peer.packet(pages, RAM), peer.sync()])
    device = b"\x04\0\0\0\x05\x03dev\0\0\0\0\0\0\0\1" + b"\x7e\0\0\0\x05"
    main.send([stream["end"] + device + b"\0"])
    (main.finish if is_said else main.shutdown_write)()
    if is_said:
        assert destination.join().status == "completed"
    else:
        with pytest.raises(ChannelError, match="somebody on the way may have cut it"):
            destination.join()
    for end in (main, channel):
        end.close()


# -- under load ---------------------------------------------------------------------------------------


def test_stalled_handshakes_during_a_migration(receiver, image, credentials: Folders):
    """Before, beside and after it: they are counted, and nothing else."""
    tls, into = Tls(credentials.good), bytearray(len(image))
    destination = receiver(into, channels=2, tls=tls)
    with contextlib.ExitStack() as stack:
        for said in (b"", b"\x16\x03\x01\x02\x00\x01", b"QEVM", b"GET / HTTP/1.1\r\n\r\n") * 40:
            sock = stack.enter_context(socket.create_connection(peer.address(destination.uri), DEADLINE_S))
            sock.sendall(said)
        multifd.send(image, destination.uri, "zstd", tls=tls)
        assert destination.join().status == "completed"
    assert into == image


# -- the command line -------------------------------------------------------------------------------


def test_commands(cli, image, image_path, tmp_path):
    """Credentials for a try, a receiver, a relay, a sender."""
    pytest.importorskip("cryptography", reason="the package cryptography is not installed")
    folder, out = tmp_path / "credentials", tmp_path / "out.ram"
    made = cli("tls", "new", folder, "127.0.0.1", "vm.example", "--json").json()
    assert made["files"][0] == str(folder / "ca-cert.pem")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    _, err = cli("tls", "new", folder, "127.0.0.1").wait(2)
    assert "is there already" in err
    _, err = cli("tls", "new", tmp_path / "x", "no host").wait(2)
    assert "expected a host's name or an IP address" in err
    tls = ("--tls-creds", folder)
    receive = cli("receive", "tcp:127.0.0.1:0", out, "--format", "raw", "--json", *tls, "--tls-authz", "CN=client")
    relay = cli(
        "relay", f"unix:{tmp_path}/in", receive.listening(), "--once", "--json", "--in-tls-creds", folder,
        "--out-tls-creds", folder,
    )  # fmt: skip
    to = relay.listening()
    sent = cli("send", image_path, to, "--json", *tls, "--tls-hostname", "vm.example").json()
    assert sent["status"] == relay.json()["status"] == receive.json()["status"] == "completed"
    assert out.read_bytes() == image


def test_the_pages_example(tmp_path):
    section = (Path(__file__).parents[2] / "docs/tls.md").read_text().split("## A try on one machine")[1]
    script = section.split("```sh\n")[1].split("```")[0]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


WRONG = {
    "an option without its folder": (("--tls-hostname", "x"), "--tls-hostname"),
    "a folder that is none": (("--tls-creds", "/nonexistent"), "(--tls-creds)"),
    "no name to expect": (("--tls-creds", "GOOD"), "(--tls-hostname)"),
}


@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG)
def test_options_that_cannot_be_meant(cli, image_path, credentials: Folders, options, words):
    options = [str(credentials.good) if option == "GOOD" else option for option in options]
    command = cli("send", image_path, "unix:/nonexistent/sock", "--json", *options)
    out, err = command.wait(2)
    assert words in err
    assert json.loads(out)["status"] == "failed"


def test_options_of_a_relay_say_which_side(cli, credentials: Folders):
    _, err = cli("relay", "tcp:127.0.0.1:0", "unix:/nonexistent/sock", "--out-tls-creds", credentials.good).wait(2)
    assert "(--out-tls-hostname)" in err
