"""QEMU's URIs, and how to listen and connect at them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from multifd.errors import UsageError


@dataclass(frozen=True)
class Uri:
    """Where to connect or listen, as QEMU writes it: ``tcp:HOST:PORT`` or ``unix:PATH``."""

    path: str = ""
    """Of a unix socket; empty for tcp."""
    host: str = ""
    """Empty: every address of this host when listening, the loopback when connecting."""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Read a URI; an IPv6 host stands in brackets.

        Raises:
            UsageError: not one of the two forms.
        """
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest and "\0" not in rest:
            if len(os.fsencode(rest)) > 107:  # sun_path, unix(7)
                raise UsageError(f"URI {text!r}: a unix socket's path has at most 107 bytes")
            return cls(path=rest)
        host, colon, port = rest.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if kind == "tcp" and colon and port.isascii() and port.isdecimal() and int(port) < 65536:
            if bracketed:
                host = host[1:-1]
            if (bracketed or ":" not in host) and _is_host(host):
                return cls(host=host, port=int(port))
        raise UsageError(
            f"URI {text!r}: expected tcp:HOST:PORT (an IPv6 host in brackets, port 0 to 65535) or unix:PATH"
        )

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"tcp:{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def _is_host(host: str) -> bool:
    """Whether getaddrinfo takes it; of others it raises a UnicodeError or a plain ValueError."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return "\0" not in host
