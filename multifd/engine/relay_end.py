"""Why a relay's migration failed: from what was seen of both sides, what its user is told."""

from __future__ import annotations

from collections.abc import Collection

from multifd.engine.relay_channel import RelayChannel
from multifd.engine.relay_main import RelayMain
from multifd.engine.relay_way import RelayWay
from multifd.errors import ChannelError, MultifdError, PeerFailed, TlsError, note_hint


def explain(
    error: BaseException,
    way: RelayWay,
    main: RelayMain | None,
    channels: Collection[RelayChannel],
    objection: MultifdError | None,
) -> BaseException:
    """What is told of an error; the error itself, with hints, if nothing explains it better.

    Args:
        error: what the threads' errors amount to.
        way: what was to be done.
        main: of the migration, if it has come.
        channels: of the migration.
        objection: why somebody was turned away who may have been a channel of this migration.
    """
    if objection is not None and isinstance(error, ChannelError | PeerFailed):
        objection.add_note(str(error))
        error = objection
    if isinstance(error, ChannelError | PeerFailed) and _may_be_another_method(error, way, main, channels):
        error.add_note(
            "if the destination is a QEMU, its multifd-compression may be another than "
            f"{way.config.out_method!r}: libvirt sets it alike at both ends, and what goes out must be of the "
            "source's method then ('same')"
        )
    is_explained = isinstance(error, TlsError) or sum(channel.figures.packets for channel in channels) > len(channels)
    if isinstance(error, ChannelError) and main is not None and main.destination is not None and not is_explained:
        note_hint(error, main.destination.silence_hint())
    return error


def _may_be_another_method(
    error: MultifdError, way: RelayWay, main: RelayMain | None, channels: Collection[RelayChannel]
) -> bool:
    """Whether the destination failed as a QEMU does that was told of another method: pages came, channels ended."""
    came_in = way.negotiation.method
    if main is None or main.stream_ended.is_set() or way.out is None or came_in is None or came_in is way.out:
        return False
    outs = [channel.destination for channel in channels if channel.destination is not None]
    has_ended = any(destination.has_hung_up() or destination.was_reset() for destination in outs)
    return came_in.name != way.out.name and (has_ended or error.setting == "timeout")
