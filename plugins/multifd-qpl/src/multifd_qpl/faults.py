"""What can go wrong with a simulated device, and when."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping


class Fault(enum.Enum):
    """What can happen to a submission."""

    BUSY = "refused, whatever room there is"
    SUBMIT_ERROR = "the submission fails"
    READ_FAULT = "303; repaired once in a job's life"
    WRITE_FAULT = "431; repaired once in a job's life"
    SECOND_PASS_BUSY = "5 when it is waited for"
    SHORT = "status 0, too few bytes"
    CORRUPT = "status 0, damaged bytes"
    WRONG = "status 0, sound bytes of another page"
    SILENT = "its device stops answering, from now on"


class Faults:
    """Which submission meets which fault, and which hardware init fails.

    Args:
        script: number of the submission, from 0, to fault.
        always: the fault of every other submission.
        init: number of the hardware job's init, from 0, to its status.
    """

    def __init__(
        self,
        script: Mapping[int, Fault] | None = None,
        *,
        always: Fault | None = None,
        init: Callable[[int], int] = lambda _n: 0,
    ) -> None:
        self._script, self._always, self.init = script or {}, always, init

    def at(self, number: int) -> Fault | None:
        """The fault of a submission."""
        return self._script.get(number, self._always)


class SeededFaults(Faults):
    """Faults by chance, the same ones for the same seed.

    Args:
        seed: of the random numbers.
        rate: probability of a fault, 0 to 1.
        kinds: which ones.
    """

    def __init__(self, seed: int, rate: float, kinds: tuple[Fault, ...]) -> None:
        super().__init__()
        self._random, self._rate, self._kinds = random.Random(seed), rate, kinds

    def at(self, number: int) -> Fault | None:
        """The fault of a submission; asked once for each, in order."""
        return self._random.choice(self._kinds) if self._random.random() < self._rate else None
