"""Stored results as one HTML file that needs nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from multifd.bench.report.crossover import ranking, span
from multifd.bench.report.group import Document, Group, grouped, lost
from multifd.bench.report.inline_svg import SERIES
from multifd.bench.report.quantity import nbytes, rate, seconds
from multifd.bench.report.section import failure, section
from multifd.errors import UsageError, printable

_LINKS = (1e9, 1e10, 2.5e10, 1e11)
"""Bits a second, of the table that compares groups: what servers have."""


def html(documents: Sequence[Document]) -> str:
    """A page about results: opens offline, runs nothing, fetches nothing.

    Args:
        documents: checked by `multifd.bench.schema`; of any number of machines.

    Raises:
        UsageError: nothing was measured, or the extra ``report`` is not installed.
    """
    groups = grouped(documents)
    if not groups:
        raise UsageError("no report: no migration is in these results")
    try:
        import matplotlib  # noqa: F401
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError as e:
        raise UsageError(f"a report needs {e.name}: pip install 'multifd[report]'") from e
    environment = Environment(
        loader=PackageLoader("multifd.bench.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    slots = _slots(groups)
    return environment.get_template("page.html.j2").render(
        title="Which method migrates this memory fastest?",
        slots=len(SERIES),
        sections=[section(group, slots, f"g{number}") for number, group in enumerate(groups)],
        links=[rate(link) for link in _LINKS],
        overview=[_overview(group) for group in groups] if len(groups) > 1 else [],
        lost=[f"{run.source}: {failure(run)}" for run in lost(documents)],
        machines=_distinct([_machine(group.machine) for group in groups]),
        commands=[_command(document) for document in documents],
        methods=_distinct([_method(method) for document in documents for method in document["methods"]]),
    )


def _visible(value: Any) -> Any:
    """Text without what turns its direction or is not seen; markup of our own, which is no plain str, stays."""
    return printable(value) if type(value) is str else value


def _slots(groups: Sequence[Group]) -> dict[str, int]:
    """A colour for each method, the same in the whole page, for as many as there are colours.

    The first and least coloured is for the method that makes the least of the bytes; then come those that are
    fastest anywhere, in the order of their links.
    """
    curves = [curve for group in groups for curve in group.curves()]
    if not curves:
        return {}
    best = [b.name for group in groups if (c := group.curves()) for b in ranking(c, *span(c))]
    largest = max(curves, key=lambda curve: curve.wire_bytes).name
    names = _distinct([largest, *best, *(curve.name for curve in curves)])
    return {name: slot for slot, name in enumerate(names[: len(SERIES)])}


def _overview(group: Group) -> list[str]:
    """The fastest method and its time at each of `_LINKS`."""
    cells = []
    for link in _LINKS:
        known = [curve for curve in group.curves() if curve.covers(link)]
        best = min(known, key=lambda curve: curve.seconds(link), default=None)
        cells.append("-" if best is None else f"{best.name}, {seconds(best.seconds(link))}")
    return cells


def _machine(machine: Document) -> dict[str, Any]:
    return {**machine, "memory": nbytes(machine["memory_bytes"])}


def _command(document: Document) -> dict[str, str]:
    state = "" if document["status"] == "completed" else f", {document['status']}"
    about = f"multifd {document['multifd']}, {document['created']}{state}"
    return {"about": about, "words": shlex.join(document["command"])}


def _method(method: Document) -> str:
    return f"{method['spec']}: {method['engine']}, {method['distribution']}"


def _distinct(values: list[Any]) -> list[Any]:
    return [value for number, value in enumerate(values) if value not in values[:number]]
