"""Certificates in words, and which of them may connect.

Rules of this file: a certificate is what `ssl.SSLSocket.getpeercert` gives, a dictionary. CPython reads one from a
file, or shows one that failed, by calls without a promise (`ssl._ssl._test_decode_cert`, since 2.6;
`get_unverified_chain`, since 3.10): where they are missing, a message says less and nothing else changes.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from multifd.errors import UsageError, about

Certificate = Mapping[str, Any]

# RFC 4514 section 3, and the attributes that GnuTLS names besides.
_SHORT = {
    "commonName": "CN", "countryName": "C", "domainComponent": "DC", "emailAddress": "EMAIL", "localityName": "L",
    "organizationName": "O", "organizationalUnitName": "OU", "serialNumber": "serialNumber",
    "stateOrProvinceName": "ST", "streetAddress": "STREET", "userId": "UID",
}  # fmt: skip
_SAN_KINDS = {"DNS": "DNS", "IP Address": "IP", "URI": "URI", "email": "email"}


def subject(certificate: Certificate, of: str = "subject") -> str:
    """A distinguished name as RFC 4514 writes it, in the certificate's order: ``O=Example,CN=client``."""
    return ",".join(_relative_names(certificate, of))


def _relative_names(certificate: Certificate, of: str) -> list[str]:
    return [
        "+".join(f"{_SHORT.get(name, name)}={_escaped(value)}" for name, value in relative)
        for relative in certificate.get(of, ())
    ]


def _escaped(value: str) -> str:
    """RFC 4514 section 2.4: no value can look like two."""
    text = re.sub(r'([,+"\\<>;])', r"\\\1", value)
    if text.startswith(("#", " ")):
        text = "\\" + text
    return text[:-1] + "\\ " if text.endswith(" ") and len(text) > 1 else text


def alternatives(certificate: Certificate) -> list[str]:
    """Its subject alternative names, each with its kind: ``DNS:vm.example``, ``IP:192.0.2.1``."""
    return [
        f"{_SAN_KINDS[kind]}:{value}" for kind, value in certificate.get("subjectAltName", ()) if kind in _SAN_KINDS
    ]


def describe(certificate: Certificate) -> str:
    """Whose it is, who issued it, what it is for, and when."""
    names = ", ".join(alternatives(certificate))
    return (
        f"{subject(certificate) or 'without a subject'} (issued by {subject(certificate, 'issuer')}"
        f"{f', for {names}' if names else ''}, valid from {certificate.get('notBefore')} to "
        f"{certificate.get('notAfter')})"
    )


def read(path: str | os.PathLike[str]) -> Certificate:
    """The first certificate of a PEM file; empty if it cannot be read here."""
    decode = getattr(getattr(ssl, "_ssl", None), "_test_decode_cert", None)
    try:
        return dict(decode(os.fspath(path))) if decode is not None else {}
    except (OSError, ssl.SSLError, UnicodeError):
        return {}


def shown(session: ssl.SSLObject) -> Certificate:
    """The certificate that the peer showed, trusted or not; empty if that cannot be known here."""
    ask = getattr(getattr(session, "_sslobj", None), "get_unverified_chain", None)
    chain = (ask() if ask is not None else None) or []
    return dict(chain[0].get_info()) if chain and hasattr(chain[0], "get_info") else {}


def check_rules(rules: Sequence[str]) -> None:
    """Check what `may_connect` is asked by.

    Raises:
        UsageError: a rule that no certificate could meet.
    """
    for rule in rules:
        kind, colon, value = rule.partition(":")
        if not (kind in _SAN_KINDS.values() and colon and value) and not re.match(r"[A-Za-z][\w.-]*=.", rule):
            raise about(
                UsageError(
                    f"tls-authz {rule!r}: expected a certificate's whole subject, such as CN=client,O=Example, or one "
                    "of its alternative names, such as DNS:client.example, IP:192.0.2.1, URI:... or email:..."
                ),
                "tls_authz",
            )


def may_connect(certificate: Certificate, rules: Sequence[str]) -> bool:
    """Whether a certificate meets one of the rules; without rules every trusted one does.

    A subject is the whole distinguished name, in the certificate's order or the other way round, since tools differ.
    """
    if not rules:
        return True
    names = _relative_names(certificate, "subject")
    subjects = {",".join(names), ",".join(reversed(names))} - {""}
    others = {_folded(name) for name in alternatives(certificate)}
    return any(rule in subjects or _folded(rule) in others for rule in rules)


def _folded(name: str) -> str:
    """Host names have no case, RFC 4343."""
    return name.casefold() if name.startswith("DNS:") else name
