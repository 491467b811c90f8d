"""The header of libvirt's save images: what ``virsh save`` writes in front of QEMU's stream.

92 bytes: a magic, then little-endian u32 version, data_len, was_running, format, cookie offset and 14 unused;
data_len bytes follow, the domain's XML with a NUL, a cookie with a NUL if there is one, and zeros; then the
stream. Source: libvirt's src/qemu/qemu_saveimage.h and .c, version 2 of the header; confirmed with files of
libvirt 9.0.0 and 11.3.0.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID
from xml.etree import ElementTree

from multifd.errors import RamError
from multifd.ram.file import OpenFile, read_exactly

MAGIC = b"LibvirtQemudSave"
PARTIAL_MAGIC = b"LibvirtQemudPart"
RAW, SPARSE = 0, 6
_COMPRESSED = {1: "gzip", 2: "bzip2", 3: "xz", 4: "lzop", 5: "zstd"}
_VERSION = 2
_HEADER = struct.Struct("<16s5I56x")
_ROOM = 64 << 10
"""Zeros behind the XML, as libvirt leaves them for ``virsh save-image-edit``."""
_NOT_XML = (ElementTree.ParseError, ValueError, LookupError)  # the others: an encoding that is unknown, or too wide
_MAX_DATA = 16 << 20
"""Bytes of XML and cookie that are read; libvirt's own are some KiB and `_ROOM`."""


@dataclass(frozen=True)
class SaveHeader:
    """What a save image says in front of the stream."""

    form: int
    """`RAW` or `SPARSE`."""
    was_running: bool
    xml: str
    """The domain's; as ``virsh save-image-dumpxml`` prints it, but with what is for libvirt alone."""
    stream_start: int
    """The stream's first byte in the file."""

    @property
    def domain(self) -> str | None:
        """The domain's name, None if the XML does not say."""
        return self._text_of("name")

    @property
    def uuid(self) -> bytes | None:
        """The domain's, which its QEMU has too; None if the XML does not say."""
        try:
            return UUID((self._text_of("uuid") or "").strip()).bytes
        except ValueError:
            return None

    def _text_of(self, tag: str) -> str | None:
        try:
            return ElementTree.fromstring(self.xml).findtext(tag)
        except _NOT_XML:
            return None


def is_save_image(start: bytes) -> bool:
    """Whether a file that starts so is one, complete or not."""
    return start.startswith((MAGIC, PARTIAL_MAGIC))


def read_header(file: OpenFile, nbytes: int, path: Path) -> SaveHeader:
    """The header of a save image.

    Args:
        file: stays the caller's.
        nbytes: the file's length.
        path: for error messages.

    Raises:
        RamError: it was never completed, is compressed, of another version, or cut short.
    """
    if nbytes < _HEADER.size:
        raise RamError(f"{path}: a libvirt save image that ends at byte {nbytes}, in its header")
    data = bytearray(_HEADER.size)
    read_exactly(file, memoryview(data), 0, path)
    magic, version, data_len, was_running, form, cookie_offset = _HEADER.unpack(data)
    if magic == PARTIAL_MAGIC:
        raise RamError(f"{path}: a libvirt save image that was never completed: the save failed or is still under way")
    if version > 0xFFFFFF:
        raise RamError(f"{path}: a libvirt save image of a big-endian host, which is not read")
    if not 1 <= version <= _VERSION:
        raise RamError(f"{path}: libvirt save image of version {version}, expected 1 or {_VERSION}")
    if form in _COMPRESSED:
        raise RamError(
            f"{path}: a libvirt save image compressed with {_COMPRESSED[form]}, which is not read: save it with "
            'save_image_format = "raw" or "sparse" in qemu.conf'
        )
    if form not in (RAW, SPARSE):
        raise RamError(f"{path}: libvirt save image of format {form}, expected {RAW} (raw) or {SPARSE} (sparse)")
    start = _HEADER.size + data_len
    if not 0 < data_len <= _MAX_DATA or start >= nbytes or cookie_offset > data_len:
        raise RamError(
            f"{path}: libvirt save image with {data_len} bytes of XML and its cookie at {cookie_offset}, "
            f"in a file of {nbytes} bytes"
        )
    text = bytearray(cookie_offset or data_len)
    read_exactly(file, memoryview(text), _HEADER.size, path)
    xml = text.split(b"\0", 1)[0].decode("utf-8", "replace")
    return SaveHeader(form, bool(was_running), xml, start)


def encode_header(xml: bytes, form: int, *, was_running: bool = True) -> bytes:
    """A complete header, up to the stream's first byte.

    Args:
        xml: of the domain, from `read_xml`.
        form: `RAW` or `SPARSE`.
        was_running: ``virsh restore`` lets the guest run then.
    """
    data_len = len(xml) + 1 + _ROOM
    return _HEADER.pack(MAGIC, _VERSION, data_len, was_running, form, 0) + xml.ljust(data_len, b"\0")


def read_xml(path: str | Path) -> bytes:
    """The XML of a domain, as ``virsh dumpxml`` gives it, from a file.

    Raises:
        RamError: it cannot be read, or is not a domain's.
    """
    try:
        with Path(path).open("rb") as file:
            xml = file.read(_MAX_DATA - _ROOM)
    except OSError as e:
        raise RamError(f"{path}: {e.strerror}") from e
    try:
        root = ElementTree.fromstring(xml)
    except _NOT_XML as e:
        raise RamError(f"{path}: not XML: {e}") from None
    if root.tag != "domain" or b"\0" in xml:
        raise RamError(f"{path}: XML of <{root.tag}>, expected a <domain>, as virsh dumpxml prints it")
    return xml.rstrip()
