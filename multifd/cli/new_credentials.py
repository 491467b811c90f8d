"""``multifd tls new``: a CA and certificates to try TLS with.

By `cryptography`, which is imported when it is used. It alone lets the subject be short, so that a QEMU's tls-authz can
name it, and sets the key usages that QEMU insists on; trustme, which is made for tests, does neither.

Source of the usages: QEMU 10.0 refuses a certificate whose critical key usage lacks key encipherment, whatever its
kind of key, and a CA that does not say that it is one (docs/tls.md).
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from multifd.errors import UsageError, about

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.x509 import Certificate, Name

DAYS = 30
_CLOCKS_DIFFER = datetime.timedelta(hours=1)


def new_credentials(folder: str | os.PathLike[str], hosts: Sequence[str], days: int = DAYS) -> list[str]:
    """Make a folder with a CA and a server's and a client's certificate, which both ends can use for a try.

    The CA's key is thrown away: nobody can issue another certificate of it.

    Args:
        folder: must not have any of the files yet; is made if it is missing.
        hosts: host names and addresses under which the server is reached.
        days: how long they are valid.

    Returns:
        The files' paths.

    Raises:
        UsageError: a host that cannot be meant, files that are there already or cannot be written, or `cryptography`
            is not installed.
    """
    authority = Authority("multifd tls new: for trying", days)
    issued = {
        "server": authority.issue(hosts[0], hosts, "server"),
        "client": authority.issue("client", ["client"], "client"),
    }
    files = {"ca-cert.pem": authority.pem}
    for role, (certificate, key) in issued.items():
        files |= {f"{role}-cert.pem": certificate, f"{role}-key.pem": key}
    with contextlib.ExitStack() as undo:
        try:
            _make_folder(folder, undo)
            if there := [name for name in files if os.path.lexists(os.path.join(folder, name))]:
                raise about(UsageError(f"{os.fspath(folder)}: {', '.join(there)} is there already"), "folder")
            for name, data in files.items():
                _write(os.path.join(folder, name), data, undo)
        except OSError as e:
            raise about(UsageError(f"{os.fspath(folder)}: {e.strerror or e}"), "folder") from e
        undo.pop_all()
    return [os.path.join(folder, name) for name in files]


def _make_folder(folder: str | os.PathLike[str], undo: contextlib.ExitStack) -> None:
    """Make it with those above it; one that is there stays as it is."""
    if not os.path.isdir(folder):
        os.makedirs(folder, mode=0o700)
        undo.callback(os.rmdir, folder)


def _write(path: str, data: bytes, undo: contextlib.ExitStack) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        undo.callback(os.unlink, path)
        file.write(data)


class Authority:
    """A CA that lives in memory.

    Args:
        name: its common name.
        days: how long it is valid.

    Raises:
        UsageError: `cryptography` is not installed.
    """

    def __init__(self, name: str, days: int = DAYS) -> None:
        with _needing_cryptography():
            from cryptography.hazmat.primitives.asymmetric import ec
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._days = days
        self._certificate = self._sign(self._name, self._key, is_authority=True)

    @property
    def pem(self) -> bytes:
        """Its certificate, what goes into ca-cert.pem."""
        return _pem(self._certificate)

    def issue(
        self, name: str, hosts: Sequence[str], role: str, *, first_day: int = 0, last_day: int | None = None
    ) -> tuple[bytes, bytes]:
        """A certificate and its key, both PEM.

        Args:
            name: its subject's common name.
            hosts: its alternative names.
            role: server or client.
            first_day, last_day: when it is valid, counted from today; the last one is None for the CA's.

        Raises:
            UsageError: a host that cannot be meant.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        key = ec.generate_private_key(ec.SECP256R1())
        days = (first_day, self._days if last_day is None else last_day)
        certificate = self._sign(_name(name), key, hosts=hosts, role=role, days=days)
        return _pem(certificate), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def _sign(
        self, subject: Name, key: EllipticCurvePrivateKey, *, is_authority: bool = False, hosts: Sequence[str] = (),
        role: str = "", days: tuple[int, int] | None = None,
    ) -> Certificate:  # fmt: skip
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.x509.oid import ExtendedKeyUsageOID

        first, last = days or (0, self._days)
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        builder = x509.CertificateBuilder(
            self._name, subject, key.public_key(), x509.random_serial_number(), now + first * day - _CLOCKS_DIFFER,
            now + last * day,
        )  # fmt: skip
        builder = builder.add_extension(x509.BasicConstraints(is_authority, path_length=None), critical=True)
        builder = builder.add_extension(_usage(is_authority), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        if not is_authority:
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(issuer, critical=False)
            usage = {"server": ExtendedKeyUsageOID.SERVER_AUTH, "client": ExtendedKeyUsageOID.CLIENT_AUTH}[role]
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            names = x509.SubjectAlternativeName([_alternative(host) for host in hosts])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def _usage(is_authority: bool) -> Any:
    from cryptography.x509 import KeyUsage

    return KeyUsage(
        digital_signature=not is_authority, content_commitment=False, key_encipherment=not is_authority,
        data_encipherment=False, key_agreement=False, key_cert_sign=is_authority, crl_sign=is_authority,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _name(common_name: str) -> Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])  # ub-common-name, RFC 5280


def _alternative(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode("ascii")
        if not name or name.startswith((".", "-")) or not name.replace("-", "").replace(".", "").isalnum():
            raise ValueError("no host's name")
        return x509.DNSName(name)
    except ValueError as e:
        raise about(UsageError(f"host {host!r}: expected a host's name or an IP address"), "hosts") from e


def _pem(certificate: Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


@contextlib.contextmanager
def _needing_cryptography() -> Iterator[None]:
    try:
        yield
    except ImportError as e:
        raise UsageError(
            "making certificates needs the package cryptography: pip install 'multifd[tls]'; certtool or openssl make "
            "them, too, see the documentation's page on TLS"
        ) from e
