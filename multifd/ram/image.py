"""The one place that opens RAM in a file, of whatever format, to send or look at it, or to receive into it.

======================  =========================================================================================
raw                     one RAM block, byte X of the file is byte X of RAM
mapped-ram              QEMU's own file with everything a machine sends: a capture
stream                  a plain QEMU stream, pages one after the other: ``migrate exec:cat > FILE``
libvirt                 what ``virsh save`` writes: one of the two above behind libvirt's header
libvirt-raw, -sparse    to be written: a save image with a plain stream, or mapped-ram (libvirt 11.2 and later)
======================  =========================================================================================
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from multifd.errors import RamError, StreamError, UsageError, about
from multifd.ram import foreign, libvirt
from multifd.ram.block import Target
from multifd.ram.file import open_regular, read_exactly
from multifd.ram.file_stream import FileStream
from multifd.ram.mapped_source import MappedRamSource
from multifd.ram.mapped_target import MappedRamTarget
from multifd.ram.plain_source import PlainSource
from multifd.ram.plain_target import PlainTarget
from multifd.ram.raw import RawImageSource, RawImageTarget
from multifd.ram.stored import StoredSource, is_stream
from multifd.wire.stream import NO_UUID

SOURCE_FORMATS = ("auto", "mapped-ram", "stream", "libvirt", "raw")
TARGET_FORMATS = ("mapped-ram", "raw", "stream", "libvirt-raw", "libvirt-sparse")


def open_source(
    path: str | os.PathLike[str], *, format: str = "auto", page_size: int = 4096
) -> StoredSource | RawImageSource:
    """RAM in a file, to be sent; all that can be checked without digests is sound.

    Args:
        path: a regular file.
        format: one of `SOURCE_FORMATS`. auto looks at the file, takes one without any mark for raw, and refuses what
            has another format's mark; raw takes it as it is.
        page_size: of a raw image, bytes; the others know their own.

    Raises:
        UsageError: there is no such format.
        RamError: it cannot be read, is of another format, or is not sound.
    """
    if format not in SOURCE_FORMATS:
        raise UsageError(f"source format {format!r}, expected {', '.join(SOURCE_FORMATS[:-1])} or raw")
    start, end = (b"", b"") if format == "raw" else _ends(Path(path))
    if format == "raw" or (format == "auto" and not _is_stored(start)):
        if (name := foreign.name(start, end)) is not None:
            raise about(RamError(f"{path}: {name}, not RAM; source format raw takes it as it is"), "source_format")
        return RawImageSource(path, page_size)
    source = open_stored(path)
    try:
        found = "libvirt" if source.libvirt else source.form
        if format not in ("auto", found):
            raise RamError(f"{path}: its format is {found}, not {format}")
        source.check()
    except BaseException:
        source.close()
        raise
    return source


def open_stored(path: str | os.PathLike[str]) -> StoredSource:
    """A stored machine: a mapped-ram file, a plain stream, or either as libvirt saves it.

    Args:
        path: a regular file.

    Raises:
        RamError: it is none, or not sound up to the end of RAM.
    """
    path = Path(path)
    start, end = _ends(path)
    if not _is_stored(start):
        name = foreign.name(start, end)
        raise RamError(f"{path}: not a capture: {name or 'no mark of a known format, perhaps a raw image'}")
    header: libvirt.SaveHeader | None = None
    file, nbytes = open_regular(path)
    try:
        if libvirt.is_save_image(start):
            header = libvirt.read_header(file, nbytes, path)
        at = header.stream_start if header else 0
        is_mapped = FileStream(file, nbytes, path, at).is_mapped()
    except StreamError as e:
        raise RamError(f"{path}: {e}") from e
    finally:
        file.close()
    if header and is_mapped != (header.form == libvirt.SPARSE):
        says, has = ("sparse", "a plain stream") if header.form == libvirt.SPARSE else ("raw", "mapped-ram")
        raise RamError(f"{path}: a libvirt save image whose header says {says}, but it has {has}")
    source = MappedRamSource(path, at) if is_mapped else PlainSource(path, at)
    source.libvirt = header
    if header and header.uuid and source.machine.uuid == NO_UUID:
        source.machine = dataclasses.replace(source.machine, uuid=header.uuid)
    return source


def open_target(
    path: str | os.PathLike[str], *, format: str = "mapped-ram", xml: str | os.PathLike[str] | None = None
) -> Target:
    """A file to receive RAM into.

    Args:
        path: the file to make or replace; it appears only when complete.
        format: one of `TARGET_FORMATS`.
        xml: of the libvirt formats, needed: a file with the domain's XML, as ``virsh dumpxml`` prints it.

    Raises:
        UsageError: there is no such format, or `xml` is missing or cannot be meant.
        RamError: the XML cannot be read, or the file cannot be written.
    """
    if format not in TARGET_FORMATS:
        raise UsageError(f"format {format!r}, expected {', '.join(TARGET_FORMATS[:-1])} or {TARGET_FORMATS[-1]}")
    is_libvirt = format.startswith("libvirt-")
    if is_libvirt and xml is None:
        raise about(UsageError(f"format {format} needs the domain's XML, as virsh dumpxml prints it"), "xml")
    if not is_libvirt and xml is not None:
        raise about(UsageError(f"the domain's XML is for the libvirt formats, not for {format}"), "xml")
    prefix = b""
    if xml is not None:
        form = libvirt.RAW if format == "libvirt-raw" else libvirt.SPARSE
        prefix = libvirt.encode_header(libvirt.read_xml(Path(xml)), form)
    if format == "raw":
        return RawImageTarget(path)
    if format in ("stream", "libvirt-raw"):
        return PlainTarget(path, prefix)
    return MappedRamTarget(path, prefix)


def is_stored(path: Path) -> bool:
    """Whether a file has the mark of a stored machine.

    Raises:
        RamError: it cannot be read.
    """
    start, _ = _ends(path)
    return _is_stored(start)


def _is_stored(start: bytes) -> bool:
    return is_stream(start) or libvirt.is_save_image(start)


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The file's first and last bytes, as many as `foreign.name` wants."""
    file, nbytes = open_regular(path)
    try:
        start, end = bytearray(min(foreign.START, nbytes)), bytearray(min(foreign.END, nbytes))
        read_exactly(file, memoryview(start), 0, path)
        read_exactly(file, memoryview(end), nbytes - len(end), path)
        return bytes(start), bytes(end)
    finally:
        file.close()
