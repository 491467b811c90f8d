"""TLS of a route's sides: what the file may say, migrations, certificates that are renewed, those that are refused."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Folders
from peer import Destination, is_closed
from routes import DEADLINE_S, Migration, ServiceThread, wait_for

import multifd
from multifd import Tls
from multifd.errors import Cancelled, MultifdError, UsageError
from multifd.service.config import read
from multifd.service.service import Request

PAGE = Path(__file__).parent.parent.parent / "docs/relay-service.md"


def route(listen: object, to: object, *, in_tls: Path | None = None, out_tls: Path | None = None) -> str:
    lines = ["[routes.a]", f'listen = "unix:{listen}"', f'to = "unix:{to}"']
    if in_tls is not None:
        lines.append(f'in-tls = {{ creds = "{in_tls}" }}')
    if out_tls is not None:
        lines.append(f'out-tls = {{ creds = "{out_tls}", hostname = "vm.example" }}')
    return "\n".join([*lines, ""])


def here(folder: Path) -> Tls:
    """A source's settings, whose route has the certificate of another name than a unix socket."""
    return Tls(folder, hostname="vm.example")


def reload(service: ServiceThread, outcome: str = "accepted") -> None:
    before = service.sample("multifd_config_reloads_total", outcome=outcome)
    service.ask(Request.RELOAD)
    wait_for(lambda: service.sample("multifd_config_reloads_total", outcome=outcome) == before + 1)


def renew(folder: Path, source: Path) -> None:
    """Put other files into a folder."""
    for path in source.iterdir():
        shutil.copy(path, folder / path.name)


@pytest.fixture
def folder(credentials: Folders, tmp_path) -> Path:
    """Good credentials that a test may change."""
    return credentials.copy(credentials.good, tmp_path / "creds")


def client_context(folder: Path) -> ssl.SSLContext:
    """Of a source that is not multifd."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(folder / "ca-cert.pem")
    context.load_cert_chain(folder / "client-cert.pem", folder / "client-key.pem")
    return context


# -- what the file may say --------------------------------------------------------------------------


def settings(tmp_path: Path, *lines: str):
    path = tmp_path / "relay.toml"
    path.write_text("\n".join(["[routes.a]", 'listen = "unix:/x"', 'to = "tcp:127.0.0.1:1"', *lines]))
    return read(path)[0]


def test_every_key(credentials: Folders, tmp_path):
    route = settings(
        tmp_path,
        f'in-tls = {{ creds = "{credentials.good}", verify-peer = true, authz = ["CN=client"], '
        "handshake-timeout = 3 }",
        f'out-tls = {{ creds = "{credentials.good}", verify-peer = false, hostname = "x", username = "y", '
        "handshake-timeout = 2.5 }",
    )
    assert route.in_tls._tls == Tls(str(credentials.good), authz=["CN=client"], handshake_timeout=3)
    assert route.relay.out_tls._tls == Tls(
        str(credentials.good), verify_peer=False, hostname="x", username="y", handshake_timeout=2.5
    )


def test_without_a_table_it_is_in_clear(tmp_path):
    route = settings(tmp_path)
    assert (route.in_tls, route.relay.out_tls) == (None, None)


@pytest.mark.parametrize(
    ("side", "table", "words"),
    [
        ("in", "3", "got 3, expected a table"),
        ("in", "'GOOD'", "got 'GOOD', expected a table"),
        ("in", "{ }", "'creds' is missing"),
        ("in", "{ verify-peer = true }", "'creds' is missing"),
        ("in", "{ creds = 3 }", "creds: got 3, expected text"),
        ("in", "{ creds = '/nowhere' }", "creds: tls-creds '/nowhere': not a folder"),
        ("out", "{ creds = '' }", "creds: tls-creds '': not a folder"),
        ("in", "{ cred = 'GOOD' }", "unknown key 'cred'; did you mean 'creds'?"),
        ("in", "{ creds = 'GOOD', hostname = 'x' }", "unknown key 'hostname'; known are creds, verify-peer"),
        ("out", "{ creds = 'GOOD', authz = ['CN=x'] }", "unknown key 'authz'; known are creds, verify-peer"),
        ("in", "{ creds = 'GOOD', verify-peer = 'on' }", "verify-peer: got 'on', expected true or false"),
        ("in", "{ creds = 'GOOD', verify-peer = 1 }", "verify-peer: got 1, expected true or false"),
        ("in", "{ creds = 'GOOD', authz = 'CN=x' }", "authz: got 'CN=x', expected a list of texts"),
        ("in", "{ creds = 'GOOD', authz = ['CN=x', 3] }", "authz: got ['CN=x', 3], expected a list of texts"),
        ("in", "{ creds = 'GOOD', authz = ['x'] }", "authz: tls-authz 'x': expected a certificate's whole subject"),
        ("in", "{ creds = 'GOOD', authz = ['CN=x'], verify-peer = false }", "authz: tls-authz needs certificates"),
        ("in", "{ creds = 'GOOD', handshake-timeout = 0 }", "handshake-timeout: a handshake timeout of 0 s"),
        ("in", "{ creds = 'GOOD', handshake-timeout = true }", "handshake-timeout: got True, expected a number"),
        ("in", "{ creds = 'EXPIRED' }", "creds: EXPIRED/server-cert.pem: it has expired on"),
        ("out", "{ creds = 'FUTURE' }", "creds: FUTURE/client-cert.pem: it is valid from"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(credentials: Folders, tmp_path, side, table, words):
    for name in ("good", "expired", "future"):
        table, words = (text.replace(name.upper(), str(getattr(credentials, name))) for text in (table, words))
    with pytest.raises(UsageError) as caught:
        settings(tmp_path, f"{side}-tls = {table}")
    assert str(caught.value).startswith(f"{tmp_path}/relay.toml: route 'a': {side}-tls: {words}")
    assert "\n" not in str(caught.value)


def test_a_destination_without_a_host_needs_a_name(credentials: Folders, tmp_path):
    path = tmp_path / "relay.toml"
    path.write_text(f'[routes.a]\nlisten = "unix:/x"\nto = "unix:/y"\nout-tls = {{ creds = "{credentials.good}" }}\n')
    with pytest.raises(UsageError, match="route 'a': out-tls: hostname: unix:/y has no host"):
        read(path)


# -- migrations -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tls_in", "tls_out"), [(True, False), (False, True), (True, True)])
def test_a_migration(serve, receiver, image, credentials: Folders, tmp_path, tls_in, tls_out):
    good = credentials.good
    memory = bytearray(len(image))
    end = receiver(memory, f"unix:{tmp_path}/out", tls=Tls(good) if tls_out else None)
    service = serve(
        route(tmp_path / "in", tmp_path / "out", in_tls=good if tls_in else None, out_tls=good if tls_out else None)
    )
    multifd.send(image, service.uri("a"), channels=3, tls=here(good) if tls_in else None)
    end.join()
    assert memory == image
    wait_for(lambda: len(service.ended) == 1)
    result = service.ended[0].result
    assert (result.status, result.channels, result.rejected, result.tls_failures) == ("completed", 3, 0, 0)
    assert service.stop(Request.DRAIN)


def test_the_pages_example_runs(serve, receiver, image, credentials: Folders, tmp_path):
    """As it stands, but for places: out of one route, into the other."""
    section = PAGE.read_text().split("\n## TLS\n")[1].split("\n## ")[0]
    text = re.search(r"```toml\n(.*?)```", section, re.DOTALL)[1]
    for old, new in {
        "tcp:192.0.2.7:4444": f"unix:{tmp_path}/between",
        "tcp:192.0.2.1:4444": f"unix:{tmp_path}/between",
        "/run/multifd": str(tmp_path),
        "/etc/multifd/tls": str(credentials.good),
    }.items():
        assert old in text
        text = text.replace(old, new)
    memory = bytearray(len(image))
    end = receiver(memory, f"unix:{tmp_path}/in.sock")
    service = serve(text)
    multifd.send(image, service.uri("out"))
    end.join()
    assert memory == image
    wait_for(lambda: len(service.ended) == 2)
    assert {(e.route, e.result.status) for e in service.ended} == {("out", "completed"), ("in", "completed")}
    assert service.stop(Request.DRAIN)


def test_who_fails_the_handshake_is_counted_and_the_route_waits_on(
    serve, receiver, image, credentials: Folders, tmp_path, caplog
):
    caplog.set_level(logging.INFO)
    end = receiver(bytearray(len(image)), f"unix:{tmp_path}/out")
    service = serve(route(tmp_path / "in", tmp_path / "out", in_tls=credentials.good))

    def counted(count: int) -> bool:
        names = ("multifd_tls_failures_total", "multifd_strangers_total")
        samples = {**{name: {} for name in names}, names[0]: {"side": "in"}}
        return all(service.sample(name, route="a", **labels) == count for name, labels in samples.items())

    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(DEADLINE_S)
        plain.connect(f"{tmp_path}/in")
        plain.sendall(b"QEVM")
        assert is_closed(plain)
    wait_for(lambda: counted(1))
    with socket.socket(socket.AF_UNIX) as sock, contextlib.suppress(ssl.SSLError, ConnectionError):
        sock.settimeout(DEADLINE_S)
        sock.connect(f"{tmp_path}/in")
        with client_context(credentials.foreign).wrap_socket(sock, server_hostname="vm.example") as foreign:
            is_closed(foreign)
    wait_for(lambda: counted(2))
    assert f"expected a certificate issued by the CA (CN=our CA, {credentials.good}/ca-cert.pem)" in caplog.text
    multifd.send(image, service.uri("a"), tls=here(credentials.good))
    end.join()
    wait_for(lambda: len(service.ended) == 1)
    assert service.ended[0].result.status == "completed"
    assert service.stop(Request.DRAIN)


def test_a_destination_that_does_not_fit_is_counted(serve, receiver, credentials: Folders, tmp_path):
    """Whichever end finds it out: in the handshake, or this side's certificate right after it (TLS 1.3)."""
    for number, (there, here) in enumerate(
        ((credentials.other, credentials.good), (credentials.good, credentials.bare))
    ):
        canceller = multifd.Canceller()
        end = receiver(bytearray(4096), f"unix:{tmp_path}/out{number}", tls=Tls(there), canceller=canceller)
        (tmp_path / f"relay{number}").mkdir()
        service = serve(route(tmp_path / f"in{number}", tmp_path / f"out{number}", out_tls=here))
        try_to_send(service.uri("a"), None)
        wait_for(lambda service=service: len(service.ended) == 1)
        result = service.ended[0].result
        assert (result.status, result.tls_failures) == ("failed", 0), result
        assert result.out_tls_failures == 1, result.error
        assert service.sample("multifd_tls_failures_total", route="a", side="out") == 1
        assert service.sample("multifd_tls_failures_total", route="a", side="in") == 0
        assert service.stop(Request.DRAIN)
        canceller.cancel()
        with pytest.raises(Cancelled):
            end.join()


# -- renewed certificates ---------------------------------------------------------------------------


class TlsDestination(Destination):
    """One that speaks TLS."""

    def __init__(self, path: Path, folder: Path) -> None:
        super().__init__(path)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server-cert.pem", folder / "server-key.pem")

    def accept(self) -> socket.socket:
        sock = self._context.wrap_socket(super().accept(), server_side=True)
        self.sockets.append(sock)
        return sock


class TlsMigration(Migration):
    """Of a source that speaks TLS."""

    def __init__(self, uri: str, destination: Destination, folder: Path) -> None:
        self._context = client_context(folder)
        super().__init__(uri, destination)

    def connect(self, first: bytes) -> socket.socket:
        sock = self._context.wrap_socket(super().connect(b""), server_hostname="vm.example")
        self._source.append(sock)
        sock.sendall(first)
        return sock

    def finish(self) -> None:
        self._main.sendall(self._end)
        for sock in (self.channel, self._main):
            sock.setblocking(False)
            with contextlib.suppress(ssl.SSLWantReadError):
                sock.unwrap()  # says that it ends, and does not wait for the answer
            sock.close()
        for out in self._outs:
            is_closed(out)
            out.close()


def try_to_send(uri: str, folder: Path | None) -> None:
    with pytest.raises(MultifdError):
        multifd.send(bytes(4096), uri, tls=here(folder) if folder else None, connect_timeout=DEADLINE_S)


def passes(migrate: Callable[[], object], service: ServiceThread, count: int) -> None:
    """A migration, the service's `count`th, completes."""
    migrate()
    wait_for(lambda: len(service.ended) == count)
    assert service.ended[-1].result.status == "completed", service.ended[-1].result.error


def test_renewed_certificates_of_the_side_that_listens(serve, destination, credentials: Folders, folder, tmp_path):
    """By SIGHUP, with nothing else in the file changed: the migration under way is not touched, the next one must
    have a certificate of the new CA."""
    text = route(tmp_path / "in", "x", in_tls=folder).replace("unix:x", destination.uri)
    service = serve(text)
    migration = TlsMigration(service.uri("a"), destination, credentials.good)
    wait_for(lambda: service.state("a") == "active")
    renew(folder, credentials.other)
    reload(service)
    passes(migration.finish, service, 1)
    try_to_send(service.uri("a"), credentials.good)
    passes(lambda: TlsMigration(service.uri("a"), destination, credentials.other).finish(), service, 2)


def test_renewed_certificates_of_the_side_that_connects(serve, receiver, image, credentials: Folders, folder, tmp_path):
    old = TlsDestination(tmp_path / "old", credentials.good)
    with contextlib.closing(old):
        service = serve(route(tmp_path / "in", tmp_path / "old", out_tls=folder))
        migration = Migration(service.uri("a"), old)
        wait_for(lambda: service.state("a") == "active")
        renew(folder, credentials.other)
        (tmp_path / "relay.toml").write_text(route(tmp_path / "in", tmp_path / "new", out_tls=folder))
        reload(service)
        passes(migration.finish, service, 1)
    memory = bytearray(len(image))
    end = receiver(memory, f"unix:{tmp_path}/new", tls=Tls(credentials.other))
    passes(lambda: multifd.send(image, service.uri("a")), service, 2)
    end.join()
    assert memory == image
    assert service.stop(Request.DRAIN)


@pytest.mark.parametrize("is_on_first", [True, False])
def test_tls_is_switched_on_and_off(serve, destination, credentials: Folders, tmp_path, is_on_first):
    texts = {
        is_on: route(tmp_path / "in", tmp_path / "to.sock", in_tls=credentials.good if is_on else None)
        for is_on in (True, False)
    }

    def migrate(is_on: bool) -> Migration:
        uri = service.uri("a")
        return TlsMigration(uri, destination, credentials.good) if is_on else Migration(uri, destination)

    service = serve(texts[is_on_first])
    migration = migrate(is_on_first)
    wait_for(lambda: service.state("a") == "active")
    (tmp_path / "relay.toml").write_text(texts[not is_on_first])
    reload(service)
    passes(migration.finish, service, 1)
    passes(lambda: migrate(not is_on_first).finish(), service, 2)


@pytest.mark.parametrize("what", ["expired", "another's key", "missing", "rubbish"])
@pytest.mark.parametrize("side", ["in", "out"])
def test_a_bad_certificate_is_refused_and_the_old_ones_stay(
    serve, receiver, image, credentials: Folders, folder, tmp_path, caplog, side, what
):
    role = "server" if side == "in" else "client"
    text = route(tmp_path / "in", tmp_path / "out", **{f"{side}_tls": folder})
    service = serve(text)
    chain, key = folder / f"{role}-cert.pem", folder / f"{role}-key.pem"
    match what:
        case "expired":
            renew(folder, credentials.expired)
            words = f"{chain}: it has expired on"
        case "another's key":
            shutil.copy(credentials.other / key.name, key)
            words = f"{key}: it is not the key of {chain}"
        case "missing":
            key.unlink()
            words = f"{key}: No such file"
        case _:
            chain.write_text("rubbish")
            words = f"{chain}: not a certificate"
    caplog.set_level(logging.INFO)
    reload(service, "refused")
    (line,) = [r.getMessage() for r in caplog.records if getattr(r, "event", "") == "reload-refused"]
    assert line.startswith(f"the old settings stay: {tmp_path}/relay.toml: route 'a': {side}-tls: creds: {words}")
    assert "\n" not in line
    memory = bytearray(len(image))
    end = receiver(memory, f"unix:{tmp_path}/out", tls=Tls(credentials.good) if side == "out" else None)
    passes(
        lambda: multifd.send(image, service.uri("a"), tls=here(credentials.good) if side == "in" else None), service, 1
    )
    end.join()
    assert memory == image
    assert service.stop(Request.DRAIN)


def test_a_bad_certificate_ends_the_start(serve, credentials: Folders, tmp_path):
    with pytest.raises(UsageError, match=r"in-tls: creds: .*it has expired on"):
        serve(route(tmp_path / "in", tmp_path / "out", in_tls=credentials.expired))
    assert not (tmp_path / "in").exists()
