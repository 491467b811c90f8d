"""Many measurements through a `concurrent.futures.Executor`, of this process or of a cluster.

Rules of this file: what is compared is measured on one host, so what is handed out is a round: every combination of a
source, once. What a worker had under way when it died is the executor's to do again elsewhere; each task has one
outcome, whatever happened to it, and only its figures travel.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from multifd._version import __version__
from multifd.bench import campaign, fetch
from multifd.bench.campaign import Evidence
from multifd.bench.job import Job, Row, SourceSpec
from multifd.bench.worker import Outcome, Round, Task, lost, measure_round, perform
from multifd.errors import RamError, UsageError

_LOOK_S = 1.0
"""How often a signal gets its chance, and the workers are counted."""
DESERTED_S = 60.0
"""How long there may be no worker at all before the rest is given up."""


@dataclass(frozen=True)
class Fleet:
    """Where tasks run.

    Args:
        executor: which runs `multifd.bench.worker.perform`.
        count: how many workers there are now.
    """

    executor: Executor
    count: Callable[[], int]


def gather(
    jobs: Sequence[Job], evidence: Evidence, fleet: Fleet, on_row: Callable[[Row], None] = lambda row: None
) -> None:
    """Measure everything, wherever there is a worker.

    Args:
        jobs: as `multifd.bench.campaign.plan` makes them.
        evidence: gets methods and sources first, then each row as soon as its round has come back, so that nothing is
            lost when this is interrupted; its machines are those that measured.
        fleet: the caller's.
        on_row: told of each.

    Raises:
        MethodError: a method cannot be had here.
        UsageError: a path that says nothing to a worker.
        RamError: a source cannot be read where it lies; nothing has been measured.
    """
    sources = list({job.source.id: job.source for job in jobs}.values())
    for source in sources:
        if source.path and not fetch.is_url(source.path) and not os.path.isabs(source.path):
            raise UsageError(f"{source.path}: a worker's folder is another: give an absolute path or a URL")
    evidence.methods += map(campaign.describe_method, dict.fromkeys(job.method for job in jobs))
    evidence.machines.clear()
    evidence.sources += _described(sources, fleet)
    rounds: dict[tuple[str, int], list[Job]] = {}
    for job in jobs:
        rounds.setdefault((job.source.id, job.run), []).append(job)
    tasks = [Task(measure_round, group[0].source, (tuple(group),)) for group in rounds.values()]
    with closing(run(tasks, fleet)) as outcomes:
        for task, outcome in outcomes:
            found = _round(task, outcome, evidence.machines)
            evidence.codec += found.codec
            for row in found.rows:
                evidence.runs.append(row)
                on_row(row)


def run(tasks: Sequence[Task], fleet: Fleet, deserted_s: float = DESERTED_S) -> Generator[tuple[Task, Outcome]]:
    """Each task once, with what became of it, in the order in which they end.

    To leave the iteration, by an exception too, drops what has not begun.

    Args:
        tasks: submitted in this order.
        fleet: where.
        deserted_s: how long there may be no worker at all; then what is left has failed.
    """
    futures: dict[Future[Outcome], Task] = {}
    try:
        for task in tasks:
            futures[fleet.executor.submit(perform, task, __version__)] = task
        pending, seen = set(futures), time.monotonic()
        while pending:
            done, pending = wait(pending, _LOOK_S, FIRST_COMPLETED)
            for future in done:
                yield futures[future], _outcome(future)
            if done or fleet.count() > 0:
                seen = time.monotonic()
            elif time.monotonic() - seen > deserted_s:
                for future in pending:
                    yield futures[future], Outcome(error=f"no worker for {deserted_s:.0f} s")
                return
    finally:
        for future in futures:
            future.cancel()


def _described(sources: Sequence[SourceSpec], fleet: Fleet) -> list[dict[str, Any]]:
    """All sources as the workers see them, in their order."""
    found, wrong = {}, []
    for task, outcome in run([Task(campaign.describe_source, source) for source in sources], fleet):
        if outcome.error is None:
            found[task.source.id] = outcome.value
        else:
            wrong.append(f"{task.source.id}: {outcome.error}")
    if wrong:
        raise RamError(f"{len(wrong)} of {len(sources)} sources cannot be read: {'; '.join(wrong)}")
    return [found[source.id] for source in sources]


def _round(task: Task, outcome: Outcome, machines: list[dict[str, Any]]) -> Round:
    """A round's rows, under their machine's name in the document."""
    name = _name(outcome.machine, machines) if outcome.machine else ""
    if outcome.error is not None:
        return Round([lost(job, outcome.error, name) for job in task.arguments[0]], [])
    found: Round = outcome.value
    return Round(
        [replace(row, machine=name) for row in found.rows], [{**rate, "machine": name} for rate in found.codec]
    )


def _name(described: dict[str, Any], machines: list[dict[str, Any]]) -> str:
    """A machine's name, which is another's only if all that is said of it is the other's."""
    plain, number = described["id"], 1
    while True:
        mine = {**described, "id": plain if number == 1 else f"{plain} ({number})"}
        known = next((m for m in machines if m["id"] == mine["id"]), None)
        if known is None:
            machines.append(mine)
        if known is None or known == mine:
            return str(mine["id"])
        number += 1


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result(0)
    except CancelledError:
        return Outcome(error="the scheduler gave it up")
    except Exception as e:  # the executor's own: a worker that died too often, a module that it does not have
        return Outcome(error=f"{type(e).__name__}: {e}")
