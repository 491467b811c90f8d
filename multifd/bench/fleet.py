"""Many measurements through a `concurrent.futures.Executor`: of this process, or of a cluster.

Rules of this file: a task is measured where its source lies, alone on its host, and what travels back is what the
function returns and the machine's description. What a worker had under way when it died is the executor's to do
again elsewhere; each task has one outcome, whatever happened to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from dataclasses import dataclass, field
from typing import Any

from multifd._version import __version__
from multifd.bench import fetch, host, machine
from multifd.bench.job import SourceSpec
from multifd.errors import ChannelError, MultifdError, UsageError

_LOOK_S = 1.0
"""How often a signal gets its chance, and the workers are counted."""
DESERTED_S = 60.0
"""How long a cluster may be without any worker before the rest is given up."""


@dataclass(frozen=True)
class Task:
    """A call to be made where a source lies; picklable.

    Args:
        function: at the top of a module that the workers have, too; called with the source, as a file that the
            worker can open, and `arguments`.
        source: as it was given.
        arguments: the rest.
    """

    function: Callable[..., Any]
    source: SourceSpec
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a task; picklable."""

    value: Any = None
    """What the function returned; None if it failed."""
    machine: dict[str, Any] = field(default_factory=dict)
    """The host that it ran on, as `multifd.bench.machine.describe` has it; empty if it did not come so far."""
    error: str | None = None


@dataclass(frozen=True)
class Fleet:
    """Where tasks run.

    Args:
        executor: which runs `perform`.
        count: how many workers there are now.
        stop: drops what has not begun; does not wait for what has.
    """

    executor: Executor
    count: Callable[[], int]
    stop: Callable[[], None]


def perform(task: Task, version: str = __version__) -> Outcome:
    """Carry out a task on this host; runs in a worker.

    Args:
        task: what.
        version: multifd's, of whoever submitted it.
    """
    described = machine.describe()
    if version != __version__:
        return Outcome(machine=described, error=f"multifd {__version__} on {described['id']}, expected {version}")
    try:
        with host.alone():
            return Outcome(task.function(fetch.local(task.source), *task.arguments), described)
    except MultifdError as e:
        return Outcome(machine=described, error=str(e))


def run(tasks: Sequence[Task], fleet: Fleet, deserted_s: float = DESERTED_S) -> Iterator[tuple[Task, Outcome]]:
    """Each task once, with what became of it, in the order in which they end.

    To leave the iteration, by an exception too, ends what is under way as far as the executor can.

    Args:
        tasks: submitted in this order.
        fleet: where.
        deserted_s: how long there may be no worker at all.

    Raises:
        ChannelError: there was none for so long; what remains is given up.
        UsageError: a source's path that says nothing to a worker.
    """
    for task in tasks:
        _check_place(task.source)
    futures: dict[Future[Outcome], Task] = {}
    try:
        for task in tasks:
            futures[fleet.executor.submit(perform, task)] = task
        pending, seen = set(futures), time.monotonic()
        while pending:
            done, pending = wait(pending, _LOOK_S, FIRST_COMPLETED)
            for future in done:
                yield futures[future], _outcome(future)
            if done or fleet.count() > 0:
                seen = time.monotonic()
            elif time.monotonic() - seen > deserted_s:
                raise ChannelError(f"no worker for {deserted_s:.0f} s, {len(pending)} of {len(tasks)} tasks undone")
    finally:
        fleet.stop()


def _check_place(source: SourceSpec) -> None:
    if source.path and not fetch.is_url(source.path) and not os.path.isabs(source.path):
        raise UsageError(f"{source.path}: a worker's folder is another: give an absolute path or a URL")


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result(0)
    except CancelledError:
        return Outcome(error="cancelled: the scheduler gave it up")
    except Exception as e:  # the executor's own: a worker that died too often, a module that it does not have
        return Outcome(error=f"{type(e).__name__}: {e}")
