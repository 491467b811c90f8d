"""What is in stored streams, and whether it is sound: every header is looked at, no payload is decoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from multifd.engine.canceller import Canceller
from multifd.engine.checking import check, read_start
from multifd.engine.stored_headers import headers
from multifd.errors import RamError, RemoteWireError, StreamError
from multifd.pages import Geometry
from multifd.ram.digest import Verdict
from multifd.ram.folder import StoredFolder, StoredStream
from multifd.wire import stream
from multifd.wire.dialect import release_of
from multifd.wire.packet import INIT_BYTES, InitPacket, decode_packet
from multifd.wire.reader import MainStreamReader
from multifd.wire.walker import PacketWalker

_PIECE_BYTES = 1 << 20
_MOST_RAM = 1 << 44
"""Bytes of all blocks that are looked at: 16 TiB, a byte for each page. The list of blocks may say anything."""
_Seen = dict[str, npt.NDArray[np.bool_]]
"""By block: which pages have come with a payload."""


@dataclass(frozen=True)
class StreamInfo:
    """One connection."""

    name: str
    """Of the file."""
    nbytes: int
    sha256: str
    packets: int
    """Of main its sync points."""
    normal_pages: int
    zero_pages: int


@dataclass(frozen=True)
class StreamsInfo:
    """What is in a folder of stored streams; `as_dict` is the command line's JSON."""

    machine: str
    """The machine type; empty for types up to 2.3, which do not name themselves."""
    qemu_at_least: str | None
    """The source's QEMU release is this or later, by the machine type; None if it does not say."""
    page_size: int
    uuid: str | None
    """The guest's, None if it has none."""
    blocks: dict[str, int]
    """Of RAM: bytes, by name."""
    method: str
    """As it was stored, with options if they are known; empty if it is not known."""
    writer: str
    streams: tuple[StreamInfo, ...]
    """Main, then the channels."""
    stored_bytes: int
    repeated_pages: int
    """Pages with a payload that are stored more than once: a guest at work has written to them meanwhile."""
    has_return_path: bool
    """Whether a destination is asked for its confirmation."""
    ram: dict[str, str] | None = None
    """SHA-256 of each block's bytes when everything has been received, by name; None if the manifest does not say."""
    format: str = "streams"
    checked: Verdict | None = field(default=None, compare=False)
    """What has become of the digests of RAM, if every page was decoded for them."""

    def as_dict(self) -> dict[str, Any]:
        """A dict of plain values, in the order of the fields."""
        return asdict(self)


def info(path: str | os.PathLike[str]) -> StreamsInfo:
    """What is in a folder of stored streams, without a look at its digests.

    Args:
        path: the folder.

    Raises:
        RamError: it is none, or a header in it cannot be.
    """
    folder = StoredFolder(path)
    try:
        return read(folder)
    finally:
        folder.close()


def verify(path: str | os.PathLike[str], canceller: Canceller | None = None) -> StreamsInfo:
    """Compare all of it with every digest of its files, and look at every header.

    Args:
        path: the folder.
        canceller: to end it with.

    Raises:
        RamError: what is wrong first, by the file's name.
    """
    folder = StoredFolder(path)
    try:
        canceller = canceller or Canceller()
        check(folder, canceller, StoredStream.verify)
        return read(folder, canceller.check)
    finally:
        folder.close()


def read(folder: StoredFolder, go_on: Callable[[], object] = lambda: None) -> StreamsInfo:
    """Look at every header of a folder.

    Args:
        folder: the caller's.
        go_on: called between headers; what it raises ends this.

    Raises:
        RamError: one cannot be.
    """
    begin = read_start(folder.main)
    machine, said = begin.machine, folder.manifest
    if machine.page_size != said.page_size:
        raise RamError(f"{folder.path}: pages of {machine.page_size} bytes, the manifest says {said.page_size}")
    if (ram_bytes := sum(block.used_length for block in machine.blocks)) > _MOST_RAM:
        raise RamError(f"{folder.main.path}: {ram_bytes} bytes of RAM, at most {_MOST_RAM} are looked at")
    if said.ram is not None and list(said.ram) != [block.idstr for block in machine.blocks]:
        raise RamError(f"{folder.path}: the manifest has digests of other blocks of RAM than main has")
    sync_points, zero_pages = _walk_main(folder.main)
    seen: _Seen = {b.idstr: np.zeros(b.used_length // machine.page_size, np.bool_) for b in machine.blocks}
    streams = [StreamInfo("main", said.files["main"].nbytes, said.files["main"].sha256, sync_points, 0, zero_pages)]
    uuid = b""
    for number, channel in enumerate(folder.channels):
        init = _read_init(channel, number)
        uuid = init.uuid
        streams.append(_walk_channel(channel, machine, seen, sync_points, go_on))
    release = release_of(machine.name)
    normal_pages = sum(one.normal_pages for one in streams)
    return StreamsInfo(
        machine=machine.name,
        qemu_at_least=".".join(map(str, release)) if release else None,
        page_size=machine.page_size,
        uuid=str(UUID(bytes=uuid)) if any(uuid) else None,
        blocks={block.idstr: block.used_length for block in machine.blocks},
        method=said.method,
        writer=said.writer,
        streams=tuple(streams),
        stored_bytes=folder.nbytes,
        repeated_pages=normal_pages - sum(int(pages.sum()) for pages in seen.values()),
        has_return_path=begin.has_return_path,
        ram=None if said.ram is None else dict(said.ram),
    )


def _walk_main(main: StoredStream) -> tuple[int, int]:
    """Sync points, and zero pages, of a main stream that is complete."""
    reader, view, at = MainStreamReader(), memoryview(bytearray(_PIECE_BYTES)), 0
    sync_points = zero_pages = 0
    try:
        while got := main.read(view, at):
            at += got
            for event in reader.feed(view[:got]):
                sync_points += isinstance(event, stream.SyncPoint)
                zero_pages += len(event.offsets) if isinstance(event, stream.ZeroPages) else 0
        reader.end()
    except StreamError as e:
        raise RamError(f"{main.path}: {e}") from e
    return sync_points, zero_pages


def _read_init(channel: StoredStream, number: int) -> InitPacket:
    data = bytearray(INIT_BYTES)
    got = channel.read(memoryview(data), 0)
    try:
        init = InitPacket.decode(data[:got])
    except RemoteWireError as e:
        raise RamError(f"{channel.path}: {e}") from e
    if init.id != number:
        raise RamError(f"{channel.path}: it is channel {init.id} by what it begins with")
    return init


def _walk_channel(
    channel: StoredStream, machine: stream.Machine, seen: _Seen, sync_points: int, go_on: Callable[[], object]
) -> StreamInfo:
    geometry, lengths = Geometry.of(machine.page_size), {b.idstr: b.used_length for b in machine.blocks}
    walker = PacketWalker(geometry)
    syncs = normal_pages = zero_pages = 0
    try:
        for header in headers(channel, walker):
            go_on()
            packet = decode_packet(header, geometry, lengths)
            syncs += packet.is_sync
            normal_pages += len(packet.normal)
            zero_pages += len(packet.zero)
            if len(packet.normal):
                seen[packet.ramblock][packet.normal // geometry.page_size] = True
    except RemoteWireError as e:
        e.packet = walker.packets
        raise RamError(f"{channel.path}: {e}") from e
    if walker.pending or walker.missing or syncs < sync_points:
        raise RamError(f"{channel.path}: ends before sync point {syncs + 1} of {sync_points}, or in a packet")
    entry = channel.entry
    return StreamInfo(channel.path.name, entry.nbytes, entry.sha256, walker.packets, normal_pages, zero_pages)
