"""A real QEMU destination that is configured otherwise: named with what to check, and never as an unknown outcome."""

from __future__ import annotations

import pytest

import multifd
from multifd.errors import MultifdError, OutcomeUnknown

MIB = 8
UUID = "11111111-2222-3333-4444-555555555555"
HANGS_S = 8
"""Where nothing but a timeout ends it."""
CASES = {
    "multifd is off": ({"multifd": False}, {}, "multifd off|fewer multifd-channels"),
    "more channels there": ({"channels": 4}, {"timeout": HANGS_S}, "more than 2 channels"),
    "fewer channels there": ({"channels": 1}, {"channels": 3}, "fewer multifd-channels than 3"),
    "another method": ({"method": "zlib"}, {"method": "zstd", "timeout": HANGS_S}, "multifd-compression"),
    "another uuid": ({"arguments": ("-uuid", UUID)}, {}, "uuid"),
    "another machine type": ({"machine": "pc"}, {}, "machine type"),
    "another memory size": ({"mib": 2 * MIB}, {}, "memory size"),
}


@pytest.mark.parametrize("release", ["system", "newer"])
@pytest.mark.parametrize(("there", "here", "words"), CASES.values(), ids=CASES)
def test_what_to_check_is_told(qemu, image, release, there, here, words):
    options = {
        "machine": "none",
        "mib": MIB,
        "channels": 2,
        "method": "none",
        "multifd": True,
        "arguments": (),
        **there,
    }
    machine = qemu(
        "destination", options["mib"], release, machine=options["machine"], is_incoming=True,
        arguments=options["arguments"],
    )  # fmt: skip
    if options["multifd"]:
        machine.multifd(options["method"], options["channels"])
    dialect = "7.2" if machine.release.version <= (8, 0) else "9.0"
    with pytest.raises(MultifdError) as caught:
        multifd.send(
            image, machine.listen("tcp:127.0.0.1:0"),
            **{"method": "none", "channels": 2, "dialect": dialect, "timeout": 40, "connect_timeout": 5, **here},
        )  # fmt: skip
    assert not isinstance(caught.value, OutcomeUnknown)
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert any(word in said for word in words.split("|")), said
    assert "intact and the good copy" in said


def test_a_destination_that_completes_without_what_was_sent_is_no_success(qemu, image):
    """A dialect that is not the destination's: QEMU 10.0 runs over the sync points and says that it is done."""
    machine = qemu("destination", MIB, "newer", machine="none", is_incoming=True)
    machine.multifd("none", 2)
    with pytest.raises(MultifdError) as caught:
        multifd.send(image[: 64 * 4096] + bytes(len(image) - 64 * 4096), machine.listen("tcp:127.0.0.1:0"),
                     dialect="7.2", timeout=HANGS_S)  # fmt: skip
    assert not isinstance(caught.value, OutcomeUnknown)
