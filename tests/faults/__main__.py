"""``PYTHONPATH=tests python -m faults --runs 1000 --seed 1``: as many trials, their table, and what is wrong.

What is wrong is told with the command that tries it again. ``--only N`` is that trial alone, with all that its ends
said; Ctrl-C ends it with those that were tried; ``--table FILE`` writes the table as the documentation includes it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults import table
from faults.judge import classify, judge
from faults.outcome import Outcome
from faults.run import Run, methods


def describe(outcome: Outcome) -> str:
    """All that is known of a trial."""
    lines = [f"trial {outcome.plan.number} of seed {outcome.plan.seed}: {outcome.plan.words}"]
    lines.append(f"  {classify(outcome)}, {outcome.seconds:.1f} s, there {outcome.is_there}, old {outcome.is_old}")
    for end in outcome.ends.values():
        lines.append(f"  {end.role}: status {end.status}")
        lines += [f"    {line}" for line in (end.out + end.err).splitlines()]
    return "\n".join(lines)


def tell(outcome: Outcome, problems: list[str], *, is_whole: bool) -> None:
    """What is wrong with a trial, or all of it."""
    if problems or is_whole:
        print(describe(outcome), flush=True)
    for problem in problems:
        print(f"  WRONG: {problem}")
    if problems:
        again = f"--seed {outcome.plan.seed} --only {outcome.plan.number}"
        print(f"  again: PYTHONPATH=tests python -m faults {again}", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, action="append", metavar="N", help="of the trials; may be repeated")
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--table", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it puts in the background
    numbers = arguments.only or range(arguments.runs)
    outcomes, wrong = [], 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, contextlib.suppress(KeyboardInterrupt):
        run = Run(Path(folder), methods())
        for outcome in run.trials(arguments.seed, numbers, arguments.at_once):
            problems = judge(outcome)
            outcomes.append(outcome)
            wrong += bool(problems)
            tell(outcome, problems, is_whole=bool(arguments.only))
            if len(outcomes) % 50 == 0:
                print(f"{len(outcomes)} trials, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    text = table.text(outcomes, arguments.seed, datetime.date.today())
    print(text)
    for why, count in Counter(outcome.skipped for outcome in outcomes if outcome.skipped).items():
        print(f"{count} not tried: {why}")
    print(f"{len(outcomes)} trials in {time.monotonic() - start:.0f} s, {wrong} wrong")
    if arguments.table:
        arguments.table.write_text(text)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
