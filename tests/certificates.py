"""Credentials of every kind that tests need, made anew in every run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from multifd.cli.new_credentials import Authority

HOSTS = ["localhost", "127.0.0.1", "::1", "vm.example"]


class Folders:
    """Folders in QEMU's layout, by what is wrong with them."""

    def __init__(self, base: Path) -> None:
        pytest.importorskip("cryptography", reason="the package cryptography is not installed")
        self._base = base
        ours, theirs = Authority("our CA"), Authority("their CA")
        server, client = ours.issue("server", HOSTS, "server"), ours.issue("client", ["client.example"], "client")
        self.good = self._make("good", ours.pem, server, client)
        """What both ends trust and have."""
        self.other = self._make(
            "other", theirs.pem, theirs.issue("server", HOSTS, "server"), theirs.issue("client", ["c"], "client")
        )
        """All of another CA."""
        self.foreign = self._make(
            "foreign", ours.pem, theirs.issue("server", HOSTS, "server"), theirs.issue("client", ["c"], "client")
        )
        """It trusts our CA, and shows certificates of another."""
        self.elsewhere = self._make("elsewhere", ours.pem, ours.issue("server", ["vm.example"], "server"), client)
        """Its server's certificate is for another name than these tests' hosts."""
        self.bare = self._make("bare", ours.pem, server, None)
        """Without a client's certificate."""
        self.expired = self._make(
            "expired", ours.pem, ours.issue("server", HOSTS, "server", first_day=-9, last_day=-1),
            ours.issue("client", ["c"], "client", first_day=-9, last_day=-1),
        )  # fmt: skip
        self.future = self._make(
            "future", ours.pem, ours.issue("server", HOSTS, "server", first_day=1, last_day=9),
            ours.issue("client", ["c"], "client", first_day=1, last_day=9),
        )  # fmt: skip

    def _make(
        self, name: str, authority: bytes, server: tuple[bytes, bytes], client: tuple[bytes, bytes] | None
    ) -> Path:
        folder = self._base / name
        folder.mkdir()
        (folder / "ca-cert.pem").write_bytes(authority)
        for role, pair in (("server", server), ("client", client)):
            for what, data in zip(("cert", "key"), pair or (), strict=False):
                (folder / f"{role}-{what}.pem").write_bytes(data)
        return folder

    def copy(self, folder: Path, to: Path) -> Path:
        """A copy that a test may damage."""
        to.mkdir()
        for name in os.listdir(folder):
            (to / name).write_bytes((folder / name).read_bytes())
        return to
