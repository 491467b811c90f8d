"""Where the memory is: the one state of a migration from which every word, status and exit code follows.

Each end of a migration has a `Fate`. It says what that end knows, never more: while it is not certain that the other
end has given up, the memory is handed over "or perhaps", and nobody calls the own copy the good one.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

from multifd.errors import Cancelled, MultifdError, OutcomeUnknown


class Custody(enum.Enum):
    """Who has the memory, as far as this end knows."""

    WITH_SOURCE = "with the source"
    """The destination does not have it and will not: the source's is the good copy."""
    HANDED_OVER = "handed over, or perhaps"
    """The destination may have it; it has not said so."""
    COMMITTED = "committed"
    """The destination has it, durable and under its name."""


@dataclass(frozen=True)
class Words:
    """What one end says of the memory in each state, after an error."""

    with_source: str
    handed_over: str
    committed: str


SENDER = Words(
    "the memory here is intact and the good copy",
    "The destination may hold the memory: look there before the source runs again",
    "the destination has the memory",
)
RECEIVER = Words(
    "what was received is not kept: the good copy is the source's",
    "What was received may still appear under its name: look at both ends",
    "the memory is here, complete and durable",
)
RELAY = Words(
    "the good copy is the source's",
    "The end of the stream was passed on: look at the destination before the source runs again",
    "the destination has the memory",
)


class Fate:
    """What one end of one migration knows of where the memory is.

    Thread rule: one thread changes it; any may ask.

    Args:
        words: the end's own.
    """

    def __init__(self, words: Words) -> None:
        self._words = words
        self.custody = Custody.WITH_SOURCE
        self._is_source_sound = True
        self._is_refused = False

    def hand_over(self) -> None:
        """From now on the other end may have the memory."""
        if self.custody is Custody.WITH_SOURCE and not self._is_refused:
            self.custody = Custody.HANDED_OVER

    def take_back(self) -> None:
        """Nothing of what would have handed it over has left, or what would have committed it was prevented."""
        if self.custody is Custody.HANDED_OVER:
            self.custody = Custody.WITH_SOURCE

    def refuse(self) -> None:
        """The destination has said that it gave up: it does not have the memory and never will."""
        self._is_refused = True
        self.take_back()

    def commit(self) -> None:
        """The destination has the memory."""
        self.custody = Custody.COMMITTED

    def source_failed(self) -> None:
        """The source's memory could not be read: nobody calls it intact any more."""
        self._is_source_sound = False

    def status(self, error: BaseException | None) -> str:
        """`multifd.stats.Result.status` at the end of a migration that ended with `error`, None for none."""
        if self.custody is Custody.COMMITTED:
            return "completed"
        if self.custody is Custody.HANDED_OVER:
            return "unknown"
        return "failed" if isinstance(error, Exception) and not isinstance(error, Cancelled) else "cancelled"

    def conclude(self, error: BaseException) -> BaseException:
        """The error that leaves the migration: `error` with what is known of the memory.

        multifd's own errors become `OutcomeUnknown` where that is what matters; whatever else was raised, an interrupt
        or what a callback raised, keeps its type and gets a note.
        """
        if self.custody is Custody.HANDED_OVER:
            if isinstance(error, MultifdError):
                unknown = OutcomeUnknown(
                    f"the end of the stream is out, but nothing confirms that it arrived: {error}. "
                    f"{self._words.handed_over}"
                )
                unknown.__cause__ = error
                for note in getattr(error, "__notes__", ()):
                    unknown.add_note(note)
                return unknown
            error.add_note(self._words.handed_over)
        elif self.custody is Custody.COMMITTED:
            error.add_note(self._words.committed)
        elif self._is_source_sound:
            error.add_note(self._words.with_source)
        return error


def attach(error: BaseException, result: Any) -> None:
    """Give an error that leaves a migration its figures, whatever its type: ``error.result``."""
    error.result = result  # type: ignore[attr-defined]
