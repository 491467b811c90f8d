"""The shim of `shim.c`: built once, told what is to go wrong, asked afterwards what was called."""

from __future__ import annotations

import ctypes
import errno
import shutil
import signal
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
CALLS = (
    "read", "write", "sync", "close", "resize", "name", "make", "remove", "send", "recv", "connect", "accept", "any"
)  # fmt: skip
_COUNTS = struct.Struct(f"={len(CALLS) + 1}I")
ALWAYS = 2**32 - 1


@dataclass(frozen=True)
class Rule:
    """What happens at a system call.

    Args:
        call: one of `CALLS`.
        first: which of them, from 1.
        action: a word that `shim.c` knows.
        value: an errno, a signal, bytes or seconds.
        last: the last of them that it happens at; `first` if not given.
        every: at each so many-th from `first` on.
        since: they are numbered from the first of these on.
    """

    call: str
    first: int
    action: str
    value: int
    last: int = 0
    every: int = 1
    since: str = "any"

    def __str__(self) -> str:
        numbers = f"{self.first} {self.last or self.first} {self.every}"
        return f"{self.since} {self.call} {numbers} {self.action} {self.value}"

    @property
    def words(self) -> str:
        """For a person."""
        value = {
            "errno": errno.errorcode.get(self.value, str(self.value)),
            "late": errno.errorcode.get(self.value, str(self.value)),
            "signal": signal.Signals(self.value).name if self.value in {*signal.Signals} else "",
            "signalled": signal.Signals(self.value).name if self.value in {*signal.Signals} else "",
        }.get(self.action, str(self.value))
        until = "" if self.last in (0, self.first) else " and on" if self.last == ALWAYS else f" to {self.last}"
        since = "" if self.since == "any" else f" since {self.since}"
        return f"{self.call} {self.first}{until}{since}: {self.action} {value}"


class NoCompiler(Exception):
    """There is none here."""


def build(folder: Path) -> Path:
    """Compile the shim.

    Raises:
        NoCompiler: there is none.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("needs a C compiler, for the tests' own shim")
    library = folder / "shim.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(library), "-ldl"], check=True, timeout=60)
    return library


def begin(rules: str, folder: str, counts: str) -> None:
    """In the process where it is preloaded: from here on calls are counted and `rules` hold."""
    ctypes.CDLL(None).fault_begin(rules.encode(), folder.encode(), counts.encode())


class Counts:
    """How often each call was made; in a file, so that it outlives the process.

    Args:
        path: of the file, which is made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(_COUNTS.size))

    def read(self) -> dict[str, int]:
        """By the call's name, and as ``fired`` how often a rule took effect."""
        found = _COUNTS.unpack(self.path.read_bytes())
        return dict(zip((*CALLS, "fired"), found, strict=True))
