"""A selection of the matrix: real migrations by the command line, in which something goes wrong at a drawn moment.

``make faults RUNS=1000 SEED=1`` tries as many as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.__main__ import describe
from faults.fault import FAULTS
from faults.judge import classify, judge
from faults.matrix import draw
from faults.run import Run, methods
from faults.shim import NoCompiler
from faults.table import FAULT_HEADS, WAY_HEADS
from faults.way import ROLES, WAYS

SEED, TRIALS = 20, 36


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    try:
        yield Run(tmp_path_factory.mktemp("faults"), methods())
    except NoCompiler as e:
        pytest.skip(str(e))


@pytest.mark.timeout(600)
def test_what_the_ends_say_is_so_whatever_goes_wrong(run: Run) -> None:
    outcomes = list(run.trials(SEED, range(TRIALS), at_once=4))
    wrong = [(describe(outcome), problems) for outcome in outcomes if (problems := judge(outcome))]
    assert not wrong, "\n".join(f"{text}\n{problems}" for text, problems in wrong)
    found = {classify(outcome) for outcome in outcomes}
    assert {"complete", "kept"} <= found
    assert sum(outcome.fired for outcome in outcomes) > TRIALS // 2


def test_a_trial_is_the_same_every_time() -> None:
    assert [draw(7, n, ("none", "zstd")) for n in range(50)] == [draw(7, n, ("none", "zstd")) for n in range(50)]


def test_every_fault_is_drawn_at_every_role_in_every_way() -> None:
    plans = [draw(1, n, ("none",)) for n in range(4000)]
    drawn = {(plan.fault.name, plan.role) for plan in plans}
    assert drawn == {(fault.name, role) for fault in FAULTS for way in WAYS for role in fault.roles(way)}
    assert {role for _, role in drawn} == set(ROLES)
    assert {plan.way for plan in plans} == set(WAYS)
    assert {plan.relay for plan in plans} == {"", "once", "service"}
    assert {plan.held.role for plan in plans if plan.held is not None} == {"destination", "relay"}


def test_the_tables_of_the_documentation_are_of_these_trials_and_none_was_told_wrongly() -> None:
    text = (Path(__file__).parents[2] / "docs/faults-table.inc").read_text()
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("| ")]
        for part in text.split("\n\n")
    ]
    first, (head, *faults, total), (way_head, *ways) = tables
    assert first == []
    assert (head, way_head) == (list(FAULT_HEADS), list(WAY_HEADS))
    assert {row[0] for row in faults} <= {fault.name for fault in FAULTS}
    assert {row[0] for row in ways} <= {way.words for way in WAYS}
    assert {sum(int(row[2]) for row in faults), sum(int(row[1]) for row in ways), int(total[2])} == {
        int(text.split()[0])
    }
    assert [row for row in (*faults, *ways) if row[-1] != "0"] == []
