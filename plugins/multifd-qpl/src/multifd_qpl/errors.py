"""What goes wrong in a channel of qpl."""

from __future__ import annotations

from multifd.errors import MethodError


class TornDown(MethodError):
    """The migration was aborted while pages were worked on."""

    def __init__(self) -> None:
        super().__init__("the migration is being torn down")


class OtherProcess(MethodError):
    """A channel was set up in one process and used in another, its fork."""

    def __init__(self, owner: int) -> None:
        super().__init__(
            f"this channel's jobs belong to process {owner}, which this one was forked from: "
            "set the method up after the fork"
        )
