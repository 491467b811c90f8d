"""One migration between processes, of which one may be treated badly."""

from __future__ import annotations

import signal
import time
from types import TracebackType
from typing import Self

from faults.command import Commands
from faults.matrix import Held, Plan
from faults.outcome import End
from faults.place import Place
from faults.process import DEADLINE_S, Ends, Running, Told
from faults.qemu_end import QemuEnd
from faults.shim import Counts

PATIENCE_S = 15.0
"""How long after its source's end another end may take to notice; longer on no account but that nobody ever came. A
destination whose main is complete waits 10 s for its channels (`multifd.engine.recv_main`)."""
_POLL_S = 0.01


class Migration:
    """The processes of a migration; use once, as a context manager.

    Args:
        plan: which it is, and what goes wrong.
        place: prepared.
        commands: what they are started with.
        processes: to start the ends with.
    """

    def __init__(self, plan: Plan, place: Place, commands: Commands, processes: Ends) -> None:
        self._plan, self._place, self._commands, self._processes = plan, place, commands, processes
        self._running: dict[str, Running | QemuEnd] = {}
        self._counts = {role: Counts(place.given / f"{role}.counts") for role in plan.way.processes}
        self.start_s = 0.0
        """How long it took to start who begins."""
        self.has_fired = False
        """Whether what was planned happened."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for running in self._running.values():
            running.close()

    @property
    def ends(self) -> dict[str, End]:
        """By role."""
        return {role: running.end for role, running in self._running.items()}

    @property
    def counts(self) -> dict[str, int]:
        """How often the victim made which call."""
        return self._counts[self._plan.role].read()

    def destination_has(self, memory: bytes) -> bool:
        """Whether a QEMU that is the destination has completed with that memory."""
        end = self._running.get("destination")
        return isinstance(end, QemuEnd) and end.end.status == 0 and end.has(memory)

    def run(self) -> None:
        """All of it, to the end of every process."""
        deadline = time.monotonic() + DEADLINE_S
        roles = self._plan.way.roles
        to = self._start_listeners(roles[1:])
        if to or len(roles) == 1:
            begun = time.monotonic()
            first = self._start_first(roles[0], to)
            first.wait_ready()
            self.start_s = time.monotonic() - begun
            self._disturb()
            first.wait(deadline - time.monotonic())
        for role in ("destination", "relay") if self._plan.relay == "service" else ("relay", "destination"):
            if role in self._running:
                self._end(self._running[role], deadline)
        if self._plan.rules:
            self.has_fired = self.counts["fired"] > 0

    def _start_listeners(self, roles: tuple[str, ...]) -> str:
        """Who stands behind the first end; returns where that one connects, empty if somebody has ended already."""
        uri = ""
        if "destination" in roles:
            uri = self._start_destination()
            if not uri:
                return ""
        if "relay" in roles or self._plan.relay:
            relay = self._start("relay", self._commands.relay(uri))
            if self._plan.relay == "service":
                relay.end.kind = "service"
            uri = self._listening("relay", relay)
        return uri

    def _listening(self, role: str, running: Running) -> str:
        """Where it listens; one that stands still before it does goes on at once."""
        held = self._plan.held
        while held is not None and held.role == role and not running.is_listening(_POLL_S):
            if self._counts[role].read()["fired"]:
                running.resume()
                break
        return running.listening()

    def _start_destination(self) -> str:
        if not self._plan.way.is_qemu("destination"):
            return self._listening("destination", self._start("destination", self._commands.receive()))
        self._running["destination"] = end = QemuEnd("destination", self._plan, self._place.given)
        return end.listening("tcp:127.0.0.1:0" if self._plan.uri == "tcp" else f"unix:{self._place.given}/in")

    def _start_first(self, role: str, to: str) -> Running | QemuEnd:
        if role == "destination":
            return self._start(role, self._commands.receive())
        if not self._plan.way.is_qemu(role):
            return self._start(role, self._commands.send(to))
        self._running[role] = end = QemuEnd(role, self._plan, self._place.given, self._place.source.read_bytes())
        end.migrate(to)
        return end

    def _start(self, role: str, command: list[object]) -> Running:
        self._running[role] = running = self._processes.start(role, command, self._told(role))
        return running

    def _told(self, role: str) -> Told:
        plan = self._plan
        environment = {"TMPDIR": str(self._place.scratch)} | ({} if plan.has_pump else {"MULTIFD_PUMP": "off"})
        is_victim = role == plan.role
        rules = plan.rules if is_victim else ()
        if plan.held is not None and role == plan.held.role:
            rules = (plan.held.rule,)
        return Told(self._place.folder, self._counts[role], rules, environment, plan.size_limit if is_victim else 0)

    # -- what goes wrong ----------------------------------------------------------------------------

    def _disturb(self) -> None:
        """Send the signal, if the victim does not get it by itself."""
        plan = self._plan
        victim = self._running[plan.role] if plan.signal else None
        if victim is None or plan.signal is None:
            self.has_fired = True
        elif plan.held is not None:
            self._disturb_while_held(victim, plan.signal, plan.held)
        elif plan.after_s and not victim.wait(plan.after_s):
            self.has_fired = True
            victim.signal(plan.signal)

    def _disturb_while_held(self, victim: Running | QemuEnd, number: signal.Signals, held: Held) -> None:
        holder, counts = self._running[held.role], self._counts[held.role]
        assert isinstance(holder, Running)
        while not counts.read()["fired"]:
            if holder.wait(_POLL_S):
                return
        if not victim.wait(0):
            self.has_fired = True
            victim.signal(number)
            victim.wait(held.seconds)
        holder.resume()

    def _end(self, running: Running | QemuEnd, deadline: float) -> None:
        """One end notices that its source is gone, or is told; a service always is, and a QEMU may hang as it likes."""
        if running.end.kind == "service":
            running.signal(signal.SIGTERM)
        if not running.wait(PATIENCE_S) and running.end.kind != "qemu":
            # Who waits for a first connection would go on; it must not be more than that.
            running.end.was_told_to_stop = True
            running.signal(signal.SIGTERM)
            running.wait(max(deadline - time.monotonic(), PATIENCE_S))
