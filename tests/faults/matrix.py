"""One trial of the matrix: a plan for each seed and number, the same one every time."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass

from faults.fault import ENDING, FAULTS, SIGNALS, Fault
from faults.shim import Rule
from faults.way import WAYS, Way

PAGES = 1024
NBYTES = PAGES * 4096
SIGNAL_SHARE = 0.6
"""Of the trials; the rest is spread over the other faults."""
QEMU_METHODS = ("none", "zlib", "zstd")
RELEASES = ("system", "newer")


@dataclass(frozen=True)
class Held:
    """An end stands still at a system call while another one gets the signal.

    Args:
        role: who stands still.
        rule: when.
        seconds: for how long, or until the other one has ended.
    """

    role: str
    rule: Rule
    seconds: float


@dataclass(frozen=True)
class Plan:
    """One trial.

    Args:
        seed, number: what it was drawn from.
        fault, role, way: what goes wrong, whose process it is, in which migration.
        relay: what stands between the ends: nothing, ``once`` for a relay, ``service`` for one with a file of routes.
        method, channels, uri: of the migration; ``uri`` is ``tcp`` or ``unix``.
        again_by: by which method stored streams are sent on; empty: as they are.
        release: of QEMU, where one is an end.
        is_encrypted: whether connections are by TLS.
        mib_per_s: the bandwidth limit.
        has_pump: whether packets travel by the packet pump.
        replaces: whether the destination's file has another one's name, or the folder is there, empty.
        rules: for the shim in the victim's process.
        held: an end that stands still meanwhile.
        after_s: when the runner sends the signal, after the source's command has begun; 0 if the shim does.
        size_limit: of files that the victim writes, in bytes; 0 for none.
    """

    seed: int
    number: int
    fault: Fault
    role: str
    way: Way
    relay: str = ""
    method: str = "none"
    channels: int = 2
    uri: str = "tcp"
    again_by: str = ""
    release: str = RELEASES[0]
    is_encrypted: bool = False
    mib_per_s: int = 200
    has_pump: bool = True
    replaces: bool = True
    rules: tuple[Rule, ...] = ()
    held: Held | None = None
    after_s: float = 0.0
    size_limit: int = 0

    @property
    def signal(self) -> signal.Signals | None:
        """Which one the runner or the shim sends."""
        return next((number for number in SIGNALS if number.name == self.fault.name), None)

    @property
    def words(self) -> str:
        """For a person."""
        what = "; ".join(rule.words for rule in self.rules) or (f"after {self.after_s:.3f} s" if self.after_s else "")
        if self.held is not None:
            what = f"while the {self.held.role} stands still {self.held.seconds:g} s, {self.held.rule.words}"
        how = [
            self.way.words, self.method, f"{self.channels} channels", self.uri, f"{self.mib_per_s} MiB/s",
            f"again by {self.again_by}" * bool(self.again_by), f"relay {self.relay}" * bool(self.relay),
            f"{self.release} QEMU" * self.way.has_qemu,
            "TLS" * self.is_encrypted, "no pump" * (not self.has_pump), "replacing" * self.replaces,
        ]  # fmt: skip
        return f"{self.fault.name} at the {self.role} ({what}), {', '.join(filter(None, how))}"


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
    ways = [way for way in WAYS if fault.roles(way)]
    way = rng.choices(ways, [way.weight for way in ways])[0]
    role = rng.choice(fault.roles(way))
    is_relayed = role == "relay" or rng.random() < 0.2
    known = QEMU_METHODS if way.has_qemu else methods
    mib_per_s = rng.choice((2, 8, 200))
    rules: tuple[Rule, ...] = ()
    held, after_s = None, 0.0
    # A certificate is not valid five years ago, and that is no fault of anybody.
    may_encrypt = not way.has_qemu and len(way.roles) > 1 and fault.name != "clock jumps"
    how = rng.random()
    if not way.is_qemu(role) and (fault not in signals or how < 0.6):
        rules = fault.rules(rng, role, way)
    elif how < 0.8 and role not in way.writers and way.writers:
        call, most, since = rng.choice(ENDING)
        moment = Rule(call, rng.randint(1, most), rng.choice(("signal", "signalled")), signal.SIGSTOP, since=since)
        held = Held(way.writer, moment, rng.choice((0.0, 0.5, 7.0)))
    else:
        after_s = rng.uniform(0.001, 0.2 + NBYTES / (mib_per_s << 20))
    return Plan(
        seed, number, fault, role, way,
        relay=rng.choice(("once", "service")) if is_relayed and way.roles == ("source", "destination") else "",
        method=rng.choice(known),
        channels=rng.randint(1, 8),
        uri=rng.choice(("tcp", "unix")),
        again_by=_again(rng, way, known),
        release=rng.choice(RELEASES),
        is_encrypted=may_encrypt and rng.random() < 0.2,
        mib_per_s=mib_per_s,
        has_pump=rng.random() < 0.7,
        replaces=rng.random() < 0.5,
        rules=rules,
        held=held,
        after_s=after_s,
        size_limit=rng.randrange(4096, NBYTES) if fault.name == "file size limit" else 0,
    )  # fmt: skip


def _again(rng: random.Random, way: Way, methods: tuple[str, ...]) -> str:
    """Stored streams that are sent may be decoded and encoded again."""
    if way.source != "streams" or way.roles == ("destination",) or rng.random() < 0.6:
        return ""
    return rng.choice(methods)
