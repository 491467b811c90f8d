"""The soak, short: its script runs, and everything adds up over a dozen migrations of which half lose an end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks/soak_relay.py"


def test_a_dozen_migrations_with_kills_add_up():
    """Ten seconds: each end is a process, and a migration is slow enough to be killed in its middle."""
    command = [sys.executable, str(SCRIPT), "--routes", "2", "--migrations", "12", "--mebibytes", "4"]
    command += ["--kill-share", "0.5", "--reload", "1"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 migrations: " in done.stdout
