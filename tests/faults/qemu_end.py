"""A stock QEMU as an end, which looks like any other process of a migration."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from faults.matrix import NBYTES, Plan
from faults.outcome import End
from interop.qemu import Qemu, QmpError, newer_release, system_release

MIB = NBYTES >> 20
_POLL_S = 0.02
_HANGS_S = 10.0
"""Without an answer on QMP a QEMU hangs: some do whose source goes away in its middle."""


class QemuEnd:
    """A QEMU of RAM alone, paused; its migration is the end's command.

    Args:
        role: source or destination.
        plan: of the migration.
        folder: for its files.
        image: what a source's RAM holds.

    Raises:
        QemuMissing: there is none of that release.
    """

    def __init__(self, role: str, plan: Plan, folder: Path, image: bytes | None = None) -> None:
        self.end = End(role, kind="qemu")
        release = newer_release() if plan.release == "newer" else system_release()
        name = f"qemu-{role}"
        self._qemu = Qemu(release, folder, name, MIB, machine="none", image=image, is_incoming=role == "destination")
        self._is_over = self._hangs = False
        self._qemu.expect_answers_within(_HANGS_S)
        try:
            self._qemu.multifd(plan.again_by or plan.method, plan.channels, return_path=role == "source")
            if role == "source":
                self._qemu("migrate-set-parameters", **{"max-bandwidth": plan.mib_per_s << 20})
        except BaseException:
            self._qemu.stop()
            raise

    def listening(self, uri: str) -> str:
        """Listen there; where that is."""
        return self._qemu.listen(uri)

    def migrate(self, uri: str) -> None:
        """Begin."""
        self._qemu("migrate", uri=uri)

    def signal(self, number: signal.Signals) -> None:
        """Send it one."""
        self._qemu.process.send_signal(number)

    def wait_ready(self) -> None:
        """It is."""

    def wait(self, seconds: float) -> bool:
        """Whether its migration or its process ended within that time; then `end` is complete."""
        deadline = time.monotonic() + seconds
        while not (self._is_over or self._hangs):
            self._look()
            if not self._is_over and time.monotonic() > deadline:
                break
            time.sleep(_POLL_S)
        return self._is_over

    def _look(self) -> None:
        status = self._qemu.process.poll()
        if status is not None:
            self.end.status = status or 1  # it did not end by itself after success
        else:
            try:
                state = self._qemu("query-migrate").get("status")
            except TimeoutError:
                self._hangs = True
                return
            except (QmpError, OSError):
                return  # it is about to end
            if state not in ("completed", "failed", "cancelled"):
                return
            self.end.status = 0 if state == "completed" else 5
        self.end.err = self._qemu.stderr()
        self._is_over = True

    def has(self, memory: bytes) -> bool:
        """Whether its RAM holds that."""
        return self._qemu.ram() == memory

    def close(self) -> None:
        """Nothing of it is left."""
        self._qemu.stop()
