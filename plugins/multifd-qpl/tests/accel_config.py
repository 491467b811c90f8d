"""An accel-config for tests: carries out commands on a tree of files, and refuses what the kernel would refuse.

Rules as in drivers/dma/idxd/sysfs.c of Linux 6.x: engines and queues are configured while their device is disabled
(a queue while it is disabled itself), a device ends after its queues and starts before them, the sizes of all
queues together are at most the device's, and a queue of type user gets its node when it is enabled.
"""

from __future__ import annotations

import shlex
from pathlib import Path

_ATTRIBUTES = {
    "group-id": "group_id",
    "mode": "mode",
    "wq-size": "size",
    "threshold": "threshold",
    "priority": "priority",
    "block-on-fault": "block_on_fault",
    "type": "type",
    "name": "name",
    "driver-name": "driver_name",
    "max-transfer-size": "max_transfer_size",
}


class Refused(Exception):
    """The kernel would answer this with an error."""


class AccelConfig:
    """Commands on the tree below `root`."""

    def __init__(self, root: Path) -> None:
        self._root, self._base = root, root / "sys/bus/dsa/devices"

    def run(self, command: str) -> None:
        """One line for a shell."""
        words = shlex.split(command, comments=True)
        program, verb, target, *options = words
        if program != "accel-config":
            raise Refused(f"not an accel-config command: {command}")
        getattr(self, "_" + verb.replace("-", "_"))(self._base / target, dict(o[2:].split("=", 1) for o in options))

    @staticmethod
    def _is_enabled(path: Path) -> bool:
        return (path / "state").read_text().strip() == "enabled"

    def _queues(self, device: Path) -> list[Path]:
        return sorted(device.glob("wq*"))

    def _expect(self, fact: bool, what: str) -> None:
        if not fact:
            raise Refused(what)

    def _disable_wq(self, path: Path, _: dict[str, str]) -> None:
        self._expect(self._is_enabled(path), f"{path.name} is not enabled")
        (path / "state").write_text("disabled\n")
        (self._root / "dev/iax" / path.name).unlink(missing_ok=True)

    def _disable_device(self, path: Path, _: dict[str, str]) -> None:
        self._expect(self._is_enabled(path), f"{path.name} is not enabled")
        self._expect(not any(map(self._is_enabled, self._queues(path))), f"{path.name} has enabled queues")
        (path / "state").write_text("disabled\n")

    def _config_engine(self, path: Path, options: dict[str, str]) -> None:
        self._expect(not self._is_enabled(path.parent), f"{path.parent.name} is enabled")
        path.mkdir(exist_ok=True)
        (path / "group_id").write_text(options["group-id"] + "\n")

    def _config_wq(self, path: Path, options: dict[str, str]) -> None:
        self._expect(not self._is_enabled(path.parent), f"{path.parent.name} is enabled")
        if not path.exists():
            path.mkdir()
            (path / "state").write_text("disabled\n")
        self._expect(not self._is_enabled(path), f"{path.name} is enabled")
        for option, value in options.items():
            (path / _ATTRIBUTES[option]).write_text(value + "\n")
        sizes = [int((q / "size").read_text()) for q in self._queues(path.parent) if (q / "size").exists()]
        self._expect(sum(sizes) <= 128, "more entries than the device has")

    def _enable_device(self, path: Path, _: dict[str, str]) -> None:
        self._expect(not self._is_enabled(path), f"{path.name} is enabled")
        (path / "state").write_text("enabled\n")

    def _enable_wq(self, path: Path, _: dict[str, str]) -> None:
        self._expect(self._is_enabled(path.parent), f"{path.parent.name} is not enabled")
        self._expect(not self._is_enabled(path), f"{path.name} is enabled")
        (path / "state").write_text("enabled\n")
        if (path / "type").read_text().strip() == "user":
            node = self._root / "dev/iax" / path.name
            node.parent.mkdir(parents=True, exist_ok=True)
            node.touch()
