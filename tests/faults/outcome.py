"""What can be seen of a trial when it is over."""

from __future__ import annotations

import contextlib
import json
import signal
from dataclasses import dataclass, field
from typing import Any

from faults.matrix import Plan


@dataclass
class End:
    """A process of a migration, and what is known of it when it is over."""

    role: str
    kind: str = "command"
    """Or ``service``, which outlives its migrations, or ``qemu``."""
    status: int | None = None
    """Of its exit, negative for a signal; None: it did not end."""
    out: str = ""
    err: str = ""
    was_told_to_stop: bool = False
    """By the runner: it still waited, though its source was gone."""

    @property
    def is_killed(self) -> bool:
        """Whether it could not say anything."""
        return self.status == -signal.SIGKILL

    @property
    def told(self) -> int | None:
        """The status that is told of the migration: a service's is in its document, None if it knows of none."""
        if self.kind != "service" or self.status not in (0, 130, 143):
            return self.status
        states = [document["status"] for document in self.documents]
        return {"completed": 0, "unknown": 7, "cancelled": self.status or 5}.get(states[-1], 5) if states else None

    @property
    def documents(self) -> list[dict[str, Any]]:
        """What it printed of migrations; what is no JSON is left out."""
        return [document for document in self.printed if self.kind != "service" or "route" in document]

    @property
    def printed(self) -> list[dict[str, Any]]:
        """All that it printed: a service that is ended by a signal also has a word of its own."""
        found = []
        for line in self.out.splitlines():
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    @property
    def words(self) -> str:
        """All that it said for a person."""
        said = [f"{d.get('error')} {' '.join(d.get('notes', ()))}" for d in self.documents]
        return " ".join([*said, self.err])


@dataclass
class Outcome:
    """A trial, when it is over."""

    plan: Plan
    ends: dict[str, End] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    """How often the victim made which call."""
    fired: bool = False
    """Whether what was planned happened."""
    is_there: bool = False
    """Whether the destination has the complete memory, under its name."""
    is_old: bool = False
    """Whether what had the name before still has it."""
    stray: str = ""
    """What else is under the name, in words."""
    old_digests: str = ""
    """Of the digests beside what had the name before, and has it still: ``there``, ``gone`` or ``others``."""
    leftovers: tuple[str, ...] = ()
    """Other files beside it."""
    source_changed: bool = False
    retry: str = ""
    """What went wrong with the migration that was tried after a SIGKILL."""
    skipped: str = ""
    """Why it cannot be tried here."""
    seconds: float = 0.0

    @property
    def writer(self) -> End:
        """Whose process the memory's new place belongs to."""
        return self.ends[self.plan.way.writer]
