"""Memory between multifd and an unmodified QEMU, in both directions, byte for byte."""

from __future__ import annotations

import pytest

import multifd

MIB = 8


@pytest.fixture
def source_image(image, tmp_path):
    path = tmp_path / "guest.ram"
    path.write_bytes(image)
    assert len(image) == MIB << 20
    return path


@pytest.mark.parametrize("method", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("return_path", [False, True])
def test_qemu_to_multifd(qemu, receiver, image, source_image, tmp_path, method, return_path):
    """QEMU announces nothing: the channel count is told, the method comes from its packets."""
    out = tmp_path / "out.ram"
    destination = receiver(out, channels=3)
    machine = qemu("source", MIB, source_image)
    machine.multifd(method, 3, return_path=return_path)
    machine("migrate", uri=destination.uri)
    machine.wait_migrated()
    result = destination.join()
    assert out.read_bytes() == image
    assert result.method == method


@pytest.mark.parametrize("method", ["none", "zlib", "zlib:engine=zlib", "zstd", "zstd:engine=zstandard"])
def test_multifd_to_qemu(qemu, image, tmp_path, method):
    """A stock destination takes what we send, and answers on the return path."""
    machine = qemu("destination", MIB)
    machine.multifd(method.partition(":")[0], 2)
    machine("migrate-incoming", uri=f"unix:{tmp_path}/in")
    version = machine("query-version")["qemu"]
    dialect = "7.2" if (version["major"], version["minor"]) <= (8, 0) else "9.0"
    result = multifd.send(image, f"unix:{tmp_path}/in", method, channels=2, dialect=dialect)
    assert result.status == "completed"
    assert machine.memory(len(image), tmp_path) == image
