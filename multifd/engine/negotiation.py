"""What all channels of a migration must agree on: how many there are, and the method.

The channel count is the announced one, else the caller's, else QEMU's default. The method is the
announced one, else that of the first data packet's code.

Every method that a peer may choose is imported when a `Negotiation` is made, so a peer never decides what is imported.
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence

from multifd import registry
from multifd.errors import MethodNotFound, MultifdError, PeerMismatch, RemoteWireError, about
from multifd.method import MultifdMethods
from multifd.wire.packet import PRIVATE_CODE, InitPacket
from multifd.wire.stream import NO_UUID

_DEFAULT_CHANNELS = 2  # multifd-channels, qapi/migration.json, QEMU 10.0

Terms = tuple[bytes, int, str, int]
"""What every channel of one migration announces alike: uuid, channel count, method, its version."""


def terms_of(init: InitPacket) -> Terms:
    """What must be alike in all init packets of a migration."""
    return init.uuid, init.channels, init.method, init.wire_version


class Negotiation:
    """The receiver's side of it.

    Args:
        specs: the only methods allowed (``NAME:key=value``); empty allows all that a peer may choose.
        channels: what the caller insists on; None takes what is announced.
        is_local: only processes of this host can connect, so a private method may be chosen freely.
        unannounced: how many channels there may be if neither the caller nor the sender says it.
        setting: the argument with which the caller names methods.

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
        setting: str = "methods",
    ) -> None:
        self._specs = {registry.parse_spec(spec)[0]: spec for spec in specs}
        # Looked up once, before anybody connects: it takes milliseconds.
        self._entry_points = registry.entry_points()
        for spec in specs:
            registry.load_method(spec, self._entry_points)
        self._channels, self._is_local = channels, is_local
        self._unannounced, self._setting = unannounced, setting
        self._installed = {info.name: info for info in registry.describe(self._entry_points)}
        self._lock = threading.Lock()
        self._first: InitPacket | None = None
        self.method: MultifdMethods | None = None
        """None until it is settled."""

    @property
    def terms(self) -> Terms | None:
        """What was settled, None before."""
        return None if self._first is None else terms_of(self._first)

    @property
    def is_announced(self) -> bool:
        """Whether the sender says how many channels it has."""
        return self._first is not None and self._first.channels > 0

    @property
    def uuid(self) -> bytes:
        """The guest's, as the channels give it; all zero if it has none."""
        return self._first.uuid if self._first else NO_UUID

    def expected(self, init: InitPacket | None = None) -> int:
        """How many channels a migration has whose channels start like `init`, or the settled one."""
        init = init or self._first
        return (init.channels if init else 0) or self._channels or self._unannounced

    def objection(self, init: InitPacket) -> MultifdError | None:
        """Why a channel cannot be accepted here, whatever the others announce; None if it can."""
        if init.channels and self._channels not in (None, init.channels):
            return about(
                PeerMismatch(f"the sender has {init.channels} channels, here {self._channels} are expected"), "channels"
            )
        if init.id >= self.expected(init):
            return about(
                PeerMismatch(
                    f"channel {init.id} connected, but {self.expected(init)} channels are expected: expect "
                    f"{init.id + 1}, or what the sender has"
                ),
                "channels",
            )
        return self._method_objection(init) if init.method else None

    def _method_objection(self, init: InitPacket) -> MultifdError | None:
        name, allowed = init.method, ", ".join(self._specs)
        if self._specs and name not in self._specs:
            return about(PeerMismatch(f"the sender uses method {name!r}, here only {allowed} may be"), self._setting)
        info = self._installed.get(name)
        if info is None or info.status != "ok" or info.wire_code is not None:
            return None  # perhaps another installed method has its wire code
        if name not in self._specs and not self._is_local:
            return about(
                PeerMismatch(
                    f"the sender asks for the private method {name!r}: over a network it must be allowed by name"
                ),
                self._setting,
            )
        version = registry.find(name, self._entry_points).wire_version
        if version != init.wire_version:
            return PeerMismatch(
                f"method {name!r}: the sender has wire version {init.wire_version}, here it is {version}; "
                "install the same release on both ends"
            )
        return None

    def settle(self, init: InitPacket) -> None:
        """These are the migration's terms (one thread).

        Raises:
            MethodError: the announced method cannot be had.
        """
        self._first = init
        info = self._installed.get(init.method)
        if info is not None and info.status == "ok":
            self.method = registry.load_method(self._specs.get(init.method, init.method), self._entry_points)

    def method_of(self, code: int) -> MultifdMethods:
        """The method of a packet with this code; the first call settles it (channel threads).

        Raises:
            PeerMismatch, MethodNotFound: no installed and allowed method has it.
            RemoteWireError: it is not the settled method's.
        """
        with self._lock:
            if self.method is None:
                self.method = self._method_of(code)
        method = self.method
        expected = PRIVATE_CODE if method.wire_code is None else method.wire_code
        if code != expected:
            raise RemoteWireError(f"method code {code:#x}, expected {expected:#x} ({method.name})", offset=8)
        return method

    def _method_of(self, code: int) -> MultifdMethods:
        own = {name for name, info in self._installed.items() if info.distribution == "multifd"}
        names = [
            name
            for name in sorted(self._installed, key=lambda name: (name not in own, name))
            if self._installed[name].status == "ok" and self._installed[name].wire_code == code != PRIVATE_CODE
        ]
        for name in names:
            if not self._specs or name in self._specs:
                return registry.load_method(self._specs.get(name, name), self._entry_points)
        announced = self._first.method if self._first else ""
        if announced and announced not in self._installed:
            raise MethodNotFound(
                announced, sorted(self._installed), difflib.get_close_matches(announced, self._installed)
            )
        if announced:
            registry.load_method(announced)  # raises: it is installed but cannot be used
        known = f"that of {', '.join(names)}" if names else "no installed method's"
        hint = f"; here only {', '.join(self._specs)} may be" if self._specs else ""
        raise about(PeerMismatch(f"the sender's packets have method code {code:#x}, {known}{hint}"), self._setting)
