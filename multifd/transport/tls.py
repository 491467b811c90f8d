"""TLS as QEMU migrates over it: settings, and the credentials of the side that listens and of the one that connects.

The folder is that of QEMU's tls-creds-x509 and tls-creds-psk objects, so one folder serves a QEMU and multifd. TLS 1.2
and later, with the suites that the platform's OpenSSL offers; nothing here chooses any.

Sources: file names, roles and defaults as in qapi/crypto.json (TlsCredsX509Properties, TlsCredsPskProperties) and
docs/system/tls.rst, QEMU 10.0; what each end does was tried on 7.2.22 and 10.0.2, see docs/tls.md.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from multifd.errors import UsageError, about
from multifd.transport import certificate as cert
from multifd.transport import psk
from multifd.transport.address import Uri
from multifd.transport.tls_incoming import TlsIncoming
from multifd.transport.tls_session import TlsSession
from multifd.transport.tls_words import Side

_MOST_S = 1_000_000.0


@dataclass(frozen=True)
class Tls:
    """How one side of a migration uses TLS. Nothing is read yet."""

    creds: str | os.PathLike[str]
    """The folder: ``ca-cert.pem``; of the side that listens ``server-cert.pem`` and ``server-key.pem``; of the one that
    connects ``client-cert.pem`` and ``client-key.pem``, if the other end asks for a certificate; ``ca-crl.pem`` if the
    CA revokes. Or ``keys.psk``, lines of ``name:hexadecimal key``, instead of all these."""
    verify_peer: bool = True
    """Whether the other end must show a certificate that the CA signed; without it nobody knows who that is."""
    hostname: str = ""
    """Of the side that connects: the name that the certificate must have; empty for the URI's host."""
    authz: Sequence[str] = ()
    """Of the side that listens: the only certificates that may connect, each by its whole subject
    (``CN=client,O=Example``) or an alternative name (``DNS:``, ``IP:``, ``URI:`` or ``email:``); empty for all of the
    CA."""
    username: str = "qemu"
    """Of the side that connects with ``keys.psk``: which key."""
    handshake_timeout: float = 20.0
    """Seconds that a handshake may take."""

    def __post_init__(self) -> None:
        cert.check_rules(self.authz)
        if self.authz and not self.verify_peer:
            raise about(UsageError("tls-authz needs certificates: tls-verify-peer must be on"), "tls_authz")
        if not 0 < self.handshake_timeout <= _MOST_S:
            raise about(
                UsageError(f"a handshake timeout of {self.handshake_timeout:g} s, expected above 0 and at most 1e6"),
                "tls_handshake_timeout",
            )


class TlsServer:
    """The credentials of a side that listens.

    Thread rule: any thread.

    Args:
        tls: the settings; the files are read at once.

    Raises:
        UsageError: a file is missing or unfit, or a setting is not this side's.
    """

    def __init__(self, tls: Tls) -> None:
        if tls.hostname:
            raise about(UsageError("tls-hostname is for the side that connects; this one listens"), "tls_hostname")
        self._lock = threading.Lock()
        self._tls, self._context, self._own = tls, *_load(tls, "server")
        self.failures = 0
        """Connections that did not get through the handshake, or were not authorised."""

    def open(self, sock: socket.socket, peer: str) -> TlsIncoming:
        """A connection that has just come; see `Acceptor`."""
        with self._lock:
            tls, context, own = self._tls, self._context, self._own
        side = Side("server", own, _expected(tls), tls.verify_peer)
        session = TlsSession(context, is_server=True)
        return TlsIncoming(sock, peer, session, side, tls.authz, tls.handshake_timeout, self._count)

    def reload(self, tls: Tls | None = None) -> None:
        """Read the files again, or those of other settings; who is connected already stays so.

        Raises:
            UsageError: as the constructor; what was in use stays in use.
        """
        fresh = TlsServer(tls or self._tls)
        with self._lock:
            self._tls, self._context, self._own = fresh._tls, fresh._context, fresh._own

    def _count(self) -> None:
        with self._lock:
            self.failures += 1


class TlsClient:
    """The credentials of a side that connects.

    Thread rule: any thread.

    Args:
        tls: the settings; the files are read at once.
        uri: where it connects; its host is the name that is expected, unless the settings say another.

    Raises:
        UsageError: a file is missing or unfit, a setting is not this side's, or there is no name to expect.
    """

    def __init__(self, tls: Tls, uri: Uri) -> None:
        if tls.authz:
            raise about(UsageError("tls-authz is for the side that listens; this one connects"), "tls_authz")
        uri.refuse_folder()
        self._lock = threading.Lock()
        self._uri = uri
        self._tls, self._context, self._own = tls, *_load(tls, "client")
        self._hostname: str | None = None
        if tls.verify_peer and not _is_psk(tls):
            self._context.check_hostname = True
            self._hostname = tls.hostname or uri.host or ("" if uri.path else "localhost")
            if not self._hostname:
                raise about(
                    UsageError(f"{uri} has no host: tls-hostname must say which name the certificate has to have"),
                    "tls_hostname",
                )
        try:
            self.session()
        except (ValueError, ssl.SSLError) as e:
            raise about(UsageError(f"tls-hostname {self._hostname!r}: {e}"), "tls_hostname") from e
        self.failures = 0
        """Connections that TLS has ended, in the handshake or by an alert that came later."""

    @property
    def handshake_timeout_s(self) -> float:
        """How long a handshake may take."""
        return self._tls.handshake_timeout

    def session(self) -> TlsSession:
        """A new connection's."""
        with self._lock:
            return TlsSession(self._context, is_server=False, hostname=self._hostname)

    def side(self) -> Side:
        """What to say of it when something goes wrong."""
        with self._lock:
            return Side("client", self._own, _expected(self._tls, self._hostname), self._tls.verify_peer)

    def reload(self, tls: Tls | None = None) -> None:
        """Read the files again, or those of other settings; who is connected already stays so.

        Raises:
            UsageError: as the constructor; what was in use stays in use.
        """
        fresh = TlsClient(tls or self._tls, self._uri)
        with self._lock:
            self._tls, self._context = fresh._tls, fresh._context
            self._own, self._hostname = fresh._own, fresh._hostname

    def count_failure(self) -> None:
        """TLS has ended a connection."""
        with self._lock:
            self.failures += 1


def _expected(tls: Tls, hostname: str | None = None) -> str:
    """What the other end must show, in words."""
    if _is_psk(tls):
        return "a key that both ends have"
    authority = cert.read(os.path.join(tls.creds, "ca-cert.pem"))
    issuer = f"{cert.subject(authority)}, " if authority else ""
    name = f" for {hostname}" if hostname else ""
    return f"a certificate{name} issued by the CA ({issuer}{os.path.join(tls.creds, 'ca-cert.pem')})"


def _is_psk(tls: Tls) -> bool:
    return os.path.lexists(os.path.join(tls.creds, "keys.psk"))


def _load(tls: Tls, role: str) -> tuple[ssl.SSLContext, str]:
    """The context of a folder, and the own certificate in words."""
    folder = os.fspath(tls.creds)
    if not os.path.isdir(folder):
        raise about(UsageError(f"tls-creds {folder!r}: not a folder"), "tls_creds")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if role == "server" else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # no QEMU asks for it, and a write must never wait for a read
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if tls.verify_peer else ssl.CERT_NONE
    if role == "server":
        context.num_tickets = 0  # nobody resumes, and a QEMU source never reads them
    if _is_psk(tls):
        if os.path.lexists(os.path.join(folder, "ca-cert.pem")):
            _unfit(os.path.join(folder, "keys.psk"), "there is ca-cert.pem beside it: a folder is for one of both")
        if tls.authz:
            raise about(UsageError("tls-authz is about certificates, keys.psk has none"), "tls_authz")
        path = psk.configure(context, folder, tls.username, is_server=role == "server")
        return context, f"key {tls.username!r} of {path}" if role == "client" else f"a key of {path}"
    if tls.verify_peer:
        _load_authority(context, folder)
    return context, _load_own(context, folder, role)


def _load_authority(context: ssl.SSLContext, folder: str) -> None:
    path = os.path.join(folder, "ca-cert.pem")
    _load_pem(context, path, "no CA in it")
    if not context.get_ca_certs(binary_form=True):
        _unfit(path, "no certificate in it is a CA's (basicConstraints CA:TRUE)")
    crl = os.path.join(folder, "ca-crl.pem")
    if os.path.lexists(crl):
        _load_pem(context, crl, "no revocation list in it")
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF


def _load_pem(context: ssl.SSLContext, path: str, nothing: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as e:
        _unfit(path, f"{nothing}: {e.reason or e}")
    except OSError as e:
        _unfit(path, e.strerror or str(e))


def _load_own(context: ssl.SSLContext, folder: str, role: str) -> str:
    chain, key = (os.path.join(folder, f"{role}-{what}.pem") for what in ("cert", "key"))
    if role == "client" and not os.path.lexists(chain) and not os.path.lexists(key):
        return ""
    for path in (chain, key):
        try:
            with open(path, "rb"):
                pass
        except OSError as e:
            _unfit(path, e.strerror or str(e))

    def no_password() -> NoReturn:
        _unfit(key, "the key is encrypted, expected one without a password")

    try:
        context.load_cert_chain(chain, key, no_password)
    except ssl.SSLError as e:
        if e.reason == "KEY_VALUES_MISMATCH":
            _unfit(key, f"it is not the key of {chain}")
        _unfit(chain, f"not a certificate and, in {key}, its key in PEM: {e.reason or e}")
    own = cert.read(chain)
    _check_dates(chain, own)
    return f"{chain}: {cert.describe(own)}" if own else chain


def _check_dates(path: str, own: cert.Certificate) -> None:
    if not own:
        return
    now = time.time()
    if now > ssl.cert_time_to_seconds(own["notAfter"]):
        _unfit(path, f"it has expired on {own['notAfter']}")
    if now < ssl.cert_time_to_seconds(own["notBefore"]):
        _unfit(path, f"it is valid from {own['notBefore']} only")


def _unfit(path: str, why: str) -> NoReturn:
    raise about(UsageError(f"{path}: {why}"), "tls_creds")
