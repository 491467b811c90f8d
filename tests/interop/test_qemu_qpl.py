"""Memory between multifd and a QEMU that has qpl compiled in, in both directions, byte for byte.

Debian's QEMUs have no qpl: these tests need one that MULTIFD_QEMU_QPL names. 10.0.2 and 10.0.13 on libqpl 1.6.0
were tried.
"""

from __future__ import annotations

import pytest

import multifd
from multifd.errors import MethodUnavailable
from multifd.registry import load_method

MIB = 8
METHOD = "qpl"


@pytest.fixture(autouse=True)
def _needs_a_qemu_with_qpl(releases):
    """Before anything is started."""
    releases("qpl")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("return_path", [False, True])
def test_qemu_to_multifd(qemu, receiver, image, tmp_path, channels, return_path):
    out = tmp_path / "out.ram"
    destination = receiver(out, channels=channels)
    machine = qemu("source", MIB, "qpl", machine="none", image=image)
    machine.multifd(METHOD, channels, return_path=return_path)
    machine("migrate", uri=destination.uri)
    machine.wait_migrated()
    result = destination.join()
    assert out.read_bytes() == image
    assert result.method == METHOD


@pytest.mark.parametrize("engine", ["isal", "libqpl"])
@pytest.mark.parametrize("channels", [1, 3])
def test_multifd_to_qemu(qemu, image, tmp_path, channels, engine):
    """By each engine that is here."""
    try:
        method = load_method(f"{METHOD}:software={engine}")
    except MethodUnavailable as e:
        pytest.skip(str(e))
    machine = qemu("destination", MIB, "qpl", machine="none", is_incoming=True)
    machine.multifd(METHOD, channels)
    result = multifd.send(image, machine.listen(f"unix:{tmp_path}/in"), method, channels=channels, dialect="9.0")
    assert result.status == "completed"
    assert machine.ram() == image


def test_qemu_to_qemu(qemu, image, tmp_path):
    """The measure: what fails here is not multifd's."""
    destination = qemu("destination", MIB, "qpl", machine="none", is_incoming=True)
    destination.multifd(METHOD, 2)
    uri = destination.listen(f"unix:{tmp_path}/in")
    source = qemu("source", MIB, "qpl", machine="none", image=image)
    source.multifd(METHOD, 2)
    source("migrate", uri=uri)
    source.wait_migrated()
    destination.wait_migrated()
    assert destination.ram() == image
