"""What `multifd relay --config` and ``--metrics`` set up around the library's calls."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from multifd.cli import malloc, signals
from multifd.cli.console import remark, show_one
from multifd.errors import UsageError, about
from multifd.service import log
from multifd.service.metrics import UNOBSERVED, Metrics, Observer
from multifd.service.route import Ended
from multifd.service.scrape import Health, ScrapeServer
from multifd.service.service import RelayService, Request
from multifd.service.systemd import Notifier, listening
from multifd.transport.address import Uri
from multifd.transport.listen import Listener

_REQUESTS = {signal.SIGTERM: Request.DRAIN, signal.SIGINT: Request.CANCEL, signal.SIGHUP: Request.RELOAD}


def serve(config: Path, *, metrics_uri: str | None, log_format: str, drain_timeout_s: float, as_json: bool) -> None:
    """Run a relay service until a signal ends it.

    Raises:
        MultifdError: it cannot start.
        KeyboardInterrupt: it was ended by SIGINT.
        Terminated: it was ended by SIGTERM, and a migration had to be cancelled.
    """
    malloc.keep(malloc.OF_A_SERVICE)
    printing = threading.Lock()

    def show(ended: Ended) -> None:
        if as_json:
            with printing:
                document = {"route": ended.route, "migration": ended.migration, **ended.result.as_dict()}
                show_one(document, as_json, lambda: None)

    with ExitStack() as stack:
        stack.enter_context(log.shown(logging.getLogger().handlers[:], log_format))
        handed = listening(os.environ)
        for sock in handed.values():
            stack.enter_context(sock)
        metrics = _metrics(metrics_uri)
        service = stack.enter_context(
            RelayService(
                config, drain_timeout_s=drain_timeout_s, notifier=Notifier(os.environ), handed=handed, metrics=metrics,
                on_ended=show,
            )
        )  # fmt: skip
        if metrics is not None and metrics_uri is not None:
            address = stack.enter_context(_scraped(metrics_uri, metrics, service.health))
            log.event("metrics", f"metrics on {address}", uri=address)
        came = stack.enter_context(signals.handing_on(_REQUESTS, service.request))
        has_drained = service.run()
    if came[:1] == [signal.SIGINT]:
        raise KeyboardInterrupt
    if not has_drained:
        raise signals.Terminated


@contextmanager
def observed(metrics_uri: str | None, route: str) -> Iterator[Observer]:
    """An observer of one end's migrations, whose figures can be scraped meanwhile.

    Args:
        metrics_uri: where; None: nobody counts.
        route: the label of the figures.

    Raises:
        UsageError: no such address, or prometheus_client is not installed.
        ChannelError: the address cannot be had.
    """
    metrics = _metrics(metrics_uri)
    if metrics is None or metrics_uri is None:
        yield UNOBSERVED
        return
    meter = metrics.meter(route)
    meter.up(True)
    with _scraped(metrics_uri, metrics, lambda: (True, {"state": "ready"})) as address:
        remark(f"metrics on {address}")
        yield meter


def _metrics(uri: str | None) -> Metrics | None:
    if uri is None:
        return None
    try:
        Uri.parse(uri)
        return Metrics()
    except UsageError as e:
        about(e, "metrics")
        raise


@contextmanager
def _scraped(uri: str, metrics: Metrics, health: Health) -> Iterator[str]:
    """Serve them meanwhile; gives the address, its port filled in."""
    server = ScrapeServer(Listener(Uri.parse(uri)), metrics.registry, health)
    try:
        yield server.uri
    finally:
        server.close()
