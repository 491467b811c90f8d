"""What a destination that did not take the memory was configured otherwise in, by what the source saw of it.

A QEMU destination says nothing but SHUT 1 on the wire, and that rarely; its own stderr has the reason. But how far it
got and which connections it closed tell what to look at. The table of what 7.2.22 and 10.0.2 do in each case is in
docs/qemu.md; tests/engine/test_refusal.py has it as evidence.

Rules of this file: evidence in, words out; no connection, no clock. Where the memory is, is not decided here: a source
that waits for the PONG of a PING behind RAM's end before it hands over knows that by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Seen(enum.Enum):
    """What the source saw of one connection."""

    OPEN = "open"
    CLOSED = "closed"
    """The destination ended it, by FIN or RST, before the source did."""
    UNREAD = "closed unread"
    """It ended in a reset: the destination closed it with bytes of ours unread, or never accepted it."""


@dataclass(frozen=True)
class Evidence:
    """What a source knows of a destination that failed, hung or confirmed."""

    has_answered: bool
    """A PONG has come: the destination has read the stream's header and configuration, so both fit it."""
    main: Seen
    channels: Sequence[Seen]
    """Of each channel that was tried, by its number; one that could not connect is `Seen.UNREAD`."""
    has_failed: bool = False
    """SHUT 1 has come."""
    has_confirmed: bool = False
    """SHUT 0 has come."""
    method: str = ""
    """The name of the source's."""
    machine: str = ""
    """The source's machine type, if it has one."""


_STDERR = "its own stderr says which"


def explain(evidence: Evidence) -> str:
    """What to check at the destination; empty if what was seen says nothing of its configuration.

    Args:
        evidence: as it stood when the migration failed; or after SHUT 0, since a destination without multifd, or with
            fewer channels, confirms RAM that it never read.
    """
    if evidence.has_confirmed:
        return _explain_confirmed(evidence)
    if evidence.has_failed:
        told = f"it began to load and failed, as with another memory size, backends or devices; {_STDERR}"
    elif not evidence.has_answered:
        told = _explain_unanswered(evidence)
    else:
        told = _explain_stopped(evidence)
    return f"if the destination is a QEMU: {told}"


def _explain_confirmed(evidence: Evidence) -> str:
    unread = _numbers(evidence, Seen.UNREAD)
    if not unread:
        return ""
    return (
        f"the destination says that it is done, but it closed {unread} unread: pages are missing there, and it must "
        f"not run: {_fewer_channels(evidence)}"
    )


def _explain_unanswered(evidence: Evidence) -> str:
    count = len(evidence.channels)
    has_lost_channels = any(seen is not Seen.OPEN for seen in evidence.channels)
    if evidence.main is Seen.OPEN and not has_lost_channels:
        return (
            f"it has read nothing, so it waits for more than {count} channels (its multifd-channels), or another "
            "migration is under way there"
        )
    if evidence.main is Seen.OPEN:
        return f"it closed channels at once and reads nothing, so its uuid is another than the source's; {_STDERR}"
    what = f"{evidence.machine!r}" if evidence.machine else "the source's"
    return (
        f"it closed everything before it read RAM, so its machine type is not {what}, or its uuid is another than the "
        f"source's; {_STDERR}"
    )


def _explain_stopped(evidence: Evidence) -> str:
    if evidence.main is not Seen.OPEN:
        return (
            "it began to load and closed everything, as with another memory size, backends or devices, or a machine "
            f"type of a release that marks sync points otherwise; {_STDERR}"
        )
    lost = [seen is not Seen.OPEN for seen in evidence.channels]
    other_method = (
        f"its multifd-compression may be another than {evidence.method!r}"
        if evidence.method
        else "its multifd-compression may be another"
    )
    if any(lost) and not all(lost):
        closed = _numbers(evidence, Seen.CLOSED, Seen.UNREAD)
        return f"it closed {closed}: {_fewer_channels(evidence)}, or {other_method}"
    if any(lost):
        # Channels that it never wanted are reset; those whose packets it refused it ends in order, once they are read.
        reasons = ["it has capability multifd off", other_method]
        if Seen.CLOSED in evidence.channels:
            reasons.reverse()
        return f"it closed every channel but not main: {', or '.join(reasons)}"
    return (
        f"it has stopped reading: {other_method}, or its machine type is of a release that marks sync points otherwise"
    )


def _fewer_channels(evidence: Evidence) -> str:
    count = len(evidence.channels)
    if all(seen is not Seen.OPEN for seen in evidence.channels):
        return f"it has capability multifd off, or fewer multifd-channels than {count}"
    return f"it has fewer multifd-channels than {count}"


def _numbers(evidence: Evidence, *seen: Seen) -> str:
    numbers = [str(i) for i, one in enumerate(evidence.channels) if one in seen]
    if not numbers:
        return ""
    return f"channel{'s' * (len(numbers) > 1)} {', '.join(numbers)}"
