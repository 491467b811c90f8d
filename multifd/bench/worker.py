"""What a worker does: one task, where its source lies, alone on its host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from multifd._version import __version__
from multifd.bench import campaign, host, machine
from multifd.bench.job import Job, Row, SourceSpec
from multifd.bench.measure import materialised, measure_one
from multifd.errors import MultifdError


@dataclass(frozen=True)
class Task:
    """A call to be made on a worker; picklable.

    Args:
        function: at the top of a module that the workers have, too; called with `source` and `arguments`.
        source: as it was given; a path is the worker's, a URL everybody's.
        arguments: the rest.
    """

    function: Callable[..., Any]
    source: SourceSpec
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a task; picklable."""

    value: Any = None
    """What the function returned; None if there is an error."""
    machine: dict[str, Any] = field(default_factory=dict)
    """The host that it ran on, see `multifd.bench.machine.describe`; empty if it did not come so far."""
    error: str | None = None


def perform(task: Task, version: str = __version__) -> Outcome:
    """Carry out a task on this host.

    Args:
        task: what.
        version: multifd's, of whoever wants it done.
    """
    described = machine.describe()
    if version != __version__:
        return Outcome(machine=described, error=f"multifd {__version__} on {described['id']}, expected {version}")
    try:
        with host.alone():
            return Outcome(task.function(task.source, *task.arguments), described)
    except MultifdError as e:
        return Outcome(machine=described, error=str(e))


@dataclass(frozen=True)
class Round:
    """Every combination of one source, measured once on one host; picklable."""

    rows: list[Row]
    codec: list[dict[str, Any]]
    """Bare codec rates, of a first round."""


def measure_round(source: SourceSpec, jobs: Sequence[Job]) -> Round:
    """Measure what is compared on the same host, one after the other.

    Args:
        source: of all `jobs`.
        jobs: that differ in their methods, channels and links.

    Raises:
        MultifdError: the source cannot be had.
    """
    with materialised(source) as made:
        rows = [_measured(replace(job, source=made), source) for job in jobs]
        methods = dict.fromkeys(row.method for row in rows if row.run == 1 and row.figures)
        rates = [campaign.rate_codec(made, method) for method in methods]
    return Round(rows, [rate for rate in rates if rate is not None])


def lost(job: Job, error: str, host: str = "") -> Row:
    """A job that has no figures."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    return Row(job.source.id, job.method, job.channels, job.link_bits_per_s, host, job.run, started, "failed", error)


def _measured(job: Job, source: SourceSpec) -> Row:
    """A job's row, in which the source has the name that its reader knows."""
    try:
        row = measure_one(job)
    except MultifdError as e:  # such as a method that this host alone does not have
        row = lost(job, str(e), machine.name())
    return row if row.error is None else replace(row, error=row.error.replace(job.source.path, source.id))
