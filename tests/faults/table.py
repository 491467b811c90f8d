"""What became of the trials of a run, as tables of the documentation."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence

from faults.fault import FAULTS
from faults.judge import classify, judge
from faults.outcome import Outcome
from faults.way import ROLES, WAYS

COLUMNS = ("complete", "kept", "unknown", "missed", "wrong")
FAULT_HEADS = ("what happens", "where", "trials", *COLUMNS)
WAY_HEADS = ("the memory goes from, to", "trials", *COLUMNS)


def text(outcomes: Sequence[Outcome], seed: int, day: datetime.date) -> str:
    """A row for each fault and role that was tried, and one for each way."""
    tried = [(outcome, word) for outcome in outcomes if (word := _word(outcome)) != "skipped"]
    by_fault = Counter((outcome.plan.fault.name, outcome.plan.role, word) for outcome, word in tried)
    by_way = Counter((outcome.plan.way.words, word) for outcome, word in tried)
    lines = [f"{len(tried)} trials of seed {seed}, {day.isoformat()}.", "", *_head(FAULT_HEADS)]
    for fault in FAULTS:
        for role in ROLES:
            lines += _rows((fault.name, role), [by_fault[fault.name, role, word] for word in COLUMNS])
    lines += _rows(("all", ""), [sum(word == column for _, word in tried) for column in COLUMNS])
    lines += ["", *_head(WAY_HEADS)]
    for way in WAYS:
        lines += _rows((way.words,), [by_way[way.words, word] for word in COLUMNS])
    return "\n".join(lines) + "\n"


def _word(outcome: Outcome) -> str:
    return "wrong" if judge(outcome) else classify(outcome)


def _head(cells: Sequence[str]) -> list[str]:
    return [_row(cells), "|---" * len(cells) + "|"]


def _rows(names: Sequence[str], counts: Sequence[int]) -> list[str]:
    """None for what was not tried."""
    return [_row((*names, sum(counts), *counts))] if sum(counts) else []


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
