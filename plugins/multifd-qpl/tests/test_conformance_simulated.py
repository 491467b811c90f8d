"""qpl on a simulated IAA device, with the kit's ends and pages: the device is an object, which no spec can name."""

import pytest
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.simulator import SimulatedIaa

from multifd.pages import Geometry
from multifd.testing.harness import RecvEnd, SendEnd, round_trip
from multifd.testing.strategies import PACKET_KINDS, PAGE_SIZES, packet


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_round_trip_of_every_kind(page_size: int) -> None:
    """Full and short packets of every kind of page, in and out of order, on one channel."""
    full = Geometry.of(page_size).page_count
    with SimulatedIaa() as iaa:
        method = QplMethod(QplOptions(), library=iaa.library)
        with SendEnd(method, page_size) as send, RecvEnd(method, page_size) as recv:
            for seed, kind in enumerate(PACKET_KINDS):
                for count in (1, min(5, full), full):
                    round_trip(send, recv, packet(kind, seed, page_size, count), "scattered", kind)
                    round_trip(send, recv, packet(kind, seed + 1, page_size, count), "contiguous", kind)
            assert send.p.counters["completed"] > 0, "pages went through the device"
