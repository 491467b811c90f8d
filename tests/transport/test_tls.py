"""TLS: who is let in, certificates and keys, and every way in which it fails, in words."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beside import beside
from certificates import HOSTS, Folders

from multifd.cli.new_credentials import Authority
from multifd.errors import TlsError, UsageError
from multifd.transport import certificate as cert
from multifd.transport.accept import Acceptor, Arrival
from multifd.transport.address import Uri
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.listen import Listener
from multifd.transport.tls import Tls, TlsClient, TlsServer
from multifd.wire import stream
from multifd.wire.packet import InitPacket

DEADLINE_S = 60
HERE = Uri.parse("tcp:localhost:1")
INIT = InitPacket(3, b"\1" * 16, 4, 1, "zstd").encode()


# -- who is let in ----------------------------------------------------------------------------------


class Door:
    """An acceptor with TLS, and those who knock."""

    def __init__(self, tls: Tls, patience_s: float = DEADLINE_S) -> None:
        self.server = TlsServer(tls)
        self.listener = Listener(Uri.parse("tcp:127.0.0.1:0"))
        self.acceptor = Acceptor(self.listener, patience_s, self.server.open)
        self.arrivals: list[Arrival] = []
        self._clients: list[socket.socket | Connection] = []

    def knock(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.listener.uri.port), DEADLINE_S)
        self._clients.append(sock)
        return sock

    def connect(self, tls: Tls, first: bytes = b"") -> Connection:
        """A client of ours, by `multifd.transport.connect`, while the door is served."""
        uri = self.listener.uri
        made: list[Connection] = []

        def run() -> None:
            client = TlsClient(tls, uri)
            made.append(connect(uri, IdleTimer(DEADLINE_S), timeout_s=DEADLINE_S, tls=client))
            self._clients.append(made[0])
            if first:
                made[0].send([first])

        errors: list[BaseException] = []
        worker = threading.Thread(target=lambda: errors.extend(_raised(run)))
        worker.start()
        self.serve(lambda: not worker.is_alive())
        if errors:
            raise errors[0]
        return made[0]

    def serve(self, until: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not until():
            assert time.monotonic() < deadline, self.acceptor.last_stranger
            self.arrivals += self.acceptor.wait(0.02)

    def close(self) -> None:
        self.acceptor.close()
        self.listener.close()
        for end in [*self._clients, *(incoming for incoming, _, _ in self.arrivals)]:
            end.close()


def _raised(run: Callable[[], object]) -> list[BaseException]:
    try:
        run()
    except BaseException as e:
        return [e]
    return []


@pytest.fixture
def door(credentials: Folders) -> Iterator[Callable[..., Door]]:
    made: list[Door] = []

    def make(folder: Path = credentials.good, **options: object) -> Door:
        made.append(Door(Tls(folder, **options)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_main_and_a_channel(door: Callable[..., Door], credentials: Folders) -> None:
    """A channel counts once something follows its init packet, as without TLS; nothing is lost on the way."""
    here = door()
    channel = here.connect(Tls(credentials.good), INIT)
    main = here.connect(Tls(credentials.good), stream.MAGIC_BYTES + b"version")
    here.serve(lambda: here.arrivals)
    assert [init for _, _, init in here.arrivals] == [None]
    channel.send([b"packet"])
    here.serve(lambda: len(here.arrivals) == 2)
    taken = [incoming.take(IdleTimer(DEADLINE_S), "x") for incoming, _, _ in here.arrivals]
    assert here.arrivals[1][2] == InitPacket.decode(INIT)
    got = [bytearray(7), bytearray(6)]
    for connection, buffer in zip(taken, got, strict=True):
        connection.recv_exactly([memoryview(buffer)])
    assert got == [b"version", b"packet"]
    taken[0].send([b"answer"])
    assert main.recv_into([memoryview(bytearray(6))]) == 6
    assert here.acceptor.rejected == here.server.failures == 0


@pytest.mark.parametrize("ends", ["said", "not said"])
def test_an_init_packet_that_only_an_end_follows_is_a_stranger(
    door: Callable[..., Door], credentials: Folders, ends: str
) -> None:
    here = door()
    channel = here.connect(Tls(credentials.good), INIT)
    (channel.finish if ends == "said" else channel.close)()
    here.serve(lambda: here.acceptor.rejected == 1)
    assert not here.arrivals


def test_a_handshake_in_single_bytes(door: Callable[..., Door], credentials: Folders) -> None:
    here = door()
    client = TlsClient(Tls(credentials.good), HERE).session()
    sock = here.knock()
    while not client.shake_hands():
        for byte in client.outgoing():
            sock.sendall(bytes([byte]))
            here.arrivals += here.acceptor.wait(0)
        here.arrivals += here.acceptor.wait(0.02)
        with contextlib.suppress(BlockingIOError):
            client.feed(sock.recv(1 << 16, socket.MSG_DONTWAIT))
    for byte in client.outgoing() + client.encrypt(stream.MAGIC_BYTES + b"version"):
        sock.sendall(bytes([byte]))
        here.arrivals += here.acceptor.wait(0)
    here.serve(lambda: here.arrivals)


def test_stalled_handshakes_hold_nobody_up(door: Callable[..., Door], credentials: Folders) -> None:
    """Silent, half a hello, a hello and nothing more: a good one gets through, and they stay until their time is up."""
    here = door(handshake_timeout=DEADLINE_S)
    for i in range(150):
        hello = TlsClient(Tls(credentials.good), HERE).session() if i % 3 else None
        sock = here.knock()
        if hello is not None:
            hello.shake_hands()
            data = hello.outgoing()
            sock.sendall(data if i % 3 == 1 else data[:40])
    here.connect(Tls(credentials.good), stream.MAGIC_BYTES + b"version")
    here.serve(lambda: here.arrivals)
    assert here.acceptor.rejected == 0


def test_a_handshake_that_takes_too_long(door: Callable[..., Door]) -> None:
    here = door(handshake_timeout=0.01)
    sock = here.knock()
    here.serve(lambda: here.acceptor.rejected == 1)
    assert sock.recv(1) == b""
    assert "did not complete the TLS handshake within 0.01 s" in here.acceptor.last_stranger
    assert here.server.failures == 1


PLAIN = {
    "a source without TLS": (stream.MAGIC_BYTES + b"\0\0\0\3", "without TLS, which this side expects"),
    "a channel without TLS": (INIT, "without TLS, which this side expects"),
    "a browser": (b"GET / HTTP/1.1\r\n\r\n", "an HTTP client"),
    "an SSH client": (b"SSH-2.0-x\r\n", "an SSH client"),
    "noise": (b"\x00" * 64, "TLS"),
    "a hello that is none": (b"\x16\x03\x01\x00\x05hello" * 20, "TLS|damaged"),
}


@pytest.mark.parametrize(("said", "words"), PLAIN.values(), ids=PLAIN)
def test_who_does_not_speak_tls_is_named(door: Callable[..., Door], said: bytes, words: str) -> None:
    here = door()
    here.knock().sendall(said)
    here.serve(lambda: here.acceptor.rejected == 1)
    assert any(word in here.acceptor.last_stranger for word in words.split("|")), here.acceptor.last_stranger


def test_a_port_scanner_is_no_tls_failure(door: Callable[..., Door]) -> None:
    here = door()
    here.knock().close()
    here.serve(lambda: here.acceptor.rejected == 1)
    assert here.server.failures == 0


CLIENTS = {
    "no certificate": (
        "bare",
        "shows no certificate, expected a certificate issued by the CA (CN=our CA",
        "certificate",
    ),
    "another CA": ("foreign", "does not pass", "this side's"),
}


@pytest.mark.parametrize(("folder", "here_says", "there_says"), CLIENTS.values(), ids=CLIENTS)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def test_a_client_that_may_not(
    door: Callable[..., Door], credentials: Folders, folder: str, here_says: str, there_says: str,
    version: ssl.TLSVersion,
) -> None:  # fmt: skip
    """Under TLS 1.3 it hears of it when it reads; its connection says why all the same."""
    here = door()
    here.server._context.maximum_version = version
    with pytest.raises(TlsError, match=there_says) as caught:  # noqa: PT012
        connection = here.connect(Tls(getattr(credentials, folder)))
        here.serve(lambda: here.acceptor.rejected)
        connection.recv_into([memoryview(bytearray(1))])
    assert "the other end ended TLS" in str(caught.value)
    here.serve(lambda: here.acceptor.rejected == 1)
    assert here_says in here.acceptor.last_stranger
    assert here.server.failures == 1


def test_without_certificates(door: Callable[..., Door], credentials: Folders) -> None:
    """Both ends switched it off: encrypted, and nobody knows with whom."""
    here = door(verify_peer=False)
    here.connect(Tls(credentials.other, verify_peer=False), stream.MAGIC_BYTES + b"version")
    here.serve(lambda: here.arrivals)


ALLOWED = ["CN=client", "DNS:client.example", "DNS:CLIENT.example"]
DENIED = ["CN=clien", "CN=client,O=x", "CN=client.example", "DNS:client", "IP:127.0.0.1", "CN=*", "DNS:*.example"]


@pytest.mark.parametrize("rule", [*ALLOWED, *DENIED])
def test_authz(door: Callable[..., Door], credentials: Folders, rule: str) -> None:
    here = door(authz=["CN=nobody", rule])
    here.connect(Tls(credentials.good), stream.MAGIC_BYTES + b"version")
    here.serve(lambda: here.arrivals or here.acceptor.rejected)
    assert bool(here.arrivals) == (rule in ALLOWED)
    if rule in DENIED:
        assert "tls-authz does not allow its certificate, CN=client (issued by CN=our CA" in here.acceptor.last_stranger
        assert rule in here.acceptor.last_stranger


# -- whom a client believes -------------------------------------------------------------------------

SERVERS = {
    "another CA": ("other", {}, "expected a certificate for 127.0.0.1 issued by the CA (CN=our CA"),
    "certificates of another CA": ("foreign", {}, "does not pass"),
    "another name": ("elsewhere", {}, "not valid for '127.0.0.1'"),
    "a name that was asked for": ("good", {"hostname": "db.example"}, "certificate for db.example"),
}


@pytest.mark.parametrize(("folder", "options", "words"), SERVERS.values(), ids=SERVERS)
def test_a_server_that_is_another(
    door: Callable[..., Door], credentials: Folders, folder: str, options: dict[str, str], words: str
) -> None:
    here = door(getattr(credentials, folder))
    with pytest.raises(TlsError) as caught:
        here.connect(Tls(credentials.good, **options))  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert "got CN=server (issued by CN=" in str(caught.value)
    assert "valid from" in str(caught.value)
    here.serve(lambda: here.acceptor.rejected == 1)
    assert "ended TLS" in here.acceptor.last_stranger  # and it says why


@pytest.mark.parametrize("hostname", ["", "vm.example", "localhost"])
def test_names_that_fit(door: Callable[..., Door], credentials: Folders, hostname: str) -> None:
    here = door()
    here.connect(Tls(credentials.good, hostname=hostname), stream.MAGIC_BYTES + b"version")
    here.serve(lambda: here.arrivals)


ANSWERS = {
    "in clear": (b"220 mail.example ESMTP\r\n", "answers without TLS"),
    "with a stream": (b"QEVM\0\0\0\3", "answers without TLS"),
    "by closing": (b"", "closed the connection in the TLS handshake"),
}


@pytest.mark.parametrize(("answer", "words"), ANSWERS.values(), ids=ANSWERS)
def test_a_server_without_tls(credentials: Folders, answer: bytes, words: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(DEADLINE_S)
        uri = Uri(host="127.0.0.1", port=listener.getsockname()[1])

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.settimeout(DEADLINE_S)
                sock.recv(1 << 16)
                sock.sendall(answer)

        client = TlsClient(Tls(credentials.good), uri)
        with pytest.raises(TlsError, match=words), beside(serve):
            connect(uri, IdleTimer(DEADLINE_S), timeout_s=DEADLINE_S, tls=client)
        assert client.failures == 1


def test_a_server_that_does_not_answer(credentials: Folders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = Uri(host="127.0.0.1", port=listener.getsockname()[1])
        client = TlsClient(Tls(credentials.good, handshake_timeout=0.05), uri)
        with pytest.raises(TlsError, match=r"within 0\.05 s: it hangs, serves another, or does not use TLS"):
            connect(uri, IdleTimer(DEADLINE_S), timeout_s=DEADLINE_S, tls=client)


# -- credentials ------------------------------------------------------------------------------------

ROLES = ("server", "client")
UNFIT = {
    "no folder": (lambda f: [p.unlink() for p in f.iterdir()] and f.rmdir(), "not a folder"),
    "no CA": (lambda f: (f / "ca-cert.pem").unlink(), "ca-cert.pem: No such file"),
    "no key": (lambda f: [(f / f"{role}-key.pem").unlink() for role in ROLES], "-key.pem: No such file"),
    "no certificate": (lambda f: (f / "client-cert.pem").unlink() or (f / "server-cert.pem").unlink(), "No such file"),
    "a CA that is none": (
        lambda f: (f / "ca-cert.pem").write_bytes((f / "server-cert.pem").read_bytes()),
        "no certificate in it is a CA's",
    ),
    "no PEM": (lambda f: (f / "ca-cert.pem").write_text("hello"), "ca-cert.pem: no CA in it"),
    "another key": (
        lambda f: [(f / f"{role}-cert.pem").write_bytes((f / "ca-cert.pem").read_bytes()) for role in ROLES],
        "is not the key of",
    ),
    "a revocation list that is none": (lambda f: (f / "ca-crl.pem").write_text("x"), "ca-crl.pem: no revocation list"),
    "keys beside certificates": (lambda f: (f / "keys.psk").write_text("qemu:00"), "a folder is for one of both"),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("damage", "words"), UNFIT.values(), ids=UNFIT)
def test_a_folder_that_is_unfit(
    credentials: Folders, tmp_path: Path, role: str, damage: Callable[[Path], object], words: str
) -> None:
    """Said before anything is opened, with the file."""
    folder = credentials.copy(credentials.good, tmp_path / "copy")
    damage(folder)
    with pytest.raises(UsageError) as caught:
        TlsServer(Tls(folder)) if role == "server" else TlsClient(Tls(folder), HERE)
    assert any(word in str(caught.value) for word in words.split("|")), caught.value
    assert caught.value.setting == "tls_creds"


@pytest.mark.parametrize(("name", "words"), [("expired", "it has expired on"), ("future", "it is valid from")])
def test_an_own_certificate_out_of_time(credentials: Folders, name: str, words: str) -> None:
    for make in (TlsServer, lambda tls: TlsClient(tls, HERE)):
        with pytest.raises(UsageError, match=words):
            make(Tls(getattr(credentials, name)))


def test_a_key_with_a_password_is_not_asked_for(credentials: Folders, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    folder = credentials.copy(credentials.good, tmp_path / "copy")
    key = serialization.load_pem_private_key((folder / "server-key.pem").read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    (folder / "server-key.pem").write_bytes(locked)
    with pytest.raises(UsageError, match="the key is encrypted"):
        TlsServer(Tls(folder))


def test_settings_that_cannot_be_meant(credentials: Folders, tmp_path: Path) -> None:
    good = credentials.good
    for make, words in (
        (lambda: Tls(good, authz=["client"]), "expected a certificate's whole subject"),
        (lambda: Tls(good, authz=["DNS:"]), "expected a certificate's whole subject"),
        (lambda: Tls(good, authz=["CN=x"], verify_peer=False), "verify-peer must be on"),
        (lambda: Tls(good, handshake_timeout=0), "handshake timeout"),
        (lambda: TlsServer(Tls(good, hostname="x")), "side that connects"),
        (lambda: TlsClient(Tls(good, authz=["CN=x"]), HERE), "side that listens"),
        (lambda: TlsClient(Tls(good), Uri(path="/run/x")), "has no host"),
        (lambda: TlsClient(Tls(good, hostname=".x"), HERE), "tls-hostname"),
    ):
        with pytest.raises(UsageError, match=words):
            make()


def test_certificates_that_are_renewed(
    door: Callable[..., Door], credentials: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read again while it runs: who is connected stays, a folder that is unfit changes nothing."""
    folder = credentials.copy(credentials.good, tmp_path / "copy")
    here = door(folder)
    old = here.connect(Tls(credentials.good), stream.MAGIC_BYTES + b"a")
    here.serve(lambda: here.arrivals)
    for name in ("ca-cert.pem", "server-cert.pem", "server-key.pem"):
        (folder / name).write_bytes((credentials.other / name).read_bytes())
    here.server.reload()
    here.connect(Tls(credentials.other), stream.MAGIC_BYTES + b"version")
    here.serve(lambda: len(here.arrivals) == 2)
    with pytest.raises(TlsError):
        here.connect(Tls(credentials.good))
    (folder / "server-key.pem").unlink()
    with pytest.raises(UsageError):
        here.server.reload()
    here.connect(Tls(credentials.other), stream.MAGIC_BYTES + b"version")
    here.serve(lambda: len(here.arrivals) == 3)
    taken = here.arrivals[0][0].take(IdleTimer(DEADLINE_S), "x")
    old.send([b"b"])
    got = bytearray(2)
    taken.recv_exactly([memoryview(got)])
    assert got == b"ab"


def test_a_revoked_certificate(door: Callable[..., Door], tmp_path: Path) -> None:
    """ca-crl.pem, as QEMU has it."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    authority = Authority("our CA")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "ca-cert.pem").write_bytes(authority.pem)
    for role in ("server", "client"):
        certificate, key = authority.issue(role, HOSTS, role)
        (folder / f"{role}-cert.pem").write_bytes(certificate)
        (folder / f"{role}-key.pem").write_bytes(key)
    client = x509.load_pem_x509_certificate((folder / "client-cert.pem").read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    revoked = x509.RevokedCertificateBuilder(client.serial_number, now).build()
    builder = x509.CertificateRevocationListBuilder(client.issuer, now, now + datetime.timedelta(days=1), [], [revoked])
    listed = builder.sign(authority._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    there = tmp_path / "there"
    there.mkdir()
    for path in folder.iterdir():
        (there / path.name).write_bytes(path.read_bytes())
    (there / "ca-crl.pem").write_bytes(listed)
    here = door(there)
    with contextlib.suppress(TlsError):  # under TLS 1.3 it hears of it later
        here.connect(Tls(folder))
    here.serve(lambda: here.acceptor.rejected == 1)
    assert "revoked" in here.acceptor.last_stranger


# -- certificates in words --------------------------------------------------------------------------

ODD = {
    "subject": ((("organizationName", "A, B"),), (("commonName", " x+y "), ("userId", "#1"))),
    "issuer": ((("commonName", 'q"'),),),
    "subjectAltName": (("DNS", "a.example"), ("IP Address", "192.0.2.1"), ("DirName", "x"), ("email", "A@b")),
    "notBefore": "Jan  1 00:00:00 2026 GMT",
    "notAfter": "Jan  1 00:00:00 2027 GMT",
}


def test_subjects_cannot_look_like_others() -> None:
    assert cert.subject(ODD) == "O=A\\, B,CN=\\ x\\+y\\ +UID=\\#1"
    assert cert.alternatives(ODD) == ["DNS:a.example", "IP:192.0.2.1", "email:A@b"]
    assert "for DNS:a.example, IP:192.0.2.1, email:A@b" in cert.describe(ODD)
    assert cert.may_connect(ODD, [cert.subject(ODD)])
    assert cert.may_connect(ODD, ["CN=\\ x\\+y\\ +UID=\\#1,O=A\\, B"])  # other tools turn it round
    assert not cert.may_connect(ODD, ["O=A, B,CN=x+y"])
    assert not cert.may_connect(ODD, ["email:a@b"])
    assert not cert.may_connect({}, ["CN=x"])
    assert cert.may_connect({}, [])


# -- pre-shared keys ----------------------------------------------------------------------------------

HAS_PSK = sys.version_info >= (3, 13)
KEY = "deadbeef" * 8


def psk_folder(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "keys.psk").write_text(text)
    return folder


@pytest.mark.skipif(HAS_PSK, reason="this Python has pre-shared keys")
def test_keys_that_this_python_cannot_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"need Python 3\.13 or later"):
        TlsServer(Tls(psk_folder(tmp_path / "psk", f"qemu:{KEY}\n")))


@pytest.mark.parametrize("text", ["", "qemu", "qemu:", ":00", "qemu:xyz", "qemu:" + "00" * 300])
def test_keys_that_are_none(tmp_path: Path, text: str) -> None:
    """The line is named, not shown: it may be a secret."""
    with pytest.raises(UsageError, match=r"keys\.psk") as caught:
        TlsServer(Tls(psk_folder(tmp_path / "psk", text)))
    assert "xyz" not in str(caught.value)


@pytest.mark.skipif(not HAS_PSK, reason="pre-shared keys need Python 3.13")
@pytest.mark.parametrize("user", ["qemu", "other"])
def test_keys(tmp_path: Path, user: str) -> None:
    text = f"# ours\nqemu:{KEY}\nother:{'00' * 16}\n"
    here = Door(Tls(psk_folder(tmp_path / "psk", text)))
    try:
        here.connect(Tls(tmp_path / "psk", username=user), stream.MAGIC_BYTES + b"version")
        here.serve(lambda: here.arrivals)
        with pytest.raises(TlsError):
            here.connect(Tls(psk_folder(tmp_path / "wrong", f"qemu:{'01' * 16}\n")))
        with pytest.raises(UsageError, match="no key of 'nobody'"):
            here.connect(Tls(tmp_path / "psk", username="nobody"))
    finally:
        here.close()
