"""Main at a receiver: its thread reads the stream, several threads answer on it.

What starts like a main connection is a candidate. It is the migration's main once its list of blocks is complete and
nobody else's was before: a stranger that knows four bytes does not displace a source.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from multifd.engine.sync import Barrier
from multifd.errors import ChannelError, PeerMismatch, StreamError
from multifd.ram.block import TargetBlock
from multifd.stats import MigrationStats
from multifd.transport.connection import Connection
from multifd.wire import stream
from multifd.wire.reader import MainStreamReader
from multifd.wire.return_path import PONG, SHUT, encode_answer
from multifd.wire.vmdesc import CUT

_READ_BYTES = 1 << 16
_MAX_AHEAD = 1 << 20
"""Bytes that are read behind the first sync point while no channels are known."""
CHANNELS_S = 10.0
"""How long channels may take once main is complete: QEMU 10.0 connects them before it begins main, 7.2 meanwhile."""
_POLL_S = 0.05


class Rejected(Exception):
    """This candidate is not the migration's main; the text says why."""


class Host(Protocol):
    """What a candidate asks of the receiver, from its thread."""

    stats: MigrationStats
    barrier: Barrier

    def elect(self, main: RecvMain, machine: stream.Machine) -> Mapping[str, TargetBlock]:
        """This candidate has told its machine: the blocks to receive into.

        Raises:
            Rejected: another one is main.
            RamError: the machine does not fit the target.
        """
        ...

    def add_device_state(self, data: bytes) -> None:
        """The next piece of what follows RAM."""
        ...


class RecvMain:
    """A candidate for main.

    Thread rule: `run` belongs to the candidate's own thread; `answer` may be called from any.

    Args:
        connection: taken over, its magic already read.
        host: the receiver.
    """

    def __init__(self, connection: Connection, host: Host) -> None:
        self.connection, self._host = connection, host
        self.has_return_path = False
        self.has_device_state = False
        self.has_ended = False
        self._reader = MainStreamReader()
        self._answering = threading.Lock()
        self._blocks: Mapping[str, TargetBlock] = {}

    @property
    def has_configuration(self) -> bool:
        """Whether it has said what machine it is of: it is a QEMU's stream then, whatever comes next."""
        return self._reader.has_configuration

    def answer(self, kind: int, value: int) -> None:
        """Say something on the return path, if the source has opened it.

        Raises:
            ChannelError: the connection broke.
        """
        if self.has_return_path:
            with self._answering:
                self.connection.send([encode_answer(kind, value)])

    def say_shut(self, value: int) -> None:
        """The last word: 0, everything is in place; 1, it failed. A source that is gone does not hear it."""
        with contextlib.suppress(ChannelError):
            self.answer(SHUT, value)

    def run(self) -> None:
        """Read the stream to its end.

        Raises:
            Rejected: it is not the migration's main.
            StreamError: it broke the grammar.
            ChannelError: it broke off.
            RamError: its RAM cannot be received.
        """
        buffer = memoryview(bytearray(_READ_BYTES))
        ahead = deque(self._feed(stream.MAGIC_BYTES))
        bytes_ahead, is_complete = 0, False
        while not self.has_ended:
            # A source without multifd sends pages on main and has no channels: a sync point would be waited for in
            # vain. So what follows it is read, as long as no channels are known: it tells such a source at once.
            is_waiting = bool(ahead) and self._waits_for_channels(ahead[0]) and bytes_ahead < _MAX_AHEAD
            if ahead and not is_waiting:
                self._handle(ahead.popleft())
            elif is_complete:
                if not ahead:
                    self.has_ended = True
                elif not self._host.barrier.wait_expecting(CHANNELS_S):
                    raise PeerMismatch(
                        "main has ended and no channel has come: the source does not use multifd; switch the "
                        "capability on there"
                    )
                else:
                    bytes_ahead = _MAX_AHEAD
            elif not is_waiting or self._has_more():
                got = self.connection.recv_into([buffer], at_least=1)
                if got:
                    ahead += self._feed(buffer[:got])
                    bytes_ahead += got if is_waiting else 0
                    is_complete = any(isinstance(event, stream.StreamEnd) for event in ahead)
                else:
                    self._check_end()
                    is_complete = True

    def _feed(self, data: bytes | memoryview) -> list[stream.Event]:
        return self._reader.feed(data)

    def _waits_for_channels(self, event: stream.Event) -> bool:
        return isinstance(event, stream.SyncPoint) and not self._host.barrier.is_expecting

    def _has_more(self) -> bool:
        """Whether main goes on though its channels are not known; what is waited for is them."""
        return not self._host.barrier.wait_expecting(_POLL_S) and self.connection.wait_readable(0)

    def _check_end(self) -> None:
        try:
            self._reader.end()
        except StreamError as e:
            raise ChannelError(f"{self.connection.peer} closed the main connection: {e}") from e
        if self.connection.may_be_cut and not self._reader.has_seen_end:
            raise ChannelError(f"{self.connection.peer} closed the main connection, and {CUT}")

    def _handle(self, event: stream.Event) -> None:
        match event:
            case stream.Machine():
                self._blocks = self._host.elect(self, event)
            case stream.ZeroPages():
                self._blocks[event.idstr].clear(event.offsets)
                self._host.stats.zero_pages_on_main += len(event.offsets)
            case stream.SyncPoint():
                self._host.barrier.reach()
            case stream.ReturnPathOpened():
                self.has_return_path = True
            case stream.Ping():
                self.answer(PONG, event.value)
            case stream.DeviceState():
                self.has_device_state = True
                self._host.add_device_state(event.data)
            case stream.StreamEnd():
                self.has_ended = True
