"""What went wrong with TLS, in words: which certificate, what was expected, what the other end said.

Rules of this file: an error and what is known in, words out; no connection, no clock.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from multifd.transport import certificate as cert
from multifd.transport.tls_session import TlsSession
from multifd.wire import greeting

_ALERTS = {
    "ACCESS_DENIED": "it does not authorise {own}",
    "BAD_CERTIFICATE": "it does not accept {own}",
    "CERTIFICATE_EXPIRED": "it finds {own} expired, or not valid yet",
    "CERTIFICATE_REQUIRED": "it wants a certificate, and sees {own}",
    "CERTIFICATE_REVOKED": "it finds {own} revoked",
    "CERTIFICATE_UNKNOWN": "it does not accept {own}",
    "DECRYPT_ERROR": "it cannot check what this side sent: another key, or damage on the way",
    "BAD_RECORD_MAC": "what it read was damaged on the way, or somebody changed it",
    "HANDSHAKE_FAILURE": "it finds no TLS version, suite or key in common, or a certificate missing; it sees {own}",
    "ILLEGAL_PARAMETER": "it does not accept this side's parameters, such as another key",
    "INTERNAL_ERROR": "it had an internal error",
    "PROTOCOL_VERSION": "it speaks no TLS version that this side does (1.2 and later)",
    "UNKNOWN_CA": "it does not know the issuer of {own}",
    "UNKNOWN_PSK_IDENTITY": "it does not know {own}",
    "UNSUPPORTED_CERTIFICATE": "it does not accept the kind of {own}",
}  # RFC 8446 section 6, RFC 5246 section 7.2; OpenSSL's names
_DAMAGE = frozenset(
    {"DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "BAD_RECORD_TYPE", "UNEXPECTED_MESSAGE", "UNEXPECTED_RECORD",
     "PACKET_LENGTH_TOO_LONG", "ENCRYPTED_LENGTH_TOO_LONG", "DATA_LENGTH_TOO_LONG", "BAD_LENGTH"}
)  # fmt: skip
_PLAIN = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"})
_RECORD_TYPES = range(20, 25)  # RFC 8446 section 5.1, and heartbeat


@dataclass(frozen=True)
class Side:
    """What one side has and expects, in words."""

    role: str
    """server or client."""
    own: str
    """Its certificate; empty if it has none."""
    expected: str
    """What the other end must show."""
    verifies: bool

    @property
    def own_words(self) -> str:
        """The own certificate, as a part of a sentence."""
        return f"this side's {self.own}" if self.own else f"none: the folder has no {self.role}-cert.pem"

    def failure(self, error: ssl.SSLError, session: TlsSession) -> str:
        """Why the session ended with `error`."""
        reason = error.reason or ""
        _, is_alert, alert = reason.partition("_ALERT_")
        if is_alert:
            said = _ALERTS.get(alert, "").format(own=self.own_words)
            return f"the other end ended TLS: {alert.lower().replace('_', ' ')}{f': {said}' if said else ''}"
        if isinstance(error, ssl.SSLCertVerificationError):
            return self._distrust(error, session.shown_certificate())
        if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return f"the other end shows no certificate, expected {self.expected}"
        if reason in _PLAIN and not session.is_shaken:
            return self.plain()
        if reason in ("NO_SHARED_CIPHER", "UNSUPPORTED_PROTOCOL"):
            return (
                f"the other end has no TLS version, cipher suite or kind of key in common with this side "
                f"({reason.lower().replace('_', ' ')})"
            )
        if reason in _DAMAGE or reason in _PLAIN:
            return f"what arrived was damaged on the way, or somebody changed it ({reason.lower().replace('_', ' ')})"
        return f"TLS failed: {reason.lower().replace('_', ' ') or error}"

    def _distrust(self, error: ssl.SSLCertVerificationError, shown: cert.Certificate) -> str:
        got = f", got {cert.describe(shown)}" if shown else ""
        why = str(error.verify_message).rstrip(".")
        return f"the other end's certificate does not pass: {why}; expected {self.expected}{got}"

    def plain(self, first: bytes = b"") -> str:
        """The other end does not speak TLS.

        Args:
            first: what it sent, if that is known.
        """
        known = greeting.classify(first) if first else None
        if known is not None and known.kind is greeting.Kind.STRANGER:
            return f"it does not speak TLS: {known.words}"
        if self.role == "server":
            return "it speaks without TLS, which this side expects (tls-creds is missing at the source)"
        return "it answers without TLS: it does not use it (tls-creds is missing there), or it is no destination"

    def refused(self) -> str:
        """The other end closed after the handshake and before it said anything; the rest of a sentence."""
        own = f"this side's certificate, {self.own}" if self.own else f"that this side has {self.own_words}"
        return f"closed because of TLS, it does not accept {own}, or does not authorise it; its own log says which"

    def closed(self) -> str:
        """The other end closed in the handshake."""
        if self.role == "server":
            return "it closed the connection in the TLS handshake"
        return (
            "it closed the connection in the TLS handshake: it does not use TLS (tls-creds is missing there), has "
            "other credentials, or did not accept this side's; its own log says which"
        )

    def late(self, timeout_s: float) -> str:
        """The handshake took too long."""
        hint = "" if self.role == "server" else ": it hangs, serves another, or does not use TLS"
        return f"it did not complete the TLS handshake within {timeout_s:g} s{hint}"


def is_tls(first: int) -> bool:
    """Whether a connection's first byte can be TLS's."""
    return first in _RECORD_TYPES
