"""What the fuzzer has done, for docs/fuzzing.md: ``python -m tests.fuzz.table``.

The runs in ``build/fuzz/tally.jsonl`` are added to ``record.json``; what the inputs that are there cover, kept ones and
those of ``build/fuzz``, is measured anew. A count is of one commit's code only in so far as it is of the last one's.
"""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import time
from typing import Any

from tests.fuzz import driver
from tests.fuzz.campaign import OUT, TALLY

RECORD = driver.FOLDER / "record.json"
PAGE = driver.FOLDER.parents[1] / "docs" / "fuzzing.inc"
_COLUMNS = (
    "| target | what must hold | executions | a CPU's second | edges | lines | branches |\n"
    "| --- | --- | --: | --: | --: | --: | --: |\n"
)
_TIMED = 300
"""Inputs whose time is taken, for the rate."""


def render(record: dict[str, Any]) -> str:
    """The page's table, of a record."""
    rows = []
    for name in driver.names():
        done = record.get(name, {})
        executions, edges = done.get("executions", 0), done.get("edges", 0)
        lines, branches = (
            f"{100 * a // b} %" if b else "-" for a, b in (done.get("lines", (0, 0)), done.get("branches", (0, 0)))
        )
        figures = f"{executions:,} | {done.get('rate', 0):,} | {edges:,} | {lines} | {branches}"
        rows.append(f"| `{name}` | {_promise(name)} | {figures} |\n")
    return _COLUMNS + "".join(rows)


def _promise(name: str) -> str:
    """A target's docstring up to its first stop."""
    text = ast.get_docstring(ast.parse((driver.FOLDER / "targets" / f"{name}.py").read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def measure(name: str) -> dict[str, Any]:
    """How many inputs a CPU runs in a second, without the fuzzer; and of the modules that a target is about, how many
    lines and branches its inputs reach, and how many there are."""
    import coverage

    cov = coverage.Coverage(branch=True, source_pkgs=list(driver.PACKAGES), data_file=None, config_file=False)
    cov.start()
    target = driver.load(name)
    inputs = [data for _, data in driver.inputs(name)] + [path.read_bytes() for path in (OUT / name).glob("*")]
    for data in inputs:
        target.run(data)
    cov.stop()
    begin = time.process_time()
    for data in (inputs * _TIMED)[:_TIMED]:
        target.run(data)
    rate = _TIMED / (time.process_time() - begin)
    lines, branches = [0, 0], [0, 0]
    for module in target.COVERS:
        path = str(importlib.import_module(module).__file__)
        _, statements, _, missing, _ = cov.analysis2(path)
        lines = [lines[0] + len(statements) - len(missing), lines[1] + len(statements)]
        for there, taken in cov.branch_stats(path).values():
            branches = [branches[0] + taken, branches[1] + there]
    return {"rate": int(float(f"{rate:.2g}")), "lines": lines, "branches": branches}


def main() -> None:
    """Bring the record up to date, and the page."""
    record: dict[str, Any] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    runs = [json.loads(line) for line in TALLY.read_text().splitlines()] if TALLY.exists() else []
    for run in runs:
        done = record.setdefault(run["target"], {"executions": 0, "seconds": 0})
        done["executions"] += run["executions"]
        done["seconds"] += run["seconds"]
        done["edges"] = max(done.get("edges", 0), run["edges"])
    for name in driver.names():
        out = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.table", name], check=True, capture_output=True, text=True
        )
        record.setdefault(name, {"executions": 0, "seconds": 0}).update(json.loads(out.stdout))
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    PAGE.write_text(render(record))
    TALLY.unlink(missing_ok=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout.write(json.dumps(measure(sys.argv[1])))
    else:
        main()
