"""qpl's recv by an IAA, a simulated one, that does its work or fails: the same pages as by the rule, or refused.

An input's first byte says how the device behaves; the rest is as `recv_qpl`'s.
"""

from __future__ import annotations

from collections.abc import Iterator

from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.simulator import Fault, Faults, SimulatedIaa

from multifd.pages import Geometry
from multifd.testing.harness import RecvEnd
from tests.fuzz import channel
from tests.fuzz.channel import PAGE
from tests.fuzz.targets import recv_qpl

COVERS = ("multifd_qpl.jobs", "multifd_qpl.watch")
LONGEST = recv_qpl.LONGEST
DEVICES = (None, *Fault)
_FEW = Geometry(PAGE, channel.MOST_PAGES)
"""A job for each page that a packet may have: to make 128 took longer than all else."""


def seeds() -> Iterator[bytes]:
    """The same packets to a device of each kind."""
    few = [seed for seed in recv_qpl.seeds() if len(seed) < 1000]
    for which in range(len(DEVICES)):
        yield bytes([which]) + few[which % len(few)]


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """As the channel's, behind the first byte."""
    yield 0, 1
    yield from ((1 + at, nbytes) for at, nbytes in channel.fields(data[1:]))


def run(data: bytes) -> str:
    """Receive it."""
    fault = DEVICES[(data or b"\0")[0] % len(DEVICES)]
    with SimulatedIaa(faults=Faults(always=fault)) as iaa:
        ends = [*channel.by_both_hooks(QplMethod(QplOptions(), library=iaa.library)), RecvEnd(recv_qpl._RULE, PAGE)]
        for end in ends:
            end.geometry = end.p.geometry = _FEW
        seen = channel.run(data[1:], ends)
    return channel.outcome(seen)
