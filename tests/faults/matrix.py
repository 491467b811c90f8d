"""What goes wrong, where, and in which migration: a plan for each seed and number, the same one every time."""

from __future__ import annotations

import errno
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from faults.shim import ALWAYS, Rule

PAGES = 1024
NBYTES = PAGES * 4096
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ROLES = ("source", "destination", "relay")
MEDIA = ("raw", "mapped-ram", "arena")
FILES = ("raw", "mapped-ram")
SIGNAL_SHARE = 0.6
"""Of the trials; the rest is spread over the other faults."""

CALLS = {
    ("source", "raw"): {"read": 10, "send": 60, "recv": 25, "connect": 4},
    ("source", "mapped-ram"): {"read": 200, "send": 40, "recv": 30, "connect": 4},
    ("source", "arena"): {"send": 200, "recv": 40, "connect": 3},
    ("destination", "raw"): {"write": 195, "sync": 9, "resize": 1, "name": 1, "send": 3, "recv": 38, "accept": 4},
    ("destination", "mapped-ram"): {
        "write": 200, "sync": 6, "resize": 1, "name": 1, "send": 3, "recv": 36, "accept": 4
    },
    ("destination", "arena"): {"send": 4, "recv": 40, "accept": 4},
    ("relay", ""): {"send": 28, "recv": 36, "connect": 3, "accept": 4},
}  # fmt: skip
"""Which system calls an end makes in such a migration, and about how many of each: moments are drawn from those."""


@dataclass(frozen=True)
class Fault:
    """A way in which things go wrong.

    Args:
        name: as the table has it.
        roles: whose process it happens to.
        media: where it can happen.
        must: what has to become of the migration if it happens: ``complete``, ``fail``, or empty for either.
        rules: what it does by the shim; from a source of chance, the role and the medium.
    """

    name: str
    roles: tuple[str, ...] = ROLES
    media: tuple[str, ...] = MEDIA
    must: str = ""
    rules: Callable[[random.Random, str, str], tuple[Rule, ...]] = lambda rng, role, medium: ()


def _calls(role: str, medium: str) -> dict[str, int]:
    return CALLS[role, "" if role == "relay" else medium]


def _moment(rng: random.Random, role: str, medium: str, call: str) -> int:
    return rng.randint(1, _calls(role, medium)[call])


def _signal(number: signal.Signals) -> Callable[[random.Random, str, str], tuple[Rule, ...]]:
    def rules(rng: random.Random, role: str, medium: str) -> tuple[Rule, ...]:
        if rng.random() < 0.3:
            return ()  # by time
        call = rng.choice(list(_calls(role, medium)))
        return (Rule(call, _moment(rng, role, medium, call), rng.choice(("signal", "signalled")), number),)

    return rules


def _fails(call: str, number: int, *, once: bool = False) -> Callable[[random.Random, str, str], tuple[Rule, ...]]:
    """A call fails, from a random one on."""

    def rules(rng: random.Random, role: str, medium: str) -> tuple[Rule, ...]:
        first = _moment(rng, role, medium, call)
        return (Rule(call, first, "errno", number, first if once else ALWAYS),)

    return rules


def _at_close(rng: random.Random, role: str, medium: str) -> tuple[Rule, ...]:
    return (Rule("close", 1, "late", rng.choice((errno.ENOSPC, errno.EIO, errno.EDQUOT)), ALWAYS),)


def _interrupted(rng: random.Random, role: str, medium: str) -> tuple[Rule, ...]:
    """Each so many-th call of each kind, from the first or second on; a connect that does not block never is."""
    calls = ("read", "write", "sync", "resize", "send", "recv", "accept")
    return tuple(Rule(c, rng.randint(1, 2), "errno", errno.EINTR, ALWAYS, rng.randint(2, 4)) for c in calls)


def _short(rng: random.Random, role: str, medium: str) -> tuple[Rule, ...]:
    """A byte at a time for a while, then pieces that fit nothing."""
    rules = []
    for call in ("read", "write", "send", "recv"):
        first = rng.randint(1, 30)
        rules.append(Rule(call, first, "short", 1, first + 200))
        rules.append(Rule(call, first + 201, "short", rng.choice((509, 4095, 4097, 65535)), ALWAYS, rng.randint(1, 5)))
    return tuple(rules)


def _clock(rng: random.Random, role: str, medium: str) -> tuple[Rule, ...]:
    """Hours and years, forwards and backwards, all the time."""
    jumps = (3600, -3600, 10 * 365 * 86400, -5 * 365 * 86400, 86400)
    return tuple(Rule("any", rng.randint(1, 60), "clock", jump, ALWAYS, rng.randint(7, 40)) for jump in jumps)


def _broken(rng: random.Random, role: str, medium: str) -> tuple[Rule, ...]:
    call = rng.choice(("send", "recv"))
    first = _moment(rng, role, medium, call)
    return (Rule(call, first, "errno", rng.choice((errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH))),)


_WRITERS = ("destination",)
FAULTS = (
    *(Fault(number.name, rules=_signal(number)) for number in SIGNALS),
    Fault("full disk (ENOSPC on write)", _WRITERS, FILES, "fail", _fails("write", errno.ENOSPC)),
    Fault("no room for the file (ENOSPC on ftruncate)", _WRITERS, FILES, "fail", _fails("resize", errno.ENOSPC)),
    Fault("small file system (tmpfs)", _WRITERS, FILES, "fail"),
    Fault("file size limit", _WRITERS, FILES),
    Fault("EIO on write", _WRITERS, FILES, "fail", _fails("write", errno.EIO)),
    Fault("EIO on one write", _WRITERS, FILES, "", _fails("write", errno.EIO, once=True)),
    Fault("EIO on one fsync", _WRITERS, FILES, "", _fails("sync", errno.EIO, once=True)),
    Fault("ENOSPC on fsync", _WRITERS, FILES, "", _fails("sync", errno.ENOSPC)),
    Fault("error at close", _WRITERS, FILES, "complete", _at_close),
    Fault("EIO on rename", _WRITERS, FILES, "fail", _fails("name", errno.EIO)),
    Fault("EIO on read", ("source",), FILES, "fail", _fails("read", errno.EIO)),
    Fault("connection broken", rules=_broken),
    Fault("EINTR all the time", must="complete", rules=_interrupted),
    Fault("short reads and writes", must="complete", rules=_short),
    Fault("clock jumps", must="complete", rules=_clock),
)


@dataclass(frozen=True)
class Plan:
    """One trial.

    Args:
        seed, number: what it was drawn from.
        fault, role, medium: what goes wrong, whose process it is, what the memory is in.
        is_relayed: whether a relay stands between the ends.
        method, channels, uri: of the migration; ``uri`` is ``tcp`` or ``unix``.
        mib_per_s: the bandwidth limit.
        has_pump: whether packets travel by the packet pump.
        replaces: whether the destination's file has another one's name.
        rules: for the shim in the victim's process.
        after_s: when the runner sends the signal, after the source's command has begun; 0 if the shim does.
        size_limit: of files that the victim writes, in bytes; 0 for none.
    """

    seed: int
    number: int
    fault: Fault
    role: str
    medium: str
    is_relayed: bool
    method: str
    channels: int
    uri: str
    mib_per_s: int
    has_pump: bool
    replaces: bool
    rules: tuple[Rule, ...]
    after_s: float
    size_limit: int

    @property
    def signal(self) -> signal.Signals | None:
        """Which one the runner or the shim sends."""
        return next((number for number in SIGNALS if number.name == self.fault.name), None)

    @property
    def words(self) -> str:
        """For a person."""
        what = "; ".join(rule.words for rule in self.rules) or (f"after {self.after_s:.3f} s" if self.after_s else "")
        return (
            f"{self.fault.name} at the {self.role} ({what}), {self.medium}, {self.method}, {self.channels} channels, "
            f"{self.uri}{', relayed' * self.is_relayed}, {self.mib_per_s} MiB/s{', no pump' * (not self.has_pump)}"
            f"{', replacing' * self.replaces}"
        )


def draw(seed: int, number: int, methods: tuple[str, ...]) -> Plan:
    """The plan of trial `number` of a run.

    Args:
        seed: the run's.
        number: from 0.
        methods: to choose from.
    """
    rng = random.Random(f"{seed} {number}")
    signals, others = FAULTS[: len(SIGNALS)], FAULTS[len(SIGNALS) :]
    fault = rng.choice(signals if rng.random() < SIGNAL_SHARE else others)
    role, medium = rng.choice(fault.roles), rng.choice(fault.media)
    rules = fault.rules(rng, role, medium)
    by_time = fault in signals and not rules
    return Plan(
        seed, number, fault, role, medium,
        is_relayed=role == "relay" or rng.random() < 0.2,
        method=rng.choice(methods),
        channels=rng.randint(1, 4),
        uri=rng.choice(("tcp", "unix")),
        mib_per_s=(mib_per_s := rng.choice((2, 8, 200))),
        has_pump=rng.random() < 0.7,
        replaces=rng.random() < 0.5,
        rules=rules,
        after_s=rng.uniform(0.001, 0.2 + NBYTES / (mib_per_s << 20)) if by_time else 0.0,
        size_limit=rng.randrange(4096, NBYTES) if fault.name == "file size limit" else 0,
    )  # fmt: skip
