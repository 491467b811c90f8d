"""Targets of the fuzzer in turn, each in a process of its own: ``python -m tests.fuzz.campaign TARGET|all SECONDS``.

What a run came to is a line of ``build/fuzz/tally.jsonl``, from which `table` makes a page's figures. What it found is
a file beside it; the last lines say how it is run again.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import deque

from tests.fuzz import driver

OUT = driver.FOLDER.parents[1] / "build" / "fuzz"
TALLY = OUT / "tally.jsonl"
_STAT = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
_EDGES = re.compile(r"cov: (\d+)")
_SHOWN = 40
"""Lines of a target that failed."""


def run(name: str, seconds: int, arguments: list[str]) -> bool:
    """Fuzz a target for so long; whether it found nothing.

    Args:
        name: the target's.
        seconds: of fuzzing; the start takes some more.
        arguments: libFuzzer's, besides.
    """
    command = [sys.executable, "-m", "tests.fuzz.driver", name, str(OUT / name), f"-max_total_time={seconds}",
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
        failed += not run(name, wanted, arguments)
        start_s = max(0.0, time.monotonic() - begin - wanted)
    return failed


if __name__ == "__main__":
    if sys.argv[1] not in (*driver.names(), "all"):
        sys.exit(f"no target {sys.argv[1]!r}, there are: all, {', '.join(driver.names())}")
    sys.exit(min(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]), 1))
