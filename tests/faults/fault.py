"""What goes wrong, and the system calls at which it does."""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from faults.shim import ALWAYS, Rule
from faults.way import Way, calls

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
Rules = Callable[[random.Random, str, Way], tuple[Rule, ...]]
"""What the shim is told; from a source of chance, whose process it is and the way."""
ENDING = (
    ("sync", 4, "any"), ("name", 2, "any"), ("remove", 2, "any"), ("send", 3, "name"), ("recv", 4, "name"),
    ("write", 4, "name"), ("sync", 3, "name"), ("close", 4, "name"), ("make", 1, "name"),
)  # fmt: skip
"""A writer's calls around the moment at which the memory has its name, and how many of each: where chance comes
rarely, and what is said depends on one step."""


@dataclass(frozen=True)
class Fault:
    """A way in which things go wrong.

    Args:
        name: as the table has it.
        rules: what it does by the shim.
        whose: ``any`` process, also a QEMU's, one of multifd's ``own``, a ``writer`` of files, or a ``reader``.
        must: what has to become of the migration if it happens: ``complete``, ``fail``, or empty for either.
    """

    name: str
    rules: Rules = lambda rng, role, way: ()
    whose: str = "own"
    must: str = ""

    def roles(self, way: Way) -> tuple[str, ...]:
        """Whose process it can happen to."""
        return {"any": way.processes, "own": way.own, "writer": way.writers, "reader": way.readers}[self.whose]

    @property
    def is_of_files(self) -> bool:
        """Whether a disk fails."""
        return self.whose in ("writer", "reader")


def _moment(rng: random.Random, role: str, way: Way, call: str) -> int:
    return rng.randint(1, calls(role, way)[call])


def _signal(number: signal.Signals) -> Rules:
    def rules(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
        action = rng.choice(("signal", "signalled"))
        if role in way.writers and rng.random() < 0.3:
            call, most, since = rng.choice(ENDING)
            return (Rule(call, rng.randint(1, most), action, number, since=since),)
        call = rng.choice(list(calls(role, way)))
        return (Rule(call, _moment(rng, role, way, call), action, number),)

    return rules


def _always(call: str, number: int) -> Rules:
    """A call fails, from a random one on."""

    def rules(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
        return (Rule(call, _moment(rng, role, way, call), "errno", number, ALWAYS),)

    return rules


def _once(call: str, number: int) -> Rules:
    """A call fails, and those after it do not."""

    def rules(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
        return (Rule(call, _moment(rng, role, way, call), "errno", number),)

    return rules


def _first(call: str, number: int) -> Rules:
    """A call fails from the first on."""
    return lambda rng, role, way: (Rule(call, 1, "errno", number, ALWAYS),)


def _after_the_name(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
    """The memory has its name, and everything that is done for its digests fails."""
    number = rng.choice((errno.ENOSPC, errno.EIO, errno.EDQUOT))
    call = rng.choice(("write", "make", "sync"))
    return (Rule(call, 1, "errno", number, ALWAYS, since="name"),)


def _at_close(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
    return (Rule("close", 1, "late", rng.choice((errno.ENOSPC, errno.EIO, errno.EDQUOT)), ALWAYS),)


def _interrupted(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
    """Each so many-th call of each kind, from the first or second on; a connect that does not block never is."""
    kinds = ("read", "write", "sync", "resize", "send", "recv", "accept")
    return tuple(Rule(c, rng.randint(1, 2), "errno", errno.EINTR, ALWAYS, rng.randint(2, 4)) for c in kinds)


def _short(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
    """A byte at a time for a while, then pieces that fit nothing."""
    rules = []
    for call in ("read", "write", "send", "recv"):
        first = rng.randint(1, 30)
        rules.append(Rule(call, first, "short", 1, first + 200))
        rules.append(Rule(call, first + 201, "short", rng.choice((509, 4095, 4097, 65535)), ALWAYS, rng.randint(1, 5)))
    return tuple(rules)


def _clock(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
    """Hours and years, forwards and backwards, all the time."""
    jumps = (3600, -3600, 10 * 365 * 86400, -5 * 365 * 86400, 86400)
    return tuple(Rule("any", rng.randint(1, 60), "clock", jump, ALWAYS, rng.randint(7, 40)) for jump in jumps)


def _broken(rng: random.Random, role: str, way: Way) -> tuple[Rule, ...]:
    call = rng.choice(("send", "recv"))
    number = rng.choice((errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH))
    return (Rule(call, _moment(rng, role, way, call), "errno", number),)


FAULTS = (
    Fault(signal.SIGKILL.name, _signal(signal.SIGKILL), "any"),
    *(Fault(number.name, _signal(number)) for number in SIGNALS[1:]),
    Fault("full disk (ENOSPC on write)", _always("write", errno.ENOSPC), "writer"),
    Fault("no room for the file (ENOSPC when it is made)", _first("make", errno.ENOSPC), "writer", "fail"),
    Fault("small file system (tmpfs)", whose="writer", must="fail"),
    Fault("file size limit", whose="writer"),
    Fault("EIO on write", _always("write", errno.EIO), "writer"),
    Fault("EIO on one write", _once("write", errno.EIO), "writer"),
    Fault("EIO on one fsync", _once("sync", errno.EIO), "writer"),
    Fault("ENOSPC on fsync", _always("sync", errno.ENOSPC), "writer"),
    Fault("error at close", _at_close, "writer", "complete"),
    Fault("EIO on rename", _first("name", errno.EIO), "writer", "fail"),
    Fault("error once it has its name", _after_the_name, "writer"),
    Fault("EIO on read", _always("read", errno.EIO), "reader"),
    Fault("connection broken", _broken),
    Fault("EINTR all the time", _interrupted, must="complete"),
    Fault("short reads and writes", _short, must="complete"),
    Fault("clock jumps", _clock, must="complete"),
)
NOTHING = Fault("nothing", must="complete")
"""For a migration that is left alone."""
