"""The arithmetic of rounds, as tables. A page has 4096 bytes; 2560 pages are 10 MiB."""

from __future__ import annotations

import math

import pytest

from multifd.errors import UsageError
from multifd.live.precopy import Decision, Limits, Precopy

MIB = 1 << 20


def after(*rounds, limits=None, scan_s=0.0):
    """A `Precopy` after rounds of (pages sent, seconds they took, pages found dirty)."""
    now = 0.0
    precopy = Precopy(4096, limits or Limits(), now)
    for pages, seconds, dirty in rounds:
        now += seconds
        precopy.sent(pages, seconds)
        precopy.scanned(dirty, now, scan_s)
    return precopy


@pytest.mark.parametrize(
    ("rounds", "mib_per_s"),
    [
        ([], 0),
        ([(2560, 1.0, 0)], 10),
        ([(0, 1.0, 0)], 0),
        ([(2560, 1.0, 0), (2560, 0.5, 0)], 20),  # the last round is long enough to count alone
        ([(2560, 1.0, 0), (2560, 0.1, 0)], 100),
        ([(2560, 1.0, 0), (2560, 0.06, 0)], 20 / 1.06),  # too short: the one before counts as well
        ([(2560, 1.0, 0), (2560, 0.06, 0), (2560, 0.04, 0)], 200),
        ([(2560, 1.0, 0), (25600, 0.2, 0), (256, 0.01, 0)], 101 / 0.21),
    ],
)
def test_bandwidth_is_of_the_last_rounds_that_make_up_100_ms(rounds, mib_per_s):
    assert after(*rounds).bandwidth_bytes_per_s == pytest.approx(mib_per_s * MIB)


@pytest.mark.parametrize(
    ("rounds", "scan_s", "expected_s"),
    [
        ([(2560, 1.0, 2560)], 0.0, 1.0),
        ([(2560, 1.0, 256)], 0.0, 0.1),
        ([(2560, 1.0, 256)], 0.25, 0.375),  # 64 pages more were written during the look
        ([(2560, 1.0, 0)], 0.25, 0.25),
        ([(0, 1.0, 256)], 0.0, math.inf),
        ([(0, 1.0, 0)], 0.0, 0.0),
    ],
)
def test_expected_downtime(rounds, scan_s, expected_s):
    assert after(*rounds, scan_s=scan_s).expected_downtime_s == pytest.approx(expected_s)


def test_dirty_rate_is_over_the_time_between_two_looks():
    precopy = after((2560, 2.0, 1000), (1000, 0.5, 300))
    assert precopy.dirty_pages_per_s == 600
    assert precopy.dirty_pages == 300


@pytest.mark.parametrize(
    ("rounds", "limits", "decision"),
    [
        ([(2560, 1.0, 768)], Limits(), Decision.SWITCH_OVER),  # 300 ms exactly
        ([(2560, 1.0, 769)], Limits(), Decision.ANOTHER_ROUND),
        ([(2560, 1.0, 0)], Limits(), Decision.SWITCH_OVER),
        ([(0, 1.0, 0)], Limits(), Decision.SWITCH_OVER),
        ([(0, 1.0, 1)], Limits(), Decision.ANOTHER_ROUND),
        ([(2560, 1.0, 2560)], Limits(downtime_limit_s=1.0), Decision.SWITCH_OVER),
        ([(2560, 1.0, 2560)], Limits(max_rounds=1), Decision.GIVE_UP),
        ([(2560, 1.0, 100)], Limits(max_rounds=1), Decision.SWITCH_OVER),
        ([(2560, 1.0, 2560)], Limits(max_rounds=2), Decision.ANOTHER_ROUND),
        ([(2560, 1.0, 2560)] * 2, Limits(max_rounds=2), Decision.GIVE_UP),
        (
            [(2560, 1.0, 2560)] * 2,
            Limits(max_rounds=2, at_max_rounds=Decision.SWITCH_OVER),
            Decision.SWITCH_OVER,
        ),
    ],
)
def test_decisions(rounds, limits, decision):
    assert after(*rounds, limits=limits).decide() is decision


def test_a_slow_look_alone_can_be_too_long():
    assert after((2560, 1.0, 0), scan_s=0.31).decide() is Decision.ANOTHER_ROUND


@pytest.mark.parametrize(
    ("dirty", "percents"),
    [
        ([50] * 8, [0] * 8),  # half of what was sent is not yet too much
        ([51] * 8, [0, 20, 20, 30, 30, 40, 40, 50]),
        ([51, 0, 0, 51, 0, 51], [0, 0, 0, 20, 20, 20]),  # as in QEMU, calm rounds do not reset the count
        ([51] * 22, [min(20 + 10 * (i // 2 - 1), 99) if i > 1 else 0 for i in range(1, 23)]),
    ],
)
def test_auto_converge_steps_as_in_qemu(dirty, percents):
    precopy = Precopy(4096, Limits(), 0.0)
    seen = []
    for i, pages in enumerate(dirty):
        precopy.sent(100, 1.0)
        precopy.scanned(pages, i + 1.0, 0.0)
        seen.append(precopy.throttle_percent)
    assert seen == percents


def test_the_explanation_has_the_figures():
    text = after((25600, 1.0, 12800), (12800, 0.5, 12800), scan_s=0.02).explain()
    for words in ("after 2 rounds 50 MiB", "writes to 100 MiB/s", "100 MiB/s reach", "540 ms", "20 of them", "300 are"):
        assert words in text


@pytest.mark.parametrize("arguments", [{"downtime_limit_s": 0}, {"downtime_limit_s": 2001}, {"max_rounds": 0}])
def test_limits_are_checked(arguments):
    with pytest.raises(UsageError):
        Limits(**arguments)
