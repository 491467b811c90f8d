"""Stored results, of one machine or many, as one group for each source on each machine.

A machine or a source of several documents is the same if all that is said of it is, its anatomy aside. A run that is
in two documents counts once; runs that differ in nothing but their number are taken together again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from multifd.bench.job import Figures, Row, summarise
from multifd.bench.report.crossover import Curve
from multifd.errors import UsageError

Document = Mapping[str, Any]
"""A checked result, as ``result.schema.json`` describes it; so are the parts of one below."""


@dataclass
class Group:
    """What was measured of one source on one machine."""

    machine: Document
    source: Document
    runs: list[Row] = field(default_factory=list)
    codec: list[Document] = field(default_factory=list)

    def rows(self) -> list[Document]:
        """Repetitions taken together, those without a verified run left out."""
        return [row for row in summarise(self.runs) if row["figures"] is not None]

    def failures(self) -> list[Row]:
        """Runs that failed."""
        return [run for run in self.runs if run.figures is None]

    def curves(self) -> list[Curve]:
        """Time against link by method, each link with the channels that were fastest there."""
        rows = self.rows()
        return [_curve(method, [row for row in rows if row["method"] == method]) for method in self.methods()]

    def methods(self) -> list[str]:
        """Those that have a verified run, in the order of their first."""
        return list(dict.fromkeys(row["method"] for row in self.rows()))

    def best(self, method: str, link: float | None) -> Document | None:
        """The fastest row of a method at a link that was measured; None if there is none."""
        rows = [r for r in self.rows() if r["method"] == method and r["link_bits_per_s"] == link]
        return min(rows, key=median("total_time_ms"), default=None)


def grouped(documents: Sequence[Document]) -> list[Group]:
    """Every pair of a source and a machine with at least one run, in the order of the documents."""
    groups: dict[str, Group] = {}
    seen: set[str] = set()
    for document in documents:
        machines = {m["id"]: m for m in document["machines"]}
        sources = {s["id"]: s for s in document["sources"]}
        for run in document["runs"]:
            if not run["machine"]:
                continue
            group = _group(groups, machines, sources, run)
            mark = _mark(group.machine, run)
            if mark not in seen:
                seen.add(mark)
                group.runs.append(_row(run))
        for rate in document["codec"]:
            group = _group(groups, machines, sources, rate)
            if not any(known["method"] == rate["method"] for known in group.codec):
                group.codec.append(rate)
    return [group for group in groups.values() if group.runs]


def lost(documents: Sequence[Document]) -> list[Row]:
    """Runs that came to no machine: a cluster had none left, or lost each that tried."""
    return [_row(run) for document in documents for run in document["runs"] if not run["machine"]]


def median(name: str) -> Callable[[Document], float]:
    """A function from a row to the median of one of its figures."""
    return lambda row: float(row["figures"][name]["median"])


def _group(groups: dict[str, Group], machines: Document, sources: Document, part: Document) -> Group:
    machine, source = _named(machines, "machine", part), _named(sources, "source", part)
    mark = _mark(machine, {key: value for key, value in source.items() if key != "anatomy"})
    group = groups.setdefault(mark, Group(machine, source))
    if group.source["anatomy"] is None:
        group.source = source
    return group


def _named(described: Document, kind: str, part: Document) -> Document:
    try:
        found: Document = described[part[kind]]
    except KeyError:
        raise UsageError(f"{kind} {part[kind]!r} was measured, and is not among the {kind}s described") from None
    return found


def _row(run: Document) -> Row:
    """A run as it was; keys that are not known here are left out."""
    figures = run["figures"]
    known = {name: run[name] for name in Row.__dataclass_fields__ if name in run and name != "figures"}
    return Row(
        **{"started": "", **known},
        figures=None if figures is None else Figures(**{name: figures[name] for name in Figures.__dataclass_fields__}),
    )


def _curve(method: str, rows: Sequence[Document]) -> Curve:
    slowest_first = sorted(rows, key=median("total_time_ms"), reverse=True)
    times = {row["link_bits_per_s"]: median("total_time_ms")(row) / 1e3 for row in slowest_first}
    free_s = times.pop(None, None)
    return Curve(method, median("transferred_bytes")(slowest_first[-1]), free_s, times)


def _mark(*parts: Document) -> str:
    return json.dumps(parts, sort_keys=True)
