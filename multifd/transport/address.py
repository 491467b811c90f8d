"""QEMU's URIs, and how to listen and connect at them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from multifd.errors import UsageError

_DESCRIPTORS = re.compile(r"[0-9]{1,9}(,[0-9]{1,9})*")
_MOST_DESCRIPTORS = 256
"""Main and 255 channels."""
_VSOCK = re.compile(r"([0-9]{1,10}):([0-9]{1,10})")


@dataclass(frozen=True)
class Uri:
    """Where to connect or listen, as QEMU writes it.

    ``tcp:HOST:PORT``, ``unix:PATH``, ``vsock:CID:PORT``, or ``fd:N``: a socket that whoever started this process has
    handed over, or several, ``fd:N,N,...``. Not QEMU's is ``dir:PATH``, a folder of stored streams, where nobody
    connects or listens: `multifd.engine.storing` has its ends.
    """

    path: str = ""
    """Of a unix socket; empty for all others."""
    host: str = ""
    """Empty: every address of this host when listening, the loopback when connecting."""
    port: int = 0
    """Of tcp, 0 to 65535; of vsock, 32 bits."""
    cid: int | None = None
    """Of vsock: the machine, vsock(7); None for all others."""
    fds: tuple[int, ...] = ()
    """Descriptors of this process; empty for all others."""
    folder: str = ""
    """Of stored streams; empty for all others."""

    @classmethod
    def parse(cls, text: str) -> Uri:
        """Read a URI; an IPv6 host stands in brackets.

        Raises:
            UsageError: not one of the forms.
        """
        kind, _, rest = text.partition(":")
        if kind == "unix" and rest and "\0" not in rest:
            if len(os.fsencode(rest)) > 107:  # sun_path, unix(7)
                raise UsageError(f"URI {text!r}: a unix socket's path has at most 107 bytes")
            return cls(path=rest)
        if kind == "dir" and rest and "\0" not in rest:
            return cls(folder=rest)
        if kind == "fd" and _DESCRIPTORS.fullmatch(rest):
            fds = tuple(map(int, rest.split(",")))
            if len(fds) != len(set(fds)) or len(fds) > _MOST_DESCRIPTORS:
                raise UsageError(f"URI {text!r}: expected different descriptors, at most {_MOST_DESCRIPTORS}")
            return cls(fds=fds)
        if kind == "vsock" and (found := _VSOCK.fullmatch(rest)) and max(map(int, found.groups())) < 1 << 32:
            return cls(cid=int(found[1]), port=int(found[2]))
        host, colon, port = rest.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if kind == "tcp" and colon and port.isascii() and port.isdecimal() and int(port) < 65536:
            if bracketed:
                host = host[1:-1]
            if (bracketed or ":" not in host) and _is_host(host):
                return cls(host=host, port=int(port))
        raise UsageError(
            f"URI {text!r}: expected tcp:HOST:PORT (an IPv6 host in brackets, port 0 to 65535), unix:PATH, "
            "vsock:CID:PORT (numbers of 32 bits), fd:N[,N...] or dir:PATH"
        )

    def refuse_folder(self) -> None:
        """Raise `UsageError` if it is a folder: nobody connects or listens there."""
        if self.folder:
            raise UsageError(
                f"{self}: a folder of stored streams; expected an address where one can connect, such as tcp:HOST:PORT"
            )

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        if self.folder:
            return f"dir:{self.folder}"
        if self.fds:
            return f"fd:{','.join(map(str, self.fds))}"
        if self.cid is not None:
            return f"vsock:{self.cid}:{self.port}"
        return f"tcp:{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def folder_of(place: object) -> str:
    """The folder of a text ``dir:PATH``, empty of whatever else says where something is."""
    return Uri.parse(place).folder if isinstance(place, str) and place.startswith("dir:") else ""


def _is_host(host: str) -> bool:
    """Whether getaddrinfo takes it; it raises a UnicodeError or a plain ValueError of others. No brackets here."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return not any(c in host for c in "\0[]")
