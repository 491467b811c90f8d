"""Ways of doing the same thing, each once a round, and how they compare.

So what else happens on the machine touches all of them alike. The first round warms everything up and does not count.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

_Way = TypeVar("_Way", bound=Hashable)
_Found = TypeVar("_Found")


def interleaved(ways: Iterable[_Way], run: Callable[[_Way], _Found], rounds: int) -> dict[_Way, list[_Found]]:
    """What each way gave, round by round.

    Args:
        ways: in the order of a round.
        run: does it once by a way.
        rounds: how many count.
    """
    rows: dict[_Way, list[_Found]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, row in rows.items():
            found = run(way)
            if number:
                row.append(found)
    return rows


class Aim(NamedTuple):
    """A way, its yardstick, and how many times as long it may take; None: nobody has said."""

    way: str
    yardstick: str
    most: float | None


class Ratio(NamedTuple):
    """What became of an aim."""

    way: str
    yardstick: str
    ratio: float
    aim: float | None

    def __str__(self) -> str:
        aim = f"   (aim: at most {self.aim})" if self.aim else ""
        return f"{self.way} / {self.yardstick}: {self.ratio:.2f}{aim}"


def ratios(times: Mapping[str, Sequence[float]], aims: Iterable[Aim]) -> list[Ratio]:
    """The median of the ratios of each round, for every aim both of whose ways were measured.

    Args:
        times: of each way, round by round, in any unit.
        aims: what is compared.
    """
    return [
        Ratio(aim.way, aim.yardstick, median_ratio(times[aim.way], times[aim.yardstick]), aim.most)
        for aim in aims
        if aim.way in times and aim.yardstick in times
    ]


def median_ratio(times: Sequence[float], yardsticks: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(times, yardsticks, strict=True))
