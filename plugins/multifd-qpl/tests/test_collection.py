"""Errors outlive a migration; what they hold is collected at any moment, in any order.

CPython 3.11 and 3.12 crash when the collector frees a memoryview together with the cffi view of it.
"""

from __future__ import annotations

import child
import pytest

_FRAME = """
import gc, struct
from multifd.errors import MultifdError
from multifd_qpl.method import QplMethod, QplOptions
from multifd_qpl.simulator import Fault, Faults, SimulatedIaa
from qpl_ends import Ends, make_pages

def fails(method, cause):
    with Ends(method) as ends:
        if cause == "abort":
            ends.abort[0] = 1
        if cause == "damage":
            ends.receive(struct.pack(">2I", 4096, 3) + bytes(4096) + b"\\x07\\x00\\x00", bytearray(8192))
        elif cause == "misuse":
            ends.send(make_pages(4096, 129))
        else:
            ends.send(make_pages(4096, 8))

def collect_errors(make, cause):
    for threshold in range(1, 60):  # whether it crashes depends on the moment of the collection
        gc.set_threshold(threshold)
        kept = []
        try:
            fails(make(), cause)
        except (MultifdError, ValueError) as e:
            kept += [e, kept]
        assert kept
        del kept
    gc.set_threshold(700)
    gc.collect()
"""


@pytest.mark.parametrize(
    ("software", "cause"),
    [("isal", "damage"), ("isal", "abort"), ("libqpl", "damage"), ("libqpl", "abort"), ("libqpl", "misuse")],
)
def test_errors_in_software(libqpl: str, software: str, cause: str) -> None:
    make = f"lambda: QplMethod(QplOptions(hardware='off', software={software!r}))"
    child.run(f"{_FRAME}\ncollect_errors({make}, {cause!r})", MULTIFD_QPL_LIBRARY=libqpl)


@pytest.mark.parametrize("cause", ["damage", "abort", "misuse"])
def test_errors_on_a_device(cause: str) -> None:
    code = f"""
with SimulatedIaa() as iaa:
    collect_errors(lambda: QplMethod(library=iaa.library), {cause!r})
"""
    child.run(_FRAME + code)
