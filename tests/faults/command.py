"""The command lines of the ends of a migration."""

from __future__ import annotations

from pathlib import Path

from faults.matrix import Plan
from faults.place import Place
from faults.sources import dialect

TIMEOUT_S = 60
"""Given to every end: how long it may wait for another."""
CONNECT_TIMEOUT_S = 30
DRAIN_S = 20
HOST = "localhost"
"""Whom certificates name."""


class Commands:
    """What the processes of one migration are started with.

    Args:
        plan: which migration.
        place: where from and to.
        credentials: of TLS.
    """

    def __init__(self, plan: Plan, place: Place, credentials: Path) -> None:
        self._plan, self._place, self._credentials = plan, place, credentials

    def receive(self) -> list[object]:
        """The destination's."""
        plan, place = self._plan, self._place
        is_alone = plan.way.roles == ("destination",)
        common: list[object] = [
            place.source_address if is_alone else self._listen("socket"), place.address, "--timeout", TIMEOUT_S,
            "--json",
        ]  # fmt: skip
        if not is_alone:
            common += ["--method", plan.again_by or plan.method, *self._tls("tls")]
        if plan.way.source == "qemu":
            common += ["--channels", plan.channels]  # which it does not announce
        if plan.way.destination == "arena":
            return ["faults.arena_end", "receive", *common]
        file_format = [] if plan.way.destination == "streams" else ["--format", plan.way.destination]
        return ["multifd.cli.main", "receive", *common, *file_format]

    def send(self, to: str) -> list[object]:
        """The source's.

        Args:
            to: where the next end listens; empty: it stores into a folder itself.
        """
        plan, place = self._plan, self._place
        command: list[object] = ["multifd.cli.main", "send"]
        if plan.way.source == "arena":
            command = ["faults.arena_end", "send"]
        command += [place.source_address, to or place.address, "--json"]
        if plan.way.source != "streams":
            command += ["--method", plan.method, "--channels", plan.channels]
        elif plan.again_by:
            command += ["--method", plan.again_by]
        if plan.way.source in ("raw", "mapped-ram"):
            command += ["--dialect", dialect(plan)]
        return [
            *command, *(self._tls("tls", HOST) if to else []), "--max-bandwidth", f"{plan.mib_per_s}M",
            "--timeout", TIMEOUT_S, "--connect-timeout", CONNECT_TIMEOUT_S,
        ]  # fmt: skip

    def relay(self, to: str) -> list[object]:
        """The relay's.

        Args:
            to: where the destination listens; empty: it stores into a folder itself.
        """
        plan = self._plan
        if plan.relay == "service":
            return self._serve(to)
        method = plan.again_by or plan.method
        return [
            "multifd.cli.main", "relay", self._listen("relay"), to or self._place.address, "--in", method,
            "--out", method, "--once", "--json", "--timeout", TIMEOUT_S, "--connect-timeout", CONNECT_TIMEOUT_S,
            *self._tls("in-tls"), *(self._tls("out-tls", HOST) if to else []),
        ]  # fmt: skip

    def _serve(self, to: str) -> list[object]:
        method = self._plan.again_by or self._plan.method
        lines = [
            "[routes.one]", f'listen = "{self._listen("relay")}"', f'to = "{to}"', f'in = "{method}"',
            f'out = "{method}"', f"connect-timeout = {CONNECT_TIMEOUT_S}.0", f"timeout = {TIMEOUT_S}.0",
        ]  # fmt: skip
        if self._plan.is_encrypted:
            creds = f'creds = "{self._credentials}"'
            lines += ["[routes.one.in-tls]", creds, "[routes.one.out-tls]", creds, f'hostname = "{HOST}"']
        path = self._place.given / "relay.toml"
        path.write_text("\n".join(lines) + "\n")
        return ["multifd.cli.main", "relay", "--config", path, "--json", "--drain-timeout", DRAIN_S]

    def _listen(self, name: str) -> str:
        return "tcp:127.0.0.1:0" if self._plan.uri == "tcp" else f"unix:{self._place.folder}/{name}"

    def _tls(self, prefix: str, hostname: str = "") -> list[object]:
        if not self._plan.is_encrypted:
            return []
        return [f"--{prefix}-creds", self._credentials, *([f"--{prefix}-hostname", hostname] if hostname else [])]
