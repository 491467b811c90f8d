"""Whether what the ends of a migration say is so: the promises of docs/faults.md, over what can be seen of a trial.

Rules of this file: it looks at an `Outcome` and at nothing else, so that it can be tried on outcomes that never were.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

from faults.outcome import End, Outcome
from faults.way import FILES

from multifd.errors import exit_statuses

PARTS = {".out.multifd-part", ".out.sha256.multifd-part", ".out.multifd-ram", "..out.multifd-ram.multifd-part"}
"""What a killed process may leave at the place; the next one removes it."""
STATES = {0: "completed", 7: "unknown", 130: "cancelled", 143: "cancelled"}
"""What a document says at an exit status; else it is ``failed``."""


def classify(outcome: Outcome) -> str:
    """What became of the migration, in a word of the table."""
    if outcome.skipped:
        return "skipped"
    if not outcome.fired:
        return "missed"
    if any(end.told == 7 for end in outcome.ends.values()):
        return "unknown"
    source = outcome.ends.get("source")
    if outcome.is_there and (source is None or source.told == 0 or source.is_killed):
        return "complete"
    return "kept"


def judge(outcome: Outcome) -> list[str]:
    """What is wrong with it; empty if nothing."""
    if outcome.skipped:
        return []
    found = [problem for end in outcome.ends.values() for problem in _own(end)]
    return [*found, *_files(outcome), *_fate(outcome), *_expected(outcome)]


def _own(end: End) -> Iterator[str]:
    """What one end does by itself."""
    if end.status is None and end.kind != "qemu":
        yield f"the {end.role} does not end"
        return
    if "Traceback" in end.err:
        yield f"the {end.role} shows a traceback"
    if end.is_killed or end.kind == "qemu" or _is_too_early(end):
        return
    if end.status not in exit_statuses():
        yield f"the {end.role} ends with status {end.status}, which is not documented"
    if end.status in (1, 2, 3):
        yield f"the {end.role} ends with status {end.status}, which nothing here can cause"
    documents = end.documents
    if len(end.printed) != len(end.out.splitlines()):
        yield f"the {end.role} prints what is no JSON: {end.out[:200]!r}"
    if end.kind == "service" and not documents:
        return  # nobody came
    if len(documents) != 1:
        yield f"the {end.role} prints {len(documents)} documents, expected one"
        return
    state = documents[0]["status"]
    if end.kind == "command" and state != STATES.get(end.status, "failed"):
        yield f"the {end.role} ends with status {end.status}, but its document says {state}"
    if state != "completed" and not documents[0]["error"]:
        yield f"the {end.role} fails without a word"
    if end.was_told_to_stop and _has_begun(documents[0]):
        yield f"the {end.role} does not notice that its source is gone"


def _has_begun(document: dict[str, Any]) -> bool:
    """Whether a source had come: a destination knows its memory then, and a relay's time runs.

    A command that was ended among its arguments knows of neither.
    """
    return bool(document["ram_bytes"] if "ram_bytes" in document else document.get("total_time_ms"))


def _is_too_early(end: End) -> bool:
    """Whether a signal ended the interpreter before it had come to the command."""
    return end.status in (-signal.SIGTERM, -signal.SIGINT) and not end.out and not end.err


def _files(outcome: Outcome) -> Iterator[str]:
    if outcome.stray:
        yield f"under the final name is {outcome.stray}"
    if outcome.source_changed:
        yield "the source's file has changed"
    if outcome.plan.replaces and outcome.plan.way.destination in FILES and not (outcome.is_old or outcome.is_there):
        yield "what was there before is gone, and no complete memory in its place"
    if outcome.old_digests == "others":
        yield "the file that was there before has digests of another one beside it"
    if outcome.old_digests == "gone" and not (outcome.writer.is_killed or outcome.plan.fault.is_of_files):
        yield "the file that was there before has lost its digests"
    allowed = set()
    if outcome.writer.is_killed:
        allowed |= PARTS
    if "destination" in outcome.ends and outcome.ends["destination"].is_killed:
        allowed.add("socket")
    if "relay" in outcome.ends and outcome.ends["relay"].is_killed:
        allowed.add("relay")
    if any(end.is_killed for end in outcome.ends.values()):
        # Of a process that was killed while it made its meeting place, until the next one makes one (docs/stored.md).
        allowed |= {name for name in outcome.leftovers if name.startswith("multifd-scratch-")}
    if left := sorted(set(outcome.leftovers) - allowed):
        yield f"left behind: {', '.join(left)}"
    if outcome.retry:
        yield f"the next migration to the same place: {outcome.retry}"


def _fate(outcome: Outcome) -> Iterator[str]:
    """Words and statuses about the memory, against where it is."""
    for end in outcome.ends.values():
        if end.told is None or end.is_killed or _is_too_early(end):
            continue
        yield from _told(end, outcome)
    source, writer = outcome.ends.get("source"), outcome.writer
    if outcome.plan.way.source == "arena" and source is not None and not source.is_killed:
        yield from _writers(source)
    if source is not None and source.told == 0 and writer.told not in (0, -signal.SIGKILL):
        yield f"the source says success, the {writer.role} ends with status {writer.told}"


def _told(end: End, outcome: Outcome) -> Iterator[str]:
    if end.told == 0 and not outcome.is_there:
        yield f"the {end.role} says success, and the memory is not there"
    if end.kind == "qemu":
        return  # whatever else it says is its own
    if outcome.plan.way.destination == "arena":
        return  # what its content is, success apart, is not promised
    if outcome.is_there and end.told not in (0, 7):
        yield f"the {end.role} says failure (status {end.told}), and the memory is there"
    claims = ("intact and the good copy", "is not kept", "good copy is the source's")
    for claim in claims:
        if claim in end.words and outcome.is_there:
            yield f"the {end.role} says {claim!r}, and the memory is there"
    if "complete and durable" in end.words and not outcome.is_there:
        yield f"the {end.role} says that the memory is complete, and it is not there"
    if end is outcome.writer and end.told == 7 and end.role == "destination":
        yield "the destination does not know itself whether it has the memory"


def _writers(source: End) -> Iterator[str]:
    if "writers:" not in source.err:
        if not _is_too_early(source) and any(map(_has_begun, source.documents)):
            yield "the source does not say whether its writers run"
        return
    expected = "paused" if source.status in (0, 7) else "running"
    if f"writers: {expected}" not in source.err:
        yield f"the source ends with status {source.status}, expected its writers to be {expected}"


def _expected(outcome: Outcome) -> Iterator[str]:
    """What has to become of it."""
    plan = outcome.plan
    must = plan.fault.must if outcome.fired else "complete"
    victim = outcome.ends.get(plan.role)
    statuses = {role: end.told for role, end in outcome.ends.items()}
    if must == "complete" and not (outcome.is_there and set(statuses.values()) == {0}):
        yield f"expected to complete, statuses {statuses}, the memory is {'there' if outcome.is_there else 'not there'}"
    if must == "fail" and outcome.is_there:
        yield f"expected to fail, statuses {statuses}"
    if plan.fault.is_of_files and outcome.fired and not outcome.is_there and (victim is None or victim.status != 6):
        yield f"expected status 6 of the {plan.role}, whose disk failed, statuses {statuses}"
    if plan.signal and outcome.fired and victim is not None:
        expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
        wrong = set(expected.values()) - {expected[plan.signal]}
        if victim.status in wrong and not victim.was_told_to_stop:
            yield f"{plan.signal.name} ends the {plan.role} with status {victim.status}"
