"""A process of the kit's own, in which a native codec may crash, hang or take all memory without the tests.

A child prints a line for each case as it begins; the last is ``done``, or ``broken`` and the message as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from multifd.testing.harness import Broken, Inconclusive, Section

DEADLINE_S = 100.0
"""For a process of the kit; the work takes a few seconds, on a machine that has nothing else to do."""


def environment(**more: str) -> dict[str, str]:
    """This process's, so that the other one finds the same method, and `more`."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **more}


def prove(module: str, case: str, spec: str, cwd: Path | None = None, **more: str) -> list[str]:
    """Run ``python -m module case spec`` and return what it printed before ``done``.

    Args:
        module: of the kit.
        case: its first argument.
        spec: the method.
        cwd: its working and temporary folder, if it is to have one of its own.
        more: environment variables.

    Raises:
        Broken: it hung or died; and the failure that it told.
    """
    if cwd is not None:
        more["TMPDIR"] = str(cwd)
    command = [sys.executable, "-m", module, case, spec]
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=DEADLINE_S, env=environment(**more), cwd=cwd
        )
    except subprocess.TimeoutExpired as e:
        lines = (e.stdout or b"").decode().splitlines() or [""]
        raise Broken(
            "recv never hangs",
            Section.ERRORS,
            f"method {spec!r}, {case}: no end after {DEADLINE_S:.0f} s, at {lines[-1]!r}",
        ) from None
    lines = run.stdout.decode().splitlines() or [""]
    if lines[-1].startswith("broken "):
        pytest.fail(json.loads(lines[-1].partition(" ")[2]), pytrace=False)
    if lines[-1] != "done":
        ended = f"signal {-run.returncode}" if run.returncode < 0 else f"status {run.returncode}"
        raise Broken(
            "a method survives every payload, and touches no memory but its own",
            Section.ERRORS,
            f"method {spec!r}, {case}: the process ended with {ended} at {lines[-1]!r}: {run.stderr.decode()[-2000:]}",
        )
    return lines[:-1]


def tell(call: Callable[[], None]) -> None:
    """Run a case in the child and print how it ended."""
    try:
        call()
    except (Broken, Inconclusive) as e:
        print("broken", json.dumps(str(e)), flush=True)
    else:
        print("done", flush=True)
