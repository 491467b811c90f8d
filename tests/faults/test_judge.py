"""The judge finds what is told wrongly: outcomes that must never be, each one away from a good one."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable

import pytest
from faults.fault import FAULTS, Fault
from faults.judge import classify, judge
from faults.matrix import Plan
from faults.outcome import End, Outcome
from faults.way import WAYS

KILL, TERM, _, *OTHERS = FAULTS
DISK, RENAME = (next(fault for fault in OTHERS if fault.name == name) for name in ("EIO on write", "EIO on rename"))
INTACT, NOT_KEPT = "the memory here is intact and the good copy", "what was received is not kept"


def end(role: str, status: int, error: str | None = None, note: str = "", state: str = "", **more: object) -> End:
    """An end with its document."""
    state = state or {0: "completed", 7: "unknown", 130: "cancelled", 143: "cancelled"}.get(status, "failed")
    document = {"status": state, "error": error, "notes": [note] * bool(note), "ram_bytes": 4096, **more}
    return End(role, status=status, out=json.dumps(document) + "\n")


def outcome(fault: Fault, role: str, *ends: End, way: str = "raw image to raw image", **facts: object) -> Outcome:
    plan = Plan(1, 1, fault, role, next(one for one in WAYS if one.words == way))
    facts = {"fired": True, "is_old": not facts.get("is_there"), **facts}
    return Outcome(plan, {one.role: one for one in ends}, **facts)  # type: ignore[arg-type]


def completed() -> Outcome:
    return outcome(KILL, "source", end("destination", 0), end("source", 0), is_there=True, fired=False)


def failed() -> Outcome:
    return outcome(DISK, "destination", end("destination", 6, "disk", NOT_KEPT), end("source", 4, "it failed", INTACT))


def killed() -> Outcome:
    return outcome(KILL, "destination", End("destination", status=-signal.SIGKILL), end("source", 7, "look there"))


@pytest.mark.parametrize(
    ("good", "word"), [(completed, "missed"), (failed, "kept"), (killed, "unknown")]
)  # fmt: skip
def test_a_good_one(good: Callable[[], Outcome], word: str) -> None:
    assert judge(good()) == []
    assert classify(good()) == word


def with_end(of: Outcome, one: End) -> Outcome:
    return dataclasses.replace(of, ends={**of.ends, one.role: one})


def with_facts(of: Outcome, **facts: object) -> Outcome:
    return dataclasses.replace(of, **facts)  # type: ignore[arg-type]


WRONG = {
    "success told without the memory": (with_facts(completed(), is_there=False, is_old=True), "says success"),
    "failure told with the memory": (with_facts(failed(), is_there=True, is_old=False), "says failure"),
    "called intact while the other has it": (
        with_facts(with_end(killed(), end("source", 7, "x", INTACT)), is_there=True, is_old=False), "intact",
    ),
    "a half file under the name": (with_facts(failed(), stray="other memory", is_old=False), "under the final name"),
    "the old file is gone": (with_facts(failed(), is_old=False), "what was there before is gone"),
    "the old file's digests are gone": (
        with_facts(outcome(TERM, "source", end("destination", 5, "x", NOT_KEPT), end("source", 143, "x", INTACT)),
                   old_digests="gone"), "has lost its digests",
    ),
    "the old file has others": (with_facts(failed(), old_digests="others"), "digests of another one"),
    "a part file stays": (with_facts(failed(), leftovers=(".out.multifd-part",)), "left behind"),
    "the source's file is written to": (with_facts(failed(), source_changed=True), "source's file has changed"),
    "the next migration fails": (with_facts(killed(), retry="status 6"), "next migration"),
    "it hangs": (with_end(failed(), End("source")), "does not end"),
    "a traceback": (with_end(failed(), dataclasses.replace(end("source", 4, "x"), err="Traceback (most")), "traceback"),
    "an unknown status": (with_end(failed(), end("source", 99, "x")), "not documented"),
    "a bug is told": (with_end(failed(), end("destination", 1, "a bug in multifd")), "nothing here can cause"),
    "a document that says another thing": (with_end(failed(), end("source", 4, "x", state="completed")), "document"),
    "two documents": (with_end(failed(), End("source", status=4, out='{"status": "failed"}\n' * 2)), "prints 2"),
    "no word": (with_end(failed(), end("source", 4)), "without a word"),
    "no JSON": (with_end(failed(), End("source", status=4, out="hello")), "no JSON"),
    "the source succeeds alone": (
        with_facts(with_end(failed(), end("source", 0)), is_there=True, is_old=False), "the source says success, the",
    ),
    "a rename that failed is no failure": (
        outcome(RENAME, "destination", end("destination", 0), end("source", 0), is_there=True), "expected to fail",
    ),
    "a disk that failed is told as a broken connection": (
        outcome(DISK, "destination", end("destination", 5, "x", NOT_KEPT), end("source", 4, "x", INTACT)),
        "expected status 6 of the destination",
    ),
    "a source that stores says success without the memory": (
        outcome(KILL, "source", end("source", 0), way="raw image, stored as streams", fired=False, is_old=True),
        "says success",
    ),
    "a relay that keeps says failure with the memory": (
        outcome(KILL, "source", end("relay", 5, "x"), end("source", 7, "x"), way="raw image, kept by a relay",
                is_there=True), "the relay says failure",
    ),
    "a service says success without the memory": (
        with_end(failed(), dataclasses.replace(end("relay", 0, route="one"), kind="service")), "the relay says success",
    ),
    "a QEMU that is a source says success alone": (
        outcome(KILL, "destination", end("destination", 5, "x", NOT_KEPT), End("source", kind="qemu", status=0),
                way="QEMU to capture"), "the source says success, the destination",
    ),
    "a private folder stays": (
        with_facts(failed(), leftovers=("multifd-scratch-abc",)), "left behind: multifd-scratch-abc",
    ),
    "nothing happens, and it fails": (with_facts(failed(), fired=False), "expected to complete"),
    "SIGTERM tells Ctrl-C": (
        outcome(TERM, "source", end("destination", 5, "x", NOT_KEPT), end("source", 130, "x", INTACT)), "SIGTERM ends",
    ),
    "a destination that does not notice": (
        with_end(failed(), dataclasses.replace(end("destination", 143, "x"), was_told_to_stop=True)), "not notice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_one(name: str) -> None:
    wrong, words = WRONG[name]
    assert any(words in problem for problem in judge(wrong)), judge(wrong)


@pytest.mark.parametrize(("status", "state"), [(0, "running"), (7, "running"), (5, "paused")])
def test_writers_of_live_memory_in_the_wrong_state(status: int, state: str) -> None:
    source = dataclasses.replace(end("source", status, "x" if status else None), err=f"writers: {state}\n")
    destination = end("destination", 0) if status in (0, 7) else end("destination", 5, "x", NOT_KEPT)
    is_there = status in (0, 7)
    found = judge(outcome(KILL, "source", destination, source, way="live arena to live arena", is_there=is_there))
    assert any("its writers" in problem for problem in found), found
