"""What a folder of stored streams says of itself: its files, how long they are, their digests, perhaps those of RAM.

Rules of this file: it is read from disks and hosts that nobody here knows, so everything is checked and bounded before
it is used, and it names no place: files have fixed names in the folder itself. A manifest is accepted only as it is
written, byte for byte, with its own digest in it, so a change of any bit shows.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multifd.errors import RamError
from multifd.ram.checksum import SHA256, XXH3

NAME = "manifest.json"
MAIN = "main"
MOST_BYTES = 256 << 10
"""Of a manifest: 255 channels take 61 KiB."""
_VERSIONS = (1, 2)
"""Without XXH3-128, and with it."""
_MOST_CHANNELS = 255  # multifd-channels, qapi/migration.json, QEMU 10.0
_MOST_FILE = (1 << 63) - 1  # off_t
_PAGE_SIZES = (4096, 8192, 16384, 32768, 65536)
_LONGEST = 1000  # characters of a text
_LONGEST_NAME = 255  # of a block, whose length is a byte on the wire
_MOST_BLOCKS = 65536  # as `multifd.wire.grammar` takes them
_SHA256 = re.compile("[0-9a-f]{64}")


def channel_name(number: int) -> str:
    """The file of a channel."""
    return f"channel-{number}"


@dataclass(frozen=True)
class FileEntry:
    """One file."""

    nbytes: int
    sha256: str
    """64 hexadecimal digits."""
    normal_pages: int = 0
    """With a payload, over all rounds: a page that was sent twice counts twice."""
    zero_pages: int = 0
    """Of main those of its ZERO words."""
    xxh3: str | None = None
    """XXH3-128, 32 hexadecimal digits; None in a manifest of version 1."""

    @property
    def digests(self) -> Mapping[str, str]:
        """What is known, by the names of `multifd.ram.checksum.KINDS`, the quickest first."""
        return {SHA256: self.sha256} if self.xxh3 is None else {XXH3: self.xxh3, SHA256: self.sha256}


@dataclass(frozen=True)
class Manifest:
    """What a manifest says; of main and at least one channel, in this order."""

    writer: str
    """Who wrote it: ``multifd`` and its version."""
    method: str
    """As ``--method`` takes it, options included where they are known; empty if it is not known."""
    page_size: int
    """Bytes."""
    files: Mapping[str, FileEntry]
    ram: Mapping[str, str] | None = None
    """SHA-256 of each block's bytes as they are when everything has been received, by name, in the order of main's
    list; None if it is not known."""

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.files) - 1

    def encode(self) -> bytes:
        """The file's bytes."""
        body: dict[str, object] = {
            "version": _VERSIONS[any(entry.xxh3 is not None for entry in self.files.values())],
            "writer": self.writer,
            "method": self.method,
            "channels": self.channels,
            "page_size": self.page_size,
            "files": {
                name: {
                    "bytes": entry.nbytes,
                    "normal_pages": entry.normal_pages,
                    "zero_pages": entry.zero_pages,
                    "sha256": entry.sha256,
                    **({} if entry.xxh3 is None else {"xxh3_128": entry.xxh3}),
                }
                for name, entry in self.files.items()
            },
        }
        if self.ram is not None:
            body["ram"] = dict(self.ram)
        document = {"multifd_streams": body, "sha256": hashlib.sha256(_text(body)).hexdigest()}
        return _text(document) + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """What the bytes of a manifest say.

        Raises:
            RamError: they are none, or are not as they were written; without the path, which the caller knows.
        """
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as e:
            raise RamError(f"no manifest of stored streams: {e}") from e
        if not isinstance(document, dict) or not isinstance(body := document.get("multifd_streams"), dict):
            raise RamError("no manifest of stored streams: it has no 'multifd_streams'")
        if (version := body.get("version")) not in _VERSIONS or isinstance(version, bool):
            raise RamError(f"manifest of version {str(version)[:80]!r}, this multifd knows {_VERSIONS[-1]} and older")
        manifest = cls(
            _string(body, "writer"), _string(body, "method"), _integer(body, "page_size", _PAGE_SIZES[-1]),
            _files(body), _ram(body) if "ram" in body else None,
        )  # fmt: skip
        if manifest.page_size not in _PAGE_SIZES:
            raise RamError(f"'page_size' is {manifest.page_size}, expected a power of two from 4096 to 65536")
        if manifest.encode() != data:
            raise RamError("damaged, or edited: its own digest, or its form, is not the one it was written with")
        return manifest


def _text(document: object) -> bytes:
    return json.dumps(document, indent=1).encode("ascii")


def _files(body: dict[str, Any]) -> dict[str, FileEntry]:
    channels = _integer(body, "channels", _MOST_CHANNELS)
    expected = [MAIN, *map(channel_name, range(channels))]
    files = body.get("files")
    if not channels or not isinstance(files, dict) or list(files) != expected:
        raise RamError(f"'files' are not main and the {channels} channels that 'channels' says, 1 or more")
    for name, entry in files.items():
        if not isinstance(entry, dict):
            raise RamError(f"{name!r} is no entry of a file")
    return {
        name: FileEntry(
            _integer(entry, "bytes", _MOST_FILE),
            _string(entry, "sha256"),
            _integer(entry, "normal_pages", _MOST_FILE),
            _integer(entry, "zero_pages", _MOST_FILE),
            _string(entry, "xxh3_128") if "xxh3_128" in entry else None,
        )
        for name, entry in files.items()
    }


def _ram(body: dict[str, Any]) -> dict[str, str]:
    ram = body["ram"]
    if not isinstance(ram, dict) or len(ram) > _MOST_BLOCKS:
        raise RamError(f"'ram' has no digests of at most {_MOST_BLOCKS} blocks")
    for name, digest in ram.items():
        if not (name.isascii() and 1 <= len(name) <= _LONGEST_NAME):
            raise RamError(f"'ram' has a block {name[:80]!r}, expected a name of 1 to {_LONGEST_NAME} ASCII characters")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise RamError(f"'ram' has of block {name[:80]!r} no SHA-256, which is 64 hexadecimal digits")
    return ram


def _integer(entry: dict[str, Any], key: str, most: int) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise RamError(f"{key!r} is {str(value)[:80]!r}, expected 0 to {most}")
    return value


def _string(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or len(value) > _LONGEST:
        raise RamError(f"{key!r} is {str(value)[:80]!r}, expected a text of at most {_LONGEST} characters")
    return value
