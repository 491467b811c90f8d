"""What a relay or a receiver counts, for Prometheus.

Rules of this file: prometheus_client is imported when metrics are asked for, never before. A counter only ever grows:
figures of a migration that runs are added by what they have grown since they were last seen. `TABLE` is the one list
of names; the documentation and the dashboard are checked against it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from multifd._version import __version__
from multifd.errors import UsageError
from multifd.stats import RelayResult, Result

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

STATES = ("completed", "failed", "cancelled", "unknown")
"""How a migration can end, `multifd.stats.RelayResult.status`."""
_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
"""From an idle guest of a few MiB to hours of a large one that does not converge."""


@dataclass(frozen=True)
class Metric:
    """One metric, as it is told to Prometheus."""

    kind: str
    """Counter, Gauge, Histogram or Info: the class of prometheus_client."""
    help: str
    labels: tuple[str, ...] = ("route",)


TABLE: Mapping[str, Metric] = {
    "multifd_migrations_total": Metric("Counter", "Migrations that ended, by state.", ("route", "state")),
    "multifd_active_migrations": Metric("Gauge", "Migrations under way."),
    "multifd_migration_duration_seconds": Metric(
        "Histogram", "From a migration's first connection to its end, however it ended."
    ),
    "multifd_received_bytes_total": Metric("Counter", "Bytes from sources: main and all channels."),
    "multifd_sent_bytes_total": Metric("Counter", "Bytes to destinations: main and all channels."),
    "multifd_pages_total": Metric("Counter", "Pages, by kind: normal or zero.", ("route", "kind")),
    "multifd_packets_total": Metric("Counter", "Packets of all kinds that a relay passed on."),
    "multifd_sync_points_total": Metric(
        "Counter", "Points to which all channels were brought: at least one for each dirty sync of a source."
    ),
    "multifd_channel_stalls_total": Metric(
        "Counter", "Quarters of a second in which a destination took nothing of a connection."
    ),
    "multifd_method_figures_total": Metric(
        "Counter", "What methods count themselves.", ("route", "side", "method", "figure")
    ),
    "multifd_strangers_total": Metric("Counter", "Connections that were no migration's and were closed."),
    "multifd_tls_failures_total": Metric(
        "Counter",
        "Connections that TLS ended; in: strangers that did not get through the handshake, or were not authorised; "
        "out: to destinations.",
        ("route", "side"),
    ),
    "multifd_route_up": Metric("Gauge", "Whether sources can connect: 1 or 0."),
    "multifd_draining": Metric("Gauge", "Whether the service ends and takes no migration any more: 1 or 0.", ()),
    "multifd_config_reloads_total": Metric(
        "Counter", "How often the settings were read again, by outcome: accepted or refused.", ("outcome",)
    ),
    "multifd_config_last_reload_success_timestamp_seconds": Metric(
        "Gauge", "When the settings that hold now were read, Unix time.", ()
    ),
    "multifd_build_info": Metric("Info", "The release that runs.", ()),
}


class Observer(Protocol):
    """What one end of migrations tells of them, in its thread."""

    def up(self, is_up: bool) -> None:
        """Sources can connect, or cannot any more."""

    def update(self, result: RelayResult | Result) -> None:
        """The figures so far, about ten times a second."""

    def finish(self, result: RelayResult | Result) -> None:
        """A migration has ended."""

    def forget(self) -> None:
        """A wait has ended in which nobody came."""


class _Unobserved:
    """Nobody counts."""

    def up(self, is_up: bool) -> None:
        """See `Observer`."""

    def update(self, result: RelayResult | Result) -> None:
        """See `Observer`."""

    def finish(self, result: RelayResult | Result) -> None:
        """See `Observer`."""

    def forget(self) -> None:
        """See `Observer`."""


UNOBSERVED = _Unobserved()


class Metrics:
    """All metrics of a process.

    Thread rule: any thread.

    Raises:
        UsageError: prometheus_client is not installed.
    """

    def __init__(self) -> None:
        try:
            import prometheus_client
        except ImportError as e:
            raise UsageError("metrics need the package prometheus_client: pip install 'multifd[metrics]'") from e
        # A second series for each counter, of which nothing is asked here.
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry: CollectorRegistry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        self._metrics: dict[str, Any] = {}
        for name, metric in TABLE.items():
            make = getattr(prometheus_client, metric.kind)
            options = {"buckets": _BUCKETS_S} if metric.kind == "Histogram" else {}
            self._metrics[name] = make(
                name.removesuffix("_info"), metric.help, metric.labels, registry=self.registry, **options
            )
        self["multifd_build_info"].info({"version": __version__})
        for outcome in ("accepted", "refused"):
            self["multifd_config_reloads_total"].labels(outcome)
        self["multifd_config_last_reload_success_timestamp_seconds"].set_to_current_time()

    def __getitem__(self, name: str) -> Any:
        """The metric of that name, an object of prometheus_client."""
        return self._metrics[name]

    def meter(self, route: str) -> Meter:
        """A meter of a route. Those of one name add up: a counter outlives its route's settings."""
        return Meter(self, route)

    def reloaded(self, outcome: str) -> None:
        """Settings were read again, and accepted or refused."""
        self["multifd_config_reloads_total"].labels(outcome).inc()
        if outcome == "accepted":
            self["multifd_config_last_reload_success_timestamp_seconds"].set_to_current_time()


class Meter:
    """Counts the migrations of one route.

    Thread rule: one thread at a time, that of the route.
    """

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics, self._route = metrics, route
        self._is_up = self._is_active = False
        self._seen: dict[tuple[str, ...], float] = {}
        for state in STATES:  # from the start, so that a rate over the first failure is no gap
            metrics["multifd_migrations_total"].labels(route, state)
        for kind in ("normal", "zero"):
            metrics["multifd_pages_total"].labels(route, kind)
        for side in ("in", "out"):
            metrics["multifd_tls_failures_total"].labels(route, side)
        for name, metric in TABLE.items():
            if metric.labels == ("route",):
                metrics[name].labels(route)

    def up(self, is_up: bool) -> None:
        """See `Observer`."""
        self._metrics["multifd_route_up"].labels(self._route).inc(is_up - self._is_up)
        self._is_up = is_up

    def update(self, result: RelayResult | Result) -> None:
        """See `Observer`: what a migration has moved since the last call is added."""
        self._set_active(result.status == "active")
        for (name, *labels), value in _figures(result).items():
            grown = value - self._seen.get((name, *labels), 0)
            if grown > 0:
                self._seen[name, *labels] = value
                self._metrics[name].labels(self._route, *labels).inc(grown)

    def finish(self, result: RelayResult | Result) -> None:
        """See `Observer`: what is counted next is another's."""
        self.update(result)
        self._metrics["multifd_migrations_total"].labels(self._route, result.status).inc()
        self._metrics["multifd_migration_duration_seconds"].labels(self._route).observe(result.total_time_ms / 1e3)
        self.forget()

    def forget(self) -> None:
        """See `Observer`."""
        self._seen.clear()
        self._set_active(False)

    def _set_active(self, is_active: bool) -> None:
        # By steps: another meter of the name may count a migration that began before its route was replaced.
        self._metrics["multifd_active_migrations"].labels(self._route).inc(is_active - self._is_active)
        self._is_active = is_active


def _figures(result: RelayResult | Result) -> dict[tuple[str, ...], float]:
    """Counters by name and further labels."""
    figures: dict[tuple[str, ...], float] = {
        ("multifd_pages_total", "normal"): result.normal_pages,
        ("multifd_pages_total", "zero"): result.zero_pages,
    }
    if isinstance(result, Result):
        figures["multifd_received_bytes_total",] = result.transferred_bytes
        sides = [("in", result.method, result.method_stats)]
    else:
        figures["multifd_received_bytes_total",] = result.bytes_in
        figures["multifd_sent_bytes_total",] = result.bytes_out
        figures["multifd_packets_total",] = result.packets
        figures["multifd_sync_points_total",] = result.sync_points
        figures["multifd_channel_stalls_total",] = result.stalls
        figures["multifd_strangers_total",] = result.rejected
        figures["multifd_tls_failures_total", "in"] = result.tls_failures
        figures["multifd_tls_failures_total", "out"] = result.out_tls_failures
        sides = [("in", result.in_method, result.in_stats), ("out", result.out_method, result.out_stats)]
    for side, method, stats in sides:
        for figure, value in stats.items():
            figures["multifd_method_figures_total", side, method, figure] = value
    return figures
