"""`multifd tls new`: all of its files, or nothing."""

from __future__ import annotations

import errno
import os

import pytest

from multifd.cli.new_credentials import new_credentials
from multifd.errors import UsageError


@pytest.mark.parametrize("is_there", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, is_there):
    pytest.importorskip("cryptography", reason="the package cryptography is not installed")
    folder = tmp_path / "credentials"
    if is_there:
        folder.mkdir()

    def full(path, *args, **options):
        if os.fspath(path).endswith("client-cert.pem"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return open_(path, *args, **options)

    open_ = os.open
    monkeypatch.setattr(os, "open", full)
    with pytest.raises(UsageError, match=r"credentials: No space left on device"):
        new_credentials(folder, ["localhost"])
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.pem"))
    assert folder.exists() == is_there
