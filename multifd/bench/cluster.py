"""A dask.distributed cluster as a `multifd.bench.fleet.Fleet`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from multifd.bench.fleet import Fleet
from multifd.errors import ChannelError, UsageError

if TYPE_CHECKING:
    from distributed import Client

_KIND = "dask:"
CONNECT_S = 30.0
"""How long the scheduler may take to answer, and then the first worker to be there."""

_ANSWER_S = 5.0
"""How long a scheduler may take to say who works for it; one that died says nothing."""


@contextlib.contextmanager
def connected(executor: str, connect_timeout: float = CONNECT_S) -> Iterator[Fleet]:
    """A cluster for as long as the context lasts; its workers go on afterwards.

    Whoever reaches a scheduler can run code on its workers: dask's own rule. ``tls://`` takes its certificates from
    dask's configuration.

    Args:
        executor: ``dask:`` and the scheduler's address, such as ``dask:tcp://scheduler:8786``.
        connect_timeout: seconds.

    Raises:
        UsageError: another executor, or dask.distributed is not installed.
        ChannelError: no scheduler there, or no worker.
    """
    address = executor.removeprefix(_KIND)
    if not executor.startswith(_KIND) or "://" not in address:
        raise UsageError(f"executor {executor!r}, expected dask:tcp://SCHEDULER:8786")
    try:
        from distributed import Client
    except ImportError as e:
        raise UsageError(f"executor {executor!r} needs dask.distributed: pip install 'multifd[dask]'") from e
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told by our own errors
    try:
        client = Client(address, timeout=connect_timeout, set_as_default=False)
    except (OSError, ValueError) as e:  # TimeoutError is an OSError
        raise ChannelError(f"{address}: no dask scheduler: {e}") from e
    with client:
        try:
            client.wait_for_workers(1, timeout=connect_timeout)
        except TimeoutError as e:
            raise ChannelError(f"{address}: the scheduler has no worker, after {connect_timeout:.0f} s") from e
        # Not pure: equal jobs are measured again, not looked up.
        yield Fleet(client.get_executor(pure=False), lambda: _count(client))


def _count(client: Client) -> int:
    """Workers; none if the scheduler cannot be asked."""
    with contextlib.suppress(OSError):
        return len(client.sync(client.scheduler.ncores, workers=None, callback_timeout=_ANSWER_S))
    return 0
