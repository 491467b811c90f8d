"""Many measured migrations: planned, run one after the other, and put together as a result document.

Interleaved: the first run of everything, then the second, so that what changes on the machine meanwhile touches all
alike.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from multifd import registry
from multifd._version import __version__
from multifd.bench import anatomy, codec_rate, machine, schema, synthetic
from multifd.bench.job import Job, Row, SourceSpec, summarise
from multifd.bench.measure import materialised, measure_one
from multifd.errors import UsageError
from multifd.ram.block import Source
from multifd.ram.image import open_source
from multifd.ram.stored import StoredSource

Measure = Callable[[Job], Row]


def plan(
    sources: Sequence[SourceSpec],
    methods: Sequence[str],
    channels: Sequence[int] = (2,),
    links: Sequence[int | None] = (None,),
    runs: int = 3,
    timeout_s: float = 60.0,
) -> list[Job]:
    """The jobs of a comparison, in the order to measure: every combination once, then all again.

    Args:
        sources, methods: at least one of each.
        channels: connections besides main.
        links: the sender's limit, bits a second; None is unlimited.
        runs: how often each.
        timeout_s: how long all connections of a migration may be silent.
    """
    return [
        Job(source, method, count, link, run, timeout_s)
        for run, source, link, count, method in itertools.product(range(1, runs + 1), sources, links, channels, methods)
    ]


@dataclass
class Evidence:
    """What was found out so far; it is kept however the measuring ends."""

    command: Sequence[str] = ()
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    is_cancelled: bool = False
    machines: list[dict[str, Any]] = field(default_factory=lambda: [machine.describe()])
    sources: list[dict[str, Any]] = field(default_factory=list)
    methods: list[dict[str, Any]] = field(default_factory=list)
    codec: list[dict[str, Any]] = field(default_factory=list)
    runs: list[Row] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The result document, as result.schema.json has it."""
        status = "completed"
        if self.is_cancelled:
            status = "cancelled"
        elif any(run.error for run in self.runs):
            status = "failed"
        return {
            "schema": schema.RESULT,
            "version": schema.VERSION,
            "created": self.created,
            "command": list(self.command),
            "multifd": __version__,
            "status": status,
            "machines": self.machines,
            "sources": self.sources,
            "methods": self.methods,
            "runs": [run.as_dict() for run in self.runs],
            "rows": summarise(self.runs),
            "codec": self.codec,
        }


def gather(
    jobs: Iterable[Job],
    evidence: Evidence,
    measure: Measure = measure_one,
    on_row: Callable[[Row], None] = lambda row: None,
) -> None:
    """Measure, one job after the other.

    Args:
        jobs: in this order.
        evidence: gets each row as soon as there is one, so that nothing is lost when this is interrupted.
        measure: `measure_one`, or what does the same elsewhere.
        on_row: told of each.

    Raises:
        MultifdError: a job cannot be meant. Whatever else is raised inside passes through.
    """
    for job in jobs:
        row = measure(job)
        evidence.runs.append(row)
        on_row(row)


def investigate(
    jobs: Sequence[Job],
    evidence: Evidence,
    measure: Measure = measure_one,
    on_row: Callable[[Row], None] = lambda row: None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """All that a result document holds of these jobs: methods, sources with their anatomy, bare rates, migrations.

    What is wrong with a method or a source is found before the first migration. What is to be made is made once.

    Args:
        jobs, evidence, measure, on_row: as `gather` has them.
        say: told in words what happens.

    Raises:
        MultifdError: a method cannot be had, or a source cannot be read, or is too large for this machine.
    """
    methods = list(dict.fromkeys(job.method for job in jobs))
    specs = {job.source.id: job.source for job in jobs}.values()
    for spec in specs:
        check_source(spec)
    evidence.methods += map(describe_method, methods)
    with contextlib.ExitStack() as stack:
        made: dict[str, SourceSpec] = {}
        for spec in specs:
            say(f"{spec.id}: looking at its pages")
            made[spec.id] = stack.enter_context(materialised(spec))
            evidence.sources.append(describe_source(made[spec.id]))
            rates = (rate_codec(made[spec.id], method) for method in methods)
            evidence.codec += [rate for rate in rates if rate is not None]
        gather((replace(job, source=made[job.source.id]) for job in jobs), evidence, measure, on_row)


def check_source(spec: SourceSpec) -> None:
    """Look whether a source can be measured here.

    Raises:
        MultifdError: it cannot be read, or its RAM does not fit twice into what memory is free.
    """
    if not spec.path:
        needed = 2 * synthetic.parse(spec.synthetic)[1]
    else:
        with materialised(spec) as made, opened(made) as source:
            nbytes = sum(block.used_length for block in source.blocks)
            # Zero pages take no memory, and are holes of a file as a rule.
            needed = 2 * min(nbytes, os.stat(made.path).st_blocks * 512)
    free = machine.free_memory_bytes()
    if needed > free:
        raise UsageError(
            f"{spec.id}: both ends together need {needed >> 20} MiB of memory, {free >> 20} MiB are free here"
        )


def describe_source(spec: SourceSpec, on_progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """What a source is, with its anatomy: an entry of a result document's ``sources``.

    Args:
        spec: a file here, or bytes that are made now.
        on_progress: called with the share that is done, 0 to 1.

    Raises:
        MultifdError: it cannot be read, or made.
    """
    with materialised(spec) as made, opened(made) as source:
        return {
            "id": spec.id,
            "format": "synthetic" if spec.synthetic else format_of(source),
            "machine_type": source.machine.name,
            "page_size": source.machine.page_size,
            "ram_bytes": sum(block.used_length for block in source.blocks),
            "blocks": [{"idstr": block.idstr, "used_length": block.used_length} for block in source.blocks],
            "anatomy": anatomy.dissect(source, on_progress),
        }


def rate_codec(spec: SourceSpec, method: str) -> dict[str, Any] | None:
    """The bare rate of a method on a source: see `multifd.bench.codec_rate.measure`."""
    with materialised(spec) as made, opened(made) as source:
        return codec_rate.measure(spec.id, source, method)


def describe_method(spec: str) -> dict[str, Any]:
    """A method as it runs here: an entry of a result document's ``methods``.

    Raises:
        MultifdError: it cannot be had.
    """
    method = registry.load_method(spec)
    info = next(info for info in registry.describe() if info.name == method.name)
    return {
        "spec": spec,
        "name": method.name,
        "engine": method.availability(method.options).engine,
        "distribution": f"{info.distribution} {info.version}".strip(),
    }


@contextlib.contextmanager
def opened(spec: SourceSpec) -> Iterator[Source]:
    """A source's file, open.

    Raises:
        RamError: it cannot be read, or is not sound.
    """
    source = open_source(spec.path, format=spec.format, page_size=spec.page_size)
    try:
        yield source
    finally:
        source.close()


def format_of(source: Source) -> str:
    """A source's format, as documents name it."""
    if not isinstance(source, StoredSource):
        return "raw"
    return "libvirt" if source.libvirt else source.form
