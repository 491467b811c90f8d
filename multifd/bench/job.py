"""What is measured and what came out, as plain values that travel to another process or host."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceSpec:
    """RAM to be migrated: a file, or bytes that are made when they are wanted."""

    id: str
    """What rows name; as it was given on the command line."""
    path: str = ""
    """The file, on the host that measures; empty: it is made from `synthetic`."""
    format: str = "auto"
    """As `multifd.sources.Image` has it."""
    synthetic: str = ""
    """KIND:SIZE, see `multifd.bench.synthetic`."""
    page_size: int = 4096
    """Bytes, of a raw image."""


@dataclass(frozen=True)
class Job:
    """One migration to be measured; picklable."""

    source: SourceSpec
    method: str = "none"
    """NAME or NAME:key=value,..."""
    channels: int = 2
    link_bits_per_s: int | None = None
    """The sender's own limit over all connections; None is unlimited."""
    run: int = 1
    """Tells apart what is repeated; 1 for the first."""
    timeout_s: float = 60.0
    """How long all connections may be silent, and either process be without an answer where no page moves."""


@dataclass(frozen=True)
class Figures:
    """Of one verified migration. Units are in the names; result.schema.json has the meanings."""

    total_time_ms: float
    setup_time_ms: float
    downtime_ms: float
    mbps: float
    pages_per_second: float
    ram_bytes_per_s: float
    transferred_bytes: int
    ram_bytes: int
    normal_pages: int
    zero_pages: int
    ratio: float
    source_cpu_s: float
    destination_cpu_s: float
    source_peak_bytes: int
    destination_peak_bytes: int


@dataclass(frozen=True)
class Row:
    """One migration that was measured; picklable."""

    source: str
    method: str
    channels: int
    link_bits_per_s: int | None
    machine: str
    """The host's name, see `multifd.bench.machine`."""
    run: int
    started: str
    """UTC, ISO 8601."""
    status: str
    """verified (the destination is equal, byte for byte) or failed."""
    error: str | None = None
    figures: Figures | None = None
    method_stats: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int, str]:
        """What it has in common with its repetitions."""
        return self.source, self.method, self.channels, self.link_bits_per_s or 0, self.machine

    def as_dict(self) -> dict[str, Any]:
        """A run of the result document."""
        return asdict(self)


def summarise(runs: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows of the result document: repetitions taken together, in the order of their first.

    Args:
        runs: in the order measured.
    """
    groups: dict[tuple[str, str, int, int, str], list[Row]] = {}
    for run in runs:
        groups.setdefault(run.key, []).append(run)
    return [_summary(group) for group in groups.values()]


def _summary(group: Sequence[Row]) -> dict[str, Any]:
    figures = [asdict(run.figures) for run in group if run.figures is not None]
    first = group[0]
    return {
        "source": first.source,
        "method": first.method,
        "channels": first.channels,
        "link_bits_per_s": first.link_bits_per_s,
        "machine": first.machine,
        "runs": len(figures),
        "failed": len(group) - len(figures),
        "figures": {name: spread([f[name] for f in figures]) for name in figures[0]} if figures else None,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range.

    Args:
        values: at least one.
    """
    return {"median": round(statistics.median(values), 6), "low": min(values), "high": max(values)}
