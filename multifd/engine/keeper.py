"""A destination that keeps a migration as it comes: each connection's bytes in a file of a folder, nothing decoded.

Rules of this file: it is a receiver in all that its peer sees. Sync points, answers and the last word come when what
they confirm is in the files, and success only when the folder is durable and has its name.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from multifd.engine.canceller import Canceller
from multifd.engine.config import ReceiveConfig
from multifd.engine.keep_channel import KeepChannel
from multifd.engine.receiver import Receiver
from multifd.engine.recv_channel import RecvChannel
from multifd.engine.recv_main import Host, RecvMain
from multifd.errors import MethodError, PeerMismatch, RemoteWireError, StreamError
from multifd.ram import manifest
from multifd.ram.block import TargetBlock
from multifd.ram.part_folder import PartFolder, StreamFile
from multifd.stats import Result
from multifd.transport.connection import Connection
from multifd.transport.handed import HandedConnections
from multifd.transport.listen import Listener
from multifd.wire import stream
from multifd.wire.packet import InitPacket

_MOST_START = 1 << 20
"""Bytes of main that are held until it is known to be main; QEMU's list of blocks comes within a few KiB."""


class _KeepMain(RecvMain):
    """Main, whose bytes go to a file as soon as it is known to be main."""

    def __init__(self, connection: Connection, host: Host, begin: Callable[[], StreamFile]) -> None:
        super().__init__(connection, host)
        self._begin = begin
        self._file: StreamFile | None = None
        self._ahead = bytearray()

    def _feed(self, data: bytes | memoryview) -> list[stream.Event]:
        events = super()._feed(data)
        if self._file is None:
            self._ahead += data
            if len(self._ahead) > _MOST_START:
                raise StreamError(f"main stream: no list of RAM blocks within {_MOST_START} bytes")
        else:
            self._file.write(data)
        return events

    def _handle(self, event: stream.Event) -> None:
        match event:
            case stream.Machine():
                super()._handle(event)
                self._file = self._begin()
                self._file.write(self._ahead)
                self._ahead.clear()
            case stream.ZeroPages() if self._file is not None:
                self._file.zero_pages += len(event.offsets)
                self._host.stats.zero_pages_on_main += len(event.offsets)
            case _:
                super()._handle(event)


class _KeptStreams:
    """The folder in the place of a `multifd.ram.block.Target`: there are no blocks to receive into."""

    def __init__(self, folder: PartFolder, method: Callable[[], str]) -> None:
        self._folder, self._method = folder, method
        self._page_size = 0
        self.lengths: Mapping[str, int] = {}
        """Of blocks, in bytes by name."""

    def allocate(self, machine: stream.Machine) -> Mapping[str, TargetBlock]:
        """See `Target`."""
        self._page_size = machine.page_size
        self.lengths = {block.idstr: block.used_length for block in machine.blocks}
        return {}

    def add_device_state(self, data: bytes) -> None:
        """See `Target`: it is in main's file."""

    def flush(self) -> None:
        """See `Target`."""
        self._folder.flush()

    def commit(self, uuid: bytes) -> None:
        """See `Target`."""
        self._folder.commit(self._method(), self._page_size)

    @property
    def is_committed(self) -> bool:
        """See `Target`."""
        return self._folder.is_committed

    def discard(self) -> None:
        """See `Target`."""
        self._folder.discard()


class Keeper(Receiver):
    """One migration into a folder; use once.

    Args:
        listener: as a `Receiver`'s.
        folder: committed or discarded when `run` is over.
        config: how.
        method: what the manifest calls the method; empty: the name of the one that came.
        on_progress, canceller: as a `Receiver`'s.
    """

    def __init__(
        self,
        listener: Listener | HandedConnections,
        folder: PartFolder,
        config: ReceiveConfig,
        method: str = "",
        on_progress: Callable[[Result], None] | None = None,
        canceller: Canceller | None = None,
    ) -> None:
        self._folder, self._is_restricted = folder, bool(config.methods)
        self._streams = _KeptStreams(folder, lambda: method or self.result.method)
        self._code_lock = threading.Lock()
        self._code: int | None = None  # of the method of all packets, once one has come
        super().__init__(listener, self._streams, config, on_progress, canceller)

    def _new_main(self, connection: Connection) -> RecvMain:
        return _KeepMain(connection, self, lambda: self._folder.file(manifest.MAIN))

    def _new_channel(self, init: InitPacket, connection: Connection) -> RecvChannel:
        file = self._folder.file(manifest.channel_name(init.id))
        file.write(init.encode())
        return KeepChannel(
            init.id, connection, self.barrier, self._negotiation.method_of, self._has_ended, self.stats.add_channel(),
            file, self._check_method, lambda: self._streams.lengths,
        )  # fmt: skip

    def _check_method(self, code: int) -> None:
        """Of a packet that is kept as it is: the method need not be known here, unless only some may be.

        One method it is, whichever channel comes first.
        """
        with self._code_lock:
            first = self._code = code if self._code is None else self._code
        if code != first:
            raise RemoteWireError(f"method code {code:#x}, expected {first:#x} as in the first packet", offset=8)
        try:
            self._negotiation.method_of(code)
        except (MethodError, PeerMismatch, RemoteWireError):
            if self._is_restricted:
                raise
