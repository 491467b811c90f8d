"""The file beside a capture that has its digests: ``vm.ram.sha256`` beside ``vm.ram``.

::

    SHA256  vm.ram
    # multifd 2: SHA-256, XXH3-128, first byte, bytes, what
    # SHA256 XXH3 0 1048576 structure
    # SHA256 XXH3 1048576 131072 block pc.ram at 0x0
    # SHA256 XXH3 5242880 302211 devices
    # SHA256 of the lines above

The first line is what ``sha256sum`` writes and ``sha256sum -c`` reads, in the capture's folder; lines that begin with
``#`` are comments to it (coreutils 9.1, also with ``--strict --warn``). They cover every byte of the file once.
What ``sha256sum vm.ram > vm.ram.sha256`` writes is read, too, and version 1, which has no XXH3; of what a later version
writes, the first line.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from multifd.errors import RamError
from multifd.ram.checksum import HEX_DIGITS, KINDS, SHA256, XXH3
from multifd.ram.file import open_regular, read_exactly, write
from multifd.ram.part_file import PartFile, sidecar_name
from multifd.ram.span import Span

_MOST_BYTES = 8 << 20
"""Of a sidecar that is read; one of a machine of a hundred blocks has about 500 KB."""
_COLUMNS = {b"# multifd 1:": (SHA256,), b"# multifd 2:": (SHA256, XXH3)}
"""By what the second line begins with: which digests a line has."""
_TITLE = b"# multifd 2: SHA-256, XXH3-128, first byte, bytes, what\n"
_SEAL = b" of the lines above\n"
_ENTRY = re.compile(rb"(\\?)([0-9a-fA-F]{64}) [ *](.+)", re.DOTALL)
_SPAN = re.compile(rb"# ((?:[0-9a-f]{32,64} )+)([0-9]{1,19}) ([0-9]{1,19}) ([^\n]*)")
_ESCAPES = {b"\\": b"\\\\", b"\n": b"\\n", b"\r": b"\\r"}
"""Of a name in the first line, as coreutils has them (src/digest.c)."""


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says."""

    path: Path
    name: str
    """The file that it is of; only for words: a pair may be renamed."""
    digest: str
    """SHA-256 of the whole file, hexadecimal."""
    spans: tuple[Span, ...]
    """All of the file in order; empty if the sidecar is not multifd's."""
    digests: Mapping[str, tuple[str, ...]]
    """Of each span, by the names of `multifd.ram.checksum.KINDS`, the quickest first; empty as `spans`."""
    mtime_ns: int

    @property
    def nbytes(self) -> int | None:
        """The file's length; None if it does not say."""
        return self.spans[-1].first + self.spans[-1].nbytes if self.spans else None


def path_beside(path: Path) -> Path:
    """Where the sidecar of a file is."""
    return path.with_name(sidecar_name(path.name))


def encode(name: str, digest: str, spans: Sequence[Span], digests: Mapping[str, Sequence[str]]) -> bytes:
    """The whole sidecar.

    Args:
        name: of the file, without a folder.
        digest: SHA-256 of the whole file.
        spans: all of the file, in order.
        digests: of each span, of both kinds.
    """
    raw = os.fsencode(name)
    escaped = re.sub(rb"[\\\n\r]", lambda match: _ESCAPES[match[0]], raw)
    lines = [(b"\\" if escaped != raw else b"") + digest.encode() + b"  " + escaped + b"\n", _TITLE]
    for span, sha, xxh3 in zip(spans, digests[SHA256], digests[XXH3], strict=True):
        lines.append(f"# {sha} {xxh3} {span.first} {span.nbytes} {span.what}\n".encode("utf-8", "backslashreplace"))
    text = b"".join(lines)
    return text + b"# " + sha256(text).hexdigest().encode() + _SEAL


def write_beside(path: Path, text: bytes, like: os.stat_result) -> PartFile:
    """A sidecar that only needs `PartFile.commit` to appear beside `path`; whoever calls discards it.

    It bears the time of its file, not its own: which of the two is older, no clock that was set meanwhile decides.

    Args:
        path: the file that it is of.
        text: from `encode`.
        like: of that file: who may read it may read its sidecar.

    Raises:
        RamError: it cannot be written.
    """
    file = PartFile(path_beside(path))
    try:
        write(file.fd, text, 0, file.part)
        with file.fd.use() as fd, contextlib.suppress(OSError):  # a file system that keeps no times
            os.utime(fd, ns=(like.st_atime_ns, like.st_mtime_ns))
        file.admit(like)
    except BaseException:
        file.discard()
        raise
    return file


def read_beside(path: Path) -> Sidecar | None:
    """The sidecar of a file; None if there is none.

    Raises:
        RamError: it cannot be read, or is none.
    """
    place = path_beside(path)
    if not os.path.lexists(place):
        return None
    file, nbytes = open_regular(place)
    try:
        if nbytes > _MOST_BYTES:
            raise RamError(f"{place}: {nbytes} bytes, expected digests in at most {_MOST_BYTES}")
        data = bytearray(nbytes)
        read_exactly(file, memoryview(data), 0, place)
        with file.use() as fd:
            mtime_ns = os.fstat(fd).st_mtime_ns
    finally:
        file.close()
    try:
        return _parse(bytes(data), path.name, place, mtime_ns)
    except ValueError as e:
        raise RamError(f"{place}: {e}; multifd digest {path} makes a new one, if the file is known to be right") from e


def _parse(text: bytes, wanted: str, place: Path, mtime_ns: int) -> Sidecar:
    entries: list[tuple[str, str]] = []
    for number, line in enumerate(text.removesuffix(b"\n").split(b"\n"), 1):
        if line.startswith(b"#"):
            continue
        match = _ENTRY.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is no digest as sha256sum writes it")
        entries.append((_name(match[1], match[3]), match[2].decode().lower()))
    chosen = [entry for entry in entries if entry[0] == wanted] or entries
    if len(chosen) != 1:
        raise ValueError(f"has {len(entries)} digests, expected one, of {wanted}")
    name, digest = chosen[0]
    second = b"".join(text.split(b"\n", 2)[1:2])
    columns = next((kinds for begin, kinds in _COLUMNS.items() if second.startswith(begin)), None)
    spans, digests = _parse_spans(text, columns) if columns else ((), {})
    return Sidecar(place, name, digest, spans, digests, mtime_ns)


def _parse_spans(text: bytes, columns: Sequence[str]) -> tuple[tuple[Span, ...], dict[str, tuple[str, ...]]]:
    body, _, seal = text.removesuffix(b"\n").rpartition(b"\n")
    if seal + b"\n" != b"# " + sha256(body + b"\n").hexdigest().encode() + _SEAL:
        raise ValueError("is damaged itself, or not complete: its last line does not match the others")
    spans: list[Span] = []
    digests: list[dict[str, str]] = []
    end = 0
    for number, line in enumerate(body.split(b"\n")[2:], 3):
        match = _SPAN.fullmatch(line)
        values = match[1].decode().split() if match else []
        if match is None or int(match[2]) != end or not int(match[3]) or not _are(values, columns):
            raise ValueError(f"line {number} has no digest of what follows byte {end}")
        spans.append(Span(end, int(match[3]), match[4].decode("utf-8", "backslashreplace")))
        digests.append(dict(zip(columns, values, strict=True)))
        end += int(match[3])
    return tuple(spans), {kind: tuple(one[kind] for one in digests) for kind in KINDS if kind in columns}


def _are(values: Sequence[str], columns: Sequence[str]) -> bool:
    return [len(value) for value in values] == [HEX_DIGITS[kind] for kind in columns]


def _name(is_escaped: bytes, raw: bytes) -> str:
    if is_escaped:
        with contextlib.suppress(KeyError):
            back = {escape: byte for byte, escape in _ESCAPES.items()}
            raw = re.sub(rb"\\.", lambda match: back[match[0]], raw)
    return os.fsdecode(raw)
