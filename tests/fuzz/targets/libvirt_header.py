"""The header of a save image: refused with a word, or the same once more; its XML may be anything."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from plain_files import XML, save_header

from multifd.errors import RamError
from multifd.ram import libvirt
from multifd.ram.file import open_regular
from tests.fuzz.memfd import file_of

COVERS = ("multifd.ram.libvirt",)
LONGEST = 600
_HEAD = 92


def seeds() -> Iterator[bytes]:
    """Headers of both versions and formats, partial and compressed, and of a domain that is not XML."""
    for form in (libvirt.RAW, libvirt.SPARSE, 5):
        yield save_header(form, room=8) + b"QEVM"
    yield save_header(0, magic=b"LibvirtQemudPart", room=8) + b"QEVM"
    yield save_header(0, version=1, was_running=0, cookie=len(XML) + 1, room=20) + b"QEVM"
    yield save_header(0, xml=b"<domain><uuid>?</uuid>&amp;<name>\xc3\xa9</name></domain>", room=0) + b"QEVM"
    yield save_header(0, xml=b"", room=0) + b"QEVM"


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Little-endian numbers, all of them."""
    yield from ((0, 16), *((16 + 4 * i, 4) for i in range(5)), (_HEAD, 1))
    for at in range(_HEAD, len(data), 16):
        yield at, 1


def run(data: bytes) -> str:
    """Read it, and read what is written of it."""
    with file_of((0, data)) as path:
        file, nbytes = open_regular(path)
        try:
            header = libvirt.read_header(file, nbytes, path)
        except RamError:
            return "refused"
        finally:
            file.close()
    assert len(data) > header.stream_start >= _HEAD
    (cookie,) = struct.unpack_from("<I", data, 32)
    text = data[_HEAD : min(header.stream_start, _HEAD + cookie if cookie else len(data))]
    assert header.xml == text.split(b"\0")[0].decode("utf-8", "replace")
    assert header.domain is None or isinstance(header.domain, str)
    assert header.uuid is None or len(header.uuid) == 16
    again = libvirt.encode_header(header.xml.encode(), header.form, was_running=header.was_running)
    with file_of((0, again + b"Q")) as path:
        file, nbytes = open_regular(path)
        other = libvirt.read_header(file, nbytes, path)
        file.close()
    assert (other.form, other.was_running, other.xml) == (header.form, header.was_running, header.xml)
    return "header"
