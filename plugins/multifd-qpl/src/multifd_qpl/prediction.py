"""The simulation held against published migrations, none of which gave it a parameter.

Every figure is of the published guest: its 15.24 million pages at the simulated rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from multifd_qpl.experiment import Row, simulate
from multifd_qpl.machine import OTHER_RATES, Machine, engine_ns
from multifd_qpl.published import FALLBACK, IAA_4, IAA_8, NORMAL_PAGES, SCORED, WAIT, Published

PARAMETERS = (
    "engine_ns",
    "queue_entries",
    "submit_ns",
    "refusal_ns",
    "poll_ns",
    "software_ns",
    "zero_check_ns",
    "send_ns_per_byte",
    "link_ns_per_byte",
    "hardware_bytes",
    "software_bytes",
    "jitter",
    "slack_ns",
)
"""What may move a figure: the others act only on faults and on decompression, or are counts of what is there."""

_SCORE_BYTES = 64 << 20  # of RAM for each device
_SENSITIVITY_BYTES = 8 << 20


@dataclass(frozen=True)
class Score:
    """A published row and its prediction."""

    published: Published
    total_time_ms: float
    mbps: float

    @property
    def time_error(self) -> float:
        """Predicted over published total time, less 1."""
        return self.total_time_ms / self.published.total_time_ms - 1

    @property
    def mbps_error(self) -> float:
        """The same of mbps."""
        return self.mbps / self.published.mbps - 1


def score() -> list[Score]:
    """Predict every row of `SCORED`, by the policy that it names, else by QEMU's own."""
    return [Score(of, row.guest_ms, row.mbps) for of in SCORED for row in [_predict(of, Machine(), _SCORE_BYTES)]]


def _predict(of: Published, machine: Machine, bytes_per_device: int) -> Row:
    policy = of.policy or "fallback"
    ram = bytes_per_device * of.devices
    return simulate([policy], devices=of.devices, channels=of.channels, ram_bytes=ram, machine=machine)[0]


SENSITIVE = (WAIT, FALLBACK, IAA_4, IAA_8)
"""The rows whose code is the one that is simulated."""

ERRORS = (-0.10, 0.08)
"""Within these lay the predicted total times of `SENSITIVE`, over the published ones, less 1: what a user of
``multifd-iaa simulate`` is told. Rounded outwards from `score`, which a test repeats."""


def sensitivity(parameter: str) -> list[tuple[float, float]]:
    """How the predictions of `SENSITIVE` move with one of `PARAMETERS`.

    The runs are short (8 MiB for each device): changes below 1 % are within their noise.

    Returns:
        For each row the change of its total time with 20 % less and with 20 % more, as parts of 1.
    """
    value = getattr(Machine(), parameter)
    machines = [Machine(), *(replace(Machine(), **{parameter: type(value)(value * by)}) for by in (0.8, 1.2))]
    times = [[_predict(of, machine, _SENSITIVITY_BYTES).guest_ms for machine in machines] for of in SENSITIVE]
    return [(less / at - 1, more / at - 1) for at, less, more in times]


def errors_at(rate: str) -> list[float]:
    """The error of the `SENSITIVE` rows' total times with one of `OTHER_RATES`."""
    machine = Machine(engine_ns=engine_ns(OTHER_RATES[rate]))
    return [_predict(of, machine, _SCORE_BYTES).guest_ms / of.total_time_ms - 1 for of in SENSITIVE]


def zero_pages_in_window(of: Published, window_s: float = 0.1) -> int:
    """How many zero pages would make a row's pages per second, a last window's, of its mean.

    A window in which x zero pages were looked at has that much less time for others, at the rate of the whole
    migration: x + rate * (window - x * check / channels) = pages_per_second * window.

    Args:
        of: the row.
        window_s: QEMU's shortest window (BUFFER_DELAY, migration/migration.c).
    """
    rate = NORMAL_PAGES / (of.total_time_ms / 1e3)
    check_s = Machine().zero_check_ns / 1e9 / of.channels
    return round((of.pages_per_second - rate) * window_s / (1 - rate * check_s))
