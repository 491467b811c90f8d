"""The arguments of `multifd.send`, `multifd.receive` and `multifd.api.relay`, checked, as the engines take them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from multifd.errors import MultifdError, UsageError, about
from multifd.ram.block import Source
from multifd.ram.stored import StoredSource
from multifd.registry import load_method
from multifd.transport.address import Uri
from multifd.transport.tls import TlsClient, TlsServer
from multifd.wire.dialect import DIALECTS, Dialect, dialect_of

MOST_CHANNELS = 255  # multifd-channels, qapi/migration.json, QEMU 10.0
SAME = "same"
"""In the place of a relay's method towards the destination: packets go on as the source made them."""
_YEAR_S = 365 * 86400.0


@dataclass(frozen=True)
class SendConfig:
    """How to send; `multifd.send`'s arguments, checked."""

    uri: Uri
    channels: int
    dialect: Dialect
    max_bandwidth: int = 0
    """Bytes each second over all connections; 0 is unlimited."""
    connect_timeout_s: float = 10.0
    timeout_s: float = 60.0
    """How long all connections may be silent."""
    tls: TlsClient | None = None

    def __post_init__(self) -> None:
        _check_channels(self.channels)
        _check_bandwidth(self.max_bandwidth)
        _check_timeout(self.connect_timeout_s, "connect_timeout")
        _check_timeout(self.timeout_s, "timeout")
        if self.uri.fds and len(self.uri.fds) != self.channels + 1:
            raise about(
                UsageError(
                    f"{self.uri} has {len(self.uri.fds)} connections, {self.channels} channels need "
                    f"{self.channels + 1}: main's first"
                ),
                "channels",
            )


@dataclass(frozen=True)
class ReceiveConfig:
    """How to receive; `multifd.receive`'s arguments, checked."""

    channels: int | None = None
    """None: what the sender announces, else 2."""
    methods: tuple[str, ...] = ()
    """Specs (``NAME:key=value``) of the only methods allowed; empty allows all that may be chosen."""
    timeout_s: float = 60.0
    """How long all connections may be silent, and how long to wait for the first."""
    tls: TlsServer | None = None

    def __post_init__(self) -> None:
        _check_channels(self.channels)
        _check_timeout(self.timeout_s, "timeout")


@dataclass(frozen=True)
class RelayConfig:
    """How to relay; the arguments of `multifd.api.relay`, checked."""

    to: Uri
    in_method: str | None = None
    out_method: str = "none"
    channels: int | None = None
    connect_timeout_s: float = 10.0
    timeout_s: float = 60.0
    max_bandwidth: int = 0
    """Bytes each second to the destination, over all connections; 0 is unlimited."""
    out_tls: TlsClient | None = None
    """Towards the destination; that of the sources is the acceptor's."""

    def __post_init__(self) -> None:
        _check_channels(self.channels)
        _check_bandwidth(self.max_bandwidth)
        _check_timeout(self.timeout_s, "timeout")
        _check_timeout(self.connect_timeout_s, "connect_timeout")
        for setting in ("in_method", "out_method"):
            if (spec := getattr(self, setting)) and (setting, spec) != ("out_method", SAME):
                try:
                    load_method(spec)
                except MultifdError as e:
                    about(e, setting)
                    raise
        self.to.refuse_folder()
        if self.to.fds:
            raise about(
                UsageError(f"{self.to}: a relay connects anew for each migration; expected the destination's address"),
                "to",
            )

    def check_listens_at(self, listen: Uri) -> None:
        """Raise `UsageError` if the relay listens where it would pass on to; port 0 is no port yet."""
        if listen == self.to and (listen.path or listen.port):
            raise about(UsageError(f"{self.to} is where the relay listens; expected the destination's address"), "to")


def dialect_for(source: Source, name: str | None) -> Dialect:
    """How a source is sent.

    Args:
        source: opened.
        name: the destination's dialect; None: a stored machine's type says it, and of anything else it is 9.0.

    Raises:
        UsageError: there is no such dialect, or the machine type does not say.
    """
    if name is not None and name not in DIALECTS:
        raise about(UsageError(f"dialect {name!r}, expected one of {', '.join(DIALECTS)}"), "dialect")
    if not isinstance(source, StoredSource):
        return DIALECTS[name or "9.0"]
    # A destination may hold other bytes where a page is zero, such as its own firmware. A QEMU clears a
    # zero page in a packet only if it received that page before, one on main always.
    dialect = DIALECTS[name] if name else dialect_of(source.machine.name)
    return replace(dialect, zero_pages_in_packets=False)


def _check_channels(channels: int | None) -> None:
    """Raise `UsageError` unless that many channels can be, or None is said."""
    if channels is not None and not 1 <= channels <= MOST_CHANNELS:
        raise about(UsageError(f"{channels} channels, expected 1 to {MOST_CHANNELS}"), "channels")


def _check_bandwidth(bytes_per_s: int) -> None:
    """Raise `UsageError` for a rate below 0."""
    if bytes_per_s < 0:
        raise about(UsageError(f"a bandwidth of {bytes_per_s} bytes/s, expected 0 or more"), "max_bandwidth")


def _check_timeout(seconds: float, setting: str) -> None:
    """Raise `UsageError` unless `seconds` is a time that can be waited for: above 0, at most a year."""
    if not 0 < seconds <= _YEAR_S:
        raise about(UsageError(f"a timeout of {seconds:g} s, expected above 0 and at most a year"), setting)
