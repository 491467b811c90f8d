"""A selection of the matrix: real migrations by the command line, in which something goes wrong at a drawn moment.

``make faults RUNS=1000 SEED=1`` tries as many as one likes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from faults.__main__ import describe
from faults.judge import classify, judge
from faults.matrix import FAULTS, ROLES, draw
from faults.run import Run, methods
from faults.shim import NoCompiler
from faults.table import HEADS

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


def test_every_fault_is_drawn_at_every_role() -> None:
    drawn = {(plan.fault.name, plan.role) for plan in (draw(1, n, ("none",)) for n in range(2000))}
    assert drawn == {(fault.name, role) for fault in FAULTS for role in fault.roles}
    assert {role for _, role in drawn} == set(ROLES)


def test_the_table_of_the_documentation_is_of_these_faults_and_has_none_that_was_told_wrongly() -> None:
    lines = (Path(__file__).parents[2] / "docs/faults-table.inc").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    head, *rows, total = cells
    assert head == list(HEADS)
    assert {row[0] for row in rows} <= {fault.name for fault in FAULTS}
    assert sum(int(row[3]) for row in rows) == int(total[3])
    assert [row for row in rows if row[-1] != "0"] == []
