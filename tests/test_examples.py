"""The examples run, and do what they say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("method", ["none", "zstd"])
def test_handover_loses_nothing(method):
    command = [sys.executable, str(EXAMPLES / "handover.py"), "--mib", "16", "--updates", "2000", "--method", method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr
    updates, consistent = re.search(r"old process: (\d+) updates, consistent: (\w+)", done.stdout).groups()
    assert consistent == "True"
    assert int(updates) >= 2000
    assert f"new process: took over at {updates} updates" in done.stdout
    assert "new process: nothing lost: True" in done.stdout
    assert re.search(r"stood still for \d+\.\d ms", done.stdout)
