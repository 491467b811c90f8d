"""By what a relay's migration comes in and goes on: its settings, methods, rate limit, the way to the destination.

Rules of this file: nothing changes once a migration has begun; other settings make another way.
"""

from __future__ import annotations

from multifd.engine.config import MOST_CHANNELS, SAME, RelayConfig
from multifd.engine.negotiation import Negotiation
from multifd.errors import MethodError, PeerMismatch, RemoteWireError
from multifd.method import MultifdMethods
from multifd.registry import load_method
from multifd.transport import clear
from multifd.transport.connect import connect
from multifd.transport.connection import Connection
from multifd.transport.idle import IdleTimer
from multifd.transport.limit import RateLimit


class RelayWay:
    """Thread rule: `connect`, `connect_main` and `check_method` in any thread, several at once.

    Args:
        config: the settings.
        idle: the migration's.
        is_local: whether sources come from this host only.
    """

    def __init__(self, config: RelayConfig, idle: IdleTimer, *, is_local: bool) -> None:
        self.config, self.idle = config, idle
        self.out: MultifdMethods | None = None if config.out_method == SAME else load_method(config.out_method)
        """The method towards the destination; None if packets go on as they come."""
        specs = (config.in_method,) if config.in_method else ()
        self.negotiation = Negotiation(
            specs, config.channels, is_local=is_local, unannounced=MOST_CHANNELS, setting="in_method"
        )
        self._tls_failures_before = self._count_tls_failures()
        self._limit = RateLimit(config.max_bandwidth, idle.abort) if config.max_bandwidth else None

    @property
    def tls_failures(self) -> int:
        """Connections to the destination that TLS has ended since this was made."""
        return self._count_tls_failures() - self._tls_failures_before

    def _count_tls_failures(self) -> int:
        return self.config.out_tls.failures if self.config.out_tls is not None else 0

    def connect(self, what: str, *, retry: bool = False) -> Connection:
        """A connection to the destination; the caller's, also when it fails.

        Args:
            what: which it is, for errors.
            retry: whether the destination may still be about to listen.

        Raises:
            ChannelError: it cannot be had within the connect timeout.
            Aborted: the migration ended meanwhile.
        """
        config = self.config
        destination = connect(
            config.to,
            self.idle,
            timeout_s=config.connect_timeout_s,
            limit=self._limit,
            retry=retry,
            tls=config.out_tls,
        )
        destination.peer = f"the destination's {what} ({config.to})"
        if self.idle.abort.is_set():
            destination.close()
            self.idle.check()
        return destination

    def connect_main(self) -> Connection:
        """Main's connection to the destination, the first of all."""
        destination = self.connect("main", retry=True)
        if self.config.out_tls is None:
            clear.warn_leaving(destination, self.config.to)
        return destination

    def check_method(self, code: int) -> None:
        """Of a packet that goes on as it is: the method need not be known here, unless only one may be."""
        try:
            self.negotiation.method_of(code)
        except (MethodError, PeerMismatch, RemoteWireError):
            if self.config.in_method is not None:
                raise
