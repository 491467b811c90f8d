"""One migration by the real command line, of which one process is treated badly; everything that can be seen of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from faults.matrix import NBYTES, Plan
from faults.outcome import Outcome
from faults.process import DEADLINE_S, Ends, Running, Told
from faults.shim import Counts
from interop.mapped import read_blocks

TIMEOUT_S = 60
"""Given to every end: how long it may wait for another."""
CONNECT_TIMEOUT_S = 30
PATIENCE_S = 10.0
"""How long after its source's end another end may take to notice; longer on no account but that nobody ever came."""
OLD = b"what was there before" * 1000


class Trial:
    """One trial; use once.

    Args:
        plan: what to do.
        folder: empty, this trial's alone.
        sources: a file for each medium, with the same memory.
        processes: to start the ends with.
    """

    def __init__(self, plan: Plan, folder: Path, sources: dict[str, Path], processes: Ends) -> None:
        self._plan, self._folder, self._processes = plan, folder, processes
        (folder / "dest").mkdir()
        self._source, self._out = folder / "source", folder / "dest" / "out"
        self._sidecar = folder / "dest" / "out.sha256"
        shutil.copyfile(sources[plan.medium], self._source)
        self._original = sources[plan.medium].read_bytes()
        self._memory = sources["raw"].read_bytes()
        self._running: dict[str, Running] = {}
        self._start_s = 0.0
        self._counts = Counts(folder.with_suffix(".counts"))

    def run(self) -> Outcome:
        """Do it."""
        outcome = Outcome(self._plan)
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                if "tmpfs" in self._plan.fault.name:
                    stack.enter_context(small_file_system(self._out.parent))
            except OSError as e:
                outcome.skipped = str(e)
                return outcome
            stack.callback(self._close)
            stack.callback(self._counts.path.unlink)
            if self._plan.medium == "arena":
                self._out.write_bytes(bytes(NBYTES))
            elif self._plan.replaces:
                self._out.write_bytes(OLD)
            outcome.fired = self._migrate(started + DEADLINE_S)
            outcome.ends = {role: running.end for role, running in self._running.items()}
            outcome.counts = self._counts.read()
            self._look(outcome)
            if self._start_s > CONNECT_TIMEOUT_S / 2:
                outcome.skipped = f"the machine is too busy: it took {self._start_s:.0f} s to start a process"
            if outcome.ends["destination"].is_killed and self._plan.medium != "arena":
                outcome.retry = self._retry()
        outcome.seconds = time.monotonic() - started
        return outcome

    # -- the migration ------------------------------------------------------------------------------

    def _migrate(self, deadline: float) -> bool:
        """Run it to its end; whether what was planned happened."""
        uri = self._start("destination", *self._receive_arguments()).listening()
        if uri and self._plan.is_relayed:
            listen = "tcp:127.0.0.1:0" if self._plan.uri == "tcp" else f"unix:{self._folder}/relay"
            uri = self._start("relay", *self._relay_arguments(listen, uri)).listening()
        is_sent, listening_since = False, time.monotonic()
        if uri:
            source = self._start("source", *self._send_arguments(uri))
            victim = self._running[self._plan.role]
            source.wait_ready()
            self._start_s = time.monotonic() - listening_since
            if self._plan.after_s and self._plan.signal and not victim.wait(self._plan.after_s):
                victim.signal(self._plan.signal)
                is_sent = True
            source.wait(deadline - time.monotonic())
        for running in (self._running.get("relay"), self._running["destination"]):
            if running is not None and not running.wait(PATIENCE_S):
                # Who waits for a first connection would go on; it must not be more than that.
                running.end.was_told_to_stop = True
                running.signal(signal.SIGTERM)
                running.wait(deadline - time.monotonic())
        if self._plan.rules:
            return self._counts.read()["fired"] > 0
        return is_sent if self._plan.signal else True

    def _start(self, role: str, *command: object) -> Running:
        self._running[role] = running = self._processes.start(role, command, self._told(role))
        return running

    def _told(self, role: str) -> Told:
        plan = self._plan
        environment = {} if plan.has_pump else {"MULTIFD_PUMP": "off"}
        if role == plan.role:
            return Told(self._folder, self._counts, plan.rules, environment, plan.size_limit)
        counts = Counts(self._folder.with_suffix(f".{role}"))
        return Told(self._folder, counts, (), environment, 0)

    def _receive_arguments(self) -> list[object]:
        uri = "tcp:127.0.0.1:0" if self._plan.uri == "tcp" else f"unix:{self._folder}/socket"
        common = [uri, self._out, "--timeout", TIMEOUT_S, "--json", "--method", self._plan.method]
        if self._plan.medium == "arena":
            return ["faults.arena_end", "receive", *common]
        return ["multifd.cli.main", "receive", *common, "--format", self._plan.medium]

    def _relay_arguments(self, listen: str, to: str) -> list[object]:
        return [
            "multifd.cli.main", "relay", listen, to, "--in", self._plan.method, "--out", self._plan.method, "--once",
            "--json", "--timeout", TIMEOUT_S, "--connect-timeout", CONNECT_TIMEOUT_S,
        ]  # fmt: skip

    def _send_arguments(self, uri: str) -> list[object]:
        is_arena = self._plan.medium == "arena"
        start = ["faults.arena_end", "send"] if is_arena else ["multifd.cli.main", "send", "--dialect", "9.0"]
        return [
            *start, self._source, uri, "--method", self._plan.method, "--channels", self._plan.channels, "--json",
            "--max-bandwidth", f"{self._plan.mib_per_s}M", "--timeout", TIMEOUT_S,
            "--connect-timeout", CONNECT_TIMEOUT_S,
        ]  # fmt: skip

    # -- afterwards ---------------------------------------------------------------------------------

    def _look(self, outcome: Outcome) -> None:
        """What is where, by nothing of multifd."""
        source = self._source.read_bytes()
        if self._plan.medium == "arena":
            outcome.is_there = self._out.read_bytes() == source
        else:
            outcome.source_changed = source != self._original
            outcome.is_old = self._plan.replaces and self._out.exists() and self._out.read_bytes() == OLD
            if self._out.exists() and not outcome.is_old:
                outcome.stray = self._compare()
                outcome.is_there = not outcome.stray
                outcome.stray = outcome.stray or self._compare_sidecar()
        left = [*self._out.parent.iterdir(), *self._folder.iterdir()]
        known = {self._out, self._out.parent, self._source}
        if outcome.is_there:
            known.add(self._sidecar)
        outcome.leftovers = tuple(sorted(path.name for path in left if path not in known))

    def _compare_sidecar(self) -> str:
        """What is wrong with the digests beside the file, if there are any; empty if nothing."""
        if not self._sidecar.exists():
            return ""
        said, found = self._sidecar.read_text().split()[0], hashlib.sha256(self._out.read_bytes()).hexdigest()
        return "" if said == found else "a complete file, and digests of another one beside it"

    def _compare(self) -> str:
        """What is wrong with the file under the final name; empty if nothing."""
        try:
            found = self._out.read_bytes() if self._plan.medium == "raw" else read_blocks(self._out)["ram"]
        except Exception as e:
            return f"not a capture: {type(e).__name__}: {e}"
        if found == self._memory:
            return ""
        if len(found) != len(self._memory):
            return f"{len(found)} bytes, expected {len(self._memory)}"
        first = next(i for i, (a, b) in enumerate(zip(found, self._memory, strict=True)) if a != b)
        return f"other memory, from byte {first} on"

    def _retry(self) -> str:
        """The next migration to the same place, by the same names, is as if nothing had been."""
        receive = self._processes.start("destination", self._receive_arguments(), self._told("another"))
        try:
            send = self._processes.start("source", self._send_arguments(receive.listening()), self._told("another"))
            try:
                if not (send.wait(DEADLINE_S) and receive.wait(DEADLINE_S)):
                    return "does not end"
            finally:
                send.close()
        finally:
            receive.close()
        if (send.end.status, receive.end.status) != (0, 0):
            return f"source {send.end.status}, destination {receive.end.status}: {send.end.err}{receive.end.err}"
        if wrong := self._compare() or self._compare_sidecar():
            return wrong
        left = [path.name for path in self._out.parent.iterdir() if path not in (self._out, self._sidecar)]
        return f"leaves {left}" if left else ""

    def _close(self) -> None:
        for running in self._running.values():
            running.close()


@contextlib.contextmanager
def small_file_system(folder: Path) -> Iterator[None]:
    """A tmpfs of half the memory's size there.

    Raises:
        OSError: none may be mounted here.
    """
    command = ["mount", "-t", "tmpfs", "-o", f"size={NBYTES // 2}", "none", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        raise OSError("mounting a small tmpfs needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
