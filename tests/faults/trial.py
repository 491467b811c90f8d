"""One migration by the real command line, of which one process is treated badly; everything that can be seen of it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from faults.command import CONNECT_TIMEOUT_S, Commands
from faults.fault import NOTHING
from faults.matrix import NBYTES, Plan
from faults.migration import Migration
from faults.outcome import Outcome
from faults.place import Place
from faults.process import Ends
from faults.sources import Sources
from faults.way import FILES
from interop.qemu import QemuMissing


class Trial:
    """One trial; use once.

    Args:
        plan: what to do.
        folder: empty, this trial's alone.
        sources: what is moved.
        credentials: of TLS.
        processes: to start the ends with.
    """

    def __init__(self, plan: Plan, folder: Path, sources: Sources, credentials: Path, processes: Ends) -> None:
        self._plan, self._processes, self._memory = plan, processes, sources.memory
        self._place = Place(plan, folder, sources.of(plan), sources.memory)
        self._commands = Commands(plan, self._place, credentials)

    def run(self) -> Outcome:
        """Do it."""
        outcome = Outcome(self._plan)
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                if "tmpfs" in self._plan.fault.name:
                    stack.enter_context(small_file_system(self._place.parent))
                self._place.prepare()
                self._try(outcome)
            except (NoSmallFileSystem, QemuMissing) as e:
                outcome.skipped = str(e)
        outcome.seconds = time.monotonic() - started
        return outcome

    def _try(self, outcome: Outcome) -> None:
        with Migration(self._plan, self._place, self._commands, self._processes) as migration:
            migration.run()
            outcome.ends, outcome.counts, outcome.fired = migration.ends, migration.counts, migration.has_fired
            self._place.look(outcome)
            if self._plan.way.destination == "qemu":
                outcome.is_there = migration.destination_has(self._memory)
        if migration.start_s > CONNECT_TIMEOUT_S / 2:
            outcome.skipped = f"the machine is too busy: it took {migration.start_s:.0f} s to start a process"
        elif outcome.writer.is_killed and self._may_try_again(outcome):
            outcome.retry = self._retry()

    def _may_try_again(self, outcome: Outcome) -> bool:
        """Whether there is a file to be replaced, or a folder to be made: streams replace nothing."""
        kind = self._plan.way.destination
        return kind in FILES and not (outcome.is_there and kind == "streams")

    def _retry(self) -> str:
        """The next migration to the same place, by the same names, is as if nothing had been."""
        plan = dataclasses.replace(
            self._plan, fault=NOTHING, rules=(), held=None, after_s=0.0, size_limit=0, mib_per_s=200
        )
        with Migration(plan, self._place, self._commands, self._processes) as migration:
            migration.run()
            ends = migration.ends
        if any(end.told != 0 for end in ends.values()):
            return "; ".join(f"{end.role} {end.status}: {end.err}" for end in ends.values())
        if wrong := self._place.wrong():
            return wrong
        left = self._place.others()
        return f"leaves {left}" if left else ""


class NoSmallFileSystem(Exception):
    """None may be mounted here."""


@contextlib.contextmanager
def small_file_system(folder: Path) -> Iterator[None]:
    """A tmpfs of a quarter of the memory's size there.

    Raises:
        NoSmallFileSystem: none may be mounted here.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={NBYTES // 4}", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        raise NoSmallFileSystem("mounting a small tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
