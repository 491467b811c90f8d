"""What became of the trials of a run, as a table of the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from faults.judge import classify, judge
from faults.matrix import FAULTS, MEDIA, ROLES
from faults.outcome import Outcome

COLUMNS = ("complete", "kept", "unknown", "missed", "wrong")
HEADS = ("what happens", "where", "memory in", "trials", *COLUMNS)


def text(outcomes: Sequence[Outcome], seed: int) -> str:
    """A row for each fault, role and medium that was tried."""
    found: Counter[tuple[str, str, str, str]] = Counter()
    for outcome in outcomes:
        plan = outcome.plan
        word = "wrong" if judge(outcome) else classify(outcome)
        found[plan.fault.name, plan.role, plan.medium, word] += 1
    tried = len(outcomes) - sum(count for key, count in found.items() if key[-1] == "skipped")
    lines = [f"{tried} trials of seed {seed}.", "", _row(HEADS), "|---" * len(HEADS) + "|"]
    for fault in FAULTS:
        for role in ROLES:
            for medium in MEDIA:
                counts = [found[fault.name, role, medium, word] for word in COLUMNS]
                if sum(counts):
                    lines.append(_row((fault.name, role, medium, sum(counts), *counts)))
    totals = [sum(count for key, count in found.items() if key[-1] == word) for word in COLUMNS]
    lines.append(_row(("all", "", "", sum(totals), *totals)))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
