"""A restore that cannot succeed is refused before QEMU is told anything."""

from __future__ import annotations

import contextlib

import pytest
from manage.fake_qemu import FakeQemu
from mapped_files import build

from multifd.engine.canceller import Canceller
from multifd.errors import Cancelled, RamError
from multifd.manage.restore import restore
from multifd.ram.digest import make
from multifd.ram.image import open_source


@pytest.fixture
def path(image, tmp_path):
    """A capture with its digests."""
    path = tmp_path / "vm.ram"
    path.write_bytes(build([(b"pc.ram", image)]))
    with contextlib.closing(open_source(path)) as source:
        make(source)
    return path


def only_asks(fake):
    return fake.commands and all(command.startswith("query-") for command in fake.commands)


def test_a_damaged_capture(image, path):
    fake = FakeQemu(image, "inmigrate")
    with path.open("r+b") as file:
        file.seek(3 << 20)
        file.write(b"not what was there")
    with pytest.raises(RamError, match=r"does not match vm\.ram\.sha256: block pc\.ram at 0x"):
        restore(fake, path)
    assert only_asks(fake)


def test_no_digests_where_they_are_required(image, path):
    fake = FakeQemu(image, "inmigrate")
    path.with_name("vm.ram.sha256").unlink()
    with pytest.raises(RamError, match=r"there is no vm\.ram\.sha256"):
        restore(fake, path, digest="require")
    assert only_asks(fake)


def test_cancelled_while_it_compares(image, path):
    fake, canceller = FakeQemu(image, "inmigrate"), Canceller()
    with pytest.raises(Cancelled):
        restore(fake, path, on_digest=lambda done, total: canceller.cancel() and canceller.check(), canceller=canceller)
    assert only_asks(fake)


@pytest.mark.parametrize("method", ["zstd", "zstd:level=3", "zstd:level=auto", "zstd:level=-7"])
def test_a_level_is_the_senders_and_not_told_to_qemu(image, path, monkeypatch, method):
    """Also one that QEMU does not have."""
    fake, told = FakeQemu(image, "inmigrate"), {}

    def stop(monitor, uri):
        told.update(fake.parameters)
        raise Cancelled("as far as is asked here")

    monkeypatch.setattr("multifd.manage.restore._listen", stop)
    with pytest.raises(Cancelled):
        restore(fake, path, method, channels=3)
    assert (told["multifd-compression"], told["multifd-channels"], told["multifd-zstd-level"]) == ("zstd", 3, 1)
