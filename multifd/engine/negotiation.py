"""What all channels of a migration must agree on: how many there are, and the method.

The channel count is the announced one, else the caller's, else QEMU's default. The method is the
announced one, else that of the first data packet's code.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from multifd import registry
from multifd.errors import MethodNotFound, PeerMismatch, RemoteWireError
from multifd.method import MultifdMethods
from multifd.wire.packet import PRIVATE_CODE, InitPacket
from multifd.wire.stream import NO_UUID

_DEFAULT_CHANNELS = 2  # multifd-channels, qapi/migration.json, QEMU 10.0


class Negotiation:
    """The receiver's side of it.

    Args:
        specs: the only methods allowed (``NAME:key=value``); empty allows all that a peer may choose.
        channels: what the caller insists on; None takes what is announced.
        is_local: only processes of this host can connect, so a private method may be chosen freely.
        unannounced: how many channels there may be if neither the caller nor the sender says it.
        option: what the caller names methods with, for messages.

    Raises:
        MethodError: an allowed method cannot be had.
    """

    def __init__(
        self,
        specs: Sequence[str],
        channels: int | None,
        *,
        is_local: bool,
        unannounced: int = _DEFAULT_CHANNELS,
        option: str = "--method",
    ) -> None:
        self._specs = {registry.parse_spec(spec)[0]: spec for spec in specs}
        for spec in specs:
            registry.load_method(spec)
        self._channels = channels
        self._is_local, self._unannounced, self._option = is_local, unannounced, option
        self._lock = threading.Lock()
        self._missing: MethodNotFound | None = None
        self._first: InitPacket | None = None
        self._seen: set[int] = set()
        self.method: MultifdMethods | None = None

    @property
    def channels(self) -> int:
        """How many are expected, as far as is known."""
        announced = self._first.channels if self._first else 0
        return announced or self._channels or self._unannounced

    @property
    def uuid(self) -> bytes:
        """The guest's, as the channels give it; all zero if it has none."""
        return self._first.uuid if self._first else NO_UUID

    def admit(self, init: InitPacket) -> None:
        """Check one more channel against what is agreed (one thread).

        Raises:
            PeerMismatch: it differs from what this end was told.
            RemoteWireError: it contradicts another channel.
        """
        first = self._first
        if first is None:
            if init.channels and self._channels not in (None, init.channels):
                raise PeerMismatch(f"the sender has {init.channels} channels, --channels here says {self._channels}")
            if init.method:
                self._announced(init)
            self._first = init
        elif (init.channels, init.wire_version, init.method, init.uuid) != (
            first.channels,
            first.wire_version,
            first.method,
            first.uuid,
        ):
            raise RemoteWireError(f"channel {init.id} announces {init}, channel {first.id} {first}")
        if init.id >= self.channels:
            raise PeerMismatch(
                f"channel {init.id} connected, but {self.channels} channels are expected: "
                f"pass --channels {init.id + 1}, or what the sender has"
            )
        if init.id in self._seen:
            raise RemoteWireError(f"channel {init.id} connected twice")
        self._seen.add(init.id)

    def _announced(self, init: InitPacket) -> None:
        name = init.method
        if self._specs and name not in self._specs:
            raise PeerMismatch(f"the sender uses method {name!r}, {self._option} here allows {', '.join(self._specs)}")
        try:
            cls = registry.find(name)
        except MethodNotFound as e:
            self._missing = e  # perhaps another installed method has its wire code
            return
        if cls.wire_code is None:
            if name not in self._specs and not self._is_local:
                raise PeerMismatch(
                    f"the sender asks for the private method {name!r}: from another host it needs {self._option} {name}"
                )
            if cls.wire_version != init.wire_version:
                raise PeerMismatch(
                    f"method {name!r}: the sender has wire version {init.wire_version}, here it is {cls.wire_version}; "
                    "install the same release on both ends"
                )
        self.method = registry.load_method(self._specs.get(name, name))

    def method_of(self, code: int) -> MultifdMethods:
        """The method of a packet with this code; the first call settles it (channel threads).

        Raises:
            PeerMismatch, MethodNotFound: no installed and allowed method has it.
            RemoteWireError: it is not the settled method's.
        """
        with self._lock:
            if self.method is None:
                self.method = self._settle(code)
        method = self.method
        expected = PRIVATE_CODE if method.wire_code is None else method.wire_code
        if code != expected:
            raise RemoteWireError(f"method code {code:#x}, expected {expected:#x} ({method.name})", offset=8)
        return method

    def _settle(self, code: int) -> MultifdMethods:
        names: list[str] = []
        for name in () if code == PRIVATE_CODE else registry.methods_of_code(code):
            if not self._specs or name in self._specs:
                return registry.load_method(self._specs.get(name, name))
            names.append(name)
        if self._missing is not None:
            raise self._missing
        known = f"that of {', '.join(names)}" if names else "no installed method's"
        hint = f"; {self._option} here allows {', '.join(self._specs)}" if self._specs else ""
        raise PeerMismatch(f"the sender's packets have method code {code:#x}, {known}{hint}")
