"""The guide's method that adapts: the kit has nothing against it, and it goes where the time is."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
from example_methods import EXAMPLES, run_kit

SOURCE = EXAMPLES / "adaptive" / "multifd_brisk.py"


def test_it_passes_the_kit(tmp_path: Path) -> None:
    run = run_kit(tmp_path, SOURCE, "brisk", "-k", "round_trip or bombs or migration")
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("between_s", "crowd", "ratio", "level"),
    [
        (0.0, 1.0, 0.5, 0),  # nothing waits: the codec is in the way
        (0.01, 1.0, 0.5, 9),  # a slow link
        (0.01, 3.0, 0.5, 0),  # the same, but others want the processor
        (0.01, 1.0, 1.0, 0),  # the same, but nothing shrinks
    ],
)
def test_where_it_comes_to_rest(between_s, crowd, ratio, level):
    """A hook that takes a millisecond of a processor, on clocks that this test moves."""
    spec = importlib.util.spec_from_file_location(SOURCE.stem, SOURCE)
    brisk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(brisk)
    now = SimpleNamespace(clock=0.0, cpu=0.0)
    brisk.time = SimpleNamespace(monotonic=lambda: now.clock, thread_time=lambda: now.cpu)
    pace, levels = brisk.Pace(), []
    for _ in range(200):
        now.clock += between_s
        pace.enter()
        now.clock += 1e-3 * crowd
        now.cpu += 1e-3
        pace.leave(1 << 19, int(ratio * (1 << 19)))
        levels.append(pace.level)
    assert levels[-20:].count(level) >= 10  # what does not shrink is tried again, now and then
