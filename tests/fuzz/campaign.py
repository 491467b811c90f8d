"""Targets of the fuzzer in turn, each in a process of its own: ``python -m tests.fuzz.campaign TARGET|all SECONDS``.

With ``--repeatable`` the inputs are the same each time, as many as a CPU is known to run within SECONDS, a target on
each CPU: what such a run finds is a change's doing, not chance's.

What a run came to is a line of ``build/fuzz/tally.jsonl``, from which `table` makes a page's figures. What it found is
a file beside it; the last lines say how it is run again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.fuzz import driver

OUT = driver.FOLDER.parents[1] / "build" / "fuzz"
TALLY = OUT / "tally.jsonl"
RECORD = driver.FOLDER / "record.json"
_STAT = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_EDGES = re.compile(r"cov: (\d+)")
_SHOWN = 40
"""Lines of a target that failed."""


def run(name: str, bound: Sequence[str], arguments: list[str]) -> bool:
    """Fuzz a target; whether it found nothing.

    Args:
        name: the target's.
        bound: libFuzzer's arguments that end it.
        arguments: libFuzzer's, besides.
    """
    command = [sys.executable, "-m", "tests.fuzz.driver", name, str(OUT / name), *bound,
               f"-artifact_prefix={OUT / name}-", "-print_final_stats=1", *arguments]  # fmt: skip
    begin, executions, edges, lines = time.monotonic(), 0, 0, deque[str](maxlen=_SHOWN)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line)
            executions = int(found[1]) if (found := _STAT.search(line)) else executions
            edges = int(found[1]) if (found := _EDGES.search(line)) else edges
    took = time.monotonic() - begin
    print(f"{name:16} {executions:10} executions in {took:.0f} s, {edges} edges", flush=True)
    with TALLY.open("a") as tally:
        entry = {"target": name, "executions": executions, "seconds": round(took), "edges": edges}
        tally.write(json.dumps(entry | {"status": child.returncode}) + "\n")
    if child.returncode:
        print("".join(lines), f"run it again: PYTHONPATH=tests python -m tests.fuzz.driver {name} FILE", sep="")
    return child.returncode == 0


def main(which: str, seconds: float, arguments: list[str]) -> int:
    """Fuzz one target, or all of them in turn within this time; the number of those that found something."""
    OUT.mkdir(parents=True, exist_ok=True)
    names = driver.names() if which == "all" else [which]
    end, start_s, failed = time.monotonic() + seconds, 0.0, 0
    for number, name in enumerate(names):
        begin = time.monotonic()
        share = (end - begin) / (len(names) - number) if len(names) > 1 else seconds
        wanted = max(1, int(share - start_s))
        failed += not run(name, [f"-max_total_time={wanted}"], arguments)
        start_s = max(0.0, time.monotonic() - begin - wanted)
    return failed


def repeat(which: str, seconds: float, arguments: list[str]) -> int:
    """As `main`, but with the same inputs each time, from the corpus that is kept alone."""
    names = driver.names() if which == "all" else [which]
    rates = json.loads(RECORD.read_text())

    def once(name: str) -> bool:
        shutil.rmtree(OUT / name, ignore_errors=True)
        (OUT / name).mkdir(parents=True)
        # Half of its time goes to the fuzzer itself.
        executions = max(50, int(rates[name]["rate"] * seconds / len(names) / 2))
        return run(name, ["-seed=1", f"-runs={executions}"], arguments)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(once, names)).count(False)


if __name__ == "__main__":
    if sys.argv[1] not in (*driver.names(), "all"):
        sys.exit(f"no target {sys.argv[1]!r}, there are: all, {', '.join(driver.names())}")
    rest = [argument for argument in sys.argv[3:] if argument != "--repeatable"]
    way = main if rest == sys.argv[3:] else repeat
    sys.exit(min(way(sys.argv[1], float(sys.argv[2]), rest), 1))
