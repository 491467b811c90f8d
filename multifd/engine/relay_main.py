"""Main of a relay: the source's stream on to the destination, the destination's answers back.

Rules of this file: one thread passes on each direction. Bytes go on untouched as they come, and are only looked at: a
stream that is not understood goes on all the same. Nothing is sent to the destination before the source has shown that
it is a QEMU's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from multifd.engine.fate import Custody, Fate
from multifd.errors import Aborted, ChannelError, PeerFailed, StreamError
from multifd.pages import Geometry
from multifd.transport.connection import Connection
from multifd.wire import stream
from multifd.wire.reader import MainStreamReader
from multifd.wire.return_path import SHUT, ReturnPathWatcher
from multifd.wire.vmdesc import CUT

_LOG = logging.getLogger(__name__)
_READ_BYTES = 1 << 16
_MOST_START = 1 << 20
"""Bytes of main that are held back until it is known to be a source's; QEMU's list of blocks comes within a few KiB."""
_MOST_AHEAD = 16 << 20
"""Bytes of main that are read while the destination is not there: a source's end comes behind what it has sent, and the
kernels of both ends hold a few MiB. Of zero pages on main these are a guest's 7 GiB."""


class RelayMain:
    """Main, from the moment it has started like one.

    Args:
        source: its connection, the magic already read; the caller closes it.
        fate: where the memory is.
        came_from: the source's name, as the listener gave it.
    """

    def __init__(self, source: Connection, fate: Fate, came_from: str) -> None:
        self.source, self._fate, self.came_from = source, fate, came_from
        self.destination: Connection | None = None
        self.is_out = threading.Event()
        """The destination has main's first bytes, or all is over."""
        self.has_geometry = threading.Event()
        """`geometry` is known, or all is over."""
        self.geometry = Geometry.of(4096)
        self.stream_ended = threading.Event()
        """The destination has all of the stream, or is about to."""
        self.source_is_done = threading.Event()
        """Another main now is the next migration's."""
        self.has_return_path = False
        self.zero_pages = 0
        """ZERO words; only those of a stream that is understood."""
        self.sync_points = 0
        """Of a stream that is understood."""
        self._reading = threading.Lock()
        """Held by whoever reads the source while the destination is not there, and when what was read goes to it."""
        self._start = bytearray(stream.MAGIC_BYTES)
        self._has_blocks = False
        self._may_complete = False  # what was looked at last may let the destination run
        self._reader: MainStreamReader | None = MainStreamReader()  # None: main is not understood

    @property
    def is_understood(self) -> bool:
        """Whether the stream was one of RAM and devices so far."""
        return self._reader is not None

    def read_start(self) -> None:
        """Read up to the list of RAM blocks, which only a source of a migration has, or to what is not understood.

        Raises:
            StreamError: it is something else.
            ChannelError: it ended before.
        """
        buffer = memoryview(bytearray(_READ_BYTES))
        self._look(stream.MAGIC_BYTES)
        while self._reader is not None and not self._has_blocks:
            if len(self._start) > _MOST_START:
                raise StreamError(f"main stream: no list of RAM blocks within {_MOST_START} bytes")
            got = self.source.recv_into([buffer], at_least=1)
            if not got:
                raise ChannelError(f"{self.source.peer} closed the connection before it said what it is")
            self._start += buffer[:got]
            self._look(buffer[:got])

    def run(self, connect: Callable[[], Connection], start_return: Callable[[Connection], object]) -> None:
        """Pass the source's direction on to its end, after `read_start`.

        Args:
            connect: makes the destination's main connection.
            start_return: told when it is there: `run_return` may begin.

        Raises:
            ChannelError: a connection broke, or the source ended too early.
        """
        buffer = memoryview(bytearray(_READ_BYTES))
        self.destination = destination = connect()
        with self._reading:
            self._read_ahead()
            # At once: a destination of 8.0 or later stands still until it has seen the first bytes.
            self._send(destination, self._start)
            self._start = bytearray()
            self.is_out.set()
        start_return(destination)
        while got := self.source.recv_into([buffer], at_least=1):
            self._look(buffer[:got])
            self._send(destination, buffer[:got])
        self._check_complete()
        self._fate.hand_over()
        is_marked = self._reader is not None and self._reader.has_seen_end
        if self.source.may_be_cut and not is_marked:
            self._check_cut()
        self.stream_ended.set()
        is_answered = self.source_is_done.is_set()  # by the destination's SHUT, for which the source waited
        self.source_is_done.set()
        if not is_marked:
            destination.shutdown_write()
        elif is_answered:
            destination.end_answered()  # a receiver waits for it before it goes
        else:
            destination.end_marked()

    def check_source(self) -> None:
        """While the destination is waited for: whether the source still lives, or has sent everything. In any thread.

        Raises:
            ChannelError: it is gone, and what it sent is no whole stream, or it does not wait for what becomes of it.
        """
        if self._reading.acquire(blocking=False):
            try:
                if not self.is_out.is_set():
                    self._read_ahead()
            finally:
                self._reading.release()

    def _read_ahead(self) -> None:
        """What the source has sent meanwhile, and whether it has ended; `_reading` is held."""
        while len(self._start) <= _MOST_AHEAD:
            data = self.source.recv_available()
            if data is None:
                return
            if not data:
                self._check_complete()
                if self.has_return_path:
                    raise ChannelError(
                        f"{self.source.peer} closed the connection before the destination was there, and waits for no "
                        "confirmation any more"
                    )
                return
            self._start += data
            self._look(data)

    def _check_complete(self) -> None:
        """The source closed main: all of the stream must have come, as far as it is understood."""
        if self._reader is not None:
            try:
                self._reader.end()
            except StreamError as e:
                raise ChannelError(f"{self.source.peer} closed the connection: {e}") from e

    def _check_cut(self) -> None:
        """An encrypted stream ended without a word that it is complete: only the destination's own may vouch for it."""
        if not self.source_is_done.is_set():
            raise ChannelError(f"{self.source.peer} closed the connection, and {CUT}")

    def run_return(self, destination: Connection) -> None:
        """Pass the destination's answers on; their end is the destination's end.

        Raises:
            PeerFailed: the destination said that it failed.
            ChannelError: a connection broke, or the destination ended or confirmed too early.
        """
        answers: ReturnPathWatcher | None = ReturnPathWatcher()
        shut: int | None = None
        buffer = memoryview(bytearray(4096))
        while got := self._receive_answer(destination, buffer, shut):
            try:
                for kind, value in answers.feed(bytes(buffer[:got])) if answers else ():
                    if kind == SHUT and shut is None:  # its first word is its last
                        if value == 0 and self._fate.custody is Custody.WITH_SOURCE:
                            raise ChannelError(f"{destination.peer} confirmed before it had everything")
                        shut = value
                        self.source_is_done.set()
            except StreamError as e:
                _LOG.info("from here on the return path is passed on without being understood: %s", e)
                answers = None
            if shut:
                self._fate.refuse()  # whether the source still hears it or not
            try:
                self.source.send([buffer[:got]])
            except ChannelError as e:
                if shut == 0:
                    e.add_note("the destination has confirmed that it has the memory; the source may not know")
                raise
            if shut == 0:
                self._fate.commit()
        if shut:
            raise PeerFailed("the destination reports that it failed; its own message says why")
        if self.is_understood and not self.stream_ended.is_set():
            raise ChannelError(f"{destination.peer} closed the connection before it had everything")
        if self.has_return_path and shut is None:
            understood = "" if answers else " that is understood here"
            raise ChannelError(f"{destination.peer} closed the connection without a confirmation{understood}")
        self.source.shutdown_write()

    def _receive_answer(self, destination: Connection, buffer: memoryview, shut: int | None) -> int:
        """Bytes of the destination's; 0 at its end, however that came if both have said their last word."""
        try:
            return destination.recv_into([buffer], at_least=1)
        except Aborted:
            raise
        except ChannelError:
            if shut is None or not self.stream_ended.is_set():
                raise
            return 0

    def _send(self, destination: Connection, data: bytes | bytearray | memoryview) -> None:
        if self._may_complete:
            self._fate.hand_over()  # before the first byte leaves, so that no moment is told too well
        destination.send([data])

    def _look(self, data: bytes | memoryview) -> None:
        """Look at a piece of main before it goes on: the page size, the return path, the end."""
        if self._reader is None:
            return
        reader = self._reader
        try:
            events = reader.feed(data)
        except StreamError as e:
            if not reader.has_started:
                raise
            _LOG.info("from here on main is passed on without being understood: %s", e)
            events = reader.taken()
            self._reader = None
            self._may_complete = True  # where the end is, nobody here will see
        for event in events:
            match event:
                case stream.Machine():
                    self._has_blocks = True
                case stream.ReturnPathOpened():
                    self.has_return_path = True
                case stream.ZeroPages():
                    self.zero_pages += len(event.offsets)
                case stream.SyncPoint():
                    self.sync_points += 1
                case stream.DeviceState():
                    # RAM is complete: once the devices' state is, too, the destination runs.
                    self._may_complete = True
                case stream.StreamEnd():
                    self.stream_ended.set()
        if (events or self._reader is None) and not self.has_geometry.is_set():
            self.geometry = Geometry.of(reader.page_size)  # the configuration comes before all else
            self.has_geometry.set()

    def release(self) -> None:
        """All is over: nobody waits for anything of main any more."""
        self.is_out.set()
        self.has_geometry.set()
